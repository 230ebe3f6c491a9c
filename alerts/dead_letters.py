"""What could not be processed: a value with its reason, and the files that keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import fastavro

from alerts.container import MAGIC, ContainerError, sync_marker
from schemas import load_schema
from storage.files import readable, replacing

_SCHEMA_NAMES: Final = (b'"dead_letter"', b'"alertbeam"')
_HEAD_BYTES: Final = 512


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


def are_dead_letters(head: bytes) -> bool:
    """Say whether a file that begins with these bytes, some hundred of them, is one of dead letters."""
    return head[: len(MAGIC)] == MAGIC and all(name in head[:_HEAD_BYTES] for name in _SCHEMA_NAMES)


def read_dead_letters(file: Path | BinaryIO) -> Iterator[DeadLetter]:
    """Read letters back, from a path or from an open file, block by block.

    Raises
    ------
    ContainerError
        If the file is damaged; what precedes the damage is given first.
    """
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            yield from read_dead_letters(opened)
        return
    try:
        for record in fastavro.reader(file):
            assert isinstance(record, dict)
            yield DeadLetter(**record)
    except (MemoryError, GeneratorExit):
        raise
    except Exception as error:
        raise ContainerError(f"dead letters that cannot be read: {type(error).__name__}: {error}") from error
