"""ONNX models in ONNX Runtime, compared with the functions of JAX that they were made from, within a derived bound.

Both compute in float32, in different orders, so the output of a network differs by its rounding errors, about 1e-6. A step of
a sampler contains the network, and what it computes of the output multiplies these errors: with the prediction eps,

    x̂_0 = x_t / α - (σ / α) ε̂                                           equation (9) of `diffusion/parameterization.py`

has σ / α times the errors of ε̂, and those of x_t / α: σ / α is 34 in the first of 50 steps over a cosine chain of 1,000, and
20,000 at its last timestep. JAX's own errors against float64 are as large, so that no other order of operations is nearer to
JAX. An output y of f(x, ε̂) may therefore differ by

    τ max(1, max |y|)  +  max |f(x (1 ± 2^-22), ε̂ ± τ max(1, max |ε̂|)) - y|,        τ = TOLERANCE

with random signs: by τ where nothing is multiplied, and elsewhere by what such a change of the network's output causes. The
change of x, two units in the last place, is what rounding inside of an ill-conditioned network amounts to (near t = 0, where
it measures the little noise in x).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop.onnx_model import OnnxModel, on_cpu, session
from ddpm_jax.runtime.errors import NumericalError

TOLERANCE = 1e-5  # τ
LAST_PLACES = 2.0**-22  # relative


class Difference(NamedTuple):
    """Between an output in ONNX Runtime and in JAX; relative to the largest value of the output or to 1 if that is larger.

    Attributes:
      difference: the largest.
      bound: of the example with the largest difference.
    """

    difference: float
    bound: float


def compare(
    model: OnnxModel,
    function: Callable[..., Any],
    examples: Sequence[Sequence[np.ndarray]],
    *,
    name: str = "model",
    network_error: float | None = None,
) -> dict[str, Difference]:
    """Compare a model in ONNX Runtime with its function in JAX, both on the CPU.

    Args:
      model: from `onnx_model.to_onnx`.
      function: the function that was converted.
      examples: for each call the arguments, which may have any number of images.
      name: of the model, in the error.
      network_error: τ of the network inside, which the function takes by this name and gives to `perturbed`; None if there
        is none.

    Returns:
      Output -> its difference.

    Raises:
      NumericalError: an output exceeds the bound.
      UnavailableError: onnxruntime is not installed.
    """
    running, names, outputs = session(model), [each.name for each in model.inputs], [each.name for each in model.outputs]
    worst = dict.fromkeys(outputs, Difference(0.0, TOLERANCE))

    def call(error: jax.Array, *arguments: jax.Array) -> list[jax.Array]:
        given = {} if network_error is None else {"network_error": error}
        return jax.tree.leaves(function(*arguments, **given))

    with on_cpu():
        compiled = jax.jit(call)
        for arguments in examples:
            exact = jax.device_get(compiled(np.float32(0), *arguments))
            changed = jax.device_get(compiled(np.float32(network_error or 0), *_neighbors(arguments)))
            found = running.run(outputs, dict(zip(names, arguments, strict=True)))
            for output, ours, near, theirs in zip(outputs, exact, changed, found, strict=True):
                scale = max(1.0, np.abs(ours).max())
                difference, bound = float(_distance(theirs, ours) / scale), float(TOLERANCE + _distance(near, ours) / scale)
                if not difference <= bound:  # NaN included
                    raise NumericalError(
                        f"{output} of the ONNX model of the {name} differs from JAX by {difference:.1e}, relative to its "
                        f"largest value; up to {bound:.1e} is expected: export stablehlo instead"
                    )
                worst[output] = max(worst[output], Difference(difference, bound))
    return worst


def perturbed(output: jax.Array, network_error: float | jax.Array) -> jax.Array:
    """The output of a network with errors of random signs, of the size `network_error` times its largest value or 1."""
    if isinstance(network_error, float) and network_error == 0:
        return output
    size = network_error * jnp.maximum(1.0, jnp.abs(output).max())
    return output + size * jax.random.rademacher(jax.random.key(0), output.shape, output.dtype)


def _neighbors(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arguments, those of float32 changed in the last places."""
    random = np.random.default_rng(0)
    signs = (random.choice(np.array([-LAST_PLACES, LAST_PLACES], np.float32), np.shape(x)) for x in arguments)
    return [x * (1 + sign) if x.dtype == np.float32 else x for x, sign in zip(arguments, signs, strict=True)]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(a.astype(np.float64) - b).max()
