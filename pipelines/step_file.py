"""The YAML configuration of ALeRCE's steps, told as the variables that say the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

import yaml

from messaging.settings import ExtraEntry

NO_SCRIBE: Final = "there is no scribe here, and what it would write goes to PostgreSQL at once"
SCHEMA_FOLLOWS: Final = "the schema of the messages follows from what is read"
METRICS_SCHEMA: Final = "the fields of metrics messages are those of ALeRCE's framework"
_OPTIONS: Final = "librdkafka"
_EXTRA: Final = "EXTRA_METRICS"


def _daily(topic_format: str, others: str) -> dict[str, Any]:
    names = {"date_format": "DATE_FORMAT", "change_hour": "CHANGE_HOUR", "retention_days": "RETENTION_DAYS"}
    return {"topic_format": topic_format} | {key: f"{others}_{name}" for key, name in names.items()}


_DATABASE: Final = {
    "ENGINE": "DB_ENGINE",
    "HOST": "DB_HOST",
    "USER": "DB_USER",
    "USERNAME": "DB_USER",
    "PASSWORD": "DB_PASSWORD",
    "PORT": "DB_PORT",
    "DB_NAME": "DB_NAME",
}
# What each key stands for: a variable, or a section. A section that has _OPTIONS gives its other keys to librdkafka.
_LAYOUT: Final[Mapping[str, Any]] = {
    "CONSUMER_CONFIG": {
        "CLASS": "CONSUMER_CLASS",
        "TOPICS": "CONSUMER_TOPICS",
        "TOPIC_STRATEGY": {
            "CLASS": "TOPIC_STRATEGY_CLASS",
            "PARAMS": _daily("TOPIC_STRATEGY_FORMAT", "TOPIC_STRATEGY"),
        },
        "SCHEMA_PATH": "CONSUMER_SCHEMA_PATH",
        "consume.messages": "CONSUME_MESSAGES",
        "NUM_MESSAGES": "CONSUME_MESSAGES",
        "consume.timeout": "CONSUME_TIMEOUT",
        "TIMEOUT": "CONSUME_TIMEOUT",
        "offsets": {"start": "CONSUMER_START"},
        "PARAMS": {
            "bootstrap.servers": "CONSUMER_SERVER",
            "group.id": "CONSUMER_GROUP_ID",
            "enable.partition.eof": "ENABLE_PARTITION_EOF",
            "sasl.username": "CONSUMER_KAFKA_USERNAME",
            "sasl.password": "CONSUMER_KAFKA_PASSWORD",
            _OPTIONS: "consumer",
        },
    },
    "PRODUCER_CONFIG": {
        "CLASS": "PRODUCER_CLASS",
        "TOPIC": "PRODUCER_TOPIC",
        "TOPIC_STRATEGY": {
            "CLASS": "PRODUCER_TOPIC_STRATEGY_CLASS",
            "PARAMS": _daily("PRODUCER_TOPIC_FORMAT", "PRODUCER"),
        },
        "SCHEMA_PATH": "PRODUCER_SCHEMA_PATH",
        "PARAMS": {
            "bootstrap.servers": "PRODUCER_SERVER",
            "message.max.bytes": "PRODUCER_MESSAGE_MAX_BYTES",
            "sasl.username": "PRODUCER_KAFKA_USERNAME",
            "sasl.password": "PRODUCER_KAFKA_PASSWORD",
            _OPTIONS: "producer",
        },
    },
    "METRICS_CONFIG": {
        "CLASS": "METRICS_CLASS",
        "EXTRA_METRICS": _EXTRA,
        "PARAMS": {
            "TOPIC": "METRICS_TOPIC",
            "SCHEMA_PATH": "METRICS_SCHEMA_PATH",
            "PARAMS": {
                "bootstrap.servers": "METRICS_HOST",
                "sasl.username": "METRICS_KAFKA_USERNAME",
                "sasl.password": "METRICS_KAFKA_PASSWORD",
                _OPTIONS: "metrics",
            },
        },
    },
    "DB_CONFIG": {"SQL": _DATABASE, **_DATABASE},
    "PSQL_CONFIG": _DATABASE,
    "CATALOG_CONFIG": "CATALOG",
    "XMATCH_CONFIG": {"CATALOG": "CATALOG"},
    "STEP_METADATA": {
        name: name for name in ("STEP_ID", "STEP_NAME", "STEP_VERSION", "STEP_COMMENTS", "FEATURE_VERSION")
    },
    "FEATURE_FLAGS": {
        "PROMETHEUS": "USE_PROMETHEUS",
        **{name: name for name in ("USE_PROMETHEUS", "USE_PROFILING", "SKIP_XMATCH")},
    },
    "PROMETHEUS": "USE_PROMETHEUS",
    "MODEL_CONFIG": {
        "CLASS": "MODEL_CLASS",
        "PARAMS": {"model_path": "MODEL_PATH", "path_to_model": "MODEL_PATH"},
    },
}
_NOT_USED: Final = {
    "SCRIBE_PRODUCER_CONFIG": NO_SCRIBE,
    "PRODUCER_CONFIG.SCHEMA": SCHEMA_FOLLOWS,
    "METRICS_CONFIG.PARAMS.SCHEMA": METRICS_SCHEMA,
    "CONSUMER_CONFIG.PARAMS.enable.auto.commit": "offsets are committed when all that came of the messages is written",
    "PRODUCER_CONFIG.PARAMS.auto.offset.reset": "it is for consumers",
    "METRICS_CONFIG.PARAMS.PARAMS.auto.offset.reset": "it is for consumers",
    "COMMIT": "offsets are committed always; a stream read with another CONSUMER_GROUP_ID leaves these alone",
}
_RESET: Final = "CONSUMER_CONFIG.PARAMS.auto.offset.reset"
_EARLIEST: Final = ("earliest", "beginning", "smallest")
# librdkafka knows both names, and one alone can win over the mechanism that follows from a name and password.
_SAME_OPTIONS: Final = {"sasl.mechanisms": "sasl.mechanism"}


@dataclass(frozen=True)
class StepFile:
    """What a file says.

    Attributes
    ----------
    variables : dict of str to str
        As if they had been set.
    options : dict of str to dict of str to str
        Properties of librdkafka of the ``consumer``, the ``producer`` and ``metrics``.
    extra : tuple of ExtraEntry, optional
        Entries of the metrics messages.
    notices : list of str
        Sentences about keys that are not used.
    """

    variables: dict[str, str] = field(default_factory=dict, repr=False)
    options: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    extra: tuple[ExtraEntry, ...] | None = None
    notices: tuple[str, ...] = ()


def read_step_file(path: str, names: Collection[str]) -> StepFile:
    """Read the configuration of a step.

    Parameters
    ----------
    path : str
    names : collection of str
        Variables that stand at the top level of the file under their own names.

    Raises
    ------
    ValueError
        If it cannot be read, or says two things at once; the sentence never shows a value.
    """
    document = _load(path)
    found = _Found(path)
    found.section(document, {name: name for name in names} | dict(_LAYOUT), "")
    return StepFile(found.variables, found.options, found.extra, tuple(found.notices))


def _load(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(
            f"the file {path} cannot be read ({reason}): put it there, set CONFIG_FROM_YAML to another path, or leave "
            "CONFIG_FROM_YAML out"
        ) from error
    except yaml.YAMLError as error:
        # The error's own text may quote a line, and with it a password.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"the file {path} that CONFIG_FROM_YAML names is no YAML{where}") from None
    if not isinstance(document, Mapping):
        raise ValueError(f"the file {path} that CONFIG_FROM_YAML names must hold keys such as CONSUMER_CONFIG")
    return document


class _Found:
    """What was found so far, and where."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.variables: dict[str, str] = {}
        self.options: dict[str, dict[str, str]] = {}
        self.extra: tuple[ExtraEntry, ...] | None = None
        self.notices: list[str] = []
        self._places: dict[str, str] = {}

    def section(self, section: Mapping[Any, Any], layout: Mapping[str, Any], place: str) -> None:
        for key, value in section.items():
            here = f"{place}.{key}" if place else str(key)
            what = layout.get(str(key))
            if value is None or self._is_told(here, value):
                continue
            if isinstance(what, Mapping):
                if not isinstance(value, Mapping):
                    raise ValueError(f"{here} in {self.path} must hold keys such as {next(iter(what))}")
                self.section(value, what, here)
            elif what == _EXTRA:
                self.extra = self._entries(value, here)
            elif what is not None:
                self._set(what, value, here)
            elif _OPTIONS in layout:
                options = self.options.setdefault(layout[_OPTIONS], {})
                options[_SAME_OPTIONS.get(str(key), str(key))] = self._scalar(value, here)
            else:
                self.notices.append(f"{here} in {self.path} is not known here, and not used")

    def _is_told(self, here: str, value: Any) -> bool:
        if here == _RESET:
            if str(value).casefold() not in _EARLIEST:
                raise ValueError(
                    f"{here} in {self.path} would skip what no offset is committed for: leave it out, and set "
                    "CONSUMER_START to latest for a start at the end"
                )
            return True
        if here in _NOT_USED:
            self.notices.append(f"{here} in {self.path} is not used: {_NOT_USED[here]}")
        return here in _NOT_USED

    def _set(self, name: str, value: Any, here: str) -> None:
        text = self._text(name, value, here)
        if self.variables.setdefault(name, text) != text:
            raise ValueError(f"{self._places[name]} and {here} in {self.path} say different things; leave one out")
        self._places.setdefault(name, here)

    def _text(self, name: str, value: Any, here: str) -> str:
        if name == "CATALOG":
            return value if isinstance(value, str) else json.dumps(value, default=str)
        if name == "CONSUMER_START" and isinstance(value, int):
            return datetime.fromtimestamp(value / 1000, UTC).isoformat()
        if isinstance(value, list):
            return ",".join(self._scalar(part, here) for part in value)
        return self._scalar(value, here)

    def _scalar(self, value: Any, here: str) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, str | int | float):
            return str(value)
        raise ValueError(f"{here} in {self.path} must be text or a number")

    def _entries(self, value: Any, here: str) -> tuple[ExtraEntry, ...]:
        entries = []
        for entry in value if isinstance(value, list) else [value]:
            known = {"key": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
            texts = {name: str(known.pop(name)) for name in ("key", "alias", "format") if known.get(name)}
            if "key" not in texts:
                raise ValueError(f"{here} in {self.path} must list names, or key, alias and format")
            self.notices += [f"{here}.{name} in {self.path} is not known here, and not used" for name in known]
            entries.append(ExtraEntry(**texts))
        return tuple(entries)
