"""The command line: `ddpm-jax`, `python -m ddpm_jax` and, in a clone, `python main.py`."""

import importlib
import logging as py_logging
import os
import signal
import sys
import textwrap

try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ModuleNotFoundError as error:  # usually the virtual environment is not active
    setup = "`source .venv/bin/activate` (after make demo), or `python -m pip install -r requirements.txt`, and try again"
    sys.exit(f"error: {sys.executable} does not have the package {error.name}: run {setup}")

import ddpm_jax
from ddpm_jax import choices, config_file, configs, user_messages
from ddpm_jax.cli import modes
from ddpm_jax.configs import defaults
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UsageError, format_flag_error

HELP = """Train, sample and evaluate denoising diffusion probabilistic models.

  {command} --config=digits --workdir=runs/digits
  {command} --workdir=runs/digits --mode=sample --config.sampling.num_images=16

The first command trains; rerun it to resume. The config is saved in the workdir, so --config can be omitted afterwards.
  {command} compare runs/a runs/b
  {command} score IMAGES --reference=REAL --features=inception
  {command} export runs/digits --format=safetensors
  {command} app runs/digits
  {command} plan h100x8 --config=cifar10
  {command} prepare --from=PHOTOS --to=DIR --size=64
  {command} import --from=models/ddpm-cifar10-32 --workdir=runs/imported
Each config field is a flag, such as --config.optimizer.learning_rate=1e-4; {fields} lists all fields.

modes:
{modes}

flags:
{flags}

configs:
{configs}
"""

