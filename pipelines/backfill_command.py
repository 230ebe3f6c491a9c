"""``alertbeam backfill``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from alerts.container import CODECS
from alerts.enrich import PRECISIONS
from alerts.nights import find_nights, parse_date, with_sizes
from alerts.sources import InputError, Source, find_sources
from lightcurves.features.curves import Mode
from pipelines.backfill_run import add_sources, retry_set_aside, run_export, run_pass_1, run_pass_2
from pipelines.backfill_session import begun
from pipelines.backfill_settings import (
    BUCKETS,
    PASS_2_TABLES,
    check_same,
    fill,
    make_job,
    recorded_settings,
    without_tables,
)
from pipelines.environment import read_environment
from pipelines.flink_backfill import BeamPipelines
from pipelines.kafka_options import add_producer_options, check_producer_options
from pipelines.matchers import MATCHERS_HELP, add_matcher_options
from pipelines.run_display import add_progress_option
from pipelines.stream_environment import read_producer_environment
from pipelines.usage import UsageError
from pipelines.xmatch_command import check_level, check_output
from run_folder.layout import RunLayout

STEP: Final = "backfill"
_PASSES: Final = ("pass1", "pass2")
_EPILOG: Final = f"""\
INPUT are archives (.tar.gz, .tgz, .tar), folders, alert files (.avro), globs or URLs; or nights by their dates, from a
folder or web address that holds ztf_public_YYYYMMDD.tar.gz. What is remote is read as it comes and never stored.

examples:
  alertbeam backfill nights/ --catalog allwise/ --model model/ --output run/
  alertbeam backfill --from 2018-06-01 --to 2018-06-30 --archive https://host/alerts/ --catalog allwise/ --output run/
  alertbeam backfill more/ztf_public_20180701.tar.gz --output run/          (add a night, with the options of the run)
  alertbeam backfill --resume --output run/                                 (go on after a stop)
  alertbeam backfill --only pass2 --model better/ --output run/             (classify again, without the archive)
  alertbeam backfill --only pass2 --as-of 2018-06-15 --output run/          (what was known then)

Pass 1 reads each archive once: it decodes, crossmatches, writes the alerts and the tables, and adds the detections to
the light-curve store. Pass 2 takes the objects that changed: light curves, features, classes, tables. A ledger keeps
what is done: a run that was stopped, or killed, goes on where it was when the same command is started again. A worker
that dies is replaced and its archive tried again, and set aside with the reason after three attempts.

--runner FlinkRunner lets the slots of a Flink cluster do the work, an archive or some buckets at a time, and takes
options of Beam: --job_endpoint=HOST:PORT of a job server (or --flink_master=HOST:PORT, and one is started here for that
Flink), --parallelism=N slots to use, --environment_type and --environment_config of its Python workers (default: those
of 'alertbeam worker-pool' at localhost:50000). --flink_master=[local] starts Flink and its workers here. The output
folder, archives that are files, catalogues and the model must be on a file system that this machine and all workers
share, under the same paths; that is checked. The database must be reachable from them: the one embedded in the output
only is where all are on one machine. See docs/backfill.md.

