# %% [markdown]
# # 9. The pipeline: all the parts in one cell
#
# *Seed lines 5 and 11: start from pure noise and a text; the model forms the picture from the noise according to the
# text. The result leans on the starting noise more than on the text.*
#
# Eight lessons made the parts. Here they meet: one cell goes from a prompt to a picture, and its pixels are those of
# `sd.txt2img`. Once the loop lies open, everything that programs offer around Stable Diffusion is a small change to it:
# another sampler is another last line of the loop, a seed is where the walk begins, a negative prompt is another text
# in the place of the empty one, and image to image begins the same walk further down.
#
# Under two minutes and 1.5 GB on two cores.

# %%
import jax.numpy as jnp
import numpy as np
from checks import pipeline as exercise
from lesson import show

import sdjax
from sdjax import diffusion, plots, samplers
from sdjax.toyworld import describe, render, scene_at

sd = sdjax.load("../weights/tiny")

# %% [markdown]
# ## One cell
#
# Text to ids to states; a seed to noise; twenty times predict, guide, step; the decoder. The functions are the
# package's own, each from the lesson that built it by hand.

# %%
prompt, steps, guidance, seed = "a red sphere", 20, sd.config.guidance, 3

ids = sd.tokenizer(["", prompt])  # lesson 3
texts = sd.text_encoder(ids)  # lesson 4
plan = samplers.ddim_plan(sd.config.diffusion, steps)  # lesson 5
x = samplers.noise(samplers.image_keys(seed, 0, 1), 0, (16, 16, 4))

for t, a, a_next in zip(plan.t, plan.a, plan.a_next):
    empty, text = jnp.split(sd.unet(jnp.concatenate([x, x]), jnp.array([t, t]), texts), 2)  # lessons 6 and 7
    v = diffusion.guide(empty, text, guidance)  # lesson 8
    x0, eps = diffusion.split_prediction(v, x, a, "v")
    x = jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps  # DDIM

ours = np.clip(sd.vae.decode(x / sd.config.vae.scale), -1, 1)  # lesson 2

# %% [markdown]
# **Predict:** how far is this picture from the one of `sd.txt2img`, of a range of 2?

# %%
theirs = sd.txt2img(prompt, steps=steps, guidance_scale=guidance, seed=seed)
print(f"largest difference of a pixel: {np.abs(ours - theirs).max():.1e}")
assert np.abs(ours - theirs).max() < 1e-3
show(plots.pictures([ours[0], theirs[0]], ["by the cell above", "sd.txt2img"], side=2.2),
     "The same picture twice: once from the loop of this lesson, once from one call of the package.")

# %% [markdown]
# Nothing but rounding. The package runs the loop as one compiled program (lesson 13 says what that buys), and gives it
# step by step where you want to look: `sd.txt2img_steps` yields the latent, the foreseen picture and both predictions.


# %%
def walked(prompt, **options):
    """The last picture of a walk, step by step: only another sampler has to be compiled anew, not another length."""
    *_, last = sd.txt2img_steps(prompt, **options)
    return last.pictures()


assert np.abs(walked(prompt, steps=steps, guidance_scale=guidance, seed=seed) - theirs).max() < 1e-3

# %% [markdown]
# ## Samplers
#
# A sampler answers one question: given $x$ here and what the network foresees, where do we stand at the next, less
# noisy timestep? Euler's method goes back to school: the noisy picture, rescaled to $\tilde x = x / \sqrt a$, follows a
# curve whose slope against the noise level $\sigma = \sqrt{(1 - a) / a}$ is just $\epsilon$, since $x = \sqrt a\, x_0 +
# \sqrt{1 - a}\, \epsilon$ divided by $\sqrt a$ is $x_0 + \sigma \epsilon$. So take a step along the slope:
#
# $$\tilde x_{next} = \tilde x + (\sigma_{next} - \sigma)\, \epsilon$$
#
# **Predict:** how does this differ from the DDIM step of the first loop?

# %%
noise_level = lambda a: np.sqrt((1 - a) / a)
i = 7
a, a_next = plan.a[i], plan.a_next[i]
ddim = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
x_here = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
euler = np.sqrt(a_next) * (x_here / np.sqrt(a) + (noise_level(a_next) - noise_level(a)) * eps)
print(f"largest difference of a DDIM step and an Euler step: {np.abs(ddim - euler).max():.1e}")
assert np.allclose(ddim, euler, atol=1e-5)

