"""What the page does, without the page: settings of its controls -> calls of `Run`, with pictures as they are generated."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import data_config
from ddpm_jax.api.run import Run
from ddpm_jax.app import checks, pictures, python_call
from ddpm_jax.app.controls import EACH_CLASS, NO_CLASS, Controls
from ddpm_jax.app.start_images import MISSING, ConditionImages, StartImages
from ddpm_jax.app.view import Settings, View, count_text, seconds_text, steps_text
from ddpm_jax.cli import common
from ddpm_jax.cli.inpaint import NAMED_MASKS
from ddpm_jax.configs import from_workdir  # type: ignore[attr-defined]  # its folder is configs/
from ddpm_jax.runtime import workdir
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError
from ddpm_jax.samplers.watch import Stage, watch
from ddpm_jax.sampling_conditions import read_conditions

MAX_RUNS = 4  # parameters in memory
MAX_COMPILED = 32  # compiled functions in memory
STAGES = 25  # pictures of a chain while it runs

Emit = Callable[[View], None]


class Newest(dict):
    """A dict of the `MAX_COMPILED` items that were added last."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Add an item; the oldest one goes if there are too many."""
        while key not in self and len(self) >= MAX_COMPILED:
            del self[next(iter(self))]
        super().__setitem__(key, value)


