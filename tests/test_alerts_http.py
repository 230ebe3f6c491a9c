"""Reading over HTTP: a real server on this machine that breaks, stumbles, lies or changes its mind."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from alerts_fixtures import ALERT, alert, container, schemaless
from test_alerts_reader import candids, contents, expected_candids, tar_of

from alerts import sources
from alerts.reader import Limits, read_source
from alerts.sources import HttpStream, find_sources


class Server(ThreadingHTTPServer):
    """Serves one file, with faults."""

    daemon_threads = True
    content = b""
    etag: str | None = '"one"'
    ranges = True
    length = True
    break_after = 0  # bytes of an answer after which the connection is cut
    statuses: tuple[int, ...] = ()  # answers to give before the file
    changes_after = 0  # answers after which the file is another one
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        self.close_connection = True
        if server.requests <= len(server.statuses):
            self.send_response(server.statuses[server.requests - 1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = '"two"' if server.changes_after and server.requests > server.changes_after else server.etag
        asked = self.headers.get("Range")
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if etag:
            self.send_header("ETag", etag)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: server.break_after or len(body)])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(sources.time, "sleep", lambda _: None)
    chance = random.Random(3)
    members = {
        f"{n}.avro": container([[schemaless(ALERT, {**alert(n), "cutoutScience": chance.randbytes(5000)})]])
        for n in range(1, 31)
    }
    found = Server(("127.0.0.1", 0), Handler)
    found.content = gzip.compress(tar_of(members), 1)
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/nights/night.tar.gz?key=1"


def read(server: Server) -> list:
    (source,) = find_sources([url(server)])
    return list(read_source(source, Limits(bytes=40_000)))


def test_a_url_gives_what_the_file_gives(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "night.tar.gz"
    path.write_bytes(server.content)
    (source,) = find_sources([str(path)])
    assert contents(read(server)) == contents(read_source(source))
    assert server.requests == 1


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_broken_connections_are_taken_up_again(server: Server, ranges: bool, etag: str | None) -> None:
    server.ranges, server.etag = ranges, etag
    server.break_after = len(server.content) // 3
    if not ranges:
        # Without parts, each answer begins anew and must get further than the last.
        server.break_after = 0
        server.statuses = (503,)
    assert candids(read(server)) == expected_candids(30)
    assert server.requests > 1


def test_a_server_without_parts_is_read_over(server: Server) -> None:
    server.ranges = False
    stream = HttpStream(url(server))
    server.break_after = 100_000
    first = b""
    while len(first) < 100_000:
        first += stream.read(100_000 - len(first))
    server.break_after = 0
    assert first + stream.read() == server.content
    assert server.requests == 2


def test_an_overloaded_server_is_asked_again(server: Server) -> None:
    server.statuses = (503, 502, 429)
    assert candids(read(server)) == expected_candids(30)
    assert server.requests == 4


@pytest.mark.parametrize("status", [404, 403, 410])
def test_what_is_not_there_stops_the_run_at_once(server: Server, status: int) -> None:
    server.statuses = (status,) * 9
    with pytest.raises(OSError, match=str(status)):
        read(server)
    assert server.requests == 1


def test_a_server_that_stays_away_stops_the_run(server: Server) -> None:
    server.statuses = (503,) * 99
    with pytest.raises(OSError, match="503"):
        read(server)
    assert server.requests == 6
    address = url(server)
    server.shutdown()
    server.server_close()
    (source,) = find_sources([address])
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        list(read_source(source))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_while_it_is_read_stops_the_run(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    server.break_after = 50_000
    server.changes_after = 1
    with pytest.raises(OSError, match="changed"):
        read(server)
    assert server.requests == 2


def test_an_answer_without_a_length_is_read_to_its_end(server: Server) -> None:
    server.length = False
    assert candids(read(server)) == expected_candids(30)
