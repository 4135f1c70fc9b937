"""The arithmetic of diffusion: noise schedule, noising, eps / v / x0, guidance.

Notation of the DDIM paper, arXiv:2010.02502: alpha_t here (`a`) is the product that DDPM
(arXiv:2006.11239) writes alpha-bar_t and code calls alphas_cumprod. A noisy latent is
x_t = sqrt(a) x0 + sqrt(1 - a) eps. Tables are NumPy float64; they become float32 where they meet a picture.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.config import DiffusionConfig, Prediction


def betas(c: DiffusionConfig) -> Float[np.ndarray, "T"]:
    """How much noise each of the T training steps adds, float64.

    "scaled_linear" is a line between the square roots, squared; LDM calls it "linear"
    (ldm/modules/diffusionmodules/util.py make_beta_schedule). "linear" is DDPM's own line.
    """
    if c.schedule == "scaled_linear":
        return np.linspace(c.beta_start**0.5, c.beta_end**0.5, c.train_steps, dtype=np.float64) ** 2
    return np.linspace(c.beta_start, c.beta_end, c.train_steps, dtype=np.float64)


def alphas(c: DiffusionConfig) -> Float[np.ndarray, "T"]:
    """a_t = prod (1 - beta_s), s <= t: the share of the picture's variance left at step t, float64."""
    return np.cumprod(1.0 - betas(c))


def _column(a: Array, like: Array) -> Array:
    """[b] to [b, 1, 1, 1], so that it multiplies pictures; a scalar stays one."""
    a = jnp.asarray(a, jnp.float32)
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if a.ndim else a


def add_noise(x0: Float[Array, "b h w c"], eps: Array, a: Float[Array, "*b"]) -> Float[Array, "b h w c"]:
    """x_t = sqrt(a) x0 + sqrt(1 - a) eps."""
    a = _column(a, x0)
    return jnp.sqrt(a) * x0 + jnp.sqrt(1.0 - a) * eps


def velocity(x0: Float[Array, "b h w c"], eps: Array, a: Float[Array, "*b"]) -> Float[Array, "b h w c"]:
    """v = sqrt(a) eps - sqrt(1 - a) x0: arXiv:2202.00512, appendix D."""
    a = _column(a, x0)
    return jnp.sqrt(a) * eps - jnp.sqrt(1.0 - a) * x0


def split_prediction(
    prediction: Float[Array, "b h w c"], x: Float[Array, "b h w c"], a: Float[Array, "*b"], kind: Prediction
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The estimates (x0, eps) that a prediction at x_t means, for either kind of model."""
    a = _column(a, x)
    if kind == "v":
        return (jnp.sqrt(a) * x - jnp.sqrt(1.0 - a) * prediction,
                jnp.sqrt(a) * prediction + jnp.sqrt(1.0 - a) * x)
    return (x - jnp.sqrt(1.0 - a) * prediction) / jnp.sqrt(a), prediction


def guide(unconditional: Array, conditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance: u + scale (c - u); 1 is the conditional alone, above 1 goes beyond it.

    arXiv:2207.12598, equation 6 with scale = 1 + w.
    """
    return unconditional + scale * (conditional - unconditional)


def min_snr_weight(a: Float[Array, "b"], kind: Prediction, gamma: float = 5.0) -> Float[Array, "b"]:
    """The weight of each timestep in the training loss, which caps the easy steps: after arXiv:2303.09556.

    An error of eps is sqrt(SNR) times that of x0, one of v sqrt(SNR + 1) times (arXiv:2202.00512 section 4): the
    SNR in that factor is cut at gamma. The 1 stays, since without it the noisiest steps of v, which decide what
    stands where, would weigh next to nothing.
    """
    snr, one = a / (1.0 - a), 1.0 if kind == "v" else 0.0
    return (jnp.minimum(snr, gamma) + one) / (snr + one)


def training_pair(
    x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Int[Array, "b"], c: DiffusionConfig
) -> tuple[Array, Array, Array]:
    """What the UNet sees, what it should answer, and each picture's weight: (x_t, target, weight [b])."""
    a = jnp.asarray(alphas(c), jnp.float32)[t]
    target = velocity(x0, eps, a) if c.prediction == "v" else eps
    return add_noise(x0, eps, a), target, min_snr_weight(a, c.prediction)
