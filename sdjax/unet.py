"""The conditional UNet: (noisy latent, timestep, text) -> prediction.

Architecture of CompVis/stable-diffusion, ldm/modules/diffusionmodules/openaimodel.py (UNetModel) and
ldm/modules/attention.py (SpatialTransformer); attribute names are those of huggingface/diffusers,
models/unets/unet_2d_condition.py. `table` prints the blocks of a configuration as rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sdjax.attention import Attention
from sdjax.config import UNetConfig
from sdjax.layers import ZEROS, Linear, ResBlock, Upsample, conv3x3, group_norm, normal

RES_EPS = 1e-5  # util.py GroupNorm32 keeps torch's default
TRANSFORMER_EPS = 1e-6  # attention.py `Normalize` does not
LAYER_EPS = 1e-5  # torch's default for LayerNorm

Maps = dict[str, Float[Array, "b heads hw tokens"]]


def timestep_embedding(timesteps: Int[Array, "b"], width: int) -> Float[Array, "b c"]:
    """Sinusoids of the timestep, [cos, sin], at frequencies 10000^(-i / half), float32.

    arXiv:1706.03762 section 3.5; ldm/modules/diffusionmodules/util.py timestep_embedding.
    """
    half = width // 2
    # In NumPy float64: jnp.arange of a float step loses digits on some backends.
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nnx.Module):
    """Linear, SiLU, Linear: [b, c] to [b, 4c]."""

    def __init__(self, width: int, *, rngs):
        self.linear_1 = Linear(width, 4 * width, rngs=rngs)
        self.linear_2 = Linear(4 * width, 4 * width, rngs=rngs)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b t"]:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class GEGLU(nnx.Module):
    """value * gelu(gate), both from one matrix: arXiv:2002.05202. The gate is the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int, *, rngs):
        self.proj = Linear(width, 2 * hidden, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n m"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nnx.gelu(gate, approximate=False)


class Identity(nnx.Module):
    """Stands where the reference has a dropout, so that its neighbours keep their numbers."""

    def __call__(self, x: Array) -> Array:
        return x


class FeedForward(nnx.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int, *, rngs):
        self.net = nnx.List(
            [GEGLU(width, 4 * width, rngs=rngs), Identity(), Linear(4 * width, width, rngs=rngs)]
        )

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text, feed-forward; each on a norm, each added."""

    def __init__(self, width: int, heads: int, context_width: int, cross_only: bool, *, rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=LAYER_EPS, use_fast_variance=False, rngs=rngs)
        self.attn1 = Attention(width, heads, context_width if cross_only else None, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=LAYER_EPS, use_fast_variance=False, rngs=rngs)
        self.attn2 = Attention(width, heads, context_width, rngs=rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=LAYER_EPS, use_fast_variance=False, rngs=rngs)
        self.ff = FeedForward(width, rngs=rngs)
        self.cross_only = cross_only

    def __call__(self, x: Float[Array, "b n c"], context: Float[Array, "b m e"], probs: bool):
        x = x + self.attn1(self.norm1(x), context if self.cross_only else None)[0]
        mixed, p = self.attn2(self.norm2(x), context, probs)
        x = x + mixed
        return x + self.ff(self.norm3(x)), p


class SpatialTransformer(nnx.Module):
    """A transformer block over the pixels of [b, h, w, c], between two 1x1 projections, added to its input.

    SD1 stores the projections as 1x1 convolutions, SD2 as matrices; the arithmetic is the same.
    """

    def __init__(self, width: int, heads: int, context_width: int, cross_only: bool, groups: int, *, rngs):
        self.norm = group_norm(width, groups, eps=TRANSFORMER_EPS, rngs=rngs)
        self.proj_in = Linear(width, width, rngs=rngs)
        self.transformer_blocks = nnx.List([TransformerBlock(width, heads, context_width, cross_only, rngs=rngs)])
        self.proj_out = Linear(width, width, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b m e"], probs: bool):
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x).reshape(b, h * w, c))
        y, p = self.transformer_blocks[0](y, context, probs)
        return x + self.proj_out(y).reshape(b, h, w, c), p


class Downsample(nnx.Module):
    """Half the size by a 3x3 convolution of stride 2, padded by 1 on all sides (the VAE's is not)."""

    def __init__(self, channels: int, *, rngs):
        self.conv = conv3x3(channels, channels, stride=2, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        return self.conv(x)


class Row(NamedTuple):
    """One block of the UNet: what it takes, what it gives, and how it changes the size."""

    name: str  # "down_blocks.0", "mid_block", "up_blocks.3", ...
    inputs: tuple[int, ...]  # width at the entry of each residual block; going up, the skip is included
    outputs: int
    heads: int | None  # None: no transformers
    cross_only: bool
    resize: str | None  # "down", "up" or None

    @property
    def transformers(self) -> int:
        """One after each residual block, but only one in the middle, between its two."""
        return 0 if self.heads is None else 1 if self.name == "mid_block" else len(self.inputs)


def rows(c: UNetConfig) -> list[Row]:
    """The UNet as a table, in the order in which data meets it."""
    levels = range(len(c.channels))
    last = len(c.channels) - 1
    table, skips, width = [], [c.channels[0]], c.channels[0]
    for i in levels:
        outputs, heads = c.channels[i], c.heads[i] if c.attention[i] else None
        inputs = (width, *[outputs] * (c.blocks - 1))
        table.append(Row(f"down_blocks.{i}", inputs, outputs, heads, c.cross_only[i], "down" if i < last else None))
        skips += [outputs] * (c.blocks + (i < last))
        width = outputs
    table.append(Row("mid_block", (width, width), width, c.heads[-1], False, None))
    for n, i in enumerate(reversed(levels)):
        outputs, heads = c.channels[i], c.heads[i] if c.attention[i] else None
        inputs = []
        for _ in range(c.blocks + 1):
            inputs.append(width + skips.pop())
            width = outputs
        table.append(Row(f"up_blocks.{n}", tuple(inputs), outputs, heads, c.cross_only[i], "up" if i > 0 else None))
    return table


class Block(nnx.Module):
    """One row of the table: residual blocks, a transformer after each where the row has heads, a resize."""

    def __init__(self, row: Row, c: UNetConfig, *, rngs):
        self.name = row.name
        self.resnets = nnx.List([
            ResBlock(n, row.outputs, groups=c.groups, eps=RES_EPS, time_width=4 * c.channels[0], rngs=rngs)
            for n in row.inputs
        ])
        self.count = row.transformers
        if self.count:
            self.attentions = nnx.List([
                SpatialTransformer(row.outputs, row.heads, c.context_width, row.cross_only, c.groups, rngs=rngs)
                for _ in range(self.count)
            ])
        if row.resize == "down":
            self.downsamplers = nnx.List([Downsample(row.outputs, rngs=rngs)])
        if row.resize == "up":
            self.upsamplers = nnx.List([Upsample(row.outputs, rngs=rngs)])
        self.resize = row.resize

    def layer(self, i: int, x: Array, time: Array, context: Array, maps: Maps | None) -> Float[Array, "b h w c"]:
        """Residual block i and its transformer; the attention probabilities go into `maps` if it is a dict."""
        x = self.resnets[i](x, time)
        if i < self.count:
            x, p = self.attentions[i](x, context, maps is not None)
            if maps is not None:
                maps[f"{self.name}.attentions.{i}"] = p
        return x


class UNet(nnx.Module):
    """The denoiser: latents [b, h, w, in_channels] at timesteps [b] with text [b, 77, e] to a prediction.

    The prediction [b, h, w, out_channels] is eps or v, as `DiffusionConfig.prediction` says. Parameters
    set the dtype of the arithmetic; the sines of the timestep and all norms and softmaxes are float32.
    """

    def __init__(self, config: UNetConfig, *, rngs):
        self.config = c = config
        table = rows(c)
        n = len(c.channels)
        self.conv_in = conv3x3(c.in_channels, c.channels[0], rngs=rngs)
        self.time_embedding = TimestepMLP(c.channels[0], rngs=rngs)
        width = 4 * c.channels[0]
        self.class_embedding = nnx.Embed(c.classes, width, embedding_init=normal, rngs=rngs) if c.classes else None
        self.down_blocks = nnx.List([Block(row, c, rngs=rngs) for row in table[:n]])
        self.mid_block = Block(table[n], c, rngs=rngs)
        self.up_blocks = nnx.List([Block(row, c, rngs=rngs) for row in table[n + 1 :]])
        self.conv_norm_out = group_norm(c.channels[0], c.groups, eps=RES_EPS, rngs=rngs)
        self.conv_out = conv3x3(c.channels[0], c.out_channels, rngs=rngs, zero=True)

    def __call__(
        self,
        latents: Float[Array, "b h w i"],
        timesteps: Int[Array, "b"],
        text: Float[Array, "b tokens e"],
        classes: Int[Array, "b"] | None = None,
        *,
        attention: bool = False,
    ) -> Float[Array, "b h w o"] | tuple[Float[Array, "b h w o"], Maps]:
        """With `attention`, also the cross-attention probabilities of every transformer, by block name."""
        dtype = self.conv_in.kernel.dtype
        maps: Maps | None = {} if attention else None
        time = self.time_embedding(timestep_embedding(timesteps, self.config.channels[0]).astype(dtype))
        if self.class_embedding is not None:
            time = time + self.class_embedding(classes)
        text = text.astype(dtype)

        x = self.conv_in(latents.astype(dtype))
        skips = [x]
        for block in self.down_blocks:
            for i in range(len(block.resnets)):
                x = block.layer(i, x, time, text, maps)
                skips.append(x)
            if block.resize:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block.layer(0, x, time, text, maps)
        x = self.mid_block.layer(1, x, time, text, maps)
        for block in self.up_blocks:
            for i in range(len(block.resnets)):
                x = block.layer(i, jnp.concatenate([x, skips.pop()], axis=-1), time, text, maps)
            if block.resize:
                x = block.upsamplers[0](x, skips[-1].shape[1:3])
        prediction = self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)
        return prediction if maps is None else (prediction, maps)
