"""What the tables of objects, features and probabilities tell, and which objects the page shows.

They are read bucket by bucket; what is kept does not grow with the number of objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lightcurves.columns import nullable, numbers
from storage.buckets import bucket_of

PROBABILITY_BINS: Final = 20
TABLE_ROWS: Final = 5_000
FEATURE_SAMPLE: Final = 2_000
#: Features that the page offers, if the run has them: the most telling ones of each kind.
FEATURES: Final = (
    *("Multiband_period", "Period_fit", "Amplitude_1", "Amplitude_2", "Std_1", "Mean_1", "Mean_2"),
    *("g-r_mean_corr", "g-r_max", "W1-W2", "W2-W3", "g-W2", "r-W2"),
    *("MHPS_ratio_1", "MHPS_high_1", "MHPS_low_1", "SF_ML_amplitude_1", "SF_ML_gamma_1", "IAR_phi_1"),
    *("GP_DRW_sigma_1", "GP_DRW_tau_1", "SPM_A_1", "SPM_tau_rise_1", "SPM_tau_fall_1", "SPM_chi_1"),
    *("Psi_eta_1", "Harmonics_mag_1_1", "Skew_1", "ExcessVar_1", "positive_fraction_1", "sgscore1", "gal_b"),
)
_MOST_OTHER_FEATURES: Final = 25
_OF_OBJECTS: Final = ("ndet", "meanra", "meandec", "firstmjd", "lastmjd", "corrected")
_OF_FEATURES: Final = {"period": "Multiband_period", "period_fit": "Period_fit", "mag_g": "Mean_1", "mag_r": "Mean_2"}
_NOT_CLASSES: Final = frozenset(
    {
        *("oid", "candid", "class", "class_probability"),
        *("classifier_name", "classifier_version", "model_sha256", "feature_version"),
    }
)
_HASHES: Final = 1 << 53
_BUCKET: Final = re.compile(r"bucket=(\d+)\.parquet")


@dataclass(frozen=True)
class Tables:
    """Folders of tables of objects; None where the run has none.

    Attributes
    ----------
    objects, features, probabilities : Path or None
    """

    objects: Path | None
    features: Path | None
    probabilities: Path | None

    def buckets(self) -> list[int]:
        """Numbers of the buckets that any of them has."""
        found: set[int] = set()
        for folder in (self.objects, self.features, self.probabilities):
            for path in folder.glob("bucket=*.parquet") if folder else ():
                if match := _BUCKET.fullmatch(path.name):
                    found.add(int(match[1]))
        return sorted(found)


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Objects of one class.

    Attributes
    ----------
    count : int
    histogram : int64, shape (PROBABILITY_BINS,)
        By the probability of the class, from 0 to 1.
    mean : float
        Of that probability.
    """

    count: int
    histogram: NDArray[np.int64]
    mean: float


@dataclass(frozen=True, eq=False)
class Objects:
    """What the tables tell.

    Attributes
    ----------
    count, featured, classified : int
    leaves : tuple of str
        Classes in the order of the table of probabilities; empty without one.
    classes : dict of str to ClassStatistics
    shown : Table
        The most interesting objects, best first: ``oid``, ``ndet``, ``meanra``, ``meandec``, ``firstmjd``,
        ``lastmjd``, ``corrected``, ``period``, ``period_fit``, ``mag_g``, ``mag_r``, ``class``, ``probability``, and
        ``p:CLASS`` for each class; null is unknown.
    features : Table
        Sample of objects with an equal share for each class: ``oid``, ``class`` and features.
    """

    count: int
    featured: int
    classified: int
    leaves: tuple[str, ...]
    classes: dict[str, ClassStatistics]
    shown: pa.Table
    features: pa.Table


