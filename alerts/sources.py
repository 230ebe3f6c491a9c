"""Where alerts come from: archives, folders, globs, loose files and URLs, cut into units of work."""

from __future__ import annotations

import glob
import hashlib
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import requests
from urllib3.exceptions import HTTPError as TransportError

ARCHIVE_ENDINGS: Final = (".tar.gz", ".tgz", ".tar")
FILE_ENDINGS: Final = (".avro", ".avro.gz")
LOOSE_FILES_PER_SOURCE: Final = 1000
# Answers that will not get better by asking again.
_FINAL_ANSWERS: Final = (400, 401, 403, 404, 410, 416)
# A loose file above this is a unit of its own.
LOOSE_BYTES: Final = 32 << 20


class InputError(ValueError):
    """An input that the user named cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A unit of work: one archive or large file, or some loose files.

    Attributes
    ----------
    name : str
        Stable name for the files that are written from it.
    location : str
        Path or URL of the archive, or the folder of the loose files.
    paths : tuple of str
        What to read, in order.
    size : int
        Bytes, 0 where unknown.
    first : int
        Number of the first file, for loose files of a folder that is cut into several units.
    validator : str
        What a server says that tells one content of a URL from another (``ETag`` or ``Last-Modified``), if asked.
    """

    name: str
    location: str
    paths: tuple[str, ...]
    size: int = 0
    first: int = 0
    validator: str = ""

    @property
    def loose(self) -> bool:
        """Say whether the unit is made of small loose files."""
        return self.paths != (self.location,)


