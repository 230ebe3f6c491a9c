"""Labelled light curves of the fifteen classes of ALeRCE's classifier, as a survey like ZTF would see them.

They are caricatures with the right order of magnitude of periods, amplitudes, colours and places in the sky: enough to
train a demonstration model and to test one, and no substitute for a training set of real objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CLASSES: Final = (
    *("AGN", "Blazar", "CV/Nova", "QSO", "YSO"),
    *("CEP", "DSCT", "E", "LPV", "Periodic-Other", "RRL"),
    *("SLSN", "SNII", "SNIa", "SNIbc"),
)
_STREAM: Final = 7
_FIRST_MJD: Final = 58300.0
_SEASON_DAYS: Final = 220.0
_LIMIT_MAG: Final = {1: 20.8, 2: 20.6}
_SATURATION_MAG: Final = 12.5
_FIRST_CANDID: Final = 500_000_000_000_000_000
_GALACTIC: Final = ("CEP", "E", "LPV", "Periodic-Other", "YSO", "CV/Nova")


@dataclass(frozen=True, eq=False)
class LabelledLightCurves:
    """Light curves as tables.

    Attributes
    ----------
    detections : Table
        Columns of ZTF's alerts and ALeRCE's tables: oid, candid, mjd, fid, ra, dec, magpsf, sigmapsf, isdiffpos, magnr,
        sigmagnr, distnr, rb, sgscore1, distpsnr1.
    non_detections : Table
        oid, mjd, fid, diffmaglim.
    objects : Table
        oid, class, ra, dec, period_days (null unless periodic), w1mpro, w2mpro, w3mpro.
    """

    detections: pa.Table
    non_detections: pa.Table
    objects: pa.Table


@dataclass(frozen=True)
class _Source:
    """What is there: magnitudes in g and r at any time, and what other surveys say."""

    magnitude: Callable[[NDArray[np.float64], int], NDArray[np.float64]]
    sgscore: float
    infrared: tuple[float, float, float]
    period_days: float | None = None
    transient: bool = False


def simulate_light_curves(objects_per_class: int, seed: int = 1, days: float = 900.0) -> LabelledLightCurves:
    """Simulate light curves; the same seed gives the same tables.

    Parameters
    ----------
    objects_per_class : int
    seed : int
    days : float
        Length of the survey.
    """
    detections: list[dict[str, NDArray]] = []
    limits: list[dict[str, NDArray]] = []
    objects: list[tuple] = []
    candid = _FIRST_CANDID
    for class_number, name in enumerate(CLASSES):
        for number in range(objects_per_class):
            rng = np.random.default_rng([seed, _STREAM, class_number, number])
            oid = f"ZTF18sim{class_number:02d}{number:05d}"
            ra, dec = _position(name, rng)
            source = _MAKERS[name](rng, days)
            found, missed = _observe(source, ra, dec, days, rng)
            count = len(found["mjd"])
            detections.append(
                {"oid": np.full(count, oid), "candid": candid + np.arange(count, dtype=np.int64), **found}
            )
            limits.append({"oid": np.full(len(missed["mjd"]), oid), **missed})
            objects.append((oid, name, ra, dec, source.period_days, *source.infrared))
            candid += count
    names = ("oid", "class", "ra", "dec", "period_days", "w1mpro", "w2mpro", "w3mpro")
    return LabelledLightCurves(
        _joined(detections), _joined(limits), pa.table(dict(zip(names, zip(*objects, strict=True), strict=True)))
    )


def _joined(parts: list[dict[str, NDArray]]) -> pa.Table:
    return pa.table({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _position(name: str, rng: np.random.Generator) -> tuple[float, float]:
    """Position in degrees north of declination -30, near the Galactic plane for the classes that live there."""
    # Loading astropy takes half a second, which users of the rest of the simulation need not wait for.
    from astropy.coordinates import SkyCoord

    while True:
        if name in _GALACTIC:
            place = SkyCoord(l=rng.uniform(0, 360), b=rng.normal(0, 9), unit="deg", frame="galactic").icrs
            ra, dec = float(place.ra.deg), float(place.dec.deg)
        else:
            ra, dec = rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-0.5, 1)))
            latitude = SkyCoord(ra, dec, unit="deg").galactic.b.deg
            if abs(latitude) < 15:
                continue
        if dec > -30:
            return round(ra, 7), round(dec, 7)


def _observe(
    source: _Source, ra: float, dec: float, days: float, rng: np.random.Generator
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Detections and limits of the difference images of a survey."""
    reference_mjd = _FIRST_MJD - rng.uniform(30, 200, 40)
    found: list[dict[str, NDArray]] = []
    missed: list[dict[str, NDArray]] = []
    host_arcsec = rng.uniform(1.6, 8.0) if source.transient else abs(rng.normal(0, 0.15))
    for fid in (1, 2):
        mjd = _epochs(days, rng)
        if source.transient:
            reference_flux, magnr, distnr = 0.0, rng.uniform(18, 21.5), host_arcsec
        else:
            reference_flux = float(np.mean(_flux(source.magnitude(reference_mjd, fid))))
            magnr, distnr = float(_magnitude(reference_flux)), host_arcsec
        truth = _flux(source.magnitude(mjd, fid))
        limit = rng.normal(_LIMIT_MAG[fid], 0.4, len(mjd))
        # Five times the noise of the sky, with the photons of the source and what calibration leaves.
        noise = np.hypot(np.hypot(_flux(limit) / 5.0, 0.012 * truth), np.sqrt(truth * _flux(25.5)))
        difference = truth - reference_flux + rng.normal(size=len(mjd)) * noise
        seen = (np.abs(difference) > 5.0 * noise) & (_magnitude(np.maximum(truth, 1e-30)) > _SATURATION_MAG)
        count = int(seen.sum())
        found.append(
            {
                "mjd": mjd[seen],
                "fid": np.full(count, fid),
                "ra": ra + rng.normal(0, 0.08, count) / 3600.0 / np.cos(np.radians(dec)),
                "dec": dec + rng.normal(0, 0.08, count) / 3600.0,
                "magpsf": _magnitude(np.abs(difference[seen])),
                "sigmapsf": 1.0857 * noise[seen] / np.abs(difference[seen]),
                "isdiffpos": np.where(difference[seen] > 0, 1, -1),
                "magnr": np.full(count, magnr),
                "sigmagnr": np.full(count, 0.015),
                "distnr": np.abs(distnr + rng.normal(0, 0.03, count)),
                "rb": 1.0 - rng.beta(1.2, 12.0, count) * 0.5,
                "sgscore1": np.full(count, source.sgscore),
                "distpsnr1": np.abs(distnr + rng.normal(0, 0.03, count)),
            }
        )
        missed.append(
            {"mjd": mjd[~seen], "fid": np.full(len(mjd) - count, fid), "diffmaglim": limit[~seen]},
        )
    return _by_time(found), _by_time(missed)


