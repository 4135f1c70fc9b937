# %% [markdown]
# # 11. Super-resolution: four times as large, with pixels that were never there
#
# *Seed line 13: super-resolution, trained on pairs of high and low resolution.*
#
# Make a picture four times as large each way, and fifteen of sixteen pixels have to be invented. A filter can only
# spread out what is there. A diffusion model that has seen many pairs of a small and a large picture can guess what
# the large one was like, and guess sharply. The upscaler is the UNet that we know with four changes: seven input
# channels, a number that says how noisy the small picture is, a VAE that shrinks by 4 instead of 8, and hardly any
# self-attention. We go through them, build the loop by hand, measure what it gains over a filter, and then draw a
# picture too large for memory, in tiles.
#
# About 60 seconds and 1 GB on two cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from checks import upscaling as exercise
from flax import nnx
from lesson import show

import sdjax
from sdjax import diffusion, plots, request, samplers, tiling
from sdjax.config import sd1, x4_upscaler
from sdjax.images import shrunk
from sdjax.toyworld import describe, render, scene_at

sd = sdjax.load("../weights/tiny-upscaler")


def pair(index):
    """A scene no training saw: its words, the picture [128, 128, 3], and the same at [32, 32, 3]."""
    scene = scene_at(3, "test", index, 1)
    large = render(scene)[0].astype(np.float32) / 127.5 - 1.0
    return describe(scene), large, shrunk(large[None])[0]


# %% [markdown]
# ## What a filter can do
#
# Every small pixel is the mean of 4 x 4 large ones. The usual way back is the *bicubic* filter: a smooth curve through
# the pixels of each row, then of each column.

# %%
words, large, small = pair(0)
assert np.allclose(small[5, 7], large[20:24, 28:32].mean(axis=(0, 1)), atol=1e-6)
bicubic = np.clip(np.asarray(jax.image.resize(small, large.shape, "cubic")), -1, 1)


def psnr(a, b):
    """Decibels of the error of a picture; pixels span 2."""
    return float(10 * np.log10(4 / np.mean((a - b) ** 2)))


show(plots.pictures([small, bicubic, large, np.abs(bicubic - large).max(axis=-1)],
                    ["small, 32 x 32", f"bicubic, {psnr(bicubic, large):.1f} dB", "large, 128 x 128",
                     "error of bicubic"], side=2.2),
     f"A render of {words} at 32 pixels, the same made large by a bicubic filter, blurred, the true large picture, and "
     "the error of the filter, which lies along the edges.")

# %% [markdown]
# The error is all at the edges. The filter does not know that solids have sharp ones.
#
# ## Seven channels
#
# The latents of this model are not 8 but 4 times smaller than the picture.
#
# **Predict:** the large picture has 128 x 128 pixels. Which other picture has the size of its latent?

# %%
latent = sd.config.vae.scale * sd.vae.encode(large[None]).mean
print(f"f = {sd.config.vae.factor}: latent {list(latent.shape[1:])}, small picture {list(small.shape)}")
assert latent.shape[1:3] == small.shape[:2]
print("first kernel:", list(sd.unet.module.conv_in.kernel.shape), "= height, width, inputs, outputs")

# %% [markdown]
# The small picture's. So the two fit side by side, cell by pixel, and no network has to bring the small picture into
# latent form: the UNet sees $[\,\text{noisy latent: 4},\ \text{small picture: 3}\,]$, raw colours among latents. The
# released upscaler is built the same:

# %%
released = x4_upscaler()
print(f"{'':<20}{'f':>3}{'inputs':>8}   self-attention left out, by level")
for name, c in (("SD 1.5", sd1()), ("x4 upscaler", released), ("ours", sd.config)):
    print(f"{name:<20}{c.vae.factor:>3}{c.unet.in_channels:>8}   {c.unet.cross_only}")
assert released.vae.factor == sd.config.vae.factor == 4 and released.unet.in_channels == 7

