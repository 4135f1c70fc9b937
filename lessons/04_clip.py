# %% [markdown]
# # 4. CLIP: one space for texts and pictures
#
# *Seed lines 6 and 7: the text becomes numbers through OpenAI's CLIP, trained on captions, which lets a picture be
# compared with a text; the prompt goes through its encoder first: 768 numbers a token for SD 1.x, 1024 for SD 2.x.*
#
# Lesson 3 ended with 77 ids. Here they become 77 vectors. We build the text transformer by hand in two short cells and
# get the package's numbers, look at pictures through the other half of CLIP, and hold texts and pictures against each
# other. Then we train a miniature of CLIP from nothing, to see how captions alone teach a network what red is. At the
# end we find out why SD 2.x does not read CLIP's last layer.
#
# About 40 seconds and 1 GB on two cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from checks import clip as exercise
from flax import nnx
from lesson import show

import sdjax
from sdjax import plots
from sdjax.clip import ImageEncoder, TextEncoder, cosine
from sdjax.config import TextConfig, VisionConfig, clip_vit_l14, sd1, sd2_base
from sdjax.toyworld import COLOURS, SHAPES, describe, render, scene_at
from sdjax.training.clip import contrastive_loss

sd = sdjax.load("../weights/tiny")

# %% [markdown]
# ## Ids to vectors
#
# The encoder owns two tables: a vector for each token of the vocabulary, and a vector for each of the 77 places. A row
# of the matrix begins as the sum of the two.

# %%
ids = sd.tokenizer(["a small red cone"])
weights = sd.text_encoder.module
tokens = np.asarray(weights.embeddings.token_embedding.embedding)
places = np.asarray(weights.embeddings.position_embedding.embedding)
embedded = tokens[ids[0]] + places
print("tokens", tokens.shape, " places", places.shape, " the prompt", embedded.shape)
print("ids", ids[0, :8], "...")

# %% [markdown]
# Without the second table *red cone on a blue cube* and *blue cone on a red cube* would be the same heap of words to
# attention, which has no order of its own. Only the mask below, by which a row sees no more than what stands before
# it, would give a little of it away.
#
# ## The causal mask
#
# CLIP's text encoder was built like a language model: a token looks at itself and at what stands before it, never at
# what follows. This is a triangle of permissions.

# %%
causal = np.tril(np.ones((6, 6), bool))
print(causal.astype(int))

# %% [markdown]
# **Predict:** the prompts *a small red cone* and *a small red cube* differ in the fifth of 77 places (the start token
# has place 0, so this is place 4). In which places do their hidden states differ?

# %%
one, other = (np.asarray(sd.text_encoder(sd.tokenizer([prompt]))[0]) for prompt in
              ("a small red cone", "a small red cube"))
differs = np.abs(one - other).max(axis=1) > 1e-4
print("first place that differs:", int(np.argmax(differs)), " places that differ:", int(differs.sum()))
assert not differs[:4].any() and differs[4:].all()

# %% [markdown]
# In all from place 4 on, the padding with them: every later token has looked at the noun. The first four rows cannot
# know what is to come. So the row of *red* does not say what is red; the rows behind it do.
#
# ## The transformer by hand
#
# A layer does two things, and adds each to what was there. *Attention* moves information between the places: every row
# asks (a query), every row offers (a key), and a row takes the mean of what the others hold (their values), weighted by
# how well the question meets the offer. Lesson 7 takes it apart. The *MLP* then works on each row alone.


