"""A solid too many, or a wrong shape: which scenes show it, what the state holds, and that it leads to the truth."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import OPENCLIP, model

from sdjax.config import DiffusionConfig
from sdjax.diffusion import alphas, split_prediction, training_pair
from sdjax.toyworld import render_batch
from sdjax.training import unet
from sdjax.training.data import step_rng, train_scene
from sdjax.training.misleading import BETWEEN, LOUD, Doubled, Mistaken
from sdjax.training.vae import encode
from sdjax.vae import Posterior

SCENES, BATCH, EVERY = 400, 16, 4
SCALE, DIFFUSION = 0.5, DiffusionConfig(prediction="v")


@pytest.fixture(scope="module")
def doubled() -> Doubled:
    """Over latents that are the number of their scene throughout, so that a batch says which they are."""
    numbers = np.broadcast_to(np.arange(SCENES, dtype=np.float32)[:, None, None, None], (SCENES, 4, 4, 4))
    scenes = [train_scene(i) for i in range(SCENES)]
    return Doubled(scenes, Posterior(numbers, numbers), model(OPENCLIP).vae.module, EVERY)


def test_every_fourth_scene_has_one_solid_and_the_other_has_it_too(doubled):
    asked = np.arange(BATCH)
    rows, more = doubled.batch(asked, step_rng(0, 0))
    kept = np.arange(BATCH) % EVERY != 0
    assert (rows[kept] == asked[kept]).all()
    others = more["other"][:, 0, 0, 0].astype(int)
    assert (others != rows[::EVERY]).any()
    for row, other in zip(rows[::EVERY], others):
        (solid,), (again,) = train_scene(row).solids, train_scene(other).solids
        assert (solid.colour, solid.shape, solid.size) == (again.colour, again.shape, again.size)
        assert train_scene(row).time == train_scene(other).time


@pytest.fixture(scope="module")
def shown(doubled):
    """Pictures with a solid in one cell and its double in another, above an empty one of noise, and their states."""
    empty = jax.random.normal(jax.random.key(1), (BATCH, 4, 4, 4))
    solid = jnp.zeros_like(empty).at[:, 0, 0].set(1.0)
    other = jnp.zeros_like(empty).at[:, 3, 3].set(1.0)
    x0, eps = SCALE * (empty + solid), jax.random.normal(jax.random.key(2), empty.shape)
    batch = {"other": (empty + other)[::EVERY], "empty": empty[::EVERY]}
    t = unet.timesteps(jax.random.key(3), BATCH, DIFFUSION)
    noise, at = doubled.noise(x0, eps, t, batch, jax.random.key(4), SCALE, DIFFUSION)
    return x0, eps, t, noise, at, SCALE * empty


def test_the_state_is_the_noised_sum_of_two_faint_solids(shown):
    x0, eps, _, noise, at, empty = shown
    x, _, _ = training_pair(x0, noise, at, DIFFUSION)
    a = np.asarray(alphas(DIFFUSION)[np.asarray(at)])[:, None, None, None]
    behind = np.asarray((x - np.sqrt(1 - a) * eps) / np.sqrt(a))[::EVERY]  # the picture under the noise
    solids = (behind - np.asarray(empty)[::EVERY]) / SCALE
    right, wrong = solids[:, 0, 0], solids[:, 3, 3]
    assert np.ptp(right, axis=-1).max() < 1e-4 and np.ptp(wrong, axis=-1).max() < 1e-4
    assert (LOUD[0] < right).all() and (right < LOUD[1]).all() and (0 < wrong).all() and (wrong < right).all()
    assert np.abs(np.delete(solids.reshape(len(solids), 16, 4), (0, 15), axis=1)).max() < 1e-4


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_what_is_to_be_said_leads_to_the_true_picture(shown, kind):
    x0, _, _, noise, at, _ = shown
    config = DiffusionConfig(prediction=kind)
    x, target, _ = training_pair(x0, noise, at, config)
    a = jnp.asarray(alphas(config), jnp.float32)[at]
    assert np.abs(split_prediction(target, x, a, kind)[0] - x0).max() < 1e-4


def test_only_every_fourth_is_changed_and_brought_to_the_timesteps_where_solids_part(shown):
    _, eps, t, noise, at, _ = shown
    kept = np.arange(BATCH) % EVERY != 0
    assert (noise[kept] == eps[kept]).all() and (at[kept] == t[kept]).all()
    brought = np.sort(at[::EVERY])
    assert BETWEEN[0] <= brought[0] and brought[-1] < BETWEEN[1] and np.diff(brought).min() > 150  # still spread


def test_where_no_scene_has_one_solid_any_is_taken():
    pair = next(scene for scene in map(train_scene, range(100)) if len(scene.solids) == 2)
    numbers, coder = np.zeros((3, 4, 4, 4), np.float32), model(OPENCLIP).vae.module
    doubled = Doubled([pair] * 3, Posterior(numbers, numbers), coder, EVERY)
    for states, name in ((doubled, "other"), (Mistaken([pair] * 3, coder, EVERY), "reshaped")):
        rows, more = states.batch(np.zeros(BATCH, int), step_rng(0, 0))
        assert set(rows) <= {0, 1, 2} and len(more[name]) == BATCH // EVERY


# ---- a wrong shape -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistaken() -> Mistaken:
    """Over pictures of the first forty scenes."""
    return Mistaken([train_scene(i) for i in range(40)], model(OPENCLIP).vae.module, 2 * EVERY)


def test_the_same_solid_is_there_with_the_shape_that_is_like_its_own(mistaken):
    assert len(mistaken.single) == len(mistaken.swapped) == len(mistaken.other) > 3
    for i, scene in zip(mistaken.single, mistaken.swapped):
        (solid,), (other,) = train_scene(i).solids, scene.solids
        assert {solid.shape, other.shape} == {"cube", "cylinder"}
        assert dataclasses.replace(other, shape=solid.shape) == solid
        assert scene.time == train_scene(i).time
    pictures = render_batch(mistaken.swapped)[0]
    assert np.array_equal(mistaken.other, encode(model(OPENCLIP).vae.module, pictures).mean)


def test_every_eighth_scene_has_one_and_none_that_is_doubled(mistaken, doubled):
    rows, more = mistaken.batch(np.full(BATCH, 99), step_rng(0, 0))
    places = np.flatnonzero(rows != 99)
    assert (places == [2, 10]).all() and not set(places) & set(range(BATCH)[doubled.some])
    for row, other in zip(rows[places], more["reshaped"]):
        assert np.array_equal(other, mistaken.other[mistaken.single.index(row)])


def test_the_state_is_a_noised_mix_of_both_and_leads_to_the_right_one(mistaken):
    x0, eps = jnp.ones((BATCH, 4, 4, 4)), jax.random.normal(jax.random.key(2), (BATCH, 4, 4, 4))
    t = unet.timesteps(jax.random.key(3), BATCH, DIFFUSION)
    wrong = {"reshaped": jnp.full((2, 4, 4, 4), 3.0 / SCALE)}
    noise, at = mistaken.noise(x0, eps, t, wrong, jax.random.key(4), SCALE, DIFFUSION)
    x, target, _ = training_pair(x0, noise, at, DIFFUSION)
    a = jnp.asarray(alphas(DIFFUSION), jnp.float32)[at]
    assert np.abs(split_prediction(target, x, a, "v")[0] - x0).max() < 1e-4
    behind = (x - jnp.sqrt(1 - a)[:, None, None, None] * eps) / jnp.sqrt(a)[:, None, None, None]
    mixed = np.asarray(behind)[[2, 10]]
    assert np.ptp(mixed, axis=(1, 2, 3)).max() < 1e-4 and (1 < mixed).all() and (mixed < 3).all()
    kept = np.arange(BATCH) % (2 * EVERY) != 2
    assert (noise[kept] == eps[kept]).all() and (at[kept] == t[kept]).all()


def test_the_denoiser_is_trained_on_both(doubled, mistaken, monkeypatch):
    sd, batches = model(OPENCLIP), []
    take = lambda recipe, graph, start, loss, batch_at, *rest, **options: batches.append(batch_at(0))
    monkeypatch.setattr(unet, "fit", take)
    unet.train(sd.config.unet, sd.config.diffusion, sd.text_encoder.module, sd.tokenizer, doubled.latents, 1.0, None,
               start=sd.unet.module, misleading=(doubled, mistaken))
    rows = batches[0]["mean"][:, 0, 0, 0].astype(int)
    assert all(len(train_scene(row).solids) == 1 for row in rows[::EVERY]) and len(batches[0]["other"]) == 4
    assert set(rows[2 :: 2 * EVERY]) <= set(mistaken.single) and len(batches[0]["reshaped"]) == 2
