"""The period search in double precision, with the period chosen by fits of several harmonics."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightcurves.features.fourier_sums import fill_rotations, fourier_sums, sine_and_cosine
from lightcurves.features.periodogram import (
    FACTORS,
    FINE_POINTS,
    GRID_STEP,
    GRID_STOP,
    MAXIMA,
    MIN_POINTS,
    highest_maxima,
    multiband_power,
    nearest,
    period_fit,
)

GRID_POINTS = round(GRID_STOP / GRID_STEP) - 1
MOST_HARMONICS = 6

_PEAKS = 20
_CANDIDATES = 8
_PEAK_STEPS = 4
_FINEST_SUBGRID = 20
_REFINED = 3
_REFINED_CYCLES = 0.12
_FEWEST_CYCLES = 2.0
_GOLDEN = (np.sqrt(5) - 1) / 2
_GOLDEN_STEPS = 12
_DEGENERATE = 1e-11
_RIDGE = 1e-6


@njit(cache=True, nogil=True, error_model="numpy")
def _fraction(c, s, c2, s2, yc, ys):
    """Fraction of chi² that a sinusoid with free constant removes.

    From the sums over the points of weights times cosine and sine, of twice the angle too, and those of the weighted
    values.
    """
    cc = 0.5 * (1 + c2) - c * c
    ss = 0.5 * (1 - c2) - s * s
    cs = 0.5 * s2 - c * s
    determinant = cc * ss - cs * cs
    regular = (ss * yc * yc - 2 * cs * yc * ys + cc * ys * ys) / determinant
    one = (yc * yc + ys * ys) / (cc + ss)
    singular = one if cc + ss > _DEGENERATE else 0.0
    return regular if determinant > _DEGENERATE else singular


@njit(cache=True, nogil=True, error_model="numpy")
def fraction_removed(
    time: NDArray[np.float64],
    weight: NDArray[np.float64],
    weighted_value: NDArray[np.float64],
    first: float,
    step: float,
    fraction: NDArray[np.float64],
) -> None:
    """Write the fraction of chi² that a sinusoid with free constant removes, at few equidistant frequencies.

    Parameters
    ----------
    time : float64 [n]
        Days since an epoch near the middle.
    weight : float64 [n]
        1/e², scaled to sum 1.
    weighted_value : float64 [n]
        `weight` times the magnitude minus its weighted mean, in units in which the weighted variance is 1.
    first, step : float
        Frequencies, per day.
    fraction : float64 [m]
        Output, from 0 to 1.
    """
    _fraction_near(time, weight, weighted_value, first, _rotations(time, step, fraction.size), fraction)


@njit(cache=True, nogil=True, error_model="numpy")
def _rotations(time, step, count):
    """Cosines and sines (2, n, count) of 2π t times 0, 1, 2 … steps."""
    table = np.empty((2, time.size, count))
    for k in range(time.size):
        table[0, k, 0], table[1, k, 0] = 1.0, 0.0
        fill_rotations(table[0, k], table[1, k], step * time[k])
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _fraction_near(time, weight, weighted_value, first, rotations, fraction):
    sums = np.zeros((6, fraction.size))
    for k in range(time.size):
        s0, c0 = sine_and_cosine(time[k] * first)
        w, wy = weight[k], weighted_value[k]
        cosines, sines = rotations[0, k], rotations[1, k]
        for j in range(fraction.size):
            c = cosines[j] * c0 - sines[j] * s0
            s = sines[j] * c0 + cosines[j] * s0
            sums[0, j] += w * c
            sums[1, j] += w * s
            sums[2, j] += w * (c * c - s * s)
            sums[3, j] += w * (2 * c * s)
            sums[4, j] += wy * c
            sums[5, j] += wy * s
    for j in range(fraction.size):
        fraction[j] = _fraction(sums[0, j], sums[1, j], sums[2, j], sums[3, j], sums[4, j], sums[5, j])


@njit(cache=True, nogil=True, error_model="numpy")
def fraction_on_grid(
    time: NDArray[np.float64],
    weight: NDArray[np.float64],
    weighted_value: NDArray[np.float64],
    step: float,
    first: int,
    fraction: NDArray[np.float64],
    workspace: NDArray[np.float64],
) -> None:
    """Write what `fraction_removed` writes, at the frequencies (first + j) `step`: fast for many.

    The sums of twice the angle are those at twice the frequency. `workspace` has at least six rows of as many columns
    as there are steps up to the last frequency.
    """
    stop = first + fraction.size
    middle = (stop + 1) // 2
    weight_c, weight_s = workspace[0, :stop], workspace[1, :stop]
    twice_c, twice_s = workspace[2, :stop], workspace[3, :stop]
    value_c, value_s = workspace[4, first:stop], workspace[5, first:stop]
    fourier_sums(time, weight, step, 0, weight_c, weight_s)
    fourier_sums(time, weighted_value, step, first, value_c, value_s)
    for i in range(middle):
        twice_c[i] = weight_c[2 * i]
        twice_s[i] = weight_s[2 * i]
    fourier_sums(time, weight, 2 * step, middle, twice_c[middle:], twice_s[middle:])
    weight_c, weight_s, twice_c, twice_s = weight_c[first:], weight_s[first:], twice_c[first:], twice_s[first:]
    for j in range(fraction.size):
        fraction[j] = _fraction(weight_c[j], weight_s[j], twice_c[j], twice_s[j], value_c[j], value_s[j])


@njit(cache=True, nogil=True, error_model="numpy")
def scaled(
    mjd: NDArray[np.float64], magnitude: NDArray[np.float64], error: NDArray[np.float64], epoch: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Scale a band for `fraction_removed`.

    Returns
    -------
    time, weight, value : float64 [n]
        Value is the magnitude minus its weighted mean in units of its weighted standard deviation.
    chi_square : float
        Of the constant model; NaN if it does not exist or all magnitudes are equal.
    """
    smallest = np.inf
    equal = True
    for k in range(error.size):
        smallest = min(smallest, error[k])
        equal = equal and magnitude[k] == magnitude[0]
    weight = (smallest / error) ** 2
    total = weight.sum()
    weight /= total
    value = magnitude - (weight * magnitude).sum()
    deviation = np.sqrt((weight * value**2).sum())
    chi_square = (deviation / smallest) ** 2 * total
    if equal or not chi_square > 0 or not np.isfinite(chi_square):
        chi_square = np.nan
    return mjd - epoch, weight, value / deviation, chi_square


