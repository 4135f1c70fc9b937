# %% [markdown]
# # 0. The whole in one picture
#
# *Seed lines 5 and 9: start from pure noise and a text; the model forms the picture from the noise according to the
# text. Noisy latents, timestep and text embedding go into the UNet, the noise prediction comes out.*
#
# One call makes a picture from a sentence. This lesson makes that call, then opens it: every array between the
# sentence and the picture is taken out and looked at once. Each of them has a lesson of its own later. At the end
# stands a map of the package, with the length of every file, so that you know how much there is to read.
#
# The weights are those that ship here: a small model that knows one small world, coloured solids on a floor. The
# released Stable Diffusion goes through the same lines of code; only the sizes differ, and we print both.
#
# About 30 seconds and 1 GB on two cores.

# %%
import inspect

import jax.numpy as jnp
import numpy as np
from checks import whole as exercise
from lesson import show

import sdjax
from sdjax import attention, clip, config, diffusion, layers, pipeline, plots, request, samplers, tokenizer, unet, vae

# %% [markdown]
# ## One call

# %%
sd = sdjax.load("../weights/tiny")
prompt, steps, scale, seed = "a red sphere", 20, sd.config.guidance, 0
pictures = sd.txt2img(prompt, steps=steps, guidance_scale=scale, seed=seed)
print("pictures:", pictures.shape, pictures.dtype, f"from {pictures.min():.2f} to {pictures.max():.2f}")
assert pictures.shape == (1, 128, 128, 3) and np.abs(pictures).max() <= 1

# %% [markdown]
# A batch of one picture, 128 by 128, three colours from -1 (none of it) to 1 (all of it). This is it:

# %%
show(plots.pictures([pictures[0]], [prompt], side=2.4), f"The picture that the model drew for the prompt {prompt}.")

# %% [markdown]
# Now the same once more, with everything on the way kept. Beside each line stands the file of the package that did it.

# %%
ids = sd.tokenizer(["", prompt])  # tokenizer.py
text = sd.text_encoder(ids)  # clip.py
noise = samplers.noise(samplers.image_keys(seed, 0, 1), 0, (16, 16, 4))  # samplers.py
walk = list(sd.txt2img_steps(prompt, steps=steps, guidance_scale=scale, seed=seed, attention=True))  # unet.py
latent = walk[-1].latents
picture = np.asarray(sd.vae.decode(latent / sd.config.vae.scale))[0]  # vae.py
for name, array in (("ids", ids), ("text", text), ("noise", noise), ("latent", latent), ("picture", picture)):
    print(f"{name:8}{tuple(array.shape)}")

# %% [markdown]
# And this is the whole, with the arrays that were just computed. Above, the sentence becomes numbers; below, noise
# becomes a latent, and the latent a picture. The two meet in the UNet, which is asked once a step.

# %%
drawing = plots.figure(9.6, 4.4)
drawing.set_layout_engine("none")


def place(image, title, left, bottom, width, height):
    axes = drawing.add_axes((left, bottom, width, height), xticks=[], yticks=[])
    axes.imshow(np.clip((image + 1) / 2, 0, 1) if image.ndim == 3 else image, aspect="auto")
    axes.set_title(title, fontsize=9)
    return axes


def arrow(axes, start, end):
    axes.annotate("", xy=end, xytext=start, xycoords="figure fraction", textcoords="figure fraction",
                  arrowprops={"arrowstyle": "-|>", "linewidth": 1.5})


def three(z):
    return np.asarray(z[0, :, :, :3]) / 3  # three of the four channels, as if they were colours


top = place(ids[1].reshape(7, 11) / 800, "tokenizer: 77 ids", 0.22, 0.6, 0.13, 0.3)
place(np.asarray(text[1]).T, "text encoder: 77 x 128", 0.42, 0.6, 0.24, 0.3)
drawing.text(0.02, 0.73, f'"{prompt}"', fontsize=13)
drawing.text(0.7, 0.68, "cross-attention:\nthe UNet reads this\nat every step", fontsize=10)
arrow(top, (0.16, 0.75), (0.21, 0.75))
arrow(top, (0.36, 0.75), (0.41, 0.75))
drawing.text(0.02, 0.27, f"seed {seed}", fontsize=13)
stops = [("noise, 16 x 16 x 4", noise), *((f"after {n} steps", walk[n - 1].latents) for n in (7, 14, 20))]
for i, (title, z) in enumerate(stops):
    left = 0.13 + 0.165 * i
    place(three(z), title, left, 0.12, 0.12, 0.3)
    arrow(top, (left - 0.04, 0.27), (left - 0.005, 0.27))
    if i:
        arrow(top, (left - 0.0225, 0.53), (left - 0.0225, 0.3))
        drawing.text(left - 0.0225, 0.2, "UNet", fontsize=8, ha="center")
