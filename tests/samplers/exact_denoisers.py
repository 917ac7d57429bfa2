"""Denoisers in closed form, all settings of all samplers, and the distribution of a sampler's samples.

For data N(mean, cov) the optimal x̂_0 is linear in x_t, so each step of a sampler is an affine map of x_t and the
sampler's carry, together the state y, and of its noise z:

    y_next = F y + g + N z,   z ~ N(0, I)

It maps a Gaussian to a Gaussian. F, g and N are measured by probing `step`; the distribution of the samples follows
without sampling, and is compared to that of the data.

Most of it deliberately runs op by op: all samplers, predictions and spacings share the same few compiled operations.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.samplers import make_sampler, sampler

SETTINGS = {  # name -> sampler, its options
    "ancestral-small": ("ancestral", {"variance": "fixed_small"}),
    "ancestral-large": ("ancestral", {"variance": "fixed_large"}),
    "ddim": ("ddim", {"eta": 0.0}),
    "ddim-half": ("ddim", {"eta": 0.5}),
    "ddim-full": ("ddim", {"eta": 1.0}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "unipc-1": ("unipc", {"order": 1}),
    "unipc": ("unipc", {}),
    "unipc-3": ("unipc", {"order": 3}),
    "heun": ("heun", {}),
    "heun-churn": ("heun", {"churn": 10.0, "churn_min": 0.05, "churn_max": 50.0}),
    "ode": ("ode", {}),
}
STOCHASTIC = ("ancestral-small", "ancestral-large", "ddim-half", "ddim-full", "dpmpp_2m_sde", "heun-churn")
SHAPE, D = (2, 2, 1), 4
MEAN = np.array([0.5, -0.3, 0.1, 0.8])
MIX = np.array([[0.3, 0.0, 0.1, 0.2], [0.1, 0.5, 0.0, 0.3], [0.0, 0.4, 0.9, 0.1], [0.2, 0.0, 0.3, 1.2]])
COV = MIX @ MIX.T  # standard deviations .23 to 1.36
FULL = make_schedule("linear", 1000)


def build(setting, schedule, prediction="x_start", clip_denoised=False, trained=FULL):
    name, options = SETTINGS[setting]
    return make(name, schedule, prediction, clip_denoised=clip_denoised, **({"trained": trained} | options))


def make(name, schedule, prediction="x_start", variance="fixed_small", *, clip_denoised=False, **options):
    return make_sampler(name, schedule, Parameterization(prediction, variance, clip_denoised), **options)


def shorten(schedule, num_steps, spacing="trailing"):
    steps = schedule.num_timesteps
    return respace(schedule, spaced_timesteps(steps, num_steps, spacing, schedule=schedule))


def some_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def curved(x_t, t):
    """A denoiser that is nonlinear, depends on t and exceeds [-1, 1]."""
    return 1.5 * jnp.sin(2.0 * x_t + 0.01 * t.astype(jnp.float32)[:, None, None, None])


def run_loop(sampled, denoise_fn, keys, shape=SHAPE):
    """The chain as a Python loop: x_t before each step, and each pred_xstart; last, the samples."""
    x = sampler.per_image_noise(keys, 0, shape)
    carry, xs, pred_xstarts = sampled.init_carry(x), [], []

    def step(x, carry, index):
        return sampled.step(denoise_fn, x, carry, index, keys)

    if sampled.extra_nfe:  # an inner loop would be recompiled in each step
        step = jax.jit(step)
    for i in range(sampled.num_steps):
        xs.append(x)
        x, pred_xstart, carry = step(x, carry, jnp.int32(sampled.num_steps - 1 - i))
        pred_xstarts.append(pred_xstart)
    return np.array(xs), np.array(pred_xstarts), np.array(x)


# Denoisers.


def output_tables(schedule, x_matrix, x_offset, prediction):
    """x̂_0 = x_matrix[t] x_t + x_offset[t], expressed as output of a network with this prediction. float64."""
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
    """denoise_fn in the precision of x_t, with t in the training chain of `schedule`."""
    matrix, offset = output_tables(schedule, x_matrix, x_offset, prediction)

    def denoise_fn(x_t, t):
        rows = jnp.asarray(matrix, x_t.dtype)[t], x_t.reshape(-1, D)
        return (jnp.einsum("bij,bj->bi", *rows, precision="highest") + jnp.asarray(offset, x_t.dtype)[t]).reshape(x_t.shape)

    return denoise_fn


def gaussian_denoiser(schedule, mean, cov, prediction):
    """E[x_0 | x_t] = m + sqrt(ab) C (ab C + (1 - ab) I)^-1 (x_t - sqrt(ab) m): the exact network for N(m, C)."""
    signal = np.sqrt(schedule.alphas_cumprod)[:, None, None]
    spread = schedule.sqrt_one_minus_alphas_cumprod[:, None, None]
    gain = signal * cov @ np.linalg.inv(signal**2 * cov + spread**2 * np.eye(D))
    return affine_denoiser(schedule, gain, mean - signal[..., 0] * (gain @ mean), prediction)


def oracle_denoiser(schedule, x_start, prediction):
    """The network that knows the image."""
    steps = schedule.num_timesteps
    return affine_denoiser(schedule, np.zeros((steps, D, D)), np.tile(x_start, (steps, 1)), prediction)


# Distributions.


def flat(tree):
    """[B, n]: x and the carry, one row per image."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


