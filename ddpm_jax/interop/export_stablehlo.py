"""The network and the sampler as programs: StableHLO with the parameters inside, that only JAX is needed to run.

`jax.export` lowers a function for several platforms at once and keeps the number of images symbolic. Its format is stable: JAX
runs what was exported up to six months ago (docs.jax.dev/en/latest/export/export.html).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.interop.program_inputs import BATCH, condition_inputs
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.samplers import sampler as chain
from ddpm_jax.samplers.sampler import Sampler

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DENOISER, SAMPLER, FACTS, README = "denoiser.bin", "sampler.bin", "programs.json", "README.md"
MAX_BYTES = 2**31 - 1  # of a serialized program, whose format has 32-bit sizes

_README = """# Programs exported by ddpm_jax

`{sampler}` generates images and `{denoiser}` is the network alone. Both contain the parameters ({params}, step {step:,}) and
run on {platforms} with JAX, without ddpm_jax. `{facts}` describes their arguments, the noise schedule and the classes.

```python
import pathlib
import jax, jax.numpy as jnp
from jax import export

sampler = export.deserialize(bytearray(pathlib.Path("{sampler}").read_bytes()))
n = {num_images}
{setup}root = jax.random.fold_in(jax.random.key({seed}), {purpose})  # the images of --mode=sample with seed {seed}
keys = jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(n))
noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), {shape}))(keys)
images = jax.jit(sampler.call)(noise, jax.random.key_data(keys){condition})  # uint8 {batch_shape}

denoiser = export.deserialize(bytearray(pathlib.Path("{denoiser}").read_bytes()))
output = jax.jit(denoiser.call)(noise, jnp.full(n, {last_t}){condition})  # float32 {output_shape}: {meaning}
```

JAX of a later version runs these files up to six months after {jax} was released; export them again after that.
"""


class Programs(NamedTuple):
    """Serialized programs.

    Attributes:
      denoiser: (x_t float32 [b, H, W, C], t int32 [b], the network's condition) -> float32 [b, H, W, C or 2C].
      sampler: (noise float32 [b, H, W, C], keys uint32 [b, 2], the condition) -> images uint8 [b, H, W, C].
    """

    denoiser: bytes
    sampler: bytes


def export_programs(
    denoise_fn: Callable[[Any, Any], DenoiseFn],
    guided_denoise_fn: Callable[[Any, Any], DenoiseFn],
    sampler: Sampler,
    params: Any,
    *,
    image_shape: Sequence[int],
    platforms: Sequence[str],
    cond: Any = None,
) -> Programs:
    """Export the network and the sampler with their parameters.

    Args:
      denoise_fn: (params, cond) -> the network, of (x_t, t).
      guided_denoise_fn: the same, as the sampler uses it.
      sampler: built by `SAMPLERS[name]`.
      params: pytree of NumPy arrays.
      image_shape: (H, W, C).
      platforms: some of PLATFORMS.
      cond: a condition of one image, for its shapes (`condition_config.example_cond`); None without.

    Raises:
      InvalidArgumentError: the network or sampler cannot be exported, for example since it calls Python or is too large.
    """
    inputs = condition_inputs(cond)

    def denoise(x_t: jax.Array, t: jax.Array, *condition: jax.Array) -> jax.Array:
        return denoise_fn(params, inputs.cond(condition))(x_t, t)

    def generate(noise: jax.Array, key_data: jax.Array, *condition: jax.Array) -> jax.Array:
        state, keys = chain.init_state_from(sampler, noise), jax.random.wrap_key_data(key_data)
        network = guided_denoise_fn(params, inputs.cond(condition))
        return pixels.to_uint8(chain.run_steps(sampler, network, state, keys, first_step=0, count=sampler.num_steps).x)

    (batch,) = export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    integers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    condition = [jax.ShapeDtypeStruct((batch, *shape[1:]), dtype) for _, dtype, shape in inputs.tensors]

    def serialize(function: Callable, *arguments: jax.ShapeDtypeStruct) -> bytes:
        try:
            return bytes(export.export(jax.jit(function), platforms=tuple(platforms))(*arguments, *condition).serialize())
        except Exception as error:  # of the user's own network or sampler, or of JAX's lowering
            reason = " ".join(str(error).split())[:200]
            raise InvalidArgumentError(f"the {function.__name__} program cannot be exported: {reason}") from error

    return Programs(
        serialize(denoise, images, integers),
        serialize(generate, images, jax.ShapeDtypeStruct((batch, 2), jnp.uint32)),
    )


def described(sampler: Sampler, schedule: NoiseSchedule, *, image_shape: Sequence[int], cond: Any = None) -> dict[str, Any]:
    """The two programs in programs.json. `schedule` is the training chain; for the others see `export_programs`."""
    images = {"dtype": "float32", "shape": ["b", *image_shape]}
    condition = [tensor.described() for tensor in condition_inputs(cond).tensors]
    t = {"name": "t", "dtype": "int32", "shape": ["b"], "range": [0, schedule.num_timesteps - 1]}
    keys = {"name": "keys", "dtype": "uint32", "shape": ["b", 2]}
    return {
        DENOISER: {"arguments": [{"name": "x_t"} | images, t, *condition]},
        SAMPLER: {
            "arguments": [{"name": "noise"} | images, keys, *condition],
            "result": {"dtype": "uint8", "shape": ["b", *image_shape]},
            "network_evaluations": sampler.nfe,
        },
    }


def facts(programs: Mapping[str, Any], alphas_cumprod: np.ndarray, **about: Any) -> str:
    """The content of programs.json.

    Args:
      programs: file -> its description.
      alphas_cumprod: of the training chain, float64 [T].
      about: other fields, JSON-compatible.
    """
    content = {**programs, "jax": jax.__version__, **about, "alphas_cumprod": alphas_cumprod.tolist()}
    return json.dumps(content, indent=1) + "\n"


def readme(**values: Any) -> str:
    """The content of README.md; its code runs in the folder."""
    return _README.format(denoiser=DENOISER, sampler=SAMPLER, facts=FACTS, jax=f"JAX {jax.__version__}", **values)
