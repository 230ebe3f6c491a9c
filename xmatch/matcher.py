"""Crossmatch of positions with catalogues: the interface that all matchers share, and the local one."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from xmatch.catalog import Catalog, open_catalog
from xmatch.search import MAX_RADIUS_ARCSEC, k_nearest_rows, nearest_rows


class Status(IntEnum):
    """What became of a position: three outcomes that are never mixed up."""

    NO_MATCH = 0
    MATCHED = 1
    FAILED = 2


NO_MATCH, MATCHED, FAILED = Status.NO_MATCH, Status.MATCHED, Status.FAILED


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of n positions with one catalogue, in the order of the positions.

    Attributes
    ----------
    catalog, catalog_version : str
        Name and version of the catalogue.
    catalog_created : str
        When it was built, ISO 8601 in UTC.
    status : int8 [n]
        A `Status` each.
    separation_arcsec : float64 [n]
        Distance of the match; NaN unless matched.
    columns : pyarrow.Table
        n rows of the catalogue's columns; nulls unless matched.
    errors : pyarrow.StringArray
        n reasons of failures; null unless failed.
    """

    catalog: str
    catalog_version: str
    catalog_created: str
    status: NDArray[np.int8]
    separation_arcsec: NDArray[np.float64]
    columns: pa.Table
    errors: pa.StringArray


class Matcher(Protocol):
    """Finds the nearest source of one catalogue; its parameters are given to its constructor."""

    @property
    def name(self) -> str:
        """Name of the catalogue, the key of its matches."""

    def validate(self) -> None:
        """Raise with one clear sentence if the matcher cannot work as it is set up."""

    def match(self, ra: ArrayLike, dec: ArrayLike) -> Matches:
        """Match positions in degrees; a position that cannot be looked up has status FAILED and a reason."""


@dataclass(frozen=True)
class LocalMatcher:
    """Exact nearest neighbour in a catalogue on disk.

    Parameters
    ----------
    source : Catalog or path
        The catalogue or its folder.
    radius_arcsec : float
        Largest separation of a match, inclusive, in arcseconds.
    columns : sequence of str, optional
        Columns wanted of the catalogue; all by default.
    """

    source: Catalog | str | Path
    radius_arcsec: float = 1.0
    columns: Sequence[str] | None = None

    @cached_property
    def catalog(self) -> Catalog:
        """The open catalogue."""
        return self.source if isinstance(self.source, Catalog) else open_catalog(self.source)

    @property
    def name(self) -> str:
        """Name of the catalogue."""
        return self.catalog.name

    def validate(self) -> None:
        """Open the catalogue and check the radius and the columns.

        Raises
        ------
        CatalogError
            If the catalogue cannot be opened or has not the columns.
        ValueError
            If the radius is out of bounds.
        """
        check_radius(self.radius_arcsec)
        self.catalog.schema(self.columns)

    def match(self, ra: ArrayLike, dec: ArrayLike) -> Matches:
        """Match positions in degrees; not finite ones and declinations beyond the poles have status FAILED."""
        catalog = self.catalog
        ra, dec = as_positions(ra, dec)
        rows, separation = nearest(catalog, ra, dec, self.radius_arcsec)
        valid = is_position(ra, dec)
        status = np.where(rows >= 0, np.int8(MATCHED), np.int8(NO_MATCH))
        status[~valid] = FAILED
        return Matches(
            catalog=catalog.name,
            catalog_version=catalog.version,
            catalog_created=catalog.created,
            status=status,
            separation_arcsec=separation,
            columns=catalog.take(rows, self.columns),
            errors=position_errors(ra, dec, valid),
        )


