"""Neighbours on the sphere: the compiled part of the local matcher.

A catalogue is cut into declination zones of equal height and each zone into cells of equal width in right ascension,
narrow enough to hold about two rows. A search visits the zones and, in each, the cells that its circle can touch.

There are two searches. `k_nearest_rows` does one position after the other: any radius, any place, any number of
neighbours. `nearest_rows` finds one neighbour within a small radius: it takes the positions through each step a block
at a time, so that cache misses overlap and the distances are computed by vector instructions, and leaves to the first
search what is not ordinary. Both compare rows by the same computed distance alone. Zones, cells and bounds only leave
out rows that cannot win, with a margin far above the rounding of one operation, so the answer depends neither on how
the catalogue was cut nor on the other positions. Only additions, multiplications, divisions and square roots lead to
a distance below two degrees: its bits are the same on every machine.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from xmatch.prefetch import prefetch

ARCSEC_PER_DEGREE = 3600.0
MAX_RADIUS_ARCSEC = 36000.0

# Bounds that leave rows out are widened by these, far above rounding (about 6e-14 degrees) and far below a cell.
_RELATIVE_MARGIN = 1.0 + 1e-9
_ABSOLUTE_MARGIN_DEG = 1e-12
# Haversine of two degrees, below which the arcsine is a short series.
_SMALL_HAVERSINE = 3.0e-4
# Positions that `nearest_rows` takes through each step together, and up to which radius and declination it does.
_BLOCK = 512
_BLOCK_RADIUS_ARCSEC = 60.0
_ORDINARY_DEC = 89.0

# Inlining by numba, before LLVM sees the code, makes the search faster.
_inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_inlined
def zone_of(dec, zones_per_degree):
    """Number of the declination zone of `dec` (degrees), counted from the south pole."""
    return np.int64((dec + 90.0) * zones_per_degree)


@_inlined
def cell_of(ra, cells):
    """Number of the cell of `ra` (degrees, 0 to 360) in a zone of `cells` cells; it never decreases with `ra`."""
    return min(np.int64(ra * (1.0 / 360.0) * cells), cells - 1)


@_inlined
def _sine_of_degrees(angle):
    """Sine of 0 to 90 degrees by its Taylor series, within two units in the last place; unlike libm's it vectorises."""
    x = math.radians(angle)
    y = x * x
    series = y * (
        -1.0 / 1307674368000.0
        + y * (1.0 / 355687428096000.0 + y * (-1.0 / 121645100408832000.0 + y / 51090942171709440000.0))
    )
    series = y * (1.0 / 362880.0 + y * (-1.0 / 39916800.0 + y * (1.0 / 6227020800.0 + series)))
    return x + x * (y * (-1.0 / 6.0 + y * (1.0 / 120.0 + y * (-1.0 / 5040.0 + series))))


@_inlined
def _ra_difference(ra1, ra2):
    difference = abs(ra1 - ra2)
    if difference > 180.0:
        difference = (360.0 - max(ra1, ra2)) + min(ra1, ra2)
    return difference


@_inlined
def _haversine(ra_difference, dec1, dec2):
    half_ra = _sine_of_degrees(ra_difference * 0.5)
    half_dec = _sine_of_degrees(abs(dec2 - dec1) * 0.5)
    # 90 - |dec| is exact near the poles, where the cosine of a rounded declination would lose its digits.
    cosines = _sine_of_degrees(90.0 - abs(dec1)) * _sine_of_degrees(90.0 - abs(dec2))
    return half_dec * half_dec + cosines * (half_ra * half_ra)


@_inlined
def _small_angle(haversine):
    """Angle in arcseconds of a haversine up to `_SMALL_HAVERSINE`, by the series of the arcsine."""
    h = haversine
    series = 1.0 + h * (1.0 / 6.0 + h * (3.0 / 40.0 + h * (15.0 / 336.0 + h * (105.0 / 3456.0))))
    return math.degrees(2.0 * math.sqrt(h) * series) * ARCSEC_PER_DEGREE


