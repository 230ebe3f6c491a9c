"""What the tests let Flink's Python workers do; workers import it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder, PickleCoder, VarIntCoder
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.timestamp import Timestamp

KEYS = 5


def keyed(number: int) -> tuple[int, int]:
    return number % KEYS, number


def print_a_lot(number: int) -> int:
    print("x" * 1_000_000)
    return number


def slow(number: int, folder: str) -> int:
    """Show that the work has begun, and take a moment."""
    (Path(folder) / "begun").touch()
    time.sleep(0.02)
    return number


def write_sum(key: int, numbers: Any, folder: str) -> None:
    """Write the sum of a group where a repetition finds it again."""
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
        return Timestamp(self._following)

    def get_watermark(self) -> Timestamp:
        return Timestamp(self._following)

    def get_checkpoint_mark(self) -> Mark:
        return Mark(self._following)

    def close(self) -> None:
        pass


class CountByKey(beam.DoFn):
    """Write each number beside how many its key had before, to a file of this process."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[int, int], count: Any = beam.DoFn.StateParam(COUNT)) -> Iterator[int]:  # noqa: B008
        before = count.read() or 0
        count.write(before + 1)
        with open(Path(self._folder) / f"{os.getpid()}.counts", "a") as file:
            file.write(f"{element[1]} {before}\n")
        yield element[1]


def counts(folder: Path) -> dict[int, set[int]]:
    """What was written beside each number."""
    found: dict[int, set[int]] = {}
    for path in folder.glob("*.counts"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                number, before = line.split()
                found.setdefault(int(number), set()).add(int(before))
    return found