class _LeastOfClasses:
    """Rows with the least key of each class, of all that were added.

    Parameters
    ----------
    most : int
        Rows kept of each class, and given in the end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: pa.Table | None = None
        self._order = np.zeros((3, 0))

    def add(self, rows: pa.Table, group: NDArray[np.int64], key: NDArray[np.float64], tie: NDArray[np.int64]) -> None:
        """Add rows; `tie` decides between equal keys."""
        chosen = np.sort(
            np.concatenate([np.zeros(0, np.int64), *(self._least(group, key, c) for c in np.unique(group))])
        )
        more, order = rows.take(pa.array(chosen)), np.array([group[chosen], key[chosen], tie[chosen]], np.float64)
        if self._rows is not None:
            more, order = pa.concat_tables([self._rows, more]), np.hstack([self._order, order])
        kept = np.lexsort((order[2], order[1], order[0]))
        kept = kept[self._places(order[0][kept]) < self._most]
        self._rows, self._order = more.take(pa.array(kept)).combine_chunks(), order[:, kept]

    def _least(self, group: NDArray[np.int64], key: NDArray[np.float64], one: int) -> NDArray[np.int64]:
        rows = np.flatnonzero(group == one)
        if len(rows) <= self._most:
            return rows
        return rows[key[rows] <= np.partition(key[rows], self._most - 1)[self._most - 1]]

    @staticmethod
    def _places(sorted_groups: NDArray[np.float64]) -> NDArray[np.int64]:
        """Place of each row within its group."""
        first = np.searchsorted(sorted_groups, sorted_groups)
        return np.arange(len(sorted_groups)) - first

    def taking_turns(self, last: int) -> pa.Table | None:
        """Rows such that the classes take turns, each with its least key first; those of group `last` at the end."""
        if self._rows is None:
            return None
        group, key, tie = self._order
        places = self._places(group)
        order = np.lexsort((tie, group, key, places, group == last))
        return self._rows.take(pa.array(order[: self._most]))


def read_objects(tables: Tables, advance: Callable[[int], None] | None = None) -> Objects | None:
    """Read the tables; None if there are none.

    Parameters
    ----------
    tables : Tables
    advance : callable, optional
        Told 1 for each bucket.
    """
    buckets = tables.buckets()
    if not buckets:
        return None
    leaves = _leaves(tables.probabilities)
    feature_names = _feature_names(tables.features)
    shown, sample = _LeastOfClasses(TABLE_ROWS), _LeastOfClasses(FEATURE_SAMPLE)
    counts = np.zeros(3, np.int64)
    histograms = np.zeros((len(leaves) + 1, PROBABILITY_BINS), np.int64)
    sums = np.zeros(len(leaves) + 1)
    for bucket in buckets:
        rows = _bucket_rows(tables, bucket, leaves, feature_names)
        group, probability = rows.group(leaves)
        counts += (len(rows.table), rows.featured, int((group < len(leaves)).sum()))
        bins = np.clip((np.nan_to_num(probability) * PROBABILITY_BINS).astype(int), 0, PROBABILITY_BINS - 1)
        np.add.at(histograms, (group, bins), 1)
        sums += np.bincount(group, np.nan_to_num(probability), len(leaves) + 1)
        tie = bucket_of(rows.table["oid"], _HASHES)
        # Objects without a class: those with most detections.
        key = np.where(np.isnan(probability), -numbers(rows.table, "ndet"), -probability)
        feature_columns = [name for name in rows.table.column_names if name.startswith("f:")]
        shown.add(rows.table.drop_columns(feature_columns), group, np.nan_to_num(key), tie)
        with_features = np.flatnonzero(rows.has_features)
        some = rows.table.select(["oid", "class", *feature_columns]).take(pa.array(with_features))
        sample.add(some, group[with_features], tie[with_features].astype(np.float64), tie[with_features])
        if advance:
            advance(1)
    empty = pa.table({"oid": pa.array([], pa.string()), "class": pa.array([], pa.string())})
    found, sampled = shown.taking_turns(len(leaves)), sample.taking_turns(len(leaves))
    sampled = empty if sampled is None else sampled
    return Objects(
        count=int(counts[0]),
        featured=int(counts[1]),
        classified=int(counts[2]),
        leaves=leaves,
        classes={
            name: ClassStatistics(int(of_class.sum()), of_class, float(total / max(of_class.sum(), 1)))
            for name, of_class, total in zip(leaves, histograms, sums, strict=False)
        },
        shown=empty if found is None else found,
        features=sampled.rename_columns([name.removeprefix("f:") for name in sampled.column_names]),
    )


def _leaves(folder: Path | None) -> tuple[str, ...]:
    schema = _schema(folder)
    return tuple(field.name for field in schema if field.name not in _NOT_CLASSES and _is_number(field))


def _feature_names(folder: Path | None) -> tuple[str, ...]:
    there = [field.name for field in _schema(folder) if _is_number(field)]
    found = tuple(name for name in FEATURES if name in there)
    return found or tuple(there[:_MOST_OTHER_FEATURES])


def _is_number(field: pa.Field) -> bool:
    return pa.types.is_floating(field.type)


def _schema(folder: Path | None) -> pa.Schema:
    paths = sorted(folder.glob("bucket=*.parquet")) if folder else []
    return pq.read_schema(paths[0]) if paths else pa.schema([])


@dataclass(frozen=True, eq=False)
class _Rows:
    """Objects of one bucket: a table with all columns, and which of them have features."""

    table: pa.Table
    has_features: NDArray[np.bool_]

    @property
    def featured(self) -> int:
        return int(self.has_features.sum())

    def group(self, leaves: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Number of each object's class, that of the leaves without one, and its probability."""
        names = pa.array(leaves, pa.string())
        group = pc.fill_null(pc.index_in(self.table["class"], value_set=names), len(leaves))
        return group.to_numpy().astype(np.int64), numbers(self.table, "probability")


