"""``alertbeam model``: import, fetch, train and describe classifiers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from classifier.fetching import address_of, fetch_model
from classifier.importing import import_estimator, import_file, import_folder, read_feature_names
from classifier.model import Model, ModelError
from classifier.package import read_model, write_model
from pipelines.display import print_rows
from pipelines.usage import DONE, StoppedError, UsageError

_IMPORT_EPILOG = """\
INPUT is a folder with ALeRCE's published files (features_RF_model.pkl and the four levels, *_level_BRF_model.pkl or
*_level_RF_model.pkl), or one pickled forest, which becomes a flat model. Nothing that a pickle names is run: whatever
does not belong to a forest is refused. A joblib file can only be loaded by running it; say --trust if you made it.
"""
_TRAIN_EPILOG = """\
FEATURES (.parquet or .csv) has a column oid and one per feature; LABELS has a column oid and the classes in classALeRCE
or class. Labels are merged as ALeRCE does: Ceph is CEP; EA, EB, EB/EW are E; RSCVn is Periodic-Other; SNIIb, SNIIn are
SNII; TDE and ZZ are left out. The same seed gives the same model, byte for byte.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    model = commands.add_parser("model", help="import, fetch, train or describe a classifier")
    actions = model.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_import(actions)
    _add_fetch(actions)
    _add_train(actions)
    info = actions.add_parser("info", help="check and describe a model")
    info.add_argument("folder", metavar="DIR")
    info.add_argument("--json", action="store_true", help="print the description as one JSON object")
    info.set_defaults(command=run_info)


def _add_import(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "import",
        help="make a model of ALeRCE's published files or of a pickled forest",
        epilog=_IMPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="folder or file")
    _add_names(parser)
    parser.add_argument("--features", metavar="FILE", help="names of a single forest's features: .pkl, or text by line")
    parser.add_argument("--trust", action="store_true", help="load INPUT with joblib, which runs what it names")
    parser.set_defaults(command=run_import)


def _add_fetch(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser("fetch", help="download a published model and import it")
    parser.add_argument("model", metavar="URL|VERSION", help="address of the folder, or a version such as 1.1.0")
    _add_names(parser)
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="longest silence, seconds (default 30)"
    )
    parser.add_argument("--retries", type=int, default=4, metavar="N", help="attempts after a failure (default 4)")
    parser.add_argument("--max-megabytes", type=float, default=2000, metavar="MB", help="of a file (default 2000)")
    parser.set_defaults(command=run_fetch)


