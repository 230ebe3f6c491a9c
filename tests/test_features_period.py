"""Periods against a plain reference, the golden values, stars of known period and made light curves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, flat, random_curves, take
from numpy.typing import NDArray

from lightcurves.features import period_accurate, period_alerce
from lightcurves.features.curves import Curves, Mode
from lightcurves.features.fourier_sums import fourier_sums
from lightcurves.features.period import FAMILY
from lightcurves.features.periodogram import highest_maxima, nearest, period_fit

pytestmark = pytest.mark.filterwarnings("error")

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def curves_of(objects: list[list[Band]]) -> Curves:
    """Curves with the given (mjd, magnitude, error) of both bands."""
    bands = [band for one in objects for band in one]
    mjd, magnitude, error = (np.concatenate([band[i] for band in bands]) for i in range(3))
    base = take(random_curves(0), np.zeros(len(objects), np.int64))
    return replace(
        base,
        offsets=np.concatenate([[0], np.cumsum([len(band[0]) for band in bands])]),
        mjd=mjd,
        magnitude=magnitude,
        error=error,
    )


def made(shape, period: float, seed: int, points: int = 45, span: float = 600, error: float = 0.02) -> list[Band]:
    """One object observed at night in two bands, with the shape (a function of phase) given."""
    rng = np.random.default_rng(seed)
    bands = []
    for amplitude in (1.0, 0.8):
        mjd = np.sort(58200 + rng.integers(0, int(span), points) + rng.normal(0.3, 0.08, points))
        noise = rng.normal(0, error, points)
        bands.append((mjd, 17 + amplitude * shape(mjd / period % 1) + noise, np.full(points, error)))
    return bands


def wave(phase):
    return 0.3 * np.cos(2 * np.pi * phase)


def eclipses(phase):
    return 0.5 * np.exp(-(((phase - 0.25) / 0.1) ** 2)) + 0.3 * np.exp(-(((phase - 0.75) / 0.1) ** 2))


def period_of(objects: list[list[Band]], mode: Mode) -> NDArray[np.float64]:
    return FAMILY.compute(curves_of(objects), mode, {})["Multiband_period"]


def test_golden_values(shared_data: Path):
    exact = {name: {"rtol": 1e-6, "atol": 1e-6} for name in ("Multiband_period", "Period_band", "delta_period")}
    assert_golden(FAMILY, shared_data, exact, default={"rtol": 1e-4})


@pytest.mark.parametrize(("mode", "objects"), [(Mode.ALERCE, 21), (Mode.ACCURATE, 8)])
def test_equals_reference(mode: Mode, objects: int):
    curves = random_curves(5, objects, longest=40)
    got, expected = flat(FAMILY.compute(curves, mode, {})), flat(FAMILY.reference(curves, mode, {}))
    assert set(got) == set(expected)
    tolerance = 1e-3 if mode is Mode.ALERCE else 1e-6
    for name, values in got.items():
        np.testing.assert_allclose(
            values[curves.enough], expected[name][curves.enough], rtol=tolerance, atol=1e-9, err_msg=name
        )


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(3, longest=25), {})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("period", [0.0613, 0.5372, 7.31, 91.0])
def test_sinusoid_is_found(mode: Mode, period: float):
    got = FAMILY.compute(curves_of([made(wave, period, 1)]), mode, {})
    assert got["Multiband_period"] == pytest.approx(period, rel=3e-3)
    assert got["Period_band"][0] == pytest.approx([period, period], rel=1e-2)
    assert got["Period_fit"][0] > 0
    np.testing.assert_array_equal(got["delta_period"], np.abs(got["Multiband_period"][:, None] - got["Period_band"]))


def test_accurate_mode_finds_both_eclipses():
    periods = [0.43, 0.9137, 1.618, 2.87]
    objects = [made(eclipses, period, seed) for seed, period in enumerate(periods)]
    np.testing.assert_allclose(period_of(objects, Mode.ACCURATE), periods, rtol=1e-3)
    np.testing.assert_allclose(period_of(objects, Mode.ALERCE) * 2, periods, rtol=1e-2)


def test_accurate_mode_resolves_long_time_spans():
    period = 0.35712345
    (got,) = period_of([made(wave, period, 4, span=2800)], Mode.ACCURATE)
    assert got == pytest.approx(period, rel=1e-5)


def test_accurate_mode_is_independent_of_the_epoch():
    curves = curves_of([made(eclipses, 0.77, 2)])
    later = replace(curves, mjd=curves.mjd + 4096)
    for a, b in zip(*(flat(FAMILY.compute(c, Mode.ACCURATE, {})).values() for c in (curves, later)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", Mode)
def test_fewer_than_six_points_in_a_band_are_left_out(mode: Mode):
    g, r = made(wave, 0.6, 3)
    few = [tuple(x[:5] for x in r)]
    got = flat(FAMILY.compute(curves_of([[g, *few]]), mode, {}))
    alone = flat(FAMILY.compute(curves_of([[g, tuple(x[:0] for x in r)]]), mode, {}))
    for name, values in got.items():
        np.testing.assert_array_equal(values, alone[name], err_msg=name)
    assert np.isnan(got["Period_band_2"])
    assert np.isnan(got["delta_period_2"])
    both_few = FAMILY.compute(curves_of([[tuple(x[:5] for x in g), *few]]), mode, {})
    assert all(np.isnan(values).all() for values in both_few.values())


@pytest.mark.parametrize("mode", Mode)
def test_no_ten_maxima_no_values(mode: Mode):
    (mjd, magnitude, error), _ = made(wave, 0.6, 5)
    nothing = tuple(np.zeros(0) for _ in range(3))
    flat_curve, one_time = (mjd, np.full_like(mjd, 17.3), error), (np.full_like(mjd, 58300.5), magnitude, error)
    got = FAMILY.compute(curves_of([[flat_curve, nothing], [one_time, nothing]]), mode, {})
    assert all(np.isnan(values).all() for values in got.values())


def recovered(curves: Curves, periods: NDArray[np.float64], mode: Mode) -> tuple[int, int]:
    got = FAMILY.compute(curves, mode, {})["Multiband_period"]
    ratio = got / periods
    exact = np.abs(ratio - 1) < 0.01
    return exact.sum(), (exact | (np.abs(ratio * 2 - 1) < 0.01) | (np.abs(ratio / 2 - 1) < 0.01)).sum()


@pytest.mark.parametrize("lowest_rb", [0.0, 0.55])
def test_stars_of_known_period(shared_data: Path, lowest_rb: float):
    points = pd.read_csv(shared_data / "features" / "periodic_light_curves.csv")
    labels = pd.read_csv(shared_data / "features" / "periodic_light_curve_labels.csv").set_index("oid").period.dropna()
    points = points[(points.rb >= lowest_rb) & points.sigmapsf_corr.between(0, 1, inclusive="neither")]
    points = points.drop_duplicates(["oid", "mjd"]).sort_values("mjd")
    objects = []
    for oid in labels.index:
        one = points[points.oid == oid]
        bands = [one[one.fid == fid] for fid in (1, 2)]
        objects.append([tuple(b[x].to_numpy() for x in ("mjd", "magpsf_corr", "sigmapsf_corr")) for b in bands])
    curves, periods = curves_of(objects), labels.to_numpy()
    assert len(periods) == 18
    exact, up_to_two = recovered(curves, periods, Mode.ALERCE)
    assert exact >= 9
    assert up_to_two >= 12
    better_exact, better_up_to_two = recovered(curves, periods, Mode.ACCURATE)
    assert better_exact > exact
    assert better_up_to_two >= up_to_two


def removed_by_least_squares(turns: NDArray[np.float64], weight: NDArray, value: NDArray) -> float:
    design = np.stack([np.ones_like(turns), np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    root = np.sqrt(weight)
    x = np.linalg.lstsq(design * root[:, None], value * root, rcond=None)[0]
    return 1 - np.sum(weight * (value - design @ x) ** 2) / np.sum(weight * value**2)


def test_power_is_the_least_squares_one():
    (mjd, magnitude, error), _ = made(wave, 0.6, 7)
    frequency = np.array([0.001, 0.013, 1.0, 3.7, 12.345, 19.999], np.float32)
    time, weight, weighted, _ = period_alerce.scaled(mjd, magnitude, error)
    rounded = (time[:, None] * frequency) % np.float32(1)
    for kind, tolerance in ((np.float64, 1e-7), (np.float32, 1e-4)):
        got = np.empty(len(frequency))
        period_alerce.fraction_removed(time, weight.astype(kind), weighted.astype(kind), frequency, got)
        expected = [removed_by_least_squares(turns.astype(float), weight, weighted / weight) for turns in rounded.T]
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance / 10)
    time, weight, value, chi_square = period_accurate.scaled(mjd, magnitude, error, 58500.0)
    got = np.empty(300)
    period_accurate.fraction_removed(time, weight, weight * value, 0.41, 0.07, got)
    expected = [removed_by_least_squares((mjd - 58500) * (0.41 + 0.07 * j), weight, value) for j in range(300)]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    mean = np.average(magnitude, weights=error**-2)
    assert chi_square == pytest.approx(np.sum(((magnitude - mean) / error) ** 2))


def test_highest_maxima():
    power = np.array([9.0, 1, 3, 2, 5, 5, 4, 5, 6, 6, 7, 1, 8, 8, 0, 3])
    maxima = np.full(4, -1)
    assert highest_maxima(power, maxima) == 4
    assert list(maxima) == [12, 10, 4, 2]
    assert highest_maxima(power, np.full(9, -1)) == 4
    few = np.full(2, -1)
    assert highest_maxima(power, few) == 2
    assert list(few) == [12, 10]


def test_nearest():
    grid = np.array([1.0, 2.0, 4.0])
    assert [nearest(grid, x) for x in (0.0, 1.2, 1.5, 3.0, 3.1, 9.0)] == [0, 0, 0, 1, 2, 2]


def test_period_fit_of_equal_and_of_peaked_powers():
    assert period_fit(np.full(500, 3.0)) == pytest.approx(0, abs=1e-12)
    peaked = np.zeros(500)
    peaked[7] = 1e6
    assert period_fit(peaked) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("count", "first"), [(1, 0), (63, 0), (200, 3), (1000, 40)])
def test_fourier_sums_are_sums(count: int, first: int):
    random = np.random.default_rng(count)
    time, amplitude = np.sort(random.uniform(-150, 150, 37)), random.normal(size=37)
    step = 0.01
    cosines, sines = np.zeros(count), np.zeros(count)
    fourier_sums(time, amplitude, step, first, cosines, sines)
    turns = np.outer((first + np.arange(count)) * step, time)
    np.testing.assert_allclose(cosines, np.cos(2 * np.pi * turns) @ amplitude, atol=1e-9)
    np.testing.assert_allclose(sines, np.sin(2 * np.pi * turns) @ amplitude, atol=1e-9)
