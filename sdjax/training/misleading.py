"""Noise with a solid in it: states that sampling meets and no noised picture shows, and where they should lead.

How many solids a picture has is settled at the noisiest steps: the denoiser sees faint ones at several places, and has
to let one win. No scene has the same solid twice, so it would never learn what to do where two are left, and it keeps
both (exposure bias: arXiv:2301.11706). What shape a solid has is settled next, and there a noised picture tells more
than a word does: a denoiser that hardly listens loses little, and draws every other cube as a cylinder. Here it is
shown a solid too many, or one of another shape, which the caption alone sets right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import DiffusionConfig
from sdjax.diffusion import alphas
from sdjax.toyworld import Scene, render_batch
from sdjax.training.vae import encode
from sdjax.vae import VAE, Posterior

BETWEEN = 300, 930  # timesteps: above, where solids stand is still open; below, what they look like is what is left
LOUD = 0.3, 1.0  # how much of the right solid is there; of that, one too many has any share
# What is told apart last: a cube turned any way covers what a cylinder does, and their latents are a quarter as far
# apart (0.06 in mean square) as those of a sphere and a cone (0.22).
ALIKE = {"cube": "cylinder", "cylinder": "cube"}
SWAPPED = 2_000  # scenes that are also there with the shape that is like their own

Batch = dict[str, np.ndarray]


class Doubled:
    """Every so many-th picture of a batch is a scene of one solid, and has that solid once more, at another place.

    `latents` are the unscaled posteriors [n, h, w, z] of the `scenes` of the training split, by `coder`.
    """

    def __init__(self, scenes: Sequence[Scene], latents: Posterior, coder: VAE, every: int):
        self.scenes, self.latents, self.some = scenes, latents, slice(0, None, every)
        self.single = _single(scenes)
        self.alike: dict[tuple[str, ...], list[int]] = {}
        for i in self.single:
            self.alike.setdefault(_look(self.scenes[i]), []).append(i)
        times = sorted({scene.time for scene in self.scenes})
        bare = [dataclasses.replace(self.scenes[0], solids=(), time=time, relation=None) for time in times]
        self.empty = dict(zip(times, encode(coder, render_batch(bare)[0], batch=len(bare)).mean))

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Batch]:
        """Of the scenes `rows`, int [b], those to show instead; latents of the other scene of each, and of none."""
        rows = rows.copy()
        rows[self.some] = rng.choice(self.single, len(rows[self.some]))
        chosen = [self.scenes[row] for row in rows[self.some]]
        other = [rng.choice(self.alike[_look(scene)]) for scene in chosen]
        return rows, {"other": self.latents.mean[other], "empty": np.stack([self.empty[s.time] for s in chosen])}

    def noise(
        self, x0: jax.Array, eps: jax.Array, t: jax.Array, batch: dict[str, jax.Array], key: jax.Array, scale: float,
        diffusion: DiffusionConfig,
    ) -> tuple[jax.Array, jax.Array]:
        """The noise [b, h, w, z] and the timesteps [b] that make of x0 the states to show."""
        of_loud, of_share = jax.random.split(key)
        clean, other, empty = x0[self.some], scale * batch["other"], scale * batch["empty"]
        loud = jax.random.uniform(of_loud, (len(clean), 1, 1, 1), minval=LOUD[0], maxval=LOUD[1])
        share = jax.random.uniform(of_share, loud.shape)
        both = empty + loud * (clean - empty) + loud * share * (other - empty)  # pictures add up about the empty one
        return _shown(self.some, both, x0, eps, t, diffusion)


class Mistaken:
    """Every so many-th picture of a batch is a scene of one solid, which is partly of the shape that is like its own.

    It begins with the third, so that none is of `Doubled`, too, where that has every fourth.
    """

    def __init__(self, scenes: Sequence[Scene], coder: VAE, every: int):
        single = _single(scenes)
        self.some = slice(2, None, every)
        self.single = ([i for i in single if scenes[i].solids[0].shape in ALIKE] or single)[:SWAPPED]
        self.swapped = [_reshaped(scenes[i]) for i in self.single]
        self.other = encode(coder, render_batch(self.swapped)[0]).mean

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Batch]:
        """Of the scenes `rows`, int [b], those to show instead, and the latents of each with another shape."""
        rows = rows.copy()
        chosen = rng.integers(len(self.single), size=len(rows[self.some]))
        rows[self.some] = np.asarray(self.single)[chosen]
        return rows, {"reshaped": self.other[chosen]}

    def noise(
        self, x0: jax.Array, eps: jax.Array, t: jax.Array, batch: dict[str, jax.Array], key: jax.Array, scale: float,
        diffusion: DiffusionConfig,
    ) -> tuple[jax.Array, jax.Array]:
        """The noise [b, h, w, z] and the timesteps [b] that make of x0 the states to show."""
        share = jax.random.uniform(key, (len(x0[self.some]), 1, 1, 1))
        between = x0[self.some] + share * (scale * batch["reshaped"] - x0[self.some])
        return _shown(self.some, between, x0, eps, t, diffusion)


Misleading = Doubled | Mistaken


def _shown(
    some: slice, wrong: jax.Array, x0: jax.Array, eps: jax.Array, t: jax.Array, diffusion: DiffusionConfig
) -> tuple[jax.Array, jax.Array]:
    """The noise with which `some` of x0 are states of the pictures `wrong`, brought to the timesteps `BETWEEN`.

    With r = sqrt(a / (1 - a)) a state sqrt(a) y + sqrt(1 - a) eps is also sqrt(a) x0 + sqrt(1 - a) (eps + r (y - x0)):
    another picture y under noise is the right one under other noise, which is what is to be taken away.
    """
    t = t.at[some].set(BETWEEN[0] + (BETWEEN[1] - BETWEEN[0]) * t[some] // diffusion.train_steps)
    a = jnp.asarray(alphas(diffusion), jnp.float32)[t[some], None, None, None]
    return eps.at[some].add(jnp.sqrt(a / (1.0 - a)) * (wrong - x0[some])), t


def _single(scenes: Sequence[Scene]) -> list[int]:
    """The scenes of one solid; all of them where there is none."""
    return [i for i, scene in enumerate(scenes) if len(scene.solids) == 1] or list(range(len(scenes)))


def _look(scene: Scene) -> tuple[str, ...]:
    """What two scenes share whose solid is the same but for its place."""
    solid = scene.solids[0]
    return solid.colour, solid.shape, solid.size, scene.time


def _reshaped(scene: Scene) -> Scene:
    """The scene, its first solid of the shape that is like its own."""
    first, *others = scene.solids
    other = dataclasses.replace(first, shape=ALIKE.get(first.shape, first.shape))
    return dataclasses.replace(scene, solids=(other, *others))
