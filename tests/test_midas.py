"""MiDaS: its pieces in small numbers, the whole against transformers' answers, and the names in its files."""

import gzip
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import FIXTURES, Golden, error
from small_models import DEPTH, edit, model

from sdjax.checkpoint.export import to_diffusers
from sdjax.checkpoint.layouts import stored_shape
from sdjax.checkpoint.load import load
from sdjax.checkpoint.midas_layouts import (
    UNREAD_ORIGINAL,
    UNREAD_TRANSFORMERS,
    original_midas,
    transformers_midas,
)
from sdjax.checkpoint.parts import Name, Part, shapes
from sdjax.config import MidasConfig
from sdjax.errors import InputError
from sdjax.midas import ConvNorm, Fusion, Reassemble, StdConv, depth, net_size, resampling, resized

TOLERANCE = 1e-5
# As in fixtures/make_midas.py; transformers has its own eps in the transformer's norms.
SMALL = MidasConfig(
    image_size=64, stem=8, stages=(32, 32, 64), depths=(2, 1, 1), groups=4, width=16, layers=3, heads=2, hooks=(0, 2),
    norm_eps=1e-12, features=8,
)
# The names and shapes after depth_model.model. in the released 512-depth-ema.
RELEASED = json.loads(gzip.decompress((FIXTURES / "released_keys.json.gz").read_bytes()))["MiDaS"]


@pytest.mark.parametrize("spelt", ["same", "SAME"])
def test_a_backbone_is_told_in_either_spelling(spelt, tmp_path):
    """transformers takes both and writes capitals."""
    to_diffusers(model(DEPTH), tmp_path / "folder")
    config = tmp_path / "folder" / "depth_estimator" / "config.json"
    backbone = json.loads(config.read_text())["backbone_config"]
    edit(config, backbone_config=backbone | {"global_padding": spelt})
    assert load(tmp_path / "folder").config.depth == DEPTH.depth


@pytest.mark.parametrize(("field", "found"), [
    ("global_padding", "'NONE'"), ("layer_type", "'preactivation'"), ("embedding_dynamic_padding", "'False'"),
])
def test_a_backbone_that_leaves_a_field_out_has_what_transformers_gives_it(field, found, tmp_path):
    to_diffusers(model(DEPTH), tmp_path / "folder")
    config = tmp_path / "folder" / "depth_estimator" / "config.json"
    backbone = json.loads(config.read_text())["backbone_config"]
    del backbone[field]
    edit(config, backbone_config=backbone)
    with pytest.raises(InputError, match=f"{field} is {found}, expected"):
        load(tmp_path / "folder")


class Memory:
    """A file of tensors that was never written."""

    path = "memory"

    def __init__(self, tensors):
        self.tensors = tensors

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def dtype(self, name):
        return self.tensors[name].dtype

    def read(self, name, dtype):
        return np.asarray(self.tensors[name], dtype)


def part(tensors, layout, unread, config=SMALL):
    names = [Name(name, name) for name in tensors if not unread.fullmatch(name)]
    return Part.of("depth_estimator", config, Memory(tensors), names, layout)


@pytest.fixture(scope="module")
def golden():
    return Golden("midas")


@pytest.fixture(scope="module")
def network(golden):
    return part(golden.weights, transformers_midas, UNREAD_TRANSFORMERS).read(np.float32)


def with_weights(module, **weights):
    for path, value in weights.items():
        owner = module
        for step in path.split("__")[:-1]:
            owner = getattr(owner, step)
        parameter = getattr(owner, path.split("__")[-1])
        parameter[...] = jnp.asarray(value, jnp.float32).reshape(parameter.shape)
    return module


# The pieces


def test_a_kernel_is_standardised_over_all_that_an_output_reads():
    conv = with_weights(StdConv(2, 1, 1, rngs=nnx.Rngs(0)), kernel=[1, 3])  # mean 2, deviation 1: becomes -1, 1
    np.testing.assert_allclose(conv(jnp.array([[[[5.0, 9.0]]]])), [[[[4.0]]]], rtol=1e-6)
    louder = with_weights(StdConv(2, 1, 1, rngs=nnx.Rngs(0)), kernel=[107, 127])  # means nothing
    np.testing.assert_allclose(louder(jnp.array([[[[5.0, 9.0]]]])), [[[[4.0]]]], rtol=1e-6)


def test_the_variance_of_a_kernel_has_1e_8_added():
    quiet = with_weights(StdConv(2, 1, 1, rngs=nnx.Rngs(0)), kernel=[1e-4, 3e-4])  # variance 1e-8: half the power left
    np.testing.assert_allclose(quiet(jnp.array([[[[5.0, 9.0]]]])).item(), 4 / math.sqrt(2), rtol=1e-5)


def test_a_kernel_that_is_all_the_same_gives_0_and_no_nan():
    conv = with_weights(StdConv(2, 1, 1, rngs=nnx.Rngs(0)), kernel=[0.5, 0.5])
    gradient = jax.grad(lambda x: conv(x).sum())(jnp.ones((1, 1, 1, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 1, 1, 2)))


