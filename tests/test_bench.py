"""The benchmark: work is counted product by product, and every row is there."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from small_models import OPENCLIP, model

from sdjax import bench
from sdjax.checkpoint import tree
from sdjax.config import sd1, sd2, tiny
from sdjax.unet import UNet


def counted(jaxpr) -> int:
    """2 operations for each multiplication of a matrix product or convolution in a program, padding included."""
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += 2 * out.size * kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        # A program within: the body of a jit, of a scan, of a custom rule. Some are closed over constants.
        inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(equation.params)]
        total += sum(counted(value) for value in inner if hasattr(value, "eqns"))
    return total


@pytest.mark.parametrize(
    ("c", "side"), [(tiny().unet, 16), (tiny().unet, 9), (sd1().unet, 16), (sd2().unet, 16),
                    (dataclasses.replace(tiny().unet, cross_only=(False, True, False)), 16)],
    ids=["tiny", "odd", "sd1", "sd2", "cross-only"],
)
def test_every_product_of_the_program_is_counted(c, side):
    graph, state = tree.abstract(UNet, c)
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (
        ((1, side, side, c.in_channels), jnp.float32), ((1,), jnp.int32), ((1, 77, c.context_width), jnp.float32))]
    program = jax.make_jaxpr(lambda state, *args: nnx.merge(graph, state)(*args))(state, *shapes)
    assert bench.unet_flops(c, side, side) == counted(program.jaxpr)


def test_twice_the_side_is_more_than_four_times_the_work():
    small, large = (bench.unet_flops(sd1().unet, side, side) for side in (32, 64))
    assert 4.0 < large / small < 8.0


def test_in_turns_asks_each_once_a_round_after_a_first_that_is_not_counted():
    asked = []
    taken = bench.in_turns({name: lambda name=name: asked.append(name) for name in "ab"}, 3)
    assert asked == list("abababab")
    assert [len(taken[name]) for name in "ab"] == [3, 3]


def test_every_row_is_the_work_over_the_median_and_survives_json(monkeypatch):
    times = {"matrix product": [2.0, 1.0, 9.0], "UNet step": [4.0, 4.0, 5.0], "picture": [8.0, 7.0, 8.0]}
    monkeypatch.setattr(bench, "in_turns", lambda candidates, rounds: {name: times[name] for name in candidates})
    report = bench.bench(model(OPENCLIP), batch=3, steps=2, rounds=3)
    assert [row["name"] for row in report["rows"]] == ["matrix product", "UNet step", "picture"]
    (side, products), step = bench.ON_CPU, bench.unet_flops(OPENCLIP.unet, 8, 8)
    works = [2 * products * side**3 / 1e9, 3 * step / 1e9, 2 * 2 * step / 1e9]  # a picture's steps are of two latents
    for row, work, (middle, least, most) in zip(report["rows"], works, [(2, 1, 9), (4, 4, 5), (8, 7, 8)]):
        assert row["seconds"] == [middle, least, most] and row["gflops"] == pytest.approx(work)
        assert row["gflop_per_second"] == pytest.approx(work / middle)
        assert row["share_of_matmul"] == pytest.approx(work / middle / (works[0] / 2))
    assert json.loads(json.dumps(report)) == report
    assert len(bench.table(report).splitlines()) == 5 and report["settings"]["peak_bytes"] > 1e6
    assert report["settings"]["processor"] and report["settings"]["XLA_FLAGS"]  # conftest.py has set some


@pytest.fixture
def own_cache(tmp_path):
    """A cache of compiled programs for one test alone: the other workers write into the one that all share."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_to_compile_means_to_compile_also_where_a_cache_was_in_use_before(own_cache):
    """JAX remembers from its first compilation on whether there is a cache."""
    def cached(number):
        jax.jit(lambda x: x * number)(1.0)
        return {path.name for path in own_cache.iterdir()}

    before = cached(12345.0)
    assert before
    with bench.compiling_anew():
        assert cached(12346.0) == before
    assert cached(12347.0) > before
