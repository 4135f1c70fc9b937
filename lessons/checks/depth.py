"""Checks of lesson 12; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_fifth_channel(answer) -> bool:
    depth = np.array([[0.0, 2.0], [3.0, 4.0]])
    found = answer(depth)
    if found is ...:
        return report(False, "first to [0, 1] by the smallest and the largest, then to [-1, 1].")
    found = np.asarray(found)
    if np.allclose(found, depth / 4):
        return report(False, "that is from 0 to 1; the network was trained on -1 to 1.")
    if np.allclose(found, 1 - depth / 2):
        return report(False, "turned round: inverse depth is largest where it is nearest, and that should be 1.")
    if not np.allclose(found, depth / 2 - 1) and np.allclose(found, depth / 2 - 1, atol=2e-3):
        return report(False, "nearly: what is added below the line keeps the nearest from being 1; ask instead whether "
                      "the map is flat.")
    if not np.allclose(found, depth / 2 - 1):
        return report(False, f"found {found.tolist()}, expected {(depth / 2 - 1).tolist()}.")
    if not np.allclose(answer(5 * depth + 3), found):
        return report(False, "another unit and another zero should make no difference; is the smallest taken away?")
    with np.errstate(all="ignore"):
        flat = np.asarray(answer(np.full((2, 2), 7.0)))
    if not np.isfinite(flat).all():
        return report(False, "a flat map gives 0 / 0; ask first whether largest and smallest differ.")
    return report(bool(np.allclose(flat, -1)), f"a flat map gives {flat[0, 0]:g}, expected -1 everywhere.")


def check_unit(answer) -> bool:
    draw = np.random.default_rng(0)
    found = draw.random((16, 16))
    true = 0.25 * found + 0.05 + 0.01 * draw.standard_normal(found.shape)
    got = answer(found, true)
    if got is ...:
        return report(False, "np.polyfit(x, y, 1) fits a straight line, or np.linalg.lstsq with a column of ones.")
    got = np.asarray(got, float)
    if got.shape != (2,):
        return report(False, f"found {got.shape}, expected two numbers, scale and shift.")
    right = np.polyfit(found.ravel(), true.ravel(), 1)
    if np.allclose(got, right[::-1]):
        return report(False, "the two are in the other order: scale first.")
    if np.allclose(got, np.polyfit(true.ravel(), found.ravel(), 1)):
        return report(False, "that line leads from true to found; we want to go the other way.")
    if np.isclose(got[1], 0):
        return report(False, "the shift is 0: a line through the origin is not enough, MiDaS has no zero either.")
    return report(bool(np.allclose(got, right, atol=1e-6)),
                  f"found {got.round(3).tolist()}, expected {right.round(3).tolist()}.")


def check_token_count(answer) -> bool:
    found = answer(384, 384)
    if found is ...:
        return report(False, "one token for each pixel of stage 2, which is a 16th of the picture each way.")
    if found == 24 * 24:
        return report(False, "nearly: there is one that stands for no place.")
    if found == 1 + 12 * 12:
        return report(False, "32 is the size of the coarsest map of the decoder; tokens are made before that, at 16.")
    if found != 577:
        return report(False, f"found {found} for 384 x 384, expected 577.")
    return report(answer(384, 512) == 1 + 24 * 32, "right for a square; try 384 x 512, which has 24 x 32 places.")


def check_ground_plane(answer) -> bool:
    found = answer(9, 4, 2.0)
    if found is ...:
        return report(False, "a value for each row, by np.arange(size); then the same in every column.")
    found = np.asarray(found)
    if found.shape != (9, 9):
        return report(False, f"found shape {found.shape}, expected (9, 9).")
    if not np.allclose(found, found[:, :1]):
        return report(False, "the columns differ; is it the row that counts?")
    if found.min() < 0:
        return report(False, "above the horizon the line goes below 0; there is sky, which is 0.")
    expected = np.maximum(np.arange(9) - 4, 0) / 4 * 2.0
    if np.allclose(found[:, 0], expected[::-1]):
        return report(False, "upside down: row 0 is the top of a picture.")
    return report(bool(np.allclose(found[:, 0], expected)),
                  f"the rows are {found[:, 0].round(2).tolist()}, expected {expected.tolist()}.")
