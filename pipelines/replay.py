"""Feeding dead letters again: packets go the whole way, what a sink refused goes to that sink alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from alerts.container import MAGIC
from alerts.dead_letters import DeadLetter, read_dead_letters, write_dead_letters
from alerts.reader import Limits
from alerts.sources import Source, find_sources
from database.client import Database
from transforms.counts import counters
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.kafka_sink import SendAlerts
from transforms.reading import BATCHES, ReadAlerts
from transforms.writing import WriteTables
from xmatch.matcher import Matcher

_PACKETS: Final = ("read", "decode", "crossmatch")
_WRITE, _SEND = "write", "send"


def letters_by_stage(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Files of packets, of what a sink refused, and of what is not fed again; a file's letters are of one kind."""
    packets: list[Path] = []
    refused: list[Path] = []
    others: list[Path] = []
    for path in paths:
        letter = next(read_dead_letters(path), None)
        stage = letter.stage if letter else ""
        again = stage in (_WRITE, _SEND) and letter is not None and (_is_row(letter) or _is_packet(letter))
        (packets if stage in _PACKETS else refused if again else others).append(path)
    return packets, refused, others


def is_unsent(path: Path) -> bool:
    """Say whether a file holds alerts that Kafka refused."""
    letter = next(read_dead_letters(path), None)
    return letter is not None and letter.stage == _SEND


def replay_refused(
    path: Path,
    unit: str,
    letters: Path,
    database: Database,
    matchers: tuple[Matcher, ...],
    pipeline: beam.Pipeline,
    programs: tuple[int, ...] = (1,),
) -> dict[str, int]:
    """Write once more what a database refused; what it refuses again becomes letters of this unit.

    Parameters
    ----------
    path : Path
        File of dead letters: alerts, or rows as JSON.
    unit : str
        Names the new letters.
    letters : Path
        Folder of dead letters.
    database : Database
    matchers : tuple of Matcher
        Alerts are crossmatched again for their rows.
    pipeline : beam.Pipeline
    programs : tuple of int
        Survey programmes wanted.
    """
    rows = [letter for letter in read_dead_letters(path) if _is_row(letter)]
    if rows:
        return _replay_rows(rows, unit, letters, database)
    matched = _crossmatched(path, unit, letters, matchers, pipeline, programs)
    stored = matched | "Write tables" >> WriteTables(database)
    stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(letters, _WRITE)
    return _run(pipeline)


def replay_unsent(
    path: Path,
    unit: str,
    letters: Path,
    sending: SendAlerts,
    matchers: tuple[Matcher, ...],
    pipeline: beam.Pipeline,
    programs: tuple[int, ...] = (1,),
) -> dict[str, int]:
    """Send once more the alerts that Kafka refused; parameters as of :func:`replay_refused`."""
    matched = _crossmatched(path, unit, letters, matchers, pipeline, programs)
    sent = matched | "Send alerts" >> sending
    sent[DEAD_LETTERS] | "Keep unsent alerts" >> WriteDeadLetters(letters, _SEND)
    return _run(pipeline)


def _crossmatched(
    path: Path,
    unit: str,
    letters: Path,
    matchers: tuple[Matcher, ...],
    pipeline: beam.Pipeline,
    programs: tuple[int, ...],
) -> beam.PCollection:
    source = find_sources([str(path)])[0]
    source = Source(unit, source.location, source.paths, source.size)
    read = (
        pipeline | "Sources" >> beam.Create([source], reshuffle=False) | "Read alerts" >> ReadAlerts(Limits(), programs)
    )
    crossmatch = read[BATCHES] | "Crossmatch" >> Crossmatch(matchers)
    read[DEAD_LETTERS] | "Keep unreadable packets" >> WriteDeadLetters(letters, "read")
    crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> WriteDeadLetters(letters, "crossmatch")
    return crossmatch[MATCHED_ALERTS]


def _run(pipeline: beam.Pipeline) -> dict[str, int]:
    result = pipeline.run()
    result.wait_until_finish()
    # Their alerts were counted when they were read first.
    kept = ("rows:", "sent:", "dead_letters:")
    return {name: number for name, number in counters(result).items() if name.startswith(kept)}


def _is_row(letter: DeadLetter) -> bool:
    return letter.payload.startswith(b"{")


def _is_packet(letter: DeadLetter) -> bool:
    return letter.payload.startswith(MAGIC)


def _replay_rows(rows: Sequence[DeadLetter], unit: str, folder: Path, database: Database) -> dict[str, int]:
    by_table: dict[str, list[tuple[DeadLetter, Mapping[str, Any]]]] = {}
    for letter in rows:
        for name, row in json.loads(letter.payload).items():
            by_table.setdefault(name, []).append((letter, row))
    result = database.write({name: pa.Table.from_pylist([row for _, row in found]) for name, found in by_table.items()})
    again = [
        DeadLetter(_WRITE, f"table {row.table}: {row.reason}", letter.source, letter.member, letter.payload)
        for row in result.refused
        for letter, _ in [by_table[row.table][row.index]]
    ]
    if again:
        write_dead_letters(folder / f"{unit}.{_WRITE}.0000.avro", again)
    counts = {f"rows:{name}": counted.written for name, counted in result.counts.items()}
    return counts | {"dead_letters:write": len(again)}


def count_letters(paths: Sequence[Path]) -> int:
    """Number of letters in files."""
    return sum(1 for path in paths for _ in read_dead_letters(path))


def letter_files(inputs: Sequence[str]) -> Iterator[Path]:
    """Files of dead letters in folders of runs, folders of letters, or named one by one."""
    for text in inputs:
        path = Path(text).expanduser().absolute()
        folder = path / "dead_letters" if (path / "dead_letters").is_dir() else path
        yield from sorted(folder.glob("[!.]*.avro")) if folder.is_dir() else [path]
