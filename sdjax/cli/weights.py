"""Commands about weights: convert, info, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli.common import Dtype

app = typer.Typer(rich_markup_mode=None)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A diffusers folder or a .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; must not exist yet.")],
    dtype: Annotated[Dtype, typer.Option(help="The dtype to store.")] = Dtype.float32,
) -> None:
    """Write weights in sdjax's own layout, which loads as a plain read."""
    from sdjax.checkpoint.load import convert as run

    run(source, target, dtype.value)
    print(target)


@app.command()
def info(path: Annotated[Path, typer.Argument(help="Weights: a folder or a .safetensors file.")]) -> None:
    """Say what weights are: layout, family, prediction type, parameters, and what does not fit."""
    from sdjax.checkpoint.load import describe

    found = describe(path)
    for name in ("layout", "family", "prediction"):
        print(f"{name:<12} {getattr(found, name) or '-'}")
    print(f"{'stored as':<12} {', '.join(found.dtypes) or '-'}")
    for part, size in found.parameters.items():
        print(f"{part:<12} {size:,} parameters")
    for problem in found.problems:
        print(f"does not fit: {problem}")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="sd15, sd21-base or sd21.")],
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path("models"),
) -> None:
    """Fetch a released model and check its sha256 (needs the `hub` extra)."""
    from sdjax.checkpoint.hub import download as run

    print(run(name, folder))
