"""The mathematics of every sampler, against exact denoisers.

For data N(mean, cov) the best guess of x_start is linear in x_t, so that each step of a sampler is an affine map

    x_prev = F x_t + g + s z,   z ~ N(0, I),

and pushes a Gaussian to a Gaussian. F, g and s are read off by probing `step`; the law of the samples then follows
without any sampling, and is compared to the law of the data.

Much runs op by op on purpose: all samplers, predictions and spacings then share the same few compiled operations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.process.diffusion import PREDICTIONS
from ddpm_jax.process.schedules import SPACINGS, make_schedule, respace, schedule_from_betas, spaced_timesteps
from ddpm_jax.samplers import SAMPLERS, sampler

SETTINGS = {  # name -> sampler, its options, order of its error
    "ancestral-small": ("ancestral", {"variance": "fixed_small"}, 1),
    "ancestral-large": ("ancestral", {"variance": "fixed_large"}, 1),
    "ddim": ("ddim", {"variance": "fixed_small", "eta": 0.0}, 1),
    "ddim-half": ("ddim", {"variance": "fixed_small", "eta": 0.5}, 1),
    "ddim-full": ("ddim", {"variance": "fixed_small", "eta": 1.0}, 1),
}
SHAPE, D = (2, 2, 1), 4
MEAN = np.array([0.5, -0.3, 0.1, 0.8])
MIX = np.array([[0.3, 0.0, 0.1, 0.2], [0.1, 0.5, 0.0, 0.3], [0.0, 0.4, 0.9, 0.1], [0.2, 0.0, 0.3, 1.2]])
COV = MIX @ MIX.T  # standard deviations .23 to 1.36
FULL = make_schedule("linear", 1000)
WIDTH = 100  # how many steps are probed at once; divides every num_steps below


def build(setting, schedule, prediction="x_start", clip_denoised=False):
    name, options, _ = SETTINGS[setting]
    return SAMPLERS[name](schedule, prediction=prediction, clip_denoised=clip_denoised, **options)


def shorten(schedule, num_steps, spacing="trailing"):
    return respace(schedule, spaced_timesteps(schedule.num_timesteps, num_steps, spacing))


def some_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def output_tables(schedule, x_matrix, x_offset, prediction):
    """Guess of x_start, x_matrix[t] x_t + x_offset[t], as what a network of this prediction would output. float64."""
    signal = np.sqrt(schedule.alphas_cumprod)[:, None, None]
    spread = schedule.sqrt_one_minus_alphas_cumprod[:, None, None]
    eps_matrix = (np.eye(D) - signal * x_matrix) / spread
    eps_offset = -(signal * x_offset[:, :, None] / spread)[:, :, 0]
    return {
        "x_start": (x_matrix, x_offset),
        "eps": (eps_matrix, eps_offset),
        "v": (
            signal * eps_matrix - spread * x_matrix,
            signal[..., 0] * eps_offset - spread[..., 0] * x_offset,
        ),
    }[prediction]


def affine_denoiser(schedule, x_matrix, x_offset, prediction):
    """denoise_fn of float32, with t on the scale of `schedule`."""
    tables = output_tables(schedule, x_matrix, x_offset, prediction)
    matrix, offset = (jnp.asarray(table, jnp.float32) for table in tables)

    def denoise_fn(x_t, t):
        flat = jnp.einsum("bij,bj->bi", matrix[t], x_t.reshape(-1, D), precision="highest") + offset[t]
        return flat.reshape(x_t.shape)

    return denoise_fn


def gaussian_denoiser(schedule, mean, cov, prediction):
    """E[x_0 | x_t] = m + sqrt(ab) C (ab C + (1 - ab) I)^-1 (x_t - sqrt(ab) m): the network that has learnt N(m, C)."""
    signal = np.sqrt(schedule.alphas_cumprod)[:, None, None]
    spread = schedule.sqrt_one_minus_alphas_cumprod[:, None, None]
    gain = signal * cov @ np.linalg.inv(signal**2 * cov + spread**2 * np.eye(D))
    return affine_denoiser(schedule, gain, mean - signal[..., 0] * (gain @ mean), prediction)


def oracle_denoiser(schedule, x_start, prediction):
    """The network that knows the image."""
    steps = schedule.num_timesteps
    return affine_denoiser(schedule, np.zeros((steps, D, D)), np.tile(x_start, (steps, 1)), prediction)


def probe(sampled, denoise_fn):
    """F [K, D, D], g [K, D] and s [K] of every step, in the order in which they are taken."""
    rows = jnp.concatenate([jnp.zeros((1, D)), jnp.eye(D)]).reshape(-1, *SHAPE)
    x = jnp.concatenate([rows, rows])
    # Two draws of z, each shared by the zero image and all unit images.
    keys = jax.random.wrap_key_data(np.repeat(np.array([[0, 1], [0, 2]], np.uint32), D + 1, axis=0))

    def one(i):
        x_prev, _, _ = sampled.step(denoise_fn, x, sampled.init_memory(x), sampled.num_steps - 1 - i, keys)
        z = sampler.images_noise(keys, i + 1, SHAPE)
        return x_prev.reshape(2, D + 1, D), z.reshape(2, D + 1, D)[:, 0]

    stretches = [jax.vmap(one)(jnp.arange(WIDTH) + first) for first in range(0, sampled.num_steps, WIDTH)]
    out, z = (np.concatenate(parts).astype(np.float64) for parts in zip(*stretches, strict=True))
    matrix = np.swapaxes(out[:, :, 1:] - out[:, :, :1], 2, 3)
    np.testing.assert_allclose(matrix[:, 0], matrix[:, 1], atol=1e-5)  # affine: the noise does not change F
    effect, cause = out[:, 0, 0] - out[:, 1, 0], z[:, 0] - z[:, 1]
    scale = np.sum(effect * cause, axis=1) / np.sum(cause * cause, axis=1)
    np.testing.assert_allclose(effect, scale[:, None] * cause, atol=1e-5)  # isotropic: noise s z, and no other
    return matrix[:, 0], out[:, 0, 0] - scale[:, None] * z[:, 0], scale


def forward_law(schedule, index, mean, cov):
    """Mean and covariance of x_t for data N(mean, cov); index -1 is the data."""
    if index < 0:
        return mean, cov
    alpha_bar, spread = schedule.alphas_cumprod[index], schedule.sqrt_one_minus_alphas_cumprod[index]
    return np.sqrt(alpha_bar) * mean, alpha_bar * cov + spread**2 * np.eye(D)


def push(law, steps):
    """The law after each step, from that before the first."""
    mean, cov = law
    for matrix, offset, scale in zip(*steps, strict=True):
        mean, cov = matrix @ mean + offset, matrix @ cov @ matrix.T + scale**2 * np.eye(D)
        yield mean, cov


def distance(law, other):
    return max(np.abs(a - b).max() for a, b in zip(law, other, strict=True))


@functools.cache
def gaussian_error(setting, prediction, num_steps, spacing="trailing"):
    """How far the samples' law is from the data's, for a chain that starts from the exact law of its first x_t."""
    schedule = shorten(FULL, num_steps, spacing)
    steps = probe(build(setting, schedule, prediction), gaussian_denoiser(FULL, MEAN, COV, prediction))
    *_, last = push(forward_law(schedule, num_steps - 1, MEAN, COV), steps)
    return distance(last, (MEAN, COV))


def test_every_sampler_is_tested_here():
    assert {name for name, _, _ in SETTINGS.values()} == set(SAMPLERS)


# The law of the samples.


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_error_falls_at_the_order_of_the_sampler(setting, prediction):
    """Twice the steps divide the error by 2^order, within a fifth for the next order's share."""
    order = SETTINGS[setting][2]
    error = gaussian_error(setting, prediction, 100)
    assert error < 0.16  # of variances up to 1.6
    np.testing.assert_allclose(error / gaussian_error(setting, prediction, 200), 2**order, rtol=0.2)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_error_is_small_with_every_spacing(setting, spacing):
    """100 steps: within a tenth of the largest variance, 1.6; 200 steps: at most two thirds of that (order one: a half)."""
    error = gaussian_error(setting, "v", 100, spacing)
    assert error < 0.16
    assert gaussian_error(setting, "v", 200, spacing) < 0.67 * error


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_thousand_steps_from_pure_noise_give_the_data(setting):
    """The chain as trained, from N(0, I). Order one leaves a fifth of the error of 200 steps, all below .02 there."""
    steps = probe(build(setting, FULL, "eps"), gaussian_denoiser(FULL, MEAN, COV, "eps"))
    *_, last = push((np.zeros(D), np.eye(D)), steps)
    assert distance(last, (MEAN, COV)) < 0.02


