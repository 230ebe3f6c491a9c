"""Rows for the database from light curves and features, by ALeRCE's tables (alerce.md 2.7, 4.4)."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from database.tables import METADATA
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import FeatureBatch, feature_names

_NO_BAND, _BOTH_BANDS, _OTHER = 0, 12, -99
_WITHOUT_BAND: Final = frozenset({"W1-W2", "W2-W3", "g-W2", "g-W3", "r-W2", "r-W3", "gal_b", "gal_l", "rb", "sgscore1"})
_OF_BOTH: Final = frozenset({"Multiband_period", "Period_fit", "PPE"})


def light_curve_tables(batch: LightCurveBatch, step_id: str) -> dict[str, pa.Table]:
    """Rows of ``object``, ``detection``, ``non_detection`` and ``magstat``.

    A detection without candid, as forced photometry is, has no place in ALeRCE's table and is left out.

    Parameters
    ----------
    batch : LightCurveBatch
    step_id : str
        What ``step_id_corr`` becomes.
    """
    tables = {"object": batch.objects, "detection": batch.detections}
    tables |= {"non_detection": batch.non_detections, "magstat": batch.magstats}
    tables = {name: _with_known_points(table, batch) for name, table in tables.items()}
    detections = tables["detection"]
    tables["detection"] = detections.filter(pc.and_(detections["candid"].is_valid(), pc.invert(detections["forced"])))
    return {name: _rows(table, METADATA.tables[name].columns.keys(), step_id) for name, table in tables.items()}


def _with_known_points(table: pa.Table, batch: LightCurveBatch) -> pa.Table:
    """Rows with how much was known of their object: of two versions of a row, that of the fuller light curve stays."""
    objects = pc.index_in(table["oid"], value_set=batch.oid)
    return table.append_column("known_points", pa.array(batch.known_points).take(objects))


def _rows(table: pa.Table, names: list[str], step_id: str) -> pa.Table:
    if "step_id_corr" in names:
        table = table.append_column("step_id_corr", pa.repeat(step_id, table.num_rows))
    return table.select([name for name in names if name in table.column_names])


def feature_key(feature: str) -> tuple[str, int]:
    """Columns ``name`` and ``fid`` of a feature in ALeRCE's table.

    The band is cut off the name, but for ``Power_rate_2``, ``_3`` and ``_4``, whose number is no band: ALeRCE writes
    all three as (``Power_rate``, 12), so two of them are lost.
    """
    if feature in _WITHOUT_BAND:
        return feature, _NO_BAND
    if feature in _OF_BOTH or feature.startswith(("g-r_", "Power_rate")):
        return feature, _BOTH_BANDS
    name, _, last = feature.rpartition("_")
    return (name, int(last)) if name and last.isdecimal() else (feature, _OTHER)


def feature_tables(
    features: FeatureBatch, batch: LightCurveBatch, step_id: str | None = None, step_id_preprocess: str | None = None
) -> dict[str, pa.Table]:
    """Rows of ``feature`` and ``feature_version``; a missing feature is a row with null.

    Parameters
    ----------
    features : FeatureBatch
    batch : LightCurveBatch
        Light curves from which they were computed.
    step_id, step_id_preprocess : str, optional
        Rows of ``step`` to which the version refers.
    """
    names = feature_names()
    keys = [feature_key(name) for name in names]
    objects, count = features.table.num_rows, len(names)
    oid = features.oid.combine_chunks()
    values = [features.table[name].cast(pa.float64()).combine_chunks() for name in names]
    by_object = np.arange(objects * count).reshape(count, objects).T.ravel()
    known = pa.array(batch.known_points).take(pc.index_in(oid, value_set=batch.oid))
    each, every = np.repeat(np.arange(objects), count), np.tile(np.arange(count), objects)
    rows = {
        "oid": oid.take(pa.array(each)),
        "name": pa.DictionaryArray.from_arrays(pa.array(every, pa.int32()), [name for name, _ in keys]),
        "fid": pa.array(np.array([fid for _, fid in keys], np.int32)[every]),
        "version": pa.repeat(features.version, objects * count),
        "value": pa.concat_arrays(values).take(pa.array(by_object)),
        "known_points": known.take(pa.array(each)),
    }
    text = pa.string()
    version = {
        "version": pa.array([features.version], text),
        "step_id_feature": pa.array([step_id], text),
        "step_id_preprocess": pa.array([step_id_preprocess], text),
    }
    return {"feature": pa.table(rows), "feature_version": pa.table(version)}
