"""How the denoiser of weights/tiny went on from that of commit 1a4108a: three trainings, 106 minutes on 2 cores.

    .venv/bin/python weights/further.py START RUN      (START is weights/tiny of that commit; leaves RUN/3/model)

The first two are the recipe of training/unet.py with other numbers. In the third every second latent of a batch, where
there is noise enough, is not a noised picture but what the network's own guided step from further above leaves of one:
the states that sampling meets and training does not (exposure bias: arXiv:2301.11706, arXiv:2305.15583).
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
from sdjax.training.parts import latents_of
from sdjax.vae import Posterior

FIRST = dataclasses.replace(unet.RECIPE, steps=2400, learning_rate=1.5e-3, warmup=100, decay=0.8, seed=11)
SECOND = dataclasses.replace(FIRST, steps=3400, decay=0.9, seed=12)
THIRD = dataclasses.replace(FIRST, steps=1500, learning_rate=1e-3, warmup=50, decay=0.9, seed=21)
LEAST = 350  # below this timestep all latents are noised pictures
FROM = 40, 300  # how many timesteps above its state the network's step begins
SCALES = 1.0, 4.0  # of its guidance


def go_on(sd, latents, folder, recipe):
    """The denoiser of `sd` after the third training; `latents` are posteriors [n, h, w, z] of scenes 0 to n."""
    diffusion, scale = sd.config.diffusion, sd.config.vae.scale
    graph, parameters = nnx.split(sd.unet.module)
    text_graph, text_parameters = nnx.split(sd.text_encoder.module)
    a = jnp.asarray(alphas(diffusion), jnp.float32)
    empty = jnp.asarray(sd.tokenizer([""]))

    def batch_at(step):
        return unet.batch_of(latents, sd.tokenizer, recipe.batch, data.step_rng(recipe.seed, step))[1]

    def loss(parameters, text_parameters, batch, key):
        of_latent, of_noise, of_time, of_gap, of_scale = jax.random.split(key, 5)
        x0 = scale * Posterior(batch["mean"], batch["log_variance"]).sample(of_latent)
        eps, t = jax.random.normal(of_noise, x0.shape), unet.timesteps(of_time, len(x0), diffusion)
        encode = nnx.merge(text_graph, text_parameters)
        text, none = encode(batch["ids"]), encode(empty)
        x, target, _ = training_pair(x0, eps, t, diffusion)

        clean, words, to = x0[1::2], text[1::2], t[1::2]
        above = jnp.minimum(to + jax.random.randint(of_gap, to.shape, *FROM), diffusion.train_steps - 1)
        s = jax.random.uniform(of_scale, (len(to), 1, 1, 1), minval=SCALES[0], maxval=SCALES[1])
        noisy = add_noise(clean, eps[1::2], a[above])
        frozen = nnx.merge(graph, jax.lax.stop_gradient(parameters))
        without, told = jnp.split(frozen(
            jnp.concatenate([noisy] * 2), jnp.concatenate([above] * 2),
            jnp.concatenate([jnp.broadcast_to(none, words.shape), words]),
        ), 2)
        column = lambda share: share[:, None, None, None]
        guess, noise = split_prediction(guide(without, told, s), noisy, a[above], "v")
        state = jax.lax.stop_gradient(add_noise(guess, noise, a[to]))  # DDIM
        wanted = (jnp.sqrt(column(a[to])) * state - clean) / jnp.sqrt(1 - column(a[to]))  # the v that gives x0 back
        own = column(to >= LEAST)
        x = x.at[1::2].set(jnp.where(own, state, x[1::2]))
        target = target.at[1::2].set(jnp.where(own, wanted, target[1::2]))
        return jnp.mean((nnx.merge(graph, parameters)(x, t, text) - target) ** 2)

    return fit(recipe, graph, parameters, loss, batch_at, folder, name="unet", frozen=text_parameters)


if __name__ == "__main__":
    prepare()
    start, run = map(Path, sys.argv[1:])
    for name, recipe in (("1", FIRST), ("2", SECOND)):
        stages.train_unet(run / name, recipe, start=start)
        start = run / name / "model"
    sd = sdjax.load(start)
    pictures = data.pictures(run / "3" / "data", stages.SCENES)
    latents = latents_of(run / "3" / "data" / "latents.safetensors", sd.vae.module, pictures)
    sd.unet = Network.of(go_on(sd, latents, run / "3" / "unet", THIRD))
    native.save(sd, run / "3" / "model", np.float16, replace=True)
