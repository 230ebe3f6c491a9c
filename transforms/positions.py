"""Tables of positions instead of alerts: the crossmatch for anything with a right ascension and a declination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from alerts.dead_letters import DeadLetter
from alerts.sources import Source
from transforms.counts import count
from transforms.crossmatch import MATCHED_ALERTS
from transforms.dead_letters import DEAD_LETTERS, dead_letter
from transforms.tables import crossmatch_rows
from xmatch.matcher import FAILED, MATCHED, Matcher, match_all

POSITION_ENDINGS: Final = (".csv", ".csv.gz", ".parquet")
COLUMNS: Final = ("id", "ra", "dec")
_ROWS: Final = 100_000


class PositionsError(ValueError):
    """A table of positions cannot be used; the message says what it lacks."""


@dataclass(frozen=True)
class PositionBatch:
    """Rows of a table of positions: identifiers, and degrees as they stand in the file."""

    source: str
    unit: str
    rows: pa.Table


def check_positions(path: str) -> None:
    """Look at the head of a table of positions.

    Raises
    ------
    PositionsError
        If it cannot be read or lacks a column.
    """
    try:
        names = next(_read(path, schema_only=True)).column_names
    except (pa.ArrowException, OSError) as error:
        raise PositionsError(f"{path}: cannot be read as a table ({str(error)[:100]})") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise PositionsError(
            f"{path}: no column {', '.join(missing)}; a table of positions has the columns id, ra, dec (degrees), "
            f"this one has {', '.join(names[:20])}"
        )


def read_positions(path: str) -> Iterator[pa.Table]:
    """Read columns id (text), ra and dec (degrees; null where the text is no number) in portions."""
    for table in _read(path):
        yield pa.table(
            {
                "id": table["id"].cast(pa.string()),
                "ra": _degrees(table["ra"]),
                "dec": _degrees(table["dec"]),
            }
        )


def _read(path: str, schema_only: bool = False) -> Iterator[pa.Table]:
    if path.endswith(".parquet"):
        file = pq.ParquetFile(path)
        if schema_only:
            yield file.schema_arrow.empty_table()
            return
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(COLUMNS)):
            yield pa.Table.from_batches([batch])
        return
    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True)
    with pa.csv.open_csv(path, convert_options=as_text) as reader:
        if schema_only:
            yield reader.schema.empty_table()
            return
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _degrees(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.cast(pa.float64())
    text = pc.utf8_trim_whitespace(column)
    number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    return pc.if_else(number, text, None).cast(pa.float64())


class CrossmatchPositions(beam.PTransform):
    """Find the nearest source of each catalogue for each position of a table.

    Gives ``matched``, (unit, table) with the rows of ``crossmatches.parquet``, and ``dead_letters``. A position that
    cannot be looked up stands in the table with status "failed" as well.

    Parameters
    ----------
    matchers : sequence of Matcher
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        super().__init__()
        self._matchers = tuple(matchers)

    def expand(self, sources: beam.PCollection) -> Any:
        """Apply to a PCollection of :class:`~alerts.sources.Source`."""
        return sources | beam.ParDo(_CrossmatchPositions(self._matchers)).with_outputs(
            DEAD_LETTERS, main=MATCHED_ALERTS
        )


class _CrossmatchPositions(beam.DoFn):
    def __init__(self, matchers: tuple[Matcher, ...]) -> None:
        self._matchers = matchers

    def process(self, source: Source) -> Iterator[Any]:
        for rows in read_positions(source.location):
            ra, dec = (np.asarray(rows[name].to_numpy(), dtype=np.float64) for name in ("ra", "dec"))
            matches = match_all(self._matchers, ra, dec)
            count("read", len(rows))
            status = np.array([match.status for match in matches])
            failed, found = (status == FAILED).any(axis=0), (status == MATCHED).any(axis=0)
            count("failed", int(failed.sum()))
            count("matched", int(found.sum()))
            count("no_match", int((~found & ~failed).sum()))
            for match in matches:
                count(f"catalog:{match.catalog}", int((match.status == MATCHED).sum()))
            for row in np.flatnonzero(failed):
                name = str(rows["id"][int(row)].as_py())
                reason = next(reason for match in matches if (reason := match.errors[int(row)].as_py()))
                line = f"id,ra,dec\n{name},{ra[row]},{dec[row]}\n".encode()
                yield dead_letter(source.name, DeadLetter("crossmatch", reason, source.location, name, line))
            keys = {name: rows[name].combine_chunks() for name in COLUMNS}
            count("written", len(rows) - int(failed.sum()))
            yield source.name, crossmatch_rows(keys, matches)
