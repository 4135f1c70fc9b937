"""StableDiffusion: the parts put together. Text to picture, picture to picture, holes filled, pictures against texts.

    tokens -> text encoder -> [uncond, text]          seed -> noise
                                     \\                   |
                                      UNet, guidance, solver: `steps` times
                                                          |
                                                     VAE decoder -> picture
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sdjax import midas, request, samplers, tiling
from sdjax.clip import cosine
from sdjax.config import ModelConfig
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork, compiled, device_mesh, spread_rows
from sdjax.images import as_pictures
from sdjax.request import Job
from sdjax.samplers import SAMPLERS
from sdjax.tokenizer import Tokenizer
from sdjax.vae import Posterior

Pictures = Float[np.ndarray, "b H W 3"]

# 768 pixels a side is the most that a released model was trained at: up to so many in all the VAE sees the whole
# picture, and larger ones in square tiles.
WHOLE, TILE = 768**2, 512


@dataclass(frozen=True)
class Snapshot:
    """What one step of the loop saw: pictures [b, h, w, z] in scaled latents, predictions as eps."""

    step: int  # 0, 1, ...
    steps: int
    t: int
    latents: Array  # after this step
    x0: Array  # the clean latents that the step foresaw
    eps_uncond: Array
    eps_text: Array
    attention: dict[str, Array] | None  # [b, heads, hw, tokens] of the text's half, by block; None if not asked
    _finish: Callable[[Array], Pictures]

    def preview(self) -> Pictures:
        """The foreseen picture x0, decoded, [b, H, W, 3] in [-1, 1]."""
        return self._finish(self.x0)

    def pictures(self) -> Pictures:
        """The latents of this step, decoded; after the last step, the result."""
        return self._finish(self.latents)


@compiled("graph", "attention")
def _predict(graph, state, x, t, texts, beside, classes, attention: bool):
    """Both predictions of one forward pass, without and with the prompt; the same one twice where `texts` has one row.

    Each picture's two rows lie side by side in the batch, so that pictures which are spread over devices stay where
    they are. `beside` [b, h, w, k] are further channels that the network sees, `classes` [b] what is added to its time
    embedding; None for none.
    """
    b, rows = texts.shape[:2]
    each = lambda a: None if a is None else jnp.repeat(a, rows, axis=0)
    split = lambda a: a.reshape(b, rows, *a.shape[1:])
    x = x if beside is None else jnp.concatenate([x, beside], axis=-1)
    out = nnx.merge(graph, state)(
        each(x), each(t), texts.reshape(b * rows, *texts.shape[2:]), each(classes), attention=attention
    )
    both, maps = out if attention else (out, None)
    return split(both)[:, 0], split(both)[:, -1], jax.tree.map(lambda p: split(p)[:, -1], maps)


@compiled("graph", "sampler", "kind")
def _scan(graph, sampler, kind, state, x, texts, beside, classes, keep, table, guidance, eta, keys):
    predict = lambda x, t: _predict(graph, state, x, t, texts, beside, classes, False)
    return samplers.scan(predict, SAMPLERS[sampler].step, kind, x, table, guidance, eta, keys, keep)


@compiled("graph", "sampler", "kind", "attention")
def _advance(
    graph, sampler, kind, attention, state, x, x0_last, row, texts, beside, classes, keep, guidance, eta, keys
):
    predict = lambda x, t: _predict(graph, state, x, t, texts, beside, classes, attention)
    return samplers.advance(predict, SAMPLERS[sampler].step, kind, x, x0_last, row, guidance, eta, keys, keep)


class StableDiffusion:
    """A loaded model; see `sdjax.load`. Its parts can be called on their own.

    `tokenizer` texts to ids, `text_encoder` ids to [b, 77, d], `vae.encode` and `vae.decode`, `unet`, and
    `image_encoder` and `depth_estimator` where the weights have one, else None.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, text_encoder: TextNetwork, vae: VAENetwork, unet: Network,
        image_encoder: Network | None = None, depth_estimator: Network | None = None, mesh: Mesh | None = None,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.vae = vae
        self.unet = unet
        self.image_encoder = image_encoder
        self.depth_estimator = depth_estimator
        self.mesh = mesh

    def spread(self, devices: int, shard_weights: bool = False) -> StableDiffusion:
        """The same model on several devices, each of which draws its share of the pictures of a call.

        Every device holds all weights, or its share of them where `shard_weights` saves memory for talk between the
        devices. Any number of pictures goes, and each is the one that a single device draws. Raises InputError where
        there are fewer devices.
        """
        mesh = device_mesh(devices)
        moved = (network and network.placed(mesh, shard_weights) for network in (
            self.text_encoder, self.vae, self.unet, self.image_encoder, self.depth_estimator))
        return StableDiffusion(self.config, self.tokenizer, *moved, mesh=mesh)

    # ---- what a user calls ---------------------------------------------------------------------------------

    def txt2img(self, prompt: str | Sequence[str], **options: Any) -> Pictures:
        """Pictures [n, H, W, 3] of a prompt, float32 in [-1, 1]; n = prompts x num_images.

        Options: negative_prompt "", steps 50 (1 to 1000), guidance_scale None (the model's own, 7.5 for the released
        ones, 9 for the upscaler), seed 0, num_images 1, first_image 0, height and width None (the model's own;
        multiples of 8), sampler "ddim", eta 0.0 (DDIM only). Picture i of a seed is the same alone (num_images=1,
        first_image=i) and in a batch; `seed` and `first_image` may also be lists, one for each prompt. Raises
        InputError for a bad argument, FloatingPointError if the result is not finite.
        """
        return self._run(request.text(self, prompt, **options))

    def txt2img_steps(
        self, prompt: str | Sequence[str], *, attention: bool = False, **options: Any
    ) -> Iterator[Snapshot]:
        """The same as `txt2img`, step by step: yields a Snapshot after each."""
        return self._walk(request.text(self, prompt, **options), attention)

    def img2img(self, prompt: str | Sequence[str], image: Any, strength: float = 0.7, **options: Any) -> Pictures:
        """Pictures of a prompt that start from `image` instead of from noise: SDEdit, arXiv:2108.01073.

        `image` is [H, W, 3] or [1, H, W, 3], float in [-1, 1] or uint8, sides multiples of 8. `strength` in [0, 1] is
        the share of the steps that are taken; at 0 the picture goes through the VAE only. Options as in `txt2img`.
        """
        return self._run(request.image(self, prompt, image, strength, **options))

    def img2img_steps(
        self, prompt: str | Sequence[str], image: Any, strength: float = 0.7, *, attention: bool = False, **options: Any
    ) -> Iterator[Snapshot]:
        """The same as `img2img`, step by step; yields nothing where `strength` leaves no step to take."""
        return self._walk(request.image(self, prompt, image, strength, **options), attention)

    def inpaint(
        self, prompt: str | Sequence[str], image: Any, mask: Any, strength: float = 1.0, paste: bool = True,
        **options: Any,
    ) -> Pictures:
        """Pictures in which `image` is painted anew where `mask` is 1, and stays where it is 0.

        `mask` is [H, W] of the image's size: bool, uint8 or floats in [0, 1], cut at a half. Weights for inpainting
        (9 channels) see mask and surroundings; with any other the surroundings are put back at each step. `paste` puts
        the image's own pixels back outside the mask, which else went through the VAE. The rest as in `img2img`.
        """
        return self._run(request.inpaint(self, prompt, image, mask, strength, paste, **options))

    def inpaint_steps(
        self, prompt: str | Sequence[str], image: Any, mask: Any, strength: float = 1.0, paste: bool = True, *,
        attention: bool = False, **options: Any,
    ) -> Iterator[Snapshot]:
        """The same as `inpaint`, step by step; yields nothing where `strength` leaves no step to take."""
        return self._walk(request.inpaint(self, prompt, image, mask, strength, paste, **options), attention)

    def upscale(
        self, prompt: str | Sequence[str], image: Any, noise_level: int = 20, tile: int = 128,
        watch: Callable[[int, int], None] | None = None, **options: Any,
    ) -> Pictures:
        """Pictures [n, 4 H, 4 W, 3] of `image` [H, W, 3], of any size, by the x4 upscaler.

        `noise_level` is the timestep, 0 to 350, to which the small picture is noised first: higher keeps less of it.
        What is larger than `tile` pixels, each way, is drawn in tiles of that size that overlap by an eighth, from one
        noise, and blended, so that memory is that of one tile of each of the n pictures and of the pictures themselves;
        `watch(done, tiles)` is called after each. Options as in `txt2img`, but for height and width, and without fresh
        noise at each step (`eta`, ddpm) where there are tiles.
        """
        picture = as_pictures(image, "image")
        height, width = picture.shape[1:3]
        larger = max(height, width) > request.tile_side(tile)
        if larger:
            request.require_no_fresh_noise(**options)
        job = request.upscale(self, prompt, tiling.padded(picture, tile) if larger else picture, noise_level, **options)
        if not larger:
            return self._run(job)
        f, (rows, columns) = self.config.vae.factor, job.x.shape[1:3]
        drawn = tiling.blended(
            rows, columns, tile, tile // 8, f, lambda corner: self._run(request.crop(job, corner)), watch
        )
        return drawn[:, : f * height, : f * width]

    def upscale_steps(
        self, prompt: str | Sequence[str], image: Any, noise_level: int = 20, *, attention: bool = False, **options: Any
    ) -> Iterator[Snapshot]:
        """The same as `upscale`, step by step, the whole picture in one tile."""
        return self._walk(request.upscale(self, prompt, image, noise_level, **options), attention)

    def depth2img(
        self, prompt: str | Sequence[str], image: Any, depth: Any = None, strength: float = 0.8, **options: Any
    ) -> Pictures:
        """Pictures of a prompt in the shape of `image`, by weights for depth-to-image.

        `depth` is a map of inverse depth, [H, W] of any size and unit, larger where nearer; None is what MiDaS sees in
        the image. The rest as in `img2img`.
        """
        return self._run(request.depth(self, prompt, image, depth, strength, **options))

    def depth2img_steps(
        self, prompt: str | Sequence[str], image: Any, depth: Any = None, strength: float = 0.8, *,
        attention: bool = False, **options: Any,
    ) -> Iterator[Snapshot]:
        """The same as `depth2img`, step by step; yields nothing where `strength` leaves no step to take."""
        return self._walk(request.depth(self, prompt, image, depth, strength, **options), attention)

    def midas(self, pictures: Any) -> Float[np.ndarray, "b H W"]:
        """How near everything in pictures is, as inverse depth in a unit of each picture's own.

        `pictures` are [b, H, W, 3] or [H, W, 3] of any size, floats in [-1, 1] or uint8. Where nothing is near, the
        network may say a little less than 0. Raises InputError where the weights have no MiDaS or a picture is a strip
        too long for it, FloatingPointError where it gives values that are not finite.
        """
        return np.asarray(midas.depth(request.estimator(self), as_pictures(pictures, "pictures")))

    def similarity(self, pictures: Any, texts: str | Sequence[str]) -> Float[np.ndarray, "n m"]:
        """The cosine between every picture and every text, float32 [pictures, texts].

        Raises InputError where the weights have no image encoder.
        """
        if self.image_encoder is None:
            raise InputError(f"{self.config.name}: these weights have no image encoder; load one with sdjax.load_clip")
        return compare(self.text_encoder, self.image_encoder, self.tokenizer, pictures, texts)

    def to_pictures(self, latents: Array) -> Pictures:
        """Scaled latents [b, h, w, z] to pictures in [-1, 1], one at a time, so that memory does not grow with b.

        On several devices each has one at a time. Those of more than `WHOLE` pixels are decoded in tiles of `TILE` a
        side: memory and compiled program are then those of one tile. The VAE's norms and its attention see one tile
        each, so its colours are those that the tile alone would have.
        """
        if np.ndim(latents) != 4 or not len(latents):
            raise InputError(f"latents: found shape {list(np.shape(latents))}, expected [b, h, w, z], one or more")
        scaled, devices = np.asarray(latents) / np.float32(self.config.vae.scale), self.mesh.size if self.mesh else 1
        pictures = np.concatenate([
            self._decode(scaled[start : start + devices]) for start in range(0, len(scaled), devices)
        ])
        if not np.isfinite(pictures).all():
            stage = "the VAE" if np.isfinite(scaled).all() else "the UNet"
            raise FloatingPointError(
                f"{stage} gave values that are not finite; load the weights with dtype float32, or take weaker guidance"
            )
        return np.clip(pictures, -1.0, 1.0)

    def to_posterior(self, pictures: Pictures) -> Posterior:
        """The VAE's Gaussian of unscaled latents of pictures in [-1, 1], in tiles as `to_pictures` decodes them."""
        f, (height, width) = self.config.vae.factor, pictures.shape[1:3]
        if height * width <= WHOLE:
            return self.vae.encode(pictures)
        filled = tiling.padded(pictures, TILE)

        def encoded(corner: tiling.Corner) -> np.ndarray:
            return np.concatenate(self.vae.encode(tiling.Corner(*(f * n for n in corner)).of(filled)), axis=-1)

        rows, columns = (side // f for side in filled.shape[1:3])
        both = tiling.blended(rows, columns, TILE // f, TILE // f // 4, 1, encoded)[:, : height // f, : width // f]
        return Posterior(*np.split(both, 2, axis=-1))

    # ---- how it is done ------------------------------------------------------------------------------------

    def _decode(self, latents: np.ndarray) -> Pictures:
        decode = lambda z: np.asarray(self.vae.decode(spread_rows(z, self.mesh)), np.float32)[: len(z)]
        f, (h, w) = self.config.vae.factor, latents.shape[1:3]
        if f * h * f * w <= WHOLE:
            return decode(latents)
        z = tiling.padded(latents, TILE // f)
        drawn = tiling.blended(*z.shape[1:3], TILE // f, TILE // f // 4, f, lambda corner: decode(corner.of(z)))
        return drawn[:, : f * h, : f * w]

    def _run(self, job: Job) -> Pictures:
        x = job.x
        if len(job.table.t):
            own = spread_rows(job.rows, self.mesh)
            x = _scan(self.unet.graph, job.sampler, self.config.diffusion.prediction, self.unet.state, own.x, own.texts,
                      own.beside, own.classes, own.keep, job.table, job.guidance, job.eta, own.keys)[: len(x)]
        return self._finish(job, x)

    def _finish(self, job: Job, latents: Array) -> Pictures:
        pictures = self.to_pictures(latents)
        if job.paste is None:
            return pictures
        image, mask = job.paste
        return mask * pictures + (1.0 - mask) * image

    def _walk(self, job: Job, attention: bool) -> Iterator[Snapshot]:
        own, n = spread_rows(job.rows, self.mesh), len(job.x)

        def step(x, x0_last, row):
            return _advance(self.unet.graph, job.sampler, self.config.diffusion.prediction, attention, self.unet.state,
                            x, x0_last, row, own.texts, own.beside, own.classes, own.keep, job.guidance, job.eta,
                            own.keys)

        for i, (row, s) in enumerate(samplers.steps(step, own.x, job.table)):
            shown = jax.tree.map(lambda a: a[:n], (s.x, s.x0, s.eps_uncond, s.eps_text, s.maps))
            yield Snapshot(i, len(job.table.t), int(row.t), *shown, partial(self._finish, job))


@dataclass(frozen=True)
class CLIP:
    """Texts and pictures in one space; see `sdjax.load_clip`.

    `tokenizer` texts to ids, `text_encoder.embed` ids to vectors [b, p], `image_encoder` pictures to vectors [b, p].
    """

    tokenizer: Tokenizer
    text_encoder: TextNetwork
    image_encoder: Network

    def similarity(self, pictures: Any, texts: str | Sequence[str]) -> Float[np.ndarray, "n m"]:
        """The cosine between every picture and every text, float32 [pictures, texts]."""
        return compare(self.text_encoder, self.image_encoder, self.tokenizer, pictures, texts)


def compare(
    text_encoder: TextNetwork, image_encoder: Network, tokenizer: Tokenizer, pictures: Any, texts: str | Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """The cosine between every picture and every text by CLIP; pictures of any size, float in [-1, 1] or uint8."""
    pictures = as_pictures(pictures, "pictures")
    texts = request.texts("texts", texts)
    if not texts:
        raise InputError("texts: found none, expected at least one")
    resized = center_crop(pictures, image_encoder.config.image_size)
    return np.asarray(cosine(image_encoder(resized), text_encoder.embed(tokenizer(texts))))


def center_crop(pictures: Pictures, size: int) -> Float[Array, "b s s 3"]:
    """The middle square at `size`: the shorter side resized to it with a bicubic filter, as CLIP's own transform."""
    b, h, w, c = pictures.shape
    if (h, w) == (size, size):
        return jnp.asarray(pictures)
    scale = size / min(h, w)
    height, width = max(size, round(h * scale)), max(size, round(w * scale))
    resized = jax.image.resize(pictures, (b, height, width, c), "cubic", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return jnp.clip(resized[:, top : top + size, left : left + size], -1.0, 1.0)
