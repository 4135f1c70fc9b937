"""A UNet step of SD 1.5 here, in PyTorch eager with diffusers, and in OpenVINO, in turns in one run.

    python tests/benchmarks/peers.py                 # needs the parity extra

OpenVINO takes part where `pip install openvino` was done (20 GB, to convert the model). Whole pictures are in
pictures.py.

The same random weights in all; float32, latents of 64 x 64, batch 2, all cores. The "plain" step is ours with every
Winograd convolution and every block of attention turned off; "in the loop" is a step of the program that draws whole
pictures, one prompt with guidance, without text encoder and VAE. Beside the steps runs a product of matrices, the
machine's own rate. Each peer's answer is compared with ours, whole tensors.

With --memory, processes of their own first say what they held at most for the UNet's weights and one step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax import bench, paths, pipeline, samplers
from sdjax.checkpoint.export import to_diffusers
from sdjax.config import sd1
from sdjax.hardware import Network, compiled, prepare
from sdjax.unet import UNet

OURS, PLAIN, LOOP = "sdjax", "sdjax, plain", "sdjax, in the loop"
EAGER, OPENVINO = "PyTorch eager (diffusers)", "OpenVINO"
PRODUCT, TORCH_PRODUCT = "matrix product", "matrix product by PyTorch"
STEPS = 2  # of the loop, whose time is divided by them
TEXTS = (2, 77, 768)


def inputs(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, timesteps and texts."""
    draw = np.random.default_rng(0).standard_normal
    return draw((2, side, side, 4)).astype(np.float32), np.full(2, 500, np.int32), draw(TEXTS).astype(np.float32)


def ours(unet: Network, x: np.ndarray, t: np.ndarray, text: np.ndarray, plain: bool) -> Any:
    """The compiled step."""
    paths.PLAIN = plain
    step = lambda state, *args: nnx.merge(unet.graph, state)(*args)  # anew, so that it is traced anew
    program = compiled()(step).lower(unet.state, x, t, text).compile()
    paths.PLAIN = False
    return program


def loop(sd: pipeline.StableDiffusion, x: np.ndarray, text: np.ndarray) -> tuple[Any, Callable[[], jax.Array]]:
    """The compiled loop of `txt2img` for one prompt, and how to run it."""
    table, keys = samplers.ddim_plan(sd.config.diffusion, STEPS), samplers.image_keys(0, 0, 1)
    given = (sd.unet.state, jnp.asarray(x[:1]), jnp.asarray(text[None]), None, None, None, table, jnp.float32(7.5),
             jnp.float32(0.0), keys)
    program = pipeline._scan.lower(sd.unet.graph, "ddim", sd.config.diffusion.prediction, *given).compile()
    return program, lambda: program(*given)


def torch_unet(sd: pipeline.StableDiffusion) -> Any:
    from diffusers import UNet2DConditionModel

    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(sd, folder)
        return UNet2DConditionModel.from_pretrained(Path(folder, "unet")).eval()


def torch_inputs(x: np.ndarray, t: np.ndarray, text: np.ndarray) -> tuple:
    import torch

    return tuple(torch.from_numpy(a) for a in (np.moveaxis(x, -1, 1).copy(), t, text))


def torch_product(operations: float) -> Callable[[], Any]:
    """The products of `bench.yardstick` in PyTorch, as many operations of them, by whatever library it has."""
    import torch

    side = bench.ON_CPU[0]
    square = torch.from_numpy(np.random.default_rng(1).standard_normal((side, side)).astype(np.float32))

    def multiply() -> Any:
        product = square
        for _ in range(round(operations / (2 * side**3))):
            product = (product @ square) / side**0.5
        return product

    return multiply


def eager(peer: Any, given: tuple) -> Callable[[], np.ndarray]:
    import torch

    def step() -> np.ndarray:
        with torch.inference_mode():
            return peer(*given, return_dict=False)[0].numpy()

    return step


def openvino_step(peer: Any, given: tuple) -> Callable[[], np.ndarray]:
    import openvino
    import torch

    with torch.inference_mode():
        converted = openvino.convert_model(peer, example_input=given)
    network = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda: network([i.numpy() for i in given])[0]


def held_at_most(name: str, side: int) -> int:
    """Bytes that a process of its own held at most for the UNet's weights and one step, compiling and all."""
    asked = [sys.executable, __file__, "--alone", name, "--side", str(side)]
    return int(subprocess.run(asked, check=True, capture_output=True).stdout.split()[-1])


