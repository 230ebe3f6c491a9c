"""A ledger whose units are done by worker processes, of which none is left; ``conftest.py`` gives the fixtures."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from workers_fixtures import Work

from run_folder.ledger import Ledger

VERSIONS = {"code": "1.2.3"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        # Only matters when the power fails.
        opened._connection.execute("PRAGMA synchronous = OFF")
        yield opened
    assert children() == []
    assert list((tmp_path / "ledger" / "handed_out").glob("*")) == []


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "notes").mkdir()
    return Work(tmp_path / "notes")


def children() -> list[psutil.Process]:
    """Workers that are left; other tests may leave other processes."""
    found = []
    for process in psutil.Process().children():
        try:
            found += [process] * any("pipelines.workers" in word for word in process.cmdline())
        except psutil.Error:
            continue
    return found
