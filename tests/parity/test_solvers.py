"""Every solver against the scheduler of diffusers that does the same, each step's latents, on a network of one line."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import samplers
from sdjax.config import DiffusionConfig
from sdjax.diffusion import split_prediction
from sdjax.samplers import SAMPLERS, Plan

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")
diffusers = pytest.importorskip("diffusers")

KINDS = {"eps": "epsilon", "v": "v_prediction"}
LEADING = dict(timestep_spacing="leading", steps_offset=1)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHAPE = (2, 4, 4, 4)


def network(x, t):
    """Answers every size of input with something of size 1, a little different at each timestep."""
    return np.tanh(0.7 * np.roll(x, 1, axis=2) + 0.3 * x + t / 1000.0).astype(np.float32)


def our_walk(name, steps, kind, eta=0.0):
    """The latents after every step, and the noise that went in: [steps + 1, ...], first the initial one."""
    config = DiffusionConfig(prediction=kind)
    keys = samplers.image_keys(3, 0, SHAPE[0])
    noises = [np.asarray(samplers.noise(keys, i, SHAPE[1:])) for i in range(steps + 1)]
    x, x0_last, latents = noises[0], np.zeros(SHAPE, np.float32), []
    for s in zip(*SAMPLERS[name].plan(config, steps)):
        s = Plan(*s)
        x0, eps = split_prediction(jnp.asarray(network(x, s.t)), x, s.a, kind)
        x = np.asarray(SAMPLERS[name].step(x, x0, eps, x0_last, s, jnp.float32(eta), noises[s.index + 1]))
        x0_last = x0
        latents.append(x)
    return latents, noises


def compare(same, what, ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        same(f"{what}, after each of {len(ours)} steps", a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [4, 20])
def test_ddim(same, steps, kind, eta):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, **LEADING, clip_sample=False, set_alpha_to_one=False, prediction_type=KINDS[kind]
    )
    scheduler.set_timesteps(steps)
    ours, noises = our_walk("ddim", steps, kind, eta)
    x, theirs = torch.from_numpy(noises[0]), []
    for i, t in enumerate(scheduler.timesteps):
        prediction = torch.from_numpy(network(x.numpy(), int(t)))
        extra = {"variance_noise": torch.from_numpy(noises[i + 1])} if eta else {}
        x = scheduler.step(prediction, t, x, eta=eta, **extra).prev_sample
        theirs.append(x.numpy())
    compare(same, f"DDIM eta {eta:g}, {kind}", ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, 20])
def test_euler(same, steps, kind):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, **LEADING, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    ours, noises = our_walk("euler", steps, kind)
    # diffusers walks in x / sqrt(a), where the noise has standard deviation sigma.
    root = lambda sigma: float((sigma**2 + 1) ** -0.5)  # noqa: E731
    x, theirs = torch.from_numpy(noises[0]) / root(scheduler.sigmas[0]), []
    for i, t in enumerate(scheduler.timesteps):
        prediction = torch.from_numpy(network(scheduler.scale_model_input(x, t).numpy(), int(t)))
        x = scheduler.step(prediction, t, x).prev_sample
        theirs.append(x.numpy() * root(scheduler.sigmas[i + 1]))
    compare(same, f"Euler, {kind}", ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, 20])  # below 15 steps, diffusers has a rule of its own for the last
def test_dpmpp_2m(same, steps, kind):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="linspace", final_sigmas_type="zero", prediction_type=KINDS[kind]
    )
    scheduler.set_timesteps(steps)
    ours, noises = our_walk("dpmpp_2m", steps, kind)
    x, theirs = torch.from_numpy(noises[0]), []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), int(t))), t, x).prev_sample
        theirs.append(x.numpy())
    compare(same, f"DPM-Solver++(2M), {kind}", ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, 20])
def test_ddpm(same, steps, kind, monkeypatch):
    scheduler = diffusers.DDPMScheduler(**BETAS, **LEADING, clip_sample=False, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    ours, noises = our_walk("ddpm", steps, kind)
    drawn = iter(noises[1:])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn))
    )
    x, theirs = torch.from_numpy(noises[0]), []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), int(t))), t, x).prev_sample
        theirs.append(x.numpy())
    compare(same, f"DDPM, {kind}", ours, theirs)
