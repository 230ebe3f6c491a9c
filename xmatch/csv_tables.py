"""CSV files as VizieR and others write them, block by block: comment lines, units below the names, blank cells."""

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from isal import igzip

_HEAD_BYTES = 1 << 20
_SAMPLE_BYTES = 8 << 20
_DELIMITERS = ",;\t|"
_DEGREES = frozenset({"deg", "degree", "degrees"})
_NULLS = [*pacsv.ConvertOptions().null_values, *(" " * count for count in range(1, 65))]
_COMMENTS = re.compile(rb"^#[^\n]*\n?", re.MULTILINE)


@dataclass(frozen=True)
class CsvLayout:
    """How a CSV file is written.

    Attributes
    ----------
    names : tuple of str
        Names of its columns.
    units : mapping of str to str
        Units by name, where a line below the names holds them.
    delimiter : str
    begin : int
        Number of (inflated) bytes before the rows.
    has_comments : bool
        Whether there are lines that begin with `#`.
    is_padded : bool
        Whether cells are filled up with blanks.
    """

    names: tuple[str, ...]
    units: Mapping[str, str] = field(hash=False)
    delimiter: str
    begin: int
    has_comments: bool
    is_padded: bool


def is_gzip(path: Path) -> bool:
    """Whether the file's content is gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_layout(path: Path) -> CsvLayout:
    """Find the names, units and first row of a CSV file.

    Raises
    ------
    ValueError
        If there is no line with names.
    """
    with closing(_open(path)) as file:
        head = file.read(_HEAD_BYTES)
    begin = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    lines: list[list[str]] = []
    has_comments = False
    delimiter = ","
    while len(lines) < 3 and begin < len(head):
        end = head.find(b"\n", begin) + 1 or len(head)
        line = head[begin:end].decode("utf-8", "replace").strip("\r\n")
        is_comment, is_blank = line.startswith("#"), not line.strip()
        has_comments |= is_comment
        if not (is_comment or is_blank):
            if not lines:
                delimiter = max(_DELIMITERS, key=line.count)
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
            if lines and not (_are_units(cells) or _are_rules(cells)):
                break
            lines.append(cells)
        begin = end
    if not lines:
        raise ValueError("there is no line with the names of the columns")
    units = next((line for line in lines[1:] if _are_units(line)), [])
    return CsvLayout(
        names=tuple(lines[0]),
        units={name: unit for name, unit in zip(lines[0], units, strict=False) if unit},
        delimiter=delimiter,
        begin=begin,
        has_comments=has_comments or b"\n#" in head,
        is_padded=f" {delimiter}".encode() in head[begin:] or f"{delimiter} ".encode() in head[begin:],
    )


def column_types(path: Path, layout: CsvLayout) -> dict[str, pa.DataType]:
    """Types of the columns by samples: the beginning, and of a plain file the middle and the end as well."""
    size = path.stat().st_size
    if is_gzip(path) or size - layout.begin <= 3 * _SAMPLE_BYTES:
        samples = [next(iter_blocks(path, layout, layout.begin, size, _SAMPLE_BYTES), b"")]
        if not is_gzip(path):
            samples = list(iter_blocks(path, layout, layout.begin, size, _SAMPLE_BYTES))
    else:
        places = (layout.begin, (layout.begin + size) // 2, size - _SAMPLE_BYTES)
        samples = [next(iter_blocks(path, layout, place, place + _SAMPLE_BYTES, _SAMPLE_BYTES)) for place in places]
    types: dict[str, pa.DataType] = {}
    for sample in samples or [b""]:
        for name, kind in ((column.name, column.type) for column in parse(sample, layout, None).schema):
            types[name] = _common_type(types.get(name, kind), kind)
    return types


def iter_blocks(path: Path, layout: CsvLayout, begin: int, end: int, block_bytes: int) -> Iterator[bytes]:
    """Whole lines that begin within the bytes `begin` to `end`, in blocks; of a gzip file all lines."""
    with closing(_open(path)) as file:
        if is_gzip(path):
            file.read(layout.begin)
            begin, end = 0, 1 << 62
        elif begin > layout.begin:
            # The line that byte `begin` lies in belongs to the range before, unless it begins there.
            file.seek(begin - 1)
            file.readline()
            begin = file.tell()
        else:
            file.seek(begin)
        while begin < end and (block := file.read(min(block_bytes, end - begin))):
            if not block.endswith(b"\n"):
                block += file.readline()
            begin += len(block)
            yield block


def parse(block: bytes, layout: CsvLayout, types: Mapping[str, pa.DataType] | None) -> pa.Table:
    """Rows of a block; columns of the types given, or all columns with guessed types.

    Raises
    ------
    pyarrow.ArrowInvalid
        If a cell is not of its column's type, or a line has another number of cells.
    """
    if layout.has_comments:
        block = _COMMENTS.sub(b"", block)
    convert = pacsv.ConvertOptions(
        column_types=types,
        include_columns=list(types) if types is not None else None,
        strings_can_be_null=True,
        null_values=_NULLS,
    )
    if not block.strip():
        guessed = dict.fromkeys(layout.names, pa.null()) if types is None else types
        return pa.schema(guessed).empty_table()
    table = pacsv.read_csv(
        pa.BufferReader(block),
        read_options=pacsv.ReadOptions(column_names=list(layout.names), use_threads=False, block_size=len(block) + 1),
        parse_options=pacsv.ParseOptions(delimiter=layout.delimiter),
        convert_options=convert,
    )
    return _trimmed(table) if layout.is_padded else table


def _open(path: Path) -> IO[bytes]:
    return igzip.open(path, "rb") if is_gzip(path) else path.open("rb")


def _trimmed(table: pa.Table) -> pa.Table:
    for place, column in enumerate(table.schema):
        if pa.types.is_string(column.type):
            table = table.set_column(place, column, pc.utf8_trim_whitespace(table[column.name]))
    return table


def _are_units(cells: list[str]) -> bool:
    """Whether a line holds units: some cell is a degree, and none is a number."""
    return any(cell in _DEGREES for cell in cells) and not any(map(_is_number, cells))


def _are_rules(cells: list[str]) -> bool:
    return all(set(cell) <= {"-"} for cell in cells) and any(cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (first, second))
    return pa.float64() if numbers else pa.string()
