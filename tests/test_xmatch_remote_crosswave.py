"""The client of CrossWave against servers of all its forms, with its faults, on bad days."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from remote_fixtures import FAST, FakeCrossWave, Reply, Seen, Sky, as_json, serving
from test_xmatch_remote_cds import DEC, EXPECTED, POSITIONS, RA, SKY

from xmatch.crosswave import CrossWaveMatcher
from xmatch.matcher import FAILED, MATCHED, NO_MATCH, Matches
from xmatch.sources import ALLWISE_COLUMNS

FORMS = ("present", "extended", "no index", "structs", "upper")


def match(server: FakeCrossWave, ra: Any = RA, dec: Any = DEC, **options: Any) -> Matches:
    with serving(server) as url:
        matcher = replace(CrossWaveMatcher(url, http=FAST), **options)
        matcher.validate()
        return matcher.match(ra, dec)


def check(matches: Matches, failed: np.ndarray | None = None) -> None:
    """Every position has the right answer, or has failed with a reason."""
    failed = np.zeros(POSITIONS, np.bool_) if failed is None else failed
    assert np.array_equal(matches.status, np.where(failed, FAILED, EXPECTED))
    for i, row in enumerate(matches.columns.to_pylist()):
        matched = matches.status[i] == MATCHED
        source = SKY.sources[i]
        assert row == {
            name: (text if name == "AllWISE" else float(text)) if matched and (text := source[name]) else None
            for name in ALLWISE_COLUMNS
        }
        assert (matches.errors[i].as_py() is not None) == bool(failed[i])


ALL = np.ones(POSITIONS, np.bool_)


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same(form: str) -> None:
    check(match(FakeCrossWave(SKY, form)))


def test_the_present_protocol() -> None:
    server = FakeCrossWave(SKY)
    check(match(server))
    cone, metadata = server.seen
    asked = json.loads(cone.body)
    assert (cone.path, metadata.path) == ("/v1/bulk-conesearch", "/v1/bulk-metadata")
    assert (asked["ra"], asked["dec"]) == (RA.tolist(), DEC.tolist())
    assert (asked["catalog"], asked["nneighbor"]) == ("allwise", 16)
    assert asked["radius"] == pytest.approx(1.0, abs=1e-5)
    asked = json.loads(metadata.body)
    assert asked["catalog"] == "allwise"
    assert sorted(asked["ids"]) == [SKY.sources[i]["AllWISE"] for i in np.flatnonzero(EXPECTED == MATCHED)]


def test_magnitudes_that_come_with_the_search_are_not_asked_for_again() -> None:
    server = FakeCrossWave(SKY, "extended")
    check(match(server))
    assert [request.path for request in server.seen] == ["/v1/bulk-conesearch"]


def test_positions_alone_need_no_metadata() -> None:
    server = FakeCrossWave(SKY)
    matches = match(server, columns=["RAJ2000"])
    assert matches.columns.column_names == ["AllWISE", "RAJ2000"]
    assert [request.path for request in server.seen] == ["/v1/bulk-conesearch"]


@pytest.mark.parametrize("form", ["no index", "structs"])
def test_single_requests_name_catalogue_and_quote_plus(form: str) -> None:
    sources = [source | {"AllWISE": source["AllWISE"].replace("-", "+")} for source in SKY.sources]
    server = FakeCrossWave(Sky(sources), form)
    matches = match(server)
    assert np.array_equal(matches.status, EXPECTED)
    cones = [request for request in server.seen if request.path == "/v1/conesearch"]
    assert len(cones) == POSITIONS
    assert all(request.query["catalog"] == ["allwise"] for request in cones)
    assert {float(request.query["ra"][0]) for request in cones} == set(RA)


def test_a_service_without_batches_is_remembered() -> None:
    server = FakeCrossWave(SKY, "structs")
    with serving(server) as url:
        matcher = CrossWaveMatcher(url, http=FAST)
        for _ in range(2):
            check(matcher.match(RA, DEC))
        check(pickle.loads(pickle.dumps(matcher)).match(RA, DEC))
    assert sum(request.path == "/v1/bulk-conesearch" for request in server.seen) == 2


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_addresses(tail: str) -> None:
    server = FakeCrossWave(SKY)
    with serving(server) as url:
        check(CrossWaveMatcher(url + tail, http=FAST).match(RA, DEC))


class TestFaultsOfTheServer:
    """Cases that crosswave.md has measured on the real server."""

    @staticmethod
    def sky(*positions: tuple[float, float]) -> Sky:
        blank = dict.fromkeys(ALLWISE_COLUMNS, "")
        return Sky(
            [
                blank | {"AllWISE": f"s{i}", "RAJ2000": repr(float(p[0])), "DEJ2000": repr(float(p[1]))}
                for i, p in enumerate(positions)
            ]
        )

    @staticmethod
    def arcsec(east: float, north: float, dec: float) -> tuple[float, float]:
        return 100.0 + east / 3600.0 / np.cos(np.radians(dec)), dec + north / 3600.0

    @pytest.mark.parametrize("bulk", [True, False])
    def test_nearest_at_high_declination(self, bulk: bool) -> None:
        server = FakeCrossWave(self.sky(self.arcsec(0.3, 0.0, 85.0), self.arcsec(0.0, 0.9, 85.0)))
        assert server.neighbours(100.0, 85.0, 1.0, 1)[0][1] == 1
        matches = match(server, [100.0], [85.0], bulk=bulk)
        assert matches.columns["AllWISE"].to_pylist() == ["s0"]
        assert matches.separation_arcsec[0] == pytest.approx(0.3, abs=1e-6)

    def test_match_hidden_by_a_neighbour_beyond_the_radius(self) -> None:
        server = FakeCrossWave(self.sky(self.arcsec(0.9, 0.0, 80.0), self.arcsec(0.0, 1.2, 80.0)))
        assert server.neighbours(100.0, 80.0, 1.0, 1) == []
        assert match(server, [100.0], [80.0]).columns["AllWISE"].to_pylist() == ["s0"]

    def test_across_0h(self) -> None:
        here = 359.99999
        server = FakeCrossWave(self.sky((0.00002, 0.0), (here, 0.8 / 3600.0)))
        assert server.neighbours(here, 0.0, 1.0, 1)[0][1] == 1
        assert match(server, [here, here - 360.0], [0.0, 0.0]).columns["AllWISE"].to_pylist() == ["s0", "s0"]

    def test_a_crowd(self) -> None:
        """More sources than were asked for: the nearest may not be among those that came, so more are asked for."""
        crowd = [self.arcsec(0.5 + i * 0.001, 0.0, 80.0) for i in range(40)] + [
            self.arcsec(0.0, 0.4 + i * 0.01, 80.0) for i in range(40)
        ]
        server = FakeCrossWave(self.sky((200.0, -80.0), *crowd, self.arcsec(0.39, 0.0, 80.0)))
        matches = match(server, [200.0, 100.0], [-80.0, 80.0])
        assert matches.columns["AllWISE"].to_pylist() == ["s0", "s81"]
        assert [json.loads(request.body)["nneighbor"] for request in server.seen[:2]] == [16, 128]

    def test_radius_is_inclusive_and_equally_near_sources_go_by_name(self) -> None:
        server = FakeCrossWave(self.sky((10.0, 1.0 / 3600.0), (10.0, -1.0 / 3600.0)))
        distance = match(server, [10.0], [0.0], radius_arcsec=1.1).separation_arcsec[0]
        assert distance == pytest.approx(1.0, abs=1e-9)
        exact = match(server, [10.0], [0.0], radius_arcsec=distance)
        assert exact.columns["AllWISE"].to_pylist() == ["s0"]
        below = match(server, [10.0], [0.0], radius_arcsec=np.nextafter(distance, 0.0))
        assert below.status.tolist() == [NO_MATCH]

    def test_one_bad_position_refuses_a_batch(self) -> None:
        server = FakeCrossWave(SKY)
        server.refuses = lambda ra, dec: ra == RA[17]
        matches = match(server)
        check(matches, np.arange(POSITIONS) == 17)
        assert "HTTP 400" in matches.errors[17].as_py()
        assert "can't be greater than 360" in matches.errors[17].as_py()

    def test_what_does_not_exist_is_never_sent(self) -> None:
        server = FakeCrossWave(SKY)
        matches = match(server, [np.nan, RA[1], np.inf, 10.0], [0.0, DEC[1], 0.0, 91.0])
        assert matches.status.tolist() == [FAILED, MATCHED, FAILED, FAILED]
        assert json.loads(server.seen[0].body)["ra"] == [RA[1]]

    def test_a_source_without_metadata_has_failed(self) -> None:
        server = FakeCrossWave(SKY)
        del server._numbers[SKY.sources[5]["AllWISE"]]
        matches = match(server)
        check(matches, np.arange(POSITIONS) == 5)
        assert "no metadata" in matches.errors[5].as_py()

    def test_dangerous_identifiers_fail_alone(self) -> None:
        """The service takes some identifiers for an attack."""

        class Careful(FakeCrossWave):
            def answer(self, request: Seen) -> Reply:
                bad = SKY.sources[5]["AllWISE"]
                if request.path.endswith("metadata") and (
                    bad in request.body.decode() or [bad] == request.query.get("id")
                ):
                    return as_json({"Field": "id", "Reason": "id contains potentially dangerous pattern"}, 400)
                return super().answer(request)

        matches = match(Careful(SKY))
        check(matches, np.arange(POSITIONS) == 5)
        assert "dangerous pattern" in matches.errors[5].as_py()

    def test_sources_of_another_catalogue_are_no_match(self) -> None:
        assert set(match(FakeCrossWave(SKY, catalog="gaia")).status) == {NO_MATCH}

    def test_catalogue_in_other_letters(self) -> None:
        check(match(FakeCrossWave(SKY, catalog="AllWISE")))


TRANSIENT = ("500", "502", "503", "504", "html", "empty", "truncated", "hangs up")


def times(server: FakeCrossWave, number: int) -> int:
    """How often the request of this number had come before."""
    request = server.seen[number]
    return sum((other.raw, other.query) == (request.raw, request.query) for other in server.seen[:number])


@pytest.mark.parametrize("form", ["present", "upper"])
@pytest.mark.parametrize("mood", TRANSIENT)
def test_bad_answers_are_asked_for_again(form: str, mood: str) -> None:
    server = FakeCrossWave(SKY, form)
    server.mood = lambda number: mood if times(server, number) < 2 else "good"
    check(match(server))
    http = replace(FAST, retries=0)
    matches = match(FakeCrossWave(SKY, form, mood=lambda _: mood), http=http)
    check(matches, ALL)


def test_a_wrong_address_is_a_failure() -> None:
    matches = match(FakeCrossWave(SKY, mood=lambda _: "good"), service_url="http://127.0.0.1:9")
    check(matches, ALL)


class Changed(FakeCrossWave):
    """Changes what it answers."""

    change: Callable[[Any], Any] = staticmethod(lambda value: value)
    where = "conesearch"

    def answer(self, request: Seen) -> Reply:
        reply = super().answer(request)
        if request.path.endswith(self.where) and reply.status == 200:
            return as_json(type(self).change(json.loads(reply.body)))
        return reply


def changed(where: str, change: Callable[[Any], Any], form: str = "present") -> Changed:
    return type("Other", (Changed,), {"where": where, "change": staticmethod(change)})(SKY, form)


def in_data(**values: Any) -> Callable[[Any], Any]:
    def change(elements: Any) -> Any:
        for element in elements:
            for item in element.get("data", [element]):
                item.update(values)
        return elements

    return change


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("conesearch", in_data(ra=77.0)),
        ("conesearch", in_data(distance=0.7)),
        ("conesearch", in_data(ra=None)),
        ("conesearch", in_data(dec="north")),
        ("conesearch", in_data(id="")),
        ("conesearch", lambda value: [element | {"index": element["index"] + 1} for element in value]),
        ("conesearch", lambda value: [element | {"index": -1} for element in value]),
        ("conesearch", lambda value: [element | {"index": True} for element in value]),
        ("conesearch", lambda value: [1, 2]),
        ("conesearch", lambda value: "text"),
        ("conesearch", lambda value: [element | {"data": ["text"]} for element in value]),
        ("metadata", in_data(w1mpro="bright")),
        ("metadata", in_data(w1mpro=True)),
        ("metadata", lambda value: [{key: item[key] for key in ("id", "w1mpro")} for item in value]),
        ("metadata", lambda value: None),
        ("metadata", lambda value: [item | {"id": "another"} for item in value]),
    ],
)
def test_answers_that_cannot_be_right_are_failures(where: str, change: Callable[[Any], Any]) -> None:
    matches = match(changed(where, change))
    assert MATCHED not in matches.status
    assert np.array_equal(matches.status == FAILED, EXPECTED == MATCHED) or (matches.status == FAILED).all()


def test_null_is_an_empty_list() -> None:
    assert set(match(changed("conesearch", lambda _: None)).status) == {NO_MATCH}


def test_batches_are_asked_for_at_once_but_not_too_many() -> None:
    server = FakeCrossWave(SKY, work_s=0.01)
    check(match(server, batch_rows=5, http=replace(FAST, requests_at_once=3)))
    assert server.most_at_once == 3
    single = FakeCrossWave(SKY, "structs", work_s=0.005)
    check(match(single, http=replace(FAST, requests_at_once=3)))
    assert single.most_at_once == 3


def test_other_catalogues_have_the_names_of_the_service() -> None:
    class Gaia(FakeCrossWave):
        def _magnitudes(self, i: int) -> dict[str, Any]:
            return {"phot_g_mean_mag": 12.5, "solution_id": 2**60 + 1}

    columns = ["phot_g_mean_mag", "solution_id:int64"]
    matches = match(Gaia(SKY, catalog="gaia"), RA[:2], DEC[:2], catalog="gaia", columns=columns)
    assert matches.columns.schema == pa.schema(
        {"id": pa.string(), "phot_g_mean_mag": pa.float64(), "solution_id": pa.int64()}
    )
    assert matches.columns.to_pylist()[1] == {"id": "J000001+0", "phot_g_mean_mag": 12.5, "solution_id": 2**60 + 1}
    assert matches.catalog == "gaia"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius_arcsec": -1.0}, "radius"),
        ({"service_url": "crosswave"}, "address"),
        ({"catalog": "All"}, "name one catalogue"),
        ({"selection": 0}, "selection"),
        ({"batch_rows": 0}, "batch"),
        ({"columns": ["W5mag"]}, "no column W5mag"),
        ({"columns": ["W1mag", "W1mag"]}, "asked twice"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CrossWaveMatcher("http://host"), **options).validate()


def test_the_version_tells_the_service() -> None:
    assert CrossWaveMatcher("https://me:secret@host/x/").catalog_version == "https://host/x/"
    assert CrossWaveMatcher("https://host", version="2013-11").catalog_version == "2013-11"
