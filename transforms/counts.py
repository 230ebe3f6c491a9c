"""Counters of a run: one list of names for the transforms that raise them and the summary that shows them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.runners.runner import PipelineResult

NAMESPACE: Final = "alertbeam"
# Of counters of which there are several; what follows says of what.
PREFIXES: Final = ("dead_letters:", "catalog:", "rows:", "sent:", "class:", "model:")

_LIVE: Final[dict[str, int]] = {}
_LIVE_LOCK: Final = threading.Lock()


def count(name: str, number: int = 1) -> None:
    """Raise a counter of the run, and of this process."""
    if number:
        Metrics.counter(NAMESPACE, name).inc(int(number))
        with _LIVE_LOCK:
            _LIVE[name] = _LIVE.get(name, 0) + int(number)


def live_counts() -> dict[str, int]:
    """Give what has been counted in this process so far, by name.

    Notes
    -----
    A counter of Beam can be read when the run has ended, which a stream does not. These count what is done, so that
    work which is done again is counted again.
    """
    with _LIVE_LOCK:
        return dict(_LIVE)


@dataclass(frozen=True)
class RunCounts:
    """What became of the alerts of a run: ``read`` = ``written`` + ``filtered`` + ``repeated`` + ``failed``.

    Attributes
    ----------
    read : int
        Alerts decoded.
    filtered : int
        Alerts left out because of their programme.
    repeated : int
        Alerts whose candid had been met before in the run.
    matched, no_match, failed : int
        Outcome of the crossmatch: with a match in some catalogue, with none, not looked up.
    written : int
        Enriched alerts written.
    empty : int
        Valid containers without a record.
    dead_letters : Mapping of str to int
        By stage.
    catalogs : Mapping of str to int
        Matches by catalogue.
    rows : Mapping of str to int
        Database rows written (inserted or updated), by table.
    sent : Mapping of str to int
        Messages that Kafka took, by kind.
    """

    read: int = 0
    filtered: int = 0
    repeated: int = 0
    matched: int = 0
    no_match: int = 0
    failed: int = 0
    written: int = 0
    empty: int = 0
    dead_letters: Mapping[str, int] | None = None
    catalogs: Mapping[str, int] | None = None
    rows: Mapping[str, int] | None = None
    sent: Mapping[str, int] | None = None

    @property
    def dead(self) -> int:
        """Dead letters of all stages."""
        return sum((self.dead_letters or {}).values())


def run_counts(found: Mapping[str, int]) -> RunCounts:
    """Arrange the counters of a finished pipeline."""

    def by(prefix: str) -> dict[str, int]:
        return counters_by(found, prefix)

    plain = {name: number for name, number in found.items() if ":" not in name}
    return RunCounts(
        **plain, dead_letters=by("dead_letters:"), catalogs=by("catalog:"), rows=by("rows:"), sent=by("sent:")
    )


def counters(result: PipelineResult) -> dict[str, int]:
    """Read all counters of a finished pipeline, by name."""
    found: dict[str, int] = {}
    for counter in result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        found[counter.key.metric.name] = found.get(counter.key.metric.name, 0) + counter.result
    return found


def counters_by(found: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Counters whose names begin alike, by the rest of their names."""
    return {name[len(prefix) :]: number for name, number in sorted(found.items()) if name.startswith(prefix)}
