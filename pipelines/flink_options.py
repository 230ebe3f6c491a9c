"""Options of a pipeline on Flink: safe ones by default, and refusals of those that lose or hold back data."""

from __future__ import annotations

import argparse
import io
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, Final, NamedTuple

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipelines.flink_cluster import EMBEDDED
from pipelines.usage import UsageError

RUNNER: Final = "FlinkRunner"
LOOPBACK: Final = "LOOPBACK"
EXTERNAL: Final = "EXTERNAL"
WORKER_POOL: Final = "localhost:50000"
CHECKPOINTING_INTERVAL_MS: Final = 3000
MIN_PAUSE_MS: Final = 2000
MAX_BUNDLE_TIME_MS: Final = 500
MAX_BUNDLE_ELEMENTS: Final = 1000
MAX_PARALLELISM: Final = 128

_FOR_EVER: Final = 2**31 - 1
_ENVIRONMENTS: Final = (LOOPBACK, EXTERNAL, "PROCESS", "DOCKER")
_ON, _OFF = "true", "false"


class _Option(NamedTuple):
    """An option of Flink's runner.

    Attributes
    ----------
    is_flag : bool
        Beam knows it as a bare word.
    stream, batch : str or None
        Our default for streams and for batches; None leaves it to Beam.
    why : str
        What it does, and why the default is what it is.
    """

    is_flag: bool
    stream: str | None
    batch: str | None
    why: str


