"""A picture too large for memory, in square tiles that overlap and are blended where they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Corner(NamedTuple):
    """Where a square tile lies, in pixels of a picture or in cells of its latents."""

    top: int
    left: int
    side: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """The tile of an array [b, h, w, ...]."""
        return array[:, self.top : self.top + self.side, self.left : self.left + self.side]


def tiles(height: int, width: int, side: int, overlap: int) -> list[Corner]:
    """Square tiles that cover a picture, each overlapping its neighbours by `overlap` pixels or more."""
    def starts(length: int) -> list[int]:
        count = max(math.ceil((length - overlap) / (side - overlap)), 1)
        return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]

    return [Corner(top, left, side) for top in starts(height) for left in starts(width)]


def padded(array: np.ndarray, side: int) -> np.ndarray:
    """An array [b, h, w, c] whose sides are at least `side`, its last row and column repeated where need be."""
    height, width = array.shape[1:3]
    return np.pad(array, ((0, 0), (0, max(side - height, 0)), (0, max(side - width, 0)), (0, 0)), "edge")


def blended(
    height: int, width: int, side: int, overlap: int, factor: int, draw: Callable[[Corner], np.ndarray],
    watch: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "b H W c"]:
    """The picture, `factor` times as large as height x width, of tiles that `draw` gives, [b, factor side, ..., c].

    Where tiles overlap, each fades out along a straight line towards its own edge. `watch` is told after each how many
    are done, and of how many.
    """
    rise = np.minimum(np.arange(factor * side) + 1, factor * overlap)
    weight = np.minimum(rise, rise[::-1]).astype(np.float32)
    weight = (weight[:, None] * weight)[:, :, None]
    weights = np.zeros((factor * height, factor * width, 1), np.float32)
    total: np.ndarray | None = None
    corners = tiles(height, width, side, overlap)
    for done, corner in enumerate(corners, 1):
        drawn = draw(corner)
        total = np.zeros((len(drawn), *weights.shape[:2], drawn.shape[-1]), np.float32) if total is None else total
        place = Corner(*(factor * n for n in corner))
        place.of(total)[...] += weight * drawn
        place.of(weights[None])[...] += weight
        if watch:
            watch(done, len(corners))
    total /= weights
    return total
