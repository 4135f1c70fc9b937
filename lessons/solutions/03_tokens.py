"""Solutions of lesson 3."""

from collections import Counter
from itertools import pairwise

from checks import tokens as exercise


def count_pairs(spelled, counts):
    pairs = Counter()
    for word, ids in spelled.items():
        for pair in pairwise(ids):
            pairs[pair] += counts[word]
    return pairs


def fit(ids, start, end, pad, length=77):
    row = [start, *ids[: length - 2], end]
    return row + [pad] * (length - len(row))


def lower_turkish(text):
    return text.replace("I", "ı").replace("İ", "i").lower()


assert exercise.check_count_pairs(count_pairs)
assert exercise.check_fit(fit)
assert exercise.check_lower_turkish(lower_turkish)
# A wrong answer is told so.
once = lambda spelled, counts: Counter(pair for ids in spelled.values() for pair in pairwise(ids))
assert not exercise.check_count_pairs(once)
assert not exercise.check_fit(lambda ids, start, end, pad, length=77: ([start, *ids, end] + [pad] * length)[:length])
assert not exercise.check_lower_turkish(str.lower)
