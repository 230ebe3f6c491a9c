"""Moments up to which alerts count: as MJD, and as names of folders."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

_MJD_OF_UNIX_EPOCH: Final = 40587.0
_SECONDS_PER_DAY: Final = 86400.0
_DATE_LENGTH: Final = len("2020-04-01")


def mjd_of(as_of: str | float) -> float:
    """MJD of a date (its beginning, UTC), of a time, or of an MJD.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    refusal = f"{as_of}: give an MJD such as 58940.5, or a date such as 2020-04-01"
    try:
        mjd = float(as_of)
    except ValueError:
        # Python takes 20200401 for a date, which may as well be a wrong MJD.
        if "-" not in str(as_of):
            raise ValueError(refusal) from None
        try:
            moment = datetime.fromisoformat(str(as_of))
        except ValueError as error:
            raise ValueError(refusal) from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return _MJD_OF_UNIX_EPOCH + moment.timestamp() / _SECONDS_PER_DAY
    if not (math.isfinite(mjd) and 0 < mjd < 1e6):
        raise ValueError(refusal)
    return mjd


def name_of(as_of: str | float) -> str:
    """Name of the folder with the results of a moment: a date as it is written, else the MJD."""
    text = str(as_of)
    return text if "-" in text and len(text) == _DATE_LENGTH else f"mjd{mjd_of(as_of):.6f}".rstrip("0").rstrip(".")
