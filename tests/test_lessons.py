"""The lessons' notebooks are made from their sources: none is missing, and none has other cells."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest

LESSONS = Path(__file__).parent.parent / "lessons"


@pytest.mark.parametrize("source", sorted(LESSONS.glob("[0-9][0-9]_*.py")), ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_source(source):
    """Where it has not: `python lessons/build.py NN`."""
    ours, theirs = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (source, source.with_suffix(".ipynb"))
    )
    assert ours == theirs


def test_there_are_lessons():
    assert len(list(LESSONS.glob("[0-9][0-9]_*.py"))) == len(list(LESSONS.glob("*.ipynb"))) >= 17
