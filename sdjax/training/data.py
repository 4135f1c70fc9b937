"""The training set: scenes of the toy world as pictures, drawn once into a file, and captions drawn afresh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from sdjax.errors import InputError
from sdjax.files import clear_parts, written_whole
from sdjax.toyworld import LANGUAGES, Scene, caption, render, scene_at
from sdjax.toyworld.judge import SIZE


def train_scene(i: int) -> Scene:
    """Scene i of the training split: the same for every recipe, whatever its seed."""
    return scene_at(0, "train", i)


def pictures(folder: Path, count: int) -> np.ndarray:
    """Scenes 0 to count of training as uint8 [count, 128, 128, 3], mapped from a file that is made if need be.

    It is made anew where it is damaged, or where the renderer now draws its scenes differently.
    """
    if count < 1:
        raise InputError(f"scenes: found {count}, expected at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{count}.npy"
    found = _stored(path, count)
    if found is None:
        clear_parts(folder)
        # Not through a mapping: where the disk is full, that ends the process without a word.
        with written_whole(path) as part, open(part, "wb") as file:
            about = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE, 3)}
            np.lib.format.write_array_header_1_0(file, about)
            for i in tqdm(range(count), desc="drawing scenes", unit="scene", dynamic_ncols=True):
                file.write(render(train_scene(i), SIZE)[0].tobytes())
        found = np.load(path, mmap_mode="r")
    return found


def _stored(path: Path, count: int) -> np.ndarray | None:
    """The pictures in a file, or None where they are not what would be drawn: three of them are looked at."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if found.dtype != np.uint8 or found.shape != (count, SIZE, SIZE, 3):
        return None
    drawn = np.stack([render(train_scene(i), SIZE)[0] for i in _looked_at(count)])
    return found if np.array_equal(known_by(found), drawn) else None


def known_by(pictures: np.ndarray) -> np.ndarray:
    """The three of some pictures by which they are told from those of another renderer."""
    return pictures[_looked_at(len(pictures))]


def _looked_at(count: int) -> list[int]:
    return [0, count // 2, count - 1]


def to_float(pictures: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1.0


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The chance of one training step, which depends on nothing else."""
    return np.random.default_rng([seed, step])


def captions(scenes: list[Scene], rng: np.random.Generator) -> list[str]:
    """One caption a scene, in either language."""
    return [caption(scene, rng, LANGUAGES[int(rng.random() < 0.5)]) for scene in scenes]
