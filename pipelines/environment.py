"""The environment's variables, read here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from database.settings import database_url
from pipelines import __version__
from pipelines.usage import UsageError
from xmatch.settings import CatalogSetting, parse_catalog_setting


@dataclass(frozen=True)
class StepMetadata:
    """Row of ALeRCE's table ``step``."""

    step_id: str
    name: str
    version: str
    comments: str


@dataclass(frozen=True)
class Environment:
    """What the variables of ALeRCE's steps say.

    Attributes
    ----------
    database : str or None
        URL made of ``DB_ENGINE`` (or ``ENGINE``), ``DB_HOST``, ``DB_USER``, ``DB_PASSWORD``, ``DB_PORT``, ``DB_NAME``.
    catalogs : tuple of CatalogSetting
        Of ``CATALOG``; empty if it is not set.
    step : StepMetadata
        ``STEP_ID``, ``STEP_NAME``, ``STEP_VERSION``, ``STEP_COMMENTS``.
    """

    database: str | None
    catalogs: tuple[CatalogSetting, ...]
    step: StepMetadata


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Read the variables.

    Raises
    ------
    UsageError
        If one of them cannot be understood; the message names it.
    """
    try:
        return _read(variables)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read(variables: Mapping[str, str]) -> Environment:
    catalog = variables.get("CATALOG", "").strip()
    return Environment(
        database=database_url(variables),
        catalogs=tuple(parse_catalog_setting(catalog)) if catalog else (),
        step=StepMetadata(
            step_id=variables.get("STEP_ID") or "xmatch",
            name=variables.get("STEP_NAME") or "xmatch",
            version=variables.get("STEP_VERSION") or __version__,
            comments=variables.get("STEP_COMMENTS", ""),
        ),
    )
