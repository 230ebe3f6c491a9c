"""Structure function against its reference, the golden values and curves of known structure."""

from pathlib import Path

import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take

from lightcurves.features.curves import Curves, Mode
from lightcurves.features.structure_function import FAMILY

pytestmark = pytest.mark.filterwarnings("error")


def test_golden_values(shared_data: Path):
    assert_golden(FAMILY, shared_data, {}, default={"rtol": 1e-7})


@pytest.mark.parametrize("seed", range(6))
def test_equals_reference(seed: int):
    curves = random_curves(seed)
    got, expected = FAMILY.compute(curves, Mode.ALERCE, {}), FAMILY.reference(curves, Mode.ALERCE, {})
    for name in FAMILY.per_band:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(9), {})


def of_band(mjd: np.ndarray, magnitude: np.ndarray) -> tuple[float, float]:
    base = take(random_curves(0), [2])
    n = len(mjd)
    changed = {
        "offsets": np.array([0, n, n]),
        "mjd": np.asarray(mjd, np.float64),
        "magnitude": np.asarray(magnitude, np.float64),
        "error": np.full(n, 1e-4),
    }
    curves = Curves(**{name: changed.get(name, getattr(base, name)) for name in base.__dataclass_fields__})
    got = FAMILY.compute(curves, Mode.ALERCE, {})
    expected = FAMILY.reference(curves, Mode.ALERCE, {})
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-8, err_msg=name)
    return got["SF_ML_amplitude"][0, 0], got["SF_ML_gamma"][0, 0]


def test_linear_rise_has_slope_one():
    mjd = 58000 + np.arange(400.0)
    amplitude, gamma = of_band(mjd, 17 + mjd / 365)
    assert gamma == pytest.approx(1, abs=0.02)
    assert amplitude == pytest.approx(1, rel=0.05)


def test_large_amplitude_and_steep_slope_are_cut():
    mjd = 58000 + np.arange(400.0)
    assert of_band(mjd, 20 * mjd) == (15.0, pytest.approx(1, abs=0.02))
    assert of_band(mjd, (mjd - 58000) ** 12)[1] <= 3.0


def test_no_lags_within_bounds_leave_the_fit_out():
    assert of_band(58000 + np.arange(6) * 0.5, np.arange(6) * 0.1) == (-0.5, -0.5)
    assert of_band(58000 + np.arange(6) * 400.0, np.arange(6) * 0.1) == (-0.5, -0.5)


def test_one_lag_in_the_fitted_range_takes_the_line_of_least_norm():
    # Lags 20, 200 and 220 days: only the first is within half a year.
    mjd = 58000 + np.array([0.0, 200, 220, 700, 1200, 1700])
    amplitude, gamma = of_band(mjd, 17 + np.array([0.0, 1, 1.5, 0, 0, 0]))
    years = 5 * (10**0.6 + 10**0.7) / 2 / 365
    assert gamma == pytest.approx(np.log10(0.5) / 2 / np.log10(years), rel=1e-3)
    assert amplitude == pytest.approx(0.5**0.5, rel=1e-3)


def test_lags_beyond_half_a_year_alone_are_not_fitted():
    mjd = 58000 + np.array([0.0, 200, 200.1, 550, 550.1, 550.2])
    assert of_band(mjd, 17 + np.arange(6) * 0.3) == (-0.5, -0.5)


def test_structure_below_the_noise_has_no_bins():
    assert of_band(58000 + np.arange(60.0), np.full(60, 17.0)) == (-0.5, -0.5)


def test_faint_structure_is_zero():
    mjd = 58000 + np.arange(60.0)
    amplitude, gamma = of_band(mjd, 17 + (mjd - 58000) * 2e-5)
    assert 0.005 < amplitude < 0.02
    assert gamma > 0.9
    mjd = 58000 + np.arange(300.0)
    assert of_band(mjd, 17 + (mjd - 58000) * 1e-5) == (0, 0)