# The compiler may add in the lanes of a vector: the order depends on the number of points alone.
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _weighted_sums(weight, weighted_value, cosine, sine):
    wc = ws = yc = ys = 0.0
    for k in range(weight.size):
        wc += weight[k] * cosine[k]
        ws += weight[k] * sine[k]
        yc += weighted_value[k] * cosine[k]
        ys += weighted_value[k] * sine[k]
    return wc, ws, yc, ys


@njit(cache=True, nogil=True, error_model="numpy")
def _multiply(c, s, cosine, sine):
    """Add angles to others, given as cosines and sines, in place."""
    for k in range(c.size):
        turned = c[k] * cosine[k] - s[k] * sine[k]
        s[k] = s[k] * cosine[k] + c[k] * sine[k]
        c[k] = turned


@njit(cache=True, nogil=True, error_model="numpy")
def harmonic_score(bands: tuple, count: int, total: float, frequency: float, most: int) -> float:
    """Bayesian information criterion of the best Fourier series of one shape for all bands.

    Parameters
    ----------
    bands : tuple of (time, weight, weighted value), each float64 [m]
        Points of each band, an empty one included; values scaled to unit variance, weights in units of chi². Each
        band with points has its own constant.
    count : int
        Number of points.
    total : float
        Chi² of the constant model.
    frequency : float
        Per day.
    most : int
        Highest number of harmonics tried.

    Returns
    -------
    float
        n ln(chi²/n) + parameters · ln n, the lowest over the numbers of harmonics.
    """
    constants = 0
    for band in bands:
        constants += band[0].size > 0
    size = constants + 2 * most
    normal = np.zeros((size, size))
    right = np.zeros(size)
    sums = np.zeros((2, 2 * most + 1))
    filled = 0
    for time, weight, weighted_value in bands:
        if time.size > 0:
            c, s, cosine, sine = np.empty((4, time.size))
            for k in range(time.size):
                sine[k], cosine[k] = sine_and_cosine(time[k] * frequency)
            c[:], s[:] = 1.0, 0.0
            for h in range(2 * most + 1):
                wc, ws, yc, ys = _weighted_sums(weight, weighted_value, c, s)
                sums[0, h] += wc
                sums[1, h] += ws
                if h == 0:
                    normal[filled, filled] = wc
                    right[filled] = yc
                elif h <= most:
                    i = constants + 2 * (h - 1)
                    normal[i, filled], normal[i + 1, filled] = wc, ws
                    right[i] += yc
                    right[i + 1] += ys
                _multiply(c, s, cosine, sine)
            filled += 1
    for g in range(1, most + 1):
        i = constants + 2 * (g - 1)
        for h in range(1, g + 1):
            j = constants + 2 * (h - 1)
            normal[i, j] = 0.5 * (sums[0, g - h] + sums[0, g + h])
            normal[i, j + 1] = 0.5 * (sums[1, g + h] - sums[1, g - h])
            normal[i + 1, j] = 0.5 * (sums[1, g + h] + sums[1, g - h])
            normal[i + 1, j + 1] = 0.5 * (sums[0, g - h] - sums[0, g + h])
    return _lowest_criterion(normal, right, constants, count, total)


