"""Requests to a remote service on its bad days: time limits, retries of the very same request, bounded concurrency."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as TransportError

T = TypeVar("T")
S = TypeVar("S")

# Request timeout, too early, too many requests; all of 5xx but "not implemented" and "HTTP version not supported".
_TRANSIENT: Final = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
# Answers that may be due to some of the rows sent, or to their number.
_ABOUT_THE_CONTENT: Final = frozenset({400, 409, 413, 414, 422, 431})
# While so many requests in a row were given up, the service is taken to be down, and others are tried once only.
_GIVEN_UP_IN_A_ROW: Final = 5
_MAX_CONNECT_S: Final = 10.0
_MAX_BODY_BYTES: Final = 1 << 30
_PIECE_BYTES: Final = 1 << 18


class ServiceError(Exception):
    """A remote service gave no usable answer; the text is one sentence that says why."""


class NoAnswerError(ServiceError):
    """The same request was sent repeatedly in vain.

    Attributes
    ----------
    slow : bool
        The service took too long, so a smaller request may succeed.
    """

    def __init__(self, text: str, slow: bool = False) -> None:
        super().__init__(text)
        self.slow = slow


class RefusedError(ServiceError):
    """The service refuses the request, and would again.

    Attributes
    ----------
    status : int
        HTTP status.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status

    @property
    def about_the_content(self) -> bool:
        """Say whether a part of the request may be accepted."""
        return self.status in _ABOUT_THE_CONTENT


class BadAnswerError(Exception):
    """What a reader of answers raises for one that cannot be right; the request is then sent again."""


@dataclass(frozen=True)
class HttpSettings:
    """How a service is asked.

    Attributes
    ----------
    requests_at_once : int
        Never more than so many requests are under way to a service from one process.
    retries : int
        Attempts after the first one.
    retry_interval_s : float
        Wait before the first retry, in seconds; it doubles with each, less up to half of it at random.
    timeout_s : float
        For a whole answer, in seconds.
    max_wait_s : float
        Longest wait, also if the service asks for a longer one by ``Retry-After``.
    """

    requests_at_once: int = 4
    retries: int = 3
    retry_interval_s: float = 1.0
    timeout_s: float = 60.0
    max_wait_s: float = 60.0

    def validate(self) -> None:
        """Raise ValueError with one sentence if a value is out of bounds."""
        if self.requests_at_once < 1:
            raise ValueError(f"The number of requests at once must be at least 1, not {self.requests_at_once}.")
        if self.retries < 0:
            raise ValueError(f"The number of retries must not be negative, as {self.retries} is.")
        if not (self.retry_interval_s >= 0.0 and self.max_wait_s >= 0.0):
            raise ValueError(f"The wait before a retry must not be negative, as {self.retry_interval_s} s is.")
        if not self.timeout_s > 0.0:
            raise ValueError(f"The time limit of an answer must be above 0 s, not {self.timeout_s}.")


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes
    ----------
    status : int
    headers : mapping
        Names in any case.
    body : bytes
    framed : bool
        The answer said where its body ends, and it did end there.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    framed: bool

    @property
    def content_type(self) -> str:
        """Media type in lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class HttpCaller:
    """Sends requests to one service.

    Parameters
    ----------
    settings : HttpSettings
    sleep, chance, now : callable
        Waiting for seconds, a random number in [0, 1), seconds since 1970; tests replace them.
    """

    def __init__(
        self,
        settings: HttpSettings,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        settings.validate()
        self.settings = settings
        self._sleep, self._chance, self._now = sleep, chance, now
        self._given_up = 0
        self._session = requests.Session()
        # One session serves all threads; cookies are what they would trip over.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = HTTPAdapter(pool_maxsize=settings.requests_at_once)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def send(self, request: requests.Request, read: Callable[[Answer], T]) -> T:
        """Send a request until an answer can be read; give what the reader makes of it.

        The request is made once: each attempt sends the same bytes.

        Parameters
        ----------
        request : requests.Request
            Its body, if any, in memory.
        read : callable
            Called with each answer of status 2xx; raises BadAnswerError if it is wrong.

        Raises
        ------
        RefusedError
            If the service refuses the request (status 3xx, 4xx, 501).
        NoAnswerError
            If no attempt gave a good answer.
        """
        prepared = self._session.prepare_request(request)
        problem = _Problem("")
        attempts = 1 + (self.settings.retries if self._given_up < _GIVEN_UP_IN_A_ROW else 0)
        for attempt in range(attempts):
            if attempt:
                self._sleep(self._wait_s(attempt, problem.retry_after_s))
            try:
                answer = self._attempt(prepared)
            except (requests.RequestException, TransportError, OSError) as error:
                problem = _transport_problem(error, self.settings.timeout_s)
                continue
            if answer.status in _TRANSIENT:
                after = answer.headers.get("Retry-After", "")
                problem = _Problem(
                    f"HTTP {answer.status}{_excerpt(answer)}", answer.status in (408, 504), self._seconds(after)
                )
                continue
            if not 200 <= answer.status < 300:
                self._given_up = 0
                raise RefusedError(_refusal(prepared, answer), answer.status)
            try:
                result = read(answer)
            except BadAnswerError as error:
                problem = _Problem(str(error))
                continue
            self._given_up = 0
            return result
        self._given_up += 1
        times = "once" if attempts == 1 else f"{attempts} times"
        raise NoAnswerError(f"{place(prepared.url)}, asked {times}: {problem.text}", problem.slow)

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Apply a function that sends requests to items, as many at once as is allowed; results in their order."""
        items = list(items)
        threads = min(len(items), self.settings.requests_at_once)
        if threads <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))

    def _attempt(self, prepared: requests.PreparedRequest) -> Answer:
        assert prepared.url is not None
        environment = self._session.merge_environment_settings(prepared.url, {}, True, None, None)
        with _slots(urlsplit(prepared.url).netloc.rpartition("@")[2], self.settings.requests_at_once):
            # Time spent waiting for a slot does not count.
            end = time.monotonic() + self.settings.timeout_s
            limits = (min(_MAX_CONNECT_S, self.settings.timeout_s), self.settings.timeout_s)
            # A redirected POST would lose its body.
            response = self._session.send(prepared, timeout=limits, allow_redirects=False, **environment)
            with closing(response):
                body = _read_body(response, end)
        framed = "Content-Length" in response.headers or "chunked" in response.headers.get("Transfer-Encoding", "")
        return Answer(response.status_code, response.headers, body, framed)

    def _wait_s(self, attempt: int, retry_after_s: float) -> float:
        longest = self.settings.max_wait_s
        backoff = min(longest, self.settings.retry_interval_s * 2.0 ** (attempt - 1)) * (1.0 - 0.5 * self._chance())
        return max(backoff, min(longest, retry_after_s))

    def _seconds(self, retry_after: str) -> float:
        """Value of Retry-After, seconds or a date, as seconds from now; 0 if it is neither."""
        text = retry_after.strip()
        if text.isdecimal():
            return float(text)
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.fromtimestamp(self._now(), UTC)).total_seconds())


