"""Tables as a user wants them: pandas, astropy, or Arrow as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pandas as pd
    from astropy.table import Table

Format = Literal["pandas", "astropy", "arrow"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)

_DAYS: Final = ("mjd", "jd", "firstmjd", "lastmjd", "deltajd", "alert_mjd", "alert_jd", "Multiband_period")
_DEGREES: Final = ("ra", "dec", "meanra", "meandec", "RAJ2000", "DEJ2000")
_ARCSECONDS: Final = ("angDist", "distpsnr1", "distpsnr2", "distpsnr3")
_MAGNITUDES: Final = ("magpsf", "sigmapsf", "magap", "sigmagap", "diffmaglim", "magnr", "sigmagnr")


def unit_of(column: str) -> str | None:
    """Unit of a column by its name, as astropy writes it; None for a number without one, or of unknown unit."""
    last = column.rpartition("_")[2]
    if column in _DAYS or column.startswith(("mjdstart", "mjdend", "jdstart", "jdend")):
        return "d"
    if column in _DEGREES or last in ("RAJ2000", "DEJ2000"):
        return "deg"
    if column in _ARCSECONDS or last == "angDist":
        return "arcsec"
    if column.startswith(_MAGNITUDES) or (last.endswith("mag") and last[:1].isupper()):
        return "mag"
    return None


def in_format(table: pa.Table, format: Format, index: str | None = None) -> Any:
    """Give a table in one of :data:`FORMATS`.

    Parameters
    ----------
    table : pyarrow.Table
    format : {"pandas", "astropy", "arrow"}
    index : str, optional
        Column that becomes the index of a data frame; the other formats keep it as a column.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    match format:
        case "pandas":
            frame = to_pandas(table)
            return frame.set_index(index) if index else frame
        case "astropy":
            return to_astropy(table)
        case "arrow":
            return table
    raise ValueError(f"format {format!r} is not one of {', '.join(FORMATS)}")


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Give a data frame; whole numbers with gaps stay whole numbers, since an identifier has more than 53 bits."""
    import pandas as pd

    frame = table.to_pandas()
    for name in table.column_names:
        column = table[name]
        if pa.types.is_integer(column.type) and column.null_count:
            numbers = pc.fill_null(column, 0).to_numpy()
            frame[name] = pd.arrays.IntegerArray(numbers, column.is_null().to_numpy())
    return frame


def to_astropy(table: pa.Table) -> Table:
    """Give an astropy table with units; what is absent is NaN among floating-point numbers and masked elsewhere."""
    from astropy.table import Column, MaskedColumn, Table

    columns = []
    for name in table.column_names:
        column, unit = table[name], unit_of(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            columns.append(Column(pc.fill_null(column, np.nan).to_numpy(), name, unit=unit))
            continue
        values = _filled(column)
        if column.null_count:
            columns.append(MaskedColumn(values, name, mask=column.is_null().to_numpy(), unit=unit))
        else:
            columns.append(Column(values, name, unit=unit))
    return Table(columns)


def _filled(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.fill_null(column, "").to_numpy().astype(str)
    if pa.types.is_boolean(kind):
        return pc.fill_null(column, False).to_numpy()
    return pc.fill_null(column, 0).to_numpy() if pa.types.is_integer(kind) else column.to_numpy()
