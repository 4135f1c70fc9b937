"""The toy world: what its scenes, captions, pictures and depth maps promise, in numbers."""

import hashlib
import importlib
from itertools import product

import numpy as np
import pytest

from sdjax.errors import InputError
from sdjax.toyworld import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SKY_DEPTH,
    TIMES,
    Scene,
    Solid,
    caption,
    describe,
    is_held_out,
    named_last,
    render,
    render_batch,
    sample_scene,
    scene_at,
    scene_rng,
    screen_box,
)
from sdjax.toyworld.captions import COLOURS_TR
from sdjax.toyworld.scene import REVERSE, cos_sin, outline, project

RED_CUBE = Solid("red", "cube", "large", -1.3, 0.0, 20.0)
BLUE_SPHERE = Solid("blue", "sphere", "small", 1.2, 0.1, 0.0)
PAIR = Scene((RED_CUBE, BLUE_SPHERE), "day", "left of")
ONE = Scene((RED_CUBE,), "night", None)
EMPTY = Scene((), "day", None)


def alone(shape: str, colour: str = "red", time: str = "day", size: str = "large", z: float = 0.0) -> Scene:
    return Scene((Solid(colour, shape, size, 0.0, z, 10.0),), time, None)


# Scenes


def test_a_scene_is_the_same_whether_or_not_others_were_drawn_before_it():
    assert scene_at(3, "train", 7) == [scene_at(3, "train", i) for i in range(8)][7]


def test_splits_seeds_and_indices_give_different_scenes():
    places = ((0, "train", 0), (0, "valid", 0), (0, "test", 0), (1, "train", 0), (0, "train", 1))
    assert len({scene_at(*place) for place in places}) == 5


def test_the_first_training_scenes_are_these_on_every_machine():
    assert [describe(scene_at(0, "train", i)) for i in range(4)] == [
        "a large red cube in front of a large black cylinder",
        "a small orange sphere",
        "a large purple ring right of a large green cylinder",
        "a small yellow ring behind a large white sphere",
    ]


def test_half_of_the_scenes_have_one_solid_and_every_word_of_the_world_comes_up():
    scenes = [scene_at(0, "valid", i) for i in range(400)]
    assert 160 <= sum(len(s.solids) == 1 for s in scenes) <= 240
    solids = [solid for s in scenes for solid in s.solids]
    assert {s.colour for s in solids} == set(COLOURS)
    assert {s.shape for s in solids} == set(SHAPES)
    assert {s.size for s in solids} == set(SIZES)
    assert {s.time for s in scenes} == set(TIMES)
    assert {s.relation for s in scenes} == {None, *RELATIONS}


def test_the_two_solids_of_a_scene_never_look_the_same():
    for i in range(200):
        a, b = scene_at(0, "train", i, count=2).solids
        assert (a.colour, a.shape) != (b.colour, b.shape)


def test_the_relation_is_what_the_places_say():
    for i in range(200):
        scene = scene_at(0, "train", i, count=2)
        dx = scene.solids[1].x - scene.solids[0].x
        dz = scene.solids[1].z - scene.solids[0].z
        along, across = {
            "left of": (dx, dz),
            "right of": (-dx, dz),
            "in front of": (dz, dx),
            "behind": (-dz, dx),
        }[scene.relation]
        assert along > 1.1 and abs(across) <= 0.7


def test_every_solid_is_whole_in_the_picture():
    for i in range(200):
        for solid in scene_at(0, "train", i).solids:
            left, top, right, bottom = screen_box(solid)
            assert min(left, top) > -0.961 and max(right, bottom) < 0.961


def test_a_large_solid_is_about_half_as_wide_again_as_a_small_one():
    def pixels(shape: str, size: str) -> float:
        left, _, right, _ = screen_box(alone(shape, size=size).solids[0])
        return 64 * (right - left)

    for shape in SHAPES:
        assert 24 < pixels(shape, "small") < 34 and 40 < pixels(shape, "large") < 54


def test_the_rear_solid_shows_at_least_three_fifths_of_itself():
    floor = render(EMPTY, 64)[1]
    for i in range(40):
        front, rear = sorted(scene_at(0, "valid", i, count=2).solids, key=lambda s: s.z)
        in_front, behind = (render(Scene((solid,), "day", None), 64)[1] for solid in (front, rear))
        whole = behind < floor - 1e-3
        assert (whole & (in_front >= behind)).sum() >= 0.6 * whole.sum()


# Held-out combinations


