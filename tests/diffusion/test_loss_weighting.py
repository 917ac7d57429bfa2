"""Loss weightings: the same error in x_start costs the same for every prediction, and weights match the papers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, loss_weighting, losses
from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization, predict_eps_from_xstart, predict_v
from ddpm_jax.diffusion.schedules import make_schedule

SHAPE = (4, 4, 4, 3)
T = np.array([0, 3, 50, 99], np.int32)  # of 100


def predicting(prediction):
    return Parameterization(prediction, "fixed_large", clip_denoised=True)


NAMES = [name for name in loss_weighting.WEIGHTINGS if name != "simple"]


@pytest.fixture(scope="module")
def predictions():
    """A batch, and one x̂_0 expressed in each of the three predictions: schedule, batch, outputs, squared error [B]."""
    schedule = make_schedule("linear", 100)
    generator = np.random.default_rng(0)
    x_start = generator.uniform(-1, 1, SHAPE).astype(np.float32)
    noise = generator.standard_normal(SHAPE).astype(np.float32)
    x_t = gaussian.q_sample(schedule, x_start, T, noise)
    error = generator.uniform(0.2, 0.4, SHAPE).astype(np.float32)
    eps = predict_eps_from_xstart(x_t, schedule.level(T), x_start + error)
    outputs = {"x_start": x_start + error, "eps": eps, "v": predict_v(x_start + error, schedule.level(T), eps)}
    return schedule, (x_start, x_t, T, noise), outputs, np.square(error, dtype=np.float64).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_weighted_loss_does_not_depend_on_the_prediction(predictions, name):
    """1e-3 relative: at t=99 the error in eps is 1e-2 of eps, and is computed as a difference."""
    schedule, batch, outputs, _ = predictions
    weighting = loss_weighting.make_weighting(name)
    values = [
        losses.training_losses(schedule, predicting(prediction), output, *batch, weighting=weighting)
        for prediction, output in outputs.items()
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-3)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-3)


def test_simple_losses_differ_by_the_scale_of_the_error(predictions):
    """This makes the test above meaningful: unweighted, they are SNR, 1 and SNR + 1 times the error. 1e-3."""
    schedule, batch, outputs, error = predictions
    snr = schedule.alphas_cumprod[T] / (1 - schedule.alphas_cumprod[T])
    for prediction, scale in (("eps", snr), ("x_start", 1), ("v", snr + 1)):
        values = losses.training_losses(schedule, predicting(prediction), outputs[prediction], *batch)
        np.testing.assert_allclose(values, error * scale, rtol=1e-3)


PUBLISHED = {  # prediction and factor of its own squared error, as in each paper, in alphas_cumprod
    "snr": ("eps", lambda acp: np.ones_like(acp)),
    "truncated_snr": ("x_start", lambda acp: np.maximum(acp / (1 - acp), 1)),
    "min_snr_gamma": ("v", lambda acp: np.minimum(acp / (1 - acp), 5) * (1 - acp)),
    "p2": ("eps", lambda acp: 1 - acp),
    "edm": ("x_start", lambda acp: ((1 - acp) / acp + 0.25) / ((1 - acp) / acp * 0.25)),
}


@pytest.mark.parametrize("name", NAMES)
def test_weights_match_the_papers(name):
    """Over a whole chain, 1e-5; EDM's as (σ² + σ_data²) / (σ σ_data)²."""
    schedule, t = make_schedule("cosine", 200), np.arange(200)
    prediction, factor = PUBLISHED[name]
    weights = loss_weighting.loss_weights(
        predicting(prediction), schedule.level(t), weighting=loss_weighting.make_weighting(name)
    )
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, factor(schedule.alphas_cumprod), rtol=1e-5)


