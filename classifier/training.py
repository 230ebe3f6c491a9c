"""Training of a hierarchical balanced random forest, with the scores that tell what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from imblearn.ensemble import BalancedRandomForestClassifier
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import train_test_split

from classifier.estimators import forest_of
from classifier.model import FILL_VALUE, Branch, Model, ModelError, fill_missing

TOP: Final = "top"
HIERARCHY: Final[Mapping[str, tuple[str, ...]]] = {
    "Stochastic": ("AGN", "Blazar", "CV/Nova", "QSO", "YSO"),
    "Periodic": ("CEP", "DSCT", "E", "LPV", "Periodic-Other", "RRL"),
    "Transient": ("SLSN", "SNII", "SNIa", "SNIbc"),
}
# Labels of ALeRCE's training sets that are merged, spelt otherwise or left out (alerce.md 2.6).
MERGED: Final = {
    "Ceph": "CEP",
    "EB": "E",
    "EA": "E",
    "EB/EW": "E",
    "RSCVn": "Periodic-Other",
    "SNIIb": "SNII",
    "SNIIn": "SNII",
}
LEFT_OUT: Final = ("TDE", "ZZ")
_MAX_FEATURES: Final = {"Stochastic": 0.2}


@dataclass(frozen=True)
class Settings:
    """Settings of a training; the defaults are ALeRCE's.

    Attributes
    ----------
    trees : int
        Of each forest.
    test_fraction : float
        Share of the objects that is held out, drawn from each class alike.
    seed : int
        The same seed, objects and versions give the same model.
    jobs : int
        Processor cores; the model does not depend on it.
    hierarchy : Mapping of str to tuple of str
        Classes below each branch of the top level.
    """

    trees: int = 500
    test_fraction: float = 0.15
    seed: int = 0
    jobs: int = 1
    hierarchy: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(HIERARCHY))


@dataclass(frozen=True, eq=False)
class Scores:
    """What the objects that were held out say of a model.

    Attributes
    ----------
    accuracy, balanced_accuracy, macro_f1 : float
        Of the leaf classes.
    top_accuracy : float
        Of the top level.
    out_of_bag : Mapping of str to float
        Accuracy of each forest on the objects that each tree has not seen.
    classes : tuple of str
    confusion : int64, shape (classes, classes)
        Objects by true (row) and predicted class.
    probabilities : float64, shape (n, classes)
    truth : int64, shape (n,)
        True class of each object, as a number of `classes`.
    importances : DataFrame
        Importance of each feature (index) in each forest (column).
    counts : Mapping of str to int
        Objects of each class in training and test together.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    top_accuracy: float
    out_of_bag: Mapping[str, float]
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    importances: pd.DataFrame
    counts: Mapping[str, int]


def merge_labels(labels: pd.Series) -> pd.Series:
    """Merge and leave out labels as ALeRCE's training does (alerce.md 2.6)."""
    merged = labels.astype(str).str.strip().replace(MERGED)
    return merged[~merged.isin(LEFT_OUT)]


def train_model(
    features: pd.DataFrame,
    labels: pd.Series,
    settings: Settings = Settings(),
    *,
    name: str = "lc_classifier",
    version: str = "dev",
    feature_mode: str = "alerce",
    feature_version: str = "",
    licence: str = "",
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Model, Scores]:
    """Train a forest for the top level and one for each branch; score them on objects held out.

    Parameters
    ----------
    features : DataFrame
        A row per object, indexed by oid, a column per feature; missing values as NaN.
    labels : Series
        Class of each object, indexed by oid; objects without features are left out.
    settings : Settings
    name, version, feature_mode, feature_version, licence, provenance
        Go into the model.
    progress : callable, optional
        Told the name of each forest before it is trained.

    Returns
    -------
    Model, Scores

    Raises
    ------
    ModelError
        If a label has no place in the hierarchy, or a class has too few objects to be trained and tested.
    """
    table, truth = _aligned(features, labels, settings)
    branch_of = {leaf: branch for branch, leaves in settings.hierarchy.items() for leaf in leaves}
    train, test = _split(truth, settings)
    rows = fill_missing(table.to_numpy(np.float64))
    names = tuple(map(str, table.columns))
    tops = truth.map(branch_of)
    fitted: dict[str, Any] = {}
    for branch in (TOP, *settings.hierarchy):
        if progress is not None:
            progress(branch)
        chosen = train if branch == TOP else train & (tops == branch).to_numpy()
        target = (tops if branch == TOP else truth)[chosen].to_numpy().astype(str)
        fitted[branch] = _fit(rows[chosen], target, branch, settings)
    children = {branch: _as_branch(branch, fitted[branch], names) for branch in settings.hierarchy}
    model = Model(
        name=name,
        version=version,
        root=_as_branch(TOP, fitted[TOP], names, children),
        feature_mode=feature_mode,
        feature_version=feature_version,
        fill_value=FILL_VALUE,
        provenance={
            **(provenance or {}),
            "objects": int(train.sum()),
            "held_out": int(test.sum()),
            "trees": settings.trees,
            "seed": settings.seed,
            "test_fraction": settings.test_fraction,
            "made_by": forest_of(fitted[TOP]).made_by,
        },
        licence=licence,
    )
    return model, _score(model, fitted, table[test], truth[test], truth, branch_of)


