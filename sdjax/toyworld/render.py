"""A small ray caster: scene -> picture and depth map, bit for bit the same on every machine.

Only + - * / and sqrt on float64, which IEEE 754 rounds in one way only; no matrix products, sums of
arrays, powers or trigonometry, whose last bit is the library's own choice.

Four rays a pixel. The floor and the sky are cast once and kept; a scene then costs only the boxes
of the picture that its solids and their shadows can touch. A ray is camera + t * direction with
directions one unit long along the view axis, so that t is the depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sdjax.errors import InputError
from sdjax.toyworld.scene import (
    CAMERA,
    CONE_HEIGHT,
    CONE_RADIUS,
    CUBE_HALF,
    CYLINDER_HEIGHT,
    CYLINDER_RADIUS,
    FOCAL,
    LOOK_COS,
    LOOK_SIN,
    RING_MAJOR,
    RING_MINOR,
    SCALE,
    Scene,
    Solid,
    bounds,
    cos_sin,
    outline,
    project,
    screen_box,
)

FLOOR_END = 4.0  # z where the floor ends and the sky begins
SKY_DEPTH = 24.0
LIGHT = (-10 / 19, 15 / 19, -6 / 19)  # towards the light, of length 1: from the left, above and in front
_HALFWAY = (LIGHT[0], LIGHT[1] + LOOK_SIN, LIGHT[2] - LOOK_COS)  # between the light and the camera
_LENGTH = math.sqrt(_HALFWAY[0] * _HALFWAY[0] + _HALFWAY[1] * _HALFWAY[1] + _HALFWAY[2] * _HALFWAY[2])
GLOSS = (_HALFWAY[0] / _LENGTH, _HALFWAY[1] / _LENGTH, _HALFWAY[2] / _LENGTH)

PAINT = {  # RGB of a surface in full light, 0 to 255
    "red": (225, 30, 30),
    "green": (35, 180, 60),
    "blue": (35, 75, 225),
    "yellow": (250, 225, 35),
    "orange": (255, 138, 20),
    "purple": (140, 45, 185),
    "white": (255, 255, 255),
    "black": (24, 24, 26),
}


class Time(NamedTuple):
    """Light and surroundings of a time of day; RGB 0 to 255."""

    floor: tuple[int, int, int]
    sky_low: tuple[int, int, int]
    sky_high: tuple[int, int, int]
    ambient: tuple[float, float, float]
    direct: tuple[float, float, float]
    shine: float


TIME = {
    "day": Time(
        floor=(208, 196, 176),
        sky_low=(205, 226, 243),
        sky_high=(140, 186, 232),
        ambient=(0.46, 0.47, 0.49),
        direct=(0.64, 0.63, 0.6),
        shine=40.0,
    ),
    "night": Time(
        floor=(88, 94, 126),
        sky_low=(44, 50, 92),
        sky_high=(16, 18, 48),
        ambient=(0.38, 0.38, 0.44),
        direct=(0.58, 0.58, 0.6),
        shine=32.0,
    ),
}

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z; a plain float where it is the same for all
Box = tuple[slice, slice]


class Rays(NamedTuple):
    """The camera's rays, [4, size, size] each: their directions, and where they meet the floor."""

    direction: Vector
    floor: Vector
    depth: np.ndarray


class Backdrop(NamedTuple):
    """Floor and sky without solids: rays lit and in shadow [3, 4, size, size], then what `render` returns."""

    lit: np.ndarray
    shaded: np.ndarray
    picture: np.ndarray
    depth: np.ndarray


