"""Plain NumPy reference of the features meant for supernovae."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]

_NAMES = (
    *("n_det", "n_pos", "n_neg", "positive_fraction", "delta_mag_fid", "delta_mjd_fid", "first_mag", "mean_mag"),
    *("min_mag", "n_non_det_before_fid", "n_non_det_after_fid", "max_diffmaglim_before_fid"),
    *("median_diffmaglim_before_fid", "last_diffmaglim_before_fid", "last_mjd_before_fid", "dmag_non_det_fid"),
    *("dmag_first_det_fid", "max_diffmaglim_after_fid", "median_diffmaglim_after_fid"),
)


def supernova(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """Features of alerce.md 5.4 (without the parametric model) for every object and band, as ``supernova.compute``."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in _NAMES}
    for row in range(2 * len(curves)):
        points = slice(curves.offsets[row], curves.offsets[row + 1])
        limits = slice(curves.non_offsets[row], curves.non_offsets[row + 1])
        if points.stop > points.start:
            values = _of_band(
                curves.mjd[points],
                curves.magnitude[points],
                curves.positive[points],
                curves.non_mjd[limits],
                curves.non_limit[limits],
            )
            for name, value in values.items():
                columns[name][row // 2, row % 2] = value
    return columns


def _of_band(t: Values, m: Values, positive: NDArray[np.bool_], non_t: Values, limit: Values) -> dict[str, float]:
    before, after = limit[non_t < t[0]], limit[non_t >= t[0]]
    values = {
        "n_det": len(t),
        "n_pos": np.sum(positive),
        "n_neg": np.sum(~positive),
        "positive_fraction": np.mean(positive),
        "delta_mag_fid": np.ptp(m),
        "delta_mjd_fid": t[-1] - t[0],
        "first_mag": m[0],
        "mean_mag": np.mean(m),
        "min_mag": np.min(m),
        "n_non_det_before_fid": len(before),
        "n_non_det_after_fid": len(after),
    }
    if len(before) > 0:
        values |= {
            "max_diffmaglim_before_fid": np.max(before),
            "median_diffmaglim_before_fid": np.median(before),
            "last_diffmaglim_before_fid": before[-1],
            "last_mjd_before_fid": np.max(non_t[non_t < t[0]]),
            "dmag_non_det_fid": np.median(before) - np.min(m),
            "dmag_first_det_fid": before[-1] - m[0],
        }
    if len(after) > 0:
        values |= {
            "max_diffmaglim_after_fid": np.max(after),
            "median_diffmaglim_after_fid": np.median(after),
        }
    return values