# %% [markdown]
# Not at all: DDIM *is* Euler's method, in other words. In the package the two part only at the end, since DDIM stops at
# $a_0$, as Stable Diffusion's own code has it, and Euler goes on to the clean picture.
#
# DPM-Solver++(2M) remembers the picture that the last step foresaw, and draws the line through the two on. DDPM is the
# odd one: it adds fresh noise at every step. Four samplers, three numbers of steps, the same seed:

# %%
counts = (5, 10, 20)
drawn = {(name, n): walked(prompt, sampler=name, steps=n, seed=seed)[0]
         for name in samplers.SAMPLERS for n in counts}
show(plots.pictures(list(drawn.values()), [f"{name}, {n} steps" for name, n in drawn], columns=3, side=1.6),
     "A row for each sampler, at 5, 10 and 20 steps. Each of the first three, ddim, euler and dpmpp_2m, nears one "
     "picture as the steps grow; ddpm, which adds noise, draws a different one for each number.")

# %% [markdown]
# The first three are ways to walk one and the same curve from the noise to a picture, so that with more steps they come
# to a rest. How far are they from where they would arrive with 60?

# %%
distance = {}
for name in ("ddim", "dpmpp_2m"):
    arrived = walked(prompt, sampler=name, steps=60, seed=seed)[0]
    distance[name] = [float(np.sqrt(np.mean((drawn[name, n] - arrived) ** 2))) for n in counts]
    print(f"{name:<9}", "  ".join(f"{n} steps: {d:.3f}" for n, d in zip(counts, distance[name])))
    assert distance[name][-1] < distance[name][0]

figure = plots.figure(5, 3)
axes = figure.add_subplot(xlabel="steps", ylabel="distance (root mean square)",
                          title="how far from the picture of 60 steps")
for name, far in distance.items():
    axes.plot(counts, far, marker="o", label=name)
axes.set_xticks(counts)
axes.set_ylim(bottom=0)
axes.legend()
show(figure, "Two falling curves: the distance to the picture of 60 steps, against the number of steps.")

# %% [markdown]
# ## Seeds
#
# A seed is nothing but the noise at the start. JAX makes noise from a *key*, not from a hidden state that every call
# moves on. The package makes one key from the seed and folds the picture's number into it:

# %%
four = samplers.noise(samplers.image_keys(seed, 0, 4), 0, (16, 16, 4))
third_alone = samplers.noise(samplers.image_keys(seed, 2, 1), 0, (16, 16, 4))
assert (four[2] == third_alone[0]).all()
print("variance of the four:", *(f"{variance:.2f}" for variance in np.var(four, axis=(1, 2, 3))))

# %% [markdown]
# So the third of four pictures is the same picture when it is asked for alone. Where a program draws all noise from one
# stream instead, a picture can depend on what else was asked for, and people wonder why a seed does not come back.
#
# **Predict:** the same four noises under two prompts. What do the two pictures of a column share?

# %%
prompts = ["a red sphere", "a blue cone"]
pictures = sd.txt2img(prompts[0], steps=20, seed=seed, num_images=4)
alone = sd.txt2img(prompts[0], steps=20, seed=seed, first_image=2)
assert np.abs(pictures[2] - alone[0]).max() < 1e-3
others = sd.txt2img(prompts[1], steps=20, seed=seed, num_images=4)
show(plots.pictures([*pictures, *others], [f"{p}, image {i}" for p in prompts for i in range(4)], columns=4),
     "Two rows of four pictures: a red sphere above, a blue cone below; pictures in one column began with one noise.")
same = np.mean([np.abs(a - b).mean() for a, b in zip(pictures, others)])
other = np.mean([np.abs(pictures[i] - pictures[j]).mean() for i in range(4) for j in range(i)])
print(f"mean difference: other words, same noise {same:.3f}; same words, other noise {other:.3f}")
assert same < other

# %% [markdown]
# The text says what is to be drawn. What it leaves open, the place, the size, the time of day, is settled by the noise,
# but not by the noise alone: under other words the same noise becomes another picture, and what stands at one place in
# the upper row need not stand there in the lower. The two numbers compare how much of the pixels either changes.
#
# ## Negative prompts
#
# Guidance goes from a prediction without the text towards one with it, and beyond. "Without" is the row of the empty
# text, and nothing says that the row must be empty. Put a text there, and the walk leads *away* from it. That is all a
# negative prompt is.
#
# **Predict:** what comes out if the negative prompt is the prompt itself?

