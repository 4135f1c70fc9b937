"""The weights that ship: they draw what they are asked for, and stay small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sdjax
from sdjax.toyworld import describe, scene_at
from sdjax.toyworld.judge import load_judge, obeys

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(scope="module")
def judge():
    return load_judge(WEIGHTS / "tiny")


def test_they_are_found_by_name():
    assert sdjax.shipped("tiny").samefile(WEIGHTS / "tiny")
    with pytest.raises(sdjax.InputError, match="weights/huge: not found"):
        sdjax.shipped("huge")


def test_they_draw_what_they_are_asked_for(judge):
    scenes = [scene_at(3, "valid", i, count=1 + i % 2) for i in range(4)]
    drawn = sdjax.load(WEIGHTS / "tiny").txt2img([describe(s) for s in scenes], steps=12, sampler="dpmpp_2m", seed=3)
    assert sum(obeys(seen, scene).objects for seen, scene in zip(judge.read(drawn), scenes)) >= 3


def test_the_readmes_give_the_figures_that_were_measured():
    rows = {row["name"]: row for row in json.loads((WEIGHTS / "evaluate.json").read_text())["rows"]}
    front, tables = ((folder / "README.md").read_text() for folder in (WEIGHTS.parent, WEIGHTS))
    for name in ("one object: colour and shape", "two objects: both colours and shapes", "two objects: and relation"):
        for part in ("{value:.1f} times", "({low:.1f} to {high:.1f})"):
            assert part.format(**rows[name]) in front
    for row in rows.values():
        digits = 1 if row["unit"] else 3
        interval = f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"
        assert re.search(rf"^{re.escape(row['name'])} +{row['value']:.{digits}f} .* {interval} ", tables, re.M), row


def test_they_stay_small():
    files = {path: path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")}
    assert len(files) > 8 and max(files.values()) < 25e6 and sum(files.values()) < 120e6
    assert sum(size for path, size in files.items() if path.parent.name == "tiny") < 40e6
