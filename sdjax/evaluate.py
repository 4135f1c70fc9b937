"""Measures a model of the toy world: one table, each figure with its number of samples and a 95 % interval.

Prompts are canonical captions of scenes from the test split, which no training ever draws from. The first
picture of each prompt counts, by the reading of the judge, which has no part in drawing it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from sdjax.errors import InputError
from sdjax.images import as_pictures
from sdjax.pipeline import StableDiffusion
from sdjax.toyworld import LANGUAGES, Scene, describe, render_batch, scene_at
from sdjax.toyworld.judge import Judge, Seen, Verdict, middle, obeys

Z = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations
PLACE = 5.0  # pixels that the judge may be off
CAPTIONS = 64  # among which CLIP must find the right one
FAST = ("dpmpp_2m", 20)
SPLIT = "test"
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One figure: a mean or a share with its 95 % interval; `right` of `n` where it is a share."""

    name: str
    value: float
    unit: str  # "%", "dB" or "points"
    low: float
    high: float
    right: int | None
    n: int
    run: str  # what it was measured with


@dataclass(frozen=True)
class Drawing:
    """A set of pictures; sets that differ in language or speed alone have the same scenes and noise."""

    solids: int
    language: str = "en"
    held_out: bool = False
    fast: bool = False


@dataclass
class Bench:
    """The model on trial, the settings, and what has been drawn so far."""

    sd: StableDiffusion
    judge: Judge
    prompts: int
    sampler: str
    steps: int
    guidance_scale: float
    seed: int
    batch: int
    bar: tqdm
    drawn: dict[Drawing, list[Verdict]] = field(default_factory=dict)

    def scenes(self, solids: int | None, held_out: bool = False) -> list[Scene]:
        """Fresh scenes of the test split, `prompts` of them."""
        return [scene_at(self.seed, SPLIT, i, solids, held_out) for i in range(self.prompts)]

    def solver(self, fast: bool) -> tuple[str, int]:
        """The sampler and its number of steps."""
        return FAST if fast else (self.sampler, self.steps)

    def how(self, fast: bool = False) -> str:
        """The settings of a drawing, for the table."""
        sampler, steps = self.solver(fast)
        return f"{sampler}, {steps} steps, guidance {self.guidance_scale:g}, seed {self.seed}"

    def verdicts(self, drawing: Drawing) -> list[Verdict]:
        """What the judge says of each picture of a set, which is drawn the first time it is asked for."""
        if drawing not in self.drawn:
            scenes, found = self.scenes(drawing.solids, drawing.held_out), []
            sampler, steps = self.solver(drawing.fast)
            for start, some in self.batches(scenes):
                pictures = self.sd.txt2img(
                    [describe(scene, drawing.language) for scene in some], sampler=sampler, steps=steps,
                    guidance_scale=self.guidance_scale, seed=self.seed, first_image=start,
                )
                found += [obeys(seen, scene) for seen, scene in zip(self.judge.read(pictures), some)]
                self.bar.update(min(len(some), len(scenes) - start))
            self.drawn[drawing] = found[: len(scenes)]
        return self.drawn[drawing]

    def batches(self, items: Sequence[T], size: int | None = None) -> Iterator[tuple[int, list[T]]]:
        """Where each batch starts, and the batch; the last is filled up, so that one size is compiled."""
        size = min(size or self.batch, len(items))
        for start in range(0, len(items), size):
            some = list(items[start : start + size])
            yield start, some + some[-1:] * (size - len(some))


