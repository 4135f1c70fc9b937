"""Pictures too large for memory: tiles that cover them, and no seam where they meet."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import OPENCLIP, model

from sdjax import pipeline
from sdjax.tiling import Corner, blended, padded, tiles


@pytest.mark.parametrize(("height", "width"), [(40, 50), (16, 17), (16, 100), (33, 16), (16, 16)])
def test_tiles_cover_everything_and_overlap(height, width):
    corners = tiles(height, width, 16, 2)
    seen = np.zeros((1, height, width), int)
    for corner in corners:
        corner.of(seen)[...] += 1
        assert corner.top + 16 <= height and corner.left + 16 <= width
    assert seen.min() == 1
    for starts in (sorted({c.top for c in corners}), sorted({c.left for c in corners})):
        assert all(b - a <= 14 for a, b in zip(starts, starts[1:]))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 16), (37, 50)])
def test_tiles_that_agree_leave_no_seam(height, width):
    latents = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    twice = lambda z: z.repeat(2, axis=1).repeat(2, axis=2)
    drawn = blended(height, width, 16, 4, 2, lambda corner: twice(corner.of(latents)))
    np.testing.assert_allclose(drawn, twice(latents), atol=1e-5)


def test_a_tile_fades_out_towards_its_own_edge():
    drawn = blended(16, 28, 16, 4, 1, lambda corner: np.full((1, 16, 16, 1), corner.left / 12, np.float32))[0, 8, :, 0]
    assert (drawn[:12] == 0).all() and (drawn[16:] == 1).all()
    np.testing.assert_allclose(drawn[12:16], [0.2, 0.4, 0.6, 0.8], atol=1e-6)


def test_what_is_smaller_than_a_tile_repeats_its_last_row():
    small = np.arange(6.0).reshape(1, 2, 3, 1)
    assert padded(small, 4).shape == (1, 4, 4, 1)
    assert (padded(small, 4)[0, 2:, 0] == small[0, 1, 0]).all() and padded(small, 2).shape == small.shape


@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 5), (9, 14)])
def test_a_large_picture_is_encoded_in_tiles_of_one_shape(monkeypatch, height, width):
    sd = model(OPENCLIP)
    f = sd.config.vae.factor
    picture = np.random.default_rng(0).uniform(-1, 1, (1, f * height, f * width, 3)).astype(np.float32)
    monkeypatch.setattr(pipeline, "WHOLE", (7 * f) ** 2)
    monkeypatch.setattr(pipeline, "TILE", 8 * f)
    shapes, encode = set(), sd.vae.encode
    monkeypatch.setattr(sd.vae, "encode", lambda x: shapes.add(x.shape) or encode(x))
    tiled = sd.to_posterior(picture)
    assert shapes == {(1, 8 * f, 8 * f, 3)}
    assert tiled.mean.shape == tiled.log_variance.shape == (1, height, width, 4)
    alone = encode(Corner(0, 0, 8 * f).of(padded(picture, 8 * f)))
    for found, expected in zip(tiled, alone):  # the corner is seen by the first tile alone
        np.testing.assert_allclose(found[:, 0, 0], expected[:, 0, 0], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 5), (9, 14)])
def test_a_large_picture_is_decoded_in_tiles_of_one_shape(monkeypatch, height, width):
    sd = model(OPENCLIP)
    f = sd.config.vae.factor
    z = np.random.default_rng(0).normal(size=(3, height, width, 4)).astype(np.float32)
    whole = sd.to_pictures(z)
    monkeypatch.setattr(pipeline, "WHOLE", (7 * f) ** 2)
    monkeypatch.setattr(pipeline, "TILE", 8 * f)
    shapes, decode = set(), sd.vae.decode
    monkeypatch.setattr(sd.vae, "decode", lambda z: shapes.add(z.shape) or decode(z))
    tiled = sd.to_pictures(z)
    assert tiled.shape == whole.shape == (3, f * height, f * width, 3) and shapes == {(1, 8, 8, 4)}
    # The first rows and columns are seen by the first tile alone.
    alone = np.clip(decode(Corner(0, 0, 8).of(padded(z, 8))[:1] / sd.config.vae.scale), -1, 1)
    corners = tiles(max(height, 8), max(width, 8), 8, 2)
    second = [f * min((start for start in starts if start), default=8) for starts in zip(*(c[:2] for c in corners))]
    sole = np.s_[:1, : second[0], : second[1]]
    np.testing.assert_allclose(tiled[sole], alone[:, :, : f * width][sole], atol=1e-5)
