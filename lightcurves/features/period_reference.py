"""Plain reference of the period features: the definitions of alerce.md, section 5.5, one object after another."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

NAMES = ("Multiband_period", "Period_fit", *(f"Power_rate_{k}" for k in ("1/4", "1/3", "1/2", "2", "3", "4")))
FACTORS = (1 / 4, 1 / 3, 1 / 2, 2, 3, 4)

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
Power = Callable[[NDArray], tuple[NDArray, list[NDArray]]]


def period(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute what ``period.compute`` computes, slowly."""
    n = len(curves)
    columns = {name: np.full(n, np.nan) for name in NAMES}
    columns |= {name: np.full((n, 2), np.nan) for name in ("Period_band", "delta_period")}
    for i in range(n):
        bands = {}
        for b in range(2):
            rows = slice(curves.offsets[2 * i + b], curves.offsets[2 * i + b + 1])
            if rows.stop - rows.start > 5:
                bands[b] = (curves.mjd[rows], curves.magnitude[rows], curves.error[rows])
        if not bands or not curves.enough[i]:
            continue
        with np.errstate(all="ignore"):
            search = _alerce if mode is Mode.ALERCE else _accurate
            found = search(list(bands.values()))
        if found is None:
            continue
        values, band_periods = found
        for name, value in zip(NAMES, values, strict=True):
            columns[name][i] = value
        for b, value in zip(bands, band_periods, strict=True):
            columns["Period_band"][i, b] = value
            columns["delta_period"][i, b] = abs(values[0] - value)
    return columns


