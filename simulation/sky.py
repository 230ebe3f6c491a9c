"""An AllWISE-like catalogue with known counterparts, and the exact answer to a crossmatch with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import scipy  # Its parts are loaded when they are used.
from isal import igzip

from simulation.population import OBJECTS_PER_BLOCK, SOUTHERN_LIMIT_DEG, object_block, offset_position, random_stream

COUNTERPART_FRACTION = 0.70
NEAR_MISS_FRACTION = 0.08
SECOND_NEIGHBOUR_FRACTION = 0.10
MATCH_RADIUS_ARCSEC = 1.0
MAGNITUDES = ("W1", "W2", "W3", "W4", "J", "H", "K")
COLUMNS = (
    "AllWISE",
    "RAJ2000",
    "DEJ2000",
    "W1mag",
    "W2mag",
    "W3mag",
    "W4mag",
    "e_W1mag",
    "e_W2mag",
    "e_W3mag",
    "e_W4mag",
    "Jmag",
    "e_Jmag",
    "Hmag",
    "e_Hmag",
    "Kmag",
    "e_Kmag",
)
_CATALOG_STREAM = 2
_FIELD_STREAM = 3
_ROWS_PER_CHUNK = 100_000
_SCHEMA = pa.schema([(name, pa.string() if name == "AllWISE" else pa.float64()) for name in COLUMNS])
# AllWISE limits [mag, Vega]: fainter sources have no value in the band.
_LIMIT = {"W1": 18.0, "W2": 16.8, "W3": 13.5, "W4": 10.0, "J": 16.8, "H": 16.0, "K": 15.5}


@dataclass(frozen=True)
class CatalogSummary:
    """What `simulate_catalog` wrote: the file, its rows, and how many of them were put beside objects of the night."""

    path: Path
    sources: int
    beside_objects: int


def designations(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """AllWISE names of positions in degrees: ``Jhhmmss.ss±ddmmss.s``, truncated as the IAU asks."""
    # Positions have 7 decimals, so whole units of 1e-7 deg make the truncation exact.
    centiseconds = np.round(ra * 1e7).astype(np.int64) * 24_000 // 10_000_000
    deciseconds = np.round(np.abs(dec) * 1e7).astype(np.int64) * 36_000 // 10_000_000
    sign = np.where(dec < 0, ord("-"), ord("+"))
    out = np.empty((len(ra), 19), dtype=np.uint8)
    out[:, 0] = ord("J")
    _put_sexagesimal(out[:, 1:10], centiseconds, 100)
    out[:, 10] = sign
    _put_sexagesimal(out[:, 11:19], deciseconds, 10)
    return out.view("S19").reshape(-1)


def _put_sexagesimal(out: np.ndarray, units: np.ndarray, per_second: int) -> None:
    seconds, fraction = np.divmod(units, per_second)
    minutes, seconds = np.divmod(seconds, 60)
    whole, minutes = np.divmod(minutes, 60)
    digits = [whole // 10, whole % 10, minutes // 10, minutes % 10, seconds // 10, seconds % 10]
    for i, digit in enumerate(digits):
        out[:, i] = ord("0") + digit
    out[:, 6] = ord(".")
    for i in range(out.shape[1] - 7):
        out[:, out.shape[1] - 1 - i] = ord("0") + fraction // 10**i % 10


def _beside_objects(seed: int, block: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources near a block's first `objects` objects: counterparts, second neighbours, near misses (degrees)."""
    sky = object_block(seed, block)
    rng = random_stream(seed, _CATALOG_STREAM, block)
    n = OBJECTS_PER_BLOCK
    lot = rng.random(n)
    counterpart = lot < COUNTERPART_FRACTION
    near_miss = ~counterpart & (lot < COUNTERPART_FRACTION + NEAR_MISS_FRACTION)
    second = counterpart & (rng.random(n) < SECOND_NEIGHBOUR_FRACTION)
    radius = np.where(counterpart, rng.rayleigh(0.15, n), rng.uniform(1.05, 1.4, n))
    angle = rng.uniform(0.0, 2 * np.pi, n)
    second_radius, second_angle = rng.uniform(0.3, 0.9, n), angle + rng.uniform(1.0, 5.0, n)
    ra, dec = [], []
    for chosen, r, a in ((counterpart | near_miss, radius, angle), (second, second_radius, second_angle)):
        rows = np.flatnonzero(chosen[:objects])
        moved = offset_position(sky.ra[rows], sky.dec[rows], r[rows] * np.cos(a[rows]), r[rows] * np.sin(a[rows]))
        ra.append(moved[0])
        dec.append(moved[1])
    return np.concatenate(ra), np.concatenate(dec)


