"""Allowed changes of a run's config: every field of the default config has a rule."""

import functools
import json
import pathlib
import re

import pytest

from ddpm_jax.configs import defaults
from ddpm_jax.runtime import config_changes
from ddpm_jax.runtime.errors import ConflictError

RECORDED = json.loads(json.dumps(defaults.get_config().to_dict()))


def changed(**fields):
    """The recorded config with fields set, `section__name=value`."""
    config = json.loads(json.dumps(RECORDED))
    for field, value in fields.items():
        *sections, name = field.split("__")
        functools.reduce(dict.__getitem__, sections, config)[name] = value
    return config


# One change for each kind of rule: field, new value, rejected on a resume, rejected when reading.
CASES = [
    ("seed", 1, True, False),
    ("data__name", "digits", True, True),
    ("data__split", "train[:100]", True, True),
    ("data__image_size", 64, True, True),
    ("data__background", "black", True, False),
    ("data__random_flip", False, False, False),
    ("data__on_decode_error", "skip", False, False),
    ("data__data_dir", "/elsewhere", False, False),
    ("data__num_threads", 2, False, False),
    ("data__num_workers", 2, False, False),
    ("data__cache_dir", "/cache", False, False),
    ("data__in_memory", "never", False, False),
    ("model__unet__ch", 64, True, True),
    ("model__unet__num_heads", 2, True, True),
    ("model__unet__dropout", 0.0, False, False),
    ("model__dtype", "bfloat16", False, False),
    ("model__unet__remat", True, False, False),
    ("model__label_dropout", 0.1, True, True),  # from 0: adds an embedding
    ("model__name", "my_networks:Mlp", True, True),
    ("diffusion__schedule", "cosine", True, True),
    ("diffusion__linear__beta_end", 0.01, True, True),
    ("diffusion__prediction", "v", True, True),
    ("diffusion__variance", "fixed_small", False, False),
    ("diffusion__variance", "learned_range", True, True),
    ("diffusion__loss", "vlb", False, False),
    ("diffusion__weighting", "snr", False, False),
    ("diffusion__timestep_sampler", "low_discrepancy", False, False),
    ("diffusion__min_snr_gamma__gamma", 4.0, False, False),
    ("diffusion__timestep_sampler", "my_parts:sampler", True, False),  # may have a state
    ("diffusion__timestep_sampler", "second_moment", True, False),  # its history is only in training states
    ("diffusion__clip_denoised", False, False, False),
    ("optimizer__name", "optax:lion", True, False),
    ("optimizer__adam__b2", 0.99, False, False),
    ("optimizer__learning_rate", 1e-4, False, False),
    ("optimizer__clip_norm", 0.0, False, False),
    ("optimizer__accumulation_steps", 2, False, False),
    ("ema__decay", 0.999, False, False),
    ("ema__extra_decays", [0.99], True, True),
    ("train__batch_size", 64, False, False),
    ("train__num_steps", 7, False, False),
    ("sampling__sampler", "unipc", False, False),
    ("evaluation__num_images", 10, False, False),
    ("edit__strength", 0.1, False, False),
    ("visualize__num_images", 2, False, False),
]


@pytest.mark.parametrize(("field", "value", "on_resume", "on_reading"), CASES, ids=lambda value: str(value))
def test_a_change_to_another_experiment_is_rejected(field, value, on_resume, on_reading):
    name, config = field.replace("__", "."), changed(**{field: value})
    for resume, rejected in ((True, on_resume), (False, on_reading)):
        if rejected:
            with pytest.raises(ConflictError) as error:
                config_changes.check("runs/x", RECORDED, config, resume=resume)
            assert f"{name} was {json.dumps(changed_back(field))}, now {json.dumps(value)}" in str(error.value)
            assert "\n" not in str(error.value)
        else:
            config_changes.check("runs/x", RECORDED, config, resume=resume)
    assert config_changes.changes(RECORDED, config) == {name: [changed_back(field), value]}


def changed_back(field):
    return functools.reduce(dict.__getitem__, field.split("__"), RECORDED)


def test_every_field_has_a_rule_and_every_rule_a_field():
    fields = config_changes.flatten(RECORDED)
    assert not [field for field in fields if config_changes.rule_of(field) is config_changes._OTHER]
    for name in config_changes.RULES:
        pattern = re.compile(re.escape(name).replace(r"\*", r"\w+") + r"(\.|$)")
        assert any(pattern.match(field) for field in fields), name


