"""The compiled walk through Avro bytes: one pass, every read checked against the end of its block.

The kernel interprets the program of :mod:`alerts.layout`. It writes each wanted value into its column and steps over
the rest; cutouts are stepped over by their length. It never trusts a length or a count: whatever the bytes are, it
reads inside the block, needs time proportional to the block, and stores at most as many rows as there is room for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

# Instructions (op, a, b, c); for leaves a = slot, b = 0 not nullable, 1 null is branch 0, 2 null is branch 1.
END: Final = 0
FLOAT: Final = 1
DOUBLE: Final = 2
LONG: Final = 3
INT: Final = 4
STRING: Final = 5
BOOLEAN: Final = 6
BYTES: Final = 7
FIXED: Final = 8
ENUM: Final = 9
UNION: Final = 10  # b branches, c first of their targets
JUMP: Final = 11  # a instruction
ARRAY: Final = 12  # a table, b its NEXT, c fewest bytes of an item; followed by DATA
NEXT: Final = 13  # a table, b the ARRAY or MAP
MAP: Final = 14  # b its NEXT
PRESENT: Final = 15  # a slot
OFFSET: Final = 16  # a slot
DATA: Final = 17  # a slot for the number of items

OK: Final = 0
ROOM: Final = 1
TRUNCATED: Final = 2
BAD_BRANCH: Final = 3
BAD_VARINT: Final = 4
BAD_LENGTH: Final = 5
INT_RANGE: Final = 6
BAD_TEXT: Final = 7
TOO_MANY_ITEMS: Final = 8
BAD_ENUM: Final = 9
LEFT_OVER: Final = 10
REASONS: Final = {
    TRUNCATED: "the record ends in the middle of a value",
    BAD_BRANCH: "a union names a branch that the schema does not have",
    BAD_VARINT: "an integer has more than 64 bits",
    BAD_LENGTH: "a length is negative or reaches beyond the end of the record",
    INT_RANGE: "an int field holds a number of more than 32 bits",
    BAD_TEXT: "a text is not UTF-8",
    TOO_MANY_ITEMS: "an array claims more items than the record has room for",
    BAD_ENUM: "an enum names a symbol that the schema does not have",
    LEFT_OVER: "there are bytes behind the last record",
}

_MAX_NESTING: Final = 64


@njit(cache=True, nogil=True)
def _varint(buf, pos, end):
    """Zigzag integer at `pos`: value, position after it, status."""
    if pos >= end:
        return np.int64(0), pos, TRUNCATED
    byte = buf[pos]
    pos += 1
    if byte < 128:
        small = np.int64(byte)
        return (small >> 1) ^ -(small & 1), pos, OK
    value = np.uint64(byte & 0x7F)
    shift = np.uint64(7)
    while True:
        if pos >= end:
            return np.int64(0), pos, TRUNCATED
        byte = buf[pos]
        pos += 1
        if shift == np.uint64(63) and byte > 1:
            return np.int64(0), pos, BAD_VARINT
        value |= np.uint64(byte & 0x7F) << shift
        if byte < 128:
            break
        shift += np.uint64(7)
    sign = np.int64(value & np.uint64(1))
    return np.int64(value >> np.uint64(1)) ^ -sign, pos, OK


@njit(cache=True, nogil=True)
def _is_utf8(buf, pos, end):
    high = np.uint8(0)
    for i in range(pos, end):
        high |= buf[i]
    if high < 128:
        return True
    i = pos
    while i < end:
        lead = buf[i]
        if lead < 0x80:
            i += 1
            continue
        if 0xC2 <= lead <= 0xDF:
            more, low, top = 1, 0x80, 0xBF
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            low = 0xA0 if lead == 0xE0 else 0x80
            top = 0x9F if lead == 0xED else 0xBF
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            low = 0x90 if lead == 0xF0 else 0x80
            top = 0x8F if lead == 0xF4 else 0xBF
        else:
            return False
        if i + more >= end or buf[i + 1] < low or buf[i + 1] > top:
            return False
        for k in range(2, more + 1):
            if buf[i + k] < 0x80 or buf[i + k] > 0xBF:
                return False
        i += more + 1
    return True


@njit(cache=True, nogil=True)
def decode_block(
    buf,
    pos,
    end,
    wanted,
    program,
    targets,
    slot_table,
    slot_base,
    slot_valid,
    heap,
    valid,
    capacity,
    counts,
    record_start,
    record_end,
):
    """Decode up to `wanted` records that follow each other in ``buf[pos:end]``.

    Parameters
    ----------
    buf : uint8 array
    pos, end : int
        The block's bytes.
    wanted : int
        Number of records that the block claims.
    program, targets : int64 arrays
        Of the :class:`~alerts.layout.Layout`.
    slot_table : int64 array
        Table of each slot.
    slot_base, slot_valid : int64 arrays
        Where each slot's values begin in `heap` (in units of 4 bytes) and its validity in `valid`.
    heap : uint32 array
        Storage of all columns.
    valid : uint8 array
        1 where a value is there; zero on entry.
    capacity, counts : int64 arrays
        Rows that fit and rows used, for each table; `counts` is advanced record by record.
    record_start, record_end : int64 arrays
        Filled for each record, indexed by the row of the root table.

    Returns
    -------
    done : int
        Records decoded.
    pos : int
        Where the first record that was not decoded begins.
    status : int
        :data:`OK`, :data:`ROOM` (make more room and call again) or a reason of :data:`REASONS`.
    reached : int64 array
        Rows that the unfinished record has touched in each table.
    """
    tables = capacity.shape[0]
    row = np.zeros(tables, np.int64)
    used = counts.copy()
    stack_left = np.zeros(_MAX_NESTING, np.int64)
    stack_row = np.zeros(_MAX_NESTING, np.int64)
    stack_items = np.zeros(_MAX_NESTING, np.int64)
    done = 0
    status = OK
    start = pos
    while done < wanted:
        start = pos
        if used[0] >= capacity[0]:
            status = ROOM
            break
        row[0] = used[0]
        used[0] += 1
        depth = 0
        pc = 0
        while True:
            op = program[pc, 0]
            slot = program[pc, 1]
            if op <= ENUM:
                if op == END:
                    break
                nullable = program[pc, 2]
                if nullable:
                    branch, pos, status = _varint(buf, pos, end)
                    if status != OK:
                        break
                    if branch == nullable - 1:
                        pc += 1
                        continue
                    if branch != 2 - nullable:
                        status = BAD_BRANCH
                        break
                if op == FLOAT:
                    if pos + 4 > end:
                        status = TRUNCATED
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        heap[slot_base[slot] + r] = (
                            np.uint32(buf[pos])
                            | (np.uint32(buf[pos + 1]) << np.uint32(8))
                            | (np.uint32(buf[pos + 2]) << np.uint32(16))
                            | (np.uint32(buf[pos + 3]) << np.uint32(24))
                        )
                        valid[slot_valid[slot] + r] = 1
                    pos += 4
                elif op == DOUBLE:
                    if pos + 8 > end:
                        status = TRUNCATED
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        at = slot_base[slot] + 2 * r
                        heap[at] = (
                            np.uint32(buf[pos])
                            | (np.uint32(buf[pos + 1]) << np.uint32(8))
                            | (np.uint32(buf[pos + 2]) << np.uint32(16))
                            | (np.uint32(buf[pos + 3]) << np.uint32(24))
                        )
                        heap[at + 1] = (
                            np.uint32(buf[pos + 4])
                            | (np.uint32(buf[pos + 5]) << np.uint32(8))
                            | (np.uint32(buf[pos + 6]) << np.uint32(16))
                            | (np.uint32(buf[pos + 7]) << np.uint32(24))
                        )
                        valid[slot_valid[slot] + r] = 1
                    pos += 8
                elif op in (LONG, INT):
                    value, pos, status = _varint(buf, pos, end)
                    if status != OK:
                        break
                    if op == INT and (value < -2147483648 or value > 2147483647):
                        status = INT_RANGE
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        if op == INT:
                            heap[slot_base[slot] + r] = np.uint32(value & 0xFFFFFFFF)
                        else:
                            at = slot_base[slot] + 2 * r
                            heap[at] = np.uint32(value & 0xFFFFFFFF)
                            heap[at + 1] = np.uint32((value >> 32) & 0xFFFFFFFF)
                        valid[slot_valid[slot] + r] = 1
                elif op in (STRING, BYTES, FIXED):
                    if op == FIXED:
                        size = program[pc, 3]
                    else:
                        size, pos, status = _varint(buf, pos, end)
                        if status != OK:
                            break
                    if size < 0 or size > end - pos:
                        status = BAD_LENGTH
                        break
                    if op == STRING and not _is_utf8(buf, pos, pos + size):
                        status = BAD_TEXT
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        at = slot_base[slot] + 4 * r
                        heap[at] = np.uint32(pos & 0xFFFFFFFF)
                        heap[at + 1] = np.uint32(pos >> 32)
                        heap[at + 2] = np.uint32(size & 0xFFFFFFFF)
                        heap[at + 3] = np.uint32(size >> 32)
                        valid[slot_valid[slot] + r] = 1
                    pos += size
                elif op == BOOLEAN:
                    if pos >= end:
                        status = TRUNCATED
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        heap[slot_base[slot] + r] = np.uint32(1 if buf[pos] != 0 else 0)
                        valid[slot_valid[slot] + r] = 1
                    pos += 1
                else:
                    value, pos, status = _varint(buf, pos, end)
                    if status != OK:
                        break
                    if value < 0 or value >= program[pc, 3]:
                        status = BAD_ENUM
                        break
                    if slot >= 0:
                        r = row[slot_table[slot]]
                        heap[slot_base[slot] + r] = np.uint32(value)
                        valid[slot_valid[slot] + r] = 1
                pc += 1
            elif op == UNION:
                branch, pos, status = _varint(buf, pos, end)
                if status != OK:
                    break
                if branch < 0 or branch >= program[pc, 2]:
                    status = BAD_BRANCH
                    break
                pc = targets[program[pc, 3] + branch]
            elif op == JUMP:
                pc = slot
            elif op == PRESENT:
                if slot >= 0:
                    r = row[slot_table[slot]]
                    heap[slot_base[slot] + r] = np.uint32(1)
                    valid[slot_valid[slot] + r] = 1
                pc += 1
            elif op == OFFSET:
                if slot >= 0:
                    r = row[slot_table[slot]]
                    at = slot_base[slot] + 2 * r
                    heap[at] = np.uint32(pos & 0xFFFFFFFF)
                    heap[at + 1] = np.uint32(pos >> 32)
                    valid[slot_valid[slot] + r] = 1
                pc += 1
            else:
                # ARRAY, MAP: a loop begins. NEXT: an item is done. Either way the next item or block follows.
                loop = pc
                if op == NEXT:
                    loop = program[pc, 2]
                    left = stack_left[depth - 1] - 1
                else:
                    if depth >= _MAX_NESTING:
                        status = BAD_LENGTH
                        break
                    stack_items[depth] = 0
                    stack_row[depth] = row[slot] if slot >= 0 else 0
                    depth += 1
                    left = 0
                table = program[loop, 1]
                if left == 0:
                    left, pos, status = _varint(buf, pos, end)
                    if status != OK:
                        break
                    if left < 0:
                        size, pos, status = _varint(buf, pos, end)
                        if status != OK:
                            break
                        left = -left
                    if left < 0 or left > (end - pos) // program[loop, 3]:
                        status = TOO_MANY_ITEMS
                        break
                    if left > 0 and table >= 0 and used[table] + left > capacity[table]:
                        used[table] += left
                        status = ROOM
                        break
                if left == 0:
                    depth -= 1
                    if table >= 0:
                        length_slot = program[loop + 1, 1]
                        parent = row[slot_table[length_slot]]
                        at = slot_base[length_slot] + 2 * parent
                        heap[at] = np.uint32(stack_items[depth] & 0xFFFFFFFF)
                        heap[at + 1] = np.uint32(stack_items[depth] >> 32)
                        valid[slot_valid[length_slot] + parent] = 1
                        row[table] = stack_row[depth]
                    pc = program[loop, 2] + 1
                    continue
                stack_left[depth - 1] = left
                stack_items[depth - 1] += 1
                if table >= 0:
                    row[table] = used[table]
                    used[table] += 1
                if program[loop, 0] == MAP:
                    size, pos, status = _varint(buf, pos, end)
                    if status != OK:
                        break
                    if size < 0 or size > end - pos:
                        status = BAD_LENGTH
                        break
                    if not _is_utf8(buf, pos, pos + size):
                        status = BAD_TEXT
                        break
                    pos += size
                    pc = loop + 1
                else:
                    pc = loop + 2
        if status != OK:
            break
        record_start[row[0]] = start
        record_end[row[0]] = pos
        counts[:] = used
        done += 1
    return done, (pos if status == OK else start), status, used


@njit(cache=True, nogil=True)
def decode_blocks(
    buf,
    block_start,
    block_end,
    block_count,
    state,
    program,
    targets,
    slot_table,
    slot_base,
    slot_valid,
    heap,
    valid,
    capacity,
    counts,
    record_start,
    record_end,
    record_block,
    failed_block,
    failed_pos,
    failed_status,
):
    """Decode blocks one after another; a block that cannot be decoded is noted and the next one begun.

    `state` (int64, in and out) is ``[block, records of it done, position, failures]``, so that a call that needs more
    room can be repeated. The other parameters are those of :func:`decode_block`; `record_block` and the `failed_*`
    arrays receive the block of each record and of each failure. A failure with status :data:`LEFT_OVER` tells of
    bytes behind the last record that the block claims.

    Returns
    -------
    status : int
        :data:`OK` when all blocks are done, else :data:`ROOM`.
    reached : int64 array
        Rows wanted in each table, where more room is needed.
    """
    reached = counts.copy()
    while state[0] < block_start.shape[0]:
        block = state[0]
        if state[1] == 0:
            state[2] = block_start[block]
        end = block_end[block]
        first = counts[0]
        done, pos, status, reached = decode_block(
            buf,
            state[2],
            end,
            block_count[block] - state[1],
            program,
            targets,
            slot_table,
            slot_base,
            slot_valid,
            heap,
            valid,
            capacity,
            counts,
            record_start,
            record_end,
        )
        for record in range(first, first + done):
            record_block[record] = block
        state[1] += done
        state[2] = pos
        if status != OK:
            for slot in range(slot_table.shape[0]):
                table = slot_table[slot]
                for row in range(counts[table], min(reached[table], capacity[table])):
                    valid[slot_valid[slot] + row] = 0
            if status == ROOM:
                return ROOM, reached
        elif pos < end:
            status = LEFT_OVER
        if status != OK:
            failed_block[state[3]] = block
            failed_pos[state[3]] = pos
            failed_status[state[3]] = status
            state[3] += 1
        state[0] += 1
        state[1] = 0
    return OK, reached


@njit(cache=True, nogil=True)
def frame_packets(buf, starts, ends, header, sync_bytes, framed, block_start, block_end, counts):
    """Find the block of each packet that has the given head and one block, whole and with records in it.

    Parameters
    ----------
    buf : uint8 array
    starts, ends : int64 arrays
        Bytes of each packet.
    header : uint8 array
        Head without the marker.
    sync_bytes : int
        Length of the marker that follows the head and ends the block.
    framed : bool array
        Packets that are done already, in and out.
    block_start, block_end, counts : int64 arrays
        Filled for the packets that become framed.
    """
    size = header.shape[0]
    for packet in range(starts.shape[0]):
        marker = starts[packet] + size
        end = ends[packet]
        if framed[packet] or end - marker < 2 * sync_bytes + 2 or not _same(buf, starts[packet], header, size):
            continue
        count, pos, status = _varint(buf, marker + sync_bytes, end)
        if status != OK or count < 1:
            continue
        length, pos, status = _varint(buf, pos, end)
        if status != OK or length < 0 or length != end - sync_bytes - pos:
            continue
        if not _same(buf, pos + length, buf[marker : marker + sync_bytes], sync_bytes):
            continue
        framed[packet] = True
        block_start[packet] = pos
        block_end[packet] = pos + length
        counts[packet] = count


@njit(cache=True, nogil=True)
def _same(buf, start, other, size):
    """Compare bytes, in pieces short enough to stop early and long enough for vector instructions."""
    at = 0
    while at < size:
        stop = min(at + 1024, size)
        # Slices and casts: else numba checks each index for its sign and widens each byte, forty times slower.
        left, right = buf[start + at : start + stop], other[at:stop]
        difference = np.uint8(0)
        for k in range(stop - at):
            difference = np.uint8(difference | np.uint8(left[k] ^ right[k]))
        if difference:
            return False
        at = stop
    return True


@njit(cache=True, nogil=True)
def gather_bytes(buf, place, valid, offsets):
    """Copy texts together: `place` holds (start, length) per row; `offsets` (int32, rows + 1) is filled."""
    total = np.int64(0)
    for i in range(place.shape[0]):
        if valid[i]:
            total += place[i, 1]
    out = np.empty(total, np.uint8)
    at = np.int64(0)
    offsets[0] = 0
    for i in range(place.shape[0]):
        if valid[i]:
            first = place[i, 0]
            for k in range(place[i, 1]):
                out[at + k] = buf[first + k]
            at += place[i, 1]
        offsets[i + 1] = at
    return out


def words(kind: str) -> int:
    """Storage of a column in units of 4 bytes per row."""
    return {"double": 2, "long": 2, "length": 2, "offset": 2, "string": 4, "bytes": 4, "fixed": 4}.get(kind, 1)