_OPTIONS: Final[Mapping[str, _Option]] = {
    "checkpointing_interval": _Option(
        False,
        str(CHECKPOINTING_INTERVAL_MS),
        None,
        "ms between checkpoints. Offsets are committed when the next but one is complete, never without; so an alert "
        "counts as done about so long after its rows are written, and a failure repeats so much. Rows wait for nothing",
    ),
    "finish_bundle_before_checkpointing": _Option(
        True,
        _ON,
        None,
        "end bundles before a checkpoint. Otherwise what a checkpoint finds in the source's only bundle may be held "
        "back for ever, while the job says RUNNING",
    ),
    "externalized_checkpoints_enabled": _Option(True, _ON, None, "checkpoints outlast the job manager"),
    "retain_externalized_checkpoints_on_cancellation": _Option(
        True, _ON, None, "and a cancelled job; --savepoint_path goes on from one"
    ),
    "checkpoint_timeout_millis": _Option(
        False,
        "120000",
        None,
        "a checkpoint that takes longer has failed, and the job starts again from the last one (Flink: 10 min)",
    ),
    "min_pause_between_checkpoints": _Option(
        False,
        str(MIN_PAUSE_MS),
        None,
        "ms of work between two checkpoints, however long they take; longer than a bundle of the source, since a task "
        "that has not yet heard that the first one after a resume is complete makes one that Flink cannot take",
    ),
    "max_bundle_size": _Option(
        False,
        str(MAX_BUNDLE_ELEMENTS),
        None,
        "elements after which a bundle ends; an element is a batch of messages, so this is never reached in a stream",
    ),
    "max_bundle_time_mills": _Option(
        False,
        str(MAX_BUNDLE_TIME_MS),
        None,
        "ms after which a bundle ends behind the source, and what it gives is written; each ms is also latency",
    ),
    "number_of_execution_retries": _Option(
        False,
        str(_FOR_EVER),
        "3",
        "a stream goes on from its last checkpoint however often it fails. Batches: job servers of Beam 2.62 do not "
        "pass it on, and restart-strategy in the cluster's own settings counts",
    ),
    "execution_retry_delay": _Option(False, "2000", "2000", "ms before a failed job starts again"),
    "max_parallelism": _Option(
        False,
        str(MAX_PARALLELISM),
        None,
        "most slots that keyed state can ever be spread over; fixed, so that a savepoint can be taken up by more",
    ),
    "max_cache_memory_usage_mb": _Option(
        False,
        "0",
        "0",
        "cache of states in each Python worker. Beam 2.77 measures each cached value by a walk that takes longer than "
        "asking Flink again",
    ),
    "sdk_worker_parallelism": _Option(
        False,
        "1",
        "1",
        "Python workers beside each task manager; one uses little more than one core, so give as many as slots",
    ),
    "parallelism": _Option(False, "1", None, "slots to use; of a stream also the parts in which topics are read"),
    "savepoint_path": _Option(False, None, None, "savepoint or checkpoint (a folder with _metadata) to go on from"),
    "allow_non_restored_state": _Option(True, None, None, "go on from one that holds states of dropped transforms"),
    "unaligned_checkpoint_enabled": _Option(True, None, None, "let checkpoints overtake waiting data"),
    "force_unaligned_checkpoint_enabled": _Option(True, None, None, "likewise in loops"),
    "checkpointing_mode": _Option(False, None, None, "EXACTLY_ONCE (default) or AT_LEAST_ONCE, for Flink's states"),
    "fail_on_checkpointing_errors": _Option(True, None, None, "Beam's default is to fail"),
    "num_concurrent_checkpoints": _Option(False, None, None, "default 1"),
    "state_backend": _Option(False, None, None, "rocksdb or filesystem (default: the cluster's)"),
    "state_backend_storage_path": _Option(False, None, None, "folder of the states (default: the cluster's)"),
    "execution_mode_for_batch": _Option(False, None, None, "PIPELINED (default) or BATCH_FORCED"),
    "re_iterable_group_by_key_result": _Option(True, None, None, "groups can be read twice"),
    "object_reuse": _Option(True, None, None, "see Flink"),
    "faster_copy": _Option(True, None, None, "see Beam"),
    "operator_chaining": _Option(True, None, None, "see Flink"),
    "disable_metrics": _Option(True, None, None, "no metrics of Beam in Flink"),
    "latency_tracking_interval": _Option(False, None, None, "see Flink"),
    "auto_watermark_interval": _Option(False, None, None, "see Flink"),
    "report_checkpoint_duration": _Option(False, None, None, "see Beam"),
    "shutdown_sources_after_idle_ms": _Option(False, None, None, "see Beam"),
    "attached_mode": _Option(True, None, None, "see Beam"),
    "flink_master": _Option(False, None, None, "host:port of the cluster, or [local] for Flink in the job server"),
}
_STREAMS_ONLY: Final = ("checkpointing_interval", "savepoint_path", "finish_bundle_before_checkpointing")
_OF_OTHER_JOB_SERVERS: Final = ("flink_job_server_jar", "flink_submit_uber_jar", "flink_version")
FLINK_HELP: Final = "options of Beam on Flink, and what they are unless said otherwise:\n" + "\n".join(
    textwrap.fill(
        f"--{name}{'' if option.is_flag else f'={option.stream}'}: {option.why}",
        width=118,
        initial_indent="  ",
        subsequent_indent="      ",
    )
    for name, option in _OPTIONS.items()
    if option.stream is not None
)


def is_flink(runner: str) -> bool:
    """Say whether a name of a runner is that of Flink's."""
    return runner.rpartition(".")[2].lower() == RUNNER.lower()


def words_of(options: Sequence[str]) -> dict[str, str]:
    """Values by name, in which a hyphen is ``_``; a bare word is on.

    Raises
    ------
    UsageError
        If one is no option.
    """
    found = {}
    for text in options:
        if not text.startswith("--"):
            raise UsageError(f"unexpected argument {text}: write Beam's options as --name=value")
        name, equals, value = text[2:].partition("=")
        found[name.replace("-", "_")] = value if equals else _ON
    return found


def named_rest_url(options: Sequence[str]) -> str | None:
    """Address of the REST interface of the Flink that ``--flink_master`` names; None if it names none that runs."""
    master = words_of(options).get("flink_master", "")
    return None if not master or master.startswith("[") else "http://" + master.removeprefix("http://")


