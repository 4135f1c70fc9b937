"""Picture files in and out: float [H, W, 3] in [-1, 1] inside, PNG with its settings outside.

A PNG carries two text chunks. "parameters" is the text that most Stable Diffusion tools read (AUTOMATIC1111's
stable-diffusion-webui, modules/infotext_utils.py); "sdjax" is the exact settings as JSON, from which the same
picture can be made again. Both hold the prompt: whoever gets the picture can read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sdjax.errors import InputError
from sdjax.files import written_whole

# Three well-tested decoders. Pillow has dozens, and each is a way in for a hostile file.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # 8000 x 8000; a 100 KB file can claim to be much larger

SETTINGS_KEY = "sdjax"
INFOTEXT_KEY = "parameters"
INFOTEXT_NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "strength": "Denoising strength",
}
INFOTEXT_SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler"}


@contextlib.contextmanager
def _opened(path: str | Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The picture at `path`, its header read and its size checked, its pixels not decoded yet."""
    path = Path(path)
    wanted = f"{' or '.join(formats)} picture"
    if not os.path.isfile(path):
        found = "is not a file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"{path}: {found}; give the path of a {wanted}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}")
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: has more than {MAX_PIXELS:,} pixels, too many to decode safely; make it smaller first"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is not a {wanted}; convert it to one first") from error
    # A decoder that meets garbage raises nearly anything: OSError, SyntaxError, struct.error, EOFError.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be decoded ({reason}); the file is truncated or damaged") from error


