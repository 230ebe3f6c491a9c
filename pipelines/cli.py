"""The command line ``alertbeam``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pipelines import __version__
from pipelines.usage import STOPPED, WRONG_USAGE, StoppedError, UsageError

# Module of each command, imported when it is needed: all of them together take seconds.
_COMMANDS: Final = {
    "backfill": "backfill_command",
    "stream": "stream_command",
    "status": "status_command",
    "report": "report_command",
    "replay": "replay_command",
    "xmatch": "xmatch_command",
    "features": "features_command",
    "classify": "classify_command",
    "show": "show_command",
    "broker": "broker_command",
    "play": "play_command",
    "worker-pool": "worker_pool_command",
    "model": "model_commands",
    "catalog": "catalog_commands",
    "sample": "other_commands",
    "sql": "other_commands",
}


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Parser of the whole command line, or of one command only."""
    top = argparse.ArgumentParser(
        prog="alertbeam",
        description="Reprocess the alert archive of the Zwicky Transient Facility and follow its stream: crossmatch, "
        "features, classes.",
        epilog="'alertbeam COMMAND --help' explains a command.",
    )
    top.add_argument("--version", action="version", version=f"alertbeam {__version__}")
    commands = top.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    for module in dict.fromkeys([_COMMANDS[command]] if command else _COMMANDS.values()):
        importlib.import_module(f"pipelines.{module}").add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    # What a transform raises is told once, below.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    words = sys.argv[1:] if argv is None else list(argv)
    top = parser(words[0] if words and words[0] in _COMMANDS else None)
    options, rest = top.parse_known_args(words)
    if rest and not getattr(options, "takes_beam_options", False):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    signals: list[int] = []
    try:
        with _ended_by_signals(signals):
            status = options.command(options, rest, os.environ)
    except UsageError as error:
        print(f"alertbeam {options.command_name}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except StoppedError as error:
        print(f"alertbeam {options.command_name}: stopped: {error}", file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt):
        if signals:
            return _interrupted(signals[0])
        # Python's own status for this is 1, which says that the work was done.
        traceback.print_exc()
        print(f"alertbeam {options.command_name}: stopped by the error above, which should not be", file=sys.stderr)
        return STOPPED
    # An interrupt that is raised inside of a finalizer is swallowed there.
    return _interrupted(signals[0]) if signals else status


def _interrupted(number: int) -> int:
    print("\nalertbeam: interrupted; start the same command again to go on", file=sys.stderr)
    return 128 + number


@contextmanager
def _ended_by_signals(received: list[int]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the block like an error, so that the embedded server is stopped; note which came.

    Beam gives what is raised in a transform another type.
    """

    def end(number: int, _: object) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