def test_an_odd_padding_has_its_larger_half_at_the_bottom_and_right():
    # 3x3 with stride 2 over 4x4 needs one row and one column more. Where the kernel lies inside, ones give its sum, 0.
    conv = with_weights(StdConv(1, 1, 3, stride=2, rngs=nnx.Rngs(0)), kernel=range(9))
    found = conv(jnp.ones((1, 4, 4, 1)))[0, :, :, 0] * math.sqrt(60 / 9)
    np.testing.assert_allclose(found, [[0, -3], [-9, -8]], atol=1e-5)


def test_group_norms_have_eps_1e_5():
    norm = ConvNorm(1, 2, 1, 1, groups=1, rngs=nnx.Rngs(0)).norm
    found = norm(jnp.array([1e-3, -1e-3]).reshape(1, 1, 1, 2))  # variance 1e-6
    np.testing.assert_allclose(found.ravel(), [1 / math.sqrt(11), -1 / math.sqrt(11)], rtol=1e-4)


def test_each_token_is_mixed_with_the_class_token():
    both = np.concatenate([np.eye(2), 10 * np.eye(2)])  # token + 10 class
    mix = with_weights(
        Reassemble(2, halve=False, rngs=nnx.Rngs(0)), readout__kernel=both, readout__bias=[0, 0],
        project__kernel=np.eye(2), project__bias=[0, 0],
    )
    found = mix(jnp.array([[[1.0, -5], [2, 40], [3, 52]]]), 1, 2)  # the class token stands first
    np.testing.assert_allclose(found, [[[[12, 0], [13, 1.954499736]]]], atol=1e-5)  # gelu(2) is 1.9545


def test_the_lowest_fusion_has_nothing_below_it_and_the_others_add_it_untouched():
    x, below = jnp.full((1, 1, 1, 1), 3.0), jnp.full((1, 1, 1, 1), -100.0)
    still = dict(kernel=0 * np.ones((3, 3, 1, 1)), bias=[0])  # relu, convolution, relu, convolution: adds 0
    silent = {f"{unit}__{conv}__{leaf}": value for unit in ("on_sum", "on_map") for conv in ("conv1", "conv2")
              for leaf, value in still.items()}
    out = dict(out_conv__kernel=[1], out_conv__bias=[0])
    higher = with_weights(Fusion(1, lowest=False, rngs=nnx.Rngs(0)), **silent, **out)
    lowest = with_weights(Fusion(1, lowest=True, rngs=nnx.Rngs(0)),
                          **{k: v for k, v in silent.items() if k.startswith("on_sum")}, **out)
    np.testing.assert_array_equal(lowest(x, None), np.full((1, 2, 2, 1), 3))
    np.testing.assert_array_equal(higher(x, below), np.full((1, 2, 2, 1), -97))


# Sizes


def test_doubling_leaves_the_corners_where_they_are():
    np.testing.assert_allclose(resampling(2, 4, "bilinear, corners aligned") @ [0, 3], [0, 1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(resampling(2, 4, "bilinear") @ [0, 3], [0, 0.75, 2.25, 3], atol=1e-12)


def test_bicubic_is_that_of_torch_not_that_of_jax():
    # Half way between pixels: -3/32, 19/32, 19/32, -3/32; what lies beyond the border counts for the pixel on it.
    np.testing.assert_allclose(resampling(4, 2, "bicubic")[0], [16 / 32, 19 / 32, -3 / 32, 0], atol=1e-12)


@pytest.mark.parametrize("size", [(8, 6), (3, 11)])
def test_pictures_grow_and_shrink_as_torch_does_it(golden, size):
    assert error(resized(golden["in.picture"], size, "bicubic"), golden[f"out.bicubic-{size[0]}x{size[1]}"]) < 1e-6


@pytest.mark.parametrize("method", ["bilinear", "bilinear, corners aligned", "bicubic"])
def test_the_same_size_changes_nothing(method):
    np.testing.assert_allclose(resampling(5, 5, method), np.eye(5), atol=1e-12)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (384, 384)), ((480, 640), (384, 512)), ((600, 800), (384, 512)), ((768, 512), (576, 384)),
        ((200, 300), (256, 384)),  # 1.92 or 1.28: the width's is nearer 1
        ((1080, 1920), (384, 672)),  # 682.67 pixels are 21.3 times 32
        ((64, 64), (384, 384)), ((384, 384), (384, 384)),
        ((384, 8), (384, 32)),  # a strip keeps one column of the coarsest map
    ],
)
def test_a_picture_is_seen_with_one_side_about_384_and_both_multiples_of_32(size, seen):
    assert net_size(*size) == seen


def test_a_strip_too_long_to_be_seen_is_refused_before_memory_runs_out():
    assert net_size(300, 9600) == (384, 12288)
    with pytest.raises(InputError, match="image: found 300 x 64000, which MiDaS would see as 384 x 81920"):
        net_size(300, 64000)


def test_a_small_network_sees_small_pictures():
    assert net_size(128, 128, side=128) == (128, 128)


