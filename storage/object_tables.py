"""Tables with one row per object, a Parquet file for each bucket of objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.buckets import bucket_of
from storage.files import replacing

_ROWS_PER_GROUP = 8192


class ObjectTable:
    """A folder of files ``bucket=NNNN.parquet``, each sorted by ``oid``, of which an object has one row at most.

    Parameters
    ----------
    folder : Path
        Need not exist.
    buckets : int
        How many parts the objects are spread over, by :func:`storage.buckets.bucket_of`.
    """

    def __init__(self, folder: Path, buckets: int) -> None:
        self.folder, self.buckets = folder, buckets

    def path(self, bucket: int) -> Path:
        """File of a bucket, whether it exists or not."""
        return self.folder / f"bucket={bucket:04d}.parquet"

    def put(self, bucket: int, rows: pa.Table, without: pa.Array | None = None) -> None:
        """Put rows in the place of those of the same objects; the file changes as a whole or not at all.

        The new rows say which columns there are and in what order, and what the schema's metadata are. Columns that
        only rows kept from before have come after theirs; they go with the last of these rows.

        Parameters
        ----------
        bucket : int
        rows : pyarrow.Table
            With a column ``oid``, each object once, all of the bucket.
        without : pyarrow.Array, optional
            Objects that are to have no row unless `rows` has one.

        Raises
        ------
        ValueError
            If an object occurs twice, or belongs to another bucket.
        """
        path = self.path(bucket)
        place = rows.schema.get_field_index("oid")
        names = rows["oid"].cast(pa.string()).combine_chunks()
        self._check(bucket, names)
        rows = rows.set_column(place, "oid", names)
        if path.exists():
            gone = names if without is None else pa.concat_arrays([names, without.cast(pa.string())])
            before = pq.read_table(path, partitioning=None)
            kept = before.filter(pc.invert(pc.is_in(before["oid"], value_set=gone)))
            if len(kept):
                rows = pa.concat_tables([rows, kept], promote_options="permissive")
        with replacing(path) as file:
            pq.write_table(rows.sort_by("oid"), file, compression="zstd", row_group_size=_ROWS_PER_GROUP)

    def _check(self, bucket: int, names: pa.StringArray) -> None:
        elsewhere = np.flatnonzero(bucket_of(names, self.buckets) != bucket)
        if len(elsewhere):
            raise ValueError(f"{names[int(elsewhere[0])]} is no object of bucket {bucket} of {self.buckets}")
        if pc.count_distinct(names, mode="all").as_py() != len(names):
            counts = pc.value_counts(names)
            repeated = counts.filter(pc.greater(counts.field("counts"), 1))
            raise ValueError(f"{repeated.field('values')[0]} occurs more than once")

    def read(self, bucket: int, columns: Sequence[str] | None = None, oids: pa.Array | None = None) -> pa.Table | None:
        """Rows of a bucket, of all objects or of some; None if it has no file.

        Of wanted `columns`, one that the file lacks is all null.
        """
        path = self.path(bucket)
        return _read(path, columns, oids) if path.exists() else None

    def read_all(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Rows bucket by bucket."""
        for path in sorted(self.folder.glob("bucket=*.parquet")):
            yield _read(path, columns, None)

    def schema(self) -> pa.Schema:
        """Columns of all buckets, of a type that holds what each of them has; without any file there are none."""
        schemas = [pq.read_schema(path) for path in sorted(self.folder.glob("bucket=*.parquet"))]
        return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])

    def row(self, oid: str) -> pa.Table | None:
        """Row of one object, a table of one row; None if it has none."""
        name = pa.array([oid])
        found = self.read(int(bucket_of(name, self.buckets)[0]), oids=name)
        return found if found is not None and len(found) else None


def _read(path: Path, columns: Sequence[str] | None, oids: pa.Array | None) -> pa.Table:
    filters = pc.field("oid").isin(oids.cast(pa.string())) if oids is not None else None
    if columns is None:
        return pq.read_table(path, filters=filters, partitioning=None)
    present = set(pq.read_schema(path).names)
    # The objects' names are read even where nobody wants them: they say how many rows of nulls there are.
    known = dict.fromkeys(["oid", *(name for name in columns if name in present)])
    rows = pq.read_table(path, columns=list(known), filters=filters, partitioning=None)
    for name in columns:
        if name not in present:
            rows = rows.append_column(name, pa.nulls(len(rows)))
    return rows.select(list(columns))
