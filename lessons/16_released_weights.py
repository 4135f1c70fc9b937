# %% [markdown]
# # 16. The released weights: what is in the file
#
# *Design card: modules load converted safetensors weights and are jit-compiled for GPU or TPU.*
#
# Stable Diffusion was released as files of gigabytes in two layouts, and a program that reads them has to know both by
# heart. This lesson reads such a file with nothing but `json` and NumPy, finds a weight in it and turns it the way JAX
# wants it, writes our small model in both layouts, loads it back bit for bit, and lets the package find out what a file
# is. Where the environment variable `SDJAX_WEIGHTS` names a released file or folder, the last cells run on that too.
#
# About 50 seconds and 2 GB on two cores.

# %%
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from checks import weights as exercise
from flax import nnx
from IPython.display import display
from lesson import show
from PIL import Image

import sdjax
from sdjax import config, plots
from sdjax.checkpoint import export, tree
from sdjax.checkpoint.load import convert, describe
from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.clip import TextEncoder
from sdjax.unet import UNet
from sdjax.vae import VAE

sd = sdjax.load("../weights/tiny")
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## Two layouts
#
# The *original* layout is what CompVis released: one file, all parts in it. The *diffusers* layout is a folder with a
# subfolder and a configuration for each part. Here is our small model in either.

# %%
single, parts = folder / "tiny.safetensors", folder / "tiny-diffusers"
export.to_original(sd, single)
export.to_diffusers(sd, parts)
for path in [single, *sorted(p for p in parts.rglob("*") if p.is_file())]:
    print(f"{str(path.relative_to(folder)):<55}{path.stat().st_size / 1e6:8.3f} MB")

# %% [markdown]
# ## The format, by hand
#
# A safetensors file is 8 bytes that say how long the header is, the header in JSON, and then bare numbers. The header
# has for each tensor its type, its shape, and where its bytes begin and end. Nothing in it can run, unlike in a
# `.ckpt`, which is a pickle and runs whatever its maker put in. So the package reads this and refuses that.


