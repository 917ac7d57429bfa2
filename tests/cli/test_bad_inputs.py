"""Bad inputs in all modes: each gives a one-line error that names the problem, and the right exit code.

`bad_inputs.py` has the table, and also follows the advice of each error when run by hand. Here one process runs the fast
cases, which fail before anything is computed.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.cli import bad_inputs

QUICK = [case.name for case in bad_inputs.CASES if not case.slow and not case.outside]


@pytest.fixture(scope="module")
def outcomes(repository, compiled_fast):
    """Case -> outcome, from a separate process that forks: this process has used its devices."""
    line = [sys.executable, "tests/cli/bad_inputs.py", "--json", "--no-advice", *QUICK]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiled_fast}
    done = subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True, timeout=280, check=False)
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert len(rows) == len(QUICK), done.stderr
    return {row["case"]: row for row in rows}


@pytest.mark.parametrize("name", QUICK)
def test_the_error_is_one_line_that_names_the_problem(outcomes, name):
    assert not outcomes[name]["faults"], outcomes[name]["line"]


def test_all_modes_have_cases():
    assert len(QUICK) >= 60
    modes = {case.mode for case in bad_inputs.CASES if case.name in QUICK}
    assert modes >= {
        "train",
        "sample",
        "inpaint",
        "image_to_image",
        "interpolate",
        "visualize",
        "evaluate",
        "export",
        "compute_stats",
    }
    assert len({case.name for case in bad_inputs.CASES}) == len(bad_inputs.CASES)
