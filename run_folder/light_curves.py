"""Light curves of objects as lists in columns, for tables with a row per object."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from lightcurves.assembly import assemble
from lightcurves.store import LightCurveStore

COLUMNS: Final = (
    *("candid", "mjd", "fid", "isdiffpos", "magpsf", "sigmapsf", "magpsf_corr", "sigmapsf_corr_ext"),
    *("corrected", "dubious", "ra", "dec", "rb"),
)


def nested_light_curves(store: Path, bucket: int, oids: pa.Array) -> pa.Table:
    """Detections of objects of one bucket, without forced photometry, in the order of `oids`.

    Parameters
    ----------
    store : Path
        Folder of the light-curve store.
    bucket : int
    oids : pyarrow.Array
        Sorted names of objects that have a detection.

    Returns
    -------
    pyarrow.Table
        ``oid`` and a list for each of :data:`COLUMNS`.
    """
    rows = LightCurveStore.open(store).read(bucket, oids)
    batch = assemble(rows.detections, rows.non_detections)
    measured = np.logical_not(batch.detections["forced"].to_numpy())
    offsets = pa.array(np.append(0, np.cumsum(measured))[batch.detection_offsets], pa.int32())
    detections = batch.detections.filter(pa.array(measured))
    lists = {name: pa.ListArray.from_arrays(offsets, detections[name].combine_chunks()) for name in COLUMNS}
    return pa.table({"oid": batch.oid, **lists})
