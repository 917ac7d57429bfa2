"""Bad inputs over all modes: each ends in one line of error that names what is wrong, and with the right exit code.

`bad_inputs.py` has the table, and takes the advice of each error when it is run by hand. Here one process runs those cases
that end before a device computes; they take seconds together.
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
    """Case -> what came of it. In a process of their own, which forks: this one has used its devices."""
    line = [sys.executable, "tests/cli/bad_inputs.py", "--json", "--no-advice", *QUICK]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiled_fast}
    done = subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True, timeout=280, check=False)
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert len(rows) == len(QUICK), done.stderr
    return {row["case"]: row for row in rows}


@pytest.mark.parametrize("name", QUICK)
def test_it_is_one_line_that_names_what_is_wrong(outcomes, name):
    assert not outcomes[name]["faults"], outcomes[name]["line"]


def test_there_are_many_and_of_every_mode():
    assert len(QUICK) >= 60
    modes = {case.mode for case in bad_inputs.CASES if case.name in QUICK}
    assert modes >= {"train", "sample", "inpaint", "image_to_image", "interpolate", "visualize", "evaluate", "reference"}
    assert len({case.name for case in bad_inputs.CASES}) == len(bad_inputs.CASES)
