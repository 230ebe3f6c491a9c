"""Reading tables of sources: CSV (also gzip), Parquet and HATS catalogues as blocks of cleaned columns."""

import errno
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xmatch import csv_tables
from xmatch.download import fetch, sha256_of_text
from xmatch.hats import HatsListing, is_hats_folder, is_partition_column, is_url, list_hats
from xmatch.layout import CatalogError

# CDS name, name in IRSA's AllWISE release, unit. CDS: VizieR II/328; IRSA: AllWISE Source Catalog column descriptions.
_ALLWISE = (
    ("AllWISE", "designation", None),
    ("RAJ2000", "ra", "deg"),
    ("DEJ2000", "dec", "deg"),
    *((f"W{band}mag", f"w{band}mpro", "mag") for band in range(1, 5)),
    *((f"e_W{band}mag", f"w{band}sigmpro", "mag") for band in range(1, 5)),
    ("Jmag", "j_m_2mass", "mag"),
    ("e_Jmag", "j_msig_2mass", "mag"),
    ("Hmag", "h_m_2mass", "mag"),
    ("e_Hmag", "h_msig_2mass", "mag"),
    ("Kmag", "k_m_2mass", "mag"),
    ("e_Kmag", "k_msig_2mass", "mag"),
)
ALLWISE_COLUMNS = tuple(cds for cds, _, _ in _ALLWISE)
# IRSA's second name of a source, kept beside CDS's columns.
_ALLWISE_SOURCE_ID = "source_id"
_IRSA_NAMES = {cds: irsa for cds, irsa, _ in _ALLWISE}
_CDS_NAMES = {irsa: cds for cds, irsa in _IRSA_NAMES.items()}
_ALLWISE_UNITS = {cds: unit for cds, _, unit in _ALLWISE}

_RA_NAMES = ("RAJ2000", "RA_ICRS", "ra", "RA", "Ra", "_RAJ2000")
_DEC_NAMES = ("DEJ2000", "DE_ICRS", "dec", "DEC", "Dec", "_DEJ2000")
_IDENTIFIER_NAMES = ("AllWISE", "designation", "source_id", "Source", "objID", "objid", "id", "ID", "name")

_ARROW_TYPES = {"double": pa.float64(), "int64": pa.int64(), "string": pa.string()}
# Estimates for the size of a block of rows before it is read.
_BYTES_PER_VALUE = {"double": 8, "int64": 8, "string": 24}
_PARQUET_BUFFER_BYTES = 1 << 20
_CSV_BYTES_PER_ROW_BYTE = 1.5
# Taken for the size of a file that is still to be fetched.
_BYTES_OF_ADDRESS = 100_000_000


@dataclass(frozen=True)
class SourceColumn:
    """A wanted column.

    Attributes
    ----------
    name, source : str
        Name in the catalogue and in the input files.
    type : str
        `double`, `int64` or `string`.
    unit : str or None
    shown : bool
        Whether matches have it by default.
    """

    name: str
    source: str
    type: str
    unit: str | None
    shown: bool = True


@dataclass(frozen=True)
class Reading:
    """What is read from the input files: position and identifier columns, and the columns of the catalogue."""

    ra: SourceColumn
    dec: SourceColumn
    identifier: SourceColumn
    columns: tuple[SourceColumn, ...]

    @property
    def values(self) -> tuple[SourceColumn, ...]:
        """Columns of the catalogue other than position and identifier."""
        keys = (self.ra.source, self.dec.source, self.identifier.source)
        return tuple(column for column in self.columns if column.source not in keys)

    @property
    def row_bytes(self) -> int:
        """Rough size of a row in memory."""
        wanted = (self.ra, self.dec, self.identifier, *self.values)
        return sum(_BYTES_PER_VALUE[column.type] for column in wanted)


class InputFile(NamedTuple):
    """A file to read.

    `name` is its path or address, `size` its bytes (0 for an address), `state` a text that changes when it does.
    """

    name: str
    size: int
    state: str

    @property
    def path(self) -> Path:
        """Path of a local file."""
        return Path(self.name)


