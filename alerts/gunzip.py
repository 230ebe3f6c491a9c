"""Inflating gzip streams without losing what precedes a damage.

The readers of the gzip modules give up all of a read in which they meet a damage; with reads of megabytes, that would
be a hundred packets. This one gives every byte that can be inflated, and raises when it is asked for more.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any, BinaryIO, Final, cast

from zlib_ng import gzip_ng, zlib_ng

from alerts.container import ZlibError

# What inflating raises when the bytes are at fault.
DAMAGE: Final = (gzip.BadGzipFile, EOFError, ZlibError)
MAGIC: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31
_INPUT_BYTES: Final = 4 << 20


class FastGunzip:
    """Inflated bytes of a stream of gzip members that can be opened again.

    The library's reader inflates straight into the caller's memory. When it meets a damage, the file is inflated again
    by :class:`Gunzip`, up to the very byte.

    Parameters
    ----------
    stream : object with ``read`` and ``readinto``
    again : callable
        Opens the stream anew, at its beginning.
    """

    def __init__(self, stream: Any, again: Callable[[], Any]) -> None:
        self._fast = gzip_ng._GzipReader(cast(BinaryIO, stream), _INPUT_BYTES)
        self._again = again
        self._slow: Gunzip | None = None
        self._given = 0

    def readinto(self, buffer: memoryview) -> int:
        """Inflate into memory; give the number of bytes, 0 at the end. Raises like :meth:`Gunzip.readinto`."""
        if self._slow is None:
            try:
                count = self._fast.readinto(buffer)
                self._given += count
                return count
            except DAMAGE:
                self._slow = Gunzip(self._again())
                left = self._given
                while left:
                    passed = self._slow.read(min(left, _INPUT_BYTES))
                    if not passed:
                        raise OSError("the file changed while it was read") from None
                    left -= len(passed)
        return self._slow.readinto(buffer)

    def read(self, size: int) -> bytes:
        """Inflate up to `size` bytes; empty at the end. Raises like :meth:`Gunzip.readinto`."""
        data = bytearray(size)
        return bytes(memoryview(data)[: self.readinto(memoryview(data))])


class Gunzip:
    """Inflated bytes of a stream of gzip members.

    Parameters
    ----------
    stream : object with ``read``
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._inflate: Any = None
        self._input = b""
        self._fault: Exception | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Inflate into memory; give the number of bytes, 0 at the end.

        Raises
        ------
        EOFError
            If the stream ends within a member.
        gzip.BadGzipFile
            If something else follows a member.
        zlib_ng.error
            If the bytes are damaged, or a member's checksum is wrong.
        OSError
            What the stream raises.
        """
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        """Inflate up to `size` bytes; empty at the end. Raises like :meth:`readinto`."""
        while self._fault is None:
            if not self._input:
                self._input = self._stream.read(_INPUT_BYTES)
            if self._inflate is None and not self._begin_member():
                return b""
            out = self._inflate_some(size)
            if self._inflate.eof:
                self._input = self._inflate.unused_data
                self._inflate = None
            else:
                self._input = self._inflate.unconsumed_tail
            if out:
                return out
        raise self._fault

    def _begin_member(self) -> bool:
        # Members may be followed by zeros.
        self._input = self._input.lstrip(b"\0")
        if len(self._input) < len(MAGIC):
            self._input += self._stream.read(_INPUT_BYTES)
        if not self._input:
            return False
        if not self._input.startswith(MAGIC):
            raise gzip.BadGzipFile("something else than a gzip member follows")
        self._inflate = zlib_ng.decompressobj(_GZIP_WBITS)
        return True

    def _inflate_some(self, size: int) -> bytes:
        if not self._input:
            # What the inflater still holds, in case that the last call filled its memory.
            out = self._inflate.decompress(b"", size)
            if not out and not self._inflate.eof:
                self._fault = EOFError("the compressed file ends before its end mark")
            return out
        before = self._inflate.copy()
        try:
            return self._inflate.decompress(self._input, size)
        except ZlibError as error:
            self._fault = error
            self._inflate = before
            return self._up_to_damage()

    def _up_to_damage(self) -> bytes:
        """Inflate the input in ever smaller steps, up to the byte that is damaged."""
        pieces, at, step = [], 0, 1 << 16
        while step:
            before = self._inflate.copy()
            try:
                pieces.append(self._inflate.decompress(self._input[at : at + step]))
                at += step
            except ZlibError:
                self._inflate = before
                step //= 16
        return b"".join(pieces)
