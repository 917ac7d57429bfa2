"""Compares the samplers of diffusers with ours on the mixture of `mixture.py`. Needs torch and diffusers."""

import functools
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import mixture
import numpy as np
import torch

from ddpm_jax.diffusion.schedules import NoiseSchedule


def spaced(spacing: str) -> dict:
    """The options with which diffusers' schedulers use the timesteps of our `spacing`."""
    return {"karras": {"use_karras_sigmas": True}, "logsnr": {"use_lu_lambdas": True}}.get(
        spacing, {"timestep_spacing": spacing}
    )


BY_T, ALL = ("trailing", "linspace", "leading"), ("trailing", "linspace", "leading", "karras", "logsnr")
SAME = {  # our label -> (scheduler, its options, its spacings)
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}, BY_T),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}, ALL),
    "unipc": (diffusers.UniPCMultistepScheduler, {}, ALL[:-1]),
    "unipc, order 3": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}, ALL[:-1]),
    "heun": (diffusers.HeunDiscreteScheduler, {}, ALL[:-1]),
    "ancestral, fixed_small": (diffusers.DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}, BY_T),
    "ancestral, fixed_large": (diffusers.DDPMScheduler, {"variance_type": "fixed_large", "clip_sample": False}, BY_T),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, ALL),
}


@functools.cache  # so that it is compiled once
def make_network(trained: NoiseSchedule) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """(x_t, one t for all) -> eps of an exact network; between timesteps log sigma is interpolated linearly. In float64."""
    denoise = jax.jit(lambda x, signal, spread: mixture.exact_denoiser(jnp.asarray(x), signal, spread))
    log_sigmas = np.log(trained.sqrt_recipm1_alphas_cumprod)

    def network(x_t: torch.Tensor, t: float) -> torch.Tensor:
        sigma = np.exp(np.interp(float(t), np.arange(trained.num_timesteps), log_sigmas))
        signal, spread = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        x = x_t.numpy().astype(np.float64)
        return torch.from_numpy((x - signal * np.asarray(denoise(x, signal, spread))) / spread)

    return network


def generate(
    trained: NoiseSchedule, label: str, spacing: str, evaluations: int, x_T: np.ndarray, seed: int
) -> np.ndarray | None:
    """Samples [B, 3] from x_T [B, 3] in exactly `evaluations` evaluations; None if diffusers cannot generate any.

    With cosine and sigmoid, its spacings in the noise level round several first levels to the timestep T-1. Its solvers find
    their first level by the timestep, use the second of these, and run past the last one.

    Args:
      trained: the chain that the network was trained on.
      label: a key of SAME.
      spacing: one of its spacings.
      evaluations: network evaluations per sample.
      x_T: pure noise, float64.
      seed: for the noise of stochastic samplers.
    """
    make, options, _ = SAME[label]
    try:
        scheduler = make(trained_betas=trained.betas, prediction_type="epsilon", **options, **spaced(spacing))
        scheduler.set_timesteps((evaluations + 1) // 2 if label == "heun" else evaluations)
        x, network = torch.from_numpy(x_T), make_network(trained)
        if label == "heun":
            x = x * scheduler.init_noise_sigma
        options = {"generator": torch.Generator().manual_seed(seed)} if label in mixture.STOCHASTIC else {}
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t).double(), t)
            x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    except (AssertionError, IndexError, ValueError):
        return None
    return x.numpy() if len(scheduler.timesteps) == evaluations and x.isfinite().all() else None


def compare(trained: NoiseSchedule, kinds: tuple, budgets: list[int], only_spacing: str | None) -> None:
    """Prints both errors for each common sampler, spacing and budget, and the cells in which ours is worse."""
    ours_network, worse, skipped = mixture.make_network(trained), [], []
    for title, settings, seeds, error_of, floor in kinds:
        starts = [np.asarray(mixture.chain.per_image_noise(keys, 0, mixture.SHAPE)).reshape(-1, 3) for keys in seeds]
        print(f"\n{title}: ours / diffusers {diffusers.__version__}\n")
        print(f"| sampler | spacing | {' | '.join(map(str, budgets))} |\n|{'---|' * (len(budgets) + 2)}")
        for label in settings:
            if label not in SAME:
                continue
            for spacing in SAME[label][2]:
                if only_spacing not in (None, spacing):
                    continue
                cells = []
                for budget in budgets:
                    sampler = mixture.sampler_within(trained, settings[label], spacing, budget)
                    ours = np.mean([error_of(mixture.run(sampler, ours_network, keys)) for keys in seeds])
                    samples = [generate(trained, label, spacing, sampler.nfe, x_T, seed) for seed, x_T in enumerate(starts)]
                    if any(x is None for x in samples):
                        cells.append(f"{ours:.1e} / -")
                        skipped.append(f"{label}, {spacing}, {sampler.nfe}")
                        continue
                    theirs = np.mean([error_of(x) for x in samples])
                    cells.append(f"{ours:.1e} / {theirs:.1e}")
                    if ours > 1.02 * theirs + 0.2 * floor:
                        worse.append(f"{label}, {spacing}, {sampler.nfe}: {ours:.3g} against {theirs:.3g}")
                print(f"| {label} | {spacing} | {' | '.join(cells)} |", flush=True)
    print(f"\nours is worse by more than 2% and a fifth of the noise floor in {len(worse)} cells")
    print("\n".join(worse))
    print(f"diffusers generates no samples (-) in {len(skipped)} cells")
