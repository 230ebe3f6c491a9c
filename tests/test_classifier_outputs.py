"""Rows and messages of a classification: against slow references, fastavro and the seed's own schema."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from classify_fixtures import (
    CLASSES,
    FEATURES,
    FIXTURE_CLASSES,
    LEVELS,
    SCHEMA_NAMES,
    random_rows,
    records_of,
    small_model,
    table_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import classifier.messages
from classifier.inputs import (
    FeatureRows,
    InputRowsError,
    rows_of_records,
    rows_of_table,
    with_other_names,
)
from classifier.messages import encode_messages, message_container, message_schema_text
from classifier.model import Branch, Model
from classifier.outputs import (
    Classification,
    classify,
    dense_ranks,
    file_rows,
    object_rows,
    probability_rows,
    taxonomy_rows,
)

WANTED = with_other_names(SCHEMA_NAMES)


def classified(count: int = 40, seed: int = 0) -> Classification:
    classification, missing = classify(small_model(), random_rows(count, seed))
    assert not missing
    return classification


def slow_record(classification: Classification, row: int) -> dict[str, Any]:
    told = classification.probabilities
    values, _ = classification.rows.matrix(SCHEMA_NAMES)

    def branch(name: str) -> dict[str, float]:
        return dict(zip(told.classes[name], told.branches[name][row].tolist(), strict=True))

    return {
        "oid": classification.rows.oid[row].as_py(),
        "candid": classification.rows.candid[row].as_py(),
        "features": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(SCHEMA_NAMES, values[row], strict=True)
        },
        "lc_classification": {
            "probabilities": dict(zip(told.leaves, told.values[row].tolist(), strict=True)),
            "class": told.leaves[told.best[row]],
            "hierarchical": {"top": branch("top"), "children": {name: branch(name) for name in LEVELS}},
        },
    }


def as_float32(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_float32(inner) for key, inner in value.items()}
    return float(np.float32(value)) if isinstance(value, float) else value


# -- ranks and tables ------------------------------------------------------------------------------------------------


def test_ranks_of_the_published_example() -> None:
    leaves = [8e-6, 2.8e-5, 0.001424, 0, 0.00054, 0.16966, 0.055888, 0.696604, 0, 0.05988, 0.015968, 0, 0, 0, 0]
    assert dense_ranks([leaves]).tolist() == [[9, 8, 6, 10, 7, 2, 4, 1, 10, 3, 5, 10, 10, 10, 10]]


@given(arrays(np.float64, (7, 5), elements=st.sampled_from([0.0, 0.002, 0.25, 0.5, 1.0])))
def test_ranks_count_the_larger_values(table: np.ndarray) -> None:
    slow = [[1 + len({other for other in row if other > value}) for value in row] for row in table.tolist()]
    assert dense_ranks(table).tolist() == slow


def test_ranks_of_nothing() -> None:
    assert dense_ranks(np.empty((0, 4))).shape == (0, 4)


def test_probability_rows_say_what_the_model_says() -> None:
    classification = classified()
    table = probability_rows(classification).to_pylist()
    assert len(table) == 33 * 40
    found = {(row["oid"], row["classifier_name"], row["class_name"]): row for row in table}
    assert len(found) == len(table)
    told = classification.probabilities
    expected = {"lc_classifier": (FIXTURE_CLASSES, told.values)}
    expected |= {f"lc_classifier_{name.lower()}": (CLASSES[name], told.branches[name]) for name in CLASSES}
    for teller, (classes, values) in expected.items():
        for row, oid in enumerate(classification.rows.oid.to_pylist()):
            for number, name in enumerate(classes):
                entry = found.pop((oid, teller, name))
                assert entry["probability"] == values[row, number]
                assert entry["ranking"] == 1 + len({v for v in values[row] if v > values[row, number]})
                assert entry["classifier_version"] == "1"
    assert not found


def test_of_an_object_in_several_rows_the_last_one_counts() -> None:
    rows = random_rows(6)
    doubled = FeatureRows(pa.array(["a", "b", "a", "c", "b", "a"]), rows.candid, rows.names, rows.values)
    classification, _ = classify(small_model(), doubled)
    table = probability_rows(classification).to_pandas()
    assert len(table) == 3 * 33
    for oid, row in (("a", 5), ("b", 4), ("c", 3)):
        mine = table[(table.oid == oid) & (table.classifier_name == "lc_classifier")]
        assert mine.probability.tolist() == classification.probabilities.values[row].tolist()
    assert sorted(object_rows(classification, "0.0.0")["oid"].to_pylist()) == ["a", "b", "c"]


def test_taxonomy_lists_classes_in_the_order_of_their_probabilities() -> None:
    rows = {row["classifier_name"]: row for row in taxonomy_rows(classified(2)).to_pylist()}
    assert rows["lc_classifier"]["classes"] == list(FIXTURE_CLASSES)
    assert rows["lc_classifier_transient"]["classes"] == list(CLASSES["Transient"])
    assert rows["lc_classifier_top"]["classes"] == ["Periodic", "Stochastic", "Transient"]
    assert len(rows) == 5
    assert {row["classifier_version"] for row in rows.values()} == {"1"}


def test_a_model_of_one_forest_is_one_classifier() -> None:
    root = small_model().root
    flat = Model("flat", "1", Branch("top", root.forest, root.classes, root.features))
    classification, _ = classify(flat, random_rows(3))
    assert set(probability_rows(classification)["classifier_name"].to_pylist()) == {"flat"}
    assert taxonomy_rows(classification)["classifier_name"].to_pylist() == ["flat"]
    record = decoded(classification)[0]
    assert record["lc_classification"]["hierarchical"]["children"] == {}


def test_file_rows_hold_the_class_and_the_model() -> None:
    classification = classified(5)
    table = file_rows(classification)
    told = classification.probabilities
    assert table.column_names[:2] == ["oid", "candid"]
    assert table.column_names[2:17] == list(FIXTURE_CLASSES)
    for row, entry in enumerate(table.to_pylist()):
        assert [entry[name] for name in FIXTURE_CLASSES] == told.values[row].tolist()
        assert entry["class"] == FIXTURE_CLASSES[int(np.argmax(told.values[row]))]
        assert entry["class_probability"] == told.values[row].max()
        assert (entry["classifier_name"], entry["classifier_version"]) == ("lc_classifier", "1")


# -- required features -----------------------------------------------------------------------------------------------


def test_an_object_without_a_name_is_not_classified_one_without_a_value_is() -> None:
    rows = random_rows(4, names=FEATURES, gaps=0)
    rows.values[1, 2] = np.nan
    absent = np.zeros(rows.values.shape, np.bool_)
    absent[2, [0, 3]] = True
    classification, missing = classify(
        small_model(), FeatureRows(rows.oid, rows.candid, rows.names, rows.values, absent)
    )
    assert missing == {2: (FEATURES[0], FEATURES[3])}
    assert classification.rows.oid.to_pylist() == [rows.oid[i].as_py() for i in (0, 1, 3)]
    filled = rows.values.copy()
    filled[1, 2] = -999.0
    whole = small_model().predict(filled[[0, 1, 3]])
    assert np.array_equal(classification.probabilities.values, whole.values)


def test_a_table_that_lacks_a_column_classifies_nothing() -> None:
    rows = random_rows(3, names=FEATURES[1:])
    classification, missing = classify(small_model(), rows)
    assert missing == dict.fromkeys(range(3), (FEATURES[0],))
    assert len(classification) == 0
    assert len(probability_rows(classification)) == 0
    assert len(encode_messages(classification)[0]) == 0


@pytest.mark.parametrize(("has", "wants"), [("PPE", "Period_fit"), ("Period_fit", "PPE")])
def test_a_renamed_feature_is_found_under_either_name(has: str, wants: str) -> None:
    names = (*FEATURES[:3], has)
    rows = random_rows(5, names=names, gaps=0)
    model = small_model(features=(*FEATURES[:3], wants))
    classification, missing = classify(model, rows)
    assert not missing
    assert np.array_equal(classification.probabilities.values, model.predict(rows.values).values)


def test_the_name_itself_comes_before_its_other_name() -> None:
    rows = FeatureRows(pa.array(["a"]), pa.array([1]), ("PPE", "Period_fit"), np.array([[1.0, 2.0]]))
    assert rows.matrix(["Period_fit", "PPE"])[0].tolist() == [[2.0, 1.0]]


# -- input -----------------------------------------------------------------------------------------------------------


def same(one: FeatureRows, other: FeatureRows) -> None:
    assert one.oid.to_pylist() == other.oid.to_pylist()
    assert one.candid.to_pylist() == other.candid.to_pylist()
    for first, second in zip(one.matrix(SCHEMA_NAMES), other.matrix(SCHEMA_NAMES), strict=True):
        assert np.array_equal(first, second, equal_nan=True)


def test_tables_and_records_give_the_same_rows() -> None:
    rows = random_rows(20)
    for found, faults in (rows_of_table(table_of(rows), WANTED), rows_of_records(records_of(rows), WANTED)):
        assert not faults
        same(found, rows)


def test_texts_are_read_as_numbers_and_what_is_none_is_a_fault_of_its_row() -> None:
    texts = {"oid": ["a", "", "c", "d"], "candid": ["1", "2", "", "4.5"], "rb": ["1e-3", "2", "", "seven"]}
    rows, faults = rows_of_table(pa.table(texts), WANTED)
    assert faults.keys() == {1, 3}
    assert faults[1] == "oid is missing"
    assert "seven" in faults[3] or "4.5" in faults[3]
    assert rows.matrix(["rb"])[0][:3, 0].tolist()[:2] == [0.001, 2.0]
    assert np.isnan(rows.matrix(["rb"])[0][2, 0])
    assert rows.candid.to_pylist()[:3] == [1, 2, None]


def test_a_table_without_oid_is_refused() -> None:
    with pytest.raises(InputRowsError, match="oid"):
        rows_of_table(pa.table({"rb": [1.0]}), WANTED)


def test_records_name_by_name() -> None:
    records = [
        {"oid": "a", "candid": [1, 2], "features": {"rb": 1, "W1-W2": None}},
        {"oid": "b", "candid": 5, "features": None},
        {"oid": None, "candid": 5, "features": {"rb": "x"}},
    ]
    rows, faults = rows_of_records(records, WANTED)
    assert faults.keys() == {2}
    assert rows.candid.to_pylist() == [2, 5, 5]
    values, lacking = rows.matrix(["rb", "W1-W2", "sgscore1"])
    assert lacking[:2].tolist() == [[False, False, True], [True, True, True]]
    assert values[0, 0] == 1.0


# -- messages --------------------------------------------------------------------------------------------------------


def decoded(classification: Classification, schema: Any = None) -> list[dict[str, Any]]:
    data, offsets = encode_messages(classification)
    found = []
    for row in range(len(classification)):
        stream = io.BytesIO(message_container(data[offsets[row] : offsets[row + 1]].tobytes()))
        found += list(fastavro.reader(stream, schema))
    return found  # type: ignore[return-value]


def test_messages_are_byte_for_byte_those_of_fastavro() -> None:
    classification = classified()
    data, offsets = encode_messages(classification)
    schema = fastavro.parse_schema(json.loads(message_schema_text()))
    for row in range(len(classification)):
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, slow_record(classification, row))
        assert data[offsets[row] : offsets[row + 1]].tobytes() == stream.getvalue()
    assert offsets[-1] == len(data)


def test_messages_do_not_depend_on_the_memory_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_messages(classified())
    monkeypatch.setattr(classifier.messages, "_MAX_TABLE_BYTES", 5000)
    parts = encode_messages(classified())
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


@settings(max_examples=30)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.text(max_size=300))
def test_any_candid_and_oid_come_back(candids: list[int], oid: str) -> None:
    rows = random_rows(len(candids), names=FEATURES)
    oids = pa.array([f"{oid}{number}" for number in range(len(candids))], pa.string())
    classification, _ = classify(small_model(), FeatureRows(oids, pa.array(candids), rows.names, rows.values))
    found = decoded(classification)
    assert [record["candid"] for record in found] == candids
    assert [record["oid"] for record in found] == oids.to_pylist()


def test_a_message_needs_a_candid() -> None:
    rows = random_rows(2)
    nameless = FeatureRows(rows.oid, pa.array([1, None], pa.int64()), rows.names, rows.values)
    with pytest.raises(ValueError, match="candid"):
        encode_messages(classify(small_model(), nameless)[0])


def seed_schema(shared_data: Path) -> dict[str, Any]:
    """Output schema as the seed's page has it: two Python literals."""
    page = shared_data.parent / "seeds" / "late_classification_step.md"
    if not page.is_file():
        pytest.skip(f"the seed is absent: {page}")
    text = page.read_text()
    literals = {
        name: re.search(f"{name}\n```json\n(.*?)```", text, re.S) for name in ("Output schema\n", "FEATURES_SCHEMA")
    }
    assert all(literals.values())
    features = ast.literal_eval(literals["FEATURES_SCHEMA"].group(1))  # type: ignore[union-attr]
    outer = literals["Output schema\n"].group(1)  # type: ignore[union-attr]
    return ast.literal_eval(outer.replace("FEATURES_SCHEMA", repr(features)))


