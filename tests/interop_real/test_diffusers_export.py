"""diffusers loads our exports: the same network, and the images of our DDIM from the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

from ddpm_jax import build
from ddpm_jax.samplers import sampler as chain
from tests.interop.exported import export_folder, make_config, random_params

COUNT = 2
CASES = {
    "linear": {"diffusion.schedule": "linear"},
    "cosine": {"diffusion.schedule": "cosine", "diffusion.variance": "fixed_small"},
    "classes": {
        "diffusion.schedule": "sigmoid",
        "diffusion.prediction": "v",
        "model.class_conditional": True,
        "model.label_dropout": 0.1,
        "model.unet.head_channels": 16,
        "model.unet.attn_resolutions": (8, 16),
    },
    "improved": {
        "model.unet.time_embedding": "iddpm",
        "model.unet.downsample_padding": "symmetric",
        "model.unet.norm_epsilon": 1e-5,
        "model.unet.norm_groups": 16,
        "model.unet.scale_shift": True,
        "model.unet.num_heads": 4,
        "diffusion.variance": "learned_range",
        "diffusion.loss": "hybrid",
    },
    "zero_terminal_snr": {
        "diffusion.zero_terminal_snr": True,
        "diffusion.prediction": "v",
        "diffusion.clip_denoised": False,
        "sampling.spacing": "trailing",
        "model.unet.mid_attention": False,
        "model.unet.num_res_blocks": 2,
        "model.unet.attn_resolutions": (16,),
    },
    "gray": {"data.channels": 1, "diffusion.prediction": "x_start", "model.unet.attn_resolutions": ()},
}


def to_torch(images):
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def to_numpy(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", CASES)
def test_network_and_trajectory_are_equal(name, tmp_path):
    config = make_config(CASES[name])
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    pipeline = DDPMPipeline.from_pretrained(folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

    shape = build.image_shape(config)
    keys = jax.random.split(jax.random.key(1), COUNT)
    noise = chain.per_image_noise(keys, 0, shape)
    labels = np.arange(COUNT, dtype=np.int32) if config.model.class_conditional else None
    classes = {} if labels is None else {"class_labels": torch.from_numpy(labels).long()}
    sampler = build.build_sampler(config)
    denoise_fn = jax.jit(build.build_denoise_fn(config, portable=True)(params, labels))

    ours = np.asarray(denoise_fn(noise, jnp.full(COUNT, 700)))
    x = to_torch(noise)
    with torch.no_grad():
        theirs = to_numpy(pipeline.unet(x, torch.full((COUNT,), 700), **classes).sample)
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            output = pipeline.unet(x, t, **classes).sample[:, : shape[2]]  # without a learned variance
            # Ours derives eps from the clipped image.
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    assert np.abs(theirs - ours).max() < 1e-5 * np.abs(ours).max()
    images = chain.run_steps(sampler, denoise_fn, chain.init_state_from(sampler, noise), keys, first_step=0, count=10).x
    assert float(jnp.std(images)) > 0.05
    assert np.abs(to_numpy(x) - images).max() < 1e-4


@pytest.mark.parametrize("name", ["linear", "improved", "zero_terminal_snr"])
def test_their_pipeline_generates(name, tmp_path):
    """Its scheduler takes the variance and the betas of the file, also learned ones and a last one of 1."""
    config = make_config(CASES[name])
    pipeline = DDPMPipeline.from_pretrained(export_folder(config, random_params(config), tmp_path))
    schedule = build.build_schedule(config)
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=2e-4, atol=1e-7)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=COUNT, num_inference_steps=20, output_type="np", generator=torch.manual_seed(0)).images
    assert images.shape == (COUNT, *build.image_shape(config))
    assert np.isfinite(images).all()
    assert images.std() > 0.02
