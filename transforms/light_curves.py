"""From alerts to light curves and features: slim columns, regrouped by object in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alerts.batch import AlertBatch
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.columns import DETECTION_INPUT, JD_MINUS_MJD, NON_DETECTION
from lightcurves.forced import forced_magnitudes
from lightcurves.summary import WISE
from storage.buckets import bucket_of
from transforms.counts import count
from transforms.crossmatch import MatchedAlerts
from xmatch.matcher import MATCHED

ALLWISE: Final = "allwise"
BUCKETS: Final = 64
_COMPUTED: Final = frozenset(
    {
        *(
            "oid",
            "candid",
            "alert_candid",
            "alert_mjd",
            "isdiffpos",
            "has_stamp",
            "parent_candid",
            "forced",
            "procstatus",
        ),
        *("mjd", "mjdstarthist", "mjdendhist", "mjdendref"),
        *("corrected", "magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext"),
    }
)
# Fields of packets that keep their name; those of time, and texts that become numbers, are apart.
_SAME: Final = tuple(name for name in DETECTION_INPUT.names if name not in _COMPUTED)
_TIMES: Final = {"jd": "mjd", "jdstarthist": "mjdstarthist", "jdendhist": "mjdendhist", "jdendref": "mjdendref"}
_FORCED_SAME: Final = ("fid", "pid", "diffmaglim", "rfid", "procstatus")
_FORCED_MEASURED: Final = ("distnr", "magnr", "sigmagnr", "chinr", "sharpnr")
_POSITIVE: Final = pa.array(["t", "1", "true", "True"])
# ZTF writes -99999 for what forced photometry could not measure.
_NOT_MEASURED: Final = -90000.0


class SlimRows(NamedTuple):
    """What light curves need of some alerts.

    Attributes
    ----------
    detections : pyarrow.Table
        Columns of :data:`lightcurves.columns.DETECTION_INPUT`, as narrow as the packets have them.
    non_detections : pyarrow.Table
        Columns of :data:`lightcurves.columns.NON_DETECTION`.
    """

    detections: pa.Table
    non_detections: pa.Table


def slim_rows(batch: AlertBatch) -> SlimRows:
    """Detections and non-detections that alerts bring: their own, of ``prv_candidates`` and of ``fp_hists``.

    An entry of ``prv_candidates`` without candid is a non-detection. An entry of ``fp_hists`` that was not measured is
    left out.
    """
    alerts = np.arange(len(batch))
    own = _columns(batch, "candidate", alerts) | {
        "candid": pa.array(batch.candid),
        "has_stamp": pa.repeat(True, len(batch)),
    }
    previous = _parents(batch, "prv_candidates")
    rows = _columns(batch, "prv_candidates", previous)
    candid = _field(batch, "prv_candidates.candid", len(previous))
    rows |= {"candid": candid, "parent_candid": rows["alert_candid"], "has_stamp": pa.repeat(False, len(previous))}
    entries = _table(rows, DETECTION_INPUT)
    detected = candid.is_valid()
    detections = [_table(own, DETECTION_INPUT), entries.filter(detected)]
    if batch.offsets("fp_hists")[-1]:
        detections.append(_forced_rows(batch))
    limits = entries.filter(pc.invert(detected)).select(NON_DETECTION.names)
    return SlimRows(pa.concat_tables(detections, promote_options="permissive"), limits)


def wise_rows(alerts: MatchedAlerts) -> pa.Table:
    """AllWISE matches of alerts as :func:`lightcurves.assembly.assemble` takes them."""
    tables = []
    for match in alerts.matches:
        if match.catalog != ALLWISE or not {*WISE} <= {*match.columns.column_names}:
            continue
        found = np.flatnonzero(match.status == MATCHED)
        columns = {name: match.columns[name].take(pa.array(found)).cast(pa.float64()) for name in WISE}
        columns |= {
            "oid": alerts.batch.object_id.take(pa.array(found)),
            "angDist": pa.array(match.separation_arcsec[found]),
            "candid": pa.array(alerts.batch.candid[found]),
            "jd": pa.array(alerts.batch.jd[found]),
        }
        tables.append(pa.table(columns))
    if not tables:
        texts = {"oid": pa.string(), "candid": pa.int64()}
        names = ("oid", *WISE, "angDist", "candid", "jd")
        return pa.schema([(name, texts.get(name, pa.float64())) for name in names]).empty_table()
    return pa.concat_tables(tables)


def _parents(batch: AlertBatch, table: str) -> np.ndarray:
    """Alert of each item of an array."""
    return np.repeat(np.arange(len(batch)), np.diff(batch.offsets(table)))


def _field(batch: AlertBatch, path: str, rows: int) -> pa.Array:
    return batch.arrow(path) if batch.has(path) else pa.nulls(rows)


def _columns(batch: AlertBatch, place: str, parents: np.ndarray) -> dict[str, pa.Array]:
    """Columns of the candidates themselves, or of an array of earlier ones, and the alert that brings each."""
    rows = len(parents)
    columns = _of_alert(batch, parents)
    for name in _SAME:
        columns[name] = _field(batch, f"{place}.{name}", rows)
    for name, new_name in _TIMES.items():
        columns[new_name] = _mjd(_field(batch, f"{place}.{name}", rows))
    columns["isdiffpos"] = _sign(_field(batch, f"{place}.isdiffpos", rows))
    columns["forced"] = pa.repeat(False, rows)
    return columns


def _of_alert(batch: AlertBatch, parents: np.ndarray) -> dict[str, pa.Array]:
    return {
        "oid": batch.object_id.take(pa.array(parents)),
        "alert_candid": pa.array(batch.candid[parents]),
        "alert_mjd": pa.array(batch.jd[parents] - JD_MINUS_MJD),
    }


def _mjd(jd: pa.Array) -> pa.Array:
    return pc.subtract(jd.cast(pa.float64()), JD_MINUS_MJD)


def _sign(isdiffpos: pa.Array) -> pa.Array:
    """1 for "t", "1" and true, -1 for the rest, null for null."""
    if pa.types.is_string(isdiffpos.type):
        positive = pc.is_in(isdiffpos, value_set=_POSITIVE)
    else:
        positive = pc.greater(isdiffpos.cast(pa.int64()), 0)
    sign = pc.if_else(positive, pa.scalar(1, pa.int8()), pa.scalar(-1, pa.int8()))
    return pc.if_else(isdiffpos.is_valid(), sign, pa.scalar(None, pa.int8()))


def _forced_rows(batch: AlertBatch) -> pa.Table:
    """Detections of forced photometry, at the position of the alert."""
    parents = _parents(batch, "fp_hists")

    def measured(name: str) -> np.ndarray:
        values = pc.fill_null(_field(batch, f"fp_hists.{name}", len(parents)).cast(pa.float64()), np.nan).to_numpy()
        return np.where(values > _NOT_MEASURED, values, np.nan)

    names = ("forcediffimflux", "forcediffimfluxunc", "magzpsci")
    magpsf, sigmapsf, sign = forced_magnitudes(*(measured(name) for name in names))
    columns = _of_alert(batch, parents)
    columns |= {name: _field(batch, f"fp_hists.{name}", len(parents)) for name in _FORCED_SAME}
    for name in _FORCED_MEASURED:
        values = measured(name)
        columns[name] = pa.array(values, mask=np.isnan(values))
    columns |= {
        "mjd": _mjd(_field(batch, "fp_hists.jd", len(parents))),
        "ra": pa.array(batch.ra[parents]),
        "dec": pa.array(batch.dec[parents]),
        "magpsf": pa.array(magpsf),
        "sigmapsf": pa.array(sigmapsf),
        "isdiffpos": pa.array(sign.astype(np.int8)),
        "parent_candid": columns["alert_candid"],
        "has_stamp": pa.repeat(False, len(parents)),
        "forced": pa.repeat(True, len(parents)),
    }
    return _table(columns, DETECTION_INPUT).filter(pa.array(np.isfinite(magpsf)))


def _table(columns: Mapping[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """Known columns in the schema's order, in the types that they have."""
    return pa.table({name: columns[name] for name in schema.names if name in columns})


