"""Reading packets in bounded portions, and turning each portion into batches and dead letters."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from alerts import kernel
from alerts.ahead import one_ahead
from alerts.batch import AlertBatch
from alerts.container import (
    MAGIC,
    MAX_HEADER_BYTES,
    SYNC_BYTES,
    ContainerError,
    Header,
    HeaderCache,
    WriterSchema,
    ZlibError,
    blocks,
    decompress,
    parse_header,
    read_long,
    single_block_container,
    what_instead,
)
from alerts.dead_letters import DeadLetter, are_dead_letters, read_dead_letters
from alerts.gunzip import DAMAGE, FastGunzip, Gunzip
from alerts.layout import SchemaError
from alerts.sources import Source, is_url, open_source
from storage.files import readable

# What is wrong with the bytes of a compressed file; any other OSError is that they cannot be had.
# Bytes asked for at a time.
_STEP: Final = 8 << 20
TAR_BLOCK: Final = 512
_ZEROS: Final = bytes(TAR_BLOCK)
_WITHOUT_DATA: Final = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
# A larger member is passed over.
MAX_MEMBER_BYTES: Final = 256 << 20
# Of something unreadable that is larger, only the beginning is kept.
MAX_PAYLOAD_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a portion: packets and bytes.

    24 MB, some 340 packets: larger pieces of memory are given back to the system each time and cost page faults
    (measured: 64 MB is a sixth slower).
    """

    alerts: int = 1000
    bytes: int = 24 << 20


@dataclass(frozen=True)
class EmptyContainer:
    """A valid container without a record: nothing to process and nothing to keep."""

    source: str
    member: str


@dataclass(frozen=True, eq=False)
class Portion:
    """Packets in memory.

    Attributes
    ----------
    data : uint8 array
    names : list of str
        Of the packets.
    starts, ends : list of int
        Bytes of each packet in `data`.
    first : int
        Number of the first packet within the source.
    """

    data: NDArray[np.uint8]
    first: int
    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, name: str, start: int, end: int) -> None:
        """Note a packet."""
        self.names.append(name)
        self.starts.append(start)
        self.ends.append(end)


