"""3x3 convolutions of SD 1.5's shapes, direct and by Winograd's way, in turns.

    python tests/benchmarks/convolutions.py

Float32, all cores, batch 2 in the UNet and 1 in the VAE. It says where `paths.winograd` should take which.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from sdjax import paths
from sdjax.bench import in_turns
from sdjax.convolution import direct, winograd
from sdjax.hardware import prepare

# (pictures, side, channels in, channels out)
SHAPES = (
    (2, 64, 320, 320), (2, 64, 640, 320), (2, 64, 960, 320), (2, 64, 640, 640), (2, 32, 640, 640), (2, 32, 1920, 640),
    (2, 16, 1280, 1280), (2, 8, 1280, 1280), (1, 64, 512, 512), (1, 128, 512, 512), (1, 256, 256, 256),
    (1, 512, 128, 128),
)


def main() -> None:
    prepare()
    draw = np.random.default_rng(0)
    for b, side, inputs, outputs in SHAPES:
        x = draw.standard_normal((b, side, side, inputs), np.float32)
        kernel = 0.05 * draw.standard_normal((3, 3, inputs, outputs), np.float32)
        x, kernel = jax.device_put((x, kernel))
        ways = {name: partial(jax.jit(way), x, kernel) for name, way in (("direct", direct), ("winograd", winograd))}
        exact, tiled = (np.asarray(way()) for way in ways.values())
        taken = in_turns(ways, 5)
        middle = {name: float(np.median(seconds)) for name, seconds in taken.items()}
        ratios = sorted(w / d for w, d in zip(taken["winograd"], taken["direct"]))
        chosen = "winograd" if paths.winograd(x.shape, kernel.shape, x.dtype) else "direct"
        print(f"{b} x {side:3} x {side:3}, {inputs:4} to {outputs:4}: direct {1000 * middle['direct']:6.1f} ms, "
              f"winograd {middle['winograd'] / middle['direct']:.2f} of it ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
              f"differs by {np.abs(tiled - exact).max() / np.abs(exact).max():.0e}; taken: {chosen}", flush=True)


if __name__ == "__main__":
    main()
