"""Make every picture of README.md and docs/, by the program as it is: `make figures`.

python docs/make_figures.py                      # all but the slow ones: about 12 minutes of two free cores
python docs/make_figures.py --slow               # the slow ones too: an hour or more on a CPU
python docs/make_figures.py --only chain reverse
python docs/make_figures.py --list               # which command makes which picture

Trains what the pictures need in runs/figures/, runs the commands of FIGURES and copies each picture to docs/images/,
with its command and a hash of the program's sources in the PNG file. A picture whose command and sources are those of
its file is not made again (--force makes it), and what was stopped resumes; a change of the sources makes the pictures,
and trains the small networks, from the beginning. The large ones are trained again only if their command changes.
Exit code 0; 1 if a picture could not be made.
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

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RUNS = "runs/figures"
MAIN = "python main.py"
DATA = "TFDS_DIR"  # in a command: --data_dir, where CIFAR-10 and Fashion-MNIST are
PHOTOS = "FLOWERS_DIR"  # in a command: --flowers_dir, a folder of photographs in subfolders
LARGE = 300_000  # bytes of a picture that a page loads slowly


@dataclasses.dataclass(frozen=True)
class Run:
    """A network to be trained.

    Attributes:
      fields: of the command line, after the program.
      slow: whether training takes hours on a CPU.
    """

    fields: str
    slow: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
      command: as in a shell, in the repository.
      file: what the command writes, a pattern of one file; several figures may come from one command.
      run: the network that it needs, a key of TRAINED, or "".
    """

    command: str
    file: str
    run: str = ""

    @property
    def slow(self) -> bool:
        return bool(self.run) and TRAINED[self.run].slow


TRAINED = {
    "digits": Run("--config=configs/digits.py"),
    "averages": Run(
        '--config=configs/digits.py --config.ema.power_sigma_rel="(0.05,0.1)" --config.ema.extra_decays="(0.99,)" '
        "--config.train.checkpoint_every=50 --config.train.keep_period=50 --config.train.sample_every=0"
    ),
    "fashion_mnist": Run(
        f"--config=configs/fashion_mnist.py --config.data.data_dir={DATA} --config.train.num_steps=6000", slow=True
    ),
    "flowers": Run(
        f"--config=configs/image_folder.py --config.data.data_dir={PHOTOS} --config.data.image_size=24 "
        "--config.data.num_classes=5 --config.model.class_conditional=True --config.model.ch=32 "
        '--config.model.ch_mult="(1,2,2)" --config.model.attn_resolutions="(6,)" --config.model.num_res_blocks=1 '
        "--config.model.dropout=0.0 --config.optimizer.learning_rate=1e-3 --config.optimizer.warmup_steps=100 "
        "--config.ema.decay=0.999 --config.train.num_steps=6000 --config.train.batch_size=16 --config.train.sample_every=1000 "
        "--config.sampling.sampler=dpmpp_2m --config.sampling.num_steps=20",
        slow=True,
    ),
}


def of_run(run: str, fields: str, output: str) -> str:
    """A command that runs a mode on a trained network and writes into a folder of its own."""
    return f"{MAIN} --workdir={RUNS}/{run} {fields} --output={RUNS}/pictures/{output}"


CHAINS = of_run(
    "digits",
    "--mode=visualize --config.visualize.num_images=3 --config.sampling.sampler=ancestral --config.sampling.num_steps=1000 "
    "--config.sampling.seed=2",
    "visualize",
)
LENGTHS = ",".join(f"'power_{length}'" for length in (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25))
FRECHET = "--mode=evaluate --config.evaluation.class_proportions=uniform --config.evaluation.metrics=\"('frechet',)\""