LOGGER = py_logging.getLogger(__name__)
FLAGS = flags.FLAGS
_GIVEN: list[str] = []  # names of the flags of the command line
config_flags.DEFINE_config_file(
    "config", None, "Name of a config below, or path of a file such as configs/digits.py.", lock_config=True
)
FLAGS["config"].parser = config_file.ConfigFileParser(defaults.get_config())
flags.DEFINE_string("workdir", None, "Run directory with checkpoints, metrics and samples; created if missing.")
flags.DEFINE_enum("mode", "train", list(modes.MODES), "One of the modes above.")
modes.define_flags(FLAGS)
flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder of compiled programs, also gs://; 'workdir' for one in the workdir, the default of a job of several processes; "
    "'' for none. Default on one host: JAX_COMPILATION_CACHE_DIR, or ~/.cache/ddpm_jax/xla.",
)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, on clusters that JAX does not detect.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
flags.DEFINE_integer("process_id", None, "With --coordinator: index of this process, from 0.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line. Without --config, use the config saved in the workdir.

    Prints the help or the version and exits if that is asked for.
    """
    if {"--help", "-help", "-h", "--helpshort"} & set(argv[1:]):
        print(help_text(), end="")
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"ddpm_jax {ddpm_jax.__version__}")
        sys.exit(0)
    try:
        argv = _config_first([_with_home(argument) for argument in modes.expand_short_form(argv)])
        given = [argument.lstrip("-").split("=")[0] for argument in argv if argument.startswith("-")]
        has_config = "config" in given
        if not has_config and modes.default_config(argv):
            argv, has_config = [argv[0], "--config=defaults", *argv[1:]], True
        elif not has_config and "workdir" in given:
            named = flags.FlagValues()
            flags.DEFINE_string("workdir", None, "", flag_values=named)
            named(argv, known_only=True)
            folder = named.workdir and storage.as_path(named.workdir).expanduser()
            if folder and (folder / "config.json").exists():
                argv, has_config = [argv[0], f"--config=from_workdir:{folder}", *argv[1:]], True
        fields = [name for name in given if name.startswith("config.")]
        if fields and not has_config:
            where = "--config is missing, and the workdir contains no saved config"
            raise UsageError(f"{where}: --{fields[0]} needs a config, such as --config=digits")
        argv, free = choices.take_free_flags(argv)
        typed, sys.argv = sys.argv, list(argv)  # ml_collections parses sys.argv
        try:
            rest = FLAGS(argv)
        finally:
            sys.argv = typed  # recorded in the workdir
        if FLAGS.config is not None:
            choices.set_free_fields(FLAGS.config, free)
            _GIVEN[:] = given
        if name := config_file.repeated_lists(FLAGS, argv):
            raise UsageError(f"--{name} is given more than once: give the whole list in one flag")
    except ExpectedError as error:
        exit_with_error(error)
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError, RuntimeError, OSError) as error:
        exit_with_error(UsageError(format_flag_error(error)))
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # silence INFO logs of third-party libraries
    return rest


def help_text() -> str:
    """The text of --help: the modes, the flags of this program and the shipped configs."""
    by_module = FLAGS.flags_by_module_dict()
    own = [flag for name in (__name__, modes.__name__) for flag in by_module[name] if "." not in flag.name]
    rows = [(f"--{flag.name}", flag.help or "") for flag in sorted(own, key=lambda flag: flag.name)]
    rows += [("--version", "Print the version."), ("--helpfull", "Print the flags of all libraries.")]
    return HELP.format(
        command=" ".join(user_messages.program_command()),
        fields=user_messages.defaults_file(),
        modes="\n".join(f"  {name:<16}{mode.help}" for name, mode in modes.MODES.items()),
        flags="\n".join(
            textwrap.fill(text, 120, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24) for name, text in rows
        ),
        configs=textwrap.fill(", ".join(configs.names()), 120, initial_indent="  ", subsequent_indent="  "),
    )


def _config_first(argv: list[str]) -> list[str]:
    """Move --config before the flags of its fields, as ml_collections requires."""
    for index, argument in enumerate(argv):
        if argument.lstrip("-").partition("=")[0] == "config" and argument.startswith("-"):
            end = index + (1 if "=" in argument else 2)
            return [argv[0], *argv[index:end], *argv[1:index], *argv[end:]]
    return argv


def _with_home(argument: str) -> str:
    """Expand ~ in --config=~/file.py, which ml_collections does not do."""
    head, equals, path = argument.partition("=")
    return f"{head}={os.path.expanduser(path)}" if equals and head.lstrip("-") == "config" else argument


def main(argv: list[str]) -> None:
    """Set up JAX and run the mode."""
    user_messages.configure_logging(defaults.get_config().to_dict())
    try:
        if len(argv) > 1:
            advice = f"write --mode={argv[1]}" if argv[1] in modes.MODES else "flags start with --; --help lists them"
            raise UsageError(f"unexpected argument {argv[1]!r}: {advice}")
        mode = modes.MODES[FLAGS.mode]
        modes.check_flags(FLAGS.mode, FLAGS)
        positional, named = modes.run_arguments(FLAGS.mode, FLAGS, _GIVEN)
        if not mode.config:
            sys.exit(importlib.import_module(f"ddpm_jax.cli.{FLAGS.mode}").run(*positional, **named))
        if mode.workdir and not FLAGS.workdir:
            raise UsageError("--workdir is missing: give a folder for the run, such as --workdir=runs/digits")
        if FLAGS.config is None:
            where = f", and {FLAGS.workdir} contains no run" if FLAGS.workdir else ""
            raise UsageError(f"--config is missing{where}: give a config, such as --config=digits")
        import jax

        from ddpm_jax import compilation_cache, compiler_config, config_validation, data_config
        from ddpm_jax.runtime import distributed, run_record, workdir

        config_validation.check_parts(FLAGS.config)
        choices.check_options_used(FLAGS.config, _GIVEN)
        if not config_flags.get_config_filename(FLAGS["config"]).startswith("from_workdir:"):  # it has those of earlier starts
            for line in choices.unused_options(FLAGS.config, defaults.get_config()):
                LOGGER.warning(line)
        is_distributed = False
        if mode.accelerator:
            is_distributed = distributed.initialize_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
            compiler_config.configure_cpu(FLAGS.config, own_devices=not is_distributed)
        else:
            jax.config.update("jax_platforms", "cpu")
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # CUDA's plugin logs that it finds no driver
        several = is_distributed and FLAGS.num_processes != 1
        cache = compilation_cache.folder_of(FLAGS.compilation_cache, FLAGS.workdir, several_processes=several)
        compilation_cache.enable(cache)
        if mode.workdir:
            # A workdir without a checkpoint accepts another data set (`run_record.check_config`).
            saved = run_record.latest_saved_step(workdir.absolute(FLAGS.workdir)) is not None
            identity = workdir.read_data_identity(FLAGS.workdir) if saved else None
            if identity is not None or FLAGS.mode != "train":  # a new run loads its data set
                data_config.complete(FLAGS.config, identity)
        module = importlib.import_module(f"ddpm_jax.cli.{FLAGS.mode}")  # import only the selected mode
        code = module.run(*positional, **named)
    except ExpectedError as error:
        exit_with_error(error)
    except KeyboardInterrupt:  # training saves its state and returns instead
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(code)


def exit_with_error(error: ExpectedError) -> None:
    """Print one line and exit."""
    print(f"error: {user_messages.name_fields(str(error), defaults.get_config().to_dict())}", file=sys.stderr)
    sys.exit(error.exit_code)


def run() -> None:
    """Run the command line of this process."""
    app.run(main, flags_parser=parse_flags)