class _Chunk(NamedTuple):
    """Rows of one batch and bucket, as Arrow streams: a slice of a table would take the whole table along."""

    detections: bytes
    non_detections: bytes
    wise: bytes


class AssembleLightCurves(beam.PTransform):
    """Assemble the light curves of all objects; one :class:`LightCurveBatch` per bucket of objects.

    Parameters
    ----------
    buckets : int
        How many parts the objects are spread over: what bounds the memory of a batch. The same for every run that is
        to give the same batches.
    as_of_mjd : float, optional
        What was known then.
    crossmatches : callable, optional
        Gives AllWISE matches as :func:`lightcurves.assembly.assemble` takes them, besides those of the alerts.
    """

    def __init__(
        self,
        buckets: int = BUCKETS,
        as_of_mjd: float | None = None,
        crossmatches: Callable[[], pa.Table] | None = None,
    ) -> None:
        super().__init__()
        if buckets < 1:
            raise ValueError(f"There must be at least one bucket of objects, not {buckets}.")
        self._buckets = buckets
        self._options = {"as_of_mjd": as_of_mjd, "crossmatches": crossmatches}

    def expand(self, alerts: beam.PCollection) -> beam.PCollection:
        """Apply to a PCollection of AlertBatch, or of MatchedAlerts, which give WISE magnitudes too."""
        return (
            alerts
            | "Slim rows by bucket" >> beam.FlatMap(chunks, self._buckets)
            | "Group buckets" >> beam.GroupByKey()
            | "Assemble" >> beam.MapTuple(assemble_chunks, **self._options)
        )


