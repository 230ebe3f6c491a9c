"""``alertbeam play``: archived packets as a stream."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import Progress, TextColumn

from alerts.ahead import one_ahead
from alerts.batch import AlertBatch
from alerts.container import HeaderCache
from alerts.reader import Limits, Portion, decode_portion, read_portions
from alerts.sources import InputError, Source, find_sources
from messaging.admin import AdminError, cluster_at, create_topic
from messaging.play import Pace, PlayCounts, Played, play
from messaging.producer import DeliveryError
from messaging.settings import Kafka, ProducerSettings
from pipelines.usage import DONE, StoppedError, UsageError

KEYS: Final = ("none", "objectId")

_MAX_MESSAGE_BYTES: Final = 12 << 20
_LIMITS: Final = Limits()
_SECONDS_BETWEEN_LINES: Final = 10.0
_SECONDS_BETWEEN_LOOKS: Final = 0.25
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_DESCRIPTION: Final = """\
Send archived packets to a Kafka topic as ZTF sends them: one Avro container per message. Packets go as they are, broken
ones too; a container of many alerts is sent alert by alert.
"""
_EPILOG: Final = """\
examples:
  alertbeam play ztf_public_20260101.tar.gz --server 127.0.0.1:9092 --topic ztf --rate 50
      fifty alerts a second
  alertbeam play nights/ --server 127.0.0.1:9092 --topic ztf --speed 3600 --partitions 4 --key objectId
      an hour of observations in a second; the topic is made with four partitions, each object in one of them

