"""Options of the commands that send messages to Kafka, and the producers' settings made of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Final

from messaging.settings import ProducerSettings
from messaging.topics import DailyTopics
from pipelines.stream_settings import ProducerEnvironment
from pipelines.usage import UsageError

ALERTS: Final = "alerts"
CLASSIFICATIONS: Final = "classifications"
# Sends nothing, though the run did so before.
NO_TOPIC: Final = "none"
_DATE: Final = "%s"


def add_producer_options(parser: argparse.ArgumentParser, classifications: bool = True, avro: bool = True) -> None:
    """Add ``--kafka``, a topic for each kind of message, ``--schemaless`` and ``--avro``; None is what is not said.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    classifications : bool
        Whether the command classifies.
    avro : bool
        What the help tells of files of alerts where nothing is said.
    """
    parser.add_argument("--kafka", metavar="HOST:PORT", help="brokers to send messages to, separated by commas")
    for kind in (ALERTS, CLASSIFICATIONS) if classifications else (ALERTS,):
        what = "enriched alerts" if kind == ALERTS else kind
        parser.add_argument(
            f"--{kind}-topic",
            metavar="NAME",
            help=f"send the {what} to this topic; with %%s for the date, to one per day ({NO_TOPIC}: send none)",
        )
    parser.add_argument(
        "--schemaless",
        action=argparse.BooleanOptionalAction,
        help="send records without the schema, which readers must know (default: an Avro container per message)",
    )
    parser.add_argument(
        "--avro",
        action=argparse.BooleanOptionalAction,
        help=f"write the enriched alerts to files (default {'yes' if avro else 'no'})",
    )


def check_producer_options(options: argparse.Namespace) -> None:
    """Refuse brokers to which nothing would be sent.

    Raises
    ------
    UsageError
        If no topic is named.
    """
    topics = [name for name in vars(options) if name.endswith("_topic")]
    if options.kafka and not any(getattr(options, name) for name in topics):
        wanted = " or ".join(f"--{name.replace('_', '-')}" for name in topics)
        raise UsageError(f"--kafka {options.kafka}: name what to send as well, {wanted} NAME")


def producer_settings(
    options: argparse.Namespace, environment: ProducerEnvironment, kind: str
) -> ProducerSettings | None:
    """Settings of the producer of one kind of messages; None if no topic is named.

    Parameters
    ----------
    options : argparse.Namespace
        Of :func:`add_producer_options`; they come over the variables.
    environment : ProducerEnvironment
        What the variables say of messages of this kind.
    kind : {"alerts", "classifications"}

    Raises
    ------
    UsageError
        If a topic is named without brokers, or cannot be a topic's name.
    """
    name = getattr(options, f"{kind}_topic", None)
    if name == NO_TOPIC:
        return None
    if name:
        try:
            environment = replace(environment, topic=DailyTopics(name) if _DATE in name else name)
        except ValueError as error:
            raise UsageError(f"--{kind}-topic {name}: {error}") from error
    if options.kafka:
        environment = replace(environment, server=options.kafka)
    if environment.topic is None:
        return None
    if environment.server is None:
        raise UsageError(f"--{kind}-topic {name}: name the brokers as well, --kafka HOST:PORT")
    return environment.settings()
