"""What two or more of the networks share: linear maps, convolutions, the group norm and the residual block."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdjax import convolution, paths

ZEROS = nnx.initializers.zeros_init()
# The standard deviation of a unit normal cut off at -2 and 2.
CUT_OFF = 0.87962566103423978


def normal(key: jax.Array | None, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Embeddings at the start of training: a normal of deviation 0.02, as CLIP's; zeros without a key."""
    if key is None:
        return jnp.zeros(shape, dtype)
    return nnx.initializers.normal(0.02)(key, shape, dtype)


def lecun_normal(key: jax.Array | None, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Kernels at the start of training: a normal cut off at 2 deviations, of variance 1 / fan-in, as flax draws them.

    NumPy draws the numbers, since XLA compiles a program for every shape: a quarter of a minute for a small UNet.
    Without a key they are zeros.
    """
    if key is None:
        return jnp.zeros(shape, dtype)
    seed = jax.random.key_data(key)
    if isinstance(seed, jax.core.Tracer):  # only the shape is wanted, or a program is being built
        return nnx.initializers.lecun_normal()(key, shape, dtype)
    draw = np.random.default_rng(np.asarray(seed))
    drawn = draw.standard_normal(math.prod(shape), np.float32)
    while (beyond := np.flatnonzero(np.abs(drawn) > 2)).size:
        drawn[beyond] = draw.standard_normal(beyond.size, np.float32)
    return jnp.asarray((drawn / (CUT_OFF * math.sqrt(math.prod(shape[:-1])))).reshape(shape), dtype)


class Linear(nnx.Linear):
    """x W + b over the last axis, as one product of two matrices whatever stands before it.

    The same numbers as flax's own, whose gradient contracts two axes at once: XLA's CPU backend takes up to
    three times as long for that.
    """

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = True, kernel_init=lecun_normal, rngs):
        super().__init__(inputs, outputs, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


class Conv3x3(nnx.Conv):
    """A 3x3 convolution that keeps the size; on a CPU by Winograd's way where `paths` says that it is faster."""

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        if paths.winograd(x.shape, self.kernel.shape, x.dtype):
            return convolution.winograd_on_cpu(x, self.kernel[...]) + self.bias[...]
        return super().__call__(x)


def conv3x3(inputs: int, outputs: int, *, rngs, stride: int = 1, padding=1, zero: bool = False) -> nnx.Conv:
    """A 3x3 convolution that keeps the size at stride 1; `zero` starts it at zero, as LDM's zero_module."""
    pad = padding if isinstance(padding, tuple) else ((padding, padding), (padding, padding))
    kind = Conv3x3 if stride == 1 else nnx.Conv
    start = ZEROS if zero else lecun_normal
    return kind(inputs, outputs, (3, 3), strides=stride, padding=pad, kernel_init=start, rngs=rngs)


def conv1x1(inputs: int, outputs: int, *, rngs) -> nnx.Conv:
    """A 1x1 convolution: the same linear map at every pixel."""
    return nnx.Conv(inputs, outputs, (1, 1), kernel_init=lecun_normal, rngs=rngs)


def group_norm(channels: int, groups: int, *, eps: float, rngs) -> nnx.GroupNorm:
    """A group norm with its eps spelled out; statistics are float32 and two-pass, as torch computes them."""
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs)


class ResBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), a 1x1 convolution on x where the width changes.

    [b, h, w, inputs] to [b, h, w, outputs]. Without `time_width` it is the VAE's block.
    Source: ldm/modules/diffusionmodules/openaimodel.py ResBlock, model.py ResnetBlock.
    """

    def __init__(self, inputs: int, outputs: int, *, groups: int, eps: float, time_width: int | None = None, rngs):
        self.norm1 = group_norm(inputs, groups, eps=eps, rngs=rngs)
        self.conv1 = conv3x3(inputs, outputs, rngs=rngs)
        self.norm2 = group_norm(outputs, groups, eps=eps, rngs=rngs)
        self.conv2 = conv3x3(outputs, outputs, rngs=rngs, zero=True)
        self.time_emb_proj = Linear(time_width, outputs, rngs=rngs) if time_width else None
        self.conv_shortcut = conv1x1(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(
        self, x: Float[Array, "b h w i"], time: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w o"]:
        y = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            y = y + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Upsample(nnx.Module):
    """Twice the size by repeating every pixel (nearest), then a 3x3 convolution.

    `size` crops the repeated pixels first, where a level below had rounded an odd side up; that is what
    torch's nearest interpolation to an odd size gives (diffusers, `forward_upsample_size`).
    """

    def __init__(self, channels: int, *, rngs):
        self.conv = conv3x3(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b H W c"]:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return self.conv(x if size is None else x[:, : size[0], : size[1]])
