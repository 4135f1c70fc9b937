"""The layouts of weights as tables: what a tensor is called in a file, and which of our parameters it holds.

    ours          down_blocks.0.resnets.1.conv1.kernel                    HWIO, [in, out]; the layout of `sdjax convert`
    diffusers     down_blocks.0.resnets.1.conv1.weight                    OIHW, [out, in], as torch has it
    original      input_blocks.2.0.in_layers.2.weight                     the same under the names of LDM

A table goes from a tensor's name, without the prefix of its part, to the parameters that lie in it one after another:
one, or three where OpenCLIP keeps queries, keys and values in one matrix. Loading reads it from left to right,
exporting from right to left. Sources: CompVis/stable-diffusion ldm/modules/diffusionmodules/{openaimodel,model}.py,
mlfoundations/open_clip src/open_clip/transformer.py; the same map is in huggingface/diffusers
loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sdjax.config import TextConfig, UNetConfig, VAEConfig
from sdjax.unet import rows

Table = dict[str, tuple[str, ...]]
Shape = tuple[int, ...]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's names and torch's
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # [in, out] to [out, in], HWIO to OIHW
FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}

# Inside a residual block, an attention or a text layer: our module and the original's.
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}

# Matrices that are written as 1x1 convolutions: in a UNet without linear projections, and in the original VAE.
UNET_CONVOLUTIONS = re.compile(r".*\.proj_(in|out)\.weight")
VAE_CONVOLUTIONS = re.compile(r".*\.attn_1\.(q|k|v|proj_out)\.weight")

# The VAE's attention before diffusers 0.12, models/modeling_utils.py `_fix_state_dict_keys_on_load`.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD = re.compile(rf"(mid_block\.attentions\.0\.)({'|'.join(OLD_ATTENTION)})\.")

# Of the original layout, what nothing reads: EMA copies and the noise schedule, which the configuration has.
UNREAD = re.compile(
    r"model_ema\..*|logvar|(low_scale_model\.)?(betas|((sqrt|log)_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12]))"
)


def turned(name: str, parameter: str) -> bool:
    """Whether tensor `name` holds `parameter` with torch's order of axes: not ours, nor OpenCLIP's bare matrices."""
    return name.endswith("weight") and parameter.endswith("kernel")


def stored_shape(name: str, parameters: tuple[str, ...], shapes: Mapping[str, Shape]) -> Shape:
    """The shape of tensor `name` in a file, from the shapes of the parameters in it."""
    shape = shapes[parameters[0]]
    if turned(name, parameters[0]):
        shape = tuple(shape[axis] for axis in TO_TORCH[len(shape)])
    return (len(parameters) * shape[0], *shape[1:]) if len(parameters) > 1 else shape


def by_modules(parameters: Iterable[str]) -> Table:
    """The table of diffusers and transformers: our paths, torch's names for the leaves."""
    table = {}
    for parameter in parameters:
        module, _, leaf = parameter.rpartition(".")
        table[f"{module}.{LEAVES.get(leaf, leaf)}"] = (parameter,)
    return table


def original_unet(parameters: Iterable[str], c: UNetConfig) -> Table:
    """The UNet's table in the original layout, without the prefix model.diffusion_model."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    def resnet(ours: str, theirs: str) -> None:
        modules.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in UNET_RESNET.items()})

    going_in, going_out = 1, 0
    for row in rows(c):
        side = row.name.split("_")[0]
        if side == "mid":
            resnet("mid_block.resnets.0", "middle_block.0")
            modules["mid_block.attentions.0"] = "middle_block.1"
            resnet("mid_block.resnets.1", "middle_block.2")
            continue
        for layer in range(len(row.inputs)):
            block = f"input_blocks.{going_in}" if side == "down" else f"output_blocks.{going_out}"
            resnet(f"{row.name}.resnets.{layer}", f"{block}.0")
            modules[f"{row.name}.attentions.{layer}"] = f"{block}.1"
            going_in, going_out = going_in + (side == "down"), going_out + (side == "up")
        if row.resize == "down":  # a block of its own
            modules[f"{row.name}.downsamplers.0.conv"] = f"input_blocks.{going_in}.0.op"
            going_in += 1
        if row.resize == "up":  # the last member of the level's last block: 2 after an attention, else 1
            member = 1 if row.heads is None else 2
            modules[f"{row.name}.upsamplers.0.conv"] = f"output_blocks.{going_out - 1}.{member}.conv"
    return _renamed(by_modules(parameters), modules)


def original_vae(parameters: Iterable[str], c: VAEConfig) -> Table:
    """The VAE's table in the original layout, without the prefix first_stage_model."""
    modules = {}
    levels = len(c.channels)
    for side in ("encoder", "decoder"):
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        blocks = {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        for i in range(levels):
            if side == "encoder":
                ours, theirs = f"{side}.down_blocks.{i}", f"{side}.down.{i}"
                modules[f"{ours}.downsamplers.0"] = f"{theirs}.downsample"
            else:  # ours in the order of the data, theirs in that of the encoder
                ours, theirs = f"{side}.up_blocks.{i}", f"{side}.up.{levels - 1 - i}"
                modules[f"{ours}.upsamplers.0"] = f"{theirs}.upsample"
            blocks |= {f"{ours}.resnets.{j}": f"{theirs}.block.{j}" for j in range(c.blocks + 1)}
        for ours, theirs in blocks.items():
            modules[ours] = theirs
            modules.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in VAE_RESNET.items()})
        attention = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        modules.update({f"{attention[0]}.{a}": f"{attention[1]}.{b}" for a, b in VAE_ATTENTION.items()})
    return _renamed(by_modules(parameters), modules)


def openclip_text(parameters: Iterable[str], c: TextConfig) -> Table:
    """The text tower's table in OpenCLIP's layout, without the prefix cond_stage_model.model."""
    table = by_modules(parameters)
    modules = {
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
    fused = {}
    for n in range(c.layers):
        ours, theirs = f"encoder.layers.{n}", f"transformer.resblocks.{n}"
        modules.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in OPENCLIP_LAYER.items()})
        for leaf in ("weight", "bias"):
            parts = [table.pop(f"{ours}.self_attn.{x}_proj.{leaf}") for x in "qkv"]
            fused[f"{theirs}.attn.in_proj_{leaf}"] = sum(parts, ())
    return _renamed(table, modules) | fused


def _renamed(table: Table, modules: Mapping[str, str]) -> Table:
    """The table with the longest beginning of each name that `modules` knows replaced."""
    result = {}
    for name, parameters in table.items():
        path = name.split(".")
        for n in range(len(path), 0, -1):
            if (head := ".".join(path[:n])) in modules:
                name = ".".join([modules[head], *path[n:]])
                break
        result[name] = parameters
    return result


def modern_vae(name: str) -> str:
    """A VAE tensor's name in today's diffusers: the attention's four matrices were once called otherwise."""
    return OLD.sub(lambda found: f"{found[1]}{OLD_ATTENTION[found[2]]}.", name)


def bare_tower(name: str) -> str:
    """A tensor of a CLIP tower without the tower's prefix, which transformers 5.6 and newer leave out."""
    return re.sub(r"^(text_model|vision_model)\.", "", name)