# The whole network


def test_depth_is_that_of_transformers_and_wide_pictures_stretch_the_learnt_places(golden, network):
    assert golden["in.pictures"].shape == (2, 64, 96, 3)  # 4 x 6 tokens, places for 4 x 4
    found = network(golden["in.pictures"])
    assert found.shape == (2, 64, 96) and found.dtype == jnp.float32
    assert error(found, golden["out.depth"]) < TOLERANCE


def test_any_picture_is_seen_at_its_net_size_and_comes_back_at_its_own(golden, network):
    pictures = resized(golden["in.pictures"], (60, 90), "bicubic")
    seen = network(resized(pictures, (64, 96), "bicubic"))[..., None]
    found = depth(network, pictures)
    assert found.shape == (2, 60, 90)
    np.testing.assert_array_equal(found, resized(seen, (60, 90), "bicubic")[..., 0])
    # Straight to the latents' size for the UNet, as the original goes: by way of the pictures' it would be another.
    np.testing.assert_array_equal(depth(network, pictures, (8, 12)), resized(seen, (8, 12), "bicubic")[..., 0])


def test_flat_pictures_have_a_depth_and_no_nan(network):
    found = depth(network, jnp.stack([jnp.zeros((64, 96, 3)), jnp.ones((64, 96, 3))]))
    assert jnp.isfinite(found).all()


def test_a_size_that_the_coarsest_map_does_not_divide_is_refused(network):
    with pytest.raises(InputError, match="pictures: 64 x 100, expected sides that are multiples of 32"):
        network(jnp.zeros((1, 64, 100, 3)))


# The names in files


def test_every_tensor_of_the_released_file_has_its_place_and_every_parameter_its_tensor():
    header = {"dtype": np.dtype(np.float16)}
    tensors = {name: SimpleNamespace(shape=tuple(shape), **header) for name, shape in RELEASED.items()}
    found = part(tensors, original_midas, UNREAD_ORIGINAL, MidasConfig())
    assert found.problems() == []
    held = [parameter for parameters in found.table.values() for parameter in parameters]
    assert sorted(held) == sorted(shapes(found.state))
    unread = [math.prod(shape) for name, shape in RELEASED.items() if UNREAD_ORIGINAL.fullmatch(name)]
    assert (len(RELEASED), len(unread)) == (368, 8)
    assert found.size == 121_196_289 == 123_146_985 - sum(unread)


def test_every_tensor_of_transformers_has_its_place(golden):
    assert part(golden.weights, transformers_midas, UNREAD_TRANSFORMERS).problems() == []


def test_the_original_keeps_queries_keys_and_values_in_one_matrix():
    state = shapes(part({}, original_midas, UNREAD_ORIGINAL).state)
    tensors = {
        name: np.zeros(stored_shape(name, held, state), np.float32)
        for name, held in original_midas(state).items()
    }
    tensors["pretrained.model.blocks.1.attn.qkv.weight"] = np.repeat(np.arange(48.0)[:, None], 16, 1)  # a row an output
    read = part(tensors, original_midas, UNREAD_ORIGINAL).read(np.float32).module.transformer.blocks[1].attn
    for n, projection in enumerate((read.to_q, read.to_k, read.to_v)):
        np.testing.assert_array_equal(projection.kernel[...][0], np.arange(16 * n, 16 * n + 16))


@pytest.mark.parametrize(
    ("ours", "original", "transformers"),
    [
        ("resnet.stem.conv.kernel", "pretrained.model.patch_embed.backbone.stem.conv.weight",
         "dpt.embeddings.backbone.bit.embedder.convolution.weight"),
        ("resnet.stages.2.8.norm3.scale", "pretrained.model.patch_embed.backbone.stages.2.blocks.8.norm3.weight",
         "dpt.embeddings.backbone.bit.encoder.stages.2.layers.8.norm3.weight"),
        ("transformer.cls_token", "pretrained.model.cls_token", "dpt.embeddings.cls_token"),
        ("transformer.blocks.11.fc1.bias", "pretrained.model.blocks.11.mlp.fc1.bias",
         "dpt.encoder.layer.11.intermediate.dense.bias"),
        ("reassemble.1.halve.kernel", "pretrained.act_postprocess4.4.weight",
         "neck.reassemble_stage.layers.3.resize.weight"),
        # The lowest fusion, the first to run, is the original's fourth.
        ("fusions.0.out_conv.bias", "scratch.refinenet4.out_conv.bias", "neck.fusion_stage.layers.0.projection.bias"),
        ("fusions.3.on_map.conv2.bias", "scratch.refinenet1.resConfUnit1.conv2.bias",
         "neck.fusion_stage.layers.3.residual_layer1.convolution2.bias"),
        ("head.conv3.kernel", "scratch.output_conv.4.weight", "head.head.4.weight"),
    ],
)
def test_a_parameter_has_a_name_in_each_layout(ours, original, transformers):
    assert original_midas([ours]) == {original: (ours,)}
    assert transformers_midas([ours]) == {transformers: (ours,)}
