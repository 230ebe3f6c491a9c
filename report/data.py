"""Everything that the page shows, collected from the folder of a run; nothing there is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from report.classes import ClassInfo, class_infos
from report.crossmatches import Crossmatches, count_rows, part_files, read_crossmatches
from report.letters import Letters, letter_files, read_letters
from report.light_curves import compact_light_curves
from report.objects import Objects, Tables, read_objects
from report.random_matches import RandomLevel, random_levels
from report.summary import Summary, summarise
from run_folder.access import Run, RunError
from run_folder.ledger import FILE_NAME, Ledger, LedgerError
from run_folder.moments import mjd_of

Key = TypeVar("Key")
#: Told what is read, how much of it is done, and how much there is.
Watcher = Callable[[str, int, int], None]

# What keeps the page below three megabytes.
MOST_POINTS: Final = 60_000
MOST_LETTERS: Final = 200_000
_MOST_LIGHT_CURVES: Final = 1_000


@dataclass(frozen=True)
class Choice:
    """Which of several tables the page shows.

    Attributes
    ----------
    model : (str, str), optional
        Name and version of the classifier; the newest by default.
    feature_version : str, optional
        The newest by default.
    gallery : int
        Light curves shown of each class.
    """

    model: tuple[str, str] | None = None
    feature_version: str | None = None
    gallery: int = 6


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the page shows.

    Attributes
    ----------
    root : Path
        Folder of the run.
    as_of : str or None
    summary : Summary or None
        None without a ledger.
    crossmatches : Crossmatches or None
    random : dict of str to RandomLevel
        By catalogue.
    objects : Objects or None
    classes : tuple of ClassInfo
        Branch by branch.
    galleries : dict of str to tuple of str
        Names of the most confident objects of each class.
    light_curves : dict of str to dict
        See :func:`report.light_curves.compact`.
    light_curve_problem : str
        Why there are none; empty if there are.
    letters : Letters or None
    feature_version, model
        Of the tables shown; None without.
    other_versions, other_models : tuple of str
        What else the run has.
    """

    root: Path
    as_of: str | None
    summary: Summary | None
    crossmatches: Crossmatches | None
    random: dict[str, RandomLevel]
    objects: Objects | None
    classes: tuple[ClassInfo, ...]
    galleries: dict[str, tuple[str, ...]]
    light_curves: dict[str, dict[str, Any]]
    light_curve_problem: str
    letters: Letters | None
    feature_version: str | None
    model: tuple[str, str] | None
    other_versions: tuple[str, ...]
    other_models: tuple[str, ...]


