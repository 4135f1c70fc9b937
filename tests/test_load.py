"""Loading: a small random model written in each layout comes back the same, and a damaged one does not come back."""

import dataclasses
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, filled, randomised
from safetensors.numpy import load_file, save_file

from sdjax.checkpoint import diffusers_folder, native, original_file, tree
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.checkpoint.load import convert, describe, load, load_clip
from sdjax.checkpoint.native import networks, save
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import DiffusionConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.pipeline import StableDiffusion
from sdjax.tokenizer import Tokenizer
from sdjax.unet import UNet
from sdjax.vae import VAE

# As SD 1.x: OpenAI's text encoder and no pictures; and as the model that ships: OpenCLIP's and a shared space.
OPENAI = ModelConfig(
    name="like-sd1", image_size=16, text=TextConfig(vocab_size=515, width=8, layers=2, heads=2, end_id=514),
    vae=VAEConfig(channels=(4, 8), blocks=1, groups=2),
    unet=UNetConfig(channels=(4, 8), attention=(True, False), heads=(2, 2), cross_only=(False, False), blocks=1,
                    context_width=8, groups=2),
)
OPENCLIP = dataclasses.replace(
    OPENAI, name="like-sd2",
    text=TextConfig(vocab_size=515, width=8, layers=2, heads=2, activation="gelu", projection=6, padding="zero", end_id=514),
    vision=VisionConfig(image_size=8, patch=4, width=8, layers=1, heads=2, activation="gelu", projection=6, mean=(0.5, 0.4, 0.3)),
    vae=dataclasses.replace(OPENAI.vae, scale=0.7),
    unet=dataclasses.replace(OPENAI.unet, heads=(1, 2), cross_only=(True, False), linear_projection=True),
    diffusion=DiffusionConfig(beta_start=0.001, beta_end=0.02, schedule="linear", prediction="v"),
)


def model(config, tokenizer=None):
    tokenizer = tokenizer or Tokenizer(["r e"], padding=config.text.padding)
    vision = Network.of(randomised(ImageEncoder, config.vision, 4)) if config.vision else None
    return StableDiffusion(
        config, tokenizer, TextNetwork.of(randomised(TextEncoder, config.text, 1)),
        VAENetwork.of(randomised(VAE, config.vae, 2)), Network.of(randomised(UNet, config.unet, 3)), vision,
    )


@pytest.fixture(scope="module")
def openai():
    return model(OPENAI)


@pytest.fixture(scope="module")
def openclip():
    return model(OPENCLIP)


@pytest.fixture(scope="module")
def written(openai, openclip, tmp_path_factory):
    """Both models in the three layouts, to be read or copied, never changed."""
    folder = tmp_path_factory.mktemp("written")
    for name, sd in (("openai", openai), ("openclip", openclip)):
        to_original(sd, folder / f"{name}.safetensors")
        to_diffusers(sd, folder / f"{name}-diffusers")
        save(sd, folder / f"{name}-own")
    return folder


@pytest.fixture
def original(written, tmp_path):
    """A file in the original layout that a change made of `tensors` or of `metadata`."""
    def changed(change=None, name="openai", metadata=None):
        source = written / f"{name}.safetensors"
        tensors = load_file(source)
        if change:
            change(tensors)
        file = SafetensorsFile(source)
        save_file(tensors, tmp_path / "model.safetensors", file.metadata if metadata is None else metadata)
        return tmp_path / "model.safetensors"

    return changed


@pytest.fixture
def folder(written, tmp_path):
    def copied(name):
        return shutil.copytree(written / name, tmp_path / name)

    return copied


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def same(a, b, parts=("text_encoder", "vae", "unet", "image_encoder")):
    for name in parts:
        ours, theirs = (tree.flatten(networks(sd)[name].state) if name in networks(sd) else {} for sd in (a, b))
        assert ours.keys() == theirs.keys(), name
        for path, array in ours.items():
            np.testing.assert_array_equal(np.asarray(array), np.asarray(theirs[path]), f"{name} {path}")


# There and back


@pytest.mark.parametrize("name", ["openai", "openclip"])
@pytest.mark.parametrize("layout", ["-own", "-diffusers", ".safetensors"])
def test_every_layout_gives_back_the_same_weights_configuration_and_vocabulary(name, layout, written, request):
    sd, back = request.getfixturevalue(name), load(written / f"{name}{layout}")
    original = layout == ".safetensors"  # has no place for an image encoder
    same(sd, back, ("text_encoder", "vae", "unet") if original else native.networks(sd))
    expected = dataclasses.replace(sd.config, name=back.config.name, vision=None if original else sd.config.vision)
    assert back.config == expected
    assert (back.tokenizer.merges, back.tokenizer.padding) == (("r e",), sd.config.text.padding)