# %%
same_text = sd.txt2img(prompt, negative_prompt=prompt, steps=20, seed=seed)
unguided = sd.txt2img(prompt, steps=20, guidance_scale=1.0, seed=seed)
print(f"largest difference from guidance 1: {np.abs(same_text - unguided).max():.1e}")
assert np.abs(same_text - unguided).max() < 1e-2

# %% [markdown]
# The picture without guidance: $u + s\,(c - u)$ with $u = c$ is $c$, whatever $s$ is. Now a real one. The prompt leaves
# the colour open; the negative prompt closes one.

# %%
negatives = ["", "red", "green", "blue"]
away = [sd.txt2img("a sphere", negative_prompt=n, steps=20, guidance_scale=5.0, seed=5)[0] for n in negatives]
show(plots.pictures(away, [f"not {n}" if n else "no negative prompt" for n in negatives]),
     "The prompt a sphere from one noise, four times: without a negative prompt, and away from red, green and blue.")
assert not np.allclose(away[0], away[1])

# %% [markdown]
# ## Image to image
#
# The walk need not begin in pure noise. Take a picture, encode it, put on the noise of a timestep half-way, and walk on
# from there (SDEdit, arXiv:2108.01073). `strength` is the share of the steps that are walked. By hand, it is the loop
# from above with another start:

# %%
strength = 0.6
scene = scene_at(0, "test", 3)
picture = render(scene)[0].astype(np.float32) / 127.5 - 1.0
keys = samplers.image_keys(seed, 0, 1)

posterior = sd.vae.encode(picture[None])
draw = samplers.noise(keys, samplers.POSTERIOR, posterior.mean.shape[1:])
z = sd.config.vae.scale * (posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draw)

skipped = steps - int(strength * steps)
x = np.sqrt(plan.a[skipped]) * z + np.sqrt(1 - plan.a[skipped]) * samplers.noise(keys, 0, (16, 16, 4))
texts = sd.text_encoder(sd.tokenizer(["", "a green cone"]))
for t, a, a_next in list(zip(plan.t, plan.a, plan.a_next))[skipped:]:
    empty, text = jnp.split(sd.unet(jnp.concatenate([x, x]), jnp.array([t, t]), texts), 2)
    v = diffusion.guide(empty, text, guidance)
    x0, eps = diffusion.split_prediction(v, x, a, "v")
    x = jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps

theirs = sd.img2img("a green cone", picture, strength, steps=steps, guidance_scale=guidance, seed=seed)
print(f"{steps - skipped} steps; largest difference of a pixel: {np.abs(sd.to_pictures(x) - theirs).max():.1e}")
assert np.abs(sd.to_pictures(x) - theirs).max() < 1e-3

# %% [markdown]
# **Predict:** what does strength 0 give: the very picture, bit for bit?

# %%
strengths = (0.0, 0.3, 0.6, 0.9)
changed = [sd.img2img("a green cone", picture, s, steps=steps, seed=seed)[0] for s in strengths]
far = [float(np.sqrt(np.mean((c - picture) ** 2))) for c in changed]
show(plots.pictures([picture, *changed], ["the picture", *(f"strength {s}" for s in strengths)]),
     f"A render of {describe(scene)}, and what the prompt a green cone makes of it at four strengths: at 0 it is the "
     "picture as the VAE rebuilds it, at 0.9 nearly nothing of it is left.")
print("distance from the picture:", ", ".join(f"{s}: {f:.3f}" for s, f in zip(strengths, far)))
assert 0 < far[0] < far[-1]

# %% [markdown]
# Nearly: it went through the VAE once, and that alone costs a little.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/09_pipeline.py`.
#
# **1.** The timesteps that image to image visits, from the noisiest to the cleanest, for `steps` of 1000 and a
# `strength` from 0 to 1.


# %%
def visited(steps, strength):
    return ...


exercise.check_visited(visited)

# %% [markdown]
# **2.** One step of Euler's method from share `a` to share `a_next`, given $x$ (not rescaled) and $\epsilon$.


# %%
def euler_step(x, eps, a, a_next):
    return ...


exercise.check_euler_step(euler_step)

# %% [markdown]
# **3.** People like to walk from one seed to another: a mix of two noises, `w` = 0 being the first and 1 the second.
# The UNet expects noise of variance 1, as it saw in training. Mix the two so that the variance stays 1.


# %%
def mix(first, second, w):
    return ...


exercise.check_mix(mix)