FIGURES = {
    "digits": Figure(of_run("digits", "--mode=sample", "digits"), "grid.png", "digits"),
    "chain": Figure(CHAINS, "chain.png", "digits"),
    "reverse": Figure(CHAINS, "reverse.png", "digits"),
    "forward": Figure(
        f"{MAIN} --config=configs/cifar10.py --workdir={RUNS}/forward --mode=visualize --config.data.data_dir={DATA} "
        f"--config.visualize.num_images=2 --config.visualize.num_stages=9 --output={RUNS}/pictures/forward",
        "forward.png",
    ),
    "inpaint": Figure(
        of_run("digits", "--mode=inpaint --config.edit.split=test --config.edit.mask=bottom", "inpaint"),
        "inpaint.png",
        "digits",
    ),
    "bound": Figure(
        of_run("digits", "--mode=evaluate --config.evaluation.metrics=\"('bits_per_dim',)\"", "bound"), "*.png", "digits"
    ),
    "evaluations": Figure(
        of_run(
            "digits",
            f"{FRECHET} --config.evaluation.samplers=\"('ddim','ancestral')\" "
            '--config.evaluation.num_steps="(10,20,50,100,250)"',
            "evaluations",
        ),
        "evaluations.png",
        "digits",
    ),
    "lengths": Figure(
        of_run(
            "averages",
            f"{FRECHET} --config.sampling.sampler=dpmpp_2m --config.sampling.num_steps=20 --config.sampling.spacing=logsnr "
            f'--config.evaluation.params="({LENGTHS})"',
            "lengths",
        ),
        "lengths.png",
        "averages",
    ),
    "samplers": Figure(f"python benchmarks/mixture.py --plot={RUNS}/pictures/samplers/samplers.png", "samplers.png"),
    "fashion_mnist": Figure(of_run("fashion_mnist", "--mode=sample", "fashion_mnist"), "grid.png", "fashion_mnist"),
    "flowers": Figure(of_run("flowers", "--mode=sample", "flowers"), "grid.png", "flowers"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FIGURES), help="these, slow ones among them")
    parser.add_argument("--slow", action="store_true", help="also the pictures whose networks train for hours")
    parser.add_argument("--force", action="store_true", help="make a picture again that is up to date")
    parser.add_argument("--list", action="store_true", help="print which command makes which picture, and stop")
    parser.add_argument(
        "--data_dir",
        default=default_data(),
        help="where TFDS sets are; by default $DDPM_JAX_TEST_DATA/tfds, or else where TFDS keeps and prepares them",
    )
    parser.add_argument("--flowers_dir", help="photographs in subfolders, for flowers.png")
    options = parser.parse_args()
    chosen = options.only or [name for name, figure in FIGURES.items() if options.slow or not figure.slow]
    if options.list:
        print("\n".join(f"{name}.png{' (slow)' if FIGURES[name].slow else ''}: {recipe(name)}" for name in FIGURES))
        return 0

    start, failed = time.monotonic(), []
    for name in chosen:
        if not options.force and is_current(name):
            print(f"{name}.png is up to date", flush=True)
            continue
        try:
            size = make(name, options)
        except subprocess.CalledProcessError as error:
            print(f"error: {name}.png was not made: exit code {error.returncode} of: {error.cmd}", file=sys.stderr, flush=True)
            failed.append(name)
        except FileNotFoundError as error:
            print(f"error: {name}.png was not made: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        else:
            print(f"{name}.png: {size:,} bytes" + (f", more than {LARGE:,}" if size > LARGE else ""), flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - start:,.0f} s, in which programs used {used.ru_utime + used.ru_stime:,.0f} s of cores")
    return 1 if failed else 0


def default_data() -> str:
    """Where the tests find TFDS's sets, or "" for TFDS's own folder."""
    data = os.environ.get("DDPM_JAX_TEST_DATA")
    return str(pathlib.Path(data, "tfds").absolute()) if data else ""


def recipe(name: str) -> str:
    """The commands that make a picture, as a reader may type them."""
    figure = FIGURES[name]
    return f"{training_command(figure.run)} && {figure.command}" if figure.run else figure.command


def training_command(run: str) -> str:
    return f"{MAIN} {TRAINED[run].fields} --workdir={RUNS}/{run}"


def sources() -> str:
    """A hash of every file that decides what a picture shows."""
    digest = hashlib.sha256()
    files = [ROOT / "main.py", ROOT / "benchmarks" / "mixture.py", *ROOT.glob("ddpm_jax/**/*.py"), *ROOT.glob("configs/*.py")]
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def is_current(name: str) -> bool:
    """Whether docs/images has this picture, made by this command and, but for the slow ones, by these sources."""
    path = IMAGES / f"{name}.png"
    if not path.exists():
        return False
    with Image.open(path) as image:
        info = image.info
    return info.get("Command") == recipe(name) and (FIGURES[name].slow or info.get("Sources") == sources())


def make(name: str, options: argparse.Namespace) -> int:
    """Make one picture; its size in bytes.

    Raises:
      CalledProcessError: a command failed.
      FileNotFoundError: it wrote no such picture, or a folder of images is needed.
    """
    figure = FIGURES[name]
    if figure.run:
        train(figure.run, options)
    output = ROOT / RUNS / "pictures" / name
    if figure.command == CHAINS:
        output = output.with_name("visualize")
    done = output.with_suffix(".json")
    stamp = {"command": recipe(name), "sources": sources()}
    if options.force or not (done.exists() and json.loads(done.read_text()) == stamp):  # one command may make two pictures
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        call(figure.command, options)
        done.write_text(json.dumps(stamp))
    found = sorted(output.rglob(figure.file))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files {figure.file} in {output}, not one")
    return save(found[0], IMAGES / f"{name}.png", stamp)


def train(run: str, options: argparse.Namespace) -> None:
    """Train a network, or resume, or do nothing where it is trained by this program already. Errors as `make`."""
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
    """Run a command line of FIGURES or TRAINED. Errors as `make`."""
    print(f"$ {command}", flush=True)
    line = [sys.executable, *shlex.split(command)[1:]]
    for place, folder, option in ((DATA, options.data_dir, ""), (PHOTOS, options.flowers_dir, "--flowers_dir")):
        if option and not folder and place in command:
            raise FileNotFoundError(f"the command needs a folder of photographs: give it with {option}=DIR")
        line = [part.replace(place, str(pathlib.Path(folder).expanduser().absolute()) if folder else "") for part in line]
    subprocess.run(line, cwd=ROOT, check=True)


def save(source: pathlib.Path, target: pathlib.Path, stamp: dict[str, str]) -> int:
    """Copy a picture, as small as PNG makes it without loss, with its command in it; the size in bytes."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    pixels = np.asarray(picture)
    if (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    elif picture.getcolors(256):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
        if (np.asarray(picture.convert("RGB")) != pixels).any():  # quantize merges colors that nearly agree
            picture = Image.fromarray(pixels)
    info = PngInfo()
    info.add_text("Command", stamp["command"])
    info.add_text("Sources", stamp["sources"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    picture.save(partial, format="PNG", optimize=True, pnginfo=info)
    partial.replace(target)
    return target.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
