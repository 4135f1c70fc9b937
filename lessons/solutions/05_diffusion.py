"""Solutions of lesson 5."""

import numpy as np
from checks import diffusion as exercise


def first_noisy_step(a):
    return int(np.argmax(a / (1 - a) < 1))


def ddim_timesteps(S):
    return (np.arange(S) * (1000 // S) + 1)[::-1]


def ddim_step(x, eps, a_t, a_s):
    x0 = (x - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    return np.sqrt(a_s) * x0 + np.sqrt(1 - a_s) * eps


assert exercise.check_first_noisy_step(first_noisy_step)
assert exercise.check_ddim_timesteps(ddim_timesteps)
assert exercise.check_ddim_step(ddim_step)
# A wrong answer is told so.
assert not exercise.check_ddim_timesteps(lambda S: (np.arange(S) * (1000 // S))[::-1])
assert not exercise.check_ddim_step(lambda x, eps, a_t, a_s: x)
