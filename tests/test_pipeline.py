"""The parts put together, on a random model of a few thousand parameters."""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import randomised
from small_models import OPENAI, model

from sdjax import hardware, pipeline, request, samplers
from sdjax.clip import ImageEncoder, TextEncoder
from sdjax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig, sd1, x4_upscaler
from sdjax.errors import InputError
from sdjax.hardware import Network, TextNetwork, VAENetwork
from sdjax.images import as_pictures
from sdjax.pipeline import StableDiffusion, center_crop
from sdjax.tokenizer import Tokenizer
from sdjax.unet import UNet
from sdjax.vae import VAE

CONFIG = ModelConfig(
    name="toy",
    image_size=8,
    text=TextConfig(vocab_size=514, width=8, layers=1, heads=2, projection=4, end_id=513),  # bytes, no merges
    vision=VisionConfig(image_size=8, patch=4, width=8, layers=1, heads=2, projection=4),
    vae=VAEConfig(channels=(4, 4), blocks=1, groups=2, scale=0.5),
    unet=UNetConfig(
        channels=(8, 8), attention=(False, True), heads=(2, 2), cross_only=(False, False), blocks=1, context_width=8,
        groups=4,
    ),
)


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion(
        CONFIG, Tokenizer([]),
        TextNetwork.of(randomised(TextEncoder, CONFIG.text)), VAENetwork.of(randomised(VAE, CONFIG.vae)),
        Network.of(randomised(UNet, CONFIG.unet)), Network.of(randomised(ImageEncoder, CONFIG.vision)),
    )


@pytest.fixture(scope="module")
def walk(sd):
    """Three steps with guidance, and their attention maps."""
    return list(sd.txt2img_steps("a red cube", negative_prompt="blue", steps=3, attention=True))


# Which picture


def test_a_picture_is_float32_between_minus_1_and_1_and_not_of_one_colour(sd):
    pictures = sd.txt2img("a red cube", steps=3)
    assert (pictures.shape, pictures.dtype) == ((1, 8, 8, 3), np.float32)
    assert np.abs(pictures).max() <= 1.0
    assert pictures.std() > 0.1


def test_picture_2_is_the_same_alone_and_in_a_batch_of_4(sd):
    four = sd.txt2img("a red cube", steps=3, num_images=4)
    alone = sd.txt2img("a red cube", steps=3, first_image=2)
    assert np.abs(four[2] - alone[0]).max() < 1e-5
    assert np.abs(four[1] - alone[0]).max() > 0.1


