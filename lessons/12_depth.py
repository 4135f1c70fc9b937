# %% [markdown]
# # 12. Depth to image, and how a network sees depth
#
# *Seed line 13: depth-to-image, conditioned on the depth map that the MiDaS model draws from the picture.*
#
# A text says what is in a picture, hardly where. A depth map says where everything is and what shape it has, and
# nothing about colour. This lesson has two halves. In the first a network looks at a picture and guesses how near
# everything in it is; we take it apart, stage by stage, with a picture of what each stage sees. In the second that map
# becomes a fifth channel beside the latents. We ask for other colours in the same shape, and find out how one measures
# whether a picture follows its depth.
#
# About 70 seconds and 2 GB on two cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from checks import depth as exercise
from lesson import show

import sdjax
from sdjax import diffusion, plots, samplers
from sdjax.config import sd2_depth
from sdjax.evaluate import shown
from sdjax.images import normalised_depth
from sdjax.midas import resized
from sdjax.toyworld import describe, nearness, render, scene_at
from sdjax.training.midas import invariant_loss

sd = sdjax.load("../weights/tiny-depth")

# %% [markdown]
# ## Far, and near
#
# Our renderer knows the distance of every pixel along the view. Depth networks speak of its inverse, *how near*
# something is: the sky, however far it may be, is 0, and what stands before the camera is large.

# %%
scene = scene_at(0, "test", 5, 2)
rendered, far = render(scene)
picture = rendered.astype(np.float32) / 127.5 - 1.0
near = nearness(far)
print(f"far:  {far.min():.1f} to {far.max():.1f} units")
print(f"near: {near.min():.3f} to {near.max():.3f}")
show(plots.pictures([picture, far, near], ["the picture", "far: depth", "near: inverse depth"], side=2.2),
     f"A render of {describe(scene)}; its depth, in which the sky outshines everything; its inverse depth, in which "
     "the floor brightens evenly towards us and the solids stand out.")

# %% [markdown]
# **Predict:** go up the picture along one column of floor, pixel by pixel. Which of the two, far or near, falls on a
# straight line?

# %%
column = 2  # at the left edge, where nothing stands
floor = np.arange(128)[near[:, column] > 0][2:]  # without the rows that still see some sky
figure = plots.figure(8, 2.8)
for i, (name, values, unit) in enumerate((("far", far, "depth"), ("near", near, "inverse depth"))):
    axes = figure.add_subplot(1, 2, i + 1, xlabel="row of the picture", ylabel=unit, title=f"{name}, along a column")
    axes.plot(floor, values[floor, column])
show(figure, "Two curves over the rows of the picture: depth falls in a bend, inverse depth rises in a straight "
     "line.")
bend = {}
for name, values in (("far", far), ("near", near)):
    curve = values[floor, column]
    chord = np.linspace(curve[0], curve[-1], len(curve))  # straight from one end to the other
    bend[name] = np.abs(curve - chord).max() / np.ptp(curve)
    print(f"{name} leaves the straight line by {bend[name]:.4%} of its range")
assert bend["near"] < 1e-3 < 0.02 < bend["far"]
slope, start = np.polyfit(floor, near[floor, column], 1)
print(f"near = {slope:.5f} row + {start:.4f}, which would be 0 at row {-start / slope:.0f}")
ground = np.repeat(near[:, column : column + 1], 128, axis=1)  # the map of a floor with nothing on it

# %% [markdown]
# Near: a plane seen in perspective has an inverse depth that is linear in the pixel. What is flat in the world is flat
# in the map, which is one reason to ask a network for that rather than for metres. A floor without end would go on up
# to its horizon, where near is 0; ours ends long before. We keep the map of the empty floor; it will be needed twice.
#
# ## Only up to a straight line
#
# From one picture nobody can tell a doll's house from a house. And films, laser scanners and stereo cameras give depth
# in units of their own, often with an unknown zero. MiDaS wanted to learn from all of them. So its loss first removes
# from both maps what cannot be known: it takes away the median, and divides by the mean distance from it. (In a toy
# world no depth is an outlier, and the mean does as well as the median.)


# %%
def standard(d):
    centred = d - d.mean()
    return centred / np.abs(centred).mean()


def loss(found, true):
    return np.abs(standard(found) - standard(true)).mean()


