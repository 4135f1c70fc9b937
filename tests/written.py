"""Two small random models, and fixtures with their files in every layout."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from golden import randomised
from safetensors.numpy import load_file, save_file

from sdjax.checkpoint import tree
from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.checkpoint.native import networks, save
from sdjax.checkpoint.reader import SafetensorsFile
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import DiffusionConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
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
    text=dataclasses.replace(OPENAI.text, activation="gelu", projection=6, padding="zero"),
    vision=VisionConfig(
        image_size=8, patch=4, width=8, layers=1, heads=2, activation="gelu", projection=6, mean=(0.5, 0.4, 0.3)
    ),
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


@pytest.fixture(scope="session")
def openai():
    return model(OPENAI)


@pytest.fixture(scope="session")
def openclip():
    return model(OPENCLIP)


@pytest.fixture(scope="session")
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
