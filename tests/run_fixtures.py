"""A small run with all its parts, made by hand from the pieces that a backfill is made of."""

import shutil
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pipeline_fixtures import make_sample

from alerts.batch import AlertBatch
from alerts.reader import read_source
from alerts.sources import find_sources
from classifier.inputs import rows_of_table
from classifier.outputs import classify, file_rows
from classifier.package import read_model
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import compute_features
from lightcurves.features.curves import Mode
from lightcurves.store import LightCurveStore, StoreRows
from pipelines.cli import main
from run_folder.layout import Results, RunLayout
from run_folder.ledger import Ledger, UnitSpec
from storage.buckets import bucket_of
from storage.object_tables import ObjectTable
from transforms.crossmatch import MatchedAlerts
from transforms.light_curves import slim_rows, wise_rows
from xmatch.matcher import LocalMatcher

BUCKETS = 8
VERSION = "1.0.0-accurate"
MODEL = Path(__file__).resolve().parents[1] / "classifier" / "demo_model"


@dataclass(frozen=True)
class MadeRun:
    """Folder of the run, the folder of ``alertbeam xmatch`` that it was made of, and the light curves."""

    folder: Path
    xmatch: Path
    light_curves: LightCurveBatch


def make_run(folder: Path, alerts: int = 120) -> MadeRun:
    """Make a run of two archives."""
    sample = make_sample(folder / "sample", alerts=alerts, cutouts=False, bad_members=0)
    archives = _two_archives(sample.archive, folder)
    xmatch, run = folder / "xmatch", RunLayout(folder / "run")
    words = [*map(str, archives), "--catalog", str(sample.catalog), "--database", "none", "--quiet", "--json"]
    assert main(["xmatch", *words, "--output", str(xmatch)]) == 0
    shutil.copytree(xmatch / "alerts", run.alerts)
    shutil.copytree(xmatch / "crossmatches", run.crossmatches)
    light_curves = _stored(archives, sample.catalog, run.light_curves)
    counts = _results(light_curves, run.results())
    _note(run.ledger, counts)
    return MadeRun(run.root, xmatch, light_curves)


def _two_archives(archive: Path, folder: Path) -> list[Path]:
    """Archives with the first and with the second half of an archive's packets."""
    paths = [folder / "a.tar", folder / "b.tar"]
    with tarfile.open(archive) as tar, ExitStack() as stack:
        halves = [stack.enter_context(tarfile.open(path, "w")) for path in paths]
        members = [member for member in tar if member.isfile()]
        for number, member in enumerate(members):
            halves[number >= len(members) // 2].addfile(member, tar.extractfile(member))
    return paths


def _stored(archives: Sequence[Path], catalog: Path, place: Path) -> LightCurveBatch:
    store = LightCurveStore.open(place, BUCKETS)
    appender = store.append("night")
    matcher = LocalMatcher(catalog)
    rows: list[StoreRows] = []
    for source in find_sources(map(str, archives)):
        for batch in read_source(source):
            assert isinstance(batch, AlertBatch)
            matches = matcher.match(batch.ra, batch.dec)
            rows.append(StoreRows(*slim_rows(batch), wise_rows(MatchedAlerts(batch, (matches,)))))
            appender.add(rows[-1])
    appender.commit()
    for bucket in range(BUCKETS):
        store.fold(bucket, 1, {"night"})
    store.remove_incoming({"night"})

    def all_of(name: str) -> pa.Table:
        return pa.concat_tables([getattr(part, name) for part in rows], promote_options="permissive")

    return assemble(all_of("detections"), all_of("non_detections"), crossmatches=all_of("crossmatches"))


def _results(light_curves: LightCurveBatch, results: Results) -> dict[str, int]:
    features = compute_features(light_curves, Mode.ACCURATE, keep_incomplete=False, version=VERSION).table
    model = read_model(MODEL)
    rows, _ = rows_of_table(features, model.features)
    classification, _ = classify(model, rows)
    put(ObjectTable(results.objects, BUCKETS), light_curves.objects)
    put(ObjectTable(results.features(VERSION), BUCKETS), features)
    put(ObjectTable(results.probabilities(model.name, model.version), BUCKETS), file_rows(classification))
    return {"objects": len(light_curves), "featured": len(features), "classified": len(classification)}


def put(table: ObjectTable, rows: pa.Table) -> None:
    """Write rows by bucket."""
    buckets = pa.array(bucket_of(rows["oid"], table.buckets))
    for bucket in range(table.buckets):
        some = rows.filter(pc.equal(buckets, bucket))
        if len(some):
            table.put(bucket, some)


def _note(folder: Path, counts: Mapping[str, int]) -> None:
    model = read_model(MODEL)
    with Ledger.open(folder) as ledger:
        ledger.set_settings(
            {
                "alertbeam": "0.1.0",
                "created": "2026-01-02T00:00:00+00:00",
                "catalogs": [{"name": "allwise", "version": "sample"}],
                "feature_version": VERSION,
                "model": {"name": model.name, "version": model.version},
                "buckets": BUCKETS,
            }
        )
        ledger.add("read", [UnitSpec("night", {})])
        ledger.add("features", [UnitSpec("0-7", {}), UnitSpec("later", {})])
        for stage, name, counted in (("read", "night", {"read": 120, "written": 120}), ("features", "0-7", counts)):
            ledger.start(stage, name)
            ledger.finish(stage, name, counted, 1.0, 1, {})