# %% [markdown]
# Self-attention is left out where the maps are large, since it costs the square of their size (lesson 1) and a small
# picture says already what belongs where. That also lets the model work at sizes that it was not trained on.
#
# A VAE of its own needs a scale of its own: latents should vary by about 1, as the noise does. SD 1.5 multiplies by
# 0.18215. Ours and the released upscaler's:

# %%
several = np.stack([pair(i)[1] for i in range(6)])
raw = np.asarray(sd.vae.encode(several).mean)
scale = sd.config.vae.scale
print(f"ours: latents deviate by {raw.std():.2f}; times {scale:.4f} by {scale * raw.std():.2f}")
print(f"released: times {released.vae.scale}, so they deviate by about {1 / released.vae.scale:.0f} before")
assert 0.7 < scale * raw.std() < 1.4

# %% [markdown]
# ## Noise on the small picture
#
# In training, the small pictures were made from the large ones, always in one way. A network would learn to undo
# exactly that, and stumble over pictures from elsewhere, which are blurred or compressed in ways of their own. So the
# small picture is noised too, by a random amount, and the network is *told how much*: a number from 0 to 350, a
# timestep of a noise schedule kept for this alone.
#
# **Predict:** from which level on can you no longer say what the picture shows?

# %%
a_small = diffusion.alphas(sd.config.low_res)
keys = samplers.image_keys(0, 0, 1)
small_noise = samplers.noise(keys, request.SMALL, small.shape)  # [1, 32, 32, 3]
levels = (0, 20, 100, 200, 350)


def noised(picture, level):
    return np.sqrt(a_small[level]) * picture[None] + np.sqrt(1 - a_small[level]) * small_noise


for level in levels:
    print(f"level {level:3}: {np.sqrt(a_small[level]):.3f} of the picture, {np.sqrt(1 - a_small[level]):.3f} of noise")
show(plots.pictures([noised(small, level)[0] for level in levels], [f"level {level}" for level in levels]),
     "The small picture at five levels of noise: clear at 0, grainy at 100, at 350 only the coarsest patches left.")

# %% [markdown]
# How does one tell a network a number? The level is a *class*: row number `level` of a learnt table is added to the
# embedding of the timestep, which reaches every residual block.

# %%
table = np.asarray(sd.unet.module.class_embedding.embedding[...])
print("the table:", list(table.shape))
t, text = jnp.array([500]), sd.text_encoder(sd.tokenizer([words]))
sees = jnp.concatenate([latent, noised(small, 200)], axis=-1)
told = {level: sd.unet(sees, t, text, jnp.array([level])) for level in (200, 0)}
apart = float(jnp.sqrt(jnp.mean((told[200] - told[0]) ** 2)))
print(f"the same input, told level 200 or level 0: the answers are {apart:.3f} apart")
assert table.shape[0] == 1000 and apart > 0

# %% [markdown]
# The table has a row for each of the schedule's 1000 levels. Only those up to 350 are ever used in training; in the
# others nothing was learnt, and the package refuses a higher level.
#
# ## By hand
#
# The loop is that of lesson 9. Beside the latent stands the noised small picture, the same in every step, and the level
# goes in as the class. The prediction is $v$ (lesson 5), as in the released upscaler.

# %%
steps, guidance = 20, sd.config.guidance
assert sd.config.diffusion.prediction == released.diffusion.prediction == "v"


def drawn(x, beside, level, words, steps=steps):
    """The latent that a walk from the noise x [1, h, w, 4] ends at, with `beside` [1, h, w, 3] in sight."""
    texts = sd.text_encoder(sd.tokenizer(["", words]))
    plan = samplers.ddim_plan(sd.config.diffusion, steps)
    for t, a, a_next in zip(plan.t, plan.a, plan.a_next):
        sees = jnp.concatenate([x, beside], axis=-1)
        empty, text = jnp.split(
            sd.unet(jnp.concatenate([sees, sees]), jnp.array([t, t]), texts, jnp.array([level, level])), 2
        )
        v = diffusion.guide(empty, text, guidance)
        x0, eps = diffusion.split_prediction(v, x, a, "v")
        x = jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps
    return x


