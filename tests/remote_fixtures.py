"""Servers on this machine that behave like CDS X-Match and CrossWave, on good days and on bad ones."""

import csv
import email.parser
import email.policy
import email.utils
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from scipy.spatial import cKDTree

from xmatch.http import HttpSettings

FAST = HttpSettings(retries=3, retry_interval_s=0.001, timeout_s=5.0, max_wait_s=0.01)
# CDS column -> key of CrossWave.
CROSSWAVE_KEYS = {
    **{f"W{band}mag": f"w{band}mpro" for band in range(1, 5)},
    **{f"e_W{band}mag": f"w{band}sigmpro" for band in range(1, 5)},
    **{f"{band}mag": f"{band.lower()}_m_2mass" for band in "JHK"},
    **{f"e_{band}mag": f"{band.lower()}_msig_2mass" for band in "JHK"},
}


@dataclass
class Sky:
    """Sources as texts of a CSV, and the search among them: not the project's own, a k-d tree of unit vectors."""

    sources: list[dict[str, str]]
    identifier: str = "AllWISE"

    def __post_init__(self) -> None:
        self.ra = np.array([float(source["RAJ2000"]) for source in self.sources])
        self.dec = np.array([float(source["DEJ2000"]) for source in self.sources])
        self._tree = cKDTree(unit_vectors(self.ra, self.dec)) if self.sources else None

    @classmethod
    def read(cls, path: Path) -> "Sky":
        """Read a CSV with the columns of CDS, each source once."""
        with open(path, newline="") as file:
            return cls(list({row["AllWISE"]: row for row in csv.DictReader(file)}.values()))

    def near(self, ra: float, dec: float, radius_arcsec: float) -> list[tuple[float, int]]:
        """Distances in arcsec and numbers of the sources within the radius, the nearest first."""
        if self._tree is None:
            return []
        here = unit_vectors(np.array([ra]), np.array([dec]))[0]
        around = self._tree.query_ball_point(here, 2 * math.sin(math.radians(radius_arcsec / 3600) / 2) * (1 + 1e-6))
        found = sorted((haversine_arcsec(ra, dec, self.ra[i], self.dec[i]), i) for i in around)
        return [(distance, i) for distance, i in found if distance <= radius_arcsec]


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def haversine_arcsec(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    half_dec, half_ra = math.radians(dec2 - dec1) / 2, math.radians(ra2 - ra1) / 2
    across = math.cos(math.radians(dec1)) * math.cos(math.radians(dec2)) * math.sin(half_ra) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(math.sin(half_dec) ** 2 + across)))) * 3600


