"""What a unit of work costs with one, two, four and eight workers, in processor time.

Workers share nothing but the machine's memory and disk. So with as many cores as workers the time on the clock is the
processor time divided by the workers, as long as the processor time of a unit stays what it is. That is measured here,
on however few cores; time on the clock is told beside it: with more workers than cores it cannot become shorter.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from alerts.sources import find_sources
from benchmarks.measure import conditions, figure
from benchmarks.night import Nights, make_nights
from lightcurves.features.curves import Mode
from lightcurves.store import LightCurveStore
from pipelines.backfill import FEATURES, READ, BackfillJob, do
from pipelines.backfill_progress import BackfillProgress
from pipelines.backfill_run import Driving, add_sources, run_pass_1
from pipelines.workers import Outcome, Work, WorkerPool
from run_folder.ledger import Ledger, Unit, UnitSpec
from xmatch.matcher import LocalMatcher

_PROCESSOR_US: Final = "processor_us"
# What is counted in a unit of each stage.
_COUNTED: Final = {READ: ("scaling-pass1", "read", "alerts"), FEATURES: ("scaling-pass2", "objects", "objects")}


@dataclass(frozen=True)
class Cost:
    """Processor time of the units of a stage.

    Attributes
    ----------
    stage : str
    rate : float
        Alerts or objects per second of a processor in the middle unit, so that units which begin a process, and import
        what it needs, do not count.
    seconds : float
        Of a processor, for all units, such beginnings included.
    clock_seconds : float
        From the first unit's beginning to the last one's end.
    peak_bytes : int
        Memory of a worker, at most.
    """

    stage: str
    rate: float
    seconds: float
    clock_seconds: float
    peak_bytes: int


def run(alerts: int = 1_000, units: int = 24, workers: Sequence[int] = (1, 2, 4, 8)) -> Iterator[dict[str, Any]]:
    """Measure both passes of a backfill, without a database; the peer of many workers is one.

    Parameters
    ----------
    alerts : int
        In an archive.
    units : int
        Archives, and parts of the objects; more than twice the workers.
    workers : sequence of int
        Processes at a time; the first is the peer.

    Yields
    ------
    dict
    """
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder:
        nights = make_nights(Path(folder) / "nights", units, alerts)
        given = conditions("apache-beam", alerts_per_unit=alerts, units=units)
        alone: dict[str, float] = {}
        for number in workers:
            for cost in _costs(nights, Path(folder) / f"run-{number}", units, number):
                peer = alone.setdefault(cost.stage, cost.rate)
                yield _line(cost, number, peer, given, peer=number == workers[0])


def _costs(nights: Nights, folder: Path, units: int, workers: int) -> list[Cost]:
    job = BackfillJob(folder, (LocalMatcher(nights.catalog),), units, Mode.ACCURATE, "scaling")
    LightCurveStore.open(job.layout.light_curves, job.buckets)
    with Ledger.open(job.layout.ledger) as ledger, _TimedPool(ledger, workers=workers, versions={}) as pool:
        progress = BackfillProgress(job.layout, ledger, workers)
        add_sources(ledger, find_sources([str(archive) for archive in nights.archives]))
        run_pass_1(job, Driving(ledger, pool, workers, 1, progress))
        parts = [UnitSpec(f"features-{part:04d}", {"buckets": [[part, 0]]}) for part in range(units)]
        pool.run(ledger.add(FEATURES, parts), partial(do, job=job), attempts=1)
        return [_cost(stage, pool) for stage in _COUNTED]


class _TimedPool(WorkerPool):
    """A pool whose units count the processor time that they took, and which keeps what became of them."""

    def __init__(self, ledger: Ledger, *, workers: int, versions: Mapping[str, Any]) -> None:
        super().__init__(ledger, workers=workers, versions=versions)
        self.outcomes: list[Outcome] = []
        self.clock_s: dict[str, float] = {}

    def run(
        self, units: Sequence[Unit], work: Work, *, attempts: int = 3, on_change: Callable[[], None] | None = None
    ) -> Outcome:
        began = time.monotonic()
        self.outcomes.append(super().run(units, partial(_timed, work=work), attempts=attempts, on_change=on_change))
        for stage in {unit.stage for unit in units}:
            self.clock_s[stage] = self.clock_s.get(stage, 0.0) + time.monotonic() - began
        return self.outcomes[-1]


def _timed(unit: Unit, work: Work) -> Mapping[str, int]:
    began = time.process_time()
    counts = work(unit)
    return {**counts, _PROCESSOR_US: round(1e6 * (time.process_time() - began))}


def _cost(stage: str, pool: _TimedPool) -> Cost:
    done = [each for outcome in pool.outcomes for each in outcome.done if each.unit.stage == stage]
    counted = _COUNTED[stage][1]
    rates = [1e6 * each.counts[counted] / each.counts[_PROCESSOR_US] for each in done if each.counts.get(counted)]
    seconds = sum(each.counts[_PROCESSOR_US] for each in done) / 1e6
    return Cost(stage, statistics.median(rates), seconds, pool.clock_s[stage], max(each.peak_bytes for each in done))


def _line(cost: Cost, workers: int, alone: float, given: Mapping[str, object], peer: bool) -> dict[str, Any]:
    name, _, unit = _COUNTED[cost.stage]
    told = {
        "processor_seconds": round(cost.seconds, 1),
        "clock_seconds": round(cost.clock_seconds, 1),
        "peak_megabytes_per_worker": round(cost.peak_bytes / 1e6),
    }
    return figure(f"{name}-{workers}", cost.rate, f"{unit}/s", {**given, **told, "workers": workers}, alone, peer)
