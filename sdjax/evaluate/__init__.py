"""Measures a model of the toy world: one table, each figure with its number of samples and a 95 % interval.

Prompts are canonical captions of scenes from the test split, which no training ever draws from. The first
picture of each prompt counts, by the reading of the judge, which has no part in drawing it. What a model is
for decides which figures it has: text to image, inpainting, depth or upscaling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any, NamedTuple

from tqdm import tqdm

from sdjax.errors import InputError
from sdjax.evaluate import prompted, shown
from sdjax.evaluate.trial import Drawing, Row, Trial, paired, wilson
from sdjax.pipeline import StableDiffusion
from sdjax.request import require_settings
from sdjax.toyworld.judge import SIZE, Judge

__all__ = ["FIGURES", "evaluate", "paired", "table", "wilson"]


class Figure(NamedTuple):
    """A function that measures, and what it needs.

    `drawings` are sets of pictures of prompts, `alone` tells whether it draws one picture a prompt itself, and `beside`
    for which models it is, by the channels beside the latents.
    """

    rows: Callable[[Trial], list[Row]]
    drawings: tuple[Drawing, ...] = ()
    alone: bool = False
    beside: int = 0


_ONE, _TWO = Drawing(1), Drawing(2)
# Those on renders come first, being quick.
FIGURES: dict[str, Figure] = {
    "judge": Figure(prompted.judge),
    "vae": Figure(prompted.vae),
    "clip": Figure(prompted.clip),
    "one": Figure(prompted.one, (_ONE,)),
    "two": Figure(prompted.two, (_TWO,)),
    "held-out": Figure(prompted.held_out, (Drawing(2, held_out=True),)),
    "turkish": Figure(prompted.turkish, (_ONE, _TWO, Drawing(1, "tr"), Drawing(2, "tr"))),
    "fast": Figure(prompted.fast, (_ONE, _TWO, Drawing(1, fast=True), Drawing(2, fast=True))),
    "inpaint": Figure(shown.inpaint, alone=True, beside=5),
    "midas": Figure(shown.depth, beside=1),
    "depth2img": Figure(shown.depth2img, alone=True, beside=1),
    "upscale": Figure(shown.upscale, alone=True, beside=3),
}


def evaluate(
    sd: StableDiffusion, judge: Judge, *, prompts: int = 500, steps: int = 50, sampler: str = "ddim",
    guidance_scale: float | None = None, seed: int = 0, batch: int = 16, only: Collection[str] | None = None,
) -> dict[str, Any]:
    """The figures of a model as {"settings": {...}, "rows": [Row as a dict, ...]}, ready for JSON.

    `prompts` for each figure (CLIP's in whole groups of 64), `batch` pictures drawn at a time, `only` some
    of FIGURES, by default all that suit the model. Raises InputError for an unknown figure or less than two prompts.
    """
    chosen = [name for name in FIGURES if name in only] if only is not None else suited(sd)
    unknown = set(only or ()) - set(FIGURES)
    wished = ", ".join(sorted(unknown)) or "nothing"
    draws = any(FIGURES[name].drawings or FIGURES[name].alone for name in chosen)
    for name, good, found, expected in (
        ("only", chosen and not unknown, wished, "some of " + ", ".join(FIGURES)),
        ("prompts", prompts >= 2, prompts, "at least 2"),
        ("batch", batch >= 1, batch, "at least 1"),
        ("model", not draws or sd.config.image_size == SIZE, f"pictures of {sd.config.image_size} pixels",
         f"{SIZE}, which the judge reads"),
    ):
        if not good:
            raise InputError(f"{name}: found {found}, expected {expected}")
    guidance_scale = sd.config.guidance if guidance_scale is None else guidance_scale
    require_settings(sd.config, 1, steps, guidance_scale, seed, sampler=sampler)  # before hours of drawing
    drawings = {drawing for name in chosen for drawing in FIGURES[name].drawings}
    rows: list[Row] = []
    total = prompts * (len(drawings) + sum(FIGURES[name].alone for name in chosen))
    with tqdm(total=total, unit="picture", dynamic_ncols=True, smoothing=0.05) as bar:
        trial = Trial(sd, judge, prompts, sampler, steps, guidance_scale, seed, batch, bar)
        for name in chosen:
            bar.set_description(name)
            rows += FIGURES[name].rows(trial)
    names = ("prompts", "steps", "sampler", "guidance_scale", "seed")
    return {"settings": {name: getattr(trial, name) for name in names}, "rows": [asdict(row) for row in rows]}


def suited(sd: StableDiffusion) -> list[str]:
    """The figures of what a model is for; CLIP's where it has both encoders."""
    beside = sd.config.unet.in_channels - sd.config.vae.latent_channels
    left_out = {"clip"} if sd.image_encoder is None else set()
    return [name for name, figure in FIGURES.items() if figure.beside == beside and name not in left_out]


def table(report: dict[str, Any]) -> str:
    """What `evaluate` gives, as lines of text for people."""
    lines = [("figure", "value", "95 % interval", "right", "n", "with")]
    for row in (Row(**values) for values in report["rows"]):
        digits = 1 if row.unit else 3
        value, interval = f"{row.value:.{digits}f} {row.unit}", f"{row.low:.{digits}f} to {row.high:.{digits}f}"
        right = "" if row.right is None else str(row.right)
        lines.append((row.name, value, interval, right, str(row.n), row.run))
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)
