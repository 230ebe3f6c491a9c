"""From tables and messages of features to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from alerts.dead_letters import DeadLetter
from alerts.reader import EmptyContainer, Limits, Portion, read_portions
from alerts.sources import Source
from classifier.inputs import identifier_column, rows_of_table
from transforms.dead_letters import DEAD_LETTERS
from transforms.feature_batch import FeatureBatch, sound_rows
from transforms.feature_messages import FeatureMessages
from transforms.reading import ReadSources

FEATURE_BATCHES: Final = "features"
TABLE_ENDINGS: Final = (".csv", ".csv.gz", ".parquet")
_ROWS: Final = 5_000
_LIMITS: Final = Limits()


def check_feature_table(path: str) -> dict[str, str]:
    """Look at the head of a table of features; give what it tells of itself, such as ``feature_mode``.

    Raises
    ------
    OSError
        If it cannot be read.
    InputRowsError
        If it has no column ``oid``.
    """
    with _arrow_errors(path):
        schema = (
            pq.read_schema(path)
            if path.endswith(".parquet")
            else pa.schema([(n, pa.string()) for n in _csv_header(path)])
        )
    try:
        identifier_column(schema.names)
    except ValueError as error:
        raise type(error)(f"{path}: {error}; a table of features has the columns oid and one per feature") from error
    told = {key: value for key, value in (schema.metadata or {}).items() if key.startswith(b"feature_")}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in told.items()}


def read_features(
    source: Source,
    wanted: frozenset[str],
    limits: Limits = _LIMITS,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[FeatureBatch | DeadLetter | EmptyContainer]:
    """Read a source of features in portions that fit in memory; what cannot be used becomes dead letters.

    Parameters
    ----------
    source : Source
        A table (``.parquet``, ``.csv``, ``.csv.gz``), or messages of the feature step in any form in which
        :func:`alerts.reader.read_source` finds packets.
    wanted : frozenset of str
        Names of features to take.

    Raises
    ------
    OSError
        If the source cannot be read at all.
    """
    if source.location.endswith(TABLE_ENDINGS) and not source.loose:
        yield from _read_table(source, wanted)
        progress(source.size)
        return
    messages = FeatureMessages(wanted, limits)
    for item in read_portions(source, limits, progress):
        if isinstance(item, Portion):
            yield from messages.containers(item, source)
        else:
            yield item


class ReadFeatures(beam.PTransform):
    """Read sources into batches of features.

    Gives the PCollections ``features`` (of :class:`FeatureBatch`) and ``dead_letters``.

    Parameters
    ----------
    wanted : frozenset of str
        Names of features to take.
    limits : Limits
        Of a portion.
    progress_folder : str
        Where to note how far it is; nowhere if empty.
    """

    def __init__(self, wanted: frozenset[str], limits: Limits = _LIMITS, progress_folder: str = "") -> None:
        super().__init__()
        self._wanted, self._limits, self._progress_folder = wanted, limits, progress_folder

    def expand(self, sources: beam.PCollection) -> Any:
        """Apply to a PCollection of :class:`~alerts.sources.Source`."""
        read = partial(read_features, wanted=self._wanted, limits=self._limits)
        reading = ReadSources(read, self._progress_folder)
        return sources | beam.ParDo(reading).with_outputs(DEAD_LETTERS, main=FEATURE_BATCHES)


# -- tables ----------------------------------------------------------------------------------------------------------


@contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
    """Give what Arrow finds wrong with a file the type of a file's error."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(f"{path}: cannot be read as a table ({str(error)[:200]})") from error


def _read_table(source: Source, wanted: frozenset[str]) -> Iterator[FeatureBatch | DeadLetter]:
    letters: list[DeadLetter] = []
    with _arrow_errors(source.location):
        for table in _tables(source.location, wanted, letters):
            rows, faults = rows_of_table(table, wanted)
            yield from letters
            letters.clear()
            yield from sound_rows(FeatureBatch(source.name, source.location, rows), faults)
    yield from letters


def _tables(path: str, wanted: frozenset[str], letters: list[DeadLetter]) -> Iterator[pa.RecordBatch]:
    if path.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow.names, wanted)
            yield from file.iter_batches(batch_size=_ROWS, columns=columns)
        return

    def set_aside(row: pa.csv.InvalidRow) -> str:
        reason = f"the line has {row.actual_columns} cells instead of {row.expected_columns}"
        letters.append(DeadLetter("read", reason, path, row.text.partition(",")[0], row.text.encode()))
        return "skip"

    columns = _columns(_csv_header(path), wanted)
    # As text: a number's column may begin with a million empty cells.
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), null_values=[], include_columns=columns
    )
    parse = pa.csv.ParseOptions(invalid_row_handler=set_aside)
    with pa.csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            for first in range(0, len(batch), _ROWS):
                yield batch.slice(first, _ROWS)


def _columns(names: list[str], wanted: frozenset[str]) -> list[str]:
    keys = (identifier_column(names), "candid")
    return [name for name in dict.fromkeys(names) if name in wanted or name in keys]


def _csv_header(path: str) -> list[str]:
    parse = pa.csv.ParseOptions(invalid_row_handler=lambda _: "skip")
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        return reader.schema.names
