"""Building catalogues through crashes, with several processes, from all kinds of tables."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog_commands import _LinePrinter
from pipelines.cli import main
from transforms.tables import _allwise_rows
from xmatch import csv_tables
from xmatch.catalog import CatalogError, build_catalog, open_catalog
from xmatch.jobs import Progress, Workers, locked
from xmatch.sources import ALLWISE_COLUMNS
from xmatch.writer import _sorted_rows

# Small portions, so that few rows make many tasks.
MEMORY_BYTES = 1_500_000
ROWS = 12_000

# Builds with the options of the command line, and dies by SIGKILL after so many finished tasks of a stage.
DYING_BUILD = """
import json, os, signal, sys
from xmatch import jobs
from xmatch.catalog import build_catalog
arguments, last_stage, notes = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
write = jobs.Ledger.write
def write_and_die(self, stage, key, entry):
    global notes
    write(self, stage, key, entry)
    notes -= stage == last_stage
    if notes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
jobs.Ledger.write = write_and_die
build_catalog(arguments.pop("inputs"), arguments.pop("output"), **arguments)
"""


def sample(seed: int, rows: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "id": [f"s{seed}-{number:0{random.integers(1, 9)}d}" for number in range(rows)],
            "ra": random.uniform(0, 360, rows),
            "dec": np.degrees(np.arcsin(random.uniform(-1, 1, rows))),
            "mag": pa.array(random.normal(15, 2, rows), mask=random.random(rows) < 0.1),
            "count": random.integers(0, 1000, rows),
            "kind": pa.array(["star", "galaxy", None, "é"]).take(pa.array(random.integers(0, 4, rows))),
        }
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for seed in range(3):
        pq.write_table(sample(seed, ROWS // 3), folder / f"part{seed}.parquet", row_group_size=1500)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "c"
    build_catalog(inputs, output, name="x", with_hats=True)
    return data_files(output)


def data_files(folder: Path) -> dict[str, bytes]:
    """Content of all files but those that tell when the catalogue was built."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "properties", "hats.properties")
    }


