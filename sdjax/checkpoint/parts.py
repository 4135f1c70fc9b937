"""A model on disk, opened but not read: which tensor of which file becomes which parameter, and what does not fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.checkpoint import tree
from sdjax.checkpoint.layouts import FROM_TORCH, Shape, Table, stored_shape, turned
from sdjax.checkpoint.reader import SafetensorsFile, ShardedFile
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import PURPOSES, ModelConfig
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.midas import Midas
from sdjax.tokenizer import Tokenizer
from sdjax.unet import UNet
from sdjax.vae import VAE

File = SafetensorsFile | ShardedFile

KINDS: dict[str, tuple[type[nnx.Module], type[Network]]] = {
    "text_encoder": (TextEncoder, TextNetwork),
    "vae": (VAE, VAENetwork),
    "unet": (UNet, Network),
    "image_encoder": (ImageEncoder, Network),
    "depth_estimator": (Midas, Network),
}
SHOWN = 4  # problems that an error names; `sdjax info` has them all


class WrongFamily(InputError):
    """Sound weights of a model that is not loaded here; `what` says which one they look like."""

    def __init__(self, path: Any, what: str):
        expected = "a Stable Diffusion 1.x or 2.x for text, inpainting, depth or upscaling"
        super().__init__(f"{path}: looks like {what}, expected {expected}")
        self.what = what


class Name(NamedTuple):
    """A tensor: what its table calls it, and what the file calls it."""

    plain: str
    stored: str


def shapes(state: nnx.State) -> dict[str, Shape]:
    """The shapes of a network's parameters, abstract or not, by dotted path."""
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


_abstract = functools.lru_cache(maxsize=8)(tree.abstract)  # building takes up to a second


@dataclass(frozen=True)
class Part:
    """One network: its abstract parameters, its tensors in a file, and the table between the two."""

    name: str
    config: Any
    file: File
    names: list[Name]
    table: Table
    graph: nnx.GraphDef
    state: nnx.State
    prefix: str  # that the file puts before plain names

    @classmethod
    def of(
        cls, name: str, config: Any, file: File, names: Iterable[Name], layout: Callable[[Iterable[str]], Table],
        prefix: str = "",
    ) -> Part:
        """The part `name` of KINDS; `layout` makes the table from the paths of the parameters."""
        graph, state = _abstract(KINDS[name][0], config)
        return cls(name, config, file, list(names), layout(shapes(state)), graph, state, prefix)

    @property
    def size(self) -> int:
        """How many parameters the file has for this part."""
        return sum(int(np.prod(self.file.shape(n.stored))) for n in self.names if n.plain in self.table)

    def problems(self) -> list[str]:
        """Everything that does not fit, in a line each, from the header alone."""
        seen, sizes, unknown, doubled, unlike = {}, shapes(self.state), [], [], []
        for plain, stored in self.names:
            if plain in seen:
                doubled.append(f"has both {seen[plain]} and {stored}, expected one of them")
                continue
            seen[plain] = stored
            if plain not in self.table:
                unknown.append(f"has unknown {stored} {list(self.file.shape(stored))}")
                continue
            parameters = self.table[plain]
            shape, expected = self.file.shape(stored), stored_shape(plain, parameters, sizes)
            # A 1x1 convolution and a matrix hold the same numbers; every family has files with either.
            as_convolution = turned(plain, parameters[0]) and shape == (*expected, 1, 1)
            if shape != expected and not as_convolution:
                unlike.append(f"{stored} has shape {list(shape)}, expected {list(expected)}")
            if not jnp.issubdtype(self.file.dtype(stored), jnp.floating):
                unlike.append(f"{stored} is {self.file.dtype(stored)}, expected floating point")
        missing = [
            f"lacks {self.prefix}{plain} {list(stored_shape(plain, parameters, sizes))}"
            for plain, parameters in self.table.items() if plain not in seen
        ]
        return [f"{self.name} {line}" for line in missing + unknown + doubled + unlike]

    def read(self, dtype: Any) -> Network:
        """The network with its weights as `dtype`; holds the result and about one tensor more."""
        arrays, sizes = {}, shapes(self.state)
        for plain, stored in self.names:
            parameters = self.table[plain]
            for parameter, array in zip(parameters, np.split(self.file.read(stored, dtype), len(parameters))):
                if turned(plain, parameter):
                    rank = len(sizes[parameter])
                    array = array.reshape(array.shape[:rank]).transpose(FROM_TORCH[rank])
                # On a CPU this is NumPy's own memory where it can be: nobody may write to it. Waiting, so that one
                # copy at most is under way.
                arrays[parameter] = jax.device_put(array).block_until_ready()
        return KINDS[self.name][1](self.graph, tree.fill(self.state, arrays, str(self.file.path)), self.config)


