"""Spacings against published lists, and their ends at every length."""

import numpy as np
import pytest

from ddpm_jax.diffusion import schedules, spacings


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("leading", [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]),
        ("linspace", [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]),
        ("trailing", [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]),
        ("quadratic", [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]),  # int(s) of DDIM's linspace(0, sqrt(800), 10)**2
        ("karras", [0, 18, 102, 301, 511, 663, 775, 864, 937, 999]),  # as diffusers 0.42.1: tests/golden/samplers.npz
        ("logsnr", [0, 5, 22, 73, 202, 410, 603, 757, 886, 999]),
    ],
)
def test_ten_of_a_thousand(spacing, expected):
    timesteps = spacings.spaced_timesteps(1000, 10, spacing, schedule=schedules.make_schedule("linear", 1000))
    assert timesteps.tolist() == expected
    assert timesteps.dtype == np.int32


@pytest.mark.parametrize("num_steps", [2, 5, 20, 29])
def test_quadratic_matches_ddim_where_it_has_no_duplicates(num_steps):
    published = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), num_steps) ** 2]
    assert spacings.spaced_timesteps(1000, num_steps, "quadratic").tolist() == published


def test_quadratic_moves_only_repeated_timesteps():
    published = np.array([int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), 100) ** 2])
    timesteps = spacings.spaced_timesteps(1000, 100, "quadratic")
    overtaken = int(np.argmax(published[1:] > np.arange(1, 100))) + 1
    np.testing.assert_array_equal(timesteps[overtaken:], published[overtaken:])
    np.testing.assert_array_equal(timesteps[:overtaken], np.arange(overtaken))


@pytest.mark.parametrize("spacing", spacings.SPACINGS)
@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 7, 64, 250])
def test_every_length_is_ascending_and_in_range(spacing, num_timesteps):
    schedule = schedules.make_schedule("cosine", num_timesteps)
    for num_steps in range(1, num_timesteps + 1):
        timesteps = spacings.spaced_timesteps(num_timesteps, num_steps, spacing, schedule=schedule)
        assert timesteps.shape == (num_steps,)
        assert timesteps[0] >= 0
        assert timesteps[-1] < num_timesteps
        assert (np.diff(timesteps) > 0).all()
    assert timesteps.tolist() == list(range(num_timesteps))  # the loop's last: every timestep


@pytest.mark.parametrize("num_steps", [1, 3, 10, 300, 999])
def test_spacings_have_the_documented_ends(num_steps):
    linear = schedules.make_schedule("linear", 1000)
    ends = {
        spacing: spacings.spaced_timesteps(1000, num_steps, spacing, schedule=linear)[[0, -1]].tolist()
        for spacing in spacings.SPACINGS
    }
    assert ends["leading"][0] == 0
    assert ends["linspace"] == [0 if num_steps > 1 else 999, 999]
    assert ends["trailing"][1] == 999
    for spacing in spacings.SPACINGS_BY_NOISE:
        assert ends[spacing] == ends["linspace"]


@pytest.mark.parametrize(("spacing", "scale"), [("karras", lambda sigma: sigma ** (1 / 7)), ("logsnr", np.log)])
@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_noise_spacings_take_equal_steps_up_to_rounding(name, spacing, scale):
    """Each target level is at most half a timestep from the one taken."""
    schedule = schedules.make_schedule(name, 4000)
    levels = scale(schedule.sqrt_recipm1_alphas_cumprod)
    timesteps = spacings.spaced_timesteps(4000, 12, spacing, schedule=schedule)
    jump = int(schedule.sqrt_recipm1_alphas_cumprod[-1] > spacings.MAX_SIGMA)  # the step from T-1 is separate
    aims = np.linspace(levels[0], levels[timesteps[-1 - jump]], 12 - jump)
    gaps = np.maximum(np.gradient(levels)[timesteps], 0)[: 12 - jump]
    assert (np.abs(levels[timesteps][: 12 - jump] - aims) <= 0.6 * gaps + 1e-9).all()


@pytest.mark.parametrize("spacing", spacings.SPACINGS_BY_NOISE)
def test_no_steps_above_max_sigma(spacing):
    """Cosine ends at sigma = 20,291, zero terminal SNR at infinity: one step goes from T-1 to below MAX_SIGMA."""
    for schedule in (
        schedules.make_schedule("cosine", 1000),
        schedules.schedule_from_betas(np.append(np.linspace(1e-4, 0.02, 999), 1.0)),
    ):
        for num_steps in (2, 3, 10):
            timesteps = spacings.spaced_timesteps(1000, num_steps, spacing, schedule=schedule)
            assert timesteps[-1] == 999
            assert schedule.sqrt_recipm1_alphas_cumprod[timesteps[-2]] <= spacings.MAX_SIGMA
            assert num_steps == 2 or timesteps[0] == 0


@pytest.mark.parametrize("spacing", spacings.SPACINGS_BY_NOISE)
def test_noise_spacings_need_the_schedule(spacing):
    for schedule in (None, schedules.make_schedule("cosine", 9)):
        with pytest.raises(ValueError, match="needs the schedule of all 10 steps"):
            spacings.spaced_timesteps(10, 5, spacing, schedule=schedule)


@pytest.mark.parametrize("num_steps", [0, -1, 11])
@pytest.mark.parametrize("spacing", spacings.SPACINGS)
def test_invalid_number_of_steps_is_rejected(spacing, num_steps):
    with pytest.raises(ValueError, match=r"set num_steps to 1\.\.10"):
        spacings.spaced_timesteps(10, num_steps, spacing)


def test_unknown_spacing_is_rejected():
    with pytest.raises(ValueError, match="leading, linspace, trailing, quadratic, karras, logsnr"):
        spacings.spaced_timesteps(10, 5, "cubic")
