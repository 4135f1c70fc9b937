"""MiDaS' two layouts as tables: what a tensor is called in a file, and which of our parameters it holds.

    ours          transformer.blocks.0.attn.to_q.kernel
    original      pretrained.model.blocks.0.attn.qkv.weight              after depth_model.model., in 512-depth-ema
    transformers  dpt.encoder.layer.0.attention.attention.query.weight   in the depth_estimator/ of a diffusers folder

Sources: Stability-AI/stablediffusion ldm/modules/midas/midas/{vit,blocks,dpt_depth}.py over timm's
vit_base_resnet50_384; huggingface/transformers models/dpt/modeling_dpt.py, models/bit/modeling_bit.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdjax.checkpoint.layouts import Table, by_modules

PREFIX = "depth_model.model."

# How a parameter's path begins, and what stands there instead; the first that fits counts.
Rules = tuple[tuple[str, str], ...]
ORIGINAL: Rules = (
    (r"resnet\.stem", r"pretrained.model.patch_embed.backbone.stem"),
    (r"resnet\.stages\.(\d+)", r"pretrained.model.patch_embed.backbone.stages.\1.blocks"),
    (r"transformer\.project", r"pretrained.model.patch_embed.proj"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_[qkv]", r"pretrained.model.blocks.\1.attn.qkv"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_out\.0", r"pretrained.model.blocks.\1.attn.proj"),
    (r"transformer\.blocks\.(\d+)\.fc", r"pretrained.model.blocks.\1.mlp.fc"),
    (r"transformer", r"pretrained.model"),  # the norms, the class token and the places
    (r"reassemble\.0\.readout", r"pretrained.act_postprocess3.0.project.0"),
    (r"reassemble\.0\.project", r"pretrained.act_postprocess3.3"),
    (r"reassemble\.1\.readout", r"pretrained.act_postprocess4.0.project.0"),
    (r"reassemble\.1\.project", r"pretrained.act_postprocess4.3"),
    (r"reassemble\.1\.halve", r"pretrained.act_postprocess4.4"),
    (r"convs\.0", r"scratch.layer1_rn"),
    (r"convs\.1", r"scratch.layer2_rn"),
    (r"convs\.2", r"scratch.layer3_rn"),
    (r"convs\.3", r"scratch.layer4_rn"),
    (r"fusions\.0", r"scratch.refinenet4"),  # ours in the order of the data, theirs in that of the encoder
    (r"fusions\.1", r"scratch.refinenet3"),
    (r"fusions\.2", r"scratch.refinenet2"),
    (r"fusions\.3", r"scratch.refinenet1"),
    (r"head\.conv1", r"scratch.output_conv.0"),
    (r"head\.conv2", r"scratch.output_conv.2"),
    (r"head\.conv3", r"scratch.output_conv.4"),
)
TRANSFORMERS: Rules = (
    (r"resnet\.stem\.conv", r"dpt.embeddings.backbone.bit.embedder.convolution"),
    (r"resnet\.stem\.norm", r"dpt.embeddings.backbone.bit.embedder.norm"),
    (r"resnet\.stages\.(\d+)", r"dpt.embeddings.backbone.bit.encoder.stages.\1.layers"),
    (r"transformer\.project", r"dpt.embeddings.projection"),
    (r"transformer\.cls_token", r"dpt.embeddings.cls_token"),
    (r"transformer\.pos_embed", r"dpt.embeddings.position_embeddings"),
    (r"transformer\.blocks\.(\d+)\.norm1", r"dpt.encoder.layer.\1.layernorm_before"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_q", r"dpt.encoder.layer.\1.attention.attention.query"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_k", r"dpt.encoder.layer.\1.attention.attention.key"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_v", r"dpt.encoder.layer.\1.attention.attention.value"),
    (r"transformer\.blocks\.(\d+)\.attn\.to_out\.0", r"dpt.encoder.layer.\1.attention.output.dense"),
    (r"transformer\.blocks\.(\d+)\.norm2", r"dpt.encoder.layer.\1.layernorm_after"),
    (r"transformer\.blocks\.(\d+)\.fc1", r"dpt.encoder.layer.\1.intermediate.dense"),
    (r"transformer\.blocks\.(\d+)\.fc2", r"dpt.encoder.layer.\1.output.dense"),
    (r"reassemble\.0\.readout", r"neck.reassemble_stage.readout_projects.2.0"),
    (r"reassemble\.0\.project", r"neck.reassemble_stage.layers.2.projection"),
    (r"reassemble\.1\.readout", r"neck.reassemble_stage.readout_projects.3.0"),
    (r"reassemble\.1\.project", r"neck.reassemble_stage.layers.3.projection"),
    (r"reassemble\.1\.halve", r"neck.reassemble_stage.layers.3.resize"),
    (r"convs\.(\d)", r"neck.convs.\1"),
    (r"fusions\.(\d)\.on_map\.conv", r"neck.fusion_stage.layers.\1.residual_layer1.convolution"),
    (r"fusions\.(\d)\.on_sum\.conv", r"neck.fusion_stage.layers.\1.residual_layer2.convolution"),
    (r"fusions\.(\d)\.out_conv", r"neck.fusion_stage.layers.\1.projection"),
    (r"head\.conv1", r"head.head.0"),
    (r"head\.conv2", r"head.head.2"),
    (r"head\.conv3", r"head.head.4"),
)

# What nothing reads: the classifier that the encoder was first trained with, the norm before it, and a refinement of
# what would come from below the lowest map.
UNREAD_ORIGINAL = re.compile(r"pretrained\.model\.(norm|head)\..*|scratch\.refinenet4\.resConfUnit1\..*")
UNREAD_TRANSFORMERS = re.compile(r"dpt\.layernorm\..*|neck\.fusion_stage\.layers\.0\.residual_layer1\..*")


def original_midas(parameters: Iterable[str]) -> Table:
    """The table of the original layout, without `PREFIX`; queries, keys and values lie in one matrix."""
    table: Table = {}
    for name, held in _renamed(parameters, ORIGINAL):
        name = name.replace(".on_map.", ".resConfUnit1.").replace(".on_sum.", ".resConfUnit2.")
        if ".attn.qkv." in name:
            held = tuple(re.sub(r"\.to_[qkv]\.", f".to_{x}.", held[0]) for x in "qkv")
        table[name] = held
    return table


def transformers_midas(parameters: Iterable[str]) -> Table:
    """The table of transformers' DPTForDepthEstimation with `is_hybrid`."""
    return dict(_renamed(parameters, TRANSFORMERS))


def _renamed(parameters: Iterable[str], rules: Rules) -> Iterable[tuple[str, tuple[str, ...]]]:
    for name, held in by_modules(parameters).items():
        yield next(re.sub(ours, theirs, name, count=1) for ours, theirs in rules if re.match(ours, name)), held
