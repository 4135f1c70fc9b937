"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.errors import InputError

AN_HOUR = 3600.0  # seconds


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A fresh path beside `path` that takes its place when the block ends, and is gone when the block fails.

    InputError where the disk is full or the folder is missing or not writable.
    """
    path = Path(path)
    # A short name of its own, since one built from the target's could pass the file system's 255 bytes.
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        yield part
        with open(part, "rb+") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be written ({reason}); give a place in an existing, writable folder with room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


class DoubledKey(ValueError):
    """A JSON object has a key twice: `key`."""

    def __init__(self, key: str):
        super().__init__(f"{key!r} is there twice")
        self.key = key


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads` as object_pairs_hook, which by itself takes the last of two; DoubledKey where there are two."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DoubledKey(key)
        found[key] = value
    return found


def clear_parts(folder: Path) -> None:
    """Removes what processes that were killed had half written; what is newer than an hour may still be written."""
    for part in folder.glob(f".{16 * '[0-9a-f]'}.part"):
        with contextlib.suppress(OSError):  # another process may do the same
            if time.time() - part.stat().st_mtime > AN_HOUR:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
