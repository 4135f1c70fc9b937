"""Loading: a small random model written in each layout comes back the same, however its file was spelled."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, filled
from safetensors.numpy import load_file, save_file
from small_models import OPENAI, OPENCLIP, change_tensors, model, same

from sdjax.checkpoint import diffusers_folder, native, original_file, tree
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.checkpoint.load import describe, load, load_clip
from sdjax.checkpoint.native import save
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.clip import ImageEncoder
from sdjax.config import TextConfig, UNetConfig, VisionConfig
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.tokenizer import Tokenizer
from sdjax.unet import UNet

pytest_plugins = "written"  # the fixtures

BIAS = "model.diffusion_model.out.2.bias"

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


def test_a_models_own_guidance_survives_a_folder_of_diffusers(tmp_path):
    to_diffusers(model(dataclasses.replace(OPENCLIP, guidance=4.0)), tmp_path / "own")
    assert load(tmp_path / "own").config.guidance == 4.0
    index = tmp_path / "own" / "model_index.json"
    index.write_text(index.read_text().replace("4.0", '"much"'))
    with pytest.raises(InputError, match="_sdjax_guidance is 'much', expected float"):
        load(tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("unet-sd2", UNet, UNetConfig(
            channels=(8, 12), attention=(True, False), cross_only=(False, False), heads=(2, 3), blocks=2,
            context_width=12, groups=4, linear_projection=True,
        )),
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
    fused = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    stored = load_file(written / "openclip.safetensors")[fused]
    keys = openclip.text_encoder.module.encoder.layers[1].self_attn.k_proj.kernel[...]
    np.testing.assert_array_equal(stored[8:16], np.asarray(keys).T)


# What else is accepted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_can_be_asked_for_and_pixels_stay_in_float32(dtype, written):
    sd = load(written / "openai-diffusers", dtype)
    found = {part: {str(leaf.dtype) for leaf in jax.tree.leaves(getattr(sd, part).state)}
             for part in ("text_encoder", "unet", "vae")}
    assert found == {"text_encoder": {dtype}, "unet": {dtype}, "vae": {"float32"}}
    pictures = sd.txt2img("red", steps=2)
    assert pictures.dtype == np.float32 and np.isfinite(pictures).all()


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
    same(openai, load(original(lambda t: t.update(ids, betas=np.ones(3), **{"model_ema.decay": np.ones(())}))))
    names = ("logit_scale", "transformer.resblocks.2.ln_1.bias")
    last = {f"cond_stage_model.model.{name}": np.float32([np.nan]) for name in names}
    same(openclip, load(original(lambda t: t.update(last), "openclip")), ("text_encoder",))


def test_a_variant_or_an_index_of_shards_stands_in_for_the_one_file(openai, folder):
    path = folder("openai-diffusers")
    vae = path / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
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


@pytest.mark.parametrize(
    ("bias", "prediction", "name", "size"), [(0.0, "eps", "sd2-base", 16), (-3.0, "v", "sd2", 768)]
)
def test_sd2_is_asked_whether_it_predicts_v(bias, prediction, name, size, tmp_path, monkeypatch):
    text = TextConfig(width=8, layers=1, heads=2, activation="gelu", padding="zero")
    unet = UNetConfig(
        channels=(4,), attention=(True,), heads=(2,), cross_only=(False,), blocks=1, context_width=8, groups=2
    )
    config = dataclasses.replace(OPENAI, name="sd2-base", text=text, unet=unet)
    sd = model(config, Tokenizer.clip("zero"))
    to_original(sd, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    # All that the network says is its last bias; an eps network would say its input, 0.5.
    tensors["model.diffusion_model.out.2.weight"][:] = 0.0
    tensors["model.diffusion_model.out.2.bias"][:] = 0.5 + bias
    save_file(tensors, tmp_path / "m.safetensors")  # without our metadata, as released
    monkeypatch.setattr(original_file, "FAMILIES", {(8, 4): lambda: config})
    found = load(tmp_path / "m.safetensors").config
    assert (found.diffusion.prediction, found.name, found.image_size) == (prediction, name, size)
    assert describe(tmp_path / "m.safetensors").prediction == prediction
    assert load(tmp_path / "m.safetensors", prediction="eps").config.name == "sd2-base"


def test_the_caller_can_overrule_what_a_file_says(written):
    assert load(written / "openai-own", prediction="v").config.diffusion.prediction == "v"
    with pytest.raises(InputError, match="prediction: found 'x0', expected 'eps', 'v' or None"):
        load(written / "openai-own", prediction="x0")


# CLIP and info


def test_a_clip_is_read_from_our_folder_and_from_that_of_transformers(
    openclip, written, folder, tmp_path, monkeypatch
):
    source = folder("openclip-diffusers")
    towers = {k: v for part in ("text_encoder", "image_encoder")
              for k, v in load_file(source / part / "model.safetensors").items()}
    towers |= {"logit_scale": np.ones(()), "text_model.embeddings.position_ids": np.arange(77)[None]}
    path = tmp_path / "clip"
    shutil.copytree(source / "tokenizer", path)
    save_file(towers, path / "model.safetensors")
    parts = ("text_encoder", "image_encoder")
    text, vision = (json.loads((source / part / "config.json").read_text()) for part in parts)
    path.joinpath("config.json").write_text(json.dumps(
        {"model_type": "clip", "projection_dim": 6, "text_config": text, "vision_config": vision}))
    shutil.copy(source / "feature_extractor" / "preprocessor_config.json", path)
    picture = np.linspace(-1, 1, 8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    expected = openclip.similarity(picture, ["re", "er"])
    for clip in (load_clip(path), load_clip(written / "openclip-own")):
        np.testing.assert_array_equal(clip.similarity(picture, ["re", "er"]), expected)
    # In one file, without a configuration beside it, it is ViT-L/14.
    monkeypatch.setattr(diffusers_folder, "clip_vit_l14", lambda: (openclip.config.text, openclip.config.vision))
    alone = load_clip(path / "model.safetensors").image_encoder(picture[None])
    np.testing.assert_array_equal(alone, openclip.image_encoder(picture[None]))
    assert describe(path).family == "CLIP"
    pixels = path / "preprocessor_config.json"
    pixels.write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))  # floats, written as integers
    assert load_clip(path).image_encoder.config.mean == (0.0, 0.0, 0.0)
    text.pop("num_hidden_layers")  # is 12 where it is not said
    path.joinpath("config.json").write_text(json.dumps(
        {"projection_dim": 6, "text_config": text, "vision_config": vision}))
    with pytest.raises(InputError, match=r"lacks encoder.layers.2.layer_norm1.bias .* 156 more"):
        load_clip(path)
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


def test_a_folder_without_a_tokenizer_pads_as_the_width_of_its_family_tells(tmp_path):
    assert diffusers_folder.padding(tmp_path, 768) == "eos" and diffusers_folder.padding(tmp_path, 1024) == "zero"
