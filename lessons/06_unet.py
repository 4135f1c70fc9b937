# %% [markdown]
# # 6. The UNet: a network that sees noise in pictures
#
# *Seed line 9: the drawing of the conditional UNet: noisy latents, timestep and text embedding go in, the text through
# cross-attention; the noise prediction comes out.*
#
# Most parameters of Stable Diffusion (four of five in SD 1.x, two of three in SD 2.x), and nearly all of its time, are
# in this one network. It looks large and is a table of a few kinds of rows. We read the table, draw it, write the whole
# network as a function of ten lines that calls itself, and then break it on purpose: tell it the wrong timestep, cut
# its skips, and see what each was for.
#
# About 60 seconds and 1 GB on two cores.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from checks import unet as exercise
from flax import nnx
from lesson import show
from matplotlib.patches import Rectangle

import sdjax
from sdjax import diffusion, plots
from sdjax.config import sd1, sd2
from sdjax.layers import ResBlock
from sdjax.toyworld import describe, render, scene_at
from sdjax.unet import UNet, rows, timestep_embedding

sd = sdjax.load("../weights/tiny")

# %% [markdown]
# ## What goes in, what comes out


# %%
def box(axes, x, y, words, colour, width=1.5, height=0.8):
    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, edgecolor="0.3"))
    axes.text(x, y, words, ha="center", va="center", fontsize=9)


def arrow(axes, start, end, **how):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", **how})


figure = plots.figure(8, 2.9)
axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 4), title="the conditional UNet")
axes.set_axis_off()
box(axes, 1.2, 2, "noisy latent\n16 x 16 x 4", "#cfe2f3")
box(axes, 5, 3.4, "timestep: one number", "#fff2cc", width=2.6)
box(axes, 5, 2, "UNet", "#d9ead3", width=3)
box(axes, 5, 0.6, "text: 77 x 128", "#f4cccc", width=2.6)
box(axes, 8.8, 2, "prediction\n16 x 16 x 4", "#cfe2f3")
arrow(axes, (1.95, 2), (3.5, 2))
arrow(axes, (6.5, 2), (8.05, 2))
arrow(axes, (5, 3), (5, 2.4))
arrow(axes, (5, 1), (5, 1.6))
axes.text(5.15, 2.65, "into every residual block", fontsize=8)
axes.text(5.15, 1.25, "through cross-attention", fontsize=8)
show(figure, "A drawing: the noisy latent enters the UNet from the left and the prediction leaves to the right; the "
     "timestep comes in from above, into every residual block, the text from below, through cross-attention.")

# %%
scenes = [scene_at(0, "test", i, count=1) for i in range(8)]
texts = sd.text_encoder(sd.tokenizer([describe(s) for s in scenes]))
latents = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
timesteps = jnp.full(8, 500)
prediction = sd.unet(latents, timesteps, texts)
print("eight at once: in", latents.shape, timesteps.shape, texts.shape, " out", prediction.shape)
assert prediction.shape == latents.shape

# %% [markdown]
# As large as the latent: it says something about every one of its numbers. (Ours predicts $v$, SD 1.x predicts
# $\epsilon$; lesson 5 says why that is the same.)
#
# ## The table
#
# Going down, the picture is halved at each level and gets more channels; going up, the other way round. A row holds a
# few residual blocks, after each of them a transformer where the row has attention heads, and a change of size.


# %%
def table(config):
    print(f"{'row':14}{'widths at the entry':22}{'width':>6}{'heads':>7}  size")
    for row in rows(config):
        entry = ", ".join(str(n) for n in row.inputs)
        heads = "-" if row.heads is None else row.heads
        print(f"{row.name:14}{entry:22}{row.outputs:>6}{heads:>7}  {row.resize or ''}")


table(sd.config.unet)

# %% [markdown]
# **Predict:** SD 1.x has four levels of 320, 640, 1280 and 1280 channels, and two residual blocks a row going down.
# How many rows has its table?

# %%
table(sd1().unet)
assert len(rows(sd1().unet)) == 4 + 1 + 4

# %% [markdown]
# Nine: four down, the middle, four up. The two numbers that look odd are the widths at the entry going up, such as
# 2560: there each residual block also gets what a block on the way down had kept. Those are the *skips*. And rows going
# up have one residual block more, because the way down keeps one thing more a level than it has blocks.
#
# The finest rows of ours have no transformer, to save time. In SD 1.x the coarsest rows have none.
#
# **Predict:** SD 2.x looks quite different from outside. In what does its UNet differ?

