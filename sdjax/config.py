"""Every size and constant of the models, as frozen dataclasses; a preset is a function that returns them.

Paths in the comments are files of public repositories:
  [ldm]   CompVis/stable-diffusion, Stability-AI/stablediffusion   (configs/, ldm/)
  [hf]    the released diffusers folders                           (unet/config.json and its siblings)
  [clip]  openai/CLIP, mlfoundations/open_clip                      (model_configs/)
  [midas] isl-org/MiDaS, Stability-AI/stablediffusion ldm/modules/midas   (midas/)
  [timm]  huggingface/pytorch-image-models                          (timm/models/)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from sdjax.errors import InputError

Activation = Literal["quick_gelu", "gelu"]
Prediction = Literal["eps", "v"]


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text transformer."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"
    projection: int | None = None  # width of the space shared with pictures; None: this file has no projection
    padding: Literal["eos", "zero"] = "eos"  # what fills up the 77 tokens, tokenizer.py
    end_id: int = 49407  # where the sentence ends: its row becomes the sentence's vector


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision transformer."""

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    activation: Activation = "quick_gelu"
    projection: int = 768
    # openai/CLIP clip.py `_transform`: statistics of its training pictures, in [0, 1].
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder: each level after the first halves the picture, so f = 2^(levels - 1)."""

    channels: tuple[int, ...] = (128, 256, 512, 512)  # [ldm] ch 128, ch_mult 1,2,4,4
    blocks: int = 2  # residual blocks a level in the encoder; the decoder has one more
    latent_channels: int = 4
    groups: int = 32
    # 1 / standard deviation of the latents over the training set, so that the UNet sees unit variance.
    scale: float = 0.18215  # [ldm] scale_factor

    @property
    def factor(self) -> int:
        """How many pixels, each way, one latent stands for."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser; one entry a level in each tuple, from the finest level to the coarsest."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # [ldm] model_channels 320, channel_mult 1,2,4,4
    attention: tuple[bool, ...] = (True, True, True, False)  # [ldm] attention_resolutions 4,2,1
    heads: tuple[int, ...] = (8, 8, 8, 8)  # number of heads (diffusers calls it attention_head_dim)
    cross_only: tuple[bool, ...] = (False, False, False, False)  # [ldm] disable_self_attentions
    blocks: int = 2
    context_width: int = 768
    groups: int = 32
    classes: int | None = None  # size of a class embedding that is added to the time embedding
    linear_projection: bool = False  # SD2 stores the transformers' 1x1 convolutions as matrices


@dataclass(frozen=True)
class MidasConfig:
    """MiDaS, the DPT-hybrid: a ResNet, a transformer over its last map, and a decoder that reads both."""

    image_size: int = 384  # [midas] api.py net_w, net_h; the transformer has a learnt place for each 16 x 16 pixels
    stem: int = 64  # [timm] resnetv2.py stem_chs
    stages: tuple[int, ...] = (256, 512, 1024)  # [timm] resnetv2.py channels; a block is a quarter as wide inside
    depths: tuple[int, ...] = (3, 4, 9)  # [timm] vision_transformer_hybrid.py vit_base_resnet50_384, as what follows
    groups: int = 32  # [timm] layers/norm_act.py GroupNormAct
    width: int = 768
    layers: int = 12
    heads: int = 12
    hooks: tuple[int, int] = (8, 11)  # [midas] dpt_depth.py: the layers, from 0, that the decoder reads
    norm_eps: float = 1e-6  # of the transformer: [timm]; files of transformers say 1e-12
    features: int = 256  # [midas] dpt_depth.py: the decoder's width
    head: int = 32  # [midas] dpt_depth.py: width before the last convolution


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule, and what the UNet predicts."""

    train_steps: int = 1000
    beta_start: float = 0.00085  # [ldm] linear_start
    beta_end: float = 0.012  # [ldm] linear_end
    schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Prediction = "eps"


@dataclass(frozen=True)
class ModelConfig:
    """A whole Stable Diffusion."""

    name: str
    image_size: int = 512  # the side of the pictures it was trained on, and the default size
    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig | None = None
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    low_res: DiffusionConfig | None = None  # the x4 upscaler noises the small picture on a schedule of its own
    depth: MidasConfig | None = None  # depth-to-image sees how near everything is
    guidance: float = 7.5  # the scale that suits it, and the default; [ldm] scripts/txt2img.py --scale


def sd1() -> ModelConfig:
    """Stable Diffusion 1.1 to 1.5: [ldm] configs/stable-diffusion/v1-inference.yaml."""
    return ModelConfig(name="sd1")


def sd2_base() -> ModelConfig:
    """Stable Diffusion 2.0-base and 2.1-base, 512 px: [ldm] configs/stable-diffusion/v2-inference.yaml."""
    return ModelConfig(
        name="sd2-base",
        # [clip] ViT-H-14.json has 24 layers; SD2 stops after the 23rd (the penultimate) and then
        # normalises: [ldm] ldm/modules/encoders/modules.py FrozenOpenCLIPEmbedder.
        text=TextConfig(width=1024, layers=23, heads=16, activation="gelu", padding="zero"),
        unet=UNetConfig(
            heads=(5, 10, 20, 20),  # [ldm] num_head_channels 64
            context_width=1024,
            linear_projection=True,  # [ldm] use_linear_in_transformer
        ),
    )


def sd2() -> ModelConfig:
    """Stable Diffusion 2.0 and 2.1, 768 px: [ldm] configs/stable-diffusion/v2-inference-v.yaml."""
    return dataclasses.replace(
        sd2_base(), name="sd2", image_size=768, diffusion=DiffusionConfig(prediction="v")
    )


def clip_vit_l14() -> tuple[TextConfig, VisionConfig]:
    """OpenAI's CLIP ViT-L/14, whose text tower is that of SD 1.x: [clip] model_configs/ViT-L-14.json."""
    return TextConfig(projection=768), VisionConfig()


