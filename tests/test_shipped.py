"""The weights that ship: they draw what they are asked for, and stay small."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdjax
from sdjax.toyworld import describe, scene_at
from sdjax.toyworld.judge import load_judge, obeys

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(scope="module")
def judge():
    return load_judge(WEIGHTS / "tiny")


def test_they_draw_what_they_are_asked_for(judge):
    scenes = [scene_at(3, "valid", i, count=1 + i % 2) for i in range(4)]
    drawn = sdjax.load(WEIGHTS / "tiny").txt2img([describe(s) for s in scenes], steps=12, sampler="dpmpp_2m", seed=3)
    assert sum(obeys(seen, scene).objects for seen, scene in zip(judge.read(drawn), scenes)) >= 3


def test_they_stay_small():
    files = {path: path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")}
    assert len(files) > 8 and max(files.values()) < 25e6 and sum(files.values()) < 120e6
    assert sum(size for path, size in files.items() if path.parent.name == "tiny") < 40e6
