"""Light curves that the tests of the features share: those of the golden values, and random ones with edge cases."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lightcurves.features.curves import BANDS, Columns, Curves, Family, Mode

POINT_COLUMNS = ("mjd", "magnitude", "error", "difference_magnitude", "difference_error", "positive", "ra", "dec", "rb")
NON_DETECTION_COLUMNS = ("non_mjd", "non_limit")


def golden_curves(shared_data: Path) -> tuple[list[str], Curves]:
    """Identifiers (sorted) and curves of the ten objects of golden_features_1.2.3-P.csv."""
    folder = shared_data / "features"
    points = pd.read_csv(folder / "golden_preprocessed_1.2.3-P.csv")
    for column in ("magpsf", "sigmapsf", "rb", "sgscore1"):
        points[column] = points[column].astype(np.float32).astype(np.float64)
    corrected = pd.read_parquet(folder / "object_info_sample.parquet").corrected
    is_corrected = points.oid.map(corrected).to_numpy()
    points["magnitude"] = np.where(is_corrected, points.magpsf_corr, points.magpsf)
    points["error"] = np.where(is_corrected, points.sigmapsf_corr_ext, points.sigmapsf)
    points["positive"] = points.isdiffpos > 0
    points = points.rename(columns={"magpsf": "difference_magnitude", "sigmapsf": "difference_error"})
    points = points[points.fid.isin(BANDS)].sort_values(["oid", "fid", "mjd"], kind="stable")
    limits = pd.read_parquet(folder / "non_detections_sample.parquet").reset_index()
    limits = limits[limits.fid.isin(BANDS)].sort_values(["oid", "fid", "mjd"], kind="stable")
    oids = sorted(points.oid.unique())
    # Copies, since the columns of a frame are read only, and kernels would be compiled once more for such.
    return oids, Curves(
        offsets=_offsets(points, oids),
        **{name: points[name].to_numpy(copy=True) for name in POINT_COLUMNS},
        non_offsets=_offsets(limits, oids),
        non_mjd=limits.mjd.to_numpy(np.float64, copy=True),
        non_limit=limits.diffmaglim.to_numpy(np.float64, copy=True),
        sgscore1=points.groupby("oid").sgscore1.median().loc[oids].to_numpy(np.float64, copy=True),
        wise=np.full((len(oids), 3), np.nan),
        enough=np.ones(len(oids), np.bool_),
    )


def golden_features(shared_data: Path) -> pd.DataFrame:
    """Golden features of the ten objects in the order of `golden_curves`, by the names of the classifier's README."""
    table = pd.read_csv(shared_data / "features" / "golden_features_1.2.3-P.csv").set_index("oid").sort_index()
    return table.rename(columns={"PPE": "Period_fit"})


def _offsets(table: pd.DataFrame, oids: Sequence[str]) -> NDArray[np.int64]:
    counts = table.groupby(["oid", "fid"]).size().reindex(pd.MultiIndex.from_product([oids, BANDS]), fill_value=0)
    return np.concatenate([[0], np.cumsum(counts.to_numpy(np.int64))])


EDGE_CASES = (
    "ordinary",
    "long",
    "only g",
    "only r",
    "six and five points",
    "six and one points",
    "one and six points",
    "equal magnitudes",
    "equal times",
    "some equal times",
    "huge magnitudes",
    "huge errors",
    "tiny errors",
    "few distinct magnitudes",
    "one night",
    "across the meridian",
    "no non-detections",
    "bright and corrected as uncorrected",
    "four points",
    "one point",
    "no points",
)


def random_curves(seed: int, objects: int = 2 * len(EDGE_CASES), longest: int = 80) -> Curves:
    """Curves whose object i is of kind ``EDGE_CASES[i % len(EDGE_CASES)]``."""
    rng = np.random.default_rng(seed)
    made = [_random_object(rng, EDGE_CASES[i % len(EDGE_CASES)], longest) for i in range(objects)]
    columns: dict[str, NDArray] = {
        name: np.concatenate([columns[name] for one in made for columns in one["points"]]) for name in POINT_COLUMNS
    }
    for name in NON_DETECTION_COLUMNS:
        columns[name] = np.concatenate([columns_[name] for one in made for columns_ in one["limits"]])
    counts = [[len(band["mjd"]) for band in one["points"]] for one in made]
    return Curves(
        offsets=_cumulative(counts),
        non_offsets=_cumulative([[len(band["non_mjd"]) for band in one["limits"]] for one in made]),
        sgscore1=np.array([one["sgscore1"] for one in made]),
        wise=np.array([one["wise"] for one in made]),
        enough=np.array([max(n) > 5 for n in counts]),
        **columns,
    )


def _cumulative(counts: ArrayLike) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64).ravel())])


