"""Generates every figure of README.md and docs/ with the current program: `make figures`.

python docs/make_figures.py                      # all except the slow ones: about 12 minutes on two free cores
python docs/make_figures.py --slow               # including the slow ones: an hour or more on a CPU
python docs/make_figures.py --only chain reverse
python docs/make_figures.py --list               # lists the command of each figure

Trains the networks in runs/figures/, runs the commands of FIGURES and copies each figure to docs/images/, with its command
and a hash of the program's sources in the file. A figure whose command and sources match its file is skipped (unless
--force), and an interrupted run resumes. If the sources change, the figures are generated again and the small networks are
trained again; the large ones are only trained again if their command changes.
Exit code 0; 1 if a figure failed.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shlex
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from figure_files import read_stamp, save, save_animation

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RUNS = "runs/figures"
MAIN = "python main.py"
TUTORIAL = "python docs/tutorial_figures.py"
DATA = "TFDS_DIR"  # in a command: --data_dir, the folder of CIFAR-10 and Fashion-MNIST
PHOTOS = "FLOWERS_DIR"  # in a command: --flowers_dir, a folder of photographs in subfolders
LARGE = 300_000  # bytes, above which a page loads slowly


@dataclasses.dataclass(frozen=True)
class Run:
    """A network to train.

    Attributes:
      fields: of the command line, after the program.
      slow: whether training takes hours on a CPU.
    """

    fields: str
    slow: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
      command: shell command, run in the repository.
      file: pattern of the file that the command writes; one command may write several figures.
      run: the network that it needs, a key of TRAINED, or "".
      trains: whether the command itself trains networks, for long.
      browser: whether the command needs Chromium and the packages of requirements-browser.txt.
    """

    command: str
    file: str
    run: str = ""
    trains: bool = False
    browser: bool = False

    @property
    def slow(self) -> bool:
        return self.trains or self.browser or (bool(self.run) and TRAINED[self.run].slow)


TRAINED = {
    "digits": Run("--config=configs/digits.py"),
    "averages": Run(
        '--config=configs/digits.py --config.ema.power_sigma_rel="(0.05,0.1)" --config.ema.extra_decays="(0.99,)" '
        "--config.train.checkpoint_every=50 --config.train.keep_period=50 --config.train.sample_every=0"
    ),
    "fashion_mnist": Run(
        f"--config=configs/fashion_mnist.py --config.data.data_dir={DATA} --config.train.num_steps=6000", slow=True
    ),
    "superres_fashion": Run(f"--config=configs/superres_fashion.py --config.data.data_dir={DATA}", slow=True),
    "cifar10": Run(
        f"--config=configs/cifar10.py --config.data.data_dir={DATA} --config.model.dtype=bfloat16 "
        "--config.train.num_steps=3457 --config.train.sample_every=0",
        slow=True,
    ),
    "flowers": Run(
        f"--config=configs/image_folder.py --config.data.data_dir={PHOTOS} --config.data.image_size=24 "
        "--config.data.num_classes=5 --config.model.class_conditional=True --config.model.unet.ch=32 "
        '--config.model.unet.ch_mult="(1,2,2)" --config.model.unet.attn_resolutions="(6,)" '
        "--config.model.unet.num_res_blocks=1 --config.model.unet.dropout=0.0 "
        "--config.optimizer.learning_rate=1e-3 --config.optimizer.warmup_steps=100 "
        "--config.ema.decay=0.999 --config.train.num_steps=6000 --config.train.batch_size=16 --config.train.sample_every=1000 "
        "--config.sampling.sampler=dpmpp_2m --config.sampling.num_steps=20",
        slow=True,
    ),
}


def command_for_run(run: str, fields: str, output: str) -> str:
    """A command that runs a mode on a trained network and writes into its own folder."""
    return f"{MAIN} --workdir={RUNS}/{run} {fields} --output={RUNS}/pictures/{output}"


CHAINS = command_for_run(
    "digits",
    "--mode=visualize --config.visualize.num_images=3 --config.sampling.sampler=ancestral --config.sampling.num_steps=1000 "
    "--config.sampling.seed=2",
    "visualize",
)
LENGTHS = ",".join(f"'power_{length}'" for length in (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25))
FRECHET = "--mode=evaluate --config.evaluation.class_proportions=uniform --config.evaluation.metrics=\"('frechet',)\""

