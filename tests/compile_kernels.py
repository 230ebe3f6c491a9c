"""Compile the kernels before the tests begin, each once: ``python tests/compile_kernels.py``.

Each process of pytest, and each that the tests start, would otherwise compile what it needs, the same as the others at
the same time. Compiled kernels are kept beside their modules: the next time this takes seconds.
"""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from backfill_fixtures import DEMO_MODEL
from features_fixtures import EDGE_CASES, random_curves
from pipeline_fixtures import make_sample

from classifier.package import read_model
from lightcurves.features.compute import FAMILIES
from lightcurves.features.curves import Mode
from pipelines.cli import main


def compute_family(number: int) -> None:
    """Compute the features of one family."""
    curves = random_curves(1, len(EDGE_CASES))
    known = {name: np.full(len(curves), 1.0) for name in FAMILIES[number].uses}
    for mode in Mode:
        with np.errstate(all="ignore"):
            FAMILIES[number].compute(curves, mode, known)


def crossmatch_night() -> None:
    """Make, read, crossmatch and write some alerts."""
    with TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sample = make_sample(Path(folder), alerts=20, cutouts=False)
        main([*sample.arguments, "--output", f"{folder}/run", "--database", "none"])


def classify_rows() -> None:
    """Classify many rows at once, and one."""
    forest = read_model(DEMO_MODEL).root.forest
    forest.predict_proba(np.zeros((100, forest.features)))
    forest.predict_proba(np.zeros((1, forest.features)))


def call(task: Callable[[], None]) -> None:
    """Do it."""
    task()


if __name__ == "__main__":
    # The families whose kernels are largest come last in their order.
    tasks = [partial(compute_family, number) for number in reversed(range(len(FAMILIES)))]
    with Pool(os.cpu_count()) as pool:
        for _ in pool.imap_unordered(call, [*tasks, crossmatch_night, classify_rows]):
            pass
