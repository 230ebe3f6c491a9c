"""Writing enriched alerts, tables and crossmatches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from alerts.enrich import enrich
from alerts.writer import AlertFile
from database.client import Database
from database.upsert import RefusedRow
from storage.files import partial_name, replacing
from transforms.counts import count
from transforms.crossmatch import MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, at_the_end, dead_letter, letter_for_alert
from transforms.tables import database_rows, for_enriching

MAX_FILE_BYTES: Final = 2 << 30
# Alerts are held until their rows are stored, so that a refused row can give its packet to the dead letters.
_MAX_HELD_BYTES, _MAX_HELD_ROWS = 160 << 20, 10_000


@dataclass
class WriteAlerts(beam.PTransform):
    """Write enriched alerts to ``<folder>/<unit>.<schema>.<number>.avro``, one container per writer schema.

    Files appear under their names when they are complete. The names derive from what is read, so that a second run
    replaces the files of the first with the same content.

    Parameters
    ----------
    folder : Path
    codec : str
        Of :data:`alerts.container.CODECS`.
    level : int, optional
        Of compression; a fast one by default.
    precision : {"float", "double"}
        Of the numbers in ``xmatches``.
    """

    folder: Path
    codec: str = "zstandard"
    level: int | None = None
    precision: str = "float"

    def expand(self, matched: beam.PCollection) -> Any:
        """Apply to a PCollection of MatchedAlerts."""
        return matched | beam.ParDo(_WriteAlerts(self.folder, self.codec, self.level, self.precision))


class _WriteAlerts(beam.DoFn):
    def __init__(self, folder: Path, codec: str, level: int | None, precision: str) -> None:
        self._folder, self._codec, self._level, self._precision = folder, codec, level, precision

    def setup(self) -> None:
        self._files: dict[str, AlertFile] = {}
        self._begun: Counter[str] = Counter()
        self._unit = ""

    def process(self, alerts: MatchedAlerts) -> None:
        batch = alerts.batch
        if batch.unit != self._unit:
            self._close()
            self._unit = batch.unit
            self._begun.clear()
        enriched = enrich(batch, for_enriching(alerts.matches), self._precision)
        tag = batch.schema.tag
        if tag in self._files and self._files[tag].bytes > MAX_FILE_BYTES:
            self._files.pop(tag).close()
        if tag not in self._files:
            path = self._folder / f"{batch.unit}.{tag}.{self._begun[tag]:04d}.avro"
            self._begun[tag] += 1
            self._files[tag] = AlertFile(path, enriched.schema_text, self._codec, self._level)
        self._files[tag].write(enriched)
        count("written", len(batch))

    def finish_bundle(self) -> None:
        self._close()
        self._unit = ""

    def teardown(self) -> None:
        while self._files:
            self._files.popitem()[1].abandon()

    def _close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


class WriteTables(beam.PTransform):
    """Store objects, catalogue sources and crossmatches in PostgreSQL.

    Gives the PCollection ``dead_letters``: alerts of which the database refused a row.

    Parameters
    ----------
    database : Database
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def expand(self, matched: beam.PCollection) -> Any:
        """Apply to a PCollection of MatchedAlerts."""
        return matched | beam.ParDo(_WriteTables(self._database)).with_outputs(DEAD_LETTERS, main="done")


class _WriteTables(beam.DoFn):
    def __init__(self, database: Database) -> None:
        self._database = database

    def start_bundle(self) -> None:
        self._held: list[MatchedAlerts] = []
        self._bytes = self._rows = 0

    def process(self, alerts: MatchedAlerts) -> Iterator[Any]:
        self._held.append(alerts)
        self._bytes += alerts.batch.buffer.nbytes
        self._rows += len(alerts.batch)
        if self._bytes >= _MAX_HELD_BYTES or self._rows >= _MAX_HELD_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(at_the_end, self._flush())

    def teardown(self) -> None:
        self._database.close()

    def _flush(self) -> Iterator[Any]:
        held, self._held, self._bytes, self._rows = self._held, [], 0, 0
        parts = [database_rows(alerts) for alerts in held]
        names = list(dict.fromkeys(name for tables, _ in parts for name in tables))
        if not names:
            return
        tables = {name: pa.concat_tables([t[name] for t, _ in parts if name in t]) for name in names}
        result = self._database.write(tables)
        for name, counts in result.counts.items():
            count(f"rows:{name}", counts.written)
        origin = {
            name: [(alerts, row) for alerts, (_, rows) in zip(held, parts, strict=True) for row in rows.get(name, ())]
            for name in {row.table for row in result.refused}
        }
        for alerts, row, reason in _refused_alerts(result.refused, origin):
            yield dead_letter(alerts.batch.unit, letter_for_alert(alerts.batch, row, "write", reason))


