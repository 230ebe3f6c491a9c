"""Statistics of the magnitudes of a band against their reference, the golden values and NumPy's bits."""

from pathlib import Path

import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lightcurves.features import numeric
from lightcurves.features.curves import Curves, Mode
from lightcurves.features.statistics import FAMILY, _log_normal_cdf

pytestmark = pytest.mark.filterwarnings("error")
HYPOTHESIS = settings(deadline=None, max_examples=100)
VALUES = hnp.arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6))


@HYPOTHESIS
@given(VALUES, st.sampled_from([3.0, 25.0, 50.0, 75.0, 97.0]))
def test_sums_and_percentiles_have_the_bits_of_numpy(values, percent):
    ordered = np.sort(values)
    assert numeric.pairwise_sum(values) == np.sum(values)
    assert numeric.percentile(ordered, percent) == np.percentile(values, percent)
    assert numeric.median(ordered) == np.median(values)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 127, 128, 129, 1000, 1025, 77777])
def test_long_sums_have_the_bits_of_numpy(n):
    values = np.random.default_rng(n).normal(17, 3, n)
    assert numeric.pairwise_sum(values) == np.sum(values)


def test_logarithm_of_the_normal_distribution_holds_into_the_far_tails():
    z = np.concatenate([np.linspace(-60, 9, 500), [-30.0, -1e3, 0.0, 40.0]])
    np.testing.assert_allclose([_log_normal_cdf(x) for x in z], stats.norm.logcdf(z), rtol=2e-13)


def test_golden_values(shared_data: Path):
    assert_golden(FAMILY, shared_data, {}, default={"rtol": 1e-9, "atol": 1e-12})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(4))
def test_equals_reference(mode: Mode, seed: int):
    curves = random_curves(seed)
    got, expected = FAMILY.compute(curves, mode, {}), FAMILY.reference(curves, mode, {})
    assert list(got) == list(FAMILY.per_band)
    assert set(got) == set(expected)
    for name in FAMILY.per_band:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(9), {})


def curves_of_g(mjd: np.ndarray, magnitude: np.ndarray, error: np.ndarray) -> Curves:
    """One object observed in g only, with the same magnitudes of the difference image."""
    n, empty = len(mjd), np.zeros(0)
    mjd, magnitude, error = (np.asarray(x, np.float64) for x in (mjd, magnitude, error))
    return Curves(
        offsets=np.array([0, n, n]),
        mjd=mjd,
        magnitude=magnitude,
        error=error,
        difference_magnitude=magnitude,
        difference_error=error,
        positive=np.ones(n, np.bool_),
        ra=np.full(n, 10.0),
        dec=np.full(n, 10.0),
        rb=np.ones(n),
        non_offsets=np.zeros(3, np.int64),
        non_mjd=empty,
        non_limit=empty,
        sgscore1=np.ones(1),
        wise=np.full((1, 3), np.nan),
        enough=np.array([n > 5]),
    )


def statistics_of_g(mjd, magnitude, error, mode: Mode = Mode.ALERCE) -> dict[str, float]:
    columns = FAMILY.compute(curves_of_g(mjd, magnitude, error), mode, {})
    assert all(np.isnan(values[0, 1]) for values in columns.values())
    return {name: values[0, 0] for name, values in columns.items()}


@pytest.mark.parametrize("magnitude", [17.25, 17.3])
def test_equal_magnitudes(magnitude: float):
    # The mean of seven times 17.3 is 17.3 only without rounding: the accurate mode knows.
    got = statistics_of_g(np.arange(7.0), np.full(7, magnitude), np.full(7, 0.1), Mode.ACCURATE)
    undefined = {"AndersonDarling", "Eta_e", "Rcs", "Skew", "SmallKurtosis", "StetsonK"}
    assert {name for name, value in got.items() if np.isnan(value)} == undefined
    assert (got["Autocor_length"], got["Beyond1Std"], got["MedianBRP"], got["Con"]) == (7, 0, 0, 0)
    assert (got["Std"], got["Amplitude"], got["Pvar"], got["iqr"], got["Gskew"]) == (0, 0, 0, 0, 0)
    assert got["PairSlopeTrend"] == -6 / 30
    assert np.isnan(statistics_of_g(np.arange(7.0), np.full(7, magnitude), np.full(7, 0.1))["Skew"])


def test_equal_times_leave_slopes_undefined_or_infinite():
    magnitude = np.array([17.0, 17.2, 17.1, 17.5, 17.4, 17.0])
    got = statistics_of_g(np.full(6, 58000.5), magnitude, np.full(6, 0.1))
    assert np.isnan(got["Eta_e"])
    assert np.isnan(got["LinearTrend"])
    assert got["MaxSlope"] == np.inf
    magnitude[1] = magnitude[0]
    assert np.isnan(statistics_of_g(np.full(6, 58000.5), magnitude, np.full(6, 0.1))["MaxSlope"])


def test_fewer_than_six_points_leave_only_the_interquartile_range():
    got = statistics_of_g(np.arange(5.0), np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.full(5, 0.1))
    assert got.pop("iqr") == 2.0
    assert all(np.isnan(value) for value in got.values())


def test_outliers_in_a_row_are_counted_on_either_side():
    magnitude = np.full(60, 17.0)
    magnitude[[10, 11, 12, 13]] = [27, 7, 27, 7]
    magnitude[30:32] = 7
    assert statistics_of_g(np.arange(60.0), magnitude, np.full(60, 0.1))["Con"] == 2 / 58


def test_a_line_is_its_own_trend():
    mjd = 58000 + np.array([0.0, 3, 3.5, 90, 91, 200, 400])
    got = statistics_of_g(mjd, 17 + 0.01 * (mjd - 58000), np.full(7, 0.1))
    assert got["LinearTrend"] == pytest.approx(0.01, rel=1e-9)
    assert got["MaxSlope"] == pytest.approx(0.01, rel=1e-9)


def test_no_point_of_another_object_is_read():
    curves = random_curves(3)
    alone = FAMILY.compute(take(curves, [4]), Mode.ALERCE, {})
    far = take(curves, [9, 4, 10])
    far.magnitude[: far.offsets[2]] = np.nan
    far.magnitude[far.offsets[4] :] = np.nan
    beside = FAMILY.compute(far, Mode.ALERCE, {})
    assert all(np.array_equal(beside[name][1], alone[name][0], equal_nan=True) for name in alone)