def master_to_serve(options: Sequence[str]) -> str | None:
    """Flink that a job server must be started for: ``--flink_master``; None if ``--job_endpoint`` names one that runs.

    Raises
    ------
    UsageError
        If neither is named, since Beam would then try to download a job server.
    """
    given = words_of(options)
    if given.get("job_endpoint"):
        return None
    master = given.get("flink_master")
    if not master or master == "[auto]":
        raise UsageError(
            "Flink is not named: give --job_endpoint=HOST:PORT of a job server, --flink_master=HOST:PORT of a cluster, "
            "or --flink_master=[local] for Flink on this machine"
        )
    return master.removeprefix("http://")


def flink_options(options: Sequence[str], streaming: bool, job_endpoint: str | None = None) -> PipelineOptions:
    """Options of a pipeline on Flink: those given, and safe ones where none are given.

    Parameters
    ----------
    options : sequence of str
        Beam's, as ``--name=value``, or ``--name`` for what is on or off (``--name=false`` leaves our default out).
        :data:`FLINK_HELP` tells and explains the defaults.
    streaming : bool
        The pipeline reads a stream.
    job_endpoint : str, optional
        Job server that was started for ``--flink_master``.

    Returns
    -------
    PipelineOptions
        For :class:`~apache_beam.runners.portability.flink_runner.FlinkRunner`. Workers are those of a pool at
        :data:`WORKER_POOL` (``alertbeam worker-pool``), unless ``--environment_type`` and ``--environment_config`` say
        otherwise.

    Raises
    ------
    UsageError
        If an option is unknown, makes no sense, or would lose or hold back data.
    """
    given = words_of(options)
    if job_endpoint is not None:
        given |= {"job_endpoint": job_endpoint}
    _refuse_unknown(given)
    _refuse_useless(given, streaming)
    if streaming:
        _refuse_unsafe(given)
    if not given.get("job_endpoint"):
        raise UsageError("no job server is named: give --job_endpoint=HOST:PORT, or --flink_master")
    chosen = {**_defaults(streaming), **given, **_environment(given)}
    # The job server knows its Flink.
    chosen.pop("flink_master", None)
    if streaming:
        chosen["streaming"] = _ON
    return _parsed([f"--runner={RUNNER}", *_written(chosen)])


def parallelism(options: PipelineOptions) -> int:
    """Slots that a pipeline is to use; at least one."""
    return max(1, int(options.get_all_options().get("parallelism") or 1))


def pause_s(options: PipelineOptions) -> float:
    """Time from the end of a stream's checkpoint to the begin of the next, at least."""
    chosen = options.get_all_options(retain_unknown_options=True)
    return float(chosen["min_pause_between_checkpoints"]) / 1000


@contextmanager
def without_notices() -> Iterator[None]:
    """Leave out Beam's notice, at each look, that options of Flink are unknown in Python; they are checked here."""
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_unknown(given: Mapping[str, str]) -> None:
    known = PipelineOptions([]).get_all_options(retain_unknown_options=False)
    for name, value in given.items():
        option = _OPTIONS.get(name)
        if option is None and name not in known and name.removeprefix("no_") not in known:
            twin = name.removeprefix("no_")
            if twin in _OPTIONS:
                raise UsageError(f"unknown option --{name}: write --{twin}=false")
            raise UsageError(f"unknown option --{name}: neither Beam nor its runner for Flink has it")
        if option is not None and option.is_flag and value.lower() not in (_ON, _OFF):
            raise UsageError(f"--{name}={value}: say --{name} or --{name}=false")
        if option is not None and not option.is_flag and name in given and value in ("", _ON):
            raise UsageError(f"--{name} needs a value: --{name}=...")