def unflat(rows, like):
    """The inverse: rows [B, n] as a state like `like`, of any batch size."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
    parts = [part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(jnp.split(rows, ends, axis=1), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def probe(sampled, denoise_fn, width=170):
    """The initial state, [n, D] times x_T, and F [K, n, n], g [K, n] and N [K, n, D] of every step. float64."""
    with jax.enable_x64(True):
        units = jnp.eye(D).reshape(-1, *SHAPE)
        like = (units, sampled.init_carry(units))
        size = flat(like).shape[1]
        other = np.linspace(-1.0, 1.0, size)
        rows = np.concatenate([np.zeros((1, size)), np.eye(size), np.zeros((D, size)), other[None]])
        # Zero and all units share one z; D more zeros and the last row get one each.
        draws = np.concatenate([np.ones(size + 1), np.arange(2, D + 3)]).astype(np.uint32)
        keys = jax.random.wrap_key_data(np.stack([np.zeros_like(draws), draws], axis=1))
        x, carry = unflat(jnp.asarray(rows), like)

        def one(i):
            x_prev, _, carry_next = sampled.step(denoise_fn, x, carry, jnp.maximum(sampled.num_steps - 1 - i, 0), keys)
            return flat((x_prev, carry_next)), sampler.per_image_noise(keys, i + 1, SHAPE).reshape(-1, D)

        # A fixed number at once, so that each operation is compiled once. Steps past the end are dropped.
        chunks = [jax.vmap(one)(jnp.arange(width) + first) for first in range(0, sampled.num_steps, width)]
        out, z = (np.concatenate(parts)[: sampled.num_steps] for parts in zip(*chunks, strict=True))
        start = np.asarray(flat(like)).T
    matrix = np.swapaxes(out[:, 1 : size + 1] - out[:, :1], 1, 2)
    effect, cause = (a[:, size + 1 : -1] - a[:, :1] for a in (out, z))
    noise = np.swapaxes(np.linalg.solve(cause, effect), 1, 2)
    offset = out[:, 0] - np.einsum("kij,kj->ki", noise, z[:, 0])
    affine = np.einsum("kij,j->ki", matrix, other) + offset + np.einsum("kij,kj->ki", noise, z[:, -1])
    np.testing.assert_allclose(out[:, -1], affine, atol=1e-6 * np.abs(affine).max())
    return start, matrix, offset, noise


def forward_law(schedule, index, mean, cov):
    """Mean and covariance of x_t for data N(mean, cov); index -1 is the data."""
    if index < 0:
        return mean, cov
    alpha_bar, spread = schedule.alphas_cumprod[index], schedule.sqrt_one_minus_alphas_cumprod[index]
    return np.sqrt(alpha_bar) * mean, alpha_bar * cov + spread**2 * np.eye(D)


def push(law, probed):
    """The distribution of x after each step, from that of x_T."""
    start, *steps = probed
    mean, cov = start @ law[0], start @ law[1] @ start.T
    for matrix, offset, noise in zip(*steps, strict=True):
        mean, cov = matrix @ mean + offset, matrix @ cov @ matrix.T + noise @ noise.T
        yield mean[:D], cov[:D, :D]


def distance(law, other):
    return max(np.abs(a - b).max() for a, b in zip(law, other, strict=True))
