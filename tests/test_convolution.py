"""Winograd's convolution gives what the direct one gives, and is taken only where it pays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdjax import convolution, paths
from sdjax.layers import conv3x3


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_the_transforms_filter_a_row_of_numbers():
    """F(4, 3) of arXiv:1509.09308 in one dimension, in float64: A^T [(G g) * (B^T d)] is the sliding product."""
    of_data, of_kernel, of_output = map(np.array, (convolution.DATA, convolution.KERNEL, convolution.OUTPUT))
    d, g = np.random.default_rng(0).standard_normal((2, 6))
    found = of_output @ ((of_kernel @ g[:3]) * (of_data @ d))
    assert np.allclose(found, np.correlate(d, g[:3], "valid"))


@pytest.mark.parametrize("h, w", [(8, 8), (7, 9), (1, 1), (5, 12)])
def test_winograd_equals_direct_whether_or_not_the_tiles_fit(h, w):
    x, kernel = normal(0, 2, h, w, 6), normal(1, 3, 3, 6, 5)
    expected = convolution.direct(x, kernel)
    error = np.abs(convolution.winograd(x, kernel) - expected).max() / np.abs(expected).max()
    assert error < 2e-5, error


def test_a_layer_transforms_its_kernel_when_its_turn_comes():
    """Else all layers' transformed kernels, four times as large as the kernels themselves, are held at once."""
    x, kernels = normal(0, 1, 8, 8, 64), list(normal(1, 4, 3, 3, 64, 64))
    program = jax.jit(lambda x, kernels: functools.reduce(convolution.winograd, kernels, x))
    scratch = program.lower(x, kernels).compile().memory_analysis().temp_size_in_bytes
    assert scratch < 2 * (4 * 36 * 64 * 64), scratch


def test_a_nan_stays_where_it_is():
    x, kernel = normal(0, 3, 12, 12, 4).at[0, 0, 0, 0].set(jnp.nan), normal(1, 3, 3, 4, 5)
    spoilt = np.isnan(convolution.winograd(x, kernel)).any(axis=-1)
    assert spoilt[0, :4, :4].all() and spoilt.sum() == 16  # the one tile that sees it


def test_gradients_are_the_same_through_tiles():
    x, kernel = normal(0, 1, 6, 7, 4), normal(1, 3, 3, 4, 5)
    slopes = lambda way: jax.grad(lambda x, k: (way(x, k) ** 2).sum(), argnums=(0, 1))(x, kernel)
    for found, expected in zip(slopes(convolution.winograd), slopes(convolution.direct)):
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_wide_layer_takes_winograd_and_gives_the_same(monkeypatch):
    monkeypatch.setattr(paths, "WINOGRAD_CHANNELS", 8)
    monkeypatch.setattr(paths, "WINOGRAD_PIXELS", 64)
    layer, x = conv3x3(8, 8, rngs=nnx.Rngs(0)), normal(0, 1, 8, 8, 8)
    layer.bias[...] = normal(1, 8)
    run = lambda: jax.jit(lambda x: layer(x))  # a new function, so that it is traced anew
    tiled, text = run()(x), str(run().trace(x).jaxpr)
    monkeypatch.setattr(paths, "PLAIN", True)
    plain = run()(x)
    assert "platform_index" in text and "platform_index" not in str(run().trace(x).jaxpr)
    assert np.abs(tiled - plain).max() < 1e-5 * np.abs(plain).max()


def test_paths_choose_by_shape_and_dtype(monkeypatch):
    wide, kernel = (2, 64, 64, 320), (3, 3, 320, 320)
    assert paths.winograd(wide, kernel, jnp.float32)
    assert not paths.winograd(wide, kernel, jnp.bfloat16)
    assert not paths.winograd((2, 4, 4, 320), kernel, jnp.float32)  # too few tiles for the kernel's transform
    assert not paths.winograd(wide, (3, 3, 320, 4), jnp.float32)
    assert not paths.winograd((1, 512, 512, 320), kernel, jnp.float32)  # gigabytes of transformed tiles
    few, many = (2, 8, 64, 40), (2, 8, 4096, 40)
    assert not paths.blockwise(few, 64)
    assert paths.blockwise(many, 4096)
    monkeypatch.setattr(paths, "cudnn_works", lambda d: d <= 128)  # as an A100 answers
    assert paths.cudnn(40, jnp.bfloat16)
    assert not paths.cudnn(40, jnp.float32)
    assert not paths.cudnn(20, jnp.bfloat16)
    assert not paths.cudnn(160, jnp.bfloat16)  # heads too wide for cuDNN
    monkeypatch.setattr(paths, "PLAIN", True)
    assert not paths.cudnn(40, jnp.bfloat16)
    assert not paths.blockwise(many, 4096)
    assert not paths.winograd(wide, kernel, jnp.float32)


@pytest.fixture
def unasked():
    paths.cudnn_works.cache_clear()
    yield
    paths.cudnn_works.cache_clear()


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there may be a cuDNN")
def test_where_there_is_no_cudnn_it_is_not_taken(unasked):
    assert not paths.cudnn_works(8)


def test_asking_for_cudnn_leaves_nothing_in_the_program_that_asks(unasked, monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation: q + k.sum())  # as on a GPU
    asked = []
    text = str(jax.jit(lambda x: asked.append(paths.cudnn_works(8)) or x).trace(jnp.ones(1)).jaxpr)
    assert asked == [True] and "bf16" not in text
