"""Files that appear under their final name only when they are complete, and locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

PARTIAL: Final = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file; the system frees it if the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def partial_name(path: Path) -> Path:
    """Name that a file bears while it is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def readable(name: str) -> str:
    """Give a file's name as text that can be stored: what is not UTF-8 in it becomes question marks."""
    return name.encode("utf-8", "replace").decode()


def remove_partial_files(folder: Path, units: Collection[str] | None = None) -> int:
    """Remove what a killed run left unfinished; give the number of files.

    Parameters
    ----------
    folder : Path
    units : collection of str, optional
        Only of these units of work: what stands before the first dot of a file's name; others may be at work.
    """
    left = [path for path in folder.rglob(f".*{PARTIAL}") if units is None or path.name[1:].partition(".")[0] in units]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)