@dataclass
class Reply:
    """What a server sends."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/plain"
    # Bytes held back although the length announces them.
    withheld: int = 0
    framed: bool = True
    delay_s: float = 0.0
    trickle_s: float = 0.0


Mood = Callable[[int], str]


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def raw(self) -> tuple[str, str, bytes]:
        return self.method, self.path, self.body


class FakeServer:
    """A server whose mood is chosen anew for each request by its number."""

    def __init__(self, mood: Mood = lambda _: "good", work_s: float = 0.0) -> None:
        self.mood, self.work_s = mood, work_s
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def answer(self, request: Seen) -> Reply:
        """Answer as on a good day."""
        raise NotImplementedError

    def spoil(self, mood: str, request: Seen, good: Callable[[], Reply]) -> Reply:
        """Answer in a mood; moods that concern the content are the subclasses'."""
        match mood:
            case "good":
                return good()
            case "500" | "502" | "504" | "400" | "401" | "413":
                return Reply(int(mood), b"something is wrong")
            case "503":
                return Reply(503, b"busy", {"Retry-After": "7"})
            case "503-date":
                return Reply(503, b"busy", {"Retry-After": email.utils.formatdate(1_000_000_030, usegmt=True)})
            case "html":
                return Reply(200, b"<html><body>Maintenance</body></html>", content_type="text/html;charset=UTF-8")
            case "page":
                return Reply(200, b"\n<!DOCTYPE html><p>proxy error", content_type="text/csv")
            case "empty":
                return Reply(200, b"")
            case "redirect":
                return Reply(301, b"", {"Location": "https://elsewhere.example/xmatch"})
            case "truncated":
                reply = good()
                reply.withheld = max(1, len(reply.body) // 3)
                return reply
            case "unframed":
                reply = good()
                reply.framed = False
                return reply
            case "slow":
                reply = good()
                reply.delay_s = 1.0
                return reply
            case "trickle":
                reply = good()
                reply.trickle_s = 0.05
                return reply
            case "hangs up":
                return Reply(0)
        raise ValueError(mood)

    def handle(self, request: Seen) -> Reply:
        """Note a request and answer it."""
        with self._lock:
            number = len(self.seen)
            self.seen.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.work_s)
            return self.spoil(self.mood(number), request, lambda: self.answer(request))
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serving(server: FakeServer) -> Iterator[str]:
    """Serve on a free port; give the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self._respond()

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True)
            reply = server.handle(Seen(self.command, parts.path, query, dict(self.headers), body))
            time.sleep(reply.delay_s)
            try:
                self._send(reply)
            except OSError:
                self.close_connection = True

        def _send(self, reply: Reply) -> None:
            if not reply.status:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.status != 204:
                self.send_header("Content-Type", reply.content_type)
            if reply.framed and reply.status != 204:
                self.send_header("Content-Length", str(len(reply.body)))
            if not reply.framed or reply.withheld:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            body = reply.body[: len(reply.body) - reply.withheld]
            if reply.trickle_s:
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    self.wfile.flush()
                    time.sleep(reply.trickle_s)
            else:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


class FakeCds(FakeServer):
    """X-Match of CDS (alerce.md 1.4) over a sky."""

    def __init__(self, sky: Sky, mood: Mood = lambda _: "good", work_s: float = 0.0, most_rows: int = 10**9) -> None:
        super().__init__(mood, work_s)
        self.sky, self.most_rows = sky, most_rows
        self.refuses: Callable[[float, float], bool] = lambda ra, dec: False

    @staticmethod
    def parts(request: Seen) -> dict[str, str]:
        """Parts of the form, among them the file cat1."""
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
        return {
            str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True).decode()
            for part in message.iter_parts()
        }

    def answer(self, request: Seen) -> Reply:
        form = self.parts(request)
        if request.method != "POST" or form["request"] != "xmatch" or form["RESPONSEFORMAT"] != "csv":
            return Reply(400, b"bad request")
        header, *rows = csv.reader(io.StringIO(form["cat1"]))
        ra, dec = header.index(form["colRA1"]), header.index(form["colDec1"])
        # astropy/astroquery#1376
        if len(rows) < 2:
            return Reply(400, b"one row")
        if len(rows) > self.most_rows:
            return Reply(413, b"too many rows")
        if any(self.refuses(float(row[ra]), float(row[dec])) for row in rows):
            return Reply(400, b"bad row")
        columns = form["cols2"].split(",")
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["angDist", *(name or "col1" for name in header), *columns])
        for row in rows:
            near = self.sky.near(float(row[ra]), float(row[dec]), float(form["distMaxArcsec"]))
            for distance, i in near if form["selection"] == "all" else near[:1]:
                source = self.sky.sources[i]
                writer.writerow([f"{distance:.6f}", *row, *(source[name] for name in columns)])
        return Reply(200, out.getvalue().encode(), content_type="text/csv")

    def spoil(self, mood: str, request: Seen, good: Callable[[], Reply]) -> Reply:
        if mood not in CDS_SPOILERS:
            return super().spoil(mood, request, good)
        reply = good()
        if reply.status == 200:
            lines = [line.split(",") for line in reply.body.decode().splitlines()]
            CDS_SPOILERS[mood](lines)
            reply.body = "".join(",".join(line) + "\n" for line in lines).encode()
        return reply


def _drop_column(name: str) -> Callable[[list[list[str]]], None]:
    def drop(lines: list[list[str]]) -> None:
        place = lines[0].index(name)
        for line in lines:
            del line[place]

    return drop


def _rename_column(lines: list[list[str]]) -> None:
    lines[0][lines[0].index("W1mag")] = "W1MAG"


def _swap_sources(lines: list[list[str]]) -> None:
    """Sources of one row each at another one's."""
    width = lines[0].index("dec_in") + 1
    tails = [line[width:] for line in lines[1:]]
    for line, tail in zip(lines[1:], tails[1:] + tails[:1], strict=True):
        line[width:] = tail


def _set_column(name: str, change: Callable[[str], str]) -> Callable[[list[list[str]]], None]:
    def set_it(lines: list[list[str]]) -> None:
        place = lines[0].index(name)
        for line in lines[1:]:
            line[place] = change(line[place])

    return set_it


def _cut_line(lines: list[list[str]]) -> None:
    del lines[-1][-3:]


def _keep(part: slice) -> Callable[[list[list[str]]], None]:
    def keep(lines: list[list[str]]) -> None:
        lines[1:] = lines[1:][part]

    return keep


def _reverse(lines: list[list[str]]) -> None:
    lines[1:] = lines[:0:-1]


def _repeat(lines: list[list[str]]) -> None:
    lines += lines[1:]


