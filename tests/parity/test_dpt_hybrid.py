"""MiDaS at full size, random weights, against transformers' DPTForDepthEstimation, in both layouts."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re

import jax
import numpy as np
import pytest
from golden import FIXTURES

from sdjax.checkpoint.midas_layouts import (
    PREFIX,
    UNREAD_ORIGINAL,
    UNREAD_TRANSFORMERS,
    original_midas,
    transformers_midas,
)
from sdjax.checkpoint.parts import Name, Part
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.config import MidasConfig
from sdjax.midas import resized

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")
transformers = pytest.importorskip("transformers")
numpy_files = pytest.importorskip("safetensors.numpy")

RELEASED = json.loads(gzip.decompress((FIXTURES / "released_keys.json.gz").read_bytes()))["MiDaS"]
# Intel/dpt-hybrid-midas, config.json, where it is not what the library has without it.
CONFIG = dict(
    is_hybrid=True, backbone_featmap_shape=[1, 1024, 24, 24], neck_hidden_sizes=[256, 512, 768, 768],
    reassemble_factors=[1, 1, 1, 0.5], neck_ignore_stages=[0, 1], layer_norm_eps=1e-12,
)
OURS = dataclasses.replace(MidasConfig(), norm_eps=1e-12)


def read(path, prefix, unread, layout):
    file = SafetensorsFile(path)
    names = [Name(name.removeprefix(prefix), name) for name in file.names()]
    part = Part.of("depth_estimator", OURS, file, [n for n in names if not unread.fullmatch(n.plain)], layout)
    assert part.problems() == []
    return part.read(np.float32)


@pytest.fixture(scope="module")
def theirs():
    model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**CONFIG)).eval()
    draw = np.random.default_rng(13)
    for name, parameter in model.named_parameters():
        x = oracle.random_tensor(name, tuple(parameter.shape), draw)
        # What is learnt for a place must weigh as much as what is seen there.
        parameter.copy_(torch.from_numpy(x / x.std() if name.endswith(("embeddings", "cls_token")) else x))
    model.head.head[4].bias.fill_(1.0)  # above the last relu, most of it
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("midas")
    theirs.save_pretrained(folder)
    return read(folder / "model.safetensors", "", UNREAD_TRANSFORMERS, transformers_midas)


def pictures(height, width):
    """Blobs, and noise over them: something for the coarse maps and something for the fine."""
    draw = np.random.default_rng(2).standard_normal
    coarse = resized(draw((1, height // 32, width // 32, 3)).astype(np.float32), (height, width), "bicubic")
    return np.tanh(np.asarray(coarse) + 0.3 * draw((1, height, width, 3)).astype(np.float32))


def test_depth(theirs, ours, same):
    x = pictures(384, 384)
    same("MiDaS DPT-hybrid, 384 x 384", ours(x), theirs(oracle.first(x)).predicted_depth.numpy())


def test_depth_of_a_wide_picture(theirs, ours, same):
    x = oracle.first(pictures(128, 192))
    theirs.dpt.embeddings.image_size = (128, 192)
    # Its forward takes the root of the number of tokens for their rows; its parts take any shape.
    states = theirs.dpt(x, output_hidden_states=True)
    maps = [*states.intermediate_activations, states.hidden_states[9], states.hidden_states[12]]
    depth = theirs.head(theirs.neck(maps, 128 // 16, 192 // 16))
    same("MiDaS DPT-hybrid, 128 x 192", ours(pictures(128, 192)), depth.numpy())


def of_transformers(name: str) -> str:
    """What a tensor of the original is called in transformers, as its convert_dpt_hybrid_to_pytorch.py renamed it."""
    if ".backbone." in name:
        name = name.replace("pretrained.model.patch_embed.backbone", "dpt.embeddings.backbone.bit.encoder")
        name = name.replace("encoder.stem.conv", "embedder.convolution").replace("encoder.stem", "embedder")
        return name.replace(".blocks.", ".layers.")
    for theirs, ours in (
        ("pretrained.model.patch_embed.proj.", "dpt.embeddings.projection."),
        ("pretrained.model.pos_embed", "dpt.embeddings.position_embeddings"),
        ("pretrained.model.cls_token", "dpt.embeddings.cls_token"),
        ("pretrained.model.norm.", "dpt.layernorm."),
        ("pretrained.model.blocks.", "dpt.encoder.layer."),
        (".attn.proj.", ".attention.output.dense."), (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."), (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense."),
        ("pretrained.act_postprocess3.0.project.0.", "neck.reassemble_stage.readout_projects.2.0."),
        ("pretrained.act_postprocess4.0.project.0.", "neck.reassemble_stage.readout_projects.3.0."),
        ("pretrained.act_postprocess3.3.", "neck.reassemble_stage.layers.2.projection."),
        ("pretrained.act_postprocess4.3.", "neck.reassemble_stage.layers.3.projection."),
        ("pretrained.act_postprocess4.4.", "neck.reassemble_stage.layers.3.resize."),
        ("scratch.output_conv.", "head.head."), (".out_conv.", ".projection."),
        (".resConfUnit", ".residual_layer"), (".conv1.", ".convolution1."), (".conv2.", ".convolution2."),
    ):
        name = name.replace(theirs, ours)
    name = re.sub(r"scratch\.layer(\d)_rn", lambda found: f"neck.convs.{int(found[1]) - 1}", name)
    return re.sub(r"scratch\.refinenet(\d)", lambda found: f"neck.fusion_stage.layers.{4 - int(found[1])}", name)


def test_the_original_layout_gives_the_same_weights_to_the_bit(theirs, ours, tmp_path):
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    tensors = {}
    for name, shape in RELEASED.items():
        if ".head." in name:  # the classifier of the encoder, which transformers leaves out
            tensors[PREFIX + name] = np.zeros(shape, np.float32)
        elif ".attn.qkv." in name:
            layer, leaf = of_transformers(name).split(".attn.qkv.")
            matrices = [state.pop(f"{layer}.attention.attention.{x}.{leaf}") for x in ("query", "key", "value")]
            tensors[PREFIX + name] = np.concatenate(matrices)
        else:
            tensors[PREFIX + name] = state.pop(of_transformers(name))
    assert not state, "weights of transformers that the original has no name for"
    numpy_files.save_file(tensors, tmp_path / "original.safetensors")
    found = read(tmp_path / "original.safetensors", PREFIX, UNREAD_ORIGINAL, original_midas)
    assert jax.tree.structure(found.state) == jax.tree.structure(ours.state)
    for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(ours.state)):
        np.testing.assert_array_equal(one, other)
