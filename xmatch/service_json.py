"""JSON texts of many rows at once: orjson writes each column, a compiled kernel lays the columns out row by row.

A Python object per row or value would cost several times more than the search that found the rows. orjson writes
the shortest text that reads back as the same double, and null for NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numba
import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

Values: TypeAlias = NDArray | pa.Array | pa.ChunkedArray

_COMMA, _QUOTE, _BACKSLASH, _END = (np.uint8(ord(letter)) for letter in ',"\\]')


@dataclass(frozen=True, eq=False)
class JsonRows:
    """JSON texts of rows, side by side.

    Attributes
    ----------
    text : uint8 array
    offsets : int64 [n + 1]
        Where each row's text begins; the last one is the end.
    """

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def split(self) -> list[bytes]:
        """The text of each row."""
        text = self.text.tobytes()
        return [text[begin:end] for begin, end in pairwise(self.offsets.tolist())]


def write_rows(pieces: Sequence[bytes], columns: Sequence[Values]) -> JsonRows:
    """Text of each row: the first piece, the value of the first column, the second piece, ... and the last piece.

    Parameters
    ----------
    pieces : sequence of bytes
        One more than there are columns.
    columns : sequence of arrays
        Equally long, at least one; numbers or strings. NaN and null become `null`.
    """
    rows = len(columns[0])
    if rows == 0:
        return JsonRows(np.empty(0, np.uint8), np.zeros(1, np.int64))
    arrays = [_column_json(column) for column in columns]
    fixed, fixed_ends = _joined(pieces)
    values, value_ends = _joined(arrays)
    # A column of n values has two brackets and n - 1 commas besides its values.
    size = rows * len(fixed) + len(values) - len(arrays) * (rows + 1)
    text, offsets = np.empty(size, np.uint8), np.empty(rows + 1, np.int64)
    _interleave(fixed, fixed_ends, values, value_ends[:-1] + 1, text, offsets)
    return JsonRows(text, offsets)


def with_missing(column: Values, missing: float | None) -> Values:
    """The column with `missing` in the place of nulls and NaN; unchanged for None and for strings."""
    if missing is None or _is_text(column):
        return column
    if isinstance(column, pa.Array | pa.ChunkedArray):
        column = column.fill_null(int(missing) if pa.types.is_integer(column.type) else missing).to_numpy()
    return np.where(np.isnan(column), missing, column) if column.dtype.kind == "f" else column


def _is_text(column: Values) -> bool:
    return isinstance(column, pa.Array | pa.ChunkedArray) and not (
        pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    )


def _column_json(column: Values) -> bytes:
    if isinstance(column, np.ndarray):
        return orjson.dumps(np.ascontiguousarray(column), option=orjson.OPT_SERIALIZE_NUMPY)
    if _is_text(column) or (column.null_count and pa.types.is_integer(column.type)):
        return orjson.dumps(column.to_pylist())
    numbers = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)


def _joined(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    ends = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=ends[1:])
    return np.frombuffer(b"".join(texts), np.uint8), ends


@numba.njit(cache=True, nogil=True)
def _interleave(fixed, fixed_ends, values, cursors, text, offsets):
    """Copy piece, value, piece, ... of each row; `cursors` say where the next value of each column begins."""
    columns = cursors.shape[0]
    end = 0
    offsets[0] = 0
    for row in range(offsets.shape[0] - 1):
        for column in range(columns + 1):
            for k in range(fixed_ends[column], fixed_ends[column + 1]):
                text[end] = fixed[k]
                end += 1
            if column == columns:
                continue
            at = cursors[column]
            quoted = False
            while True:
                letter = values[at]
                if not quoted and letter in (_COMMA, _END):
                    break
                text[end] = letter
                end += 1
                if letter == _QUOTE:
                    quoted = not quoted
                elif letter == _BACKSLASH:
                    at += 1
                    text[end] = values[at]
                    end += 1
                at += 1
            cursors[column] = at + 1
        offsets[row + 1] = end
