"""The step's output messages: records ``probabilities_and_features`` in Avro, encoded by columns.

A record is laid out in a row of a table of bytes as wide as the longest; a mask says which bytes are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifier.model import Probabilities
from classifier.outputs import Classification
from schemas import load_schema

_MAX_TABLE_BYTES: Final = 64 << 20
_VARINT_BYTES: Final = 10
_NULL_BRANCH: Final = 2
_MAGIC: Final = b"Obj\x01"


@cache
def message_schema_text() -> str:
    """Schema of a message, as JSON (alerce.md 2.3; the README of ALeRCE's late classification step)."""
    return json.dumps(
        {
            "type": "record",
            "name": "probabilities_and_features",
            "doc": "An object's features, and what the classifier makes of them.",
            "fields": [
                {"name": "oid", "type": "string", "doc": "Identifier of the object."},
                {"name": "candid", "type": "long", "doc": "Alert up to which the features were computed."},
                {"name": "features", "type": load_schema("features"), "doc": "Features; null is missing."},
                {"name": "lc_classification", "type": load_schema("late_record"), "doc": "The classification."},
            ],
        }
    )


def encode_messages(classification: Classification) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Encode one record per object.

    Returns
    -------
    data : uint8 array
        Records without a container.
    offsets : int64 array, shape (n + 1,)
        Where each begins.

    Raises
    ------
    ValueError
        If a candid is null: the schema has no place for that.
    """
    if classification.rows.candid.null_count:
        raise ValueError("a message needs a candid")
    tails = _Tails(classification.probabilities)
    return _encode(classification, tails, np.arange(len(classification)))


def message_container(record: bytes | memoryview) -> bytes:
    """One record as a container of its own, as a message in Kafka holds it."""
    head, sync = _container_ends()
    return b"".join((head, _long(1), _long(len(record)), record, sync))


@cache
def _container_ends() -> tuple[bytes, bytes]:
    """Head of a message's container, and the marker at its end."""
    text = message_schema_text().encode()
    sync = hashlib.sha256(text).digest()[:16]
    pairs = ((b"avro.codec", b"null"), (b"avro.schema", text))
    head = b"".join(_long(len(part)) + part for pair in pairs for part in pair)
    return b"".join((_MAGIC, _long(len(pairs)), head, b"\0", sync)), sync


def _encode(
    classification: Classification, tails: _Tails, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    oid = classification.rows.oid.take(pa.array(rows))
    lengths = pc.binary_length(oid).to_numpy(zero_copy_only=False).astype(np.int64)
    longest = int(lengths.max(initial=0))
    width = longest + 2 * _VARINT_BYTES + _FeatureLayout.known().width + tails.width
    if len(rows) > 1 and len(rows) * width > _MAX_TABLE_BYTES:
        halves = [_encode(classification, tails, half) for half in np.array_split(rows, 2)]
        return np.concatenate([data for data, _ in halves]), np.concatenate(
            [halves[0][1][:-1], halves[1][1] + halves[0][1][-1]]
        )
    table, mask = np.zeros((len(rows), width), np.uint8), np.zeros((len(rows), width), np.bool_)
    at = 0
    for part, used in (
        _varints(lengths),
        _texts(oid, lengths, longest),
        _varints(classification.rows.candid.take(pa.array(rows)).to_numpy(zero_copy_only=False)),
        _features(classification, rows),
        tails.encode(classification.probabilities, rows),
    ):
        table[:, at : at + part.shape[1]], mask[:, at : at + part.shape[1]] = part, used
        at += part.shape[1]
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    return table[mask], offsets


def _varints(values: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Avro longs: zigzag, seven bits a byte, the lowest first."""
    values = values.astype(np.int64)
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    shifted = zigzag[:, None] >> (np.uint64(7) * np.arange(_VARINT_BYTES, dtype=np.uint64))
    used = shifted > 0
    used[:, 0] = True
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    return ((shifted & np.uint64(0x7F)) | (more * np.uint64(0x80))).astype(np.uint8), used


def _texts(texts: pa.Array, lengths: NDArray[np.int64], longest: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    used = np.arange(longest) < lengths[:, None]
    part = np.zeros(used.shape, np.uint8)
    if used.any():
        _, offsets, data = texts.buffers()
        first = int(np.frombuffer(offsets, np.int32)[texts.offset])
        part[used] = np.frombuffer(data, np.uint8)[first : first + int(lengths.sum())]
    return part, used


class _FeatureLayout:
    """Where the fields of the features' record stand: a byte for the branch of the union, then the number."""

    def __init__(self) -> None:
        fields = load_schema("features")["fields"]
        if any(field["type"] not in (["float", "null"], ["double", "null"]) for field in fields):
            raise TypeError("a feature must be [float, null] or [double, null]")
        self.names = tuple(field["name"] for field in fields)
        self.is_double = np.array([field["type"][0] == "double" for field in fields])
        sizes = np.where(self.is_double, 8, 4)
        self.branch = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])
        self.width = int((sizes + 1).sum())

    @staticmethod
    @cache
    def known() -> _FeatureLayout:
        return _FeatureLayout()


def _features(classification: Classification, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    layout = _FeatureLayout.known()
    values, _ = classification.rows.matrix(layout.names)
    values = values[rows]
    null = np.isnan(values)
    part, used = np.zeros((len(rows), layout.width), np.uint8), np.ones((len(rows), layout.width), np.bool_)
    part[:, layout.branch] = np.where(null, _NULL_BRANCH, 0)
    for fields, kind in ((layout.is_double, "<f8"), (~layout.is_double, "<f4")):
        size = np.dtype(kind).itemsize
        places = (layout.branch[fields][:, None] + 1 + np.arange(size)).reshape(-1)
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(values[:, fields], kind)
        part[:, places] = numbers.view(np.uint8)
        used[:, places] = np.repeat(~null[:, fields], size, axis=1)
    return part, used


class _Tails:
    """The classification at the end of a record: all but the numbers and the class is the same in every record."""

    def __init__(self, probabilities: Probabilities) -> None:
        self._classes = pa.array(probabilities.leaves, pa.string())
        self._lengths = np.array([len(name.encode()) for name in probabilities.leaves], np.int64)
        root, *children = probabilities.branches
        head = _map_of_floats(probabilities.leaves, b"\0")
        top = _long(0) + _map_of_floats(probabilities.classes[root])
        below = [(_text(name), _map_of_floats(probabilities.classes[name])) for name in children]
        inside = b"".join(key + body for key, body in below)
        children_map = (_long(len(below)) + inside if below else b"") + _long(0)
        hierarchical = _long(2) + _text("top") + top + _text("children") + _long(1) + children_map + _long(0)
        self._head, self._tail = _Template(head), _Template(hierarchical)
        self._longest = int(self._lengths.max())
        self.width = len(head) + _VARINT_BYTES + self._longest + len(hierarchical)

    def encode(
        self, probabilities: Probabilities, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        best = probabilities.best[rows]
        lengths = self._lengths[best]
        parts = (
            self._head.filled(probabilities.values[rows]),
            _varints(lengths),
            _texts(self._classes.take(pa.array(best)), lengths, self._longest),
            self._tail.filled(np.hstack([values[rows] for values in probabilities.branches.values()])),
        )
        return np.hstack([part for part, _ in parts]), np.hstack([used for _, used in parts])


# Stands for a number in a template; no class is called so, as it is not UTF-8.
_HOLE: Final = b"\xff\xfe\xfd\xfc"


class _Template:
    """Bytes with holes of four bytes for numbers."""

    def __init__(self, text: bytes) -> None:
        self._bytes = np.frombuffer(text, np.uint8)
        holes, at = [], text.find(_HOLE)
        while at >= 0:
            holes.append(at)
            at = text.find(_HOLE, at + len(_HOLE))
        self._places = (np.array(holes, np.int64)[:, None] + np.arange(4)).reshape(-1)

    def filled(self, numbers: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        part = np.tile(self._bytes, (len(numbers), 1))
        part[:, self._places] = np.ascontiguousarray(numbers, "<f4").view(np.uint8)
        return part, np.ones(part.shape, np.bool_)


def _map_of_floats(keys: Sequence[str], branch: bytes = b"") -> bytes:
    return _long(len(keys)) + b"".join(_text(key) + branch + _HOLE for key in keys) + _long(0)


def _text(text: str) -> bytes:
    return _long(len(text.encode())) + text.encode()


def _long(value: int) -> bytes:
    part, used = _varints(np.array([value]))
    return part[used].tobytes()
