"""The stages after the small model: the same denoiser for inpainting and depth, and an upscaler; each a whole model.

    RUN/inpaint/model   RUN/depth/model   RUN/upscale/model

Each begins with a finished text-to-image model, by default RUN/model, whose tokenizer and text encoder it keeps; or it
goes on with a model of its own kind.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from sdjax.checkpoint import native
from sdjax.checkpoint.load import load
from sdjax.checkpoint.tree import fingerprint
from sdjax.config import ModelConfig, tiny_depth, tiny_inpaint, tiny_upscaler
from sdjax.errors import InputError
from sdjax.hardware import Network, VAENetwork
from sdjax.images import grid, of_depth, shrunk, to_uint8, write_png
from sdjax.midas import Midas
from sdjax.pipeline import StableDiffusion
from sdjax.toyworld import describe, nearness, render, scene_at
from sdjax.training import conditions, data, midas, unet, vae
from sdjax.training.loop import Recipe
from sdjax.training.parts import kept, latents_of, read_module, write_module
from sdjax.unet import UNet
from sdjax.vae import VAE

SCENES = 5_000  # a network that draws already learns what a new channel means from fewer
INPAINT = DEPTH = Recipe(steps=1000, batch=16, learning_rate=7e-4, decay=0.5, save_every=500)
# The rate is that of the denoiser from nothing (unet.RECIPE), since this one begins there too.
UPSCALE = Recipe(steps=5200, batch=16, learning_rate=3e-3, decay=0.7, muon=True, save_every=450)
# How loud depth is from the first step on: a solid differs from the floor by a tenth of the channel's range, and where
# the weights began at 0, as those of a hole do, the denoiser did not come to follow it.
LOUD = 0.5
# The upscaler first learns from squares of so many latents a side, a quarter of a picture, where there is most to be
# seen, for this share of its steps (2,704); then from whole pictures, whose norms and borders the squares do not show,
# fewer at a time, as each is four squares, and with a shorter average, as there are fewer steps.
CROP, SQUARES = 16, 0.52
SECOND = 1_000_000  # added to the seed for those: another, or batches come again, and one that nobody will give next
WHOLE = dataclasses.replace(UPSCALE, batch=8, learning_rate=1.5e-3, warmup=50, decay=0.9, ema=0.995)
# By this the autoencoder of weights/tiny-upscaler was made.
VAE_RECIPE = dataclasses.replace(vae.RECIPE, steps=1400, learning_rate=2e-3, decay=0.8)


def train_inpaint(run: Path, recipe: Recipe = INPAINT, scenes: int = SCENES, start: Path | None = None) -> None:
    """Goes on with a denoiser that now also sees a mask and the picture around the hole."""
    base, folder = _base(run, start, "tiny-inpaint"), run / "inpaint"
    config, (pictures, shown) = tiny_inpaint(base.config), _world(run, scenes)
    coder, scale = base.vae.module, config.vae.scale
    made_of = fingerprint(nnx.state(coder), scale, scenes, recipe.seed, data.known_by(pictures))
    beside = kept(folder / "holes.safetensors", made_of, lambda: {
        "beside": conditions.holes(coder, scale, shown, pictures, recipe.seed)
    })["beside"]
    _keep(_train(base, config, folder, recipe, pictures, beside), folder)


def train_depth(run: Path, recipe: Recipe = DEPTH, scenes: int = SCENES, start: Path | None = None) -> None:
    """Trains MiDaS on true depth, then goes on with a denoiser that also sees the depth."""
    base, folder = _base(run, start, "tiny-depth"), run / "depth"
    config, (pictures, shown) = tiny_depth(base.config), _world(run, scenes)
    path = folder / "depth_estimator.safetensors"
    if base.depth_estimator and not path.exists():
        write_module(path, base.depth_estimator.module)
    if not path.exists():
        true = kept(folder / "true.safetensors", fingerprint(scenes, data.known_by(pictures)), lambda: {
            "depth": np.stack([nearness(render(scene)[1]).astype(np.float16) for scene in shown])
        })["depth"]
        fresh = np.stack([render(scene_at(0, "valid", i))[0] for i in range(8)])

        def draw(step: int, network: Midas) -> None:
            seen = np.asarray(Network.of(network)(data.to_float(fresh)))
            maps = to_uint8(np.stack([of_depth(depth) for depth in seen]))
            write_png(folder / "midas" / f"{step:06}.png", grid(np.concatenate([fresh, maps]), columns=8), None)

        write_module(path, midas.train(
            config.depth, pictures, true, folder / "midas", dataclasses.replace(midas.RECIPE, seed=recipe.seed), draw
        ))
    estimator = read_module(path, "depth", Midas, config.depth)
    side = config.image_size // config.vae.factor
    beside = kept(folder / "depths.safetensors", fingerprint(scenes, side, data.known_by(pictures)), lambda: {
        "beside": conditions.depths(shown, side)
    })["beside"]
    parts = {"depth_estimator": Network.of(estimator)}
    _keep(_train(base, config, folder, recipe, pictures, beside, LOUD, **parts), folder)


def train_upscale(run: Path, recipe: Recipe = UPSCALE, scenes: int = SCENES, start: Path | None = None) -> None:
    """Trains an autoencoder of f = 4, then from nothing a denoiser that also sees the small picture.

    Where it begins with an upscaler, it keeps the autoencoder, and the denoiser goes on with whole pictures alone.
    """
    base, folder = _base(run, start, "tiny-upscaler"), run / "upscale"
    config = base.config if base.config.low_res else tiny_upscaler(base.config)
    pictures, _ = _world(run, scenes)
    path = folder / "vae.safetensors"
    if base.config.low_res:
        coder, scale = base.vae.module, base.config.vae.scale  # by which its denoiser has learned
    else:
        if not path.exists():
            write_module(path, vae.train(
                config.vae, pictures, folder / "vae", dataclasses.replace(VAE_RECIPE, seed=recipe.seed)
            ))
        coder = read_module(path, "upscale", VAE, config.vae)
        scale = vae.latent_scale(vae.encode(coder, pictures[:500]).mean)
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scale=scale))
    small, coder = data.to_float(shrunk(pictures)), VAENetwork.of(coder)
    whole = dataclasses.replace(WHOLE, steps=recipe.steps, seed=recipe.seed)
    if not base.config.low_res:
        first = dataclasses.replace(recipe, steps=max(1, round(SQUARES * recipe.steps)))
        base = _train(base, config, folder, first, pictures, small, crop=CROP, name="squares", vae=coder)
        whole = dataclasses.replace(whole, steps=max(1, recipe.steps - first.steps), seed=recipe.seed + SECOND)
    _keep(_train(base, config, folder, whole, pictures, small, vae=coder), folder)


def _base(run: Path, start: Path | None, name: str) -> StableDiffusion:
    """The model to begin with; InputError unless it is one for text to image at the world's size, or of this name."""
    folder = start or run / "model"
    if start is None and not folder.exists():
        raise InputError(f"{folder}: not there yet; run `sdjax train unet` first, or give --start MODEL")
    base = load(folder)
    from_text = base.config.unet.in_channels == base.config.vae.latent_channels
    if not (from_text or base.config.name == name) or base.config.image_size != 128:
        raise InputError(f"{folder}: is {base.config.name}, expected {name} or a model for text to image of 128 pixels")
    return base