def _add_train(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "train",
        help="train a hierarchical forest",
        epilog=_TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("features", metavar="FEATURES")
    parser.add_argument("labels", metavar="LABELS")
    _add_names(parser)
    parser.add_argument("--trees", type=int, default=500, metavar="N", help="of each forest (default 500)")
    parser.add_argument("--test-fraction", type=float, default=0.15, metavar="X", help="held out (default 0.15)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="cores (default: all)")
    parser.add_argument("--hierarchy", metavar="FILE", help='JSON {"branch": ["class", ...]} (default: ALeRCE\'s)')
    parser.add_argument("--feature-mode", choices=("alerce", "accurate"), help="default: what FEATURES says, or alerce")
    parser.add_argument("--licence", default="", metavar="TEXT", help="note on the use of the model")
    parser.set_defaults(command=run_train)


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--name", default="lc_classifier", help="classifier_name in the tables (default lc_classifier)")
    parser.add_argument("--version", help="classifier_version in the tables (default: from the input)")


def run_import(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Import a model."""
    path = Path(options.input)
    try:
        features = _names_of_features(options.features)
        if options.trust:
            model = import_estimator(_load_trusted(path), features, options.name, options.version or path.stem)
        elif path.is_dir():
            model = import_folder(path, options.name, options.version)
        else:
            model = import_file(path, features, options.name, options.version)
        return _written(write_model(model, options.output), options.output)
    except ModelError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error


def run_fetch(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Download and import a model."""
    address = address_of(options.model)
    version = options.version or address.rstrip("/").rpartition("/")[2]
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="alertbeam-model-") as folder,
        Progress("{task.description}", DownloadColumn(), console=console, disable=not sys.stderr.isatty()) as bar,
    ):
        task = bar.add_task("model", total=None)
        try:
            fetch_model(
                address,
                folder,
                timeout_s=options.timeout,
                retries=options.retries,
                max_file_bytes=int(options.max_megabytes * 1e6),
                progress=lambda name, size: bar.update(task, description=name, advance=size),
            )
        except (ModelError, OSError) as error:
            raise StoppedError(str(error)) from error
        try:
            model = import_folder(folder, options.name, version)
            return _written(write_model(model, options.output), options.output)
        except ModelError as error:
            raise UsageError(str(error)) from error


def run_train(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Train a model and write it with its card."""
    # Training brings scikit-learn and matplotlib, which the other actions need not wait for.
    from classifier.card import card_files
    from classifier.training import HIERARCHY, Settings, train_model

    try:
        features, mode, version = _read_features(Path(options.features))
        labels = _read_labels(Path(options.labels))
        settings = Settings(
            trees=_positive(options.trees, "--trees"),
            test_fraction=options.test_fraction,
            seed=options.seed,
            jobs=options.jobs,
            hierarchy=dict(HIERARCHY) if options.hierarchy is None else _read_hierarchy(options.hierarchy),
        )
        if not 0 < options.test_fraction < 1:
            raise ModelError("--test-fraction must lie between 0 and 1")
        model, scores = train_model(
            features,
            labels,
            settings,
            name=options.name,
            version=options.version or "dev",
            feature_mode=options.feature_mode or mode,
            feature_version=version,
            licence=options.licence,
            provenance={"features": Path(options.features).name, "labels": Path(options.labels).name},
            progress=lambda branch: print(f"training the forest {branch} ...", file=sys.stderr, flush=True),
        )
        described = f"Trained on the {sum(scores.counts.values()):,} objects of {options.features} that have a label."
        written = write_model(model, options.output, card_files(model, scores, described))
    except ModelError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error
    print(
        f"held-out objects: accuracy {scores.accuracy:.3f}, balanced {scores.balanced_accuracy:.3f}, "
        f"top level {scores.top_accuracy:.3f}; see {Path(options.output) / 'model_card.md'}"
    )
    return _written(written, options.output)


def run_info(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Describe a model."""
    try:
        model = read_model(options.folder)
    except ModelError as error:
        raise UsageError(str(error)) from error
    described: dict[str, Any] = {
        "name": model.name,
        "version": model.version,
        "sha256": model.sha256,
        "classes": list(model.leaves),
        "required_features": list(model.features),
        "feature_mode": model.feature_mode,
        "feature_version": model.feature_version,
        "licence": model.licence,
        "provenance": dict(model.provenance),
    }
    if options.json:
        print(json.dumps(described))
        return DONE
    print(f"{model.name} {model.version}: {len(model.leaves)} classes, {len(model.features)} features, sha256 ok")
    rows = [(b.name, b.forest.trees, len(b.forest.nodes), ", ".join(b.classes)) for b in model.root.branches()]
    print_rows(("forest", "trees", "nodes", "classes"), rows)
    for name in ("feature_mode", "feature_version", "licence"):
        print(f"{name.replace('_', ' ')}: {described[name] or 'not recorded'}")
    return DONE


def _written(model: Model, folder: str) -> int:
    print(f"{folder}: {model.name} {model.version}, {len(model.leaves)} classes, {len(model.features)} features")
    return DONE


def _load_trusted(path: Path) -> Any:
    import joblib

    try:
        return joblib.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error


def _names_of_features(file: str | None) -> Sequence[str] | None:
    if file is None:
        return None
    if file.endswith((".pkl", ".pickle")):
        return read_feature_names(file)
    return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be read as a table: {error}") from error
    if table.index.name in ("oid", "objectId"):
        table = table.reset_index()
    table = table.rename(columns={"objectId": "oid"})
    if "oid" not in table:
        raise ModelError(f"{path} has no column oid")
    return table.set_index(table["oid"].astype(str)).drop(columns="oid")


def _read_features(path: Path) -> tuple[pd.DataFrame, str, str]:
    """Features, and the mode and version that they were computed with, if the table tells."""
    table = _read_table(path)
    told = (pq.read_schema(path).metadata or {}) if path.suffix == ".parquet" else {}
    mode = told.get(b"feature_mode", b"alerce").decode()
    return table.drop(columns="candid", errors="ignore"), mode, told.get(b"feature_version", b"").decode()


def _read_labels(path: Path) -> pd.Series:
    table = _read_table(path)
    for name in ("classALeRCE", "class", "label"):
        if name in table:
            return table[name]
    raise ModelError(f"{path} has no column classALeRCE, class or label")


def _read_hierarchy(file: str) -> Mapping[str, tuple[str, ...]]:
    try:
        read = json.loads(Path(file).read_text(encoding="utf-8"))
        return {str(branch): tuple(map(str, classes)) for branch, classes in read.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{file} must hold a JSON object of lists of classes by branch: {error}") from error


def _positive(number: int, option: str) -> int:
    if number < 1:
        raise ModelError(f"{option} must be at least 1")
    return number
