"""Rows of light curves as bytes: a few kilobytes per object, read back for hundreds of objects at once.

A chunk holds rows of one object: a header, and compressed (LZ4) the object's name, the columns of each table one behind
the other, and the texts. A missing value is zero, and a bit says so. What concerns many chunks works on the columns of
all of them, with one pass per column that copies bytes.

Chunks are joined by putting their bytes behind each other, so that everything that takes chunks takes joined ones too.
Whatever the chunks, :func:`lightcurves.assembly.assemble` gives the same light curves for the same rows in them, how
often they are repeated, in what order, and wherever they were thinned.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightcurves.columns import DETECTION_INPUT, group_starts, lexsort
from lightcurves.packed_columns import Layout, PackedColumns, arrow_table, copy_pieces, ends_of, packed_columns
from lightcurves.store import StoreRows
from lightcurves.store_tables import CROSSMATCHES, DETECTIONS, NON_DETECTIONS
from lightcurves.unique import NO_CANDID, arrival, distinct_rows

#: Rows that come with corrected magnitudes (those of ALeRCE's tables) keep them; the others have nulls there.
_GIVEN: Final = tuple(field for field in DETECTION_INPUT if field.name not in DETECTIONS.schema.names)
PACKED_TABLES: Final = (
    replace(DETECTIONS, schema=pa.schema([*DETECTIONS.schema, *_GIVEN])),
    NON_DETECTIONS,
    CROSSMATCHES,
)
KEY_BYTES: Final = 8
_MAGIC, _VERSION = b"LC", 1
# Magic, version, bytes of the name, of the compressed and of the plain content, rows of each table.
_HEADER: Final = struct.Struct("<2sBxI II III")
_CODEC: Final = "lz4_raw"

_Bytes = NDArray[np.uint8]
_Integers = NDArray[np.int64]


class PackedRowsError(ValueError):
    """Bytes are no packed rows of light curves, or of a format that is not known here."""


class Chunk(NamedTuple):
    """Rows of one object that one alert brought.

    Attributes
    ----------
    oid : str
    key : bytes
        Digest of the rows, 8 bytes: the same whenever the alert brings the same rows.
    blob : bytes
    """

    oid: str
    key: bytes
    blob: bytes


def pack_by_alert(rows: StoreRows) -> list[Chunk]:
    """Pack rows of many objects, a chunk for each alert that brought some; rows without object or time are left out.

    Parameters
    ----------
    rows : StoreRows
        Any columns of the store's tables, and corrected magnitudes if they are given; values of wider types are
        rounded to those of the store.

    Raises
    ------
    ValueError
        If a column is of no fitting type; the message names it.
    """
    tables = _usable(rows)
    alerts = [arrival(tables[0])[1], arrival(tables[1])[1], pc.fill_null(tables[2]["candid"], NO_CANDID).to_numpy()]
    names, groups = _groups(tables, alerts)
    tables, groups = _without_repeats(tables, groups, len(names))
    return [
        Chunk(name, _key(counts, plain), _blob(name, counts, plain))
        for name, counts, plain in _split(tables, names, groups)
    ]


def pack_by_object(rows: StoreRows) -> dict[str, bytes]:
    """Pack rows of many objects, a chunk for each object, as :func:`pack_by_alert` does."""
    tables = _usable(rows)
    names, groups = _groups(tables, [np.zeros(table.num_rows, np.int64) for table in tables])
    return {name: _blob(name, counts, plain) for name, counts, plain in _split(tables, names, groups)}


def unpack(blobs: Iterable[bytes]) -> StoreRows:
    """Rows of chunks of any objects, in the order of the chunks.

    Parameters
    ----------
    blobs : iterable of bytes
        Each of one chunk, or of several behind each other.

    Returns
    -------
    StoreRows
        Detections have the columns of corrected magnitudes as well.

    Raises
    ------
    PackedRowsError
        If the bytes are damaged or of another format.
    """
    chunks = _Chunks.of(blobs)
    names, tables = pa.array(chunks.names, pa.string()), []
    for rows, counts in zip(chunks.joined(), chunks.counts.T, strict=True):
        tables.append(arrow_table(rows, names.take(pa.array(np.repeat(np.arange(len(names)), counts)))))
    return StoreRows(*tables)


def thinned(blobs: Iterable[bytes]) -> bytes:
    """One chunk with those rows of one object that are enough at any date, little more than each point once.

    Raises
    ------
    PackedRowsError
        If there is no chunk, or there are some of several objects; also as :func:`unpack`.
    """
    chunks = _Chunks.of(blobs)
    if len({*chunks.names}) != 1:
        raise PackedRowsError(f"rows of one object are thinned at once, not of {len({*chunks.names})}")
    name = chunks.names[0]
    kept = [rows.taken(_needed(rows, name)) for rows in chunks.joined()]
    counts = tuple(rows.count for rows in kept)
    parts = [name.encode(), *(rows.data.tobytes() for rows in kept), *(rows.texts.tobytes() for rows in kept)]
    return _blob(name, counts, b"".join(parts))


def lasting_rows(rows: StoreRows) -> StoreRows:
    """Those of unpacked rows of any objects that are enough at any date, sorted by object: the same for equal ones."""
    return StoreRows(
        *(part.take(pa.array(table.lasting(part).rows)) for table, part in zip(PACKED_TABLES, rows.tables, strict=True))
    )


_LAYOUTS: Final = tuple(map(Layout, PACKED_TABLES))


@dataclass(frozen=True)
class _Chunks:
    """Chunks as they were packed, behind each other.

    Attributes
    ----------
    names : list of str
        Of the object of each.
    counts : int64 array, shape (chunks, tables)
    data : uint8 array
    starts, ends : int64 array, shape (chunks,)
        Where the columns of each begin in `data`, and where its texts end.
    """

    names: list[str]
    counts: _Integers
    data: _Bytes
    starts: _Integers
    ends: _Integers

    @classmethod
    def of(cls, blobs: Iterable[bytes]) -> _Chunks:
        names, counts, plain, name_bytes = [], [], [], []
        for blob in blobs:
            for name, size, rows, content in _contents(blob):
                names.append(name)
                counts.append(rows)
                plain.append(content)
                name_bytes.append(size)
        ends = ends_of([len(content) for content in plain])
        table = np.array(counts, np.int64).reshape(len(counts), len(_LAYOUTS))
        starts = ends[:-1] + np.array(name_bytes, np.int64)
        return cls(names, table, np.frombuffer(b"".join(plain), np.uint8), starts, ends[1:])

    def joined(self) -> list[PackedColumns]:
        """Rows of each table, of all chunks."""
        columns, at = [], self.starts
        for layout, rows in zip(_LAYOUTS, self.counts.T, strict=True):
            data, ends = np.empty(int(rows.sum()) * layout.row_bytes, np.uint8), ends_of(rows)
            source = layout.places(at, rows, np.zeros_like(rows))
            target = layout.places(0, ends[-1], ends[:-1])
            copy_pieces(self.data, source, data, target, rows[:, None] * layout.widths)
            columns.append(PackedColumns(layout, int(ends[-1]), data, data[:0]))
            at = at + rows * layout.row_bytes
        # `at` is where the texts of each chunk begin now.
        text_sizes = [rows.text_sizes(counts) for rows, counts in zip(columns, self.counts.T, strict=True)]
        ends = at + sum(sizes.sum(axis=1) for sizes in text_sizes)
        if any((sizes < 0).any() for sizes in text_sizes) or (ends != self.ends).any():
            raise PackedRowsError("packed rows of light curves are damaged: their texts are not of the length given")
        found = []
        for rows, sizes in zip(columns, text_sizes, strict=True):
            texts = np.empty(int(sizes.sum()), np.uint8)
            source = at[:, None] + np.cumsum(sizes, axis=1) - sizes
            target = (ends_of(sizes.T)[:-1]).reshape(sizes.T.shape).T
            copy_pieces(self.data, source, texts, target, sizes)
            found.append(replace(rows, texts=texts))
            at = at + sizes.sum(axis=1)
        return found


def _contents(blob: bytes) -> Iterator[tuple[str, int, tuple[int, ...], bytes]]:
    """Name, bytes of the name, rows of each table and plain content of the chunks in some bytes."""
    codec, view, at = pa.Codec(_CODEC), memoryview(blob), 0
    while at < len(blob):
        try:
            magic, version, name, packed, size, *rows = _HEADER.unpack_from(blob, at)
        except struct.error as error:
            raise PackedRowsError(f"packed rows of light curves end too early: {error}") from error
        if magic != _MAGIC or version != _VERSION:
            raise PackedRowsError(
                f"these bytes are no packed rows of light curves of format {_VERSION}, which this version of "
                f"alertbeam reads: they begin with {bytes(view[at : at + 3])!r}"
            )
        at += _HEADER.size
        least = name + sum(count * layout.row_bytes for count, layout in zip(rows, _LAYOUTS, strict=True))
        if at + packed > len(blob) or size < least:
            raise PackedRowsError("packed rows of light curves end too early")
        try:
            content = codec.decompress(view[at : at + packed], size, asbytes=True)
            oid = content[:name].decode()
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise PackedRowsError(f"packed rows of light curves are damaged: {error}") from error
        yield oid, name, tuple(rows), content
        at += packed


def _blob(name: str, counts: Sequence[int], plain: bytes) -> bytes:
    packed = pa.Codec(_CODEC).compress(plain, asbytes=True)
    return _HEADER.pack(_MAGIC, _VERSION, len(name.encode()), len(packed), len(plain), *counts) + packed


def _key(counts: Sequence[int], plain: bytes) -> bytes:
    digest = hashlib.blake2b(np.array(counts, "<i8").tobytes(), digest_size=KEY_BYTES)
    digest.update(plain)
    return digest.digest()


def _usable(rows: StoreRows) -> list[pa.Table]:
    return [table.usable(table.conform(part)) for table, part in zip(PACKED_TABLES, rows.tables, strict=True)]


def _groups(tables: Sequence[pa.Table], alerts: Sequence[_Integers]) -> tuple[list[str], list[_Integers]]:
    """Name of the object of each group of rows of one object and alert, and the group of each row."""
    encoded = pa.chunked_array([table["oid"].combine_chunks() for table in tables]).combine_chunks().dictionary_encode()
    code, alert = encoded.indices.to_numpy().astype(np.int64), np.concatenate(alerts)
    order = lexsort([code, alert])
    starts = group_starts([code[order], alert[order]])
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(starts) - 1
    names = encoded.dictionary.take(pa.array(code[order][starts])).to_pylist()
    return names, np.split(group, np.cumsum([table.num_rows for table in tables])[:-1])


def _without_repeats(
    tables: Sequence[pa.Table], groups: Sequence[_Integers], count: int
) -> tuple[list[pa.Table], list[_Integers]]:
    """Rows without those that stand in a group twice: an alert that came twice is the same chunk as if it came once."""
    own = groups[0][pc.fill_null(tables[0]["has_stamp"], False).to_numpy()]
    repeated = np.bincount(own, minlength=count) > 1
    if not repeated.any():
        return list(tables), list(groups)
    found_tables, found_groups = [], []
    for table, group in zip(tables, groups, strict=True):
        among = np.flatnonzero(repeated[group])
        first = distinct_rows(table.take(pa.array(among)).combine_chunks()).rows if len(among) else among
        kept = np.sort(np.concatenate([np.flatnonzero(~repeated[group]), among[first] if len(among) else among]))
        found_tables.append(table.take(pa.array(kept)))
        found_groups.append(group[kept])
    return found_tables, found_groups


def _split(
    tables: Sequence[pa.Table], names: Sequence[str], groups: Sequence[_Integers]
) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, rows of each table and plain content of each group of rows."""
    parts, counts = [], np.empty((len(names), len(tables)), np.int64)
    for number, (layout, table, group) in enumerate(zip(_LAYOUTS, tables, groups, strict=True)):
        counts[:, number] = np.bincount(group, minlength=len(names))
        if (group[1:] < group[:-1]).any():
            table = table.take(pa.array(np.argsort(group, kind="stable")))
        parts.append(packed_columns(layout, table))
    encoded = [name.encode() for name in names]
    text_sizes = [part.text_sizes(rows) for part, rows in zip(parts, counts.T, strict=True)]
    row_bytes = np.array([layout.row_bytes for layout in _LAYOUTS])
    sizes = np.array([len(name) for name in encoded], np.int64) + counts @ row_bytes
    ends = ends_of(sizes + sum(part.sum(axis=1) for part in text_sizes))
    out = np.empty(int(ends[-1]), np.uint8)
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    name_ends = ends_of([len(name) for name in encoded])
    copy_pieces(joined, name_ends[:-1], out, ends[:-1], np.diff(name_ends))
    at = ends[:-1] + np.diff(name_ends)
    for part, rows in zip(parts, counts.T, strict=True):
        layout = part.layout
        source = layout.places(0, part.count, ends_of(rows)[:-1])
        copy_pieces(part.data, source, out, layout.places(at, rows, np.zeros_like(rows)), rows[:, None] * layout.widths)
        at = at + rows * layout.row_bytes
    for part, of_texts in zip(parts, text_sizes, strict=True):
        source = (ends_of(of_texts.T)[:-1]).reshape(of_texts.T.shape).T
        copy_pieces(part.texts, source, out, at[:, None] + np.cumsum(of_texts, axis=1) - of_texts, of_texts)
        at = at + of_texts.sum(axis=1)
    content = out.tobytes()
    bounds = zip(names, counts.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    for name, of_tables, start, end in bounds:
        yield name, tuple(of_tables), content[start:end]


def _needed(rows: PackedColumns, name: str) -> _Integers:
    """Rows of one object that last, and perhaps a few more, in their order."""
    if rows.count < 2:
        return np.arange(rows.count)
    found = _needed_matches(rows) if rows.layout.table is CROSSMATCHES else _needed_points(rows)
    if found is None:
        table = arrow_table(rows, pa.repeat(name, rows.count))
        found = rows.layout.table.lasting(table).rows
    return np.sort(found)


def _needed_matches(rows: PackedColumns) -> _Integers | None:
    """All rows if they are of different alerts; None if it takes a closer look."""
    candid = rows.column("candid")
    return np.arange(rows.count) if rows.valid("candid").all() and len(np.unique(candid)) == len(candid) else None


def _needed_points(rows: PackedColumns) -> _Integers | None:
    """Rows that no preferred row makes needless at any date; None if preference alone does not tell.

    It is :mod:`lightcurves.unique` for one object whose rows came with different alerts.
    """
    mjd, fid = rows.column("mjd"), rows.column("fid")
    identity, preference, own = [fid, mjd], [], np.full(rows.count, NO_CANDID)
    if "candid" in rows.layout.bits:
        named, forced = rows.valid("candid"), rows.column("forced") != 0
        if not (named | forced).all():
            return None
        own = np.where(named, rows.column("candid"), NO_CANDID)
        identity = [forced, own, np.where(named, 0, fid), np.where(named, 0.0, mjd)]
        preference = [rows.column("has_stamp") == 0]
    came_mjd = np.where(rows.valid("alert_mjd"), rows.column("alert_mjd"), mjd)
    preference += [came_mjd, np.where(rows.valid("alert_candid"), rows.column("alert_candid"), own)]
    order = lexsort([*identity, *preference])
    starts = group_starts([key[order] for key in identity])
    best = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    if (~starts & np.logical_and.reduce([key[order] == key[best] for key in preference])).any():
        return None
    known_mjd = np.maximum(mjd, came_mjd)
    return order[starts | (known_mjd[order] < known_mjd[best])]
