"""Solutions of lesson 7."""

import numpy as np
from checks import attention as exercise


def attend(q, k, v):
    logits = q @ k.T / np.sqrt(q.shape[1])
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True) @ v


def split_heads(x, heads):
    n, c = x.shape
    return x.reshape(n, heads, c // heads).transpose(1, 0, 2)


def shares_made(sides, heads, tokens):
    return sum(h * side**2 * (side**2 + tokens) for side, h in zip(sides, heads))


assert exercise.check_attend(attend)
assert exercise.check_split_heads(split_heads)
assert exercise.check_shares_made(shares_made)
# A wrong answer is told so.
assert not exercise.check_attend(lambda q, k, v: attend(q * np.sqrt(q.shape[1]), k, v))
assert not exercise.check_split_heads(lambda x, heads: x.reshape(heads, len(x), -1))
assert not exercise.check_shares_made(lambda sides, heads, tokens: sum(h * s**2 * tokens for s, h in zip(sides, heads)))
