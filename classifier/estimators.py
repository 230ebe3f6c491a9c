"""Forests out of scikit-learn's and imbalanced-learn's estimators, fitted here or read from a pickle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifier.forest import Forest, ForestError, TreeArrays, build_forest
from classifier.pickles import Record

FORESTS: Final = ("RandomForestClassifier", "BalancedRandomForestClassifier", "ExtraTreesClassifier")


@dataclass(frozen=True, eq=False)
class ClassForest:
    """A forest and the names of its classes, in the order of its probabilities."""

    forest: Forest
    classes: tuple[str, ...]
    made_by: str


def forest_of(estimator: Any) -> ClassForest:
    """Forest of a fitted estimator, or of the :class:`~classifier.pickles.Record` of one.

    Raises
    ------
    ForestError
        If it is no forest classifier of one output, or its arrays are damaged.
    """
    try:
        return _forest_of(estimator)
    # Whatever a damaged file may hold in the place of a number, an array or a list.
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ForestError(f"it is damaged: {error}") from error


def _forest_of(estimator: Any) -> ClassForest:
    kind = estimator.kind if isinstance(estimator, Record) else type(estimator).__name__
    if kind not in FORESTS:
        raise ForestError(f"it holds a {kind}, not a forest ({', '.join(FORESTS)})")
    members = _attribute(estimator, "estimators_")
    if not isinstance(members, list) or not members:
        raise ForestError(f"the {kind} has not been fitted")
    if int(_attribute(estimator, "n_outputs_") or 1) != 1:
        raise ForestError("it predicts more than one output")
    classes = tuple(str(name) for name in _attribute(estimator, "classes_"))
    features = _features(estimator, members[0])
    forest = build_forest(list(_trees(members, len(classes))), features)
    return ClassForest(forest, classes, f"{kind} of scikit-learn {_version(estimator)}")


def _trees(members: list[Any], classes: int) -> Iterator[TreeArrays]:
    for member in members:
        tree = _attribute(member, "tree_")
        state = tree.state if isinstance(tree, Record) else tree.__getstate__()
        if not isinstance(state, dict) or "nodes" not in state or "values" not in state:
            raise ForestError("a tree has no nodes")
        nodes, values = state["nodes"], np.asarray(state["values"], np.float64)
        names = nodes.dtype.names or ()
        if values.ndim != 3 or values.shape[1] != 1 or values.shape[2] != classes or len(values) != len(nodes):
            raise ForestError(f"the leaves of a tree do not hold {classes} classes")
        yield TreeArrays(
            left=nodes["left_child"],
            right=nodes["right_child"],
            feature=nodes["feature"],
            threshold=nodes["threshold"],
            value=_as_frequencies(values[:, 0, :], "missing_go_to_left" in names),
            missing_left=nodes["missing_go_to_left"].astype(bool) if "missing_go_to_left" in names else None,
        )


def _as_frequencies(values: NDArray[np.float64], frequencies: bool) -> NDArray[np.float64]:
    """Divide as scikit-learn before 1.3 did at prediction; later versions keep frequencies, taken as they are."""
    if frequencies:
        return values
    total = values.sum(axis=1)
    total[total == 0.0] = 1.0
    return values / total[:, None]


def _attribute(estimator: Any, name: str) -> Any:
    return estimator.get(name) if isinstance(estimator, Record) else getattr(estimator, name, None)


def _features(estimator: Any, member: Any) -> int:
    for owner in (estimator, member):
        for name in ("n_features_in_", "n_features_"):
            # A property that scikit-learn has deprecated may raise instead of answering.
            found = owner.get(name) if isinstance(owner, Record) else vars(owner).get(name)
            if found is not None:
                return int(found)
    raise ForestError("it does not say how many features it needs")


def _version(estimator: Any) -> str:
    if isinstance(estimator, Record):
        inner = _attribute(estimator, "estimator") or _attribute(estimator, "base_estimator")
        own = estimator.get("_sklearn_version")
        return str(own or (inner.get("_sklearn_version") if isinstance(inner, Record) else None) or "unknown")
    import sklearn

    return str(sklearn.__version__)
