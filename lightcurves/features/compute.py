"""All features of the classifier: from light curves to a table in the order and types of the features' schema."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, repeat

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightcurves.batch import LightCurveBatch
from lightcurves.features import (
    drw,
    folded,
    iar,
    mhps,
    period,
    position,
    spm,
    statistics,
    structure_function,
    supernova,
)
from lightcurves.features.curves import BANDS, Columns, Curves, Family, Mode
from lightcurves.features.prepare import prepare
from schemas import load_schema

FEATURES_VERSION = "1.0.0"

# A family comes after those that it uses.
FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY
    for module in (position, statistics, structure_function, supernova, mhps, period, folded, iar, drw, spm)
)

OTHER_NAMES: Mapping[str, str] = {"PPE": "Period_fit"}
"""What ALeRCE's later releases call a feature, and its name here."""

_ARROW_TYPES = {"float": pa.float32(), "double": pa.float64()}


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of n objects.

    Attributes
    ----------
    table : pyarrow.Table
        Column ``oid`` and one for each of `feature_names`, float32 or float64 as the schema has it; null is missing.
    mode : Mode
        How they were computed.
    version : str
        What features of different definitions are told apart by.
    """

    table: pa.Table
    mode: Mode
    version: str

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def oid(self) -> pa.ChunkedArray:
        """Identifiers of the objects."""
        return self.table["oid"]

    def values(self, name: str) -> NDArray[np.float64]:
        """One feature of all objects, by its name or one of `OTHER_NAMES`; NaN is missing."""
        column = self.table[OTHER_NAMES.get(name, name)].cast(pa.float64())
        return column.to_numpy(zero_copy_only=False)


@cache
def feature_schema() -> pa.Schema:
    """Schema of a table of features: ``oid``, then all by name, order and type of ``schemas/features.avsc``."""
    fields = [pa.field("oid", pa.string(), nullable=False)]
    for field in load_schema("features")["fields"]:
        kind = next(kind for kind in field["type"] if kind != "null")
        fields.append(pa.field(field["name"], _ARROW_TYPES[kind]))
    return pa.schema(fields)


@cache
def feature_names() -> tuple[str, ...]:
    """Names of the 178 features in the schema's order."""
    return tuple(feature_schema().names[1:])


def by_full_name(columns: Columns) -> Columns:
    """Give an array for each feature of a family: (n, 2) of `Amplitude` becomes `Amplitude_1`, `Amplitude_2`."""
    result: Columns = {}
    for name, values in columns.items():
        if values.ndim == 1:
            result[name] = values
        else:
            result |= {f"{name}_{band}": np.ascontiguousarray(values[:, i]) for i, band in enumerate(BANDS)}
    return result


def compute(curves: Curves, mode: Mode) -> Columns:
    """All features of n objects.

    Parameters
    ----------
    curves : Curves
    mode : Mode

    Returns
    -------
    dict of str to float64 [n]
        By name, in the order of `feature_names`. NaN is missing: undefined, infinite, of an absent band, or of an
        object that has not enough points.
    """
    known: Columns = {}
    with np.errstate(all="ignore"):
        for family in FAMILIES:
            columns = family.compute(curves, mode, {name: known[name] for name in family.uses})
            known |= {name: _finite_or_nan(values, curves.enough) for name, values in by_full_name(columns).items()}
    return {name: known[name] for name in feature_names()}


def _finite_or_nan(values: NDArray[np.float64], enough: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values) & enough, values, np.nan)


def compute_features(
    batch: LightCurveBatch,
    mode: Mode = Mode.ALERCE,
    *,
    forced: bool = False,
    keep_incomplete: bool = True,
    version: str | None = None,
    threads: int = 1,
) -> FeatureBatch:
    """All features of the light curves of n objects.

    The features of an object do not depend on the others of its batch.

    Parameters
    ----------
    batch : LightCurveBatch
    mode : Mode
    forced : bool
        Whether forced photometry counts.
    keep_incomplete : bool
        Whether an object with too few points gets a row of nulls, or none.
    version : str, optional
        By default `FEATURES_VERSION` and the mode.
    threads : int
        How many parts of the batch are computed at once.
    """
    curves = prepare(batch, forced=forced)
    return compute_table(batch.oid, curves, mode, keep_incomplete=keep_incomplete, version=version, threads=threads)


def compute_table(
    oids: Sequence[str] | pa.Array | pa.ChunkedArray,
    curves: Curves,
    mode: Mode = Mode.ALERCE,
    *,
    keep_incomplete: bool = True,
    version: str | None = None,
    threads: int = 1,
) -> FeatureBatch:
    """As `compute_features`, of points that are chosen already.

    Parameters
    ----------
    oids : n strings
    curves : Curves
        Of the same objects in the same order.
    mode, keep_incomplete, version, threads
        As of `compute_features`.

    Raises
    ------
    ValueError
        If there are not as many identifiers as curves.
    """
    if len(oids) != len(curves):
        raise ValueError(f"There are {len(oids)} identifiers of {len(curves)} light curves.")
    features = compute(curves, mode) if threads < 2 else _computed_in_threads(curves, mode, threads)
    schema = feature_schema()
    arrays = [_as_strings(oids), *(_as_arrow(features[field.name], field.type) for field in list(schema)[1:])]
    table = pa.Table.from_arrays(arrays, schema=schema)
    if not keep_incomplete:
        table = table.filter(pa.array(curves.enough))
    return FeatureBatch(table, mode, version if version is not None else f"{FEATURES_VERSION}-{mode}")


def _computed_in_threads(curves: Curves, mode: Mode, threads: int) -> Columns:
    """As `compute`, whose kernels let other threads run; the parts have as many points as each other."""
    points = np.arange(1, threads) * curves.offsets[-1] / threads
    cuts = [0, *np.searchsorted(curves.offsets[::2], points).tolist(), len(curves)]
    parts = [curves.part(start, end) for start, end in pairwise(cuts) if end > start]
    found = list(_pool(threads).map(compute, parts, repeat(mode)))
    return {name: np.concatenate([part[name] for part in found] or [np.empty(0)]) for name in feature_names()}


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="features")


def _as_strings(oids: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if isinstance(oids, pa.Array | pa.ChunkedArray):
        return oids.cast(pa.string())
    return pa.array(list(oids), pa.string())


def _as_arrow(values: NDArray[np.float64], kind: pa.DataType) -> pa.Array:
    with np.errstate(over="ignore"):
        typed = values.astype(kind.to_pandas_dtype())
    return pa.array(typed, kind, mask=~np.isfinite(typed))
