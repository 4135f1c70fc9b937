"""The order in which the small model is made: tokenizer, VAE, CLIP, UNet, judge; each reads what the last left.

    RUN/tokenizer.json   RUN/vae.safetensors   RUN/text_encoder.safetensors   RUN/image_encoder.safetensors
    RUN/model/           the whole, as `sdjax.load` takes it
    RUN/judge.safetensors

and the pictures, checkpoints and loss curves of each stage in folders of their own beside them. What comes after is in
conditioned.py: inpainting, depth, upscaling.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.checkpoint import native
from sdjax.checkpoint.load import load
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import ModelConfig, tiny
from sdjax.errors import InputError
from sdjax.files import clear_parts
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.images import grid, to_uint8, write_png
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import LANGUAGES, caption, describe, scene_at
from sdjax.training import clip, conditioned, data, judge, unet, vae
from sdjax.training.loop import Recipe
from sdjax.training.misleading import Doubled, Mistaken
from sdjax.training.parts import latents_of, read_module, write_module
from sdjax.unet import UNet
from sdjax.vae import VAE

SCENES = 20_000  # of the training split
CORPUS = 20_000  # captions in each language that the merges are learned from
MOST_SEED = 2**31  # a key of JAX holds twice as much, and a stage may add to what is given
MERGES = 200  # the captions hold 222 pairs to join; the rarest stay apart, so that some words show their parts


def run_stage(
    name: str, run: Path, steps: int | None = None, scenes: int | None = None, start: Path | None = None, seed: int = 0
) -> None:
    """Runs one stage by name, with other numbers of steps or scenes than its recipe's where given.

    `start` is a model whose networks the stage begins with; with the `seed` that they were trained with it would show
    them the same batches again. Raises InputError for a number below 1, or where a part is missing that an earlier
    stage leaves in `run`.
    """
    for what, number in (("steps", steps), ("scenes", scenes)):
        if number is not None and number < 1:
            raise InputError(f"{what}: found {number}, expected at least 1")
    if not 0 <= seed < MOST_SEED:
        raise InputError(f"seed: found {seed}, expected 0 to {MOST_SEED - 1}")
    for folder in (run, run / "data", run / name):
        clear_parts(folder)
    if name == "tokenizer":
        return train_tokenizer(run)
    train, recipe, most = {
        "vae": (partial(train_vae, start=start), vae.RECIPE, SCENES),
        "clip": (partial(train_clip, start=start), clip.RECIPE, SCENES),
        "unet": (partial(train_unet, start=start), unet.RECIPE, SCENES), "judge": (train_judge, judge.RECIPE, SCENES),
        "inpaint": (partial(conditioned.train_inpaint, start=start), conditioned.INPAINT, conditioned.SCENES),
        "depth": (partial(conditioned.train_depth, start=start), conditioned.DEPTH, conditioned.SCENES),
        "upscale": (partial(conditioned.train_upscale, start=start), conditioned.UPSCALE, conditioned.SCENES),
    }[name]
    train(run, dataclasses.replace(recipe, steps=steps or recipe.steps, seed=seed), scenes or most)


def train_tokenizer(run: Path) -> None:
    """Learns merges from captions of the training scenes in both languages: RUN/tokenizer.json."""
    run.mkdir(parents=True, exist_ok=True)
    corpus = (
        caption(data.train_scene(i), data.step_rng(0, i), language)
        for i in range(CORPUS) for language in LANGUAGES
    )
    Tokenizer.learn(corpus, MERGES).save(run / "tokenizer.json")


def train_vae(run: Path, recipe: Recipe = vae.RECIPE, scenes: int = SCENES, start: Path | None = None) -> None:
    """Trains the autoencoder, then its decoder further, and measures the scale of its latents: RUN/vae.safetensors.

    What it rebuilds is drawn as it learns. `start` is a model whose decoder alone is gone on with, by `recipe.steps`,
    and which is put together with it again: RUN/model.
    """
    pictures = data.pictures(run / "data", scenes)
    shown = pictures[:8]

    def draw(folder: Path, step: int, coder: VAE) -> None:
        network = VAENetwork.of(coder)
        rebuilt = np.asarray(network.decode(network.encode(data.to_float(shown)).mean))
        write_png(folder / f"{step:06}.png", grid(np.concatenate([shown, to_uint8(rebuilt)]), columns=8), None)

    def watched(folder: Path) -> dict[str, Any]:
        return {"folder": folder, "watch": partial(draw, folder)}

    whole = dataclasses.replace(vae.WHOLE, seed=recipe.seed)
    if start is None:
        first = dataclasses.replace(recipe, steps=max(1, round(vae.CROPS * recipe.steps)))
        coder = vae.train(tiny().vae, pictures, recipe=first, **watched(run / "vae"))
        whole = dataclasses.replace(whole, steps=max(1, recipe.steps - first.steps))
    else:
        begun = load(start)
        coder, whole = begun.vae.module, dataclasses.replace(whole, steps=recipe.steps)
    latents = latents_of(run / "data" / "latents.safetensors", coder, pictures)
    scale = begun.config.vae.scale if start else vae.latent_scale(latents.mean[:500])
    trained = vae.train_decoder(coder, latents, pictures, recipe=whole, **watched(run / "decoder"))
    write_module(run / "vae.safetensors", trained, {"scale": repr(scale)})
    if start:
        begun.vae = VAENetwork.of(trained)
        native.save(begun, run / "model", "float16", replace=True)


def train_clip(
    run: Path, recipe: Recipe = clip.RECIPE, scenes: int = SCENES, start: Path | None = None
) -> None:
    """Trains both encoders of CLIP: RUN/text_encoder.safetensors and RUN/image_encoder.safetensors.

    `start` is a model of the same configuration whose encoders are gone on with; InputError for another.
    """
    begun = None if start is None else load(start)
    tokenizer, config = _tokenizer(run, begun)
    if begun and (begun.config.text, begun.config.vision, begun.tokenizer.merges) != (
        config.text, config.vision, tokenizer.merges
    ):
        raise InputError(f"{start}: its encoders are not those of {run}; start with a model of the same vocabulary")
    pictures = data.pictures(run / "data", scenes)
    tokenizer.save(run / "tokenizer.json")
    text, image = clip.train(config.text, config.vision, tokenizer, pictures, run / "clip", recipe,
                             begun and (begun.text_encoder.module, begun.image_encoder.module))
    write_module(run / "text_encoder.safetensors", text)
    write_module(run / "image_encoder.safetensors", image)


def train_unet(
    run: Path, recipe: Recipe = unet.RECIPE, scenes: int = SCENES, start: Path | None = None,
    as_they_come: bool = False,
) -> None:
    """Trains the denoiser, draws samples as it learns, and puts the model together: RUN/model.

    `start` is a model of the same kind whose denoiser, of any width, is gone on with, and whose other parts are taken
    where `run` has none of its own; InputError for another. With `as_they_come` no state is misleading.
    """
    begun = None if start is None else load(start)
    if begun:
        _require_kind(begun.config, tiny(begun.tokenizer.vocab_size), start)
        _take_parts(run, begun)
    tokenizer, config = _tokenizer(run)
    if begun:
        config = dataclasses.replace(config, unet=begun.config.unet)
    text = read_module(run / "text_encoder.safetensors", "clip", TextEncoder, config.text)
    image = read_module(run / "image_encoder.safetensors", "clip", ImageEncoder, config.vision)
    coder = read_module(run / "vae.safetensors", "vae", VAE, config.vae)
    scale = _scale(run / "vae.safetensors")
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scale=scale))
    latents = latents_of(run / "data" / "latents.safetensors", coder, data.pictures(run / "data", scenes))
    shown = [data.train_scene(i) for i in range(scenes)]

    def assembled(denoiser: UNet) -> StableDiffusion:
        return StableDiffusion(config, tokenizer, TextNetwork.of(text), VAENetwork.of(coder), Network.of(denoiser),
                               Network.of(image))

    trained = unet.train(config.unet, config.diffusion, text, tokenizer, latents, scale, run / "unet", recipe,
                         watch=lambda step, denoiser: _draw(assembled(denoiser), run / "unet" / f"{step:06}.png"),
                         start=begun and begun.unet.module,
                         misleading=() if as_they_come else (
                             Doubled(shown, latents, coder, unet.DOUBLED), Mistaken(shown, coder, unet.MISTAKEN)))
    native.save(assembled(trained), run / "model", "float16", replace=True)


def _scale(path: Path) -> float:
    """The scale of an autoencoder's latents, which its training measured."""
    try:
        return float(SafetensorsFile(path).metadata["scale"])
    except (KeyError, ValueError):
        raise InputError(f"{path}: does not say the scale of its latents, as `sdjax train vae` has it; train one, or "
                         "give --start MODEL in another --run folder, which takes the parts of a model") from None


