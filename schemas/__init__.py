"""Every Avro schema of the project as a file, and one loader."""

import copy
import json
from functools import cache
from importlib.resources import files
from typing import Any

SUFFIX = ".avsc"


@cache
def schema_names() -> tuple[str, ...]:
    """Names that `load_schema` knows, sorted."""
    return tuple(sorted(f.name.removesuffix(SUFFIX) for f in files(__name__).iterdir() if f.name.endswith(SUFFIX)))


@cache
def _parsed(name: str) -> dict[str, Any]:
    if name not in schema_names():
        raise ValueError(f"There is no schema named {name!r}; choose one of {', '.join(schema_names())}.")
    return json.loads(files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8"))


def load_schema(name: str) -> dict[str, Any]:
    """Avro schema as the JSON object that a packet's header holds.

    Parameters
    ----------
    name
        File name without suffix, e.g. ``ztf_alert_4.02`` or ``xmatches_float``.

    Returns
    -------
    dict
        A copy of the caller's own: fastavro adds keys to the schemas that it parses.

    Raises
    ------
    ValueError
        If there is no such schema.
    """
    return copy.deepcopy(_parsed(name))
