# %% [markdown]
# # 2. The VAE: pictures, eight times smaller
#
# *Seed line 3: the VAE drops what is redundant; given enough data it learns to rebuild the picture at its old
# resolution from the latent.*
#
# Two networks, one after the other. The encoder takes a picture to a latent, the decoder takes the latent back. We
# look at what is kept, measure what is lost, walk between two latents, train four autoencoders in a few seconds to see
# what the KL term is for, and compute the number that is 0.18215 in Stable Diffusion.
#
# About 30 seconds and 1 GB on two cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from checks import vae as exercise
from lesson import show

import sdjax
from sdjax import plots
from sdjax.config import sd1
from sdjax.toyworld import describe, render_batch, scene_at
from sdjax.training.vae import KL_WEIGHT

# %% [markdown]
# ## There and back
#
# Sixteen scenes that the model has never seen, through the encoder and the decoder.

# %%
sd = sdjax.load("../weights/tiny")
scenes = [scene_at(0, "test", i) for i in range(16)]
pictures = render_batch(scenes)[0].astype(np.float32) / 127.5 - 1
posterior = sd.vae.encode(pictures)
rebuilt = np.asarray(sd.vae.decode(posterior.mean))
print("pictures:", pictures.shape, " latents:", posterior.mean.shape, " rebuilt:", rebuilt.shape)
assert posterior.mean.shape == (16, 16, 16, 4) and rebuilt.shape == pictures.shape

# %% [markdown]
# The encoder gives two things for each latent value: a mean and the logarithm of a variance. For now we take the mean.
#
# **Predict:** the latent has four channels. Will you find the solids in one of them?

# %%
n = 3
channels = [np.asarray(posterior.mean[n, :, :, i]) for i in range(4)]
show(plots.pictures([pictures[n], *channels], ["picture", *(f"channel {i}" for i in range(4))]),
     f"The scene ({describe(scenes[n])}) and the four channels of its latent, maps of 16 by 16: floor and sky "
     "differ, and something stands where the solids stand.")

# %% [markdown]
# You will find them in all four. A latent is a map: what stands at the top left of the picture is at the top left of
# the latent. This is why a UNet, made for pictures, can work on it.
#
# ## What is lost
#
# The usual measure is the peak signal-to-noise ratio: how far the range of values (2 here, from -1 to 1) stands above
# the error, in decibels.
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{2^2}{\mathrm{mean}\,(x - \hat x)^2}$$

# %%
error = (rebuilt - pictures) ** 2
psnr = 10 * np.log10(4 / error.mean(axis=(1, 2, 3)))
print(f"PSNR of 16 scenes: {psnr.mean():.1f} dB on average, {psnr.min():.1f} to {psnr.max():.1f}")
print(f"an average error of {127.5 * np.sqrt(error.mean()):.1f} of 255 grey levels")
assert psnr.mean() > 25

# %% [markdown]
# **Predict:** where in the picture is the error?

# %%
worst = np.sqrt(error[n].mean(axis=-1))
show(plots.pictures([pictures[n], rebuilt[n], worst], ["original", "rebuilt", "error"], side=2.4),
     "The scene, the scene rebuilt, which looks the same, and the map of the error: bright along the outlines and dark "
     "on plain surfaces.")

# %%
steep = np.abs(np.diff(pictures, axis=1))[:, :, :-1].mean(axis=-1) + np.abs(np.diff(pictures, axis=2))[:, :-1].mean(-1)
edges = steep > np.quantile(steep, 0.95)
squared = error[:, :-1, :-1].mean(axis=-1)
print(f"the twentieth of the pixels with the steepest change carries {squared[edges].sum() / squared.sum():.0%} "
      "of the squared error")
assert squared[edges].mean() > 3 * squared[~edges].mean()

