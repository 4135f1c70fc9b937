"""Trains the denoiser on latents of the VAE and hidden states of the text encoder, both frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.clip import TextEncoder
from sdjax.config import DiffusionConfig, UNetConfig
from sdjax.diffusion import add_noise, alphas, training_pair
from sdjax.request import MOST_NOISE
from sdjax.tokenizer import Tokenizer
from sdjax.training.data import captions, step_rng, train_scene
from sdjax.training.loop import Recipe, fit
from sdjax.training.misleading import Misleading
from sdjax.unet import UNet
from sdjax.vae import Posterior

RECIPE = Recipe(steps=7600, batch=16, learning_rate=3e-3, decay=0.5, muon=True, save_every=500)
# Captions left out so often, so that the same network also learns to draw without one: arXiv:2207.12598.
DROP = 0.1
# What a small picture leaves open is settled at the noisiest steps. What is not learned there sampling shows twice: it
# draws one of the pictures that might be, as far from their mean as the true one is.
LEAN = 2.0  # of an upscaler's timesteps towards noise, and of its small pictures' levels towards none
DOUBLED, MISTAKEN = 4, 8  # every fourth picture of a batch shows a solid too many, every eighth a wrong shape


def timesteps(key: jax.Array, count: int, diffusion: DiffusionConfig, lean: float = 1.0) -> jax.Array:
    """Timesteps int32 [count] to learn at: each is uniform, and together they are spread evenly.

    A batch then sees every level of noise, and its loss says less about which it drew: arXiv:2107.00630 appendix I.1.
    With `lean` above 1 they lean towards noise, below away from it: t / T has the density lean (t / T)^(lean - 1).
    """
    share = (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0
    return (diffusion.train_steps * share ** (1.0 / lean)).astype(jnp.int32)


def levels(key: jax.Array, count: int, most: int) -> jax.Array:
    """Levels of noise int32 [count] on a small picture, from 0 to `most`, more often the low ones."""
    return ((most + 1) * jax.random.uniform(key, (count,)) ** LEAN).astype(jnp.int32)


def squares(batch: dict[str, np.ndarray], side: int, rng: np.random.Generator, tries: int = 4) -> dict[str, np.ndarray]:
    """Of each picture of a batch a square of `side` cells: of a few at random the one with most to be seen.

    Most of a scene is floor and sky, which hardly change from left to right, and from which little is learned. Corners
    that fall outside are brought back, so that a border, where latents are of another kind, is often in a square.
    """
    maps = {name: array for name, array in batch.items() if array.ndim == 4}
    shown = maps["beside"]
    found: dict[str, list[np.ndarray]] = {name: [] for name in maps}
    for i in range(len(shown)):
        room = np.array(shown.shape[1:3]) - side
        corners = np.clip(rng.integers(-side // 2, room + side // 2 + 1, size=(tries, 2)), 0, room)
        places = [(i, slice(top, top + side), slice(left, left + side)) for top, left in corners]
        best = max(places, key=lambda place: float(np.abs(np.diff(shown[place], axis=1)).sum()))
        for name, array in maps.items():
            found[name].append(array[best])
    return {name: np.stack(cut) for name, cut in found.items()}


def batch_of(
    latents: Posterior, tokenizer: Tokenizer, rows: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Of the scenes `rows`, int [b], the posteriors [b, h, w, z] and captions [b, 77], some of them empty."""
    said = captions([train_scene(int(r)) for r in rows], rng)
    kept = ["" if rng.random() < DROP else caption for caption in said]
    return {"mean": latents.mean[rows], "log_variance": latents.log_variance[rows], "ids": tokenizer(kept)}


def train(
    config: UNetConfig, diffusion: DiffusionConfig, text_encoder: TextEncoder, tokenizer: Tokenizer,
    latents: Posterior, scale: float, folder: Path, recipe: Recipe = RECIPE,
    watch: Callable[[int, UNet], None] | None = None, start: UNet | None = None, beside: np.ndarray | None = None,
    low_res: DiffusionConfig | None = None, crop: int | None = None, misleading: Sequence[Misleading] = (),
    lean: float = 1.0,
) -> UNet:
    """The trained denoiser; `latents` are the unscaled posteriors of scenes 0 to n of the training split.

    `watch(step, unet)` gets the averaged network at every checkpoint; `start` is a network to begin with; `beside`
    [n, h, w, k] are the channels that it sees beside the latents, noised by the schedule `low_res` where there is one;
    with `crop` it learns from squares of that side; in some pictures of a batch it sees `misleading` states; timesteps
    `lean` towards noise above 1, away from it below.
    """
    graph, parameters = nnx.split(start or UNet(config, rngs=nnx.Rngs(recipe.seed)))
    text_graph, text_parameters = nnx.split(text_encoder)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(recipe.seed, step)
        rows, more = rng.integers(len(latents.mean), size=recipe.batch), {}
        for states in misleading:
            rows, own = states.batch(rows, rng)
            more |= own
        batch = batch_of(latents, tokenizer, rows, rng) | more
        if beside is not None:
            batch["beside"] = beside[rows]
        return batch if crop is None else batch | squares(batch, crop, rng)

    def loss(parameters, text_parameters, batch, key):
        of_latent, of_noise, of_time = jax.random.split(key, 3)
        x0 = scale * Posterior(batch["mean"], batch["log_variance"]).sample(of_latent)
        eps = jax.random.normal(of_noise, x0.shape)
        t = timesteps(of_time, len(x0), diffusion, lean)
        for i, states in enumerate(misleading):
            eps, t = states.noise(x0, eps, t, batch, jax.random.fold_in(key, 2 + i), scale, diffusion)
        text = nnx.merge(text_graph, text_parameters)(batch["ids"])
        x, target, weight = training_pair(x0, eps, t, diffusion)
        shown, classes = batch.get("beside"), None
        if low_res is not None:
            of_level, of_small = jax.random.split(jax.random.fold_in(key, 1))
            classes = levels(of_level, len(x), min(MOST_NOISE, config.classes - 1))
            share = jnp.asarray(alphas(low_res), jnp.float32)[classes]
            shown = add_noise(shown, jax.random.normal(of_small, shown.shape), share)
        x = x if shown is None else jnp.concatenate([x, shown], axis=-1)
        error = jnp.mean((nnx.merge(graph, parameters)(x, t, text, classes) - target) ** 2, axis=(1, 2, 3))
        return jnp.mean(weight * error)

    return fit(recipe, graph, parameters, loss, batch_at, folder, name="unet", frozen=text_parameters, watch=watch)
