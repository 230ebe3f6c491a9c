"""Compiled moves of values between Arrow columns and the row-major arrays of a catalogue."""

from collections.abc import Mapping, Sequence

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmatch.layout import NULL_INTEGER, Column


@numba.njit(cache=True, nogil=True)
def _gather(matrix, places, rows, missing, values, bitmaps, nulls):
    for i in range(rows.shape[0]):
        row = rows[i]
        for c in range(places.shape[0]):
            if row >= 0:
                value = matrix[row, places[c]]
                if value == value and value != missing:
                    values[c, i] = value
                    bitmaps[c, i >> 3] |= np.uint8(1 << (i & 7))
                    continue
            values[c, i] = missing
            nulls[c] += 1


@numba.njit(cache=True, nogil=True)
def _gather_text(matrix, rows, offsets, text, bitmap):
    end = 0
    nulls = 0
    offsets[0] = 0
    for i in range(rows.shape[0]):
        begin = end
        row = rows[i]
        if row >= 0:
            for k in range(matrix.shape[1]):
                if matrix[row, k] == 0:
                    break
                text[end] = matrix[row, k]
                end += 1
        if end > begin:
            bitmap[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            nulls += 1
        offsets[i + 1] = end
    return nulls


@numba.njit(cache=True, nogil=True)
def _spread_text(offsets, text, matrix):
    for i in range(matrix.shape[0]):
        begin = offsets[i]
        for k in range(offsets[i + 1] - begin):
            matrix[i, k] = text[begin + k]


def take_columns(arrays: Mapping[str, NDArray], fields: Sequence[Column], rows: NDArray[np.int64]) -> pa.Table:
    """Columns of the given rows; null where the row is -1 or the value missing.

    Parameters
    ----------
    arrays : mapping
        Arrays of a catalogue by their files.
    fields : sequence of Column
        Columns wanted, in this order.
    rows : int64 [n]
    """
    taken: dict[str, pa.Array] = {}
    for file in dict.fromkeys(column.file for column in fields):
        group = [column for column in fields if column.file == file]
        matrix = arrays[file]
        if matrix.dtype == np.uint8:
            columns = [gather_text(matrix, rows)] * len(group)
        else:
            missing = np.nan if matrix.dtype == np.float64 else NULL_INTEGER
            columns = gather_numbers(matrix, [column.index for column in group], rows, missing)
        taken |= {column.name: values for column, values in zip(group, columns, strict=True)}
    return pa.table({column.name: taken[column.name] for column in fields})


def gather_numbers(matrix: NDArray, places: list[int], rows: NDArray[np.int64], missing: float) -> list[pa.Array]:
    """Columns `places` of the given rows as Arrow arrays, null where the row is -1 or the value `missing` or NaN.

    Parameters
    ----------
    matrix : float64 or int64 [n, k]
    places : columns of `matrix` wanted
    rows : int64 [m]
        Row numbers below n, or -1.
    missing : float or int
        The value that stands for null in `matrix`.
    """
    count = rows.shape[0]
    values = np.empty((len(places), count), matrix.dtype)
    bitmaps = np.zeros((len(places), (count + 7) // 8), np.uint8)
    nulls = np.zeros(len(places), np.int64)
    _gather(matrix, np.array(places, np.int64), rows, matrix.dtype.type(missing), values, bitmaps, nulls)
    kind = pa.from_numpy_dtype(matrix.dtype)
    return [
        pa.Array.from_buffers(kind, count, [_bitmap(bitmaps[c], nulls[c]), pa.py_buffer(values[c])], int(nulls[c]))
        for c in range(len(places))
    ]


def gather_text(matrix: NDArray[np.uint8], rows: NDArray[np.int64]) -> pa.Array:
    """The given rows of a text matrix as an Arrow string array, null where the row is -1 or the text empty."""
    count = rows.shape[0]
    offsets = np.empty(count + 1, np.int32)
    text = np.empty(count * matrix.shape[1], np.uint8)
    bitmap = np.zeros((count + 7) // 8, np.uint8)
    nulls = _gather_text(matrix, rows, offsets, text, bitmap)
    buffers = [_bitmap(bitmap, nulls), pa.py_buffer(offsets), pa.py_buffer(text[: offsets[-1]])]
    return pa.Array.from_buffers(pa.string(), count, buffers, int(nulls))


def text_matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.uint8]:
    """UTF-8 bytes of a string column as uint8 [n, width], filled with zero bytes; nulls are empty."""
    array = column.cast(pa.large_string()).fill_null("").combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.large_string())
    _, offsets, text = array.buffers()
    matrix = np.zeros((len(array), width), np.uint8)
    if len(array) and text is not None:
        starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        _spread_text(starts, np.frombuffer(text, np.uint8), matrix)
    return matrix


def _bitmap(bits: NDArray[np.uint8], nulls: int) -> pa.Buffer | None:
    return pa.py_buffer(bits) if nulls else None