def _photometry(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Magnitudes and errors, null where AllWISE or 2MASS would have none."""
    w1 = rng.triangular(9.0, 16.5, 18.0, rows)
    w2 = w1 - rng.normal(0.15, 0.35, rows)
    w3 = w2 - rng.gamma(2.0, 0.9, rows)
    j = w1 + rng.gamma(3.0, 0.4, rows)
    h = j - rng.uniform(0.2, 0.8, rows)
    true = {"W1": w1, "W2": w2, "W3": w3, "W4": w3 - rng.gamma(2.0, 0.9, rows), "J": j, "H": h}
    true["K"] = h - rng.uniform(0.0, 0.5, rows)
    in_2mass = (j < _LIMIT["J"]) & (rng.random(rows) < 0.97)
    columns = {}
    for band in MAGNITUDES:
        mag = true[band]
        error = (0.02 + 0.2 * 10 ** (0.3 * (mag - _LIMIT[band]))).clip(0.02, 0.5)
        faint = mag > _LIMIT[band]
        if band in ("W1", "W2", "W3", "W4"):
            # An AllWISE upper limit has a magnitude and no error.
            mag = np.minimum(mag, _LIMIT[band])
            missing, no_error = rng.random(rows) < 0.01, faint
        else:
            missing = ~in_2mass | faint
            no_error = missing
        columns[f"{band}mag"] = pa.array(np.round(mag, 3), mask=missing)
        columns[f"e_{band}mag"] = pa.array(np.round(error, 3), mask=missing | no_error)
    return columns


@contextmanager
def _writer(path: Path) -> Iterator[Any]:
    """Open a table writer with method ``write_table`` for the file's suffix."""
    if path.name.endswith(".parquet"):
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as parquet:
            yield parquet
        return
    with open(path, "wb") as raw:
        file: IO[bytes] = raw
        if path.name.endswith(".gz"):
            file = igzip.IGzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # type: ignore[assignment]
        options = pacsv.WriteOptions(include_header=False, quoting_style="none")
        file.write((",".join(COLUMNS) + "\n").encode())
        with pacsv.CSVWriter(file, _SCHEMA, write_options=options) as table:
            yield table
        if file is not raw:
            file.close()


def temporary_path(path: Path) -> Path:
    """Name beside `path` for use until the file is complete; keeps the suffix."""
    return path.with_name(f".partial-{os.getpid()}-{path.name}")


def simulate_catalog(path: Path, *, objects: int, field_sources: int = 10_000, seed: int = 1) -> CatalogSummary:
    """Write an AllWISE-like catalogue for the first `objects` objects of a seed.

    Of the objects 70 % have a counterpart with offsets of a Rayleigh distribution (0.15″), one in ten of these has
    another source within 1″, 8 % have a source just outside 1″, the rest none.

    Parameters
    ----------
    path
        File to write, as VizieR names the columns: ``.csv``, ``.csv.gz`` or ``.parquet``.
    objects
        Number of the night's objects that the catalogue knows; see `simulation.night.night_objects`.
    field_sources
        Further sources, uniform on the sky north of -32°.
    seed
        The night's seed.

    Returns
    -------
    CatalogSummary

    Raises
    ------
    ValueError
        If the suffix is another one.
    """
    path = Path(path)
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(f"Cannot write {path.name}: name the catalogue *.csv, *.csv.gz or *.parquet.")
    positions = [
        _beside_objects(seed, block, objects - block * OBJECTS_PER_BLOCK)
        for block in range(-(-objects // OBJECTS_PER_BLOCK))
    ]
    rng = random_stream(seed, _FIELD_STREAM)
    south = np.sin(np.radians(SOUTHERN_LIMIT_DEG - 1.0))
    field_dec = np.round(np.degrees(np.arcsin(rng.uniform(south, 1.0, field_sources))), 7)
    field_ra = np.round(rng.uniform(0.0, 360.0, field_sources), 7) % 360.0
    ra = np.concatenate([p[0] for p in positions] + [field_ra])
    dec = np.concatenate([p[1] for p in positions] + [field_dec])
    names = designations(ra, dec)
    # A designation is a name: of two sources within its precision the first stays.
    kept = np.sort(np.unique(names, return_index=True)[1])
    ra, dec, names = ra[kept], dec[kept], names[kept]

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_path(path)
    try:
        with _writer(partial) as table:
            for start in range(0, len(ra), _ROWS_PER_CHUNK):
                part = slice(start, start + _ROWS_PER_CHUNK)
                columns = _photometry(rng, len(ra[part]))
                columns |= {"RAJ2000": pa.array(ra[part]), "DEJ2000": pa.array(dec[part])}
                columns["AllWISE"] = pa.array(names[part].astype("U19"))
                table.write_table(pa.table({name: columns[name] for name in COLUMNS}, schema=_SCHEMA))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    beside = sum(len(p[0]) for p in positions)
    return CatalogSummary(path, len(ra), int(np.count_nonzero(kept < beside)))


def separation_arcsec(ra1: np.ndarray, dec1: np.ndarray, ra2: np.ndarray, dec2: np.ndarray) -> np.ndarray:
    """Angle between positions in degrees, by the haversine formula [arcsec]; broadcasts."""
    lon1, lat1, lon2, lat2 = (np.radians(a) for a in (ra1, dec1, ra2, dec2))
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.minimum(h, 1.0)))) * 3600.0


