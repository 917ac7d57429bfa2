"""Generates samplers.npz: samples of diffusers' schedulers with small random networks.

python tests/golden/samplers.py      # torch 2.13.0, diffusers 0.42.1, numpy 2.4.6

Their tables are overwritten by float64 ones of the same betas: as made, in float32, 1 - alphas_cumprod alone is wrong in
its fourth digit at t=0. Networks compute in float64; DPMSolverMultistepScheduler itself rounds its samples to float32.
"""

import pathlib

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

IMAGES, PIXELS, HIDDEN = 3, 4, 8
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS_CUMPROD = torch.from_numpy(np.cumprod(1 - BETAS))
SIGMAS = torch.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
TRAILING = list(range(99, 1000, 100))
UNEVEN = [0, 7, 31, 120, 366, 683, 999]
NAMES = {"eps": "epsilon", "v": "v_prediction", "x_start": "sample"}


def main() -> None:
    generator = np.random.default_rng(0)
    weights = {
        "network_in": generator.normal(size=(PIXELS, HIDDEN)) / np.sqrt(PIXELS),
        "network_time": generator.normal(size=HIDDEN),
        "network_out": generator.normal(size=(HIDDEN, PIXELS)) / np.sqrt(HIDDEN),
        "x_T": generator.normal(size=(IMAGES, PIXELS)),
        "noise": generator.normal(size=(len(TRAILING), IMAGES, PIXELS)),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    network_in, network_time, network_out, x_T, noise = (torch.from_numpy(w.astype(np.float64)) for w in weights.values())

    def network(x, t):
        return torch.tanh(x @ network_in + network_time * (float(t) / 1000)) @ network_out

    def sample(scheduler, timesteps=None, num_steps=None, noisy=False, **options):
        """With its own timesteps, or with these, ascending. noisy: with the given noise; options: arguments of `step`."""
        scheduler.set_timesteps(num_steps or len(timesteps))
        scheduler.alphas_cumprod = ALPHAS_CUMPROD
        if timesteps is not None:
            scheduler.timesteps = torch.tensor(timesteps[::-1])
            scheduler.sigmas = torch.cat([SIGMAS[timesteps].flip(0), torch.zeros(1, dtype=torch.float64)])
        x = x_T
        for i, t in enumerate(scheduler.timesteps):
            given = {"variance_noise": noise[i]} if noisy else {}
            x = scheduler.step(network(x, t), t, x, **options, **given, return_dict=False)[0]
        return x.numpy(), scheduler.timesteps.numpy()

    common = {"trained_betas": BETAS}
    golden = dict(weights)
    for prediction, name in NAMES.items():
        ddim = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "prediction_type": name}
        golden[f"ddim-{prediction}"] = sample(DDIMScheduler(**common, **ddim), num_steps=10)[0]
        golden[f"ddim_clipped-{prediction}"] = sample(
            DDIMScheduler(**common, **(ddim | {"clip_sample": True})), num_steps=10, use_clipped_model_output=True
        )[0]
        golden[f"ddim_half-{prediction}"] = sample(DDIMScheduler(**common, **ddim), num_steps=10, eta=0.5, noisy=True)[0]
        solver = {"prediction_type": name, "final_sigmas_type": "zero"}
        for chain, timesteps in (("trailing", TRAILING), ("uneven", UNEVEN)):
            golden[f"dpmpp_2m_{chain}-{prediction}"] = sample(DPMSolverMultistepScheduler(**common, **solver), timesteps)[0]
            for order in (1, 2, 3):
                scheduler = UniPCMultistepScheduler(**common, **solver, solver_order=order)
                golden[f"unipc_{order}_{chain}-{prediction}"] = sample(scheduler, timesteps)[0]
        sde = DPMSolverMultistepScheduler(**common, **solver, algorithm_type="sde-dpmsolver++")
        golden[f"dpmpp_2m_sde-{prediction}"] = sample(sde, TRAILING, noisy=True)[0]

    # A case in which they intentionally differ from ours: seven steps, which do not divide a thousand.
    seven = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"}
    golden["ddim_of_seven"], golden["ddim_of_seven_timesteps"] = sample(DDIMScheduler(**common, **seven), num_steps=7)
    for spacing in ("leading", "linspace"):
        scheduler = DPMSolverMultistepScheduler(**common, timestep_spacing=spacing)
        scheduler.set_timesteps(10)
        golden[f"dpm_{spacing}_timesteps"] = scheduler.timesteps.numpy()
    karras = DPMSolverMultistepScheduler(**common, use_karras_sigmas=True)
    karras.set_timesteps(10)
    golden["dpm_karras_timesteps"], golden["dpm_karras_sigmas"] = karras.timesteps.numpy(), karras.sigmas.numpy()

    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **golden)


if __name__ == "__main__":
    main()
