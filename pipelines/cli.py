"""The command line ``alertbeam``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipelines import __version__, other_commands, xmatch_command
from pipelines.usage import STOPPED, WRONG_USAGE, StoppedError, UsageError


def parser() -> argparse.ArgumentParser:
    """Parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="alertbeam",
        description="Reprocess the alert archive of the Zwicky Transient Facility: crossmatch, enrich, store.",
        epilog="'alertbeam COMMAND --help' explains a command.",
    )
    top.add_argument("--version", action="version", version=f"alertbeam {__version__}")
    commands = top.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    xmatch_command.add_parser(commands)
    other_commands.add_parsers(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    # What a transform raises is told once, below.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    top = parser()
    options, rest = top.parse_known_args(argv)
    if rest and not getattr(options, "takes_beam_options", False):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    signals: list[int] = []
    try:
        with _ended_by_signals(signals):
            return options.command(options, rest, os.environ)
    except UsageError as error:
        print(f"alertbeam {options.command_name}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except StoppedError as error:
        print(f"alertbeam {options.command_name}: stopped: {error}", file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt):
        if signals:
            print("\nalertbeam: interrupted; start the same command again to go on", file=sys.stderr)
            return 128 + signals[0]
        # Python's own status for this is 1, which says that the work was done.
        traceback.print_exc()
        print(f"alertbeam {options.command_name}: stopped by the error above, which should not be", file=sys.stderr)
        return STOPPED


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
