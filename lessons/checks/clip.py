"""Checks of lesson 4; each says what to think about where an answer is wrong."""

from __future__ import annotations

import numpy as np
from lesson import report


def check_best_text(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    texts = draw((5, 8))
    texts[2] *= 100.0  # long, but that says nothing about what it means
    right = [4, 0, 3, 1]
    pictures = texts[right] + 0.1 * draw((4, 8))
    found = answer(pictures, texts)
    if found is ...:
        return report(False, "return a whole number for each picture; np.argmax finds the largest of a row.")
    found = np.asarray(found)
    if found.shape != (4,):
        return report(False, f"found the shape {found.shape} for 4 pictures and 5 texts, expected (4,): a text for "
                      "each picture, not the other way round.")
    if found.tolist() == np.argmax(pictures @ texts.T, axis=1).tolist():
        return report(False, "a long vector wins every product. Bring both to length 1 first.")
    return report(found.tolist() == right, f"found {found.tolist()}, expected {right}. The largest cosine fits best.")


def check_sentence_rows(answer) -> bool:
    ids = np.array([[7, 1, 2, 9, 9, 9], [7, 1, 2, 3, 4, 9]])
    states = np.arange(2 * 6 * 3).reshape(2, 6, 3).astype(float)
    found = answer(states, ids, 9)
    if found is ...:
        return report(False, "return a row for each sentence. At which place does a sentence end?")
    found = np.asarray(found)
    if found.shape != (2, 3):
        return report(False, f"found the shape {found.shape}, expected (2, 3). The sentences end at different places: "
                      "index both axes at once.")
    if np.array_equal(found, states[:, -1]):
        return report(False, "that is the last place, which is padding where a sentence is short.")
    return report(np.array_equal(found, states[[0, 1], [3, 5]]),
                  "the first end token closes the sentence; what follows is padding. np.argmax of ids == end_id finds "
                  "the first.")


def check_short_memory(answer) -> bool:
    found = answer(5, 2)
    if found is ...:
        return report(False, "return n by n values, True where row i may look at column j.")
    found = np.asarray(found).astype(bool)
    i, j = np.indices((5, 5))
    if found.shape == (5, 5) and np.array_equal(found, j <= i):
        return report(False, "that is the whole past; the memory reaches back only so far.")
    if found.shape == (5, 5) and np.array_equal(found, (j <= i) & (i - j <= 2)):
        return report(False, "one too many: the token itself counts as one of `reach`.")
    if found.shape == (5, 5) and np.array_equal(found, np.abs(i - j) < 2):
        return report(False, "this also looks ahead, at what follows.")
    return report(found.shape == (5, 5) and np.array_equal(found, (j <= i) & (i - j < 2)),
                  "row i may look at columns i, i - 1, ..., i - reach + 1.")
