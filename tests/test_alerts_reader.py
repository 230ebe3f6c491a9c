"""Reading archives, folders and containers: whole, cut, damaged, in any portions."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from alerts_fixtures import ALERT, ALERT_TEXT, SYNC, alert, container, packet, schemaless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts import reader
from alerts.batch import AlertBatch
from alerts.container import compress, header_bytes, write_long
from alerts.dead_letters import DeadLetter
from alerts.gunzip import FastGunzip
from alerts.reader import EmptyContainer, Item, Limits, read_source
from alerts.sources import InputError, Source, find_sources, total_bytes

HYPOTHESIS = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))


def read(path: Path, limits: Limits = Limits()) -> list[Item]:  # noqa: B008
    return [item for source in find_sources([str(path)]) for item in read_source(source, limits)]


def candids(items: Iterable[Item]) -> list[int]:
    return [int(candid) for item in items if isinstance(item, AlertBatch) for candid in item.candid]


def letters(items: Iterable[Item]) -> list[DeadLetter]:
    return [item for item in items if isinstance(item, DeadLetter)]


def contents(items: Iterable[Item]) -> list[Any]:
    """All that matters of what was read, without the cuts between batches."""
    found = []
    for item in items:
        if isinstance(item, AlertBatch):
            found += [(member, bytes(item.record(row))) for row, member in enumerate(item.members)]
        else:
            found.append((type(item).__name__, item.member, getattr(item, "reason", "")))
    return sorted(found)


def tar_of(members: dict[str, bytes], **how: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **how) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def expected_candids(count: int, start: int = 1) -> list[int]:
    return [1_000_000 * number for number in range(start, start + count)]


PACKETS = {f"night/{number}.avro": packet(number, cutout=number * 97 % 700) for number in range(1, 11)}


# -- the reference data ------------------------------------------------------------------------------------------------


def test_what_is_bad_ends_as_dead_letters_with_reasons(shared_data: Path) -> None:
    items = read(shared_data / "alerts" / "bad")
    assert not candids(items)
    empty = sorted(item.member for item in items if isinstance(item, EmptyContainer))
    assert len(empty) == 5
    assert all(name.startswith("empty-OCF") for name in empty)
    found = {letter.member: letter for letter in letters(items)}
    assert len(found) == 15
    for name, letter in found.items():
        path = shared_data / "alerts" / "bad" / name
        assert letter.payload == path.read_bytes()
        words = {
            "lfs-pointer": "Git LFS pointer",
            "not-OCF_0": "not an Avro object container",
            "not-OCF_1": "not an Avro object container",
            "not-OCF_2": "not an Avro object container",
            "not-OCF_3": "an HTML page",
            "not-OCF_4": "a message framed for a schema registry (schema 704)",
            "read-error_0": "does not end with the container's marker",
            "read-error_1": "does not end with the container's marker",
            "read-error_2": "does not end with the container's marker",
            "read-error_3": "the schema describes 'union', not a record",
            "read-error_4": "the schema describes 'union', not a record",
        }
        assert [text for start, text in words.items() if name.startswith(start) and text in letter.reason], (
            name,
            letter.reason,
        )


def test_bad_neighbours_in_an_archive_leave_the_good_alone(shared_data: Path, tmp_path: Path) -> None:
    members = {}
    for path in sorted(shared_data.glob("alerts/bad/*.avro")):
        members[f"bad/{path.name}"] = path.read_bytes()
        members[f"good/{path.name}"] = packet(len(members))
    path = tmp_path / "night.tar.gz"
    path.write_bytes(gzip.compress(tar_of(members), 1))
    items = read(path)
    assert len(candids(items)) == 20
    assert len(letters(items)) == 15
    assert sum(isinstance(item, EmptyContainer) for item in items) == 5


@pytest.mark.parametrize("name", ["ztf_public_20200330.tar.gz", "ztf_public_20180819_mod1000.tar.gz"])
def test_small_portions_give_the_same_alerts(shared_data: Path, name: str) -> None:
    path = shared_data / "alerts" / "archive" / name
    whole = contents(read(path))
    assert len(whole) in (135, 30)
    assert contents(read(path, Limits(alerts=7, bytes=200_001))) == whole
    assert all(len(item) <= 7 for item in read(path, Limits(alerts=7)) if isinstance(item, AlertBatch))


# -- tar ---------------------------------------------------------------------------------------------------------------


def test_every_size_of_portion_gives_the_same_alerts(tmp_path: Path) -> None:
    path = tmp_path / "small.tar"
    path.write_bytes(tar_of(PACKETS))
    whole = contents(read(path))
    assert len(whole) == len(PACKETS)
    for size in [*range(1, 6000, 61), *range(512, 20_000, 512)]:
        assert contents(read(path, Limits(bytes=size))) == whole, size


def test_a_member_larger_than_a_portion_does_not_shift_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    for large in range(3000, 3000 + 512, 37):
        path.write_bytes(tar_of({"large": packet(1, cutout=large), **PACKETS}))
        assert len(candids(read(path, Limits(bytes=2048)))) == 11


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_long_names_and_other_members(tmp_path: Path, ending: str, form: int) -> None:
    long_name = "/".join(["folder" * 5] * 7) + "/" + "x" * 30 + ".avro"
    names = ["plain.avro", long_name] + ([] if form == tarfile.USTAR_FORMAT else ["ünï" * 60 + ".avro"])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"other{kind.decode()}")
            info.type, info.linkname = kind, "plain.avro"
            archive.addfile(info)
        for number, name in enumerate(names, 1):
            info = tarfile.TarInfo(name)
            data = packet(number)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            # A link that names a size, as old archivers write it, has no data all the same.
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = tarfile.LNKTYPE, "plain.avro"
            block = bytearray(link.tobuf(form))
            block[124:136] = b"00000002000\0"
            block[148:156] = b"        "
            block[148:156] = b"%06o\0 " % sum(block)
            archive.fileobj.write(bytes(block))  # type: ignore[union-attr]
            archive.offset += len(block)
    data = out.getvalue()
    path = tmp_path / f"night{ending}"
    path.write_bytes(data if ending == ".tar" else gzip.compress(data, 1))
    for limits in (Limits(), Limits(bytes=512)):
        items = read(path, limits)
        assert not letters(items)
        batches = [item for item in items if isinstance(item, AlertBatch)]
        assert [name for batch in batches for name in batch.members] == names


def test_names_that_are_not_unicode_do_no_harm(tmp_path: Path) -> None:
    data = tar_of({"caf\udce9.avro": packet(1), "bad\udce9.avro": b"nonsense"}, format=tarfile.GNU_FORMAT)
    path = tmp_path / "latin.tar"
    path.write_bytes(data)
    items = read(path)
    assert candids(items) == expected_candids(1)
    assert [letter.member.encode() for letter in letters(items)]


@pytest.mark.parametrize("padding", [0, 512, 1024, 10_240])
def test_end_marks_may_lack(tmp_path: Path, padding: int) -> None:
    data = tar_of(PACKETS)
    end = len(data.rstrip(b"\0"))
    data = data[: -(-end // 512) * 512] + bytes(padding)
    path = tmp_path / "night.tar"
    path.write_bytes(data)
    items = read(path)
    assert candids(items) == expected_candids(10)
    assert not letters(items)


def test_an_archive_from_the_time_before_ustar_is_read(tmp_path: Path) -> None:
    data = bytearray(tar_of({"1.avro": packet(1)}, format=tarfile.USTAR_FORMAT))
    data[257:345] = bytes(88)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path = tmp_path / "v7.tar"
    path.write_bytes(data)
    assert candids(read(path)) == expected_candids(1)


@settings(HYPOTHESIS, max_examples=60)
@given(data=st.data())
def test_a_cut_archive_gives_what_precedes_the_cut(tmp_path_factory: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("cut") / "night.tar"
    whole = tar_of(PACKETS)
    cut = data.draw(st.integers(1, len(whole) - 10_240))
    path.write_bytes(whole[:cut])
    items = read(path, Limits(bytes=data.draw(st.sampled_from([512, 4096, 1 << 20]))))
    found = candids(items)
    assert found == expected_candids(len(found))
    inside = 0
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        complete = 0
        for member in archive:
            complete += member.offset_data + member.size <= cut
            inside += member.offset < cut and member.offset_data + -(-member.size // 512) * 512 > cut
    assert len(found) == complete
    if inside and complete < len(PACKETS) and cut % 512 == 0 and letters(items):
        assert "ends in the middle of a member" in letters(items)[0].reason


def test_a_compressed_archive_that_is_cut_says_so(tmp_path: Path) -> None:
    chance = random.Random(1)
    members = {
        f"{n}.avro": container([[schemaless(ALERT, {**alert(n), "cutoutScience": chance.randbytes(3000)})]])
        for n in range(1, 41)
    }
    whole = gzip.compress(tar_of(members), 1)
    path = tmp_path / "night.tar.gz"
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        items = read(path, Limits(bytes=20_000))
        found = candids(items)
        assert found == expected_candids(len(found))
        assert len(found) > 40 * cut / len(whole) - 8
        (letter,) = letters(items)
        assert letter.stage == "read"
        assert "cannot be read further" in letter.reason
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    items = read(path)
    assert candids(items) == expected_candids(40)
    (letter,) = letters(items)
    assert "incorrect data check" in letter.reason
    for junk in (b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(5), b"\x1f\x8b" + bytes(1000)):
        path.write_bytes(junk)
        items = read(path)
        assert not candids(items)
        assert len(letters(items)) == 1


def test_a_damaged_head_ends_the_archive_with_a_dead_letter(tmp_path: Path) -> None:
    data = bytearray(tar_of(PACKETS))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        fifth = archive.getmembers()[4].offset
    data[fifth + 150] ^= 0xFF
    path = tmp_path / "night.tar"
    path.write_bytes(data)
    for limits in (Limits(), Limits(bytes=1024)):
        items = read(path, limits)
        assert candids(items) == expected_candids(4)
        (letter,) = letters(items)
        assert "damaged at the head of a member" in letter.reason
        assert letter.payload.startswith(data[fifth : fifth + 100])


def test_a_member_too_large_for_memory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_MEMBER_BYTES", 5000)
    path = tmp_path / "night.tar"
    path.write_bytes(tar_of({"1": packet(1), "huge": bytes(30_001), "2": packet(2), "3": packet(3)}))
    for limits in (Limits(), Limits(bytes=700)):
        if limits.bytes > 30_000:
            limits = Limits(bytes=4096)
        items = read(path, limits)
        assert candids(items) == expected_candids(3)
        (letter,) = letters(items)
        assert (letter.member, "more than can be read" in letter.reason) == ("huge", True)
    path.write_bytes(path.read_bytes()[:20_000])
    assert "ends in the middle" in letters(read(path, Limits(bytes=4096)))[-1].reason


def test_a_tar_that_claims_absurd_sizes_takes_no_memory(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    for size in (b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"-0000000001\0"):
        block[124:136] = size
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
        path = tmp_path / "night.tar"
        path.write_bytes(tar_of({"1": packet(1)}).rstrip(b"\0").ljust(4096, b"\0")[:2048] + bytes(block))
        items = read(path)
        assert len(letters(items)) >= 1


@settings(HYPOTHESIS, max_examples=150)
@given(data=st.data())
def test_no_byte_of_an_archive_can_stop_the_reading(tmp_path_factory: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("hostile") / "night.tar"
    raw = bytearray(
        tar_of({f"{n}": packet(n, codec=codec) for n, codec in enumerate(("null", "deflate", "snappy"), 1)})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            raw[at:at] = data.draw(
                st.sampled_from([b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x7f", b"\0" * 7, b"Obj\x01"])
            )
    path.write_bytes(raw)
    items = read(path)
    for item in items:
        if isinstance(item, AlertBatch):
            item.to_arrow().validate(full=True)
            for row in range(len(item)):
                (record,) = fastavro.reader(io.BytesIO(item.packet(row)))
                assert isinstance(record, dict)
                # A schema whose field lost its name is taken, if the candidate holds the same.
                candid = record["candid"] if "candid" in record else record["candidate"]["candid"]
                assert candid == item.candid[row]
        elif isinstance(item, DeadLetter):
            assert item.reason


# -- containers --------------------------------------------------------------------------------------------------------


def bodies(count: int, start: int = 1) -> list[bytes]:
    return [schemaless(ALERT, alert(number)) for number in range(start, start + count)]


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard"])
@pytest.mark.parametrize("writer", ["ours", "fastavro"])
def test_containers_with_many_records(tmp_path: Path, codec: str, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Above LOOSE_BYTES a container is read in portions.
    monkeypatch.setattr("alerts.sources.LOOSE_BYTES", 1000)
    path = tmp_path / "many.avro"
    if writer == "ours":
        path.write_bytes(container([bodies(30, 1 + 30 * k) for k in range(5)], codec=codec))
    else:
        if codec in ("snappy", "zstandard"):
            pytest.importorskip({"snappy": "cramjam", "zstandard": "backports.zstd"}[codec])
        with path.open("wb") as file:
            fastavro.writer(file, ALERT, [alert(n) for n in range(1, 151)], codec=codec, sync_interval=2000)
    for limits in (Limits(), Limits(bytes=3000), Limits(bytes=1), Limits(alerts=7, bytes=9000)):
        items = read(path, limits)
        assert candids(items) == expected_candids(150), limits
        assert not letters(items)
        assert all(len(item) <= limits.alerts for item in items if isinstance(item, AlertBatch))
    monkeypatch.undo()
    assert candids(read(path, Limits(alerts=7, bytes=100))) == expected_candids(150)


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard"])
@pytest.mark.parametrize("large", [True, False])
def test_what_precedes_a_damaged_block_is_kept(
    tmp_path: Path, codec: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("alerts.sources.LOOSE_BYTES", 1000)
    good = container([bodies(10), bodies(10, 11)], codec=codec)
    third = container([bodies(10, 21)], codec=codec)[len(header_bytes(ALERT_TEXT, codec, SYNC)) :]
    path = tmp_path / "many.avro"
    for damaged in (third[:-1] + b"\xff", third[:-20], third[: len(third) // 2], b"\xff" * 12 + third):
        path.write_bytes(good + damaged)
        items = read(path, Limits(bytes=1500))
        assert candids(items) == expected_candids(20)
        assert len(letters(items)) == 1
        assert letters(items)[0].payload
    middle = len(third) // 2
    path.write_bytes(good + third[:middle] + bytes(b ^ 0x55 for b in third[middle : middle + 9]) + third[middle + 9 :])
    found = candids(read(path, Limits(bytes=1500)))
    assert found[:20] == expected_candids(20)


def test_blocks_that_inflate_without_end_are_refused(tmp_path: Path) -> None:
    bomb = compress("deflate", bytes(300 << 20), 9)
    head = header_bytes(ALERT_TEXT, "deflate", SYNC)
    block = write_long(1) + write_long(len(bomb)) + bytes(bomb) + SYNC
    path = tmp_path / "bomb.avro"
    path.write_bytes(head + block)
    (letter,) = letters(read(path))
    assert "inflates to more than" in letter.reason
    snappy = b"\xff\xff\xff\xff\x0f" + bytes(20)
    path.write_bytes(header_bytes(ALERT_TEXT, "snappy", SYNC) + write_long(1) + write_long(len(snappy)) + snappy + SYNC)
    (letter,) = letters(read(path))
    assert "inflates to more than" in letter.reason


def growth_of_memory(small: Path, path: Path) -> tuple[int, float]:
    """Alerts read from a path, and by how many megabytes the peak of the memory grew, in a process of its own."""
    tests = Path(__file__).parent
    script = f"""