def collect(run: Run, choice: Choice, watch: Watcher = lambda what, done, total: None) -> ReportData:
    """Collect what the page shows.

    Parameters
    ----------
    run : Run
        Of :func:`run_folder.open_run`, with its date.
    choice : Choice
    watch : callable
        Told of the progress.

    Raises
    ------
    RunError
        If the run has no such model, feature version or date, or its ledger is damaged.
    """
    layout, results = run.layout, run.layout.results(run.as_of)
    as_of_mjd = mjd_of(run.as_of) if run.as_of is not None else None
    if run.as_of is not None and not results.root.is_dir():
        raise RunError(
            f"{layout.root} has no results as of {run.as_of}: "
            f"'alertbeam backfill --only pass2 --as-of {run.as_of} --output {layout.root}' makes them"
        )
    summary = _summary(layout.ledger)
    settings: Mapping[str, Any] = summary.settings if summary else {}
    versions = sorted(folder.name.partition("=")[2] for folder in results.all_features.glob("version=*"))
    version = _chosen("features of version", choice.feature_version, versions, settings.get("feature_version"))
    models = sorted(
        (folder.parent.name.partition("=")[2], folder.name.partition("=")[2])
        for folder in results.all_probabilities.glob("classifier=*/version=*")
    )
    named = settings.get("model") or {}
    of_run = (str(named.get("name")), str(named.get("version")))
    model = _chosen("probabilities of model", choice.model, models, of_run)
    tables = Tables(
        objects=results.objects if results.objects.is_dir() else None,
        features=results.features(version) if version is not None else None,
        probabilities=results.probabilities(*model) if model is not None else None,
    )
    objects = read_objects(tables, _counting(watch, "objects", len(tables.buckets())))
    classes = class_infos(objects.leaves, settings if model == of_run else {}) if objects else ()
    galleries = _galleries(objects, classes, choice.gallery)
    names = objects.shown["oid"].to_pylist() if objects else []
    first = [oid for oids in galleries.values() for oid in oids]
    wanted = [*dict.fromkeys([*first, *names])][: max(len(first), _MOST_LIGHT_CURVES)]
    light_curves, problem = _light_curves(layout.light_curves, wanted, as_of_mjd, watch)
    crossmatches = None
    if part_files(layout.crossmatches):
        crossmatches = read_crossmatches(
            layout.crossmatches,
            _radius(settings, layout.crossmatches),
            pa.array(names, pa.string()),
            as_of_mjd,
            _counting(watch, "crossmatches", count_rows(layout.crossmatches)),
        )
    letters = None
    if layout.dead_letters.is_dir():
        files = len(letter_files(layout.dead_letters))
        letters = read_letters(layout.dead_letters, MOST_LETTERS, _counting(watch, "dead letters", files))
    return ReportData(
        root=layout.root,
        as_of=run.as_of,
        summary=summary,
        crossmatches=crossmatches,
        random=random_levels(crossmatches, settings) if crossmatches else {},
        objects=objects,
        classes=classes,
        galleries=galleries,
        light_curves=light_curves,
        light_curve_problem=problem,
        letters=letters,
        feature_version=version,
        model=model,
        other_versions=tuple(other for other in versions if other != version),
        other_models=tuple(" ".join(other) for other in models if other != model),
    )


def _summary(folder: Path) -> Summary | None:
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        with Ledger.read_only(folder) as ledger:
            return summarise(ledger.settings(), ledger.units(), ledger.samples(), ledger.invocations())
    except LedgerError as error:
        raise RunError(str(error)) from error


def _chosen(what: str, wanted: Key | None, there: Sequence[Key], of_run: Key) -> Key | None:
    """Table that was asked for, else the run's own, else the last by name."""
    if wanted is not None and wanted not in there:
        names = ", ".join("/".join(one) if isinstance(one, tuple) else str(one) for one in there) or "none"
        asked = "/".join(wanted) if isinstance(wanted, tuple) else wanted
        raise RunError(f"the run has no {what} {asked}; there are: {names}")
    if wanted is not None:
        return wanted
    return of_run if of_run in there else there[-1] if there else None


def _galleries(objects: Objects | None, classes: Sequence[ClassInfo], most: int) -> dict[str, tuple[str, ...]]:
    """Names of the most confident objects of each class that has any."""
    if objects is None or not most:
        return {}
    found = {}
    for info in classes:
        rows = objects.shown.filter(pc.equal(objects.shown["class"], info.name))
        if len(rows):
            found[info.name] = tuple(rows["oid"].slice(0, most).to_pylist())
    return found


def _light_curves(
    store: Path, oids: Sequence[str], as_of_mjd: float | None, watch: Watcher
) -> tuple[dict[str, dict[str, Any]], str]:
    if not oids:
        return {}, "no objects are known"
    if not store.is_dir():
        return {}, "the run keeps no light curves"
    try:
        advance = _counting(watch, "light curves", len(oids))
        return compact_light_curves(store, oids, MOST_POINTS, as_of_mjd, advance), ""
    except (OSError, ValueError) as error:
        return {}, f"the light curves cannot be read: {error}"


def _radius(settings: Mapping[str, Any], crossmatches: Path) -> float:
    """Radius of the matches in arcsec; without a ledger, the next half above the largest separation."""
    if settings.get("radius_arcsec"):
        return float(settings["radius_arcsec"])
    largest = 0.0
    for file in part_files(crossmatches):
        metadata = pq.read_metadata(file)
        column = metadata.schema.to_arrow_schema().get_field_index("angDist")
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                largest = max(largest, float(statistics.max))
    return math.ceil(2 * largest) / 2 or 1.0


def _counting(watch: Watcher, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        watch(what, done, total)

    watch(what, 0, total)
    return advance
