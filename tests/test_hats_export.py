"""Results as a HATS catalogue: `lsdb` opens it, and it holds every object with a position once."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_catalog
from hats.pixel_math import compute_spatial_index
from hypothesis import given, settings
from hypothesis import strategies as st

from run_folder import hats_export
from run_folder.hats_export import HatsInput, HatsSummary, export_hats
from storage.buckets import bucket_of
from storage.object_tables import ObjectTable
from xmatch.catalog import build_catalog
from xmatch.hats import list_hats
from xmatch.matcher import nearest
from xmatch.reference import angular_separation_arcsec

PROJECT = Path(__file__).resolve().parents[1]
BUCKETS = 5
CLASSES = ["AGN", "CV/Nova", "Periodic-Other", "rb", "Ia.02cx"]
SPECIAL = [(0.0, 0.0), (360.0, 0.0), (359.99999, 1.0), (0.00001, 1.0), (10.0, 90.0), (200.0, 90.0), (0.0, -90.0)]
ROWS = 2000


MOMENTS = ["read", "write", "exchange", "exchanged", "remove"]
# Each export is a child of a process that has no threads yet.
DYING = """
import os, shutil, signal, sys
from pathlib import Path
from run_folder import hats_export

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def export(tables, output, buckets, moment):
    rename, rmtree = Path.rename, shutil.rmtree

    def say(done, total):
        if done > total * {"read": 0.2, "write": 0.7}.get(moment, 2):
            die()

    def dying_rename(self, target):
        if self.name == {"exchange": ".hats.partial", "exchanged": ".hats.old"}.get(moment):
            die()
        return rename(self, target)

    def dying_rmtree(path, **options):
        if moment == "remove" and (Path(path) / "hats.properties").exists():
            (Path(path) / "partition_info.csv").unlink()
            die()
        rmtree(path, **options)

    Path.rename, shutil.rmtree = dying_rename, dying_rmtree
    source = hats_export.HatsInput(tables / "objects", tables / "features", tables / "probabilities")
    hats_export.export_hats(source, buckets, output, name="results", version="3", most_rows=5, say=say)

folder, buckets = Path(sys.argv[1]), int(sys.argv[2])
for moment in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        try:
            export(folder / "tables", folder / moment / "hats", buckets, moment)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