def test_the_loop_in_one_program_and_the_loop_by_steps_draw_the_same_picture(sd, walk):
    in_one = sd.txt2img("a red cube", negative_prompt="blue", steps=3)
    assert np.abs(walk[-1].pictures() - in_one).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"prompt": "a blue cube"}, {"negative_prompt": "red"}, {"guidance_scale": 3.0}, {"eta": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_each_setting_changes_the_picture(sd, change):
    settings = {"prompt": "a red cube", "seed": 0, "steps": 3}
    assert np.abs(sd.txt2img(**settings) - sd.txt2img(**settings | change)).max() > 1e-3


def test_prompts_come_one_after_another_each_with_its_pictures(sd):
    four = sd.txt2img(["a red cube", "a cone"], steps=3, num_images=2)
    assert np.abs(four[3] - sd.txt2img("a cone", steps=3, first_image=3)[0]).max() < 1e-5


def test_an_empty_prompt_is_legal(sd):
    assert np.isfinite(sd.txt2img("", steps=3)).all()


# Inside the loop


def test_steps_count_up_and_timesteps_count_down(walk):
    assert [s.step for s in walk] == [0, 1, 2]
    assert [s.t for s in walk] == [667, 334, 1]
    assert [s.latents.shape for s in walk] == [(1, 4, 4, 4)] * 3


def test_one_prediction_is_of_the_negative_prompt_and_the_other_of_the_prompt(sd, walk):
    noise = samplers.noise(samplers.image_keys(0, 0, 1), 0, (4, 4, 4))
    for prompt, seen in (("blue", walk[0].eps_uncond), ("a red cube", walk[0].eps_text)):
        predicted = sd.unet(noise, jnp.array([667]), sd.text_encoder(sd.tokenizer([prompt])))
        assert np.allclose(predicted, seen, atol=1e-5)


def test_the_foreseen_picture_is_the_noisy_one_less_the_guided_noise(walk):
    second = walk[1]
    a = float(samplers.ddim_plan(CONFIG.diffusion, 3).a[1])
    eps = second.eps_uncond + 7.5 * (second.eps_text - second.eps_uncond)
    assert np.allclose(second.x0, (walk[0].latents - (1 - a) ** 0.5 * eps) / a**0.5, atol=1e-3)


def test_the_default_guidance_is_the_models_own(sd):
    assert (sd1().guidance, x4_upscaler().guidance, CONFIG.guidance) == (7.5, 9.0, 7.5)
    tame = StableDiffusion(dataclasses.replace(sd.config, guidance=2.0), sd.tokenizer, sd.text_encoder, sd.vae, sd.unet)
    ours, theirs = (model.txt2img("a red cube", steps=2) for model in (tame, sd))
    assert np.array_equal(ours, sd.txt2img("a red cube", steps=2, guidance_scale=2.0))
    assert not np.allclose(ours, theirs, atol=1e-3)


def test_attention_is_returned_by_block_and_its_rows_sum_to_1(walk):
    maps = walk[0].attention
    assert {name: p.shape for name, p in maps.items()} == {
        "down_blocks.1.attentions.0": (1, 2, 4, 77),  # [b, heads, pixels, tokens]; level 1 is 2 x 2
        "mid_block.attentions.0": (1, 2, 4, 77),
        "up_blocks.0.attentions.0": (1, 2, 4, 77),
        "up_blocks.0.attentions.1": (1, 2, 4, 77),
    }
    assert all(np.allclose(p.sum(axis=-1), 1.0, atol=1e-5) for p in maps.values())


def test_a_preview_is_the_foreseen_picture_decoded(sd, walk):
    assert np.allclose(walk[0].preview(), np.clip(sd.vae.decode(walk[0].x0 / 0.5), -1, 1), atol=1e-5)


def test_only_shapes_recompile(sd):
    sd.txt2img("a red cube", steps=3)
    programs = pipeline._scan._cache_size()
    sd.txt2img("a blue cone", negative_prompt="dark", steps=3, guidance_scale=2.0, eta=0.5, seed=5, first_image=1)
    assert pipeline._scan._cache_size() == programs


# Sizes


def test_a_size_that_is_odd_inside_the_unet_works(sd):
    picture = sd.txt2img("a red cube", steps=3, height=10, width=6)  # latents 5 x 3, then 3 x 2
    assert picture.shape == (1, 10, 6, 3)


# Picture to picture


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(-1, 1, (8, 8, 3)).astype(np.float32)


def test_strength_0_only_goes_through_the_vae(sd, image):
    posterior = sd.vae.encode(image[None])
    noise = samplers.noise(samplers.image_keys(0, 0, 1), samplers.POSTERIOR, (4, 4, 4))
    sampled = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise
    result = sd.img2img("a red cube", image, strength=0.0, steps=3)
    assert np.allclose(result, np.clip(sd.vae.decode(sampled), -1, 1), atol=1e-5)
    assert list(sd.img2img_steps("a red cube", image, strength=0.0, steps=3)) == []


@pytest.mark.parametrize(("strength", "timesteps"), [(1.0, [667, 334, 1]), (0.7, [334, 1]), (0.4, [1])])
def test_strength_is_the_share_of_the_steps_that_are_taken(sd, image, strength, timesteps):
    walk = sd.img2img_steps("a red cube", image, strength=strength, steps=3, attention=True)
    assert [s.t for s in walk] == timesteps


def test_the_first_latent_is_the_image_with_noise_and_more_strength_leaves_less_of_it(sd, image):
    jobs = [request.image(sd, "a red cube", image, strength, steps=50) for strength in (0.02, 0.5, 1.0)]
    latent = request.image(sd, "a red cube", image, 0.0, steps=50).x
    kept = [float(jnp.corrcoef(job.x.ravel(), latent.ravel())[0, 1]) for job in jobs]
    assert kept[0] > 0.99
    assert 0.9 > kept[1] > kept[2]


# Pictures against texts


def test_similarity_is_a_cosine_for_every_picture_and_text(sd, image):
    table = sd.similarity(np.stack([image, -image, image]), ["a red cube", "a cone"])
    assert (table.shape, table.dtype) == ((3, 2), np.float32)
    assert np.abs(table).max() <= 1.0
    assert np.allclose(table[0], table[2])
    assert np.abs(table[0] - table[1]).max() > 1e-3


@pytest.mark.parametrize("texts", [[], None, [1]])
def test_similarity_to_no_text_is_refused(sd, image, texts):
    with pytest.raises(InputError, match="texts: found"):
        sd.similarity(image, texts)


def test_latents_of_another_shape_are_no_pictures(sd):
    for shape in ((4, 4, 4), (0, 4, 4, 4)):
        with pytest.raises(InputError, match="latents: found shape"):
            sd.to_pictures(np.zeros(shape, np.float32))


def test_8_bit_pictures_are_spread_over_minus_1_to_1():
    pictures = as_pictures(np.array([[[0, 51, 255]]], np.uint8), "image")
    assert pictures.shape == (1, 1, 1, 3)
    assert np.allclose(pictures, [-1, -0.6, 1])


def test_clip_sees_the_middle_square_of_a_wide_picture():
    wide = np.zeros((1, 4, 8, 3), np.float32)
    wide[:, :, 2:6] = 1.0
    assert (center_crop(wide, 4) == 1.0).all()
    assert center_crop(np.zeros((1, 30, 20, 3), np.float32), 8).shape == (1, 8, 8, 3)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: found 0, expected a whole number from 1 to 1000"),
        ({"steps": 1001}, "steps: found 1001"),
        ({"steps": 2.5}, "steps: found 2.5"),
        ({"steps": True}, "steps: found True"),
        ({"guidance_scale": float("nan")}, "guidance_scale: found nan"),
        ({"guidance_scale": "7"}, "guidance_scale: found 7"),
        ({"guidance_scale": 1e39}, "guidance_scale: found 1e"),  # infinity in float32
        ({"eta": "0"}, "eta: found 0"),
        ({"prompt": 5}, "prompt: found 5, expected a text"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**32}, "seed: found 4294967296"),
        ({"num_images": 0}, "num_images: found 0"),
        ({"first_image": -1}, "first_image: found -1"),
        ({"first_image": 2**31 - 1, "num_images": 2}, "first_image: found 2147483647 for 2 pictures"),
        ({"first_image": np.array(0)}, "first_image: found 0, expected a whole number"),
        ({"seed": np.array(5)}, "seed: found 5, expected a whole number"),
        ({"sampler": ["ddim"]}, "sampler: found \\['ddim'\\], expected one of"),
        ({"sampler": "magic"}, "sampler: found 'magic', expected one of ddim, euler, dpmpp_2m, ddpm"),
        ({"eta": 1.5}, "eta: found 1.5"),
        ({"eta": 0.5, "sampler": "euler"}, "eta: found 0.5, expected 0 to 1, and 0 but for ddim"),
        ({"height": 7}, "height: found 7, expected a multiple of 2"),
        ({"width": 0}, "width: found 0"),
        ({"width": 8.0}, "width: found 8.0"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt: found 2, expected one"),
        ({"prompt": []}, "prompt: found"),
        ({"prompt": "a" * 1_000_001}, "1,000,001 bytes"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_found(sd, options, message):
    with pytest.raises(InputError, match=message):
        sd.txt2img(**{"prompt": "a red cube"} | options)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((8, 8, 3)), {"strength": 1.5}, "strength: found 1.5"),
        (np.zeros((8, 8, 3)), {"strength": float("nan")}, "strength: found nan"),
        (np.zeros((8, 8, 3)), {"strength": None}, "strength: found None"),
        (np.zeros((8, 8)), {}, r"image: found shape \[8, 8\], expected \[H, W, 3\]"),
        (np.zeros((8, 8, 4)), {}, r"image: found shape \[8, 8, 4\]"),
        (np.zeros((2, 8, 8, 3)), {}, "image: found 2 pictures, expected one"),
        (np.zeros((8, 7, 3)), {}, "image width: found 7"),
        (np.full((8, 8, 3), 255.0), {}, "image: found values from 255 to 255"),
        (np.full((8, 8, 3), np.nan), {}, "image: found values from nan"),
        (np.zeros((8, 8, 3)), {"height": 8}, "height: the size of the image decides"),
    ],
)
def test_a_bad_image_is_named_with_what_was_found(sd, image, options, message):
    with pytest.raises(InputError, match=message):
        sd.img2img("a red cube", image, **options)


