"""Light curves in a stream: what is known of each object is kept, and put together anew when an alert adds to it.

Nothing is shuffled: an alert's batch, the state of its objects and the light curves that come of it are one stage.

What an object's light curve is at the end depends neither on the order of its alerts, nor on repetitions, nor on how
they were spread over batches (:mod:`lightcurves.packed`).
"""

from __future__ import annotations

import struct
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from database.client import Database
from database.tables import LIGHT_CURVE
from database.upsert import WriteResult
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.packed import KEY_BYTES, Chunk, lasting_rows, pack_by_alert, thinned, unpack
from lightcurves.store import StoreRows
from transforms.background import Background
from transforms.counts import count
from transforms.crossmatch import MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, at_the_end, dead_letter
from transforms.kept_rows import kept_rows
from transforms.light_curves import slim_rows, wise_rows
from transforms.origins import Origins

LIGHT_CURVES: Final = "light_curves"
KEPT: Final = "kept"
EXPIRY_DAYS: Final = 1.0
OBJECTS_PER_BATCH: Final = 500
_OBJECTS_AT_ONCE: Final = 120
OBJECTS_KEPT: Final = 300_000
# Alerts of which an object remembers that it has them; older ones that come once more only cost time.
_REMEMBERED_ALERTS: Final = 64
# New rows are put beside the thinned ones until they are as large as these, and at least so large.
_UNTHINNED_BYTES: Final = 8192
_DAY_US: Final = 86_400_000_000
_SIZE: Final = struct.Struct("<I")
_STATE: Final = struct.Struct("<qIH")
_TIME: Final = struct.Struct("<q")
_FORGET: Final = b"\x02"
# State of an object that was forgotten.
_FORGOTTEN: Final = b"\x00"


class News(NamedTuple):
    """What a batch of alerts says of one object.

    Attributes
    ----------
    chunks : sequence of (bytes, bytes)
        Key and rows of each alert.
    history : bytes or None
        What the origins know of the object; None if they were not asked.
    """

    chunks: Sequence[tuple[bytes, bytes]]
    history: bytes | None

    def to_bytes(self) -> bytes:
        """As an element of a pipeline."""
        history = self.history or b""
        parts = [bytes([self.history is not None]), _SIZE.pack(len(history)), history]
        for key, blob in self.chunks:
            parts += [key, _SIZE.pack(len(blob)), blob]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> News:
        """Undo :meth:`to_bytes`."""
        at = 1 + _SIZE.size
        end = at + _SIZE.unpack_from(data, 1)[0]
        history = data[at:end] if data[0] else None
        chunks = []
        while end < len(data):
            at = end + KEY_BYTES + _SIZE.size
            key, size = data[end : end + KEY_BYTES], _SIZE.unpack_from(data, end + KEY_BYTES)[0]
            end = at + size
            chunks.append((key, data[at:end]))
        return cls(chunks, history)


class ObjectState(NamedTuple):
    """What is known of one object.

    Attributes
    ----------
    newest_us : int
        Time of its newest element, microseconds.
    thin_bytes : int
        How many bytes of `rows` have been thinned.
    keys : bytes
        Those of the last alerts, 8 bytes each.
    rows : bytes
        Packed (:mod:`lightcurves.packed`).
    """

    newest_us: int
    thin_bytes: int
    keys: bytes
    rows: bytes

    def to_bytes(self) -> bytes:
        """As a state of a pipeline."""
        return _STATE.pack(self.newest_us, self.thin_bytes, len(self.keys)) + self.keys + self.rows

    @classmethod
    def from_bytes(cls, data: bytes) -> ObjectState:
        """Undo :meth:`to_bytes`."""
        newest_us, thin_bytes, keys = _STATE.unpack_from(data)
        rows = _STATE.size + keys
        return cls(newest_us, thin_bytes, data[_STATE.size : rows], data[rows:])


