"""The text and picture towers against transformers' answers, and what a wrong constant does to them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, error, filled

from sdjax import clip
from sdjax.attention import attend
from sdjax.clip import ImageEncoder, TextEncoder, activate, cosine
from sdjax.config import TextConfig, VisionConfig, sd1, sd2

TOLERANCE = 1e-5
OPENAI = TextConfig(
    vocab_size=64, context_length=9, width=16, layers=3, heads=2, activation="quick_gelu", projection=10, end_id=63
)
OPENCLIP = dataclasses.replace(OPENAI, activation="gelu", padding="zero")
VISION = VisionConfig(image_size=12, patch=4, width=16, layers=2, heads=2, projection=10)


@pytest.fixture(scope="module")
def golden():
    return Golden("text-openai")


def mistake(golden, config=OPENAI):
    """How far the hidden states are from transformers' after a constant was changed."""
    return error(filled(TextEncoder, config, golden.weights)(golden["in.ids"]), golden["out.hidden"])


# The text tower


def test_openais_text_tower_gives_the_hidden_states_of_transformers(golden):
    assert mistake(golden) < TOLERANCE


def test_openclips_text_tower_gives_the_hidden_states_of_transformers():
    assert mistake(Golden("text-openclip"), OPENCLIP) < TOLERANCE


def test_the_activation_of_one_tower_is_wrong_in_the_other(golden):
    assert mistake(golden, OPENCLIP) > 1e-3
    assert mistake(Golden("text-openclip"), OPENAI) > 1e-3


def test_layer_norms_have_eps_1e_5_where_flax_defaults_to_1e_6(golden, monkeypatch):
    monkeypatch.setattr(clip, "LAYER_EPS", 1e-6)
    assert mistake(golden) > 1e-3


def test_without_the_causal_mask_the_answer_is_another(golden, monkeypatch):
    monkeypatch.setattr(clip, "attend", lambda q, k, v, mask: attend(q, k, v))
    assert mistake(golden) > 0.1


def test_a_token_changes_nothing_before_it_and_something_after_it(golden):
    encoder = filled(TextEncoder, OPENAI, golden.weights)
    ids = jnp.asarray(golden["in.ids"][2:])
    changed = ids.at[0, 4].add(1)
    moved = np.abs(encoder(ids) - encoder(changed)).max(axis=-1)[0]
    assert (moved[:4] == 0).all()
    assert (moved[4:] > 0).all()


def test_sd2_stops_one_layer_early_and_normalises_there():
    assert (sd1().text.layers, sd2().text.layers) == (12, 23)  # of 12 and of 24
    golden = Golden("text-openclip")
    weights = {k: v for k, v in golden.weights.items() if "layers.2." not in k}
    two_of_three = filled(TextEncoder, dataclasses.replace(OPENCLIP, layers=2), weights)
    assert error(two_of_three(golden["in.ids"]), golden["out.penultimate"]) < TOLERANCE


def test_a_sentences_vector_is_the_projected_row_of_its_first_end_token(golden):
    encoder = filled(TextEncoder, OPENAI, golden.weights)
    assert error(encoder.embed(golden["in.ids"]), golden["out.embedding"]) < TOLERANCE
    rows = encoder(jnp.asarray(golden["in.ids"]))[jnp.arange(3), jnp.array([3, 2, 8])]
    assert error(encoder.text_projection(rows), golden["out.embedding"]) < TOLERANCE


def test_quick_gelu_and_gelu_differ_by_at_most_two_hundredths():
    x = jnp.linspace(-6, 6, 1201)
    assert abs(activate(jnp.array(1.0), "quick_gelu") - 0.84580) < 1e-5  # 1 / (1 + exp(-1.702))
    assert abs(activate(jnp.array(1.0), "gelu") - 0.84134) < 1e-5  # the normal distribution's, at 1
    assert 0.020 < jnp.abs(activate(x, "quick_gelu") - activate(x, "gelu")).max() < 0.021


# The picture tower, and the space they share


def test_the_picture_tower_gives_the_embeddings_of_transformers():
    golden = Golden("vision")
    encoder = filled(ImageEncoder, VISION, golden.weights)
    assert error(encoder(golden["in.pictures"]), golden["out.embedding"]) < TOLERANCE


def test_cosine_forgets_lengths():
    a = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    b = jnp.array([[5.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
    half = 0.5**0.5
    assert np.allclose(cosine(a, b), [[1, half, 0], [0, half, -1]])
