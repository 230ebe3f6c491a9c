"""Agreement with ALeRCE: every feature, the correction and the periods, object by object, with the reference data."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alerts.batch import AlertBatch
from alerts.reader import read_source
from alerts.sources import find_sources
from benchmarks.measure import conditions
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.columns import JD_MINUS_MJD
from lightcurves.features.compute import compute_features, feature_names
from lightcurves.features.curves import Mode
from transforms.light_curves import slim_rows

REFERENCE_DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
# Relative, absolute: alerce.md 6.1. Fewer points than terms leave residuals of rounding in Harmonics_mse.
_TOLERANCES: Final = {
    "MHPS_high": (5e-3, 0.0),
    "MHPS_ratio": (5e-3, 0.0),
    "IAR_phi": (0.0, 1e-3),
    "Harmonics_mse": (1e-3, 1e-12),
    **dict.fromkeys(("GP_DRW_sigma", "GP_DRW_tau"), (5e-3, 0.0)),
    **{f"SPM_{name}": (5e-3, 0.0) for name in ("A", "t0", "gamma", "beta", "tau_rise", "tau_fall", "chi")},
}
_DEFAULT_TOLERANCE: Final = (1e-3, 0.0)
_CORRECTION_TOLERANCE: Final = 1e-9
_CLOSE_PERIOD: Final = 0.01
_UNIT: Final = "objects/s"


@dataclass
class Agreement:
    """How one feature of some objects agrees with the reference.

    Attributes
    ----------
    name : str
        Of the feature.
    tolerance : float
        Relative; `absolute` is how far a value may be off whatever its size.
    objects : int
        Compared: all, those without a value in the reference included.
    within : int
        Of them, those with the same value, or none in both.
    worst_relative : float
        Largest relative difference among the values that differ by more than `absolute`.
    nan_mismatches : int
        Objects with a value on one side only.
    beyond : list of str
        Objects that are not within.
    """

    name: str
    tolerance: float
    absolute: float
    objects: int = 0
    within: int = 0
    worst_relative: float = 0.0
    nan_mismatches: int = 0
    beyond: list[str] = field(default_factory=list)

    def add(self, oids: list[str], got: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
        """Compare the values of some objects; NaN is missing."""
        equal = np.isclose(got, expected, rtol=self.tolerance, atol=self.absolute, equal_nan=True)
        both = np.isfinite(got) & np.isfinite(expected)
        difference = np.abs(got[both] - expected[both])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = difference / np.abs(expected[both])
        self.worst_relative = float(max(self.worst_relative, relative[difference > self.absolute].max(initial=0.0)))
        self.objects += len(oids)
        self.within += int(equal.sum())
        self.nan_mismatches += int((np.isnan(got) != np.isnan(expected)).sum())
        self.beyond += [oids[i] for i in np.flatnonzero(~equal)]


def run(folder: Path = REFERENCE_DATA) -> Iterator[dict[str, Any]]:
    """Compare with ALeRCE's values; the ratio of each line is the share of objects that agree.

    A line `features-parity` for each of the 172 features of the reference files (those without WISE colours), with
    `objects`, `worst_relative`, `tolerance`, `nan_mismatches` and `beyond`, the objects that do not agree. A line
    `features-parity-SET` for the objects of which the file has the points that ALeRCE retained, for those assembled
    from packets, and for the first from their tables of detections: there ALeRCE chooses among several detections of
    one exposure by an unstable sort, which nobody can repeat, so that this set does not count in the lines before.
    `features-parity-correction` is for the 1,381 corrected detections, `features-parity-periods-MODE` for the stars
    whose period is that of the literature.

    Parameters
    ----------
    folder : Path
        Of the reference data. Nothing is compared without it.
    """
    if not folder.is_dir():
        print(
            f"the reference data are absent: {folder} is not a folder, so there is nothing to compare with",
            file=sys.stderr,
        )
        return
    golden = _golden(folder / "features" / "golden_features_1.2.3-P.csv")
    sets = {
        "points": (_retained_points(folder), golden),
        "packets": _from_packets(folder),
        "tables": (_detection_tables(folder), golden),
    }
    features: dict[str, Agreement] = {}
    summaries = []
    for name, (light_curves, expected) in sets.items():
        seconds, own = _compare(light_curves, expected)
        for feature, one in own.items() if name != "tables" else ():
            features.setdefault(feature, Agreement(feature, one.tolerance, one.absolute))
            _merge(features[feature], one)
        summaries.append(_set_line(name, own, expected, seconds))
    given = conditions("numpy", mode=str(Mode.ALERCE), release="1.2.3-P")
    rate = sum(line["rate"] for line in summaries) / len(summaries)
    for one in features.values():
        yield _feature_line(one, rate, given)
    yield from summaries
    yield _correction_line(folder)
    for mode in Mode:
        yield _period_line(folder, mode)


def _retained_points(folder: Path) -> LightCurveBatch:
    """Light curves of the points that ALeRCE's preprocessing retained."""
    points = pd.read_csv(folder / "features" / "golden_preprocessed_1.2.3-P.csv")
    for name in ("magpsf", "sigmapsf", "rb", "sgscore1"):
        # As they were before they were written as text.
        points[name] = points[name].astype(np.float32)
    return assemble(pa.Table.from_pandas(points, preserve_index=False), _limits(folder))


