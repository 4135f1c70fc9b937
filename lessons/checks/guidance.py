"""Checks of lesson 8; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report

draw = np.random.default_rng(0).standard_normal
U, C = draw((4, 4)), draw((4, 4))


def check_guide(answer) -> bool:
    found = answer(U, C, 3.0)
    if found is ...:
        return report(False, "start at the prediction without text and go `scale` times the difference.")
    found = np.asarray(found)
    if np.allclose(found, C + 3.0 * (U - C)):
        return report(False, "this goes the other way, away from the text.")
    if np.allclose(found, C + 3.0 * (C - U)):
        return report(False, "this is the paper's form, in which 0 means no guidance; here 1 does. Start at the other "
                      "prediction.")
    if not np.allclose(answer(U, C, 1.0), C):
        return report(False, "at scale 1 it should be the prediction with text, unchanged.")
    return report(np.allclose(found, U + 3.0 * (C - U)), "u + s (c - u).")


def check_leave_out(answer) -> bool:
    captions = [f"caption {i}" for i in range(5000)]
    before = list(captions)
    found = answer(captions, 0.2, np.random.default_rng(0))
    if found is ...:
        return report(False, 'return a list as long as the first, with "" in some places.')
    if captions != before:
        return report(False, "this changes the list that it was given; the next epoch needs those captions. Make a new "
                      "one.")
    if len(found) != len(captions):
        return report(False, 'the picture stays, so its place must stay: put "" there.')
    if any(text not in ("", caption) for text, caption in zip(found, captions)):
        return report(False, "each caption is either itself or empty.")
    empty = np.array([text == "" for text in found])
    if abs(empty.mean() - 0.8) < 0.05:
        return report(False, "this leaves out 80 % where 20 % were asked for: turn the comparison round.")
    if empty[: int(empty.sum())].all() or not np.any(empty[2500:]):
        return report(False, "these stand all at the beginning; every caption should have the same chance.")
    return report(abs(empty.mean() - 0.2) < 0.03, f"{empty.mean():.0%} were left out where 20 % were asked for.")


def check_guide_rescaled(answer) -> bool:
    found = answer(U, C, 7.5)
    if found is ...:
        return report(False, "guide as before, then multiply by the ratio of two spreads.")
    found = np.asarray(found)
    guided = U + 7.5 * (C - U)
    if np.allclose(found, guided):
        return report(False, "that is guidance alone; its spread is not yet that of the prediction with text.")
    if np.allclose(found, guided / guided.std()):
        return report(False, "now the spread is 1; it should be that of the prediction with text.")
    if np.allclose(found, guided * U.std() / guided.std()):
        return report(False, "the spread to restore is that of the prediction *with* text.")
    if np.allclose(found, guided * guided.std() / C.std()):
        return report(False, "the ratio is upside down: this makes a large spread larger.")
    return report(np.allclose(found, guided * C.std() / guided.std()), "guided times std(with text) / std(guided).")
