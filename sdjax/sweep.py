"""What guidance buys and what it costs: adherence and diversity of the small model over guidance scales.

Adherence is the share of pictures in which the judge finds what was asked for, as in `evaluate`. Diversity is how far
apart pictures of the same prompt are in the space of CLIP: the mean of 1 - cosine over all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sdjax.errors import InputError
from sdjax.evaluate.trial import mean, wilson
from sdjax.pipeline import StableDiffusion
from sdjax.request import require_settings
from sdjax.toyworld import describe, scene_at
from sdjax.toyworld.judge import Judge, obeys

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)


def sweep(
    sd: StableDiffusion, judge: Judge, *, scales: Sequence[float] = SCALES, prompts: int = 50, images: int = 4,
    steps: int = 50, sampler: str = "ddim", seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a scale: `images` pictures of each of `prompts` scenes, half with one solid.

    They are of the validation split, since a scale that is chosen on the test split is not tested there. Every scale
    starts from the same noise. The interval of adherence is Wilson's, as if each picture were of a prompt
    of its own, that of diversity is over prompts; both 95 %. Raises InputError for no scale, less than two prompts
    or images, settings that cannot be drawn with, or weights without an image encoder.
    """
    for name, found, least in (("scales", len(scales), 1), ("prompts", prompts, 2), ("images", images, 2)):
        if found < least:
            raise InputError(f"{name}: found {found}, expected at least {least}")
    for scale in scales:
        require_settings(sd.config, 1, steps, scale, seed, images, sampler=sampler)
    if sd.image_encoder is None:
        raise InputError(f"{sd.config.name}: these weights have no image encoder, and diversity needs it")
    scenes = [scene_at(seed, "valid", i, count=1 + i % 2) for i in range(prompts)]
    rows = []
    with tqdm(total=len(scales) * prompts * images, unit="picture", dynamic_ncols=True, smoothing=0.05) as bar:
        for scale in scales:
            right, spread = 0, []
            for i, scene in enumerate(scenes):
                pictures = sd.txt2img(
                    describe(scene), num_images=images, first_image=i * images, guidance_scale=scale, steps=steps,
                    sampler=sampler, seed=seed,
                )
                right += sum(obeys(seen, scene).objects for seen in judge.read(pictures))
                spread.append(diversity(np.asarray(sd.image_encoder(pictures))))
                bar.update(images)
            n, apart = prompts * images, mean("diversity", np.array(spread), "", "")
            low, high = wilson(right, n)
            rows.append({
                "guidance_scale": float(scale), "n": n,
                "right": 100 * right / n, "right_low": 100 * low, "right_high": 100 * high,
                "diversity": apart.value, "diversity_low": apart.low, "diversity_high": apart.high,
            })
    return rows


def diversity(embeddings: np.ndarray) -> float:
    """Mean of 1 - cosine over all pairs of rows [n, d]."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(np.mean(1.0 - cosines))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines of text for people."""
    lines = ["guidance  asked for and seen      diversity              n"]
    for r in rows:
        right = f"{r['right']:5.1f} % ({r['right_low']:.1f} to {r['right_high']:.1f})"
        spread = f"{r['diversity']:.3f} ({r['diversity_low']:.3f} to {r['diversity_high']:.3f})"
        lines.append(f"{r['guidance_scale']:8g}  {right:<24}  {spread:<21}  {r['n']}")
    return "\n".join(lines)