def _detection_tables(folder: Path) -> LightCurveBatch:
    """Light curves of the same objects' detections before preprocessing."""
    return assemble(pq.read_table(folder / "features" / "detections_sample.parquet"), _limits(folder))


def _limits(folder: Path) -> pa.Table:
    return pq.read_table(
        folder / "features" / "non_detections_sample.parquet", columns=["oid", "fid", "mjd", "diffmaglim"]
    )


def _from_packets(folder: Path) -> tuple[LightCurveBatch, pd.DataFrame]:
    """Light curves of the packets' objects that have golden features, by our own reader."""
    golden = _golden(folder / "features" / "golden_from_packets_1.2.3-P.csv")
    rows = [
        slim_rows(item)
        for source in find_sources([str(folder / "alerts")])
        for item in read_source(source)
        if isinstance(item, AlertBatch)
    ]
    wanted = pa.array(golden.index)
    tables = [
        pa.concat_tables([getattr(part, name) for part in rows], promote_options="permissive")
        for name in ("detections", "non_detections")
    ]
    return assemble(*(table.filter(pc.is_in(table["oid"], value_set=wanted)) for table in tables)), golden


def _golden(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).set_index("oid").sort_index().rename(columns={"PPE": "Period_fit"})


def _compare(light_curves: LightCurveBatch, golden: pd.DataFrame) -> tuple[float, dict[str, Agreement]]:
    # What is compiled or read from the cache on first use is no work of a comparison.
    compute_features(light_curves, Mode.ALERCE)
    started = time.perf_counter()
    batch = compute_features(light_curves, Mode.ALERCE)
    seconds = time.perf_counter() - started
    order = pd.Index(batch.oid.to_pylist()).get_indexer(golden.index)
    if (order < 0).any():
        raise AssertionError(f"no light curve of {', '.join(golden.index[order < 0])} was assembled")
    found = {}
    for name in feature_names():
        if name in golden:
            relative, absolute = _TOLERANCES.get(name.rsplit("_", 1)[0], _DEFAULT_TOLERANCE)
            found[name] = Agreement(name, relative, absolute)
            found[name].add(list(golden.index), batch.values(name)[order], golden[name].to_numpy(np.float64))
    return seconds, found


def _merge(into: Agreement, other: Agreement) -> None:
    into.objects += other.objects
    into.within += other.within
    into.worst_relative = max(into.worst_relative, other.worst_relative)
    into.nan_mismatches += other.nan_mismatches
    into.beyond += other.beyond


def _feature_line(one: Agreement, rate: float, given: Mapping[str, object]) -> dict[str, Any]:
    beyond = f", beyond tolerance: {' '.join(one.beyond)}" if one.beyond else ""
    tolerance = f"{one.tolerance:g}" if one.tolerance else f"{one.absolute:g} absolute"
    return _line("features-parity", rate, one.within / one.objects, given) | {
        "feature": one.name,
        "objects": one.objects,
        "worst_relative": one.worst_relative,
        "tolerance": one.tolerance or one.absolute,
        "nan_mismatches": one.nan_mismatches,
        "beyond": one.beyond,
        "summary": f"{one.name:<32}{one.objects:>5} objects, worst {one.worst_relative:8.1e} of {tolerance}, "
        f"{one.nan_mismatches} NaN mismatches{beyond}",
    }


def _set_line(name: str, features: Mapping[str, Agreement], golden: pd.DataFrame, seconds: float) -> dict[str, Any]:
    values = sum(one.objects for one in features.values())
    within = sum(one.within for one in features.values())
    mismatches = sum(one.nan_mismatches for one in features.values())
    counts: dict[str, int] = {}
    for one in features.values():
        for oid in one.beyond:
            counts[oid] = counts.get(oid, 0) + 1
    given = conditions("numpy", mode=str(Mode.ALERCE), objects=len(golden), features=len(features), values=values)
    agreeing = len(golden) - len(counts)
    return _line(f"features-parity-{name}", len(golden) / seconds, within / values, given) | {
        "within": within,
        "nan_mismatches": mismatches,
        "objects_within": agreeing,
        "beyond": counts,
        "summary": f"{name}: {within:,} of {values:,} values within tolerance, {mismatches} NaN mismatches, "
        f"{agreeing} of {len(golden)} objects in every feature",
    }