def every_pair() -> list[Scene]:
    looks = list(product(COLOURS, SHAPES))
    return [
        Scene((Solid(*a, "small", 0.0, 0.0, 0.0), Solid(*b, "small", 0.0, 0.0, 0.0)), "day", relation)
        for a, b, relation in product(looks, looks, RELATIONS)
        if a != b
    ]


def test_one_combination_in_ten_is_held_out():
    pairs = every_pair()
    assert len(pairs) == 6240
    assert 0.09 <= sum(map(is_held_out, pairs)) / len(pairs) <= 0.11


def test_a_combination_told_from_the_other_side_is_the_same_combination():
    for scene in every_pair():
        told = Scene(scene.solids[::-1], scene.time, REVERSE[scene.relation])
        assert is_held_out(told) == is_held_out(scene)


def test_training_never_shows_a_held_out_combination_and_the_test_of_it_shows_nothing_else():
    assert not any(is_held_out(scene_at(0, "train", i)) for i in range(300))
    assert all(is_held_out(scene_at(0, "test", i, held_out=True)) for i in range(100))


def test_a_single_solid_is_never_held_out():
    assert not is_held_out(ONE)


# Captions


def test_the_canonical_caption_in_both_languages():
    assert describe(PAIR, "en") == "a large red cube left of a small blue sphere"
    assert describe(PAIR, "tr") == "küçük mavi bir kürenin solunda büyük kırmızı bir küp"
    assert describe(ONE, "en") == "a large red cube"
    assert describe(ONE, "tr") == "büyük kırmızı bir küp"


def test_sizes_can_be_left_out():
    assert describe(PAIR, "en", sizes=False) == "a red cube left of a blue sphere"
    assert describe(PAIR, "tr", sizes=False) == "mavi bir kürenin solunda kırmızı bir küp"


def test_orange_takes_an():
    assert describe(alone("ring", "orange"), sizes=False) == "an orange ring"


@pytest.mark.parametrize(
    "shape, expected",
    [
        ("cube", "sarı bir küpün arkasında kırmızı bir küp"),
        ("sphere", "sarı bir kürenin arkasında kırmızı bir küp"),
        ("cone", "sarı bir koninin arkasında kırmızı bir küp"),
        ("cylinder", "sarı bir silindirin arkasında kırmızı bir küp"),
        ("ring", "sarı bir halkanın arkasında kırmızı bir küp"),
    ],
)
def test_each_shape_takes_its_own_genitive(shape, expected):
    scene = Scene((RED_CUBE, Solid("yellow", shape, "small", 0.0, 2.5, 0.0)), "day", "behind")
    assert describe(scene, "tr", sizes=False) == expected


@pytest.mark.parametrize(
    "relation, word",
    [("left of", "solunda"), ("right of", "sağında"), ("in front of", "önünde"), ("behind", "arkasında")],
)
def test_each_relation_has_its_turkish_word(relation, word):
    assert describe(Scene(PAIR.solids, "day", relation), "tr").split()[4] == word


def test_the_most_common_caption_of_one_solid_is_the_plain_one():
    for language, plain in (("en", "a red cube"), ("tr", "kırmızı bir küp")):
        said = [caption(ONE, scene_rng(0, "train", i), language) for i in range(600)]
        assert max(set(said), key=said.count) == plain


@pytest.mark.parametrize("language", ["en", "tr"])
def test_captions_vary_as_much_as_they_should(language):
    said = [caption(PAIR, scene_rng(0, "train", i), language) for i in range(1500)]
    sizes = {"en": {"large", "big", "small", "little"}, "tr": {"büyük", "kocaman", "küçük", "ufak"}}[language]
    times = {"en": {"day", "daylight"}, "tr": {"gündüz"}}[language]
    joined = {"en": {"and"}, "tr": {"ve"}}[language]
    share = [sum(bool(words & set(s.split())) for s in said) / len(said) for words in (sizes, times, joined)]
    np.testing.assert_allclose(share, [1 / 2, 1 / 3, 1 / 5], atol=0.04)
    assert len(set(said)) > 100


def test_captions_are_lower_case_letters_and_single_spaces():
    letters = set("abcdefghijklmnopqrstuvwxyzçğıöşü")
    for i in range(150):
        for language in ("en", "tr"):
            words = caption(scene_at(0, "train", i), scene_rng(1, "train", i), language).split(" ")
            assert all(word and set(word) <= letters for word in words)


@pytest.mark.parametrize("language", ["en", "tr"])
def test_every_caption_can_be_read_back_noun_by_noun(language):
    rng = np.random.default_rng(0)
    for i in range(400):
        scene = scene_at(0, "train", i)
        read = named_last(caption(scene, rng, language), scene)
        changes = [solid for before, solid in zip([None, *read], read) if solid is not before]
        assert set(changes) == set(scene.solids) and len(changes) == len(scene.solids)


