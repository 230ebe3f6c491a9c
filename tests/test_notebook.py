"""The notebook in docs/: its cells run, and what it shows is what they give."""

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "explore_a_run.ipynb"
# Lines of the summary that are the same wherever the notebook is run.
STABLE = ("crossmatches", "objects", "features", "probabilities")


@pytest.fixture(scope="module")
def executor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute_notebook", ROOT / "scripts" / "execute_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(cell: dict[str, Any]) -> str:
    return "".join("".join(out.get("data", {}).get("text/plain", out.get("text", ""))) for out in cell["outputs"])


def summary(notebook: dict[str, Any]) -> list[str]:
    (cell,) = (cell for cell in code_cells(notebook) if "".join(cell["source"]).endswith("\nrun"))
    return [line for line in texts(cell).splitlines() if line.startswith(STABLE)]


def test_the_notebook_was_executed() -> None:
    text = NOTEBOOK.read_text()
    notebook = json.loads(text)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [out["output_type"] for cell in cells for out in cell["outputs"]]
    assert "error" not in kinds
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"]) == 3
    assert len(summary(notebook)) == len(STABLE)
    # It shows no place of the machine that it was made on.
    assert not any(f'"/{place}' in text or f" /{place}" in text for place in ("home", "root", "tmp", "work", "Users"))
    assert len(text) < 300_000


def test_the_cells_run_and_give_what_the_notebook_shows(executor, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = json.loads(NOTEBOOK.read_text())
    again = json.loads(NOTEBOOK.read_text())
    names = executor.execute(again)
    assert summary(again) == summary(shown)
    with open("night/truth.csv", newline="") as file:
        truth = [row for row in csv.DictReader(file) if row["AllWISE"]]
    assert len(names["alerts"]) == 300
    assert len(names["matches"]) == len(truth)
    np.testing.assert_allclose(
        np.sort(names["matches"].angDist), np.sort([float(row["separation_arcsec"]) for row in truth]), atol=1e-3
    )
    run, star = names["run"], names["star"]
    assert names["period"] == run.features(oids=star).Multiband_period[star]
    assert len(names["curve"].points()) == run.objects(oids=star).ndet[star] > 20
    assert len(names["earlier"].alerts(["jd"])) == (names["alerts"].jd <= names["alerts"].jd.median()).sum()
    assert run.status["classify"]["counts"]["classified"] == len(names["probabilities"])


def test_outputs_are_kept_as_jupyter_does(executor, tmp_path) -> None:
    sources = [
        "a = 2\nprint('said')\na + 1",
        "a * 2;",
        "class T:\n    def _repr_html_(self):\n        return '<b>'\nT()",
    ]
    plot = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.plot([1, 2]);"
    notebook = {"cells": [{"cell_type": "code", "source": [source]} for source in [*sources, plot]]}
    names = executor.execute(notebook)
    assert names["a"] == 2
    first, second, third, fourth = (cell["outputs"] for cell in notebook["cells"])
    assert first[0] == {"output_type": "stream", "name": "stdout", "text": ["said\n"]}
    assert first[1]["data"] == {"text/plain": ["3"]}
    assert second == []
    assert third[0]["data"]["text/html"] == ["<b>"]
    assert [out["output_type"] for out in fourth] == ["display_data"]
    assert fourth[0]["data"]["image/png"]
    with pytest.raises(ZeroDivisionError):
        executor.execute({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]})