def nearest(
    catalog: Catalog, ra: ArrayLike, dec: ArrayLike, radius_arcsec: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest source of the catalogue for each position, exact on the sphere in double precision.

    Of sources equally near, the one with the smallest identifier is taken. The result for a position does not depend
    on the other positions.

    Parameters
    ----------
    catalog : Catalog
    ra, dec : float64 [n]
        Positions in degrees; right ascensions are taken modulo 360.
    radius_arcsec : float
        Largest separation, inclusive, up to `MAX_RADIUS_ARCSEC` (ten degrees).

    Returns
    -------
    rows : int64 [n]
        Row of the catalogue; -1 where there is none, or no such position exists.
    separation_arcsec : float64 [n]
        NaN where the row is -1.

    Raises
    ------
    ValueError
        If the radius is out of bounds, or `ra` and `dec` have not one and the same length.
    """
    check_radius(radius_arcsec)
    ra, dec = as_positions(ra, dec)
    rows = np.empty(ra.shape[0], np.int64)
    separation = np.empty(ra.shape[0], np.float64)
    nearest_rows(ra, dec, float(radius_arcsec), catalog.index, rows, separation)
    return rows, separation


@dataclass(frozen=True, eq=False)
class KNearest:
    """Neighbours of n positions, nearest first: those of position i are from `offsets[i]` to `offsets[i + 1]`.

    Attributes
    ----------
    offsets : int64 [n + 1]
    rows : int64 [offsets[n]]
        Rows of the catalogue.
    separation_arcsec : float64 [offsets[n]]
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    separation_arcsec: NDArray[np.float64]


def k_nearest(catalog: Catalog, ra: ArrayLike, dec: ArrayLike, radius_arcsec: float, k: int | None = None) -> KNearest:
    """The `k` nearest sources within the radius of each position; all of them if `k` is None.

    Sources equally near are in the order of their identifiers. The first neighbour is that of `nearest`, to the bit.
    Memory is that of the answer.

    Parameters
    ----------
    catalog : Catalog
    ra, dec : float64 [n]
        Positions in degrees; right ascensions are taken modulo 360. One that does not exist has no neighbours.
    radius_arcsec : float
        Largest separation, inclusive, up to `MAX_RADIUS_ARCSEC` (ten degrees).
    k : int, optional

    Raises
    ------
    ValueError
        If the radius or `k` is out of bounds, or `ra` and `dec` have not one and the same length.
    """
    check_radius(radius_arcsec)
    if k is not None and k < 1:
        raise ValueError(f"The number of neighbours must be at least 1, not {k}.")
    ra, dec = as_positions(ra, dec)
    most = catalog.rows if k is None else min(k, catalog.rows)
    return KNearest(*k_nearest_rows(ra, dec, float(radius_arcsec), most, catalog.index))


def match_all(matchers: Sequence[Matcher], ra: ArrayLike, dec: ArrayLike) -> list[Matches]:
    """Match the same positions with several catalogues, in the order of the matchers."""
    return [matcher.match(ra, dec) for matcher in matchers]


def validate_matchers(matchers: Sequence[Matcher]) -> None:
    """Validate every matcher, and that no two have the same catalogue name.

    Raises
    ------
    ValueError, CatalogError
        With one clear sentence.
    """
    for matcher in matchers:
        matcher.validate()
    names = [matcher.name for matcher in matchers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two catalogues have the name {name}; build one of them with another name.")


def check_radius(radius_arcsec: float) -> None:
    """Raise ValueError unless the radius is positive and at most ten degrees."""
    if not 0.0 < radius_arcsec <= MAX_RADIUS_ARCSEC:
        raise ValueError(
            f"The search radius must be above 0 and at most {MAX_RADIUS_ARCSEC:g} arcsec, not {radius_arcsec}."
        )


def is_position(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where the position in degrees exists: both finite, declination within ±90."""
    return np.isfinite(ra) & (np.abs(dec) <= 90.0)


def position_errors(ra: NDArray[np.float64], dec: NDArray[np.float64], valid: NDArray[np.bool_]) -> pa.StringArray:
    """Reasons why positions do not exist, null where they do."""
    if valid.all():
        return pa.nulls(ra.shape[0], pa.string())
    reasons = np.full(ra.shape[0], None, object)
    for i in np.flatnonzero(~valid):
        reasons[i] = f"no such position: ra {ra[i]}, dec {dec[i]} degrees"
    return pa.array(reasons, pa.string())


def as_positions(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check that positions are two equally long columns."""
    ra, dec = np.ascontiguousarray(ra, np.float64), np.ascontiguousarray(dec, np.float64)
    if ra.ndim != 1 or ra.shape != dec.shape:
        raise ValueError(f"ra and dec must be one-dimensional and equally long, not of shapes {ra.shape}, {dec.shape}.")
    return ra, dec
