"""Speed of the local crossmatch, beside scipy's cKDTree with unit vectors on the same sources and positions."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks.measure import conditions, figure
from xmatch.catalog import build_catalog
from xmatch.matcher import LocalMatcher, nearest
from xmatch.sources import ALLWISE_COLUMNS

_UNIT = "positions/s"
_SEED = 20130
_CHUNK_ROWS = 1 << 20


def run(rows: int = 5_000_000, positions: int = 1_000_000, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """Measure `match-unsorted`, `match-sorted` (nearest only) and `match-columns` (nearest and 17 columns).

    Sources are uniform on the sphere. Half of the positions lie near a source (0.3 arcsec scatter on each axis), half
    anywhere. The best of `repeats` runs counts, one thread each. "Sorted" means by declination zone and right
    ascension, as alerts of one field nearly are.

    Parameters
    ----------
    rows, positions : int
        Sizes of the catalogue and of the table of positions.
    repeats : int
    """
    random = np.random.default_rng(_SEED)
    source_ra, source_dec = _random_sphere(random, rows)
    ra, dec = _positions(random, source_ra, source_dec, positions)
    order = np.lexsort((ra, np.floor(dec * 360.0)))
    radius_arcsec = 1.0
    with tempfile.TemporaryDirectory(prefix="alertbeam-match-") as folder:
        table = Path(folder) / "sources.parquet"
        _write_sources(random, table, source_ra, source_dec)
        begin = time.perf_counter()
        catalog = build_catalog(table, Path(folder) / "catalog", name="allwise")
        build_s = time.perf_counter() - begin
        table.unlink()
        given = conditions(
            "numpy",
            "scipy",
            catalog_rows=rows,
            positions=positions,
            radius_arcsec=radius_arcsec,
            matched=int(np.count_nonzero(nearest(catalog, ra, dec, radius_arcsec)[0] >= 0)),
            build_s=round(build_s, 1),
        )
        tree = cKDTree(_unit_vectors(source_ra, source_dec))
        chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
        matcher = LocalMatcher(catalog, radius_arcsec)
        for name, asked in (("match-unsorted", (ra, dec)), ("match-sorted", (ra[order], dec[order]))):
            ours = _best_rate(positions, repeats, partial(nearest, catalog, *asked, radius_arcsec))
            peer = _best_rate(positions, repeats, partial(_query_tree, tree, *asked, chord))
            yield figure(name, ours, _UNIT, given, peer)
            yield figure(f"{name}-ckdtree", peer, _UNIT, given, peer, peer=True)
            if name == "match-unsorted":
                columns = _best_rate(positions, repeats, partial(matcher.match, ra, dec))
                yield figure("match-columns", columns, _UNIT, given | {"columns": len(ALLWISE_COLUMNS)}, peer)


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


def _query_tree(tree: cKDTree, ra: NDArray, dec: NDArray, chord: float) -> None:
    tree.query(_unit_vectors(ra, dec), distance_upper_bound=chord, workers=1)


def _unit_vectors(ra: NDArray, dec: NDArray) -> NDArray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


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
