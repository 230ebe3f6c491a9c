"""Speed of the forest engine, beside scikit-learn and ONNX Runtime on the same forest and rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from benchmarks.measure import conditions, figure, interleaved_seconds
from classifier.estimators import forest_of

_UNIT = "rows/s"
_SEED = 500


def run(
    trees: int = 500, features: int = 180, classes: int = 15, objects: int = 3000, rows: int = 1000, repeats: int = 7
) -> Iterator[dict[str, Any]]:
    """Measure `forest-1` (one row at a time) and `forest-1000` (many rows at once), one thread each.

    The forest is grown to pure leaves on overlapping classes, as those of light curves overlap. The peers give the
    same probabilities: scikit-learn to the bit, ONNX Runtime (which computes in single precision) within 1e-5.

    Parameters
    ----------
    trees, features, classes : int
        Size of the forest.
    objects : int
        Objects that it is trained on.
    rows : int
        Rows of a large batch.
    repeats : int
        Turns of each measurement; the median counts.
    """
    random = np.random.default_rng(_SEED)
    table, labels = _objects(random, objects, features, classes)
    estimator = RandomForestClassifier(trees, random_state=0, n_jobs=1).fit(table, labels)
    forest = forest_of(estimator).forest
    asked, _ = _objects(random, rows, features, classes)
    expected = estimator.predict_proba(asked)
    if not np.array_equal(forest.predict_proba(asked), expected):
        raise AssertionError("the probabilities differ from scikit-learn's")
    onnx = _onnx_peer(estimator, features)
    if onnx is not None and not np.allclose(onnx(asked), expected, atol=1e-5):
        raise AssertionError("ONNX Runtime's probabilities differ")
    given = conditions(
        "scikit-learn", "numpy", trees=trees, features=features, classes=classes, nodes=len(forest.nodes)
    )
    tasks: dict[str, Callable[[NDArray], Any]] = {"": forest.predict_proba, "-sklearn": estimator.predict_proba}
    if onnx is not None:
        tasks["-onnxruntime"] = onnx
    single = np.split(asked, rows)
    # Scikit-learn takes tens of milliseconds for a row: it is asked for fewer.
    few = {"": rows, "-onnxruntime": min(200, rows), "-sklearn": min(20, rows)}
    for name, at_once in (("forest-1", 1), ("forest-1000", rows)):
        given_parts = {suffix: single[: few[suffix]] if at_once == 1 else [asked] for suffix in tasks}
        seconds = interleaved_seconds(
            {suffix: partial(_each, task, given_parts[suffix]) for suffix, task in tasks.items()}, repeats
        )
        rates = {suffix: sum(map(len, given_parts[suffix])) / value for suffix, value in seconds.items()}
        best = max(rate for suffix, rate in rates.items() if suffix)
        for suffix, rate in rates.items():
            yield figure(name + suffix, rate, _UNIT, given | {"rows_at_once": at_once}, best, peer=bool(suffix))


def _each(task: Callable[[NDArray], Any], parts: list[NDArray]) -> None:
    for part in parts:
        task(part)


def _objects(
    random: np.random.Generator, count: int, features: int, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = random.integers(0, classes, count)
    table = random.normal(size=(count, features)).astype(np.float32)
    table += np.float32(0.5) * np.random.default_rng(0).normal(size=(classes, features)).astype(np.float32)[labels]
    return table, labels


def _onnx_peer(estimator: RandomForestClassifier, features: int) -> Callable[[NDArray], NDArray] | None:
    try:
        import onnxruntime
        from skl2onnx import to_onnx
    except ImportError:
        print("ONNX Runtime or skl2onnx is not installed: this peer is left out", file=sys.stderr)
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = to_onnx(estimator, np.zeros((1, features), np.float32), options={"zipmap": False})
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda rows: session.run(["probabilities"], {"X": rows})[0]
