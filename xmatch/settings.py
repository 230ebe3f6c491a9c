"""Catalogue settings as ALeRCE's crossmatch step has them: the value of `CATALOG`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_KEYS = ("name", "columns", "service_url", "selection", "radius")


@dataclass(frozen=True)
class CatalogSetting:
    """Setting of one catalogue.

    Attributes
    ----------
    name : str
    columns : tuple of str
        Columns wanted; empty for all.
    service_url : str or None
        Where the CrossWave service is; None if blank.
    selection : int or None
        Number of matches per position asked of CrossWave; None if blank.
    radius_arcsec : float or None
        Largest separation in arcseconds (key `radius`); None if blank.
    """

    name: str
    columns: tuple[str, ...] = ()
    service_url: str | None = None
    selection: int | None = None
    radius_arcsec: float | None = None


def parse_catalog_setting(value: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[CatalogSetting]:
    """Read the setting of one catalogue or a list of them, given as objects or as JSON or YAML text.

    Raises
    ------
    ValueError
        With one sentence that names the key at fault.
    """
    parsed = _parse_text(value) if isinstance(value, str) else value
    entries = [parsed] if isinstance(parsed, Mapping) else parsed
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ValueError("CATALOG must be one catalogue or a list of catalogues, each with the keys name, columns.")
    settings = [_parse_entry(entry) for entry in entries]
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"CATALOG names {name} twice; give each catalogue a name of its own.")
    return settings


def _parse_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"CATALOG is neither JSON nor YAML: {' '.join(str(error).split())}.") from error


def _parse_entry(entry: Any) -> CatalogSetting:
    if not isinstance(entry, Mapping):
        raise ValueError(f"CATALOG must hold catalogues with the keys {', '.join(_KEYS)}, not {entry!r}.")
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise ValueError(f"CATALOG has the unknown key {unknown[0]!r}; the keys are: {', '.join(_KEYS)}.")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("CATALOG: name is required and must be text.")
    return CatalogSetting(
        name=name.strip(),
        columns=_parse_columns(name, entry.get("columns")),
        service_url=_parse_url(name, entry.get("service_url")),
        selection=_parse_selection(name, entry.get("selection")),
        radius_arcsec=_parse_radius(name, entry.get("radius")),
    )


def _parse_columns(name: str, columns: Any) -> tuple[str, ...]:
    if columns is None or columns == "":
        return ()
    if not isinstance(columns, list | tuple) or not all(isinstance(column, str) and column for column in columns):
        raise ValueError(f"CATALOG {name}: columns must be a list of column names, not {columns!r}.")
    return tuple(columns)


def _parse_url(name: str, url: Any) -> str | None:
    if url is not None and not isinstance(url, str):
        raise ValueError(f"CATALOG {name}: service_url must be text, not {url!r}.")
    return (url or "").strip() or None


def _parse_selection(name: str, selection: Any) -> int | None:
    if selection is None or selection == "":
        return None
    text = str(selection).strip()
    if isinstance(selection, bool | float) or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CATALOG {name}: selection must be a positive integer, not {selection!r}.")
    return int(text)


def _parse_radius(name: str, radius: Any) -> float | None:
    if radius is None or radius == "":
        return None
    try:
        value = math.nan if isinstance(radius, bool) else float(radius)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ValueError(f"CATALOG {name}: radius must be a positive number of arcseconds, not {radius!r}.")
    return value
