"""The bound of the difference between ONNX Runtime and JAX: 1e-5, times what the function does to errors of its network."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop.onnx_comparison import TOLERANCE, compare, perturbed
from ddpm_jax.interop.onnx_model import to_onnx
from ddpm_jax.interop.program_inputs import Tensor
from ddpm_jax.runtime.errors import NumericalError

X = Tensor("x", "float32", ("b", 4))
EXAMPLES = [(np.linspace(-1, 1, 4 * b, dtype=np.float32).reshape(b, 4),) for b in (1, 7)]


def multiplied(error=0.0):
    """A step that multiplies the output of a network by 50, and returns the output as well; the network errs by `error`."""

    def function(x, network_error=0.0):
        output = perturbed(jnp.sin(x) + error, network_error)
        return 50 * output, output

    return function


def test_a_model_that_differs_is_refused():
    model = to_onnx(lambda x: 1.001 * x, [X], ["y"])
    message = (
        r"y of the ONNX model of the network differs from JAX by 1\.0e-03, .* up to 1\.0e-05 is expected: export stablehlo"
    )
    with pytest.raises(NumericalError, match=message):
        compare(model, lambda x: x, EXAMPLES, name="network")
    with pytest.raises(NumericalError, match="by nan"):
        compare(model, lambda x: x * jnp.nan, EXAMPLES)


def test_the_bound_is_what_errors_of_the_network_amount_to():
    model = to_onnx(multiplied(0.5 * TOLERANCE), [X], ["y", "output"])
    found = compare(model, multiplied(), EXAMPLES, network_error=TOLERANCE)
    y, output = found["y"], found["output"]
    largest = 50 * np.sin(1)
    assert y.difference * largest == pytest.approx(50 * 0.5 * TOLERANCE, rel=0.05)
    assert y.bound * largest == pytest.approx(50 * TOLERANCE + TOLERANCE * largest, rel=0.1)
    assert output.difference == pytest.approx(0.5 * TOLERANCE, rel=0.05)
    assert output.bound == pytest.approx(2 * TOLERANCE, rel=0.1)
    with pytest.raises(NumericalError, match="of the ONNX model of the model differs from JAX"):
        compare(to_onnx(multiplied(3 * TOLERANCE), [X], ["y", "output"]), multiplied(), EXAMPLES, network_error=TOLERANCE)


def test_the_bound_has_the_rounding_of_the_input():
    """A network that multiplies its input by 1000 knows it to 1000 times its last places."""
    model = to_onnx(lambda x: 1000 * (x - 0.5) + 1e-4, [X], ["y"])
    (found,) = compare(model, lambda x: 1000 * (x - 0.5), EXAMPLES).values()
    assert found.bound == pytest.approx(1e-5 + 2.0**-22 * 1000 / 1500, rel=0.05)
