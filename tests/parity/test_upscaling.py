"""The x4 upscaler against diffusers' pipeline on the same noise, small, and at full size from the released layout."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest
from small_models import UPSCALER, model
from small_models import same as same_weights

import sdjax
from sdjax import samplers
from sdjax.checkpoint.export import to_diffusers
from sdjax.request import SMALL

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")

from diffusers import StableDiffusionUpscalePipeline  # noqa: E402

PROMPT, NEGATIVE = "a red cube", "blurry"


def compared(ours, theirs, height, width, level, steps, guidance, monkeypatch):
    """The latents after every step and the picture, (ours, theirs), from the same two draws of noise."""
    theirs.set_progress_bar_config(disable=True)
    keys = samplers.image_keys(0, 0, 1)
    noise = oracle.first(samplers.noise(keys, 0, (height, width, 4)))
    # diffusers draws once itself: the noise on the small picture.
    of_small = oracle.first(samplers.noise(keys, SMALL, (height, width, 3)))
    monkeypatch.setattr("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale.randn_tensor",
                        lambda *_, **__: of_small)
    small = np.tanh(np.random.default_rng(5).standard_normal((height, width, 3), np.float32))
    seen = []
    picture = theirs(
        PROMPT, image=oracle.first(small[None]), negative_prompt=NEGATIVE, num_inference_steps=steps,
        guidance_scale=guidance, noise_level=level, latents=noise, output_type="np",
        callback=lambda step, t, latents: seen.append(np.moveaxis(latents.numpy(), 1, -1)),
    ).images
    walk = list(ours.upscale_steps(
        PROMPT, small, level, negative_prompt=NEGATIVE, steps=steps, guidance_scale=guidance
    ))
    assert len(walk) == len(seen) == steps and picture.shape[1:3] == (4 * height, 4 * width)
    return [(s.latents, latents) for s, latents in zip(walk, seen)] + [((walk[-1].pictures() + 1) / 2, picture)]


def test_every_step_is_that_of_diffusers(tmp_path, same, monkeypatch):
    ours = model(UPSCALER)
    to_diffusers(ours, tmp_path / "model")
    theirs = StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "model")
    back = oracle.read_again(theirs, tmp_path / "model", tmp_path / "again")
    assert (back.config.unet, back.config.vae, back.config.low_res) == (UPSCALER.unet, UPSCALER.vae, UPSCALER.low_res)
    same_weights(ours, back, ("text_encoder", "vae", "unet"))
    for level in (0, 20, 39):
        for a, b in compared(ours, theirs, 16, 24, level, 10, 2.0, monkeypatch):
            same(f"x4 upscaler, small, noise level {level}: 10 steps and picture", a, b)


def test_at_full_size(tmp_path, same, monkeypatch):
    original = tmp_path / "x4.safetensors"
    oracle.write_original(original, "x4", np.float16, seed=8)
    theirs = oracle.diffusers_pipeline(original, tmp_path, "x4", StableDiffusionUpscalePipeline)
    ours = sdjax.load(original)
    assert ours.config == sdjax.config.x4_upscaler()
    digests = oracle.digests(ours)
    assert digests == oracle.digests(oracle.read_again(theirs, tmp_path, tmp_path / "again"))
    for a, b in compared(ours, theirs, 24, 32, 20, 4, 9.0, monkeypatch):
        same("x4 upscaler at full size: 4 steps and picture", a, b)
    del theirs, ours
    jax.clear_caches()
    gc.collect()
