"""Decoders of Kafka messages: those of one partition become batches of alerts or of features, and dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alerts.batch import AlertBatch
from alerts.container import WriterSchema
from alerts.dead_letters import DeadLetter
from alerts.messages import CONTAINER, JSON, AlertMessages, message_schema, portions_of, without_value
from alerts.reader import EmptyContainer, Limits
from alerts.sources import Source
from messaging.consumer import Message
from transforms.feature_batch import FeatureBatch
from transforms.feature_messages import FeatureMessages, feature_decoder


@dataclass(frozen=True)
class AlertDecoder:
    """Decodes alerts; can be pickled, and then begins anew.

    Parameters
    ----------
    format : {"container", "schemaless", "json"}
        Of a message (APF's KafkaConsumer, KafkaSchemalessConsumer, KafkaJsonConsumer): an Avro object container, the
        body of one record without its schema, or a JSON object.
    schema_text : str
        JSON of the schema: of bare records, or of what JSON objects hold (default: ZTF's schema 4.02).
    limits : Limits
        Of a batch.

    Raises
    ------
    ValueError
        If the format is unknown, or the schema is missing or not that of an alert.
    """

    format: str = CONTAINER
    schema_text: str = ""
    limits: Limits = Limits()  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        # A setting that cannot be used is to be told of before anything is read.
        _ = self._decoder

    @cached_property
    def _decoder(self) -> AlertMessages:
        return AlertMessages(self.format, self.schema_text, self.limits)

    def __call__(
        self, messages: Sequence[Message], source: Source
    ) -> Iterator[AlertBatch | DeadLetter | EmptyContainer]:
        """Decode messages of one partition; whatever they hold, nothing raises.

        Parameters
        ----------
        messages : sequence of Message
        source : Source
            The partition: `name` becomes the batches' unit, `location` their source. Members are the offsets.
        """
        return self._decoder.decode(*_numbers_and_values(messages), source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone."""
        return AlertDecoder, (self.format, self.schema_text, self.limits)


@dataclass(frozen=True)
class FeatureDecoder:
    """Decodes messages of the feature step, in the forms of both of ALeRCE's generations; can be pickled.

    Parameters
    ----------
    wanted : frozenset of str
        Names of features to take.
    format : {"container", "schemaless", "json"}
        As of :class:`AlertDecoder`. JSON needs no schema.
    schema_text : str
        JSON of the schema of bare records.
    limits : Limits
        Of what is decoded at once.

    Raises
    ------
    ValueError
        If the format is unknown, or the schema is missing or not that of such messages.
    """

    wanted: frozenset[str]
    format: str = CONTAINER
    schema_text: str = ""
    limits: Limits = Limits()  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        if self._schema is not None and self.format != JSON:
            feature_decoder(self._schema, self.wanted)

    @cached_property
    def _schema(self) -> WriterSchema | None:
        return message_schema(self.format, self.schema_text)

    @cached_property
    def _messages(self) -> FeatureMessages:
        return FeatureMessages(self.wanted, self.limits)

    def __call__(
        self, messages: Sequence[Message], source: Source
    ) -> Iterator[FeatureBatch | DeadLetter | EmptyContainer]:
        """Decode messages of one partition, as :class:`AlertDecoder` does."""
        numbers, values = _numbers_and_values(messages)
        yield from without_value(numbers, values, source)
        for portion in portions_of(numbers, values, self.limits):
            if self.format == JSON:
                yield from self._messages.objects(portion, source)
            elif self._schema is not None:
                yield from self._messages.bodies(portion, self._schema, source)
            else:
                yield from self._messages.containers(portion, source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone."""
        return FeatureDecoder, (self.wanted, self.format, self.schema_text, self.limits)


def _numbers_and_values(messages: Sequence[Message]) -> tuple[list[int], list[bytes | None]]:
    return [message.offset for message in messages], [message.value for message in messages]
