"""The element that the classification takes: features of some objects, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from classifier.inputs import FeatureRows


@dataclass(frozen=True, eq=False)
class MessageTexts:
    """Messages as they came.

    Attributes
    ----------
    members : tuple of str
        Names.
    texts : tuple of bytes
    """

    members: tuple[str, ...]
    texts: tuple[bytes, ...]

    def packet(self, row: int) -> bytes:
        """One message."""
        return self.texts[row]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> MessageTexts:
        """Some of the messages, by number or by mask."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return MessageTexts(
            tuple(self.members[number] for number in numbers), tuple(self.texts[number] for number in numbers)
        )


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of some objects, and where they come from.

    Attributes
    ----------
    unit : str
        Unit of work, which names what is written from it.
    source : str
        File, archive or folder.
    rows : FeatureRows
    messages : AlertBatch or MessageTexts, optional
        The messages' bytes, if they come from messages.
    """

    unit: str
    source: str
    rows: FeatureRows
    messages: AlertBatch | MessageTexts | None = None

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.rows)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> FeatureBatch:
        """Batch of some of the objects, by number or by mask."""
        messages = None if self.messages is None else self.messages.take(rows)
        return FeatureBatch(self.unit, self.source, self.rows.take(rows), messages)

    def letter(self, row: int, stage: str, reason: str) -> DeadLetter:
        """Dead letter of one object: its message, or its row of the table as CSV."""
        oid, candid = self.rows.oid[row].as_py(), self.rows.candid[row].as_py()
        if self.messages is None:
            return DeadLetter(stage, reason, self.source, str(oid), self._as_csv(row), candid=candid)
        member, payload = self.messages.members[row], self.messages.packet(row)
        return DeadLetter(stage, f"{oid}: {reason}", self.source, member, payload, candid=candid)

    def _as_csv(self, row: int) -> bytes:
        values = {name: [value] for name, value in zip(self.rows.names, self.rows.values[row].tolist(), strict=True)}
        sink = pa.BufferOutputStream()
        keys = {"oid": self.rows.oid.slice(row, 1), "candid": self.rows.candid.slice(row, 1)}
        pa.csv.write_csv(pa.table({**keys, **values}), sink)
        return sink.getvalue().to_pybytes()


def sound_rows(batch: FeatureBatch, faults: dict[int, str]) -> Iterator[FeatureBatch | DeadLetter]:
    """Set aside the rows at fault."""
    for row, reason in sorted(faults.items()):
        yield batch.letter(row, "decode", reason)
    good = np.ones(len(batch), np.bool_)
    good[list(faults)] = False
    if good.any():
        yield batch.take(good) if faults else batch
