"""``alertbeam classify``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alerts.sources import FILE_ENDINGS, InputError, find_sources, is_url
from classifier.inputs import InputRowsError
from classifier.model import Model, ModelError
from classifier.package import read_model
from pipelines.classify import ClassifyCounts, ClassifyJob, run
from pipelines.environment import Environment, read_environment
from pipelines.running import (
    EXIT_STATUS,
    add_run_options,
    run_job,
)
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, UsageError
from transforms.feature_reading import TABLE_ENDINGS, check_feature_table
from transforms.models import ModelPlace

STEP = "lc_classifier"
_EPILOG = (
    """\
examples:
  alertbeam classify features.parquet --model model/ --output probabilities.parquet
  alertbeam classify messages/ --model model/ --output messages.avro --database postgresql://user@host/name

FEATURES are tables (.parquet, .csv, .csv.gz) with a column oid, perhaps candid, and one per feature, or Avro messages
of ALeRCE's feature step: files, archives or folders of them. An object whose row or message lacks the name of a feature
that the model requires is not classified: it goes to the dead letters with the missing names. A value that is null or
NaN is no reason to: it counts as missing, as in the training. PPE and Period_fit are one feature.

output:
  FILE.parquet           one row per object: oid, candid, a probability per class, class, class_probability,
                         classifier_name, classifier_version, model_sha256
  FILE.avro              the messages of ALeRCE's classification step, many per file
  FILE.dead_letters/     what could not be classified, with the reason

environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; STEP_ID, STEP_NAME,
STEP_VERSION, STEP_COMMENTS fill table step; FEATURE_VERSION is noted in the Parquet file.