# %%
def header_of(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


header, data_starts = header_of(single)
metadata = header.pop("__metadata__")
print(len(header), "tensors; the header has", data_starts - 8, "bytes; metadata:", list(metadata))
for name in list(header)[:3]:
    print(name, header[name])
end = max(entry["data_offsets"][1] for entry in header.values())
assert single.stat().st_size == data_starts + end  # the numbers fill the file to its end

# %% [markdown]
# Three prefixes tell the parts.
#
# **Predict:** which part has most tensors, and does it also have most bytes?

# %%
PREFIXES = {"cond_stage_model.": "text encoder", "first_stage_model.": "VAE", "model.diffusion_model.": "UNet"}
count, size = Counter(), Counter()
for name, entry in header.items():
    part = next(word for prefix, word in PREFIXES.items() if name.startswith(prefix))
    begin, end = entry["data_offsets"]
    count[part] += 1
    size[part] += end - begin
for part in count:
    print(f"{part:<14}{count[part]:4} tensors {size[part] / 1e6:7.2f} MB")
assert max(size, key=size.get) == "UNet"

# %% [markdown]
# ## One weight, from the file to the network
#
# PyTorch keeps the kernel of a convolution as [outputs, inputs, height, width], JAX as [height, width, inputs,
# outputs]. A matrix is likewise turned. So reading a file is: find the bytes, shape them, turn them, and know the name.


# %%
def tensor_of(path, name):
    header, starts = header_of(path)
    begin, end = header[name]["data_offsets"]
    with open(path, "rb") as file:
        file.seek(starts + begin)
        return np.frombuffer(file.read(end - begin), "<f4").reshape(header[name]["shape"])


stored = tensor_of(single, "model.diffusion_model.input_blocks.0.0.weight")
ours = sd.unet.module.conv_in.kernel[...]
print("in the file", stored.shape, " in the network", ours.shape)
assert (stored.transpose(2, 3, 1, 0) == ours).all()

# %% [markdown]
# The names are where the work is. The original numbers the blocks of the UNet through, whatever they are; diffusers,
# whose names ours follow, says what each is. The same tensors in both, matched by their values:

# %%
theirs = header_of(parts / "unet" / "diffusion_pytorch_model.safetensors")[0]
chosen = ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "down_blocks.1.attentions.0.proj_in.weight",
          "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "up_blocks.2.resnets.1.conv2.weight"]
by_value = {}
for name in (n for n in header if n.startswith("model.diffusion_model.")):
    by_value.setdefault(tensor_of(single, name).tobytes(), name)
for name in chosen:
    value = tensor_of(parts / "unet" / "diffusion_pytorch_model.safetensors", name)
    print(f"{name:<62}= {by_value[value.tobytes()].removeprefix('model.diffusion_model.')}")
assert len(theirs) - ("__metadata__" in theirs) == count["UNet"]

# %% [markdown]
# `sdjax/checkpoint/layouts.py` is the table of these names, computed from the configuration rather than listed, so that
# it holds for every size.
#
# ## Back again, bit for bit
#
# **Predict:** out to a file in another layout, with other names and other orders of axes, and back: how many of the
# numbers change?

# %%
flat = lambda network: tree.flatten(network.state)
loaded = {"one file": sdjax.load(single), "diffusers folder": sdjax.load(parts)}
for layout, model in loaded.items():
    compared = 0
    for part in ("text_encoder", "vae", "unet"):
        before, after = flat(getattr(sd, part)), flat(getattr(model, part))
        assert before.keys() == after.keys()
        assert all((np.asarray(before[name]) == np.asarray(after[name])).all() for name in before)
        compared += sum(array.size for array in before.values())
    print(f"{layout}: {compared:,} numbers, all equal")
    assert model.config.unet == sd.config.unet and model.config.diffusion == sd.config.diffusion

# %% [markdown]
# None. And so are the pictures:

# %%
drawn = [model.txt2img("a red sphere", steps=20, seed=3)[0] for model in (sd, *loaded.values())]
assert all((picture == drawn[0]).all() for picture in drawn)
show(plots.pictures(drawn, ["our own layout", *loaded]),
     "The prompt a red sphere, drawn by the same weights from three layouts: three equal pictures.")

# %% [markdown]
# ## What is this file?
#
# `sdjax info` says it from the file's header (an SD 2.x file it also asks something, below), and `sdjax convert` writes
# a folder in our own layout, in which tensors lie as the networks hold them. `--dtype float16` halves it.


# %%
def sdjax_(*words):
    ran = subprocess.run([sys.executable, "-m", "sdjax", *map(str, words)], capture_output=True, text=True, cwd=folder)
    return ran.returncode, (ran.stdout + ran.stderr).replace(f"{folder}{os.sep}", "")


print(sdjax_("info", single)[1])
print(sdjax_("info", parts)[1])

# %%
convert(single, folder / "converted", "float16")
code, said = sdjax_("info", "converted")
print(said)
assert code == 0 and "float16" in said
again = sdjax.load(folder / "converted")
assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(flat(sd.unet).values(), flat(again.unet).values()))

# %% [markdown]
# Equal even through half precision, since the shipped weights are stored in it.
#
# Released files do not say what they are: ours carries its configuration in the metadata, theirs carry none. The shapes
# tell. A look at the width that cross-attention reads text at gives the family, and the input channels of the UNet give
# the purpose. Whether an SD 2.x file predicts $\epsilon$ or $v$ stands nowhere; the package gives the network the same
# number everywhere at $t = 999$, where its input is all noise, and looks whether it answers with that (lesson 5).

# %%
for name in ("sd1", "sd2", "sd1-inpaint", "x4-upscaler", "sd2-depth"):
    c = config.PRESETS[name]()
    print(f"{name:<12} text {c.unet.context_width:>5} wide, {c.unet.in_channels} channels: "
          f"{config.PURPOSES[c.unet.in_channels]}")
assert (config.sd1().unet.context_width, config.sd2().unet.context_width) == (768, 1024)

# %% [markdown]
# How large are they? `nnx.eval_shape` builds a network of shapes alone, without a number in it.

# %%
parameters = {}


def size_of(kind, c):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: kind(c, rngs=nnx.Rngs(0))))))


for name in ("tiny", "sd1", "sd2"):
    c = sd.config if name == "tiny" else config.PRESETS[name]()
    networks = {"text encoder": (TextEncoder, c.text), "VAE": (VAE, c.vae), "UNet": (UNet, c.unet)}
    parameters[name] = {part: size_of(*built) for part, built in networks.items()}
    print(f"{name:<6}", ", ".join(f"{part} {n / 1e6:,.1f} million" for part, n in parameters[name].items()) + ";",
          f"in all {4 * sum(parameters[name].values()) / 1e9:.2f} GB in float32")
