"""What a trial of a model is made of: rows with their intervals, fresh scenes, and what has been drawn so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtrit
from tqdm import tqdm

from sdjax.pipeline import StableDiffusion
from sdjax.toyworld import Scene, describe, scene_at
from sdjax.toyworld.judge import Judge, Verdict, obeys

Z = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations
FAST = ("dpmpp_2m", 20)
SPLIT = "test"
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One figure: a mean or a share with its 95 % interval; `right` of `n` where it is a share."""

    name: str
    value: float
    unit: str  # "%", "dB", "points", or "" for a correlation
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
class Trial:
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

    def settings(self, image: int) -> dict[str, Any]:
        """The options of drawing one picture, number `image` of the seed."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance_scale": self.guidance_scale,
                "seed": self.seed, "first_image": image}

    def rebuilt(self, pictures: np.ndarray) -> np.ndarray:
        """What the VAE makes of pictures [b, H, W, 3], from the means of their latents."""
        return np.clip(np.asarray(self.sd.vae.decode(self.sd.vae.encode(pictures).mean)), -1.0, 1.0)

    def verdicts(self, drawing: Drawing) -> list[Verdict]:
        """What the judge says of each picture of a set, which is drawn the first time it is asked for."""
        if drawing not in self.drawn:
            scenes, found = self.scenes(drawing.solids, drawing.held_out), []
            sampler, steps = self.solver(drawing.fast)
            first = self.prompts * (drawing.solids - 1)  # noise of its own for either number of solids
            for start, some in self.batches(scenes):
                pictures = self.sd.txt2img(
                    [describe(scene, drawing.language) for scene in some], sampler=sampler, steps=steps,
                    guidance_scale=self.guidance_scale, seed=self.seed, first_image=first + start,
                )
                found += [obeys(seen, scene) for seen, scene in zip(self.judge.read(pictures), some)]
                self.bar.update(min(len(some), len(scenes) - start))
            self.drawn[drawing] = found[: len(scenes)]
        return self.drawn[drawing]

    def batches(self, items: Sequence[T], size: int | None = None) -> Iterator[tuple[int, list[T]]]:
        """Where each batch starts, and the batch; the last is filled up, so that one size is compiled."""
        size = max(min(size or self.batch, len(items)), 1)
        for start in range(0, len(items), size):
            some = list(items[start : start + size])
            yield start, some + some[-1:] * (size - len(some))


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1: Wilson 1927, J. Am. Stat. Assoc. 22, 209."""
    share, z2 = right / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half


def paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of n pairs: Agresti and Min 2005, Stat. Med. 24, 729.

    `gained` of the pairs are right only in the first share, `lost` only in the second; each of the four
    outcomes gets half a pair more.
    """
    half = Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2))
    return max((gained - lost - half) / (n + 2), -1.0), min((gained - lost + half) / (n + 2), 1.0)


def share(name: str, right: Sequence[bool], run: str) -> Row:
    """The row of a share of right answers, with Wilson's interval."""
    count, n = sum(right), len(right)
    low, high = wilson(count, n)
    return Row(name, 100 * count / n, "%", 100 * low, 100 * high, count, n, run)


def difference(name: str, first: Sequence[bool], second: Sequence[bool], run: str) -> Row:
    """The row of the first share less the second, of the same prompts, in points."""
    n = len(first)
    gained = sum(a and not b for a, b in zip(first, second))
    lost = sum(b and not a for a, b in zip(first, second))
    low, high = paired(gained, lost, n)
    return Row(name, 100 * (gained - lost) / n, "points", 100 * low, 100 * high, None, n, run)


def psnr(error: np.ndarray) -> float:
    """Decibels of a picture's error; pictures span 2, from -1 to 1."""
    return float(10 * np.log10(2.0**2 / max(float(np.mean(error.astype(np.float64) ** 2)), 1e-12)))


def mean(name: str, values: np.ndarray, unit: str, run: str) -> Row:
    """The row of a mean of two or more, with Student's interval, which is wide where they are few."""
    middle, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Row(name, middle, unit, middle - half, middle + half, None, n, run)
