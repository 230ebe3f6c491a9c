"""The demonstration model that the project ships: ``python -m pipelines.demo_model FOLDER`` makes it anew.

Trained on simulated light curves of all fifteen classes: it lets the whole machinery run, and says nothing of the sky.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

import classifier
from classifier.card import card_files
from classifier.model import Model
from classifier.package import write_model
from classifier.training import Scores, Settings, train_model
from lightcurves.assembly import assemble
from lightcurves.features.compute import compute_features
from lightcurves.features.curves import Mode
from simulation.light_curves import simulate_light_curves

DEMO_MODEL: Final = Path(classifier.__file__).parent / "demo_model"
_OBJECTS_PER_CLASS: Final = 150
_TREES: Final = 150
_DATA: Final = (
    "A demonstration: trained on light curves that `simulation/light_curves.py` made up, {count:,} of them with enough "
    "points. It shows how the machinery works; never use it to classify the sky."
)


def make_demo_model(
    folder: str | Path, objects_per_class: int = _OBJECTS_PER_CLASS, trees: int = _TREES
) -> tuple[Model, Scores]:
    """Simulate light curves, compute their features, train on them and write the model with its card.

    Parameters
    ----------
    folder : path
    objects_per_class, trees : int
        Of each of the fifteen classes; of each forest.
    """
    simulated = simulate_light_curves(objects_per_class)
    wise = simulated.objects.select(["oid", "w1mpro", "w2mpro", "w3mpro"]).rename_columns(
        ["oid", "W1mag", "W2mag", "W3mag"]
    )
    batch = assemble(simulated.detections, simulated.non_detections, crossmatches=wise)
    features = compute_features(batch, Mode.ALERCE, keep_incomplete=False)
    objects = simulated.objects.to_pandas().set_index("oid")
    model, scores = train_model(
        features.table.to_pandas().set_index("oid"),
        objects["class"],
        Settings(trees=trees, jobs=os.cpu_count() or 1),
        version="demo",
        feature_mode=str(features.mode),
        feature_version=features.version,
        licence="BSD 3-Clause, as alertbeam.",
        provenance={"demonstration": "trained on simulated light curves, not on the sky"},
    )
    described = _DATA.format(count=sum(scores.counts.values()))
    return write_model(model, folder, card_files(model, scores, described)), scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo_model", description=__doc__)
    parser.add_argument("folder", nargs="?", default=DEMO_MODEL, help="default: the one that is shipped")
    made, found = make_demo_model(parser.parse_args().folder)
    print(f"{made.name} {made.version}: accuracy {found.accuracy:.3f} on held-out simulated objects")
