"""Where the small models are that come with the package."""

from __future__ import annotations

from pathlib import Path

from sdjax.errors import InputError


def shipped(name: str = "tiny") -> Path:
    """The folder of "tiny", "tiny-inpaint", "tiny-upscaler" or "tiny-depth"; InputError where there is none.

    It is in an installed package, or beside it in a checkout.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "weights" / name, package.parent / "weights" / name):
        if folder.is_dir():
            return folder
    raise InputError(f"weights/{name}: not found beside the package; give the path of weights")
