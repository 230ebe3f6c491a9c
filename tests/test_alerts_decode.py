"""The columnar decoder beside fastavro: real packets, random schemas, and bytes that lie."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from alerts_fixtures import (
    Invalid,
    assert_equals_plain,
    encode,
    good_packets,
    plain_values,
    same,
    strict_read,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts import container, kernel
from alerts.decode import Decoder, Records
from alerts.layout import STANDARD_FIELDS, SchemaError, compile_layout
from alerts.reference import decode_with_fastavro

HYPOTHESIS = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


def blocks_of(data: bytes) -> tuple[container.Header, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Header of a container, and its inflated blocks: buffer, starts, ends, counts."""
    view = memoryview(data)
    header = container.parse_header(view)
    body = len(header.raw) + container.SYNC_BYTES
    found = list(container.blocks(view, body, len(data), data[body - 16 : body]))
    texts = [container.decompress(header.codec, view, block) for block in found]
    ends = np.cumsum([len(text) for text in texts]).astype(np.int64)
    starts = ends - np.array([len(text) for text in texts], dtype=np.int64)
    counts = np.array([block.count for block in found], dtype=np.int64)
    return header, np.frombuffer(b"".join(texts), dtype=np.uint8), starts, ends, counts


def assert_same_columns(left: Records, right: Records, buf: np.ndarray) -> None:
    from alerts_fixtures import column_values

    assert left.columns.keys() == right.columns.keys()
    for path, values in left.columns.items():
        assert same(column_values(values, buf), column_values(right.columns[path], buf)), path


# -- real packets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [None, STANDARD_FIELDS], ids=["all", "standard"])
def test_every_packet_equals_fastavro_field_by_field(shared_data: Path, fields: frozenset[str] | None) -> None:
    layouts: dict[str, Any] = {}
    packets = 0
    for name, data in good_packets(shared_data):
        header, buf, starts, ends, counts = blocks_of(data)
        text = header.schema.text
        if text not in layouts:
            layout = compile_layout(json.loads(text), fields)
            layouts[text] = layout, Decoder(layout)
        layout, decoder = layouts[text]
        found = decoder.decode(buf, starts, ends, counts)
        assert not found.failures, (name, found.failures)
        assert_equals_plain(found, layout, buf, list(fastavro.reader(io.BytesIO(data))))
        packets += 1
        if packets % 10 == 0:
            slow = decode_with_fastavro(json.loads(text), layout, buf, starts, ends, counts)
            assert_same_columns(found, slow, buf)
    assert packets == 650
    assert len(layouts) > 10


def test_all_columns_are_all_leaves(shared_data: Path) -> None:
    data = next(shared_data.glob("alerts/by_schema/schemavsn_4.02_writer_4.02_1.avro")).read_bytes()
    header, *_ = blocks_of(data)
    layout = compile_layout(header.schema.parsed, None)
    assert layout.tables == ("", "prv_candidates", "fp_hists")
    record = next(iter(fastavro.reader(io.BytesIO(data))))
    assert isinstance(record, dict)
    assert isinstance(record["candidate"], dict)
    assert {f"candidate.{name}" for name in record["candidate"]} <= layout.columns.keys()
    assert {f"fp_hists.{name}" for name in record["fp_hists"][0]} <= layout.columns.keys()
    assert layout.columns["cutoutScience.stampData"].kind == "bytes"


# -- random schemas ----------------------------------------------------------------------------------------------------


