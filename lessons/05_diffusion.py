# %% [markdown]
# # 5. Diffusion: noise in, and out again
#
# *Seed line 5: start from pure noise and a text; the model forms the picture from the noise.*
#
# A diffusion model learns one thing: to look at a picture with noise in it and say what the noise is. Everything else
# in this lesson is arithmetic around that sentence. We compute the noise schedule (nothing is a magic number), put
# noise on a picture, see the three ways to ask the network for the same thing, and write the DDIM sampler by hand. At
# the end ours and the package's agree but for rounding.
#
# About 30 seconds and 1 GB on two cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from checks import diffusion as exercise
from lesson import show

import sdjax
from sdjax import diffusion, plots, samplers
from sdjax.config import DiffusionConfig
from sdjax.toyworld import describe, render, scene_at

# %% [markdown]
# ## How much noise at which step
#
# The schedule has 1000 steps. Step $t$ mixes in a little noise, of variance $\beta_t$. Stable Diffusion draws a
# straight line between the square roots of the first and the last $\beta$ and squares it.

# %%
betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
print("beta at steps 0, 499, 999:", betas[[0, 499, 999]].round(6))

# %% [markdown]
# What is left of the picture after step $t$ is the product of all the shares that each step kept: $a_t = \prod_{s \le
# t} (1 - \beta_s)$. The papers write $\bar\alpha_t$.
#
# **Predict:** at $t = 500$, is more or less than half of the variance still the picture's?

# %%
a = np.cumprod(1.0 - betas)
print("a at steps 0, 250, 500, 750, 999:", a[[0, 250, 500, 750, 999]].round(4))
assert a[500] < 0.5
assert np.allclose(a, diffusion.alphas(DiffusionConfig()))  # the package computes the same

# %% [markdown]
# Less: about a quarter. And the last value is not 0: even at $t = 999$ a trace of the picture is left,
# $\sqrt{a_{999}}$ of it.

# %%
figure = plots.figure(6, 3)
axes = figure.add_subplot(xlabel="step t", ylabel="share of the variance", title="the noise schedule")
axes.plot(a, label="picture, a")
axes.plot(1 - a, label="noise, 1 - a")
axes.legend()
show(figure, "Two curves over 1000 steps: the picture's share falls from 1 to nearly 0, the noise's rises; they cross "
     "near 350.")

# %% [markdown]
# ## Putting noise on a picture
#
# One formula jumps to any step at once: $x_t = \sqrt{a_t}\, x_0 + \sqrt{1 - a_t}\, \epsilon$. The two squared weights
# sum to 1, so that the variance stays 1 where that of $x_0$ is 1. Lesson 2 scales latents for that; the pixels shown
# here vary less.

# %%
scene = scene_at(0, "test", 3)
picture = render(scene)[0] / 127.5 - 1.0
eps = np.random.default_rng(0).standard_normal(picture.shape)


def noisy(x0, eps, t):
    return np.sqrt(a[t]) * x0 + np.sqrt(1 - a[t]) * eps


steps = [0, 100, 300, 500, 700, 999]
show(plots.pictures([noisy(picture, eps, t) for t in steps], [f"t = {t}" for t in steps]),
     f"The same picture, {describe(scene)}, at six steps: clear at 0, grainy at 300, mere noise to the eye at 999.")

# %% [markdown]
# Real Stable Diffusion does this to latents, not to pixels. Nothing else changes.
#
# ## Three ways to ask for the same thing
#
# Given $x_t$ and $t$, whoever knows $\epsilon$ knows $x_0$ and the other way round: the formula has one unknown left.
# A third choice is $v = \sqrt{a}\,\epsilon - \sqrt{1-a}\,x_0$. SD 1.x predicts $\epsilon$, SD 2.1 at 768 pixels and
# our small model predict $v$.
#
# **Predict:** at $t = 999$ the network sees nearly pure noise. Which question is then trivial, and teaches nothing:
# what is $\epsilon$, or what is $v$?

# %%
for t in (10, 500, 999):
    x = noisy(picture, eps, t)
    v = np.sqrt(a[t]) * eps - np.sqrt(1 - a[t]) * picture
    print(f"t = {t:3}: correlation of x with eps {np.corrcoef(x.ravel(), eps.ravel())[0, 1]:.3f}, "
          f"with v {np.corrcoef(x.ravel(), v.ravel())[0, 1]:+.3f}")

# %% [markdown]
# $\epsilon$ is: at $t = 999$ the network could answer with its own input. $v$ is then (minus) the picture, which must
# be guessed from nothing but the text. This is why $v$ can be told from $\epsilon$ by one look at a network's answer,
# and the package's loader does exactly that with SD 2.x files, which do not say what they predict.
#
# From either prediction we get the other two back:

