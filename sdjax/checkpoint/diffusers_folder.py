"""The layout of diffusers: a folder with a subfolder for each part, each with a config.json, read field by field.

What a configuration can say and ours cannot is in FIXED: it must be as the released models have it. Sources:
huggingface/diffusers models/unets/unet_2d_condition.py, models/autoencoders/autoencoder_kl.py,
schedulers/scheduling_ddim.py; huggingface/transformers models/clip/configuration_clip.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdjax.checkpoint.layouts import bare_tower, by_modules, modern_vae
from sdjax.checkpoint.midas_layouts import UNREAD_TRANSFORMERS, transformers_midas
from sdjax.checkpoint.native import read_json
from sdjax.checkpoint.parts import (
    Checkpoint,
    File,
    Name,
    Part,
    WrongFamily,
    by_channels,
    check,
    check_tokenizer,
    known_channels,
)
from sdjax.checkpoint.reader import SafetensorsFile, ShardedFile
from sdjax.config import (
    PRESETS,
    DiffusionConfig,
    MidasConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
    clip_vit_l14,
    x4_upscaler,
)
from sdjax.errors import InputError
from sdjax.tokenizer import Tokenizer

INDEX = "model_index.json"
GUIDANCE = "_sdjax_guidance"  # in the index, where the scale is the model's own; diffusers passes over such names
VOCABULARY = "sdjax_tokenizer.json"  # in tokenizer/, where the vocabulary is not CLIP's
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
             "StableDiffusionUpscalePipeline", "StableDiffusionDepth2ImgPipeline")
STEMS = {  # of the weights' file names
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
    "image_encoder": "model", "depth_estimator": "model",
}
UNREAD = ("logit_scale", "embeddings.position_ids")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
ATTENDS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
ATTENDS_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}

# What each configuration may say only thus. A field that it leaves out is taken to have this value, which is the
# library's default, but for `is_hybrid` and its like, which every DPT-hybrid says.
FIXED: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True,
        "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "dropout": 0.0,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "mid_block_only_cross_attention": None,
        "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None, "dual_cross_attention": False,
        "num_attention_heads": None, "attention_type": "default", "cross_attention_norm": None, "encoder_hid_dim": None,
        "encoder_hid_dim_type": None, "addition_embed_type": None, "class_embed_type": None,
        "class_embeddings_concat": False, "projection_class_embeddings_input_dim": None, "time_cond_proj_dim": None,
        "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
        "timestep_post_act": None, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0, "conv_in_kernel": 3, "conv_out_kernel": 3,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3, "shift_factor": None,
        "latents_mean": None, "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
    "index": {},
    "text_encoder": {"layer_norm_eps": 1e-5},
    "image_encoder": {"layer_norm_eps": 1e-5, "num_channels": 3},
    "depth_estimator": {  # with BIT_DEFAULTS for its backbone
        "is_hybrid": True, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "qkv_bias": True,
        "readout_type": "project", "reassemble_factors": [1, 1, 1, 0.5], "neck_ignore_stages": [0, 1],
        "use_batch_norm_in_fusion_residual": False, "add_projection": False, "head_in_index": -1,
    },
    "backbone": {
        "layer_type": "bottleneck", "global_padding": "SAME", "hidden_act": "relu", "num_channels": 3,
        "embedding_dynamic_padding": True, "output_stride": 32, "width_factor": 1,
    },
    "scheduler": {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False},
}
# What a BiT has where its configuration leaves a field out and we have no such network: transformers BitConfig.
BIT_DEFAULTS = {"layer_type": "preactivation", "global_padding": None, "embedding_dynamic_padding": False}


# What a CLIPModel's configuration may leave out: transformers, CLIPTextConfig and CLIPVisionConfig.
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
CLIP_VISION = CLIP_TEXT | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32}


class Fields:
    """The fields of one configuration, taken with their type checked; `kind` names its row in FIXED."""

    def __init__(self, path: Path | str, values: dict[str, Any], kind: str):
        self.path, self.values = path, values
        for name, expected in FIXED[kind].items():
            if (found := values.get(name, expected)) != expected:
                raise InputError(f"{path}: {name} is {str(found)[:80]!r}, expected {expected!r}, all that works here")

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        """A field of type `kind`; a float may be written as an integer."""
        value = self.values.get(name, default)
        if value is ...:
            raise InputError(f"{self.path}: has no {name}, expected {kind.__name__}; take the model's whole folder")
        good = type(value) is kind or (kind is float and type(value) is int) or value is default
        if not good:
            raise InputError(f"{self.path}: {name} is {str(value)[:80]!r}, expected {kind.__name__}")
        try:
            return float(value) if kind is float else value
        except OverflowError:
            raise InputError(f"{self.path}: {name} is {str(value)[:80]!r}, too large for a float") from None

    def per_level(self, name: str, kind: type, levels: int, default: Any = ...) -> tuple:
        """A field with a value for each level, or one for them all; `levels` 0 takes as many as there are."""
        value = self.values.get(name, default)
        values = value if isinstance(value, list) else [value] * levels
        if not values or levels not in (0, len(values)) or not all(type(v) is kind for v in values):
            expected = f"{levels or 'some'} of {kind.__name__}"
            raise InputError(f"{self.path}: {name} is {str(value)[:80]!r}, expected {expected}")
        return tuple(values)

    def one_of(self, name: str, known: dict[str, Any], default: Any = ...) -> Any:
        """What `known` has for a field's word."""
        word = self.take(name, str, default)
        if word not in known:
            raise InputError(f"{self.path}: {name} is {word[:80]!r}, expected {' or '.join(known)}")
        return known[word]


