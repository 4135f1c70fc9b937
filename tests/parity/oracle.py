"""The other side of the comparisons: released configurations, and random weights in the released layouts.

The configurations are those of the released diffusers folders, written out here so that diffusers never has to
guess them from a file. All weights are random: agreement is a matter of arithmetic, not of training.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from golden import FIXTURES
from safetensors.numpy import save_file
from transformers import CLIPTokenizer

import sdjax
from sdjax.checkpoint import tree

torch.set_grad_enabled(False)

KEYS = json.loads(gzip.decompress((FIXTURES / "released_keys.json.gz").read_bytes()))
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {"sd1": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model."}

SCHEDULE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)
UNET_CONFIG = dict(
    in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
CONFIGS = {
    "sd1": {
        "unet": UNET_CONFIG | dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "text_encoder": dict(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            hidden_act="quick_gelu",
        ),
        "scheduler": SCHEDULE,
    },
    "sd2": {
        "unet": UNET_CONFIG | dict(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True, upcast_attention=True,
        ),
        "text_encoder": dict(
            hidden_size=1024, num_hidden_layers=23, num_attention_heads=16, intermediate_size=4096, hidden_act="gelu"
        ),
        "scheduler": SCHEDULE | {"prediction_type": "v_prediction"},
    },
}
CONFIGS["x4"] = {
    "unet": UNET_CONFIG | dict(
        sample_size=128, in_channels=7, block_out_channels=[256, 512, 512, 1024], cross_attention_dim=1024,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
        attention_head_dim=8, num_class_embeds=1000, only_cross_attention=[True, True, True, False],
        use_linear_projection=True,
    ),
    "vae": dict(
        block_out_channels=[128, 256, 512], sample_size=256, scaling_factor=0.08333,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    ),
    "text_encoder": CONFIGS["sd2"]["text_encoder"],
    "scheduler": SCHEDULE | dict(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"),
}
CONFIGS["depth"] = CONFIGS["sd2"] | {"unet": CONFIGS["sd2"]["unet"] | {"in_channels": 5}, "scheduler": SCHEDULE}
LOW_RES = dict(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", clip_sample=True)
VAE_CONFIG = dict(
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, sample_size=512,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)


def random_tensor(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Weights that keep activations near 1, norms around 1, and nothing at zero."""
    if name.endswith("position_ids"):
        return np.arange(shape[-1])[None]
    x = np.asarray(draw.standard_normal(shape, np.float32))
    if len(shape) > 1:
        return x * np.float32(np.prod(shape[1:]) ** -0.5)
    return np.float32(1.0) + np.float32(0.2) * x if name.endswith("weight") else np.float32(0.1) * x


def released_shapes(family: str, channels: int) -> dict[str, list[int]]:
    """The names and shapes in a released file; of 9 channels, the one for inpainting."""
    if family == "x4":
        return KEYS["X4-upscaler"]
    version = "2" if family == "depth" else family[-1]
    lists = {UNET: f"UNET-v{version}-SD", VAE: "VAE-v1-SD", TEXT[f"sd{version}"]: f"CLIP-v{version}-SD"}
    if family == "depth":
        lists["depth_model.model."], channels = "MiDaS", 5
    shapes = {prefix + name: shape for prefix, keys in lists.items() for name, shape in KEYS[keys].items()}
    return shapes | {f"{UNET}input_blocks.0.0.weight": [320, channels, 3, 3]}


def write_original(path: Path, family: str, dtype: type, seed: int, channels: int = 4) -> None:
    """One file with exactly the names and shapes of the released one, and random weights."""
    draw = np.random.default_rng(seed)
    save_file({
        name: np.asarray(random_tensor(name, tuple(shape), draw), np.int64 if "_ids" in name else dtype)
        for name, shape in released_shapes(family, channels).items()
    }, path)


def write_configs(folder: Path, family: str, kind: type, channels: int) -> None:
    """The configuration files of a released diffusers folder, without weights."""
    classes = {
        "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }
    configs = CONFIGS[family] | {"vae": VAE_CONFIG | CONFIGS[family].get("vae", {})}
    if channels != 4:
        configs["unet"] = configs["unet"] | {"in_channels": channels}
    if family == "x4":
        classes["low_res_scheduler"], configs["low_res_scheduler"] = ("diffusers", "DDPMScheduler"), LOW_RES
    files = {"model_index.json": {"_class_name": kind.__name__, **classes}}
    for part, values in configs.items():
        name = "scheduler_config.json" if "scheduler" in part else "config.json"
        files[f"{part}/{name}"] = {"_class_name": classes[part][1], **values}
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))


def clip_tokenizer(folder: Path, padding: str) -> CLIPTokenizer:
    """transformers' tokenizer with the released vocabulary, in the order of openai/CLIP simple_tokenizer.py."""
    merges = sdjax.Tokenizer.clip().merges
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, visible), *(chr(256 + i) for i in range(256 - len(visible)))]
    words = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": padding}))
    return CLIPTokenizer.from_pretrained(folder)


def diffusers_pipeline(
    path: Path, folder: Path, family: str, kind: type = StableDiffusionPipeline, channels: int = 4
) -> Any:
    """The file at `path` as diffusers loads it, in float32, with DDIM; `folder` is for what it needs beside."""
    write_configs(folder / "configs", family, kind, channels)
    others: dict[str, Any] = {"feature_extractor": None, "safety_checker": None}
    if family == "x4":
        others = {"low_res_scheduler": DDPMScheduler(**LOW_RES)}
    return kind.from_single_file(
        str(path), config=str(folder / "configs"), local_files_only=True, torch_dtype=torch.float32,
        tokenizer=clip_tokenizer(folder / "tokenizer", "<|endoftext|>" if family == "sd1" else "!"),
        scheduler=DDIMScheduler(**CONFIGS[family]["scheduler"]), **others,
    )


def read_again(theirs: Any, made_of: Path, folder: Path) -> sdjax.StableDiffusion:
    """What sdjax reads of the folder that diffusers writes of its pipeline, in configurations of its own words.

    `made_of` is the folder that it was made of: its tokenizer has no place for a small vocabulary, so that one is kept.
    """
    theirs.save_pretrained(folder)
    shutil.copytree(made_of / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return sdjax.load(folder)


def digests(sd: sdjax.StableDiffusion) -> dict[tuple, str]:
    """Every parameter's path, shape and the hash of its bytes."""
    return {
        (part, name, array.shape): hashlib.sha256(np.asarray(array)).hexdigest()
        for part in ("unet", "vae", "text_encoder")
        for name, array in tree.flatten(getattr(sd, part).state).items()
    }


def first(x: Any) -> torch.Tensor:
    """Channels first, for torch."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))