def merge(state: ObjectState | None, news: News, newest_us: int, history: Callable[[], bytes]) -> ObjectState | None:
    """State of an object after some alerts; None if they say nothing new.

    Parameters
    ----------
    state : ObjectState, optional
        None if nothing is kept of the object (any more). Then the outcome counts as new whatever the history says: it
        may have been written down just before the process died, and what follows from it not.
    news : News
    newest_us : int
        Time of the alerts, microseconds.
    history : callable
        Asks the origins for the object, if that has not been done.
    """
    if state is None:
        known = history() if news.history is None else news.history
        state = ObjectState(newest_us, 0, b"", known)
        new = dict(news.chunks)
    else:
        keys = {state.keys[at : at + KEY_BYTES] for at in range(0, len(state.keys), KEY_BYTES)}
        new = {key: blob for key, blob in news.chunks if key not in keys}
        if not new:
            return None
    rows, thin_bytes = b"".join([state.rows, *new.values()]), state.thin_bytes
    if len(rows) - thin_bytes > max(thin_bytes, _UNTHINNED_BYTES):
        rows = thinned([rows])
        thin_bytes = len(rows)
    keys_kept = b"".join([state.keys, *new])[-_REMEMBERED_ALERTS * KEY_BYTES :]
    return ObjectState(max(state.newest_us, newest_us), thin_bytes, keys_kept, rows)


def light_curves_of(states: Iterable[bytes]) -> tuple[pa.Table, LightCurveBatch]:
    """Rows of table ``light_curve``, and the light curves, of objects whose packed rows are given."""
    rows = lasting_rows(unpack(states))
    matches = rows.crossmatches
    batch = assemble(rows.detections, rows.non_detections, crossmatches=matches if matches.num_rows else None)
    return kept_rows(rows), batch


