"""The network and one step of the sampler as ONNX models, for programs without JAX and for browsers.

A sampler is a loop of steps, and each step a function of x_t, the step's index, noise and what a multistep method carries from
the step before. The program that runs the models has the loop and draws the noise.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.diffusion.pixels import PixelFormat
from ddpm_jax.interop import onnx_comparison, onnx_model
from ddpm_jax.interop.onnx_comparison import TOLERANCE, Difference, perturbed
from ddpm_jax.interop.onnx_model import OnnxModel
from ddpm_jax.interop.program_inputs import BATCH, ConditionCode, Tensor, condition_inputs
from ddpm_jax.runtime.errors import InvalidArgumentError, error_line
from ddpm_jax.samplers.sampler import GivenNoise, Sampler

DENOISER, STEP, FACTS, README = "denoiser.onnx", "sampler_step.onnx", "programs.json", "README.md"
CHECKED_SIZES = (1, 3)  # numbers of images with which the models are compared with JAX

_README = """# ONNX models exported by ddpm_jax

`{denoiser}` is the network and `{step_file}` one step of the sampler with the network inside. Both contain the parameters
({params}, step {step:,}), compute in float32 and take any number of images. `{facts}` describes their inputs and outputs,
the noise schedule and the classes.

```python
import numpy as np, onnxruntime

n, random = {num_images}, np.random.default_rng(0)
x = random.standard_normal((n, {shape}), dtype=np.float32)
{setup}step = onnxruntime.InferenceSession("{step_file}")
inputs = {{{inputs}}}
for index in reversed(range({num_steps})):
    inputs |= {{"x_t": x, "index": np.array(index, np.int32)}}
{noise_line}    x, pred_xstart{carry_targets} = step.run({outputs}, inputs)
{carry_line}{pixels}  # [n, {shape}]

denoiser = onnxruntime.InferenceSession("{denoiser}")
inputs = {{"x_t": x, "t": np.zeros(n, np.int32){condition}}}
(output,) = denoiser.run(["output"], inputs)  # [n, {output_shape}]: {meaning}
```
"""


class StepModel(NamedTuple):
    """One step of a sampler.

    Attributes:
      model: (x_t, index int32 [], and of these what the step needs: noise, the network's condition, carry_0 ...) -> x_prev,
        pred_xstart, and next_carry_0 ... for each carry. The first step ignores the carry that it gets.
      function: the same in JAX. With `network_error`, the output of the network has errors (`onnx_comparison.perturbed`).
      carry: the inputs of the model that are the last outputs of the step before.
    """

    model: OnnxModel
    function: Callable[..., Any]
    carry: tuple[Tensor, ...]

    @property
    def takes_noise(self) -> bool:
        """Whether the step needs noise."""
        return any(tensor.name == "noise" for tensor in self.model.inputs)


def images(name: str, image_shape: Sequence[int]) -> Tensor:
    """The input `name`, float32 [b, H, W, C]."""
    return Tensor(name, "float32", (BATCH, *image_shape))


def network_model(
    make_denoise_fn: Callable[[Any, Any], DenoiseFn],
    params: Any,
    *,
    image_shape: Sequence[int],
    cond: Any = None,
    opset: int = onnx_model.OPSET,
) -> OnnxModel:
    """The network: (x_t float32 [b, H, W, C], t int32 [b], and its condition, if it has one) -> output float32.

    Args:
      make_denoise_fn: (params, cond) -> the network, of (x_t, t), in float32; such as `build.build_denoise_fn`.
      params: pytree of NumPy arrays.
      image_shape: (H, W, C).
      cond: a condition of one image, for its shapes (`condition_config.example_cond`); None without.
      opset: version of ONNX's operators, one of `onnx_model.OPSETS`.

    Raises:
      UnavailableError: jax2onnx is not installed.
      InvalidArgumentError: the network cannot be converted, or is too large.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > onnx_model.MAX_BYTES:
        raise InvalidArgumentError(f"the parameters have {size / 1e9:.1f} GB: an ONNX file holds up to 2.1 GB")
    inputs = [images("x_t", image_shape), Tensor("t", "int32", (BATCH,)), *condition_inputs(cond).tensors]
    function = network_function(make_denoise_fn, params, cond)
    return onnx_model.to_onnx(function, inputs, ["output"], name="network", opset=opset)


def network_function(make_denoise_fn: Callable[[Any, Any], DenoiseFn], params: Any, cond: Any = None) -> Callable[..., Any]:
    """The function of `network_model`, in JAX."""
    inputs = condition_inputs(cond)

    def denoise(x_t: jax.Array, t: jax.Array, *condition: jax.Array) -> jax.Array:
        return make_denoise_fn(params, inputs.cond(condition))(x_t, t)

    return denoise


def step_model(
    make_denoise_fn: Callable[[Any, Any], DenoiseFn],
    sampler: Sampler,
    params: Any,
    *,
    image_shape: Sequence[int],
    cond: Any = None,
    opset: int = onnx_model.OPSET,
) -> StepModel:
    """One step of a sampler. Arguments as for `network_model`; the network may be guided.

    Raises:
      UnavailableError: jax2onnx is not installed.
      InvalidArgumentError: the step cannot be converted, draws noise in another way than by one `per_image_noise`, or carries
        something else than arrays [b, ...].
    """
    carry, tree = jax.tree.flatten(jax.eval_shape(sampler.init_carry, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)))
    kept = [i for i, leaf in enumerate(carry) if leaf.size]  # ONNX Runtime has no use for empty arrays
    if any(not carry[i].shape or carry[i].shape[0] != 1 for i in kept):
        raise InvalidArgumentError("the sampler cannot be exported to ONNX: its carry is not one array per image")
    carried = [Tensor(f"carry_{i}", str(carry[i].dtype), (BATCH, *carry[i].shape[1:])) for i in kept]
    condition = condition_inputs(cond)
    inputs = [images("x_t", image_shape), Tensor("index", "int32", ()), images("noise", image_shape), *condition.tensors]
    draws = 0

    def step(x_t: jax.Array, index: jax.Array, noise: jax.Array, *others: jax.Array, network_error: Any = 0.0) -> tuple:
        nonlocal draws
        given = others[len(condition.tensors) :]
        network = make_denoise_fn(params, condition.cond(others[: len(condition.tensors)]))
        leaves: list[jax.Array] = jax.tree.leaves(sampler.init_carry(x_t))
        first = index == sampler.num_steps - 1
        for i, leaf in zip(kept, given, strict=True):
            leaves[i] = jnp.where(first, leaves[i], cast(jax.Array, leaf))
        keys: Any = GivenNoise(noise)

        def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return perturbed(network(x_t, t), network_error)

        x_prev, pred_xstart, found = sampler.step(denoise, x_t, jax.tree.unflatten(tree, leaves), index, keys)
        draws = keys.draws
        found = jax.tree.leaves(found)
        return x_prev, pred_xstart, *(found[i] for i in kept)

    specs = [jax.ShapeDtypeStruct([1 if size == BATCH else size for size in a.shape], a.dtype) for a in (*inputs, *carried)]
    try:
        jax.eval_shape(step, *specs)
    except Exception as error:
        reason = error_line(error, most=200, kind=True)
        raise InvalidArgumentError(
            f"the sampler cannot be exported to ONNX: a step must take its noise from `per_image_noise` ({reason})"
        ) from error
    if draws > 1:
        raise InvalidArgumentError(f"the sampler cannot be exported to ONNX: a step draws noise {draws} times instead of once")
    function: Callable[..., Any] = step
    if not draws:
        del inputs[2]

        def function(x_t: jax.Array, index: jax.Array, *others: jax.Array, network_error: Any = 0.0) -> tuple:
            return step(x_t, index, x_t, *others, network_error=network_error)

    names = [tensor.name for tensor in carried]
    outputs = ["x_prev", "pred_xstart", *(f"next_{name}" for name in names)]
    model = onnx_model.to_onnx(function, [*inputs, *carried], outputs, name="sampler's step", opset=opset)
    return StepModel(model, function, tuple(carried))