def read_picture(path: str | Path, size: tuple[int, int] | None = None, behind: str = "white") -> np.ndarray:
    """Reads a PNG, JPEG or WEBP file as float32 [H, W, 3] in [-1, 1], upright; `behind` shows through transparency.

    `size` (height, width): scaled with Lanczos until it covers this, the overhang cut equally on both
    sides. Of an animation, the first frame. InputError if it is missing, of another format, damaged, or
    larger than MAX_PIXELS.
    """
    with _opened(path, FORMATS) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # 16-bit grey: Pillow's own conversion clips at 255, which turns a depth map white.
            grey = np.asarray(image, np.int64)
            seen = 255 * (grey != image.info.get("transparency", -1))
            image = Image.fromarray(np.stack([(grey + 128) // 257, seen], axis=-1).astype(np.uint8), "LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image)
        image = image.convert("RGB")
    if size is not None:
        image = _fitted(image, size)
    return np.asarray(image, np.float32) / np.float32(127.5) - 1


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mask in a picture file as floats [H, W] in [0, 1]: white is 1, to be painted anew, transparency is 0.

    Cropped and resized as `read_picture` does it, and with the same errors. A file of zeros and ones, black to the
    eye, is what `as_mask` takes it for.
    """
    with _opened(path, FORMATS) as image:
        if image.mode.startswith("I") and np.max(image) == 1:  # ones in 16 bits, which 8 bits do not have
            image = ImageOps.exif_transpose(image.convert("F"))
            return np.asarray(image if size is None else _fitted(image, size), np.float32).clip(0, 1)
    share = (read_picture(path, size, "black").mean(axis=-1) + 1) / 2
    return share / share.max() if 0.0 < share.max() < 1.5 / 255.0 else share


def read_depth(
    path: str | Path, size: tuple[int, int] | None = None, picture: tuple[int, int] | None = None
) -> Float[np.ndarray, "H W"]:
    """A map of inverse depth in a picture file, white where it is nearest, in whatever unit.

    Stretched to the (height, width) of its `picture`, if that is given, then cropped and resized to `size` as
    `read_picture` does it, and with the same errors. Of 16-bit grey all bits are kept: a scene may take up a small part
    of their range.
    """
    with _opened(path, FORMATS) as image:
        deep = image.mode.startswith("I")
        values = np.asarray(ImageOps.exif_transpose(image)) if deep else read_mask(path)
    image = Image.fromarray(values.astype(np.float32))
    if picture is not None:
        image = image.resize(picture[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image if size is None else _fitted(image, size), np.float32)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at `size` (height, width), scaled until it covers this and the overhang cut equally."""
    height, width = size
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_uint8(pictures: ArrayLike) -> np.ndarray:
    """Pictures [..., H, W, 3] in [-1, 1] as uint8 0 to 255, clipped and rounded.

    InputError where a value is not finite: cast to uint8 it would be a black or random pixel, without a word.
    """
    pictures = np.asarray(pictures, np.float32)
    bad = pictures.size - np.count_nonzero(np.isfinite(pictures))
    if bad:
        raise InputError(
            f"the decoded picture holds NaN or infinity in {bad} of {pictures.size} values, expected finite"
            " numbers; half precision overflowed, or the weights are damaged: try dtype float32"
        )
    return np.rint((np.clip(pictures, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def infotext(parameters: Mapping[str, Any]) -> str:
    """The settings as the text under the "parameters" key: prompt, negative prompt, one line of the rest."""
    rest = {key: value for key, value in parameters.items() if value is not None}
    lines = [rest.pop("prompt", "")]
    if negative := rest.pop("negative_prompt", ""):
        lines.append(f"Negative prompt: {negative}")
    if "width" in rest and "height" in rest:
        rest["size"] = f"{rest.pop('width')}x{rest.pop('height')}"
    if "sampler" in rest:
        rest["sampler"] = INFOTEXT_SAMPLERS.get(rest["sampler"], rest["sampler"])
    known = [key for key in INFOTEXT_NAMES if key in rest]
    fields = []
    for key in known + [key for key in rest if key not in known]:
        text = str(rest[key])
        # The readers split at commas and colons, and take a JSON string for what holds one.
        text = json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text
        fields.append(f"{INFOTEXT_NAMES.get(key, key.replace('_', ' ').capitalize())}: {text}")
    return "\n".join([*lines, ", ".join(fields)])


def write_png(path: str | Path, picture: ArrayLike, parameters: Mapping[str, Any] | None) -> None:
    """Writes a uint8 picture [H, W, 3] as a PNG that appears whole or not at all.

    `parameters`: the settings that made it, under the argument names of txt2img, JSON values only; None
    leaves them out. InputError if it cannot be written, is of another dtype, or `path` does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG, expected a name that ends in .png")
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        raise InputError(f"{path}: the picture holds {picture.dtype}, expected uint8; to_uint8 makes it of [-1, 1]")
    chunks = PngImagePlugin.PngInfo()
    if parameters is not None:
        # Half a UTF-16 pair (a file name's bad byte, from a shell) has no UTF-8: "?" here, exact in the JSON.
        readable = infotext(parameters).encode("utf-8", "replace").decode("utf-8")
        chunks.add_text(INFOTEXT_KEY, readable)
        chunks.add_text(SETTINGS_KEY, json.dumps(dict(parameters)))
    with written_whole(path) as part:
        Image.fromarray(picture).save(part, "PNG", pnginfo=chunks)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `write_png` put into the PNG at `path`; InputError where there are none."""
    with _opened(path, ("PNG",)) as image:
        text = image.info.get(SETTINGS_KEY)
        try:
            settings = json.loads(text) if text is not None else None
        except (ValueError, RecursionError):
            settings = None
    if not isinstance(settings, dict):
        raise InputError(
            f'{path}: holds no settings (no valid text under "{SETTINGS_KEY}"); they were left out, or lost'
            " when another program saved it: give the prompt and settings by hand"
        )
    return settings


def grid(pictures: ArrayLike, columns: int) -> np.ndarray:
    """A contact sheet of uint8 [n, h, w, 3], row by row: uint8 [rows h, columns w, 3], empty cells white."""
    pictures = np.asarray(pictures, np.uint8)
    n, height, width, channels = pictures.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:n] = pictures
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def shrunk(pictures: ArrayLike, factor: int = 4) -> Float[np.ndarray, "b h w c"]:
    """Pictures [b, H, W, c] at a `factor`-th of their size: means of squares of pixels, float32."""
    b, height, width, c = np.shape(pictures)
    cut = np.reshape(pictures, (b, height // factor, factor, width // factor, factor, c))
    return cut.mean(axis=(2, 4), dtype=np.float32)


def as_pictures(pictures: Any, name: str) -> Float[np.ndarray, "b H W 3"]:
    """Pictures as float32 [b, H, W, 3] in [-1, 1], from floats or uint8, one or many; InputError if they are not."""
    try:
        array = np.asarray(pictures)
    except ValueError as error:  # of several sizes
        raise InputError(f"{name}: found pictures of several sizes, expected one size, or one at a time") from error
    _require_numbers(array, name)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(f"{name}: found shape {list(np.shape(pictures))}, expected [H, W, 3] or [b, H, W, 3]")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 127.5 - 1.0
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and np.abs(array).max() <= 1.0 + 1e-3):
        found = f"values from {array.min():g} to {array.max():g}"
        raise InputError(f"{name}: found {found}, expected uint8, or floats in [-1, 1]")
    return array


def _require_numbers(array: np.ndarray, name: str) -> None:
    """InputError unless these are bool, integers or floats (those of JAX's half precision, too)."""
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"{name}: found an array of {array.dtype}, expected numbers")


def _one_map(values: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An array, and [H, W] of [H, W, 1] or [1, H, W], anything else as it is; InputError if it is no array."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name}: found rows of several lengths, expected [H, W], a number for each pixel") from error
    _require_numbers(array, name)
    flat = array.reshape(array.shape[:2]) if array.ndim == 3 and array.shape[-1] == 1 else array
    return array, flat[0] if flat.ndim == 3 and len(flat) == 1 else flat


def as_depth(depth: Any) -> Float[np.ndarray, "1 H W 1"]:
    """One map of inverse depth stretched to [0, 1], 1 where it is nearest; InputError if it is none.

    `depth` is [H, W], [H, W, 1] or [1, H, W], bool, integers or floats, larger where nearer, in any unit and of any
    size. Zeros where it is flat but for the rounding of its own numbers.
    """
    array, flat = _one_map(depth, "depth")
    if flat.ndim != 2 or 0 in flat.shape:
        raise InputError(f"depth: found shape {list(array.shape)}, expected [H, W], a number for each pixel")
    rounding = 16 * np.finfo(flat.dtype).eps if flat.dtype.kind == "f" else 0.0
    flat = flat.astype(np.float64)  # a small relief far away is lost in float32
    if not np.isfinite(flat).all():
        raise InputError("depth: found NaN or infinity, expected finite numbers, larger where nearer")
    flat = flat / (np.abs(flat).max() or 1.0)
    span = np.ptp(flat)
    flat = (flat - flat.min()) / span if span > rounding else np.zeros_like(flat)
    return flat.astype(np.float32)[None, :, :, None]


def normalised_depth(depth: Float[np.ndarray, "b H W 1"]) -> Float[np.ndarray, "b H W 1"]:
    """Each map stretched to [-1, 1], 1 where it is nearest; -1 everywhere where all of it is equally far.

    2 (d - min) / (max - min) - 1: ldm/models/diffusion/ddpm.py LatentDepth2ImageDiffusion, whose 0.001 in the
    denominator gives the same -1 for a flat map; its demo and diffusers divide by zero there. A flat map that was
    resized is flat but for the rounding of float32, which must not become a picture.
    """
    depth = np.asarray(depth, np.float64)  # or the span of what float32 just holds would be infinite
    low, high = (f(depth, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    uneven = high - low > 1e-5 * np.maximum(np.abs(low), np.abs(high))
    return np.where(uneven, 2.0 * (depth - low) / np.where(uneven, high - low, 1.0) - 1.0, -1.0).astype(np.float32)


def of_depth(depth: Any) -> Float[np.ndarray, "H W 3"]:
    """A map of inverse depth as a grey picture in [-1, 1], white where it is nearest."""
    return np.repeat(normalised_depth(as_depth(depth))[0], 3, axis=-1)


def as_mask(mask: Any, size: tuple[int, int]) -> Float[np.ndarray, "1 H W 1"]:
    """A mask as zeros and ones, 1 where it was half or more: LDM's and diffusers' threshold.

    `mask` is [H, W], [H, W, 1] or [1, H, W], of `size`: bool, uint8 0 to 255, integers 0 and 1 of any kind, or floats
    in [0, 1]. InputError if not.
    """
    array, flat = _one_map(mask, "mask")
    if flat.shape != size:
        raise InputError(f"mask: found shape {list(array.shape)}, expected [{size[0]}, {size[1]}] as its image")
    # Nobody means by 1 the darkest of 255 greys where there is nothing lighter.
    share = flat.astype(np.float32) / (255.0 if flat.dtype == np.uint8 and flat.max() > 1 else 1.0)
    if not (np.isfinite(share).all() and share.min() >= -1e-3 and share.max() <= 1.0 + 1e-3):
        found = f"values from {share.min():.6g} to {share.max():.6g}"
        raise InputError(f"mask: found {found}, expected bool, uint8, or floats in [0, 1], 1 to paint anew")
    return (share >= 0.5).astype(np.float32)[None, :, :, None]
