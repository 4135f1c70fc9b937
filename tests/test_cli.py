"""The command line: wrong input is one line on stderr and exit code 2, and a picture repeats itself."""

from __future__ import annotations

import io
import re
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from small_models import DEPTH, model

from sdjax import cli
from sdjax.config import GUIDANCE
from sdjax.images import read_settings, write_png


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["txt2img"], "prompt: missing"),
        (["txt2img", "a", "--size", "100x100"], "multiple of 8"),
        (["txt2img", "a", "--size", "big"], "--size: found 'big'"),
        (["txt2img", "a", "--size", "99992x99992"], "at most 64,000,000 pixels"),
        (["txt2img", "a", "--batch", "0"], "--batch: found 0"),
        (["txt2img", "a", "--model", 300 * "a"], "too long"),
        (["train", "tokenizer", "--run", "lines.jsonl"], "File exists"),
        (["txt2img", "a", "--steps", "0"], "steps: found 0, expected a whole number from 1 to 1000"),
        (["txt2img", "a", "--steps", "1001"], "steps: found 1001"),
        (["txt2img", "a", "--steps", "many"], "--steps"),
        (["txt2img", "a", "--sampler", "magic"], "sampler: found 'magic', expected one of ddim, euler, dpmpp_2m, ddpm"),
        (["txt2img", "a", "--eta", "2"], "eta: found 2.0"),
        (["txt2img", "a", "--guidance", "nan"], "guidance_scale: found nan"),
        (["txt2img", "a", "--guidance", "1e39"], "guidance_scale: found 1e+39"),
        (["txt2img", "a", "--out", "lines.jsonl/a.png"], "cannot be made"),
        (["txt2img", "a", "--seed", "-1"], "seed: found -1"),
        (["txt2img", "a", "--count", "0"], "--count: found 0"),
        (["txt2img", "a", "--model", "nowhere"], "nowhere"),
        (["txt2img", "a", "--out", "picture.jpg"], "expected a .png file or a folder"),
        (["txt2img", "a", "--like", "nowhere.png"], "nowhere.png"),
        (["txt2img", "a", "b"], "unexpected extra argument"),
        (["txt2img", "a", "--devices", "0"], "devices: found 0"),
        (["txt2img", "a", "--processes", "2"], "give that file too"),
        (["txt2img", "--prompts", "."], "cannot be read"),
        (["txt2img", "--prompts", ".", "--batch", "0"], "--batch: found 0"),
        (["txt2img", "--prompts", "lines.jsonl", "--processes", "2", "--process", "2"], "found 2 of 2"),
        (["txt2img", "--prompts", "lines.jsonl", "--coordinator", "here"], "expected HOST:PORT"),
        (["txt2img", "--prompts", "lines.jsonl", "--out", "lines.jsonl/in"], "cannot be made"),
        (["txt2img", "--prompts", "lines.jsonl", "--out", "in.jpg"], "expected a .png file or a folder"),
        (["txt2img", "--prompts", "lines.jsonl", "--first", "2147483648"], "line 1 is picture 2147483648"),
        (["bench", "--size", "0x0"], "--size: found 0x0"),
        (["bench", "--out", "."], "is a folder, expected a file"),
        (["bench", "weights", "--random", "sd1"], "give one of the two"),
        (["txt2img", "a", "--colour", "red"], "No such option"),
        (["img2img", "a"], "--image: missing"),
        (["img2img", "a", "--image", "nowhere.png"], "nowhere.png"),
        (["inpaint", "a"], "--image: missing"),
        (["inpaint", "a", "--image", "nowhere.png"], "--mask: missing"),
        (["inpaint", "a", "--image", "nowhere.png", "--mask", "nowhere.png"], "nowhere.png"),
        (["upscale", "a"], "--image: missing"),
        (["upscale", "a", "--image", "grey.png"], "grey.png"),
        (["depth2img", "a"], "--image: missing"),
        (["depth2img", "a", "--image", "grey.png"], "grey.png"),
        (["depth", "nowhere.png"], "nowhere.png"),
        (["depth", "nowhere.png", "--out", "d.jpg"], "expected a .png file"),
        (["convert", "nowhere", "no/such/folder"], "no/such is no folder"),
        (["info", "nowhere"], "nowhere"),
        (["convert", "nowhere", "here"], "nowhere"),
        (["download", "sd99"], "sd99"),
        (["txt2img", "a", "--size", "0x64"], "--size: found 0x64"),
        (["txt2img", "--prompts", "lines.jsonl", "--out", "here", "--processes", "0"], "--processes: found 0"),
        (["train", "unet"], "sdjax train tokenizer"),
        (["train", "vae", "--steps", "0"], "steps: found 0"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "--out", "."], "is a folder, expected a file"),
        (["evaluate", "--only", "judge", "--guidance", "nan"], "guidance_scale: found nan"),
        (["train", "vae", "--seed", "2147483648"], "seed: found 2147483648, expected 0 to 2147483647"),
        (["sweep", "nowhere"], "nowhere"),
        (["sweep", "--out", "plot.jpg"], "expected a .png file"),
        (["paint"], "No such command 'paint'"),
        ([], "Missing command"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(run, tmp_path, arguments, said):
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a"}')
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    lines = [line for line in err.split("\n") if line and not line.startswith("drawing")]
    assert len(lines) == 1 and lines[0].startswith("sdjax: ") and said in lines[0]
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "here").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory.")])
def test_too_little_memory_is_one_line_that_says_what_needs_less(run, monkeypatch, error):
    def load(*given, **options):
        raise error

    monkeypatch.setattr("sdjax.load", load)
    code, _, err = run("txt2img", "a")
    assert code == 2 and err.startswith("sdjax: out of memory;") and err.count("\n") == 1