def _unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


class NearestSource:
    """Exact nearest catalogue source within 1″: the truth that a crossmatch is compared with.

    Parameters
    ----------
    path
        Catalogue with the columns AllWISE, RAJ2000, DEJ2000 (degrees): CSV (also ``.gz``) or Parquet.
    """

    _CANDIDATES = 4

    def __init__(self, path: Path) -> None:
        wanted = ["AllWISE", "RAJ2000", "DEJ2000"]
        if str(path).endswith(".parquet"):
            table = pq.read_table(path, columns=wanted)
        else:
            table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(include_columns=wanted))
        self._names = pc.cast(table["AllWISE"], pa.string()).combine_chunks()
        self._ra, self._dec = table["RAJ2000"].to_numpy(), table["DEJ2000"].to_numpy()
        self._tree = scipy.spatial.cKDTree(_unit_vectors(self._ra, self._dec))

    def __call__(self, ra: np.ndarray, dec: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Designations (blank without a match) and separations (arcsec; NaN without) of positions in degrees."""
        k = self._CANDIDATES
        _, candidates = self._tree.query(_unit_vectors(ra, dec), k=np.arange(1, k + 1))
        exists = candidates < len(self._ra)
        index = np.where(exists, candidates, 0)
        if not len(self._ra):
            return [""] * len(ra), np.full(len(ra), np.nan)
        separation = separation_arcsec(ra[:, None], dec[:, None], self._ra[index], self._dec[index])
        separation[~exists] = np.inf
        best = np.argmin(separation, axis=1)
        rows = np.arange(len(ra))
        nearest = separation[rows, best]
        matched = nearest <= MATCH_RADIUS_ARCSEC
        names = self._names.take(pa.array(index[rows, best])).to_pylist()
        return [n if m else "" for n, m in zip(names, matched, strict=True)], np.where(matched, nearest, np.nan)
