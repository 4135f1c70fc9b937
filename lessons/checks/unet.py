"""Checks of lesson 6; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report

from sdjax.config import sd1
from sdjax.unet import rows, timestep_embedding


def check_sides(answer) -> bool:
    found = answer(512, 4)
    if found is ...:
        return report(False, "return a list with the side of the map at each level, the finest first.")
    found = list(found)
    if found == [512, 256, 128, 64]:
        return report(False, "the UNet sees latents; the VAE has already made the picture 8 times smaller.")
    if found == [32, 16, 8, 4]:
        return report(False, "the first level works at the size of the latent; it is halved after it.")
    if found != [64, 32, 16, 8]:
        return report(False, f"found {found} for 512 pixels and 4 levels, expected [64, 32, 16, 8].")
    odd = list(answer(520, 4))
    if any(side != int(side) for side in odd):
        return report(False, f"found {odd} for 520 pixels. There is no half of a place.")
    return report(odd == [65, 33, 17, 9], f"found {odd} for 520 pixels. A side that is odd is rounded up.")


def check_waves_of(answer) -> bool:
    found = answer(37, 8)
    if found is ...:
        return report(False, "return 8 numbers for t = 37 and width 8: 4 frequencies, a cosine and a sine of each.")
    found = np.asarray(found, np.float64)
    right = np.asarray(timestep_embedding(np.array([37]), 8))[0]
    if found.shape != (8,):
        return report(False, f"found the shape {found.shape}, expected (8,): half the width is cosines, half sines.")
    if np.allclose(found, np.roll(right, 4), atol=1e-4):
        return report(False, "sines first is the order of the transformer's paper; here cosines come first.")
    if not np.allclose(found, right, atol=1e-4) and np.allclose(np.sort(found), np.sort(right), atol=1e-4):
        return report(False, "the right numbers in another order: all cosines, then all sines.")
    frequencies = 10000.0 ** (-np.arange(4) / 3)
    if np.allclose(found, np.concatenate([np.cos(37 * frequencies), np.sin(37 * frequencies)]), atol=1e-4):
        return report(False, "the slowest frequency does not quite reach 1 / 10000: divide by half, not by half - 1.")
    return report(np.allclose(found, right, atol=1e-4), "the frequencies are 10000^(-i / half) for i = 0 ... half - 1, "
                  "with half = width / 2.")


def check_skip_widths(answer) -> bool:
    c = sd1().unet
    found = answer(c.channels, c.blocks)
    if found is ...:
        return report(False, "return a list; first collect what is kept on the way down, then turn it round.")
    found = list(found)
    # What a block going up takes, less what comes to it from below.
    right, below = [], c.channels[-1]
    for row in rows(c)[len(c.channels) + 1 :]:
        for entry in row.inputs:
            right.append(entry - below)
            below = row.outputs
    if found == right[::-1]:
        return report(False, "this is the order in which they were kept. Which is used first?")
    if len(found) != len(right):
        return report(False, f"found {len(found)} skips for SD 1.x, expected {len(right)}: each level keeps its input "
                      "and what each of its blocks gives.")
    if found != right:
        return report(False, f"found {found}. The input of a level has the width of the level above it.")
    other = list(answer((64, 192, 128), 1))
    return report(other == [128, 192, 192, 64, 64, 64],
                  f"right for SD 1.x; for channels of 64, 192, 128 and one block a level found {other}.")
