"""What the commands share: where the shipped weights are, what is set before JAX starts, sizes, folders, pictures."""

from __future__ import annotations

import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

from sdjax.checkpoint.shipped import shipped
from sdjax.errors import InputError


class Dtype(StrEnum):
    """The dtype of the weights, and so of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# The small models that ship; text to image where a command has none of its own.
OWN = {"inpaint": "tiny-inpaint", "upscale": "tiny-upscaler", "depth2img": "tiny-depth", "depth": "tiny-depth"}


def default_model(command: str = "txt2img") -> Path:
    """The small model that ships for a command."""
    return shipped(OWN.get(command, "tiny"))


def prepare(meeting: bool = False) -> None:
    """Sets up JAX before it is first used: a CPU flag, and a cache of compiled programs of the user's own.

    InputError where there is no device; processes that are `meeting` others must not look for one before.
    """
    from sdjax import hardware

    hardware.prepare()
    if not meeting:
        hardware.require_device()


def save(path: Path, picture: Any, sd: Any, settings: dict[str, Any] | None) -> None:
    """Writes a picture with the settings that draw it again, or with none."""
    import sdjax

    if settings is not None:
        height, width = picture.shape[:2]
        settings = settings | {"height": height, "width": width, "model": sd.config.name, "version": sdjax.__version__}
    sdjax.write_png(path, sdjax.to_uint8(picture), settings)


def weights_id(sd: Any) -> str:
    """Ten hex digits that tell the weights which draw from others, in the dtype that they are in.

    A hash of some numbers of every tensor, since a model may differ in a few of them alone: 64, or every 509th where
    that is more, by which no row of a matrix is passed over. Of all of SD 1.x's numbers it would take seconds.
    """
    import jax
    import numpy as np

    from sdjax.checkpoint.tree import fingerprint

    drawing = [sd.text_encoder, sd.unet, sd.vae, *filter(None, [sd.depth_estimator])]
    tensors = [np.asarray(leaf).ravel() for network in drawing for leaf in jax.tree.leaves(network.state)]
    return fingerprint([numbers[:: min(509, max(1, numbers.size // 64))] for numbers in tensors])[:10]


def read_size(size: str | None) -> list[int] | None:
    """[height, width] of HEIGHTxWIDTH; None where nothing was said."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", size)
    if not match:
        raise InputError(f"--size: found {size!r}, expected HEIGHTxWIDTH such as 512x768")
    from sdjax.images import MAX_PIXELS

    height, width = int(match[1]), int(match[2])
    if not (height and width):
        raise InputError(f"--size: found {size}, expected sides of a pixel or more")
    if height * width > MAX_PIXELS:
        raise InputError(f"--size: found {size}, expected at most {MAX_PIXELS:,} pixels")
    return [height, width]


def require_file(out: Path) -> None:
    """Makes the folder of a file to be written; InputError where that cannot be, or `out` is a folder."""
    make_folder(out.parent)
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder, expected a file to write")


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Writes figures as JSON."""
    from sdjax.files import written_whole

    with written_whole(out) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def make_folder(out: Path) -> list[str]:
    """Makes a folder where there is none; the names of what is in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return os.listdir(out)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made ({error.strerror}); give another place") from error
