"""Writing enriched alerts to Avro containers of many records each."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np

from alerts.container import compress, header_bytes, sync_marker, write_long
from alerts.enrich import EnrichedAlerts
from storage.files import partial_name

BLOCK_BYTES: Final = 4 << 20
# The system is asked to bring written data to the disk as it comes, so that closing need not wait for all of it.
_SYNC_BYTES: Final = 64 << 20
_MAX_PENDING: Final = 2


class AlertFile:
    """One container; appears under its name when it is closed, not before.

    A thread of its own compresses and writes, while the caller goes on; at most two batches wait for it.

    Parameters
    ----------
    path : Path
    schema_text : str
    codec : {"zstandard", "deflate", "snappy", "null"}
    level : int, optional
        Of compression. Most of a packet is cutouts that are compressed already: high levels gain nothing, so that the
        default is a fast one.

    Attributes
    ----------
    alerts, bytes : int
        Records taken and their size before compression. (What is written so far depends on the thread's progress, so
        that files which are cut by it would not come out the same each time.)
    """

    def __init__(self, path: Path, schema_text: str, codec: str = "zstandard", level: int | None = None) -> None:
        self.path, self.codec, self.level = path, codec, level
        self.alerts = self.bytes = 0
        self._unsynced = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alert-file")
        self._pending: deque[Future[None]] = deque()
        self._sync = sync_marker(path.name, schema_text)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(partial_name(path), "wb", buffering=0)  # noqa: SIM115 (closed by close or abandon)
        try:
            self._put(header_bytes(schema_text, codec, self._sync))
        except BaseException:
            self.abandon()
            raise

    def _put(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            view = memoryview(part).cast("B")
            self._unsynced += len(view)
            while len(view):
                view = view[self._file.write(view) :]
        if self._unsynced >= _SYNC_BYTES:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsynced = 0

    def write(self, alerts: EnrichedAlerts) -> None:
        """Append records; what goes wrong may show at a later call, at the latest on closing."""
        self._pending.append(self._thread.submit(self._write, alerts))
        self.alerts += len(alerts)
        self.bytes += len(alerts.data)
        while len(self._pending) > _MAX_PENDING:
            self._pending.popleft().result()

    def _write(self, alerts: EnrichedAlerts) -> None:
        """Append records in blocks of some megabytes."""
        offsets = alerts.offsets
        row = 0
        while row < len(alerts):
            end = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK_BYTES, side="right")) - 1)
            block = compress(self.codec, alerts.data.data[offsets[row] : offsets[end]], self.level)
            self._put(write_long(end - row) + write_long(len(block)), block, self._sync)
            row = end

    def close(self) -> None:
        """Finish the file: it is on disk, whole, under its name."""
        try:
            while self._pending:
                self._pending.popleft().result()
            self._thread.shutdown()
            os.fsync(self._file.fileno())
            self._file.close()
            partial_name(self.path).replace(self.path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Give the file up and leave nothing of it."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()
        partial_name(self.path).unlink(missing_ok=True)

    def __enter__(self) -> AlertFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abandon()
