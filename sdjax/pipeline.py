"""StableDiffusion: the parts put together. Text to picture, picture to picture, pictures against texts.

    tokens -> text encoder -> [uncond, text]          seed -> noise
                                     \\                   |
                                      UNet, guidance, solver: `steps` times
                                                          |
                                                     VAE decoder -> picture
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdjax import samplers
from sdjax.clip import cosine
from sdjax.config import ModelConfig
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.samplers import SAMPLERS, Plan
from sdjax.tokenizer import Tokenizer

Pictures = Float[np.ndarray, "b H W 3"]


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
    _pipeline: StableDiffusion

    def preview(self) -> Pictures:
        """The foreseen picture x0, decoded, [b, H, W, 3] in [-1, 1]."""
        return self._pipeline.to_pictures(self.x0)

    def pictures(self) -> Pictures:
        """The latents of this step, decoded; after the last step, the result."""
        return self._pipeline.to_pictures(self.latents)


@partial(jax.jit, static_argnames=("graph", "guided", "attention"))
def _predict(graph, state, x, t, texts, guided: bool, attention: bool):
    """Both predictions of one forward pass: the batch holds [uncond, text], in the order of LDM and diffusers."""
    unet = nnx.merge(graph, state)
    if not guided:
        out = unet(x, t, texts, attention=attention)
        both, maps = out if attention else (out, None)
        return both, both, maps
    out = unet(jnp.concatenate([x, x]), jnp.concatenate([t, t]), texts, attention=attention)
    both, maps = out if attention else (out, None)
    unconditional, conditional = jnp.split(both, 2)
    return unconditional, conditional, jax.tree.map(lambda p: jnp.split(p, 2)[1], maps)


@partial(jax.jit, static_argnames=("graph", "sampler", "kind", "guided"))
def _scan(graph, sampler, kind, guided, state, x, texts, table, guidance, eta, keys):
    predict = lambda x, t: _predict(graph, state, x, t, texts, guided, False)
    return samplers.scan(predict, SAMPLERS[sampler].step, kind, x, table, guidance, eta, keys)


@partial(jax.jit, static_argnames=("graph", "sampler", "kind", "guided", "attention"))
def _advance(graph, sampler, kind, guided, attention, state, x, x0_last, row, texts, guidance, eta, keys):
    predict = lambda x, t: _predict(graph, state, x, t, texts, guided, attention)
    return samplers.advance(predict, SAMPLERS[sampler].step, kind, x, x0_last, row, guidance, eta, keys)


@dataclass(frozen=True)
class Job:
    """One checked request: everything that either loop needs."""

    sampler: str
    table: Plan
    texts: Array  # [2n, 77, d], without and with the prompt; [n, 77, d] where there is no guidance
    guided: bool
    guidance: Array
    eta: Array
    keys: Array
    x: Array  # [n, h, w, z], where the loop starts


class StableDiffusion:
    """A loaded model; see `sdjax.load`. Its parts can be called on their own.

    `tokenizer` texts to ids, `text_encoder` ids to [b, 77, d], `vae.encode` and `vae.decode`, `unet`, and
    `image_encoder` where the weights have one, else None.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, text_encoder: TextNetwork, vae: VAENetwork, unet: Network,
        image_encoder: Network | None = None,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.vae = vae
        self.unet = unet
        self.image_encoder = image_encoder

    # ---- what a user calls ---------------------------------------------------------------------------------

    def txt2img(self, prompt: str | Sequence[str], **options: Any) -> Pictures:
        """Pictures [n, H, W, 3] of a prompt, float32 in [-1, 1]; n = prompts x num_images.

        Options: negative_prompt "", steps 50 (1 to 1000), guidance_scale 7.5, seed 0, num_images 1, first_image 0,
        height and width None (the model's own; multiples of 8), sampler "ddim", eta 0.0 (DDIM only). Picture i of a
        seed is the same alone (num_images=1, first_image=i) and in a batch. Raises InputError for a bad argument,
        FloatingPointError if the result is not finite.
        """
        return self._run(self._text_job(prompt, **options))

    def txt2img_steps(
        self, prompt: str | Sequence[str], *, attention: bool = False, **options: Any
    ) -> Iterator[Snapshot]:
        """The same as `txt2img`, step by step: yields a Snapshot after each."""
        return self._walk(self._text_job(prompt, **options), attention)

    def img2img(self, prompt: str | Sequence[str], image: Any, strength: float = 0.7, **options: Any) -> Pictures:
        """Pictures of a prompt that start from `image` instead of from noise: SDEdit, arXiv:2108.01073.

        `image` is [H, W, 3] or [1, H, W, 3], float in [-1, 1] or uint8, sides multiples of 8. `strength` in [0, 1] is
        the share of the steps that are taken; at 0 the picture goes through the VAE only. Options as in `txt2img`.
        """
        return self._run(self._image_job(prompt, image, strength, **options))

    def img2img_steps(
        self, prompt: str | Sequence[str], image: Any, strength: float = 0.7, *, attention: bool = False, **options: Any
    ) -> Iterator[Snapshot]:
        """The same as `img2img`, step by step; yields nothing where `strength` leaves no step to take."""
        return self._walk(self._image_job(prompt, image, strength, **options), attention)

    def similarity(self, pictures: Any, texts: str | Sequence[str]) -> Float[np.ndarray, "n m"]:
        """The cosine between every picture and every text, float32 [pictures, texts].

        Raises InputError where the weights have no image encoder.
        """
        if self.image_encoder is None:
            raise InputError(f"{self.config.name}: these weights have no image encoder; load one with sdjax.load_clip")
        return compare(self.text_encoder, self.image_encoder, self.tokenizer, pictures, texts)

    def to_pictures(self, latents: Array) -> Pictures:
        """Scaled latents [b, h, w, z] to pictures in [-1, 1], one at a time, so that memory does not grow with b."""
        scaled = latents / self.config.vae.scale
        pictures = np.concatenate([np.asarray(self.vae.decode(z[None]), np.float32) for z in scaled])
        if not np.isfinite(pictures).all():
            stage = "the VAE" if np.isfinite(np.asarray(latents)).all() else "the UNet"
            raise FloatingPointError(f"{stage} gave values that are not finite; load the weights with dtype float32")
        return np.clip(pictures, -1.0, 1.0)

    # ---- how it is done ------------------------------------------------------------------------------------

    def _run(self, job: Job) -> Pictures:
        if len(job.table.t) == 0:
            return self.to_pictures(job.x)
        x = _scan(self.unet.graph, job.sampler, self.config.diffusion.prediction, job.guided, self.unet.state,
                  job.x, job.texts, job.table, job.guidance, job.eta, job.keys)
        return self.to_pictures(x)

    def _walk(self, job: Job, attention: bool) -> Iterator[Snapshot]:
        def step(x, x0_last, row):
            return _advance(self.unet.graph, job.sampler, self.config.diffusion.prediction, job.guided, attention,
                            self.unet.state, x, x0_last, row, job.texts, job.guidance, job.eta, job.keys)

        for i, (row, s) in enumerate(samplers.steps(step, job.x, job.table)):
            yield Snapshot(i, len(job.table.t), int(row.t), s.x, s.x0, s.eps_uncond, s.eps_text, s.maps, self)

    def _text_job(self, prompt: str | Sequence[str], height: int | None = None, width: int | None = None,
                  **options: Any) -> Job:
        height, width = (self._side(n, v) for n, v in (("height", height), ("width", width)))
        job, keys = self._job(prompt, **options)
        x = samplers.noise(keys, 0, (height, width, self.config.vae.latent_channels))
        return Job(x=x, keys=keys, **job)

    def _image_job(self, prompt: str | Sequence[str], image: Any, strength: float, **options: Any) -> Job:
        if not 0.0 <= strength <= 1.0:
            raise InputError(f"strength: found {strength}, expected a number from 0 to 1")
        image = as_pictures(image, "image")
        if len(image) != 1:
            raise InputError(f"image: found {len(image)} pictures, expected one")
        for name, side in (("height", image.shape[1]), ("width", image.shape[2])):
            self._side(f"image {name}", side)
        for name in ("height", "width"):
            if options.pop(name, None) is not None:
                raise InputError(f"{name}: image to image keeps the size of its image; resize the image instead")
        job, keys = self._job(prompt, **options)
        posterior = self.vae.encode(image)
        # LDM draws from the posterior (scripts/img2img.py get_first_stage_encoding); each image has its own draw.
        draw = samplers.noise(keys, samplers.POSTERIOR, posterior.mean.shape[1:])
        latent = self.config.vae.scale * (posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draw)
        # The first (1 - strength) of the steps: diffusers pipeline_stable_diffusion_img2img.py get_timesteps.
        table: Plan = job.pop("table")
        left_out = len(table.t) - min(int(len(table.t) * strength), len(table.t))
        table = Plan(*(column[left_out:] for column in table))
        if len(table.t):
            table.a_last[0] = 0.0  # a multistep solver has no step before this one
            latent = samplers.start(latent, samplers.noise(keys, 0, latent.shape[1:]), table)
        return Job(x=latent, keys=keys, table=table, **job)

    def _job(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] = "", steps: int = 50,
        guidance_scale: float = 7.5, seed: int = 0, num_images: int = 1, first_image: int = 0, sampler: str = "ddim",
        eta: float = 0.0,
    ) -> tuple[dict[str, Any], Array]:
        """The checked settings and the images' keys; the loop's start is for the caller to add."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        most = self.config.diffusion.train_steps
        for name, good, found, expected in (
            ("prompt", len(prompts) > 0, prompts, "at least one"),
            ("negative_prompt", len(negatives) == len(prompts), len(negatives), f"one, or {len(prompts)}"),
            ("steps", _is_int(steps) and 1 <= steps <= most, steps, f"a whole number from 1 to {most}"),
            ("guidance_scale", np.isfinite(guidance_scale), guidance_scale, "a finite number, 1 for no guidance"),
            ("seed", _is_int(seed) and 0 <= seed < 2**32, seed, "a whole number from 0 to 2^32 - 1"),
            ("num_images", _is_int(num_images) and num_images >= 1, num_images, "a whole number from 1"),
            ("first_image", _is_int(first_image) and 0 <= first_image < 2**31, first_image, "a whole number from 0"),
            ("sampler", sampler in SAMPLERS, repr(sampler), f"one of {', '.join(SAMPLERS)}"),
            ("eta", 0.0 <= eta <= 1.0 and (eta == 0.0 or sampler == "ddim"), eta, "0 to 1, and 0 but for ddim"),
        ):
            if not good:
                raise InputError(f"{name}: found {found}, expected {expected}")
        guided = guidance_scale != 1.0
        texts = [self.text_encoder(np.repeat(self.tokenizer(t), num_images, axis=0)) for t in
                 ([negatives, prompts] if guided else [prompts])]
        job = {
            "sampler": sampler, "table": SAMPLERS[sampler].plan(self.config.diffusion, steps), "guided": guided,
            "texts": jnp.concatenate(texts), "guidance": jnp.float32(guidance_scale), "eta": jnp.float32(eta),
        }
        return job, samplers.image_keys(seed, first_image, len(prompts) * num_images)

    def _side(self, name: str, value: int | None) -> int:
        """A picture's side in latents; None is the model's own size."""
        factor = self.config.vae.factor
        value = self.config.image_size if value is None else value
        if not _is_int(value) or value < factor or value % factor:
            raise InputError(f"{name}: found {value}, expected a multiple of {factor}")
        return value // factor


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
    texts = [texts] if isinstance(texts, str) else list(texts)
    resized = centre(pictures, image_encoder.config.image_size)
    return np.asarray(cosine(image_encoder(resized), text_encoder.embed(tokenizer(texts))))


def centre(pictures: Pictures, size: int) -> Float[Array, "b s s 3"]:
    """The middle square at `size`: the shorter side resized to it with a bicubic filter, as CLIP's own transform."""
    b, h, w, c = pictures.shape
    if (h, w) == (size, size):
        return jnp.asarray(pictures)
    scale = size / min(h, w)
    height, width = max(size, round(h * scale)), max(size, round(w * scale))
    resized = jax.image.resize(pictures, (b, height, width, c), "cubic", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return jnp.clip(resized[:, top : top + size, left : left + size], -1.0, 1.0)


def as_pictures(pictures: Any, name: str) -> Pictures:
    """Pictures as float32 [b, H, W, 3] in [-1, 1], from floats or uint8, one or many; InputError if they are not."""
    array = np.asarray(pictures)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(f"{name}: found shape {list(np.shape(pictures))}, expected [H, W, 3] or [b, H, W, 3]")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 127.5 - 1.0
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and np.abs(array).max() <= 1.0 + 1e-3):
        found = f"values from {array.min():g} to {array.max():g}"
        raise InputError(f"{name}: found {found}, expected uint8, or floats in [-1, 1]")
    return array


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
