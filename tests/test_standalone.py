"""deploy/standalone.sh as a whole: everything answers, and everything ends with any part of it."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from messaging.child_process import ChildProcess, free_port, listens
from pipelines.flink_options import flink_options, parallelism

SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "standalone.sh"
PORTS = ("REST_PORT", "JOB_PORT", "WORKER_PORT", "HEALTH_PORT")


@dataclass
class Running:
    process: subprocess.Popen[str]
    told: str
    ports: dict[str, int]
    parts: list[psutil.Process]

    @property
    def flink(self) -> str:
        found = re.search(r"^Flink: (\S+)", self.told, re.M)
        assert found
        return found[1]

    def end(self) -> tuple[int, str]:
        """Exit status and what was said, when everything is gone."""
        _, said = self.process.communicate(timeout=30)
        _, alive = psutil.wait_procs(self.parts, timeout=10)
        assert alive == []
        assert not any(map(listens, self.ports.values()))
        return self.process.returncode, said


@contextmanager
def started(folder: Path, **variables: str) -> Iterator[Running]:
    """Run the script, in another folder than the project, until it has told what to submit with."""
    ports = {name: free_port() for name in PORTS}
    process = subprocess.Popen(
        [str(SCRIPT), "flink"],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, **variables, **{name: str(port) for name, port in ports.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = "".join(islice(process.stdout, 3))
        yield Running(process, told, ports, psutil.Process(process.pid).children(recursive=True))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def refused(folder: Path, **variables: str) -> str:
    """What the script says when it cannot start."""
    command = [str(SCRIPT), "other"]
    given = {**os.environ, "PYTHON": sys.executable, **variables}
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.flink
def test_everything_answers_until_a_signal_comes(flink_components: None, tmp_path: Path) -> None:
    with started(tmp_path, TASK_MANAGERS="1", SLOTS="3") as running:
        overview = asked(f"{running.flink}/overview")
        assert (overview["taskmanagers"], overview["slots-total"]) == (1, 3)
        health = asked(f"http://127.0.0.1:{running.ports['HEALTH_PORT']}/healthz")
        assert (health["status"], health["running"]) == ("ok", 0)
        assert running.flink == f"http://127.0.0.1:{running.ports['REST_PORT']}"
        assert listens(running.ports["JOB_PORT"])
        line = re.search(r"^submit with: (.*)$", running.told, re.M)
        assert line
        words = shlex.split(line[1])
        assert f"--flink_master={running.flink.removeprefix('http://')}" in words
        assert parallelism(flink_options([word for word in words if "runner" not in word], streaming=True)) == 3
        # A job manager, a task manager and a job server, each behind the program that ends it with its parent.
        assert sum(part.name() == "java" for part in running.parts) == 3
        taken = {name: str(port) for name, port in running.ports.items()}
        free = {"WORKER_PORT": "0", "HEALTH_PORT": "0"}
        assert "cannot be listened at" in refused(tmp_path, **taken)
        assert "is taken: name another port for Flink's REST" in refused(tmp_path, **taken | free)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == (0, "standalone.sh: stopped, with all its parts\n")
    assert (tmp_path / "flink" / "job_manager.log").stat().st_size > 0


def test_a_part_that_ends_ends_the_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("standalone", SCRIPT.with_suffix(".py"))
    assert spec
    assert spec.loader
    standalone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standalone)
    with (
        ChildProcess("one", ["sleep", "1000"], tmp_path / "one").start() as one,
        ChildProcess("two", ["sh", "-c", "sleep 0.2; echo good-bye"], tmp_path / "two").start() as two,
    ):
        assert standalone._watch((one, two)) == 1
    assert capsys.readouterr().err == "standalone.sh: two has ended, so all end: good-bye\n"
