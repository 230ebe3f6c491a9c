"""Dead letters of a run, grouped by their stage and the kind of their reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from alerts.container import ContainerError
from alerts.dead_letters import read_dead_letters

_MOST_KINDS: Final = 100
_MOST_FILES: Final = 5
_OTHER: Final = "other reasons"
# What differs between letters of one kind: names of objects, quoted texts, files, numbers.
_VARIABLE: Final = (
    (re.compile(r"\bZTF\d{2}[a-z]{7}\b"), "‹object›"),
    (re.compile(r"'[^']*'|\"[^\"]*\""), "‹text›"),
    (re.compile(r"(?:[\w.-]*/)+[\w.-]+|\b[\w-]+\.(?:avro|gz|tar|parquet)\b"), "‹file›"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"), "‹n›"),
)


@dataclass(frozen=True)
class LetterGroup:
    """Dead letters of one kind.

    Attributes
    ----------
    stage, kind : str
        Where they were given up, and the reason without what differs.
    count : int
    reason, source, member : str
        Of the first of them.
    candid : int or None
    files : tuple of str
        Names of the first files that hold some.
    file_count : int
    """

    stage: str
    kind: str
    count: int
    reason: str
    source: str
    member: str
    candid: int | None
    files: tuple[str, ...]
    file_count: int


@dataclass(frozen=True)
class Letters:
    """Dead letters of a run.

    Attributes
    ----------
    read : int
        Letters that were read.
    complete : bool
        Whether these are all.
    groups : tuple of LetterGroup
        The largest first.
    unreadable : tuple of (str, str)
        Files that are damaged, and how.
    """

    read: int
    complete: bool
    groups: tuple[LetterGroup, ...]
    unreadable: tuple[tuple[str, str], ...]


@dataclass
class _Growing:
    reason: str
    source: str
    member: str
    candid: int | None
    count: int = 0
    files: list[str] = field(default_factory=list)
    file_count: int = 0
    newest_file: str = ""

    def add(self, file: str) -> None:
        self.count += 1
        if file != self.newest_file:
            self.newest_file = file
            self.file_count += 1
            if len(self.files) < _MOST_FILES:
                self.files.append(file)


def kind_of(reason: str) -> str:
    """Reason without the numbers, names and files that differ between letters of one kind."""
    for pattern, mark in _VARIABLE:
        reason = pattern.sub(mark, reason)
    return reason


def letter_files(folder: Path) -> list[Path]:
    """Files of dead letters."""
    return sorted(path for path in folder.glob("*.avro") if not path.name.startswith("."))


def read_letters(folder: Path, most: int, advance: Callable[[int], None] | None = None) -> Letters:
    """Read the dead letters of a folder, at most `most` of them.

    Parameters
    ----------
    folder : Path
    most : int
    advance : callable, optional
        Told 1 for each file.
    """
    growing: dict[tuple[str, str], _Growing] = {}
    unreadable: list[tuple[str, str]] = []
    read, complete = 0, True
    for path in letter_files(folder):
        try:
            for letter in read_dead_letters(path):
                if read == most:
                    complete = False
                    break
                read += 1
                key = (letter.stage, kind_of(letter.reason))
                if key not in growing and len(growing) >= _MOST_KINDS:
                    key = (letter.stage, _OTHER)
                first = _Growing(letter.reason, letter.source, letter.member, letter.candid)
                growing.setdefault(key, first).add(path.name)
        except (ContainerError, OSError) as error:
            unreadable.append((path.name, str(error)))
        if advance:
            advance(1)
        if not complete:
            break
    groups = [
        LetterGroup(
            *(stage, kind, one.count, one.reason, one.source, one.member, one.candid),
            *(tuple(one.files), one.file_count),
        )
        for (stage, kind), one in growing.items()
    ]
    groups.sort(key=lambda group: (-group.count, group.stage, group.kind))
    return Letters(read, complete, tuple(groups), tuple(unreadable))
