"""Reading a run in a notebook: its tables, its light curves, its summary.

Nothing is read before it is asked for, and of large tables only the columns and parts that are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from html import escape
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from run_folder.formats import Format, in_format
from run_folder.layout import RunLayout
from run_folder.moments import mjd_of, name_of

if TYPE_CHECKING:
    from lightcurves.batch import LightCurveBatch
    from lightcurves.store import StoreRows
    from run_folder.ledger import Ledger
    from run_folder.object_light_curve import ObjectLightCurve

Answer = TypeVar("Answer")
Names = str | Iterable[str]

_JD_MINUS_MJD: Final = 2400000.5
_MATCHED: Final = "matched"
_READ: Final = "read"
# Columns of crossmatches that an alert has already.
_OF_ALERT: Final = ("candid", "oid", "jd", "ra", "dec", "fid", "magpsf", "source", "member", "catalog")
_NAMES_COMPARED: Final = 1000
_SHORTEST_BEGINNING: Final = 5


class RunError(ValueError):
    """A folder is no run, or lacks what is asked for; the message says what to do."""


class NotThereError(RunError):
    """There is no run, or what was asked for is not in it yet; the message says which command makes it."""


class UnknownObjectError(KeyError):
    """A run knows no object of that name; the message has names like it."""

    def __str__(self) -> str:
        return str(self.args[0])


def open_run(folder: str | Path, as_of: str | float | None = None) -> Run:
    """Open the folder of a run for reading.

    Parameters
    ----------
    folder : path
        That ``alertbeam backfill`` wrote, or ``alertbeam xmatch``, with the files of ``alertbeam features`` and
        ``alertbeam classify`` in it if there are any.
    as_of : str or float, optional
        See what was known then: a date such as ``2020-04-01`` (its beginning, UTC), or an MJD.

    Raises
    ------
    RunError
        If the folder is no run, or the date cannot be understood.

    Examples
    --------
    >>> from run_folder import open_run
    >>> run = open_run("run/")
    >>> run.light_curve("ZTF18aazxcwf").plot()
    >>> run.features().join(run.probabilities()["class"])
    """
    run = Run(folder, as_of)
    layout = run.layout
    if not layout.root.exists():
        raise NotThereError(f"there is no folder {folder}")
    if not layout.root.is_dir():
        raise RunError(f"{folder} is a file; give the folder of a run")
    parts = (layout.alerts, layout.dead_letters, layout.crossmatches, layout.light_curves, layout.ledger)
    if not (any(part.exists() for part in parts) or run.feature_versions or run.classifiers):
        names = ", ".join(part.name for part in parts)
        raise NotThereError(
            f"{folder} is not the folder of a run: it has none of {names}; "
            f"'alertbeam backfill INPUT --output FOLDER' makes one"
        )
    return run


class Run:
    """A run, made by :func:`open_run`.

    Tables come as pandas data frames, or with ``format="astropy"`` as astropy tables with units, or with
    ``format="arrow"`` as pyarrow tables. `oids` is one name or several; objects that a table does not have are not in
    the answer.

    Attributes
    ----------
    folder : str
        As it was named.
    layout : RunLayout
        Where the files are.
    as_of : str, optional
        What was known then is seen.
    """

    def __init__(self, folder: str | Path, as_of: str | float | None = None) -> None:
        self.folder = str(folder)
        self.layout = RunLayout(Path(folder).expanduser().absolute())
        try:
            self.as_of = None if as_of is None else name_of(as_of)
            self._as_of_mjd = None if as_of is None else mjd_of(as_of)
        except ValueError as error:
            raise RunError(str(error)) from error
        self._results = self.layout.results(self.as_of)

    # -- tables ----------------------------------------------------------------------------------------------------

    def alerts(
        self,
        columns: Sequence[str] | None = None,
        *,
        oids: Names | None = None,
        limit: int | None = None,
        format: Format = "pandas",
    ) -> Any:
        """Enriched alerts, a row for each, in the order of the files.

        Columns are ``objectId``, ``candid``, the fields of ``candidate`` by their names in the packets, and for every
        catalogue ``<catalog>_status``, ``<catalog>_angDist`` (arcsec) and ``<catalog>_<column>``.

        Parameters
        ----------
        columns : sequence of str, optional
            Those wanted; ``objectId`` and ``candid`` are always given.
        oids : str or iterable of str, optional
        limit : int, optional
            Alerts at most.
        format : {"pandas", "astropy", "arrow"}

        Raises
        ------
        RunError
            If the run has no alerts, no such column, or a damaged file.
        """
        from run_folder.alert_rows import DamagedAlertsError, alert_files, alert_rows

        if not self.layout.alerts.is_dir():
            raise self._lack("enriched alerts", "alertbeam backfill' or 'alertbeam xmatch")
        columns, names = _listed(columns, ["objectId", "candid"]), _names(oids)
        files = alert_files(self.layout.alerts, self._units_without(names) if names is not None else ())
        until = None if self._as_of_mjd is None else self._as_of_mjd + _JD_MINUS_MJD
        try:
            table = alert_rows(files, columns, names, limit, until)
        except DamagedAlertsError as error:
            raise RunError(f"a file of alerts is damaged; run the command again to write it anew ({error})") from error
        table = self._with_crossmatches(table, columns)
        if columns is not None and files:
            if not {*columns} <= {*table.column_names}:
                _check_columns(columns, Run(self.folder).alerts(limit=1, format="arrow").column_names)
            table = table.select(columns)
        return in_format(table, format)

    def crossmatches(
        self,
        catalog: str | None = None,
        status: str | None = _MATCHED,
        *,
        oids: Names | None = None,
        columns: Sequence[str] | None = None,
        format: Format = "pandas",
    ) -> Any:
        """Counterparts, a row for each alert and catalogue.

        Parameters
        ----------
        catalog : str, optional
            All if it is not given.
        status : {"matched", "no match"}, optional
            Both for None.
        oids : str or iterable of str, optional
        columns : sequence of str, optional
            Of ``candid``, ``oid``, ``jd``, ``ra``, ``dec``, ``catalog``, ``status``, ``angDist`` (arcsec), and the
            catalogue's by their names at CDS.
        format : {"pandas", "astropy", "arrow"}

        Raises
        ------
        RunError
            If the run has no crossmatches, no such catalogue or no such column.
        """
        table = self._crossmatches(_listed(columns), {"catalog": catalog, "status": status, "oid": _names(oids)})
        if not len(table) and catalog is not None and catalog not in self.catalogs:
            raise RunError(f"there is no catalogue {catalog!r} in this run; there is {', '.join(self.catalogs)}")
        return in_format(table, format)

    def objects(
        self, *, oids: Names | None = None, columns: Sequence[str] | None = None, format: Format = "pandas"
    ) -> Any:
        """Statistics of the objects by name: mean position, times, number of detections, colours.

        Raises
        ------
        RunError
            If the run has none, or no such column.
        """
        paths = _buckets(self._results.objects)
        if not paths:
            raise self._lack_results("table of objects", "alertbeam backfill")
        return in_format(self._of_objects(paths, oids, columns), format, "oid")

    def features(
        self,
        version: str | None = None,
        *,
        oids: Names | None = None,
        columns: Sequence[str] | None = None,
        format: Format = "pandas",
    ) -> Any:
        """Features of the objects by name.

        Parameters
        ----------
        version : str, optional
            One of :attr:`feature_versions`; the last of them if it is not given.
        oids : str or iterable of str, optional
        columns : sequence of str, optional
            Features wanted.
        format : {"pandas", "astropy", "arrow"}

        Raises
        ------
        RunError
            If the run has none, no such version or no such column.
        """
        tables = self._feature_tables()
        if not tables:
            raise self._lack_results("features", "alertbeam backfill' or 'alertbeam features")
        if version is not None and version not in tables:
            raise RunError(f"there are no features of version {version!r}; there are {', '.join(tables)}")
        paths = tables[version if version is not None else list(tables)[-1]]
        return in_format(self._of_objects(paths, oids, columns), format, "oid")

    def probabilities(
        self,
        classifier: str | None = None,
        version: str | None = None,
        *,
        oids: Names | None = None,
        columns: Sequence[str] | None = None,
        format: Format = "pandas",
    ) -> Any:
        """Probability of each class, the most probable ``class`` and its ``class_probability``, of the objects by name.

        Parameters
        ----------
        classifier, version : str, optional
            One of :attr:`classifiers`; the last of those that agree with what is given.
        oids : str or iterable of str, optional
        columns : sequence of str, optional
        format : {"pandas", "astropy", "arrow"}

        Raises
        ------
        RunError
            If the run has none, no such classifier or no such column.
        """
        tables = self._probability_tables()
        if not tables:
            raise self._lack_results("probabilities", "alertbeam backfill --model MODEL' or 'alertbeam classify")
        chosen = [
            paths
            for (name, number), paths in tables.items()
            if classifier in (None, name) and version in (None, number)
        ]
        if not chosen:
            wanted = " ".join(filter(None, (classifier, version)))
            raise RunError(f"there is no classifier {wanted!r}; there is {', '.join(map(' '.join, tables))}")
        return in_format(self._of_objects(chosen[-1], oids, columns), format, "oid")

    # -- light curves ----------------------------------------------------------------------------------------------

    def light_curve(self, oid: str) -> ObjectLightCurve:
        """Light curve of an object.

        Raises
        ------
        UnknownObjectError
            A KeyError, with names that are like it.
        RunError
            If the run keeps no light curves.
        """
        from run_folder.object_light_curve import ObjectLightCurve

        return ObjectLightCurve.of(self.light_curve_batch(oid))

    def light_curve_batch(self, oid: str) -> LightCurveBatch:
        """Light curve of an object as the pipelines have it, alone in a batch; raises as :meth:`light_curve`."""
        from lightcurves.assembly import assemble

        rows = self.stored_rows(oid)
        crossmatches = rows.crossmatches if len(rows.crossmatches) else None
        batch = assemble(rows.detections, rows.non_detections, as_of_mjd=self._as_of_mjd, crossmatches=crossmatches)
        if not len(batch):
            like = self.names_like(oid)
            told = f"; names like it: {', '.join(like)}" if like else ""
            raise UnknownObjectError(f"there is no {oid} in {self.folder}{self._then}{told}")
        return batch

    def stored_rows(self, oid: str) -> StoreRows:
        """Rows of the light-curve store of an object, as its alerts brought them; none if it is not known.

        Raises
        ------
        RunError
            If the run keeps no light curves.
        """
        if not self.layout.light_curves.is_dir():
            raise self._lack("light curves", "alertbeam backfill")
        from lightcurves.store import LightCurveStore

        return LightCurveStore.open(self.layout.light_curves).rows_of(oid)

    def names_like(self, oid: str) -> list[str]:
        """Names of objects of the run that begin like a name and are most like it, three at most."""
        paths = _buckets(self._results.objects)
        if not paths:
            return []
        beginning = oid[:_SHORTEST_BEGINNING]
        found = _read(paths, ["oid"], [pc.starts_with(pc.field("oid"), beginning)])["oid"].combine_chunks()
        for length in range(_SHORTEST_BEGINNING + 1, len(oid)):
            nearer = found.filter(pc.starts_with(found, oid[:length]))
            if not len(nearer):
                break
            found = nearer
        return difflib.get_close_matches(oid, sorted(found.to_pylist())[:_NAMES_COMPARED], n=3, cutoff=0.5)

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run as its ledger tells them; empty without a ledger."""
        return self._of_ledger(lambda ledger: ledger.settings()) or {}

    @property
    def status(self) -> dict[str, dict[str, Any]]:
        """State of the run by stage: ``units``, how many of them are in each state, and ``counts``, what they counted.

        Raises
        ------
        RunError
            If the run has no ledger.
        """

        def told(ledger: Ledger) -> dict[str, dict[str, Any]]:
            return {
                stage: {"units": states, "counts": ledger.counts(stage)} for stage, states in ledger.states().items()
            }

        found = self._of_ledger(told)
        if found is None:
            raise self._lack("ledger", "alertbeam backfill")
        return found

    @property
    def catalogs(self) -> list[str]:
        """Names of the catalogues that the alerts were compared with."""
        named = [catalog["name"] for catalog in self.settings.get("catalogs", ())]
        if named or not self._crossmatch_files():
            return named
        return sorted(pc.unique(self._crossmatches(["catalog"], {})["catalog"]).to_pylist())

    @property
    def feature_versions(self) -> list[str]:
        """Versions of features that there are, the one that was computed last at the end."""
        return list(self._feature_tables())

    @property
    def classifiers(self) -> list[tuple[str, str]]:
        """Name and version of the classifiers that there are probabilities of, the last one at the end."""
        return list(self._probability_tables())

    def __repr__(self) -> str:
        rows = self._summary()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in self._summary()
        )
        return f"<table>{rows}</table>"

    def _summary(self) -> list[tuple[str, str]]:
        settings, layout = self.settings, self.layout
        rows = [("run", f"{self.folder}{self._then}")]
        if settings:
            rows.append(("made by", f"alertbeam {settings.get('alertbeam', '')}, {settings.get('created', '')}"))
        counted = self._of_ledger(lambda ledger: ledger.counts(_READ)) or {}
        written = f"{counted['written']:,} in " if "written" in counted else ""
        rows.append(("alerts", _files(layout.alerts, "*.avro", written)))
        rows.append(("dead letters", _files(layout.dead_letters, "*.avro")))
        found = self._crossmatch_files()
        with_what = f" with {', '.join(self.catalogs)}" if found else ""
        rows.append(("crossmatches", f"{_rows(found):,} rows{with_what}" if found else "none"))
        rows.append(("light curves", _files(layout.light_curves, "**/*.*")))
        objects = _buckets(self._results.objects)
        rows.append(("objects", f"{_rows(objects):,}" if objects else "none"))
        features = [f"{_rows(paths):,} of version {version}" for version, paths in self._feature_tables().items()]
        rows.append(("features", "; ".join(features) or "none"))
        classes = [f"{_rows(paths):,} by {' '.join(name)}" for name, paths in self._probability_tables().items()]
        rows.append(("probabilities", "; ".join(classes) or "none"))
        return rows

    # -- within ----------------------------------------------------------------------------------------------------

    @property
    def _then(self) -> str:
        return f" as of {self.as_of}" if self.as_of else ""

    def _lack(self, what: str, command: str) -> NotThereError:
        return NotThereError(f"{self.folder} has no {what}: run '{command}'")

    def _lack_results(self, what: str, command: str) -> NotThereError:
        if self.as_of is None:
            return self._lack(what, command)
        return self._lack(f"{what}{self._then}", f"alertbeam backfill --only pass2 --as-of {self.as_of}")

    def _of_ledger(self, ask: Callable[[Ledger], Answer]) -> Answer | None:
        """Answer of the ledger; None if there is none."""
        from run_folder.ledger import FILE_NAME, Ledger, LedgerError

        if not (self.layout.ledger / FILE_NAME).is_file():
            return None
        try:
            with Ledger.read_only(self.layout.ledger) as ledger:
                return ask(ledger)
        except LedgerError as error:
            raise RunError(str(error)) from error

    def _crossmatch_files(self) -> list[Path]:
        place = self.layout.crossmatches
        if place.is_dir():
            return sorted(path for path in place.glob("*.parquet") if not path.name.startswith("."))
        return [place] if place.exists() else []

    def _crossmatches(self, columns: list[str] | None, wanted: Mapping[str, Any]) -> pa.Table:
        """Rows of all parts; `wanted` names a value, or an Arrow array of values, of some columns."""
        files = self._crossmatch_files()
        if not files:
            raise self._lack("crossmatches", "alertbeam backfill --catalog CATALOG' or 'alertbeam xmatch")
        conditions = [
            pc.field(name).isin(value) if isinstance(value, pa.Array) else pc.field(name) == value
            for name, value in wanted.items()
            if value is not None
        ]
        if self._as_of_mjd is not None:
            conditions.append(pc.field("jd") <= self._as_of_mjd + _JD_MINUS_MJD)
        return _read(files, columns, conditions)

    def _units_without(self, oids: pa.Array) -> set[str]:
        """Units of work of which it is known that they have no alert of some objects."""
        if not self.layout.crossmatches.is_dir() or not self._crossmatch_files():
            return set()
        paths = [str(path) for path in self._crossmatch_files()]
        found = ds.dataset(paths).to_table(columns=["__filename"], filter=pc.field("oid").isin(oids))
        return {Path(path).stem for path in paths} - {
            Path(path).stem for path in pc.unique(found["__filename"]).to_pylist()
        }

    def _with_crossmatches(self, alerts: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        """Alerts with the columns of their counterparts; columns that a catalogue does not have are left out."""
        if not self._crossmatch_files():
            return alerts
        matches = self._crossmatches(None, {"candid": pc.unique(alerts["candid"])})
        catalogs = self.catalogs
        for catalog in catalogs:
            own = matches.filter(pc.equal(matches["catalog"], catalog))
            row = pc.index_in(alerts["candid"], value_set=own["candid"].combine_chunks())
            for name in matches.column_names:
                new_name = name if name.startswith(f"{catalog}_") else f"{catalog}_{name}"
                asked = columns is not None and new_name in columns
                # Of several catalogues, each has columns of its own and nulls in those of the others.
                empty = len(catalogs) > 1 and own[name].null_count == len(own)
                if name not in _OF_ALERT and (asked or (columns is None and not empty)):
                    alerts = alerts.append_column(new_name, own[name].take(row))
        return alerts

    def _feature_tables(self) -> dict[str, list[Path]]:
        """Files of each version, the newest version last."""
        found = {
            folder.name.partition("=")[2]: _buckets(folder) for folder in self._results.all_features.glob("version=*")
        }
        for path in self._loose("features"):
            metadata = _schema(path).metadata or {}
            found.setdefault(metadata.get(b"feature_version", path.stem.encode()).decode(), []).append(path)
        return _newest_last(found, self.settings.get("feature_version"))

    def _probability_tables(self) -> dict[tuple[str, str], list[Path]]:
        found = {
            (folder.parent.name.partition("=")[2], folder.name.partition("=")[2]): _buckets(folder)
            for folder in self._results.all_probabilities.glob("classifier=*/version=*")
        }
        for path in self._loose("probabilities"):
            found.setdefault(_classifier_of(path), []).append(path)
        model = self.settings.get("model") or {}
        return _newest_last(found, (model.get("name"), model.get("version")))

    def _loose(self, name: str) -> list[Path]:
        """Files beside the tables of a backfill, such as other commands write; they know of no date."""
        if self.as_of is not None:
            return []
        root = self.layout.root
        return [path for pattern in (f"{name}*.parquet", f"{name}/*.parquet") for path in sorted(root.glob(pattern))]

    def _of_objects(self, paths: Sequence[Path], oids: Names | None, columns: Sequence[str] | None) -> pa.Table:
        """Rows of tables by ``oid``, of all objects or of some."""
        conditions = []
        names = _names(oids)
        if names is not None:
            paths = self._parts_of(paths, names)
            conditions.append(pc.field("oid").isin(names))
        return _read(paths, _listed(columns, ["oid"]), conditions).sort_by("oid")

    def _parts_of(self, paths: Sequence[Path], oids: pa.Array) -> Sequence[Path]:
        """Of the files of buckets, those that may hold some objects."""
        buckets = self.settings.get("buckets")
        if not buckets or not len(oids):
            return paths
        from storage.buckets import bucket_of

        wanted = {f"bucket={number:04d}" for number in bucket_of(oids, buckets).tolist()}
        # One file is kept for its columns where none is left.
        return [path for path in paths if path.stem in wanted or not path.stem.startswith("bucket=")] or paths[:1]


def _listed(columns: Sequence[str] | None, first: Sequence[str] = ()) -> list[str] | None:
    """Columns wanted, each once, after those that are always given."""
    if isinstance(columns, str):
        raise RunError(f"columns are given as a list: [{columns!r}]")
    return None if columns is None else list(dict.fromkeys([*first, *columns]))


def _names(oids: Names | None) -> pa.Array | None:
    if oids is None:
        return None
    return pa.array([oids] if isinstance(oids, str) else list(oids), pa.string())


def _buckets(folder: Path) -> list[Path]:
    return sorted(folder.glob("bucket=*.parquet"))


def _newest_last(found: Mapping[Any, list[Path]], named: Any) -> dict[Any, list[Path]]:
    """Tables that have files, by the time of their last change; the one that the run names is the last."""

    def age(item: tuple[Any, list[Path]]) -> tuple[bool, float, Any]:
        return item[0] == named, max(path.stat().st_mtime for path in item[1]), item[0]

    return dict(sorted(((key, paths) for key, paths in found.items() if paths), key=age))


def _classifier_of(path: Path) -> tuple[str, str]:
    names = ["classifier_name", "classifier_version"]
    if not {*names} <= {*_schema(path).names}:
        return path.stem, ""
    first = ds.dataset(str(path)).head(1, columns=names).to_pylist()
    return (first[0]["classifier_name"], first[0]["classifier_version"]) if first else (path.stem, "")


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} cannot be read as a Parquet file ({str(error)[:100]})") from error


