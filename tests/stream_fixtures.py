"""A source of given elements in bundles of their own, for pipelines as those of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder, PickleCoder
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

# Beam pickles a source for every bundle, and compresses what it creates: elements are handed over here.
_GIVEN: list[Sequence[tuple[Any, float]]] = []


class _Place(CheckpointMark):
    def __init__(self, place: int) -> None:
        self.place = place

    def finalize_checkpoint(self) -> None:
        pass


class _Reader(UnboundedReader):
    def __init__(self, elements: Sequence[tuple[Any, float]], place: int) -> None:
        self._elements, self._place = elements, place

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        self._place += 1
        return self._place <= len(self._elements)

    def get_current(self) -> Any:
        return self._elements[self._place - 1][0]

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp(self._elements[self._place - 1][1])

    def get_watermark(self) -> Timestamp:
        return self.get_current_timestamp() if self._place <= len(self._elements) else MAX_TIMESTAMP

    def get_checkpoint_mark(self) -> CheckpointMark:
        return _Place(min(self._place, len(self._elements)))


class Elements(UnboundedSource):
    """Elements with their times (seconds), in the order given, which is that of the watermark too.

    Parameters
    ----------
    number : int
        Of the list of elements among all that this process gave.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        """Read all in one."""
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: Any) -> UnboundedReader:
        """Go on after what was read."""
        return _Reader(_GIVEN[self._number], checkpoint_mark.place if checkpoint_mark else 0)

    def get_checkpoint_mark_coder(self) -> Coder:
        """Pickle."""
        return PickleCoder()


def in_bundles(elements: Sequence[tuple[Any, float]]) -> ReadFromUnboundedSource:
    """Read each element, with its time, in a bundle of its own."""
    _GIVEN.append(elements)
    return ReadFromUnboundedSource(Elements(len(_GIVEN) - 1), poll_interval=0.01, max_records_per_bundle=1)


def in_one_bundle(elements: Sequence[Any]) -> beam.PTransform:
    """Give all elements in one bundle."""
    _GIVEN.append([(element, 0.0) for element in elements])
    return "Numbers" >> beam.Create([len(_GIVEN) - 1]) | "Elements" >> beam.FlatMap(_elements)


def _elements(number: int) -> list[Any]:
    return [element for element, _ in _GIVEN[number]]
