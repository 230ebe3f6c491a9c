"""The measurements in simulated packets, as columns: exposures, detections, limits, candidates, forced photometry.

Ranges, conventions of numbers and names, and the values that stand for "none" (-999, -99999, the text null) are those
of the public ZTF packets.
"""

from dataclasses import dataclass

import numpy as np

from simulation.population import (
    FIELDS_PER_BLOCK,
    FLARE,
    QUADRANT_PIXELS,
    SUPERNOVA,
    Objects,
    offset_position,
    relative_flux,
)

VISITS = 3
EXPOSURES_PER_BLOCK = VISITS * FIELDS_PER_BLOCK
HISTORY_NIGHTS = 30
MAX_HISTORY = 40
# Julian Date at which ZTF's night number is zero.
NIGHT_ZERO_JD = 2457754.5
SIDEREAL_DAY = 0.99726957
MISSING = -999.0
FORCED_MISSING = -99999.0
DETECTION_SIGMA = 5.0
POSITION_SCATTER_ARCSEC = 0.07
_BAND_LETTERS = np.array([b"g", b"r", b"i"])
_PROGRAM_LEADERS = {1: b"Kulkarni", 2: b"Partnership", 3: b"Caltech"}
_UNIX_EPOCH_JD = 2440587.5


@dataclass(frozen=True)
class Exposures:
    """Exposures of one block of objects, sorted by field and time; `visit` is -1 for those of earlier nights.

    Columns: `field` (block's own number), `jd` [day], `fid`, `visit`, and the `image` values that packets repeat.
    """

    field: np.ndarray
    jd: np.ndarray
    fid: np.ndarray
    visit: np.ndarray
    image: dict[str, np.ndarray]

    @property
    def time_code(self) -> np.ndarray:
        """Night number and fraction of the day in units of 1e-5 day, as ``pid`` starts."""
        return np.floor((self.jd - NIGHT_ZERO_JD) * 1e5 + 1e-3).astype(np.int64)


def draw_exposures(rng: np.random.Generator, start_jd: float, duration_days: float) -> Exposures:
    """Visit the block's eight fields three times in a window; on half of the nights before, at the same sidereal time.

    Parameters
    ----------
    rng
        The block's generator.
    start_jd, duration_days
        The block's window in the night [day].
    """
    spacing = duration_days / EXPOSURES_PER_BLOCK
    visit, field = np.divmod(np.arange(EXPOSURES_PER_BLOCK), FIELDS_PER_BLOCK)
    slot = start_jd + spacing * np.arange(EXPOSURES_PER_BLOCK)
    band = np.choose(visit, [1, 2, np.where(field % 4 == 3, 3, 1)])
    nights = np.arange(-HISTORY_NIGHTS + 1, 1)[:, None]
    seen = (rng.random((len(nights), FIELDS_PER_BLOCK)) < 0.5)[:, field]
    seen &= rng.random(seen.shape) < np.choose(visit, [0.95, 0.95, 0.2])
    seen[-1] = True
    jd = np.round(slot + nights * SIDEREAL_DAY + spacing * rng.uniform(0.1, 0.9, seen.shape), 7)
    which = np.broadcast_to(visit, seen.shape)
    is_tonight = np.broadcast_to(nights == 0, seen.shape)
    jd, fid = jd[seen], np.broadcast_to(band, seen.shape)[seen]
    fields_seen = np.broadcast_to(field, seen.shape)[seen]
    order = np.lexsort((jd, fields_seen))
    fid = fid[order]
    n = len(order)
    seeing = rng.gamma(8.0, 0.08, n) + 1.5
    background = rng.uniform(120.0, 560.0, n)
    limit = np.array([20.5, 20.3, 19.7])[fid - 1] - rng.gamma(1.5, 0.25, n)
    uncertainty = 10 ** rng.uniform(-5.8, -4.5, n)
    zero_point = np.array([26.2, 26.15, 25.5])[fid - 1] - rng.gamma(1.0, 0.1, n)
    image = {
        "diffmaglim": limit,
        "magzpsci": zero_point,
        "magzpsciunc": uncertainty,
        "magzpscirms": rng.uniform(0.017, 0.06, n),
        "clrcoeff": np.array([-0.05, 0.1, 0.01])[fid - 1] + rng.normal(0.0, 0.015, n),
        "clrcounc": uncertainty * 1.6,
        "zpclrcov": -uncertainty * 1.2,
        "zpmed": zero_point + rng.normal(0.0, 0.02, n),
        "clrmed": rng.uniform(0.45, 0.95, n),
        "clrrms": rng.uniform(0.1, 0.33, n),
        "nmatches": rng.integers(70, 1700, n),
        "exptime": np.full(n, 30.0),
        "sciinpseeing": seeing,
        "scibckgnd": background,
        "scisigpix": np.sqrt(background) * 0.7,
        "adpctdif1": rng.uniform(0.06, 0.1, n),
        "adpctdif2": rng.uniform(0.06, 0.14, n),
    }
    visits = np.where(is_tonight, which, -1)[seen][order]
    return Exposures(fields_seen[order], jd[order], fid, visits, image)


