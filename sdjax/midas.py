"""MiDaS, the DPT-hybrid: picture [b, H, W, 3] -> inverse depth [b, H, W], large where things are near.

    picture -> stem -> stage 0 -> stage 1 -> stage 2 -> transformer, one token a pixel of stage 2
                         | /4       | /8                  | layer 8, /16     | layer 11, /32
    depth <- head <--- fuse <---- fuse <---------------- fuse <----------- fuse        each doubles the size

"Towards Robust Monocular Depth Estimation", arXiv:1907.01341; "Vision Transformers for Dense Prediction",
arXiv:2103.13413. Architecture of Stability-AI/stablediffusion ldm/modules/midas/midas/{vit,blocks,dpt_depth}.py, whose
encoder is vit_base_resnet50_384 of huggingface/pytorch-image-models. The depth is relative: how far from 0 and how
steep is another matter for each picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdjax.attention import Attention
from sdjax.config import MidasConfig
from sdjax.errors import InputError
from sdjax.layers import Linear, conv1x1, conv3x3, group_norm, lecun_normal, normal

# timm/models/resnetv2.py, vision_transformer_hybrid.py: of the ResNet's group norms and of its kernels' variance.
GROUP_EPS = 1e-5
KERNEL_EPS = 1e-8
STRIDE = 32  # pixels, each way, that one value of the coarsest map stands for
MOST = 384 * 12288  # pixels that it may see: 18,432 patches of 16 x 16, each of which looks at all

Method = Literal["bilinear", "bilinear, corners aligned", "bicubic"]


def resampling(n: int, m: int, method: Method) -> np.ndarray:
    """The matrix [m, n] that makes m values in a row of n, as torch's interpolate without antialiasing does.

    Pixel i lies at (i + 1/2) n / m - 1/2, or where corners are aligned at i (n - 1) / (m - 1); beyond the border the
    outermost value goes on. Bicubic is the kernel of Keys with a = -3/4, as in cv2 and torch; JAX and PIL have -1/2.
    """
    i = np.arange(m)
    place = i * ((n - 1) / max(m - 1, 1)) if "aligned" in method else (i + 0.5) * (n / m) - 0.5
    matrix = np.zeros((m, n))
    for step in (-1, 0, 1, 2):
        neighbour = np.floor(place).astype(int) + step
        d = np.abs(place - neighbour)
        if method == "bicubic":
            weight = np.where(d <= 1, 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3)
        else:
            weight = np.maximum(1 - d, 0)
        np.add.at(matrix, (i, np.clip(neighbour, 0, n - 1)), weight)
    return matrix


def resized(
    x: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int], method: Method
) -> Float[Array, "b H W c"]:
    """The same pictures or maps at another size; arithmetic in float32."""
    (b, h, w, c), (height, width) = x.shape, size
    rows, columns = jnp.float32(resampling(h, height, method)), jnp.float32(resampling(w, width, method))
    y = jnp.matmul(rows, x.astype(jnp.float32).reshape(b, h, w * c), precision="highest")
    y = jnp.matmul(columns, y.reshape(b * height, w, c), precision="highest")
    return y.reshape(b, height, width, c).astype(x.dtype)


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Twice the size, the corners staying where they are: all of the decoder's upsampling."""
    return resized(x, (2 * x.shape[1], 2 * x.shape[2]), "bilinear, corners aligned")