def chunks(alerts: AlertBatch | MatchedAlerts, buckets: int) -> Iterator[tuple[int, _Chunk]]:
    """Slim rows of alerts, one element per bucket of objects that they touch."""
    batch = alerts.batch if isinstance(alerts, MatchedAlerts) else alerts
    rows = slim_rows(batch)
    tables = [*rows, wise_rows(alerts)] if isinstance(alerts, MatchedAlerts) else [*rows, pa.table({})]
    parts = [_by_bucket(table, buckets) for table in tables]
    for bucket in sorted({bucket for part in parts for bucket in part}):
        found = [part.get(bucket, table.slice(0, 0)) for part, table in zip(parts, tables, strict=True)]
        yield bucket, _Chunk(*(_to_bytes(table) for table in found))


def _by_bucket(table: pa.Table, buckets: int) -> dict[int, pa.Table]:
    if not table.num_rows:
        return {}
    number = bucket_of(table["oid"], buckets)
    order = np.argsort(number, kind="stable")
    table, number = table.take(pa.array(order)), number[order]
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    ends = np.append(starts[1:], len(number))
    return {int(number[a]): table.slice(a, b - a) for a, b in zip(starts, ends, strict=True)}


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def assemble_chunks(
    bucket: int,
    parts: Iterable[_Chunk],
    as_of_mjd: float | None = None,
    crossmatches: Callable[[], pa.Table] | None = None,
) -> LightCurveBatch:
    """Light curves of one bucket."""
    columns = list(zip(*parts, strict=True))
    detections, non_detections, wise = (_joined(part) for part in columns)
    if crossmatches is not None:
        wise = pa.concat_tables([wise, crossmatches()], promote_options="permissive")
    batch = assemble(detections, non_detections, as_of_mjd=as_of_mjd, crossmatches=wise if wise.num_rows else None)
    count("objects", len(batch))
    return batch


def _joined(parts: Iterable[bytes]) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_stream(part).read_all() for part in parts], promote_options="permissive")
