"""Reads the fixtures of make_networks.py, pours weights into our networks, and measures how far answers differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from sdjax.checkpoint import tree

built = functools.cache(tree.abstract)  # the structure of the same small networks is asked for again and again
FIXTURES = Path(__file__).parent / "fixtures"


class Golden(dict):
    """A fixture: golden["in.latents"], golden["out.prediction"], and `weights` under their library's names."""

    def __init__(self, name: str):
        arrays = load_file(FIXTURES / f"{name}.safetensors")
        super().__init__({k: jnp.asarray(v) for k, v in arrays.items() if not k.startswith("weight.")})
        self.weights = {k.removeprefix("weight."): v for k, v in arrays.items() if k.startswith("weight.")}


def filled(kind: type[nnx.Module], config: Any, weights: Mapping[str, np.ndarray]) -> nnx.Module:
    """Our network with another library's weights, by the shortest rule there is: no code of the loader's.

    A kernel is OIHW or (out, in) there, HWIO or (in, out) here; a 1x1 convolution may be a matrix here.
    """
    weights = {k.removeprefix("text_model.").removeprefix("vision_model."): v for k, v in weights.items()}
    graph, state = tree.abstract(kind, config)
    arrays = {}
    for path, leaf in nnx.to_flat_state(state):
        *layers, role = map(str, path)
        layer, name = ".".join(layers), ".".join((*layers, role))
        array = weights[f"{layer}.weight" if role in ("kernel", "scale", "embedding") else name]
        if role == "kernel":
            array = array.transpose(2, 3, 1, 0) if len(leaf.shape) == 4 else array.reshape(array.shape[:2]).T
        arrays[name] = jnp.asarray(array)
    assert len(arrays) == len(weights), "the network has parameters for some of the weights only"
    return nnx.merge(graph, tree.fill(state, arrays, "fixture"))


def randomised(kind: type[nnx.Module], config: Any, seed: int = 0) -> nnx.Module:
    """A network whose every parameter is random and of a size that keeps activations near 1."""
    draw = np.random.default_rng(seed).standard_normal

    def parameter(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        inputs = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 25
        offset = 1.0 if path[-1] == "scale" else 0.0
        return leaf.replace(jnp.asarray(offset + draw(leaf.shape) * inputs**-0.5, jnp.float32))

    graph, state = built(kind, config)
    return nnx.merge(graph, nnx.from_flat_state([(p, parameter(p, v)) for p, v in nnx.to_flat_state(state)]))


def error(ours: Any, theirs: Any) -> float:
    """max |ours - theirs| / max |theirs|, over the whole tensor."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
