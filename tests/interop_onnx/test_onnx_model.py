"""JAX functions as ONNX models: what they compute in ONNX Runtime, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from ddpm_jax.interop import onnx_model
from ddpm_jax.interop.onnx_comparison import compare
from ddpm_jax.interop.onnx_model import to_onnx
from ddpm_jax.interop.program_inputs import Tensor
from ddpm_jax.runtime.errors import InvalidArgumentError

X = Tensor("x", "float32", ("b", 4))
N = Tensor("n", "int32", ())
EXAMPLES = [(np.linspace(-1, 1, 4 * b, dtype=np.float32).reshape(b, 4),) for b in (1, 2, 7)]


def by_platform(x):
    """Twice x on CPUs; other platforms get something else."""
    return jax.lax.platform_dependent(x, cpu=lambda x: 2 * x, default=lambda x: 3 * x)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: jnp.sin(x) @ np.ones((4, 3), np.float32), id="parameters inside"),
        pytest.param(lambda x: (x, x + 1), id="an argument that is a result"),
        pytest.param(lambda x: by_platform(x), id="by platform"),
        pytest.param(lambda x: jax.lax.cond(x[0, 0] > -2, by_platform, jnp.cos, x), id="by platform in a branch"),
        pytest.param(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: by_platform(x) + i, x), id="by platform in a loop"),
        pytest.param(lambda x: jnp.repeat(x, 2, axis=0)[: x.shape[0]], id="the number of images in a shape"),
        pytest.param(lambda x: jax.nn.softmax(jax.jit(jax.nn.swish)(x)), id="nested functions"),
    ],
)
def test_models_compute_what_jax_computes_for_any_number_of_images(function):
    outputs = ["y", "z"] if isinstance(function(EXAMPLES[0][0]), tuple) else ["y"]
    model = to_onnx(function, [X], outputs)
    assert [tensor.name for tensor in model.outputs] == outputs
    assert model.outputs[0].shape[0] == "b"
    assert all(each.difference < 1e-6 for each in compare(model, function, EXAMPLES).values())


def test_loops_of_a_varying_number_of_turns():
    def function(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: x + i, x)

    model = to_onnx(function, [X, N], ["y"])
    examples = [(EXAMPLES[1][0], np.array(n, np.int32)) for n in (0, 5)]
    assert compare(model, function, examples)["y"].difference == 0
    assert set(onnx_model.run(model, dict(zip(("x", "n"), examples[1], strict=True)))) == {"y"}


def test_branches_share_their_parameters_and_loading_is_silent(tmp_path, capfd):
    """As in a guided network: each branch of a condition evaluates it. ONNX Runtime warns of constants that nothing uses."""
    weights = [np.random.default_rng(i).standard_normal((4096, 4), np.float32) / 64 for i in range(2)]

    def network(x):
        return jnp.repeat(jnp.tanh(x @ weights[0].T) @ weights[0], 2, axis=1)[:, ::2]

    def function(x, n):
        inner = jax.lax.cond(n > 3, lambda x: network(x) @ weights[1].T @ weights[1], network, x)
        return jax.lax.cond(n > 0, lambda x: network(network(x)), lambda x: 2 * network(x), x) + inner

    model = to_onnx(function, [X, N], ["y"])
    examples = [(EXAMPLES[1][0], np.array(n, np.int32)) for n in (-1, 1, 4)]
    assert compare(model, function, examples)["y"].difference < 1e-5
    assert len(model.data) < 5 * weights[0].nbytes  # of both, and transposed
    (tmp_path / "a.onnx").write_bytes(model.data)
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    capfd.readouterr()
    onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


def test_what_onnx_cannot_express_is_refused_in_one_line():
    def function(x):
        return jax.pure_callback(np.sort, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(InvalidArgumentError, match=r"the network cannot be converted to ONNX: .*callback") as error:
        to_onnx(function, [X], ["y"], name="network")
    assert "\n" not in str(error.value)
