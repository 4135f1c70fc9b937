"""The loop that trains every part, on a network of one number, and the losses, on arrays checked by hand."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_models import OPENCLIP, model

from sdjax.checkpoint import tree
from sdjax.checkpoint.reader import write_safetensors
from sdjax.config import DiffusionConfig, tiny
from sdjax.errors import InputError
from sdjax.layers import lecun_normal
from sdjax.tokenizer import Tokenizer
from sdjax.toyworld import Scene, Solid, is_held_out, render, scene_at
from sdjax.training import clip, judge, unet
from sdjax.training.clip import LOOKS, TOKENS, contrastive_loss, mistaken, right_and_wrong, told_by_token, told_by_word
from sdjax.training.data import pictures, step_rng, train_scene
from sdjax.training.loop import CHECKPOINT, CURVE, LOG, Recipe, _matrices, fit
from sdjax.training.vae import latent_scale
from sdjax.unet import UNet
from sdjax.vae import VAE

RECIPE = Recipe(steps=12, batch=4, learning_rate=0.1, warmup=2, save_every=4, ema=0.5)


class Line(nnx.Module):
    """y = a x."""

    def __init__(self):
        self.a = nnx.Param(jnp.zeros((1,)))


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def learn(folder, recipe=RECIPE, die_at=None, die=interrupt, slope=3.0, begin=0.0, watch=None):
    line = Line()
    line.a[...] = jnp.full((1,), begin)
    graph, parameters = nnx.split(line)

    def batch_at(step):
        if step == die_at:
            die()
        x = step_rng(0, step).random((recipe.batch, 1)).astype(np.float32)
        return {"x": x, "y": slope * x}

    def loss(parameters, _, batch, key):
        return jnp.mean((nnx.merge(graph, parameters).a[...] * batch["x"] - batch["y"]) ** 2)

    return np.asarray(fit(recipe, graph, parameters, loss, batch_at, folder, name="line", watch=watch).a[...])


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=80, save_every=40)  # the log has a line every 20 steps
    whole = learn(tmp_path / "whole", recipe)
    code = "import sys, test_training as t; t.learn(t.Path(sys.argv[1]), t.Recipe(**eval(sys.argv[2])), 70, t.kill)"
    asked = [sys.executable, "-c", code, str(tmp_path / "killed"), repr(dataclasses.asdict(recipe))]
    assert subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True).returncode == -signal.SIGKILL
    half = tmp_path / "killed" / ".0123456789abcdef.part"
    half.write_bytes(b"what it was writing")
    os.utime(half, (0, 0))
    with open(tmp_path / "killed" / LOG, "a") as log:
        log.write("7\0")  # half a line
    lines = (tmp_path / "killed" / LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == ["20", "40", "60"]
    assert np.array_equal(learn(tmp_path / "killed", recipe), whole)
    logs = [(tmp_path / run / LOG).read_text() for run in ("whole", "killed")]
    assert logs[0] == logs[1] and logs[0].splitlines()[-1].startswith("80,")
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_a_run_by_muon_goes_on_as_if_it_had_not_stopped(tmp_path):
    recipe = dataclasses.replace(RECIPE, muon=True, learning_rate=0.01)

    def trained(folder, die_at=None):
        graph, parameters = nnx.split(nnx.Linear(16, 16, rngs=nnx.Rngs(0)))

        def batch_at(step):
            if step == die_at:
                raise KeyboardInterrupt
            return {"x": step_rng(0, step).standard_normal((4, 16), np.float32)}

        loss = lambda parameters, _, batch, key: jnp.mean((nnx.merge(graph, parameters)(batch["x"]) - batch["x"]) ** 2)
        return jax.tree.leaves(nnx.state(fit(recipe, graph, parameters, loss, batch_at, folder, name="square")))

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", die_at=10)
    for whole, killed in zip(trained(tmp_path / "whole"), trained(tmp_path / "killed")):
        assert np.array_equal(whole, killed)


def test_a_finished_run_is_read_and_not_trained_again(tmp_path):
    first = learn(tmp_path)
    assert np.array_equal(learn(tmp_path, die_at=1), first)


@pytest.mark.parametrize("other", [{"slope": 2.0}, {"begin": 1.0}])
def test_a_run_does_not_go_on_with_other_data_or_from_another_beginning(tmp_path, other):
    learn(tmp_path)
    with pytest.raises(InputError, match="other data"):
        learn(tmp_path, **other)


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path):
    learn(tmp_path)
    with pytest.raises(InputError, match="another recipe"):
        learn(tmp_path, dataclasses.replace(RECIPE, learning_rate=0.2))


def test_steps_may_change_until_the_learning_rate_falls(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, die_at=10)  # the checkpoint is of step 8, and the rate of 12 steps falls from 8.4 on
    longer = dataclasses.replace(RECIPE, steps=20, save_every=5)
    assert np.array_equal(learn(tmp_path, longer), learn(tmp_path / "whole", longer))
    with pytest.raises(InputError, match="is at step 20, where the learning rate of 12 steps has begun to fall"):
        learn(tmp_path)


def test_what_was_seen_at_a_checkpoint_can_be_kept(tmp_path):
    kept = []
    learn(tmp_path, watch=lambda step, network: kept.append((step, float(network.a[0]))))
    assert [step for step, _ in kept] == [4, 8, 12]
    assert len({a for _, a in kept}) == 3


def test_a_run_that_is_killed_while_it_draws_draws_it_again(tmp_path):
    def stop(step, network):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, watch=stop)
    seen = []
    learn(tmp_path, watch=lambda step, network: seen.append(step))
    assert seen == [4, 8, 12]


def test_a_run_draws_its_loss(tmp_path):
    learn(tmp_path)
    with Image.open(tmp_path / CURVE) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


def test_a_damaged_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    learn(tmp_path)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[:-3])
    with pytest.raises(InputError, match=f"{CHECKPOINT}: cannot be read .*delete it to begin anew"):
        learn(tmp_path)
    write_safetensors(tmp_path / CHECKPOINT, {"0": np.zeros(1)}, {})  # some other file of that name
    with pytest.raises(InputError, match=f"{CHECKPOINT}: cannot be read .*delete it to begin anew"):
        learn(tmp_path)


def test_muon_steps_alike_in_every_direction_of_a_wide_kernel_and_adam_steps_the_rest():
    draw = np.random.default_rng(0)
    turn = lambda n: np.linalg.qr(draw.normal(size=(n, n)))[0]
    steep, shapes = np.geomspace(1, 0.03, 32), {"ends": (3, 3, 4, 32), "wide": (288, 32), "bias": (32,)}
    gradients = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    gradients["wide"] = (turn(288)[:, :32] * steep) @ turn(32)
    tree = {name: {"bias" if name == "bias" else "kernel": jnp.float32(g)} for name, g in gradients.items()}
    tree["wide"]["kernel"] = tree["wide"]["kernel"].reshape(3, 3, 32, 32)
    optimiser = dataclasses.replace(RECIPE, warmup=1, muon=True).optimiser()
    steps, _ = optimiser.update(tree, optimiser.init(tree), jax.tree.map(jnp.zeros_like, tree))
    moved = np.linalg.svd(np.asarray(steps["wide"]["kernel"]).reshape(288, 32), compute_uv=False)
    assert moved.max() / moved.min() < 5 < steep.max() / steep.min()
    for name in ("ends", "bias"):  # Adam's first step has one size for every number
        sizes = np.abs(np.asarray(jax.tree.leaves(steps[name])[0]))
        assert sizes.max() / sizes.min() < 1.01


@pytest.mark.parametrize("network", [
    (VAE, tiny().vae), (UNet, tiny().unet), (clip.CLIP, tiny().text, tiny().vision),
], ids=["VAE", "UNet", "CLIP"])
def test_muon_takes_the_kernels_between_wide_layers_of_every_network(network):
    _, parameters = tree.abstract(*network)
    optimiser = dataclasses.replace(RECIPE, muon=True).optimiser()
    changes, _ = jax.eval_shape(lambda p: optimiser.update(p, optimiser.init(p), p), parameters)
    assert [x.shape for x in jax.tree.leaves(changes)] == [x.shape for x in jax.tree.leaves(parameters)]
    size = lambda p: sum(x.size for x in jax.tree.leaves(p))
    axes = jax.tree.leaves(_matrices(parameters), is_leaf=lambda x: x is None or isinstance(x, tuple))
    taken = [x for x, its in zip(jax.tree.leaves(parameters), axes, strict=True) if its is not None]
    assert size(taken) > 0.8 * size(parameters)  # the rest is embeddings, norms, biases and ends


def test_the_loss_falls(tmp_path):
    assert abs(learn(tmp_path, dataclasses.replace(RECIPE, steps=200, save_every=200))[0] - 3.0) < 0.1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    graph, parameters = nnx.split(Line())
    with pytest.raises(FloatingPointError, match="loss is nan"):
        fit(RECIPE, graph, parameters, lambda p, *_: jnp.sum(nnx.merge(graph, p).a[...]) * jnp.nan, lambda _: {},
            tmp_path, name="bad")


def test_the_learning_rate_rises_holds_and_falls():
    recipe = Recipe(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.5)
    rates = [float(recipe.rate(jnp.array(step))) for step in (0, 4, 9, 40, 75, 100)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_contrastive_loss_is_the_log_of_the_batch_when_nothing_is_known():
    assert np.isclose(contrastive_loss(jnp.zeros((8, 8)), jnp.array(0.0)), np.log(8))


def test_contrastive_loss_vanishes_when_each_picture_finds_its_caption():
    assert contrastive_loss(jnp.eye(4), jnp.log(100.0)) < 1e-6
    assert contrastive_loss(1.0 - jnp.eye(4), jnp.log(100.0)) > 50.0


def test_a_caption_of_nobody_costs_where_a_picture_takes_it_for_its_own():
    own, nobodys = jnp.eye(4), jnp.zeros((4, 4))
    assert contrastive_loss(jnp.concatenate([own, nobodys], axis=1), jnp.log(100.0)) < 1e-6
    assert np.isclose(contrastive_loss(jnp.concatenate([own, own], axis=1), jnp.log(100.0)), np.log(2) / 2)


def test_a_wrong_caption_is_the_right_one_with_one_word_wrong():
    right, wrong = right_and_wrong([scene_at(0, "train", i) for i in range(300)], np.random.default_rng(0))
    changed = [sum(a != b for a, b in zip(r.split(), w.split())) for r, w in zip(right, wrong)]
    assert min(changed) == 1
    # Two colours that change places are two words, and after "behind" instead of "in front of" all others move.
    assert np.mean(np.array(changed) == 1) > 0.85


def test_mistakes_change_the_scene_and_say_nothing_that_is_held_out_of_training():
    rng = np.random.default_rng(0)
    for i in range(500):
        scene = scene_at(0, "train", i, count=2)
        wrong = mistaken(scene, rng)
        assert wrong != scene and not is_held_out(wrong)
        assert len({(s.colour, s.shape) for s in wrong.solids}) == 2


def test_a_word_tells_of_the_solid_named_last_and_on_which_side_it_stands():
    solids = Solid("red", "cube", "large", -1.0, 0.5, 0.0), Solid("blue", "ring", "small", 1.0, 0.1, 0.0)
    told = told_by_word("a red cube left of a blue ring", Scene(solids, "day", "left of"))
    assert np.isnan(told[:2]).all() and np.isfinite(told[2:]).all()
    for words, solid, side in ((slice(2, 7), solids[0], -1.0), (slice(7, 8), solids[1], 1.0)):
        looks = [{look for look, told in zip(LOOKS, row) if told} for row in told[words]]
        assert looks == [{solid.colour, solid.shape}] * len(looks)
        assert (told[words][:, -2] == side).all() and np.allclose(told[words][:, -1], -0.2 * side)


def test_what_a_word_tells_is_asked_of_each_of_its_tokens_and_of_the_end():
    tokenizer = Tokenizer.clip()
    scene = Scene((Solid("red", "cylinder", "large", 0.3, 0.5, 0.0),), "day", None)
    told = told_by_token(["silindir by day"], [scene], tokenizer)
    pieces = len(tokenizer.encode("silindir"))
    asked = np.isfinite(told[0]).all(axis=1)
    assert pieces > 1 and told.shape == (1, TOKENS, len(LOOKS) + 2)
    assert asked.tolist() == [1 <= i <= pieces + 3 for i in range(TOKENS)]
    assert (told[0, asked, -2:] == 0).all()  # alone, it stands in the middle of all that there is


def test_what_is_told_stands_in_a_state_as_it_is_so_that_looks_are_equally_far_apart():
    """Where a layer could read it off, "cube" and "cylinder" ended half as far apart as other shapes."""
    scenes = [Scene((Solid("red", shape, "large", 0.3, 0.5, 0.0),), "day", None) for shape in ("cube", "cylinder")]
    wanted = told_by_token(["a red cube", "a red cylinder"], scenes, Tokenizer.clip())[:, 3]
    states = jnp.zeros((2, 32)).at[:, : wanted.shape[1]].set(clip.LOUD * wanted)
    assert np.allclose(clip.told_in(states), wanted)
    assert np.isclose(np.linalg.norm(states[0] - states[1]), np.sqrt(2) * clip.LOUD)


def test_timesteps_are_uniform_each_and_spread_evenly_together():
    draw = jax.vmap(lambda key: unet.timesteps(key, 16, DiffusionConfig()))
    t = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert 0 <= t.min() and t.max() <= 999
    assert abs(np.mean(t[:, 3] >= 500) - 0.5) < 0.07  # six standard deviations
    assert ((t >= 500).sum(axis=1) == 8).mean() > 0.9 and np.ptp((t >= 500).sum(axis=1)) <= 2


def test_an_upscalers_timesteps_lean_towards_noise_and_its_levels_towards_none():
    keys = jax.random.split(jax.random.key(0), 2000)
    t = np.asarray(jax.vmap(lambda key: unet.timesteps(key, 16, DiffusionConfig(), lean=3.0))(keys))
    assert 0 <= t.min() and t.max() <= 999
    for below in (250, 500, 750):
        assert abs((t < below).mean() - (below / 1000) ** 3) < 0.01
    levels = np.asarray(jax.vmap(lambda key: unet.levels(key, 16, 350))(keys))
    assert levels.min() == 0 and levels.max() == 350
    assert abs((levels <= 20).mean() - (21 / 351) ** (1 / unet.LEAN)) < 0.01


def test_latents_are_scaled_to_unit_variance():
    latents = np.random.default_rng(0).normal(scale=5.49, size=(20, 8, 8, 4))
    assert np.isclose(latent_scale(latents), 0.18215, rtol=0.02)  # what Stable Diffusion's constant says of its own


def test_pictures_are_drawn_once_and_then_mapped(tmp_path):
    first = pictures(tmp_path, 3)
    assert first.shape == (3, 128, 128, 3) and first.dtype == np.uint8
    before = [(p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir()]
    assert np.array_equal(pictures(tmp_path, 3), first)
    assert np.array_equal(first[2], render(train_scene(2))[0])
    assert [(p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir()] == before


@pytest.mark.parametrize("harm", [
    lambda path: path.write_bytes(b"nothing of the kind"), lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b""), lambda path: np.save(path, np.zeros((3, 4))),
    lambda path: np.save(path, np.load(path)[::-1]),
], ids=["garbage", "cut off", "empty", "another shape", "other scenes"])
def test_pictures_that_are_damaged_or_of_other_scenes_are_drawn_anew(tmp_path, harm):
    first = np.array(pictures(tmp_path, 3))
    harm(next(tmp_path.glob("*.npy")))
    assert np.array_equal(pictures(tmp_path, 3), first)


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(tmp_path):
    """A mapped file would be as long as it is going to be at once, and the process end at the first page too many."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"train-9.npy: cannot be written \(File too large\)"):
            pictures(tmp_path, 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_kernels_begin_as_flax_would_draw_them():
    shape = (3, 3, 64, 128)
    drawn, flax = (np.asarray(f(jax.random.key(1), shape)) for f in (lecun_normal, nnx.initializers.lecun_normal()))
    assert abs(drawn.std() * np.sqrt(3 * 3 * 64) - 1) < 0.01 and abs(drawn.mean()) < 1e-3
    assert np.abs(drawn).max() == pytest.approx(np.abs(flax).max(), rel=1e-2), "cut off at the same place"
    assert (drawn == lecun_normal(jax.random.key(1), shape)).all()
    assert (drawn != lecun_normal(jax.random.key(2), shape)).any()
    assert not (drawn[0, 0] == drawn[1, 1]).any()
    traced = jax.jit(lecun_normal, static_argnums=1)(jax.random.key(1), shape)
    assert abs(np.asarray(traced).std() / drawn.std() - 1) < 0.01, "in a program too, by JAX's own generator"


def numbered(monkeypatch, module, **given):
    """The first batch of a training whose picture i is all i, the rows that it took, and what `given` replaced."""
    batches = []
    monkeypatch.setattr(module, "fit", lambda recipe, graph, start, loss, batch_at, *rest, **options: batches.append(
        batch_at(0)) or nnx.merge(graph, start))
    for name, function in given.items():
        monkeypatch.setattr(module, name, function)
    pictures = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 8, 8, 3))
    return pictures, batches, lambda: np.rint((batches[0]["pictures"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_the_judge_is_told_of_the_scenes_that_it_is_shown(monkeypatch):
    pictures, batches, rows = numbered(monkeypatch, judge, spoil=lambda pictures, rng: pictures)
    judge.train(pictures, None)
    wanted = judge.answers([train_scene(int(row)) for row in rows()])
    assert all(np.array_equal(batches[0][name], wanted[name]) for name in wanted)


def test_clip_reads_captions_of_the_scenes_that_it_is_shown(monkeypatch):
    said = []
    pictures, _, rows = numbered(
        monkeypatch, clip, right_and_wrong=lambda scenes, rng: (said.extend(scenes) or ["e"] * len(scenes), ["r"]),
        told_by_token=lambda said, scenes, tokenizer: np.zeros((len(said), 1, 1)),
    )
    sd = model(OPENCLIP)
    clip.train(dataclasses.replace(sd.config.text, width=16), sd.config.vision, sd.tokenizer, pictures, None)
    with pytest.raises(InputError, match="text width: found 8, expected at least 15"):
        clip.train(sd.config.text, sd.config.vision, sd.tokenizer, pictures, None)
    assert said == [train_scene(int(row)) for row in rows()]