def evaluate(
    sd: StableDiffusion, judge: Judge, *, prompts: int = 500, steps: int = 50, sampler: str = "ddim",
    guidance_scale: float = 7.5, seed: int = 0, batch: int = 16, only: Collection[str] | None = None,
) -> dict[str, Any]:
    """The figures of a model as {"settings": {...}, "rows": [Row as a dict, ...]}, ready for JSON.

    `prompts` for each figure (CLIP's in whole groups of 64), `batch` pictures drawn at a time, `only` some
    of FIGURES. Raises InputError for an unknown figure or less than one prompt.
    """
    chosen = list(FIGURES) if only is None else [name for name in FIGURES if name in only]
    unknown = set(only or ()) - set(FIGURES)
    wished = ", ".join(sorted(unknown)) or "nothing"
    for name, good, found, expected in (
        ("only", chosen and not unknown, wished, "some of " + ", ".join(FIGURES)),
        ("prompts", prompts >= 1, prompts, "at least 1"),
        ("batch", batch >= 1, batch, "at least 1"),
    ):
        if not good:
            raise InputError(f"{name}: found {found}, expected {expected}")
    drawings = {drawing for name in chosen for drawing in FIGURES[name][1]}
    rows: list[Row] = []
    total = prompts * len(drawings)
    with tqdm(total=total, unit="picture", dynamic_ncols=True, smoothing=0.05) as bar:
        bench = Bench(sd, judge, prompts, sampler, steps, guidance_scale, seed, batch, bar)
        for name in chosen:
            bar.set_description(name)
            rows += FIGURES[name][0](bench)
    names = ("prompts", "steps", "sampler", "guidance_scale", "seed")
    return {"settings": {name: getattr(bench, name) for name in names}, "rows": [asdict(row) for row in rows]}


def table(report: dict[str, Any]) -> str:
    """What `evaluate` gives, as lines of text for people."""
    lines = [("figure", "value", "95 % interval", "right", "n", "with")]
    for row in (Row(**values) for values in report["rows"]):
        value, interval = f"{row.value:.1f} {row.unit}", f"{row.low:.1f} to {row.high:.1f}"
        right = "" if row.right is None else str(row.right)
        lines.append((row.name, value, interval, right, str(row.n), row.run))
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


# ---- intervals ---------------------------------------------------------------------------------------------


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1: Wilson 1927, J. Am. Stat. Assoc. 22, 209."""
    share, z2 = right / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of n pairs: Agresti and Min 2005, Stat. Med. 24, 729.

    `gained` of the pairs are right only in the first share, `lost` only in the second; each of the four
    outcomes gets half a pair more.
    """
    half = Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2))
    return (gained - lost - half) / (n + 2), (gained - lost + half) / (n + 2)


def _share(name: str, right: Sequence[bool], run: str) -> Row:
    count, n = sum(right), len(right)
    low, high = wilson(count, n)
    return Row(name, 100 * count / n, "%", 100 * low, 100 * high, count, n, run)


def _difference(name: str, first: Sequence[bool], second: Sequence[bool], run: str) -> Row:
    n = len(first)
    gained = sum(a and not b for a, b in zip(first, second))
    lost = sum(b and not a for a, b in zip(first, second))
    low, high = paired(gained, lost, n)
    return Row(name, 100 * (gained - lost) / n, "points", 100 * low, 100 * high, None, n, run)


def _mean(name: str, values: np.ndarray, unit: str, run: str) -> Row:
    mean, n = float(values.mean()), len(values)
    half = Z * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Row(name, mean, unit, mean - half, mean + half, None, n, run)


# ---- the figures -------------------------------------------------------------------------------------------


def _judge(bench: Bench) -> list[Row]:
    scenes, seen = bench.scenes(None), []
    for _, some in bench.batches(scenes, 64):
        seen += bench.judge.read(as_pictures(render_batch(some)[0], "renders"))
    verdicts = [obeys(found, scene) for found, scene in zip(seen, scenes)]
    placed = [v.objects and _in_place(found, scene) for v, found, scene in zip(verdicts, seen, scenes)]
    run = f"renders, seed {bench.seed}"
    return [
        _share(f"judge: colours, shapes, places within {PLACE:g} px", placed, run),
        _share("judge: and relation", [p and v.relation for p, v in zip(placed, verdicts)], run),
        _share("judge: and sizes", [p and v.sizes for p, v in zip(placed, verdicts)], run),
    ]


def _in_place(found: list[Seen], scene: Scene) -> bool:
    places = {(solid.colour, solid.shape): middle(solid) for solid in scene.solids}
    return all(math.dist((s.x, s.y), places[s.colour, s.shape]) <= PLACE for s in found)


