"""HATS catalogues: what is built can be read by lsdb, and what hats and lsdb write can be built from."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_catalog
from hats.pixel_math import compute_spatial_index
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.catalog import Catalog, CatalogError, build_catalog
from xmatch.download import DownloadError, fetch
from xmatch.hats import list_hats
from xmatch.hats_writer import HIGHEST_ORDER, choose_partitions, count_pixels, healpix_of
from xmatch.matcher import nearest
from xmatch.reference import angular_separation_arcsec

ROWS = 6000


def sources(rows: int = ROWS) -> pa.Table:
    """Sources all over the sky, half of them in one field, so that pixels of several orders are needed."""
    random = np.random.default_rng(3)
    half = rows // 2
    ra = np.concatenate([random.uniform(0, 360, half), random.uniform(30, 40, rows - half)])
    dec = np.concatenate([np.degrees(np.arcsin(random.uniform(-1, 1, half))), random.uniform(-5, 5, rows - half)])
    return pa.table(
        {
            "name": [f"s{number}" for number in random.permutation(rows)],
            "ra": ra,
            "dec": dec,
            "mag": pa.array(random.normal(15, 2, rows), mask=random.random(rows) < 0.2),
            "visits": pa.array(random.integers(0, 99, rows), mask=random.random(rows) < 0.2),
            "kind": pa.array(["star", None, "é"]).take(pa.array(random.integers(0, 3, rows))),
        }
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "sources.parquet"
    pq.write_table(sources(), path)
    return path


@pytest.fixture(scope="module")
def catalog(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmatch.writer._BYTES_PER_PARTITION", 40_000)
        yield build_catalog(table, tmp_path_factory.mktemp("built") / "c", name="mine", version="7", with_hats=True)


@pytest.fixture(scope="module")
def read(catalog: Catalog) -> Any:
    return lsdb.open_catalog(catalog.path)


class TestWritten:
    def test_hats_finds_it_valid(self, catalog: Catalog, read: Any) -> None:
        assert is_valid_catalog(catalog.path, strict=True)
        info = read.hc_structure.catalog_info
        assert (info.catalog_name, info.total_rows) == ("mine", ROWS)
        assert (info.ra_column, info.dec_column, info.healpix_order) == ("ra", "dec", 29)
        orders = {pixel.order for pixel in read.get_healpix_pixels()}
        assert len(orders) > 1
        assert catalog.manifest["hats"]["partitions"] == len(read.get_healpix_pixels())
        assert read.hc_structure.moc is not None

    def test_rows(self, catalog: Catalog, read: Any) -> None:
        rows = read.compute()
        assert rows.index.name == "_healpix_29"
        assert rows.index.to_numpy().tolist() == compute_spatial_index(rows["ra"], rows["dec"]).tolist()
        stored = catalog.take(np.arange(catalog.rows)).sort_by("name")
        assert pa.Table.from_pandas(rows.to_pandas(), preserve_index=False).sort_by("name").to_pylist() == (
            stored.to_pylist()
        )

    def test_partitions_are_sorted_and_described(self, catalog: Catalog) -> None:
        metadata = pq.read_metadata(catalog.path / "dataset" / "_metadata")
        assert metadata.num_rows == ROWS
        files = sorted((catalog.path / "dataset").rglob("*.parquet"))
        for file in files:
            pixels = pq.read_table(file, columns=["_healpix_29"], partitioning=None)["_healpix_29"].to_numpy()
            order, number = (int(part.rpartition("=")[2]) for part in (file.parts[-3], file.stem))
            assert set(pixels >> 2 * (29 - order)) == {number}
            assert np.all(np.diff(pixels) >= 0)
        assert {f"dataset/{file.relative_to(catalog.path / 'dataset')}" for file in files} < set(
            catalog.manifest["files"]
        )
        assert pq.read_schema(files[0]).field("ra").metadata == {b"unit": b"deg"}

    def test_cone_search(self, catalog: Catalog, read: Any) -> None:
        everything = catalog.take(np.arange(catalog.rows))
        distance = angular_separation_arcsec(35.0, 0.0, everything["ra"], everything["dec"])
        found = read.cone_search(ra=35.0, dec=0.0, radius_arcsec=3600.0).compute()
        expected = everything.filter(pa.array(distance <= 3600.0))
        assert len(expected) > 20
        assert sorted(found["name"]) == sorted(expected["name"].to_pylist())

    def test_crossmatch(self, catalog: Catalog, read: Any) -> None:
        random = np.random.default_rng(4)
        inner = np.flatnonzero(np.abs(catalog.index.positions - [35.0, 0.0]).max(axis=1) < 4.0)
        near = catalog.index.positions[random.choice(inner, 300)]
        ra, dec = (near + random.normal(0, 1e-4, near.shape)).T
        rows, _ = nearest(catalog, ra, dec, 1.0)
        asked = pd.DataFrame({"number": np.arange(len(ra)), "ra": ra, "dec": dec})
        others = lsdb.from_dataframe(asked, ra_column="ra", dec_column="dec", margin_threshold=5.0)
        pairs = read.crossmatch(others, radius_arcsec=1.0, n_neighbors=9, suffixes=("", "_asked")).compute()
        number = "number_asked" if "number_asked" in pairs else "number"
        found = pairs.sort_values("_dist_arcsec").drop_duplicates(number)
        ours = catalog.take(rows, ["name"])["name"].to_pylist()
        expected = {k: name for k, name in enumerate(ours) if name is not None}
        assert dict(zip(found[number], found["name"], strict=True)) == expected
        assert 50 < len(expected) < len(ra)

    def test_round_trip(self, catalog: Catalog, tmp_path: Path) -> None:
        again = build_catalog(catalog.path, tmp_path / "again", name="mine", version="7")
        assert again.fields == catalog.fields
        for file in (catalog.path / "index").iterdir():
            assert (again.path / "index" / file.name).read_bytes() == file.read_bytes()
        assert again.manifest["hats"] is None
        assert sorted(path.name for path in again.path.iterdir()) == ["index", "manifest.json"]

    def test_position_and_identifier_are_always_there(self, table: Path, tmp_path: Path) -> None:
        catalog = build_catalog(table, tmp_path / "c", name="x", columns=["mag"], with_hats=True)
        assert catalog.columns == ("mag",)
        assert set(lsdb.open_catalog(catalog.path).columns) == {"mag", "ra", "dec", "name"}

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\n")
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="x", with_hats=True)
        assert catalog.manifest["hats"] == {"partitions": 0, "largest": 0}
        assert pq.read_schema(catalog.path / "dataset" / "_metadata").names == ["_healpix_29", "id", "ra", "dec"]


class TestOthers:
    """Catalogues that lsdb writes."""

    @pytest.fixture
    def theirs(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("theirs") / "hats"
        frame = sources().to_pandas(types_mapper=pd.ArrowDtype)
        made = lsdb.from_dataframe(
            frame, catalog_name="theirs", ra_column="ra", dec_column="dec", partition_rows=1500, margin_threshold=5.0
        )
        made.write_catalog(folder, as_collection=True)
        return folder

    @pytest.fixture
    def main(self, theirs: Path) -> Path:
        return Path(list_hats(theirs).files[0].partition("/dataset/")[0])

    def test_collection_and_its_main_catalogue(
        self, catalog: Catalog, theirs: Path, main: Path, tmp_path: Path
    ) -> None:
        for k, place in enumerate((theirs, main)):
            built = build_catalog(place, tmp_path / str(k), name="mine", identifier="name")
            assert built.columns == catalog.columns
            for file in (catalog.path / "index").iterdir():
                assert (built.path / "index" / file.name).read_bytes() == file.read_bytes()

    def test_without_list_of_partitions(self, main: Path, tmp_path: Path) -> None:
        listed = list_hats(main)
        hidden = main / "partition_info.csv"
        text = hidden.read_text()
        if not (main / "dataset" / "_metadata").exists():
            pytest.skip("this lsdb writes no dataset/_metadata")
        hidden.unlink()
        try:
            assert sorted(list_hats(main).files) == sorted(listed.files)
        finally:
            hidden.write_text(text)

    def test_missing_partition(self, main: Path, tmp_path: Path) -> None:
        file = Path(list_hats(main).files[0])
        content = file.read_bytes()
        file.unlink()
        try:
            with pytest.raises(CatalogError, match=f"{file.name} is missing, which the HATS catalogue lists"):
                build_catalog(main, tmp_path / "c", name="x", identifier="name")
        finally:
            file.write_bytes(content)

    def test_no_catalogue(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="is no HATS catalogue"):
            list_hats(tmp_path)


class Server:
    """Serves a folder; the first answers to every path are as bad as `problems` says; `down` is never served."""

    def __init__(self, folder: Path):
        self.problems: list[str] = []
        self.down = ""
        self.asked: list[str] = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                times = server.asked.count(self.path)
                server.asked.append(self.path)
                problem = server.problems[times] if times < len(server.problems) else "none"
                problem = "busy" if self.path == server.down else problem
                begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
                try:
                    content = Path(self.translate_path(self.path)).read_bytes()
                except OSError:
                    self.send_error(404)
                    return
                if problem == "busy":
                    self.send_error(503)
                elif problem == "refuse":
                    self.send_error(403)
                else:
                    part = content[begin:]
                    self.send_response(206 if begin else 200)
                    self.send_header("Content-Length", str(len(part)))
                    if begin:
                        self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                    self.end_headers()
                    self.wfile.write(part[: len(part) // 2] if problem == "break" else part)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(catalog: Catalog) -> Iterator[Server]:
    server = Server(catalog.path)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmatch.download.time.sleep", lambda seconds: None)


class TestRemote:
    def test_build_through_bad_days(self, catalog: Catalog, server: Server, tmp_path: Path) -> None:
        server.problems = ["busy", "break", "break"]
        built = build_catalog(server.url, tmp_path / "c", name="mine", version="7")
        assert built.fields == catalog.fields
        for file in (catalog.path / "index").iterdir():
            assert (built.path / "index" / file.name).read_bytes() == file.read_bytes()
        sources = built.manifest["sources"]
        assert all(source["name"].startswith(server.url) for source in sources)
        assert sum(source["bytes"] for source in sources) == sum(
            entry["bytes"] for name, entry in catalog.manifest["files"].items() if "Npix=" in name
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]

    def test_outage_is_gone_on_with(self, catalog: Catalog, server: Server, tmp_path: Path) -> None:
        server.down = list_hats(server.url).files[-1].removeprefix(server.url)
        with pytest.raises(DownloadError, match=r"cannot be fetched, tried 6 times: HTTP 503"):
            build_catalog(server.url, tmp_path / "c", name="mine")
        assert not (tmp_path / "c").exists()
        last, server.down = server.down, ""
        server.asked.clear()
        built = build_catalog(server.url, tmp_path / "c", name="mine")
        assert built.rows == catalog.rows
        assert [path for path in server.asked if "Npix=" in path] == [last]

    def test_no_catalogue(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="is no HATS catalogue"):
            build_catalog(f"{server.url}/dataset", tmp_path / "c", name="x")

    def test_refused(self, server: Server, tmp_path: Path) -> None:
        server.problems = ["refuse"]
        with pytest.raises(DownloadError, match="HTTP 403"):
            fetch(f"{server.url}/properties", tmp_path / "p")
        assert not fetch(f"{server.url}/absent", tmp_path / "p")

    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="tried 6 times"):
            fetch("http://127.0.0.1:9/properties", tmp_path / "p")


class TestPixels:
    @given(st.lists(st.tuples(st.floats(0, 359.999999), st.floats(-90, 90)), min_size=1, max_size=50))
    def test_pixels_are_those_of_hats(self, positions: list[tuple[float, float]]) -> None:
        ra, dec = np.array(positions).T
        assert healpix_of(ra, dec).tolist() == compute_spatial_index(ra, dec).tolist()

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(0, 12 * 4**HIGHEST_ORDER - 1), max_size=60),
        st.integers(0, 11 * 4**HIGHEST_ORDER),
        st.integers(1, 30),
    )
    def test_partitions_cover_all_rows_once(self, pixels: list[int], dense: int, most_rows: int) -> None:
        pixels = sorted(pixels + [dense] * 40 + [dense + 1] * 3)
        fine = np.array(pixels, np.int64) << 2 * (29 - HIGHEST_ORDER)
        numbers, rows = count_pixels(fine)
        counts = np.zeros(12 * 4**HIGHEST_ORDER, np.int64)
        counts[numbers] = rows
        chosen = choose_partitions(counts, most_rows)
        assert all(a.end <= b.begin for a, b in pairwise(chosen))
        for pixel in chosen:
            held = np.count_nonzero((fine >= pixel.begin) & (fine < pixel.end))
            assert 0 < held <= most_rows or (pixel.order == HIGHEST_ORDER and held > 0)
            if pixel.order:
                shift = 2 * (29 - pixel.order + 1)
                parent = np.count_nonzero(fine >> shift == pixel.number >> 2)
                assert parent > most_rows
        assert sum(np.count_nonzero((fine >= p.begin) & (fine < p.end)) for p in chosen) == len(fine)
