"""docs/extending.md: its parts are short, its commands train and sample with them, and `--workdir` alone finds them again."""

import ast
import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax import build, choices, config_validation
from ddpm_jax.cli import evaluate, sample, train
from ddpm_jax.configs import defaults, digits
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
    "train.tensorboard": False,
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
    assert len(parts) == 10
    assert all(part.end_lineno - part.lineno < 30 for part in parts)


def test_the_page_shows_every_choice():
    shown = {name for arguments in COMMANDS for name in configured(arguments)[1]}
    assert {f"config.{choice.path}" for choice in choices.CHOICES} <= shown


@pytest.mark.parametrize("arguments", [c for c in COMMANDS if "--config=configs/digits.py" in c], ids=lambda c: c[1])
def test_the_training_commands_train(arguments, my_parts):
    config, flags = configured(arguments)
    assert train.run(config, flags["workdir"]) == 0
    recorded = json.loads((my_parts / flags["workdir"] / "config.json").read_text())
    own = [choice for choice in choices.CHOICES if str(recorded[choice.section][choice.field]).startswith("my_parts:")]
    assert len(own) == 1
    assert recorded[own[0].section][own[0].own] == choices.options_of(config, own[0])


def test_sampling_and_evaluation_use_the_parts(my_parts, monkeypatch):
    """Euler's method is DDIM, to float32 rounding."""
    network, with_euler, with_features = COMMANDS[0], COMMANDS[-3], COMMANDS[-1]
    assert "--config.sampling.sampler=my_parts:euler" in with_euler
    config, flags = configured(network)
    train.run(config, flags["workdir"])
    images = {}
    for name, arguments in (("ddim", COMMANDS[1]), ("euler", with_euler)):
        config, _ = configured([*network, *arguments[2:]])
        config.sampling.num_intermediates = 2
        assert sample.run(config, flags["workdir"], output=name) == 0
        with np.load(my_parts / name / "images.npz") as file:
            images[name] = file["images"].astype(int)
    assert images["euler"].shape == (16, 8, 8, 1)
    assert np.abs(images["euler"] - images["ddim"]).max() <= 1
    config, flags = configured([*network, *with_features[2:]])
    assert evaluate.run(config, flags["workdir"]) == 0


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


def test_a_changed_file_is_reported_at_a_resume(my_parts, printed_log, capsys):
    own = ["--config.diffusion.schedule=my_parts:scaled_linear"]
    config, _ = configured([*own, "--config.train.num_steps=1"])
    train.run(config, "run")
    file = my_parts / "my_parts.py"
    file.write_text(file.read_text() + "\n# changed\n")
    config, _ = configured(own)
    train.run(config, "run")
    assert 'resuming at step 1; changed: train.num_steps 1 -> 2, my_parts.py "' in capsys.readouterr().err


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
        (["config.model.options.width"], "no effect, since config.model.name is unet"),
        (["config.diffusion.cosine.s"], "config.diffusion.schedule is linear"),
        (["config.sampling.ddim.eta", "config.model.unet.ch", "config.seed", "config.optimizer.adam.b1", "workdir"], None),
    ],
)
def test_flags_of_parts_that_are_not_chosen_are_rejected(flags, message):
    config = defaults.get_config()
    if message is None:
        choices.check_flags(config, flags)
        return
    with pytest.raises(UsageError, match=message):
        choices.check_flags(config, flags)


def test_a_sweep_uses_the_options_of_all_its_samplers():
    config = defaults.get_config()
    config.evaluation.samplers = ("ddim", "unipc")
    choices.check_flags(config, ["config.sampling.unipc.order"])


def test_the_defaults_are_those_of_the_factories():
    """configs/defaults.py lists the options of these parts, with the defaults of their functions."""
    from ddpm_jax import models
    from ddpm_jax.diffusion import loss_weighting, schedules, timestep_sampling
    from ddpm_jax.runtime import registry
    from ddpm_jax.samplers import SAMPLERS
    from ddpm_jax.training import learning_rate
    from ddpm_jax.training.optimizer import OPTIMIZERS

    config = defaults.get_config()
    provided = {"out_channels", "num_classes", "dtype", "conv_fn", "upsample_conv_fn", "norm_fn", "trained"}
    registries = [
        (choices.NETWORK, models.NETWORKS),
        (choices.SCHEDULE, schedules.SCHEDULES),
        (choices.WEIGHTING, loss_weighting.WEIGHTINGS),
        (choices.TIMESTEP_SAMPLER, timestep_sampling.TIMESTEP_SAMPLERS),
        (choices.SAMPLER, SAMPLERS),
        (choices.OPTIMIZER, OPTIMIZERS),
        (choices.LEARNING_RATE, learning_rate.SCHEDULES),
    ]
    listed = set()
    for choice, factories in registries:
        for name in factories.keys() & config[choice.section].keys():
            expected = {k: v for k, v in registry.defaults(factories[name]).items() if k not in provided}
            assert config[choice.section][name].to_dict() == expected, name
            listed.add(f"{choice.section}.{name}")
    diffusion = {"linear", "cosine", "sigmoid", "min_snr_gamma", "p2", "edm"}
    optimizer = {"adam", "adamw", "lion", "muon", "sgd", "cosine", "linear", "inverse_sqrt", "cooldown"}
    assert listed == {"model.unet", "sampling.ddim", "sampling.unipc", "sampling.heun"} | {
        *(f"diffusion.{name}" for name in diffusion),
        *(f"optimizer.{name}" for name in optimizer),
    }


def test_networks_of_ones_own_leave_compiler_settings_alone(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    config = digits.get_config()
    config.model.name = "my_parts:Mlp"
    build.configure_cpu(config)
    config.model.name = "my_parts:Missing"
    build.configure_cpu(config)  # the validation reports it
