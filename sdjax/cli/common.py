"""What the commands share: where the shipped weights are, and what must be set before JAX starts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from sdjax.errors import InputError


class Dtype(StrEnum):
    """The dtype of the weights, and so of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def default_model() -> Path:
    """The small model that ships: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "weights" / "tiny", package.parent / "weights" / "tiny"):
        if folder.is_dir():
            return folder
    raise InputError("weights/tiny: not found beside the package; give --model PATH")


def prepare() -> None:
    """Sets up JAX before it is first used: a CPU flag, and a cache of compiled programs of the user's own."""
    from sdjax.hardware import prepare as set_up

    set_up()
