"""The X-Match service of CDS, Strasbourg, as a matcher: whole batches of positions in one upload.

Protocol (alerce.md 1.4): a multipart POST with the parameters and a CSV file of positions, the first column of which
has no name and comes back as `col1`; the answer is a CSV with a row for each position that has a match, in any order.

A row that is absent from the answer is the only sign of "no match", so its absence has to be believed. Of an answer
it is checked that it ended where it said it would, that it is a table with the columns asked for, that every row has
the position that was sent under its number, and a source within the radius. That leaves an answer which is well-formed
but lacks rows because the service lost them. Therefore positions without an answer are asked for a second time,
together with witnesses: positions of which the service has told a match before. "No match" is what both answers say,
while the witnesses are answered again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import requests
from numpy.typing import ArrayLike, NDArray

from xmatch.http import Answer, BadAnswerError, HttpCaller, HttpSettings, ServiceError, check_service_url
from xmatch.matcher import Matches, as_positions, check_radius
from xmatch.remote import ALLWISE_TYPES, Found, look_up, typed_columns
from xmatch.search import separations_arcsec

CDS_URL: Final = "https://cdsxmatch.u-strasbg.fr/xmatch/api/v1/sync"

_NUMBER, _RA, _DEC, _DISTANCE = "col1", "ra_in", "dec_in", "angDist"
# The echo of a position may have been printed with fewer digits: 1e-8 degrees are 0.04 mas.
_ECHO_DEG: Final = 1e-8
# CDS computes distances from more digits than the seven decimals of the positions that it gives (up to 2e-4 arcsec).
_DISTANCE_ARCSEC: Final = 0.01
# Distances are printed with six decimals.
_PRINTED_ARCSEC: Final = 1e-6
# Answers that bring rows that an earlier one lacked; after so many, the rest is given up.
_ROUNDS: Final = 4

_GAIA_DR2_TYPES: Final = {
    "source_id": pa.int64(),
    **{name: pa.float64() for name in ("ra", "dec", "parallax", "parallax_error", "pmra", "pmdec")},
    **{f"phot_{band}_mean_mag": pa.float64() for band in ("g", "bp", "rp")},
}


@dataclass(frozen=True)
class CdsTable:
    """A table that CDS crossmatches with.

    Attributes
    ----------
    name : str
        As the service names it.
    types : mapping
        Types of its usual columns; the first one is the identifier.
    defaults : tuple of str
        Columns asked for unless others are named.
    position : tuple of str
        Columns of right ascension and declination that distances refer to; empty if not known.
    """

    name: str
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()
    position: tuple[str, ...] = ()


CDS_TABLES: Final = {
    "allwise": CdsTable("vizier:II/328/allwise", ALLWISE_TYPES, tuple(ALLWISE_TYPES), ("RAJ2000", "DEJ2000")),
    "gaia-dr2": CdsTable("vizier:I/345/gaia2", _GAIA_DR2_TYPES, tuple(_GAIA_DR2_TYPES)),
    "sdss-dr12": CdsTable("vizier:V/147/sdss12"),
}


def cds_table(catalog: str) -> CdsTable:
    """Table of an alias (allwise, gaia-dr2, sdss-dr12), or of VizieR's own name, with or without ``vizier:``."""
    known = {table.name: table for table in CDS_TABLES.values()}
    if catalog in CDS_TABLES:
        return CDS_TABLES[catalog]
    name = catalog if ":" in catalog or "/" not in catalog else f"vizier:{catalog}"
    return known.get(name, CdsTable(name))