class StdConv(nnx.Module):
    """A convolution whose kernel is standardised first: over what an output reads, mean 0 and variance 1.

    [b, h, w, inputs] to [b, h/stride, w/stride, outputs]. Padding is TensorFlow's SAME: where it is odd, the larger
    half is at the bottom and right. "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", arXiv:1903.10520.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, rngs):
        self.stride = stride
        self.kernel = nnx.Param(lecun_normal(rngs.params(), (size, size, inputs, outputs)))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        kernel = self.kernel[...].astype(jnp.float32)
        mean, variance = (f(kernel, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        kernel = ((kernel - mean) / jnp.sqrt(variance + KERNEL_EPS)).astype(x.dtype)
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class ConvNorm(nnx.Module):
    """A standardised convolution and a group norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, groups: int, *, rngs):
        self.conv = StdConv(inputs, outputs, size, stride, rngs=rngs)
        self.norm = group_norm(outputs, groups, eps=GROUP_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """relu(x + norm(conv 1x1) of a narrow 3x3 of a narrow 1x1), the first of a stage with a convolution on x too."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, *, first: bool, rngs):
        inner = outputs // 4
        self.conv1 = StdConv(inputs, inner, 1, rngs=rngs)
        self.norm1 = group_norm(inner, groups, eps=GROUP_EPS, rngs=rngs)
        self.conv2 = StdConv(inner, inner, 3, stride, rngs=rngs)
        self.norm2 = group_norm(inner, groups, eps=GROUP_EPS, rngs=rngs)
        self.conv3 = StdConv(inner, outputs, 1, rngs=rngs)
        self.norm3 = group_norm(outputs, groups, eps=GROUP_EPS, rngs=rngs)
        self.downsample = ConvNorm(inputs, outputs, 1, stride, groups, rngs=rngs) if first else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nnx.Module):
    """Pictures [b, H, W, 3] to the maps of every stage: a 4th of the size, an 8th, a 16th."""

    def __init__(self, c: MidasConfig, *, rngs):
        widths = (c.stem, *c.stages)
        self.stem = ConvNorm(3, c.stem, 7, 2, c.groups, rngs=rngs)
        self.stages = nnx.List([
            nnx.List([
                Bottleneck(widths[n + (i > 0)], widths[n + 1], 2 if n > 0 and i == 0 else 1, c.groups, first=i == 0,
                           rngs=rngs)
                for i in range(depth)
            ])
            for n, depth in enumerate(c.depths)
        ])

    def __call__(self, x: Float[Array, "b H W 3"]) -> list[Float[Array, "b h w c"]]:
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps


class Block(nnx.Module):
    """A pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x)); the GELU is exact."""

    def __init__(self, c: MidasConfig, *, rngs):
        norm = lambda: nnx.LayerNorm(c.width, epsilon=c.norm_eps, use_fast_variance=False, rngs=rngs)
        self.norm1 = norm()
        self.attn = Attention(c.width, c.heads, bias=True, rngs=rngs)
        self.norm2 = norm()
        self.fc1 = Linear(c.width, 4 * c.width, rngs=rngs)
        self.fc2 = Linear(4 * c.width, c.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.attn(self.norm1(x))[0]
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    """A map [b, h, w, c] to the states [b, 1 + h w, d] after the layers of `hooks`, the class token first.

    Places are learnt on a square grid; a map of another shape stretches the grid (vit.py `_resize_pos_embed`).
    """

    def __init__(self, c: MidasConfig, *, rngs):
        self.hooks = c.hooks
        places = (c.image_size // 16) ** 2
        self.project = conv1x1(c.stages[-1], c.width, rngs=rngs)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, c.width)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1, 1 + places, c.width)))
        self.blocks = nnx.List([Block(c, rngs=rngs) for _ in range(c.layers)])

    def __call__(self, x: Float[Array, "b h w c"]) -> list[Float[Array, "b n d"]]:
        (b, h, w, _), d = x.shape, self.cls_token.shape[-1]
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        grid = resized(self.pos_embed[:, 1:].reshape(1, side, side, d), (h, w), "bilinear")
        tokens = (self.project(x) + grid).reshape(b, h * w, d)
        first = jnp.broadcast_to(self.cls_token + self.pos_embed[:, :1], (b, 1, d))
        tokens = jnp.concatenate([first, tokens], axis=1)
        states = []
        for block in self.blocks:
            tokens = block(tokens)
            states.append(tokens)
        return [states[hook] for hook in self.hooks]


class Reassemble(nnx.Module):
    """States of tokens back to a map; each token is first mixed with the class token (readout "project").

    [b, 1 + h w, d] to [b, h, w, d], or half the size with `halve`. Source: vit.py ProjectReadout.
    """

    def __init__(self, width: int, *, halve: bool, rngs):
        self.readout = Linear(2 * width, width, rngs=rngs)
        self.project = conv1x1(width, width, rngs=rngs)
        self.halve = conv3x3(width, width, stride=2, rngs=rngs) if halve else None

    def __call__(self, states: Float[Array, "b n d"], h: int, w: int) -> Float[Array, "b H W d"]:
        tokens = states[:, 1:]
        pairs = jnp.concatenate([tokens, jnp.broadcast_to(states[:, :1], tokens.shape)], axis=-1)
        x = nnx.gelu(self.readout(pairs), approximate=False).reshape(-1, h, w, tokens.shape[-1])
        x = self.project(x)
        return x if self.halve is None else self.halve(x)


class ResidualConv(nnx.Module):
    """x + conv(relu(conv(relu(x)))). Source: blocks.py ResidualConvUnit_custom, without batch norm."""

    def __init__(self, width: int, *, rngs):
        self.conv1 = conv3x3(width, width, rngs=rngs)
        self.conv2 = conv3x3(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w f"]) -> Float[Array, "b h w f"]:
        return x + self.conv2(nnx.relu(self.conv1(nnx.relu(x))))


class Fusion(nnx.Module):
    """What comes from below plus a map of the encoder, refined, at twice the size; the lowest has only a map.

    [b, h, w, f] to [b, 2h, 2w, f]. Source: blocks.py FeatureFusionBlock_custom.
    """

    def __init__(self, width: int, *, lowest: bool, rngs):
        self.on_map = None if lowest else ResidualConv(width, rngs=rngs)
        self.on_sum = ResidualConv(width, rngs=rngs)
        self.out_conv = conv1x1(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w f"], below: Float[Array, "b h w f"] | None
    ) -> Float[Array, "b 2*h 2*w f"]:
        total = x if self.on_map is None else below + self.on_map(x)
        return self.out_conv(doubled(self.on_sum(total)))


class Head(nnx.Module):
    """Features [b, h, w, f] to inverse depth [b, 2h, 2w], none below 0. Source: dpt_depth.py DPTDepthModel."""

    def __init__(self, c: MidasConfig, *, rngs):
        self.conv1 = conv3x3(c.features, c.features // 2, rngs=rngs)
        self.conv2 = conv3x3(c.features // 2, c.head, rngs=rngs)
        # Starts above 0: where the last relu is 0, nothing would be learnt.
        ones = nnx.initializers.ones_init()
        self.conv3 = nnx.Conv(c.head, 1, (1, 1), kernel_init=lecun_normal, bias_init=ones, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w f"]) -> Float[Array, "b 2*h 2*w"]:
        x = nnx.relu(self.conv2(doubled(self.conv1(x))))
        return nnx.relu(self.conv3(x))[..., 0]


class Midas(nnx.Module):
    """Pictures [b, H, W, 3] in [-1, 1], H and W multiples of 32, to inverse depth [b, H, W], float32, at least 0.

    Raises InputError for another size; `depth` takes any. [-1, 1] is what MiDaS' mean and deviation of 1/2 make of
    [0, 1] (midas/api.py).
    """

    def __init__(self, config: MidasConfig, *, rngs):
        c = self.config = config
        widths = (*c.stages[:2], c.width, c.width)
        self.resnet = ResNet(c, rngs=rngs)
        self.transformer = Transformer(c, rngs=rngs)
        self.reassemble = nnx.List([Reassemble(c.width, halve=halve, rngs=rngs) for halve in (False, True)])
        self.convs = nnx.List([
            nnx.Conv(width, c.features, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, kernel_init=lecun_normal,
                     rngs=rngs)
            for width in widths
        ])
        # In the order of the data: from the coarsest map to the finest, as the encoder's maps backwards.
        self.fusions = nnx.List([Fusion(c.features, lowest=n == 0, rngs=rngs) for n in range(len(widths))])
        self.head = Head(c, rngs=rngs)

    def __call__(self, pictures: Float[Array, "b H W 3"]) -> Float[Array, "b H W"]:
        height, width = pictures.shape[1:3]
        if height % STRIDE or width % STRIDE:
            raise InputError(
                f"pictures: {height} x {width}, expected sides that are multiples of {STRIDE}; midas.depth takes any"
            )
        fine, middle, coarse = self.resnet(pictures.astype(self.convs[0].kernel.dtype))
        tokens = self.transformer(coarse)
        h, w = coarse.shape[1:3]
        maps = [fine, middle, *(f(states, h, w) for f, states in zip(self.reassemble, tokens))]
        x = None
        for fusion, conv, y in zip(self.fusions, reversed(self.convs), reversed(maps)):
            x = fusion(conv(y), x)
        return self.head(x).astype(jnp.float32)


def net_size(height: int, width: int, side: int = 384) -> tuple[int, int]:
    """The height and width at which MiDaS looks at a picture: one side about `side`, the shape kept.

    Of the two scales that would do, the one nearer 1 ("minimal"); then both sides to the nearest multiple of 32.
    InputError for a strip so long that the memory would run out. Source: ldm/modules/midas/midas/transforms.py
    Resize.get_size.
    """
    by_height, by_width = side / height, side / width
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    # A strip would come to 0 there.
    seen = tuple(max(STRIDE, STRIDE * round(scale * n / STRIDE)) for n in (height, width))
    if math.prod(seen) > MOST:
        raise InputError(f"image: found {height} x {width}, which MiDaS would see as {seen[0]} x {seen[1]}, expected at"
                         f" most {MOST:,} pixels there; give a depth, or a picture that is less of a strip")
    return seen


def depth(
    network: Callable, pictures: Float[Array | np.ndarray, "b H W 3"], size: tuple[int, int] | None = None
) -> Float[Array, "b h w"]:
    """Inverse depth of pictures of any size in [-1, 1], at `size` or that of the pictures; bicubic both ways.

    `network` is a Midas or a Network of one. The unit is another for each picture, and a value can be a little below
    0 where the bicubic kernel overshoots. FloatingPointError where it is not finite. Source: ldm/modules/midas/api.py,
    ldm/models/diffusion/ddpm.py LatentDepth2ImageDiffusion.
    """
    height, width = pictures.shape[1:3]
    seen = resized(pictures, net_size(height, width, network.config.image_size), "bicubic")
    near = resized(network(seen)[..., None], size or (height, width), "bicubic")[..., 0]
    if not jnp.isfinite(near).all():
        raise FloatingPointError("MiDaS gave values that are not finite; check its weights, or give a depth")
    return near
