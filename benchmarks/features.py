"""Speed of the features of light curves, beside ALeRCE's algorithm run object by object as plain Python."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.measure import conditions, figure, interleaved_seconds
from lightcurves.assembly import assemble
from lightcurves.features.compute import FAMILIES, compute
from lightcurves.features.curves import BANDS, Curves, Family, Mode
from lightcurves.features.period import FAMILY as PERIOD
from lightcurves.features.prepare import MIN_POINTS, prepare
from simulation.light_curves import CLASSES, simulate_light_curves

_UNIT: Final = "objects/s"
_SEED: Final = 178
_GRID: Final = {"fmin": 0.0, "fmax": 20.0, "fresolution": 1e-3}
_FINE_STEP: Final = 1e-4
_MAXIMA: Final = 10


def run(
    objects: int = 60, peer_objects: int = 4, repeats: int = 3, points: int = 96, growth: tuple[int, ...] = (2, 4)
) -> Iterator[dict[str, Any]]:
    """Measure `features-alerce` and `features-accurate`, all 178 features, and `features-period`, the period search.

    On one core, without what is compiled on first use. The peer of the first two is `features-plain-python`: the same
    definitions with NumPy and SciPy's optimisers, one object after another, and P4J for the periods if that makes it
    faster. The peer of the third is P4J, ALeRCE's own package of the search. Peers do a few of the objects.

    Parameters
    ----------
    objects, peer_objects : int
        Light curves of simulated objects of all classes, and how many of them the peers do.
    repeats : int
        Turns of each measurement; the median counts.
    points : int
        Of a light curve, in both bands together.
    growth : tuple of int
        Multiples of `points` at which the milliseconds per object are measured as well.
    """
    curves = _curves(objects, points)
    few = _take(curves, peer_objects)
    tasks: dict[str, Callable[[], Any]] = {f"features-{mode}": partial(compute, curves, mode) for mode in Mode}
    tasks["features-period"] = partial(PERIOD.compute, curves, Mode.ALERCE, {})
    for task in tasks.values():
        task()
    rates = {name: objects / seconds for name, seconds in interleaved_seconds(tasks, repeats).items()}
    parts = _peer_seconds(few)
    period = min(parts[name] for name in ("period", "p4j") if name in parts)
    plain = peer_objects / (sum(parts[name] for name in parts if name not in ("period", "p4j")) + period)
    given = conditions(
        *("numpy", "scipy", "numba", *(["P4J"] if "p4j" in parts else [])),
        objects=objects,
        points_per_object=round(len(curves.mjd) / objects, 1),
        features=178,
    )
    for mode in Mode:
        rate = rates[f"features-{mode}"]
        grown = _growth(mode, max(2, objects // 6), points, growth, repeats)
        yield figure(
            f"features-{mode}", rate, _UNIT, given | {"ms_per_object": _ms(rate), "ms_by_points": grown}, plain
        )
    shares = {name: round(1e3 * seconds / peer_objects, 1) for name, seconds in parts.items()}
    about = {"objects": peer_objects, "ms_per_object": _ms(plain), "ms_by_family": shares}
    yield figure("features-plain-python", plain, _UNIT, given | about, plain, peer=True)
    rate = rates["features-period"]
    best = peer_objects / (parts["p4j"] if "p4j" in parts else parts["period"])
    yield figure("features-period", rate, _UNIT, given | {"ms_per_object": _ms(rate)}, best)
    name = "features-period-p4j" if "p4j" in parts else "features-period-plain-python"
    yield figure(name, best, _UNIT, given | {"objects": peer_objects, "ms_per_object": _ms(best)}, best, peer=True)


def _ms(rate: float) -> float:
    return round(1e3 / rate, 3)


def _growth(mode: Mode, objects: int, points: int, growth: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Milliseconds per object, by the points of an object."""
    found = {}
    for factor in (1, *growth):
        curves = _curves(objects, factor * points)
        seconds = interleaved_seconds({"": partial(compute, curves, mode)}, repeats)[""]
        found[f"{len(curves.mjd) / objects:.0f}"] = round(1e3 * seconds / objects, 3)
    return found