@dataclass(frozen=True)
class Epochs:
    """Object and exposure of every measurement of a block, sorted by object and time.

    `alert` marks the measurements that raise an alert tonight; object i has the rows ``offsets[i]:offsets[i + 1]``.
    """

    obj: np.ndarray
    exposure: np.ndarray
    alert: np.ndarray
    offsets: np.ndarray


def draw_epochs(rng: np.random.Generator, objects: Objects, exposures: Exposures, alerts: int) -> Epochs:
    """Choose which objects are measured when: each raises at least one alert tonight, `alerts` in all."""
    n = len(objects)
    first_visit = rng.choice(VISITS, n, p=[0.75, 0.2, 0.05])
    has_alert = np.zeros((n, VISITS), dtype=np.bool_)
    has_alert[np.arange(n), first_visit] = True
    has_alert.flat[rng.choice(np.flatnonzero(~has_alert), alerts - n, replace=False)] = True
    # Chip gaps and weather leave every object its own share of the exposures; some are new and have none.
    share = np.where(rng.random(n) < 0.04, 0.0, rng.uniform(0.25, 1.0, n))
    obj, exposure = [], []
    for field in range(FIELDS_PER_BLOCK):
        members = np.flatnonzero(objects.field == field)
        images = np.flatnonzero(exposures.field == field)
        visit = exposures.visit[images]
        tonight = visit >= 0
        past = rng.random((len(members), len(images))) < share[members, None]
        past &= ~tonight
        # Newest first: the history is cut at its old end.
        past &= np.cumsum(past[:, ::-1], axis=1)[:, ::-1] <= MAX_HISTORY - VISITS
        taken = np.where(tonight, has_alert[members][:, visit], past)
        i, j = np.nonzero(taken)
        obj.append(members[i])
        exposure.append(images[j])
    all_obj, all_exposure = np.concatenate(obj), np.concatenate(exposure)
    order = np.lexsort((exposures.jd[all_exposure], all_obj))
    all_obj, all_exposure = all_obj[order], all_exposure[order]
    offsets = np.searchsorted(all_obj, np.arange(n + 1))
    return Epochs(all_obj, all_exposure, exposures.visit[all_exposure] >= 0, offsets)


def _image_names(exposures: Exposures, field_id: np.ndarray, exposure: np.ndarray, rcid: np.ndarray) -> np.ndarray:
    """File names of difference images without folder, as fixed-width bytes of shape (m, width)."""
    days = exposures.jd - _UNIX_EPOCH_JD
    date = np.datetime_as_string(days.astype("datetime64[D]"))
    fraction = np.minimum((days % 1.0) * 1e6 + 0.5, 999_999).astype(np.int64)
    head = [
        f"ztf_{d.replace('-', '')}{f:06d}_{i:06d}_z{b.decode()}_".encode()
        for d, f, i, b in zip(date, fraction, field_id, _BAND_LETTERS[exposures.fid - 1], strict=True)
    ]
    channel = [f"c{r // 4 + 1:02d}_o_q{r % 4 + 1}_scimrefdiffimg.fits".encode() for r in range(64)]
    return np.concatenate([_as_bytes(head)[exposure], _as_bytes(channel)[rcid]], axis=1)


def _as_bytes(values: list[bytes]) -> np.ndarray:
    return np.array(values).view(np.uint8).reshape(len(values), -1)


