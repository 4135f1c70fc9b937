"""Checks of lesson 10; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_latent_mask(answer) -> bool:
    mask = np.zeros((16, 24))
    mask[0:9, 1:17] = 1.0  # touches every cell but those of the last column's lower half
    expected = np.array([[0, 1, 1], [0, 1, 1]])
    found = answer(mask)
    if found is ...:
        return report(False, "a slice with a step of 8 takes the first of every 8.")
    found = np.asarray(found, float)
    if found.shape != (2, 3):
        return report(False, f"found shape {found.shape} for a mask of 16 x 24, expected (2, 3).")
    if np.allclose(found, mask.reshape(2, 8, 3, 8).max(axis=(1, 3))) or found.sum() == 6:
        return report(False, "that is every cell that the mask touches; only its first pixel counts.")
    means = mask.reshape(2, 8, 3, 8).mean(axis=(1, 3))
    if np.allclose(found, means) or np.allclose(found, means >= 0.5):
        return report(False, "that is the mean over each cell; only its first pixel counts.")
    if not np.allclose(found, expected):
        return report(False, f"found {found.tolist()}, expected {expected.tolist()}: rows and columns 0, 8, 16.")
    halves = np.asarray(answer(np.full((8, 16), 0.5)), float)
    if not np.allclose(halves, 1):
        return report(False, f"a mask of 0.5 gives {halves[0, 0]:g}, expected 1: cut at a half, which counts as 1.")
    low = np.asarray(answer(np.full((8, 16), 0.4)), float)
    return report(bool(np.allclose(low, 0)), f"a mask of 0.4 gives {low[0, 0]:g}, expected 0.")


def check_put_back(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x, latent, noise = draw((1, 4, 4, 4)), draw((1, 4, 4, 4)), draw((1, 4, 4, 4))
    mask = np.zeros((1, 4, 4, 1))
    mask[:, 1:3, 1:3] = 1
    found = answer(x, latent, noise, mask, 0.3)
    if found is ...:
        return report(False, "mask times x, plus one less mask times the noised latent.")
    found, noisy = np.asarray(found), np.sqrt(0.3) * latent + np.sqrt(0.7) * noise
    if np.allclose(found, mask * noisy + (1 - mask) * x):
        return report(False, "turned round: the mask is 1 where the network paints.")
    if np.allclose(found, mask * x + (1 - mask) * latent):
        return report(False, "the latent is put back clean; the rest of x has noise, 1 - a of its variance.")
    if np.allclose(found, mask * x + (1 - mask) * (0.3 * latent + 0.7 * noise)):
        return report(False, "the shares are of the variance; the weights are their roots.")
    return report(bool(np.allclose(found, mask * x + (1 - mask) * noisy)),
                  "inside it should be x, outside sqrt(a) latent + sqrt(1 - a) noise.")


def check_whole_cells(answer) -> bool:
    mask = np.zeros((16, 24))
    mask[3, 9:15] = 1.0  # a scratch that no first pixel of a cell belongs to
    found = answer(mask)
    if found is ...:
        return report(False, "reshape to [H / 8, 8, W / 8, 8]; the largest of each cell; then np.kron or np.repeat.")
    found = np.asarray(found, float)
    if found.shape != mask.shape:
        return report(False, f"found shape {found.shape}, expected that of the mask, {mask.shape}.")
    if not found[::8, ::8].any():
        return report(False, "the scratch still reaches no cell; is it the largest of each cell that you take?")
    if np.any(found[:, 16:]) or np.any(found[8:]):
        return report(False, "cells are 1 that the mask does not touch.")
    return report(bool(found[:8, 8:16].all() and not found[:, :8].any()),
                  "the second cell of the first row should be 1 in all of its pixels, and no other.")


def check_nine_channels(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x, hollow, mask = draw((2, 4, 4, 4)), draw((2, 4, 4, 4)), np.ones((2, 4, 4, 1))
    found = answer(x, mask, hollow)
    if found is ...:
        return report(False, "concatenate along the channels, which are the last axis here.")
    found = np.asarray(found)
    if found.shape != (2, 4, 4, 9):
        return report(False, f"found shape {found.shape}, expected (2, 4, 4, 9).")
    if np.allclose(found, np.concatenate([x, hollow, mask], axis=-1)):
        return report(False, "the mask comes before the picture with a hole: the weights know them by their place.")
    return report(bool(np.allclose(found, np.concatenate([x, mask, hollow], axis=-1))),
                  "the order is noisy latent, mask, picture with a hole.")
