"""Writing enriched alerts to Avro containers of many records each."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np

from alerts.container import compress, header_bytes, sync_marker, write_long
from alerts.enrich import EnrichedAlerts
from alerts.files import partial_name

BLOCK_BYTES: Final = 4 << 20


class AlertFile:
    """One container; appears under its name when it is closed, not before.

    Parameters
    ----------
    path : Path
    schema_text : str
    codec : {"zstandard", "deflate", "snappy", "null"}
    level : int
        Of compression. Most of a packet is cutouts that are compressed already, so that high levels gain nothing.
    """

    def __init__(self, path: Path, schema_text: str, codec: str = "zstandard", level: int = 1) -> None:
        self.path, self.codec, self.level = path, codec, level
        self.alerts = self.bytes = 0
        self._sync = sync_marker(path.name, schema_text)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(partial_name(path), "wb", buffering=0)  # noqa: SIM115 (closed by close or abandon)
        self._put(header_bytes(schema_text, codec, self._sync))

    def _put(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                view = view[self._file.write(view) :]
            self.bytes += len(memoryview(part).cast("B"))

    def write(self, alerts: EnrichedAlerts) -> None:
        """Append records, in blocks of some megabytes."""
        offsets = alerts.offsets
        row = 0
        while row < len(alerts):
            end = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK_BYTES, side="right")) - 1)
            block = compress(self.codec, alerts.data.data[offsets[row] : offsets[end]], self.level)
            self._put(write_long(end - row) + write_long(len(block)), block, self._sync)
            self.alerts += end - row
            row = end

    def close(self) -> None:
        """Finish the file: it is on disk, whole, under its name."""
        os.fsync(self._file.fileno())
        self._file.close()
        partial_name(self.path).replace(self.path)

    def abandon(self) -> None:
        """Give the file up and leave nothing of it."""
        self._file.close()
        partial_name(self.path).unlink(missing_ok=True)

    def __enter__(self) -> AlertFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abandon()
