"""The arithmetic of diffusion, on literal numbers and by its identities; the solvers against diffusers' sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from sdjax import samplers
from sdjax.config import DiffusionConfig, sd1
from sdjax.diffusion import (
    add_noise,
    alphas,
    betas,
    guide,
    min_snr_weight,
    split_prediction,
    training_pair,
    velocity,
)
from sdjax.samplers import SAMPLERS, Plan, ddim, ddim_plan, ddpm, dpmpp_2m, euler, leading, linspace, plan

SD = sd1().diffusion
few = partial(settings, max_examples=20, deadline=None)
pictures = st_np.arrays(np.float32, (1, 2, 2, 1), elements=st.floats(-3, 3, width=32)).map(jnp.asarray)
shares = st.floats(0.01, 0.99)  # of the picture's variance that is left
predictions = st.sampled_from(["eps", "v"])


def row(a, a_next, a_last=0.0):
    """A step of a plan by its alphas."""
    return Plan(np.int32(0), np.int32(0), *(np.float32(value) for value in (a, a_next, a_last)))


# The schedule


def test_the_schedule_is_a_line_between_square_roots_squared():
    assert np.allclose(betas(SD)[[0, 333, 999]], [0.00085, 0.0031306, 0.012], atol=1e-7)
    assert betas(SD).dtype == np.float64


def test_ddpms_own_schedule_is_a_line():
    line = DiffusionConfig(beta_start=1e-4, beta_end=0.02, schedule="linear")
    assert np.allclose(betas(line)[[0, 333, 999]], [0.0001, 0.0067333, 0.02], atol=1e-7)


def test_almost_all_of_the_picture_is_left_at_the_first_step_and_a_little_at_the_last():
    # The released weights' own tables: sqrt_alphas_cumprod and sqrt_one_minus_alphas_cumprod, first and last.
    assert np.allclose(np.sqrt(alphas(SD)[[0, -1]]), [0.9995748996734619, 0.06826484948396683], rtol=2e-6)
    assert np.allclose(np.sqrt(1 - alphas(SD)[[0, -1]]), [0.029155133292078972, 0.9976672530174255], rtol=2e-5)


# Noise in, noise out


def test_a_noisy_picture_keeps_the_variance_of_1():
    x = add_noise(jnp.full((2, 1, 1, 1), 10.0), jnp.full((2, 1, 1, 1), 1.0), jnp.array([0.64, 0.36]))
    assert np.allclose(x.ravel(), [0.8 * 10 + 0.6 * 1, 0.6 * 10 + 0.8 * 1])


def test_velocity_turns_picture_and_noise_a_quarter():
    assert np.allclose(velocity(jnp.full((1, 1, 1, 1), 10.0), jnp.ones((1, 1, 1, 1)), jnp.array([0.64])), 0.8 - 6.0)


@given(x0=pictures, eps=pictures, a=shares, kind=predictions)
@few()
def test_from_a_perfect_prediction_of_either_kind_come_the_picture_and_the_noise(x0, eps, a, kind):
    x = add_noise(x0, eps, jnp.array([a]))
    prediction = velocity(x0, eps, jnp.array([a])) if kind == "v" else eps
    x0_again, eps_again = split_prediction(prediction, x, jnp.array([a]), kind)
    assert np.allclose(x0_again, x0, atol=1e-4)
    assert np.allclose(eps_again, eps, atol=1e-4)


# Guidance


def test_guidance_goes_from_the_unconditional_through_the_conditional_and_beyond():
    assert guide(jnp.array(1.0), jnp.array(3.0), 7.5) == 16.0
    assert guide(jnp.array(1.0), jnp.array(3.0), 0.0) == 1.0


@given(u=pictures, c=pictures)
@few()
def test_guidance_1_is_the_conditional(u, c):
    assert np.allclose(guide(u, c, 1.0), c, atol=1e-6)


# Training


def test_min_snr_weights_cap_the_easy_steps():
    # Signal to noise 1/3, 1 and 9; gamma 5. An error in eps counts snr times as an error in the picture.
    a = jnp.array([0.25, 0.5, 0.9])
    assert np.allclose(min_snr_weight(a, "eps"), [1, 1, 5 / 9])
    assert np.allclose(min_snr_weight(a, "v"), [1, 1, 6 / 10])


def test_training_shows_the_noisy_picture_and_asks_for_what_the_model_predicts():
    x0, eps, t = jnp.full((2, 1, 1, 1), 2.0), jnp.full((2, 1, 1, 1), 3.0), jnp.array([0, 999])
    signal, noise = np.array([0.99957490, 0.06826485]), np.array([0.02915513, 0.99766725])
    for kind, expected in (("eps", [3, 3]), ("v", 3 * signal - 2 * noise)):
        x, target, _ = training_pair(x0, eps, t, DiffusionConfig(prediction=kind))
        assert np.allclose(x.ravel(), 2 * signal + 3 * noise)
        assert np.allclose(target.ravel(), expected)


# Timesteps


def test_fifty_steps_start_at_981_and_end_at_1():
    steps = leading(50)
    assert (len(steps), steps[0], steps[1], steps[-1]) == (50, 981, 961, 1)  # k 1000 // 50, + 1


def test_every_number_of_steps_stays_inside_the_schedule():
    for steps in (1, 2, 3, 7, 20, 50, 333, 999, 1000):
        for timesteps in (leading(steps), linspace(steps)):
            assert len(timesteps) == steps
            assert 0 <= timesteps[-1] and timesteps[0] <= 999
            assert (np.diff(timesteps) < 0).all()


def test_linspace_starts_at_the_noisiest_step_there_is():
    assert linspace(50)[[0, 1, -1]].tolist() == [999, 979, 20]


def test_ddim_ends_at_the_first_alpha_where_the_others_end_at_1():
    assert ddim_plan(SD, 50).a_next[-1] == np.float32(alphas(SD)[0]) < 1.0
    assert [SAMPLERS[name].plan(SD, 50).a_next[-1] for name in ("euler", "dpmpp_2m", "ddpm")] == [1, 1, 1]


def test_a_plan_says_where_each_step_comes_from_and_goes_to():
    p, a = ddim_plan(SD, 4), alphas(SD).astype(np.float32)
    assert p.t.tolist() == [751, 501, 251, 1]
    assert p.a.tolist() == a[[751, 501, 251, 1]].tolist()
    assert p.a_next.tolist() == a[[501, 251, 1, 0]].tolist()
    assert p.a_last.tolist() == [0, *a[[751, 501, 251]]]


# One step of each solver


@given(x0=pictures, eps=pictures, a=st.floats(0.05, 0.5), a_next=st.floats(0.55, 0.95))
@few()
def test_ddim_without_noise_can_be_walked_back(x0, eps, a, a_next):
    x = add_noise(x0, eps, jnp.float32(a))
    below = ddim(x, x0, eps, x0, row(a, a_next), 0, eps)
    x0_below, _ = split_prediction(eps, below, jnp.float32(a_next), "eps")
    assert np.allclose(add_noise(x0_below, eps, jnp.float32(a)), x, atol=1e-4)


@given(x0=pictures, eps=pictures, noise=pictures, a=st.floats(0.05, 0.5), a_next=st.floats(0.55, 0.95))
@few()
def test_ddim_with_eta_1_is_ddpm(x0, eps, noise, a, a_next):
    x, step = add_noise(x0, eps, jnp.float32(a)), row(a, a_next)
    assert np.allclose(ddim(x, x0, eps, x0, step, 1.0, noise), ddpm(x, x0, eps, x0, step, 0.0, noise), atol=1e-4)


@given(x0=pictures, eps=pictures, a=st.floats(0.05, 0.5), a_next=st.floats(0.55, 1.0))
@few()
def test_euler_is_ddim_without_noise_on_the_same_grid(x0, eps, a, a_next):
    x, step = add_noise(x0, eps, jnp.float32(a)), row(a, a_next)
    assert np.allclose(euler(x, x0, eps, x0, step, 0.0, eps), ddim(x, x0, eps, x0, step, 0.0, eps), atol=1e-4)


@given(x0=pictures, eps=pictures, a=st.floats(0.05, 0.5), a_next=st.floats(0.55, 1.0))
@few()
def test_the_first_step_of_dpmpp_2m_is_ddim_whatever_it_is_told_of_the_past(x0, eps, a, a_next):
    x, step = add_noise(x0, eps, jnp.float32(a)), row(a, a_next, a_last=0.0)
    past = jnp.full_like(x, 100.0)
    assert np.allclose(dpmpp_2m(x, x0, eps, past, step, 0.0, eps), ddim(x, x0, eps, x0, step, 0.0, eps), atol=1e-4)


def test_dpmpp_2m_draws_on_the_last_two_estimates():
    # lambda is 0, log 2 and log 4, evenly spaced: the picture is taken at 1 1/2 of the way from past to present.
    a_last, a, a_next = 1 / 2, 4 / 5, 16 / 17
    x, past, now = (jnp.full((1, 1, 1, 1), value) for value in (1.0, 2.0, 4.0))
    shrink = ((1 / 17) / (1 / 5)) ** 0.5
    expected = shrink * 1.0 + (16 / 17) ** 0.5 * (1 - 0.5) * (4.0 + 0.5 * (4.0 - 2.0))
    assert np.allclose(dpmpp_2m(x, now, x, past, row(a, a_next, a_last), 0.0, x), expected)


def test_noise_is_added_where_eta_is_above_0_and_its_variance_is_that_of_diffusers():
    line = alphas(DiffusionConfig(beta_start=1e-4, beta_end=0.02, schedule="linear"))
    zero, one = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))
    # huggingface/diffusers tests/schedulers/test_scheduler_ddim.py test_variance
    expected = {(0, 0): 0.0, (420, 400): 0.14771, (980, 960): 0.32460, (487, 486): 0.00979, (999, 998): 0.02}
    for (t, t_next), variance in expected.items():
        sigma = ddim(zero, zero, zero, zero, row(line[t], line[t_next]), 1.0, one)
        assert np.allclose(sigma**2, variance, atol=1e-5)
        assert ddim(zero, zero, zero, zero, row(line[t], line[t_next]), 0.0, one) == 0.0


# Whole walks


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_solver_reaches_the_picture_that_a_perfect_network_sees(name):
    picture = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    x = np.ones_like(picture)
    for s in zip(*SAMPLERS[name].plan(SD, 10)):
        s = Plan(*s)
        eps = (x - np.sqrt(s.a) * picture) / np.sqrt(1 - s.a)
        x = SAMPLERS[name].step(x, picture, eps, picture, s, 0.0, np.ones_like(x))
    assert np.allclose(x, picture, atol=0.06 if name == "ddim" else 1e-5)  # DDIM stops one alpha short


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_in_one_program_and_the_loop_by_steps_go_the_same_way(name):
    predict = lambda x, t: (0.1 * x, 0.5 * x + 0.001 * t[:, None, None, None], None)
    keys, table = samplers.image_keys(0, 0, 2), SAMPLERS[name].plan(SD, 4)
    rest = (jnp.float32(2.0), jnp.float32(1.0 if name == "ddim" else 0.0), keys)
    advance = jax.jit(lambda x, x0, s: samplers.advance(predict, SAMPLERS[name].step, "eps", x, x0, s, *rest))
    scan = jax.jit(lambda x: samplers.scan(predict, SAMPLERS[name].step, "eps", x, table, *rest))
    x = samplers.noise(keys, 0, (2, 2, 1))
    walk = [step.x for _, step in samplers.steps(advance, x, table)]
    assert len(walk) == 4
    assert np.allclose(scan(x), walk[-1], rtol=1e-5)


# huggingface/diffusers tests/schedulers/test_scheduler_ddim.py: sum and mean of absolute values after 10 steps.
@pytest.mark.parametrize(
    ("beta_start", "kind", "a_final", "first", "total", "mean"),
    [
        (1e-4, "eps", 1.0, 0, 172.0067, 0.223967),
        (1e-4, "v", 1.0, 0, 52.5302, 0.0684),
        (0.01, "eps", 1.0, 0, 149.8295, 0.1951),
        (0.01, "eps", "first alpha", 0, 149.0784, 0.1941),
        (1e-4, "eps", 1.0, 8, 354.5418, 0.4616),
    ],
    ids=["eps", "v", "to a clean picture", "to the first alpha", "from a noised picture"],
)
def test_ten_steps_of_ddim_give_the_sums_of_diffusers(beta_start, kind, a_final, first, total, mean):
    config = DiffusionConfig(beta_start=beta_start, beta_end=0.02, schedule="linear", prediction=kind)
    table = plan(config, leading(10, offset=0), alphas(config)[0] if a_final == "first alpha" else a_final)
    ramp = np.arange(768, dtype=np.float32) / 768
    x = ramp.reshape(3, 8, 8, 4).transpose(3, 1, 2, 0)
    if first:
        x = add_noise(x, ramp[::-1].reshape(3, 8, 8, 4).transpose(3, 1, 2, 0), table.a[first])
    for s in list(zip(*table))[first:]:
        s = Plan(*s)
        x0, eps = split_prediction(x * (s.t / (s.t + 1)), x, s.a, kind)
        x = ddim(x, jnp.clip(x0, -1, 1), eps, x0, s, 0.0, eps)  # its scheduler clips the picture, SD's does not
    assert abs(jnp.abs(x).sum() - total) < 1e-2
    assert abs(jnp.abs(x).mean() - mean) < 1e-3


# Noise

NOISE = [-0.4447689, 0.3143449, 0.0220110, 0.3915092]  # picture 2 of seed 7, number 3, as jax 0.10.2 drew it


def test_picture_2_of_a_seed_has_the_same_noise_alone_and_among_4():
    four = samplers.noise(samplers.image_keys(0, 0, 4), 0, (3, 5, 4))
    alone = samplers.noise(samplers.image_keys(0, 2, 1), 0, (3, 5, 4))
    assert (four[2] == alone[0]).all()


def test_the_noise_of_a_seed_is_the_same_on_every_machine_and_for_good():
    """Threefry's bits are the same everywhere; only the logarithm in the normal may round differently."""
    found = samplers.noise(samplers.image_keys(7, 2, 1), 3, (2, 2, 1)).ravel()
    assert np.allclose(found, NOISE, atol=1e-5)


def test_pictures_seeds_and_steps_all_have_noise_of_their_own():
    draw = lambda seed, image, number: samplers.noise(samplers.image_keys(seed, image, 1), number, (8, 8, 4))
    noises = [draw(0, 0, 0), draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(0, 0, samplers.POSTERIOR)]
    for i, a in enumerate(noises):
        assert abs(a.mean()) < 0.3 and abs(a.std() - 1) < 0.2
        assert all(abs((a * b).mean()) < 0.3 for b in noises[:i])
