"""The schema files: their structure is ZTF's, their defaults are valid Avro, the loader gives fresh copies."""

import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

import schemas
from schemas import load_schema, schema_names

NAMES = ("xmatches_double", "xmatches_float", "ztf_alert_3.3", "ztf_alert_4.02")


def structure(schema: Any) -> Any:
    """The schema without documentation and defaults, in a fixed order of keys."""
    if isinstance(schema, list):
        return [structure(branch) for branch in schema]
    if isinstance(schema, dict):
        return {key: structure(schema[key]) for key in sorted(schema) if key not in ("doc", "default")}
    return schema


def defaults(schema: Any) -> list[tuple[str, Any, Any]]:
    """(field, type, default) of every field that has a default."""
    if isinstance(schema, list):
        return [found for branch in schema for found in defaults(branch)]
    if not isinstance(schema, dict):
        return []
    own = [(f["name"], f["type"], f["default"]) for f in schema.get("fields", []) if "default" in f]
    parts = [f["type"] for f in schema.get("fields", [])] + [schema.get("items"), schema.get("values")]
    return own + [found for part in parts for found in defaults(part)]


def test_every_file_is_listed() -> None:
    files = sorted(path.stem for path in Path(schemas.__file__).parent.glob("*.avsc"))
    assert list(schema_names()) == files
    assert set(NAMES) <= set(files)


@pytest.mark.parametrize("name", schema_names())
def test_fastavro_accepts(name: str) -> None:
    fastavro.parse_schema(load_schema(name))


@pytest.mark.parametrize("version", ["3.3", "4.02"])
def test_structure_is_that_of_real_packets(version: str, shared_data: Path) -> None:
    real = json.loads((shared_data / f"schemas/writer_ztf_alert_version{version}_schemavsn{version}.json").read_text())
    ours = load_schema(f"ztf_alert_{version}")
    assert structure(ours) == structure(real)
    assert ours["version"] == version


@pytest.mark.parametrize("name", NAMES)
def test_defaults_fit_the_first_branch(name: str) -> None:
    for field, kind, default in defaults(load_schema(name)):
        first = kind[0] if isinstance(kind, list) else kind
        assert (first, default) in {("null", None), ("int", 0)}, field


def test_null_defaults_are_kept_where_null_comes_first() -> None:
    assert [d for _, _, d in defaults(load_schema("ztf_alert_3.3"))] == [0]
    assert len(defaults(load_schema("ztf_alert_4.02"))) > 100


@pytest.mark.parametrize("name", ["ztf_alert_3.3", "ztf_alert_4.02"])
def test_every_field_is_documented_in_our_words(name: str, shared_data: Path) -> None:
    version = name.removeprefix("ztf_alert_")
    real = (shared_data / f"schemas/writer_ztf_alert_version{version}_schemavsn{version}.json").read_text()

    def docs(schema: Any) -> list[str]:
        if isinstance(schema, list):
            return [d for branch in schema for d in docs(branch)]
        if not isinstance(schema, dict):
            return []
        fields = schema.get("fields", [])
        own = [f["doc"] for f in fields]
        return own + [d for f in fields for d in docs(f["type"])] + docs(schema.get("items"))

    texts = docs(load_schema(name))
    assert all(texts)
    assert not [text for text in texts if json.dumps(text) in real]


@pytest.mark.parametrize(("name", "number"), [("xmatches_float", "float"), ("xmatches_double", "double")])
def test_matches_are_a_map_of_maps(name: str, number: str) -> None:
    schema = load_schema(name)
    assert structure(schema) == {"type": "map", "values": {"type": "map", "values": ["string", number, "null"]}}


def test_copies_are_fresh() -> None:
    load_schema("ztf_alert_3.3")["fields"].clear()
    assert load_schema("ztf_alert_3.3")["fields"]


def test_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"ztf_alert_4\.02"):
        load_schema("ztf_alert_9")
