"""``alertbeam stream``: options over variables, checks before anything is read, and the run."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, Protocol

from alerts.enrich import PRECISIONS
from classifier.model import ModelError
from database.embedded import start_embedded
from database.settings import safe_url
from lightcurves.features.curves import Mode
from lightcurves.store import StoreError
from messaging.child_process import ChildProcessFailed
from messaging.consumer import BrokerError
from messaging.jars import JarsError
from messaging.monitor import Monitor, close_monitors, monitor
from messaging.producer import DeliveryError
from messaging.settings import COMMITTED, MonitorSettings
from pipelines.backfill_settings import PASS_2_TABLES
from pipelines.flink_jobs import FlinkError
from pipelines.flink_options import FLINK_HELP, is_flink
from pipelines.flink_stream import FlinkStream
from pipelines.kafka_options import add_producer_options
from pipelines.local_stream import LocalStream
from pipelines.matchers import MATCHERS_HELP, add_matcher_options
from pipelines.running import (
    NO_DATABASE,
    database_of,
    locked,
    prepared,
    stopping,
)
from pipelines.stream import StreamJob
from pipelines.stream_display import snapshot_text, stream_shown
from pipelines.stream_job import chosen, make_job
from pipelines.stream_log import set_up_logs
from pipelines.stream_settings import ALL, CONTAINER, JSON, LATE_CLASSIFICATION, SCHEMALESS, XMATCH
from pipelines.stream_stop import Stop, stopped_by_signals
from pipelines.stream_warm_up import warm_up
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, UsageError
from pipelines.worker_pool import WorkerPoolError
from transforms.counts import counters_by
from transforms.kept_rows import store_to_database
from xmatch.layout import CatalogError

_LOGGER = logging.getLogger(__name__)

SUCCESS: Final = "__SUCCESS__"
_EPILOG: Final = f"""\
examples:
  alertbeam stream --step all --server broker:9092 --topics ztf_20260101_programid1 --group mine \\
      --catalog allwise/ --model model/ --output live/
  alertbeam stream --step all ... --daily-topics 'ztf_%s_programid1' --light-curves run/  (go on after a backfill)
  alertbeam stream --step xmatch                 (everything from the variables of ALeRCE's xmatch step)
  alertbeam stream --step late_classification    (likewise, its late classification step)
  alertbeam stream ... --stop-at-end             (read what the topics hold, and end)
  alertbeam stream ... --runner FlinkRunner --flink_master=HOST:PORT --parallelism=4      (on a cluster)

What came of a message is in the database, the topics and the files before its offset is committed: what is killed goes
on where it was, and nothing is lost. What comes twice leaves the same rows. A message that cannot be processed goes to
dead_letters/ in the output folder with its reason; 'alertbeam xmatch' or 'backfill' read that folder again.
SIGTERM or Ctrl-C finish what was read and commit it; a second one ends at once.

output folder:
  dead_letters/*.avro    what could not be processed, with the reason and the original bytes
  database/              the embedded PostgreSQL server's data, unless another database is named
  alerts/  classifications/      with --avro: the same messages as Avro files, a file per bundle

{MATCHERS_HELP}
{FLINK_HELP}

environment: all variables of ALeRCE's steps, see docs/configuration.md; options come before variables, and those before
the file that CONFIG_FROM_YAML names.

exit status: 0 ended as asked; 1 the same, with more dead letters than --max-dead-letters; 2 wrong usage, nothing was
read; 3 stopped, because a broker, the database or a disk gave way: start again.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "stream",
        help="follow topics of Kafka: crossmatch, light curves, features, classes",
        description="Follow alerts in Kafka: crossmatch, light curves, features and classes, as a backfill does.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--step",
        choices=(XMATCH, LATE_CLASSIFICATION, ALL),
        default=ALL,
        help="alerts to crossmatched alerts; messages of the feature step to classes; or alerts to classes (default)",
    )
    _add_reading(parser)
    _add_writing(parser)
    add_matcher_options(parser)
    parser.add_argument("--model", metavar="DIR|POINTER", help="model to classify with")
    parser.add_argument(
        "--follow-model", action="store_true", help="change to another model as soon as the pointer names it"
    )
    parser.add_argument(
        "--mode", choices=[str(mode) for mode in Mode], help="of the features (default: the model's, else accurate)"
    )
    parser.add_argument("--forced", action="store_true", help="take forced photometry as detections")
    parser.add_argument(
        "--light-curves", metavar="RUN", help="folder of a backfill, whose light curves the stream continues"
    )
    parser.add_argument(
        "--copy-light-curves",
        action="store_true",
        help="copy those of --light-curves to the database before reading, where they are found ten times as fast",
    )
    parser.add_argument(
        "--keep-days", type=float, default=1.0, metavar="DAYS", help="objects without alerts stay in memory (default 1)"
    )
    parser.add_argument(
        "--renew-hours",
        type=float,
        metavar="H",
        help="take up the pipeline anew so often, with an empty state, which gives back what the runner gathers "
        "(default 24, and 2 on Flink; never where light curves are in the state alone)",
    )
    parser.add_argument(
        "--programid", metavar="LIST", help="survey programmes wanted, e.g. 1,2,3, or 'all' (default: 1)", default="1"
    )
    parser.add_argument(
        "--bundle-seconds",
        type=float,
        metavar="S",
        help="gather messages for so long before what came of them is committed (default 0.5, with --avro 30)",
    )
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve metrics for Prometheus, and /healthz")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log (default text)")
    parser.add_argument(
        "--max-dead-letters", type=int, metavar="N", help="more than N exit with status 1 (default: any number is fine)"
    )
    parser.add_argument("--runner", default="FnApiRunner", help="Beam runner (default FnApiRunner)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command, takes_beam_options=True)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="HOST:PORT", help="brokers, separated by commas (CONSUMER_SERVER)")
    parser.add_argument("--topics", metavar="LIST", help="topics, separated by commas (CONSUMER_TOPICS)")
    parser.add_argument(
        "--daily-topics", metavar="FORMAT", help="a topic per day, %%s stands for the date (TOPIC_STRATEGY_FORMAT)"
    )
    parser.add_argument("--group", metavar="NAME", help="name that offsets are kept under (CONSUMER_GROUP_ID)")
    parser.add_argument(
        "--start", metavar="WHERE", help="committed (default), earliest, latest, or a time such as 2026-01-01T22:00"
    )
    parser.add_argument(
        "--stop-at-end", action="store_true", help="end when all topics are read (ENABLE_PARTITION_EOF)"
    )
    parser.add_argument(
        "--part", metavar="I/N", help="read the Ith of N parts of the partitions, for N processes side by side"
    )
    parser.add_argument(
        "--format", choices=(CONTAINER, SCHEMALESS, JSON), help="of the messages (default container, as ZTF's)"
    )
    parser.add_argument("--schema", metavar="FILE", help="schema (.avsc) of messages that carry none")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="stream", metavar="DIR", help="folder of the stream (default stream)")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="database for the tables, or 'none' (default: the variables DB_*, else a server embedded in the output)",
    )
    parser.add_argument(
        "--without-tables", metavar="LIST", default="", help=f"tables not to write, of {', '.join(PASS_2_TABLES)}"
    )
    add_producer_options(parser, avro=False)
    parser.add_argument(
        "--xmatch-precision",
        choices=PRECISIONS,
        default="float",
        help="numbers in xmatches: 32 bits (as ALeRCE) or 64",
    )


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = chosen(options, variables)
    set_up_logs(options.log_format, bool(environment.debug))
    for notice in environment.notices:
        _LOGGER.warning(notice)
    job = make_job(options, environment)
    place = (
        FlinkStream(beam_options, job.consumer, job.output / "flink")
        if is_flink(options.runner)
        else LocalStream(options.runner, beam_options)
    )
    consumer, watched = job.consumer, place.watched(job.monitor or MonitorSettings())
    job = place.adapted(job)
    url = database_of(options.database, environment.environment)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(locked(job.output))
        (job.output / SUCCESS).unlink(missing_ok=True)
        failures = (CatalogError, ModelError, StoreError, BrokerError, DeliveryError)
        stack.enter_context(stopping(*failures, FlinkError, ChildProcessFailed, JarsError, WorkerPoolError))
        stop = stack.enter_context(stopped_by_signals(Path(consumer.stop_file)))
        if url != NO_DATABASE:
            url = url or stack.enter_context(start_embedded(job.output / "database")).url
            _LOGGER.info("tables: %s", safe_url(url))
            job = job.with_database(stack.enter_context(prepared(url, environment.environment)))
        stack.callback(close_monitors)
        watching = monitor(watched, place.counts)
        if options.copy_light_curves:
            _copy_light_curves(job)
        if job.step == ALL and place.computes_here:
            warm_up(job)
        stack.enter_context(place)
        with stream_shown(watching, options.quiet or options.json):
            run_until_told(place, job, watching, stop, options.renew_hours)
        if consumer.stop_at_end:
            (job.output / SUCCESS).touch()
        return _told(options, job, watching, time.monotonic() - started)


class Place(Protocol):
    """Where streams run."""

    @property
    def renew_hours(self) -> float:
        """How long a pipeline is good for."""
        ...

    def run(self, job: StreamJob, watching: Monitor) -> None:
        """Run a stream until its reading ends."""
        ...


def run_until_told(place: Place, job: StreamJob, watching: Monitor, stop: Stop, renew_hours: float | None) -> None:
    """Run a stream until it is to end for good, taking it up anew now and then."""
    state_alone = job.step == ALL and job.database is None
    hours = renew_hours or (math.inf if state_alone else place.renew_hours)
    while True:
        with stop.after(3600.0 * hours):
            place.run(job, watching)
        if not stop.renewed():
            return
        _LOGGER.info("taking up the pipeline anew, with an empty state")
        # What was read from the given start on is committed, and not to be read again.
        job = replace(job, consumer=replace(job.consumer, start=COMMITTED))


def _copy_light_curves(job: StreamJob) -> None:
    if job.origins.store is None or job.database is None:
        raise UsageError(
            "--copy-light-curves: name the run whose light curves they are, --light-curves RUN, and a database"
        )
    _LOGGER.info("copying the light curves of %s to the database", job.origins.store)
    _LOGGER.info("copied those of %s objects", f"{store_to_database(job.origins.store, job.database):,}")


def _told(options: argparse.Namespace, job: StreamJob, watching: Monitor, seconds: float) -> int:
    """Print what became of the messages; give the exit status."""
    now = watching.snapshot()
    dead = sum(counters_by(now.counts, "dead_letters:").values())
    if options.json:
        told = asdict(now) | {"seconds": round(seconds, 3), "dead_letters": dead, "output": str(job.output)}
        print(json.dumps(told))
    else:
        print(f"alertbeam stream: ended after {seconds:,.0f} s: {snapshot_text(now)}")
        if dead:
            print(f"alertbeam stream: {job.dead_letters} holds {dead:,} dead letters")
    limit = options.max_dead_letters
    return TOO_MANY_DEAD_LETTERS if limit is not None and dead > limit else DONE