assert parameters["tiny"]["UNet"] == sd.unet.size

figure = plots.figure(6, 2.6)
axes = figure.add_subplot(xlabel="GB in float32", title="where the bytes of a released model are")
left = np.zeros(2)
for part in ("text encoder", "VAE", "UNet"):
    widths = np.array([4 * parameters[name][part] / 1e9 for name in ("sd1", "sd2")])
    axes.barh(["SD 1.x", "SD 2.x"], widths, left=left, label=part)
    left += widths
axes.set_xlim(right=7)  # room for the names
axes.legend(loc="lower right")
show(figure, "Two bars of gigabytes, SD 1.x and SD 2.x, cut into text encoder, VAE and UNet; the UNet is most of each.")

# %% [markdown]
# ## Files that are not right
#
# Downloads break off, and files are not what their names say. The package checks what a header claims against the file
# before it reads a weight.
#
# **Predict:** four files: cut short, one tensor missing, one of another shape, and a pickle. Which of them load?

# %%
raw = single.read_bytes()
(folder / "short.safetensors").write_bytes(raw[:-1000])
(folder / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
tensors = {name: tensor_of(single, name) for name in header}
first = "model.diffusion_model.input_blocks.0.0.weight"
write_safetensors(
    folder / "missing.safetensors", {n: a for n, a in tensors.items() if n != first}, metadata)
write_safetensors(
    folder / "misshapen.safetensors", tensors | {first: tensors[first][:, :3].copy()}, metadata)
for name in ("short.safetensors", "missing.safetensors", "misshapen.safetensors", "old.ckpt"):
    try:
        sdjax.load(folder / name)
        raise AssertionError(f"{name} was loaded")
    except sdjax.InputError as error:
        print("refused:", str(error).replace(f"{folder}{os.sep}", ""), "\n")

# %% [markdown]
# None. Each error says which file, which tensor, what was found and what was expected.
#
# ## The real thing
#
# `sdjax download sd15` fetches SD 1.5 and checks its sha256 (it needs the extra `hub`). With `SDJAX_WEIGHTS` set to the
# path of a file or folder, this cell looks into it, and draws if that is wanted too: `SDJAX_DRAW=1`, which takes
# minutes and about 8 GB on a processor.

# %%
real = os.environ.get("SDJAX_WEIGHTS")
if not real:
    print("SDJAX_WEIGHTS is not set, so no released weights are looked at here.")
else:
    found = describe(real)
    print(found.layout, found.family, found.prediction, found.dtypes)
    print({part: f"{n:,}" for part, n in found.parameters.items()})
    assert not found.problems, found.problems
    if Path(real).is_file():
        print(Counter(re.match(r"\w+(?:\.diffusion_model)?", name)[0] for name in SafetensorsFile(real).names()))
    if os.environ.get("SDJAX_DRAW"):
        model = sdjax.load(real, dtype="bfloat16")
        [astronaut] = model.txt2img("an astronaut riding a horse", steps=20, seed=0)
        display(Image.fromarray(sdjax.to_uint8(astronaut)))

# %%
temporary.cleanup()

# %% [markdown]
# ## Exercises
#
# Write each function, then run its check; it says what is wrong. Solutions: `solutions/16_released_weights.py`.
#
# **1.** The names and shapes in a safetensors file, given all of its bytes: a dictionary from name to tuple.


# %%
def shapes_in(raw):
    return ...


exercise.check_shapes_in(shapes_in)

# %% [markdown]
# **2.** A weight as PyTorch stores it, a matrix [out, in] or a kernel [out, in, height, width], as JAX wants it. In
# files of SD 1.x some matrices are stored as kernels of 1 x 1; with `matrix=True` such a one becomes a matrix.


# %%
def to_jax(weight, matrix=False):
    return ...


exercise.check_to_jax(to_jax)

# %% [markdown]
# **3.** The family of a file in the original layout, "sd1" or "sd2", from the names and shapes of its tensors.


# %%
def family(shapes):
    return ...


exercise.check_family(family)
