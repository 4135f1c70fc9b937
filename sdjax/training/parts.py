"""What a run keeps on disk between its stages: networks in float32, and arrays that take long to make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.checkpoint import tree
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.errors import InputError
from sdjax.training.data import known_by
from sdjax.training.vae import encode
from sdjax.vae import VAE, Posterior


def write_module(path: Path, module: nnx.Module, metadata: dict[str, str] | None = None) -> None:
    """Writes a network's weights as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tree.flatten(nnx.state(module)), metadata or {})


def read_module(path: Path, stage: str, kind: type[nnx.Module], config: Any) -> Any:
    """The network `kind(config)` with the weights at `path`; InputError names the stage to run first."""
    if not path.exists():
        raise InputError(f"{path}: not there yet; run `sdjax train {stage}` first")
    graph, state = tree.abstract(kind, config)
    file = SafetensorsFile(path)
    arrays: dict[str, jax.Array] = {name: jnp.asarray(file.read(name, np.float32)) for name in file.names()}
    return nnx.merge(graph, tree.fill(state, arrays, str(path)))


def latents_of(path: Path, coder: VAE, pictures: np.ndarray) -> Posterior:
    """The posteriors of pictures, kept at `path`, whatever decoder goes with them."""
    made_of = tree.fingerprint(nnx.state(coder.encoder), nnx.state(coder.quant_conv), len(pictures), known_by(pictures))
    return Posterior(**kept(path, made_of, lambda: encode(coder, pictures)._asdict()))


def kept(path: Path, made_of: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, made once and kept at `path`; anew where those there are made of something else."""
    if not path.exists() or SafetensorsFile(path).metadata.get("made_of") != made_of:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, make(), {"made_of": made_of})
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.names()}
