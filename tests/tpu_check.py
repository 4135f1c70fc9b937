"""Compiles text to image for TPUs that are not there: what does it need, and does it fit?

`make tpu-check` asks the compiler in the package libtpu, which runs on any Linux machine, for the whole program (text
encoder, loop, VAE) of a model loaded as bfloat16, on one chip of a TPU v5e and on meshes of them. It prints what the
compiler says: bytes for weights and inputs, bytes for everything between, bytes moved, and exchanges between chips. It
fails where a chip's 16 GB are too few, or where the chips talk. First it asks for attention alone, at the finest level
of SD 1.5, and fails where the logits, a gigabyte, are kept; with --unet for one forward pass of its UNet too, which
keeps 2.2 GB in the plain graph.

    python tests/tpu_check.py tiny --chips 1            # a minute
    python tests/tpu_check.py tiny --chips 1 --unet     # five minutes
    python tests/tpu_check.py sd1 sd2-768 --chips 1 4 8 # an hour
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from typing import Any

# There is no TPU to be asked what it is, and this process computes nothing.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost",
               "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax import pipeline, samplers
from sdjax.attention import attend
from sdjax.checkpoint import tree
from sdjax.clip import TextEncoder
from sdjax.config import ModelConfig, sd1, sd2, tiny
from sdjax.hardware import PICTURES, compiled, dtype_of
from sdjax.unet import UNet
from sdjax.vae import VAE

MODELS = {"tiny": tiny, "sd1": sd1, "sd2-768": sd2}
TOPOLOGY = {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"}
HBM = 16e9  # bytes of a v5e chip: cloud.google.com/tpu/docs/v5e
BETWEEN = 0.3e9  # bytes that a forward pass of SD 1.5's UNet may keep between its operations, for two latents
STEPS = 50


def program(c: ModelConfig, graphs: dict, per_chip: int):
    """ids [b, 2, 77] to pictures [b, H, W, 3]: what `StableDiffusion.txt2img` does, as one function."""

    def draw(states, ids, keys, table):
        b = len(ids)
        texts = nnx.merge(graphs["text"], states["text"])(ids.reshape(b * 2, -1))
        side = c.image_size // c.vae.factor
        x = samplers.noise(keys, 0, (side, side, c.vae.latent_channels))
        latents = pipeline._scan(
            graphs["unet"], "ddim", c.diffusion.prediction, states["unet"], x, texts.reshape(b, 2, *texts.shape[1:]),
            None, None, None, table, jnp.float32(c.guidance), jnp.float32(0.0), keys,
        )
        # One picture at a time on every chip, so that the decoder's memory does not grow with the batch.
        turns = (latents / c.vae.scale).reshape(b // per_chip, per_chip, *latents.shape[1:]).swapaxes(0, 1)
        pictures = jax.lax.map(lambda z: nnx.merge(graphs["vae"], states["vae"]).decode(z), turns)
        return pictures.swapaxes(0, 1).reshape(b, *pictures.shape[2:])

    return draw


def network(
    name: str, kind: type[nnx.Module], config: Any, everywhere: NamedSharding
) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of a network, and its weights as shapes in the dtype that it has on a TPU."""
    graph, state = tree.abstract(kind, config)
    dtype = dtype_of(name, "bfloat16")
    return graph, jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype, sharding=everywhere), state)


def shapes(c: ModelConfig, mesh: Mesh, per_chip: int) -> tuple[dict, tuple]:
    """The structure of the three networks, and every argument as a shape with its place on the mesh."""
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(PICTURES))
    graphs, states = {}, {}
    for name, kind, config in (("text", TextEncoder, c.text), ("unet", UNet, c.unet), ("vae", VAE, c.vae)):
        graphs[name], states[name] = network(name, kind, config, everywhere)
    b = per_chip * mesh.size
    keys = jax.eval_shape(lambda: samplers.image_keys(0, 0, b))
    table = samplers.ddim_plan(c.diffusion, STEPS)
    return graphs, (
        states, jax.ShapeDtypeStruct((b, 2, 77), jnp.int32, sharding=spread),
        jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=spread),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.asarray(a).dtype, sharding=everywhere), table),
    )


