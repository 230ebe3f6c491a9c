"""The live stream on all cores, broker and database included: sustained rates, latencies, and a burst."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import fastavro
from confluent_kafka import Consumer

from alerts.reader import Limits, Portion, read_portions
from alerts.sources import find_sources
from benchmarks.measure import conditions, figure
from benchmarks.night import PROJECT, Nights, make_nights
from messaging.admin import create_topic
from messaging.child_process import free_port
from messaging.local_broker import BrokerOptions, LocalBroker, start_broker
from messaging.play import Pace, PlayCounts, Played, play
from messaging.settings import Kafka, ProducerSettings

PARTITIONS: Final = 4
_WITHIN_S: Final = 5.0
_PATIENCE_S: Final = 600.0
# What the stream needs before the first of many messages is done: caches, connections, first bundles.
_SETTLED: Final = 0.1
_AT_ONCE: Final = Pace()


@dataclass(frozen=True)
class Watched:
    """What a stream told of itself.

    Attributes
    ----------
    rate : float
        Alerts per second, from a tenth of them on to the last.
    within : float
        Share of the alerts whose results were committed within 5 s of their entering the topic.
    seconds : float
        From the first look to the last alert.
    committed : int
    peak_bytes : int
        Memory of the process, at most.
    """

    rate: float
    within: float
    seconds: float
    committed: int
    peak_bytes: int


def run(
    crossmatched: int = 60_000,
    classified: int = 15_000,
    rate: float = 250.0,
    seconds: float = 60.0,
    peer_alerts: int = 3_000,
) -> Iterator[dict[str, Any]]:
    """Measure ``alertbeam stream`` with a broker, the embedded database and the demonstration model.

    Parameters
    ----------
    crossmatched, classified : int
        Alerts that wait in the topic when the crossmatch alone, or everything, begins: the sustained rates.
    rate, seconds : float
        Alerts per second sent while everything runs, and for how long: the latency. Then ten times as many come at
        once.
    peer_alerts : int
        Alerts that the peer reads.

    Yields
    ------
    dict
    """
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder:
        here = Path(folder)
        night = make_nights(here / "night", 1, max(crossmatched, classified) + int(rate * (seconds + 30)))
        options = BrokerOptions(heap_mb=768)
        with start_broker(here / "broker", options=options) as broker:
            given = conditions("apache-beam", "confluent-kafka", "fastavro", cores_used=os.cpu_count())
            send(broker, "many", night, crossmatched)
            peer = _peer_rate(broker, "many", peer_alerts)
            yield figure("consume-fastavro", peer, "alerts/s", given | {"cores_used": 1}, peer, peer=True)
            found = _drained(broker, "many", night, here / "xmatch", crossmatched, "--step", "xmatch")
            yield told("stream-crossmatch", found, peer, given)
            yield from _everything(broker, night, here / "all", classified, rate, seconds, peer, given)


def _everything(
    broker: LocalBroker,
    night: Nights,
    output: Path,
    waiting: int,
    rate: float,
    seconds: float,
    peer: float,
    given: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """What waits in the topic, then a steady flow, then ten times as much at once."""
    steady, burst = int(rate * seconds), int(10 * rate * min(seconds, 3.0))
    send(broker, "some", night, waiting)
    with Stream(broker, "some", night, output, "--step", "all") as stream:
        yield told("stream", stream.until(waiting), peer, given)
        before = stream.metrics()
        with ThreadPoolExecutor(1) as sender:
            sent = sender.submit(send, broker, "some", night, steady, Pace(rate=rate), waiting)
            found = stream.until(waiting + steady, since=before)
            sent.result()
        yield told("stream-steady", found, peer, given | {"sent_per_s": rate})
        before = stream.metrics()
        send(broker, "some", night, burst, skip=waiting + steady)
        found = stream.until(waiting + steady + burst, since=before)
        lost = waiting + steady + burst - int(stream.metrics()["alertbeam_alerts_committed_total"])
        yield told("stream-burst", found, peer, given | {"lost": lost})


def _drained(broker: LocalBroker, topic: str, night: Nights, output: Path, alerts: int, *options: str) -> Watched:
    with Stream(broker, topic, night, output, *options) as stream:
        return stream.until(alerts)


class Stream:
    """The command as a user starts it, watched through its own metrics."""

    def __init__(
        self, broker: LocalBroker, topic: str, night: Nights, output: Path, *options: str, group: str = "benchmark"
    ) -> None:
        words = [sys.executable, "-m", "pipelines.cli", "stream", "--server", broker.address, "--topics", topic]
        words += ["--group", group, "--catalog", str(night.catalog), "--output", str(output), *options]
        if "all" in options:
            words += ["--model", str(PROJECT / "classifier" / "demo_model"), "--mode", "accurate"]
            words += ["--classifications-topic", "classes"]
        else:
            words += ["--alerts-topic", "crossmatched"]
        self._port = free_port()
        words += ["--metrics-port", str(self._port), "--quiet"]
        self._process = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def metrics(self) -> dict[str, float]:
        """Numbers without labels, and the buckets of the latencies."""
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except (URLError, ConnectionError, TimeoutError):
            return {}
        found = re.findall(r"^(\w+(?:\{le=\"[^\"]+\"\})?) ([-+.\deE]+)$", text, re.M)
        return {name: float(value) for name, value in found}

    def until(self, alerts: int, since: dict[str, float] | None = None) -> Watched:
        """Wait until so many alerts are done, and tell how it went."""
        before = since or {}
        begun = before.get("alertbeam_alerts_committed_total", 0.0)
        seen: list[tuple[float, float]] = []
        peak = 0.0
        started = time.monotonic()
        while time.monotonic() - started < _PATIENCE_S:
            if self._process.poll() is not None:
                raise RuntimeError(f"the stream ended with status {self._process.returncode}")
            now = self.metrics()
            done = now.get("alertbeam_alerts_committed_total", 0.0)
            peak = max(peak, now.get("process_resident_memory_bytes", 0.0))
            if done > begun and (not seen or done > seen[-1][1]):
                seen.append((time.monotonic(), done))
            if done >= alerts:
                return self._told(seen, begun, before, now, time.monotonic() - started, int(peak))
            time.sleep(0.2)
        raise TimeoutError(f"{alerts:,} alerts were not done in {_PATIENCE_S:.0f} s")

    def _told(
        self,
        seen: Sequence[tuple[float, float]],
        begun: float,
        before: dict[str, float],
        now: dict[str, float],
        seconds: float,
        peak: int,
    ) -> Watched:
        last = seen[-1]
        first = next((s for s in seen if s[1] - begun >= _SETTLED * (last[1] - begun)), last)
        first = first if first is not last else seen[0]
        rate = (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else (last[1] - begun) / seconds

        def grown(name: str) -> float:
            return now.get(name, 0.0) - before.get(name, 0.0)

        number = grown("alertbeam_latency_seconds_count")
        within = grown(f'alertbeam_latency_seconds_bucket{{le="{_WITHIN_S}"}}') / number if number else 0.0
        return Watched(rate, within, seconds, int(last[1] - begun), peak)


def told(name: str, found: Watched, peer: float, given: dict[str, Any]) -> dict[str, Any]:
    """Line of a benchmark."""
    numbers = {
        "alerts": found.committed,
        "within_5_s": round(found.within, 4),
        "seconds": round(found.seconds, 1),
        "peak_megabytes": round(found.peak_bytes / 1e6),
    }
    return figure(name, found.rate, "alerts/s", numbers | given, peer)


def send(broker: LocalBroker, topic: str, night: Nights, alerts: int, pace: Pace = _AT_ONCE, skip: int = 0) -> None:
    """Put alerts of a night into a topic; those that are skipped were sent before."""
    create_topic(broker.address, topic, PARTITIONS)
    settings = ProducerSettings(Kafka(broker.address), topic, compression="none")
    messages = islice(_messages(night), skip, skip + alerts)
    # What is passed over takes seconds, which do not belong to the pace.
    first = next(messages)
    play(settings, chain([first], messages), pace, PlayCounts())


def _messages(night: Nights) -> Iterator[Played]:
    source = find_sources([str(night.archives[0])])[0]
    while True:
        for portion in read_portions(source, Limits(), lambda _: None):
            if isinstance(portion, Portion):
                for start, end in zip(portion.starts, portion.ends, strict=True):
                    yield Played(b"", portion.data[start:end].tobytes())


def _peer_rate(broker: LocalBroker, topic: str, alerts: int) -> float:
    """Messages per second that a consumer and fastavro read alone, one after the other, as ALeRCE's steps do."""
    options = {"bootstrap.servers": broker.address, "group.id": "peer", "auto.offset.reset": "earliest"}
    consumer = Consumer(options)
    consumer.subscribe([topic])
    number, started = 0, 0.0
    while number < alerts:
        for message in consumer.consume(500, 10):
            started = started or time.perf_counter()
            value = message.value()
            assert value is not None
            next(fastavro.reader(io.BytesIO(value)), None)
            number += 1
    seconds = time.perf_counter() - started
    consumer.close()
    return number / seconds
