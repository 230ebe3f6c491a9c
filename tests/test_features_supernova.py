"""Features meant for supernovae against their reference and the golden values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take

from lightcurves.features.curves import Mode
from lightcurves.features.supernova import FAMILY

pytestmark = pytest.mark.filterwarnings("error")


def test_golden_values(shared_data: Path):
    assert_golden(FAMILY, shared_data, {}, default={"rtol": 1e-6})


@pytest.mark.parametrize("seed", range(3))
def test_equals_reference(seed: int):
    curves = random_curves(seed)
    got, expected = FAMILY.compute(curves, Mode.ALERCE, {}), FAMILY.reference(curves, Mode.ALERCE, {})
    assert set(got) == set(FAMILY.per_band) == set(expected)
    for name in FAMILY.per_band:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-12, err_msg=name)


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(9), {})


def test_a_band_without_points_has_no_counts_and_one_without_non_detections_has_zero():
    curves = take(random_curves(0), [2])
    n = len(curves.mjd)
    curves = replace(curves, non_offsets=np.array([0, 0, 2]), non_mjd=np.array([1.0, 2.0]), non_limit=np.full(2, 20.0))
    got = FAMILY.compute(curves, Mode.ALERCE, {})
    assert list(got["n_det"][0]) == [n, pytest.approx(np.nan, nan_ok=True)]
    assert all(np.isnan(values[0, 1]) for values in got.values())
    assert (got["n_non_det_before_fid"][0, 0], got["n_non_det_after_fid"][0, 0]) == (0, 0)
    assert np.isnan(got["dmag_non_det_fid"][0, 0])


def test_non_detections_are_split_at_the_first_point():
    curves = take(random_curves(0), [2])
    first = curves.mjd[0]
    curves = replace(
        curves,
        non_offsets=np.array([0, 5, 5]),
        non_mjd=np.array([first - 9, first - 5, first - 1, first, first + 3]),
        non_limit=np.array([20.5, 19.0, 19.5, 20.0, 21.0]),
    )
    got = {name: values[0, 0] for name, values in FAMILY.compute(curves, Mode.ALERCE, {}).items()}
    assert (got["n_non_det_before_fid"], got["n_non_det_after_fid"]) == (3, 2)
    assert (got["max_diffmaglim_before_fid"], got["max_diffmaglim_after_fid"]) == (20.5, 21.0)
    assert (got["median_diffmaglim_before_fid"], got["median_diffmaglim_after_fid"]) == (19.5, 20.5)
    assert (got["last_diffmaglim_before_fid"], got["last_mjd_before_fid"]) == (19.5, first - 1)
    assert got["dmag_first_det_fid"] == 19.5 - curves.magnitude[0]
    assert got["dmag_non_det_fid"] == 19.5 - curves.magnitude.min()