@_inlined
def separation(ra1, dec1, ra2, dec2):
    """Angle in arcseconds between two positions in degrees, right ascensions within [0, 360): haversine formula.

    Accurate to a few units in the last place for the separations that a search allows.
    """
    haversine = _haversine(_ra_difference(ra1, ra2), dec1, dec2)
    if haversine <= _SMALL_HAVERSINE:
        return _small_angle(haversine)
    return math.degrees(2.0 * math.asin(math.sqrt(min(1.0, haversine)))) * ARCSEC_PER_DEGREE


@_inlined
def _reach(radius):
    """Bound in degrees on the difference in declination of rows within `radius` arcseconds."""
    return radius * (_RELATIVE_MARGIN / ARCSEC_PER_DEGREE) + _ABSOLUTE_MARGIN_DEG


@_inlined
def _half_width(dec, reach):
    """Bound in degrees on the difference in right ascension of rows within `reach` degrees of declination `dec`.

    The largest difference is asin(sin(reach) / cos(dec)), or any if the circle holds the pole.
    """
    sine = math.sin(math.radians(reach)) * _RELATIVE_MARGIN
    cosine = math.sin(math.radians(90.0 - abs(dec)))
    if sine >= cosine:
        return 360.0
    return math.degrees(math.asin(sine / cosine)) * _RELATIVE_MARGIN + _ABSOLUTE_MARGIN_DEG


@_compiled
def _row_ranges(ra, half_width, zone, index):
    """Rows of a zone whose cells are within `half_width` degrees of `ra`: two ranges, the second beyond 0h."""
    cell0 = index.zone_cells[zone]
    cells = index.zone_cells[zone + 1] - cell0 - 1
    if cells < 1:
        return np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    row0, row1 = index.zone_rows[zone], index.zone_rows[zone + 1]
    low, high = ra - half_width, ra + half_width
    # Whatever a damaged file says, no row beyond the zone is read.
    first = row0 + np.int64(index.cell_rows[cell0 + cell_of(max(low, 0.0), cells)])
    last = min(row0 + np.int64(index.cell_rows[cell0 + cell_of(min(high, 360.0), cells) + 1]), row1)
    if high - low >= 360.0 or (low >= 0.0 and high < 360.0):
        return first, last, np.int64(0), np.int64(0)
    if low < 0.0:
        # A zone of few cells: the far side begins in the cell where the near side ends.
        begin = row0 + np.int64(index.cell_rows[cell0 + cell_of(low + 360.0, cells)])
        return first, last, max(begin, last), row1
    end = row0 + np.int64(index.cell_rows[cell0 + cell_of(high - 360.0, cells) + 1])
    return first, last, row0, min(end, first)


@_compiled
def _precedes(row, angle, other_row, other_angle, identifiers):
    """Whether a row comes before another: by distance, then by identifier, then by row number."""
    if angle != other_angle:
        return angle < other_angle
    for k in range(identifiers.shape[1]):
        if identifiers[row, k] != identifiers[other_row, k]:
            return identifiers[row, k] < identifiers[other_row, k]
    return row < other_row


@_compiled
def _sift_up(rows, angles, place, identifiers):
    """Restore the heap, the last row on top, after `place` was filled."""
    while place > 0:
        parent = (place - 1) // 2
        if not _precedes(rows[parent], angles[parent], rows[place], angles[place], identifiers):
            return
        rows[parent], rows[place] = rows[place], rows[parent]
        angles[parent], angles[place] = angles[place], angles[parent]
        place = parent


@_compiled
def _sift_down(rows, angles, count, identifiers):
    """Restore the heap of `count` rows, the last row on top, after the top was replaced."""
    place = 0
    while 2 * place + 1 < count:
        child = 2 * place + 1
        if child + 1 < count and _precedes(rows[child], angles[child], rows[child + 1], angles[child + 1], identifiers):
            child += 1
        if not _precedes(rows[place], angles[place], rows[child], angles[child], identifiers):
            return
        rows[child], rows[place] = rows[place], rows[child]
        angles[child], angles[place] = angles[place], angles[child]
        place = child


@_compiled
def _grown(array, size):
    larger = np.empty(max(size, 2 * array.shape[0]), array.dtype)
    for i in range(array.shape[0]):
        larger[i] = array[i]
    return larger