class _ReadInto(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


Item = AlertBatch | DeadLetter | EmptyContainer


def read_source(
    source: Source,
    limits: Limits = Limits(),
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Item]:
    """Read a source to its end.

    Nothing that the source holds raises: what is damaged becomes a dead letter, and its neighbours go on.
    A portion of the source is in memory at a time.

    A source that cannot be had is another matter: an address that is not found, a connection that stays broken, a
    failing disk raise, because no packet is at fault and the run is to be started again when it is mended. (Of loose
    files, one that cannot be opened is a dead letter.)

    Parameters
    ----------
    source : Source
    limits : Limits
        Of a batch.
    progress : callable
        Told the bytes of the source that were read since the last call.

    Yields
    ------
    AlertBatch, DeadLetter or EmptyContainer

    Raises
    ------
    OSError
        If an archive, or a URL, cannot be opened or read further.
    """
    cache = HeaderCache()
    for item in one_ahead(read_portions(source, limits, progress)):
        if isinstance(item, Portion):
            yield from decode_portion(item, source, cache, limits)
        else:
            yield item


def read_portions(source: Source, limits: Limits, progress: Callable[[int], None]) -> Iterator[Portion | DeadLetter]:
    """Read a source in portions that fit in memory, not decoded yet; damaged bytes become dead letters.

    Of a file of dead letters, the packets that they hold are read.
    """
    if source.loose:
        yield from _portions_of_files(source, limits, progress)
        return
    try:
        with open_source(source.location) as raw:
            again = None if is_url(source.location) else partial(open_source, source.location)
            yield from _portions_of_stream(_Counted(raw, progress), again, source.location, limits)
    except DAMAGE as error:
        yield _unreadable(source.location, f"the file is damaged: {str(error)[:200]}")


class _Counted:
    """A stream that tells how much was read from it."""

    def __init__(self, raw: Any, progress: Callable[[int], None]) -> None:
        self._raw, self._progress = raw, progress

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._progress(len(data))
        return data

    def readinto(self, buffer: memoryview) -> int:
        count = self._raw.readinto(buffer) or 0
        self._progress(count)
        return count


def _unreadable(location: str, reason: str, member: str = "", payload: bytes = b"") -> DeadLetter:
    return DeadLetter("read", reason, location, member, payload[:MAX_PAYLOAD_BYTES])


class _Peekable:
    """A stream whose beginning can be looked at before it is read."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._head = raw, b""
        self.fault: Exception | None = None

    def peek(self, size: int) -> bytes:
        pieces, have = [self._head], len(self._head)
        while have < size and not self.fault:
            try:
                more = self._raw.read(min(size - have, _STEP))
            except DAMAGE as error:
                # What precedes the damage is given first.
                if not have:
                    raise
                self.fault = error
                break
            if not more:
                break
            pieces.append(more)
            have += len(more)
        self._head = b"".join(pieces)
        return self._head

    def read(self, size: int) -> bytes:
        if not self._head:
            if self.fault:
                raise self.fault
            return self._raw.read(size)
        head, self._head = self._head[:size], self._head[size:]
        return head

    def readinto(self, buffer: memoryview) -> int:
        if not self._head and not self.fault:
            return self._raw.readinto(buffer) or 0
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _portions_of_stream(
    raw: Any, again: Callable[[], Any] | None, location: str, limits: Limits
) -> Iterator[Portion | DeadLetter]:
    stream = _Peekable(raw)
    if stream.peek(2) == b"\x1f\x8b":
        stream = _Peekable(FastGunzip(stream, again) if again else Gunzip(stream))
    head = stream.peek(TAR_BLOCK)
    if _is_tar(head):
        yield from _portions_of_tar(stream, location, limits)
    elif are_dead_letters(head):
        yield from _portions_of_letters(stream, location, limits)
    elif head[:4] == MAGIC:
        yield from _portions_of_container(stream, location, limits)
    else:
        payload = stream.peek(MAX_PAYLOAD_BYTES)
        yield _unreadable(location, what_instead(head), payload=payload)


def _portions_of_files(
    source: Source, limits: Limits, progress: Callable[[int], None]
) -> Iterator[Portion | DeadLetter]:
    texts: list[tuple[str, bytes]] = []
    held = 0
    first = source.first
    for path in source.paths:
        name = readable(path[len(source.location) :].lstrip("/"))
        try:
            with open(path, "rb") as file:
                data = file.read()
            progress(len(data))
            if data[:2] == b"\x1f\x8b":
                data = _gunzip(data)
        except (OSError, EOFError, ZlibError, ContainerError) as error:
            yield _unreadable(source.location, f"reading failed: {error}", name)
            continue
        if are_dead_letters(data):
            yield from _portions_of_letters(io.BytesIO(data), source.location, limits, name)
            continue
        texts.append((name, data))
        held += len(data)
        if len(texts) >= limits.alerts or held >= limits.bytes:
            yield _portion_of_texts(texts, first)
            first += len(texts)
            texts, held = [], 0
    if texts:
        yield _portion_of_texts(texts, first)


def _portions_of_letters(stream: Any, location: str, limits: Limits, name: str = "") -> Iterator[Portion | DeadLetter]:
    """Packets of a file of dead letters under the names that they had; what is no packet will fail again."""
    texts: list[tuple[str, bytes]] = []
    held = first = 0
    try:
        for letter in read_dead_letters(io.BufferedReader(_Raw(stream))):
            texts.append((letter.member, letter.payload))
            held += len(letter.payload)
            if len(texts) >= limits.alerts or held >= limits.bytes:
                yield _portion_of_texts(texts, first)
                first += len(texts)
                texts, held = [], 0
    except ContainerError as error:
        yield _unreadable(location, str(error)[:300], name)
    if texts:
        yield _portion_of_texts(texts, first)


class _Raw(io.RawIOBase):
    """A stream as Python's buffered reader wants it."""

    def __init__(self, stream: _ReadInto) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return self._stream.readinto(memoryview(buffer).cast("B"))


def _gunzip(data: bytes) -> bytes:
    stream = _Peekable(Gunzip(io.BytesIO(data)))
    out = stream.peek(MAX_MEMBER_BYTES + 1)
    if len(out) > MAX_MEMBER_BYTES:
        raise ContainerError(f"the file inflates to more than {MAX_MEMBER_BYTES:,} bytes")
    if stream.fault:
        raise stream.fault
    return out


def _portion_of_texts(texts: list[tuple[str, bytes]], first: int) -> Portion:
    portion = Portion(np.frombuffer(b"".join(data for _, data in texts), dtype=np.uint8), first)
    position = 0
    for name, data in texts:
        portion.add(name, position, position + len(data))
        position += len(data)
    return portion


# -- tar -----------------------------------------------------------------------------------------------------------


def _fill(stream: _ReadInto, view: memoryview) -> tuple[int, str]:
    """Read until the memory is full or the stream ends; give the number of bytes, and the fault if there was one."""
    filled = 0
    try:
        while filled < len(view):
            count = stream.readinto(view[filled : filled + _STEP])
            if not count:
                break
            filled += count
    except DAMAGE as error:
        return filled, f"the archive cannot be read further: {str(error)[:200]}"
    return filled, ""


def _skip(stream: Any, count: int | None) -> str:
    """Pass over bytes, all that are left if `count` is None; give the fault if there was one."""
    scratch = memoryview(bytearray(1 << 20))
    while count is None or count > 0:
        wanted = len(scratch) if count is None else min(count, len(scratch))
        got, fault = _fill(stream, scratch[:wanted])
        if fault:
            return fault
        if got < wanted:
            return "" if count is None else "the archive ends in the middle of a member"
        count = None if count is None else count - got
    return ""


class _TarWalker:
    """Finds the members of a tar stream in consecutive pieces of memory.

    Attributes
    ----------
    position : int
        Where the walk stopped: the first byte that belongs to the next piece.
    wanted : int
        Bytes that the member at `position` takes, 0 if its head is not known yet.
    oversized : str
        Name of the member at `position` if it is too large for memory; it is to be passed over.
    ended : bool
        The end mark, or a fault, was met.
    fault : str
    """

    def __init__(self) -> None:
        self.position = self.wanted = 0
        self.oversized = ""
        self.ended, self.fault = False, ""
        self._long_name = ""

    def members(self, view: memoryview, filled: int) -> Iterator[tuple[str, int, int]]:
        """Yield name, start and end of the regular members that lie wholly in ``view[:filled]``."""
        self.position = self.wanted = 0
        self.oversized = ""
        while self.position + TAR_BLOCK <= filled:
            block = bytes(view[self.position : self.position + TAR_BLOCK])
            if block == _ZEROS:
                self.ended, self.position = True, filled
                return
            try:
                info = _quick_head(block) or tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            except (tarfile.HeaderError, ValueError) as error:
                self._stop(f"the archive is damaged at the head of a member ({error})")
                return
            size = 0 if info.type in _WITHOUT_DATA else info.size
            if size < 0:
                self._stop(f"the archive is damaged: member {info.name!r} claims {size:,} bytes")
                return
            start = self.position + TAR_BLOCK
            end = start + size
            if end > filled:
                self.wanted = TAR_BLOCK + _padded(size)
                self.oversized = (self._long_name or info.name) if size > MAX_MEMBER_BYTES else ""
                return
            # A member that is the archive's last may lack its padding.
            self.position = min(filled, start + _padded(size))
            if info.type == tarfile.GNUTYPE_LONGNAME:
                self._long_name = bytes(view[start:end]).rstrip(b"\0").decode("utf-8", "replace")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                self._long_name = _pax_path(bytes(view[start:end])) or self._long_name
            else:
                if info.isreg():
                    yield self._long_name or info.name, start, end
                self._long_name = ""

    def passed_over(self) -> None:
        """Go on behind a member that is too large."""
        self._long_name = ""

    def _stop(self, fault: str) -> None:
        self.ended, self.fault = True, fault


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def _is_tar(head: bytes) -> bool:
    if len(head) < TAR_BLOCK:
        return False
    if head[257:262] == b"ustar" or head == _ZEROS:
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class _Member:
    """What is needed of a regular member's head."""

    name: str
    size: int
    type: bytes = tarfile.REGTYPE

    @staticmethod
    def isreg() -> bool:
        return True


def _quick_head(block: bytes) -> _Member | None:
    """Read the head of an ordinary member; None for whatever else tarfile may know."""
    if block[156] not in b"0\0" or block[345] or block[124] & 0x80 or not block[0]:
        return None
    try:
        size, checksum = int(block[124:136].strip(b"\0 "), 8), int(block[148:156].strip(b"\0 "), 8)
        name = block[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        return None
    if name.endswith("/") or checksum != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    return _Member(name, size)


def _portions_of_tar(stream: _ReadInto, location: str, limits: Limits) -> Iterator[Portion | DeadLetter]:
    """Walk a tar stream. Packets stay where they were inflated; only a member cut by the memory's end is moved."""
    walker = _TarWalker()
    first, rest = 0, b""
    while True:
        # Members begin at multiples of a tar block, so that none of them is cut within its padding.
        memory = np.empty(_padded(max(limits.bytes, walker.wanted)), dtype=np.uint8)
        view = memory.data
        view[: len(rest)] = rest
        more, fault = _fill(stream, view[len(rest) :])
        filled = len(rest) + more
        portion = Portion(memory, first)
        for name, start, end in walker.members(view, filled):
            portion.add(name, start, end)
            if len(portion.names) >= limits.alerts:
                yield portion
                first += len(portion.names)
                portion = Portion(memory, first)
        if portion.names:
            yield portion
            first += len(portion.names)
        rest = bytes(view[walker.position : filled])
        fault = walker.fault or fault
        if walker.oversized and not fault:
            reason = f"the member has {walker.wanted - TAR_BLOCK:,} bytes, more than can be read at once"
            yield _unreadable(location, reason, walker.oversized, rest[TAR_BLOCK:])
            fault = _skip(stream, walker.wanted - len(rest))
            walker.passed_over()
            walker.wanted, rest = 0, b""
            if not fault:
                continue
        if walker.ended and not fault:
            # What is behind the end mark does not matter, but the checksum of a compressed archive does.
            fault = _skip(stream, None)
        if fault or walker.ended or filled < len(memory):
            if not fault and not walker.ended and rest:
                fault = "the archive ends in the middle of a member"
            if fault:
                yield _unreadable(location, fault, payload=rest)
            return


def _pax_path(data: bytes) -> str:
    for line in data.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "replace")
    return ""


# -- containers larger than a portion --------------------------------------------------------------------------------


def _portions_of_container(stream: Any, location: str, limits: Limits) -> Iterator[Portion | DeadLetter]:
    """Cut a container with many blocks into smaller ones with the same head."""
    name = location.rpartition("/")[2]
    head = _Head(stream)
    try:
        header = head.take()
    except (ContainerError, SchemaError) as error:
        yield DeadLetter("decode", str(error), location, name, bytes(head.data[:MAX_PAYLOAD_BYTES]))
        return
    first, position = 0, len(header)
    parts, size = [header], len(header)
    while True:
        pieces: list[bytes] = []
        try:
            _next_block(stream, pieces)
        except (ContainerError, *DAMAGE) as error:
            if len(parts) > 1:
                yield _portion_of_texts([(name, b"".join(parts))], first)
            payload = b"".join([header, *pieces])[:MAX_PAYLOAD_BYTES]
            yield DeadLetter("decode", str(error)[:300], location, name, payload, position)
            return
        block = b"".join(pieces)
        if len(parts) > 1 and (not block or size + len(block) > limits.bytes):
            yield _portion_of_texts([(name, b"".join(parts))], first)
            first += len(parts) - 1
            parts, size = [header], len(header)
        if not block:
            if not first and len(parts) == 1:
                yield _portion_of_texts([(name, header)], 0)
            return
        parts.append(block)
        size += len(block)
        position += len(block)


class _Head:
    """Takes the head of a container, marker included, from a stream."""

    def __init__(self, stream: _Peekable) -> None:
        self._stream = stream
        self.data = b""

    def take(self) -> bytes:
        wanted = 1 << 16
        while True:
            self.data = self._stream.peek(wanted)
            try:
                size = len(parse_header(memoryview(self.data)).raw) + SYNC_BYTES
                if size <= len(self.data):
                    return self._stream.read(size)
            except ContainerError:
                if len(self.data) < wanted or wanted > MAX_HEADER_BYTES:
                    raise
            if len(self.data) < wanted:
                raise ContainerError("the container ends in the middle of its header")
            wanted *= 4


def _next_block(stream: Any, pieces: list[bytes]) -> None:
    """Append the bytes of the next block, its counts and marker included; none at the end."""
    head = stream.peek(20)
    if not head:
        return
    _, position = read_long(memoryview(head), 0)
    size, position = read_long(memoryview(head), position)
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise ContainerError(f"a block claims {size:,} bytes")
    whole = position + size + SYNC_BYTES
    got = 0
    while got < whole:
        piece = stream.read(min(whole - got, _STEP))
        if not piece:
            raise ContainerError(f"a block of {size:,} bytes is cut off")
        pieces.append(piece)
        got += len(piece)


# -- decoding --------------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Blocks of one header that lie in one piece of memory."""

    header: Header
    data: NDArray[np.uint8]
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)

    def add(self, member: int, start: int, end: int, count: int) -> None:
        self.members.append(member)
        self.starts.append(start)
        self.ends.append(end)
        self.counts.append(count)

    def add_text(self, member: int, text: bytes, count: int) -> None:
        start = self.ends[-1] if self.ends else 0
        self.add(member, start, start + len(text), count)
        self.texts.append(text)

    def memory(self) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(self.texts), dtype=np.uint8) if self.texts else self.data


