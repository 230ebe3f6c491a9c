"""Avro object containers: header, blocks, codecs, both ways.

A header is parsed once and then recognised by its bytes: what a packet says of its own version is never believed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from alerts.decode import Decoder, Records
from alerts.layout import STANDARD_FIELDS, Layout, SchemaError, compile_layout
from alerts.reference import decode_with_fastavro

MAGIC: Final = b"Obj\x01"
SYNC_BYTES: Final = 16
# zlib-ng's type stub calls the class an instance.
ZlibError: Final = cast(type[Exception], zlib_ng.error)
DEFAULT_LEVELS: Final = {"deflate": 1, "zstandard": -1}
CODECS: Final = ("null", "deflate", "snappy", "zstandard")
MAX_HEADER_BYTES: Final = 8 << 20
# Most that one block may hold once inflated; a few kilobytes can claim terabytes.
MAX_BLOCK_BYTES: Final = 256 << 20


class ContainerError(ValueError):
    """Bytes that are not a readable Avro object container; the message is the reason."""


@dataclass(frozen=True, eq=False)
class WriterSchema:
    """A writer schema with all that is derived from it once.

    Attributes
    ----------
    text : str
        JSON as the packet holds it.
    layout : Layout
    """

    text: str
    layout: Layout

    @cached_property
    def parsed(self) -> Any:
        """The JSON as Python objects; not to be changed."""
        return json.loads(self.text)

    @cached_property
    def decoder(self) -> Decoder:
        """Decoder of this schema; remembers the room that earlier batches took."""
        return Decoder(self.layout)

    def decode(
        self, buf: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> Records:
        """Decode blocks: compiled, or by fastavro where the schema contains itself."""
        if self.layout.compiled:
            return self.decoder.decode(buf, starts, ends, counts)
        return decode_with_fastavro(self.parsed, self.layout, buf, starts, ends, counts)

    @cached_property
    def tag(self) -> str:
        """Short name for files: the schema's version, if it has one, and a digest of its text."""
        version = self.parsed.get("version") if isinstance(self.parsed, dict) else None
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:8]
        safe = "".join(c for c in str(version) if c.isalnum() or c in ".-")[:16] if version else ""
        return f"{safe}-{digest}" if safe else digest

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle the text alone."""
        return writer_schema, (self.text,)


_CACHE_SIZE: Final = 64


@lru_cache(maxsize=_CACHE_SIZE)
def writer_schema(text: str) -> WriterSchema:
    """Compile a writer schema, or take it from the cache.

    Raises
    ------
    SchemaError
        If the text is not a schema that can be understood.
    """
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"the schema is not JSON ({error})") from error
    return WriterSchema(text, compile_layout(parsed, STANDARD_FIELDS))


@dataclass(frozen=True, eq=False)
class Header:
    """Head of a container, up to its synchronisation marker.

    Attributes
    ----------
    raw : bytes
        Magic and metadata.
    schema : WriterSchema
    codec : str
    """

    raw: bytes
    schema: WriterSchema
    codec: str


class HeaderCache:
    """Recognises headers that were met before by comparing their bytes."""

    def __init__(self) -> None:
        self.known: list[Header] = []

    def find(self, data: memoryview, start: int, end: int) -> Header:
        """Header at ``data[start:end]``.

        Raises
        ------
        ContainerError, SchemaError
        """
        for position, header in enumerate(self.known):
            if bytes(data[start : start + len(header.raw)]) == header.raw:
                if position:
                    self.known.insert(0, self.known.pop(position))
                return header
        header = parse_header(data[start : min(end, start + MAX_HEADER_BYTES)])
        self.known.insert(0, header)
        del self.known[_CACHE_SIZE:]
        return header


def parse_header(data: memoryview) -> Header:
    """Parse the head of a container.

    Raises
    ------
    ContainerError
        If the bytes are not a container, with the reason.
    SchemaError
        If its schema cannot be understood.
    """
    if bytes(data[:4]) != MAGIC:
        raise ContainerError(what_instead(bytes(data[:200])))
    position, metadata = 4, {}
    while True:
        count, position = read_long(data, position)
        if count == 0:
            break
        if count < 0:
            count = -count
            _, position = read_long(data, position)
        if count > len(data) - position:
            raise ContainerError("the header's metadata are damaged")
        for _ in range(count):
            key, position = _read_bytes(data, position)
            metadata[key], position = _read_bytes(data, position)
    codec = metadata.get(b"avro.codec", b"null").decode("ascii", "replace")
    if codec not in CODECS:
        raise ContainerError(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    if b"avro.schema" not in metadata:
        raise ContainerError("the header holds no schema")
    try:
        text = metadata[b"avro.schema"].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ContainerError("the header's schema is not UTF-8") from error
    return Header(bytes(data[:position]), writer_schema(text), codec)


def what_instead(head: bytes) -> str:
    """Say what bytes are that do not begin like a container."""
    if not head:
        return "the file is empty"
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an alert"
    if text.startswith(b"<?xml"):
        return "an XML document, not an alert"
    if head.startswith(MAGIC[: len(head)]):
        return "the container ends within its first bytes"
    registered = int.from_bytes(head[1:5], "big")
    if head[0] == 0 and len(head) > 5 and 0 < registered < 1 << 20:
        return f"a message framed for a schema registry (schema {registered}), not a container"
    if head.startswith(b"\xc3\x01"):
        return "a single-object encoded message, not a container"
    return "not an Avro object container (it does not begin with 'Obj1')"


def read_long(data: memoryview, position: int) -> tuple[int, int]:
    """Avro long at `position` and the position after it."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ContainerError("the container ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if value >> 64:
            raise ContainerError("the container holds a number of more than 64 bits")
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
        shift += 7