class Inputs(NamedTuple):
    """All files to read, and the HATS catalogue that the first of them belongs to, if any."""

    files: tuple[InputFile, ...]
    hats: HatsListing | None


class Unit(NamedTuple):
    """A part of an input file that one process reads: row groups or bytes `begin` to `end`; all of an address.

    `weight` is its share of the work.
    """

    file: InputFile
    begin: int
    end: int
    weight: int


def list_inputs(inputs: str | Path | Sequence[str | Path]) -> Inputs:
    """Files named by `inputs`; folders stand for the CSV and Parquet files below them, in the order of their names.

    Raises
    ------
    CatalogError
        If an input does not exist, or is not of a known kind.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    files: list[InputFile] = []
    first_hats: HatsListing | None = None
    for place in given:
        path = Path(place)
        if is_url(str(place)) or (path.is_dir() and is_hats_folder(path)):
            hats = list_hats(place)
            first_hats = hats if not files else first_hats
            state = sha256_of_text(hats.state)
            files += [InputFile(name, 0, state) if is_url(name) else input_file(Path(name)) for name in hats.files]
        elif path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.is_file() and _is_table(file))
            files += map(input_file, below)
        elif path.is_file():
            files.append(input_file(path))
        else:
            raise CatalogError(
                f"{place} does not exist; give CSV or Parquet files, folders of them, or a HATS catalogue."
            )
    for file in files:
        if not _is_table(file.path):
            raise CatalogError(f"{file.name} is neither .csv, .csv.gz nor .parquet; convert it to one of them.")
    if not files:
        raise CatalogError("There is no input to build from; give CSV or Parquet files, or folders of them.")
    return Inputs(tuple(files), first_hats)


def plan_reading(
    inputs: Inputs, name: str, ra: str | None, dec: str | None, identifier: str | None, columns: Sequence[str] | None
) -> Reading:
    """Choose the columns to read, by the options or else by the usual names, from those present in the first input.

    Raises
    ------
    CatalogError
        If a column is not found; the text names the option and the columns present.
    """
    first, hats = inputs.files[0], inputs.hats
    present, units = _describe(first, hats)
    sources = {
        "ra": _find("ra", ra or (hats.ra if hats else None), _RA_NAMES, present),
        "dec": _find("dec", dec or (hats.dec if hats else None), _DEC_NAMES, present),
        "identifier": _find(
            "identifier", identifier or (hats.identifier if hats else None), _IDENTIFIER_NAMES, present
        ),
    }
    hidden: list[str] = []
    if columns is not None:
        wanted = list(columns)
    elif name == "allwise":
        wanted = list(ALLWISE_COLUMNS)
        if sources["identifier"] not in (_IRSA_NAMES["AllWISE"], "AllWISE"):
            wanted.insert(0, sources["identifier"])
        elif _ALLWISE_SOURCE_ID in present:
            hidden = [_ALLWISE_SOURCE_ID]
    else:
        wanted = _own_columns(sources, present)
    if len(set(wanted)) < len(wanted):
        raise CatalogError(f"A column is asked twice: {', '.join(wanted)}.")
    is_csv = not _is_parquet(first.name)

    def described(column: str, source: str) -> SourceColumn:
        unit = _ALLWISE_UNITS.get(column) or units.get(source)
        if source in (sources["ra"], sources["dec"]):
            return SourceColumn(column, source, "double", "deg")
        if source == sources["identifier"]:
            kind = _identifier_type(source, present[source], is_csv)
        elif is_csv and column in _ALLWISE_UNITS:
            kind = "string" if column == "AllWISE" else "double"
        else:
            kind = _stored_type(source, present[source])
        return SourceColumn(column, source, kind, unit, column not in hidden)

    chosen = []
    for column in [*wanted, *hidden]:
        source = _IRSA_NAMES.get(column, column) if column not in present else column
        if source not in present:
            raise CatalogError(
                f"Column {column} is not in {first.name}; choose with the option columns among: {', '.join(present)}."
            )
        chosen.append(described(column, source))
    return Reading(
        ra=described(sources["ra"], sources["ra"]),
        dec=described(sources["dec"], sources["dec"]),
        identifier=described(sources["identifier"], sources["identifier"]),
        columns=tuple(chosen),
    )


def plan_units(inputs: Inputs, reading: Reading, block_bytes: int) -> list[Unit]:
    """Divide the inputs into parts of about `block_bytes` once they are in memory, where files can be divided.

    Raises
    ------
    CatalogError
        If a file cannot be read.
    """
    units: list[Unit] = []
    for file in inputs.files:
        with _reading_errors(file.name):
            if is_url(file.name):
                ranges = [(0, 0)]
            elif _is_parquet(file.name):
                ranges = _group_ranges(file.path, max(1, block_bytes // reading.row_bytes))
            elif csv_tables.is_gzip(file.path):
                ranges = [(0, file.size)]
            else:
                step = int(block_bytes * _CSV_BYTES_PER_ROW_BYTE)
                begin = csv_tables.read_layout(file.path).begin
                ranges = [(at, min(at + step, file.size)) for at in range(begin, max(file.size, begin + 1), step)]
        weight = (file.size or _BYTES_OF_ADDRESS) // max(1, len(ranges))
        units += [Unit(file, begin, end, weight) for begin, end in ranges]
    return units


@contextmanager
def local_copy(file: InputFile, scratch: Path) -> Iterator[Path]:
    """Path of a file while the block runs; an address is fetched to `scratch` for it.

    Raises
    ------
    CatalogError
        If the server has no such file.
    DownloadError
        If it could not be fetched.
    """
    if not is_url(file.name):
        yield file.path
        return
    try:
        if not fetch(file.name, scratch):
            raise CatalogError(f"{file.name} does not exist, although the HATS catalogue lists it.")
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def iter_loaders(unit: Unit, path: Path, reading: Reading, block_bytes: int) -> Iterator[Callable[[], pa.Table]]:
    """Yield functions that give the blocks of a unit, in order: columns `ra`, `dec`, `identifier`, `value_0`, ….

    Parameters
    ----------
    unit : Unit
    path : Path
        Where its file is.
    reading : Reading
    block_bytes : int
        Rough size of a block in memory.
    """
    wanted = (reading.ra, reading.dec, reading.identifier, *reading.values)
    sources = [column.source for column in wanted]
    names = ["ra", "dec", "identifier", *(f"value_{i}" for i in range(len(reading.values)))]
    types = {column.source: _ARROW_TYPES[column.type] for column in wanted}

    def loader(load: Callable[[], pa.Table]) -> Callable[[], pa.Table]:
        def cleaned() -> pa.Table:
            with _reading_errors(unit.file.name):
                return load().select(sources).rename_columns(names)

        return cleaned

    with _reading_errors(unit.file.name):
        if _is_parquet(unit.file.name):
            for table in _read_groups(path, unit, types, max(1, block_bytes // reading.row_bytes)):
                yield loader(partial(pa.Table.select, table, list(types)))
            return
        layout = csv_tables.read_layout(path)
        step = int(block_bytes * _CSV_BYTES_PER_ROW_BYTE)
        for block in csv_tables.iter_blocks(path, layout, unit.begin, unit.end, step):
            yield loader(partial(csv_tables.parse, block, layout, types))


def text_width(column: pa.ChunkedArray) -> int:
    """Number of UTF-8 bytes of the longest text of a string column, 1 at least."""
    return max(1, pc.max(pc.binary_length(column)).as_py() or 0)


@contextmanager
def _reading_errors(name: str) -> Iterator[None]:
    """Turn errors that the content of a file causes into a CatalogError; others pass."""
    try:
        yield
    except (pa.ArrowException, KeyError, OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EACCES, errno.EISDIR):
            raise
        text = " ".join(str(error).split())
        raise CatalogError(
            f"{name} cannot be read as a table with the columns and types of the first input: {text}"
        ) from error


def input_file(path: Path) -> InputFile:
    """Describe a local file."""
    status = path.stat()
    return InputFile(str(path.absolute()), status.st_size, str(status.st_mtime_ns))


def _is_parquet(name: str) -> bool:
    return name.lower().endswith((".parquet", ".parq", ".pq"))


def _is_table(path: Path) -> bool:
    return _is_parquet(path.name) or path.name.lower().endswith((".csv", ".csv.gz"))


def _group_ranges(path: Path, most_rows: int) -> list[tuple[int, int]]:
    """Ranges of row groups with about `most_rows` rows, one group at least."""
    metadata = pq.read_metadata(path)
    ranges: list[tuple[int, int]] = []
    begin = rows = 0
    for group in range(metadata.num_row_groups):
        group_rows = metadata.row_group(group).num_rows
        if group > begin and rows + group_rows > most_rows:
            ranges.append((begin, group))
            begin, rows = group, 0
        rows += group_rows
    if begin < metadata.num_row_groups:
        ranges.append((begin, metadata.num_row_groups))
    return ranges


def _read_groups(path: Path, unit: Unit, types: dict[str, pa.DataType], rows: int) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
        groups = range(unit.begin, unit.end) if not is_url(unit.file.name) else range(file.num_row_groups)
        absent = [name for name in types if name not in file.schema_arrow.names]
        if absent:
            raise KeyError(f"there is no column {absent[0]}")
        for batch in file.iter_batches(rows, row_groups=list(groups), columns=list(types), use_threads=False):
            yield pa.Table.from_batches([batch]).select(list(types)).cast(pa.schema(types))


def _describe(file: InputFile, hats: HatsListing | None) -> tuple[dict[str, pa.DataType], dict[str, str]]:
    """Types and units of the columns of the first input."""
    with _reading_errors(file.name):
        if hats is not None and hats.schema is not None:
            schema = hats.schema
        elif is_url(file.name):
            raise CatalogError(f"{file.name} belongs to a HATS catalogue without dataset/_common_metadata.")
        elif _is_parquet(file.name):
            schema = pq.read_schema(file.path)
        else:
            layout = csv_tables.read_layout(file.path)
            return csv_tables.column_types(file.path, layout), dict(layout.units)
    units = {field.name: field.metadata[b"unit"].decode() for field in schema if b"unit" in (field.metadata or {})}
    return {field.name: field.type for field in schema}, units


def _find(option: str, given: str | None, usual: Sequence[str], present: dict[str, pa.DataType]) -> str:
    for name in _spellings(given) if given else usual:
        if name in present:
            return name
    sought = f"{given} is not there" if given else f"none of {', '.join(usual)} is there"
    raise CatalogError(f"No column for {option}: {sought}; set the option {option} to one of: {', '.join(present)}.")


def _spellings(name: str) -> tuple[str, ...]:
    """A column's name, and what CDS and IRSA call it in AllWISE."""
    return tuple(dict.fromkeys((name, _IRSA_NAMES.get(name, name), _CDS_NAMES.get(name, name))))


def _own_columns(sources: dict[str, str], present: dict[str, pa.DataType]) -> list[str]:
    """Identifier, position, then the others, without those that a CDS answer adds about the positions asked."""
    first = [sources["identifier"], sources["ra"], sources["dec"]]
    others = [
        name
        for name, kind in present.items()
        if name not in first
        and name not in ("angDist", "col1")
        and not name.endswith("_in")
        and not is_partition_column(name)
        and not pa.types.is_nested(kind)
        and not pa.types.is_binary(kind)
    ]
    return first + others


def _stored_type(source: str, kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return "double"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "int64"
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise CatalogError(
            f"Column {source} has type {kind}, which a catalogue does not hold; leave it out of columns."
        )
    return "string"


def _identifier_type(source: str, kind: pa.DataType, is_csv: bool) -> str:
    stored = _stored_type(source, kind)
    if stored != "double":
        return stored
    if is_csv:
        return "string"
    raise CatalogError(f"Column {source} has type {kind}; the identifier must be text or integers.")
