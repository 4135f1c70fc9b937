"""The judge: reads which solids stand where in a picture, and says whether a caption was obeyed.

    judge = load_judge("weights/tiny")
    seen = judge.read(pictures)[0]    # [Seen(colour="red", shape="cube", size="large", x=41.2, y=70.9, ...)]
    obeys(seen, scene).objects        # are these the scene's colours and shapes, and nothing else?

It is trained on renders alone (training/judge.py) and never takes part in making or choosing a picture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdjax.checkpoint import tree
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.layers import Linear, ResBlock, conv3x3
from sdjax.toyworld.scene import (
    CAMERA,
    COLOURS,
    FOCAL,
    LOOK_COS,
    LOOK_SIN,
    SCALE,
    SHAPES,
    SIZES,
    TIMES,
    Scene,
    Solid,
    project,
)

SIZE, CELL = 128, 8  # pixels: the picture's side, and the side of one cell of the 16 x 16 grid
FILE = "judge.safetensors"
WIDTHS, BLOCKS = (16, 32, 48), 2
MIDDLE = 0.9  # a solid stands for the point this high above its foot, at scale 1: about half of every shape
APART = 10.0  # pixels; two middles are never closer than twice this, the readings of one solid never further
BATCH = 32


class Grid(NamedTuple):
    """What the detector says of every cell; `presence`, `colour`, `shape`, `size` and `night` are logits."""

    presence: Float[Any, "*b 16 16"]  # is the middle of a solid within a cell's width of the cell's centre?
    colour: Float[Any, "*b 16 16 8"]
    shape: Float[Any, "*b 16 16 5"]
    size: Float[Any, "*b 16 16 2"]
    offset: Float[Any, "*b 16 16 2"]  # from the cell's centre to the middle, across and down, in cells
    night: Float[Any, "*b"]


class Seen(NamedTuple):
    """A solid that the judge sees; x and y in pixels from the top left, of its middle."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    confidence: float  # 0.5 to 1, that it is there


class Verdict(NamedTuple):
    """Whether a picture shows what a scene asks for; a solid too many is as wrong as one missing."""

    count: bool
    colours: bool
    shapes: bool
    objects: bool  # every colour on its own shape
    sizes: bool  # the objects, and each of its size
    relation: bool  # the objects, and where there are two, each in its place


