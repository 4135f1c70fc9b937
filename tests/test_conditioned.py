"""What a denoiser learns from beside the latents: holes, depths, small pictures; and how it begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import DEPTH, OPENCLIP, UPSCALER, model

import sdjax
from sdjax.config import inpainting
from sdjax.diffusion import alphas, min_snr_weight
from sdjax.errors import InputError
from sdjax.hardware import Network
from sdjax.images import shrunk
from sdjax.toyworld import nearness, render, render_batch, scene_at, screen_box
from sdjax.training import conditioned, midas, unet, vae
from sdjax.training.conditions import depths, hole, holes, widened
from sdjax.training.midas import invariant_loss
from sdjax.training.parts import write_module
from sdjax.unet import UNet
from sdjax.vae import VAE, Posterior

# f = 8, as the small model: pictures of the world are 128 pixels wide.
BASE = dataclasses.replace(OPENCLIP, image_size=128, vae=dataclasses.replace(OPENCLIP.vae, channels=(4, 4, 4, 8)))
SCENES = [scene_at(0, "train", i) for i in range(6)]


def test_half_of_the_holes_hide_a_whole_solid():
    hidden = 0
    for i in range(200):
        scene = scene_at(0, "train", i)
        mask = hole(scene, np.random.default_rng(i))[..., 0]
        rows, columns = np.nonzero(mask)
        assert len(rows) == 0 or mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()  # a box
        boxes = [[round((edge + 1) * 64) for edge in screen_box(solid)] for solid in scene.solids]
        hidden += any(mask[top:bottom, left:right].all() for left, top, right, bottom in boxes)
    assert 80 <= hidden <= 140


def test_a_network_for_holes_sees_what_the_pipeline_will_show_it():
    sd = model(inpainting(BASE, "nine"))
    pictures = render_batch(SCENES[:2])[0]
    beside = holes(sd.vae.module, sd.config.vae.scale, SCENES[:2], pictures)
    mask = hole(SCENES[1], unet.step_rng(0, 1))
    job = sdjax.request.inpaint(sd, "a cone", pictures[1], mask, steps=1)
    assert beside.shape == (2, 16, 16, 5)
    np.testing.assert_array_equal(beside[1, ..., 0], job.beside[0, ..., 0])
    # The pipeline draws from the posterior, whose mean the network learns from; and grey is 128 of 255 here, 0 there.
    hollow = np.where(mask, 0.0, pictures[1] / 127.5 - 1.0)
    assert np.allclose(beside[1, ..., 1:], sd.config.vae.scale * sd.vae.encode(hollow[None]).mean[0], atol=0.02)


def test_true_depth_is_nearest_at_the_bottom_and_nothing_in_the_sky():
    near = nearness(render(SCENES[0])[1])
    assert near[0].max() == 0.0 and near[-1].mean() > near[64].mean() > 0.0
    maps = depths(SCENES, 16)
    assert maps.shape == (6, 16, 16, 1)
    assert np.allclose(maps.min(axis=(1, 2, 3)), -1) and np.allclose(maps.max(axis=(1, 2, 3)), 1)


def test_a_small_picture_is_the_mean_of_four_by_four_pixels():
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    assert np.isclose(shrunk(picture)[0, 1, 0, 2], picture[0, 4:, :4, 2].mean())


def test_a_loud_new_channel_is_heard_from_the_start_and_the_others_are_as_they_were():
    narrow = model(OPENCLIP).unet.module
    wide = widened(narrow, DEPTH.unet, loud=0.5)
    kernel, old = wide.conv_in.kernel[...], narrow.conv_in.kernel[...]
    assert np.array_equal(kernel[:, :, :4], old) and 0.2 < np.std(kernel[:, :, 4:]) < 0.8


def test_a_widened_network_gives_what_it_gave_until_it_learns_otherwise():
    sd, draw = model(OPENCLIP), np.random.default_rng(0).standard_normal
    wide = Network.of(widened(sd.unet.module, inpainting(OPENCLIP, "nine").unet))
    x, more, text = (jnp.asarray(draw(shape), jnp.float32) for shape in ((1, 8, 8, 4), (1, 8, 8, 5), (1, 3, 8)))
    t = jnp.array([7])
    assert np.allclose(wide(jnp.concatenate([x, more], axis=-1), t, text), sd.unet(x, t, text), atol=1e-6)


def test_depth_is_learned_up_to_its_unit_and_its_zero():
    true = np.random.default_rng(0).random((2, 4, 4))
    assert invariant_loss(3.0 * true + 7.0, true) < 1e-5
    assert invariant_loss(-true, true) > 1.0


def test_a_stage_goes_on_with_a_model_and_leaves_a_model(tmp_path, monkeypatch):
    sdjax.save(model(BASE), tmp_path / "base")
    recipe = dataclasses.replace(conditioned.INPAINT, steps=1, batch=2)
    conditioned.train_inpaint(tmp_path / "run", recipe, 2, tmp_path / "base")
    made = sdjax.load(tmp_path / "run" / "inpaint" / "model")
    kernel = model(BASE).unet.module.conv_in.kernel[...]  # kept in half precision, and one small step away
    assert np.allclose(made.unet.module.conv_in.kernel[...][:, :, :4], kernel, atol=1e-3)
    assert made.config.name == "tiny-inpaint" and made.config.unet.in_channels == 9
    assert (tmp_path / "run" / "inpaint" / "unet" / "000001.png").exists()
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: start)
    conditioned.train_inpaint(tmp_path / "on", recipe, 2, tmp_path / "run" / "inpaint" / "model")  # one of its own kind
    assert sdjax.load(tmp_path / "on" / "inpaint" / "model").config == made.config
    with pytest.raises(InputError, match="is tiny-inpaint, expected tiny-depth or a model for text to image"):
        conditioned.train_depth(tmp_path / "run", recipe, 2, tmp_path / "run" / "inpaint" / "model")


def test_an_upscaler_goes_on_with_its_own_autoencoder_and_denoiser(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: begun.append(start) or start)
    monkeypatch.setattr(vae, "train", lambda *parts: pytest.fail("there is an autoencoder already"))
    base = model(dataclasses.replace(UPSCALER, name="tiny-upscaler", image_size=128))
    sdjax.save(base, tmp_path / "base")
    conditioned.train_upscale(tmp_path / "on", scenes=2, start=tmp_path / "base")
    made = sdjax.load(tmp_path / "on" / "upscale" / "model")
    assert made.config == dataclasses.replace(base.config, vision=None)  # the scale of its latents, too
    kernel = base.unet.module.conv_in.kernel[...]
    assert np.array_equal(begun[0].conv_in.kernel[...], kernel)
    assert np.allclose(made.unet.module.conv_in.kernel[...], kernel, rtol=1e-3)  # kept in half precision
    for ours, theirs in zip(*(jax.tree.leaves(sd.vae.state) for sd in (made, base))):
        assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_an_upscaler_goes_on_among_what_another_run_left(tmp_path, monkeypatch):
    base = model(dataclasses.replace(UPSCALER, name="tiny-upscaler", image_size=128))
    sdjax.save(base, tmp_path / "base")
    write_module(tmp_path / "on" / "upscale" / "vae.safetensors", VAE(base.config.vae, rngs=nnx.Rngs(9)))
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: start)
    conditioned.train_upscale(tmp_path / "on", scenes=2, start=tmp_path / "base")
    made = sdjax.load(tmp_path / "on" / "upscale" / "model")  # its latents are those of its own autoencoder
    assert np.allclose(made.vae.module.encoder.conv_in.kernel[...], base.vae.module.encoder.conv_in.kernel[...],
                       rtol=1e-3)


def test_depth_is_learned_from_the_worlds_and_then_heard_by_the_denoiser(tmp_path, monkeypatch):
    sdjax.save(model(BASE), tmp_path / "base")
    eye = dataclasses.replace(DEPTH.depth, image_size=128)
    monkeypatch.setattr(conditioned, "tiny_depth", lambda base: dataclasses.replace(
        base, name="tiny-depth", unet=dataclasses.replace(base.unet, in_channels=5), depth=eye))
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: start)
    shown = {}

    def fit(recipe, graph, start, loss, batch_at, folder, *, watch, **options):
        shown.update(batch_at(0))
        folder.mkdir()
        watch(1, network := nnx.merge(graph, start))
        return network

    monkeypatch.setattr(midas, "fit", fit)
    conditioned.train_depth(tmp_path / "run", scenes=2, start=tmp_path / "base")
    seen, true = shown["pictures"], shown["depths"]
    nears = {render(scene)[0].tobytes(): nearness(render(scene)[1]) for scene in SCENES[:2]}
    for picture, depth in zip(np.rint((seen + 1) * 127.5).astype(np.uint8), true):
        assert np.allclose(depth, nears[picture.tobytes()], atol=1e-3)  # kept in half precision
    assert (tmp_path / "run" / "depth" / "midas" / "000001.png").exists()
    made = sdjax.load(tmp_path / "run" / "depth" / "model")
    assert made.depth_estimator.config == eye and made.config.unet.in_channels == 5
    assert np.std(made.unet.module.conv_in.kernel[...][:, :, 4:]) > 0.2  # loud from the start


class Blind(nnx.Module):
    """A denoiser that notes what it is shown and foresees nothing."""

    def __init__(self):
        self.weight, self.shown = nnx.Param(jnp.zeros(1)), []

    def __call__(self, x, t, text, classes):
        SHOWN.append((np.asarray(x), np.asarray(t), np.asarray(classes)))
        return jnp.zeros((*x.shape[:3], 4))


SHOWN = []


def test_the_upscalers_denoiser_is_shown_scaled_latents_and_a_noised_small_picture(monkeypatch):
    sd, rows, kept = model(UPSCALER), 64, {}
    monkeypatch.setattr(unet, "fit", lambda recipe, graph, start, loss, batch_at, *rest, **options: kept.update(
        loss=loss, batch=batch_at(0), start=start, text=options["frozen"]) or start)
    mean, small = np.full((50, 8, 8, 4), 6.0, np.float32), np.full((50, 8, 8, 3), -5.0, np.float32)
    unet.train(
        sd.config.unet, sd.config.diffusion, sd.text_encoder.module, sd.tokenizer,
        Posterior(mean, np.full_like(mean, -60.0)), 0.5, None, dataclasses.replace(unet.RECIPE, batch=rows),
        start=Blind(), beside=small, low_res=UPSCALER.low_res, lean=unet.LEAN,
    )
    loss = kept["loss"](kept["start"], kept["text"], jax.tree.map(jnp.asarray, kept["batch"]), jax.random.key(0))
    x, t, level = SHOWN.pop()
    a, b = (alphas(c)[i][:, None, None, None] for c, i in ((UPSCALER.diffusion, t), (UPSCALER.low_res, level)))
    assert np.ptp(rows * np.sort((t / 1000) ** unet.LEAN) - np.arange(rows)) < 0.3  # evenly spread, but for the lean
    assert level.max() < UPSCALER.unet.classes
    noises = []
    for seen, clean, share in ((x[..., :4], 0.5 * 6.0, a), (x[..., 4:], -5.0, b)):
        noises.append((seen - np.sqrt(share) * clean) / np.sqrt(1 - share))
        assert abs(noises[-1].mean()) < 0.05 and abs(noises[-1].std() - 1) < 0.05  # 12,288 numbers
    v = np.sqrt(a) * noises[0] - np.sqrt(1 - a) * 0.5 * 6.0
    weight = min_snr_weight(a, "v")
    assert np.isclose(loss, np.mean(weight * v**2), rtol=1e-3)


def test_an_upscaler_learns_from_squares_first_and_then_goes_on_with_whole_pictures(tmp_path, monkeypatch):
    asked = []

    def train(config, diffusion, text, tokenizer, latents, scale, folder, recipe, *, start, crop, lean, **options):
        asked.append((folder.name, recipe.steps, recipe.batch, recipe.seed, crop, start))
        assert lean == unet.LEAN
        assert not (tmp_path / "run" / "upscale" / "model").exists()  # until it has learned all that it is to learn
        return UNet(config, rngs=nnx.Rngs(len(asked)))

    monkeypatch.setattr(unet, "train", train)
    monkeypatch.setattr(vae, "train", lambda config, *rest: VAE(config, rngs=nnx.Rngs(0)))
    monkeypatch.setattr(vae, "encode", lambda coder, pictures: Posterior(np.arange(8.0), None))
    monkeypatch.setattr(conditioned, "latents_of", lambda *of: None)
    small = dataclasses.replace(UPSCALER, name="tiny-upscaler", image_size=128)
    monkeypatch.setattr(conditioned, "tiny_upscaler", lambda base: small)
    sdjax.save(model(BASE), tmp_path / "base")
    recipe = dataclasses.replace(conditioned.UPSCALE, steps=100)
    conditioned.train_upscale(tmp_path / "run", recipe, 2, tmp_path / "base")
    assert [row[:5] for row in asked] == [("squares", 52, 16, 0, 16), ("unet", 48, 8, 1_000_000, None)]
    assert asked[0][5] is None  # from nothing, and then from what the squares have taught
    first = UNet(asked[1][5].config, rngs=nnx.Rngs(1))
    assert np.array_equal(asked[1][5].conv_in.kernel[...], first.conv_in.kernel[...])


@pytest.mark.parametrize("seed", [0, 1])
def test_captions_are_those_of_the_latents_whatever_the_seed(tmp_path, monkeypatch, seed):
    batches, said = [], []
    fit = lambda recipe, graph, start, loss, batch_at, *rest, **options: batches.append(batch_at(0)) or start
    monkeypatch.setattr(unet, "fit", fit)
    monkeypatch.setattr(unet, "captions", lambda scenes, rng: said.extend(scenes) or ["a cube"] * len(scenes))
    sd, numbers = model(OPENCLIP), np.broadcast_to(np.arange(50.0)[:, None, None, None], (50, 4, 4, 4))
    unet.train(
        sd.config.unet, sd.config.diffusion, sd.text_encoder.module, sd.tokenizer, Posterior(numbers, numbers), 1.0,
        tmp_path, dataclasses.replace(unet.RECIPE, seed=seed), start=sd.unet.module,
    )
    assert said == [scene_at(0, "train", int(row)) for row in batches[0]["mean"][:, 0, 0, 0]]


def test_squares_are_cut_alike_from_all_maps_where_most_is_to_be_seen():
    shown = np.zeros((3, 8, 8, 2), np.float32)
    shown[:, 5, 6] = 1.0
    batch = {"mean": np.arange(3 * 64.0).reshape(3, 8, 8, 1), "beside": shown, "ids": np.zeros((3, 77), int)}
    found = unet.squares(batch, 4, np.random.default_rng(0), tries=64)
    assert set(found) == {"mean", "beside"}
    for i in range(3):
        assert found["beside"][i].sum() == 2.0  # the one spot is in every square
        row, column = np.argwhere(found["beside"][i, ..., 0])[0]
        assert found["mean"][i, row, column, 0] == batch["mean"][i, 5, 6, 0]


def test_a_border_of_the_picture_is_in_every_third_or_fourth_square():
    where = np.broadcast_to(np.arange(32.0)[:, None, None], (1000, 32, 32, 1)).astype(np.float32)
    found = unet.squares({"beside": where}, 16, np.random.default_rng(0), tries=1)["beside"]
    for border in (found[:, 0, 0, 0] == 0, found[:, -1, 0, 0] == 31):  # by even odds it would be one in 17
        assert 0.2 < border.mean() < 0.4


def test_a_stage_says_what_must_come_first(tmp_path):
    with pytest.raises(InputError, match="run `sdjax train unet` first, or give --start MODEL"):
        conditioned.train_upscale(tmp_path)