class Schemas:
    """Draws a schema together with the values that it can have."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.number = itertools.count()
        self.names: dict[str, Any] = {}
        self.values: dict[str, st.SearchStrategy] = {}

    def leaf(self) -> tuple[Any, st.SearchStrategy]:
        kind = self.draw(
            st.sampled_from(
                ["boolean", "int", "long", "float", "double", "string", "bytes", "enum", "fixed", "logical"]
            )
        )
        match kind:
            case "boolean":
                return kind, st.booleans()
            case "int":
                return kind, st.integers(-(2**31), 2**31 - 1)
            case "long":
                return kind, st.integers(-(2**63), 2**63 - 1)
            case "float":
                return kind, st.floats(width=32)
            case "double":
                return kind, st.floats()
            case "string":
                return kind, st.text(max_size=6)
            case "bytes":
                return kind, st.binary(max_size=6)
            case "enum":
                symbols = [f"S{k}" for k in range(self.draw(st.integers(1, 4)))]
                return self.named({"type": "enum", "symbols": symbols}, st.sampled_from(symbols))
            case "fixed":
                size = self.draw(st.integers(1, 5))
                return self.named({"type": "fixed", "size": size}, st.binary(min_size=size, max_size=size))
        # Far years have no date: that such a number comes out at all shows that it stays raw.
        return {"type": "long", "logicalType": "timestamp-micros"}, st.integers(-(2**63), 2**63 - 1)

    def named(self, schema: dict[str, Any], values: st.SearchStrategy) -> tuple[Any, st.SearchStrategy]:
        name = f"N{next(self.number)}"
        self.names[name] = schema
        self.values[name] = values
        schema["name"] = name
        return schema, values

    def any(self, depth: int) -> tuple[Any, st.SearchStrategy]:
        shape = self.draw(
            st.sampled_from(["leaf", "leaf", "record", "array", "map", "null or", "or null", "union", "again"])
        )
        if depth == 0 or shape == "leaf":
            return self.leaf()
        match shape:
            case "record":
                return self.record(depth - 1)
            case "array":
                items, values = self.any(depth - 1)
                return {"type": "array", "items": items}, st.lists(values, max_size=4)
            case "map":
                inner, values = self.any(depth - 1)
                return {"type": "map", "values": inner}, st.dictionaries(st.text(max_size=3), values, max_size=3)
            case "again" if self.names:
                name = self.draw(st.sampled_from(sorted(self.names)))
                return name, self.values[name]
            case "null or" | "or null":
                inner, values = self.any(depth - 1)
                if isinstance(inner, list):
                    return inner, values
                at = int(shape == "null or")
                branches = ["null", inner] if at else [inner, "null"]
                return branches, st.just((1 - at, None)) | st.tuples(st.just(at), values)
            case "union":
                first, first_values = self.record(0)
                second, second_values = self.leaf()
                return ["null", first, second], st.one_of(
                    st.just((0, None)), st.tuples(st.just(1), first_values), st.tuples(st.just(2), second_values)
                )
        return self.leaf()

    def record(self, depth: int) -> tuple[Any, st.SearchStrategy]:
        parts = {f"f{k}": self.any(depth) for k in range(self.draw(st.integers(1, 4)))}
        schema = {"type": "record", "fields": [{"name": name, "type": part} for name, (part, _) in parts.items()]}
        return self.named(schema, st.fixed_dictionaries({name: values for name, (_, values) in parts.items()}))


@st.composite
def cases(draw: Any) -> tuple[Any, list[list[bytes]], dict[str, Any]]:
    """Schema, blocks of encoded records, and the named types."""
    schemas = Schemas(draw)
    schema, values = schemas.record(3)
    chance = random.Random(draw(st.integers(0, 99)))
    blocks = draw(st.lists(st.lists(values, max_size=4), min_size=1, max_size=3))
    return schema, [[encode(schema, v, schemas.names, chance) for v in block] for block in blocks], schemas.names


def raw_schema(schema: Any) -> Any:
    """Without logical types: fastavro's reading as the packet has it."""
    return json.loads(json.dumps(schema).replace('"logicalType"', '"was"'))


def fastavro_records(schema: Any, data: bytes, count: int) -> list[Any]:
    stream, parsed = io.BytesIO(data), fastavro.parse_schema(raw_schema(schema))
    return [fastavro.schemaless_reader(stream, parsed, None) for _ in range(count)]


