"""Solutions of lesson 12."""

import numpy as np
from checks import depth as exercise


def fifth_channel(depth):
    low, high = depth.min(), depth.max()
    if low == high:
        return np.full(depth.shape, -1.0)
    return 2 * (depth - low) / (high - low) - 1


def unit(found, true):
    scale, shift = np.polyfit(found.ravel(), true.ravel(), 1)
    return scale, shift


def token_count(height, width):
    return 1 + (height // 16) * (width // 16)


def ground_plane(size, horizon, nearest):
    rows = np.maximum(np.arange(size) - horizon, 0) / (size - 1 - horizon) * nearest
    return np.repeat(rows[:, None], size, axis=1)


assert exercise.check_fifth_channel(fifth_channel)
assert exercise.check_unit(unit)
assert exercise.check_token_count(token_count)
assert exercise.check_ground_plane(ground_plane)
# A wrong answer is told so.
assert not exercise.check_fifth_channel(lambda d: 2 * (d - d.min()) / (d.max() - d.min()) - 1)
assert not exercise.check_unit(lambda found, true: (np.sum(found * true) / np.sum(found**2), 0.0))
assert not exercise.check_token_count(lambda height, width: (height // 16) * (width // 16))
assert not exercise.check_ground_plane(
    lambda size, horizon, nearest: np.tile((np.arange(size) - horizon) / (size - 1 - horizon) * nearest, (size, 1)).T
)
