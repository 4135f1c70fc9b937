# %% [markdown]
# # 13. Making it fast
#
# *Design card: modules are jit-compiled for GPU or TPU; used by running inference on TPUs.*
#
# JAX runs Python once to see which operations it asks for, compiles these into one program, and runs the program from
# then on. This lesson measures what that buys and what it costs: when the program has to be compiled again, why a loop
# of the network belongs into `lax.scan`, what bfloat16 saves and loses, three ways to compute attention with the same
# result, and how a batch spreads over eight devices. The eight are pretended ones, and at the end a program is made
# for a TPU on a machine that has none.
#
# Times differ from machine to machine and from minute to minute. So this lesson asserts what holds anywhere: which of
# two is larger, how many programs there are, how many bytes one needs. Under two minutes and 2 GB on two cores.
#
# The processor pretends to be eight devices where this is said before JAX starts:

# %%
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import importlib.util
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from checks import fast as exercise
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from lesson import show

import sdjax
from sdjax import attention, diffusion, plots, samplers
from sdjax.config import UNetConfig, sd1
from sdjax.hardware import Network
from sdjax.unet import UNet

jax.config.update("jax_enable_compilation_cache", False)  # here, to compile means to compile
sd = sdjax.load("../weights/tiny")
print(len(jax.devices()), "devices")

# %% [markdown]
# ## A stopwatch
#
# JAX answers before it has finished: a call gives an array that is still being computed. `block_until_ready` waits. The
# first call compiles and is not counted. Candidates take turns, so that a machine that slows down slows them all, and
# the median ignores the one round in which something else ran.


# %%
def medians(candidates, rounds=5):
    """Seconds of each function, the median of `rounds` rounds, in each of which every one has its turn."""
    times = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, function in candidates.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


# %% [markdown]
# ## jit
#
# The text encoder twice: `sd.text_encoder.module` is the plain module, whose operations run one by one as Python meets
# them; `sd.text_encoder` is the same as a compiled program.
#
# **Predict:** which is faster, and do they agree?

# %%
ids = sd.tokenizer(["a red sphere"])
plain = sd.text_encoder.module
assert np.allclose(plain(ids), sd.text_encoder(ids), atol=1e-4)
took = medians({"one by one": lambda: plain(ids), "compiled": lambda: sd.text_encoder(ids)})
print(f"one by one {1000 * took['one by one']:.1f} ms, compiled {1000 * took['compiled']:.1f} ms: "
      f"{took['one by one'] / took['compiled']:.0f} times")
assert took["compiled"] < took["one by one"]

# %% [markdown]
# Some hundred operations, each handed over by Python and each writing its result to memory, against one program that
# joins neighbours. On a GPU or TPU, where an operation takes less time than Python needs to ask for it, the gap is
# wider.
#
# ## What recompiles
#
# A program fits one set of shapes and dtypes. The *values* of arrays do not matter. A `print` or an `append` inside a
# jitted function runs only while JAX looks at it, which makes a counter:

# %%
looked = []


@partial(jax.jit, static_argnames="steps")
def halve(x, scale, steps):
    looked.append((x.shape, steps))
    for _ in range(steps):
        x = x * scale
    return x


# %% [markdown]
# **Predict:** how many programs do these five calls need?

# %%
halve(jnp.ones(4), 0.5, steps=2)
halve(jnp.zeros(4), 0.25, steps=2)  # other values
halve(jnp.ones(5), 0.5, steps=2)  # another shape
halve(jnp.ones(4), 0.5, steps=3)  # another static argument
halve(jnp.ones(4, jnp.bfloat16), 0.5, steps=2)  # another dtype
print(len(looked), "programs, for", looked)
assert len(looked) == 4

# %% [markdown]
# Now the package. JAX reports every compilation to whoever listens. Guidance scale, seed, prompt and eta are arrays to
# the program, and so are the values of the noise schedule; the number of steps and the size are shapes.

# %%
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
)


def programs(what, **options):
    """How many programs a call compiles, and how long it took in all."""
    compiled.clear()
    began = time.perf_counter()
    sd.txt2img(**options)
    print(f"{what:<42}{len(compiled):3} programs compiled, {time.perf_counter() - began:5.1f} s in all")
    return len(compiled)


