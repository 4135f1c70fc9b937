# %% [markdown]
# # 1. Why a latent
#
# *Seed lines 1 and 2: a 128 px picture has 4 times the pixels of a 64 px one, and the work grows quadratically with
# them. A VAE takes the picture to a smaller representation: 512x512x3 becomes 64x64x4.*
#
# A network that denoises a picture has to relate its far corners to each other: a shadow belongs to a solid at the
# other side. What does this is attention, and its price grows faster than the picture. In this lesson we count that
# price, measure it, and see what it becomes when the same network works on latents instead of pixels.
#
# About 40 seconds and 1 GB on two cores.

# %%
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from checks import latents as exercise
from flax import nnx
from lesson import show

import sdjax
from sdjax import bench, config, plots, unet
from sdjax.attention import attend_blockwise, attend_plain
from sdjax.images import shrunk
from sdjax.layers import conv3x3
from sdjax.toyworld import render, scene_at

# %% [markdown]
# ## Counting
#
# In self-attention every place of a picture looks at every place. With $n$ places that is $n^2$ looks, each a number
# of its own (a *logit*). A picture of side $s$ has $n = s^2$ places.
#
# **Predict:** from a side of 64 to one of 128, by how much do the looks grow?

# %%
sides = [64, 128, 256]
for side in sides:
    n = side**2
    print(f"side {side:3}: {n:6,} places, {n**2:13,} looks, {4 * n**2 / 1e9:6.2f} GB as float32")
assert 128**2 == 4 * 64**2 and (128**2) ** 2 == 16 * (64**2) ** 2

# %% [markdown]
# Twice the side is 4 times the pixels and 16 times the looks. And this is one head of one layer. SD 1.x has more:

# %%
layers = [row for row in unet.rows(config.sd1().unet) if row.heads]
count = sum(1 if row.name == "mid_block" else len(row.inputs) for row in layers)
print(f"SD 1.x: {count} layers of self-attention, of {layers[0].heads} heads each")
assert (count, layers[0].heads) == (16, 8)

# %% [markdown]
# ## Attention as it stands
#
# The whole of it is $\mathrm{softmax}(q k^\top / \sqrt d)\, v$: a matrix of looks, each row made to sum to 1, times
# what there is to see.


# %%
def attention(q, k, v):
    looks = jax.nn.softmax(q @ k.T / np.sqrt(q.shape[-1]))
    return looks @ v


q, k, v = jax.random.normal(jax.random.key(0), (3, 256, 8))
theirs = attend_plain(q[None, None], k[None, None], v[None, None])[0, 0]
assert np.allclose(attention(q, k, v), theirs, atol=1e-5)

# %% [markdown]
# How much memory would it need? The compiler answers without running it, also where the answer is more than this
# machine has.
#
# **Predict:** which of the three sides could you still run?


# %%
def scratch(function, side):
    x = jax.ShapeDtypeStruct((1, 1, side**2, 8), jnp.float32)
    return jax.jit(function).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


need = {side: scratch(attend_plain, side) for side in sides}
for side, size in need.items():
    print(f"side {side:3}: {size / 1e9:6.2f} GB beside input and output")
assert all(need[side] >= 4 * side**4 for side in sides)  # the matrix of looks is in it, whole

# %% [markdown]
# The memory can be had back: walk over the keys, a block of them at a time, and never hold the whole matrix. That is
# what the package does with large pictures, with the same result (lesson 13 shows how). The *work* stays.

# %%
saving = {side: scratch(attend_blockwise, side) for side in sides}
for side, size in saving.items():
    print(f"side {side:3}: {size / 1e9:6.2f} GB, a block of keys at a time")
q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 1, 64**2, 8))
assert np.allclose(attend_plain(q, k, v), attend_blockwise(q, k, v), atol=1e-5)
assert saving[256] < need[256] / 50

# %% [markdown]
# ## Measuring
#
# One head of attention on pictures of three sizes, through this same code. Beside it a convolution, the other thing
# that a UNet is made of: it looks at 9 places wherever it stands, so that its work grows as the pixels do.
#
# Patience has a limit too: at 256 px we let only a sixteenth of the queries look at all the places, and multiply. A
# query costs the same as any other, so nothing is lost by it.
#
# **Predict:** from 64 to 256 px there are 16 times the pixels. How many times longer does each take?


