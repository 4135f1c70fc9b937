"""The UNet against diffusers' answers, and what a wrong constant does to them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import Golden, error, filled

from sdjax import unet
from sdjax.config import UNetConfig, sd1, sd2
from sdjax.hardware import Network
from sdjax.layers import ResBlock, Upsample, conv3x3, group_norm
from sdjax.unet import UNet, rows, timestep_embedding

TOLERANCE = 1e-5
SD1 = UNetConfig(
    channels=(8, 8), attention=(False, True), cross_only=(False, False), heads=(2, 2), blocks=1, context_width=12,
    groups=4,
)
SD2 = UNetConfig(
    channels=(8, 12), attention=(True, False), cross_only=(False, False), heads=(2, 3), blocks=2, context_width=12,
    groups=4, linear_projection=True,
)
X4 = UNetConfig(
    in_channels=7, classes=9, channels=(8, 8, 12), attention=(False, True, True), cross_only=(True, True, False),
    heads=(2, 2, 2), blocks=1, context_width=12, groups=4, linear_projection=True,
)


def inputs(golden):
    return [golden[f"in.{name}"] for name in ("latents", "timesteps", "text", "classes") if f"in.{name}" in golden]


@pytest.fixture(scope="module")
def golden():
    return Golden("unet-sd1")


def mistake(golden):
    """How far the answer is from diffusers' after a constant was changed, in parts of the largest value."""
    # Not compiled: a compiled program would still have the constant of the one before.
    return error(filled(UNet, SD1, golden.weights)(*inputs(golden)), golden["out.prediction"])


# The whole network


def test_sd1_gives_the_prediction_of_diffusers(golden):
    assert mistake(golden) < TOLERANCE


def test_sd2_with_its_own_heads_a_level_matches_at_an_odd_size():
    golden = Golden("unet-sd2")
    assert golden["in.latents"].shape == (2, 7, 5, 4)
    answer = Network.of(filled(UNet, SD2, golden.weights))(*inputs(golden))
    assert error(answer, golden["out.prediction"]) < TOLERANCE


def test_the_upscalers_classes_and_cross_attention_only_match():
    golden = Golden("unet-x4")
    answer = Network.of(filled(UNet, X4, golden.weights))(*inputs(golden))
    assert error(answer, golden["out.prediction"]) < TOLERANCE


# The classic mistakes. Each ran in a published port for years, because pictures look almost right.


def test_residual_norms_have_eps_1e_5_where_the_rest_of_ldm_has_1e_6(golden, monkeypatch):
    monkeypatch.setattr(unet, "RES_EPS", 1e-6)
    assert mistake(golden) > 0.1


def test_transformer_norms_have_eps_1e_6_where_torch_defaults_to_1e_5(golden, monkeypatch):
    monkeypatch.setattr(unet, "TRANSFORMER_EPS", 1e-5)
    assert mistake(golden) > 0.01


def test_layer_norms_have_eps_1e_5_where_flax_defaults_to_1e_6(golden, monkeypatch):
    monkeypatch.setattr(unet, "LAYER_EPS", 1e-6)
    assert mistake(golden) > 0.01


def test_the_gate_is_the_exact_gelu_where_jax_defaults_to_tanh(golden, monkeypatch):
    monkeypatch.setattr(unet.nnx, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=True))
    assert mistake(golden) > 10 * TOLERANCE


def test_downsampling_pads_all_sides_where_the_vae_pads_two(golden, monkeypatch):
    def init(self, channels, *, rngs):
        self.conv = conv3x3(channels, channels, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    monkeypatch.setattr(unet.Downsample, "__init__", init)
    assert mistake(golden) > 0.1


def test_the_timestep_is_cosines_first_where_the_transformer_paper_has_sines(golden, monkeypatch):
    right = unet.timestep_embedding
    monkeypatch.setattr(unet, "timestep_embedding", lambda t, width: jnp.roll(right(t, width), width // 2, axis=-1))
    assert mistake(golden) > 0.01


# The parts


def test_a_timestep_becomes_cosines_then_sines_from_fast_to_slow():
    assert timestep_embedding(jnp.array([0]), 4).tolist() == [[1, 1, 0, 0]]
    expected = [math.cos(7), math.cos(0.07), math.sin(7), math.sin(0.07)]  # frequencies 1 and 10000^(-1/2)
    assert np.allclose(timestep_embedding(jnp.array([7]), 4)[0], expected, atol=1e-6)


def test_a_group_norm_takes_mean_and_variance_over_a_group_and_all_pixels():
    norm = group_norm(4, 2, eps=1.0, rngs=nnx.Rngs(0))
    x = jnp.array([[0.0, 2.0, 10.0, 10.0], [0.0, 2.0, 10.0, 10.0]]).reshape(1, 1, 2, 4)
    # Group one: mean 1, variance 1, so (x - 1) / sqrt(1 + eps); group two: variance 0.
    assert np.allclose(norm(x)[0, 0, 0], [-(0.5**0.5), 0.5**0.5, 0, 0])


def test_a_new_residual_block_passes_its_input_through():
    x = jnp.arange(16.0).reshape(1, 2, 2, 4)
    new = jax.jit(lambda x: ResBlock(4, 4, groups=2, eps=1e-5, time_width=3, rngs=nnx.Rngs(0))(x, jnp.ones((1, 3))))
    assert (new(x) == x).all()  # its last convolution starts at zero


def test_upsampling_repeats_each_pixel_and_can_stop_one_short():
    up = Upsample(1, rngs=nnx.Rngs(0))
    up.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)  # a convolution that does nothing
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    assert up(x)[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert up(x, (3, 4))[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]


# The table


def test_going_up_a_block_takes_the_skips_in_the_reverse_of_the_order_they_were_made():
    table = {row.name: row for row in rows(sd1().unet)}
    assert list(table) == [f"down_blocks.{i}" for i in range(4)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(4)]
    assert table["down_blocks.1"].inputs == (320, 640)
    assert table["up_blocks.0"].inputs == (1280 + 1280, 1280 + 1280, 1280 + 1280)
    assert table["up_blocks.2"].inputs == (1280 + 640, 640 + 640, 640 + 320)
    assert table["up_blocks.3"].inputs == (640 + 320, 320 + 320, 320 + 320)


def test_sd1_has_8_heads_everywhere_and_sd2_heads_64_wide():
    heads = lambda config: [row.heads for row in rows(config.unet)]
    assert heads(sd1()) == [8, 8, 8, None, 8, None, 8, 8, 8]
    assert heads(sd2()) == [5, 10, 20, None, 20, None, 20, 10, 5]
