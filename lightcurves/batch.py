"""Light curves of many objects as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class LightCurve(NamedTuple):
    """Light curve of one object.

    Attributes
    ----------
    detections, non_detections : DataFrame
        By time, columns as in the batch.
    """

    detections: pd.DataFrame
    non_detections: pd.DataFrame


@dataclass(frozen=True, eq=False)
class LightCurveBatch:
    """Light curves of n objects, and their statistics.

    Attributes
    ----------
    oid : pyarrow.StringArray, shape (n,)
        Names of the objects, sorted, each once.
    detections : pyarrow.Table
        Columns :data:`lightcurves.columns.DETECTION`, sorted by object, mjd and candid. ``forced`` rows are forced
        photometry.
    detection_offsets : int64, shape (n + 1,)
        Detections of object i are the rows ``detection_offsets[i]:detection_offsets[i + 1]``.
    non_detections : pyarrow.Table
        Columns :data:`lightcurves.columns.NON_DETECTION`, sorted by object, mjd and fid.
    non_detection_offsets : int64, shape (n + 1,)
    objects : pyarrow.Table
        A row per object, in order: statistics by the names of ALeRCE's table ``object``, ``ndubious``, ``candid`` of
        the newest alert, and ``W1mag``, ``W2mag``, ``W3mag`` of the AllWISE match.
    magstats : pyarrow.Table
        A row per object and band that has detections, in order: ``oid``, ``fid`` and statistics by the names of
        ALeRCE's table ``magstat``, the same of ``magap``, ``nrfid`` and the flags of :mod:`lightcurves.correction`.
    """

    oid: pa.StringArray
    detections: pa.Table
    detection_offsets: NDArray[np.int64]
    non_detections: pa.Table
    non_detection_offsets: NDArray[np.int64]
    objects: pa.Table
    magstats: pa.Table

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.oid)

    @cached_property
    def known_points(self) -> NDArray[np.int32]:
        """Detections of each object, an alert's own one twice: the more alerts are known, the larger."""
        own = pc.and_(self.detections["has_stamp"], pc.invert(self.detections["forced"])).to_numpy()
        up_to = np.append(0, np.cumsum(1 + own))
        return np.diff(up_to[self.detection_offsets]).astype(np.int32)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {oid: row for row, oid in enumerate(self.oid.to_pylist())}

    def light_curve(self, oid: str) -> LightCurve:
        """Light curve of one object as data frames.

        Raises
        ------
        KeyError
            If the batch has no object of that name.
        """
        if oid not in self._rows:
            raise KeyError(f"there is no object {oid} among the {len(self)} of this batch")
        row = self._rows[oid]

        def part(rows: pa.Table, offsets: NDArray[np.int64]) -> pd.DataFrame:
            start, end = offsets[row], offsets[row + 1]
            return rows.slice(start, end - start).to_pandas()

        return LightCurve(
            part(self.detections, self.detection_offsets), part(self.non_detections, self.non_detection_offsets)
        )

    def to_arrow(self) -> dict[str, pa.Table]:
        """Tables ``detections``, ``non_detections``, ``objects`` and ``magstats``, from which it can be made again."""
        return {
            "detections": self.detections,
            "non_detections": self.non_detections,
            "objects": self.objects,
            "magstats": self.magstats,
        }

    @classmethod
    def from_arrow(cls, tables: Mapping[str, pa.Table]) -> LightCurveBatch:
        """Make a batch from what :meth:`to_arrow` gave."""
        oid = tables["objects"]["oid"].combine_chunks()

        def offsets(rows: pa.Table) -> NDArray[np.int64]:
            groups = pc.index_in(rows["oid"], value_set=oid).to_numpy()
            return np.searchsorted(groups, np.arange(len(oid) + 1)).astype(np.int64)

        detections, non_detections = tables["detections"], tables["non_detections"]
        return cls(
            oid,
            detections,
            offsets(detections),
            non_detections,
            offsets(non_detections),
            tables["objects"],
            tables["magstats"],
        )
