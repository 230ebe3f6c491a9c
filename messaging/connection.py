"""Connections of consumers, and what to make of brokers that do not answer: wait, tell it once, or give up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException

from messaging.settings import Kafka

_LOGGER = logging.getLogger(__name__)

_DEFAULTS: Final[dict[str, Any]] = {
    # Brokers send at least one message, however large, if the client takes so much.
    "fetch.message.max.bytes": 8 << 20,
    "receive.message.max.bytes": 128 << 20,
    "queued.max.messages.kbytes": 64 << 10,
    # A full queue is looked at again after this; the default of a second would leave it empty for long.
    "fetch.queue.backoff.ms": 20,
    "fetch.wait.max.ms": 100,
    "reconnect.backoff.max.ms": 2000,
    # Outages are logged here, once each.
    "log_level": 2,
}
_NEEDED: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
}
# Seconds for which a login that is refused, or a host that nobody knows, is tried again.
GIVE_UP_S: Final = 30.0
_LOGIN: Final = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
)
_MEANINGFUL: Final = (*_LOGIN, KafkaError._RESOLVE, KafkaError._SSL, KafkaError._TRANSPORT)
_FORBIDDEN: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)


# The coordinator of a group is being chosen: usual for a moment, with a new broker above all.
COORDINATOR: Final = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError._WAIT_COORD,
)
_COORDINATOR_PATIENCE: Final = 20


class BrokerError(RuntimeError):
    """Kafka cannot be used as it is set up; the message says what to do."""


def new_consumer(kafka: Kafka, group: str, heard: Callable[[KafkaError], None], **options: Any) -> Consumer:
    """Make a consumer that commits and skips nothing on its own accord.

    Parameters
    ----------
    kafka : Kafka
        Its options win over those given here, but not over what the reading depends on.
    group : str
    heard : callable
        Told of errors that concern no partition, while the consumer is polled.
    **options
        Properties of librdkafka, with ``_`` for ``.``.

    Raises
    ------
    BrokerError
        If an option is unknown or has a wrong value.
    """
    given = {name.replace("_", "."): value for name, value in options.items()}
    wanted = {**_DEFAULTS, **given, **kafka.client_options(), **_NEEDED, "group.id": group, "error_cb": heard}
    try:
        return Consumer(wanted)
    except KafkaException as error:
        raise BrokerError(f"the options of the connection to Kafka are wrong: {error.args[0].str()}") from error


class Outage:
    """The times in which a cluster does not answer; each is logged when it begins and when it ends.

    Parameters
    ----------
    kafka : Kafka
    give_up_s : float
        See :data:`GIVE_UP_S`.
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, kafka: Kafka, give_up_s: float = GIVE_UP_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._kafka, self._give_up_s, self._clock = kafka, give_up_s, clock
        self._cause: KafkaError | None = None
        self._since: float | None = None
        self._answered = self._told = self._suspected = False
        self._without_coordinator = 0

    @property
    def lasts(self) -> bool:
        """Whether there is an outage now, as a request has shown."""
        return self._since is not None

    @property
    def suspected(self) -> bool:
        """Whether a request should show if there is an outage."""
        return self._suspected

    def heard(self, error: KafkaError) -> None:
        """Take up what the client says on its own accord, perhaps long after it happened."""
        if error.fatal():
            raise BrokerError(f"Kafka at {self._kafka.servers} ended the connection for good: {error.str()}")
        if error.code() in _MEANINGFUL and not (self._cause is not None and self._cause.code() in _LOGIN):
            # A refused login is followed by a closed connection, which says less.
            self._cause = error
        self._suspected = self._suspected or error.code() in (KafkaError._ALL_BROKERS_DOWN, *_LOGIN)

    def failed(self, error: KafkaError) -> None:
        """Take up the failure of a request.

        Raises
        ------
        BrokerError
            If asking again cannot help.
        """
        if error.code() in _FORBIDDEN:
            raise BrokerError(forbidden(self._kafka, error))
        if error.code() in COORDINATOR and self._without_coordinator < _COORDINATOR_PATIENCE:
            self._without_coordinator += 1
            return
        if self._since is None:
            self._since = self._clock()
        if self._cause is None or self._cause.code() not in _MEANINGFUL:
            self._cause = error

    def over(self) -> None:
        """Note that the brokers answer."""
        if self._since is not None and self._told:
            _LOGGER.warning("Kafka at %s answers again, after %.0f s", self._kafka.servers, self._clock() - self._since)
        self._since, self._cause = None, None
        self._suspected, self._told, self._answered, self._without_coordinator = False, False, True, 0

    def check(self) -> None:
        """Tell of it, and give up if it has lasted too long for its cause.

        Raises
        ------
        BrokerError
        """
        if self._since is None or self._cause is None:
            return
        if not self._told:
            # Not when it begins: why a request failed is often heard after it failed.
            self._told = True
            text = "Kafka at %s does not answer; it is tried again until it does: %s"
            _LOGGER.warning(text, self._kafka.servers, self._cause.str())
        if self._clock() - self._since < self._give_up_s:
            return
        code = self._cause.code()
        # What worked before will work again: a broker that restarts may have no name or address for a while.
        if code in _LOGIN or (code in (KafkaError._RESOLVE, KafkaError._SSL) and not self._answered):
            raise BrokerError(_remedy(self._kafka, self._cause))


def forbidden(kafka: Kafka, error: KafkaError) -> str:
    """Say in a sentence what a user is not allowed to do, and the remedy."""
    user = repr(kafka.username) if kafka.username else "without a name"
    return f"Kafka at {kafka.servers} refuses the user {user}, who must be granted what is asked for: {error.str()}"


def _remedy(kafka: Kafka, cause: KafkaError) -> str:
    match cause.code():
        case KafkaError._RESOLVE:
            return f"none of the hosts {kafka.servers} is known: check the names of the Kafka servers ({cause.str()})"
        case KafkaError._SSL:
            return (
                f"no encrypted connection to Kafka at {kafka.servers}: check that the port is one for SSL, and that "
                f"its certificate is trusted ({cause.str()})"
            )
    who = f"of the user {kafka.username!r}: check name and password" if kafka.username else "without name and password"
    return f"Kafka at {kafka.servers} refuses the login {who} ({cause.str()})"