def render(scene: Scene, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Casts a scene: picture uint8 [size, size, 3] and depth float32 [size, size].

    Depth is the distance along the view axis in world units, SKY_DEPTH where there is only sky; at an
    edge it is the harmonic mean of what the pixel sees.
    """
    rays, back = _rays(size), _backdrop(scene.time, size)
    colour, depth = back.lit.copy(), rays.depth.copy()
    changed = []
    for solid in scene.solids:
        box = _pixels(bounds(_shadow_outline(solid)), size)
        dark = _blocks(solid, tuple(f[:, *box] for f in rays.floor)) & (depth[:, *box] < SKY_DEPTH)
        np.copyto(colour[:, :, *box], back.shaded[:, :, *box], where=dark)
        changed.append(box)
    for i, solid in enumerate(scene.solids):
        box = _pixels(screen_box(solid), size)
        others = scene.solids[:i] + scene.solids[i + 1 :]
        direction = tuple(d[:, *box] for d in rays.direction)
        _draw(solid, others, TIME[scene.time], direction, colour[:, :, *box], depth[:, *box])
        changed.append(box)
    picture, far = back.picture.copy(), back.depth.copy()
    for box in changed:
        picture[box] = _to_bytes(colour[:, :, *box])
        far[box] = _mean_depth(depth[:, *box])
    return picture, far


def render_batch(scenes: Sequence[Scene], size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Casts n scenes: pictures uint8 [n, size, size, 3] and depths float32 [n, size, size]."""
    pictures, depths = zip(*(render(scene, size) for scene in scenes))
    return np.stack(pictures), np.stack(depths)


def nearness(depth: np.ndarray) -> np.ndarray:
    """Inverse depth, float32, as depth networks see it: 0 in the sky, largest where it is nearest."""
    return np.where(depth < SKY_DEPTH, 1.0 / depth, 0.0).astype(np.float32)


@lru_cache(maxsize=4)
def _rays(size: int) -> Rays:
    if size < 8:
        raise InputError(f"size: found {size}, expected 8 or more pixels; use 128, what the toy models take")
    # Four rays a pixel, a quarter of a pixel from its centre each way.
    sub = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])[:, :, None, None]
    pixel = np.arange(size) + 0.5
    across = ((pixel[None, :] + sub[:, 0]) / (size / 2) - 1) / FOCAL
    down = ((pixel[:, None] + sub[:, 1]) / (size / 2) - 1) / FOCAL
    across, down = np.broadcast_arrays(across, down)
    x, y, z = across + 0.0, -LOOK_SIN - LOOK_COS * down, LOOK_COS - LOOK_SIN * down
    depth = -CAMERA[1] / y
    floor = (CAMERA[0] + depth * x, np.zeros_like(x), CAMERA[2] + depth * z)
    return Rays((x, y, z), floor, np.where(floor[2] < FLOOR_END, depth, SKY_DEPTH))


@lru_cache(maxsize=8)
def _backdrop(time: str, size: int) -> Backdrop:
    rays, here = _rays(size), TIME[time]
    is_floor = rays.depth < SKY_DEPTH
    # The far floor fades a little, and the sky darkens upwards from where the floor ends.
    fade = 1.03 - 0.01 * rays.floor[2]
    height = np.clip((rays.floor[2] - FLOOR_END) / 8, 0, 1)
    lit, shaded = np.empty((2, 3, *rays.depth.shape))
    for c in range(3):
        full = here.ambient[c] + here.direct[c] * LIGHT[1]
        sky = here.sky_low[c] + (here.sky_high[c] - here.sky_low[c]) * height
        lit[c] = np.where(is_floor, here.floor[c] * fade, sky)
        shaded[c] = lit[c] * (here.ambient[c] / full)
    return Backdrop(lit, shaded, _to_bytes(lit), _mean_depth(rays.depth))


