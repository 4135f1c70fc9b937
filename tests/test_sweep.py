"""What guidance does: adherence by the judge, diversity by CLIP, on a model whose answer is known."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sdjax import plots
from sdjax.config import sd1
from sdjax.errors import InputError
from sdjax.sweep import diversity, sweep, table
from sdjax.toyworld import describe, scene_at
from sdjax.toyworld.judge import Seen, middle

PROMPTS = 4
SCENES = [scene_at(0, "valid", i, count=1 + i % 2) for i in range(PROMPTS)]


class Guided:
    """Draws what is asked for from guidance 5 on; below, only for prompts of one solid. The higher, the more alike."""

    config = sd1()

    def txt2img(self, prompt, *, num_images, first_image, guidance_scale, **options):
        number = [describe(scene) for scene in SCENES].index(prompt)
        assert first_image == number * num_images  # a noise of its own
        seen = guidance_scale >= 5 or len(SCENES[number].solids) == 1
        return np.array([[number if seen else -1, 1.0, i / guidance_scale] for i in range(num_images)])

    def image_encoder(self, pictures):
        return pictures[:, 1:]


class Reader:
    def read(self, pictures):
        return [[] if p[0] < 0 else [
            Seen(s.colour, s.shape, s.size, *middle(s), 1.0) for s in SCENES[int(p[0])].solids
        ] for p in pictures]


def rows(**options):
    return sweep(Guided(), Reader(), prompts=PROMPTS, **{"scales": (1.0, 5.0), "images": 3} | options)


def test_adherence_rises_and_diversity_falls():
    low, high = rows()
    assert (low["right"], high["right"]) == (50.0, 100.0)
    assert low["n"] == high["n"] == 12
    assert low["diversity"] > 5 * high["diversity"]
    for row in (low, high):
        assert row["right_low"] < row["right"] + 1e-9 and row["right"] <= row["right_high"]


def test_diversity_is_how_far_apart_the_pictures_of_a_prompt_are():
    assert diversity(np.array([[1.0, 0.0], [2.0, 0.0]])) == 0.0
    assert np.isclose(diversity(np.eye(3)), 1.0)
    assert np.isclose(diversity(np.array([[1.0, 0.0], [1.0, 1.0]])), 1 - math.sqrt(0.5))


@pytest.mark.parametrize(
    "options", [{"scales": ()}, {"images": 1}, {"prompts": 1}, {"steps": 0}, {"seed": -1}],
    ids=["no scale", "one picture", "one prompt", "no step", "no seed"],
)
def test_what_cannot_be_measured_is_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        sweep(Guided(), Reader(), **{"prompts": PROMPTS} | options)


def test_a_scale_that_is_no_number_is_refused_before_anything_is_drawn():
    with pytest.raises(InputError, match="guidance_scale: found nan"):
        sweep(SimpleNamespace(config=sd1(), image_encoder=None), Reader(), scales=(2.0, math.nan), prompts=PROMPTS)


def test_weights_without_an_image_encoder_are_refused_before_anything_is_drawn():
    blind = SimpleNamespace(image_encoder=None, config=dataclasses.replace(sd1(), name="blind"))
    with pytest.raises(InputError, match="blind: these weights have no image encoder"):
        sweep(blind, Reader(), prompts=PROMPTS)


def test_the_sweep_is_a_table_json_and_a_picture(tmp_path):
    found = rows()
    assert len(table(found).splitlines()) == 3
    assert json.loads(json.dumps(found)) == found
    plots.guidance_sweep(found, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height
