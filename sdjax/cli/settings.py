"""The settings of a picture: what the commands take without being told, and what a picture remembers for --like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdjax.errors import InputError

# What a picture remembers, for --like: the settings of every command, and each command's own. `fit` is the size
# [height, width] to which the pictures that a command was given were cropped and resized; `given_depth` is whether
# there was a --depth, without which MiDaS would see another one.
DEFAULTS: dict[str, Any] = {
    "negative_prompt": "", "steps": 50, "guidance_scale": None, "seed": 0, "first_image": 0, "sampler": "ddim",
    "eta": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "txt2img": {"height": None, "width": None},
    "img2img": {"strength": 0.7, "fit": None}, "inpaint": {"strength": 1.0, "paste": True, "fit": None},
    "upscale": {"noise_level": 20, "tile": 128}, "depth2img": {"strength": 0.8, "fit": None, "given_depth": False},
}
# What else it remembers: what was asked for, by whom, and with which weights it was drawn, in which dtype.
ABOUT: dict[str, Any] = {"prompt": "", "command": "", "dtype": "float32", "model": "", "weights": "", "version": ""}
# Of which type a setting is whose default does not say so.
KINDS = {"guidance_scale": float, "height": int, "width": int, "fit": list}


def collected(command: str, like: Path | None, **given: Any) -> dict[str, Any]:
    """Defaults, then the settings of the picture to be repeated, then what was given."""
    settings = {"prompt": None} | DEFAULTS | OWN[command] | {"dtype": ABOUT["dtype"]}
    if like:
        settings |= remembered(like, command)
    settings |= {name: value for name, value in given.items() if value is not None}
    if settings["prompt"] is None:
        raise InputError('prompt: missing, expected a text such as "a red cube"; an empty one is written ""')
    return settings | {"command": command}


def remembered(path: Path, command: str) -> dict[str, Any]:
    """The settings of a picture that `command` made; InputError for any that it cannot have."""
    from sdjax.images import MAX_PIXELS, read_settings

    stored = read_settings(path)
    if (made_by := stored.get("command")) != command:
        ours = isinstance(made_by, str) and made_by in OWN
        known = f"was made by `sdjax {made_by}`; repeat it with that" if ours else "was made by no command"
        raise InputError(f"{path}: {known}")
    examples = DEFAULTS | OWN[command] | ABOUT
    for name in ("height", "width"):  # what came out, which tells txt2img what to ask for, and the others nothing
        if name not in examples:
            stored.pop(name, None)
    unknown = set(stored) - set(examples)
    if unknown:
        raise InputError(f"{path}: has settings that this version does not know: {', '.join(sorted(unknown))}")
    for name, value in stored.items():
        kind = KINDS.get(name, type(examples[name]))
        fits = type(value) is kind or (kind is float and type(value) is int) or (value is None and name in KINDS)
        if name == "fit" and value and fits:
            fits = len(value) == 2 and all(type(n) is int and n >= 8 for n in value)
            fits = fits and value[0] * value[1] <= MAX_PIXELS
        if not fits:
            raise InputError(f"{path}: remembers {name} as {value!r}, which cannot be; give the settings by hand")
    return stored
