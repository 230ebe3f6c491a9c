"""Counting identifiers that several sources share: by hashes in buckets, then by the identifiers themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from xmatch.layout import save_array

_EXAMPLES = 5
_BYTES_PER_ROW = 48


@numba.njit(cache=True, nogil=True)
def _hash_rows(identifiers, hashes):
    """FNV-1a over the values of a row up to the first zero, then the final mixing of splitmix64."""
    for i in range(identifiers.shape[0]):
        value = np.uint64(0xCBF29CE484222325)
        for k in range(identifiers.shape[1]):
            if identifiers[i, k] == 0:
                break
            value = (value ^ np.uint64(identifiers[i, k])) * np.uint64(0x100000001B3)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes[i] = value ^ (value >> np.uint64(31))


def count_bucket_bits(rows: int, memory_bytes: int) -> int:
    """Bits that number buckets small enough for the memory, at most 16."""
    return min(16, max(0, (rows * _BYTES_PER_ROW // memory_bytes).bit_length()))


def write_hashes(path: Path, identifiers: NDArray, first_row: int, bits: int) -> None:
    """Write pairs of hash and row, ordered by bucket, and where each bucket begins.

    Parameters
    ----------
    path : Path
        Without the endings `.pairs.npy` and `.starts.npy`.
    identifiers : uint8 or int64 [n, width]
    first_row : int
        Row of the first identifier.
    bits : int
        There are 2**bits buckets.
    """
    pairs = np.empty((len(identifiers), 2), np.uint64)
    hashes = np.empty(len(identifiers), np.uint64)
    _hash_rows(identifiers, hashes)
    buckets = (
        (hashes >> np.uint64(48)).astype(np.uint16) >> np.uint16(16 - bits) if bits else hashes.astype(np.uint16) * 0
    )
    order = np.argsort(buckets, kind="stable")
    pairs[:, 0] = hashes[order]
    pairs[:, 1] = order + first_row
    save_array(Path(f"{path}.pairs.npy"), pairs)
    save_array(Path(f"{path}.starts.npy"), np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=1 << bits))]))


def count_repeated(paths: Sequence[Path], bucket: int, identifiers: NDArray) -> tuple[int, list[list[Any]]]:
    """Number of rows of a bucket whose identifier an earlier row has, and the first few of them as row, identifier.

    Parameters
    ----------
    paths : sequence of Path
        As given to `write_hashes`.
    bucket : int
    identifiers : uint8 or int64 [rows, width]
        Identifiers of the whole catalogue.
    """
    parts = []
    for path in paths:
        starts = np.load(f"{path}.starts.npy")
        parts.append(np.load(f"{path}.pairs.npy", mmap_mode="r")[starts[bucket] : starts[bucket + 1]])
    pairs = np.concatenate(parts)
    pairs = pairs[np.argsort(pairs[:, 0])]
    same = pairs[1:, 0] == pairs[:-1, 0]
    at = np.flatnonzero(same)
    rows = np.sort(pairs[np.union1d(at, at + 1), 1].astype(np.int64))
    found = identifiers[rows]
    values = found.reshape(-1) if found.dtype == np.int64 else found.view(f"S{found.shape[1]}").reshape(-1)
    order = np.argsort(values, kind="stable")
    repeated = rows[order[1:][values[order[1:]] == values[order[:-1]]]]
    _, first = np.unique(identifiers[np.sort(repeated)], axis=0, return_index=True)
    shown = np.sort(repeated)[np.sort(first)[:_EXAMPLES]]
    return len(repeated), [[int(row), as_text(identifiers[row])] for row in shown]


def first_examples(examples: Sequence[list[Any]]) -> list[str]:
    """Different identifiers of the first rows among the examples of all buckets."""
    return list(dict.fromkeys(text for _, text in sorted(examples)))[:_EXAMPLES]


def as_text(identifier: NDArray) -> str:
    """One row of a catalogue's identifiers as text."""
    if identifier.dtype == np.uint8:
        return identifier.tobytes().rstrip(b"\0").decode()
    return str(identifier[0])
