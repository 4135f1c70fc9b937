# %% [markdown]
# # 3. Tokens: text becomes numbers
#
# *Seed line 8: every prompt is limited to 77 tokens (longer ones are truncated): a matrix of 77x768, or 77x1024 for
# SD 2.x.*
#
# A network takes numbers, a prompt is letters. Between them stands a list of tokens: pieces of words that were common
# in the texts it was learned from. We learn such a list by hand from captions in English and Turkish, spell with it,
# and find that ours and the package's are the same. Then the 77: what fits, what is cut, and what fills the rest.
#
# About 20 seconds and 1 GB on two cores.

# %%
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
from checks import tokens as exercise
from lesson import show

import sdjax
from sdjax import plots
from sdjax.config import sd1, sd2_base
from sdjax.tokenizer import Tokenizer, clean
from sdjax.toyworld import LANGUAGES, caption, scene_at, scene_rng

# %% [markdown]
# ## Letters are bytes
#
# A list of words can never be complete, and the letters of all languages are very many. But every text on a computer
# is bytes already, and there are only 256 of them.
#
# **Predict:** *küp* (cube) has three letters. How many bytes?

# %%
for word in ("cube", "küp", "ışık"):
    print(f"{word:5} {len(word)} letters, {len(word.encode())} bytes: {list(word.encode())}")
assert len("küp".encode()) == 4

# %% [markdown]
# In UTF-8 the letters of English take one byte each, the letters ç, ğ, ı, ö, ş, ü two. So bytes can spell everything;
# but a sentence of bytes is long. The idea of *byte-pair encoding*: give a new number to what often stands together.
#
# ## Learning, by hand
#
# The corpus: captions of 200 scenes, in both languages.

# %%
corpus = [caption(scene_at(0, "train", i), scene_rng(0, "train", i), language)
          for i in range(200) for language in LANGUAGES]
counts = Counter(word for text in corpus for word in text.split())
print(*corpus[:4], sep="\n")
print(len(corpus), "captions,", sum(counts.values()), "words,", len(counts), "of them different:",
      *(f"{word} {count}," for word, count in counts.most_common(5)), "...")

# %% [markdown]
# At first a word is its bytes. A tokenizer that has learned nothing spells it so. Note the mark `</w>` on the last
# one: it says that the word ends here, so that the *on* of *cone* and the word *on* are different tokens.

# %%
blank = Tokenizer([])
for word in ("cone", "küp"):
    print(f"{word}: {' '.join(blank.tokens(word))}  {blank.encode(word)}")
assert blank.decode([0]) == "!" and blank.encode("!") == [256]

# %% [markdown]
# A byte that is no letter by itself is printed as its number, `\xc3`. The tokens have numbers of their own: CLIP's list
# begins with the bytes that can be printed, `!` first, so that token 0 is `!` within a word and 256 is `!` at its end.
#
# 256 bytes, and the same 256 with the mark, are the first 512 tokens. Now again and again: count the pairs of
# neighbours, and give the most frequent one the next number.


# %%
def join(ids, pair, new):
    joined = []
    for token in ids:
        if joined and (joined[-1], token) == pair:
            joined[-1] = new
        else:
            joined.append(token)
    return joined


def learn(counts, number):
    spelled = {word: blank.encode(word) for word in counts}
    merges = {}
    for new in range(512, 512 + number):
        pairs = Counter()
        for word, ids in spelled.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # of equally frequent ones the first by number
        merges[best] = new
        spelled = {word: join(ids, best, new) for word, ids in spelled.items()}
    return merges, spelled


# %% [markdown]
# **Predict:** *bir* ("a") and *a* are the most frequent words. Which pairs are joined first?

# %%
merges, spelled = learn(counts, 60)
package = Tokenizer.learn(corpus, 60)
for (left, right), new in list(merges.items())[:10]:
    print(f"{new}: {package.decode([left])!r} + {package.decode([right])!r} = {package.decode([new])!r}")

