"""Stable Diffusion 1.x and 2.x at full size, random weights, against diffusers and transformers, from both layouts."""

from __future__ import annotations

import gc
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import samplers

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")

PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry"
STEPS = 20


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def both(request, tmp_path_factory):
    """One set of random weights: in diffusers, in sdjax, and what sdjax read from either layout."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    original, saved = folder / "original.safetensors", folder / "diffusers"
    prediction = "eps" if family == "sd1" else "v"
    try:
        # SD1 as float32 and SD2 as float16, as their released files are.
        oracle.write_original(original, family, np.float32 if family == "sd1" else np.float16, seed=7)
        theirs = oracle.diffusers_pipeline(original, folder, family)
        theirs.set_progress_bar_config(disable=True)
        theirs.save_pretrained(saved)
        from_folder = oracle.digests(sdjax.load(saved))
        shutil.rmtree(saved)
        ours = sdjax.load(original, prediction=prediction)
        yield SimpleNamespace(
            family=family, theirs=theirs, ours=ours, from_folder=from_folder, from_file=oracle.digests(ours),
            width=ours.config.text.width,
        )
    finally:
        shutil.rmtree(folder)
        theirs = ours = None  # two families at once would not fit
        jax.clear_caches()
        gc.collect()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def last(x):
    """Channels last, as sdjax has them."""
    return np.moveaxis(x.numpy(), 1, -1)


def test_both_layouts_give_the_same_weights_bit_for_bit(both):
    assert len(both.from_file) == {"sd1": 1130, "sd2": 1306}[both.family]
    assert both.from_file == both.from_folder


def test_text_encoder(both, same):
    ids = both.ours.tokenizer([PROMPT, "", "red " * 75])
    theirs = both.theirs.text_encoder(torch.from_numpy(ids).long()).last_hidden_state
    same(f"{both.family} text encoder, 3 prompts", both.ours.text_encoder(ids), theirs.numpy())


def test_vae_encode(both, same):
    pictures = np.tanh(normal(1, 1, 256, 256, 3))
    ours, theirs = both.ours.vae.encode(pictures), both.theirs.vae.encode(oracle.first(pictures)).latent_dist
    same(f"{both.family} VAE encode 256x256, mean", ours.mean, last(theirs.mean))
    same(f"{both.family} VAE encode 256x256, log-variance", ours.log_variance, last(theirs.logvar))


def test_vae_decode(both, same):
    latents = normal(2, 1, 32, 32, 4)
    theirs = last(both.theirs.vae.decode(oracle.first(latents)).sample)
    same(f"{both.family} VAE decode 256x256", both.ours.vae.decode(latents), theirs)


@pytest.mark.parametrize(("height", "width", "t"), [(64, 64, [981]), (40, 56, [321])])
def test_unet(both, same, height, width, t):
    latents, text = normal(3, 1, height, width, 4), normal(4, 1, 77, both.width)
    theirs = both.theirs.unet(oracle.first(latents), torch.tensor(t), torch.from_numpy(text)).sample
    ours = both.ours.unet(latents, jnp.array(t), text)
    same(f"{both.family} UNet, latents {height}x{width}, t = {t[0]}", ours, last(theirs))


@pytest.mark.parametrize("both", ["sd1"], indirect=True)
def test_twenty_steps_of_ddim_with_guidance(both, same):
    """From prompt to picture on both sides: tokens, text encoder, loop, decoder; every step's latents compared."""
    noise = np.asarray(samplers.noise(samplers.image_keys(0, 0, 1), 0, (16, 16, 4)))
    seen = []

    def note(pipe, step, t, values):
        seen.append((int(t), last(values["latents"])))
        return values

    picture = both.theirs(
        PROMPT, negative_prompt=NEGATIVE, height=128, width=128, num_inference_steps=STEPS, guidance_scale=7.5,
        latents=oracle.first(noise), output_type="np", callback_on_step_end=note,
    ).images
    walk = list(both.ours.txt2img_steps(
        PROMPT, negative_prompt=NEGATIVE, height=128, width=128, steps=STEPS, guidance_scale=7.5, seed=0
    ))
    assert [s.t for s in walk] == [t for t, _ in seen]
    for s, (_, latents) in zip(walk, seen):
        same(f"{both.family} DDIM, guidance 7.5, latents after each of {STEPS} steps", s.latents, latents)
    same(f"{both.family} DDIM, guidance 7.5, picture", (walk[-1].pictures() + 1) / 2, picture)
