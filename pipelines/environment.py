"""The environment's variables, read here and in :mod:`pipelines.stream_environment`, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from database.settings import database_url
from pipelines import __version__
from pipelines.usage import UsageError
from pipelines.variables import number_of, switch_of, text_of
from xmatch.settings import CatalogSetting, parse_catalog_setting

# What FEATURE_VERSION is when nothing sets it.
UNSET_VERSION: Final = "dev"
DATABASE_VARIABLES: Final = ("DB_ENGINE", "ENGINE", "DB_HOST", "DB_USER", "DB_PASSWORD", "DB_PORT", "DB_NAME")


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
        URL made of ``DB_ENGINE`` (or ``ENGINE``), ``DB_HOST``, ``DB_USER``, ``DB_PASSWORD``, ``DB_PORT``, ``DB_NAME``;
        never shown, for it holds the password.
    catalogs : tuple of CatalogSetting
        Of ``CATALOG``; empty if it is not set.
    step : StepMetadata
        ``STEP_ID``, ``STEP_NAME``, ``STEP_VERSION``, ``STEP_COMMENTS``.
    use_xwave : bool or None
        ``USE_XWAVE``; None if it is blank.
    retries : int or None
        ``RETRIES`` of a catalogue service; None if it is blank.
    retry_interval_s : float or None
        ``RETRY_INTERVAL``, seconds; None if it is blank.
    feature_version : str
        ``FEATURE_VERSION`` of the features that are classified.
    """

    database: str | None = field(repr=False)
    catalogs: tuple[CatalogSetting, ...]
    step: StepMetadata
    use_xwave: bool | None = None
    retries: int | None = None
    retry_interval_s: float | None = None
    feature_version: str = UNSET_VERSION


def read_environment(variables: Mapping[str, str], step: str = "xmatch") -> Environment:
    """Read the variables.

    Parameters
    ----------
    variables : mapping of str to str
    step : str
        What ``STEP_ID`` and ``STEP_NAME`` are if they are not set.

    Raises
    ------
    UsageError
        If one of them cannot be understood; the message names it.
    """
    try:
        return _read(variables, step)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read(variables: Mapping[str, str], step: str) -> Environment:
    catalog = text_of(variables, "CATALOG")
    return Environment(
        database=database_url({name: variables[name] for name in DATABASE_VARIABLES if name in variables}),
        catalogs=tuple(parse_catalog_setting(catalog)) if catalog else (),
        step=StepMetadata(
            step_id=variables.get("STEP_ID") or step,
            name=variables.get("STEP_NAME") or step,
            version=variables.get("STEP_VERSION") or __version__,
            comments=variables.get("STEP_COMMENTS", ""),
        ),
        use_xwave=switch_of(variables, "USE_XWAVE"),
        retries=number_of(variables, "RETRIES", int),
        retry_interval_s=number_of(variables, "RETRY_INTERVAL", float),
        feature_version=variables.get("FEATURE_VERSION") or UNSET_VERSION,
    )
