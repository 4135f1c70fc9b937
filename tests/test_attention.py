"""Attention: the formula on numbers that fit a page, and the blockwise way giving what the plain way gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from sdjax import attention, paths
from sdjax.attention import (
    Attention,
    attend,
    attend_blockwise,
    attend_cudnn,
    attend_plain,
    merge_heads,
    probabilities,
    split_heads,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_each_query_looks_at_keys_by_the_softmax_of_their_product_over_root_d():
    q = jnp.array([[[[2.0, 0.0, 0.0, 0.0]]]])  # one query, d = 4, so logits are halved
    k = jnp.array([[[[np.log(3.0), 0.0, 0.0, 0.0], [0.0, 9.0, 9.0, 9.0]]]])  # logits log 3 and 0
    assert np.allclose(probabilities(q, k), [[[[0.75, 0.25]]]])


def test_the_answer_is_the_mix_of_values_by_these_weights():
    q, k = jnp.zeros((1, 1, 1, 2)), normal(0, 1, 1, 3, 2)  # all keys alike
    v = jnp.array([[[[3.0], [6.0], [0.0]]]])
    assert np.allclose(attend_plain(q, k, v), 3.0)


def test_rows_of_probabilities_sum_to_1():
    p = probabilities(normal(0, 2, 3, 5, 4), normal(1, 2, 3, 7, 4))
    assert p.shape == (2, 3, 5, 7)
    assert np.allclose(p.sum(axis=-1), 1.0)
    assert (p > 0).all()


def test_large_logits_do_not_overflow():
    p = probabilities(jnp.full((1, 1, 2, 4), 1e4), jnp.full((1, 1, 3, 4), 1e4))
    assert np.allclose(p, 1 / 3)


def test_half_precision_inputs_get_float32_logits():
    q = jnp.full((1, 1, 1, 64), 200.0, jnp.float16)  # q k^T is 2.56 million, beyond float16's 65,504
    assert probabilities(q, q).dtype == jnp.float32
    assert attend_plain(q, q, q).dtype == jnp.float16
    assert np.allclose(attend_plain(q, q, q), 200.0)
    assert np.allclose(attend_blockwise(q, q, q), 200.0)


def test_a_mask_shuts_out_keys_and_the_rest_share_the_row():
    mask = jnp.array([[True, False, False], [True, True, False]])
    p = probabilities(jnp.zeros((1, 1, 2, 4)), normal(0, 1, 1, 3, 4), mask)[0, 0]
    assert np.allclose(p, [[1, 0, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("keys", [1, 8, 13, 16])
def test_blockwise_equals_plain_whether_the_blocks_fit_or_not(keys):
    q, k, v = normal(0, 2, 3, 11, 4), normal(1, 2, 3, keys, 4), normal(2, 2, 3, keys, 5)
    assert np.allclose(attend_blockwise(q, k, v, block=8), attend_plain(q, k, v), atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["growing", "shrinking"])
def test_a_larger_logit_in_a_later_block_takes_over_from_those_before(sign):
    """Logits of 0 to 900: what a block adds is e^64 times what the one before it added, or as much less."""
    q, v = jnp.ones((1, 1, 1, 4)), normal(0, 1, 1, 15, 4)
    k = sign * jnp.broadcast_to(32.0 * jnp.arange(15)[:, None], (1, 1, 15, 4))
    mixed = attend_blockwise(q, k, v, block=4)
    assert np.allclose(mixed, v[:, :, [-1 if sign > 0 else 0]])
    assert np.allclose(mixed, attend_plain(q, k, v))


@pytest.mark.parametrize("key", range(9))
def test_a_logit_that_is_no_number_comes_out_wherever_it_stands(key):
    """The largest logit is found by comparison, which passes a NaN over; its exponential does not."""
    q, k, v = normal(0, 1, 1, 2, 4), normal(1, 1, 1, 9, 4), normal(2, 1, 1, 9, 4)
    assert np.isnan(attend_blockwise(q, k.at[0, 0, key].set(jnp.nan), v, block=4)).all()


def test_blocks_are_as_even_as_they_come():
    """Nine keys in blocks of at most eight are twice five, not twice eight of which seven are filled up."""
    q, k = jnp.ones((1, 2, 11, 4)), jnp.ones((1, 2, 9, 4))
    program = str(jax.make_jaxpr(lambda q, k: attend_blockwise(q, k, k, block=8))(q, k))
    assert "11,5]" in program and "11,8]" not in program


def test_gradients_are_the_same_through_blocks():
    given = normal(0, 1, 2, 5, 4), normal(1, 1, 2, 6, 4), normal(2, 1, 2, 6, 4), normal(3, 1, 2, 5, 4)
    gradients = lambda way: jax.jit(jax.grad(lambda q, k, v, by: (by * way(q, k, v)).sum(), (0, 1, 2)))(*given)
    for block, plain in zip(gradients(partial(attend_blockwise, block=4)), gradients(attend_plain)):
        assert np.allclose(block, plain, atol=1e-5)


def test_many_logits_are_taken_in_blocks_and_few_are_not(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "attend_blockwise", lambda q, k, v: taken.append("blockwise") or q)
    monkeypatch.setattr(attention, "attend_plain", lambda q, k, v: taken.append("plain") or q)
    monkeypatch.setattr(paths, "MAX_LOGITS", 2 * 3 * 5 * 7)
    attend(jnp.zeros((2, 3, 5, 4)), jnp.zeros((2, 3, 7, 4)), jnp.zeros((2, 3, 7, 4)))
    attend(jnp.zeros((2, 3, 5, 4)), jnp.zeros((2, 3, 8, 4)), jnp.zeros((2, 3, 8, 4)))
    assert taken == ["plain", "blockwise"]


def test_the_gpus_own_kernel_gets_heads_where_it_wants_them(monkeypatch):
    """On a processor by the function's other way, which takes its arguments alike."""
    own = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation: own(*qkv, implementation="xla"))
    q, k, v = normal(0, 2, 3, 5, 8), normal(1, 2, 3, 7, 8), normal(2, 2, 3, 7, 8)
    assert np.allclose(attend_cudnn(q, k, v), attend_plain(q, k, v), atol=1e-5)


