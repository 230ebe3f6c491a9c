"""The folder that holds a catalogue: `manifest.json`, plain `.npy` arrays in `index/`, a HATS catalogue beside them.

========================  ==================  =======================================================================
file                      array               content
========================  ==================  =======================================================================
index/positions.npy       float64 (rows, 2)   right ascension within [0, 360) and declination, degrees
index/identifiers.npy     uint8 (rows, w)     identifier as UTF-8, filled with zero bytes; or int64 (rows, 1)
index/doubles.npy         float64 (rows, k)   columns of type double, NaN where null
index/integers.npy        int64 (rows, k)     columns of type int64, the smallest int64 where null
index/text_<i>.npy        uint8 (rows, w)     column of type string as UTF-8, filled with zero bytes; empty is null
index/zone_rows.npy       int64 (zones + 1)   first row of each declination zone
index/zone_cells.npy      int64 (zones + 1)   first entry of each zone in `cell_rows`; a zone of c cells has c + 1
                                              entries, a zone without rows has none
index/cell_rows.npy       uint32 (entries)    first row of each cell, counted from the first row of its zone
========================  ==================  =======================================================================

Rows are sorted by zone, right ascension, declination, identifier. `zone_of` and `cell_of` of `xmatch.search` say which
zone and cell a position belongs to. Values of a row lie side by side because a match reads all columns of few rows:
from a disk, that is one page instead of one per column. Nothing in the format limits the number of rows, and nothing
is read at the opening but the manifest and the arrays' headers. The HATS part (`dataset/`, `partition_info.csv`,
`hats.properties`, `properties`, `point_map.fits`) is written by `xmatch.hats`; nothing here reads it.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FORMAT = "alertbeam-catalog"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INDEX_FOLDER = "index"
ZONES_PER_DEGREE = 360
ROWS_PER_CELL = 2
NULL_INTEGER = np.iinfo(np.int64).min
_HEADER_BYTES = 128


class CatalogError(Exception):
    """A catalogue that is missing, damaged, of another format, or that cannot be built; the text names the remedy."""


@dataclass(frozen=True)
class Column:
    """One column of a catalogue.

    Attributes
    ----------
    name : str
        Name in the tables of matches.
    type : str
        `double`, `int64` or `string`.
    unit : str or None
        Unit as VOTable spells it, None where there is none.
    file, index : str, int
        File that holds the values, and the column's place in it (0 for text).
    shown : bool
        Whether matches have the column unless other columns are asked for.
    """

    name: str
    type: str
    unit: str | None
    file: str
    index: int
    shown: bool = True


@dataclass(frozen=True)
class Section:
    """One array with a row per source.

    Attributes
    ----------
    file : str
        Its file in the catalogue.
    dtype : str
        `<f8`, `<i8`, or `|u1` for text.
    width : int
        Values of a row; bytes for text.
    """

    file: str
    dtype: str
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * self.width


def count_zones(zones_per_degree: int) -> int:
    """Number of declination zones; the last one holds only the north pole itself."""
    return 180 * zones_per_degree + 1


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def create_array(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Create an `.npy` file whose values are still zero; one of the same shape is left as it is."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    length = _HEADER_BYTES - 10
    header = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(header)
        file.truncate(_HEADER_BYTES + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def write_rows(path: Path, first_row: int, block: NDArray) -> None:
    """Write rows into an `.npy` file of `create_array`, and wait for the disk."""
    if block.size == 0:
        return
    with path.open("r+b") as file:
        file.seek(_HEADER_BYTES + first_row * block[0].nbytes)
        file.write(np.ascontiguousarray(block).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())


def save_array(path: Path, array: NDArray) -> None:
    """Write an `.npy` file, and wait for the disk."""
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
