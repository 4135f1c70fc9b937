"""Loading converted weights, in turns with a plain read of the same files.

    python tests/benchmarks/loading.py               # 4.3 GB of disk and twice that of memory

SD 1.x in float32 with random weights, written by `sdjax.save`, in the system's cache. A plain read takes each file
whole into new memory, as `open(path, "rb").read()` does, and checks nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import sdjax
from sdjax import bench
from sdjax.config import sd1
from sdjax.hardware import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        sdjax.save(bench.random_model(sd1()), model)
        files = sorted(model.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)

        def plain() -> None:
            for file in files:
                file.read_bytes()

        def loaded() -> list:
            sd = sdjax.load(model)
            return [sd.text_encoder.state, sd.vae.state, sd.unet.state]

        taken = bench.in_turns({"plain read": plain, "sdjax.load": loaded}, given.rounds)
    for name, seconds in taken.items():
        middle = float(np.median(seconds))
        print(f"{name:12} {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {size / middle / 1e9:.2f} GB/s")
    ratios = sorted(p / s for p, s in zip(*taken.values()))
    print(f"rate of loading / rate of reading: {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