# %% [markdown]
# A space in these quotes stands for the end of a word, and � for a byte that is half a letter. The word *a* is one
# letter, so that there is nothing to join in it; *bir* needs two merges, and soon has them. The two halves of *ü* come
# together early: that letter is in *küp*, *küre*, *küçük* and *büyük*.

# %%
assert "bir " in [package.decode([new]) for new in list(merges.values())[:10]]
assert "ü" in [package.decode([new]) for new in list(merges.values())[:10]]

# %% [markdown]
# The package learned from the same captions. Does it know the same tokens as we do?

# %%
assert package.vocab_size == 512 + len(merges) + 2  # two more, for start and end
for word, ids in spelled.items():
    assert ids == package.encode(word), word
print("all", len(spelled), "words are spelled alike, for example:")
for word in ("cylinder", "silindir", "küp", "küpün"):
    print(f"  {word}: {' '.join(package.tokens(word))}")

# %% [markdown]
# ## Spelling a word that was never seen
#
# The list is in the order in which it was learned, and spelling follows it: of all pairs of neighbours that are on
# the list, join the earliest learned, until there are none.


# %%
def spell(word):
    ids = blank.encode(word)
    while known := [pair for pair in pairwise(ids) if pair in merges]:
        first = min(known, key=merges.get)
        ids = join(ids, first, merges[first])
    return ids


for word in ("cylinders", "küpler", "reindeer", "🙂"):
    print(f"{word:10} {' '.join(package.tokens(word))}")
    assert spell(word) == package.encode(word)

# %% [markdown]
# Nothing is ever unknown. What is rare is only long.
#
# ## How many merges?
#
# More merges make shorter texts and a longer list, of which the network must learn a vector for every entry.
#
# **Predict:** does the curve fall to one token a word?

# %%
ours = Tokenizer.load("../weights/tiny/tokenizer.json")
numbers = [0, 5, 10, 20, 40, 60, 100, 150, 200]
lengths = [np.mean([len(Tokenizer(ours.merges[:n]).encode(text)) for text in corpus[:100]]) for n in numbers]
words_each = np.mean([len(text.split()) for text in corpus[:100]])
figure = plots.figure(6, 3)
axes = figure.add_subplot(xlabel="merges", ylabel="tokens a caption",
                          title="a longer list, shorter captions")
axes.plot(numbers, lengths, "o-", label="tokens")
axes.axhline(words_each, color="0.5", linestyle="--", label="words")
axes.set_ylim(bottom=0)
axes.legend()
show(figure, "Tokens a caption against the number of merges: a curve that falls steeply at first and ends close above "
     "the dashed line of words a caption.")
assert lengths == sorted(lengths, reverse=True) and lengths[-1] >= words_each
print(f"{lengths[0]:.1f} tokens with no merge, {lengths[-1]:.1f} with {numbers[-1]}, {words_each:.1f} words")

# %% [markdown]
# Our small model has those 200 merges, from many more captions than we took here. CLIP has far more, from the captions
# of the web, nearly all English.

# %%
openai = Tokenizer.clip()
for title, t in (("ours", ours), ("CLIP", openai)):
    print(f"{title}: 256 + 256 + {len(t.merges):,} merges + start and end = {t.vocab_size:,}")
assert openai.vocab_size == 512 + 48_894 + 2 == sd1().text.vocab_size
print("CLIP's first merges:", ", ".join(openai.merges[:6]))

# %% [markdown]
# ## Cleaning first
#
# Before it spells, CLIP cleans: lower case, single spaces, broken characters mended.
#
# **Predict:** which of these give the same ids: `a red cube`, `A  Red   Cube`, `a red cube!`?

# %%
for text in ("a red cube", "A  Red   Cube", "a red cube!"):
    print(f"{text!r:17} {clean(text)!r:14} {openai.encode(text)}")
assert openai.encode("a red cube") == openai.encode("A  Red   Cube") != openai.encode("a red cube!")

