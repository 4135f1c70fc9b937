"""Painting a part of a picture anew, with a network that sees the mask and with one that does not."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import OPENAI, OPENCLIP, model, same

import sdjax
from sdjax import samplers
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.config import inpainting
from sdjax.diffusion import add_noise
from sdjax.errors import InputError
from sdjax.images import as_mask, read_mask
from sdjax.request import MASKED, inpaint
from sdjax.samplers import Keep, ddim_plan

SIZE = 16
LEFT = np.zeros((SIZE, SIZE), bool)  # the left half is to be painted anew
LEFT[:, : SIZE // 2] = True


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=["4 channels", "9 channels"])
def sd(request):
    return model(OPENAI if request.param == "4 channels" else inpainting(OPENAI, "like-sd1-inpaint"))


@pytest.fixture(scope="module")
def nine():
    return model(inpainting(OPENAI, "like-sd1-inpaint"))


# Masks


@pytest.mark.parametrize(
    "mask", [LEFT, LEFT.astype(np.uint8) * 255, LEFT.astype(np.uint8), LEFT.astype(int), LEFT * 0.9 + 0.05,
             LEFT[..., None], LEFT[None].astype(np.float32)],
    ids=["bool", "8 bit", "8 bit, 0 and 1", "integers", "soft", "with a channel", "with a batch"],
)
def test_a_mask_is_cut_at_a_half(mask):
    assert np.array_equal(as_mask(mask, (SIZE, SIZE))[0, :, :, 0], LEFT)


def test_a_mask_file_of_strokes_on_nothing_or_of_zeros_and_ones_is_what_it_was_meant_to_be(tmp_path):
    strokes = np.zeros((SIZE, SIZE, 4), np.uint8)
    strokes[LEFT] = 255  # white, on transparent black
    clear = np.where(LEFT[..., None], 255, np.uint8([255, 255, 255, 0])).astype(np.uint8)  # and on transparent white
    for name, pixels in (
        ("strokes", strokes), ("clear", clear), ("ones", LEFT.astype(np.uint8)), ("deep", LEFT.astype(np.uint16)),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert np.array_equal(as_mask(read_mask(tmp_path / f"{name}.png"), (SIZE, SIZE))[0, :, :, 0], LEFT), name


def test_half_a_mask_is_painted():
    assert as_mask(np.full((2, 2), 0.5), (2, 2)).min() == 1.0
    assert as_mask(np.full((2, 2), 127, np.uint8), (2, 2)).max() == 0.0


def test_a_mask_may_be_out_by_its_rounding():
    assert as_mask(np.array([[1 + 1e-7, -1e-9]]), (1, 2)).ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, SIZE)), r"mask: found shape \[8, 16\], expected \[16, 16\]"),
        (np.zeros((SIZE, SIZE, 3)), r"mask: found shape \[16, 16, 3\]"),
        (np.full((SIZE, SIZE), 2.0), "mask: found values from 2 to 2"),
        (np.full((SIZE, SIZE), -1.0), "mask: found values from -1"),
        (np.full((SIZE, SIZE), np.nan), "mask: found values from nan"),
        ([[1], [1, 0]], "mask: found rows of several lengths"),
    ],
)
def test_a_bad_mask_is_named_with_what_was_found(nine, picture, mask, message):
    with pytest.raises(InputError, match=message):
        nine.inpaint("a cone", picture, mask)


# What the network sees


def test_nine_channels_are_latent_mask_and_the_latent_of_the_picture_with_a_grey_hole(nine, picture):
    job = inpaint(nine, "a cone", picture, LEFT, steps=2)
    assert job.keep is None and job.beside.shape == (1, 8, 8, 5)
    assert np.array_equal(job.beside[0, :, :, 0], LEFT[::2, ::2])  # 1 where it paints, neither scaled nor shifted
    posterior = nine.vae.encode((picture * ~LEFT[:, :, None])[None])
    draw = samplers.noise(job.keys, MASKED, posterior.mean.shape[1:])
    hollow = OPENAI.vae.scale * (posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draw)
    assert np.allclose(job.beside[..., 1:], hollow, atol=1e-6)


def test_the_mask_of_a_latent_is_the_first_pixel_of_its_cell(nine, picture):
    dots = np.zeros((SIZE, SIZE))
    dots[4, 6] = dots[9, 9] = 1.0  # the first pixel of a 2 x 2 cell, and the last of another
    beside = inpaint(nine, "a cone", picture, dots, steps=2).beside[0, :, :, 0]
    assert beside[2, 3] == 1.0 and beside.sum() == 1.0
    dots[4, 6] = 0.0
    for mask, why in ((dots, "no pixel at the corner of a cell of 2 x 2"), (np.zeros_like(dots), "is empty")):
        with pytest.warns(UserWarning, match=f"the mask .*{why}, so nothing is painted anew"):
            inpaint(nine, "a cone", picture, mask, steps=2)


def test_the_networks_see_the_mask_and_the_surroundings(nine, picture):
    drawn = [nine.inpaint("a cone", p, m, steps=2, paste=False)
             for p, m in ((picture, LEFT), (picture, LEFT.T), (-picture, LEFT))]
    assert not np.allclose(drawn[0], drawn[1], atol=1e-3) and not np.allclose(drawn[0], drawn[2], atol=1e-3)


def test_all_of_strength_starts_from_noise_and_less_from_the_picture(sd, picture):
    whole, half = (inpaint(sd, "a cone", picture, LEFT, strength, steps=4) for strength in (1.0, 0.5))
    eps = samplers.noise(whole.keys, 0, whole.x.shape[1:])
    assert np.array_equal(whole.x, eps) and len(whole.table.t) == 4
    assert len(half.table.t) == 2 and not np.allclose(half.x, eps, atol=0.1)


# What stays


def test_pixels_outside_the_mask_are_those_of_the_picture(sd, picture):
    painted = sd.inpaint("a cone", picture, LEFT, steps=2)
    assert np.array_equal(painted[0][~LEFT], picture[~LEFT])
    assert not np.allclose(painted[0][LEFT], picture[LEFT], atol=0.1)


def test_not_pasted_they_went_through_the_vae(sd, picture):
    pasted, not_pasted = (sd.inpaint("a cone", picture, LEFT, steps=2, paste=paste) for paste in (True, False))
    assert np.array_equal(pasted[0][LEFT], not_pasted[0][LEFT])
    assert not np.array_equal(not_pasted[0][~LEFT], picture[~LEFT])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_network_that_does_not_see_the_mask_keeps_the_surrounding_latents(picture, strength):
    sd = model(OPENAI)
    job = inpaint(sd, "a cone", picture, LEFT, strength, steps=6)
    *_, before, last = sd.inpaint_steps("a cone", picture, LEFT, strength, steps=6)
    outside = ~LEFT[::2, ::2]
    assert np.array_equal(last.latents[0][outside], job.keep.x0[0][outside])  # in the end without noise
    noisy = add_noise(job.keep.x0, job.keep.noise, jnp.float32(job.table.a_next[-2]))
    assert np.allclose(before.latents[0][outside], noisy[0][outside], atol=1e-6)


def test_putting_back_leaves_the_inside_alone():
    table = ddim_plan(OPENAI.diffusion, 4)
    row = samplers.Plan(*(column[1] for column in table))
    x0, eps, x = (jnp.full((1, 2, 2, 1), v) for v in (1.0, -1.0, 5.0))
    mask = jnp.array([[1.0, 0.0], [0.0, 1.0]])[None, :, :, None]
    mixed = Keep(x0, eps, mask, np.int32(3)).put_back(x, row)[0, :, :, 0]
    around = np.sqrt(table.a_next[1]) - np.sqrt(1 - table.a_next[1])
    assert np.allclose(mixed, [[5.0, around], [around, 5.0]])


# Loops, images, files


def test_the_loop_in_one_program_and_the_loop_by_steps_paint_the_same(sd, picture):
    *_, last = sd.inpaint_steps("a cone", picture, LEFT, steps=3)
    assert np.allclose(last.pictures(), sd.inpaint("a cone", picture, LEFT, steps=3), atol=1e-5)


def test_picture_2_is_the_same_alone_and_in_a_batch(sd, picture):
    three = sd.inpaint("a cone", picture, LEFT, steps=2, num_images=3)
    alone = sd.inpaint("a cone", picture, LEFT, steps=2, first_image=2)
    assert np.allclose(three[2], alone[0], atol=1e-5) and not np.allclose(three[0], three[2], atol=0.1)


def test_strength_0_changes_nothing_but_what_the_vae_does(sd, picture):
    assert list(sd.inpaint_steps("a cone", picture, LEFT, 0.0, steps=4)) == []
    unchanged = sd.inpaint("a cone", picture, LEFT, 0.0, steps=4)
    assert np.array_equal(unchanged[0][~LEFT], picture[~LEFT])


@pytest.mark.parametrize("base", [OPENAI, OPENCLIP], ids=["as SD 1.x", "as SD 2.x"])
def test_an_inpainting_model_survives_every_layout(base, tmp_path):
    sd = model(inpainting(base, f"{base.name}-inpaint"))
    to_diffusers(sd, tmp_path / "diffusers")
    to_original(sd, tmp_path / "original.safetensors")
    sdjax.save(sd, tmp_path / "own")
    assert "StableDiffusionInpaintPipeline" in (tmp_path / "diffusers" / "model_index.json").read_text()
    for name in ("diffusers", "original.safetensors", "own"):
        loaded = sdjax.load(tmp_path / name)
        assert loaded.config.unet.in_channels == 9
        same(sd, loaded, ("text_encoder", "vae", "unet"))  # the original layout has no place for pictures' towers


def test_weights_for_inpainting_say_so_when_asked_for_another_thing(nine, picture):
    with pytest.raises(InputError, match="txt2img: these weights are an inpainting model"):
        nine.txt2img("a cone", steps=2)
    with pytest.raises(InputError, match="img2img: these weights are an inpainting model"):
        nine.img2img("a cone", picture, steps=2)