def _aligned(features: pd.DataFrame, labels: pd.Series, settings: Settings) -> tuple[pd.DataFrame, pd.Series]:
    """Features and labels of the objects that have both, in the order of their names."""
    known = {leaf for leaves in settings.hierarchy.values() for leaf in leaves}
    labels = merge_labels(labels[~labels.index.duplicated()])
    unknown = sorted(set(labels) - known)
    if unknown:
        raise ModelError(f"label {unknown[0]!r} has no place in the hierarchy ({', '.join(sorted(known))})")
    features = features[~features.index.duplicated()]
    numeric = [column for column in features.columns if pd.api.types.is_numeric_dtype(features[column])]
    if not numeric:
        raise ModelError("the table holds no feature, that is no column of numbers")
    both = sorted(set(features.index) & set(labels.index))
    if not both:
        raise ModelError("no object has both features and a label; compare their oid columns")
    truth = labels.loc[both]
    counts = truth.value_counts()
    for leaf in sorted(known):
        if counts.get(leaf, 0) < 2:
            raise ModelError(f"class {leaf} has {counts.get(leaf, 0)} objects with features; at least 2 are needed")
    return features.loc[both, numeric], truth


def _split(truth: pd.Series, settings: Settings) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    try:
        train, _ = train_test_split(
            np.arange(len(truth)), test_size=settings.test_fraction, stratify=truth, random_state=settings.seed
        )
    except ValueError as error:
        raise ModelError(f"the objects cannot be divided into training and test: {error}") from error
    chosen = np.zeros(len(truth), bool)
    chosen[train] = True
    return chosen, ~chosen


def _fit(rows: NDArray[np.float64], target: NDArray, branch: str, settings: Settings) -> Any:
    estimator = BalancedRandomForestClassifier(
        n_estimators=settings.trees,
        max_features=_MAX_FEATURES.get(branch, "sqrt"),
        sampling_strategy="not minority",
        replacement=False,
        bootstrap=True,
        oob_score=True,
        random_state=settings.seed,
        n_jobs=settings.jobs,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimator.fit(rows, target)


def _as_branch(
    name: str, estimator: Any, features: Sequence[str], children: Mapping[str, Branch] | None = None
) -> Branch:
    found = forest_of(estimator)
    return Branch(name, found.forest, found.classes, tuple(features), children or {})


def _score(
    model: Model,
    fitted: Mapping[str, Any],
    table: pd.DataFrame,
    truth: pd.Series,
    everything: pd.Series,
    branch_of: Mapping[str, str],
) -> Scores:
    found = model.predict(table[list(model.features)].to_numpy(np.float64))
    numbers = {leaf: number for number, leaf in enumerate(found.leaves)}
    true: NDArray[np.int64] = truth.map(numbers).to_numpy().astype(np.int64)
    tops = np.array(found.classes[TOP])[found.branches[TOP].argmax(axis=1)]
    importances = {name: estimator.feature_importances_ for name, estimator in fitted.items()}
    return Scores(
        accuracy=float(np.mean(found.best == true)),
        balanced_accuracy=float(balanced_accuracy_score(true, found.best)),
        macro_f1=float(f1_score(true, found.best, average="macro", zero_division=0)),
        top_accuracy=float(np.mean(tops == truth.map(branch_of).to_numpy().astype(str))),
        out_of_bag={name: float(estimator.oob_score_) for name, estimator in fitted.items()},
        classes=found.leaves,
        confusion=confusion_matrix(true, found.best, labels=np.arange(len(found.leaves))),
        probabilities=found.values,
        truth=true,
        importances=pd.DataFrame(importances, index=list(model.features)),
        counts={leaf: int((everything == leaf).sum()) for leaf in found.leaves},
    )