def test_a_loaded_model_draws_the_same_picture(openclip, written):
    options = {"steps": 1, "seed": 7, "guidance_scale": 1.0, "sampler": "ddim"}
    ours, theirs = (sd.txt2img("re", **options) for sd in (openclip, load(written / "openclip.safetensors")))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("unet-sd2", UNet, UNetConfig(channels=(8, 12), attention=(True, False), cross_only=(False, False), heads=(2, 3),
                                      blocks=2, context_width=12, groups=4, linear_projection=True)),
        ("vision", ImageEncoder, VisionConfig(image_size=12, patch=4, width=16, layers=2, heads=2, projection=10)),
    ],
)
def test_weights_of_another_library_end_up_where_the_shortest_rule_puts_them(name, kind, config, tmp_path):
    """The rule is golden.py's, which the tests of the networks check against the library's own answers."""
    golden = Golden(name)
    save_file(golden.weights, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    part = diffusers_folder.part("unet" if kind is UNet else "image_encoder", config, file, file.names())
    assert part.problems() == []
    expected = tree.flatten(Network.of(filled(kind, config, golden.weights)).state)
    for path, array in tree.flatten(part.read(jnp.float32).state).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected[path]), path)


def test_a_kernel_is_turned_from_outputs_first_to_outputs_last(openai, written):
    stored = load_file(written / "openai.safetensors")["model.diffusion_model.input_blocks.0.0.weight"]
    kernel = np.asarray(openai.unet.module.conv_in.kernel[...])
    assert (stored.shape, kernel.shape) == ((4, 4, 3, 3), (3, 3, 4, 4))
    assert stored[3, 1, 0, 2] == kernel[0, 2, 1, 3]


def test_the_middle_third_of_openclips_matrix_is_the_keys(openclip, written):
    stored = load_file(written / "openclip.safetensors")["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    keys = openclip.text_encoder.module.encoder.layers[1].self_attn.k_proj.kernel[...]
    np.testing.assert_array_equal(stored[8:16], np.asarray(keys).T)


# What else is accepted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_can_be_asked_for(dtype, written):
    assert load(written / "openai-diffusers", dtype).unet.module.conv_in.kernel.dtype == dtype


def test_a_half_precision_file_is_read_as_float32(openai, original):
    path = original(lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    kernel = load(path).unet.module.conv_in.kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, np.asarray(openai.unet.module.conv_in.kernel[...]).astype(np.float16))


def rename(tensors, **words):
    for name in list(tensors):
        new = name
        for old, word in words.items():
            new = new.replace(f".{old}.", f".{word}.")
        tensors[new] = tensors.pop(name)


def test_the_vaes_old_attention_names_are_accepted_as_matrices_and_as_convolutions(openai, folder):
    path = folder("openai-diffusers")

    def old(tensors):
        rename(tensors, to_q="query", to_k="key", to_v="value")
        for name in [n for n in tensors if ".to_out.0." in n]:
            tensors[name.replace("to_out.0", "proj_attn")] = tensors.pop(name)
        for name in [n for n in tensors if "query.weight" in n or "proj_attn.weight" in n]:
            tensors[name] = tensors[name][:, :, None, None]

    change_tensors(path / "vae" / "diffusion_pytorch_model.safetensors", old)
    same(openai, load(path))


@pytest.mark.parametrize("name", ["openai", "openclip"])
def test_projections_are_matrices_or_convolutions_in_either_family(name, request, original):
    def widen(tensors):
        for key in [k for k in tensors if k.endswith(("proj_in.weight", "proj_out.weight"))]:
            shape = tensors[key].shape
            tensors[key] = tensors[key].reshape(shape[:2] if len(shape) == 4 else (*shape, 1, 1))

    same(request.getfixturevalue(name), load(original(widen, name)), ("vae", "unet"))


def test_text_model_may_be_left_out_of_the_names(openai, folder, original):
    path = folder("openai-diffusers")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.replace("text_model.", "")] = tensors.pop(name)

    change_tensors(path / "text_encoder" / "model.safetensors", strip)
    same(openai, load(path))
    same(openai, load(original(strip)))


