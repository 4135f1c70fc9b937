"""Solutions of lesson 4."""

import numpy as np
from checks import clip as exercise


def best_text(pictures, texts):
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    return np.argmax(pictures @ unit.T, axis=1)  # the length of a picture scales its whole row


def sentence_rows(states, ids, end_id):
    return states[np.arange(len(ids)), np.argmax(ids == end_id, axis=1)]


def short_memory(n, reach):
    i, j = np.indices((n, n))
    return (j <= i) & (i - j < reach)


assert exercise.check_best_text(best_text)
assert exercise.check_sentence_rows(sentence_rows)
assert exercise.check_short_memory(short_memory)
# A wrong answer is told so.
assert not exercise.check_best_text(lambda pictures, texts: np.argmax(pictures @ texts.T, axis=1))
assert not exercise.check_sentence_rows(lambda states, ids, end_id: states[:, -1])
assert not exercise.check_short_memory(lambda n, reach: np.tril(np.ones((n, n), bool)))