class Model:
    """A run with the parameters that its checkpoints hold.

    Attributes:
      run: with the parameters and the checkpoint that the page starts with.
      controls: of the page.
      images: to start from.
      conditions: condition images; None for a model without.
    """

    def __init__(self, config: ConfigDict, folder: pathlib.Path, mesh: Mesh):
        """Restores the parameters of config.sampling.params.

        Args:
          config: resolved; its sampling section has the initial values of the controls.
          folder: workdir.
          mesh: devices.

        Raises:
          ExpectedError: as `ddpm_jax.load`.
        """
        self._config, self._folder, self._mesh = config, folder, mesh
        self._identity = workdir.read_data_identity(folder)
        self._saved = from_workdir.get_config(str(folder))
        data_config.complete(self._saved, self._identity)
        self._base = config.copy_and_resolve_references()
        self._base.sampling.label = -1  # the control of the class decides
        self._runs: dict[tuple[str, int | str], Run] = {}
        self._compiled = Newest()  # of all runs, which differ in their parameters only
        self.run = self._run_of(config.sampling.params, config.sampling.checkpoint_step)
        self.controls = Controls(config, self.run.class_names, self.run.step)
        self.images = StartImages(config, self.run, self.controls.classes)
        condition = self.run.condition
        self.conditions = ConditionImages(config, self.run, self.controls.classes, condition) if condition else None

    @property
    def title(self) -> str:
        """The run, in a line."""
        height, width, channels = self.run.image_shape
        return f"{self._folder.name}: {self._config.data.name}, {height}x{width}x{channels}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints, which change while the run is trained."""
        with CheckpointManager(workdir.checkpoint_folder(self._folder), max_to_keep=1, read_only=True) as checkpoints:
            return checkpoints.steps()

    # The tabs.

    def generate(self, settings: Settings, num_images: int, emit: Emit, condition: np.ndarray | None = None) -> View:
        """Images of the model, from a condition image [h, w, C] or, without one, from those of the data set.

        Raises:
          ValueError, RuntimeError: as `Run.sample`; and what `emit` raises.
        """
        self.controls.check(settings, num_images=num_images)
        run, arguments, start = self._run_of(settings.params, settings.step), self._arguments(settings), time.monotonic()
        given, lines = self._given(condition, num_images)
        with watch(self._show_stages(run, emit, start), STAGES):
            samples = run.sample(num_images, **arguments, **given)
        shown = pictures.grid(run.pixel_format.shown(samples.images))
        beside = shown if run.condition is None else self._show_conditions(run, condition, num_images)
        evaluations = run.nfe(**arguments)
        twice = " x 2 of guidance" if settings.guidance_scale not in (0, 1) else ""
        status = f"{count_text(num_images)} · {evaluations:,} network evaluations each{twice} · {seconds_text(start)}"
        if samples.labels is not None and settings.label == EACH_CLASS:
            status += " · classes, row by row: " + ", ".join(self._class_name(label) for label in samples.labels.tolist())
        more = () if condition is None else (f"condition=condition, condition_samples={num_images}",)
        return View(shown, beside, status, self._python(run, "sample", (num_images, *more), arguments, lines))

    def compare(
        self,
        settings: Settings,
        samplers: Sequence[str],
        nfe: int,
        num_images: int,
        emit: Emit,
        condition: np.ndarray | None = None,
    ) -> View:
        """Images of several samplers from the same noise, with at most `nfe` network evaluations each."""
        self.controls.check(settings, nfe=nfe, compared_images=num_images)
        if not samplers or not isinstance(samplers, list | tuple):
            raise InvalidArgumentError("no sampler is chosen: choose one or more")
        samplers = [checks.choice(sampler, "sampler", self.controls.choices["sampler"]) for sampler in samplers]
        run, given = self._run_of(settings.params, settings.step), self._given(condition, num_images)[0]
        rows: list[np.ndarray] = []
        names: list[str] = []
        table: list[list[str]] = []
        for sampler in dict.fromkeys(samplers):
            case = dataclasses.replace(settings, sampler=sampler)
            begun = time.monotonic()
            try:
                arguments, evaluations = self._with_nfe(run, self._arguments(case), nfe)

                def show(stage: Stage, sampler: str = sampler, done: Sequence[np.ndarray] = tuple(rows)) -> None:
                    row = pictures.show(run.pixel_format, stage.x_t)
                    emit(
                        View(pictures.rows([*done, row], [*names, sampler]), None, f"{sampler}: {steps_text(stage)}", "", table)
                    )

                with watch(show, STAGES):
                    images = run.sample(num_images, **arguments, **given).images
            except ExpectedError as error:
                table.append([sampler, "-", "-", str(error)])
                emit(View(pictures.rows(rows, names) if rows else None, None, f"{sampler}: {error}", "", table))
                continue
            rows.append(run.pixel_format.shown(images))
            names.append(sampler)
            table.append([sampler, f"{arguments['num_steps']:,}", f"{evaluations:,}", seconds_text(begun)])
            emit(View(pictures.rows(rows, names), None, f"{sampler}: done", "", table))
        status = f"at most {nfe:,} network evaluations per image, from the same noise (seed {settings.seed})"
        return View(pictures.rows(rows, names) if rows else None, None, status, "", table)

    def inpaint(
        self,
        settings: Settings,
        image: np.ndarray | None,
        mask: np.ndarray | str,
        samples_per_image: int,
        resampling: int,
        emit: Emit,
    ) -> View:
        """Samples of the masked pixels of an image [H, W, C]; the mask is a name or bool [H, W]."""
        extra = {"samples_per_image": samples_per_image, "resampling": resampling}
        if isinstance(mask, str):
            checks.choice(mask, "mask", NAMED_MASKS)
        return self._edit("inpaint", settings, image, (mask,), extra, emit)

    def image_to_image(
        self, settings: Settings, image: np.ndarray | None, strength: float, samples_per_image: int, emit: Emit
    ) -> View:
        """Variants of an image [H, W, C]."""
        extra = {"samples_per_image": samples_per_image, "strength": strength}
        return self._edit("image_to_image", settings, image, (), extra, emit)

    def interpolate(
        self, settings: Settings, ends: Sequence[np.ndarray | int | None], num_frames: int, iters: int, emit: Emit
    ) -> View:
        """Images between two, which are [H, W, C], or seeds of images that are generated first.

        With each class in turn, generated ones are of the first two classes.
        """
        self.controls.check(settings, num_frames=num_frames, inversion_iters=iters)
        for end in ends:
            if isinstance(end, int):
                self.controls.check(dataclasses.replace(settings, seed=end))
        run, start = self._run_of(settings.params, settings.step), time.monotonic()
        if isinstance(ends[0], int) and self.controls.classes and settings.label == EACH_CLASS:
            labels: list[int | None] = [0, 1 % len(self.controls.classes)]
        else:
            labels = [self._edit_label(settings)] * 2
        label = labels if None not in labels else None
        arguments: dict[str, Any] = {"label": label, "num_steps": settings.num_steps, "spacing": settings.spacing}
        with watch(self._show_stages(run, emit, start), STAGES):
            images: list[np.ndarray] = []
            lines: list[str] = []
            plain = dataclasses.replace(settings, sampler="ddim", eta=0.0, guidance_scale=1.0)
            for name, end, own in zip("ab", ends, labels, strict=True):
                if isinstance(end, int):
                    given = self._arguments(plain) | {"seed": end} | ({"label": own} if own is not None else {})
                    end = run.sample(1, **given).images[0]
                    lines.append(f"{name} = {self._call('sample', (1,), given, '.images[0]')}")
                else:
                    lines.append(self._unknown(name, self.run.image_shape))
                images.append(self._require(end))
            frames = run.interpolate(images[0], images[1], num_frames=num_frames, inversion_iters=iters, **arguments).images
        shown = pictures.grid(run.pixel_format.shown(np.stack([images[0], *frames, images[1]])))
        status = f"the first image, {num_frames} frames from its reconstruction to that of the last, and the last"
        status += f"{self._no_class_text(label)} · {seconds_text(start)}"
        arguments |= {"num_frames": num_frames, "inversion_iters": iters}
        return View(shown, None, status, self._python(run, "interpolate", ("a", "b"), arguments, lines))

    # Shared by the tabs.

    def _edit(
        self, method: str, settings: Settings, image: np.ndarray | None, more: tuple, extra: dict[str, Any], emit: Emit
    ) -> View:
        self.controls.check(settings, **extra)
        run, start = self._run_of(settings.params, settings.step), time.monotonic()
        arguments = self._arguments(settings) | {"label": self._edit_label(settings)} | extra
        image = self._require(image)
        with watch(self._show_stages(run, emit, start), STAGES):
            images = getattr(run, method)(image[None], *more, **arguments).images[0]
        shown = pictures.grid(run.pixel_format.shown(np.concatenate([image[None], images])))
        words = tuple("mask" if isinstance(value, np.ndarray) else repr(value) for value in more)
        status = f"the image, and {count_text(len(images))}{self._no_class_text(arguments['label'])} · {seconds_text(start)}"
        lines = [self._unknown("images", (1, *image.shape))]
        lines += [self._unknown("mask", mask.shape, "bool") for mask in more if isinstance(mask, np.ndarray)]
        return View(shown, None, status, self._python(run, method, ("images", *words), arguments, lines))

    def _run_of(self, params: str, step: int | str) -> Run:
        """The run with parameters of a checkpoint; of the latest for step -1.

        In memory are those that were used last, and those of the start, which the page offers also after a training run
        has deleted their checkpoint.
        """
        if (params, step) in self._runs:
            self._runs[params, step] = self._runs.pop((params, step))
            return self._runs[params, step]
        if len(self._runs) >= MAX_RUNS:
            del self._runs[next(key for key, run in self._runs.items() if run is not self.run)]
        config = self._config_of(params, step)
        restored, found = common.restore_params(config, self._folder, self._mesh)
        config.lock()
        run = Run(config, self._folder, restored, found, self._mesh, self._identity, self._compiled)
        self._runs[params, found] = run
        return run

    def _config_of(self, params: str, step: int | str) -> ConfigDict:
        config = self._base.copy_and_resolve_references()
        config.sampling.params, config.sampling.checkpoint_step = params, step
        return config

    def _given(self, condition: np.ndarray | None, num_images: int) -> tuple[dict[str, Any], list[str]]:
        """The arguments of `Run.sample` for one condition image of all images, or for none, and the line for the image."""
        if self.conditions is None:
            return {}, []
        if condition is None:
            self.conditions.require_data()
            return {}, []
        line = f"condition = ...  # uint8 {[1, *condition.shape]}"
        return {"condition": condition[None], "condition_samples": num_images}, [line]

    def _show_conditions(self, run: Run, condition: np.ndarray | None, num_images: int) -> np.ndarray | None:
        """A picture of the condition images, if they are pictures."""
        if run.condition is None or run.condition.shape[2] not in (1, 3):
            return None
        if condition is not None:
            return pictures.grid(condition[None])
        config = self._base.copy_and_resolve_references()
        config.sampling.num_images = num_images
        return pictures.grid(read_conditions(config, run.condition, num_images).images)

    def _arguments(self, settings: Settings) -> dict[str, Any]:
        """The arguments of `Run.sample`, without those that the model does not have."""
        arguments: dict[str, Any] = {name: getattr(settings, name) for name in ("seed", "sampler", "num_steps", "spacing")}
        if settings.sampler == "ddim":
            arguments["eta"] = settings.eta
        if self.controls.has_guidance:
            arguments["guidance_scale"] = 0.0 if settings.label == NO_CLASS else settings.guidance_scale
        if settings.label == NO_CLASS and tuple(self._base.sampling.guidance_interval) != (0, 1):
            arguments["guidance_interval"] = (0.0, 1.0)  # outside of it, the class would not be ignored
        if self.controls.classes and settings.label not in (EACH_CLASS, NO_CLASS):
            arguments["label"] = self._label_of(settings.label)
        return arguments

    def _python(self, run: Run, method: str, positional: tuple, arguments: dict[str, Any], lines: Sequence[str] = ()) -> str:
        """The call in Python, after the line that loads the run, and `lines`."""
        load = python_call.load_lines(run, self._config_of(run.config.sampling.params, run.step), self._saved)
        return "\n".join([*load, *lines, self._call(method, positional, arguments)])

    def _call(self, method: str, positional: tuple, arguments: dict[str, Any], result: str = "") -> str:
        return python_call.call(method, positional, arguments, self._base, self._saved, result)

    def _unknown(self, name: str, shape: Sequence[int], dtype: str = "") -> str:
        """A line for an array that only the user has."""
        hint = ", True where pixels are generated" if dtype == "bool" else ""
        return f"{name} = ...  # {dtype or self.run.pixel_format.dtype} {list(shape)}{hint}"

    def _edit_label(self, settings: Settings) -> int | None:
        if settings.label in self.controls.classes:
            return self._label_of(settings.label)
        if self.controls.classes and not self.controls.has_guidance:
            raise InvalidArgumentError("choose a class: this model generates no images without one")
        return None

    def _no_class_text(self, label: int | list[int | None] | None) -> str:
        return f" · {NO_CLASS}" if label is None and self.controls.classes else ""

    def _label_of(self, name: str) -> int:
        if name not in self.controls.classes:
            raise InvalidArgumentError(f"there is no class {name!r}")
        return self.controls.classes.index(name)

    def _class_name(self, label: int) -> str:
        return self.controls.classes[label] if label < len(self.controls.classes) else NO_CLASS

    def _with_nfe(self, run: Run, arguments: dict[str, Any], nfe: int) -> tuple[dict[str, Any], int]:
        """The arguments with the most steps that need at most `nfe` network evaluations, and how many they need."""
        low, high = 1, min(nfe, self.run.schedule.num_timesteps)
        found: tuple[dict[str, Any], int] | None = None
        while low <= high:
            middle = (low + high) // 2
            case = arguments | {"num_steps": middle}
            needed = run.nfe(**case)
            if needed <= nfe:
                found, low = (case, needed), middle + 1
            else:
                high = middle - 1
        if found is None:
            raise InvalidArgumentError(f"{arguments['sampler']} needs more than {nfe} network evaluations: allow more")
        return found

    def _show_stages(self, run: Run, emit: Emit, start: float) -> Callable[[Stage], None]:
        def show(stage: Stage) -> None:
            x_t, predicted = (pictures.show(run.pixel_format, x) for x in (stage.x_t, stage.pred_xstart))
            emit(View(pictures.grid(x_t), pictures.grid(predicted), f"{steps_text(stage)} · {seconds_text(start)}"))

        return show

    @staticmethod
    def _require(image: np.ndarray | None) -> np.ndarray:
        if image is None:
            raise InvalidArgumentError(MISSING)
        return image
