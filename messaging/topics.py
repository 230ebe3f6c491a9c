"""Topics of a day, as ALeRCE's steps name them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class DailyTopics:
    """One topic per day (APF's ``DailyTopicStrategy``, alerce.md 3.3).

    Attributes
    ----------
    topic_format : str
        With one ``%s`` for the date.
    date_format : str
        As of :meth:`datetime.datetime.strftime`.
    change_hour : int
        Hour (UTC) from which on tomorrow's topic is in use.
    retention_days : int
        How many days back topics are read, today included.

    Raises
    ------
    ValueError
        If one of them makes no sense; the message names it.
    """

    topic_format: str
    date_format: str = "%Y%m%d"
    change_hour: int = 22
    retention_days: int = 8

    def __post_init__(self) -> None:
        if self.topic_format.count("%s") != 1:
            raise ValueError(f"the format of daily topics must hold %s once, for the date: {self.topic_format!r}")
        if not 0 <= self.change_hour <= 23:
            raise ValueError(f"the hour at which the daily topic changes must be 0 to 23, not {self.change_hour}")
        if self.retention_days < 1:
            raise ValueError(f"daily topics must be kept for at least one day, not {self.retention_days}")

    def to_read(self, now: datetime) -> tuple[str, ...]:
        """Topics that hold what is not yet deleted, the oldest first."""
        newest = self._newest(now)
        oldest = now.astimezone(UTC) - timedelta(days=self.retention_days - 1)
        days = (newest.date() - oldest.date()).days
        return tuple(self._topic(newest - timedelta(days=back)) for back in range(days, -1, -1))

    def to_write(self, now: datetime) -> str:
        """Topic that messages go to."""
        return self._topic(self._newest(now))

    def _newest(self, now: datetime) -> datetime:
        now = now.astimezone(UTC)
        return now + timedelta(days=1) if now.hour >= self.change_hour else now

    def _topic(self, day: datetime) -> str:
        return self.topic_format % day.strftime(self.date_format)
