"""The caller of services: the same bytes again, the waits between, and never too many at once."""

import contextlib
import threading
from collections.abc import Callable

import pytest
import requests
from remote_fixtures import FakeServer, Reply, Seen, serving

from xmatch.http import Answer, BadAnswerError, HttpCaller, HttpSettings, NoAnswerError, RefusedError, check_service_url


class Echo(FakeServer):
    """Sends back what it got."""

    def answer(self, request: Seen) -> Reply:
        return Reply(200, request.body or b"nothing")


def moods(*names: str) -> Callable[[int], str]:
    """Moods one after another, then good ones."""
    return lambda number: names[number] if number < len(names) else "good"


class Waits:
    """A sleep that only notes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def post(url: str, body: bytes = b"rows") -> requests.Request:
    return requests.Request("POST", url, data={"a": "1"}, files={"f": ("f.csv", body)})


def body_of(answer: Answer) -> bytes:
    return answer.body


@pytest.mark.parametrize("mood", ["500", "502", "503", "504", "hangs up", "truncated"])
def test_a_retry_sends_the_very_same_request(mood: str) -> None:
    server = Echo(moods(mood, mood, mood))
    with serving(server) as url:
        caller = HttpCaller(HttpSettings(retries=3), sleep=Waits())
        answer = caller.send(post(url), body_of)
    assert len(server.seen) == 4
    assert len({request.raw for request in server.seen}) == 1
    assert len({request.headers["Content-Type"] for request in server.seen}) == 1
    assert answer == server.seen[0].body


def test_what_the_reader_refuses_is_asked_again() -> None:
    def read(answer: Answer) -> bytes:
        if len(server.seen) < 3:
            raise BadAnswerError("not this one")
        return answer.body

    server = Echo()
    with serving(server) as url:
        HttpCaller(HttpSettings(retries=3), sleep=Waits()).send(post(url), read)
        assert len(server.seen) == 3
        with pytest.raises(NoAnswerError, match=r"asked 2 times: never good"):
            HttpCaller(HttpSettings(retries=1), sleep=Waits()).send(post(url), bad)


def bad(_: Answer) -> None:
    raise BadAnswerError("never good")


def test_waits_double_and_vary() -> None:
    waits = Waits()
    with serving(Echo(lambda _: "500")) as url:
        settings = HttpSettings(retries=5, retry_interval_s=2.0, max_wait_s=20.0)
        with pytest.raises(NoAnswerError, match=r"^http://127\.0\.0\.1:\d+/x, asked 6 times: HTTP 500 \(something is"):
            HttpCaller(settings, sleep=waits, chance=lambda: 0.0).send(post(f"{url}/x"), body_of)
        assert waits.seconds == [2.0, 4.0, 8.0, 16.0, 20.0]
        shorter = Waits()
        with pytest.raises(NoAnswerError):
            HttpCaller(settings, sleep=shorter, chance=lambda: 0.999).send(post(url), body_of)
    assert all(a / 2 <= b <= a for a, b in zip(waits.seconds, shorter.seconds, strict=True))


def test_retry_after_in_seconds_and_as_a_date() -> None:
    waits = Waits()
    with serving(Echo(moods("503", "503-date"))) as url:
        caller = HttpCaller(HttpSettings(retries=3, retry_interval_s=0.1), waits, lambda: 0.0, now=lambda: 1e9)
        caller.send(post(url), body_of)
    assert waits.seconds == [7.0, 30.0]


def test_retry_after_has_a_limit() -> None:
    waits = Waits()
    with serving(Echo(moods("503", "503-date"))) as url:
        settings = HttpSettings(retries=3, retry_interval_s=0.1, max_wait_s=5.0)
        HttpCaller(settings, waits, now=lambda: 1e9).send(post(url), body_of)
    assert waits.seconds == [5.0, 5.0]


@pytest.mark.parametrize("mood", ["400", "401", "413"])
def test_a_refusal_is_not_repeated(mood: str) -> None:
    server = Echo(lambda _: mood)
    with serving(server) as url, pytest.raises(RefusedError, match=rf"refuses with HTTP {mood}") as caught:
        HttpCaller(HttpSettings()).send(post(url), body_of)
    assert len(server.seen) == 1
    assert caught.value.about_the_content == (mood != "401")


def test_a_redirect_says_where_to() -> None:
    with (
        serving(Echo(lambda _: "redirect")) as url,
        pytest.raises(RefusedError, match=r"moved to https://elsewhere\.example"),
    ):
        HttpCaller(HttpSettings()).send(post(url), body_of)


@pytest.mark.parametrize("mood", ["slow", "trickle"])
def test_a_slow_answer_ends(mood: str) -> None:
    with (
        serving(Echo(lambda _: mood)) as url,
        pytest.raises(NoAnswerError, match=r"no whole answer within 0\.2 s") as e,
    ):
        HttpCaller(HttpSettings(retries=0, timeout_s=0.2)).send(post(url), body_of)
    assert e.value.slow


def test_no_server() -> None:
    with serving(Echo()) as url:
        pass
    with pytest.raises(NoAnswerError, match=r"asked 2 times: the connection failed: .*refused"):
        HttpCaller(HttpSettings(retries=1), sleep=Waits()).send(post(url), body_of)


def test_an_answer_says_whether_its_end_was_marked() -> None:
    with serving(Echo(moods("unframed"))) as url:
        caller = HttpCaller(HttpSettings())
        assert [caller.send(post(url), lambda answer: answer.framed) for _ in range(2)] == [False, True]


def test_a_service_that_is_down_is_tried_once_only_until_it_answers() -> None:
    server = Echo(lambda number: "500" if number < 30 else "good")
    with serving(server) as url:
        caller = HttpCaller(HttpSettings(retries=3), sleep=Waits())
        asked = []
        for _ in range(16):
            before = len(server.seen)
            with contextlib.suppress(NoAnswerError):
                caller.send(post(url), body_of)
            asked.append(len(server.seen) - before)
    # Five with three retries, then one each, the last of which is the 31st request and good.
    assert asked == [4] * 5 + [1] * 11


@pytest.mark.parametrize("limit", [1, 3])
def test_never_more_at_once_than_allowed(limit: int) -> None:
    """Two callers, as two unpickled matchers of a process have them, share the limit."""
    server = Echo(lambda number: "500" if number % 3 == 0 else "good", work_s=0.01)
    with serving(server) as url:
        callers = [HttpCaller(HttpSettings(limit, retries=9, retry_interval_s=0.0)) for _ in range(2)]
        results: list[list[bytes]] = []
        threads = [
            threading.Thread(
                target=lambda c=caller: results.append(c.map(lambda i: c.send(post(url), body_of), range(12)))
            )
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(result) for result in results] == [12, 12]
    assert server.most_at_once == limit


def test_results_are_in_the_order_of_the_items() -> None:
    assert HttpCaller(HttpSettings(3)).map(lambda i: i * i, range(20)) == [i * i for i in range(20)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (HttpSettings(requests_at_once=0), "requests at once must be at least 1"),
        (HttpSettings(retries=-1), "retries must not be negative"),
        (HttpSettings(retry_interval_s=-1), "wait before a retry"),
        (HttpSettings(timeout_s=0), "time limit"),
        (HttpSettings(timeout_s=float("nan")), "time limit"),
    ],
)
def test_settings(settings: HttpSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.validate()


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://", "https:///path", "http://host:99999", "http://["])
def test_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="must be like https://host/path"):
        check_service_url(url)
    check_service_url("https://user:secret@host:8080/path")


def test_credentials_are_not_told() -> None:
    with serving(Echo(lambda _: "401")) as url, pytest.raises(RefusedError) as caught:
        HttpCaller(HttpSettings()).send(post(url.replace("://", "://me:secret@") + "?key=secret"), body_of)
    assert "secret" not in str(caught.value)
