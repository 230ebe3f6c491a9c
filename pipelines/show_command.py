"""``alertbeam show``: a picture of one object's light curve."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from alerts.reader import read_source
from alerts.sources import InputError, find_sources
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import compute_features
from lightcurves.features.curves import Mode
from lightcurves.tables import TableError, rows_of_object
from pipelines.features_command import TABLE_ENDINGS
from pipelines.usage import DONE, StoppedError, UsageError
from run_folder import NotThereError, Run, RunError, open_run
from run_folder.layout import RunLayout
from transforms.light_curves import slim_rows

FORMATS: Final = (".png", ".svg", ".pdf")
_APPARENT, _DIFFERENCE = "apparent", "difference"
_MOST_NAMES_COMPARED: Final = 200_000
_EPILOG: Final = """\
examples:
  alertbeam show ZTF18aazxcwf run/ --output ZTF18aazxcwf.png
  alertbeam show ZTF18aazxcwf nights/*.tar.gz --output ZTF18aazxcwf.svg --period 0.5668
  alertbeam show ZTF18aazxcwf detections.parquet --non-detections limits.parquet --output ZTF18aazxcwf.png

INPUT are folders of runs, alerts (archives, folders, files, globs, URLs), or one table of detections. A run that keeps
light curves gives them at once; otherwise its alerts are read. Its crossmatches.parquet, its features (the newest
version) and its probabilities (the newest classifier) give the match, the period and the class; files in other places
are named by options. Without known features the period is computed.
"""


@dataclass
class _Found:
    """What was read: rows of the wanted object, and which objects there are.

    Of a run that keeps light curves, the objects are counted, and only names like the wanted one are kept.
    """

    oid: str
    detections: list[pa.Table] = field(default_factory=list)
    non_detections: list[pa.Table] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    like: list[str] = field(default_factory=list)
    in_stores: int = 0
    unreadable: int = 0


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "show",
        help="draw the light curve of an object",
        description="Draw the light curve of an object by time and folded at its period.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("oid", metavar="OID", help="name of the object, e.g. ZTF18aazxcwf")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="run, file, folder, glob or URL")
    parser.add_argument("--output", required=True, metavar="FILE", help=f"picture to write, {', '.join(FORMATS)}")
    parser.add_argument("--period", type=float, metavar="DAYS", help="fold at this period")
    parser.add_argument("--no-fold", action="store_true", help="draw by time alone")
    parser.add_argument(
        "--magnitudes",
        choices=("auto", _APPARENT, _DIFFERENCE),
        default="auto",
        help="apparent, or those of the difference image (default: apparent if the reference image shows the source)",
    )
    parser.add_argument("--non-detections", metavar="FILE", help="of the table of detections")
    parser.add_argument("--features", metavar="FILE", help="features, for the period")
    parser.add_argument("--crossmatches", metavar="FILE", help="crossmatches.parquet, for the match")
    parser.add_argument("--probabilities", metavar="FILE", help="probabilities, for the class")
    parser.set_defaults(command=run_command)


def run_command(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    output = Path(options.output).expanduser().absolute()
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {output.name}: the picture's name must end in {', '.join(FORMATS)}")
    if options.period is not None and not 0 < options.period < np.inf:
        raise UsageError("--period must be a positive number of days")
    light_curves = _light_curves(options)
    # Loading matplotlib takes a second.
    from lightcurves.plot import draw_light_curve

    corrected = bool(light_curves.objects["corrected"][0].as_py())
    apparent = corrected if options.magnitudes == "auto" else options.magnitudes == _APPARENT
    light_curve = light_curves.light_curve(options.oid)
    period_days = None if options.no_fold else options.period or _period_days(options, light_curves)
    notes = _notes(options, light_curves)
    picture = output.with_name(f".partial.{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draw_light_curve(picture, options.oid, *light_curve, apparent=apparent, period_days=period_days, notes=notes)
        picture.replace(output)
    except OSError as error:
        raise StoppedError(str(error)) from error
    finally:
        picture.unlink(missing_ok=True)
    folded = f", period {period_days:.7g} d" if period_days else ""
    print("\n".join([f"{options.oid}{folded}", *notes, str(output)]))
    return DONE


def _light_curves(options: argparse.Namespace) -> LightCurveBatch:
    """Light curve of the object, alone in a batch."""
    found = _Found(options.oid)
    try:
        if any(text.endswith(TABLE_ENDINGS) for text in options.inputs):
            _read_tables(options, found)
        else:
            stores = [text for text in options.inputs if RunLayout(Path(text)).light_curves.is_dir()]
            for text in stores:
                _read_store(open_run(text), found)
            _read_alerts([text for text in options.inputs if text not in stores], found)
    except (InputError, TableError, RunError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error
    if found.unreadable:
        print(f"alertbeam show: {found.unreadable} packets cannot be read and are left out", file=sys.stderr)
    if not found.detections:
        raise UsageError(_absent(found))
    tables = [pa.concat_tables(rows, promote_options="permissive") for rows in (found.detections, found.non_detections)]
    light_curves = assemble(*tables)
    if not len(light_curves):
        raise UsageError(f"the rows of {found.oid} name no time or band, so there is nothing to draw")
    return light_curves


def _read_store(run: Run, found: _Found) -> None:
    rows = run.stored_rows(found.oid)
    if rows.detections.num_rows:
        found.detections.append(rows.detections)
        found.non_detections.append(rows.non_detections)
        return
    with suppress(NotThereError):
        found.in_stores += run.objects(columns=(), format="arrow").num_rows
        found.like += run.names_like(found.oid)


def _read_alerts(inputs: Sequence[str], found: _Found) -> None:
    for source in find_sources([_alerts_of(text) for text in inputs]):
        for item in read_source(source):
            if isinstance(item, DeadLetter):
                found.unreadable += 1
            elif isinstance(item, AlertBatch):
                found.names.update(pc.unique(item.object_id).to_pylist())
                wanted = pc.equal(item.object_id, found.oid).to_numpy(zero_copy_only=False)
                if wanted.any():
                    rows = slim_rows(item.take(wanted))
                    found.detections.append(rows.detections)
                    found.non_detections.append(rows.non_detections)


def _alerts_of(text: str) -> str:
    folder = Path(text) / "alerts"
    return str(folder) if folder.is_dir() else text


def _read_tables(options: argparse.Namespace, found: _Found) -> None:
    tables = [text for text in options.inputs if text.endswith(TABLE_ENDINGS)]
    if len(options.inputs) > 1:
        raise UsageError(f"{tables[0]} is a table of detections: it must be the only INPUT")
    detections, non_detections, found.names = rows_of_object(found.oid, tables[0], options.non_detections)
    if detections.num_rows:
        found.detections.append(detections)
        found.non_detections.append(non_detections)


def _absent(found: _Found) -> str:
    close = found.like
    if len(found.names) <= _MOST_NAMES_COMPARED:
        close = found.like + difflib.get_close_matches(found.oid, sorted(found.names), n=3, cutoff=0.5)
    like = f"; names like it: {', '.join(close[:3])}" if close else ""
    return f"there is no {found.oid} among the {len(found.names) + found.in_stores:,} objects of the input{like}"


def _period_days(options: argparse.Namespace, light_curves: LightCurveBatch) -> float | None:
    for row in _rows(options, options.features, lambda run: run.features(oids=options.oid, format="arrow")):
        if row.get("Multiband_period"):
            return float(row["Multiband_period"])
    period_days = float(compute_features(light_curves, Mode.ACCURATE).values("Multiband_period")[0])
    return period_days if np.isfinite(period_days) else None


def _notes(options: argparse.Namespace, light_curves: LightCurveBatch) -> list[str]:
    about = light_curves.objects.to_pylist()[0]
    notes = [
        f"RA {about['meanra']:.6f}°, Dec {about['meandec']:+.6f}°; {about['ndet']} detections, "
        f"{light_curves.non_detections.num_rows} limits"
    ]
    found = _rows(options, options.crossmatches, lambda run: run.crossmatches(oids=options.oid, format="arrow"))
    matches = [row for row in found if row.get("status") == "matched"]
    nearest: dict[str, dict[str, Any]] = {}
    for row in sorted(matches, key=lambda row: (row["angDist"], row["candid"])):
        nearest.setdefault(row["catalog"], row)
    notes += [_match_note(name, row) for name, row in nearest.items()]
    told = _rows(options, options.probabilities, lambda run: run.probabilities(oids=options.oid, format="arrow"))
    classes = list(told)
    if classes:
        notes.append(_class_note(classes))
    return notes


def _match_note(catalog: str, row: Mapping[str, Any]) -> str:
    # The catalogue's own columns follow the separation, its identifier first; those of other catalogues are null.
    names = list(row)
    own = [row[name] for name in names[names.index("angDist") + 1 :] if row[name] is not None]
    identifier = f" {own[0]}" if own else ""
    colours = [f"{name[:2]} {row[name]:.2f}" for name in ("W1mag", "W2mag", "W3mag") if row.get(name) is not None]
    return f"{catalog}{identifier} at {row['angDist']:.2f}″" + (f" ({', '.join(colours)})" if colours else "")


def _class_note(rows: list[dict[str, Any]]) -> str:
    """Name the most probable class, from a row per object or a row per class."""
    if "class" in rows[0]:
        best = rows[-1]
        name, probability = best["class"], best.get("class_probability")
    else:
        # The leaves of a hierarchy are those of the classifier with the shortest name.
        shortest = min((row["classifier_name"] for row in rows), key=len)
        best = min((row for row in rows if row["classifier_name"] == shortest), key=lambda row: row["ranking"])
        name, probability = best["class_name"], best["probability"]
    told = f" with probability {probability:.2f}" if probability is not None else ""
    return f"class {name}{told} ({best['classifier_name']} {best['classifier_version']})"


def _rows(options: argparse.Namespace, file: str | None, of_run: Callable[[Run], pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows of the object in a file that was named, else in the runs."""
    if file is not None:
        path = Path(file).expanduser()
        try:
            yield from pq.read_table(path, filters=[("oid", "==", options.oid)], partitioning=None).to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UsageError(f"{path} cannot be read as a table with a column oid ({str(error)[:100]})") from error
        return
    for text in options.inputs:
        try:
            if Path(text).is_dir():
                yield from of_run(open_run(text)).to_pylist()
        except NotThereError:
            continue
        except RunError as error:
            raise UsageError(str(error)) from error
