"""A picture redrawn in its own shape: what the network sees of the depth, flat depth, files, what is refused."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from small_models import DEPTH, OPENCLIP, model, same

import sdjax
from sdjax import midas
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.config import MidasConfig, sd2_depth
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.images import as_depth, normalised_depth, of_depth
from sdjax.request import depth


@pytest.fixture(scope="module")
def sd():
    return model(DEPTH)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).uniform(-1, 1, (24, 32, 3)).astype(np.float32)


def test_the_released_model_has_one_channel_beside_the_latents_and_a_midas():
    c = sd2_depth()
    assert c.unet.in_channels == 5 and c.depth == MidasConfig()


def test_the_network_sees_the_depth_from_minus_one_to_one(sd, picture):
    near = np.repeat(np.linspace(5.0, 9.0, 16)[None], 12, axis=0)  # in latents: 12 x 16, nearer to the right
    job = depth(sd, "a cone", picture, near, steps=4, num_images=2)
    assert job.beside.shape == (2, 12, 16, 1)
    assert np.allclose(job.beside[1, :, :, 0], np.linspace(-1, 1, 16), atol=1e-6)


def test_depth_of_any_size_and_unit_is_the_same_depth(sd, picture):
    near = np.random.default_rng(1).random((24, 32))
    jobs = [depth(sd, "a cone", picture, d, steps=2) for d in (near, 100 + 7 * near, near[None], near[..., None])]
    assert all(np.allclose(job.beside, jobs[0].beside, atol=1e-5) for job in jobs)
    slope = lambda height, width: np.add.outer(np.linspace(0, 1, height), np.linspace(0, 2, width))
    small, large = (depth(sd, "a cone", picture, slope(*size), steps=2).beside for size in ((24, 32), (90, 120)))
    assert np.allclose(small, large, atol=0.05)


def test_flat_depth_is_far_everywhere_and_not_a_division_by_zero(sd, picture):
    assert (normalised_depth(as_depth(np.full((4, 4), 3.0))) == -1.0).all()
    assert np.isfinite(sd.depth2img("a cone", picture, np.full((24, 32), 3.0), steps=2)).all()
    # Resized from a side that is no multiple of the latents', it is flat but for rounding.
    assert (depth(sd, "a cone", picture, np.full((100, 100), 0.3), steps=2).beside == -1.0).all()


def test_depth_across_all_of_float32_is_stretched_as_any_other(sd, picture):
    seen = normalised_depth(as_depth(np.array([[-3e38, 0.0, 3e38]])))
    assert seen.dtype == np.float32 and np.allclose(seen.ravel(), [-1, 0, 1])


def test_a_small_relief_far_away_is_seen_and_rounding_is_not(sd, picture):
    near = np.random.default_rng(0).uniform(size=(24, 32))
    for far in (near + 1e9, (near + 1e5).astype(np.float32), 1e-12 * near):
        assert np.allclose(as_depth(far)[0, :, :, 0], (near - near.min()) / np.ptp(near), atol=0.02)
    rounded = np.float32(0.3) + np.float32(1e-8) * np.arange(4, dtype=np.float32)  # one or two floats apart
    assert len(np.unique(rounded)) > 1 and (as_depth(rounded[None]) == 0).all()


def test_a_midas_that_overflows_is_an_error_and_never_flat_depth(sd, picture):
    eye, broken = sd.depth_estimator, copy.copy(sd)
    broken.depth_estimator = Network(eye.graph, jax.tree.map(lambda w: w * np.nan, eye.state), eye.config)
    for draw in (lambda: broken.midas(picture), lambda: broken.depth2img("a cone", picture, steps=1)):
        with pytest.raises(FloatingPointError, match="MiDaS gave values that are not finite"):
            draw()


def test_without_a_depth_it_is_what_midas_sees(sd, picture):
    seen = midas.depth(sd.depth_estimator, picture[None], (12, 16))
    given, found = (depth(sd, "a cone", picture, d, steps=2) for d in (np.asarray(seen), None))
    assert np.allclose(given.beside, found.beside, atol=1e-5)
    assert sd.midas(picture).shape == (1, 24, 32) and sd.midas(np.stack([picture] * 2)).shape == (2, 24, 32)


def test_the_depth_changes_the_picture(sd, picture):
    near = np.random.default_rng(1).random((24, 32))
    drawn = [sd.depth2img("a cone", picture, d, 1.0, steps=2) for d in (near, near[::-1])]
    assert drawn[0].shape == (1, 24, 32, 3) and not np.allclose(drawn[0], drawn[1], atol=1e-3)


def test_the_loop_in_one_program_and_the_loop_by_steps_draw_the_same(sd, picture):
    *_, last = sd.depth2img_steps("a cone", picture, steps=5, strength=0.6)
    assert last.steps == 3
    assert np.allclose(last.pictures(), sd.depth2img("a cone", picture, steps=5, strength=0.6), atol=1e-5)


def test_a_depth_model_survives_every_layout(sd, tmp_path):
    to_diffusers(sd, tmp_path / "diffusers")
    to_original(sd, tmp_path / "original.safetensors")
    sdjax.save(sd, tmp_path / "own")
    assert "StableDiffusionDepth2ImgPipeline" in (tmp_path / "diffusers" / "model_index.json").read_text()
    for name in ("diffusers", "original.safetensors", "own"):
        loaded = sdjax.load(tmp_path / name)
        assert dataclasses.replace(loaded.config, name=DEPTH.name) == DEPTH
        same(sd, loaded, ("text_encoder", "vae", "unet", "depth_estimator"))


def test_a_preview_is_white_where_things_are_near():
    shown = of_depth(np.array([[0.0, 1.0], [2.0, 4.0]]))
    assert shown.shape == (2, 2, 3) and np.allclose(shown[..., 0], [[-1, -0.5], [0, 1]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": np.zeros((3, 4, 5))}, r"depth: found shape \[3, 4, 5\]"),
        ({"depth": np.full((4, 4), np.nan)}, "depth: found NaN"),
        ({"strength": 1.5}, "strength: found 1.5"),
        ({"image": np.zeros((25, 32, 3))}, "image height: found 25"),
        ({"width": 64}, "width: the size of the image decides"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_found(sd, picture, given, message):
    with pytest.raises(InputError, match=message):
        sd.depth2img("a cone", **{"image": picture} | given)


def test_a_model_without_depth_says_so(sd, picture):
    other = model(OPENCLIP)
    with pytest.raises(InputError, match="depth2img: these weights are a text-to-image model"):
        other.depth2img("a cone", picture)
    with pytest.raises(InputError, match="these weights have no MiDaS"):
        other.midas(picture)
    with pytest.raises(InputError, match="txt2img: these weights are a depth-to-image model"):
        sd.txt2img("a cone")