# The weaker of 2 and 3, which no count of ours tells apart (weights/README.md). The captions of the small model leave
# open where a solid stands, and the stronger the guidance, the more of the places that are merely likely get one.
GUIDANCE = 2.0


def tiny(vocab_size: int = 1024) -> ModelConfig:
    """The small model that `make weights` trains: the same architecture, for two CPU cores and an hour.

    The denoiser that ships is wider, (64, 128, 192); its folder says so.
    """
    return ModelConfig(
        name="tiny",
        image_size=128,
        text=TextConfig(
            vocab_size=vocab_size, width=128, layers=4, heads=4, activation="gelu", projection=64,
            end_id=vocab_size - 1,
        ),
        vision=VisionConfig(
            image_size=128, patch=16, width=128, layers=4, heads=4, activation="gelu", projection=64
        ),
        vae=VAEConfig(channels=(16, 32, 64, 64), blocks=1, groups=8, scale=1.0),
        unet=UNetConfig(
            channels=(48, 96, 144), attention=(False, True, True), heads=(2, 4, 6),
            cross_only=(False, False, False), blocks=1, context_width=128, groups=16,
            linear_projection=True,
        ),
        diffusion=DiffusionConfig(prediction="v"),
        guidance=GUIDANCE,
    )


def tiny_inpaint(base: ModelConfig) -> ModelConfig:
    """The small model, for inpainting."""
    return inpainting(base, "tiny-inpaint")


def tiny_depth(base: ModelConfig) -> ModelConfig:
    """The small model, for depth-to-image, with a MiDaS of nearly a million parameters."""
    depth = MidasConfig(
        image_size=128, stem=16, stages=(32, 64, 128), depths=(1, 1, 1), groups=8, width=128, layers=2, heads=4,
        hooks=(0, 1), features=32,
    )
    unet = dataclasses.replace(base.unet, in_channels=base.vae.latent_channels + 1)
    return dataclasses.replace(base, name="tiny-depth", unet=unet, depth=depth)


def tiny_upscaler(base: ModelConfig) -> ModelConfig:
    """A small x4 upscaler, 32 to 128 pixels: f = 4, and transformers without self-attention, as the released one."""
    return dataclasses.replace(
        base, name="tiny-upscaler", vae=VAEConfig(channels=(16, 32, 64), blocks=1, groups=8, scale=1.0),
        unet=dataclasses.replace(
            base.unet, in_channels=7, channels=(48, 96, 128), heads=(1, 2, 4), cross_only=(True, True, False),
            classes=1000,
        ),
        low_res=DiffusionConfig(beta_start=0.0001, beta_end=0.02), guidance=1.0,  # the small picture says it all
    )