def _read_bytes(data: memoryview, position: int) -> tuple[bytes, int]:
    size, position = read_long(data, position)
    if size < 0 or size > len(data) - position:
        raise ContainerError("the container ends in the middle of its header")
    return bytes(data[position : position + size]), position + size


@dataclass(frozen=True)
class Block:
    """Place of a block: its (possibly compressed) bytes and the number of records that it claims."""

    start: int
    end: int
    count: int


def blocks(data: memoryview, start: int, end: int, sync: bytes) -> Iterator[Block]:
    """Walk over the blocks in ``data[start:end]``.

    Raises
    ------
    ContainerError
        Where a block is damaged; those before it have been given.
    """
    position, inside = start, data[:end]
    while position < end:
        count, position = read_long(inside, position)
        size, position = read_long(inside, position)
        if count < 0 or size < 0:
            raise ContainerError("a block has a negative length")
        if size > end - position:
            raise ContainerError(f"a block of {size:,} bytes is cut off after {end - position:,}")
        stop = position + size
        if bytes(data[stop : stop + SYNC_BYTES]) != sync or stop + SYNC_BYTES > end:
            raise ContainerError("a block does not end with the container's marker")
        yield Block(position, stop, count)
        position = stop + SYNC_BYTES


def decompress(codec: str, view: memoryview, block: Block, limit: int = MAX_BLOCK_BYTES) -> bytes:
    """Inflate a block of `view`.

    Raises
    ------
    ContainerError
        If it is damaged, or larger than `limit` bytes.
    """
    data = view[block.start : block.end]
    try:
        match codec:
            case "null":
                return bytes(data)
            case "deflate":
                inflate = zlib_ng.decompressobj(-15)
                out = inflate.decompress(data, limit + 1)
                if len(out) <= limit and not inflate.eof:
                    raise ContainerError("a deflate block is cut off")
            case "snappy":
                out = _decompress_snappy(data, limit)
            case "zstandard":
                out = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(limit + 1)
            case _:
                raise ContainerError(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    except ContainerError:
        raise
    except (ZlibError, OSError, pa.ArrowException) as error:
        raise ContainerError(f"a {codec} block is damaged ({str(error)[:100]})") from error
    if len(out) > limit:
        raise ContainerError(f"a block inflates to more than {limit:,} bytes")
    return out


def _decompress_snappy(data: memoryview, limit: int) -> bytes:
    body, checksum = data[:-4], bytes(data[-4:])
    size = shift = 0
    for byte in bytes(body[:6]):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > limit:
        raise ContainerError(f"a block inflates to more than {limit:,} bytes")
    out = pa.Codec("snappy").decompress(pa.py_buffer(body), decompressed_size=size, asbytes=True)
    if zlib.crc32(out).to_bytes(4, "big") != checksum:
        raise ContainerError("a snappy block's checksum is wrong")
    return out


def compress(codec: str, data: bytes | memoryview, level: int | None = None) -> bytes | memoryview:
    """Deflate a block for writing, at a fast level unless another is given."""
    level = DEFAULT_LEVELS.get(codec) if level is None else level
    match codec:
        case "null":
            return data
        case "deflate":
            deflate = zlib_ng.compressobj(cast(int, level), zlib_ng.DEFLATED, -15)
            return deflate.compress(data) + deflate.flush()
        case "snappy":
            out = pa.Codec("snappy").compress(pa.py_buffer(data), asbytes=True)
            return out + zlib.crc32(data).to_bytes(4, "big")
        case "zstandard":
            return pa.Codec("zstd", compression_level=level).compress(pa.py_buffer(data), asbytes=True)
    raise ContainerError(f"codec {codec!r} is not one of {', '.join(CODECS)}")


def write_long(value: int) -> bytes:
    """Encode an Avro long."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header_bytes(schema_text: str, codec: str, sync: bytes) -> bytes:
    """Head of a new container, its marker included."""
    pairs = ((b"avro.codec", codec.encode()), (b"avro.schema", schema_text.encode()))
    body = b"".join(write_long(len(part)) + part for pair in pairs for part in pair)
    return MAGIC + write_long(len(pairs)) + body + b"\x00" + sync


def sync_marker(*parts: str) -> bytes:
    """Marker derived from what a file is, so that writing it again gives the same bytes."""
    return hashlib.sha256("\x00".join(parts).encode()).digest()[:SYNC_BYTES]


def single_block_container(schema: WriterSchema, block: bytes, count: int = 1) -> bytes:
    """Uncompressed container of one block: with one record, a packet as ZTF sends it."""
    sync = sync_marker(schema.text)
    head = header_bytes(schema.text, "null", sync)
    return b"".join([head, write_long(count), write_long(len(block)), block, sync])
