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
_ALLWISE_REQUIRED: Final = frozenset({"AllWISE", "RAJ2000", "DEJ2000"})

ALERT_KEYS: Final = {
    "candid": pa.int64(),
    "oid": pa.string(),
    "jd": pa.float64(),
    "ra": pa.float64(),
    "dec": pa.float64(),
    "fid": pa.int32(),
    "magpsf": pa.float32(),
    "source": pa.string(),
    "member": pa.string(),
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
    oid = batch.object_id
    allwise: list[tuple[np.ndarray, pa.Table]] = []
    xmatch: list[pa.Table] = []
    for match, found in zip(alerts.matches, matched, strict=True):
        columns = match.columns.take(pa.array(found))
        if (sources := _allwise_rows(columns)) is not None:
            allwise.append((found, sources))
        xmatch.append(_xmatch_rows(match, found, oid, columns.column(0), batch.candid))
    tables = {"object": object_rows(batch, rows), "xmatch": pa.concat_tables(xmatch)}
    origin = {"object": rows, "xmatch": np.concatenate(matched)}
    if allwise:
        tables["allwise"] = pa.concat_tables([sources for _, sources in allwise], promote_options="default")
        origin["allwise"] = np.concatenate([found for found, _ in allwise])
    return tables, origin


def _allwise_rows(columns: pa.Table) -> pa.Table | None:
    """Rows of ``allwise`` from columns with the identifier first, None if they are those of another catalogue.

    The identifier may be another name of the source than the designation.
    """
    identifier, *others = columns.column_names
    if not ALLWISE_COLUMNS.keys() >= {*others, "AllWISE"} >= _ALLWISE_REQUIRED:
        return None
    if identifier in ALLWISE_COLUMNS:
        return columns.rename_columns([ALLWISE_COLUMNS[name] for name in columns.column_names])
    if "AllWISE" not in others:
        return None
    columns = columns.drop_columns("AllWISE")
    columns = columns.set_column(0, identifier, columns[identifier].cast(pa.string()))
    return columns.rename_columns(["oid_catalog", *(ALLWISE_COLUMNS[name] for name in columns.column_names[1:])])


def _xmatch_rows(
    match: Matches, found: np.ndarray, oid: pa.Array, identifier: pa.ChunkedArray, candid: np.ndarray
) -> pa.Table:
    # A service does not tell when its catalogue was built.
    created = datetime.fromisoformat(match.catalog_created) if match.catalog_created else None
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
        What identifies a position: :data:`ALERT_KEYS` for alerts, id, ra, dec for a table.

    Notes
    -----
    A column whose name is taken, or has another type in an earlier catalogue, gets its catalogue's name before its own.
    """
    tables: list[pa.Table] = []
    types: dict[str, pa.DataType] = {}
    for match in matches:
        outcome = pa.array([OUTCOMES[code] for code in range(3)]).take(pa.array(match.status.astype(np.int8)))
        separation = pa.array(match.separation_arcsec, mask=match.status != MATCHED)
        table = pa.table({**keys, "catalog": pa.repeat(match.catalog, len(match.status)), "status": outcome})
        table = table.append_column(SEPARATION, separation)
        for name, column in zip(match.columns.column_names, match.columns.columns, strict=True):
            taken = name in table.column_names or types.setdefault(name, column.type) != column.type
            table = table.append_column(f"{match.catalog}_{name}" if taken else name, column)
        tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


def crossmatches_of_alerts(alerts: MatchedAlerts) -> pa.Table:
    """Rows of ``crossmatches.parquet`` for alerts."""
    batch = alerts.batch
    source = pa.repeat(batch.source, len(batch))
    measured = [_field(batch, name).cast(ALERT_KEYS[name]) for name in ("fid", "magpsf")]
    values = (batch.candid, batch.object_id, batch.jd, batch.ra, batch.dec, *measured, source, batch.members)
    keys = {name: pa.array(value, kind) for (name, kind), value in zip(ALERT_KEYS.items(), values, strict=True)}
    return crossmatch_rows(keys, alerts.matches)


def _field(batch: AlertBatch, name: str) -> pa.Array:
    path = f"candidate.{name}"
    return batch.arrow(path) if batch.has(path) else pa.nulls(len(batch))
