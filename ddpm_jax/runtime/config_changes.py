"""Rules for changes of a run's config: when training is resumed, and when a mode only reads the run.

A change is rejected if it would mix two experiments in one run: another network, diffusion process, data set or seed, or a
state that the checkpoint does not contain. Every other change is allowed and recorded (`run_record.py`). The modes that
only read (sample, evaluate, ...) use their own fields from the command line and all others from the record.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.runtime.errors import ConflictError, as_text

logger = logging.getLogger(__name__)

# Fields that may differ between the processes of one job: location and speed of the data, not its content.
PER_HOST = ("data.data_dir", "data.cache_dir", "data.in_memory", "data.num_threads", "data.num_workers", "data.prefetch")


def _whole(value: Any) -> Any:
    return value


def _nothing(value: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule for changes of a field.

    Attributes:
      why: the reason, for documentation and, if only a part of the value is fixed, for the error.
      resume: value -> the part that a resumed training must keep.
      reading: value -> the part that a mode which only reads the run must keep.
      read: whether those modes use the field, so that their reports contain the value of the command line.
      optional: whether a recorded config may lack the field: no value of it changes what is trained.
    """

    why: str
    resume: Callable[[Any], Any]
    reading: Callable[[Any], Any]
    read: bool
    optional: bool = False


def _fixed(why: str) -> Rule:
    return Rule(why, _whole, _whole, read=False)


def _training(why: str) -> Rule:
    return Rule(why, _nothing, _nothing, read=False)


def _free(why: str) -> Rule:
    return Rule(why, _nothing, _nothing, read=True, optional=True)


def _is_learned(variance: Any) -> bool:
    return str(variance).startswith("learned")


def _stateful(timestep_sampler: Any) -> Any:
    return None if timestep_sampler in ("uniform", "low_discrepancy") else timestep_sampler


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


# Field or section -> rule; the longest matching name applies, and * is any section. A new field of data, model or diffusion
# is fixed by default, the only safe choice; a new field of another section has the rule of its section.
RULES: dict[str, Rule] = {
    "seed": Rule("determines initial parameters, data order and noise; sampling has its own", _whole, _nothing, read=False),
    "data": _fixed("the training images"),
    "data.data_dir": _free("where the images are"),
    "data.in_memory": _free("memory and speed"),
    "data.cache_dir": _free("location of copies"),
    "data.num_threads": _free("speed"),
    "data.num_workers": _free("speed"),
    "data.prefetch": _free("memory and speed"),
    "data.on_decode_error": _free("handling of unreadable files; the images read are the same"),
    "data.pairs.condition_dir": _free("where the condition images are"),
    "data.random_flip": _training("augmentation, random at each step"),
    "data.background": Rule(
        "pixels of the training images, and of the real ones in an evaluation", _whole, _nothing, read=True
    ),
    "model": _fixed("the network"),
    "model.*.dropout": _training("only active in training"),
    "model.label_dropout": Rule(
        "the network has a null-label embedding only if it is above 0", _is_positive, _is_positive, read=False
    ),
    "model.dtype": Rule("precision of the computation; parameters are float32 in any case", _nothing, _nothing, read=True),
    "model.*.remat": _free("memory and speed"),
    "diffusion": _fixed("the diffusion process and what the network predicts"),
    "diffusion.variance": Rule(
        "fixed_small and fixed_large differ in sampling; a learned variance is an output of the network",
        _is_learned,
        _is_learned,
        read=True,
    ),
    "diffusion.loss": _training("the objective"),
    "diffusion.weighting": _training("the objective"),
    "diffusion.loss_options": _training("the objective"),
    "diffusion.min_snr_gamma": _training("the objective"),
    "diffusion.p2": _training("the objective"),
    "diffusion.edm": _training("the objective"),
    "diffusion.weighting_options": _training("the objective"),
    "diffusion.timestep_sampler": Rule(
        "second_moment keeps a history of losses in the checkpoint, uniform and low_discrepancy do not",
        _stateful,
        _nothing,
        read=False,
    ),
    "diffusion.timestep_sampler_options": _training("the distribution of t"),
    "diffusion.clip_denoised": _free("only used in sampling"),
    "optimizer": _training("the optimizer and the learning rate; the structure of the state is the same"),
    "optimizer.name": Rule("its state is in the checkpoint", _whole, _nothing, read=False),
    "ema.decay": _training("from the next step on"),
    "ema.extra_decays": _fixed("each is a copy of the parameters in the checkpoint"),
    "ema.power_sigma_rel": _fixed("each is a copy of the parameters in the checkpoint"),
    "mesh": _training("memory and speed; a checkpoint is read on any mesh"),
    "train": _training("length, batches, logging and checkpoints"),
    "train.keep_best": _free("which checkpoint is kept and called best"),
    "train.init_from": Rule("the weights that the run started from", _whole, _nothing, read=False),
    "train.init_new": Rule("which parameters the run did not take from train.init_from", _whole, _nothing, read=False),
    "train.frozen": Rule("frozen parameters have no optimizer state in the checkpoint", _whole, _nothing, read=False),
    "train.trackers": _free("logging"),
    "sampling": _free("only used in sampling"),
    "evaluation": _free("only used in evaluation"),
    "edit": _free("only used by the image editing modes"),
    "export": _free("only used by --mode=export"),
    "visualize": _free("only used by --mode=visualize"),
}
_OTHER = _training("unknown")


