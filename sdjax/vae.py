"""The variational autoencoder: picture [b, H, W, 3] <-> latent [b, H/f, W/f, 4].

"Auto-Encoding Variational Bayes", arXiv:1312.6114; architecture of CompVis/stable-diffusion,
ldm/modules/diffusionmodules/model.py (Encoder, Decoder) and ldm/models/autoencoder.py (AutoencoderKL).
Latents here are unscaled; the pipeline multiplies them by `VAEConfig.scale` for the UNet.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdjax.attention import Attention
from sdjax.config import VAEConfig
from sdjax.layers import ResBlock, Upsample, conv1x1, conv3x3, group_norm

# model.py `Normalize`: 1e-6 in the VAE, where the UNet's residual blocks have 1e-5.
EPS = 1e-6


class Posterior(NamedTuple):
    """The Gaussian q(z | picture) that the encoder gives, one mean and log-variance a latent value."""

    mean: Float[Array, "b h w z"]
    log_variance: Float[Array, "b h w z"]

    def at(self, noise: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
        """z = mean + std * noise."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def sample(self, key: Array) -> Float[Array, "b h w z"]:
        """The same for noise drawn from a key."""
        return self.at(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def kl(self) -> Float[Array, ""]:
        """KL(q || N(0, 1)) averaged over latent values, in nats: equation 10 of arXiv:1312.6114."""
        return 0.5 * jnp.mean(self.mean**2 + jnp.exp(self.log_variance) - 1.0 - self.log_variance)


class MidAttention(Attention):
    """One head of self-attention over all pixels, added to its input; [b, h, w, c] to the same."""

    def __init__(self, channels: int, groups: int, *, rngs):
        super().__init__(channels, heads=1, bias=True, rngs=rngs)
        self.group_norm = group_norm(channels, groups, eps=EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y, _ = super().__call__(self.group_norm(x).reshape(b, h * w, c))
        return x + y.reshape(b, h, w, c)


class Downsample(nnx.Module):
    """Half the size by a 3x3 convolution of stride 2, padded at the bottom and right only.

    model.py Downsample pads (0, 1, 0, 1) and convolves without padding; the UNet's pads all sides.
    """

    def __init__(self, channels: int, *, rngs):
        self.conv = conv3x3(channels, channels, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
        return self.conv(x)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block, all at the coarsest level."""

    def __init__(self, channels: int, groups: int, *, rngs):
        self.resnets = nnx.List(
            [ResBlock(channels, channels, groups=groups, eps=EPS, rngs=rngs) for _ in range(2)]
        )
        self.attentions = nnx.List([MidAttention(channels, groups, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Level(nnx.Module):
    """The residual blocks of one level, then a change of size (`resize` is Downsample, Upsample or None)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, resize: type | None, *, rngs):
        self.resnets = nnx.List([
            ResBlock(inputs if i == 0 else outputs, outputs, groups=groups, eps=EPS, rngs=rngs)
            for i in range(blocks)
        ])
        if resize is Downsample:
            self.downsamplers = nnx.List([Downsample(outputs, rngs=rngs)])
        elif resize is Upsample:
            self.upsamplers = nnx.List([Upsample(outputs, rngs=rngs)])
        self.resize = resize

    def __call__(self, x: Float[Array, "b h w c"]) -> Array:
        for block in self.resnets:
            x = block(x)
        if self.resize is None:
            return x
        return (self.downsamplers if self.resize is Downsample else self.upsamplers)[0](x)


class Encoder(nnx.Module):
    """Picture [b, H, W, 3] to the moments [b, H/f, W/f, 2z], before the quantisation convolution."""

    def __init__(self, c: VAEConfig, *, rngs):
        widths = (c.channels[0], *c.channels)
        last = len(c.channels) - 1
        self.conv_in = conv3x3(3, widths[0], rngs=rngs)
        self.down_blocks = nnx.List([
            Level(widths[i], widths[i + 1], c.blocks, c.groups, Downsample if i < last else None, rngs=rngs)
            for i in range(len(c.channels))
        ])
        self.mid_block = MidBlock(widths[-1], c.groups, rngs=rngs)
        self.conv_norm_out = group_norm(widths[-1], c.groups, eps=EPS, rngs=rngs)
        self.conv_out = conv3x3(widths[-1], 2 * c.latent_channels, rngs=rngs)  # double_z: mean and log-variance

    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w moments"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latent [b, h, w, z] to picture [b, f h, f w, 3], after the quantisation convolution."""

    def __init__(self, c: VAEConfig, *, rngs):
        widths = (c.channels[-1], *reversed(c.channels))
        last = len(c.channels) - 1
        self.conv_in = conv3x3(c.latent_channels, widths[0], rngs=rngs)
        self.mid_block = MidBlock(widths[0], c.groups, rngs=rngs)
        self.up_blocks = nnx.List([
            Level(widths[i], widths[i + 1], c.blocks + 1, c.groups, Upsample if i < last else None, rngs=rngs)
            for i in range(len(c.channels))
        ])
        self.conv_norm_out = group_norm(widths[-1], c.groups, eps=EPS, rngs=rngs)
        self.conv_out = conv3x3(widths[-1], 3, rngs=rngs)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W 3"]:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class VAE(nnx.Module):
    """AutoencoderKL: `encode` gives a posterior over latents, `decode` a picture; both unscaled."""

    def __init__(self, config: VAEConfig, *, rngs):
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = conv1x1(2 * z, 2 * z, rngs=rngs)
        self.post_quant_conv = conv1x1(z, z, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, pictures: Float[Array, "b H W 3"]) -> Posterior:
        """The posterior of pictures in [-1, 1]; mean and log-variance are [b, H/f, W/f, z]."""
        moments = self.quant_conv(self.encoder(pictures))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        # ldm/modules/distributions/distributions.py DiagonalGaussianDistribution clamps here.
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b H W 3"]:
        """The picture of unscaled latents, about [-1, 1] (not clipped)."""
        return self.decoder(self.post_quant_conv(latents))
