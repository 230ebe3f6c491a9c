"""The HTTP service over a socket: CrossWave's rules, its faults mended, limits, metrics, stopping."""

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv as pacsv
import pytest
import requests

from tests.service_fixtures import ARCSEC, running_server, table_catalog
from xmatch.catalog import Catalog, build_catalog
from xmatch.reference import angular_separation_arcsec
from xmatch.service_answers import Answer, Answers

MAGNITUDES = [f"{e}W{band}mag" for band in range(1, 5) for e in ("", "e_")] + [
    f"{e}{band}mag" for band in "JHK" for e in ("", "e_")
]
ALLWISE_KEYS = [f"w{band}{kind}" for band in range(1, 5) for kind in ("mpro", "sigmpro")] + [
    f"{band}_{kind}_2mass" for band in "jhk" for kind in ("m", "msig")
]
JSON_TYPE = "application/json; charset=utf-8"


@pytest.fixture(scope="module")
def allwise(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Five sources: two of a close pair, one without 2MASS, one at the pole, one at ra 0."""
    sources = {
        "AllWISE": ["J0040+10a", "J0040+10b", "J1200-45", "J0000+90", "J0000+00"],
        "RAJ2000": [10.0, 10.0 + 0.5 * ARCSEC, 180.0, 77.0, 0.0],
        "DEJ2000": [10.0, 10.0, -45.0, 90.0, 0.0],
    }
    for i, name in enumerate(MAGNITUDES):
        has_2mass = "W" in name
        sources[name] = [10.0 + i / 10.0 + source / 1000.0 if has_2mass or source != 2 else None for source in range(5)]
    return table_catalog(tmp_path_factory.mktemp("allwise"), "allwise", sources)


@pytest.fixture(scope="module")
def gaia(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    sources = {
        "source_id": [4611686018427387905, 17],
        "ra": [10.0 + 0.2 * ARCSEC, 200.0],
        "dec": [10.0, 5.0],
        "Gmag": [15.25, None],
        "cntr": [901, 902],
        "Class": ["star", 'a "quoted", name'],
    }
    return table_catalog(tmp_path_factory.mktemp("gaia"), "gaia", sources, "DR3")


@pytest.fixture(scope="module")
def service(allwise: Catalog, gaia: Catalog) -> Iterator[str]:
    with running_server([allwise, gaia], max_coordinates=200, max_body_bytes=20_000, max_matches=1000) as (url, _):
        yield url


def cone(url: str, **parameters: Any) -> requests.Response:
    return requests.get(f"{url}/v1/conesearch", params=parameters, timeout=30)


def bulk(url: str, **fields: Any) -> requests.Response:
    return requests.post(f"{url}/v1/bulk-conesearch", json=fields, timeout=30)


def metadata(url: str, **parameters: Any) -> requests.Response:
    return requests.get(f"{url}/v1/metadata", params=parameters, timeout=30)


def bulk_metadata(url: str, **fields: Any) -> requests.Response:
    return requests.post(f"{url}/v1/bulk-metadata", json=fields, timeout=30)


GOOD = {"ra": "10", "dec": "10", "radius": "1"}


class TestConeSearch:
    def test_one_group_per_catalogue(self, service: str) -> None:
        answer = cone(service, **GOOD, nneighbor=5)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == JSON_TYPE
        allwise, gaia = answer.json()
        assert list(allwise) == list(gaia) == ["catalog", "data", "index"]
        assert (allwise["catalog"], gaia["catalog"]) == ("allwise", "gaia")
        assert allwise["index"] == gaia["index"] == 0
        assert [item["id"] for item in allwise["data"]] == ["J0040+10a", "J0040+10b"]
        assert list(allwise["data"][0]) == ["id", "ipix", "ra", "dec", "cat", "distance"]
        assert gaia["data"][0]["id"] == "4611686018427387905"
        assert allwise["data"][0]["distance"] == 0.0
        expected = angular_separation_arcsec(10.0, 10.0, 10.0 + 0.5 * ARCSEC, 10.0)
        assert math.isclose(allwise["data"][1]["distance"], expected, rel_tol=1e-12)

    def test_neighbours_are_counted_over_all_catalogues(self, service: str) -> None:
        two = cone(service, **GOOD, nneighbor=2).json()
        assert [[item["id"] for item in group["data"]] for group in two] == [["J0040+10a"], ["4611686018427387905"]]
        near_gaia = cone(service, ra=10.0 + 0.19 * ARCSEC, dec=10, radius=1).json()
        assert [group["catalog"] for group in near_gaia] == ["gaia"]
        of_allwise = cone(service, ra=10.0 + 0.19 * ARCSEC, dec=10, radius=1, catalog="AllWISE").json()
        assert [group["catalog"] for group in of_allwise] == ["allwise"]

    @pytest.mark.parametrize("wish", ["true", "True", "TRUE", "1"])
    def test_metadata_in_the_same_answer(self, service: str, wish: str) -> None:
        groups = cone(service, **GOOD, nneighbor=3, getMetadata=wish).json()
        assert [group["catalog"] for group in groups] == ["AllWISE", "GAIA/DR3"]
        assert all(list(group) == ["catalog", "data"] for group in groups)
        item = groups[0]["data"][0]
        assert list(item) == sorted(["id", "distance", "cntr", *ALLWISE_KEYS])
        by_key = dict(zip(ALLWISE_KEYS, MAGNITUDES, strict=True))
        assert {key: item[key] for key in by_key} == {
            key: 10.0 + MAGNITUDES.index(name) / 10.0 for key, name in by_key.items()
        }
        assert groups[1]["data"][0] == {
            "class": "star",
            "cntr": 901,
            "gmag": 15.25,
            "id": "4611686018427387905",
            "distance": groups[1]["data"][0]["distance"],
        }

    def test_without_metadata_by_default(self, service: str) -> None:
        assert "index" in cone(service, **GOOD, getMetadata="false").json()[0]

    def test_pixels_are_healpix_of_order_18_nested(self, service: str, allwise: Catalog) -> None:
        # The last pixel of the first base cell touches the pole; the pixel of a real answer is compared below.
        north = cone(service, ra=77, dec=90, radius=1).json()[0]["data"][0]["ipix"]
        assert north == 4**18 - 1

    @pytest.mark.parametrize(
        "parameters",
        [
            {"ra": 50, "dec": 50, "radius": 1},
            {**GOOD, "catalog": "vlass"},
            {**GOOD, "catalog": "ZTF"},
        ],
    )
    def test_nothing_found_has_no_body(self, service: str, parameters: dict[str, Any]) -> None:
        answer = cone(service, **parameters)
        assert (answer.status_code, answer.content) == (204, b"")
        assert set(answer.headers) <= {"date"} | {"Date"}

    def test_ra_360_is_0(self, service: str) -> None:
        assert cone(service, ra=360, dec=0, radius=1).json()[0]["data"][0]["id"] == "J0000+00"

    def test_radius_is_inclusive(self, service: str) -> None:
        distance = cone(service, ra=180, dec=-45 + 0.7 * ARCSEC, radius=1).json()[0]["data"][0]["distance"]
        assert cone(service, ra=180, dec=-45 + 0.7 * ARCSEC, radius=distance).status_code == 200
        below = np.nextafter(distance, 0.0)
        assert cone(service, ra=180, dec=-45 + 0.7 * ARCSEC, radius=below).status_code == 204


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "field", "value", "reason"),
        [
            ({"ra": "-2"}, "RA", "-2.000", "RA can't be lower than 0"),
            ({"ra": "360.5"}, "RA", "360.500", "RA can't be greater than 360"),
            ({"ra": "inf"}, "RA", "+Inf", "RA can't be greater than 360"),
            ({"ra": "NaN"}, "RA", "NaN", "RA must be a finite number"),
            ({"ra": "ten"}, "RA", "ten", "Could not parse float."),
            ({"ra": "1_0"}, "RA", "1_0", "Could not parse float."),
            ({"ra": None}, "RA", "", "Could not parse float."),
            ({"dec": "-90.25"}, "Dec", "-90.250", "Dec can't be lower than -90"),
            ({"dec": "91"}, "Dec", "91.000", "Dec can't be greater than 90"),
            ({"dec": "nan"}, "Dec", "NaN", "Dec must be a finite number"),
            ({"dec": ""}, "Dec", "", "Could not parse float."),
            ({"radius": "0"}, "radius", "0.000", "Radius can't be lower than 0"),
            ({"radius": "-3"}, "radius", "-3.000", "Radius can't be lower than 0"),
            ({"radius": "nan"}, "radius", "NaN", "Radius must be a finite number"),
            ({"radius": "3600.5"}, "radius", "3600.500", "Radius can't be greater than 3600 arcsec"),
            ({"radius": "2deg"}, "radius", "2deg", "Could not parse float."),
            ({"radius": None}, "radius", "", "Could not parse float."),
            ({"nneighbor": "0"}, "nneighbor", "0", "Nneighbor must be a positive integer"),
            ({"nneighbor": "-4"}, "nneighbor", "-4", "Nneighbor must be a positive integer"),
            ({"nneighbor": "2.5"}, "nneighbor", "2.5", "Could not parse int."),
            ({"nneighbor": "many"}, "nneighbor", "many", "Could not parse int."),
            ({"catalog": "sdss"}, "catalog", "sdss", "Catalog not available"),
            ({"catalog": ""}, "catalog", "", "Catalog not available"),
            ({"catalog": "erosita"}, "catalog", "erosita", "Catalog not available"),
            ({"getMetadata": "maybe"}, "getMetadata", "maybe", "Could not parse bool."),
            # The first field only: all that cannot be read come before all that are out of range.
            ({"ra": "-2", "dec": "x", "radius": "y"}, "Dec", "x", "Could not parse float."),
            ({"ra": "-2", "dec": "100"}, "RA", "-2.000", "RA can't be lower than 0"),
            ({"dec": "100", "radius": "0"}, "Dec", "100.000", "Dec can't be greater than 90"),
            ({"radius": "0", "nneighbor": "0"}, "radius", "0.000", "Radius can't be lower than 0"),
            ({"nneighbor": "0", "catalog": "sdss"}, "nneighbor", "0", "Nneighbor must be a positive integer"),
        ],
    )
    def test_cone_search(self, service: str, change: dict[str, str], field: str, value: str, reason: str) -> None:
        answer = cone(service, **(GOOD | change))
        assert answer.status_code == 400
        assert answer.headers["Content-Type"] == JSON_TYPE
        assert answer.json() == {"Reason": reason, "ErrValue": value, "Field": field}
        parsing = reason.startswith("Could not parse")
        assert next(iter(answer.json())) == ("ErrValue" if parsing else "Reason")

    def test_the_first_of_repeated_parameters_counts(self, service: str) -> None:
        answer = requests.get(f"{service}/v1/conesearch?ra=10&ra=x&dec=10&radius=1", timeout=30)
        assert answer.status_code == 200

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"ra": [1.0, 2.0], "dec": [1.0]}, {"Field": "ra", "ErrValue": "2"}),
            ({"ra": [], "dec": []}, {"Field": "ra", "ErrValue": "0"}),
            ({}, {"Field": "ra", "ErrValue": "0"}),
            ({"ra": [1.0, -1.0], "dec": [1.0, 95.0]}, {"Field": "RA", "ErrValue": "-1.000", "Index": 1}),
            ({"ra": [1, 1, 1], "dec": [1, 95, -95]}, {"Field": "Dec", "ErrValue": "95.000", "Index": 1}),
            ({"ra": [1, None], "dec": [1, 1]}, {"Field": "ra", "ErrValue": "null", "Index": 1}),
            ({"ra": [1], "dec": ["1"]}, {"Field": "dec", "ErrValue": '"1"', "Index": 0}),
            ({"ra": [True], "dec": [1]}, {"Field": "ra", "ErrValue": "true", "Index": 0}),
            ({"ra": 1, "dec": [1]}, {"Field": "ra", "ErrValue": "1"}),
            ({"ra": [1], "dec": [1], "radius": None}, {"Field": "radius", "ErrValue": "0.000"}),
            ({"ra": [1], "dec": [1], "radius": "1"}, {"Field": "radius", "ErrValue": '"1"'}),
            ({"ra": [1], "dec": [1], "radius": 1e9}, {"Field": "radius", "ErrValue": "1000000000.000"}),
            ({"ra": [1], "dec": [1], "nneighbor": -1}, {"Field": "nneighbor", "ErrValue": "-1"}),
            ({"ra": [1], "dec": [1], "nneighbor": 1.5}, {"Field": "nneighbor", "ErrValue": "1.5"}),
            ({"ra": [1], "dec": [1], "catalog": "sdss"}, {"Field": "catalog", "ErrValue": "sdss"}),
            ({"ra": [1], "dec": [1], "catalog": 3}, {"Field": "catalog", "ErrValue": "3"}),
            ({"ra": [1], "dec": [1], "getMetadata": "maybe"}, {"Field": "getMetadata", "ErrValue": "maybe"}),
        ],
    )
    def test_bulk_cone_search(self, service: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
        answer = bulk(service, **({"radius": 1} | fields))
        assert answer.status_code == 400
        body = answer.json()
        assert body.pop("Reason")
        assert body == expected

    @pytest.mark.parametrize("body", [b"", b'{"ra":[1', b"ra=1", b'{"ra":[NaN],"dec":[1],"radius":1}', b"[]", b"\xff"])
    def test_not_json(self, service: str, body: bytes) -> None:
        for path in ("bulk-conesearch", "bulk-metadata"):
            answer = requests.post(f"{service}/v1/{path}", data=body, timeout=30)
            assert answer.status_code == 400
            assert answer.json()["Field"] == "body"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"),
            ("GET", "/v1/bulk-conesearch"),
            ("POST", "/v1/conesearch"),
            ("DELETE", "/v1/metadata"),
            ("GET", "/v1/conesearch/"),
            ("PUT", "/ping"),
        ],
    )
    def test_unknown_path_or_method(self, service: str, method: str, path: str) -> None:
        answer = requests.request(method, service + path, timeout=30)
        assert (answer.status_code, answer.text) == (404, "404 page not found")
        assert answer.headers["Content-Type"].startswith("text/plain")

    def test_web_pages_elsewhere(self, service: str, allwise: Catalog) -> None:
        def ask(url: str, origin: str) -> requests.Response:
            return requests.get(f"{url}/ping", headers={"Origin": origin}, timeout=30)

        assert (ask(service, "http://elsewhere.test").status_code, ask(service, service).status_code) == (403, 200)
        assert ask(service, "http://elsewhere.test").content == b""
        with running_server([allwise], allowed_origins=("http://elsewhere.test",)) as (url, _):
            answer = ask(url, "http://elsewhere.test")
            assert answer.headers["Access-Control-Allow-Origin"] == "http://elsewhere.test"
            assert ask(url, "http://third.test").status_code == 403


class TestBulkConeSearch:
    def test_one_element_per_match_in_order_of_the_positions(self, service: str) -> None:
        answer = bulk(service, ra=[180, 50, 10, 10], dec=[-45, 50, 10, 10], radius=1, catalog="allwise", nneighbor=2)
        elements = answer.json()
        assert [(e["index"], e["data"][0]["id"]) for e in elements] == [
            (0, "J1200-45"),
            (2, "J0040+10a"),
            (2, "J0040+10b"),
            (3, "J0040+10a"),
            (3, "J0040+10b"),
        ]
        assert all(list(element) == ["catalog", "data", "index"] for element in elements)
        assert all(len(element["data"]) == 1 for element in elements)
        assert list(elements[0]["data"][0]) == ["id", "ipix", "ra", "dec", "cat", "distance"]

    @pytest.mark.parametrize("wish", [True, "True", 1])
    def test_metadata_in_the_same_answer(self, service: str, wish: object) -> None:
        (element,) = bulk(service, ra=[180], dec=[-45], radius=1, getMetadata=wish).json()
        item = element["data"][0]
        assert list(item) == ["id", "ipix", "ra", "dec", "cat", "distance", "cntr", *ALLWISE_KEYS]
        assert item["w1mpro"] == 10.002
        assert item["j_m_2mass"] is None
        single = metadata(service, id="J1200-45", catalog="allwise").json()
        assert {key: item[key] for key in single} == single

    def test_all_catalogues_mixed(self, service: str) -> None:
        elements = bulk(service, ra=[200, 10], dec=[5, 10], radius=1, nneighbor=3).json()
        assert [(e["index"], e["catalog"]) for e in elements] == [
            (0, "gaia"),
            (1, "allwise"),
            (1, "gaia"),
            (1, "allwise"),
        ]
        assert [e["data"][0]["cat"] for e in elements] == [e["catalog"] for e in elements]
        distances = [e["data"][0]["distance"] for e in elements[1:]]
        assert distances == sorted(distances)

    @pytest.mark.parametrize("fields", [{"nneighbor": 0}, {"nneighbor": None}, {"catalog": ""}, {"Catalog": "ALL"}, {}])
    def test_defaults(self, service: str, fields: dict[str, Any]) -> None:
        assert len(bulk(service, ra=[10], dec=[10], radius=1, **fields).json()) == 1

    def test_nothing_found(self, service: str) -> None:
        answer = bulk(service, ra=[50, 51], dec=[50, 51], radius=1)
        assert (answer.status_code, answer.content) == (204, b"")

    def test_numbers_come_back_to_the_bit(self, service: str, allwise: Catalog) -> None:
        (element,) = bulk(service, ra=[10], dec=[10], radius=1, catalog="allwise", getMetadata=True).json()
        expected = allwise.take([np.flatnonzero(allwise.index.positions[:, 0] == 10.0)[0]]).to_pylist()[0]
        assert [element["data"][0][key] for key in ALLWISE_KEYS] == [expected[name] for name in MAGNITUDES]


class TestMetadata:
    def test_one(self, service: str) -> None:
        found = metadata(service, id="J1200-45", catalog="AllWISE").json()
        assert list(found) == ["id", "cntr", *ALLWISE_KEYS, "ra", "dec"]
        assert (found["id"], found["ra"], found["dec"]) == ("J1200-45", 180.0, -45.0)
        assert found["w4sigmpro"] == 10.702
        assert found["k_msig_2mass"] is None

    def test_of_another_catalogue(self, service: str) -> None:
        assert metadata(service, id="17", catalog="gaia").json() == {
            "id": "17",
            "cntr": 902,
            "gmag": None,
            "class": 'a "quoted", name',
            "ra": 200.0,
            "dec": 5.0,
        }

    @pytest.mark.parametrize("identifier", ["", "J1200-46", "J1200-4", "J1200-45\0", "j1200-45", "J0040+10a" * 50])
    def test_unknown(self, service: str, identifier: str) -> None:
        assert metadata(service, id=identifier, catalog="allwise").status_code == 204

    def test_plus_must_be_escaped(self, service: str) -> None:
        path = f"{service}/v1/metadata?catalog=allwise&id="
        assert requests.get(path + "J0040%2B10a", timeout=30).status_code == 200
        assert requests.get(path + "J0040+10a", timeout=30).status_code == 204

    @pytest.mark.parametrize("catalog", ["", "all", "sdss"])
    def test_unknown_catalogue(self, service: str, catalog: str) -> None:
        answers = (metadata(service, id="1", catalog=catalog), bulk_metadata(service, ids=["1"], catalog=catalog))
        for answer in answers:
            assert answer.status_code == 400
            reason = "Allowed catalogs are [allwise vlass ztf gaia erosita]"
            assert answer.json() == {"Field": "catalog", "Reason": reason, "Value": catalog}

    def test_catalogues_that_crosswave_does_not_search(self, service: str) -> None:
        answer = metadata(service, id="1", catalog="ztf")
        assert answer.status_code == 500
        assert answer.json() == {"Reason": "Search not yet implemented for catalog", "Value": "ztf", "Name": "catalog"}
        assert metadata(service, id="1", catalog="erosita").status_code == 204
        answer = cone(service, **GOOD, catalog="vlass", getMetadata="true")
        assert (answer.status_code, answer.json()) == (500, "Could not execute conesearch")

    @pytest.mark.parametrize("pattern", ["union", "select", "--", ";", "'", '"', "/*", "DROP"])
    def test_suspicious_identifiers(self, service: str, pattern: str) -> None:
        identifier = f"J1{pattern}2"
        reason = f"id contains potentially dangerous pattern: {pattern.lower()}"
        one = metadata(service, id=identifier, catalog="allwise")
        assert (one.status_code, one.json()) == (400, {"Field": "id", "Reason": reason, "Value": identifier})
        many = bulk_metadata(service, ids=["J1200-45", identifier], catalog="allwise")
        assert (many.status_code, many.json()["Index"]) == (400, 1)

    def test_many(self, service: str) -> None:
        wanted = ["J1200-45", "unknown", "J0000+90", "J1200-45", "J0040+10a"]
        found = bulk_metadata(service, ids=wanted, catalog="allwise").json()
        # In the order of the catalogue, from south to north, each once.
        assert [item["id"] for item in found] == ["J1200-45", "J0040+10a", "J0000+90"]
        assert found[0] == metadata(service, id="J1200-45", catalog="allwise").json()

    @pytest.mark.parametrize("fields", [{"ids": []}, {}, {"ids": None}, {"ids": ["unknown"]}])
    def test_none_is_null(self, service: str, fields: dict[str, Any]) -> None:
        answer = bulk_metadata(service, catalog="allwise", **fields)
        assert (answer.status_code, answer.text) == (200, "null")
        assert answer.headers["Content-Type"] == JSON_TYPE

    def test_identifiers_must_be_text(self, service: str) -> None:
        answer = bulk_metadata(service, catalog="gaia", ids=["17", 17])
        assert answer.status_code == 400
        assert (answer.json()["Field"], answer.json()["Index"]) == ("ids", 1)


@pytest.fixture(scope="module")
def faulty_sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    at_80, at_85 = math.cos(math.radians(80.0)), math.cos(math.radians(85.0))
    sources = [
        ("85-ra", 100.0 + 0.30 * ARCSEC / at_85, 85.0),
        ("85-dec", 100.0, 85.0 + 0.90 * ARCSEC),
        ("80-ra", 100.0 + 0.90 * ARCSEC / at_80, 80.0),
        ("80-dec", 100.0, 80.0 + 1.20 * ARCSEC),
        ("0h-across", 359.99999, 0.0),
        ("0h-same", 0.00000 + 0.0000194 + 0.80 * ARCSEC, 0.0),
        ("26-near", 50.0, 26.0),
        ("26-far", 50.0, 26.0 + 200 * ARCSEC),
        ("both", 200.0, -10.0),
        *((f"field-{i}", 210.0 + i / 100.0, 20.0 + i / 100.0) for i in range(60)),
    ]
    table = {
        "AllWISE": [source[0] for source in sources],
        "RAJ2000": [source[1] for source in sources],
        "DEJ2000": [source[2] for source in sources],
        "Kmag": [12.5] * len(sources),
        "e_Kmag": [0.125] * len(sources),
    }
    other = {"id": ["both", "other"], "ra": [200.0, 210.0], "dec": [-10.0, 20.0]}
    folder = tmp_path_factory.mktemp("faults")
    catalogs = [table_catalog(folder / "a", "allwise", table), table_catalog(folder / "b", "gaia", other)]
    with running_server(catalogs) as (url, _):
        yield url


class TestFaultsOfTheRealServer:
    """What CrossWave's server gets wrong, as its capture lists it; the truth is asked for here."""

    @pytest.mark.parametrize(
        ("ra", "dec", "nearest", "distance"),
        [
            (100.0, 85.0, "85-ra", 0.30),
            (100.0, 80.0, "80-ra", 0.90),
            (0.0000194, 0.0, "0h-across", 0.10584),
        ],
    )
    def test_nearest_on_the_sphere(self, faulty_sky: str, ra: float, dec: float, nearest: str, distance: float) -> None:
        for answer in (cone(faulty_sky, ra=ra, dec=dec, radius=1), bulk(faulty_sky, ra=[ra], dec=[dec], radius=1)):
            (group,) = answer.json()
            assert group["data"][0]["id"] == nearest
            assert math.isclose(group["data"][0]["distance"], distance, abs_tol=1e-4)

    def test_large_radius(self, faulty_sky: str) -> None:
        (group,) = cone(faulty_sky, ra=50, dec=26, radius=250, nneighbor=10).json()
        assert [item["id"] for item in group["data"]] == ["26-near", "26-far"]

    def test_bulk_loses_nothing(self, faulty_sky: str) -> None:
        positions = [210.0 + i / 100.0 for i in range(60)], [20.0 + i / 100.0 for i in range(60)]
        elements = bulk(faulty_sky, ra=positions[0], dec=positions[1], radius=1, catalog="allwise").json()
        assert [element["data"][0]["id"] for element in elements] == [f"field-{i}" for i in range(60)]

    def test_one_identifier_in_two_catalogues(self, faulty_sky: str) -> None:
        groups = cone(faulty_sky, ra=200, dec=-10, radius=1, nneighbor=5).json()
        elements = bulk(faulty_sky, ra=[200], dec=[-10], radius=1, nneighbor=5).json()
        for answer in (groups, elements):
            assert [(part["catalog"], len(part["data"])) for part in answer] == [("allwise", 1), ("gaia", 1)]
            assert all(part["data"][0]["id"] == "both" for part in answer)

    def test_k_msig_2mass(self, faulty_sky: str) -> None:
        assert metadata(faulty_sky, id="both", catalog="allwise").json()["k_msig_2mass"] == 0.125

    def test_nan_and_null(self, faulty_sky: str) -> None:
        assert cone(faulty_sky, ra="NaN", dec=1, radius=1).status_code == 400
        assert bulk(faulty_sky, ra=[None], dec=[1], radius=1).status_code == 400

    def test_groups_have_one_order(self, faulty_sky: str) -> None:
        answers = {cone(faulty_sky, ra=200, dec=-10, radius=1, nneighbor=5).text for _ in range(20)}
        assert len(answers) == 1


class TestLimits:
    def test_coordinates_and_identifiers(self, service: str) -> None:
        assert bulk(service, ra=[10] * 200, dec=[10] * 200, radius=1).status_code == 200
        answers = (
            (bulk(service, ra=[10] * 201, dec=[10] * 201, radius=1), "ra"),
            (bulk_metadata(service, ids=["1"] * 201, catalog="allwise"), "ids"),
        )
        for answer, field in answers:
            assert answer.status_code == 413
            assert (answer.json()["Field"], answer.json()["ErrValue"]) == (field, "201")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_body(self, service: str, chunked: bool) -> None:
        body = b" " * 20_001
        data = (body[i : i + 1000] for i in range(0, len(body), 1000)) if chunked else body
        answer = requests.post(f"{service}/v1/bulk-conesearch", data=data, timeout=30)
        assert (answer.status_code, answer.json()["Field"]) == (413, "body")

    def test_matches(self, allwise: Catalog) -> None:
        with running_server([allwise], max_matches=3) as (url, _):
            assert len(bulk(url, ra=[10], dec=[10], radius=1, nneighbor=9).json()) == 2
            assert bulk(url, ra=[10, 10], dec=[10, 10], radius=1, nneighbor=2).status_code == 413
            assert len(bulk(url, ra=[10, 10, 10], dec=[10, 10, 10], radius=1).json()) == 3


class TestInformation:
    def test_ping(self, service: str) -> None:
        answer = requests.get(f"{service}/ping", timeout=30)
        assert (answer.status_code, answer.text) == (200, "pong")

    def test_health(self, service: str, allwise: Catalog) -> None:
        health = requests.get(f"{service}/health", timeout=30).json()
        assert health["status"] == "ok"
        assert health["version"]
        assert health["catalogs"][0] == {"name": "allwise", "version": "1", "created": allwise.created, "rows": 5}

    def test_documentation_needs_no_network(self, service: str) -> None:
        page = requests.get(f"{service}/docs", timeout=30)
        assert page.headers["Content-Type"].startswith("text/html")
        assert "/v1/bulk-conesearch" in page.text
        assert "nneighbor" in page.text
        assert not any(mark in page.text for mark in ("src=", "<script", "<link", "@import", "https://"))
        paths = requests.get(f"{service}/openapi.json", timeout=30).json()["paths"]
        fields = paths["/v1/bulk-conesearch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(fields["properties"]) == {"ra", "dec", "radius", "catalog", "nneighbor", "getMetadata"}
        assert [p["name"] for p in paths["/v1/conesearch"]["get"]["parameters"]][:3] == ["ra", "dec", "radius"]

    def test_metrics(self, allwise: Catalog) -> None:
        with running_server([allwise]) as (url, _):
            bulk(url, ra=[10, 10, 50], dec=[10, 10, 50], radius=1)
            cone(url, **GOOD)
            cone(url, ra="x")
            requests.get(f"{url}/upper/v1/conesearch", params=GOOD, timeout=30)
            requests.get(f"{url}/nothing", timeout=30)
            text = requests.get(f"{url}/metrics", timeout=30).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        expected = {
            'alertbeam_requests_total{endpoint="conesearch",status="200"}': 2,
            'alertbeam_requests_total{endpoint="conesearch",status="400"}': 1,
            'alertbeam_requests_total{endpoint="bulk-conesearch",status="200"}': 1,
            'alertbeam_requests_total{endpoint="other",status="404"}': 1,
            'alertbeam_coordinates_total{endpoint="bulk-conesearch"}': 3,
            'alertbeam_matches_total{endpoint="bulk-conesearch"}': 2,
            'alertbeam_request_seconds_count{endpoint="conesearch"}': 3,
            'alertbeam_request_seconds_bucket{endpoint="conesearch",le="+Inf"}': 3,
        }
        assert {name: float(values[name]) for name in expected} == expected
        assert float(values["alertbeam_cpu_seconds_total"]) > 0
        assert float(values['alertbeam_request_seconds_sum{endpoint="conesearch"}']) > 0


class TestStopping:
    def test_a_running_request_is_finished(self, allwise: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        entered, leave = threading.Event(), threading.Event()
        answer_bulk = Answers.bulk_cone

        def slow(self: Answers, *arguments: Any) -> Answer:
            entered.set()
            leave.wait(20)
            return answer_bulk(self, *arguments)

        with running_server([allwise]) as (url, server), ThreadPoolExecutor(1) as client:
            monkeypatch.setattr(Answers, "bulk_cone", slow)
            running = client.submit(bulk, url, ra=[10], dec=[10], radius=1)
            assert entered.wait(20)
            # A request that waits does not keep others waiting.
            assert cone(url, **GOOD).status_code == 200
            server.should_exit = True
            time.sleep(0.5)
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{url}/ping", timeout=5)
            leave.set()
            assert running.result(20).json()[0]["index"] == 0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_sigterm_ends_the_command_with_status_0(self, allwise: Catalog, workers: int) -> None:
        code = (
            "import argparse, signal, sys; from pipelines import serve_command;"
            "parser = argparse.ArgumentParser(); serve_command.add_action(parser.add_subparsers());"
            "signal.signal(signal.SIGTERM, signal.default_int_handler);"
            "options = parser.parse_args(sys.argv[1:]); sys.exit(options.command(options, [], {}))"
        )
        arguments = ["serve", str(allwise.path), "--port", "0", "--workers", str(workers)]
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith("serving at "))
            url = line.split()[2].rstrip(",")
            # With workers, the first answer comes when one of them is ready.
            assert requests.get(f"{url}/ping", timeout=60).text == "pong"
            for _ in range(20):
                assert cone(url, **GOOD).status_code == 200
            text = requests.get(f"{url}/metrics", timeout=30).text
            count = next(x for x in text.splitlines() if x.startswith('alertbeam_coordinates_total{endpoint="cones'))
            assert float(count.split()[1]) == 20
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def upper_service(allwise: Catalog, gaia: Catalog) -> Iterator[str]:
    with running_server([allwise, gaia], json_format="upper", default_catalog="allwise") as (url, _):
        yield url


class TestUpperCaseJson:
    """The older JSON, through a client that does what ALeRCE's published one does."""

    def test_shapes(self, upper_service: str, service: str) -> None:
        assert list(cone(upper_service, **GOOD).json()[0]) == ["ID", "Ipix", "Ra", "Dec", "Cat"]
        assert cone(upper_service, ra=50, dec=50, radius=1).status_code == 204
        found = metadata(upper_service, id="J1200-45", catalog="allwise").json()
        assert list(found) == [
            *("Source_id", "W1mpro", "W1sigmpro", "W2mpro", "W2sigmpro", "W3mpro", "W3sigmpro", "W4mpro", "W4sigmpro"),
            *("J_m_2mass", "H_m_2mass", "K_m_2mass", "J_msig_2mass", "H_msig_2mass", "K_msig_2mass"),
        ]
        assert (found["W1mpro"], found["J_m_2mass"]) == (10.002, -9999)
        elements = bulk(upper_service, ra=[50, 180], dec=[50, -45], radius=1, getMetadata=True).json()
        assert [(e["ID"], e["Index"], e["H_m_2mass"]) for e in elements] == [("J1200-45", 1, -9999)]
        # Both forms at once: the other path prefix of a service whose default is the present form.
        upper = requests.get(f"{service}/upper/v1/conesearch", params=GOOD, timeout=30)
        assert upper.json() == cone(upper_service, **GOOD).json()

    def test_published_client(self, upper_service: str, allwise: Catalog) -> None:
        ra, dec = np.array([10.0, 50.0, 180.0]), np.array([10.0, 50.0, -45.0 + 0.4 * ARCSEC])
        frame = published_client(upper_service, ra, dec)
        assert frame["col1"].tolist() == [0, 1]
        assert frame["AllWISE"].tolist() == ["J0040+10a", "J1200-45"]
        assert np.allclose(frame["angDist"], [0.0, 0.4], atol=1e-6)
        expected = allwise.take(np.arange(5)).to_pandas().set_index("AllWISE").loc[frame["AllWISE"]]
        for name in ["RAJ2000", "DEJ2000", *MAGNITUDES]:
            assert np.array_equal(frame[name], expected[name], equal_nan=True), name


def published_client(base: str, ra: np.ndarray, dec: np.ndarray) -> pd.DataFrame:
    """A cone search without catalogue for each position, then metadata of each hit, as a table with CDS's columns."""
    hits = []
    for i in range(len(ra)):
        answer = requests.get(
            f"{base}/v1/conesearch", params={"ra": ra[i], "dec": dec[i], "radius": 1, "nneighbor": 1}, timeout=30
        )
        for hit in answer.json() if answer.status_code == 200 else []:
            found = requests.get(
                f"{base}/v1/metadata", params={"id": hit["ID"], "catalog": "allwise"}, timeout=30
            ).json()
            distance = angular_separation_arcsec(ra[i], dec[i], hit["Ra"], hit["Dec"])
            names = {"AllWISE": hit["ID"], "RAJ2000": hit["Ra"], "DEJ2000": hit["Dec"], "angDist": distance}
            names |= {f"W{b}mag": found[f"W{b}mpro"] for b in range(1, 5)}
            names |= {f"e_W{b}mag": found[f"W{b}sigmpro"] for b in range(1, 5)}
            names |= {f"{b}mag": found[f"{b}_m_2mass"] for b in "JHK"}
            names |= {f"e_{b}mag": found[f"{b}_msig_2mass"] for b in "JHK"}
            hits.append(names | {"col1": len(hits)})
    return pd.DataFrame(hits).replace(-9999, np.nan)


class TestAgainstCds:
    def test_every_answer_of_cds(self, shared_data: Path, tmp_path: Path) -> None:
        table = shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv"
        truth = pacsv.read_csv(table).to_pandas().set_index("id_in")
        positions = pacsv.read_csv(shared_data / "xmatch" / "positions.csv").to_pandas()
        catalog = build_catalog(table, tmp_path / "allwise", name="allwise")
        with running_server([catalog]) as (url, _):
            elements = bulk(
                url, ra=positions["ra"].tolist(), dec=positions["dec"].tolist(), radius=1, getMetadata=True
            ).json()
            several = [elements[i]["data"][0] for i in range(0, len(elements), 100)]
            looked_up = bulk_metadata(url, ids=[item["id"] for item in several], catalog="allwise").json()
        asked = positions["id"].iloc[[element["index"] for element in elements]]
        assert len(elements) == len(truth) == asked.nunique() == 2732
        expected = truth.loc[asked]
        items = pd.DataFrame([element["data"][0] for element in elements])
        assert items["id"].tolist() == expected["AllWISE"].tolist()
        # CDS computes with more digits of the positions than it publishes.
        assert np.abs(items["distance"].to_numpy() - expected["angDist"].to_numpy()).max() < 3e-4
        pairs = {"ra": "RAJ2000", "dec": "DEJ2000"} | dict(zip(ALLWISE_KEYS, MAGNITUDES, strict=True))
        for key, name in pairs.items():
            assert np.array_equal(items[key].astype(float), expected[name].astype(float), equal_nan=True), key
        by_identifier = {item["id"]: item for item in looked_up}
        assert all(item.items() >= by_identifier[item["id"]].items() for item in several)
        # As the real server answered.
        assert items.loc[items["id"] == "J124131.46+260233.6", "ipix"].tolist() == [472221946450]


def test_bodies_are_json_for_the_strictest_reader(service: str) -> None:
    body = bulk(service, ra=[200], dec=[5], radius=1, getMetadata=True).content

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    assert json.loads(body, parse_constant=refuse)[0]["data"][0]["gmag"] is None
