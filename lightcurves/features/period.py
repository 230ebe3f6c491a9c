"""Periods by a multiband periodogram, and features of the shape of the periodogram."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import period_accurate, period_alerce, period_reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.periodogram import COLUMNS

_POWER_RATES = ("Power_rate_1/4", "Power_rate_1/3", "Power_rate_1/2", "Power_rate_2", "Power_rate_3", "Power_rate_4")


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute periods and the shape of the periodogram (alerce.md, section 5.5).

    A band takes part if it has more than five points. The power is that of one sinusoid with free constant per
    band, in units of the residual, on frequencies 0.001, 0.002 … below 20 per day whose ten highest maxima are
    refined; an object with fewer than ten maxima gets NaN.

    In mode ``ALERCE`` times, frequencies and their products are rounded to float32 as in P4J, and
    `Multiband_period` is the highest of the ten. Bands of fewer than about ten points can have a near-perfect fit
    at many frequencies: which of them is highest then depends on the last digits of float32 sums, and P4J itself
    differs between machines.

    In mode ``ACCURATE`` all is double precision. `Period_fit` and the power rates keep their definition;
    `Period_band` is refined to the top of its peak; `Multiband_period` is chosen among the eight highest peaks and
    twice their periods by the Bayesian information criterion of a Fourier series of up to six harmonics that has
    one shape for both bands (offset and amplitude per band), because the highest peak of a single sinusoid is often
    half the period of an eclipsing binary or a daily alias.

    Parameters
    ----------
    curves : Curves
        n objects.
    mode : Mode
    known : mapping
        Unused.

    Returns
    -------
    dict
        `Multiband_period` (n,) and `Period_band`, `delta_period` (n, 2) in days; `Period_fit` (n,), 1 minus a
        normalised entropy, and `Power_rate_*` (n,), the power at a multiple of the period over the highest.
    """
    out = np.full((len(curves), COLUMNS), np.nan)
    search = period_alerce.search if mode is Mode.ALERCE else period_accurate.search
    search(curves.offsets, curves.mjd, curves.magnitude, curves.error, curves.enough, out)
    columns: Columns = {"Multiband_period": out[:, 0], "Period_fit": out[:, 1]}
    columns |= {name: out[:, 2 + i] for i, name in enumerate(_POWER_RATES)}
    return columns | {"Period_band": out[:, 8:10], "delta_period": out[:, 10:12]}


FAMILY = Family(
    per_band=("Period_band", "delta_period"),
    per_object=("Multiband_period", "Period_fit", *_POWER_RATES),
    compute=compute,
    reference=period_reference.period,
)
