"""docs/extending.md: its parts are short, its commands train and sample with them, and `--workdir` alone finds them again."""

import ast
import json
import pathlib
import re
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest

from ddpm_jax import build, choices, compiler_config, config_file, config_validation, configs, data_config, sampling_config
from ddpm_jax.cli import evaluate, sample, train
from ddpm_jax.configs import defaults, digits, from_workdir
from ddpm_jax.data import condition
from ddpm_jax.metrics import features
from ddpm_jax.runtime import config_changes, registry
from ddpm_jax.runtime.errors import CheckpointMismatch, ExpectedError
from ddpm_jax.user_messages import UsageError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
CODE = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    shlex.split(line)[2:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
TINY = {
    "model.unet.ch": 8,
    "model.unet.ch_mult": (1,),
    "model.unet.attn_resolutions": (),
    "train.num_steps": 2,
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
    "train.trackers": (),
    "sampling.num_steps": 3,
    "evaluation.num_images": 32,
}


@pytest.fixture(autouse=True)
def my_parts(tmp_path, monkeypatch):
    """The current folder has the page's my_parts.py."""
    (tmp_path / "my_parts.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


def configured(arguments, base=None):
    """The config of a command line of the page, with tiny settings, and its other flags."""
    config = base or digits.get_config()
    rest, free = choices.take_free_flags(arguments)
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in rest)
    fields = {name.removeprefix("config."): value for name, value in flags.items() if name.startswith("config.")}
    typed = {}
    for name, value in fields.items():
        try:
            typed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            typed[name] = value
    config.update_from_flattened_dict({**TINY, **typed})
    choices.set_free_fields(config, free)
    return config, flags


def test_every_part_is_shorter_than_30_lines():
    parts = [node for node in ast.parse(CODE).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(parts) == 13
    assert all(part.end_lineno - part.lineno < 30 for part in parts)


def test_the_page_shows_every_choice():
    shown = {name for arguments in COMMANDS for name in configured(arguments)[1]}
    assert {f"config.{choice.path}" for choice in choices.CHOICES} <= shown


@pytest.mark.parametrize("arguments", [c for c in COMMANDS if "--config=configs/digits.py" in c], ids=lambda c: c[1])
def test_the_training_commands_train(arguments, my_parts):
    config, flags = configured(arguments)
    if config.model.name == "unet" and not config.data.condition:  # neither is the part of this command
        config.model.name = "tests.small_network:Small"
    assert train.run(config, flags["workdir"]) == 0
    recorded = json.loads((my_parts / flags["workdir"] / "config.json").read_text())
    own = [choice for choice in choices.CHOICES if str(recorded[choice.section][choice.field]).startswith("my_parts:")]
    assert len(own) == 1
    assert recorded[own[0].section][own[0].custom] == choices.options_of(config, own[0])


def test_sampling_and_evaluation_use_the_parts(my_parts, monkeypatch):
    """Euler's method is DDIM, to float32 rounding."""
    network, with_features = COMMANDS[0], COMMANDS[-2]
    (with_euler,) = [command for command in COMMANDS if "--config.sampling.sampler=my_parts:euler" in command]
    config, flags = configured(network)
    train.run(config, flags["workdir"])
    images = {}
    for name, arguments in (("ddim", COMMANDS[1]), ("euler", with_euler)):
        config, _ = configured([*network, *arguments[2:]])
        config.sampling.num_intermediates = 2
        assert sample.run(config, flags["workdir"], output=name) == 0
        with np.load(my_parts / name / "images.npz") as file:
            images[name] = file["arr_0"].astype(int)
    assert images["euler"].shape == (16, 8, 8, 1)
    assert np.abs(images["euler"] - images["ddim"]).max() <= 1
    config, flags = configured([*network, *with_features[2:]])
    assert evaluate.run(config, flags["workdir"]) == 0


def test_the_tracker_gets_training_and_evaluation(my_parts):
    network, with_features, with_tracker = COMMANDS[0], COMMANDS[-2], COMMANDS[-1]
    config, flags = configured([*network, *with_tracker[1:], "--config.train.log_every=1"])
    assert config.train.trackers == ("tensorboard", "my_parts:CsvTracker")
    train.run(config, flags["workdir"])
    config, _ = configured([*network, *with_tracker[1:], *with_features[2:]])
    evaluate.run(config, flags["workdir"])
    lines = (my_parts / flags["workdir"] / "metrics.csv").read_text().splitlines()
    starts = [line for line in lines if line.startswith("#")]
    assert starts == ["# runs/mlp, seed 0, step 0", "# runs/mlp, seed 0, step None"]
    tags = [line.split(",")[:2] for line in lines]
    assert [step for step, tag in tags if tag == "train/loss"] == ["1", "2"]
    assert [tag.rpartition("/")[2] for step, tag in tags if tag.startswith("evaluate/")] == ["count", "frechet"]


@pytest.mark.slow
def test_a_run_remembers_its_parts(my_parts):
    """As processes, from the command line: the second names only the workdir."""
    tiny = [f"--config.{field}={value}" for field, value in TINY.items() if not field.startswith("model.unet")]
    for arguments in (COMMANDS[0] + tiny, COMMANDS[1]):
        arguments = [argument.replace("configs/", f"{REPOSITORY}/configs/") for argument in arguments]
        process = subprocess.run(
            [sys.executable, str(REPOSITORY / "main.py"), *arguments], cwd=my_parts, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
    assert "16 images in" in process.stdout
    recorded = json.loads((my_parts / "runs" / "mlp" / "config.json").read_text())["model"]
    assert (recorded["name"], recorded["options"]) == ("my_parts:Mlp", {"width": 512})
    (entry,) = [json.loads(line) for line in (my_parts / "runs" / "mlp" / "history.jsonl").read_text().splitlines()]
    assert entry["command"][1:] == [a.replace("configs/", f"{REPOSITORY}/configs/") for a in COMMANDS[0] + tiny]


def test_a_changed_file_is_reported_at_a_resume(my_parts, printed_log, capsys):
    own = ["--config.diffusion.schedule=my_parts:scaled_linear"]
    small = "--config.model.name=tests.small_network:Small"
    config, _ = configured([small, *own, "--config.train.num_steps=1"])
    train.run(config, "run")
    file = my_parts / "my_parts.py"
    file.write_text(file.read_text() + "\n# changed\n")
    sys.modules.pop("my_parts")  # as in a new process
    config, _ = configured([small, *own])
    train.run(config, "run")
    assert 'resuming at step 1; changed: train.num_steps 1 -> 2, my_parts.py "' in capsys.readouterr().err


def test_a_changed_network_is_named_when_its_checkpoint_does_not_match(my_parts):
    config, flags = configured(COMMANDS[0])
    train.run(config, flags["workdir"])
    file = my_parts / "my_parts.py"
    file.write_text(file.read_text().replace("depth: int = 3", "depth: int = 4"))
    sys.modules.pop("my_parts")  # as in a new process
    match = r"does not match the model: .*; my_parts\.py has changed since it was trained\. Restore my_parts\.py, or choose"
    for mode in (sample, train):
        config = from_workdir.get_config(flags["workdir"])
        config.train.num_steps = 3
        with pytest.raises(CheckpointMismatch, match=match):
            mode.run(config, flags["workdir"])


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"model.name": "my_parts:Mlp"}, {"model.options.widht": 64}, "has no option 'widht': it has width, depth"),
        ({"model.name": "my_parts:Cnn"}, {}, "the network my_parts:Cnn cannot be imported: AttributeError"),
        ({"model.name": "no_such_module:Mlp"}, {}, "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ({"diffusion.schedule": "my_parts:soft_min_snr"}, {}, r"returns shape \(\): \[1000\], one beta per step"),
        ({"diffusion.loss": "my_parts:pseudo_huber", "diffusion.weighting": "snr"}, {}, "has no parameter `weighting`"),
        ({"diffusion.loss": "my_parts:pseudo_huber"}, {"diffusion.loss_options.d": 1}, "has no option 'd': it has c"),
    ],
)
def test_mistakes_are_one_line(fields, options, message):
    config = digits.get_config()
    config.update_from_flattened_dict(fields)
    choices.set_free_fields(config, options)
    with pytest.raises(UsageError, match=message) as caught:
        config_validation.check_config(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["config.sampling.unipc.order"], "no effect, since config.sampling.sampler is ddim: leave it out, or choose unipc"),
        (["config.model.options.width"], "no effect, since config.model.name is unet: leave it out, or choose module:function"),
        (["config.diffusion.cosine.s"], "config.diffusion.schedule is linear"),
        (["config.sampling.ddim.eta", "config.model.unet.ch", "config.seed", "config.optimizer.adam.b1", "workdir"], None),
    ],
)
def test_flags_of_parts_that_are_not_chosen_are_rejected(flags, message):
    config = defaults.get_config()
    if message is None:
        choices.check_options_used(config, flags)
        return
    with pytest.raises(UsageError, match=message):
        choices.check_options_used(config, flags)


