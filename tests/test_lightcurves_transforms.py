"""Slim rows of packets against a plain reading of them, and light curves and features on FnApiRunner."""

import io
import tarfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from lightcurves_fixtures import random_packets, tables

from alerts.batch import AlertBatch
from alerts.reader import Limits, read_source
from alerts.sources import find_sources
from lightcurves.assembly import assemble
from lightcurves.columns import DETECTION_INPUT, NON_DETECTION, conform
from lightcurves.features.curves import Mode
from lightcurves.features.prepare import prepare
from simulation import simulate_sample
from transforms.crossmatch import MatchedAlerts
from transforms.features import ComputeFeatures
from transforms.light_curves import AssembleLightCurves, slim_rows
from xmatch.matcher import Matches

SAME = ("fid", "pid", "diffmaglim", "nid", "ra", "dec", "magpsf", "sigmapsf", "magap", "distnr", "magnr", "sigmagnr")
SAME += ("chinr", "sharpnr", "rb", "rbversion", "drb", "drbversion", "rfid", "distpsnr1", "sgscore1", "ndethist")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    return Path(simulate_sample(folder, alerts=150, bad_members=0, cutouts=False, seed=2).night.archive)


def batches(paths: list[Path], alerts: int = 40) -> list[AlertBatch]:
    found = [item for s in find_sources(map(str, paths)) for item in read_source(s, Limits(alerts, 1 << 26))]
    return [item for item in found if isinstance(item, AlertBatch)]