# %%
x, v = noisy(picture, eps, 500), np.sqrt(a[500]) * eps - np.sqrt(1 - a[500]) * picture
x0_back = np.sqrt(a[500]) * x - np.sqrt(1 - a[500]) * v
eps_back = np.sqrt(a[500]) * v + np.sqrt(1 - a[500]) * x
assert np.allclose(x0_back, picture) and np.allclose(eps_back, eps)

# %% [markdown]
# ## What training asks
#
# Take a picture, a random $t$, random noise; the loss is the squared distance between the answer and the truth. That
# is all of it. `diffusion.training_pair` gives what the network sees, what it should answer, and how much this step
# counts.

# %%
sd = sdjax.load("../weights/tiny")
latent = sd.config.vae.scale * sd.vae.encode(picture[None].astype(np.float32)).mean
text = sd.text_encoder(sd.tokenizer([describe(scene)]))
key = jax.random.key(0)
for t in (50, 300, 600, 950):
    noise = jax.random.normal(key, latent.shape)
    seen, target, weight = diffusion.training_pair(latent, noise, jnp.array([t]), sd.config.diffusion)
    loss = jnp.mean((sd.unet(seen, jnp.array([t]), text) - target) ** 2)
    print(f"t = {t:3}: squared error {loss:.4f}, weight {weight[0]:.3f}")

# %% [markdown]
# ## Walking back: DDIM by hand
#
# The network foresees $x_0$ from where we stand. It is only a guess, so we do not jump there. DDIM goes to an earlier
# step $s$: it mixes its guess of the picture and its guess of the noise in the shares that belong to $s$:
#
# $$x_s = \sqrt{a_s}\, \hat x_0 + \sqrt{1 - a_s}\, \hat\epsilon$$
#
# The same formula as above, with guesses in it. It holds for *any* earlier $s$, which is why DDIM can skip steps:
# nothing in it says that $s$ must be $t - 1$. With 20 steps we visit 951, 901, ..., 1.

# %%
S = 20
timesteps = (np.arange(S) * (1000 // S) + 1)[::-1]  # the + 1 is one of the six constants of lesson 15
before = np.append(a[timesteps[1:]], a[0])  # where each step goes; the last goes to a_0, not to 1
prompt, scale = "a red sphere", 7.5
texts = sd.text_encoder(sd.tokenizer(["", prompt]))
x = samplers.noise(samplers.image_keys(0, 0, 1), 0, (16, 16, 4))  # the noise of seed 0, image 0

walk = []
for t, a_s in zip(timesteps, before):
    v_empty, v_text = sd.unet(jnp.concatenate([x, x]), jnp.array([t, t]), texts)
    v = v_empty + scale * (v_text - v_empty)  # guidance, lesson 8
    x0 = np.sqrt(a[t]) * x - np.sqrt(1 - a[t]) * v
    eps_hat = np.sqrt(a[t]) * v + np.sqrt(1 - a[t]) * x
    x = np.sqrt(a_s) * x0 + np.sqrt(1 - a_s) * eps_hat
    walk.append((t, x, x0))

# %%
chosen = [walk[i] for i in (0, 3, 7, 12, 19)]
rows = [sd.to_pictures(jnp.concatenate(z))  for z in ([z for _, z, _ in chosen], [z for _, _, z in chosen])]
titles = [f"x after t = {t}" for t, _, _ in chosen] + ["foreseen x0"] * 5
show(plots.pictures([*rows[0], *rows[1]], titles, columns=5),
     "Above, the noisy picture at five of twenty steps, from noise to a red sphere; below, the picture foreseen at "
     "each: blurred at first, but red already, and sharp at the end.")

# %% [markdown]
# The package does the same steps in one compiled loop. Ours should agree but for rounding:

# %%
theirs = sd.txt2img(prompt, steps=S, guidance_scale=scale, seed=0)
ours = sd.to_pictures(walk[-1][1])
print("largest difference of a pixel, of a range of 2:", float(np.abs(ours - theirs).max()))
assert np.abs(ours - theirs).max() < 1e-3

# %% [markdown]
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/05_diffusion.py`.
#
# **1.** The *signal-to-noise ratio* of step $t$ is $a_t / (1 - a_t)$. Return the first $t$ at which it is below 1.


# %%
def first_noisy_step(a):
    return ...


exercise.check_first_noisy_step(first_noisy_step)

# %% [markdown]
# **2.** The timesteps of DDIM for `S` of 1000 steps, as LDM has them, from the noisiest to the cleanest.


# %%
def ddim_timesteps(S):
    return ...


exercise.check_ddim_timesteps(ddim_timesteps)

# %% [markdown]
# **3.** One DDIM step from a prediction of $\epsilon$ (not $v$): from `x` at share `a_t` to share `a_s`.


# %%
def ddim_step(x, eps, a_t, a_s):
    return ...


exercise.check_ddim_step(ddim_step)
