"""Rows of light curves as packets bring them, made at random with every awkward case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from lightcurves.columns import DETECTION_INPUT, NON_DETECTION

Row = dict[str, Any]


def random_packets(seed: int, objects: int = 6, alerts: int = 8) -> list[tuple[list[Row], list[Row]]]:
    """Detections and non-detections of each packet; a packet repeats what earlier ones of its object brought."""
    rng = np.random.default_rng(seed)
    packets = []
    for number in range(objects):
        oid = f"ZTF{rng.integers(17, 24)}{number:07d}"
        ra, dec = (0.0001 * rng.normal() % 360 if number == 0 else rng.uniform(0, 360)), rng.uniform(-30, 80)
        history: list[Row] = []
        limits: list[Row] = []
        forced: list[Row] = []
        mjd = 58200.0 + rng.uniform(0, 10)
        for index in range(int(rng.integers(1, alerts + 1))):
            mjd += rng.choice([0.0, 0.02, 1.0, 30.0]) if index else 0.0
            candid = int(rng.integers(10**14, 10**18))
            own = _detection(rng, oid, candid, mjd, ra, dec)
            alert = {"alert_candid": candid, "alert_mjd": mjd}
            before = [row | alert | {"parent_candid": candid} for row in history if rng.uniform() < 0.8]
            for row in before:
                row |= dict.fromkeys(("distpsnr1", "sgscore1", "drb", "ndethist", "mjdendref"))
                row["has_stamp"] = False
            shift = rng.choice([0.0, 4e-6])
            seen = [row | alert | {"mjd": row["mjd"] + shift} for row in limits if rng.uniform() < 0.8]
            measured = [row | alert | {"parent_candid": candid, "ra": own["ra"]} for row in forced]
            packets.append(([own | alert, *before, *measured], seen))
            history.append(own)
            if rng.uniform() < 0.7:
                time = mjd + rng.uniform(0.1, 1.0)
                limit = None if rng.uniform() < 0.05 else float(rng.normal(20, 1))
                limits.append({"oid": oid, "fid": int(rng.integers(1, 4)), "mjd": time, "diffmaglim": limit})
            if rng.uniform() < 0.4:
                row = _detection(rng, oid, None, mjd, ra, dec)
                forced.append(row | {"forced": True, "has_stamp": False, "rb": None, "sgscore1": None, "rfid": 7})
    return packets


def _detection(rng: np.random.Generator, oid: str, candid: int | None, mjd: float, ra: float, dec: float) -> Row:
    def number(value: float, missing: float = 0.0) -> float | None:
        return None if rng.uniform() < missing else float(np.float32(value))

    row: Row = dict.fromkeys(DETECTION_INPUT.names)
    return row | {
        "oid": oid,
        "candid": candid,
        "mjd": mjd,
        "fid": int(rng.integers(1, 4)),
        "pid": int(mjd * 1000),
        "diffmaglim": number(20.3),
        "isdiffpos": int(rng.choice([-1, 1])),
        "nid": int(mjd),
        "ra": float((ra + 1e-5 * rng.normal()) % 360),
        "dec": float(dec + 1e-5 * rng.normal()),
        "magpsf": number(rng.uniform(12, 20)),
        "sigmapsf": number(rng.uniform(0.01, 1.1)),
        "magap": number(rng.uniform(12, 20), 0.1),
        "distnr": number(rng.choice([0.3, 1.2, 2.0, -999.0]), 0.1),
        "magnr": number(rng.choice([13.0, 16.0, 20.0, -999.0]), 0.1),
        "sigmagnr": number(rng.uniform(0.01, 0.3)),
        "chinr": number(rng.uniform(0.5, 3.0), 0.1),
        "sharpnr": number(rng.uniform(-0.2, 0.2), 0.1),
        "rb": number(rng.uniform(0.3, 1.0)),
        "rbversion": str(rng.choice(["t8_f5_c3", "t17_f5_c3"])),
        "drb": number(rng.uniform(), 0.2),
        "rfid": int(rng.integers(1, 3)),
        "distpsnr1": number(rng.choice([0.2, 3.0, -999.0]), 0.1),
        "sgscore1": number(rng.choice([0.1, 0.9, -999.0]), 0.1),
        "ndethist": int(rng.integers(1, 50)),
        "ncovhist": int(rng.integers(50, 90)),
        "mjdendref": float(rng.choice([58000.0, 58300.0])),
        "has_stamp": True,
        "forced": False,
    }


def tables(packets: list[tuple[list[Row], list[Row]]]) -> tuple[pa.Table, pa.Table]:
    """Detections and non-detections of packets, one behind the other."""
    detections = [row for packet in packets for row in packet[0]]
    non_detections = [row for packet in packets for row in packet[1]]
    return pa.Table.from_pylist(detections, DETECTION_INPUT), pa.Table.from_pylist(non_detections, NON_DETECTION)