# %% [markdown]
# At the edges, where a block of 8 by 8 pixels has most to tell. In photographs it is the same with small writing and
# far-off faces: they come out wrong because the latent cannot hold them, whatever the UNet does.
#
# Or because the decoder cannot read them, and that can be mended late. The UNet knows latents alone, so a decoder may
# be exchanged for one that was trained further as long as the encoder is left as it is. Stability AI did so for SD 1.x
# (`stabilityai/sd-vae-ft-mse`), and ours, at 33 dB when the UNet learned, went on alone afterwards
# (`sdjax train vae --start`). Everything that the UNet draws became clearer by it.
#
# ## What one place stands for
#
# **Predict:** we change one of the 16 by 16 places of the latent. Which pixels change?

# %%
moved = posterior.mean[n : n + 1].at[0, 8, 5].add(2.0 * posterior.mean.std())
change = np.abs(np.asarray(sd.vae.decode(moved))[0] - rebuilt[n]).mean(axis=-1)
block = change[64:72, 40:48].mean()
far = np.concatenate([change[:32], change[104:]]).mean()
print(f"average change: {block:.4f} within its own 8 x 8 pixels, {far:.4f} far away")
assert block > 10 * far

# %%
shown = np.log10(np.maximum(change, 1e-5))
show(plots.pictures([rebuilt[n], np.asarray(sd.vae.decode(moved))[0], shown],
                    ["before", "one place changed", "change, logarithm"], side=2.4),
     "The scene, the scene with a spot at one place, and the logarithm of the change: strongest within a block, weaker "
     "around it, and slight elsewhere, most of it along outlines.")

# %% [markdown]
# Mostly its own block and its neighbours, and a little everywhere, most along outlines: convolutions reach a few
# places far, and the decoder has one attention and norms over the whole picture.
#
# ## Halfway between two pictures
#
# Since latents are numbers, there is one halfway between two of them.
#
# **Predict:** halfway between a solid on the left and one on the right, where is the solid: left, right, in the
# middle, or on both sides?

# %%
alone = [scene_at(0, "test", i, count=1) for i in range(100)]
daily = [scene for scene in alone if scene.time == "day"]
left = min(daily, key=lambda scene: scene.solids[0].x)
right = max(daily, key=lambda scene: scene.solids[0].x)
ends = render_batch([left, right])[0].astype(np.float32) / 127.5 - 1
z = sd.vae.encode(ends).mean
shares = np.linspace(0, 1, 5)
between = np.concatenate([np.asarray(sd.vae.decode((1 - s) * z[:1] + s * z[1:])) for s in shares])
show(plots.pictures(between, [f"{1 - s:.0%} : {s:.0%}" for s in shares]),
     f"Five pictures from {describe(left)} to {describe(right)}: one fades out on the left while the other fades in on "
     "the right.")

# %%
mixed = ends.mean(axis=0)
distance = lambda a, b: float(np.mean((a - b) ** 2))
print(f"halfway to the mixed pixels: {distance(between[2], mixed):.4f}, to either end: "
      f"{distance(between[2], ends[0]):.4f}, {distance(between[2], ends[1]):.4f}")
assert distance(between[2], mixed) < min(distance(between[2], ends[0]), distance(between[2], ends[1]))

# %% [markdown]
# On both sides. The latent is a smaller picture, not a description: halfway is a cross-fade, nearly the one that
# mixed pixels give. It knows about edges and colours, nothing of solids that could stand elsewhere. What could stand
# where is the UNet's business.
#
# ## A cloud, not a point
#
# The V in VAE: the encoder names a Gaussian for each latent value, and training decodes a draw from it, $z = \mu +
# \sigma \epsilon$.

# %%
key = jax.random.key(0)
std = jnp.exp(0.5 * posterior.log_variance)
drawn = posterior.mean + std * jax.random.normal(key, posterior.mean.shape)
assert np.allclose(drawn, posterior.sample(key), atol=1e-6)  # the package draws the same
again = np.asarray(sd.vae.decode(drawn))
print(f"the means have a standard deviation of {posterior.mean.std():.3f}, the clouds one of {std.mean():.4f}")
print(f"PSNR from the means {psnr.mean():.2f} dB, "
      f"from draws {np.mean(10 * np.log10(4 / ((again - pictures) ** 2).mean(axis=(1, 2, 3)))):.2f} dB")
assert std.mean() < posterior.mean.std()

