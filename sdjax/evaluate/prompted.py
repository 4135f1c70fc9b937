"""The figures of text to image: judge, VAE and CLIP on renders, then what is drawn of a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sdjax.evaluate.trial import FAST, SPLIT, Drawing, Row, Trial, difference, mean, psnr, share
from sdjax.images import as_pictures
from sdjax.toyworld import LANGUAGES, Scene, describe, render_batch, reversed_relation, scene_at, swapped_colours
from sdjax.toyworld.judge import Seen, middle, obeys

PLACE = 5.0  # pixels that the judge may be off
CAPTIONS = 64  # among which CLIP must find the right one


def judge(trial: Trial) -> list[Row]:
    """How well the judge reads renders: what all the drawn figures hang on."""
    scenes, seen, times = trial.scenes(None), [], []
    for _, some in trial.batches(scenes, 64):
        pictures = as_pictures(render_batch(some)[0], "renders")
        seen += trial.judge.read(pictures)
        times += trial.judge.times(pictures)
    verdicts = [obeys(found, scene) for found, scene in zip(seen, scenes)]
    placed = [v.objects and _in_place(found, scene) for v, found, scene in zip(verdicts, seen, scenes)]
    run = f"renders, seed {trial.seed}"
    return [
        share(f"judge: colours, shapes, places within {PLACE:g} px", placed, run),
        share("judge: and relation", [p and v.relation for p, v in zip(placed, verdicts)], run),
        share("judge: and sizes", [p and v.sizes for p, v in zip(placed, verdicts)], run),
        share("judge: time of day", [time == scene.time for time, scene in zip(times, scenes)], run),
    ]


def _in_place(found: list[Seen], scene: Scene) -> bool:
    places = {(solid.colour, solid.shape): middle(solid) for solid in scene.solids}
    return all(math.dist((s.x, s.y), places[s.colour, s.shape]) <= PLACE for s in found)


def vae(trial: Trial) -> list[Row]:
    """How well the VAE rebuilds fresh scenes."""
    scenes, decibels = trial.scenes(None), []
    for _, some in trial.batches(scenes):
        pictures = as_pictures(render_batch(some)[0], "renders")
        decibels += map(psnr, trial.rebuilt(pictures) - pictures)
    values = np.array(decibels[: len(scenes)])
    return [mean("VAE: PSNR of fresh scenes", values, "dB", f"renders, seed {trial.seed}")]


def clip(trial: Trial) -> list[Row]:
    """How well CLIP tells right captions from wrong ones."""
    right: dict[str, list[bool]] = {language: [] for language in LANGUAGES}
    for scenes in _groups(trial):
        pictures = as_pictures(render_batch(scenes)[0], "renders")
        for language, found in right.items():
            similarity = trial.sd.similarity(pictures, [describe(scene, language) for scene in scenes])
            found += (np.argmax(similarity, axis=1) == np.arange(CAPTIONS)).tolist()
    name, run = f"CLIP: its caption among {CAPTIONS}", f"renders, seed {trial.seed}"
    among = [share(f"{name}, {language}", found, run) for language, found in right.items()]
    mistakes = {"a pair's relation from its reverse": reversed_relation,
                "a pair's colours from swapped ones": swapped_colours}
    return among + [
        share(f"CLIP: {mistake}, {language}", told, run)
        for mistake, wrong in mistakes.items() for language in LANGUAGES
        if (told := _told(trial, language, wrong))
    ]


def _told(trial: Trial, language: str, wrong: Callable[[Scene], Scene]) -> list[bool]:
    """Whether each picture of two solids is closer to its caption than to a wrong one; by chance half are.

    What the text encoder cannot tell apart, no denoiser that listens to it can draw.
    """
    told: list[bool] = []
    scenes = [scene for scene in trial.scenes(2) if wrong(scene) != scene]
    for _, some in trial.batches(scenes, CAPTIONS):
        captions = [describe(scene, language) for scene in (*some, *map(wrong, some))]
        similarity = trial.sd.similarity(as_pictures(render_batch(some)[0], "renders"), captions)
        told += (np.diagonal(similarity) > np.diagonal(similarity, len(some))).tolist()
    return told[: len(scenes)]


def _groups(trial: Trial) -> Iterator[list[Scene]]:
    """Groups of 64 scenes of which no two have the same caption, `prompts` scenes or a few more in all."""
    index = 0
    for _ in range(math.ceil(trial.prompts / CAPTIONS)):
        group: dict[str, Scene] = {}
        while len(group) < CAPTIONS:
            scene = scene_at(trial.seed, SPLIT, index)
            group.setdefault(describe(scene), scene)
            index += 1
        yield list(group.values())


def one(trial: Trial) -> list[Row]:
    """Prompts with one solid."""
    verdicts, run = trial.verdicts(Drawing(1)), trial.how()
    return [
        share("one object: colour and shape", [v.objects for v in verdicts], run),
        share("one object: and size", [v.sizes for v in verdicts], run),
    ]


def two(trial: Trial) -> list[Row]:
    """Prompts with two solids."""
    return _pairs(trial, Drawing(2), "two objects")


def held_out(trial: Trial) -> list[Row]:
    """Prompts with two solids whose combination no training has shown."""
    return _pairs(trial, Drawing(2, held_out=True), "held-out pairs")


def _pairs(trial: Trial, drawing: Drawing, name: str) -> list[Row]:
    verdicts, run = trial.verdicts(drawing), trial.how()
    return [
        share(f"{name}: both colours and shapes", [v.objects for v in verdicts], run),
        share(f"{name}: and relation", [v.relation for v in verdicts], run),
    ]


def turkish(trial: Trial) -> list[Row]:
    """The same prompts in Turkish, against English."""
    return _against(trial, "Turkish", "English", {"language": "tr"}, trial.how())


def fast(trial: Trial) -> list[Row]:
    """The same prompts by the fast solver, against the usual one."""
    sampler, steps = FAST
    name, usual = f"{steps} steps of {sampler}", f"{trial.steps} of {trial.sampler}"
    return _against(trial, name, usual, {"fast": True}, trial.how(fast=True))


def _against(trial: Trial, name: str, usual: str, change: dict[str, Any], run: str) -> list[Row]:
    """One object and two, drawn in another way, and the difference from the usual way, picture by picture."""

    def right(solids: int, **how: Any) -> list[bool]:
        return [verdict.objects for verdict in trial.verdicts(Drawing(solids, **how))]

    one, two = right(1, **change), right(2, **change)
    return [
        share(f"{name}, one object: colour and shape", one, run),
        share(f"{name}, two objects: both colours and shapes", two, run),
        difference(f"{name} less {usual}, objects right", one + two, right(1) + right(2), run),
    ]
