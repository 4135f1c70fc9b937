"""The toy world: scenes with a caption, a picture and a depth map, made from a seed.

For example:

    scene = scene_at(seed=0, split="train", index=7)
    picture, depth = render(scene)
    words = caption(scene, scene_rng(0, "train", 7), "tr")
"""

from sdjax.toyworld.captions import LANGUAGES, caption, describe, named_last
from sdjax.toyworld.render import SKY_DEPTH, nearness, render, render_batch
from sdjax.toyworld.scene import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TIMES,
    Scene,
    Solid,
    is_held_out,
    reversed_relation,
    sample_scene,
    scene_at,
    scene_rng,
    screen_box,
    swapped_colours,
)

__all__ = [
    "COLOURS",
    "LANGUAGES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SKY_DEPTH",
    "SPLITS",
    "TIMES",
    "Scene",
    "Solid",
    "caption",
    "describe",
    "is_held_out",
    "named_last",
    "nearness",
    "render",
    "render_batch",
    "reversed_relation",
    "sample_scene",
    "scene_at",
    "scene_rng",
    "screen_box",
    "swapped_colours",
]
