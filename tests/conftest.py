"""Fixtures that every test file may use."""

import signal
from contextlib import suppress
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    # A shell lets what it starts in the background ignore interrupts, and so would the processes that tests interrupt.
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the reference data beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"reference data absent: {SHARED_DATA} is not a folder")
    return SHARED_DATA
