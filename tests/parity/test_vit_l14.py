"""CLIP ViT-L/14, the text tower of SD 1.x and its picture tower, random weights, against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sdjax

torch = pytest.importorskip("torch", reason="install the group `parity`, or run `make parity`")
oracle = pytest.importorskip("oracle", reason="install the group `parity`, or run `make parity`")
transformers = pytest.importorskip("transformers")

SHARED = dict(hidden_act="quick_gelu", projection_dim=768)
CONFIG = dict(
    projection_dim=768,
    text_config=SHARED | dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, eos_token_id=49407
    ),
    vision_config=SHARED | dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=224,
        patch_size=14,
    ),
)
# clip-vit-large-patch14's preprocessor_config.json
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**CONFIG)).eval()
    draw = np.random.default_rng(11)
    for name, parameter in theirs.named_parameters():
        if parameter.ndim:
            parameter.copy_(torch.from_numpy(oracle.random_tensor(name, tuple(parameter.shape), draw)))
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    oracle.clip_tokenizer(folder / "tokenizer", "<|endoftext|>").save_pretrained(folder)
    return theirs, sdjax.load_clip(folder)


def test_towers_and_the_cosines_between_them(both, same):
    theirs, ours = both
    pictures = np.tanh(np.random.default_rng(1).standard_normal((2, 224, 224, 3), np.float32))
    ids = ours.tokenizer(["a photograph of an astronaut riding a horse", "a cat", ""])
    pixels = np.moveaxis(((pictures + 1) / 2 - np.array(MEAN)) / np.array(STD), -1, 1).astype(np.float32)
    tokens, pixels = torch.from_numpy(ids).long(), torch.from_numpy(pixels)
    text = theirs.text_projection(theirs.text_model(tokens).pooler_output)
    picture = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
    same("ViT-L/14 text tower and projection", ours.text_encoder.embed(ids), text.numpy())
    same("ViT-L/14 picture tower and projection", ours.image_encoder(pictures), picture.numpy())
    cosines = (theirs(tokens, pixels).logits_per_image / theirs.logit_scale.exp()).numpy()
    found = ours.similarity(pictures, ["a photograph of an astronaut riding a horse", "a cat", ""])
    # Random towers send everything near one direction, too near for `same`; a cosine is itself the scale of an error.
    np.testing.assert_allclose(found, cosines, rtol=0, atol=1e-5)
