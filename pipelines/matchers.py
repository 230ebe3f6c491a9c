"""The options that choose how catalogues are searched, and the matchers made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pipelines.environment import Environment
from pipelines.usage import UsageError
from xmatch.cache import CachedMatcher
from xmatch.catalog import Catalog, open_catalog
from xmatch.cds import CDS_TABLES, CDS_URL, CdsMatcher
from xmatch.crosswave import CrossWaveMatcher
from xmatch.http import HttpSettings
from xmatch.layout import CatalogError
from xmatch.matcher import LocalMatcher, Matcher, validate_matchers
from xmatch.settings import CatalogSetting

LOCAL: Final = "local"
CDS: Final = "cds"
CROSSWAVE: Final = "crosswave"
MATCHERS: Final = (LOCAL, CDS, CROSSWAVE)
DEFAULT_RADIUS_ARCSEC: Final = 1.0
MATCHERS_HELP: Final = f"""\
catalogues:
  --matcher local        catalogues on disk, built by 'alertbeam catalog build': --catalog DIR. The fastest way
                         by far (millions of positions a second), and the only one that needs no network
  --matcher cds          the X-Match service of CDS, Strasbourg: --catalog {", ".join(CDS_TABLES)}, or a table by
                         VizieR's name, e.g. --catalog II/328/allwise
  --matcher crosswave    a CrossWave service ('alertbeam catalog serve' is one): --catalog allwise --service-url URL
A position that a service gives no trustworthy answer for goes to the dead letters, never to "no match"; name the folder
dead_letters of the run as INPUT of another run to try again.
CATALOG (JSON or YAML, one object or a list, with the keys name, columns, service_url, selection, radius) says the same
for each catalogue; USE_XWAVE true stands for --matcher crosswave, false or blank for --matcher cds unless a folder is
named; RETRIES and RETRY_INTERVAL (seconds) are those of a service (3 and 1). Options come before variables.
"""


def add_matcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    defaults = HttpSettings()
    parser.add_argument(
        "--catalog",
        action="append",
        default=[],
        metavar="DIR",
        help="catalogue folder, or the name of a service's catalogue; repeatable",
    )
    parser.add_argument(
        "--matcher", choices=MATCHERS, help="where catalogues are searched (default local, or as USE_XWAVE says)"
    )
    parser.add_argument(
        "--radius",
        type=float,
        metavar="ARCSEC",
        help=f"largest separation (default {DEFAULT_RADIUS_ARCSEC:g}, or as CATALOG says)",
    )
    parser.add_argument("--service-url", metavar="URL", help=f"of the service (default for cds: {CDS_URL})")
    parser.add_argument(
        "--requests-at-once",
        type=int,
        default=defaults.requests_at_once,
        metavar="N",
        help=f"requests under way to a service at most (default {defaults.requests_at_once})",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=defaults.timeout_s,
        metavar="SECONDS",
        help=f"for a whole answer of a service (default {defaults.timeout_s:g})",
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="keep the answers of services in this folder, and ask only for what is not there"
    )


def make_matchers(options: argparse.Namespace, environment: Environment) -> list[Matcher]:
    """Make the matchers that the options and variables ask for, and check them; no service is asked.

    Raises
    ------
    UsageError
        With one sentence that says what to change.
    """
    kind = _kind(options, environment)
    try:
        matchers: list[Matcher] = (
            [*_local_matchers(options, environment)] if kind == LOCAL else _remote_matchers(kind, options, environment)
        )
        validate_matchers(matchers)
    except (CatalogError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return matchers


def _kind(options: argparse.Namespace, environment: Environment) -> str:
    if options.matcher:
        return options.matcher
    if any(Path(name).is_dir() for name in options.catalog):
        return LOCAL
    if environment.use_xwave is None:
        return CDS if environment.catalogs and not options.catalog else LOCAL
    return CROSSWAVE if environment.use_xwave else CDS


def _local_matchers(options: argparse.Namespace, environment: Environment) -> list[LocalMatcher]:
    for option, value in (("--service-url", options.service_url), ("--cache", options.cache)):
        if value:
            raise UsageError(f"{option} is for a catalogue service; name it with --matcher cds or --matcher crosswave")
    if not options.catalog:
        raise UsageError(
            "name a catalogue with --catalog DIR; 'alertbeam catalog build' makes one "
            "(or ask a service: --matcher cds --catalog allwise)"
        )
    catalogs = [open_catalog(folder) for folder in options.catalog]
    if not environment.catalogs:
        radius = _radius(options, None)
        return [LocalMatcher(catalog, radius, _local_columns(catalog)) for catalog in catalogs]
    by_name = {catalog.name: catalog for catalog in catalogs}
    matchers = []
    for setting in environment.catalogs:
        if setting.name not in by_name:
            raise UsageError(
                f"CATALOG names {setting.name!r}, but no --catalog DIR has that name ({', '.join(by_name)})"
            )
        catalog = by_name[setting.name]
        matchers.append(LocalMatcher(catalog, _radius(options, setting), _local_columns(catalog, setting.columns)))
    return matchers


def _local_columns(catalog: Catalog, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns wanted, all by default, the identifier first: without it a match names nothing."""
    identifier = next((column.name for column in catalog.fields if column.file == "identifiers.npy"), None)
    if identifier is None:
        raise UsageError(
            f"catalogue {catalog.name} was built without its identifier; name it in --columns of the build"
        )
    return tuple(dict.fromkeys((identifier, *(wanted or catalog.columns))))