top.annotate("", xy=(0.27, 0.53), xytext=(0.605, 0.53), xycoords="figure fraction", textcoords="figure fraction",
             arrowprops={"arrowstyle": "-", "linewidth": 1.5})
arrow(top, (0.54, 0.59), (0.54, 0.53))
place(picture, "VAE: 128 x 128 x 3", 0.8, 0.07, 0.18, 0.4)
arrow(top, (0.755, 0.27), (0.79, 0.27))
show(drawing, "The prompt becomes 77 ids and these a matrix of 77 by 128; below, noise of 16 x 16 x 4 turns into a "
     "latent over 20 steps, each of which reads the matrix, and the VAE turns the latent into a picture.")

# %% [markdown]
# ## Text becomes numbers
#
# **Predict:** the prompt has three words. How many numbers does the tokenizer give?

# %%
print("words:", sd.tokenizer.tokens(prompt))
print("ids:  ", ids[1, :10], "...")
assert ids[1].size == 77

# %% [markdown]
# Always 77: a start mark, the words, an end mark, and the end mark again until the row is full. Lesson 3 builds this
# from nothing.
#
# The text encoder turns each id into a vector that knows about the words before it. Here a vector has 128 numbers; in
# the released models it is wider.

# %%
for preset in (sd.config, config.sd1(), config.sd2_base()):
    print(f"{preset.name:10}{preset.text.context_length} x {preset.text.width}")
assert text.shape[1:] == (77, 128)

# %% [markdown]
# ## A seed becomes noise
#
# The picture starts as random numbers in a latent, a small picture of four channels. The seed decides them and nothing
# else does, so that the same seed begins with the same noise on every machine.
#
# **Predict:** if we decode this noise as if it were a finished latent, what does the picture look like?

# %%
channels = [np.asarray(noise[0, :, :, i]) for i in range(4)]
show(plots.pictures([*channels, sd.to_pictures(noise)[0]], [f"noise, channel {i}" for i in range(4)] + ["decoded"]),
     "Four grainy maps of 16 by 16, and what the VAE makes of them: colours in blots, with no solid and no floor.")
assert np.array_equal(noise, samplers.noise(samplers.image_keys(seed, 0, 1), 0, (16, 16, 4)))

# %% [markdown]
# ## The UNet is asked
#
# Three things go in: the noisy latent, the timestep (how noisy it is), and the text. One thing comes out, of the
# latent's own shape. We ask for two texts at once, the empty one and ours: the difference is what the words change.

# %%
t = walk[0].t
prediction = sd.unet(jnp.concatenate([noise, noise]), jnp.array([t, t]), text)
print("timestep:", t, " latents in:", (2, *noise.shape[1:]), " prediction out:", prediction.shape)
print("how far the words move it:", f"{jnp.abs(prediction[1] - prediction[0]).mean():.3f} on average")
assert prediction[0].shape == noise[0].shape

# %% [markdown]
# What the network predicts stands for two things at once: which part of its input is noise, and which picture would
# remain without it. Lesson 5 has the arithmetic.
#
# The two predictions are combined ("guidance", lesson 8). Our own line and the package's snapshot of the first step
# agree:

# %%
a = diffusion.alphas(sd.config.diffusion)[t]
kind = sd.config.diffusion.prediction
guided = prediction[:1] + scale * (prediction[1:] - prediction[:1])
x0, eps = diffusion.split_prediction(guided, noise, a, kind)
assert np.allclose(x0, walk[0].x0, atol=1e-3)

# %% [markdown]
# ## Twenty times
#
# Each step takes out some noise and asks again.

# %%
chosen = [walk[i] for i in (0, 3, 7, 12, 19)]
show(plots.pictures(
    [*(s.pictures()[0] for s in chosen), *(s.preview()[0] for s in chosen)],
    [f"after step {s.step + 1}" for s in chosen] + [f"foreseen at t = {s.t}" for s in chosen], columns=5),
    f"Above, the latents of five steps decoded, from noise to {prompt}; below, the picture foreseen at each of them.")

# %% [markdown]
# The end of the walk is what the one call gave. The call runs all steps in one compiled program, so that the last
# digits may differ:

# %%
print("largest difference of a pixel, of a range of 2:", float(np.abs(np.clip(picture, -1, 1) - pictures[0]).max()))
assert np.allclose(np.clip(picture, -1, 1), pictures[0], atol=1e-3)