class _Framing:
    """Finds the blocks of ordinary packets, all those of a head at once; the others are left to be looked at singly.

    Attributes
    ----------
    done : bool array
        By packet.
    """

    def __init__(self, portion: Portion) -> None:
        self._portion = portion
        self._starts = np.array(portion.starts, dtype=np.int64)
        self._ends = np.array(portion.ends, dtype=np.int64)
        self.done = np.zeros(len(self._starts), dtype=np.bool_)
        self._tried: set[int] = set()

    def find(self, header: Header, groups: dict[int, _Group]) -> None:
        """Add the blocks of all packets that have a head to its group."""
        if id(header) in self._tried or header.codec != "null" or header.schema.layout.missing:
            return
        self._tried.add(id(header))
        before = self.done.copy()
        start, end, counts = (np.empty(len(before), dtype=np.int64) for _ in range(3))
        raw = np.frombuffer(header.raw, dtype=np.uint8)
        kernel.frame_packets(
            self._portion.data, self._starts, self._ends, raw, SYNC_BYTES, self.done, start, end, counts
        )
        found = np.flatnonzero(self.done & ~before)
        if len(found):
            group = groups.setdefault(id(header), _Group(header, self._portion.data))
            group.members.extend(found.tolist())
            group.starts.extend(start[found].tolist())
            group.ends.extend(end[found].tolist())
            group.counts.extend(counts[found].tolist())

    def others(self) -> Iterator[int]:
        """Packets that are not done when their turn comes."""
        return (member for member in range(len(self.done)) if not self.done[member])


