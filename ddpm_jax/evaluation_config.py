"""Validates config.evaluation and builds its components: reference, features, metrics and likelihood evaluators."""

import logging
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import build, choices, condition_config, config_validation, cpu
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import ImageSource, NoSuchSplit
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation import held_out as held_out_images
from ddpm_jax.evaluation import heldout_loss, reference
from ddpm_jax.evaluation.class_proportions import PROPORTIONS, ClassProportions
from ddpm_jax.evaluation.feature_extraction import FeatureCollector
from ddpm_jax.evaluation.held_out import HeldOut
from ddpm_jax.evaluation.ode_likelihood_evaluator import OdeLikelihoodEvaluator
from ddpm_jax.evaluation.report import loggable_scalars
from ddpm_jax.evaluation.sample_metrics import NUM_NEIGHBORS, SAMPLE_METRICS, SampleScorer
from ddpm_jax.evaluation.vlb_evaluator import VlbEvaluator
from ddpm_jax.metrics import features
from ddpm_jax.metrics.features import FeatureExtractor
from ddpm_jax.runtime import distributed, paths, rng
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError
from ddpm_jax.runtime.mesh import images_per_batch
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.sampling_conditions import load_split, sampling_inputs
from ddpm_jax.user_messages import UsageError, UserError, config_errors

logger = logging.getLogger(__name__)

LIKELIHOODS = ("bits_per_dim", "ode_bits_per_dim")  # these need held-out images
METRICS = (*SAMPLE_METRICS, "psnr", *LIKELIHOODS)


