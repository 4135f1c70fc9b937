"""Between a network and a flat dictionary of named arrays: "encoder.layers.0.mlp.fc1.kernel" -> array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from sdjax.errors import InputError


def flatten(state: nnx.State) -> dict[str, jax.Array]:
    """The parameters of a split network by dotted path, in the order of the tree."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


class NoKeys:
    """Stands for nnx.Rngs where no number is drawn: tracing its counters takes longer each time, 17 s for a UNet."""

    def params(self) -> None:
        """What `layers.lecun_normal` and `layers.normal` take for: zeros will do."""


def abstract(kind: Callable[..., nnx.Module], *config: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of the network `kind(*config, rngs=...)`, and the shapes of its parameters.

    Not one of them is allocated.
    """
    return nnx.split(nnx.eval_shape(lambda: kind(*config, rngs=NoKeys())))


def fill(state: nnx.State, arrays: Mapping[str, jax.Array], source: str) -> nnx.State:
    """The same tree holding `arrays`: every parameter set exactly once, none missing, none left over.

    Raises InputError naming `source` and the first names that do not fit.
    """
    flat = nnx.to_flat_state(state)
    names = {".".join(map(str, path)) for path, _ in flat}
    for problem, found in (("lacks", names - set(arrays)), ("has unknown", set(arrays) - names)):
        if found:
            shown = ", ".join(sorted(found)[:4])
            raise InputError(f"{source}: {problem} {len(found)} tensor(s): {shown}; is it the right kind of model?")
    filled = []
    for path, leaf in flat:
        name = ".".join(map(str, path))
        if arrays[name].shape != leaf.shape:
            raise InputError(f"{source}: {name} has shape {list(arrays[name].shape)}, expected {list(leaf.shape)}")
        filled.append((path, leaf.replace(arrays[name])))
    return nnx.from_flat_state(filled)


def fingerprint(*trees: Any) -> str:
    """A hash of all arrays and numbers in some trees: what a result was made of."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
