"""A random forest as flat arrays, traversed by compiled code with the same bits as scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.traverse import LANES, LEAF_BITS, NAN_BITS, NARROW, WIDE, add_row, add_rows, leaf_numbers


class ForestError(Exception):
    """Arrays that are no forest; the text says which and why."""


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of a classifier, read only.

    Attributes
    ----------
    nodes : array of `classifier.traverse.NARROW` or ``WIDE``, shape (nodes,)
        Trees behind one another.
    roots : int64, shape (trees + 1,)
        Where each tree begins, and the end.
    bits : int
        Bits of a node's word that hold the feature.
    values : float64, shape (distinct leaves, classes)
        Class frequencies; each row sums to 1.
    features : int
        Number of columns expected.
    """

    nodes: NDArray
    roots: NDArray[np.int64]
    bits: int
    values: NDArray[np.float64]
    features: int

    @property
    def trees(self) -> int:
        """Number of trees."""
        return len(self.roots) - 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.values.shape[1]

    def predict_proba(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Mean class frequencies over the trees.

        Parameters
        ----------
        rows : array, shape (n, features)
            Rounded to float32, as scikit-learn does. NaN goes the way that the training chose, or right.

        Returns
        -------
        float64 array, shape (n, classes)
            Equal bit for bit to scikit-learn's ``predict_proba`` with ``n_jobs=1``: the trees are added in order.

        Raises
        ------
        ValueError
            If the number of columns is wrong.
        """
        with np.errstate(over="ignore"):
            table = np.ascontiguousarray(rows, np.float32)
        if table.ndim != 2 or table.shape[1] != self.features:
            raise ValueError(f"the forest needs rows of {self.features} features, not an array of shape {table.shape}")
        result = np.zeros((len(table), self.classes))
        arrays = (self.nodes, self.nodes.view(np.uint32), self.roots, self.bits, self.values)
        together = len(table) - len(table) % LANES
        add_rows(*arrays, table[:together], result[:together])
        for row in range(together, len(table)):
            add_row(*arrays, table[row], result[row])
        result /= self.trees
        return result


@dataclass(frozen=True)
class TreeArrays:
    """One tree as scikit-learn keeps it.

    Attributes
    ----------
    left, right : int64, shape (nodes,)
        Children; -1 for leaves.
    feature : int64, shape (nodes,)
    threshold : float64, shape (nodes,)
    value : float64, shape (nodes, classes)
        Weights or frequencies of the classes.
    missing_left : bool, shape (nodes,), optional
        Whether a missing value goes left (scikit-learn 1.3 and later).
    """

    left: NDArray
    right: NDArray
    feature: NDArray
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]
    missing_left: NDArray | None = None


def build_forest(trees: list[TreeArrays], features: int) -> Forest:
    """Lay out trees for traversal.

    Raises
    ------
    ForestError
        If the arrays are no trees: children out of range, shared or in a circle, features out of range, values that
        are no frequencies.
    """
    if not trees:
        raise ForestError("a forest needs at least one tree")
    laid, values = [], []
    bits = max(1, (features - 1).bit_length())
    for number, tree in enumerate(trees):
        try:
            laid.append(_lay_out(tree, features, bits))
        except ForestError as error:
            raise ForestError(f"tree {number}: {error}") from None
        values.append(laid[-1].frequencies)
    if len({value.shape[1] for value in values}) > 1:
        raise ForestError("the trees have different numbers of classes")
    distinct, number_of = _distinct_rows(np.concatenate(values))
    words, thresholds, is_leaf = (
        np.concatenate([getattr(tree, name) for tree in laid]) for name in ("words", "thresholds", "is_leaf")
    )
    numbers = np.zeros(len(words), np.uint32)
    numbers[is_leaf] = number_of
    wide = words.max() >= 1 << 32 or len(distinct) > 1 << LEAF_BITS
    nodes = np.zeros(len(words), WIDE if wide else NARROW)
    nodes["word"] = words
    if wide:
        nodes["threshold"], nodes["leaf"] = thresholds, numbers
    else:
        bits_of = thresholds.view(np.uint32)
        bits_of[np.isnan(thresholds)] = NAN_BITS
        nodes["threshold"] = (bits_of | numbers).view(np.float32)
    roots = np.concatenate([[0], np.cumsum([len(tree.words) for tree in laid])]).astype(np.int64)
    return Forest(nodes=nodes, roots=roots, bits=bits, values=distinct, features=features)


@dataclass(frozen=True)
class _LaidOut:
    thresholds: NDArray[np.float32]
    words: NDArray[np.uint64]
    is_leaf: NDArray[np.bool_]
    frequencies: NDArray[np.float64]


def _lay_out(tree: TreeArrays, features: int, bits: int) -> _LaidOut:
    """Nodes of one tree, level by level; the place beside the root stays empty, so that siblings share a line."""
    old_of_new = _levels(tree)
    used = old_of_new >= 0
    inner = used.copy()
    inner[used] = tree.left[old_of_new[used]] != -1
    split = old_of_new[inner]
    feature = np.asarray(tree.feature)[split].astype(np.int64)
    if feature.size and (feature.min() < 0 or feature.max() >= features):
        raise ForestError(f"it asks for a feature outside of 0 to {features - 1}")
    thresholds = np.full(len(old_of_new), np.nan, np.float32)
    thresholds[inner] = _round_down(tree.threshold[split])
    left = np.arange(len(old_of_new), dtype=np.uint64)
    left[inner] = 2 + 2 * np.arange(len(split))
    words = left << np.uint64(bits + 1)
    missing_right = np.ones(len(split), bool) if tree.missing_left is None else ~tree.missing_left[split].astype(bool)
    words[inner] |= (missing_right.astype(np.uint64) << np.uint64(bits)) | feature.astype(np.uint64)
    is_leaf = used & ~inner
    return _LaidOut(thresholds, words, is_leaf, _frequencies(tree.value[old_of_new[is_leaf]]))


def _distinct_rows(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct rows, and the number of each row among them.

    Most leaves of a grown tree are pure, so that few distinct rows remain, and the processor's cache holds them.
    """
    pure = (rows.max(axis=1) == 1.0) & (np.count_nonzero(rows, axis=1) == 1)
    mixed, number_of_mixed = np.unique(rows[~pure], axis=0, return_inverse=True)
    numbers = np.empty(len(rows), np.int64)
    numbers[pure] = rows[pure].argmax(axis=1)
    numbers[~pure] = rows.shape[1] + number_of_mixed.ravel()
    return np.concatenate([np.eye(rows.shape[1]), mixed]), numbers


def _levels(tree: TreeArrays) -> NDArray[np.int64]:
    """Old numbers of the nodes in their new order; -1 beside the root."""
    count = len(tree.left)
    arrays = (tree.left, tree.right, tree.feature, tree.threshold, tree.value)
    if not count or any(len(array) != count for array in arrays):
        raise ForestError("its arrays are not equally long")
    levels = [np.array([0, -1])]
    level, met = np.array([0]), 1
    while True:
        inner = level[tree.left[level] != -1]
        if not inner.size:
            break
        level = np.stack([tree.left[inner], tree.right[inner]], axis=1).ravel().astype(np.int64)
        met += len(level)
        if level.min() < 1 or level.max() >= count or met > count:
            raise ForestError("its nodes do not form a tree")
        levels.append(level)
    order = np.concatenate(levels)
    if len(np.unique(order)) != len(order):
        raise ForestError("its nodes do not form a tree")
    return order


def _round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Largest float32 not above each threshold: a float32 is at most the one where it is at most the other."""
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def _frequencies(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all() or (values < 0).any():
        raise ForestError("its leaves hold no class frequencies")
    return values


def check_forest(forest: Forest) -> None:
    """Make sure that a traversal stays within the arrays and ends.

    Raises
    ------
    ForestError
        If a child, a feature or a leaf is out of range, or a node's child does not come after it.
    """
    nodes, roots, values = forest.nodes, forest.roots, forest.values
    if nodes.dtype not in (NARROW, WIDE) or roots.dtype != np.int64:
        raise ForestError("its arrays have unexpected types")
    if values.dtype != np.float64 or values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ForestError("its leaves hold no class frequencies")
    if any(array.ndim != 1 for array in (nodes, roots)) or not 1 <= forest.bits <= 31:
        raise ForestError("its arrays have unexpected shapes")
    if len(roots) < 2 or roots[0] != 0 or roots[-1] != len(nodes) or (np.diff(roots) < 1).any():
        raise ForestError("its trees do not lie behind one another")
    words = nodes["word"].astype(np.uint64)
    left = (words >> np.uint64(forest.bits + 1)).astype(np.int64)
    feature = (words & np.uint64((1 << forest.bits) - 1)).astype(np.int64)
    lengths = np.diff(roots)
    number = np.arange(len(nodes)) - np.repeat(roots[:-1], lengths)
    length = np.repeat(lengths, lengths)
    at_end = left == number
    stays = np.isnan(nodes["threshold"]) & ((words >> np.uint64(forest.bits)) & np.uint64(1) == 0)
    if not stays[at_end].all() or not ((left > number) & (left + 1 < length))[~at_end].all():
        raise ForestError("its nodes do not form trees")
    if feature.size and feature.max() >= forest.features:
        raise ForestError(f"it asks for a feature outside of 0 to {forest.features - 1}")
    if leaf_numbers(nodes)[at_end].max() >= len(values):
        raise ForestError("a leaf has no class frequencies")