def _to_bytes(colour: np.ndarray) -> np.ndarray:
    """[3, 4, h, w] -> uint8 [h, w, 3], the mean of the four rays."""
    mean = (colour[:, 0] + colour[:, 1] + colour[:, 2] + colour[:, 3]) * 0.25
    return (np.minimum(mean, 255.0) + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _mean_depth(depth: np.ndarray) -> np.ndarray:
    """[4, h, w] -> float32 [h, w]: the mean of 1 / depth, which is what a depth network estimates."""
    near = 1 / depth
    return (4 / (near[0] + near[1] + near[2] + near[3])).astype(np.float32)


def _pixels(box: tuple[float, float, float, float], size: int) -> Box:
    """Rows and columns that hold a box of the picture, given from -1 to 1, and a pixel more for rounding."""
    left, top, right, bottom = (int((side + 1) * size / 2) for side in box)
    rows = slice(max(top - 1, 0), min(bottom + 2, size))
    columns = slice(max(left - 1, 0), min(right + 2, size))
    return rows, columns


def _shadow_outline(solid: Solid) -> list[tuple[float, float]]:
    """Where in the picture the outline's shadow falls on the floor."""
    points = outline(solid)
    return [project((x - y / LIGHT[1] * LIGHT[0], 0.0, z - y / LIGHT[1] * LIGHT[2])) for x, y, z in points]


def _draw(
    solid: Solid,
    others: Sequence[Solid],
    time: Time,
    direction: Vector,
    colour: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Casts one solid into its box of the picture, changing `colour` [3, 4, h, w] and `depth` [4, h, w]."""
    start, scale = _to_local(solid, CAMERA), SCALE[solid.size]
    local = tuple(d / scale for d in _turn(solid, direction))
    t = ENTER[solid.shape](start, local)
    seen = t < depth
    t = t[seen]
    depth[seen] = t
    normal = NORMAL[solid.shape](*(o + t * d[seen] for o, d in zip(start, local)))
    facing = np.maximum(_dot(normal, _turn(solid, LIGHT)), 0.0)
    gloss = np.maximum(_dot(normal, _turn(solid, GLOSS)), 0.0)
    for other in others:
        point = tuple(o + t * d[seen] for o, d in zip(CAMERA, direction))
        light = np.where(_blocks(other, point), 0.0, 1.0)
        facing, gloss = facing * light, gloss * light
    for _ in range(4):
        gloss = gloss * gloss
    around = 0.75 + 0.25 * normal[1]  # what faces the floor gets less of the sky
    for c in range(3):
        paint = PAINT[solid.colour][c]
        colour[c][seen] = (
            (paint * time.ambient[c]) * around + (paint * time.direct[c]) * facing + time.shine * gloss
        )


def _blocks(solid: Solid, point: Vector) -> np.ndarray:
    """Whether the solid stands between world points and the light."""
    t = ENTER[solid.shape](_to_local(solid, point), _turn(solid, LIGHT))
    return (t >= 0) & (t < np.inf)


def _turn(solid: Solid, vector: Vector) -> Vector:
    """A direction as the solid sees it; the round ones see no turn."""
    if solid.shape not in ("cube", "ring"):
        return vector
    cos, sin = cos_sin(solid.turn)
    x, y, z = vector
    return cos * x - sin * z, y, sin * x + cos * z


def _to_local(solid: Solid, point: Vector) -> Vector:
    """A world point in the solid's own coordinates, where its scale is 1 and its foot is the origin."""
    scale = SCALE[solid.size]
    x, y, z = _turn(solid, (point[0] - solid.x, point[1], point[2] - solid.z))
    return x / scale, y / scale, z / scale


def _dot(a: Vector, b: Vector) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


# Where rays o + t d enter a solid: t, or infinity where they pass it by. A negative t is behind o.


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The roots of a t^2 + 2 b t + c for a > 0; where there are none, an empty interval (inf, -inf)."""
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0.0))
    there = square > 0
    return np.where(there, (-b - root) / a, np.inf), np.where(there, (root - b) / a, -np.inf)


def _slab(o: np.ndarray, d: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays are between two planes of one coordinate."""
    one, other = (low - o) / d, (high - o) / d
    return np.minimum(one, other), np.maximum(one, other)


def _meet(*spans: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Where the rays enter what convex bodies have in common."""
    enter, leave = spans[0]
    for start, end in spans[1:]:
        enter, leave = np.maximum(enter, start), np.minimum(leave, end)
    return np.where(enter < leave, enter, np.inf)


def _enter_cube(o: Vector, d: Vector) -> np.ndarray:
    h = CUBE_HALF
    return _meet(_slab(o[0], d[0], -h, h), _slab(o[1], d[1], 0.0, 2 * h), _slab(o[2], d[2], -h, h))


def _enter_sphere(o: Vector, d: Vector) -> np.ndarray:
    centred = (o[0], o[1] - 1.0, o[2])
    return _roots(_dot(d, d), _dot(centred, d), _dot(centred, centred) - 1.0)[0]


def _enter_cone(o: Vector, d: Vector) -> np.ndarray:
    # x^2 + z^2 = k (h - y)^2. The camera's rays and the light's are flatter than its side, so a > 0.
    k = CONE_RADIUS / CONE_HEIGHT * (CONE_RADIUS / CONE_HEIGHT)
    y = o[1] - CONE_HEIGHT
    a = d[0] * d[0] + d[2] * d[2] - k * (d[1] * d[1])
    b = o[0] * d[0] + o[2] * d[2] - k * (y * d[1])
    c = o[0] * o[0] + o[2] * o[2] - k * (y * y)
    return _meet(_roots(a, b, c), _slab(o[1], d[1], 0.0, CONE_HEIGHT))


def _enter_cylinder(o: Vector, d: Vector) -> np.ndarray:
    a, b = d[0] * d[0] + d[2] * d[2], o[0] * d[0] + o[2] * d[2]
    c = o[0] * o[0] + o[2] * o[2] - CYLINDER_RADIUS * CYLINDER_RADIUS
    return _meet(_roots(a, b, c), _slab(o[1], d[1], 0.0, CYLINDER_HEIGHT))


# To a tenth of a pixel of 128; more steps would only help the few rays that graze the ring.
RING_STEPS, RING_TOUCH = 16, 0.004


def _enter_ring(o: Vector, d: Vector) -> np.ndarray:
    """Sphere tracing (Hart 1996): a step as long as the distance to the ring can never cross it."""
    centred = (o[0], o[1] - 1.0, o[2])
    near = _meet(
        _roots(_dot(d, d), _dot(centred, d), _dot(centred, centred) - 1.0),
        _slab(o[2], d[2], -RING_MINOR, RING_MINOR),
    )
    open_ = near < np.inf
    t = near[open_]
    ox, oy, oz, dx, dy, dz = (np.broadcast_to(v, near.shape)[open_] for v in (*centred, *d))
    stride = 1 / np.sqrt(dx * dx + dy * dy + dz * dz)
    for _ in range(RING_STEPS):
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        q = np.sqrt(x * x + y * y) - RING_MAJOR
        gap = np.sqrt(q * q + z * z) - RING_MINOR
        t = t + gap * stride
    near[open_] = np.where(gap < RING_TOUCH, t, np.inf)
    return near


# Outward normals, of length 1, at points of a solid that the camera can see.


def _normal_cube(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vector:
    y = y - CUBE_HALF
    ax, ay, az = abs(x), abs(y), abs(z)
    top, side = (ay >= ax) & (ay >= az), ax >= az
    return (
        np.where(top | ~side, 0.0, np.where(x > 0, 1.0, -1.0)),
        np.where(top, 1.0, 0.0),
        np.where(top | side, 0.0, np.where(z > 0, 1.0, -1.0)),
    )


def _normal_sphere(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vector:
    return x, y - 1.0, z


def _normal_cone(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vector:
    side = math.sqrt(CONE_RADIUS * CONE_RADIUS + CONE_HEIGHT * CONE_HEIGHT)
    out = CONE_HEIGHT / side / np.maximum(np.sqrt(x * x + z * z), 1e-9)
    return x * out, np.full_like(y, CONE_RADIUS / side), z * out


def _normal_cylinder(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vector:
    top = y > CYLINDER_HEIGHT - 1e-9
    out = np.where(top, 0.0, 1 / CYLINDER_RADIUS)
    return x * out, np.where(top, 1.0, 0.0), z * out


def _normal_ring(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vector:
    y = y - 1.0
    rho = np.sqrt(x * x + y * y)
    q = rho - RING_MAJOR
    out = 1 / np.sqrt(q * q + z * z)
    return q * out * x / rho, q * out * y / rho, z * out


ENTER: dict[str, Callable[[Vector, Vector], np.ndarray]] = {
    "cube": _enter_cube,
    "sphere": _enter_sphere,
    "cone": _enter_cone,
    "cylinder": _enter_cylinder,
    "ring": _enter_ring,
}
NORMAL: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Vector]] = {
    "cube": _normal_cube,
    "sphere": _normal_sphere,
    "cone": _normal_cone,
    "cylinder": _normal_cylinder,
    "ring": _normal_ring,
}
