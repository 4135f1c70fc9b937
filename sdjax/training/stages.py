"""The order in which the small model is made: tokenizer, VAE, CLIP, UNet; each stage reads what the last left.

    RUN/tokenizer.json   RUN/vae.safetensors   RUN/text_encoder.safetensors   RUN/image_encoder.safetensors
    RUN/model/           the whole, as `sdjax.load` takes it
    RUN/judge.safetensors

and the pictures, checkpoints and loss curves of each stage in folders of their own beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.checkpoint import native, tree
from sdjax.checkpoint.load import load
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import ModelConfig, tiny
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.images import grid, to_uint8, write_png
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import caption, describe, scene_at
from sdjax.training import clip, data, judge, unet, vae
from sdjax.training.loop import Recipe
from sdjax.unet import UNet
from sdjax.vae import VAE

SCENES = 20_000  # of the training split
CORPUS = 20_000  # captions in each language that the merges are learned from
MERGES = 200  # the captions hold 222 pairs to join; the rarest stay apart, so that some words show their parts


def run_stage(
    name: str, run: Path, steps: int | None = None, scenes: int | None = None, start: Path | None = None
) -> None:
    """Runs one stage by name, with other numbers of steps or scenes than its recipe's where given.

    `start` is a model whose denoiser the UNet's stage begins with. Raises InputError for a number below 1, or
    where an earlier stage has not left its part in `run`.
    """
    for what, number in (("steps", steps), ("scenes", scenes)):
        if number is not None and number < 1:
            raise InputError(f"{what}: found {number}, expected at least 1")
    if name == "tokenizer":
        return train_tokenizer(run)
    train, recipe = {"vae": (train_vae, vae.RECIPE), "clip": (train_clip, clip.RECIPE),
                     "unet": (partial(train_unet, start=start), unet.RECIPE),
                     "judge": (train_judge, judge.RECIPE)}[name]
    train(run, dataclasses.replace(recipe, steps=steps or recipe.steps), scenes or SCENES)


def train_tokenizer(run: Path) -> None:
    """Learns merges from captions of the training scenes in both languages: RUN/tokenizer.json."""
    run.mkdir(parents=True, exist_ok=True)
    corpus = (
        caption(scene_at(0, "train", i), data.step_rng(0, i), language)
        for i in range(CORPUS) for language in data.LANGUAGES
    )
    Tokenizer.learn(corpus, MERGES).save(run / "tokenizer.json")


def train_vae(run: Path, recipe: Recipe = vae.RECIPE, scenes: int = SCENES) -> None:
    """Trains the autoencoder, draws what it rebuilds as it learns, and measures the scale of its latents.

    RUN/vae.safetensors.
    """
    pictures = data.pictures(run / "data", "train", scenes)
    shown = pictures[:8]

    def draw(step: int, coder: VAE) -> None:
        rebuilt = np.asarray(coder.decode(coder.encode(data.to_float(shown)).mean))
        write_png(run / "vae" / f"{step:06}.png", grid(np.concatenate([shown, to_uint8(rebuilt)]), columns=8), None)

    trained = vae.train(tiny().vae, pictures, run / "vae", recipe, watch=draw)
    scale = vae.latent_scale(unet.encode(trained, pictures[:500]).mean)
    _write(run / "vae.safetensors", trained, {"scale": repr(scale)})


def train_clip(run: Path, recipe: Recipe = clip.RECIPE, scenes: int = SCENES) -> None:
    """Trains both encoders of CLIP: RUN/text_encoder.safetensors and RUN/image_encoder.safetensors."""
    tokenizer, config = _tokenizer(run)
    pictures = data.pictures(run / "data", "train", scenes)
    text, image = clip.train(config.text, config.vision, tokenizer, pictures, run / "clip", recipe)
    _write(run / "text_encoder.safetensors", text)
    _write(run / "image_encoder.safetensors", image)


def train_unet(
    run: Path, recipe: Recipe = unet.RECIPE, scenes: int = SCENES, start: Path | None = None
) -> None:
    """Trains the denoiser, draws samples as it learns, and puts the model together: RUN/model.

    `start` is a model of the same configuration whose denoiser is gone on with; InputError for another.
    """
    tokenizer, config = _tokenizer(run)
    text = _read(run / "text_encoder.safetensors", lambda rngs: TextEncoder(config.text, rngs=rngs), "clip")
    image = _read(run / "image_encoder.safetensors", lambda rngs: ImageEncoder(config.vision, rngs=rngs), "clip")
    coder = _read(run / "vae.safetensors", lambda rngs: VAE(config.vae, rngs=rngs), "vae")
    scale = float(SafetensorsFile(run / "vae.safetensors").metadata["scale"])
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scale=scale))
    begun = None if start is None else load(start).unet
    if begun and begun.config != config.unet:
        raise InputError(f"{start}: its denoiser is {begun.config}, expected {config.unet}")
    latents = _latents(run, coder, scenes)

    def assembled(denoiser: UNet) -> StableDiffusion:
        return StableDiffusion(config, tokenizer, TextNetwork.of(text), VAENetwork.of(coder), Network.of(denoiser),
                               Network.of(image))

    trained = unet.train(config.unet, config.diffusion, text, tokenizer, latents, scale, run / "unet", recipe,
                         watch=lambda step, denoiser: _draw(assembled(denoiser), run / "unet" / f"{step:06}.png"),
                         start=begun and begun.module)
    native.save(assembled(trained), run / "model", "float16", replace=True)


def train_judge(run: Path, recipe: Recipe = judge.RECIPE, scenes: int = SCENES) -> None:
    """Trains the judge on renders alone: RUN/judge.safetensors."""
    judge.train(data.pictures(run / "data", "train", scenes), run / "judge", recipe).save(run / "judge.safetensors")


def _latents(run: Path, coder: VAE, scenes: int) -> unet.Posterior:
    """The posteriors of the training pictures, computed once for this VAE and kept beside the pictures."""
    path = run / "data" / f"latents-{scenes}.safetensors"
    weights = run / "vae.safetensors"
    if not path.exists() or path.stat().st_mtime < weights.stat().st_mtime:
        posterior = unet.encode(coder, data.pictures(run / "data", "train", scenes))
        write_safetensors(path, posterior._asdict(), {})
    file = SafetensorsFile(path)
    return unet.Posterior(*(file.read(name) for name in unet.Posterior._fields))


def _draw(sd: StableDiffusion, path: Path) -> None:
    """A sheet of sixteen fresh scenes' captions, one object and two, drawn in 20 steps."""
    prompts = [describe(scene_at(1, "valid", i, count=1 + i // 8)) for i in range(16)]
    pictures = sd.txt2img(prompts, steps=20, guidance_scale=4.0, sampler="dpmpp_2m")
    write_png(path, grid(to_uint8(pictures), columns=8), {"prompt": "; ".join(prompts), "steps": 20})


def _tokenizer(run: Path) -> tuple[Tokenizer, ModelConfig]:
    path = run / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{path}: not there yet; run `sdjax train tokenizer` first")
    tokenizer = Tokenizer.load(path)
    return tokenizer, tiny(tokenizer.vocab_size)


def _write(path: Path, module: nnx.Module, metadata: dict[str, str] | None = None) -> None:
    write_safetensors(path, tree.flatten(nnx.state(module)), metadata or {})


def _read(path: Path, build: Callable[[Any], Any], stage: str) -> Any:
    if not path.exists():
        raise InputError(f"{path}: not there yet; run `sdjax train {stage}` first")
    graph, state = tree.abstract(build)
    file = SafetensorsFile(path)
    arrays: dict[str, jax.Array] = {name: jnp.asarray(file.read(name, np.float32)) for name in file.names()}
    return nnx.merge(graph, tree.fill(state, arrays, str(path)))
