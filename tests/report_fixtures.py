"""Folder of a run of simulated objects, as a backfill leaves it: store, ledger, tables, crossmatches, dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import classifier
from alerts.dead_letters import DeadLetter, write_dead_letters
from classifier.inputs import rows_of_table
from classifier.model import Model
from classifier.outputs import classify, file_rows
from classifier.package import read_model
from lightcurves.assembly import assemble
from lightcurves.columns import JD_MINUS_MJD
from lightcurves.features.compute import compute_features
from lightcurves.features.curves import Mode
from lightcurves.store import LightCurveStore, StoreRows
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, Sample, UnitSpec
from simulation.light_curves import LabelledLightCurves, simulate_light_curves
from storage.buckets import bucket_of
from storage.object_tables import ObjectTable
from transforms.tables import crossmatch_rows
from xmatch.catalog import Catalog, build_catalog
from xmatch.matcher import LocalMatcher

BUCKETS = 4
BEGUN = 1.8e9
ARCHIVE_BYTES = 80_000_000
NASTY_OID = 'ZTF18<script>alert("oid")</script>'
NASTY_REASON = "a block of 1,234 bytes ends in </script><img src=x onerror=alert(1)> & more"
UNITS = ("ztf_public_20180701", "ztf_public_20180702", "ztf_public_20180703<b>")
MODEL = Path(classifier.__file__).parent / "demo_model"


@dataclass(frozen=True)
class SimulatedRun:
    """A run and what it was made from."""

    folder: Path
    simulated: LabelledLightCurves
    crossmatches: pa.Table
    probabilities: pa.Table
    features: pa.Table
    objects: pa.Table
    letters: dict[str, int]
    counts: dict[str, int]


def make_run(folder: Path, objects_per_class: int = 8, seed: int = 3) -> SimulatedRun:
    """Make a run of all fifteen classes.

    One of its objects has a name that is markup, and so has one of the reasons of its dead letters.
    """
    layout = RunLayout(folder)
    simulated = _with_nasty_name(simulate_light_curves(objects_per_class, seed))
    catalog = _catalog(folder.parent / f"{folder.name}-allwise", simulated)
    crossmatches = _write_crossmatches(layout, simulated, catalog)
    _write_store(layout, simulated)
    wise = simulated.objects.select(["oid", "w1mpro", "w2mpro", "w3mpro"])
    batch = assemble(
        simulated.detections,
        simulated.non_detections,
        crossmatches=wise.rename_columns(["oid", "W1mag", "W2mag", "W3mag"]),
    )
    features = compute_features(batch, Mode.ACCURATE, keep_incomplete=False)
    model = read_model(MODEL)
    rows, _ = rows_of_table(features.table, model.features)
    probabilities = file_rows(classify(model, rows)[0])
    results = layout.results()
    put(results.objects, batch.objects)
    put(results.features(features.version), features.table)
    put(results.probabilities(model.name, model.version), probabilities)
    letters = _write_letters(layout)
    counts = _write_ledger(layout, catalog, model, features.version, crossmatches, batch.objects, len(features))
    return SimulatedRun(folder, simulated, crossmatches, probabilities, features.table, batch.objects, letters, counts)


def put(folder: Path, rows: pa.Table, buckets: int = BUCKETS) -> None:
    """Write a table of objects."""
    numbers = bucket_of(rows["oid"], buckets)
    for bucket in range(buckets):
        ObjectTable(folder, buckets).put(bucket, rows.filter(pa.array(numbers == bucket)))


def _with_nasty_name(simulated: LabelledLightCurves) -> LabelledLightCurves:
    wanted = simulated.objects["oid"][0]

    def renamed(table: pa.Table) -> pa.Table:
        names = pc.if_else(pc.equal(table["oid"], wanted), NASTY_OID, table["oid"])
        return table.set_column(0, "oid", names)

    return LabelledLightCurves(
        renamed(simulated.detections), renamed(simulated.non_detections), renamed(simulated.objects)
    )


def _catalog(folder: Path, simulated: LabelledLightCurves) -> Catalog:
    """Sources at three of four objects, and others all around them."""
    rng = np.random.default_rng(17)
    objects = simulated.objects.to_pandas().sample(frac=0.75, random_state=1)
    around = objects.loc[objects.index.repeat(60)]
    ra = np.concatenate(
        [objects.ra + rng.normal(0, 3e-5, len(objects)), around.ra + rng.uniform(-0.03, 0.03, len(around))]
    )
    dec = np.concatenate(
        [objects.dec + rng.normal(0, 3e-5, len(objects)), around.dec + rng.uniform(-0.03, 0.03, len(around))]
    )
    count = len(ra)
    table = pd.DataFrame(
        {
            "AllWISE": [f"J{k:08d}" for k in range(count)],
            "RAJ2000": np.mod(ra, 360),
            "DEJ2000": dec,
            "W1mag": rng.normal(15, 1, count).round(3),
            "W2mag": rng.normal(14, 1, count).round(3),
            "W3mag": rng.normal(12, 1, count).round(3),
        }
    )
    source = folder.with_suffix(".csv")
    table.to_csv(source, index=False)
    return build_catalog(source, folder, name="allwise", version="test", columns=list(table.columns))


def _write_crossmatches(layout: RunLayout, simulated: LabelledLightCurves, catalog: Catalog) -> pa.Table:
    """A part for each unit, of the detections of every third."""
    parts = []
    layout.crossmatches.mkdir(parents=True)
    for number, unit in enumerate(UNITS):
        rows = simulated.detections.take(pa.array(np.arange(number, len(simulated.detections), len(UNITS))))
        keys = {
            "candid": rows["candid"].combine_chunks(),
            "oid": rows["oid"].combine_chunks(),
            "jd": pc.add(rows["mjd"], JD_MINUS_MJD).combine_chunks(),
            "ra": rows["ra"].combine_chunks(),
            "dec": rows["dec"].combine_chunks(),
            "fid": rows["fid"].combine_chunks(),
            "magpsf": rows["magpsf"].combine_chunks(),
            "source": pa.repeat(f"{unit}.tar.gz", len(rows)),
            "member": pc.binary_join_element_wise(rows["candid"].cast(pa.string()), "avro", ".").combine_chunks(),
        }
        matches = LocalMatcher(catalog, 1.5).match(rows["ra"].to_numpy(), rows["dec"].to_numpy())
        parts.append(crossmatch_rows(keys, [matches]))
        pq.write_table(parts[-1], layout.crossmatches / f"{number}.parquet")
    return pa.concat_tables(parts)


def _write_store(layout: RunLayout, simulated: LabelledLightCurves) -> None:
    store = LightCurveStore.open(layout.light_curves, BUCKETS)
    with store.append("night") as appender:
        appender.add(
            StoreRows(simulated.detections, simulated.non_detections, pa.table({"oid": pa.array([], pa.string())}))
        )
        appender.commit()
    for bucket in range(BUCKETS):
        store.fold(bucket, 1, ["night"])
    store.remove_incoming(["night"])


def _write_letters(layout: RunLayout) -> dict[str, int]:
    """Two files with four kinds of reasons; give the number of letters by stage."""
    cut = [
        DeadLetter(
            "decode", f"a block of {40_000 + k:,} bytes is cut off after {k}", f"{UNITS[0]}.tar.gz", f"{k}.avro", b"x"
        )
        for k in range(7)
    ]
    others = [
        DeadLetter("decode", NASTY_REASON, f"{UNITS[2]}.tar.gz", "<i>.avro", b"x", 5, 77),
        DeadLetter("read", "the archive ends early", f"{UNITS[2]}.tar.gz", "", b"x"),
        DeadLetter("crossmatch", "ra is 361.5 degrees", f"{UNITS[1]}.tar.gz", "9.avro", b"x", candid=9),
    ]
    layout.dead_letters.mkdir()
    write_dead_letters(layout.dead_letters / "a b.decode.0000.avro", cut)
    write_dead_letters(layout.dead_letters / "others.0000.avro", others)
    return {"decode": 8, "read": 1, "crossmatch": 1}


class _Clock:
    """Stands for the module ``time`` in the ledger."""

    def __init__(self) -> None:
        self.now = BEGUN

    def time(self) -> float:
        return self.now


def _write_ledger(
    layout: RunLayout,
    catalog: Catalog,
    model: Model,
    feature_version: str,
    crossmatches: pa.Table,
    objects: pa.Table,
    featured: int,
) -> dict[str, int]:
    """Three archives, of which one was tried twice; a pause of an hour; a unit that was set aside."""
    written = len(crossmatches)
    counts = {
        "read": written + 31,
        "written": written,
        "filtered": 23,
        "repeated": 7,
        "failed": 0,
        "matched": int(pc.sum(pc.equal(crossmatches["status"], "matched")).as_py()),
        "dead_letters:decode": 8,
        "dead_letters:read": 1,
        "dead_letters:crossmatch": 1,
    }
    clock = _Clock()
    with patch("run_folder.ledger.time", clock), Ledger.open(layout.ledger) as ledger:
        ledger.set_settings(
            {
                "alertbeam": "0.1.0",
                "created": "2027-01-15T08:00:00+00:00",
                "catalogs": [
                    {
                        "name": catalog.name,
                        "version": catalog.version,
                        "created": catalog.created,
                        "path": str(catalog.path),
                        "rows": catalog.rows,
                    }
                ],
                "radius_arcsec": 1.5,
                "programs": [1],
                "mode": "accurate",
                "forced": False,
                "feature_version": feature_version,
                "model": {"name": model.name, "version": model.version, "sha256": model.sha256, "path": str(MODEL)},
                "buckets": BUCKETS,
                "database": None,
            }
        )
        first = ledger.begin(["alertbeam", "backfill", "nights/", "--output", "run/"], {"alertbeam": "0.1.0"})
        ledger.add("read", [UnitSpec(name, {}, size=ARCHIVE_BYTES) for name in (*UNITS, "broken<i>")])
        for number, name in enumerate(UNITS):
            part = {key: value // 3 + (value % 3 if number == 0 else 0) for key, value in counts.items()}
            if number == 1:
                ledger.start("read", name)
                ledger.failed("read", name, "the worker died")
            ledger.start("read", name)
            clock.now += 20
            ledger.finish("read", name, part, 18.5, 900_000_000 + number, {})
            if number == 0:
                ledger.end(first, "interrupted")
                clock.now += 3600
                ledger.begin(["alertbeam", "backfill", "--resume", "--output", "run/"], {"alertbeam": "0.1.0"})
        ledger.start("read", "broken<i>")
        ledger.set_aside("read", "broken<i>", NASTY_REASON)
        for stage, seconds, values in (
            ("features", 30, {"objects": len(objects), "featured": featured}),
            ("classify", 10, {"classified": featured}),
        ):
            ledger.add(stage, [UnitSpec("0-3", {})])
            ledger.start(stage, "0-3")
            clock.now += seconds
            ledger.finish(stage, "0-3", values, 14.0, 700_000_000, {})
        rng = np.random.default_rng(5)
        alerts, done = 0.0, 0.0
        for second in range(90):
            working = second < 60
            alerts += rng.uniform(0.8, 1.2) * counts["read"] / 60 if working else 0
            done += rng.uniform(0.8, 1.2) * len(objects) / 30 if not working else 0
            at = BEGUN + second + (3600 if second >= 20 else 0)
            ledger.add_sample(Sample(at, round(alerts), round(alerts * 4000), round(done), 0))
    return counts
