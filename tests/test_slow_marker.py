"""`make test` and `make test-slow` together run every test once, and `.ci/run` runs both, `make test-interop` and
`make test-browser`.

It does not run `make test-plan` (CONTRIBUTING.md).
"""

import re
import shlex

import pytest
from _pytest.mark.expression import Expression


@pytest.fixture
def pytest_lines(repository):
    """Target of the Makefile -> the arguments that it gives to pytest."""
    rules = re.findall(r"^([\w-]+):.*\n((?:\t.*\n)+)", (repository / "Makefile").read_text(), re.MULTILINE)
    lines = {}
    for target, recipe in rules:
        for arguments in re.findall(r"-m pytest(.*)", recipe):
            assert target not in lines
            lines[target] = shlex.split(arguments)
    return lines


@pytest.mark.parametrize("marks", [set(), {"slow"}, {"timeout"}, {"slow", "timeout", "parametrize"}])
def test_every_test_is_run_by_exactly_one_of_the_two(pytest_lines, marks):
    assert set(pytest_lines) == {"test", "test-slow", "test-newest", "test-interop", "test-browser", "test-plan"}
    assert pytest_lines["test-newest"] == []  # all tests
    runs = []
    for target in ("test", "test-slow"):
        option, expression = pytest_lines[target]  # and no other argument, which could leave tests out
        assert option == "-m"
        runs.append(Expression.compile(expression).evaluate(lambda name, **_: name in marks))
    assert runs == ["slow" not in marks, "slow" in marks]


def test_the_settings_of_pytest_leave_no_test_out(pytestconfig):
    options = pytestconfig.getini("addopts")
    assert not [
        option for option in options if re.match(r"-[mk]|--(ignore|deselect|collect|last-failed|lf|sw|stepwise)", option)
    ]
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert [line for line in pytestconfig.getini("markers") if line.startswith("slow:")]


def test_ci_runs_both(repository):
    lines = (repository / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        f"make {target}" for target in ("lint", "test", "test-slow", "test-interop", "test-browser")
    ]
    assert "set -euo pipefail" in lines  # the first failure ends it