def mesh_of(chips: int) -> Mesh:
    """So many chips of a TPU v5e that is not there."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY[chips]).devices
    return Mesh(np.array(found[:chips]), (PICTURES,), axis_types=(AxisType.Auto,))


def check_attention() -> bool:
    """Compiles attention as SD 1.5's finest level has it, for two latents; whether it keeps less than its logits."""
    c, side = sd1(), sd1().image_size // sd1().vae.factor
    heads, place = c.unet.heads[0], NamedSharding(mesh_of(1), P())
    q = jax.ShapeDtypeStruct((2, heads, side**2, c.unet.channels[0] // heads), jnp.bfloat16, sharding=place)
    kept = compiled()(attend).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
    logits = 4 * 2 * heads * side**4
    print(f"sd1      attention of {side**2} tokens: {kept / 1e6:.1f} MB between, at most a tenth of its logits, "
          f"{logits / 1e6:.0f} MB", flush=True)
    return kept <= logits / 10


def check_unet() -> bool:
    """Compiles one forward pass of SD 1.5's UNet for two latents; whether it keeps little enough."""
    c, place = sd1(), NamedSharding(mesh_of(1), P())
    graph, state = network("unet", UNet, c.unet, place)
    given = [((2, 64, 64, 4), jnp.float32), ((2,), jnp.int32), ((2, 77, c.unet.context_width), jnp.bfloat16)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in given]
    began = time.perf_counter()
    built = compiled()(lambda state, *args: nnx.merge(graph, state)(*args)).lower(state, *arguments).compile()
    kept = built.memory_analysis().temp_size_in_bytes
    print(f"sd1      one UNet step of two latents: {kept / 1e9:.2f} GB between, at most {BETWEEN / 1e9:.1f}; "
          f"{time.perf_counter() - began:.0f} s", flush=True)
    return kept <= BETWEEN


def check(name: str, chips: int, per_chip: int) -> bool:
    """Compiles one model for one number of chips, prints what it needs; whether it fits."""
    c, mesh = MODELS[name](), mesh_of(chips)
    graphs, arguments = shapes(c, mesh, per_chip)
    began = time.perf_counter()
    try:
        built = compiled()(program(c, graphs, per_chip)).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        print(f"{name:<8} {chips} chip(s), {per_chip} pictures each: {str(error).splitlines()[0]}", flush=True)
        return False
    memory, text = built.memory_analysis(), built.as_text()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    exchanges = r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    talk = len(re.findall(exchanges, text))
    moved = built.cost_analysis().get("bytes accessed", float("nan"))
    given, between = memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9
    took = time.perf_counter() - began
    print(f"{name:<8} {chips} chip(s), {per_chip} pictures each: {used / 1e9:.2f} GB a chip (weights, inputs"
          f" {given:.2f}, between {between:.2f}); {moved / 1e9:.1f} GB moved; {talk} exchanges; {took:.0f} s")
    return used <= HBM and talk == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--chips", nargs="+", type=int, default=[1, 4, 8], choices=TOPOLOGY)
    parser.add_argument("--pictures", type=int, default=4, help="pictures on each chip")
    parser.add_argument("--unet", action="store_true", help="also one UNet step of SD 1.5")
    given = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        print('tpu-check: skipped, libtpu is not installed; pip install ".[tpu]"')
        return
    fits = [check_attention(), *([check_unet()] if given.unet else [])]
    fits += [check(name, chips, given.pictures) for name in given.models for chips in given.chips]
    sys.exit(0 if all(fits) else "tpu-check: a program above needs too much memory, or its chips talk")


if __name__ == "__main__":
    main()