# %%
def norm(x, p):
    """Every row to mean 0 and variance 1, then a scale and a shift that were learned."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(p.scale) + np.asarray(p.bias)


def linear(x, p):
    return x @ np.asarray(p.kernel) + np.asarray(p.bias)


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


# %%
def attention(x, p, heads, mask):
    d = x.shape[1] // heads
    mixed = []
    for h in range(heads):
        q, k, v = (linear(x, f)[:, h * d : (h + 1) * d] for f in (p.q_proj, p.k_proj, p.v_proj))
        logits = np.where(mask, q @ k.T / np.sqrt(d), -np.inf)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(share / share.sum(-1, keepdims=True) @ v)
    return linear(np.concatenate(mixed, axis=1), p.out_proj)


def layer(x, p, heads, mask):
    x = x + attention(norm(x, p.layer_norm1), p.self_attn, heads, mask)
    return x + linear(gelu(linear(norm(x, p.layer_norm2), p.mlp.fc1)), p.mlp.fc2)


# %% [markdown]
# That is all of the transformer. Run its layers one after the other, and norm the result:

# %%
mask = np.tril(np.ones((77, 77), bool))
states = [embedded]
for p in weights.encoder.layers:
    states.append(layer(states[-1], p, sd.config.text.heads, mask))
ours = norm(states[-1], weights.final_layer_norm)
theirs = sd.text_encoder(ids)[0]
print(f"{len(states) - 1} layers, {ours.shape[0]} x {ours.shape[1]}; "
      f"largest difference from the package: {np.abs(ours - theirs).max():.1e}")
assert np.allclose(ours, theirs, atol=1e-4)

# %% [markdown]
# The UNet is given these 77 rows. The released models have the same thing, larger. A prompt is a matrix of 77 rows of:

# %%
for config in (sd.config, sd1(), sd2_base()):
    c = config.text
    built = nnx.eval_shape(lambda c=c: TextEncoder(c, rngs=nnx.Rngs(0)))  # shapes only, no numbers
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(built)))
    print(f"{config.name:9}{c.width:5} numbers, from {c.layers:2} layers of {c.heads:2} heads, "
          f"{count:11,} parameters")
assert (sd1().text.width, sd2_base().text.width) == (768, 1024)

# %% [markdown]
# ## A sentence as one vector
#
# To compare a whole sentence with a picture we need one vector, not 77. Which row has seen everything? That of the end
# token. One more matrix takes it to the space that texts and pictures share.

# %%
end = int(np.argmax(ids[0] == sd.config.text.end_id))
sentence = ours[end] @ np.asarray(weights.text_projection.kernel)
print(f"the end token stands at place {end}; the sentence is a vector of {len(sentence)}")
assert np.allclose(sentence, sd.text_encoder.embed(ids)[0], atol=1e-4)

# %% [markdown]
# ## The same for a picture
#
# The other half of CLIP cuts a picture into squares and treats them as words: a matrix makes a vector of each square,
# a place is added, and a transformer without a causal mask follows. In front stands one more row, whose token is
# learned; it has no picture of its own and is there to gather what the others say.
#
# **Predict:** how many rows for our pictures of 128 pixels in squares of 16? And for ViT-L/14, the CLIP whose text half
# is that of SD 1.x, with 224 pixels in squares of 14?

# %%
rows = {"ours": sd.config.vision, "ViT-L/14": clip_vit_l14()[1]}
rows = {name: (c.image_size // c.patch) ** 2 + 1 for name, c in rows.items()}
print(rows)
assert rows == {"ours": 65, "ViT-L/14": 257}

scene = scene_at(0, "test", 3)
picture = render(scene)[0].astype(np.float32) / 127.5 - 1.0
squares = picture.reshape(8, 16, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(64, 16, 16, 3)
busiest = np.sort(np.argsort(squares.std(axis=(1, 2)).mean(axis=1))[-16:])
show(plots.pictures([squares[i] for i in busiest], [f"row {i + 1}" for i in busiest], columns=8, side=0.9),
     f"Sixteen of the sixty-four squares of a picture of {describe(scene)}, those with most to see.")

# %% [markdown]
# ## Texts against pictures
#
# The angle between two vectors says how well they fit. Its cosine is the product of the two after both were brought to
# length 1.
#
# Eight scenes that the network never saw, and the caption of each. **Predict:** where in the square of 64 cosines are
# the large ones?

# %%
scenes = [scene_at(0, "test", i) for i in range(8)]
pictures = np.stack([render(s)[0] for s in scenes]).astype(np.float32) / 127.5 - 1.0
captions = [describe(s, sizes=False) for s in scenes]

of_pictures = np.asarray(sd.image_encoder(pictures))
of_texts = np.asarray(sd.text_encoder.embed(sd.tokenizer(captions)))
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
similarity = unit(of_pictures) @ unit(of_texts).T
assert np.allclose(similarity, sd.similarity(pictures, captions), atol=1e-5)
diagonal = np.eye(8, dtype=bool)
print(f"mean cosine: {similarity[diagonal].mean():+.2f} of a picture and its caption, "
      f"{similarity[~diagonal].mean():+.2f} of a picture and another's")
assert similarity[diagonal].mean() > similarity[~diagonal].mean() + 0.2


# %%
def matrix(similarity, pictures, captions, title):
    """The square of cosines with a picture for each row and its caption for each column."""
    n = len(pictures)
    figure = plots.figure(8, 6.2)
    axes = figure.add_subplot(title=title, xticks=range(n), yticks=[])
    axes.imshow(similarity, vmin=-1, vmax=1, cmap="coolwarm")
    axes.set_xticklabels(captions, rotation=35, ha="right", fontsize=9)
    for i in range(n):
        for j in range(n):
            axes.text(j, i, f"{similarity[i, j]:.2f}", ha="center", va="center", fontsize=8)
        small = axes.inset_axes([-1.6, i - 0.45, 0.9, 0.9], transform=axes.transData)
        small.imshow((pictures[i] + 1) / 2)
        small.set_axis_off()
    return figure


show(matrix(similarity, pictures, captions, "cosine of each picture with each caption"),
     "Eight pictures down, their eight captions across: the cosines on the diagonal are the largest of their rows or "
     "near it, and captions that share a colour or a shape tend to be redder than those that share nothing.")

# %% [markdown]
# On the diagonal. And the network reads two languages, so the same pictures find their Turkish captions too:

# %%
turkish = [describe(s, "tr", sizes=False) for s in scenes]
for title, texts in (("English", captions), ("Turkish", turkish)):
    found = np.argmax(sd.similarity(pictures, texts), axis=1)
    print(f"{title}: {int((found == np.arange(8)).sum())} of 8 pictures find their own caption")
print(f"e.g. {turkish[0]!r}")
assert (np.argmax(sd.similarity(pictures, turkish), axis=1) == np.arange(8)).sum() >= 4

# %% [markdown]
# No list of colours or shapes was ever given to it. That is what people liked about CLIP: it sorts pictures into any
# classes that can be named in words.
#
# ## What training asks
#
# Just the diagonal. Take a batch of pictures and their captions; each picture has to pick its caption out of all, and
# each caption its picture. Picking is a softmax, and the loss is what it gives the right one, as a logarithm: with
# $n$ pairs, cosines $S$ and a temperature $\tau$,
#
# $$L = -\frac{1}{2n} \sum_i \left( \log \frac{e^{S_{ii} / \tau}}{\sum_j e^{S_{ij} / \tau}}
# + \log \frac{e^{S_{ii} / \tau}}{\sum_j e^{S_{ji} / \tau}} \right)$$
#
# **Predict:** what is the loss of a network that cannot tell the eight apart at all?

# %%
def loss_by_hand(S, temperature):
    e = np.exp(S / temperature)
    return -np.mean(np.log(np.diag(e) / e.sum(axis=1)) + np.log(np.diag(e) / e.sum(axis=0))) / 2


print(f"all cosines equal: {loss_by_hand(np.zeros((8, 8)), 0.07):.3f}, which is log 8 = {np.log(8):.3f}")
print(f"our network: {loss_by_hand(similarity, 0.07):.3f}")
assert np.isclose(loss_by_hand(np.zeros((8, 8)), 0.07), np.log(8))
assert np.isclose(loss_by_hand(similarity, 0.07), contrastive_loss(similarity, np.log(1 / 0.07)), rtol=1e-4)
assert loss_by_hand(similarity, 0.07) < np.log(8)

# %% [markdown]
# Pure guessing. The temperature is needed because cosines end at 1: without it the loss of even a perfect network would
# stay well above 0, as the next cell shows. CLIP learns $\tau$ too, beginning at 0.07.

# %%
perfect = 2 * np.eye(8) - 1  # cosine 1 with the own caption, -1 with all others
for temperature in (1.0, 0.07, 0.01):
    print(f"temperature {temperature}: loss of perfect cosines {abs(loss_by_hand(perfect, temperature)):.5f}")
assert loss_by_hand(perfect, 1.0) > 0.5 > 1e-6 > loss_by_hand(perfect, 0.07)

# %% [markdown]
# ## A CLIP of your own, in seconds
#
# Both halves from the package, with one layer each and a width of 32; pictures of 32 pixels. The world here has one
# solid of eight colours and five shapes, so forty captions. Every batch holds each of them once: were there two red
# cubes in it, the loss would punish a picture for liking the other one's caption, though it is true.

# %%
by_caption = {}
for i in range(4000):
    s = scene_at(0, "train", i, count=1)
    by_caption.setdefault(describe(s, sizes=False), []).append(s)
names = sorted(by_caption)
few = min(len(found) for found in by_caption.values())
print(len(names), "captions, at least", few, "scenes each; for example:", ", ".join(names[:3]))
assert len(names) == len(COLOURS) * len(SHAPES) == 40 and few >= 50
small = np.array([[render(s, 32)[0] for s in by_caption[name][:50]] for name in names])
small = small.astype(np.float32) / 127.5 - 1.0
training, fresh = small[:, :45], small[:, 45:]
print("pictures to learn from", training.shape, " pictures kept back", fresh.shape)

# %%
TOKENS = 8  # start, three words, end; the rest is padding, which the end token never looks at
text_config = TextConfig(vocab_size=sd.config.text.vocab_size, context_length=TOKENS, width=32, layers=1, heads=2,
                         activation="gelu", projection=16, end_id=sd.config.text.end_id)
vision_config = VisionConfig(image_size=32, patch=4, width=32, layers=1, heads=2, activation="gelu", projection=16)
rngs = nnx.Rngs(0)
graph, parameters = nnx.split((TextEncoder(text_config, rngs=rngs), ImageEncoder(vision_config, rngs=rngs)))
count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
small_ids = sd.tokenizer(names)[:, :TOKENS]
assert (small_ids == sd.config.text.end_id).any(axis=1).all()


@jax.jit
def cosines(parameters, pictures):
    text, image = nnx.merge(graph, parameters)
    return cosine(image(pictures), text.embed(small_ids))


# %%
STEPS = 500
optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))
scale = np.log(1 / 0.07)


@jax.jit
def step(parameters, state, pictures):
    loss = lambda p: contrastive_loss(cosines(p, pictures), scale)
    value, gradient = jax.value_and_grad(loss)(parameters)
    change, state = optimiser.update(gradient, state)
    return optax.apply_updates(parameters, change), state, value


untrained, state, losses = parameters, optimiser.init(parameters), []
rng = np.random.default_rng(0)
for _ in range(STEPS):
    batch = training[np.arange(40), rng.integers(45, size=40)]  # one picture of each caption
    parameters, state, loss = step(parameters, state, batch)
    losses.append(float(loss))
print(f"{count:,} parameters, {STEPS} steps: loss from {losses[0]:.2f} to {np.mean(losses[-20:]):.2f}; "
      f"log 40 is {np.log(40):.2f}, log 5 {np.log(5):.2f}")
assert np.mean(losses[-20:]) < np.log(5) < np.log(40) < losses[0]

# %% [markdown]
# $\log 40$ is guessing among all captions. A network that knew every colour and no shape would guess among five, and
# reach $\log 5$. Ours got below that.
#
# **Predict:** so which does it know better, colours or shapes? We ask pictures that it never saw to find their caption
# among the forty, and look at which word of the answer is right.


# %%
def score(parameters):
    """Shares of fresh pictures whose caption, whose colour, whose shape is found."""
    answers = [names[j] for j in np.argmax(cosines(parameters, fresh.reshape(-1, 32, 32, 3)), axis=1)]
    right = np.array([[a == n, a.split()[1] == n.split()[1], a.split()[2] == n.split()[2]]
                      for a, n in zip(answers, np.repeat(names, fresh.shape[1]))])
    return right.mean(axis=0)


before, after = score(untrained), score(parameters)
for title, found in (("untrained", before), ("trained", after)):
    print(f"{title:10} caption {found[0]:4.0%}, colour {found[1]:4.0%}, shape {found[2]:4.0%}")
print(f"by chance  caption {1 / 40:4.0%}, colour {1 / 8:4.0%}, shape {1 / 5:4.0%}")
assert after[1] > after[2] > 1 / 5 and after[0] > 5 / 40

# %%
figure = plots.figure(9, 3.4)
axes = figure.add_subplot(1, 3, 1, xlabel="step", ylabel="loss", title="learning to find the partner")
axes.plot(losses)
for level, words in ((40, "log 40: guessing"), (5, "log 5: colours only")):
    axes.axhline(np.log(level), color="0.5", linestyle="--")
    axes.annotate(words, (STEPS / 2.5, np.log(level) + 0.06), fontsize=8)
for k, (title, p) in enumerate((("untrained", untrained), ("trained", parameters))):
    axes = figure.add_subplot(1, 3, 2 + k, title=f"cosines, {title}", xlabel="40 captions", ylabel="40 pictures")
    axes.imshow(cosines(p, fresh[:, 0]), vmin=-1, vmax=1, cmap="coolwarm")
    axes.set_xticks(np.arange(2, 40, 5), [n.split()[1] for n in names[::5]], rotation=60, fontsize=7)
    axes.set_yticks([])
show(figure, "Left, the loss falls from above that of guessing to below that of knowing colours only. Right, the "
     "cosines of forty fresh pictures with forty captions: no order before training; afterwards blocks of five along "
     "the diagonal, one for each colour.")

# %% [markdown]
# Colours: the blocks in the picture have one colour each, and inside a block the five shapes are harder to tell apart.
# A patch of red is red wherever it is, a cone is a cone only by its outline. And colours are the larger part of the
# loss: knowing them is worth the way from $\log 40$ to $\log 5$, which is more than the way from there to 0.

# %%
assert np.log(40) - np.log(5) > np.log(5)

# %% [markdown]
# With two solids and four relations in a caption there is even less to gain from shapes: colours alone then nearly
# always tell the captions of a batch apart. The package's recipe (`training/clip.py`) therefore shows each picture also
# its own caption with one word wrong. What the loss does not ask for is not learned.
#
# ## Which layer should the UNet read?
#
# The loss looks at one row of the last layer, the end token's. What does it tell the other rows?
#
# **Predict:** change a row of the last layer's output a little. For which of the 77 rows does the sentence's vector
# change? And for rows of the layer before?


# %%
def sentence_from(x, layers):
    """The sentence's vector from hidden states x, of which so many layers of the encoder are still to come."""
    for p in weights.encoder.layers[len(weights.encoder.layers) - layers :]:
        x = p(x, jnp.asarray(mask))
    return weights.final_layer_norm(x)[0, end] @ weights.text_projection.kernel


