"""Archives of nights by their dates, in a folder or below a web address, and what a server says of its files."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import requests

from alerts.sources import InputError, Source, back_off_s, find_sources, is_url, stable_name

Say = Callable[[str], None]

_THREADS: Final = 8
_RETRIES: Final = 5
# For connecting, and for the beginning of an answer, seconds.
_TIMEOUT_S: Final = (10.0, 30.0)
_ABSENT: Final = (404, 410)
# Statuses of servers that answer GET but not HEAD; addresses signed for GET give 403.
_NO_HEAD: Final = (403, 405, 501)
_OVERLOADED: Final = (408, 429)
_SHOWN_DATES: Final = 10


@dataclass(frozen=True)
class Nights:
    """Nights that were looked for.

    Attributes
    ----------
    sources : list of Source
        Archives of the nights that are there, in order of time.
    absent : list of date
        Nights without an archive: nothing was observed, or nothing of it is public.
    """

    sources: list[Source]
    absent: list[date]


@dataclass(frozen=True)
class RemoteFile:
    """What a server says of a file.

    Attributes
    ----------
    size : int
        Bytes, 0 where unknown.
    validator : str
        ``ETag`` or else ``Last-Modified``; empty where unknown.
    """

    size: int = 0
    validator: str = ""


def parse_date(text: str) -> date:
    """Read a date such as ``2018-06-01`` or ``20180601``.

    Raises
    ------
    ValueError
        If it is no date.
    """
    match = re.fullmatch(r"(\d{4})(-?)(\d{2})\2(\d{2})", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no date such as 2018-06-01 or 20180601")
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError as error:
        raise ValueError(f"{text!r} is no date: {error}") from error


def night_name(night: date) -> str:
    """Name of ZTF's public archive of a night (UT date)."""
    return f"ztf_public_{night:%Y%m%d}.tar.gz"


def find_nights(first: date, last: date, archive: str, say: Say | None = None) -> Nights:
    """Find the archives of all nights from one date to another, both included.

    Parameters
    ----------
    first, last : date
    archive : str
        Folder or ``http(s)`` address that holds files ``ztf_public_YYYYMMDD.tar.gz``. A query of the address is kept.
    say : callable, optional
        Told in a sentence what was found.

    Raises
    ------
    InputError
        If the dates are the wrong way round, the folder is none, or no night is there.
    OSError
        If a server cannot be reached or refuses to answer.
    """
    if first > last:
        raise InputError(f"the first night, {first}, is after the last, {last}: exchange them")
    nights = [first + timedelta(days) for days in range((last - first).days + 1)]
    found = _below(archive, nights) if is_url(archive) else _inside(archive, nights)
    sources = [source for source in found if source is not None]
    absent = [night for night, source in zip(nights, found, strict=True) if source is None]
    if not sources:
        raise InputError(
            f"{_shown(archive)}: no archive of the {len(nights)} nights from {first} to {last} is there (the first "
            f"would be {night_name(first)}); check the dates and the place of the archive"
        )
    if say is not None:
        say(_told(sources, absent))
    return Nights(sources, absent)


def _told(sources: Sequence[Source], absent: Sequence[date]) -> str:
    known = sum(source.size for source in sources) / 1e9
    text = f"archives of {len(sources)} of {len(sources) + len(absent)} nights" + (
        f", {known:,.1f} GB" if known else ""
    )
    if not absent:
        return text
    more = len(absent) - _SHOWN_DATES
    dates = ", ".join(map(str, absent[:_SHOWN_DATES]))
    return f"{text}; none of {dates}" + (f" and {more} more" if more > 0 else "")


def _inside(archive: str, nights: Iterable[date]) -> list[Source | None]:
    if "://" in archive:
        raise InputError(
            f"{_shown(archive)}: an archive is a folder, or an address that begins with http:// or https://"
        )
    folder = Path(archive).expanduser()
    if not folder.is_dir():
        raise InputError(f"{archive}: there is no such folder; name that which holds ztf_public_YYYYMMDD.tar.gz")
    paths = [folder / night_name(night) for night in nights]
    return [find_sources([str(path)])[0] if path.is_file() else None for path in paths]


