"""Checks of lesson 14; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_drop(answer) -> bool:
    captions = [f"caption {i}" for i in range(4000)]
    found = answer(list(captions), 0.1, np.random.default_rng(0))
    if found is ...:
        return report(False, 'a list as long as the captions, with "" in the place of some.')
    if len(found) != len(captions):
        return report(False, f"{len(captions)} captions became {len(found)}; put \"\" in place of a text.")
    if any(said not in ("", caption) for said, caption in zip(found, captions)):
        return report(False, "what is kept should stand where it stood, beside its own picture.")
    dropped = sum(said == "" for said in found)
    if dropped in (0, len(captions)):
        return report(False, f"{dropped} of {len(captions)} left out; draw a number for each caption, not for all.")
    if not 300 < dropped < 500:
        return report(False, f"{dropped} of {len(captions)} were left out, expected about a tenth.")
    half = sum(said == "" for said in answer(list(captions), 0.5, np.random.default_rng(0)))
    return report(1800 < half < 2200, f"with a share of a half {half} of {len(captions)} were left out.")


def check_averaged(answer) -> bool:
    found = answer(1.0, 3.0, 0.9)
    if found is ...:
        return report(False, "most of the old average and a little of the new weights, in shares that sum to 1.")
    if np.isclose(found, 2.8):
        return report(False, "the other way round: `keep` is the share of the average.")
    if np.isclose(found, 0.9 + 3.0):
        return report(False, "the new weights also have a share, 1 - keep; else the average grows without end.")
    return report(bool(np.isclose(found, 1.2)), f"from 1, with new weights 3 and keep 0.9, it is 1.2; found {found}.")


def check_v_loss(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    x0, eps = draw((3, 4, 4, 2)), draw((3, 4, 4, 2))
    a, t = np.array([0.9, 0.5, 0.1]), np.array([100, 400, 800])
    column = a[:, None, None, None]
    x, v = (np.sqrt(column) * p + np.sqrt(1 - column) * q for p, q in ((x0, eps), (eps, -x0)))
    seen = []

    def perfect(given, when):
        seen.append((given, when))
        return v

    try:
        found = answer(perfect, x0, eps, t, a)
    except ValueError as error:
        return report(False, f"{error}. Make `a` [b, 1, 1, 1], so that each picture gets its own share.")
    if found is ...:
        return report(False, "noise the pictures, ask the network, and compare with v.")
    if not seen:
        return report(False, "the network was never asked.")
    if np.allclose(seen[0][0], x0):
        return report(False, "the network saw the clean pictures; noise them first.")
    if not np.allclose(seen[0][0], x):
        return report(False, "the network should see sqrt(a) x0 + sqrt(1 - a) eps.")
    if not np.array_equal(seen[0][1], t):
        return report(False, "the network is told the timesteps `t`, not the shares `a`.")
    if not np.isclose(found, 0.0):
        return report(False, "a network that answers v exactly has the loss 0; v is sqrt(a) eps - sqrt(1 - a) x0.")
    blind = answer(lambda x, t: np.zeros_like(x), x0, eps, t, a)
    return report(bool(np.isclose(blind, np.mean(v**2))),
                  f"a network that answers 0 has the mean of v^2 as its loss, {np.mean(v**2):.3f}; found {blind:.3f}.")
