"""Nearest catalogue row on the sphere: the compiled part of the local matcher.

A catalogue is cut into declination zones of equal height and each zone into cells of equal width in right ascension,
narrow enough to hold about two rows. A search visits the zone of the position first, then its neighbours outwards,
and in each zone only the cells that the search circle can touch.

Rows are compared by their computed distance alone. The zones, cells and bounds only leave out rows that cannot win,
with a margin far above the rounding of one operation, so the answer does not depend on how the catalogue was cut.
"""

import math

import numba
import numpy as np

ARCSEC_PER_DEGREE = 3600.0
MAX_RADIUS_ARCSEC = 3600.0

# Bounds that leave rows out are widened by these, far above rounding (about 6e-14 degrees) and far below a cell.
_RELATIVE_MARGIN = 1.0 + 1e-9
_ABSOLUTE_MARGIN_DEG = 1e-12
# Before the positions of a block are searched, the memory that they will need is touched for the whole block, so that
# the cache misses overlap instead of queueing: nearly twice the speed on unsorted positions.
_BLOCK = 32

# Inlining by numba, before LLVM sees the code, makes the search 30 % faster.
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")


@_compiled
def zone_of(dec, zones_per_degree):
    """Number of the declination zone of `dec` (degrees), counted from the south pole."""
    return np.int64((dec + 90.0) * zones_per_degree)


@_compiled
def cell_of(ra, cells):
    """Number of the cell of `ra` (degrees, 0 to 360) in a zone of `cells` cells; it never decreases with `ra`."""
    return min(np.int64(ra * (1.0 / 360.0) * cells), cells - 1)


@_compiled
def _cosine_of_dec(dec):
    # 90 - |dec| is exact near the poles, where the cosine of the rounded radians would lose its digits.
    return math.sin(math.radians(90.0 - abs(dec)))


@_compiled
def _ra_difference(ra1, ra2):
    difference = abs(ra1 - ra2)
    if difference > 180.0:
        difference = (360.0 - max(ra1, ra2)) + min(ra1, ra2)
    return difference


@_compiled
def separation(ra1, dec1, ra2, dec2):
    """Angle in arcseconds between two positions in degrees, right ascensions within [0, 360): haversine formula.

    Accurate to a few units in the last place for the separations that a search allows (up to one degree).
    """
    half_ra = math.sin(math.radians(_ra_difference(ra1, ra2)) * 0.5)
    half_dec = math.sin(math.radians(dec2 - dec1) * 0.5)
    haversine = half_dec * half_dec + _cosine_of_dec(dec1) * _cosine_of_dec(dec2) * half_ra * half_ra
    return math.degrees(2.0 * math.asin(math.sqrt(min(1.0, haversine)))) * ARCSEC_PER_DEGREE


@_compiled
def _reach(radius):
    """Bound in degrees on the difference in declination of rows within `radius` arcseconds."""
    return radius * (_RELATIVE_MARGIN / ARCSEC_PER_DEGREE) + _ABSOLUTE_MARGIN_DEG


@_compiled
def _half_width(dec, reach):
    """Bound in degrees on the difference in right ascension of rows within `reach` degrees of declination `dec`.

    The largest difference is asin(sin(reach) / cos(dec)). Bounds are cheaper than the functions: with c the distance
    to the pole in radians, cos(dec) = sin(c) >= c (1 - c*c / 6), and asin(x) <= 1.01 x below 0.2.
    """
    colatitude = math.radians(90.0 - abs(dec))
    sine = math.radians(reach) / (colatitude * (1.0 - colatitude * colatitude * (1.0 / 6.0)))
    if sine < 0.2 and colatitude > 0.0:
        return math.degrees(sine) * 1.01 + _ABSOLUTE_MARGIN_DEG
    return 360.0


@_compiled
def _precedes(identifiers, row, other):
    for k in range(identifiers.shape[1]):
        if identifiers[row, k] != identifiers[other, k]:
            return identifiers[row, k] < identifiers[other, k]
    return False


@_compiled
def _search_rows(target, first, last, best, positions, identifiers):
    """Best of the rows `first` to `last` and the best so far: nearest, then smallest identifier."""
    ra, dec, half_width, radius = target
    row_found, nearest = best
    limit = min(radius, nearest)
    reach = _reach(limit)
    for row in range(first, last):
        if abs(positions[row, 1] - dec) > reach or _ra_difference(positions[row, 0], ra) > half_width:
            continue
        distance = separation(ra, dec, positions[row, 0], positions[row, 1])
        if distance > limit:
            continue
        if distance < nearest or _precedes(identifiers, row, row_found):
            row_found, nearest, limit = row, distance, distance
            reach = _reach(distance)
    return row_found, nearest


