"""Checks of lesson 2; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_psnr(answer) -> bool:
    draw = np.random.default_rng(0)
    x = draw.random((8, 8, 3))
    y = x + 0.1 * draw.standard_normal(x.shape)
    error = np.mean((x - y) ** 2)
    found = answer(x, y, 0.0, 1.0)
    if found is ...:
        return report(False, "10 log10 of the range squared over the mean squared error.")
    if np.isclose(found, 10 * np.log10(4 / error)):
        return report(False, "a range of 2 belongs to values from -1 to 1; here it is high - low.")
    if np.isclose(found, 10 * np.log10(error)):
        return report(False, f"found {found:.1f}; the error belongs below the line: better pictures have more.")
    if np.isclose(found, -np.log10(error)):
        return report(False, "a decibel is a tenth: multiply by 10.")
    right = np.isclose(found, -10 * np.log10(error))
    scaled = np.isclose(answer(255 * x, 255 * y, 0.0, 255.0), -10 * np.log10(error))
    return report(bool(right and scaled), f"found {found:.2f}, expected {-10 * np.log10(error):.2f}; and 0 to 255 must "
                  "give the same as 0 to 1.")


def check_kl(answer) -> bool:
    found = answer(0.0, 0.0)
    if found is ...:
        return report(False, "half of mean squared, plus variance, minus 1, minus log-variance.")
    if not np.isclose(found, 0):
        return report(False, f"a standard normal (mean 0, log-variance 0) is at distance 0, found {found}. A variance "
                      "is the exponential of its logarithm.")
    if np.isclose(answer(2.0, 0.0), 4.0):
        return report(False, "the half is missing.")
    right = np.isclose(answer(2.0, 0.0), 2.0) and np.isclose(answer(0.0, np.log(4.0)), 0.5 * (3.0 - np.log(4.0)))
    return report(bool(right), "look again at the variance: it is exp(log_variance), not its square nor its root.")


def check_scale(answer) -> bool:
    latents = 3.0 * np.random.default_rng(0).standard_normal((8, 4, 4, 4)) * np.array([0.5, 1.0, 1.5, 2.0])
    found = answer(latents)
    if found is ...:
        return report(False, "what must latents be multiplied by, so that they vary by 1?")
    if np.ndim(found):
        return report(False, f"found an array {np.shape(found)}, expected one number over all channels together.")
    if np.isclose(found, latents.std()):
        return report(False, "that is the standard deviation; multiplied by it they would vary even more.")
    if np.isclose(found, 1 / latents.var()):
        return report(False, "one over the variance is one square too many.")
    return report(bool(np.isclose((found * latents).std(), 1.0)),
                  f"found {found}; with it the latents have a standard deviation of {(found * latents).std():.3f}.")
