"""The parts of the service: answers against brute force, the JSON writer, the index of identifiers, the command."""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import serve_command
from pipelines.usage import StoppedError, UsageError
from tests.service_fixtures import ARCSEC, answers_of, table_catalog
from xmatch.catalog import Catalog
from xmatch.identifiers import FOLDER, open_identifiers
from xmatch.layout import CatalogError
from xmatch.reference import angular_separation_arcsec, brute_force_nearest
from xmatch.service_answers import Answers
from xmatch.service_catalogs import healpix_pixels
from xmatch.service_json import with_missing, write_rows
from xmatch.service_metrics import ServiceMetrics
from xmatch.service_requests import ServiceSettings, read_bulk_cone, read_cone

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def crowded_skies(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[float, float]], float]:
    """Sources of two catalogues and positions within a few arcseconds, at a pole, at 0 h or anywhere."""
    centre = draw(st.sampled_from([(0.0, 0.0), (0.0, 85.0), (123.0, 90.0), (359.9999, -60.0), (200.0, -90.0)]))
    offsets = st.tuples(st.floats(-3, 3), st.floats(-3, 3))

    def position(offset: tuple[float, float]) -> tuple[float, float]:
        dec = min(max(centre[1] + offset[1] * ARCSEC, -90.0), 90.0)
        stretch = min(1.0 / max(math.cos(math.radians(dec)), 1e-9), 180.0 / (3 * ARCSEC))
        return (centre[0] + offset[0] * ARCSEC * stretch) % 360.0 % 360.0, dec

    sources = draw(st.lists(offsets.map(position), min_size=1, max_size=12))
    positions = draw(st.lists(offsets.map(position), min_size=1, max_size=6))
    return sources, positions, draw(st.floats(0.1, 5.0))


def bulk(answers: Answers, ra: Sequence[float], dec: Sequence[float], form: str = "present", **fields: Any) -> list:
    body = orjson.dumps({"ra": np.asarray(ra).tolist(), "dec": np.asarray(dec).tolist(), "radius": 1} | fields)
    answer = answers.bulk_cone(read_bulk_cone(body, answers.settings, answers.names), form)
    return json.loads(answer.body or b"[]")


def cone(answers: Answers, **parameters: object) -> list:
    query = {name: str(value) for name, value in parameters.items()}
    return json.loads(answers.cone(read_cone(query, answers.settings, answers.names), "present").body or b"[]")