def test_options_of_parts_that_are_not_chosen_are_listed():
    config = digits.get_config()
    assert choices.unused_options(config, defaults.get_config()) == []
    config.sampling.unipc.order = 3
    config.diffusion.schedule = "cosine"
    config.diffusion.linear.beta_end = 0.03
    config.model.options.width = 3
    lines = choices.unused_options(config, defaults.get_config())
    assert [line.partition(" is ")[0] for line in lines] == [
        "config.model.options.width",
        "config.diffusion.linear.beta_end",
        "config.sampling.unipc.order",
    ]
    assert lines[-1] == "config.sampling.unipc.order is 3, but has no effect, since config.sampling.sampler is ddim"
    config.evaluation.samplers = ("unipc",)
    assert len(choices.unused_options(config, defaults.get_config())) == 2


def test_shipped_configs_set_no_option_without_effect():
    for name in configs.names():
        assert choices.unused_options(config_file.load(name), defaults.get_config()) == [], name


def test_own_samplers_of_a_sweep_share_their_options(my_parts):
    (my_parts / "my_parts.py").write_text(
        CODE + "\n\ndef other(schedule, predict_x0):\n    return euler(schedule, predict_x0)\n"
    )
    config = digits.get_config()
    config.evaluation.samplers = ("my_parts:euler", "my_parts:other")
    choices.set_free_fields(config, {"sampling.sampler_options.end": 0.1})
    euler, other = evaluate.sampling_cases(config)
    build.build_sampler(euler)
    with pytest.raises(UsageError, match=r"config\.sampling\.sampler: the sampler my_parts:other has no option 'end': it has"):
        build.build_sampler(other)