guess = sd.midas(picture)[0]
print(f"the network's map goes from {guess.min():.2f} to {guess.max():.2f}, the true one to {near.max():.3f}")
print(f"loss {loss(guess, near):.4f}, by the package {invariant_loss(guess[None], near[None]):.4f}")
assert np.allclose(loss(guess, near), invariant_loss(guess[None], near[None]), atol=1e-4)

# %% [markdown]
# **Predict:** the loss of the true map against five times itself plus three? Against itself upside down, minus the
# true map? Against *depth*, which is the same knowledge in another form?

# %%
others = {"5 near + 3": 5 * near + 3, "-near": -near, "far": far, "noise": np.random.default_rng(0).random(near.shape)}
for name, other in others.items():
    print(f"{name:<11} loss {loss(other, near):.4f}")
assert loss(5 * near + 3, near) < 1e-4 < loss(-near, near)

# %% [markdown]
# Zero for the first: scale and shift are forgiven, and so they are never learnt. The network's numbers have no unit,
# and those of two pictures cannot be compared. A turned sign is not forgiven, and $1/d$ is no straight line of $d$.
#
# ## What the network sees
#
# MiDaS here is the *DPT-hybrid*: a ResNet that makes the picture smaller, a transformer that lets every place look at
# every other, and a decoder that goes back up, taking in at each size what the encoder saw there:
#
#     picture -> stem -> stage 0 -> stage 1 -> stage 2 -> transformer, one token a pixel of stage 2
#                          | /4       | /8                  | /16              | /32
#     depth <- head <--- fuse <---- fuse <---------------- fuse <----------- fuse
#
# We call the parts one by one, and keep everything.

# %%
network = sd.depth_estimator.module
seen = {}

x = jax.nn.relu(network.resnet.stem(picture[None]))
seen["stem"] = x
fine, middle, coarse = network.resnet(picture[None])
seen |= {"stage 0": fine, "stage 1": middle, "stage 2": coarse}

earlier, later = network.transformer(coarse)  # the states after the two layers that the decoder reads
seen["tokens"] = earlier
h, w = coarse.shape[1:3]
maps = [fine, middle, network.reassemble[0](earlier, h, w), network.reassemble[1](later, h, w)]
seen |= {"tokens /16": maps[2], "tokens /32": maps[3]}

x = None
for i, (fusion, conv, y) in enumerate(zip(network.fusions, network.convs[::-1], maps[::-1])):
    x = fusion(conv(y), x)
    seen[f"fused {i + 1}"] = x
seen["depth"] = network.head(x)

for name, values in seen.items():
    print(f"{name:<12}{str(list(values.shape[1:])):>16}")
assert np.allclose(seen["depth"][0], guess, atol=1e-3)

# %% [markdown]
# The last line is the map of `sd.midas`, which we asked for above. One number in the table looks odd: the transformer
# has 65 tokens, not 8 x 8 = 64.
#
# **Predict:** what is the odd one?

# %%
assert seen["tokens"].shape[1] == 1 + h * w
first = seen["tokens"][0, 0]
print("the odd token's state, its first numbers:", np.asarray(first[:4]).round(2))
spoilt = later.at[:, 0].set(0.0)  # forget it
moved = float(jnp.abs(network.reassemble[1](spoilt, h, w) - maps[3]).mean() / jnp.abs(maps[3]).mean())
print(f"without it, what the decoder gets changes by {moved:.0%}")
assert moved > 0

# %% [markdown]
# A *class token*: it stands for no place, and can gather what concerns the whole picture. The decoder reads it
# together with every other token ("readout").
#
# The same table at full size. The released network looks at pictures of 384 x 384:

# %%
full = sd2_depth().depth
side = full.image_size
print("stem      ", [side // 2, side // 2, full.stem])
for i, stage in enumerate(full.stages):
    print(f"stage {i}   ", [side // (4 * 2**i), side // (4 * 2**i), stage], f" {full.depths[i]} blocks")
print("tokens    ", [1 + (side // 16) ** 2, full.width], f" {full.layers} layers, read after {full.hooks}")
print("decoder   ", full.features, "channels at every size")
print(f"ours has {sd.depth_estimator.size:,} parameters")

# %% [markdown]
# To look at a map of 32 or 128 channels we need three numbers a pixel. Take the three directions in which the pixels
# of a map differ most (its principal components) as red, green and blue. The colours themselves mean nothing; where
# they are alike, the network sees something alike.


# %%
def as_colours(features):
    """A map [h, w, c] as a picture [h, w, 3] in [-1, 1]: its first three principal components, each from -1 to 1."""
    flat = np.asarray(features, np.float32).reshape(-1, features.shape[-1])
    flat = flat - flat.mean(axis=0)
    components = flat @ np.linalg.svd(flat, full_matrices=False)[2][:3].T
    low, high = np.percentile(components, (1, 99), axis=0)
    return np.clip(2 * (components - low) / (high - low) - 1, -1, 1).reshape(*features.shape[:2], 3)


names = [name for name in seen if name not in ("tokens", "depth")]
show(plots.pictures([picture, *(as_colours(seen[n][0]) for n in names), guess],
                    ["the picture", *(f"{n}, {seen[n].shape[1]} px" for n in names), "depth"], columns=6),
     "The maps of every part as false colours: stem and stage 0 show edges and paint; the coarse ones, of the tokens, "
     "a few blocks; the fused ones grow sharper step by step until the depth map, in which solids and floor are plain.")

# %% [markdown]
# Two things to look for. On the way down the maps forget paint and shadow little by little; on the way up, place and
# outline come back from the side, through the lines of the drawing. And what is plain in the picture but has no depth
# of its own, a shadow or a line painted on the floor, should leave no trace in the last map.
#
# ## How good is it?
#
# The unit is unknown, so we ask only for the *order*: is what it calls nearer, nearer? Replace every value by its
# place in the order, in both maps, and take the correlation of the places. Equal values (all of the sky) share the
# mean of their places.


# %%
def ranks(values):
    flat = np.ravel(values)
    order = np.sort(flat)
    first, last = np.searchsorted(order, flat, "left"), np.searchsorted(order, flat, "right")
    return (first + last + 1) / 2


def rank_correlation(a, b):
    a, b = (r - r.mean() for r in (ranks(a), ranks(b)))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def package_says(a, b):
    return shown.correlation(shown.ranks(a), shown.ranks(b))


assert np.isclose(rank_correlation(guess, near), package_says(guess, near))

# %% [markdown]
# **Predict:** what does the rank correlation say of the cube of the true map, and what of depth?

# %%
print(f"near and near^3: {rank_correlation(near, near**3):.3f}")
print(f"near and far:    {rank_correlation(near, far):.3f}")
assert np.isclose(rank_correlation(near, near**3), 1, atol=1e-3) and rank_correlation(near, far) < -0.99

# %% [markdown]
# The order is the same after every map that rises, so 1, and turned round, -1. Now six scenes that training never
# showed:

# %%
scores = []
for i in range(6):
    r, f = render(scene_at(2, "test", i))
    scores.append(rank_correlation(sd.midas(r)[0], nearness(f)))
print("rank correlation with the truth:", np.round(scores, 3))
assert np.mean(scores) > 0.9

# %% [markdown]
# ## The fifth channel
#
# Now the depth becomes a condition. Latents are 16 x 16, so the map is brought to that size, and stretched so that the
# farthest place of *this* picture is -1 and the nearest 1. The network has never seen another range: whatever unit
# MiDaS happens to use falls away here.


# %%
def channel(depth_map):
    small = np.asarray(resized(jnp.asarray(depth_map, jnp.float32)[None, :, :, None], (16, 16), "bicubic"))
    return 2 * (small - small.min()) / (small.max() - small.min()) - 1


beside = channel(near)
print("shape", list(beside.shape), "from", beside.min(), "to", beside.max())
assert np.allclose(beside, channel(40 * near - 7), atol=1e-4)  # the unit does not matter

# %% [markdown]
# **Predict:** and for a wall seen straight on, everything equally far?

# %%
with np.errstate(invalid="ignore"):
    by_hand = channel(np.zeros((128, 128)))
flat = normalised_depth(np.zeros((1, 16, 16, 1), np.float32))
print("by hand:    ", by_hand[0, 0, :3, 0])
print("the package:", flat[0, 0, :3, 0])
assert np.isnan(by_hand).all() and (flat == -1).all()

# %% [markdown]
# Zero divided by zero, which as a picture is black or noise and no error. The original code adds 0.001 in training
# and forgets it in its demo; ours gives -1, what that 0.001 would have given.
#
# What does a fifth channel cost the network? Only its first convolution sees the input.

# %%
print("first kernel:", list(sd.unet.module.conv_in.kernel.shape), "= height, width, inputs, outputs")
released = sd2_depth().unet
print(f"more parameters in the released one: {9 * released.channels[0]:,}")
kernel = np.asarray(sd.unet.module.conv_in.kernel[...])
print("size of the weights on each of the five inputs:", np.sqrt((kernel**2).mean(axis=(0, 1, 3))).round(3))
assert kernel.shape[2] == 5 and np.any(kernel[:, :, 4])

# %% [markdown]
# Training began with the text-to-image network of the other lessons. New weights can begin at zero, so that at first
# nothing changes; those for inpainting did (lesson 10). Here the network then hardly came to follow the depth, since a
# solid differs from the floor by only a tenth of the channel's range. So these began as random numbers of size 0.5
# (`LOUD` in `training/conditioned.py`), and that is still about what you see in the fifth place.
#
# ## Depth to image, by hand
#
# The loop of lesson 9, with one line more. We take strength 1: all steps, from the noisiest.

# %%
one = scene_at(0, "test", 3, 1)
shape = one.solids[0].shape
rendered, far = render(one)
picture, near = rendered.astype(np.float32) / 127.5 - 1.0, nearness(far)
prompt, steps, seed = f"a green {shape}", 20, 0

keys = samplers.image_keys(seed, 0, 1)
posterior = sd.vae.encode(picture[None])
draw = samplers.noise(keys, samplers.POSTERIOR, posterior.mean.shape[1:])
latent = sd.config.vae.scale * (posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draw)

plan = samplers.ddim_plan(sd.config.diffusion, steps)
texts = sd.text_encoder(sd.tokenizer(["", prompt]))
beside = jnp.asarray(channel(near))
x = np.sqrt(plan.a[0]) * latent + np.sqrt(1 - plan.a[0]) * samplers.noise(keys, 0, (16, 16, 4))
for t, a, a_next in zip(plan.t, plan.a, plan.a_next):
    sees = jnp.concatenate([x, beside], axis=-1)  # [1, 16, 16, 5]: the one new line
    empty, text = jnp.split(sd.unet(jnp.concatenate([sees, sees]), jnp.array([t, t]), texts), 2)
    v = diffusion.guide(empty, text, sd.config.guidance)
    x0, eps = diffusion.split_prediction(v, x, a, "v")
    x = jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps

theirs = sd.depth2img(prompt, picture, near, strength=1.0, steps=steps, seed=seed)
print(f"largest difference of a pixel: {np.abs(sd.to_pictures(x) - theirs).max():.1e}")
assert np.abs(sd.to_pictures(x) - theirs).max() < 1e-3
print(f"of the picture's latent, {np.sqrt(plan.a[0]):.3f} went in; of noise, {np.sqrt(1 - plan.a[0]):.3f}")

# %% [markdown]
# The depth is not noised and never changes; it is there in both halves, with the text and without, so guidance does
# not strengthen it. And of the picture itself nearly nothing goes in at strength 1: what stays of it must have come
# through 256 numbers of depth.
#
# ## Does the network look at it?
#
# Ask it directly. Noise some scenes that it never saw, and let it foresee each three times: beside its own depth,
# beside the depth of another scene, and beside a floor with nothing on it. The text, which names the solid but not its
# place, is always the right one.
#
# **Predict:** where does depth help more, at $t = 951$, where the picture is hidden in noise, or at $t = 201$?

# %%
scenes = [scene_at(4, "test", i, 1) for i in range(16)]
pictures, fars = (np.stack(part) for part in zip(*map(render, scenes)))
latents = sd.config.vae.scale * sd.vae.encode(pictures.astype(np.float32) / 127.5 - 1).mean
own = np.concatenate([channel(nearness(f)) for f in fars])
beside = {"its own": own, "another's": np.roll(own, 1, axis=0), "an empty": np.repeat(channel(ground), 16, axis=0)}
said = sd.text_encoder(sd.tokenizer([describe(s) for s in scenes]))
eps = np.random.default_rng(0).standard_normal(latents.shape).astype(np.float32)

errors = {}
for t in (951, 601, 201):
    a = diffusion.alphas(sd.config.diffusion)[t]
    noisy = np.float32(np.sqrt(a)) * latents + np.float32(np.sqrt(1 - a)) * eps
    v = np.sqrt(a) * eps - np.sqrt(1 - a) * latents
    for name, depth in beside.items():
        answer = sd.unet(jnp.concatenate([noisy, depth], axis=-1), jnp.full(16, t), said)
        errors[t, name] = float(jnp.mean((answer - v) ** 2))
    print(f"t = {t}: squared error beside", ", ".join(f"{n} depth {errors[t, n]:.4f}" for n in beside))
assert errors[951, "its own"] < errors[951, "another's"]

# %% [markdown]
# Its own depth foresees best where noise hides everything else; with another's the network is misled. Where little
# noise is left, the picture says itself where things stand. How far apart the numbers of the first line are says how
# well this network has learnt to read the channel.
#
# It is not an easy channel to read. The sky is at -1; how much room is left for what stands on the floor?

# %%
below = np.s_[0, floor[0] // 8 + 1 :, :, 0]  # the cells that see floor only
on_floor = channel(ground)[below]
solid = np.abs(channel(near)[below] - on_floor).max()
print(f"sky at -1; the floor from {on_floor.min():.2f} to {on_floor.max():.2f}; "
      f"a solid differs from the floor behind it by {solid:.2f} at most")

# %% [markdown]
# ## The colour changes; does the shape stay?
#
# Four colours, one depth, four noises. At strength 1 the place and the shape can come from the depth alone; at 0.5 the
# walk begins half-way down, where a good part of the picture is left and holds them too.

# %%
colours = ("red", "green", "blue", "yellow")
words = [f"a {c} {shape}" for c in colours]
drawn = {s: sd.depth2img(words, picture, near, strength=s, steps=steps, seed=seed) for s in (1.0, 0.5)}
show(plots.pictures([near, *drawn[1.0], picture, *drawn[0.5]],
                    ["the depth", *(f"{w}, 1.0" for w in words), "the picture", *(f"{w}, 0.5" for w in words)],
                    columns=5),
     f"The depth and the picture of {describe(one)}; above, four pictures of its depth at strength 1, asked for in "
     "red, green, blue and yellow; below, the same at strength 0.5, which begin with a part of the picture.")

# %% [markdown]
# At strength 1 the colour is the one asked for. At 0.5 it mostly is not: of what that walk begins with, more than half
# of the amplitude is still the old picture, and most of the old colour stays: green and yellow came out blue, and red a
# mixture. Shape and colour are held together.
#
# MiDaS can read the depth back from what was drawn. How well does it agree with what was asked for?
#
# **Predict:** the correlation of the depth asked for with that of an *empty* floor?

# %%
back = {s: sd.midas(drawn[s]) for s in drawn}
for s, maps in back.items():
    print(f"strength {s}: correlation", np.round([shown.correlation(b, near) for b in maps], 3))
print(f"an empty floor:           {shown.correlation(ground, near):.3f}")
assert shown.correlation(ground, near) > 0.9

# %% [markdown]
# All close to 1, and so is that of a floor with nothing on it: floor and sky are nearly all of the map, and they are
# the same everywhere. Whoever reports such a number must say what nothing at all would have scored. So take away from
# either map what is a straight line of the empty floor's (the unit and the zero of MiDaS are its own), and compare what
# is left: what *stands* there. `sdjax evaluate` does the same.


# %%
def beyond_the_floor(depth):
    scale, shift = np.polyfit(ground.ravel(), depth.ravel(), 1)
    return depth - (scale * ground + shift)


assert np.allclose(beyond_the_floor(near), shown.beyond(near, ground), atol=1e-5)


def follows(read, asked):
    return shown.correlation(beyond_the_floor(read), beyond_the_floor(asked))


print(f"the picture itself: {follows(sd.midas(picture)[0], near):.2f}")
for s, maps in back.items():
    print(f"strength {s}:      ", np.round([follows(b, near) for b in maps], 2))
assert follows(sd.midas(picture)[0], near) > 0.5

# %% [markdown]
# Near 1 is a solid just where it was asked for; near 0 is one that stands elsewhere. The first line is as good as it
# gets: MiDaS looking at the true picture. Compare the two strengths with it, and with the figure. At 0.5 the score is
# high because little was changed. Strength 1 begins from pure noise: where it scores as high, the shape came from the
# depth alone, as the errors above foretold.
#
# Now let two witnesses disagree: the picture of one scene, and the depth of another.
#
# **Predict:** at which strength does which of them win?

# %%
elsewhere = nearness(render(scene_at(0, "test", 8, 1))[1])
strengths = (1.0, 0.5)
mixed = [sd.depth2img(prompt, picture, elsewhere, strength=s, steps=steps, seed=seed)[0] for s in strengths]
for s, m in zip(strengths, mixed):
    read = sd.midas(m)[0]
    print(f"strength {s}: follows the depth {follows(read, elsewhere):+.2f}, the picture {follows(read, near):+.2f}")
show(plots.pictures([picture, elsewhere, *mixed],
                    ["the picture", "another depth", *(f"strength {s}" for s in strengths)]),
     "A picture, the depth of another scene, and what is drawn from both at the two strengths.")

# %% [markdown]
# The less strength, the more of the picture is left at the start. The larger of the two numbers names the winner; where
# both are small, the noise had its way.
#
# ## A depth map of your own
#
# The network does not ask where the map comes from. A floor is a straight line of the row, as we saw; a thing that
# stands up has one distance from its foot to its top, that of the floor at its foot; sky is 0. Draw, and see. Change
# the cell: a second thing, a ball in the air, a tilted floor, a staircase, a letter.

# %%
row, col = np.mgrid[0:128, 0:128]


def box(world, top, bottom, left, right):
    """The map with a flat thing in it that stands up."""
    world = world.copy()
    inside = np.s_[top:bottom, left:right]
    world[inside] = np.maximum(world[inside], ground[bottom, 0])
    return world


def ball(world, bottom, middle, radius):
    """The map with a ball in it, which swells towards us."""
    distance = np.hypot(row - (bottom - radius), col - middle) / radius
    bulge = ground[bottom, 0] * (1 + 0.15 * np.sqrt(np.maximum(1 - distance**2, 0)))
    return np.where(distance < 1, np.maximum(world, bulge), world)


own_maps = {
    "a red sphere": ball(ground, 95, 64, 24),
    "a blue cube": box(ground, 58, 96, 24, 62),
    "a yellow cylinder": box(ground, 40, 96, 52, 78),
}
made = [sd.depth2img(said, picture, depth, strength=1.0, steps=steps, seed=1)[0] for said, depth in own_maps.items()]
show(plots.pictures([*own_maps.values(), *made], [*(f"for {said}" for said in own_maps), *own_maps], columns=3,
                    side=2.0),
     "Above, three depth maps drawn by hand: a ball, a wide box and a tall one on a floor; below, what the model makes "
     "of them with a prompt each.")
print("how well each follows:", [round(follows(sd.midas(m)[0], d), 2) for m, d in zip(made, own_maps.values())])

# %% [markdown]
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/12_depth.py`.
#
# **1.** The map `[H, W]` from -1 (farthest) to 1 (nearest), and -1 everywhere where all of it is equally far.


# %%
def fifth_channel(depth):
    return ...


exercise.check_fifth_channel(fifth_channel)

# %% [markdown]
# **2.** MiDaS has no unit. Where one over the distance is known (`true`), it can be given one: return the `scale` and
# `shift` for which `scale * found + shift` comes nearest to `true`, in the sense of least squares.


# %%
def unit(found, true):
    return ...


exercise.check_unit(unit)

# %% [markdown]
# **3.** The number of tokens that the transformer sees for a picture of `height` x `width`, both multiples of 32.


# %%
def token_count(height, width):
    return ...


exercise.check_token_count(token_count)

# %% [markdown]
# **4.** The inverse depth `[size, size]` of a floor and sky: 0 in the rows above `horizon`, `nearest` in the last row,
# and on a straight line in between that would reach 0 at `horizon`.


# %%
def ground_plane(size, horizon, nearest):
    return ...


exercise.check_ground_plane(ground_plane)
