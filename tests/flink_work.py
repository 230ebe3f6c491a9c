"""What the tests let Flink's Python workers do; workers import it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder, PickleCoder, VarIntCoder
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp

KEYS = 5
# Of event time, s; each number is a second after the one before.
SPAN = 50


def keyed(number: int) -> tuple[int, int]:
    return number % KEYS, number


def slow(number: int, folder: str) -> int:
    """Print more than a pipe holds, show that the work has begun, and take a moment."""
    print("x" * 1000)
    (Path(folder) / "begun").touch()
    time.sleep(0.01)
    return number


def write_sum(group: tuple[int, Iterable[int]], folder: str) -> None:
    """Write the sum of a group where a repetition finds it again."""
    key, numbers = group
    path = Path(folder) / f"{key}.sum"
    partial = path.with_name(f".{key}.{os.getpid()}")
    partial.write_text(str(sum(numbers)))
    partial.rename(path)


def sums(folder: Path) -> dict[int, int]:
    return {int(path.stem): int(path.read_text()) for path in folder.glob("*.sum")}


@dataclass
class Mark(CheckpointMark):
    following: int

    def finalize_checkpoint(self) -> None:
        pass


@dataclass(frozen=True)
class Numbers(UnboundedSource):
    """0, 1, 2, ... for ever, with a pause after every number."""

    pause_s: float = 0.005

    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        return NumbersReader(self, 0 if checkpoint_mark is None else checkpoint_mark.following)  # type: ignore[attr-defined]

    def get_checkpoint_mark_coder(self) -> Coder:
        return PickleCoder()


class NumbersReader(UnboundedReader):
    def __init__(self, source: Numbers, following: int) -> None:
        self._source, self._following = source, following

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        time.sleep(self._source.pause_s)
        self._following += 1
        return True

    def get_current(self) -> int:
        return self._following - 1

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp(self.get_current())

    def get_watermark(self) -> Timestamp:
        return Timestamp(self._following)

    def get_checkpoint_mark(self) -> Mark:
        return Mark(self._following)

    def close(self) -> None:
        pass


def note(folder: str, what: str, *values: int) -> None:
    """Put a line into a file of this process."""
    with open(Path(folder) / f"{os.getpid()}.{what}", "a") as file:
        file.write(f"{' '.join(map(str, values))}\n")


def noted(folder: Path, what: str) -> set[tuple[int, ...]]:
    """All different lines that were put; one that a killed process did not end does not count."""
    lines = [line for path in folder.glob(f"*.{what}") for line in path.read_text().splitlines(keepends=True)]
    return {tuple(map(int, line.split())) for line in lines if line.endswith("\n")}


class CountByKey(beam.DoFn):
    """Note each number beside how many its key had before, and the end of each span of event time when it has come."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    ENDS = TimerSpec("ends", TimeDomain.WATERMARK)

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(
        self,
        element: tuple[int, int],
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        ends: Any = beam.DoFn.TimerParam(ENDS),  # noqa: B008
    ) -> None:
        number, before = element[1], count.read() or 0
        count.write(before + 1)
        end = (number // SPAN + 1) * SPAN
        ends.set(Timestamp(end), dynamic_timer_tag=str(end))
        note(self._folder, "counts", number, before)

    @on_timer(ENDS)
    def at_end(
        self,
        key: Any = beam.DoFn.KeyParam,
        time: Any = beam.DoFn.TimestampParam,
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
    ) -> None:
        end = time.micros // 1_000_000
        note(self._folder, "ends", key, end, int(count.read() >= end // KEYS))


def note_window(group: tuple[int, Iterable[int]], folder: str, window: Any = beam.DoFn.WindowParam) -> None:
    note(folder, "windows", group[0], window.end.micros // 1_000_000, sum(group[1]))


def count_numbers(pipeline: beam.Pipeline, folder: Path) -> None:
    """Keyed state, timers and windows over numbers that never end."""
    numbers = pipeline | ReadFromUnboundedSource(Numbers(), max_read_time_seconds=0.3)
    # Each from a PCollection of its own: Beam names a stage by what it reads, and a savepoint finds its states by that.
    counted = numbers | "Key counts" >> beam.Map(keyed).with_output_types(tuple[int, int])
    counted | beam.ParDo(CountByKey(str(folder)))
    (
        numbers
        | "Key windows" >> beam.Map(keyed).with_output_types(tuple[int, int])
        | beam.WindowInto(FixedWindows(SPAN))
        | beam.GroupByKey()
        | "Note windows" >> beam.Map(note_window, str(folder))
    )


@dataclass(frozen=True)
class IdleNumbers(Numbers):
    """A number every few seconds, and in between nothing for as long as one waits."""

    pause_s: float = 1.0
    every_s: float = 5.0

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        return IdleReader(self, 0 if checkpoint_mark is None else checkpoint_mark.following)  # type: ignore[attr-defined]


class IdleReader(NumbersReader):
    _source: IdleNumbers
    _due_s = 0.0

    def advance(self) -> bool:
        if time.monotonic() < self._due_s:
            time.sleep(self._source.pause_s)
            return False
        self._due_s = time.monotonic() + self._source.every_s
        self._following += 1
        return True
