"""The hierarchy, the package on disk, and the import of published models."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import CLASSES, ESTIMATORS, FEATURES, NEW, OLD, Server, published
from sklearn.ensemble import RandomForestClassifier

from classifier.estimators import forest_of
from classifier.fetching import address_of, fetch_model
from classifier.importing import import_estimator, import_file, import_folder
from classifier.model import Branch, Model, ModelError, fill_missing
from classifier.package import MANIFEST, read_model, write_model


def branch(level: str, **children: Branch) -> Branch:
    found = forest_of(ESTIMATORS[level])
    return Branch(level, found.forest, found.classes, FEATURES, children)


@pytest.fixture
def model() -> Model:
    children = {level: branch(level) for level in ("Stochastic", "Periodic", "Transient")}
    return Model("lc_classifier", "1", branch("top", **children), provenance={"seed": 0}, licence="ours")


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(40, len(FEATURES)))


def test_leaves_are_products_and_sum_to_one(model, rows) -> None:
    found = model.predict(rows)
    assert found.leaves == (*CLASSES["Stochastic"], *CLASSES["Periodic"], *CLASSES["Transient"])
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-12)
    top = ESTIMATORS["top"].predict_proba(rows)
    for column, level in enumerate(CLASSES["top"]):
        own = ESTIMATORS[level].predict_proba(rows)
        np.testing.assert_array_equal(found.branches[level], own)
        places = [found.leaves.index(name) for name in CLASSES[level]]
        np.testing.assert_array_equal(found.values[:, places], top[:, [column]] * own)
    np.testing.assert_array_equal(found.branches["top"], top)
    np.testing.assert_array_equal(found.best, found.values.argmax(axis=1))


def test_of_equal_probabilities_the_first_leaf_wins(model, rows) -> None:
    found = model.predict(rows)
    equal = (found.values == found.values.max(axis=1, keepdims=True)).sum(axis=1) > 1
    assert equal.any()
    for row in np.flatnonzero(equal):
        assert found.best[row] == np.flatnonzero(found.values[row] == found.values[row].max())[0]


def test_missing_infinite_and_huge_values() -> None:
    filled = fill_missing([[np.nan, np.inf, -np.inf, 2e32, 1e32, -2e32, 1.5]])
    np.testing.assert_array_equal(filled, [[-999, -999, -999, 0, 1e32, -2e32, 1.5]])


def test_no_rows_give_no_rows(model) -> None:
    found = model.predict(np.empty((0, len(FEATURES))))
    assert found.values.shape == (0, 15)
    assert found.best.shape == (0,)


def test_a_deeper_and_a_partly_divided_hierarchy(rows) -> None:
    deep = branch("top", Periodic=branch("Periodic", RRL=replace(branch("Transient"), name="RRL")))
    model = Model("deep", "1", deep)
    assert model.leaves == (*CLASSES["Transient"], *CLASSES["Periodic"][:-1], "Stochastic", "Transient")
    np.testing.assert_allclose(model.predict(rows).values.sum(axis=1), 1, atol=1e-12)


def test_branches_may_need_features_of_their_own(rows) -> None:
    few = RandomForestClassifier(5, random_state=1).fit(rows[:, [2, 0]], np.where(rows[:, 2] > 0, "CEP", "E"))
    found = forest_of(few)
    child = Branch("Periodic", found.forest, found.classes, ("W1-W2", "Amplitude_1"))
    model = Model("mixed", "1", branch("top", Periodic=child))
    assert model.features == FEATURES
    np.testing.assert_array_equal(model.predict(rows).branches["Periodic"], few.predict_proba(rows[:, [2, 0]]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda top: replace(top, classes=top.classes[:2]), "3 probabilities for 2 classes"),
        (lambda top: replace(top, features=FEATURES[:3]), "needs 4 features, 3 are named"),
        (lambda top: replace(top, features=("rb",) * 4), "has the feature rb twice"),
        (lambda top: replace(top, children={"Star": branch("Periodic")}), "divides Star"),
        (lambda top: replace(top, children={"Periodic": branch("top")}), "twice"),
    ],
)
def test_what_is_no_hierarchy_is_refused(change, complaint) -> None:
    with pytest.raises(ModelError, match=complaint):
        Model("x", "1", change(branch("top")))


def test_a_package_holds_the_model(tmp_path: Path, model, rows) -> None:
    written = write_model(model, tmp_path / "model", {"README.md": b"# a card"})
    for found in (written, read_model(tmp_path / "model")):
        np.testing.assert_array_equal(found.predict(rows).values, model.predict(rows).values)
        assert (found.name, found.version, found.licence) == ("lc_classifier", "1", "ours")
        assert found.provenance == {"seed": 0}
        assert len(found.sha256) == 64
    assert {path.name for path in (tmp_path).iterdir()} == {"model"}
    assert isinstance(written.root.forest.nodes.base, np.memmap)


def test_the_same_model_gives_the_same_package(tmp_path: Path, model) -> None:
    first, second = write_model(model, tmp_path / "a"), write_model(model, tmp_path / "b")
    assert first.sha256 == second.sha256
    assert write_model(replace(model, version="2"), tmp_path / "a").sha256 != first.sha256


def test_every_damaged_file_is_noticed(tmp_path: Path, model) -> None:
    write_model(model, tmp_path / "model")
    for path in sorted((tmp_path / "model").glob("*.npy")):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "model", copy)
        content = bytearray((copy / path.name).read_bytes())
        content[-3] ^= 1
        (copy / path.name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{path.name} is damaged"):
            read_model(copy)
        (copy / path.name).unlink()
        with pytest.raises(ModelError, match=f"{path.name} is missing"):
            read_model(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.update(format="other"), "no model of alertbeam"),
        (lambda m: m.update(format_version=99), "format version 99"),
        (lambda m: m.pop("hierarchy"), "damaged"),
        (lambda m: m["hierarchy"].pop("bits"), "damaged"),
        (lambda m: m["hierarchy"].update(bits=1), "forest top"),
        (lambda m: m["hierarchy"].update(classes=["a", "b"]), "3 probabilities for 2 classes"),
        (lambda m: m["hierarchy"]["children"]["Periodic"].update(name="../x"), "the manifest lists no"),
        (lambda m: m["files"].update({"../../secret": {"bytes": 1, "sha256": ""}}), "missing"),
        (lambda m: m["hierarchy"]["features"].append("more"), "needs 4 features, 5 are named"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, model, change, complaint) -> None:
    write_model(model, tmp_path / "model")
    path = tmp_path / "model" / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=complaint):
        read_model(tmp_path / "model")


def test_other_folders_are_refused_and_left_alone(tmp_path: Path, model) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="choose another folder"):
        write_model(model, tmp_path)
    with pytest.raises(ModelError, match="no model"):
        read_model(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read_model(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("names", [NEW, OLD], ids=["new", "old"])
def test_both_namings_are_imported(tmp_path: Path, model, rows, names) -> None:
    found = import_folder(published(tmp_path / "hierarchical_rf_1.1.0", names))
    np.testing.assert_array_equal(found.predict(rows).values, model.predict(rows).values)
    assert (found.leaves, found.features) == (model.leaves, FEATURES)
    assert found.version == "hierarchical_rf_1.1.0"
    assert len(found.provenance["imported_from"]) == 5
    assert write_model(found, tmp_path / "model").leaves == model.leaves


@pytest.mark.parametrize("level", [*CLASSES, "features"])
def test_a_missing_level_is_named(tmp_path: Path, level) -> None:
    folder = published(tmp_path / "m", NEW)
    name = NEW.get(level, "features_RF_model.pkl")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"lacks.*{name}"):
        import_folder(folder)


def test_levels_under_each_others_names_are_refused(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", NEW)
    swapped = dict(zip(("Stochastic", "Periodic"), ("Periodic", "Stochastic"), strict=True))
    for level, other in swapped.items():
        (folder / NEW[level]).write_bytes(pickle.dumps(ESTIMATORS[other]))
    with pytest.raises(ModelError, match="stands for Stochastic, but its classes are those of Periodic"):
        import_folder(folder)
    (folder / NEW["top"]).write_bytes(pickle.dumps(ESTIMATORS["Transient"]))
    with pytest.raises(ModelError, match="not the top level"):
        import_folder(folder)


def test_a_malicious_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", NEW)
    (folder / NEW["Periodic"]).write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(ModelError, match=r"periodic_level_BRF_model.pkl was refused: it names os.system"):
        import_folder(folder)
    (folder / "features_RF_model.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="holds no list of names"):
        import_folder(folder)


def test_single_forests_become_flat_models(tmp_path: Path, rows) -> None:
    path = tmp_path / "periodic.pkl"
    path.write_bytes(pickle.dumps(ESTIMATORS["Periodic"]))
    with pytest.raises(ModelError, match="does not name its features"):
        import_file(path)
    with pytest.raises(ModelError, match="needs 4 features, 2 are named"):
        import_file(path, FEATURES[:2])
    found = import_file(path, FEATURES)
    assert (found.leaves, found.version) == (CLASSES["Periodic"], "periodic")
    np.testing.assert_array_equal(found.predict(rows).values, ESTIMATORS["Periodic"].predict_proba(rows))
    same = import_estimator(ESTIMATORS["Periodic"], FEATURES)
    np.testing.assert_array_equal(same.predict(rows).values, found.predict(rows).values)


def test_a_forest_that_knows_its_features_needs_no_names(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["rb", "W1-W2"])
    estimator = RandomForestClassifier(3, random_state=0).fit(table, table["rb"] > 0)
    (tmp_path / "own.pkl").write_bytes(pickle.dumps(estimator))
    assert import_file(tmp_path / "own.pkl").features == ("rb", "W1-W2")
    assert import_estimator(estimator).features == ("rb", "W1-W2")


@pytest.fixture
def server(tmp_path: Path):
    made = Server(published(tmp_path / "served", NEW))
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_published_folder_is_fetched_through_faults(tmp_path: Path, server) -> None:
    server.faults = [503, "truncated", 500]
    told: list[int] = []
    fetch_model(server.address, tmp_path / "got", backoff_s=0.001, progress=lambda _, size: told.append(size))
    assert import_folder(tmp_path / "got").features == FEATURES
    assert {path.name for path in (tmp_path / "got").iterdir()} == {*NEW.values(), "features_RF_model.pkl"}
    assert sum(told) > 0


def test_the_old_naming_is_fetched_too(tmp_path: Path, server) -> None:
    server.folder = published(tmp_path / "old", OLD)
    fetch_model(server.address, tmp_path / "got", backoff_s=0.001)
    assert import_folder(tmp_path / "got").leaves


def test_a_fetch_that_fails_says_why_and_leaves_nothing_half(tmp_path: Path, server) -> None:
    with pytest.raises(ModelError, match="has more than 1,000 bytes"):
        fetch_model(server.address, tmp_path / "small", max_file_bytes=1000)
    server.faults = ["truncated"] * 10
    with pytest.raises(ModelError, match="cannot be had"):
        fetch_model(server.address, tmp_path / "broken", backoff_s=0.001, retries=2)
    (server.folder / NEW["Periodic"]).unlink()
    server.faults = []
    with pytest.raises(ModelError, match=r"has no periodic_level_BRF_model.pkl or periodic_level_RF_model.pkl"):
        fetch_model(server.address, tmp_path / "lacking")
    assert not list(tmp_path.rglob("*.partial"))
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(ModelError, match="cannot be had"):
        fetch_model(server.address, tmp_path / "down", backoff_s=0.001, retries=1)


def test_a_version_stands_for_the_published_address() -> None:
    assert address_of("1.1.0").endswith("/pipeline/hierarchical_rf_1.1.0/")
    assert address_of("http://127.0.0.1:1/x") == "http://127.0.0.1:1/x/"