CDS_SPOILERS: dict[str, Callable[[list[list[str]]], None]] = {
    "no col1": _drop_column("col1"),
    "no echo": _drop_column("ra_in"),
    "no distance": _drop_column("angDist"),
    "no W1mag": _drop_column("W1mag"),
    "renamed column": _rename_column,
    "swapped sources": _swap_sources,
    "other numbers": _set_column("col1", lambda text: str(int(text) + 1)),
    "numbers of nobody": _set_column("col1", lambda text: str(int(text) + 10**6)),
    "far": _set_column("angDist", lambda text: "1.5"),
    "text for a number": _set_column("W2mag", lambda text: "bright"),
    "cut in a line": _cut_line,
    "first half": lambda lines: _keep(slice(0, (len(lines) - 1) // 2))(lines),
    "last half": lambda lines: _keep(slice((len(lines) - 1) // 2, None))(lines),
    "nothing": _keep(slice(0, 0)),
    "reordered": _reverse,
    "repeated": _repeat,
}


class FakeCrossWave(FakeServer):
    """CrossWave as crosswave.md has captured it, with its planar neighbours.

    Parameters
    ----------
    form : str
        "present"; "extended" gives magnitudes with the bulk cone search; "no index" (before April 2026); "structs"
        (2025-08 to 2025-10, flat, lower case); "upper" (to 2025-08).
    """

    def __init__(
        self,
        sky: Sky,
        form: str = "present",
        mood: Mood = lambda _: "good",
        work_s: float = 0.0,
        catalog: str = "allwise",
    ) -> None:
        super().__init__(mood, work_s)
        self.sky, self.form, self.catalog = sky, form, catalog
        self.bulk = form in ("present", "extended", "no index")
        self.refuses: Callable[[float, float], bool] = lambda ra, dec: False
        self._numbers = {source[sky.identifier]: i for i, source in enumerate(sky.sources)}

    def neighbours(self, ra: float, dec: float, radius: float, count: int) -> list[tuple[float, int]]:
        """Nearest in the plane among those of the touched pixels, and then only those within the radius."""
        pixels = self.sky.near(ra, dec, radius + 1.0)
        planar = sorted(pixels, key=lambda pair: math.hypot(self.sky.ra[pair[1]] - ra, self.sky.dec[pair[1]] - dec))
        return [(distance, i) for distance, i in planar[:count] if distance <= radius]

    def answer(self, request: Seen) -> Reply:
        match request.method, request.path.removeprefix("/v1/"):
            case "GET", "conesearch":
                query = {name: values[0] for name, values in request.query.items()}
                position = float(query["ra"]), float(query["dec"])
                return self._cones([position[0]], [position[1]], query, single=True)
            case "POST", "bulk-conesearch" if self.bulk:
                asked = json.loads(request.body)
                return self._cones(asked["ra"], asked["dec"], asked, single=False)
            case "GET", "metadata":
                number = self._numbers.get(request.query["id"][0])
                return Reply(204) if number is None else as_json(self._metadata(number))
            case "POST", "bulk-metadata" if self.bulk:
                asked = json.loads(request.body)
                if len(asked["ids"]) > 32_766:
                    return as_json("Could not execute metadata query", 500)
                found = sorted({self._numbers[text] for text in asked["ids"] if text in self._numbers})
                return as_json([self._metadata(number) for number in found] or None)
        return Reply(404, b"404 page not found")

    def _cones(self, ra: Sequence[float], dec: Sequence[float], asked: dict[str, Any], single: bool) -> Reply:
        for position in zip(ra, dec, strict=True):
            if self.refuses(*position):
                return as_json({"Reason": "RA can't be greater than 360", "ErrValue": "361.000", "Field": "RA"}, 400)
        elements: list[Any] = []
        for index, position in enumerate(zip(ra, dec, strict=True)):
            found = self.neighbours(*position, float(asked["radius"]), int(asked.get("nneighbor", 1)))
            items = [self._item(i, distance, asked) for distance, i in found]
            if self.form in ("structs", "upper"):
                elements += items
                continue
            for some in [items] if single and items else [[item] for item in items]:
                number = {} if self.form == "no index" and not single else {"index": index}
                elements.append({"catalog": self.catalog, "data": some} | number)
        return as_json(elements) if elements else Reply(204)

    def _item(self, i: int, distance: float, asked: dict[str, Any]) -> dict[str, Any]:
        source = self.sky.sources[i]
        item = {"id": source[self.sky.identifier], "ipix": i, "ra": self.sky.ra[i], "dec": self.sky.dec[i]}
        item["cat"] = self.catalog
        if self.form == "upper":
            return {key.capitalize() if key != "id" else "ID": value for key, value in item.items()}
        if self.form == "structs":
            return item
        item["distance"] = distance
        return item | (self._magnitudes(i) if self.form == "extended" and asked.get("getMetadata") else {})

    def _magnitudes(self, i: int) -> dict[str, Any]:
        source = self.sky.sources[i]
        return {key: float(source[name]) if source[name] else None for name, key in CROSSWAVE_KEYS.items()}

    def _metadata(self, i: int) -> dict[str, Any]:
        identifier, values = self.sky.sources[i][self.sky.identifier], self._magnitudes(i)
        if self.form == "upper":
            found = {key[0].upper() + key[1:]: -9999 if value is None else value for key, value in values.items()}
            return {"Source_id": identifier} | found
        if self.form == "structs":
            structs = {key: {"Float64": value or 0, "Valid": value is not None} for key, value in values.items()}
            return {"id": identifier, "cntr": i} | structs
        return {"id": identifier, "cntr": i} | values | {"ra": self.sky.ra[i], "dec": self.sky.dec[i]}


def as_json(value: Any, status: int = 200) -> Reply:
    body = json.dumps(value, allow_nan=False).encode()
    return Reply(status, body, content_type="application/json; charset=utf-8")