def test_nouns_name_solids_in_the_order_of_the_sentence_even_where_a_word_is_left_out():
    red, blue = Solid("red", "cube", "large", 0, 0, 0), Solid("blue", "cube", "large", 2, 0, 0)
    scene = Scene((red, blue), "day", "left of")
    assert named_last("a cube left of a blue object", scene) == [None, red, red, red, red, red, blue]
    assert named_last("mavi küpün solunda kırmızı bir küp", scene) == [None, blue, blue, blue, blue, red]
    # Only one cube is red, so the first noun must be the other one.
    assert named_last("a cube right of a red cube", scene) == [None, blue, blue, blue, blue, blue, red]


def test_a_caption_names_no_colour_that_is_not_there():
    for i in range(150):
        scene = scene_at(0, "train", i)
        there = {s.colour for s in scene.solids}
        english = set(caption(scene, scene_rng(1, "train", i), "en").split())
        turkish = set(caption(scene, scene_rng(1, "train", i), "tr").split())
        assert english & set(COLOURS) <= there
        assert turkish & set(COLOURS_TR.values()) <= {COLOURS_TR[c] for c in there}


@pytest.mark.parametrize(
    "language, expected",
    [
        ("en", {("left of", "red"), ("right of", "blue")}),
        ("tr", {("sağında", "kırmızı"), ("solunda", "mavi")}),
    ],
)
def test_a_caption_told_from_the_other_side_turns_its_relation_round(language, expected):
    # English begins with what is placed, Turkish with the reference; with the place last, see the next.
    found = set()
    for i in range(600):
        words = caption(PAIR, scene_rng(0, "train", i), language)
        if language == "tr" and not words.split()[-1].startswith(("küp", "küre")):
            continue
        for relation, colour in product({r for r, _ in expected}, ("red", "blue", "kırmızı", "mavi")):
            before = words.split(f" {relation} ")[0] if f" {relation} " in words else ""
            if colour in before.split():
                found.add((relation, colour))
    assert found == expected


def test_turkish_with_the_place_last_keeps_who_stands_where():
    said = {caption(PAIR, scene_rng(0, "train", i), "tr") for i in range(1000)}
    assert "kırmızı bir küp mavi bir kürenin solunda" in said
    assert "mavi bir küre kırmızı bir küpün sağında" in said
    assert "kırmızı bir küp mavi bir kürenin sağında" not in said


# Pictures and depth


def test_a_picture_is_the_same_bits_on_every_machine():
    picture, depth = render(PAIR)
    assert (picture.shape, picture.dtype) == ((128, 128, 3), np.uint8)
    assert (depth.shape, depth.dtype) == ((128, 128), np.float32)
    assert hashlib.sha256(picture.tobytes() + depth.tobytes()).hexdigest()[:16] == "f3c912b537e8d125"


def test_a_batch_is_its_scenes_one_by_one():
    pictures, depths = render_batch([PAIR, ONE], size=32)
    assert pictures.shape == (2, 32, 32, 3) and depths.shape == (2, 32, 32)
    np.testing.assert_array_equal(pictures[1], render(ONE, 32)[0])
    np.testing.assert_array_equal(depths[0], render(PAIR, 32)[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 128])