# %%
for field in dataclasses.fields(sd1().unet):
    one, two = getattr(sd1().unet, field.name), getattr(sd2().unet, field.name)
    if one != two:
        print(f"{field.name}: {one} in SD 1.x, {two} in SD 2.x")
assert sd1().unet.channels == sd2().unet.channels

# %% [markdown]
# Another text, another number of heads, and a way to store some matrices. The picture is the same.
#
# ## The shapes, as a drawing


# %%
def draw(axes, config, side, title):
    levels = len(config.channels)
    axes.set(xlim=(-3.1, 3.1), ylim=(-levels - 0.4, 0.8), title=title)
    axes.set_axis_off()
    for i, channels in enumerate(config.channels):
        high, wide = 0.8 / 2**i + 0.12, 0.2 + channels / max(config.channels)
        label = f"{side >> i} x {side >> i}\n{channels}"
        colour = "#d9ead3" if config.attention[i] else "#eeeeee"
        for x in (-2, 2):
            axes.add_patch(Rectangle((x - wide / 2, -i - high / 2), wide, high, facecolor=colour, edgecolor="0.3"))
            axes.text(x + np.sign(x) * (wide / 2 + 0.08), -i, label, fontsize=8, va="center",
                      ha="right" if x < 0 else "left")
        arrow(axes, (-2 + wide / 2 + 0.1, -i), (2 - wide / 2 - 0.1, -i), linestyle="--", color="0.5")
        if i + 1 < levels:
            arrow(axes, (-2, -i - high / 2), (-2, -i - 0.86))
            arrow(axes, (2, -i - 0.86), (2, -i - high / 2))
    axes.text(0, 0.1, f"{config.blocks + 1} skips", fontsize=8, ha="center")
    axes.text(0, -levels, f"middle: {side >> (levels - 1)} x {side >> (levels - 1)}, {config.channels[-1]}",
              fontsize=8, ha="center", bbox={"facecolor": "#d9ead3", "edgecolor": "0.3"})
    arrow(axes, (-2, -levels + 0.7), (-1.1, -levels))
    arrow(axes, (1.1, -levels), (2, -levels + 0.7))


figure = plots.figure(10, 3.8)
draw(figure.add_subplot(1, 2, 1), sd.config.unet, 16, "ours, 128 px")
draw(figure.add_subplot(1, 2, 2), sd1().unet, 64, "SD 1.x, 512 px")
show(figure, "Two drawings of the letter U: on the left arm the maps become lower and wider, 16 x 16 to 4 x 4 for our "
     "model and 64 x 64 to 8 x 8 for SD 1.x; the middle; and up the right arm again. Dashed arrows are the skips. "
     "Levels with transformers are green, those without are grey.")

# %% [markdown]
# ## The UNet by hand: a function that calls itself
#
# The drawing reads as a recipe. To treat a map at some level: do something to it and keep a copy after each thing; make
# it half as large, *and treat that in the same way*; on the way back, do something with what came up and the copies,
# the last one first. At the bottom, instead of going further, pass through the middle.
#
# The blocks are the package's, in whose `layer(j, ...)` a residual block stands with the transformer behind it, if
# there is one; how they hang together is all ours. `skips` and `depths` are ones, and will serve us later to cut
# something off.

# %%
net = sd.unet.module
last = len(net.down_blocks) - 1


def level(i, x, time, text, skips, depths):
    down, up = net.down_blocks[i], net.up_blocks[last - i]
    kept = [x]
    for j in range(len(down.resnets)):
        x = down.layer(j, x, time, text, None)
        kept.append(x)
    if i < last:
        x = depths[i] * level(i + 1, down.downsamplers[0](x), time, text, skips, depths)
    else:
        x = net.mid_block.layer(1, net.mid_block.layer(0, x, time, text, None), time, text, None)
    for j in range(len(up.resnets)):
        x = up.layer(j, jnp.concatenate([x, skips[i] * kept.pop()], axis=-1), time, text, None)
    return up.upsamplers[0](x) if i > 0 else x


