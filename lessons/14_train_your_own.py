# %% [markdown]
# # 14. Train your own
#
# *Seed line 4: in training the caption is given beside the noisy picture, so that the model learns to denoise towards
# what the caption says.*
#
# From nothing to a Stable Diffusion that draws what it is asked: pictures and captions, a tokenizer, an autoencoder,
# CLIP, a denoiser, and the pipeline around them. It is the recipe of the small model, stage by stage, on a world of
# eight captions at 32 pixels, so that it is done in a minute or two. Beside each stage stands the command that does the
# same at full size; all of them together are `make weights`, about an hour and a half at most on two cores
# (`weights/README.md` says what comes of it, `weights/HISTORY.md` how the weights that ship were made, whose denoiser
# is wider, by earlier recipes and many more steps).
#
# About 70 seconds and 1.6 GB on two cores.

# %%
import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from checks import training as exercise
from flax import nnx
from lesson import show

from sdjax import diffusion, plots
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import DiffusionConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import render, scene_at
from sdjax.training.loop import Recipe, fit
from sdjax.unet import UNet
from sdjax.vae import Posterior

temporary = tempfile.TemporaryDirectory()
run = Path(temporary.name)

# %% [markdown]
# ## 1. Pictures and captions
#
# One large solid by day, in four colours and two shapes. The place, the turn and the shadow differ from scene to scene;
# the caption does not say them, so that they are left to the noise.

# %%
COLOURS, SHAPES, COUNT = ("red", "green", "blue", "yellow"), ("sphere", "cone"), 400


def wanted(scene):
    solid = scene.solids[0]
    return solid.colour in COLOURS and solid.shape in SHAPES and solid.size == "large" and scene.time == "day"


candidates = (scene_at(0, "train", i, count=1) for i in range(100_000))
scenes = [scene for _, scene in zip(range(COUNT), filter(wanted, candidates))]
pictures = np.stack([render(scene, 32)[0] for scene in scenes]).astype(np.float32) / 127.5 - 1.0
captions = [f"a {scene.solids[0].colour} {scene.solids[0].shape}" for scene in scenes]
kinds = sorted(set(captions))
print(Counter(captions))
assert len(kinds) == 8 and len(pictures) == COUNT
one_each = [captions.index(kind) for kind in kinds]
show(plots.pictures(pictures[one_each], kinds, side=1.1),
     "Eight renders of 32 pixels, one for each caption: spheres and cones in red, green, blue and yellow.")

# %% [markdown]
# At full size: 20,000 scenes of 128 pixels with one or two solids, day and night, captions in two languages.
#
# ## 2. The tokenizer
#
# Merges are learned from the captions themselves (lesson 3). `sdjax train tokenizer` learns 200 from 40,000 captions.

# %%
tokenizer = Tokenizer.learn(captions, 20, context_length=12)
ids = tokenizer(captions)
print("a red cone:", tokenizer(["a red cone"])[0])
assert ids.shape == (COUNT, 12)

# %% [markdown]
# ## 3. The autoencoder
#
# `sdjax train vae` trains the convolutional one of lesson 2, some ten minutes. A minute allows less, so here is a
# small autoencoder: cut the picture into squares of 4 x 4 pixels, 48 numbers each, and keep of each its coordinates
# along the 8 directions in which such squares differ most. Those directions need no training: they are the first
# principal components. The best *linear* autoencoder is a singular value decomposition.
#
# **Predict:** 48 numbers become 8. How much of the variance is lost?

# %%
F, Z = 4, 8


