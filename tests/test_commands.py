"""What each command leaves behind when all goes well, on small random weights."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from small_models import DEPTH, OPENAI, UPSCALER, model

import sdjax
from sdjax.checkpoint.export import to_original
from sdjax.cli import drawing
from sdjax.images import read_settings


@pytest.fixture
def weights(tmp_path):
    """The path of such weights, and a picture in.png of 20 x 12 pixels in the folder that the commands run in."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 12, 3), np.uint8)).save(tmp_path / "in.png")

    def save(config):
        sdjax.save(model(config), tmp_path / config.name)
        return str(tmp_path / config.name)

    return save


def size(path):
    """(height, width) of a picture."""
    return Image.open(path).size[::-1]


def test_pictures_come_one_after_the_other_and_are_those_of_a_batch(run, weights, monkeypatch):
    path = weights(OPENAI)
    for out, how in (("one", []), ("two", ["--batch", "2"]), ("many", ["--devices", "2"])):
        monkeypatch.setattr(sys, "stdin", io.StringIO("red\n"))
        code, said, _ = run("txt2img", "-", "--model", path, "--steps", "1", "--count", "3", "--out", out, *how)
        assert code == 0 and said.split() == [f"{out}/000{i}-red.png" for i in (1, 2, 3)]
        assert [read_settings(p)["first_image"] for p in said.split()] == [0, 1, 2]
    for i in (1, 2, 3):
        one, two, many = (np.asarray(Image.open(f"{out}/000{i}-red.png"), int) for out in ("one", "two", "many"))
        assert np.abs(one - two).max() <= 1 and np.abs(one - many).max() <= 1


def test_what_was_drawn_before_an_interrupt_stays(run, weights, monkeypatch):
    path, asked, draw = weights(OPENAI), [], drawing.with_bar

    def once(*given):
        asked.append(given)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return draw(*given)

    monkeypatch.setattr(drawing, "with_bar", once)
    code, said, err = run("txt2img", "red", "--model", path, "--steps", "1", "--count", "3", "--out", "out")
    assert code == 130 and said.split() == ["out/0001-red.png"] and "stopped" in err
    assert os.listdir("out") == ["0001-red.png"] and size("out/0001-red.png") == (16, 16)


def test_a_large_picture_is_enlarged_in_tiles(run, weights):
    path = weights(UPSCALER)
    given = ("upscale", "red", "--image", "in.png", "--model", path, "--steps", "1", "--out", "large.png")
    assert run(*given, "--tile", "16")[0] == 0 and size("large.png") == (80, 48)
    code, _, err = run(*given, "--tile", "8")
    assert code == 2 and "tile: found 8" in err


def test_depth_is_drawn_kept_and_shown(run, weights):
    path = weights(DEPTH)
    assert run("depth", "in.png", "--model", path, "--out", "near.png")[0] == 0 and size("near.png") == (20, 12)
    given = ("depth2img", "red", "--image", "in.png", "--model", path, "--steps", "2", "--preview", "--out")
    assert run(*given, "own.png")[0] == 0 and size("own.png") == size("own-depth.png") == (16, 8)
    # A depth of another size is brought to the picture's before both are cut.
    Image.open("near.png").resize((24, 40), Image.Resampling.NEAREST).save("twice.png")
    assert run(*given, "same.png", "--depth", "near.png")[0] == run(*given, "other.png", "--depth", "twice.png")[0] == 0
    same, other = (np.asarray(Image.open(f"{name}-depth.png"), int) for name in ("same", "other"))
    assert same.shape == other.shape and np.corrcoef(same.ravel(), other.ravel())[0, 1] > 0.9
    # What was drawn with a depth is not drawn again without.
    again = ("depth2img", "--like", "same.png", "--image", "in.png", "--model", path, "--out", "again.png")
    code, _, err = run(*again)
    assert code == 2 and "--depth: missing" in err
    assert run(*again, "--depth", "near.png")[0] == 0
    assert np.array_equal(*(np.asarray(Image.open(f"{name}.png")) for name in ("same", "again")))


def test_weights_are_told_and_converted(run, tmp_path):
    to_original(model(OPENAI), tmp_path / "one.safetensors")
    assert run("convert", "one.safetensors", "own", "--dtype", "float16") == (0, "own\n", "")
    _, said, _ = run("info", "own")
    assert "float16" in said and "like-sd1" in said and "unet" in said


def test_a_model_is_measured(run, weights):
    code, said, _ = run("bench", weights(OPENAI), "--steps", "1", "--rounds", "1", "--out", "b.json")
    assert code == 0 and "UNet step" in said
    with open("b.json", encoding="utf-8") as file:
        assert json.load(file)["settings"]["steps"] == 1
