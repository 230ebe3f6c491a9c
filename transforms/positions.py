"""Tables of positions instead of alerts: the crossmatch for anything with a right ascension and a declination."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alerts.container import ContainerError
from alerts.dead_letters import DeadLetter, are_dead_letters, read_dead_letters
from alerts.sources import Source
from transforms.counts import count
from transforms.crossmatch import MATCHED_ALERTS, count_outcomes, failed_rows, failure
from transforms.dead_letters import DEAD_LETTERS, dead_letter
from transforms.tables import crossmatch_rows
from xmatch.matcher import Matcher, match_all

POSITION_ENDINGS: Final = (".csv", ".csv.gz", ".parquet")
POSITION_KEYS: Final = {"id": pa.string(), "ra": pa.float64(), "dec": pa.float64()}
COLUMNS: Final = tuple(POSITION_KEYS)
_ROWS: Final = 100_000
_HEAD_BYTES: Final = 512
# First line of the payload of a position's dead letter.
_HEAD_LINE: Final = b'"id","ra","dec"\n'


class PositionsError(ValueError):
    """A table of positions cannot be used; the message says what it lacks."""


def are_positions(text: str) -> bool:
    """Say whether an input is a table of positions: by its name, or as dead letters of such a table."""
    if text.endswith(POSITION_ENDINGS):
        return True
    path = Path(text)
    files = sorted(path.glob("*.avro")) if path.is_dir() else [path]
    return any(_are_dead_positions(file) for file in files[:1])


def _are_dead_positions(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        if not are_dead_letters(file.read(_HEAD_BYTES)):
            return False
    try:
        return any(letter.payload.startswith(_HEAD_LINE) for letter in islice(read_dead_letters(path), 1))
    except ContainerError:
        return False


def check_positions(path: str) -> None:
    """Look at the head of a table of positions.

    Raises
    ------
    PositionsError
        If it cannot be read or lacks a column.
    """
    try:
        names = next(_read(path, [], schema_only=True)).column_names
    except (pa.ArrowException, OSError) as error:
        raise PositionsError(f"{path}: cannot be read as a table ({str(error)[:100]})") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise PositionsError(
            f"{path}: no column {', '.join(missing)}; a table of positions has the columns id, ra, dec (degrees), "
            f"this one has {', '.join(names[:20])}"
        )


def read_positions(path: str) -> Iterator[pa.Table | DeadLetter]:
    """Read the columns id, ra and dec, as they stand in the file, in portions; a line of a CSV that has too few or too
    many cells gives a dead letter.
    """
    letters: list[DeadLetter] = []
    for table in _read(path, letters):
        yield from letters
        letters.clear()
        yield table
    yield from letters


def _read(path: str, letters: list[DeadLetter], schema_only: bool = False) -> Iterator[pa.Table]:
    if path.endswith(".avro"):
        yield from _read_dead(path, letters)
        return
    if path.endswith(".parquet"):
        file = pq.ParquetFile(path)
        if schema_only:
            yield file.schema_arrow.empty_table()
            return
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(COLUMNS)):
            yield pa.Table.from_batches([batch]).select(COLUMNS)
        return

    def set_aside(row: pa.csv.InvalidRow) -> str:
        reason = f"the line has {row.actual_columns} cells instead of {row.expected_columns}"
        letters.append(DeadLetter("read", reason, path, row.text.partition(",")[0], row.text.encode()))
        return "skip"

    as_text = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()),
        null_values=[],
        include_columns=[] if schema_only else COLUMNS,
    )
    parse = pa.csv.ParseOptions(invalid_row_handler=set_aside)
    with pa.csv.open_csv(path, parse_options=parse, convert_options=as_text) as reader:
        if schema_only:
            yield reader.schema.empty_table()
            return
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _read_dead(path: str, letters: list[DeadLetter]) -> Iterator[pa.Table]:
    """Positions out of dead letters; a letter that holds none stays one."""
    held = read_dead_letters(Path(path))
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), null_values=[])
    empty = pa.schema(dict.fromkeys(COLUMNS, pa.string())).empty_table()
    while portion := list(islice(held, _ROWS)):
        rows = [letter.payload.removeprefix(_HEAD_LINE) for letter in portion if letter.payload.startswith(_HEAD_LINE)]
        letters += [letter for letter in portion if not letter.payload.startswith(_HEAD_LINE)]
        text = io.BytesIO(b"".join(chain([_HEAD_LINE], rows)))
        yield pa.csv.read_csv(text, convert_options=convert).select(COLUMNS) if rows else empty


def _degrees(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers of a column; null where the text is none."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.cast(pa.float64())
    text = pc.utf8_trim_whitespace(column)
    number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    return pc.if_else(number, text, None).cast(pa.float64())


def _as_numpy(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=np.float64)


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
        for rows in chain.from_iterable(map(read_positions, source.paths)):
            if isinstance(rows, DeadLetter):
                yield dead_letter(source.name, rows)
                continue
            ra, dec = (_degrees(rows[name]) for name in ("ra", "dec"))
            matches = match_all(self._matchers, _as_numpy(ra), _as_numpy(dec))
            count("read", len(rows))
            failed = failed_rows(matches)
            count("failed", int(failed.sum()))
            count_outcomes(matches)
            identifier = rows["id"].cast(pa.string())
            for row in np.flatnonzero(failed):
                sink = pa.BufferOutputStream()
                pa.csv.write_csv(rows.slice(row, 1), sink)
                reason, name = failure(matches, int(row)), str(identifier[int(row)].as_py())
                letter = DeadLetter("crossmatch", reason, source.location, name, sink.getvalue().to_pybytes())
                yield dead_letter(source.name, letter)
            keys = {"id": identifier.combine_chunks(), "ra": ra.combine_chunks(), "dec": dec.combine_chunks()}
            count("written", len(rows) - int(failed.sum()))
            yield source.name, crossmatch_rows(keys, matches)
