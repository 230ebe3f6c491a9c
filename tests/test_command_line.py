"""The command line: exit statuses, clear sentences, nothing written by a wrong command."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from database_fixtures import execute
from pipeline_fixtures import Sample, alerts_of, write_positions
from sqlalchemy import make_url

from xmatch.catalog import build_catalog

Run = Callable[..., dict[str, Any]]
PROJECT = Path(__file__).resolve().parents[1]
NOBODY = "postgresql://me:s3cret@127.0.0.1:1/ztf"


class TestStatus:
    def test_dead_letters(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        command = (*sample.arguments, "--output", tmp_path, "--database", "none")
        first = alertbeam(*command)
        dead = sum(first["dead_letters"].values())
        assert first["status"] == 1
        assert alertbeam(*command, "--max-dead-letters", dead)["status"] == 0
        assert alertbeam(*command, "--max-dead-letters", dead - 1)["status"] == 1
        assert first["out"].count("\n") == 1
        assert json.loads(first["out"])["output"] == str(tmp_path)

    def test_summary_for_people(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        command = ("xmatch", sample.archive, "--catalog", sample.catalog, "--output", tmp_path, "--database", "none")
        answer = alertbeam(*command)
        assert answer["status"] == 1
        for text in ("alerts read", "with a match", "without a match", "dead letters", "alerts/s", str(tmp_path)):
            assert text in answer["out"]

    @pytest.mark.parametrize(
        "command",
        [[], ["xmatch"], ["sample"], ["catalog"], ["catalog", "build"], ["catalog", "info"], ["sql"]],
        ids=" ".join,
    )
    def test_help(self, alertbeam: Run, command: list[str]) -> None:
        answer = alertbeam(*command, "--help")
        assert answer["status"] == 0
        assert "usage: alertbeam" in answer["out"]

    def test_database_that_is_down(self, sample: Sample, alertbeam: Run, impatient: None, tmp_path: Path) -> None:
        answer = alertbeam(*sample.arguments, "--output", tmp_path, "--database", NOBODY)
        assert answer["status"] == 3
        assert "127.0.0.1:1/ztf failed 2 times" in answer["err"]
        assert "s3cret" not in answer["err"] + answer["out"]
        assert "Traceback" not in answer["err"]

    def test_database_that_goes_down(
        self, sample: Sample, alertbeam: Run, impatient: None, tmp_path: Path, empty_url: str
    ) -> None:
        """Revoked in the middle: the tables are there, and then the server lets nobody in."""
        command = (*sample.arguments, "--output", tmp_path, "--database", empty_url)
        assert alertbeam(*command)["status"] == 1
        name = make_url(empty_url).database
        execute(empty_url, "ALTER TABLE xmatch RENAME COLUMN dist TO distance")
        answer = alertbeam(*command)
        assert answer["status"] == 3
        assert "xmatch lacks the columns dist" in answer["err"]
        assert name is not None

    def test_catalogue_that_vanishes(
        self, sample: Sample, alertbeam: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An input or output error in a transform is no answer of the catalogue: it stops the run."""
        catalog = shutil.copytree(sample.catalog, tmp_path / "catalog")

        def broken(*_: object) -> None:
            raise OSError(5, "Input/output error", str(catalog))

        monkeypatch.setattr("transforms.crossmatch.match_all", broken)
        run = tmp_path / "run"
        answer = alertbeam(*sample.arguments, "--output", run, "--database", "none")
        assert answer["status"] == 3
        assert answer["err"].strip().endswith(f"stopped: [Errno 5] Input/output error: '{catalog}'")
        assert alerts_of(run) == []
        assert not [path for path in run.rglob("*") if path.name.endswith(".partial")]

    def test_a_fault_of_the_program_is_told_in_full(
        self, sample: Sample, alertbeam: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("transforms.crossmatch.match_all", lambda *_: 1 / 0)
        answer = alertbeam(*sample.arguments, "--output", tmp_path, "--database", "none")
        assert answer["status"] == 3
        assert "Traceback" in answer["err"]
        assert "division by zero" in answer["err"]


class TestWrongUsage:
    """Status 2, one sentence, and no file."""

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (["--catalog", "absent"], "absent"),
            (["--catalog", "{tmp}/damaged"], "manifest"),
            (["--catalog", "{catalog}"], "Two catalogues have the name allwise"),
            (["{tmp}/absent.tar.gz"], "no such file"),
            (["{tmp}/empty"], "no alerts there"),
            (["{tmp}/positions.csv"], "cannot be mixed"),
            (["--programid", "public"], "--programid public"),
            (["--radius", "0"], "radius"),
            (["--radius", "nan"], "radius"),
            (["--batch-alerts", "0"], "--batch-alerts"),
            (["--compression-level", "99"], "to 22"),
            (["--codec", "lzma"], "invalid choice"),
            (["--catalogue", "x"], "unknown option --catalogue"),
            (["-x"], "unexpected argument -x"),
            (["--direct_num_workers", "4"], "unexpected argument 4"),
            (["--direct_num_workers=4"], "--direct_num_workers"),
            (["--direct_num_workers=abc"], "invalid int value"),
            (["--direct_running_mode=multi_processing"], "written once"),
            (["--direct_running_mode=multi_threading"], "written once"),
            (["--streaming"], "--streaming"),
            (["--runner", "DirectRunner"], "DirectRunner"),
            (["--runner", "directrunner"], "chooses another runner"),
            (["--runner", "NoRunner"], "NoRunner"),
            (["--database", "mysql://host/x"], "only PostgreSQL"),
            (["--database", "s3cret"], "cannot be read"),
            (["--output", "{tmp}/positions.csv"], "is a file"),
            (["--output", "{tmp}/positions.csv/run"], "is a file"),
            (["--output", "{archives}"], "among the inputs"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_option(self, sample: Sample, alertbeam: Run, tmp_path: Path, changes: list[str], sentence: str) -> None:
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "manifest.json").write_text("{")
        (tmp_path / "empty").mkdir()
        write_positions(tmp_path / "positions.csv", [("a", 1, 2)])
        before = sorted(tmp_path.rglob("*"))
        names = {"tmp": tmp_path, "catalog": sample.catalog, "archives": sample.archive.parent}
        given = [change.format(**names) for change in changes]
        inputs = [text for text in given if not text.startswith("-")] if not given[0].startswith("-") else []
        rest = [] if inputs else given
        answer = alertbeam(
            *("xmatch", sample.archive, *inputs, "--catalog", sample.catalog, "--output", tmp_path / "run", *rest)
        )
        assert answer["status"] == 2
        assert answer["out"] == ""
        assert sentence in answer["err"]
        assert "Traceback" not in answer["err"]
        assert "s3cret" not in answer["err"]
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("variables", "sentence"),
        [
            ({"DB_HOST": "db"}, "DB_USER, DB_PASSWORD, DB_NAME"),
            ({"DB_ENGINE": "mysql"}, "only PostgreSQL"),
            ({"CATALOG": "{"}, "CATALOG"),
            ({"CATALOG": '{"name": "ned"}'}, "no --catalog DIR has that name"),
            ({"CATALOG": '{"name": "allwise", "columns": ["W9mag"]}'}, "no column W9mag"),
            ({"CATALOG": '{"title": "allwise"}'}, "unknown key"),
        ],
        ids=str,
    )
    def test_environment(
        self,
        sample: Sample,
        alertbeam: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        variables: dict[str, str],
        sentence: str,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        answer = alertbeam(*sample.arguments, "--output", tmp_path / "run")
        assert (answer["status"], answer["out"]) == (2, "")
        assert sentence in answer["err"]
        assert not (tmp_path / "run").exists()
        # What needs no database and no catalogue does not mind.
        assert alertbeam("sample", "--output", tmp_path / "s", "--alerts", 5, "--no-cutouts")["status"] == 0

    @pytest.mark.parametrize("arguments", [[], ["nothing"], ["sample", "--output", "x", "--streaming"]], ids=str)
    def test_command(self, alertbeam: Run, arguments: list[str]) -> None:
        answer = alertbeam(*arguments)
        assert (answer["status"], answer["out"]) == (2, "")

    def test_an_input_behind_an_option_is_not_lost(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        for option in ([], ["--save_main_session"]):
            answer = alertbeam(*sample.arguments, "--output", tmp_path / "run", *option, "other.tar.gz")
            assert answer["status"] == 2
            assert "unexpected argument other.tar.gz" in answer["err"]

    def test_positions_without_a_column(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        (tmp_path / "p.csv").write_text("id,ra,de\n1,2,3\n")
        answer = alertbeam("xmatch", tmp_path / "p.csv", "--catalog", sample.catalog, "--output", tmp_path / "run")
        assert answer["status"] == 2
        assert "no column dec" in answer["err"]
        assert not (tmp_path / "run").exists()

    def test_catalogue_without_identifier(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        source = sample.archive.parent / "allwise_sample.csv"
        build_catalog(source, tmp_path / "catalog", name="nameless", version="1", columns=["W1mag"])
        answer = alertbeam("xmatch", sample.archive, "--catalog", tmp_path / "catalog", "--output", tmp_path / "run")
        assert answer["status"] == 2
        assert "without its identifier" in answer["err"]

    def test_output_of_another_run(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        with open(tmp_path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            answer = alertbeam(*sample.arguments, "--output", tmp_path, "--database", "none")
        assert answer["status"] == 2
        assert "another run is writing" in answer["err"]
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_beam_options_pass(sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
    command = (*sample.arguments, "--output", tmp_path, "--database", "none", "--max-dead-letters", 9)
    assert alertbeam(*command, "--job_name=mine", "--no_pipeline_type_check")["status"] == 0


def test_database_of_the_environment(
    sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(empty_url)
    host = url.query["host"]
    for name, value in {"HOST": host, "USER": "postgres", "PASSWORD": "x", "NAME": url.database}.items():
        monkeypatch.setenv(f"DB_{name}", str(value))
    monkeypatch.setenv("ENGINE", "postgres")
    answer = alertbeam(*sample.arguments, "--output", tmp_path, "--max-dead-letters", 9)
    assert answer["status"] == 0
    assert not (tmp_path / "database").exists()
    stored = execute(empty_url, "SELECT count(*) FROM xmatch")[0][0]
    assert stored == answer["rows"]["xmatch"] > 0
    told = alertbeam("sql", tmp_path, "SELECT count(*) AS matches FROM xmatch")
    assert told["status"] == 0
    assert str(stored) in told["out"]


class TestEmbedded:
    def test_run_ask_and_terminate(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        run = tmp_path / "run"
        assert alertbeam(*sample.arguments, "--output", run, "--max-dead-letters", 9)["status"] == 0
        told = alertbeam("sql", run, "SELECT step_id FROM step")
        assert told["status"] == 0
        assert "xmatch" in told["out"]
        assert alertbeam("sql", run, "SELECT nothing")["status"] == 3
        assert alertbeam("sql", tmp_path / "absent", "SELECT 1")["status"] == 2

        shutil.rmtree(run / "alerts")
        command = [sys.executable, "-m", "pipelines.cli", *sample.arguments, "--output", run, "--batch-alerts", "1"]
        process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and not list((run / "alerts").glob(".*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 143
        assert said.strip() == "alertbeam: interrupted; start the same command again to go on"
        assert not (run / "database" / "data" / "postmaster.pid").exists()
        outside = [path for path in run.rglob("*") if "database" not in path.relative_to(run).parts]
        assert not [path for path in outside if path.name.endswith(".partial") or path.name == ".progress"]