def _vae(bench: Bench) -> list[Row]:
    scenes, decibels = bench.scenes(None), []
    for _, some in bench.batches(scenes):
        pictures = as_pictures(render_batch(some)[0], "renders")
        rebuilt = np.clip(np.asarray(bench.sd.vae.decode(bench.sd.vae.encode(pictures).mean)), -1.0, 1.0)
        error = np.mean((rebuilt - pictures).astype(np.float64) ** 2, axis=(1, 2, 3))
        decibels += list(10 * np.log10(2.0**2 / np.maximum(error, 1e-12)))  # the range of a picture is 2
    values = np.array(decibels[: len(scenes)])
    return [_mean("VAE: PSNR of fresh scenes", values, "dB", f"renders, seed {bench.seed}")]


def _clip(bench: Bench) -> list[Row]:
    right: dict[str, list[bool]] = {language: [] for language in LANGUAGES}
    for scenes in _groups(bench):
        pictures = as_pictures(render_batch(scenes)[0], "renders")
        for language, found in right.items():
            similarity = bench.sd.similarity(pictures, [describe(scene, language) for scene in scenes])
            found += (np.argmax(similarity, axis=1) == np.arange(CAPTIONS)).tolist()
    name, run = f"CLIP: its caption among {CAPTIONS}", f"renders, seed {bench.seed}"
    return [_share(f"{name}, {language}", found, run) for language, found in right.items()]


def _groups(bench: Bench) -> Iterator[list[Scene]]:
    """Groups of 64 scenes of which no two have the same caption, `prompts` scenes or a few more in all."""
    index = 0
    for _ in range(math.ceil(bench.prompts / CAPTIONS)):
        group: dict[str, Scene] = {}
        while len(group) < CAPTIONS:
            scene = scene_at(bench.seed, SPLIT, index)
            group.setdefault(describe(scene), scene)
            index += 1
        yield list(group.values())


def _one(bench: Bench) -> list[Row]:
    verdicts, run = bench.verdicts(Drawing(1)), bench.how()
    return [
        _share("one object: colour and shape", [v.objects for v in verdicts], run),
        _share("one object: and size", [v.sizes for v in verdicts], run),
    ]


def _two(bench: Bench) -> list[Row]:
    return _pairs(bench, Drawing(2), "two objects")


def _held_out(bench: Bench) -> list[Row]:
    return _pairs(bench, Drawing(2, held_out=True), "held-out pairs")


def _pairs(bench: Bench, drawing: Drawing, name: str) -> list[Row]:
    verdicts, run = bench.verdicts(drawing), bench.how()
    return [
        _share(f"{name}: both colours and shapes", [v.objects for v in verdicts], run),
        _share(f"{name}: and relation", [v.relation for v in verdicts], run),
    ]


def _turkish(bench: Bench) -> list[Row]:
    return _against(bench, "Turkish", "English", {"language": "tr"}, bench.how())


def _fast(bench: Bench) -> list[Row]:
    sampler, steps = FAST
    name, usual = f"{steps} steps of {sampler}", f"{bench.steps} of {bench.sampler}"
    return _against(bench, name, usual, {"fast": True}, bench.how(fast=True))


def _against(bench: Bench, name: str, usual: str, change: dict[str, Any], run: str) -> list[Row]:
    """One object and two, drawn in another way, and the difference from the usual way, picture by picture."""

    def right(solids: int, **how: Any) -> list[bool]:
        return [verdict.objects for verdict in bench.verdicts(Drawing(solids, **how))]

    one, two = right(1, **change), right(2, **change)
    return [
        _share(f"{name}, one object: colour and shape", one, run),
        _share(f"{name}, two objects: both colours and shapes", two, run),
        _difference(f"{name} less {usual}, objects right", one + two, right(1) + right(2), run),
    ]


_ENGLISH = (Drawing(1), Drawing(2))
# Each figure's function, and the pictures that it needs drawn; those on renders come first, being quick.
FIGURES: dict[str, tuple[Callable[[Bench], list[Row]], tuple[Drawing, ...]]] = {
    "judge": (_judge, ()),
    "vae": (_vae, ()),
    "clip": (_clip, ()),
    "one": (_one, _ENGLISH[:1]),
    "two": (_two, _ENGLISH[1:]),
    "held-out": (_held_out, (Drawing(2, held_out=True),)),
    "turkish": (_turkish, (*_ENGLISH, Drawing(1, "tr"), Drawing(2, "tr"))),
    "fast": (_fast, (*_ENGLISH, Drawing(1, fast=True), Drawing(2, fast=True))),
}