def decode_portion(portion: Portion, source: Source, cache: HeaderCache, limits: Limits) -> Iterator[Item]:
    """Decode packets in memory: batches for each writer schema, dead letters for what cannot be decoded."""
    groups: dict[int, _Group] = {}
    location = source.location
    view = portion.data.data
    inflated = 0
    framing = _Framing(portion)
    for header in cache.known:
        framing.find(header, groups)
    for member in framing.others():
        name, start, end = portion.names[member], portion.starts[member], portion.ends[member]
        body, good, problem = start, [], ""
        payload = view[start : min(end, start + MAX_PAYLOAD_BYTES)]
        try:
            header = cache.find(view, start, end)
            body = start + len(header.raw) + SYNC_BYTES
            if body > end:
                raise ContainerError("the container ends in the middle of its header")
            missing = header.schema.layout.missing
            if missing:
                raise ContainerError(f"not a ZTF alert: its schema has no {', '.join(missing)}")
            framing.find(header, groups)
            if framing.done[member]:
                continue
            for block in blocks(view, body, end, bytes(view[body - SYNC_BYTES : body])):
                good.append(block)
        except (ContainerError, SchemaError) as error:
            problem = str(error)
        claimed = sum(block.count for block in good)
        if problem:
            yield DeadLetter("decode", problem, location, name, bytes(payload))
            # A damaged packet is set aside whole; of a container with many records, what precedes the damage is kept.
            if claimed <= 1:
                continue
        elif not claimed:
            yield EmptyContainer(location, name)
        for block in good:
            group = groups.setdefault(id(header), _Group(header, portion.data))
            if header.codec == "null":
                group.add(member, block.start, block.end, block.count)
                continue
            try:
                text = decompress(header.codec, view, block)
            except ContainerError as error:
                yield DeadLetter("decode", str(error), location, name, bytes(payload), block.start - start)
                break
            group.add_text(member, text, block.count)
            inflated += len(text)
            if inflated >= limits.bytes:
                for full in groups.values():
                    yield from _decode_group(full, portion, source, limits)
                groups, inflated = {}, 0
    for group in groups.values():
        yield from _decode_group(group, portion, source, limits)


