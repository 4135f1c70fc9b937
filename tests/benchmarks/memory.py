"""How much memory large pictures take, above the weights and everything loaded before: decoded, encoded, upscaled.

    python tests/benchmarks/memory.py [MODEL WAY]      (MODEL and WAY as in BOUNDS; all in turn without)

The small models that ship, and released architectures with random weights, float32 on the CPU, each in a process of its
own, whose largest resident size the system keeps. Fails where one takes more than its bound, which README.md has.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SIDES = {"decode": 1024, "encode": 1024, "upscale": 800}  # of the large picture, in pixels
BOUNDS = {  # bytes
    ("tiny", "decode"): 0.5e9, ("tiny", "encode"): 0.5e9, ("tiny-upscaler", "upscale"): 1.0e9,
    ("sd1", "decode"): 2.0e9, ("sd1", "encode"): 2.0e9, ("x4-upscaler", "upscale"): 2.5e9,
}


def held() -> int:
    """Bytes that this process holds now; Linux alone tells."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, way: str) -> int:
    """How many bytes more this process held at most while it made the large picture, or took it in."""
    import jax
    import numpy as np

    import sdjax
    from sdjax import bench
    from sdjax.config import PRESETS
    from sdjax.hardware import prepare

    prepare()
    shipped = Path("weights", name)
    sd = sdjax.load(shipped) if shipped.exists() else bench.random_model(PRESETS[name]())
    jax.block_until_ready((sd.text_encoder.state, sd.unet.state, sd.vae.state))
    side, draw = SIDES[way], np.random.default_rng(0)
    f = 4 if way == "upscale" else sd.config.vae.factor
    picture = lambda side: draw.uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    given = draw.standard_normal((1, side // f, side // f, 4), np.float32) if way == "decode" else picture(
        side // f if way == "upscale" else side)
    before = held()
    if way == "upscale":
        sd.upscale("", given, steps=1, guidance_scale=1.0)  # in tiles; no step takes more than the first
    else:
        (sd.to_pictures if way == "decode" else sd.to_posterior)(given)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main(asked: list[str]) -> None:
    if asked and tuple(asked) not in BOUNDS:
        sys.exit(f"memory: found {' '.join(asked)}, expected one of {', '.join(map(' '.join, BOUNDS))}")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what compiling holds counts too
    too_much = []
    for (name, way), bound in BOUNDS.items():
        if asked and asked != [name, way]:
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            more = alone.submit(measure, name, way).result()
        print(f"{name:13} {way}, {SIDES[way]} px: {more / 1e9:.2f} GB, at most {bound / 1e9:.1f}", flush=True)
        too_much += [f"{name} {way}"] if more > bound else []
    sys.exit(f"memory: more than its bound: {', '.join(too_much)}" if too_much else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
