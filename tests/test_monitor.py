"""What a stream tells about itself."""

import logging
import pickle
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from messaging import monitor as module
from messaging.monitor import BUCKETS_S, Committed, Monitor, close_monitors, monitor
from messaging.settings import Kafka, MetricsSettings, MonitorSettings
from transforms.counts import count, live_counts

LOCAL = MonitorSettings(port=0, address="127.0.0.1")


def done(latencies_s: list[float], received_s_ago: float = 1.0) -> Committed:
    now = time.time()
    stamps = np.array([round((now - latency) * 1000) for latency in latencies_s], np.int64)
    return Committed(len(stamps), stamps, now - received_s_ago)


def fetch(port: int | None, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def samples(told: Monitor) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(fetch(told.port))
        for sample in family.samples
    }


def test_endpoint_tells_everything_that_was_told() -> None:
    told = monitor(LOCAL, lambda: {"matched": 7, "dead_letters:decode": 2})
    told.received(3)
    told.received(0)
    told.received(2)
    told.lag({("ztf_20260101", 0): 10, ("ztf_20260101", 1): 4})
    told.lag({("ztf_20260101", 1): 0})
    told.committed(done([0.25, 3.0, 1000.0], received_s_ago=1.5))
    told.committed(done([-5.0], received_s_ago=0.0))
    found = samples(told)
    expected = {
        "consumed_messages_count": 2,
        "consumed_messages_sum": 5,
        "processed_messages_count": 2,
        "processed_messages_sum": 4,
        "execution_time_count": 2,
        "alertbeam_alerts_received_total": 5,
        "alertbeam_alerts_committed_total": 4,
        "alertbeam_latency_seconds_count": 4,
        "alertbeam_bundle_seconds_count": 2,
    }
    assert {name: found[name, ()] for name in expected} == expected
    assert found["execution_time_sum", ()] == pytest.approx(1.5, abs=0.5)
    assert found["alertbeam_latency_seconds_sum", ()] == pytest.approx(1003.25, abs=2)
    assert found["alertbeam_last_commit_timestamp_seconds", ()] == pytest.approx(time.time(), abs=30)
    buckets = {bound: found["alertbeam_latency_seconds_bucket", (("le", bound),)] for bound in ("0.1", "10.0", "+Inf")}
    assert buckets == {"0.1": 1, "10.0": 3, "+Inf": 4}
    assert found["alertbeam_lag_messages", (("partition", "0"), ("topic", "ztf_20260101"))] == 10
    assert found["alertbeam_lag_messages", (("partition", "1"), ("topic", "ztf_20260101"))] == 0
    assert found["alertbeam_count_total", (("name", "matched"),)] == 7
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert ("process_cpu_seconds_total", ()) in found


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_histogram_counts_each_number_in_every_bucket_it_fits(latencies: list[float]) -> None:
    histogram = module._Histogram()
    for part in (latencies[::2], latencies[1::2]):
        histogram.add(np.array(part, np.float64))
    found = {sample.labels.get("le"): sample.value for sample in histogram.family("x", "x").samples}
    for bound in BUCKETS_S:
        assert found[str(bound)] == sum(latency <= bound for latency in latencies)
    assert found["+Inf"] == len(latencies)


def test_one_monitor_per_process_and_settings() -> None:
    settings = pickle.loads(pickle.dumps(LOCAL))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: monitor(settings), range(32)))
    assert len({id(each) for each in found}) == 1
    assert monitor(LOCAL) is found[0]
    assert monitor(MonitorSettings()) is not found[0]
    close_monitors()
    assert monitor(LOCAL) is not found[0]


def test_a_busy_port_leaves_the_stream_without_an_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    first = Monitor(LOCAL)
    with caplog.at_level(logging.WARNING):
        second = Monitor(MonitorSettings(port=first.port, address="127.0.0.1"))
    assert second.port is None
    assert "no metrics endpoint" in caplog.text
    second.received(5)
    assert second.snapshot().received == 5
    assert "alertbeam_alerts_received_total 0.0" in fetch(first.port)
    second.close()
    first.close()
    with pytest.raises(urllib.error.URLError):
        fetch(first.port or second.port or 1)


