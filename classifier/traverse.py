"""Compiled traversal of trees: the loads of eight rows, or of sixteen trees, are in flight at once.

A node is one word beside its threshold, so that eight nodes lie in a cache line::

    left child << (bits + 1)  |  missing goes right << bits  |  feature

Numbers of nodes count from the root of their tree; siblings are neighbours. A leaf is its own left child and its
threshold is NaN, above which nothing is, so that a step needs no branch and a row that has arrived stays. The number of
the leaf's class frequencies stands in the bits of that NaN, or, in a wide node, beside it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

NARROW: Final = np.dtype([("threshold", "<f4"), ("word", "<u4")])
WIDE: Final = np.dtype([("threshold", "<f4"), ("leaf", "<u4"), ("word", "<u8")])
LANES: Final = 8
NAN_BITS: Final = 0x7FC00000
LEAF_BITS: Final = 22


def leaf_numbers(nodes: NDArray) -> NDArray[np.uint32]:
    """Numbers of the frequencies of leaves, shape (nodes,); of other nodes without meaning."""
    if nodes.dtype == WIDE:
        return nodes["leaf"]
    return np.ascontiguousarray(nodes["threshold"]).view(np.uint32) & np.uint32((1 << LEAF_BITS) - 1)


@njit(inline="always")
def _step(nodes: Any, root: Any, at: Any, row: Any, bits: Any) -> Any:
    node = nodes[root + at]
    word = node.word
    value = row[word & ((1 << bits) - 1)]
    above = np.uint64(value > node.threshold) | (np.uint64(value != value) & np.uint64(word >> bits))
    return np.uint64(word >> (bits + 1)) + (above & np.uint64(1))


@njit(cache=True, nogil=True)
def add_rows(
    nodes: NDArray, bits_of: NDArray, roots: NDArray, bits: int, values: NDArray, rows: NDArray, total: NDArray
) -> None:
    """Add the frequencies of every tree's leaf to `total` for a multiple of eight rows, tree after tree."""
    width = np.uint64(bits)
    # Words of 32 bits in a node, and which of them holds the number of a leaf.
    stride = np.uint64(len(bits_of) // max(len(nodes), 1))
    place = np.uint64(1 if stride == 4 else 0)
    mask = np.uint32(0xFFFFFFFF if stride == 4 else (1 << LEAF_BITS) - 1)
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
                value = np.uint64(bits_of[stride * (root + ends[lane]) + place] & mask)
                for c in range(classes):
                    total[first + lane, c] += values[value, c]


@njit(cache=True, nogil=True)
def add_row(
    nodes: NDArray, bits_of: NDArray, roots: NDArray, bits: int, values: NDArray, row: NDArray, total: NDArray
) -> None:
    """Add the frequencies of every tree's leaf to `total` for one row, sixteen trees at once, in the trees' order."""
    width = np.uint64(bits)
    # Words of 32 bits in a node, and which of them holds the number of a leaf.
    stride = np.uint64(len(bits_of) // max(len(nodes), 1))
    place = np.uint64(1 if stride == 4 else 0)
    mask = np.uint32(0xFFFFFFFF if stride == 4 else (1 << LEAF_BITS) - 1)
    classes = values.shape[1]
    trees = len(roots) - 1
    ends = np.empty(16, np.uint64)
    for first in range(0, trees - 15, 16):
        r0, r1 = np.uint64(roots[first + 0]), np.uint64(roots[first + 1])
        r2, r3 = np.uint64(roots[first + 2]), np.uint64(roots[first + 3])
        r4, r5 = np.uint64(roots[first + 4]), np.uint64(roots[first + 5])
        r6, r7 = np.uint64(roots[first + 6]), np.uint64(roots[first + 7])
        r8, r9 = np.uint64(roots[first + 8]), np.uint64(roots[first + 9])
        r10, r11 = np.uint64(roots[first + 10]), np.uint64(roots[first + 11])
        r12, r13 = np.uint64(roots[first + 12]), np.uint64(roots[first + 13])
        r14, r15 = np.uint64(roots[first + 14]), np.uint64(roots[first + 15])
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.uint64(0)
        a8 = a9 = a10 = a11 = a12 = a13 = a14 = a15 = np.uint64(0)
        moved = True
        while moved:
            b0, b1, b2, b3, b4, b5, b6, b7 = a0, a1, a2, a3, a4, a5, a6, a7
            b8, b9, b10, b11, b12, b13, b14, b15 = a8, a9, a10, a11, a12, a13, a14, a15
            for _ in range(2):
                a0 = _step(nodes, r0, a0, row, width)
                a1 = _step(nodes, r1, a1, row, width)
                a2 = _step(nodes, r2, a2, row, width)
                a3 = _step(nodes, r3, a3, row, width)
                a4 = _step(nodes, r4, a4, row, width)
                a5 = _step(nodes, r5, a5, row, width)
                a6 = _step(nodes, r6, a6, row, width)
                a7 = _step(nodes, r7, a7, row, width)
                a8 = _step(nodes, r8, a8, row, width)
                a9 = _step(nodes, r9, a9, row, width)
                a10 = _step(nodes, r10, a10, row, width)
                a11 = _step(nodes, r11, a11, row, width)
                a12 = _step(nodes, r12, a12, row, width)
                a13 = _step(nodes, r13, a13, row, width)
                a14 = _step(nodes, r14, a14, row, width)
                a15 = _step(nodes, r15, a15, row, width)
            still = (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) | (a4 ^ b4) | (a5 ^ b5) | (a6 ^ b6) | (a7 ^ b7)
            still |= (a8 ^ b8) | (a9 ^ b9) | (a10 ^ b10) | (a11 ^ b11)
            still |= (a12 ^ b12) | (a13 ^ b13) | (a14 ^ b14) | (a15 ^ b15)
            moved = still != 0
        ends[0], ends[1], ends[2], ends[3] = r0 + a0, r1 + a1, r2 + a2, r3 + a3
        ends[4], ends[5], ends[6], ends[7] = r4 + a4, r5 + a5, r6 + a6, r7 + a7
        ends[8], ends[9], ends[10], ends[11] = r8 + a8, r9 + a9, r10 + a10, r11 + a11
        ends[12], ends[13], ends[14], ends[15] = r12 + a12, r13 + a13, r14 + a14, r15 + a15
        for lane in range(16):
            value = np.uint64(bits_of[stride * ends[lane] + place] & mask)
            for c in range(classes):
                total[c] += values[value, c]
    for number in range(trees - trees % 16, trees):
        root = np.uint64(roots[number])
        at, before = np.uint64(0), np.uint64(1)
        while at != before:
            before = at
            at = _step(nodes, root, at, row, width)
        value = np.uint64(bits_of[stride * (root + at) + place] & mask)
        for c in range(classes):
            total[c] += values[value, c]
