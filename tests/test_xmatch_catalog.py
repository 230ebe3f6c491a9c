"""Building, opening and reading catalogues."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from xmatch.catalog import Catalog, CatalogError, build_catalog, open_catalog
from xmatch.matcher import nearest
from xmatch.sources import ALLWISE_COLUMNS

SOURCES = """id,ra,dec,mag,count,kind
a,10.0,20.0,12.5,3,star
b,11.0,-20.0,,4,
c,359.5,89.0,NaN,,galaxy
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "sources.csv").write_text(SOURCES)
    return build_catalog(tmp_path / "sources.csv", tmp_path / "catalog", name="small", version="7")


def data_files(catalog: Catalog) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (catalog.path / "index").glob("*.npy")}


class TestBuild:
    def test_manifest(self, catalog: Catalog) -> None:
        manifest = json.loads((catalog.path / "manifest.json").read_text())
        assert (catalog.name, catalog.version, catalog.rows) == ("small", "7", 3)
        assert catalog.columns == ("id", "ra", "dec", "mag", "count", "kind")
        assert [column["type"] for column in manifest["columns"]] == ["string", *["double"] * 3, "int64", "string"]
        assert manifest["columns"][1]["unit"] == "deg"
        assert manifest["sources"][0]["bytes"] == len(SOURCES)
        assert len(manifest["sources"][0]["sha256"]) == 64
        assert set(manifest["files"]) == {f"index/{name}" for name in data_files(catalog)}
        assert catalog.created.endswith("+00:00")
        catalog.verify()

    def test_nothing_else_is_left(self, catalog: Catalog) -> None:
        assert sorted(path.name for path in catalog.path.parent.iterdir()) == ["catalog", "sources.csv"]

    def test_bad_rows_are_refused_and_counted(self, tmp_path: Path) -> None:
        text = "id,ra,dec\ngood,0,0\nnan,nan,0\nblank,,5\nfar,361,5\nbelow,-0.1,5\nbeyond,5,90.5\n,7,7\nedge,360,-90\n"
        (tmp_path / "s.csv").write_text(text)
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="s")
        assert catalog.manifest["refused"] == {
            "position_missing": 2,
            "position_out_of_range": 3,
            "identifier_missing": 1,
        }
        table = catalog.take(np.arange(catalog.rows)).sort_by("id")
        assert table.to_pylist() == [{"id": "edge", "ra": 0.0, "dec": -90.0}, {"id": "good", "ra": 0.0, "dec": 0.0}]

    def test_same_identifier_and_position_is_stored_once(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec,m\na,1,1,5\na,1,1,6\na,1,2,7\nb,1,1,8\n")
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="s")
        assert catalog.manifest["duplicates"] == 1
        assert catalog.take(np.arange(catalog.rows)).sort_by("m")["m"].to_pylist() == [5, 7, 8]

    def test_rebuilding_gives_the_same_files(self, catalog: Catalog, tmp_path: Path) -> None:
        before = data_files(catalog)
        again = build_catalog(tmp_path / "sources.csv", catalog.path, name="small")
        assert data_files(again) == before

    def test_sorting_through_the_disk_gives_the_same_files(self, tmp_path: Path) -> None:
        random = np.random.default_rng(5)
        count = 20_000
        table = pa.table(
            {
                "source_id": random.integers(0, 15_000, count),
                "ra": np.round(random.uniform(0, 359.9, count), 1),
                "dec": np.round(random.uniform(-90, 90, count), 0),
                "flux": pa.array(random.normal(size=count), mask=random.random(count) < 0.2),
                "class": pa.array([None, "é", "long name"] * (count // 3) + [None] * (count % 3)),
            }
        )
        table = pa.concat_tables([table, table.slice(0, 1_000)])
        count = table.num_rows
        for part in range(4):
            pq.write_table(table.slice(part * count // 4, count // 4), tmp_path / f"part{part}.parquet")
        parts = sorted(tmp_path.glob("*.parquet"))
        whole = build_catalog(parts, tmp_path / "whole", name="x")
        by_bands = build_catalog(parts, tmp_path / "bands", name="x", memory_bytes=1_000_000)
        assert data_files(whole) == data_files(by_bands)
        assert whole.manifest["duplicates"] == 1_000
        assert whole.rows == count - 1_000
        stored = whole.take(np.arange(whole.rows))
        rows, stored_rows = (set(zip(*t.to_pydict().values(), strict=True)) for t in (table, stored))
        assert stored_rows == rows

    def test_gzip_and_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "inputs"
        folder.mkdir()
        (folder / "a.csv.gz").write_bytes(gzip.compress(SOURCES.encode()))
        (folder / "b.csv").write_text("id,ra,dec,mag,count,kind\nd,1,1,1,1,star\n")
        catalog = build_catalog(folder, tmp_path / "c", name="x")
        assert sorted(catalog.take(np.arange(4))["id"].to_pylist()) == ["a", "b", "c", "d"]

    def test_names_of_irsa(self, shared_data: Path, tmp_path: Path) -> None:
        schema = pq.read_schema(shared_data / "xmatch" / "allwise_schema.parquet")
        values = {
            "designation": ["J000000.00+000000.0"],
            "ra": [0.5],
            "dec": [0.25],
            "w1mpro": [9.5],
            "w2sigmpro": [1.5],
        }
        values |= {"h_msig_2mass": [0.25], "k_m_2mass": [float("nan")]}
        table = pa.table([pa.array(values.get(f.name, [None]), f.type) for f in schema], schema=schema)
        pq.write_table(table, tmp_path / "irsa.parquet")
        catalog = build_catalog(tmp_path / "irsa.parquet", tmp_path / "c", name="allwise")
        assert catalog.columns == ALLWISE_COLUMNS
        assert len(catalog.columns) == 17
        (row,) = catalog.take([0]).to_pylist()
        present = {name: value for name, value in row.items() if value is not None}
        assert present == {
            "AllWISE": "J000000.00+000000.0",
            "RAJ2000": 0.5,
            "DEJ2000": 0.25,
            "W1mag": 9.5,
            "e_W2mag": 1.5,
            "e_Hmag": 0.25,
        }
        assert catalog.fields[3].unit == "mag"

    def test_answers_of_cds(self, shared_data: Path, tmp_path: Path) -> None:
        path = shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv"
        own_name = build_catalog(path, tmp_path / "c", name="mine")
        assert set(own_name.columns) == set(ALLWISE_COLUMNS)
        truth = pacsv.read_csv(path).select(list(ALLWISE_COLUMNS)).sort_by("AllWISE")
        stored = own_name.take(np.arange(own_name.rows), ALLWISE_COLUMNS).sort_by("AllWISE")
        assert stored.to_pylist() == truth.to_pylist()

    def test_chosen_columns_and_names(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("lon,lat,key,a,b\n1,2,k,3,4\n")
        options = {"ra": "lon", "dec": "lat", "identifier": "key"}
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="s", columns=["b", "key"], **options)
        assert catalog.take([0]).to_pylist() == [{"b": 4, "key": "k"}]
        assert nearest(catalog, [1.0], [2.0], 1.0)[0].tolist() == [0]

    @pytest.mark.parametrize(
        ("header", "options", "message"),
        [
            (
                "id,x,dec",
                {},
                r"No column for ra: none of RAJ2000, .* is there; set the option ra to one of: id, x, dec",
            ),
            ("id,ra,y", {}, "No column for dec"),
            ("k,ra,dec", {}, "set the option identifier to one of: k, ra, dec"),
            ("id,ra,dec", {"ra": "RA2"}, "RA2 is not there"),
            ("id,ra,dec", {"columns": ["w"]}, "Column w is not in .*among: id, ra, dec"),
            ("id,ra,dec", {"columns": ["id", "id"]}, "asked twice"),
        ],
    )
    def test_missing_columns(self, tmp_path: Path, header: str, options: dict, message: str) -> None:
        (tmp_path / "s.csv").write_text(f"{header}\n1,2,3\n")
        with pytest.raises(CatalogError, match=message):
            build_catalog(tmp_path / "s.csv", tmp_path / "c", name="s", **options)
        assert not (tmp_path / "c").exists()

    def test_unreadable_inputs(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="does not exist"):
            build_catalog(tmp_path / "none.csv", tmp_path / "c", name="s")
        (tmp_path / "s.fits").write_text("")
        with pytest.raises(CatalogError, match="neither"):
            build_catalog(tmp_path / "s.fits", tmp_path / "c", name="s")
        (tmp_path / "s.parquet").write_text("not a table")
        with pytest.raises(CatalogError, match=r"s\.parquet cannot be read"):
            build_catalog(tmp_path / "s.parquet", tmp_path / "c", name="s")
        (tmp_path / "a.csv").write_text("id,ra,dec\na,1,1\n")
        (tmp_path / "b.csv").write_text("id,ra,dec\nb,1,one\n")
        with pytest.raises(CatalogError, match=r"b\.csv cannot be read"):
            build_catalog([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "c", name="s")
        (tmp_path / "half.csv.gz").write_bytes(gzip.compress(SOURCES.encode() * 999)[:-20])
        with pytest.raises(CatalogError, match="cannot be read"):
            build_catalog(tmp_path / "half.csv.gz", tmp_path / "c", name="s")
        assert not (tmp_path / "c").exists()
        assert not list(tmp_path.glob(".*"))

    def test_other_folders_are_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text(SOURCES)
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
        for output in (tmp_path / "thesis", tmp_path / "s.csv"):
            with pytest.raises(CatalogError, match="is not a catalogue; choose another output"):
                build_catalog(tmp_path / "s.csv", output, name="s")
        assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"

    def test_failed_rebuilding_keeps_the_catalogue(self, catalog: Catalog, tmp_path: Path) -> None:
        before = data_files(catalog)
        (tmp_path / "bad.csv").write_text("id,ra,dec\na,1,one\n")
        with pytest.raises(CatalogError):
            build_catalog([tmp_path / "sources.csv", tmp_path / "bad.csv"], catalog.path, name="small")
        assert data_files(open_catalog(catalog.path)) == before

    def test_header_without_rows(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\n")
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="s")
        assert catalog.rows == 0
        assert catalog.take([-1]).to_pylist() == [{"id": None, "ra": None, "dec": None}]


class TestTake:
    def test_nulls_types_and_order(self, catalog: Catalog) -> None:
        by_id = {name: i for i, name in enumerate(catalog.take([0, 1, 2])["id"].to_pylist())}
        table = catalog.take(np.array([by_id["c"], -1, by_id["a"], by_id["b"], by_id["a"]]))
        table.validate(full=True)
        assert table.schema.names == list(catalog.columns)
        assert table.schema.types == [pa.string(), *[pa.float64()] * 3, pa.int64(), pa.string()]
        assert table.to_pydict() == {
            "id": ["c", None, "a", "b", "a"],
            "ra": [359.5, None, 10.0, 11.0, 10.0],
            "dec": [89.0, None, 20.0, -20.0, 20.0],
            "mag": [None, None, 12.5, None, 12.5],
            "count": [None, None, 3, 4, 3],
            "kind": ["galaxy", None, "star", None, "star"],
        }

    def test_chunks(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = np.array([0, -1, 2, 1, 1, 0, 2])
        whole = catalog.take(rows)
        monkeypatch.setattr("xmatch.catalog._ROWS_PER_CHUNK", 3)
        assert catalog.take(rows).equals(whole)

    def test_schema_and_subset(self, catalog: Catalog) -> None:
        assert catalog.schema(["mag", "id"]) == pa.schema([("mag", pa.float64()), ("id", pa.string())])
        assert catalog.take([], ["mag"]).num_rows == 0
        assert catalog.take([-1], ["kind"])["kind"].to_pylist() == [None]

    @pytest.mark.parametrize("row", [-2, 3])
    def test_rows_that_do_not_exist(self, catalog: Catalog, row: int) -> None:
        with pytest.raises(IndexError, match="from -1 to 2"):
            catalog.take([row])

    def test_large_integers_are_exact(self, tmp_path: Path) -> None:
        numbers = [2**53 + 1, -(2**62) - 1, None]
        table = pa.table({"id": pa.array([2**60 + 1, 2, 3]), "ra": [1.0, 2, 3], "dec": [1.0, 2, 3], "n": numbers})
        pq.write_table(table, tmp_path / "s.parquet")
        catalog = build_catalog(tmp_path / "s.parquet", tmp_path / "c", name="s")
        assert catalog.take(np.arange(3)).sort_by("ra").to_pydict() == table.to_pydict()


class TestOpen:
    def test_pickle_holds_the_path_only(self, catalog: Catalog) -> None:
        data = pickle.dumps(catalog)
        assert len(data) < 500
        again = pickle.loads(data)
        assert again.manifest == catalog.manifest
        assert again.take([0, 1, 2]).equals(catalog.take([0, 1, 2]))

    def test_arrays_are_mapped_and_read_only(self, catalog: Catalog) -> None:
        assert isinstance(catalog.index.positions.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            catalog.index.positions[0, 0] = 1.0

    def test_replaced_catalogue_stays_readable_by_those_who_opened_it(self, catalog: Catalog, tmp_path: Path) -> None:
        before = catalog.take([0, 1, 2])
        (tmp_path / "other.csv").write_text("id,ra,dec\nz,1,1\n")
        build_catalog(tmp_path / "other.csv", catalog.path, name="small")
        assert catalog.take([0, 1, 2]).equals(before)
        assert open_catalog(catalog.path).rows == 1

    def test_no_catalogue(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(CatalogError, match="is not a catalogue"):
                open_catalog(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 1}, "has format version 1, this program reads 2"),
            ({"format": "other"}, "is not a catalogue of alertbeam"),
            ({"rows": 4}, "do not fit together"),
            ({"rows": "many"}, "manifest.json is damaged"),
            ({"columns": [{"name": "x"}]}, "manifest.json is damaged"),
            ({"index": {}}, "manifest.json is damaged"),
            ({"files": {}}, "manifest.json is damaged"),
        ],
    )
    def test_damaged_manifest(self, catalog: Catalog, change: dict, message: str) -> None:
        path = catalog.path / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(CatalogError, match=message):
            open_catalog(catalog.path)

    @pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01"])
    def test_manifest_that_is_none(self, catalog: Catalog, text: str) -> None:
        (catalog.path / "manifest.json").write_text(text)
        with pytest.raises(CatalogError):
            open_catalog(catalog.path)

    @pytest.mark.parametrize(
        "file", ["positions.npy", "identifiers.npy", "doubles.npy", "zone_rows.npy", "cell_rows.npy", "text_0.npy"]
    )
    def test_missing_or_truncated_files(self, catalog: Catalog, file: str) -> None:
        path = catalog.path / "index" / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CatalogError, match=f"{file} has {len(whole) - 1} bytes instead of {len(whole)}"):
            open_catalog(catalog.path)
        path.write_bytes(b"x" * len(whole))
        with pytest.raises(CatalogError, match=f"{file} is damaged"):
            open_catalog(catalog.path)
        path.unlink()
        with pytest.raises(CatalogError, match=f"{file} is missing"):
            open_catalog(catalog.path)

    @pytest.mark.parametrize("file", ["positions.npy", "doubles.npy", "cell_rows.npy"])
    def test_verify_finds_changed_values(self, catalog: Catalog, file: str) -> None:
        path = catalog.path / "index" / file
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(CatalogError, match=f"{file} is damaged"):
            open_catalog(catalog.path).verify()

    def test_damaged_cells_cannot_lead_out_of_the_arrays(self, catalog: Catalog) -> None:
        path = catalog.path / "index" / "cell_rows.npy"
        data = bytearray(path.read_bytes())
        data[128:] = b"\xff" * (len(data) - 128)
        path.write_bytes(data)
        rows, _ = nearest(open_catalog(catalog.path), [10.0, 11.0, 359.5], [20.0, -20.0, 89.0], 1.0)
        assert set(rows.tolist()) == {-1}

    def test_moved_catalogue(self, catalog: Catalog, tmp_path: Path) -> None:
        shutil.move(catalog.path, tmp_path / "elsewhere")
        open_catalog(tmp_path / "elsewhere").verify()