@_compiled
def _search_rows(target, first, last, k, count, rows, angles, index):
    """Put the rows `first` to `last` that are among the `k` nearest into the heap."""
    ra, dec, half_width, limit = target
    reach = _reach(limit)
    for row in range(first, last):
        row_ra, row_dec = index.positions[row, 0], index.positions[row, 1]
        if abs(row_dec - dec) > reach or _ra_difference(row_ra, ra) > half_width:
            continue
        angle = separation(ra, dec, row_ra, row_dec)
        if angle > limit:
            continue
        if count < k:
            if count == rows.shape[0]:
                rows, angles = _grown(rows, count + 1), _grown(angles, count + 1)
            rows[count], angles[count] = row, angle
            _sift_up(rows, angles, count, index.identifiers)
            count += 1
        elif _precedes(row, angle, rows[0], angles[0], index.identifiers):
            rows[0], angles[0] = row, angle
            _sift_down(rows, angles, count, index.identifiers)
        if count == k:
            limit = angles[0]
            reach = _reach(limit)
    return limit, count, rows, angles


@_compiled
def _search(ra, dec, radius, k, rows, angles, index):
    """Heap of the `k` nearest rows of one position: their count and the arrays, which may have grown."""
    centre = zone_of(dec, index.zones_per_degree)
    limit = radius
    count = np.int64(0)
    step = 0
    while True:
        reach = _reach(limit)
        lowest = zone_of(max(dec - reach, -90.0), index.zones_per_degree)
        highest = zone_of(min(dec + reach, 90.0), index.zones_per_degree)
        # Outwards from the zone of the position: 0, -1, 1, -2, 2, ...
        distance = (step + 1) // 2
        if centre - distance < lowest and centre + distance > highest:
            return count, rows, angles
        zone = centre - distance if step % 2 else centre + distance
        step += 1
        if zone < lowest or zone > highest:
            continue
        half_width = _half_width(dec, reach)
        first, last, first_beyond, last_beyond = _row_ranges(ra, half_width, zone, index)
        target = (ra, dec, half_width, limit)
        limit, count, rows, angles = _search_rows(target, first, last, k, count, rows, angles, index)
        target = (ra, dec, half_width, limit)
        limit, count, rows, angles = _search_rows(target, first_beyond, last_beyond, k, count, rows, angles, index)


@_inlined
def _within_circle(ra):
    if 0.0 <= ra < 360.0:
        return ra
    remainder = ra % 360.0
    # The remainder of a tiny negative number rounds to 360.
    return remainder if remainder < 360.0 else 0.0


@_inlined
def _is_position(ra, dec):
    return abs(ra) < np.inf and abs(dec) <= 90.0


@_compiled
def k_nearest_rows(ra, dec, radius, k, index):
    """Offsets, rows and separations (arcseconds) of the `k` nearest rows within `radius` arcseconds of each position.

    The neighbours of position i, nearest first, are those from `offsets[i]` to `offsets[i + 1]`; there are none where
    the position (degrees, any right ascension) does not exist.
    """
    offsets = np.zeros(ra.shape[0] + 1, np.int64)
    rows, angles = np.empty(ra.shape[0], np.int64), np.empty(ra.shape[0], np.float64)
    heap_rows, heap_angles = np.empty(16, np.int64), np.empty(16, np.float64)
    for i in range(ra.shape[0]):
        end = offsets[i]
        if _is_position(ra[i], dec[i]):
            count, heap_rows, heap_angles = _search(
                _within_circle(ra[i]), dec[i], radius, k, heap_rows, heap_angles, index
            )
            begin, end = end, end + count
            if end > rows.shape[0]:
                rows, angles = _grown(rows, end), _grown(angles, end)
            for last in range(count - 1, -1, -1):
                rows[begin + last], angles[begin + last] = heap_rows[0], heap_angles[0]
                heap_rows[0], heap_angles[0] = heap_rows[last], heap_angles[last]
                _sift_down(heap_rows, heap_angles, last, index.identifiers)
        offsets[i + 1] = end
    return offsets, rows[: offsets[-1]].copy(), angles[: offsets[-1]].copy()