@dataclass(frozen=True)
class CdsMatcher:
    """Nearest source by the X-Match service of CDS.

    Parameters
    ----------
    catalog : str
        An alias (allwise, gaia-dr2, sdss-dr12) or VizieR's name of a table, such as ``II/328/allwise``.
    radius_arcsec : float
        Largest separation; CDS takes up to 180.
    columns : sequence of str, optional
        Columns wanted, ``name`` or ``name:type`` (double, int64, string); of tables other than AllWISE the first one
        is the identifier, and columns without a known type come as text. The default are AllWISE's 17.
    service_url : str
        The service's synchronous interface.
    http : HttpSettings
        How it is asked.
    batch_rows : int
        Positions in an upload at most.
    confirm : bool
        Believe in "no match" only when a second answer says so (see the module's text). Without it, a service that
        loses rows of its answers cannot be told from one that has no match.
    """

    catalog: str = "allwise"
    radius_arcsec: float = 1.0
    columns: Sequence[str] | None = None
    service_url: str = CDS_URL
    http: HttpSettings = HttpSettings()  # noqa: RUF009 (immutable)
    batch_rows: int = 5000
    confirm: bool = True

    @property
    def name(self) -> str:
        """Name of the catalogue."""
        return self.catalog

    @property
    def identity(self) -> str:
        """All that an answer depends on besides the position."""
        return f"cds {self.table.name} {float(self.radius_arcsec)!r} {self.types}"

    @cached_property
    def table(self) -> CdsTable:
        """The table at CDS."""
        return cds_table(self.catalog)

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """Columns with their types, the identifier first."""
        table = self.table
        identifier = next(iter(table.types), None)
        wanted = [*(self.columns or table.defaults)]
        named = [text.partition(":")[0] for text in wanted]
        if identifier and identifier not in named:
            wanted.insert(0, identifier)
        types = typed_columns(wanted, table.types, pa.string())
        if not types:
            raise ValueError(f"Catalogue {self.catalog}: name the columns wanted, the identifier first.")
        if identifier:
            types = {identifier: types[identifier], **types}
        reserved = [name for name in types if name in (_NUMBER, _RA, _DEC, _DISTANCE)]
        if reserved:
            raise ValueError(f"Catalogue {self.catalog}: {reserved[0]} is no column of it, every answer has it.")
        return types

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the columns of matches."""
        return pa.schema(self.types)

    def validate(self) -> None:
        """Check the settings; the service is not asked.

        Raises
        ------
        ValueError
            With one sentence.
        """
        check_radius(self.radius_arcsec)
        if self.radius_arcsec > 180.0:
            raise ValueError(f"CDS takes search radii up to 180 arcsec, not {self.radius_arcsec}.")
        check_service_url(self.service_url)
        self.http.validate()
        if self.batch_rows < 1:
            raise ValueError(f"A batch must have at least 1 row, not {self.batch_rows}.")
        _ = self.types

    def match(self, ra: ArrayLike, dec: ArrayLike) -> Matches:
        """Match positions in degrees; a position that got no trustworthy answer has status FAILED and the reason."""
        ra, dec = as_positions(ra, dec)
        found = look_up(ra, dec, self.schema, self.batch_rows, self._state.caller, self._ask)
        return found.matches(self.name, self.table.name)

    @cached_property
    def _state(self) -> _State:
        return _State(HttpCaller(self.http))

    def __getstate__(self) -> dict[str, Any]:
        # Connections, and what is known of the service, belong to a process.
        return {name: value for name, value in self.__dict__.items() if name != "_state"}

    def _ask(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> Found:
        rows, distances, sources = self._upload(ra, dec, np.zeros(len(ra), np.bool_))
        if not self.confirm or (rows >= 0).all():
            return Found.of_rows(rows, distances, sources)
        reason = "the answers of CDS contradict each other: each had rows that the others lacked"
        missing = np.flatnonzero(rows < 0)
        for _ in range(_ROUNDS):
            witnesses = self._witnesses(ra, dec, rows)
            try:
                again = [
                    self._ask_again(ra[part], dec[part], witnesses)
                    for part in np.array_split(missing, -(-len(missing) // max(1, len(ra) - 2)))
                ]
            except ServiceError as error:
                reason = f"no second answer to confirm that there is no match: {error}"
                break
            more = np.concatenate([part[0] for part in again]) >= 0
            for part_rows, part_distances, part_sources in again:
                part_rows[part_rows >= 0] += len(distances)
                distances = np.concatenate([distances, part_distances])
                sources = pa.concat_tables([sources, part_sources])
            rows[missing] = np.concatenate([part[0] for part in again])
            missing = missing[~more]
            if not more.any() or not len(missing):
                return Found.of_rows(rows, distances, sources)
        found = Found.of_rows(rows, distances, sources)
        failed = Found.failed(len(missing), self.schema, reason)
        found.status[missing], found.errors[missing] = failed.status, failed.errors
        return found

    def _witnesses(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Positions [up to 2, 2] known to have a match: the first and the last of a batch, or one of another batch."""
        answered = np.flatnonzero(rows >= 0)
        if len(answered):
            ends = answered[[0, -1]]
            self._state.witness = np.stack([ra[ends], dec[ends]], axis=1)
        # A service that took no more rows than these takes no more of a second upload.
        return self._state.witness[: max(1, min(2, len(ra) - 1))]

    def _ask_again(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], witnesses: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], pa.Table]:
        """Answers for positions between witnesses, without those for the witnesses."""
        before, after = witnesses[:1], witnesses[1:]
        known = np.zeros(len(ra) + len(witnesses), np.bool_)
        known[: len(before)] = known[len(known) - len(after) :] = True
        if not len(after):
            known[len(before) :] = False
        rows, distances, sources = self._upload(
            np.concatenate([before[:, 0], ra, after[:, 0]]), np.concatenate([before[:, 1], dec, after[:, 1]]), known
        )
        return rows[~known], distances, sources

    def _upload(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], pa.Table]:
        """Upload positions, and give for each the row of its answer, or -1; the distances and sources of the rows.

        `known` positions must have an answer. CDS has refused uploads of one row (astropy/astroquery#1376): such a
        row is sent twice.
        """
        twin = len(ra) == 1
        if twin:
            ra, dec, known = np.repeat(ra, 2), np.repeat(dec, 2), np.repeat(known, 2)

        def read(answer: Answer) -> tuple[NDArray[np.int64], NDArray[np.float64], pa.Table]:
            rows, distances, sources = self._read(answer, ra, dec)
            if (rows[known] < 0).any():
                raise BadAnswerError("the answer lacks a match that CDS had told before")
            if twin and (rows[0] < 0) != (rows[1] < 0):
                raise BadAnswerError("the answer has only one of two equal rows")
            return rows, distances, sources

        rows, distances, sources = self._state.caller.send(self._request(ra, dec), read)
        return (rows[:1] if twin else rows), distances, sources

    def _request(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> requests.Request:
        file = io.BytesIO()
        table = pa.table({"": np.arange(len(ra)), _RA: ra, _DEC: dec})
        file.write(f",{_RA},{_DEC}\n".encode())
        pacsv.write_csv(table, file, pacsv.WriteOptions(include_header=False))
        parameters = {
            "request": "xmatch",
            "distMaxArcsec": repr(float(self.radius_arcsec)),
            "selection": "best",
            "RESPONSEFORMAT": "csv",
            "cat2": self.table.name,
            "colRA1": _RA,
            "colDec1": _DEC,
            "cols2": ",".join(self._asked),
        }
        upload = {"cat1": ("positions.csv", file.getvalue(), "text/csv")}
        return requests.Request("POST", self.service_url, data=parameters, files=upload)

    @cached_property
    def _asked(self) -> tuple[str, ...]:
        """Columns asked of CDS: those wanted, and the position, to check the distance."""
        return tuple(dict.fromkeys((*self.types, *self.table.position)))

    def _read(
        self, answer: Answer, ra: NDArray[np.float64], dec: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], pa.Table]:
        """Check an answer and put it in the order of the positions.

        Raises
        ------
        BadAnswerError
            If anything about it is not as it must be.
        """
        types = {_NUMBER: pa.int64(), _RA: pa.float64(), _DEC: pa.float64(), _DISTANCE: pa.float64()}
        types |= {name: self.table.types.get(name, pa.float64()) for name in self.table.position} | self.types
        answered = _read_table(answer, types)
        for name in (_NUMBER, _RA, _DEC, _DISTANCE):
            if answered[name].null_count:
                raise BadAnswerError(f"a row of the answer has no {name}")
        number, ra_in, dec_in, distance = (answered[name].to_numpy() for name in (_NUMBER, _RA, _DEC, _DISTANCE))
        if ((number < 0) | (number >= len(ra))).any():
            raise BadAnswerError("a row of the answer has a number that was not sent")
        if not (np.abs(ra_in - ra[number]) <= _ECHO_DEG).all() or not (np.abs(dec_in - dec[number]) <= _ECHO_DEG).all():
            raise BadAnswerError("a row of the answer has another position than the one sent under its number")
        if not ((distance >= 0.0) & (distance <= self.radius_arcsec + _PRINTED_ARCSEC)).all():
            raise BadAnswerError(f"a source of the answer is farther than {self.radius_arcsec:g} arcsec")
        self._check_distances(answered, ra[number], dec[number], distance)
        identifier = answered[self.schema.names[0]]
        if identifier.null_count:
            raise BadAnswerError(f"a row of the answer has no {self.schema.names[0]}")
        # CDS gives one row each; if there are several, the nearest one is right, and of equal ones the first by name.
        order = pc.sort_indices(
            pa.table({"number": number, "distance": distance, "identifier": identifier}),
            [("number", "descending"), ("distance", "descending"), ("identifier", "descending")],
        ).to_numpy()
        rows = np.full(len(ra), -1, np.int64)
        rows[number[order]] = order
        return rows, distance, answered.select(self.schema.names)

    def _check_distances(
        self, answered: pa.Table, ra: NDArray[np.float64], dec: NDArray[np.float64], distance: NDArray[np.float64]
    ) -> None:
        if not self.table.position:
            return
        source_ra, source_dec = (np.asarray(answered[name].to_numpy(), np.float64) for name in self.table.position)
        computed = separations_arcsec(ra, dec, np.mod(source_ra, 360.0), source_dec)
        if not (np.abs(computed - distance) <= _DISTANCE_ARCSEC).all():
            raise BadAnswerError("a source of the answer is not where its distance says")


