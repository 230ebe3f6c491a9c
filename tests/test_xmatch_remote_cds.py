"""The client of CDS X-Match against a server that behaves like CDS at its worst."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_fixtures import FAST, FakeCds, Sky, serving

from xmatch.cds import CDS_URL, CdsMatcher, cds_table
from xmatch.matcher import FAILED, MATCHED, NO_MATCH, Matches
from xmatch.sources import ALLWISE_COLUMNS

POSITIONS = 60


def make_sky() -> Sky:
    """Sources a tenth of a degree apart, every seventh of them without some magnitudes."""
    sources = []
    for i in range(POSITIONS):
        source = dict.fromkeys(ALLWISE_COLUMNS, f"{10 + i / 7:.3f}")
        source |= {"AllWISE": f"J{i:06d}+0", "RAJ2000": f"{10 + i * 0.1:.7f}", "DEJ2000": f"{-30 + i * 0.5:.7f}"}
        sources.append(source | (dict.fromkeys(("W3mag", "e_W3mag", "Jmag"), "") if i % 7 == 0 else {}))
    return Sky(sources)


SKY = make_sky()
# Positions a third of an arcsecond beside the sources, every fourth one beside nothing.
RA = SKY.ra.copy()
DEC = SKY.dec + np.where(np.arange(POSITIONS) % 4 == 0, 60.0, 0.3) / 3600.0
EXPECTED = np.where(np.arange(POSITIONS) % 4 == 0, NO_MATCH, MATCHED)


def match(server: FakeCds, **options: object) -> Matches:
    with serving(server) as url:
        matcher = replace(CdsMatcher(service_url=f"{url}/sync", http=FAST), **options)
        matcher.validate()
        return matcher.match(RA, DEC)


def check(matches: Matches, failed: np.ndarray | None = None) -> None:
    """Every position has the right answer, or has failed with a reason."""
    failed = np.zeros(POSITIONS, np.bool_) if failed is None else failed
    assert np.array_equal(matches.status, np.where(failed, FAILED, EXPECTED))
    names = matches.columns["AllWISE"].to_pylist()
    for i, reason in enumerate(matches.errors.to_pylist()):
        matched = matches.status[i] == MATCHED
        assert names[i] == (SKY.sources[i]["AllWISE"] if matched else None)
        assert (reason is not None) == bool(failed[i])
        assert np.isnan(matches.separation_arcsec[i]) != matched
    assert np.nanmax(matches.separation_arcsec, initial=0.3) <= 0.300001


def nothing_is_wrong(matches: Matches) -> None:
    check(matches, matches.status == FAILED)


ALL = np.ones(POSITIONS, np.bool_)


def test_the_protocol() -> None:
    server = FakeCds(SKY)
    check(match(server, confirm=False))
    (request,) = server.seen
    form = server.parts(request)
    assert (request.method, request.path) == ("POST", "/sync")
    assert form == {
        "request": "xmatch",
        "distMaxArcsec": "1.0",
        "selection": "best",
        "RESPONSEFORMAT": "csv",
        "cat2": "vizier:II/328/allwise",
        "colRA1": "ra_in",
        "colDec1": "dec_in",
        "cols2": ",".join(ALLWISE_COLUMNS),
        "cat1": form["cat1"],
    }
    header, *rows = form["cat1"].splitlines()
    assert header == ",ra_in,dec_in"
    assert [tuple(map(float, row.split(","))) for row in rows] == [(i, RA[i], DEC[i]) for i in range(POSITIONS)]


def test_positions_are_sent_to_the_last_bit() -> None:
    server = FakeCds(SKY)
    values = np.array([np.nextafter(180.0, 0.0), 1e-9, 359.99999999999994, 0.1 + 0.2])
    with serving(server) as url:
        CdsMatcher(service_url=url, http=FAST).match(values, values / 8.0)
    rows = server.parts(server.seen[0])["cat1"].splitlines()[1:]
    assert [float(row.split(",")[1]) for row in rows] == values.tolist()


# Bad answers that pass: three of them, and the fourth is good.
TRANSIENT = ("500", "502", "503", "504", "html", "page", "empty", "truncated", "hangs up")
WRONG = (
    *("no col1", "no echo", "no distance", "no W1mag", "renamed column", "swapped sources", "other numbers"),
    *("numbers of nobody", "far", "text for a number", "cut in a line"),
)


@pytest.mark.parametrize("mood", TRANSIENT + WRONG)
def test_a_bad_answer_is_asked_again(mood: str) -> None:
    server = FakeCds(SKY, lambda number: mood if number < 3 else "good")
    check(match(server))
    assert len({request.raw for request in server.seen[:4]}) == 1


@pytest.mark.parametrize("mood", TRANSIENT + WRONG)
def test_answers_that_stay_bad_fail_with_the_reason(mood: str) -> None:
    server = FakeCds(SKY, lambda _: mood)
    matches = match(server)
    check(matches, ALL)
    assert len(server.seen) == 4
    assert "asked 4 times" in matches.errors[0].as_py()


@pytest.mark.parametrize("mood", ["401", "redirect"])
def test_a_service_that_refuses_everything_is_asked_once(mood: str) -> None:
    server = FakeCds(SKY, lambda _: mood)
    matches = match(server)
    check(matches, ALL)
    assert len(server.seen) == 1
    assert "refuses with HTTP" in matches.errors[0].as_py()


@pytest.mark.parametrize("mood", ["reordered", "repeated", "unframed"])
def test_harmless_oddities(mood: str) -> None:
    check(match(FakeCds(SKY, lambda _: mood)))


class TestLostRows:
    """Answers that are whole tables, but not of all the rows."""

    @pytest.mark.parametrize("mood", ["first half", "last half"])
    @pytest.mark.parametrize("bad", [(0,), (1,), (0, 1), (1, 2, 3), (0, 2)])
    def test_a_second_answer_finds_them(self, mood: str, bad: tuple[int, ...]) -> None:
        check(match(FakeCds(SKY, lambda number: mood if number in bad else "good")))

    @pytest.mark.parametrize("mood", ["first half", "last half"])
    def test_a_service_that_always_loses_rows_never_makes_a_no_match(self, mood: str) -> None:
        matches = match(FakeCds(SKY, lambda _: mood))
        nothing_is_wrong(matches)
        assert FAILED in matches.status

    def test_an_empty_table_is_not_believed_once_a_match_is_known(self) -> None:
        server = FakeCds(SKY)
        with serving(server) as url:
            matcher = CdsMatcher(service_url=url, http=FAST)
            check(matcher.match(RA, DEC))
            server.mood = lambda _: "nothing"
            check(matcher.match(RA, DEC), ALL)
            server.mood = lambda _: "good"
            check(matcher.match(RA, DEC))

    def test_without_confirmation_they_are_lost(self) -> None:
        """Why the second answer is asked for."""
        matches = match(FakeCds(SKY, lambda _: "first half"), confirm=False)
        assert (matches.status == NO_MATCH).sum() > (EXPECTED == NO_MATCH).sum()

    def test_a_second_answer_that_does_not_come(self) -> None:
        server = FakeCds(SKY, lambda number: "good" if number == 0 else "500")
        matches = match(server)
        check(matches, EXPECTED == NO_MATCH)
        assert "no second answer to confirm" in matches.errors[0].as_py()


class TestPieces:
    @pytest.mark.parametrize("most", [2, 3, 7, 20])
    def test_a_size_that_the_service_refuses(self, most: int) -> None:
        check(match(FakeCds(SKY, most_rows=most)))

    @pytest.mark.parametrize("bad", [(0,), (59,), (17,), (3, 4, 5, 40)])
    def test_bad_rows_fail_alone(self, bad: tuple[int, ...]) -> None:
        server = FakeCds(SKY)
        server.refuses = lambda ra, dec: any(ra == RA[i] for i in bad)
        matches = match(server)
        check(matches, np.isin(np.arange(POSITIONS), bad))
        assert "refuses with HTTP 400 (bad row)" in matches.errors[bad[0]].as_py()
        assert len(server.seen) < 60

    def test_a_service_that_refuses_all_rows_is_not_asked_for_each(self) -> None:
        server = FakeCds(Sky([]))
        server.refuses = lambda ra, dec: True
        ra = np.linspace(0.0, 359.0, 2000)
        with serving(server) as url:
            matches = CdsMatcher(service_url=url, http=FAST).match(ra, ra / 10.0)
        assert set(matches.status) == {FAILED}
        assert len(server.seen) < 100

    def test_one_row(self) -> None:
        server = FakeCds(SKY)
        with serving(server) as url:
            matcher = CdsMatcher(service_url=url, http=FAST)
            for i in (0, 1):
                found = matcher.match(RA[i : i + 1], DEC[i : i + 1])
                assert found.status.tolist() == [EXPECTED[i]]
        assert all(len(server.parts(request)["cat1"].splitlines()) >= 3 for request in server.seen)

    def test_batches_are_asked_for_at_once_but_not_too_many(self) -> None:
        server = FakeCds(SKY, lambda number: "500" if number % 4 == 0 else "good", work_s=0.01)
        check(match(server, batch_rows=5, http=replace(FAST, requests_at_once=3, retries=9)))
        assert server.most_at_once == 3

    def test_too_slow_for_many_rows(self) -> None:
        """Batches that cost the service too much time are halved."""
        ra = np.linspace(0.0, 359.0, 1200)
        server = FakeCds(Sky([]))
        answer = server.answer

        def answer_few(request):  # type: ignore[no-untyped-def]
            few = server.parts(request)["cat1"].count("\n") < 700
            return answer(request) if few else server.spoil("504", request, lambda: answer(request))

        server.answer = answer_few  # type: ignore[method-assign]
        with serving(server) as url:
            matches = CdsMatcher(service_url=url, http=replace(FAST, retries=0)).match(ra, ra / 10.0)
        assert set(matches.status) == {NO_MATCH}


@pytest.mark.parametrize("mood", ["slow", "trickle"])
def test_slow_answers(mood: str) -> None:
    http = replace(FAST, timeout_s=0.15, retries=1)
    server = FakeCds(SKY, lambda number: mood if number == 0 else "good")
    check(match(server, http=http))
    matches = match(FakeCds(SKY, lambda _: mood), http=http)
    check(matches, ALL)
    assert "no whole answer within 0.15 s" in matches.errors[0].as_py()


MOODS = st.sampled_from(
    ["good"] * 6 + [*TRANSIENT, *WRONG, "reordered", "repeated", "first half", "last half", "nothing"]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(MOODS, max_size=60), st.integers(6, 40))
def test_whatever_the_mood_nothing_is_wrong(days: list[str], batch_rows: int) -> None:
    """Positions are matched or unmatched rightly, or failed; the service has told a match before."""
    server = FakeCds(SKY)
    with serving(server) as url:
        http = replace(FAST, requests_at_once=1, retries=2, retry_interval_s=0.0)
        matcher = CdsMatcher(service_url=url, http=http, batch_rows=batch_rows)
        matcher.match(RA, DEC)
        server.seen.clear()
        server.mood = lambda number: days[number] if number < len(days) else "good"
        nothing_is_wrong(matcher.match(RA, DEC))


class TestSettings:
    def test_names_of_tables(self) -> None:
        assert CDS_URL.startswith("https://")
        assert cds_table("allwise").name == cds_table("II/328/allwise").name == "vizier:II/328/allwise"
        assert cds_table("vizier:II/328/allwise") is cds_table("allwise")
        assert cds_table("gaia-dr2").name == "vizier:I/345/gaia2"
        assert cds_table("sdss-dr12").name == "vizier:V/147/sdss12"
        assert cds_table("I/355/gaiadr3").name == "vizier:I/355/gaiadr3"
        assert cds_table("simbad").name == "simbad"

    def test_types_of_columns(self) -> None:
        assert list(CdsMatcher().types) == list(ALLWISE_COLUMNS)
        assert CdsMatcher(columns=["W2mag", "qph"]).types == {
            "AllWISE": pa.string(),
            "W2mag": pa.float64(),
            "qph": pa.string(),
        }
        columns = ["Source:int64", "Gmag:double", "Class"]
        assert CdsMatcher("I/355/gaiadr3", columns=columns).types == {
            "Source": pa.int64(),
            "Gmag": pa.float64(),
            "Class": pa.string(),
        }
        assert CdsMatcher("gaia-dr2", columns=["parallax"]).types["source_id"] == pa.int64()

    def test_a_whole_number_keeps_its_digits(self) -> None:
        source = {"source_id": "1635721458409799680", "ra": "10.0", "dec": "20.0", "parallax": "", "RAJ2000": "10.0"}
        server = FakeCds(Sky([source | {"DEJ2000": "20.0"}], "source_id"))
        with serving(server) as url:
            found = CdsMatcher("gaia-dr2", columns=["source_id", "parallax"], service_url=url, http=FAST).match(
                [10], [20]
            )
        assert found.columns.to_pylist() == [{"source_id": 1635721458409799680, "parallax": None}]

    @pytest.mark.parametrize(
        ("matcher", "message"),
        [
            (CdsMatcher(radius_arcsec=0.0), "radius"),
            (CdsMatcher(radius_arcsec=200.0), "up to 180 arcsec"),
            (CdsMatcher(service_url="cds"), "address"),
            (CdsMatcher(batch_rows=0), "batch"),
            (CdsMatcher(columns=["W1mag:float"]), "the types are double, int64, string"),
            (CdsMatcher(columns=["W1mag", "W1mag"]), "asked twice"),
            (CdsMatcher(columns=["ra_in"]), "every answer has it"),
            (CdsMatcher("I/355/gaiadr3"), "name the columns wanted"),
            (CdsMatcher(http=replace(FAST, retries=-1)), "retries"),
        ],
    )
    def test_mistakes(self, matcher: CdsMatcher, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            matcher.validate()


def test_a_matcher_of_another_process_starts_anew() -> None:
    server = FakeCds(SKY)
    with serving(server) as url:
        matcher = CdsMatcher(service_url=url, http=FAST)
        matcher.match(RA, DEC)
        copy = pickle.loads(pickle.dumps(matcher))
        assert "_state" not in vars(copy)
        check(copy.match(RA, DEC))
