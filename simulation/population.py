"""The sky objects of a simulated night: where they are, what they are, how bright they are at any time.

Objects come in blocks drawn from the seed and the block's number alone, so that a night of any size needs only one
block at a time and the catalogue can be written without the night.
"""

from dataclasses import dataclass, fields

import numpy as np

OBJECTS_PER_BLOCK = 2048
FIELDS_PER_BLOCK = 8
SOUTHERN_LIMIT_DEG = -31.0
QUADRANT_PIXELS = (3072, 3080)

KINDS = ("constant", "periodic", "supernova", "flare", "stochastic")
CONSTANT, PERIODIC, SUPERNOVA, FLARE, STOCHASTIC = range(5)
_KIND_WEIGHTS = (0.15, 0.40, 0.12, 0.05, 0.28)
# Most variables vary less in the red.
_BAND_AMPLITUDE = np.array([1.0, 0.75, 0.6])
_MODES = 6

_DEC_BANDS = 17
_BAND_HEIGHT_DEG = (90.0 - SOUTHERN_LIMIT_DEG) / _DEC_BANDS
_OBJECT_STREAM = 1


def random_stream(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    """Generator of its own for each purpose and part, so that parts can be drawn in any order."""
    return np.random.default_rng([seed, stream, *numbers])


@dataclass(frozen=True)
class SkyFields:
    """Grid of fields from declination -31° to the pole; cells of one row are centred on multiples of their width."""

    first_dec: np.ndarray
    centre_ra: np.ndarray
    width_ra: np.ndarray


def sky_fields() -> SkyFields:
    """Make the grid (degrees); field 0 of a row straddles right ascension 0."""
    first_dec, centre_ra, width_ra = [], [], []
    for band in range(_DEC_BANDS):
        south = SOUTHERN_LIMIT_DEG + band * _BAND_HEIGHT_DEG
        cells = max(1, int(360.0 * np.cos(np.radians(south + _BAND_HEIGHT_DEG / 2)) / _BAND_HEIGHT_DEG))
        first_dec += [south] * cells
        centre_ra += [cell * 360.0 / cells for cell in range(cells)]
        width_ra += [360.0 / cells] * cells
    return SkyFields(np.array(first_dec), np.array(centre_ra), np.array(width_ra))


def offset_position(
    ra: np.ndarray, dec: np.ndarray, east_arcsec: np.ndarray, north_arcsec: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions moved on the tangent plane; valid at the poles too.

    Parameters
    ----------
    ra, dec
        Degrees, shape (n,).
    east_arcsec, north_arcsec
        Offsets, shape (n,).

    Returns
    -------
    ra, dec
        Degrees, rounded to 7 decimals as packets and catalogues give them.
    """
    lon, lat = np.radians(ra), np.radians(dec)
    east, north = np.radians(east_arcsec / 3600.0), np.radians(north_arcsec / 3600.0)
    x = np.cos(lat) * np.cos(lon) - east * np.sin(lon) - north * np.sin(lat) * np.cos(lon)
    y = np.cos(lat) * np.sin(lon) + east * np.cos(lon) - north * np.sin(lat) * np.sin(lon)
    z = np.sin(lat) + north * np.cos(lat)
    new_ra = np.round(np.degrees(np.arctan2(y, x)) % 360.0, 7) % 360.0
    return new_ra, np.round(np.degrees(np.arctan2(z, np.hypot(x, y))), 7)


@dataclass(frozen=True)
class Objects:
    """A block of objects as columns.

    Positions in degrees, pixels on the readout channel, times in days relative to the night, magnitudes AB.
    `field` is the block's own field number (0 to 7), `field_id` the survey's.
    """

    number: np.ndarray
    object_id: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    field: np.ndarray
    field_id: np.ndarray
    rcid: np.ndarray
    xpos: np.ndarray
    ypos: np.ndarray
    kind: np.ndarray
    reference_mag: np.ndarray
    amplitude: np.ndarray
    period_days: np.ndarray
    time_days: np.ndarray
    phases: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    def first(self, n: int) -> "Objects":
        """The first n objects."""
        return Objects(**{f.name: getattr(self, f.name)[:n] for f in fields(self)})


def _names(number: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    letters = 5
    # A step that shares no factor with 26**5 visits every name once.
    code = (number * 7_368_787 + 2_750_159) % 26**letters
    out = np.empty((len(number), 12), dtype=np.uint8)
    year = rng.integers(17, 26, len(number))
    out[:, :3] = np.frombuffer(b"ZTF", dtype=np.uint8)
    out[:, 3], out[:, 4] = 48 + year // 10, 48 + year % 10
    out[:, 5], out[:, 6] = ord("a"), ord("a") + rng.integers(0, 4, len(number))
    for i in range(letters):
        out[:, 11 - i] = ord("a") + code % 26
        code //= 26
    return out.view("S12").reshape(-1)


def object_block(seed: int, block: int) -> Objects:
    """Draw block number `block` of the seed's objects; block 0 holds right ascension 0/360 and the pole."""
    rng = random_stream(seed, _OBJECT_STREAM, block)
    n = OBJECTS_PER_BLOCK
    grid = sky_fields()
    chosen = rng.choice(len(grid.first_dec), FIELDS_PER_BLOCK, replace=False)
    if block == 0:
        straddles = np.flatnonzero((grid.centre_ra == 0.0) & (np.abs(grid.first_dec) < 20.0))
        others = np.setdiff1d(chosen, np.append(straddles[:1], len(grid.first_dec) - 1))
        chosen = np.concatenate([straddles[:1], [len(grid.first_dec) - 1], others])[:FIELDS_PER_BLOCK]
    field = np.arange(n) % FIELDS_PER_BLOCK
    cell = chosen[field]
    east, north = rng.random((2, n))
    if block == 0:
        tiny = rng.random(n) < 0.1
        east = np.where((field == 0) & tiny, 0.5 + (east - 0.5) * 1e-4, east)
        north = np.where((field == 1) & tiny, 1.0 - north * 1e-3, north)
    ra = np.round((grid.centre_ra[cell] + (east - 0.5) * grid.width_ra[cell]) % 360.0, 7) % 360.0
    low = np.sin(np.radians(grid.first_dec[cell]))
    high = np.sin(np.radians(grid.first_dec[cell] + _BAND_HEIGHT_DEG))
    dec = np.round(np.degrees(np.arcsin(low + north * (high - low))), 7)
    # Eight by eight readout channels tile the field.
    column, row = (east * 8).astype(np.int64), (north * 8).astype(np.int64).clip(0, 7)
    number = block * n + np.arange(n)
    kind = rng.choice(len(KINDS), n, p=_KIND_WEIGHTS)
    r_mag = np.round(rng.uniform(14.5, 19.0, n) + np.where(kind == SUPERNOVA, 1.5, 0.0), 3)
    g_r = np.round(rng.uniform(0.0, 1.2, n), 3)
    sign = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    amplitude = np.choose(
        kind,
        [
            sign * rng.uniform(0.15, 0.5, n),  # change of flux since the reference image
            rng.uniform(0.2, 0.9, n),  # semi-amplitude [mag]
            10.0 ** rng.uniform(-0.4, 0.8, n),  # peak over host
            10.0 ** rng.uniform(0.0, 1.2, n),  # peak over quiet
            rng.uniform(0.15, 0.5, n),  # scatter [mag]
        ],
    )
    time_days = np.choose(
        kind,
        [
            np.zeros(n),
            np.zeros(n),
            rng.uniform(-28.0, 4.0, n),
            -(10.0 ** rng.uniform(-3.0, -1.5, n)),
            np.zeros(n),
        ],
    )
    return Objects(
        number=number,
        object_id=_names(number, rng),
        ra=ra,
        dec=dec,
        field=field,
        field_id=200 + cell,
        rcid=(column.clip(0, 7) * 8 + row),
        xpos=np.round((east * 8 % 1.0) * QUADRANT_PIXELS[0], 2),
        ypos=np.round((north * 8 % 1.0) * QUADRANT_PIXELS[1], 2),
        kind=kind,
        reference_mag=np.stack([r_mag + g_r, r_mag, r_mag - 0.4 * g_r], axis=1),
        amplitude=amplitude,
        period_days=10.0 ** rng.uniform(-0.7, 2.0, n),
        time_days=time_days,
        phases=rng.uniform(0.0, 2 * np.pi, (n, _MODES)),
    )


def relative_flux(objects: Objects, index: np.ndarray, days: np.ndarray, fid: np.ndarray) -> np.ndarray:
    """Brightness over the reference image's, without noise.

    Parameters
    ----------
    objects
        The block.
    index
        Object of each epoch, shape (m,).
    days
        Time relative to the start of the night [day], shape (m,).
    fid
        Filter 1, 2, 3, shape (m,).

    Returns
    -------
    ndarray
        Flux ratio, shape (m,); 1 where the object is as bright as in the reference image.
    """
    kind, amplitude = objects.kind[index], objects.amplitude[index]
    band = _BAND_AMPLITUDE[fid - 1]
    phase = 2 * np.pi * days / objects.period_days[index] + objects.phases[index, 0]
    periodic = 10 ** (-0.4 * amplitude * band * (np.sin(phase) + 0.35 * np.sin(2 * phase)) / 1.2)
    age = days - objects.time_days[index]
    # Rise of a week, decline of a fortnight that is slower in the red, tail.
    rise = np.exp(-0.5 * (np.minimum(age, 0.0) / 5.0) ** 2)
    decline = np.exp(-np.maximum(age, 0.0) / (12.0 + 6.0 * (fid - 1)))
    supernova = 1.0 + amplitude * rise * decline
    flare = 1.0 + amplitude * band * np.where(age < 0.0, 0.0, np.exp(-np.maximum(age, 0.0) / 0.08))
    # A sum of modes with amplitudes that grow with the period stands for a damped random walk.
    walk = np.zeros_like(days)
    for mode in range(_MODES):
        period = 2.0 * 2.6**mode
        walk += np.sqrt(period) * np.sin(2 * np.pi * days / period + objects.phases[index, mode])
    norm = np.sqrt(sum(2.0 * 2.6**mode for mode in range(_MODES)) / 2)
    stochastic = 10 ** (-0.4 * amplitude * band * walk / norm)
    return np.choose(kind, [1.0 + amplitude * band, periodic, supernova, flare, stochastic])
