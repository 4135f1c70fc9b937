# %% [markdown]
# # 7. Cross-attention: where words meet places
#
# *Seed line 10: cross-attention: what is it?*
#
# The UNet works on a map, the text is a list of rows. Cross-attention is the one place where the two touch: every place
# of the map asks a question, every token of the prompt offers an answer, and the place takes a mix of the answers. We
# write it in twenty lines, find the package's numbers in one of the model's own blocks, and watch the model draw: which
# word looks where, step by step, and which of the 77 rows carry the colour.
#
# About 30 seconds and 1 GB on two cores.

# %%
import jax.numpy as jnp
import numpy as np
from checks import attention as exercise
from lesson import show

import sdjax
from sdjax import diffusion, plots, samplers
from sdjax.config import sd1
from sdjax.toyworld.judge import load_judge

sd = sdjax.load("../weights/tiny")

# %% [markdown]
# ## A dictionary that never says no
#
# A dictionary in Python holds keys and values. Asked for a key that is not there, it raises an error. Attention is a
# dictionary that answers any question: it compares the question (the *query*) with every key, and gives a mean of all
# values, weighted by how well the keys fit. The comparison is a product of vectors, and the weights are a softmax: all
# positive, with a sum of 1.


# %%
def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def look_up(query, keys, values):
    return softmax(query @ keys.T) @ values


