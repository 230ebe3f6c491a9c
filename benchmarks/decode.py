"""Packets per second from bytes in memory to columns, beside fastavro with a cached schema."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro

from alerts.batch import AlertBatch
from alerts.container import HeaderCache
from alerts.reader import Limits, Portion, decode_portion, read_portions
from alerts.sources import find_sources
from benchmarks.measure import conditions, figure, interleaved_seconds
from simulation import simulate_night


def run(alerts: int = 1000, repeats: int = 5, peer_alerts: int = 200) -> Iterator[dict[str, Any]]:
    """Measure decoding of whole packets: header recognised, block found, the standard columns filled.

    The peer reads the record's body alone, with the schema parsed beforehand.

    Parameters
    ----------
    alerts : int
        Packets of a simulated night, cutouts included.
    repeats : int
    peer_alerts : int
        Packets for the slower peer.

    Yields
    ------
    dict
    """
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder:
        night = simulate_night(Path(folder), alerts=alerts)
        source = find_sources([str(night.archive)])[0]
        limits = Limits()
        portions = [item for item in read_portions(source, limits, lambda _: None) if isinstance(item, Portion)]
        items = [item for portion in portions for item in decode_portion(portion, source, HeaderCache(), limits)]
    batches = [item for item in items if isinstance(item, AlertBatch)]
    bodies = [
        (fastavro.parse_schema(dict(batch.schema.parsed)), bytes(batch.record(row)))
        for batch in batches
        for row in range(0, len(batch), max(1, alerts // peer_alerts))
    ]

    def ours() -> None:
        cache = HeaderCache()
        for portion in portions:
            for _ in decode_portion(portion, source, cache, limits):
                pass

    def theirs() -> None:
        for schema, body in bodies:
            fastavro.schemaless_reader(io.BytesIO(body), schema)

    seconds = interleaved_seconds({"decode": ours, "fastavro": theirs}, repeats)
    given = conditions(
        "numba", "fastavro", packets=alerts, packet_bytes=round(night.mean_member_bytes), columns=len(batches[0].values)
    )
    best = len(bodies) / seconds["fastavro"]
    yield figure("decode", alerts / seconds["decode"], "packets/s", given, best)
    yield figure("fastavro", best, "packets/s", {**given, "columns": "all"}, best, peer=True)
