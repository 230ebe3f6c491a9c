"""Folded light curves and harmonics against a plain reference, the golden values and made light curves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from features_fixtures import (
    EDGE_CASES,
    assert_independent_of_batch,
    flat,
    golden_curves,
    golden_features,
    random_curves,
    take,
)
from numpy.typing import NDArray

from lightcurves.features.curves import Curves, Mode
from lightcurves.features.folded import FAMILY, _by_singular_values, _least_norm

pytestmark = pytest.mark.filterwarnings("error")

# Terms nearly dependent, or residuals of rounding only: whether there is a value is all that is certain.
UNSURE = ("equal magnitudes", "huge magnitudes", "one night")


def periods(n: int) -> NDArray[np.float64]:
    period = 10.0 ** np.random.default_rng(7).uniform(-1, 1.5, n)
    period[::9] = np.nan
    return period


def assert_same(name: str, got: NDArray[np.float64], expected: NDArray[np.float64], rtol: float, atol: float) -> None:
    if name.startswith("Harmonics_phase"):
        assert ((got >= 0) & (got <= 2 * np.pi) | np.isnan(got)).all()
        got = expected + np.mod(got - expected + np.pi, 2 * np.pi) - np.pi
        atol = max(atol, rtol)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=name)


def test_golden_values(shared_data: Path):
    _, curves = golden_curves(shared_data)
    golden = golden_features(shared_data)
    got = flat(FAMILY.compute(curves, Mode.ALERCE, {"Multiband_period": golden["Multiband_period"].to_numpy()}))
    for name, values in got.items():
        # Fewer points than terms leave residuals of rounding.
        assert_same(name, values, golden[name].to_numpy(), 1e-6, 1e-20 if "mse" in name else 0)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(3))
def test_equals_reference(mode: Mode, seed: int):
    curves = random_curves(seed)
    known = {"Multiband_period": periods(len(curves))}
    unsure = np.array([EDGE_CASES[i % len(EDGE_CASES)] in UNSURE for i in range(len(curves))])
    got, expected = flat(FAMILY.compute(curves, mode, known)), flat(FAMILY.reference(curves, mode, known))
    assert set(got) == set(expected)
    for name, values in got.items():
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected[name]))
        rows = ~unsure if name.startswith("Harmonics") else np.ones_like(unsure)
        assert_same(name, values[rows], expected[name][rows], 1e-6, 1e-9)


def test_any_batch_gives_the_same_bits():
    curves = random_curves(9)
    assert_independent_of_batch(FAMILY, curves, {"Multiband_period": periods(len(curves))})


def one(mjd: NDArray[np.float64], magnitude: NDArray[np.float64], error: float) -> Curves:
    n = len(mjd)
    return replace(
        take(random_curves(0), [0]),
        offsets=np.array([0, n, n]),
        mjd=mjd,
        magnitude=magnitude,
        error=np.full(n, error),
    )


@pytest.mark.parametrize("mode", Mode)
def test_fourier_series_is_found(mode: Mode):
    rng = np.random.default_rng(3)
    mjd = np.sort(rng.uniform(58000, 58700, 60))
    period = 0.734
    amplitude, phase = rng.uniform(0.1, 1, 7), rng.uniform(0, 2 * np.pi, 7)
    k = np.arange(1, 8)
    magnitude = 18 + (amplitude * np.cos(2 * np.pi * mjd[:, None] / period * k - phase)).sum(axis=1)
    got = flat(FAMILY.compute(one(mjd, magnitude, 0.05), mode, {"Multiband_period": np.array([period])}))
    assert [got[f"Harmonics_mag_{j}_1"][0] for j in k] == pytest.approx(amplitude, rel=1e-6)
    relative = np.mod(phase - k * phase[0], 2 * np.pi)
    assert [got[f"Harmonics_phase_{j}_1"][0] for j in k[1:]] == pytest.approx(relative[1:], rel=1e-5)
    assert got["Harmonics_mse_1"][0] < 1e-12
    assert np.isnan(got["Harmonics_mse_2"][0])


def test_psi_of_a_straight_line_and_of_alternating_magnitudes():
    mjd = 58000 + np.arange(40) * 0.05
    period = np.array([5.0])
    folded = np.argsort(mjd % 10, kind="stable")
    line, zigzag = np.empty(40), np.empty(40)
    line[folded] = 18 + 0.01 * np.arange(40)
    zigzag[folded] = 18 + 0.1 * (-1.0) ** np.arange(40)
    values = [FAMILY.compute(one(mjd, m, 0.1), Mode.ALERCE, {"Multiband_period": period}) for m in (line, zigzag)]
    assert values[0]["Psi_eta"][0, 0] == pytest.approx(12 / (40**2 - 1))
    assert values[1]["Psi_eta"][0, 0] == pytest.approx(4)
    assert values[0]["Psi_CS"][0, 0] == pytest.approx(np.sqrt(12 / (1 - 1 / 40**2)) / 8)
    assert values[1]["Psi_CS"][0, 0] == pytest.approx(1 / 40)


@pytest.mark.parametrize("points", [1, 2, 7, 14, 15, 16, 40])
def test_solution_of_least_norm(points: int):
    rng = np.random.default_rng(points)
    columns, values = rng.normal(size=(15, points)), rng.normal(size=points)
    expected = np.linalg.pinv(columns.T) @ values
    np.testing.assert_allclose(_least_norm(columns, values), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(_by_singular_values(columns, values), expected, rtol=1e-8, atol=1e-10)


def test_solution_of_a_singular_system():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(15, 20))
    columns[3] = columns[4]
    values = rng.normal(size=20)
    expected = np.linalg.pinv(columns.T) @ values
    np.testing.assert_allclose(_least_norm(columns, values), expected, rtol=1e-8, atol=1e-10)
    assert np.isnan(_by_singular_values(np.full((15, 3), np.nan), values[:3])).all()
