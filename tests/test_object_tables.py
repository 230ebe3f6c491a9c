"""Tables with one row per object: what is put is there, whatever was there before."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.buckets import bucket_of
from storage.object_tables import ObjectTable

BUCKETS = 3
NAMES = [f"ZTF18a{letter * 6}" for letter in "abcdefghijklmnop"]


def names_of(bucket: int) -> list[str]:
    numbers = bucket_of(pa.array(NAMES), BUCKETS)
    return [name for name, number in zip(NAMES, numbers, strict=True) if number == bucket]


def rows(oids: list[str], **columns: Any) -> pa.Table:
    return pa.table({"oid": pa.array(oids, pa.string()), **columns})


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


ROW = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9))
PUT = st.tuples(
    st.dictionaries(st.sampled_from(names_of(1)), ROW, max_size=4), st.lists(st.sampled_from(names_of(1)), max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PUT, max_size=5))
def test_is_a_mapping(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[dict[str, dict[str, int]], list[str]]]
) -> None:
    table, expected = ObjectTable(tmp_path_factory.mktemp("objects"), BUCKETS), dict[str, dict[str, int]]()
    for new, gone in puts:
        columns = sorted({name for row in new.values() for name in row})
        table.put(
            1,
            rows(list(new), **{c: pa.array([row.get(c) for row in new.values()], pa.int64()) for c in columns}),
            pa.array(gone, pa.string()),
        )
        expected = {oid: row for oid, row in expected.items() if oid not in gone} | new
    found = table.read(1)
    assert (found is None) == (not puts)
    stored = found.to_pylist() if found is not None else []
    assert [row["oid"] for row in stored] == sorted(expected)
    for row in stored:
        oid = row.pop("oid")
        assert without_nulls(row) == expected[oid]
        alone = table.row(oid)
        assert alone is not None
        assert alone.to_pylist() == [{"oid": oid, **row}]


class TestPut:
    @pytest.fixture
    def table(self, tmp_path: Path) -> ObjectTable:
        return ObjectTable(tmp_path / "objects", BUCKETS)

    def test_columns_of_another_version(self, table: ObjectTable) -> None:
        a, b = names_of(0)[:2]
        table.put(0, rows([a, b], old=[1, 2], value=pa.array([0.5, 1.5], pa.float32()), word=pa.nulls(2)))
        new = rows([b], new=["n"], value=[0.1], word=["w"]).replace_schema_metadata({"version": "2"})
        table.put(0, new)
        found = table.read(0)
        assert found is not None
        assert found.column_names == ["oid", "new", "value", "word", "old"]
        assert found.schema.field("value").type == pa.float64()
        assert found.schema.metadata == {b"version": b"2"}
        assert found.to_pylist() == [
            {"oid": a, "new": None, "value": 0.5, "word": None, "old": 1},
            {"oid": b, "new": "n", "value": 0.1, "word": "w", "old": None},
        ]
        table.put(0, rows([a], new=["m"], value=[0.2], word=["v"]))
        again = table.read(0)
        assert again is not None
        assert again["old"].null_count == 2
        table.put(0, rows([a, b], new=["m", "n"]))
        assert table.schema().names == ["oid", "new"]

    def test_names_of_other_types(self, table: ObjectTable) -> None:
        a, b = names_of(0)[:2]
        table.put(0, rows([a], x=[1]))
        large = pa.array([a, b], pa.large_string())
        table.put(0, pa.table({"x": [2, 3], "oid": large}), large)
        found = table.read(0, oids=large)
        assert found is not None
        assert found.schema == pa.schema({"x": pa.int64(), "oid": pa.string()})
        assert found["x"].to_pylist() == [2, 3]

    def test_only_without(self, table: ObjectTable) -> None:
        a, b = names_of(0)[:2]
        table.put(0, rows([a, b], x=[1, 2]))
        table.put(0, rows([], x=pa.array([], pa.int64())), pa.array([a]))
        assert (table.row(a), table.row(b)) == (None, rows([b], x=[2]))
        table.put(0, rows([]), pa.array([b]))
        found = table.read(0)
        assert found is not None
        assert len(found) == 0

    def test_refuses(self, table: ObjectTable) -> None:
        a = names_of(0)[0]
        with pytest.raises(ValueError, match=f"{a} occurs more than once"):
            table.put(0, rows([a, a]))
        with pytest.raises(ValueError, match=f"{a} is no object of bucket 1 of 3"):
            table.put(1, rows([a]))
        assert not table.folder.exists()

    def test_failure_changes_nothing(self, table: ObjectTable, monkeypatch: pytest.MonkeyPatch) -> None:
        a = names_of(0)[0]
        table.put(0, rows([a], x=[1]))

        def fail(_: Any, file: Any, **__: Any) -> None:
            file.write(b"PAR1")
            raise OSError("No space left on device")

        monkeypatch.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="No space"):
            table.put(0, rows([a], x=[2]))
        assert table.row(a) == rows([a], x=[1])
        assert [path.name for path in table.folder.iterdir()] == ["bucket=0000.parquet"]

    def test_same_rows_same_bytes(self, table: ObjectTable) -> None:
        oids = names_of(0)
        table.put(0, rows(oids, x=list(range(len(oids)))))
        content = table.path(0).read_bytes()
        for _ in range(2):
            table.put(0, rows(oids[::-1], x=list(range(len(oids)))[::-1]))
            assert table.path(0).read_bytes() == content


class TestRead:
    def test_absent(self, tmp_path: Path) -> None:
        table = ObjectTable(tmp_path / "none", BUCKETS)
        assert (table.read(0), table.row("x"), list(table.read_all()), table.schema()) == (
            None,
            None,
            [],
            pa.schema([]),
        )

    def test_columns_that_differ_between_buckets(self, tmp_path: Path) -> None:
        table = ObjectTable(tmp_path, BUCKETS)
        a, b = names_of(0)[0], names_of(2)[0]
        table.put(0, rows([a], x=[1]))
        table.put(2, rows([b], y=["w"], x=[0.5]))
        assert pa.concat_tables(table.read_all(["y", "x"]), promote_options="permissive").to_pylist() == [
            {"y": None, "x": 1.0},
            {"y": "w", "x": 0.5},
        ]
        assert [part.to_pylist() for part in table.read_all(["z"])] == [[{"z": None}], [{"z": None}]]
        assert table.schema() == pa.schema({"oid": pa.string(), "x": pa.float64(), "y": pa.string()})
        found = table.read(0, ["x"], pa.array([b]))
        assert found is not None
        assert len(found) == 0
