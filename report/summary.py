"""What a run did, from its ledger: counts that must add up, stages, what was set aside, and rates over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from run_folder.ledger import ASIDE, DONE, Invocation, Sample, Unit

_READ, _FEATURES = "read", "features"
_STAGES: Final = (_READ, "fold", "replay", _FEATURES, "classify", "export")
_LOST_ON_THE_WAY: Final = ("read", "decode", "crossmatch")
_MOST_BINS: Final = 120
_MOST_ASIDE: Final = 50
_LEAST_PAUSE_S: Final = 60.0
# Samples lie this far apart; the last of a stage is taken after its end.
_SAMPLING_S: Final = 2.5


@dataclass(frozen=True)
class Balance:
    """Law of the counts: what came in went somewhere.

    Attributes
    ----------
    alerts_in : int
        Packets that were met: those decoded, and those that could not be read or decoded.
    written, filtered, repeated, dead : int
        Where they went.
    """

    alerts_in: int
    written: int
    filtered: int
    repeated: int
    dead: int

    @property
    def difference(self) -> int:
        """What is missing on the right side; 0 if the counts add up."""
        return self.alerts_in - self.written - self.filtered - self.repeated - self.dead


@dataclass(frozen=True)
class Stage:
    """Units of work of one stage.

    Attributes
    ----------
    name : str
    units, done, aside, repeated : int
        All, finished, given up, and those that needed more than one attempt.
    busy_s : float
        Sum over the units, seconds.
    peak_bytes : int or None
        Largest memory of a worker.
    """

    name: str
    units: int
    done: int
    aside: int
    repeated: int
    busy_s: float
    peak_bytes: int | None


@dataclass(frozen=True)
class SetAside:
    """A unit that was given up, and why."""

    stage: str
    name: str
    attempts: int
    reason: str


@dataclass(frozen=True, eq=False)
class Rates:
    """Work per second in bins of time; pauses of the run are left out.

    Attributes
    ----------
    edges_s : float64, shape (n + 1,)
        Seconds of work since the beginning.
    alerts, megabytes, objects : float64, shape (n,)
        Per second.
    pauses : tuple of (float, float)
        Where the run stood still, in seconds of work, and for how many seconds.
    of_samples : bool
        From samples of progress; else from the beginnings and ends of units.
    """

    edges_s: NDArray[np.float64]
    alerts: NDArray[np.float64]
    megabytes: NDArray[np.float64]
    objects: NDArray[np.float64]
    pauses: tuple[tuple[float, float], ...]
    of_samples: bool


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    settings : Mapping
        As the ledger holds them.
    counts : Mapping of str to int
        Sums over all units.
    stage_counts : Mapping of str to Mapping of str to int
        Sums over the units of each stage.
    balance : Balance or None
        None if no unit of the stage ``read`` is done.
    stages : tuple of Stage
    set_aside : tuple of SetAside
        The first of them.
    set_aside_count : int
    started, ended : float or None
        Of the first and last unit, seconds since 1970.
    in_progress : int
        Units that are not finished.
    rates : Rates or None
    invocations : tuple of Invocation
    """

    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    stage_counts: Mapping[str, Mapping[str, int]]
    balance: Balance | None
    stages: tuple[Stage, ...]
    set_aside: tuple[SetAside, ...]
    set_aside_count: int
    started: float | None
    ended: float | None
    in_progress: int
    rates: Rates | None
    invocations: tuple[Invocation, ...]

    @property
    def peak_bytes(self) -> int | None:
        """Largest memory of any worker."""
        return max((stage.peak_bytes for stage in self.stages if stage.peak_bytes), default=None)

    @property
    def seconds(self) -> float | None:
        """Duration without pauses, as far as it is known."""
        if self.started is None or self.ended is None:
            return None
        paused = sum(length for _, length in self.rates.pauses) if self.rates else 0.0
        return max(self.ended - self.started - paused, 0.0)


def summarise(
    settings: Mapping[str, Any], units: Sequence[Unit], samples: Sequence[Sample], invocations: Sequence[Invocation]
) -> Summary:
    """Sum up the ledger of a run."""
    total: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    for unit in units:
        total.update(unit.counts)
        counts.setdefault(unit.stage, Counter()).update(unit.counts)
    begins = [unit.started for unit in units if unit.started is not None]
    ends = [unit.ended for unit in units if unit.ended is not None]
    aside = [unit for unit in units if unit.state == ASIDE]
    return Summary(
        settings=settings,
        counts=dict(sorted(total.items())),
        stage_counts={stage: dict(sorted(numbers.items())) for stage, numbers in counts.items() if numbers},
        balance=_balance(counts[_READ]) if counts.get(_READ) else None,
        stages=_stages(units),
        set_aside=tuple(
            SetAside(unit.stage, unit.name, unit.attempts, unit.reason or "no reason is recorded")
            for unit in aside[:_MOST_ASIDE]
        ),
        set_aside_count=len(aside),
        started=min(begins, default=None),
        ended=max([*ends, *begins], default=None),
        in_progress=sum(unit.state not in (DONE, ASIDE) for unit in units),
        rates=_rates_of_samples(samples, units) or _rates_of_units(units),
        invocations=tuple(invocations),
    )


