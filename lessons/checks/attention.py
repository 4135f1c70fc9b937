"""Checks of lesson 7; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_attend(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    q, k, v = draw((5, 4)), draw((7, 4)), draw((7, 3))
    found = answer(q, k, v)
    if found is ...:
        return report(False, "three steps: every query with every key, a softmax over the keys, a mean of the values.")
    found = np.asarray(found)

    def attention(logits, axis):
        e = np.exp(logits)
        return e / e.sum(axis, keepdims=True) @ v

    if found.shape != (5, 3):
        return report(False, f"found the shape {found.shape}, expected (5, 3): an answer for each query, of the width "
                      "of the values.")
    if np.allclose(found, attention(q @ k.T, 1)):
        return report(False, "nearly: the products grow with d; divide them by sqrt(d) before the softmax.")
    if np.allclose(found, attention(q @ k.T / 2, 0)):
        return report(False, "the shares of one *query* sum to 1, so the softmax runs over the keys.")
    if np.allclose(found, attention(q @ k.T / 4, 1)):
        return report(False, "divide by the root of d, not by d.")
    return report(np.allclose(found, attention(q @ k.T / 2, 1)), "softmax(q k^T / sqrt(d)) v, over the keys.")


def check_split_heads(answer) -> bool:
    x = np.arange(24).reshape(3, 8)
    found = answer(x, 2)
    if found is ...:
        return report(False, "return an array [heads, n, c / heads]; reshape, then move an axis.")
    found = np.asarray(found)
    if found.shape != (2, 3, 4):
        return report(False, f"found the shape {found.shape} for 3 rows of 8 channels and 2 heads, expected (2, 3, 4).")
    if np.array_equal(found, x.reshape(2, 3, 4)):
        return report(False, "a reshape alone keeps the order of memory, and mixes rows into heads: first "
                      "[n, heads, d], then move the axis.")
    if np.array_equal(found, np.stack([x[:, ::2], x[:, 1::2]])):
        return report(False, "a head takes channels that stand side by side, not every second one.")
    return report(np.array_equal(found, np.stack([x[:, :4], x[:, 4:]])),
                  "head 0 takes the first c / heads channels of every row.")


def check_shares_made(answer) -> bool:
    found = answer([8, 4], [4, 6], 77)
    if found is ...:
        return report(False, "return a number: for each map, heads times places times what each place looks at.")
    right = 4 * 64 * (64 + 77) + 6 * 16 * (16 + 77)
    if found == 4 * 64 * 77 + 6 * 16 * 77:
        return report(False, "that is cross-attention alone; in self-attention every place looks at every place.")
    if found == 4 * 8 * (8 + 77) + 6 * 4 * (4 + 77):
        return report(False, "a map of side s has s * s places.")
    if found == 64 * (64 + 77) + 16 * (16 + 77):
        return report(False, "every head makes shares of its own.")
    if found != right:
        return report(False, f"found {found}, expected {right} for maps of 8 x 8 and 4 x 4 with 4 and 6 heads.")
    return report(answer([2], [3], 10) == 3 * 4 * (4 + 10), "right for 77 tokens; `tokens` may be another number.")
