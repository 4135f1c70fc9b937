"""Checks of lesson 5; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report

from sdjax.config import DiffusionConfig
from sdjax.diffusion import alphas


def check_first_noisy_step(answer) -> bool:
    a = alphas(DiffusionConfig())
    found = answer(a)
    if found is ...:
        return report(False, "return a step; np.argmax of a condition is the first place where it holds.")
    return report(found == int(np.argmax(a < 0.5)),
                  f"found {found}. The ratio is below 1 where the noise's share is larger than the picture's.")


def check_ddim_timesteps(answer) -> bool:
    found = answer(50)
    if found is ...:
        return report(False, "return 50 whole numbers that fall from 981 to 1.")
    found = np.asarray(found)
    if len(found) != 50:
        return report(False, f"found {len(found)} steps, expected 50.")
    if found[0] < found[-1]:
        return report(False, "the walk begins at the noisiest step: turn them round.")
    return report(found.tolist() == list(range(981, 0, -20)),
                  f"found {found[0]}, {found[1]}, ..., {found[-1]}. They are k (1000 // S) + 1; is the + 1 there?")


def check_ddim_step(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x0, eps = draw((4, 4)), draw((4, 4))
    x, there = (np.sqrt(a) * x0 + np.sqrt(1 - a) * eps for a in (0.3, 0.8))
    found = answer(x, eps, 0.3, 0.8)
    if found is ...:
        return report(False, "first x0 from x and eps, then x at the other step.")
    if np.allclose(found, x0):
        return report(False, "that is x0 itself; go only as far as a_s.")
    return report(np.allclose(found, there), "x0 is (x - sqrt(1 - a_t) eps) / sqrt(a_t); then mix again with a_s.")