def structure(schema: Any) -> Any:
    if isinstance(schema, list):
        return [structure(branch) for branch in schema]
    if isinstance(schema, dict):
        return {key: structure(value) for key, value in sorted(schema.items()) if key != "doc"}
    return schema


def test_the_schema_is_the_seeds(shared_data: Path) -> None:
    assert structure(json.loads(message_schema_text())) == structure(seed_schema(shared_data))


def test_plain_fastavro_with_the_seeds_schema_reads_the_same_values(shared_data: Path) -> None:
    classification = classified()
    schema = seed_schema(shared_data)
    doubles = {field["name"] for field in schema["fields"][2]["type"]["fields"] if field["type"][0] == "double"}
    data, offsets = encode_messages(classification)
    parsed = fastavro.parse_schema(schema)
    for row, by_own_schema in enumerate(decoded(classification, parsed)):
        record: Any = fastavro.schemaless_reader(
            io.BytesIO(data[offsets[row] : offsets[row + 1]].tobytes()), parsed, None
        )
        expected = slow_record(classification, row)
        expected["lc_classification"] = as_float32(expected["lc_classification"])
        expected["features"] = {
            name: value if name in doubles else as_float32(value) for name, value in expected["features"].items()
        }
        assert record == expected
        assert by_own_schema == expected
        assert list(record["lc_classification"]["hierarchical"]["children"]) == list(LEVELS)
