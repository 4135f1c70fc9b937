"""Scenes of the toy world: which solids stand where, drawn at random, and the same on every machine.

World units: x to the right, y up, z away from the camera; the floor is y = 0 and a large sphere has
radius 1. The camera never moves, so it is part of the world and lives here too: a scene is only
allowed where the camera sees all of it.

Chance comes from `Generator.random` alone. NumPy promises the bits of PCG64 for good, but not the
stream of `integers` or `choice` (NEP 19).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sdjax.errors import InputError

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("cube", "sphere", "cone", "cylinder", "ring")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "in front of", "behind")
TIMES = ("day", "night")
SPLITS = ("train", "valid", "test")

REVERSE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
SCALE = {"small": 0.64, "large": 1.0}

# The solids at scale 1, standing on the floor.
CUBE_HALF = 0.82
CONE_RADIUS, CONE_HEIGHT = 0.95, 1.9
CYLINDER_RADIUS, CYLINDER_HEIGHT = 0.86, 1.6
RING_MAJOR, RING_MINOR = 0.73, 0.27
FOOTPRINT = {"cube": math.sqrt(2) * CUBE_HALF, "sphere": 1.0, "cone": 0.95, "cylinder": 0.86, "ring": 1.0}

# The camera looks down by the angle with sine 3/5 (37 degrees): steep enough to see a solid over
# the one in front of it. It stands far off with a long lens, so that size in the picture means size.
LOOK_SIN, LOOK_COS = 3 / 5, 4 / 5
DISTANCE = 14.0
FOCAL = 5.1  # in half picture widths: at the target one world unit is 5.1 / 14 * 64 = 23 pixels of 128
TARGET = (0.0, 0.95, 0.2)
CAMERA = (0.0, TARGET[1] + DISTANCE * LOOK_SIN, TARGET[2] - DISTANCE * LOOK_COS)

MARGIN = 0.04  # of half the picture: 2.5 pixels of 128 stay free around every solid
MAX_OVERLAP = 0.22  # of the rear solid's box; a cone, all at the bottom of its box, then still shows 0.78^2
SHIFT = 0.7  # how far two solids may be out of line, across their relation
DEPTH_GAP = (2.2, 3.8)  # between the centres of a solid and the one behind it

Point = tuple[float, float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Solid:
    """One solid standing on the floor at (x, z), turned about the vertical by `turn` degrees."""

    colour: str
    shape: str
    size: str
    x: float
    z: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """One or two solids and the time of day; `relation` is that of the first to the second, or None."""

    solids: tuple[Solid, ...]
    time: str
    relation: str | None


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of scene `index` of a split: scene 1000 needs no scene before it."""
    if split not in SPLITS:
        raise InputError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}; choose one of them")
    if seed < 0 or index < 0:
        raise InputError(f"seed, index: found {seed}, {index}, expected 0 or more; count from 0")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index])))


def scene_at(seed: int, split: str, index: int, count: int | None = None, held_out: bool = False) -> Scene:
    """Scene `index` of a split, the same on every machine; `count` and `held_out` as in `sample_scene`."""
    return sample_scene(scene_rng(seed, split, index), count, held_out)