def train_judge(run: Path, recipe: Recipe = judge.RECIPE, scenes: int = SCENES) -> None:
    """Trains the judge on renders alone: RUN/judge.safetensors."""
    judge.train(data.pictures(run / "data", scenes), run / "judge", recipe).save(run / "judge.safetensors")


def _draw(sd: StableDiffusion, path: Path) -> None:
    """A sheet of sixteen fresh scenes' captions, one object and two, drawn in 20 steps."""
    prompts = [describe(scene_at(1, "valid", i, count=1 + i // 8)) for i in range(16)]
    pictures = sd.txt2img(prompts, steps=20, sampler="dpmpp_2m")
    write_png(path, grid(to_uint8(pictures), columns=8), {"prompt": "; ".join(prompts), "steps": 20})


def _require_kind(found: ModelConfig, expected: ModelConfig, start: Path) -> None:
    """InputError if a model to begin with is of another kind; denoiser's width and scale of the latents may differ."""
    same = {"unet": {name: getattr(expected.unet, name) for name in ("channels", "heads")}, "vae": {"scale": 1.0}}
    for part in ("unet", "text", "vision", "vae", "diffusion"):
        own, wanted = getattr(found, part), getattr(expected, part)
        alike = [of and dataclasses.replace(of, **same.get(part, {})) for of in (own, wanted)]
        if alike[0] != alike[1]:
            raise InputError(f"{start}: its {part} is {own}, expected {wanted}")


def _take_parts(run: Path, model: StableDiffusion) -> None:
    """Writes the parts of a model to `run`, those that it has none of: what its denoiser was trained with.

    InputError where a text encoder would come among other words than its own.
    """
    run.mkdir(parents=True, exist_ok=True)
    words = run / "tokenizer.json"
    if not words.exists():
        model.tokenizer.save(words)
    elif not (run / "text_encoder.safetensors").exists() and Tokenizer.load(words).merges != model.tokenizer.merges:
        raise InputError(f"{words}: has other words than the model to begin with; give another --run folder")
    for name, network, about in (
        ("vae", model.vae, {"scale": repr(model.config.vae.scale)}),
        ("text_encoder", model.text_encoder, {}), ("image_encoder", model.image_encoder, {}),
    ):
        if network and not (run / f"{name}.safetensors").exists():
            write_module(run / f"{name}.safetensors", network.module, about)


def _tokenizer(run: Path, begun: StableDiffusion | None = None) -> tuple[Tokenizer, ModelConfig]:
    """The tokenizer of a run, or that of a model to begin with, and the configuration for it."""
    path = run / "tokenizer.json"
    if not path.exists() and begun is None:
        raise InputError(f"{path}: not there yet; run `sdjax train tokenizer` first")
    tokenizer = Tokenizer.load(path) if path.exists() else begun.tokenizer
    return tokenizer, tiny(tokenizer.vocab_size)
