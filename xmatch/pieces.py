"""Pieces of a catalogue in the making: blocks of rows sorted by declination zone, each in one file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmatch.cells import text_matrix
from xmatch.layout import NULL_INTEGER, ZONES_PER_DEGREE, Column, Section, count_zones
from xmatch.search import zones_of
from xmatch.sources import Reading, SourceColumn, text_width

POSITIONS, IDENTIFIERS = "positions.npy", "identifiers.npy"
ZONES = count_zones(ZONES_PER_DEGREE)
_MATRIX_FILES = {"double": ("doubles.npy", "<f8", np.nan), "int64": ("integers.npy", "<i8", NULL_INTEGER)}


class Piece(NamedTuple):
    """A file with `rows` rows: the array of each section, one after the other."""

    path: str
    rows: int
    sections: tuple[Section, ...]


class Refused(NamedTuple):
    """Numbers of rows left out, by reason."""

    position_missing: int
    position_out_of_range: int
    identifier_missing: int


def place_columns(reading: Reading) -> list[Column]:
    """Say in which file of the folder each column of the catalogue lies."""
    places = {
        reading.ra.source: (POSITIONS, 0),
        reading.dec.source: (POSITIONS, 1),
        reading.identifier.source: (IDENTIFIERS, 0),
    }
    for kind, (file, _, _) in _MATRIX_FILES.items():
        places |= {column.source: (file, k) for k, (_, column) in enumerate(_values_of(reading, kind))}
    places |= {column.source: (f"text_{k}.npy", 0) for k, (_, column) in enumerate(_values_of(reading, "string"))}
    return [Column(c.name, c.type, c.unit, *places[c.source], c.shown) for c in reading.columns]


def accepted(block: pa.Table) -> tuple[pa.Table, Refused]:
    """Rows that have a position on the sphere and an identifier, and the numbers of others."""
    ra, dec = block["ra"].to_numpy(), block["dec"].to_numpy()
    is_missing = np.isnan(ra) | np.isnan(dec)
    has_position = (ra >= 0.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    has_identifier = pc.is_valid(block["identifier"]).to_numpy()
    if block.schema.field("identifier").type == pa.string():
        has_identifier &= pc.not_equal(pc.fill_null(block["identifier"], ""), "").to_numpy()
    refused = Refused(
        int(np.count_nonzero(is_missing)),
        int(np.count_nonzero(~is_missing & ~has_position)),
        int(np.count_nonzero(has_position & ~has_identifier)),
    )
    is_accepted = has_position & has_identifier
    rows = block if is_accepted.all() else block.filter(pa.array(is_accepted))
    # One position has one spelling: 360 becomes 0, and adding zero turns -0.0 into 0.0.
    ra = np.where(ra == 360.0, 0.0, ra)[is_accepted] + 0.0
    dec = dec[is_accepted] + 0.0
    return rows.set_column(0, "ra", pa.array(ra)).set_column(1, "dec", pa.array(dec)), refused


def arrays_of(rows: pa.Table, reading: Reading) -> dict[str, NDArray]:
    """The rows as arrays [n, width] by their file in the catalogue; texts as wide as the longest."""
    arrays: dict[str, NDArray] = {POSITIONS: np.stack([rows["ra"].to_numpy(), rows["dec"].to_numpy()], axis=1)}
    if reading.identifier.type == "string":
        arrays[IDENTIFIERS] = text_matrix(rows["identifier"], text_width(rows["identifier"]))
    else:
        arrays[IDENTIFIERS] = rows["identifier"].to_numpy().reshape(-1, 1)
    for kind, (file, dtype, null) in _MATRIX_FILES.items():
        columns = _values_of(reading, kind)
        matrix = np.empty((rows.num_rows, len(columns)), dtype)
        for k, (name, _) in enumerate(columns):
            matrix[:, k] = pc.fill_null(rows[name], null).to_numpy()
        arrays[file] = matrix
    for k, (name, _) in enumerate(_values_of(reading, "string")):
        arrays[f"text_{k}.npy"] = text_matrix(rows[name], text_width(rows[name]))
    return arrays


def write_piece(path: Path, arrays: dict[str, NDArray]) -> tuple[Piece, NDArray[np.uint32]]:
    """Sort rows by zone, in their order within a zone, and write them; gives the piece and the rows of each zone."""
    zones = zones_of(np.ascontiguousarray(arrays[POSITIONS][:, 1]), ZONES_PER_DEGREE)
    order = np.argsort(zones.astype(np.uint16), kind="stable")
    sections = []
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        for name, array in arrays.items():
            sections.append(Section(name, array.dtype.str, array.shape[1]))
            if array.size:
                file.write(np.take(array, order, axis=0).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return Piece(str(path), len(order), tuple(sections)), np.bincount(zones, minlength=ZONES).astype(np.uint32)


def join_sections(pieces: Sequence[Piece]) -> tuple[Section, ...]:
    """Sections of a catalogue: those of the pieces, texts as wide as in the widest."""
    sections = list(pieces[0].sections)
    for piece in pieces[1:]:
        sections = [
            Section(a.file, a.dtype, max(a.width, b.width)) for a, b in zip(sections, piece.sections, strict=True)
        ]
    return tuple(sections)


def read_section(pieces: Sequence[Piece], ranges: NDArray[np.int64], number: int, section: Section) -> NDArray:
    """Values of a section from a range of rows of each piece, one after the other: [n, section.width].

    Parameters
    ----------
    pieces : sequence of m Piece
    ranges : int64 [m, 2]
        First row and end of each piece's range.
    number : int
        Place of the section in each piece.
    section : Section
        The section as the catalogue has it.
    """
    counts = ranges[:, 1] - ranges[:, 0]
    values = np.zeros((int(counts.sum()), section.width), section.dtype)
    begin = 0
    for k in np.flatnonzero(counts).tolist():
        piece, count = pieces[k], int(counts[k])
        own = piece.sections[number]
        start = piece.rows * sum(other.row_bytes for other in piece.sections[:number])
        with open(piece.path, "rb") as file:
            file.seek(start + int(ranges[k, 0]) * own.row_bytes)
            data = np.fromfile(file, own.dtype, count * own.width)
        values[begin : begin + count, : own.width] = data.reshape(count, own.width)
        begin += count
    return values


def _values_of(reading: Reading, kind: str) -> list[tuple[str, SourceColumn]]:
    """Value columns of one type, each with its name in the blocks that are read."""
    return [(f"value_{i}", column) for i, column in enumerate(reading.values) if column.type == kind]