@pytest.mark.parametrize("setting", ["ancestral-small", "ddim", "ddim-half", "ddim-full"])
def test_chain_of_a_point_mass_is_exact_at_every_step(setting):
    """Fixed small is the right variance for one image (DDPM section 3.2), DDIM right for any eta; 1e-4, float32 probes."""
    schedule, nothing = shorten(FULL, 100), np.zeros((D, D))
    steps = probe(build(setting, schedule, "v"), gaussian_denoiser(FULL, MEAN, nothing, "v"))
    for i, law in enumerate(push(forward_law(schedule, 99, MEAN, nothing), steps)):
        assert distance(law, forward_law(schedule, 98 - i, MEAN, nothing)) < 1e-4


def test_chain_of_white_noise_is_exact_with_fixed_large_up_to_the_last_step():
    """Fixed large is right for data N(0, I) (DDPM section 3.2). The last step, which adds no noise, lacks beta_0."""
    schedule, none = shorten(FULL, 100), np.zeros(D)
    steps = probe(build("ancestral-large", schedule, "v"), gaussian_denoiser(FULL, none, np.eye(D), "v"))
    *before, last = push((none, np.eye(D)), steps)
    assert max(distance(law, (none, np.eye(D))) for law in before) < 1e-4
    assert distance(last, (none, (1 - schedule.betas[0]) * np.eye(D))) < 1e-4


