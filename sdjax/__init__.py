"""sdjax: Stable Diffusion 1.x and 2.x in JAX and Flax, written by hand to be read.

    import sdjax
    sd = sdjax.load(sdjax.shipped("tiny"))                      # or the path of released weights
    pictures = sd.txt2img("a red cube left of a blue sphere")   # float32 [1, 128, 128, 3] in [-1, 1]

The story, a file a stage: tokenizer, clip, diffusion, unet, attention, samplers, vae, and pipeline, which
puts them together. Names are imported when first used, so that `import sdjax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdjax.checkpoint.hub import download
    from sdjax.checkpoint.load import load, load_clip
    from sdjax.checkpoint.native import save
    from sdjax.checkpoint.shipped import shipped
    from sdjax.config import PRESETS
    from sdjax.errors import InputError
    from sdjax.images import read_picture, to_uint8, write_png
    from sdjax.pipeline import CLIP, Snapshot, StableDiffusion
    from sdjax.tokenizer import Tokenizer

_HOMES = {
    "load": "sdjax.checkpoint.load",
    "load_clip": "sdjax.checkpoint.load",
    "save": "sdjax.checkpoint.native",
    "download": "sdjax.checkpoint.hub",
    "shipped": "sdjax.checkpoint.shipped",
    "StableDiffusion": "sdjax.pipeline",
    "Snapshot": "sdjax.pipeline",
    "CLIP": "sdjax.pipeline",
    "Tokenizer": "sdjax.tokenizer",
    "PRESETS": "sdjax.config",
    "InputError": "sdjax.errors",
    "read_picture": "sdjax.images",
    "to_uint8": "sdjax.images",
    "write_png": "sdjax.images",
}

__version__ = "0.1.0"
__all__ = [
    "CLIP", "InputError", "PRESETS", "Snapshot", "StableDiffusion", "Tokenizer", "download", "load", "load_clip",
    "read_picture", "save", "shipped", "to_uint8", "write_png",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
