"""A UNet step of SD 1.5 here, in PyTorch eager with diffusers, and in OpenVINO, in turns in one run.

    python tests/benchmarks/peers.py                 # needs the parity extra
    python tests/benchmarks/peers.py --openvino      # and `pip install openvino`, and 20 GB to convert the model

The same random weights in all; float32, latents of 64 x 64, batch 2, all cores. The "plain" step is ours with every
Winograd convolution and every chunk of attention turned off. Each peer's answer is compared with ours, whole tensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from flax import nnx

from sdjax import bench, paths
from sdjax.checkpoint.export import to_diffusers
from sdjax.config import sd1
from sdjax.hardware import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--openvino", action="store_true", help="measure OpenVINO too")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    given = parser.parse_args()
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)  # to compile means to compile
    sd = bench.random_model(sd1())
    draw = np.random.default_rng(0).standard_normal
    x, text = (draw(s).astype(np.float32) for s in ((2, given.side, given.side, 4), (2, 77, 768)))
    t = np.full(2, 500, np.int32)

    def program(plain: bool):
        paths.PLAIN = plain
        step = lambda state, *args: nnx.merge(sd.unet.graph, state)(*args)  # anew, so that it is traced anew
        return jax.jit(step).lower(sd.unet.state, x, t, text).compile()

    ours, plain = program(False), program(True)
    steps = {"sdjax": lambda: ours(sd.unet.state, x, t, text), "sdjax, plain": lambda: plain(sd.unet.state, x, t, text)}
    inputs = [torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(t), torch.from_numpy(text)]
    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(sd, folder)
        peer = UNet2DConditionModel.from_pretrained(Path(folder, "unet")).eval()

    @torch.inference_mode()
    def eager():
        return peer(*inputs, return_dict=False)[0].numpy()

    steps["PyTorch eager (diffusers)"] = eager
    if given.openvino:
        import openvino

        with torch.inference_mode():
            converted = openvino.convert_model(peer, example_input=tuple(inputs))
        compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        steps["OpenVINO"] = lambda: compiled([i.numpy() for i in inputs])[0]
        gc.collect()

    answers = {name: np.asarray(step()) for name, step in steps.items()}
    for name in ("PyTorch eager (diffusers)", "OpenVINO"):
        if name in answers:
            answers[name] = np.moveaxis(answers[name], 1, -1)
    taken = bench.in_turns(steps, given.rounds)
    work, weights = 2 * bench.unet_flops(sd.config.unet, given.side, given.side) / 1e9, 4 * sd.unet.size
    found = []
    for name, seconds in taken.items():
        row = {"name": name, "seconds": [float(np.median(seconds)), min(seconds), max(seconds)]}
        row["gflop_per_second"] = work / row["seconds"][0]
        row["difference"] = float(np.linalg.norm(answers[name] - answers["sdjax"]) / np.linalg.norm(answers["sdjax"]))
        found.append(row)
    for row, compiled in zip(found, (ours, plain)):
        row["memory_of_weights"] = 1 + compiled.memory_analysis().temp_size_in_bytes / weights
    ours_takes = found[0]["seconds"][0]
    for row in found:
        middle, least, most = row["seconds"]
        memory = f", {row['memory_of_weights']:.2f} times the weights' memory" if "memory_of_weights" in row else ""
        print(f"{row['name']:26} {middle:6.2f} s ({least:.2f} to {most:.2f}), {row['gflop_per_second']:.0f} GFLOP/s; "
              f"ours / this {ours_takes / middle:.2f}; differs by {row['difference']:.1e}{memory}")
    if given.out:
        given.out.write_text(json.dumps({"rounds": given.rounds, "torch": torch.__version__, "jax": jax.__version__,
                                         "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