def decode_bodies(portion: Portion, schema: WriterSchema, source: Source, limits: Limits) -> Iterator[Item]:
    """Decode packets in memory that are records of a known schema without a container."""
    count = len(portion.names)
    group = _Group(Header(b"", schema, "null"), portion.data)
    group.starts, group.ends, group.counts, group.members = portion.starts, portion.ends, [1] * count, [*range(count)]
    yield from _decode_group(group, portion, source, limits)


def _decode_group(group: _Group, portion: Portion, source: Source, limits: Limits) -> Iterator[Item]:
    schema = group.header.schema
    starts, ends, counts, members = (
        np.array(values, dtype=np.int64) for values in (group.starts, group.ends, group.counts, group.members)
    )
    order = np.argsort(members, kind="stable")
    starts, ends, counts, members = starts[order], ends[order], counts[order], members[order]
    data = group.memory()
    blocks_of = np.bincount(members)
    while len(starts):
        records = schema.decode(data, starts, ends, counts)
        for failure in records.failures:
            block = failure.block
            member = int(members[block])
            if blocks_of[member] == 1:
                payload = portion.data[portion.starts[member] : portion.ends[member]].tobytes()
            else:
                body = data[starts[block] : ends[block]].tobytes()
                payload = single_block_container(schema, body, int(counts[block]))
            origin = int(starts[block]) if group.texts else portion.starts[member]
            yield DeadLetter(
                "decode",
                failure.reason,
                source.location,
                portion.names[member],
                payload[:MAX_PAYLOAD_BYTES],
                failure.position - origin,
            )
        if len(records):
            names = tuple(portion.names[member] for member in members[records.block])
            batch = AlertBatch(
                schema,
                readable(source.location),
                source.name,
                names,
                portion.first,
                data,
                records.start,
                records.end,
                records.columns,
            )
            # Nothing is taken from a damaged packet; of many records in a block, those before the damage are good.
            spoilt = [failure.block for failure in records.failures if counts[failure.block] == 1]
            yield from _checked(batch.take(~np.isin(records.block, spoilt)), limits)
        done = records.blocks_done
        starts, ends, counts, members = starts[done:], ends[done:], counts[done:], members[done:]
        if len(starts):
            starts[0] = max(starts[0], records.position)
            counts[0] -= records.records_done


def _checked(batch: AlertBatch, limits: Limits) -> Iterator[Item]:
    """Set aside the alerts that lack a required value, and cut what is longer than a batch may be."""
    lacking = dict(reversed(batch.missing_values()))
    for row, name in sorted(lacking.items()):
        yield DeadLetter("decode", f"{name} is null", batch.source, batch.members[row], batch.packet(row))
    if lacking:
        good = np.ones(len(batch), dtype=np.bool_)
        good[list(lacking)] = False
        batch = batch.take(good)
    if len(batch) <= limits.alerts:
        if len(batch):
            yield batch
        return
    for first in range(0, len(batch), limits.alerts):
        yield batch.take(np.arange(first, min(first + limits.alerts, len(batch))))
