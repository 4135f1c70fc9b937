"""How the denoiser of weights/tiny went on from that of commit 1a4108a: five trainings, 161 minutes on 2 cores.

    .venv/bin/python weights/further.py START RUN      (START is weights/tiny of that commit; leaves RUN/5/model)

The first two are the recipe of training/unet.py with other numbers, and scenes as they come. In the others up to half
of a batch are no noised pictures but states that sampling meets and training does not (exposure bias: arXiv:2301.11706,
arXiv:2305.15583). In the third and fourth they are what the network's own guided step from further above leaves of a
noised picture; in the fifth two solids, both faint, where one is asked for: the louder is to stay and the other to go.
It was run by the code of commit 79ffe90; training/misleading.py does the same with other chances, and has not been run
from here.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sdjax
from sdjax.checkpoint import native
from sdjax.diffusion import add_noise, alphas, guide, split_prediction, training_pair
from sdjax.hardware import Network, prepare
from sdjax.training import data, stages, unet
from sdjax.training.loop import fit
from sdjax.training.misleading import Doubled
from sdjax.training.parts import latents_of
from sdjax.vae import Posterior

FIRST = dataclasses.replace(unet.RECIPE, steps=2400, learning_rate=1.5e-3, warmup=100, decay=0.8, seed=11)
SECOND = dataclasses.replace(FIRST, steps=3400, decay=0.9, seed=12)
THIRD = dataclasses.replace(FIRST, steps=1500, learning_rate=1e-3, warmup=50, decay=0.9, seed=21)
FOURTH = dataclasses.replace(THIRD, seed=31)
FIFTH = dataclasses.replace(THIRD, steps=1300, seed=41)


@dataclasses.dataclass(frozen=True)
class Own:
    """Which states of its own the network is shown.

    `between` are their timesteps: those that fall there, or where `spread` all of them, brought there. The step that
    leaves them begins `gap` timesteps above, guided by one of `scales`. `single` is the share of scenes with one solid,
    None as they come.
    """

    between: tuple[int, int]
    gap: tuple[int, int]
    scales: tuple[float, float]
    spread: bool = False
    single: float | None = None


OWN_THIRD = Own(between=(350, 1000), gap=(40, 300), scales=(1.0, 4.0))
OWN_FOURTH = Own(between=(400, 960), gap=(20, 160), scales=(1.0, 3.0), spread=True, single=2 / 3)


def column(values):
    """One number for each picture."""
    return values[:, None, None, None]


def towards(clean, state, a):
    """The v that leads a state back to a clean picture: x0 = sqrt(a) x - sqrt(1 - a) v."""
    return (jnp.sqrt(column(a)) * state - clean) / jnp.sqrt(1 - column(a))


def go_on(sd, folder, recipe, batch_at, states):
    """The denoiser of `sd` after a training; `states(x0, eps, t, text, predict, keys, batch)` are what it is shown:

    x, t and the v that it should say. `predict(x, t, text)` is the network, through which no gradient goes; text is
    that of the batch and of the empty prompt.
    """
    diffusion, scale = sd.config.diffusion, sd.config.vae.scale
    graph, parameters = nnx.split(sd.unet.module)
    text_graph, text_parameters = nnx.split(sd.text_encoder.module)
    empty = jnp.asarray(sd.tokenizer([""]))

    def loss(parameters, text_parameters, batch, key):
        of_latent, of_noise, of_time, *keys = jax.random.split(key, 5)
        x0 = scale * Posterior(batch["mean"], batch["log_variance"]).sample(of_latent)
        eps, t = jax.random.normal(of_noise, x0.shape), unet.timesteps(of_time, len(x0), diffusion)
        encode = nnx.merge(text_graph, text_parameters)
        text, none = encode(batch["ids"]), encode(empty)
        predict = nnx.merge(graph, jax.lax.stop_gradient(parameters))
        x, t, target = states(x0, eps, t, (text, none), predict, keys, batch)
        return jnp.mean((nnx.merge(graph, parameters)(x, t, text) - target) ** 2)

    return fit(recipe, graph, parameters, loss, batch_at, folder, name="unet", frozen=text_parameters)


def on_own_states(sd, latents, folder, recipe, own):
    """The third and fourth training: every second latent is what a guided step of the network leaves."""
    diffusion, a = sd.config.diffusion, jnp.asarray(alphas(sd.config.diffusion), jnp.float32)
    solids = np.array([len(data.train_scene(i).solids) for i in range(len(latents.mean))])

    def batch_at(step):
        rng, n = data.step_rng(recipe.seed, step), recipe.batch
        if own.single is None:
            rows = rng.integers(len(solids), size=n)
        else:
            rows = np.where(rng.random(n) < own.single, *(rng.choice(np.flatnonzero(solids == k), n) for k in (1, 2)))
        return unet.batch_of(latents, sd.tokenizer, rows, rng)

    def states(x0, eps, t, texts, predict, keys, batch):
        if own.spread:
            low, high = own.between
            t = t.at[1::2].set(low + (high - low) * t[1::2] // diffusion.train_steps)
        x, target, _ = training_pair(x0, eps, t, diffusion)
        clean, words, to = x0[1::2], texts[0][1::2], t[1::2]
        above = jnp.minimum(to + jax.random.randint(keys[0], to.shape, *own.gap), diffusion.train_steps - 1)
        scale = jax.random.uniform(keys[1], (len(to), 1, 1, 1), minval=own.scales[0], maxval=own.scales[1])
        noisy = add_noise(clean, eps[1::2], a[above])
        without, told = jnp.split(predict(
            jnp.concatenate([noisy] * 2), jnp.concatenate([above] * 2),
            jnp.concatenate([jnp.broadcast_to(texts[1], words.shape), words]),
        ), 2)
        guess, noise = split_prediction(guide(without, told, scale), noisy, a[above], "v")
        state = jax.lax.stop_gradient(add_noise(guess, noise, a[to]))  # DDIM
        there = column(to >= own.between[0])
        x = x.at[1::2].set(jnp.where(there, state, x[1::2]))
        return x, t, target.at[1::2].set(jnp.where(there, towards(clean, state, a[to]), target[1::2]))

    return go_on(sd, folder, recipe, batch_at, states)


def on_doubled_solids(sd, latents, folder, recipe):
    """The fifth: every second picture is a scene with one solid, and with the same again at another place."""
    scenes = [data.train_scene(i) for i in range(len(latents.mean))]
    doubled = Doubled(scenes, latents, sd.vae.module, every=2)

    def batch_at(step):
        rng = data.step_rng(recipe.seed, step)
        rows, more = doubled.batch(rng.integers(len(doubled.scenes), size=recipe.batch), rng)
        return unet.batch_of(latents, sd.tokenizer, rows, rng) | more

    def states(x0, eps, t, texts, predict, keys, batch):
        eps, t = doubled.noise(x0, eps, t, batch, keys[0], sd.config.vae.scale, sd.config.diffusion)
        x, target, _ = training_pair(x0, eps, t, sd.config.diffusion)
        return x, t, target

    return go_on(sd, folder, recipe, batch_at, states)


if __name__ == "__main__":
    prepare()
    start, run = map(Path, sys.argv[1:])
    for name, recipe in (("1", FIRST), ("2", SECOND)):
        stages.train_unet(run / name, recipe, start=start, as_they_come=True)
        start = run / name / "model"
    sd = sdjax.load(start)
    pictures = data.pictures(run / "data", stages.SCENES)
    latents = latents_of(run / "data" / "latents.safetensors", sd.vae.module, pictures)
    for name, recipe, train in (
        ("3", THIRD, lambda *given: on_own_states(*given, OWN_THIRD)),
        ("4", FOURTH, lambda *given: on_own_states(*given, OWN_FOURTH)),
        ("5", FIFTH, on_doubled_solids),
    ):
        sd.unet = Network.of(train(sd, latents, run / name / "unet", recipe))
        native.save(sd, run / name / "model", np.float16, replace=True)
        sd = sdjax.load(run / name / "model")  # in half precision, as what ships