def _read(paths: Sequence[Path], columns: list[str] | None, conditions: Sequence[pc.Expression]) -> pa.Table:
    """Rows of files that fulfil all conditions; a column that a file lacks is null there."""
    schemas = [_schema(path).remove_metadata() for path in paths]
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        if columns is not None:
            _check_columns(columns, schema.names)
        condition = reduce(and_, conditions) if conditions else None
        parts = ds.dataset([str(path) for path in paths], schema=schema)
        return parts.to_table(columns=columns, filter=condition)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{paths[0].parent}: its tables cannot be read as one ({str(error)[:200]})") from error


def _check_columns(columns: Iterable[str], known: Sequence[str]) -> None:
    missing = [name for name in columns if name not in known]
    if missing:
        like = difflib.get_close_matches(missing[0], known, n=3)
        told = f"; names like it: {', '.join(like)}" if like else f"; there are {', '.join(known[:20])}, …"
        raise RunError(f"there is no column {', '.join(missing)}{told}")


def _rows(paths: Iterable[Path]) -> int:
    return sum(pq.read_metadata(path).num_rows for path in paths)


def _files(folder: Path, pattern: str, before: str = "") -> str:
    sizes = [path.stat().st_size for path in folder.glob(pattern) if not path.name.startswith(".")]
    files = f"{len(sizes):,} file{'s' if len(sizes) != 1 else ''}"
    return f"{before}{files}, {sum(sizes) / 1e6:,.1f} MB" if sizes else "none"
