"""A UNet step of SD 1.5 here and in PyTorch eager with diffusers, in turns: `python tests/benchmarks/peers.py`.

Needs the parity extra (torch, diffusers). Random weights, float32, latents of 64 x 64, batch 2, all cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from sdjax import bench
from sdjax.config import sd1
from sdjax.hardware import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    given = parser.parse_args()
    prepare()
    c = sd1().unet
    peer = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=c.context_width, attention_head_dim=c.heads[0],
        block_out_channels=c.channels,
    ).eval()
    x, t = torch.randn(2, 4, given.side, given.side), torch.tensor([500, 500])
    text = torch.randn(2, 77, c.context_width)

    def step() -> None:
        with torch.inference_mode():
            peer(x, t, text)

    report = bench.bench(
        bench.random_model(sd1()), size=(8 * given.side, 8 * given.side), steps=1, rounds=given.rounds,
        others={"PyTorch eager (diffusers)": step},
    )
    report["settings"]["torch"] = torch.__version__
    print(bench.table(report))
    ours, theirs = (row["seconds"][0] for row in report["rows"][1:3])
    print(f"ours takes {ours / theirs:.2f} times as long, by medians")
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
