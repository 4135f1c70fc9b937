"""What is asked of a model, checked and made ready: prompts, sizes, pictures and masks become a Job for the loop.

Each function takes the model and what the caller gave, and raises InputError for what cannot be drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax import midas, samplers
from sdjax.config import PURPOSES, ModelConfig
from sdjax.diffusion import add_noise, alphas
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.images import MAX_PIXELS, as_depth, as_mask, as_pictures, normalised_depth
from sdjax.samplers import SAMPLERS, Keep, Plan
from sdjax.tiling import Corner

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion

MASKED = samplers.POSTERIOR + 1  # the number of the draw from the posterior of the picture with a hole
SMALL = samplers.POSTERIOR + 2  # that of the noise on the picture to be enlarged
MOST_NOISE = 350  # [ldm] configs/stable-diffusion/x4-upscaling.yaml max_noise_level


class Rows(NamedTuple):
    """What a Job has one row of for each picture."""

    x: Array
    texts: Array
    keys: Array
    beside: Array | None
    classes: Array | None
    keep: Keep | None


@dataclass(frozen=True)
class Job:
    """One checked request: everything that either loop needs."""

    sampler: str
    table: Plan
    texts: Array  # [n, 2, 77, d], without and with the prompt; [n, 1, 77, d] where there is no guidance
    guidance: Array
    eta: Array
    keys: Array
    x: Array  # [n, h, w, z], where the loop starts
    beside: Array | None = None  # [n, h, w, k], channels that the network sees beside the latents
    classes: Array | None = None  # [n], a number that is added to the time embedding as a vector
    keep: Keep | None = None  # what the loop must not change
    paste: tuple[np.ndarray, np.ndarray] | None = None  # picture and mask [1, H, W, 3 and 1]: pixels that are put back

    @property
    def rows(self) -> Rows:
        """What there is one of for each picture."""
        return Rows(*(getattr(self, name) for name in Rows._fields))


def text(
    sd: StableDiffusion, prompt: str | Sequence[str], height: int | None = None, width: int | None = None,
    **options: Any,
) -> Job:
    """From noise."""
    _require_purpose(sd, "txt2img", 0)
    height, width = (_side(sd, n, v) for n, v in (("height", height), ("width", width)))
    if height * width * sd.config.vae.factor**2 > MAX_PIXELS:
        raise InputError(f"height and width: found more than {MAX_PIXELS:,} pixels in all, expected fewer")
    job, keys = _settings(sd, prompt, **options)
    return Job(x=samplers.noise(keys, 0, (height, width, sd.config.vae.latent_channels)), keys=keys, **job)


def image(sd: StableDiffusion, prompt: str | Sequence[str], picture: Any, strength: float, **options: Any) -> Job:
    """From a picture with noise on it: SDEdit, arXiv:2108.01073."""
    _require_purpose(sd, "img2img", 0)
    return _noised(sd, prompt, _one_picture(sd, picture, options), strength, options)


def depth(
    sd: StableDiffusion, prompt: str | Sequence[str], picture: Any, near: Any = None, strength: float = 0.8,
    **options: Any,
) -> Job:
    """From a picture with noise on it, beside it how near everything in it is: [latent z, inverse depth 1].

    `near` is what MiDaS sees where it is None: LatentDepth2ImageDiffusion in ldm/models/diffusion/ddpm.py.
    """
    _require_purpose(sd, "depth2img", 1)
    picture = _one_picture(sd, picture, options)
    size = tuple(side // sd.config.vae.factor for side in picture.shape[1:3])
    if near is None:
        near = midas.depth(estimator(sd), picture, size)[..., None]
    else:
        near = midas.resized(jnp.asarray(as_depth(near)), size, "bicubic")
    job = _noised(sd, prompt, picture, strength, options)
    return replace(job, beside=jnp.broadcast_to(normalised_depth(np.asarray(near)), (len(job.keys), *size, 1)))


def estimator(sd: StableDiffusion) -> Network:
    """The network that sees depth; InputError where the weights have none."""
    if sd.depth_estimator is None:
        raise InputError(f"{sd.config.name}: these weights have no MiDaS; give a depth, or load depth-to-image weights")
    return sd.depth_estimator


def inpaint(
    sd: StableDiffusion, prompt: str | Sequence[str], picture: Any, mask: Any, strength: float = 1.0,
    paste: bool = True, **options: Any,
) -> Job:
    """A picture painted anew where `mask` is 1.

    A network of 2 z + 1 channels sees mask and surroundings, [latent z, mask 1, masked picture z]:
    LatentInpaintDiffusion in ldm/models/diffusion/ddpm.py. One of z channels sees neither, and what is outside the
    mask is put back into its latents after each step, with the noise that belongs there: diffusers,
    pipeline_stable_diffusion_inpaint.py.
    """
    z = sd.config.vae.latent_channels
    _require_purpose(sd, "inpaint", 0, z + 1)  # beside the latents: nothing, or mask and picture
    picture = _one_picture(sd, picture, options)
    pixels = as_mask(mask, picture.shape[1:3])
    job, keys = _settings(sd, prompt, **options)
    job["table"] = table = _last_share(job["table"], strength)
    f = sd.config.vae.factor
    latent_mask = jnp.asarray(pixels[:, ::f, ::f])  # nearest: torch's takes the first pixel of each cell
    if not latent_mask.any():
        why = f"has no pixel at the corner of a cell of {f} x {f}" if pixels.any() else "is empty"
        warnings.warn(f"the mask {why}, so nothing is painted anew; make it larger", stacklevel=3)
    x = eps = samplers.noise(keys, 0, (*latent_mask.shape[1:3], z))
    blends = sd.config.unet.in_channels == z
    if blends or strength < 1.0:
        latent = _encoded(sd, picture, keys, samplers.POSTERIOR)
    if strength < 1.0:
        x = samplers.start(latent, eps, table) if len(table.t) else latent
    own: dict[str, Any] = {"paste": (picture, pixels) if paste else None}
    if blends:
        masks = jnp.broadcast_to(latent_mask, (len(keys), *latent_mask.shape[1:]))
        own["keep"] = Keep(latent, eps, masks, jnp.full(len(keys), table.index[-1:].max(initial=0)))
    else:
        hollow = _encoded(sd, picture * (1.0 - pixels), keys, MASKED)
        everywhere = jnp.broadcast_to(latent_mask, (*hollow.shape[:3], 1))
        own["beside"] = jnp.concatenate([everywhere, hollow], axis=-1)
    return Job(x=x, keys=keys, **job, **own)


def upscale(
    sd: StableDiffusion, prompt: str | Sequence[str], picture: Any, noise_level: int = 20, **options: Any
) -> Job:
    """A picture four times as large, [h, w] to [4 h, 4 w]: latents are as large as the small picture.

    The network sees [latent z, noisy small picture 3] and how noisy it is: LatentUpscaleDiffusion in
    ldm/models/diffusion/ddpm.py, ImageConcatWithNoiseAugmentation in ldm/modules/diffusionmodules/upscaling.py.
    """
    _require_purpose(sd, "upscale", 3)
    picture = _one_picture(sd, picture, options, 1)
    height, width = picture.shape[1:3]
    if height * width * sd.config.vae.factor**2 > MAX_PIXELS:
        raise InputError(f"image: found {height} x {width}, which would be drawn with more than {MAX_PIXELS:,} pixels")
    most = min(MOST_NOISE, sd.config.unet.classes - 1, sd.config.low_res.train_steps - 1)
    if not (_is_int(noise_level) and 0 <= noise_level <= most):
        raise InputError(f"noise_level: found {noise_level}, expected a whole number from 0 to {most}")
    job, keys = _settings(sd, prompt, **options)
    noise = samplers.noise(keys, 0, (height, width, sd.config.vae.latent_channels))
    share = jnp.float32(alphas(sd.config.low_res)[noise_level])
    small = add_noise(jnp.asarray(picture), samplers.noise(keys, SMALL, (height, width, 3)), share)
    return Job(x=noise, keys=keys, beside=small, classes=jnp.full(len(keys), noise_level, jnp.int32), **job)


def crop(job: Job, corner: Corner) -> Job:
    """One tile of a request: the same noise, cut out of the whole."""
    return replace(job, x=corner.of(job.x), beside=corner.of(job.beside))


# ---- checks ------------------------------------------------------------------------------------------------


def _require_purpose(sd: StableDiffusion, asked: str, *extra: int) -> None:
    """InputError unless the network has one of the numbers of channels beside the latents that `asked` can fill."""
    c = sd.config
    beside = c.unet.in_channels - c.vae.latent_channels
    if beside not in extra:
        does = PURPOSES.get(c.unet.in_channels, f"for {c.unet.in_channels} input channels")
        raise InputError(f"{asked}: these weights are {does}, which cannot do that; load others, or use them for that")


def _one_picture(
    sd: StableDiffusion, picture: Any, options: dict[str, Any], multiple: int | None = None
) -> np.ndarray:
    """A picture [1, H, W, 3] whose sides are multiples, by default of the VAE's; no other size may be asked for."""
    picture = as_pictures(picture, "image")
    if len(picture) != 1:
        raise InputError(f"image: found {len(picture)} pictures, expected one")
    for name, side in (("height", picture.shape[1]), ("width", picture.shape[2])):
        _side(sd, f"image {name}", side, multiple)
    for name in ("height", "width"):
        if options.pop(name, None) is not None:
            raise InputError(f"{name}: the size of the image decides that of what is drawn; resize the image instead")
    return picture