@dataclass(frozen=True)
class _Problem:
    text: str
    slow: bool = False
    retry_after_s: float = 0.0


@cache
def _slots(host: str, count: int) -> threading.BoundedSemaphore:
    """Slots of a service; copies of a matcher in one process share them."""
    return threading.BoundedSemaphore(count)


def _read_body(response: requests.Response, end: float) -> bytes:
    """Read to the end, piece by piece as they come: a trickle must not go on for ever.

    A body shorter than its Content-Length, or without its last chunk, raises.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > end:
            raise requests.Timeout
        if size > _MAX_BODY_BYTES:
            raise requests.ConnectionError(f"the answer is longer than {_MAX_BODY_BYTES:,} bytes")
    return b"".join(pieces)


def _transport_problem(error: Exception, timeout_s: float) -> _Problem:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return _Problem(f"no whole answer within {timeout_s:g} s", slow=True)
    cause: BaseException = error
    while cause.args and isinstance(inner := getattr(cause.args[0], "reason", cause.args[-1]), BaseException):
        cause = inner
    return _Problem(f"the connection failed: {' '.join(str(cause).split())[:200] or type(cause).__name__}")


def _excerpt(answer: Answer) -> str:
    """Beginning of an error's text, unless it is a page."""
    text = answer.body[:300].decode("utf-8", "replace").strip()
    if not text or text.startswith("<") or answer.content_type == "text/html":
        return ""
    return f" ({' '.join(text.split())[:200]})"


def _refusal(prepared: requests.PreparedRequest, answer: Answer) -> str:
    text = f"{place(prepared.url)} refuses with HTTP {answer.status}{_excerpt(answer)}"
    if 300 <= answer.status < 400:
        return f"{text}: the service has moved to {place(answer.headers.get('Location'))}; name that address"
    return text


def place(url: Any) -> str:
    """Address without credentials and parameters."""
    parts = urlsplit(str(url or ""))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_service_url(url: str) -> None:
    """Raise ValueError with one sentence unless it is an address of http or https."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"The service's address must be like https://host/path, not {url!r}.")
