"""The figures of inpainting, depth and upscaling: models of known quality get what they deserve."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sdjax.config import sd1
from sdjax.evaluate import FIGURES, evaluate, suited, table
from sdjax.evaluate.shown import beyond, chance, changed, correlation, floor, hole_of, ranks
from sdjax.images import as_pictures
from sdjax.pipeline import StableDiffusion
from sdjax.toyworld import is_held_out, nearness, render, scene_at, screen_box
from sdjax.toyworld.judge import SIZE, Judge, Seen, middle

PROMPTS = 4
SCENES = [scene_at(0, "test", i) for i in range(PROMPTS)]
PAIRS = [scene_at(0, "test", i, 2) for i in range(PROMPTS)]


class Stub(StableDiffusion):
    """Has what it is given, and no network."""

    config = dataclasses.replace(sd1(), image_size=SIZE)

    def __init__(self, **parts):
        self.__dict__.update(parts)


class Reads(Judge):
    """Sees what it is told to, one list a picture."""

    def __init__(self, answers):
        self.answers = iter(answers)

    def read(self, pictures):
        return [next(self.answers)]


def values(sd, judge, figure):
    rows = evaluate(sd, judge, prompts=PROMPTS, only=[figure])["rows"]
    return {row["name"].split(": ")[1]: row["value"] for row in rows}


def test_ranks_put_equal_values_in_the_middle_of_theirs():
    assert ranks(np.array([[5.0, 1.0], [5.0, 9.0]])).tolist() == [[2.5, 1.0], [2.5, 4.0]]


def test_correlation_is_blind_to_unit_and_zero_and_nothing_is_known_of_what_is_flat():
    x = np.random.default_rng(0).random((4, 4))
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0) and correlation(x, -x) == pytest.approx(-1.0)
    assert correlation(x, np.ones((4, 4))) == 0.0


def test_a_changed_scene_has_other_looks_and_is_not_held_out():
    for i in range(100):
        scene = scene_at(0, "test", i)
        new = changed(scene, chance(0, i), ("colour",))
        assert not is_held_out(new)
        assert all(a.colour != b.colour and a.shape == b.shape for a, b in zip(scene.solids, new.solids))


def test_what_is_asked_for_does_not_depend_on_the_scene():
    """The stream that drew a scene, asked again, would give night scenes other colours than those by day."""
    by_day: dict[str, list[bool]] = {}
    for i in range(400):
        scene = scene_at(0, "test", i)
        by_day.setdefault(changed(scene, chance(0, i), ("colour",)).solids[0].colour, []).append(scene.time == "day")
    assert len(by_day) == 8
    for colour, days in by_day.items():
        assert 25 < len(days) < 80 and 0.25 < np.mean(days) < 0.75, colour


def test_a_hole_hides_its_solid():
    for scene in PAIRS:
        rows, columns = hole_of(scene)
        left, top, right, bottom = ((edge + 1) * 64 for edge in screen_box(scene.solids[0]))
        assert rows.start <= top and bottom <= rows.stop and columns.start <= left and right <= columns.stop


def test_inpainting_counts_the_asked_object_in_the_hole_only():
    asked = [changed(s, chance(0, i), ("colour", "shape"), first_only=True) for i, s in enumerate(PAIRS)]
    holes = [hole_of(scene) for scene in PAIRS]
    inside = [Seen(s.solids[0].colour, s.solids[0].shape, "large", c.start + 1.0, r.start + 1.0, 1.0)
              for s, (r, c) in zip(asked, holes)]
    answers = [[inside[0]], [], [inside[2]._replace(x=holes[2][1].stop + 1.0)], [inside[3]._replace(colour="no")]]
    vae = SimpleNamespace(encode=lambda p: SimpleNamespace(mean=p), decode=lambda z: z - np.sign(z) * 0.01)
    first = []
    sd = Stub(vae=vae, inpaint=lambda prompt, image, mask, paste, **options: first.append(options["first_image"]) or
              image - np.sign(image) * 0.02)
    found = values(sd, Reads(answers), "inpaint")
    assert first == list(range(PROMPTS))
    assert found["the object asked for is in the hole"] == 25.0
    assert found["PSNR outside the hole, less the VAE's own"] == pytest.approx(-6.02, abs=0.01)  # twice the error


def test_a_perfect_depth_network_has_rank_correlation_one_whatever_its_unit():
    depths = iter([nearness(render(scene)[1]) for scene in SCENES])
    sd = Stub(midas=lambda pictures: np.exp(3 * next(depths))[None])
    found = values(sd, Reads([]), "midas")
    assert found["rank correlation with true depth"] == pytest.approx(1.0)
    assert found["correlation of what stands on the floor"] > 0.9  # the unit is bent, too
    blind = values(Stub(midas=lambda pictures: floor(SCENES[0])[None]), Reads([]), "midas")
    assert blind["rank correlation with true depth"] > 0.9 > 0.2 > blind["correlation of what stands on the floor"]


def test_depth_to_image_needs_both_colours_and_depth():
    asked = [changed(s, chance(0, i), ("colour",)) for i, s in enumerate(SCENES)]
    right = [[Seen(s.colour, s.shape, s.size, *middle(s), 1.0) for s in scene.solids] for scene in asked]
    pair = 3  # of two colours and two shapes
    a, b = right[pair]
    right[pair] = [a._replace(colour=b.colour), b._replace(colour=a.colour)]  # the colours asked for, swapped
    right[1] = [seen._replace(x=128.0 - seen.x) for seen in right[1]]  # the right things in the wrong places
    given, options = [], []
    sd = Stub(depth2img=lambda prompt, image, depth, strength, **rest: (given.append(depth), options.append(rest)) and
              image[None])
    # In the first picture nothing rose from the floor.
    sd.midas = lambda pictures: (floor(SCENES[0]) if len(given) == 1 else given[-1])[None]
    found = values(sd, Reads(right), "depth2img")
    assert found["each solid in the colour asked for"] == 75.0
    assert 0.97 < found["correlation of depth, as MiDaS reads it"] < 1.0 - 1e-6
    assert found["correlation of what stands on the floor, as MiDaS reads it"] == pytest.approx(0.75, abs=0.1)
    assert 0.97 < found["correlation of depth, as the judge reads it"] < 1.0 - 1e-6
    assert found["correlation of what stands on the floor, as the judge reads it"] == pytest.approx(0.75, abs=0.2)
    assert [o["first_image"] for o in options] == list(range(PROMPTS))  # a noise of its own
    assert all((o["steps"], o["seed"], o["guidance_scale"]) == (50, 0, sd.config.guidance) for o in options)


def test_an_empty_floor_correlates_with_any_scene_and_only_the_figure_without_it_can_tell():
    empty = floor(SCENES[0])
    for scene in SCENES:
        near = nearness(render(scene)[1])
        assert correlation(empty, near) > 0.9
        assert abs(correlation(beyond(empty, empty), beyond(near, empty))) < 0.2
        assert correlation(beyond(3.0 * near + 7.0, empty), beyond(near, empty)) == pytest.approx(1.0)


def test_upscaling_is_measured_against_a_bicubic_filter():
    sd = Stub(upscale=lambda prompt, image, **options: np.asarray(jax.image.resize(image, (1, 128, 128, 3), "cubic")))
    assert abs(values(sd, Reads([]), "upscale")["PSNR, more than bicubic"]) < 0.1
    pictures, first = iter([as_pictures(render(scene)[0], "renders") for scene in SCENES]), []
    sd = Stub(upscale=lambda prompt, image, **options: first.append(options["first_image"]) or next(pictures))
    assert values(sd, Reads([]), "upscale")["PSNR, more than bicubic"] > 60.0 and first == list(range(PROMPTS))


def test_each_kind_of_model_has_its_figures():
    def of(channels, eye=True):
        config = SimpleNamespace(unet=SimpleNamespace(in_channels=channels), vae=SimpleNamespace(latent_channels=4))
        return suited(Stub(config=config, image_encoder=eye or None))

    assert of(9) == ["inpaint"] and of(5) == ["midas", "depth2img"] and of(7) == ["upscale"]
    assert of(4) == list(FIGURES)[:8]
    assert of(4, eye=False) == [name for name in of(4) if name != "clip"]  # a file in the original layout has no such


def test_a_correlation_has_three_digits_in_the_table():
    depths = iter([nearness(render(scene)[1]) for scene in SCENES])
    sd = Stub(midas=lambda pictures: next(depths)[None])
    assert "1.000" in table(evaluate(sd, Reads([]), prompts=PROMPTS, only=["midas"]))
