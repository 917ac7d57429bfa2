"""FLOPs of a step against a count by hand, and the peak of devices by their names."""

import types

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.runtime.device_flops import PEAK_FLOPS, peak_flops, step_flops


def test_flops_of_matrix_products():
    a, b = jnp.zeros((64, 32)), jnp.zeros((32, 16))
    assert step_flops(jax.jit(jnp.matmul), a, b) == 2 * 64 * 32 * 16

    def loop(a, b):
        return jax.lax.scan(lambda total, _: (total + a @ b, None), jnp.zeros((64, 16)), length=4)[0]

    one = step_flops(jax.jit(loop), a, b)
    assert one == pytest.approx(2 * 64 * 32 * 16, rel=0.05)  # the body once
    assert step_flops(jax.jit(loop), a, b, repeats=4) == 4 * one


def test_a_function_whose_flops_are_unknown():
    class Unknown:
        def lower(self, *_):
            return self

        def cost_analysis(self):
            return None

    assert step_flops(Unknown()) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5p", "TPU v5"),
        ("TPU v6 lite", "TPU v6"),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peaks_by_device_kind(kind, name):
    device = types.SimpleNamespace(platform="tpu" if "TPU" in kind else "gpu", device_kind=kind)
    assert peak_flops(device) == (None if name is None else PEAK_FLOPS[name])


def test_a_cpu_has_no_peak():
    assert peak_flops(jax.devices("cpu")[0]) is None