def _noised(
    sd: StableDiffusion, prompt: str | Sequence[str], picture: np.ndarray, strength: float, options: dict[str, Any]
) -> Job:
    """The last `strength` of the steps, from the picture with as much noise as belongs there."""
    job, keys = _settings(sd, prompt, **options)
    latent = _encoded(sd, picture, keys, samplers.POSTERIOR)
    job["table"] = table = _last_share(job["table"], strength)
    if len(table.t):
        latent = samplers.start(latent, samplers.noise(keys, 0, latent.shape[1:]), table)
    return Job(x=latent, keys=keys, **job)


def _encoded(sd: StableDiffusion, picture: np.ndarray, keys: Array, number: int) -> Float[Array, "n h w z"]:
    """A scaled latent for each key, drawn from the posterior of one picture.

    LDM draws too (scripts/img2img.py get_first_stage_encoding); each image has its own draw.
    """
    posterior = sd.to_posterior(picture)
    draw = samplers.noise(keys, number, posterior.mean.shape[1:])
    return sd.config.vae.scale * posterior.at(draw)


def _last_share(table: Plan, strength: float) -> Plan:
    """The last `strength` of the steps: diffusers pipeline_stable_diffusion_img2img.py get_timesteps."""
    if not (_is_number(strength) and 0.0 <= strength <= 1.0):
        raise InputError(f"strength: found {strength}, expected a number from 0 to 1")
    left_out = len(table.t) - min(int(len(table.t) * strength), len(table.t))
    if strength and left_out == len(table.t):
        warnings.warn(f"strength: {strength} of {left_out} steps is less than one, so that none is taken", stacklevel=4)
    table = Plan(*(column[left_out:] for column in table))
    if len(table.t):
        table.a_last[0] = 0.0  # a multistep solver has no step before this one
    return table