def test_health_is_a_sign_of_life_not_too_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    told = Monitor(MonitorSettings(stalled_after_s=60))
    for sign in (lambda: None, told.idle, lambda: told.committed(done([1.0]))):
        sign()
        clock[0] += 60
        assert told.healthy()
        told.received(1)
        told.lag({("t", 0): 5})
        clock[0] += 1
        assert not told.healthy()


def test_healthz_answers_by_status() -> None:
    told = monitor(LOCAL)
    assert fetch(told.port, "/healthz") == "ok\n"
    stalled = monitor(MonitorSettings(port=0, address="127.0.0.1", stalled_after_s=-1.0))
    with pytest.raises(urllib.error.HTTPError, match="503") as error:
        fetch(stalled.port, "/healthz")
    assert error.value.read().startswith(b"stalled")


def test_snapshot_looks_at_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    told = Monitor(MonitorSettings())
    empty = told.snapshot()
    assert (empty.alerts_per_s, empty.lag, empty.latency_p50_s, empty.latency_p95_s) == (0, None, None, None)
    told.received(200)
    told.committed(done([100.0] * 100))
    clock[0] += 50
    told.committed(done([1.0] * 95 + [9.0] * 5))
    now = told.snapshot()
    assert (now.received, now.committed, now.alerts_per_s) == (200, 200, 10)
    assert now.latency_p50_s == pytest.approx(54.5, abs=2)
    clock[0] += 11
    now = told.snapshot()
    assert now.alerts_per_s == 0
    assert now.latency_p50_s == pytest.approx(1.0, abs=0.5)
    assert now.latency_p95_s == pytest.approx(1.4, abs=0.8)
    clock[0] += 60
    assert told.snapshot().latency_p50_s is None
    assert told.snapshot().committed == 200


def test_lag_of_a_topic_that_is_gone_is_forgotten_but_not_while_all_is_still(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    told = Monitor(MonitorSettings())
    told.lag({("yesterday", 0): 3, ("today", 0): 4})
    clock[0] += 100_000
    assert told.snapshot().lag == 7
    told.lag({("today", 0): 5})
    assert told.snapshot().lag == 5


def test_messages_without_timestamps_have_no_latency() -> None:
    told = Monitor(MonitorSettings())
    told.committed(Committed(2, np.array([-1, 0]), time.time()))
    told.committed(Committed(0, np.empty(0, np.int64), time.time()))
    assert told.snapshot().latency_p50_s is None
    assert told.snapshot().committed == 2


def test_metrics_messages_that_nobody_takes_do_not_stop_the_stream() -> None:
    metrics = MetricsSettings(
        Kafka("127.0.0.1:1", options=(("message.timeout.ms", "50"),)), "metrics", "step", extra=("candid",)
    )
    told = Monitor(MonitorSettings(port=0, address="127.0.0.1", metrics=metrics))
    for _ in range(20):
        told.committed(done([1.0]))
    assert told.snapshot().committed == 20
    assert samples(told)["alertbeam_metrics_sent_total", ()] == 0
    told.close()


def test_live_counts_of_all_threads_are_complete() -> None:
    before = live_counts()

    def raise_counters() -> None:
        for _ in range(1000):
            count("test: live", 2)
            count("test: none", 0)

    threads = [threading.Thread(target=raise_counters) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live_counts()["test: live"] - before.get("test: live", 0) == 8000
    assert "test: none" not in live_counts()
    # What was given is no longer ours to change.
    live_counts()["test: live"] = 0
    assert live_counts()["test: live"] >= 8000


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="must be 0 to 65535"):
        MonitorSettings(port=port)