def _remote_matchers(kind: str, options: argparse.Namespace, environment: Environment) -> list[Matcher]:
    http = HttpSettings(requests_at_once=options.requests_at_once, timeout_s=options.timeout)
    if environment.retries is not None:
        http = replace(http, retries=environment.retries)
    if environment.retry_interval_s is not None:
        http = replace(http, retry_interval_s=environment.retry_interval_s)
    matchers: list[Matcher] = []
    for setting in _remote_settings(kind, options, environment):
        url = options.service_url or setting.service_url
        radius, columns = _radius(options, setting), setting.columns or None
        matcher: CdsMatcher | CrossWaveMatcher
        if kind == CDS:
            matcher = CdsMatcher(setting.name, radius, columns, options.service_url or CDS_URL, http)
        elif url:
            matcher = CrossWaveMatcher(url, setting.name, radius, columns, setting.selection or 1, http=http)
        else:
            raise UsageError(
                f"say where the CrossWave service of {setting.name} is: --service-url URL, or service_url in CATALOG"
            )
        matchers.append(
            CachedMatcher(matcher, Path(options.cache).expanduser().absolute()) if options.cache else matcher
        )
    return matchers


def _remote_settings(kind: str, options: argparse.Namespace, environment: Environment) -> list[CatalogSetting]:
    """Catalogues to ask a service for: those of --catalog, or else all of CATALOG."""
    by_name = {setting.name: setting for setting in environment.catalogs}
    if not options.catalog:
        if not by_name:
            raise UsageError(f"name a catalogue of the service: --matcher {kind} --catalog allwise")
        return list(environment.catalogs)
    for name in options.catalog:
        if name.endswith("/") or (Path(name) / "manifest.json").is_file():
            raise UsageError(f"--catalog {name} is a folder; --matcher {kind} wants a name, such as allwise")
        if by_name and name not in by_name:
            raise UsageError(f"--catalog {name} is not among the catalogues of CATALOG ({', '.join(by_name)})")
    return [by_name.get(name, CatalogSetting(name)) for name in options.catalog]


def _radius(options: argparse.Namespace, setting: CatalogSetting | None) -> float:
    if options.radius is not None:
        return options.radius
    return (setting.radius_arcsec if setting else None) or DEFAULT_RADIUS_ARCSEC
