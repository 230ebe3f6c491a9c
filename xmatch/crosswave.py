"""ALeRCE's CrossWave service as a matcher: batches of positions, then the magnitudes of what was found.

What the service is known for, and what is done about it (crosswave.md, alerce.md 1.6):

* It takes the nearest neighbours in the plane of right ascension and declination, and drops those beyond the radius
  afterwards: the nearest one on the sphere can be lost far from the equator and across 0h. So several neighbours are
  asked for, more than the searched pixels hold, and the nearest is chosen here from the positions that come back. If as
  many came back as were asked for, more are asked for.
* One bad position refuses a whole batch: it is found by halving. NaN, which it takes for "no match", is never sent.
* Its JSON has had several forms (groups or a flat list, upper or lower case, numbers in objects): all are understood.
  An answer of a batch that does not say which position a source belongs to (before April 2026) cannot be used, nor
  is there a batch interface in older ones: then positions are asked for singly.
* Of catalogues kept at two HEALPix orders, its batch interface loses matches at random. That cannot be seen from
  outside; `bulk=False` asks for positions singly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import requests
from numpy.typing import ArrayLike, NDArray

from xmatch.http import (
    Answer,
    BadAnswerError,
    HttpCaller,
    HttpSettings,
    NoAnswerError,
    RefusedError,
    ServiceError,
    check_service_url,
    place,
)
from xmatch.matcher import Matches, as_positions, check_radius, is_position
from xmatch.remote import (
    ALLWISE_TYPES,
    Found,
    look_up,
    take_rows,
    typed_columns,
    within_circle,
)
from xmatch.search import separations_arcsec

# Keys in lower case -> values; _SEPARATION is added here.
_Source = dict[str, Any]
_SEPARATION: Final = "separation_arcsec"

# CDS column -> key of the service, in lower case (alerce.md 1.5).
_ALLWISE_KEYS: Final = {
    "AllWISE": "id",
    "RAJ2000": "ra",
    "DEJ2000": "dec",
    **{f"W{band}mag": f"w{band}mpro" for band in range(1, 5)},
    **{f"e_W{band}mag": f"w{band}sigmpro" for band in range(1, 5)},
    **{f"{band}mag": f"{band.lower()}_m_2mass" for band in "JHK"},
    **{f"e_{band}mag": f"{band.lower()}_msig_2mass" for band in "JHK"},
}
_POSITION_KEYS: Final = ("id", "ra", "dec")
_OTHER_TYPES: Final = {"id": pa.string(), "ra": pa.float64(), "dec": pa.float64()}
_MISSING: Final = -9999.0

# More neighbours than the pixels that a radius of an arcsecond touches hold in the densest fields.
_NEIGHBOURS: Final = 16
# Sources per square arcsecond of a dense field of AllWISE.
_DENSITY: Final = 0.02
_MORE: Final = 8
_MOST_NEIGHBOURS: Final = 100_000
# SQLite takes 32,766 parameters.
_IDS_AT_ONCE: Final = 30_000
# Answers to a path that a server does not have.
_NO_SUCH_PATH: Final = (404, 405, 501)
# Asked beyond the radius, so that rounding on the other side loses nothing; the radius is applied here.
_MARGIN_ARCSEC: Final = 1e-6
# A round radius above may be the most that a service takes.
_WIDENED_BELOW_ARCSEC: Final = 60.0
# A source farther than this beyond the radius answers another position.
_BEYOND_ARCSEC: Final = 0.01


@dataclass(frozen=True)
class CrossWaveMatcher:
    """Nearest source by a CrossWave service.

    Parameters
    ----------
    service_url : str
        Address of the service, without ``/v1``.
    catalog : str
        Name of the catalogue in the service.
    radius_arcsec : float
        Largest separation, inclusive.
    columns : sequence of str, optional
        Columns wanted: of AllWISE by the names of CDS, all 17 by default; of others by the names of the service, which
        are numbers unless written as ``name:type`` (double, int64, string).
    selection : int
        Neighbours to ask for at least; the nearest one is the match.
    version : str, optional
        Version of the catalogue written beside matches; by default the service's address, which tells no version.
    http : HttpSettings
        How it is asked.
    batch_rows : int
        Positions in a request at most.
    bulk : bool
        Use the interface for batches if there is one.

    Notes
    -----
    The column AllWISE holds what the service has as identifier: ALeRCE's has the ``source_id`` of the AllWISE release
    (0378m016_ac51-015624), CDS and our own catalogues the designation (J123456.78+123456.7) by default.
    """

    service_url: str
    catalog: str = "allwise"
    radius_arcsec: float = 1.0
    columns: Sequence[str] | None = None
    selection: int = 1
    version: str | None = None
    http: HttpSettings = HttpSettings()  # noqa: RUF009 (immutable)
    batch_rows: int = 2000
    bulk: bool = True

    @property
    def name(self) -> str:
        """Name of the catalogue."""
        return self.catalog

    @property
    def catalog_version(self) -> str:
        """What is written as the version of the catalogue."""
        return place(self.service_url) if self.version is None else self.version

    @property
    def identity(self) -> str:
        """All that an answer depends on besides the position."""
        url = place(self.service_url)
        return f"crosswave {url} {self.catalog} {self.catalog_version} {float(self.radius_arcsec)!r} {self.types}"

    @property
    def _is_allwise(self) -> bool:
        return self.catalog.casefold() == "allwise"

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """Columns with their types, the identifier first."""
        known = ALLWISE_TYPES if self._is_allwise else _OTHER_TYPES
        identifier = next(iter(known))
        types = typed_columns(self.columns or tuple(known), known, pa.float64())
        types = {identifier: types.get(identifier, known[identifier]), **types}
        if self._is_allwise and (unknown := [name for name in types if name not in known]):
            raise ValueError(f"CrossWave has no column {unknown[0]} of AllWISE; it has {', '.join(known)}.")
        return types

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the columns of matches."""
        return pa.schema(self.types)

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Column -> key of the service, in lower case."""
        return {name: _ALLWISE_KEYS[name] if self._is_allwise else name.casefold() for name in self.types}

    @cached_property
    def _metadata_keys(self) -> frozenset[str]:
        """Keys wanted, in lower case, that only come with the metadata."""
        return frozenset(self._keys.values()) - frozenset(_POSITION_KEYS)

    def validate(self) -> None:
        """Check the settings; the service is not asked.

        Raises
        ------
        ValueError
            With one sentence.
        """
        check_radius(self.radius_arcsec)
        check_service_url(self.service_url)
        self.http.validate()
        if self.catalog.casefold() == "all":
            raise ValueError("CrossWave: name one catalogue; matches in 'all' hide those of another catalogue.")
        if self.selection < 1:
            raise ValueError(f"CrossWave: selection must be at least 1, not {self.selection}.")
        if self.batch_rows < 1:
            raise ValueError(f"A batch must have at least 1 row, not {self.batch_rows}.")
        _ = self.types

    def match(self, ra: ArrayLike, dec: ArrayLike) -> Matches:
        """Match positions in degrees; a position that got no trustworthy answer has status FAILED and the reason."""
        ra, dec = as_positions(ra, dec)
        found = self._look_up(ra, dec)
        return found.matches(self.name, self.catalog_version)

    @cached_property
    def _state(self) -> _State:
        return _State(HttpCaller(self.http), self.bulk)

    def __getstate__(self) -> dict[str, Any]:
        # Connections, and what is known of the service, belong to a process.
        return {name: value for name, value in self.__dict__.items() if name != "_state"}

    def _look_up(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> Found:
        if self._state.bulk:
            try:
                return look_up(ra, dec, self.schema, self.batch_rows, self._state.caller, self._ask)
            except _NoBulkError:
                self._state.bulk = False
        return look_up(ra, dec, self.schema, 1, self._state.caller, self._ask)

    def _ask(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> Found:
        radius = self.radius_arcsec
        neighbours = max(_NEIGHBOURS, 4 * self.selection, int(_DENSITY * np.pi * (radius + 1.0) ** 2))
        chosen = self._nearest(ra, dec, neighbours)
        rows = np.array([-1 if source is None else i for i, source in enumerate(chosen)], np.int64)
        sources = [source for source in chosen if source is not None]
        rows[rows >= 0] = np.arange(len(sources))
        reasons = self._add_metadata(sources)
        table = pa.table(
            {
                name: pa.array([source.get(key) for source in sources], self.types[name])
                for name, key in self._keys.items()
            },
            schema=self.schema,
        )
        found = Found.of_rows(rows, np.array([source[_SEPARATION] for source in sources], np.float64), table)
        if reasons:
            lacking = np.array([row in reasons for row in rows])
            failed = Found.failed(int(lacking.sum()), self.schema, None)
            found.errors[lacking] = [reasons[row] for row in rows[lacking]]
            found.status[lacking], found.separation_arcsec[lacking] = failed.status, failed.separation_arcsec
            return replace(found, columns=take_rows(table, np.where(lacking, -1, rows)))
        return found

    def _nearest(self, ra: NDArray[np.float64], dec: NDArray[np.float64], neighbours: int) -> list[_Source | None]:
        """Nearest source of each position, from as many neighbours as the service is asked for."""

        def read(answer: Answer) -> tuple[list[_Source | None], NDArray[np.intp]]:
            index, sources = self._sources(answer, len(ra))
            return self._choose(ra, dec, index, sources), np.bincount(index, minlength=len(ra))

        request = self._bulk_request if self._state.bulk else self._single_request
        try:
            chosen, counts = self._state.caller.send(request(ra, dec, neighbours), read)
        except RefusedError as error:
            if self._state.bulk and error.status in _NO_SUCH_PATH:
                raise _NoBulkError from error
            raise
        cut = np.flatnonzero(counts >= neighbours)
        if len(cut) and neighbours >= _MOST_NEIGHBOURS:
            raise NoAnswerError(f"{place(self.service_url)}: more than {neighbours:,} sources around a position")
        if len(cut):
            for i, source in zip(cut, self._nearest(ra[cut], dec[cut], neighbours * _MORE), strict=True):
                chosen[i] = source
        return chosen

    def _bulk_request(self, ra: NDArray[np.float64], dec: NDArray[np.float64], neighbours: int) -> requests.Request:
        parameters = {"ra": ra, "dec": dec, "radius": self._asked_radius, "catalog": self.catalog}
        parameters |= {"nneighbor": neighbours}
        if self._metadata_keys:
            parameters["getMetadata"] = True
        return self._post("bulk-conesearch", parameters)

    def _single_request(self, ra: NDArray[np.float64], dec: NDArray[np.float64], neighbours: int) -> requests.Request:
        parameters = {"ra": repr(float(ra[0])), "dec": repr(float(dec[0])), "radius": repr(self._asked_radius)}
        return self._get("conesearch", parameters | {"catalog": self.catalog, "nneighbor": str(neighbours)})

    @property
    def _asked_radius(self) -> float:
        radius = float(self.radius_arcsec)
        return radius + _MARGIN_ARCSEC if radius < _WIDENED_BELOW_ARCSEC else radius

    def _post(self, path: str, parameters: Mapping[str, Any]) -> requests.Request:
        body = orjson.dumps(parameters, option=orjson.OPT_SERIALIZE_NUMPY)
        return requests.Request("POST", self._url(path), data=body, headers={"Content-Type": "application/json"})

    def _get(self, path: str, parameters: Mapping[str, str]) -> requests.Request:
        return requests.Request("GET", self._url(path), params=parameters)

    def _url(self, path: str) -> str:
        return f"{self.service_url.rstrip('/').removesuffix('/v1')}/v1/{path}"

    def _sources(self, answer: Answer, positions: int) -> tuple[NDArray[np.int64], list[_Source]]:
        """Sources of the catalogue in an answer, and the number of the position of each.

        Raises
        ------
        BadAnswerError
            If it is not such an answer.
        """
        index: list[int] = []
        sources: list[_Source] = []
        for element in _json_list(answer):
            grouped = isinstance(element.get("data"), list)
            number = element.get("index", element.get("Index", None if self._state.bulk else 0))
            if number is None:
                raise _NoBulkError
            if type(number) is not int or not 0 <= number < positions:
                raise BadAnswerError(f"the answer has the index {number!r} for {positions} positions")
            for item in element["data"] if grouped else (element,):
                source = self._source(item)
                if self._is_ours(source.pop("cat", None) or element.get("catalog")):
                    index.append(number)
                    sources.append(source)
        return np.array(index, np.int64), sources

    def _is_ours(self, catalog: Any) -> bool:
        """Say whether a source is of the catalogue asked for; with metadata some are named as GAIA/DR3."""
        if not isinstance(catalog, str):
            return catalog is None
        return catalog.casefold().partition("/")[0] == self.catalog.casefold().partition("/")[0]

    def _source(self, item: Any) -> _Source:
        """Keys in lower case, plain values."""
        if not isinstance(item, dict):
            raise BadAnswerError("the answer has something else in the place of a source")
        source: _Source = {key.casefold(): value for key, value in item.items()}
        if "id" not in source and "source_id" in source:
            source["id"] = source["source_id"]
        for key, convert in self._converters.items():
            if key in source:
                source[key] = convert(source[key])
        if not source.get("id"):
            raise BadAnswerError("a source of the answer has no id")
        return source

    @cached_property
    def _converters(self) -> dict[str, Callable[[Any], Any]]:
        types = {self._keys[name]: kind for name, kind in self.types.items()}
        return {key: _CONVERTERS[kind] for key, kind in (_OTHER_TYPES | {"distance": pa.float64()} | types).items()}

    def _choose(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], index: NDArray[np.int64], sources: list[_Source]
    ) -> list[_Source | None]:
        """Nearest source of each position on the sphere, of equal ones the smallest identifier."""
        chosen: list[_Source | None] = [None] * len(ra)
        if not sources:
            return chosen
        source_ra, source_dec, told = (
            np.array([source.get(key) for source in sources], np.float64) for key in ("ra", "dec", "distance")
        )
        if not is_position(source_ra, source_dec).all():
            raise BadAnswerError("a source of the answer has no position")
        distance = separations_arcsec(ra[index], dec[index], within_circle(source_ra), source_dec)
        if (distance > self.radius_arcsec + _BEYOND_ARCSEC).any():
            raise BadAnswerError(f"a source of the answer is farther than {self.radius_arcsec:g} arcsec")
        if (np.abs(distance - told) > _BEYOND_ARCSEC).any():
            raise BadAnswerError("a source of the answer is not where its distance says")
        for i in np.flatnonzero(distance <= self.radius_arcsec):
            source, best = sources[i], chosen[index[i]]
            source[_SEPARATION] = distance[i]
            if best is None or (distance[i], source["id"]) < (best[_SEPARATION], best["id"]):
                chosen[index[i]] = source
        return chosen

    def _add_metadata(self, sources: list[_Source]) -> dict[int, str]:
        """Add the metadata to sources that came without; give the reasons for those that cannot be had, by number."""
        bare = [i for i, source in enumerate(sources) if not self._metadata_keys <= source.keys()]
        if not self._metadata_keys or not bare:
            return {}
        ids = list(dict.fromkeys(sources[i]["id"] for i in bare))
        known: dict[str, _Source] = {}
        problems: dict[str, str] = {}
        for first in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[first : first + _IDS_AT_ONCE]
            try:
                known |= self._metadata(some, problems)
            except ServiceError as error:
                problems |= dict.fromkeys(some, str(error))
        reasons = {}
        for i in bare:
            identifier = sources[i]["id"]
            if identifier in known:
                # The position of the search stays: it is what the distance was computed from.
                sources[i] |= {key: known[identifier].get(key) for key in self._metadata_keys}
            else:
                missing = f"{place(self.service_url)} found {identifier}, but has no metadata of it"
                reasons[i] = problems.get(identifier, missing)
        return reasons

    def _metadata(self, ids: Sequence[str], problems: dict[str, str]) -> dict[str, _Source]:
        """Metadata by identifier, all at once if the service can; what is wrong with single ones is noted."""
        if self._state.bulk_metadata:
            try:
                request = self._post("bulk-metadata", {"ids": ids, "catalog": self.catalog})
                return {source["id"]: source for source in self._state.caller.send(request, self._read_metadata)}
            except RefusedError as error:
                if error.status in _NO_SUCH_PATH:
                    self._state.bulk_metadata = False
                elif not error.about_the_content:
                    raise
        known: dict[str, _Source] = {}
        for identifier in ids:
            request = self._get("metadata", {"id": identifier, "catalog": self.catalog})
            try:
                answered = self._state.caller.send(request, self._read_metadata)
            except ServiceError as error:
                problems[identifier] = str(error)
                continue
            if answered:
                known[identifier] = answered[0]
        return known

    def _read_metadata(self, answer: Answer) -> list[_Source]:
        sources = [self._source(item) for item in _json_list(answer)]
        for source in sources:
            if lacking := self._metadata_keys - source.keys():
                raise BadAnswerError(f"the metadata have no {min(lacking)}")
        return sources


class _NoBulkError(Exception):
    """The service has no interface for batches that can be used."""


class _State:
    """What a process has of the service: the caller, and whether it takes batches."""

    def __init__(self, caller: HttpCaller, bulk: bool) -> None:
        self.caller = caller
        self.bulk = self.bulk_metadata = bulk


def _json_list(answer: Answer) -> list[dict[str, Any]]:
    """Elements of a JSON answer; none for 204 and ``null``, one for an object.

    Raises
    ------
    BadAnswerError
        If it is not JSON, or holds something else.
    """
    if answer.status == 204:
        return []
    if answer.content_type == "text/html":
        raise BadAnswerError("the answer is a page instead of JSON")
    try:
        parsed = orjson.loads(answer.body)
    except orjson.JSONDecodeError as error:
        raise BadAnswerError("the answer is not JSON" if answer.body else "the answer is empty") from error
    elements = [] if parsed is None else [parsed] if isinstance(parsed, dict) else parsed
    if not isinstance(elements, list) or not all(isinstance(element, dict) for element in elements):
        raise BadAnswerError("the answer is neither an object nor a list of objects")
    return elements


def _number(value: Any) -> float | None:
    """Number of any of the forms that the service has had; its missing value is -9999 in older ones."""
    if isinstance(value, dict):
        value = value.get("Float64") if value.get("Valid") else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswerError(f"the answer has {str(value)[:50]!r} in the place of a number")
    return None if value == _MISSING else float(value)


def _integer(value: Any) -> int | None:
    if value is None or type(value) is int:
        return value
    raise BadAnswerError(f"the answer has {str(value)[:50]!r} in the place of an integer")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise BadAnswerError(f"the answer has {str(value)[:50]!r} in the place of a text")


_CONVERTERS: Final[Mapping[pa.DataType, Callable[[Any], Any]]] = {
    pa.float64(): _number,
    pa.int64(): _integer,
    pa.string(): _text,
}
