"""Enriched alerts and classifications as messages in Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, Final

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from alerts.container import header_bytes, sync_marker, write_long
from alerts.dead_letters import DeadLetter
from alerts.enrich import enrich
from classifier.messages import encode_messages, message_container
from messaging.producer import Producer, borrow, give_back
from messaging.settings import ProducerSettings
from transforms.classify import ClassifiedBatch, with_candids
from transforms.counts import count
from transforms.crossmatch import MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, dead_letter, letter_for_alert
from transforms.tables import for_enriching

ALERTS: Final = "alerts"
CLASSIFICATIONS: Final = "classifications"
_STAGE: Final = "send"

# Gives the letter of an alert or object of which the message could not be sent, from the reason.
_Letter = Callable[[str], DeadLetter]


class SendAlerts(beam.PTransform):
    """Send enriched alerts to Kafka, a message for each, with the object's name as its key (alerce.md 1.1).

    A message is a container of one record, or the record alone; the schema is that of
    :class:`~transforms.writing.WriteAlerts`. When a bundle is finished the broker has all its messages, or an
    exception is raised. Gives the PCollection ``dead_letters``: alerts too large for a message.

    Parameters
    ----------
    settings : ProducerSettings
    precision : {"float", "double"}
        Of the numbers in ``xmatches``.
    schemaless : bool
        Send records without container.
    """

    def __init__(self, settings: ProducerSettings, precision: str = "float", schemaless: bool = False) -> None:
        super().__init__()
        self._sending = _SendAlerts(settings, precision, schemaless)

    def expand(self, matched: beam.PCollection) -> Any:
        """Apply to a PCollection of MatchedAlerts."""
        return matched | beam.ParDo(self._sending).with_outputs(DEAD_LETTERS, main="done")


class SendClassifications(beam.PTransform):
    """Send classifications to Kafka, a message for each object, with its name as its key (alerce.md 2.8).

    As :class:`SendAlerts`; the schema is that of :class:`~transforms.classify.WriteMessages`. The dead letters are
    objects without a candid, which a message needs, and those too large for a message.

    Parameters
    ----------
    settings : ProducerSettings
    schemaless : bool
        Send records without container.
    """

    def __init__(self, settings: ProducerSettings, schemaless: bool = False) -> None:
        super().__init__()
        self._sending = _SendClassifications(settings, schemaless)

    def expand(self, classified: beam.PCollection) -> Any:
        """Apply to a PCollection of ClassifiedBatch."""
        return classified | beam.ParDo(self._sending).with_outputs(DEAD_LETTERS, main="done")


class _Send(beam.DoFn):
    """Messages flow to the broker while the bundle goes on; the producer holds up who is faster than the broker."""

    def __init__(self, settings: ProducerSettings, kind: str) -> None:
        self._settings, self._kind = settings, kind

    def setup(self) -> None:
        self._producer: Producer = borrow(self._settings)
        self._queued = 0

    def finish_bundle(self) -> Iterator[Any]:
        for output in self._flush():
            yield beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))

    def teardown(self) -> None:
        give_back(self._producer)

    def _send(self, unit: str, messages: Iterable[tuple[str, bytes, _Letter]]) -> Iterator[Any]:
        producer, limit = self._producer, self._settings.max_message_bytes
        topic = producer.topic()
        for name, value, letter in messages:
            key = name.encode()
            if producer.fits(len(value), len(key)):
                producer.send(topic, key, value, (unit, letter))
                self._queued += 1
            else:
                reason = f"a message of {len(value) + len(key):,} bytes is larger than the {limit:,} allowed"
                yield dead_letter(unit, letter(reason))
        # What the broker refused must not pile up in a long bundle.
        if producer.poll():
            yield from self._flush()

    def _flush(self) -> Iterator[Any]:
        refused = self._producer.flush()
        count(f"sent:{self._kind}", self._queued - len(refused))
        self._queued = 0
        for (unit, letter), reason in refused:
            yield dead_letter(unit, letter(f"Kafka refused the message: {reason}"))


class _SendAlerts(_Send):
    def __init__(self, settings: ProducerSettings, precision: str, schemaless: bool) -> None:
        super().__init__(settings, ALERTS)
        self._precision, self._schemaless = precision, schemaless

    def process(self, alerts: MatchedAlerts) -> Iterator[Any]:
        batch = alerts.batch
        enriched = enrich(batch, for_enriching(alerts.matches), self._precision)
        value_of: Callable[[memoryview], bytes] = (
            bytes if self._schemaless else partial(_container, *_container_ends(enriched.schema_text))
        )
        messages = (
            (name, value_of(enriched.record(row)), partial(letter_for_alert, batch, row, _STAGE))
            for row, name in enumerate(batch.object_id.to_pylist())
        )
        yield from self._send(batch.unit, messages)


class _SendClassifications(_Send):
    def __init__(self, settings: ProducerSettings, schemaless: bool) -> None:
        super().__init__(settings, CLASSIFICATIONS)
        self._schemaless = schemaless

    def process(self, classified: ClassifiedBatch) -> Iterator[Any]:
        classified, letters = with_candids(classified, _STAGE)
        yield from letters
        batch = classified.batch
        data, offsets = encode_messages(classified.classification)
        value_of: Callable[[memoryview], bytes] = bytes if self._schemaless else message_container
        messages = (
            (name, value_of(data.data[offsets[row] : offsets[row + 1]]), partial(batch.letter, row, _STAGE))
            for row, name in enumerate(batch.rows.oid.to_pylist())
        )
        yield from self._send(batch.unit, messages)


@lru_cache(maxsize=64)
def _container_ends(schema_text: str) -> tuple[bytes, bytes]:
    """Head of the container of one alert, up to the record's length, and the marker at its end."""
    sync = sync_marker(schema_text)
    return header_bytes(schema_text, "null", sync) + write_long(1), sync


def _container(head: bytes, sync: bytes, record: memoryview) -> bytes:
    return b"".join((head, write_long(len(record)), record, sync))
