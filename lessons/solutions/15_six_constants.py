"""Solutions of lesson 15."""

import numpy as np
from checks import constants as exercise


def normalise(x, eps):
    return (x - x.mean()) / np.sqrt(x.var() + eps)


def columns_seen(i, left):
    return [2 * i - left + k for k in range(3)]


def row_of(words, start, end, padding, room):
    row = [start, *words[: room - 2], end]
    return row + [padding] * (room - len(row))


def cut_at_the_end(words, start, end, padding, room):
    return [start, *words, end, *[padding] * room][:room]


assert exercise.check_normalise(normalise)
assert exercise.check_columns_seen(columns_seen)
assert exercise.check_row_of(row_of)
# A wrong answer is told so.
assert not exercise.check_normalise(lambda x, eps: (x - x.mean()) / (x.std() + eps))
assert not exercise.check_columns_seen(lambda i, left: [2 * i + k for k in range(3)])
assert not exercise.check_row_of(cut_at_the_end)
