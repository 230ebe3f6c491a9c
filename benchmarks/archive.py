"""Alerts per second from a nightly archive to crossmatched Avro files, beside bare inflating of the archive."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from isal import igzip
from zlib_ng import gzip_ng

from alerts.sources import find_sources
from benchmarks.measure import conditions, figure, interleaved_seconds
from pipelines.xmatch import XmatchJob
from pipelines.xmatch import run as run_job
from simulation import simulate_sample
from xmatch.catalog import build_catalog
from xmatch.matcher import LocalMatcher


def run(alerts: int = 40_000, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """Measure the whole pipeline without a database: inflate, decode, crossmatch, enrich, write, on Beam's runner.

    It inflates and writes in threads of their own; ``archive-one-core`` is the same bound to one core, as the peers
    are by nature.

    Parameters
    ----------
    alerts : int
        Of a simulated night, cutouts included.
    repeats : int

    Yields
    ------
    dict
    """
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder:
        here = Path(folder)
        sample = simulate_sample(here, alerts=alerts)
        archive = sample.night.archive
        catalog = build_catalog(sample.catalog.path, here / "allwise", name="allwise")
        job = XmatchJob(tuple(find_sources([str(archive)])), (LocalMatcher(catalog),), here / "run")

        def pipeline() -> None:
            run_job(job, beam.Pipeline(runner=FnApiRunner()))

        tasks: dict[str, Callable[[], Any]] = {
            "archive": pipeline,
            "archive-one-core": lambda: _on_one_core(pipeline),
            "zlib-ng": lambda: _inflate(gzip_ng.open, archive),
            "isal": lambda: _inflate(igzip.open, archive),
            "gzip": lambda: _inflate(gzip.open, archive),
        }
        pipeline()
        seconds = interleaved_seconds(tasks, repeats)
        given = conditions(
            "apache-beam",
            "isal",
            "zlib-ng",
            alerts=alerts,
            packet_bytes=round(sample.night.mean_member_bytes),
            archive_megabytes=round(sample.night.archive_bytes / 1e6),
            codec=job.codec,
        )
    peers = ("zlib-ng", "isal", "gzip")
    best = alerts / min(seconds[name] for name in peers)
    for name in tasks:
        cores = min(2, os.cpu_count() or 1) if name == "archive" else 1
        yield figure(name, alerts / seconds[name], "alerts/s", {**given, "cores_used": cores}, best, name in peers)


def _on_one_core(task: Callable[[], Any]) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        task()
    finally:
        os.sched_setaffinity(0, cores)


def _inflate(opener: Callable[..., Any], path: Path) -> None:
    memory = memoryview(bytearray(1 << 20))
    with opener(path, "rb") as stream:
        while stream.readinto(memory):
            pass
