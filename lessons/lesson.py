"""What every lesson uses beside sdjax: a figure with words for it, and answers that are checked."""

from __future__ import annotations

import io
from typing import Any

from IPython.display import display

from sdjax.hardware import quiet_cpu

quiet_cpu()  # before JAX touches a device


class Shown:
    """A figure as a notebook keeps it: a picture, and a text for whoever cannot see it."""

    def __init__(self, png: bytes, text: str):
        self.png, self.text = png, text

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return self.text


def show(figure: Any, text: str) -> None:
    """Puts a matplotlib figure into the notebook; `text` says what is to be seen in it.

    ValueError for an empty text, or for axes that have neither a title nor a label.
    """
    if not text.strip():
        raise ValueError("text: found nothing, expected what is to be seen in the figure")
    for axes in figure.axes:
        if not (axes.get_title() or axes.get_xlabel() or axes.get_ylabel()):
            raise ValueError("a figure has axes without a title or a label; say what they show")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72)
    display(Shown(file.getvalue(), text))


def report(right: bool, wrong: str, praise: str = "Right.") -> bool:
    """Prints whether an answer is right, and what to think about where it is not."""
    print(praise if right else f"Not yet: {wrong}")
    return right