@_compiled
def _search_zone(target, zone, best, positions, identifiers, zone_rows, zone_cells, cell_rows):
    """Best of the rows of one zone that `target` can reach and the best so far."""
    cell0 = zone_cells[zone]
    cells = zone_cells[zone + 1] - cell0 - 1
    if cells < 1:
        return best
    row0, row1 = zone_rows[zone], zone_rows[zone + 1]
    low, high = target[0] - target[2], target[0] + target[2]
    begin, end = max(low, 0.0), min(high, 360.0)
    crosses_zero = (low < 0.0 or high >= 360.0) and high - low < 360.0
    while True:
        first = row0 + np.int64(cell_rows[cell0 + cell_of(begin, cells)])
        last = row0 + np.int64(cell_rows[cell0 + cell_of(end, cells) + 1])
        # Whatever a damaged file says, no row beyond the zone is read.
        best = _search_rows(target, first, min(last, row1), best, positions, identifiers)
        if not crosses_zero:
            return best
        begin, end = (low + 360.0, 360.0) if low < 0.0 else (0.0, high - 360.0)
        crosses_zero = False


@_compiled
def _nearest_row(ra, dec, radius, zones_per_degree, positions, identifiers, zone_rows, zone_cells, cell_rows):
    """Row nearest to one position and its separation; (-1, infinity) where none is within the radius."""
    centre = zone_of(dec, zones_per_degree)
    best = (np.int64(-1), np.inf)
    step = 0
    while True:
        reach = _reach(min(radius, best[1]))
        lowest = zone_of(max(dec - reach, -90.0), zones_per_degree)
        highest = zone_of(min(dec + reach, 90.0), zones_per_degree)
        # Outwards from the zone of the position: 0, -1, 1, -2, 2, ...
        distance = (step + 1) // 2
        if centre - distance < lowest and centre + distance > highest:
            return best
        zone = centre - distance if step % 2 else centre + distance
        if lowest <= zone <= highest:
            target = (ra, dec, _half_width(dec, reach), radius)
            best = _search_zone(target, zone, best, positions, identifiers, zone_rows, zone_cells, cell_rows)
        step += 1


@_compiled
def _fetch_ahead(ra, dec, first_rows, zones_per_degree, positions, zone_rows, zone_cells, cell_rows):
    for i in range(ra.shape[0]):
        zone = zone_of(dec[i], zones_per_degree)
        cells = zone_cells[zone + 1] - zone_cells[zone] - 1
        first_rows[i] = zone_rows[zone]
        if cells > 0:
            first_rows[i] += np.int64(cell_rows[zone_cells[zone] + cell_of(ra[i], cells)])
    touched = 0.0
    last_row = positions.shape[0] - 1
    for i in range(ra.shape[0]):
        touched += positions[min(first_rows[i], last_row), 1]
    return touched


@numba.njit(cache=True, nogil=True, error_model="numpy")
def nearest_rows(
    ra, dec, radius, zones_per_degree, positions, identifiers, zone_rows, zone_cells, cell_rows, rows, separations
):
    """Fill `rows` and `separations` with the nearest row within `radius` arcseconds (inclusive) of each position.

    Positions are in degrees with right ascensions within [0, 360) and the catalogue has at least one row; -1 and NaN
    stand for none. Rows equally near: the smallest identifier wins. The result has no meaning: it keeps the compiler
    from leaving out the loads of `_fetch_ahead`.
    """
    first_rows = np.empty(_BLOCK, np.int64)
    touched = 0.0
    for begin in range(0, ra.shape[0], _BLOCK):
        end = min(begin + _BLOCK, ra.shape[0])
        touched += _fetch_ahead(
            ra[begin:end], dec[begin:end], first_rows, zones_per_degree, positions, zone_rows, zone_cells, cell_rows
        )
        for i in range(begin, end):
            row, distance = _nearest_row(
                ra[i], dec[i], radius, zones_per_degree, positions, identifiers, zone_rows, zone_cells, cell_rows
            )
            rows[i] = row
            separations[i] = distance if row >= 0 else np.nan
    return touched


@numba.njit(cache=True, nogil=True)
def zones_of(dec, zones_per_degree):
    """Zone of each declination: int64[n]."""
    zones = np.empty(dec.shape[0], np.int64)
    for i in range(dec.shape[0]):
        zones[i] = zone_of(dec[i], zones_per_degree)
    return zones


@numba.njit(cache=True, nogil=True)
def cells_of(ra, cells):
    """Cell of each right ascension in a zone of `cells[i]` cells: int64[n]."""
    numbers = np.empty(ra.shape[0], np.int64)
    for i in range(ra.shape[0]):
        numbers[i] = cell_of(ra[i], cells[i])
    return numbers


@numba.njit(cache=True, nogil=True, error_model="numpy")
def separations_arcsec(ra1, dec1, ra2, dec2):
    """Separation in arcseconds of each pair of positions in degrees, right ascensions within [0, 360): float64[n]."""
    angles = np.empty(ra1.shape[0], np.float64)
    for i in range(ra1.shape[0]):
        angles[i] = separation(ra1[i], dec1[i], ra2[i], dec2[i])
    return angles
