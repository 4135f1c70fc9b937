"""The command line: reads arguments, calls the package, writes files. JAX is imported by the commands that need it."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from sdjax.cli import bench, draw, toyworld, weights
from sdjax.errors import InputError

app = typer.Typer(
    name="sdjax", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Stable Diffusion 1.x and 2.x in JAX: draw, look inside weights, convert them, train a small model.",
)
for part in (draw, weights, toyworld, bench):
    app.add_typer(part.app)


def main() -> None:
    """Runs the command line: 0 when done, 2 with one line on stderr for wrong input, 130 when interrupted."""
    if sys.stdout and sys.stdout.errors == "strict":  # a path that Latin-1 has no letters for is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *where: print(f"sdjax: {message}", file=sys.stderr)
    try:
        if app(standalone_mode=False) == 130:  # typer gives this back where Ctrl-C was pressed, and raises nothing
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        print("sdjax: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # typer's own errors (no such option, not a number) have no public base class, but all have this method.
        usage = getattr(error, "format_message", None)
        full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)  # XLA's is a RuntimeError
        if not (usage or full or isinstance(error, (InputError, FloatingPointError, OSError))):
            raise
        message = f"{usage()} See `sdjax --help`." if usage else str(error)
        if full:
            message = "out of memory; fewer pictures at once (--batch), a smaller --size or --dtype bfloat16 need less"
        print(f"sdjax: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
