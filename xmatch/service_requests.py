"""What the service is asked for: parameters read and checked, refusals that name the field at fault.

Reasons, order of the checks and keys of the refusals are CrossWave's where it has them. A refusal of one of many
coordinates also has `Index`, its number.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from xmatch.search import MAX_RADIUS_ARCSEC
from xmatch.service_layouts import FORMATS

# CrossWave answers these even when it has not loaded them.
KNOWN_CATALOGS: Final = ("allwise", "vlass", "ztf", "gaia", "erosita")
CONE_CATALOGS: Final = ("allwise", "vlass", "ztf", "gaia")
WITHOUT_METADATA: Final = ("vlass", "ztf")
ALL: Final = "all"

_INTEGER = re.compile(r"[+-]?[0-9]+")
_TRUE, _FALSE = ("true", "1", "t"), ("false", "0", "f", "")
_DANGEROUS = (
    *("union", "select", "drop", "exec", "update", "insert", "delete", "alter", "truncate"),
    *("--", ";", "'", '"', "/*", "*/"),
)


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of the service.

    Attributes
    ----------
    json_format : str
        Form of the JSON under `/v1`: `present` or `upper` (see `xmatch.service_layouts`).
    default_catalog : str
        Catalogue of a cone search that names none.
    max_coordinates : int
        Most coordinates or identifiers in one request.
    max_matches : int
        Most matches in one answer.
    max_body_bytes : int
        Largest body of a request.
    max_radius_arcsec : float
        Largest radius; the search itself allows `xmatch.search.MAX_RADIUS_ARCSEC`.
    allowed_origins : tuple of str
        Values of the header `Origin` (web pages elsewhere) that are answered; `*` is any.
    threads : int
        Searches at the same time in one process.
    shutdown_seconds : int
        How long running requests may take to finish once the service is told to stop.
    """

    json_format: str = "present"
    default_catalog: str = ALL
    max_coordinates: int = 100_000
    max_matches: int = 1_000_000
    max_body_bytes: int = 16 << 20
    max_radius_arcsec: float = 3600.0
    allowed_origins: tuple[str, ...] = ()
    threads: int = 4
    shutdown_seconds: int = 30

    def validate(self) -> None:
        """Raise ValueError with one sentence if a setting cannot be."""
        if self.json_format not in FORMATS:
            raise ValueError(f"json_format must be one of {', '.join(FORMATS)}, not {self.json_format!r}.")
        if not 0.0 < self.max_radius_arcsec <= MAX_RADIUS_ARCSEC:
            raise ValueError(
                f"max_radius_arcsec must be above 0 and at most {MAX_RADIUS_ARCSEC:g}, not {self.max_radius_arcsec}."
            )
        for name in ("max_coordinates", "max_matches", "max_body_bytes", "threads", "shutdown_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


class Refused(Exception):
    """A request that is not answered.

    Parameters
    ----------
    status : int
        HTTP status.
    body : object
        Told as JSON.
    """

    def __init__(self, status: int, body: Any):
        super().__init__(status, body)
        self.status = status
        self.body = body


@dataclass(frozen=True, eq=False)
class ConeRequest:
    """A search of cones around n positions.

    Attributes
    ----------
    ra, dec : float64 [n]
        Degrees, right ascension within [0, 360].
    radius_arcsec : float
    neighbors : int
        Most sources of a position, over all catalogues together.
    catalog : str
        Name as given, in any case, or `all`.
    with_metadata : bool
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    radius_arcsec: float
    neighbors: int
    catalog: str
    with_metadata: bool


@dataclass(frozen=True)
class MetadataRequest:
    """Identifiers whose metadata are wanted, of one catalogue (lower-case name)."""

    identifiers: tuple[str, ...]
    catalog: str


def read_cone(query: Mapping[str, str], settings: ServiceSettings, served: tuple[str, ...]) -> ConeRequest:
    """Parameters of GET conesearch.

    Parameters
    ----------
    query : mapping of str
        As they stand in the URL.
    settings : ServiceSettings
    served : tuple of str
        Lower-case names of the catalogues that there are.

    Raises
    ------
    Refused
        Status 400: the first field that is not a number, in the order ra, dec, radius, nneighbor, getMetadata; then
        the first that is out of range, with the catalogue last.
    """
    ra = _parse_float(query.get("ra", ""), "RA")
    dec = _parse_float(query.get("dec", ""), "Dec")
    radius = _parse_float(query.get("radius", ""), "radius")
    neighbors = _parse_integer(query.get("nneighbor", "1"), "nneighbor")
    with_metadata = _parse_bool(query.get("getMetadata", "false"))
    request = ConeRequest(
        np.array([ra]),
        np.array([dec]),
        radius,
        neighbors,
        query.get("catalog", settings.default_catalog),
        with_metadata,
    )
    _check_cone(request, settings, served, many=False)
    return request


def read_bulk_cone(body: bytes, settings: ServiceSettings, served: tuple[str, ...]) -> ConeRequest:
    """Body of POST bulk-conesearch; raises like `read_cone`, and 413 for too many coordinates."""
    fields = _parse_object(body)
    ra, dec = _numbers(fields.get("ra"), "ra"), _numbers(fields.get("dec"), "dec")
    radius = fields.get("radius")
    if radius is not None and not _is_number(radius):
        raise _wrong_type("radius", radius, "a number")
    neighbors = fields.get("nneighbor")
    if neighbors is not None and (isinstance(neighbors, bool) or not isinstance(neighbors, int)):
        raise _wrong_type("nneighbor", neighbors, "an integer")
    catalog = fields.get("catalog")
    if catalog is not None and not isinstance(catalog, str):
        raise _wrong_type("catalog", catalog, "a string")
    wish = fields.get("getmetadata", False)
    if len(ra) != len(dec):
        raise _out_of_range("Ra and Dec must have the same length", str(len(ra)), "ra")
    if len(ra) == 0:
        raise _out_of_range("Ra and Dec must have at least one element", "0", "ra")
    if len(ra) > settings.max_coordinates:
        raise _too_many(len(ra), settings, "coordinates", "ra")
    request = ConeRequest(
        ra,
        dec,
        float(radius or 0.0),
        neighbors or 1,
        catalog or settings.default_catalog,
        _parse_bool(str(wish) if isinstance(wish, bool | int | str) else repr(wish)),
    )
    _check_cone(request, settings, served, many=True)
    return request


def read_metadata(query: Mapping[str, str], served: tuple[str, ...]) -> MetadataRequest:
    """Parameters of GET metadata.

    Raises
    ------
    Refused
        Status 400 for an unknown catalogue or a suspicious identifier; 500 for catalogues that CrossWave does not
        search, as CrossWave answers them.
    """
    identifier = query.get("id", "")
    _check_identifier(identifier)
    return MetadataRequest((identifier,), _metadata_catalog(query.get("catalog", ""), served))


def read_bulk_metadata(body: bytes, settings: ServiceSettings, served: tuple[str, ...]) -> MetadataRequest:
    """Body of POST bulk-metadata; raises like `read_metadata`, and 413 for too many identifiers."""
    fields = _parse_object(body)
    identifiers = fields.get("ids")
    if identifiers is None:
        identifiers = []
    if not isinstance(identifiers, list):
        raise _wrong_type("ids", identifiers, "a list of strings")
    for index, identifier in enumerate(identifiers):
        if not isinstance(identifier, str):
            raise _wrong_type("ids", identifier, "a string", index)
        _check_identifier(identifier, index)
    if len(identifiers) > settings.max_coordinates:
        raise _too_many(len(identifiers), settings, "identifiers", "ids")
    catalog = fields.get("catalog")
    if catalog is not None and not isinstance(catalog, str):
        raise _wrong_type("catalog", catalog, "a string")
    return MetadataRequest(tuple(identifiers), _metadata_catalog(catalog or "", served))


def too_large(limit_bytes: int) -> Refused:
    """Refusal of a body beyond the limit."""
    reason = f"The body must not be larger than {limit_bytes} bytes"
    return Refused(413, {"Reason": reason, "ErrValue": "", "Field": "body"})


def too_many_matches(settings: ServiceSettings) -> Refused:
    """Refusal of an answer beyond the limit."""
    reason = f"More than {settings.max_matches} matches; ask for fewer coordinates, neighbors or a smaller radius"
    return Refused(413, {"Reason": reason, "ErrValue": "", "Field": "nneighbor"})


def _check_cone(request: ConeRequest, settings: ServiceSettings, served: tuple[str, ...], *, many: bool) -> None:
    ra, dec = request.ra, request.dec
    bad = ~((ra >= 0.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0))
    if bad.any():
        index = int(np.argmax(bad))
        raise _bad_position(float(ra[index]), float(dec[index]), {"Index": index} if many else {})
    radius = request.radius_arcsec
    if not math.isfinite(radius):
        raise _out_of_range("Radius must be a finite number", _three_digits(radius), "radius")
    if radius <= 0.0:
        raise _out_of_range("Radius can't be lower than 0", _three_digits(radius), "radius")
    if radius > settings.max_radius_arcsec:
        reason = f"Radius can't be greater than {settings.max_radius_arcsec:g} arcsec"
        raise _out_of_range(reason, _three_digits(radius), "radius")
    if request.neighbors < 1:
        raise _out_of_range("Nneighbor must be a positive integer", str(request.neighbors), "nneighbor")
    catalog = request.catalog.lower()
    if catalog not in (ALL, *CONE_CATALOGS, *served):
        raise _out_of_range("Catalog not available", request.catalog, "catalog")
    if request.with_metadata and catalog in WITHOUT_METADATA and catalog not in served:
        raise Refused(500, "Could not execute conesearch")


def _bad_position(ra: float, dec: float, index: dict[str, int]) -> Refused:
    checks = (("RA", "RA", ra, 0.0, 360.0), ("Dec", "Dec", dec, -90.0, 90.0))
    for field, name, value, low, high in checks:
        if math.isnan(value):
            return _out_of_range(f"{name} must be a finite number", "NaN", field, index)
        if value < low:
            return _out_of_range(f"{name} can't be lower than {low:g}", _three_digits(value), field, index)
        if value > high:
            return _out_of_range(f"{name} can't be greater than {high:g}", _three_digits(value), field, index)
    raise AssertionError("the position is within its bounds")


def _metadata_catalog(name: str, served: tuple[str, ...]) -> str:
    catalog = name.lower()
    allowed = (*KNOWN_CATALOGS, *(other for other in served if other not in KNOWN_CATALOGS))
    if catalog not in allowed:
        reason = f"Allowed catalogs are [{' '.join(allowed)}]"
        raise Refused(400, {"Field": "catalog", "Reason": reason, "Value": name})
    if catalog in WITHOUT_METADATA and catalog not in served:
        reason = "Search not yet implemented for catalog"
        raise Refused(500, {"Reason": reason, "Value": name, "Name": "catalog"})
    return catalog


def _check_identifier(identifier: str, index: int | None = None) -> None:
    lower = identifier.lower()
    for pattern in _DANGEROUS:
        if pattern in lower:
            reason = f"id contains potentially dangerous pattern: {pattern}"
            body = {"Field": "id" if index is None else "ids", "Reason": reason, "Value": identifier}
            raise Refused(400, body if index is None else body | {"Index": index})


def _parse_float(text: str, field: str) -> float:
    # Unlike Go, Python reads digits of other alphabets, underscores and blanks.
    if text.isascii() and "_" not in text and text == text.strip():
        try:
            return float(text)
        except ValueError:
            pass
    raise _unreadable(text, field, "Could not parse float.")


def _parse_integer(text: str, field: str) -> int:
    if _INTEGER.fullmatch(text) and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    raise _unreadable(text, field, "Could not parse int.")


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise _unreadable(text, "getMetadata", "Could not parse bool.")


def _parse_object(body: bytes) -> dict[str, Any]:
    """The body's fields, names in lower case as CrossWave takes them in any case."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = f"The body is not JSON: {error.msg}"
        offset = len(error.doc[: error.pos].encode("utf-8", "replace")) if isinstance(error.doc, str) else error.pos
        raise Refused(400, {"Reason": reason, "ErrValue": "", "Field": "body", "Offset": offset}) from error
    if not isinstance(value, dict):
        raise _wrong_type("body", value, "an object")
    return {name.lower(): field for name, field in value.items()}


def _numbers(values: Any, field: str) -> NDArray[np.float64]:
    if values is None:
        return np.empty(0)
    if not isinstance(values, list):
        raise _wrong_type(field, values, "a list of numbers")
    if not set(map(type, values)) <= {float, int}:
        index = next(i for i, value in enumerate(values) if not _is_number(value))
        raise _wrong_type(field, values[index], "a number", index)
    return np.array(values, np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _three_digits(value: float) -> str:
    """A number with three decimals, in Go's spelling."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.3f}"


def _unreadable(text: str, field: str, reason: str) -> Refused:
    return Refused(400, {"ErrValue": text, "Field": field, "Reason": reason})


def _out_of_range(reason: str, value: str, field: str, index: Mapping[str, int] | None = None) -> Refused:
    return Refused(400, {"Reason": reason, "ErrValue": value, "Field": field, **(index or {})})


def _wrong_type(field: str, value: Any, wanted: str, index: int | None = None) -> Refused:
    place = field if index is None else f"{field}[{index}]"
    shown = orjson.dumps(value).decode()
    body: dict[str, Any] = {"Reason": f"{place} must be {wanted}", "ErrValue": shown[:100], "Field": field}
    return Refused(400, body if index is None else body | {"Index": index})


def _too_many(count: int, settings: ServiceSettings, what: str, field: str) -> Refused:
    reason = f"At most {settings.max_coordinates} {what} in one request"
    return Refused(413, {"Reason": reason, "ErrValue": str(count), "Field": field})