def test_what_is_compiled_for_a_processor_takes_no_kernel_of_a_gpu_that_stands_beside_it(monkeypatch):
    monkeypatch.setattr(paths, "cudnn_works", lambda d: True)
    monkeypatch.setattr(attention, "attend_cudnn", lambda q, k, v: jnp.full_like(v, jnp.nan)[:, :, : q.shape[2]])
    q, k, v = (normal(i, 2, 3, 7, 8).astype(jnp.bfloat16) for i in range(3))
    run = jax.jit(lambda q, k, v: attend(q, k, v))
    assert "cuda" in str(run.trace(q, k, v).jaxpr)  # and what is compiled for a GPU has it
    assert (run(q, k, v) == attend_plain(q, k, v)).all()


def test_the_shapes_of_a_signature_are_checked_in_tests():
    with pytest.raises(TypeCheckError, match="parameter 'v'"):
        attend(jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 1, 3, 4)), jnp.zeros((1, 1, 5, 4)))  # three keys, five values


def test_heads_are_neighbouring_channels():
    x = jnp.arange(8.0).reshape(1, 2, 4)
    assert split_heads(x, 2)[0].tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert (merge_heads(split_heads(x, 2)) == x).all()


def test_asking_for_the_probabilities_does_not_change_the_answer():
    x, context = normal(0, 1, 6, 8), normal(1, 1, 5, 3)
    run = jax.jit(lambda probs: Attention(8, 2, 3, rngs=nnx.Rngs(0))(x, context, probs), static_argnums=0)
    (without, none), (with_them, p) = run(False), run(True)
    assert none is None
    assert p.shape == (1, 2, 6, 5)
    assert np.allclose(without, with_them, atol=1e-6)
