"""The comparisons against torch, diffusers and transformers: skipped without them, and a table of the figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import pytest
from golden import error

from sdjax.hardware import quiet_cpu

# What tests/conftest.py has set is for programs that run once; here it is the running that takes the time.
os.environ["XLA_FLAGS"] = ""
jax.config.update("jax_disable_most_optimizations", False)
quiet_cpu()

LIMIT = 1e-4
figures: dict[str, float] = {}  # the worst of each kind


@pytest.fixture
def same() -> Callable[[str, Any, Any], None]:
    """Asserts that two whole tensors agree, and that theirs is worth comparing; notes the figure for the table."""

    def check(what: str, ours: Any, theirs: Any) -> None:
        assert theirs.std() > 0.02 * abs(theirs).max(), f"{what}: nearly constant, so that anything would agree"
        figure = error(ours, theirs)
        figures[what] = max(figure, figures.get(what, 0.0))
        assert figure < LIMIT, what

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if figures:
        terminalreporter.section("max |ours - theirs| / max |theirs|, whole tensors, float32")
        for what, figure in figures.items():
            terminalreporter.write_line(f"{figure:9.1e}  {what}")
