"""Noise with a solid too many in it, which sampling meets and no noised picture shows.

How many solids a picture has is settled at the noisiest steps: the denoiser sees faint ones at several places, and has
to let one win. No scene has the same solid twice, so it would never learn what to do where two are left, and it keeps
both (exposure bias: arXiv:2301.11706). Here it is shown such states, and told the picture that they should lead to.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import DiffusionConfig
from sdjax.diffusion import alphas
from sdjax.toyworld import Scene, render_batch
from sdjax.training.data import train_scene
from sdjax.training.vae import encode
from sdjax.vae import VAE, Posterior

BETWEEN = 300, 930  # timesteps: above, where solids stand is still open; below, what they look like is what is left
LOUD = 0.3, 1.0  # how much of the right solid is there; of that, the other has any share


class Doubled:
    """Every so many-th picture of a batch is a scene of one solid, and has that solid once more, at another place.

    `latents` are the unscaled posteriors [n, h, w, z] of scenes 0 to n of the training split, by `coder`.
    """

    def __init__(self, latents: Posterior, coder: VAE, every: int):
        self.latents, self.every = latents, every
        self.scenes = [train_scene(i) for i in range(len(latents.mean))]
        self.single = [i for i, scene in enumerate(self.scenes) if len(scene.solids) == 1] or range(len(self.scenes))
        self.alike: dict[tuple[str, ...], list[int]] = {}
        for i in self.single:
            self.alike.setdefault(_look(self.scenes[i]), []).append(i)
        times = sorted({scene.time for scene in self.scenes})
        bare = [dataclasses.replace(self.scenes[0], solids=(), time=time, relation=None) for time in times]
        self.empty = dict(zip(times, encode(coder, render_batch(bare)[0], batch=len(bare)).mean))

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of the scenes `rows`, int [b], those to show instead; latents of the other scene of each, and of none."""
        rows = rows.copy()
        rows[:: self.every] = rng.choice(self.single, len(rows[:: self.every]))
        chosen = [self.scenes[row] for row in rows[:: self.every]]
        other = [rng.choice(self.alike[_look(scene)]) for scene in chosen]
        return rows, {"other": self.latents.mean[other], "empty": np.stack([self.empty[s.time] for s in chosen])}

    def noise(
        self, x0: jax.Array, eps: jax.Array, t: jax.Array, batch: dict[str, jax.Array], key: jax.Array, scale: float,
        diffusion: DiffusionConfig,
    ) -> tuple[jax.Array, jax.Array]:
        """The noise [b, h, w, z] and the timesteps [b] that make of x0 the states to show.

        With r = sqrt(a / (1 - a)) a state sqrt(a) y + sqrt(1 - a) eps is also sqrt(a) x0 + sqrt(1 - a) (eps + r (y -
        x0)): another picture y under noise is the right one under other noise, which is what is to be taken away.
        """
        some, (of_loud, of_share) = slice(None, None, self.every), jax.random.split(key)
        t = t.at[some].set(BETWEEN[0] + (BETWEEN[1] - BETWEEN[0]) * t[some] // diffusion.train_steps)
        a = jnp.asarray(alphas(diffusion), jnp.float32)[t[some], None, None, None]
        clean, other, empty = x0[some], scale * batch["other"], scale * batch["empty"]
        loud = jax.random.uniform(of_loud, a.shape, minval=LOUD[0], maxval=LOUD[1])
        share = jax.random.uniform(of_share, a.shape)
        both = empty + loud * (clean - empty) + loud * share * (other - empty)  # pictures add up about the empty one
        return eps.at[some].add(jnp.sqrt(a / (1.0 - a)) * (both - clean)), t


def _look(scene: Scene) -> tuple[str, ...]:
    """What two scenes share whose solid is the same but for its place."""
    solid = scene.solids[0]
    return solid.colour, solid.shape, solid.size, scene.time