def _curves(objects: int, points: int) -> Curves:
    """Light curves of simulated objects, each cut to the wanted number of points."""
    per_class = -(-objects // len(CLASSES)) * 3
    simulated = simulate_light_curves(per_class, seed=_SEED, days=20.0 * points)
    frame = simulated.detections.to_pandas()
    frame = frame[(frame["rb"] >= 0.55) & (frame["sigmapsf"] < 1)]
    frame = frame.sort_values(["oid", "mjd"], kind="stable")
    counts = frame.groupby("oid")["mjd"].transform("size")
    frame = frame[(counts >= points) & (frame.groupby("oid").cumcount() < points)]
    # Objects of every class alike: the number of the object within its class comes first.
    names = sorted(frame["oid"].unique(), key=lambda oid: (oid[-5:], oid))[:objects]
    frame = frame[frame["oid"].isin(names)]
    curves = prepare(assemble(pa.Table.from_pandas(frame, preserve_index=False), simulated.non_detections))
    return _rows(curves, np.arange(objects) % len(curves))


def _take(curves: Curves, objects: int) -> Curves:
    """Some objects from everywhere among them."""
    return _rows(curves, np.linspace(0, len(curves) - 1, objects).astype(np.int64))


def _rows(curves: Curves, rows: np.ndarray) -> Curves:
    def ragged(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts, counts = offsets[:-1].reshape(-1, 2)[rows].ravel(), np.diff(offsets).reshape(-1, 2)[rows].ravel()
        new = np.concatenate([[0], np.cumsum(counts)])
        return new, np.arange(new[-1]) + np.repeat(starts - new[:-1], counts)

    offsets, points = ragged(curves.offsets)
    non_offsets, limits = ragged(curves.non_offsets)
    of_points = ("mjd", "magnitude", "error", "difference_magnitude", "difference_error", "positive", "ra", "dec", "rb")
    return Curves(
        offsets=offsets,
        non_offsets=non_offsets,
        **{name: getattr(curves, name)[points] for name in of_points},
        **{name: getattr(curves, name)[limits] for name in ("non_mjd", "non_limit")},
        **{name: getattr(curves, name)[rows] for name in ("sgscore1", "wise", "enough")},
    )


def _peer_seconds(curves: Curves) -> dict[str, float]:
    """Seconds that each family takes as plain Python, and P4J for the periods."""
    known = compute(curves, Mode.ALERCE)
    parts = {}
    with np.errstate(all="ignore"):
        for family in FAMILIES:
            started = time.perf_counter()
            family.reference(curves, Mode.ALERCE, {name: known[name] for name in family.uses})
            parts[_name(family)] = time.perf_counter() - started
    if find_spec("P4J") is None:
        print("P4J is not installed: its figure is left out", file=sys.stderr)
        return parts
    started = time.perf_counter()
    for row in range(len(curves)):
        _p4j_period(curves, row)
    parts["p4j"] = time.perf_counter() - started
    return parts


def _name(family: Family) -> str:
    return family.compute.__module__.rsplit(".", 1)[-1]


def _p4j_period(curves: Curves, row: int) -> float:
    """Period by P4J, as ALeRCE's extractor asks for it."""
    from P4J import MultiBandPeriodogram

    start, middle, end = curves.offsets[2 * row : 2 * row + 3]
    kept = [np.arange(a, b) for a, b in ((start, middle), (middle, end)) if b - a >= MIN_POINTS]
    fids = np.repeat(
        [BANDS[i] for i, (a, b) in enumerate(((start, middle), (middle, end))) if b - a >= MIN_POINTS],
        [len(part) for part in kept],
    )
    points = np.concatenate(kept)
    search = MultiBandPeriodogram(method="MHAOV")
    search.set_data(curves.mjd[points], curves.magnitude[points], curves.error[points], fids)
    search.frequency_grid_evaluation(**_GRID)
    search.finetune_best_frequencies(fresolution=_FINE_STEP, n_local_optima=_MAXIMA)
    frequency, _ = search.get_best_frequencies()
    return float(1.0 / frequency[0])
