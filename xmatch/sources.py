"""Reading tables of sources: CSV (also gzip) and Parquet files as batches of cleaned columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

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
_IRSA_NAMES = {cds: irsa for cds, irsa, _ in _ALLWISE}
_ALLWISE_UNITS = {cds: unit for cds, _, unit in _ALLWISE}

_RA_NAMES = ("RAJ2000", "RA_ICRS", "ra", "RA", "Ra", "_RAJ2000")
_DEC_NAMES = ("DEJ2000", "DE_ICRS", "dec", "DEC", "Dec", "_DEJ2000")
_IDENTIFIER_NAMES = ("AllWISE", "designation", "source_id", "Source", "objID", "objid", "id", "ID", "name")

_CSV_BLOCK_BYTES = 16 << 20
_PARQUET_BATCH_ROWS = 1 << 18
_ARROW_TYPES = {"double": pa.float64(), "int64": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class SourceColumn:
    """A wanted column: its name in the catalogue, in the input files, its type (`double`, `int64`, `string`), unit."""

    name: str
    source: str
    type: str
    unit: str | None


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


def list_inputs(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files named by `inputs`; folders stand for the CSV and Parquet files below them, in the order of their names."""
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.is_file() and _is_table(file))
        elif path.is_file():
            files.append(path)
        else:
            raise CatalogError(f"{path} does not exist; give CSV or Parquet files, or folders of them.")
    for file in files:
        if not _is_table(file):
            raise CatalogError(f"{file} is neither .csv, .csv.gz nor .parquet; convert it to one of them.")
    if not files:
        raise CatalogError("There is no input to build from; give CSV or Parquet files, or folders of them.")
    return files


def plan_reading(
    path: Path, name: str, ra: str | None, dec: str | None, identifier: str | None, columns: Sequence[str] | None
) -> Reading:
    """Choose the columns to read, by the options or else by the usual names, from those present in `path`.

    Raises
    ------
    CatalogError
        If a column is not found; the text names the option and the columns present.
    """
    present = _column_types(path)
    sources = {
        "ra": _find("ra", ra, _RA_NAMES, present),
        "dec": _find("dec", dec, _DEC_NAMES, present),
        "identifier": _find("identifier", identifier, _IDENTIFIER_NAMES, present),
    }
    is_allwise = name == "allwise"
    if columns is not None:
        wanted = list(columns)
    elif is_allwise:
        wanted = list(ALLWISE_COLUMNS)
    else:
        wanted = _own_columns(sources, present)
    if len(set(wanted)) < len(wanted):
        raise CatalogError(f"A column is asked twice: {', '.join(wanted)}.")
    chosen = []
    for column in wanted:
        source = _IRSA_NAMES.get(column, column) if column not in present else column
        if source not in present:
            raise CatalogError(
                f"Column {column} is not in {path}; choose with the option columns among: {', '.join(present)}."
            )
        unit = "deg" if source in (sources["ra"], sources["dec"]) else _ALLWISE_UNITS.get(column)
        chosen.append((column, source, unit))

    is_csv = not _is_parquet(path)

    def described(column: str, source: str, unit: str | None) -> SourceColumn:
        if source in (sources["ra"], sources["dec"]):
            return SourceColumn(column, source, "double", "deg")
        if source == sources["identifier"]:
            return SourceColumn(column, source, _identifier_type(source, present[source], is_csv), unit)
        if is_csv and column in _ALLWISE_UNITS:
            return SourceColumn(column, source, "string" if column == "AllWISE" else "double", unit)
        return SourceColumn(column, source, _stored_type(source, present[source]), unit)

    return Reading(
        ra=described(sources["ra"], sources["ra"], "deg"),
        dec=described(sources["dec"], sources["dec"], "deg"),
        identifier=described(sources["identifier"], sources["identifier"], None),
        columns=tuple(described(*each) for each in chosen),
    )


def read_batches(path: Path, reading: Reading) -> Iterator[pa.Table]:
    """Yield tables with columns `ra`, `dec`, `identifier` and `value_0`, `value_1`, … (`reading.values`)."""
    wanted = (reading.ra, reading.dec, reading.identifier, *reading.values)
    names = ["ra", "dec", "identifier", *(f"value_{i}" for i in range(len(reading.values)))]
    types = {column.source: _ARROW_TYPES[column.type] for column in wanted}
    try:
        for batch in _read_parquet(path, types) if _is_parquet(path) else _read_csv(path, types):
            yield batch.select([column.source for column in wanted]).rename_columns(names)
    except (pa.ArrowException, KeyError, OSError, EOFError, ValueError) as error:
        raise CatalogError(f"{path} cannot be read with the columns and types of the first input: {error}") from error


def _read_parquet(path: Path, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_PARQUET_BATCH_ROWS, columns=list(types)):
            yield pa.Table.from_batches([batch]).select(list(types)).cast(pa.schema(types))


def _read_csv(path: Path, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    options = pacsv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True)
    with _open_csv(path, options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def text_width(column: pa.ChunkedArray) -> int:
    """Number of UTF-8 bytes of the longest text of a string column, 1 at least."""
    return max(1, pc.max(pc.binary_length(column)).as_py() or 0)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".parq", ".pq")


def _is_table(path: Path) -> bool:
    return _is_parquet(path) or path.name.lower().endswith((".csv", ".csv.gz"))


def _open_csv(path: Path, options: pacsv.ConvertOptions | None = None) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        convert_options=options,
    )


def _column_types(path: Path) -> dict[str, pa.DataType]:
    try:
        if _is_parquet(path):
            schema = pq.read_schema(path)
        else:
            with _open_csv(path) as reader:
                schema = reader.schema
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise CatalogError(f"{path} cannot be read as a table: {error}") from error
    return {field.name: field.type for field in schema}


def _find(option: str, given: str | None, usual: Sequence[str], present: dict[str, pa.DataType]) -> str:
    for name in [given] if given else usual:
        if name in present:
            return name
    sought = f"{given} is not there" if given else f"none of {', '.join(usual)} is there"
    raise CatalogError(f"No column for {option}: {sought}; set the option {option} to one of: {', '.join(present)}.")


def _own_columns(sources: dict[str, str], present: dict[str, pa.DataType]) -> list[str]:
    """Identifier, position, then the others, without those that a CDS answer adds about the positions asked."""
    first = [sources["identifier"], sources["ra"], sources["dec"]]
    others = [
        name
        for name, kind in present.items()
        if name not in first
        and name not in ("angDist", "col1")
        and not name.endswith("_in")
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