felt = {}
for layers, title in ((0, "last layer"), (1, "the one before")):
    slope = jax.jacrev(sentence_from)(jnp.asarray(states[len(states) - 1 - layers])[None], layers)
    felt[title] = np.linalg.norm(np.asarray(slope)[:, 0], axis=(0, 2))
    print(f"{title}: rows that matter to the sentence: {np.flatnonzero(felt[title] > 0).tolist()}")
assert np.flatnonzero(felt["last layer"]).tolist() == [end]
assert np.flatnonzero(felt["the one before"]).tolist() == list(range(end + 1))

# %%
figure = plots.figure(6, 2.8)
axes = figure.add_subplot(title="how much the sentence's vector depends on a row", ylabel="size of the slope",
                          xticks=range(9),
                          xticklabels=["start", "a", "small", "red", "cone", "end", "pad", "pad", "pad"])
for k, (title, slopes) in enumerate(felt.items()):
    axes.bar(np.arange(9) + 0.4 * k - 0.2, slopes[:9], 0.4, label=title)
axes.legend()
show(figure, "Bars for the first nine places: of the last layer only the end token's row counts; of the layer before, "
     "every row up to it has a say.")

# %% [markdown]
# Only the end token's row of the last layer is ever asked anything by this loss. The rows of the words, which the UNet
# reads, are by-products there; one layer earlier each had a say.
#
# A large model can afford that. Ours could not: asked by the contrastive loss alone, its "left of" and "right of" ended
# as nearly the same row, and no training of the UNet brought a solid to the right side. So its training also asked the
# rows of the words: each had to tell, through one linear layer (in today's recipe in its first channels, as they
# are), of the solid that was named last, how it looks and on which side of the scene it stands.
#
# **Predict:** two sentences, "left of" in one, "right of" in the other. In which rows do they differ now?