def unet_config(f: Fields) -> UNetConfig:
    """unet/config.json; its attention_head_dim is in truth the number of heads (huggingface/diffusers issue 2011)."""
    channels = f.per_level("block_out_channels", int, 0)
    n = len(channels)
    attention = _flags(f, "down_block_types", ATTENDS, n)
    if _flags(f, "up_block_types", ATTENDS_UP, n) != attention[::-1]:
        raise InputError(f"{f.path}: up_block_types is not down_block_types in reverse, the only order known here")
    if f.values.get("only_cross_attention") is True:  # would hold for the middle as well
        raise InputError(f"{f.path}: only_cross_attention is true, expected false or a list")
    return UNetConfig(
        in_channels=f.take("in_channels", int), out_channels=f.take("out_channels", int), channels=channels,
        attention=attention, heads=f.per_level("attention_head_dim", int, n, 8),
        cross_only=f.per_level("only_cross_attention", bool, n, False), blocks=f.take("layers_per_block", int),
        context_width=f.take("cross_attention_dim", int), groups=f.take("norm_num_groups", int, 32),
        classes=f.take("num_class_embeds", int, None), linear_projection=f.take("use_linear_projection", bool, False),
    )


def _flags(f: Fields, name: str, known: dict[str, bool], n: int) -> tuple[bool, ...]:
    words = f.per_level(name, str, n)
    if unknown := set(words) - set(known):
        raise InputError(f"{f.path}: {name} has {min(unknown)[:80]!r}, expected {' or '.join(known)}")
    return tuple(known[word] for word in words)


def vae_config(f: Fields, usual: float) -> VAEConfig:
    """vae/config.json; the first releases leave scaling_factor out, and it is the `usual` one of their kind."""
    channels = f.per_level("block_out_channels", int, 0)
    for name, word in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        _flags(f, name, {word: True}, len(channels))
    return VAEConfig(
        channels=channels, blocks=f.take("layers_per_block", int), latent_channels=f.take("latent_channels", int),
        groups=f.take("norm_num_groups", int, 32), scale=f.take("scaling_factor", float, usual),
    )


def text_config(f: Fields, projection: int | None, padding: str) -> TextConfig:
    """text_encoder/config.json; eos_token_id there is wrong in the releases, the end is the last token."""
    _wide(f)
    vocab_size = f.take("vocab_size", int, 49408)
    return TextConfig(
        vocab_size=vocab_size, context_length=f.take("max_position_embeddings", int, 77),
        width=f.take("hidden_size", int), layers=f.take("num_hidden_layers", int),
        heads=f.take("num_attention_heads", int), activation=f.one_of("hidden_act", ACTIVATIONS, "quick_gelu"),
        projection=projection, padding=padding, end_id=vocab_size - 1,
    )


def vision_config(f: Fields, projection: int, pixels: dict[str, Any]) -> VisionConfig:
    """The vision tower; `pixels` is preprocessor_config.json, which has the mean and deviation of the pictures."""
    _wide(f)
    known = VisionConfig()
    statistics = {}
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        value = pixels.get(key, list(getattr(known, name)))
        numbers = isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        if not (numbers and all(abs(v) < 1e6 for v in value)):
            raise InputError(f"{f.path}: the preprocessor's {key} is {str(value)[:80]!r}, expected three numbers")
        statistics[name] = tuple(map(float, value))
    return VisionConfig(
        image_size=f.take("image_size", int, 224), patch=f.take("patch_size", int), width=f.take("hidden_size", int),
        layers=f.take("num_hidden_layers", int), heads=f.take("num_attention_heads", int),
        activation=f.one_of("hidden_act", ACTIVATIONS, "quick_gelu"), projection=projection, **statistics,
    )


