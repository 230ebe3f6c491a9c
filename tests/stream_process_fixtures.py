"""Streams that run as processes of their own: started, watched, ended; and what the brokers know of them."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
import pytest
from backfill_fixtures import PROJECT, environment
from confluent_kafka import Consumer, KafkaException, TopicPartition
from kafka_fixtures import client_options
from live_stream_fixtures import stream_words

GROUP = "ours"
_TIMEOUT_S = 120.0
_REQUEST_S = 10.0


class Ended(NamedTuple):
    """What became of a process: its exit status (negative: a signal), its summary, what it said."""

    status: int
    summary: dict[str, Any]
    said: str


class Stream:
    """A running ``alertbeam stream``; killed at the end of a ``with`` block if it still runs.

    Parameters
    ----------
    output, address, topic, options
        As of ``stream_words``.
    variables : mapping
        Of the environment.
    """

    def __init__(
        self,
        output: Path,
        address: str,
        topic: str,
        *options: object,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.address, self.topic = address, topic
        self._log = output / "log.txt"
        words = stream_words(output, address, topic, "--json", "--quiet", *options)
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                words, cwd=PROJECT, env={**environment(), **variables}, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def memory_mb(self) -> float:
        """Resident memory, MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def wait_for(self, what: Callable[[], Any], timeout_s: float = _TIMEOUT_S) -> Any:
        """Wait until a function gives something true, and give that; the process must not end before."""
        give_up_at = time.monotonic() + timeout_s
        while not (found := what()):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < give_up_at, self.said
            time.sleep(0.02)
        return found

    def wait_for_commits(self, messages: int) -> int:
        """Wait until so many messages are committed in all; give their number."""
        with committed_offsets(self.address, self.topic) as offsets:
            return self.wait_for(lambda: (done := sum(offsets().values())) >= messages and done)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        assert self.process.wait(_TIMEOUT_S) == -signal.SIGKILL, self.said

    def end(self, number: signal.Signals | None = None) -> Ended:
        """Wait for its end, after a signal if there is one."""
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=_TIMEOUT_S)
        return Ended(self.process.returncode, json.loads(out) if out.startswith("{") else {}, self.said)


@contextmanager
def committed_offsets(address: str, topic: str, group: str = GROUP) -> Iterator[Callable[[], dict[int, int]]]:
    """Give a function that asks for the committed offset of each partition, 0 where there is none."""
    consumer = Consumer({**client_options(address), "group.id": group, "enable.auto.commit": False})
    try:
        numbers = consumer.list_topics(topic, timeout=_REQUEST_S).topics[topic].partitions

        def offsets() -> dict[int, int]:
            asked = [TopicPartition(topic, number) for number in numbers]
            give_up_at = time.monotonic() + _REQUEST_S
            while True:
                try:
                    answer = consumer.committed(asked, timeout=_REQUEST_S)
                    return {found.partition: max(found.offset, 0) for found in answer}
                except KafkaException:
                    # A broker that has just started may not yet know who coordinates the group.
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(0.1)

        yield offsets
    finally:
        consumer.close()


def offsets_of(address: str, topic: str, group: str = GROUP) -> dict[int, int]:
    """Committed offset of each partition, 0 where there is none."""
    with committed_offsets(address, topic, group) as offsets:
        return offsets()


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Put the logs back as they were before a stream in this process set them up."""
    loggers = [logging.getLogger(name) for name in (None, "apache_beam", "apache_beam.runners.common")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    logging.captureWarnings(False)
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
