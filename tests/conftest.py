"""Fixtures that every test file may use.

Those that last as long as the tests are imported here: a file that imported one would have one of its own.
"""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from database_fixtures import database, database_url, empty_url, rows_of  # noqa: F401
from flink_fixtures import FLINK, flink_components, flink_pipeline, flink_server, worker_pool  # noqa: F401
from kafka_fixtures import KAFKA, kafka_broker, kafka_components, topic  # noqa: F401
from ledger_fixtures import ledger, work  # noqa: F401
from live_stream_fixtures import nights, packets  # noqa: F401
from pipeline_fixtures import alertbeam, impatient, sample  # noqa: F401
from required_components import OPTION, RequireComponents

from messaging.monitor import close_monitors

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# One of the last by its name; the other processes of pytest would have nothing left while one is busy with it.
LONGEST = "test_stream_flink.py"

# Programs from outside Python that tests need; with OPTION the tests of those that are there must have run.
COMPONENTS = (KAFKA, FLINK)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="fail if tests of programs that are installed were skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RequireComponents(COMPONENTS))
    # A shell lets what it starts in the background ignore interrupts, and so would the processes that tests interrupt.
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _monitors_of_its_own() -> Iterator[None]:
    """Close the monitors that a test leaves: a stream with equal settings would go on counting from there."""
    yield
    close_monitors()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the reference data beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"reference data absent: {SHARED_DATA} is not a folder")
    return SHARED_DATA


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest file, and leave out the tests that take minutes unless they are asked for by ``-m``."""
    items.sort(key=lambda item: item.path.name != LONGEST)
    if config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
