"""`sdjax txt2img --prompts`: each line is drawn once, by whichever process and however often it is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import OPENAI, model

from sdjax.checkpoint import native
from sdjax.cli.many import Line, draw_lines, join, read_lines, share
from sdjax.config import sd1
from sdjax.errors import InputError
from sdjax.images import read_picture, read_settings, to_uint8

SETTINGS = {"command": "txt2img", "steps": 2, "seed": 5, "first_image": 0, "guidance_scale": 2.0}


class Painter:
    """Draws nothing, notes what it was asked for, and is killed at a call of its choice."""

    def __init__(self, killed_at: int | None = None):
        self.config, self.drawn, self.killed_at = SimpleNamespace(name="painter", image_size=8), [], killed_at

    def txt2img(self, prompt, **options):
        if self.killed_at is not None and len(self.drawn) >= self.killed_at:
            raise KeyboardInterrupt
        self.drawn += list(zip(prompt, options["seed"], options["first_image"]))
        return np.zeros((len(prompt), 8, 8, 3), np.float32)


def write(path: Path, *rows) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_line_is_picture_number_line_of_the_seed_or_the_first_of_its_own(tmp_path):
    rows = {"prompt": "red"}, "", {"prompt": "blue", "seed": 9}, {"prompt": ""}
    lines = read_lines(write(tmp_path / "p.jsonl", *rows))
    painter = Painter()
    (tmp_path / "out").mkdir()
    assert draw_lines(painter, lines, SETTINGS, tmp_path / "out", together=2) == 3
    assert painter.drawn == [("red", 5, 0), ("blue", 9, 0), ("", 5, 3), ("", 5, 3)]  # the last two are one, twice
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000002.png", "000003.png"]
    assert read_settings(tmp_path / "out" / "000002.png")["seed"] == 9


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_what_was_drawn_before_a_kill_is_not_drawn_again(tmp_path, killed_at):
    lines = [Line(i, f"prompt {i}", "", None) for i in range(7)]
    first, second = Painter(killed_at), Painter()
    with pytest.raises(KeyboardInterrupt):
        draw_lines(first, lines, SETTINGS, tmp_path, together=2)
    draw_lines(second, lines, SETTINGS, tmp_path, together=2)
    asked = [(f"prompt {i}", 5, i) for i in range(7)]
    assert first.drawn + second.drawn == asked + asked[-1:]  # the last fills its batch up


def killed_at_picture(number: int, out: str) -> None:
    """Draws seven lines two at a time, in a process that dies when a picture is written but not yet in its place."""
    replace = os.replace

    def dying(part, path):
        if Path(path).name == f"{number:06}.png":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    os.replace = dying
    draw_lines(Painter(), [Line(i, f"prompt {i}", "", None) for i in range(7)], SETTINGS, Path(out), together=2)


def test_a_picture_that_was_being_written_at_a_kill_is_drawn_again_and_no_other(tmp_path):
    number = 3
    code = f"import test_many as t; t.killed_at_picture({number}, {str(tmp_path)!r})"
    died = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"{i:06}.png" for i in range(number)]
    (half,) = tmp_path.glob(".*.part")
    os.utime(half, (0, 0))  # an hour later
    painter = Painter()
    draw_lines(painter, [Line(i, f"prompt {i}", "", None) for i in range(7)], SETTINGS, tmp_path, together=1)
    assert painter.drawn == [(f"prompt {i}", 5, i) for i in range(number, 7)]
    assert [read_settings(tmp_path / f"{i:06}.png")["prompt"] for i in range(7)] == [f"prompt {i}" for i in range(7)]
    assert not half.exists()


@pytest.mark.parametrize("row", ["a red cube", '["red"]', {"seed": 1}, {"prompt": 1}, {"prompt": "a", "size": 3},
                                 {"prompt": "a", "seed": True}, '{"prompt": "a", "prompt": "b"}',
                                 {"prompt": 1_000_001 * "a"},
                                 {"prompt": "a", "seed": -1}, '{"prompt": "a", "seed": ' + 5000 * "1" + "}"])
def test_a_wrong_line_is_named(tmp_path, row):
    with pytest.raises(InputError, match="line 2: found"):
        read_lines(write(tmp_path / "p.jsonl", {"prompt": "red"}, row))


def test_pictures_of_other_settings_are_not_taken_for_done(tmp_path):
    lines = [Line(0, "red", "", None)]
    draw_lines(Painter(), lines, SETTINGS, tmp_path, together=1)
    with pytest.raises(InputError, match="another seed"):
        draw_lines(Painter(), lines, SETTINGS | {"seed": 6}, tmp_path, together=1)
    with pytest.raises(InputError, match="another height$|another height;"):
        draw_lines(Painter(), lines, SETTINGS | {"height": 16}, tmp_path, together=1)
    with pytest.raises(InputError, match="another dtype, weights"):
        draw_lines(Painter(), lines, SETTINGS | {"dtype": "bfloat16", "weights": "0"}, tmp_path, together=1)
    with pytest.raises(InputError, match="another prompt"):
        draw_lines(Painter(), [Line(0, "blue", "", None)], SETTINGS, tmp_path, together=1)


@pytest.mark.parametrize("no_metadata", [False, True])
def test_a_picture_that_was_cut_off_on_its_way_here_is_drawn_again(tmp_path, no_metadata):
    lines = [Line(i, "red", "", None) for i in range(3)]
    draw_lines(Painter(), lines, SETTINGS, tmp_path, 1, no_metadata)
    cut = tmp_path / "000001.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-20])
    assert draw_lines(Painter(), lines, SETTINGS, tmp_path, 1, no_metadata) == 1
    assert cut.read_bytes() == whole


def test_every_line_is_of_exactly_one_process():
    lines = [Line(i, "", "", None) for i in range(7)]
    assert sorted(share(lines, 3, 0) + share(lines, 3, 1) + share(lines, 3, 2)) == lines
    with pytest.raises(InputError, match="expected 0 to 2"):
        share(lines, 3, 3)


@pytest.mark.parametrize(
    ("coordinator", "processes", "process", "wrong"),
    [("here", 2, 0, "expected HOST:PORT"), ("here:99999", 2, 0, "expected HOST:PORT"),
     ("here:1234", 1, 0, "expected how many meet"),  # each would draw every line
     ("here:1234", 2, 2, "expected 0 to 1"), ("auto", 2, 1, "leave out --processes")],
)
def test_who_meets_is_checked_before_they_wait_for_each_other(monkeypatch, coordinator, processes, process, wrong):
    monkeypatch.setattr("jax.distributed.initialize", lambda **who: pytest.fail("it waits already"))
    with pytest.raises(InputError, match=wrong):
        join(coordinator, processes, process)


def test_two_processes_share_the_lines_and_each_picture_is_the_one_drawn_alone(tmp_path):
    sd = model(OPENAI)
    native.save(sd, tmp_path / "model")
    prompts = write(tmp_path / "p.jsonl", *({"prompt": p} for p in ("red", "e", "red e")))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sdjax", "txt2img", "--prompts", str(prompts), "--out", str(tmp_path / "out"),
               "--model", str(tmp_path / "model"), "--steps", "2", "--coordinator", f"localhost:{port}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen([*command, "--processes", "2", "--process", str(i)], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        for i in range(2)
    ]
    try:
        told = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    assert [out.split()[-2] for out, _ in told] == ["2", "1"]
    for i, prompt in enumerate(("red", "e", "red e")):
        alone = sd.txt2img(prompt, steps=2, first_image=i)[0]
        drawn = to_uint8(read_picture(tmp_path / "out" / f"{i:06}.png"))
        assert np.abs(drawn.astype(int) - to_uint8(alone)).max() <= 1


def test_settings_of_released_models_are_not_lost_on_a_line(tmp_path):
    painter = Painter()
    painter.config = sd1()
    draw_lines(painter, [Line(0, "red", "blue", None)], SETTINGS, tmp_path, together=1)
    stored = read_settings(tmp_path / "000000.png")
    assert (stored["negative_prompt"], stored["steps"], stored["model"]) == ("blue", 2, "sd1")