class TestAgainstBruteForce:
    @FEW
    @given(crowded_skies())
    def test_nearest(self, tmp_path: Path, sky: tuple) -> None:
        sources, positions, radius = sky
        names = [f"s{i:02d}" for i in range(len(sources))]
        source_ra, source_dec = zip(*sources, strict=True)
        answers = answers_of(
            table_catalog(tmp_path, "sky", {"id": names, "ra": source_ra, "dec": source_dec, "mag": source_dec})
        )
        ra, dec = zip(*positions, strict=True)
        expected, separation = brute_force_nearest(ra, dec, source_ra, source_dec, names, radius)
        elements = bulk(answers, ra, dec, radius=radius, getMetadata=True)
        found = {element["index"]: element["data"][0] for element in elements}
        assert len(found) == len(elements)
        clear = np.abs(np.array(separation) - radius) > 1e-9
        for i in np.flatnonzero(clear | np.isnan(separation)).tolist():
            if expected[i] < 0:
                distances = angular_separation_arcsec(ra[i], dec[i], source_ra, source_dec)
                assert i not in found or np.min(np.abs(distances - radius)) < 1e-9
                continue
            assert math.isclose(found[i]["distance"], separation[i], rel_tol=1e-9, abs_tol=1e-9)
            if found[i]["id"] != names[expected[i]]:
                # Only rounding may choose among equally near ones.
                other = names.index(found[i]["id"])
                theirs = angular_separation_arcsec(ra[i], dec[i], source_ra[other], source_dec[other])
                assert math.isclose(theirs, separation[i], rel_tol=1e-9, abs_tol=1e-9)
            source = sources[names.index(found[i]["id"])]
            assert (found[i]["ra"], found[i]["dec"]) == (source[0] + 0.0, source[1] + 0.0)

    @FEW
    @given(crowded_skies(), st.integers(1, 5))
    def test_neighbours_of_two_catalogues(self, tmp_path: Path, sky: tuple, neighbors: int) -> None:
        sources, positions, radius = sky
        half = max(1, len(sources) // 2)
        catalogs = [
            table_catalog(
                tmp_path / name,
                name,
                {
                    "id": [f"{name}{i}" for i in range(len(part))],
                    "ra": [p[0] for p in part],
                    "dec": [p[1] for p in part],
                },
            )
            for name, part in (("a", sources[:half]), ("b", sources[half:] or sources[:1]))
        ]
        answers = answers_of(*catalogs)
        ra, dec = zip(*positions, strict=True)
        elements = bulk(answers, ra, dec, radius=radius, nneighbor=neighbors)
        assert [element["index"] for element in elements] == sorted(element["index"] for element in elements)
        both = sources[:half] + (sources[half:] or sources[:1])
        for i in range(len(ra)):
            found = [element["data"][0]["distance"] for element in elements if element["index"] == i]
            unique = {(element["catalog"], element["data"][0]["id"]) for element in elements if element["index"] == i}
            all_distances = angular_separation_arcsec(ra[i], dec[i], *zip(*dict.fromkeys(both), strict=True))
            assert len(unique) == len(found) <= neighbors
            assert found == sorted(found)
            if len(set(both)) == len(both):
                expected = np.sort(all_distances[all_distances <= radius])[:neighbors]
                if np.abs(all_distances - radius).min() > 1e-9:
                    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)
            # One position asked alone: the same sources, by catalogue.
            groups = cone(answers, ra=ra[i], dec=dec[i], radius=radius, nneighbor=neighbors)
            assert {(group["catalog"], item["id"]) for group in groups for item in group["data"]} == unique
            assert [group["catalog"] for group in groups] == sorted(group["catalog"] for group in groups)

    def test_blocks_do_not_show(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        random = np.random.default_rng(4)
        ra, dec = random.uniform(10, 10.01, 500), random.uniform(60, 60.01, 500)
        columns = {"id": [f"s{i}" for i in range(500)], "ra": ra, "dec": dec, "mag": random.normal(size=500)}
        answers = answers_of(table_catalog(tmp_path, "sky", columns))
        asked = (random.permutation(ra), random.permutation(dec))
        whole = bulk(answers, *asked, radius=10, nneighbor=3, getMetadata=True)
        assert len({element["index"] for element in whole}) > 400
        monkeypatch.setattr("xmatch.service_answers._BLOCK_POSITIONS", 7)
        assert bulk(answers, *asked, radius=10, nneighbor=3, getMetadata=True) == whole
        order = random.permutation(500)
        shuffled = bulk(answers, asked[0][order], asked[1][order], radius=10, nneighbor=3, getMetadata=True)
        back = sorted(
            ({**element, "index": int(order[element["index"]])} for element in shuffled), key=lambda e: e["index"]
        )
        assert back == whole

    def test_empty_catalogue(self, tmp_path: Path) -> None:
        columns = {"id": pa.array([], pa.string()), "ra": pa.array([], pa.float64()), "dec": pa.array([], pa.float64())}
        answers = answers_of(table_catalog(tmp_path, "sky", columns))
        answers.warm_up()
        assert bulk(answers, [1], [1]) == []


class TestNames:
    def test_keys_that_would_clash_are_told_apart(self, tmp_path: Path) -> None:
        columns = {
            "id": ["a"],
            "ra": [1.0],
            "dec": [2.0],
            "Distance": [3.5],
            "cat": ["galaxy"],
            "B": [1.5],
            "b": [2.5],
            "cntr": [0.5],
        }
        (element,) = bulk(answers_of(table_catalog(tmp_path, "sky", columns)), [1.0], [2.0], getMetadata=True)
        item = element["data"][0]
        assert (item["cat"], item["distance"], item["cntr"]) == ("sky", 0.0, 1)
        assert (item["sky_distance"], item["sky_cat"], item["sky_cntr"]) == (3.5, "galaxy", 0.5)
        assert sorted([item.pop("b"), item.pop("B")]) == [1.5, 2.5]

    def test_catalogues_that_cannot_be_told_apart(self, tmp_path: Path) -> None:
        columns = {"id": ["a"], "ra": [1.0], "dec": [2.0]}
        one, two, every = (table_catalog(tmp_path / name, name, columns) for name in ("sky", "SKY", "all"))
        with pytest.raises(ValueError, match="sky"):
            answers_of(one, two)
        with pytest.raises(ValueError, match="all"):
            answers_of(every)
        with pytest.raises(ValueError, match="gaia is not served"):
            answers_of(one, settings=ServiceSettings(default_catalog="gaia"))

    def test_own_keys_of_irsa_are_crosswaves(self, tmp_path: Path) -> None:
        columns = {"source_id": ["a"], "ra": [1.0], "dec": [2.0], "w1mpro": [9.5], "k_msig_2mass": [0.5], "cntr": [77]}
        answers = answers_of(table_catalog(tmp_path, "allwise", columns))
        item = bulk(answers, [1.0], [2.0], getMetadata=True)[0]["data"][0]
        assert (item["w1mpro"], item["k_msig_2mass"], item["cntr"], item["w2mpro"]) == (9.5, 0.5, 77, None)
        (upper,) = bulk(answers, [1.0], [2.0], "upper", getMetadata=True)
        assert (upper["W1mpro"], upper["W2mpro"], upper["ID"], upper["Cat"]) == (9.5, -9999, "a", "allwise")


@pytest.mark.parametrize(
    "setting", ["max_coordinates", "max_matches", "max_body_bytes", "threads", "max_radius_arcsec"]
)
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        ServiceSettings(**{setting: 0}).validate()
    with pytest.raises(ValueError, match="json_format"):
        ServiceSettings(json_format="lower").validate()


def test_pixels_of_order_18() -> None:
    # Of real answers of CrossWave, and facts of the scheme: 12 base cells of 4**18 pixels, the poles their last ones.
    assert healpix_pixels(np.array([190.38110890000002]), np.array([26.0426682])).tolist() == [472221946450]
    pixels = healpix_pixels(np.array([45.0, 45.0, 0.0]), np.array([90.0, -90.0, 0.0]))
    assert pixels[:2].tolist() == [4**18 - 1, 8 * 4**18]
    assert 0 <= pixels[2] < 12 * 4**18


class TestJsonWriter:
    @FEW
    @given(
        st.integers(1, 5).flatmap(
            lambda rows: st.tuples(
                st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=rows, max_size=rows),
                st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows),
                st.lists(st.none() | st.text(), min_size=rows, max_size=rows),
                st.lists(st.none() | st.integers(0, 9), min_size=rows, max_size=rows),
            )
        )
    )
    def test_values_come_back(self, columns: tuple[list, list, list, list]) -> None:
        numbers, integers, texts, optional = columns
        pieces = (b'{"number":', b',"integer":', b',"text":', b',"optional":', b"},")
        written = write_rows(
            pieces,
            [np.array(numbers), np.array(integers), pa.array(texts, pa.string()), pa.array(optional, pa.int64())],
        )
        rows = json.loads(b"[" + b"".join(written.split())[:-1] + b"]")
        assert bytes(written.text) == b"".join(written.split())
        for i, row in enumerate(rows):
            # The sign of zero counts, too.
            expected = None if math.isnan(numbers[i]) else repr(numbers[i])
            assert (None if row["number"] is None else repr(row["number"])) == expected
            assert (row["integer"], row["text"], row["optional"]) == (integers[i], texts[i], optional[i])

    def test_no_rows(self) -> None:
        assert write_rows((b"[", b"]"), [np.empty(0)]).split() == []

    def test_missing_numbers(self) -> None:
        assert with_missing(np.array([1.0, np.nan]), -9999.0).tolist() == [1.0, -9999.0]
        assert with_missing(pa.chunked_array([[1, None]]), -9999.0).tolist() == [1, -9999]
        assert with_missing(pa.chunked_array([[1.5, None]]), -9999.0).tolist() == [1.5, -9999.0]
        assert with_missing(pa.array(["a", None]), -9999.0).to_pylist() == ["a", None]


