"""The original layout: the whole model in one .safetensors file, as CompVis and Stability AI released it.

    model.diffusion_model.*                  the UNet under LDM's names
    first_stage_model.*                      the VAE under LDM's names
    cond_stage_model.transformer.*           SD 1.x: the text encoder under the names of transformers
    cond_stage_model.model.*                 SD 2.x: the text encoder under OpenCLIP's names
    depth_model.model.*                      depth-to-image: MiDaS

The file has no configuration: shapes tell the family, and for SD 2.x only the weights can tell eps from v.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp

from sdjax.checkpoint.layouts import UNREAD, bare_tower, by_modules, openclip_text, original_unet, original_vae
from sdjax.checkpoint.midas_layouts import PREFIX as DEPTH
from sdjax.checkpoint.midas_layouts import UNREAD_ORIGINAL, original_midas
from sdjax.checkpoint.parts import (
    Checkpoint,
    File,
    Name,
    Part,
    WrongFamily,
    by_channels,
    check,
    check_tokenizer,
)
from sdjax.config import (
    ModelConfig,
    TextConfig,
    from_dict,
    sd1,
    sd1_inpaint,
    sd2_base,
    sd2_depth,
    sd2_inpaint,
    x4_upscaler,
)
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.tokenizer import Tokenizer

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TRANSFORMERS, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
CONFIG, VOCABULARY = "sdjax.config", "sdjax.tokenizer"  # in the metadata of files that `to_original` wrote

# By the width of the text that the UNet reads, and the channels that it takes in.
FAMILIES = {
    (768, 4): sd1, (1024, 4): sd2_base, (768, 9): sd1_inpaint, (1024, 9): sd2_inpaint, (1024, 7): x4_upscaler,
    (1024, 5): sd2_depth,
}
CONTEXT = re.compile(rf"{re.escape(UNET)}.*attn2\.to_k\.weight")

# What other files begin with, or contain, that people have lying beside these.
OTHERS = (
    (r"lora_|.*\.lora[._]|.*[._]lora_(up|down|A|B)\b", "a LoRA, which changes a model and is none"),
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "Flux"),
    (r"(control_model|controlnet_cond_embedding)\.", "a ControlNet"),
    (r"emb_params|string_to_param", "a textual inversion, which adds words to a model and is none"),
)
# And what a part alone begins with.
ALONE = (
    (r"(down_blocks|time_embedding|conv_in)\.", "the UNet alone, out of a diffusers folder: give the whole folder"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid|up|down)", "a VAE alone"),
    (r"(text_model|vision_model)\.", "a CLIP alone, which sdjax.load_clip takes"),
    (r"cond_stage_model\.", "a text encoder alone"),
)


def opened(file: File) -> Checkpoint:
    """The model in one file, its family told from the shapes, or from the configuration that `to_original` adds."""
    names = file.names()
    for pattern, what in OTHERS:
        if any(map(re.compile(pattern).match, names)):
            raise WrongFamily(file.path, what)
    if not any(name.startswith(UNET) for name in names):
        for pattern, what in ALONE:
            if any(map(re.compile(pattern).match, names)):
                raise WrongFamily(file.path, what)
        some = ", ".join(names[:3])[:120]
        raise WrongFamily(file.path, f"no such model: it has {len(names)} tensors, such as {some}")
    openclip = any(name.startswith(OPENCLIP) for name in names)
    config = told(file) if CONFIG in file.metadata else by_shapes(file, openclip)
    check(config, str(file.path))

    split: dict[str, list[Name]] = {UNET: [], VAE: [], TRANSFORMERS: [], OPENCLIP: [], DEPTH: []}
    strays = []
    for name in names:
        prefix = next((p for p in split if name.startswith(p)), None)
        if prefix is None:
            strays += [] if UNREAD.fullmatch(name) else [name]
            continue
        plain = name.removeprefix(prefix)
        split[prefix].append(Name(bare_tower(plain) if prefix == TRANSFORMERS else plain, name))
    text, other = (OPENCLIP, TRANSFORMERS) if openclip else (TRANSFORMERS, OPENCLIP)
    strays += [n.stored for n in split[other]]
    unread = unread_of_text(config.text, openclip)
    text_names = [n for n in split[text] if not unread.fullmatch(n.plain)]
    parts = {
        "text_encoder": Part.of("text_encoder", config.text, file, text_names,
                                lambda p: openclip_text(p, config.text) if openclip else by_modules(p),
                                OPENCLIP if openclip else f"{TRANSFORMERS}text_model."),
        "vae": Part.of("vae", config.vae, file, split[VAE], lambda p: original_vae(p, config.vae), VAE),
        "unet": Part.of("unet", config.unet, file, split[UNET], lambda p: original_unet(p, config.unet), UNET),
    }
    if config.depth is None:
        strays += [n.stored for n in split[DEPTH]]
    else:
        depth_names = [n for n in split[DEPTH] if not UNREAD_ORIGINAL.fullmatch(n.plain)]
        parts["depth_estimator"] = Part.of("depth_estimator", config.depth, file, depth_names, original_midas, DEPTH)
    tokenizer = check_tokenizer(vocabulary(file, config.text), config.text, str(file.path))
    # SD 1.x and inpainting were never trained on v; in SD 2.x the two have the same tensors.
    known = CONFIG in file.metadata or config.name != "sd2-base"
    return Checkpoint(Path(file.path), "original", config, tokenizer, parts, strays, known)


def unread_of_text(c: TextConfig, openclip: bool) -> re.Pattern:
    """The text tensors that nothing reads: SD 2.x stops before OpenCLIP's last layer and has no use for its space."""
    if not openclip:
        return re.compile(r"embeddings\.position_ids")
    projection = "" if c.projection else "|text_projection"
    return re.compile(rf"logit_scale|transformer\.resblocks\.{c.layers}\..*{projection}")