def check_evaluation(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.evaluation."""
    evaluation = config.evaluation
    for metric in evaluation.metrics:
        config_validation.check_choice("evaluation.metrics", metric, METRICS)
    if not evaluation.metrics:
        raise UsageError(f"config.evaluation.metrics is empty: choose from {', '.join(METRICS)}")
    if "psnr" in evaluation.metrics and not config.data.condition:
        raise UsageError(
            "config.evaluation.metrics contains psnr, which compares images with the originals of config.data.condition"
        )
    if "psnr" in evaluation.metrics and config.sampling.condition_images:
        raise UsageError(
            "config.evaluation.metrics contains psnr: leave out config.sampling.condition_images, without originals"
        )
    config_validation.check_choice("evaluation.class_proportions", evaluation.class_proportions, PROPORTIONS)
    config_validation.check_choice("evaluation.vlb_decoder", evaluation.vlb_decoder, likelihood.DECODERS)
    for name, least in (("num_images", NUM_NEIGHBORS + 1), ("num_heldout_images", 0), ("vlb_num_timesteps", 0)):
        if evaluation[name] < least:
            raise UsageError(f"config.evaluation.{name} is {evaluation[name]}: it must be {least} or more")
    if not evaluation.checkpoint_steps:
        raise UsageError("config.evaluation.checkpoint_steps is empty: give steps, or -1 for the latest")
    for sampler in evaluation.samplers:
        config_validation.check_part("evaluation.samplers", sampler, SAMPLERS)
    for steps in evaluation.num_steps:
        if not 1 <= steps <= (most := config.diffusion.num_timesteps):
            valid = f"it must be from 1 to config.diffusion.num_timesteps, which is {most}"
            raise UsageError(f"config.evaluation.num_steps contains {steps}: {valid}")
    data = config.data
    if evaluation.features == "inception" and data.channels not in (1, 3) and set(evaluation.metrics) & set(SAMPLE_METRICS):
        raise UsageError(
            f"config.evaluation.features is inception, which needs 1 or 3 channels, not {data.channels}: use pixels_16, pixels "
            "or module:function"
        )
    if not build.pixel_format(config).num_levels and (named := set(evaluation.metrics) & set(LIKELIHOODS)):
        raise UsageError(
            f"config.evaluation.metrics has {', '.join(sorted(named))}, which needs images with discrete levels, and "
            f"config.data.dtype is {data.dtype}: leave it out"
        )
    params_fields(config)


def params_fields(config: ConfigDict) -> dict[str, str | None]:
    """The parameters to evaluate: name -> checkpoint field; None if they must be computed from other fields.

    Raises:
      UsageError: config.evaluation.params contains an unknown name.
    """
    fields = {}
    for name in config.evaluation.params or (config.sampling.params,):
        case = config.copy_and_resolve_references()
        case.sampling.params = name
        try:
            fields[name] = build.params_field(case)
        except UsageError as error:
            raise UsageError(str(error).replace("config.sampling.params is", "config.evaluation.params contains")) from error
    return fields


def metrics_of(config: ConfigDict, held_out: HeldOut) -> tuple[str, ...]:
    """The metrics of config.evaluation that can be computed: no bits/dim without held-out images.

    Raises:
      UsageError: there are none.
    """
    wanted = tuple(metric for metric in config.evaluation.metrics if held_out.source or metric not in LIKELIHOODS)
    if not wanted:
        raise UsageError(f"bits/dim needs images that were not trained on: {'; '.join(held_out.notes)}")
    return wanted


def compared_split(config: ConfigDict) -> str:
    """The split that generated images are compared with."""
    return config.evaluation.split or config.data.split


def load_compared(config: ConfigDict) -> ImageSource:
    """Load the images that generated images are compared with.

    Raises:
      NoSuchSplit: there is no such split; the message names the field.
      ExpectedError: as `data_config.load_source`.
    """
    try:
        return load_split(config, compared_split(config))
    except NoSuchSplit as error:
        if not config.evaluation.split:
            raise
        raise NoSuchSplit(f"config.evaluation.split is {config.evaluation.split!r}: {error}") from error


def find_held_out(config: ConfigDict, trained_on: data_identity.Identity | None = None) -> HeldOut:
    """Find the held-out images; raises as `held_out.find_held_out`."""
    return held_out_images.find_held_out(
        config.evaluation.heldout_split,
        lambda split: load_split(config, split),
        set_name=config.data.name,
        train_split=config.data.split,
        compared_split=compared_split(config),
        load_compared=None if config.evaluation.reference else lambda: load_compared(config),
        trained_on=trained_on,
    )


def make_extractor(config: ConfigDict) -> FeatureExtractor:
    """The feature extractor of config.evaluation.

    Raises:
      InvalidArgumentError, UserError: as `features.make_extractor`.
    """
    evaluation = config.evaluation
    try:
        return features.make_extractor(
            evaluation.features,
            options=choices.options_of(config, choices.FEATURES),
            inception_path=evaluation.inception_path,
            group_size=cpu.inception_group_size(),
            progress=Progress,
        )
    except InvalidArgumentError:
        raise
    except ExpectedError as error:
        if evaluation.features != "inception":
            raise
        raise UserError(f"{error}; or use features that need no download: --config.evaluation.features=pixels_16") from error


def reference_identity(config: ConfigDict, extractor: FeatureExtractor) -> dict[str, Any]:
    """The fields of the provenance that must agree between reference statistics and a run."""
    data = config.data
    height, width, channels = build.image_shape(config)
    resolution = height if height == width else [height, width]
    named = {"set": data.name, "split": compared_split(config), "resolution": resolution, "channels": channels}
    if data.dtype != "uint8":
        named["dtype"] = data.dtype
    return named | {"extractor": extractor.provenance}


def build_collector(config: ConfigDict, mesh: jax.sharding.Mesh) -> FeatureCollector:
    """The feature collector of config.evaluation; raises as `make_extractor`."""
    evaluation = config.evaluation
    return FeatureCollector(
        make_extractor(config),
        mesh,
        images_per_batch(evaluation.batch_size),
        evaluation.max_features,
        build.pixel_format(config),
    )


def build_scorer(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    source: ImageSource | None = None,
    trained_on: data_identity.Identity | None = None,
) -> SampleScorer:
    """The scorer that compares images with the reference of config.evaluation.

    Args:
      config: resolved config.
      mesh: devices that compute the features.
      source: the real images, if already loaded.
      trained_on: identity of the training set as recorded in the workdir; None if not recorded.

    Raises:
      InvalidDataError: the statistics of config.evaluation.reference do not fit the run.
      InvalidArgumentError: the features are unknown or too many.
    """
    evaluation, has_classes, shape = config.evaluation, config.model.class_conditional, build.image_shape(config)
    found = None
    with distributed.raise_on_all_processes():
        collector = build_collector(config, mesh)
        identity = reference_identity(config, collector.extractor)
        reference.check_features(collector.extractor, shape, evaluation.metrics)
        if evaluation.reference:
            found = reference.load_reference(
                paths.expand(evaluation.reference),
                collector.extractor,
                identity=identity,
                image_shape=shape,
                metrics=evaluation.metrics,
                value_range=config.data.value_range,
                trained_on=trained_on if has_classes else None,
            )
        else:
            compared = source or load_compared(config)
    if found is None:
        found = reference.measure_reference(compared, collector, identity, spatial="sfid" in evaluation.metrics)
    else:
        found = reference.with_features(found, collector, evaluation.metrics)
    num_classes = config.data.num_classes if has_classes else 0
    classes = ClassProportions(num_classes, config.sampling.label, evaluation.class_proportions, found.class_counts)
    return SampleScorer(found, collector, evaluation.metrics, classes, trained_on)


def build_vlb_evaluator(config: ConfigDict, mesh: jax.sharding.Mesh) -> VlbEvaluator:
    """The evaluator of the variational bound with the settings of config.evaluation."""
    evaluation = config.evaluation
    options: dict[str, Any] = {"decoder": evaluation.vlb_decoder, "timesteps_per_image": evaluation.vlb_num_timesteps}
    options["pixel_format"] = build.pixel_format(config)
    with config_errors("evaluation.vlb_num_timesteps"):
        return VlbEvaluator(*_model_parts(config), mesh, batch_size=images_per_batch(evaluation.batch_size), **options)


def build_ode_likelihood_evaluator(config: ConfigDict, mesh: jax.sharding.Mesh) -> OdeLikelihoodEvaluator:
    """The evaluator of the ODE likelihood with the settings of config.evaluation."""
    evaluation = config.evaluation
    tolerance = evaluation.ode_tolerance
    options: dict[str, Any] = {"probes": evaluation.hutchinson_samples, "rtol": tolerance, "atol": tolerance}
    options["pixel_format"] = build.pixel_format(config)
    with config_errors("evaluation, ode_bits_per_dim"):
        return OdeLikelihoodEvaluator(
            *_model_parts(config), mesh, batch_size=images_per_batch(evaluation.batch_size), **options
        )


def _model_parts(config: ConfigDict) -> tuple[NoiseSchedule, Parameterization, Callable[[Any, Any], DenoiseFn]]:
    return build.build_schedule(config), build.build_parameterization(config), build.build_denoise_fn(config)


def build_heldout_loss(
    config: ConfigDict, mesh: jax.sharding.Mesh, trained_on: data_identity.Identity | None
) -> Callable[[Any], float] | None:
    """params -> the training loss of config.train.eval_num_heldout held-out images; None, with a log line, if there are none.

    Raises:
      ExpectedError: as `find_held_out`.
    """
    if not config.train.eval_num_heldout:
        return None
    with distributed.raise_on_all_processes():
        held_out = find_held_out(config, trained_on)
        if held_out.source is None:
            logger.info(f"no loss of held-out images: {'; '.join(held_out.notes)}")
            return None
        batch = heldout_loss.read_evenly(held_out.source, config.train.eval_num_heldout)
    schedule, parameterization, make_denoise_fn = _model_parts(config)
    return heldout_loss.HeldoutLoss(
        batch["image"],
        condition_config.batch_cond(config, build.build_condition(config), batch),
        schedule=schedule,
        parameterization=parameterization,
        loss_fn=build.build_loss(config),
        make_denoise_fn=make_denoise_fn,
        mesh=mesh,
        batch_size=images_per_batch(config.evaluation.batch_size),
        pixel_format=build.pixel_format(config),
    )


def build_periodic_scores(
    config: ConfigDict, mesh: jax.sharding.Mesh, train_set: ImageSource
) -> Callable[[Any], dict[str, float]] | None:
    """params -> {"eval/frechet": ...}, for config.train.eval_num_samples images of config.sampling; None for 0 images.

    The random keys are those of --mode=sample, so the evaluations do not affect training. The reference is `train_set`, as
    loaded for training, if config.evaluation names no other.

    Raises:
      UsageError: a field of config.evaluation is invalid, or no metric scores generated images.
    """
    case, number = config.copy_and_resolve_references(), config.train.eval_num_samples
    if not number:
        return None
    case.sampling.update(num_images=number, num_intermediates=0)
    with distributed.raise_on_all_processes():
        check_evaluation(config)
        if not set(config.evaluation.metrics) & set(SAMPLE_METRICS):
            choices = " or ".join(SAMPLE_METRICS)
            raise UsageError(
                f"config.train.eval_every needs {choices} in config.evaluation.metrics, or config.train.eval_num_samples=0 "
                "for the loss of held-out images only"
            )
        if number <= NUM_NEIGHBORS:
            raise UsageError(f"config.train.eval_num_samples is {number}: it must be above {NUM_NEIGHBORS}, or 0 for none")
        sampler = build.build_batched_sampler(case, mesh)
    source = train_set if compared_split(config) == config.data.split else None
    scorer, key = build_scorer(config, mesh, source), rng.purpose_key(case.sampling.seed, "sample")
    with distributed.raise_on_all_processes():
        cond = sampling_inputs(case, scorer.classes.counts).cond

    def scores(params: Any) -> dict[str, float]:
        with distributed.show_progress(number) as report:
            batches = sampler.generate(params, key, num_images=number, cond=cond, report=report)
            return loggable_scalars(scorer.of_generated((batch.images for batch in batches), number))

    return scores
