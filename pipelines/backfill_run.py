"""What the parent of a backfill does: find the work that is left, hand it to the workers, keep the ledger."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from alerts.fingerprint import fingerprint
from alerts.sources import Source, find_sources, stable_name
from pipelines.backfill import CLASSIFY, EXPORT, FEATURES, FOLD, READ, REPLAY, BackfillJob, do
from pipelines.backfill_progress import BackfillProgress
from pipelines.flink_backfill import BeamPool
from pipelines.usage import StoppedError
from pipelines.workers import Outcome, WorkerPool
from run_folder.ledger import Ledger, Unit, UnitSpec

# What one generation of the store takes in at once: some nights, so that a worker can hold its part of a bucket.
WAVE_BYTES: Final = 128 << 30
_TYPICAL_BYTES: Final = 16 << 30
_FOLDS_PER_GENERATION: Final = 16
_UNITS_PER_WORKER: Final = 8
_LEAST_OBJECTS, _MOST_OBJECTS = 1000, 20_000


@dataclass(frozen=True)
class Driving:
    """How units are done.

    Attributes
    ----------
    ledger : Ledger
    pool : WorkerPool or BeamPool
    workers : int
    attempts : int
        Before a unit is set aside.
    progress : BackfillProgress
        Told what is being done.
    """

    ledger: Ledger
    pool: WorkerPool | BeamPool
    workers: int
    attempts: int
    progress: BackfillProgress


def add_sources(ledger: Ledger, sources: Sequence[Source]) -> list[str]:
    """Add archives to the work; give the sentences that say which of them changed since they were read."""
    specs = [UnitSpec(source.name, {"source": asdict(source)}, fingerprint(source), source.size) for source in sources]
    # A server may not always tell what its file is.
    differing = [(unit, spec) for unit, spec in ledger.differing(READ, specs) if unit.fingerprint and spec.fingerprint]
    if differing:
        return [f"{unit.payload['source']['location']} changed since it was read" for unit, _ in differing]
    ledger.add(READ, specs)
    return []


def run_pass_1(job: BackfillJob, driving: Driving) -> None:
    """Read what was not read yet, and take it into the store."""
    ledger = driving.ledger
    _finish_fold(job, driving)
    driving.progress.begin(READ, ledger.units(READ))
    while True:
        wave = _next_wave(ledger.units(READ, "waiting"))
        outcome = _do(READ, wave, job, driving)
        for unit in outcome.aside if outcome else ():
            remove_unit(job, unit.name)
        folded = {name for unit in ledger.units(FOLD) for name in unit.payload["units"]}
        new = [unit.name for unit in ledger.units(READ, "done") if unit.name not in folded]
        if new:
            _plan_fold(job, ledger, new)
            _finish_fold(job, driving)
            driving.progress.begin(READ, ledger.units(READ))
        if not wave:
            return


def remove_unit(job: BackfillJob, name: str) -> None:
    """Remove the files of a unit of pass 1; rows in tables stay, where another attempt finds them."""
    layout = job.layout
    for folder in (layout.alerts, layout.dead_letters, layout.crossmatches):
        for path in folder.glob(f"{name}.*"):
            path.unlink()
    job.store.remove_incoming({name})


def run_pass_2(job: BackfillJob, driving: Driving) -> None:
    """Features and classes of the objects that changed since they were last computed."""
    for stage in (FEATURES, CLASSIFY) if job.model is not None else (FEATURES,):
        _do(stage, _plan_buckets(stage, job, driving), job, driving)


def run_export(job: BackfillJob, driving: Driving) -> None:
    """Write the HATS catalogue, if anything in it changed."""
    ledger = driving.ledger
    keys = [job.key(FEATURES), job.key(CLASSIFY)]
    units = [*ledger.units(FEATURES, "done"), *ledger.units(CLASSIFY, "done")]
    inside = sorted(unit.name for unit in units if unit.payload["key"] in keys)
    key = hashlib.sha256("\n".join([*keys, *inside]).encode()).hexdigest()[:12]
    name = f"{EXPORT}-{key}" + ("-light-curves" if job.hats_light_curves else "")
    folder = str(job.results.hats.relative_to(job.folder))
    # What an earlier export wrote into the folder is gone with a later one, and may be asked for again.
    others = [unit for unit in ledger.units(EXPORT) if unit.name != name and unit.payload["folder"] == folder]
    ledger.forget(EXPORT, [unit.name for unit in others])
    ledger.add(EXPORT, [UnitSpec(name, {"folder": folder})])
    _do(EXPORT, ledger.units(EXPORT, "waiting"), job, driving)


def retry_set_aside(ledger: Ledger) -> None:
    """Give units that were set aside another chance."""
    for unit in ledger.units(state="aside"):
        ledger.reset(unit.stage, [unit.name])


def _do(stage: str, units: Sequence[Unit], job: BackfillJob, driving: Driving) -> Outcome | None:
    if not units:
        return None
    progress = driving.progress
    if stage != READ:
        progress.begin(stage, units)
    try:
        return driving.pool.run(units, partial(do, job=job), attempts=driving.attempts, on_change=progress.tick)
    finally:
        shutil.rmtree(job.layout.progress, ignore_errors=True)


def _next_wave(units: Sequence[Unit]) -> list[Unit]:
    wave: list[Unit] = []
    size = 0
    for unit in units:
        size += unit.size or _TYPICAL_BYTES
        if wave and size > WAVE_BYTES:
            break
        wave.append(unit)
    return wave


def _plan_fold(job: BackfillJob, ledger: Ledger, units: Sequence[str]) -> None:
    generation = 1 + max((unit.payload["generation"] for unit in ledger.units(FOLD)), default=0)
    done = min(_done_generations(ledger, job, FEATURES).values(), default=0)
    step = -(-job.buckets // _FOLDS_PER_GENERATION)
    specs = []
    for first in range(0, job.buckets, step):
        last = min(first + step, job.buckets) - 1
        payload = {
            "generation": generation,
            "first": first,
            "last": last,
            "units": list(units),
            # What pass 2 has not seen yet must be told from what it has.
            "compact_up_to": done or generation - 1,
        }
        specs.append(UnitSpec(f"{FOLD}-{generation:06d}-{first:04d}-{last:04d}", payload))
    ledger.add(FOLD, specs)


def _finish_fold(job: BackfillJob, driving: Driving) -> None:
    outcome = _do(FOLD, driving.ledger.units(FOLD, "waiting"), job, driving)
    if outcome is not None and outcome.aside:
        unit = outcome.aside[0]
        raise StoppedError(f"the light-curve store cannot take in what was read: {unit.reason}; start again")
    job.store.remove_incoming({name for unit in driving.ledger.units(FOLD, "done") for name in unit.payload["units"]})


def _done_generations(ledger: Ledger, job: BackfillJob, stage: str) -> dict[int, int]:
    """Generation up to which the objects of each bucket were done, with the features and model of the job."""
    done = dict.fromkeys(range(job.buckets), 0)
    for unit in ledger.units(stage, "done"):
        if unit.payload["key"] == job.key(stage):
            for bucket, _ in unit.payload["buckets"]:
                done[bucket] = max(done[bucket], unit.payload["generation"])
    return done


def _plan_buckets(stage: str, job: BackfillJob, driving: Driving) -> list[Unit]:
    ledger = driving.ledger
    # What was planned and not done may be another cut by now.
    ledger.forget(stage, [unit.name for unit in ledger.units(stage) if unit.state != "done"])
    generation = max((unit.payload["generation"] for unit in ledger.units(FOLD, "done")), default=0)
    since = _done_generations(ledger, job, stage)
    store = job.store
    changed = {bucket: len(store.changed(bucket, done)) for bucket, done in since.items() if done < generation}
    changed = {bucket: number for bucket, number in changed.items() if number}
    most = sum(changed.values()) // (_UNITS_PER_WORKER * driving.workers)
    specs = [
        _bucket_unit(stage, job, generation, [(bucket, since[bucket]) for bucket in buckets], changed)
        for buckets in _cut(changed, min(max(most, _LEAST_OBJECTS), _MOST_OBJECTS))
    ]
    return ledger.add(stage, specs)


def _bucket_unit(
    stage: str, job: BackfillJob, generation: int, buckets: list[tuple[int, int]], sizes: Mapping[int, int]
) -> UnitSpec:
    key = job.key(stage)
    name = f"{stage}-{key}-{generation:06d}-{buckets[0][0]:04d}-{buckets[-1][0]:04d}"
    payload = {"key": key, "generation": generation, "buckets": buckets}
    return UnitSpec(name, payload, size=sum(sizes[bucket] for bucket, _ in buckets))


def _cut(sizes: Mapping[int, int], most: int) -> list[list[int]]:
    """Buckets in their order, cut where the sizes of some together exceed a number."""
    parts: list[list[int]] = []
    size = 0
    for bucket in sorted(sizes):
        if not parts or size + sizes[bucket] > most:
            parts.append([])
            size = 0
        parts[-1].append(bucket)
        size += sizes[bucket]
    return parts


def add_letters(ledger: Ledger, packets: Sequence[Path], refused: Sequence[Path]) -> None:
    """Add files of dead letters to the work."""
    sources = find_sources(map(str, packets))
    ledger.add(READ, [UnitSpec(source.name, {"source": asdict(source), "replay": True}) for source in sources])
    ledger.add(REPLAY, [UnitSpec(stable_name(str(path)), {"path": str(path)}) for path in refused])


def run_refused(job: BackfillJob, driving: Driving) -> None:
    """Write once more what the database refused."""
    _do(REPLAY, driving.ledger.units(REPLAY, "waiting"), job, driving)


def remove_replayed(ledger: Ledger) -> None:
    """Remove files of dead letters that were fed again; what failed once more is in new files."""
    paths = [unit.payload["path"] for unit in ledger.units(REPLAY, "done")]
    for unit in ledger.units(READ, "done"):
        if unit.payload.get("replay"):
            paths += unit.payload["source"]["paths"]
    for path in paths:
        Path(path).unlink(missing_ok=True)
