"""Trains the autoencoder: rebuild the picture, and keep the latents near a unit Gaussian; then the decoder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from sdjax.config import VAEConfig
from sdjax.hardware import VAENetwork
from sdjax.training.data import step_rng, to_float
from sdjax.training.loop import Recipe, fit
from sdjax.vae import VAE, Decoder, Posterior

# Muon came to 2 dB more than AdamW in as many steps (weights/HISTORY.md).
RECIPE = Recipe(steps=1300, batch=16, learning_rate=4e-3, warmup=100, decay=0.5, muon=True)
CROPS = 0.54  # of these steps (700); the others are for the decoder alone, of whole pictures and by another recipe
# Half as many at once, since a whole picture is four crops; half the rate and a shorter average, since it goes on from
# there for fewer steps.
WHOLE = Recipe(steps=600, batch=8, learning_rate=2e-3, warmup=50, decay=0.9, ema=0.995, muon=True)
# A Gaussian decoder of variance s^2 weighs the mean KL by 2 s^2 z / (3 f^2) against the mean squared error
# (arXiv:1312.6114 equation 10). At 32 dB s^2 = 4e-3.2, and with z = 4, f = 8 that is 1e-4; a tenth of it
# smooths the latents and costs little sharpness, in the spirit of LDM's 1e-6 (configs/autoencoder).
KL_WEIGHT = 1e-5
CROP = 64  # the network is convolutional: it learns from crops most of what it does on whole pictures


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

    return fit(recipe, graph, parameters, loss, batch_at, folder, name="vae", watch=watch)


def train_decoder(
    vae: VAE, latents: Posterior, pictures: np.ndarray, folder: Path, recipe: Recipe = WHOLE,
    watch: Callable[[int, VAE], None] | None = None,
) -> VAE:
    """The autoencoder after its decoder has learned from whole pictures, as it is used; parts of one it knows less.

    `latents` are the unscaled posteriors of `pictures`, uint8 [n, H, W, 3]. They stay what they are, and so does every
    denoiser of them; Stability AI trained its second decoder for SD 1.x so (stabilityai/sd-vae-ft-mse, README).
    """
    graph, parameters = nnx.split(vae.decoder)
    before, frozen = nnx.split(vae.post_quant_conv)

    def whole(decoder: Decoder) -> VAE:
        made = nnx.clone(vae)
        made.decoder = decoder
        return made

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rows = step_rng(recipe.seed, step).integers(len(pictures), size=recipe.batch)
        return {"pictures": to_float(pictures[rows]), "mean": latents.mean[rows],
                "log_variance": latents.log_variance[rows]}

    def loss(parameters, frozen, batch, key):
        z = Posterior(batch["mean"], batch["log_variance"]).sample(key)
        rebuilt = nnx.merge(graph, parameters)(nnx.merge(before, frozen)(z))
        return jnp.mean((rebuilt - batch["pictures"]) ** 2)

    return whole(fit(recipe, graph, parameters, loss, batch_at, folder, name="decoder", frozen=frozen,
                     watch=watch and (lambda step, decoder: watch(step, whole(decoder)))))


def encode(vae: VAE, pictures: np.ndarray, batch: int = 50) -> Posterior:
    """The posteriors of uint8 pictures [n, H, W, 3], as NumPy float32; the VAE never changes, so once is enough."""
    network, parts, batch = VAENetwork.of(vae), [], min(batch, len(pictures))
    for i in tqdm(range(0, len(pictures), batch), desc="encoding", unit="batch", dynamic_ncols=True):
        rows = pictures[i : i + batch]
        padded = np.concatenate([rows, np.repeat(rows[:1], batch - len(rows), axis=0)])  # one compiled shape
        parts.append([np.asarray(x)[: len(rows)] for x in network.encode(to_float(padded))])
    return Posterior(*(np.concatenate(x) for x in zip(*parts)))


def latent_scale(means: np.ndarray) -> float:
    """1 / standard deviation of latents [n, h, w, z]: the 0.18215 of Stable Diffusion, for these latents.

    arXiv:2112.10752 appendix G: the UNet should see unit variance.
    """
    return float(1.0 / np.std(means, dtype=np.float64))