def _by_time(parts: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined["fid"], joined["mjd"]))
    return {name: values[order] for name, values in joined.items()}


def _epochs(days: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Nights about three days apart in seasons of seven months, a third of them lost to weather."""
    nights = np.cumsum(rng.integers(2, 5, int(days / 2)))
    start = rng.uniform(0, 365.25)
    nights = nights[(nights < days) & ((nights + start) % 365.25 < _SEASON_DAYS) & (rng.random(len(nights)) > 0.33)]
    return _FIRST_MJD + nights + rng.uniform(0.15, 0.5, len(nights))


def _flux(magnitude: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(10.0 ** (-0.4 * np.asarray(magnitude)))


def _magnitude(flux: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-2.5 * np.log10(flux))


def _infrared(rng: np.random.Generator, w1: float, w12: float, w23: float) -> tuple[float, float, float]:
    w1 += rng.normal(0, 0.2)
    w2 = w1 - w12 - rng.normal(0, 0.06)
    return round(w1, 3), round(w2, 3), round(w2 - w23 - rng.normal(0, 0.15), 3)


def _periodic(
    rng: np.random.Generator,
    shape: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    period_days: float,
    amplitude_g: float,
    ratio: float,
    mean_g: float,
    colour: float,
    infrared_colours: tuple[float, float, float],
) -> _Source:
    """Star that repeats itself; `shape` goes from phase to a curve of about unit range, fainter upwards."""
    offset = rng.random()

    def magnitude(mjd: NDArray[np.float64], fid: int) -> NDArray[np.float64]:
        phase = (mjd / period_days + offset) % 1.0
        return mean_g - colour * (fid == 2) + amplitude_g * (ratio if fid == 2 else 1.0) * shape(phase)

    r_to_w1, w12, w23 = infrared_colours
    infrared = _infrared(rng, mean_g - colour - r_to_w1, w12, w23)
    return _Source(magnitude, min(1.0, rng.uniform(0.85, 1.05)), infrared, period_days)


def _sawtooth(skew: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Fast rise, slow fall: the rise takes the share `skew` of the period."""

    def shape(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        line = np.where(phase < skew, 1.0 - phase / skew, (phase - skew) / (1.0 - skew))
        return line - 0.5 + 0.06 * np.sin(4 * np.pi * phase)

    return shape


def _eclipses(width: float, second: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def shape(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        apart = np.minimum(phase, 1.0 - phase)
        return np.exp(-0.5 * (apart / width) ** 2) + second * np.exp(-0.5 * ((phase - 0.5) / width) ** 2)

    return shape


def _sine(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * phase)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _rrl(rng: np.random.Generator, days: float) -> _Source:
    fundamental = rng.random() < 0.7
    period = rng.normal(0.57, 0.07) if fundamental else rng.normal(0.33, 0.03)
    amplitude = rng.uniform(0.6, 1.3) if fundamental else rng.uniform(0.3, 0.6)
    shape = _sawtooth(rng.uniform(0.12, 0.2)) if fundamental else _sawtooth(0.42)
    mean = rng.uniform(15.0, 19.0)
    return _periodic(rng, shape, max(period, 0.2), amplitude, 0.7, mean, rng.normal(0.25, 0.08), (0.9, 0.0, 0.1))


def _cep(rng: np.random.Generator, days: float) -> _Source:
    period = _log_uniform(rng, 1.5, 50)
    shape = _sawtooth(rng.uniform(0.25, 0.35))
    mean = rng.uniform(13.8, 17.5)
    return _periodic(rng, shape, period, rng.uniform(0.4, 1.2), 0.65, mean, rng.normal(0.95, 0.2), (1.6, 0.02, 0.1))


def _dsct(rng: np.random.Generator, days: float) -> _Source:
    period = _log_uniform(rng, 0.04, 0.22)
    mean = rng.uniform(14.0, 17.5)
    return _periodic(
        rng, _sawtooth(0.38), period, rng.uniform(0.15, 0.6), 0.7, mean, rng.normal(0.18, 0.08), (0.6, 0.0, 0.05)
    )


def _e(rng: np.random.Generator, days: float) -> _Source:
    contact = rng.random() < 0.6
    period = _log_uniform(rng, 0.22, 0.7) if contact else _log_uniform(rng, 0.7, 8)
    shape = _eclipses(rng.uniform(0.09, 0.13) if contact else rng.uniform(0.02, 0.05), rng.uniform(0.4, 0.95))
    mean = rng.uniform(14.0, 18.5)
    return _periodic(rng, shape, period, rng.uniform(0.3, 0.9), 0.95, mean, rng.normal(0.65, 0.2), (1.3, 0.0, 0.1))


def _lpv(rng: np.random.Generator, days: float) -> _Source:
    period = _log_uniform(rng, 90, 550)
    mean = rng.uniform(14.5, 18.0)
    return _periodic(
        rng, _sine, period, rng.uniform(1.5, 5.0), 0.8, mean, rng.normal(2.0, 0.35), (6.0, 0.15, rng.uniform(0.3, 1.0))
    )


def _periodic_other(rng: np.random.Generator, days: float) -> _Source:
    period = _log_uniform(rng, 0.6, 60)
    second = rng.uniform(0, 0.25)
    mean = rng.uniform(14.0, 17.0)

    def spots(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * phase) + second * np.sin(4 * np.pi * phase + 1.0)

    return _periodic(rng, spots, period, rng.uniform(0.1, 0.4), 0.85, mean, rng.normal(1.1, 0.2), (2.3, -0.02, 0.15))


def _walk(rng: np.random.Generator, days: float, tau: float, sigma: float) -> Callable[[NDArray], NDArray]:
    """Damped random walk on a grid from before the reference images to the end, read between its points."""
    step = min(1.0, tau / 5.0)
    grid = np.arange(_FIRST_MJD - 230.0, _FIRST_MJD + days + 2.0, step)
    decay = np.exp(-step / tau)
    kicks = rng.normal(size=len(grid)) * sigma * np.sqrt(1 - decay**2)
    values = np.empty(len(grid))
    values[0] = rng.normal() * sigma
    for i in range(1, len(grid)):
        values[i] = decay * values[i - 1] + kicks[i]
    return lambda mjd: np.interp(mjd, grid, values)


def _stochastic(
    rng: np.random.Generator,
    days: float,
    tau: float,
    sigma: float,
    mean: float,
    colour: float,
    sgscore: float,
    infrared_colours: tuple[float, float, float],
) -> _Source:
    walk = _walk(rng, days, tau, sigma)
    own = _walk(rng, days, tau, 0.15 * sigma)

    def magnitude(mjd: NDArray[np.float64], fid: int) -> NDArray[np.float64]:
        return mean - colour * (fid == 2) + walk(mjd) * (0.85 if fid == 2 else 1.0) + own(mjd + 17.0 * fid)

    r_to_w1, w12, w23 = infrared_colours
    return _Source(magnitude, float(np.clip(sgscore, 0, 1)), _infrared(rng, mean - colour - r_to_w1, w12, w23))


def _agn(rng: np.random.Generator, days: float) -> _Source:
    return _stochastic(
        *(rng, days, _log_uniform(rng, 60, 400), rng.uniform(0.12, 0.3), rng.uniform(16.5, 18.8)),
        *(rng.normal(0.6, 0.12), rng.beta(1, 8), (3.4, rng.normal(0.55, 0.15), rng.normal(2.6, 0.3))),
    )


def _qso(rng: np.random.Generator, days: float) -> _Source:
    return _stochastic(
        *(rng, days, _log_uniform(rng, 150, 800), rng.uniform(0.18, 0.4), rng.uniform(17.5, 19.8)),
        *(rng.normal(0.2, 0.12), 1 - rng.beta(1, 12), (3.3, rng.normal(1.1, 0.12), rng.normal(3.0, 0.3))),
    )


def _blazar(rng: np.random.Generator, days: float) -> _Source:
    return _stochastic(
        *(rng, days, _log_uniform(rng, 8, 80), rng.uniform(0.35, 0.9), rng.uniform(16.5, 19.3)),
        *(rng.normal(0.45, 0.1), 1 - rng.beta(1, 6), (3.9, rng.normal(0.95, 0.1), rng.normal(2.4, 0.2))),
    )


def _yso(rng: np.random.Generator, days: float) -> _Source:
    return _stochastic(
        *(rng, days, _log_uniform(rng, 1.5, 25), rng.uniform(0.25, 0.8), rng.uniform(15.5, 19.0)),
        *(rng.normal(1.35, 0.2), 1 - rng.beta(1, 12), (3.8, rng.normal(0.55, 0.2), rng.normal(1.9, 0.4))),
    )


def _cv(rng: np.random.Generator, days: float) -> _Source:
    quiet = rng.uniform(18.5, 21.0)
    colour = rng.normal(0.1, 0.15)
    height = rng.uniform(2.0, 4.5)
    starts = _FIRST_MJD - 220.0 + np.cumsum(rng.exponential(_log_uniform(rng, 20, 150), 80))
    lengths = rng.uniform(3.0, 12.0, len(starts))
    flicker = _walk(rng, days, 0.5, 0.12)

    def magnitude(mjd: NDArray[np.float64], fid: int) -> NDArray[np.float64]:
        since = mjd[:, None] - starts
        rise = 1.0 - np.exp(-np.maximum(since, 0.0) / 0.7)
        fall = 1.0 / (1.0 + np.exp(np.clip((since - lengths) / 1.2, -50.0, 50.0)))
        bright = height * np.max(np.where(since > 0, rise * fall, 0.0), axis=1)
        return quiet - colour * (fid == 2) - bright * (0.95 if fid == 2 else 1.0) + flicker(mjd)

    infrared = _infrared(rng, quiet - colour - 1.8, 0.1, 0.6)
    return _Source(magnitude, 1 - rng.beta(1, 12), infrared)


def _explosion(
    rng: np.random.Generator,
    days: float,
    peak: float,
    rise_days: float,
    fall_days: float,
    plateau_days: float,
    colour: float,
    reddening_per_day: float,
) -> _Source:
    start = _FIRST_MJD + rng.uniform(20, days - 120)

    def magnitude(mjd: NDArray[np.float64], fid: int) -> NDArray[np.float64]:
        since = mjd - start
        late = since - rise_days
        stretch = 1.25 if fid == 2 else 1.0
        flux = np.where(late < 0, np.clip(since / rise_days, 0, None) ** 2, 1.0)
        flux = np.where(late > plateau_days, np.exp(-(late - plateau_days) / (fall_days * stretch)), flux)
        # Days from the peak make the ejecta redder, until they are cool.
        shift = colour + reddening_per_day * np.clip(since - rise_days, -rise_days, 40.0)
        return peak - shift * (fid == 2) + shift * 0.5 * (fid == 1) - 2.5 * np.log10(np.maximum(flux, 1e-9))

    return _Source(magnitude, rng.beta(1, 8), _infrared(rng, rng.uniform(14, 17), 0.2, 1.8), transient=True)


def _snia(rng: np.random.Generator, days: float) -> _Source:
    return _explosion(
        *(rng, days, rng.uniform(16.5, 19.0), rng.normal(17, 1.5), rng.normal(20, 2.5), 2.0),
        *(rng.normal(-0.1, 0.08), rng.normal(0.03, 0.004)),
    )


def _snibc(rng: np.random.Generator, days: float) -> _Source:
    return _explosion(
        *(rng, days, rng.uniform(17.0, 19.2), rng.normal(13, 2), rng.normal(13, 2), 1.0),
        *(rng.normal(0.35, 0.12), rng.normal(0.03, 0.006)),
    )


def _snii(rng: np.random.Generator, days: float) -> _Source:
    return _explosion(
        *(rng, days, rng.uniform(17.0, 19.0), rng.uniform(4, 9), rng.normal(20, 4), rng.uniform(35, 90)),
        *(rng.normal(0.0, 0.1), rng.normal(0.015, 0.004)),
    )


def _slsn(rng: np.random.Generator, days: float) -> _Source:
    return _explosion(
        *(rng, days, rng.uniform(17.5, 19.3), rng.uniform(28, 60), rng.uniform(45, 90), 6.0),
        *(rng.normal(-0.2, 0.1), rng.normal(0.006, 0.002)),
    )


_MAKERS: Final[dict[str, Callable[[np.random.Generator, float], _Source]]] = {
    "AGN": _agn,
    "Blazar": _blazar,
    "CV/Nova": _cv,
    "QSO": _qso,
    "YSO": _yso,
    "CEP": _cep,
    "DSCT": _dsct,
    "E": _e,
    "LPV": _lpv,
    "Periodic-Other": _periodic_other,
    "RRL": _rrl,
    "SLSN": _slsn,
    "SNII": _snii,
    "SNIa": _snia,
    "SNIbc": _snibc,
}
