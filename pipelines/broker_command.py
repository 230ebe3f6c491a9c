"""``alertbeam broker``: a Kafka broker for trials."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from messaging.admin import AdminError, create_topic
from messaging.jars import JarsError
from messaging.local_broker import LOG, BrokerOptions, LocalBroker, LocalBrokerError, missing_components, start_broker
from pipelines.usage import DONE, StoppedError, UsageError

_DEFAULTS: Final = BrokerOptions()
_SECONDS_BETWEEN_LOOKS: Final = 0.5
_DESCRIPTION: Final = """\
Run a Kafka broker for trials on this machine, until Ctrl-C or SIGTERM. It has no password and listens at 127.0.0.1
only. It needs Java 17; its programs (Apache Kafka, 46 MB) are fetched once by Maven into ~/.cache/alertbeam. Messages
stay in the folder: the next start goes on with them. Real streams want a real cluster.
"""
_EPILOG: Final = """\
example, a night played to a stream (each command in a terminal of its own):
  alertbeam broker --data broker/ --port 9092
  alertbeam play ztf_public_20260101.tar.gz --server 127.0.0.1:9092 --topic ztf --rate 50
  alertbeam stream --help
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "broker",
        help="run a Kafka broker for trials",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of messages, settings and broker.log")
    parser.add_argument("--port", type=int, default=9092, metavar="N", help="port, 0 for a free one (default 9092)")
    parser.add_argument(
        "--topics", metavar="LIST", default="", help="make these topics, separated by commas, if absent"
    )
    parser.add_argument(
        "--partitions",
        type=int,
        default=_DEFAULTS.partitions,
        metavar="N",
        help=f"of those, and of a topic that is made because somebody writes to it (default {_DEFAULTS.partitions})",
    )
    parser.add_argument(
        "--heap-mb",
        type=int,
        default=_DEFAULTS.heap_mb,
        metavar="N",
        help=f"most memory of Java's heap, MiB (default {_DEFAULTS.heap_mb})",
    )
    parser.add_argument(
        "--max-message-bytes",
        type=int,
        default=_DEFAULTS.max_message_bytes,
        metavar="N",
        help=f"a larger message is refused (default {_DEFAULTS.max_message_bytes})",
    )
    parser.set_defaults(command=run_broker)


def run_broker(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Run a broker until a signal comes."""
    if not 0 <= options.port <= 65_535:
        raise UsageError(f"--port {options.port}: give a number from 0 to 65535")
    for name in ("partitions", "heap_mb", "max_message_bytes"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    folder = Path(options.data).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--data {folder} is a file")
    if lacks := missing_components():
        raise UsageError(lacks)
    settings = BrokerOptions(options.heap_mb, options.partitions, options.max_message_bytes)
    try:
        with start_broker(folder, options.port or None, options=settings) as broker:
            for topic in filter(None, options.topics.split(",")):
                create_topic(broker.address, topic.strip(), options.partitions)
            print(f"Kafka answers at {broker.address}; Ctrl-C stops it.", flush=True)
            if _runs_until_signal(broker):
                print("stopped; its messages are kept", file=sys.stderr)
                return DONE
    except (AdminError, LocalBrokerError, JarsError, OSError) as error:
        raise StoppedError(str(error)) from error
    raise StoppedError(f"the broker ended by itself: see {broker.folder / LOG}")


def _runs_until_signal(broker: LocalBroker) -> bool:
    """Wait for SIGINT or SIGTERM, the usual end; False if the broker ends before."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        while broker.running and not received:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(received)