def _archive_paths(names: np.ndarray) -> np.ndarray:
    """Names as the history part of a packet gives them: with the archive's folder and suffix."""
    rows = len(names)

    def constant(part: bytes) -> np.ndarray:
        return np.broadcast_to(np.frombuffer(part, dtype=np.uint8), (rows, len(part)))

    slash = constant(b"/")
    parts = [
        constant(b"/ztf/archive/sci/"),
        names[:, 4:8],
        slash,
        names[:, 8:12],
        slash,
        names[:, 12:18],
        slash,
        names,
        constant(b".fz"),
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _as_strings(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix).view(f"S{matrix.shape[1]}").reshape(-1)


def _rank_within(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Running number of every element within its group, in the given order (which sorts by group first)."""
    sorted_group = group[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
    lengths = np.diff(np.r_[starts, len(group)])
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return rank


@dataclass(frozen=True)
class Measurements:
    """Columns of all epochs, and what the later columns are derived from.

    `columns` has a field of ``prv_candidates`` per key (masked where the epoch is an upper limit); `difference` and
    `sigma` are fluxes in units of magnitude zero; `detected` marks detections.
    """

    columns: dict[str, np.ndarray]
    detected: np.ndarray
    difference: np.ndarray
    sigma: np.ndarray


def measure(
    rng: np.random.Generator,
    objects: Objects,
    exposures: Exposures,
    epochs: Epochs,
    night_jd: float,
    private_fraction: float,
) -> Measurements:
    """Measure every epoch: noise, detection at five sigma, and all columns of ``prv_candidates``.

    Parameters
    ----------
    rng
        The block's generator.
    objects, exposures, epochs
        The block.
    night_jd
        Julian Date of the UT midnight that starts the night's date [day].
    private_fraction
        Fraction of measurements with programid 2 or 3.
    """
    obj, exposure = epochs.obj, epochs.exposure
    n = len(obj)
    noise = rng.standard_normal((12, n), dtype=np.float32)
    uniform = rng.random((6, n), dtype=np.float32)
    jd, fid, rcid = exposures.jd[exposure], exposures.fid[exposure], objects.rcid[obj]
    image = {name: column[exposure] for name, column in exposures.image.items()}

    magnr = objects.reference_mag[obj, fid - 1]
    sigma = 10 ** (-0.4 * image["diffmaglim"]) / DETECTION_SIGMA
    true_ratio = relative_flux(objects, obj, jd - night_jd, fid)
    difference = 10 ** (-0.4 * magnr) * (true_ratio - 1.0) + sigma * noise[0]
    # An alert exists, so its measurement passed the threshold, by a noise peak if need be.
    too_faint = epochs.alert & (np.abs(difference) < 1.1 * DETECTION_SIGMA * sigma)
    difference = np.where(
        too_faint, np.copysign(1.1 * DETECTION_SIGMA * sigma * (1 + 0.3 * uniform[0]), difference), difference
    )
    flux = np.abs(difference)
    detected = epochs.alert | (flux > DETECTION_SIGMA * sigma)

    magpsf = -2.5 * np.log10(flux)
    sigmapsf = np.minimum(np.hypot(1.0857 * sigma / flux, 0.02), 0.3)
    positive = difference > 0
    numeric_sign = uniform[1] < 0.05
    isdiffpos = np.where(positive, np.where(numeric_sign, b"1", b"t"), np.where(numeric_sign, b"0", b"f"))
    east, north = POSITION_SCATTER_ARCSEC * noise[1], POSITION_SCATTER_ARCSEC * noise[2]
    ra, dec = offset_position(objects.ra[obj], objects.dec[obj], east, north)
    # The host of a supernova lies beside it.
    host_arcsec = np.where(objects.kind[obj] == SUPERNOVA, 1.0 + np.abs(np.sin(objects.phases[obj, 1])) * 3.0, 0.03)
    ranr, decnr = offset_position(
        objects.ra[obj],
        objects.dec[obj],
        host_arcsec * np.cos(objects.phases[obj, 2]),
        host_arcsec * np.sin(objects.phases[obj, 2]),
    )
    xpos = (objects.xpos[obj] + 0.5 * noise[1]).clip(0.0, QUADRANT_PIXELS[0] - 1)
    ypos = (objects.ypos[obj] + 0.5 * noise[2]).clip(0.0, QUADRANT_PIXELS[1] - 1)
    edge = np.minimum.reduce([xpos, ypos, QUADRANT_PIXELS[0] - 1 - xpos, QUADRANT_PIXELS[1] - 1 - ypos])
    magdiff = 0.6 * sigmapsf * noise[3]
    fwhm = image["sciinpseeing"] * (1 + 0.1 * noise[4]).clip(0.5, 2.0)
    aimage = 0.35 * fwhm * (1 + 0.1 * noise[5]).clip(0.6, 1.6)
    elong = 1.0 + 0.1 * np.abs(noise[6])
    programid = np.where(uniform[2] < private_fraction, 2 + (uniform[3] < 0.5), 1)
    leaders = np.array([b"", *(_PROGRAM_LEADERS[i] for i in (1, 2, 3))])
    field_id = np.zeros(len(exposures.jd), dtype=np.int64)
    field_id[exposure] = objects.field_id[obj]

    pid = exposures.time_code[exposure] * 10_000 + rcid * 100 + 15
    tblid = _rank_within(exposure, np.lexsort((rcid, exposure)))
    candid = pid * 1_000_000 + np.where(positive, 15_000, 10_000) + tblid
    paths = _archive_paths(_image_names(exposures, field_id, exposure, rcid))

    measured = {
        "candid": candid,
        "isdiffpos": isdiffpos,
        "tblid": tblid,
        "xpos": xpos,
        "ypos": ypos,
        "ra": ra,
        "dec": dec,
        "magpsf": magpsf,
        "sigmapsf": sigmapsf,
        "chipsf": 0.8 + np.abs(noise[7]) * 3.0 + 20.0 * (sigmapsf < 0.03),
        "magap": magpsf + magdiff,
        "sigmagap": np.round(1.2 * sigmapsf, 4),
        "distnr": np.hypot(host_arcsec, 0.05 * noise[8]),
        "magnr": magnr,
        "sigmagnr": np.round(0.01 + 0.01 * np.maximum(magnr - 16.0, 0.0), 3),
        "chinr": np.round(0.5 + 0.5 * np.abs(np.sin(objects.phases[obj, 3])), 3),
        "sharpnr": np.round(0.05 * np.sin(objects.phases[obj, 4]), 3),
        "sky": 0.8 * noise[9],
        "magdiff": magdiff,
        "fwhm": fwhm,
        "classtar": np.round(1.0 - 0.15 * uniform[4] ** 2, 3),
        "mindtoedge": edge,
        "magfromlim": image["diffmaglim"] - (magpsf + magdiff),
        "seeratio": (image["sciinpseeing"] / fwhm).clip(0.3, 2.0),
        "aimage": aimage,
        "bimage": aimage / elong,
        "aimagerat": aimage / fwhm,
        "bimagerat": aimage / elong / fwhm,
        "elong": elong,
        "nneg": np.minimum(np.abs(noise[10]) * 4.0, 12.0).astype(np.int64),
        "nbad": (uniform[5] < 0.02).astype(np.int64),
        "rb": (0.95 - 0.25 * np.abs(noise[11])).clip(0.02, 0.99),
        "ssdistnr": np.full(n, MISSING),
        "ssmagnr": np.full(n, MISSING),
        "ssnamenr": np.full(n, b"null"),
        "sumrat": (1.0 - 0.05 * np.abs(noise[3])).clip(0.4, 1.0),
        "magapbig": magpsf + 1.4 * magdiff,
        "sigmagapbig": np.round(1.5 * sigmapsf, 4),
        "ranr": ranr,
        "decnr": decnr,
        "scorr": np.round(flux / sigma * 1.03, 4),
    }
    limit = ~detected
    columns: dict[str, np.ndarray] = {name: np.ma.array(column, mask=limit) for name, column in measured.items()}
    for name in ("ssdistnr", "ssmagnr", "ssnamenr"):
        columns[name] = np.ma.array(measured[name], mask=True)
    columns |= {
        "jd": jd,
        "fid": fid,
        "pid": pid,
        "diffmaglim": image["diffmaglim"],
        "pdiffimfilename": _as_strings(paths),
        "programpi": leaders[programid],
        "programid": programid,
        "nid": exposures.time_code[exposure] // 100_000,
        "rcid": rcid,
        "field": objects.field_id[obj],
        "rbversion": np.full(n, b"t17_f5_c3"),
    }
    uncalibrated = uniform[3] < 0.01
    for name in ("magzpsci", "magzpsciunc", "magzpscirms", "clrcoeff", "clrcounc"):
        columns[name] = np.ma.array(image[name], mask=uncalibrated)
    return Measurements(columns, detected, difference, sigma)


def candidate_columns(
    rng: np.random.Generator,
    objects: Objects,
    exposures: Exposures,
    epochs: Epochs,
    measured: Measurements,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Columns of ``candidate`` (both schemas) for the epochs `rows` that raise alerts."""
    n = len(rows)
    obj, exposure = epochs.obj[rows], epochs.exposure[rows]
    noise = rng.standard_normal((4, n), dtype=np.float32)
    uniform = rng.random((12, n), dtype=np.float32)
    columns = {name: column[rows] for name, column in measured.columns.items()}
    for name, image_column in exposures.image.items():
        columns[name] = image_column[exposure]
    jd, fid, rcid = columns["jd"], columns["fid"], columns["rcid"]
    folders = len("/ztf/archive/sci/YYYY/MMDD/ffffff/")
    paths = columns["pdiffimfilename"].view(np.uint8).reshape(n, -1)
    columns["pdiffimfilename"] = _as_strings(paths[:, folders : -len(".fz")])

    detections = np.cumsum(measured.detected)
    before = np.r_[0, detections][epochs.offsets[obj]]
    counted = detections[rows] - before
    first_row = np.searchsorted(detections, before + 1)
    recent = np.isin(objects.kind[obj], (SUPERNOVA, FLARE))
    # What was seen before the history's month.
    older = np.where(recent, 0, (np.abs(np.sin(objects.phases[obj, 0])) * 400).astype(np.int64))
    first_jd = measured.columns["jd"][first_row]
    columns["ndethist"] = counted + older
    columns["ncovhist"] = counted + older + 30 + (np.abs(np.sin(objects.phases[obj, 5])) * 700).astype(np.int64)
    columns["jdstarthist"] = np.round(np.where(older > 0, first_jd - 31.0 - 2.0 * older, first_jd), 7)
    columns["jdendhist"] = jd

    minor_body = uniform[0] < 0.02
    number = (uniform[1] * 100_000).astype(np.int64) + 1
    columns["ssdistnr"] = np.where(minor_body, np.floor(uniform[2] * 3), MISSING)
    columns["ssmagnr"] = np.where(minor_body, np.round(16.0 + 3.5 * uniform[3], 1), MISSING)
    columns["ssnamenr"] = np.where(minor_body, number.astype("S10"), b"null")

    # Neighbours belong to the object: the same in all its alerts.
    fraction = np.abs(np.sin(objects.phases[obj] * 37.0))
    zone = np.floor((objects.dec[obj] + 90.0) * 120.0).astype(np.int64)
    distances = [0.05 + 0.3 * fraction[:, 0], 2.0 + 10.0 * fraction[:, 1], 13.0 + 16.0 * fraction[:, 2]]
    lonely = [fraction[:, 5] < 0.01, fraction[:, 5] < 0.04, fraction[:, 5] < 0.08]
    for i in range(3):
        none = lonely[i]
        micro = ((objects.ra[obj] + 1e-4 * i) % 360.0 * 1e6).astype(np.int64)
        identifier = zone * 10**13 + micro * 10**4 + (fraction[:, i] * 9999).astype(np.int64)
        columns[f"objectidps{i + 1}"] = np.where(none, int(MISSING), identifier)
        columns[f"distpsnr{i + 1}"] = np.where(none, MISSING, distances[i])
        columns[f"sgscore{i + 1}"] = np.where(none, MISSING, fraction[:, 3] if i == 0 else fraction[:, (i + 3) % 6])
        faintness = 0.0 if i == 0 else 2.0 + 3.0 * fraction[:, i]
        for b, band in enumerate("griz"):
            mag = objects.reference_mag[obj, min(b, 2)] + faintness - 0.15 * (b == 3)
            unknown = none | (fraction[:, (b + i) % 6] < 0.05 * (i + 0.4))
            columns[f"s{band}mag{i + 1}"] = np.where(unknown, MISSING, np.round(mag.clip(10.0, 23.5), 4))
    columns["nmtchps"] = np.where(lonely[0], 0, 1 + (fraction[:, 4] * 40).astype(np.int64))

    columns["rfid"] = columns["field"] * 1_000_000 + 120_000 + fid * 100 + rcid
    columns["jdstartref"] = np.round(2458150.0 + columns["field"] % 97 + fid * 0.1234567, 6)
    columns["jdendref"] = columns["jdstartref"] + 120.0
    columns["nframesref"] = 15 + columns["field"] % 26
    ssnrms = columns["scorr"].data * 1.5 * (1 + 0.05 * noise[0])
    columns["ssnrms"] = ssnrms
    columns["dsnrms"] = ssnrms * (0.4 + 0.1 * uniform[4])
    columns["dsdiff"] = columns["dsnrms"] - ssnrms
    bright = fraction[:, 2] < 0.5
    columns["neargaia"] = np.where(lonely[1], MISSING, 0.02 + 0.3 * fraction[:, 0])
    columns["maggaia"] = np.where(lonely[1], MISSING, objects.reference_mag[obj, 1])
    columns["neargaiabright"] = np.where(bright, 10.0 + 79.0 * fraction[:, 3], MISSING)
    columns["maggaiabright"] = np.where(bright, 10.0 + 3.9 * fraction[:, 1], MISSING)
    columns["drb"] = 1.0 - (0.02 * np.abs(noise[1]) ** 3).clip(0.0, 0.95)
    columns["drbversion"] = np.full(n, b"d6_m7")
    columns["tooflag"] = (uniform[5] < 0.01).astype(np.int64)

    nulls = {
        ("ssdistnr", "ssmagnr", "ssnamenr"): uniform[6] < 0.3,
        ("sgmag2", "srmag2", "simag2", "szmag2", "sgscore2", "distpsnr2", "objectidps2"): uniform[7] < 0.04,
        ("sgmag3", "srmag3", "simag3", "szmag3", "sgscore3", "distpsnr3", "objectidps3"): uniform[7] < 0.1,
        ("neargaiabright", "maggaiabright"): uniform[8] < 0.05,
        ("distnr", "magnr", "sigmagnr", "chinr", "sharpnr"): uniform[9] < 0.01,
        ("pdiffimfilename", "programpi"): uniform[10] < 0.01,
        ("drb",): uniform[11] < 0.02,
        ("clrcoeff", "clrcounc", "zpclrcov"): uniform[11] > 0.99,
    }
    for names, null in nulls.items():
        for name in names:
            columns[name] = np.ma.array(columns[name], mask=null)
    return columns


def forced_columns(
    rng: np.random.Generator,
    objects: Objects,
    exposures: Exposures,
    epochs: Epochs,
    measured: Measurements,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Columns of ``fp_hists`` for the epochs `rows`; a few are not measured (-99999, with a status code)."""
    n = len(rows)
    exposure = epochs.exposure[rows]
    columns = {name: measured.columns[name][rows] for name in ("field", "rcid", "fid", "pid", "programid", "jd")}
    columns |= {name: column[exposure] for name, column in exposures.image.items()}
    columns["rfid"] = columns["field"] * 1_000_000 + 120_000 + columns["fid"] * 100 + columns["rcid"]
    count_per_flux = 10 ** (0.4 * columns["magzpsci"])
    columns["forcediffimflux"] = measured.difference[rows] * count_per_flux
    columns["forcediffimfluxunc"] = measured.sigma[rows] * count_per_flux
    for name in ("distnr", "ranr", "decnr", "magnr", "sigmagnr", "chinr", "sharpnr"):
        columns[name] = np.ma.getdata(measured.columns[name])[rows]
    failed = rng.random(n) < 0.08
    for name in (
        "forcediffimflux",
        "forcediffimfluxunc",
        "distnr",
        "ranr",
        "decnr",
        "magnr",
        "sigmagnr",
        "chinr",
        "sharpnr",
    ):
        columns[name] = np.where(failed, FORCED_MISSING, columns[name])
    columns["procstatus"] = np.where(failed, b"61", np.where(rng.random(n) < 0.03, b"56", b"0"))
    columns["adpctdif1"] = np.ma.array(columns["adpctdif1"], mask=rng.random(n) < 0.01)
    return columns
