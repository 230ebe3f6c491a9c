"""Light curve of one object in the forms that an astronomer works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from lightcurves.batch import LightCurveBatch
from run_folder.formats import to_astropy, to_pandas

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.timeseries import TimeSeries
    from matplotlib.axes import Axes

Magnitudes = Literal["apparent", "difference"]
BANDS: Final = {"g": 1, "r": 2, "i": 3}
# AB magnitude of 1 µJy (Oke & Gunn 1983: -2.5 log f - 48.60, f in erg/s/cm²/Hz).
_ZERO_POINT_UJY: Final = 23.9
_MAGNITUDE_COLUMNS: Final = {"apparent": ("magpsf_corr", "sigmapsf_corr_ext"), "difference": ("magpsf", "sigmapsf")}
# 100 stands for "fainter than nothing" in corrected magnitudes and their errors.
_NO_MAGNITUDE: Final = 90.0


@dataclass(frozen=True, eq=False, repr=False)
class ObjectLightCurve:
    """Light curve of one object.

    Attributes
    ----------
    oid : str
    detections, non_detections : pandas.DataFrame
        By time, columns :data:`lightcurves.columns.DETECTION` and ``NON_DETECTION``: ``mjd`` (days), ``fid`` (1 g, 2 r,
        3 i), ``magpsf``, ``sigmapsf``, ``magpsf_corr``, ``sigmapsf_corr_ext``, ``diffmaglim`` (mag), ….
    statistics : dict
        The object's row of table ``object``: mean position, counts, colours.
    """

    oid: str
    detections: pd.DataFrame
    non_detections: pd.DataFrame
    statistics: dict[str, Any]

    @staticmethod
    def of(batch: LightCurveBatch) -> ObjectLightCurve:
        """Light curve of a batch's first object."""
        detections, non_detections = (
            to_pandas(rows.slice(0, int(offsets[1])))
            for rows, offsets in (
                (batch.detections, batch.detection_offsets),
                (batch.non_detections, batch.non_detection_offsets),
            )
        )
        statistics = batch.objects.slice(0, 1).to_pylist()[0]
        return ObjectLightCurve(batch.oid[0].as_py(), detections, non_detections, statistics)

    @property
    def magnitudes(self) -> Magnitudes:
        """What is drawn if nothing is asked for: apparent magnitudes if the reference image shows the source."""
        return "apparent" if self.statistics["corrected"] else "difference"

    def points(
        self, band: str | None = None, magnitudes: Magnitudes | None = None, *, forced: bool = False
    ) -> pd.DataFrame:
        """Measured points by time, a few columns of each.

        Parameters
        ----------
        band : {"g", "r", "i"}, optional
            All bands if it is not given.
        magnitudes : {"apparent", "difference"}, optional
            Of the source, or of the difference image; :attr:`magnitudes` if it is not given.
        forced : bool
            Whether forced photometry counts, which measures also the exposures of detections.

        Returns
        -------
        pandas.DataFrame
            ``mjd`` (days, UTC), ``band``, ``mag``, ``mag_err`` (mag, AB), ``flux``, ``flux_err`` (µJy), ``forced``. A
            difference that is fainter than the reference has a negative flux. Points without a magnitude are left out.

        Raises
        ------
        ValueError
            If the band or the kind of magnitudes is none of those.
        """
        magnitudes = self._kind(magnitudes)
        if band is not None and band not in BANDS:
            raise ValueError(f"band {band!r} is not one of {', '.join(BANDS)}")
        rows = self.detections if band is None else self.detections[self.detections["fid"] == BANDS[band]]
        if not forced:
            rows = rows[~rows["forced"].fillna(False).astype(bool)]
        magnitude, error = (rows[name].to_numpy(np.float64) for name in _MAGNITUDE_COLUMNS[magnitudes])
        flux = 10.0 ** (0.4 * (_ZERO_POINT_UJY - magnitude))
        flux_error = 0.4 * np.log(10.0) * flux * error
        if magnitudes == "difference":
            flux = np.where(rows["isdiffpos"].to_numpy(np.float64) < 0, -flux, flux)
        names = {fid: name for name, fid in BANDS.items()}
        points = pd.DataFrame(
            {
                "mjd": rows["mjd"].to_numpy(),
                "band": rows["fid"].map(names).to_numpy(),
                "mag": magnitude,
                "mag_err": error,
                "flux": flux,
                "flux_err": flux_error,
                "forced": rows["forced"].fillna(False).astype(bool).to_numpy(),
            }
        )
        usable = (np.abs(magnitude) < _NO_MAGNITUDE) & (error < _NO_MAGNITUDE)
        return points[usable].reset_index(drop=True)

    def fold(
        self,
        period_days: float,
        band: str | None = None,
        magnitudes: Magnitudes | None = None,
        *,
        epoch_mjd: float | None = None,
        forced: bool = False,
    ) -> pd.DataFrame:
        """Points by phase: :meth:`points` with the columns ``phase`` (0 to 1) and ``cycle``.

        Parameters
        ----------
        period_days : float
        band, magnitudes, forced
            As of :meth:`points`.
        epoch_mjd : float, optional
            Time of phase 0; that of the object's first detection if it is not given.

        Raises
        ------
        ValueError
            If the period is not positive.
        """
        if not 0 < period_days < np.inf:
            raise ValueError(f"the period must be a positive number of days, not {period_days}")
        points = self.points(band, magnitudes, forced=forced)
        epoch = float(self.detections["mjd"].min()) if epoch_mjd is None else epoch_mjd
        cycles = (points["mjd"] - epoch) / period_days
        whole = np.floor(cycles)
        folded = points.assign(phase=cycles - whole, cycle=whole.astype(np.int64))
        return folded.sort_values(["phase", "mjd"], kind="stable", ignore_index=True)

    def to_table(self) -> Table:
        """All detections as an astropy table with units."""
        table = to_astropy(pa.Table.from_pandas(self.detections, preserve_index=False))
        table.meta["oid"] = self.oid
        return table

    def to_timeseries(
        self, band: str | None = None, magnitudes: Magnitudes | None = None, *, forced: bool = False
    ) -> TimeSeries:
        """Give :meth:`points` as ``astropy.timeseries.TimeSeries``: ``time`` (MJD, UTC), fluxes in µJy, magnitudes."""
        from astropy import units
        from astropy.timeseries import TimeSeries

        points = self.points(band, magnitudes, forced=forced)
        data = {
            "flux": points["flux"].to_numpy() * units.uJy,
            "flux_err": points["flux_err"].to_numpy() * units.uJy,
            "mag": points["mag"].to_numpy() * units.mag,
            "mag_err": points["mag_err"].to_numpy() * units.mag,
            "band": points["band"].to_numpy().astype(str),
        }
        return TimeSeries(time=_time(points), data=data, meta={"oid": self.oid})

    def to_lightkurve_columns(
        self, band: str, magnitudes: Magnitudes | None = None, *, forced: bool = False
    ) -> dict[str, Any]:
        """Time and fluxes of one band: ``lightkurve.LightCurve(**columns)`` takes them."""
        from astropy import units

        points = self.points(band, magnitudes, forced=forced)
        fluxes = {name: points[name].to_numpy() * units.uJy for name in ("flux", "flux_err")}
        return {"time": _time(points), **fluxes}

    def plot(
        self, ax: Axes | None = None, *, period_days: float | None = None, magnitudes: Magnitudes | None = None
    ) -> Axes:
        """Draw the light curve by time, or folded if a period is given; give the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure if it is not given.
        period_days : float, optional
        magnitudes : {"apparent", "difference"}, optional
            :attr:`magnitudes` if it is not given.
        """
        from lightcurves.plot import draw_on

        kind = self._kind(magnitudes)
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots(figsize=(8, 4), layout="constrained")[1]
        draw_on(ax, self.detections, self.non_detections, apparent=kind == "apparent", period_days=period_days)
        ax.set_title(self.oid)
        return ax

    def _kind(self, magnitudes: Magnitudes | None) -> Magnitudes:
        if magnitudes is None:
            return self.magnitudes
        if magnitudes not in get_args(Magnitudes):
            raise ValueError(f"magnitudes {magnitudes!r} is not one of {', '.join(get_args(Magnitudes))}")
        return magnitudes

    def __repr__(self) -> str:
        forced = self.detections["forced"].fillna(False).astype(bool)
        counts = self.detections["fid"][~forced].value_counts()
        bands = ", ".join(f"{counts[fid]} in {band}" for band, fid in BANDS.items() if fid in counts)
        first, last = self.detections["mjd"].min(), self.detections["mjd"].max()
        found = f"{(~forced).sum()} detections ({bands}), {forced.sum()} forced, {len(self.non_detections)} limits"
        return f"<light curve of {self.oid}: {found}, MJD {first:.2f} to {last:.2f}>"


def _time(points: pd.DataFrame) -> Any:
    from astropy.time import Time

    return Time(points["mjd"].to_numpy(np.float64), format="mjd", scale="utc")