def _random_object(rng: np.random.Generator, kind: str, longest: int) -> dict:
    n = {
        "long": (longest, 2 * longest // 3),
        "only g": (rng.integers(6, longest), 0),
        "only r": (0, rng.integers(6, longest)),
        "six and five points": (6, 5),
        "six and one points": (6, 1),
        "one and six points": (1, 6),
        "four points": (2, 2),
        "one point": (0, 1),
        "no points": (0, 0),
    }.get(kind, rng.integers(6, longest, 2))
    ra, dec = (359.9999 if kind == "across the meridian" else rng.uniform(0, 359)), rng.uniform(-30, 89)
    period, phase, amplitude = 10.0 ** rng.uniform(-0.9, 2), rng.uniform(), rng.uniform(0.05, 1)
    bands = [_random_band(rng, kind, int(k), (period, phase, amplitude), ra, dec) for k in n]
    limits = []
    for k in rng.integers(0, 40, 2):
        k = 0 if kind in ("no non-detections", "no points") else k
        limits.append(
            {
                "non_mjd": np.sort(rng.uniform(58000, 59200, k)),
                "non_limit": _as_float32(rng.normal(20, 0.6, k)),
            }
        )
    wise = _as_float32(rng.uniform(8, 16, 3))
    return {
        "points": bands,
        "limits": limits,
        "sgscore1": rng.uniform() if rng.uniform() < 0.8 else np.nan,
        "wise": np.where(rng.uniform(size=3) < 0.8, wise, np.nan),
    }


def _as_float32(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float32).astype(np.float64)


def _random_band(rng: np.random.Generator, kind: str, n: int, wave: tuple, ra: float, dec: float) -> dict[str, NDArray]:
    period, phase, amplitude = wave
    mjd = np.sort(rng.uniform(58200, 59200, n))
    if kind == "one night":
        mjd = 58500.25 + np.sort(rng.uniform(0, 0.2, n))
    elif kind == "equal times":
        mjd[:] = 58300.5
    elif kind == "some equal times":
        mjd = np.sort(rng.choice(mjd, n))
    error = 10.0 ** rng.uniform(-2.2, -0.8, n)
    magnitude = 17 + amplitude * np.cos(2 * np.pi * (mjd / period + phase)) + rng.normal(0, 1, n) * error
    difference = _as_float32(magnitude + rng.uniform(0.5, 3, n))
    difference_error = _as_float32(10.0 ** rng.uniform(-2, -0.5, n))
    if kind == "equal magnitudes":
        magnitude[:] = 17.25
        difference[:] = 18.5
    elif kind == "few distinct magnitudes":
        magnitude = np.round(magnitude * 4) / 4
        difference = np.round(difference * 4) / 4
    elif kind == "huge magnitudes":
        magnitude = magnitude * 1e30
        difference = difference * 1e30
    elif kind == "huge errors":
        error = error * 1e30
        difference_error = difference_error * 1e30
    elif kind == "tiny errors":
        error = error * 1e-30
        difference_error = difference_error * 1e-30
    elif kind == "bright and corrected as uncorrected":
        magnitude, error = difference.copy(), difference_error.copy()
    return {
        "mjd": mjd,
        "magnitude": magnitude,
        "error": error,
        "difference_magnitude": difference,
        "difference_error": difference_error,
        "positive": rng.uniform(size=n) < 0.6,
        "ra": np.mod(ra + rng.normal(0, 2e-4, n), 360),
        "dec": dec + rng.normal(0, 3e-5, n),
        "rb": _as_float32(rng.uniform(0.55, 1, n)),
    }


def take(curves: Curves, rows: ArrayLike) -> Curves:
    """The curves of some objects, in the order of `rows`."""
    rows = np.asarray(rows, np.int64)
    points, offsets = _take_points(curves.offsets, rows)
    limits, non_offsets = _take_points(curves.non_offsets, rows)
    changed = {name: getattr(curves, name)[points] for name in POINT_COLUMNS}
    changed |= {name: getattr(curves, name)[limits] for name in NON_DETECTION_COLUMNS}
    changed |= {name: getattr(curves, name)[rows] for name in ("sgscore1", "wise", "enough")}
    result = replace(curves, offsets=offsets, non_offsets=non_offsets, **changed)
    assert {f.name for f in fields(Curves)} == set(changed) | {"offsets", "non_offsets"}
    return result


def _take_points(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = offsets[:-1].reshape(-1, 2)[rows].ravel()
    counts = np.diff(offsets).reshape(-1, 2)[rows].ravel()
    points = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *points]), _cumulative(counts)


def flat(columns: Columns) -> dict[str, NDArray[np.float64]]:
    """Features by their full names: an array (n, 2) becomes ``<name>_1`` and ``<name>_2``."""
    result = {}
    for name, values in columns.items():
        if values.ndim == 1:
            result[name] = values
        else:
            result |= {f"{name}_{band}": values[:, i] for i, band in enumerate(BANDS)}
    return result


def assert_golden(
    family: Family, shared_data: Path, tolerances: dict[str, dict[str, float]], default: dict[str, float] | None = None
) -> None:
    """Check a family in mode alerce against the golden values, with the same pattern of NaN.

    `tolerances` gives keywords of ``numpy.testing.assert_allclose`` by base name; 1e-3 relative by default.
    """
    _, curves = golden_curves(shared_data)
    golden = golden_features(shared_data)
    known = {name: golden[name].to_numpy(np.float64) for name in family.uses if name in golden}
    got = family.compute(curves, Mode.ALERCE, known)
    assert set(got) == set(family.per_band) | set(family.per_object)
    for base, values in got.items():
        keywords = {"rtol": 1e-3, **(default or {}), **tolerances.get(base, {})}
        for name, column in flat({base: values}).items():
            if name in golden:
                expected = golden[name].to_numpy(np.float64)
                np.testing.assert_allclose(
                    np.where(np.isinf(column), np.nan, column), expected, err_msg=name, **keywords
                )


def assert_independent_of_batch(family: Family, curves: Curves, known: dict[str, NDArray[np.float64]]) -> None:
    """Check that any batch size and order of the objects gives the same bits, in both modes."""
    n = len(curves)
    for mode in Mode:
        whole = flat(family.compute(curves, mode, known))
        order = np.random.default_rng(1).permutation(n)
        for rows in [order, *np.array_split(order, 3), *([i] for i in range(0, n, 5)), []]:
            rows = np.asarray(rows, np.int64)
            part = family.compute(take(curves, rows), mode, {name: values[rows] for name, values in known.items()})
            for name, values in flat(part).items():
                assert values.dtype == np.float64, name
                assert np.array_equal(values, whole[name][rows], equal_nan=True), name
