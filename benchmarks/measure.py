"""What the benchmarks share: interleaved repetition, conditions, and the sample they run on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any


def conditions(*packages: str, **sizes: object) -> dict[str, object]:
    """Sizes, processor and versions under which a figure was measured."""
    versions = {package: version(package) for package in packages}
    return {
        **sizes,
        "cores_used": 1,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **versions,
    }


def interleaved_seconds(tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall time of each task, in seconds; taken in turn, so that a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def figure(
    name: str, rate: float, unit: str, given: Mapping[str, object], best_peer: float, peer: bool = False
) -> dict[str, Any]:
    """One line of a benchmark: its rate, and the ratio to the best peer's rate."""
    line: dict[str, Any] = {"name": name, "rate": round(rate, 1), "unit": unit, "conditions": dict(given)}
    line["ratio"] = round(rate / best_peer, 3)
    if peer:
        line["peer"] = True
    return line
