"""--mode=export: write the parameters, or programs with the parameters inside, for other tools and for train.init_from."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, choices, condition_config, config_validation, sampling_config
from ddpm_jax.cli import common
from ddpm_jax.evaluation import manifest
from ddpm_jax.interop import export_diffusers, export_onnx, export_stablehlo, onnx_model, weights_file
from ddpm_jax.interop.program_inputs import ConditionCode, condition_code, condition_inputs
from ddpm_jax.interop.weights_file import Weights
from ddpm_jax.runtime import distributed, paths, rng, run_record
from ddpm_jax.runtime.atomic import open_atomic, write_atomically
from ddpm_jax.training import load_params
from ddpm_jax.user_messages import UsageError, config_errors

FOLDER = "exports"  # in the workdir


class Format(NamedTuple):
    """A format of config.export.format.

    Attributes:
      files: names of the files that it writes.
      write: (config, weights, folder) -> writes them.
      samples: whether the result depends on config.sampling.
    """

    files: tuple[str, ...]
    write: Callable[[ConfigDict, Weights, pathlib.Path], None]
    samples: bool


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Export the parameters of config.sampling.params to a folder, by default in exports/ of the workdir."""
    run_folder, mesh = common.open_run(config, folder, output, check=check_export)
    params, step = common.restore_params(config, run_folder, mesh)
    sha256, params = load_params.params_sha256(params), jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), params)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            weights = Weights(
                params=params,
                step=step,
                name=config.sampling.params,
                sha256=sha256,
                config=run_record.report_config(run_folder, config.to_dict(), step),
                class_names=common.class_names_of(run_folder),
                source=str(run_folder),
            )
            target = export(config, weights, run_folder / FOLDER, output)
            print(f"step {step:,}, {config.sampling.params} weights, format {config.export.format}")
            print(f"wrote {', '.join(FORMATS[config.export.format].files)} to {target}")
            if config.export.format == "diffusers" and config.model.class_conditional:
                print("note: DDPMPipeline passes no classes: call its unet with class_labels (docs/exporting.md)")
    return 0


def export(config: ConfigDict, weights: Weights, exports: pathlib.Path, output: str) -> pathlib.Path:
    """Write the files of config.export.format and return their folder.

    Args:
      config: resolved.
      weights: what to export.
      exports: parent of the default folder.
      output: folder given by the user, or "".

    Raises:
      UsageError: the format cannot express the run; the message names the field.
      ConflictError, FileAccessError: the folder holds other results, or cannot be written.
    """
    name, format = config.export.format, FORMATS[config.export.format]
    identity: dict[str, Any] = {"mode": "export", "format": name}
    if format.samples:
        identity |= sampling_config.identity_of(config, "export", weights.step, weights.sha256)
        identity |= {"opset": config.export.opset} if name == "onnx" else {"platforms": list(config.export.platforms)}
        stem = sampling_config.run_name(config, weights.step)
    else:
        identity |= {"step": weights.step, "weights_sha256": weights.sha256, "params": weights.name}
        stem = f"step_{weights.step}" + ("" if weights.name == "ema" else f"-{weights.name}")
    if name == "diffusers":  # flags of config.diffusion, such as clip_denoised, change the scheduler
        identity["unet"], identity["scheduler"] = _diffusers_configs(config)
    target = manifest.claim(identity, names=format.files, default=exports / f"{name}-{stem}", output=output)
    with paths.write_errors(target):
        format.write(config, weights, target)
    return target