@HYPOTHESIS
@given(case=cases())
def test_random_records_equal_fastavro(case: Any) -> None:
    schema, blocks, _ = case
    layout = compile_layout(schema, None)
    texts = [b"".join(block) for block in blocks]
    ends = np.cumsum([len(text) for text in texts]).astype(np.int64)
    starts = ends - [len(text) for text in texts]
    counts = np.array([len(block) for block in blocks])
    records = [r for text, block in zip(texts, blocks, strict=True) for r in fastavro_records(schema, text, len(block))]
    for around in (b"", b"\xff" * 40):
        buf = np.frombuffer(around + b"".join(texts) + around, dtype=np.uint8)
        found = Decoder(layout).decode(buf, starts + len(around), ends + len(around), counts)
        assert not found.failures
        assert found.block.tolist() == [number for number, block in enumerate(blocks) for _ in block]
        sizes = [len(body) for block in blocks for body in block]
        assert (found.end - found.start).tolist() == sizes
        assert_equals_plain(found, layout, buf, records)


@HYPOTHESIS
@given(case=cases())
def test_the_oracle_equals_plain_dictionaries(case: Any) -> None:
    schema, blocks, _ = case
    layout = compile_layout(schema, None)
    text = b"".join(blocks[0])
    buf = np.frombuffer(text, dtype=np.uint8)
    slow = decode_with_fastavro(schema, layout, buf, [0], [len(text)], [len(blocks[0])])
    assert not slow.failures
    assert_equals_plain(slow, layout, buf, fastavro_records(schema, text, len(blocks[0])))


@HYPOTHESIS
@given(case=cases(), limit=st.integers(1, 4000))
def test_little_memory_gives_the_same_records_in_portions(case: Any, limit: int) -> None:
    schema, blocks, _ = case
    layout = compile_layout(schema, None)
    text = b"".join(blocks[0]) * 5
    count = len(blocks[0]) * 5
    buf = np.frombuffer(text, dtype=np.uint8)
    whole = Decoder(layout).decode(buf, np.array([0]), np.array([len(buf)]), np.array([count]))
    decoder = Decoder(layout, max_bytes=limit)
    begin, left, lengths = 0, count, []
    while left:
        part = decoder.decode(buf, np.array([begin]), np.array([len(buf)]), np.array([left]))
        if part.failures:
            assert part.failures[0].reason == kernel.REASONS[kernel.TOO_MANY_ITEMS]
            break
        lengths += list(zip(part.start.tolist(), part.end.tolist(), strict=True))
        if part.blocks_done:
            break
        assert len(part) == part.records_done > 0
        begin, left = part.position, left - part.records_done
    expected = list(zip(whole.start.tolist(), whole.end.tolist(), strict=True))
    assert lengths == expected[: len(lengths)]
    assert len(lengths) == len(expected) or part.failures


# -- bytes that lie ----------------------------------------------------------------------------------------------------

