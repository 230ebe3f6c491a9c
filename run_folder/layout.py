"""Where everything is in the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Results:
    """Tables with one row per object: what is known of the objects, their features, their probabilities.

    Attributes
    ----------
    root : Path
    """

    root: Path

    @property
    def objects(self) -> Path:
        """Statistics of the objects, ``bucket=NNNN.parquet``."""
        return self.root / "objects"

    @property
    def all_features(self) -> Path:
        """Features of all versions."""
        return self.root / "features"

    def features(self, version: str) -> Path:
        """Features of one version, ``bucket=NNNN.parquet``."""
        return self.all_features / f"version={version}"

    @property
    def all_probabilities(self) -> Path:
        """Probabilities of all models."""
        return self.root / "probabilities"

    def probabilities(self, classifier: str, version: str) -> Path:
        """Probabilities of one model, ``bucket=NNNN.parquet``."""
        return self.all_probabilities / f"classifier={classifier}" / f"version={version}"

    @property
    def hats(self) -> Path:
        """HATS catalogue of the objects."""
        return self.root / "hats"


@dataclass(frozen=True)
class RunLayout:
    """Places in the folder of a run.

    Attributes
    ----------
    root : Path
        Folder of the run.
    """

    root: Path

    @property
    def alerts(self) -> Path:
        """Enriched alerts, ``<unit>.<schema>.<number>.avro``."""
        return self.root / "alerts"

    @property
    def dead_letters(self) -> Path:
        """What could not be processed, ``<unit>.<stage>.<number>.avro``."""
        return self.root / "dead_letters"

    @property
    def crossmatches(self) -> Path:
        """Folder with a part ``<unit>.parquet`` of each unit, read as one table by its name."""
        return self.root / "crossmatches.parquet"

    @property
    def light_curves(self) -> Path:
        """Light-curve store."""
        return self.root / "light_curves"

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.root / "ledger"

    @property
    def progress(self) -> Path:
        """Where workers note how far they are."""
        return self.root / ".progress"

    @property
    def database(self) -> Path:
        """Data of the embedded server."""
        return self.root / "database"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.root / "report.html"

    def results(self, as_of: str | None = None) -> Results:
        """Tables of objects: of all that is known, or of what was known at a date."""
        return Results(self.root / "as_of" / as_of if as_of else self.root)
