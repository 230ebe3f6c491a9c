"""Feeding dead letters again: packets go the whole way, rows that a database refused go to the database alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from alerts.dead_letters import DeadLetter, read_dead_letters, write_dead_letters
from alerts.reader import Limits
from alerts.sources import Source, find_sources
from database.client import Database
from transforms.counts import counters
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.reading import BATCHES, ReadAlerts
from transforms.writing import WriteTables
from xmatch.matcher import Matcher

_PACKETS: Final = ("read", "decode", "crossmatch")
_WRITE: Final = "write"


def letters_by_stage(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Files of packets, of what a database refused, and of what is not fed again; a file's letters are of one kind."""
    packets: list[Path] = []
    refused: list[Path] = []
    others: list[Path] = []
    for path in paths:
        letter = next(read_dead_letters(path), None)
        stage = letter.stage if letter else ""
        (packets if stage in _PACKETS else refused if stage == _WRITE else others).append(path)
    return packets, refused, others


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
    source = find_sources([str(path)])[0]
    source = Source(unit, source.location, source.paths, source.size)
    read = (
        pipeline | "Sources" >> beam.Create([source], reshuffle=False) | "Read alerts" >> ReadAlerts(Limits(), programs)
    )
    crossmatch = read[BATCHES] | "Crossmatch" >> Crossmatch(matchers)
    stored = crossmatch[MATCHED_ALERTS] | "Write tables" >> WriteTables(database)
    read[DEAD_LETTERS] | "Keep unreadable packets" >> WriteDeadLetters(letters, "read")
    crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> WriteDeadLetters(letters, "crossmatch")
    stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(letters, "write")
    result = pipeline.run()
    result.wait_until_finish()
    # Their alerts were counted when they were read first.
    return {name: number for name, number in counters(result).items() if name.startswith(("rows:", "dead_letters:"))}


def _is_row(letter: DeadLetter) -> bool:
    return letter.payload.startswith(b"{")


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
