"""Which alerts have passed already."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


class SeenCandids:
    """A set of candids, 16 to 32 bytes each, that tells for a batch which are new."""

    def __init__(self) -> None:
        self._slots = np.full(1 << 12, -1, dtype=np.int64)
        self._count = 0
        self._has_minus_one = False

    def __len__(self) -> int:
        """Count the candids."""
        return self._count

    def add(self, candids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Add candids; true for each that was not there, nor earlier in the batch."""
        while 2 * (self._count + len(candids)) > len(self._slots):
            bigger = np.full(2 * len(self._slots), -1, dtype=np.int64)
            _insert(self._slots[self._slots != -1], bigger)
            self._slots = bigger
        new = _insert(candids, self._slots)
        # -1 marks a free slot, and is remembered apart.
        minus_one = np.flatnonzero(candids == -1)
        if len(minus_one) and not self._has_minus_one:
            new[minus_one[0]] = self._has_minus_one = True
        self._count += int(new.sum())
        return new


@njit(cache=True, nogil=True)
def _insert(candids, slots):
    mask = np.uint64(slots.shape[0] - 1)
    new = np.zeros(candids.shape[0], np.bool_)
    for i in range(candids.shape[0]):
        if candids[i] == -1:
            continue
        mixed = np.uint64(candids[i]) * np.uint64(0x9E3779B97F4A7C15)
        at = (mixed ^ (mixed >> np.uint64(29))) & mask
        while slots[at] != -1 and slots[at] != candids[i]:
            at = (at + np.uint64(1)) & mask
        if slots[at] == -1:
            slots[at] = candids[i]
            new[i] = True
    return new
