"""``alertbeam catalog serve``: catalogues over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from pipelines.usage import DONE, StoppedError, UsageError
from xmatch.layout import CatalogError
from xmatch.service_layouts import FORMATS
from xmatch.service_requests import ServiceSettings

_DEFAULTS = ServiceSettings()
_EPILOG = """\
example:
  alertbeam catalog serve allwise/ gaia/ --port 8000
  curl 'http://127.0.0.1:8000/v1/conesearch?ra=190.38&dec=26.04&radius=10&getMetadata=true'

Documentation of the interface: /docs and /openapi.json; state: /health; counts for Prometheus: /metrics.
SIGTERM and Ctrl-C stop the service after the requests that it is at.
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    """Add the action `serve` to the actions of ``alertbeam catalog``."""
    parser = actions.add_parser(
        "serve",
        help="answer cone searches over HTTP as CrossWave does",
        description="Answer cone searches and look-ups of metadata over HTTP, with CrossWave's interface.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="catalogue folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port, 0 for a free one (default 8000)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--threads",
        type=int,
        default=_DEFAULTS.threads,
        metavar="N",
        help=f"large searches at the same time in a process (default {_DEFAULTS.threads})",
    )
    parser.add_argument(
        "--json-format",
        choices=FORMATS,
        default=_DEFAULTS.json_format,
        help="JSON under /v1: CrossWave's present one (default), or the upper-case one that ALeRCE's published client "
        "reads, which is always under /upper/v1",
    )
    parser.add_argument(
        "--default-catalog",
        default=_DEFAULTS.default_catalog,
        metavar="NAME",
        help="catalogue of a cone search that names none (default: all of them)",
    )
    parser.add_argument(
        "--max-coordinates",
        type=int,
        default=_DEFAULTS.max_coordinates,
        metavar="N",
        help=f"most coordinates or identifiers in a request (default {_DEFAULTS.max_coordinates})",
    )
    parser.add_argument(
        "--max-matches",
        type=int,
        default=_DEFAULTS.max_matches,
        metavar="N",
        help=f"most sources in an answer (default {_DEFAULTS.max_matches})",
    )
    parser.add_argument(
        "--max-body",
        type=int,
        default=_DEFAULTS.max_body_bytes,
        metavar="BYTES",
        help=f"largest body of a request (default {_DEFAULTS.max_body_bytes})",
    )
    parser.add_argument(
        "--max-radius",
        type=float,
        default=_DEFAULTS.max_radius_arcsec,
        metavar="ARCSEC",
        help=f"largest radius (default {_DEFAULTS.max_radius_arcsec:g})",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="web page that may ask, besides the service's own; repeatable, '*' for any",
    )
    parser.add_argument(
        "--index-dir", metavar="DIR", help="folder of the identifier indexes (default: in each catalogue)"
    )
    parser.add_argument(
        "--shutdown-seconds",
        type=int,
        default=_DEFAULTS.shutdown_seconds,
        metavar="N",
        help=f"time that running requests have once the service stops (default {_DEFAULTS.shutdown_seconds})",
    )
    parser.set_defaults(command=run_catalog_serve)


def run_catalog_serve(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Serve catalogues until a signal comes."""
    # FastAPI takes most of a second, which the other actions on catalogues need not wait for.
    from xmatch.service import serve

    if options.workers < 1:
        raise UsageError("--workers must be at least 1")
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: give a number from 0 to 65535")
    settings = ServiceSettings(
        json_format=options.json_format,
        default_catalog=options.default_catalog,
        max_coordinates=options.max_coordinates,
        max_matches=options.max_matches,
        max_body_bytes=options.max_body,
        max_radius_arcsec=options.max_radius,
        allowed_origins=tuple(options.allow_origin),
        threads=options.threads,
        shutdown_seconds=options.shutdown_seconds,
    )
    try:
        serve(
            options.folders,
            settings,
            host=options.host,
            port=options.port,
            workers=options.workers,
            index_folder=options.index_dir,
            report=_report,
        )
    except (CatalogError, ValueError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error
    except KeyboardInterrupt:
        # uvicorn has finished its requests and passes the signal on.
        _report("stopped")
    return DONE


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