import resource, sys
sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]
from alerts.batch import AlertBatch
from alerts.reader import read_source
from alerts.sources import find_sources
def count(path):
    (source,) = find_sources([path])
    return sum(len(item) for item in read_source(source) if isinstance(item, AlertBatch))
count({str(small)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
alerts = count({str(path)!r})
print(alerts, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    alerts, grown = done.stdout.split()
    return int(alerts), float(grown)


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    # 1.2 GB once inflated, of which some portions are in memory at a time.
    small, large = tmp_path / "small.tar", tmp_path / "large.tar.gz"
    small.write_bytes(tar_of(PACKETS))
    body = packet(7, cutout=60_000)
    with gzip.open(large, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for number in range(6000):
            info = tarfile.TarInfo(f"{number}.avro")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    alerts, grown = growth_of_memory(small, large)
    assert alerts == 6000
    assert grown < 200


def test_many_blocks_that_inflate_a_thousandfold_take_bounded_memory(tmp_path: Path) -> None:
    # Each a valid alert with a cutout of 20 MB of zeros: 1 GB from a megabyte.
    data = schemaless(ALERT, {**alert(1), "cutoutScience": bytes(20 << 20)})
    block = bytes(compress("deflate", data, 9))
    parts = [header_bytes(ALERT_TEXT, "deflate", SYNC)]
    parts += [write_long(1) + write_long(len(block)) + block + SYNC] * 50
    path, small = tmp_path / "many.avro", tmp_path / "small.avro"
    path.write_bytes(b"".join(parts))
    small.write_bytes(packet(1, codec="deflate"))
    alerts, grown = growth_of_memory(small, path)
    assert alerts == 50
    assert grown < 300


# -- single packets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard"])
def test_a_damaged_packet_gives_no_alert_and_keeps_its_bytes(tmp_path: Path, codec: str) -> None:
    body = schemaless(ALERT, alert(5))
    damaged = {
        "cut": container([[body[:-3]]], codec=codec),
        "more": container([[body + b"x"]], codec=codec),
        "branch": container([[body.replace(b"\0\x1aZTF", b"\x06\x1aZTF")]], codec=codec),
        "empty": container([[b""]], codec=codec),
        "ends": container([[body]], codec=codec)[:-1],
        "marker": container([[body]], codec=codec)[:-1] + b"?",
        "head": container([[body]], codec=codec)[:300],
        "start": b"Ob",
        "nothing": b"",
    }
    for name, data in damaged.items():
        tmp_path.joinpath(f"{name}.avro").write_bytes(data)
    tmp_path.joinpath("good.avro").write_bytes(container([[body]], codec=codec))
    items = read(tmp_path)
    assert candids(items) == [5_000_000]
    assert {letter.member: letter.payload for letter in letters(items)} == {f"{k}.avro": v for k, v in damaged.items()}


def test_required_values_and_fields_that_lack(tmp_path: Path) -> None:
    def changed(**values: Any) -> bytes:
        return container([[schemaless(ALERT, {**alert(2), **values})]])

    def without(*names: str) -> bytes:
        schema = {**ALERT, "fields": [item for item in ALERT["fields"] if item["name"] not in names]}
        return container([[schemaless(schema, alert(3))]], text=json.dumps(schema))

    files = {
        "1": packet(1),
        "2 no name": changed(objectId=None),
        "2 no candid": changed(candid=None),
        "2 no place": changed(candidate={**alert(2)["candidate"], "ra": None}),
        "3 no candid": without("candid"),
        "3 no candidate": without("candidate"),
        "4": packet(4),
    }
    for name, data in files.items():
        tmp_path.joinpath(f"{name}.avro").write_bytes(data)
    items = read(tmp_path)
    # The identifier also stands in the candidate.
    assert sorted(candids(items)) == [1_000_000, 3_000_000, 4_000_000]
    reasons = {letter.member: letter.reason for letter in letters(items)}
    assert reasons == {
        "2 no name.avro": "objectId is null",
        "2 no candid.avro": "candid is null",
        "2 no place.avro": "ra is null",
        "3 no candidate.avro": "not a ZTF alert: its schema has no jd, ra, dec",
    }
    (record,) = fastavro.reader(io.BytesIO(next(x for x in letters(items) if x.reason == "ra is null").payload))
    assert isinstance(record, dict)
    assert record["candidate"]["ra"] is None  # type: ignore[index,call-overload]


def test_fields_of_strange_types_do_not_stop_the_run(tmp_path: Path) -> None:
    """The values that later stages use keep to their types, whatever a schema says."""
    strange = [
        "int",
        "float",
        "string",
        "bytes",
        "boolean",
        {"type": "array", "items": "int"},
        {"type": "map", "values": "long"},
    ]
    values: list[Any] = [7, 1.5, "text", b"bytes", True, [1, 2], {"k": 3}]
    number = 0
    for kind, value in zip(strange, values, strict=True):
        for name in ("objectId", "candid", "schemavsn", "candidate", "prv_candidates"):
            fields = [{"name": name, "type": kind} if item["name"] == name else item for item in ALERT["fields"]]
            schema = {**ALERT, "fields": fields}
            body = schemaless(schema, {**alert(number), name: value})
            tmp_path.joinpath(f"{number}.avro").write_bytes(container([[body]], text=json.dumps(schema)))
            number += 1
        for name in ("jd", "ra", "programid", "fid", "magpsf", "isdiffpos"):
            candidate = ALERT["fields"][3]["type"]
            fields = [{"name": name, "type": kind} if item["name"] == name else item for item in candidate["fields"]]
            schema = json.loads(ALERT_TEXT)
            schema["fields"][3]["type"] = {**candidate, "fields": fields}
            record = alert(number)
            record["candidate"][name] = value
            tmp_path.joinpath(f"{number}.avro").write_bytes(
                container([[schemaless(schema, record)]], text=json.dumps(schema))
            )
            number += 1
    items = read(tmp_path)
    batches = [item for item in items if isinstance(item, AlertBatch)]
    assert sum(map(len, batches)) + len(letters(items)) == number
    for batch in batches:
        assert batch.candid.dtype == np.int64
        assert batch.jd.dtype == batch.ra.dtype == np.float64
        assert batch.programid.dtype == np.int64
        assert batch.object_id.type == "string"
        assert len(batch.numbers("candidate.magpsf")) == len(batch.offsets("prv_candidates")) - 1 == len(batch)
        batch.to_arrow().validate(full=True)


def test_headers_that_lie_are_dead_letters(tmp_path: Path) -> None:
    body = container([[schemaless(ALERT, alert(1))]])[len(header_bytes(ALERT_TEXT, "null", SYNC)) :]

    def head(metadata: bytes) -> bytes:
        return b"Obj\x01" + metadata + SYNC + body

    key = write_long(11) + b"avro.schema"
    deep = b"[" * 100_000
    files = [
        head(b"\0"),
        head(write_long(2**40)),
        head(b"\xff" * 20),
        head(write_long(-1) + write_long(5) + b"\x02a\x02b\0"),
        head(write_long(1) + key + write_long(2**50)),
        head(write_long(1) + key + write_long(3) + b"{}x\0"),
        head(write_long(1) + key + write_long(2) + b"\xff\xfe\0"),
        head(write_long(1) + key + write_long(len(deep)) + deep + b"\0"),
        header_bytes(ALERT_TEXT, "lzma", SYNC) + body,
        header_bytes(ALERT_TEXT, "null", SYNC) + b"\x80" * 9 + b"\x7e" + b"\0",
        header_bytes(ALERT_TEXT, "null", SYNC) + b"\xff" * 9 + b"\x01\0" + SYNC,
        header_bytes(ALERT_TEXT, "null", SYNC) + b"\xfe" * 9 + b"\x01\0" + SYNC,
    ]
    for number, data in enumerate(files):
        tmp_path.joinpath(f"{number:02d}.avro").write_bytes(data)
    found = letters(read(tmp_path))
    assert [letter.member for letter in found] == [f"{number:02d}.avro" for number in range(len(files))] or len(
        {letter.member for letter in found}
    ) == len(files)
    assert all(letter.reason for letter in found)


def test_a_schema_with_xmatches_in_its_middle_is_refused(tmp_path: Path) -> None:
    schema = {**ALERT, "fields": [*ALERT["fields"][:2], {"name": "xmatches", "type": "null"}, *ALERT["fields"][2:]]}
    data = container([[schemaless(schema, {**alert(1), "xmatches": None})]], text=json.dumps(schema))
    tmp_path.joinpath("1.avro").write_bytes(data)
    (letter,) = read(tmp_path)
    assert isinstance(letter, DeadLetter)
    assert "xmatches" in letter.reason


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_inputs_are_found_once_sorted_and_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/2.avro", "b/deep/3.avro.gz", "1.avro", ".hidden.avro", ".git/4.avro", "b/notes.txt", "c.tar.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int(path.name[0]) if path.name[0].isdigit() else 9
        data = packet(number)
        path.write_bytes(gzip.compress(tar_of({"9.avro": data}) if "tar" in name else data) if "gz" in name else data)
    tmp_path.joinpath("dangling.avro").symlink_to(tmp_path / "nowhere")
    folder = str(tmp_path)
    sources = find_sources([folder])
    assert total_bytes(sources) == sum(source.size for source in sources) > 0
    items = [item for source in sources for item in read_source(source)]
    assert sorted(candids(items)) == [1_000_000, 2_000_000, 3_000_000, 9_000_000]
    assert not letters(items)
    again = find_sources([folder, folder, f"{folder}/b", f"{folder}/**/*.avro*", f"{folder}/1.avro"])
    assert sorted(path for source in again for path in source.paths) == sorted(
        path for source in sources for path in source.paths
    )
    for missing in ("nothing.avro", "*.nothing"):
        with pytest.raises(InputError, match="no such file"):
            find_sources([f"{folder}/{missing}"])
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(InputError, match="no alerts there"):
        find_sources([f"{folder}/empty"])


def test_large_folders_are_cut_into_units_with_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alerts.sources.LOOSE_FILES_PER_SOURCE", 4)
    for number in range(1, 11):
        tmp_path.joinpath(f"{number:02d}.avro").write_bytes(packet(number))
    sources = find_sources([str(tmp_path)])
    assert len({source.name for source in sources}) == 3
    assert [source.first for source in sources] == [0, 4, 8]
    batches = [item for source in sources for item in read_source(source, Limits(alerts=3))]
    assert candids(batches) == expected_candids(10)
    firsts = [(item.unit, item.first) for item in batches if isinstance(item, AlertBatch)]
    assert len(set(firsts)) == len(firsts)


def test_a_compressed_loose_file_that_inflates_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_MEMBER_BYTES", 1 << 20)
    tmp_path.joinpath("1.avro.gz").write_bytes(gzip.compress(bytes(3 << 20)))
    tmp_path.joinpath("2.avro.gz").write_bytes(gzip.compress(packet(2))[:-9])
    tmp_path.joinpath("3.avro.gz").write_bytes(gzip.compress(packet(3)))
    items = read(tmp_path)
    assert candids(items) == [3_000_000]
    reasons = {letter.member: letter.reason for letter in letters(items)}
    assert "inflates to more than" in reasons["1.avro.gz"]
    assert reasons.keys() == {"1.avro.gz", "2.avro.gz"}


def test_a_large_compressed_container_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alerts.sources.LOOSE_BYTES", 100)
    path = tmp_path / "many.avro.gz"
    path.write_bytes(gzip.compress(container([bodies(20), bodies(20, 21)])))
    assert candids(read(path, Limits(bytes=3000))) == expected_candids(40)
    path.write_bytes(path.read_bytes()[:-30])
    items = read(path, Limits(bytes=3000))
    assert candids(items)[:20] == expected_candids(20)
    assert len(letters(items)) == 1


def test_an_archive_that_cannot_be_opened_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "night.tar.gz"
    with pytest.raises(FileNotFoundError):
        list(read_source(Source("night", str(path), (str(path),))))
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.joinpath("2.avro").write_bytes(packet(2))
    paths = (str(folder / "1.avro"), str(folder / "2.avro"))
    items = list(read_source(Source("folder", str(folder), paths)))
    assert candids(items) == [2_000_000]
    assert [letter.member for letter in letters(items)] == ["1.avro"]


def test_progress_tells_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "night.tar.gz"
    path.write_bytes(gzip.compress(tar_of(PACKETS)))
    folder = tmp_path / "loose"
    folder.mkdir()
    folder.joinpath("1.avro").write_bytes(packet(1))
    for place in (path, folder):
        (source,) = find_sources([str(place)])
        told: list[int] = []
        list(read_source(source, Limits(), told.append))
        assert sum(told) == source.size


def test_not_an_archive_at_all(tmp_path: Path) -> None:
    for name, data, words in (
        ("a.tar.gz", b"<!DOCTYPE html><html>", "HTML page"),
        ("b.tar.gz", b"", "empty"),
        ("c.tar", struct.pack("<4000d", *range(4000)), "not an Avro"),
        ("d.tar.gz", gzip.compress(b"version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        ("e.tar.gz", gzip.compress(b""), "empty"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        (letter,) = read(path)
        assert isinstance(letter, DeadLetter)
        assert words in letter.reason


def test_an_archive_that_shrinks_while_it_is_read_again_ends_the_reading() -> None:
    """The damage is met after bytes that the file, opened again, does not have any more."""
    whole = gzip.compress(np.random.default_rng(1).bytes(1 << 16))
    stream = FastGunzip(io.BytesIO(whole + whole[:-8] + bytes(8)), lambda: io.BytesIO(gzip.compress(b"short")))
    memory = memoryview(bytearray(1 << 12))
    with pytest.raises(OSError, match="changed while it was read"):
        list(iter(lambda: stream.readinto(memory), 0))
