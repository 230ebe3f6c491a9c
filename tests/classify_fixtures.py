"""A small model of ALeRCE's hierarchy, and features as tables and messages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
from model_fixtures import CLASSES, ESTIMATORS, FEATURES, fitted

from classifier.estimators import forest_of
from classifier.inputs import FeatureRows
from classifier.model import Branch, Model
from classifier.package import write_model
from schemas import load_schema

LEVELS = ("Stochastic", "Periodic", "Transient")
FIXTURE_CLASSES = (
    *("AGN", "Blazar", "CV/Nova", "QSO", "YSO"),
    *("CEP", "DSCT", "E", "LPV", "Periodic-Other", "RRL"),
    *("SLSN", "SNII", "SNIa", "SNIbc"),
)
SCHEMA_NAMES = tuple(field["name"] for field in load_schema("features")["fields"])


def small_model(version: str = "1", seed: int = 0, features: Sequence[str] = FEATURES) -> Model:
    def branch(level: str, children: Mapping[str, Branch]) -> Branch:
        found = forest_of(ESTIMATORS[level] if not seed else fitted(level, seed))
        return Branch(level, found.forest, found.classes, tuple(features), children)

    return Model("lc_classifier", version, branch("top", {level: branch(level, {}) for level in LEVELS}))


def written_model(folder: Path, version: str = "1", seed: int = 0, features: Sequence[str] = FEATURES) -> Model:
    return write_model(small_model(version, seed, features), folder)


def random_rows(count: int, seed: int = 0, names: Sequence[str] = SCHEMA_NAMES, gaps: float = 0.2) -> FeatureRows:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, len(names)))
    values[random.random(values.shape) < gaps] = np.nan
    oid = pa.array([f"ZTF{seed}é{'x' * int(random.integers(0, 40))}{number}" for number in range(count)], pa.string())
    candid = pa.array(random.integers(-(2**62), 2**62, count))
    return FeatureRows(oid, candid, tuple(names), values)


def table_of(rows: FeatureRows) -> pa.Table:
    columns = {name: pa.array(rows.values[:, n], from_pandas=True) for n, name in enumerate(rows.names)}
    return pa.table({"oid": rows.oid, "candid": rows.candid, **columns})


def records_of(rows: FeatureRows) -> list[dict[str, Any]]:
    return [
        {
            "oid": rows.oid[row].as_py(),
            "candid": rows.candid[row].as_py(),
            "features": {
                name: None if np.isnan(value) else value
                for name, value in zip(rows.names, rows.values[row].tolist(), strict=True)
            },
        }
        for row in range(len(rows))
    ]


def message_schema(features: Any = None) -> dict[str, Any]:
    """Schema of the feature step's messages."""
    return {
        "type": "record",
        "name": "features_step",
        "fields": [
            {"name": "oid", "type": "string"},
            {"name": "candid", "type": "long"},
            {"name": "features", "type": features or load_schema("features")},
        ],
    }


def container(schema: dict[str, Any], records: Sequence[Mapping[str, Any]], codec: str = "null") -> bytes:
    stream = io.BytesIO()
    fastavro.writer(stream, schema, records, codec=codec)
    return stream.getvalue()


__all__ = ["CLASSES", "FEATURES", "FIXTURE_CLASSES", "LEVELS", "SCHEMA_NAMES"]
