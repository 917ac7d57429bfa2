"""JAX functions as ONNX models: traced by JAX, converted by jax2onnx, run by ONNX Runtime.

jax2onnx replaces functions of JAX and Flax while it traces, and its convolution of Flax ignores `conv_general_dilated`. The
function is therefore traced here first, and jax2onnx gets only JAX's primitives. `_simplify` resolves on the way what no
other program needs: choices of the platform, nested functions and what does not depend on the arguments.
"""

import contextlib
import functools
import importlib
import itertools
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import export

from ddpm_jax.interop import onnx_initializers
from ddpm_jax.interop.program_inputs import BATCH, Tensor
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, UnavailableError, error_line, os_errors

OPSETS = range(17, 24)  # tried versions of ONNX's operators
OPSET = 20  # of ONNX 1.15: ONNX Runtime 1.17 and later run it
MAX_BYTES = 2**31 - 1  # of a model with its parameters inside, by protobuf
MAX_FOLDED = 1 << 20  # elements of a constant that is computed at export
DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32"}  # ONNX Runtime's name -> NumPy's
_NESTED = {  # primitive -> the parameter that is its function
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


class OnnxModel(NamedTuple):
    """A model with its parameters.

    Attributes:
      data: the content of an .onnx file.
      inputs: in the order of the function's arguments.
      outputs: in the order of its results.
    """

    data: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def to_onnx(
    function: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[str], *, name: str = "model", opset: int = OPSET
) -> OnnxModel:
    """Convert a function.

    Args:
      function: arrays -> an array or a tuple of arrays; parameters that it holds are written into the model.
      inputs: its arguments.
      outputs: names of its results.
      name: of the model, also in the errors.
      opset: version of ONNX's operators, one of OPSETS.

    Raises:
      UnavailableError: jax2onnx is not installed.
      InvalidArgumentError: the function cannot be converted, for example since it calls Python, or is too large.
    """
    jax2onnx = require("jax2onnx")
    (batch,) = export.symbolic_shape(BATCH)

    def spec(tensor: Tensor) -> jax.ShapeDtypeStruct:
        shape = tuple(batch if size == BATCH else size for size in tensor.shape)
        return jax.ShapeDtypeStruct(shape, np.dtype(tensor.dtype))

    specs = [spec(tensor) for tensor in inputs]
    try:
        with on_cpu():
            closed, found = jax.make_jaxpr(_flat(function), return_shape=True)(*specs)
            closed = jax.make_jaxpr(functools.partial(_distinct, closed.jaxpr, closed.consts))(*specs)
            with _quiet():
                proto = jax2onnx.to_onnx(
                    jax.extend.core.jaxpr_as_fun(closed),
                    specs,
                    model_name=name,
                    opset=opset,
                    input_names=[tensor.name for tensor in inputs],
                    output_names=list(outputs),
                )
        onnx_initializers.tidy(proto)
        data = proto.SerializeToString()
    except Exception as error:  # of the user's own network or sampler, of JAX or of jax2onnx
        reason = error_line(error, most=200, kind=True)
        raise InvalidArgumentError(f"the {name} cannot be converted to ONNX: {reason}") from error
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(f"the {name} has {len(data) / 1e9:.1f} GB: an ONNX file holds up to 2.1 GB")
    results = (
        Tensor(output, str(leaf.dtype), tuple(size if isinstance(size, int) else BATCH for size in leaf.shape))
        for output, leaf in zip(outputs, found, strict=True)
    )
    return OnnxModel(data, tuple(inputs), tuple(results))


def read_model(file: str | os.PathLike) -> OnnxModel:
    """A model written by --format=onnx.

    Raises:
      UnavailableError: onnxruntime is not installed.
      FileAccessError, InvalidDataError: the file cannot be read, or is not an ONNX model.
    """
    with os_errors(f"cannot read {file}"):
        data = pathlib.Path(file).read_bytes()
    try:
        running = session(OnnxModel(data, (), ()))
    except UnavailableError:
        raise
    except Exception as error:  # onnxruntime has no common base of its exceptions
        raise InvalidDataError(f"{file} is not an ONNX model: {error_line(error)}") from error

    def tensor(found: Any) -> Tensor:
        return Tensor(found.name, DTYPES.get(found.type, found.type), tuple(found.shape))

    return OnnxModel(data, tuple(map(tensor, running.get_inputs())), tuple(map(tensor, running.get_outputs())))


def run(model: OnnxModel, arguments: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a model by ONNX Runtime on the CPU.

    Args:
      model: from `to_onnx`.
      arguments: input -> array.

    Raises:
      UnavailableError: onnxruntime is not installed.
    """
    names = [output.name for output in model.outputs]
    return dict(zip(names, session(model).run(names, dict(arguments)), strict=True))


def session(model: OnnxModel) -> Any:
    """An `onnxruntime.InferenceSession` of the model on the CPU. Raises UnavailableError if onnxruntime is not installed."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])


def require(module: str) -> Any:
    """Import an optional package. Raises UnavailableError, which names the extra, if it is not installed."""
    try:
        with _quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(
            f"{module} cannot be imported ({error_line(error)}): pip install jax2onnx onnx onnxruntime (the extra onnx)"
        ) from error


def _flat(function: Callable[..., Any]) -> Callable[..., tuple]:
    """The function with its results as a tuple."""
    return lambda *arguments: tuple(jax.tree.leaves(function(*arguments)))


def _simplify(jaxpr: Any, consts: Sequence[Any], *arguments: Any) -> list[Any]:
    """Evaluate a jaxpr: nested functions in place, constants at once, and of platform-dependent code the CPU's."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax.extend.core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands, name, params = [read(variable) for variable in equation.invars], equation.primitive.name, equation.params
        if name == "platform_index":
            results: Any = [np.int32(next(i for i, names in enumerate(params["platforms"]) if names is None or "cpu" in names))]
        elif name == "cond" and not isinstance(operands[0], jax.core.Tracer):
            branch = params["branches"][int(operands[0])]
            results = _simplify(branch.jaxpr, branch.consts, *operands[1:])
        elif name == "cond":
            branches = [functools.partial(_simplify, branch.jaxpr, branch.consts) for branch in params["branches"]]
            results = jax.lax.switch(operands[0], branches, *operands[1:])
        elif name == "split":  # whose sizes jax2onnx takes for numbers
            axis, ends = params["axis"], list(itertools.accumulate(params["sizes"], initial=0))
            results = [jax.lax.slice_in_dim(operands[0], start, end, axis=axis) for start, end in itertools.pairwise(ends)]
        elif name in _NESTED:
            nested = params[_NESTED[name]]
            results = _simplify(getattr(nested, "jaxpr", nested), getattr(nested, "consts", ()), *operands)
        else:
            params = {key: _simplified(value) for key, value in params.items()}
            with jax.ensure_compile_time_eval() if _is_constant(equation, operands) else contextlib.nullcontext():
                results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values |= zip(equation.outvars, results, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _distinct(jaxpr: Any, consts: Sequence[Any], *arguments: Any) -> list[Any]:
    """As `_simplify`, with copies of arguments that are also results, since in ONNX they would have two names."""
    results = _simplify(jaxpr, consts, *arguments)
    return [jnp.copy(x) if any(x is argument for argument in arguments) else x for x in results]


def _simplified(value: Any) -> Any:
    """The body of a loop, simplified; other parameters of a primitive as they are."""
    if not isinstance(value, jax.extend.core.ClosedJaxpr):
        return value
    specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in value.jaxpr.invars]
    return jax.make_jaxpr(functools.partial(_simplify, value.jaxpr, value.consts))(*specs)


def _is_constant(equation: Any, operands: Sequence[Any]) -> bool:
    """Whether an equation depends on neither the arguments nor the number of images, and its results are small."""
    sizes = jax.tree.leaves([[variable.aval.shape for variable in equation.outvars], list(equation.params.values())])
    if equation.effects or any(isinstance(x, jax.core.Tracer) for x in operands) or any(map(export.is_symbolic_dim, sizes)):
        return False
    return all(variable.aval.size <= MAX_FOLDED for variable in equation.outvars)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """JAX in float32 on the CPU: accelerators round the operands of matmuls."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages of jax2onnx, which are about examples that need other packages and about types it leaves out."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
