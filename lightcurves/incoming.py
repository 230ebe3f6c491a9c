"""What was added to a light-curve store and has not found its place yet: quick to write, quick to read by bucket.

A file is an Arrow file with a record batch per bucket that it touches; the numbers of the buckets stand in the
schema's metadata. Unlike Parquet's, its footer costs nothing to read, which matters as every bucket opens every file.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from lightcurves.store_tables import StoreTable
from storage.buckets import bucket_of
from storage.files import PARTIAL, partial_name

_ENDING: Final = ".arrow"
_BUCKETS: Final = b"buckets"


class IncomingFiles:
    """Files ``<unit>.<nnnn>.arrow`` of one table.

    Parameters
    ----------
    folder : Path
        Need not exist.
    table : StoreTable
    buckets : int
    """

    def __init__(self, folder: Path, table: StoreTable, buckets: int) -> None:
        self.folder, self.table, self.buckets = folder, table, buckets

    def path(self, unit: str, number: int) -> Path:
        """File of a part of a unit."""
        return self.folder / f"{unit}.{number:04d}{_ENDING}"

    def parts(self) -> dict[str, list[Path]]:
        """Complete files by unit, those of a unit in order."""
        found: dict[str, list[Path]] = {}
        if self.folder.is_dir():
            for name in sorted(os.listdir(self.folder)):
                if name.endswith(_ENDING) and not name.startswith("."):
                    found.setdefault(_unit_of(name), []).append(self.folder / name)
        return found

    def remove_partial(self, unit: str) -> None:
        """Remove what an attempt that was killed left unfinished."""
        if self.folder.is_dir():
            for name in os.listdir(self.folder):
                if name.startswith(".") and name.endswith(PARTIAL) and _unit_of(name[1 : -len(PARTIAL)]) == unit:
                    (self.folder / name).unlink(missing_ok=True)

    def write(self, path: Path, rows: pa.Table) -> None:
        """Write rows of the table's columns, by bucket; the file is complete when this returns."""
        rows = rows.combine_chunks()
        bucket = bucket_of(rows["oid"], self.buckets)
        # NumPy sorts integers of 16 bits by counting.
        order = np.argsort(bucket.astype(np.uint16) if self.buckets <= 1 << 16 else bucket, kind="stable")
        bucket = bucket[order]
        rows = rows.take(pa.array(order)).combine_chunks()
        heads = np.flatnonzero(np.diff(bucket, prepend=-1))
        schema = self.table.schema.with_metadata({_BUCKETS: bucket[heads].astype("<u4").tobytes()})
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = rows.to_batches()[0]
        with open(path, "wb") as file:
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            with pa.ipc.new_file(file, schema, options=options) as writer:
                for start, end in zip(heads, [*heads[1:], len(bucket)], strict=True):
                    writer.write_batch(batch.slice(start, end - start))
            file.flush()
            os.fsync(file.fileno())

    def read(self, bucket: int, units: Collection[str]) -> Iterator[pa.Table]:
        """Rows of a bucket of some units, in an order that does not depend on that of the units."""
        parts = self.parts()
        for unit in sorted(units):
            for path in parts.get(unit, ()):
                with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
                    written = np.frombuffer(file.schema.metadata[_BUCKETS], "<u4")
                    place = np.flatnonzero(written == bucket)
                    if len(place):
                        yield pa.Table.from_batches([file.get_batch(int(place[0]))]).replace_schema_metadata()

    def read_all(self, buckets: Collection[int]) -> Iterator[pa.Table]:
        """Rows of some buckets of all units; what is removed in the meantime is left out."""
        for path in itertools.chain.from_iterable(self.parts().values()):
            try:
                with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
                    written = np.frombuffer(file.schema.metadata[_BUCKETS], "<u4")
                    for place in np.flatnonzero(np.isin(written, [*buckets])):
                        yield pa.Table.from_batches([file.get_batch(int(place))]).replace_schema_metadata()
            except FileNotFoundError:
                continue


class IncomingWriter:
    """Writes the parts of one unit of one table, which appear together.

    Parameters
    ----------
    files : IncomingFiles
    unit : str
    """

    def __init__(self, files: IncomingFiles, unit: str) -> None:
        self._files, self._unit = files, unit
        self._waiting: list[pa.Table] = []
        self._parts: list[Path] = []
        self.waiting_bytes = 0
        files.remove_partial(unit)

    def add(self, rows: pa.Table) -> None:
        """Hold rows back until :meth:`flush`."""
        if rows.num_rows:
            rows = self._files.table.conform(rows)
            self._waiting.append(rows)
            self.waiting_bytes += rows.nbytes

    def flush(self) -> None:
        """Write the rows that were held back as a part under a preliminary name."""
        if self._waiting:
            path = self._files.path(self._unit, len(self._parts))
            self._parts.append(path)
            rows, self._waiting, self.waiting_bytes = pa.concat_tables(self._waiting), [], 0
            self._files.write(partial_name(path), rows)

    def commit(self) -> None:
        """Give the parts their names, and remove those of an earlier attempt."""
        self.flush()
        for path in self._parts:
            partial_name(path).replace(path)
        for path in {*self._files.parts().get(self._unit, ())} - {*self._parts}:
            path.unlink(missing_ok=True)
        self._parts = []

    def abandon(self) -> None:
        """Remove what was written."""
        self._waiting, self.waiting_bytes = [], 0
        for path in self._parts:
            with suppress(OSError):
                partial_name(path).unlink(missing_ok=True)
        self._parts = []


def _unit_of(name: str) -> str:
    return name.removesuffix(_ENDING).rpartition(".")[0]
