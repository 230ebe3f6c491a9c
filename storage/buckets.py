"""Buckets of objects: an object is wholly in one, whatever the process, the run or the order."""

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

# FNV-1a of 64 bits (Fowler, Noll, Vo).
_OFFSET_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)


@njit(cache=True, nogil=True)
def _hash(data, offsets, out):
    for i in range(len(out)):
        state = _OFFSET_BASIS
        for k in range(offsets[i], offsets[i + 1]):
            state = (state ^ np.uint64(data[k])) * _PRIME
        out[i] = state ^ (state >> np.uint64(32))


def bucket_of(oid: pa.Array | pa.ChunkedArray, buckets: int) -> NDArray[np.int64]:
    """Number of each name's bucket, from 0 to `buckets` - 1, by a hash of its bytes."""
    if isinstance(oid, pa.ChunkedArray):
        oid = oid.combine_chunks()
    names = oid.cast(pa.large_binary())
    out = np.empty(len(names), np.uint64)
    if len(names):
        _, ends, data = names.buffers()
        offsets = np.frombuffer(ends, np.int64)[names.offset : names.offset + len(names) + 1]
        text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        _hash(text, offsets, out)
    return (out % np.uint64(buckets)).astype(np.int64)
