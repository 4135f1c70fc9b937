"""Checks of lesson 11; each says what to think about where an answer is wrong."""

from __future__ import annotations

import math

import numpy as np
from lesson import report

from sdjax.config import x4_upscaler
from sdjax.diffusion import alphas


def check_seven_channels(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x, small, noise = draw((1, 4, 4, 4)), draw((1, 4, 4, 3)), draw((1, 4, 4, 3))
    a = alphas(x4_upscaler().low_res)
    found = answer(x, small, noise, a, 100)
    if found is ...:
        return report(False, "noise the small picture by the formula of lesson 5, then concatenate on the last axis.")
    found = np.asarray(found)
    if found.shape != (1, 4, 4, 7):
        return report(False, f"found shape {found.shape}, expected (1, 4, 4, 7).")
    noisy = np.sqrt(a[100]) * small + np.sqrt(1 - a[100]) * noise
    if np.allclose(found, np.concatenate([noisy, x], axis=-1)):
        return report(False, "the latent comes first: the weights know the channels by their place.")
    if not np.allclose(found[..., :4], x):
        return report(False, "the latent is noisy already; it goes in as it is.")
    if np.allclose(found[..., 4:], small):
        return report(False, "the small picture is still clean.")
    if np.allclose(found[..., 4:], a[100] * small + (1 - a[100]) * noise):
        return report(False, "the shares are of the variance; the weights are their roots.")
    return report(bool(np.allclose(found[..., 4:], noisy)), "sqrt(a) small + sqrt(1 - a) noise, with a = a[level].")


def check_tile_starts(answer) -> bool:
    for length, side, overlap in ((60, 32, 4), (64, 32, 4), (100, 32, 8), (32, 32, 4)):
        found = answer(length, side, overlap)
        if found is ...:
            return report(False, "how many are needed? Each after the first adds side - overlap at most. Then spread "
                          "them evenly.")
        asked = f"length {length}, side {side}, overlap {overlap}: found {list(found)}"
        starts = [int(s) for s in found]
        if starts != list(found):
            return report(False, f"{asked}; a tile begins at a whole pixel.")
        if length == side:
            return report(starts == [0], f"{asked}; one tile covers it.")
        if starts[0] != 0:
            return report(False, f"{asked}; the first pixels are not covered.")
        if starts[-1] + side > length:
            return report(False, f"{asked}; the last tile sticks out: it can begin at {length - side} at the latest.")
        if starts[-1] + side < length:
            return report(False, f"{asked}; the last pixels are not covered.")
        shared = min(a + side - b for a, b in zip(starts, starts[1:]))
        if shared < overlap:
            return report(False, f"{asked}; two neighbours share only {shared} pixels.")
        fewest = math.ceil((length - overlap) / (side - overlap))
        if len(starts) > fewest:
            return report(False, f"{asked}; {fewest} tiles would do.")
    return report(True, "")


def check_joined(answer) -> bool:
    left, right = np.zeros((2, 8, 3)), np.ones((2, 8, 3))
    found = answer(left, right, 4)
    if found is ...:
        return report(False, "left without its overlap, the overlap mixed with weights between 0 and 1, the rest.")
    found = np.asarray(found, float)
    if found.shape != (2, 12, 3):
        return report(False, f"found shape {found.shape} for two tiles of 8 with 4 in common, expected (2, 12, 3).")
    row = found[0, :, 0]
    if not (np.allclose(row[:4], 0) and np.allclose(row[8:], 1)):
        return report(False, f"from a tile of 0 to one of 1 found {row.round(2).tolist()}; outside the overlap each "
                      "tile stands alone.")
    if np.allclose(np.diff(row[4:8]), 0):
        return report(False, f"the overlap is {row[4:8].round(2).tolist()}; that is a step, or a mean, not a slope.")
    if np.any(np.diff(row) < 0):
        return report(False, f"found {row.round(2).tolist()}: turned round, the left tile should fade out.")
    if not np.allclose(np.diff(row[4:8], 2), 0) or row[4] > 0.25 or row[7] < 0.75:
        return report(False, f"the overlap is {row[4:8].round(2).tolist()}; it should rise evenly, from nearly 0 to "
                      "nearly 1.")
    whole = np.broadcast_to(np.arange(12.0)[None, :, None], (2, 12, 3))
    return report(np.allclose(answer(whole[:, :8], whole[:, 4:], 4), whole), "two tiles cut from one picture should "
                  "give it back; do the last columns of the left meet the first of the right?")
