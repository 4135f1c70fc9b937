"""Imports point one way, and `import sdjax` costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sdjax"
# The story: what draws. It knows neither the world that small models are trained in nor the judge of their pictures.
STORY = sorted(
    path for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("checkpoint/*.py"))
    if path.stem not in ("sweep", "__main__")  # a measurement, and the door to the command line
)
WORKSHOPS = ("sdjax.toyworld", "sdjax.training", "sdjax.evaluate", "sdjax.sweep", "sdjax.cli")
NETWORKS = ("layers", "attention", "convolution", "paths", "clip", "vae", "unet", "midas", "diffusion", "samplers")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, `from sdjax import paths` as sdjax.paths."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"{place}.")


@pytest.mark.parametrize("path", STORY, ids=lambda path: path.stem)
def test_what_draws_knows_neither_the_toy_world_nor_its_judge(path):
    assert not any(within(name, place) for name in imported(path) for place in WORKSHOPS)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_knows_the_pipeline(name):
    above = ("sdjax.pipeline", "sdjax.request", "sdjax.checkpoint")
    assert not any(within(other, place) for other in imported(PACKAGE / f"{name}.py") for place in above)


def test_importing_sdjax_imports_no_jax():
    code = "import sys, sdjax; print([name for name in ('jax', 'flax', 'numpy', 'PIL') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ran.stdout.strip() == "[]", ran.stderr
