"""Rows for the database and for Parquet, from alerts and their matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa

from alerts.batch import AlertBatch
from alerts.enrich import CatalogMatches
from transforms.crossmatch import OUTCOMES, MatchedAlerts
from xmatch.matcher import MATCHED, Matches

JD_MINUS_MJD: Final = 2400000.5
SEPARATION: Final = "angDist"

# CDS column -> column of ALeRCE's table (alerce.md 1.3).
ALLWISE_COLUMNS: Final = {
    "AllWISE": "oid_catalog",
    "RAJ2000": "ra",
    "DEJ2000": "dec",
    **{f"W{band}mag": f"w{band}mpro" for band in range(1, 5)},
    **{f"e_W{band}mag": f"w{band}sigmpro" for band in range(1, 5)},
    **{f"{band}mag": f"{band.lower()}_m_2mass" for band in "JHK"},
    **{f"e_{band}mag": f"{band.lower()}_msig_2mass" for band in "JHK"},
}


def for_enriching(matches: Sequence[Matches]) -> list[CatalogMatches]:
    """Columns of ``xmatches``: the separation in arcsec, then the catalogue's own."""
    return [
        CatalogMatches(
            match.catalog,
            match.status == MATCHED,
            {
                SEPARATION: pa.array(match.separation_arcsec),
                **dict(zip(match.columns.column_names, match.columns.columns, strict=True)),
            },
        )
        for match in matches
    ]


def object_rows(batch: AlertBatch, rows: np.ndarray) -> pa.Table:
    """Provisional rows of table ``object`` (alerce.md 1.1): what single alerts tell of their objects."""

    def numbers(path: str, shift: float = 0.0) -> pa.Array:
        values = batch.numbers(path)[rows] - shift
        return pa.array(values, mask=np.isnan(values))

    def integers(path: str) -> pa.Array:
        values = batch.integers(path)[rows]
        return pa.array(values, mask=values < 0)

    mjd = batch.jd[rows] - JD_MINUS_MJD
    count = len(rows)
    return pa.table(
        {
            "oid": batch.object_id.take(pa.array(rows)),
            "ndethist": integers("candidate.ndethist"),
            "ncovhist": integers("candidate.ncovhist"),
            "mjdstarthist": numbers("candidate.jdstarthist", JD_MINUS_MJD),
            "mjdendhist": numbers("candidate.jdendhist", JD_MINUS_MJD),
            "firstmjd": mjd,
            "lastmjd": mjd,
            "deltajd": np.zeros(count),
            "ndet": np.ones(count, dtype=np.int64),
            "meanra": batch.ra[rows],
            "meandec": batch.dec[rows],
            "corrected": pa.repeat(False, count),
            "stellar": pa.repeat(False, count),
            "step_id_corr": pa.repeat("0.0.0", count),
        }
    )


def database_rows(alerts: MatchedAlerts) -> tuple[dict[str, pa.Table], dict[str, np.ndarray]]:
    """Rows of ``object``, ``allwise`` and ``xmatch`` for the alerts with a match, and the alert of each row.

    As in ALeRCE, an object enters the tables with its first match.
    """
    batch = alerts.batch
    matched = [np.flatnonzero(match.status == MATCHED) for match in alerts.matches]
    rows = np.unique(np.concatenate(matched))
    tables = {"object": object_rows(batch, rows)}
    origin = {"object": rows}
    oid = batch.object_id
    xmatch = []
    for match, found in zip(alerts.matches, matched, strict=True):
        columns = match.columns.take(pa.array(found))
        if set(ALLWISE_COLUMNS) >= set(columns.column_names) and "AllWISE" in columns.column_names:
            tables["allwise"] = columns.rename_columns([ALLWISE_COLUMNS[name] for name in columns.column_names])
            origin["allwise"] = found
        xmatch.append(_xmatch_rows(match, found, oid, columns.column(0), batch.candid))
    tables["xmatch"] = pa.concat_tables(xmatch)
    origin["xmatch"] = np.concatenate(matched)
    return tables, origin


def _xmatch_rows(
    match: Matches, found: np.ndarray, oid: pa.Array, identifier: pa.ChunkedArray, candid: np.ndarray
) -> pa.Table:
    created = datetime.fromisoformat(match.catalog_created)
    return pa.table(
        {
            "oid": oid.take(pa.array(found)),
            "catid": pa.repeat(match.catalog, len(found)),
            "oid_catalog": identifier.cast(pa.string()),
            "dist": match.separation_arcsec[found],
            "candid": candid[found],
            "catalog_version": pa.repeat(match.catalog_version, len(found)),
            "catalog_created": pa.repeat(pa.scalar(created, pa.timestamp("us", tz="UTC")), len(found)),
        }
    )


def crossmatch_rows(keys: Mapping[str, pa.Array], matches: Sequence[Matches]) -> pa.Table:
    """One row per position and catalogue: the keys, ``catalog``, ``status``, ``angDist`` and the CDS columns.

    Parameters
    ----------
    keys : mapping of str to pyarrow.Array
        What identifies a position: for alerts candid, oid, jd, ra, dec; for a table id, ra, dec.
    """
    tables = []
    for match in matches:
        outcome = pa.array([OUTCOMES[code] for code in range(3)]).take(pa.array(match.status.astype(np.int8)))
        separation = pa.array(match.separation_arcsec, mask=match.status != MATCHED)
        table = pa.table({**keys, "catalog": pa.repeat(match.catalog, len(match.status)), "status": outcome})
        table = table.append_column(SEPARATION, separation)
        for name, column in zip(match.columns.column_names, match.columns.columns, strict=True):
            table = table.append_column(name if name not in table.column_names else f"{match.catalog}_{name}", column)
        tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


def crossmatches_of_alerts(alerts: MatchedAlerts) -> pa.Table:
    """Rows of ``crossmatches.parquet`` for alerts."""
    batch = alerts.batch
    keys = {
        "candid": pa.array(batch.candid),
        "oid": batch.object_id,
        "jd": pa.array(batch.jd),
        "ra": pa.array(batch.ra),
        "dec": pa.array(batch.dec),
    }
    return crossmatch_rows(keys, alerts.matches)
