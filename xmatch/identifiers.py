"""Rows of a catalogue by identifier: hashes of all identifiers, sorted, beside the catalogue in a folder of their own.

========================  ==================  ================================================================
file                      array               content
========================  ==================  ================================================================
identifier_hashes.npy     uint64 (rows)       64-bit hashes of the identifiers, rising
identifier_rows.npy       uint32 or int64     row of the catalogue that each hash belongs to
identifier_index.json                         sha256 of the catalogue's manifest that the index was built from
========================  ==================  ================================================================

Hashes are spread evenly, so that the place of one among the sorted ones can be guessed: a look-up touches a few pages
whatever the size of the catalogue. What is found is compared with the identifier itself.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from xmatch.catalog import Catalog
from xmatch.layout import CatalogError

FOLDER = "identifier_index"
_HASHES, _ROWS, _ORIGIN = "identifier_hashes.npy", "identifier_rows.npy", "identifier_index.json"
_FORMAT = 1
_ROWS_PER_CHUNK = 1 << 20
_PAIR = np.dtype([("hash", np.uint64), ("row", np.int64)])
# A part is sorted in memory: its pairs, their order, and the sorted copies.
_SORT_BYTES_PER_ROW = 4 * _PAIR.itemsize
_INT64_DIGITS = 20

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIX1, _MIX2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


@numba.njit(cache=True, nogil=True, inline="always")
def _hash(cells, row):
    """FNV-1a over the cells of a row (Fowler, Noll, Vo), then the finaliser of MurmurHash3, which spreads the bits."""
    value = _FNV_OFFSET
    for k in range(cells.shape[1]):
        value = (value ^ np.uint64(cells[row, k])) * _FNV_PRIME
    value = (value ^ (value >> _SHIFT)) * _MIX1
    value = (value ^ (value >> _SHIFT)) * _MIX2
    return value ^ (value >> _SHIFT)


@numba.njit(cache=True, nogil=True)
def _hash_rows(cells, first_row, pairs):
    for row in range(cells.shape[0]):
        pairs[row].hash = _hash(cells, row)
        pairs[row].row = first_row + row


@numba.njit(cache=True, nogil=True, inline="always")
def _first_not_below(hashes, wanted):
    """Place of the first hash that is not below `wanted`: guessed, enclosed by doubling steps, then halved."""
    count = hashes.shape[0]
    low = min(np.int64(np.float64(wanted) * (1.0 / 18446744073709551616.0) * count), count - 1)
    high = low
    step = 1
    while low > 0 and hashes[low - 1] >= wanted:
        low = max(low - step, 0)
        step *= 2
    step = 1
    while high < count and hashes[high] < wanted:
        high = min(high + step, count)
        step *= 2
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def _find(wanted, identifiers, hashes, rows, found):
    """Fill `found` with the first row that has each identifier wanted, -1 where none has."""
    for i in range(wanted.shape[0]):
        found[i] = -1
        key = _hash(wanted, i)
        place = _first_not_below(hashes, key)
        while place < hashes.shape[0] and hashes[place] == key:
            row = np.int64(rows[place])
            place += 1
            same = row < identifiers.shape[0]
            for k in range(wanted.shape[1]):
                same = same and identifiers[row, k] == wanted[i, k]
            if same and (found[i] < 0 or row < found[i]):
                found[i] = row


@dataclass(frozen=True, eq=False)
class IdentifierIndex:
    """Finds rows by identifier; its arrays are memory maps.

    Attributes
    ----------
    identifiers : uint8 [n, width] or int64 [n, 1]
        The catalogue's identifiers.
    hashes : uint64 [n]
    rows : uint32 or int64 [n]
    """

    identifiers: NDArray
    hashes: NDArray[np.uint64]
    rows: NDArray

    def find(self, identifiers: Sequence[str]) -> NDArray[np.int64]:
        """First row that has each identifier (integers in plain decimal spelling), -1 where none has: int64 [n]."""
        is_text = self.identifiers.dtype == np.uint8
        cells, possible = (
            _text_cells(identifiers, self.identifiers.shape[1]) if is_text else _integer_cells(identifiers)
        )
        found = np.empty(len(identifiers), np.int64)
        _find(cells, self.identifiers, self.hashes, self.rows, found)
        return np.where(possible, found, -1)


def open_identifiers(
    catalog: Catalog,
    folder: str | Path | None = None,
    *,
    memory_bytes: int = 1 << 30,
    report: Callable[[str], None] = lambda text: None,
) -> IdentifierIndex:
    """Open the identifier index of a catalogue; builds it first if there is none or the catalogue has changed.

    Parameters
    ----------
    catalog : Catalog
    folder : path, optional
        Where the index lies; by default in the catalogue's folder. Several catalogues can share it.
    memory_bytes : int
        Bound on the memory of a build.
    report : function of str
        Told before a build.

    Raises
    ------
    CatalogError
        If the folder cannot be written.
    """
    place = catalog.path / FOLDER if folder is None else Path(folder).absolute() / f"{catalog.name}-{FOLDER}"
    origin = _origin(catalog)
    if _read_origin(place) != origin:
        report(f"building the identifier index of {catalog.name} ({catalog.rows:,} rows) in {place}")
        try:
            _build(catalog, place, origin, memory_bytes)
        except OSError as error:
            raise CatalogError(
                f"The identifier index of {catalog.name} cannot be written to {place}: {error}; name another folder."
            ) from error
    hashes, rows = (np.load(place / name, mmap_mode="r").view(np.ndarray) for name in (_HASHES, _ROWS))
    if hashes.shape != (catalog.rows,) or rows.shape != (catalog.rows,):
        raise CatalogError(f"{place} is damaged; remove the folder, it will be built again.")
    return IdentifierIndex(catalog.index.identifiers, hashes, rows)


def _origin(catalog: Catalog) -> dict[str, Any]:
    manifest = json.dumps(catalog.manifest, sort_keys=True).encode()
    return {"format_version": _FORMAT, "manifest_sha256": hashlib.sha256(manifest).hexdigest()}


def _read_origin(place: Path) -> Any:
    try:
        return json.loads((place / _ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _build(catalog: Catalog, place: Path, origin: dict[str, Any], memory_bytes: int) -> None:
    """Write the index beside its place and move it there once it is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{place.name}.building-", dir=place.parent))
    try:
        bits = max(0, (catalog.rows * _SORT_BYTES_PER_ROW // memory_bytes).bit_length())
        parts = _write_parts(catalog, building, bits)
        _sort_parts(catalog.rows, building, parts)
        (building / _ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")
        _move(building, place, origin)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _move(building: Path, place: Path, origin: dict[str, Any]) -> None:
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    if place.exists():
        place.rename(old)
    try:
        building.chmod(0o755)
        building.rename(place)
    except OSError:
        # Another process may have been faster with the same index.
        if _read_origin(place) != origin:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_parts(catalog: Catalog, folder: Path, bits: int) -> list[Path]:
    """Write the pairs of hash and row to 2**bits files by the first bits of the hash, each in order of the rows."""
    paths = [folder / f"part_{part}" for part in range(1 << bits)]
    identifiers = catalog.index.identifiers
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for begin in range(0, catalog.rows, _ROWS_PER_CHUNK):
            cells = identifiers[begin : begin + _ROWS_PER_CHUNK]
            pairs = np.empty(len(cells), _PAIR)
            _hash_rows(cells, begin, pairs)
            if bits == 0:
                pairs.tofile(files[0])
                continue
            part = (pairs["hash"] >> np.uint64(64 - bits)).astype(np.int64)
            pairs = pairs[np.argsort(part, kind="stable")]
            ends = np.cumsum(np.bincount(part, minlength=len(files)))
            for file, block in zip(files, np.split(pairs, ends[:-1]), strict=True):
                block.tofile(file)
    return paths


def _sort_parts(rows: int, folder: Path, parts: list[Path]) -> None:
    rows_type = np.uint32 if rows <= 1 << 32 else np.int64
    hashes = np.lib.format.open_memmap(folder / _HASHES, "w+", np.uint64, (rows,))
    numbers = np.lib.format.open_memmap(folder / _ROWS, "w+", rows_type, (rows,))
    begin = 0
    for path in parts:
        pairs = np.fromfile(path, _PAIR)
        path.unlink()
        order = np.argsort(pairs["hash"], kind="stable")
        hashes[begin : begin + len(pairs)] = pairs["hash"][order]
        numbers[begin : begin + len(pairs)] = pairs["row"][order]
        begin += len(pairs)


def _text_cells(identifiers: Sequence[str], width: int) -> tuple[NDArray, NDArray[np.bool_]]:
    """UTF-8 of identifiers, filled with zero bytes, and which of them the catalogue's width and filling allow."""
    texts = [identifier.encode("utf-8", "replace") for identifier in identifiers]
    cells = np.array(texts, f"S{width}").view(np.uint8).reshape(len(texts), width)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return cells, (lengths == np.count_nonzero(cells, axis=1)) & (lengths > 0)


def _integer_cells(identifiers: Sequence[str]) -> tuple[NDArray, NDArray[np.bool_]]:
    limits = np.iinfo(np.int64)
    values = np.zeros((len(identifiers), 1), np.int64)
    possible = np.zeros(len(identifiers), np.bool_)
    for i, identifier in enumerate(identifiers):
        if identifier.isascii() and identifier.removeprefix("-").isdigit() and len(identifier) <= _INT64_DIGITS:
            value = int(identifier)
            if str(value) == identifier and limits.min <= value <= limits.max:
                values[i, 0], possible[i] = value, True
    return values, possible