# %% [markdown]
# ## The 77
#
# A row has 77 places, whatever the prompt: the start token, the prompt, the end token, and padding. SD 1.x pads with
# the end token itself; SD 2.x pads with 0.
#
# **Predict:** what is token 0?

# %%
openclip = Tokenizer.clip(padding="zero")
print("SD 1:", openai("a red cube")[0, :9], "...")
print("SD 2:", openclip("a red cube")[0, :9], "...")
print("token 0 reads", repr(openclip.decode([0])))
assert openclip.decode([0]) == "!" and sd1().text.padding == "eos" and sd2_base().text.padding == "zero"

# %% [markdown]
# An exclamation mark, one that does not end its word. It is there for no deeper reason than that it is the first of
# the bytes. But weights that were trained with one padding are off with the other.

# %%
prompts = ["a red cube", "a small red cube behind a large blue sphere at night", "cube " * 90]
kinds, names = [], []
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the long prompt; the next cell reads the warning
    for family, t in (("SD 1", openai), ("SD 2", openclip)):
        for prompt in prompts:
            row = t(prompt)[0]
            end = int(np.argmax(row == t.end_id))
            place = np.arange(77)
            kinds.append(np.select([place == 0, place < end, place == end, row == 0], [0, 1, 2, 4], 3))
            names.append(f"{family}, {min(len(t.encode(prompt)), 75)} tokens")
figure = plots.figure(9, 2.6)
axes = figure.add_subplot(title="start, prompt, end, and what fills the row", xlabel="place in the row",
                          yticks=range(6), yticklabels=names)
image = axes.imshow(kinds, aspect="auto", cmap="Set2", vmin=-0.5, vmax=7.5, interpolation="nearest")
labels = ("start", "prompt", "end", "end as padding", "0 as padding")
for kind, label in enumerate(labels):
    axes.plot([], [], "s", color=image.cmap(image.norm(kind)), label=label)
axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=8)
show(figure, "Six rows of 77 places: the start token, then the prompt, then the end token, and the rest filled with "
     "end tokens for SD 1 and with zeros for SD 2. The longest prompt fills its row, and still closes with the end "
     "token.")

# %% [markdown]
# ## What is too long is cut
#
# **Predict:** of a prompt of 90 words, each one token, how many are left?

# %%
long = "cube " * 90
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    row = openai(long)[0]
print("tokens of the prompt:", len(openai.encode(long)), " left:", int((row == openai.encode("cube")[0]).sum()))
print("the package warns:", str(warned[0].message)[:60], "...")
assert (row[1:76] == openai.encode("cube")[0]).all() and row[76] == openai.end_id

# %% [markdown]
# 75, since start and end need a place each. The end token *survives*: CLIP reads the meaning of the whole sentence at
# its place, and a row without one has no such place. A tokenizer that simply cuts at 77 loses it, which is one of the
# constants of lesson 15.
#
# ## Does the padding matter?
#
# The text encoder is causal: a token sees what stands before it and nothing after it (lesson 4). Our own model pads
# with the end token. We pad with 0 instead:
#
# **Predict:** which of the 77 vectors change?

# %%
sd = sdjax.load("../weights/tiny")
zero = Tokenizer(sd.tokenizer.merges, padding="zero")
one, other = (np.asarray(sd.text_encoder(t("a red cube"))[0]) for t in (sd.tokenizer, zero))
change = np.abs(one - other).max(axis=1)
end = int(np.argmax(sd.tokenizer("a red cube")[0] == sd.tokenizer.end_id))
print(f"largest change up to the end token (place {end}): {change[: end + 1].max():.5f}, "
      f"after it: {change[end + 1 :].max():.2f}")
assert change[: end + 1].max() < 1e-4 < 0.1 < change[end + 1 :].min()

# %%
figure = plots.figure(6, 2.6)
axes = figure.add_subplot(xlabel="place in the row", ylabel="largest change", title="vectors under another padding")
axes.bar(np.arange(77), change)
axes.axvline(end + 0.5, color="0.4", linestyle="--")
show(figure, "A bar for each of 77 places: none up to the end token, high for every place after it.")

