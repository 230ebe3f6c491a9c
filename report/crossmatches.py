"""What the crossmatches of a run tell: the sky, separations, match rates, and a sample of positions.

They are read batch by batch; what is kept does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lightcurves.columns import JD_MINUS_MJD, integers, numbers
from report.sky import SKY_SHAPE, sky_cells

MATCHED: Final = "matched"
NO_MATCH: Final = "no match"
SEPARATION_BINS: Final = 40
MAGNITUDE_EDGES: Final = np.arange(11.0, 23.01, 0.5)
SAMPLE: Final = 20_000
_BATCH_ROWS: Final = 1 << 16
_MOST_PENDING_ROWS: Final = 1 << 18
_COLUMNS: Final = {
    "candid": pa.int64(),
    "oid": pa.string(),
    "jd": pa.float64(),
    "ra": pa.float64(),
    "dec": pa.float64(),
    "fid": pa.int64(),
    "magpsf": pa.float64(),
    "catalog": pa.string(),
    "status": pa.string(),
    "angDist": pa.float64(),
}


@dataclass(frozen=True, eq=False)
class Positions:
    """Sample of the alerts' positions, the same whatever the order of the rows.

    Attributes
    ----------
    key : uint64, shape (n,)
        Hash of the alert's identifier, ascending; the sample is of the least.
    ra, dec : float64, shape (n,)
        Degrees.
    matched : bool, shape (n,)
    """

    key: NDArray[np.uint64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    matched: NDArray[np.bool_]

    @staticmethod
    def none() -> Positions:
        """No positions."""
        return Positions(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0), np.zeros(0, np.bool_))

    def __len__(self) -> int:
        return len(self.key)

    def joined(self, other: Positions, most: int) -> Positions:
        """Sample of both."""
        key = np.concatenate([self.key, other.key])
        order = np.argsort(key, kind="stable")[:most]
        return Positions(
            key[order],
            np.concatenate([self.ra, other.ra])[order],
            np.concatenate([self.dec, other.dec])[order],
            np.concatenate([self.matched, other.matched])[order],
        )


@dataclass(frozen=True, eq=False)
class CatalogStatistics:
    """What the rows of one catalogue tell.

    Attributes
    ----------
    alerts, matched : int
    sky, sky_matched : int64, shape SKY_SHAPE
        Alerts and matched alerts per cell of equal area.
    separations : int64, shape (SEPARATION_BINS,)
        Matches by separation, from 0 to the radius.
    magnitudes, magnitudes_matched : dict of int to int64, shape (len(MAGNITUDE_EDGES) - 1,)
        Alerts and matched alerts by magnitude, by filter.
    sample : Positions
    """

    alerts: int
    matched: int
    sky: NDArray[np.int64]
    sky_matched: NDArray[np.int64]
    separations: NDArray[np.int64]
    magnitudes: dict[int, NDArray[np.int64]]
    magnitudes_matched: dict[int, NDArray[np.int64]]
    sample: Positions


@dataclass(frozen=True, eq=False)
class Crossmatches:
    """What all rows tell.

    Attributes
    ----------
    radius_arcsec : float
    catalogs : dict of str to CatalogStatistics
        By name, in the order of their names.
    first_jd, last_jd : float or None
        Of the alerts.
    nights : int
        Days of UT that have an alert.
    has_magnitudes : bool
        Whether the rows tell filter and magnitude.
    nearest : dict of str to (str, float)
        Catalogue and separation (arcsec) of the nearest match of each wanted object.
    """

    radius_arcsec: float
    catalogs: dict[str, CatalogStatistics]
    first_jd: float | None
    last_jd: float | None
    nights: int
    has_magnitudes: bool
    nearest: dict[str, tuple[str, float]]


@dataclass
class _Growing:
    """Sums of one catalogue while the rows are read."""

    alerts: int = 0
    matched: int = 0
    sky: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SKY_SHAPE, np.int64))
    sky_matched: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SKY_SHAPE, np.int64))
    separations: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SEPARATION_BINS, np.int64))
    magnitudes: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    magnitudes_matched: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    sample: Positions = field(default_factory=Positions.none)

    def add(self, rows: pa.Table, matched: NDArray[np.bool_], radius_arcsec: float) -> None:
        ra, dec = numbers(rows, "ra"), numbers(rows, "dec")
        self.alerts += len(rows)
        self.matched += int(matched.sum())
        cells = sky_cells(ra, dec)
        inside = cells >= 0
        self.sky += np.bincount(cells[inside], minlength=self.sky.size).reshape(SKY_SHAPE)
        found = cells[inside & matched]
        self.sky_matched += np.bincount(found, minlength=self.sky.size).reshape(SKY_SHAPE)
        separation = numbers(rows, "angDist")[matched]
        self.separations += np.histogram(separation, SEPARATION_BINS, (0.0, radius_arcsec))[0]
        fid, magnitude = integers(rows, "fid", 0), numbers(rows, "magpsf")
        known = np.isfinite(magnitude)
        for band in np.unique(fid[known]).tolist():
            of_band = known & (fid == band)
            for sums, chosen in ((self.magnitudes, of_band), (self.magnitudes_matched, of_band & matched)):
                sums[band] = sums.get(band, 0) + np.histogram(magnitude[chosen], MAGNITUDE_EDGES)[0]
        key = _hashed(integers(rows, "candid", 0))
        if len(self.sample) == SAMPLE:
            inside &= key < self.sample.key[-1]
        more = Positions(key[inside], ra[inside], dec[inside], matched[inside])
        self.sample = self.sample.joined(more, SAMPLE)


def _hashed(numbers_of_alerts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers that look random (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = numbers_of_alerts.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def part_files(path: Path) -> list[Path]:
    """Files of the crossmatches: those of the folder, or the one file."""
    if path.is_dir():
        return sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    return [path] if path.is_file() else []


def count_rows(path: Path) -> int:
    """Rows of all files, from their footers."""
    return sum(pq.read_metadata(file).num_rows for file in part_files(path))


def read_crossmatches(
    path: Path,
    radius_arcsec: float,
    wanted: pa.Array | None = None,
    as_of_mjd: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> Crossmatches:
    """Read the crossmatches of a run.

    Parameters
    ----------
    path : Path
        Folder of Parquet files, or one file.
    radius_arcsec : float
    wanted : pyarrow.Array, optional
        Names of the objects whose nearest match is wanted.
    as_of_mjd : float, optional
        Leave out later alerts.
    advance : callable, optional
        Told the number of rows of each batch.
    """
    growing: dict[str, _Growing] = {}
    first, last, nights = np.inf, -np.inf, set[int]()
    has_magnitudes = False
    pending: list[pa.Table] = []
    waiting = 0
    for rows in _batches(path):
        if advance:
            advance(len(rows))
        jd = numbers(rows, "jd")
        if as_of_mjd is not None:
            rows, jd = rows.filter(pa.array(jd - JD_MINUS_MJD <= as_of_mjd)), jd[jd - JD_MINUS_MJD <= as_of_mjd]
        told = jd[np.isfinite(jd)]
        if len(told):
            first, last = min(first, float(told.min())), max(last, float(told.max()))
            nights.update(np.unique(np.floor(told - 0.5)).astype(int).tolist())
        has_magnitudes |= rows["magpsf"].null_count < len(rows)
        for name in pc.unique(rows["catalog"]).to_pylist():
            some = rows.filter(pc.equal(rows["catalog"], name))
            some = some.filter(pc.is_in(some["status"], value_set=pa.array([MATCHED, NO_MATCH])))
            matched = pc.equal(some["status"], MATCHED).to_numpy(zero_copy_only=False)
            growing.setdefault(name, _Growing()).add(some, matched, radius_arcsec)
        if wanted is not None and len(wanted):
            kept = rows.filter(pc.and_(pc.equal(rows["status"], MATCHED), pc.is_in(rows["oid"], value_set=wanted)))
            pending.append(kept.select(["oid", "angDist", "catalog"]))
            waiting += len(kept)
            if waiting > _MOST_PENDING_ROWS:
                pending = [_nearest(pending)]
                waiting = 0
    nearest = _nearest(pending).to_pylist() if pending else []
    return Crossmatches(
        radius_arcsec=radius_arcsec,
        catalogs={name: CatalogStatistics(**vars(growing[name])) for name in sorted(growing)},
        first_jd=first if nights else None,
        last_jd=last if nights else None,
        nights=len(nights),
        has_magnitudes=has_magnitudes,
        nearest={row["oid"]: (row["catalog"], row["angDist"]) for row in nearest},
    )


def _batches(path: Path) -> Iterator[pa.Table]:
    for file in part_files(path):
        with pq.ParquetFile(file) as parquet:
            names = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
                yield _complete(pa.table(batch))


def _complete(rows: pa.Table) -> pa.Table:
    columns = {
        name: rows[name].cast(kind) if name in rows.column_names else pa.nulls(len(rows), kind)
        for name, kind in _COLUMNS.items()
    }
    return pa.table(columns)


def _nearest(parts: list[pa.Table]) -> pa.Table:
    """First row of each object by separation, then by the catalogue's name."""
    order = [("oid", "ascending"), ("angDist", "ascending"), ("catalog", "ascending")]
    rows = pa.concat_tables(parts).sort_by(order)
    oid = rows["oid"].combine_chunks()
    if len(oid) < 2:
        return rows
    starts = pa.concat_arrays([pa.array([True]), pc.not_equal(oid[1:], oid[:-1])])
    return rows.filter(starts)
