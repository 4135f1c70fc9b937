"""A picture four times as large: what the network sees, any size, tiles, files."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import OPENCLIP, UPSCALER, model, same

import sdjax
from sdjax import samplers
from sdjax.checkpoint import original_file
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.config import x4_upscaler
from sdjax.diffusion import alphas
from sdjax.errors import InputError
from sdjax.request import SMALL, crop, upscale
from sdjax.tiling import tiles


@pytest.fixture(scope="module")
def sd():
    return model(UPSCALER)


@pytest.fixture(scope="module")
def small():
    return np.random.default_rng(0).uniform(-1, 1, (6, 10, 3)).astype(np.float32)


def test_the_released_upscaler_has_the_sizes_of_its_configuration():
    c = x4_upscaler()
    assert c.vae.factor == 4 and c.unet.in_channels == c.vae.latent_channels + 3
    # scaled_linear from 1e-4 to 0.02: noise level 20 leaves nearly all of the small picture, 350 a good part.
    assert np.allclose(alphas(c.low_res)[[0, 20, 350]], [0.9999, 0.9973, 0.6405], atol=1e-4)


def test_the_picture_is_four_times_as_large_whatever_its_size(sd, small):
    assert sd.upscale("a cone", small, steps=2).shape == (1, 24, 40, 3)
    assert sd.upscale("a cone", small[:5, :3], steps=2, num_images=2).shape == (2, 20, 12, 3)


def test_the_network_sees_the_noisy_small_picture_and_how_noisy_it_is(sd, small):
    job = upscale(sd, "a cone", small, noise_level=20, steps=2, num_images=2)
    assert job.x.shape == (2, 6, 10, 4) and job.beside.shape == (2, 6, 10, 3)
    a = alphas(UPSCALER.low_res)[20]  # the schedule of the small picture is not that of the latents
    eps = samplers.noise(job.keys, SMALL, (6, 10, 3))
    assert np.allclose(job.beside, np.sqrt(a) * small + np.sqrt(1 - a) * eps, atol=1e-6)
    assert job.classes.tolist() == [20, 20]


def test_the_noise_level_changes_the_picture_by_its_embedding_too(sd, small):
    job = upscale(sd, "a cone", small, steps=2)
    drawn = [sd._run(dataclasses.replace(job, classes=jnp.array([level]))) for level in (0, 39)]
    assert not np.allclose(drawn[0], drawn[1], atol=1e-3)


def test_a_level_of_numpy_is_drawn_by_the_same_program(sd, small):
    plain, numpy = (upscale(sd, "a cone", small, level, steps=2).classes for level in (20, np.int64(20)))
    assert plain.aval == numpy.aval  # shape, dtype, and whether other dtypes win over it


def test_the_loop_in_one_program_and_the_loop_by_steps_draw_the_same(sd, small):
    *_, last = sd.upscale_steps("a cone", small, steps=3)
    assert np.allclose(last.pictures(), sd.upscale("a cone", small, steps=3), atol=1e-5)


def test_a_picture_larger_than_a_tile_is_drawn_in_tiles_and_keeps_its_size(sd):
    large = np.random.default_rng(1).uniform(-1, 1, (20, 12, 3)).astype(np.float32)
    drawn = sd.upscale("a cone", large, steps=2, tile=16)
    assert drawn.shape == (1, 80, 48, 3) and np.abs(drawn).max() <= 1.0 + 1e-6
    # The first rows are seen by the first tile alone: they are what it draws.
    padded = np.pad(large, ((0, 0), (0, 4), (0, 0)), "edge")
    corners, told = tiles(20, 16, 16, 2), []
    first, last = (sd._run(crop(upscale(sd, "a cone", padded, steps=2), corners[i])) for i in (0, -1))
    assert np.allclose(drawn[:, :16], first[:, :16, :48], atol=1e-5)
    assert np.allclose(drawn[:, 64:], last[:, 48:, :48], atol=1e-5)  # and the last ones by the last
    sd.upscale("a cone", large, steps=2, tile=16, watch=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)] and len(corners) == 2


def test_an_upscaler_survives_every_layout(sd, tmp_path):
    to_diffusers(sd, tmp_path / "diffusers")
    to_original(sd, tmp_path / "original.safetensors")
    sdjax.save(sd, tmp_path / "own")
    config = tmp_path / "diffusers" / "vae" / "config.json"
    values = json.loads(config.read_text())
    assert values.pop("scaling_factor") == 0.08333
    config.write_text(json.dumps(values))  # as in copies of before diffusers had the field
    assert "StableDiffusionUpscalePipeline" in (tmp_path / "diffusers" / "model_index.json").read_text()
    for name in ("diffusers", "original.safetensors", "own"):
        loaded = sdjax.load(tmp_path / name)
        assert dataclasses.replace(loaded.config, name="like-x4") == UPSCALER
        same(sd, loaded, ("text_encoder", "vae", "unet"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 40}, "noise_level: found 40, expected a whole number from 0 to 39"),
        ({"noise_level": -1}, "noise_level: found -1"),
        ({"noise_level": 1.5}, "noise_level: found 1.5"),
        ({"tile": 8}, "tile: found 8"),
        ({"image": np.zeros((20, 12, 3)), "tile": 16, "eta": 0.5}, "eta: found 0.5, which adds noise at each step"),
        ({"image": np.zeros((20, 12, 3)), "tile": 16, "sampler": "ddpm"}, "sampler: found ddpm, which adds noise"),
        ({"height": 64}, "height: the size of the image decides"),
        ({"image": np.zeros((4001, 1001, 3))}, "image: found 4001 x 1001, .* more than 64,000,000"),
        ({"image": np.zeros((4, 4))}, r"image: found shape \[4, 4\]"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_found(sd, small, options, message):
    with pytest.raises(InputError, match=message):
        sd.upscale("a cone", **{"image": small} | options)


@pytest.mark.parametrize(
    ("part", "values"),
    [("low_res", {"schedule": "cosine"}), ("low_res", {"train_steps": 10**12}), ("unet", {"classes": "1000"})],
)
def test_an_upscaler_whose_configuration_cannot_be_is_refused(sd, tmp_path, part, values):
    sdjax.save(sd, tmp_path / "own")
    path = tmp_path / "own" / "sdjax.json"
    index = json.loads(path.read_text())
    index["config"][part] |= values
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"configuration's {part} {next(iter(values))} cannot be"):
        sdjax.load(tmp_path / "own")


def test_an_upscaler_says_so_when_asked_for_another_thing_and_others_when_asked_to_upscale(sd, small):
    with pytest.raises(InputError, match="txt2img: these weights are the x4 upscaler"):
        sd.txt2img("a cone")
    with pytest.raises(InputError, match="upscale: these weights are a text-to-image model"):
        model(OPENCLIP).upscale("a cone", small)


def test_the_schedule_of_the_small_picture_in_a_released_file_is_passed_over():
    for name in ("betas", "alphas_cumprod_prev", "sqrt_recipm1_alphas_cumprod", "log_one_minus_alphas_cumprod"):
        assert original_file.UNREAD.fullmatch(name) and original_file.UNREAD.fullmatch(f"low_scale_model.{name}")