def midas_config(f: Fields) -> MidasConfig:
    """depth_estimator/config.json: a DPT whose backbone is a BiT."""
    _wide(f)
    stored = BIT_DEFAULTS | f.take("backbone_config", dict)
    # transformers takes the word in either case and writes it in capitals.
    bit = Fields(f"{f.path}: backbone_config", stored | {"global_padding": str(stored["global_padding"]).upper()},
                 "backbone")
    depths = bit.per_level("depths", int, 3)
    widths = [*bit.per_level("hidden_sizes", int, 0, [256, 512, 1024, 2048])][: len(depths)]
    features = f.take("fusion_hidden_size", int, 256)
    if f.per_level("neck_hidden_sizes", int, 4) != (*widths[:2], *[f.take("hidden_size", int, 768)] * 2):
        raise InputError(f"{f.path}: neck_hidden_sizes are not the encoder's widths, all that works here")
    return MidasConfig(
        image_size=f.take("image_size", int, 384), stem=bit.take("embedding_size", int, 64), stages=tuple(widths),
        depths=depths, groups=bit.take("num_groups", int, 32), width=f.take("hidden_size", int, 768),
        layers=f.take("num_hidden_layers", int, 12), heads=f.take("num_attention_heads", int, 12),
        hooks=f.per_level("backbone_out_indices", int, 4)[2:], norm_eps=f.take("layer_norm_eps", float, 1e-12),
        features=features,
    )


def _wide(f: Fields) -> None:
    if f.take("intermediate_size", int) != 4 * f.take("hidden_size", int):
        raise InputError(f"{f.path}: intermediate_size is not four times hidden_size, all that works here")


def diffusion_config(f: Fields) -> DiffusionConfig:
    """scheduler_config.json; only the noise schedule, since the solver is the user's choice."""
    return DiffusionConfig(
        train_steps=f.take("num_train_timesteps", int, 1000), beta_start=f.take("beta_start", float),
        beta_end=f.take("beta_end", float), prediction=f.one_of("prediction_type", PREDICTIONS, "epsilon"),
        schedule=f.one_of("beta_schedule", {"scaled_linear": "scaled_linear", "linear": "linear"}),
    )


def opened(folder: Path) -> Checkpoint:
    """The model in a folder that diffusers wrote, every configuration and every header read."""
    index = read_json(folder / INDEX)
    kind = str(index.get("_class_name"))[:80]
    if kind not in PIPELINES:
        raise WrongFamily(folder, f"a model for {kind}")
    fields = {name: Fields(path := folder / name / "config.json", read_json(path), name) for name in ("unet", "vae")}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    unet = unet_config(fields["unet"])
    upscales = unet.in_channels == unet.out_channels + 3
    vae = vae_config(fields["vae"], x4_upscaler().vae.scale if upscales else VAEConfig.scale)
    if unet.in_channels not in known_channels(unet.out_channels):
        raise WrongFamily(folder, by_channels(unet.in_channels))

    path = folder / "text_encoder" / "config.json"
    text_fields = Fields(path, read_json(path), "text_encoder")
    files: dict[str, File] = {name: weights(folder / name, STEMS[name]) for name in ("text_encoder", "vae", "unet")}
    projects = "text_projection.weight" in files["text_encoder"].names()
    projection = text_fields.take("projection_dim", int) if projects else None
    text = text_config(text_fields, projection, padding(folder / "tokenizer", text_fields.values.get("hidden_size")))

    vision = None
    path = folder / "image_encoder" / "config.json"
    if projects and path.is_file():  # without a projection there is no space to share
        files["image_encoder"] = weights(path.parent, STEMS["image_encoder"])
        pixels = folder / "feature_extractor" / "preprocessor_config.json"
        vision = vision_config(Fields(path, read_json(path), "image_encoder"), projection, read_json(pixels))

    size = fields["unet"].take("sample_size", int, 64) * vae.factor
    diffusion = diffusion_config(Fields(scheduler, read_json(scheduler), "scheduler"))
    low_res = None
    if upscales:
        path = folder / "low_res_scheduler" / "scheduler_config.json"
        low_res = diffusion_config(Fields(path, read_json(path), "scheduler"))
    depth = None
    if unet.in_channels == unet.out_channels + 1:
        path = folder / "depth_estimator" / "config.json"
        files["depth_estimator"] = weights(path.parent, STEMS["depth_estimator"])
        depth = midas_config(Fields(path, read_json(path), "depth_estimator"))
    # diffusers has the scale in its code, not in its folders.
    usual = x4_upscaler().guidance if low_res else ModelConfig.guidance
    guidance = Fields(folder / INDEX, index, "index").take(GUIDANCE, float, usual)
    config = named(ModelConfig(folder.name, size, text, vision, vae, unet, diffusion, low_res, depth, guidance))
    check(config, str(folder))
    configs = {"text_encoder": text, "vae": vae, "unet": unet, "image_encoder": vision, "depth_estimator": depth}
    parts = {name: part(name, configs[name], file, file.names()) for name, file in files.items()}
    return Checkpoint(folder, "diffusers", config, vocabulary(folder / "tokenizer", text), parts)


