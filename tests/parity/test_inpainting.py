"""Inpainting against diffusers' pipeline on the same noise, with nine channels and with four; and at full size."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest
from small_models import OPENAI, model
from small_models import same as same_weights

import sdjax
from sdjax import samplers
from sdjax.checkpoint.export import to_diffusers
from sdjax.config import inpainting
from sdjax.request import MASKED

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")

from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline  # noqa: E402
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402

PROMPT, NEGATIVE, STEPS = "a red cube", "blurry", 10
# At 7.5 a random network of width 4 amplifies the rounding of its first step twentyfold in ten (5e-6 to 1e-4); at 2 it
# stays at 1e-6, and a wrong formula shows as well. At full size it is 7.5.
GUIDANCE = 2.0


def scene(side):
    """A picture and a mask whose edge is not that of a latent cell."""
    draw = np.random.default_rng(5)
    mask = np.zeros((side, side), np.float32)
    mask[side // 4 : side - side // 4 + 1, 3 : side // 2 + 1] = 1.0
    return np.tanh(draw.standard_normal((side, side, 3), np.float32)), mask


def compared(ours, theirs, side, strength, monkeypatch):
    """The latents after every step and the picture, (ours, theirs), from one noise and the same draws."""
    z, f = ours.config.vae.latent_channels, ours.config.vae.factor
    keys = samplers.image_keys(0, 0, 1)
    sees_mask = ours.config.unet.in_channels > z
    shape = (side // f, side // f, z)
    # diffusers draws from the posterior of the picture where it needs it, then from that of the picture with a hole.
    numbers = [MASKED] if sees_mask and strength == 1.0 else [samplers.POSTERIOR, MASKED]
    draws = [oracle.first(samplers.noise(keys, n, shape)) for n in numbers]
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda d, generator=None: d.mean + d.std * draws.pop(0))
    noise = oracle.first(samplers.noise(keys, 0, shape))
    monkeypatch.setattr("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor",
                        lambda *_, **__: noise)
    picture, mask = scene(side)
    seen = []

    def note(pipe, step, t, values):
        seen.append(np.moveaxis(values["latents"].numpy(), 1, -1))
        return values

    drawn = theirs(
        PROMPT, image=oracle.first(picture[None]), mask_image=torch.from_numpy(mask)[None, None], height=side,
        width=side, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, strength=strength,
        output_type="np", callback_on_step_end=note,
    ).images
    assert not draws
    walk = list(ours.inpaint_steps(
        PROMPT, picture, mask, strength, paste=False, negative_prompt=NEGATIVE, steps=STEPS, guidance_scale=GUIDANCE
    ))
    assert len(walk) == len(seen) == int(STEPS * strength)
    return [(s.latents, latents) for s, latents in zip(walk, seen)] + [((walk[-1].pictures() + 1) / 2, drawn)]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("config", [OPENAI, inpainting(OPENAI, "like-sd1-inpaint")], ids=["4 channels", "9 channels"])
def test_every_step_is_that_of_diffusers(config, strength, tmp_path, same, monkeypatch):
    ours = model(config)
    to_diffusers(ours, tmp_path / "model")
    theirs = StableDiffusionInpaintPipeline.from_pretrained(
        tmp_path / "model", scheduler=DDIMScheduler(**oracle.SCHEDULE), safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    back = oracle.read_again(theirs, tmp_path / "model", tmp_path / "again")
    assert back.config.unet == ours.config.unet
    same_weights(ours, back, ("text_encoder", "vae", "unet"))
    for a, b in compared(ours, theirs, 32, strength, monkeypatch):
        same(f"inpainting, {config.unet.in_channels} channels, strength {strength}: {STEPS} steps and picture", a, b)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_at_full_size(family, tmp_path, same, monkeypatch):
    original = tmp_path / "inpaint.safetensors"
    oracle.write_original(original, family, np.float16, seed=8, channels=9)
    theirs = oracle.diffusers_pipeline(original, tmp_path, family, StableDiffusionInpaintPipeline, channels=9)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler(**oracle.SCHEDULE)  # both predict the noise
    ours = sdjax.load(original, prediction="eps")
    assert ours.config == {"sd1": sdjax.config.sd1_inpaint, "sd2": sdjax.config.sd2_inpaint}[family]()
    monkeypatch.setitem(globals(), "STEPS", 4)
    monkeypatch.setitem(globals(), "GUIDANCE", 7.5)
    for a, b in compared(ours, theirs, 128, 1.0, monkeypatch):
        same(f"{family} inpainting at full size: 4 steps and picture", a, b)
    del theirs, ours
    jax.clear_caches()
    gc.collect()
