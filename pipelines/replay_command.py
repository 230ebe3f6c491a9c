"""``alertbeam replay``: dead letters once more, after a fix or when a service is back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from alerts.container import ContainerError
from pipelines.backfill_run import add_letters, remove_replayed, run_export, run_pass_1, run_pass_2, run_refused
from pipelines.backfill_session import begun
from pipelines.backfill_settings import KEPT, fill, make_job, recorded_settings
from pipelines.environment import read_environment
from pipelines.matchers import add_matcher_options
from pipelines.replay import count_letters, letter_files, letters_by_stage
from pipelines.run_display import add_progress_option
from pipelines.stream_environment import read_producer_environment
from pipelines.usage import UsageError
from run_folder.layout import RunLayout

_EPILOG: Final = """\
examples:
  alertbeam replay run/                                               (all of a backfill's dead letters)
  alertbeam replay run/dead_letters/night.crossmatch.0000.avro        (those of one file)
  alertbeam replay run/ --catalog allwise_repaired/                   (with another catalogue of the same version)

Packets that could not be read or looked up go the whole way again, into the same results; rows that the database
refused go to the database, and alerts that Kafka refused to Kafka. A file of letters is removed when all of it was fed
again; what fails once more stands in new files, with its reason. Objects that a model cannot classify, or whose
classification a sink refused, are left where they are: classify them with another model, 'alertbeam backfill --only
pass2 --model DIR --output RUN'.

The folder of an 'alertbeam xmatch' run keeps no settings: name its dead letters as INPUT of another run.

exit status: 0 all letters were fed and none failed again; 1 some did, more than --max-dead-letters; 2 wrong usage;
3 stopped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "replay",
        help="feed dead letters again",
        description="Feed the dead letters of a backfill again, and remove those that succeed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="RUN|DEAD_LETTERS", help="folder of a run, or files of its letters"
    )
    add_matcher_options(parser)
    parser.add_argument("--database", metavar="URL", help="database for the tables (default: that of the run)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--hats", action=argparse.BooleanOptionalAction, help="write the HATS catalogue anew (default as the run's)"
    )
    parser.add_argument(
        "--max-dead-letters", type=int, default=0, metavar="N", help="more than N exit with status 1 (default 0)"
    )
    add_progress_option(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command)


def run_command(options: argparse.Namespace, _: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables, "backfill")
    layout = RunLayout(_run_of(options.inputs))
    settings = recorded_settings(layout, needed=True)
    for name in KEPT:
        vars(options).setdefault(name, None)
    options.as_of, options.attempts, options.output = None, 3, str(layout.root)
    fill(options, settings)
    options.workers = options.workers or os.cpu_count() or 1
    job, settings = make_job(options, environment, layout, read_producer_environment(variables))
    with begun(options, environment, job, settings) as session:
        ledger = session.driving.ledger
        # What a replay that was killed had fed.
        remove_replayed(ledger)
        try:
            packets, refused, others = letters_by_stage(
                [path for path in letter_files(options.inputs) if path.exists()]
            )
        except ContainerError as error:
            raise UsageError(f"not all of the inputs are dead letters: {error}") from error
        number = count_letters([*packets, *refused])
        session.say(f"{number:,} dead letters are fed again")
        if others:
            session.say(f"{count_letters(others):,} objects are left: to classify them takes another model, see --help")
        add_letters(ledger, packets, refused)
        with session.invocation():
            run_refused(session.job, session.driving)
            run_pass_1(session.job, session.driving)
            remove_replayed(ledger)
            run_pass_2(session.job, session.driving)
            if options.hats:
                run_export(session.job, session.driving)
        left = count_letters([path for path in letter_files([str(layout.root)]) if path not in others])
        session.say(f"{left:,} dead letters are left in {layout.dead_letters}")
        return session.told()


def _run_of(inputs: Sequence[str]) -> Path:
    """Folder of the run that all inputs belong to."""
    found = set()
    for text in inputs:
        path = Path(text).expanduser().absolute()
        if not path.exists():
            raise UsageError(f"{text}: there is no such file or folder")
        place = next((place for place in (path, *path.parents) if RunLayout(place).ledger.is_dir()), None)
        if place is None:
            raise UsageError(
                f"{text} belongs to no backfill; name it as INPUT of a run of its own: "
                f"alertbeam xmatch {text} --catalog DIR --output DIR"
            )
        found.add(place)
    if len(found) > 1:
        raise UsageError("the inputs belong to several runs; replay one after the other")
    return found.pop()
