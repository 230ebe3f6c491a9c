"""The folder that holds a catalogue: `manifest.json` and plain `.npy` arrays, read through memory maps.

==================  ==================  =============================================================================
file                array               content
==================  ==================  =============================================================================
positions.npy       float64 (rows, 2)   right ascension within [0, 360) and declination, degrees
identifiers.npy     uint8 (rows, w)     identifier as UTF-8, filled with zero bytes; or int64 (rows, 1)
doubles.npy         float64 (rows, k)   columns of type double, NaN where null
integers.npy        int64 (rows, k)     columns of type int64, the smallest int64 where null
text_<i>.npy        uint8 (rows, w)     column of type string as UTF-8, filled with zero bytes; empty is null
zone_rows.npy       int64 (zones + 1)   first row of each declination zone
zone_cells.npy      int64 (zones + 1)   first entry of each zone in `cell_rows`; a zone of c cells has c + 1 entries,
                                        a zone without rows has none
cell_rows.npy       uint32 (entries)    first row of each cell, counted from the first row of its zone
==================  ==================  =============================================================================

Rows are sorted by zone, right ascension, declination, identifier. `zone_of` and `cell_of` of `xmatch.search` say which
zone and cell a position belongs to. Values of a row lie side by side because a match reads all columns of few rows:
from a disk, that is one page instead of one per column. Nothing in the format limits the number of rows, and nothing
is read at the opening but the manifest and the arrays' headers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMAT = "alertbeam-catalog"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ZONES_PER_DEGREE = 360
ROWS_PER_CELL = 2
NULL_INTEGER = np.iinfo(np.int64).min
INDEX_FILES = ("zone_rows.npy", "zone_cells.npy", "cell_rows.npy")


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
    """

    name: str
    type: str
    unit: str | None
    file: str
    index: int


def count_zones(zones_per_degree: int) -> int:
    """Number of declination zones; the last one holds only the north pole itself."""
    return 180 * zones_per_degree + 1


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
