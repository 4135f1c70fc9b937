"""Weights out, for other programs: the tables of layouts.py read from right to left."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdjax.checkpoint import diffusers_folder, layouts, original_file, tree
from sdjax.checkpoint.layouts import TO_TORCH, Table, turned
from sdjax.checkpoint.midas_layouts import original_midas, transformers_midas
from sdjax.checkpoint.native import Cast, is_clip, networks, write_json, written_folder
from sdjax.checkpoint.reader import write_safetensors
from sdjax.config import DiffusionConfig, MidasConfig, ModelConfig, TextConfig, VisionConfig, to_dict, x4_upscaler
from sdjax.hardware import Network
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import END, START, Tokenizer, base_names

CLASSES = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


def to_original(sd: StableDiffusion, path: str | Path) -> None:
    """Writes a model as one .safetensors file in the original layout, with its configuration in the metadata.

    The layout has no place for an image encoder, nor do we have the layer of OpenCLIP that SD 2.x stops before:
    both are left out. InputError if `path` cannot be written.
    """
    metadata = {original_file.CONFIG: json.dumps(to_dict(dataclasses.replace(sd.config, vision=None)))}
    if not is_clip(sd.tokenizer):
        metadata[original_file.VOCABULARY] = "\n".join(sd.tokenizer.merges)
    write_safetensors(path, original_tensors(sd), metadata)


def original_tensors(sd: StableDiffusion) -> dict[str, Cast]:
    """The tensors of the original layout by name; each is made only when it is written."""
    config = sd.config
    openclip = config.text.activation == "gelu"  # OpenAI's towers have quick_gelu
    text_prefix = original_file.OPENCLIP if openclip else f"{original_file.TRANSFORMERS}text_model."
    text_layout = (lambda p: layouts.openclip_text(p, config.text)) if openclip else layouts.by_modules
    return (
        _tensors(sd.text_encoder, text_layout, text_prefix, outer=original_file.TRANSFORMERS)
        | _tensors(sd.vae, lambda p: layouts.original_vae(p, config.vae), original_file.VAE, layouts.VAE_CONVOLUTIONS)
        | _tensors(sd.unet, lambda p: layouts.original_unet(p, config.unet), original_file.UNET, _convolutions(config))
        | (_tensors(sd.depth_estimator, original_midas, original_file.DEPTH) if sd.depth_estimator else {})
    )


def _convolutions(config: ModelConfig) -> re.Pattern | None:
    return None if config.unet.linear_projection else layouts.UNET_CONVOLUTIONS


def to_diffusers(sd: StableDiffusion, folder: str | Path) -> None:
    """Writes a model as a folder that diffusers' StableDiffusionPipeline.from_pretrained (or ...Inpaint...) reads.

    InputError if `folder` is there already or cannot be written.
    """
    config, parts = sd.config, networks(sd)
    configs = {
        "text_encoder": _text(config.text), "vae": _vae(config), "unet": _unet(config),
        "image_encoder": _vision(config.vision) if "image_encoder" in parts else None,
        "depth_estimator": _midas(config.depth) if config.depth else None,
    }
    z = config.unet.out_channels
    purpose = {z: "", 2 * z + 1: "Inpaint", z + 3: "Upscale", z + 1: "Depth2Img"}[config.unet.in_channels]
    classes: dict[str, Any] = {
        "_class_name": f"StableDiffusion{purpose}Pipeline", "_diffusers_version": "0.30.0", **CLASSES
    }
    if config.guidance != (x4_upscaler() if config.low_res else ModelConfig).guidance:
        classes[diffusers_folder.GUIDANCE] = config.guidance
    if config.text.projection:
        classes["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    with written_folder(folder) as part:
        for name, network in parts.items():
            (part / name).mkdir()
            write_json(part / name / "config.json", configs[name])
            prefix = {"text_encoder": "text_model.", "image_encoder": "vision_model."}.get(name, "")
            convolutions = _convolutions(config) if name == "unet" else None
            layout = transformers_midas if name == "depth_estimator" else layouts.by_modules
            tensors = _tensors(network, layout, prefix, convolutions, outer="")
            stem = diffusers_folder.STEMS[name]
            write_safetensors(part / name / f"{stem}.safetensors", tensors, {"format": "pt"})
        if "image_encoder" in parts:
            classes["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
            classes["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
            (part / "feature_extractor").mkdir()
            write_json(part / "feature_extractor" / "preprocessor_config.json", _pixels(config.vision))
        if "depth_estimator" in parts:
            classes["depth_estimator"] = ["transformers", "DPTForDepthEstimation"]
            classes["feature_extractor"] = ["transformers", "DPTImageProcessor"]
            (part / "feature_extractor").mkdir()
            write_json(part / "feature_extractor" / "preprocessor_config.json", _depth_pixels(config.depth))
        (part / "scheduler").mkdir()
        write_json(part / "scheduler" / "scheduler_config.json", _scheduler(config.diffusion))
        if config.low_res is not None:
            (part / "low_res_scheduler").mkdir()
            low_res = _scheduler(config.low_res) | {"_class_name": "DDPMScheduler", "clip_sample": True}
            write_json(part / "low_res_scheduler" / "scheduler_config.json", low_res)
            classes["low_res_scheduler"] = ["diffusers", "DDPMScheduler"]
        _write_vocabulary(sd.tokenizer, part / "tokenizer")
        write_json(part / diffusers_folder.INDEX, classes)


def _tensors(
    network: Network, layout: Callable[[Iterable[str]], Table], prefix: str, convolutions: re.Pattern | None = None,
    outer: str | None = None,
) -> dict[str, Cast]:
    """A network's tensors under the names of a layout.

    `convolutions`: the matrices that get two dimensions more; `outer`: the prefix of what transformers puts beside
    a tower.
    """
    arrays = tree.flatten(network.state)
    tensors = {}
    for name, parameters in layout(arrays).items():
        beside = outer is not None and name in ("text_projection.weight", "visual_projection.weight")
        rank = arrays[parameters[0]].ndim
        axes = TO_TORCH[rank] if turned(name, parameters[0]) else None
        ones = 2 if convolutions and rank == 2 and convolutions.fullmatch(name) else 0
        tensors[(outer if beside else prefix) + name] = Cast([arrays[p] for p in parameters], axes, ones)
    return tensors


def _unet(config: ModelConfig) -> dict[str, Any]:
    c = config.unet
    down = [("CrossAttnDownBlock2D" if a else "DownBlock2D") for a in c.attention]
    up = [("CrossAttnUpBlock2D" if a else "UpBlock2D") for a in reversed(c.attention)]
    return diffusers_folder.FIXED["unet"] | {
        "sample_size": config.image_size // config.vae.factor, "in_channels": c.in_channels,
        "out_channels": c.out_channels, "block_out_channels": c.channels, "layers_per_block": c.blocks,
        "attention_head_dim": c.heads, "only_cross_attention": list(c.cross_only), "down_block_types": down,
        "up_block_types": up, "cross_attention_dim": c.context_width, "norm_num_groups": c.groups,
        "num_class_embeds": c.classes, "use_linear_projection": c.linear_projection,
    }


def _vae(config: ModelConfig) -> dict[str, Any]:
    c = config.vae
    return diffusers_folder.FIXED["vae"] | {
        "sample_size": config.image_size, "block_out_channels": c.channels, "layers_per_block": c.blocks,
        "latent_channels": c.latent_channels, "norm_num_groups": c.groups, "scaling_factor": c.scale,
        "down_block_types": ["DownEncoderBlock2D"] * len(c.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(c.channels),
    }


def _tower(c: TextConfig | VisionConfig) -> dict[str, Any]:
    return {
        "hidden_size": c.width, "intermediate_size": 4 * c.width, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "hidden_act": c.activation, "projection_dim": c.projection or c.width,
    }


def _text(c: TextConfig) -> dict[str, Any]:
    kind = "CLIPTextModelWithProjection" if c.projection else "CLIPTextModel"
    return diffusers_folder.FIXED["text_encoder"] | _tower(c) | {
        "architectures": [kind], "model_type": "clip_text_model", "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length, "bos_token_id": c.end_id - 1, "eos_token_id": c.end_id,
        "pad_token_id": 0 if c.padding == "zero" else c.end_id,
    }


def _vision(c: VisionConfig) -> dict[str, Any]:
    return diffusers_folder.FIXED["image_encoder"] | _tower(c) | {
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model",
        "image_size": c.image_size, "patch_size": c.patch,
    }


def _midas(c: MidasConfig) -> dict[str, Any]:
    backbone = diffusers_folder.FIXED["backbone"] | {
        "model_type": "bit", "embedding_size": c.stem, "hidden_sizes": c.stages, "depths": c.depths,
        "num_groups": c.groups, "out_features": ["stage1", "stage2", "stage3"],
    }
    return diffusers_folder.FIXED["depth_estimator"] | {
        "architectures": ["DPTForDepthEstimation"], "model_type": "dpt", "backbone_config": backbone,
        "image_size": c.image_size, "hidden_size": c.width, "intermediate_size": 4 * c.width,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "layer_norm_eps": c.norm_eps,
        "backbone_out_indices": [0, 1, *c.hooks], "neck_hidden_sizes": [*c.stages[:2], c.width, c.width],
        "backbone_featmap_shape": [1, c.stages[-1], c.image_size // 16, c.image_size // 16],
        "fusion_hidden_size": c.features,
    }


def _depth_pixels(c: MidasConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "DPTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": c.image_size, "width": c.image_size}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "ensure_multiple_of": 1, "keep_aspect_ratio": False, "resample": 3,
    }


def _pixels(c: VisionConfig) -> dict[str, Any]:
    size = {"height": c.image_size, "width": c.image_size}
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": c.image_size},
        "do_center_crop": True, "crop_size": size, "do_rescale": True, "do_normalize": True, "resample": 3,
        "image_mean": c.mean, "image_std": c.std,
    }


def _scheduler(c: DiffusionConfig) -> dict[str, Any]:
    words = {ours: theirs for theirs, ours in diffusers_folder.PREDICTIONS.items()}
    return diffusers_folder.FIXED["scheduler"] | {
        "_class_name": "DDIMScheduler", "num_train_timesteps": c.train_steps, "beta_start": c.beta_start,
        "beta_end": c.beta_end, "beta_schedule": c.schedule, "prediction_type": words[c.prediction],
        # As the original samples: k * (1000 // S) + 1, and the last step goes to alphas_cumprod[0].
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
    }


def _write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """The files of transformers' CLIPTokenizer, and our own where the vocabulary is not CLIP's."""
    folder.mkdir()
    merges = "\n".join(["#version: 0.2", *tokenizer.merges])
    (folder / "merges.txt").write_text(f"{merges}\n", encoding="utf-8")
    names = [*base_names(), *(merge.replace(" ", "") for merge in tokenizer.merges), START, END]
    write_json(folder / "vocab.json", {name: i for i, name in enumerate(names)})
    special = {
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END if tokenizer.padding == "eos" else "!",
    }
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, "do_lower_case": True,
    })
    if not is_clip(tokenizer):
        tokenizer.save(folder / diffusers_folder.VOCABULARY)