class TestIdentifiers:
    @staticmethod
    def sky(folder: Path, identifiers: Sequence[Any]) -> Catalog:
        random = np.random.default_rng(len(identifiers))
        count = len(identifiers)
        columns = {"id": identifiers, "ra": random.uniform(0, 360, count), "dec": random.uniform(-90, 90, count)}
        return table_catalog(folder, "sky", columns)

    @pytest.mark.parametrize("memory_bytes", [1 << 30, 1 << 16])
    @pytest.mark.parametrize("kind", ["text", "integers"])
    def test_every_row_is_found(self, tmp_path: Path, kind: str, memory_bytes: int) -> None:
        numbers = [(i * 7919 - 5000) * 10**10 for i in range(20_000)]
        catalog = self.sky(tmp_path, numbers if kind == "integers" else [f"J{n}" for n in numbers])
        index = open_identifiers(catalog, memory_bytes=memory_bytes)
        expected = [str(value) for value in catalog.take(np.arange(20_000), ["id"])["id"].to_pylist()]
        assert index.find(expected).tolist() == list(range(20_000))
        strange = ["", "J", "x" * 1000, expected[7] + "\0", expected[7] + "0", "0" + expected[7], " " + expected[7]]
        strange += ["9" * 19, "9" * 30, "1e12", "²", "-", "--1", "𝒥"]
        assert index.find(strange).tolist() == [-1] * len(strange)
        assert index.find([]).tolist() == []
        assert np.all(index.hashes[1:] >= index.hashes[:-1])
        assert [path.name for path in catalog.path.glob(".*")] == []

    def test_equal_hashes_are_told_apart_by_the_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        catalog = self.sky(tmp_path, [f"J{i}" for i in range(50)])
        index = open_identifiers(catalog)
        # All hashes alike would be a hash function at its worst; a stored hash that lies must not give a row.
        lying = type(index)(index.identifiers[::-1].copy(), index.hashes, index.rows)
        names = catalog.take(np.arange(50), ["id"])["id"].to_pylist()
        found = lying.find(names)
        assert all(row == -1 or names[49 - row] == name for row, name in zip(found, names, strict=True))

    def test_the_first_of_repeated_identifiers(self, tmp_path: Path) -> None:
        columns = {"id": ["twice", "twice", "once"], "ra": [1.0, 2.0, 3.0], "dec": [10.0, -10.0, 0.0]}
        catalog = table_catalog(tmp_path, "sky", columns)
        found = open_identifiers(catalog).find(["twice", "once"])
        assert catalog.index.positions[found, 1].tolist() == [-10.0, 0.0]

    def test_it_is_built_once_and_again_for_another_catalogue(self, tmp_path: Path) -> None:
        told: list[str] = []
        catalog = self.sky(tmp_path, ["a", "b"])
        for _ in range(2):
            open_identifiers(catalog, report=told.append)
        assert len(told) == 1
        elsewhere = tmp_path / "indexes"
        open_identifiers(catalog, elsewhere, report=told.append)
        other = self.sky(tmp_path, ["c", "d", "e"])
        assert open_identifiers(other, elsewhere, report=told.append).find(["a", "e"])[0] == -1
        assert len(told) == 3

    def test_damage_and_folders_that_cannot_be_written(self, tmp_path: Path) -> None:
        catalog = self.sky(tmp_path, ["a", "b"])
        open_identifiers(catalog)
        np.save(catalog.path / FOLDER / "identifier_rows.npy", np.zeros(1, np.uint32))
        with pytest.raises(CatalogError, match="damaged"):
            open_identifiers(catalog)
        shutil.rmtree(catalog.path / FOLDER)
        (tmp_path / "file").touch()
        with pytest.raises(CatalogError, match="name another folder"):
            open_identifiers(catalog, tmp_path / "file")