class Patches(nnx.Module):
    """Squares of F x F pixels to Z numbers, and back: the two methods of `sdjax.vae.VAE`."""

    def __init__(self, pictures, config):
        self.config = config
        squares = self.cut(pictures).reshape(-1, 3 * F * F)
        self.mean = nnx.Param(squares.mean(0))
        self.directions = nnx.Param(np.linalg.svd(squares - squares.mean(0), full_matrices=False)[2][:Z].T)

    def cut(self, pictures):
        b, h, w, _ = pictures.shape
        return pictures.reshape(b, h // F, F, w // F, F, 3).swapaxes(2, 3).reshape(b, h // F, w // F, 3 * F * F)

    def encode(self, pictures):
        z = (self.cut(pictures) - self.mean[...]) @ self.directions[...]
        return Posterior(z, jnp.full_like(z, -30.0))  # no spread to speak of

    def decode(self, z):
        b, h, w, _ = z.shape
        squares = (z @ self.directions[...].T + self.mean[...]).reshape(b, h, w, F, F, 3)
        return squares.swapaxes(2, 3).reshape(b, h * F, w * F, 3)


vae_config = VAEConfig(channels=(1, 1, 1), latent_channels=Z)
coder = VAENetwork.of(Patches(pictures, vae_config))
latents = np.asarray(coder.encode(pictures).mean)
rebuilt = np.asarray(coder.decode(latents))
lost = np.mean((rebuilt - pictures) ** 2) / np.var(pictures)
print(f"{pictures[0].size} numbers become {latents[0].size}; {lost:.2%} of the variance is lost, "
      f"PSNR {10 * np.log10(4 / np.mean((rebuilt - pictures) ** 2)):.1f} dB")
assert pictures[0].size == 6 * latents[0].size and lost < 0.06

# %% [markdown]
# And the number that Stable Diffusion calls 0.18215: one over the standard deviation, so that the denoiser sees latents
# of variance 1.

# %%
vae_config = dataclasses.replace(vae_config, scale=float(1 / latents.std()))
x0 = latents * vae_config.scale
print(f"scale {vae_config.scale:.3f}, variance {np.var(x0):.3f}")
assert abs(np.var(x0) - 1) < 1e-3

# %% [markdown]
# ## 4. CLIP
#
# A text tower and a picture tower, trained so that a picture is nearest to its own caption (lesson 4; `sdjax train
# clip`). Both trainings of this lesson, and all of the package, use one loop, `training.loop.fit`: here AdamW (in `make
# weights` VAE, CLIP and denoiser learn by Muon), a learning rate that rises, stays and falls, an average of the
# weights, a checkpoint in a folder. The batch of a step is a function of the step, which is why a run that was stopped
# goes on as if it had not been.
#
# With eight captions a batch has several pictures for each, so the target is not one caption but all equal ones alike.

# %%
text_config = TextConfig(vocab_size=tokenizer.vocab_size, context_length=12, width=64, layers=2, heads=2,
                         activation="gelu", projection=32, end_id=tokenizer.end_id)
image_config = VisionConfig(image_size=32, patch=8, width=64, layers=2, heads=2, activation="gelu", projection=32)
towers, clip_start = nnx.split(nnx.List([TextEncoder(text_config, rngs=nnx.Rngs(1)),
                                         ImageEncoder(image_config, rngs=nnx.Rngs(2))]))
kind_of = np.array([kinds.index(caption) for caption in captions])
rows = lambda step, n: np.random.default_rng([0, step]).integers(COUNT, size=n)


def clip_batch(step):
    chosen = rows(step, 32)
    return {"ids": ids[chosen], "pictures": pictures[chosen], "kind": kind_of[chosen]}


def clip_loss(parameters, frozen, batch, key):
    text, image = nnx.merge(towers, parameters)
    a, b = text.embed(batch["ids"]), image(batch["pictures"])
    a, b = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    logits = 10.0 * a @ b.T
    same = batch["kind"][:, None] == batch["kind"][None, :]
    target = same / same.sum(1, keepdims=True)
    return -0.5 * jnp.mean(jnp.sum(target * (jax.nn.log_softmax(logits) + jax.nn.log_softmax(logits.T)), -1))


recipe = Recipe(steps=120, batch=32, learning_rate=2e-3, warmup=20, ema=0.95)
text, image = fit(recipe, towers, clip_start, clip_loss, clip_batch, run / "clip", name="clip")

# %% [markdown]
# Scenes that it never saw, from the test split, against all eight captions:

# %%
text_network, image_network = TextNetwork.of(text), Network.of(image)
fresh = [s for _, s in zip(range(40), filter(wanted, (scene_at(0, "test", i, count=1) for i in range(100_000))))]
shown = np.stack([render(s, 32)[0] for s in fresh]).astype(np.float32) / 127.5 - 1.0
said = np.array([kinds.index(f"a {s.solids[0].colour} {s.solids[0].shape}") for s in fresh])


def named(pictures):
    """The number of the caption that CLIP finds nearest to each picture."""
    a, b = np.asarray(image_network(pictures)), np.asarray(text_network.embed(tokenizer(kinds)))
    return np.argmax(a @ (b / np.linalg.norm(b, axis=-1, keepdims=True)).T, axis=-1)


right = int((named(shown) == said).sum())
print(f"CLIP finds the caption of {right} of {len(fresh)} fresh renders; by chance it would be {len(fresh) / 8:.0f}")
assert right > len(fresh) / 2

# %% [markdown]
# ## 5. The denoiser
#
# Now the heart, `sdjax train unet`. A step takes latents, captions, noise and timesteps, and asks for $v$. One caption
# in ten is left out, so that the same network also learns to draw without (guidance, lesson 8). The text encoder stays
# as CLIP left it: nine texts, counting the empty one, whose states are computed once.
#
# **Predict:** the loss is a squared error per latent value, and $v$ has variance 1. What is the loss before training?

# %%
unet_config = UNetConfig(in_channels=Z, out_channels=Z, channels=(32, 64), attention=(False, True), heads=(1, 2),
                         cross_only=(False, False), blocks=1, context_width=64, groups=8, linear_projection=True)
schedule = DiffusionConfig(prediction="v")
states = dict(zip(["", *kinds], np.asarray(text_network(tokenizer(["", *kinds])))))
graph, unet_start = nnx.split(UNet(unet_config, rngs=nnx.Rngs(3)))
DROP = 0.1


def unet_batch(step):
    rng = np.random.default_rng([1, step])
    chosen = rng.integers(COUNT, size=32)
    kept = ["" if rng.random() < DROP else captions[i] for i in chosen]
    return {"x0": x0[chosen], "text": np.stack([states[caption] for caption in kept])}


def unet_loss(parameters, frozen, batch, key):
    of_noise, of_time = jax.random.split(key)
    eps = jax.random.normal(of_noise, batch["x0"].shape)
    t = jax.random.randint(of_time, (len(eps),), 0, schedule.train_steps)
    x, target, weight = diffusion.training_pair(batch["x0"], eps, t, schedule)
    error = jnp.mean((nnx.merge(graph, parameters)(x, t, batch["text"]) - target) ** 2, axis=(1, 2, 3))
    return jnp.mean(weight * error)


assert not nnx.merge(graph, unet_start).conv_out.kernel.any()  # its last layer starts at zero, so it answers 0
draw = np.random.default_rng(0).standard_normal((32, *x0.shape[1:])).astype(np.float32)
_, v, weight = diffusion.training_pair(x0[:32], draw, jnp.arange(15, 1000, 31), schedule)
untrained = float(jnp.mean(weight * jnp.mean(v**2, axis=(1, 2, 3))))
print(f"loss of the untrained network, which answers 0: {untrained:.2f}")
assert 0.3 < untrained < 1.2

# %% [markdown]
# Near 1, less what the weights of the timesteps take off. Three times on the way we keep the averaged weights.

# %%
kept = {}
STEPS = 210
recipe = Recipe(steps=STEPS, batch=32, learning_rate=2e-3, warmup=50, ema=0.98, save_every=STEPS // 3)
denoiser = fit(recipe, graph, unet_start, unet_loss, unet_batch, run / "unet", name="unet",
               watch=lambda step, network: kept.update({step: network}))

steps, losses = np.loadtxt(run / "unet" / "loss.csv", delimiter=",").T
figure = plots.figure(5, 2.8)
axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log", title="the denoiser learns")
axes.plot(steps, losses)
show(figure, "The loss over the steps of the training, on a logarithmic axis: it falls fast at first, then slowly.")
print(f"loss of the first {steps[0]:.0f} steps {losses[0]:.3f}, of the last {losses[-1]:.3f}")
assert losses[-1] < 0.5 * losses[0]

# %% [markdown]
# ## 6. The whole
#
# The parts go into the same `StableDiffusion` as any weights, and its `txt2img` draws. Loss curves say little about
# pictures, so look: the same noise at three stages of the training.


# %%
def model(network):
    config = ModelConfig(name="mine", image_size=32, text=text_config, vision=image_config, vae=vae_config,
                         unet=unet_config, diffusion=schedule)
    return StableDiffusion(config, tokenizer, text_network, coder, Network.of(network), image_network)


stages = {step: model(network).txt2img(kinds, steps=10, sampler="dpmpp_2m", guidance_scale=3.0, seed=1)
          for step, network in kept.items()}
show(plots.pictures([p for drawn in stages.values() for p in drawn],
                    [kind[2:] if i == 0 else f"{step} steps" for i, step in enumerate(stages) for kind in kinds],
                    columns=8, side=1.0),
     "Three rows of eight pictures, a column for each caption, after a third, two thirds and all of the training: "
     "blots of colour draw together on a floor; the grain gets less.")

# %% [markdown]
# What is left is grain: a denoiser of so few steps leaves noise in. Raise `STEPS` where you have more time than that.
#
# Does it draw what it is asked? Our own CLIP may say, though it taught the denoiser and so is no independent judge (the
# shipped weights have one, `sdjax evaluate`).
#
# **Predict:** of 32 pictures, four for each caption, how many have the right caption, and how many the right colour?

# %%
sd = model(denoiser)


def four_each(scale):
    """Four pictures of each caption, eight at a time, for which the program is compiled already."""
    return np.concatenate([sd.txt2img(kinds, steps=10, sampler="dpmpp_2m", guidance_scale=scale, seed=seed)
                           for seed in range(2, 6)])


drawn = four_each(3.0)
asked = np.tile(np.arange(8), 4)
seen = named(drawn)
colour_of = np.array([kind.split()[1] for kind in kinds])
right, coloured = int((seen == asked).sum()), int((colour_of[seen] == colour_of[asked]).sum())
print(f"right caption: {right} of 32, by chance 4; right colour: {coloured} of 32, by chance 8")
assert right > 8 and coloured > 16
show(plots.pictures(drawn[:16], [kinds[i][2:] for i in asked[:16]], columns=8, side=1.0),
     "The first sixteen of the pictures by the model of this lesson, two for each of eight captions.")

# %% [markdown]
# Is it guidance that makes the pictures obey, or would the text alone do? The same network without it:

# %%
plain = four_each(1.0)
print(f"right caption without guidance: {int((named(plain) == asked).sum())} of 32, with it: {right}")
temporary.cleanup()

# %% [markdown]
# Mostly the text alone: three of 32 more or less are chance. A network that has seen only eight captions takes them at
# their word. Lesson 8 turns the scale on the shipped model.
#
# ## At full size
#
# ```sh
# make weights                                   # all of it, into runs/tiny; each stage goes on where it was stopped
#
# sdjax train tokenizer                          # or one by one
# sdjax train vae
# sdjax train clip
# sdjax train unet
# sdjax train unet --start weights/tiny --run runs/more --seed 1     # go on from weights that are there
# sdjax train inpaint                            # lessons 10 to 12: what else it can see
# sdjax train depth
# sdjax train upscale
# sdjax evaluate runs/tiny/model                 # how good is it? By a judge that had no part in the training
# sdjax txt2img "a red cube" --model runs/tiny/model
# ```
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/14_train_your_own.py`.
#
# **1.** Leave out a `share` of the captions of a batch: each becomes the empty text with that chance, by
# `rng.random()`.


# %%
def drop(captions, share, rng):
    return ...


exercise.check_drop(drop)

# %% [markdown]
# **2.** The average of the weights after a step, from the average before it and the new weights, that forgets with the
# rate `keep` (0.999: a thousandth of the new).


# %%
def averaged(average, weights, keep):
    return ...


exercise.check_averaged(averaged)

# %% [markdown]
# **3.** The loss of one batch by hand: `network(x, t)` should answer $v$. `a` are the shares of the timesteps `t`, one
# a picture [b]; `x0` and `eps` are [b, h, w, c]. All pictures count alike here.


# %%
def v_loss(network, x0, eps, t, a):
    return ...


exercise.check_v_loss(v_loss)