def _correction_line(folder: Path) -> dict[str, Any]:
    """Compare the corrected magnitudes and flags of every detection of ten objects."""
    raw = pq.read_table(folder / "correction" / "10_objects_detections.parquet")
    raw = raw.rename_columns(["oid" if name == "objectId" else name for name in raw.column_names])
    sign = pc.if_else(pc.is_in(raw["isdiffpos"], value_set=pa.array(["t", "1"])), 1, -1)
    raw = raw.set_column(raw.column_names.index("isdiffpos"), "isdiffpos", sign)
    raw = raw.append_column("mjd", pc.subtract(raw["jd"], JD_MINUS_MJD))
    started = time.perf_counter()
    light_curves = assemble(raw, pa.table({"oid": [], "fid": [], "mjd": [], "diffmaglim": []}))
    seconds = time.perf_counter() - started
    own = light_curves.detections.to_pandas().set_index(["oid", "candid"])
    expected = pd.read_parquet(folder / "correction" / "10_objects_corrected.parquet")
    expected = expected.set_index(["objectId", "candid"])
    own = own.reindex(expected.index)
    equal = np.ones(len(expected), np.bool_)
    worst = 0.0
    for name in ("magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext"):
        got, wanted = own[name].to_numpy(np.float64), expected[name].to_numpy(np.float64)
        equal &= np.isclose(got, wanted, rtol=0.0, atol=_CORRECTION_TOLERANCE, equal_nan=True)
        worst = max(worst, float(np.nanmax(np.abs(got - wanted))))
    for name in ("corrected", "dubious"):
        equal &= own[name].to_numpy(np.bool_) == expected[name].to_numpy(np.bool_)
    given = conditions("numpy", detections=len(expected), objects=len(light_curves))
    return _line("features-parity-correction", len(light_curves) / seconds, equal.mean(), given) | {
        "objects": len(light_curves),
        "worst_absolute": worst,
        "tolerance": _CORRECTION_TOLERANCE,
        "summary": f"correction: {int(equal.sum()):,} of {len(equal):,} detections equal, worst difference "
        f"{worst:.1e} mag",
    }


def _period_line(folder: Path, mode: Mode) -> dict[str, Any]:
    """Count the stars of known period whose period is found, also up to a factor of two."""
    features = folder / "features"
    labels = pd.read_csv(features / "periodic_light_curve_labels.csv").set_index("oid")
    periods = labels["period"].dropna()
    points = pd.read_csv(features / "periodic_light_curves.csv")
    points = points[points["oid"].isin(periods.index)]
    # ALeRCE's recipe takes every point and the plain error of the corrected magnitude.
    place = labels.loc[points["oid"], ["ra", "dec"]].to_numpy()
    points = points.assign(
        corrected=True, sigmapsf_corr_ext=points["sigmapsf_corr"], isdiffpos=1, ra=place[:, 0], dec=place[:, 1], rb=1.0
    )
    light_curves = assemble(
        pa.Table.from_pandas(points, preserve_index=False),
        pa.table({"oid": [], "fid": [], "mjd": [], "diffmaglim": []}),
    )
    compute_features(light_curves, mode)
    started = time.perf_counter()
    batch = compute_features(light_curves, mode)
    seconds = time.perf_counter() - started
    found = pd.Series(batch.values("Multiband_period"), index=batch.oid.to_pylist())[periods.index]
    ratio = found / periods
    close = np.abs(ratio - 1.0) < _CLOSE_PERIOD
    doubled = [np.abs(ratio * factor - 1.0) < _CLOSE_PERIOD for factor in (0.5, 2.0)]
    to_factor = close | doubled[0] | doubled[1]
    given = conditions("numpy", mode=str(mode), stars=len(periods))
    return _line(f"features-parity-periods-{mode}", len(periods) / seconds, close.mean(), given) | {
        "objects": len(periods),
        "within_1_percent": int(close.sum()),
        "up_to_factor_2": int(to_factor.sum()),
        "beyond": list(periods.index[~to_factor]),
        "summary": f"periods, {mode}: {int(close.sum())} of {len(periods)} stars within 1 %, "
        f"{int(to_factor.sum())} up to a factor of 2 (ALeRCE's recipe: 9, 12)",
    }


def _line(name: str, rate: float, agreement: float, given: Mapping[str, object]) -> dict[str, Any]:
    return {
        "name": name,
        "rate": round(rate, 1),
        "unit": _UNIT,
        "conditions": dict(given),
        "ratio": round(float(agreement), 6),
    }
