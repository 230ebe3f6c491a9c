"""A night of ZTF-like alert packets as the public archive serves it, with the answer to its crossmatch."""

import csv
import datetime
import io
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from isal import igzip

from schemas import load_schema
from simulation.cutouts import KINDS as CUTOUT_KINDS
from simulation.cutouts import stamp_pool
from simulation.encode import Encoded, RecordEncoder, container_header, text, zigzag
from simulation.packets import (
    NIGHT_ZERO_JD,
    candidate_columns,
    draw_epochs,
    draw_exposures,
    forced_columns,
    measure,
)
from simulation.population import OBJECTS_PER_BLOCK, Objects, object_block, random_stream
from simulation.sky import NearestSource, temporary_path

SCHEMA_VERSIONS = ("3.3", "4.02")
SCHEMA_MIX: Mapping[str, float] = MappingProxyType({"3.3": 0.4, "4.02": 0.6})
BAD_KINDS = ("truncated", "html", "lfs_pointer", "no_record", "random_bytes")
MAX_REPEAT_FRACTION = 0.6
MAX_ALERTS = 5_000_000
TRUTH_COLUMNS = ("candid", "objectId", "ra", "dec", "AllWISE", "separation_arcsec", "schemavsn", "jd", "fid")
# Palomar's winter night in UT, as fractions of the day.
_NIGHT_START, _NIGHT_END = 0.10, 0.55
_NIGHT_STREAM = 5
_BAD_STREAM = 6
_STAMPS = 128
_UNIX_EPOCH_JD = 2440587.5
_PUBLISHER = "ZTF (www.ztf.caltech.edu)"
_COMPRESSION_LEVEL = 1
# Keeps the names of broken members apart from those of packets, whose table rows stay below 5,000.
_BAD_TABLE_ROW = 19_000


@dataclass(frozen=True)
class NightSummary:
    """What `simulate_night` wrote.

    `alerts` counts good members, `bad_members` and `by_schema` count by kind and by version, `matched` the alerts with
    a true counterpart; `member_bytes` is the sum over good members.
    """

    archive: Path
    truth: Path
    alerts: int
    objects: int
    matched: int
    by_schema: Mapping[str, int]
    bad_members: Mapping[str, int]
    member_bytes: int
    archive_bytes: int

    @property
    def mean_member_bytes(self) -> float:
        """Mean size of a good member [byte]."""
        return self.member_bytes / self.alerts if self.alerts else 0.0


def night_objects(alerts: int, repeat_fraction: float) -> int:
    """Number of distinct objects in a night; the rest of the alerts repeat one of them."""
    return alerts - int(alerts * repeat_fraction)


class PacketWriter:
    """Joins encoded records to one-record Avro object containers of one schema version.

    Parameters
    ----------
    version
        ``3.3`` or ``4.02``.
    """

    def __init__(self, version: str) -> None:
        schema = load_schema(f"ztf_alert_{version}")
        self._fields = {field["name"]: field["type"] for field in schema["fields"]}
        self._schema = schema
        self.candidate = RecordEncoder(self._fields["candidate"])
        self.history = RecordEncoder(self._items("prv_candidates"))
        self.has_forced = "fp_hists" in self._fields
        self.forced = RecordEncoder(self._items("fp_hists")) if self.has_forced else None
        self._head = text(version) + text(_PUBLISHER)
        self._header = container_header(schema, b"")
        self._null, self._value = (
            zigzag(self._fields["prv_candidates"].index(branch))
            for branch in ("null", next(b for b in self._fields["prv_candidates"] if b != "null"))
        )

    def _items(self, name: str) -> dict[str, Any]:
        return next(branch for branch in self._fields[name] if branch != "null")["items"]

    def _array(self, items: bytes, count: int) -> bytes:
        return self._value + zigzag(count) + items + b"\x00" if count else self._null

    def packet(
        self,
        object_id: str,
        candid: int,
        candidate: bytes,
        history: tuple[bytes, int],
        forced: tuple[bytes, int],
        cutouts: list[bytes],
        sync: bytes,
    ) -> bytes:
        """One container.

        Parameters
        ----------
        object_id, candid
            Names of the alert.
        candidate
            Encoded record.
        history, forced
            Encoded records of ``prv_candidates`` and ``fp_hists``, joined, and their number; none gives null.
        cutouts
            The three encoded cutout records, or nothing for null.
        sync
            Marker of 16 bytes.
        """
        parts = [self._head, text(object_id), zigzag(candid), candidate, self._array(*history)]
        if self.has_forced:
            parts.append(self._array(*forced))
        for cutout in cutouts:
            parts += (self._value, cutout)
        if not cutouts:
            parts.append(self._null * len(CUTOUT_KINDS))
        body = b"".join(parts)
        return b"".join((self._header, sync, zigzag(1), zigzag(len(body)), body, sync))

    def empty_container(self, sync: bytes) -> bytes:
        """Valid container without a record."""
        return self._header + sync