def _world(run: Path, scenes: int) -> tuple[np.ndarray, list[Any]]:
    return data.pictures(run / "data", scenes), [data.train_scene(i) for i in range(scenes)]


def _train(
    base: StableDiffusion, config: ModelConfig, folder: Path, recipe: Recipe, pictures: np.ndarray, beside: np.ndarray,
    loud: float = 0.0, crop: int | None = None, name: str = "unet", **parts: Network,
) -> StableDiffusion:
    """The model whose denoiser, that of `config`, was trained in `folder`/`name`.

    It begins with the base's denoiser, widened where it has fewer channels to see; an upscaler's begins from nothing.
    """
    parts = {"vae": base.vae} | parts
    latents = latents_of(folder / "latents.safetensors", parts["vae"].module, pictures)
    if base.unet.config == config.unet:
        begun = base.unet.module
    else:
        begun = None if config.low_res else conditions.widened(base.unet.module, config.unet, loud)

    def assembled(denoiser: UNet) -> StableDiffusion:
        own = dataclasses.replace(config, vision=None)
        return StableDiffusion(own, base.tokenizer, base.text_encoder, unet=Network.of(denoiser), **parts)

    trained = unet.train(
        config.unet, config.diffusion, base.text_encoder.module, base.tokenizer, latents, config.vae.scale,
        folder / name, recipe, start=begun, beside=beside, low_res=config.low_res, crop=crop,
        lean=unet.LEAN if config.low_res else 1.0,
        watch=lambda step, denoiser: _draw(assembled(denoiser), folder / name / f"{step:06}.png"),
    )
    return assembled(trained)


def _keep(made: StableDiffusion, folder: Path) -> None:
    native.save(made, folder / "model", "float16", replace=True)


def _draw(sd: StableDiffusion, path: Path) -> None:
    """Eight fresh scenes above, and below what the model makes of them for their captions."""
    scenes = [scene_at(1, "valid", i) for i in range(8)]
    pictures = np.stack([render(scene)[0] for scene in scenes])
    drawn = []
    for i, (scene, picture) in enumerate(zip(scenes, pictures)):
        options = {"steps": 20, "sampler": "dpmpp_2m", "seed": i}
        if sd.config.low_res:
            drawn.append(sd.upscale(describe(scene), data.to_float(shrunk(picture[None]))[0], **options))
        elif sd.config.depth:
            drawn.append(sd.depth2img(describe(scene), picture, strength=1.0, **options))
        else:
            mask = conditions.hole(scene, data.step_rng(1, i))
            pictures[i] = np.where(mask, np.uint8(128), picture)
            drawn.append(sd.inpaint(describe(scene), picture, mask, **options))
    write_png(path, grid(np.concatenate([pictures, to_uint8(np.concatenate(drawn))]), columns=8), None)