def test_no_negative_prompt_is_an_empty_one(sd):
    assert np.array_equal(request.text(sd, "a", negative_prompt=None).texts, request.text(sd, "a").texts)


def test_a_text_encoder_that_shares_no_space_with_pictures_says_so():
    with pytest.raises(InputError, match="without projection"):
        model(OPENAI).text_encoder.embed(np.zeros((1, 5), np.int32))


def test_weights_without_an_image_encoder_say_so_when_asked_for_similarity(sd, image):
    with pytest.raises(InputError, match="no image encoder"):
        StableDiffusion(sd.config, sd.tokenizer, sd.text_encoder, sd.vae, sd.unet).similarity(image, "a cone")


@pytest.mark.parametrize(("part", "stage"), [("unet", "the UNet"), ("vae", "the VAE")])
def test_broken_weights_are_an_error_that_names_the_stage_and_never_a_picture(sd, part, stage):
    network = getattr(sd, part)
    nothing = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), network.state)
    broken = type(network)(network.graph, nothing, network.config)
    parts = {"text_encoder": sd.text_encoder, "vae": sd.vae, "unet": sd.unet, part: broken}
    with pytest.raises(FloatingPointError, match=f"{stage} gave values that are not finite"):
        StableDiffusion(sd.config, sd.tokenizer, **parts).txt2img("a red cube", steps=3)


