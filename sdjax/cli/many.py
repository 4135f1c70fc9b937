"""`sdjax txt2img --prompts FILE.jsonl`: a picture for each line, by one process or by many on several machines.

A line is {"prompt": "a red cube"}, with "negative_prompt" and "seed" where wished. The picture of line 12, counted
from 0, is OUT/000012.png, written whole or not at all: what is there is done, and a run that was killed goes on.
Processes take their lines by number and need nothing of each other but to know how many they are.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from sdjax.cli import common
from sdjax.errors import InputError
from sdjax.files import clear_parts, each_once

DAY = 24 * 3600  # seconds that processes wait for the slowest
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: no bytes, its name, its checksum


class Line(NamedTuple):
    """One picture that is asked for. Without a seed of its own it is picture `number` of the command's seed."""

    number: int
    prompt: str
    negative_prompt: str
    seed: int | None


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, empty ones left out but counted; InputError names the line that is wrong."""
    from sdjax.tokenizer import MAX_BYTES, utf8_bytes

    try:
        rows = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts: {path} cannot be read ({error})") from error
    kinds = {"prompt": str, "negative_prompt": str, "seed": int}
    lines = []
    for number, row in enumerate(rows):
        if not row.strip():
            continue
        try:
            given = json.loads(row, object_pairs_hook=each_once)
        except (ValueError, RecursionError):
            given = None
        good = isinstance(given, dict) and "prompt" in given and set(given) <= set(kinds) and all(
            type(value) is kinds[name] for name, value in given.items()
        ) and all(type(value) is int or utf8_bytes(value) <= MAX_BYTES for value in given.values())
        if not good or not 0 <= given.get("seed", 0) < 2**32:
            raise InputError(
                f'{path}, line {number + 1}: found {row[:60]!r}, expected {{"prompt": "a red cube"}}, with'
                ' "negative_prompt" and "seed" (0 to 2^32 - 1) where wished'
            )
        lines.append(Line(number, given["prompt"], given.get("negative_prompt", ""), given.get("seed")))
    return lines


def share(lines: list[Line], processes: int, process: int) -> list[Line]:
    """The lines of one process of many."""
    require_process(processes, process)
    return lines[process::processes]


def join(coordinator: str, processes: int, process: int) -> tuple[int, int]:
    """Meets the other processes through `jax.distributed`: how many there are, and which this one is.

    Only TPU pods and the like need it. "auto" asks the cluster who they are, else `coordinator` is the host:port at
    which process 0 can be reached. Whoever has met is bound: they end together, and where one is lost all end.
    """
    import jax

    if coordinator == "auto":
        if (processes, process) != (1, 0):
            raise InputError("--coordinator auto: asks the cluster who they are; leave out --processes and --process")
        who = {}
    else:
        port = re.fullmatch(r".+:(\d{1,5})", coordinator)
        if not (port and 0 < int(port[1]) < 2**16):
            raise InputError(f"--coordinator: found {coordinator!r}, expected HOST:PORT, or auto on a cluster")
        if processes < 2:
            raise InputError(f"--processes: found {processes}, expected how many meet at {coordinator}, 2 or more")
        require_process(processes, process)
        who = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    try:
        jax.distributed.initialize(**who, shutdown_timeout_seconds=DAY)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--coordinator: {coordinator}: {error}") from error
    return jax.process_count(), jax.process_index()


def require_process(processes: int, process: int) -> None:
    """InputError unless there is a process of that number."""
    if processes < 1:
        raise InputError(f"--processes: found {processes}, expected 1 or more")
    if not 0 <= process < processes:
        raise InputError(f"--process: found {process} of {processes}, expected 0 to {processes - 1}")


def require_numbers(lines: list[Line], first: int) -> None:
    """InputError where a line would be a picture beyond the last that a seed has; before anything is drawn."""
    for line in lines:
        if line.seed is None and first + line.number >= 2**31:
            raise InputError(
                f"--first: found {first}, with which line {line.number + 1} is picture {first + line.number} of its"
                " seed, expected less than 2^31"
            )


def picture_path(out: Path, line: Line) -> Path:
    """Where the picture of a line goes."""
    return out / f"{line.number:06}.png"


def draw_lines(
    sd: Any, lines: list[Line], settings: dict[str, Any], out: Path, together: int, no_metadata: bool = False
) -> int:
    """Draws what is not there yet, `together` pictures at a time (the last ones filled up); how many it drew.

    InputError where a picture is there that remembers other settings.
    """
    clear_parts(out)
    own = sd.config.image_size
    settings = settings | {side: settings.get(side) or own for side in ("height", "width")}
    about = ("command", "dtype", "model", "weights")
    options = {name: value for name, value in settings.items() if name not in ("prompt", *about)}
    left = []
    for line in lines:
        path = picture_path(out, line)
        if path.exists() and not no_metadata:
            _same(path, settings | _own(line, options))
        if not _is_whole(path):
            left.append(line)
    done, together = len(lines) - len(left), min(together, len(left))
    with tqdm(total=len(lines), initial=done, unit="picture", dynamic_ncols=True, disable=None) as bar:
        for start in range(0, len(left), together or 1):
            rows = [_own(line, options) for line in left[start : start + together]]
            filled = rows + rows[-1:] * (together - len(rows))  # so that one size is compiled
            listed = {name: [row[name] for row in filled] for name in rows[0]}
            for line, row, picture in zip(left[start:], rows, sd.txt2img(**options | listed)):
                common.save(picture_path(out, line), picture, sd, None if no_metadata else settings | row)
                bar.update()
    return len(left)


def _own(line: Line, options: dict[str, Any]) -> dict[str, Any]:
    """What differs from line to line."""
    own = line.seed is not None
    return {"prompt": line.prompt, "negative_prompt": line.negative_prompt,
            "seed": line.seed if own else options["seed"],
            "first_image": options["first_image"] + (0 if own else line.number)}


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there to its last chunk: one that was copied from another machine may be cut off."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def _same(path: Path, wanted: dict[str, Any]) -> None:
    from sdjax.images import read_settings

    stored = read_settings(path)
    changed = [name for name, value in wanted.items() if value is not None and stored.get(name) != value]
    if changed:
        raise InputError(f"{path}: is there with another {', '.join(changed)}; give another --out, or move it away")
