"""Generates improved_diffusion.npz: VLB terms, losses and importance weights of openai/improved-diffusion.

    python tests/golden/improved_diffusion.py CHECKOUT

CHECKOUT is a clone of https://github.com/openai/improved-diffusion at 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5. The
file was generated with Python 3.11, torch 2.13.0+cpu and numpy 2.4.6.

It runs in float64, including the tables, so that formulas are compared and not rounding; the bins of the decoder use its
tanh approximation of the normal distribution function and the exact one. Images are NHWC in the file. Network outputs are
random numbers, close to the truth for some images and far from it for others.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkout", type=pathlib.Path)
sys.path.insert(0, str(parser.parse_args().checkout))
vars(np)["int"] = int  # removed from newer NumPy versions

from improved_diffusion import gaussian_diffusion as reference  # noqa: E402
from improved_diffusion import losses as reference_losses  # noqa: E402
from improved_diffusion.resample import LossSecondMomentResampler  # noqa: E402

MEANS = {"eps": reference.ModelMeanType.EPSILON, "x_start": reference.ModelMeanType.START_X}
VARIANCES = {
    "fixed_small": reference.ModelVarType.FIXED_SMALL,
    "fixed_large": reference.ModelVarType.FIXED_LARGE,
    "learned_range": reference.ModelVarType.LEARNED_RANGE,
}
LOSSES = {
    "mse": reference.LossType.MSE,
    "rescaled_mse": reference.LossType.RESCALED_MSE,
    "kl": reference.LossType.KL,
    "rescaled_kl": reference.LossType.RESCALED_KL,
}
T = {"linear": 1000, "cosine": 200}
TANH_CDF = reference_losses.approx_standard_normal_cdf


def exact_cdf(x):
    return 0.5 * torch.erfc(-x / 2**0.5)


def float64_table(table, timesteps, shape):
    return torch.from_numpy(table)[timesteps].reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


reference._extract_into_tensor = float64_table


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1))


def process(name, prediction, variance, loss="mse"):
    return reference.GaussianDiffusion(
        betas=reference.get_named_beta_schedule(name, T[name]),
        model_mean_type=MEANS[prediction],
        model_var_type=VARIANCES[variance],
        loss_type=LOSSES[loss],
    )


generator = np.random.default_rng(20)
golden = {}

# One batch: levels at both edges and between; t at both ends and between; half the predictions good, half bad.
levels = generator.integers(0, 256, (8, 3, 3, 2))
levels[:, 0, 0], levels[:, 0, 1], levels[:, 1, 0] = 0, 255, [1, 254]
golden["levels"] = levels.astype(np.uint8)
x_start = golden["levels"].astype(np.float32) / np.float32(127.5) - 1  # in float32, as in the program
golden["noise"] = noise = generator.standard_normal(levels.shape).astype(np.float32)
golden["guess_error"] = generator.standard_normal(levels.shape).astype(np.float32)
golden["variance_output"] = generator.uniform(-1.5, 1.5, levels.shape).astype(np.float32)
spread = np.array([0.004, 0.004, 1.0, 1.0, 0.01, 0.1, 0.3, 1.0], np.float32)[:, None, None, None]

for name in T:
    golden[f"{name}/t"] = t = np.array([0, 0, 0, 1, 1, T[name] // 10, T[name] // 2, T[name] - 1], np.int32)
    ts = torch.from_numpy(t).long()
    for prediction in MEANS:
        scale = spread if prediction == "x_start" else np.minimum(1, 30 * spread)
        output = ({"eps": noise, "x_start": x_start}[prediction] + scale * golden["guess_error"]).astype(np.float32)
        golden[f"{name}/{prediction}/output"] = output
        for variance in VARIANCES:
            full = np.concatenate([output, golden["variance_output"]], -1) if variance == "learned_range" else output
            model = lambda x, t, full=full: channels_first(full)  # noqa: E731
            for clip in (False, True):
                for cdf in (exact_cdf, TANH_CDF):
                    reference_losses.approx_standard_normal_cdf = cdf
                    chain = process(name, prediction, variance)
                    x = channels_first(x_start)
                    x_t = chain.q_sample(x, ts, channels_first(noise))
                    bits = chain._vb_terms_bpd(model, x, x_t, ts, clip_denoised=clip)["output"].numpy()
                    kind = "bits" if cdf is exact_cdf else "tanh_bits"
                    golden[f"{name}/{prediction}/{variance}/{'clip' if clip else 'free'}/{kind}"] = bits
            reference_losses.approx_standard_normal_cdf = exact_cdf
            for loss in LOSSES:
                chain = process(name, prediction, variance, loss)
                values = chain.training_losses(model, channels_first(x_start), ts, noise=channels_first(noise))["loss"]
                golden[f"{name}/{prediction}/{variance}/{loss}"] = values.numpy()

# The whole VLB of two images over a chain of 12 steps, with a fixed function instead of a network.
chain = reference.GaussianDiffusion(
    betas=reference.get_named_beta_schedule("cosine", 12),
    model_mean_type=MEANS["eps"],
    model_var_type=VARIANCES["fixed_large"],
    loss_type=LOSSES["mse"],
)
golden["loop/noise"] = loop_noise = generator.standard_normal((12, 2, 3, 3, 2)).astype(np.float32)
noises = iter(loop_noise[::-1])  # from t = 11 down to 0
torch.randn_like = lambda x: channels_first(next(noises))
rule = lambda x, t: 0.8 * x + 0.02 * t.reshape(-1, 1, 1, 1)  # noqa: E731
for key, value in chain.calc_bpd_loop(rule, channels_first(x_start[:2])).items():
    golden[f"loop/{key}"] = value.numpy()

# Importance weights of 6 timesteps after each of 20 batches of 9 losses.
chain.num_timesteps = 6
resampler = LossSecondMomentResampler(chain)
golden["resample/t"] = ts = generator.integers(0, 6, (20, 9)).astype(np.int32)
golden["resample/losses"] = values = (generator.exponential(1.0, (20, 9)) / (1 + ts)).astype(np.float32)
golden["resample/p"] = np.zeros((20, 6))
for number in range(20):
    resampler.update_with_all_losses(ts[number].tolist(), values[number].tolist())
    golden["resample/p"][number] = resampler.weights() / resampler.weights().sum()

np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **golden)
print(sys.version.split()[0], torch.__version__, np.__version__, len(golden), "arrays")