def test_metrics_are_summed_over_processes(tmp_path: Path) -> None:
    one, two = ServiceMetrics(tmp_path), ServiceMetrics(tmp_path)
    one.add("ping", 200, 0.002, 0, 0)
    two.add("ping", 200, 0.002, 0, 0)
    two.add("ping", 418, 100.0, 0, 0)
    for metrics in (one, two):
        text = metrics.text().decode()
        assert 'alertbeam_requests_total{endpoint="ping",status="200"} 2.0' in text
        assert 'alertbeam_requests_total{endpoint="ping",status="other"} 1.0' in text
        assert 'alertbeam_request_seconds_bucket{endpoint="ping",le="0.001"} 0.0' in text
        assert 'alertbeam_request_seconds_bucket{endpoint="ping",le="0.003"} 2.0' in text
        assert 'alertbeam_request_seconds_bucket{endpoint="ping",le="+Inf"} 3.0' in text


class TestCommand:
    @staticmethod
    def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        serve_command.add_action(parser.add_subparsers())
        options = parser.parse_args(["serve", *arguments])
        return options.command(options, [], {})

    def test_wrong_usage(self, tmp_path: Path) -> None:
        catalog = str(table_catalog(tmp_path, "sky", {"id": ["a"], "ra": [1.0], "dec": [1.0]}).path)
        cases = [
            ((str(tmp_path / "none"), "--port", "0"), "not a catalogue"),
            ((catalog, "--workers", "0"), "--workers"),
            ((catalog, "--port", "70000"), "--port"),
            ((catalog, "--port", "0", "--threads", "0"), "threads"),
            ((catalog, catalog, "--port", "0"), "sky"),
            ((catalog, "--port", "0", "--max-radius", "1e9"), "max_radius_arcsec"),
        ]
        for arguments, named in cases:
            with pytest.raises(UsageError, match=named):
                self.run(*arguments)

    def test_address_that_cannot_be_had(self, tmp_path: Path) -> None:
        catalog = str(table_catalog(tmp_path, "sky", {"id": ["a"], "ra": [1.0], "dec": [1.0]}).path)
        with pytest.raises(StoppedError, match=r"203\.0\.113\.7"):
            self.run(catalog, "--host", "203.0.113.7", "--port", "0")
