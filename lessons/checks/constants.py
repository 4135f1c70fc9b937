"""Checks of lesson 15; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_normalise(answer) -> bool:
    x, eps = np.array([1.0, 2.0, 3.0, 6.0]) * 1e-3, 1e-5
    found = answer(x, eps)
    if found is ...:
        return report(False, "(x - mean) over a root; the eps keeps the root from being 0.")
    centred, variance = x - x.mean(), x.var()
    if np.allclose(found, centred / (np.sqrt(variance) + eps)):
        return report(False, "eps stands outside the root; it is added to the variance.")
    if np.allclose(found, centred / np.sqrt(x.var(ddof=1) + eps)):
        return report(False, "the variance of a norm divides by n, not by n - 1.")
    if np.allclose(found, centred / np.sqrt(variance + eps**2)):
        return report(False, "eps is added as it is, not squared.")
    return report(np.allclose(found, centred / np.sqrt(variance + eps)), "it is (x - mean) / sqrt(variance + eps).")


def check_columns_seen(answer) -> bool:
    found = answer(0, 0)
    if found is ...:
        return report(False, "three columns, the first of them at stride * i - left.")
    found = {case: list(answer(*case)) for case in ((0, 0), (0, 1), (5, 0), (5, 1))}
    if found[0, 0] != [0, 1, 2]:
        return report(False, f"without padding the first output sees columns 0, 1, 2; found {found[0, 0]}.")
    if found[0, 1] != [-1, 0, 1]:
        return report(False, f"with a column of padding on the left it sees -1, 0, 1; found {found[0, 1]}.")
    return report(found[5, 0] == [10, 11, 12] and found[5, 1] == [9, 10, 11],
                  f"output column 5 begins two input columns after column 4; found {found[5, 0]} for left 0.")


def check_row_of(answer) -> bool:
    found = answer([7, 8], 90, 91, 0, 6)
    if found is ...:
        return report(False, "a list of `room` ids; at most room - 2 of them are words.")
    found = list(found)
    if len(found) != 6:
        return report(False, f"found {len(found)} ids, expected 6.")
    if found != [90, 7, 8, 91, 0, 0]:
        return report(False, f"found {found}, expected [90, 7, 8, 91, 0, 0]: start, words, end, padding.")
    cut = list(answer([1, 2, 3, 4, 5, 6, 7], 90, 91, 0, 6))
    if cut[-1] != 91:
        return report(False, f"a long prompt gives {cut}: its end token was cut off with the words.")
    return report(cut == [90, 1, 2, 3, 4, 91], f"a long prompt gives {cut}; start and end take two of the six places.")