# %% [markdown]
# ## Where the words went
#
# In the UNet every place of the latent looks at the 77 tokens and takes from them what it needs. How much it looks at
# each is a number, and these numbers can be taken out: `attention=True` asked for them. In the layers of 8 by 8 places
# we take their mean over all steps.

# %%
fine = [p for s in walk for p in s.attention.values() if p.shape[2] == 64]
looks = np.mean([np.asarray(p[0]).mean(axis=0) for p in fine], axis=0)  # [64 places, 77 tokens]
assert np.allclose(looks.sum(axis=1), 1, atol=1e-5)  # every place shares out one look
words = ["start", *prompt.split(), "end"]
show(plots.pictures([picture, *(looks[:, i].reshape(8, 8) for i in range(len(words)))], ["picture", *words]),
     "The picture, and five maps of 8 by 8: how strongly each place looked at the start mark, at each word, and at the "
     "end mark. Each map has its own scale.")

# %% [markdown]
# Lesson 7 computes these maps by hand, and follows them over the steps.
#
# ## The latent becomes a picture
#
# **Predict:** how many numbers does the latent hold, and how many the picture?

# %%
print(f"latent {latent.size:,}, picture {picture.size:,}: {picture.size / latent.size:.0f} times as many")
assert picture.size == 48 * latent.size

# %% [markdown]
# The UNet worked on the smaller one, twice in each of 20 steps. The VAE is needed only once, at the end. Lesson 1
# measures what that saves, lesson 2 looks into the VAE.
#
# ## Does the picture show what was asked?
#
# The same text encoder was trained beside an image encoder, so that a caption and its picture point in one direction.
# The cosine of the two says how well they match (lesson 4).

# %%
asked = [prompt, "kırmızı bir küre", "a blue cube", "a yellow cone"]
for caption, match in zip(asked, sd.similarity(pictures, asked)[0]):
    print(f"{match:+.3f}  {caption}")

# %% [markdown]
# The second says *a red sphere* in Turkish; the small model reads both languages.
#
# ## How large is each part?
#
# **Predict:** which part holds most of the parameters?

# %%
parts = {"text encoder": sd.text_encoder, "UNet": sd.unet, "VAE": sd.vae}
total = sum(part.size for part in parts.values())
for name, part in parts.items():
    print(f"{name:14}{part.size:12,}  {part.size / total:5.0%}")
assert sd.unet.size > total / 2

# %% [markdown]
# ## A map of the package
#
# These are the files that were just used, in the order in which data meets them, and how many lines each has, comments
# and all.

# %%
story = [
    (tokenizer, "text to ids"), (clip, "ids to text embedding; picture to vector"),
    (diffusion, "noise schedule, eps / v / x0, guidance"), (unet, "noisy latent, timestep, text to prediction"),
    (attention, "where words meet places"), (samplers, "the walk from noise to latent"),
    (vae, "picture to latent and back"), (layers, "what the networks share"),
    (request, "checks what was asked"), (pipeline, "all of it together"), (config, "every size, with its source"),
]
lines = {module.__name__.split(".")[1]: len(inspect.getsource(module).splitlines()) for module, _ in story}
for (name, count), (_, role) in zip(lines.items(), story):
    print(f"{name + '.py':16}{count:4} lines  {role}")
print(f"{'together':16}{sum(lines.values()):4}")
assert max(lines.values()) < 500

# %% [markdown]
# No file takes longer than one sitting. Beside them stand six folders: `checkpoint` reads and writes weights,
# `toyworld` makes pictures with captions, `training` trains every part on them, `evaluate` measures the result, `cli`
# is the command `sdjax`, and `data` holds the vocabulary of CLIP.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/00_the_whole.py`.
#
# **1.** The shape of the latent of one picture of `height` by `width` pixels, with a VAE of `factor` and `channels`.
# Arrays here have the channels last.


# %%
def latent_shape(height, width, factor, channels):
    return ...


exercise.check_latent_shape(latent_shape)

# %% [markdown]
# **2.** How many latents does the UNet see in all, for one picture? With guidance it sees two at every step, one with
# the text and one without. A `guidance_scale` of 1 means that there is none.


# %%
def seen_by_unet(steps, guidance_scale):
    return ...


exercise.check_seen_by_unet(seen_by_unet)

# %% [markdown]
# **3.** The files `unet`, `tokenizer`, `vae` and `clip`, in the order in which a prompt becomes a picture.


# %%
def order():
    return ...


exercise.check_order(order)