keys = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # east, north, west
values = np.array([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # red, green, blue
print("pointing north:     ", softmax(np.array([0.0, 1.0]) @ keys.T).round(2))
print("pointing far north: ", softmax(np.array([0.0, 9.0]) @ keys.T).round(2))

# %% [markdown]
# **Predict:** a query that turns from east over north to west gets which colours? What does a longer query change?

# %%
turn = np.linspace(0, np.pi, 40)
queries = np.stack([np.cos(turn), np.sin(turn)], axis=1)
answers = {length: look_up(length * queries, keys, values) for length in (1, 4, 20)}
show(plots.pictures([np.repeat(found[None], 20, axis=0) for found in answers.values()],
                    [f"queries of length {length}" for length in answers], side=2.6),
     "Three bands of colour from red over green to blue, the answers to a query that turns from east to west: short "
     "queries get a greyish mix, long ones one clear colour, with steep borders.")
assert answers[20].max() > 0.99 > answers[1].max()

# %% [markdown]
# A short query is undecided, a long one picks. The network learns both the direction of its questions and how sure it
# wants to be.
#
# ## Twenty lines
#
# In the UNet the queries come from the map, one for each place; keys and values come from the text, one of each for
# each token. Three learned matrices make them. And several questions are asked at once: the channels are cut into
# *heads*, each a small attention of its own, which are put side by side again at the end.


# %%
def cross_attention(places, tokens, to_q, to_k, to_v, to_out, heads):
    """places [n, c] and tokens [m, e] to [n, c], and the shares [heads, n, m]."""
    q = places @ to_q  # [n, c]
    k = tokens @ to_k  # [m, c]
    v = tokens @ to_v  # [m, c]
    d = q.shape[1] // heads
    mixed, shares = [], []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        logits = q[:, part] @ k[:, part].T / np.sqrt(d)  # [n, m]: every place with every token
        share = softmax(logits)
        mixed.append(share @ v[:, part])  # [n, d]
        shares.append(share)
    matrix, bias = to_out
    return np.concatenate(mixed, axis=1) @ matrix + bias, np.array(shares)


# %% [markdown]
# The model's last transformer, the one at the end of the way up, has such a block. Its map has 8 x 8 places.

# %%
prompt = "a large green sphere"
tokens = np.asarray(sd.text_encoder(sd.tokenizer([prompt]))[0])
block = sd.unet.module.up_blocks[1].attentions[1].transformer_blocks[0].attn2
places = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)

matrices = [np.asarray(f.kernel) for f in (block.to_q, block.to_k, block.to_v)]
out = np.asarray(block.to_out[0].kernel), np.asarray(block.to_out[0].bias)
ours, shares = cross_attention(places, tokens, *matrices, out, block.heads)
theirs, their_shares = block(jnp.asarray(places)[None], jnp.asarray(tokens)[None], True)
print("result", ours.shape, " shares", shares.shape,
      f" largest difference from the package: {np.abs(ours - theirs[0]).max():.1e}")
assert np.allclose(ours, theirs[0], atol=1e-4) and np.allclose(shares, their_shares[0], atol=1e-5)
assert np.allclose(shares.sum(-1), 1, atol=1e-5)

# %% [markdown]
# That is cross-attention. *Self*-attention, the other one in each transformer, is the same with the map in both roles:
# its places look at each other.
#
# **Predict:** in the finest level of SD 1.x the map has 64 x 64 places. How many times more shares has self-attention
# there than cross-attention?

# %%
n, m = 64 * 64, sd1().text.context_length
print(f"self-attention {n:,} x {n:,} = {n * n:,} shares a head, cross-attention {n:,} x {m} = {n * m:,}: "
      f"{n / m:.0f} times as many")
assert n * n // (n * m) == 53

# %% [markdown]
# So the text is cheap, and a prompt of 77 tokens costs next to nothing. It is the map looking at itself that grows with
# the square of its places (lesson 1).
#
# ## Why divide by $\sqrt d$?
#
# A product of two random vectors of $d$ numbers is a sum of $d$ terms, so its spread grows as $\sqrt d$.
#
# **Predict:** without the division, what do the shares among 77 tokens look like when $d$ is large?

# %%
rng = np.random.default_rng(0)
sizes = [2, 4, 8, 16, 32, 64, 128, 256]
largest = {True: [], False: []}
for d in sizes:
    q, k = rng.standard_normal((200, d)), rng.standard_normal((77, d))
    for divided in largest:
        share = softmax(q @ k.T / (np.sqrt(d) if divided else 1))
        largest[divided].append(share.max(axis=1).mean())
figure = plots.figure(6, 3)
axes = figure.add_subplot(xlabel="d, numbers a head", ylabel="largest share, mean", xscale="log", ylim=(0, 1),
                          title="random queries and keys, 77 tokens")
axes.plot(sizes, largest[False], "o-", label="q k")
axes.plot(sizes, largest[True], "o-", label="q k / sqrt(d)")
axes.set_xticks(sizes, [str(d) for d in sizes])
axes.minorticks_off()
axes.legend()
show(figure, "The largest share of a query against d: without the division it rises towards 1, with it it stays low.")
assert largest[False][-1] > 0.8 > 0.3 > largest[True][-1]
print(f"at d = 256: {largest[False][-1]:.2f} without the division, {largest[True][-1]:.2f} with it")

# %% [markdown]
# One token takes nearly all, by chance, before anything is learned; and where a softmax is that sure, a small change of
# a logit changes nothing, so there is no slope to learn from.
#
# ## It does not know what comes first
#
# **Predict:** we shuffle the 77 rows of the text. What happens to the result?

# %%
order = rng.permutation(77)
shuffled, shuffled_shares = cross_attention(places, tokens[order], *matrices, out, block.heads)
print(f"largest difference: {np.abs(shuffled - ours).max():.1e}")
assert np.allclose(shuffled, ours, atol=1e-4) and np.allclose(shuffled_shares, shares[:, :, order], atol=1e-5)

# %% [markdown]
# Nothing at all: the sum of a dictionary's answers has no order. That a *red cone* and a *blue sphere* do not become a
# blue cone is not the doing of cross-attention. It is written in the rows themselves, by the text encoder (lesson 4).
#
# ## Which word looks where
#
# We let the model draw four pictures and ask for the shares of every transformer at every step.

# %%
walk = list(sd.txt2img_steps(prompt, attention=True, steps=20, seed=0, num_images=4))
pictures = walk[-1].pictures()
for name, maps in walk[0].attention.items():
    print(f"{name:28} {maps.shape[1]} heads, {maps.shape[2]:2} places, {maps.shape[3]} tokens")
assert all(np.allclose(maps.sum(-1), 1, atol=1e-4) for maps in walk[0].attention.values())

# %% [markdown]
# **Predict:** who gets the largest share, averaged over all places, heads, transformers and steps: *a*, *green*,
# *sphere*, or the tokens around them?

# %%
words = ["start", *prompt.split(), "end"]
mean = np.mean([np.asarray(m).mean((0, 1, 2)) for s in walk for m in s.attention.values()], axis=0)
assert np.isclose(mean.sum(), 1, atol=1e-4)
bars = [*mean[: len(words)], mean[len(words) :].sum()]
labels = [*words, f"{77 - len(words)} x padding"]
figure = plots.figure(6, 2.8)
axes = figure.add_subplot(ylabel="share of the attention", title=f"what the places of the map look at: {prompt}")
axes.bar(labels, bars)
show(figure, "A bar for each token of the prompt, and one for all the padding together: the start token and the "
     "padding take large shares.")
for word, share in zip(labels, bars):
    print(f"{word:14}{share:6.1%}")
assert sum(mean[2:5]) < 0.5

# %% [markdown]
# The three words that say something, *large*, *green* and *sphere*, get less than half of it together. Shares must add
# up to 1, so a place that wants nothing from the text has to look *somewhere*; it looks at tokens that are always
# there. And the padding is not empty: those rows have seen the whole sentence, since the text encoder lets a token
# look back. So a share says where a place looks, and not how much it learns there.
#
# What is telling is how the share of one word differs from place to place. Here is one of the pictures with the map of
# each token, averaged over heads, over all steps, and over the two transformers at 8 x 8 on the way up; each in shades
# of its own range.


# %%
def word_map(snapshot, image, token):
    """Where one token is looked at, [8, 8]: the mean over heads and over two transformers on the way up."""
    maps = [np.asarray(snapshot.attention[f"up_blocks.1.attentions.{i}"])[image, :, :, token] for i in (0, 1)]
    return np.mean(maps, axis=(0, 1)).reshape(8, 8)


average = np.array([[np.mean([word_map(s, i, k) for s in walk], axis=0) for k in range(len(words))] for i in range(4)])
show(plots.pictures([pictures[0], *average[0]], ["the picture", *words], columns=7, side=1.5),
     f"A picture of {prompt}, and a map of 8 x 8 places for each token: brighter where it is looked at more. The map "
     "of the noun is bright where the solid stands, those of the start token and the colour away from it.")

# %% [markdown]
# Nobody ever told the network where a sphere is in a training picture; it had captions alone. Is that so in the other
# three pictures as well? The judge, a network that reads solids from pictures, tells us where the sphere stands.
#
# **Predict:** how many times as much do the places of the sphere look at *sphere* as the other places do?

# %%
judge = load_judge("../weights/tiny")
down, across = np.mgrid[:8, :8] + 0.5  # the middle of each place, in places
ratios = []
for i, seen in enumerate(judge.read(pictures)):
    if seen:
        inside = np.hypot(across - seen[0].x / 16, down - seen[0].y / 16) < 1.3
        ratios.append([m[inside].mean() / m[~inside].mean() for m in average[i]])
for word, found in zip(words, np.transpose(ratios)):
    print(f"{word:8}" + "".join(f"{r:6.1f}" for r in found))
noun = words.index("sphere")
assert np.mean(ratios, axis=0)[noun] > 1.5

# %% [markdown]
# A column for each picture: above 1 the word belongs to the solid, below 1 to its surroundings. The noun is the one
# that counts, and it need not leave the colour to its neighbour: a row knows the words before it (lesson 4). Now over
# the steps, for the noun:

# %%
chosen = [walk[i] for i in (0, 3, 7, 12, 19)]
show(plots.pictures([*(s.preview()[0] for s in chosen), *(word_map(s, 0, noun) for s in chosen)],
                    [*(f"foreseen, t = {s.t}" for s in chosen), *(f"sphere, t = {s.t}" for s in chosen)], columns=5),
     "Above, the picture foreseen at five of twenty steps, blurred at first; below, where the token sphere is looked "
     "at in the same steps.")
for s in chosen:
    likeness = np.corrcoef(word_map(s, 0, noun).ravel(), word_map(walk[-1], 0, noun).ravel())[0, 1]
    print(f"t = {s.t:3}: correlation with the last map {likeness:.2f}")

# %% [markdown]
# Where the solid will stand is decided while the picture is still a blur, and the word looks there from then on.
#
# ## Which rows carry the colour?
#
# A share only shows where the network looks. To know what it *takes* we must change something. Here are the rows of *a
# large green sphere*, in which some are replaced by those of *a large red sphere*. Everything else stays: same noise,
# same steps.
#
# **Predict:** is it enough to replace the row of the colour's own word?

# %%
green, red = (sd.text_encoder(sd.tokenizer([text]))[0] for text in (prompt, "a large red sphere"))
swaps = {"none": [], "green": [3], "sphere, end": [4, 5], "padding": range(6, 77), "all": range(77)}
rows = np.stack([np.isin(np.arange(77), list(which)) for which in swaps.values()])  # True: from the red one
texts = jnp.where(rows[:, :, None], red, green)
empty = jnp.broadcast_to(sd.text_encoder(sd.tokenizer([""])), texts.shape)

plan = samplers.ddim_plan(sd.config.diffusion, 20)
x = jnp.repeat(samplers.noise(samplers.image_keys(0, 0, 1), 0, (16, 16, 4)), len(swaps), axis=0)
for t, a, a_next in zip(plan.t, plan.a, plan.a_next):
    both = sd.unet(jnp.concatenate([x, x]), jnp.full(2 * len(x), t), jnp.concatenate([empty, texts]))
    v = diffusion.guide(*jnp.split(both, 2), sd.config.guidance)  # lesson 8
    x0, eps = diffusion.split_prediction(v, x, a, "v")
    x = jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps
swapped = sd.to_pictures(x)
assert np.abs(swapped[0] - pictures[0]).max() < 1e-2  # nothing replaced: the picture from above

# %%
show(plots.pictures(swapped, [f"replaced: {name}" for name in swaps], side=1.8),
     "Five pictures from one noise, with the rows of a large green sphere, of which none, the word green, what "
     "follows it, the padding, and all were replaced by those of a large red sphere.")
away = [float(np.sqrt(np.mean((p - swapped[0]) ** 2))) for p in swapped]
for (name, which), distance in zip(swaps.items(), away):
    print(f"{name:12}{len(which):2} rows: {distance / away[-1]:4.0%} as far from the first picture as the last")
assert away[0] == 0 < min(away[1:]) and away[1] < 0.8 * away[-1]

# %% [markdown]
# It is not: the row of *green* does next to nothing. The noun and the end token stand behind it and have read it, and
# they turn half of the ball red; the 71 rows of padding have read it too, and hardly change it. (The numbers are
# distances between pictures and do not say what changed: look at the figure.) What a word says is written into the rows
# behind it, and which of those the network reads is its own affair; rows that contradict each other are no prompt that
# it ever saw. Whoever edits a picture by editing single words has to reckon with this.
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/07_attention.py`.
#
# **1.** Attention with one head: `q` [n, d], `k` [m, d], `v` [m, e] to [n, e].


# %%
def attend(q, k, v):
    return ...


exercise.check_attend(attend)

# %% [markdown]
# **2.** Cut the channels into heads: `x` [n, c] to [heads, n, c / heads]. Each head takes channels that stand side by
# side.


# %%
def split_heads(x, heads):
    return ...


exercise.check_split_heads(split_heads)

# %% [markdown]
# **3.** Compute how many shares a UNet makes for one picture in one step, cross- and self-attention together, for the
# `sides` of its maps and the number of `heads` of each, with one transformer at each map and `tokens` tokens.


# %%
def shares_made(sides, heads, tokens):
    return ...


exercise.check_shares_made(shares_made)
