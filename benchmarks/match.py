"""Speed of the local crossmatch, beside scipy, astropy and LSDB on the same sources and positions."""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy import units
from astropy.coordinates import SkyCoord, match_coordinates_sky
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks.measure import conditions, figure
from xmatch.catalog import Catalog, build_catalog, open_catalog
from xmatch.matcher import LocalMatcher, nearest
from xmatch.sources import ALLWISE_COLUMNS

_UNIT = "positions/s"
_SEED = 20130
_CHUNK_ROWS = 1 << 20
_RADIUS_ARCSEC = 1.0


def run(rows: int = 5_000_000, positions: int = 1_000_000, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """Measure `match-unsorted`, `match-sorted` (nearest only) and `match-columns` (nearest and 17 columns).

    Sources are uniform on the sphere. Half of the positions lie near a source (0.3 arcsec scatter on each axis), half
    anywhere. The best of `repeats` runs counts, one thread each. "Sorted" means by declination zone and right
    ascension, as alerts of one field nearly are. All must find as many matches. The peers have their indexes and the
    positions as objects of their own types in memory beforehand (but LSDB builds its trees in every call); astropy and
    LSDB are measured once, after a first call.

    Parameters
    ----------
    rows, positions : int
        Sizes of the catalogue and of the table of positions.
    repeats : int
    """
    random = np.random.default_rng(_SEED)
    source_ra, source_dec = _random_sphere(random, rows)
    ra, dec = _positions(random, source_ra, source_dec, positions)
    with tempfile.TemporaryDirectory(prefix="alertbeam-match-") as folder:
        catalog, given = _allwise_like(random, Path(folder), source_ra, source_dec)
        given |= conditions(
            *("numpy", "scipy", "astropy", *(["lsdb"] if find_spec("lsdb") else [])),
            positions=positions,
            radius_arcsec=_RADIUS_ARCSEC,
            matched=int(np.count_nonzero(nearest(catalog, ra, dec, _RADIUS_ARCSEC)[0] >= 0)),
        )
        peers = {"ckdtree": _ckdtree(source_ra, source_dec), "astropy": _astropy(source_ra, source_dec)}
        if find_spec("lsdb"):
            peers["lsdb"] = _lsdb(source_ra, source_dec)
        else:
            print("LSDB is not installed: its figure is left out", file=sys.stderr)
        order = _sorted_order(ra, dec)
        for name, asked in (("match-unsorted", (ra, dec)), ("match-sorted", (ra[order], dec[order]))):
            ours = _best_rate(positions, repeats, partial(nearest, catalog, *asked, _RADIUS_ARCSEC))
            rates = {}
            for peer, prepare in peers.items():
                match = prepare(*asked)
                found = match()
                if found != given["matched"]:
                    raise AssertionError(f"{peer} finds {found} matches instead of {given['matched']}")
                rates[peer] = _best_rate(positions, repeats if peer == "ckdtree" else 1, match)
            best = max(rates.values())
            yield figure(name, ours, _UNIT, given, best)
            for peer, rate in rates.items():
                yield figure(f"{name}-{peer}", rate, _UNIT, given, best, peer=True)
            if name == "match-unsorted":
                matcher = LocalMatcher(catalog)
                matcher.match(ra[:1], dec[:1])
                columns = _best_rate(positions, repeats, partial(matcher.match, ra, dec))
                yield figure("match-columns", columns, _UNIT, given | {"columns": len(ALLWISE_COLUMNS)}, best)


def run_large(
    rows: int = 100_000_000, small_rows: int = 5_000_000, positions: int = 1_000_000, repeats: int = 3
) -> Iterator[dict[str, Any]]:
    """Measure `match-large-unsorted` and `match-large-sorted` on a large catalogue; the ratio is to a small one.

    As `run`, but the sources have nothing but an identifier, are made piece by piece, and no peer could hold them.
    `resident_bytes` is this process's memory without the pages of files, after the runs.
    """
    rates: dict[int, list[float]] = {}
    given: dict[str, Any] = {}
    for count in (small_rows, rows):
        with tempfile.TemporaryDirectory(prefix="alertbeam-match-") as folder:
            begin = time.perf_counter()
            catalog = _positions_only(Path(folder), count)
            build_s = time.perf_counter() - begin
            begin = time.perf_counter()
            catalog = open_catalog(catalog.path)
            open_ms = (time.perf_counter() - begin) * 1e3
            random = np.random.default_rng(_SEED)
            near = catalog.index.positions[np.sort(random.integers(0, count, positions))]
            ra, dec = _positions(random, near[:, 0], near[:, 1], positions)
            order = _sorted_order(ra, dec)
            rates[count] = [
                _best_rate(positions, repeats, partial(nearest, catalog, *asked, _RADIUS_ARCSEC))
                for asked in ((ra, dec), (ra[order], dec[order]))
            ]
            memory = psutil.Process().memory_info()
            given = conditions(
                "numpy",
                catalog_rows=count,
                positions=positions,
                radius_arcsec=_RADIUS_ARCSEC,
                build_s=round(build_s, 1),
                open_ms=round(open_ms, 1),
                resident_bytes=memory.rss - getattr(memory, "shared", 0),
            )
        for name, rate, small in zip(("unsorted", "sorted"), rates[count], rates[small_rows], strict=True):
            yield figure(f"match-large-{name}", rate, _UNIT, given, small, peer=count == small_rows)


def main(argv: list[str] | None = None) -> int:
    """Run `run_large` with sizes of one's own and print its lines as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.match", description="Crossmatch with a large catalogue beside a small one."
    )
    parser.add_argument("--rows", type=int, default=100_000_000, metavar="N")
    parser.add_argument("--small-rows", type=int, default=5_000_000, metavar="N")
    parser.add_argument("--positions", type=int, default=1_000_000, metavar="N")
    options = parser.parse_args(argv)
    for line in run_large(options.rows, options.small_rows, options.positions):
        print(json.dumps(line), flush=True)
    return 0


def _best_rate(items: int, repeats: int, work: Callable[[], object]) -> float:
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return float(items / best)


def _random_sphere(random: np.random.Generator, count: int) -> tuple[NDArray, NDArray]:
    return random.uniform(0.0, 360.0, count), np.degrees(np.arcsin(random.uniform(-1.0, 1.0, count)))


def _positions(random: np.random.Generator, source_ra: NDArray, source_dec: NDArray, count: int) -> tuple:
    near = random.integers(0, len(source_ra), count // 2)
    scatter = random.normal(0.0, 0.3 / 3600.0, (2, count // 2))
    dec = np.clip(source_dec[near] + scatter[1], -90.0, 90.0)
    ra = np.mod(source_ra[near] + scatter[0] / np.maximum(np.cos(np.radians(dec)), 1e-6), 360.0)
    anywhere = _random_sphere(random, count - count // 2)
    order = random.permutation(count)
    return np.concatenate([ra, anywhere[0]])[order], np.concatenate([dec, anywhere[1]])[order]


def _sorted_order(ra: NDArray, dec: NDArray) -> NDArray[np.intp]:
    return np.lexsort((ra, np.floor(dec * 360.0)))


# Each of these builds a peer's index and gives a function from positions to one that matches them and counts.
def _ckdtree(source_ra: NDArray, source_dec: NDArray) -> Callable[..., Callable[[], int]]:
    tree = cKDTree(_unit_vectors(source_ra, source_dec))
    chord = 2.0 * np.sin(np.radians(_RADIUS_ARCSEC / 3600.0) / 2.0)

    def match(ra: NDArray, dec: NDArray) -> int:
        distance, _ = tree.query(_unit_vectors(ra, dec), distance_upper_bound=chord, workers=1)
        return int(np.count_nonzero(np.isfinite(distance)))

    return lambda ra, dec: partial(match, ra, dec)


def _astropy(source_ra: NDArray, source_dec: NDArray) -> Callable[..., Callable[[], int]]:
    sources = SkyCoord(source_ra, source_dec, unit="deg")
    # The tree is kept with the sources.
    match_coordinates_sky(SkyCoord([0.0], [0.0], unit="deg"), sources)

    def match(positions: SkyCoord) -> int:
        _, separation, _ = positions.match_to_catalog_sky(sources)
        return int(np.count_nonzero(separation <= _RADIUS_ARCSEC * units.arcsec))

    return lambda ra, dec: partial(match, SkyCoord(ra, dec, unit="deg"))


def _lsdb(source_ra: NDArray, source_dec: NDArray) -> Callable[..., Callable[[], int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dask
        import lsdb

    def catalog(name: str, ra: NDArray, dec: NDArray, margin_arcsec: float | None) -> Any:
        frame = pd.DataFrame({"number": np.arange(len(ra)), "ra": ra, "dec": dec})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lsdb.from_dataframe(
                frame, ra_column="ra", dec_column="dec", catalog_name=name, margin_threshold=margin_arcsec
            )

    sources = catalog("sources", source_ra, source_dec, 5.0 * _RADIUS_ARCSEC)

    def match(positions: Any) -> int:
        with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
            warnings.simplefilter("ignore")
            crossmatch = positions.crossmatch(sources, radius_arcsec=_RADIUS_ARCSEC, n_neighbors=1)
            return len(crossmatch.compute(progress_bar=False))

    return lambda ra, dec: partial(match, catalog("positions", ra, dec, None))


def _unit_vectors(ra: NDArray, dec: NDArray) -> NDArray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _allwise_like(
    random: np.random.Generator, folder: Path, ra: NDArray, dec: NDArray
) -> tuple[Catalog, dict[str, Any]]:
    table = folder / "sources.parquet"
    _write_sources(random, table, ra, dec)
    begin = time.perf_counter()
    catalog = build_catalog(table, folder / "catalog", name="allwise")
    build_s = time.perf_counter() - begin
    begin = time.perf_counter()
    catalog = open_catalog(catalog.path)
    open_ms = (time.perf_counter() - begin) * 1e3
    table.unlink()
    return catalog, {"catalog_rows": catalog.rows, "build_s": round(build_s, 1), "open_ms": round(open_ms, 1)}


def _positions_only(folder: Path, rows: int) -> Catalog:
    """A catalogue of identifiers and positions, uniform on the sphere."""
    random = np.random.default_rng(_SEED)
    table = folder / "sources.parquet"
    schema = pa.schema({"id": pa.int64(), "ra": pa.float64(), "dec": pa.float64()})
    with pq.ParquetWriter(table, schema) as writer:
        for begin in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - begin)
            columns = [np.arange(begin, begin + count), *_random_sphere(random, count)]
            writer.write_table(pa.table(columns, schema=schema))
    catalog = build_catalog(table, folder / "catalog", name="sky")
    table.unlink()
    return catalog


def _write_sources(random: np.random.Generator, path: Path, ra: NDArray, dec: NDArray) -> None:
    """An AllWISE-like table: 12-digit designations, magnitudes, and 2MASS magnitudes for a third of the sources."""
    writer = None
    for begin in range(0, len(ra), _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, len(ra) - begin)
        digits = pc.utf8_lpad(pa.array(np.arange(begin, begin + count)).cast(pa.string()), 18, "0")
        columns: dict[str, Any] = {
            "AllWISE": pc.binary_join_element_wise("J", digits, ""),
            "RAJ2000": ra[begin : begin + count],
            "DEJ2000": dec[begin : begin + count],
        }
        for name in ALLWISE_COLUMNS[3:]:
            values = np.round(random.uniform(6.0, 17.0, count), 3)
            is_2mass = name.removeprefix("e_")[0] in "JHK"
            columns[name] = pa.array(values, mask=random.random(count) > 1.0 / 3.0 if is_2mass else None)
        chunk = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, chunk.schema, compression="zstd")
        writer.write_table(chunk)
    if writer:
        writer.close()


if __name__ == "__main__":
    sys.exit(main())
