"""The table of figures: its intervals, and that models of known quality get what they deserve."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sdjax.config import sd1
from sdjax.errors import InputError
from sdjax.evaluate import evaluate, paired, table, wilson
from sdjax.evaluate.trial import mean
from sdjax.pipeline import StableDiffusion
from sdjax.toyworld import Scene, describe, is_held_out, render, scene_at
from sdjax.toyworld.judge import SIZE, Judge, Seen, middle

PROMPTS = 6


def code(scene: Scene) -> np.ndarray:
    """A stand-in for a picture of a scene, that `CodeReader` can read: its number in the list of scenes."""
    return np.full((2, 2, 3), SCENES.index(scene), np.float32)


SCENES = [
    scene_at(0, "test", i, count, held_out)
    for count, held_out in ((1, False), (2, False), (2, True)) for i in range(PROMPTS)
]


def seen_in(scene: Scene, shift: float = 0.0) -> list[Seen]:
    """The scene's solids, seen `shift` pixels too far to the left."""
    places = [middle(solid) for solid in scene.solids]
    return [Seen(s.colour, s.shape, s.size, x - shift, y, 1.0) for s, (x, y) in zip(scene.solids, places)]


class Stub:
    """Has what it is given, and no network."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


class StubModel(Stub, StableDiffusion):
    config = dataclasses.replace(sd1(), image_size=SIZE)


class CodeReader(Stub, Judge):
    """A judge for `code`: it sees exactly the scene."""

    def read(self, pictures):
        return [seen_in(SCENES[int(picture[0, 0, 0])]) for picture in pictures]

    def times(self, pictures):
        return ["day"] * len(pictures)


class Painter(StubModel):
    """A model that draws what it is asked for in the languages that it knows, and else always the same."""

    def __init__(self, languages=("en", "tr")):
        self.known = {describe(scene, language): scene for scene in SCENES for language in languages}
        self.asked = []

    def txt2img(self, prompts, **options):
        self.asked.append((list(prompts), options))
        return np.stack([code(self.known.get(prompt, SCENES[0])) for prompt in prompts])


def test_a_model_of_another_size_is_refused_before_it_draws():
    painter = Painter()
    painter.config = sd1()
    with pytest.raises(InputError, match="model: found pictures of 512 pixels, expected 128, which the judge reads"):
        figures(painter, "one")
    assert painter.asked == []


def values(report):
    return {row["name"]: row["value"] for row in report["rows"]}


def figures(painter, *only, **options):
    return evaluate(painter, CodeReader(), prompts=PROMPTS, batch=4, only=only, **options)


# ---- intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(97, 100, 0.9155, 0.9897), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_the_wilson_interval_of_a_share(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(right, n)[0] <= right / n <= wilson(right, n)[1]


def test_an_interval_reaches_all_and_nothing_where_that_was_found_and_no_further():
    assert all(wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0 for n in range(1, 600))
    assert paired(4, 0, 4)[1] == 1.0 and paired(0, 4, 4)[0] == -1.0


def test_the_interval_of_a_paired_difference():
    # (10 - 4) / 102, and 1.96 sqrt(10 + 4 + 1 - 36 / 102) / 102 on either side.
    assert paired(10, 4, 100) == pytest.approx((-0.0147, 0.1324), abs=1e-4)


def test_no_difference_in_few_pairs_is_not_certainty():
    low, high = paired(0, 0, 10)
    assert low == -high == pytest.approx(-0.1633, abs=1e-4)


# ---- what a model deserves ---------------------------------------------------------------------------------


def test_a_model_that_draws_what_it_is_told_is_right_throughout():
    assert set(values(figures(Painter(), "one", "two", "held-out")).values()) == {100.0}


def test_a_model_without_turkish_loses_points():
    found = values(figures(Painter(languages=["en"]), "turkish"))
    assert found["Turkish, two objects: both colours and shapes"] == 0.0
    # Of 12 prompts only the one whose scene is drawn for every unknown prompt comes out right.
    assert found["Turkish less English, objects right"] == pytest.approx(-100 * 11 / 12)


def test_the_first_picture_of_each_prompt_counts_and_has_a_noise_of_its_own():
    painter = Painter()
    figures(painter, "one", steps=30, seed=0)
    (first, options), (second, more) = painter.asked
    assert first == [describe(scene) for scene in SCENES[:4]]
    assert second[:2] == [describe(scene) for scene in SCENES[4:6]]
    assert len(second) == 4  # filled up to the batch
    assert options == {"sampler": "ddim", "steps": 30, "guidance_scale": 7.5, "seed": 0, "first_image": 0}
    assert more["first_image"] == 4


def test_two_objects_have_a_noise_of_their_own():
    """The n-th scenes of one and of two solids share the first: with one noise, too, they would be right together."""
    painter = Painter()
    figures(painter, "one", "two")
    assert [options["first_image"] for _, options in painter.asked] == [0, 4, 6, 10]


def test_held_out_pairs_are_what_was_held_out():
    painter = Painter()
    figures(painter, "held-out")
    scenes = [scene_at(0, "test", i, 2, True) for i in range(PROMPTS)]
    assert all(is_held_out(scene) for scene in scenes)
    assert [p for prompts, _ in painter.asked for p in prompts][:PROMPTS] == [describe(scene) for scene in scenes]


def test_the_interval_of_a_mean_is_students():
    row = mean("", np.array([1.0, 2.0, 3.0]), "", "")
    assert (row.value, row.high - row.value) == pytest.approx((2.0, 4.3027 / np.sqrt(3)), abs=1e-3)  # t(2), deviation 1


def test_english_is_drawn_once_for_all_the_figures_that_need_it():
    painter = Painter()
    figures(painter, "one", "two", "turkish", "fast")
    assert sum(len(prompts) for prompts, _ in painter.asked) == 6 * 8  # six sets of 6, in batches of 4


def test_the_fast_figure_is_drawn_with_the_fast_solver():
    painter = Painter()
    report = figures(painter, "fast")
    solvers = [(options["sampler"], options["steps"]) for _, options in painter.asked[::2]]
    assert solvers == [("dpmpp_2m", 20)] * 2 + [("ddim", 50)] * 2
    assert report["rows"][0]["run"] == "dpmpp_2m, 20 steps, guidance 7.5, seed 0"


def test_psnr_of_an_error_of_a_hundredth_of_the_range_is_forty_decibels():
    vae = SimpleNamespace(
        encode=lambda pictures: SimpleNamespace(mean=pictures),
        decode=lambda z: np.where(z > 0, z - 0.02, z + 0.02),
    )
    (row,) = evaluate(StubModel(vae=vae), CodeReader(), prompts=3, only=["vae"])["rows"]
    assert row["value"] == pytest.approx(40.0, abs=1e-3) and row["n"] == 3 and row["unit"] == "dB"


def test_clip_is_asked_about_64_scenes_with_captions_of_their_own_and_about_pairs_said_wrong():
    def similarity(pictures, texts):
        n, turkish = len(pictures), " bir " in texts[0]
        if len(texts) == n:
            assert pictures.shape == (64, 128, 128, 3) and len(set(texts)) == 64
            return np.eye(64) if turkish else np.roll(np.eye(64), 1, axis=1)
        for right, wrong in zip(texts[:n], texts[n:]):
            assert right != wrong and (turkish or abs(len(right) - len(wrong)) <= len("in front of") - len("behind"))
        return np.concatenate([np.eye(n), np.full((n, n), 0.5 if turkish else 2.0)], axis=1)

    rows = evaluate(StubModel(similarity=similarity), CodeReader(), prompts=6, only=["clip"])["rows"]
    assert [(r["name"][-2:], r["value"]) for r in rows] == [("en", 0), ("tr", 100)] * 3
    assert [r["n"] for r in rows[:4]] == [64, 64, 6, 6] and rows[4]["n"] <= 6  # two of one colour cannot be swapped


def test_the_judge_is_tried_on_renders():
    scenes = [scene_at(0, "test", i) for i in range(PROMPTS)]
    pictures = [render(scene)[0].astype(np.float32) / 127.5 - 1 for scene in scenes]

    class Shifted(CodeReader):
        """Sees all as it is, but in the first two pictures a few pixels too far to the left."""

        def read(self, given):
            assert np.array_equal(given, pictures)
            return [seen_in(scene, shift) for scene, shift in zip(scenes, (4.0, 6.0, 0.0, 0.0, 0.0, 0.0))]

    rows = evaluate(StubModel(), Shifted(), prompts=PROMPTS, only=["judge"])["rows"]
    by_day = sum(scene.time == "day" for scene in scenes)
    assert [row["right"] for row in rows] == [5, 5, 5, by_day]  # 4 pixels are allowed, 6 are not


# ---- the report --------------------------------------------------------------------------------------------


def test_the_report_survives_json_and_the_table_shows_every_row():
    report = figures(Painter(), "one", "turkish")
    assert json.loads(json.dumps(report)) == report
    lines = table(report).splitlines()
    assert len(lines) == 1 + len(report["rows"])
    assert lines[0].split() == ["figure", "value", "95", "%", "interval", "right", "n", "with"]
    assert "100.0 %" in lines[1] and "61.0 to 100.0" in lines[1] and "6      6" in lines[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["three"]}, "only: found three, expected some of judge, vae, clip, one"),
        ({"only": []}, "only: found nothing"),
        ({"prompts": 0, "only": ["one"]}, "prompts: found 0, expected at least 2"),
        ({"steps": 0, "only": ["judge"]}, "steps: found 0"),
        ({"guidance_scale": float("nan"), "only": ["judge"]}, "guidance_scale: found nan"),
        ({"seed": -1, "only": ["judge"]}, "seed: found -1"),
        ({"sampler": "dream", "only": ["judge"]}, "sampler: found 'dream'"),
    ],
)
def test_impossible_wishes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        evaluate(Painter(), CodeReader(), **options)
