"""Counts of the service for Prometheus, summed over its processes.

Each process counts in an array of its own, mapped to a file where there are several; whoever is asked sums them.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

ENDPOINTS = (
    "ping",
    "conesearch",
    "bulk-conesearch",
    "metadata",
    "bulk-metadata",
    "health",
    "metrics",
    "docs",
    "other",
)
STATUSES = (200, 204, 400, 403, 404, 413, 500)
SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

_BUCKETS = len(SECONDS) + 1
# Columns of an endpoint: requests by status, then by duration, then their sum, then coordinates, matches.
_REQUESTS, _DURATIONS = 0, len(STATUSES) + 1
_SUM = _DURATIONS + _BUCKETS
_COORDINATES, _MATCHES, _CPU = _SUM + 1, _SUM + 2, _SUM + 3
_SHAPE = (len(ENDPOINTS), _CPU + 1)


class ServiceMetrics(Collector):
    """Counts of one process, and the sums over the processes that share a folder.

    Parameters
    ----------
    folder : path, optional
        Where the processes keep their counts; None for a single process.
    """

    def __init__(self, folder: str | Path | None = None):
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            self._counts = np.zeros(_SHAPE)
        else:
            file = self._folder / f"counts-{os.getpid()}-{time.monotonic_ns()}.f64"
            self._counts = np.memmap(file, np.float64, "w+", shape=_SHAPE)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add(self, endpoint: str, status: int, seconds: float, coordinates: int, matches: int) -> None:
        """Count one request."""
        counts = self._counts[ENDPOINTS.index(endpoint)]
        counts[_REQUESTS + (STATUSES.index(status) if status in STATUSES else len(STATUSES))] += 1
        counts[_DURATIONS + int(np.searchsorted(SECONDS, seconds))] += 1
        counts[_SUM] += seconds
        counts[_COORDINATES] += coordinates
        counts[_MATCHES] += matches
        self._counts[0, _CPU] = time.process_time()

    def text(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Families of metrics, as prometheus_client asks for them."""
        self._counts[0, _CPU] = time.process_time()
        counts = self._sums()
        requests = CounterMetricFamily("alertbeam_requests", "Requests answered", labels=["endpoint", "status"])
        coordinates = CounterMetricFamily(
            "alertbeam_coordinates", "Coordinates searched, identifiers looked up", labels=["endpoint"]
        )
        matches = CounterMetricFamily("alertbeam_matches", "Sources in the answers", labels=["endpoint"])
        seconds = HistogramMetricFamily("alertbeam_request_seconds", "Time to the answer", labels=["endpoint"])
        cpu = CounterMetricFamily("alertbeam_cpu_seconds", "Processor time of the service's processes")
        cpu.add_metric([], counts[0, _CPU])
        for row, endpoint in zip(counts, ENDPOINTS, strict=True):
            for status, count in zip((*STATUSES, "other"), row[_REQUESTS:_DURATIONS], strict=True):
                if count:
                    requests.add_metric([endpoint, str(status)], count)
            coordinates.add_metric([endpoint], row[_COORDINATES])
            matches.add_metric([endpoint], row[_MATCHES])
            bounds = [*(f"{second:g}" for second in SECONDS), "+Inf"]
            buckets = np.cumsum(row[_DURATIONS:_SUM]).tolist()
            seconds.add_metric([endpoint], list(zip(bounds, buckets, strict=True)), float(row[_SUM]))
        return [requests, coordinates, matches, seconds, cpu]

    def _sums(self) -> np.ndarray:
        if self._folder is None:
            return self._counts
        files = self._folder.glob("counts-*.f64")
        # A file that another process is about to fill has no bytes yet.
        arrays = [np.fromfile(file).reshape(_SHAPE) for file in files if file.stat().st_size == self._counts.nbytes]
        return np.sum(arrays, axis=0)