# %% [markdown]
# The clouds are small against the distances between latents, and the picture hardly suffers from the draw. What are
# they for, then?
#
# ## Why the KL term
#
# The loss has two parts: how badly the picture is rebuilt, and how far each cloud is from a standard normal.
#
# $$\mathrm{loss} = (x - \hat x)^2 + \lambda\, \mathrm{KL}, \qquad
# \mathrm{KL} = \tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)$$

# %%
by_hand = 0.5 * jnp.mean(posterior.mean**2 + std**2 - 1 - jnp.log(std**2))
print(f"KL of our latents: {by_hand:.3f} nats a value")
assert np.isclose(by_hand, posterior.kl(), rtol=1e-5)

# %% [markdown]
# To see what it does, a world small enough to draw: the "picture" is one pixel, three numbers, and the latent two. The
# pixels are those of our sixteen scenes. We train four of these autoencoders, that differ in $\lambda$ alone.
#
# **Predict:** with $\lambda = 0$, what will the encoder do with the clouds: keep them wide or make them narrow? And
# with a very large $\lambda$?

# %%
colours = jnp.asarray(np.random.default_rng(0).permutation(pictures.reshape(-1, 3))[:20_000])


def layer(key, inputs, outputs):
    return jax.random.normal(key, (inputs, outputs)) / np.sqrt(inputs), jnp.zeros(outputs)


def two_layers(parameters, x):
    (w1, b1), (w2, b2) = parameters
    return jnp.tanh(x @ w1 + b1) @ w2 + b2


def encode(parameters, x):
    mean, log_variance = jnp.split(two_layers(parameters["encoder"], x), 2, axis=-1)
    return mean, log_variance


def losses(parameters, x, key):
    mean, log_variance = encode(parameters, x)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    wrong = jnp.mean((two_layers(parameters["decoder"], z) - x) ** 2)
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return wrong, kl


@jax.jit
def trained(weight):
    keys = jax.random.split(jax.random.key(0), 4)
    parameters = {
        "encoder": [layer(keys[0], 3, 64), layer(keys[1], 64, 4)],
        "decoder": [layer(keys[2], 2, 64), layer(keys[3], 64, 3)],
    }
    optimiser = optax.adam(3e-3)

    def step(carry, key):
        parameters, state = carry
        x = colours[jax.random.randint(key, (256,), 0, len(colours))]

        def loss(parameters):
            wrong, kl = losses(parameters, x, key)
            return wrong + weight * kl

        updates, state = optimiser.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, optimiser.init(parameters)), jax.random.split(key, 2000))
    return parameters


results = {}
for weight in (0.0, 1e-4, 1e-2, 1.0):
    parameters = trained(weight)
    mean, log_variance = encode(parameters, colours)
    wrong, kl = losses(parameters, colours, key)
    results[weight] = np.asarray(mean), float(wrong), float(kl)
    print(f"weight {weight:<6}: error {wrong:.5f}, KL {kl:6.2f}, standard deviation of the means {mean.std():.2f}, "
          f"of the clouds {jnp.exp(0.5 * log_variance).mean():.4f}")
assert results[0.0][2] > results[1e-2][2] > results[1.0][2]  # the term does what it says
assert results[1.0][1] > 5 * results[0.0][1]  # and has its price

# %%
drawing = plots.figure(9.6, 2.8)
few, turn = slice(0, 1500), np.linspace(0, 2 * np.pi, 60)
reach = 1.05 * max(np.abs(mean[few]).max() for mean, _, _ in results.values())
for i, (weight, (mean, wrong, _)) in enumerate(results.items()):
    axes = drawing.add_subplot(1, 4, i + 1)
    axes.set_title(f"weight {weight:g}, error {wrong:.4f}", fontsize=9)
    axes.plot(np.cos(turn), np.sin(turn), "--", color="0.5", linewidth=1)
    axes.scatter(*mean[few].T, c=np.clip((np.asarray(colours[few]) + 1) / 2, 0, 1), s=6)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
