"""What a stream tells about itself while it runs: for Prometheus, as metrics messages, and as numbers to show."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from socket import AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from messaging.metrics import MetricsSender
from messaging.settings import MonitorSettings

_LOGGER = logging.getLogger(__name__)

Counts = Callable[[], Mapping[str, int]]

BUCKETS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
RATE_WINDOW_S: Final = 10.0
LATENCY_WINDOW_S: Final = 60.0
# A partition that is told of no more, while others are, is no longer read: its topic is gone.
_LAG_KEPT_S: Final = 600.0


@dataclass(frozen=True)
class Committed:
    """Messages whose results are all in the sinks and whose offsets are committed.

    Attributes
    ----------
    messages : int
    timestamps_ms : int64 array of shape (messages,)
        Kafka's timestamps [ms since 1970]; none positive where there is none.
    received_at : float
        When the first of them was received [s since 1970].
    keys : mapping of str to sequence
        A value of each message, by name, for the metrics messages: such as ``candid`` and ``oid``.
    """

    messages: int
    timestamps_ms: NDArray[np.int64]
    received_at: float
    keys: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A stream at a moment.

    Attributes
    ----------
    received, committed : int
        Messages since the start.
    alerts_per_s : float
        Committed, over the last :data:`RATE_WINDOW_S`.
    lag : int or None
        Messages in the topics that are not read yet; None before anything is known.
    latency_p50_s, latency_p95_s : float or None
        From Kafka's timestamp to the commit, of messages committed in the last :data:`LATENCY_WINDOW_S`; None without
        any.
    counts : mapping of str to int
        Counters of the transforms, by name.
    """

    received: int
    committed: int
    alerts_per_s: float
    lag: int | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    counts: Mapping[str, int]


class _Histogram:
    """Numbers by :data:`BUCKETS_S`, added a column at a time."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(BUCKETS_S) + 1, np.int64)
        self._sum = 0.0

    def add(self, seconds: NDArray[np.float64]) -> None:
        places = np.searchsorted(BUCKETS_S, seconds, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(seconds.sum())

    def family(self, name: str, explanation: str) -> Metric:
        bounds = [str(bound) for bound in BUCKETS_S] + ["+Inf"]
        up_to = [float(number) for number in np.cumsum(self._counts)]
        return HistogramMetricFamily(
            name, explanation, buckets=list(zip(bounds, up_to, strict=True)), sum_value=self._sum
        )


class Monitor(Collector):
    """Numbers of a stream, and those who are told of them.

    All methods may be called from any thread; none but :meth:`close` waits for anybody, and none lets a failure out.

    Parameters
    ----------
    settings : MonitorSettings

    Attributes
    ----------
    counts : callable
        Gives the counters of the transforms, by name.
    port : int or None
        Of the Prometheus endpoint; None if it has none.

    Raises
    ------
    ValueError
        If metrics messages cannot be sent with these settings, whatever the broker does.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self.counts: Counts = dict
        self._settings = settings
        self._lock = threading.Lock()
        self._received = 0
        self._received_batches = 0
        self._committed = 0
        self._bundles = 0
        self._bundle_s = 0.0
        self._bundle_histogram = _Histogram()
        self._latency_histogram = _Histogram()
        self._last_commit_at: float | None = None
        self._started = self._last_sign = time.monotonic()
        # Of each commit in the windows: when, how many messages, their latencies [s].
        self._recent: deque[tuple[float, int, NDArray[np.float64]]] = deque()
        self._lag: dict[tuple[str, int], tuple[int, float]] = {}
        self._metrics = MetricsSender(settings.metrics) if settings.metrics is not None else None
        self._server = _endpoint(self, settings) if settings.port is not None else None
        self.port: int | None = self._server.server_port if self._server is not None else None

    def received(self, messages: int) -> None:
        """Tell of messages taken from the topics."""
        if not messages:
            return
        with self._lock:
            self._received += messages
            self._received_batches += 1

    def committed(self, done: Committed) -> None:
        """Tell of messages whose results are in the sinks."""
        now = time.time()
        taken_s = max(0.0, now - done.received_at)
        stamps = done.timestamps_ms
        # Clocks of machines differ a little.
        latencies = np.maximum(now - stamps[stamps > 0] / 1000.0, 0.0)
        with self._lock:
            moment = time.monotonic()
            self._committed += done.messages
            self._bundles += 1
            self._bundle_s += taken_s
            self._bundle_histogram.add(np.array([taken_s]))
            self._latency_histogram.add(latencies)
            self._last_commit_at = now
            self._last_sign = moment
            self._recent.append((moment, done.messages, latencies))
            self._forget(moment)
        if self._metrics is not None:
            self._metrics.send(done.messages, done.received_at, now, done.keys)

    def idle(self) -> None:
        """Tell that there was nothing new to read: a sign of life, as a commit is."""
        with self._lock:
            self._last_sign = time.monotonic()

    def lag(self, messages: Mapping[tuple[str, int], int]) -> None:
        """Tell how many messages wait in partitions, by topic and partition. Others keep what was told of them."""
        with self._lock:
            now = time.monotonic()
            self._lag.update({partition: (number, now) for partition, number in messages.items()})
            self._lag = {partition: told for partition, told in self._lag.items() if told[1] >= now - _LAG_KEPT_S}

    def healthy(self) -> bool:
        """Whether the last commit or idle look for messages (or else the start) is not too long ago."""
        return time.monotonic() - self._last_sign <= self._settings.stalled_after_s

    def snapshot(self) -> Snapshot:
        """Numbers of now."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            recent = list(self._recent)
            received, committed = self._received, self._committed
            lag = sum(number for number, _ in self._lag.values()) if self._lag else None
        seconds = min(RATE_WINDOW_S, max(now - self._started, 1.0))
        in_window = sum(messages for moment, messages, _ in recent if moment >= now - RATE_WINDOW_S)
        latencies = np.concatenate([np.empty(0), *(column for _, _, column in recent)])
        p50, p95 = (float(s) for s in np.percentile(latencies, (50, 95))) if len(latencies) else (None, None)
        return Snapshot(received, committed, in_window / seconds, lag, p50, p95, dict(self.counts()))

    def close(self) -> None:
        """Close the endpoint; wait a few seconds for the metrics messages on their way."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server, self.port = None, None
        if self._metrics is not None:
            self._metrics.close()

    def collect(self) -> Iterable[Metric]:
        """Give everything as Prometheus' families of metrics."""
        named = CounterMetricFamily("alertbeam_count", "Counters of the transforms", labels=("name",))
        for name, number in sorted(self.counts().items()):
            named.add_metric((name,), number)
        with self._lock:
            return [*self._apf_families(), *self._own_families(), named]

    def _apf_families(self) -> Iterator[Metric]:
        # Names of APF.
        yield SummaryMetricFamily("consumed_messages", "Messages taken at once", self._received_batches, self._received)
        yield SummaryMetricFamily(
            "processed_messages", "Messages of a bundle, all of it in the sinks", self._bundles, self._committed
        )
        yield SummaryMetricFamily("execution_time", "Seconds that a bundle took", self._bundles, self._bundle_s)

    def _own_families(self) -> Iterator[Metric]:
        yield CounterMetricFamily("alertbeam_alerts_received", "Messages taken from the topics", self._received)
        yield CounterMetricFamily(
            "alertbeam_alerts_committed", "Messages with all results in the sinks", self._committed
        )
        yield self._latency_histogram.family(
            "alertbeam_latency_seconds", "From Kafka's timestamp of a message to the commit of its offset"
        )
        yield self._bundle_histogram.family(
            "alertbeam_bundle_seconds", "From the first message of a bundle to the commit of its offsets"
        )
        waiting = GaugeMetricFamily(
            "alertbeam_lag_messages", "Messages that are not read yet", labels=("topic", "partition")
        )
        for (topic, partition), (number, _) in sorted(self._lag.items()):
            waiting.add_metric((topic, str(partition)), number)
        yield waiting
        if self._last_commit_at is not None:
            yield GaugeMetricFamily(
                "alertbeam_last_commit_timestamp_seconds", "When offsets were last committed", self._last_commit_at
            )
        if self._metrics is not None:
            yield CounterMetricFamily(
                "alertbeam_metrics_sent", "Metrics messages taken by a broker", self._metrics.sent
            )
            yield CounterMetricFamily("alertbeam_metrics_lost", "Metrics messages given up", self._metrics.lost)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - LATENCY_WINDOW_S:
            self._recent.popleft()


