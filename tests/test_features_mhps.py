"""Mexican hat power against a plain reference, the golden values and made light curves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take
from numpy.typing import NDArray

from lightcurves.features.curves import Mode
from lightcurves.features.mhps import FAMILY, NAMES

pytestmark = pytest.mark.filterwarnings("error")


def test_golden_values(shared_data: Path):
    assert_golden(FAMILY, shared_data, {}, default={"rtol": 1e-3})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(3))
def test_equals_reference(mode: Mode, seed: int):
    curves = random_curves(seed)
    got, expected = FAMILY.compute(curves, mode, {}), FAMILY.reference(curves, mode, {})
    assert set(got) == set(expected) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(9), {})


def of_band(mjd: NDArray[np.float64], magnitude: NDArray[np.float64], error: float = 0.01) -> dict[str, float]:
    n = len(mjd)
    base = take(random_curves(0), [0])
    curves = replace(base, offsets=np.array([0, n, n]), mjd=mjd, magnitude=magnitude, error=np.full(n, error))
    got = FAMILY.compute(curves, Mode.ACCURATE, {})
    assert all(np.isnan(values[0, 1]) for values in got.values())
    return {name: values[0, 0] for name, values in got.items()}


def test_power_is_on_the_scale_of_the_variation():
    mjd = 58000 + np.arange(0, 400, 1.0)
    slow = of_band(mjd, 18 + 0.2 * np.cos(2 * np.pi * mjd / 100))
    fast = of_band(mjd, 18 + 0.2 * np.cos(2 * np.pi * mjd / 10))
    assert slow["MHPS_ratio"] > 10
    assert fast["MHPS_ratio"] < 0.1
    assert slow["MHPS_PN_flag"] == fast["MHPS_PN_flag"] == 0
    assert slow["MHPS_non_zero"] == 400


def test_flag_where_noise_exceeds_the_fast_power():
    mjd = 58000 + np.arange(0, 400, 1.0)
    got = of_band(mjd, 18 + 0.2 * np.cos(2 * np.pi * mjd / 100), error=0.5)
    assert got["MHPS_PN_flag"] == 1
    assert got["MHPS_high"] > 0


def test_points_without_three_neighbours_are_left_out():
    magnitude = np.array([18.0, 18.3, 18.1, 18.4, 18.2])
    used = of_band(58000 + np.array([0.0, 5, 10, 15, 60]), magnitude)
    assert used["MHPS_non_zero"] == 4
    alone = of_band(58000 + np.arange(5) * 20.5, magnitude)
    assert all(np.isnan(value) for value in alone.values())


def test_equal_magnitudes_have_no_values():
    mjd = 58000 + np.arange(30.0)
    assert all(np.isnan(value) for value in of_band(mjd, np.full(30, 17.3)).values())
