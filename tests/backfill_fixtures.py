"""What the tests of the backfill share: nights of the same objects, runs of the command, and what they left."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pandas as pd
import psycopg2
import pyarrow.parquet as pq

from database.embedded import start_embedded
from lightcurves.store import LightCurveStore
from pipelines.cli import main
from pipelines.stream_environment import VARIABLES
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, Unit
from simulation import simulate_sample
from xmatch.catalog import build_catalog

PROJECT = Path(__file__).resolve().parents[1]
DEMO_MODEL = PROJECT / "classifier" / "demo_model"
DATES = ("20260101", "20260104", "20260109")
BUCKETS = 4
# Without when they were written.
TABLES = {
    "object": "*",
    "allwise": "*",
    "xmatch": "*",
    "detection": "*",
    "non_detection": "*",
    "magstat": "*",
    "feature": "*",
    "feature_version": "*",
    "probability": "*",
    "taxonomy": "*",
}


@dataclass(frozen=True)
class Nights:
    """Archives of nights in which the same objects show up, and their catalogue."""

    archives: tuple[Path, ...]
    catalog: Path

    @property
    def options(self) -> list[str]:
        """Options of a run with classes and without a HATS catalogue, which takes long; but for its output."""
        return ["--catalog", str(self.catalog), "--model", str(DEMO_MODEL), "--buckets", str(BUCKETS), "--no-hats"]


def make_nights(folder: Path, alerts: int = 120) -> Nights:
    """Generate nights and build the catalogue."""
    samples = [
        simulate_sample(folder / date, alerts=alerts, date=date, cutouts=False, bad_members=3, private_fraction=0.1)
        for date in DATES
    ]
    catalog = build_catalog(samples[0].catalog.path, folder / "allwise", name="allwise", version="sample")
    return Nights(tuple(sample.night.archive for sample in samples), catalog.path)


def command(run: Path, *arguments: object, name: str = "backfill") -> list[str]:
    """Words of a command."""
    words = [sys.executable, "-m", "pipelines.cli", name, *map(str, arguments)]
    return [*words, "--output", str(run)] if name == "backfill" else words


def environment() -> dict[str, str]:
    """Variables of this process but for those that the command reads."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def called(words: Sequence[str], status: int, variables: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Run a command that ends with a status in this process, which has loaded everything; give its summary and errors.

    The workers of a backfill are processes of their own nevertheless.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            patch.dict(os.environ, {**environment(), **variables}, clear=True),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            assert main(words) == status, err.getvalue()
    finally:
        root.handlers[:], root.level = handlers, level
    text = out.getvalue()
    return (json.loads(text) if text.startswith("{") else {}) | {"said": err.getvalue()}


def backfilled(
    run: Path,
    *arguments: object,
    name: str = "backfill",
    status: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Run a command to its end; give its summary and what it said."""
    # A worker takes seconds to begin: most tests need but one.
    workers = () if {"--workers", "--runner"} & {*arguments} else ("--workers", "1")
    words = command(run, *arguments, *workers, "--json", "--quiet", "--max-dead-letters", "999", name=name)
    return called(words[3:], status, variables)


def copied(run: Path, to: Path) -> Path:
    """Copy a run with its database, whose server insists on its owner."""
    subprocess.run(["cp", "-a", str(run), str(to)], check=True)
    return to


def contents(run: Path) -> dict[str, Any]:
    """What a run left in files, however it came to be: digests of the alerts, tables of the rest."""
    layout = RunLayout(run)
    found: dict[str, Any] = {}
    for folder in (layout.alerts, layout.dead_letters):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            found[f"{folder.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(layout.crossmatches.iterdir()):
        # Alerts of one schema are together in a batch, and batches may be cut elsewhere.
        found[f"crossmatches/{path.name}"] = pq.read_table(path, partitioning=None).sort_by("candid")
    results = layout.results()
    for folder in (results.objects, results.all_features, results.all_probabilities):
        for path in sorted(folder.rglob("*.parquet")):
            found[str(path.relative_to(run))] = pq.read_table(path, partitioning=None)
        assert not list(folder.rglob(".*"))
    store = LightCurveStore.open(layout.light_curves)
    for bucket in range(store.buckets):
        rows = store.read(bucket)
        found[f"detections {bucket}"], found[f"non_detections {bucket}"] = rows.detections, rows.non_detections
    return found


def same_contents(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Compare what two runs left."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, str):
            assert value == other[name], name
        else:
            pd.testing.assert_frame_equal(value.to_pandas(), other[name].to_pandas(), check_exact=True, obj=name)


def rows_of_tables(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of all tables of a run's embedded database, sorted."""
    with start_embedded(run / "database") as server:
        connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                found = {}
                for table, columns in TABLES.items():
                    cursor.execute(f"SELECT {columns} FROM {table}")
                    found[table] = sorted(cursor.fetchall(), key=repr)
                return found
        finally:
            connection.close()


def units_of(run: Path, stage: str | None = None) -> list[Unit]:
    """Units of work of a run."""
    with Ledger.read_only(RunLayout(run).ledger) as ledger:
        return ledger.units(stage)


def frame(folder: Path) -> pd.DataFrame:
    """Rows of a folder of parts, by object."""
    parts = [pq.read_table(path, partitioning=None).to_pandas() for path in sorted(folder.rglob("*.parquet"))]
    return pd.concat(parts).set_index("oid").sort_index()
