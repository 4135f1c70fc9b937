# %% [markdown]
# # 10. Inpainting: a hole in a picture, filled by words
#
# *Seed line 13: three more kinds of conditioning; inpainting is one of them.*
#
# Take a picture, cut a hole, and say what should be there. There are two ways to do it. Any text-to-image model can,
# if at each step we put back what lies outside the hole; that needs one more line in the loop. The released inpainting
# models go further: their network *sees* the hole, as five more channels beside the latents. We build both by hand,
# find out what a mask means where a latent stands for 8 x 8 pixels, and measure what happens to the pixels that nobody
# wanted to change.
#
# About 50 seconds and 2 GB on two cores.

# %%
import jax.numpy as jnp
import numpy as np
from checks import inpainting as exercise
from lesson import show

import sdjax
from sdjax import diffusion, plots, samplers
from sdjax.config import sd1, sd1_inpaint
from sdjax.evaluate.shown import hole_of
from sdjax.toyworld import describe, render, scene_at

sd = sdjax.load("../weights/tiny")  # 4 channels: text to image

# %% [markdown]
# ## A picture and a mask
#
# The mask is 1 where we want something new, 0 where everything should stay.

# %%
scene = scene_at(0, "test", 3, 1)
picture = render(scene)[0].astype(np.float32) / 127.5 - 1.0
mask = np.zeros((128, 128), np.float32)
hole = hole_of(scene)  # rows and columns of a box around the solid
mask[hole] = 1.0
hollow = picture * (1 - mask[:, :, None])
print(f"{describe(scene)}; the hole is {mask.mean():.0%} of the picture")
show(plots.pictures([picture, mask, hollow], ["the picture", "the mask", "the picture with a hole"], side=2.2),
     f"A render of {describe(scene)}, a mask with a bright box around it, and the picture with a grey box there.")

# %% [markdown]
# ## Blending: any model can do it
#
# Walk from noise to a picture as always, with one line more: after each step, what lies outside the hole is thrown
# away, and the picture's own latent is put there instead.
#
# **Predict:** the picture's latent as it is, or with noise on it?

# %%
prompt, steps, seed = "a green sphere", 20, 0
guidance = sd.config.guidance

keys = samplers.image_keys(seed, 0, 1)
posterior = sd.vae.encode(picture[None])
draw = samplers.noise(keys, samplers.POSTERIOR, posterior.mean.shape[1:])
latent = sd.config.vae.scale * (posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draw)  # [1, 16, 16, 4]
small_mask = mask[None, ::8, ::8, None]  # [1, 16, 16, 1]; more of this below
noise = samplers.noise(keys, 0, (16, 16, 4))
plan = samplers.ddim_plan(sd.config.diffusion, steps)


def predicted(model, x, t, a):
    """The foreseen picture and the noise in x, under guidance; each model has a text encoder of its own."""
    texts = model.text_encoder(model.tokenizer(["", prompt]))
    empty, text = jnp.split(model.unet(jnp.concatenate([x, x]), jnp.array([t, t]), texts), 2)
    return diffusion.split_prediction(diffusion.guide(empty, text, guidance), x[..., :4], a, "v")


def blended(noisy):
    """A picture whose surroundings are put back after each step, with the noise that belongs there, or without."""
    x, walk = noise, []
    for i, (t, a, a_next) in enumerate(zip(plan.t, plan.a, plan.a_next)):
        x0, eps = predicted(sd, x, t, a)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps  # DDIM, as ever
        share = a_next if noisy and i < steps - 1 else 1.0  # after the last step there is no noise left
        outside = np.sqrt(share) * latent + np.sqrt(1 - share) * noise
        x = small_mask * x + (1 - small_mask) * outside  # the new line
        walk.append((t, x, x0))
    return walk


walk, clean = blended(noisy=True), blended(noisy=False)

# %%
ours = sd.to_pictures(walk[-1][1])
theirs = sd.inpaint(prompt, picture, mask, steps=steps, seed=seed, paste=False)
print(f"largest difference of a pixel from sd.inpaint: {np.abs(ours - theirs).max():.1e}")
assert np.abs(ours - theirs).max() < 1e-3

# %% [markdown]
# With noise: as much as the rest of $x$ has. The package does the same. Why not the clean latent, of which we are
# sure? The network is told a single $t$ for the whole of $x$ and has learnt that everything it sees is as noisy as
# that. Clean surroundings at $t = 951$ are something it never saw. It may cope, but it does not draw the same:

# %%
chosen = [0, 4, 9, 14, 19]
rows = [[sd.to_pictures(walk[i][1])[0] for i in chosen], [sd.to_pictures(clean[i][1])[0] for i in chosen]]
titles = [f"{kind} after t = {plan.t[i]}" for kind in ("noisy,", "clean,") for i in chosen]
show(plots.pictures([*rows[0], *rows[1]], titles, columns=5),
     "Two walks at five of twenty steps. Above, the surroundings are as noisy as the hole at every step; below, they "
     "are put back clean, so that a noisy box stands in a clear picture from the first step on.")
inside = small_mask[0, :, :, 0] == 1
apart = np.sqrt(np.mean((walk[-1][1] - clean[-1][1])[0, inside] ** 2))
print(f"how far apart the two fillings are, in latents that vary by about 1: {apart:.2f}")
assert apart > 0.05
assert np.allclose(walk[-1][1][0, ~inside], latent[0, ~inside])  # outside, at the end, the picture's own latent

# %% [markdown]
# ## What a mask means to a latent
#
# The mask has 128 x 128 pixels and the latent 16 x 16 cells; each cell answers for 8 x 8 pixels. What does a cell do
# that is cut in half? The original code and ours take the *first pixel* of each cell (its top left), because that is
# what nearest-neighbour shrinking gives in torch: pixel $i$ of the small one is pixel $8 i$ of the large one.
#
# **Predict:** a mask covers columns 20 to 74. Which columns will be painted anew: more, fewer, others?

# %%
stripe = np.zeros(128)
stripe[20:75] = 1
cells = np.flatnonzero(stripe[::8])
print(f"cells {cells[0]} to {cells[-1]}, that is columns {8 * cells[0]} to {8 * cells[-1] + 7}")
assert (8 * cells[0], 8 * cells[-1] + 7) == (24, 79)

# %% [markdown]
# Others. On the left, four columns that we asked for stay as they are; on the right, five that we did not ask for are
# painted. With the next mask it is worse.
#
# **Predict:** a scratch of 6 pixels' width, in columns 9 to 14. What is painted anew?

# %%
scratch = np.zeros(128)
scratch[9:15] = 1
print("cells:", np.flatnonzero(scratch[::8]))
assert not scratch[::8].any()

# %% [markdown]
# Nothing at all (the package warns of such a mask). So: masks a little wider than what should go, and never thinner
# than 8 pixels. Here is a round one, at the two sizes:

# %%
down, across = np.mgrid[0:128, 0:128]
disc = (np.hypot(down - 60, across - 70) < 33).astype(np.float32)
grid = np.kron(disc[::8, ::8], np.ones((8, 8)))
show(plots.pictures([disc, grid, disc + 2 * grid], ["a round mask", "as cells of 8 x 8", "both"], side=2.2),
     "A disc; the same as 8 x 8 blocks, a coarse disc; and both over each other, with slivers at the rim that belong "
     "to only one of the two.")
print(f"asked for, but kept: {(disc * (1 - grid)).sum():.0f} pixels; painted, though not asked for: "
      f"{((1 - disc) * grid).sum():.0f}")

# %% [markdown]
# And the border of a cell is not sharp either: the decoder's convolutions look beyond it. Change a single cell of the
# latent, and see which pixels move:

# %%
nudged = latent.at[0, 8, 8].add(1.0)  # one cell of 256
change = np.abs(sd.to_pictures(nudged) - sd.to_pictures(latent))[0].max(axis=-1)
reached = change > 0.02
print(f"pixels that change visibly: {reached.sum()}, of them in the cell itself {reached[64:72, 64:72].sum()}")
show(plots.pictures([change[40:96, 40:96], (change > 0.02)[40:96, 40:96]],
                    ["change of pixels", "change above 0.02"], side=2.2),
     "A cut around the one latent cell that was changed: a slanted spot that runs beyond the cell of 8 x 8 pixels in "
     "the middle without filling all of it, and a few specks further off, at outlines.")
assert reached.sum() > 64