def sample_scene(rng: np.random.Generator, count: int | None = None, held_out: bool = False) -> Scene:
    """A random scene of one or two solids, all in the picture, apart, and in a relation that is plain to see.

    `count` is the number of solids, or None for either at even odds. Training sees `held_out=False`
    only; `held_out=True` gives two solids in a combination that training never showed.
    """
    if count not in (None, 1, 2):
        raise InputError(f"count: found {count!r}, expected 1, 2 or None; a scene has one or two solids")
    if held_out and count == 1:
        raise InputError("count: found 1 with held_out=True, expected 2; only pairs are held out, ask for 2")
    if count is None:
        count = 2 if held_out else pick(rng, (1, 2))
    time = pick(rng, TIMES)
    if count == 1:
        return Scene((_place_one(rng, _looks(rng)),), time, None)
    while True:
        first, second, relation = _looks(rng), _looks(rng), pick(rng, RELATIONS)
        if first[:2] != second[:2] and _is_held_out(first, relation, second) == held_out:
            return Scene(_place_two(rng, first, relation, second), time, relation)


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows this pairing of colours, shapes and relation: 281 of 3,120 of them, 9.0 %.

    Each has a chance of 1 in 10 by a hash; that many it came to be.

    The cube left of the sphere and the sphere right of the cube are one and the same pairing.
    """
    if scene.relation is None:
        return False
    first, second = ((s.colour, s.shape) for s in scene.solids)
    return _is_held_out(first, scene.relation, second)


def reversed_relation(scene: Scene) -> Scene:
    """What a caption would say of two solids that had changed places; they themselves stay, and a single one does."""
    return scene if scene.relation is None else dataclasses.replace(scene, relation=REVERSE[scene.relation])


def swapped_colours(scene: Scene) -> Scene:
    """The scene, each solid in the colour of the other."""
    colours = reversed([solid.colour for solid in scene.solids])
    solids = (dataclasses.replace(solid, colour=colour) for solid, colour in zip(scene.solids, colours))
    return dataclasses.replace(scene, solids=tuple(solids))


def screen_box(solid: Solid) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a solid in the picture, which spans -1 to 1 across and down."""
    return bounds([project(p) for p in outline(solid)])


def project(point: Point) -> tuple[float, float]:
    """Where a world point is seen: across and down, from -1 to 1 within the picture."""
    x, y, z = point[0] - CAMERA[0], point[1] - CAMERA[1], point[2] - CAMERA[2]
    depth = z * LOOK_COS - y * LOOK_SIN
    return FOCAL * x / depth, -FOCAL * (y * LOOK_COS + z * LOOK_SIN) / depth