def alone(name: str, side: int) -> None:
    x, t, text = inputs(side)
    if name == EAGER:
        from diffusers import UNet2DConditionModel

        peer = UNet2DConditionModel(sample_size=side, cross_attention_dim=TEXTS[-1]).eval()
        eager(peer, torch_inputs(x, t, text))()
    else:
        unet = bench.random_network(Network, UNet, sd1().unet)
        jax.block_until_ready(ours(unet, x, t, text, name == PLAIN)(unet.state, x, t, text))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--memory", action="store_true", help="what processes of their own hold at most, first")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    prepare()
    if given.alone:
        return alone(given.alone, given.side)
    with bench.compiling_anew():
        measure(given)


def measure(given: argparse.Namespace) -> None:
    held = {name: held_at_most(name, given.side) for name in (OURS, PLAIN, EAGER)} if given.memory else {}

    sd, (x, t, text) = bench.random_model(sd1()), inputs(given.side)
    compiling: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = make()
        compiling[name] = time.perf_counter() - began
        return made

    programs = {OURS: timed(OURS, lambda: ours(sd.unet, x, t, text, False)),
                PLAIN: timed(PLAIN, lambda: ours(sd.unet, x, t, text, True))}
    programs[LOOP], draw = timed(LOOP, lambda: loop(sd, x, text))
    torch_given, peer = torch_inputs(x, t, text), torch_unet(sd)
    multiply, of_products = bench.yardstick()
    steps: dict[str, Callable[[], Any]] = {
        PRODUCT: multiply, TORCH_PRODUCT: torch_product(of_products),
        OURS: lambda: programs[OURS](sd.unet.state, x, t, text),
        PLAIN: lambda: programs[PLAIN](sd.unet.state, x, t, text), LOOP: draw, EAGER: eager(peer, torch_given),
    }
    if importlib.util.find_spec("openvino"):
        steps[OPENVINO] = timed(OPENVINO, lambda: openvino_step(peer, torch_given))

    answers = {name: np.asarray(steps[name]()) for name in (OURS, PLAIN, EAGER, OPENVINO) if name in steps}
    for name in (EAGER, OPENVINO):
        if name in answers:
            answers[name] = np.moveaxis(answers[name], 1, -1)
    taken = bench.in_turns(steps, given.rounds)
    taken[LOOP] = [seconds / STEPS for seconds in taken[LOOP]]
    work = dict.fromkeys(taken, 2 * bench.unet_flops(sd.config.unet, given.side, given.side) / 1e9)
    work |= dict.fromkeys((PRODUCT, TORCH_PRODUCT), of_products / 1e9)
    middle = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    found = []
    for name, seconds in taken.items():
        row = {"name": name, "seconds": [middle[name], min(seconds), max(seconds)],
               "gflop_per_second": work[name] / middle[name],
               "share_of_matmul": work[name] / middle[name] / (work[PRODUCT] / middle[PRODUCT])}
        if name not in (PRODUCT, TORCH_PRODUCT):
            row["ours_to_this"] = middle[OURS] / middle[name]
        if name in answers:
            row["difference"] = float(np.linalg.norm(answers[name] - answers[OURS]) / np.linalg.norm(answers[OURS]))
        if name in compiling:
            row["compile_seconds"] = compiling[name]
        if name in programs:
            scratch = programs[name].memory_analysis().temp_size_in_bytes
            row["memory_of_weights"] = 1 + scratch / (4 * sd.unet.size)
        if name in held:
            row["held_bytes"] = held[name]
        found.append(row)
        print(told(row), flush=True)
    if given.out:
        known = ("torch", "diffusers", *(["openvino"] if OPENVINO in taken else []))
        settings = {"rounds": given.rounds, "side": given.side, "batch": 2, "dtype": "float32", **bench.machine(),
                    **{name: metadata.version(name) for name in known}}
        report = {"settings": settings, "rows": found}
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def told(row: dict[str, Any]) -> str:
    """A row as a line for people."""
    middle, least, most = row["seconds"]
    line = f"{row['name']:26} {middle:6.2f} s ({least:.2f} to {most:.2f}), {row['gflop_per_second']:.0f} GFLOP/s, "
    line += f"{row['share_of_matmul']:.0%} of the matrix product's rate"
    for name, form in (("ours_to_this", "; ours / this {:.2f}"), ("difference", "; differs by {:.1e}"),
                       ("compile_seconds", "; compiled in {:.0f} s"),
                       ("memory_of_weights", "; {:.2f} times the weights' memory")):
        line += form.format(row[name]) if name in row else ""
    return line + (f"; held {row['held_bytes'] / 1e9:.1f} GB" if "held_bytes" in row else "")


if __name__ == "__main__":
    main()
