"""The page that shows a run: its numbers, its parts that may be missing, and how a browser takes it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from report_fixtures import ARCHIVE_BYTES, BEGUN, BUCKETS, NASTY_OID, NASTY_REASON, SimulatedRun, make_run, put
from scipy.optimize import brentq
from scipy.stats import binomtest

from lightcurves.assembly import assemble
from pipelines.cli import main
from report import crossmatches as crossmatches_module
from report.axes import Scale, short
from report.classes import class_infos
from report.crossmatches import Positions, read_crossmatches
from report.data import Choice, collect
from report.figures import duration, wilson
from report.letters import kind_of, read_letters
from report.objects import Tables, read_objects
from report.page import render
from report.random_matches import SHIFT_ARCSEC, random_level
from report.sky import SKY_SHAPE, mollweide, sky_cells
from report.summary import summarise
from run_folder.access import open_run
from run_folder.ledger import Ledger, Sample, Unit, UnitSpec
from xmatch.catalog import build_catalog

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ["summary", "rate", "sky", "matches", "classes", "curves", "features", "objects", "letters"]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Elements of a page, each closed in its turn, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self._script = dict(attributes).get("id") or "code"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def data(self) -> dict:
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    return make_run(tmp_path_factory.mktemp("report") / "run", objects_per_class=3)


def page_of(folder: Path, choice: Choice | None = None, target: Path | None = None) -> str:
    data = collect(open_run(folder), choice or Choice())
    return render(data, target or folder / "report.html")


@pytest.fixture(scope="module")
def html(run: SimulatedRun) -> str:
    return page_of(run.folder)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# What is on the page


def test_all_sections_are_there_in_order(page):
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == SECTIONS


def test_nothing_is_loaded_from_elsewhere(page, html):
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "poster", "action", "formaction", "background", "xlink:href"):
            assert name not in attributes, tag
        if tag != "a" and "href" in attributes:
            assert attributes["href"] == "data:,"
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "Security" in (a.get("http-equiv") or ""))
    assert "default-src 'none'" in policy


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_picture_has_a_text(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) > 8
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in pictures)


def test_counts_add_up_as_an_equation(page, run):
    counts, letters = run.counts, run.letters
    alerts_in = counts["read"] + letters["read"] + letters["decode"]
    terms = [alerts_in, counts["written"], counts["filtered"], counts["repeated"], sum(letters.values())]
    assert terms[0] == sum(terms[1:])
    names = ("alerts in", "written", "filtered", "repeated", "dead letters")
    for number, name in zip(terms, names, strict=True):
        assert f"{number:,} {name}" in page.text
    assert "The counts add up to the unit." in page.text


def test_a_balance_that_is_off_is_said(run):
    with Ledger.read_only(run.folder / "ledger") as ledger:
        units = ledger.units()
    units[0].counts["written"] -= 3
    balance = summarise({}, units, [], []).balance
    assert balance is not None
    assert balance.difference == 3


def test_versions_are_told(page, run):
    data = collect(open_run(run.folder), Choice(gallery=0))
    for text in ("alertbeam 0.1.0", "allwise", data.summary.settings["model"]["sha256"], "1.0.0-accurate"):
        assert text in page.text
    assert "started 2 times" in page.text
    assert "broken<i>" in page.text
    assert f"{900_000_002 / 1e6:,.0f} MB" in page.text


def test_matches_are_counted(page, run):
    matched = pc.sum(pc.equal(run.crossmatches["status"], "matched")).as_py()
    assert (
        f"{matched:,} of {len(run.crossmatches):,} alerts ({100 * matched / len(run.crossmatches):.1f} %)" in page.text
    )


def test_classes_are_counted(page, run):
    wanted = Counter(run.probabilities["class"].to_pylist())
    names = [info["name"] for info in page.data["classes"]]
    for name in names:
        share = f"{100 * wanted[name] / len(run.probabilities):.1f} %"
        assert re.search(rf"{re.escape(name)} {wanted[name]:,} {share}", page.text), name
    assert sum(wanted.values()) == len(run.probabilities)


def test_galleries_are_of_the_most_confident_objects(run):
    data = Page(page_of(run.folder, Choice(gallery=2))).data
    rows = run.probabilities.to_pandas()
    for number, oids in data["gallery"]:
        own = rows[rows["class"] == data["classes"][number]["name"]].set_index("oid").class_probability
        assert len(oids) == min(2, len(own))
        assert own.loc[oids].min() >= own.drop(oids).max() if len(own) > len(oids) else True


def test_periodic_classes_are_those_of_the_branch(page):
    for info in page.data["classes"]:
        assert info["periodic"] == (info["branch"] == "Periodic")


def test_light_curves_are_those_of_the_store(page, run):
    batch = assemble(run.simulated.detections, run.simulated.non_detections)
    assert set(page.data["curves"]) == set(batch.oid.to_pylist())
    for oid, curve in page.data["curves"].items():
        detections = batch.light_curve(oid).detections
        error = detections.sigmapsf_corr_ext if curve["a"] else detections.sigmapsf
        shown = detections[np.isfinite(error) & (error < 1)]
        assert curve["n"] == len(shown)
        if len(shown) > 300:
            continue
        np.testing.assert_allclose(curve["t0"] + np.array(curve["t"]) / 1e5, shown.mjd, atol=1e-5)
        magnitude = shown.magpsf_corr if curve["a"] else shown.magpsf
        np.testing.assert_allclose(np.array(curve["m"]) / 1000, magnitude, atol=6e-4)
        codes = [int(code, 16) for code in curve["f"]]
        assert [code & 3 for code in codes] == shown.fid.tolist()
        assert [bool(code & 4) for code in codes] == (shown.isdiffpos < 0).tolist()


def test_table_has_the_objects_with_their_nearest_match(page, run):
    objects = page.data["objects"]
    assert sorted(objects["oid"]) == sorted(run.objects["oid"].to_pylist())
    matched = run.crossmatches.to_pandas()
    matched = matched[matched.status == "matched"].groupby("oid").angDist.min()
    period = dict(zip(run.features["oid"].to_pylist(), run.features["Multiband_period"].to_pylist(), strict=True))
    for row, oid in enumerate(objects["oid"]):
        assert objects["match"][row] == (round(matched[oid], 2) if oid in matched else None)
        if objects["period"][row] is not None:
            assert objects["period"][row] == pytest.approx(period[oid], rel=1e-6)


def test_features_are_those_of_the_table(page, run):
    features = page.data["features"]
    table = run.features.to_pandas().set_index("oid")
    assert sorted(features["oid"]) == sorted(table.index)
    for name, values in zip(features["names"], features["values"], strict=True):
        wanted = table.loc[features["oid"], name].to_numpy(np.float64)
        np.testing.assert_allclose(np.array(values, np.float64), wanted, rtol=1e-3)


def test_dead_letters_are_grouped_with_links_that_lead_to_them(page, run):
    assert f"{sum(run.letters.values())} dead letters by stage" in page.text
    assert "a block of ‹n› bytes is cut off after ‹n›" in page.text
    assert "candid 77" in page.text
    links = [a["href"] for tag, a in page.elements if tag == "a" and "dead_letters" in (a.get("href") or "")]
    assert "dead_letters/a%20b.decode.0000.avro" in links


def test_links_are_relative_to_where_the_page_is(run, tmp_path):
    target = tmp_path / "pages" / "night.html"
    links = [
        attributes["href"]
        for tag, attributes in Page(page_of(run.folder, target=target)).elements
        if tag == "a" and "dead_letters" in (attributes.get("href") or "")
    ]
    assert links
    for link in links:
        assert (target.parent / link.replace("%20", " ")).resolve().is_file()


def test_names_and_reasons_are_never_markup(page, html):
    assert NASTY_OID not in html
    assert NASTY_REASON not in html
    assert NASTY_OID in page.data["objects"]["oid"]
    assert NASTY_REASON in page.text
    assert Counter(tag for tag, _ in page.elements)["script"] == 2
    assert "img" not in {tag for tag, _ in page.elements}


def test_the_same_run_gives_the_same_bytes(run, html):
    assert page_of(run.folder) == html


# What may be missing


def copy_of(run: SimulatedRun, target: Path, *parts: str) -> Path:
    target.mkdir()
    for part in parts:
        source = run.folder / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / part)
    return target


def test_a_run_of_crossmatches_alone(run, tmp_path):
    page = Page(page_of(copy_of(run, tmp_path / "run", "crossmatches.parquet", "dead_letters")))
    for text in ("has no ledger", "has no classes", "has no features", "has no table of objects"):
        assert text in page.text
    assert "The level of random matches is not known: the run used a remote service" in page.text
    assert f"{len(run.crossmatches):,} alerts" in page.text


def test_a_run_without_a_model(run, tmp_path):
    parts = ("ledger", "crossmatches.parquet", "light_curves", "objects", "features")
    page = Page(page_of(copy_of(run, tmp_path / "run", *parts)))
    assert "The run has no classes: no model was named." in page.text
    assert len(page.data["curves"]) == len(run.objects)
    assert page.data["classes"] == []
    assert set(page.data["features"]["class"]) == {-1}


def test_a_run_without_light_curves(run, tmp_path):
    page = Page(page_of(copy_of(run, tmp_path / "run", "objects", "features", "probabilities")))
    assert "No light curves can be shown: the run keeps no light curves." in page.text


def test_a_run_in_progress_says_so(tmp_path):
    with Ledger.open(tmp_path / "run" / "ledger") as ledger:
        ledger.set_settings({"alertbeam": "0.1.0"})
        ledger.add("read", [UnitSpec("one", {}), UnitSpec("two", {})])
        ledger.start("read", "one")
    page = Page(page_of(tmp_path / "run"))
    assert "In progress. 2 of the known units of work are not finished" in page.text
    assert "No archive has been read to its end yet." in page.text


def test_an_empty_run(tmp_path):
    (tmp_path / "run" / "alerts").mkdir(parents=True)
    page = Page(page_of(tmp_path / "run"))
    assert "There is nothing in this run yet." in page.text
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == SECTIONS


def test_empty_tables(run, tmp_path):
    folder = tmp_path / "run"
    put(folder / "objects", run.objects.slice(0, 0))
    put(folder / "features" / "version=1", run.features.slice(0, 0))
    put(folder / "probabilities" / "classifier=a" / "version=1", run.probabilities.slice(0, 0))
    (folder / "crossmatches.parquet").mkdir()
    pq.write_table(run.crossmatches.slice(0, 0), folder / "crossmatches.parquet" / "none.parquet")
    assert "0 objects" in Page(page_of(folder)).text


def test_damaged_dead_letters_are_named(run, tmp_path):
    folder = copy_of(run, tmp_path / "run", "dead_letters")
    whole = (folder / "dead_letters" / "others.0000.avro").read_bytes()
    (folder / "dead_letters" / "cut.avro").write_bytes(whole[:-10])
    assert "cut.avro is damaged" in Page(page_of(folder)).text


def test_a_big_run_gives_a_small_page(tmp_path):
    """Thirty thousand objects of fifteen classes at random."""
    rng, count, folder = np.random.default_rng(4), 30_000, tmp_path / "run"
    oid = pa.array([f"ZTF18{k:07d}" for k in range(count)])
    leaves = [f"class {k}" for k in range(15)]
    shares = rng.dirichlet(np.full(15, 0.3), count)
    names = pa.array(leaves).take(pa.array(shares.argmax(axis=1)))
    columns = {
        "oid": oid,
        **dict(zip(leaves, shares.T, strict=True)),
        "class": names,
        "class_probability": shares.max(1),
    }
    put(folder / "probabilities" / "classifier=a" / "version=1", pa.table(columns))
    features = ("Multiband_period", "Period_fit", "Mean_1", "Mean_2", *(f"SPM_{name}_1" for name in ("A", "chi")))
    columns = {"oid": oid, **{name: rng.lognormal(size=count) for name in features}}
    put(folder / "features" / "version=1", pa.table(columns))
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-0.5, 1, count)))
    put(folder / "objects", pa.table({"oid": oid, "ndet": rng.integers(1, 99, count), "meanra": ra, "meandec": dec}))
    crossmatches = pa.table(
        {
            "candid": np.arange(count),
            "oid": oid,
            "jd": rng.uniform(2458000, 2459000, count),
            "ra": ra,
            "dec": dec,
            "catalog": pa.repeat("allwise", count),
            "status": pa.array(["matched", "no match"]).take(pa.array(rng.integers(0, 2, count))),
            "angDist": rng.uniform(0, 1, count),
        }
    )
    (folder / "crossmatches.parquet").mkdir()
    pq.write_table(crossmatches, folder / "crossmatches.parquet" / "all.parquet")
    html = page_of(folder)
    assert len(html.encode()) < 3e6
    page = Page(html)
    assert "The 5,000 most telling of 30,000 objects" in page.text
    assert "A sample of 2,000 of 30,000 objects" in page.text
    assert "do not tell the magnitudes" in page.text
    shown = Counter(page.data["objects"]["class"])
    assert max(shown.values()) - min(shown.values()) <= 1


# How it is collected


def regrouped(table: pa.Table, folder: Path, parts: int, seed: int) -> Path:
    """Rows in another order, in another number of files."""
    folder.mkdir()
    order = np.random.default_rng(seed).permutation(len(table))
    for number, rows in enumerate(np.array_split(order, parts)):
        pq.write_table(table.take(pa.array(rows)), folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize("parts", [1, 7])
def test_crossmatches_do_not_depend_on_their_order_nor_files(run, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(crossmatches_module, "SAMPLE", 500)
    oids = run.objects["oid"].combine_chunks()
    one = read_crossmatches(run.folder / "crossmatches.parquet", 1.5, oids)
    monkeypatch.setattr(crossmatches_module, "_BATCH_ROWS", 333)
    monkeypatch.setattr(crossmatches_module, "_MOST_PENDING_ROWS", 700)
    other = read_crossmatches(regrouped(run.crossmatches, tmp_path / "other", parts, parts), 1.5, oids)
    assert (one.nearest, one.nights, one.first_jd) == (other.nearest, other.nights, other.first_jd)
    a, b = one.catalogs["allwise"], other.catalogs["allwise"]
    assert (a.alerts, a.matched) == (b.alerts, b.matched)
    for name in ("sky", "sky_matched", "separations"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for band in (1, 2):
        np.testing.assert_array_equal(a.magnitudes[band], b.magnitudes[band])
    assert len(a.sample) == 500
    np.testing.assert_array_equal(a.sample.key, b.sample.key)
    np.testing.assert_array_equal(a.sample.ra, b.sample.ra)


def test_crossmatch_sums_are_those_of_a_data_frame(run):
    one = read_crossmatches(run.folder / "crossmatches.parquet", 1.5).catalogs["allwise"]
    rows = run.crossmatches.to_pandas()
    matched = rows[rows.status == "matched"]
    assert one.sky.sum() == len(rows)
    assert one.sky_matched.sum() == len(matched)
    np.testing.assert_array_equal(one.separations, np.histogram(matched.angDist, 40, (0, 1.5))[0])
    for fid, some in matched.groupby("fid"):
        assert one.magnitudes_matched[fid].sum() == some.magpsf.between(11, 23).sum()


def test_alerts_after_the_date_are_left_out(run):
    rows = run.crossmatches.to_pandas()
    until = float(rows.jd.median())
    one = read_crossmatches(run.folder / "crossmatches.parquet", 1.5, as_of_mjd=until - 2400000.5)
    assert one.catalogs["allwise"].alerts == (rows.jd <= until).sum()
    assert one.last_jd <= until


@pytest.mark.parametrize("buckets", [1, 9])
def test_objects_do_not_depend_on_the_buckets(run, tmp_path, buckets):
    def read(folder: Path, number: int):
        for name, rows in (("o", run.objects), ("f", run.features), ("p", run.probabilities)):
            put(folder / name, rows, number)
        found = read_objects(Tables(folder / "o", folder / "f", folder / "p"))
        assert found is not None
        return found

    one, other = read(tmp_path / "a", BUCKETS), read(tmp_path / "b", buckets)
    assert one.shown.to_pylist() == other.shown.to_pylist()
    assert one.features.to_pylist() == other.features.to_pylist()
    assert {name: each.count for name, each in one.classes.items()} == {n: e.count for n, e in other.classes.items()}
    assert (one.count, one.featured) == (len(run.objects), len(run.features))


def test_classes_take_turns_with_their_best_objects(run):
    shown = collect(open_run(run.folder), Choice(gallery=0)).objects.shown.to_pandas()
    first = shown.head(shown["class"].nunique())
    assert first["class"].is_unique
    best = shown.groupby("class").probability.max()
    assert dict(zip(first["class"], first.probability, strict=True)) == best.to_dict()
    assert shown["class"].isna().sum() == shown["class"].tail(shown["class"].isna().sum()).isna().sum()


def test_random_matches_are_those_of_displaced_positions(tmp_path):
    """Sources exactly 60 arcsec north of some positions are found by one of the four displacements."""
    ra, dec = np.array([10.0, 20.0, 30.0, 40.0]), np.array([-5.0, 0.0, 33.0, 61.0])
    north = pa.table({"id": ["a", "b", "c"], "ra": ra[:3], "dec": dec[:3] + SHIFT_ARCSEC / 3600})
    pq.write_table(north, tmp_path / "north.parquet")
    build_catalog(tmp_path / "north.parquet", tmp_path / "north", name="north", ra="ra", dec="dec", identifier="id")
    positions = Positions(np.arange(4, dtype=np.uint64), ra, dec, np.zeros(4, np.bool_))
    level = random_level(positions, {"name": "north", "path": str(tmp_path / "north")}, 1.0)
    assert (level.trials, level.matches) == (16, 3)
    assert level.per_alert == 3 / 16


@pytest.mark.parametrize(
    ("catalog", "reason"),
    [
        (None, "remote"),
        ({"name": "a", "path": "/nowhere/at/all"}, "is not a catalogue"),
    ],
)
def test_a_catalogue_that_is_not_there_is_said(catalog, reason):
    positions = Positions(np.zeros(1, np.uint64), np.zeros(1), np.zeros(1), np.zeros(1, np.bool_))
    assert reason in random_level(positions, catalog, 1.0).reason


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("a block of 46,803 bytes is cut off after 18,589", "a block of ‹n› bytes is cut off after ‹n›"),
        ("ra is -361.5e-3 degrees", "ra is ‹n› degrees"),
        ("ZTF18aazxcwf is not in a/b/night.tar.gz", "‹object› is not in ‹file›"),
        ("field 'magpsf' is missing", "field ‹text› is missing"),
        ("schema v3 and W1mag stay", "schema v3 and W1mag stay"),
    ],
)
def test_reasons_of_one_kind(reason, kind):
    assert kind_of(reason) == kind


def test_letters_beyond_the_bound_are_left(run):
    letters = read_letters(run.folder / "dead_letters", 4)
    assert (letters.read, letters.complete) == (4, False)
    assert sum(group.count for group in letters.groups) == 4


def test_rates_leave_pauses_out_and_keep_the_sums(run):
    with Ledger.read_only(run.folder / "ledger") as ledger:
        summary = summarise(ledger.settings(), ledger.units(), ledger.samples(), [])
        samples = ledger.samples()
    rates = summary.rates
    assert rates is not None
    assert rates.of_samples
    assert [round(length) for _, length in rates.pauses] == [3601]
    assert rates.edges_s[-1] == pytest.approx(89)
    for rate, name in ((rates.alerts, "alerts"), (rates.objects, "objects")):
        done = getattr(samples[-1], name) - getattr(samples[0], name)
        assert (rate * np.diff(rates.edges_s)).sum() == pytest.approx(done)


def test_what_a_stage_counts_is_not_taken_for_another_s():
    """The counters of the samples are those of the stage at work."""
    unit = partial(Unit, attempts=1, fingerprint="", payload={}, reason="", seconds=1.0, peak_bytes=1, versions={})
    read = unit(stage="read", name="a", state="done", size=9, counts={}, started=BEGUN, ended=BEGUN + 10)
    features = unit(stage="features", name="b", state="done", size=9, counts={}, started=BEGUN + 20, ended=BEGUN + 30)
    sizes = {0: (0, 0), 10: (900, 0), 11: (0, 0), 20: (900, 0), 21: (0, 0), 30: (0, 500), 40: (0, 0), 50: (0, 700)}
    samples = [Sample(BEGUN + at, 0, size, objects, 0) for at, (size, objects) in sizes.items()]
    rates = summarise({}, [read, features], samples, []).rates
    assert rates is not None
    assert (rates.megabytes * np.diff(rates.edges_s)).sum() * 1e6 == pytest.approx(900)
    assert (rates.objects * np.diff(rates.edges_s)).sum() == pytest.approx(500)


def test_rates_of_units_where_there_are_no_samples(run):
    with Ledger.read_only(run.folder / "ledger") as ledger:
        rates = summarise({}, ledger.units(), [], []).rates
    assert rates is not None
    assert not rates.of_samples
    assert (rates.alerts * np.diff(rates.edges_s)).sum() == pytest.approx(run.counts["read"])
    assert (rates.megabytes * np.diff(rates.edges_s)).sum() == pytest.approx(3 * ARCHIVE_BYTES / 1e6)
    assert [length for _, length in rates.pauses] == [3600]


def test_a_counter_that_begins_anew():
    """At the beginning of a stage; and it falls a little when a worker dies."""
    samples = [Sample(BEGUN + k, alerts, 0, 0, 0) for k, alerts in enumerate([10, 30, 5, 25, 20, 40])]
    rates = summarise({}, [], samples, []).rates
    assert rates is not None
    np.testing.assert_allclose(rates.alerts, [20, 5, 20, 0, 15])


def test_letters_that_were_fed_again_came_in_once(tmp_path):
    with Ledger.open(tmp_path) as ledger:
        ledger.add("read", [UnitSpec("night", {}), UnitSpec("letters", {})])
        first = {"read": 100, "written": 96, "dead_letters:crossmatch": 4, "dead_letters:decode": 3}
        second = {"read": 6, "written": 4, "repeated": 1, "dead_letters:crossmatch": 1, "dead_letters:decode": 1}
        for name, counts in (("night", first), ("letters", second | {"replayed": 7})):
            ledger.start("read", name)
            ledger.finish("read", name, counts, 1.0, 1, {})
        balance = summarise({}, ledger.units(), [], []).balance
    assert balance is not None
    assert (balance.alerts_in, balance.written, balance.repeated, balance.dead) == (103, 100, 1, 2)
    assert balance.difference == 0


# Arithmetic of the pictures


def test_mollweide_is_what_its_equation_says():
    for dec in (-89.0, -30.0, 0.0, 12.5, 77.0):
        theta = brentq(lambda t, d=dec: 2 * t + np.sin(2 * t) - np.pi * np.sin(np.radians(d)), -np.pi / 2, np.pi / 2)
        for ra in (0.0, 90.0, 180.0, 355.0):
            x, y = mollweide(ra, dec)
            assert y == pytest.approx(np.sin(theta), abs=1e-6)
            assert x == pytest.approx(-(ra - 180) / 90 * np.cos(theta), abs=1e-6)


def test_cells_have_equal_areas():
    rng = np.random.default_rng(1)
    count = 400_000
    cells = sky_cells(rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count))))
    rows = np.bincount(cells // SKY_SHAPE[1], minlength=SKY_SHAPE[0])
    y = np.linspace(-1, 1, SKY_SHAPE[0] + 1)
    expected = count * np.diff(y * np.sqrt(1 - y**2) + np.arcsin(y)) / np.pi
    assert (np.abs(rows - expected) < 5 * np.sqrt(expected + 1)).all()
    assert (sky_cells(np.array([np.nan, 3.0]), np.array([0.0, 91.0])) == -1).all()


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_binomial_interval(trials, share):
    successes = round(share * trials)
    wanted = binomtest(successes, trials).proportion_ci(0.6826894921370859, "wilson")
    np.testing.assert_allclose(wilson(successes, trials), (wanted.low, wanted.high), atol=1e-9)


@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e5))
@settings(max_examples=60, deadline=None)
def test_ticks_lie_within_and_are_a_few(low, width):
    ticks = Scale(low, low + width).ticks(6)
    assert 2 <= len(ticks) <= 8
    assert low - 1e-6 * width <= ticks[0] < ticks[-1] <= low + width * (1 + 1e-6)


def test_texts_of_numbers():
    assert [short(value) for value in (0, 0.25, 999, 1500, 2.5e6)] == ["0", "0.25", "999", "1.5k", "2.5M"]
    spaces = str.maketrans("\u00a0", " ")
    told = [duration(seconds).translate(spaces) for seconds in (3.14, 125, 3599.7, 7500, 180_000)]
    assert told == ["3.1 s", "2 min 05 s", "1 h 00 min", "2 h 05 min", "2 d 02 h"]


def test_classes_without_a_known_hierarchy():
    infos = class_infos(["apple", "pear"], {})
    assert [(info.branch, info.periodic) for info in infos] == [("", None), ("", None)]
    assert len({info.light for info in infos}) == 2


# The command


def test_command(run, tmp_path, capsys, html):
    target = tmp_path / "deep" / "page.html"
    assert main(["report", str(run.folder), "--output", str(target), "--quiet"]) == 0
    assert str(target) in capsys.readouterr().out
    assert Page(target.read_text(encoding="utf-8")).data == Page(html).data
    assert main(["report", str(run.folder)]) == 0
    assert (run.folder / "report.html").read_text(encoding="utf-8") == html
    assert "reading crossmatches" in capsys.readouterr().err


def test_command_with_a_date(run, tmp_path):
    """Results of the date, and of the rest what was known then."""
    date, mjd = "2019-06-01", 58635.0
    folder = copy_of(run, tmp_path / "run", "crossmatches.parquet", "light_curves")
    early = run.simulated.detections.filter(pc.less_equal(run.simulated.detections["mjd"], mjd))
    put(folder / "as_of" / date / "objects", assemble(early, run.simulated.non_detections.slice(0, 0)).objects)
    assert main(["report", str(folder), "--as-of", date, "--quiet"]) == 0
    page = Page((folder / "as_of" / date / "report.html").read_text(encoding="utf-8"))
    assert f"as of {date}" in page.text
    assert f"{len(early):,} alerts" in page.text
    assert len(page.data["curves"]) > 10
    assert max(curve["t0"] + max(curve["t"], default=0) / 1e5 for curve in page.data["curves"].values()) <= mjd


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "lc_classifier/9"], "there are: lc_classifier/demo"),
        (["--model", "lc_classifier"], "write NAME/VERSION"),
        (["--feature-version", "9"], "there are: 1.0.0-accurate"),
        (["--gallery", "-1"], "--gallery"),
        (["--as-of", "yesterday"], "yesterday"),
        (["--as-of", "2019-01-01"], "has no results as of 2019-01-01"),
    ],
)
def test_wrong_usage(run, tmp_path, capsys, options, said):
    target = tmp_path / "page.html"
    assert main(["report", str(run.folder), "--output", str(target), "--quiet", *options]) == 2
    assert said in capsys.readouterr().err
    assert not target.exists()


def test_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


# A real browser

Browse = Callable[..., str]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Open a page in Chromium without a network; give its elements after the scripts have run."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed, so the page is not seen by a browser")
    profile = tmp_path_factory.mktemp("chromium")

    def opened(address: str, *options: str) -> str:
        command = [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", f"--user-data-dir={profile}"),
            *(*options, address),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return opened


def root_attributes(dom: str) -> dict[str, str]:
    return dict(re.findall(r'([\w-]+)="([^"]*)"', re.search(r"<html[^>]*>", dom)[0]))


def test_browser_runs_the_page(run, html, tmp_path, browse):
    target = tmp_path / "page.html"
    target.write_text(html, encoding="utf-8")
    dom = browse(f"{target.as_uri()}#q=RRL", "--dump-dom")
    told = root_attributes(dom)
    assert told.get("data-ready") == "yes"
    assert "data-errors" not in told
    assert int(told["data-found"]) == Counter(run.probabilities["class"].to_pylist())["RRL"]
    classes = len(set(run.probabilities["class"].to_pylist()))
    assert dom.count('<div class="class-gallery') == classes
    curves = dom.count('<svg class="chart curve"')
    assert curves > dom.count('<article class="curve-card"') >= classes
    assert dom.count('<svg class="chart dots"') == 1
    assert '<script>alert("oid")' not in dom


def test_browser_runs_a_page_with_little_on_it(run, tmp_path, browse):
    folder = copy_of(run, tmp_path / "run", "crossmatches.parquet", "objects", "features", "light_curves")
    target = folder / "report.html"
    target.write_text(page_of(folder), encoding="utf-8")
    told = root_attributes(browse(f"{target.as_uri()}#o=ZTF18sim0100001", "--dump-dom"))
    assert told.get("data-ready") == "yes"
    assert "data-errors" not in told


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_browser_draws_the_page(html, tmp_path, browse, request, width, scheme):
    """Pictures for a person to look at are left in pytest's cache, ``.pytest_cache/d/report``."""
    target, picture = tmp_path / "page.html", request.config.cache.mkdir("report") / f"{width}-{scheme}.png"
    picture.unlink(missing_ok=True)
    target.write_text(html, encoding="utf-8")
    preferred = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    browse(target.as_uri(), f"--screenshot={picture}", f"--window-size={width},4000", preferred)
    pixels = imread(picture)[::2, ::2, :3]
    assert pixels.shape[1] == width // 2
    # Every stretch of the page has something on it, on paper that is as bright as was asked for.
    for stretch in np.array_split(pixels, 4):
        assert len(np.unique((stretch * 15).astype(int) @ [256, 16, 1])) > 20
    paper = np.median(pixels[500:].reshape(-1, 3), axis=0).mean()
    assert paper > 0.85 if scheme == "light" else paper < 0.2
