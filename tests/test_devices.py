"""A batch on many devices: the same pictures, a share for each, and no talk between them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from small_models import OPENAI, OPENCLIP, UPSCALER, model

from sdjax import convolution, pipeline, request
from sdjax.attention import attend_blockwise
from sdjax.errors import InputError
from sdjax.hardware import device_mesh, spread_rows

PROMPTS = ["red", "a red cone", "e"]
TALK = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# A random network makes much of guidance, and guidance of rounding.
HOW = {"steps": 3, "seed": 7, "eta": 0.5, "guidance_scale": 2.0}


def error(found, expected):
    """The relative error of a whole batch; that of its worst pixel hangs on the order in which jax adds."""
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def sd():
    return model(OPENCLIP)


@pytest.fixture(scope="module")
def pictures(sd):
    return sd.txt2img(PROMPTS, **HOW)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_three_pictures_are_the_same_on_any_number_of_devices(sd, pictures, devices):
    assert error(sd.spread(devices).txt2img(PROMPTS, **HOW), pictures) < 1e-5


def test_weights_that_are_cut_among_the_devices_give_the_same_pictures(sd, pictures):
    cut = sd.spread(4, shard_weights=True)
    kernel = cut.unet.module.conv_in.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 4, 1)}
    # Sums over channels are now made in four parts, which rounds in another order.
    assert error(cut.txt2img(PROMPTS, **HOW), pictures) < 2e-5


def test_each_device_has_its_own_pictures_and_they_never_talk(sd):
    spread = sd.spread(4)
    job = request.text(spread, ["red"] * 8, steps=3)
    own = spread_rows(job.rows, spread.mesh)
    assert [shard.data.shape[0] for shard in own.x.addressable_shards] == [2, 2, 2, 2]
    program = pipeline._scan.lower(
        spread.unet.graph, job.sampler, "v", spread.unet.state, own.x, own.texts, own.beside, own.classes, own.keep,
        job.table, job.guidance, job.eta, own.keys,
    ).compile().as_text()
    assert not [talk for talk in TALK if talk in program]


def test_wide_networks_leave_the_pictures_where_they_are_too():
    """The small one above is too narrow for the ways that large shapes take."""
    mesh, draw = device_mesh(4), np.random.default_rng(0).standard_normal
    q, x, kernel = spread_rows(draw((4, 2, 24, 8)), mesh), spread_rows(draw((4, 8, 8, 6)), mesh), draw((3, 3, 6, 5))
    for way, given in ((lambda q: attend_blockwise(q, q, q, block=8), (q,)), (convolution.winograd, (x, kernel))):
        program = jax.jit(way).lower(*given).compile().as_text()
        assert not [talk for talk in TALK if talk in program]


def test_holes_and_small_pictures_are_spread_too():
    picture = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 4:12] = True
    sd, upscaler = model(OPENAI), model(UPSCALER)
    for one, draw in (
        (sd, lambda m: m.inpaint("red", picture, mask, num_images=3, **HOW)),
        (upscaler, lambda m: m.upscale("red", picture, num_images=3, **HOW)),
    ):
        assert error(draw(one.spread(2)), draw(one)) < 1e-5


def test_the_walk_by_steps_shows_only_the_pictures_that_were_asked_for(sd, pictures):
    *_, last = sd.spread(2).txt2img_steps(PROMPTS, **HOW, attention=True)
    assert last.latents.shape[0] == 3 and {len(p) for p in last.attention.values()} == {3}
    assert error(last.pictures(), pictures) < 1e-5


@pytest.mark.parametrize("devices", [0, -1, 9, 1.5])
def test_more_devices_than_there_are_is_an_error(sd, devices):
    with pytest.raises(InputError, match="expected 1 to 8"):
        sd.spread(devices)
