"""Tests that need programs from outside Python must not be skipped unnoticed where those programs are.

A component has a fixture that skips where it is absent. With ``--require-components``, which ``run_tests.sh`` gives,
the tests fail if any test with such a fixture was skipped although the component is there, or if all tests were to run
and none had the fixture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

OPTION = "--require-components"

_PROPERTY = "component"


@dataclass(frozen=True)
class Component:
    """What tests need.

    Attributes
    ----------
    name : str
        For people.
    fixture : str
        Fixture that skips a test where the component is absent.
    missing : callable
        Says in one sentence what is absent; None if nothing.
    """

    name: str
    fixture: str
    missing: Callable[[], str | None]

    def skip_where_absent(self) -> None:
        """Skip the test that asks, with the reason."""
        if reason := self.missing():
            pytest.skip(reason)


@dataclass
class Outcomes:
    """How the tests of each component, by the name of its fixture, ended."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, report: pytest.TestReport) -> None:
        """Count a phase of a test."""
        fixtures = [value for name, value in report.user_properties if name == _PROPERTY]
        # A test that runs is counted when it has run, one that is skipped before.
        if not fixtures or (report.when != "call" and not report.skipped):
            return
        # An expected failure is reported as skipped as well.
        outcome = "passed" if hasattr(report, "wasxfail") else report.outcome
        for fixture in fixtures:
            self.counts[fixture][outcome] += 1
            if outcome == "skipped":
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                self.skipped[fixture].append(f"{report.nodeid}: {reason}")

    def problems(self, components: Iterable[Component], whole: bool) -> Iterator[str]:
        """Sentences on what should have run and did not.

        Parameters
        ----------
        components : iterable of Component
        whole : bool
            All tests were to run, not a choice of them.
        """
        for component in components:
            skipped = self.skipped[component.fixture]
            absent = whole and not self.counts[component.fixture]
            if not (skipped or absent) or component.missing() is not None:
                continue
            if skipped:
                yield f"{component.name} is on this machine, but tests of it were skipped: {'; '.join(skipped)}"
            else:
                yield f"{component.name} is on this machine, but no test has the fixture {component.fixture}"


class RequireComponents:
    """The part of pytest that watches; to be registered as a plugin."""

    def __init__(self, components: Sequence[Component]) -> None:
        self._components = components
        self._outcomes = Outcomes()
        self._problems: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note with each test which components it needs; the reports of other processes carry that here."""
        for item in items:
            for component in self._components:
                if component.fixture in getattr(item, "fixturenames", ()):
                    item.user_properties.append((_PROPERTY, component.fixture))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count."""
        self._outcomes.note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a success that is none into a failure."""
        config = session.config
        if is_worker(config) or not config.getoption(OPTION) or session.exitstatus != pytest.ExitCode.OK:
            return
        self._problems = list(self._outcomes.problems(self._components, is_whole(config)))
        if self._problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell why."""
        for problem in self._problems:
            terminalreporter.write_line(f"FAILED {problem}", red=True)


def is_worker(config: pytest.Config) -> bool:
    """Say whether this is a process of pytest-xdist, whose reports another one counts."""
    return hasattr(config, "workerinput")


def is_whole(config: pytest.Config) -> bool:
    """Say whether the tests were not chosen by the command line."""
    chosen = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "collectonly")
    return config.args_source == config.ArgsSource.TESTPATHS and not any(
        config.getoption(name, None) for name in chosen
    )
