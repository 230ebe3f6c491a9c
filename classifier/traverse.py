"""Compiled traversal of trees: the loads of eight rows, or of eight trees, are in flight at once.

A node is one word beside its threshold, so that eight nodes lie in a cache line::

    left child << (bits + 1)  |  missing goes right << bits  |  feature

Numbers of nodes count from the root of their tree; siblings are neighbours, and a leaf is its own left child with an
infinite threshold, so that a step needs no branch and a row that has arrived stays.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

NARROW: Final = np.dtype([("threshold", "<f4"), ("word", "<u4")])
WIDE: Final = np.dtype([("threshold", "<f4"), ("spare", "<u4"), ("word", "<u8")])
LANES: Final = 8


@njit(inline="always")
def _step(nodes: Any, root: Any, at: Any, row: Any, bits: Any) -> Any:
    node = nodes[root + at]
    word = node.word
    value = row[word & ((1 << bits) - 1)]
    above = np.uint64(value > node.threshold) | (np.uint64(value != value) & np.uint64(word >> bits))
    return np.uint64(word >> (bits + 1)) + (above & np.uint64(1))


@njit(cache=True, nogil=True)
def add_rows(
    nodes: NDArray, roots: NDArray, bits: int, leaves: NDArray, values: NDArray, rows: NDArray, total: NDArray
) -> None:
    """Add the frequencies of every tree's leaf to `total` for a multiple of eight rows, tree after tree."""
    width = np.uint64(bits)
    classes = values.shape[1]
    ends = np.empty(8, np.uint64)
    for number in range(len(roots) - 1):
        root = np.uint64(roots[number])
        for first in range(0, len(rows), 8):
            x0, x1, x2, x3 = rows[first], rows[first + 1], rows[first + 2], rows[first + 3]
            x4, x5, x6, x7 = rows[first + 4], rows[first + 5], rows[first + 6], rows[first + 7]
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.uint64(0)
            moved = True
            while moved:
                for _ in range(3):
                    a0 = _step(nodes, root, a0, x0, width)
                    a1 = _step(nodes, root, a1, x1, width)
                    a2 = _step(nodes, root, a2, x2, width)
                    a3 = _step(nodes, root, a3, x3, width)
                    a4 = _step(nodes, root, a4, x4, width)
                    a5 = _step(nodes, root, a5, x5, width)
                    a6 = _step(nodes, root, a6, x6, width)
                    a7 = _step(nodes, root, a7, x7, width)
                b0, b1, b2, b3, b4, b5, b6, b7 = a0, a1, a2, a3, a4, a5, a6, a7
                a0 = _step(nodes, root, a0, x0, width)
                a1 = _step(nodes, root, a1, x1, width)
                a2 = _step(nodes, root, a2, x2, width)
                a3 = _step(nodes, root, a3, x3, width)
                a4 = _step(nodes, root, a4, x4, width)
                a5 = _step(nodes, root, a5, x5, width)
                a6 = _step(nodes, root, a6, x6, width)
                a7 = _step(nodes, root, a7, x7, width)
                still = (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) | (a4 ^ b4) | (a5 ^ b5) | (a6 ^ b6) | (a7 ^ b7)
                moved = still != 0
            ends[0], ends[1], ends[2], ends[3] = a0, a1, a2, a3
            ends[4], ends[5], ends[6], ends[7] = a4, a5, a6, a7
            for lane in range(8):
                value = leaves[root + ends[lane]]
                for c in range(classes):
                    total[first + lane, c] += values[value, c]


@njit(cache=True, nogil=True)
def add_row(
    nodes: NDArray, roots: NDArray, bits: int, leaves: NDArray, values: NDArray, row: NDArray, total: NDArray
) -> None:
    """Add the frequencies of every tree's leaf to `total` for one row, eight trees at once, in the trees' order."""
    width = np.uint64(bits)
    classes = values.shape[1]
    trees = len(roots) - 1
    ends = np.empty(8, np.uint64)
    for first in range(0, trees - 7, 8):
        r0, r1 = np.uint64(roots[first]), np.uint64(roots[first + 1])
        r2, r3 = np.uint64(roots[first + 2]), np.uint64(roots[first + 3])
        r4, r5 = np.uint64(roots[first + 4]), np.uint64(roots[first + 5])
        r6, r7 = np.uint64(roots[first + 6]), np.uint64(roots[first + 7])
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.uint64(0)
        moved = True
        while moved:
            b0, b1, b2, b3, b4, b5, b6, b7 = a0, a1, a2, a3, a4, a5, a6, a7
            for _ in range(2):
                a0 = _step(nodes, r0, a0, row, width)
                a1 = _step(nodes, r1, a1, row, width)
                a2 = _step(nodes, r2, a2, row, width)
                a3 = _step(nodes, r3, a3, row, width)
                a4 = _step(nodes, r4, a4, row, width)
                a5 = _step(nodes, r5, a5, row, width)
                a6 = _step(nodes, r6, a6, row, width)
                a7 = _step(nodes, r7, a7, row, width)
            still = (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) | (a4 ^ b4) | (a5 ^ b5) | (a6 ^ b6) | (a7 ^ b7)
            moved = still != 0
        ends[0], ends[1], ends[2], ends[3] = r0 + a0, r1 + a1, r2 + a2, r3 + a3
        ends[4], ends[5], ends[6], ends[7] = r4 + a4, r5 + a5, r6 + a6, r7 + a7
        for lane in range(8):
            value = leaves[ends[lane]]
            for c in range(classes):
                total[c] += values[value, c]
    for number in range(trees - trees % 8, trees):
        root = np.uint64(roots[number])
        at, before = np.uint64(0), np.uint64(1)
        while at != before:
            before = at
            at = _step(nodes, root, at, row, width)
        value = leaves[root + at]
        for c in range(classes):
            total[c] += values[value, c]
