"""What tells that an input is not what it was, without reading it: cheap for an archive of terabytes."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO, Final

from alerts.nights import RemoteFile, ask
from alerts.sources import Source, is_url

_END_BYTES: Final = 1 << 20
_LOOSE_END_BYTES: Final = 4 << 10


def fingerprint(source: Source) -> str:
    """Short text that is the same for as long as a source's content is, and most probably another one otherwise.

    Times of files are left out: a copy has another one and the same content.

    * An archive or large file: its size, and a digest of its first and last MiB. The end of a gzip file holds the
      checksum of all of its content.
    * Loose files: their names (below the source's location), sizes, and last 4 KiB. A packet ends with the marker that
      its writer drew for it, while all begin with the same schema.
    * A web address: size and validator that its server gave, or gives when it is asked. Empty if it gives none or does
      not answer: nothing is known.

    Parameters
    ----------
    source : Source

    Raises
    ------
    OSError
        If a local file cannot be read.
    """
    if is_url(source.location):
        return _of_url(source)
    return _of_loose_files(source) if source.loose else _of_file(source.location)


def _of_url(source: Source) -> str:
    file: RemoteFile | None = RemoteFile(source.size, source.validator)
    if file == RemoteFile():
        try:
            file = ask(source.location, retries=1)
        except OSError:
            return ""
    return f"{file.size}:{file.validator}" if file and file != RemoteFile() else ""


def _of_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(file.read(_END_BYTES))
        digest.update(_end(file, size, min(_END_BYTES, max(0, size - _END_BYTES))))
    return _text(size, digest.hexdigest())


def _of_loose_files(source: Source) -> str:
    digest = hashlib.sha256()
    total = 0
    for path in source.paths:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            end = _end(file, size, min(size, _LOOSE_END_BYTES))
        name = os.fsencode(os.path.relpath(path, source.location))
        digest.update(b"%d:%b:%d:%b" % (len(name), name, size, hashlib.sha256(end).digest()))
        total += size
    return f"{len(source.paths)} files:{_text(total, digest.hexdigest())}"


def _end(file: BinaryIO, size: int, count: int) -> bytes:
    file.seek(size - count)
    return file.read(count)


def _text(size: int, digest: str) -> str:
    return f"{size}:{digest[:32]}"