def part(name: str, config: Any, file: File, names: Iterable[str]) -> Part:
    """A part whose tensors have the names of diffusers and transformers, of today or of earlier."""
    if name == "depth_estimator":
        read = [Name(n, n) for n in names if not UNREAD_TRANSFORMERS.fullmatch(n)]
        return Part.of(name, config, file, read, transformers_midas)
    modern = modern_vae if name == "vae" else str if name == "unet" else bare_tower
    tensors = (Name(modern(n), n) for n in names)
    return Part.of(name, config, file, [n for n in tensors if n.plain not in UNREAD], by_modules)


def named(config: ModelConfig) -> ModelConfig:
    """The same under the name of the preset that it equals, if it does."""
    for name, preset in PRESETS.items():
        if config == dataclasses.replace(preset(), name=config.name):
            return dataclasses.replace(config, name=name)
    return config


def padding(folder: Path, width: Any) -> str:
    """How a tokenizer/ folder pads: SD 2.x with "!", which is id 0. Its tokenizer_config.json can say otherwise.

    Where the files are not there, the width of the text tower tells: 1024 is SD 2.x.
    """
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and (token := read_json(path).get("pad_token")) is not None:
            content = token.get("content") if isinstance(token, dict) else token
            if content not in ("!", "<|endoftext|>"):
                raise InputError(f"{path}: pad_token is {str(content)[:80]!r}, expected '!' or '<|endoftext|>'")
            return "zero" if content == "!" else "eos"
    return "zero" if width == 1024 else "eos"


def vocabulary(folder: Path, c: TextConfig) -> Tokenizer:
    """The tokenizer of a model: one of ours beside the files of transformers, or CLIP's."""
    own = folder / VOCABULARY
    return check_tokenizer(Tokenizer.load(own) if own.is_file() else Tokenizer.clip(c.padding), c, str(folder))


def weights(folder: Path, stem: str) -> File:
    """The weights in a part's folder: one file or several with an index, the full precision before a variant."""
    for variant in ("", ".fp16", ".bf16", ".non_ema"):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return SafetensorsFile(whole)
        for index in (f"{stem}{variant}.safetensors.index.json", f"{stem}.safetensors.index{variant}.json"):
            if (folder / index).is_file():
                return ShardedFile(folder / index)
    for pickled in (f"{stem}.bin", "pytorch_model.bin"):
        if (folder / pickled).is_file():
            return SafetensorsFile(folder / pickled)  # which says why not
    raise InputError(f"{folder}: has no {stem}.safetensors, expected the weights; take the model's whole folder")


def clip_folder(folder: Path) -> tuple[Tokenizer, dict[str, Part]]:
    """The two towers of a folder that transformers wrote a CLIPModel into."""
    path = folder / "config.json"
    values = read_json(path)
    projection = values.get("projection_dim")
    for name in ("text_config", "vision_config"):
        if not isinstance(values.get(name), dict):
            raise InputError(f"{path}: has no {name}, expected the folder of a CLIPModel")
    if type(projection) is not int:
        raise InputError(f"{path}: projection_dim is {str(projection)[:80]!r}, expected int")
    fields = Fields(path, CLIP_TEXT | values["text_config"], "text_encoder")
    text = text_config(fields, projection, padding(folder, fields.values.get("hidden_size")))
    pixels = read_json(folder / "preprocessor_config.json")
    vision = vision_config(Fields(path, CLIP_VISION | values["vision_config"], "image_encoder"), projection, pixels)
    return vocabulary(folder, text), clip_parts(weights(folder, "model"), text, vision)


def clip_file(file: File) -> tuple[Tokenizer, dict[str, Part]]:
    """The two towers of CLIP ViT-L/14 in one file, which has no configuration beside it."""
    return Tokenizer.clip(), clip_parts(file, *clip_vit_l14())


def clip_parts(file: File, text: TextConfig, vision: VisionConfig) -> dict[str, Part]:
    """Both towers from one file: vision_model.* and visual_projection are the pictures', the rest is the texts'."""
    pictures = [name for name in file.names() if name.startswith("vis")]
    texts = [name for name in file.names() if not name.startswith("vis")]
    return {
        "text_encoder": part("text_encoder", text, file, texts),
        "image_encoder": part("image_encoder", vision, file, pictures),
    }