# Without guidance, and with the other prediction


def test_a_model_that_predicts_v_shows_one_prediction_as_noise_where_there_is_no_guidance(sd):
    config = dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, prediction="v"))
    predicts_v = StableDiffusion(config, sd.tokenizer, sd.text_encoder, sd.vae, sd.unet)
    (s,) = predicts_v.txt2img_steps("a cone", steps=1, guidance_scale=1.0)
    a = float(samplers.ddim_plan(config.diffusion, 1).a[0])
    noise = samplers.noise(samplers.image_keys(0, 0, 1), 0, (4, 4, 4))
    v = sd.unet(noise, jnp.array([1]), sd.text_encoder(sd.tokenizer(["a cone"])))
    assert np.allclose(s.eps_text, a**0.5 * v + (1 - a) ** 0.5 * noise, atol=1e-5)
    assert (s.eps_uncond == s.eps_text).all()
    assert s.attention is None


def test_a_networks_structure_is_hashed_once_and_not_at_every_step(sd, walk, monkeypatch):
    monkeypatch.setattr(nnx.GraphDef, "__hash__", lambda graph: pytest.fail("counted anew"))
    again = list(sd.txt2img_steps("a red cube", negative_prompt="blue", steps=3, attention=True))
    assert (again[-1].latents == walk[-1].latents).all()


def test_a_structure_can_be_copied(sd):
    copied = copy.deepcopy(sd.unet.graph)
    assert copied == sd.unet.graph and hash(copied) == hash(sd.unet.graph)


def test_products_of_float32_are_float32_on_every_platform(sd):
    x, texts, t = jnp.zeros((1, 4, 4, 4)), jnp.zeros((1, 2, 77, 8)), jnp.zeros(1, jnp.int32)
    unet = pipeline._predict.lower(sd.unet.graph, sd.unet.state, x, t, texts, None, None, False).as_text()
    vae = hardware._call.lower(sd.vae.graph, "decode", (), sd.vae.state, (x,)).as_text()
    for program in (unet, vae):
        products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program)
        assert products and all(line.count("HIGHEST") == 2 for line in products)
