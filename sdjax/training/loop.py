"""The loop that every part shares: AdamW or Muon, warm-up and decay, an average of the weights, checkpoints.

A run is a folder. It holds one checkpoint (parameters, their average, the optimiser's state and the
number of steps done), written whole or not at all, and the loss as a log and as a picture. The batch of
step n depends on n and the seed alone, so a run that was killed goes on as if it had not been. It knows
its data by the first batch, and so does not go on with other data, or from another beginning.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax import contrib
from tqdm import tqdm

from sdjax import plots
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.checkpoint.tree import fingerprint
from sdjax.errors import InputError
from sdjax.files import clear_parts, written_whole

Batch = Mapping[str, np.ndarray]
Loss = Callable[[nnx.State, Any, Batch, jax.Array], jax.Array]  # (parameters, frozen, batch, key) -> scalar
NARROW = 16  # channels
CHECKPOINT, LOG, CURVE = "checkpoint.safetensors", "loss.csv", "loss.png"


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of besides its data; `steps` of `batch` samples each."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200  # steps of linear rise
    decay: float = 0.3  # the last share of the steps, in which the rate falls to zero along a cosine
    weight_decay: float = 0.01
    clip: float = 1.0  # global norm of the gradient
    ema: float = 0.999  # the average forgets a step's weights at this rate
    muon: bool = False  # kernels between wide layers learn by Muon, the rest by Adam
    save_every: int = 200
    seed: int = 0

    def rate(self, step: jax.Array) -> jax.Array:
        """The learning rate at a step: a rise, a plateau, a fall."""
        rise = jnp.minimum(1.0, (step + 1) / max(self.warmup, 1))
        fall = jnp.clip((self.steps - step) / max(self.decay * self.steps, 1), 0.0, 1.0)
        return self.learning_rate * rise * 0.5 * (1.0 - jnp.cos(jnp.pi * fall))

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW (arXiv:1711.05101), or Muon for wide kernels (arXiv:2502.16982) beside Adam, on clipped gradients.

        Muon makes of each step of a matrix the nearest orthogonal one, so that no direction learns later than another.
        A step takes longer, and learns more. `consistent_rms` gives it the size of Adam's, so that both share a rate.
        What has two axes or more decays; beside Muon only its own kernels do, and Adam has Nesterov's momentum, as
        optax has them.
        """
        if self.muon:
            # Three rounds towards the orthogonal matrix, not five: no worse in a run as long, and a tenth faster.
            steps = contrib.muon(self.rate, ns_steps=3, weight_decay=self.weight_decay, adam_b2=0.99,
                                 consistent_rms=0.2, muon_weight_dimension_numbers=_matrices)
        else:
            steps = optax.adamw(self.rate, b1=0.9, b2=0.99, weight_decay=self.weight_decay,
                                mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
        return optax.chain(optax.clip_by_global_norm(self.clip), steps)


def _matrices(parameters: nnx.State) -> Any:
    """Which axes of each kernel an output reads and which are outputs; None for what is no kernel between wide layers.

    At the ends of a network (latents of 4 channels, say) a matrix has too few rows for its directions to be many.
    """

    def axes(path: Any, x: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if "kernel" not in jax.tree_util.keystr(path) or min(x.shape[-2:]) < NARROW:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, parameters)


def fit(
    recipe: Recipe,
    graph: nnx.GraphDef,
    parameters: nnx.State,
    loss: Loss,
    batch_at: Callable[[int], Batch],
    folder: Path,
    *,
    name: str,
    frozen: Any = None,
    watch: Callable[[int, Any], None] | None = None,
) -> Any:
    """Trains and returns the network with averaged parameters; goes on from the checkpoint in `folder` if there is one.

    `batch_at(step)` makes the batch of a step, in a thread that works ahead; `frozen` is passed to the loss as
    it is (a text encoder, say); `watch(step, network)` is called at every checkpoint. Raises InputError if the
    folder holds a run of another recipe, beginning or data, FloatingPointError if the loss is not finite.
    """
    optimiser = recipe.optimiser()
    key = jax.random.key(recipe.seed)

    # Donated: the new tree takes the old one's memory, 0.2 GB a step for the denoiser.
    @partial(jax.jit, donate_argnums=(1, 2, 3))
    def update(step, parameters, average, state, frozen, batch):
        value, gradients = jax.value_and_grad(loss)(parameters, frozen, batch, jax.random.fold_in(key, step))
        changes, state = optimiser.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, changes)
        # Early on the average must not remember the random start: arXiv:1412.6980 corrects the same bias.
        keep = jnp.minimum(recipe.ema, (step + 1.0) / (step + 10.0))
        average = jax.tree.map(lambda a, p: keep * a + (1.0 - keep) * p, average, parameters)
        return parameters, average, state, value

    folder.mkdir(parents=True, exist_ok=True)
    clear_parts(folder)
    made_of = fingerprint(parameters, frozen, batch_at(0))
    # Copies: the caller keeps the parameters, and the average starts at them but is a tree of its own. Compiled, since
    # one by one every shape would be a program.
    copied = lambda tree: jax.tree.map(jnp.copy, tree)
    tree = jax.jit(lambda p: (copied(p), copied(p), optimiser.init(p)))(parameters)
    done, tree = _restore(folder / CHECKPOINT, recipe, made_of, tree)
    _rewind(folder / LOG, done)
    losses: list[jax.Array] = []
    with tqdm(total=recipe.steps, initial=done, desc=name, unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
        for step, batch in _ahead(batch_at, range(done, recipe.steps)):
            *tree, value = update(step, *tree, frozen, batch)
            losses.append(value)
            bar.update()
            saving = (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps
            if saving or len(losses) == 20:
                mean = float(np.mean([float(v) for v in losses]))
                if not np.isfinite(mean):
                    raise FloatingPointError(f"{name}: the loss is {mean} at step {step + 1}; lower the learning rate")
                with open(folder / LOG, "a", encoding="utf-8") as log:
                    log.write(f"{step + 1},{mean:.6g}\n")
                bar.set_postfix(loss=f"{mean:.4f}")
                losses = []
            if saving:
                # What is drawn comes first: killed in between, the run does these steps again, and draws it again.
                plots.loss_curve(folder / LOG, folder / CURVE, name)
                if watch:
                    # A copy, to keep: the next step takes the memory.
                    watch(step + 1, nnx.merge(graph, jax.tree.map(jnp.copy, tree[1])))
                _save(folder / CHECKPOINT, recipe, made_of, step + 1, tuple(tree))
    return nnx.merge(graph, tree[1])


def _ahead(batch_at: Callable[[int], Batch], steps: range, depth: int = 4) -> Iterator[tuple[int, Batch]]:
    """Batches in order, the next few made in a thread while the device is busy."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [(s, pool.submit(batch_at, s)) for s in steps[:depth]]
        for step in steps:
            _, batch = waiting.pop(0)
            if step + depth < steps.stop:
                waiting.append((step + depth, pool.submit(batch_at, step + depth)))
            yield step, batch.result()


def _rewind(log: Path, done: int) -> None:
    """Takes back the lines of steps that a killed run did after its last checkpoint."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    whole = [line for line in lines if re.fullmatch(r"\d+,[\d.e+-]+", line)]  # a kill may have cut the last one off
    with written_whole(log) as part:
        part.write_text("".join(f"{x}\n" for x in whole if int(x.split(",")[0]) <= done), encoding="utf-8")


def _save(path: Path, recipe: Recipe, made_of: str, step: int, tree: Any) -> None:
    arrays = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}
    stored = {"step": str(step), "recipe": json.dumps(dataclasses.asdict(recipe)), "made_of": made_of}
    write_safetensors(path, arrays, stored)


def _restore(path: Path, recipe: Recipe, made_of: str, tree: Any) -> tuple[int, Any]:
    """The number of steps done and the tree as it was then; (0, tree) where there is no checkpoint yet."""
    if not path.exists():
        return 0, tree
    try:
        file = SafetensorsFile(path)
        step, stored = int(file.metadata["step"]), {"muon": False} | json.loads(file.metadata["recipe"])
    except (InputError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it to begin anew, or give another --run folder"
                         ) from None
    free = ("steps", "save_every")
    if {**dataclasses.asdict(recipe), **{name: stored.get(name) for name in free}} != stored:
        raise InputError(f"{path}: holds a run of another recipe; give the same options, or another --run folder")
    # Until the rate begins to fall, nothing that was done depends on the number of steps.
    fewer = min(recipe.steps, stored["steps"])
    if stored["steps"] != recipe.steps and step > (1.0 - recipe.decay) * fewer:
        raise InputError(
            f"{path}: is at step {step}, where the learning rate of {fewer} steps has begun to fall; give --steps "
            f"{stored['steps']}, as before, or another --run folder"
        )
    leaves, structure = jax.tree.flatten(tree)
    if [file.shape(n) for n in map(str, range(len(leaves)))] != [x.shape for x in leaves]:
        raise InputError(f"{path}: holds a run of another network; give another --run folder")
    if file.metadata.get("made_of") != made_of:
        raise InputError(
            f"{path}: holds a run on other data, after other networks or from another beginning; give what it was"
            " given, or another --run folder"
        )
    restored = [jnp.asarray(file.read(str(i))) for i in range(len(leaves))]
    return step, jax.tree.unflatten(structure, restored)