asked = {"prompt": "a red sphere", "steps": 10, "guidance_scale": 5.0, "seed": 0}
first = programs("the first picture", **asked)
again = programs("other prompt, seed, guidance",
                 **asked | {"prompt": "a blue cone", "seed": 7, "guidance_scale": 7.5, "negative_prompt": "red"})
other = programs("other number of steps", **asked | {"steps": 11})
assert again == 0 and first > 0 and other > 0

# %% [markdown]
# ## scan against a Python loop
#
# A loop written in Python disappears when JAX looks at it: what it sees is its body over and over. `lax.scan` keeps it
# as a loop with one body. Here both are lowered (not run) for a small random UNet.
#
# **Predict:** how does the length of the program grow with the number of steps, for either?

# %%
small = UNetConfig(channels=(8, 8), attention=(False, True), heads=(2, 2), cross_only=(False, False), blocks=1,
                   context_width=12, groups=4)
network = Network.of(UNet(small, rngs=nnx.Rngs(0)))
text = jnp.zeros((1, 77, 12))


def one_step(state, x, row):
    t, a, a_next = row
    eps = nnx.merge(network.graph, state)(x, jnp.full(1, t, jnp.int32), text)
    x0 = (x - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)
    return jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps


def unrolled(state, x, rows):
    for i in range(rows.shape[1]):
        x = one_step(state, x, rows[:, i])
    return x


def scanned(state, x, rows):
    return jax.lax.scan(lambda x, row: (one_step(state, x, row), None), x, rows.T)[0]


def table(steps):
    plan = samplers.ddim_plan(sd.config.diffusion, steps)
    return jnp.stack([plan.t.astype(np.float32), plan.a, plan.a_next])


x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
counts = (1, 2, 4)
lines = {
    name: [len(jax.jit(loop).lower(network.state, x, table(n)).as_text().splitlines()) for n in counts]
    for name, loop in (("Python loop", unrolled), ("scan", scanned))
}
for name, found in lines.items():
    print(f"{name:<12}", ", ".join(f"{n} steps: {f} lines" for n, f in zip(counts, found)))
assert len(set(lines["scan"])) == 1
assert lines["Python loop"][-1] > 3 * lines["Python loop"][0]

# %%
seconds = {}
for name, loop in (("Python loop", unrolled), ("scan", scanned)):
    seconds[name] = []
    for n in counts:
        began = time.perf_counter()
        program = jax.jit(loop).lower(network.state, x, table(n)).compile()
        seconds[name].append(time.perf_counter() - began)
        result = program(network.state, x, table(n))
        assert np.allclose(result, unrolled(network.state, x, table(n)), atol=1e-3) if n == 1 else True
figure = plots.figure(7, 2.8)
for i, (what, values) in enumerate((("lines of the program", lines), ("seconds to compile", seconds))):
    axes = figure.add_subplot(1, 2, i + 1, xlabel="steps", title=what)
    for name, found in values.items():
        axes.plot(counts, found, marker="o", label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
show(figure, "Lines and seconds to compile against the number of steps: up for the Python loop, level for scan.")

# %% [markdown]
# With 50 steps the Python loop would be fifty UNets in one program, each hundreds of times larger than this one. The
# package has both drivers: `txt2img` scans, and `txt2img_steps` compiles one step and comes back to
# Python after each, to be looked into. They draw the same picture.

# %%
*_, last = sd.txt2img_steps(**asked)
assert np.abs(last.pictures() - sd.txt2img(**asked)).max() < 1e-3
took = medians({"scan": lambda: sd.txt2img(**asked), "steps": lambda: list(sd.txt2img_steps(**asked))[-1].latents}, 2)
print(f"the walk by steps takes {took['steps'] / took['scan']:.2f} times as long as the scan with the VAE after it")

# %% [markdown]
# ## bfloat16
#
# Half the bytes. bfloat16 keeps the range of float32 and only 8 bits of the digits; float16 has 11 bits but ends at
# 65504, and SD 2.1 is known to overflow it in attention.

# %%
assert jnp.bfloat16(1 + 1 / 128) > 1 and jnp.bfloat16(1 + 1 / 512) == 1  # the next number after 1 is 1 + 1/128
assert jnp.isinf(jnp.float16(70000)) and jnp.isfinite(jnp.bfloat16(70000))

half = sdjax.load("../weights/tiny", dtype="bfloat16")
size = lambda network: sum(leaf.nbytes for leaf in jax.tree.leaves(network.state))
print(f"the UNet: {size(sd.unet) / 1e6:.1f} MB in float32, {size(half.unet) / 1e6:.1f} MB in bfloat16")
assert size(sd.unet) == 2 * size(half.unet)

# %% [markdown]
# **Predict:** weights and arithmetic lose all but two or three decimal digits. How wrong is the prediction?

# %%
x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))
t, text = jnp.array([500, 500]), sd.text_encoder(sd.tokenizer(["", "a red sphere"]))
exact, rounded = sd.unet(x, t, text), half.unet(x, t, text)
error = float(jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2)))
print(f"relative error of a prediction: {error:.1%}")
assert rounded.dtype == jnp.float32 and 0 < error < 0.1
took = medians({"float32": lambda: sd.unet(x, t, text), "bfloat16": lambda: half.unet(x, t, text)}, 2)
print(f"time on this machine: bfloat16 takes {took['bfloat16'] / took['float32']:.1f} times as long as float32")