# %% [markdown]
# Around it stand a convolution that takes 4 channels to the first width, and a norm and a convolution that take it back
# to 4. The time is a vector that all residual blocks get; the next section makes it.


# %%
@jax.jit
def by_hand(latents, timesteps, texts, skips, depths):
    time = net.time_embedding(timestep_embedding(timesteps, sd.config.unet.channels[0]))
    x = level(0, net.conv_in(latents), time, texts, skips, depths)
    return net.conv_out(jax.nn.silu(net.conv_norm_out(x)))


ours = by_hand(latents, timesteps, texts, jnp.ones(3), jnp.ones(2))
print(f"largest difference from the package: {jnp.abs(ours - prediction).max():.1e}")
assert np.allclose(ours, prediction, atol=1e-4)

# %% [markdown]
# This says more than a saving of lines: a UNet of three levels is a UNet of two levels with one more wrapped around it.
#
# ## What time is it?
#
# The network must know how much noise to look for. A bare number such as 500 is a poor input: a network would have to
# scale its answer with it. So the timestep becomes waves, like the places in a transformer: cosines and sines of $t$ at
# frequencies from 1 down to nearly $1 / 10000$.

# %%
width = sd.config.unet.channels[0]
frequencies = 10000.0 ** (-np.arange(width // 2) / (width // 2))
t = np.arange(1000)
waves = np.concatenate([np.cos(t[:, None] * frequencies), np.sin(t[:, None] * frequencies)], axis=1)
assert np.allclose(waves, timestep_embedding(jnp.asarray(t), width), atol=1e-3)

figure = plots.figure(8, 2.8)
axes = figure.add_subplot(1, 2, 1, xlabel="number", ylabel="timestep", title=f"{width} numbers for each timestep")
axes.imshow(waves, aspect="auto", cmap="coolwarm")
axes = figure.add_subplot(1, 2, 2, xlabel="timestep", title="likeness to timestep 500", ylabel="cosine")
axes.plot(t, waves @ waves[500] / (width // 2))
show(figure, "Left, the waves as a picture: fast on the left of each half, slow on its right. Right, the cosine with "
     "timestep 500 has a peak of 1 there and falls off on both sides, with ripples.")

# %% [markdown]
# Near timesteps look alike, far ones do not, and the fast waves still tell neighbours apart. Two small matrices make of
# this the vector `time`, and each residual block makes of that *one number a channel*, added at every place of its map:


# %%
def residual_by_hand(block, x, time):
    y = block.conv1(jax.nn.silu(block.norm1(x)))
    y = y + (jax.nn.silu(time) @ block.time_emb_proj.kernel[...] + block.time_emb_proj.bias[...])[:, None, None, :]
    y = block.conv2(jax.nn.silu(block.norm2(y)))
    return y + (x if block.conv_shortcut is None else block.conv_shortcut(x))


time = net.time_embedding(jnp.asarray(waves[[500]], jnp.float32))
x = net.conv_in(latents[:1])
block = net.down_blocks[0].resnets[0]
print("time", time.shape, " map", x.shape)
assert np.allclose(residual_by_hand(block, x, time), block(x, time), atol=1e-4)

# %% [markdown]
# So the time cannot say anything about a place; it sets the mood of the whole network. How much does it depend on it?
# Take latents of eight pictures with the noise of some timestep in them, *tell* the network another one, and see how
# good a picture it foresees.
#
# **Predict:** which lie is worse: that there is no noise at all (timestep 1), or that there is nothing else (999)?

# %%
pictures = np.stack([render(s)[0] for s in scenes]).astype(np.float32) / 127.5 - 1.0
z = sd.config.vae.scale * sd.vae.encode(pictures).mean
eps = jax.random.normal(jax.random.key(1), z.shape)
a = diffusion.alphas(sd.config.diffusion)


def error_when_told(truth, told):
    x = np.sqrt(a[truth]) * z + np.sqrt(1 - a[truth]) * eps
    v = sd.unet(x, jnp.full(8, told), texts)
    foreseen = np.sqrt(a[told]) * x - np.sqrt(1 - a[told]) * v
    return float(jnp.mean((foreseen - z) ** 2))


told = [1, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900, 999]
figure = plots.figure(6, 3)
axes = figure.add_subplot(xlabel="timestep that the network is told", ylabel="error of the picture", yscale="log",
                          title="the wrong time")
for k, truth in enumerate((200, 400, 600)):
    errors = [error_when_told(truth, s) for s in told]
    axes.plot(told, errors, f"C{k}", label=f"the truth is {truth}")
    axes.plot(truth, errors[told.index(truth)], f"C{k}o")
    print(f"the truth is {truth}: error {errors[told.index(truth)]:.3f}; told 1 {errors[0]:.3f}, half the truth "
          f"{errors[told.index(truth // 2)]:.3f}, 999 {errors[-1]:.3f}")
    assert errors[0] > errors[told.index(truth // 2)] > errors[told.index(truth)] and errors[0] > errors[-1]
axes.legend()
show(figure, "Three curves of the error against the timestep that was told, each with a point at the truth: high where "
     "the network is told of too little noise, and lowest about the truth.")

# %% [markdown]
# That there is none. A network that is told of little noise believes what it sees, and takes noise for picture. One
# that is told of too much throws away what it could have known.
#
# ## What it knows before training
#
# **Predict:** a fresh UNet with random weights gets a noisy latent. What does it predict?

# %%
small = dataclasses.replace(sd.config.unet, channels=(16,), heads=(2,), attention=(True,), cross_only=(False,),
                            groups=8)
answer = jax.jit(lambda key, *inputs: UNet(small, rngs=nnx.Rngs(key))(*inputs))(
    jax.random.key(0), latents, timesteps, texts
)
print("largest number of its prediction:", float(jnp.abs(answer).max()))
assert (answer == 0).all()

fresh_block = ResBlock(16, 16, groups=8, eps=1e-5, time_width=64, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(2), (1, 8, 8, 16))
assert (fresh_block(x, jnp.ones((1, 64))) == x).all()

# %% [markdown]
# Exactly 0. Not by chance: the last convolution starts at zero, as does the last of every residual block and of every
# transformer. So each of them begins as *nothing*, adds nothing to what passes through it, and training decides what
# it should become. Deep networks that begin like this are easy to train: at the start there is, in effect, hardly a
# network.
#
# ## What the skips carry
#
# The middle of our network sees 4 x 4 places, and so must think in rough terms. The skips go past it.
#
# **Predict:** we cut the skips of one level (multiply what they carry by 0). Which level is missed most: the finest,
# 16 x 16, or the coarsest, 4 x 4?

# %%
truth = 300
noisy = np.sqrt(a[truth]) * z + np.sqrt(1 - a[truth]) * eps
cuts = {"all skips": [1, 1, 1], "without 4 x 4": [1, 1, 0], "without 8 x 8": [1, 0, 1], "without 16 x 16": [0, 1, 1],
        "without any": [0, 0, 0]}
foreseen, errors = {}, {}
for name, keep in cuts.items():
    v = by_hand(noisy, jnp.full(8, truth), texts, jnp.array(keep, jnp.float32), jnp.ones(2))
    foreseen[name] = np.sqrt(a[truth]) * noisy - np.sqrt(1 - a[truth]) * v
    errors[name] = float(jnp.mean((foreseen[name] - z) ** 2))
    print(f"{name:16} error of the foreseen latent {errors[name]:.3f}")
assert errors["without 16 x 16"] > errors["without 4 x 4"] and errors["without 16 x 16"] > 3 * errors["all skips"]

# %%
decoded = sd.to_pictures(jnp.concatenate([noisy[:1], *(f[:1] for f in foreseen.values())]))
show(plots.pictures([pictures[0], *decoded], ["the picture", f"noisy, t = {truth}", *cuts], columns=7, side=1.5),
     f"The picture, {describe(scenes[0])}; its noisy latent as a picture; and what the network foresees of it with all "
     "skips, which is close to the picture, and with some of them cut: without the finest ones noise stays, "
     "as blots, and without any the solid falls apart.")

# %% [markdown]
# The finest. What the network must say, the noise, is different at every place, and nothing of that fits through 4 x 4
# places. It travels through the skips of the finest level. The network was trained with all of them, so cutting one
# breaks it more than it would if it had never had any. Still, the order says where things are carried.
#
# And the depths? We cut what comes up into the finest level instead, at four amounts of noise.
#
# **Predict:** at which timestep are the depths missed most?

# %%
cuts = {"nothing cut": (1, 1), "without the finest skips": (0, 1), "without the depths": (1, 0)}
print(f"{'error of the foreseen latent':28}" + "".join(f"   t = {t}" for t in (100, 300, 600, 900)))
lost = {}
for name, (skip, depth) in cuts.items():
    for t in (100, 300, 600, 900):
        noisy = np.sqrt(a[t]) * z + np.sqrt(1 - a[t]) * eps
        v = by_hand(noisy, jnp.full(8, t), texts, jnp.array([skip, 1.0, 1.0]), jnp.array([depth, 1.0]))
        lost[name, t] = float(jnp.mean((np.sqrt(a[t]) * noisy - np.sqrt(1 - a[t]) * v - z) ** 2))
    print(f"{name:28}" + "".join(f"{lost[name, t]:10.3f}" for t in (100, 300, 600, 900)))

assert lost["without the finest skips", 100] > lost["without the depths", 100]
assert lost["without the depths", 900] > lost["without the finest skips", 900]

# %% [markdown]
# The noisiest. Where there is little noise, a place and its neighbours nearly show what is there, and the skips are
# what matters. In nearly pure noise a single place says next to nothing; only who looks at the whole map, and at the
# text, can tell what the picture should be, and at the last column the skips are hardly missed. (That the text comes
# in through the depths is special to our model, whose finest level has no transformer.)
#
# ## Where the parameters are
#
# **Predict:** which row of SD 1.x has the most?

# %%
def parameters_of(network):
    size = lambda module: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    return {row.name: size(block) for row, block in
            zip(rows(network.config), [*network.down_blocks, network.mid_block, *network.up_blocks])}, size(network)


shapes_only = nnx.eval_shape(lambda: UNet(sd1().unet, rngs=nnx.Rngs(0)))
counts, total = parameters_of(shapes_only)
figure = plots.figure(7, 3)
axes = figure.add_subplot(xlabel="million parameters", title=f"the UNet of SD 1.x: {total:,} parameters")
axes.barh(list(counts), [n / 1e6 for n in counts.values()])
axes.invert_yaxis()
show(figure, "A bar for each row of the table: the second row going up holds the most, the finest rows hold few.")
print(f"ours: {sd.unet.size:,} parameters, the UNet of SD 1.x {total / sd.unet.size:.0f} times as many")
assert max(counts, key=counts.get) == "up_blocks.1" and total == 859_520_964

# %% [markdown]
# The coarse rows, which have the widest matrices: with twice the channels a matrix is four times as large, whatever the
# size of the map. Time goes by the map as well, so the finest rows, which hold the fewest parameters, are not cheap.
#
# ## Other sizes
#
# Nothing in the network knows that the latent is 16 x 16: a convolution does not ask how large the map is, nor does
# attention ask how many rows there are.
#
# **Predict:** which of these latents does it take: 16 x 24, 32 x 32, 10 x 15?

# %%
for height, wide in ((16, 24), (32, 32), (10, 15)):
    out = jax.eval_shape(lambda z: net(z, timesteps[:1], texts[:1]), jnp.zeros((1, height, wide, 4)))  # shapes only
    print(f"{height} x {wide} in, {out.shape[1]} x {out.shape[2]} out")
    assert out.shape == (1, height, wide, 4)

# %% [markdown]
# All of them. An odd side is rounded up when it is halved, and cut again on the way back so that it fits its skip. That
# the network takes a size does not mean that it draws well there; it learned at one.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/06_unet.py`.
#
# **1.** The sides of the map at each level, for a picture of `pixels` (a multiple of 8), `levels` levels and a VAE that
# makes it 8 times smaller.


# %%
def sides(pixels, levels):
    return ...


exercise.check_sides(sides)

# %% [markdown]
# **2.** The waves of one timestep: `width` numbers, first the cosines, then the sines.


# %%
def waves_of(t, width):
    return ...


exercise.check_waves_of(waves_of)

# %% [markdown]
# **3.** The widths of all skips in the order in which they are *used* going up, for the widths of the levels and the
# number of residual blocks a level going down. (Each level keeps its input and what each block gives; the input of the
# first level comes from the first convolution, that of the next is what the level above gave, halved in size.)


# %%
def skip_widths(channels, blocks):
    return ...


exercise.check_skip_widths(skip_widths)
