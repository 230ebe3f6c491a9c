"""Reading in a thread of its own, some megabytes ahead of who needs it."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType
from typing import Any, Final

# Large: between blocks the thread must wait for the interpreter, up to 5 ms each time.
_BLOCK_BYTES: Final = 8 << 20
_BLOCKS: Final = 3


class ReadAhead:
    """A stream read in the background; inflating lets go of the interpreter, so that decoding goes on beside it.

    Parameters
    ----------
    stream : object with ``read``
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._ready: queue.Queue[bytes | BaseException] = queue.Queue(_BLOCKS)
        self._stop = threading.Event()
        self._block = memoryview(b"")
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                block = self._stream.read(_BLOCK_BYTES)
                self._ready.put(block)
                if not block:
                    return
        except BaseException as error:  # raised again where the reader meets it
            self._ready.put(error)

    def readinto(self, buffer: memoryview) -> int:
        """Read into memory; give the number of bytes, 0 at the end.

        Raises
        ------
        Exception
            What the stream raised, when all that came before it has been read.
        """
        if not self._block and self._end is None:
            found = self._ready.get()
            if isinstance(found, BaseException):
                self._end = found
            elif not found:
                self._end = EOFError()
            else:
                self._block = memoryview(found)
        if self._end is not None:
            if type(self._end) is EOFError and not self._end.args:
                return 0
            raise self._end
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; empty at the end. Raises like :meth:`readinto`."""
        data = bytearray(size)
        return bytes(memoryview(data)[: self.readinto(memoryview(data))])

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)
        self._thread.join()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