def test_a_sweep_uses_the_options_of_all_its_samplers():
    config = defaults.get_config()
    config.evaluation.samplers = ("ddim", "unipc")
    choices.check_options_used(config, ["config.sampling.unipc.order"])
    config.evaluation.samplers = ("ddim", "my_parts:euler")
    choices.check_options_used(config, ["config.sampling.sampler_options.end"])


def test_the_defaults_are_those_of_the_factories():
    """configs/defaults.py lists the options of these parts, with the defaults of their functions."""
    config = defaults.get_config()
    provided = {"out_channels", "num_classes", "dtype", "conv_fn", "upsample_conv_fn", "norm_fn", "block_class", "trained"}
    provided |= {"dropout_class", "cond_channels", "cond_noise_level", "name", "parent"}
    listed = set()
    for choice, factories in (config_validation.PARTS | {choices.CONDITION: condition.CONDITIONS}).items():
        for name in factories.keys() & config[choice.section].keys():
            expected = {k: v for k, v in registry.defaults(factories[name]).items() if k not in provided}
            assert config[choice.section][name].to_dict() == expected, name
            listed.add(f"{choice.section}.{name}")
    diffusion = {"linear", "cosine", "sigmoid", "min_snr_gamma", "p2", "edm"}
    optimizer = {"adam", "adamw", "lion", "muon", "sgd", "cosine", "linear", "inverse_sqrt", "cooldown"}
    assert listed == {"data.downsample", "model.unet", "sampling.ddim", "sampling.unipc", "sampling.heun"} | {
        *(f"diffusion.{name}" for name in diffusion),
        *(f"optimizer.{name}" for name in optimizer),
    }