HUGE = [
    b"\xff" * 9 + b"\x01",
    b"\xfe" * 9 + b"\x01",
    b"\x80" * 12,
    b"\xff" * 12,
    b"\x80\x80\x01",
    b"\x01",
    b"\x00",
    b"\xff",
]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, insert or repeat some bytes."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = chance.choice(HUGE)
            case 3:
                out[at : at + 1] = chance.choice(HUGE)
            case 4:
                out[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
            case 5:
                out[at:at] = out[at : at + 20]
    return bytes(out)


def strict_prefix(schema: Any, data: bytes, count: int, names: dict[str, Any]) -> tuple[list[int], bool]:
    """Ends of the records that are what the specification says, and whether all of the block is."""
    position, ends = 0, []
    for _ in range(count):
        try:
            _, position = strict_read(schema, data, position, names)
        except Invalid:
            return ends, False
        ends.append(position)
    return ends, position == len(data)


def check_hostile(schema: Any, names: dict[str, Any], data: bytes, count: int, chance: random.Random) -> None:
    """The law: the decoder takes exactly the records that the specification allows, and reads them as fastavro does."""
    layout = compile_layout(schema, None)
    ends, whole = strict_prefix(schema, data, count, names)
    results = []
    for _ in range(2):
        around = chance.randbytes(32)
        buf = np.frombuffer(around + data + around, dtype=np.uint8)
        found = Decoder(layout).decode(buf, np.array([32]), np.array([32 + len(data)]), np.array([count]))
        assert (found.end - 32).tolist() == ends
        assert bool(found.failures) == (not whole)
        assert_equals_plain(found, layout, buf, fastavro_records(schema, data, len(ends)))
        results.append(found)
    # What lies around a block does not matter.
    assert results[0].failures == results[1].failures


@settings(HYPOTHESIS, max_examples=250)
@given(case=cases(), seed=st.integers(0, 2**32), more=st.integers(0, 2))
def test_hostile_bytes_are_taken_exactly_where_the_specification_allows_them(case: Any, seed: int, more: int) -> None:
    schema, blocks, names = case
    chance = random.Random(seed)
    check_hostile(schema, names, mutate(b"".join(blocks[0]), chance), len(blocks[0]) + more, chance)


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("int", b"\x80\x80\x80\x80\x20", kernel.INT_RANGE),
        ("long", b"\xff" * 9 + b"\x02", kernel.BAD_VARINT),
        ("long", b"\x80" * 11, kernel.BAD_VARINT),
        ("long", b"\x80\x80", kernel.TRUNCATED),
        ("double", b"\0" * 7, kernel.TRUNCATED),
        ("boolean", b"", kernel.TRUNCATED),
        ("string", b"\x01abc", kernel.BAD_LENGTH),
        ("string", b"\x08abc", kernel.BAD_LENGTH),
        ("bytes", b"\xfe" * 9 + b"\x01", kernel.BAD_LENGTH),
        ("string", b"\x04\xc3\x28", kernel.BAD_TEXT),
        ("string", b"\x06\xed\xa0\x80", kernel.BAD_TEXT),
        (["null", "int"], b"\x04", kernel.BAD_BRANCH),
        (["null", "int"], b"\x01", kernel.BAD_BRANCH),
        (["null", "int", "string"], b"\x01", kernel.BAD_BRANCH),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02", kernel.BAD_ENUM),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x01", kernel.BAD_ENUM),
        ({"type": "array", "items": "int"}, b"\xfe" * 9 + b"\x01", kernel.TOO_MANY_ITEMS),
        ({"type": "array", "items": "int"}, b"\xff" * 9 + b"\x01" + b"\0", kernel.TOO_MANY_ITEMS),
        ({"type": "array", "items": "double"}, b"\x06" + b"\0" * 20, kernel.TOO_MANY_ITEMS),
        ({"type": "map", "values": "int"}, b"\x02\x08", kernel.BAD_LENGTH),
        ("int", b"\x02\x02", kernel.LEFT_OVER),
    ],
)
def test_each_damage_has_its_reason(kind: Any, data: bytes, reason: int) -> None:
    layout = compile_layout({"type": "record", "name": "R", "fields": [{"name": "x", "type": kind}]}, None)
    buf = np.frombuffer(data, dtype=np.uint8)
    found = Decoder(layout).decode(buf, np.array([0]), np.array([len(buf)]), np.array([1]))
    assert [failure.reason for failure in found.failures] == [kernel.REASONS[reason]]
    assert len(found) == (reason == kernel.LEFT_OVER)


def test_a_block_that_claims_more_records_than_it_has_bytes_fails() -> None:
    layout = compile_layout({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}]}, None)
    buf = np.zeros(3, dtype=np.uint8)
    for claimed in (4, 10**6, 2**62):
        found = Decoder(layout).decode(buf, np.array([0]), np.array([3]), np.array([claimed]))
        assert len(found) == 3
        assert len(found.failures) == 1
    empty = Decoder(layout).decode(buf, np.array([3]), np.array([3]), np.array([1]))
    assert len(empty) == 0
    assert len(empty.failures) == 1