class _Block(NamedTuple):
    """What is known of a block of positions on the way to their nearest rows."""

    # Of each position.
    half_width: NDArray[np.float64]
    ordinary: NDArray[np.bool_]
    # Of each range of cells, later of rows, of one zone that a position can touch; `position` counts in the block.
    range_position: NDArray[np.int64]
    range_zone: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    # Of each pair of a position and a row not far from it.
    pair_position: NDArray[np.int64]
    pair_row: NDArray[np.int64]
    ra_difference: NDArray[np.float64]
    dec: NDArray[np.float64]
    row_dec: NDArray[np.float64]
    angle: NDArray[np.float64]


@_inlined
def _new_block(zones):
    """Room for `_BLOCK` positions that touch at most `zones` zones each, and for twice as many pairs."""
    return _Block(
        np.empty(_BLOCK, np.float64),
        np.empty(_BLOCK, np.bool_),
        np.empty(_BLOCK * zones, np.int64),
        np.empty(_BLOCK * zones, np.int64),
        np.empty(_BLOCK * zones, np.int64),
        np.empty(_BLOCK * zones, np.int64),
        np.empty(2 * _BLOCK, np.int64),
        np.empty(2 * _BLOCK, np.int64),
        np.empty(2 * _BLOCK, np.float64),
        np.empty(2 * _BLOCK, np.float64),
        np.empty(2 * _BLOCK, np.float64),
        np.empty(2 * _BLOCK, np.float64),
    )


@_compiled
def _sort_out(ra, dec, reach, block):
    """Find the half-widths, and which positions are ordinary: their circle touches neither 0h nor a pole."""
    # The sine of a small reach is below the reach, and the arcsine of a small sine below 1.01 of it.
    bound = reach * 1.01
    for i in range(ra.shape[0]):
        half_width = bound / _sine_of_degrees(90.0 - abs(dec[i]))
        block.half_width[i] = half_width
        block.ordinary[i] = (abs(dec[i]) <= _ORDINARY_DEC) & (ra[i] - half_width >= 0.0) & (ra[i] + half_width < 360.0)


@_compiled
def _find_cells(ra, dec, reach, block, index):
    """Ranges of cells that ordinary positions can touch; gives their number."""
    ranges = 0
    for i in range(ra.shape[0]):
        if not block.ordinary[i]:
            continue
        half_width = block.half_width[i]
        lowest = zone_of(dec[i] - reach, index.zones_per_degree)
        highest = zone_of(dec[i] + reach, index.zones_per_degree)
        for zone in range(lowest, highest + 1):
            cell0 = index.zone_cells[zone]
            cells = index.zone_cells[zone + 1] - cell0 - 1
            if cells > 0:
                first = cell0 + cell_of(ra[i] - half_width, cells)
                prefetch(index.cell_rows, first)
                block.range_position[ranges] = i
                block.range_zone[ranges] = zone
                block.first[ranges] = first
                block.last[ranges] = cell0 + cell_of(ra[i] + half_width, cells) + 1
                ranges += 1
    return ranges


@_compiled
def _find_rows(ranges, block, index):
    """Turn ranges of cells into ranges of rows."""
    for j in range(ranges):
        zone = block.range_zone[j]
        row0, row1 = index.zone_rows[zone], index.zone_rows[zone + 1]
        first = row0 + np.int64(index.cell_rows[block.first[j]])
        # Whatever a damaged file says, no row beyond the zone is read.
        last = min(row0 + np.int64(index.cell_rows[block.last[j]]), row1)
        prefetch(index.positions, 2 * first)
        prefetch(index.positions, 2 * last - 1)
        block.first[j], block.last[j] = first, last