@dataclass(frozen=True)
class Checkpoint:
    """A whole model on disk."""

    path: Path
    layout: str
    config: ModelConfig
    tokenizer: Tokenizer
    parts: dict[str, Part]
    strays: list[str] = field(default_factory=list)  # tensors of no part
    prediction_told: bool = True  # False: only the weights themselves can tell eps from v

    def problems(self) -> list[str]:
        """Everything that does not fit, in a line each."""
        strays = [f"has unknown {name}" for name in self.strays]
        return strays + [line for part in self.parts.values() for line in part.problems()]


def require_fit(path: Path, family: str, problems: list[str]) -> None:
    """InputError with the first of the problems, if there are any."""
    if problems:
        shown, more = "; ".join(problems[:SHOWN]), len(problems) - SHOWN
        more_text = f"; and {more} more" if more > 0 else ""
        raise InputError(
            f"{path}: does not fit {family}: {shown}{more_text}; `sdjax info` lists everything, download it again or"
            " take another file of this model"
        )


def check(config: ModelConfig, source: str) -> None:
    """InputError unless the configuration is one that the networks can be built from and that fits together.

    A file can claim anything; this also keeps a hostile one from having a million layers built.
    """
    text, vae, unet, diffusion = config.text, config.vae, config.unet, config.diffusion
    upscales = unet.in_channels == unet.out_channels + 3
    sees_depth = unet.in_channels == unet.out_channels + 1
    classes = unet.classes is None or (type(unet.classes) is int and 1 <= unet.classes <= 2**16)
    _require(source, (("unet classes", classes),))
    if unet.in_channels not in known_channels(unet.out_channels) or upscales != (unet.classes is not None):
        raise WrongFamily(source, by_channels(unet.in_channels))
    check_tower(text, "text", source)
    if config.vision is not None:
        check_tower(config.vision, "vision", source)
    if config.depth is not None:
        check_midas(config.depth, source)
    levels = len(unet.channels)
    _require(source, (
        ("vae", 1 <= len(vae.channels) <= 8 and 1 <= vae.blocks <= 16 and 1 <= vae.latent_channels <= 64),
        ("vae widths and groups", vae.groups > 0 and all(0 < n <= 2**14 and n % vae.groups == 0 for n in vae.channels)),
        ("vae scale", 0.0 < vae.scale < 1e6),
        ("unet", 1 <= levels <= 8 and 1 <= unet.blocks <= 16 and unet.out_channels == vae.latent_channels),
        ("guidance", math.isfinite(config.guidance)),
        ("unet levels", levels == len(unet.attention) == len(unet.heads) == len(unet.cross_only)),
        ("unet widths and groups",
         unet.groups > 0 and all(0 < n <= 2**14 and n % unet.groups == 0 for n in unet.channels)),
        ("unet heads", all(h > 0 and n % h == 0 for n, h in zip(unet.channels, unet.heads))),
        ("unet context_width, the text's width", unet.context_width == text.width),
        ("low_res, which an upscaler has", upscales == (config.low_res is not None)),
        ("depth, which a depth-to-image model has", sees_depth == (config.depth is not None)),
        ("image_size", 0 < config.image_size <= 2**14 and config.image_size % vae.factor == 0),
        ("vision projection, the text's", config.vision is None or config.vision.projection == text.projection),
    ))
    for name, c in (("diffusion", diffusion), ("low_res", config.low_res)):
        if c is not None:
            _require(source, (
                (f"{name} train_steps", 1 <= c.train_steps <= 10**6),
                (f"{name} beta_start and beta_end", 0.0 < c.beta_start <= c.beta_end < 1.0),
                (f"{name} schedule", c.schedule in ("scaled_linear", "linear")),
                (f"{name} prediction", c.prediction in ("eps", "v")),
            ))


