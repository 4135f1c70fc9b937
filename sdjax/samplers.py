"""From noise to latent: four solvers, each a short function of one step, and the two loops that drive them.

A solver walks down a few of the training timesteps. At each it has the noisy latent x, the estimates
(x0, eps) of the network there, and the schedule's values now and next; it gives the next, less noisy x.
`scan` runs all steps in one compiled program; `steps` yields after each. Both call the same `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.config import DiffusionConfig
from sdjax.diffusion import add_noise, alphas, guide, split_prediction

# The network with its text already in place: (x, timesteps [b]) -> (unconditional, conditional, maps).
Predict = Callable[[Array, Array], tuple[Array, Array, Any]]


class Plan(NamedTuple):
    """Where a solver stops: one entry a step, from the noisiest to the clearest; float32 and int32."""

    index: Int[np.ndarray, "s"]  # 0, 1, ...: also numbers the noise that a step adds
    t: Int[np.ndarray, "s"]  # training timestep
    a: Float[np.ndarray, "s"]  # alpha here
    a_next: Float[np.ndarray, "s"]  # alpha after the step; 1 is a clean picture
    a_last: Float[np.ndarray, "s"]  # alpha before this step; 0 is pure noise


class Step(NamedTuple):
    """All that one step saw and did; pictures [b, h, w, c], maps as `UNet` gives them or None."""

    x: Array  # after the step
    x0: Array
    eps_uncond: Array
    eps_text: Array
    maps: Any


class Keep(NamedTuple):
    """What a loop must not change: the part of a picture outside a mask."""

    x0: Float[Array, "b h w c"]  # the picture's latent
    noise: Float[Array, "b h w c"]  # what it is noised with, the same at every step
    mask: Float[Array, "b h w 1"]  # 1 where the loop may paint
    last: Int[Array, "b"]  # the index of the last step, after which the picture stands there without noise

    def put_back(self, x: Array, s: Plan) -> Float[Array, "b h w c"]:
        """x after a step, with the picture as noisy as x outside the mask."""
        a = jnp.where(s.index == self.last, 1.0, s.a_next)
        return self.mask * x + (1.0 - self.mask) * add_noise(self.x0, self.noise, a)


# ---- the timesteps -----------------------------------------------------------------------------------------


def leading(steps: int, train_steps: int = 1000, offset: int = 1) -> Int[np.ndarray, "s"]:
    """k (T // S) + 1 for k = S-1 ... 0: 981, 961, ..., 1 for 50 steps.

    The + 1 is in ldm/modules/diffusionmodules/util.py make_ddim_timesteps. It is left out where it would
    leave the schedule, which only S = T does. Rounding down, the stride of 501 to 999 steps is 1, so that 600 begin at
    600, as in diffusers.
    """
    stride = train_steps // steps
    offset = min(offset, train_steps - 1 - (steps - 1) * stride)
    return (np.arange(steps) * stride + offset)[::-1].astype(np.int32)


def linspace(steps: int, train_steps: int = 1000) -> Int[np.ndarray, "s"]:
    """S timesteps evenly down from T - 1, stopping short of 0: 999, 979, ..., 20 for 50 steps.

    diffusers, schedulers/scheduling_dpmsolver_multistep.py, timestep_spacing "linspace"; but S = T visits 0
    too, where diffusers visits one timestep twice, and a multistep solver divides by their distance.
    """
    short = 0 if steps < train_steps else -1
    return np.linspace(short, train_steps - 1, steps + 1).round()[:0:-1].astype(np.int32)


def plan(c: DiffusionConfig, timesteps: Int[np.ndarray, "s"], a_final: float) -> Plan:
    """The schedule at the given timesteps, falling; `a_final` is where the last step ends."""
    a = alphas(c)[timesteps]
    return Plan(
        index=np.arange(len(a), dtype=np.int32),
        t=timesteps.astype(np.int32),
        a=a.astype(np.float32),
        a_next=np.append(a[1:], a_final).astype(np.float32),
        a_last=np.append(0.0, a[:-1]).astype(np.float32),
    )


def ddim_plan(c: DiffusionConfig, steps: int) -> Plan:
    """DDIM ends at alpha_0, not at 1: ldm/modules/diffusionmodules/util.py make_ddim_sampling_parameters.

    Every step goes down by T // S timesteps (diffusers set_alpha_to_one=False), also the last.
    """
    return plan(c, leading(steps, c.train_steps), a_final=float(alphas(c)[0]))


# ---- the solvers: one step each ----------------------------------------------------------------------------


def ddim(x: Array, x0: Array, eps: Array, x0_last: Array, s: Plan, eta: Array, noise: Array) -> Array:
    """arXiv:2010.02502, equation 12: the picture where it was seen, noise pointing where it pointed.

    eta 0 is deterministic; eta 1 replaces as much noise by fresh noise as DDPM does (equation 16).
    """
    sigma = eta * jnp.sqrt((1.0 - s.a_next) / (1.0 - s.a)) * jnp.sqrt(1.0 - s.a / s.a_next)
    direction = jnp.sqrt(1.0 - s.a_next - sigma**2) * eps
    return jnp.sqrt(s.a_next) * x0 + direction + sigma * noise


def ddpm(x: Array, x0: Array, eps: Array, x0_last: Array, s: Plan, eta: Array, noise: Array) -> Array:
    """arXiv:2006.11239, equations 6 and 7: a draw from the posterior q(x_next | x, x0)."""
    beta = 1.0 - s.a / s.a_next  # of the whole stride
    mean = (jnp.sqrt(s.a_next) * beta * x0 + jnp.sqrt(s.a / s.a_next) * (1.0 - s.a_next) * x) / (1.0 - s.a)
    return mean + jnp.sqrt(beta * (1.0 - s.a_next) / (1.0 - s.a)) * noise


def euler(x: Array, x0: Array, eps: Array, x0_last: Array, s: Plan, eta: Array, noise: Array) -> Array:
    """dx/dsigma = eps, in x / sqrt(a) with sigma^2 = (1 - a) / a: arXiv:2206.00364, algorithm 1 less its correction."""
    sigma, sigma_next = jnp.sqrt((1.0 - s.a) / s.a), jnp.sqrt((1.0 - s.a_next) / s.a_next)
    return jnp.sqrt(s.a_next) * (x / jnp.sqrt(s.a) + (sigma_next - sigma) * eps)


def dpmpp_2m(x: Array, x0: Array, eps: Array, x0_last: Array, s: Plan, eta: Array, noise: Array) -> Array:
    """DPM-Solver++(2M), arXiv:2211.01095, algorithm 2: x0 drawn on as a line through the last two estimates.

    lambda = log(sqrt(a) / sqrt(1 - a)). The first step has no last estimate and a_last 0, so lambda_last is
    -inf and the correction vanishes by itself; the step to a clean picture has lambda_next inf and is of
    first order, as diffusers does.
    """
    half_log_snr = lambda a: 0.5 * (jnp.log(a) - jnp.log1p(-a))
    now, following, last = half_log_snr(s.a), half_log_snr(s.a_next), half_log_snr(s.a_last)
    slope = jnp.where(jnp.isinf(following), 0.0, 0.5 * (following - now) / (now - last))
    estimate = x0 + slope * (x0 - x0_last)
    shrink = jnp.sqrt(1.0 - s.a_next) / jnp.sqrt(1.0 - s.a)  # sigma_next / sigma
    # sqrt(a_next) (1 - exp(-h)), h = lambda_next - lambda
    return shrink * x + (jnp.sqrt(s.a_next) - shrink * jnp.sqrt(s.a)) * estimate


class Sampler(NamedTuple):
    """A solver: the timesteps it visits for a number of steps, and its step."""

    plan: Callable[[DiffusionConfig, int], Plan]
    step: Callable[..., Array]


SAMPLERS = {
    "ddim": Sampler(ddim_plan, ddim),
    "euler": Sampler(lambda c, n: plan(c, leading(n, c.train_steps), 1.0), euler),
    "dpmpp_2m": Sampler(lambda c, n: plan(c, linspace(n, c.train_steps), 1.0), dpmpp_2m),
    "ddpm": Sampler(lambda c, n: plan(c, leading(n, c.train_steps), 1.0), ddpm),
}


# ---- noise: one key an image -------------------------------------------------------------------------------


def image_keys(seed: int, first: int, count: int) -> Array:
    """The keys of images first ... first + count - 1 of a seed; image i has the same key in any batch."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


POSTERIOR = 2**20  # the number of the draw from the VAE's posterior in image to image, beyond that of any step


def noise(keys: Array, number: int | Array, shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Standard normal noise for each image's key; `number` 0 starts a picture, step k adds number k + 1."""
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)
    return jax.vmap(draw)(keys)


# ---- the loops ---------------------------------------------------------------------------------------------


def advance(
    predict: Predict, sampler: Callable[..., Array], kind: str, x: Array, x0_last: Array, s: Plan,
    guidance: Array, eta: Array, keys: Array, keep: Keep | None = None,
) -> Step:
    """One step of any solver: ask the network, guide, and move on; `s` is one row of a plan."""
    t = jnp.full((x.shape[0],), s.t)
    unconditional, conditional, maps = predict(x, t)
    x0, eps = split_prediction(guide(unconditional, conditional, guidance), x, s.a, kind)
    x_next = sampler(x, x0, eps, x0_last, s, eta, noise(keys, s.index + 1, x.shape[1:]))
    if keep is not None:
        x_next = keep.put_back(x_next, s)
    of = lambda prediction: split_prediction(prediction, x, s.a, kind)[1]
    return Step(x_next, x0, of(unconditional), of(conditional), maps)


def scan(
    predict: Predict, sampler: Callable[..., Array], kind: str, x: Array, table: Plan,
    guidance: Array, eta: Array, keys: Array, keep: Keep | None = None,
) -> Float[Array, "b h w c"]:
    """All steps of a plan as one `lax.scan`, to be called under jit; gives the last latent."""

    def body(carry, s):
        step = advance(predict, sampler, kind, *carry, s, guidance, eta, keys, keep)
        return (step.x, step.x0), None

    (x, _), _ = jax.lax.scan(body, (x, jnp.zeros_like(x)), jax.tree.map(jnp.asarray, table))
    return x


def steps(step: Callable[[Array, Array, Plan], Step], x: Array, table: Plan) -> Iterator[tuple[Plan, Step]]:
    """The same steps one by one: yields each row of the plan with what happened there."""
    x0_last = jnp.zeros_like(x)
    for i in range(len(table.t)):
        row = Plan(*(column[i] for column in table))
        taken = step(x, x0_last, row)
        yield row, taken
        x, x0_last = taken.x, taken.x0


def start(latent: Array, eps: Array, table: Plan) -> Array:
    """A latent noised to where a plan begins: the start of image to image."""
    return add_noise(latent, eps, jnp.asarray(table.a[0]))
