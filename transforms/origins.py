"""Where the light curve of an object begins that a stream meets for the first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from database.client import Database
from database.light_curves import alerce_rows, packed_rows
from lightcurves.packed import pack_by_object
from lightcurves.store import LightCurveStore, StoreRows
from lightcurves.tables import detection_rows, non_detection_rows


@dataclass(frozen=True)
class Origins:
    """What is known of objects before the stream: a backfill's light-curve store, and PostgreSQL.

    Both are asked, and what they know is put together. Objects that neither the store nor the table ``light_curve``
    knows are looked up in ALeRCE's tables ``detection``, ``non_detection``, ``xmatch`` and ``allwise``. These lack
    columns of the packets (``sgscore1``, ``distpsnr1``, ``chinr``, ``sharpnr``, ``magnr``, ``mjdendref``, what brought
    a row and when), so that light curves from them are approximate: their corrected magnitudes are kept as they are,
    and whether an object is stellar is found out from later alerts only.

    Parameters
    ----------
    store : Path, optional
        Folder of the light-curve store of a run.
    database : Database, optional
    """

    store: Path | None = None
    database: Database | None = None

    def rows_of(self, oids: Sequence[str]) -> Mapping[str, bytes]:
        """Packed rows (:mod:`lightcurves.packed`) of the objects that are known, in one query per table.

        Raises
        ------
        DatabaseUnavailable
            If the database does not answer.
        StoreError
            If the store cannot be read.
        """
        if not oids:
            return {}
        found: dict[str, bytes] = {}
        if self.store is not None:
            found = pack_by_object(LightCurveStore.open(self.store).rows_of_many(oids))
        if self.database is not None:
            for oid, rows in packed_rows(self.database, oids).items():
                found[oid] = found.get(oid, b"") + rows
            found |= _from_alerce(self.database, [oid for oid in oids if oid not in found])
        return found

    def close(self) -> None:
        """Close the connection to the database."""
        if self.database is not None:
            self.database.close()


def _from_alerce(database: Database, oids: Sequence[str]) -> dict[str, bytes]:
    if not oids:
        return {}
    rows = alerce_rows(database, oids)
    if not rows.detections.num_rows:
        return {}
    detections = detection_rows(rows.detections, "the table detection")
    return pack_by_object(
        StoreRows(detections, non_detection_rows(rows.non_detections, "the table non_detection"), rows.crossmatches)
    )
