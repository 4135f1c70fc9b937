"""The project's own layout: a folder whose tensors lie as the networks hold them, so that loading is a plain read.

    sdjax.json                   format, version, the configuration, where the vocabulary is
    text_encoder.safetensors     vae.safetensors     unet.safetensors     and where there are:
    image_encoder.safetensors    depth_estimator.safetensors
    tokenizer.json               a vocabulary of its own, where it is not CLIP's
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.checkpoint import tree
from sdjax.checkpoint.parts import Checkpoint, Name, Part, check, check_tokenizer
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.config import TextConfig, from_dict, to_dict
from sdjax.errors import InputError
from sdjax.files import each_once
from sdjax.hardware import Network, as_dtype
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer

INDEX = "sdjax.json"
VERSION = 1
MAX_JSON = 1_000_000  # bytes


class Cast:
    """Arrays as they are to be written, one after another; nothing is copied before NumPy asks for it.

    `axes`: their new order; `ones`: how many dimensions of 1 come behind; `dtype`: None keeps the arrays'.
    """

    def __init__(self, arrays: list[Any], axes: tuple[int, ...] | None = None, ones: int = 0, dtype: Any = None):
        first = arrays[0]
        self.arrays, self.axes, self.dtype = arrays, axes, np.dtype(dtype or first.dtype)
        shape = first.shape if axes is None else tuple(first.shape[axis] for axis in axes)
        self.shape = (*((len(arrays) * shape[0], *shape[1:]) if len(arrays) > 1 else shape), *[1] * ones)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        arrays = [np.asarray(a) if self.axes is None else np.asarray(a).transpose(self.axes) for a in self.arrays]
        with np.errstate(over="ignore"):  # an infinity is refused when it is written
            joined = (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).astype(dtype or self.dtype)
        return joined.reshape(self.shape)


def networks(sd: StableDiffusion) -> dict[str, Network]:
    """The parts of a model by name."""
    names = ("text_encoder", "vae", "unet", "image_encoder", "depth_estimator")
    parts = {name: getattr(sd, name) for name in names}
    return {name: network for name, network in parts.items() if network is not None}


def is_clip(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary is the released one, which ships with the package."""
    return tokenizer.merges == Tokenizer.clip().merges


def save(sd: StableDiffusion, folder: str | Path, dtype: Any = None, replace: bool = False) -> None:
    """Writes a model as a folder in the project's own layout, whole or not at all.

    `dtype` casts the weights, "float16" for shipping; None keeps them. InputError if `folder` is there already
    (with `replace`, if it is anything but such a model), cannot be written, or a weight is too large for `dtype`.
    """
    dtype = None if dtype is None else as_dtype(dtype)
    with written_folder(folder, replace) as part:
        vocabulary = "clip" if is_clip(sd.tokenizer) else "tokenizer.json"
        if vocabulary != "clip":
            sd.tokenizer.save(part / vocabulary)
        for name, network in networks(sd).items():
            arrays = {path: Cast([array], dtype=dtype) for path, array in tree.flatten(network.state).items()}
            write_safetensors(part / f"{name}.safetensors", arrays)
        config = sd.config if sd.image_encoder is not None else dataclasses.replace(sd.config, vision=None)
        index = {"format": "sdjax", "version": VERSION, "tokenizer": vocabulary, "config": to_dict(config)}
        write_json(part / INDEX, index)


def opened(folder: Path) -> Checkpoint:
    """The model that `save` wrote."""
    path = folder / INDEX
    index = read_json(path)
    if set(index) != {"format", "version", "tokenizer", "config"} or index["format"] != "sdjax":
        raise InputError(f"{path}: found {sorted(index)[:5]}, expected what `sdjax convert` writes; convert again")
    if index["version"] != VERSION:
        raise InputError(f"{path}: is of version {index['version']!r}, expected {VERSION}; convert it again")
    config = from_dict(index["config"], str(path))
    check(config, str(path))
    configs = {"text_encoder": config.text, "vae": config.vae, "unet": config.unet, "image_encoder": config.vision,
               "depth_estimator": config.depth}
    parts = {}
    for name, part in configs.items():
        if part is not None:
            file = SafetensorsFile(folder / f"{name}.safetensors")
            parts[name] = Part.of(name, part, file, [Name(n, n) for n in file.names()], _itself)
    return Checkpoint(folder, "sdjax", config, _tokenizer(folder, index["tokenizer"], config.text), parts)


def _itself(parameters: Any) -> dict[str, tuple[str, ...]]:
    return {parameter: (parameter,) for parameter in parameters}


def _tokenizer(folder: Path, name: Any, c: TextConfig) -> Tokenizer:
    if name not in ("clip", "tokenizer.json"):
        raise InputError(f'{folder / INDEX}: tokenizer is {name!r}, expected "clip" or "tokenizer.json"')
    tokenizer = Tokenizer.clip(c.padding) if name == "clip" else Tokenizer.load(folder / name)
    return check_tokenizer(tokenizer, c, str(folder))


def require_free(folder: str | Path) -> None:
    """InputError if something is at `folder` already, other than an empty folder, or if there is no place for it."""
    folder = Path(folder)
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: cannot be written, as {folder.parent} is no folder; make that first")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is there already, expected a folder to make; give another name or move it away")


@contextlib.contextmanager
def written_folder(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and is gone when the block fails.

    InputError if `folder` exists and is not empty; with `replace`, a model of our own layout gives way.
    """
    folder = Path(os.path.abspath(folder))
    mine = replace and (folder / INDEX).is_file()
    if not mine:
        require_free(folder)
    part, old = (folder.parent / f".{secrets.token_hex(8)}.{kind}" for kind in ("part", "old"))
    try:
        part.mkdir()
        yield part
        try:
            if mine:
                os.rename(folder, old)
            os.rename(part, folder)
        except BaseException:  # an interrupt, too, must not leave neither of the two
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); give a place in an existing, writable folder"
            " with room"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """One JSON object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError if it is none, or over 1 MB."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_JSON + 1)
        values = json.loads(raw[:MAX_JSON].decode("utf-8"), object_pairs_hook=each_once)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a JSON file") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON of at most {MAX_JSON:,} bytes; download or convert again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: is a JSON {type(values).__name__}, expected an object; download or convert again")
    return values
