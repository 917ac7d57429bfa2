"""Invalid arguments raise one-line errors; and the NFE of each sampler."""

import pytest
from exact_denoisers import FULL, SETTINGS, build, make, shorten

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import schedule_from_betas
from ddpm_jax.samplers import SAMPLERS, make_sampler

V = Parameterization("v", "fixed_small", clip_denoised=True)
NO_SIGNAL = schedule_from_betas([0.1, 0.5, 1.0])  # zero terminal SNR


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_out_of_range_is_rejected(eta):
    """At 1.5 the noise of a late step (beta-tilde near 1 - alpha_bar_prev) would exceed the noise variance of x_prev."""
    with pytest.raises(ValueError, match="eta"):
        make("ddim", shorten(FULL, 5), "eps", eta=eta)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddim"])
def test_only_ddim_has_eta(name):
    with pytest.raises(ValueError, match=f"^the sampler {name} has no option 'eta': it has "):
        make_sampler(name, shorten(FULL, 5), V, eta=0.5)


def test_unknown_names_and_options_are_rejected():
    with pytest.raises(ValueError, match=r"^the sampler unipc has no option 'churn': it has order$"):
        make_sampler("unipc", FULL, V, churn=1.0)
    with pytest.raises(ValueError, match=r"^the sampler dpmpp_2m has no option 'order': it has none$"):
        make_sampler("dpmpp_2m", FULL, V, order=3)
    with pytest.raises(ValueError, match=r"^unknown sampler 'plms': choose one of ancestral, ddim, "):
        make_sampler("plms", FULL, V)


@pytest.mark.parametrize("name", SAMPLERS)
def test_eps_prediction_at_zero_terminal_snr_is_rejected(name):
    with pytest.raises(ValueError, match=r"zero terminal SNR") as raised:
        make(name, NO_SIGNAL, "eps")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["heun", "ode"])
def test_infinite_sigma_is_rejected_by_samplers_in_sigma(name):
    with pytest.raises(ValueError, match="infinite") as raised:
        make_sampler(name, NO_SIGNAL, V)
    assert "dpmpp_2m" in str(raised.value)


@pytest.mark.parametrize("order", [0, 4, 2.5])
def test_unsupported_orders_of_unipc_are_rejected(order):
    with pytest.raises(ValueError, match="unipc has the orders 1, 2 and 3"):
        make_sampler("unipc", FULL, V, order=order)


@pytest.mark.parametrize(
    "changes",
    [
        {"churn": -1.0},
        {"churn": float("inf")},
        {"churn": float("nan")},
        {"churn_noise": 0.0},
        {"churn_min": 2.0, "churn_max": 1.0},
        {"churn_min": -1.0},
    ],
)
def test_churn_out_of_range_is_rejected(changes):
    with pytest.raises(ValueError, match="out of heun's range"):
        make_sampler("heun", shorten(FULL, 5), V, trained=FULL, **changes)


def test_churn_without_the_trained_chain_is_rejected():
    with pytest.raises(ValueError, match="needs the trained chain"):
        make_sampler("heun", shorten(FULL, 5), V, churn=10.0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_nfe(setting):
    """One per step, but 2N - 1 for Heun and 4N - 3 for ode."""
    sampled = build(setting, shorten(FULL, 10, "logsnr"))
    assert sampled.nfe == {"heun": 19, "heun-churn": 19, "ode": 37}.get(setting, 10)
    assert build(setting, FULL).nfe == (1999 if SETTINGS[setting][0] in ("heun", "ode") else 1000)
