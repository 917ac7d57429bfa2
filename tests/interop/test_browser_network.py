"""What a page's network may lose by rounding its parameters."""

import numpy as np
import pytest

from ddpm_jax.interop import browser_network
from ddpm_jax.runtime.errors import NumericalError

EXAMPLES = [[np.float32([[2.0, -30.0]])], [np.float32([[0.0, 0.1]])]]


def test_parameters_are_rounded_to_24_bits():
    params = {"kernel": np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)}
    rounded = browser_network.rounded(params)["kernel"]
    assert (rounded.view(np.uint32) & 0x7F == 0).all()
    relative = np.abs(rounded / params["kernel"] - 1)
    assert 2**-18 < relative.max() <= 2**-17


def test_rounding_may_change_an_output_by_a_ten_thousandth():
    browser_network._check_rounding(lambda x: x, lambda x: x * 1.00009, EXAMPLES)
    with pytest.raises(NumericalError, match=r"24 bits.* differs by 1\.1e-04"):
        browser_network._check_rounding(lambda x: x, lambda x: x * 1.00011, EXAMPLES)
