"""What config.evaluation decides: which images are compared, through which features, by which metrics."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation, cpu, data_config
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import ImageSource, NoSuchSplit
from ddpm_jax.diffusion import likelihood
from ddpm_jax.evaluation import held_out as held_out_images
from ddpm_jax.evaluation import reference
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
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.user_messages import UsageError, UserError, config_errors

BOUNDS = ("bits_per_dim", "ode_bits_per_dim")  # of images held out
METRICS = (*SAMPLE_METRICS, *BOUNDS)


def check_evaluation(config: ConfigDict) -> None:
    """Raises a UsageError that names the field of config.evaluation that is wrong."""
    evaluation = config.evaluation
    for metric in evaluation.metrics:
        config_validation.check_choice("evaluation.metrics", metric, METRICS)
    if not evaluation.metrics:
        raise UsageError(f"config.evaluation.metrics is empty: choose of {', '.join(METRICS)}")
    config_validation.check_choice("evaluation.class_proportions", evaluation.class_proportions, PROPORTIONS)
    config_validation.check_choice("evaluation.vlb_decoder", evaluation.vlb_decoder, likelihood.DECODERS)
    for name, least in (("num_images", NUM_NEIGHBORS + 1), ("num_heldout_images", 0), ("vlb_num_timesteps", 0)):
        if evaluation[name] < least:
            raise UsageError(f"config.evaluation.{name} is {evaluation[name]}: it must be {least} or more")
    if not evaluation.checkpoint_steps:
        raise UsageError("config.evaluation.checkpoint_steps is empty: name steps, or -1 for the latest")
    for sampler in evaluation.samplers:
        config_validation.check_choice("evaluation.samplers", sampler, SAMPLERS)
    for steps in evaluation.num_steps:
        if not 1 <= steps <= (most := config.diffusion.num_timesteps):
            words = f"it must be from 1 to config.diffusion.num_timesteps, which is {most}"
            raise UsageError(f"config.evaluation.num_steps holds {steps}: {words}")
    params_fields(config)


def params_fields(config: ConfigDict) -> dict[str, str | None]:
    """The parameters of each checkpoint to measure: name -> field of the checkpoint; None where they are made of others.

    Raises:
      UsageError: a name of config.evaluation.params is of no parameters.
    """
    fields = {}
    for name in config.evaluation.params or (config.sampling.params,):
        case = config.copy_and_resolve_references()
        case.sampling.params = name
        try:
            fields[name] = build.params_field(case)
        except UsageError as error:
            raise UsageError(str(error).replace("config.sampling.params is", "config.evaluation.params holds")) from error
    return fields


def metrics_of(config: ConfigDict, held_out: HeldOut) -> tuple[str, ...]:
    """Those of config.evaluation.metrics that can be measured: without images held out, no bits/dim.

    Raises:
      UsageError: none can.
    """
    wanted = tuple(metric for metric in config.evaluation.metrics if held_out.source or metric not in BOUNDS)
    if not wanted:
        raise UsageError(f"bits/dim needs images that were not trained on: {'; '.join(held_out.notes)}")
    return wanted


def compared_split(config: ConfigDict) -> str:
    """The split that generated images are compared with."""
    return config.evaluation.split or config.data.split


def load_split(config: ConfigDict, split: str) -> ImageSource:
    """The images of a split of config.data; raises as `build.build_source`."""
    other = config.copy_and_resolve_references()
    other.data.split = split
    return build.build_source(other)


def load_compared(config: ConfigDict) -> ImageSource:
    """The images that generated ones are compared with.

    Raises:
      UsageError: the set has no such split; names the field that asked for it.
      UserError: the set cannot be read.
    """
    try:
        return load_split(config, compared_split(config))
    except NoSuchSplit as error:
        if not config.evaluation.split:
            raise
        raise NoSuchSplit(f"config.evaluation.split is {config.evaluation.split!r}: {error}") from error


def find_held_out(config: ConfigDict, trained_on: data_identity.Identity | None = None) -> HeldOut:
    """The images held out, as `held_out.find_held_out` finds them."""
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
    """The extractor that config.evaluation names.

    Raises:
      UsageError, UserError: as `features.make_extractor`.
    """
    evaluation = config.evaluation
    try:
        return features.make_extractor(
            evaluation.features,
            inception_path=evaluation.inception_path,
            group_size=cpu.inception_group_size(),
            progress=Progress,
        )
    except InvalidArgumentError:
        raise
    except ExpectedError as error:
        if evaluation.features != "inception":
            raise
        raise UserError(f"{error}; or compare without a network: --config.evaluation.features=pixels_16") from error


def reference_identity(config: ConfigDict, extractor: FeatureExtractor) -> dict[str, Any]:
    """The fields of the provenance in which reference statistics and a run must agree."""
    data = config.data
    named = {"set": data.name, "split": compared_split(config), "resolution": data.image_size, "channels": data.channels}
    return named | {"extractor": extractor.provenance}


def build_collector(config: ConfigDict, mesh: jax.sharding.Mesh) -> FeatureCollector:
    """What computes features; raises as `make_extractor`."""
    evaluation = config.evaluation
    return FeatureCollector(make_extractor(config), mesh, evaluation.batch_size, evaluation.max_features)


def build_scorer(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    source: ImageSource | None = None,
    trained_on: data_identity.Identity | None = None,
) -> SampleScorer:
    """What compares images with the real ones of config.evaluation.

    Args:
      config: resolved.
      mesh: whose devices compute the features.
      source: the real images, where they are loaded already.
      trained_on: the set that the run was trained on, as its workdir has it; None where it does not.

    Raises:
      UserError: config.evaluation.reference holds statistics of something else, or too little.
      UsageError: features that cannot be compared.
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
        found = reference.measure_reference(compared, collector, identity)
    else:
        found = reference.with_features(found, collector, evaluation.metrics)
    num_classes = config.data.num_classes if has_classes else 0
    classes = ClassProportions(num_classes, config.sampling.label, evaluation.class_proportions, found.class_counts)
    return SampleScorer(found, collector, evaluation.metrics, classes, trained_on)