def test_a_set_in_an_hdf5_file(my_parts):
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8)
    with h5py.File(my_parts / "train.h5", "w") as file:
        file["images"], file["labels"] = images, np.array([0, 1, 1, 0, 1])
        file.attrs["class_names"] = ["daisy", "rose"]
    config = digits.get_config()
    fields = {"data.name": "my_parts:hdf5", "data.data_dir": str(my_parts), "data.image_size": 20, "data.channels": 3}
    config.update_from_flattened_dict(fields | {"data.num_classes": 2})
    source = data_config.load_source(config)
    batch = source.batch(np.array([4, 0, 1]))
    np.testing.assert_array_equal(batch["image"], images[[4, 0, 1], :, 5:25])
    assert batch["label"].tolist() == [1, 0, 1]
    assert (len(source), source.class_names) == (5, ("daisy", "rose"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("0.5", 0.5),
        ("false", False),
        ("True", True),
        ("((1,2),(3,4))", ((1, 2), (3, 4))),
        ("[1, 2]", (1, 2)),
        ("silu", "silu"),
        ("None", "None"),
        ("{1: 2}", "{1: 2}"),
        ("b'x'", "b'x'"),
    ],
)
def test_free_flags_are_parsed(text, value):
    """Values that can be saved as JSON; written with = or with a space."""
    flag = "--config.model.options.width"
    for argv in (["main.py", "--workdir=x", f"{flag}={text}"], ["main.py", flag, text, "--workdir=x"]):
        assert choices.take_free_flags(argv) == (["main.py", "--workdir=x"], {"model.options.width": value})
    assert choices.take_free_flags([flag, "--workdir=x"]) == (["--workdir=x"], {"model.options.width": True})
    config = defaults.get_config()
    choices.set_free_fields(config, {"model.options.width": 1})
    choices.set_free_fields(config, {"model.options.width": value})  # of another type
    config.model.name = "my_parts:Mlp"
    assert choices.options_of(config, choices.NETWORK) == {"width": value}
    recorded = json.loads(json.dumps(config.to_dict()))
    config_changes.check("run", recorded, config.to_dict(), resume=True)


def test_changed_code_is_another_sampler(my_parts):
    """Images of the old code in a cache are not those of the new code."""
    config = digits.get_config()
    config.sampling.sampler = "my_parts:euler"
    before = [sampling_config.identity_of(config, "sample", 1, ""), sampling_config.cache_identity(config, {}, 1, "", None)]
    file = my_parts / "my_parts.py"
    file.write_text(file.read_text() + "\n# changed\n")
    same = sampling_config.identity_of(config, "sample", 1, "")
    assert same == before[0]  # the imported code is still in use
    sys.modules.pop("my_parts")  # as in a new process
    after = [sampling_config.identity_of(config, "sample", 1, ""), sampling_config.cache_identity(config, {}, 1, "", None)]
    assert all(old != new and old.keys() == new.keys() for old, new in zip(before, after, strict=True))
    extractor = features.make_extractor("my_parts:quarter_means", options={"parts": 2})
    assert extractor.provenance["my_parts.py"] == after[1]["my_parts.py"]


BROKEN = {
    "model.name": {
        "WIDTH = 3": "WIDTH is of type int: a function or class is required",
        "raise SystemExit(2)": "cannot be imported: SystemExit",
        "def WIDTH(out_channels, num_classes): return 3": "is a int: a flax module is required",
        "def WIDTH(channels=1): return 3": "has no parameter 'out_channels'",
    },
    "diffusion.schedule": {
        "def WIDTH(T): return 1 / 0": r"fails: .*ZeroDivisionError.* \(line 1 of .*broken\.py\)",
        "def WIDTH(): return 1": "has 0 positional parameters: 1 are required",
        "def WIDTH(T): return ['a'] * T": r"returns a list: \[1000\] numbers are required",
        "def WIDTH(T): return print": "returns a builtin_function_or_method",
    },
    "data.name": {
        "def WIDTH(): return 3": "has no parameter 'split'",
        "def WIDTH(split): return 3": "is a int without name, split, .*: an ImageSource is required",
    },
}


@pytest.mark.parametrize(("field", "source"), [(field, source) for field, cases in BROKEN.items() for source in cases])
def test_broken_parts_are_one_line(field, source, my_parts, monkeypatch):
    (my_parts / "broken.py").write_text(source + "\n")
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    config = digits.get_config()
    config.update_from_flattened_dict({field: "broken:WIDTH"})
    check = data_config.load_source if field == "data.name" else config_validation.check_config
    with pytest.raises(ExpectedError, match=BROKEN[field][source]) as caught:
        check(config)
    assert "\n" not in str(caught.value)


def test_networks_of_ones_own_leave_compiler_settings_alone(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    config = digits.get_config()
    config.model.name = "my_parts:Mlp"
    compiler_config.configure_cpu(config)
    config.model.name = "my_parts:Missing"
    compiler_config.configure_cpu(config)  # the validation reports it