def _alerce(bands: list[Band]) -> tuple[list[float], list[float]] | None:
    rounded = [tuple(x.astype(np.float32) for x in band) for band in bands]
    limits = np.finfo(np.float32)
    for _, m, e in rounded:
        weight = (1 / e.astype(np.float64) ** 2).sum()
        if np.ptp(m) == 0 or not all(limits.tiny < x < limits.max for x in (weight, _chi_square(m, e))):
            return None

    def powers(frequency: NDArray) -> tuple[NDArray, list[NDArray]]:
        turns = [[t * frequency - times[len(times) // 2] * frequency for t in times] for times, _, _ in rounded]
        return _multiband(rounded, turns)

    frequency = np.arange(0.001, 20.0, 0.001, dtype=np.float32)
    refined = _refine_maxima(frequency, powers, np.float32)
    if refined is None:
        return None
    total, each, maxima = refined
    values = [1 / float(frequency[max(maxima, key=lambda k: total[k])]), _period_fit(total)]
    top = np.argmax(total)
    for factor in FACTORS:
        wanted = np.float32(1) / (np.float32(1) / frequency[top] * np.float32(factor))
        values.append(total[np.argmin(np.abs(frequency - wanted))] / total[top])
    return values, [1 / float(frequency[np.argmax(p)]) for p in each]


def _accurate(bands: list[Band]) -> tuple[list[float], list[float]] | None:
    if any(np.ptp(m) == 0 or not 0 < _chi_square(m, e) < np.inf for _, m, e in bands):
        return None
    times = np.concatenate([t for t, _, _ in bands])
    span = times.max() - times.min()
    epoch = times.min() + span / 2

    def powers(frequency: NDArray, of: list[Band] = bands) -> tuple[NDArray, list[NDArray]]:
        return _multiband(of, [[(t - epoch) * frequency for t in times] for times, _, _ in of])

    copies = int(np.clip(np.ceil(span * 0.001), 1, 20))
    dense = 0.001 + 0.001 / copies * np.arange(19999 * copies)
    dense_total, dense_each = powers(dense)
    frequency = 0.001 * np.arange(1.0, 20000)
    refined = _refine_maxima(frequency, powers, np.float64)
    if refined is None:
        return None
    total, _, _ = refined
    top = np.argmax(total)
    shape = [_period_fit(total)]
    shape += [total[np.argmin(np.abs(frequency - frequency[top] / factor))] / total[top] for factor in FACTORS]

    def peak(center: float, half: float, of: list[Band]) -> tuple[float, float]:
        near = np.linspace(max(center - half, 0.001), center + half, 9)
        height = powers(near, of)[0]
        j = np.argmax(height)
        shift = 0.0
        if 0 < j < 8 and height[j - 1] - 2 * height[j] + height[j + 1] < 0:
            shift = 0.5 * (height[j - 1] - height[j + 1]) / (height[j - 1] - 2 * height[j] + height[j + 1])
        return near[j] + shift * (near[1] - near[0]), height[j]

    step = 0.001 / copies
    peaks = [peak(dense[k], step, bands) for k in _highest_maxima(dense_total, 20)]
    highest = [f for f, _ in sorted(peaks, key=lambda one: -one[1])[:8]]
    band_periods = []
    for band, power in zip(bands, dense_each, strict=True):
        center = dense[np.argmax(power)]
        for half in (step, step / 8, step / 64):
            center, _ = peak(center, half, [band])
        band_periods.append(1 / center)
    return [1 / _by_harmonics(bands, highest, epoch, span), *shape], band_periods


def _chi_square(m: NDArray, e: NDArray) -> float:
    m, weight = m.astype(np.float64), 1 / e.astype(np.float64) ** 2
    return np.sum(weight * (m - np.average(m, weights=weight)) ** 2)


def _multiband(bands: list, turns: list[list[NDArray]]) -> tuple[NDArray, list[NDArray]]:
    """Multiband periodogram and those of the bands, from the phases (in turns) of the points at all frequencies."""
    chi_squares = [_chi_square(m, e) for _, m, e in bands]
    fractions = [_fraction_removed(m, e, points) for (_, m, e), points in zip(bands, turns, strict=True)]
    freedom = [len(t) - 3 for t, _, _ in bands]
    removed = sum(q * v for q, v in zip(fractions, chi_squares, strict=True))
    total = sum(freedom) / 2 * removed / _positive(sum(chi_squares) - removed, sum(chi_squares))
    return total, [d / 2 * q / _positive(1 - q, 1) for d, q in zip(freedom, fractions, strict=True)]


def _positive(rest: NDArray | float, total: float) -> NDArray:
    return np.where(rest > 1e-12 * total, rest, 0)


def _fraction_removed(m: NDArray, e: NDArray, turns: list[NDArray]) -> NDArray:
    weight = 1 / e.astype(np.float64) ** 2
    weight /= weight.sum()
    value = m.astype(np.float64)
    value = value - (weight * value).sum()
    value /= np.sqrt((weight * value**2).sum())
    # Half angles: sin²(θ/2) and sin(θ/2) cos(θ/2) span with the constant what cos θ and sin θ do, and stay exact
    # for small θ.
    a, b, aa, ab, bb, ya, yb = (np.zeros(turns[0].shape) for _ in range(7))
    for w, y, turn in zip(weight, value, turns, strict=True):
        half = np.pi * (turn - np.rint(turn)).astype(np.float64)
        even, odd = np.sin(half) ** 2, np.sin(half) * np.cos(half)
        a += w * even
        b += w * odd
        aa += w * even**2
        ab += w * even * odd
        bb += w * odd**2
        ya += w * y * even
        yb += w * y * odd
    aa, ab, bb = aa - a**2, ab - a * b, bb - b**2
    determinant = aa * bb - ab**2
    regular = (determinant > 1e-9 * aa * bb) & (aa > 0) & (bb > 0)
    one = np.where(aa + bb > 1e-14, (ya**2 + yb**2) / (aa + bb), 0)
    return np.where(regular, (bb * ya**2 - 2 * ab * ya * yb + aa * yb**2) / determinant, one)


def _highest_maxima(power: NDArray, most: int) -> list[int]:
    """Positions of the highest local maxima, highest first; the first of a run of equal values stands for the run."""
    starts = np.concatenate([[0], np.nonzero(np.diff(power))[0] + 1])
    runs = power[starts]
    inner = np.nonzero((runs[1:-1] > runs[:-2]) & (runs[1:-1] > runs[2:]))[0] + 1
    return sorted(starts[inner], key=lambda k: (-power[k], -k))[:most]


def _refine_maxima(frequency: NDArray, powers: Power, kind: type) -> tuple[NDArray, list[NDArray], list[int]] | None:
    """Periodogram on a grid whose ten highest maxima give way, in `frequency` too, to better of twenty near them."""
    total, each = powers(frequency)
    maxima = _highest_maxima(total, 10)
    if len(maxima) < 10:
        return None
    for k in maxima:
        fine: NDArray = np.linspace(float(frequency[k - 1]), float(frequency[k + 1]), 20).astype(kind)
        fine_total, fine_each = powers(fine)
        j = np.argmax(fine_total)
        if fine_total[j] > total[k]:
            frequency[k], total[k] = fine[j], fine_total[j]
            for power, fine_power in zip(each, fine_each, strict=True):
                power[k] = fine_power[j]
    return total, each, maxima


def _period_fit(power: NDArray) -> float:
    share = np.sort(power)[-100:] + 0.01
    share = share / share.sum()
    return 1 + np.sum(share * np.log(share)) / np.log(100)


def _by_harmonics(bands: list[Band], frequencies: list[float], epoch: float, span: float) -> float:
    n = sum(len(t) for t, _, _ in bands)
    most = max(1, min(6, (n // 3 - len(bands)) // 2))
    time, root, value = [], [], []
    for t, m, e in bands:
        weight = 1 / e**2
        centered = m - np.average(m, weights=weight)
        deviation = np.sqrt(np.average(centered**2, weights=weight))
        time.append(t - epoch)
        root.append(np.sqrt(weight) * deviation)
        value.append(centered / deviation)
    t, w, y = (np.concatenate(x) for x in (time, root, value))
    own = np.repeat(np.eye(len(bands)), [len(x) for x in time], axis=0)

    def score(frequency: float) -> float:
        if frequency <= 0:
            return np.inf
        angle = 2 * np.pi * frequency * t[:, None] * np.arange(1, most + 1)
        waves = np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(n, -1)
        best = np.inf
        for harmonics in range(1, most + 1):
            design = np.hstack([own, waves[:, : 2 * harmonics]]) * w[:, None]
            ridge = np.diag(np.sqrt(1e-6 * (design**2).sum(axis=0)))
            target = np.concatenate([w * y, np.zeros(len(ridge))])
            stacked = np.vstack([design, ridge])
            x = np.linalg.lstsq(stacked, target, rcond=None)[0]
            rest = max(np.sum((target - stacked @ x) ** 2), 1e-12 * np.sum(target**2))
            best = min(best, n * np.log(rest / n) + len(ridge) * np.log(n))
        return best

    trials = [(f * m, 0.12 / span * m) for f in frequencies for m in (1, 0.5) if m == 1 or f * m * span >= 2]
    trials = sorted(trials, key=lambda trial: score(trial[0]))[:3]
    return min((_golden(score, f, width) for f, width in trials), key=score)


def _golden(score: Callable[[float], float], center: float, width: float) -> float:
    ratio = (np.sqrt(5) - 1) / 2
    low, high = center - width, center + width
    for _ in range(12):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if score(left) <= score(right):
            high = right
        else:
            low = left
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    return min((center, left, right), key=score)
