"""The judge: what a grid says, what a scene asks for, and whether the shipped weights read renders."""

from pathlib import Path

import numpy as np
import pytest

from sdjax.errors import InputError
from sdjax.toyworld import COLOURS, SHAPES, SIZES, TIMES, Scene, Solid, render_batch, scene_at
from sdjax.toyworld.judge import (
    Grid,
    Judge,
    Seen,
    Verdict,
    floor_place,
    load_judge,
    middle,
    obeys,
    relation_between,
    solids,
)
from sdjax.training.judge import answers, spoil

WEIGHTS = Path(__file__).parents[1] / "weights" / "tiny"

RED_CUBE = Solid("red", "cube", "large", -1.2, 0.0, 0.0)
BLUE_BALL = Solid("blue", "sphere", "small", 1.2, 0.3, 0.0)
PAIR = Scene((RED_CUBE, BLUE_BALL), "day", "left of")


def seen_as(solid: Solid, **changed: str) -> Seen:
    x, y = middle(solid)
    return Seen(solid.colour, solid.shape, solid.size, x, y, 1.0)._replace(**changed)


def drawn(scenes: list[Scene]) -> np.ndarray:
    return render_batch(scenes)[0].astype(np.float32) / 127.5 - 1


def empty_grid() -> Grid:
    """Sixteen by sixteen cells that see nothing."""
    return Grid(np.full((16, 16), -9.0), *(np.zeros((16, 16, n)) for n in (8, 5, 2, 2)), np.zeros(()))


def put(grid: Grid, row: int, column: int, presence: float, looks: str, across: float = 0.0, down: float = 0.0):
    colour, shape, size = looks.split()
    grid.presence[row, column] = presence
    grid.colour[row, column, COLOURS.index(colour)] = 5.0
    grid.shape[row, column, SHAPES.index(shape)] = 5.0
    grid.size[row, column, SIZES.index(size)] = 5.0
    grid.offset[row, column] = across, down


# ---- from cells to solids ----------------------------------------------------------------------------------


def test_an_empty_grid_holds_no_solid():
    assert solids(empty_grid()) == []


def test_a_solid_stands_where_the_offset_moves_it_from_the_centre_of_its_cell():
    grid = empty_grid()
    put(grid, row=9, column=4, presence=2.0, looks="purple ring small", across=0.25, down=-0.5)
    (seen,) = solids(grid)
    assert seen[:5] == ("purple", "ring", "small", 8 * 4.75, 8 * 9.0)
    assert seen.confidence == pytest.approx(0.8808, abs=1e-4)  # the sigmoid of 2


def test_of_cells_that_mean_one_place_the_surest_speaks():
    grid = empty_grid()
    put(grid, 9, 4, 2.0, "red cube large", across=0.5)  # x = 40
    put(grid, 9, 5, 3.0, "orange cube large", across=-0.4)  # x = 40.8
    put(grid, 9, 8, 1.0, "green cone large")  # x = 68, another solid
    assert [s.colour for s in solids(grid)] == ["orange", "green"]


def test_what_is_less_likely_than_not_is_not_seen():
    grid = empty_grid()
    put(grid, 9, 4, -0.1, "red cube large")
    assert solids(grid) == []


# ---- from solids to a verdict ------------------------------------------------------------------------------


def test_a_picture_that_shows_the_scene_obeys_it_in_any_order():
    seen = [seen_as(BLUE_BALL), seen_as(RED_CUBE)]
    assert obeys(seen, PAIR) == Verdict(True, True, True, True, True, True)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        pytest.param([], "", id="nothing"),
        pytest.param([seen_as(RED_CUBE)], "", id="one is missing"),
        pytest.param([seen_as(RED_CUBE), seen_as(BLUE_BALL), seen_as(BLUE_BALL, y=9.0)], "", id="one too many"),
        pytest.param(
            [seen_as(RED_CUBE, colour="blue"), seen_as(BLUE_BALL, colour="red")], "count colours shapes",
            id="the colours changed places",
        ),
        pytest.param(
            [seen_as(RED_CUBE, shape="cone"), seen_as(BLUE_BALL)], "count colours",
            id="a wrong shape",
        ),
        pytest.param(
            [seen_as(RED_CUBE, size="small"), seen_as(BLUE_BALL)], "count colours shapes objects relation",
            id="a wrong size",
        ),
        pytest.param(
            [seen_as(RED_CUBE, x=100.0), seen_as(BLUE_BALL, x=30.0)], "count colours shapes objects sizes",
            id="on the wrong sides",
        ),
    ],
)
def test_the_verdict_names_what_is_right(seen, verdict):
    assert [name for name, good in obeys(seen, PAIR)._asdict().items() if good] == verdict.split()