class Detector(nnx.Module):
    """Pictures [b, 128, 128, 3] in [-1, 1] to a Grid: three halvings, then residual blocks.

    Each cell sees a square of 82 pixels around it.
    """

    def __init__(self, *, rngs):
        first, second, third = WIDTHS
        self.conv1 = conv3x3(4 * 3, first, rngs=rngs)
        self.conv2 = conv3x3(first, second, stride=2, rngs=rngs)
        self.conv3 = conv3x3(second, third, stride=2, rngs=rngs)
        self.blocks = nnx.List([ResBlock(third, third, groups=8, eps=1e-6, rngs=rngs) for _ in range(BLOCKS)])
        self.cells = Linear(third, 1 + len(COLOURS) + len(SHAPES) + len(SIZES) + 2, rngs=rngs)
        self.night = Linear(third, 1, rngs=rngs)

    def __call__(self, pictures: Float[Array, "b 128 128 3"]) -> Grid:
        b, half = len(pictures), SIZE // 2
        # Two pixels each way become channels: a strided convolution of three channels takes twice the time.
        x = pictures.reshape(b, half, 2, half, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, half, half, 12)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nnx.silu(conv(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.silu(x)
        ends = np.cumsum([1, len(COLOURS), len(SHAPES), len(SIZES)])
        presence, *rest = jnp.split(self.cells(x), ends, axis=-1)
        return Grid(presence[..., 0], *rest, self.night(jnp.mean(x, axis=(1, 2)))[:, 0])


class Judge:
    """A trained detector that reads pictures [b, 128, 128, 3], floats in [-1, 1]; InputError for others."""

    def __init__(self, detector: Detector):
        self.network = Network(*nnx.split(detector), None)

    @classmethod
    def load(cls, path: str | Path) -> Judge:
        """The judge that `save` wrote; InputError where the file is missing, damaged or another network's."""
        graph, state = tree.abstract(Detector)
        file = SafetensorsFile(path)
        arrays = {name: jnp.asarray(file.read(name, np.float32)) for name in file.names()}
        return cls(nnx.merge(graph, tree.fill(state, arrays, str(path))))

    def save(self, path: str | Path) -> None:
        """Writes the weights in half precision, each under its path in the network."""
        named = tree.flatten(self.network.state)
        write_safetensors(path, {name: np.asarray(x, np.float16) for name, x in named.items()})

    def read(self, pictures: Any) -> list[list[Seen]]:
        """The solids of each picture, the surest first."""
        grid = self.grid(pictures)
        return [solids(Grid(*(part[i] for part in grid))) for i in range(len(grid.night))]

    def times(self, pictures: Any) -> list[str]:
        """The time of day of each picture."""
        return [TIMES[int(logit > 0)] for logit in self.grid(pictures).night]

    def grid(self, pictures: Any) -> Grid:
        """The detector's answer for any number of pictures, as NumPy arrays."""
        pictures = np.asarray(pictures)
        if pictures.shape[1:] != (SIZE, SIZE, 3) or pictures.dtype.kind != "f" or len(pictures) == 0:
            raise InputError(
                f"pictures: found {pictures.dtype} {list(pictures.shape)}, expected floats in [-1, 1] of"
                f" shape [b, {SIZE}, {SIZE}, 3]; render and draw at {SIZE} pixels"
            )
        parts = []
        for start in range(0, len(pictures), BATCH):
            rows = pictures[start : start + BATCH]
            full = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)  # one shape, so that XLA compiles once
            full[: len(rows)] = rows
            parts.append([np.asarray(part)[: len(rows)] for part in self.network(full)])
        return Grid(*(np.concatenate(part) for part in zip(*parts)))


def load_judge(folder: str | Path) -> Judge:
    """The judge of a weights folder, the file judge.safetensors in it."""
    return Judge.load(Path(folder) / FILE)


def solids(grid: Grid) -> list[Seen]:
    """The solids in the grid of one picture, the surest first.

    Several cells see the same solid. The surest speaks for it, and others that mean a place within APART
    pixels are left out (non-maximum suppression).
    """
    confidence = 0.5 + 0.5 * np.tanh(grid.presence / 2)  # the sigmoid, without overflow
    rows, columns = np.nonzero(confidence > 0.5)
    found: list[Seen] = []
    for i in np.argsort(-confidence[rows, columns], kind="stable"):
        cell = rows[i], columns[i]
        across, down = grid.offset[cell]
        x, y = CELL * float(cell[1] + 0.5 + across), CELL * float(cell[0] + 0.5 + down)
        if all(math.hypot(x - other.x, y - other.y) >= APART for other in found):
            looks = (
                names[int(np.argmax(logits[cell]))]
                for names, logits in ((COLOURS, grid.colour), (SHAPES, grid.shape), (SIZES, grid.size))
            )
            found.append(Seen(*looks, x, y, float(confidence[cell])))
    return found


def obeys(seen: list[Seen], scene: Scene) -> Verdict:
    """Whether what was seen in a picture is what the scene's caption asks for."""

    def same(*respects: str) -> bool:
        shown, asked = ([[getattr(s, r) for r in respects] for s in them] for them in (seen, scene.solids))
        return sorted(shown) == sorted(asked)

    objects = same("colour", "shape")
    placed = objects
    if objects and scene.relation is not None:
        first = scene.solids[0]
        # The two differ in colour or shape, so the other one is the second.
        seen = sorted(seen, key=lambda s: (s.colour, s.shape) != (first.colour, first.shape))
        placed = relation_between(*seen) == scene.relation
    return Verdict(
        count=len(seen) == len(scene.solids),
        colours=same("colour"),
        shapes=same("shape"),
        objects=objects,
        sizes=same("colour", "shape", "size"),
        relation=placed,
    )


def relation_between(first: Seen, second: Seen) -> str:
    """The relation of the first to the second, on the axis of the floor that parts them further."""
    (x, z), (other_x, other_z) = floor_place(first), floor_place(second)
    if abs(other_x - x) > abs(other_z - z):
        return "left of" if x < other_x else "right of"
    return "in front of" if z < other_z else "behind"


def middle(solid: Solid) -> tuple[float, float]:
    """Where the middle of a solid is seen: x and y in pixels from the top left."""
    across, down = project((solid.x, MIDDLE * SCALE[solid.size], solid.z))
    return (across + 1) * SIZE / 2, (down + 1) * SIZE / 2


def floor_place(seen: Seen) -> tuple[float, float]:
    """The world's x and z where a seen solid stands, by the ray of its middle and the middle's height."""
    across, down = ((pixel / (SIZE / 2) - 1) / FOCAL for pixel in (seen.x, seen.y))
    depth = (CAMERA[1] - MIDDLE * SCALE[seen.size]) / (LOOK_SIN + LOOK_COS * down)
    return CAMERA[0] + depth * across, CAMERA[2] + depth * (LOOK_COS - LOOK_SIN * down)
