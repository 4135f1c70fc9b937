"""Runs every lesson from a clean state, and its solutions; writes notebooks and index, or with --check nothing.

    python lessons/build.py [--check] [05 07 ...]

The source of a lesson is NN_name.py (jupytext, percent format); NN_name.ipynb is made from it, with its outputs. Fails
on an error, on a figure that is missing or unlabelled, and on a notebook over 1 MB; `make test` sees whether a notebook
has the cells of its source. To check takes less long than to build: what one lesson has compiled, the next ones find,
and two run at a time, since their times are not kept.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

INDEX = """# Lessons

`make notebook` opens them in the browser, `make lessons` runs them all. Each stands alone, on the weights that ship
with the project, and ends with exercises that check an answer and say what is wrong with it; solutions are in
[`solutions/`](solutions). `NN_name.py` is the source, from which `.venv/bin/python lessons/build.py` makes the
notebook, this page and its pictures. "Seed line N" is line N of the note on Stable Diffusion from which this course
began, "Design card" the card beside it. On Colab, put this cell first, with the address that you have the project from:

```
!git clone --depth 1 ADDRESS sdjax && pip install --quiet "./sdjax[lessons]"
%cd sdjax/lessons
```

Times were measured on different machines of 2 cores, some twice as fast as others.

| | lesson | time |
|---|---|---|
ROWS
"""
HERE = Path(__file__).parent
MOST_BYTES, MOST_SECONDS = 1_000_000, 600


def executed(source: Path) -> NotebookNode:
    """The notebook of a lesson with its outputs, of which nothing depends on when or where it ran."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i:02}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def faults(source: Path, notebook: NotebookNode) -> list[str]:
    """What is wrong with an executed lesson, in a line each."""
    found = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        asked = len(re.findall(r"(?<!\w)show\(", cell.source))
        if len(figures) < asked:
            found.append(f"cell {i} draws {len(figures)} figures, expected {asked}")
        if any(not output.data.get("text/plain", "").strip("'\"") for output in figures):
            found.append(f"cell {i} has a figure without a text that says what it shows")
    size = len(nbformat.writes(notebook))
    if size > MOST_BYTES:
        found.append(f"the notebook has {size:,} bytes, expected at most {MOST_BYTES:,}")
    return found


def solved(source: Path) -> list[str]:
    """What the solutions of a lesson's exercises say, where they fail."""
    path = HERE / "solutions" / source.name
    if not path.exists():
        return ["has no solutions"]
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    ran = subprocess.run([sys.executable, path], cwd=HERE, capture_output=True, text=True, timeout=MOST_SECONDS,
                         env=os.environ | {"PYTHONPATH": paths})
    return [] if ran.returncode == 0 else [f"its solutions fail: {(ran.stdout + ran.stderr).strip()[-800:]}"]


def index() -> str:
    """README.md: a row for each notebook on disk, with its first figure, its title, its seed line and its time."""
    rows = []
    for path in sorted(HERE.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, 4)
        title, seed = (line.strip("# *\n") for line in notebook.cells[0].source.split("\n\n")[:2])
        first = next(
            output.data["image/png"] for cell in notebook.cells if cell.cell_type == "code"
            for output in cell.outputs if "image/png" in output.get("data", {})
        )
        picture = HERE / "pictures" / f"{path.stem[:2]}.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(base64.b64decode(first))
        rows.append(
            f'| <img src="pictures/{picture.name}" width="240" alt=""> | **[{title}]({path.name})**<br>'
            f"{' '.join(seed.split())} | {notebook.metadata['sdjax']['seconds']} s |"
        )
    return INDEX.replace("ROWS", "\n".join(rows))


def run(source: Path, check: bool) -> tuple[float, list[str]]:
    """How many seconds a lesson took, and what is wrong with it; without `check`, a faultless notebook is written."""
    began = time.monotonic()
    try:
        notebook = executed(source)
        found = faults(source, notebook)
    except CellExecutionError as error:
        notebook, found = None, [str(error)[-2000:]]
    taken = time.monotonic() - began
    found += solved(source)
    if notebook and not found and not check:
        notebook.metadata["sdjax"] = {"seconds": round(taken)}
        nbformat.write(notebook, source.with_suffix(".ipynb"))
    return taken, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="run everything, write nothing")
    parser.add_argument("names", nargs="*", help="the lessons' numbers; default: all")
    options = parser.parse_args()
    sources = [s for s in sorted(HERE.glob("[0-9][0-9]_*.py")) if not options.names or s.name[:2] in options.names]
    if options.check:
        compiled = tempfile.TemporaryDirectory()
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    failed = 0
    with ThreadPoolExecutor(max_workers=2 if options.check else 1) as pool:
        for source, (taken, found) in zip(sources, pool.map(lambda source: run(source, options.check), sources)):
            print(f"{'FAILED' if found else 'ok':<7}{source.stem:<24}{taken:6.0f} s", flush=True)
            for line in found:
                print(f"       {line}")
            failed += bool(found)
    if not options.check:
        (HERE / "README.md").write_text(index(), encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # kilobytes on Linux
    print(f"{len(sources) - failed} of {len(sources)} lessons passed; the largest took {peak:.1f} GB")
    return 1 if failed or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
