"""The VAE against diffusers' answers, and what a wrong constant does to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, error, filled

from sdjax import vae
from sdjax.config import VAEConfig, sd1
from sdjax.layers import conv3x3
from sdjax.vae import VAE, Posterior

TOLERANCE = 1e-5
CONFIG = VAEConfig(channels=(8, 8, 16), blocks=2, groups=4)


@pytest.fixture(scope="module")
def golden():
    return Golden("vae")


def mistake(golden):
    """How far the posterior's mean is from diffusers' after a constant was changed."""
    return error(filled(VAE, CONFIG, golden.weights).encode(golden["in.pictures"]).mean, golden["out.mean"])


def test_encoding_gives_the_posterior_of_diffusers(golden):
    posterior = filled(VAE, CONFIG, golden.weights).encode(golden["in.pictures"])
    assert posterior.mean.shape == (2, 3, 5, 4)  # of pictures [2, 12, 20, 3], f = 4
    assert error(posterior.mean, golden["out.mean"]) < TOLERANCE
    assert error(posterior.log_variance, golden["out.log_variance"]) < TOLERANCE


def test_decoding_gives_the_picture_of_diffusers(golden):
    pictures = filled(VAE, CONFIG, golden.weights).decode(golden["in.latents"])
    assert pictures.shape == (2, 12, 20, 3)
    assert error(pictures, golden["out.pictures"]) < TOLERANCE


def test_norms_have_eps_1e_6_where_the_unets_residual_blocks_have_1e_5(golden, monkeypatch):
    monkeypatch.setattr(vae, "EPS", 1e-5)
    assert mistake(golden) > 0.1


def test_downsampling_pads_bottom_and_right_only_where_the_unet_pads_all_sides(golden, monkeypatch):
    def init(self, channels, *, rngs):
        self.conv = conv3x3(channels, channels, stride=2, padding=1, rngs=rngs)

    monkeypatch.setattr(vae.Downsample, "__init__", init)
    assert mistake(golden) > 0.1


def test_a_log_variance_is_clamped_to_a_range_that_exp_survives(golden):
    weights = dict(golden.weights)
    weights["quant_conv.bias"] = np.array([0, 0, 0, 0, 1e4, -1e4, 1e4, -1e4], np.float32)
    log_variance = filled(VAE, CONFIG, weights).encode(golden["in.pictures"]).log_variance
    assert np.unique(log_variance).tolist() == [-30, 20]


def test_a_sample_is_the_mean_plus_the_standard_deviation_times_noise():
    mean, log_variance = jnp.full((1, 64, 64, 4), 3.0), jnp.full((1, 64, 64, 4), np.log(4.0))
    sample = Posterior(mean, log_variance).sample(jax.random.key(0))
    assert abs(sample.mean() - 3.0) < 0.05
    assert abs(sample.std() - 2.0) < 0.05


def test_the_kl_to_a_unit_gaussian_is_zero_for_itself_and_half_the_squared_mean_when_moved():
    still = jnp.zeros((1, 2, 2, 4))
    assert Posterior(still, still).kl() == 0.0
    assert Posterior(still + 2.0, still).kl() == 2.0


def test_a_latent_stands_for_8_x_8_pixels_and_is_scaled_to_unit_variance():
    assert sd1().vae.factor == 8
    assert sd1().vae.scale == 0.18215