noise = samplers.noise(keys, 0, (*small.shape[:2], 4))
ours = sd.to_pictures(drawn(noise, noised(small, 20), 20, words))
theirs = sd.upscale(words, small, noise_level=20, steps=steps, seed=0)
print(f"largest difference of a pixel: {np.abs(ours - theirs).max():.1e}")
assert np.abs(ours - theirs).max() < 1e-3

# %% [markdown]
# ## Is it better than a filter?
#
# Six scenes that training never saw, and two numbers. PSNR says how near the picture is to the true large one, pixel by
# pixel. *Sharpness* says how steep its edges are: we take the pixels where the truth steps by more than a quarter of
# its range to the pixel beside it, and compare the mean step there; 1 is as steep as the truth.
#
# **Predict:** does the filter win one of them?

# %%


def sharpness(picture, truth):
    """The mean step over the truth's edges, as a share of the truth's own."""
    steps_of = lambda p: np.abs(np.diff(p, axis=1)).max(axis=-1)
    edge = steps_of(truth) > 0.5
    return float(steps_of(picture)[edge].mean() / steps_of(truth)[edge].mean())


scores, steep, shown = [], [], []
for i in range(6):
    words_i, large_i, small_i = pair(i)
    plain = np.clip(np.asarray(jax.image.resize(small_i, large_i.shape, "cubic")), -1, 1)
    upscaled = sd.upscale(words_i, small_i, steps=steps, seed=0)[0]
    scores.append((psnr(plain, large_i), psnr(upscaled, large_i)))
    steep.append((sharpness(plain, large_i), sharpness(upscaled, large_i)))
    shown.append((plain, upscaled, large_i))
scores, steep = np.array(scores), np.array(steep)
for k, name in enumerate(("bicubic", "ours")):
    print(f"{name:<8} PSNR {scores[:, k].round(1)} dB, mean {scores[:, k].mean():.1f};"
          f" sharpness {steep[:, k].round(2)}, mean {steep[:, k].mean():.2f}")
assert steep[:, 1].mean() > 1.2 * steep[:, 0].mean()
assert scores[:, 1].mean() > scores[:, 0].mean() + 1
show(plots.pictures([p for row in zip(*shown[:4]) for p in row],
                    [f"{name}{f', {scores[i, k]:.1f} dB' if k < 2 else ''}"
                     for k, name in enumerate(("bicubic", "ours", "the truth")) for i in range(4)], columns=4),
     "Four scenes in three rows: blurred by the bicubic filter, drawn by the upscaler with sharp edges, and the truth.")

# %% [markdown]
# The filter wins neither, but look at what its error consists of. Bicubic is hardly wrong where nothing is to be seen,
# and nowhere right at an edge; the upscaler decides where the edge runs, and is off by a little in between. An early
# upscaler of ours was 2.4 dB *behind* the filter, hardly by its edges (a squared error of 0.0050 there, the filter's
# 0.0043), but by being off by a little everywhere else (0.0010 against 0.00003, `weights/HISTORY.md`): flat places are
# five pixels of six, and the filter has them for nothing. That is a common trap when super-resolution is measured: the
# eye looks at edges, and to the decibel all pixels are alike.
#
# ## The first guess and the last
#
# At every step the network foresees the clean picture. At the first, where its latents are nothing but noise, it has
# only the small picture to go by, and says the *mean* of all large ones that this could be.
#
# **Predict:** is the first guess, or the picture after the last step, nearer to the truth?

