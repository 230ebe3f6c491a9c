"""Building a catalogue from Parquet: rate and peak memory; and how queries slow down with its size."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.measure import conditions, figure
from xmatch.catalog import Catalog, build_catalog
from xmatch.matcher import nearest

_SEED = 75
_ROWS_PER_FILE = 5_000_000
_ROWS_PER_CHUNK = 1 << 20
_SECONDS_BETWEEN_SAMPLES = 0.1
_RADIUS_ARCSEC = 1.0
# LSDB holds all rows in memory.
_MOST_ROWS_FOR_LSDB = 5_000_000
_SMALLER = 20


def run(
    rows: int = 2_000_000, positions: int = 1_000_000, workers: int | None = None, folder: str | None = None
) -> Iterator[dict[str, Any]]:
    """Measure `catalog-build`, `catalog-build-hats` in rows/s, and `catalog-query`, `-sorted` in positions/s.

    The peer of the builds is LSDB, which makes a HATS catalogue of a table in memory (up to 5 M rows). That of the
    queries is the same search among a twentieth of the sources. Sources are uniform on the sphere with an identifier,
    five magnitudes, an integer and a class each; half of the positions lie near a source.

    Parameters
    ----------
    rows, positions : int
        Sizes of the catalogue and of the table of positions.
    workers : int, optional
        Processes of a build; one for each core by default.
    folder : str, optional
        Where to put the files: about 420 bytes for each row.
    """
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="alertbeam-catalog-", dir=folder) as scratch:
        table, small_table = Path(scratch) / "input", Path(scratch) / "small-input"
        _write_sources(table, rows)
        _write_sources(small_table, rows // _SMALLER)
        given = conditions("numpy", "pyarrow", catalog_rows=rows) | {"cores_used": workers}
        lines, peer = [], 0.0
        for name, with_hats in (("catalog-build", False), ("catalog-build-hats", True)):
            with _peak_memory() as memory:
                begin = time.perf_counter()
                catalog = build_catalog(
                    table, Path(scratch) / "catalog", name="generated", with_hats=with_hats, workers=workers
                )
                seconds = time.perf_counter() - begin
            size = sum(entry["bytes"] for entry in catalog.manifest["files"].values())
            lines.append((name, rows / seconds, given | memory | {"catalog_gb": round(size / 1e9, 2)}))
        if find_spec("lsdb") and rows <= _MOST_ROWS_FOR_LSDB:
            with _peak_memory() as memory:
                peer = rows / _lsdb_seconds(table, Path(scratch) / "lsdb")
            lines.append(("catalog-build-lsdb", peer, given | memory))
        for name, rate, sizes in lines:
            yield figure(name, rate, "rows/s", sizes, peer or rate, peer=name.endswith("lsdb"))
        small = build_catalog(small_table, Path(scratch) / "small", name="small", workers=workers)
        yield from _queries(catalog, small, positions, given | {"cores_used": 1})


def _queries(catalog: Catalog, small: Catalog, positions: int, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, is_sorted in (("catalog-query", False), ("catalog-query-sorted", True)):
        rates = []
        for each in (catalog, small):
            ra, dec = _positions(each, positions)
            if is_sorted:
                order = np.lexsort((ra, np.floor(dec * 360.0)))
                ra, dec = ra[order], dec[order]
            rates.append(positions / _best_seconds(partial(nearest, each, ra, dec, _RADIUS_ARCSEC)))
        sizes = given | {"positions": positions, "radius_arcsec": _RADIUS_ARCSEC}
        yield figure(name, rates[0], "positions/s", sizes, rates[1])
        yield figure(
            f"{name}-small", rates[1], "positions/s", sizes | {"catalog_rows": small.rows}, rates[1], peer=True
        )


def _best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return float(best)


def _positions(catalog: Catalog, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(_SEED)
    near = catalog.index.positions[np.sort(random.integers(0, catalog.rows, count // 2))]
    near = near + random.normal(0.0, 0.3 / 3600.0, near.shape)
    anywhere = np.stack(_random_sphere(random, count - count // 2), axis=1)
    positions = random.permutation(np.concatenate([near, anywhere]))
    return np.mod(positions[:, 0], 360.0), np.clip(positions[:, 1], -90.0, 90.0)


def _random_sphere(random: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return random.uniform(0.0, 360.0, count), np.degrees(np.arcsin(random.uniform(-1.0, 1.0, count)))


def _write_sources(folder: Path, rows: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(_SEED)
    for first in range(0, rows, _ROWS_PER_FILE):
        writer = None
        end = min(rows, first + _ROWS_PER_FILE)
        for begin in range(first, end, _ROWS_PER_CHUNK):
            chunk = _sources(random, begin, min(_ROWS_PER_CHUNK, end - begin))
            writer = writer or pq.ParquetWriter(
                folder / f"part{first // _ROWS_PER_FILE:04d}.parquet", chunk.schema, compression="zstd"
            )
            writer.write_table(chunk)
        if writer:
            writer.close()


def _sources(random: np.random.Generator, first: int, count: int) -> pa.Table:
    digits = pc.utf8_lpad(pa.array(np.arange(first, first + count)).cast(pa.string()), 18, "0")
    ra, dec = _random_sphere(random, count)
    columns: dict[str, Any] = {"designation": pc.binary_join_element_wise("J", digits, ""), "ra": ra, "dec": dec}
    for band in range(5):
        values = np.round(random.uniform(6.0, 17.0, count), 3)
        columns[f"mag{band}"] = pa.array(values, mask=random.random(count) < 0.1)
    columns["detections"] = random.integers(0, 100, count)
    columns["kind"] = pa.array(["star", "galaxy", None]).take(pa.array(random.integers(0, 3, count)))
    return pa.table(columns)


def _lsdb_seconds(table: Path, output: Path) -> float:
    import lsdb

    begin = time.perf_counter()
    frame = pq.read_table(table).to_pandas()
    catalog = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", partition_rows=1_000_000)
    catalog.write_catalog(output, catalog_name="peer", progress_bar=False)
    return time.perf_counter() - begin


@contextmanager
def _peak_memory() -> Iterator[dict[str, float]]:
    """Fill a mapping with the peak memory of this process and its children, with and without pages of files, in GB."""
    peak: dict[str, float] = {"peak_rss_gb": 0.0, "peak_own_gb": 0.0}
    stop = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not stop.wait(_SECONDS_BETWEEN_SAMPLES):
            memory = [_memory(each) for each in (process, *process.children(recursive=True))]
            peak["peak_rss_gb"] = max(peak["peak_rss_gb"], round(sum(rss for rss, _ in memory) / 1e9, 2))
            peak["peak_own_gb"] = max(peak["peak_own_gb"], round(sum(own for _, own in memory) / 1e9, 2))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _memory(process: psutil.Process) -> tuple[int, int]:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0, 0
    return memory.rss, memory.rss - memory.shared


def main() -> None:
    """Measure at a size of one's own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalog", description=run.__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--positions", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", help="where to put the files")
    options = parser.parse_args()
    for line in run(options.rows, options.positions, options.workers, options.folder):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
