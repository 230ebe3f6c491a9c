"""A model on disk: a manifest and arrays, mapped into memory; nothing in it is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifier.forest import Forest, ForestError, check_forest
from classifier.model import Branch, Model, ModelError

FORMAT: Final = "alertbeam model"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
_ARRAYS: Final = ("nodes", "roots", "values")


def write_model(model: Model, folder: str | Path, extra_files: Mapping[str, bytes] | None = None) -> Model:
    """Write a model's package; the folder appears when it is complete. Give the model as read from there.

    Parameters
    ----------
    model : Model
    folder : path
        Must not exist, or be an earlier package, which is replaced.
    extra_files : Mapping of str to bytes, optional
        Other files of the package, for instance the model card.

    Raises
    ------
    ModelError
        If the folder holds something else.
    """
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ModelError(f"{folder} is there already and is no model; choose another folder")
    stems = [_file_stem(branch.name) for branch in model.root.branches()]
    if len(set(stems)) < len(stems):
        raise ModelError(f"the forests' names differ in signs only: {', '.join(sorted(stems))}")
    building = folder.with_name(f".{folder.name}.building-{os.getpid()}")
    building.mkdir(parents=True)
    try:
        for branch in model.root.branches():
            for name in _ARRAYS:
                np.save(building / f"{_file_stem(branch.name)}.{name}.npy", getattr(branch.forest, name))
        for name, content in (extra_files or {}).items():
            (building / name).write_bytes(content)
        files = {path.name: _described(path) for path in sorted(building.iterdir())}
        text = json.dumps(_manifest(model, files), indent=1)
        (building / MANIFEST).write_text(text, encoding="utf-8")
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            building.rename(folder)
            shutil.rmtree(old)
        else:
            building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return read_model(folder)


def read_model(folder: str | Path) -> Model:
    """Open a package; every file's hash, every tree and every class set is checked.

    Raises
    ------
    ModelError
        In one sentence, if it is no model, or damaged, or of another format version.
    """
    folder = Path(folder).absolute()
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except OSError as error:
        raise ModelError(f"{folder} is no model (it has no readable {MANIFEST})") from error
    except ValueError as error:
        raise ModelError(f"{folder / MANIFEST} is damaged (not JSON)") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{folder} is no model of alertbeam (its {MANIFEST} says otherwise)")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{folder} has format version {manifest.get('format_version')}, this program reads {FORMAT_VERSION}"
        )
    try:
        _check_files(folder, manifest["files"])
        return Model(
            name=manifest["name"],
            version=manifest["version"],
            root=_branch(folder, manifest["hierarchy"], manifest["files"]),
            sha256=hashlib.sha256(content).hexdigest(),
            feature_mode=manifest["feature_mode"],
            feature_version=manifest["feature_version"],
            fill_value=float(manifest["fill_value"]),
            provenance=manifest["provenance"],
            licence=manifest["licence"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / MANIFEST} is damaged ({error!r})") from error
    except (ForestError, ModelError) as error:
        raise ModelError(f"{folder}: {error}") from error


def _manifest(model: Model, files: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "version": model.version,
        "classes": list(model.leaves),
        "required_features": list(model.features),
        "fill_value": model.fill_value,
        "feature_mode": model.feature_mode,
        "feature_version": model.feature_version,
        "hierarchy": _described_branch(model.root),
        "provenance": dict(model.provenance),
        "licence": model.licence,
        "files": dict(files),
    }


def _described_branch(branch: Branch) -> dict[str, Any]:
    return {
        "name": branch.name,
        "classes": list(branch.classes),
        "features": list(branch.features),
        "columns": branch.forest.features,
        "bits": branch.forest.bits,
        "children": {name: _described_branch(child) for name, child in branch.children.items()},
    }


def _branch(folder: Path, entry: Mapping[str, Any], files: Mapping[str, Any]) -> Branch:
    stem = _file_stem(entry["name"])
    arrays: dict[str, NDArray] = {}
    for name in _ARRAYS:
        file = f"{stem}.{name}.npy"
        if file not in files:
            raise ModelError(f"the manifest lists no {file}")
        arrays[name] = np.load(folder / file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    forest = Forest(**arrays, bits=int(entry["bits"]), features=int(entry["columns"]))
    try:
        check_forest(forest)
    except ForestError as error:
        raise ForestError(f"forest {entry['name']}: {error}") from error
    return Branch(
        name=entry["name"],
        forest=forest,
        classes=tuple(entry["classes"]),
        features=tuple(entry["features"]),
        children={name: _branch(folder, child, files) for name, child in entry["children"].items()},
    )


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelError(f"file {name} is missing")
        if _described(path) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
            raise ModelError(f"file {name} is damaged (its sha256 differs from the manifest's)")


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _file_stem(branch: str) -> str:
    """A branch's name as part of a file name: class names hold slashes."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in branch).lower()
