"""Trains CLIP: each picture of a batch must find its caption, and each caption its picture."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.clip import ImageEncoder, TextEncoder, cosine
from sdjax.config import TextConfig, VisionConfig
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import scene_at
from sdjax.training.data import captions, step_rng, to_float
from sdjax.training.loop import Recipe, fit

RECIPE = Recipe(steps=500, batch=64, learning_rate=1e-3, warmup=100, weight_decay=0.05)
# Nothing behind the end token reaches a sentence's vector, since the transformer is causal: training on the
# first tokens alone gives the same numbers for less than half the work. No caption of the world is longer.
TOKENS = 32
LOGIT_SCALE = float(np.log(1 / 0.07))  # the start of the learned temperature, arXiv:2103.00020 section 2.5
MAX_LOGIT_SCALE = float(np.log(100.0))


class CLIP(nnx.Module):
    """Both encoders and the temperature between them, which only training needs."""

    def __init__(self, text: TextConfig, vision: VisionConfig, *, rngs):
        self.text = TextEncoder(text, rngs=rngs)
        self.image = ImageEncoder(vision, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(LOGIT_SCALE))


def contrastive_loss(similarity: jax.Array, scale: jax.Array) -> jax.Array:
    """Cross-entropy of choosing the partner on the diagonal, by rows and by columns: figure 3 of arXiv:2103.00020."""
    logits = jnp.exp(jnp.minimum(scale, MAX_LOGIT_SCALE)) * similarity
    rows, columns = (jnp.mean(-jnp.diagonal(jax.nn.log_softmax(logits, axis=a))) for a in (0, 1))
    return (rows + columns) / 2


def train(
    text: TextConfig, vision: VisionConfig, tokenizer: Tokenizer, pictures: np.ndarray, folder: Path,
    recipe: Recipe = RECIPE,
) -> tuple[TextEncoder, ImageEncoder]:
    """The two trained encoders; `pictures` uint8 [n, s, s, 3] are scenes 0 to n of the training split."""
    graph, parameters = nnx.split(CLIP(text, vision, rngs=nnx.Rngs(recipe.seed)))

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(recipe.seed, step)
        rows = np.sort(rng.choice(len(pictures), size=recipe.batch, replace=False))
        said = captions([scene_at(recipe.seed, "train", int(r)) for r in rows], rng)
        ids = tokenizer(said)[:, :TOKENS]
        assert (ids == tokenizer.end_id).any(axis=1).all(), "a caption is longer than TOKENS"
        return {"pictures": to_float(pictures[rows]), "ids": ids}

    def loss(parameters, _, batch, key):
        clip = nnx.merge(graph, parameters)
        similarity = cosine(clip.image(batch["pictures"]), clip.text.embed(batch["ids"]))
        return contrastive_loss(similarity, clip.logit_scale[...])

    clip = nnx.merge(graph, fit(recipe, parameters, loss, batch_at, folder, name="clip"))
    return clip.text, clip.image
