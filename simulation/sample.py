"""One call for a folder of sample data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from simulation.night import SCHEMA_MIX, NightSummary, night_objects, simulate_night
from simulation.sky import CatalogSummary, simulate_catalog

CATALOG_NAME = "allwise_sample.csv"


@dataclass(frozen=True)
class SampleSummary:
    """What `simulate_sample` wrote."""

    night: NightSummary
    catalog: CatalogSummary


def simulate_sample(
    folder: Path,
    *,
    alerts: int = 1000,
    seed: int = 1,
    date: str = "20260101",
    field_sources: int = 10_000,
    catalog_name: str = CATALOG_NAME,
    schema_mix: Mapping[str, float] = SCHEMA_MIX,
    bad_members: int = 0,
    repeat_fraction: float = 0.2,
    private_fraction: float = 0.0,
    cutouts: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Write a night, its catalogue and the true counterparts into one folder.

    Parameters
    ----------
    folder
        Gets ``ztf_public_YYYYMMDD.tar.gz``, ``truth.csv`` and the catalogue.
    field_sources
        Catalogue sources that belong to no alert.
    catalog_name
        File name of the catalogue; its suffix (``.csv``, ``.csv.gz``, ``.parquet``) chooses the format.
    alerts, seed, date, schema_mix, bad_members, repeat_fraction, private_fraction, cutouts, progress
        See `simulation.night.simulate_night`.

    Returns
    -------
    SampleSummary

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    catalog = simulate_catalog(
        Path(folder) / catalog_name,
        objects=night_objects(alerts, repeat_fraction),
        field_sources=field_sources,
        seed=seed,
    )
    night = simulate_night(
        folder,
        alerts=alerts,
        seed=seed,
        date=date,
        catalog=catalog.path,
        schema_mix=schema_mix,
        bad_members=bad_members,
        repeat_fraction=repeat_fraction,
        private_fraction=private_fraction,
        cutouts=cutouts,
        progress=progress,
    )
    return SampleSummary(night, catalog)
