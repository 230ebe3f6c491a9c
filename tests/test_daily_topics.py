"""Daily topics against APF's rules (alerce.md 3.3)."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.topics import DailyTopics

MOMENTS = st.datetimes(datetime(2015, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
HOURS = st.integers(0, 23)
DAYS = st.integers(1, 30)


@pytest.mark.parametrize(
    ("now", "written", "read"),
    [
        ("2026-11-21T21:59:59+00:00", "ztf_20261121", ["ztf_20261119", "ztf_20261120", "ztf_20261121"]),
        ("2026-11-21T22:00:00+00:00", "ztf_20261122", ["ztf_20261119", "ztf_20261120", "ztf_20261121", "ztf_20261122"]),
        ("2026-11-22T00:00:00+00:00", "ztf_20261122", ["ztf_20261120", "ztf_20261121", "ztf_20261122"]),
        ("2026-12-31T23:30:00+00:00", "ztf_20270101", ["ztf_20261229", "ztf_20261230", "ztf_20261231", "ztf_20270101"]),
        # The hour is that of UTC: this is 01:30 of the next day there.
        ("2026-11-21T21:30:00-04:00", "ztf_20261122", ["ztf_20261120", "ztf_20261121", "ztf_20261122"]),
    ],
)
def test_topics_of_a_moment(now: str, written: str, read: list[str]) -> None:
    topics = DailyTopics("ztf_%s", retention_days=3)
    assert topics.to_write(datetime.fromisoformat(now)) == written
    assert list(topics.to_read(datetime.fromisoformat(now))) == read


@given(MOMENTS, HOURS, DAYS)
def test_those_of_the_last_days_are_read_and_that_of_tomorrow_from_the_hour_on(
    now: datetime, hour: int, days: int
) -> None:
    dates = [now.date() - timedelta(days=back) for back in range(days)]
    if now.hour >= hour:
        dates.append(now.date() + timedelta(days=1))
    topics = DailyTopics("a.%s.b", "%Y-%m-%d", hour, days)
    assert list(topics.to_read(now)) == [f"a.{day.isoformat()}.b" for day in sorted(dates)]


@given(MOMENTS, HOURS, st.integers(2, 30), st.floats(0, 1))
def test_what_is_written_is_read_until_it_expires(now: datetime, hour: int, days: int, share: float) -> None:
    topics = DailyTopics("ztf_%s", change_hour=hour, retention_days=days)
    earlier = now - share * timedelta(days=days - 1)
    assert topics.to_write(earlier) in topics.to_read(now)


@given(MOMENTS, st.integers(-12, 12))
def test_the_zone_of_the_time_does_not_matter(now: datetime, hours: int) -> None:
    topics = DailyTopics("ztf_%s")
    there = now.astimezone(timezone(timedelta(hours=hours)))
    assert (topics.to_read(there), topics.to_write(there)) == (topics.to_read(now), topics.to_write(now))


def test_days_with_the_same_name_are_one_topic() -> None:
    topics = DailyTopics("ztf_%s", "%Y%m", retention_days=8)
    assert topics.to_read(datetime(2026, 12, 3, tzinfo=UTC)) == ("ztf_202611", "ztf_202612")


def test_several_formats_are_read_and_the_first_is_written() -> None:
    topics = DailyTopics("ztf_%s_1, ztf_%s_3", retention_days=2)
    now = datetime(2026, 12, 3, tzinfo=UTC)
    assert topics.to_read(now) == ("ztf_20261202_1", "ztf_20261202_3", "ztf_20261203_1", "ztf_20261203_3")
    assert topics.to_write(now) == "ztf_20261203_1"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"topic_format": "ztf"}, "%s"),
        ({"topic_format": "%s_%s"}, "%s"),
        ({"topic_format": "%s", "change_hour": 24}, "24"),
        ({"topic_format": "%s", "retention_days": 0}, "0"),
    ],
)
def test_senseless_settings_are_named(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DailyTopics(**wrong)
