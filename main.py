"""Train, sample and measure denoising diffusion probabilistic models.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --workdir=runs/digits --mode=sample --config.sampling.num_images=16

Any field of a config can be set: --config.optimizer.learning_rate=1e-4; configs/defaults.py lists them all.
A workdir remembers its config: --config may be left out once it exists. The same command again resumes a run.
"""

import importlib
import os
import pathlib
import sys

try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ModuleNotFoundError as error:  # the first thing that goes wrong outside of the virtual environment
    setup = "`source .venv/bin/activate` (after make demo), or `python -m pip install -r requirements.txt`, and try again"
    sys.exit(f"error: {sys.executable} does not have the package {error.name}: run {setup}")

from configs import defaults
from ddpm_jax import config_file, user_messages
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UsageError, format_flag_error

# JAX, TensorFlow and the programs are imported after the flags are parsed, so that --help and typos are answered at once.
MODES = ("train", "sample", "inpaint", "image_to_image", "interpolate", "visualize", "evaluate", "compute_stats")
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ddpm_jax", "xla")
RUN_CONFIG = pathlib.Path(__file__).with_name("configs") / "from_workdir.py"

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
FLAGS["config"].parser = config_file.ConfigFileParser(defaults.get_config())
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, samples. Created if missing.")
flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train or resume; sample: generate images; inpaint, image_to_image, interpolate: start from images; "
    "visualize: figures of the chain; evaluate: metrics; compute_stats: save a data set's statistics. See README.md.",
)
flags.DEFINE_string("output", "", "All modes but train: folder to write to (compute_stats: file); by default in the workdir.")
flags.DEFINE_string("profile", "", "--mode=train: FIRST:LAST, steps to trace into the workdir's profile/, such as 20:25.")
flags.DEFINE_string("compilation_cache", CACHE, "Cache of compiled programs, so that each is compiled once; '' for none.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, on clusters that JAX does not recognize by itself.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes make up the job.")
flags.DEFINE_integer("process_id", None, "With --coordinator: the number of this process, from 0.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; without --config, take the one that the workdir remembers."""
    argv = _config_first([_with_home(argument) for argument in argv])
    given = [argument.lstrip("-").split("=")[0] for argument in argv if argument.startswith("-")]
    try:
        if "config" not in given and "workdir" in given:
            named = flags.FlagValues()
            flags.DEFINE_string("workdir", None, "", flag_values=named)
            named(argv, known_only=True)
            folder = named.workdir and pathlib.Path(named.workdir).expanduser()
            if folder and (folder / "config.json").exists():
                argv = [argv[0], f"--config={RUN_CONFIG}:{folder}", *argv[1:]]
                given.append("config")
        fields = [name for name in given if name.startswith("config.")]
        if fields and "config" not in given:
            where = "--config is missing, and the workdir holds no run that has one"
            raise UsageError(f"{where}: --{fields[0]} needs an experiment, such as --config=configs/digits.py")
        rest = FLAGS(argv)
        if name := config_file.repeated_lists(FLAGS, argv):
            raise UsageError(f"--{name} is given more than once: give the whole list once")
    except ExpectedError as error:
        stop(error)
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError) as error:
        stop(UsageError(format_flag_error(error)))
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # no INFO lines of other libraries
    return rest


def _config_first(argv: list[str]) -> list[str]:
    """The command line with --config before the fields that are set in it; ml_collections wants it so, in sys.argv too."""
    for index, argument in enumerate(argv):
        if argument.lstrip("-").partition("=")[0] == "config" and argument.startswith("-"):
            end = index + (1 if "=" in argument else 2)
            argv = [argv[0], *argv[index:end], *argv[1:index], *argv[end:]]
            sys.argv = list(argv)
            break
    return argv


def _with_home(argument: str) -> str:
    """--config=~/file.py with the home folder put in: ml_collections takes the path as it is."""
    head, equals, path = argument.partition("=")
    return f"{head}={os.path.expanduser(path)}" if equals and head.lstrip("-") == "config" else argument


def main(argv: list[str]) -> None:
    """Set JAX up and hand over to the program of the mode."""
    user_messages.configure_logging(defaults.get_config().to_dict())
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected argument {argv[1]!r}: flags start with --; --help lists them")
        if not FLAGS.workdir:
            raise UsageError("--workdir is missing: name a folder for the run, such as --workdir=runs/digits")
        if FLAGS.config is None:
            held = f"{FLAGS.workdir} holds no run yet"
            raise UsageError(f"--config is missing, and {held}: name an experiment, such as --config=configs/digits.py")
        if FLAGS.output and FLAGS.mode == "train":
            raise UsageError("--mode=train has no --output, it writes into --workdir: leave it out")
        if FLAGS.profile and FLAGS.mode != "train":
            raise UsageError(f"--profile is for --mode=train only: leave it out with --mode={FLAGS.mode}")
        import jax

        from ddpm_jax import build, data_config
        from ddpm_jax.runtime import mesh, run_record, workdir

        if FLAGS.compilation_cache:
            jax.config.update("jax_compilation_cache_dir", os.path.expanduser(FLAGS.compilation_cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        distributed = mesh.initialize_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        build.configure_cpu(FLAGS.config, own_devices=not distributed)
        # Until a checkpoint is saved the workdir is free for another set (`run_record.check_resume`).
        saved = run_record.latest_saved_step(workdir.absolute(FLAGS.workdir)) is not None
        identity = workdir.read_data_identity(FLAGS.workdir) if saved else None
        if identity is not None or FLAGS.mode != "train":  # a new training asks its data set
            data_config.complete(FLAGS.config, identity)
        program = importlib.import_module(f"ddpm_jax.cli.{FLAGS.mode}")  # no mode pays for what another needs
        options = {"profile": FLAGS.profile} if FLAGS.mode == "train" else {"output": FLAGS.output}
        code = program.run(FLAGS.config, FLAGS.workdir, defaults=defaults.get_config(), **options)
    except ExpectedError as error:
        stop(error)
    sys.exit(code)


def stop(error: ExpectedError) -> None:
    """End with one line."""
    print(f"error: {user_messages.name_fields(str(error), defaults.get_config().to_dict())}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
