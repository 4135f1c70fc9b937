"""The figures of models that are shown something beside the prompt: a hole, a depth, a small picture."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from sdjax.evaluate.trial import Row, Trial, mean, psnr, share
from sdjax.images import as_pictures, shrunk
from sdjax.toyworld import (
    COLOURS,
    SHAPES,
    Scene,
    Solid,
    describe,
    is_held_out,
    nearness,
    render,
    scene_rng,
    screen_box,
)
from sdjax.toyworld.judge import SIZE, Seen, floor_place, obeys
from sdjax.toyworld.scene import pick

MARGIN = 6  # pixels between a solid and the edge of its hole
REDRAW = 1.0  # the strength at which depth-to-image has nothing of the picture but its depth


def inpaint(trial: Trial) -> list[Row]:
    """One of two solids is cut out with a box, and another asked for in its place."""
    found, kept = [], []
    for i, scene in enumerate(trial.scenes(2)):
        picture = as_pictures(render(scene)[0], "renders")
        asked = changed(scene, chance(trial.seed, i), ("colour", "shape"), first_only=True)
        box = hole_of(scene)
        mask = np.zeros(picture.shape[1:3], bool)
        mask[box] = True
        drawn = trial.sd.inpaint(describe(asked), picture, mask, paste=False, **trial.settings(i))
        (rows, columns), wanted = box, asked.solids[0]
        found.append(any(
            (s.colour, s.shape) == (wanted.colour, wanted.shape)
            and columns.start <= s.x < columns.stop and rows.start <= s.y < rows.stop
            for s in trial.judge.read(drawn)[0]
        ))
        kept.append(psnr((drawn - picture)[:, ~mask]) - psnr((trial.rebuilt(picture) - picture)[:, ~mask]))
        trial.bar.update()
    return [
        share("inpainting: the object asked for is in the hole", found, trial.how()),
        mean("inpainting: PSNR outside the hole, less the VAE's own", np.array(kept), "dB", trial.how()),
    ]


def depth(trial: Trial) -> list[Row]:
    """MiDaS against the world's depth, in the order of pixels alone."""
    values, risen, run = [], [], f"renders, seed {trial.seed}"
    for scene in trial.scenes(None):
        picture, far = render(scene)
        seen, true, empty = trial.sd.midas(picture)[0], nearness(far), floor(scene)
        values.append(correlation(ranks(seen), ranks(true)))
        risen.append(correlation(beyond(seen, empty), beyond(true, empty)))
    return [
        mean("MiDaS: rank correlation with true depth", np.array(values), "", run),
        mean("MiDaS: correlation of what stands on the floor", np.array(risen), "", run),
    ]


def depth2img(trial: Trial) -> list[Row]:
    """The depth of a scene with other colours asked for: is each on its solid, and is the depth there?

    The depth is read back in two ways: from what the judge sees, rendered again, and by MiDaS from the pixels.
    """
    right: list[bool] = []
    whole, risen = ({"the judge": [], "MiDaS": []} for _ in range(2))
    for i, scene in enumerate(trial.scenes(None)):
        picture, far = render(scene)
        asked = changed(scene, chance(trial.seed, i), ("colour",))
        drawn = trial.sd.depth2img(describe(asked), picture, nearness(far), REDRAW, **trial.settings(i))
        seen, true, empty = trial.judge.read(drawn)[0], nearness(far), floor(scene)
        right.append(obeys(seen, asked).objects)
        by_judge = nearness(render(rebuilt_scene(seen))[1])
        for reader, read in (("the judge", by_judge), ("MiDaS", trial.sd.midas(drawn)[0])):
            whole[reader].append(correlation(read, true))
            risen[reader].append(correlation(beyond(read, empty), beyond(true, empty)))
        trial.bar.update()
    return [share("depth-to-image: each solid in the colour asked for", right, trial.how())] + [
        mean(f"depth-to-image: correlation of {what}, as {reader} reads it", np.array(values[reader]), "", trial.how())
        for reader in whole for what, values in (("depth", whole), ("what stands on the floor", risen))
    ]


def upscale(trial: Trial) -> list[Row]:
    """Pictures at a quarter of their size, drawn large again, against a bicubic filter."""
    ours, bicubic = [], []
    for i, scene in enumerate(trial.scenes(None)):
        picture = as_pictures(render(scene)[0], "renders")
        small = shrunk(picture)
        drawn = trial.sd.upscale(describe(scene), small, **trial.settings(i))
        plain = np.clip(np.asarray(jax.image.resize(small, picture.shape, "cubic")), -1.0, 1.0)
        ours.append(psnr(drawn - picture))
        bicubic.append(psnr(plain - picture))
        trial.bar.update()
    gain = np.array(ours) - np.array(bicubic)
    return [
        mean("upscaling: PSNR", np.array(ours), "dB", trial.how()),
        mean("upscaling: PSNR, more than bicubic", gain, "dB", trial.how()),
    ]


# ---- what they are made of ---------------------------------------------------------------------------------


def chance(seed: int, index: int) -> np.random.Generator:
    """What decides how scene `index` is changed: a stream of its own, as the scene's would repeat the scene's draws."""
    return scene_rng(seed, "valid", index)


def changed(
    scene: Scene, rng: np.random.Generator, respects: tuple[str, ...], first_only: bool = False
) -> Scene:
    """The scene with other colours, or shapes, in a pairing that is not held out and of two different solids."""
    choices = {"colour": COLOURS, "shape": SHAPES}
    while True:
        solids = tuple(
            dataclasses.replace(s, **{r: pick(rng, choices[r]) for r in respects}) if i == 0 or not first_only else s
            for i, s in enumerate(scene.solids)
        )
        found = dataclasses.replace(scene, solids=solids)
        looks = {(s.colour, s.shape) for s in solids}
        other = all(
            getattr(new, r) != getattr(old, r) for new, old in zip(solids, scene.solids) for r in respects
            if new is not old
        )
        if other and len(looks) == len(solids) and not is_held_out(found):
            return found


def hole_of(scene: Scene) -> tuple[slice, slice]:
    """The rows and columns of a box around the first solid."""
    left, top, right, bottom = ((edge + 1) / 2 * SIZE for edge in screen_box(scene.solids[0]))
    rows, columns = (slice(max(int(low) - MARGIN, 0), min(int(high) + 1 + MARGIN, SIZE))
                     for low, high in ((top, bottom), (left, right)))
    return rows, columns


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in their order, equal ones at the middle of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].reshape(values.shape)


def rebuilt_scene(seen: list[Seen]) -> Scene:
    """A scene of what the judge sees, where it sees it; it does not tell how a solid is turned."""
    return Scene(tuple(Solid(s.colour, s.shape, s.size, *floor_place(s), turn=0.0) for s in seen), "day", None)


def floor(scene: Scene) -> np.ndarray:
    """The inverse depth of a scene without its solids."""
    return nearness(render(dataclasses.replace(scene, solids=()))[1])


def beyond(depth: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """What a map says beyond the depth of the empty world: floor and sky alone correlate above 0.9.

    The residual of a line fitted to it, since the map's unit and zero are its own.
    """
    line = np.polynomial.Polynomial.fit(empty.ravel(), depth.ravel(), 1)
    return depth - line(empty)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is the same everywhere."""
    a, b = (x.astype(np.float64).ravel() - x.mean(dtype=np.float64) for x in (a, b))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
