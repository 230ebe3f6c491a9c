"""``alertbeam model`` as its users call it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_fixtures import ESTIMATORS, FEATURES, NEW, Server, published

from classifier.package import read_model
from classifier.training import HIERARCHY
from pipelines.cli import main

LEAVES = [leaf for leaves in HIERARCHY.values() for leaf in leaves]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_import_info_and_the_refusals(tmp_path: Path, capsys) -> None:
    folder = published(tmp_path / "hierarchical_rf_1.1.0", NEW)
    assert run("model", "import", folder, "--output", tmp_path / "model") == 0
    assert run("model", "info", tmp_path / "model") == 0
    assert "15 classes" in capsys.readouterr().out
    assert run("model", "info", tmp_path / "model", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["version"] == "hierarchical_rf_1.1.0"
    assert described["required_features"] == list(FEATURES)

    (folder / NEW["Transient"]).write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    assert run("model", "import", folder, "--output", tmp_path / "bad") == 2
    assert "transient_level_BRF_model.pkl was refused: it names os.system" in capsys.readouterr().err
    (folder / NEW["Transient"]).unlink()
    assert run("model", "import", folder, "--output", tmp_path / "bad") == 2
    assert "lacks the level Transient" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    assert run("model", "info", tmp_path) == 2
    assert "no model" in capsys.readouterr().err


def test_a_single_forest_and_a_trusted_joblib_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "periodic.pkl").write_bytes(pickle.dumps(ESTIMATORS["Periodic"]))
    (tmp_path / "names.txt").write_text("\n".join(FEATURES) + "\n")
    words = ("model", "import", tmp_path / "periodic.pkl", "--output", tmp_path / "flat")
    assert run(*words) == 2
    assert "does not name its features" in capsys.readouterr().err
    assert run(*words, "--features", tmp_path / "names.txt", "--version", "7") == 0
    joblib.dump(ESTIMATORS["Periodic"], tmp_path / "periodic.joblib", compress=3)
    words = ("model", "import", tmp_path / "periodic.joblib", "--features", tmp_path / "names.txt")
    assert run(*words, "--output", tmp_path / "no") == 2
    assert "refused" in capsys.readouterr().err
    assert run(*words, "--output", tmp_path / "trusted", "--trust") == 0
    rows = np.random.default_rng(0).normal(size=(9, 4))
    flat, trusted = read_model(tmp_path / "flat"), read_model(tmp_path / "trusted")
    np.testing.assert_array_equal(flat.predict(rows).values, trusted.predict(rows).values)
    assert flat.version == "7"


def test_fetch(tmp_path: Path, capsys) -> None:
    server = Server(published(tmp_path / "served", NEW))
    try:
        server.faults = [503, "truncated"]
        assert run("model", "fetch", server.address, "--output", tmp_path / "model") == 0
        assert read_model(tmp_path / "model").version == "hierarchical_rf_1.1.0"
        (server.folder / NEW["top"]).unlink()
        assert run("model", "fetch", server.address, "--output", tmp_path / "none", "--retries", 0) == 3
        assert "has no top_level_BRF_model.pkl" in capsys.readouterr().err
    finally:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    labels = np.repeat(LEAVES, 12)
    centres = random.normal(size=(len(LEAVES), 6)) * 3
    table = pd.DataFrame(
        centres[np.repeat(np.arange(len(LEAVES)), 12)] + random.normal(size=(len(labels), 6)),
        columns=["Amplitude_1", "Amplitude_2", "W1-W2", "Power_rate_1/2", "rb", "Multiband_period"],
    )
    table.insert(0, "oid", [f"ZTF20a{number:06d}" for number in range(len(labels))])
    table.loc[3, "W1-W2"] = np.nan
    kept = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {b"feature_mode": b"accurate", b"feature_version": b"0.1.0"}
    pq.write_table(kept.replace_schema_metadata(metadata), tmp_path / "features.parquet")
    pd.DataFrame({"oid": table["oid"], "classALeRCE": labels}).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "features.parquet", tmp_path / "labels.csv"


def test_train_writes_a_model_with_its_card(tmp_path: Path, labelled, capsys) -> None:
    words = ("model", "train", *labelled, "--trees", 20, "--seed", 3, "--licence", "free to use")
    assert run(*words, "--output", tmp_path / "a", "--jobs", 1) == 0
    assert "held-out objects: accuracy" in capsys.readouterr().out
    assert run(*words, "--output", tmp_path / "b", "--jobs", 2) == 0
    first, second = read_model(tmp_path / "a"), read_model(tmp_path / "b")
    assert first.sha256 == second.sha256
    assert set(first.leaves) == set(LEAVES)
    assert (first.feature_mode, first.feature_version) == ("accurate", "0.1.0")
    card = (tmp_path / "a" / "model_card.md").read_text()
    assert "free to use" in card
    for name in ("confusion.png", "calibration.png", "importance.png"):
        assert name in card
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
    table = pd.read_parquet(labelled[0]).set_index("oid")
    truth = pd.read_csv(labelled[1]).set_index("oid")["classALeRCE"]
    found = first.predict(table[list(first.features)].to_numpy())
    right = np.array(found.leaves)[found.best] == truth.loc[table.index].to_numpy()
    assert right.mean() > 0.9


def test_training_data_that_does_not_fit_is_refused(tmp_path: Path, labelled, capsys) -> None:
    features, labels = labelled
    table = pd.read_csv(labels)
    for change, complaint in (
        (table.assign(classALeRCE="Quark star"), "'Quark star' has no place"),
        (table[table["classALeRCE"] != "SLSN"], "class SLSN has 0 objects"),
        (table.rename(columns={"classALeRCE": "kind"}), "no column classALeRCE"),
        (table.rename(columns={"oid": "name"}), "no column oid"),
        (table.assign(oid="x"), "no object has both"),
    ):
        change.to_csv(tmp_path / "changed.csv", index=False)
        words = ("model", "train", features, tmp_path / "changed.csv", "--output", tmp_path / "none", "--trees", 2)
        assert run(*words) == 2
        assert complaint in capsys.readouterr().err
    assert run("model", "train", features, labels, "--output", tmp_path / "none", "--trees", 0) == 2
    assert run("model", "train", labels, labels, "--output", tmp_path / "none") == 2
    assert "holds no feature" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_sample_of_alerce_is_learnt_reproducibly(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "classifier"
    words = ("model", "train", folder / "some_features.csv", folder / "some_labels.csv", "--trees", 60)
    assert run(*words, "--output", tmp_path / "a") == 0
    assert run(*words, "--output", tmp_path / "b") == 0
    model = read_model(tmp_path / "a")
    assert model.sha256 == read_model(tmp_path / "b").sha256
    table = pd.read_csv(folder / "some_features.csv")
    found = model.predict(table[list(model.features)].to_numpy())
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-12)
    truth = pd.read_csv(folder / "some_labels.csv")["classALeRCE"].replace({"Ceph": "CEP", "EB": "E"})
    assert (np.array(found.leaves)[found.best] == truth.to_numpy()).mean() > 0.7