def records(paths: list[Path]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                files = [archive.extractfile(member).read() for member in archive if member.isfile()]
        else:
            files = [path.read_bytes()]
        found += [record for file in files for record in fastavro.reader(io.BytesIO(file))]
    return found


def plain_rows(record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    own = record["candidate"]
    alert = record["candid"] if "candid" in record else own["candid"]

    def row(source: dict[str, Any], **more: Any) -> dict[str, Any]:
        found = {name: source.get(name) for name in SAME}
        for name in ("jd", "jdendref"):
            found[f"m{name}"] = None if source.get(name) is None else source[name] - 2400000.5
        found["mjd"], found["mjdendref"] = found.pop("mjd"), found.pop("mjdendref")
        return found | {"oid": record["objectId"], "alert_candid": alert} | more

    def sign(source: dict[str, Any]) -> int | None:
        value = source.get("isdiffpos")
        return None if value is None else (1 if value in ("t", "1", True) else -1)

    rows = [row(own, isdiffpos=sign(own), candid=alert, has_stamp=True, forced=False, parent_candid=None)]
    limits = []
    for item in record.get("prv_candidates") or []:
        if item.get("candid") is None:
            limits.append(row(item))
        else:
            more = {"candid": item["candid"], "parent_candid": alert}
            rows.append(row(item, isdiffpos=sign(item), has_stamp=False, forced=False, **more))
    for item in record.get("fp_hists") or []:
        flux, error = item.get("forcediffimflux"), item.get("forcediffimfluxunc")
        if flux is None or error is None or flux < -90000 or flux == 0 or not error > 0:
            continue
        new = row(item, isdiffpos=1 if flux > 0 else -1, candid=None, has_stamp=False, forced=True)
        for name in ("distnr", "magnr", "sigmagnr", "chinr", "sharpnr"):
            new[name] = None if new[name] is None or new[name] < -90000 else new[name]
        new |= {"ra": own["ra"], "dec": own["dec"], "parent_candid": alert}
        new |= {
            "magpsf": item["magzpsci"] - 2.5 * np.log10(abs(flux)),
            "sigmapsf": 2.5 / np.log(10) * error / abs(flux),
        }
        rows.append(new)
    return rows, limits


def assert_slim_rows_are_those_of(paths: list[Path]) -> int:
    expected: tuple[list, list] = ([], [])
    for record in records(paths):
        for part, rows in zip(expected, plain_rows(record), strict=True):
            part += rows
    found = [slim_rows(batch) for batch in batches(paths)]
    for k, schema in enumerate((DETECTION_INPUT, NON_DETECTION)):
        rows = [row for part in found for row in conform(part[k], schema).to_pylist()]
        assert len(rows) == len(expected[k])

        def key(row: dict[str, Any]) -> tuple[str, ...]:
            names = ("alert_candid", "mjd", "fid", "candid", "forced", "diffmaglim")
            return tuple(repr(row.get(name)) for name in names)

        for row, plain in zip(sorted(rows, key=key), sorted(expected[k], key=key), strict=True):
            for name in schema.names:
                if name in plain and not (name in ("nid", "pid", "rfid") and plain.get("forced")):
                    value = plain[name]
                    close = isinstance(value, float) and row[name] is not None
                    assert row[name] == (pytest.approx(value, rel=1e-12) if close else value), (name, row)
    return len(expected[0])


def test_slim_rows_of_the_sample_night(night: Path) -> None:
    assert_slim_rows_are_those_of([night])


def test_slim_rows_of_real_packets(shared_data: Path) -> None:
    folders = [shared_data / "alerts" / name for name in ("schema_4.02", "rewritten_by_fink_4.02", "by_schema")]
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if "snappy" not in path.name]
    assert assert_slim_rows_are_those_of(paths) > 500


def test_the_history_of_an_object_in_any_order_of_packets(shared_data: Path) -> None:
    paths = sorted((shared_data / "alerts" / "objects" / "ZTF19aazzpje").iterdir())
    outcomes = []
    for order, size in ((paths, 40), (paths[::-1], 3), (paths + paths[:4], 1)):
        parts = [slim_rows(batch) for batch in batches(order, size)]
        joined = [pa.concat_tables(part, promote_options="permissive") for part in zip(*parts, strict=True)]
        outcomes.append(assemble(*joined))
    for other in outcomes[1:]:
        assert all(other.to_arrow()[name].equals(table) for name, table in outcomes[0].to_arrow().items())
    candids = outcomes[0].detections.filter(outcomes[0].detections["has_stamp"])["candid"].to_pylist()
    assert {int(path.stem) for path in paths if path.stem.isdigit()} <= set(candids)


def run(elements: list[Any], *transforms: beam.PTransform, check: Any) -> None:
    with TestPipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | beam.Create(elements)
        for transform in transforms:
            found = found | transform
        assert_that(found, check)


@pytest.mark.parametrize(("buckets", "alerts"), [(1, 1000), (7, 13)])
def test_assembled_in_buckets_equals_assembled_at_once(night: Path, buckets: int, alerts: int) -> None:
    parts = [slim_rows(batch) for batch in batches([night])]
    whole = assemble(*(pa.concat_tables(part, promote_options="permissive") for part in zip(*parts, strict=True)))

    def check(found: list) -> None:
        assert 1 <= len(found) <= buckets
        for name, table in whole.to_arrow().items():
            keys = [
                (key, "ascending") for key in ("oid", "mjd", "fid", "candid", "forced") if key in table.column_names
            ]
            joined = pa.concat_tables([batch.to_arrow()[name] for batch in found])
            assert joined.sort_by(keys).equals(table.sort_by(keys)), name

    run(batches([night], alerts), AssembleLightCurves(buckets), check=check)


def test_wise_magnitudes_of_the_crossmatch_reach_the_light_curve(night: Path) -> None:
    batch = batches([night], 1000)[0]
    rows = len(batch)
    status = (np.arange(rows) % 2).astype(np.int8)
    columns = pa.table(
        {name: pa.array(np.arange(rows) + k, pa.float64()) for k, name in enumerate(("W1mag", "W2mag", "W3mag"))}
    )
    found = Matches("allwise", "1", "", status, np.full(rows, 0.5), columns, pa.nulls(rows, pa.string()))

    def check(batches: list) -> None:
        magnitude = dict(zip(*(batches[0].objects[name].to_pylist() for name in ("oid", "W2mag")), strict=True))
        oid = batch.object_id.to_pylist()
        for row in range(rows):
            if oid.count(oid[row]) == 1:
                assert magnitude[oid[row]] == (row + 1 if status[row] else None)

    run([MatchedAlerts(batch, (found,))], AssembleLightCurves(1), check=check)


def test_features_of_a_batch() -> None:
    batch = assemble(*tables(random_packets(11, objects=6, alerts=80)))
    enough = prepare(batch).enough

    def check(found: list) -> None:
        ((light_curves_found, features),) = found
        assert light_curves_found.oid.equals(batch.oid)
        assert features.oid.to_pylist() == [oid for oid, has in zip(batch.oid.to_pylist(), enough, strict=True) if has]
        assert features.mode == Mode.ACCURATE
        assert features.version == "test"

    assert enough.any()
    run([batch], ComputeFeatures(Mode.ACCURATE, version="test"), check=check)


def test_buckets_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least one bucket"):
        AssembleLightCurves(0)
