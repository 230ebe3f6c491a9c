"""A catalogue of sources on disk: build it from tables, open it in milliseconds, take rows from it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from xmatch.cells import take_columns
from xmatch.jobs import Progress
from xmatch.layout import FORMAT, FORMAT_VERSION, INDEX_FOLDER, MANIFEST, CatalogError, Column, count_zones, sha256_of

__all__ = ["Catalog", "CatalogError", "Column", "Index", "build_catalog", "open_catalog"]

# Bounds the 32-bit offsets of Arrow strings and the memory of one gather.
_ROWS_PER_CHUNK = 4 << 20


class Index(NamedTuple):
    """Arrays that the search reads, in the order of its arguments; see `xmatch.layout`."""

    zones_per_degree: float
    positions: NDArray[np.float64]
    identifiers: NDArray
    zone_rows: NDArray[np.int64]
    zone_cells: NDArray[np.int64]
    cell_rows: NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Catalog:
    """An open catalogue. Its arrays are memory maps, shared with other processes; a pickle holds the path only.

    Attributes
    ----------
    path : Path
        Folder of the catalogue.
    name, version : str
        What it was built as, for instance `allwise`.
    created : str
        Time of the build, ISO 8601 in UTC.
    rows : int
        Number of sources.
    columns : tuple of str
        Names of the columns that matches have by default, in order.
    fields : tuple of Column
        All columns with types and units.
    manifest : dict
        All of `manifest.json`.
    index : Index
        The arrays that a search reads.
    """

    path: Path
    name: str
    version: str
    created: str
    rows: int
    columns: tuple[str, ...]
    fields: tuple[Column, ...] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)
    index: Index = field(repr=False)
    _arrays: dict[str, NDArray] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_catalog, (self.path,)

    def take(self, rows: ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of the given rows.

        Parameters
        ----------
        rows : int64 [n]
            Row numbers, as `xmatch.matcher.nearest` gives them; -1 gives a row of nulls.
        columns : sequence of str, optional
            Columns wanted, in this order; `self.columns` by default.

        Returns
        -------
        pyarrow.Table
            n rows of doubles, int64 and strings; missing values are null.

        Raises
        ------
        IndexError
            If a row number is below -1 or not below `self.rows`.
        CatalogError
            If a column is not in the catalogue.
        """
        numbers = np.ascontiguousarray(rows, np.int64)
        if numbers.size and (numbers.min() < -1 or numbers.max() >= self.rows):
            raise IndexError(f"Row numbers must be from -1 to {self.rows - 1}.")
        fields = self._chosen(columns)
        chunks = [
            take_columns(self._arrays, fields, numbers[begin : begin + _ROWS_PER_CHUNK])
            for begin in range(0, max(len(numbers), 1), _ROWS_PER_CHUNK)
        ]
        return pa.concat_tables(chunks)

    def schema(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Arrow schema of what `take` gives."""
        return self.take(np.empty(0, np.int64), columns).schema

    def verify(self) -> None:
        """Compare the sha256 of every data file with the manifest; reads all of the catalogue.

        Raises
        ------
        CatalogError
            If a file differs.
        """
        for name, entry in self.manifest["files"].items():
            if sha256_of(self.path / name) != entry["sha256"]:
                raise CatalogError(f"{self.path / name} is damaged (its sha256 differs); build the catalogue again.")

    def _chosen(self, columns: Sequence[str] | None) -> list[Column]:
        by_name = {column.name: column for column in self.fields}
        unknown = [name for name in columns or () if name not in by_name]
        if unknown:
            raise CatalogError(
                f"Catalogue {self.name} has no column {unknown[0]}; its columns are: {', '.join(by_name)}."
            )
        return [by_name[name] for name in (self.columns if columns is None else columns)]


def build_catalog(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    name: str,
    version: str = "",
    ra: str | None = None,
    dec: str | None = None,
    identifier: str | None = None,
    columns: Sequence[str] | None = None,
    with_hats: bool = False,
    workers: int = 1,
    memory_bytes: int | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Catalog:
    """Build a catalogue from CSV (also gzip) or Parquet files or HATS catalogues.

    Sources without a valid position or identifier are left out and counted in the manifest, as are repetitions of
    the same identifier and position; identifiers that several sources share are counted. The same inputs give the
    same data files, whatever the number of workers and the memory. A build that was interrupted goes on where it was.

    Parameters
    ----------
    inputs : path or sequence of paths
        Files, folders of them, HATS catalogues or their http(s) addresses.
    output : path
        Folder to write; a catalogue that is there is replaced, anything else is refused.
    name, version : str
        Name of the catalogue (`allwise` has its 17 usual columns by default) and version.
    ra, dec, identifier : str, optional
        Columns of the inputs that hold the position in degrees and the identifier; guessed by default.
    columns : sequence of str, optional
        Columns of the catalogue; by default the 17 of AllWISE or else all.
    with_hats : bool
        Make the folder a HATS catalogue as well.
    workers : int
        Number of processes.
    memory_bytes : int, optional
        Rough bound on the memory of all processes, beyond what their libraries take; 1 GiB for each by default.
    report : callable
        Told how far each stage is.
    say : callable
        Told in a sentence that an interrupted build goes on, or starts afresh.

    Raises
    ------
    CatalogError
        If the inputs cannot be used or the output may not be overwritten.
    OSError
        If a disk, a server or a process gave way; the same call goes on.
    """
    # Matching needs none of it, and astropy takes long to import.
    from xmatch.building import BuildOptions, build_folder

    options = BuildOptions(
        name, version, ra, dec, identifier, tuple(columns) if columns is not None else None, with_hats
    )
    output = Path(output).absolute()
    if output.exists() and not _may_replace(output):
        raise CatalogError(f"{output} is there already and is not a catalogue; choose another output folder.")
    build_folder(inputs, output, options, workers, memory_bytes or workers << 30, report, say)
    return open_catalog(output)


def open_catalog(path: str | Path) -> Catalog:
    """Open a catalogue; checks the manifest and the sizes of the files (`Catalog.verify` reads their content).

    Raises
    ------
    CatalogError
        If there is no catalogue, or it is damaged or of another format version.
    """
    path = Path(path).absolute()
    manifest = _read_manifest(path)
    try:
        rows = int(manifest["rows"])
        fields = tuple(Column(**column) for column in manifest["columns"])
        zones_per_degree = int(manifest["index"]["zones_per_degree"])
        arrays = {
            Path(name).name: _open_array(path / name, entry["bytes"])
            for name, entry in manifest["files"].items()
            if Path(name).parent == Path(INDEX_FOLDER)
        }
        catalog = Catalog(
            path=path,
            name=manifest["name"],
            version=manifest["version"],
            created=manifest["created"],
            rows=rows,
            columns=tuple(column.name for column in fields if column.shown),
            fields=fields,
            manifest=manifest,
            index=Index(
                float(zones_per_degree),
                arrays["positions.npy"],
                arrays["identifiers.npy"],
                arrays["zone_rows.npy"],
                arrays["zone_cells.npy"],
                arrays["cell_rows.npy"],
            ),
            _arrays=arrays,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"{path / MANIFEST} is damaged ({error!r}); build the catalogue again.") from error
    _check_shapes(catalog, zones_per_degree)
    return catalog


def _may_replace(output: Path) -> bool:
    if not output.is_dir():
        return False
    if not any(output.iterdir()):
        return True
    try:
        return json.loads((output / MANIFEST).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{path} is not a catalogue (no readable {MANIFEST}); build it first.") from error
    except ValueError as error:
        raise CatalogError(f"{path / MANIFEST} is damaged (not JSON); build the catalogue again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CatalogError(f"{path} is not a catalogue of alertbeam (its {MANIFEST} says otherwise).")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CatalogError(
            f"{path} has format version {manifest.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "build the catalogue again."
        )
    return manifest


def _open_array(path: Path, size: int) -> NDArray:
    if not path.is_file():
        raise CatalogError(f"{path} is missing; build the catalogue again.")
    if path.stat().st_size != size:
        raise CatalogError(f"{path} has {path.stat().st_size} bytes instead of {size}; build the catalogue again.")
    try:
        array = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise CatalogError(f"{path} is damaged ({error}); build the catalogue again.") from error
    return array.view(np.ndarray)


def _check_shapes(catalog: Catalog, zones_per_degree: int) -> None:
    index = catalog.index
    zones = count_zones(zones_per_degree)
    consistent = (
        all(catalog._arrays[column.file].shape[0] == catalog.rows for column in catalog.fields)
        and index.positions.shape == (catalog.rows, 2)
        and index.identifiers.shape[0] == catalog.rows
        and index.zone_rows.shape == index.zone_cells.shape == (zones + 1,)
        and _rises(index.zone_rows, catalog.rows)
        and _rises(index.zone_cells, index.cell_rows.shape[0])
    )
    if not consistent:
        raise CatalogError(f"{catalog.path} is damaged (its arrays do not fit together); build the catalogue again.")


def _rises(starts: NDArray[np.int64], end: int) -> bool:
    """Whether `starts` never decreases from 0 to `end`: the search then reads nothing beyond the arrays."""
    return bool(starts[0] == 0 and starts[-1] == end and np.all(starts[1:] >= starts[:-1]))