@njit(cache=True, nogil=True, error_model="numpy")
def _lowest_criterion(normal, right, constants, n, total):
    """Lowest criterion over the numbers of harmonics, by Cholesky's factorisation of the lower triangle in place."""
    best = np.inf
    rest = total
    for i in range(right.size):
        pivot = normal[i, i] * (1 + _RIDGE)
        for j in range(i):
            product = normal[i, j]
            for m in range(j):
                product -= normal[i, m] * normal[j, m]
            normal[i, j] = product / normal[j, j]
            pivot -= normal[i, j] ** 2
            right[i] -= normal[i, j] * right[j]
        normal[i, i] = np.sqrt(max(pivot, 1e-300))
        right[i] /= normal[i, i]
        rest -= right[i] ** 2
        if i > constants and (i - constants) % 2 == 1:
            best = min(best, n * np.log(max(rest, 1e-12 * total) / n) + (i + 1) * np.log(n))
    return best


@njit(cache=True, nogil=True, error_model="numpy")
def search(offsets, mjd, magnitude, error, enough, out):
    """Search the periods of all objects, in double precision; for the columns of `out` see `periodogram.COLUMNS`."""
    workspace = np.empty((9, 0))
    for i in range(enough.size):
        bounds = offsets[2 * i : 2 * i + 3]
        used = (bounds[1] - bounds[0] >= MIN_POINTS, bounds[2] - bounds[1] >= MIN_POINTS)
        if not enough[i] or not (used[0] or used[1]):
            continue
        start = bounds[0] if used[0] else bounds[1]
        stop = bounds[2] if used[1] else bounds[1]
        first, last = mjd[start:stop].min(), mjd[start:stop].max()
        epoch = first + (last - first) / 2
        g = scaled(mjd[bounds[0] : bounds[1]], magnitude[bounds[0] : bounds[1]], error[bounds[0] : bounds[1]], epoch)
        r = scaled(mjd[bounds[1] : bounds[2]], magnitude[bounds[1] : bounds[2]], error[bounds[1] : bounds[2]], epoch)
        chi_square = np.array([g[3] if used[0] else 0.0, r[3] if used[1] else 0.0])
        freedom = np.array([g[0].size - 3.0 if used[0] else 0.0, r[0].size - 3.0 if used[1] else 0.0])
        if np.isfinite(chi_square[0] + chi_square[1]):
            # The definition's grid misses peaks narrower than its step: each step is then divided.
            divided = int(min(max(np.ceil((last - first) * GRID_STEP), 1), _FINEST_SUBGRID))
            if workspace.shape[1] < (GRID_POINTS + 1) * divided:
                workspace = np.empty((9, (GRID_POINTS + 1) * divided))
            _search_one((g[:3], r[:3]), used, chi_square, freedom, last - first, divided, workspace, out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _search_one(bands, used, chi_square, freedom, span, divided, workspace, out):
    step = GRID_STEP / divided
    fraction, all_power = workspace[6:8, : GRID_POINTS * divided], workspace[8, : GRID_POINTS * divided]
    for b in range(2):
        if used[b]:
            time, weight, value = bands[b]
            fraction_on_grid(time, weight, weight * value, step, divided, fraction[b], workspace)
        else:
            fraction[b] = 0.0
    multiband_power(fraction, chi_square, freedom, all_power)
    power = all_power[::divided].copy()
    peaks = np.empty(_PEAKS, np.int64)
    found = highest_maxima(all_power, peaks)
    maxima = np.empty(MAXIMA, np.int64)
    if divided == 1:
        maxima[:] = peaks[:MAXIMA]
    if (found if divided == 1 else highest_maxima(power, maxima)) < MAXIMA:
        return
    _shape(bands, used, chi_square, freedom, power, maxima, out)
    scan = _scan(bands, used, step / _PEAK_STEPS, 2 * _PEAK_STEPS + 1)
    frequency = np.empty(found)
    height = np.empty(found)
    for j in range(found):
        frequency[j], height[j] = _peak(bands, used, chi_square, freedom, peaks[j] * step + (GRID_STEP - step), scan)
    order = np.argsort(-height, kind="mergesort")[:_CANDIDATES]
    period = 1 / _best_by_harmonics(bands, used, chi_square, frequency[order], span)
    out[0] = period
    for b in range(2):
        if used[b]:
            alone = (used[0] and b == 0, used[1] and b == 1)
            center, width = GRID_STEP + np.argmax(fraction[b]) * step, step / _PEAK_STEPS
            for _ in range(3):
                first = max(center - _PEAK_STEPS * width, GRID_STEP)
                scan = _scan(bands, alone, width, 2 * _PEAK_STEPS + 1)
                center, _height = _peak(bands, alone, chi_square, freedom, first, scan)
                width /= 8
            out[8 + b] = 1 / center
            out[10 + b] = abs(period - out[8 + b])


@njit(cache=True, nogil=True, error_model="numpy")
def _shape(bands, used, chi_square, freedom, power, maxima, out):
    """Period_fit and the power rates by their definition, of the grid whose ten highest maxima are refined."""
    frequency = GRID_STEP * np.arange(1.0, power.size + 1)
    fine = np.empty(FINE_POINTS)
    step = 2 * GRID_STEP / (FINE_POINTS - 1)
    scan = _scan(bands, used, step, FINE_POINTS)
    for k in maxima:
        first = GRID_STEP * k
        _power_near(bands, used, chi_square, freedom, first, scan, fine)
        highest = np.argmax(fine)
        if fine[highest] > power[k]:
            power[k] = fine[highest]
            frequency[k] = first + highest * step
    out[1] = period_fit(power)
    top = np.argmax(power)
    for j in range(FACTORS.size):
        out[2 + j] = power[nearest(frequency, frequency[top] / FACTORS[j])] / power[top]


@njit(cache=True, nogil=True, error_model="numpy")
def _scan(bands, used, step, count):
    """What scans of `count` frequencies with the same step share: the step, and the rotations of both bands."""
    nothing = np.empty((2, 0, count))
    g = _rotations(bands[0][0], step, count) if used[0] else nothing
    r = _rotations(bands[1][0], step, count) if used[1] else nothing
    return step, (g, r)


@njit(cache=True, nogil=True, error_model="numpy")
def _power_near(bands, used, chi_square, freedom, first, scan, power):
    fraction = np.zeros((2, power.size))
    own_chi_square = np.zeros(2)
    for b in range(2):
        if used[b]:
            time, weight, value = bands[b]
            _fraction_near(time, weight, weight * value, first, scan[1][b], fraction[b])
            own_chi_square[b] = chi_square[b]
    multiband_power(fraction, own_chi_square, freedom, power)


@njit(cache=True, nogil=True, error_model="numpy")
def _peak(bands, used, chi_square, freedom, first, scan):
    """Find frequency and height of the peak within a scan, and the parabola through its top."""
    power = np.empty(2 * _PEAK_STEPS + 1)
    _power_near(bands, used, chi_square, freedom, first, scan, power)
    j = np.argmax(power)
    shift = 0.0
    if 0 < j < power.size - 1:
        curvature = power[j - 1] - 2 * power[j] + power[j + 1]
        if curvature < 0:
            shift = 0.5 * (power[j - 1] - power[j + 1]) / curvature
    return first + (j + shift) * scan[0], power[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _in_units_of_chi_square(band, chi_square, used):
    """A band as `harmonic_score` wants it."""
    time, weight, value = band
    n = time.size if used else 0
    return time[:n], weight[:n] * chi_square, weight[:n] * value[:n] * chi_square


@njit(cache=True, nogil=True, error_model="numpy")
def _best_by_harmonics(bands, used, chi_square, frequency, span):
    """Find the frequency, of those given and their halves, whose Fourier series has the lowest criterion."""
    size = bands[0][0].size * used[0] + bands[1][0].size * used[1]
    g = _in_units_of_chi_square(bands[0], chi_square[0], used[0])
    r = _in_units_of_chi_square(bands[1], chi_square[1], used[1])
    most = max(1, min(MOST_HARMONICS, (size // 3 - used[0] - used[1]) // 2))
    points = ((g, r), size, chi_square[0] + chi_square[1], most)
    trials = np.empty(2 * frequency.size)
    widths = np.empty(2 * frequency.size)
    scores = np.full(2 * frequency.size, np.inf)
    for j in range(frequency.size):
        for k, multiple in ((2 * j, 1.0), (2 * j + 1, 0.5)):
            trials[k] = frequency[j] * multiple
            widths[k] = _REFINED_CYCLES / span * multiple
            if multiple == 1 or trials[k] * span >= _FEWEST_CYCLES:
                scores[k] = _score(points, trials[k])
    best = np.inf
    chosen = frequency[0]
    for k in np.argsort(scores, kind="mergesort")[:_REFINED]:
        if scores[k] < np.inf:
            refined, score = _refined(points, trials[k], widths[k])
            if score < best:
                best = score
                chosen = refined
    return chosen


@njit(cache=True, nogil=True, error_model="numpy")
def _score(points, frequency):
    bands, size, total, most = points
    return harmonic_score(bands, size, total, frequency, most) if frequency > 0 else np.inf


@njit(cache=True, nogil=True, error_model="numpy")
def _refined(points, center, width):
    """Minimise the criterion within `width` of `center` by golden sections; return frequency and criterion."""
    low, high = center - width, center + width
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_score, right_score = _score(points, left), _score(points, right)
    best, score = center, _score(points, center)
    for _ in range(_GOLDEN_STEPS):
        if left_score <= right_score:
            high, right, right_score = right, left, left_score
            left = high - _GOLDEN * (high - low)
            left_score = _score(points, left)
        else:
            low, left, left_score = left, right, right_score
            right = low + _GOLDEN * (high - low)
            right_score = _score(points, right)
    if left_score < score:
        best, score = left, left_score
    if right_score < score:
        best, score = right, right_score
    return best, score