@dataclass(frozen=True)
class _Block:
    """Alerts of one block of objects, in the order of their members."""

    object_id: list[str]
    candid: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    jd: np.ndarray
    fid: np.ndarray
    version: np.ndarray
    packets: Iterator[bytes]


def _alerts_per_block(alerts: int, objects: int) -> list[tuple[int, int]]:
    """(alerts, objects) of every block, in proportion."""
    blocks = -(-objects // OBJECTS_PER_BLOCK)
    edges = [min(i * OBJECTS_PER_BLOCK, objects) for i in range(blocks + 1)]
    return [(b * alerts // objects - a * alerts // objects, b - a) for a, b in pairwise(edges)]


def _block_alerts(
    rng: np.random.Generator,
    objects: Objects,
    alerts: int,
    start_jd: float,
    duration_days: float,
    night_jd: float,
    mix: Mapping[str, float],
    private_fraction: float,
    writers: Mapping[str, PacketWriter],
    pool: Mapping[str, list[bytes]],
) -> _Block:
    exposures = draw_exposures(rng, start_jd, duration_days)
    epochs = draw_epochs(rng, objects, exposures, alerts)
    measured = measure(rng, objects, exposures, epochs, night_jd, private_fraction)
    rows = np.flatnonzero(epochs.alert)
    tblid = np.ma.getdata(measured.columns["tblid"])[rows]
    rows = rows[np.lexsort((tblid, exposures.jd[epochs.exposure[rows]]))]
    candidate = candidate_columns(rng, objects, exposures, epochs, measured, rows)
    # Newest first, earlier nights only.
    past = np.flatnonzero(~epochs.alert)[::-1]
    forced = forced_columns(rng, objects, exposures, epochs, measured, past)

    version = rng.choice(list(mix), len(rows), p=np.array(list(mix.values())) / sum(mix.values()))
    history_bytes: dict[str, Encoded] = {}
    forced_bytes: dict[str, Encoded] = {}
    candidate_bytes: dict[str, Encoded] = {}
    for name in np.unique(version):
        writer = writers[name]
        history_bytes[name] = writer.history.encode(measured.columns)
        candidate_bytes[name] = writer.candidate.encode(candidate)
        if writer.forced is not None:
            forced_bytes[name] = writer.forced.encode(forced)

    obj = epochs.obj[rows]
    object_id = [name.decode() for name in objects.object_id[obj]]
    candid = np.ma.getdata(candidate["candid"])
    positive = measured.difference[rows] > 0
    stamps = rng.integers(0, max(len(pool[CUTOUT_KINDS[0]]) // 2, 1), (len(rows), len(CUTOUT_KINDS)))
    sync = rng.bytes(16 * len(rows))
    # Row of the object's first measurement, and where its reversed past lies among the forced photometry.
    first = epochs.offsets[obj]
    past_count = np.r_[0, np.cumsum(~epochs.alert)]
    past_start = len(past) - past_count[epochs.offsets[obj + 1]]
    past_length = past_count[epochs.offsets[obj + 1]] - past_count[first]

    def packets() -> Iterator[bytes]:
        for i, row in enumerate(rows):
            name = version[i]
            cutouts = _cutouts(int(candid[i]), bool(positive[i]), stamps[i], pool)
            fp = (b"", 0)
            if name in forced_bytes:
                begin, count = int(past_start[i]), int(past_length[i])
                fp = (forced_bytes[name].rows(begin, begin + count), count)
            yield writers[name].packet(
                object_id[i],
                int(candid[i]),
                candidate_bytes[name].rows(i, i + 1),
                (history_bytes[name].rows(int(first[i]), int(row)), int(row - first[i])),
                fp,
                cutouts,
                sync[16 * i : 16 * (i + 1)],
            )

    return _Block(
        object_id,
        candid,
        np.ma.getdata(candidate["ra"]),
        np.ma.getdata(candidate["dec"]),
        candidate["jd"],
        candidate["fid"],
        version,
        packets(),
    )


def _cutouts(candid: int, positive: bool, stamps: np.ndarray, pool: Mapping[str, list[bytes]]) -> list[bytes]:
    science, template, difference = (pool[kind] for kind in CUTOUT_KINDS)
    if not science:
        return []
    stem, pid = f"candid{candid}", candid // 1_000_000
    sign = "scimref" if positive else "refmsci"
    return [
        text(f"{stem}_pid{pid}_targ_sci.fits.gz") + science[stamps[0]],
        text(f"{stem}_ref.fits.gz") + template[stamps[1]],
        text(f"{stem}_pid{pid}_targ_{sign}.fits.gz") + difference[2 * stamps[2] + (not positive)],
    ]


def _bad_member(kind: str, rng: np.random.Generator, packet: bytes, writer: PacketWriter) -> bytes:
    if kind == "truncated":
        return packet[: int(len(packet) * rng.uniform(0.05, 0.9))]
    if kind == "html":
        return b"<!DOCTYPE html>\n<html><head><title>503</title></head><body><p>Service unavailable</p></body></html>\n"
    if kind == "lfs_pointer":
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{rng.bytes(32).hex()}",
            f"size {len(packet)}",
        )
        return ("\n".join(lines) + "\n").encode()
    if kind == "no_record":
        return writer.empty_container(rng.bytes(16))
    return rng.bytes(int(rng.integers(1_000, 40_000)))


def _add(archive: tarfile.TarFile, name: str, data: bytes, jd: float) -> None:
    member = tarfile.TarInfo(f"{name}.avro")
    member.size, member.mode = len(data), 0o644
    member.mtime = int((jd - _UNIX_EPOCH_JD) * 86400)
    archive.addfile(member, io.BytesIO(data))


def _check(alerts: int, date: str, mix: Mapping[str, float], repeat_fraction: float, bad_members: int) -> None:
    if not 1 <= alerts <= MAX_ALERTS:
        raise ValueError(f"A night has 1 to {MAX_ALERTS} alerts, not {alerts}.")
    if not 0.0 <= repeat_fraction <= MAX_REPEAT_FRACTION:
        raise ValueError(f"The fraction of repeated objects is {repeat_fraction}; give 0 to {MAX_REPEAT_FRACTION}.")
    if not mix or not set(mix) <= set(SCHEMA_VERSIONS) or min(mix.values()) < 0 or not sum(mix.values()) > 0:
        raise ValueError(f"The schema mix gives weights to {' and '.join(SCHEMA_VERSIONS)}; got {dict(mix)}.")
    if bad_members < 0:
        raise ValueError(f"The number of bad members is {bad_members}; give 0 or more.")
    try:
        datetime.datetime.strptime(date, "%Y%m%d")
    except ValueError:
        raise ValueError(f"The date {date!r} is not written YYYYMMDD.") from None


def simulate_night(
    output: Path,
    *,
    alerts: int = 1000,
    seed: int = 1,
    date: str = "20260101",
    catalog: Path | None = None,
    schema_mix: Mapping[str, float] = SCHEMA_MIX,
    bad_members: int = 0,
    repeat_fraction: float = 0.2,
    private_fraction: float = 0.0,
    cutouts: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> NightSummary:
    """Write ``ztf_public_YYYYMMDD.tar.gz`` and ``truth.csv``; the same arguments give the same bytes.

    Parameters
    ----------
    output
        Folder; made if absent. Files appear in it under their names when they are complete.
    alerts
        Number of good packets, one member ``CANDID.avro`` each.
    seed
        Number that decides everything drawn.
    date
        UT date of the night, YYYYMMDD.
    catalog
        Catalogue (see `simulation.sky.simulate_catalog`) that the truth refers to; without one no alert has a
        counterpart.
    schema_mix
        Weights of the schema versions 3.3 and 4.02.
    bad_members
        Number of broken members strewn in: truncated container, HTML page, Git LFS pointer, container without a record,
        random bytes, in turn.
    repeat_fraction
        Fraction of alerts whose object had one already in this night, 0 to 0.6.
    private_fraction
        Fraction of measurements with programid 2 or 3, which a public archive lacks.
    cutouts
        False leaves the three cutouts null (packets of 30 kB instead of 70 kB).
    progress
        Called with (alerts done, alerts in all).

    Returns
    -------
    NightSummary

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _check(alerts, date, schema_mix, repeat_fraction, bad_members)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    archive_path, truth_path = output / f"ztf_public_{date}.tar.gz", output / "truth.csv"
    partial_archive, partial_truth = temporary_path(archive_path), temporary_path(truth_path)
    nearest = NearestSource(catalog) if catalog is not None else None

    midnight = datetime.datetime.strptime(date, "%Y%m%d").replace(tzinfo=datetime.UTC)
    night_jd = midnight.timestamp() / 86400 + _UNIX_EPOCH_JD
    if night_jd - NIGHT_ZERO_JD < 100:
        raise ValueError(f"The date {date} lies before the survey; give one after 20170401.")
    objects = night_objects(alerts, repeat_fraction)
    blocks = _alerts_per_block(alerts, objects)
    duration = (_NIGHT_END - _NIGHT_START) / len(blocks)
    writers = {version: PacketWriter(version) for version in SCHEMA_VERSIONS}
    pool = stamp_pool(seed, min(_STAMPS, 2 * math.ceil(alerts / 2)) if cutouts else 0)
    bad_rng = random_stream(seed, _BAD_STREAM)
    bad_after = np.sort(bad_rng.integers(0, alerts, bad_members))

    done, bad_done, matched, member_bytes = 0, 0, 0, 0
    by_schema: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    try:
        with (
            open(partial_archive, "wb") as raw,
            igzip.IGzipFile(
                filename="", mode="wb", compresslevel=_COMPRESSION_LEVEL, fileobj=raw, mtime=0
            ) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
            open(partial_truth, "w", newline="", encoding="ascii") as truth_file,
        ):
            truth = csv.writer(truth_file, lineterminator="\n")
            truth.writerow(TRUTH_COLUMNS)
            for number, (n_alerts, n_objects) in enumerate(blocks):
                block = _block_alerts(
                    random_stream(seed, _NIGHT_STREAM, number),
                    object_block(seed, number).first(n_objects),
                    n_alerts,
                    night_jd + _NIGHT_START + number * duration,
                    duration,
                    night_jd,
                    schema_mix,
                    private_fraction,
                    writers,
                    pool,
                )
                names, separation = [""] * n_alerts, np.full(n_alerts, np.nan)
                if nearest is not None:
                    names, separation = nearest(block.ra, block.dec)
                for i, packet in enumerate(block.packets):
                    candid, jd = int(block.candid[i]), float(block.jd[i])
                    _add(archive, str(candid), packet, jd)
                    member_bytes += len(packet)
                    while bad_done < bad_members and bad_after[bad_done] == done:
                        kind = BAD_KINDS[bad_done % len(BAD_KINDS)]
                        data = _bad_member(kind, bad_rng, packet, writers[str(block.version[i])])
                        name = str(candid // 1_000_000 * 1_000_000 + _BAD_TABLE_ROW + bad_done)
                        _add(archive, name, data, jd)
                        bad[kind] += 1
                        bad_done += 1
                    done += 1
                truth.writerows(
                    zip(
                        block.candid.tolist(),
                        block.object_id,
                        block.ra.tolist(),
                        block.dec.tolist(),
                        names,
                        ["" if math.isnan(s) else f"{s:.6f}" for s in separation.tolist()],
                        block.version.tolist(),
                        block.jd.tolist(),
                        block.fid.tolist(),
                        strict=True,
                    )
                )
                matched += sum(name != "" for name in names)
                by_schema.update(block.version.tolist())
                if progress is not None:
                    progress(done, alerts)
        partial_archive.replace(archive_path)
        partial_truth.replace(truth_path)
    finally:
        partial_archive.unlink(missing_ok=True)
        partial_truth.unlink(missing_ok=True)
    return NightSummary(
        archive_path,
        truth_path,
        done,
        objects,
        matched,
        dict(by_schema),
        dict(bad),
        member_bytes,
        archive_path.stat().st_size,
    )