def require_settings(
    config: ModelConfig, n: int = 1, steps: int = 50, guidance_scale: float = 1.0, seed: int | Sequence[int] = 0,
    num_images: int = 1, first_image: int | Sequence[int] = 0, sampler: str = "ddim", eta: float = 0.0,
) -> None:
    """InputError for settings with which no model of `config` could draw `n` prompts."""
    most = config.diffusion.train_steps
    for name, good, found, expected in (
        ("steps", _is_int(steps) and 1 <= steps <= most, steps, f"a whole number from 1 to {most}"),
        ("guidance_scale", _is_number(guidance_scale), guidance_scale, "a finite number, 1 for no guidance"),
        ("seed", _ints(seed, n, 2**32), seed, f"a whole number from 0 to 2^32 - 1, or a list of {n}"),
        ("num_images", _is_int(num_images) and num_images >= 1, num_images, "a whole number from 1"),
        ("first_image", _ints(first_image, n, 2**31), first_image,
         f"a whole number from 0 to 2^31 - 1, or a list of {n}"),
        ("sampler", isinstance(sampler, str) and sampler in SAMPLERS, repr(sampler), f"one of {', '.join(SAMPLERS)}"),
        ("eta", _is_number(eta) and 0.0 <= eta <= 1.0 and (eta == 0.0 or sampler == "ddim"), eta,
         "0 to 1, and 0 but for ddim"),
    ):
        if not good:
            raise InputError(f"{name}: found {found}, expected {expected}")


