"""What run_local.sh tells and asks; it is run whole by hand, since it makes its own environment."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

specification = importlib.util.spec_from_file_location("wait_for_stream", ROOT / "scripts" / "wait_for_stream.py")
assert specification is not None
assert specification.loader is not None
waiting = importlib.util.module_from_spec(specification)
specification.loader.exec_module(waiting)

METRICS = """\
# HELP alertbeam_lag_messages Messages that are not read yet
alertbeam_lag_messages{{topic="a b",partition="0"}} {lag}.0
alertbeam_lag_messages{{topic="a b",partition="1"}} 1e+00
alertbeam_alerts_received_total 12.0
alertbeam_alerts_committed_total {committed}
"""


def test_metrics_are_summed() -> None:
    numbers = waiting.numbers_of(METRICS.format(lag=2, committed=12))
    assert numbers["alertbeam_lag_messages"] == 3
    assert numbers["alertbeam_alerts_received_total"] == 12


@pytest.mark.parametrize(("lag", "committed", "rest"), [(-1, 12, True), (0, 12, False), (-1, 11, False)])
def test_at_rest(lag: int, committed: int, rest: bool) -> None:
    assert waiting.is_at_rest(waiting.numbers_of(METRICS.format(lag=lag, committed=committed))) is rest


def test_before_anything_is_known() -> None:
    assert not waiting.is_at_rest(waiting.numbers_of("alertbeam_alerts_received_total 0.0\n"))


def test_a_stream_that_is_gone() -> None:
    """Nobody waits for it, for either."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert waiting.main("reading", "http://127.0.0.1:1/metrics", process.pid) == 1
    assert waiting.main("drained", "http://127.0.0.1:1/metrics", process.pid) == 1


def test_help_and_wrong_usage() -> None:
    told = subprocess.run(["./run_local.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("stream", "RATE", "METRICS_PORT", "CATALOG_DIR", "PYTHON"):
        assert word in told
    assert "set -euo" not in told
    command = ["./run_local.sh", "stream", "some.tar.gz"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "it takes no files" in wrong.stderr
