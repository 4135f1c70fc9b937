"""Solutions of lesson 9."""

import numpy as np
from checks import pipeline as exercise

from sdjax import samplers


def visited(steps, strength):
    return samplers.leading(steps)[steps - int(strength * steps) :]


def euler_step(x, eps, a, a_next):
    sigma, sigma_next = np.sqrt((1 - a) / a), np.sqrt((1 - a_next) / a_next)
    return np.sqrt(a_next) * (x / np.sqrt(a) + (sigma_next - sigma) * eps)


def mix(first, second, w):
    return ((1 - w) * first + w * second) / np.sqrt((1 - w) ** 2 + w**2)


assert exercise.check_visited(visited)
assert exercise.check_euler_step(euler_step)
assert exercise.check_mix(mix)
# A wrong answer is told so.
assert not exercise.check_visited(lambda steps, strength: samplers.leading(steps)[-int(strength * steps) :])
assert not exercise.check_visited(lambda steps, strength: samplers.leading(steps))
assert not exercise.check_euler_step(
    lambda x, eps, a, a_next: x / np.sqrt(a) + (np.sqrt((1 - a_next) / a_next) - np.sqrt((1 - a) / a)) * eps
)
assert not exercise.check_mix(lambda first, second, w: (1 - w) * first + w * second)
