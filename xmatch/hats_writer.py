"""Writing HATS catalogues: partitions, their list and metadata, properties, and a map of the density."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.coordinates import Latitude, Longitude
from astropy.io import fits
from cdshealpix.nested import lonlat_to_healpix
from numpy.typing import NDArray

from xmatch.hats import HEALPIX_COLUMN, HEALPIX_ORDER, IDENTIFIER_PROPERTY, PROPERTIES, Pixel

# Partitions are no smaller than pixels of this order (7 arcmin), whatever the density.
HIGHEST_ORDER = 9
_POINT_MAP_ORDER = 8
_ROWS_PER_GROUP = 1 << 17


def healpix_of(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Nested HEALPix pixels of order 29 of positions in degrees: int64 [n]."""
    pixels = lonlat_to_healpix(Longitude(ra, u.deg), Latitude(dec, u.deg), HEALPIX_ORDER, num_threads=1)
    return np.atleast_1d(pixels).astype(np.int64)


def count_pixels(sorted_pixels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of the highest order that hold the given pixels of order 29 (rising), and how many each holds."""
    pixels = sorted_pixels >> 2 * (HEALPIX_ORDER - HIGHEST_ORDER)
    starts = np.flatnonzero(np.diff(pixels, prepend=-1))
    return pixels[starts], np.diff(starts, append=len(pixels))


def choose_partitions(counts: NDArray[np.int64], most_rows: int) -> list[Pixel]:
    """Largest pixels that hold at most `most_rows`, without empty ones, in the order of the sky's pixels.

    Parameters
    ----------
    counts : int64 [12 * 4**HIGHEST_ORDER]
        Rows in each pixel of the highest order; one that holds more rows is a partition all the same.
    most_rows : int
    """
    chosen: list[Pixel] = []
    is_open = np.ones(12, bool)
    for order in range(HIGHEST_ORDER + 1):
        rows = counts.reshape(12 << 2 * order, -1).sum(axis=1)
        small = (rows <= most_rows) | (order == HIGHEST_ORDER)
        chosen += [Pixel(order, int(number)) for number in np.flatnonzero(is_open & small & (rows > 0))]
        is_open = np.repeat(is_open & ~small, 4)
    return sorted(chosen, key=lambda pixel: pixel.begin)


def write_partition(path: Path, table: pa.Table) -> None:
    """Write the Parquet file of a partition."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=1, row_group_size=_ROWS_PER_GROUP)


def write_metadata(root: Path, schema: pa.Schema, pixels: Sequence[Pixel]) -> None:
    """Write `partition_info.csv`, `dataset/_metadata` and `dataset/_common_metadata` for partitions that are there."""
    (root / "dataset").mkdir(exist_ok=True)
    # The partitions' own metadata is put together, without reading a row.
    with (root / "partition_info.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("Norder", "Npix"))
        writer.writerows((pixel.order, pixel.number) for pixel in pixels)
    parts = []
    for pixel in pixels:
        part = pq.read_metadata(root / pixel.path)
        part.set_file_path(pixel.path.removeprefix("dataset/"))
        parts.append(part)
    pq.write_metadata(schema, root / "dataset" / "_common_metadata")
    pq.write_metadata(schema, root / "dataset" / "_metadata", metadata_collector=parts)


def write_point_map(path: Path, counts: NDArray[np.int64]) -> None:
    """Write the number of rows in each pixel of order 8 as a FITS map.

    Parameters
    ----------
    counts : int64 [12 * 4**HIGHEST_ORDER]
    """
    rows = counts.reshape(12 << 2 * _POINT_MAP_ORDER, -1).sum(axis=1)
    table = fits.BinTableHDU.from_columns([fits.Column("VALUE", "1K", array=rows)])
    table.header.update(
        PIXTYPE="HEALPIX",
        ORDERING="NESTED",
        INDXSCHM="IMPLICIT",
        COORDSYS="C",
        NSIDE=1 << _POINT_MAP_ORDER,
        FIRSTPIX=0,
        LASTPIX=len(rows) - 1,
    )
    table.writeto(path, overwrite=True)


def write_properties(
    root: Path,
    *,
    name: str,
    version: str,
    rows: int,
    most_rows: int,
    columns: Mapping[str, str],
    created: str,
    size_bytes: int,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write `hats.properties`, and the same as `properties`.

    Parameters
    ----------
    root : Path
    name, version : str
    rows, most_rows : int
        Rows of the catalogue and of its largest partition.
    columns : mapping
        Names of the columns `ra`, `dec`, `identifier`.
    created : str
        ISO 8601.
    size_bytes : int
        Size of the partitions.
    more : mapping, optional
        Further properties.
    """
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": rows,
        "hats_col_ra": columns["ra"],
        "hats_col_dec": columns["dec"],
        "hats_col_healpix": HEALPIX_COLUMN,
        "hats_col_healpix_order": HEALPIX_ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_max_rows": most_rows,
        "hats_builder": "alertbeam",
        "hats_creation_date": created,
        "hats_estsize": size_bytes // 1024,
        IDENTIFIER_PROPERTY: columns["identifier"],
    }
    if version:
        properties["hats_data_semver"] = version
    properties |= more or {}
    text = "#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in PROPERTIES:
        (root / file).write_text(text, encoding="utf-8")
