"""How fast this machine draws: a UNet step and a whole picture, beside its own rate of plain matrix products.

Times on a shared machine say little alone. So everything is measured in turns in one run, each with its median and
range, and work is counted from the configuration: 2 operations for each multiplication and addition of a convolution,
a matrix product or attention, whichever way it takes; norms and activations are left out.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from sdjax.checkpoint import tree
from sdjax.clip import TextEncoder
from sdjax.config import ModelConfig, UNetConfig
from sdjax.hardware import Network, TextNetwork, VAENetwork, compiled, dtype_of
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer
from sdjax.unet import Row, UNet, rows
from sdjax.vae import VAE

# The side of square matrices, and how many products of them in one program; enough work for a tenth of a second and
# more, beside which the call does not count.
ON_CPU, ELSEWHERE = (2048, 4), (8192, 100)


def yardstick(dtype: Any = jnp.float32) -> tuple[Callable[[], jax.Array], float]:
    """A program of plain matrix products, than which XLA can hardly be faster here, and its operations."""
    side, products = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    square = jnp.asarray(np.random.default_rng(1).standard_normal((side, side)), dtype)
    multiply = compiled()(lambda a: jax.lax.fori_loop(0, products, lambda _, x: (x @ a) / side**0.5, a))
    return lambda: multiply(square), 2 * products * side**3


def machine() -> dict[str, Any]:
    """What a figure depends on besides the work: processor, device, versions, and what the environment says."""
    device, path = jax.devices()[0], Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = [name for name in ("avx2", "avx512f", "amx_tile") if name in told.get("flags", "").split()]
    return {
        "processor": " ".join([told.get("model name", platform.processor() or platform.machine()), *wide]),
        "cores": os.cpu_count(), "platform": device.platform, "device": device.device_kind,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("sdjax", "jax", "jaxlib")},
        **{name: os.environ.get(name, "") for name in ("XLA_FLAGS", "SDJAX_PLAIN")},
    }


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Within, to compile means to compile: nothing is taken from the cache of compiled programs, nor put there.

    JAX asks once whether there is a cache, at the first compilation; so it is made to ask again.
    """
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def unet_flops(c: UNetConfig, height: int, width: int, tokens: int = 77) -> int:
    """Operations of one forward pass of the denoiser for one latent of height x width and one text."""

    def conv(inputs: int, outputs: int, size: int = 3) -> int:
        return 2 * size * size * inputs * outputs * height * width

    time_width = 4 * c.channels[0]
    total = conv(c.in_channels, c.channels[0]) + 2 * (c.channels[0] + time_width) * time_width
    sizes = []
    for row in rows(c):
        n = row.outputs
        for inputs in row.inputs:
            total += conv(inputs, n) + conv(n, n) + 2 * time_width * n + (conv(inputs, n, 1) if inputs != n else 0)
        total += row.transformers * _transformer(row, c.context_width, height * width, tokens)
        if row.resize == "down":
            sizes.append((height, width))
            height, width = -(-height // 2), -(-width // 2)
        elif row.resize == "up":
            height, width = sizes.pop()
        total += conv(n, n) if row.resize else 0
    return total + conv(c.channels[0], c.out_channels)


def _transformer(row: Row, context_width: int, pixels: int, tokens: int) -> int:
    c = row.outputs

    def attention(keys: int, key_width: int) -> int:
        return 2 * (2 * pixels * c * c + 2 * keys * key_width * c + 2 * pixels * keys * c)

    own = attention(tokens, context_width) if row.cross_only else attention(pixels, c)
    projections, feed_forward = 2 * 2 * pixels * c * c, 2 * pixels * (8 + 4) * c * c
    return own + attention(tokens, context_width) + projections + feed_forward


def random_network(kind: type[Network], module: type[nnx.Module], config: Any, dtype: Any = jnp.float32) -> Network:
    """A network of small random weights, which computes as long as any."""
    graph, state = tree.abstract(module, config)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [0.02 * jax.random.normal(key, leaf.shape, dtype) for key, leaf in zip(keys, leaves)]
    return kind(graph, jax.tree.unflatten(structure, drawn), config)


def random_model(config: ModelConfig, dtype: Any = jnp.float32) -> StableDiffusion:
    """A model of such networks, whose pictures mean nothing."""
    return StableDiffusion(
        config, Tokenizer.clip(config.text.padding), random_network(TextNetwork, TextEncoder, config.text, dtype),
        random_network(VAENetwork, VAE, config.vae, dtype_of("vae", dtype)),
        random_network(Network, UNet, config.unet, dtype),
    )


def in_turns(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, in which every one has its turn; a round before these is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, function in candidates.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def bench(
    sd: StableDiffusion, *, size: tuple[int, int] | None = None, batch: int = 2, steps: int = 20, rounds: int = 5
) -> dict[str, Any]:
    """The figures of a model as {"settings": {...}, "rows": [...]}, ready for JSON.

    A row has a name, seconds (median, least, most), and where they mean something compile_seconds, gflops of work,
    gflop_per_second and share_of_matmul, and scratch_bytes, what the compiler plans beside weights and inputs; the
    settings have peak_bytes, what the process held at most. tests/benchmarks/peers.py has other libraries.
    """
    f, dtype = sd.config.vae.factor, jax.tree.leaves(sd.unet.state)[0].dtype
    options = dict(zip(("height", "width"), size or (sd.config.image_size,) * 2)) | {"steps": steps}
    with compiling_anew():
        began = time.perf_counter()
        sd.txt2img("a red cube", **options)  # which also checks the size
        first = time.perf_counter() - began
        height, width = options["height"] // f, options["width"] // f
        draw = np.random.default_rng(0).standard_normal
        x = jnp.asarray(draw((batch, height, width, sd.config.unet.in_channels)), jnp.float32)
        text = jnp.asarray(draw((batch, 77, sd.config.unet.context_width)), jnp.float32)
        t, (multiply, of_products) = jnp.full(batch, 500), yardstick(dtype)
        began = time.perf_counter()
        step = compiled()(lambda state, *args: nnx.merge(sd.unet.graph, state)(*args)).lower(sd.unet.state, x, t, text)
        program = step.compile()
        compiling = time.perf_counter() - began
        taken = in_turns(
            {"matrix product": multiply, "UNet step": lambda: program(sd.unet.state, x, t, text),
             "picture": lambda: sd.txt2img("a red cube", **options)}, rounds,
        )
    of_step = batch * unet_flops(sd.config.unet, height, width)
    of_picture = 2 * steps * unet_flops(sd.config.unet, height, width)  # two predictions a step; not text and VAE
    work = {"matrix product": of_products, "UNet step": of_step, "picture": of_picture}
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    rate = work["matrix product"] / middle["matrix product"]
    own = {
        "UNet step": {"compile_seconds": compiling, "scratch_bytes": program.memory_analysis().temp_size_in_bytes},
        "picture": {"compile_seconds": max(first - middle["picture"], 0.0)},
    }
    found = [
        {"name": name, "seconds": [middle[name], min(seconds), max(seconds)], "gflops": work[name] / 1e9,
         "gflop_per_second": work[name] / middle[name] / 1e9,
         "share_of_matmul": work[name] / middle[name] / rate, **own.get(name, {})}
        for name, seconds in taken.items()
    ]
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", of_process)  # accelerators count their own
    settings = {"model": sd.config.name, "dtype": str(dtype), "height": f * height, "width": f * width, "batch": batch,
                "steps": steps, "rounds": rounds, "peak_bytes": peak, **machine()}
    return {"settings": settings, "rows": found}


def table(report: dict[str, Any]) -> str:
    """What `bench` gives, as lines of text for people."""
    lines = [("", "median", "least to most", "GFLOP/s", "of matmul", "to compile", "scratch")]
    for row in report["rows"]:
        middle, least, most = row["seconds"]
        lines.append((
            row["name"], f"{middle:.4g} s", f"{least:.4g} to {most:.4g}", f"{row['gflop_per_second']:.0f}",
            f"{row['share_of_matmul']:.0%}", _told(row.get("compile_seconds"), 1, "s"),
            _told(row.get("scratch_bytes"), 1e6, "MB"),
        ))
    widths = [max(map(len, column)) for column in zip(*lines)]
    shown = ["  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*shown, f"held at most, by all of this: {report['settings']['peak_bytes'] / 1e6:.0f} MB"])


def _told(value: float | None, unit: float, name: str) -> str:
    return "" if value is None else f"{value / unit:.1f} {name}"