class _State:
    """What a process has of the service: the caller, and positions that have a match."""

    def __init__(self, caller: HttpCaller) -> None:
        self.caller = caller
        self.witness: NDArray[np.float64] = np.empty((0, 2))


def _read_table(answer: Answer, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of a CSV answer; empty cells and NaN are null.

    Raises
    ------
    BadAnswerError
        If it is not a CSV with these columns, numbers where numbers belong, and an end.
    """
    body = answer.body
    if not body.strip():
        raise BadAnswerError("the answer is empty")
    if answer.content_type == "text/html" or body.lstrip()[:1] == b"<":
        raise BadAnswerError("the answer is a page instead of a table")
    # Where the answer did not say how long it is, only the end of its last line tells that it is whole.
    if not answer.framed and not body.endswith(b"\n"):
        raise BadAnswerError("the answer ends in the middle of a line")
    try:
        header = next(csv.reader([body.partition(b"\n")[0].decode().strip()]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadAnswerError("the answer is not a CSV table") from error
    for name in types:
        if header.count(name) != 1:
            raise BadAnswerError(f"the answer has no column {name}" if name not in header else f"two columns {name}")
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(types, pa.string()),
        include_columns=list(types),
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        table = pacsv.read_csv(io.BytesIO(body), pacsv.ReadOptions(use_threads=False), convert_options=convert)
        return pa.table({name: _as_type(table[name], kind) for name, kind in types.items()})
    except pa.ArrowException as error:
        raise BadAnswerError(f"the answer is damaged: {' '.join(str(error).split())[:150]}") from error


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    column = pc.utf8_trim_whitespace(column)
    if pa.types.is_string(kind):
        return column
    numbers = column.cast(kind)
    return pc.if_else(pc.is_nan(numbers), None, numbers) if pa.types.is_floating(kind) else numbers