def check_export(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.export."""
    config_validation.check_choice("export.format", config.export.format, FORMATS)
    platforms = tuple(config.export.platforms)
    wrong = [name for name in platforms if name not in export_stablehlo.PLATFORMS]
    if wrong or not platforms:
        fault = f"contains {wrong[0]!r}" if wrong else "is empty"
        raise UsageError(f"config.export.platforms {fault}: choose any of {', '.join(export_stablehlo.PLATFORMS)}")
    if len(set(platforms)) < len(platforms):
        raise UsageError(f"config.export.platforms is {platforms}: name each platform once")
    if config.data.condition and config.export.format == "diffusers":
        raise UsageError(
            "config.export.format is 'diffusers', whose pipeline has no condition images (config.data.condition is "
            f"{config.data.condition!r}): choose safetensors, stablehlo or onnx"
        )
    if FORMATS[config.export.format].samples:
        build.build_sampler(config)  # raises, like the next lines
    if config.export.format == "onnx":
        if config.export.opset not in onnx_model.OPSETS:
            raise UsageError(f"config.export.opset is {config.export.opset}: choose from 17 to 23")
        onnx_model.require("jax2onnx")
    if config.export.format == "diffusers":
        _diffusers_configs(config)


def _write_safetensors(config: ConfigDict, weights: Weights, target: pathlib.Path) -> None:
    weights_file.write(target / weights_file.NAME, weights)


def _write_stablehlo(config: ConfigDict, weights: Weights, target: pathlib.Path) -> None:
    shape, sampler, schedule = build.image_shape(config), build.build_sampler(config), build.build_schedule(config)
    cond = condition_config.example_cond(config, build.build_condition(config))
    code = _condition_code(config, cond, "jnp", "jax.random.normal(jax.random.key(1), {shape})")
    programs = export_stablehlo.export_programs(
        build.build_denoise_fn(config, portable=True),
        build.build_guided_denoise_fn(config, portable=True),
        sampler,
        weights.params,
        image_shape=shape,
        platforms=config.export.platforms,
        cond=cond,
    )
    text = export_stablehlo.readme(
        params=weights.name,
        step=weights.step,
        platforms=", ".join(config.export.platforms),
        seed=config.sampling.seed,
        purpose=rng.PURPOSES["sample"],
        num_images=min(16, config.sampling.num_images),
        shape=shape,
        setup=code.setup,
        condition="".join(f", {expression}" for expression in code.arguments.values()),
        batch_shape=f"[n, {', '.join(map(str, shape))}]",
        output_shape=f"[n, {shape[0]}, {shape[1]}, {shape[2] * (1 + build.build_parameterization(config).learns_variance)}]",
        last_t=schedule.num_timesteps - 1,
        meaning=config.diffusion.prediction,
    )
    for name, data in ((export_stablehlo.DENOISER, programs.denoiser), (export_stablehlo.SAMPLER, programs.sampler)):
        with open_atomic(target / name) as out:
            out.write(data)
    facts = export_stablehlo.facts(
        export_stablehlo.described(sampler, schedule, image_shape=shape, cond=cond),
        schedule.alphas_cumprod,
        platforms=list(config.export.platforms),
        **_about(config, weights),
    )
    write_atomically(target / export_stablehlo.FACTS, facts)
    write_atomically(target / export_stablehlo.README, text)


def _write_onnx(config: ConfigDict, weights: Weights, target: pathlib.Path) -> None:
    plain = config.copy_and_resolve_references()
    plain.model.dtype = "float32"  # ONNX Runtime has no bfloat16 convolutions for CPUs
    shape, sampler, schedule = build.image_shape(config), build.build_sampler(config), build.build_schedule(config)
    cond = condition_config.example_cond(config, build.build_condition(config))
    options: dict[str, Any] = {"image_shape": shape, "cond": cond, "opset": config.export.opset}
    make_denoise_fn = build.build_denoise_fn(plain, portable=True)
    network = export_onnx.network_model(make_denoise_fn, weights.params, **options)
    guided = build.build_guided_denoise_fn(plain, portable=True)
    step = export_onnx.step_model(guided, sampler, weights.params, **options)
    differences = export_onnx.check_models(
        network,
        export_onnx.network_function(make_denoise_fn, weights.params, cond),
        step,
        sampler,
        num_timesteps=schedule.num_timesteps,
        num_labels=condition_config.num_labels(config),
        guidance_scale=config.sampling.guidance_scale,
    )
    for name, model in ((export_onnx.DENOISER, network), (export_onnx.STEP, step.model)):
        with open_atomic(target / name) as out:
            out.write(model.data)
    programs = export_onnx.described(network, step, sampler)
    found = {file: {output: each._asdict() for output, each in outputs.items()} for file, outputs in differences.items()}
    about = {"largest_differences": found, "opset": config.export.opset, **_about(config, weights)}
    write_atomically(target / export_onnx.FACTS, export_stablehlo.facts(programs, schedule.alphas_cumprod, **about))
    text = export_onnx.readme(
        network,
        step,
        sampler,
        shape,
        condition=_condition_code(config, cond, "np", "random.standard_normal({shape}, dtype=np.float32)"),
        pixel_format=build.pixel_format(config),
        num_images=min(16, config.sampling.num_images),
        params=weights.name,
        step=weights.step,
        meaning=config.diffusion.prediction,
    )
    write_atomically(target / export_onnx.README, text)
    for name, outputs in differences.items():
        text = ", ".join(f"{output} {each.difference:.1e} ({each.bound:.1e})" for output, each in outputs.items())
        print(f"largest differences between ONNX Runtime and JAX, relative, and their bounds: {name} {text}")


def _about(config: ConfigDict, weights: Weights) -> dict[str, Any]:
    """What programs.json has about the run."""
    condition = build.build_condition(config)
    has_null = config.model.class_conditional and config.model.label_dropout > 0
    return {
        "step": weights.step,
        "params": weights.name,
        "weights_sha256": weights.sha256,
        "prediction": config.diffusion.prediction,
        "variance": config.diffusion.variance,
        "sampling": sampling_config.describe_sampling(config),
        "num_classes": config.data.num_classes if config.model.class_conditional else 0,
        "class_names": list(weights.class_names) if config.model.class_conditional else [],
        "null_label": config.data.num_classes if has_null else None,
        "condition": condition and {key: getattr(condition, key) for key in ("name", "shape", "max_noise")},
    }


def _condition_code(config: ConfigDict, cond: Any, module: str, normal: str) -> ConditionCode:
    """The condition in the code of a README, with the classes of --mode=sample."""
    labels = f"{module}.arange(n, dtype={module}.int32) % {config.data.num_classes}"
    if config.sampling.label >= 0:
        labels = f"{module}.full(n, {config.sampling.label}, {module}.int32)"
    inputs, noise_level = condition_inputs(cond), config.sampling.condition_noise
    return condition_code(inputs, module, normal, labels=labels, noise_level=noise_level)


def _write_diffusers(config: ConfigDict, weights: Weights, target: pathlib.Path) -> None:
    export_diffusers.write(target, build.build_model(config, portable=True), weights.params, *_diffusers_configs(config))


def _diffusers_configs(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of UNet2DModel and of DDPMScheduler. Raises UsageError if they cannot express the run."""
    schedule, parameterization = build.build_schedule(config), build.build_parameterization(config)
    options = choices.options_of(config, choices.SCHEDULE)
    named = export_diffusers.named_schedule(config.diffusion.schedule, options, schedule.num_timesteps)
    section = choices.section_of(config, choices.NETWORK)
    fields = {option: f"{section}.{option}" for option in choices.options_of(config, choices.NETWORK)}
    with config_errors("export.format", fields | {"num_timesteps": "diffusion.num_timesteps"}):
        network, rescaled = build.build_model(config, portable=True), config.diffusion.zero_terminal_snr
        unet = export_diffusers.unet_config(network, build.image_shape(config))
        scale = network.time_scale
        return unet, export_diffusers.scheduler_config(schedule, parameterization, named, rescaled=rescaled, time_scale=scale)


FORMATS = {
    "safetensors": Format((weights_file.NAME,), _write_safetensors, samples=False),
    "diffusers": Format(export_diffusers.FILES, _write_diffusers, samples=False),
    "stablehlo": Format(
        (export_stablehlo.DENOISER, export_stablehlo.SAMPLER, export_stablehlo.FACTS, export_stablehlo.README),
        _write_stablehlo,
        samples=True,
    ),
    "onnx": Format(
        (export_onnx.DENOISER, export_onnx.STEP, export_onnx.FACTS, export_onnx.README),
        _write_onnx,
        samples=True,
    ),
}