def _below(archive: str, nights: Iterable[date]) -> list[Source | None]:
    parts = urlsplit(archive)
    paths = [f"{parts.path.rstrip('/')}/{night_name(night)}" for night in nights]
    urls = [urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")) for path in paths]
    # A query is a key of the user's, which may be another tomorrow: the night stays the same unit of work.
    names = [stable_name(urlunsplit((parts.scheme, parts.netloc, path, "", ""))) for path in paths]
    return [
        Source(name, url, (url,), file.size, validator=file.validator) if file else None
        for name, url, file in zip(names, urls, ask_all(urls), strict=True)
    ]


def with_sizes(sources: Iterable[Source]) -> list[Source]:
    """Ask servers for the sizes and validators of web addresses whose sizes are unknown.

    Best effort: a source stays as it is where a server does not say, or does not answer.

    Parameters
    ----------
    sources : iterable of Source
    """

    def asked(source: Source) -> Source:
        if not is_url(source.location) or source.size:
            return source
        try:
            file = ask(source.location, retries=1)
        except OSError:
            return source
        return replace(source, size=file.size, validator=file.validator) if file else source

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(asked, sources))


def ask_all(urls: Sequence[str]) -> list[RemoteFile | None]:
    """Ask for many files, some at a time; None where there is no such file.

    Raises
    ------
    OSError
        See :func:`ask`; what was not yet asked is not asked any more.
    """
    # The connections of a session are kept in a pool that threads may share.
    with requests.Session() as session, ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(ask, url, session) for url in urls]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def ask(url: str, session: requests.Session | None = None, retries: int = _RETRIES) -> RemoteFile | None:
    """Ask a server for a file's size and validator without reading it; None if there is no such file (404, 410).

    Parameters
    ----------
    url : str
    session : requests.Session, optional
    retries : int
        How often to ask again, with back-off, a server that is overloaded, faulty or away.

    Raises
    ------
    OSError
        If the server stays away or refuses.
    """
    if session is None:
        with requests.Session() as own:
            return ask(url, own, retries)
    answer = _answer(session, "HEAD", url, retries)
    if answer.status_code in _NO_HEAD:
        answer = _answer(session, "GET", url, retries)
    elif answer.ok and not _size(answer):
        part = _answer(session, "GET", url, retries)
        answer = part if part.ok else answer
    if answer.status_code in _ABSENT:
        return None
    # There is no first byte (416) of an empty file.
    if not answer.ok and answer.status_code != 416:
        raise OSError(f"{_shown(url)}: the server answers {answer.status_code} {answer.reason}".rstrip())
    return RemoteFile(_size(answer), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _answer(session: requests.Session, method: str, url: str, retries: int) -> requests.Response:
    """Head of an answer; of a GET only the first byte is asked for, and what comes is not read."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": "bytes=0-0"} if method == "GET" else {})
    failures = 0
    while True:
        wait_s = 0.0
        try:
            answer = session.request(
                method, url, headers=headers, timeout=_TIMEOUT_S, stream=True, allow_redirects=True
            )
            answer.close()
            if failures >= retries or (answer.status_code < 500 and answer.status_code not in _OVERLOADED):
                return answer
            if answer.status_code == 501:
                return answer
            asked = answer.headers.get("Retry-After", "")
            wait_s = min(30.0, float(asked)) if asked.isdecimal() else 0.0
        except (requests.ConnectionError, requests.Timeout) as error:
            if failures >= retries:
                raise OSError(f"{_shown(url)}: the server cannot be reached: {_reason(error)}") from error
        except requests.RequestException as error:
            raise OSError(f"{_shown(url)}: {error}") from error
        failures += 1
        time.sleep(max(wait_s, back_off_s(failures)))


def _size(answer: requests.Response) -> int:
    if answer.status_code in (206, 416):
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else 0


def _reason(error: requests.RequestException) -> str:
    """Innermost reason: what stands around it repeats the address."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", inner)).rpartition(": ")[2]


def _shown(place: str) -> str:
    """Place without what may be secret in an address: a user's password, the keys of a query."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
