"""Solutions of lesson 14."""

import numpy as np
from checks import training as exercise


def drop(captions, share, rng):
    return ["" if rng.random() < share else caption for caption in captions]


def averaged(average, weights, keep):
    return keep * average + (1 - keep) * weights


def v_loss(network, x0, eps, t, a):
    a = a[:, None, None, None]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
    v = np.sqrt(a) * eps - np.sqrt(1 - a) * x0
    return np.mean((network(x, t) - v) ** 2)


def eps_loss(network, x0, eps, t, a):
    a = a[:, None, None, None]
    return np.mean((network(np.sqrt(a) * x0 + np.sqrt(1 - a) * eps, t) - eps) ** 2)


assert exercise.check_drop(drop)
assert exercise.check_averaged(averaged)
assert exercise.check_v_loss(v_loss)
# A wrong answer is told so.
assert not exercise.check_drop(lambda captions, share, rng: [c for c in captions if rng.random() >= share])
assert not exercise.check_averaged(lambda average, weights, keep: (1 - keep) * average + keep * weights)
assert not exercise.check_v_loss(eps_loss)