show(drawing, "The means of 1500 pixels in the plane of their two latents, each drawn in its own colour, for four "
     "weights of the KL term; a dashed circle has radius 1. Without the term the points spread far beyond it; with a "
     "little they keep their order nearer to it; with much they all fall on the middle.")

# %% [markdown]
# Without the term the encoder makes its clouds as narrow as it likes and spreads the means out: nothing holds the
# latents together, and where no pixel lies the decoder was never asked. With a little of it the latents have about the
# size of a standard normal, which is what a diffusion model starts from, and neighbours mean similar things. With too
# much the encoder says nothing any more: every pixel is the same cloud, and the decoder answers with the average
# colour.
#
# Stable Diffusion's autoencoder was trained with very little of it, and so was ours. Rebuilding comes first:

# %%
print("our weight of the KL term:", KL_WEIGHT)

# %% [markdown]
# The size of the latents is then mended by one number.
#
# ## The 0.18215
#
# The noise schedule of lesson 5 takes for granted that the latents have variance 1. They do not:

# %%
more = render_batch([scene_at(0, "train", i) for i in range(64)])[0].astype(np.float32) / 127.5 - 1
latents = np.concatenate([np.asarray(sd.vae.encode(part).mean) for part in np.split(more, 4)])
print(f"standard deviation of our latents over 64 scenes: {latents.std():.3f}, one over it: {1 / latents.std():.3f}")
print(f"the configuration says {sd.config.vae.scale:.3f}; that of SD 1.x {sd1().vae.scale}, so that its latents have "
      f"a standard deviation of {1 / sd1().vae.scale:.2f}")
assert np.isclose(1 / latents.std(), sd.config.vae.scale, rtol=0.1)

# %% [markdown]
# That is all it is: one over the standard deviation, measured once over many pictures. The UNet works on
# `latent * scale`, and before the decoder comes `latent / scale`.
#
# **Predict:** if it is forgotten on the way back, what does the picture look like?

# %%
scaled = posterior.mean[n : n + 1] * sd.config.vae.scale
right_way = sd.vae.decode(scaled / sd.config.vae.scale)[0]
forgotten = sd.vae.decode(scaled)[0]
smaller = sd.vae.decode(posterior.mean[n : n + 1] * sd1().vae.scale)[0]
show(plots.pictures([right_way, forgotten, smaller],
                    ["as it should be", f"{sd.config.vae.scale:.2f} of it", f"{sd1().vae.scale} of it"], side=2.4),
     "Three pictures of one latent: right; with the division forgotten, with halos and bent outlines; "
     "and with the scale of Stable Diffusion forgotten, of which little is left.")
assert np.allclose(right_way, rebuilt[n], atol=1e-3)

# %% [markdown]
# Ours is not far from 1, and the scene can still be made out. The smaller the scale, the less forgiving.
#
# Why does the UNet want variance 1? Noise of variance $1 - a$ on a latent of variance $a\,\mathrm{var}$ leaves a
# ratio of signal to noise of $a\,\mathrm{var} / (1 - a)$. The schedule was chosen for one value of it.

# %%
variances = {"scaled": 1.0, "ours, unscaled": latents.var(), "SD 1.x, unscaled": 1 / sd1().vae.scale**2}
for name, variance in variances.items():
    print(f"{name:17} variance {variance:5.2f}: signal to noise at a = 0.5 is {0.5 * variance / (1 - 0.5):5.2f}")

# %% [markdown]
# Unscaled, the latents of SD 1.x would still show through where the UNet expects half noise.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/02_vae.py`.
#
# **1.** The PSNR of `y` against `x`, in decibels, for pictures whose values go from `low` to `high`.


# %%
def psnr_of(x, y, low, high):
    return ...


exercise.check_psnr(psnr_of)

# %% [markdown]
# **2.** The KL of one latent value from its `mean` and `log_variance`, in nats.


# %%
def kl(mean, log_variance):
    return ...


exercise.check_kl(kl)

# %% [markdown]
# **3.** The scale for a set of latents [pictures, height, width, channels]: one number for all channels.


# %%
def scale_of(latents):
    return ...


exercise.check_scale(scale_of)
