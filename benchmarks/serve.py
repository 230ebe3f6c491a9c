"""Speed of the HTTP service: processor time of the server per coordinate, requests made over a socket."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import requests

from benchmarks.measure import conditions, figure
from xmatch.catalog import build_catalog
from xmatch.service import serve

_UNIT = "coordinates/s"
_SEED = 20130
_SECONDS_PER_SERVER_START = 300.0
_RATIO_TO = "CrossWave's server as captured on another machine, not measured in this run"

# CrossWave cannot be run here. Processor time of its server per coordinate as captured elsewhere, on two cores with 5 M
# rows in SQLite, radius 1 arcsec, one neighbour: a bulk request of 5,000 without magnitudes, and a single request.
CROSSWAVE_BULK_SECONDS = (29e-6, 33e-6)
CROSSWAVE_SINGLE_SECONDS = (55e-6, 130e-6)


def run(rows: int = 5_000_000, coordinates: int = 5_000, requests_made: int = 40) -> Iterator[dict[str, Any]]:
    """Measure coordinates per second of the server's processor time.

    `serve` are bulk requests with magnitudes in the answer, `serve-plain` without, `serve-single` cone searches of
    one coordinate each. Nine of ten coordinates have a match.

    CrossWave's server cannot be run in the same run: the ratio is that to its best captured figure, which has no
    magnitudes and is of another machine. The conditions say so.

    Parameters
    ----------
    rows : int
        Size of the catalogue, AllWISE-like.
    coordinates : int
        Coordinates of a bulk request.
    requests_made : int
        Bulk requests of each kind; 25 times as many single ones.
    """
    random = np.random.default_rng(_SEED)
    with tempfile.TemporaryDirectory(prefix="alertbeam-serve-") as folder:
        source_ra, source_dec = _build_catalog(random, Path(folder), rows)
        bodies = [_body(random, source_ra, source_dec, coordinates) for _ in range(requests_made)]
        with _running_service(Path(folder) / "catalog") as url, requests.Session() as session:
            given = conditions("fastapi", "uvicorn", "orjson", catalog_rows=rows, radius_arcsec=1.0, ratio_to=_RATIO_TO)
            for name, with_metadata in (("serve", True), ("serve-plain", False)):
                seconds, matched, size = _bulk(session, url, bodies, with_metadata)
                asked = len(bodies) * coordinates
                sizes = {
                    "coordinates_per_request": coordinates,
                    "matched": matched,
                    "bytes_per_coordinate": round(size / asked),
                    "server_cpu_us": round(seconds / asked * 1e6, 2),
                    "crosswave_captured_us": [round(s * 1e6) for s in CROSSWAVE_BULK_SECONDS],
                }
                yield figure(name, asked / seconds, _UNIT, given | sizes, 1.0 / CROSSWAVE_BULK_SECONDS[0])
            asked = 25 * requests_made
            seconds = _single(session, url, source_ra[:asked], source_dec[:asked])
            sizes = {
                "server_cpu_us": round(seconds / asked * 1e6, 1),
                "crosswave_captured_us": [round(s * 1e6) for s in CROSSWAVE_SINGLE_SECONDS],
            }
            yield figure("serve-single", asked / seconds, _UNIT, given | sizes, 1.0 / CROSSWAVE_SINGLE_SECONDS[0])


def _bulk(session: requests.Session, url: str, bodies: list[dict], with_metadata: bool) -> tuple[float, int, int]:
    """Processor time of the server in seconds, number of matches, and bytes of the answers."""
    payloads = [orjson.dumps(body | {"getMetadata": with_metadata}) for body in bodies]
    _post(session, url, payloads[0])
    before = _cpu_seconds(session, url)
    answers = [_post(session, url, payload) for payload in payloads]
    seconds = _cpu_seconds(session, url) - before
    return seconds, sum(len(orjson.loads(answer)) for answer in answers), sum(map(len, answers))


def _post(session: requests.Session, url: str, payload: bytes) -> bytes:
    answer = session.post(f"{url}/v1/bulk-conesearch", data=payload, timeout=60)
    answer.raise_for_status()
    return answer.content


def _single(session: requests.Session, url: str, ra: np.ndarray, dec: np.ndarray) -> float:
    before = _cpu_seconds(session, url)
    for one_ra, one_dec in zip(ra.tolist(), dec.tolist(), strict=True):
        session.get(f"{url}/v1/conesearch?ra={one_ra}&dec={one_dec}&radius=1", timeout=60).raise_for_status()
    return _cpu_seconds(session, url) - before


def _cpu_seconds(session: requests.Session, url: str) -> float:
    """Processor time of the server so far, user and system, as it counts it itself."""
    lines = session.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("alertbeam_cpu_seconds_total "))


@contextmanager
def _running_service(catalog: Path) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(catalog, sending))
    process.start()
    try:
        deadline = time.monotonic() + _SECONDS_PER_SERVER_START
        while time.monotonic() < deadline and receiving.poll(deadline - time.monotonic()):
            text = receiving.recv()
            if text.startswith("serving at "):
                yield text.split()[2].rstrip(",")
                return
        raise TimeoutError("The service did not start.")
    finally:
        process.terminate()
        process.join()


def _serve(catalog: Path, told: Connection) -> None:
    serve([catalog], port=0, report=told.send)


def _build_catalog(random: np.random.Generator, folder: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    ra = random.uniform(0.0, 360.0, rows)
    dec = np.degrees(np.arcsin(random.uniform(-1.0, 1.0, rows)))
    columns: dict[str, Any] = {
        "AllWISE": pa.array(np.char.add("J", np.char.zfill(np.arange(rows).astype("U18"), 18))),
        "RAJ2000": np.round(ra, 7),
        "DEJ2000": np.round(dec, 7),
    }
    for name in [f"{e}W{band}mag" for band in range(1, 5) for e in ("", "e_")] + [
        f"{e}{band}mag" for band in "JHK" for e in ("", "e_")
    ]:
        missing = random.random(rows) > 1.0 / 3.0 if "W" not in name else None
        columns[name] = pa.array(np.round(random.uniform(6.0, 17.0, rows), 3), mask=missing)
    table = folder / "sources.parquet"
    pq.write_table(pa.table(columns), table)
    build_catalog(table, folder / "catalog", name="allwise")
    table.unlink()
    return columns["RAJ2000"], columns["DEJ2000"]


def _body(random: np.random.Generator, source_ra: np.ndarray, source_dec: np.ndarray, count: int) -> dict[str, Any]:
    near = random.integers(0, len(source_ra), count)
    ra, dec = source_ra[near].copy(), source_dec[near] + random.normal(0.0, 0.2 / 3600.0, count)
    lost = random.random(count) < 0.1
    ra[lost] = random.uniform(0.0, 360.0, int(lost.sum()))
    return {"ra": ra.tolist(), "dec": np.clip(dec, -90.0, 90.0).tolist(), "radius": 1, "catalog": "allwise"}