# %% [markdown]
# Errors stay small because what must not be rounded is not: statistics of the norms, the logits and the softmax of
# attention, the sampler's arithmetic and the whole VAE are float32 whatever the rest is. Faster it is only where the
# hardware multiplies bfloat16 natively, as TPUs and recent GPUs do; many processors convert to float32 and back.

# %%
def drawn(unet, steps=10, scale=3.0):
    """A picture by the program of `unet` that is compiled already; `text` is the empty one and the prompt."""
    plan, x = samplers.ddim_plan(sd.config.diffusion, steps), samplers.noise(samplers.image_keys(3, 0, 1), 0, x_shape)
    for step, a, a_next in zip(plan.t, plan.a, plan.a_next):
        v = unet(jnp.concatenate([x, x]), jnp.full(2, step), text)
        v = diffusion.guide(v[:1], v[1:], scale)
        x0, eps = diffusion.split_prediction(v, x, a, "v")
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
    return sd.to_pictures(x)[0]


x_shape = x.shape[1:]
pair = [drawn(model.unet) for model in (sd, half)]
show(plots.pictures([*pair, np.abs(pair[0] - pair[1]).max(-1)], ["float32", "bfloat16", "difference"]),
     "The prompt a red sphere drawn in float32 and in bfloat16, which are hard to tell apart, and their difference.")

# %% [markdown]
# ## Attention in three ways
#
# The formula needs every logit: at the finest level of SD 1.5, 8 heads of 4096 queries times 4096 keys. But a row of
# the softmax needs only its own row of logits, so queries can be taken in rows, some at a time.