def check_tower(c: Any, name: str, source: str) -> None:
    """InputError unless one of CLIP's two transformers can be built from its configuration."""
    _require(source, (
        (f"{name} layers", 1 <= c.layers <= 100),
        (f"{name} width and heads", 0 < c.heads and 0 < c.width <= 2**14 and c.width % c.heads == 0),
        (f"{name} activation", c.activation in ("quick_gelu", "gelu")),
        (f"{name} projection", c.projection is None or type(c.projection) is int and 0 < c.projection <= 2**14),
    ))
    if name == "text":
        _require(source, (
            ("text vocab_size", 514 <= c.vocab_size <= 2**20),
            ("text end_id, the last token", c.end_id == c.vocab_size - 1),
            ("text context_length", 3 <= c.context_length <= 2**12),
            ("text padding", c.padding in ("eos", "zero")),
        ))
    else:
        _require(source, (
            ("vision image_size and patch", 0 < c.patch <= c.image_size <= 2**12 and c.image_size % c.patch == 0),
            ("vision mean and std", len(c.mean) == len(c.std) == 3
             and all(0 < s < 1e6 for s in c.std) and all(abs(m) < 1e6 for m in c.mean)),
        ))


def check_midas(c: Any, source: str) -> None:
    """InputError unless MiDaS can be built from its configuration."""
    inner = [width // 4 for width in c.stages]
    _require(source, (
        ("depth stages and depths", len(c.stages) == len(c.depths) == 3 and all(1 <= n <= 64 for n in c.depths)),
        ("depth widths and groups",
         c.groups > 0 and all(0 < n <= 2**14 and n % c.groups == 0 for n in (c.stem, *c.stages, *inner))),
        ("depth width and heads", 0 < c.heads and 0 < c.width <= 2**14 and c.width % c.heads == 0),
        ("depth layers", 1 <= c.layers <= 100),
        ("depth hooks, two of the layers", len(c.hooks) == 2 and all(0 <= n < c.layers for n in c.hooks)),
        ("depth features and head", 2 <= c.features <= 2**14 and 1 <= c.head <= 2**14),
        ("depth norm_eps", 0.0 < c.norm_eps < 1.0),
        ("depth image_size", 32 <= c.image_size <= 2**12 and c.image_size % 32 == 0),
    ))


def _require(source: str, conditions: Iterable[tuple[str, bool]]) -> None:
    for name, good in conditions:
        if not good:
            raise InputError(f"{source}: the configuration's {name} cannot be; take the file from where it was made")


def check_tokenizer(tokenizer: Tokenizer, c: Any, source: str) -> Tokenizer:
    """The tokenizer itself; InputError unless it gives the ids that the text encoder was made for."""
    found = (tokenizer.vocab_size, tokenizer.context_length, tokenizer.padding)
    expected = (c.vocab_size, c.context_length, c.padding)
    if found != expected:
        raise InputError(
            f"{source}: the tokenizer has (vocabulary, length, padding) {found}, expected the text encoder's {expected}"
        )
    return tokenizer


def known_channels(z: int) -> tuple[int, ...]:
    """How many channels a UNet may take in: latents alone; with a mask and a picture's latents (inpainting); with a
    small picture (upscaling); with a map of depth."""
    return z, 2 * z + 1, z + 3, z + 1


def by_channels(n: int) -> str:
    """What a UNet is for, as its number of input channels tells."""
    return f"{PURPOSES.get(n, 'a UNet for something else')} ({n} input channels)"
