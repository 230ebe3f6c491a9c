"""Half an hour of a stream: its memory does not grow."""

import signal
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from backfill_fixtures import DEMO_MODEL
from confluent_kafka import Producer
from kafka_fixtures import client_options
from live_stream_fixtures import packets_of
from stream_process_fixtures import Stream, offsets_of

from messaging.admin import create_topic
from messaging.local_broker import LocalBroker
from simulation import simulate_catalog, simulate_night
from xmatch.catalog import build_catalog

FIRST_NIGHT = date(2026, 1, 1)
ALERTS_PER_NIGHT = 1500
PARTITIONS = 2
WARM_UP_PART = 1 / 3
MOST_GROWTH_MB = 60.0


def nights(folder: Path) -> Iterator[list[bytes]]:
    """Packets of one night after the other: some objects are in each, most in one only."""
    for number in range(10_000):
        day = f"{FIRST_NIGHT + timedelta(days=number):%Y%m%d}"
        found = []
        for seed, alerts in ((1, ALERTS_PER_NIGHT // 3), (number + 2, 2 * ALERTS_PER_NIGHT // 3)):
            summary = simulate_night(folder / f"{seed}", alerts=alerts, seed=seed, date=day, cutouts=False)
            found += packets_of(summary.archive)
            summary.archive.unlink()
        yield found


class Feeder(threading.Thread):
    """Puts alerts into a topic at a steady rate until it is stopped."""

    def __init__(self, address: str, topic: str, rate: float, folder: Path) -> None:
        super().__init__(daemon=True)
        self._topic, self._rate, self._folder = topic, rate, folder
        self._producer = Producer({**client_options(address), "linger.ms": 20})
        self._ended = threading.Event()
        self.sent = 0

    def run(self) -> None:
        next_at = time.monotonic()
        for packets in nights(self._folder):
            for number, packet in enumerate(packets):
                self._producer.produce(self._topic, packet, partition=number % PARTITIONS)
                self._producer.poll(0)
                self.sent += 1
                next_at += 1 / self._rate
                if self._ended.wait(max(0.0, next_at - time.monotonic())):
                    self._producer.flush()
                    return
            # The next night took its time: what was missed is not made up for.
            next_at = max(next_at, time.monotonic())

    def stop(self) -> None:
        self._ended.set()
        self.join()


@pytest.mark.long
def test_half_an_hour_of_a_stream(kafka_broker: LocalBroker, empty_url: str, tmp_path: Path) -> None:
    """Run it by ``python -m pytest -m long tests/test_stream_soak.py -s``."""
    soak(kafka_broker, empty_url, tmp_path, minutes=30.0, rate=50.0)


def soak(broker: LocalBroker, url: str, folder: Path, minutes: float, rate: float) -> None:
    """Stream simulated nights at a rate per second; the memory after a warm-up stays what it is."""
    catalog = simulate_catalog(folder / "allwise.csv", objects=ALERTS_PER_NIGHT, field_sources=10_000, seed=1)
    built = build_catalog(catalog.path, folder / "allwise", name="allwise", version="sample")
    options = ["--step", "all", "--catalog", built.path, "--model", DEMO_MODEL, "--database", url]
    options += ["--alerts-topic", "soaked", "--classifications-topic", "classified", "--keep-days", 1]
    for name in ("soak", "soaked", "classified"):
        create_topic(broker.address, name, PARTITIONS, {"retention.bytes": str(64 << 20), "segment.ms": "60000"})
    feeder = Feeder(broker.address, "soak", rate, folder)
    samples: list[tuple[float, float]] = []
    with Stream(folder / "stream", broker.address, "soak", *options) as stream:
        feeder.start()
        stream.wait_for_commits(1)
        started = time.monotonic()
        while (passed_s := time.monotonic() - started) < 60 * minutes:
            assert stream.process.poll() is None, stream.said
            samples.append((passed_s, stream.memory_mb))
            if len(samples) % 6 == 1:
                done = sum(offsets_of(broker.address, "soak").values())
                print(f"{passed_s:6.0f} s {samples[-1][1]:7.1f} MB, {feeder.sent:,} sent, {done:,} done", flush=True)
            time.sleep(5.0)
        feeder.stop()
        ended = stream.end(signal.SIGTERM)
    assert ended.status == 0, ended.said
    print({name: ended.summary[name] for name in ("received", "committed", "seconds", "latency_p95_s")})
    warm = [memory for passed_s, memory in samples if passed_s >= 60 * minutes * WARM_UP_PART]
    part = len(warm) // 4
    growth = statistics.median(warm[-part:]) - statistics.median(warm[:part])
    print(f"{growth:+.1f} MB between the first and the last quarter after the warm-up")
    assert growth <= MOST_GROWTH_MB
