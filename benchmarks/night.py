"""Nights of alerts, from the archive to classes in PostgreSQL, on all cores: one, ten, and one more."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import fastavro

from benchmarks.measure import conditions, figure
from simulation import simulate_sample
from xmatch.catalog import build_catalog

PROJECT: Final = Path(__file__).resolve().parents[1]
_PEER_ALERTS: Final = 3_000


@dataclass(frozen=True)
class Nights:
    """Archives of nights, each of other objects, and the catalogue of all."""

    archives: tuple[Path, ...]
    catalog: Path


@dataclass(frozen=True)
class Measured:
    """A run: its seconds, and the largest memory of a worker in bytes."""

    seconds: float
    peak_bytes: int


def run(alerts: int = 300_000, month_alerts: int = 30_000, month_nights: int = 10) -> Iterator[dict[str, Any]]:
    """Measure ``alertbeam backfill`` with the embedded database, the demonstration model and accurate features.

    Parameters
    ----------
    alerts : int
        Of the one night.
    month_alerts, month_nights : int
        Alerts of each night of a month, and their number, 0 for no month; one more is added to it in the end.

    Yields
    ------
    dict
    """
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder:
        here = Path(folder)
        night = make_nights(here / "night", 1, alerts)
        decode = _decode_rate(night.archives[0])
        if month_nights:
            _warm_up(here / "warm")
        given = conditions("apache-beam", "fastavro", alerts=alerts, cores_used=os.cpu_count())
        yield figure("fastavro", decode, "alerts/s", given | {"cores_used": 1}, decode, peer=True)
        crossmatch = backfill(night.archives, night.catalog, here / "run", "--only", "pass1")
        yield _line("night-crossmatch", alerts, crossmatch, decode, given)
        shutil.rmtree(here / "run")
        yield _line("night", alerts, backfill(night.archives, night.catalog, here / "run"), decode, given)
        shutil.rmtree(here / "run")
        shutil.rmtree(here / "night")
        if month_nights:
            yield from _month(here, month_alerts, month_nights, decode)


def _month(here: Path, alerts: int, nights: int, decode: float) -> Iterator[dict[str, Any]]:
    """One night, as many as are asked for, and one more."""
    made = make_nights(here / "month", nights + 1, alerts)
    one = min(backfill(made.archives[:1], made.catalog, here / f"one-{number}").seconds for number in range(2))
    given = conditions("apache-beam", alerts=alerts, nights=nights, cores_used=os.cpu_count())
    given["seconds_one_night"] = round(one, 1)
    month = backfill(made.archives[:-1], made.catalog, here / "run")
    share = {"share_of_nights_alone": round(month.seconds / (nights * one), 3)}
    yield _line("month", nights * alerts, month, decode, given | share)
    added = backfill(made.archives[-1:], made.catalog, here / "run")
    share = {"share_of_nights_alone": round(added.seconds / one, 3)}
    yield _line("night-added", alerts, added, decode, given | share)


def make_nights(folder: Path, nights: int, alerts: int) -> Nights:
    """Generate nights of different objects and one catalogue, on all cores."""
    dates = [f"202601{number:02d}" for number in range(1, nights + 1)]
    make = partial(_sample, folder=folder, alerts=alerts)
    with ProcessPoolExecutor() as pool:
        samples = list(pool.map(make, dates, range(1, nights + 1)))
    table = folder / "allwise.csv"
    with open(table, "wb") as together:
        for number, (_, catalog) in enumerate(samples):
            with open(catalog, "rb") as own:
                header = own.readline()
                together.write(b"" if number else header)
                shutil.copyfileobj(own, together)
    built = build_catalog(table, folder / "allwise", name="allwise", version="sample")
    return Nights(tuple(archive for archive, _ in samples), built.path)


def _sample(date: str, seed: int, folder: Path, alerts: int) -> tuple[Path, Path]:
    sample = simulate_sample(folder / date, alerts=alerts, seed=seed, date=date, field_sources=alerts // 3)
    return sample.night.archive, sample.catalog.path


def backfill(archives: Sequence[Path], catalog: Path, output: Path, *options: str) -> Measured:
    """Run the command as a user does, and measure it from outside."""
    command = [sys.executable, "-m", "pipelines.cli", "backfill", *map(str, archives), "--catalog", str(catalog)]
    command += ["--model", str(PROJECT / "classifier" / "demo_model"), "--mode", "accurate", "--output", str(output)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *options, "--json", "--quiet"], cwd=PROJECT, stdout=subprocess.PIPE, check=True, text=True
    )
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout)
    return Measured(seconds, max(stage["peak_bytes"] or 0 for stage in summary["stages"]))


def _warm_up(folder: Path) -> None:
    """Compile the kernels."""
    nights = make_nights(folder, 1, 500)
    backfill(nights.archives, nights.catalog, folder / "run")


def _decode_rate(archive: Path) -> float:
    """Alerts per second that gzip and fastavro read alone, on one core."""
    number = 0
    started = time.perf_counter()
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            number += sum(1 for _ in fastavro.reader(io.BytesIO(file.read())))
            if number >= _PEER_ALERTS:
                break
    return number / (time.perf_counter() - started)


def _line(name: str, alerts: int, measured: Measured, peer: float, given: dict[str, Any]) -> dict[str, Any]:
    told = {"seconds": round(measured.seconds, 1), "peak_megabytes_per_worker": round(measured.peak_bytes / 1e6)}
    return figure(name, alerts / measured.seconds, "alerts/s", given | told, peer)