class TestStages:
    def test_workers_and_portions_do_not_show(
        self, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        stages: list[Progress] = []
        options = {"name": "x", "with_hats": True, "workers": 2, "memory_bytes": 2 * MEMORY_BYTES}
        build_catalog(inputs, tmp_path / "c", report=stages.append, **options)
        assert data_files(tmp_path / "c") == undisturbed
        assert not list(tmp_path.glob(".*"))
        for stage in ("read", "sort", "write", "check identifiers", "partition", "checksum"):
            done = [progress.done for progress in stages if progress.stage == stage]
            assert done == sorted(done)
            assert len(done) > 2 or stage == "partition"
            last = next(progress for progress in reversed(stages) if progress.stage == stage)
            assert last.done == last.total

    @pytest.mark.parametrize(("stage", "notes"), [("piece", 2), ("write", 2), ("partition", 5), ("checksum", 4)])
    def test_killed_build_goes_on(
        self, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path, stage: str, notes: int
    ) -> None:
        output = tmp_path / "c"
        options = {"name": "x", "with_hats": True, "memory_bytes": MEMORY_BYTES}
        arguments = json.dumps({"inputs": str(inputs), "output": str(output), **options})
        killed = subprocess.run([sys.executable, "-c", DYING_BUILD, arguments, stage, str(notes)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not output.exists()
        done: dict[str, int] = {}
        said: list[str] = []

        def report(progress: Progress) -> None:
            done.setdefault(progress.stage, progress.done)

        build_catalog(inputs, output, report=report, say=said.append, **options)
        assert "going on" in said[0]
        assert done["read"] > 0
        assert data_files(output) == undisturbed
        open_catalog(output).verify()
        assert [path.name for path in tmp_path.iterdir()] == ["c"]

    def test_killed_processes_end_and_the_build_goes_on(
        self, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        output = tmp_path / "c"
        code = (
            "import sys; from xmatch.catalog import build_catalog; build_catalog(sys.argv[1], sys.argv[2], name='x', "
            f"with_hats=True, workers=2, memory_bytes={MEMORY_BYTES})"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(inputs), str(output)])
        ledger = tmp_path / ".c.building" / "ledger"
        while process.poll() is None and not list(ledger.glob("read.*.json")):
            time.sleep(0.002)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert psutil.wait_procs(family, timeout=20)[1] == []
        build_catalog(inputs, output, name="x", with_hats=True)
        assert data_files(output) == undisturbed

    def test_other_options_start_afresh(self, inputs: Path, tmp_path: Path) -> None:
        output = tmp_path / "c"
        arguments = json.dumps({"inputs": str(inputs), "output": str(output), "name": "x"})
        subprocess.run([sys.executable, "-c", DYING_BUILD, arguments, "read", "1"], check=False)
        said: list[str] = []
        catalog = build_catalog(inputs, output, name="x", columns=["id", "mag"], say=said.append)
        assert "starting afresh" in said[0]
        assert catalog.columns == ("id", "mag")
        assert catalog.rows == ROWS

    def test_other_inputs_start_afresh(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("id,ra,dec\na,1,1\n")
        (tmp_path / "b.csv").write_text("id,ra,dec\nb,2,2\n")
        arguments = json.dumps({"inputs": str(tmp_path / "a.csv"), "output": str(tmp_path / "c"), "name": "x"})
        subprocess.run([sys.executable, "-c", DYING_BUILD, arguments, "read", "1"], check=False)
        (tmp_path / "a.csv").write_text("id,ra,dec\nz,1,1\n")
        os.utime(tmp_path / "a.csv", ns=(1, 1))
        said: list[str] = []
        catalog = build_catalog(tmp_path / "a.csv", tmp_path / "c", name="x", say=said.append)
        assert "starting afresh" in said[0]
        assert catalog.take([0])["id"].to_pylist() == ["z"]

    def test_two_builds_at_once(self, inputs: Path, tmp_path: Path) -> None:
        (tmp_path / ".c.building").mkdir()
        with locked(tmp_path / ".c.building" / "lock"), pytest.raises(CatalogError, match="Another process builds"):
            build_catalog(inputs, tmp_path / "c", name="x")
        build_catalog(inputs, tmp_path / "c", name="x")

    def test_input_that_changes_meanwhile(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\na,1,1\n")

        def report(progress: Progress) -> None:
            if progress.stage == "sort":
                (tmp_path / "s.csv").write_text("id,ra,dec\na,1,1\nb,2,2\n")

        with pytest.raises(CatalogError, match="changed while it was read"):
            build_catalog(tmp_path / "s.csv", tmp_path / "c", name="x", report=report)
        assert not (tmp_path / "c").exists()

    def test_full_disk_leaves_nothing_under_the_name(
        self, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        output = tmp_path / "c"
        code = (
            "import resource, sys; from xmatch.catalog import build_catalog\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
            "build_catalog(sys.argv[1], sys.argv[2], name='x', with_hats=True, memory_bytes=1_500_000)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(inputs), str(output)], capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        assert "OSError" in result.stderr
        assert not output.exists()
        said: list[str] = []
        build_catalog(inputs, output, name="x", with_hats=True, say=said.append)
        assert "going on" in said[0]
        assert data_files(output) == undisturbed

    def test_no_space_is_said(self, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("xmatch.writer.write_rows", fail)
        with pytest.raises(OSError, match=r"no space left for .*start the same command again to go on"):
            build_catalog(inputs, tmp_path / "c", name="x")
        assert not (tmp_path / "c").exists()

    def test_killed_worker_is_said(self) -> None:
        with Workers(2) as workers, pytest.raises(OSError, match="worker process was killed"):
            list(workers.run(os._exit, {"a": (1,), "b": (1,)}))


class TestRepeatedIdentifiers:
    def test_counted_exactly(self, tmp_path: Path) -> None:
        random = np.random.default_rng(1)
        numbers = random.integers(0, 3000, 5000)
        table = pa.table({"id": [f"s{n}" for n in numbers], "ra": random.uniform(0, 360, 5000), "dec": numbers * 0.01})
        pq.write_table(table, tmp_path / "s.parquet", row_group_size=500)
        catalog = build_catalog(tmp_path / "s.parquet", tmp_path / "c", name="x", memory_bytes=300_000)
        repeated = catalog.manifest["repeated_identifiers"]
        assert repeated["rows"] == 5000 - len(set(numbers))
        values, counts = np.unique(numbers, return_counts=True)
        assert set(repeated["examples"]) <= {f"s{n}" for n in values[counts > 1]}
        assert len(repeated["examples"]) == 5
        whole = build_catalog(tmp_path / "s.parquet", tmp_path / "c", name="x")
        assert whole.manifest["repeated_identifiers"] == repeated

    def test_integers(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\n0,1,1\n0,1,2\n7,1,1\n-7,1,3\n0,5,5\n")
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="x")
        assert catalog.manifest["repeated_identifiers"] == {"rows": 2, "examples": ["0"]}

    def test_equal_hashes_are_not_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def same_hash(identifiers: np.ndarray, hashes: np.ndarray) -> None:
            hashes[:] = 5

        monkeypatch.setattr("xmatch.identifier_check._hash_rows", same_hash)
        (tmp_path / "s.csv").write_text("id,ra,dec\na,1,1\nb,1,2\na,1,3\nc,1,3\n")
        catalog = build_catalog(tmp_path / "s.csv", tmp_path / "c", name="x")
        assert catalog.manifest["repeated_identifiers"] == {"rows": 1, "examples": ["a"]}


class TestAllwise:
    @pytest.fixture
    def irsa(self, shared_data: Path, tmp_path: Path) -> Path:
        schema = pq.read_schema(shared_data / "xmatch" / "allwise_schema.parquet")
        values = {"designation": ["J1", "J2"], "source_id": ["s2", "s1"], "ra": [0.5, 9.0], "dec": [0.25, 1.0]}
        table = pa.table([pa.array(values.get(f.name, [None, None]), f.type) for f in schema], schema=schema)
        pq.write_table(table, tmp_path / "irsa.parquet")
        return tmp_path / "irsa.parquet"

    def test_both_names_are_kept(self, irsa: Path, tmp_path: Path) -> None:
        catalog = build_catalog(irsa, tmp_path / "c", name="allwise")
        assert catalog.columns == ALLWISE_COLUMNS
        assert catalog.take([0, 1], ["AllWISE", "source_id"]).to_pydict() == {
            "AllWISE": ["J1", "J2"],
            "source_id": ["s2", "s1"],
        }

    @pytest.mark.parametrize("name", ["designation", "AllWISE"])
    def test_designation_goes_to_the_tables(self, irsa: Path, tmp_path: Path, name: str) -> None:
        catalog = build_catalog(irsa, tmp_path / "c", name="allwise", identifier=name)
        assert catalog.columns == ALLWISE_COLUMNS
        assert _allwise_rows(catalog.take([0]))["oid_catalog"].to_pylist() == ["J1"]

    def test_source_id_goes_to_the_tables(self, irsa: Path, tmp_path: Path) -> None:
        catalog = build_catalog(irsa, tmp_path / "c", name="allwise", identifier="source_id")
        assert catalog.columns == ("source_id", *ALLWISE_COLUMNS)
        rows = _allwise_rows(catalog.take([0, 1]))
        assert rows["oid_catalog"].to_pylist() == ["s2", "s1"]
        assert rows["ra"].to_pylist() == [0.5, 9.0]
        assert "AllWISE" not in rows.column_names
        assert catalog.index.identifiers.tobytes() == b"s2s1"


VIZIER = """\
#
#   VizieR Astronomical Server
#Column\tRAJ2000\t(F11.7)\tRight ascension

AllWISE{0}RAJ2000{0}DEJ2000{0}W1mag{0}note
"{0}deg{0}deg{0}mag{0}
-------{0}------{0}------{0}-----{0}----
J000001.00+000000.0{0} 0.0041667{0}  0.0000000{0}12.5{0}ab
J000002.00+000000.0{0} 0.0083333{0} -1.0000000{0}    {0}
#END#
"""


class TestCsv:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("is_packed", [False, True])
    def test_vizier(self, tmp_path: Path, delimiter: str, is_packed: bool) -> None:
        text = VIZIER.format(delimiter).replace('"', "").encode()
        path = tmp_path / ("v.csv.gz" if is_packed else "v.csv")
        path.write_bytes(gzip.compress(text) if is_packed else text)
        catalog = build_catalog(path, tmp_path / "c", name="x")
        assert catalog.take([0, 1]).to_pydict() == {
            "AllWISE": ["J000002.00+000000.0", "J000001.00+000000.0"],
            "RAJ2000": [0.0083333, 0.0041667],
            "DEJ2000": [-1.0, 0.0],
            "W1mag": [None, 12.5],
            "note": [None, "ab"],
        }
        assert [column.unit for column in catalog.fields] == [None, "deg", "deg", "mag", None]
        assert catalog.manifest["refused"] == dict.fromkeys(catalog.manifest["refused"], 0)

    def test_type_that_shows_late(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(csv_tables, "_SAMPLE_BYTES", 200)
        lines = [f"s{k},{k % 360},{k % 90},1,," for k in range(500)]
        lines[245:270] = ["t,1,1,1,,word"] * 25
        lines[499] = "u,1,1,1.5,2.5,"
        (tmp_path / "s.csv").write_text("\n".join(["id,ra,dec,a,b,c", *lines]))
        layout = csv_tables.read_layout(tmp_path / "s.csv")
        types = csv_tables.column_types(tmp_path / "s.csv", layout)
        assert [types[name] for name in "abc"] == [pa.float64(), pa.float64(), pa.string()]

    @given(
        rows=st.lists(st.text("ab,;# é\r", max_size=9).filter(str.strip), min_size=1, max_size=40),
        step=st.integers(1, 60),
        block=st.integers(1, 60),
        ends=st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_ranges_share_out_all_lines(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[str], step: int, block: int, ends: bool
    ) -> None:
        path = tmp_path_factory.mktemp("csv") / "s.csv"
        body = "\n".join(rows).encode() + (b"\n" if ends else b"")
        path.write_bytes(b"id\n" + body)
        layout = csv_tables.CsvLayout(("id",), {}, ",", 3, False, False)
        size = path.stat().st_size
        ranges = [(begin, min(begin + step, size)) for begin in range(3, size, step)]
        blocks = [part for begin, end in ranges for part in csv_tables.iter_blocks(path, layout, begin, end, block)]
        assert b"".join(blocks) == body
        assert all(part.endswith(b"\n") for part in blocks[:-1])

    @pytest.mark.parametrize("is_packed", [False, True])
    def test_many_blocks(self, tmp_path: Path, is_packed: bool) -> None:
        table = sample(4, 4000)
        path = tmp_path / ("s.csv.gz" if is_packed else "s.csv")
        text = table.to_pandas().to_csv(index=False).encode()
        path.write_bytes(gzip.compress(text) if is_packed else text)
        pq.write_table(table, tmp_path / "s.parquet")
        of_csv = build_catalog(path, tmp_path / "c", name="x", memory_bytes=200_000)
        of_parquet = build_catalog(tmp_path / "s.parquet", tmp_path / "p", name="x")
        assert data_files(of_csv.path) == data_files(of_parquet.path)

    def test_no_header(self, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("# only a comment\n\n")
        with pytest.raises(CatalogError, match="no line with the names"):
            build_catalog(tmp_path / "s.csv", tmp_path / "c", name="x")


class TestCommands:
    def test_build_and_info(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "key,ra,dec,m\na,1,1,5\na,1,1,5\na,2,2,6\nb,nan,1,7\nc,1,99,8\n,1,1,9\n"
        (tmp_path / "s.csv").write_text(text)
        options = ["--identifier", "key", "--output", str(tmp_path / "c"), "--workers", "1", "--version", "3"]
        assert main(["catalog", "build", "mine", str(tmp_path / "s.csv"), *options]) == 0
        answer = capsys.readouterr()
        remarks = [
            "left out: 1 without a position",
            "left out: 1 with a position out of range",
            "left out: 1 without an identifier",
            "left out: 1 repetitions of the same identifier and position",
            "kept: 1 whose identifier another one has at another position, e.g. a",
        ]
        assert answer.out.splitlines() == [f"{tmp_path / 'c'}: mine, 2 sources", *remarks]
        assert answer.err == ""
        assert main(["catalog", "info", str(tmp_path / "c"), "--verify"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("mine 3: 2 sources, built ")
        assert lines[1] == "from 1 file, 0.0 MB"
        assert lines[2].endswith("HATS in 1 partition")
        assert lines[3:8] == remarks
        assert (tmp_path / "c" / "dataset").is_dir()

    def test_without_hats(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\na,1,1\n")
        assert (
            main(["catalog", "build", "x", str(tmp_path / "s.csv"), "--output", str(tmp_path / "c"), "--no-hats"]) == 0
        )
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["index", "manifest.json"]

    @pytest.mark.parametrize(
        ("options", "status", "message"),
        [
            (["absent.csv"], 2, "absent.csv does not exist; give CSV or Parquet files, folders of them"),
            (["{tmp}/s.csv", "--ra", "lon"], 2, "lon is not there"),
            (["{tmp}/s.csv", "--workers", "-1"], 2, "--workers must be at least 1"),
            (["{tmp}/s.csv", "--memory", "0"], 2, "--memory must be above 0"),
            (["ftp://host/hats"], 2, "does not exist"),
        ],
    )
    def test_wrong_usage(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
    ) -> None:
        (tmp_path / "s.csv").write_text("id,ra,dec\na,1,1\n")
        words = [word.format(tmp=tmp_path) for word in options]
        assert main(["catalog", "build", "x", *words, "--output", str(tmp_path / "c")]) == status
        assert message in capsys.readouterr().err
        assert not (tmp_path / "c").exists()

    def test_lines_of_progress(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.catalog_commands._SECONDS_BETWEEN_LINES", 0.0)
        printer = _LinePrinter()
        printer.show(Progress("read", 5_000_000, 20_000_000, "bytes"))
        printer.show(Progress("sort", 1000, 1000, "rows"))
        assert capsys.readouterr().err.splitlines() == [
            "0 s: read: 25 % (5 of 20 MB)",
            "0 s: sort: 100 % (1,000 of 1,000 rows)",
        ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-300, 5e-324, 10.0, np.nextafter(10.0, 11.0), 359.9, np.nextafter(360.0, 0.0)]),
            st.sampled_from([-90.0, -1.0, -0.9999, 0.0, 1.0, 1.0001, 90.0]),
            st.sampled_from(["a", "b", "ab", "é"]),
        ),
        max_size=60,
    )
)
def test_order_of_rows(rows: list[tuple[float, float, str]]) -> None:
    ra, dec = (np.array([row[k] for row in rows], np.float64) for k in (0, 1))
    texts = [row[2].encode() for row in rows]
    identifiers = np.array([list(text.ljust(2, b"\0")) for text in texts], np.uint8).reshape(len(rows), 2)
    zones = np.floor((dec + 90.0) * 360).astype(np.int64)
    keys = [(zones[k], ra[k], dec[k], texts[k]) for k in range(len(rows))]
    first = {key: k for k, key in reversed(list(enumerate(keys)))}
    assert _sorted_rows(ra, dec, zones, identifiers).tolist() == [first[key] for key in sorted(first)]
