"""The comparison with ALeRCE's values: how it counts, and what it must find."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks_command
from benchmarks import features_parity
from benchmarks.features_parity import Agreement
from lightcurves.features.compute import feature_names


def test_agreement_counts_values_and_missing_ones():
    one = Agreement("x", 1e-3, 0.0)
    nan = np.nan
    one.add(list("abcdef"), np.array([1, 2, nan, 4, nan, 0.0]), np.array([1.0005, 2.2, nan, nan, 5, 0.0]))
    assert (one.objects, one.within, one.nan_mismatches) == (6, 3, 2)
    assert one.beyond == ["b", "d", "e"]
    assert one.worst_relative == pytest.approx(0.2 / 2.2)


def test_absolute_tolerance_hides_what_is_small():
    one = Agreement("x", 0.0, 1e-3)
    one.add(["a", "b"], np.array([1e-9, 0.5]), np.array([1e-7, 0.5005]))
    assert one.within == 2
    assert one.worst_relative == 0


def test_absent_reference_data_are_told(tmp_path, capsys):
    assert list(features_parity.run(tmp_path / "nowhere")) == []
    assert "nothing to compare with" in capsys.readouterr().err


def test_the_table_names_every_feature(shared_data, capsys):
    assert benchmarks_command.main(["features-parity", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        assert {"name", "rate", "unit", "conditions", "ratio", "summary"} <= set(line)
        assert line["rate"] > 0
        assert line["ratio"] > 0
    features = {line["feature"]: line for line in lines if "feature" in line}
    assert set(feature_names()) - set(features) == {"W1-W2", "W2-W3", "g-W2", "g-W3", "r-W2", "r-W3"}
    assert all(line["objects"] == (10 if name == "sgscore1" else 56) for name, line in features.items())
    assert all(line["nan_mismatches"] == 0 for line in features.values())
    others = {line["name"]: line for line in lines if "feature" not in line}
    assert others["features-parity-points"]["ratio"] > 0.999
    assert others["features-parity-packets"]["ratio"] > 0.94
    assert others["features-parity-correction"]["ratio"] == 1
    assert others["features-parity-correction"]["conditions"]["detections"] == 1381
    alerce, accurate = (others[f"features-parity-periods-{mode}"] for mode in ("alerce", "accurate"))
    assert (alerce["within_1_percent"], alerce["up_to_factor_2"]) >= (9, 12)
    assert accurate["within_1_percent"] > alerce["within_1_percent"]
    assert accurate["up_to_factor_2"] > alerce["up_to_factor_2"]
