"""Metrics of training steps, logged two steps late, so that the device never waits for the host."""

import logging
import math
from collections import deque
from collections.abc import Callable

import jax
import numpy as np

from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.runtime.metric_logger import TrainLogger

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # steps that are dispatched before the metrics of an earlier one are read


class DelayedMetricLogger:
    """Holds the metrics of a step back until the `IN_FLIGHT` next ones are dispatched.

    Scalars are averaged over `log_every` steps, without the steps that were skipped; each of these has a log line. An error
    about a value that is not finite names the last of `checkpoints` and the flags to try, `remedies`.
    """

    def __init__(
        self,
        logger: TrainLogger,
        checkpoints: CheckpointManager,
        *,
        log_every: int,
        batch_size: int,
        learning_rate: Callable[[int], float],
        remedies: str,
    ):
        self._logger, self._checkpoints = logger, checkpoints
        self._every, self._batch_size = log_every, batch_size
        self._learning_rate, self._remedies = learning_rate, remedies
        self._pending: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._interval: list[dict[str, np.ndarray]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the step after which `step` steps are done; log those of `IN_FLIGHT` steps before it.

        Raises:
          NumericalError: as `flush`, of such an earlier step.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._log_next()

    def flush(self) -> None:
        """Log what is held back.

        Raises:
          NumericalError: the loss or the gradient is not finite, or the timestep sampler returned an invalid t or weight;
            the first such step is named.
        """
        while self._pending:
            self._log_next()

    def _log_next(self) -> None:
        step, metrics = self._pending.popleft()
        metrics = jax.device_get(metrics)
        self._check_timesteps(step, metrics)
        if metrics.get("skipped"):
            number, total = int(metrics["skipped_in_a_row"]), int(metrics["skipped_steps"])
            logger.info(f"step {step:,} is skipped: its gradient is not finite ({number:,} in a row, {total:,} in this run)")
        else:
            for name in ("loss", "grad_norm"):
                if not math.isfinite(metrics[name]):
                    raise NumericalError(self._not_finite(name, step))
        self._interval.append(metrics)
        if step % self._every == 0:
            self._logger.log_scalars(step, self._averages(step))
            self._interval.clear()
        else:
            self._logger.tick(step)

    def _check_timesteps(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Raises NumericalError if the timestep sampler returned a t outside the chain, or weights that are not finite."""
        size = self._batch_size
        outside = size - int(metrics["quartile_count"].sum())  # such a t is in no quartile
        fault = f"{outside} of {size} t outside 0..T-1" if outside else ""
        if not fault and not math.isfinite(metrics["loss"]) and np.isfinite(metrics["quartile_sum"]).all():
            fault = "weights that are not finite"  # the losses are
        if fault:
            raise NumericalError(f"`timestep_sampler` returned {fault} for step {step:,}; {self._last_saved()[0]}. Correct it")

    def _averages(self, step: int) -> dict[str, float]:
        """Over the steps since the last such line; `train/loss_q1` is of the quarter of the chain with the least noise."""
        last, taken = self._interval[-1], [metrics for metrics in self._interval if not metrics.get("skipped")]
        scalars = {f"train/{name}": sum(m[name] for m in taken) / len(taken) for name in ("loss", "grad_norm") if taken}
        scalars["train/param_norm"] = last["param_norm"]
        scalars["train/learning_rate"] = self._learning_rate(step - 1)
        if "skipped_steps" in last:
            scalars["train/skipped_steps"] = last["skipped_steps"]
        for quartile in range(4):
            if count := sum(metrics["quartile_count"][quartile] for metrics in taken):
                losses = sum(metrics["quartile_sum"][quartile] for metrics in taken)
                scalars[f"train/loss_q{quartile + 1}"] = losses / count
        scalars |= self._logger.rates()
        return {name: float(value) for name, value in scalars.items()}

    def _not_finite(self, name: str, step: int) -> str:
        saved, again = self._last_saved()
        return f"{name} is not finite at step {step:,}; {saved}. To {again}, give the command {self._remedies}"

    def _last_saved(self) -> tuple[str, str]:
        """What is saved, and what the same command does next, for errors."""
        self._checkpoints.wait()
        latest = self._checkpoints.latest_step()
        if latest is None:
            return "no checkpoint was saved yet", "start again"
        return f"the last good checkpoint is of step {latest:,}", "resume"