def example_arguments(model: OnnxModel, size: int, *, num_timesteps: int, num_labels: int, index: int = 0) -> list[np.ndarray]:
    """Random arguments for `size` images: standard normal, but t over the chain, labels and the index as given."""
    random = np.random.default_rng(size)
    special = {
        "t": np.linspace(0, num_timesteps - 1, size).astype(np.int32),
        "index": np.array(index, np.int32),
        "labels": np.arange(size, dtype=np.int32) % max(1, num_labels),
        "noise_level": np.linspace(0.5, 0, size, dtype=np.float32),
    }

    def draw(tensor: Tensor) -> np.ndarray:
        shape = [size if isinstance(dimension, str) else dimension for dimension in tensor.shape]
        return special[tensor.name] if tensor.name in special else random.standard_normal(shape).astype(tensor.dtype)

    return [draw(tensor) for tensor in model.inputs]


def check_models(
    network: OnnxModel,
    network_fn: Callable[..., Any],
    step: StepModel,
    sampler: Sampler,
    *,
    num_timesteps: int,
    num_labels: int,
    guidance_scale: float = 1.0,
) -> dict[str, dict[str, Difference]]:
    """Compare both models with JAX in ONNX Runtime, for two numbers of images, and at the first, a middle and the last step.

    Args:
      network: from `network_model`.
      network_fn: from `network_function`.
      step: from `step_model`.
      sampler: that of the step.
      num_timesteps: T of the training chain.
      num_labels: labels that the network knows.
      guidance_scale: w; out(∅) + w (out(c) - out(∅)) has up to w + abs(1 - w) times the errors of the network.

    Returns:
      File -> output -> the difference.

    Raises:
      NumericalError: one exceeds its bound (`onnx_comparison`).
      UnavailableError: onnxruntime is not installed.
    """
    given = {"num_timesteps": num_timesteps, "num_labels": num_labels}
    examples = [example_arguments(network, size, **given) for size in CHECKED_SIZES]
    found = {DENOISER: onnx_comparison.compare(network, network_fn, examples, name="network")}
    last = sampler.num_steps - 1
    examples = [
        example_arguments(step.model, size, index=index, **given)
        for index in sorted({0, last // 2, last})
        for size in CHECKED_SIZES
    ]
    error = TOLERANCE * (guidance_scale + abs(1 - guidance_scale))
    found[STEP] = onnx_comparison.compare(step.model, step.function, examples, name="sampler's step", network_error=error)
    return found


def described(network: OnnxModel, step: StepModel, sampler: Sampler) -> dict[str, Any]:
    """The two programs in programs.json."""

    def tensors(model: OnnxModel) -> dict[str, Any]:
        return {key: [tensor.described() for tensor in getattr(model, key)] for key in ("inputs", "outputs")}

    loop = {
        "indices": [sampler.num_steps - 1, 0],
        "carry": {tensor.name: f"next_{tensor.name}" for tensor in step.carry},
        "network_evaluations": sampler.nfe,
    }
    return {DENOISER: tensors(network), STEP: tensors(step.model) | loop}


def readme(
    network: OnnxModel,
    one_step: StepModel,
    sampler: Sampler,
    image_shape: Sequence[int],
    *,
    condition: ConditionCode,
    pixel_format: PixelFormat,
    **values: Any,
) -> str:
    """The content of README.md; its code runs in the folder."""
    low, high = pixel_format.low, pixel_format.high
    pixels = f"np.clip(x, -1, 1) * {(high - low) / 2:g} + {(high + low) / 2:g}"
    if pixel_format.num_levels:
        pixels = f"np.floor({pixels} + 0.5).astype(np.{pixel_format.dtype})"
    shape, names = ", ".join(map(str, image_shape)), [tensor.name for tensor in one_step.carry]
    given = [f'"{name}": {expression}' for name, expression in condition.arguments.items()]
    zeros = [
        f'"{name}": np.zeros((n, {", ".join(map(str, sizes))}), np.{dtype})' for name, dtype, (_, *sizes) in one_step.carry
    ]
    updates = ", ".join(f'"{name}": next_{name}' for name in names)
    noise = '    inputs["noise"] = random.standard_normal(x.shape, dtype=np.float32)\n'
    return _README.format(
        denoiser=DENOISER,
        step_file=STEP,
        facts=FACTS,
        shape=shape,
        num_steps=sampler.num_steps,
        inputs=", ".join([*given, *zeros]),
        outputs=json.dumps([tensor.name for tensor in one_step.model.outputs]),
        noise_line=noise if one_step.takes_noise else "",
        carry_targets="".join(f", next_{name}" for name in names),
        carry_line=f"    inputs |= {{{updates}}}\n" if names else "",
        pixels=f"images = {pixels}",
        setup=condition.setup,
        condition="".join(f", {entry}" for entry in given),
        output_shape=", ".join(map(str, network.outputs[0].shape[1:])),
        **values,
    )
