"""``alertbeam catalog query``: the sources of a catalogue around a position."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pipelines.usage import DONE, UsageError
from xmatch.catalog import Catalog, open_catalog
from xmatch.layout import CatalogError
from xmatch.matcher import k_nearest

_WIDTH_OF_A_FILE: Final = 250
_UNBOUNDED: Final = 100_000
_GAP: Final = 2
_EPILOG: Final = """\
examples:
  alertbeam catalog query allwise/ 190.38112 26.04266
  alertbeam catalog query allwise/ 12:41:31.47 +26:02:33.6 --radius 30 -k 3
  alertbeam catalog query allwise/ 12h41m31.47s -33d02m33.6s --json
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    """Add the action and its options to those of ``alertbeam catalog``."""
    parser = actions.add_parser(
        "query",
        help="print the sources around a position",
        description="Print the sources of a catalogue around a position, nearest first.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse would take -33:02:33.6 for an option: to it, only plain numbers are negative numbers.
    parser._negative_number_matcher = re.compile(r"-[\d.]")
    parser.add_argument("folder", metavar="DIR", help="folder of the catalogue")
    parser.add_argument(
        "ra", type=_right_ascension, metavar="RA", help="degrees, or hours as 12:41:31.47, 12h41m31.47s"
    )
    parser.add_argument("dec", type=_declination, metavar="DEC", help="degrees, or as +26:02:33.6, 26d02m33.6s")
    parser.add_argument("--radius", type=float, default=5.0, metavar="ARCSEC", help="radius of the search (default 5)")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="at most so many sources (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run_catalog_query)


def run_catalog_query(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Print the sources around a position."""
    try:
        catalog = open_catalog(options.folder)
        neighbours = k_nearest(catalog, [options.ra], [options.dec], options.radius, options.k)
    except (CatalogError, ValueError) as error:
        raise UsageError(str(error)) from error
    columns = catalog.take(neighbours.rows)
    separations = neighbours.separation_arcsec.tolist()
    units = {column.name: column.unit for column in catalog.fields if column.name in columns.column_names}
    if options.json:
        sources = [
            {"separation_arcsec": separation, **source}
            for separation, source in zip(separations, columns.to_pylist(), strict=True)
        ]
        answer = {**_question(catalog, options), "units": units, "sources": sources}
        print(json.dumps(answer, ensure_ascii=False))
        return DONE
    where = f"{options.radius:g}″ of {options.ra:.7f} {options.dec:+.7f}"
    title = f"{catalog.name} {catalog.version}".strip()
    count = len(separations)
    number = f"the {count} nearest" if count == options.k else f"{count or 'no'}"
    print(f"{title}: {number} source{'' if count == 1 else 's'} within {where}")
    if separations:
        _print_sources(separations, columns, units)
    return DONE


def _question(catalog: Catalog, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "catalog": catalog.name,
        "version": catalog.version,
        "ra": options.ra,
        "dec": options.dec,
        "radius_arcsec": options.radius,
    }


def _print_sources(separations: Sequence[float], columns: pa.Table, units: Mapping[str, str | None]) -> None:
    """Print a line for each source, or a column for each where the lines would be too long for the terminal."""
    heads = ["separation\narcsec", *(f"{name}\n{units[name] or ''}" for name in columns.column_names)]
    texts = [[f"{separation:.4f}" for separation in separations]]
    texts += [[_text(value) for value in column.to_pylist()] for column in columns.columns]
    # Designations such as [VV2006] J0042 are no markup.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, markup=False, emoji=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head, kind in zip(heads, [pa.float64(), *columns.schema.types], strict=True):
        table.add_column(head, justify="left" if pa.types.is_string(kind) else "right", no_wrap=True)
    for row in zip(*texts, strict=True):
        table.add_row(*row)
    if Measurement.get(console, console.options.update(width=_UNBOUNDED), table).maximum <= console.width:
        console.print(table)
    else:
        _print_upright(console, [head.replace("\n", " ").strip() for head in heads], texts)


def _print_upright(console: Console, heads: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    """Print as many sources side by side as fit, then the next ones below."""
    room = console.width - max(map(len, heads)) - _GAP
    at_once = max(1, room // (max(len(text) for row in texts for text in row) + _GAP))
    for begin in range(0, len(texts[0]), at_once):
        table = Table(box=None, padding=(0, _GAP, 0, 0), show_header=False)
        for head, row in zip(heads, texts, strict=True):
            table.add_row(head, *row[begin : begin + at_once])
        console.print()
        console.print(table)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _right_ascension(text: str) -> float:
    return _angle(text, "hourangle")


def _declination(text: str) -> float:
    angle = _angle(text, "deg")
    if abs(angle) > 90.0:
        raise argparse.ArgumentTypeError(f"a declination lies between -90 and 90 degrees, which {text} does not")
    return angle


def _angle(text: str, sexagesimal_unit: str) -> float:
    """Degrees of a number of degrees, or of a sexagesimal angle: in `sexagesimal_unit` unless it names its own."""
    try:
        angle = float(text)
    except ValueError:
        # Slow to import, and seldom needed.
        from astropy.coordinates import Angle

        try:
            angle = float(Angle(text, sexagesimal_unit).deg)
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not an angle: {error}") from error
    if not math.isfinite(angle):
        raise argparse.ArgumentTypeError(f"{text} is not an angle")
    return angle