def _bucket_rows(tables: Tables, bucket: int, leaves: Sequence[str], feature_names: Sequence[str]) -> _Rows:
    objects = _read(tables.objects, bucket, _OF_OBJECTS)
    features = _read(tables.features, bucket, [*dict.fromkeys([*feature_names, *_OF_FEATURES.values()])])
    probabilities = _read(tables.probabilities, bucket, ["class", "class_probability", *leaves])
    oid = pc.unique(
        pa.chunked_array(
            [chunk for rows in (objects, features, probabilities) for chunk in rows["oid"].chunks], pa.string()
        )
    )
    objects, _ = _aligned(objects, oid)
    features, has_features = _aligned(features, oid)
    probabilities, _ = _aligned(probabilities, oid)
    columns = {"oid": oid, **{name: _column(objects, name) for name in _OF_OBJECTS}}
    columns |= {name: _column(features, source) for name, source in _OF_FEATURES.items()}
    columns["class"] = _column(probabilities, "class", pa.string())
    columns["probability"] = _column(probabilities, "class_probability")
    columns |= {f"p:{name}": _column(probabilities, name) for name in leaves}
    columns |= {f"f:{name}": _column(features, name) for name in feature_names}
    return _Rows(pa.table(columns), has_features)


def _read(folder: Path | None, bucket: int, columns: Sequence[str]) -> pa.Table:
    path = folder / f"bucket={bucket:04d}.parquet" if folder else None
    if path is None or not path.exists():
        return pa.table({"oid": pa.array([], pa.string())})
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        rows = file.read(["oid", *(name for name in columns if name in there)])
    return rows.set_column(0, "oid", rows["oid"].cast(pa.string()))


def _aligned(rows: pa.Table, oid: pa.Array) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Rows of the objects in their order, nulls for those that have none, and which have one."""
    place = pc.index_in(oid, value_set=rows["oid"].combine_chunks())
    return rows.take(place), place.is_valid().to_numpy(zero_copy_only=False)


def _column(rows: pa.Table, name: str, kind: pa.DataType | None = None) -> pa.Array:
    if name not in rows.column_names:
        return pa.nulls(len(rows), kind or pa.float64())
    if kind is not None:
        return rows[name].cast(kind).combine_chunks()
    values = numbers(rows, name)
    return nullable(np.where(np.isfinite(values), values, np.nan))
