"""What is not exactly a model is refused, with a message that says what is wrong; and nothing is overwritten."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models import OPENAI, change_tensors, edit

from sdjax.checkpoint import tree
from sdjax.checkpoint.load import convert, describe, load
from sdjax.checkpoint.native import save
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.pipeline import StableDiffusion

pytest_plugins = "written"  # the fixtures

BIAS = "model.diffusion_model.out.2.bias"
HEAD = "cond_stage_model.transformer.text_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), rf"not fit like-sd1 in the original layout: unet lacks {BIAS} \[4\]; `sdjax info`"),
        (lambda t: t.update({BIAS: np.ones(5, np.float32)}), rf"unet {BIAS} has shape \[5\], expected \[4\]"),
        (lambda t: t.update({BIAS: np.ones(4, np.int32)}), rf"unet {BIAS} is int32, expected floating point"),
        (lambda t: t.update({BIAS: np.float32([1, np.nan, 3, 4])}), f"'{BIAS}' holds 1 NaN or infinite values of 4"),
        (lambda t: t.update({BIAS + "2": t.pop(BIAS)}), rf"unet lacks {BIAS} \[4\]; unet has unknown {BIAS}2 \[4\]"),
        (lambda t: t.update({"first_stage_model.x": np.ones(2)}), r"vae has unknown first_stage_model.x \[2\]"),
        (lambda t: t.update({"x": np.ones(2)}), "has unknown x;"),
        (lambda t: t.update({"cond_stage_model.transformer.final_layer_norm.bias": np.ones(8)}),
         "text_encoder has both .*final_layer_norm.bias and .*final_layer_norm.bias, expected one of them"),
        (lambda t: t.update({"cond_stage_model.model.ln_final.bias": np.ones(8)}), f"has unknown {HEAD}"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("first_stage")], "vae lacks .*; and 120 more;"),
        (lambda t: t.update({HEAD + "embeddings.token_embedding.weight": np.ones((8, 515), np.float32)}),
         r"has shape \[8, 515\], expected \[515, 8\]"),
    ],
)
def test_a_file_that_is_not_exactly_the_model_is_refused(change, message, original):
    with pytest.raises(InputError, match=message):
        load(original(change))


def test_the_vaes_attention_under_both_names_is_refused(folder):
    path = folder("openai-diffusers")
    name = "encoder.mid_block.attentions.0.{}.bias"
    change_tensors(path / "vae" / "diffusion_pytorch_model.safetensors",
                   lambda t: t.update({name.format("query"): t[name.format("to_q")]}))
    with pytest.raises(InputError, match="vae has both .*(query|to_q).bias and .*(query|to_q).bias"):
        load(path)


def test_a_weight_too_large_for_half_precision_is_refused(original):
    path = original(lambda t: t.update({BIAS: np.float32([1e6, 0, 0, 0])}))
    assert load(path).unet.size > 0
    with pytest.raises(InputError, match=f"'{BIAS}' holds 1 NaN or infinite values of 4 as float16"):
        load(path, "float16")


def test_a_cut_off_download_is_refused(original):
    path = original()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="download it again"):
        load(path)


def test_without_our_metadata_sizes_of_no_released_model_are_refused(original):
    with pytest.raises(InputError, match="a model whose UNet reads texts of width 8"):
        load(original(metadata={"format": "pt"}))


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_metadata_that_is_no_configuration_is_refused(text, original):
    with pytest.raises(InputError, match="sdjax.config"):
        load(original(metadata={"sdjax.config": text}))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"in_channels": 8}, r"InstructPix2Pix \(8 input channels\)"),
        ("unet", {"in_channels": 9}, r"conv_in.weight .*expected.*9"),
        ("unet", {"block_out_channels": [4, "8"]}, r"unet/config.json: block_out_channels is .*, expected some of int"),
        ("unet", {"layers_per_block": 10**9}, "the configuration's unet cannot be"),
        ("unet", {"layers_per_block": 2}, "unet lacks down_blocks.0.attentions.1"),
        ("unet", {"attention_head_dim": 3}, "the configuration's unet heads cannot be"),
        ("unet", {"norm_num_groups": 0}, "the configuration's unet widths and groups cannot be"),
        ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu', all that works here"),
        ("unet", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types has 'AttnDownBlock2D'"),
        ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types is not down_block_types in"),
        ("unet", {"only_cross_attention": True}, "only_cross_attention is true"),
        ("unet", {"cross_attention_dim": 9}, "unet context_width, the text's width cannot be"),
        ("vae", {"latent_channels": None}, "latent_channels is 'None', expected int"),
        ("vae", {"scaling_factor": float("nan")}, "vae scale cannot be"),
        ("vae", {"scaling_factor": 10**400}, "scaling_factor is '1000.*', too large for a float"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv is 'False', expected True"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu', expected quick_gelu or gelu"),
        ("text_encoder", {"intermediate_size": 9}, "intermediate_size is not four times hidden_size"),
        ("text_encoder", {"vocab_size": 600}, r"the tokenizer has \(vocabulary, length, padding\) \(515, 77, 'eos'\)"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "text layers cannot be"),
    ],
)
def test_a_folder_whose_configuration_cannot_be_is_refused(part, values, message, folder):
    path = folder("openai-diffusers")
    edit(path / part / "config.json", **values)
    with pytest.raises(InputError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type is 'sample', expected epsilon or v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2', expected scaled"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_end": 2.0}, "beta_start and beta_end cannot be"),
    ],
)
def test_a_schedule_that_is_not_known_is_refused(values, message, folder):
    path = folder("openai-diffusers")
    edit(path / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_folder_says_what_it_lacks(folder, tmp_path):
    path = folder("openai-diffusers")
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="is a pickle"):
        load(path)
    (path / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="unet: has no diffusion_pytorch_model.safetensors"):
        load(path)
    with pytest.raises(InputError, match="openai-diffusers/unet: a folder with config.json, expected model_index.json"):
        load(path / "unet")
    (path / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match="vae/config.json: cannot be read"):
        load(path)
    with pytest.raises(InputError, match="nowhere: does not exist"):
        load(tmp_path / "nowhere")


def test_a_folder_of_another_pipeline_is_called_by_its_name(folder):
    path = folder("openai-diffusers")
    edit(path / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(InputError, match="looks like a model for StableDiffusionXLPipeline"):
        load(path)


# The project's own layout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "is of version 2, expected 1"),
        ({"format": "other"}, "expected what `sdjax convert` writes"),
        ({"tokenizer": "../../etc/passwd"}, 'tokenizer is .*, expected "clip" or "tokenizer.json"'),
        ({"config": {}}, "expected exactly the fields|found None|found NoneType"),
    ],
)
def test_an_index_that_is_not_ours_is_refused(values, message, folder):
    path = folder("openai-own")
    edit(path / "sdjax.json", **values)
    with pytest.raises(InputError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (None, {"guidance": float("nan")}, "guidance cannot be"),
        ("vision", {"mean": [0.0, float("nan"), 0.0]}, "vision mean and std cannot be"),
        ("vision", {"std": [1.0, float("inf"), 1.0]}, "vision mean and std cannot be"),
    ],
)
def test_numbers_that_are_none_are_refused_in_our_own_index_too(part, values, message, folder):
    path = folder("openclip-own")
    config = json.loads((path / "sdjax.json").read_text())["config"]
    (config[part] if part else config).update(values)
    edit(path / "sdjax.json", config=config)
    with pytest.raises(InputError, match=message):
        load(path)
    doubled = (path / "sdjax.json").read_text().replace("{", '{"version": 1,', 1)
    (path / "sdjax.json").write_text(doubled)
    with pytest.raises(InputError, match="is not JSON"):
        load(path)


def test_saving_never_replaces_what_it_did_not_make(openai, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("dear")
    for replace in (False, True):
        with pytest.raises(InputError, match="mine: is there already"):
            save(openai, tmp_path / "mine", replace=replace)
    assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == ["diary"]


def test_a_model_of_ours_is_replaced_only_where_asked(openai, tmp_path):
    save(openai, tmp_path / "m")
    with pytest.raises(InputError, match="is there already"):
        save(openai, tmp_path / "m")
    save(openai, tmp_path / "m", "float16", replace=True)
    assert describe(tmp_path / "m").dtypes == ("float16",)
    assert os.listdir(tmp_path) == ["m"]


def test_a_model_that_cannot_be_saved_leaves_nothing(openai, tmp_path):
    huge = StableDiffusion(OPENAI, openai.tokenizer, openai.text_encoder, openai.vae, Network.of(openai.unet.module))
    huge.unet.state = tree.fill(huge.unet.state, {k: v + 1e6 for k, v in tree.flatten(huge.unet.state).items()}, "test")
    with pytest.raises(InputError, match="are NaN or infinite"):
        save(huge, tmp_path / "m", "float16")
    with pytest.raises(InputError, match="cannot be written"):
        save(openai, tmp_path / "nowhere" / "m")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_a_model_is_replaced_leaves_the_old_one(openai, tmp_path, monkeypatch):
    save(openai, tmp_path / "m")
    rename = os.rename

    def interrupted(source, target):
        if str(source).endswith(".part"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(openai, tmp_path / "m", "float16", replace=True)
    assert os.listdir(tmp_path) == ["m"] and describe(tmp_path / "m").dtypes == ("float32",)


def test_converting_is_loading_and_saving(openclip, written, tmp_path):
    convert(written / "openclip-diffusers", tmp_path / "m", "float16")
    assert sorted(os.listdir(tmp_path / "m")) == [
        "image_encoder.safetensors", "sdjax.json", "text_encoder.safetensors", "tokenizer.json", "unet.safetensors",
        "vae.safetensors",
    ]
    kernel = load_file(tmp_path / "m" / "unet.safetensors")["conv_in.kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(openclip.unet.module.conv_in.kernel[...]).astype(np.float16))
    assert describe(tmp_path / "m").dtypes == ("float16",)
    with pytest.raises(InputError, match="is there already"):
        convert(tmp_path / "not-even-looked-at", tmp_path / "m")
    with pytest.raises(InputError, match="nowhere: does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "n")
    assert os.listdir(tmp_path) == ["m"]