def _balance(counts: Mapping[str, int]) -> Balance:
    dead = {stage: counts.get(f"dead_letters:{stage}", 0) for stage in _LOST_ON_THE_WAY}
    # Dead letters that were fed again came in once, and what became of them the second time counts.
    again = counts.get("replayed", 0)
    return Balance(
        alerts_in=counts.get("read", 0) + dead["read"] + dead["decode"] - again,
        written=counts.get("written", 0),
        filtered=counts.get("filtered", 0),
        repeated=counts.get("repeated", 0),
        dead=sum(dead.values()) - again,
    )


def _stages(units: Sequence[Unit]) -> tuple[Stage, ...]:
    by_name: dict[str, list[Unit]] = {name: [] for name in _STAGES}
    for unit in units:
        by_name.setdefault(unit.stage, []).append(unit)
    return tuple(
        Stage(
            name=name,
            units=len(some),
            done=sum(unit.state == DONE for unit in some),
            aside=sum(unit.state == ASIDE for unit in some),
            repeated=sum(unit.attempts > 1 for unit in some),
            busy_s=sum(unit.seconds for unit in some),
            peak_bytes=max((unit.peak_bytes for unit in some if unit.peak_bytes), default=None),
        )
        for name, some in by_name.items()
        if some
    )


def _rates_of_samples(samples: Sequence[Sample], units: Sequence[Unit]) -> Rates | None:
    if len(samples) < 3:
        return None
    timed = sorted(samples, key=lambda sample: sample.time)
    time = np.array([sample.time for sample in timed])
    steps = np.diff(time)
    longest = max(_LEAST_PAUSE_S, 20.0 * float(np.median(steps)))
    pauses = steps > longest
    # What was done before the first sample after a pause took about as long as between others.
    active = np.append(0.0, np.cumsum(np.where(pauses, np.median(steps), steps)))
    if active[-1] <= 0:
        return None
    edges = np.linspace(0.0, active[-1], min(_MOST_BINS, len(timed) - 1) + 1)

    def rate(name: str, stage: str) -> NDArray[np.float64]:
        counted = _additions([getattr(sample, name) for sample in timed])
        counted[~_at_work(time[1:], [unit for unit in units if unit.stage == stage])] = 0.0
        total = np.append(0.0, np.cumsum(counted))
        return np.diff(np.interp(edges, active, total)) / np.diff(edges)

    stood = tuple((float(active[k]), float(steps[k])) for k in np.flatnonzero(pauses))
    megabytes = rate("bytes", _READ) / 1e6
    return Rates(edges, rate("alerts", _READ), megabytes, rate("objects", _FEATURES), stood, of_samples=True)


def _additions(counter: Sequence[int]) -> NDArray[np.float64]:
    """What was added from each sample to the next.

    A counter that falls a little had counted what a worker that died was at; one that falls far begins anew.
    """
    added, highest = np.zeros(len(counter) - 1), counter[0]
    for k, value in enumerate(counter[1:]):
        if value < highest / 2:
            highest = 0
        added[k] = max(value - highest, 0)
        highest = max(value, highest)
    return added


def _at_work(time: NDArray[np.float64], units: Sequence[Unit]) -> NDArray[np.bool_]:
    """Which times fall into that of some unit, or shortly after it; all if there are no units.

    The counters of samples belong to the stage at work, which they do not name.
    """
    spans = [(unit.started, unit.ended) for unit in units if unit.started is not None]
    if not spans:
        return np.ones(len(time), np.bool_)
    table = np.array([(begin, np.inf if end is None else end + _SAMPLING_S) for begin, end in spans])
    table = table[np.argsort(table[:, 0])]
    before = np.searchsorted(table[:, 0], time, side="right")
    reached = np.append(-np.inf, np.maximum.accumulate(table[:, 1]))
    return time <= reached[before]


def _rates_of_units(units: Sequence[Unit]) -> Rates | None:
    spans: list[tuple[float, float, float, float, float]] = []
    for unit in units:
        begin, end = unit.started, unit.ended
        if unit.state == DONE and begin is not None and end is not None and end > begin:
            counts = unit.counts
            objects = counts.get("objects", 0) if unit.stage == _FEATURES else 0
            reading = unit.stage == _READ
            alerts = counts.get("read", 0) if reading else 0
            spans.append((begin, end, alerts, unit.size if reading else 0, objects))
    if not spans:
        return None
    table = np.array(sorted(spans))
    reached = np.maximum.accumulate(table[:, 1])
    idle = np.append(0.0, np.maximum(table[1:, 0] - reached[:-1], 0.0))
    idle[idle < _LEAST_PAUSE_S] = 0.0
    left_out = np.cumsum(idle) + table[0, 0]
    begin, end = table[:, 0] - left_out, table[:, 1] - left_out
    edges = np.linspace(0.0, end.max(), min(_MOST_BINS, max(8, 2 * len(table))) + 1)
    share = np.diff(np.clip((edges[None, :] - begin[:, None]) / (end - begin)[:, None], 0.0, 1.0), axis=1)
    alerts, size, objects = table[:, 2:].T @ share / np.diff(edges)
    stood = tuple((float(begin[k]), float(idle[k])) for k in np.flatnonzero(idle))
    return Rates(edges, alerts, size / 1e6, objects, stood, of_samples=False)
