"""Answers of the service: from a request that has been checked to the bytes of the JSON."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xmatch.service_catalogs import Found, ServedCatalog, search
from xmatch.service_json import write_rows
from xmatch.service_layouts import FORMATS, Layout
from xmatch.service_requests import ALL, ConeRequest, MetadataRequest, ServiceSettings, too_many_matches

# Positions searched and written at a time: enough to forget Python's overhead, little memory in flight.
_BLOCK_POSITIONS = 8192


class Answer(NamedTuple):
    """Body of an answer (None: nothing was found), and how many coordinates and matches it is about."""

    body: bytes | None
    coordinates: int
    matches: int


class Answers:
    """Answers requests from the served catalogues.

    Parameters
    ----------
    catalogs : sequence of ServedCatalog
        In the order of their groups in an answer.
    settings : ServiceSettings

    Raises
    ------
    ValueError
        If two catalogues have the same name in any case, one is called `all`, or the default is not among them.
    """

    def __init__(self, catalogs: Sequence[ServedCatalog], settings: ServiceSettings):
        settings.validate()
        self.catalogs = tuple(catalogs)
        self.settings = settings
        self.names = tuple(catalog.name.lower() for catalog in catalogs)
        for name in self.names:
            if self.names.count(name) > 1 or name == ALL:
                raise ValueError(f"A catalogue cannot be served as {name}, which another one is; build it anew.")
        if settings.default_catalog.lower() not in (ALL, *self.names):
            raise ValueError(f"The default catalogue {settings.default_catalog} is not served.")

    def cone(self, request: ConeRequest, form: str) -> Answer:
        """Sources around one position, grouped by catalogue; raises like `bulk_cone`."""
        found = self._search(request, 0, 1)
        if len(found.row) > self.settings.max_matches:
            raise too_many_matches(self.settings)
        groups = []
        for number in np.unique(found.catalog).tolist():
            mine = found.catalog == number
            catalog = self.catalogs[number]
            layouts = catalog.layouts[form]
            layout = layouts.cone_metadata if request.with_metadata else layouts.cone
            rows = catalog.write(layout, found.row[mine], found.separation_arcsec[mine])
            groups.append(layout.opening + bytes(rows.text[:-1]) + layout.closing)
        return Answer(_list_of(groups), 1, len(found.row))

    def bulk_cone(self, request: ConeRequest, form: str) -> Answer:
        """Sources around many positions, one element each, ordered by position and separation.

        Raises
        ------
        Refused
            If there are more matches than one answer may have.
        """
        count = len(request.ra)
        block = max(1, min(_BLOCK_POSITIONS, self.settings.max_matches // request.neighbors))
        texts: list[bytes | memoryview] = []
        matches = 0
        for begin in range(0, count, block):
            found = self._search(request, begin, begin + block)
            matches += len(found.row)
            if matches > self.settings.max_matches:
                raise too_many_matches(self.settings)
            if len(found.row):
                texts.append(self._elements(found, begin, request.with_metadata, form))
        if texts:
            texts[-1] = texts[-1][:-1]
        return Answer(_list_of(texts, b""), count, matches)

    def metadata(self, request: MetadataRequest, form: str) -> Answer:
        """Metadata of one identifier."""
        answer = self._metadata(request, form)
        return answer._replace(body=answer.body[1:-1] if answer.body else None)

    def bulk_metadata(self, request: MetadataRequest, form: str) -> Answer:
        """Metadata of the identifiers that exist, each once, in the order of the catalogue; `null` if none exists."""
        answer = self._metadata(request, form)
        return answer._replace(body=answer.body or b"null")

    def warm_up(self) -> None:
        """Load (the first time compile) everything an answer needs."""
        # Empty answers do not reach the kernels that write rows.
        write_rows((b"", b""), [np.zeros(1)])
        for catalog, name in zip(self.catalogs, self.names, strict=True):
            catalog.identifiers.find(["-"])
            ra, dec = (np.ascontiguousarray(column[:1]) for column in catalog.catalog.index.positions.T)
            for form in FORMATS:
                for with_metadata in (False, True):
                    request = ConeRequest(ra, dec, 1.0, 1, name, with_metadata)
                    if len(ra):
                        self.cone(request, form)
                    self.bulk_cone(request, form)

    def _search(self, request: ConeRequest, begin: int, end: int) -> Found:
        return search(
            self.catalogs,
            self._chosen(request.catalog),
            request.ra[begin:end],
            request.dec[begin:end],
            request.radius_arcsec,
            min(request.neighbors, self.settings.max_matches + 1),
        )

    def _chosen(self, name: str) -> list[int]:
        return [i for i, other in enumerate(self.names) if name.lower() in (ALL, other)]

    def _elements(self, found: Found, begin: int, with_metadata: bool, form: str) -> bytes | memoryview:
        def layout(number: int) -> Layout:
            layouts = self.catalogs[number].layouts[form]
            return layouts.bulk_metadata if with_metadata else layouts.bulk

        numbers = np.unique(found.catalog).tolist()
        position = found.position + begin
        if len(numbers) == 1:
            number = numbers[0]
            rows = self.catalogs[number].write(layout(number), found.row, found.separation_arcsec, position)
            return rows.text.data
        texts = np.empty(len(found.row), object)
        for number in numbers:
            mine = np.flatnonzero(found.catalog == number)
            rows = self.catalogs[number].write(
                layout(number), found.row[mine], found.separation_arcsec[mine], position[mine]
            )
            texts[mine] = rows.split()
        return b"".join(texts.tolist())

    def _metadata(self, request: MetadataRequest, form: str) -> Answer:
        asked = len(request.identifiers)
        chosen = self._chosen(request.catalog)
        if not chosen or not asked:
            return Answer(None, asked, 0)
        catalog = self.catalogs[chosen[0]]
        rows = np.unique(catalog.identifiers.find(request.identifiers))
        rows = rows[rows >= 0]
        text = catalog.write(catalog.layouts[form].metadata, rows).text[:-1]
        return Answer(_list_of([bytes(text)] if len(rows) else []), asked, len(rows))


def _list_of(texts: Sequence[bytes | memoryview], separator: bytes = b",") -> bytes | None:
    return b"".join((b"[", separator.join(texts), b"]")) if texts else None
