"""The same network and work in PyTorch and diffusers, imported only with --against=torch."""

import copy
from collections.abc import Callable

import numpy as np

try:
    import diffusers
    import torch
except ImportError as error:
    raise SystemExit(f"error: --against=torch needs PyTorch and diffusers ({error}): pip install torch diffusers") from error


def make_unet(config) -> "torch.nn.Module":
    """diffusers' U-Net with our settings; the published settings give the published number of parameters."""
    model, size = config.model, config.data.image_size
    widths = tuple(model.unet.ch * factor for factor in model.unet.ch_mult)
    attends = [size // 2**level in model.unet.attn_resolutions for level in range(len(widths))]
    heads = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    if len(heads) > 1:
        raise SystemExit("error: diffusers supports only one attention width here: choose another --config")
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=config.data.channels,
        out_channels=config.data.channels,
        layers_per_block=model.unet.num_res_blocks,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        attention_head_dim=heads.pop(),  # one head
        norm_num_groups=min(32, model.unet.ch // 4),
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        dropout=model.unet.dropout,
        num_class_embeds=config.data.num_classes + (model.label_dropout > 0) if model.class_conditional else None,
    )


def _labels(config, batch_size: int) -> "torch.Tensor | None":
    """Labels as for our network, without label dropout."""
    return torch.arange(batch_size, device=_device()) % config.data.num_classes if config.model.class_conditional else None


def count_parameters(config) -> int:
    """Number of parameters of diffusers' network."""
    return sum(parameter.numel() for parameter in make_unet(config).parameters())


def train_step(config, images: np.ndarray, *, channels_last: bool, compiled: bool = False) -> Callable[[], None]:
    """A function that runs one training step of DDPM on uint8 [B, H, W, C]."""
    network = _prepared(config, channels_last).train()
    run = torch.compile(network) if compiled else network
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.learning_rate, fused=torch.cuda.is_available())
    scheduler = diffusers.DDPMScheduler(config.diffusion.num_timesteps)
    pixels, labels = torch.from_numpy(images).permute(0, 3, 1, 2).to(_device()), _labels(config, len(images))

    def once() -> None:
        x_start = pixels.float() / 127.5 - 1
        if config.data.random_flip:
            flipped = torch.rand(len(x_start), 1, 1, 1, device=x_start.device) < 0.5
            x_start = torch.where(flipped, x_start.flip(3), x_start)
        t = torch.randint(0, config.diffusion.num_timesteps, (len(x_start),), device=x_start.device)
        noise = torch.randn_like(x_start)
        x_t = scheduler.add_noise(x_start, noise, t)
        if channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
            eps = run(x_t, t, labels).sample
        loss = (eps.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm or float("inf"))
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - config.ema.decay)

    return once


def sampler(config, batch_size: int, num_steps: int, *, channels_last: bool, compiled: bool = False) -> Callable[[], None]:
    """A function that generates a batch with diffusers' scheduler and network, like its pipelines."""
    network = _prepared(config, channels_last).eval()
    run = torch.compile(network) if compiled else network
    kind = diffusers.DDIMScheduler if config.sampling.sampler == "ddim" else diffusers.DDPMScheduler
    scheduler = kind(config.diffusion.num_timesteps)
    scheduler.set_timesteps(num_steps)
    shape = (batch_size, config.data.channels, config.data.image_size, config.data.image_size)
    labels = _labels(config, batch_size)

    @torch.inference_mode()
    def once() -> None:
        x = torch.randn(shape, device=_device())
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for t in scheduler.timesteps:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
                eps = run(x, t, labels).sample
            x = scheduler.step(eps.float(), t, x).prev_sample
        ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    return once


def _prepared(config, channels_last: bool) -> "torch.nn.Module":
    network = make_unet(config).to(_device())
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(_) -> None:
    """Block until the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