# %%
def seconds(function, *arrays, repeats=5):
    """The shortest of some runs, after one that compiles."""
    compiled = jax.jit(function).lower(*arrays).compile()
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        best = min(best, time.perf_counter() - start)
    return best


def convolve(graph, weights, x):
    return nnx.merge(graph, weights)(x)


graph, weights = nnx.split(conv3x3(64, 64, rngs=nnx.Rngs(0)))
attended, convolved = [], []
for side in sides:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 1, side**2, 8))
    x = jax.random.normal(jax.random.key(0), (1, side, side, 64))
    share = 16 if side == 256 else 1
    attended.append(share * seconds(attend_blockwise, q[:, :, : side**2 // share], k, v))
    convolved.append(seconds(partial(convolve, graph), weights, x))
    print(f"side {side:3}: attention {attended[-1]:8.4f} s, convolution {convolved[-1]:8.4f} s")
print(f"from 64 to 256: attention {attended[2] / attended[0]:.0f} times, "
      f"convolution {convolved[2] / convolved[0]:.0f} times")
assert attended[2] / attended[0] > 3 * convolved[2] / convolved[0]

# %%
figure = plots.figure(6, 3.4)
axes = figure.add_subplot(xlabel="pixels", ylabel="seconds", xscale="log", yscale="log",
                          title="work against pixels, measured")
pixels = np.array(sides) ** 2
axes.set_xticks(pixels, [f"{side} x {side}" for side in sides])
axes.set_xticks([], minor=True)
axes.plot(pixels, attended, "o-", label="attention, one head")
axes.plot(pixels, convolved, "s-", label="3x3 convolution")
axes.plot(pixels, attended[1] * (pixels / pixels[1]) ** 2, ":", color="0.5", label="pixels squared")
axes.plot(pixels, convolved[1] * (pixels / pixels[1]), "--", color="0.5", label="pixels")
axes.legend(fontsize=8)
show(figure, "Two rising lines on logarithmic axes: attention follows the dotted line of the pixels squared, the "
     "convolution the dashed line of the pixels, which is half as steep.")

# %% [markdown]
# Counted, attention would take $16^2 = 256$ times as long and the convolution 16 times; small pictures pay some
# overhead, and the cores and their caches are shared, so the measured numbers can be off by a factor of two.
#
# ## What the latent saves
#
# The VAE takes each block of 8 by 8 pixels to one place with 4 numbers.

# %%
rows = {}
for preset in (config.sd1(), config.sd2(), sdjax.load("../weights/tiny").config):
    s, f, z = preset.image_size, preset.vae.factor, preset.vae.latent_channels
    rows[preset.name] = numbers, places, looks = (s * s * 3 / ((s // f) ** 2 * z), f**2, f**4)
    print(f"{preset.name:6}{s} x {s} x 3 becomes {s // f} x {s // f} x {z}: "
          f"{numbers:.0f} times fewer numbers, {places} fewer places, {looks:,} fewer looks")
assert rows["sd1"] == (48, 64, 4096)

# %% [markdown]
# For the finest level of SD 1.x, 8 heads, on pixels and on latents, the matrix of looks would take:

# %%
heads = config.sd1().unet.heads[0]
for name, side in (("pixels", 512), ("latents", 64)):
    print(f"{name:8}{heads * side**4 * 4 / 1e9:10,.1f} GB")

# %% [markdown]
# Two thousand gigabytes against half of one. The memory could be had back in blocks; the 4,096 times more work could
# not.
#
# ## The same network on both
#
# Now whole UNets, ours that ships, with random weights: one that takes pixels of a 128 px picture, and one that takes
# its latents of 16 by 16. They have the same blocks; only the first and the last layer differ, by a channel.
#
# **Predict:** there are 64 times more places. Will one step take 64 times longer, less, or more?

# %%
shape = sdjax.load("../weights/tiny").config.unet
text, t = jnp.zeros((1, 77, shape.context_width)), jnp.array([500])
random = np.random.default_rng(0).standard_normal


def ask(graph, weights, x):
    return nnx.merge(graph, weights)(x, t, text)


taken, counted = {}, {}
for name, side, channels in (("latents", 16, 4), ("pixels", 128, 3)):
    c = replace(shape, in_channels=channels, out_channels=channels)
    graph, shapes = nnx.split(nnx.eval_shape(lambda c=c: unet.UNet(c, rngs=nnx.Rngs(0))))
    weights = jax.tree.map(lambda leaf: random(leaf.shape).astype(np.float32) / 50, shapes)
    taken[name] = seconds(partial(ask, graph), weights, jnp.zeros((1, side, side, channels)), repeats=1)
    counted[name] = bench.unet_flops(c, side, side)
    size = sum(leaf.size for leaf in jax.tree.leaves(weights))
    print(f"{name:8}{size:,} parameters, {taken[name]:8.4f} s a step, "
          f"{50 * 2 * taken[name]:6.1f} s a picture of 50 steps with guidance")
assert not unet.rows(shape)[0].heads  # no attention at the finest level
print(f"pixels ask for {counted['pixels'] / counted['latents']:.0f} times as many operations"
      f" and take {taken['pixels'] / taken['latents']:.0f} times as long")
assert counted["pixels"] > 64 * counted["latents"] and taken["pixels"] > 5 * taken["latents"]

# %% [markdown]
# Counted, the convolutions take 64 times as long and the attention far longer. Measured it can be less, since a small
# latent keeps the cores badly busy and every layer has some overhead. And our UNet spares the pixels the worst: it has
# no attention at its finest level.
#
# ## Why not just a smaller picture?
#
# A picture of 16 by 16 would be cheap too. We shrink one to that and stretch it again, and beside it let the VAE go
# through its 16 by 16 latent.
#
# **Predict:** the small picture has 3 numbers a place, the latent 4. How much better can it be?

# %%
sd = sdjax.load("../weights/tiny")
original = render(scene_at(0, "test", 3))[0].astype(np.float32)[None] / 127.5 - 1
small = shrunk(original, 8)
stretched = np.asarray(jax.image.resize(small, original.shape, "cubic"))
mean = sd.vae.encode(original).mean
rebuilt = np.asarray(sd.vae.decode(mean))


def psnr(x):
    """How near x is to the original, in decibels: 10 more is a tenth of the squared error."""
    return 10 * np.log10(4 / np.mean((x - original) ** 2))


print(f"numbers kept: {small.size} and {mean.size}")
print(f"PSNR: {psnr(stretched):.1f} dB through the small picture, {psnr(rebuilt):.1f} dB through the latent")
assert psnr(rebuilt) > psnr(stretched) + 3

# %%
show(plots.pictures([original[0], small[0], stretched[0], rebuilt[0]],
                    ["original", f"small, {small.shape[1]} px", "small, stretched", "through the latent"], side=2.2),
     "A scene; the same at 16 by 16 pixels; that stretched again, which is a blur; and the scene rebuilt from its "
     "latent, with its edges.")

# %% [markdown]
# The latent spends its numbers on what pictures of this world look like: an edge within a block of 8 by 8 pixels has a
# place in it. How it learned this is lesson 2.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/01_why_latents.py`.
#
# **1.** The number of looks of one head, for a square picture of `side` pixels at a VAE of factor `f`. A factor of 1
# means pixels.


# %%
def looks(side, f):
    return ...


exercise.check_looks(looks)

# %% [markdown]
# **2.** How many times fewer numbers a latent of `z` channels holds than the picture of 3 that it stands for.


# %%
def fewer_numbers(f, z):
    return ...


exercise.check_fewer_numbers(fewer_numbers)

# %% [markdown]
# **3.** You have `gigabytes` (of 1e9 bytes) for the matrix of looks of 8 heads, in float32, at a factor of 8. Return
# the largest side in pixels, a multiple of 64, of a picture whose matrix fits.


# %%
def largest_side(gigabytes):
    return ...


exercise.check_largest_side(largest_side)