def _refuse_useless(given: Mapping[str, str], streaming: bool) -> None:
    local = DirectOptions([]).get_all_options(retain_unknown_options=False).keys()
    direct = {name for name in local if name.startswith("direct_")}
    for name in given:
        if name in direct or name.removeprefix("no_") in direct:
            raise UsageError(f"--{name} is for the local runner and does nothing on Flink: leave it out")
        if name in _OF_OTHER_JOB_SERVERS:
            raise UsageError(
                f"--{name} is for a job server that Beam starts; name ours by --job_endpoint or --flink_master"
            )
        if not streaming and name in _STREAMS_ONLY:
            raise UsageError(f"--{name} is for streams; what reads files makes no checkpoints on Flink")
    if not streaming and given.get("streaming", _OFF).lower() != _OFF:
        raise UsageError("--streaming: files are no stream, and would be read without an end; leave it out")


def _refuse_unsafe(given: Mapping[str, str]) -> None:
    if given.get("streaming", _ON).lower() != _ON:
        raise UsageError("--streaming=false: a stream cannot be run as a batch; leave it out")
    if _number(given, "checkpointing_interval", CHECKPOINTING_INTERVAL_MS) <= 0:
        raise UsageError(
            "--checkpointing_interval must be more than 0 ms: without checkpoints nothing is ever committed"
        )
    if _number(given, "min_pause_between_checkpoints", MIN_PAUSE_MS) < 0:
        raise UsageError("--min_pause_between_checkpoints must not be negative")
    if given.get("finish_bundle_before_checkpointing", _ON).lower() != _ON:
        raise UsageError(
            "--finish_bundle_before_checkpointing must stay on: without it a stream may stand still and say RUNNING"
        )
    if given.get("savepoint_path") and given.get("flink_master") == EMBEDDED:
        raise UsageError(
            "--savepoint_path: Flink in the job server begins anew all the same; it needs a cluster, "
            "--flink_master=HOST:PORT"
        )
    if given.get("shutdown_sources_after_idle_ms"):
        raise UsageError("--shutdown_sources_after_idle_ms would end checkpoints, and commits with them: leave it out")
    for name in ("max_bundle_size", "max_bundle_time_mills", "parallelism", "max_parallelism"):
        if _number(given, name, 1) <= 0:
            raise UsageError(f"--{name} must be more than 0")
    most = _number(given, "max_parallelism", MAX_PARALLELISM)
    if _number(given, "parallelism", 1) > most:
        raise UsageError(f"--parallelism must not be more than --max_parallelism ({most})")


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--{name}={text}: give a whole number") from error


def _defaults(streaming: bool) -> dict[str, str]:
    found = {name: option.stream if streaming else option.batch for name, option in _OPTIONS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kind = given.get("environment_type", EXTERNAL)
    if kind not in _ENVIRONMENTS:
        raise UsageError(f"--environment_type={kind}: one of {', '.join(_ENVIRONMENTS)}")
    if kind == EXTERNAL:
        return {"environment_type": kind, "environment_config": given.get("environment_config", WORKER_POOL)}
    if kind != LOOPBACK and not given.get("environment_config"):
        raise UsageError(f"--environment_type={kind} needs --environment_config")
    return {"environment_type": kind}


def _written(chosen: Mapping[str, str]) -> Iterator[str]:
    for name, value in chosen.items():
        if _is_flag(name, value):
            if value.lower() == _ON:
                yield f"--{name}"
        else:
            yield f"--{name}={value}"


def _is_flag(name: str, value: str) -> bool:
    option = _OPTIONS.get(name)
    return option.is_flag if option is not None else value.lower() in (_ON, _OFF)


def _parsed(flags: Sequence[str]) -> PipelineOptions:
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), without_notices():
            options = PipelineOptions(flags)
            options.get_all_options(add_extra_args_fn=_add_flink_options)
    except SystemExit as error:
        raise UsageError(complaint.getvalue().strip().rpartition("error: ")[2]) from error
    return options


def _add_flink_options(parser: argparse.ArgumentParser) -> None:
    known: Any = {word for action in parser._actions for word in action.option_strings}
    for name, option in _OPTIONS.items():
        if f"--{name}" not in known:
            parser.add_argument(f"--{name}", action="store_true" if option.is_flag else "store")
