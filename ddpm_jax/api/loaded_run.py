"""A loaded run: its attributes, the configuration of a call, and the functions compiled so far."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from ddpm_jax import build, choices, config_validation, data_config
from ddpm_jax.api.arguments import Label, check_labels, configure, image_labels, one_label
from ddpm_jax.cli import common
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.user_messages import argument_errors, show_progress_and_log

# Fields of config.sampling that compiled functions take as arguments, or that do not concern them.
_NOT_COMPILED = ("seed", "label", "num_images", "batch_size", "params", "checkpoint_step", "format", "num_intermediates")
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
    ):
        """Use `ddpm_jax.load`."""
        self._config, self._mesh, self._identity = config, mesh, data_identity
        self._compiled: dict[Any, Any] = {}
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
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return build.image_shape(self._config)

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

    def _generate(self, generator: BatchedSampler, case: ConfigDict, labels: np.ndarray | None) -> GeneratedBatch:
        number = case.sampling.num_images
        with distributed.show_progress(number) as report:
            return generator.generate_all(self.params, root_key(case), num_images=number, cond=labels, report=report)

    def _sampling_labels(self, case: ConfigDict, label: Label) -> np.ndarray | None:
        given = check_labels(label, case.sampling.num_images, case)
        return data_config.sampling_labels(case) if given is None else given

    def _labels(self, count: int, label: Label) -> np.ndarray | jax.Array | None:
        """The labels of `denoise`: int32 [count], or None for an unconditional model."""
        if isinstance(label, jax.core.Tracer):
            return jnp.broadcast_to(label, (count,)).astype(jnp.int32)
        with self._call({"label": one_label(label)}, False) as case:
            return image_labels(case, count, check_labels(label, count, case))

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