def by_shapes(file: File, openclip: bool) -> ModelConfig:
    """The family of a released file; told by the width of the text and the channels that the UNet takes in."""
    conv_in = f"{UNET}input_blocks.0.0.weight"
    shape = file.shape(conv_in) if conv_in in file.names() else ()
    channels = shape[1] if len(shape) == 4 else 4
    widths = [file.shape(name)[-1] for name in file.names() if CONTEXT.fullmatch(name) and file.shape(name)]
    width = widths[0] if widths else 1024 if openclip else 768
    if width not in {known for known, _ in FAMILIES}:
        raise WrongFamily(file.path, f"a model whose UNet reads texts of width {width}")
    if (width, channels) not in FAMILIES:
        raise WrongFamily(file.path, by_channels(channels))
    return FAMILIES[width, channels]()


def told(file: File) -> ModelConfig:
    """The configuration in the metadata of a file that `to_original` wrote."""
    try:
        values = json.loads(file.metadata[CONFIG])
    except (ValueError, RecursionError):
        raise InputError(f"{file.path}: the metadata's {CONFIG} is not JSON; export the model again") from None
    return from_dict(values, f"{file.path}: {CONFIG}")


def vocabulary(file: File, c: TextConfig) -> Tokenizer:
    """CLIP's vocabulary, or the one in the metadata of a file that `to_original` wrote."""
    if VOCABULARY not in file.metadata:
        return Tokenizer.clip(c.padding)
    merges = file.metadata[VOCABULARY].split("\n") if file.metadata[VOCABULARY] else []
    try:
        return Tokenizer(merges, context_length=c.context_length, padding=c.padding)
    except InputError as error:
        raise InputError(f"{file.path}: {VOCABULARY}: {error}") from None


def predicts_v(unet: Network) -> bool:
    """Whether a UNet predicts v: at t = 999 its input is all noise, so that eps is the input and v is not.

    AUTOMATIC1111/stable-diffusion-webui modules/sd_models_config.py has the test and the threshold. Weights that were
    never trained tell nothing.
    """
    x = jnp.full((1, 8, 8, unet.config.in_channels), 0.5)
    context = jnp.full((1, 2, unet.config.context_width), 0.5)
    return float(jnp.mean(unet(x, jnp.array([999]), context) - x)) < -1.0
