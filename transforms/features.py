"""Features on their way to a file and to the database, together with the light curves that they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from functools import lru_cache, partial, reduce
from operator import and_
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from alerts.dead_letters import DeadLetter
from classifier.inputs import rows_of_table, with_other_names
from database.client import Database
from database.upsert import WriteResult
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import FeatureBatch, compute_features, feature_names
from lightcurves.features.curves import Mode
from lightcurves.summary import WISE
from storage.files import replacing
from transforms.background import Background
from transforms.counts import count
from transforms.dead_letters import DEAD_LETTERS, at_the_end, dead_letter
from transforms.feature_reading import FeatureBatch as FeaturesToClassify
from transforms.light_curve_tables import feature_tables, light_curve_tables
from transforms.light_curves import ALLWISE
from transforms.progress import ProgressNote
from transforms.tables import SEPARATION

WRITTEN: Final = "written"
CROSSMATCH_COLUMNS: Final = ("oid", *WISE)
_MAYBE: Final = (SEPARATION, "candid", "jd")
_MATCHED: Final = "matched"
_ROWS_AT_ONCE: Final = 256
_ROWS_PER_GROUP: Final = 16_384
_ALL_FEATURES: Final = with_other_names(feature_names())


class FeaturedLightCurves(NamedTuple):
    """Light curves, and the features of those among them that have enough points."""

    light_curves: LightCurveBatch
    features: FeatureBatch


class ComputeFeatures(beam.PTransform):
    """Compute the features of light curves, and keep both.

    Parameters
    ----------
    mode : Mode
    forced : bool
        Whether forced photometry counts.
    all_objects : bool
        Whether objects with too few points get a row of nulls.
    version : str, optional
    progress_folder : str
        Where to note how far it is; nowhere if empty.
    threads : int
        How many parts of a batch are computed at once.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        forced: bool = False,
        all_objects: bool = False,
        version: str | None = None,
        progress_folder: str = "",
        threads: int = 1,
    ) -> None:
        super().__init__()
        self._options = {"mode": mode, "forced": forced, "keep_incomplete": all_objects, "version": version}
        self._options["threads"] = threads
        self._progress_folder = progress_folder

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Apply to a PCollection of LightCurveBatch; gives a :class:`FeaturedLightCurves` each."""
        return batches | beam.ParDo(_Compute(self._options, self._progress_folder))


class _Compute(beam.DoFn):
    def __init__(self, options: dict[str, Any], progress_folder: str) -> None:
        self._options, self._progress_folder = options, progress_folder

    def setup(self) -> None:
        self._note = ProgressNote(self._progress_folder)

    def process(self, batch: LightCurveBatch) -> Iterator[FeaturedLightCurves]:
        features = compute_features(batch, **self._options)
        count("featured", len(features))
        self._note.add(objects=len(batch))
        yield FeaturedLightCurves(batch, features)

    def finish_bundle(self) -> None:
        self._note.save()


def classifiable(featured: FeaturedLightCurves) -> list[FeaturesToClassify]:
    """Features as the classifier takes them, with the candid of each object's newest alert; none if there are none.

    The unit is named by what it holds.
    """
    table, objects = featured.features.table, featured.light_curves.objects
    if not table.num_rows:
        return []
    candid = objects["candid"].take(pc.index_in(table["oid"], value_set=objects["oid"].combine_chunks()))
    digest = hashlib.sha256("".join(table["oid"].to_pylist()).encode() + np.asarray(pc.fill_null(candid, 0)).tobytes())
    rows, _ = rows_of_table(table.append_column("candid", candid), _ALL_FEATURES)
    return [FeaturesToClassify(f"features.{digest.hexdigest()[:16]}", "light curves", rows)]


def feature_part(element: FeaturedLightCurves) -> tuple[str, pa.Table]:
    """Name of a part, by its first object, and its rows: what :class:`~transforms.writing.WriteRows` takes."""
    table = element.features.table
    first = table["oid"][0].as_py() if table.num_rows else ""
    return hashlib.sha256(first.encode()).hexdigest()[:16], table


def merge_sorted(folder: Path, output: Path, schema: pa.Schema) -> int:
    """Merge parts, each sorted by ``oid``, into one Parquet file sorted by it; give the number of rows.

    Memory holds some hundred rows of each part. No object may stand in two parts.

    Parameters
    ----------
    folder : Path
        Of the parts ``*.parquet``.
    output : Path
        Appears when it is complete.
    schema : pyarrow.Schema
    """
    parts = [_Part(path) for path in sorted(folder.glob("*.parquet"))]
    rows = 0
    with replacing(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        while live := [part for part in parts if part.head is not None]:
            # Up to here no part has anything that is not in its head.
            last = min(part.last for part in live)
            waiting.append(pa.concat_tables([part.take(last) for part in live]).sort_by("oid"))
            if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                rows += _write_group(writer, waiting, schema)
        rows += _write_group(writer, waiting, schema)
    return rows


class _Part:
    """A part that is read from its beginning; `head` is what was read and not yet taken, None at the end."""

    def __init__(self, path: Path) -> None:
        self._batches = pq.ParquetFile(path, buffer_size=1 << 16).iter_batches(_ROWS_AT_ONCE)
        self.head: pa.Table | None = None
        self._refill()

    @property
    def last(self) -> str:
        assert self.head is not None
        return self.head["oid"][-1].as_py()

    def take(self, last: str) -> pa.Table:
        assert self.head is not None
        taken = self.head.slice(0, pc.sum(pc.less_equal(self.head["oid"], last)).as_py())
        self.head = self.head.slice(len(taken))
        if not len(self.head):
            self._refill()
        return taken

    def _refill(self) -> None:
        batch = next(self._batches, None)
        self.head = pa.Table.from_batches([batch]) if batch is not None else None


def _write_group(writer: pq.ParquetWriter, waiting: list[pa.Table], schema: pa.Schema) -> int:
    if not waiting:
        return 0
    table = pa.concat_tables(waiting).cast(schema)
    waiting.clear()
    writer.write_table(table)
    return len(table)


class WriteFeatureTables(beam.PTransform):
    """Store light curves and features in PostgreSQL, the tables of each batch in one transaction.

    Gives the PCollections ``written`` (what it was given, behind its rows: what is written of it later finds them) and
    ``dead_letters``: rows that the database refused, as JSON.

    Parameters
    ----------
    database : Database
    step_id : str
        Row of table ``step``, which must be there.
    unit : str
        Unit of work that names the dead letters.
    without : collection of str
        Tables to leave alone.
    """

    def __init__(self, database: Database, step_id: str, unit: str, without: Collection[str] = ()) -> None:
        super().__init__()
        self._writing = _WriteTables(database, step_id, unit, frozenset(without))

    def expand(self, featured: beam.PCollection) -> Any:
        """Apply to a PCollection of FeaturedLightCurves."""
        return featured | beam.ParDo(self._writing).with_outputs(DEAD_LETTERS, main=WRITTEN)


class _WriteTables(beam.DoFn):
    def __init__(self, database: Database, step_id: str, unit: str, without: frozenset[str]) -> None:
        self._database, self._step_id, self._unit, self._without = database, step_id, unit, without

    def setup(self) -> None:
        self._writing: Background[WriteResult] = Background()
        self._version: pa.Table | None = None

    def process(self, element: FeaturedLightCurves) -> Iterator[Any]:
        if not len(element.light_curves):
            return
        tables = light_curve_tables(element.light_curves, self._step_id)
        if "feature" not in self._without:
            tables |= feature_tables(element.features, element.light_curves, self._step_id, self._step_id)
            # It is the same for all.
            if tables["feature_version"] == self._version:
                del tables["feature_version"]
            else:
                self._version = tables["feature_version"]
        tables = {name: table for name, table in tables.items() if name not in self._without}
        for result, written in self._writing.ask(partial(self._database.write, tables), tables):
            yield from self._told(result, written)
        yield element

    def finish_bundle(self) -> Iterator[Any]:
        for result, written in self._writing.rest():
            yield from map(at_the_end, self._told(result, written))

    def teardown(self) -> None:
        self._writing.forget()
        self._database.close()

    def _told(self, result: WriteResult, tables: dict[str, pa.Table]) -> Iterator[beam.pvalue.TaggedOutput]:
        for name, counts in result.counts.items():
            count(f"rows:{name}", counts.written)
        for letter in _letters(result, tables, self._unit):
            yield dead_letter(self._unit, letter)


def _letters(result: WriteResult, tables: dict[str, pa.Table], unit: str) -> Iterator[DeadLetter]:
    for refused in result.refused:
        row = tables[refused.table].slice(refused.index, 1).to_pylist()[0]
        payload = json.dumps({refused.table: row}, default=str).encode()
        key = " ".join(map(str, refused.key))
        yield DeadLetter("write", f"table {refused.table}: {refused.reason}", unit, key, payload)


class CrossmatchFileError(ValueError):
    """A file of crossmatches cannot be used; the message says what it lacks."""


def check_crossmatches(path: Path) -> None:
    """Look at the columns of crossmatches, a file or a folder of parts.

    Raises
    ------
    CrossmatchFileError
        If it is no Parquet or lacks a column.
    """
    try:
        if path.is_dir() and not _parts(path):
            raise CrossmatchFileError(f"{path}: there is no *.parquet in this folder")
        names = _schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise CrossmatchFileError(f"{path}: cannot be read as a Parquet file ({str(error)[:100]})") from error
    missing = [name for name in CROSSMATCH_COLUMNS if name not in names]
    if missing:
        raise CrossmatchFileError(
            f"{path}: no column {', '.join(missing)}; wanted is the crossmatches.parquet of a run with AllWISE"
        )


@lru_cache(maxsize=1)
def read_crossmatches(path: Path) -> pa.Table:
    """AllWISE matches of a run's ``crossmatches.parquet`` as :func:`lightcurves.assembly.assemble` takes them."""
    schema = _schema(path)
    columns = [*CROSSMATCH_COLUMNS, *(name for name in _MAYBE if name in schema.names)]
    chosen = {"status": _MATCHED, "catalog": ALLWISE}
    conditions = [pc.field(name) == value for name, value in chosen.items() if name in schema.names]
    parts = ds.dataset([str(part) for part in _parts(path)], schema=schema)
    return parts.to_table(columns=columns, filter=reduce(and_, conditions) if conditions else None)


def _parts(path: Path) -> list[Path]:
    return sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]


def _schema(path: Path) -> pa.Schema:
    """Columns of all parts: one whose alerts have no match may lack those of a catalogue."""
    schemas = [pq.read_schema(part).remove_metadata() for part in _parts(path)]
    return pa.unify_schemas(schemas, promote_options="permissive")
