"""A backfill at work: its folder, database, ledger and workers, from the beginning to the summary."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from classifier.model import ModelError
from database.embedded import start_embedded
from database.settings import safe_url
from lightcurves.store import LightCurveStore, StoreError
from pipelines.backfill import BackfillJob
from pipelines.backfill_progress import BackfillProgress
from pipelines.backfill_run import Driving
from pipelines.environment import Environment
from pipelines.flink_backfill import BeamPool, Pipelines
from pipelines.run_display import print_run_summary, run_shown, run_summary
from pipelines.running import NO_DATABASE, database_of, locked, prepared, stopping
from pipelines.unit_exchange import take_back_left
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS
from pipelines.workers import WorkerPool
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, LedgerError
from xmatch.layout import CatalogError


@dataclass
class Session:
    """A backfill at work: its job with the database, and what drives it."""

    job: BackfillJob
    driving: Driving
    options: argparse.Namespace
    settings: dict[str, Any]
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)

    def write_settings(self) -> None:
        """Keep the settings, those of the first start where they tell when; say that a run goes on."""
        ledger = self.driving.ledger
        before = ledger.settings()
        if before and not self.options.quiet and not self.options.json:
            _say_what_goes_on(before, self.settings, ledger)
        ledger.set_settings(self.settings | {"created": before.get("created", self.settings["created"])})

    @contextmanager
    def invocation(self) -> Iterator[None]:
        """Note when the work begins and how it ends."""
        number = self.driving.ledger.begin(sys.argv, self.settings["versions"])
        outcome = "stopped"
        try:
            yield
            outcome = "done"
        finally:
            with suppress(OSError):
                self.driving.ledger.end(number, outcome)

    def told(self) -> int:
        """Print what the run did; give the exit status."""
        as_of = self.job.as_of.name if self.job.as_of else None
        summary = run_summary(self.driving.ledger, self.job.layout, time.monotonic() - self.started, as_of)
        print_run_summary(summary, self.job.layout, as_json=self.options.json)
        bad = summary.dead_letters > self.options.max_dead_letters or summary.aside
        return TOO_MANY_DEAD_LETTERS if bad else DONE


@contextmanager
def begun(
    options: argparse.Namespace,
    environment: Environment,
    job: BackfillJob,
    settings: dict[str, Any],
    fresh: bool = False,
    pipelines: Pipelines | None = None,
) -> Iterator[Session]:
    """Take the run's folder, its database, its ledger and its workers; give them back at the end.

    The workers are processes of this machine, or those of a runner that `pipelines` are for.
    """
    layout = job.layout
    with ExitStack() as stack:
        stack.enter_context(locked(layout.root))
        stack.enter_context(stopping(CatalogError, ModelError, StoreError, LedgerError))
        if fresh:
            _clear(layout)
        url = database_of(options.database, environment)
        stored = "" if url == NO_DATABASE else safe_url(url) if url else str(layout.database)
        if url is None:
            url = stack.enter_context(start_embedded(layout.database)).url
        if url != NO_DATABASE:
            job = replace(job, database=stack.enter_context(prepared(url, environment)))
        LightCurveStore.open(layout.light_curves, job.buckets)
        ledger = stack.enter_context(Ledger.open(layout.ledger))
        progress = BackfillProgress(layout, ledger, options.workers)
        say = stack.enter_context(run_shown(progress.state, "none" if options.quiet else options.progress))
        take_back_left(layout.ledger)
        versions = settings["versions"]
        pool: WorkerPool | BeamPool = (
            WorkerPool(ledger, workers=options.workers, versions=versions)
            if pipelines is None
            else BeamPool(ledger, pipelines=pipelines, versions=versions, say=say)
        )
        stack.enter_context(pool)
        driving = Driving(ledger, pool, options.workers, options.attempts, progress)
        yield Session(job, driving, options, settings | {"database": stored}, say)


def _say_what_goes_on(before: Mapping[str, Any], settings: Mapping[str, Any], ledger: Ledger) -> None:
    """Say that a run goes on, and which versions changed since it began."""
    units = ledger.units("read")
    done = sum(unit.state == "done" for unit in units)
    print(f"alertbeam backfill: going on: {done:,} of {len(units):,} archives are read", file=sys.stderr)
    for name in ("alertbeam", "features", "model"):
        old, new = before["versions"].get(name), settings["versions"][name]
        if old != new:
            print(f"alertbeam backfill: {name}: {old} before, {new} now", file=sys.stderr)
    # The folder of a run may have been moved, with its own database.
    old, new = (
        "its own" if place.startswith("/") else place or "none" for place in (before["database"], settings["database"])
    )
    if old != new:
        print(f"alertbeam backfill: database: {old} before, {new} now", file=sys.stderr)


def _clear(layout: RunLayout) -> None:
    """Remove what a run wrote, and nothing else."""
    results = layout.results()
    folders = (
        *(layout.alerts, layout.dead_letters, layout.light_curves, layout.ledger, layout.progress, layout.database),
        *(results.objects, results.all_features, results.all_probabilities, results.hats, layout.root / "as_of"),
    )
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if layout.crossmatches.is_dir():
        shutil.rmtree(layout.crossmatches)
    layout.report.unlink(missing_ok=True)