def test_neighbours_of_a_damaged_block_go_on() -> None:
    layout = compile_layout({"type": "record", "name": "R", "fields": [{"name": "x", "type": ["null", "int"]}]}, None)
    buf = np.array([2, 14, 9, 9, 0, 2, 16], dtype=np.uint8)
    found = Decoder(layout).decode(buf, np.array([0, 2, 4]), np.array([2, 4, 7]), np.array([1, 1, 2]))
    assert found.columns["x"].valid.tolist() == [1, 0, 1]
    assert found.columns["x"].data[[0, 2]].tolist() == [7, 8]
    assert [(failure.block, failure.position) for failure in found.failures] == [(1, 2)]


def test_a_count_bomb_takes_no_memory() -> None:
    # 40 columns per item, and a packet that claims as many items as it has bytes.
    items = {
        "type": "record",
        "name": "I",
        "fields": [{"name": f"c{k}", "type": ["null", "double"]} for k in range(40)],
    }
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": items}}]}
    layout = compile_layout(schema, None)
    size = 4 << 20
    buf = np.zeros(size, dtype=np.uint8)
    head = container.write_long(size // 48)
    buf[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    decoder = Decoder(layout, max_bytes=8 << 20)
    found = decoder.decode(buf, np.array([0]), np.array([size]), np.array([1]))
    assert len(found) == 0
    assert [failure.reason for failure in found.failures] == [kernel.REASONS[kernel.TOO_MANY_ITEMS]]
    # And one that claims a record per byte.
    plain = compile_layout({"type": "record", "name": "R", "fields": items["fields"]}, None)
    part = Decoder(plain, max_bytes=8 << 20).decode(buf, np.array([0]), np.array([size]), np.array([size]))
    assert sum(values.data.nbytes + values.valid.nbytes for values in part.columns.values()) <= 8 << 20


def test_bounds_are_checked_by_numba_itself(tmp_path: Path) -> None:
    """The kernel on hostile bytes with numba's own bounds checks, in a process of its own."""
    script = f"""
import random, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import numpy as np
from alerts import kernel
from test_alerts_decode import check_hostile, mutate
from alerts_fixtures import ALERT, alert, schemaless
try:
    kernel._varint(np.zeros(2, dtype=np.uint8), 5, 9)
except IndexError:
    pass
else:
    sys.exit("bounds are not checked")
names = {{f["type"]["name"]: f["type"] for f in ALERT["fields"] if isinstance(f["type"], dict)}}
for seed in range(400):
    chance = random.Random(seed)
    data = b"".join(schemaless(ALERT, alert(n, previous=n - 1, cutout=n)) for n in range(3))
    check_hostile(ALERT, names, mutate(data, chance), 3, chance)
"""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# -- schemas that lie --------------------------------------------------------------------------------------------------


def record_of(kind: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": "x", "type": kind}]}


def doubling(levels: int, base: list[Any]) -> dict[str, Any]:
    """Schema that unfolds to 2**levels fields."""
    schema: Any = {"type": "record", "name": "R0", "fields": base}
    for level in range(1, levels):
        fields = [{"name": "a", "type": schema}, {"name": "b", "type": f"R{level - 1}"}]
        schema = {"type": "record", "name": f"R{level}", "fields": fields}
    return schema


def nested(levels: int) -> Any:
    schema: Any = "int"
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return record_of(schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("int", "not a record"),
        (["null"], "not a record"),
        ({"type": "record", "fields": []}, "no name"),
        (record_of("strange"), "unknown type"),
        (record_of(5), "not a type"),
        (record_of({"type": "array"}), "does not say of what"),
        (record_of({"type": "map"}), "does not say of what"),
        (record_of({"type": "enum", "name": "E"}), "no list of symbols"),
        (record_of({"type": "enum", "name": "E", "symbols": 3}), "no list of symbols"),
        (record_of({"type": "fixed", "name": "F", "size": -1}), "no size"),
        (record_of({"type": "fixed", "name": "F", "size": 2**70}), "no size"),
        (record_of({"type": "fixed", "name": "F", "size": "3"}), "no size"),
        ({"type": "record", "name": "R", "fields": 3}, "named fields"),
        ({"type": "record", "name": "R", "fields": [{"name": "x"}]}, "no type"),
        ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}] * 2}, "defined twice"),
        (record_of({"type": "array", "items": "null"}), "take no bytes"),
        (record_of({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}), "take no bytes"),
        (doubling(40, []), "unfolds"),
        (doubling(40, [{"name": "x", "type": "int"}]), "unfolds"),
        (nested(300), "deep"),
    ],
    ids=str,
)
def test_schemas_that_cannot_be_are_refused_with_a_sentence(schema: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        compile_layout(schema, None)


def test_standard_fields_of_another_type_are_no_columns() -> None:
    inner = {
        "type": "record",
        "name": "C",
        "fields": [{"name": "jd", "type": "double"}, {"name": "ra", "type": "string"}],
    }
    ragged = {"type": "array", "items": inner}
    schema = {"type": "record", "name": "R", "fields": [{"name": "candidate", "type": ragged}]}
    assert not compile_layout(schema).columns
    schema["fields"] = [{"name": "candidate", "type": inner}, {"name": "objectId", "type": "int"}]
    layout = compile_layout(schema)
    assert set(layout.columns) == {"candidate.jd"}
    assert layout.missing == ["objectId", "candid", "ra", "dec"]


def test_names_are_looked_up_in_their_namespace_first() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "outer", "type": {"type": "fixed", "name": "X", "size": 1}},
            {
                "name": "inner",
                "type": {
                    "type": "record",
                    "name": "I",
                    "namespace": "deep",
                    "fields": [
                        {"name": "a", "type": {"type": "fixed", "name": "X", "size": 3}},
                        {"name": "b", "type": "X"},
                    ],
                },
            },
            {"name": "again", "type": "X"},
        ],
    }
    layout = compile_layout(schema, None)
    data = b"1aaabbb2"
    buf = np.frombuffer(data, dtype=np.uint8)
    found = Decoder(layout).decode(buf, np.array([0]), np.array([len(buf)]), np.array([1]))
    assert_equals_plain(found, layout, buf, fastavro_records(schema, data, 1))


