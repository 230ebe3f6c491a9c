"""A hierarchical classifier: forests in a tree, from features to the probabilities of its leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.forest import Forest

FILL_VALUE: Final = -999.0
HUGE_VALUE: Final = 1e32


class ModelError(Exception):
    """A model that cannot be used; one sentence says why."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One forest of the hierarchy.

    Attributes
    ----------
    name : str
        ``top`` for the first, else the class that it divides.
    forest : Forest
    classes : tuple of str
        In the order of the forest's probabilities.
    features : tuple of str
        Names of the forest's columns, in order.
    children : Mapping of str to Branch
        Forests that divide a class further; a class without one is a leaf. Its order is the order of the leaves.
    """

    name: str
    forest: Forest
    classes: tuple[str, ...]
    features: tuple[str, ...]
    children: Mapping[str, Branch] = field(default_factory=dict)

    def branches(self) -> Iterator[Branch]:
        """This branch and those below it, each before its children."""
        yield self
        for child in self.children.values():
            yield from child.branches()

    def leaves(self) -> Iterator[str]:
        """Names of the leaves: those of the children in their order, then the classes that have none."""
        for child in self.children.values():
            yield from child.leaves()
        yield from (name for name in self.classes if name not in self.children)


@dataclass(frozen=True, eq=False)
class Probabilities:
    """What a model says of n objects.

    Attributes
    ----------
    leaves : tuple of str
        Classes at the ends of the hierarchy.
    values : float64, shape (n, leaves)
        Their probabilities; each row sums to 1 within rounding.
    best : int64, shape (n,)
        The most probable leaf, the first if several are.
    branches : Mapping of str to float64 array, shape (n, classes)
        What each forest says by itself, by the name of its branch, not multiplied by the branches above.
    classes : Mapping of str to tuple of str
        Classes of each branch.
    """

    leaves: tuple[str, ...]
    values: NDArray[np.float64]
    best: NDArray[np.int64]
    branches: Mapping[str, NDArray[np.float64]]
    classes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier ready for use.

    Attributes
    ----------
    name : str
        As in the tables, for instance ``lc_classifier``.
    version : str
    root : Branch
    sha256 : str
        Of the package's manifest, which holds the hashes of all arrays; empty for a model that was never written.
    feature_mode, feature_version : str
        How the features of the training were computed.
    fill_value : float
        Stands for a missing value.
    provenance : Mapping
        What it was trained on or imported from.
    licence : str
    """

    name: str
    version: str
    root: Branch
    sha256: str = ""
    feature_mode: str = "alerce"
    feature_version: str = ""
    fill_value: float = FILL_VALUE
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""

    def __post_init__(self) -> None:
        """Check that the hierarchy is one."""
        _check(self.root)

    @property
    def features(self) -> tuple[str, ...]:
        """Features that must be there by name, in the order of :meth:`predict`'s columns."""
        return tuple(dict.fromkeys(name for branch in self.root.branches() for name in branch.features))

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves."""
        return tuple(self.root.leaves())

    def predict(self, table: ArrayLike) -> Probabilities:
        """Classify objects.

        Parameters
        ----------
        table : array, shape (n, len(self.features))
            In the order of `self.features`; NaN and infinities are missing values.

        Returns
        -------
        Probabilities

        Notes
        -----
        Missing values become `fill_value` and values above 1e32 become 0, as in ALeRCE's classifier (LC1,
        ``hierarchical_random_forest``). The probability of a leaf is the product of those on the way to it.
        """
        rows = fill_missing(table, self.fill_value)
        position = {name: number for number, name in enumerate(self.features)}
        own = {
            branch.name: branch.forest.predict_proba(_columns(rows, [position[name] for name in branch.features]))
            for branch in self.root.branches()
        }
        values = np.empty((len(rows), len(self.leaves)))
        numbers = {name: number for number, name in enumerate(self.leaves)}
        _multiply(self.root, np.ones(len(rows)), own, numbers, values)
        best = np.argmax(values, axis=1) if len(rows) else np.empty(0, np.int64)
        return Probabilities(
            leaves=self.leaves,
            values=values,
            best=best,
            branches=own,
            classes={branch.name: branch.classes for branch in self.root.branches()},
        )


def fill_missing(table: ArrayLike, fill_value: float = FILL_VALUE) -> NDArray[np.float64]:
    """Replace NaN and infinities by `fill_value` and values above 1e32 by 0 (alerce.md 2.4), in a new array."""
    filled = np.array(table, np.float64)
    filled[~np.isfinite(filled)] = fill_value
    filled[filled > HUGE_VALUE] = 0.0
    return filled


def _columns(rows: NDArray[np.float64], numbers: Sequence[int]) -> NDArray[np.float64]:
    return rows if list(numbers) == list(range(rows.shape[1])) else rows[:, numbers]


def _multiply(
    branch: Branch,
    above: NDArray[np.float64],
    own: Mapping[str, NDArray[np.float64]],
    numbers: Mapping[str, int],
    values: NDArray[np.float64],
) -> None:
    for column, name in enumerate(branch.classes):
        probability = above * own[branch.name][:, column]
        if name in branch.children:
            _multiply(branch.children[name], probability, own, numbers, values)
        else:
            values[:, numbers[name]] = probability


def _check(root: Branch) -> None:
    names = [branch.name for branch in root.branches()]
    for branch in root.branches():
        if len(branch.classes) != branch.forest.classes:
            raise ModelError(
                f"forest {branch.name} gives {branch.forest.classes} probabilities for {len(branch.classes)} classes"
            )
        if len(branch.features) != branch.forest.features:
            raise ModelError(
                f"forest {branch.name} needs {branch.forest.features} features, {len(branch.features)} are named"
            )
        for what, entries in (("class", branch.classes), ("feature", branch.features)):
            _refuse_twice(f"forest {branch.name}", what, entries)
        for name, child in branch.children.items():
            if name not in branch.classes:
                raise ModelError(f"forest {child.name} divides {name}, which is no class of {branch.name}")
    _refuse_twice("the hierarchy", "leaf", tuple(root.leaves()))
    _refuse_twice("the hierarchy", "forest", names)


def _refuse_twice(where: str, what: str, entries: Sequence[str]) -> None:
    for entry in entries:
        if entries.count(entry) > 1:
            raise ModelError(f"{where} has the {what} {entry} twice")