def _settings(
    sd: StableDiffusion, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = "", steps: int = 50,
    guidance_scale: float | None = None, seed: int | Sequence[int] = 0, num_images: int = 1,
    first_image: int | Sequence[int] = 0, sampler: str = "ddim", eta: float = 0.0,
) -> tuple[dict[str, Any], Array]:
    """The checked settings and the images' keys; the loop's start is for the caller to add."""
    prompts, negative_prompt = texts("prompt", prompt), "" if negative_prompt is None else negative_prompt
    negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else texts(
        "negative_prompt", negative_prompt)
    n = len(prompts)
    for name, good, found, expected in (
        ("prompt", n > 0, prompts, "at least one"),
        ("negative_prompt", len(negatives) == n, len(negatives), f"one text, or a list of {n}"),
    ):
        if not good:
            raise InputError(f"{name}: found {found}, expected {expected}")
    guidance_scale = sd.config.guidance if guidance_scale is None else guidance_scale
    require_settings(sd.config, n, steps, guidance_scale, seed, num_images, first_image, sampler, eta)
    if guidance_scale == 1.0 and any(negatives):
        warnings.warn("negative_prompt: at guidance 1 it is not heard", stacklevel=4)
    rows = [prompts] if guidance_scale == 1.0 else [negatives, prompts]
    hidden = [sd.text_encoder(np.repeat(sd.tokenizer(row), num_images, axis=0)) for row in rows]
    job = {
        "sampler": sampler, "table": SAMPLERS[sampler].plan(sd.config.diffusion, steps),
        "texts": jnp.stack(hidden, axis=1), "guidance": jnp.float32(guidance_scale), "eta": jnp.float32(eta),
    }
    # Prompts share the counting of one first image, and begin each with its own where there are as many.
    firsts = [first_image + num_images * i for i in range(n)] if _is_int(first_image) else first_image
    if max(firsts) + num_images > 2**31:
        raise InputError(f"first_image: found {first_image} for {n * num_images} pictures, expected to end below 2^31")
    seeds = [seed] * n if _is_int(seed) else seed
    keys = [samplers.image_keys(seed, first, num_images) for seed, first in zip(seeds, firsts)]
    return job, jnp.concatenate(keys)


def _side(sd: StableDiffusion, name: str, value: int | None, multiple: int | None = None) -> int:
    """A picture's side in latents; None is the model's own size."""
    factor = multiple or sd.config.vae.factor
    value = sd.config.image_size if value is None else value
    if not _is_int(value) or value < factor or value % factor:
        raise InputError(f"{name}: found {value}, expected a multiple of {factor}")
    return value // factor


def require_no_fresh_noise(sampler: str = "ddim", eta: float = 0.0, **options: Any) -> None:
    """InputError for steps that add noise, which tiles would each add alike, and differently where they overlap."""
    for name, value, fresh in (("sampler", sampler, sampler == "ddpm"), ("eta", eta, bool(eta))):
        if fresh:
            raise InputError(f"{name}: found {value}, which adds noise at each step; a picture in tiles is drawn"
                             " without: give another, or a larger tile")


def tile_side(tile: int) -> int:
    """The side of a tile of the small picture; InputError for one that cannot be."""
    if not (_is_int(tile) and tile >= 16):
        raise InputError(f"tile: found {tile}, expected a whole number from 16")
    return tile


def _ints(values: Any, n: int, below: int) -> bool:
    """One whole number, or n of them, from 0."""
    many = [values] * n if _is_int(values) else values
    return isinstance(many, (list, tuple, np.ndarray)) and np.shape(many) == (n,) and all(
        _is_int(v) and 0 <= v < below for v in many
    )


def texts(name: str, value: Any) -> list[str]:
    """One text or several as a list; InputError for anything else."""
    found = [value] if isinstance(value, str) else value
    if not (isinstance(found, (list, tuple)) and all(isinstance(text, str) for text in found)):
        raise InputError(f"{name}: found {value!r}, expected a text, or a list of texts")
    return list(found)


def _is_number(value: Any) -> bool:
    """A real number that float32 can hold."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and abs(value) <= float(np.finfo(np.float32).max)


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
