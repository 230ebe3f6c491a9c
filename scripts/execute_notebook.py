"""Run the cells of a notebook in one namespace, and keep what they show; needs no Jupyter.

    python -m scripts.execute_notebook docs/explore_a_run.ipynb

The cells run in an empty temporary folder.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

_DPI = 80


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in the present folder, put their outputs into the notebook, and give the names they made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import rc_context

    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    with rc_context({"figure.dpi": _DPI, "savefig.dpi": _DPI}):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell["execution_count"] = count
                cell["outputs"] = _run("".join(cell["source"]), names, count)
    return names


def _run(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    from matplotlib import pyplot

    *statements, last = ast.parse(source).body or [ast.Pass()]
    shown = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
    if not shown:
        statements.append(last)
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(statements, []), f"<cell {count}>", "exec"), names)
        if shown:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "data": _shown(value), "metadata": {}}
        )
    for number in pyplot.get_fignums():
        data = {"image/png": _picture(pyplot.figure(number)), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    pyplot.close("all")
    return outputs


def _shown(value: Any) -> dict[str, list[str]]:
    data = {}
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    if html is not None:
        # astropy puts an address in memory there.
        data["text/html"] = _lines(re.sub(r'id="table\d+', 'id="table', html))
    return data | {"text/plain": _lines(repr(value))}


def _picture(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode()


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(path: Path) -> None:
    """Execute a notebook and write it again with its outputs."""
    notebook = json.loads(path.read_text())
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            execute(notebook)
        finally:
            os.chdir(before)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