def test_a_folder_may_have_a_dot_in_its_name(run):
    assert run("txt2img", "a", "--steps", "1", "--out", "o.v2")[0] == 0 and Image.open("o.v2/0001-a.png")


def test_strength_outside_0_to_1_is_refused(run):
    Image.new("RGB", (64, 64)).save("grey.png")
    code, _, err = run("img2img", "a", "--image", "grey.png", "--strength", "1.5")
    assert code == 2 and "strength: found 1.5" in err


def test_a_picture_is_drawn_and_says_where_and_repeats_itself(run):
    code, out, _ = run("txt2img", "kırmızı bir küp", "--steps", "2", "--seed", "5", "--count", "2", "--out", "a")
    assert code == 0 and out.split() == ["a/0001-kırmızı-bir-küp.png", "a/0002-kırmızı-bir-küp.png"]
    settings = read_settings("a/0002-kırmızı-bir-küp.png")
    assert settings["prompt"] == "kırmızı bir küp" and settings["seed"] == 5 and settings["first_image"] == 1
    code, out, _ = run("txt2img", "--like", "a/0002-kırmızı-bir-küp.png", "--out", "again.png")
    assert code == 0
    first, again = (np.asarray(Image.open(p), np.int32) for p in ("a/0002-kırmızı-bir-küp.png", "again.png"))
    assert np.abs(first - again).max() <= 1  # alone and in a batch, sums may round differently


def test_metadata_can_be_left_out(run):
    assert run("txt2img", "", "--steps", "1", "--no-metadata", "--out", "bare.png")[0] == 0
    assert not Image.open("bare.png").info
    # Nor does the name tell what was asked for.
    assert run("txt2img", "a cube", "--steps", "1", "--no-metadata", "--out", "bare")[1] == "bare/0001-picture.png\n"


def test_the_parameters_key_is_what_other_tools_read(run):
    given = ("--negative", "blue", "--steps", "1", "--size", "64x72")
    run("txt2img", "a red cube", *given, "--guidance", "7.5", "--out", "p.png")
    text = Image.open("p.png").info["parameters"]
    assert text.startswith("a red cube\nNegative prompt: blue\n")
    assert "Steps: 1, Sampler: DDIM, CFG scale: 7.5, Seed: 0, Size: 72x64" in text
    run("txt2img", "a red cube", *given, "--out", "own.png")
    assert read_settings("own.png")["guidance_scale"] == GUIDANCE  # the model's own default, said as a number


def test_img2img_keeps_the_size_of_its_picture_in_multiples_of_8(run):
    Image.new("RGB", (75, 66), "red").save("in.png")
    drawn = run("img2img", "a red cube", "--image", "in.png", "--steps", "2", "--strength", "0.5", "--out", "out.png")
    assert drawn[0] == 0
    assert Image.open("out.png").size == (72, 64)


