"""Against diffusers 0.42.1: the same chains with a fixed network, and the intended differences.

Made by tests/golden/samplers.py, in float64; ours is float32. Tolerance 1e-5 of the largest value of the samples.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import FULL, make, oracle_denoiser, run_loop, shorten, some_keys

from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.schedules import respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.samplers import ddim, multistep, sampler

FILE = pathlib.Path(__file__).parent.parent / "golden" / "samplers.npz"
CHAINS = {"trailing": list(range(99, 1000, 100)), "uneven": [0, 7, 31, 120, 366, 683, 999]}
CASES = {  # case in the file -> sampler, options, chain
    "ddim": ("ddim", {}, "trailing"),
    "ddim_clipped": ("ddim", {"clip_denoised": True}, "trailing"),
    "ddim_half": ("ddim", {"eta": 0.5}, "trailing"),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, "trailing"),
}
for chain in CHAINS:
    CASES[f"dpmpp_2m_{chain}"] = ("dpmpp_2m", {}, chain)
    for order in (1, 2, 3):
        CASES[f"unipc_{order}_{chain}"] = ("unipc", {"order": order}, chain)


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as arrays:
        return dict(arrays)


@pytest.fixture
def draw(golden, monkeypatch):
    """(sampler) -> its samples [3, 4], from the file's x_T, network and noise."""
    noise = jnp.asarray(np.concatenate([golden["x_T"][None], golden["noise"]])).reshape(-1, 3, 2, 2, 1)
    for module in (sampler, ddim, multistep):
        monkeypatch.setattr(module, "per_image_noise", lambda keys, purpose, shape: noise[purpose])
    network_in, network_time, network_out = (jnp.asarray(golden[f"network_{name}"]) for name in ("in", "time", "out"))

    def network(x_t, t):
        inner = jnp.dot(x_t.reshape(-1, 4), network_in, precision="highest")
        inner = inner + network_time[None] * (t.astype(jnp.float32) / 1000)[:, None]
        return jnp.dot(jnp.tanh(inner), network_out, precision="highest").reshape(x_t.shape)

    return lambda sampled: np.asarray(run_loop(sampled, network, some_keys(3), (2, 2, 1))[2]).reshape(3, 4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("case", CASES)
def test_samples_match_diffusers(golden, draw, case, prediction):
    name, changes, chain = CASES[case]
    got = draw(make(name, respace(FULL, CHAINS[chain]), prediction, **changes))
    want = golden[f"{case}-{prediction}"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_ddim_steps_to_the_next_timestep(golden, draw):
    """Their DDIM steps to t - floor(T / n), which for 7 of 1000 is not the next timestep: some noise remains in the image."""
    timesteps = golden["ddim_of_seven_timesteps"][::-1]
    assert timesteps.tolist() == spaced_timesteps(1000, 7, "trailing").tolist()  # the network's timesteps are equal
    assert (timesteps[1:] - 1000 // 7 != timesteps[:-1]).any()
    ours = draw(make("ddim", respace(FULL, timesteps), "v"))
    assert np.abs(ours - golden["ddim_of_seven"]).max() > 1e-3
    # Their last step is to t=0, which has noise of 0.01. Ours returns x̂_0; 1e-5.
    assert timesteps[0] - 1000 // 7 == 0
    image = np.array([-0.9, 0.2, 0.7, 1.0])
    sampled = make("ddim", shorten(FULL, 7), "v")
    _, _, x = run_loop(sampled, oracle_denoiser(FULL, image, "v"), some_keys(3))
    np.testing.assert_allclose(x.reshape(3, 4), np.tile(image, (3, 1)), atol=1e-5)


def test_spacings_have_their_documented_ends(golden):
    """Their solvers space leading and linspace over n + 1 steps and omit t=0. Ours follow Lin et al., table 2: linspace has
    both ends, leading the image end. To start at T-1 as in training, use trailing.
    """
    theirs = {spacing: golden[f"dpm_{spacing}_timesteps"][::-1].tolist() for spacing in ("leading", "linspace")}
    assert theirs == {"leading": list(range(90, 901, 90)), "linspace": [100, 200, 300, 400, 500, 599, 699, 799, 899, 999]}
    assert spaced_timesteps(1000, 10, "leading")[[0, -1]].tolist() == [0, 900]
    assert spaced_timesteps(1000, 10, "linspace")[[0, -1]].tolist() == [0, 999]
    assert spaced_timesteps(1000, 10, "trailing")[-1] == 999


def test_noise_levels_are_those_of_the_timesteps(golden):
    """With Karras's spacing their solver uses unrounded levels but passes the rounded t to the network, whose noise level is
    off by up to several percent. Ours uses the level of t.
    """
    timesteps = spaced_timesteps(1000, 10, "karras", schedule=FULL)
    np.testing.assert_array_equal(timesteps, golden["dpm_karras_timesteps"][::-1])
    ours = respace(FULL, timesteps).sqrt_recipm1_alphas_cumprod
    np.testing.assert_allclose(ours, FULL.sqrt_recipm1_alphas_cumprod[timesteps], rtol=1e-12)
    theirs = golden["dpm_karras_sigmas"][-2::-1]
    off = np.abs(theirs / ours - 1)
    assert 0.001 < off.max() < 0.1
    np.testing.assert_allclose(theirs[[0, -1]], ours[[0, -1]], rtol=1e-3)
