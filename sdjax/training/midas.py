"""Trains the depth network on the world's true depth, whose unit and zero it is not asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdjax.config import MidasConfig
from sdjax.midas import Midas
from sdjax.training.data import step_rng, to_float
from sdjax.training.loop import Recipe, fit

RECIPE = Recipe(steps=800, batch=8, learning_rate=1e-3, warmup=100, weight_decay=0.05)


def standard(depth: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Each map with mean 0 and mean distance from it 1, so that neither its zero nor its unit is left.

    arXiv:1907.01341 equation 6, with the mean in place of the median, since true depth has no outliers.
    """
    centred = depth - jnp.mean(depth, axis=(1, 2), keepdims=True)
    return centred / (jnp.mean(jnp.abs(centred), axis=(1, 2), keepdims=True) + 1e-6)


def invariant_loss(found: Float[Array, "b h w"], true: Float[Array, "b h w"]) -> Array:
    """The mean distance of two maps of inverse depth, whatever their units: arXiv:1907.01341 equation 7."""
    return jnp.mean(jnp.abs(standard(found) - standard(true)))


def train(
    config: MidasConfig, pictures: np.ndarray, depths: np.ndarray, folder: Path, recipe: Recipe = RECIPE,
    watch: Callable[[int, Midas], None] | None = None,
) -> Midas:
    """The trained network; `pictures` uint8 [n, H, W, 3], `depths` their inverse depth [n, H, W].

    `watch(step, midas)` gets the averaged network at every checkpoint.
    """
    graph, parameters = nnx.split(Midas(config, rngs=nnx.Rngs(recipe.seed)))

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rows = step_rng(recipe.seed, step).integers(len(pictures), size=recipe.batch)
        return {"pictures": to_float(pictures[rows]), "depths": depths[rows].astype(np.float32)}

    def loss(parameters, _, batch: dict[str, Array], key: jax.Array) -> Array:
        return invariant_loss(nnx.merge(graph, parameters)(batch["pictures"]), batch["depths"])

    return fit(recipe, graph, parameters, loss, batch_at, folder, name="midas", watch=watch)