'alertbeam broker' runs a broker for trials. A message that was sent to a topic stays there: playing a night again sends
its alerts once more, as --repeat does.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "play",
        help="send archived packets to a Kafka topic, at a chosen pace",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="archive, folder, packet, glob or URL")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="of a broker; several with commas between")
    parser.add_argument("--topic", required=True, metavar="NAME")
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="X", help="alerts per second (default 0: as fast as possible)"
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=0.0,
        metavar="X",
        help="so many times as fast as the alerts were observed, by their jd (default 0: as fast as possible); "
        "with --rate, both hold",
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="play so often, 0 without end (default 1)")
    parser.add_argument(
        "--partitions", type=int, metavar="N", help="make the topic with so many (default: leave that to the broker)"
    )
    parser.add_argument(
        "--key",
        choices=KEYS,
        default=KEYS[0],
        help="of the messages; with objectId those of an object keep their order in one partition (default none)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_play)


def run_play(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Play packets to a topic."""
    if not _TOPIC_NAME.fullmatch(options.topic):
        raise UsageError(f"--topic {options.topic!r}: letters, digits, '.', '_' and '-' only, 249 at most")
    if options.repeat < 0:
        raise UsageError("--repeat must be 0 or more")
    if options.partitions is not None and options.partitions < 1:
        raise UsageError("--partitions must be at least 1")
    try:
        pace = Pace(options.rate, options.speed)
        sources = find_sources(options.inputs)
    except (InputError, ValueError) as error:
        raise UsageError(str(error)) from error
    kafka = Kafka(options.server)
    settings = ProducerSettings(kafka, options.topic, max_message_bytes=_MAX_MESSAGE_BYTES, compression="none")
    counts, packets = PlayCounts(), Packets(sources, keyed=options.key != KEYS[0])
    began = time.monotonic()
    try:
        cluster_at(kafka)
        if options.partitions:
            create_topic(kafka, options.topic, options.partitions)
        with _shown(counts, options.quiet) as show:
            done = 0
            while not options.repeat or done < options.repeat:
                play(settings, packets, pace, counts, show)
                done += 1
                if not counts.messages:
                    break
    except (AdminError, DeliveryError, OSError) as error:
        raise StoppedError(str(error)) from error
    finally:
        if counts.messages or counts.refused:
            print(f"sent to {options.topic}: {_told(counts, time.monotonic() - began)}")
        for reason in packets.unreadable:
            print(f"not sent: {reason}", file=sys.stderr)
    if not counts.messages:
        raise StoppedError("nothing was sent")
    return DONE


class _Alert(NamedTuple):
    batch: AlertBatch
    row: int
    key: bytes
    jd: float


@dataclass
class Packets:
    """Packets of some sources, in the order in which they lie there.

    Attributes
    ----------
    sources : sequence of Source
    keyed : bool
        Give the messages the object's name as key.
    unreadable : dict
        In its keys, what could not be read and why, without repetition.
    """

    sources: Sequence[Source]
    keyed: bool = False
    unreadable: dict[str, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Played]:
        cache = HeaderCache()
        for source in self.sources:
            for item in one_ahead(read_portions(source, _LIMITS, lambda _: None)):
                if isinstance(item, Portion):
                    yield from self._messages(item, source, cache)
                else:
                    self.unreadable[f"{item.source} {item.member}".strip() + f": {item.reason}"] = None

    def _messages(self, portion: Portion, source: Source, cache: HeaderCache) -> Iterator[Played]:
        if len(set(portion.names)) < len(portion.names):
            # What was decoded is known by its name.
            for single in _singly(portion):
                yield from self._messages(single, source, cache)
            return
        alerts = self._alerts_by_name(portion, source, cache)
        for name, start, end in zip(portion.names, portion.starts, portion.ends, strict=True):
            inside = alerts.get(name, [])
            if len(inside) > 1:
                for alert in inside:
                    yield Played(alert.key, alert.batch.packet(alert.row), alert.jd)
            else:
                key, jd = (inside[0].key, inside[0].jd) if inside else (b"", math.nan)
                yield Played(key, portion.data[start:end].tobytes(), jd)

    def _alerts_by_name(self, portion: Portion, source: Source, cache: HeaderCache) -> dict[str, list[_Alert]]:
        """Give the alerts in each packet that can be decoded, in the packet's order."""
        found: dict[str, list[_Alert]] = defaultdict(list)
        for batch in decode_portion(portion, source, cache, _LIMITS):
            if not isinstance(batch, AlertBatch):
                continue
            lacking = {row for row, _ in batch.missing_values()}
            keys = batch.object_id.to_pylist() if self.keyed else [""] * len(batch)
            for row, (name, key, jd) in enumerate(zip(batch.members, keys, batch.jd.tolist(), strict=True)):
                known = (key.encode(), jd) if row not in lacking else (b"", math.nan)
                found[name].append(_Alert(batch, row, *known))
        return found


def _singly(portion: Portion) -> Iterator[Portion]:
    for number, (name, start, end) in enumerate(zip(portion.names, portion.starts, portion.ends, strict=True)):
        yield Portion(portion.data, portion.first + number, [name], [start], [end])


def _told(counts: PlayCounts, seconds: float) -> str:
    refused = f", {counts.refused:,} too large" if counts.refused else ""
    rate = counts.messages / max(seconds, 1e-3)
    return f"{counts.messages:,} alerts ({rate:,.0f}/s), {counts.bytes / 1e6:,.1f} MB in {seconds:,.1f} s{refused}"


@contextmanager
def _shown(counts: PlayCounts, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show counts, on a terminal in a line that changes, elsewhere in one every ten seconds.

    Gives what is to be called often.
    """
    began = looked = time.monotonic()
    on_terminal = sys.stderr.isatty()
    seconds_between = _SECONDS_BETWEEN_LOOKS if on_terminal else _SECONDS_BETWEEN_LINES
    with Progress(
        TextColumn("{task.description}"), console=Console(stderr=True), transient=True, disable=quiet or not on_terminal
    ) as bar:
        task = bar.add_task("")

        def show() -> None:
            nonlocal looked
            now = time.monotonic()
            if quiet or now - looked < seconds_between:
                return
            looked = now
            if on_terminal:
                bar.update(task, description=f"sent {_told(counts, now - began)}")
            else:
                print(f"sent {_told(counts, now - began)}", file=sys.stderr, flush=True)

        yield show