# %%
foreseen = [[s.preview()[0] for s in sd.upscale_steps(pair(i)[0], pair(i)[2], steps=steps, seed=0)
             if s.step in (0, steps // 2, steps - 1)] for i in range(6)]
at = (1, steps // 2 + 1, steps)
near, steep = (np.array([[f(p, pair(i)[1]) for p in row] for i, row in enumerate(foreseen)]) for f in (psnr, sharpness))
for k, step in enumerate(at):
    print(f"step {step:<3} PSNR {near[:, k].mean():.1f} dB, sharpness {steep[:, k].mean():.2f}")
assert near[:, 0].mean() > near[:, -1].mean()
detail = np.s_[40:104, 30:94]
show(plots.pictures([p[detail] for p in (*foreseen[3], pair(3)[1])], [*(f"step {step}" for step in at), "the truth"],
                    side=2.2),
     "A part of the fourth scene as it was foreseen at the first step, half way and at the last, and the truth.")

# %% [markdown]
# It grows worse on the way, and that is how sampling should be. It draws *one* of the pictures that might be, and a
# draw is as far from their mean as the truth is: by a perfect sampler twice the mean's squared error, 3 dB. Where a
# small picture leaves much open, the mean is a blur and a draw is sharp, and no method has both, the least error and
# pictures that look like true ones (arXiv:1711.06077). Our world leaves little open; most of what is added here on the
# way is what the network is unsure of. So an upscaler that is too far off is mended at its *first* steps: 2,500 steps
# of further training, in which the noisy timesteps came more often, took the one before this from 2.5 dB above bicubic
# to 3.4 (`weights/HISTORY.md`; how much more steps alone would have done was not measured).
#
# What did the words do? The small picture says nearly all of it, unless they are wrong:

# %%
for said in (words, "", "a green cone at night"):
    result = sd.upscale(said, small, steps=steps, seed=0)[0]
    print(f"{said or 'no words':<45} {psnr(result, large):.1f} dB")

# %% [markdown]
# ## The noise level as a dial
#
# **Predict:** which level comes nearest to the truth if the small picture is exact? And if it is damaged?

# %%
damaged = np.clip(small + 0.15 * np.random.default_rng(0).standard_normal(small.shape), -1, 1).astype(np.float32)
sweep = {name: [sd.upscale(words, seen, noise_level=level, steps=steps, seed=0)[0] for level in levels]
         for name, seen in (("exact", small), ("damaged", damaged))}
found = {name: [psnr(p, large) for p in pictures] for name, pictures in sweep.items()}
for name, values in found.items():
    print(f"{name:<8}", "  ".join(f"{level}: {v:.1f} dB" for level, v in zip(levels, values)))
show(plots.pictures([*sweep["exact"], *sweep["damaged"]],
                    [f"{name}, level {level}" for name in sweep for level in levels], columns=5),
     "Two rows of the same scene made large at noise levels 0 to 350: from the exact small picture above, from a small "
     "picture with grain below. The higher the level, the freer the drawing; the grain is gone at every level.")
assert found["exact"][0] > found["exact"][-1]

# %% [markdown]
# A low level says: believe every pixel. A high level says: take this as a hint, and much of the picture is left to the
# network. In our world that costs more than it gains: to the damaged picture a level of 20 does a little good, and not
# more, since the network knows what a floor looks like and passes over grain at any level. For pictures of a richer
# world the default is 20; where a program drew or compressed them, people take 100.
#
# Is it the number that does this, or the noise itself, which the network can see? Lie to it:

# %%
honest, lied = (sd.to_pictures(drawn(noise, noised(small, 200), told, words))[0] for told in (200, 0))
print(f"noised to 200 and told 200: {psnr(honest, large):.1f} dB; told 0: {psnr(lied, large):.1f} dB;"
      f" largest difference of a pixel {np.abs(honest - lied).max():.2f}")
assert not np.array_equal(honest, lied)
show(plots.pictures([noised(small, 200)[0], honest, lied], ["what it sees", "told 200", "told 0"], side=2.2),
     "The small picture at noise level 200; what is drawn when the network is told so, and when it is told that there "
     "is no noise.")

# %% [markdown]
# The drawings differ, so the number is heard. But it is not what takes the grain away: the network reads the level off
# the picture as well, and told a lie it still does well (here even better; one picture with one noise is no
# measurement). An input that the others already imply is learnt last. Keep this in mind when you debug a conditioning
# of your own: that a network *gets* a number does not mean that it needs it, and the way to know is to lie.
#
# ## Larger than memory: tiles
#
# How much memory does a picture need? We ask the compiler, which knows before anything has run: first for the UNet on
# small pictures of 32, 64 and 128 pixels, then for the decoder.

# %%


def megabytes(network, method, *shapes):
    """Memory for what lies between the input and the output of a compiled network, without its weights."""
    call = jax.jit(lambda state, *args: getattr(nnx.merge(network.graph, state), method)(*args))
    args = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return call.lower(network.state, *args).compile().memory_analysis().temp_size_in_bytes / 1e6


needs = []
for side in (32, 64, 128):
    of_unet = megabytes(sd.unet, "__call__", ((2, side, side, 7), jnp.float32), ((2,), jnp.int32),
                        ((2, *text.shape[1:]), jnp.float32), ((2,), jnp.int32))
    of_decoder = megabytes(sd.vae, "decode", ((1, side, side, 4), jnp.float32))
    needs.append((of_unet, of_decoder))
    print(f"{side:3} to {4 * side:3} pixels: UNet {of_unet:7.0f} MB, decoder {of_decoder:7.0f} MB")
assert max(needs[2]) > 8 * max(needs[0])

# %% [markdown]
# Twice the side is four times the places, and convolutions follow those. It is sixteen times the pairs of places, and
# attention would follow these, did it not take the keys in blocks (lesson 13). So a large picture is cut into tiles,
# each is drawn on its own, and memory is that of one tile however large the picture is. That is easily said. Let us
# look at the seams: a picture of 60 x 32 small pixels, in two tiles of 32 that overlap by 4.

# %%
scene = scene_at(3, "test", 0, 2)
wide = render(scene, 256)[0].astype(np.float32)[None, 96:224, 8:248] / 127.5 - 1.0
small_wide = shrunk(wide)[0]
side, overlap, few = 32, 4, 10
print("tiles:", [tuple(corner) for corner in tiling.tiles(*small_wide.shape[:2], side, overlap)])

noise_wide = samplers.noise(keys, 0, (*small_wide.shape[:2], 4))
beside_wide = np.sqrt(a_small[20]) * small_wide[None] + np.sqrt(1 - a_small[20]) * samplers.noise(
    keys, request.SMALL, small_wide.shape
)


def tile(left, start=None):
    """One tile of the wide picture, [128, 128, 3]."""
    place = np.s_[:, :, left : left + side]
    x = noise_wide[place] if start is None else start
    return sd.to_pictures(drawn(x, beside_wide[place], 20, describe(scene), few))[0]


first, second = tile(0), tile(28)
stranger = tile(28, samplers.noise(samplers.image_keys(1, 0, 1), 0, (side, side, 4)))  # another noise

# %% [markdown]
# Three ways to put two tiles together: cut in the middle of the overlap, with a noise of its own for each tile; the
# same, with both noises cut from one; and that, blended, each tile fading out over the overlap.
#
# **Predict:** order the three by how well the seam can be seen.

# %%
middle = 4 * 30  # pixels
cut = lambda right: np.concatenate([first[:, :middle], right[:, middle - 4 * 28 :]], axis=1)

rise = np.minimum(np.arange(4 * side) + 1, 4 * overlap)  # up over the overlap, then level
weight = np.minimum(rise, rise[::-1])[None, :, None].astype(np.float32)
total, weights = np.zeros((128, 240, 3)), np.zeros((1, 240, 1))
for left, drawing in ((0, first), (28, second)):
    place = np.s_[:, 4 * left : 4 * (left + side)]
    total[place] += weight * drawing
    weights[place] += weight
blended = total / weights

ways = {"cut, two noises": cut(stranger), "cut, one noise": cut(second), "blended, one noise": blended}


def seam(picture):
    """How much larger the step over the seam is than the steps beside it, in pixel values of a range of 2."""
    step = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))  # step[k] is from column k to k + 1
    return float(step[middle - 1] - np.delete(step[middle - 9 : middle + 8], 8).mean())


for name, result in (*ways.items(), ("the truth", wide[0])):
    print(f"{name:<20} seam {seam(result):+.4f}")
assert seam(ways["blended, one noise"]) < seam(ways["cut, two noises"])
close = np.s_[:, middle - 32 : middle + 32]
show(plots.pictures([r for p in ways.values() for r in (p, np.abs(p - wide[0]).max(axis=-1)[close])],
                    [t for name in ways for t in (name, "error about the seam")], columns=2, side=2.4),
     "The wide picture put together in three ways, and beside each its error near the seam: with a hard cut a straight "
     "line can run down the middle, with blending there is none.")

# %% [markdown]
# The number orders them as one would guess, but even the worst is hardly a seam, of a range of 2: the small picture
# says nearly all, so that one noise or two makes little difference. A tile's colours also depend on what else is in it,
# through its norms; blending removes whatever step there is, which is why it is the safe way.
#
# The package does the third. With its own tiles and weights (which fall off at all four sides) it gives our picture:

# %%
theirs = sd.upscale(describe(scene), small_wide, tile=side, steps=few, seed=0)[0]
print(f"largest difference of a pixel: {np.abs(blended - theirs).max():.1e}")
assert np.abs(blended - theirs).max() < 1e-3

whole = sd.upscale(describe(scene), small_wide, tile=64, steps=few, seed=0)[0]
plain = np.clip(np.asarray(jax.image.resize(small_wide, wide[0].shape, "cubic")), -1, 1)
print(f"bicubic {psnr(plain, wide[0]):.1f} dB, two tiles {psnr(theirs, wide[0]):.1f} dB, "
      f"in one piece {psnr(whole, wide[0]):.1f} dB")
assert abs(psnr(theirs, wide[0]) - psnr(whole, wide[0])) < 2

# %% [markdown]
# Tiles cost next to nothing here. (The wide picture is a close-up: its solids, both small ones, are drawn twice as
# large as such are in training.)
#
# A tile cannot know what its neighbour invents. It agrees with it as far as both see the same small picture and begin
# in the same noise; where much is invented, at high noise levels, overlap and blending have more to hide.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/11_upscaling.py`.
#
# **1.** What the network sees, `[b, h, w, 7]`: the noisy latent `x` `[b, h, w, 4]` and the picture `small`
# `[b, h, w, 3]`, on which there should be as much of `noise` as level `level` says; `a` is the schedule's table.


# %%
def seven_channels(x, small, noise, a, level):
    return ...


exercise.check_seven_channels(seven_channels)

# %% [markdown]
# **2.** Where tiles of `side` pixels begin along a row of `length` pixels, so that they cover it, none sticks out,
# neighbours share `overlap` pixels or more, and there are as few as possible. Where `length` is `side`, that is `[0]`.


# %%
def tile_starts(length, side, overlap):
    return ...


exercise.check_tile_starts(tile_starts)

# %% [markdown]
# **3.** Two tiles `left` and `right`, `[h, side, 3]` each, share their last and first `overlap` columns. Join them to
# `[h, 2 side - overlap, 3]`; in the overlap the weight should go over from the one to the other in a straight line.


# %%
def joined(left, right, overlap):
    return ...


exercise.check_joined(joined)