def test_options_change_the_weights():
    snr = jnp.array([0.5, 3.0, 100.0])
    np.testing.assert_allclose(loss_weighting.make_weighting("min_snr_gamma", gamma=2)(snr), [0.5, 2, 2])
    p2 = loss_weighting.make_weighting("p2", gamma=0.5, k=6)
    np.testing.assert_allclose(p2(snr), snr / jnp.sqrt(6 + snr), rtol=1e-6)
    np.testing.assert_allclose(loss_weighting.make_weighting("edm", sigma_data=0.25)(snr), [16.5, 19, 116])


def test_simple_has_weight_1():
    assert loss_weighting.make_weighting("simple") is None
    ones = loss_weighting.loss_weights(predicting("eps"), make_schedule("linear", 100).level(T), weighting=None)
    np.testing.assert_array_equal(ones, np.ones(4, np.float32))


@pytest.mark.parametrize(("name", "prediction"), list(itertools.product(NAMES, PREDICTIONS)))
def test_weights_are_finite_and_positive_for_every_chain(name, prediction):
    for schedule in (make_schedule("cosine", 1000), make_schedule("linear", 1000), make_schedule("sigmoid", 10)):
        t, weighting = np.arange(schedule.num_timesteps), loss_weighting.make_weighting(name)
        weights = loss_weighting.loss_weights(predicting(prediction), schedule.level(t), weighting=weighting)
        assert np.isfinite(weights).all()
        assert (weights > 0).all()


@pytest.mark.parametrize("name", ["truncated_snr", "edm", "simple"])
@pytest.mark.parametrize("prediction", ["x_start", "v"])
def test_the_last_step_is_trained_at_zero_terminal_snr(name, prediction):
    """At zero SNR the loss of the last step is finite and above 0, in and out of jit."""
    schedule = make_schedule("linear", 100, zero_terminal_snr=True)
    x, t = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32), np.full(4, 99)
    weighting = loss_weighting.make_weighting(name)

    def loss(output):
        values = losses.training_losses(schedule, predicting(prediction), output, x, x, t, x, weighting=weighting)
        return values.sum()

    for run in (loss, jax.jit(loss)):
        assert 0 < run(2 * x + 1) < np.inf
    assert np.isfinite(jax.grad(loss)(2 * x + 1)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: loss_weighting.make_weighting("snr_plus"),
            r"'snr_plus'.*simple, snr, truncated_snr, min_snr_gamma, p2, edm, or module:function",
        ),
        (lambda: loss_weighting.make_weighting("simple", gamma=1.0), r"simple has no option 'gamma': it has none$"),
        (lambda: loss_weighting.make_weighting("p2", sigma_data=1.0), r"p2 has no option 'sigma_data': it has gamma, k$"),
        (lambda: loss_weighting.make_weighting("edm", sigma_data=0.0), r"sigma_data .* is 0.0: it must be finite and above 0$"),
        (lambda: loss_weighting.make_weighting("p2", k=float("inf")), r"k .* is inf: "),
    ],
)
def test_invalid_options_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("prediction", ["x_start", "v"])
@pytest.mark.parametrize("name", ["snr", "min_snr_gamma", "p2"])
def test_the_last_step_has_weight_1_at_zero_terminal_snr(name, prediction):
    """As in the authors' code of min_snr_gamma; every other step is bit-identical."""
    schedule, t = make_schedule("cosine", 50, zero_terminal_snr=True), jnp.arange(50)
    plain = loss_weighting.make_weighting(name)
    before, after = (
        np.asarray(loss_weighting.loss_weights(predicting(prediction), schedule.level(t), weighting=weighting))
        for weighting in (plain, loss_weighting.trained_at_zero_snr(plain))
    )
    assert before[-1] == 0
    assert after[-1] == 1
    np.testing.assert_array_equal(after[:-1], before[:-1])


@pytest.mark.parametrize("name", ["simple", "truncated_snr", "edm"])
def test_weightings_nonzero_at_zero_snr_are_unchanged(name):
    weighting = loss_weighting.make_weighting(name)
    assert loss_weighting.trained_at_zero_snr(weighting) is weighting
