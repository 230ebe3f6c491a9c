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
        With one ``%s`` for the date; to read from, several formats may be given, separated by commas.
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
        for text in self._formats:
            if text.count("%s") != 1:
                raise ValueError(f"the format of daily topics must hold %s once, for the date: {text!r}")
        if not 0 <= self.change_hour <= 23:
            raise ValueError(f"the hour at which the daily topic changes must be 0 to 23, not {self.change_hour}")
        if self.retention_days < 1:
            raise ValueError(f"daily topics must be kept for at least one day, not {self.retention_days}")

    def to_read(self, now: datetime) -> tuple[str, ...]:
        """Topics that hold what is not yet deleted, the oldest first."""
        newest = self._newest(now)
        oldest = now.astimezone(UTC) - timedelta(days=self.retention_days - 1)
        days = (newest.date() - oldest.date()).days
        # Some formats name several days alike.
        return tuple(
            dict.fromkeys(
                self._topic(text, newest - timedelta(days=back))
                for back in range(days, -1, -1)
                for text in self._formats
            )
        )

    def to_write(self, now: datetime) -> str:
        """Topic that messages go to: that of the first format."""
        return self._topic(self._formats[0], self._newest(now))

    @property
    def _formats(self) -> tuple[str, ...]:
        return tuple(text.strip() for text in self.topic_format.split(","))

    def _newest(self, now: datetime) -> datetime:
        now = now.astimezone(UTC)
        return now + timedelta(days=1) if now.hour >= self.change_hour else now

    def _topic(self, text: str, day: datetime) -> str:
        return text % day.strftime(self.date_format)
