"""Small random models, and what tests of files do with them."""

import dataclasses
import json

import numpy as np
from golden import randomised
from safetensors.numpy import load_file, save_file

from sdjax.checkpoint import tree
from sdjax.checkpoint.native import networks
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import DiffusionConfig, MidasConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.midas import Midas
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
# As the x4 upscaler, whose scale diffusers overrules, and as depth-to-image; transformers has inner widths that are
# multiples of 8, and a head of 32 whatever the rest is.
UPSCALER = dataclasses.replace(
    OPENCLIP, name="like-x4", vision=None, text=dataclasses.replace(OPENCLIP.text, projection=None),
    vae=dataclasses.replace(OPENCLIP.vae, channels=(4, 4, 8), scale=0.08333),
    unet=dataclasses.replace(OPENCLIP.unet, in_channels=7, classes=40),
    low_res=DiffusionConfig(beta_start=0.0002, beta_end=0.03), guidance=9.0,
)
DEPTH = dataclasses.replace(
    OPENCLIP, name="like-sd2-depth", vision=None, text=dataclasses.replace(OPENCLIP.text, projection=None),
    unet=dataclasses.replace(OPENCLIP.unet, in_channels=5),
    depth=MidasConfig(
        image_size=64, stem=8, stages=(32, 32, 32), depths=(1, 1, 1), groups=4, width=8, layers=2, heads=2,
        hooks=(0, 1), features=4,
    ),
)


def model(config, tokenizer=None):
    tokenizer = tokenizer or Tokenizer(["r e"], padding=config.text.padding)
    depth = Network.of(randomised(Midas, config.depth, 5)) if config.depth else None
    vision = Network.of(randomised(ImageEncoder, config.vision, 4)) if config.vision else None
    return StableDiffusion(
        config, tokenizer, TextNetwork.of(randomised(TextEncoder, config.text, 1)),
        VAENetwork.of(randomised(VAE, config.vae, 2)), Network.of(randomised(UNet, config.unet, 3)), vision, depth,
    )


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