def rule_of(field: str) -> Rule:
    """The rule of a field, by its dotted name."""
    parts = field.split(".")
    if len(parts) == 3 and (rule := RULES.get(f"{parts[0]}.*.{parts[2]}")):
        return rule
    for length in range(len(parts), 0, -1):
        if rule := RULES.get(".".join(parts[:length])):
            return rule
    return _OTHER


def check(folder: Any, recorded: dict[str, Any], config: dict[str, Any], *, resume: bool) -> None:
    """Checks that `config` changes no field that the run in `folder` must keep; logs optional fields that the run lacks.

    Args:
      folder: named in the error.
      recorded: the config of the run.
      config: the new one.
      resume: whether training is resumed; otherwise a mode only reads the run.

    Raises:
      ConflictError: such a field changes (the message names each), or another version of this program wrote `recorded`.
    """
    check_version(f"the run in {folder}", recorded, config)
    if absent := absent_fields(recorded, config):
        fields = f"{', '.join(absent)}, which do not change what is trained"
        logger.info(f"{folder} was written by another version of this program: it lacks {fields}")
    differing = []
    for field, (before, after) in changes(recorded, config).items():
        rule = rule_of(field)
        part = rule.resume if resume else rule.reading
        if part(before) != part(after):
            note = "" if part is _whole else f" ({rule.why})"
            differing.append(f"{field} was {as_text(before)}, now {as_text(after)}{note}")
    if differing:
        reason = "which a resume cannot change" if resume else "which does not match its checkpoints"
        raise ConflictError(
            f"{folder} already contains a run with a different config, {reason}: {'; '.join(differing)}. "
            "Restore the old values, or choose another `workdir`"
        )


def check_version(where: str, recorded: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises ConflictError unless both configs have the same fields, sections of free options and optional fields aside."""
    old, new = _names(recorded), _names(config) - set(absent_fields(recorded, config))
    differing = [f"it lacks {field}" for field in sorted(new - old)] + [f"{field} is unknown" for field in sorted(old - new)]
    if differing:
        found = "; ".join(differing)
        raise ConflictError(f"{where} was written by another version of this program: {found}. Use that version, or a new run")


def absent_fields(recorded: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Optional fields of `config` that `recorded` lacks, sorted."""
    return sorted(field for field in _names(config) - _names(recorded) if rule_of(field).optional)


def _names(config: dict[str, Any]) -> set[str]:
    return {field for field in flatten(config) if "options" not in field}


def changes(recorded: dict[str, Any], config: dict[str, Any]) -> dict[str, list[Any]]:
    """Field -> [old value, new value] for each field that differs; None for an option that is not set."""
    old, new = flatten(recorded), flatten(config)
    pairs = {field: [old.get(field), new.get(field)] for field in sorted(old.keys() | new.keys())}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def as_read(recorded: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The config of a mode that reads a run: the fields that such modes use from `config`, all others from `recorded`."""
    merged: dict[str, Any] = {}
    for source, read in ((recorded, False), (config, True)):
        for field, value in flatten(source).items():
            if rule_of(field).read is read:
                *sections, name = field.split(".")
                functools.reduce(lambda inside, part: inside.setdefault(part, {}), sections, merged)[name] = value
    return merged


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {"section.field": value}, with tuples as lists, as in JSON."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = _with_lists(value)
    return fields


def describe(changed: dict[str, list[Any]]) -> str:
    """One line: "optimizer.learning_rate 0.0002 -> 0.0001, ..."."""
    return ", ".join(f"{field} {as_text(old)} -> {as_text(new)}" for field, (old, new) in changed.items())


def _with_lists(value: Any) -> Any:
    return [_with_lists(x) for x in value] if isinstance(value, list | tuple) else value
