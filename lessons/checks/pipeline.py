"""Checks of lesson 9; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report

from sdjax.samplers import leading


def check_visited(answer) -> bool:
    found = answer(20, 0.6)
    if found is ...:
        return report(False, "samplers.leading(steps) has all of them, the noisiest first; which are left out?")
    found = np.asarray(found).tolist()
    whole = leading(20).tolist()
    if found == whole:
        return report(False, "those are all the steps; at strength 0.6 the walk begins further down.")
    if found == whole[:12]:
        return report(False, "the right number, but those are the noisy ones: the walk ends at a picture, at t = 1.")
    if found != whole[8:]:
        return report(False, f"found {len(found)} steps, expected the last int(0.6 * 20) = 12 of the 20.")
    nothing = answer(20, 0.0)
    return report(len(nothing) == 0,
                  f"at strength 0 found {len(nothing)} steps, expected none; in Python steps[-0:] is everything.")


def check_euler_step(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x0, eps = draw((4, 4)), draw((4, 4))
    x, there = (np.sqrt(a) * x0 + np.sqrt(1 - a) * eps for a in (0.3, 0.8))
    found = answer(x, eps, 0.3, 0.8)
    if found is ...:
        return report(False, "rescale x by 1 / sqrt(a), add (sigma_next - sigma) eps, and scale back.")
    if np.allclose(found, there / np.sqrt(0.8)):
        return report(False, "right, but still rescaled: multiply by sqrt(a_next) at the end.")
    return report(np.allclose(found, there),
                  "sigma is sqrt((1 - a) / a), and x / sqrt(a) moves by (sigma_next - sigma) eps, which is downwards.")


def check_mix(answer) -> bool:
    first, second = np.random.default_rng(0).standard_normal((2, 64, 64))
    half = answer(first, second, 0.5)
    if half is ...:
        return report(False, "begin with (1 - w) first + w second, and look at its variance.")
    if not (np.allclose(answer(first, second, 0.0), first) and np.allclose(answer(first, second, 1.0), second)):
        return report(False, "at w = 0 it should be the first noise and at w = 1 the second.")
    variances = [float(np.var(answer(first, second, w))) for w in (0.25, 0.5, 0.75)]
    return report(all(abs(v - 1) < 0.1 for v in variances),
                  f"the variance at w = 1/4, 1/2, 3/4 is {', '.join(f'{v:.2f}' for v in variances)}. Independent "
                  "noises with weights p and q have the variance p^2 + q^2; divide by its root.")
