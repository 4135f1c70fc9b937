"""What a denoiser sees beside the latents, for every scene of a training set: a hole, a depth, a small picture.

All of it is made once and lies in memory; a network learns from it as from the latents themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from sdjax.checkpoint import tree
from sdjax.config import UNetConfig
from sdjax.images import normalised_depth
from sdjax.midas import resized
from sdjax.toyworld import Scene, nearness, render, screen_box
from sdjax.toyworld.scene import between, pick
from sdjax.training.data import step_rng
from sdjax.training.vae import encode
from sdjax.unet import UNet
from sdjax.vae import VAE

MARGIN = (0.02, 0.2)  # how much wider than a solid its hole is at each side, in half picture widths
SIDES = (0.4, 1.4)  # of a hole anywhere, in the same unit


def hole(scene: Scene, rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """A mask bool [size, size, 1], true in one box: half of them around a solid, half anywhere."""
    if rng.random() < 0.5:
        left, top, right, bottom = screen_box(pick(rng, scene.solids))
        left, top, right, bottom = (edge + sign * between(rng, *MARGIN) for edge, sign in
                                    ((left, -1), (top, -1), (right, 1), (bottom, 1)))
    else:
        width, height = between(rng, *SIDES), between(rng, *SIDES)
        left, top = between(rng, -1, 1) - width / 2, between(rng, -1, 1) - height / 2
        right, bottom = left + width, top + height
    left, top, right, bottom = (min(max(round((edge + 1) / 2 * size), 0), size) for edge in (left, top, right, bottom))
    mask = np.zeros((size, size, 1), bool)
    mask[top:bottom, left:right] = True
    return mask


def holes(
    vae: VAE, scale: float, scenes: Sequence[Scene], pictures: np.ndarray, seed: int = 0
) -> np.ndarray:
    """[mask 1, scaled latents of the picture with a hole z] for each scene, float32 [n, h, w, 1 + z].

    The hole is mid-grey, the mask at latent size takes the first pixel of each cell, as in `request.inpaint`.
    """
    masks = np.stack([hole(scene, step_rng(seed, i), pictures.shape[1]) for i, scene in enumerate(scenes)])
    latents = scale * encode(vae, np.where(masks, np.uint8(128), pictures)).mean
    f = vae.config.factor
    return np.concatenate([masks[:, ::f, ::f].astype(np.float32), latents], axis=-1)


def depths(scenes: Sequence[Scene], side: int) -> np.ndarray:
    """The true inverse depth of each scene from -1 to 1, float32 [n, side, side, 1]."""
    return np.concatenate([
        normalised_depth(np.asarray(resized(nearness(render(scene)[1])[None, :, :, None], (side, side), "bicubic")))
        for scene in tqdm(scenes, desc="depths", unit="scene", dynamic_ncols=True)
    ]).astype(np.float32)


def widened(unet: UNet, config: UNetConfig, loud: float = 0.0) -> UNet:
    """A trained denoiser that sees further channels, whose weights are `loud` times a standard normal draw.

    At 0 nothing changes yet, as the inpainting model was begun: model card of runwayml/stable-diffusion-inpainting.
    """
    graph, state = tree.abstract(UNet, config)
    arrays = tree.flatten(nnx.state(unet))
    more = config.in_channels - unet.config.in_channels
    kernel = arrays["conv_in.kernel"]
    new = loud * jax.random.normal(jax.random.key(0), (*kernel.shape[:2], more, kernel.shape[3]))
    arrays["conv_in.kernel"] = jnp.concatenate([kernel, new], axis=2)
    return nnx.merge(graph, tree.fill(state, arrays, "the denoiser to begin with"))
