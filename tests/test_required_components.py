"""Where the programs are that tests need, skipping those tests is a failure."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
from required_components import Component, Outcomes

TESTS = Path(__file__).parent
KAFKA = Component("Kafka", "kafka_components", lambda: None)
FLINK = Component("Flink", "flink_components", lambda: None)


def report(outcome: str, when: str = "call", component: str | None = "kafka_components", **more: Any) -> Any:
    return SimpleNamespace(
        nodeid="tests/test_x.py::test_y",
        outcome=outcome,
        when=when,
        skipped=outcome == "skipped",
        longrepr=("x.py", 1, "Skipped: why") if outcome == "skipped" else None,
        user_properties=[("component", component)] if component else [("other", 1)],
        **more,
    )


def problems(*reports: Any, components: tuple[Component, ...] = (KAFKA,), whole: bool = True) -> list[str]:
    outcomes = Outcomes()
    for some in reports:
        outcomes.note(some)
    return list(outcomes.problems(components, whole))


def test_tests_that_ran_are_enough() -> None:
    assert problems(report("passed", "setup"), report("passed"), report("passed", "teardown")) == []
    # pytest itself tells of a failure.
    assert problems(report("failed")) == []
    assert problems(report("skipped", wasxfail="known")) == []


@pytest.mark.parametrize("when", ["setup", "call"])
def test_a_skipped_test_is_told_with_its_reason(when: str) -> None:
    (problem,) = problems(report("passed"), report("skipped", when))
    assert "test_y: Skipped: why" in problem
    assert problems(report("passed"), report("skipped", when, component=None)) == []


def test_no_test_at_all() -> None:
    for reports in ([], [report("passed", component=None)], [report("passed", "setup")]):
        assert "no test has the fixture kafka_components" in problems(*reports)[0]
        assert problems(*reports, whole=False) == []


def test_components_are_judged_each_for_itself() -> None:
    found = problems(report("passed"), report("skipped", component="flink_components"), components=(KAFKA, FLINK))
    assert len(found) == 1
    assert found[0].startswith("Flink")


def test_where_a_component_is_absent_its_tests_may_be_skipped() -> None:
    absent = Component("Kafka", "kafka_components", lambda: "there is no 'java'")
    assert problems(report("skipped", "setup"), components=(absent,)) == []
    assert problems(components=(absent,)) == []
    with pytest.raises(pytest.skip.Exception, match="no 'java'"):
        absent.skip_where_absent()
    KAFKA.skip_where_absent()


CONFTEST = """
import conftest
import pytest
from required_components import OPTION, Component, RequireComponents
THING = Component("The thing", "thing", lambda: {missing!r})

@pytest.fixture(scope="session")
def thing():
    THING.skip_where_absent()

@pytest.fixture
def made_of_it(thing):
    return 1

def pytest_addoption(parser):
    parser.addoption(OPTION, action="store_true")

def pytest_configure(config):
    config.pluginmanager.register(RequireComponents([THING]))
"""


@pytest.mark.parametrize(
    ("body", "missing", "arguments", "status"),
    [
        ("pass", None, ["--require-components"], 0),
        ("pytest.skip('not today')", None, ["--require-components", "-p", "xdist", "-n", "1"], 1),
        ("pytest.skip('not today')", None, [], 0),
        ("pass", "no thing here", ["--require-components"], 0),
    ],
    ids=["ran", "skipped", "not required", "absent"],
)
def test_in_pytest(tmp_path: Path, body: str, missing: str | None, arguments: list[str], status: int) -> None:
    """The whole way, through the processes of pytest-xdist."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ntestpaths = tests\npythonpath = {TESTS}\n")
    (tests / "conftest.py").write_text(CONFTEST.format(missing=missing))
    (tests / "test_it.py").write_text(
        f"import pytest\ndef test_it(made_of_it):\n    {body}\ndef test_other():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    told = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert told.returncode == status, told.stdout + told.stderr
    assert ("The thing is on this machine, but" in told.stdout) == bool(status)


def test_the_suite_requires_what_it_has_fixtures_for() -> None:
    """A component whose fixture has another name would be required of nobody."""
    assert [component.fixture for component in conftest.COMPONENTS if not hasattr(conftest, component.fixture)] == []
    assert "--require-components" in (TESTS.parent / "run_tests.sh").read_text()
    assert "run_tests.sh" in (TESTS.parent / ".ci" / "run").read_text()