def test_a_size_that_was_asked_for_is_not_another(run):
    Image.new("RGB", (75, 66), "red").save("in.png")
    code, _, err = run("img2img", "a red cube", "--image", "in.png", "--size", "100x100")
    assert code == 2 and "height: found 100, expected a multiple of 8" in err


def test_a_picture_of_a_picture_repeats_itself_at_a_size_that_is_no_multiple_of_8(run):
    noise = np.random.default_rng(0).integers(0, 256, (66, 75, 3), np.uint8)
    Image.fromarray(noise).save("in.png")
    assert run("img2img", "a red cube", "--image", "in.png", "--steps", "2", "--out", "out.png")[0] == 0
    assert run("img2img", "--like", "out.png", "--image", "in.png", "--out", "again.png")[0] == 0
    first, again = (np.asarray(Image.open(name)) for name in ("out.png", "again.png"))
    assert first.shape == (64, 72, 3) and np.array_equal(first, again)


def test_an_enlarged_picture_repeats_itself_from_the_small_one(run):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save("in.png")
    assert run("upscale", "a red cube", "--image", "in.png", "--steps", "1", "--out", "out.png")[0] == 0
    assert run("upscale", "--like", "out.png", "--image", "in.png", "--out", "again.png")[0] == 0
    first, again = (np.asarray(Image.open(name)) for name in ("out.png", "again.png"))
    assert first.shape == (64, 64, 3) and np.array_equal(first, again)


def test_a_picture_remembers_its_dtype_and_its_weights(run, tmp_path):
    given = ("--steps", "1", "--size", "16x16")
    assert run("txt2img", "a red cube", *given, "--dtype", "bfloat16", "--out", "half.png")[0] == 0
    assert run("txt2img", "--like", "half.png", "--out", "again.png")[0] == 0
    assert read_settings("again.png") == read_settings("half.png") and read_settings("half.png")["dtype"] == "bfloat16"
    code, _, err = run("txt2img", "--like", "half.png", "--dtype", "float32")
    assert code == 2 and "--like: made with tiny weights" in err and "give its --model and --dtype" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("guidance_scale", "a"), ("steps", 2.5), ("seed", True), ("fit", [64]), ("fit", ["a", "b"]), ("fit", [-8, 8]),
     ("fit", 5), ("fit", [8, 10**12]), ("prompt", None), ("strength", None), ("dtype", 5)],
)
def test_a_picture_whose_settings_cannot_be_is_refused(run, name, value):
    settings = {"command": "img2img", "prompt": "a", name: value}
    write_png("made.png", np.zeros((8, 8, 3), np.uint8), settings)
    code, _, err = run("img2img", "--like", "made.png", "--image", "made.png")
    assert code == 2 and f"made.png: remembers {name} as" in err and "Traceback" not in err


@pytest.mark.parametrize("settings", [{}, {"command": []}, {"command": {}}, {"command": "paint"}])
def test_a_picture_that_no_command_made_says_so(run, settings):
    write_png("made.png", np.zeros((8, 8, 3), np.uint8), {"prompt": "a"} | settings)
    assert "made.png: was made by no command" in run("txt2img", "--like", "made.png")[2]


def test_weights_are_told_apart_by_every_network_that_draws(run):
    """A model whose decoder was trained further draws other pictures, though its denoiser is the same."""
    sd = model(DEPTH)
    own = cli.common.weights_id(sd)
    for name in ("text_encoder", "unet", "vae", "depth_estimator"):
        network = getattr(sd, name)
        leaves, tree = jax.tree.flatten(network.state)
        for i in range(len(leaves)):  # a fine-tune may change but one matrix
            changed = [np.asarray(leaf) + (i == j) for j, leaf in enumerate(leaves)]
            network.state = jax.tree.unflatten(tree, changed)
            assert cli.common.weights_id(sd) != own, (name, i)
        network.state = jax.tree.unflatten(tree, leaves)
    write_png("made.png", np.zeros((8, 8, 3), np.uint8), {"command": "txt2img", "prompt": "a", "weights": "of another"})
    assert "--like: made with None weights of another" in run("txt2img", "--like", "made.png")[2]