# %% [markdown]
# The words do not notice, the padding does. And the UNet looks at all 77 vectors, padding and all: to feed it the wrong
# one means that most of what it sees is new to it.
#
# ## Turkish
#
# CLIP's vocabulary was learned from English.
#
# **Predict:** how many tokens does it need for *küçük mavi bir küre* (a small blue sphere)?

# %%
for title, t in (("ours", ours), ("CLIP", openai)):
    print(f"{title}: {' '.join(t.tokens('küçük mavi bir küre'))}")
assert len(ours.encode("küçük mavi bir küre")) < len(openai.encode("küçük mavi bir küre"))

# %%
each = {}
for title, t in (("words", None), ("ours", ours), ("CLIP", openai)):
    for k, language in enumerate(LANGUAGES):
        texts = corpus[k::2]
        each[title, language] = np.mean([len(t.encode(text) if t else text.split()) for text in texts])
figure = plots.figure(6, 2.6)
axes = figure.add_subplot(ylabel="for a caption", title="the same scenes in two languages", xticks=[0, 1, 2],
                          xticklabels=["words", "tokens, ours", "tokens, CLIP"])
for k, (language, label) in enumerate((("en", "English"), ("tr", "Turkish"))):
    axes.bar(np.arange(3) + 0.4 * k - 0.2, [each[title, language] for title in ("words", "ours", "CLIP")], 0.4,
             label=label)
axes.legend()
show(figure, "Words and tokens a caption for English and Turkish: Turkish needs fewer words and fewer of our tokens, "
     "but about twice as many of CLIP's.")
for (title, language), mean in each.items():
    print(f"{title:6}{language}: {mean:4.1f}, {mean / each['words', language]:.1f} a word")
assert each["words", "tr"] < each["words", "en"] and each["CLIP", "tr"] > each["CLIP", "en"]

# %% [markdown]
# Turkish says the same in fewer words, and CLIP breaks those into pieces: less fits into the 75, and the pieces mean
# little to it. Our model saw both languages, and so has tokens for both.
#
# Two things to know about Turkish letters. A composed *ü* and a *u* with two dots put on it afterwards look alike and
# have different bytes; the cleaning makes them one. But lower case is that of English:

# %%
assert "ü" != "u\u0308" and clean("ku\u0308p") == clean("küp")
for text in ("KÜP", "IŞIK", "İSTANBUL"):
    print(f"{text} of {len(text)} letters becomes {clean(text)} of {len(clean(text))}")
assert clean("IŞIK") != "ışık" and clean("İSTANBUL") != "istanbul"

# %% [markdown]
# *IŞIK* (light) should become *ışık* and gets dotted letters instead; *İ* becomes an *i* with another dot upon it, a
# letter of its own. CLIP was trained so, and the package does the same. Whoever writes Turkish prompts writes them in
# lower case, or solves exercise 3.
#
# ## And 768, and 1024
#
# The ids have served when each has become a vector. The matrix that the UNet gets:

# %%
for preset in (sd.config, sd1(), sd2_base()):
    print(f"{preset.name:9} {preset.text.context_length} x {preset.text.width}")
assert (sd1().text.width, sd2_base().text.width) == (768, 1024)

# %% [markdown]
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/03_tokens.py`.
#
# **1.** Count the pairs of neighbours. `spelled` maps a word to its list of ids, `counts` a word to how often it
# occurs. Return a dictionary from pair to number.


# %%
def count_pairs(spelled, counts):
    return ...


exercise.check_count_pairs(count_pairs)

# %% [markdown]
# **2.** Make a row of `length` places from the ids of a prompt: start, prompt, end, padding. Cut what is too long, but
# keep the end.


# %%
def fit(ids, start, end, pad, length=77):
    return ...


exercise.check_fit(fit)

# %% [markdown]
# **3.** Lower case for Turkish: I becomes ı, İ becomes i, and all else as usual.


# %%
def lower_turkish(text):
    return ...


exercise.check_lower_turkish(lower_turkish)
