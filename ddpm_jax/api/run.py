"""A trained model in memory: `Run` samples, denoises, edits and measures images, as the modes of the command line do."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import build, evaluation_config
from ddpm_jax.api.arguments import (
    Label,
    check_labels,
    check_mask,
    check_noisy,
    image_labels,
    one_label,
    saved_steps,
)
from ddpm_jax.api.loaded_run import LoadedRun, root_key
from ddpm_jax.api.results import BitsPerDim, Denoised, Samples, Trajectory, bits_per_dim
from ddpm_jax.cli import image_to_image, inpaint, interpolate
from ddpm_jax.evaluation.likelihood_evaluator import num_levels
from ddpm_jax.evaluation.vlb_evaluator import VlbBatch
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.samplers.batched import BatchedSampler

# DDIM with eta 0 is the sampler whose inversion is known; guidance has none.
_DETERMINISTIC: dict[str, Any] = {"sampler": "ddim", "eta": 0.0, "guidance_scale": 1.0}


def _build_sampler(config: ConfigDict, mesh: Mesh, num_images: int, *, save_steps: Sequence[int]) -> BatchedSampler:
    return build.build_batched_sampler(config, mesh, save_steps, num_images=num_images)


class Run(LoadedRun):
    """A trained model; `ddpm_jax.load` makes it.

    Images are uint8 [N, H, W, C], levels 0..255, in and out; those of a model of other data have its type and range
    (`pixel_format`). An argument that is None, such as `num_steps`, has the value of `run.config.sampling`, `.edit` or
    `.evaluation`, so that a method and the mode of the command line give the same images. Methods compile on the first call
    with their settings; further calls with the same settings and the same batch size reuse the compiled functions, whatever
    the seed, the labels and the images. `batch_size` is over all devices and does not change results; `progress` shows a
    progress line on stderr.

    Attributes:
      config, workdir: all settings of the run (configs/defaults.py), read-only; its folder, absolute.
      step, params: the step of the checkpoint; its parameters, a pytree of float32 arrays on all devices.
      schedule, parameterization: the noise schedule of the training, T steps; what the output of the network means.
      class_names: the names of label 0, 1, ...; () if there are none.
      pixel_format: `dtype`, `low` and `high` of the images; `shown(images)` makes pictures of 8 bits for display.
    """

    def sample(
        self,
        num_images: int,
        *,
        label: Label = None,
        condition: np.ndarray | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        num_steps: int | None = None,
        spacing: str | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Samples:
        """Generate images, as --mode=sample.

            run.sample(16, sampler="unipc", num_steps=20, order=3, label="3", guidance_scale=2.0).images

        Args:
          num_images: number of images, N >= 1. Image i depends on `seed` and i only.
          label: a label 0..K-1 or a class name for all images, or int [N]; None: each class in turn.
          condition: of a model with condition images, uint8 [N, h, w, C] (`run.condition`); None: as --mode=sample.
          seed: 0..2**32-1.
          sampler: ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, unipc, heun, ode or module:function.
          num_steps: 1..T.
          spacing: leading, linspace, trailing, quadratic, karras or logsnr.
          guidance_scale: scale of classifier-free guidance, >= 0; 1 is none.
          guidance_interval: part of the chain that is guided, in 0..1; 0 is the image.
          guidance_rescale: 0..1.
          options: options of the sampler, such as eta of ddim or order of unipc.

        Returns:
          images uint8 [N, H, W, C], and their labels.

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: images became NaN or infinite.
        """
        arguments = {
            "num_images": num_images,
            "label": one_label(label),
            "seed": seed,
            "sampler": sampler,
            "num_steps": num_steps,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_rescale": guidance_rescale,
            "batch_size": batch_size,
        }
        with self._call(arguments | options, progress) as case:
            generator = self._cached("sample", case, num_images, functools.partial(_build_sampler, save_steps=()))
            inputs = self._sampling_inputs(case, label, condition)
            return Samples(self._generate(generator, case, inputs).images, inputs.labels)

    def trajectory(
        self,
        num_images: int,
        *,
        steps: int | Sequence[int] = 10,
        label: Label = None,
        condition: np.ndarray | None = None,
        progress: bool = False,
        **sampling: Any,
    ) -> Trajectory:
        """Generate images and return x_t and pred_xstart on the way.

        Args:
          num_images: N.
          steps: S evenly spaced steps, the first and the last included; or the numbers of the steps to save, in
            0..num_steps-1, where step 0 starts from noise. Memory grows with N S.
          label, condition: as for `sample`.
          sampling: other arguments of `sample`.

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: images became NaN or infinite.
        """
        with self._call(sampling | {"num_images": num_images, "label": one_label(label)}, progress) as case:
            saved = saved_steps(steps, case.sampling.num_steps)
            save_steps = tuple(saved.tolist())
            make = functools.partial(_build_sampler, save_steps=save_steps)
            generator = self._cached(("trajectory", save_steps), case, num_images, make)
            inputs = self._sampling_inputs(case, label, condition)
            found = self._generate(generator, case, inputs)
        timesteps = np.asarray(generator.sampler.schedule.timesteps)[::-1][saved]
        return Trajectory(found.images, inputs.labels, saved, timesteps, found.saved_x, found.saved_pred_xstart)

    def denoise(
        self, x_t: jax.Array, t: jax.Array | int, *, label: Label = None, condition: np.ndarray | None = None
    ) -> Denoised:
        """Evaluate the network once, without guidance. May be called under `jax.jit` and `jax.grad`.

        Args:
          x_t: floating [B, H, W, C], noisy images.
          t: int [B] or one int, 0..T-1; t = 0 has one step of noise already.
          label: a label, a class name or int [B]; None: no class, for models trained with label_dropout.
          condition: uint8 [B, h, w, C], of a model with condition images.

        Returns:
          eps, x_start and v, float32 [B, H, W, C].

        Raises:
          ValueError: an argument is invalid; the message names it.
        """
        x_t, t = check_noisy(x_t, t, self.image_shape, self.schedule.num_timesteps)
        return self._denoise(self.params, x_t, t, self._denoise_cond(len(x_t), label, condition))

    def inpaint(
        self,
        images: np.ndarray,
        mask: np.ndarray | str = "center",
        *,
        samples_per_image: int | None = None,
        label: Label = None,
        jump_length: int | None = None,
        resampling: int | None = None,
        progress: bool = False,
        **sampling: Any,
    ) -> Samples:
        """Fill in the masked part of images (RePaint, 2201.09865), as --mode=inpaint.

        Args:
          images: uint8 [N, H, W, C].
          mask: bool [H, W] or [N, H, W], True where pixels are generated; or center, left, right, top or bottom.
          samples_per_image: V >= 1.
          label: a label, a class name or int [N]; None: no class, for models trained with label_dropout.
          jump_length: RePaint's jump length in steps; 0: num_steps / 25.
          resampling: RePaint's resampling steps, >= 1.
          sampling: other arguments of `sample`, except num_images.

        Returns:
          images uint8 [N, V, H, W, C], and the labels [N].

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: images became NaN or infinite.
        """
        images = self._check_images(images)
        missing = check_mask(mask, images.shape)
        edit = {"samples_per_image": samples_per_image, "jump_length": jump_length, "resampling": resampling}
        with self._edit(images, label, edit | sampling, progress) as (case, labels):
            samples = case.edit.samples_per_image
            inpainter = self._cached("inpaint", case, len(images) * samples, inpaint.build_inpainter)
            return Samples(inpaint.inpaint(inpainter, self.params, root_key(case), images, missing, labels, samples), labels)

    def image_to_image(
        self,
        images: np.ndarray,
        *,
        strength: float | None = None,
        samples_per_image: int | None = None,
        label: Label = None,
        progress: bool = False,
        **sampling: Any,
    ) -> Samples:
        """Add noise to images and denoise them again (SDEdit, 2108.01073), as --mode=image_to_image.

        Args:
          images: uint8 [N, H, W, C].
          strength: in (0, 1], fraction of the steps to run; 1 starts from pure noise and keeps nothing.
          samples_per_image: V >= 1.
          label: a label, a class name or int [N]; None: no class, for models trained with label_dropout.
          sampling: other arguments of `sample`, except num_images.

        Returns:
          images uint8 [N, V, H, W, C], and the labels [N].

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: images became NaN or infinite.
        """
        images = self._check_images(images)
        edit = {"strength": strength, "samples_per_image": samples_per_image}
        with self._edit(images, label, edit | sampling, progress) as (case, labels):
            samples = case.edit.samples_per_image
            generator = self._cached("image_to_image", case, len(images) * samples, image_to_image.build_generator)
            generated = image_to_image.image_to_image(generator, self.params, root_key(case), images, labels, samples)
            return Samples(generated, labels)

    def invert(
        self,
        images: np.ndarray,
        *,
        label: Label = None,
        num_steps: int | None = None,
        spacing: str | None = None,
        inversion_iters: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Map images to the latents x_T from which DDIM with eta 0 generates them (2010.02502, section 5.4).

        Args:
          images: uint8 [N, H, W, C].
          label: a label, a class name or int [N]; None: no class, for models trained with label_dropout.
          num_steps, spacing, batch_size: as for `sample`.
          inversion_iters: network evaluations per step, >= 1; more reproduce the images better.

        Returns:
          float32 [N, H, W, C].

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: latents became NaN or infinite.
        """
        images = self._check_images(images)
        arguments = {"num_steps": num_steps, "spacing": spacing, "inversion_iters": inversion_iters, "batch_size": batch_size}
        with self._edit(images, label, _DETERMINISTIC | arguments, progress) as (case, labels):
            return self._invert(case, images, labels)

    def interpolate(
        self,
        a: np.ndarray,
        b: np.ndarray,
        *,
        num_frames: int | None = None,
        label: Label = None,
        num_steps: int | None = None,
        spacing: str | None = None,
        inversion_iters: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Samples:
        """Generate the images from a to b through the latents of DDIM, as --mode=interpolate.

        Args:
          a, b: uint8 [H, W, C].
          num_frames: F >= 2, both ends included. The ends are a and b up to the error of the inversion.
          label: a label, a class name, or the two labels of a and b, between which the frames switch halfway; None: no
            class, for models trained with label_dropout.
          num_steps, spacing, batch_size: as for `sample`.
          inversion_iters: as for `invert`.

        Returns:
          images uint8 [F, H, W, C], and their labels [F].

        Raises:
          ValueError: an argument is invalid; the message names it.
          RuntimeError: images became NaN or infinite.
        """
        ends = np.stack([self._check_images(image, name, batched=False) for name, image in (("a", a), ("b", b))])
        arguments = {"num_steps": num_steps, "spacing": spacing, "inversion_iters": inversion_iters, "batch_size": batch_size}
        arguments |= _DETERMINISTIC | {"num_frames": num_frames}
        with self._edit(ends, label, arguments, progress) as (case, labels):
            latents = self._invert(case, ends, labels)
            frames = case.edit.num_frames
            generator = self._cached("interpolate", case, frames, interpolate.build_generator)
            images = interpolate.interpolate(generator, self.params, root_key(case), latents, labels, frames)[0]
            return Samples(images, interpolate.frame_labels(labels, frames))

    def bits_per_dim(
        self,
        images: np.ndarray,
        *,
        label: Label = None,
        condition: np.ndarray | None = None,
        vlb_num_timesteps: int | None = None,
        vlb_decoder: str | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> BitsPerDim:
        """The variational bound of images, as `bits_per_dim` of --mode=evaluate (docs/likelihood.md), per value of its levels.

        Args:
          images: uint8 [N, H, W, C], or of another integer type of the data, images that the model was not trained on.
          label: a label, a class name or int [N]; None: no class, for models trained with label_dropout.
          condition: uint8 [N, h, w, C], of a model with condition images; None: made of the images, for p(image | condition).
          vlb_num_timesteps: number of sampled t per image, even and >= 4, for an unbiased estimate; 0: all T.
          vlb_decoder: exact or tanh.
          seed: seed of the noise, 0..2**32-1.

        Raises:
          ValueError: an argument is invalid; the message names it. Or the data is float32, which has no discrete levels.
        """
        num_levels(self.pixel_format)  # raises
        images = self._check_images(images)
        arguments = {"vlb_num_timesteps": vlb_num_timesteps, "vlb_decoder": vlb_decoder, "seed": seed}
        arguments |= {"label": one_label(label), "batch_size": batch_size, "metrics": "bits_per_dim"}
        with self._call(arguments, progress, ("evaluation", "sampling")) as case:
            evaluation_config.check_evaluation(case)
            labels = image_labels(case, len(images), check_labels(label, len(images), case))
            fields = {name: case.evaluation[name] for name in ("vlb_num_timesteps", "vlb_decoder", "batch_size")}
            evaluator = self._remember(
                ("bits_per_dim", repr(fields)), lambda: evaluation_config.build_vlb_evaluator(case, self._mesh)
            )
            key = rng.purpose_key(case.sampling.seed, "bound")
            with distributed.show_progress(len(images)) as report:
                cond = self._cond_of(case, images, labels, condition)
                parts = list(evaluator.evaluate(self.params, key, images, cond, report=report))
        return bits_per_dim(VlbBatch(*(np.concatenate(column) for column in zip(*parts, strict=True))).bits_per_image)
