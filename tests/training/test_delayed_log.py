"""The metrics of a step are read after later steps are dispatched, and an error names the step that it belongs to."""

import numpy as np
import pytest

from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.training.delayed_log import IN_FLIGHT, DelayedMetricLogger


class Recorder:
    """The logger and the checkpoints of a `DelayedMetricLogger`."""

    def __init__(self):
        self.steps, self.rows = [], []

    def tick(self, step):
        self.steps.append(step)

    def log_scalars(self, step, scalars):
        self.steps.append(step)
        self.rows.append((step, scalars["train/loss"]))

    def rates(self):
        return {}

    def wait(self):
        pass

    def latest_step(self):
        return None


def metrics(loss):
    norms = {"grad_norm": np.float32(1), "param_norm": np.float32(1)}
    return {"loss": np.float32(loss), "quartile_sum": np.full(4, loss), "quartile_count": np.array([2.0, 0, 0, 0]), **norms}


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def log(recorder):
    return DelayedMetricLogger(
        recorder, recorder, log_every=4, batch_size=2, learning_rate=lambda step: 0.1, remedies="--config.optimizer.clip_norm=1"
    )


def test_steps_are_logged_in_order_and_late(log, recorder):
    for step in range(1, 7):
        log.add(step, metrics(step))
        assert recorder.steps == list(range(1, step - IN_FLIGHT + 1))
    log.flush()
    assert recorder.steps == [1, 2, 3, 4, 5, 6]
    assert recorder.rows == [(4, 2.5)]
    log.flush()
    assert len(recorder.steps) == 6


@pytest.mark.parametrize("later", [1, 2])
def test_the_first_step_that_is_not_finite_is_named(log, recorder, later):
    """With two later steps under way, whose losses are not finite either."""
    log.add(1, metrics(1))
    log.add(2, metrics(np.nan))
    for step in range(3, 3 + later - 1):
        log.add(step, metrics(np.nan))
    with pytest.raises(NumericalError, match=r"loss is not finite at step 2; .*--config.optimizer.clip_norm=1"):
        log.flush() if later == 1 else log.add(4, metrics(np.nan))
    assert recorder.steps == [1]
