"""``alertbeam classify`` from end to end, the tables that it fills, and models that change while it runs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from apache_beam.utils.shared import Shared
from classify_fixtures import (
    FEATURES,
    FIXTURE_CLASSES,
    SCHEMA_NAMES,
    container,
    message_schema,
    random_rows,
    records_of,
    small_model,
    table_of,
    written_model,
)
from database_fixtures import IMPATIENT, execute
from model_fixtures import Server

from alerts.dead_letters import DeadLetter, read_dead_letters
from alerts.sources import find_sources
from classifier.inputs import FeatureRows, with_other_names
from classifier.messages import message_schema_text
from classifier.model import ModelError
from classifier.outputs import classify
from classifier.package import read_model
from database.client import Database
from pipelines import running
from transforms import models
from transforms.classify import CLASSIFIED, Classify, _Classify
from transforms.feature_reading import FeatureBatch, read_features
from transforms.models import KEPT, REFUSED, SWAPPED, ModelKeeper, ModelPlace, read_pointer

WANTED = with_other_names(SCHEMA_NAMES)
Command = Callable[..., dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    written_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(alertbeam: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("FEATURE_VERSION", raising=False)
    return lambda *arguments: alertbeam("classify", *arguments, "--quiet", "--json")


def letters_of(folder: Path) -> list[DeadLetter]:
    return [letter for path in sorted(folder.glob("*.avro")) for letter in read_dead_letters(path)]


def messages_of(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return list(fastavro.reader(file))  # type: ignore[arg-type]


def expected(rows: FeatureRows) -> dict[str, list[float]]:
    values = small_model().predict(rows.matrix(small_model().features)[0]).values
    return dict(zip(rows.oid.to_pylist(), values.tolist(), strict=True))


def probabilities_in(path: Path) -> dict[str, list[float]]:
    return {entry["oid"]: [entry[name] for name in FIXTURE_CLASSES] for entry in pq.read_table(path).to_pylist()}


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv", "avro", "one by one", "map", "archive"])
def test_every_form_of_input_gives_the_same_probabilities(kind: str, run: Command, model: Path, tmp_path: Path) -> None:
    rows = random_rows(50, seed=3)
    path = tmp_path / "in"
    path.mkdir()
    match kind:
        case "parquet":
            pq.write_table(table_of(rows), path / "features.parquet", row_group_size=17)
        case "csv":
            pacsv.write_csv(table_of(rows), path / "features.csv")
        case "avro":
            schema = message_schema()
            doubles = {"type": "record", "name": "f", "fields": [
                {"name": field["name"], "type": ["double", "null"]} for field in schema["fields"][2]["type"]["fields"]
            ]}  # fmt: skip
            (path / "many.avro").write_bytes(container(message_schema(doubles), records_of(rows), "deflate"))
        case "one by one" | "archive":
            schema = message_schema({"type": "map", "values": ["null", "double"]})
            for number, record in enumerate(records_of(rows)):
                (path / f"{number:02}.avro").write_bytes(container(schema, [record]))
        case "map":
            schema = message_schema(["null", {"type": "map", "values": ["boolean", "double", "null", "int"]}])
            (path / "many.avro").write_bytes(container(schema, records_of(rows)))
    if kind == "archive":
        with tarfile.open(tmp_path / "night.tar.gz", "w:gz") as tar:
            tar.add(path)
        path = tmp_path / "night.tar.gz"
    output = tmp_path / "out.parquet"
    result = run(path, "--model", model, "--output", output)
    assert result["status"] == 0, result["err"]
    assert probabilities_in(output) == expected(rows)
    assert (result["read"], result["classified"], result["missing_features"]) == (50, 50, 0)
    assert sum(result["classes"].values()) == 50
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))) == ["out.parquet"]
    table = pq.read_table(output)
    assert set(table["model_sha256"].to_pylist()) == {result["sha256"]}
    assert table["candid"].to_pylist() == [
        dict(zip(rows.oid.to_pylist(), rows.candid.to_pylist(), strict=True))[oid] for oid in table["oid"].to_pylist()
    ]


def test_messages_of_the_feature_steps_schema_in_and_the_steps_messages_out(
    run: Command, model: Path, tmp_path: Path
) -> None:
    rows = random_rows(30, seed=5)
    (tmp_path / "in.avro").write_bytes(container(message_schema(), records_of(rows)))
    both = ("--model", model, "--output", tmp_path / "out.parquet", "--messages", tmp_path / "also.avro")
    assert run(tmp_path / "in.avro", *both)["status"] == 0
    assert run(tmp_path / "in.avro", "--model", model, "--output", tmp_path / "out.avro")["status"] == 0
    found = messages_of(tmp_path / "out.avro")
    assert found == messages_of(tmp_path / "also.avro")
    assert [record["oid"] for record in found] == rows.oid.to_pylist()
    assert [record["candid"] for record in found] == rows.candid.to_pylist()
    written = messages_of(tmp_path / "in.avro")
    assert [record["features"] for record in found] == [record["features"] for record in written]
    table = probabilities_in(tmp_path / "out.parquet")
    for record in found:
        told = record["lc_classification"]
        assert list(told["probabilities"]) == list(FIXTURE_CLASSES)
        assert np.array_equal(np.float32(list(told["probabilities"].values())), np.float32(table[record["oid"]]))
        assert told["class"] == FIXTURE_CLASSES[int(np.argmax(table[record["oid"]]))]
        assert sum(told["hierarchical"]["top"].values()) == pytest.approx(1)
        assert {name: sum(child.values()) for name, child in told["hierarchical"]["children"].items()} == pytest.approx(
            {"Stochastic": 1, "Periodic": 1, "Transient": 1}
        )
    with open(tmp_path / "out.avro", "rb") as file:
        assert json.loads(fastavro.reader(file).metadata["avro.schema"]) == json.loads(message_schema_text())


def test_the_same_input_gives_the_same_bytes(run: Command, model: Path, tmp_path: Path) -> None:
    pq.write_table(table_of(random_rows(30)), tmp_path / "in.parquet")
    for name in ("out.parquet", "out.avro"):
        contents = []
        for _ in range(2):
            assert run(tmp_path / "in.parquet", "--model", model, "--output", tmp_path / name)["status"] == 0
            contents.append((tmp_path / name).read_bytes())
        assert contents[0] == contents[1]


def test_objects_without_a_name_go_to_the_dead_letters_alone(run: Command, model: Path, tmp_path: Path) -> None:
    rows = random_rows(9, seed=7)
    records = records_of(rows)
    del records[4]["features"]["W1-W2"], records[4]["features"]["rb"]
    records[5]["features"] = None
    schema = message_schema(["null", {"type": "map", "values": ["double", "null"]}])
    (tmp_path / "in.avro").write_bytes(container(schema, records))
    arguments = (tmp_path / "in.avro", "--model", model, "--output", tmp_path / "out.parquet")
    result = run(*arguments)
    assert (result["status"], result["classified"], result["missing_features"]) == (1, 7, 2)
    assert run(*arguments, "--max-dead-letters", 2)["status"] == 0
    letters = letters_of(tmp_path / "out.dead_letters")
    assert [letter.stage for letter in letters] == ["classify", "classify"]
    assert "W1-W2, rb" in letters[0].reason
    assert all(name in letters[1].reason for name in FEATURES)
    assert [next(iter(fastavro.reader(io.BytesIO(letter.payload)))) for letter in letters] == records[4:6]
    assert letters[0].candid == rows.candid[4].as_py()
    # What was set aside can be given again, and is gone when it is mended.
    again = run(tmp_path / "out.dead_letters", "--model", model, "--output", tmp_path / "again.parquet")
    assert (again["read"], again["missing_features"]) == (2, 2)
    (tmp_path / "in.avro").write_bytes(container(schema, records_of(rows)))
    assert run(*arguments)["status"] == 0
    assert not (tmp_path / "out.dead_letters").exists()


def test_a_table_without_a_required_column_is_set_aside_whole(run: Command, model: Path, tmp_path: Path) -> None:
    pacsv.write_csv(table_of(random_rows(3)).drop_columns(["rb"]), tmp_path / "in.csv")
    result = run(tmp_path / "in.csv", "--model", model, "--output", tmp_path / "out.parquet")
    assert (result["status"], result["classified"], result["missing_features"]) == (1, 0, 3)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    letters = letters_of(tmp_path / "out.dead_letters")
    assert {letter.reason.rpartition(": ")[2] for letter in letters} == {"rb"}


def test_a_bad_line_of_a_csv_does_not_spoil_its_neighbours(run: Command, model: Path, tmp_path: Path) -> None:
    rows = random_rows(3, names=FEATURES, gaps=0)
    sink = io.BytesIO()
    pacsv.write_csv(table_of(rows), sink)
    text = sink.getvalue().decode() + "short,1\nodd,1,1,2,zwei,3\n,1,1,2,3,4\n"
    (tmp_path / "in.csv").write_text(text)
    result = run(tmp_path / "in.csv", "--model", model, "--output", tmp_path / "out.parquet")
    assert probabilities_in(tmp_path / "out.parquet") == expected(rows)
    assert (result["status"], result["dead_letters"]) == (1, {"decode": 2, "read": 1})
    reasons = " ".join(letter.reason for letter in letters_of(tmp_path / "out.dead_letters"))
    assert all(part in reasons for part in ("cells", "zwei", "oid is missing"))


def test_damaged_messages_are_set_aside(run: Command, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = random_rows(3)
    good = [container(message_schema(), [record]) for record in records_of(rows)]
    (folder / "0.avro").write_bytes(good[0])
    (folder / "1.avro").write_bytes(good[1][:-30])
    (folder / "2.avro").write_bytes(b"nonsense")
    other = {"type": "record", "name": "r", "fields": [{"name": "x", "type": "int"}]}
    (folder / "3.avro").write_bytes(container(other, [{"x": 1}]))
    result = run(folder, "--model", model, "--output", tmp_path / "out.parquet")
    assert result["classified"] == 1
    assert result["dead_letters"] == {"decode": 3}


def test_messages_need_a_candid_the_table_does_not(run: Command, model: Path, tmp_path: Path) -> None:
    table = table_of(random_rows(4)).drop_columns(["candid"])
    pq.write_table(table, tmp_path / "in.parquet")
    result = run(
        tmp_path / "in.parquet", "--model", model, "--output", tmp_path / "o.parquet", "--messages", tmp_path / "m.avro"
    )
    assert (result["status"], result["classified"], result["dead_letters"]) == (1, 4, {"write": 4})
    assert pq.read_table(tmp_path / "o.parquet")["candid"].null_count == 4
    assert messages_of(tmp_path / "m.avro") == []


def test_feature_version_is_noted(
    alertbeam: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table_of(random_rows(2)), tmp_path / "in.parquet")
    monkeypatch.setenv("FEATURE_VERSION", "7.1")
    result = alertbeam("classify", tmp_path / "in.parquet", "--model", model, "--output", tmp_path / "o.parquet")
    assert result["status"] == 0
    assert "objects read" in result["out"]
    assert pq.read_schema(tmp_path / "o.parquet").metadata[b"feature_version"] == b"7.1"


def test_features_of_another_mode_are_warned_of(run: Command, model: Path, tmp_path: Path) -> None:
    for mode in ("alerce", "accurate"):
        table = table_of(random_rows(2)).replace_schema_metadata({"feature_mode": mode})
        pq.write_table(table, tmp_path / "in.parquet")
        result = run(tmp_path / "in.parquet", "--model", model, "--output", tmp_path / "o.parquet")
        assert result["status"] == 0
        assert ("mode accurate" in result["err"]) == (mode == "accurate")


def test_wrong_usage_is_told_in_one_sentence_and_writes_nothing(run: Command, model: Path, tmp_path: Path) -> None:
    good = tmp_path / "in.parquet"
    pq.write_table(table_of(random_rows(2)), good)
    nameless = tmp_path / "nameless.parquet"
    pq.write_table(pa.table({"rb": [1.0]}), nameless)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "pointer").write_text("nowhere")
    (tmp_path / "folder").mkdir()
    pq.write_table(table_of(random_rows(2)), tmp_path / "folder" / "in.parquet")
    before = sorted(tmp_path.iterdir())
    for arguments, words in (
        ((good, "--model", tmp_path / "none", "--output", "o.parquet"), "no model"),
        ((good, "--model", tmp_path / "pointer", "--output", "o.parquet"), "nowhere"),
        ((good, "--model", model, "--output", "o.txt"), "*.parquet"),
        ((good, "--model", model, "--output", "o.avro", "--messages", "m.avro"), "leave --messages out"),
        ((good, "--model", model, "--output", "o.parquet", "--follow-model"), "pointer"),
        ((good, "--model", model, "--output", good), "among the inputs"),
        ((tmp_path / "folder", "--model", model, "--output", tmp_path / "folder" / "o.parquet"), "among the inputs"),
        ((nameless, "--model", model, "--output", "o.parquet"), "oid"),
        ((tmp_path / "broken.parquet", "--model", model, "--output", "o.parquet"), "cannot be read"),
        ((tmp_path / "absent.avro", "--model", model, "--output", "o.parquet"), "no such file"),
        ((good, "--model", model, "--output", "o.parquet", "--database", "mysql://x"), "PostgreSQL"),
    ):
        result = run(*(tmp_path / text if text == "o.parquet" else text for text in arguments))
        assert result["status"] == 2, (arguments, result)
        assert words in result["err"]
        assert result["err"].count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before


def test_a_table_of_alerces_library_is_read_as_it_is(
    run: Command, model: Path, tmp_path: Path, shared_data: Path
) -> None:
    path = shared_data / "classifier" / "features_sample.parquet"
    result = run(path, "--model", model, "--output", tmp_path / "out.parquet")
    assert (result["status"], result["classified"]) == (0, 100)
    table = pd.read_parquet(path)
    values = small_model().predict(table[list(FEATURES)].to_numpy()).values
    assert probabilities_in(tmp_path / "out.parquet") == dict(zip(table.index, values.tolist(), strict=True))


def test_reading_does_not_depend_on_the_size_of_portions(tmp_path: Path) -> None:
    from alerts.reader import Limits

    rows = random_rows(60)
    (tmp_path / "in.avro").write_bytes(container(message_schema(), records_of(rows)))
    (source,) = find_sources([str(tmp_path / "in.avro")])
    found = []
    for limits in (Limits(), Limits(alerts=1, bytes=1)):
        batches = list(read_features(source, WANTED, limits))
        assert all(isinstance(batch, FeatureBatch) for batch in batches)
        found.append([batch.rows.matrix(SCHEMA_NAMES)[0] for batch in batches if isinstance(batch, FeatureBatch)])
    assert np.array_equal(np.vstack(found[0]), np.vstack(found[1]), equal_nan=True)


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(run: Command, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Give a function that classifies rows into the new database."""
    monkeypatch.setattr(running, "Database", lambda url: Database(url, IMPATIENT))

    def store(rows: FeatureRows, model: Path) -> dict[str, Any]:
        pq.write_table(table_of(rows), tmp_path / "in.parquet")
        output = tmp_path / "out.parquet"
        return run(tmp_path / "in.parquet", "--model", model, "--output", output, "--database", empty_url)

    return store