"""


def put(folder: Path, rows: pa.Table, buckets: int = BUCKETS) -> Path:
    numbers = bucket_of(rows["oid"], buckets)
    for bucket in set(numbers.tolist()):
        ObjectTable(folder, buckets).put(bucket, rows.filter(pa.array(numbers == bucket)))
    return folder


def objects(count: int) -> pa.Table:
    """Objects all over the sky, half of them in one field; the last three are nowhere."""
    random = np.random.default_rng(5)
    ra, dec = random.uniform(0, 360, count), np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    ra[::2], dec[::2] = random.uniform(30, 40, len(ra[::2])), random.uniform(-5, 5, len(ra[::2]))
    ra[: len(SPECIAL)], dec[: len(SPECIAL)] = np.array(SPECIAL).T
    known = np.arange(count) < count - 3
    return pa.table(
        {
            "oid": [f"ZTF18a{number:06d}" for number in random.permutation(count)],
            "ndet": random.integers(1, 50, count),
            "meanra": pa.array(ra, mask=~known),
            "meandec": pa.array(dec, mask=~known),
            "stellar": random.random(count) < 0.5,
            "W1mag": pa.array(random.normal(15, 1, count), mask=random.random(count) < 0.3),
        }
    )


def features(oids: pa.ChunkedArray) -> pa.Table:
    random, count = np.random.default_rng(6), len(oids)
    columns: dict[str, Any] = {
        "oid": oids,
        "Power_rate_1/2": random.normal(size=count).astype(np.float32),
        "g-r_max": pa.array(random.normal(size=count), mask=random.random(count) < 0.5),
        "rb": random.random(count),
        "w1mag": random.random(count),
        "lightcurve": random.random(count),
        "Npix": random.random(count),
    }
    return pa.table(columns).replace_schema_metadata({"feature_version": "1.0.0-accurate", "feature_mode": "accurate"})


def probabilities(oids: pa.ChunkedArray) -> pa.Table:
    values = np.random.default_rng(7).dirichlet(np.ones(len(CLASSES)), len(oids))
    return pa.table(
        {
            "oid": oids,
            "candid": pa.nulls(len(oids), pa.int64()),
            **{name: np.ascontiguousarray(values[:, k]) for k, name in enumerate(CLASSES)},
            "class": pa.array(CLASSES).take(pa.array(values.argmax(axis=1))),
            "class_probability": values.max(axis=1),
            "classifier_name": pa.repeat("forest", len(oids)),
            "classifier_version": pa.repeat("2.1", len(oids)),
            "model_sha256": pa.repeat("ab" * 32, len(oids)),
        }
    )


def light_curves(bucket: int, oids: pa.Array) -> pa.Table:
    """Light curves that follow from the names alone."""
    assert set(bucket_of(oids, BUCKETS)) == {bucket}
    points = [int(oid.removeprefix("ZTF18a")) % 7 for oid in oids.to_pylist()]
    return pa.table(
        {
            "oid": oids,
            "mjd": pa.array([[58000.0 + k for k in range(n)] for n in points], pa.list_(pa.float64())),
            "fid": pa.array([[k % 2 + 1 for k in range(n)] for n in points], pa.large_list(pa.int32())),
            "magpsf_corr": pa.array([[None if k else n / 2 for k in range(n)] for n in points], pa.list_(pa.float32())),
        }
    )


def make(folder: Path, buckets: int = BUCKETS, count: int = ROWS) -> HatsInput:
    """Tables: of 9 of 10 objects features, of 8 probabilities."""
    rows = objects(count)
    return HatsInput(
        put(folder / "objects", rows, buckets),
        put(folder / "features", features(rows["oid"][: count * 9 // 10]), buckets),
        put(folder / "probabilities", probabilities(rows["oid"][count // 5 :]), buckets),
    )


def export(source: HatsInput, output: Path, buckets: int = BUCKETS, **options: Any) -> HatsSummary:
    return export_hats(source, buckets, output, name="results", version="3", **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def partitions(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if name.startswith("dataset")}


def rows_of(folder: Path) -> pa.Table:
    """Rows of all partitions, by name."""
    paths = list_hats(folder).files
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in paths).sort_by("oid")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> HatsInput:
    return make(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def exported(source: HatsInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "hats"
    summary = export(source, output, most_rows=250, light_curves=light_curves)
    listed = list_hats(output).files
    assert summary == HatsSummary(ROWS - 3, 3, len(listed), sum(Path(file).stat().st_size for file in listed))
    return output


@pytest.fixture(scope="module")
def read(exported: Path) -> Any:
    return lsdb.open_catalog(exported)


class TestRead:
    def test_hats_finds_it_valid(self, exported: Path, read: Any) -> None:
        assert is_valid_catalog(exported, strict=True)
        info = read.hc_structure.catalog_info
        assert (info.catalog_name, info.total_rows) == ("results", ROWS - 3)
        assert (info.ra_column, info.dec_column) == ("meanra", "meandec")
        assert len({pixel.order for pixel in read.get_healpix_pixels()}) > 1

    def test_versions(self, exported: Path) -> None:
        lines = (exported / "hats.properties").read_text().splitlines()
        assert {
            "hats_data_semver=3",
            "alertbeam_feature_version=1.0.0-accurate",
            "alertbeam_feature_mode=accurate",
            "alertbeam_classifier_name=forest",
            "alertbeam_classifier_version=2.1",
            f"alertbeam_model_sha256={'ab' * 32}",
        } < set(lines)

    def test_rows(self, source: HatsInput, read: Any) -> None:
        rows = read.compute()
        assert rows.index.name == "_healpix_29"
        assert rows.index.to_numpy().tolist() == compute_spatial_index(rows["meanra"], rows["meandec"]).tolist()
        found = {row["oid"]: row for row in rows.drop(columns="lightcurve").to_dict("records")}
        expected = reference(source)
        assert found.keys() == expected.keys()
        for oid, row in expected.items():
            given = {name: None if value is None or value != value else value for name, value in found[oid].items()}
            assert {name: str(value) for name, value in given.items()} == {n: str(v) for n, v in row.items()}

    def test_names(self, read: Any) -> None:
        assert list(read.columns) == [
            *("oid", "ndet", "meanra", "meandec", "stellar", "W1mag"),
            *("Power_rate_1/2", "g-r_max", "rb", "w1mag_feature", "lightcurve_feature", "Npix_feature"),
            *("AGN", "CV/Nova", "Periodic-Other", "rb_probability", "Ia_02cx", "class", "class_probability"),
            "lightcurve",
        ]

    def test_nested_light_curves(self, read: Any) -> None:
        rows = read.compute()
        wanted = light_curves_of(rows["oid"].tolist())
        for oid, curve in zip(rows["oid"], rows["lightcurve"], strict=True):
            assert curve["mjd"].tolist() == wanted[oid]["mjd"]
            assert curve["fid"].tolist() == wanted[oid]["fid"]
        assert rows["lightcurve.mjd"].size == sum(len(curve["mjd"]) for curve in wanted.values())

    def test_part_of_the_nested_column(self, exported: Path) -> None:
        part = lsdb.open_catalog(exported, columns=["oid", "meanra", "meandec", "lightcurve.mjd"])
        assert str(part.dtypes["lightcurve"]) == "nested<mjd: [double]>"
        late = part.query("lightcurve.mjd > 58003").compute()
        assert len(late) == ROWS - 3
        assert late["lightcurve.mjd"].min() == 58004.0

    def test_partitions_are_sorted(self, exported: Path) -> None:
        for path in map(Path, list_hats(exported).files):
            rows = pq.read_table(path, partitioning=None, columns=["_healpix_29", "oid"])
            order, number = (int(part.rpartition("=")[2]) for part in (path.parts[-3], path.stem))
            assert 0 < len(rows) <= 250
            assert set(rows["_healpix_29"].to_numpy() >> 2 * (29 - order)) == {number}
            keys = list(zip(*rows.to_pydict().values(), strict=True))
            assert keys == sorted(keys)
        assert pq.read_schema(path).field("meanra").metadata == {b"unit": b"deg"}

    @pytest.mark.parametrize(("ra", "dec"), [(35.0, 0.0), (0.0, 1.0), (77.0, 90.0), (77.0, -90.0)])
    def test_cone_search(self, source: HatsInput, read: Any, ra: float, dec: float) -> None:
        rows = rows_with_position(source)
        distance = angular_separation_arcsec(ra, dec, rows["meanra"], rows["meandec"])
        expected = rows.filter(pa.array(distance <= 3600.0))["oid"].to_pylist()
        assert expected
        found = read.cone_search(ra=ra, dec=dec, radius_arcsec=3600.0).compute()
        assert sorted(found["oid"]) == sorted(expected)

    def test_crossmatch_with_a_built_catalogue(self, source: HatsInput, read: Any, tmp_path: Path) -> None:
        rows = rows_with_position(source)
        distance = angular_separation_arcsec(35.0, 0.0, rows["meanra"], rows["meandec"])
        rows = rows.filter(pa.array(distance < 3.0 * 3600.0))
        random = np.random.default_rng(8)
        ra = rows["meanra"].to_numpy() + random.normal(0, 2e-4, len(rows))
        dec = rows["meandec"].to_numpy() + random.normal(0, 2e-4, len(rows))
        names = [f"J{number}" for number in range(len(rows))]
        pq.write_table(pa.table({"name": names, "ra": ra, "dec": dec}), tmp_path / "stars.parquet")
        stars = build_catalog(tmp_path / "stars.parquet", tmp_path / "stars", name="stars", with_hats=True)
        near = read.cone_search(ra=35.0, dec=0.0, radius_arcsec=3.0 * 3600.0)
        opened = lsdb.open_catalog(stars.path)
        # There is one partition of stars, which needs no margin.
        assert len(opened.get_healpix_pixels()) == 1
        pairs = near.crossmatch(
            opened,
            radius_arcsec=1.0,
            suffixes=("", "_star"),
            suffix_method="overlapping_columns",
            require_right_margin=False,
        ).compute()
        numbers, _ = nearest(stars, rows["meanra"].to_numpy(), rows["meandec"].to_numpy(), 1.0)
        matched = stars.take(numbers, ["name"])["name"].to_pylist()
        expected = {oid: name for oid, name in zip(rows["oid"].to_pylist(), matched, strict=True) if name}
        assert 100 < len(expected) < len(rows)
        assert dict(zip(pairs["oid"], pairs["name"], strict=True)) == expected


def rows_with_position(source: HatsInput) -> pa.Table:
    rows = pa.concat_tables(ObjectTable(source.objects, BUCKETS).read_all())
    return rows.filter(rows["meanra"].is_valid())


def light_curves_of(oids: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for oid in oids:
        name = pa.array([oid])
        found |= {row["oid"]: row for row in light_curves(int(bucket_of(name, BUCKETS)[0]), name).to_pylist()}
    return found


def reference(source: HatsInput) -> dict[str, dict[str, Any]]:
    """Rows that are to be found, joined one by one."""
    renamed = {"w1mag": "w1mag_feature", "lightcurve": "lightcurve_feature", "Npix": "Npix_feature"}
    assert source.features
    assert source.probabilities
    tables: list[dict[str, dict[str, Any]]] = []
    for folder, names in (
        (source.features, renamed),
        (source.probabilities, {"rb": "rb_probability", "Ia.02cx": "Ia_02cx"}),
    ):
        rows = pa.concat_tables(ObjectTable(folder, BUCKETS).read_all()).to_pylist()
        tables.append({row.pop("oid"): {names.get(n, n): value for n, value in row.items()} for row in rows})
    empty = [dict.fromkeys(next(iter(table.values()))) for table in tables]
    unwanted = {"candid", "classifier_name", "classifier_version", "model_sha256"}
    joined = {}
    for row in rows_with_position(source).to_pylist():
        for table, nothing in zip(tables, empty, strict=True):
            row |= table.get(row["oid"], nothing)
        joined[row["oid"]] = {name: value for name, value in row.items() if name not in unwanted}
    return joined


class TestPartitions:
    def test_same_bytes_for_other_buckets_and_runs(
        self, source: HatsInput, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(source, tmp_path / "a", most_rows=250)
        monkeypatch.setattr(hats_export, "_BYTES_PER_RUN", 20_000)
        monkeypatch.setattr(hats_export, "_ROWS_PER_BATCH", 7)
        export(source, tmp_path / "b", most_rows=250)
        export(make(tmp_path / "other", 2), tmp_path / "c", 2, most_rows=250)
        assert partitions(tmp_path / "a") == partitions(tmp_path / "b") == partitions(tmp_path / "c")
        assert rows_of(tmp_path / "a") == rows_of(exported).drop_columns(["lightcurve"])

    @settings(max_examples=8, deadline=None)
    @given(
        positions=st.lists(
            st.tuples(
                st.sampled_from([None, float("nan"), 0.0, 1e-9, 45.0, 45.0000001, 359.9999999, 360.0]),
                st.sampled_from([None, -90.0, -89.9999999, 0.0, 1e-9, 41.8103149, 90.0]),
            ),
            max_size=40,
        ),
        most_rows=st.integers(1, 20),
    )
    def test_every_object_with_position_once(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        positions: list[tuple[float | None, float | None]],
        most_rows: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("law")
        ra, dec = (pa.array([position[k] for position in positions], pa.float64()) for k in range(2))
        rows = pa.table({"oid": [f"o{k}" for k in range(len(positions))], "meanra": ra, "meandec": dec})
        summary = export(HatsInput(put(folder / "objects", rows)), folder / "hats", most_rows=most_rows)
        placed = [None not in position and position[0] == position[0] for position in positions]
        assert (summary.rows, summary.without_position) == (sum(placed), len(placed) - sum(placed))
        if summary.rows:
            found = rows_of(folder / "hats").drop_columns(["_healpix_29"])
            assert found.to_pylist() == rows.filter(pa.array(placed)).sort_by("oid").to_pylist()

    def test_size_of_partitions_is_bounded(
        self, source: HatsInput, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hats_export, "_BYTES_PER_PARTITION", 20_000)
        export(source, tmp_path / "a", light_curves=light_curves)
        sizes = [pq.read_table(path, partitioning=None).nbytes for path in list_hats(tmp_path / "a").files]
        assert max(sizes) < 25_000
        assert rows_of(tmp_path / "a") == rows_of(exported)

    def test_progress(self, source: HatsInput, tmp_path: Path) -> None:
        said: list[tuple[int, int]] = []
        export(source, tmp_path / "a", say=lambda done, total: said.append((done, total)))
        assert {total for _, total in said} == {2 * ROWS}
        assert said == sorted(said)
        assert said[-1][0] == 2 * ROWS - 3


class TestInput:
    def test_nothing(self, tmp_path: Path) -> None:
        summary = export(HatsInput(tmp_path / "none", tmp_path / "none"), tmp_path / "hats", light_curves=light_curves)
        assert summary == HatsSummary(0, 0, 0, 0)
        assert list_hats(tmp_path / "hats").files == ()
        schema = pq.read_schema(tmp_path / "hats" / "dataset" / "_metadata")
        assert schema.names == ["_healpix_29", "oid", "meanra", "meandec"]

    def test_columns_that_differ_between_buckets(self, tmp_path: Path) -> None:
        rows = objects(50)
        names = [pa.array([oid]) for oid in rows["oid"].to_pylist()]
        table = ObjectTable(tmp_path / "features", BUCKETS)
        for kind, bucket in (("old", 0), ("new", 1)):
            oids = pa.concat_arrays([name for name in names if bucket_of(name, BUCKETS)[0] == bucket])
            values = pa.array(np.arange(len(oids)), pa.float64() if bucket else pa.float32())
            table.put(bucket, pa.table({"oid": oids, kind: values, "both": values}))
        export(HatsInput(put(tmp_path / "objects", rows), table.folder), tmp_path / "hats")
        found = rows_of(tmp_path / "hats")
        buckets = bucket_of(found["oid"], BUCKETS)
        assert found.schema.field("both").type == pa.float64()
        for name, where in (("old", [0]), ("new", [1]), ("both", [0, 1])):
            assert found[name].is_valid().to_pylist() == np.isin(buckets, where).tolist()

    def test_wrong_number_of_buckets(self, source: HatsInput, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is none of 2 buckets"):
            export(source, tmp_path / "hats", 2)

    def test_no_positions(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "objects", objects(20).drop_columns(["meandec"]))
        with pytest.raises(ValueError, match="have no column meandec"):
            export(HatsInput(folder), tmp_path / "hats")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows.slice(1), "not those of the objects"),
            (lambda rows: rows.set_column(2, "fid", rows["fid"][::-1]), "lists fid .* not as long as those of mjd"),
            (
                lambda rows: rows.set_column(1, "mjd", pa.nulls(len(rows), pa.list_(pa.float64()))),
                "lists mjd .* not as long",
            ),
        ],
    )
    def test_light_curves_that_do_not_fit(self, source: HatsInput, tmp_path: Path, change: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            export(source, tmp_path / "hats", light_curves=lambda bucket, oids: change(light_curves(bucket, oids)))
        assert list(tmp_path.iterdir()) == []

    def test_light_curves_of_different_columns(self, source: HatsInput, tmp_path: Path) -> None:
        def curves(bucket: int, oids: pa.Array) -> pa.Table:
            rows = light_curves(bucket, oids)
            return rows if bucket == 0 else rows.drop_columns(["fid"])

        with pytest.raises(ValueError, match="different columns"):
            export(source, tmp_path / "hats", light_curves=curves)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[HatsInput, dict[str, bytes], Path]:
    """Exports over others that were killed at each moment, and what those others were."""
    folder = tmp_path_factory.mktemp("killed")
    source = make(folder / "tables", count=100)
    export(source, folder / "before", most_rows=30)
    for moment in MOMENTS:
        shutil.copytree(folder / "before", folder / moment / "hats")
    command = [sys.executable, "-c", DYING, str(folder), str(BUCKETS), *MOMENTS]
    process = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return source, files(folder / "before"), folder


class TestWhole:
    @pytest.fixture
    def small(self, tmp_path: Path) -> HatsInput:
        return make(tmp_path / "tables", count=100)

    def test_replaces_the_one_before(self, small: HatsInput, tmp_path: Path) -> None:
        output = tmp_path / "out" / "hats"
        export(small, output, most_rows=5)
        export(replace(small, features=None, probabilities=None), output)
        assert rows_of(output).column_names[-1] == "W1mag"
        assert pq.read_metadata(output / "dataset" / "_metadata").num_rows == 97
        assert [path.name for path in output.parent.iterdir()] == ["hats"]

    def test_failure_leaves_the_one_before(
        self, small: HatsInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out" / "hats"
        export(small, output)
        before = files(output)

        def fail(*_: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(hats_export, "write_point_map", fail)
        with pytest.raises(OSError, match="No space"):
            export(small, output, most_rows=5)
        assert files(output.parent) == {f"hats/{name}": content for name, content in before.items()}

    def test_does_not_replace_something_else(self, small: HatsInput, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        with pytest.raises(FileExistsError, match="is no HATS catalogue"):
            export(small, tmp_path / "mine")
        assert list((tmp_path / "mine").iterdir()) == [tmp_path / "mine" / "thesis.tex"]

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_killed(self, killed: tuple[HatsInput, dict[str, bytes], Path], moment: str) -> None:
        source, before, folder = killed
        output = folder / moment / "hats"
        if moment in ("read", "write"):
            assert files(output) == before
        elif moment == "exchange":
            assert not output.exists()
        else:
            assert len(list_hats(output).files) > 30
        with pytest.raises(ValueError, match="buckets"):
            export(source, output, 2)
        # Even a call that fails puts back what was there.
        if moment in ("read", "write", "exchange"):
            assert files(output) == before
        export(source, output, most_rows=30)
        assert partitions(output) == {name: content for name, content in before.items() if name.startswith("dataset")}
        assert [path.name for path in output.parent.iterdir()] == ["hats"]
