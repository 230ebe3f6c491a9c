"""The forest engine against scikit-learn, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from classifier.estimators import forest_of
from classifier.forest import Forest, ForestError, TreeArrays, build_forest, check_forest

FORESTS = {"RandomForest": RandomForestClassifier, "ExtraTrees": ExtraTreesClassifier}


def labelled(seed: int, rows: int, features: int, classes: int) -> tuple[NDArray, NDArray]:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, rows - classes)])
    table = random.normal(size=(rows, features)).astype(np.float32)
    table[:, 0] += labels
    return table, np.array([f"class {label}" for label in labels])


def assert_same_bits(ours: NDArray, theirs: NDArray) -> None:
    assert ours.dtype == theirs.dtype == np.float64
    np.testing.assert_array_equal(ours.view(np.int64), np.ascontiguousarray(theirs).view(np.int64))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(FORESTS)),
    seed=st.integers(0, 2**31),
    features=st.integers(1, 40),
    classes=st.integers(1, 8),
    depth=st.one_of(st.none(), st.integers(1, 12)),
    leaf=st.integers(1, 6),
    weights=st.sampled_from([None, "balanced"]),
    missing=st.booleans(),
    trees=st.integers(1, 20),
)
def test_equal_to_scikit_learn(kind, seed, features, classes, depth, leaf, weights, missing, trees) -> None:
    table, labels = labelled(seed, 80, features, classes)
    random = np.random.default_rng(seed)
    if missing:
        table[random.random(table.shape) < 0.1] = np.nan
    estimator = FORESTS[kind](
        trees, max_depth=depth, min_samples_leaf=leaf, class_weight=weights, random_state=seed % 1000, bootstrap=True
    ).fit(table, labels)
    asked = random.normal(size=(37, features)).astype(np.float32) * 2
    # Rows that lie on thresholds of the forest, and beside them by one bit.
    thresholds = estimator.estimators_[0].tree_.threshold.astype(np.float32)
    asked[:10] = random.choice(thresholds[np.isfinite(thresholds)], (10, features))
    asked[10:15] = np.nextafter(asked[:5], np.float32(np.inf))
    asked[15:20] = np.nextafter(asked[:5], np.float32(-np.inf))
    if missing:
        asked[random.random(asked.shape) < 0.2] = np.nan
    found = forest_of(estimator)
    assert found.classes == tuple(estimator.classes_)
    assert_same_bits(found.forest.predict_proba(asked), estimator.predict_proba(asked))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0])
def test_infinite_and_extreme_values_go_the_way_of_scikit_learns_trees(value) -> None:
    table, labels = labelled(1, 200, 6, 4)
    estimator = RandomForestClassifier(20, random_state=0).fit(table, labels)
    asked = table[:30].copy()
    asked[:, 2] = value
    # The validation of predict_proba refuses infinities; the trees themselves do not.
    total = np.zeros((30, 4))
    for tree in estimator.estimators_:
        total += tree.tree_.predict(asked)
    assert_same_bits(forest_of(estimator).forest.predict_proba(asked), total / 20)


def test_values_of_double_precision_are_rounded_as_scikit_learn_rounds_them() -> None:
    table, labels = labelled(2, 300, 5, 3)
    estimator = RandomForestClassifier(30, random_state=0).fit(table, labels)
    asked = np.random.default_rng(0).normal(size=(500, 5))
    assert_same_bits(forest_of(estimator).forest.predict_proba(asked), estimator.predict_proba(asked))


@pytest.fixture(scope="module")
def forest() -> Forest:
    table, labels = labelled(3, 400, 12, 5)
    return forest_of(RandomForestClassifier(41, random_state=0).fit(table, labels)).forest


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 1000))
def test_batch_size_and_order_change_no_bit(forest, cuts, seed) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(60, 12)).astype(np.float32)
    whole = forest.predict_proba(rows)
    parts = [forest.predict_proba(part) for part in np.split(rows, sorted(cuts))]
    assert_same_bits(np.concatenate(parts), whole)
    order = random.permutation(60)
    assert_same_bits(forest.predict_proba(rows[order]), whole[order])


def test_a_forest_with_more_features_than_a_narrow_word_holds() -> None:
    table, labels = labelled(4, 60, 5000, 3)
    estimator = RandomForestClassifier(5, random_state=0).fit(table, labels)
    assert_same_bits(forest_of(estimator).forest.predict_proba(table), estimator.predict_proba(table))


def test_a_tree_of_more_nodes_than_a_narrow_word_holds(monkeypatch) -> None:
    count = 1 << 12
    left = np.full(2 * count + 1, -1)
    right = left.copy()
    inner = np.arange(count)
    left[inner], right[inner] = 2 * inner + 1, 2 * inner + 2
    random = np.random.default_rng(0)
    tree = TreeArrays(
        left=left,
        right=right,
        feature=np.where(left >= 0, random.integers(0, 1 << 20, len(left)), -2),
        threshold=random.normal(size=len(left)),
        value=np.eye(3)[random.integers(0, 3, len(left))],
    )
    forest = build_forest([tree], 1 << 20)
    assert forest.nodes.dtype.itemsize == 16
    row = random.normal(size=(1, 1 << 20)).astype(np.float32)
    at = 0
    while left[at] >= 0:
        at = left[at] if row[0, tree.feature[at]] <= tree.threshold[at] else right[at]
    np.testing.assert_array_equal(forest.predict_proba(row)[0], tree.value[at])


def test_the_number_of_columns_is_checked(forest) -> None:
    with pytest.raises(ValueError, match="needs rows of 12 features"):
        forest.predict_proba(np.zeros((3, 11)))


def a_tree(**changes) -> TreeArrays:
    tree = TreeArrays(
        left=np.array([1, -1, 3, -1, -1]),
        right=np.array([2, -1, 4, -1, -1]),
        feature=np.array([0, -2, 1, -2, -2]),
        threshold=np.array([0.5, -2, 1.5, -2, -2]),
        value=np.array([[0.5, 0.5], [1, 0], [0.5, 0.5], [0, 1], [0.25, 0.75]]),
    )
    return replace(tree, **changes)


def test_a_tree_by_hand() -> None:
    forest = build_forest([a_tree()], 2)
    rows = [[0.5, 9], [0.6, 1.5], [0.6, 1.6], [np.nan, 0], [0.6, np.nan]]
    np.testing.assert_array_equal(forest.predict_proba(rows), [[1, 0], [0, 1], [0.25, 0.75], [0, 1], [0.25, 0.75]])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"left": np.array([1, -1, 0, -1, -1])}, "do not form a tree"),
        ({"left": np.array([2, -1, 3, -1, -1])}, "do not form a tree"),
        ({"right": np.array([7, -1, 4, -1, -1])}, "do not form a tree"),
        ({"left": np.array([-5, -1, 3, -1, -1])}, "do not form a tree"),
        ({"feature": np.array([2, -2, 1, -2, -2])}, "feature outside of 0 to 1"),
        ({"feature": np.array([0, -2, -1, -2, -2])}, "feature outside of 0 to 1"),
        ({"value": np.full((5, 2), np.nan)}, "no class frequencies"),
        ({"value": -np.ones((5, 2))}, "no class frequencies"),
        ({"value": np.ones((4, 2))}, "not equally long"),
    ],
)
def test_what_is_no_tree_is_refused(changes, complaint) -> None:
    with pytest.raises(ForestError, match=complaint):
        build_forest([a_tree(), a_tree(**changes)], 2)


def test_trees_of_different_classes_are_refused() -> None:
    with pytest.raises(ForestError, match="different numbers of classes"):
        build_forest([a_tree(), a_tree(value=np.eye(3)[[0, 1, 2, 0, 1]])], 2)
    with pytest.raises(ForestError, match="at least one tree"):
        build_forest([], 2)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_arrays_are_refused_or_still_safe_to_traverse(forest, data) -> None:
    """Whatever one word is changed to, the traversal stays within the arrays and ends, or the forest is refused."""
    nodes = forest.nodes.copy()
    place = data.draw(st.integers(0, len(nodes) - 1))
    nodes["word"][place] = data.draw(st.integers(0, 2**32 - 1))
    damaged = replace(forest, nodes=nodes)
    try:
        check_forest(damaged)
    except ForestError:
        return
    result = damaged.predict_proba(np.zeros((9, 12)))
    assert np.isfinite(result).all()


def test_a_sound_forest_passes_the_check(forest) -> None:
    check_forest(forest)
    with pytest.raises(ForestError, match="do not lie behind one another"):
        check_forest(replace(forest, nodes=forest.nodes[:-1]))
    with pytest.raises(ForestError, match="a leaf has no class frequencies"):
        check_forest(replace(forest, values=forest.values[:-1]))
