"""What lessons and the command line draw: curves, with axes that say what they are. Needs the `plots` extra."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.errors import InputError
from sdjax.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure of so many inches, which no window and no global state belongs to.

    Raises InputError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('matplotlib: not installed, and curves need it; pip install ".[plots]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    with written_whole(path) as part:
        drawn.savefig(part, dpi=120, format="png")


def pictures(shown: Sequence[Any], titles: Sequence[str], columns: int | None = None, side: float = 1.7) -> Figure:
    """Pictures [H, W, 3] in [-1, 1], or maps [H, W] of any range, side by side under their titles."""
    columns = columns or len(shown)
    rows = -(-len(shown) // columns)
    drawn = figure(side * columns, (side + 0.3) * rows)
    for i, (picture, title) in enumerate(zip(shown, titles)):
        axes = drawn.add_subplot(rows, columns, i + 1)
        picture = np.asarray(picture)
        axes.imshow(np.clip((picture + 1) / 2, 0, 1) if picture.ndim == 3 else picture)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return drawn


def loss_curve(log: Path, path: Path, name: str) -> None:
    """The loss of a training run over its steps, from a log of "step,loss" lines, with its running median.

    Nothing is drawn where matplotlib is not installed: training does not need its picture.
    """
    try:
        drawn = figure()
    except InputError:
        return
    with open(log, encoding="utf-8") as lines:
        steps, losses = np.array([(int(step), float(loss)) for step, loss in csv.reader(lines)]).T
    half = max(len(losses) // 50, 1)
    median = [np.median(losses[max(i - half, 0) : i + half + 1]) for i in range(len(losses))]
    axes = drawn.add_subplot(xlabel="step", ylabel="loss", yscale="log", title=name)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="mean of 20 steps")
    axes.plot(steps, median, color="C0", label="running median")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    save(drawn, path)


def guidance_sweep(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Adherence and diversity against the guidance scale, from the rows of `sweep.sweep`, bars at 95 %."""
    drawn = figure(7.0, 4.2)
    scales = [row["guidance_scale"] for row in rows]
    left = drawn.add_subplot(xlabel="guidance scale", ylabel="pictures that show what was asked (%)", ylim=(0, 100))
    right = left.twinx()
    right.set_ylabel("diversity: 1 - cosine of CLIP, same prompt")
    lines = []
    for axes, quantity, colour, label in ((left, "right", "C0", "adherence"), (right, "diversity", "C1", "diversity")):
        keys = (quantity, f"{quantity}_low", f"{quantity}_high")
        value, low, high = (np.array([row[key] for row in rows]) for key in keys)
        # At 0 and 100 % rounding can put an end of the interval on the wrong side of the value.
        bars = np.maximum((value - low, high - value), 0.0)
        lines.append(axes.errorbar(scales, value, bars, color=colour, marker="o", capsize=3, label=label))
    right.set_ylim(bottom=0)  # once the top is known
    drawn.legend(handles=lines, loc="outside upper center", ncols=2)
    left.grid(alpha=0.3)
    save(drawn, path)