# %%
def attend_rows(q, k, v, rows=512):
    """The queries [b, h, n, d] by so many, one after the other."""
    b, h, n, d = q.shape
    parts = q.reshape(b, h, n // rows, rows, d).transpose(2, 0, 1, 3, 4)
    mixed = jax.lax.map(lambda part: attention.attend_plain(part, k, v), parts)
    return mixed.transpose(1, 2, 0, 3, 4).reshape(b, h, n, d)


# %% [markdown]
# And one can go further and never hold a whole row: walk over the keys in blocks, keep the largest logit $m$ so far,
# the sum of exponentials $s$ and the mixed values $o$ so far, and shrink both whenever a larger logit turns up. A block
# with logits $l$ and values $v$ makes of them
#
# $$m' = \max(m, \max l), \quad s' = e^{m - m'} s + \textstyle\sum e^{l - m'}, \quad o' = e^{m - m'} o + e^{l - m'} v,$$
#
# and at the end the answer is $o / s$. This is the idea of FlashAttention (arXiv:2205.14135), and
# `attention.attend_blockwise` in the package, where $s$ is one column more of $o$, of values that are all 1: a product
# of matrices sums them for nothing. A quick check on one row of logits, one value each:

# %%
row, value = jnp.array([1.0, 3.0, -2.0, 7.0, 0.0, 5.0]), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
m, s, o = -jnp.inf, 0.0, 0.0
for logits, v in zip(row.reshape(3, 2), value.reshape(3, 2)):  # three blocks of two keys
    larger = jnp.maximum(m, logits.max())
    shrink, weights = jnp.exp(m - larger), jnp.exp(logits - larger)
    m, s, o = larger, shrink * s + weights.sum(), shrink * o + weights @ v
    print(f"largest so far {m:4.1f}, sum {s:.4f}, mixed {o / s:.4f}")
assert jnp.allclose(o / s, jax.nn.softmax(row) @ value)

# %%
ways = {"plain": attention.attend_plain, "rows": attend_rows, "blockwise": attention.attend_blockwise}
q, k, v = jax.random.normal(jax.random.key(2), (3, 1, 4, 1024, 40))
results = {name: jax.jit(way)(q, k, v) for name, way in ways.items()}
for name in ("rows", "blockwise"):
    print(f"{name}: largest difference from plain {float(jnp.abs(results[name] - results['plain']).max()):.0e}")
    assert jnp.allclose(results[name], results["plain"], atol=1e-5)

# %% [markdown]
# The same numbers. Now their memory at the size of SD 1.5: the compiler says how much a program needs before it runs.
#
# **Predict:** the logits of one picture in megabytes?

# %%
side, heads = sd1().image_size // sd1().vae.factor, sd1().unet.heads[0]
shape = jax.ShapeDtypeStruct((1, heads, side * side, sd1().unet.channels[0] // heads), jnp.float32)
logits = heads * side**4 * 4
needs = {name: jax.jit(way).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
         for name, way in ways.items()}
print(f"logits: {logits / 2**20:.0f} MB")
for name, need in needs.items():
    print(f"{name:<10}{need / 2**20:7.0f} MB")
assert logits == 2**29 and needs["plain"] >= logits
assert needs["blockwise"] < needs["rows"] < logits / 3

figure = plots.figure(5, 2.4)
axes = figure.add_subplot(xlabel="MB beside inputs and result", title="attention at the finest level of SD 1.5")
axes.barh(list(needs), [need / 2**20 for need in needs.values()])
axes.invert_yaxis()
show(figure, "Three bars: plain attention needs a gigabyte of scratch memory, rows a share, blocks less.")

# %%
took = medians({name: partial(jax.jit(way), q, k, v) for name, way in ways.items()})
print("time at 1024 queries:", ", ".join(f"{name} {t / took['plain']:.1f}" for name, t in took.items()))

# %% [markdown]
# Blocks are not only smaller, they are faster: what was just written is still in the processor's cache when it is read
# again. `attention.attend` in the package asks `paths.blockwise` and `paths.cudnn`: plain while the logits are few, in
# blocks where they are many, and on a GPU the kernel of its library, which does the same. `paths` also says where a 3x3
# convolution takes a quarter of the multiplications (`convolution.py`, Winograd).
#
# ## A batch over eight devices
#
# Pictures of a batch do not know of one another. So the batch can be cut: `jax.shard_map` runs one program on every
# device of a mesh, each on its own part. The weights are the same everywhere, `P()`; what belongs to a picture is split
# along its first axis, `P("pictures")`.

# %%
mesh = jax.make_mesh((8,), ("pictures",))
plan = samplers.ddim_plan(sd.config.diffusion, 10)
empty, worded = (sd.text_encoder(sd.tokenizer([p])) for p in ("", "a red sphere"))


def sample(state, texts, x):
    """The loop of lesson 9 for whatever pictures this device has."""
    n = len(x)

    def body(x, row):
        t, a, a_next = row
        both = nnx.merge(sd.unet.graph, state)(
            jnp.concatenate([x, x]), jnp.full(2 * n, t), jnp.repeat(texts, n, axis=0, total_repeat_length=2 * n)
        )
        v = diffusion.guide(both[:n], both[n:], 5.0)
        x0, eps = diffusion.split_prediction(v, x, a, "v")
        return jnp.sqrt(a_next) * x0 + jnp.sqrt(1 - a_next) * eps, None

    return jax.lax.scan(body, x, (jnp.asarray(plan.t), jnp.asarray(plan.a), jnp.asarray(plan.a_next)))[0]


spread = jax.jit(jax.shard_map(sample, mesh=mesh, in_specs=(P(), P(), P("pictures")), out_specs=P("pictures")))
noise = samplers.noise(samplers.image_keys(0, 0, 8), 0, (16, 16, 4))
noise = jax.device_put(noise, NamedSharding(mesh, P("pictures")))
texts = jnp.concatenate([empty, worded])
program = spread.lower(sd.unet.state, texts, noise).compile()
latents = program(*jax.device_put((sd.unet.state, texts), NamedSharding(mesh, P())), noise)
for shard in latents.addressable_shards[:3]:
    print(shard.device, "holds", shard.data.shape, "of", latents.shape)
assert len(latents.addressable_shards) == 8 and all(s.data.shape == (1, 16, 16, 4) for s in latents.addressable_shards)

# %% [markdown]
# **Predict:** how often do the devices talk to each other? And does a picture depend on how many there are?

# %%
words = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
talk = sum(program.as_text().count(word) for word in words)
print("exchanges between devices in the program:", talk)
assert talk == 0

alone = sd.txt2img("a red sphere", steps=10, guidance_scale=5.0, seed=0, first_image=6)
pictures = sd.to_pictures(np.asarray(latents))  # gathered: the VAE's program here is for one device
print(f"picture 6 here and alone on one device, largest difference: {np.abs(pictures[6] - alone[0]).max():.0e}")
assert np.abs(pictures[6] - alone[0]).max() < 1e-2
show(plots.pictures(pictures, [f"device {s.device.id}" for s in latents.addressable_shards], columns=4, side=1.4),
     "Eight pictures for the prompt a red sphere, each from the device whose number stands above it.")

# %% [markdown]
# Never; and no, since its noise comes from its own key (lesson 9). Eight real devices draw eight pictures in the time
# of one. Our eight share a few cores and gain nothing, but the program is the one that eight TPUs would run.
# `sd.spread(8)` does the same for every method that draws, for any number of pictures (`--devices 8` on the command
# line); there the compiler cuts the one program along the batch, as the places of its inputs ask.
#
# ## For a TPU, without one
#
# Lowering is free of hardware: `jax.export` gives the program for any platform as StableHLO, the language that goes to
# its compiler.

# %%
shapes = jax.eval_shape(lambda: (sd.unet.state, x, t, text))
exported = jax.export.export(jax.jit(lambda s, x, t, text: nnx.merge(sd.unet.graph, s)(x, t, text)),
                             platforms=["tpu"])(*shapes)
print(exported.platforms, "->", len(exported.mlir_module().splitlines()), "lines of StableHLO; result",
      exported.out_avals[0])
assert exported.platforms == ("tpu",) and exported.out_avals[0].shape == x.shape

# %% [markdown]
# The compiler itself is in the package `libtpu`, which installs on any Linux machine and compiles for a TPU that is
# only described. It finds real mistakes, such as a program too large for the chip's memory. `make tpu-check` compiles
# the whole of text to image in this way, in an environment of its own, since processor and TPU want other flags.


# %%
def compiled_for_tpu(topology="v5e:2x2"):
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    one = NamedSharding(jax.sharding.Mesh(chips[:1], ("pictures",)), P())
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    return jax.jit(lambda s, x, t, text: nnx.merge(sd.unet.graph, s)(x, t, text)).lower(*placed).compile()


if importlib.util.find_spec("libtpu"):
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to be asked what it is
    memory = compiled_for_tpu().memory_analysis()
    print(f"compiled for one chip of a TPU v5e: {memory.temp_size_in_bytes / 2**20:.1f} MB beside weights and inputs")
else:
    print("libtpu is not installed, so nothing was compiled for a TPU here; the function above is what would run.")

# %% [markdown]
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/13_fast.py`.
#
# **1.** `steps` times `x = body(x)`, as a `lax.scan`, so that the program does not grow with `steps`.


# %%
def repeated(body, x, steps):
    return ...


exercise.check_repeated(repeated)

# %% [markdown]
# **2.** The bytes of the float32 logits of self-attention, for latents of `side` x `side`, a batch of `pictures` drawn
# with guidance.


# %%
def bytes_of_logits(side, heads, pictures):
    return ...


exercise.check_bytes_of_logits(bytes_of_logits)

# %% [markdown]
# **3.** A service gets requests, each a dictionary with the keys `height`, `width`, `num_images`, `steps`,
# `guidance_scale` and `seed`. How many programs for the loop will it compile? (Guidance is always above 1.)


# %%
def programs_needed(requests):
    return ...


exercise.check_programs_needed(programs_needed)
