"""Pickles of forests are read without running what they name."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier

from classifier.estimators import forest_of
from classifier.forest import ForestError
from classifier.pickles import Record, UnsafePickleError, read_pickle


@pytest.fixture(scope="module")
def fitted() -> tuple[RandomForestClassifier, np.ndarray]:
    random = np.random.default_rng(0)
    table = random.normal(size=(120, 7)).astype(np.float32)
    labels = np.array(["SNIa", "QSO", "RRL"])[np.digitize(table[:, 0], [-0.5, 0.5])]
    return RandomForestClassifier(15, random_state=0).fit(table, labels), table


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(fitted, protocol) -> None:
    estimator, table = fitted
    found = forest_of(read_pickle(pickle.dumps(estimator, protocol)))
    assert found.classes == ("QSO", "RRL", "SNIa")
    np.testing.assert_array_equal(found.forest.predict_proba(table), estimator.predict_proba(table))


def test_a_forest_that_was_made_with_a_random_state_of_its_own(fitted) -> None:
    table = fitted[1]
    estimator = ExtraTreesClassifier(4, random_state=7).fit(table, table[:, 0] > 0)
    found = forest_of(read_pickle(pickle.dumps(estimator)))
    assert found.classes == ("False", "True")


class Malicious:
    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.system, "touch {}"), "system"),
        ((subprocess.check_output, ["touch", "{}"]), "check_output"),
        ((eval, "open('{}', 'w')"), "eval"),
        ((exec, "open('{}', 'w')"), "exec"),
        ((getattr, os, "system"), "getattr"),
        ((__import__, "os"), "__import__"),
        ((np.fromfile, "/etc/passwd"), "fromfile"),
        ((pd.read_csv, "http://127.0.0.1/"), "read_csv"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, fitted, call, named, protocol) -> None:
    mark = tmp_path / "was-here"
    filled = tuple(
        [part.format(mark) for part in argument]
        if isinstance(argument, list)
        else argument.format(mark)
        if isinstance(argument, str)
        else argument
        for argument in call
    )
    if named == "getattr":
        content = b"cos\nsystem\n."
    else:
        # Hidden deep in an otherwise sound forest.
        estimator = pickle.loads(pickle.dumps(fitted[0]))
        estimator.estimators_[3].extra = Malicious(*filled)
        content = pickle.dumps(estimator, protocol)
    with pytest.raises(UnsafePickleError, match="names"):
        read_pickle(content)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged"),
        (b"\x80\x04", "damaged"),
        (b"<html>Not found</html>", "damaged"),
        (b"version https://git-lfs", "damaged"),
        (b"\x80\x02P1\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"cos\nsystem\n(S'true'\nt\x81.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"Nr\xff\xff\xff\x7f.", "memory places"),
        (b"csklearn.tree._classes\n__import__\n.", "names"),
        (b"cclassifier.pickles\nread_pickle\n.", "names"),
        (b"cnumpy\nload\n.", "names"),
        (b"cnumpy\nndarray.tofile\n.", "names"),
        (b"ccollections\nOrderedDict\n(tR}S'x'\nNsb.", None),
        (b"c_codecs\nencode\n}S'called'\nNsb.", "changes a function"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "unusual"),
    ],
)
def test_odd_and_damaged_pickles_end_in_one_sentence(content, complaint) -> None:
    if complaint is None:
        read_pickle(content)
        return
    with pytest.raises(UnsafePickleError, match=complaint):
        read_pickle(content)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_read_never_run(fitted, data) -> None:
    content = bytearray(pickle.dumps(RandomForestClassifier(1, random_state=0).fit(fitted[1], fitted[1][:, 0] > 0)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        forest_of(read_pickle(bytes(content))).forest.predict_proba(fitted[1])
    except (UnsafePickleError, ForestError):
        pass
    except ValueError as error:
        if "needs rows of" not in str(error):
            raise


@pytest.mark.parametrize("name", [b"threshold", b"right_child", b"classes_", b"estimators_"])
def test_parts_of_a_forest_under_other_names(fitted, name) -> None:
    content = pickle.dumps(fitted[0])
    assert name in content
    with pytest.raises(ForestError):
        forest_of(read_pickle(content.replace(name, name[:-1] + b"x")))


def test_names_come_as_a_list_an_array_or_a_pandas_index() -> None:
    names = ["Amplitude_1", "Power_rate_1/2"]
    assert list(read_pickle(pickle.dumps(names))) == names
    assert list(read_pickle(pickle.dumps(np.array(names, object)))) == names
    assert list(read_pickle(pickle.dumps(np.array(names)))) == names


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    path.write_bytes(bytes(1000))
    with pytest.raises(UnsafePickleError, match="more than 999 bytes"):
        read_pickle(path, max_bytes=999)


def test_other_estimators_are_no_forests(fitted) -> None:
    table = fitted[1]
    with pytest.raises(ForestError, match="GradientBoostingClassifier"):
        forest_of(GradientBoostingClassifier(n_estimators=2).fit(table, table[:, 0] > 0))
    with pytest.raises(ForestError, match="not been fitted"):
        forest_of(RandomForestClassifier())
    with pytest.raises(ForestError, match="a list"):
        forest_of(read_pickle(pickle.dumps([1, 2])))
    with pytest.raises(ForestError, match="more than one output"):
        forest_of(RandomForestClassifier(2).fit(table, np.stack([table[:, 0] > 0, table[:, 1] > 0], axis=1)))
    with pytest.raises(ForestError, match="not been fitted"):
        forest_of(Record("RandomForestClassifier"))


def test_alerces_published_forests_give_the_recorded_probabilities(shared_data: Path) -> None:
    folder = shared_data / "classifier" / "alerce_models"
    names = list(read_pickle(folder / "features_RF_model.pkl"))
    table = pd.read_parquet(folder / "reference_input_100_objects.parquet")[names].to_numpy(copy=True)
    expected = pd.read_parquet(folder / "reference_output_100_objects.parquet")
    table[~np.isfinite(table)] = -999.0
    table[table > 1e32] = 0.0
    for stem in ("top_level_BRF_model", "stochastic_level_BRF_model"):
        found = forest_of(read_pickle(folder / f"{stem}.pkl"))
        columns = [f"{stem}|{name}" for name in found.classes]
        np.testing.assert_array_equal(found.forest.predict_proba(table), expected[columns].to_numpy())


def test_the_reader_needs_no_memory_for_what_the_file_only_announces() -> None:
    with pytest.raises(UnsafePickleError, match="damaged"):
        read_pickle(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.")
    stream = io.BytesIO()
    pickle.dump(np.zeros(3), stream, 5)
    content = stream.getvalue().replace(b"\x03\x85", b"\x7f\x85")
    with pytest.raises(UnsafePickleError):
        read_pickle(content)