@_compiled
def _compare(ra, dec, radius, reach, ranges, block, index, rows, separations):
    """Compare the positions with the rows of their ranges."""
    pairs = np.int64(0)
    for j in range(ranges):
        i = block.range_position[j]
        for row in range(block.first[j], block.last[j]):
            if pairs == block.angle.shape[0]:
                _keep_nearest(pairs, radius, block, index, rows, separations)
                pairs = np.int64(0)
            ra_difference = abs(index.positions[row, 0] - ra[i])
            row_dec = index.positions[row, 1]
            block.pair_position[pairs] = i
            block.pair_row[pairs] = row
            block.ra_difference[pairs] = ra_difference
            block.dec[pairs] = dec[i]
            block.row_dec[pairs] = row_dec
            # A pair that is not wanted is written over by the next one: cheaper than a branch that goes either way.
            pairs += np.int64((abs(row_dec - dec[i]) <= reach) & (ra_difference <= block.half_width[i]))
    _keep_nearest(pairs, radius, block, index, rows, separations)


@_compiled
def _keep_nearest(pairs, radius, block, index, rows, separations):
    for p in range(pairs):
        block.angle[p] = _small_angle(_haversine(block.ra_difference[p], block.dec[p], block.row_dec[p]))
    for p in range(pairs):
        i, row, angle = block.pair_position[p], block.pair_row[p], block.angle[p]
        if angle <= radius and (
            angle < separations[i] or _precedes(row, angle, rows[i], separations[i], index.identifiers)
        ):
            rows[i], separations[i] = row, angle


@_compiled
def _search_block(ra, dec, radius, reach, block, index, rows, separations):
    """Nearest rows of at most `_BLOCK` positions: the ordinary ones step by step together, the others one by one."""
    _sort_out(ra, dec, reach, block)
    ranges = _find_cells(ra, dec, reach, block, index)
    _find_rows(ranges, block, index)
    _compare(ra, dec, radius, reach, ranges, block, index, rows, separations)
    for i in range(ra.shape[0]):
        if not block.ordinary[i]:
            rows[i], separations[i] = _nearest_row(ra[i], dec[i], radius, index)


@_compiled
def _nearest_row(ra, dec, radius, index):
    if not _is_position(ra, dec):
        return np.int64(-1), np.inf
    row, angle = np.empty(1, np.int64), np.empty(1, np.float64)
    count, _, _ = _search(_within_circle(ra), dec, radius, np.int64(1), row, angle, index)
    return (row[0], angle[0]) if count else (np.int64(-1), np.inf)


@_compiled
def nearest_rows(ra, dec, radius, index, rows, separations):
    """Fill `rows` and `separations` with the nearest row within `radius` arcseconds (inclusive) of each position.

    Positions are in degrees, any right ascension; -1 and NaN stand for none, also where the position does not exist.
    Rows equally near: the smallest identifier wins.
    """
    for i in range(ra.shape[0]):
        rows[i], separations[i] = -1, np.inf
    if radius <= _BLOCK_RADIUS_ARCSEC:
        reach = _reach(radius)
        block = _new_block(np.int64(2.0 * reach * index.zones_per_degree) + 2)
        for begin in range(0, ra.shape[0], _BLOCK):
            part = slice(begin, min(begin + _BLOCK, ra.shape[0]))
            _search_block(ra[part], dec[part], radius, reach, block, index, rows[part], separations[part])
    else:
        for i in range(ra.shape[0]):
            rows[i], separations[i] = _nearest_row(ra[i], dec[i], radius, index)
    for i in range(ra.shape[0]):
        if rows[i] < 0:
            separations[i] = np.nan


@_compiled
def zones_of(dec, zones_per_degree):
    """Zone of each declination: int64[n]."""
    zones = np.empty(dec.shape[0], np.int64)
    for i in range(dec.shape[0]):
        zones[i] = zone_of(dec[i], zones_per_degree)
    return zones


@_compiled
def cells_of(ra, cells):
    """Cell of each right ascension in a zone of `cells[i]` cells: int64[n]."""
    numbers = np.empty(ra.shape[0], np.int64)
    for i in range(ra.shape[0]):
        numbers[i] = cell_of(ra[i], cells[i])
    return numbers


@_compiled
def separations_arcsec(ra1, dec1, ra2, dec2):
    """Separation in arcseconds of each pair of positions in degrees, right ascensions within [0, 360): float64[n]."""
    angles = np.empty(ra1.shape[0], np.float64)
    for i in range(ra1.shape[0]):
        angles[i] = separation(ra1[i], dec1[i], ra2[i], dec2[i])
    return angles
