"""The command line ``alertbeam``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from database.settings import DatabaseSettingsError
from pipelines import __version__, other_commands, xmatch_command
from pipelines.environment import read_environment
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
    top = parser()
    options, rest = top.parse_known_args(argv)
    if rest and not getattr(options, "takes_beam_options", False):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        environment = read_environment(os.environ)
        return options.command(options, rest, environment)
    except (UsageError, DatabaseSettingsError) as error:
        print(f"alertbeam {options.command_name}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except StoppedError as error:
        print(f"alertbeam {options.command_name}: stopped: {error}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("\nalertbeam: interrupted; start the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
