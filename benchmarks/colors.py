"""Do generated images have the colors of the training photographs? If not, is the cause training or sampling?

Compare images of --mode=sample with the photographs that the model was trained on:

    python benchmarks/colors.py PHOTOGRAPHS --images runs/mine/samples/NAME/images.npz

Train a small network on a folder of photographs and generate with one checkpoint and several settings; rerun the command to
resume the training or to use the finished run (4 minutes of a core for 1,500 steps at 16x16):

    python benchmarks/colors.py PHOTOGRAPHS --gray --workdir=runs/colors_v --train diffusion.prediction=v \
      --sample sampling.spacing=leading --sample sampling.spacing=trailing --sample diffusion.clip_denoised=False

Generate with the perfect network instead of a trained one: the mean of the photographs given x_t, in closed form. An error
that remains is caused by the sampler; an error that only a trained network has is caused by training:

    python benchmarks/colors.py PHOTOGRAPHS --gray --exact --sample sampling.spacing=leading

Compare the x̂_0 of a trained network with the perfect one, on noisy photographs: the error of its color at each t:

    python benchmarks/colors.py PHOTOGRAPHS --gray --workdir=runs/colors_v --train diffusion.prediction=v --compare_x0 500 900
    980

The other commands print, on the scale 0..255 and with the photographs first: mean brightness with its standard error,
and its standard deviation over the images; mean cast (largest minus smallest channel mean of an image) and the largest;
contrast (standard deviation of brightness within an image); saturation; and the fraction of nearly flat images.
color_statistics.py defines each. --gray turns the photographs gray but keeps them RGB, so that every cast is an error.
"""

import argparse
import ast
import contextlib
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from color_statistics import ColorStatistics, color_statistics

