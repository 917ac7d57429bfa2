"""A loaded run: its attributes, the configuration of a call, and the functions compiled so far."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from ddpm_jax import build, choices, condition_config, config_validation, data_config
from ddpm_jax.api.arguments import Label, check_images, check_labels, configure, image_labels, one_label
from ddpm_jax.api.results import Denoised, denoised
from ddpm_jax.cli import common, interpolate
from ddpm_jax.data.condition import Condition, batch_conditions
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.pixels import PixelFormat
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.sampling_conditions import ConditionImages, SamplingInputs, sampling_inputs
from ddpm_jax.user_messages import argument_errors, show_progress_and_log

# Fields of config.sampling that compiled functions take as arguments, or that do not concern them.
_NOT_COMPILED = (
    "seed",
    "label",
    "num_images",
    "batch_size",
    "params",
    "checkpoint_step",
    "format",
    "shown_channels",
    "num_intermediates",
    "condition_images",
    "condition_split",
    "condition_samples",
    "condition_noise",
)
_COMPILED_EDIT = ("strength", "jump_length", "resampling", "inversion_iters")


class LoadedRun:
    """The base of `Run`, which has its attributes in its documentation."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        params: Any,
        step: int,
        mesh: Mesh,
        data_identity: dict[str, Any] | None,
        compiled: dict[Any, Any] | None = None,
    ):
        """Use `ddpm_jax.load`. Runs that differ in their parameters only can share `compiled`, their compiled functions."""
        self._config, self._mesh, self._identity = config, mesh, data_identity
        self._compiled: dict[Any, Any] = {} if compiled is None else compiled
        self.config = FrozenConfigDict(config)
        self.workdir, self.params, self.step = workdir, params, step
        self.schedule: NoiseSchedule = build.build_schedule(config)
        self.parameterization: Parameterization = build.build_parameterization(config)
        self.class_names: tuple[str, ...] = tuple((data_identity or {}).get("class_names", ()))

    def __repr__(self) -> str:
        data = self._config.data
        shape = "x".join(map(str, self.image_shape))
        return f"<Run {self.workdir}: step {self.step:,}, {self._config.sampling.params}, {data.name} {shape}>"

    @property
    def pixel_format(self) -> PixelFormat:
        """Type and range of the images: `dtype`, `low` and `high`; `shown(images)` makes pictures of 8 bits of them."""
        return build.pixel_format(self._config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return build.image_shape(self._config)

    def nfe(self, **sampling: Any) -> int:
        """Network evaluations per image of `sample` with these arguments; guidance doubles them.

        Raises:
          ValueError: an argument is invalid; the message names it.
        """
        with self._call(sampling, False) as case:
            return build.build_sampler(case).nfe

    # Shared by the methods of `Run`.

    @contextlib.contextmanager
    def _call(self, arguments: dict[str, Any], progress: bool, sections: Sequence[str] = ("sampling",)) -> Iterator[ConfigDict]:
        """Context of a call: the validated config with its arguments. Errors inside name the arguments."""
        case, names = configure(self._config, arguments, sections)
        with argument_errors(names), show_progress_and_log(progress, names):
            data_config.complete(case, self._identity)
            config_validation.check_config(case)
            yield case

    @contextlib.contextmanager
    def _edit(
        self, images: np.ndarray, label: Label, arguments: dict[str, Any], progress: bool
    ) -> Iterator[tuple[ConfigDict, np.ndarray | None]]:
        """As `_call`, for N images to start from: the config, and their labels int32 [N] or None."""
        if "num_images" in arguments:
            raise InvalidArgumentError("num_images is not an argument here: use samples_per_image")
        with self._call(arguments | {"label": one_label(label)}, progress, ("edit", "sampling")) as case:
            common.check_edit(case)
            yield case, image_labels(case, len(images), check_labels(label, len(images), case))

    def _generate(self, generator: BatchedSampler, case: ConfigDict, inputs: SamplingInputs) -> GeneratedBatch:
        number = case.sampling.num_images
        with distributed.show_progress(number) as report:
            return generator.generate_all(self.params, root_key(case), num_images=number, cond=inputs.cond, report=report)

    @functools.cached_property
    def condition(self) -> Condition | None:
        """The condition images of the model: `name`, `shape` (h, w, C), and `of_images`; None for a model without them."""
        return build.build_condition(self._config)

    def _sampling_inputs(self, case: ConfigDict, label: Label, condition: np.ndarray | None) -> SamplingInputs:
        """The conditions of `sample`."""
        number, samples, given = case.sampling.num_images, case.sampling.condition_samples, None
        labels = check_labels(label, number, case)
        if condition is not None:
            images = self._check_condition(condition)
            if len(images) * samples != number:
                raise InvalidArgumentError(
                    f"condition has {len(images)} images, of {samples} samples each, but num_images is {number}"
                )
            given = ConditionImages(np.repeat(images, samples, axis=0), None, None, "", {})
        inputs = sampling_inputs(case, given=given)
        if labels is None:
            return inputs
        cond = inputs.cond | {"label": labels} if inputs.given else labels
        return inputs._replace(cond=cond, labels=labels)

    def _check_images(self, images: np.ndarray, name: str = "images", *, batched: bool = True) -> np.ndarray:
        """The images of a call, [N, H, W, C] or, if not `batched`, [H, W, C] of the data's type."""
        return check_images(images, self.image_shape, name, batched=batched, pixel_format=self.pixel_format)

    def _check_condition(self, condition: np.ndarray) -> np.ndarray:
        """The condition images of a call: uint8 [N, h, w, C]."""
        if self.condition is None:
            raise InvalidArgumentError("condition is given, but the model has no condition images: leave it out")
        return check_images(condition, self.condition.shape, "condition")

    def _cond_of(self, case: ConfigDict, images: np.ndarray, labels: np.ndarray | None, condition: np.ndarray | None) -> Any:
        """The condition of real images, [N, H, W, C], to evaluate the network at."""
        if condition is not None:
            condition = self._check_condition(condition)
            if len(condition) != len(images):
                raise InvalidArgumentError(f"condition has {len(condition)} images, but there are {len(images)} images")
        elif self.condition is not None:
            if self.condition.of_images is None:
                raise InvalidArgumentError("condition is missing: give the condition image of each image")
            condition = batch_conditions(self.condition, {"image": images})
        return condition_config.network_cond(case, self.condition, condition, labels)

    def _denoise_cond(self, count: int, label: Label, condition: np.ndarray | None) -> Any:
        """The condition of `denoise`: labels int32 [count], None, or those of condition images."""
        labels: Any
        if isinstance(label, jax.core.Tracer):
            labels = jnp.broadcast_to(label, (count,)).astype(jnp.int32)
        else:
            with self._call({"label": one_label(label)}, False) as case:
                labels = image_labels(case, count, check_labels(label, count, case))
        if self.condition is None and condition is None:
            return labels
        if condition is None or len(condition) != count:
            raise InvalidArgumentError(f"condition is missing or not of {count} images: this model needs the condition images")
        return condition_config.network_cond(self._config, self.condition, self._check_condition(condition), labels)

    def _invert(self, case: ConfigDict, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        inverter = self._cached("invert", case, len(images), interpolate.build_inverter)
        return interpolate.invert(inverter, self.params, root_key(case), images, labels)

    @functools.cached_property
    def _denoise(self) -> Callable[..., Denoised]:
        make_denoise_fn, means = build.build_denoise_fn(self._config), self.parameterization

        def denoise(params: Any, x_t: jax.Array, t: jax.Array, cond: Any) -> Denoised:
            level, x_t = self.schedule.level(t), x_t.astype(jnp.float32)
            return denoised(means, means.evaluate(make_denoise_fn(params, cond), x_t, level), x_t, level)

        return jax.jit(denoise)

    def _cached(self, kind: Any, case: ConfigDict, num_images: int, make: Callable[[ConfigDict, Mesh, int], Any]) -> Any:
        """make(case, mesh, num_images), once for all calls that differ in `_NOT_COMPILED` fields only."""
        sampling = choices.used_fields(case, "sampling")
        fields = {name: value for name, value in sampling.items() if name not in _NOT_COMPILED}
        fields["batch_size"] = min(sampling["batch_size"], num_images)
        fields |= {name: case.edit[name] for name in _COMPILED_EDIT}
        return self._remember((kind, repr(sorted(fields.items()))), lambda: make(case, self._mesh, num_images))

    def _remember(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def root_key(config: ConfigDict) -> jax.Array:
    """The root key of generated images, as in the modes of the command line."""
    return rng.purpose_key(config.sampling.seed, "sample")