def test_a_common_prefix_does_not_match_a_section():
    assert config_changes.rule_of("dataset.n") is config_changes._OTHER
    assert config_changes.rule_of("data.name") is config_changes.RULES["data"]
    config_changes.check("x", {"data": {}, "dataset": {"n": 1}}, {"data": {}, "dataset": {"n": 2}}, resume=True)


def test_all_rejected_fields_are_named_with_a_remedy():
    config = changed(
        model__unet__ch=64, diffusion__schedule="cosine", seed=3, model__unet__dropout=0.5, model__label_dropout=0.1
    )
    with pytest.raises(ConflictError) as error:
        config_changes.check("runs/x", RECORDED, config, resume=True)
    line = str(error.value)
    for words in (
        "runs/x",
        "model.unet.ch was 128, now 64",
        'diffusion.schedule was "linear", now "cosine"',
        "seed was 0, now 3",
        "model.label_dropout was 0.0, now 0.1 (the network has a null-label embedding only if",
        "choose another `workdir`",
    ):
        assert words in line
    assert "model.unet.dropout" not in line
    assert "\n" not in line


def test_a_partly_fixed_field_may_change_within_its_part():
    for field, old, new in (
        ("model__label_dropout", 0.1, 0.2),
        ("diffusion__variance", "fixed_small", "fixed_large"),
        ("diffusion__timestep_sampler", "low_discrepancy", "uniform"),
    ):
        config_changes.check("x", changed(**{field: old}), changed(**{field: new}), resume=True)


def test_a_report_has_the_training_of_the_run_and_the_sampling_of_the_call():
    recorded = changed(optimizer__learning_rate=3e-4, seed=5, train__batch_size=32, diffusion__loss="vlb")
    config = changed(
        optimizer__learning_rate=1.0,
        seed=7,
        train__batch_size=8,
        model__dtype="bfloat16",
        diffusion__clip_denoised=False,
        diffusion__variance="fixed_small",
        sampling__num_steps=10,
        data__data_dir="/here",
    )
    expected = changed(
        optimizer__learning_rate=3e-4,
        seed=5,
        train__batch_size=32,
        diffusion__loss="vlb",
        model__dtype="bfloat16",
        diffusion__clip_denoised=False,
        diffusion__variance="fixed_small",
        sampling__num_steps=10,
        data__data_dir="/here",
    )
    assert config_changes.as_read(recorded, config) == expected


def test_changes_are_described_in_one_line():
    config = changed(optimizer__learning_rate=1e-4, data__data_dir="/here")
    line = config_changes.describe(config_changes.changes(RECORDED, config))
    assert line == 'data.data_dir "" -> "/here", optimizer.learning_rate 0.0002 -> 0.0001'
    line = config_changes.describe(config_changes.changes(RECORDED, changed(data__data_dir="/köln/\udcff\n")))
    assert line == r'data.data_dir "" -> "/köln/\udcff\n"'  # a byte of a file name that is not UTF-8


def test_the_docs_name_every_rule():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "resuming.md"
    text = page.read_text()
    missing = [name for name in config_changes.RULES if f"`config.{name}`" not in text]
    assert not missing


def without(*fields):
    """The recorded config of an older version, which lacks `fields`."""
    config = changed()
    for field in fields:
        *sections, name = field.split(".")
        del functools.reduce(dict.__getitem__, sections, config)[name]
    return config


OPTIONAL = ("data.num_workers", "data.cache_dir", "sampling.guidance_rescale", "evaluation.max_features", "visualize.animation")


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_may_lack_fields_that_do_not_change_what_is_trained(resume, log_lines):
    config_changes.check("runs/a", without(*OPTIONAL), changed(), resume=resume)
    fields = ", ".join(sorted(OPTIONAL)) + ", which do not change what is trained"
    assert log_lines == [f"runs/a was written by another version of this program: it lacks {fields}"]
    config_changes.check("runs/a", without("export"), changed(export__format=["onnx"]), resume=resume)


@pytest.mark.parametrize(
    "field",
    ["data.background", "data.random_flip", "model.dtype", "model.unet.scale_shift", "optimizer.clip_norm", "mesh.fsdp"],
)
def test_a_run_may_not_lack_fields_that_change_what_is_trained(field):
    with pytest.raises(ConflictError, match=rf"the run in runs/a was written by another version .*: it lacks {field}\. Use"):
        config_changes.check("runs/a", without(field, *OPTIONAL), changed(), resume=False)


def test_an_unknown_field_is_refused():
    """Its meaning is not known, not even whether it changed what was trained."""
    with pytest.raises(ConflictError, match=r"sampling\.num_images is unknown"):
        config_changes.check("runs/a", changed(), without("sampling.num_images"), resume=False)
