"""CLIP: token ids [b, 77] -> text embedding [b, 77, d]; picture -> embedding; both in one space.

"Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020; openai/CLIP
clip/model.py. Attribute names are those of huggingface/transformers, models/clip/modeling_clip.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sdjax.attention import attend, merge_heads, split_heads
from sdjax.config import Activation, TextConfig, VisionConfig
from sdjax.errors import InputError
from sdjax.layers import Linear, lecun_normal, normal

LAYER_EPS = 1e-5


def activate(x: Array, name: Activation) -> Array:
    """OpenAI's towers use x * sigmoid(1.702 x), OpenCLIP's the exact GELU; the difference shows in pictures."""
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else nnx.gelu(x, approximate=False)


def layer_norm(width: int, *, rngs) -> nnx.LayerNorm:
    """A layer norm over `width` channels; mean(x^2) - mean(x)^2 would lose digits where the mean is large."""
    return nnx.LayerNorm(width, epsilon=LAYER_EPS, use_fast_variance=False, rngs=rngs)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases; `mask` [n, n] is True where looking is allowed."""

    def __init__(self, width: int, heads: int, *, rngs):
        self.heads = heads
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None) -> Float[Array, "b n d"]:
        q, k, v = (split_heads(f(x), self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attend(q, k, v, mask)))


class MLP(nnx.Module):
    """Linear to four times the width, activation, Linear back."""

    def __init__(self, width: int, activation: Activation, *, rngs):
        self.activation = activation
        self.fc1 = Linear(width, 4 * width, rngs=rngs)
        self.fc2 = Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(activate(self.fc1(x), self.activation))


class Layer(nnx.Module):
    """A pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: Activation, *, rngs):
        self.layer_norm1 = layer_norm(width, rngs=rngs)
        self.self_attn = SelfAttention(width, heads, rngs=rngs)
        self.layer_norm2 = layer_norm(width, rngs=rngs)
        self.mlp = MLP(width, activation, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Layers(nnx.Module):
    """The stack of layers, one after another."""

    def __init__(self, c: TextConfig | VisionConfig, *, rngs):
        self.layers = nnx.List([Layer(c.width, c.heads, c.activation, rngs=rngs) for _ in range(c.layers)])

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None = None) -> Float[Array, "b n d"]:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nnx.Module):
    """A vector for each token plus a vector for each of the 77 places."""

    def __init__(self, c: TextConfig, *, rngs):
        self.token_embedding = nnx.Embed(c.vocab_size, c.width, embedding_init=normal, rngs=rngs)
        self.position_embedding = nnx.Embed(c.context_length, c.width, embedding_init=normal, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))


class TextEncoder(nnx.Module):
    """Token ids [b, 77] to the hidden states [b, 77, d] that the UNet reads.

    Causal, without a mask for padding: the UNet sees the padding too. For SD 2.x the configuration has
    23 layers, so that this is the penultimate state of OpenCLIP's 24, normalised by the final norm.
    """

    def __init__(self, config: TextConfig, *, rngs):
        self.config = config
        self.embeddings = TextEmbeddings(config, rngs=rngs)
        self.encoder = Layers(config, rngs=rngs)
        self.final_layer_norm = layer_norm(config.width, rngs=rngs)
        self.text_projection = (
            Linear(config.width, config.projection, use_bias=False, rngs=rngs) if config.projection else None
        )

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        n = ids.shape[1]
        causal = jnp.tril(jnp.ones((n, n), bool))  # a token looks at itself and what stands before it
        return self.final_layer_norm(self.encoder(self.embeddings(ids), causal))

    def embed(self, ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
        """The sentences' vectors in the space shared with pictures."""
        return self.pooled(self(ids), ids)

    def pooled(self, states: Float[Array, "b n d"], ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
        """Of the hidden states the row of the end token, projected; InputError where the weights cannot."""
        if self.text_projection is None:
            raise InputError("these weights have a text encoder without projection; load a CLIP with sdjax.load_clip")
        end = jnp.argmax(ids == self.config.end_id, axis=1)  # the first one; SD 1.x pads with more of them
        return self.text_projection(states[jnp.arange(ids.shape[0]), end])


class VisionEmbeddings(nnx.Module):
    """The picture cut into patches, a vector for each, a class token in front, plus a vector for each place."""

    def __init__(self, c: VisionConfig, *, rngs):
        self.patch = c.patch
        places = (c.image_size // c.patch) ** 2 + 1
        self.class_embedding = nnx.Param(normal(rngs.params(), (c.width,)))
        self.patch_embedding = nnx.Conv(
            3, c.width, (c.patch, c.patch), strides=c.patch, padding="VALID", use_bias=False,
            kernel_init=lecun_normal, rngs=rngs,
        )
        self.position_embedding = nnx.Embed(places, c.width, embedding_init=normal, rngs=rngs)

    def __call__(self, pictures: Float[Array, "b s s 3"]) -> Float[Array, "b n d"]:
        # A convolution whose stride is its width is one matrix for every patch; XLA's CPU backend is far slower
        # at the former, above all backwards.
        (b, s, _, _), p = pictures.shape, self.patch
        cut = pictures.reshape(b, s // p, p, s // p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * 3)
        kernel = self.patch_embedding.kernel[...]
        patches = cut @ kernel.reshape(-1, kernel.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...], (patches.shape[0], 1, patches.shape[-1]))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))


class ImageEncoder(nnx.Module):
    """Pictures [b, s, s, 3] in [-1, 1], s = `image_size`, to vectors [b, p] in the space shared with texts."""

    def __init__(self, config: VisionConfig, *, rngs):
        self.config = config
        self.embeddings = VisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = layer_norm(config.width, rngs=rngs)  # spelled so in every released file
        self.encoder = Layers(config, rngs=rngs)
        self.post_layernorm = layer_norm(config.width, rngs=rngs)
        self.visual_projection = Linear(config.width, config.projection, use_bias=False, rngs=rngs)

    def __call__(self, pictures: Float[Array, "b s s 3"]) -> Float[Array, "b p"]:
        c = self.config
        normalised = ((pictures + 1.0) / 2.0 - jnp.array(c.mean)) / jnp.array(c.std)
        x = self.pre_layrnorm(self.embeddings(normalised.astype(self.visual_projection.kernel.dtype)))
        return self.visual_projection(self.post_layernorm(self.encoder(x)[:, 0]))


def cosine(a: Float[Array, "n p"], b: Float[Array, "m p"]) -> Float[Array, "n m"]:
    """The cosine of the angle between every pair of vectors, in [-1, 1], float32."""
    a, b = (x.astype(jnp.float32) / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True) for x in (a, b))
    return jnp.einsum("np,mp->nm", a, b, precision="highest")
