"""Classes of a run: the branches of their hierarchy, which are periodic, and their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from classifier.model import Model, ModelError
from classifier.package import read_model
from report.colours import colour

PERIODIC: Final = "Periodic"
# ALeRCE's taxonomy (alerce.md 2.1), for a model that is no longer where the run found it.
_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "Stochastic": ("AGN", "Blazar", "CV/Nova", "QSO", "YSO"),
    "Periodic": ("CEP", "DSCT", "E", "LPV", "Periodic-Other", "RRL"),
    "Transient": ("SLSN", "SNII", "SNIa", "SNIbc"),
}
_HUES: Final = {"Stochastic": (305.0, 378.0), "Periodic": (150.0, 285.0), "Transient": (35.0, 115.0)}


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes
    ----------
    name, branch : str
        The branch is empty in a model without a hierarchy.
    periodic : bool or None
        None if the hierarchy does not tell.
    light, dark : str
        Its colour on a light and a dark page.
    """

    name: str
    branch: str
    periodic: bool | None
    light: str
    dark: str


def class_infos(leaves: Sequence[str], settings: Mapping[str, Any]) -> tuple[ClassInfo, ...]:
    """Tell of the classes of a table of probabilities, branch by branch.

    Parameters
    ----------
    leaves : sequence of str
        Classes in the order of the table.
    settings : Mapping
        Of the run; ``model`` names the package whose hierarchy counts.
    """
    branches = _branches(leaves, settings.get("model") or {})
    infos = []
    for branch, names in branches.items():
        low, high = _HUES.get(branch, (20.0, 360.0))
        for k, name in enumerate(names):
            hue = low + (high - low) * (k / (len(names) - 1) if len(names) > 1 else 0.5)
            # Neighbours differ in lightness too.
            shade = 0.045 if k % 2 else -0.045
            periodic = (branch == PERIODIC) if PERIODIC in branches else None
            light, dark = colour(0.56 + shade, 0.14, hue), colour(0.74 + shade, 0.13, hue)
            infos.append(ClassInfo(name, branch, periodic, light, dark))
    return tuple(infos)


def _branches(leaves: Sequence[str], model: Mapping[str, Any]) -> dict[str, list[str]]:
    known = _of_model(model) or {name: branch for branch, names in _KNOWN.items() for name in names}
    if not all(name in known for name in leaves):
        return {"": list(leaves)}
    found: dict[str, list[str]] = {}
    for name in leaves:
        found.setdefault(known[name], []).append(name)
    return found


def _of_model(model: Mapping[str, Any]) -> dict[str, str]:
    """Branch of each class of the package that the settings name; empty if it is not there or is another."""
    if not model.get("path"):
        return {}
    try:
        package: Model = read_model(str(model["path"]))
    except ModelError:
        return {}
    if model.get("sha256") not in (None, "", package.sha256):
        return {}
    children = package.root.children
    return {leaf: branch for branch, child in children.items() for leaf in child.leaves()} | {
        name: "" for name in package.root.classes if name not in children
    }
