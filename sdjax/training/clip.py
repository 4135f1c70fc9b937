"""Trains CLIP: each picture of a batch must find its caption, and each caption its picture.

In a random batch colours and places alone nearly always tell the pairs apart, and the encoders learn shapes last or
never. So each picture also sees its own caption with one word wrong, a hard negative as in NegCLIP, arXiv:2210.01936.

Even then "left of" and "right of" end as nearly the same states: what the loss hardly asks, an encoder does not keep,
and the denoiser cannot draw what it cannot hear. In a toy world it is known what a caption means. So the state of each
word must also tell of the solid named last, how it looks and on which side of the scene it stands, and tell it aloud:
in its first channels, as they are. Where a linear layer may read it off, that layer grows instead, and "cube" and
"cylinder" stay half as far apart as "cube" and "cone".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.clip import ImageEncoder, TextEncoder, cosine
from sdjax.config import TextConfig, VisionConfig
from sdjax.errors import InputError
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import (
    COLOURS,
    SHAPES,
    SIZES,
    TIMES,
    Scene,
    is_held_out,
    named_last,
    reversed_relation,
    swapped_colours,
)
from sdjax.toyworld.scene import pick
from sdjax.training.data import captions, step_rng, to_float, train_scene
from sdjax.training.loop import Recipe, fit

RECIPE = Recipe(steps=1000, batch=64, learning_rate=2e-3, warmup=100, weight_decay=0.05, muon=True)
# What can be wrong in a caption, each as likely as its share: shapes are what is hardest to see.
WRONG = ("shape", "shape", "shape", "colour", "colours", "relation", "size", "time")
# Nothing behind the end token reaches a sentence's vector, since the transformer is causal: training on the
# first tokens alone gives the same numbers for less than half the work. No caption of the world is longer.
TOKENS = 32
LOGIT_SCALE = float(np.log(1 / 0.07))  # the start of the learned temperature, arXiv:2103.00020 section 2.5
MAX_LOGIT_SCALE = float(np.log(100.0))
LOOKS = COLOURS + SHAPES
LOUD = 4.0  # how far a channel goes to say yes; a state has a length of about 11


class CLIP(nnx.Module):
    """Both encoders, and the temperature between them, which only training needs."""

    def __init__(self, text: TextConfig, vision: VisionConfig, *, rngs):
        self.text = TextEncoder(text, rngs=rngs)
        self.image = ImageEncoder(vision, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(LOGIT_SCALE))


def contrastive_loss(similarity: jax.Array, scale: jax.Array) -> jax.Array:
    """Cross-entropy of choosing the partner on the diagonal, by rows and by columns: figure 3 of arXiv:2103.00020.

    [b, c] with c >= b: rows are pictures, columns captions; those beyond b are nobody's, and no row should choose them.
    """
    logits = jnp.exp(jnp.minimum(scale, MAX_LOGIT_SCALE)) * similarity
    rows = jax.nn.log_softmax(logits, axis=1)
    columns = jax.nn.log_softmax(logits[:, : len(logits)], axis=0)
    return -(jnp.mean(jnp.diagonal(rows)) + jnp.mean(jnp.diagonal(columns))) / 2


def mistaken(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing wrong; never a pairing that is held out, nor two solids that look the same."""
    while True:
        wrong, which = pick(rng, WRONG), pick(rng, range(len(scene.solids)))
        if wrong == "time":
            found = dataclasses.replace(scene, time=pick(rng, TIMES))
        elif wrong == "relation":
            found = reversed_relation(scene)
        elif wrong == "colours" and len({s.shape for s in scene.solids}) == 2:  # of one shape both would be true
            found = swapped_colours(scene)
        elif wrong in ("shape", "colour", "size"):
            solids = list(scene.solids)
            other = pick(rng, {"shape": SHAPES, "colour": COLOURS, "size": SIZES}[wrong])
            solids[which] = dataclasses.replace(solids[which], **{wrong: other})
            found = dataclasses.replace(scene, solids=tuple(solids))
        else:
            continue
        alike = len({(s.colour, s.shape) for s in found.solids}) < len(found.solids)
        if found != scene and not alike and not is_held_out(found):
            return found


