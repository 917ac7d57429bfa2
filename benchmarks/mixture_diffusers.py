"""The samplers of diffusers on the mixture of `mixture.py`, side by side with ours. Needs torch and diffusers."""

import diffusers
import jax.numpy as jnp
import mixture
import numpy as np
import torch


def spaced(spacing: str) -> dict:
    """The options by which diffusers' schedulers come to the timesteps that ours call `spacing`."""
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


def network(x_t: torch.Tensor, t: float) -> torch.Tensor:
    """The eps of an exact network at one t for all; between timesteps log sigma goes in straight lines. In float64."""
    sigma = np.exp(np.interp(float(t), np.arange(1000), np.log(mixture.TRAINED.sqrt_recipm1_alphas_cumprod)))
    signal, spread = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    x = x_t.numpy().astype(np.float64)
    return torch.from_numpy((x - signal * np.asarray(DENOISE(x, signal, spread))) / spread)


DENOISE = mixture.jax.jit(lambda x, signal, spread: mixture.exact_denoiser(jnp.asarray(x), signal, spread))


def draw(label: str, spacing: str, evaluations: int, x_T: np.ndarray, seed: int) -> np.ndarray:
    """Samples [B, 3] from x_T [B, 3] in exactly so many evaluations; `seed` is of the noise, where there is any."""
    make, options, _ = SAME[label]
    scheduler = make(trained_betas=mixture.TRAINED.betas, prediction_type="epsilon", **options, **spaced(spacing))
    scheduler.set_timesteps((evaluations + 1) // 2 if label == "heun" else evaluations)
    assert len(scheduler.timesteps) == evaluations
    x = torch.from_numpy(x_T)
    if label == "heun":
        x = x * scheduler.init_noise_sigma
    options = {"generator": torch.Generator().manual_seed(seed)} if label in mixture.DRAWS else {}
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t).double(), t)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    return x.numpy()


def compare(kinds: tuple, budgets: list[int], only_spacing: str | None, make_sampler, run) -> None:
    """Print ours and theirs for each sampler, spacing and budget that both have, and where ours is the worse of the two."""
    worse = []
    for title, settings, seeds, error_of, floor in kinds:
        starts = [np.asarray(mixture.chain.images_noise(keys, 0, mixture.SHAPE)).reshape(-1, 3) for keys in seeds]
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
                    sampler = make_sampler(settings[label], spacing, budget)
                    ours = np.mean([error_of(run(sampler, keys)) for keys in seeds])
                    theirs = np.mean(
                        [error_of(draw(label, spacing, sampler.evaluations, x_T, i)) for i, x_T in enumerate(starts)]
                    )
                    cells.append(f"{ours:.1e} / {theirs:.1e}")
                    if ours > 1.01 * theirs + 0.2 * floor:
                        worse.append(f"{label}, {spacing}, {sampler.evaluations}: {ours:.2e} against {theirs:.2e}")
                print(f"| {label} | {spacing} | {' | '.join(cells)} |", flush=True)
    print(f"\nours is worse by more than 1% and a fifth of the noise floor in {len(worse)} cells")
    print("\n".join(worse))