def build_vlb_evaluator(config: ConfigDict, mesh: jax.sharding.Mesh) -> VlbEvaluator:
    """The driver that measures the variational bound as config.evaluation says."""
    with config_errors("evaluation.vlb_num_timesteps"):
        return VlbEvaluator(
            build.build_schedule(config),
            build.build_parameterization(config),
            build.build_denoise_fn(config),
            mesh,
            decoder=config.evaluation.vlb_decoder,
            batch_size=config.evaluation.batch_size,
            timesteps_per_image=config.evaluation.vlb_num_timesteps,
        )


def build_ode_likelihood_evaluator(config: ConfigDict, mesh: jax.sharding.Mesh) -> OdeLikelihoodEvaluator:
    """The driver that measures the likelihood under the probability flow as config.evaluation says."""
    with config_errors("evaluation, ode_bits_per_dim"):
        return OdeLikelihoodEvaluator(
            build.build_schedule(config),
            build.build_parameterization(config),
            build.build_denoise_fn(config),
            mesh,
            batch_size=config.evaluation.batch_size,
            probes=config.evaluation.hutchinson_samples,
            rtol=config.evaluation.ode_tolerance,
            atol=config.evaluation.ode_tolerance,
        )


def build_periodic_scores(config: ConfigDict, mesh: jax.sharding.Mesh) -> Callable[[Any], dict[str, float]]:
    """params -> {"evaluation/frechet": ...}, of config.train.eval_num_samples images by config.sampling's sampler.

    Images have the keys of --mode=sample, and none of training's: a run is the same with such scores and without.

    Raises:
      UsageError: a field of config.evaluation is wrong, or none of its metrics is of generated images.
    """
    case, number = config.copy_and_resolve_references(), config.train.eval_num_samples
    case.sampling.update(num_images=number, num_intermediates=0)
    with distributed.raise_on_all_processes():
        check_evaluation(config)
        if not set(config.evaluation.metrics) & set(SAMPLE_METRICS):
            raise UsageError(f"config.train.eval_every needs {' or '.join(SAMPLE_METRICS)} in config.evaluation.metrics")
        if number <= NUM_NEIGHBORS:
            raise UsageError(f"config.train.eval_num_samples is {number}: it must be above {NUM_NEIGHBORS}")
        sampler = build.build_batched_sampler(case, mesh)
    scorer, key = build_scorer(config, mesh), rng.purpose_key(case.sampling.seed, "sample")
    labels = data_config.sampling_labels(case, scorer.classes.counts)

    def scores(params: Any) -> dict[str, float]:
        with distributed.show_progress(number) as report:
            made = sampler.generate_all(params, key, num_images=number, cond=labels, report=report)
        return loggable_scalars(scorer.of_images(made.images))

    return scores