# %%
sides = ["a red cube left of a blue sphere", "a red cube right of a blue sphere"]
one, other = np.asarray(sd.text_encoder(sd.tokenizer(sides)))
for word, apart, length in zip(["start", *sides[0].split(), "end", "pad"], np.linalg.norm(one - other, axis=-1),
                               np.linalg.norm(one, axis=-1)):
    print(f"{word:7} {apart:5.1f} apart, of length {length:.1f}")
assert np.allclose(one[:4], other[:4], atol=1e-4)  # the mask is causal: nothing before the word can know
assert np.linalg.norm(one[4] - other[4]) > 0.5 * np.linalg.norm(one[4])

# %% [markdown]
# SD 1.x takes the last layer all the same. SD 2.x stops at the *penultimate* one, and passes it through the final norm
# as if it were the last. In the package this is a matter of configuration: its text encoder simply has one layer less
# than OpenCLIP's 24.

# %%
shorter = sd.text_encoder.module
shorter.encoder.layers = nnx.List(list(shorter.encoder.layers)[:-1])
penultimate = norm(states[-2], weights.final_layer_norm)
assert np.allclose(shorter(ids)[0], penultimate, atol=1e-4)
print("layers of the released text encoders:", sd1().text.layers, "for SD 1.x and", sd2_base().text.layers,
      "of 24 for SD 2.x")
assert sd2_base().text.layers == 24 - 1

# %% [markdown]
# The rows after the end token, the padding, are asked nothing at all in either layer. The UNet sees them anyway, and
# learns for itself what they are good for (lesson 7 shows how much it looks at them).
#
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/04_clip.py`.
#
# **1.** Which of `texts` [m, d] fits each of `pictures` [n, d] best? Return n whole numbers. The vectors have any
# length.


# %%
def best_text(pictures, texts):
    return ...


exercise.check_best_text(best_text)

# %% [markdown]
# **2.** The row of the end token for each sentence: `states` [b, 77, d] and `ids` [b, 77] to [b, d]. SD 1.x pads with
# the end token itself.


# %%
def sentence_rows(states, ids, end_id):
    return ...


exercise.check_sentence_rows(sentence_rows)

# %% [markdown]
# **3.** A video model may let a token look at no more than `reach` tokens: itself and those just before it. Make the
# mask, True where looking is allowed.


# %%
def short_memory(n, reach):
    return ...


exercise.check_short_memory(short_memory)
