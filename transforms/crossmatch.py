"""Crossmatch of alerts and of tables of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alerts.batch import AlertBatch
from transforms.counts import count
from transforms.dead_letters import DEAD_LETTERS, dead_letter, letter_for_alert
from xmatch.matcher import FAILED, MATCHED, Matcher, Matches, match_all

MATCHED_ALERTS: Final = "matched"
OUTCOMES: Final = {0: "no match", 1: "matched", 2: "failed"}


@dataclass(frozen=True)
class MatchedAlerts:
    """Alerts that every catalogue was asked for, with an answer from each."""

    batch: AlertBatch
    matches: tuple[Matches, ...]


class Crossmatch(beam.PTransform):
    """Find the nearest source of each catalogue for each alert.

    Gives the PCollections ``matched`` (of :class:`MatchedAlerts`) and ``dead_letters``: an alert of which some
    catalogue could not be asked goes to the dead letters, never to "no match".

    Parameters
    ----------
    matchers : sequence of Matcher
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        super().__init__()
        self._matchers = tuple(matchers)

    def expand(self, batches: beam.PCollection) -> Any:
        """Apply to a PCollection of AlertBatch."""
        return batches | beam.ParDo(_Crossmatch(self._matchers)).with_outputs(DEAD_LETTERS, main=MATCHED_ALERTS)


class _Crossmatch(beam.DoFn):
    def __init__(self, matchers: tuple[Matcher, ...]) -> None:
        self._matchers = matchers

    def process(self, batch: AlertBatch) -> Iterator[Any]:
        matches = match_all(self._matchers, batch.ra, batch.dec)
        failed = failed_rows(matches)
        for row in np.flatnonzero(failed):
            yield dead_letter(batch.unit, letter_for_alert(batch, int(row), "crossmatch", failure(matches, int(row))))
        count("failed", int(failed.sum()))
        if failed.all():
            return
        if failed.any():
            batch, matches = batch.take(~failed), [select(match, ~failed) for match in matches]
        count_outcomes(matches)
        yield MatchedAlerts(batch, tuple(matches))


def failed_rows(matches: Sequence[Matches]) -> NDArray[np.bool_]:
    """Positions for which some catalogue could not be asked."""
    return np.any([match.status == FAILED for match in matches], axis=0)


def count_outcomes(matches: Sequence[Matches]) -> None:
    """Count the positions with a match and without, and the matches of each catalogue; failed ones are neither."""
    failed = failed_rows(matches)
    found = np.any([match.status == MATCHED for match in matches], axis=0)
    count("matched", int((found & ~failed).sum()))
    count("no_match", int((~found & ~failed).sum()))
    for match in matches:
        count(f"catalog:{match.catalog}", int((match.status == MATCHED).sum()))


def failure(matches: Sequence[Matches], row: int) -> str:
    """Why a position could not be looked up, in the words of the first catalogue that failed."""
    failed = next(match for match in matches if match.status[row] == FAILED)
    return failed.errors[row].as_py() or f"the lookup in {failed.catalog} failed"


def select(matches: Matches, rows: np.ndarray) -> Matches:
    """Matches of some of the positions, by mask."""
    mask = pa.array(rows)
    return Matches(
        matches.catalog,
        matches.catalog_version,
        matches.catalog_created,
        matches.status[rows],
        matches.separation_arcsec[rows],
        matches.columns.filter(mask),
        matches.errors.filter(mask),
    )
