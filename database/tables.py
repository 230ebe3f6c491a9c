"""Tables of ALeRCE's database that alertbeam writes, by ALeRCE's names, types, keys and indices.

A further table is a `Table` on `METADATA` and, where "replace what differs" is not its rule, one entry in
`database.rules`.
"""

from sqlalchemy import (
    ARRAY,
    DDL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    event,
    inspect,
    text,
)
from sqlalchemy.schema import CreateColumn

__all__ = [
    "ALLWISE",
    "DETECTION",
    "FEATURE",
    "FEATURE_VERSION",
    "LIGHT_CURVE",
    "MAGSTAT",
    "METADATA",
    "NON_DETECTION",
    "OBJECT",
    "PROBABILITY",
    "STEP",
    "TAXONOMY",
    "XMATCH",
    "TableLayoutError",
    "create_tables",
]

METADATA = MetaData()

# Columns that ALeRCE's tables lack; `create_tables` adds them to an existing table.
_PROVENANCE = {"provenance": True}
# The same light curve with more alerts counts more, also where these bring no further detection.
_POINTS = "detections of the object that were known, an alert's own one twice"

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
    Column("known_points", Integer, info=_PROVENANCE, comment=_POINTS),
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


PROBABILITY = Table(
    "probability",
    METADATA,
    Column("oid", String, ForeignKey("object.oid"), primary_key=True),
    Column("class_name", String, primary_key=True),
    Column("classifier_name", String, primary_key=True),
    Column("classifier_version", String, primary_key=True),
    Column("probability", Double, nullable=False),
    Column("ranking", Integer, nullable=False, comment="dense, 1 is the most probable class of a classifier"),
    Index("ix_probabilities_oid", "oid", postgresql_using="hash"),
    Index("ix_probabilities_probability", "probability"),
    Index("ix_probabilities_ranking", "ranking"),
    Index("ix_classification_rank1", "ranking", postgresql_where=text("ranking = 1")),
)

TAXONOMY = Table(
    "taxonomy",
    METADATA,
    Column("classifier_name", String, primary_key=True),
    Column("classifier_version", String, primary_key=True),
    Column("classes", ARRAY(String), nullable=False),
)


DETECTION = Table(
    "detection",
    METADATA,
    Column("candid", BigInteger, primary_key=True, autoincrement=False),
    Column("oid", String, primary_key=True),
    Column("mjd", Double, nullable=False),
    Column("fid", Integer, nullable=False),
    Column("pid", Double, nullable=False),
    Column("diffmaglim", Double),
    Column("isdiffpos", Integer, nullable=False),
    Column("nid", Integer),
    Column("ra", Double, nullable=False),
    Column("dec", Double, nullable=False),
    Column("magpsf", Double, nullable=False),
    Column("sigmapsf", Double, nullable=False),
    Column("magap", Double),
    Column("sigmagap", Double),
    Column("distnr", Double),
    Column("rb", Double),
    Column("rbversion", String),
    Column("drb", Double),
    Column("drbversion", String),
    Column("magapbig", Double),
    Column("sigmagapbig", Double),
    Column("rfid", Integer),
    Column("magpsf_corr", Double),
    Column("sigmapsf_corr", Double),
    Column("sigmapsf_corr_ext", Double),
    Column("corrected", Boolean, nullable=False),
    Column("dubious", Boolean, nullable=False),
    Column("parent_candid", BigInteger),
    Column("has_stamp", Boolean, nullable=False),
    Column("step_id_corr", String, nullable=False),
    Column("known_points", Integer, info=_PROVENANCE, comment=_POINTS),
    Index("ix_ndetection_oid", "oid", postgresql_using="hash"),
)

NON_DETECTION = Table(
    "non_detection",
    METADATA,
    Column("oid", String, primary_key=True),
    Column("fid", Integer, primary_key=True, autoincrement=False),
    Column("mjd", Double, primary_key=True),
    Column("diffmaglim", Double),
    Column("known_points", Integer, info=_PROVENANCE, comment=_POINTS),
    Index("ix_non_detection_oid", "oid", postgresql_using="hash"),
)

_MAGNITUDE_STATISTICS = ("mean", "median", "max", "min", "sigma", "last", "first")

MAGSTAT = Table(
    "magstat",
    METADATA,
    Column("oid", String, primary_key=True),
    Column("fid", Integer, primary_key=True, autoincrement=False),
    Column("stellar", Boolean, nullable=False),
    Column("corrected", Boolean, nullable=False),
    Column("ndet", Integer, nullable=False),
    Column("ndubious", Integer, nullable=False),
    Column("dmdt_first", Double),
    Column("dm_first", Double),
    Column("sigmadm_first", Double),
    Column("dt_first", Double),
    *(Column(f"mag{name}", Double) for name in _MAGNITUDE_STATISTICS),
    *(Column(f"mag{name}_corr", Double) for name in _MAGNITUDE_STATISTICS),
    Column("firstmjd", Double),
    Column("lastmjd", Double),
    Column("step_id_corr", String, nullable=False),
    Column("saturation_rate", Double),
    Column("known_points", Integer, info=_PROVENANCE, comment=_POINTS),
    Index("ix_magstats_dmdt_first", "dmdt_first"),
    Index("ix_magstats_firstmjd", "firstmjd"),
    Index("ix_magstats_lastmjd", "lastmjd"),
    Index("ix_magstats_magmean", "magmean"),
    Index("ix_magstats_magmin", "magmin"),
    Index("ix_magstats_magfirst", "magfirst"),
    Index("ix_magstats_ndet", "ndet"),
    Index("ix_magstats_maglast", "maglast"),
    Index("ix_magstats_oid", "oid", postgresql_using="hash"),
)

FEATURE_VERSION = Table(
    "feature_version",
    METADATA,
    Column("version", String, primary_key=True),
    Column("step_id_feature", String, ForeignKey("step.step_id")),
    Column("step_id_preprocess", String, ForeignKey("step.step_id")),
)

FEATURE = Table(
    "feature",
    METADATA,
    Column("oid", String, ForeignKey("object.oid"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("fid", Integer, primary_key=True, autoincrement=False, comment="0 no band, 1 g, 2 r, 12 both"),
    Column("version", String, ForeignKey("feature_version.version"), primary_key=True),
    Column("value", Double),
    Column("known_points", Integer, info=_PROVENANCE, comment=_POINTS),
    Index("ix_feature_oid_2", "oid", postgresql_using="hash"),
    # Every further detection of an object replaces its features: there is room for both beside each other, so that no
    # index changes.
    postgresql_with={"fillfactor": 50},
)

# Not one of ALeRCE's: all that the stream knows of an object, with which it goes on after a restart.
LIGHT_CURVE = Table(
    "light_curve",
    METADATA,
    Column("oid", String, primary_key=True),
    Column("rows", LargeBinary, nullable=False, comment="as alertbeam's module lightcurves.packed has them"),
    Column("known_alerts", Integer, nullable=False, comment="alerts of the object known when it was written"),
    Column("lastmjd", Double, comment="time of the newest of them"),
)
# The rows are compressed already.
event.listen(LIGHT_CURVE, "after_create", DDL("ALTER TABLE %(table)s ALTER COLUMN rows SET STORAGE EXTERNAL"))


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