def _refused_alerts(
    refused: tuple[RefusedRow, ...], origin: dict[str, list[tuple[MatchedAlerts, int]]]
) -> Iterator[tuple[MatchedAlerts, int, str]]:
    """Each alert once, with the first reason for which a row of it was refused."""
    told = set()
    for refusal in refused:
        alerts, row = origin[refusal.table][refusal.index]
        if (id(alerts), row) not in told:
            told.add((id(alerts), row))
            yield alerts, int(row), f"table {refusal.table}: {refusal.reason}"


class WriteRows(beam.PTransform):
    """Write tables to ``<folder>/<unit>.parquet``, one part per unit of work; see :func:`join_parts`.

    Parameters
    ----------
    folder : Path
    make : callable
        From an element to its unit and its table.
    """

    def __init__(self, folder: Path, make: Callable[[Any], tuple[str, pa.Table]]) -> None:
        super().__init__()
        self._folder, self._make = folder, make

    def expand(self, elements: beam.PCollection) -> Any:
        """Apply to a PCollection of what `make` takes."""
        return elements | beam.ParDo(_WriteRows(self._folder, self._make))


class _WriteRows(beam.DoFn):
    def __init__(self, folder: Path, make: Callable[[Any], tuple[str, pa.Table]]) -> None:
        self._folder, self._make = folder, make

    def setup(self) -> None:
        self._writer: pq.ParquetWriter | None = None
        self._path = Path()
        self._unit = ""
        self._waiting: list[pa.Table] = []

    def process(self, element: Any) -> None:
        unit, table = self._make(element)
        if unit != self._unit:
            self._close()
            self._unit, self._path = unit, self._folder / f"{unit}.parquet"
        self._waiting.append(table)
        if sum(len(part) for part in self._waiting) >= 1 << 16:
            self._flush()

    def finish_bundle(self) -> None:
        self._close()

    def teardown(self) -> None:
        if self._writer is not None:
            # What made the bundle fail, such as a full disk, makes the end of this file fail too.
            with suppress(OSError):
                self._writer.close()
            partial_name(self._path).unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(partial_name(self._path), table.schema, compression="zstd")
        self._writer.write_table(table)

    def _close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            partial_name(self._path).replace(self._path)
        self._unit = ""


def join_parts(folder: Path, output: Path, schema: pa.Schema, as_csv: bool = False) -> int:
    """Join parts into one Parquet file, and by wish a CSV beside it; give the number of rows.

    Parameters
    ----------
    folder : Path
        Of the parts ``<unit>.parquet``, which are joined in the order of their names.
    output : Path
    schema : pyarrow.Schema
        Columns at least; those of parts from run_folder with other catalogues are added, null elsewhere.
    as_csv : bool
        Write ``<output>.csv`` as well; nulls are empty cells.
    """
    rows = 0
    parts = sorted(folder.glob("*.parquet"))
    schema = pa.unify_schemas([schema, *map(pq.read_schema, parts)], promote_options="permissive")
    with replacing(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for path in parts:
            with pq.ParquetFile(path) as part:
                for group in range(part.num_row_groups):
                    writer.write_table(_with_schema(part.read_row_group(group), schema))
                rows += part.metadata.num_rows
    if as_csv:
        _write_csv(output, output.with_suffix(".csv"))
    return rows


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write_csv(parquet: Path, path: Path) -> None:
    with pq.ParquetFile(parquet) as table, replacing(path) as file, pa.csv.CSVWriter(file, table.schema_arrow) as text:
        for batch in table.iter_batches():
            text.write_batch(batch)
