"""The project's own sample data: a night of ZTF-like packets, an AllWISE-like catalogue, and the true counterparts."""

from simulation.night import NightSummary, night_objects, simulate_night
from simulation.sample import SampleSummary, simulate_sample
from simulation.sky import CatalogSummary, NearestSource, simulate_catalog

__all__ = [
    "CatalogSummary",
    "NearestSource",
    "NightSummary",
    "SampleSummary",
    "night_objects",
    "simulate_catalog",
    "simulate_night",
    "simulate_sample",
]
