"""The tables of docs/samplers.md that compare with diffusers: cells are measured again for each schedule."""

import pathlib
import re

import jax
import numpy as np
import pytest

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "samplers.md").read_text()
BUDGETS = (5, 10, 20, 50, 100)  # columns of the tables


@pytest.fixture(scope="module")
def mixture(repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        import mixture

        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
            yield mixture


def cell(schedule, label, spacing, budget):
    """(ours, diffusers') error in the table of a schedule; None where diffusers has none."""
    table = re.search(rf"^### {schedule.capitalize()} schedule\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    (row,) = re.findall(rf"^\| {re.escape(label)} \| {spacing} \| (.*) \|$", table, re.MULTILINE)
    ours, theirs = row.split(" | ")[BUDGETS.index(budget)].split(" / ")
    return float(ours), None if theirs == "-" else float(theirs)


@pytest.mark.parametrize(
    ("schedule", "label", "spacing"),
    [
        ("linear", "dpmpp_2m", "leading"),
        ("cosine", "dpmpp_2m", "linspace"),
        ("cosine", "unipc", "leading"),
        ("sigmoid", "unipc, order 3", "linspace"),
    ],
)
def test_errors_match_the_page_and_are_at_most_those_of_diffusers(mixture, schedule, label, spacing):
    """With 10 evaluations, within 5% including the rounding of the page; at most 1.02 times the error of diffusers."""
    trained = mixture.schedules.make_schedule(schedule, mixture.STEPS)
    keys = jax.random.split(jax.random.key(0), 50_000)[:1000]
    x_T = np.asarray(mixture.chain.per_image_noise(keys, 0, mixture.SHAPE))
    exact = mixture.solve_flow(trained, x_T, steps=400)
    sampler = mixture.sampler_within(trained, mixture.DETERMINISTIC[label], spacing, 10)
    samples = mixture.run(sampler, mixture.make_network(trained), keys)
    error = np.sqrt(np.mean(np.sum(np.square(samples - exact), axis=-1)))
    ours, theirs = cell(schedule, label, spacing, 10)
    assert error == pytest.approx(ours, rel=0.05)
    assert error <= 1.02 * theirs
