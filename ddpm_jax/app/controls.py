"""The controls of the page: their initial values, choices and ranges, and whether a request keeps to them."""

import dataclasses
import re
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.app import checks
from ddpm_jax.app.view import Settings
from ddpm_jax.cli.inpaint import NAMED_MASKS
from ddpm_jax.diffusion.spacings import SPACINGS
from ddpm_jax.samplers import SAMPLERS

EACH_CLASS, NO_CLASS = "each class in turn", "no class"
BRUSH = "painted with the brush"
MAX_IMAGES = 64
MAX_COMPARED = 16  # images of each sampler


class Controls:
    """The controls for a run.

    Attributes:
      start: the initial values: those of config.sampling.
      edit: the initial values of the controls of editing: config.edit.
      classes: names; () for a model without.
      has_guidance: whether the model can be guided, and ignore the class and the condition image.
      has_condition: whether the model is conditioned on images, and can do nothing but sample.
      has_lengths: whether power-function averages of any length can be computed.
      choices: name -> names to choose from.
      limits: name -> lowest and highest value; the initial values are between.
    """

    def __init__(self, config: ConfigDict, class_names: tuple[str, ...], step: int):
        """The controls of a run with a resolved config, at first with the checkpoint of a step."""
        sampling, conditional, lengths = config.sampling, config.model.class_conditional, config.ema.power_sigma_rel
        names = class_names or tuple(map(str, range(config.data.num_classes)))
        self.classes = names if conditional else ()
        self.has_condition = bool(config.data.condition)
        self.has_guidance = (conditional or self.has_condition) and config.model.label_dropout > 0
        self.has_lengths = len(lengths) > 1
        label = (EACH_CLASS if sampling.label == -1 else self.classes[sampling.label]) if self.classes else ""
        self.start = start = Settings(
            label=label,
            seed=sampling.seed,
            sampler=sampling.sampler,
            num_steps=sampling.num_steps,
            spacing=sampling.spacing,
            eta=sampling.ddim.eta,
            guidance_scale=sampling.guidance_scale,
            params=sampling.params,
            step=step,
        )
        self.edit: dict[str, Any] = config.edit.to_dict()
        none = (NO_CLASS,) if conditional and self.has_guidance else ()
        averages = [f"decay_{decay}" for decay in config.ema.extra_decays] + [f"power_{length}" for length in lengths]
        self.choices: dict[str, tuple[str, ...]] = {
            "sample_label": (EACH_CLASS, *self.classes, *none) if self.classes else (),
            "edit_label": (*none, *self.classes) if self.classes else (),
            "sampler": tuple(dict.fromkeys((*SAMPLERS, sampling.sampler))),  # that of the run may be of the user's own
            "spacing": tuple(SPACINGS),
            "params": tuple(dict.fromkeys((sampling.params, "ema", "raw", *averages))),
            "mask": (BRUSH, *NAMED_MASKS),
        }
        timesteps = config.diffusion.num_timesteps
        self.limits: dict[str, tuple[float, float]] = {
            "seed": (0, 2**32 - 1),
            "step": (0, 2**53),
            "num_steps": (1, timesteps),
            "eta": (0.0, max(1.0, start.eta)),
            "guidance_scale": (0.0, max(10.0, start.guidance_scale)),
            "num_images": (1, MAX_IMAGES),
            "compared_images": (1, MAX_COMPARED),
            "nfe": (1, min(250, timesteps)),
            "samples_per_image": (1, max(16, self.edit["samples_per_image"])),
            "resampling": (1, max(20, self.edit["resampling"])),
            "strength": (min(0.05, self.edit["strength"]), 1.0),
            "num_frames": (2, max(25, self.edit["num_frames"])),
            "inversion_iters": (1, max(10, self.edit["inversion_iters"])),
        }

    def check(self, settings: Settings, **values: Any) -> None:
        """Check settings, and values of other controls by the names of `limits`.

        Raises:
          InvalidArgumentError: one is none that its control offers.
        """
        choices = self.choices
        checks.choice(settings.label, "the class", (*choices["sample_label"], *choices["edit_label"]) or ("",))
        checks.choice(settings.sampler, "sampler", choices["sampler"])
        checks.choice(settings.spacing, "spacing", choices["spacing"])
        if not (self.has_lengths and re.fullmatch(r"power_0?\.\d{1,4}", str(settings.params))):
            checks.choice(settings.params, "params", choices["params"])
        for name, value in (dataclasses.asdict(settings) | values).items():
            if name in self.limits:
                low, high = self.limits[name]
                check = checks.integer if isinstance(low, int) else checks.number
                check(value, "num_images" if name == "compared_images" else name, low, high)
