"""What a classification gives: rows for the tables ``probability`` and ``taxonomy``, and rows for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from classifier.inputs import FeatureRows
from classifier.model import Model, Probabilities


@dataclass(frozen=True)
class Stamp:
    """Which model said it.

    Attributes
    ----------
    name, version : str
        As in the tables.
    sha256 : str
        Of the model's manifest.
    """

    name: str
    version: str
    sha256: str

    @staticmethod
    def of(model: Model) -> Stamp:
        """Stamp of a model."""
        return Stamp(model.name, model.version, model.sha256)


@dataclass(frozen=True, eq=False)
class Classification:
    """What a model says of the objects of some rows.

    Attributes
    ----------
    rows : FeatureRows
    probabilities : Probabilities
        Of the same objects in the same order.
    stamp : Stamp
    """

    rows: FeatureRows
    probabilities: Probabilities
    stamp: Stamp

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.rows)

    def take(self, mask: NDArray[np.bool_]) -> Classification:
        """Some of the objects, by mask."""
        told = self.probabilities
        branches = {name: values[mask] for name, values in told.branches.items()}
        some = Probabilities(told.leaves, told.values[mask], told.best[mask], branches, told.classes)
        return Classification(self.rows.take(mask), some, self.stamp)


def classify(model: Model, rows: FeatureRows) -> tuple[Classification, dict[int, tuple[str, ...]]]:
    """Classify the rows that name every feature that the model requires (alerce.md 2.2).

    Returns
    -------
    Classification
        Of those rows.
    missing : dict of int to tuple of str
        The other rows, and the names that they lack.
    """
    table, lacking = rows.matrix(model.features)
    good = np.logical_not(lacking.any(axis=1))
    features = np.array(model.features, dtype=object)
    missing = {int(row): tuple(features[lacking[row]]) for row in np.flatnonzero(~good)}
    if missing:
        rows, table = rows.take(good), table[good]
    return Classification(rows, model.predict(table), Stamp.of(model)), missing


def dense_ranks(probabilities: ArrayLike) -> NDArray[np.int32]:
    """Rank of each probability within its row: 1 is the largest, equal ones share a rank, there are no gaps.

    Parameters
    ----------
    probabilities : array, shape (n, classes)
    """
    table = np.asarray(probabilities, np.float64)
    order = np.argsort(-table, axis=1, kind="stable")
    ordered = np.take_along_axis(table, order, axis=1)
    ranks = np.ones(table.shape, np.int32)
    ranks[:, 1:] += np.cumsum(ordered[:, 1:] < ordered[:, :-1], axis=1, dtype=np.int32)
    found = np.empty_like(ranks)
    np.put_along_axis(found, order, ranks, axis=1)
    return found


def classifiers_of(name: str, probabilities: Probabilities) -> dict[str, tuple[tuple[str, ...], NDArray[np.float64]]]:
    """Classes and probabilities by the name of their classifier in the tables.

    For ALeRCE's hierarchy: ``<name>`` with the 15 leaves, ``<name>_top``, ``<name>_stochastic``, ``<name>_periodic``
    and ``<name>_transient``. A model of one forest has ``<name>`` alone.
    """
    found = {name: (probabilities.leaves, probabilities.values)}
    if len(probabilities.branches) > 1:
        for branch, values in probabilities.branches.items():
            found[f"{name}_{branch.lower()}"] = (probabilities.classes[branch], values)
    return found


def probability_rows(classification: Classification) -> pa.Table:
    """Rows of table ``probability`` (alerce.md 2.7), 33 per object for ALeRCE's hierarchy.

    An object that stands in several rows is taken from the last one.
    """
    stamp = classification.stamp
    rows = last_of_each(classification.rows.oid)
    oid = classification.rows.oid.take(pa.array(rows))
    parts = []
    for classifier, (classes, values) in classifiers_of(stamp.name, classification.probabilities).items():
        values, width = values[rows], len(classes)
        count = values.size
        parts.append(
            pa.table(
                {
                    "oid": oid.take(pa.array(np.repeat(np.arange(len(rows)), width))),
                    "class_name": pa.array(classes, pa.string()).take(
                        pa.array(np.tile(np.arange(width), len(rows)), pa.int64())
                    ),
                    "classifier_name": pa.repeat(pa.scalar(classifier, pa.string()), count),
                    "classifier_version": pa.repeat(pa.scalar(stamp.version, pa.string()), count),
                    "probability": pa.array(values.reshape(-1)),
                    "ranking": pa.array(dense_ranks(values).reshape(-1)),
                }
            )
        )
    return pa.concat_tables(parts)


def last_of_each(oid: pa.Array) -> NDArray[np.int64]:
    """Number of the last row of each object, ascending: what a later message says replaces what an earlier one said."""
    numbers = pa.table({"oid": oid, "row": np.arange(len(oid))})
    return np.sort(numbers.group_by("oid").aggregate([("row", "max")])["row_max"].to_numpy())


def taxonomy_rows(classification: Classification) -> pa.Table:
    """Rows of table ``taxonomy``: the classes of each classifier, in the order of its probabilities."""
    stamp = classification.stamp
    named = classifiers_of(stamp.name, classification.probabilities)
    return pa.table(
        {
            "classifier_name": pa.array(list(named), pa.string()),
            "classifier_version": pa.repeat(pa.scalar(stamp.version, pa.string()), len(named)),
            "classes": pa.array([list(classes) for classes, _ in named.values()], pa.list_(pa.string())),
        }
    )


def object_rows(classification: Classification, step_id_corr: str) -> pa.Table:
    """Rows of table ``object`` for objects that nothing but their features is known of."""
    oid = classification.rows.oid.take(pa.array(last_of_each(classification.rows.oid)))
    return pa.table({"oid": oid, "step_id_corr": pa.repeat(pa.scalar(step_id_corr, pa.string()), len(oid))})


def file_rows(classification: Classification) -> pa.Table:
    """One row per object for a file: a probability per leaf, the class and its probability, and the model."""
    probabilities, stamp, count = classification.probabilities, classification.stamp, len(classification)
    leaves = {
        name: np.ascontiguousarray(probabilities.values[:, number]) for number, name in enumerate(probabilities.leaves)
    }
    labels: Mapping[str, str] = {
        "classifier_name": stamp.name,
        "classifier_version": stamp.version,
        "model_sha256": stamp.sha256,
    }
    return pa.table(
        {
            "oid": classification.rows.oid,
            "candid": classification.rows.candid,
            **leaves,
            "class": pa.array(probabilities.leaves, pa.string()).take(pa.array(probabilities.best)),
            "class_probability": probabilities.values[np.arange(count), probabilities.best],
            **{name: pa.repeat(pa.scalar(label, pa.string()), count) for name, label in labels.items()},
        }
    )