def test_one_object_asks_for_one_object_and_no_relation():
    alone = Scene((RED_CUBE,), "day", None)
    assert all(obeys([seen_as(RED_CUBE)], alone))
    assert not obeys([seen_as(RED_CUBE), seen_as(RED_CUBE, x=100.0)], alone).objects


# ---- places ------------------------------------------------------------------------------------------------


def test_the_middle_of_a_solid_leads_back_to_where_it_stands():
    assert floor_place(seen_as(BLUE_BALL)) == pytest.approx((1.2, 0.3))


@pytest.mark.parametrize(
    ("x", "z", "relation"),
    [(2.0, 0.7, "left of"), (-2.0, 0.7, "right of"), (0.7, 2.5, "in front of"), (-0.7, -2.5, "behind")],
)
def test_the_relation_is_along_the_axis_of_the_greater_distance(x, z, relation):
    first, second = (Solid("red", "cube", "small", *place, 0.0) for place in ((0.0, 0.0), (x, z)))
    assert relation_between(seen_as(first), seen_as(second)) == relation


def test_the_relations_of_true_scenes_are_read_from_their_places():
    scenes = [scene_at(5, "valid", i, count=2) for i in range(200)]
    assert all(obeys([seen_as(solid) for solid in scene.solids], scene).relation for scene in scenes)


# ---- training ----------------------------------------------------------------------------------------------


def test_the_answers_of_training_are_read_back_as_the_scene():
    scenes = [scene_at(5, "train", i) for i in range(50)]
    told = answers(scenes)
    one_hot = {name: 9.0 * np.eye(n)[told[name]] for name, n in (("colour", 8), ("shape", 5), ("size", 2))}
    presence = 20 * told["presence"] - 10
    for i, scene in enumerate(scenes):
        looks = (logits[i] for logits in one_hot.values())
        assert all(obeys(solids(Grid(presence[i], *looks, told["offset"][i], told["night"][i])), scene))
        assert told["night"][i] == (scene.time == "night")


def test_a_spoilt_picture_is_close_to_the_picture():
    pictures = drawn([scene_at(5, "train", i) for i in range(8)])
    spoilt = spoil(pictures, np.random.default_rng(0))
    assert spoilt.dtype == np.float32 and np.abs(spoilt).max() <= 1
    error = np.abs(spoilt - pictures).mean(axis=(1, 2, 3))
    assert (error > 0.001).all() and (error < 0.15).all()


# ---- the network -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Judge:
    return load_judge(WEIGHTS)


def test_a_saved_judge_reads_as_before(tmp_path, shipped):
    shipped.save(tmp_path / "judge.safetensors")
    pictures = drawn([scene_at(5, "valid", i) for i in range(40)])  # more than one batch
    assert load_judge(tmp_path).read(pictures) == shipped.read(pictures)


def test_the_judge_is_small(shipped):
    assert shipped.network.size < 400_000


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((1, 64, 64, 3)),
        np.zeros((1, 128, 128, 3), np.uint8),
        np.zeros((128, 128, 3)),
        np.zeros((0, 128, 128, 3)),
    ],
)
def test_other_pictures_are_refused(pictures, shipped):
    with pytest.raises(InputError, match=r"pictures: found .*expected floats in \[-1, 1\] of shape"):
        shipped.read(pictures)


def test_the_shipped_judge_reads_fresh_renders(shipped):
    scenes = [scene_at(7, "test", i) for i in range(100)]
    pictures = drawn(scenes)
    verdicts = [obeys(seen, scene) for seen, scene in zip(shipped.read(pictures), scenes)]
    assert sum(all(v) for v in verdicts) >= 99
    assert shipped.times(pictures) == [scene.time for scene in scenes]


def test_the_shipped_judge_sees_nothing_on_an_empty_floor(shipped):
    assert shipped.read(drawn([Scene((), time, None) for time in TIMES])) == [[], []]