# %% [markdown]
# ## Nine channels: the network sees the hole
#
# Blending has a weakness. At the first steps the surroundings are noise, so the network composes the middle of a
# picture whose rest it cannot see; when they appear, the hole is largely decided. The inpainting model is shown the
# clean surroundings at every step, and where the hole is:
#
# $$[\;\text{noisy latent: 4 channels},\ \ \text{mask: 1},\ \ \text{latent of the picture with a hole: 4}\;]$$

# %%
sd9 = sdjax.load("../weights/tiny-inpaint")
kernel = np.asarray(sd9.unet.module.conv_in.kernel[...])
print("first kernel, 4 channels:", list(sd.unet.module.conv_in.kernel.shape))
print("first kernel, 9 channels:", list(kernel.shape))
more = sd1_inpaint().unet.in_channels - sd1().unet.in_channels
print(f"released SD 1.5 for inpainting: {9 * more * sd1().unet.channels[0]:,} parameters more than SD 1.5")
size = np.sqrt((kernel**2).mean(axis=(0, 1, 3)))
for name, part in (("noisy latent", size[:4]), ("mask", size[4:5]), ("picture with a hole", size[5:])):
    print(f"size of the weights on the {name + ':':<21}", part.round(3))
assert kernel.shape[2] == 9

# %% [markdown]
# That is all that is new in the network. It was trained on from the 4-channel model, the five new inputs at zero to
# begin with, on pictures with boxes cut out; the loss is the same as in lesson 5.
#
# The hole in the picture is 0, and pixels go from -1 to 1.
#
# **Predict:** so what colour does the VAE see there? Why not leave the old pixels under the mask?

# %%
posterior9 = sd9.vae.encode(hollow[None])
draw9 = samplers.noise(keys, samplers.POSTERIOR + 1, posterior9.mean.shape[1:])
hollow_latent = sd9.config.vae.scale * (posterior9.mean + jnp.exp(0.5 * posterior9.log_variance) * draw9)
beside = jnp.concatenate([small_mask, hollow_latent], axis=-1)
print("beside the latent:", list(beside.shape))

x, walk9 = noise, []
for t, a, a_next in zip(plan.t, plan.a, plan.a_next):
    x0, eps = predicted(sd9, jnp.concatenate([x, beside], axis=-1), t, a)
    x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
    walk9.append((t, x, x0))

ours = sd9.to_pictures(x)
theirs9 = sd9.inpaint(prompt, picture, mask, steps=steps, seed=seed, guidance_scale=guidance, paste=False)
print(f"largest difference of a pixel from sd9.inpaint: {np.abs(ours - theirs9).max():.1e}")
assert np.abs(ours - theirs9).max() < 1e-3

# %% [markdown]
# Mid-grey. With the old pixels under the mask, the training would show the network the answer, and it would learn to
# copy it. And no line puts anything back in this loop: the network draws the whole picture, and draws what it sees
# around the hole.
#
# **Predict:** after the very first step, at $t = 951$, how well does each network foresee the surroundings?

# %%
truth = latent[0, ~inside]
for name, steps_walked in (("4 channels", walk), ("9 channels", walk9)):
    far = [float(np.sqrt(np.mean((steps_walked[i][2][0, ~inside] - truth) ** 2))) for i in chosen]
    print(f"{name}: error of the surroundings foreseen at t =",
          ", ".join(f"{plan.t[i]}: {f:.2f}" for i, f in zip(chosen, far)))
first = [float(np.mean((w[0][2][0, ~inside] - truth) ** 2)) for w in (walk, walk9)]
assert first[1] < first[0]

# %%
rows = [[sd.to_pictures(w[i][2])[0] for i in chosen] for w in (walk, walk9)]
titles = [f"{c} channels, t = {plan.t[i]}" for c in (4, 9) for i in chosen]
show(plots.pictures([*rows[0], *rows[1]], titles, columns=5),
     "The picture that each network foresees at five of twenty steps. Above, with 4 channels, another picture at "
     "first, which bends to the surroundings as they appear; below, with 9, the surroundings stand from the first "
     "step.")

# %% [markdown]
# The one guesses *some* picture of the prompt, and the surroundings correct it step by step. The other knows them from
# the start: light, horizon, shadow. That is what the five channels buy.
#
# Four prompts and one seed, the same for both, to compare by eye:

# %%
prompts = ["a red cube", "a yellow cone", "a blue sphere", "a purple cylinder"]
options = {"steps": steps, "seed": 4, "guidance_scale": guidance}
pair = [model.inpaint(prompts, picture, mask, **options) for model in (sd, sd9)]
show(plots.pictures([hollow, *pair[0], hollow, *pair[1]],
                    ["the hole", *(f"4: {p}" for p in prompts), "the hole", *(f"9: {p}" for p in prompts)], columns=5),
     "The picture with a hole and what four prompts put there; above by the model of 4 channels with blending, below "
     "by that of 9. Outside the hole all are the same.")
for filled in pair:
    assert np.abs((filled - picture) * (1 - mask[:, :, None])).max() == 0

# %% [markdown]
# ## What happens outside the hole?
#
# The last assert says: nothing, to the last bit. But that is because the package pastes the picture's own pixels back
# at the end. We left it out above (`paste=False`). What would have changed?
#
# **Predict:** with blending, the latent outside the hole *is* the picture's. Are the pixels?


# %%
def psnr(a, b, where):
    """Decibels of the error in some of the pixels; the range is 2."""
    return 10 * np.log10(4 / np.mean((a - b)[where] ** 2))


outside = mask == 0
rebuilt = sd.to_pictures(latent)[0]
away = outside.copy()
away[tuple(slice(max(side.start - 16, 0), side.stop + 16) for side in hole)] = False
kept = {"the VAE alone": rebuilt, "4 channels": theirs[0], "9 channels": theirs9[0]}
for name, result in kept.items():
    print(f"{name:<14} PSNR outside the hole {psnr(result, picture, outside):.1f} dB, "
          f"16 pixels and more away from it {psnr(result, picture, away):.1f} dB")
show(plots.pictures([np.abs(k - picture).max(axis=-1) * outside for k in kept.values()],
                    [f"error, {name}" for name in kept], side=2.2),
     "Maps of the error outside the hole, each in shades of its own range: of the VAE alone, dots on the outline of "
     "the shadow beside the hole, and faint streaks; with 4 channels, bright strips at the right and lower rim of the "
     "hole; with 9, the outline of the shadow.")
pasted = sd9.inpaint(prompt, picture, mask, steps=steps, seed=seed, guidance_scale=guidance)
assert (pasted[0][outside] == picture[outside]).all()
assert psnr(theirs[0], picture, outside) < psnr(theirs[0], picture, away)

# %% [markdown]
# No: they have been through the VAE, which is not exact (lesson 2). With blending most is lost at the rim, where a
# painted cell reaches beyond the mask, and the decoder looks beyond the cell; and a shadow that reached out of the hole
# has lost what cast it. Even far away, where the latent is the picture's own, the squared error is about twice the
# VAE's, though still small: the decoder's norms and its attention see the whole. The network of nine channels draws the
# surroundings anew, from the latent that it sees beside its own: far from the hole it is 10 dB worse than blending, by
# about one grey level of 255, and it loses most at the outline of the shadow that reaches out of the hole. Pasting back
# costs nothing and is the default here. The price is that the rim can show: a solid or a shadow that was painted across
# it is cut off there, as some above are; paint programs soften the mask for that reason.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/10_inpainting.py`.
#
# **1.** The mask `[H, W]`, of any numbers from 0 to 1, at the size of the latent, `[H / 8, W / 8]`: first cut at a half
# (a half counts as 1), then the first pixel of each cell.


# %%
def latent_mask(mask):
    return ...


exercise.check_latent_mask(latent_mask)

# %% [markdown]
# **2.** The line of the blending loop: `x` after a step that went to the share `a`, with the picture's `latent` put
# back, noised by `noise`, where `mask` is 0.


# %%
def put_back(x, latent, noise, mask, a):
    return ...


exercise.check_put_back(put_back)

# %% [markdown]
# **3.** A mask `[H, W]` that is safe: grown to whole cells, so that every cell that the mask touches anywhere is 1 in
# all of its 8 x 8 pixels.


# %%
def whole_cells(mask):
    return ...


exercise.check_whole_cells(whole_cells)

# %% [markdown]
# **4.** What the 9-channel network sees, `[b, h, w, 9]`, from `x` `[b, h, w, 4]`, `mask` `[b, h, w, 1]` and the latent
# of the picture with a hole, `hollow` `[b, h, w, 4]`.


# %%
def nine_channels(x, mask, hollow):
    return ...


exercise.check_nine_channels(nine_channels)
