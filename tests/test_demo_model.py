"""The demonstration model that the project ships, and how it is made."""

from pathlib import Path

import numpy as np
import pytest

from classifier.package import read_model
from classifier.training import HIERARCHY
from lightcurves.features.compute import FEATURES_VERSION, feature_names
from pipelines.demo_model import DEMO_MODEL, make_demo_model


def test_the_shipped_model_is_sound_small_and_says_what_it_is() -> None:
    model = read_model(DEMO_MODEL)
    assert set(model.leaves) == {leaf for leaves in HIERARCHY.values() for leaf in leaves}
    assert set(model.features) <= set(feature_names())
    assert (model.feature_mode, model.feature_version) == ("alerce", f"{FEATURES_VERSION}-alerce")
    assert "simulated" in model.provenance["demonstration"]
    assert "never use it to classify the sky" in (DEMO_MODEL / "model_card.md").read_text()
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) < 10_000_000


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_made_anew(tmp_path: Path) -> None:
    model, scores = make_demo_model(tmp_path / "model", objects_per_class=14, trees=10)
    assert np.isfinite(scores.accuracy)
    assert set(model.leaves) == set(read_model(DEMO_MODEL).leaves)
    assert scores.accuracy > 0.4
