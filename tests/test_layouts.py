"""The tables of names: every tensor of the released files to exactly one place, at full size, without an array."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from sdjax.checkpoint import layouts, original_file, tree
from sdjax.checkpoint.export import original_tensors
from sdjax.checkpoint.layouts import by_modules, modern_vae, openclip_text, original_unet, original_vae
from sdjax.checkpoint.parts import WrongFamily, shapes
from sdjax.config import TextConfig, UNetConfig, VAEConfig, sd1
from sdjax.hardware import Network
from sdjax.pipeline import StableDiffusion

# The names and shapes in the released files of Stable Diffusion 1.x and 2.x, a list a part.
KEYS = json.loads(gzip.decompress((Path(__file__).parent / "fixtures" / "released_keys.json.gz").read_bytes()))
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


class Header:
    """A file of which only the header exists."""

    path = "released.safetensors"

    def __init__(self, tensors, metadata=None):
        self.tensors, self.metadata = tensors, metadata or {}

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        return tuple(self.tensors[name])

    def dtype(self, name):
        return np.dtype(np.float16)


def released(version):
    text = "cond_stage_model.transformer.text_model." if version == 1 else "cond_stage_model.model."
    unet, vae = "model.diffusion_model.", "first_stage_model."
    parts = {unet: f"UNET-v{version}-SD", vae: "VAE-v1-SD", text: f"CLIP-v{version}-SD"}
    return {prefix + name: shape for prefix, keys in parts.items() for name, shape in KEYS[keys].items()}


@pytest.mark.parametrize(
    ("version", "channels", "family", "text", "unet"),
    [
        (1, 4, "sd1", 123_060_480, 859_520_964), (2, 4, "sd2-base", 340_387_840, 865_910_724),
        # The files for inpainting have the same names, and five more channels to take in: 5 x 9 x 320 weights.
        (1, 9, "sd1-inpaint", 123_060_480, 859_535_364), (2, 9, "sd2-inpaint", 340_387_840, 865_925_124),
    ],
)
def test_every_tensor_of_a_released_file_has_its_place_and_every_parameter_its_tensor(
    version, channels, family, text, unet
):
    found = original_file.opened(Header(released(version) | {CONV_IN: [320, channels, 3, 3]}))
    assert found.problems() == []
    assert found.config.name == family
    assert {name: part.size for name, part in found.parts.items()} == {
        "text_encoder": text, "vae": 83_653_863, "unet": unet,
    }
    for part in found.parts.values():
        held = [parameter for parameters in part.table.values() for parameter in parameters]
        assert sorted(held) == sorted(shapes(part.state))


def test_the_released_upscaler_fits_with_its_schedules_passed_over():
    found = original_file.opened(Header(KEYS["X4-upscaler"]))
    assert found.problems() == [] and found.config.name == "x4-upscaler"
    assert {name: part.size for name, part in found.parts.items()} == {
        "text_encoder": 340_387_840, "vae": 55_325_927, "unet": 473_398_020,
    }


def test_the_released_depth_model_fits_with_its_midas():
    midas = {f"depth_model.model.{name}": shape for name, shape in KEYS["MiDaS"].items()}
    found = original_file.opened(Header(released(2) | {CONV_IN: [320, 5, 3, 3]} | midas))
    assert found.problems() == [] and found.config.name == "sd2-depth"
    assert found.parts["unet"].size == 865_913_604
    unread = 1_950_696  # the classifier, the norm before it, and a refinement that has nothing to refine
    assert found.parts["depth_estimator"].size == 123_146_985 - unread


@pytest.mark.parametrize("version", [1, 2])
def test_exporting_gives_the_names_and_shapes_of_a_released_file(version):
    found = original_file.opened(Header(released(version)))

    def empty(part):  # full-size arrays of no size: every element is the same zero
        arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(part.state).items()}
        return Network(part.graph, tree.fill(part.state, arrays, "test"), part.config)

    sd = StableDiffusion(found.config, found.tokenizer, **{name: empty(part) for name, part in found.parts.items()})
    unread = ("position_ids", "logit_scale", "text_projection", "resblocks.23.")
    expected = {name: tuple(shape) for name, shape in released(version).items() if not any(u in name for u in unread)}
    assert {name: tensor.shape for name, tensor in original_tensors(sd).items()} == expected


def test_only_the_weights_can_tell_eps_from_v_and_only_in_sd2():
    assert original_file.opened(Header(released(1))).prediction_told
    assert not original_file.opened(Header(released(2))).prediction_told
    assert original_file.opened(Header(released(2) | {CONV_IN: [320, 9, 3, 3]})).prediction_told  # was always eps


def test_ema_copies_and_schedule_buffers_are_passed_over():
    unread = ["model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay", "betas", "alphas_cumprod",
              "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "logvar",
              "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
              "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"]
    assert original_file.opened(Header(released(1) | {name: [1000] for name in unread})).problems() == []


def test_anything_else_is_said_to_be_unknown():
    found = original_file.opened(Header(released(1) | {"alphas": [1000], "first_stage_model.loss.logvar": []}))
    assert found.problems() == ["has unknown alphas", "vae has unknown first_stage_model.loss.logvar []"]


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (released(1) | {CONV_IN: [320, 8, 3, 3]}, r"InstructPix2Pix \(8 input channels\)"),
        (released(1) | {CONV_IN: [320, 5, 3, 3]}, r"a depth-to-image model \(5 input channels\)"),
        (released(1) | {CONV_IN: [256, 7, 3, 3]}, r"the x4 upscaler \(7 input channels\)"),
        ({"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": [768], CONV_IN: [320, 4, 3, 3]},
         "Stable Diffusion XL"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": [4608, 1536]}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": [9216, 3072]}, "Flux"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": [1280, 4]}, "a LoRA"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": [4, 1280]}, "a LoRA"),
        ({"control_model.input_blocks.0.0.weight": [320, 4, 3, 3]}, "a ControlNet"),
        ({"emb_params": [2, 768]}, "a textual inversion"),
        ({"decoder.conv_in.weight": [512, 4, 3, 3]}, "a VAE alone"),
        ({"first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3]}, "a VAE alone"),
        ({"conv_in.weight": [320, 4, 3, 3]}, "the UNet alone, out of a diffusers folder: give the whole folder"),
        ({"text_model.final_layer_norm.bias": [768]}, "a CLIP alone, which sdjax.load_clip takes"),
        ({"model.layers.0.mlp.gate_proj.weight": [1, 1]}, "no such model: it has 1 tensors, such as model.layers.0"),
    ],
)
def test_other_models_are_called_by_their_name(tensors, what):
    with pytest.raises(WrongFamily, match=f"released.safetensors: looks like {what}"):
        original_file.opened(Header(tensors))


# One name at a time


def test_the_unets_blocks_are_numbered_through_in_the_original():
    c = sd1().unet
    ours = [
        "conv_in.kernel", "down_blocks.0.resnets.0.conv1.kernel", "down_blocks.0.downsamplers.0.conv.bias",
        "down_blocks.1.resnets.0.conv_shortcut.kernel", "down_blocks.3.resnets.1.time_emb_proj.bias",
        "mid_block.attentions.0.norm.scale", "mid_block.resnets.1.norm2.bias",
        "up_blocks.0.upsamplers.0.conv.kernel", "up_blocks.1.upsamplers.0.conv.kernel",
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias", "conv_norm_out.scale",
    ]
    assert list(original_unet(ours, c)) == [
        "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight", "input_blocks.3.0.op.bias",
        "input_blocks.4.0.skip_connection.weight", "input_blocks.11.0.emb_layers.1.bias",
        "middle_block.1.norm.weight", "middle_block.2.out_layers.0.bias",
        "output_blocks.2.1.conv.weight",  # no attention at this level, so it is member 1
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias", "out.0.weight",
    ]


def test_the_vaes_decoder_counts_its_levels_backwards_in_the_original():
    ours = ["decoder.up_blocks.0.resnets.2.conv1.kernel", "decoder.up_blocks.3.resnets.0.norm1.scale",
            "encoder.down_blocks.0.resnets.1.conv2.bias", "encoder.mid_block.attentions.0.to_out.0.bias"]
    assert list(original_vae(ours, VAEConfig())) == [
        "decoder.up.3.block.2.conv1.weight", "decoder.up.0.block.0.norm1.weight", "encoder.down.0.block.1.conv2.bias",
        "encoder.mid.attn_1.proj_out.bias",
    ]


def test_openclip_keeps_queries_keys_and_values_in_one_matrix():
    layer = "encoder.layers.0.self_attn."
    ours = [f"{layer}{x}_proj.{leaf}" for x in "kqv" for leaf in ("bias", "kernel")]
    table = openclip_text(ours, TextConfig(layers=1))
    assert table == {
        "transformer.resblocks.0.attn.in_proj_weight": tuple(f"{layer}{x}_proj.kernel" for x in "qkv"),
        "transformer.resblocks.0.attn.in_proj_bias": tuple(f"{layer}{x}_proj.bias" for x in "qkv"),
    }


def test_torch_has_the_outputs_first():
    def stored(name, parameter, shape):
        return layouts.stored_shape(name, (parameter,), {parameter: shape})

    assert stored("conv_in.weight", "conv_in.kernel", (3, 3, 4, 320)) == (320, 4, 3, 3)
    assert stored("fc1.weight", "fc1.kernel", (768, 3072)) == (3072, 768)
    assert stored("fc1.kernel", "fc1.kernel", (768, 3072)) == (768, 3072)  # our own layout
    assert stored("t.weight", "t.embedding", (77, 768)) == (77, 768)


@pytest.mark.parametrize(
    ("old", "new"), [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"), ("to_q", "to_q")]
)
def test_the_vaes_attention_had_other_names(old, new):
    before, after = (f"decoder.mid_block.attentions.0.{x}.weight" for x in (old, new))
    assert modern_vae(before) == after


def test_the_upscalers_class_embedding_and_finest_upsampler_have_their_names():
    x4 = UNetConfig(attention=(False, True, True, True))
    ours = ["class_embedding.embedding", "up_blocks.0.upsamplers.0.conv.bias"]
    assert list(original_unet(ours, x4)) == ["label_emb.weight", "output_blocks.2.2.conv.bias"]


def test_leaves_are_called_as_torch_calls_them():
    assert by_modules(["a.kernel", "b.scale", "c.embedding", "d.bias", "e.class_embedding"]) == {
        "a.weight": ("a.kernel",), "b.weight": ("b.scale",), "c.weight": ("c.embedding",), "d.bias": ("d.bias",),
        "e.class_embedding": ("e.class_embedding",),
    }
