"""What could not be processed: a value with its reason, and the files that keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastavro

from alerts.container import sync_marker
from alerts.files import readable, replacing
from schemas import load_schema


@dataclass(frozen=True)
class DeadLetter:
    """A packet, or a part of one, that could not be processed.

    Attributes
    ----------
    stage : str
        ``read``, ``decode``, ``crossmatch`` or ``write``.
    reason : str
        One sentence.
    source, member : str
        Where it was found.
    payload : bytes
        Original bytes; a container of its own wherever the alert could be told apart.
    position : int
        Byte within the member at which reading failed, or -1.
    candid : int, optional
        Alert identifier, where it is known.
    """

    stage: str
    reason: str
    source: str
    member: str
    payload: bytes
    position: int = -1
    candid: int | None = None


def write_dead_letters(path: Path, letters: Iterable[DeadLetter]) -> int:
    """Write letters to an Avro file, complete or not at all; give their number."""
    records = [{key: _writable(value) for key, value in asdict(letter).items()} for letter in letters]
    schema = load_schema("dead_letter")
    with replacing(path) as file:
        fastavro.writer(file, schema, records, codec="deflate", sync_marker=sync_marker(path.name))
    return len(records)


def _writable(value: Any) -> Any:
    """Replace what is not Unicode in a text: a file's name may hold any bytes."""
    return readable(value) if isinstance(value, str) else value


def read_dead_letters(path: Path) -> Iterator[DeadLetter]:
    """Read letters back."""
    with open(path, "rb") as file:
        for record in fastavro.reader(file):
            assert isinstance(record, dict)
            yield DeadLetter(**record)
