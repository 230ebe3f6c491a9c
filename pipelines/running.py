"""What the commands that run a pipeline share: the runner, the folder's lock, the database, and how they end."""

from __future__ import annotations

import argparse
import builtins
import fcntl
import io
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics.monitoring_infos import consolidate, to_key
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners import create_runner
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
from apache_beam.runners.runner import PipelineRunner

from alerts.sources import total_bytes
from database.client import Database, DatabaseUnavailable
from database.embedded import EmbeddedServerError
from database.settings import DatabaseSettingsError, normalise_url
from database.tables import TableLayoutError
from pipelines.display import progress_shown
from pipelines.environment import Environment
from pipelines.usage import StoppedError, UsageError

LOCAL_RUNNER: Final = "FnApiRunner"
NO_DATABASE: Final = "none"
_LOOKS_AT_LOCK: Final = 4
EXIT_STATUS: Final = """\
exit status: 0 done; 1 done, with more dead letters than --max-dead-letters; 2 wrong usage, nothing was written;
3 stopped, because the database or a disk gave way: start again. Options that are not known here go to Apache Beam;
write them as --name=value.
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that runs a pipeline."""
    parser.add_argument(
        "--max-dead-letters", type=int, default=0, metavar="N", help="more than N exit with status 1 (default 0)"
    )
    parser.add_argument("--runner", default=LOCAL_RUNNER, help=f"Beam runner (default {LOCAL_RUNNER})")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


@contextmanager
def stopping(*failures: type[Exception]) -> Iterator[None]:
    """Turn what ends a run, and is no fault of the program, into one sentence.

    Parameters
    ----------
    failures : exception types
        Beside those of the database and the system.
    """
    known: tuple[type[Exception], ...] = (
        DatabaseUnavailable,
        EmbeddedServerError,
        TableLayoutError,
        OSError,
        *failures,
    )
    try:
        yield
    except known as error:
        raise StoppedError(_without_place(error)) from error
    except RuntimeError as error:
        # Beam gives exceptions that are not made of one text another type, and their own as part of the text.
        name, _, message = _without_place(error).partition(": ")
        if not issubclass(getattr(builtins, name, Exception), OSError):
            raise
        raise StoppedError(message) from error


def _without_place(error: BaseException) -> str:
    return str(error).partition(" [while running ")[0]


@contextmanager
def prepared(url: str, environment: Environment) -> Iterator[Database]:
    """Open a database that has the tables and knows of this step."""
    step = environment.step
    with Database(url) as database:
        database.create_tables()
        database.write_step(step.step_id, step.name, step.version, step.comments)
        yield database


def programs_of(text: str) -> tuple[int, ...]:
    """Survey programmes that ``--programid`` names; none for all."""
    if text == "all":
        return ()
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--programid {text}: give numbers such as 1,2,3, or 'all'") from error


def database_of(option: str | None, environment: Environment) -> str | None:
    """Address of the database that ``--database`` or else the environment names; None if neither does."""
    if option is None or option == NO_DATABASE:
        return option or environment.database
    try:
        return normalise_url(option)
    except DatabaseSettingsError as error:
        raise UsageError(str(error)) from error


def make_runner(command: str, name: str, beam_options: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """Runner and options of Beam; combinations that lose data are refused.

    Raises
    ------
    UsageError
        If an option is unknown or of no use here.
    """
    for text in beam_options:
        if not text.startswith("--"):
            raise UsageError(
                f"unexpected argument {text}: name all inputs together, and Beam's options as --name=value"
            )
        if not _is_beam_option(text):
            raise UsageError(f"unknown option {text}; see 'alertbeam {command} --help'")
    if name.rpartition(".")[2].lower() in ("directrunner", "switchingdirectrunner"):
        raise UsageError(
            f"{name} chooses another runner by itself and may download it; leave --runner out for the local one"
        )
    options = PipelineOptions(list(beam_options))
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            options.get_all_options()
        runner = create_runner(name)
    except SystemExit as error:
        raise UsageError(complaint.getvalue().strip().rpartition("error: ")[2]) from error
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"--runner {name}: {str(error).splitlines()[0]}") from error
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "in_memory" or direct.direct_num_workers != 1:
        raise UsageError(
            "the local runner reads the sources one after another, so that an alert that stands in several is written "
            "once; leave --direct_running_mode and --direct_num_workers out"
        )
    if options.view_as(StandardOptions).streaming:
        raise UsageError("--streaming: files are no stream, and would be read without an end; leave it out")
    return runner, options


def without_state_cache() -> None:
    """Let the local runner keep no cache of states, which lie in the same process.

    Beam 2.77 measures the depth of each value that it caches, by walking through all modules: 0.8 ms per write of a
    state, and 0.06 ms without the cache. There is no option for it.
    """
    worker_handlers.STATE_CACHE_SIZE_MB = 0


def with_bounded_metrics() -> None:
    """Let the local runner put the metrics of each bundle together with those before at once.

    Beam 2.77 does so when somebody asks for them, and until then a pipeline without an end keeps those of all its
    bundles: 66 kB each, 11 GB a day. There is no option for it.
    """

    def at_once(infos: Iterable[Any], key: Callable[[Any], Any] = to_key) -> list[Any]:
        return list(consolidate(infos, key))

    fn_runner.consolidate_monitoring_infos = at_once


def _is_beam_option(text: str) -> bool:
    name = text.removeprefix("--").partition("=")[0]
    known = PipelineOptions([]).get_all_options(retain_unknown_options=False)
    return name in known or name.removeprefix("no_") in known


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep two runs from writing into one folder."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoppedError(f"{output} cannot be written to: {error}") from error
    try:
        if not _flocked(descriptor):
            raise UsageError(f"another run is writing to {output}; wait for it or name another --output")
        yield
    finally:
        os.close(descriptor)


def _flocked(descriptor: int) -> bool:
    """Lock a file, also when 'alertbeam status' looks at the lock just then."""
    for _ in range(_LOOKS_AT_LOCK):
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False


def run_job(
    job: Any,
    run: Callable[..., Any],
    options: argparse.Namespace,
    beam_options: Sequence[str],
    environment: Environment,
    *failures: type[Exception],
) -> tuple[Any, Any, float]:
    """Run a job to its end; give it as it ran, its counts, and the seconds it took.

    Parameters
    ----------
    job : dataclass
        With ``sources``, ``database`` (not yet), ``work_folder`` (removed at the end) and ``progress_folder``.
    run : callable
    options, beam_options, environment
        Of the command.
    failures : exception types
        See :func:`stopping`.
    """
    runner, pipeline_options = make_runner(options.command_name, options.runner, beam_options)
    url = database_of(options.database, environment)
    with ExitStack() as stack:
        stack.enter_context(locked(job.work_folder))
        stack.callback(shutil.rmtree, job.work_folder, ignore_errors=True)
        stack.enter_context(stopping(*failures))
        if url is not None and url != NO_DATABASE:
            job = replace(job, database=stack.enter_context(prepared(url, environment)))
        started = time.monotonic()
        with progress_shown(job.progress_folder, total_bytes(job.sources), options.quiet or options.json):
            counts = run(job, beam.Pipeline(runner=runner, options=pipeline_options))
        return job, counts, time.monotonic() - started