FIGURES = {
    "digits": Figure(command_for_run("digits", "--mode=sample", "digits"), "grid.png", "digits"),
    "chain": Figure(CHAINS, "chain.png", "digits"),
    "reverse": Figure(CHAINS, "reverse.png", "digits"),
    "chain_animation": Figure(
        command_for_run(
            "digits",
            "--mode=visualize --config.visualize.num_images=8 --config.sampling.sampler=ancestral "
            "--config.sampling.num_steps=1000",
            "chain_animation",
        ),
        "chain.webp",
        "digits",
    ),
    "forward": Figure(
        f"{MAIN} --config=configs/cifar10.py --workdir={RUNS}/forward --mode=visualize --config.data.data_dir={DATA} "
        f"--config.visualize.num_images=2 --config.visualize.num_stages=9 --output={RUNS}/pictures/forward",
        "forward.png",
    ),
    "inpaint": Figure(
        command_for_run("digits", "--mode=inpaint --config.edit.split=test --config.edit.mask=bottom", "inpaint"),
        "inpaint.png",
        "digits",
    ),
    "bound": Figure(
        command_for_run("digits", "--mode=evaluate --config.evaluation.metrics=\"('bits_per_dim',)\"", "bound"),
        "*.png",
        "digits",
    ),
    "evaluations": Figure(
        command_for_run(
            "digits",
            f"{FRECHET} --config.evaluation.samplers=\"('ddim','ancestral')\" "
            '--config.evaluation.num_steps="(10,20,50,100,250)"',
            "evaluations",
        ),
        "evaluations.png",
        "digits",
    ),
    "lengths": Figure(
        command_for_run(
            "averages",
            f"{FRECHET} --config.sampling.sampler=dpmpp_2m --config.sampling.num_steps=20 --config.sampling.spacing=logsnr "
            f'--config.evaluation.params="({LENGTHS})"',
            "lengths",
        ),
        "lengths.png",
        "averages",
    ),
    "unet": Figure(f"{TUTORIAL} unet --output={RUNS}/pictures/unet", "unet.png"),
    "steps": Figure(f"{TUTORIAL} steps --output={RUNS}/pictures/steps", "steps.png"),
    "gaussians": Figure(f"{TUTORIAL} gaussians --output={RUNS}/pictures/gaussians", "gaussians.png"),
    "loss": Figure(f"{TUTORIAL} loss --workdir={RUNS}/digits --output={RUNS}/pictures/loss", "loss.png", "digits"),
    "samplers": Figure(f"python benchmarks/mixture.py --plot={RUNS}/pictures/samplers/samplers.png", "samplers.png"),
    "fashion_mnist": Figure(command_for_run("fashion_mnist", "--mode=sample", "fashion_mnist"), "grid.png", "fashion_mnist"),
    "super_resolution": Figure(
        command_for_run("superres_fashion", "--mode=sample", "super_resolution"), "grid.png", "superres_fashion"
    ),
    "cifar10_gpu": Figure(  # in minutes on a GPU
        command_for_run("cifar10", "--mode=sample --config.sampling.num_images=64", "cifar10_gpu"), "grid.png", "cifar10"
    ),
    "flowers": Figure(command_for_run("flowers", "--mode=sample", "flowers"), "grid.png", "flowers"),
    "app": Figure(
        f"python docs/app_figure.py --workdir={RUNS}/digits --output={RUNS}/pictures/app", "app.png", "digits", browser=True
    ),
    "bfloat16": Figure(f"python benchmarks/bfloat16.py --folder={RUNS}/pictures/bfloat16", "losses.png", trains=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FIGURES), help="only these, including slow ones")
    parser.add_argument("--slow", action="store_true", help="also the figures whose networks train for hours")
    parser.add_argument("--force", action="store_true", help="also generate figures that are up to date")
    parser.add_argument("--list", action="store_true", help="list the command of each figure and exit")
    parser.add_argument(
        "--data_dir",
        default=default_data(),
        help="folder of the TFDS sets; by default $DDPM_JAX_TEST_DATA/tfds, or TFDS's default folder",
    )
    parser.add_argument("--flowers_dir", help="folder with subfolders of photographs, for flowers.png")
    options = parser.parse_args()
    chosen = options.only or [name for name, figure in FIGURES.items() if options.slow or not figure.slow]
    if options.list:
        print("\n".join(f"{path_of(name).name}{' (slow)' * FIGURES[name].slow}: {full_command(name)}" for name in FIGURES))
        return 0

    start, failed = time.monotonic(), []
    for name in chosen:
        if not options.force and is_current(name):
            print(f"{path_of(name).name} is up to date", flush=True)
            continue
        try:
            size = make(name, options)
        except subprocess.CalledProcessError as error:
            print(f"error: {name} failed: exit code {error.returncode} of: {error.cmd}", file=sys.stderr, flush=True)
            failed.append(name)
        except FileNotFoundError as error:
            print(f"error: {name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        else:
            print(f"{path_of(name).name}: {size:,} bytes" + (f", more than {LARGE:,}" if size > LARGE else ""), flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - start:,.0f} s; CPU time {used.ru_utime + used.ru_stime:,.0f} s")
    return 1 if failed else 0


def default_data() -> str:
    """The TFDS folder of the tests, or "" for TFDS's default folder."""
    data = os.environ.get("DDPM_JAX_TEST_DATA")
    return str(pathlib.Path(data, "tfds").absolute()) if data else ""


def full_command(name: str) -> str:
    """The shell commands that generate a figure."""
    figure = FIGURES[name]
    return f"{training_command(figure.run)} && {figure.command}" if figure.run else figure.command


def training_command(run: str) -> str:
    return f"{MAIN} {TRAINED[run].fields} --workdir={RUNS}/{run}"


def sources() -> str:
    """A hash of all files that determine the figures."""
    digest = hashlib.sha256()
    scripts = ("main.py", "benchmarks/mixture.py", "docs/tutorial_figures.py")
    files = [*(ROOT / script for script in scripts), *ROOT.glob("ddpm_jax/**/*.py"), *ROOT.glob("configs/*.py")]
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def is_current(name: str) -> bool:
    """Whether docs/images has this figure from this command and, except for slow ones, from these sources."""
    stamp = stamp_of(name)
    return stamp.get("command") == full_command(name) and (FIGURES[name].slow or stamp["sources"] == sources())


def path_of(name: str) -> pathlib.Path:
    """The file of a figure in docs/images."""
    return IMAGES / f"{name}{pathlib.Path(FIGURES[name].file).suffix}"


def stamp_of(name: str) -> dict[str, str]:
    """The command and the hash of the sources of the figure in docs/images; empty without a figure."""
    return read_stamp(path_of(name)) if path_of(name).exists() else {}


def make(name: str, options: argparse.Namespace) -> int:
    """Generates one figure; returns its size in bytes.

    Raises:
      CalledProcessError: a command failed.
      FileNotFoundError: the command did not write the figure, or needs a folder of images.
    """
    figure = FIGURES[name]
    if figure.run:
        train(figure.run, options)
    output = ROOT / RUNS / "pictures" / name
    if figure.command == CHAINS:
        output = output.with_name("visualize")
    done = output.with_suffix(".json")
    stamp = {"command": full_command(name), "sources": sources()}
    if options.force or not (done.exists() and json.loads(done.read_text()) == stamp):  # one command may write two figures
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        call(figure.command, options)
        done.write_text(json.dumps(stamp))
    found = sorted(output.rglob(figure.file))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files {figure.file} in {output}, not one")
    target = path_of(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    return (save_animation if target.suffix == ".webp" else save)(found[0], target, stamp)


def train(run: str, options: argparse.Namespace) -> None:
    """Trains or resumes a network, or does nothing if this program has already trained it. Raises as `make`."""
    folder, stamp_file = ROOT / RUNS / run, ROOT / RUNS / f"{run}.json"
    stamp = {"command": training_command(run)}
    if not TRAINED[run].slow:
        stamp["sources"] = sources()
    state = json.loads(stamp_file.read_text()) if stamp_file.exists() else {}
    if state == {**stamp, "finished": True} and folder.exists():
        return
    if {key: state.get(key) for key in stamp} != stamp:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        stamp_file.write_text(json.dumps(stamp))
    call(training_command(run), options)
    stamp_file.write_text(json.dumps({**stamp, "finished": True}))


def call(command: str, options: argparse.Namespace) -> None:
    """Runs a command of FIGURES or TRAINED. Raises as `make`."""
    print(f"$ {command}", flush=True)
    line = [sys.executable, *shlex.split(command)[1:]]
    for placeholder, folder, option in ((DATA, options.data_dir, ""), (PHOTOS, options.flowers_dir, "--flowers_dir")):
        if option and not folder and placeholder in command:
            raise FileNotFoundError(f"the command needs a folder of photographs: set {option}=DIR")
        line = [part.replace(placeholder, str(pathlib.Path(folder).expanduser().absolute()) if folder else "") for part in line]
    subprocess.run(line, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
