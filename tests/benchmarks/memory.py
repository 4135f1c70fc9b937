"""How much memory decoding and encoding of a 1024 x 1024 picture takes, above weights and everything loaded before.

    python tests/benchmarks/memory.py

The small VAE that ships, and that of SD 1.x with random weights, float32 on the CPU, each in a process of its own,
whose largest resident size the system keeps. Fails where one takes more than its bound in BOUNDS, which README states.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

SIDE = 1024
BOUNDS = {"tiny": 0.5e9, "sd1": 2.0e9}  # bytes


def held() -> int:
    """Bytes that this process holds now; Linux alone tells."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, way: str) -> None:
    """Prints how many bytes more the process held at most while it decoded or encoded."""
    import jax
    import numpy as np

    import sdjax
    from sdjax import bench
    from sdjax.config import sd1
    from sdjax.hardware import prepare

    prepare()
    sd = sdjax.load("weights/tiny") if name == "tiny" else bench.random_model(sd1())
    jax.block_until_ready(sd.vae.state)
    f, draw = sd.config.vae.factor, np.random.default_rng(0)
    latents = draw.standard_normal((1, SIDE // f, SIDE // f, 4), np.float32)
    picture = draw.uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    before = held()
    sd.to_pictures(latents) if way == "decode" else sd.to_posterior(picture)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def main() -> None:
    if len(sys.argv) == 3:
        return measure(*sys.argv[1:])
    too_much = []
    for name, bound in BOUNDS.items():
        for way in ("decode", "encode"):
            asked = [sys.executable, __file__, name, way]
            # Without a cache of compiled programs: what compiling holds counts too.
            environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
            done = subprocess.run(asked, env=environment, capture_output=True, check=True)
            more = int(done.stdout.split()[-1])
            print(f"{name:5} {way}: {more / 1e9:.2f} GB, at most {bound / 1e9:.1f}", flush=True)
            too_much += [name] if more > bound else []
    sys.exit("memory: a VAE above took more than its bound" if too_much else 0)


if __name__ == "__main__":
    main()