"""
    + EXIT_STATUS
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "classify",
        help="classify objects by their features",
        description="Classify objects by their light-curve features with a hierarchical random forest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", metavar="FEATURES", help="file, folder, glob or URL")
    parser.add_argument(
        "--model", required=True, metavar="DIR|POINTER", help="model, or file or URL that holds the path of one"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write, .parquet or .avro")
    parser.add_argument("--messages", metavar="FILE.avro", help="write the messages as well")
    parser.add_argument(
        "--database", metavar="URL", help="database for the tables, or 'none' (default: the variables DB_*, else none)"
    )
    parser.add_argument(
        "--follow-model",
        action="store_true",
        help="change to another model when the pointer does (default: keep the one that the run begins with)",
    )
    add_run_options(parser)
    parser.set_defaults(command=run_command, takes_beam_options=True)


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables, STEP)
    job = _job(options, environment)
    job, counts, seconds = run_job(job, run, options, beam_options, environment, ModelError, InputRowsError)
    if options.json:
        _print_json(job, counts, seconds)
    else:
        _print_summary(job, counts, seconds)
    return TOO_MANY_DEAD_LETTERS if counts.dead > options.max_dead_letters else DONE


def _job(options: argparse.Namespace, environment: Environment) -> ClassifyJob:
    """Check all that can be checked before anything is written."""
    table, messages = _outputs(options)
    try:
        sources = find_sources(_expanded(options.inputs))
        tables = [source.location for source in sources if source.location.endswith(TABLE_ENDINGS)]
        told = {path: check_feature_table(path) for path in tables}
        place, model = model_of(options.model, options.follow_model)
    except (InputError, ModelError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    job = ClassifyJob(
        sources=tuple(sources),
        place=place,
        model=model,
        table=table,
        messages=messages,
        feature_version=environment.feature_version,
    )
    _check_outputs(job, options.inputs)
    for path, features in told.items():
        if features.get("feature_mode", model.feature_mode) != model.feature_mode:
            _warn(f"{path} holds features of mode {features['feature_mode']}, but the model wants {model.feature_mode}")
    if environment.feature_version != "dev" and model.feature_version not in ("", environment.feature_version):
        _warn(f"FEATURE_VERSION is {environment.feature_version}, but the model was trained on {model.feature_version}")
    return job


def _warn(text: str) -> None:
    print(f"alertbeam classify: warning: {text}", file=sys.stderr)


def _outputs(options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    output = Path(options.output).expanduser().absolute()
    messages = Path(options.messages).expanduser().absolute() if options.messages else None
    if messages is not None and messages.suffix != ".avro":
        raise UsageError(f"--messages {options.messages}: name a file *.avro")
    if output.suffix == ".parquet":
        return output, messages
    if output.suffix != ".avro":
        raise UsageError(f"--output {options.output}: name a file *.parquet or *.avro")
    if messages is not None:
        raise UsageError("--output names a file for the messages already; leave --messages out")
    return None, output


def _check_outputs(job: ClassifyJob, inputs: Sequence[str]) -> None:
    walked = [Path(text).absolute() for text in inputs if os.path.isdir(text)]
    read = {Path(path).absolute() for source in job.sources for path in source.paths if not is_url(path)}
    for output in filter(None, (job.table, job.messages)):
        if output.is_dir():
            raise UsageError(f"{output} is a folder; name a file")
        folder = next(folder for folder in output.parents if folder.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{output} cannot be written: {folder} is no folder that this user may write to")
        if output in read or any(map(output.is_relative_to, walked)):
            raise UsageError(f"{output} lies among the inputs; name another output")
    if any(path.is_relative_to(job.dead_letters) for path in read):
        raise UsageError(
            f"the inputs are the dead letters of {job.output}, which would be replaced; name another output"
        )


def _expanded(inputs: Sequence[str]) -> list[str]:
    """Tables in folders by name, beside the folders that hold messages."""
    expanded: list[str] = []
    for text in inputs:
        if not os.path.isdir(text):
            expanded.append(text)
            continue
        files = [path for path in sorted(Path(text).rglob("*")) if path.is_file() and not _is_hidden(path, text)]
        tables = [str(path) for path in files if path.name.endswith(TABLE_ENDINGS)]
        expanded += tables
        if not tables or any(path.name.endswith((*FILE_ENDINGS, ".tar", ".tar.gz", ".tgz")) for path in files):
            expanded.append(text)
    return expanded


def _is_hidden(path: Path, folder: str) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def model_of(text: str, follow: bool = False) -> tuple[ModelPlace, Model]:
    """Model that ``--model`` names, and its place: followed, or kept to the model that is there now.

    Raises
    ------
    UsageError, ModelError
        If there is none.
    """
    is_pointer = is_url(text) or Path(text).is_file()
    if follow and not is_pointer:
        raise UsageError("--follow-model needs a pointer: let --model name a file or URL that holds a model's path")
    place = ModelPlace(pointer=text if is_url(text) else str(Path(text).absolute())) if is_pointer else ModelPlace(text)
    folder = place.resolve()
    model = read_model(folder)
    return (place if follow else ModelPlace(str(folder.absolute()), model.sha256)), model


def _print_json(job: ClassifyJob, counts: ClassifyCounts, seconds: float) -> None:
    model = {"classifier_name": job.model.name, "classifier_version": job.model.version, "sha256": job.model.sha256}
    print(
        json.dumps(
            {
                **asdict(counts),
                **model,
                "seconds": round(seconds, 3),
                "output": str(job.output),
                "messages": str(job.messages) if job.messages else None,
                "dead_letters_folder": str(job.dead_letters) if counts.dead else None,
            }
        )
    )


def _print_summary(job: ClassifyJob, counts: ClassifyCounts, seconds: float) -> None:
    table = Table(title="Done", show_header=False, title_justify="left", title_style="bold")
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("objects read", f"{counts.read:,}")
    table.add_row("  classified", f"{counts.classified:,}")
    table.add_row("  not classified, features missing", f"{counts.missing_features:,}")
    for name, number in sorted(counts.classes.items(), key=lambda entry: -entry[1]):
        table.add_row(f"  of class {name}", f"{number:,}")
    table.add_row("dead letters", f"{counts.dead:,}")
    for stage, number in counts.dead_letters.items():
        table.add_row(f"  given up at: {stage}", f"{number:,}")
    for name, number in counts.rows.items():
        table.add_row(f"rows inserted or updated in table {name}", f"{number:,}")
    for name, number in counts.models.items():
        table.add_row(f"newer models {name}", f"{number:,}")
    table.add_row("time", f"{seconds:,.1f} s")
    console = Console()
    console.print(table)
    files = ", ".join(str(path) for path in (job.table, job.messages) if path)
    letters = f"; dead letters in {job.dead_letters}" if counts.dead else ""
    console.print(f"{job.model.name} {job.model.version}: results in {files}{letters}", highlight=False, soft_wrap=True)
