"""Trains the autoencoder: rebuild the picture, and keep the latents near a unit Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.config import VAEConfig
from sdjax.training.data import step_rng, to_float
from sdjax.training.loop import Recipe, fit
from sdjax.vae import VAE

RECIPE = Recipe(steps=1400, batch=16, learning_rate=2e-3, warmup=100)
# A Gaussian decoder of variance s^2 weighs the mean KL by 2 s^2 z / (3 f^2) against the mean squared error
# (arXiv:1312.6114 equation 10). At 32 dB s^2 = 4e-3.2, and with z = 4, f = 8 that is 1e-4; a tenth of it
# smooths the latents and costs little sharpness, in the spirit of LDM's 1e-6 (configs/autoencoder).
KL_WEIGHT = 1e-5
CROP = 64  # the network is convolutional: it learns from crops what it does on whole pictures


def train(
    config: VAEConfig, pictures: np.ndarray, folder: Path, recipe: Recipe = RECIPE,
    watch: Callable[[int, VAE], None] | None = None,
) -> VAE:
    """The trained autoencoder of uint8 pictures [n, H, W, 3]; its latents still have their own scale.

    `watch(step, vae)` gets the averaged network at every checkpoint.
    """
    graph, parameters = nnx.split(VAE(config, rngs=nnx.Rngs(recipe.seed)))

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(recipe.seed, step)
        rows = rng.integers(len(pictures), size=recipe.batch)
        tops, lefts = rng.integers((pictures.shape[1] - CROP) // 8 + 1, size=(2, recipe.batch)) * 8
        return {"pictures": to_float(np.stack(
            [pictures[r, t : t + CROP, x : x + CROP] for r, t, x in zip(rows, tops, lefts)]
        ))}

    def loss(parameters, _, batch, key):
        vae = nnx.merge(graph, parameters)
        posterior = vae.encode(batch["pictures"])
        rebuilt = vae.decode(posterior.sample(key))
        return jnp.mean((rebuilt - batch["pictures"]) ** 2) + KL_WEIGHT * posterior.kl()

    seen = (lambda step, average: watch(step, nnx.merge(graph, average))) if watch else None
    return nnx.merge(graph, fit(recipe, parameters, loss, batch_at, folder, name="vae", watch=seen))


def latent_scale(means: np.ndarray) -> float:
    """1 / standard deviation of latents [n, h, w, z]: the 0.18215 of Stable Diffusion, for these latents.

    arXiv:2112.10752 appendix G: the UNet should see unit variance.
    """
    return float(1.0 / np.std(means, dtype=np.float64))
