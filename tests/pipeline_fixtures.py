"""What the tests of transforms/ and pipelines/ share: a sample night, its catalogue, packets made to measure."""

import copy
import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from alerts.dead_letters import DeadLetter, read_dead_letters
from database.client import Database
from pipelines import running
from pipelines.cli import main
from pipelines.stream_environment import VARIABLES
from simulation import simulate_sample
from xmatch.catalog import build_catalog

Packet = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """A night, its catalogue, and the true match (identifier, arcsec) of every alert that has one."""

    archive: Path
    catalog: Path
    truth: Mapping[int, tuple[str, float] | None]
    packet: Packet

    @property
    def arguments(self) -> list[str]:
        """Begin a command that crossmatches the night."""
        return ["xmatch", str(self.archive), "--catalog", str(self.catalog), "--quiet", "--json"]


def make_sample(folder: Path, alerts: int, cutouts: bool, bad_members: int = 5, seed: int = 1) -> Sample:
    """Generate a night and build its catalogue."""
    summary = simulate_sample(folder, alerts=alerts, bad_members=bad_members, cutouts=cutouts, seed=seed)
    catalog = build_catalog(summary.catalog.path, folder / "allwise", name="allwise", version="sample")
    with open(summary.night.truth, newline="") as file:
        truth = {
            int(row["candid"]): (row["AllWISE"], float(row["separation_arcsec"])) if row["AllWISE"] else None
            for row in csv.DictReader(file)
        }
    packet = next(packet for packet in packets_of(summary.night.archive) if truth[packet[1]["candid"]])
    return Sample(summary.night.archive, catalog.path, truth, packet)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"), alerts=300, cutouts=True)


@pytest.fixture
def alertbeam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Give a function that runs a command in this process: its status, standard output, errors, JSON."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> dict[str, Any]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return {"status": status, "out": out, "err": err} | (json.loads(out) if out.startswith("{") else {})

    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a failing database up at once."""
    from database_fixtures import IMPATIENT

    monkeypatch.setattr(running, "Database", lambda url: Database(url, IMPATIENT))


def packets_of(archive: Path) -> Iterator[Packet]:
    """Schema and record of each good member of an archive."""
    with tarfile.open(archive) as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            try:
                reader = fastavro.reader(io.BytesIO(data.read()))
                record = next(reader, None)
            except Exception:
                continue
            if record is not None:
                yield json.loads(reader.metadata["avro.schema"]), record


def write_packet(path: Path, packet: Packet, **changes: Any) -> Path:
    """Write a packet of which some values, named by their last name, are other ones."""
    schema, record = packet[0], copy.deepcopy(packet[1])
    for name, value in changes.items():
        for place in (record, record["candidate"]):
            if name in place:
                place[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(copy.deepcopy(schema)), [record])
    return path


def alerts_of(run: Path) -> list[dict[str, Any]]:
    """All alerts that a run wrote, read by plain fastavro."""
    found: list[dict[str, Any]] = []
    for path in sorted((run / "alerts").glob("*.avro")):
        with open(path, "rb") as file:
            found += fastavro.reader(file)  # type: ignore[arg-type]
    return found


def letters_of(run: Path) -> list[DeadLetter]:
    """All dead letters of a run."""
    return [letter for path in sorted((run / "dead_letters").glob("*.avro")) for letter in read_dead_letters(path)]


def digests(run: Path) -> dict[str, str]:
    """Content of every file of a run, save for its lock and its database."""
    files = [path for path in run.rglob("*") if path.is_file() and "database" not in path.relative_to(run).parts]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != ".lock"
    }


def write_positions(path: Path, rows: list[tuple[str, object, object]]) -> Path:
    """Write a table of positions."""
    table = pa.table([[str(row[i]) for row in rows] for i in range(3)], names=["id", "ra", "dec"])
    pacsv.write_csv(table, path)
    return path