def is_url(text: str) -> bool:
    """Say whether an input is a web address."""
    return text.startswith(("http://", "https://"))


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Expand what the user named into units of work, sorted and without repetition.

    Parameters
    ----------
    inputs : iterable of str
        Files, folders (searched recursively for ``.tar.gz``, ``.tgz``, ``.tar``, ``.avro`` and ``.avro.gz``), globs and
        ``http(s)`` addresses of single files.

    Raises
    ------
    InputError
        If an input does not exist or holds no alerts.
    """
    archives: dict[str, Source] = {}
    # Files that were named one by one are units apart from those of their whole folder.
    loose: dict[tuple[str, bool], dict[str, int]] = {}
    known: set[str] = set()

    def add(path: Path, folder: Path, whole: bool) -> None:
        if str(path) in known:
            return
        known.add(str(path))
        size = path.stat().st_size
        if path.name.endswith(FILE_ENDINGS) and size <= LOOSE_BYTES:
            loose.setdefault((str(folder), whole), {})[str(path)] = size
        else:
            archives.setdefault(str(path), Source(stable_name(str(path)), str(path), (str(path),), size))

    for text in inputs:
        if is_url(text):
            archives.setdefault(text, Source(stable_name(text), text, (text,)))
            continue
        found = [text] if os.path.exists(text) else sorted(filter(os.path.exists, glob.glob(text, recursive=True)))
        if not found:
            raise InputError(f"{text}: there is no such file or folder, and nothing matches it as a pattern")
        empty = True
        for path in map(os.path.abspath, found):
            is_folder = os.path.isdir(path)
            for inside in _walk(Path(path)) if is_folder else (Path(path),):
                add(inside, Path(path) if is_folder else inside.parent, is_folder)
                empty = False
        if empty:
            raise InputError(f"{text}: no alerts there (looked for *{', *'.join(ARCHIVE_ENDINGS + FILE_ENDINGS)})")
    sources = list(archives.values())
    for (folder, whole), sizes in loose.items():
        sources.extend(_loose_sources(folder, whole, sizes))
    return sorted(sources, key=lambda source: (source.location, source.first))


def _walk(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(base, name)
            if name.endswith(ARCHIVE_ENDINGS + FILE_ENDINGS) and not name.startswith(".") and path.is_file():
                yield path


def _loose_sources(folder: str, whole: bool, sizes: dict[str, int]) -> Iterator[Source]:
    paths = sorted(sizes)
    name = stable_name(folder if whole else "\0".join((folder, *paths)), folder)
    for first in range(0, len(paths), LOOSE_FILES_PER_SOURCE):
        some = tuple(paths[first : first + LOOSE_FILES_PER_SOURCE])
        yield Source(f"{name}-{first:08d}", folder, some, sum(sizes[path] for path in some), first)


def stable_name(identity: str, location: str | None = None) -> str:
    """Name for files: the readable end of a location, and a digest of what the unit is."""
    base = (location or identity).rstrip("/").rpartition("/")[2].partition("?")[0]
    for ending in (*ARCHIVE_ENDINGS, *FILE_ENDINGS):
        base = base.removesuffix(ending)
    # Without dots: what stands before the first dot of a file's name is the unit that wrote it.
    safe = "".join(c if c.isalnum() or c in "_-" else "_" for c in base)[:60] or "alerts"
    return f"{safe}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]}"


def open_source(location: str, retries: int = 5) -> BinaryIO:
    """Open a file or URL for reading bytes; a URL is first asked when it is read."""
    if is_url(location):
        return HttpStream(location, retries)  # type: ignore[return-value]
    return open(location, "rb", buffering=0)


def back_off_s(failures: int) -> float:
    """Seconds to wait after failures in a row: doubling, in part random so that workers do not return as one."""
    return min(30.0, 0.2 * 2**failures) * random.uniform(0.5, 1.0)


class _FileChanged(OSError):
    pass


class HttpStream:
    """A remote file read once from its beginning, taken up again where the connection broke.

    Reading raises OSError when the server says that there is no such file, when it cannot be reached for as long as
    `retries` last, and when the file changed while it was read.

    Parameters
    ----------
    url : str
    retries : int
        Breaks in a row, without a byte between them, after which reading fails.
    timeout_s : float
        For connecting and for each read, seconds.
    """

    def __init__(self, url: str, retries: int = 5, timeout_s: float = 60.0) -> None:
        self.url, self.retries, self.timeout_s = url, retries, timeout_s
        self.position = 0
        self._session = requests.Session()
        self._response: requests.Response | None = None
        self._expected: int | None = None
        self._validator: str | None = None

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes (all that is left, if negative); empty at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        breaks = 0
        while True:
            try:
                if self._response is None:
                    self._connect()
                assert self._response is not None
                data = self._response.raw.read(size)
                if not data and self._expected is not None and self.position < self._expected:
                    raise requests.ConnectionError(
                        f"the answer ended after {self.position:,} of {self._expected:,} bytes"
                    )
                self.position += len(data)
                return data
            except (requests.RequestException, OSError, TransportError) as error:
                self._drop()
                breaks += 1
                final = isinstance(error, _FileChanged) or (
                    isinstance(error, requests.HTTPError) and error.response.status_code in _FINAL_ANSWERS
                )
                if final or breaks > self.retries:
                    raise OSError(f"{self.url}: {error}") from error
                time.sleep(back_off_s(breaks))

    def readinto(self, buffer: memoryview) -> int:
        """Read into memory; give the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        self._session.close()

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self._validator:
                headers["If-Range"] = self._validator
        response = self._session.get(self.url, headers=headers, stream=True, timeout=self.timeout_s)
        try:
            response.raise_for_status()
            self._begin(response)
        except BaseException:
            response.close()
            raise
        self._response = response

    def _begin(self, response: requests.Response) -> None:
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        if not self.position:
            self._expected, self._validator = expected, validator
            return
        whole = response.status_code != 206
        if validator != self._validator or (whole and expected != self._expected):
            raise _FileChanged("the file changed while it was read: start again")
        if whole:
            # The server gives no parts: read over what is known.
            self._skip(response, self.position)

    @staticmethod
    def _skip(response: requests.Response, count: int) -> None:
        while count:
            data = response.raw.read(min(count, 1 << 20))
            if not data:
                raise requests.ConnectionError("the answer ended early")
            count -= len(data)

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def total_bytes(sources: Sequence[Source]) -> int:
    """Bytes of all sources together, 0 if that of any is unknown."""
    sizes = [source.size for source in sources]
    return sum(sizes) if all(sizes) else 0
