"""Catalogues as the service shows them: cone searches over several of them, and their rows as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import NamedTuple

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix
from numpy.typing import NDArray

from xmatch.catalog import Catalog
from xmatch.cells import gather_numbers, gather_text
from xmatch.identifiers import IdentifierIndex
from xmatch.layout import NULL_INTEGER, Column
from xmatch.matcher import k_nearest
from xmatch.service_json import JsonRows, Values, with_missing, write_rows
from xmatch.service_layouts import ALLWISE_KEYS, FORMATS, Layout, Layouts, present_layouts, upper_layouts

HEALPIX_ORDER = 18

# VizieR's names of AllWISE's columns and CrossWave's keys.
_ALLWISE_NAMES = {
    **{f"W{band}mag": f"w{band}mpro" for band in range(1, 5)},
    **{f"e_W{band}mag": f"w{band}sigmpro" for band in range(1, 5)},
    **{f"{band}mag": f"{band.lower()}_m_2mass" for band in "JHK"},
    **{f"e_{band}mag": f"{band.lower()}_msig_2mass" for band in "JHK"},
}
_OTHER_KEYS = ("id", "ipix", "ra", "dec", "cat", "distance", "index", "cntr")


class Found(NamedTuple):
    """Matches of positions, ordered by position, separation and catalogue: m of each.

    `position`, `catalog` and `row` are numbers counted from 0.
    """

    position: NDArray[np.int64]
    catalog: NDArray[np.int64]
    row: NDArray[np.int64]
    separation_arcsec: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ServedCatalog:
    """A catalogue with the index of its identifiers.

    Attributes
    ----------
    catalog : Catalog
    identifiers : IdentifierIndex
    """

    catalog: Catalog
    identifiers: IdentifierIndex

    @property
    def name(self) -> str:
        """Name in requests and answers."""
        return self.catalog.name

    @cached_property
    def title(self) -> str:
        """Name in answers with metadata, as CrossWave spells it."""
        if self._is_allwise:
            return "AllWISE"
        return f"GAIA/{self.catalog.version or 'DR3'}" if self.name.lower() == "gaia" else self.name

    @cached_property
    def layouts(self) -> dict[str, Layouts]:
        """Layouts of the answers by form."""
        by_form = (
            present_layouts(self.name, self.title, self.metadata_keys),
            upper_layouts(self.name, self.metadata_keys),
        )
        return dict(zip(FORMATS, by_form, strict=True))

    @cached_property
    def metadata_keys(self) -> tuple[str, ...]:
        """Keys of the metadata but `cntr`: CrossWave's fourteen for AllWISE, then the catalogue's own columns."""
        first = ALLWISE_KEYS if self._is_allwise else ()
        return (*first, *(key for key in self._columns if key not in (*first, "cntr")))

    def values(self, rows: NDArray[np.int64], keys: Sequence[str]) -> dict[str, Values]:
        """Values of the given rows: id, ipix, ra, dec, cntr or metadata; null for metadata that there are not."""
        positions = gather_numbers(self.catalog.index.positions, [0, 1], rows, np.nan)
        ra, dec = (column.to_numpy(zero_copy_only=False) for column in positions)
        own = {key: self._columns[key] for key in keys if key in self._columns}
        table = self.catalog.take(rows, list(own.values())) if own else None
        values: dict[str, Values] = {}
        for key in keys:
            if table is not None and key in own:
                values[key] = table[own[key]]
            elif key == "id":
                values[key] = self._identifiers(rows)
            elif key == "ipix":
                values[key] = healpix_pixels(ra, dec)
            elif key in ("ra", "dec"):
                values[key] = ra if key == "ra" else dec
            elif key == "cntr":
                values[key] = rows + 1
            else:
                values[key] = np.full(len(rows), np.nan)
        return values

    def write(
        self,
        layout: Layout,
        rows: NDArray[np.int64],
        separation_arcsec: NDArray[np.float64] | None = None,
        position: NDArray[np.int64] | None = None,
    ) -> JsonRows:
        """JSON of rows; separation and number of the position are needed where the layout has them."""
        values = self.values(rows, [key for key in layout.keys if key not in ("distance", "index")])
        if separation_arcsec is not None:
            values["distance"] = separation_arcsec
        if position is not None:
            values["index"] = position
        return write_rows(layout.pieces, [with_missing(values[key], layout.missing) for key in layout.keys])

    @property
    def _is_allwise(self) -> bool:
        return self.name.lower() == "allwise"

    @cached_property
    def _columns(self) -> dict[str, str]:
        """JSON key and name of each shown column that is neither the identifier nor a position."""
        own = [column for column in self.catalog.fields if self._is_metadata(column)]
        lower = [column.name.lower() for column in own]
        columns: dict[str, str] = {}
        for column, key in zip(own, lower, strict=True):
            key = column.name if lower.count(key) > 1 else key
            if self._is_allwise:
                key = _ALLWISE_NAMES.get(column.name, key)
            while key in columns or (key in _OTHER_KEYS and (key, column.type) != ("cntr", "int64")):
                key = f"{self.name.lower()}_{key}"
            columns[key] = column.name
        return columns

    @staticmethod
    def _is_metadata(column: Column) -> bool:
        is_own = PurePath(column.file).stem not in ("positions", "identifiers")
        return is_own and (column.shown or column.name.lower() == "cntr")

    def _identifiers(self, rows: NDArray[np.int64]) -> pa.Array:
        identifiers = self.catalog.index.identifiers
        if identifiers.dtype == np.uint8:
            return gather_text(identifiers, rows)
        return gather_numbers(identifiers, [0], rows, NULL_INTEGER)[0].cast(pa.string())


def healpix_pixels(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """HEALPix pixel of order 18, nested (CrossWave's setting `nside: 18` is the order), of positions in degrees."""
    lon, lat = Longitude(ra, u.deg, copy=False), Latitude(dec, u.deg, copy=False)
    return lonlat_to_healpix(lon, lat, HEALPIX_ORDER, num_threads=1).astype(np.int64)


def search(
    catalogs: Sequence[ServedCatalog],
    chosen: Sequence[int],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    radius_arcsec: float,
    neighbors: int,
) -> Found:
    """The nearest sources of each position, counted over the chosen catalogues together.

    Sources of the same identifier in two catalogues are two. Of equally near ones the earlier catalogue comes first,
    within a catalogue the smaller identifier.

    Parameters
    ----------
    catalogs : sequence of ServedCatalog
    chosen : sequence of int
        Numbers of the catalogues to search.
    ra, dec : float64 [n]
        Degrees.
    radius_arcsec : float
        Inclusive.
    neighbors : int
        Most sources of a position.
    """
    parts = []
    for number in chosen:
        near = k_nearest(catalogs[number].catalog, ra, dec, radius_arcsec, neighbors)
        position = np.repeat(np.arange(len(ra)), np.diff(near.offsets))
        parts.append(Found(position, np.full(len(near.rows), number), near.rows, near.separation_arcsec))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty(0, np.int64)
        return Found(none, none, none, np.empty(0))
    position, catalog, row, separation = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((catalog, separation, position))
    position = position[order]
    first_of_position = np.searchsorted(position, position)
    kept = np.arange(len(position)) - first_of_position < neighbors
    order = order[kept]
    return Found(position[kept], catalog[order], row[order], separation[order])