def right_and_wrong(scenes: list[Scene], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A true caption of each scene, and the same sentence with one word of it wrong."""
    right, wrong = [], []
    for scene, words in zip(scenes, rng.integers(2**32, size=len(scenes))):
        said = other = captions([scene], np.random.default_rng(words))[0]
        while other == said:  # not every sentence tells the size, the time or the relation
            other = captions([mistaken(scene, rng)], np.random.default_rng(words))[0]
        right.append(said)
        wrong.append(other)
    return right, wrong


def told_by_word(said: str, scene: Scene) -> np.ndarray:
    """What each word of a caption should tell of the solid named last, float32 [words, 15]; NaN before the first noun.

    One for its colour and its shape, and its x and z from the middle of all solids, in world units.
    """
    middle = np.mean([(solid.x, solid.z) for solid in scene.solids], axis=0)
    rows = []
    for solid in named_last(said, scene):
        if solid is None:
            rows.append(np.full(len(LOOKS) + 2, np.nan))
        else:
            looks = [float(look in (solid.colour, solid.shape)) for look in LOOKS]
            rows.append(np.array([*looks, solid.x - middle[0], solid.z - middle[1]]))
    return np.array(rows, np.float32)


def told_by_token(said: list[str], scenes: list[Scene], tokenizer: Tokenizer) -> np.ndarray:
    """The same for each of the first TOKENS tokens, NaN after the end token: float32 [captions, TOKENS, 15]."""
    told = np.full((len(said), TOKENS, len(LOOKS) + 2), np.nan, np.float32)
    for row, sentence, scene in zip(told, said, scenes):
        pieces = [len(tokenizer.encode(word)) for word in sentence.split()]
        words = told_by_word(sentence, scene)
        tokens = np.concatenate([np.repeat(words, pieces, axis=0), words[-1:]])  # the end token too
        row[1 : 1 + len(tokens)] = tokens  # after the start token
    return told


def told_in(states: jax.Array) -> jax.Array:
    """What states [b, n, d] tell of the solid named last: [b, n, 15]."""
    return states[..., : len(LOOKS) + 2] / LOUD


def train(
    text: TextConfig, vision: VisionConfig, tokenizer: Tokenizer, pictures: np.ndarray, folder: Path,
    recipe: Recipe = RECIPE, start: tuple[TextEncoder, ImageEncoder] | None = None,
) -> tuple[TextEncoder, ImageEncoder]:
    """The two trained encoders; `pictures` uint8 [n, s, s, 3] are scenes 0 to n of the training split.

    `start` are encoders to go on with. Raises InputError for fewer pictures than a batch has, or for states too narrow
    for what they are to tell.
    """
    if text.width < len(LOOKS) + 2:
        raise InputError(f"text width: found {text.width}, expected at least {len(LOOKS) + 2}, what a state tells")
    if len(pictures) < recipe.batch:
        raise InputError(f"scenes: found {len(pictures)}, expected at least the {recipe.batch} of a batch")
    both = CLIP(text, vision, rngs=nnx.Rngs(recipe.seed))
    if start is not None:
        both.text, both.image = start
    graph, parameters = nnx.split(both)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(recipe.seed, step)
        rows = np.sort(rng.choice(len(pictures), size=recipe.batch, replace=False))
        scenes = [train_scene(int(r)) for r in rows]
        right, wrong = right_and_wrong(scenes, rng)
        ids = tokenizer(right + wrong)[:, :TOKENS]
        assert (ids == tokenizer.end_id).any(axis=1).all(), "a caption is longer than TOKENS"
        return {"pictures": to_float(pictures[rows]), "ids": ids, "told": told_by_token(right, scenes, tokenizer)}

    def loss(parameters, _, batch, key):
        clip = nnx.merge(graph, parameters)
        states, wanted = clip.text(batch["ids"]), batch["told"]
        similarity = cosine(clip.image(batch["pictures"]), clip.text.pooled(states, batch["ids"]))
        asked = jnp.isfinite(wanted)
        error = jnp.where(asked, told_in(states[: len(wanted)]) - jnp.where(asked, wanted, 0.0), 0.0)
        told = jnp.sum(error**2) / jnp.sum(asked[..., 0])
        return contrastive_loss(similarity, clip.logit_scale[...]) + told

    clip = fit(recipe, graph, parameters, loss, batch_at, folder, name="clip")
    return clip.text, clip.image
