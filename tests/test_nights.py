"""Nights by their dates, from a folder or a real server on this machine that misbehaves; fingerprints of inputs."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from alerts_fixtures import packet
from test_alerts_reader import tar_of

from alerts import nights, sources
from alerts.fingerprint import fingerprint
from alerts.nights import ask, find_nights, night_name, parse_date, with_sizes
from alerts.reader import read_source
from alerts.sources import InputError, find_sources

FIRST, LAST = date(2018, 6, 28), date(2018, 7, 2)


class Server(ThreadingHTTPServer):
    """Serves files below /public/, with faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()  # requests by method
        self.paths: list[str] = []
        self.head_status = 200
        self.faults: list[int] = []  # answers before the real ones
        self.length = True
        self.ranges = True
        self.etag: str | None = '"one"'
        self.modified: str | None = None
        self.key = ""  # that the query must have
        self.retry_after = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/public"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.server
        server.asked[self.command] += 1
        server.paths.append(self.path)
        path, _, query = self.path.partition("?")
        content = server.files.get(path.removeprefix("/public/"))
        if server.faults:
            return self.end(server.faults.pop())
        if not body and server.head_status != 200:
            return self.end(server.head_status)
        if query != server.key:
            return self.end(401)
        if content is None:
            return self.end(404)
        part = body and server.ranges and "Range" in self.headers
        if part and not content:
            return self.end(416, {"Content-Range": "bytes */0"})
        length = {"Content-Length": str(1 if part else len(content))} if server.length else {"Connection": "close"}
        found = {"Content-Range": f"bytes 0-0/{len(content)}"} if part else {}
        marks = {"ETag": server.etag, "Last-Modified": server.modified}
        self.send(206 if part else 200, {**length, **found, **{k: v for k, v in marks.items() if v}})
        if body:
            self.wfile.write(content[:1] if part else content)
        return None

    def end(self, status: int, headers: dict[str, str] | None = None) -> None:
        late = {"Retry-After": self.server.retry_after} if self.server.retry_after else {}
        self.send(status, {"Content-Length": "0", **late, **(headers or {})})

    def send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = headers.get("Connection") == "close"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited; none is."""
    found: list[float] = []
    monkeypatch.setattr(nights.time, "sleep", found.append)
    return found


@pytest.fixture
def server(waits: list[float]) -> Iterator[Server]:
    found = Server()
    archive = gzip.compress(tar_of({f"{n}.avro": packet(n) for n in range(1, 4)}))
    # Nothing on the 30th and the 1st.
    found.files = {night_name(date(2018, *day)): archive for day in ((6, 28), (6, 29), (7, 2))}
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def dates(found: nights.Nights) -> list[str]:
    return [source.location.partition("?")[0][-15:-7] for source in found.sources]


class TestDates:
    @pytest.mark.parametrize("text", ["2018-06-01", "20180601", " 2018-06-01 "])
    def test_read(self, text: str) -> None:
        assert parse_date(text) == date(2018, 6, 1)

    @pytest.mark.parametrize(
        "text", ["", "2018-6-1", "2018-0601", "01-06-2018", "2018-06-31", "20181301", "2018-W01-1"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is no date"):
            parse_date(text)


class TestServer:
    def test_nights_are_found_with_their_sizes(self, server: Server) -> None:
        told: list[str] = []
        found = find_nights(FIRST, LAST, server.url, told.append)
        assert dates(found) == ["20180628", "20180629", "20180702"]
        assert found.absent == [date(2018, 6, 30), date(2018, 7, 1)]
        assert {source.size for source in found.sources} == {len(server.files[night_name(FIRST)])}
        assert {source.validator for source in found.sources} == {'"one"'}
        assert server.asked == {"HEAD": 5}
        assert len(told) == 1
        assert "3 of 5 nights" in told[0]
        assert told[0].endswith("none of 2018-06-30, 2018-07-01")
        assert len(next(iter(read_source(found.sources[0])))) == 3

    def test_the_same_file_has_the_same_name_as_a_plain_url(self, server: Server) -> None:
        (night,) = find_nights(FIRST, FIRST, server.url + "/").sources
        (plain,) = find_sources([f"{server.url}/{night_name(FIRST)}"])
        assert replace(night, size=0, validator="") == plain

    def test_a_query_is_kept_and_does_not_name(self, server: Server) -> None:
        plain = find_nights(FIRST, LAST, server.url)
        server.key = "token=a/b&x=1"
        found = find_nights(FIRST, LAST, f"{server.url}/?{server.key}#part")
        assert [source.name for source in found.sources] == [source.name for source in plain.sources]
        assert server.paths[-1].startswith("/public/ztf_public_2018")
        assert server.paths[-1].endswith(".tar.gz?token=a/b&x=1")
        assert len(next(iter(read_source(found.sources[0])))) == 3

    @pytest.mark.parametrize("status", [403, 405, 501])
    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_server_without_head(self, server: Server, status: int, ranges: bool) -> None:
        server.head_status, server.ranges = status, ranges
        found = find_nights(FIRST, LAST, server.url)
        assert dates(found) == ["20180628", "20180629", "20180702"]
        assert {source.size for source in found.sources} == {len(server.files[night_name(FIRST)])}
        assert server.asked == {"HEAD": 5, "GET": 5}

    @pytest.mark.parametrize("ranges", [True, False])
    def test_without_a_length(self, server: Server, ranges: bool) -> None:
        server.length, server.ranges = False, ranges
        (night,) = find_nights(FIRST, FIRST, server.url).sources
        assert night.size == (len(server.files[night_name(FIRST)]) if ranges else 0)
        assert night.validator == '"one"'

    @pytest.mark.parametrize("head_status", [200, 405])
    def test_an_empty_file_is_there(self, server: Server, head_status: int) -> None:
        server.files = {night_name(FIRST): b""}
        server.head_status = head_status
        assert len(find_nights(FIRST, FIRST, server.url).sources) == 1

    def test_an_overloaded_server_is_asked_again(self, server: Server, waits: list[float]) -> None:
        server.faults = [503, 429, 500]
        assert len(find_nights(FIRST, FIRST, server.url).sources) == 1
        assert len(waits) == 3
        assert 0.2 <= waits[0] <= 0.4 <= waits[1] <= 0.8 <= waits[2] <= 1.6

    def test_a_server_says_when_to_come_back(self, server: Server, waits: list[float]) -> None:
        server.faults, server.retry_after = [503], "7"
        assert ask(f"{server.url}/{night_name(FIRST)}") is not None
        assert waits == [7.0]

    def test_a_server_that_stays_faulty_stops_the_search(self, server: Server) -> None:
        server.faults = [503] * 99
        with pytest.raises(OSError, match=r"ztf_public_\d+.tar.gz: the server answers 503"):
            find_nights(FIRST, LAST, server.url)

    def test_a_server_that_refuses_is_no_night_without_observations(self, server: Server) -> None:
        server.key = "secret"
        address = server.url.replace("http://", "http://me:s3cret@") + "?secret=no"
        with pytest.raises(OSError, match="answers 401") as caught:
            find_nights(FIRST, LAST, address)
        assert "s3cret" not in str(caught.value)
        assert "secret=no" not in str(caught.value)

    def test_no_night_is_there(self, server: Server) -> None:
        with pytest.raises(InputError, match="no archive of the 2 nights"):
            find_nights(date(2018, 6, 30), date(2018, 7, 1), server.url)

    def test_nobody_answers(self, server: Server, waits: list[float]) -> None:
        server.shutdown()
        server.server_close()
        with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+/public/.*cannot be reached.*refused"):
            find_nights(FIRST, FIRST, server.url)
        assert len(waits) == 5

    def test_a_slow_server(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nights, "_TIMEOUT_S", (0.2, 0.2))
        hung = threading.Event()
        monkeypatch.setattr(Handler, "do_HEAD", lambda _: hung.wait(5))
        with pytest.raises(OSError, match=r"cannot be reached.*timed out"):
            ask(f"{server.url}/{night_name(FIRST)}", retries=1)
        hung.set()

    def test_many_nights_are_asked_for_once_each(self, server: Server) -> None:
        found = find_nights(date(2018, 5, 1), date(2018, 8, 31), server.url)
        assert len(found.sources) == 3
        assert len(found.absent) == 120
        assert sorted(server.paths) == sorted(set(server.paths))

    def test_sizes_of_plain_addresses(self, server: Server, tmp_path: Path) -> None:
        local = tmp_path / "a.tar"
        local.write_bytes(tar_of({"1.avro": packet(1)}))
        there, not_there = f"{server.url}/{night_name(FIRST)}", f"{server.url}/absent.tar.gz"
        before = find_sources([there, not_there, "http://127.0.0.1:1/x.tar.gz", str(local)])
        after = with_sizes(before)
        assert [source.name for source in after] == [source.name for source in before]
        sizes = {source.location: source.size for source in after}
        assert sizes[there] == len(server.files[night_name(FIRST)])
        assert (sizes[not_there], sizes["http://127.0.0.1:1/x.tar.gz"]) == (0, 0)
        assert sizes[str(local)] == local.stat().st_size


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for day in (28, 29):
            (tmp_path / night_name(date(2018, 6, day))).write_bytes(gzip.compress(tar_of({"1.avro": packet(day)})))
        with tarfile.open(tmp_path / night_name(date(2018, 6, 30)), "w:gz"):
            pass
        return tmp_path

    def test_nights(self, folder: Path) -> None:
        found = find_nights(FIRST, LAST, str(folder))
        assert found.sources == find_sources([str(folder)])
        assert found.absent == [date(2018, 7, 1), date(2018, 7, 2)]
        # An archive without a packet, as ZTF has it of cloudy nights.
        assert list(read_source(found.sources[2])) == []

    @pytest.mark.parametrize(
        ("first", "last", "archive", "sentence"),
        [
            (LAST, FIRST, "", "exchange them"),
            (FIRST, LAST, "/absent", "no such folder"),
            (FIRST, LAST, "/ztf_public_20180628.tar.gz", "no such folder"),
            (date(2017, 1, 1), date(2017, 1, 9), "", "no archive of the 9 nights"),
        ],
    )
    def test_refused(self, folder: Path, first: date, last: date, archive: str, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            find_nights(first, last, f"{folder}{archive}")

    def test_another_scheme(self) -> None:
        with pytest.raises(InputError, match="s3://bucket: an archive is a folder, or an address"):
            find_nights(FIRST, LAST, "s3://bucket?key=1")

    def test_many_absent_nights_are_told_in_short(self, folder: Path) -> None:
        told: list[str] = []
        find_nights(FIRST, date(2018, 8, 31), str(folder), told.append)
        assert told[0].endswith("2018-07-10 and 52 more")


class TestFingerprint:
    def change(self, path: Path, place: int) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    @pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
    def test_archive(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(random.Random(size).randbytes(size))
        (source,) = find_sources([str(path)])
        first = fingerprint(source)
        os.utime(path, (1, 1))
        assert fingerprint(source) == first
        (other,) = find_sources([str(shutil.copytree(tmp_path, tmp_path / "copy") / "a.tar.gz")])
        assert fingerprint(other) == first
        for place in (0, size // 3, size - 1) if size else ():
            self.change(path, place)
            # What lies more than a MiB from both ends is not looked at.
            assert (fingerprint(source) != first) == (place < 1 << 20 or size - place <= 1 << 20)
            self.change(path, place)
        with open(path, "ab") as file:
            file.write(b"x")
        assert fingerprint(source) != first

    def test_every_packet_of_loose_files_counts(self, tmp_path: Path) -> None:
        folder = tmp_path / "night"
        folder.mkdir()
        paths = [folder / f"{n}.avro" for n in range(20)]
        for n, path in enumerate(paths):
            path.write_bytes(packet(n, cutout=9000))
        (source,) = find_sources([str(folder)])
        first = fingerprint(source)
        (copy,) = find_sources([str(shutil.copytree(folder, tmp_path / "copy"))])
        assert fingerprint(copy) == first
        for path in paths[::7]:
            # The marker that ends a packet is its writer's: another packet of the same size ends otherwise.
            self.change(path, -1)
            assert fingerprint(source) != first
            self.change(path, -1)
        assert fingerprint(source) == first
        paths[3].rename(folder / "3_.avro")
        (renamed,) = find_sources([str(folder)])
        assert fingerprint(renamed) != first
        with pytest.raises(FileNotFoundError):
            fingerprint(source)

    def test_address(self, server: Server) -> None:
        server.files["a.tar"] = b"x" * 1000
        (source,) = find_sources([f"{server.url}/a.tar"])
        first = fingerprint(source)
        assert first == '1000:"one"'
        (known,) = with_sizes([source])
        server.asked.clear()
        assert fingerprint(known) == first
        assert not server.asked
        server.etag, server.modified = None, "Mon, 04 Jun 2018 10:00:00 GMT"
        assert fingerprint(source) == "1000:Mon, 04 Jun 2018 10:00:00 GMT"
        server.modified, server.length, server.ranges = None, False, False
        assert fingerprint(source) == ""
        del server.files["a.tar"]
        assert fingerprint(source) == ""


def test_pauses_grow_to_half_a_minute() -> None:
    for failures in range(1, 12):
        longest = min(30, 0.2 * 2**failures)
        pauses = {sources.back_off_s(failures) for _ in range(20)}
        assert len(pauses) == 20
        assert all(longest / 2 <= pause <= longest for pause in pauses)
