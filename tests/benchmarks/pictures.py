"""Whole pictures of SD 1.5 here and by diffusers' pipeline in PyTorch eager, in turns in one run: text, loop and VAE.

    python tests/benchmarks/pictures.py                                            # on a CPU
    python tests/benchmarks/pictures.py --dtype bfloat16 --steps 10 50 --batch 8   # on a GPU, and with --batch 1

Needs the parity extra, for a GPU (not yet run on one) also `pip install ".[cuda]"` and PyTorch's CUDA build. The same
random weights, noise, words, guidance and DDIM, on the same device; the pictures are compared too. On a CPU steps are
few, since each takes seconds: what a picture of fifty takes is the first figure and the steps between. Beside them runs
a product of matrices, the device's own rate. Of a dtype below float32 diffusers also decodes in it; we decode in
float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import bench, samplers
from sdjax.checkpoint.export import to_diffusers
from sdjax.config import sd1
from sdjax.hardware import prepare
from sdjax.pipeline import StableDiffusion

WORDS, GUIDANCE, SEED, FIFTY = "a photograph of an astronaut riding a horse", 7.5, 0, 50
OURS, EAGER, PRODUCT = "sdjax", "PyTorch eager (diffusers)", "matrix product"


def diffusers_pipeline(sd: StableDiffusion, device: str, dtype: str) -> Any:
    """The same weights in diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(sd, folder)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, low_cpu_mem_usage=False, torch_dtype=getattr(torch, dtype)
        ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(2, 6), help="two numbers of steps")
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time")
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    given = parser.parse_args()
    prepare()
    with bench.compiling_anew():
        measure(given)


def measure(given: argparse.Namespace) -> None:
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    sd = bench.random_model(sd1(), jnp.dtype(given.dtype))
    peer, side = diffusers_pipeline(sd, device, given.dtype), given.side // sd.config.vae.factor
    keys = samplers.image_keys(SEED, 0, given.batch)
    noise = np.asarray(samplers.noise(keys, 0, (side, side, sd.config.vae.latent_channels)))
    latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy()).to(device, getattr(torch, given.dtype))
    options = {"guidance_scale": GUIDANCE, "height": given.side, "width": given.side}

    def ours(steps: int) -> np.ndarray:
        return sd.txt2img(WORDS, steps=steps, seed=SEED, num_images=given.batch, **options)

    def theirs(steps: int) -> np.ndarray:
        drawn = peer(WORDS, num_inference_steps=steps, latents=latents.clone(), num_images_per_prompt=given.batch,
                     output_type="np", **options)
        return 2 * drawn.images - 1

    few, more = given.steps
    one, other = ours(few), theirs(few)
    difference = float(np.linalg.norm(one - other) / np.linalg.norm(other - other.mean()))
    multiply, of_products = bench.yardstick(given.dtype)
    taken = bench.in_turns({PRODUCT: multiply} | {
        f"{name}, {steps}": partial(draw, steps)
        for steps in (few, more) for name, draw in ((OURS, ours), (EAGER, theirs))
    }, given.rounds)
    rate = of_products / float(np.median(taken.pop(PRODUCT)))
    seconds = {name: {steps: taken[f"{name}, {steps}"] for steps in (few, more)} for name in (OURS, EAGER)}
    rows = []
    for name, found in seconds.items():
        middle = [float(np.median(found[steps])) for steps in (few, more)]
        of_step = (middle[1] - middle[0]) / (more - few)
        share = 2 * given.batch * bench.unet_flops(sd.config.unet, side, side) / of_step / rate
        fifty = middle[0] + (FIFTY - few) * of_step
        rows.append({"name": name, "seconds": found, "of_a_step": of_step, "of_fifty": fifty, "share_of_matmul": share})
        print(f"{name:26} {few} steps {middle[0]:.2f} s, {more} steps {middle[1]:.2f} s; a step {of_step:.3f} s, "
              f"{share:.0%} of the matrix product's rate; so {FIFTY} steps {fifty:.1f} s")
    for steps in (few, more):
        ratio = np.array(seconds[OURS][steps]) / np.array(seconds[EAGER][steps])
        print(f"{steps} steps: ours / PyTorch's {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})")
    print(f"pictures differ by {difference:.1e} of what there is to see")
    if given.out:
        settings = {name: getattr(given, name) for name in ("rounds", "batch", "side", "dtype")}
        settings |= {"matmul_gflop_per_second": rate / 1e9, "difference": difference, **bench.machine()}
        settings |= {name: metadata.version(name) for name in ("torch", "diffusers")}
        given.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