from ddpm_jax import build, compiler_config, config_validation, sampling_config
from ddpm_jax.cli import common, train
from ddpm_jax.configs import image_folder
from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.diffusion import gaussian, pixels
from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation.array_images import ArrayImages
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.samplers.batched import BatchedSampler

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "xla"  # of compiled programs
NUM_COMPARED = 100  # photographs for which x̂_0 is compared
WIDTH = 64  # of a row's name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="folder of the images that the model is or was trained on")
    parser.add_argument("--images", nargs="*", default=[], help="files images.npz of --mode=sample to measure")
    parser.add_argument("--image_size", type=int, default=16, help="for --workdir and --exact; --images have their own")
    parser.add_argument("--gray", action="store_true", help="turn the photographs gray; they stay RGB")
    parser.add_argument("--workdir", help="run directory of the small network, trained or resumed there")
    parser.add_argument("--exact", action="store_true", help="generate with the perfect network")
    parser.add_argument("--train", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields for all rows")
    parser.add_argument(
        "--sample", nargs="*", action="append", metavar="FIELD=VALUE", help="config fields for one row; repeat for more rows"
    )
    parser.add_argument("--compare_x0", nargs="+", type=int, metavar="t", help="compare x̂_0 at these t, 0..T-1")
    parser.add_argument("--picture", help="PNG file for the generated images of the last row")
    options = parser.parse_args()

    if options.compare_x0:
        print_x0_errors(options)
        return
    if options.images:
        files = {file: ArrayImages(pathlib.Path(file)).read_all() for file in options.images}
        size = next(iter(files.values())).shape[1]
        rows = files.items()
    else:
        size = options.image_size
        rows = generate_rows(options)
    photographs = load_photographs(options.photographs, size, options.gray)
    print(header())
    print(row(f"{len(photographs):,} photographs", color_statistics(photographs)), flush=True)
    for name, images in rows:
        print(row(name, color_statistics(images)), flush=True)
    if options.picture:
        from ddpm_jax.plotting import image_grid

        image_grid.save_png(pathlib.Path(options.picture), image_grid.grid(images[:64]))


def header() -> str:
    return f"{'':{WIDTH}} brightness +- error  spread   cast largest  contrast  saturation  flat"


def row(name: str, found: ColorStatistics) -> str:
    brightness = f"{found.brightness:10.1f} +- {found.brightness_error:5.1f}  {found.brightness_spread:6.1f}"
    cast = f"{found.cast:6.1f} {found.largest_cast:7.1f}"
    return f"{name:{WIDTH}} {brightness} {cast} {found.contrast:9.1f} {found.saturation:11.1f} {found.flat:5.0%}"


def load_photographs(folder: str, size: int, gray: bool) -> np.ndarray:
    """uint8 [N, size, size, 3]; with `gray` all three channels are the brightness."""
    channels = 1 if gray else 3
    source = load_image_folder(folder, image_size=size, channels=channels, in_memory=True)
    images = source.batch(np.arange(len(source)))["image"]
    return np.repeat(images, 3, axis=-1) if gray else images


def generate_rows(options: argparse.Namespace):
    """(name, images uint8 [N, H, W, 3]) for each --sample."""
    config, mesh = prepare(options)
    if options.exact:
        photographs = load_photographs(options.photographs, options.image_size, options.gray)
    else:
        folder = train_small(options, config)
    for settings in options.sample or [[]]:
        row_config = config.copy_and_resolve_references()
        set_fields(row_config, settings)
        if options.exact:
            row_config.diffusion.prediction = "x_start"
        config_validation.check_config(row_config)
        name = " ".join(setting.removeprefix("sampling.").removeprefix("diffusion.") for setting in settings) or "as trained"
        if options.exact:
            yield f"perfect network: {name}", generate_exact(row_config, mesh, photographs)
        else:
            params, _ = common.restore_params(row_config, folder, mesh)
            yield name, sampling_config.generate(row_config, build.build_batched_sampler(row_config, mesh), params).images


def print_x0_errors(options: argparse.Namespace) -> None:
    """Prints the mean color of the network's x̂_0 minus that of the perfect network, at each t."""
    config, mesh = prepare(options)
    params, _ = common.restore_params(config, train_small(options, config), mesh)
    images = load_photographs(options.photographs, options.image_size, options.gray)
    schedule, exact = build.build_schedule(config), perfect_network(build.build_schedule(config))
    data = jnp.asarray(pixels.from_uint8(images)).reshape(len(images), -1)
    denoise_fn = build.build_denoise_fn(config)
    parameterization = dataclasses.replace(build.build_parameterization(config), clip_denoised=False)

    @jax.jit
    def mean_colors(params, data, x_start, t, key):
        t = jnp.full(len(x_start), t)
        x_t = gaussian.q_sample(schedule, x_start, t, jax.random.normal(key, x_start.shape))
        output = denoise_fn(params, None)(x_t, t)
        pred_xstart = parameterization.predict_x0(output, x_t, schedule.level(t))
        return tuple(
            127.5 * x.mean(axis=(1, 2)) for x in (pred_xstart, jnp.clip(pred_xstart, -1, 1), exact(data, None)(x_t, t))
        )

    chosen = pixels.from_uint8(jnp.asarray(images[:: -(-len(images) // NUM_COMPARED)]))
    print(f"mean color of x̂_0 for {len(chosen)} photographs, network minus perfect network, levels of 255")
    print("     t   sqrt(ᾱ_t)   mean   rms  |  clipped: mean   rms  |  perfect network: spread")
    for t in options.compare_x0:
        ours, clipped, right = map(np.asarray, mean_colors(params, data, chosen, t, jax.random.key(t)))
        signal, wrong, less = float(schedule.sqrt_alphas_cumprod[t]), ours - right, clipped - right
        line = f"{t:6} {signal:11.5f} {wrong.mean():7.1f} {rms(wrong):6.1f}  | {less.mean():14.1f} {rms(less):6.1f}"
        print(line + f"  | {right.std(axis=0).mean():23.1f}", flush=True)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def prepare(options: argparse.Namespace):
    """The small config and the mesh; XLA is configured as in main.py."""
    config = small_config(options)
    compiler_config.configure_cpu(config)
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    return config, meshes.make_mesh()


def train_small(options: argparse.Namespace, config) -> pathlib.Path:
    """Trains or resumes the small network; returns the folder of the run."""
    if not options.workdir:
        sys.exit("error: nothing to measure: give --images, --workdir or --exact")
    folder = pathlib.Path(options.workdir)
    config.data.data_dir = str(write_photographs(options, folder / "photographs"))
    code = train.run(config, str(folder / "run"))
    if code:
        sys.exit(code)
    return folder / "run"


def small_config(options: argparse.Namespace):
    """configs/image_folder.py with a network that trains in minutes on one core."""
    config = image_folder.get_config()
    config.data.image_size = options.image_size
    network = {
        "ch": 16,
        "ch_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (options.image_size // 4,),
        "dropout": 0.0,
    }
    config.model.unet.update(network)
    config.train.update({"batch_size": 16, "num_steps": 1500, "checkpoint_every": 500, "sample_every": 0, "trackers": ()})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100})
    config.ema.decay = 0.998
    config.sampling.num_images = 256
    set_fields(config, options.train)
    return config


def set_fields(config, settings: list[str]) -> None:
    """Sets FIELD=VALUE, as --config.FIELD=VALUE does."""
    for setting in settings:
        field, _, value = setting.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):  # keep other values as strings
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({field: value})


def write_photographs(options: argparse.Namespace, folder: pathlib.Path) -> pathlib.Path:
    """The photographs as the small network sees them, in PNG files."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for index, image in enumerate(load_photographs(options.photographs, options.image_size, options.gray)):
            Image.fromarray(image).save(folder / f"{index:05}.png")
    return folder


def perfect_network(schedule: NoiseSchedule):
    """(photographs [N, D], labels) -> denoise_fn: x̂_0(x_t) = Σ p(i | x_t) x_i, by Bayes' rule from q(x_t | x_i)."""

    def make_denoise_fn(data, labels):
        del labels

        def denoise_fn(x_t, t):
            flat = x_t.reshape(len(x_t), -1)
            alpha, sigma = (
                extract(table, t, flat) for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
            )
            # log q(x_t | x_i), up to a constant
            products = alpha * (flat @ data.T) - jnp.square(alpha) * (jnp.square(data).sum(axis=1) / 2)[None]
            return (jax.nn.softmax(products / jnp.square(sigma), axis=1) @ data).reshape(x_t.shape)

        return denoise_fn

    return make_denoise_fn


def generate_exact(config, mesh: jax.sharding.Mesh, photographs: np.ndarray) -> np.ndarray:
    """Images generated by the sampler of `config`, whose prediction is x_start, with the perfect network."""
    data = jnp.asarray(pixels.from_uint8(photographs)).reshape(len(photographs), -1)
    sampling = config.sampling
    generator = BatchedSampler(
        build.build_sampler(config),
        perfect_network(build.build_schedule(config)),
        mesh,
        image_shape=build.image_shape(config),
        batch_size=min(meshes.images_per_batch(sampling.batch_size), sampling.num_images),
    )
    return sampling_config.generate(config, generator, data).images


if __name__ == "__main__":
    try:
        main()
    except ExpectedError as error:
        sys.exit(f"error: {error}")