def test_position_ids_ema_and_openclips_last_layer_are_passed_over(openai, openclip, original):
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None]}
    same(openai, load(original(lambda t: t.update(ids, betas=np.ones(3), **{"model_ema.decay": np.float32(1)}))))
    last = {f"cond_stage_model.model.{k}": np.float32([np.nan]) for k in ("logit_scale", "transformer.resblocks.2.ln_1.bias")}
    same(openclip, load(original(lambda t: t.update(last), "openclip")), ("text_encoder",))


def test_a_variant_or_an_index_of_shards_stands_in_for_the_one_file(openai, folder):
    path = folder("openai-diffusers")
    (path / "vae" / "diffusion_pytorch_model.safetensors").rename(path / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, weight_map = load_file(whole), {}
    for i, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:])):
        save_file({n: tensors[n] for n in names}, whole.with_name(f"shard-{i}.safetensors"))
        weight_map |= dict.fromkeys(names, f"shard-{i}.safetensors")
    whole.unlink()
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(openai, load(path))


def test_a_vocabulary_of_its_own_is_not_needed_for_the_released_one(tmp_path):
    text = dataclasses.replace(OPENAI.text, vocab_size=49408, end_id=49407, layers=1)
    sd = model(dataclasses.replace(OPENAI, text=text), Tokenizer.clip())
    save(sd, tmp_path / "own")
    to_original(sd, tmp_path / "file.safetensors")
    to_diffusers(sd, tmp_path / "folder")
    assert not (tmp_path / "own" / "tokenizer.json").exists()
    for name in ("own", "file.safetensors", "folder"):
        assert load(tmp_path / name).tokenizer.vocab_size == 49408


# eps or v