# -- schemas that contain themselves -----------------------------------------------------------------------------------

CHAIN = {
    "type": "record",
    "name": "Node",
    "fields": [{"name": "x", "type": "int"}, {"name": "next", "type": ["null", "Node"]}],
}


def test_a_schema_that_contains_itself_is_read_by_fastavro() -> None:
    layout = compile_layout(CHAIN, None)
    assert not layout.compiled
    with pytest.raises(ValueError, match="contains itself"):
        Decoder(layout)
    data = b"\x02\x02\x04\x02\x06\x00" + b"\x08\x00"
    found = container.writer_schema(json.dumps(CHAIN)).decode(
        np.frombuffer(data, dtype=np.uint8), np.array([0]), np.array([len(data)]), np.array([2])
    )
    assert len(found) == 2
    slow = decode_with_fastavro(CHAIN, layout, np.frombuffer(data, dtype=np.uint8), [0], [len(data)], [2])
    assert plain_values(layout, fastavro_records(CHAIN, data, 2))["x"] == slow.columns["x"].data.tolist() == [1, 4]


def test_deep_recursion_is_a_failure_not_a_crash() -> None:
    # The compiled reader of fastavro ends the process on this.
    data = b"\x02\x02" * 2_000_000 + b"\x02\x00"
    layout = compile_layout(CHAIN, None)
    found = decode_with_fastavro(CHAIN, layout, np.frombuffer(data, dtype=np.uint8), [0], [len(data)], [1])
    assert len(found) == 0
    assert "RecursionError" in found.failures[0].reason
