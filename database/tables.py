"""Tables of ALeRCE's database that alertbeam writes, by ALeRCE's names, types, keys and indices.

A further table is a `Table` on `METADATA` and, where "replace what differs" is not its rule, one entry in
`database.rules`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    inspect,
    text,
)
from sqlalchemy.schema import CreateColumn

__all__ = ["ALLWISE", "METADATA", "OBJECT", "STEP", "XMATCH", "TableLayoutError", "create_tables"]

METADATA = MetaData()

# Columns that ALeRCE's tables lack; `create_tables` adds them to an existing table.
_PROVENANCE = {"provenance": True}

# Any constant will do, as long as every alertbeam process takes the same one.
_CREATE_LOCK = 0x616C657274

OBJECT = Table(
    "object",
    METADATA,
    Column("oid", String, primary_key=True),
    Column("ndethist", Integer),
    Column("ncovhist", Integer),
    Column("mjdstarthist", Double),
    Column("mjdendhist", Double),
    Column("corrected", Boolean),
    Column("stellar", Boolean),
    Column("ndet", Integer),
    Column("g_r_max", Double),
    Column("g_r_max_corr", Double),
    Column("g_r_mean", Double),
    Column("g_r_mean_corr", Double),
    Column("meanra", Double),
    Column("meandec", Double),
    Column("sigmara", Double),
    Column("sigmadec", Double),
    Column("deltajd", Double),
    Column("firstmjd", Double),
    Column("lastmjd", Double),
    Column("step_id_corr", String),
    Column("diffpos", Boolean),
    Column("reference_change", Boolean),
    Index("ix_object_ndet", "ndet"),
    Index("ix_object_firstmjd", "firstmjd"),
    Index("ix_object_g_r_max", "g_r_max"),
    Index("ix_object_g_r_mean_corr", "g_r_mean_corr"),
    Index("ix_object_meanra", "meanra"),
    Index("ix_object_meandec", "meandec"),
)

ALLWISE = Table(
    "allwise",
    METADATA,
    Column("oid_catalog", String, primary_key=True),
    Column("ra", Double, nullable=False),
    Column("dec", Double, nullable=False),
    Column("w1mpro", Double),
    Column("w2mpro", Double),
    Column("w3mpro", Double),
    Column("w4mpro", Double),
    Column("w1sigmpro", Double),
    Column("w2sigmpro", Double),
    Column("w3sigmpro", Double),
    Column("w4sigmpro", Double),
    Column("j_m_2mass", Double),
    Column("h_m_2mass", Double),
    Column("k_m_2mass", Double),
    Column("j_msig_2mass", Double),
    Column("h_msig_2mass", Double),
    Column("k_msig_2mass", Double),
    Index("ix_allwise_ra", "ra"),
    Index("ix_allwise_dec", "dec"),
)

XMATCH = Table(
    "xmatch",
    METADATA,
    Column("oid", String, ForeignKey("object.oid"), primary_key=True),
    Column("catid", String, primary_key=True),
    Column("oid_catalog", String, nullable=False),
    Column("dist", Double, nullable=False, comment="arcsec"),
    Column("class_catalog", String),
    Column("period", Double, comment="days"),
    Column("candid", BigInteger, info=_PROVENANCE, comment="alert whose position gave the match"),
    Column("catalog_version", String, info=_PROVENANCE),
    Column("catalog_created", DateTime(timezone=True), info=_PROVENANCE),
)

STEP = Table(
    "step",
    METADATA,
    Column("step_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", String, nullable=False),
    Column("comments", String, nullable=False),
    Column("date", DateTime, nullable=False, comment="UTC"),
)


class TableLayoutError(RuntimeError):
    """A table of the database lacks what alertbeam writes."""


def create_tables(engine: Engine, metadata: MetaData = METADATA) -> None:
    """Create the tables that are absent and add the provenance columns that are missing.

    Nothing that exists is changed or dropped. Several processes may do this at once: an advisory lock lets them in one
    by one.

    Parameters
    ----------
    engine
        Engine of the PostgreSQL server.
    metadata
        Tables wanted.

    Raises
    ------
    TableLayoutError
        If an existing table lacks a column that is not a provenance column.
    """
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CREATE_LOCK})
        inspector = inspect(connection)
        existing = [table for table in metadata.sorted_tables if inspector.has_table(table.name)]
        for table in existing:
            present = {column["name"] for column in inspector.get_columns(table.name)}
            missing = [column for column in table.columns if column.name not in present]
            foreign = [column.name for column in missing if not column.info.get("provenance")]
            if foreign:
                raise TableLayoutError(
                    f"The existing table {table.name} lacks the columns {', '.join(foreign)}, so it is not ALeRCE's: "
                    "name another database, or rename that table."
                )
            for column in missing:
                definition = CreateColumn(column).compile(dialect=engine.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN IF NOT EXISTS {definition}"))
        metadata.create_all(connection)
