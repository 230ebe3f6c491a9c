"""The folder of a run: where everything is, the ledger of its units of work, and reading its results."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from run_folder.access import NotThereError, Run, RunError, UnknownObjectError, open_run

__all__ = ["NotThereError", "Run", "RunError", "UnknownObjectError", "open_run"]


def __getattr__(name: str) -> Any:
    """Load what reads results when it is asked for: the workers need the ledger alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("run_folder.access"), name)
