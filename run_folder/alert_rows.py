"""Rows of enriched alerts: one for each, with the fields of its candidate."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from alerts.layout import ROOT
from alerts.reader import read_source
from alerts.sources import find_sources

_CANDIDATE: Final = "candidate."
_NO_VALUE: Final = ("offset", "length", "present")


class DamagedAlertsError(ValueError):
    """A file of enriched alerts cannot be read; the message says which and why."""


def alert_rows(
    files: Iterable[Path],
    columns: Collection[str] | None = None,
    oids: pa.Array | None = None,
    limit: int | None = None,
    until_jd: float | None = None,
) -> pa.Table:
    """Read the alerts of files into one table; those of different schemas have different columns, others are null.

    Parameters
    ----------
    files : iterable of Path
    columns : collection of str, optional
        Names without ``candidate.``; those that no alert has are not in the table. ``objectId`` and ``candid`` always
        are.
    oids : pyarrow.Array, optional
        Objects wanted.
    limit : int, optional
        Alerts wanted at most.
    until_jd : float, optional
        Alerts up to this time.

    Raises
    ------
    DamagedAlertsError
    """
    tables: list[pa.Table] = []
    count = 0
    paths = [str(path) for path in files]
    for source in find_sources(paths) if paths else ():
        for item in read_source(source):
            if limit is not None and count >= limit:
                break
            if isinstance(item, DeadLetter):
                place = "/".join(filter(None, (item.source, item.member)))
                raise DamagedAlertsError(f"{place}: {item.reason}")
            if isinstance(item, AlertBatch):
                rows = _wanted(item, columns, oids, until_jd)
                tables.append(rows if limit is None else rows.slice(0, limit - count))
                count += len(tables[-1])
    if not tables:
        return pa.table({"objectId": pa.array([], pa.string()), "candid": pa.array([], pa.int64())})
    return pa.concat_tables(tables, promote_options="permissive")


def _wanted(
    batch: AlertBatch, columns: Collection[str] | None, oids: pa.Array | None, until_jd: float | None
) -> pa.Table:
    keep = np.ones(len(batch), np.bool_)
    if oids is not None:
        keep &= pc.is_in(batch.object_id, value_set=oids).to_numpy(zero_copy_only=False)
    if until_jd is not None:
        keep &= batch.jd <= until_jd
    table = _columns(batch, columns)
    return table if keep.all() else table.filter(pa.array(keep))


def _columns(batch: AlertBatch, columns: Collection[str] | None) -> pa.Table:
    found: dict[str, pa.Array] = {"objectId": batch.object_id, "candid": pa.array(batch.candid)}
    for path, values in batch.values.items():
        name = path.removeprefix(_CANDIDATE)
        known = values.column.table == ROOT and values.column.kind not in _NO_VALUE
        if known and name not in found and (columns is None or name in columns):
            found[name] = batch.arrow(path)
    return pa.table(found)


def alert_files(folder: Path, without: Collection[str] = ()) -> list[Path]:
    """Files of enriched alerts in a folder, but for those of some units of work, with whose name they begin."""
    files = [path for path in sorted(folder.glob("*.avro")) if not path.name.startswith(".")]
    return [path for path in files if path.name.partition(".")[0] not in without]
