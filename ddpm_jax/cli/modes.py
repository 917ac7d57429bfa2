"""The modes of the command line: what each needs, and its own flags. A new mode is an entry here and a file in cli/."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from ddpm_jax.user_messages import UsageError


class Mode(NamedTuple):
    """A mode, whose `run` gets the config, the workdir and the flags that it has.

    Attributes:
      help: its line in --help.
      config: "run" if it needs --config or the config of the workdir, "defaults" if the default config serves, or "" if it
        reads none.
      workdir: whether it needs --workdir.
      arguments: its own flags -> the parameters of `run` that get their values.
      words: the flag of the words in the short form `ddpm-jax MODE words`.
      fields: short names of flags of the config -> fields, such as --format for --config.export.format.
      given: whether `run` gets `given`, the names of the flags on the command line.
      accelerator: whether it may use accelerators, and other processes of a cluster.
    """

    help: str
    config: str = "run"
    workdir: bool = True
    arguments: Mapping[str, str] = {"output": "output"}
    words: str = ""
    fields: Mapping[str, str] = {}
    given: bool = False
    accelerator: bool = True


PREPARE_FLAGS = {
    "size": "side of the images, such as 64, or height x width, such as 64x96.",
    "crop": "center (the default), or adm: as guided-diffusion crops and resizes ImageNet.",
    "channels": "1 (gray) or 3 (RGB), the default.",
    "background": "color behind transparent pixels, a name or #rrggbb; white by default.",
    "levels": "black and white levels of gray files of more than 8 bits, such as 0,4095; found by default.",
    "on_decode_error": "error (the default) or skip: leave out files that cannot be read.",
    "num_threads": "number of files that are decoded at once; by default the number of CPUs.",
}
MODES: dict[str, Mode] = {
    "train": Mode("train a model, or resume the run in the workdir; the default", arguments={"profile": "profile"}),
    "sample": Mode("generate images"),
    "inpaint": Mode("regenerate the masked part of images"),
    "image_to_image": Mode("generate variants of images (SDEdit)"),
    "interpolate": Mode("generate the images between two images"),
    "visualize": Mode("plot the forward and the reverse process"),
    "evaluate": Mode("compute Fréchet distance, KID, precision, recall and bits/dim"),
    "score": Mode(
        "compute the same scores for images that exist, made by any program",
        config="defaults",
        workdir=False,
        arguments={"images": "images", "reference": "real", "resize": "resize", "output": "output"},
        words="images",
        fields={
            **{name: f"evaluation.{name}" for name in ("features", "metrics", "inception_path", "max_features", "batch_size")},
            **{name: f"data.{name}" for name in ("data_dir", "on_decode_error", "num_threads")},
        },
        given=True,
    ),
    "import": Mode(
        "make a workdir of weights that another program trained",
        config="defaults",
        arguments={"from": "source", "new_attention_order": "new_attention_order"},
        words="from",
        given=True,
    ),
    "compare": Mode(
        "compare several runs: configs, losses, scores and speed",
        config="",
        workdir=False,
        arguments={"runs": "folders", "output": "output"},
        words="runs",
    ),
    "plan": Mode(
        "estimate memory and time on a machine that need not be present: compile for it, run nothing",
        workdir=False,
        arguments={"workdir": "folder"}
        | {name: name for name in ("target", "suggest", "sampling", "output", "compilation_cache")},
        words="target",
        accelerator=False,
    ),
    "export": Mode(
        "write the weights, or programs that contain them, for other tools",
        words="workdir",
        fields={"format": "export.format"},
    ),
    "app": Mode(
        "serve a page to generate, inpaint, edit and interpolate images in a browser",
        arguments={name: name for name in ("host", "port", "browser")},
        words="workdir",
    ),
    "compute_stats": Mode("save the statistics of a data set, for evaluate"),
    "prepare": Mode(
        "decode, crop and resize a folder of images once, for fast training",
        config="",
        workdir=False,
        arguments={"from": "source", "to": "target"} | {name: name for name in PREPARE_FLAGS},
        words="from",
    ),
}
FLAGS = {  # flags that not every mode has -> help
    "output": "output folder (compute_stats: file); by default in the workdir.",
    "runs": "workdirs of the runs, such as runs/a,runs/b; short: compare runs/a runs/b.",
    "images": "folder, zip, .npz or .npy of images, tfds:NAME@SPLIT, statistics or a workdir; short: score IMAGES. More flags: "
    "--features, --metrics, --inception_path, --max_features, --batch_size, --data_dir, --on_decode_error, --num_threads.",
    "reference": "what to compare with, named as --images; a workdir is its data set.",
    "resize": "filter for images of another size, bicubic, lanczos, bilinear, box or hamming; with a size, bicubic:64.",
    "from": "import: file or folder of the weights (docs/weights.md); prepare: folder of images (docs/data.md).",
    "to": "folder to write: new, empty, or with the same set, which is then completed.",
    **PREPARE_FLAGS,
    "new_attention_order": "whether the weights were trained with guided-diffusion's use_new_attention_order.",
    "target": "machine: l4, a100, h100, h200, b200x8, v4:2x2x2, v5e:2x4, v5p:2x2x1, v6e:2x4, cpu or cpux8; short: plan TARGET.",
    "suggest": "if it does not fit, compile again with accumulation_steps, remat, bfloat16 and mesh.fsdp, or all of them.",
    "sampling": "compile the sampler as well.",
    "host": "address to listen on; 127.0.0.1, the default, is this machine only.",
    "port": "port of the page; by default the first free one from 7860.",
    "browser": "open the page in a browser.",
    "profile": "FIRST:LAST, steps to profile, such as 20:25; the trace is in profile/ of the workdir.",
}
LISTS, SWITCHES = (
    ("runs",),
    ("new_attention_order", "suggest", "sampling", "browser"),
)  # those that are lists, and those that are true or false
TUPLES = ("metrics",)  # short names of fields that are tuples of words
REQUIRED = {
    "runs": "name the runs, such as compare runs/a runs/b",
    "images": "name what to score, such as score FOLDER --reference=REAL",
    "from": "give the file or folder to read, such as --from=models/64x64_diffusion.pt, or --from=PHOTOS of prepare",
    "to": "give the folder to write, such as --to=sets/photos64",
    "target": "give a machine, such as plan h100x8 --config=cifar10",
    "size": "give the size of the images, such as --size=64, or --size=64x96 for height x width",
}


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of FLAGS; the help of each names the modes that have it."""
    for name, text in FLAGS.items():
        define, default = flags.DEFINE_string, ""
        if name in LISTS:
            define, default = flags.DEFINE_list, []
        elif name in SWITCHES:
            define, default = flags.DEFINE_bool, False
        define(name, default, f"{_named(_modes_with(name))}: {text}", flag_values=values)