@pytest.mark.parametrize(("bias", "prediction", "name", "size"), [(0.0, "eps", "sd2-base", 16), (-3.0, "v", "sd2", 768)])
def test_sd2_is_asked_whether_it_predicts_v(bias, prediction, name, size, tmp_path, monkeypatch):
    text = TextConfig(width=8, layers=1, heads=2, activation="gelu", padding="zero")
    config = dataclasses.replace(OPENAI, name="sd2-base", text=text)
    sd = model(config, Tokenizer.clip("zero"))
    to_original(sd, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    # All that the network says is its last bias; an eps network would say its input, 0.5.
    tensors["model.diffusion_model.out.2.weight"][:] = 0.0
    tensors["model.diffusion_model.out.2.bias"][:] = 0.5 + bias
    save_file(tensors, tmp_path / "m.safetensors")  # without our metadata, as released
    monkeypatch.setattr(original_file, "FAMILIES", {8: lambda: config})
    found = load(tmp_path / "m.safetensors").config
    assert (found.diffusion.prediction, found.name, found.image_size) == (prediction, name, size)
    assert describe(tmp_path / "m.safetensors").prediction == prediction
    assert load(tmp_path / "m.safetensors", prediction="eps").config.name == "sd2-base"


def test_the_caller_can_overrule_what_a_file_says(written):
    assert load(written / "openai-own", prediction="v").config.diffusion.prediction == "v"
    with pytest.raises(InputError, match="prediction: found 'x0', expected 'eps', 'v' or None"):
        load(written / "openai-own", prediction="x0")


# Damage

BIAS = "model.diffusion_model.out.2.bias"
HEAD = "cond_stage_model.transformer.text_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), rf"does not fit like-sd1 in the original layout: unet lacks {BIAS} \[4\]; `sdjax info`"),
        (lambda t: t.update({BIAS: np.ones(5, np.float32)}), rf"unet {BIAS} has shape \[5\], expected \[4\]"),
        (lambda t: t.update({BIAS: np.ones(4, np.int32)}), rf"unet {BIAS} is int32, expected floating point"),
        (lambda t: t.update({BIAS: np.float32([1, np.nan, 3, 4])}), f"'{BIAS}' holds 1 NaN or infinite values of 4"),
        (lambda t: t.update({BIAS + "2": t.pop(BIAS)}), rf"unet has unknown {BIAS}2 \[4\]; unet lacks {BIAS} \[4\]"),
        (lambda t: t.update({"first_stage_model.x": np.ones(2)}), r"vae has unknown first_stage_model.x \[2\]"),
        (lambda t: t.update({"x": np.ones(2)}), "has unknown x;"),
        (lambda t: t.update({"cond_stage_model.transformer.final_layer_norm.bias": np.ones(8)}),
         f"text_encoder has both .*final_layer_norm.bias and .*final_layer_norm.bias, expected one of them"),
        (lambda t: t.update({"cond_stage_model.model.ln_final.bias": np.ones(8)}), "cond_stage_model.transformer.text_model"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("first_stage")], "and 6[0-9] more; `sdjax info`"),
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
        ("unet", {"in_channels": 9}, r"an inpainting model \(9 input channels\)"),
        ("unet", {"block_out_channels": [4, "8"]}, r"unet/config.json: block_out_channels is .*, expected some of int"),
        ("unet", {"layers_per_block": 10**9}, "the configuration's unet cannot be"),
        ("unet", {"layers_per_block": 2}, "unet lacks down_blocks.0.attentions.1"),
        ("unet", {"attention_head_dim": 3}, "the configuration's unet heads cannot be"),
        ("unet", {"norm_num_groups": 0}, "the configuration's unet widths and groups cannot be"),
        ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu', the only one known here"),
        ("unet", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types has 'AttnDownBlock2D'"),
        ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types is not down_block_types in rev"),
        ("unet", {"only_cross_attention": True}, "only_cross_attention is true"),
        ("unet", {"cross_attention_dim": 9}, "unet context_width, the text's width cannot be"),
        ("vae", {"latent_channels": None}, "latent_channels is 'None', expected int"),
        ("vae", {"scaling_factor": float("nan")}, "vae scale cannot be"),
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
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2', expected scaled_linear or linear"),
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


def test_converting_is_loading_and_saving(openclip, written, tmp_path):
    convert(written / "openclip-diffusers", tmp_path / "m", "float16")
    assert sorted(os.listdir(tmp_path / "m")) == [
        "image_encoder.safetensors", "sdjax.json", "text_encoder.safetensors", "tokenizer.json", "unet.safetensors",
        "vae.safetensors",
    ]
    kernel = load_file(tmp_path / "m" / "unet.safetensors")["conv_in.kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(openclip.unet.module.conv_in.kernel[...]).astype(np.float16))
    with pytest.raises(InputError, match="is there already"):
        convert(tmp_path / "not-even-looked-at", tmp_path / "m")


# CLIP and info


def test_a_clip_is_read_from_our_folder_and_from_that_of_transformers(openclip, written, folder, tmp_path):
    source = folder("openclip-diffusers")
    towers = {k: v for part in ("text_encoder", "image_encoder")
              for k, v in load_file(source / part / "model.safetensors").items()}
    towers |= {"logit_scale": np.float32(4.6), "text_model.embeddings.position_ids": np.arange(77)[None]}
    path = tmp_path / "clip"
    shutil.copytree(source / "tokenizer", path)
    save_file(towers, path / "model.safetensors")
    text, vision = (json.loads((source / part / "config.json").read_text()) for part in ("text_encoder", "image_encoder"))
    path.joinpath("config.json").write_text(json.dumps(
        {"model_type": "clip", "projection_dim": 6, "text_config": text, "vision_config": vision}))
    shutil.copy(source / "feature_extractor" / "preprocessor_config.json", path)
    picture = np.linspace(-1, 1, 8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    expected = openclip.similarity(picture, ["re", "er"])
    for clip in (load_clip(path), load_clip(written / "openclip-own")):
        np.testing.assert_array_equal(clip.similarity(picture, ["re", "er"]), expected)
    assert describe(path).family == "CLIP"
    with pytest.raises(InputError, match="has no image encoder"):
        load_clip(written / "openai-own")


@pytest.mark.parametrize("layout", ["-own", "-diffusers", ".safetensors"])
def test_info_says_what_a_path_holds(layout, openai, written):
    info = describe(written / f"openai{layout}")
    assert info.layout == {"-own": "sdjax", "-diffusers": "diffusers", ".safetensors": "original"}[layout]
    assert (info.prediction, info.dtypes, info.problems) == ("eps", ("float32",), ())
    assert info.parameters == {name: network.size for name, network in native.networks(openai).items()}


def test_info_lists_everything_that_does_not_fit(original):
    def damage(tensors):
        tensors.pop(BIAS)
        tensors["first_stage_model.extra"] = np.ones((2, 3))

    assert describe(original(damage)).problems == (
        "vae has unknown first_stage_model.extra [2, 3]", f"unet lacks {BIAS} [4]",
    )


def test_info_names_a_model_that_is_not_loaded(original):
    info = describe(original(lambda t: t.update({"conditioner.embedders.0.x": np.ones(1)})))
    assert info.family == "Stable Diffusion XL" and "looks like Stable Diffusion XL" in info.problems[0]