def test_the_boxes_that_save_time_cut_nothing_off(shape, size, monkeypatch):
    # Turned by 45 degrees, and once at each end of the floor.
    scenes = [
        Scene((Solid("green", shape, "large", x, z, turn),), "day", None)
        for x, z, turn in ((0.0, 0.0, 45.0), (-1.4, 1.8, -25.0), (1.4, -1.8, 10.0))
    ]
    quick = render_batch(scenes, size)
    # By its path the module would be hidden behind its function of the same name.
    module = importlib.import_module("sdjax.toyworld.render")
    monkeypatch.setattr(module, "_pixels", lambda box, size: (slice(0, size), slice(0, size)))
    np.testing.assert_array_equal(quick[0], render_batch(scenes, size)[0])
    np.testing.assert_array_equal(quick[1], render_batch(scenes, size)[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_solid_is_seen_inside_its_box_and_nearly_fills_it(shape):
    solid = alone(shape).solids[0]
    rows, columns = np.nonzero(render(alone(shape))[1] < render(EMPTY)[1] - 0.02)
    left, top, right, bottom = (64 * (1 + side) for side in screen_box(solid))
    assert left - 1 <= columns.min() <= left + 3 and right - 4 <= columns.max() <= right
    assert top - 1 <= rows.min() <= top + 4 and bottom - 5 <= rows.max() <= bottom


def test_the_floor_has_the_depth_of_its_place_and_the_sky_is_far():
    depth = render(EMPTY)[1]
    # The middle ray has depth h / sin = (0.95 + 14 * 3/5) / (3/5) along it, which is also its depth.
    assert abs(depth[63:65, 63:65].mean() - 9.35 / 0.6) < 0.01
    assert (depth[:20] == SKY_DEPTH).all() and (depth[-20:] < 16).all()


def test_the_top_of_a_sphere_is_as_near_as_it_should_be():
    across, down = project((0.0, 1.0, 0.0))
    depth = render(alone("sphere"))[1][int(64 * (1 + down)), int(64 * (1 + across))]
    # Its centre is 14 - 0.05 * 3/5 - 0.2 * 4/5 along the view axis, its surface 1 nearer.
    assert abs(depth - (13.81 - 1.0)) < 0.01


def test_a_nearer_solid_has_less_depth():
    floor = render(EMPTY)[1]
    near, far = (d[d < floor - 0.01].min() for d in (render(alone("cube", z=z))[1] for z in (-1.5, 1.5)))
    # Three units of floor are 3 * 4/5 along the view axis; a pixel, 0.04 units, may miss the nearest corner.
    assert abs(far - near - 2.4) < 0.05


def test_the_shadow_darkens_the_floor_to_the_right_and_only_darkens_it():
    picture, depth = render(alone("sphere"))
    empty, floor = render(EMPTY)
    on_floor = depth == floor
    darker = on_floor & (picture.max(-1).astype(int) < empty.max(-1).astype(int) - 40)
    assert darker.sum() > 200
    assert np.nonzero(darker)[1].mean() > 64 + 10
    assert (picture[on_floor] <= empty[on_floor]).all()


def test_a_solid_in_the_shadow_of_another_is_darker():
    small = Solid("white", "sphere", "small", 1.1, 0.7, 0.0)
    tall = Solid("red", "cylinder", "large", -0.4, 0.1, 0.0)
    across, down = project(
        (1.1 - 0.6 * 0.64, 0.64, 0.7 - 0.8 * 0.64)
    )  # the sphere's side towards the cylinder
    at = int(64 * (1 + down)), int(64 * (1 + across))
    lit, shaded = (render(Scene(solids, "day", None))[0][at].sum() for solids in ((small,), (small, tall)))
    assert shaded < 0.7 * lit


@pytest.mark.parametrize("time", TIMES)
def test_colours_can_be_told_from_each_other_and_from_the_floor(time):
    empty = render(Scene((), time, None))[0]
    across, down = project((-0.35, 1.45, -0.75))  # the lit side of a sphere
    at = int(64 * (1 + down)), int(64 * (1 + across))
    shown = [render(alone("sphere", colour, time))[0][at] for colour in COLOURS] + [empty[at], empty[10, 64]]
    shown = np.array(shown, float)
    apart = np.sqrt(((shown[:, None] - shown[None]) ** 2).sum(-1)) + 999 * np.eye(len(shown))
    assert apart.min() > 40


def test_one_can_look_through_the_ring():
    across, down = project((0.0, 1.0, 0.0))
    at = int(64 * (1 + down)), int(64 * (1 + across))
    assert render(alone("ring"))[1][at] == render(EMPTY)[1][at]


# Tools and errors


def test_the_series_for_cosine_and_sine():
    for degrees in (-90.0, -45.0, 0.0, 30.0, 90.0):
        angle = np.deg2rad(degrees)
        np.testing.assert_allclose(cos_sin(degrees), (np.cos(angle), np.sin(angle)), atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_outline_stands_on_the_floor(shape):
    assert abs(min(y for _, y, _ in outline(alone(shape).solids[0]))) < 1e-12


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: describe(ONE, "de"), "language"),
        (lambda: caption(ONE, scene_rng(0, "train", 0), "de"), "language"),
        (lambda: scene_rng(0, "dev", 0), "split"),
        (lambda: scene_rng(-1, "train", 0), "seed"),
        (lambda: sample_scene(scene_rng(0, "train", 0), count=3), "count"),
        (lambda: sample_scene(scene_rng(0, "train", 0), count=1, held_out=True), "count"),
        (lambda: render(ONE, 4), "size"),
    ],
)
def test_bad_input_is_named_in_one_line(call, named):
    with pytest.raises(InputError, match=f"^{named}[^\n]*$"):
        call()