def rows_in(url: str) -> list[tuple[Any, ...]]:
    return execute(url, "SELECT * FROM probability ORDER BY oid, classifier_name, class_name, classifier_version")


def test_tables_are_filled_once_and_again_without_a_change(
    stored: Command, empty_url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(12)
    first = stored(rows, model)
    assert first["status"] == 0, first["err"]
    assert first["rows"] == {"object": 12, "probability": 12 * 33, "taxonomy": 5}
    told = rows_in(empty_url)
    values = {(row[0], row[1]): row[4] for row in told if row[2] == "lc_classifier"}
    for oid, probabilities in expected(rows).items():
        assert [values[oid, name] for name in FIXTURE_CLASSES] == probabilities
    second = stored(rows, model)
    assert second["rows"] == {}
    assert rows_in(empty_url) == told
    taxonomy = dict(execute(empty_url, "SELECT classifier_name, classes FROM taxonomy"))
    assert taxonomy["lc_classifier"] == list(FIXTURE_CLASSES)
    assert execute(empty_url, "SELECT step_id, name FROM step") == [("lc_classifier", "lc_classifier")]
    assert execute(empty_url, "SELECT DISTINCT step_id_corr FROM object") == [("0.0.0",)]


def test_a_half_written_object_becomes_whole(stored: Command, empty_url: str, model: Path) -> None:
    rows = random_rows(5)
    stored(rows, model)
    whole = rows_in(empty_url)
    execute(empty_url, "DELETE FROM probability WHERE classifier_name <> 'lc_classifier_top'")
    execute(empty_url, "UPDATE probability SET probability = 0.5, ranking = 9")
    execute(empty_url, "UPDATE taxonomy SET classes = ARRAY['x']")
    assert stored(rows, model)["status"] == 0
    assert rows_in(empty_url) == whole
    assert execute(empty_url, "SELECT count(*) FROM taxonomy WHERE classes[1] = 'x'") == [(0,)]


def test_versions_stand_side_by_side(stored: Command, empty_url: str, model: Path, tmp_path: Path) -> None:
    rows = random_rows(5)
    stored(rows, model)
    old = rows_in(empty_url)
    written_model(tmp_path / "newer", version="2", seed=4)
    stored(rows, tmp_path / "newer")
    both = rows_in(empty_url)
    assert [row for row in both if row[3] == "1"] == old
    assert len(both) == 2 * 5 * 33
    assert execute(empty_url, "SELECT count(*) FROM taxonomy") == [(10,)]


def test_what_is_known_of_an_object_is_not_touched(stored: Command, empty_url: str, model: Path) -> None:
    rows = random_rows(2)
    oid = rows.oid[0].as_py()
    with Database(empty_url, IMPATIENT) as database:
        database.create_tables()
        database.write(
            {"object": pa.table({"oid": [oid], "lastmjd": [5.0], "meanra": [1.5], "step_id_corr": ["0.0.0"]})}
        )
    assert stored(rows, model)["rows"]["object"] == 1
    assert execute(empty_url, f"SELECT lastmjd, meanra FROM object WHERE oid = '{oid}'") == [(5.0, 1.5)]


def test_a_refused_object_goes_to_the_dead_letters_alone(
    stored: Command, empty_url: str, model: Path, tmp_path: Path
) -> None:
    rows = random_rows(4)
    oids = rows.oid.to_pylist()
    oids[2] = "nul\0inside"
    result = stored(FeatureRows(pa.array(oids), rows.candid, rows.names, rows.values), model)
    assert (result["status"], result["dead_letters"]) == (1, {"write": 1})
    assert execute(empty_url, "SELECT count(*) FROM probability") == [(3 * 33,)]
    (letter,) = letters_of(tmp_path / "out.dead_letters")
    assert "table object" in letter.reason
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 4


def test_a_database_that_is_gone_stops_the_run(
    run: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Database", lambda url: Database(url, IMPATIENT))
    pq.write_table(table_of(random_rows(2)), tmp_path / "in.parquet")
    output = tmp_path / "o.parquet"
    gone = "postgresql://x@127.0.0.1:1/x"
    result = run(tmp_path / "in.parquet", "--model", model, "--output", output, "--database", gone)
    assert result["status"] == 3
    assert not output.exists()


def test_tables_have_alerces_keys_and_indices(database: Database, rows_of: Callable[[str], Any]) -> None:
    indices = dict(rows_of("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'probability'"))
    assert "(oid, class_name, classifier_name, classifier_version)" in indices["probability_pkey"]
    assert "USING hash (oid)" in indices["ix_probabilities_oid"]
    assert "(probability)" in indices["ix_probabilities_probability"]
    assert "WHERE (ranking = 1)" in indices["ix_classification_rank1"]
    kind = "SELECT udt_name, is_nullable FROM information_schema.columns WHERE table_name='taxonomy'"
    assert rows_of(f"{kind} AND column_name='classes'") == [("_varchar", "NO")]


def test_any_class_name_survives_the_way_into_an_array(database: Database, rows_of: Callable[[str], Any]) -> None:
    names = ['a"b', "back\\slash", "comma,", "{}", "", "NULL", "é ", "line\nbreak"]
    table = {"classifier_name": ["c"], "classifier_version": ["1"], "classes": pa.array([names])}
    assert not database.write({"taxonomy": pa.table(table)}).refused
    assert rows_of("SELECT classes FROM taxonomy") == [(names,)]
    with pytest.raises(ValueError, match="convert"):
        database.write({"taxonomy": pa.table({**table, "classes": ["x"]})})
    null = pa.array([None], pa.list_(pa.string()))
    assert len(database.write({"taxonomy": pa.table({**table, "classes": null})}).refused) == 1


# -- models that change ----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_good_bad_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, pointer = Clock(), tmp_path / "pointer"
    written_model(tmp_path / "one", "1")
    written_model(tmp_path / "two", "2", seed=1)
    bad = tmp_path / "bad"
    written_model(bad, "3", seed=2)
    array = next(bad.glob("*.npy"))
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    pointer.write_text("one\n")
    keeper = ModelKeeper(ModelPlace(pointer=str(pointer)), interval_s=60, clock=clock)
    first = keeper.model
    assert first.version == "1"
    assert keeper.refresh() == KEPT

    pointer.write_text("bad")
    clock.now += 59
    assert keeper.refresh() == KEPT
    clock.now += 1
    assert keeper.refresh() == REFUSED
    assert keeper.refresh() == KEPT
    clock.now += 60
    assert keeper.refresh() == REFUSED
    assert keeper.model is first
    assert sum("damaged" in record.message for record in caplog.records) == 1

    for wrong in ("nowhere", "", "two\ntwo", "\0", "x" * 5000):
        pointer.write_text(wrong)
        clock.now += 60
        assert keeper.refresh() == REFUSED
        assert keeper.model is first

    pointer.write_text(str(tmp_path / "two"))
    clock.now += 60
    assert keeper.refresh() == SWAPPED
    assert keeper.model.version == "2"
    assert first.version == "1"
    clock.now += 60
    assert keeper.refresh() == KEPT
    # A folder that was replaced under the same name is a new model, too.
    written_model(tmp_path / "two", "2b", seed=3)
    clock.now += 60
    assert keeper.refresh() == SWAPPED
    assert keeper.model.version == "2b"


def test_a_pinned_model_stays_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    model = written_model(tmp_path / "one", "1")
    place = ModelPlace(str(tmp_path / "one"), model.sha256)
    keeper = ModelKeeper(place, clock=clock)
    written_model(tmp_path / "one", "2", seed=1)
    clock.now += 3600
    assert keeper.refresh() == KEPT
    assert keeper.model.version == "1"
    with pytest.raises(ModelError, match="another model"):
        ModelKeeper(place, clock=clock)


def test_a_pointer_on_a_server(tmp_path: Path) -> None:
    written_model(tmp_path / "one", "1")
    server = Server(tmp_path)
    address = server.address + "pointer"
    try:
        (tmp_path / "pointer").write_text(str(tmp_path / "one"))
        assert ModelKeeper(ModelPlace(pointer=address)).model.version == "1"
        (tmp_path / "pointer").write_text("one")
        with pytest.raises(ModelError, match="absolute"):
            read_pointer(address)
        server.faults.append(500)
        with pytest.raises(ModelError, match="cannot be read"):
            read_pointer(address)
    finally:
        server.server.shutdown()


def test_a_bundle_keeps_its_model_and_the_next_one_has_the_new(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    written_model(tmp_path / "one", "1")
    written_model(tmp_path / "two", "2", seed=1)
    pointer.write_text("one")
    rows = random_rows(3)
    batch = FeatureBatch("unit", "source", rows)

    def change(element: FeatureBatch) -> FeatureBatch:
        pointer.write_text("two")
        return element

    def versions(found: list[Any]) -> None:
        assert sorted(entry.classification.stamp.version for entry in found) == ["1", "2"]
        for entry in found:
            model = small_model(entry.classification.stamp.version, seed=int(entry.classification.stamp.version) - 1)
            again = classify(model, rows)[0].probabilities.values
            assert np.array_equal(entry.classification.probabilities.values, again)

    with TestPipeline() as pipeline:
        place = ModelPlace(pointer=str(pointer))
        first = pipeline | beam.Create([batch]) | "First" >> Classify(place, interval_s=0)
        changed = first[CLASSIFIED] | beam.Map(lambda entry: entry.batch) | beam.Map(change) | beam.Reshuffle()
        second = changed | "Second" >> Classify(place, interval_s=0)
        assert_that((first[CLASSIFIED], second[CLASSIFIED]) | beam.Flatten(), versions)


def test_a_run_keeps_the_model_of_its_pointer(run: Command, tmp_path: Path) -> None:
    written_model(tmp_path / "one", "1")
    (tmp_path / "pointer").write_text("one")
    pq.write_table(table_of(random_rows(2)), tmp_path / "in.parquet")
    for options in ((), ("--follow-model",)):
        output = tmp_path / "o.parquet"
        result = run(tmp_path / "in.parquet", "--model", tmp_path / "pointer", "--output", output, *options)
        assert (result["status"], result["classifier_version"], result["models"]) == (0, "1", {})


def test_the_next_bundle_has_the_new_model(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    written_model(tmp_path / "one", "1")
    written_model(tmp_path / "two", "2", seed=1)
    pointer.write_text("one")
    classifier = _Classify(ModelPlace(pointer=str(pointer)), 0.0, Shared())
    batch = FeatureBatch("unit", "source", random_rows(2))

    def version() -> str:
        (found,) = classifier.process(batch)
        return found.classification.stamp.version

    classifier.setup()
    classifier.start_bundle()
    pointer.write_text("two")
    assert version() == "1"
    classifier.start_bundle()
    assert version() == "2"
    pointer.write_text("nowhere")
    classifier.start_bundle()
    assert version() == "2"


def test_a_process_loads_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_model(tmp_path / "one", "1")
    loaded = []

    def counted(folder: Path) -> Any:
        loaded.append(folder)
        return read_model(folder)

    monkeypatch.setattr(models, "read_model", counted)
    batches = [FeatureBatch(str(number), "source", random_rows(3, number)) for number in range(4)]
    with TestPipeline(options=PipelineOptions(direct_num_workers=4, direct_running_mode="multi_threading")) as pipeline:
        pipeline | beam.Create(batches) | Classify(ModelPlace(str(tmp_path / "one")))
    assert loaded == [tmp_path / "one"]
