"""Answers of services kept on disk."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from remote_fixtures import FAST, FakeCds, FakeCrossWave, serving
from test_xmatch_remote_cds import DEC, EXPECTED, RA, SKY

from xmatch.cache import CachedMatcher, CacheError
from xmatch.cds import CdsMatcher
from xmatch.crosswave import CrossWaveMatcher
from xmatch.matcher import FAILED, Matches


def same(one: Matches, other: Matches) -> bool:
    return (
        np.array_equal(one.status, other.status)
        and np.array_equal(one.separation_arcsec, other.separation_arcsec, equal_nan=True)
        and one.columns.equals(other.columns)
        and one.columns.schema == other.columns.schema
        and one.errors.to_pylist() == other.errors.to_pylist()
        and (one.catalog, one.catalog_version) == (other.catalog, other.catalog_version)
    )


def test_a_position_is_asked_for_once(tmp_path: Path) -> None:
    server = FakeCds(SKY)
    with serving(server) as url:
        plain = CdsMatcher(service_url=url, http=FAST)
        cached = CachedMatcher(plain, tmp_path / "cache")
        cached.validate()
        expected = plain.match(RA, DEC)
        assert np.array_equal(expected.status, EXPECTED)
        first = cached.match(RA[:40], DEC[:40])
        before = len(server.seen)
        again = cached.match(RA[:40], DEC[:40])
        assert len(server.seen) == before
        assert same(first, again)
        order = np.array([50, 3, 3, 50, 12])
        assert cached.match(RA[order], DEC[order]).columns.equals(expected.columns.take(order))
        rows = server.parts(server.seen[before])["cat1"].splitlines()[1:]
        assert {float(row.split(",")[1]) for row in rows} == {RA[50]}
        assert same(pickle.loads(pickle.dumps(cached)).match(RA, DEC), expected)


def test_the_next_double_is_another_position(tmp_path: Path) -> None:
    server = FakeCds(SKY)
    with serving(server) as url:
        cached = CachedMatcher(CdsMatcher(service_url=url, http=FAST), tmp_path)
        cached.match(RA[:2], DEC[:2])
        before = len(server.seen)
        cached.match(np.nextafter(RA[:2], 0.0), DEC[:2])
        assert len(server.seen) > before


def test_failures_are_not_kept(tmp_path: Path) -> None:
    server = FakeCds(SKY, lambda _: "500")
    with serving(server) as url:
        cached = CachedMatcher(CdsMatcher(service_url=url, http=replace(FAST, retries=0)), tmp_path)
        failed = cached.match([*RA, np.nan], [*DEC, 0.0])
        assert set(failed.status) == {FAILED}
        assert failed.errors.null_count == 0
        server.mood = lambda _: "good"
        good = cached.match([*RA, np.nan], [*DEC, 0.0])
        assert np.array_equal(good.status, [*EXPECTED, FAILED])
        server.mood = lambda _: "500"
        assert same(cached.match([*RA, np.nan], [*DEC, 0.0]), good)


def test_all_that_an_answer_depends_on_has_its_own_answers(tmp_path: Path) -> None:
    plain = CdsMatcher(service_url="https://cds")
    others = [
        replace(plain, radius_arcsec=2.0),
        replace(plain, columns=["W1mag"]),
        replace(plain, columns=["W1mag", "qph:double"]),
        CdsMatcher("gaia-dr2"),
        CrossWaveMatcher("https://cds"),
        CrossWaveMatcher("https://other"),
        CrossWaveMatcher("https://cds", version="2"),
        CrossWaveMatcher("https://cds", radius_arcsec=1.0000000000000002),
    ]
    paths = {CachedMatcher(matcher, tmp_path).path for matcher in (plain, *others)}
    assert len(paths) == len(others) + 1
    # How a service is asked does not change its answer.
    asked = replace(plain, http=FAST, batch_rows=7)
    assert CachedMatcher(asked, tmp_path).path == CachedMatcher(plain, tmp_path).path


def test_names_and_numbers_of_crosswave(tmp_path: Path) -> None:
    with serving(FakeCrossWave(SKY)) as url:
        plain = CrossWaveMatcher(url, http=FAST)
        cached = CachedMatcher(plain, tmp_path)
        expected = plain.match(RA, DEC)
        assert same(cached.match(RA, DEC), expected)
        assert same(cached.match(RA, DEC), expected)


CHILD = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_xmatch_remote_cds import DEC, EXPECTED, RA
from remote_fixtures import FAST
from xmatch.cache import CachedMatcher
from xmatch.cds import CdsMatcher
cached = CachedMatcher(CdsMatcher(service_url={url!r}, http=FAST), Path({folder!r}))
for start in range({start}, 60, 2):
    part = slice(start, start + 20)
    assert np.array_equal(cached.match(RA[part], DEC[part]).status, EXPECTED[part])
"""


def test_several_processes_use_one_folder(tmp_path: Path) -> None:
    server = FakeCds(SKY)
    with serving(server) as url:
        values = {"tests": str(Path(__file__).parent), "url": url, "folder": str(tmp_path / "cache")}
        children = [subprocess.Popen([sys.executable, "-c", CHILD.format(**values, start=i)]) for i in range(2)]
        assert [child.wait() for child in children] == [0, 0]
        before = len(server.seen)
        cached = CachedMatcher(CdsMatcher(service_url=url, http=FAST), tmp_path / "cache")
        assert np.array_equal(cached.match(RA, DEC).status, EXPECTED)
        assert len(server.seen) == before


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="cannot be used"):
        CachedMatcher(CdsMatcher(), tmp_path / "file").validate()
    cached = CachedMatcher(CdsMatcher(), tmp_path)
    cached.path.write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(CacheError, match="cannot be used"):
        cached.validate()
