"""A training step of the small denoiser here and in PyTorch eager with diffusers, in turns in one run.

    python tests/benchmarks/training.py              # needs the parity extra

The same network, batch, loss (mean squared error), clipping, AdamW and average of the weights; float32, all cores. A
third candidate is ours by Muon, as the recipe has it: a longer step, by which more is learned.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import UNet2DConditionModel
from flax import nnx

from sdjax.bench import in_turns, unet_flops
from sdjax.config import tiny
from sdjax.hardware import prepare
from sdjax.training.unet import RECIPE
from sdjax.unet import UNet

NETWORK = tiny().unet


def ours(x: np.ndarray, t: np.ndarray, text: np.ndarray, target: np.ndarray, muon: bool):
    """A function that does one step and waits for it."""
    graph, parameters = nnx.split(UNet(NETWORK, rngs=nnx.Rngs(0)))
    optimiser = dataclasses.replace(RECIPE, muon=muon).optimiser()

    def loss(parameters):
        return jnp.mean((nnx.merge(graph, parameters)(x, t, text) - target) ** 2)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(parameters, average, state):
        changes, state = optimiser.update(jax.grad(loss)(parameters), state, parameters)
        parameters = optax.apply_updates(parameters, changes)
        return parameters, jax.tree.map(lambda a, p: RECIPE.ema * a + (1 - RECIPE.ema) * p, average, parameters), state

    kept = [parameters, jax.tree.map(jnp.copy, parameters), optimiser.init(parameters)]

    def step():
        kept[:] = update(*kept)
        jax.block_until_ready(kept)

    return step


def theirs(x: np.ndarray, t: np.ndarray, text: np.ndarray, target: np.ndarray):
    """The same in PyTorch."""
    c = NETWORK
    kinds = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention]
    network = UNet2DConditionModel(
        sample_size=16, down_block_types=kinds, up_block_types=[k.replace("Down", "Up") for k in kinds[::-1]],
        block_out_channels=c.channels, layers_per_block=c.blocks, cross_attention_dim=c.context_width,
        attention_head_dim=c.heads, norm_num_groups=c.groups, use_linear_projection=c.linear_projection,
    )
    own = jax.eval_shape(lambda: nnx.state(UNet(NETWORK, rngs=nnx.Rngs(0))))
    assert sum(p.numel() for p in network.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(own))
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RECIPE.learning_rate, betas=(0.9, 0.99),
                                  weight_decay=RECIPE.weight_decay)
    x, target = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (x, target))
    t, text = torch.from_numpy(t), torch.from_numpy(text)

    def step():
        optimiser.zero_grad()
        ((network(x, t, text).sample - target) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), RECIPE.clip)
        optimiser.step()
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - RECIPE.ema)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    prepare()
    draw, b = np.random.default_rng(0), RECIPE.batch
    x, target = draw.standard_normal((2, b, 16, 16, 4)).astype(np.float32)
    arguments = x, draw.integers(0, 1000, b), draw.standard_normal((b, 77, 128)).astype(np.float32), target
    candidates = {"sdjax": ours(*arguments, muon=False), "PyTorch eager (diffusers)": theirs(*arguments),
                  "sdjax, by Muon": ours(*arguments, muon=True)}
    taken = in_turns(candidates, given.rounds)
    work = 3 * b * unet_flops(NETWORK, 16, 16) / 1e9  # backward: twice the forward
    for name, seconds in taken.items():
        middle = float(np.median(seconds))
        print(f"{name:26} {middle:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
              f"{b / middle:.1f} latents a second, {work / middle:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