def test_the_two_fixed_variances_are_the_lower_and_upper_end():
    """Fixed small makes white noise too narrow, fixed large a point mass too wide, at every step (DDPM section 3.2)."""
    schedule, none, nothing = shorten(FULL, 100), np.zeros(D), np.zeros((D, D))
    small = probe(build("ancestral-small", schedule, "v"), gaussian_denoiser(FULL, none, np.eye(D), "v"))
    large = probe(build("ancestral-large", schedule, "v"), gaussian_denoiser(FULL, none, nothing, "v"))
    narrow = [cov[0, 0] for _, cov in push((none, np.eye(D)), small)]
    wide = [cov[0, 0] for _, cov in push(forward_law(schedule, 99, none, nothing), large)]
    right = [forward_law(schedule, 98 - i, none, nothing)[1][0, 0] for i in range(100)]
    # At the noise end the two variances are nearly one and the same: left out, like the last step, without noise.
    assert max(narrow[50:-1]) < 0.997
    assert min(np.divide(wide[50:-1], right[50:-1])) > 1.003


# One step after the other.


def walk(sampled, denoise_fn, keys, shape=SHAPE):
    """The chain as a plain Python loop: x_t before each step, and each guess of x_start; last, the samples."""
    x = sampler.images_noise(keys, 0, shape)
    memory, xs, guesses = sampled.init_memory(x), [], []
    for i in range(sampled.num_steps):
        xs.append(x)
        x, pred_xstart, memory = sampled.step(denoise_fn, x, memory, jnp.int32(sampled.num_steps - 1 - i), keys)
        guesses.append(pred_xstart)
    return np.array(xs), np.array(guesses), np.array(x)


def curved(x_t, t):
    """A denoiser that is not linear, depends on t and leaves [-1, 1]."""
    return 1.5 * jnp.sin(2.0 * x_t + 0.01 * t.astype(jnp.float32)[:, None, None, None])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_oracle_gets_its_image_back(setting, spacing, prediction):
    """Three steps; the last adds no noise and returns the guess itself. 1e-5: x_start goes through eps or v in float32."""
    x_start = np.array([-0.9, 0.2, 0.7, 1.0])
    sampled = build(setting, shorten(FULL, 3, spacing), prediction)
    _, guesses, x = walk(sampled, oracle_denoiser(FULL, x_start, prediction), some_keys(3))
    np.testing.assert_allclose(x.reshape(3, D), np.tile(x_start, (3, 1)), atol=1e-5)
    np.testing.assert_array_equal(guesses[-1], x)


