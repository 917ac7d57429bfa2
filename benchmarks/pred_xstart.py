"""How good is the network's estimate of the image, pred_xstart, at each t?

python benchmarks/pred_xstart.py --workdir=runs/digits

Adds noise to training images at each t, evaluates the network (EMA parameters, with the label of the image) and
prints root mean squares over pixels in [-1, 1]:

    1/sqrt(acp)   the factor, nearly, from an error in eps to an error in pred_xstart
    eps           the error of the network's estimate of the noise
    outside       the fraction of pixels of pred_xstart outside [-1, 1] before clipping
    class mean    the distance of the clipped pred_xstart from the mean image of the class: nearly the output
                  of an ideal network if x_t contains no signal
    image         its distance from the image itself
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build, data_config
from ddpm_jax.cli import common
from ddpm_jax.diffusion import gaussian, pixels
from ddpm_jax.diffusion.parameterization import predict_eps_from_xstart
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import workdir

TIMESTEPS = (999, 989, 979, 949, 899, 799, 599, 399, 199, 99, 0)  # of 1,000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of a run whose data set has labels")
    parser.add_argument("--num_images", type=int, default=500, help="from the first of the training set on")
    options = parser.parse_args()

    folder = pathlib.Path(options.workdir).expanduser().absolute()
    config = ConfigDict(workdir.read_config(str(folder)))
    params, step = common.restore_params(config, folder, meshes.make_mesh())
    schedule, source = build.build_schedule(config), data_config.load_source(config)
    parameterization = dataclasses.replace(build.build_parameterization(config), clip_denoised=False)
    every = source.batch(np.arange(len(source)))
    images, labels = np.asarray(pixels.from_uint8(every["image"])), every["label"]
    means = np.stack([images[labels == label].mean(axis=0) for label in range(config.data.num_classes)])

    x_start, own = jnp.asarray(images[: options.num_images]), labels[: options.num_images]
    denoise_fn = build.build_denoise_fn(config)(params, jnp.asarray(own) if config.model.class_conditional else None)
    print(f"step {step:,}, {len(own):,} images of {source.name}, {config.diffusion.schedule} schedule")
    print(f"{'t':>4} {'1/sqrt(acp)':>12} {'eps':>8} {'outside':>8} {'class mean':>11} {'image':>7}")

    @jax.jit
    def estimate(t: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_t = gaussian.q_sample(schedule, x_start, t, noise)
        level = schedule.level(t)
        pred_xstart = parameterization.denoise(denoise_fn, x_t, level)
        return pred_xstart, predict_eps_from_xstart(x_t, level, pred_xstart)

    for last in TIMESTEPS:
        step_t = last * (schedule.num_timesteps - 1) // 999
        t = jnp.full(len(own), step_t, jnp.int32)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step_t), x_start.shape)
        pred_xstart, eps = (np.asarray(array, np.float64) for array in estimate(t, noise))
        clipped = pred_xstart.clip(-1, 1)
        print(
            f"{step_t:>4} {schedule.sqrt_recip_alphas_cumprod[step_t]:>12,.1f} {rms(eps - noise):>8.4f} "
            f"{np.mean(abs(pred_xstart) > 1):>8.0%} {rms(clipped - means[own]):>11.3f} {rms(clipped - x_start):>7.3f}"
        )
    print(f"The images themselves are {rms(images - means[labels]):.3f} from the means of their classes.")


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


if __name__ == "__main__":
    main()