def test_two_that_draw_at_once_take_numbers_of_their_own(tmp_path):
    place = cli.drawing.place
    with place(tmp_path, "a red cube", 0, 1) as first, place(tmp_path, "a red cube", 0, 1) as other:
        assert (first.name, other.name) == ("0001-a-red-cube.png", "0002-a-red-cube.png")
        second = place(tmp_path, "a cone", 0, 1)  # of which a kill would leave nothing that looks like a picture
        assert second.__enter__().name == "0003-a-cone.png" and not list(tmp_path.glob("*.png"))
        first.touch()
    with place(tmp_path, "a cone", 0, 1) as late:
        assert late.name == "0002-a-cone.png"
    with pytest.raises(KeyboardInterrupt), place(tmp_path, "a cone", 0, 1):
        raise KeyboardInterrupt
    second.__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["0001-a-red-cube.png"]


def test_a_number_whose_picture_came_meanwhile_is_not_given_again(tmp_path, monkeypatch):
    looks = iter([[], [1], [1], []])
    monkeypatch.setattr(cli.drawing, "_numbers", lambda out: next(looks))
    with cli.drawing.place(tmp_path, "a cone", 0, 1) as path:
        assert path.name == "0002-a-cone.png"


def test_inpaint_leaves_what_the_mask_leaves_out(run):
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    mask = np.zeros((32, 40), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(picture).save("in.png")
    Image.fromarray(mask).save("mask.png")
    given = ("--image", "in.png", "--mask", "mask.png", "--steps", "2")
    assert run("inpaint", "a red cube", *given, "--preview", "--out", "out.png")[0] == 0
    painted = np.asarray(Image.open("out.png"))
    assert np.array_equal(painted[:, :24], picture[:, :24]) and not np.array_equal(painted[:, 24:], picture[:, 24:])
    hole = np.asarray(Image.open("out-mask.png"))
    assert np.array_equal(hole[:, :24], picture[:, :24]) and np.ptp(hole[:, 24:]) == 0
    assert run("inpaint", "--like", "out.png", *given[:4], "--out", "again.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), painted)
    Image.new("L", (47, 39)).save("other.png")  # cut to multiples of 8 it would be as large, and lie elsewhere
    code, _, err = run("inpaint", "a", "--image", "in.png", "--mask", "other.png")
    assert code == 2 and "other.png: is 39 x 47, its image 32 x 40" in err


def test_help_names_every_command(run):
    parts = cli.draw.app, cli.weights.app, cli.toyworld.app, cli.bench.app
    for asked, commands in ((["--help"], [c for part in parts for c in part.registered_commands]),
                            (["train", "--help"], cli.toyworld.train.registered_commands)):
        _, out, _ = run(*asked)
        assert len(commands) > 6
        for name in (c.name or c.callback.__name__ for c in commands):
            assert re.search(rf"^\s*{name}\s", out, re.MULTILINE), name


def test_a_path_that_the_terminal_has_no_letters_for_is_still_printed(run, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(cli.drawing, "draw", lambda *given: print("küp-kırmızı.png"))
    monkeypatch.setattr(sys, "argv", ["sdjax", "txt2img", "a"])
    monkeypatch.setattr(sys, "stdout", out)
    cli.main()
    out.flush()
    assert out.buffer.getvalue().decode("latin-1").strip() == "küp-k\\u0131rm\\u0131z\\u0131.png"


def test_no_prompt_comes_in_where_standard_input_is_closed(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run("txt2img", "-")
    assert code == 2 and err.startswith("sdjax: prompt: nothing comes in") and err.count("\n") == 1


def test_a_setting_that_does_nothing_is_said_to(run):
    Image.new("RGB", (16, 16)).save("grey.png")
    given = ("--image", "grey.png", "--steps", "1", "--out", "out.png")
    assert "sdjax: strength: 0.7 of 1 steps is less than one, so that none is taken\n" in run("img2img", "a", *given)[2]
    assert "strength" not in run("img2img", "a", *given, "--strength", "0")[2]
    assert "sdjax: negative_prompt: at guidance 1 it is not" in run("upscale", "a", *given, "--negative", "b")[2]


def test_a_warning_is_one_line_too(run, monkeypatch):
    monkeypatch.setattr(cli.drawing, "draw", lambda *given: warnings.warn("cut off", stacklevel=2))
    assert run("txt2img", "a red cube")[::2] == (0, "sdjax: cut off\n")
