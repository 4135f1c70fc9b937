"""Weights in: `load` a model or `load_clip` a CLIP, `convert` to our own layout, `describe` what a path holds."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax.checkpoint import diffusers_folder, native, original_file
from sdjax.checkpoint.parts import Checkpoint, Part, WrongFamily, require_fit
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.config import ModelConfig, Prediction
from sdjax.errors import InputError
from sdjax.hardware import Network, as_dtype, dtype_of, quiet_cpu
from sdjax.pipeline import CLIP, StableDiffusion
from sdjax.tokenizer import Tokenizer


def load(path: str | Path, dtype: Any = "float32", *, prediction: Prediction | None = None) -> StableDiffusion:
    """A Stable Diffusion 1.x or 2.x from disk, in any of three layouts.

    `path`: a folder of diffusers; one .safetensors file in the original layout; a folder that `save` wrote. `dtype`:
    float32, bfloat16 or float16, whatever the files have; of the VAE and MiDaS always float32. `prediction` "eps" or
    "v" overrules what is found. Where JAX has not touched a device yet, a CPU gets its flag (`hardware.quiet_cpu`).
    InputError if anything is missing, left over, misshapen, doubled or not finite, or it is another kind of model.
    """
    if prediction not in (None, "eps", "v"):
        raise InputError(f"prediction: found {prediction!r}, expected 'eps', 'v' or None")
    quiet_cpu()
    dtype = as_dtype(dtype)
    found = _opened(Path(path))
    require_fit(found.path, f"{found.config.name} in the {found.layout} layout", found.problems())
    networks = {name: part.read(dtype_of(name, dtype)) for name, part in found.parts.items()}
    if prediction is None:
        prediction = _prediction(found, networks["unet"])
    return StableDiffusion(_with_prediction(found, prediction), found.tokenizer, **networks)


def load_clip(path: str | Path, dtype: Any = "float32") -> CLIP:
    """A CLIP from disk: texts and pictures in one space.

    `path`: the folder of a CLIPModel of transformers; the one file of clip-vit-large-patch14; a folder that `save`
    wrote, where it has an image encoder. InputError as `load`.
    """
    quiet_cpu()
    dtype, path = as_dtype(dtype), Path(path)
    tokenizer, parts = _opened_clip(path)
    require_fit(path, "CLIP", [line for part in parts.values() for line in part.problems()])
    return CLIP(tokenizer, **{name: part.read(dtype) for name, part in parts.items()})


def convert(source: str | Path, target: str | Path, dtype: Any = "float32") -> None:
    """Writes the model at `source` as a folder in the project's own layout; InputError as `load` and `save`."""
    native.require_free(target)  # before gigabytes are read
    native.save(load(source, dtype), target, dtype)


@dataclass(frozen=True)
class Info:
    """What a path holds; `parameters` counts by part, `problems` says in a line each what does not fit."""

    path: str
    layout: str
    family: str
    prediction: str | None
    dtypes: tuple[str, ...]
    parameters: dict[str, int]
    problems: tuple[str, ...]


def describe(path: str | Path) -> Info:
    """What is at `path`, from the headers; for SD 2.x in the original layout the UNet is asked what it predicts.

    Weights that do not fit are described, not refused. InputError where there is nothing to describe.
    """
    path = Path(path)
    try:
        if _is_clip(path):
            _, parts = _opened_clip(path)
            return _info(path, "transformers", "CLIP", None, parts, [])
        found = _opened(path)
    except WrongFamily as error:
        return Info(str(path), "unknown", error.what, None, (), {}, (str(error),))
    unet = found.parts["unet"]
    told = found.prediction_told or unet.problems()
    prediction = found.config.diffusion.prediction if told else _prediction(found, unet.read(as_dtype("float32")))
    family = _with_prediction(found, prediction).name
    return _info(path, found.layout, family, prediction, found.parts, [f"has unknown {name}" for name in found.strays])


def _info(
    path: Path, layout: str, family: str, prediction: str | None, parts: dict[str, Part], strays: list[str]
) -> Info:
    dtypes = {str(part.file.dtype(n.stored)) for part in parts.values() for n in part.names}
    problems = strays + [line for part in parts.values() for line in part.problems()]
    parameters = {name: part.size for name, part in parts.items()}
    return Info(str(path), layout, family, prediction, tuple(sorted(dtypes)), parameters, tuple(problems))


def _opened(path: Path) -> Checkpoint:
    if not path.exists():
        raise InputError(f"{path}: does not exist, expected a model's folder or a .safetensors file; the small model is"
                         ' at sdjax.shipped("tiny")')
    if not path.is_dir():
        return original_file.opened(SafetensorsFile(path))
    for index, layout in ((native.INDEX, native), (diffusers_folder.INDEX, diffusers_folder)):
        if (path / index).is_file():
            return layout.opened(path)
    inside = sorted(os.listdir(path))[:5]
    raise InputError(
        f"{path}: a folder with {', '.join(inside) or 'nothing'}, expected {diffusers_folder.INDEX} (diffusers) or"
        f" {native.INDEX} (sdjax convert) in it; give the model's folder, or one .safetensors file"
    )


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        config = path / "config.json"
        return config.is_file() and native.read_json(config).get("model_type") == "clip"
    return any(name.startswith("vision_model.") for name in SafetensorsFile(path).names())


def _opened_clip(path: Path) -> tuple[Tokenizer, dict[str, Part]]:
    if not path.is_dir():
        return diffusers_folder.clip_file(SafetensorsFile(path))
    if (path / native.INDEX).is_file():
        found = native.opened(path)
        if "image_encoder" not in found.parts:
            raise InputError(f"{path}: has no image encoder, expected a CLIP; sdjax.load takes it without")
        return found.tokenizer, {name: found.parts[name] for name in ("text_encoder", "image_encoder")}
    return diffusers_folder.clip_folder(path)


def _prediction(found: Checkpoint, unet: Network) -> Prediction:
    if found.prediction_told:
        return found.config.diffusion.prediction
    return "v" if original_file.predicts_v(unet) else "eps"


def _with_prediction(found: Checkpoint, prediction: Prediction) -> ModelConfig:
    """The configuration with what the UNet predicts; SD 2.x that predicts v is the model for 768 pixels."""
    config = found.config
    if prediction == config.diffusion.prediction:
        return config
    config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, prediction=prediction))
    return config if found.prediction_told else dataclasses.replace(config, name="sd2", image_size=768)
