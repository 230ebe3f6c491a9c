"""Import of ALeRCE's published models and of single forests into model packages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from classifier.estimators import ClassForest, forest_of
from classifier.forest import ForestError
from classifier.model import Branch, Model, ModelError
from classifier.pickles import UnsafePickleError, read_pickle

FEATURES_FILE: Final = "features_RF_model.pkl"
TOP: Final = "top"
# Order of the leaves as in ALeRCE's first classifier; file stems of both namings, the newer first.
CHILDREN: Final = ("Stochastic", "Periodic", "Transient")
STEMS: Final = {
    TOP: ("top_level_BRF_model.pkl", "hierarchical_level_RF_model.pkl"),
    **{name: (f"{name.lower()}_level_BRF_model.pkl", f"{name.lower()}_level_RF_model.pkl") for name in CHILDREN},
}
# Classes that ALeRCE's releases have put below each branch; some have moved between releases.
_CLASSES: Final = {
    "Stochastic": {"AGN", "Blazar", "CV/Nova", "QSO", "YSO", "LPV", "Microlensing"},
    "Periodic": {
        *("CEP", "DSCT", "E", "EA", "EB/EW", "LPV", "Periodic-Other", "RRL", "RRLab", "RRLc", "RSCVn"),
    },
    "Transient": {"SLSN", "SNII", "SNIIb", "SNIIn", "SNIa", "SNIbc", "TDE"},
}
_LICENCE: Final = "Trained and published by the ALeRCE broker; ask them before you redistribute it."


def import_folder(folder: str | Path, name: str = "lc_classifier", version: str | None = None) -> Model:
    """Model of a folder with ALeRCE's published files; nothing in them is run.

    Parameters
    ----------
    folder : path
        Holds ``features_RF_model.pkl`` and the four levels, ``*_level_BRF_model.pkl`` (since 1.1.0) or
        ``*_level_RF_model.pkl`` (1.0.x).
    name : str
        Name of the classifier in the tables.
    version : str, optional
        By default the folder's name, such as ``hierarchical_rf_1.1.0``.

    Raises
    ------
    ModelError
        If a level is missing, a file is no forest or not to be trusted, or a level holds another's classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    files = {level: _find(folder, level, stems) for level, stems in STEMS.items()}
    features_file = folder / FEATURES_FILE
    if not features_file.is_file():
        raise ModelError(f"{folder} lacks {FEATURES_FILE}, which names the features and their order")
    features = read_feature_names(features_file)
    forests = {level: _read_forest(path) for level, path in files.items()}
    _check_levels(forests, files)
    children = {level: Branch(level, forests[level].forest, forests[level].classes, features) for level in CHILDREN}
    top = forests[TOP]
    return Model(
        name=name,
        version=version or folder.resolve().name,
        root=Branch(TOP, top.forest, top.classes, features, children),
        provenance=_provenance([*files.values(), features_file], top.made_by),
        licence=_LICENCE,
    )


def import_file(
    path: str | Path, features: Sequence[str] | None = None, name: str = "lc_classifier", version: str | None = None
) -> Model:
    """Flat model of one pickled forest.

    Parameters
    ----------
    path : path
    features : sequence of str, optional
        Names of the forest's columns; by default those that the forest was fitted with, if it knows them.
    name, version : str
        `version` is the file's name by default.

    Raises
    ------
    ModelError
        If the file is no forest or not to be trusted, or the names are unknown or too few.
    """
    path = Path(path)
    estimator = _read(path)
    found = _as_forest(path, estimator)
    return flat_model(
        found,
        features if features is not None else _own_names(estimator),
        name,
        version or path.name.partition(".")[0],
        _provenance([path], found.made_by),
    )


def import_estimator(
    estimator: Any, features: Sequence[str] | None = None, name: str = "lc_classifier", version: str = "dev"
) -> Model:
    """Flat model of an estimator that was fitted here, or that the user has loaded and trusts.

    Raises
    ------
    ModelError
        If it is no fitted forest, or the names of the features are unknown or too few.
    """
    try:
        found = forest_of(estimator)
    except ForestError as error:
        raise ModelError(str(error)) from error
    names = features if features is not None else getattr(estimator, "feature_names_in_", None)
    return flat_model(found, names, name, version, {"made_by": found.made_by})


def flat_model(
    found: ClassForest, features: Sequence[str] | None, name: str, version: str, provenance: dict[str, Any]
) -> Model:
    """Model of one forest.

    Raises
    ------
    ModelError
        If `features` is None or of another length than the forest's columns.
    """
    if features is None:
        raise ModelError("the forest does not name its features; name them in order")
    branch = Branch(TOP, found.forest, found.classes, tuple(map(str, features)))
    return Model(name=name, version=version, root=branch, provenance=provenance)


def read_feature_names(path: str | Path) -> tuple[str, ...]:
    """Names of features out of a pickled list, array or pandas Index.

    Raises
    ------
    ModelError
        If the file holds something else.
    """
    names = _read(Path(path))
    names = names.tolist() if hasattr(names, "tolist") else names
    if not isinstance(names, list) or not names or not all(isinstance(entry, str) for entry in names):
        raise ModelError(f"{path} holds no list of names")
    return tuple(names)


def _find(folder: Path, level: str, stems: Sequence[str]) -> Path:
    for stem in stems:
        if (folder / stem).is_file():
            return folder / stem
    raise ModelError(f"{folder} lacks the level {level} ({' or '.join(stems)})")


def _read(path: Path) -> Any:
    try:
        return read_pickle(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except UnsafePickleError as error:
        raise ModelError(f"{path} was refused: {error}") from error


def _read_forest(path: Path) -> ClassForest:
    return _as_forest(path, _read(path))


def _as_forest(path: Path, estimator: Any) -> ClassForest:
    try:
        return forest_of(estimator)
    except ForestError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_levels(forests: dict[str, ClassForest], files: dict[str, Path]) -> None:
    """Refuse levels under each other's names: ALeRCE once shipped them so (alerce.md 2.3)."""
    if set(forests[TOP].classes) != set(CHILDREN):
        raise ModelError(
            f"{files[TOP]} holds the classes {', '.join(forests[TOP].classes)}, not {', '.join(CHILDREN)}: "
            "it is not the top level"
        )
    for level in CHILDREN:
        classes = set(forests[level].classes)
        if classes <= _CLASSES[level]:
            continue
        others = [other for other in CHILDREN if classes <= _CLASSES[other]]
        whose = f"those of {others[0]}" if others else f"{', '.join(sorted(classes))}, unknown below {level}"
        raise ModelError(f"{files[level]} stands for {level}, but its classes are {whose}")


def _own_names(estimator: Any) -> Sequence[str] | None:
    names = estimator.get("feature_names_in_")
    return None if names is None else [str(name) for name in names]


def _provenance(files: Sequence[Path], made_by: str) -> dict[str, Any]:
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"imported_from": hashes, "made_by": made_by}
