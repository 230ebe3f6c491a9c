"""How many matches chance alone would give: the same positions, displaced, matched with the same catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from report.crossmatches import Crossmatches, Positions
from xmatch.catalog import CatalogError, open_catalog
from xmatch.matcher import nearest

SHIFT_ARCSEC: Final = 60.0


@dataclass(frozen=True)
class RandomLevel:
    """Matches by chance with one catalogue.

    Attributes
    ----------
    trials, matches : int
        Displaced positions, and those of them that have a match.
    reason : str
        Why there are no trials; empty if there are.
    """

    trials: int
    matches: int
    reason: str = ""

    @property
    def per_alert(self) -> float:
        """Expected matches by chance of an alert; NaN without trials."""
        return self.matches / self.trials if self.trials else float("nan")


def random_level(positions: Positions, catalog: Mapping[str, Any] | None, radius_arcsec: float) -> RandomLevel:
    """Displace positions by 60 arcsec to the north, south, east and west, and match them.

    Parameters
    ----------
    positions : Positions
    catalog : Mapping
        ``path`` of the local catalogue, as in the run's settings; ``name`` and ``version`` must be those that the run
        used, where both are known.
    radius_arcsec : float
        Of the run.
    """
    if not len(positions):
        return RandomLevel(0, 0, "there are no positions")
    if catalog is None or not catalog.get("path"):
        return RandomLevel(0, 0, "the run used a remote service, or its settings name no local catalogue")
    try:
        opened = open_catalog(str(catalog["path"]))
    except (CatalogError, OSError) as error:
        return RandomLevel(0, 0, str(error).rstrip("."))
    created = catalog.get("created")
    if created and created != opened.created:
        return RandomLevel(0, 0, f"{catalog['path']} was built again since the run, on {opened.created}")
    step = SHIFT_ARCSEC / 3600.0
    trials = matches = 0
    for east, north in ((0.0, step), (0.0, -step), (step, 0.0), (-step, 0.0)):
        dec = positions.dec + north
        inside = np.abs(dec) < 89.9
        ra = positions.ra[inside] + east / np.cos(np.radians(positions.dec[inside]))
        rows, _ = nearest(opened, ra, dec[inside], radius_arcsec)
        trials += int(inside.sum())
        matches += int((rows >= 0).sum())
    return RandomLevel(trials, matches, "" if trials else "all positions are at a pole")


def random_levels(crossmatches: Crossmatches, settings: Mapping[str, Any]) -> dict[str, RandomLevel]:
    """Level of each catalogue of the crossmatches, by its name."""
    named = {str(catalog.get("name")): catalog for catalog in settings.get("catalogs") or ()}
    return {
        name: random_level(statistics.sample, named.get(name), crossmatches.radius_arcsec)
        for name, statistics in crossmatches.catalogs.items()
    }
