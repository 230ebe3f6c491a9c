"""``alertbeam features`` from end to end: files, tables of the database, and what does not change the outcome."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from database_fixtures import execute
from pipeline_fixtures import Sample, make_sample

from alerts.dead_letters import read_dead_letters
from lightcurves.features.compute import feature_names, feature_schema
from simulation.light_curves import simulate_light_curves
from transforms.features import CrossmatchFileError, check_crossmatches, merge_sorted, read_crossmatches


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A small night."""
    return make_sample(tmp_path_factory.mktemp("night"), alerts=80, cutouts=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Detections and non-detections of simulated objects."""
    folder = tmp_path_factory.mktemp("tables")
    simulated = simulate_light_curves(1, seed=4, days=500)
    paths = folder / "detections.parquet", folder / "limits.parquet"
    detections = simulated.detections.to_pandas()
    # One object has too few points.
    keep = (detections.oid != detections.oid[0]) | (detections.index < 3)
    detections[keep].to_parquet(paths[0], index=False)
    pq.write_table(simulated.non_detections, paths[1])
    return paths


@pytest.fixture(scope="module")
def shuffled(sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packets of the night in two archives, in another order."""
    folder = tmp_path_factory.mktemp("shuffled")
    with tarfile.open(sample.archive) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar if member.isfile()]
    random.Random(3).shuffle(members)
    for name, part in (("a.tar.gz", members[::2]), ("b.tar.gz", members[1::2])):
        with tarfile.open(folder / name, "w:gz") as tar:
            for member, data in part:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def written(sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the sample night, and its crossmatches."""
    from pipelines.cli import main

    folder = tmp_path_factory.mktemp("features")
    common = ["--quiet", "--json", "--max-dead-letters", "9"]
    night = [str(sample.archive), "--catalog", str(sample.catalog)]
    assert main(["features", *night, "--output", str(folder / "f.parquet"), *common]) == 0
    assert main(["xmatch", *night, "--output", str(folder / "run"), "--database", "none", *common]) == 0
    return folder


def test_a_night_becomes_features(sample, alertbeam, tmp_path) -> None:
    output = tmp_path / "new" / "features.parquet"
    answer = alertbeam("features", sample.archive, "--output", output, "--json", "--max-dead-letters", 4)
    assert answer["status"] == 0
    assert answer["read"] == 80
    assert sum(answer["dead_letters"].values()) == 4
    table = pq.read_table(output)
    assert table.schema.names == ["oid", *feature_names()]
    assert table.schema.remove_metadata() == feature_schema()
    assert table.schema.metadata == {b"feature_mode": b"alerce", b"feature_version": b"1.0.0-alerce"}
    oid = table["oid"].to_pylist()
    assert oid == sorted(set(oid))
    assert 0 < table.num_rows == answer["featured"] < answer["objects"]
    counts = table.select(["n_det_1", "n_det_2"]).to_pandas()
    assert (counts.max(axis=1) > 5).all()
    # Without a crossmatch there are no WISE colours.
    assert table["W1-W2"].null_count == table.num_rows
    letters = [letter for path in Path(answer["dead_letters_folder"]).iterdir() for letter in read_dead_letters(path)]
    assert len(letters) == 4
    assert sorted(path.name for path in output.parent.iterdir()) == ["features.dead_letters", "features.parquet"]


def test_more_dead_letters_than_allowed_are_told(sample, alertbeam, tmp_path) -> None:
    answer = alertbeam("features", sample.archive, "--output", tmp_path / "f.parquet", "--json")
    assert answer["status"] == 1
    assert (tmp_path / "f.parquet").exists()


def test_order_batches_and_repetition_change_nothing(sample, shuffled, written, alertbeam, tmp_path) -> None:
    options = ("--catalog", sample.catalog, "--json", "--max-dead-letters", 99)
    first = tmp_path / "first.parquet"
    answer = alertbeam("features", shuffled, "--output", first, "--batch-alerts", 7, *options)
    assert answer["status"] == 0
    assert first.read_bytes() == (written / "f.parquet").read_bytes()
    # The same alerts twice, into the same file.
    answer = alertbeam("features", shuffled, sample.archive, "--output", first, *options)
    assert answer["status"] == 0
    assert answer["repeated"] == 80
    assert first.read_bytes() == (written / "f.parquet").read_bytes()


def test_crossmatches_in_parts_are_those_of_one_file(written, tmp_path) -> None:
    file = written / "run" / "crossmatches.parquet"
    rows, parts = pq.read_table(file), tmp_path / "crossmatches.parquet"
    parts.mkdir()
    with pytest.raises(CrossmatchFileError, match=r"no \*.parquet"):
        check_crossmatches(parts)
    pq.write_table(rows.slice(5), parts / "b.parquet")
    # Where no alert has a match, a catalogue's columns may be absent.
    pq.write_table(rows.slice(0, 5), parts / "a.parquet")
    few = rows.slice(0, 5).filter(pa.array([False] * 5)).select(rows.column_names[:10])
    pq.write_table(few, parts / "c.parquet")
    check_crossmatches(parts)
    assert read_crossmatches(parts).equals(read_crossmatches(file))
    assert len(read_crossmatches(parts)) > 0


def test_crossmatches_of_a_run_give_the_same_as_a_crossmatch(sample, written, alertbeam, tmp_path) -> None:
    output = tmp_path / "f.parquet"
    known = written / "run" / "crossmatches.parquet"
    answer = alertbeam(
        "features", sample.archive, "--crossmatches", known, "--output", output, "--json", "--max-dead-letters", 4
    )
    assert answer["status"] == 0
    assert output.read_bytes() == (written / "f.parquet").read_bytes()
    colours = pq.read_table(output)["W1-W2"]
    assert 0 < colours.null_count < len(colours)
    # Against the catalogue's own numbers.
    matches = pd.read_parquet(known).query("status == 'matched'").sort_values(["angDist", "candid"])
    expected = (matches.W1mag - matches.W2mag).groupby(matches.oid).first()
    got = pq.read_table(output, columns=["oid", "W1-W2"]).to_pandas().set_index("oid")["W1-W2"].dropna()
    np.testing.assert_allclose(got, expected[got.index], rtol=1e-5, atol=1e-5)


def test_tables_become_features(tables, alertbeam, tmp_path) -> None:
    answer = alertbeam(
        *("features", tables[0], "--non-detections", tables[1]),
        *("--output", tmp_path / "f.parquet", "--mode", "accurate", "--all-objects", "--json"),
    )
    assert answer["status"] == 0
    objects = pd.read_parquet(tables[0]).oid.nunique()
    assert answer["objects"] == answer["featured"] == objects > 10
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.metadata[b"feature_mode"] == b"accurate"
    assert pd.Series(table["n_non_det_before_fid_1"].to_pylist()).sum() > 0
    few = alertbeam("features", tables[0], "--output", tmp_path / "few.parquet", "--mode", "accurate", "--json")
    assert few["featured"] < objects
    # The order of the rows and the format of the file change nothing.
    frame = pd.read_parquet(tables[0]).sample(frac=1, random_state=2)
    frame.to_csv(tmp_path / "detections.csv", index=False)
    pd.read_parquet(tables[1]).sample(frac=1, random_state=3).to_csv(tmp_path / "limits.csv", index=False)
    alertbeam(
        *("features", tmp_path / "detections.csv", "--non-detections", tmp_path / "limits.csv"),
        *("--output", tmp_path / "csv.parquet", "--mode", "accurate", "--all-objects", "--json"),
    )
    assert (tmp_path / "csv.parquet").read_bytes() == (tmp_path / "f.parquet").read_bytes()


def test_as_of_leaves_out_what_came_later(tables, alertbeam, tmp_path) -> None:
    early = pd.read_parquet(tables[0]).query("mjd <= 58500.5")
    early.to_parquet(tmp_path / "early.parquet")
    alertbeam("features", tmp_path / "early.parquet", "--output", tmp_path / "a.parquet", "--json")
    alertbeam("features", tables[0], "--as-of", "2019-01-17T12:00:00", "--output", tmp_path / "b.parquet", "--json")
    alertbeam("features", tables[0], "--as-of", "58500.5", "--output", tmp_path / "c.parquet", "--json")
    assert pq.read_table(tmp_path / "a.parquet").num_rows > 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def stored(url: str) -> dict[str, list]:
    names = ("object", "detection", "non_detection", "magstat", "feature", "feature_version")
    return {name: sorted(map(repr, execute(url, f"SELECT * FROM {name}"))) for name in names}


def test_the_database_gets_every_row_once(sample, empty_url, alertbeam, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FEATURE_VERSION", "7.1")
    monkeypatch.setenv("STEP_ID", "my-step")
    arguments = (
        *("features", sample.archive, "--output", tmp_path / "f.parquet", "--json"),
        *("--max-dead-letters", 4, "--database", empty_url),
    )
    answer = alertbeam(*arguments)
    assert answer["status"] == 0, answer["err"]
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.metadata[b"feature_version"] == b"7.1"
    rows = stored(empty_url)
    assert len(rows["feature"]) == answer["featured"] * 178 == answer["rows"]["feature"]
    assert len(rows["object"]) == answer["objects"]
    assert rows["feature_version"] == [repr(("7.1", "my-step", "my-step"))]
    assert execute(empty_url, "SELECT name FROM step WHERE step_id = 'my-step'") == [("features",)]
    assert execute(empty_url, "SELECT count(*) FROM detection WHERE step_id_corr <> 'my-step'") == [(0,)]
    oid = table["oid"][0].as_py()
    values = dict(execute(empty_url, f"SELECT name || fid, value FROM feature WHERE oid = '{oid}'"))
    for stored_name, name in (("Amplitude1", "Amplitude_1"), ("n_det2", "n_det_2"), ("gal_b0", "gal_b")):
        assert values[stored_name] == table[name][0].as_py()
    for name in ("Power_rate_2", "Power_rate_3", "Power_rate_4", "Power_rate_1/2"):
        assert values[f"{name}12"] == table[name][0].as_py()
    # Once more: the same rows.
    again = alertbeam(*arguments)
    assert again["status"] == 0
    assert stored(empty_url) == rows
    assert not sum(again["rows"].values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["NIGHT", "--output", "f.csv"], "name a file *.parquet"),
        (["nowhere", "--output", "f.parquet"], "there is no such file"),
        (["NIGHT", "--non-detections", "x.csv", "--output", "f.parquet"], "goes with a table of detections"),
        (["TABLE", "NIGHT", "--output", "f.parquet"], "must be the only INPUT"),
        (["TABLE", "--catalog", "CATALOG", "--output", "f.parquet"], "is not crossmatched here"),
        (["LIMITS", "--output", "f.parquet"], "lacks the column"),
        (["NIGHT", "--as-of", "yesterday", "--output", "f.parquet"], "give an MJD"),
        (["NIGHT", "--as-of", "20200401000", "--output", "f.parquet"], "give an MJD"),
        (["NIGHT", "--crossmatches", "TABLE", "--output", "f.parquet"], "no column W1mag"),
        (["TABLE", "--output", "TABLE"], "is among the inputs"),
        (["NIGHT", "--output", "f.parquet", "--database", "mysql://x/y"], "mysql"),
        (["NIGHT", "--output", "f.parquet", "--batch-alerts", "0"], "at least 1"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_written(
    arguments,
    told,
    sample,
    tables,
    alertbeam,
    tmp_path,
    monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"NIGHT": sample.archive, "TABLE": tables[0], "LIMITS": tables[1], "CATALOG": sample.catalog}
    before = {path: path.read_bytes() for path in tables}
    answer = alertbeam("features", *(places.get(text, text) for text in arguments))
    assert answer["status"] == 2
    assert told in answer["err"]
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in tables} == before


def test_a_catalogue_without_wise_is_refused(sample, alertbeam, tmp_path) -> None:
    from xmatch.catalog import build_catalog

    pq.write_table(pa.table({"id": ["a"], "ra": [1.0], "dec": [2.0]}), tmp_path / "stars.parquet")
    build_catalog(tmp_path / "stars.parquet", tmp_path / "stars", name="stars")
    answer = alertbeam("features", sample.archive, "--catalog", tmp_path / "stars", "--output", tmp_path / "f.parquet")
    assert answer["status"] == 2
    assert "WISE colours" in answer["err"]


def test_parts_are_merged_by_name(tmp_path) -> None:
    random_order = np.random.default_rng(1).permutation(3000)
    names = np.array([f"ZTF{i:05}" for i in range(3000)])
    schema = pa.schema({"oid": pa.string(), "value": pa.int64()}, metadata={"a": "b"})
    (tmp_path / "parts").mkdir()
    for number, rows in enumerate(np.array_split(random_order, [5, 900, 901, 901])):
        rows = np.sort(rows)
        pq.write_table(pa.table({"oid": names[rows], "value": rows}), tmp_path / "parts" / f"{number}.parquet")
    assert merge_sorted(tmp_path / "parts", tmp_path / "all.parquet", schema) == 3000
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.schema.metadata[b"a"] == b"b"
    assert table["oid"].to_pylist() == list(names)
    assert table["value"].to_pylist() == list(range(3000))
    assert merge_sorted(tmp_path / "none", tmp_path / "empty.parquet", schema) == 0
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_the_summary_is_for_people(tables, alertbeam, tmp_path) -> None:
    answer = alertbeam("features", tables[0], "--output", tmp_path / "f.parquet", "--quiet")
    assert answer["status"] == 0
    assert "rows of features" in answer["out"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["out"])