class LightCurvesByObject(beam.PTransform):
    """Keep the rows of each object, and assemble its light curve whenever alerts add to them.

    Gives the PCollections ``light_curves`` (of :class:`~lightcurves.batch.LightCurveBatch`: the objects that changed)
    and ``kept`` (of tables with the rows of the same objects for :class:`KeepLightCurves`, each before its light
    curves).

    Parameters
    ----------
    origins : Origins
        What is known of an object that is met for the first time.
    expiry_days : float
        How long after its newest alert, by the times of the alerts, an object is forgotten, to be looked up again when
        it comes back, so that :class:`KeepLightCurves` must write to the database of the origins. Without a database
        nothing is forgotten, since it would be lost.
    objects_per_batch : int
        At most so many objects are put together at once.
    objects_kept : int
        If there are more, those are forgotten of which nothing came for the longest time. An object takes some
        kilobytes.
    shuffled : bool
        The runner lets the batches of alerts go ahead of the states, as Flink does. What the origins said of an object
        then may lack what is still on its way to its state, and is not believed of those that were forgotten.
    """

    def __init__(
        self,
        origins: Origins,
        *,
        expiry_days: float = EXPIRY_DAYS,
        objects_per_batch: int = OBJECTS_PER_BATCH,
        objects_kept: int = OBJECTS_KEPT,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        if not expiry_days > 0:
            raise ValueError(f"objects must be kept for some time, not for {expiry_days} days")
        if objects_per_batch < 1 or objects_kept < 1:
            raise ValueError(f"there must be at least one object, not {min(objects_per_batch, objects_kept)}")
        self._keep = _Keep(origins, shuffled)
        self._by_object = _ByObject(origins, round(expiry_days * _DAY_US), objects_kept)
        self._objects_per_batch = objects_per_batch

    def expand(self, alerts: beam.PCollection) -> Any:
        """Apply to a PCollection of MatchedAlerts, or of AlertBatch."""
        keyed = beam.ParDo(self._by_object).with_output_types(tuple[str, bytes])
        changed = beam.ParDo(self._keep).with_output_types(tuple[str, bytes])
        batches = beam.ParDo(_Assemble(self._objects_per_batch)).with_outputs(KEPT, main=LIGHT_CURVES)
        found = alerts | "By object" >> keyed | "Keep rows" >> changed | "Assemble" >> batches
        return {LIGHT_CURVES: found[LIGHT_CURVES], KEPT: found[KEPT]}


class _Met:
    """Objects that this process has met, and when: those that wait the longest come first."""

    def __init__(self) -> None:
        self._last_us: OrderedDict[str, int] = OrderedDict()
        self._newest_us = MIN_TIMESTAMP.micros
        self._lock = threading.Lock()

    def meet(self, oids: Iterable[str], time_us: int) -> list[str]:
        """Note that there are alerts of some objects; give those that were not known."""
        with self._lock:
            self._newest_us = max(self._newest_us, time_us)
            unknown = []
            for oid in oids:
                if oid not in self._last_us:
                    unknown.append(oid)
                self._last_us[oid] = max(time_us, self._last_us.get(oid, time_us))
                self._last_us.move_to_end(oid)
            return unknown

    def forget(self, expiry_us: int, most: int) -> list[tuple[str, int]]:
        """Forget objects that nothing came of for long, or that are too many; give them with their last times."""
        forgotten = []
        with self._lock:
            while self._last_us:
                oid, last_us = next(iter(self._last_us.items()))
                if last_us >= self._newest_us - expiry_us and len(self._last_us) <= most:
                    break
                del self._last_us[oid]
                forgotten.append((oid, last_us))
        return forgotten


# Of each pipeline. A process of Flink's workers has several copies of a transform, that go on in turns.
_MET: Final[WeakValueDictionary[str, _Met]] = WeakValueDictionary()
_MET_LOCK: Final = threading.Lock()


def _met_of(pipeline: str) -> _Met:
    with _MET_LOCK:
        found = _MET.get(pipeline)
        if found is None:
            found = _MET[pipeline] = _Met()
        return found


class _ByObject(beam.DoFn):
    """What each batch says of its objects; history comes along with those that this process does not remember.

    It says as well which objects are to be forgotten. Timers could do that, but FnApiRunner fires those of a stage that
    reads a source as soon as they are set.
    """

    def __init__(self, origins: Origins, expiry_us: int, objects_kept: int) -> None:
        self._origins, self._expiry_us, self._objects_kept = origins, expiry_us, objects_kept
        self._pipeline = uuid.uuid4().hex

    def setup(self) -> None:
        self._met = _met_of(self._pipeline)

    def start_bundle(self) -> None:
        self._begins = True

    def process(
        self, alerts: MatchedAlerts | AlertBatch, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[str, bytes]]:
        if self._begins:
            yield from self._forgotten()
            self._begins = False
        chunks: dict[str, list[Chunk]] = {}
        for chunk in pack_by_alert(_rows(alerts)):
            chunks.setdefault(chunk.oid, []).append(chunk)
        unknown = self._met.meet(chunks, timestamp.micros)
        known = self._origins.rows_of(unknown)
        history = {oid: known.get(oid, b"") for oid in unknown}
        for oid, of_object in chunks.items():
            yield oid, News([(chunk.key, chunk.blob) for chunk in of_object], history.get(oid)).to_bytes()

    def _forgotten(self) -> Iterator[tuple[str, bytes]]:
        """Objects of earlier bundles, whose rows are written."""
        for oid, last_us in self._met.forget(self._expiry_us, self._objects_kept):
            if self._origins.database is not None:
                yield oid, _FORGET + _TIME.pack(last_us)

    def teardown(self) -> None:
        self._origins.close()


def _rows(alerts: MatchedAlerts | AlertBatch) -> StoreRows:
    if isinstance(alerts, AlertBatch):
        alerts = MatchedAlerts(alerts, ())
    return StoreRows(*slim_rows(alerts.batch), wise_rows(alerts))


class _Keep(beam.DoFn):
    """The state of each object; gives the rows of those that changed. Part of :class:`LightCurvesByObject`."""

    STATE = ReadModifyWriteStateSpec("rows", BytesCoder())

    def __init__(self, origins: Origins, shuffled: bool) -> None:
        self._origins, self._shuffled = origins, shuffled

    def start_bundle(self) -> None:
        self._changed: set[str] = set()

    def process(
        self,
        element: tuple[str, bytes],
        timestamp: Any = beam.DoFn.TimestampParam,
        kept: Any = beam.DoFn.StateParam(STATE),  # noqa: B008 (how Beam declares it)
    ) -> Iterator[tuple[str, bytes]]:
        oid, data = element
        before: bytes | None = kept.read()
        forgotten = before == _FORGOTTEN
        state = ObjectState.from_bytes(before) if before and not forgotten else None
        if data[:1] == _FORGET:
            # What changed in this bundle is not written yet, and could not be found again.
            if state is not None and state.newest_us <= _TIME.unpack(data[1:])[0] and oid not in self._changed:
                if self._shuffled:
                    kept.write(_FORGOTTEN)
                else:
                    kept.clear()
            return
        news = News.from_bytes(data)
        if forgotten:
            news = news._replace(history=None)
        merged = merge(state, news, timestamp.micros, lambda: self._origins.rows_of([oid]).get(oid, b""))
        if merged is None:
            count("unchanged")
            return
        kept.write(merged.to_bytes())
        self._changed.add(oid)
        yield oid, merged.rows

    def teardown(self) -> None:
        self._origins.close()


class _Assemble(beam.DoFn):
    """Light curves of the objects of a bundle, each once or, of a large bundle, in several batches."""

    def __init__(self, objects: int) -> None:
        self._objects = objects

    def start_bundle(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._newest = MIN_TIMESTAMP

    def process(
        self, element: tuple[str, bytes], timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[LightCurveBatch | beam.pvalue.TaggedOutput]:
        oid, rows = element
        self._waiting[oid] = rows
        self._newest = max(self._newest, timestamp)
        if len(self._waiting) >= self._objects:
            for table, batch in self._flush():
                yield beam.pvalue.TaggedOutput(KEPT, table)
                yield batch

    def finish_bundle(self) -> Iterator[WindowedValue | beam.pvalue.TaggedOutput]:
        for found in self._flush():
            table, batch = (WindowedValue(value, self._newest, (GlobalWindow(),)) for value in found)
            yield beam.pvalue.TaggedOutput(KEPT, table)
            yield batch

    def _flush(self) -> Iterator[tuple[pa.Table, LightCurveBatch]]:
        states, self._waiting = list(self._waiting.values()), {}
        # Those of the first piece are written while the features of the second are computed.
        for start in range(0, len(states), _OBJECTS_AT_ONCE):
            table, batch = light_curves_of(states[start : start + _OBJECTS_AT_ONCE])
            count("objects", len(batch))
            yield table, batch


class KeepLightCurves(beam.PTransform):
    """Write the rows of objects to the table ``light_curve``, so that a later process can go on with them.

    Gives the PCollection ``dead_letters``: rows that the database refused.

    Parameters
    ----------
    database : Database
    unit : str
        Unit of work that names the dead letters.
    """

    def __init__(self, database: Database, unit: str) -> None:
        super().__init__()
        self._writing = _WriteKept(database, unit)

    def expand(self, kept: beam.PCollection) -> Any:
        """Apply to the PCollection ``kept`` of :class:`LightCurvesByObject`."""
        return kept | beam.ParDo(self._writing).with_outputs(DEAD_LETTERS, main="done")


class _WriteKept(beam.DoFn):
    def __init__(self, database: Database, unit: str) -> None:
        self._database, self._unit = database, unit

    def setup(self) -> None:
        self._writing: Background[WriteResult] = Background()

    def process(self, rows: pa.Table) -> Iterator[Any]:
        if not rows.num_rows:
            return
        for result, written in self._writing.ask(partial(self._database.write, {LIGHT_CURVE.name: rows}), rows):
            yield from self._told(result, written)

    def finish_bundle(self) -> Iterator[Any]:
        for result, written in self._writing.rest():
            yield from map(at_the_end, self._told(result, written))

    def teardown(self) -> None:
        self._writing.forget()
        self._database.close()

    def _told(self, result: WriteResult, rows: pa.Table) -> Iterator[beam.pvalue.TaggedOutput]:
        count(f"rows:{LIGHT_CURVE.name}", result.counts[LIGHT_CURVE.name].written)
        for refused in result.refused:
            reason = f"table {refused.table}: {refused.reason}"
            payload = rows["rows"][refused.index].as_py()
            yield dead_letter(self._unit, DeadLetter("write", reason, self._unit, str(refused.key[0]), payload))
