"""The command that measures the machine: bench."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import common
from sdjax.cli.common import Dtype
from sdjax.errors import InputError

app = typer.Typer(rich_markup_mode=None)


class Released(StrEnum):
    """Configurations that can be measured without their weights."""

    sd1 = "sd1"
    sd2 = "sd2"


@app.command()
def bench(
    model: Annotated[
        Path | None, typer.Argument(help="Weights for text to image. Default: the small model that ships.")
    ] = None,
    random: Annotated[
        Released | None, typer.Option(help="Random weights of this size instead: they take as long.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels. Default: the model's own.")] = None,
    batch: Annotated[int, typer.Option(help="Latents of a UNet step; a picture with guidance is 2.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Steps of the whole picture.")] = 20,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turns.", min=1)] = 5,
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the arithmetic.")] = Dtype.float32,
    out: Annotated[Path | None, typer.Option(help="Also write the table here, as JSON.")] = None,
) -> None:
    """Measure a UNet step and a whole picture beside this machine's plain matrix products."""
    pixels = common.read_size(size)
    if random and model:
        raise InputError("--random: stands in for weights; give one of the two")
    if out:
        common.require_file(out)  # before the work
    common.prepare()
    import sdjax
    from sdjax import bench as figures
    from sdjax import config
    from sdjax.hardware import as_dtype

    if random:
        sd = figures.random_model(config.PRESETS[random.value](), as_dtype(dtype.value))
    else:
        sd = sdjax.load(model or common.default_model(), dtype=dtype.value)
    report = figures.bench(sd, size=pixels, batch=batch, steps=steps, rounds=rounds)
    print(figures.table(report))
    if out:
        common.write_report(out, report)