def inpainting(base: ModelConfig, name: str) -> ModelConfig:
    """The same, but its UNet also sees a mask and the latents of the picture around it."""
    channels = 2 * base.vae.latent_channels + 1
    return dataclasses.replace(base, name=name, unet=dataclasses.replace(base.unet, in_channels=channels))


def sd1_inpaint() -> ModelConfig:
    """Stable Diffusion 1.5 inpainting: runwayml/stable-diffusion-inpainting, unet/config.json."""
    return inpainting(sd1(), "sd1-inpaint")


def sd2_inpaint() -> ModelConfig:
    """Stable Diffusion 2 inpainting: [ldm] configs/stable-diffusion/v2-inpainting-inference.yaml."""
    return inpainting(sd2_base(), "sd2-inpaint")


def sd2_depth() -> ModelConfig:
    """Stable Diffusion 2 depth-to-image: [ldm] configs/stable-diffusion/v2-midas-inference.yaml."""
    base = sd2_base()
    return dataclasses.replace(
        base, name="sd2-depth", unet=dataclasses.replace(base.unet, in_channels=5), depth=MidasConfig()
    )


def x4_upscaler() -> ModelConfig:
    """The x4 upscaler of Stable Diffusion 2: [ldm] configs/stable-diffusion/x4-upscaling.yaml."""
    schedule = DiffusionConfig(beta_start=0.0001, beta_end=0.02)  # [ldm] linear_start, linear_end: both places
    return dataclasses.replace(
        sd2_base(), name="x4-upscaler",
        vae=VAEConfig(channels=(128, 256, 512), scale=0.08333),  # f = 4
        unet=UNetConfig(
            in_channels=7,  # latent 4, noisy small picture 3
            channels=(256, 512, 512, 1024), attention=(False, True, True, True), heads=(8, 8, 8, 8),
            cross_only=(True, True, True, False),  # [ldm] disable_self_attentions
            context_width=1024, classes=1000, linear_projection=True,
        ),
        diffusion=dataclasses.replace(schedule, prediction="v"), low_res=schedule,
        guidance=9.0,  # [ldm] scripts/streamlit/superresolution.py; diffusers' pipeline too
    )


PRESETS = {"sd1": sd1, "sd2-base": sd2_base, "sd2": sd2, "sd1-inpaint": sd1_inpaint, "sd2-inpaint": sd2_inpaint,
           "sd2-depth": sd2_depth, "x4-upscaler": x4_upscaler, "tiny": tiny}

# What a UNet is for, as its number of input channels tells where latents have 4.
PURPOSES = {
    4: "a text-to-image model", 5: "a depth-to-image model", 7: "the x4 upscaler", 8: "InstructPix2Pix",
    9: "an inpainting model",
}


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """A configuration as plain values, for a JSON file."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], source: str) -> ModelConfig:
    """The configuration that `to_dict` wrote; `source` names the file in errors.

    Raises InputError for a missing, unknown or wrongly typed field.
    """
    parts = {
        "text": TextConfig, "vision": VisionConfig, "vae": VAEConfig, "unet": UNetConfig,
        "diffusion": DiffusionConfig, "low_res": DiffusionConfig, "depth": MidasConfig,
    }
    if not isinstance(values, dict):
        raise InputError(f"{source}: the configuration is not a JSON object; write it with `sdjax convert`")
    built = dict(values)
    for name, kind in parts.items():
        if name in ("vision", "low_res", "depth") and built.get(name) is None:
            continue
        built[name] = _build(kind, built.get(name), f"{source}: {name}")
    return _build(ModelConfig, built, source)


def _build(kind: type, values: Any, source: str) -> Any:
    """One dataclass from plain values: lists become tuples, and every field must have its type."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) != set(fields):
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{source}: found {found}, expected exactly the fields {sorted(fields)}")
    example = kind(**{"name": ""} if kind is ModelConfig else {})
    built = {}
    for name, value in values.items():
        default = getattr(example, name)
        value = tuple(value) if isinstance(value, list) else value
        known = default is None or dataclasses.is_dataclass(default) or isinstance(value, type(default))
        if isinstance(default, tuple) and known:
            known = all(type(v) is type(default[0]) for v in value)
        if not known or (isinstance(default, int) and isinstance(value, bool) and not isinstance(default, bool)):
            raise InputError(f"{source}: {name} is {value!r}, expected a {type(default).__name__}")
        built[name] = value
    return kind(**built)