output folder:
  alerts/*.avro                  the alerts with the field xmatches behind them, many per file
  crossmatches.parquet/          one row per alert and catalogue
  light_curves/                  the store: Parquet, by bucket of objects
  objects/  features/  probabilities/      one row per object
  hats/                          the same as a HATS catalogue, which lsdb opens
  dead_letters/*.avro            what could not be processed, with the reason and the original bytes
  database/                      the embedded PostgreSQL server's data, unless another database is named
  ledger/                        units of work, their counts and versions: 'alertbeam status RUN' shows them
Look at it with 'alertbeam report RUN', 'alertbeam show OID RUN', 'alertbeam sql RUN' or open_run in a notebook.

{MATCHERS_HELP}
environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; STEP_ID, STEP_NAME,
STEP_VERSION, STEP_COMMENTS fill table step; FEATURE_VERSION is written beside the features (default: the program's
version of the definitions, and the mode).

exit status: 0 done; 1 done, with more dead letters than --max-dead-letters, or with archives set aside; 2 wrong usage,
nothing was written; 3 stopped, because the database, Kafka or a disk gave way: start again.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "backfill",
        help="reprocess archives: crossmatch, light curves, features, classes",
        description="Reprocess archives of alerts: crossmatch, light curves, features and classes, on all cores.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="file, folder, glob or URL")
    parser.add_argument("--from", dest="first", metavar="DATE", help="first night, e.g. 2018-06-01")
    parser.add_argument("--to", dest="last", metavar="DATE", help="last night (default: the first)")
    parser.add_argument("--archive", metavar="URL|DIR", help="where the archives of the nights are")
    add_matcher_options(parser)
    parser.add_argument("--model", metavar="DIR|POINTER", help="model to classify with (default: no classes)")
    parser.add_argument(
        "--mode", choices=[str(mode) for mode in Mode], help="of the features (default: the model's, else accurate)"
    )
    parser.add_argument(
        "--forced", action=argparse.BooleanOptionalAction, help="take forced photometry as detections (default no)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="database for the tables, or 'none' (default: the variables DB_*, else a server embedded in the output)",
    )
    parser.add_argument(
        "--without-tables",
        metavar="LIST",
        help=f"tables not to write, of {', '.join(PASS_2_TABLES)}; feature has 178 rows per object",
    )
    add_producer_options(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="let a runner of Beam do the work, e.g. FlinkRunner, see above (default: processes of this machine)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on with a run; one must be there")
    how.add_argument("--fresh", action="store_true", help="remove what the folder holds of a run, and begin anew")
    parser.add_argument("--only", choices=_PASSES, help="do one pass alone")
    parser.add_argument(
        "--as-of",
        metavar="MJD|DATE",
        help="pass 2 with what was known then; the results lie in as_of/. A date means its beginning, UTC",
    )
    parser.add_argument(
        "--hats", action=argparse.BooleanOptionalAction, help="write the HATS catalogue of objects (default yes)"
    )
    parser.add_argument(
        "--hats-light-curves",
        action=argparse.BooleanOptionalAction,
        help="put the light curves into the HATS catalogue (default no)",
    )
    parser.add_argument(
        "--programid", metavar="LIST", help="survey programmes wanted, e.g. 1,2,3, or 'all' (default: 1)"
    )
    parser.add_argument("--codec", choices=CODECS, help="of the written alerts (default zstandard)")
    parser.add_argument(
        "--compression-level", type=int, metavar="N", help="of the written alerts (default: a fast one)"
    )
    parser.add_argument(
        "--xmatch-precision", choices=PRECISIONS, help="numbers in xmatches: float (default, as ALeRCE's) or double"
    )
    parser.add_argument("--batch-alerts", type=int, metavar="N", help="alerts in a batch at most (default 1000)")
    parser.add_argument(
        "--buckets",
        type=int,
        metavar="N",
        help=f"parts of the light-curve store, for good (default {BUCKETS}: up to a million objects; 4096: the survey)",
    )
    parser.add_argument(
        "--max-dead-letters", type=int, default=0, metavar="N", help="more than N exit with status 1 (default 0)"
    )
    parser.add_argument(
        "--attempts", type=int, default=3, metavar="N", help="before an archive is set aside (default 3)"
    )
    add_progress_option(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command, takes_beam_options=True)


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    runner = _runner(options, beam_options)
    environment = read_environment(variables, STEP)
    layout = layout_of(options)
    recorded = {} if options.fresh else recorded_settings(layout, options.resume)
    fill(options, recorded)
    sources = _sources(options)
    _check(options, layout, sources, recorded)
    job, settings = make_job(options, environment, layout, read_producer_environment(variables))
    check_same(recorded, settings, options)
    with runner or nullcontext(), begun(options, environment, job, settings, options.fresh, runner) as session:
        if changes := add_sources(session.driving.ledger, sources):
            raise UsageError(
                f"{changes[0]}{f', and {len(changes) - 1} more' if len(changes) > 1 else ''}: what came of it is in "
                "the light curves already; name another --output, or begin anew with --fresh"
            )
        session.write_settings()
        retry_set_aside(session.driving.ledger)
        with session.invocation():
            if options.only != "pass2":
                run_pass_1(session.job, session.driving)
            if options.only != "pass1":
                run_pass_2(session.job, session.driving)
                if options.hats:
                    run_export(session.job, session.driving)
        return session.told()


def _runner(options: argparse.Namespace, beam_options: Sequence[str]) -> BeamPipelines | None:
    """What makes pipelines for the runner that is named; None if none is."""
    if options.runner is None:
        if beam_options:
            raise UsageError(f"unknown option {beam_options[0]}; those of Beam need --runner, see --help")
        return None
    if options.workers is not None:
        raise UsageError("--workers are processes of this machine; with --runner say --parallelism=N")
    found = BeamPipelines(options.runner, beam_options, layout_of(options).ledger / "job_server")
    options.workers = found.parallelism
    return found


def layout_of(options: argparse.Namespace) -> RunLayout:
    """Places in the folder that ``--output`` names."""
    return RunLayout(Path(options.output).expanduser().absolute())


def _sources(options: argparse.Namespace) -> list[Source]:
    try:
        sources = with_sizes(find_sources(options.inputs))
        if options.first or options.last or options.archive:
            sources += _nights(options)
    except (InputError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return list({source.name: source for source in sources}.values())


def _nights(options: argparse.Namespace) -> list[Source]:
    if not (options.first and options.archive):
        raise UsageError("nights are named by --from DATE, --to DATE and --archive URL or folder together")
    first = parse_date(options.first)
    last = parse_date(options.last) if options.last else first
    return find_nights(first, last, options.archive, lambda text: print(text, file=sys.stderr)).sources


def _check(
    options: argparse.Namespace, layout: RunLayout, sources: Sequence[Source], recorded: Mapping[str, Any]
) -> None:
    if options.only == "pass2" and (options.inputs or options.archive):
        raise UsageError("--only pass2 reads no archive; leave the inputs out")
    if options.only == "pass2" and not recorded:
        raise UsageError(f"--only pass2: {layout.root} holds no light curves; run pass 1 first")
    if not sources and not recorded:
        raise UsageError("name what to read: INPUT, or --from, --to and --archive")
    if options.as_of and options.only != "pass2":
        raise UsageError("--as-of is for pass 2 of a run that is there: say --only pass2")
    for name in ("workers", "attempts", "batch_alerts", "buckets"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    check_level(options.codec, options.compression_level)
    check_producer_options(options)
    unknown = set(without_tables(options)) - {*PASS_2_TABLES}
    if unknown:
        raise UsageError(
            f"--without-tables {', '.join(sorted(unknown))}: these can be left out: {', '.join(PASS_2_TABLES)}"
        )
    is_xmatch = layout.crossmatches.is_file() or (layout.root / "crossmatches").is_dir()
    if is_xmatch and not layout.ledger.is_dir():
        raise UsageError(f"{layout.root} holds a run of 'alertbeam xmatch'; name another --output")
    check_output(layout.root, options.inputs, sources)