def expand_short_form(argv: Sequence[str]) -> list[str]:
    """Rewrite `ddpm-jax compare runs/a runs/b` to flags, and short names of config flags to their fields.

    Raises:
      UsageError: more words than the mode takes, or words and the flag that they are short for.
    """
    name = argv[1] if len(argv) > 1 and MODES.get(argv[1], MODES["train"]).words else _mode_of(argv)
    mode = MODES.get(name)
    if mode is None:
        return list(argv)
    is_short = argv[1:2] == [name] and bool(mode.words)
    words, rewritten, rest = [], [f"--mode={name}"] * is_short, list(argv[1 + is_short :])
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") and is_short:
            words.append(argument)
            continue
        if argument.startswith("-") and flag in mode.fields:
            value = str(tuple(word for word in value.split(",") if word)) if flag in TUPLES else value
            argument = f"--config.{mode.fields[flag]}{equals}{value}"
        rewritten.append(argument)
        if argument.startswith("-") and not equals and flag not in SWITCHES and rest and not rest[0].startswith("-"):
            rewritten.append(rest.pop(0))  # the value of the flag
    if mode.words not in LISTS and len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}: {name} takes one, and flags are --NAME=VALUE")
    if not words:
        return [argv[0], *rewritten]
    if any(argument.lstrip("-").split("=")[0] == mode.words for argument in rewritten if argument.startswith("-")):
        raise UsageError(f"unexpected argument {words[0]!r}: --{mode.words} is given too")
    # The serializer quotes a path with a comma, so that the parser does not split it.
    joined = flags.CsvListSerializer(",").serialize(words) if mode.words in LISTS else words[0]
    return [argv[0], f"--{mode.words}={joined}", *rewritten]  # before a last flag without a value, which would take it


def default_config(argv: Sequence[str]) -> bool:
    """Whether a command line without --config uses the default config."""
    mode = MODES.get(_mode_of(argv))
    return mode is not None and mode.config == "defaults"


def check_flags(name: str, values: flags.FlagValues) -> None:
    """Check that a mode has the flags that were given, and that none is missing.

    Raises:
      UsageError: it does not have one, or one is missing.
    """
    mode = MODES[name]
    for flag in FLAGS:
        if values[flag].value and flag not in mode.arguments:
            others = _modes_with(flag)
            if len(others) < len(MODES) / 2:
                raise UsageError(f"--{flag} is for {_named(others)} only: leave it out with --mode={name}")
            raise UsageError(f"--mode={name} has no --{flag}: leave it out")
        if not values[flag].value and flag in mode.arguments and flag in REQUIRED:
            raise UsageError(f"--{flag} is missing: {REQUIRED[flag]}")
    if not mode.workdir and values.workdir and "workdir" not in mode.arguments:
        raise UsageError(f"--mode={name} has no --workdir: leave it out")
    if not mode.config and values.config is not None:
        raise UsageError(f"--mode={name} reads no config: leave out --config")


def run_arguments(name: str, values: flags.FlagValues, given: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of the `run` of a mode."""
    mode = MODES[name]
    positional = ([values.config] if mode.config else []) + ([values.workdir] if mode.workdir else [])
    named = {parameter: values[flag].value for flag, parameter in mode.arguments.items()}
    return positional, named | ({"given": tuple(given)} if mode.given else {})


def _mode_of(argv: Sequence[str]) -> str:
    """The value of --mode; "train" if it is not given."""
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "mode":
            return value if equals else following
    return "train"


def _modes_with(flag: str) -> list[str]:
    return [name for name, mode in MODES.items() if flag in mode.arguments]


def _named(names: Sequence[str]) -> str:
    """--mode=a, or --mode=a or b; all but x if that is shorter."""
    others = [name for name in MODES if name not in names]
    if len(others) < len(names):
        return f"all modes except {', '.join(others)}"
    return f"--mode={' or '.join(names)}"