_MONITORS: dict[MonitorSettings, Monitor] = {}
_MONITORS_LOCK = threading.Lock()


def monitor(settings: MonitorSettings, counts: Counts | None = None) -> Monitor:
    """Give this process' monitor of a stream; make it if there is none.

    Parameters
    ----------
    settings : MonitorSettings
    counts : callable, optional
        Gives the counters of the transforms from now on.
    """
    with _MONITORS_LOCK:
        found = _MONITORS.get(settings)
        if found is None:
            found = _MONITORS[settings] = Monitor(settings)
    if counts is not None:
        found.counts = counts
    return found


def close_monitors() -> None:
    """Close all monitors of this process."""
    with _MONITORS_LOCK:
        found = list(_MONITORS.values())
        _MONITORS.clear()
    for each in found:
        each.close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # WSGIServer asks the name service for the name of this machine, which may take long and is of no use here.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def _endpoint(source: Monitor, settings: MonitorSettings) -> WSGIServer | None:
    registry = CollectorRegistry()
    registry.register(source)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    kind = _Server6 if ":" in settings.address else _Server
    try:
        server = make_server(settings.address, settings.port or 0, _application(source, registry), kind, _Handler)
    except OSError as error:
        # Most likely another worker has the port, and tells of itself there.
        _LOGGER.warning("no metrics endpoint at %s:%s: %s", settings.address, settings.port, error.strerror or error)
        return None
    threading.Thread(target=server.serve_forever, name="metrics-endpoint", daemon=True).start()
    _LOGGER.info("metrics for Prometheus at http://%s:%d/metrics", settings.address, server.server_port)
    return server


def _application(source: Monitor, registry: CollectorRegistry) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            return metrics(environ, start_response)
        healthy = source.healthy()
        start_response("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if healthy else b"stalled: nothing was committed for too long\n"]

    return application