@pytest.mark.parametrize("clip_denoised", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_one_is_ancestral_with_fixed_small(prediction, clip_denoised):
    """DDIM 2010.02502, section 4.1; the same keys draw the same noise, so the images agree: 1e-4 of the largest number."""
    schedule = shorten(FULL, 10, "quadratic")
    one = build("ancestral-small", schedule, prediction, clip_denoised)
    other = build("ddim-full", schedule, prediction, clip_denoised)
    xs, guesses, x = walk(one, curved, some_keys(3))
    other_xs, other_guesses, other_x = walk(other, curved, some_keys(3))
    for got, want in ((other_xs, xs), (other_guesses, guesses), (other_x, x)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("setting", SETTINGS)
def test_guesses_are_clipped_where_asked(setting):
    """A network that answers 5 or -5 everywhere; the last guess is the sample, exactly."""
    schedule = shorten(FULL, 5)
    signs = np.array([1, -1, 1, -1], np.float32).reshape(SHAPE)

    def too_far(x_t, t):
        return jnp.broadcast_to(jnp.asarray(5 * signs)[None], x_t.shape)

    for clip_denoised, size in ((True, 1.0), (False, 5.0)):
        _, guesses, x = walk(build(setting, schedule, "x_start", clip_denoised), too_far, some_keys(3))
        np.testing.assert_array_equal(guesses, np.broadcast_to(size * signs, guesses.shape))
        np.testing.assert_allclose(x, np.broadcast_to(size * signs, x.shape), rtol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_step_points_along_the_clipped_guess(setting):
    """x_prev must have the law that the *clipped* guess implies: F, g of an oracle of that clipped image; 1e-5."""
    schedule = shorten(FULL, 100)
    far, near = np.array([3.0, -4.0, 0.5, 2.0]), np.array([1.0, -1.0, 0.5, 1.0])
    got = probe(build(setting, schedule, "x_start", clip_denoised=True), oracle_denoiser(FULL, far, "x_start"))
    want = probe(build(setting, schedule, "x_start"), oracle_denoiser(FULL, near, "x_start"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_given_the_timesteps_of_training_in_descending_order(name, spacing):
    """A network that answers with t itself, as its guess of x_start: the kept guesses are the times it saw."""
    schedule = shorten(FULL, 5, spacing)
    sampled = SAMPLERS[name](schedule, prediction="x_start", variance="fixed_small", clip_denoised=False, eta=0.0)

    def clock(x_t, t):
        assert t.dtype == jnp.int32
        assert t.shape == x_t.shape[:1]
        return jnp.broadcast_to(t.astype(jnp.float32)[:, None, None, None], x_t.shape)

    _, guesses, _ = walk(sampled, clock, some_keys(3))
    np.testing.assert_array_equal(guesses[:, 0, 0, 0, 0], spaced_timesteps(1000, 5, spacing)[::-1])
    assert (guesses == guesses[:, :1, :1, :1, :1]).all()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_is_algorithm_2(variance):
    """DDPM's algorithm 2 with equations 7 and 11, in float64 NumPy from betas alone; 1e-4 over 25 steps."""
    betas = np.linspace(0.01, 0.3, 25)
    keys = some_keys(3)
    sampled = SAMPLERS["ancestral"](schedule_from_betas(betas), prediction="eps", variance=variance, clip_denoised=False)

    def network(x, t):
        return 0.5 * x + 0.02 * t

    x = np.asarray(sampler.images_noise(keys, 0, SHAPE), np.float64)
    want = []
    for t in reversed(range(25)):
        want.append(x)
        alpha_bar, alpha_bar_prev = np.prod(1 - betas[: t + 1]), np.prod(1 - betas[:t])
        sigma_squared = betas[t] if variance == "fixed_large" else betas[t] * (1 - alpha_bar_prev) / (1 - alpha_bar)
        z = np.asarray(sampler.images_noise(keys, 25 - t, SHAPE), np.float64) if t > 0 else 0.0
        x = (x - betas[t] / np.sqrt(1 - alpha_bar) * network(x, t)) / np.sqrt(1 - betas[t]) + np.sqrt(sigma_squared) * z
    xs, _, got = walk(sampled, lambda x_t, t: network(x_t, t.astype(jnp.float32)[:, None, None, None]), keys)
    np.testing.assert_allclose(xs, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def test_ddim_is_its_equation_12():
    """In float64 NumPy from cumulative products alone, at the steps 2, 9, 24 of 25 and eta = .7; 1e-4."""
    betas, eta = np.linspace(0.01, 0.3, 25), 0.7
    keys, steps = some_keys(3), [2, 9, 24]
    schedule = respace(schedule_from_betas(betas), steps)
    sampled = SAMPLERS["ddim"](schedule, prediction="eps", variance="fixed_small", clip_denoised=False, eta=eta)

    def network(x, t):
        return 0.5 * x + 0.02 * t

    x = np.asarray(sampler.images_noise(keys, 0, SHAPE), np.float64)
    for i, (t, previous) in enumerate([(24, 9), (9, 2), (2, -1)]):
        alpha_bar, alpha_bar_prev = np.prod(1 - betas[: t + 1]), np.prod(1 - betas[: previous + 1])
        eps = network(x, t)
        sigma = eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        pred_xstart = (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        z = np.asarray(sampler.images_noise(keys, i + 1, SHAPE), np.float64)
        x = np.sqrt(alpha_bar_prev) * pred_xstart + np.sqrt(1 - alpha_bar_prev - sigma**2) * eps + sigma * z
    _, _, got = walk(sampled, lambda x_t, t: network(x_t, t.astype(jnp.float32)[:, None, None, None]), keys)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_an_eta_out_of_range_is_refused(eta):
    """At 1.5 the noise of a late step (beta-tilde near 1 - alpha_bar_prev) would exceed all the noise that x_prev holds."""
    with pytest.raises(ValueError, match="eta"):
        SAMPLERS["ddim"](shorten(FULL, 5), prediction="eps", variance="fixed_small", clip_denoised=True, eta=eta)


# The noise.


def test_noise_is_standard_normal_and_differs_by_key_and_purpose():
    """4 x 4,096 numbers a draw: standard error 1/128 of mean and correlation, 1/90 of variance; five of them allowed."""
    keys, shape = some_keys(4), (64, 64, 1)
    draws = np.array([jax.jit(sampler.images_noise, static_argnums=2)(keys, purpose, shape) for purpose in (0, 1, 2)])
    rows = draws.reshape(12, -1)
    assert abs(rows.mean()) < 5 / 128
    assert abs(rows.var() - 1) < 5 / 90
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 5 / 64  # between single draws of 4,096 numbers


def test_steps_use_noise_of_their_own():
    """A stochastic chain whose network says 0 adds up independent noise: no two steps' increments are the same draw."""
    sampled = build("ancestral-large", shorten(FULL, 5))
    xs, _, x = walk(sampled, lambda x_t, t: jnp.zeros_like(x_t), some_keys(1), (32, 32, 1))
    chain = [*xs, x]
    schedule = sampled.schedule
    noise = [chain[i + 1] - schedule.posterior_mean_coef2[4 - i] * chain[i] for i in range(4)]
    correlation = np.corrcoef([chain[0].ravel()] + [n.ravel() for n in noise]) - np.eye(5)
    assert np.abs(correlation).max() < 5 / 32  # 1,024 numbers: standard error 1/32
    np.testing.assert_allclose([n.std() for n in noise], np.sqrt(schedule.betas[4:0:-1]), rtol=0.11)  # five of 1/45


# The scan.


@pytest.fixture(scope="module", params=["ancestral-large", "ddim-half"])
def chain(request):
    """A sampler of seven steps, keys, and what the plain loop makes of them."""
    sampled = build(request.param, shorten(FULL, 7), "v", clip_denoised=True)
    keys = some_keys(3)
    return sampled, keys, walk(sampled, curved, keys)


def scan(sampled, keys, kept_steps=()):
    return jax.jit(lambda keys: sampler.sample(sampled, curved, keys, SHAPE, kept_steps=kept_steps))(keys)


def test_the_scan_is_the_loop_and_keeps_what_it_is_asked_to(chain):
    """Steps asked for in any order, stacked in that order; 1e-4, since curved amplifies the last bit."""
    sampled, keys, (xs, guesses, x) = chain
    kept_steps = (6, 0, 3)
    state = scan(sampled, keys, kept_steps)
    np.testing.assert_allclose(state.x, x, atol=1e-4)
    assert state.kept_x.shape == state.kept_pred_xstart.shape == (3, 3, *SHAPE)
    np.testing.assert_allclose(state.kept_x, np.swapaxes(xs[list(kept_steps)], 0, 1), atol=1e-4)
    np.testing.assert_allclose(state.kept_pred_xstart, np.swapaxes(guesses[list(kept_steps)], 0, 1), atol=1e-4)
    np.testing.assert_array_equal(state.kept_x[:, 1], sampler.images_noise(keys, 0, SHAPE))


def test_keeping_nothing_takes_no_room(chain):
    sampled, keys, (_, _, x) = chain
    state = scan(sampled, keys)
    assert state.kept_x.shape == state.kept_pred_xstart.shape == (3, 0, *SHAPE)
    np.testing.assert_allclose(state.x, x, atol=1e-4)


def test_stretches_of_a_chain_make_the_whole(chain):
    """Steps 0-2, 3-5 by one compilation with a traced first step, then 6; kept steps lie in different stretches."""
    sampled, keys, _ = chain
    traces = []

    @functools.partial(jax.jit, static_argnames="count")
    def stretch(state, keys, first_step, count):
        traces.append(count)
        return sampler.advance(sampled, curved, state, keys, first_step=first_step, count=count, kept_steps=(1, 4, 6))

    state = jax.jit(lambda keys: sampler.start(sampled, keys, SHAPE, keep=3))(keys)
    for first_step, count in ((0, 3), (3, 3), (6, 1)):
        state = stretch(state, keys, jnp.int32(first_step), count=count)
    assert traces == [3, 1]
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(scan(sampled, keys, (1, 4, 6))), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_an_image_depends_on_its_own_key_alone(chain):
    sampled, keys, _ = chain
    np.testing.assert_allclose(scan(sampled, keys[1:2]).x, scan(sampled, keys).x[1:2], atol=1e-4)
