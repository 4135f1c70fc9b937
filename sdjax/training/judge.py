"""Trains the judge: find every solid of a render and name it, also where the picture is a little spoilt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sdjax.toyworld import COLOURS, SHAPES, SIZES, Scene
from sdjax.toyworld.judge import CELL, SIZE, Detector, Judge, middle
from sdjax.training.data import step_rng, to_float, train_scene
from sdjax.training.loop import Recipe, fit

RECIPE = Recipe(steps=1200, batch=32, learning_rate=2e-3, warmup=100, decay=0.5, ema=0.99)
# What a generated picture may have and no render has: the most blur, tint, blotches and grain of any picture.
BLUR, TINT, BLOTCH, GRAIN = 0.3, 0.06, 0.1, 0.12
CELLS = SIZE // CELL


def train(pictures: np.ndarray, folder: Path, recipe: Recipe = RECIPE) -> Judge:
    """The trained judge; `pictures` uint8 [n, 128, 128, 3] are scenes 0 to n of the training split."""
    graph, parameters = nnx.split(Detector(rngs=nnx.Rngs(recipe.seed)))

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(recipe.seed, step)
        rows = rng.integers(len(pictures), size=recipe.batch)
        scenes = [train_scene(int(r)) for r in rows]
        return {"pictures": spoil(to_float(pictures[rows]), rng)} | answers(scenes)

    def loss(parameters, _, batch, key):
        grid = nnx.merge(graph, parameters)(batch["pictures"])
        named = sum(
            optax.softmax_cross_entropy_with_integer_labels(logits, batch[name])
            for name, logits in (("colour", grid.colour), ("shape", grid.shape), ("size", grid.size))
        )
        missed = jnp.sum(optax.huber_loss(grid.offset, batch["offset"], delta=0.25), axis=-1)
        there = batch["presence"]
        cells = optax.sigmoid_binary_cross_entropy(grid.presence, there) + there * (named + 4.0 * missed)
        night = optax.sigmoid_binary_cross_entropy(grid.night, batch["night"])
        return jnp.mean(jnp.sum(cells, axis=(1, 2)) + night)

    return Judge(fit(recipe, graph, parameters, loss, batch_at, folder, name="judge"))


def answers(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """What the detector should say of each scene, as the fields of a Grid with numbers in place of logits.

    A cell sees a solid whose middle is within a cell's width of its own centre; what the other cells say of
    looks and offset does not count.
    """
    n = len(scenes)
    names = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
    grid = {name: np.zeros((n, CELLS, CELLS), np.int32) for name in names}
    presence, offset = np.zeros((n, CELLS, CELLS), np.float32), np.zeros((n, CELLS, CELLS, 2), np.float32)
    centres = np.stack(np.meshgrid(*[np.arange(CELLS) + 0.5] * 2), axis=-1)  # across, down
    for i, scene in enumerate(scenes):
        for solid in scene.solids:
            to_middle = np.array(middle(solid)) / CELL - centres
            near = np.hypot(to_middle[..., 0], to_middle[..., 1]) < 1.0
            presence[i, near] = 1.0
            offset[i, near] = to_middle[near]
            for name, words in names.items():
                grid[name][i, near] = words.index(getattr(solid, name))
    night = np.array([scene.time == "night" for scene in scenes], np.float32)
    return {"presence": presence, "offset": offset, "night": night} | grid


def spoil(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures [b, h, w, 3] in [-1, 1], each blurred, tinted, blotched and grained by chance, most lightly.

    Nothing is flipped or moved: left must stay left.
    """
    b, h, w, _ = pictures.shape

    def strength(most: float) -> np.ndarray:
        return most * rng.random((b, 1, 1, 1), np.float32) ** 2

    for axis, side in ((1, h), (2, w)):
        for _ in range(2):
            k = strength(BLUR)
            before, after = np.maximum(np.arange(side) - 1, 0), np.minimum(np.arange(side) + 1, side - 1)
            pictures = (1 - 2 * k) * pictures + k * (pictures.take(before, axis) + pictures.take(after, axis))
    tint = TINT * (2 * rng.random((b, 1, 1, 3), np.float32) - 1)
    # Blotches have the size of a latent, the grain that of a pixel.
    blotches = strength(BLOTCH) * (2 * rng.random((b, h // CELL, w // CELL, 3), np.float32) - 1)
    grain = strength(GRAIN) * (2 * rng.random((b, h, w, 1), np.float32) - 1)
    return np.clip(pictures + tint + blotches.repeat(CELL, 1).repeat(CELL, 2) + grain, -1, 1)