def bounds(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The least box around points: left, top, right, bottom."""
    across, down = [p[0] for p in points], [p[1] for p in points]
    return min(across), min(down), max(across), max(down)


def outline(solid: Solid) -> list[Point]:
    """World points whose convex hull holds the solid, and little more."""
    cos, sin = cos_sin(solid.turn)
    scale = SCALE[solid.size]
    return [
        (solid.x + scale * (cos * x + sin * z), scale * y, solid.z + scale * (cos * z - sin * x))
        for x, y, z in _HULLS[solid.shape]
    ]


def cos_sin(degrees: float) -> tuple[float, float]:
    """Cosine and sine for angles from -90 to 90 degrees, by their series, to 1e-15.

    The C library's own may differ in the last bit from machine to machine; + - * / may not.
    """
    angle = degrees * (3.141592653589793 / 180)
    cos, sin, term = 1.0, 0.0, 1.0
    for n in range(1, 24):
        term = term * angle / n
        if n % 2:
            sin += term if n % 4 == 1 else -term
        else:
            cos += term if n % 4 == 0 else -term
    return cos, sin


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.random() * len(choices))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high, each as likely."""
    return low + (high - low) * rng.random()


_NEAR = math.sqrt(2) - 1  # tan 22.5: how far along its side an octagon has its corners


def _octagon(radius: float) -> list[tuple[float, float]]:
    """An octagon around a circle, touching it left, right, above and below."""
    near = _NEAR * radius
    return [(a * i, b * j) for a, b in ((radius, near), (near, radius)) for i in (-1, 1) for j in (-1, 1)]


_CUBE = (-CUBE_HALF, CUBE_HALF)
_HULLS: dict[str, list[Point]] = {
    "cube": [(x, CUBE_HALF + y, z) for x in _CUBE for y in _CUBE for z in _CUBE],
    # The 24 corners of a rhombicuboctahedron around the sphere.
    "sphere": [
        (i * x, 1.0 + j * y, k * z)
        for x, y, z in ((1.0, _NEAR, _NEAR), (_NEAR, 1.0, _NEAR), (_NEAR, _NEAR, 1.0))
        for i in (-1, 1)
        for j in (-1, 1)
        for k in (-1, 1)
    ],
    "cone": [(0.0, CONE_HEIGHT, 0.0)] + [(x, 0.0, z) for x, z in _octagon(CONE_RADIUS)],
    "cylinder": [(x, y, z) for x, z in _octagon(CYLINDER_RADIUS) for y in (0.0, CYLINDER_HEIGHT)],
    # Its tube is an octagon too: two octagons are wide and close together, two less wide and further apart.
    "ring": [
        (x, 1.0 + y, z)
        for wide, thick in ((RING_MINOR, _NEAR * RING_MINOR), (_NEAR * RING_MINOR, RING_MINOR))
        for x, y in _octagon(RING_MAJOR + wide)
        for z in (-thick, thick)
    ],
}


def _is_held_out(first: Sequence[str], relation: str, second: Sequence[str]) -> bool:
    if relation in ("right of", "behind"):
        first, relation, second = second, REVERSE[relation], first
    number = RELATIONS.index(relation)
    for colour, shape in (first[:2], second[:2]):
        number = (number * len(COLOURS) + COLOURS.index(colour)) * len(SHAPES) + SHAPES.index(shape)
    return _scramble(number) % 10 == 0


def _scramble(number: int) -> int:
    """A fixed hash of an integer (splitmix64, Steele et al. 2014); Python's own leaves it as it is."""
    mask = 2**64 - 1
    number = (number + 1) * 0x9E3779B97F4A7C15 & mask
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & mask
    number = (number ^ number >> 27) * 0x94D049BB133111EB & mask
    return number ^ number >> 31


def _looks(rng: np.random.Generator) -> tuple[str, str, str]:
    return pick(rng, COLOURS), pick(rng, SHAPES), pick(rng, SIZES)


def _stand(rng: np.random.Generator, looks: tuple[str, str, str], x: float, z: float) -> Solid:
    # Seen from its edge a ring would be a bar, so it turns less than the others.
    turn = 25.0 if looks[1] == "ring" else 45.0
    return Solid(*looks, x, z, between(rng, -turn, turn))


def _place_one(rng: np.random.Generator, looks: tuple[str, str, str]) -> Solid:
    while True:
        solid = _stand(rng, looks, between(rng, -1.5, 1.5), between(rng, -1.8, 1.8))
        if _in_picture(solid):
            return solid


def _place_two(
    rng: np.random.Generator, first: tuple[str, str, str], relation: str, second: tuple[str, str, str]
) -> tuple[Solid, Solid]:
    """Draws places until both solids are in the picture and the rear one is mostly seen."""
    apart = FOOTPRINT[first[1]] * SCALE[first[2]] + FOOTPRINT[second[1]] * SCALE[second[2]]
    while True:
        x, z, shift = between(rng, -0.7, 0.7), between(rng, -1.2, 1.2), between(rng, -SHIFT, SHIFT)
        if relation in ("left of", "right of"):
            dx, dz = apart + between(rng, 0.15, 0.9), shift
        else:
            dx, dz = shift, between(rng, *DEPTH_GAP)
        if relation in ("right of", "behind"):
            dx, dz = -dx, -dz
        a = _stand(rng, first, x - dx / 2, z - dz / 2)
        b = _stand(rng, second, x + dx / 2, z + dz / 2)
        if _in_picture(a) and _in_picture(b) and _overlap(a, b) <= MAX_OVERLAP:
            return a, b


def _in_picture(solid: Solid) -> bool:
    left, top, right, bottom = screen_box(solid)
    return min(left, top) >= MARGIN - 1 and max(right, bottom) <= 1 - MARGIN


def _overlap(a: Solid, b: Solid) -> float:
    """The part of the rear solid's box in the picture that the front solid's box covers."""
    front, rear = sorted((a, b), key=lambda solid: solid.z)
    left, top, right, bottom = screen_box(rear)
    other_left, other_top, other_right, other_bottom = screen_box(front)
    width = min(right, other_right) - max(left, other_left)
    height = min(bottom, other_bottom) - max(top, other_top)
    return max(width, 0.0) * max(height, 0.0) / ((right - left) * (bottom - top))
