"""Tables, settings and the bulk upsert, on a real server."""

import datetime
import multiprocessing
import pickle
import threading
import time
import uuid
from contextlib import closing
from typing import ClassVar

import numpy as np
import psycopg2
import pyarrow as pa
import pytest
from database_fixtures import IMPATIENT, execute
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, make_url

from database import client, rules, upsert
from database.client import Database, DatabaseUnavailable, RetryPolicy
from database.embedded import start_embedded
from database.settings import DatabaseSettingsError, normalise_url, safe_url
from database.settings import database_url as url_of
from database.tables import METADATA, TableLayoutError, create_tables
from database.upsert import RefusedRow, TableCounts

UTC = datetime.UTC
NASTY_TEXTS = [
    "",
    " ",
    "NULL",
    "\\N",
    "\\.",
    "a\n\\.\nb",
    "a,b",
    '"',
    '""',
    'a"b,"c\nd',
    "\r",
    "a\r\nb",
    "\t",
    "\\",
    "c:\\new\\",
    "'; DROP TABLE object; --",
    "%s %(a)s",
    "δ=−30° 🌌",
    "e\u0301",
    "nan",
]
NASTY_FLOATS = [
    0.1,
    -0.0,
    1 / 3,
    float(np.nextafter(1.0, 2.0)),
    5e-324,
    1.7976931348623157e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2459000.5000000001,
    None,
    1e22,
]


def objects(*oids: str, lastmjd: float = 58000.0) -> pa.Table:
    """Provisional rows as the xmatch step writes them."""
    count = len(oids)
    return pa.table(
        {
            "oid": pa.array(oids, pa.string()),
            "ndet": pa.array([1] * count, pa.int32()),
            "firstmjd": [lastmjd] * count,
            "lastmjd": [lastmjd] * count,
            "deltajd": [0.0] * count,
            "step_id_corr": ["0.0.0"] * count,
        }
    )


def matches(*oids: str, dist: float = 0.5) -> pa.Table:
    count = len(oids)
    return pa.table(
        {
            "oid": pa.array(oids, pa.string()),
            "catid": ["allwise"] * count,
            "oid_catalog": [f"J{oid}" for oid in oids],
            "dist": [dist] * count,
        }
    )


def features(*oids: str, version: str = "1", known_points: int = 5) -> pa.Table:
    """Three features for each object."""
    count = 3 * len(oids)
    return pa.table(
        {
            "oid": np.repeat(np.array(oids, dtype=object), 3),
            "name": ["Amplitude", "PPE", "rb"] * len(oids),
            "fid": [1, 12, 0] * len(oids),
            "version": [version] * count,
            "value": pa.array([0.5, None, 1.0] * len(oids)),
            "known_points": [known_points] * count,
        }
    )


def plain(url: str) -> str:
    """URL as psycopg2 takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class TestRoundTrip:
    def test_texts(self, database, rows_of):
        comments = pa.array([*NASTY_TEXTS], pa.string())
        count = len(comments)
        table = pa.table(
            {
                "oid_catalog": [f"k{text}" for text in NASTY_TEXTS],
                "oid": [f"o{i}" for i in range(count)],
                "catid": comments,
                "dist": [0.0] * count,
                "class_catalog": pa.array([None if i % 3 == 0 else text for i, text in enumerate(NASTY_TEXTS)]),
            }
        )
        result = database.write({"object": objects(*table["oid"].to_pylist()), "xmatch": table})
        assert result.refused == ()
        names = ", ".join(table.column_names)
        stored = rows_of(f"SELECT {names} FROM xmatch")
        expected = [tuple(row.values()) for row in table.to_pylist()]
        assert sorted(stored, key=repr) == sorted(expected, key=repr)

    def test_floats_keep_every_bit(self, database, rows_of):
        table = pa.table(
            {
                "oid_catalog": [f"{i:02d}" for i in range(len(NASTY_FLOATS))],
                "ra": [value or 0.0 for value in NASTY_FLOATS],
                "dec": [0.0] * len(NASTY_FLOATS),
                "w1mpro": pa.array(NASTY_FLOATS, pa.float64()),
            }
        )
        database.write({"allwise": table})
        stored = [value for (value,) in rows_of("SELECT w1mpro FROM allwise ORDER BY oid_catalog")]
        assert [repr(value) for value in stored] == [repr(value) for value in NASTY_FLOATS]

    def test_single_precision_is_widened_not_rounded(self, database, rows_of):
        value = np.float32(0.1)
        table = pa.table({"oid_catalog": ["a"], "ra": pa.array([value]), "dec": pa.array([1], pa.int32())})
        database.write({"allwise": table})
        assert rows_of("SELECT ra, dec FROM allwise") == [(float(value), 1.0)]

    def test_integers_booleans_times_dictionaries_and_slices(self, database, rows_of):
        moment = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
        table = pa.table(
            {
                "oid": pa.array(["skipped", "a"]).dictionary_encode(),
                "catid": pa.array(["skipped", "allwise"], pa.large_string()),
                "oid_catalog": ["skipped", "J1"],
                "dist": [9.0, 0.25],
                "period": pa.nulls(2),
                "candid": [0, 2**63 - 1],
                "catalog_created": pa.array([moment, moment], pa.timestamp("ns", tz="America/Santiago")),
            }
        )
        truth = pa.table({"oid": ["a"], "corrected": [False], "stellar": pa.array([None], pa.bool_())})
        batch = table.slice(1).combine_chunks().to_batches()[0]
        database.write({"xmatch": batch, "object": truth})
        assert rows_of("SELECT candid, catalog_created, period, dist FROM xmatch") == [(2**63 - 1, moment, None, 0.25)]
        assert rows_of("SELECT corrected, stellar FROM object") == [(False, None)]

    def test_times_without_zone_are_utc_on_a_server_of_another_zone(self, database, rows_of):
        execute(database.url, f"ALTER DATABASE {make_url(database.url).database} SET timezone = 'America/Santiago'")
        database.close()
        naive = datetime.datetime(2024, 1, 1, 12)
        table = matches("a").append_column("catalog_created", pa.array([naive]))
        database.write({"object": objects("a"), "xmatch": table})
        assert rows_of("SELECT catalog_created AT TIME ZONE 'UTC' FROM xmatch") == [(naive,)]


class TestIdempotence:
    def test_repeat_changes_no_row_version(self, database, rows_of):
        oids = [f"ZTF{i}" for i in range(500)]
        sources = pa.table({"oid_catalog": [f"J{oid}" for oid in oids], "ra": [1.0] * 500, "dec": [float("nan")] * 500})
        batch = {"object": objects(*oids), "allwise": sources, "xmatch": matches(*oids)}
        version = "xmin::text, ctid::text"
        # Neither autovacuum nor statistics that lag behind have a say in what the files hold.
        sizes = "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        versions = (
            f"SELECT 'o', oid, {version} FROM object UNION ALL SELECT 'a', oid_catalog, {version} FROM allwise "
            f"UNION ALL SELECT 'x', oid, {version} FROM xmatch ORDER BY 1, 2"
        )

        first = database.write(batch)
        before, sizes_before = rows_of(versions), rows_of(sizes)
        second = database.write(batch)

        assert first.counts == dict.fromkeys(("object", "allwise", "xmatch"), TableCounts(inserted=500))
        assert second.counts == dict.fromkeys(("object", "allwise", "xmatch"), TableCounts(unchanged=500))
        assert len(before) == 1500
        assert rows_of(versions) == before
        assert sorted(rows_of(sizes)) == sorted(sizes_before)

    def test_counts_tell_inserted_updated_and_unchanged(self, database):
        database.write({"object": objects("a", "b")})
        result = database.write({"object": pa.concat_tables([objects("a"), objects("b", "c", "c", lastmjd=58001.0)])})
        assert result.counts == {"object": TableCounts(inserted=1, updated=1, unchanged=2)}

    def test_nothing_to_write(self, database):
        assert database.write({"object": objects()}).counts == {"object": TableCounts()}
        assert database.write({}).counts == {}


class TestNewKeys:
    """Rows with new keys are copied into the table itself, which must show in nothing but time."""

    def test_of_new_and_stored_ones_each_gets_its_due(self, database, rows_of):
        database.write({"object": objects("b", "d")})
        result = database.write({"object": objects("a", "b", "c", "d", "e", lastmjd=58001.0)})
        assert result.counts == {"object": TableCounts(inserted=3, updated=2)}
        assert rows_of("SELECT oid, lastmjd FROM object ORDER BY 1") == [(oid, 58001.0) for oid in "abcde"]

    @pytest.mark.parametrize("lastmjd", [57999.0, 58001.0])
    def test_keys_that_another_writer_stores_in_the_meantime(self, database, rows_of, monkeypatch, lastmjd):
        database.write({"object": objects("b", "c")})
        monkeypatch.setattr(upsert, "rows_with_new_keys", lambda cursor, rule, rows: np.ones(rows.num_rows, np.bool_))
        result = database.write({"object": objects("a", "b", "c", lastmjd=lastmjd)})
        assert result.counts == {"object": TableCounts(inserted=1, updated=2, unchanged=0)}
        expected = [("a", lastmjd, lastmjd), *((oid, min(58000.0, lastmjd), max(58000.0, lastmjd)) for oid in "bc")]
        assert rows_of("SELECT oid, firstmjd, lastmjd FROM object ORDER BY 1") == expected

    def test_a_new_version_beside_the_old_one(self, database, rows_of):
        database.write({"object": objects("a"), "feature_version": pa.table({"version": ["1", "2"]})})
        for version in ("1", "2"):
            assert database.write({"feature": features("a", version=version)}).counts["feature"].inserted == 3
        assert rows_of("SELECT version, count(*) FROM feature GROUP BY 1 ORDER BY 1") == [("1", 3), ("2", 3)]

    def test_columns_of_other_types_than_ours(self, database, rows_of):
        execute(database.url, "ALTER TABLE allwise ALTER w1mpro TYPE real, ALTER oid_catalog TYPE char(4)")
        table = pa.table({"oid_catalog": ["J1", "J2"], "ra": [1.0, 2.0], "dec": [3.0, 4.0], "w1mpro": [0.1, None]})
        assert database.write({"allwise": table}).counts == {"allwise": TableCounts(inserted=2)}
        assert rows_of("SELECT ra, w1mpro FROM allwise ORDER BY 1") == [(1.0, 0.1), (2.0, None)]

    def test_times_at_the_ends_of_the_range(self, database, rows_of):
        moments = [-(2**63) + 1, 2**62 + 1, -1, 0, None]
        table = pa.concat_tables([matches(f"o{i}") for i in range(5)])
        table = table.append_column("catalog_created", pa.array(moments, pa.timestamp("us", tz="UTC")))
        result = database.write({"object": objects(*table["oid"].to_pylist()), "xmatch": table})
        assert [(row.index, "out of range" in row.reason) for row in result.refused] == [(0, True)]
        stored = rows_of("SELECT (extract(epoch FROM catalog_created) * 1000000)::bigint FROM xmatch ORDER BY oid")
        assert stored == [(2**62 + 1,), (-1,), (0,), (None,)]


class TestForeignKeys:
    """They are checked for a batch at once where that is the same; a trigger for each row costs twice the rest."""

    BATCH: ClassVar = {"object": objects("a", "b"), "xmatch": matches("a", "b", "unknown")}

    def check(self, database):
        for counts in (TableCounts(inserted=2, refused=1), TableCounts(unchanged=2, refused=1)):
            result = database.write(self.BATCH)
            assert result.counts["xmatch"] == counts
            assert [(row.key, "foreign key" in row.reason) for row in result.refused] == [
                (("unknown", "allwise"), True)
            ]

    def test_as_the_owner_of_the_server(self, database):
        self.check(database)

    def test_as_an_ordinary_user(self, database):
        role = f"role_{uuid.uuid4().hex}"
        execute(database.url, f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            with Database(make_url(database.url).set(username=role).render_as_string(False), IMPATIENT) as other:
                self.check(other)
        finally:
            execute(database.url, f"DROP OWNED BY {role}; DROP ROLE {role}")

    def test_a_key_that_we_do_not_know_is_kept(self, database):
        execute(database.url, "ALTER TABLE xmatch ADD FOREIGN KEY (oid_catalog) REFERENCES allwise")
        result = database.write(self.BATCH)
        assert result.counts["xmatch"] == TableCounts(refused=3)
        assert all("foreign key" in row.reason for row in result.refused)

    def test_triggers_of_others_are_run(self, database, rows_of):
        execute(
            database.url,
            "CREATE TABLE log (oid varchar); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO log VALUES (new.oid); RETURN NULL; END'; "
            "CREATE TRIGGER note AFTER INSERT ON xmatch FOR EACH ROW EXECUTE FUNCTION note()",
        )
        self.check(database)
        assert rows_of("SELECT oid FROM log ORDER BY 1") == [("a",), ("b",)]

    def test_a_row_referred_to_stays_until_the_commit(self, database):
        rules_of = rules.known_rules()
        with closing(psycopg2.connect(plain(database.url))) as connection, connection.cursor() as cursor:
            database.write({"object": objects("a")})
            upsert.write_tables(
                connection, {rules_of["xmatch"]: upsert.checked_columns(rules_of["xmatch"], matches("a"))}
            )
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                execute(database.url, "SET lock_timeout = '100ms'; DELETE FROM object")
            cursor.execute("SHOW session_replication_role")
            assert cursor.fetchone() == ("origin",)


class TestWritersBesideEachOther:
    SHARED: ClassVar = {
        "step": pa.table(
            {
                "step_id": ["f"],
                "name": ["f"],
                "version": ["1"],
                "comments": [""],
                "date": [datetime.datetime(2024, 1, 1)],
            }
        ),
        "feature_version": pa.table({"version": ["1"], "step_id_feature": ["f"]}),
        "taxonomy": pa.table({"classifier_name": ["c"], "classifier_version": ["1"], "classes": [["A", "B"]]}),
        "allwise": pa.table({"oid_catalog": ["J1"], "ra": [1.0], "dec": [2.0]}),
    }

    def test_equal_rows_are_not_waited_for(self, database, rows_of):
        database.write(self.SHARED)
        before = rows_of("SELECT xmin::text, xmax::text FROM allwise UNION ALL SELECT xmin::text, xmax::text FROM step")
        by_rule = {
            rule: upsert.checked_columns(rule, rows)
            for name, rule in rules.known_rules().items()
            if (rows := (self.SHARED | {"object": objects("a"), "feature": features("a")}).get(name)) is not None
        }
        impatient = make_url(database.url).update_query_dict({"options": "-c lock_timeout=500"})
        with (
            closing(psycopg2.connect(plain(database.url))) as connection,
            Database(impatient.render_as_string(False), IMPATIENT) as other,
        ):
            # This transaction stays open, as that of a worker with a long batch.
            upsert.write_tables(connection, by_rule)
            result = other.write(self.SHARED | {"object": objects("b"), "feature": features("b")})
            connection.commit()
        assert result.counts["feature"].inserted == 3
        assert [result.counts[name] for name in self.SHARED] == [TableCounts(unchanged=1)] * 4
        assert rows_of("SELECT oid, count(*) FROM feature GROUP BY 1 ORDER BY 1") == [("a", 3), ("b", 3)]
        assert before == rows_of(
            "SELECT xmin::text, xmax::text FROM allwise UNION ALL SELECT xmin::text, xmax::text FROM step"
        )

    def test_two_processes_with_objects_of_their_own(self, database, rows_of):
        database.write({"step": self.SHARED["step"]})
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            refused = pool.starmap(_write_own, [(database, worker, self.SHARED) for worker in range(2)])
        assert refused == [0, 0]
        assert rows_of("SELECT count(DISTINCT oid), count(*) FROM feature") == [(400, 1200)]
        assert rows_of("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


class TestRefusedRows:
    def test_guilty_rows_are_found_and_the_others_written(self, database, rows_of):
        oids = [f"o{i:03d}" for i in range(300)]
        table = objects(*oids)
        ndet = [1] * 300
        ndet[17] = 2**31
        oids[123] = "nul\0inside"
        oids[200] = None
        oids[201] = "x" * 2_000_000
        table = table.set_column(0, "oid", pa.array(oids)).set_column(1, "ndet", pa.array(ndet, pa.int64()))

        result = database.write({"object": table})

        assert [row.index for row in result.refused] == [17, 123, 200, 201]
        assert result.counts == {"object": TableCounts(inserted=296, refused=4)}
        assert rows_of("SELECT count(*) FROM object") == [(296,)]
        too_large, nul, null, too_long = result.refused
        assert too_large.key == ("o017",)
        assert "out of range" in too_large.reason
        assert "ndet" in too_large.reason
        assert nul.key == ("nul\0inside",)
        assert "0x00" in nul.reason
        assert "null value" in null.reason
        assert "maximum" in too_long.reason
        assert all(row.table == "object" for row in result.refused)

    def test_rows_that_refer_to_a_refused_row_are_refused(self, database, rows_of):
        table = objects("good", "bad").set_column(1, "ndet", pa.array([1, 2**40]))
        result = database.write({"xmatch": matches("good", "bad", "unknown"), "object": table})
        assert [(row.table, row.key, row.index) for row in result.refused] == [
            ("object", ("bad",), 1),
            ("xmatch", ("bad", "allwise"), 1),
            ("xmatch", ("unknown", "allwise"), 2),
        ]
        assert "object" in result.refused[1].reason
        assert "out of range" in result.refused[1].reason
        assert "foreign key" in result.refused[2].reason
        assert rows_of("SELECT oid FROM xmatch") == [("good",)]
        assert result.counts["xmatch"] == TableCounts(inserted=1, refused=2)

    def test_every_row_guilty(self, database, rows_of):
        result = database.write({"xmatch": matches(*(f"o{i}" for i in range(40)))})
        assert [row.index for row in result.refused] == list(range(40))
        assert result.counts == {"xmatch": TableCounts(refused=40)}
        assert rows_of("SELECT count(*) FROM xmatch") == [(0,)]

    def test_duplicates_survive_halving(self, database, rows_of):
        table = pa.concat_tables([objects("a", lastmjd=float(58000 + i)) for i in range(10)])
        table = pa.concat_tables(
            [table.select(["oid", "firstmjd", "lastmjd", "step_id_corr"]), objects("\0")], promote_options="default"
        )
        result = database.write({"object": table})
        assert [row.index for row in result.refused] == [10]
        assert rows_of("SELECT oid, firstmjd, lastmjd, deltajd FROM object") == [("a", 58000.0, 58009.0, 9.0)]

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ({"objects": objects("a")}, "no table objects"),
            ({"object": pa.table({"oid": ["a"], "nidet": [1]})}, "no column nidet"),
            ({"object": pa.table({"oid": ["a"], "ndet": [1.5]})}, "object.ndet is INTEGER"),
            ({"object": pa.table({"oid": [1]})}, "object.oid is VARCHAR"),
            ({"xmatch": pa.table({"oid": ["a"], "catid": ["b"]})}, "lack the column oid_catalog, dist"),
        ],
    )
    def test_mistakes_of_the_caller_are_raised(self, database, tables, message):
        with pytest.raises(ValueError, match=message):
            database.write(tables)


class TestStep:
    def test_updated_with_its_date_only_when_it_changed(self, database, rows_of):
        days = [datetime.datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
        stored = []
        for day, version in zip(days, ("1.0", "1.0", "1.1"), strict=True):
            database.write_step("xmatch", "xmatch", version, date=day)
            stored += rows_of("SELECT version, extract(day FROM date)::int, comments FROM step")
        assert stored == [("1.0", 1, ""), ("1.0", 1, ""), ("1.1", 3, "")]

    def test_impossible_value(self, database):
        with pytest.raises(ValueError, match="0x00"):
            database.write_step("xmatch", "\0", "1")


class TestTables:
    OLD_ALERCE = """
        CREATE TABLE object (oid varchar PRIMARY KEY, ndethist int, ncovhist int, mjdstarthist float8,
            mjdendhist float8, corrected bool, stellar bool, ndet int, g_r_max float8, g_r_max_corr float8,
            g_r_mean float8, g_r_mean_corr float8, meanra float8, meandec float8, sigmara float8,
            sigmadec float8, deltajd float8,
            firstmjd float8, lastmjd float8, step_id_corr varchar, diffpos bool, reference_change bool, extra text);
        CREATE TABLE xmatch (oid varchar REFERENCES object, catid varchar, oid_catalog varchar NOT NULL,
            dist float8 NOT NULL, class_catalog varchar, period float8, PRIMARY KEY (oid, catid));
        INSERT INTO object (oid, step_id_corr, ndet, extra) VALUES ('old', '1.2.3', 17, 'kept');
        INSERT INTO xmatch VALUES ('old', 'allwise', 'J0', 0.9, 'QSO', 1.5);
    """

    def test_existing_tables_gain_the_provenance_columns_only(self, empty_url):
        execute(empty_url, self.OLD_ALERCE)
        columns = (
            "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name IN ('object', 'xmatch') ORDER BY 1, ordinal_position"
        )
        indices = "SELECT indexdef FROM pg_indexes WHERE tablename IN ('object', 'xmatch') ORDER BY 1"
        before, before_indices = execute(empty_url, columns), execute(empty_url, indices)
        with Database(empty_url, IMPATIENT) as database:
            database.create_tables()
            database.create_tables()
            added = [column for column in execute(empty_url, columns) if column not in before]
            assert added == [
                ("object", "known_points", "integer", "YES"),
                ("xmatch", "candid", "bigint", "YES"),
                ("xmatch", "catalog_version", "character varying", "YES"),
                ("xmatch", "catalog_created", "timestamp with time zone", "YES"),
            ]
            assert len(execute(empty_url, columns)) == len(before) + 4
            assert execute(empty_url, indices) == before_indices
            database.write({"object": objects("old", "new"), "xmatch": matches("old", "new", dist=0.1)})
        assert execute(empty_url, "SELECT oid, ndet, extra FROM object ORDER BY oid") == [
            ("new", 1, None),
            ("old", 17, "kept"),
        ]
        assert execute(empty_url, "SELECT oid, dist, class_catalog, period FROM xmatch ORDER BY oid") == [
            ("new", 0.1, None, None),
            ("old", 0.1, "QSO", 1.5),
        ]

    def test_tables_of_somebody_else_are_left_alone(self, empty_url):
        execute(empty_url, "CREATE TABLE object (id int)")
        with Database(empty_url, IMPATIENT) as database, pytest.raises(TableLayoutError, match="lacks the columns oid"):
            database.create_tables()
        assert execute(empty_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(1,)]

    def test_missing_tables_are_named(self, empty_url):
        with Database(empty_url, IMPATIENT) as database, pytest.raises(TableLayoutError, match="create_tables"):
            database.write({"object": objects("a")})

    def test_created_by_several_processes_at_once(self, empty_url):
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            pool.map(_create_tables, [empty_url] * 6)
        assert execute(empty_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [
            (len(METADATA.tables),)
        ]

    def test_layout(self, database, rows_of):
        keys = rows_of(
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype IN ('p', 'f') AND connamespace = 'public'::regnamespace ORDER BY 1, 2"
        )
        assert keys == [
            ("allwise", "PRIMARY KEY (oid_catalog)"),
            ("detection", "PRIMARY KEY (candid, oid)"),
            ("feature", "FOREIGN KEY (oid) REFERENCES object(oid)"),
            ("feature", "FOREIGN KEY (version) REFERENCES feature_version(version)"),
            ("feature", "PRIMARY KEY (oid, name, fid, version)"),
            ("feature_version", "FOREIGN KEY (step_id_feature) REFERENCES step(step_id)"),
            ("feature_version", "FOREIGN KEY (step_id_preprocess) REFERENCES step(step_id)"),
            ("feature_version", "PRIMARY KEY (version)"),
            ("light_curve", "PRIMARY KEY (oid)"),
            ("magstat", "PRIMARY KEY (oid, fid)"),
            ("non_detection", "PRIMARY KEY (oid, fid, mjd)"),
            ("object", "PRIMARY KEY (oid)"),
            ("probability", "FOREIGN KEY (oid) REFERENCES object(oid)"),
            ("probability", "PRIMARY KEY (oid, class_name, classifier_name, classifier_version)"),
            ("step", "PRIMARY KEY (step_id)"),
            ("taxonomy", "PRIMARY KEY (classifier_name, classifier_version)"),
            ("xmatch", "FOREIGN KEY (oid) REFERENCES object(oid)"),
            ("xmatch", "PRIMARY KEY (oid, catid)"),
        ]
        indices = {name for (name,) in rows_of("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
        assert {"ix_allwise_ra", "ix_allwise_dec", "ix_object_ndet", "ix_object_meandec"} <= indices

    def test_a_further_table_needs_no_more_than_its_description(self, empty_url, monkeypatch):
        metadata = MetaData()
        Table("note", metadata, Column("id", Integer, primary_key=True), Column("text", String))
        monkeypatch.setattr(rules, "METADATA", metadata)
        engine = create_engine(empty_url)
        create_tables(engine, metadata)
        engine.dispose()
        with Database(empty_url, IMPATIENT) as database:
            counts = [
                database.write({"note": pa.table({"id": [1, 2], "text": texts})}).counts["note"]
                for texts in (["a", None], ["a", "b"], ["a", None])
            ]
        assert counts == [
            TableCounts(inserted=2),
            TableCounts(updated=1, unchanged=1),
            TableCounts(updated=1, unchanged=1),
        ]


class TestFailuresOfTheServer:
    def test_unreachable_database_ends_in_a_clear_error_without_the_password(self):
        database = Database("postgresql://me:s3cret@127.0.0.1:1/ztf", IMPATIENT)
        with pytest.raises(DatabaseUnavailable, match=r"me:\*\*\*@127.0.0.1:1/ztf failed 2 times") as raised:
            database.write({"object": objects("a")})
        assert "s3cret" not in str(raised.value) + repr(database)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"database": "no_such_one"}, 'database "no_such_one" does not exist'),
            ({"username": "nobody_knows"}, 'role "nobody_knows" does not exist'),
        ],
    )
    def test_a_server_that_does_not_let_us_in_is_not_asked_again(self, empty_url, change, message):
        url = make_url(empty_url).set(**change).render_as_string(False)
        patient = RetryPolicy(attempts=2, first_delay_s=60, max_delay_s=60)
        with (
            Database(url, patient) as database,
            pytest.raises(DatabaseUnavailable, match=f"does not let us in: {message}. Check the user"),
        ):
            database.create_tables()

    def test_a_wrong_password(self, tmp_path):
        start_embedded(tmp_path).stop()
        access = tmp_path / "data" / "pg_hba.conf"
        access.write_text("local all me scram-sha-256\n" + access.read_text())
        with start_embedded(tmp_path) as server:
            execute(server.url, "CREATE ROLE me LOGIN PASSWORD 's3cret'")
            for password, message in (("wr0ng", "password authentication failed"), (None, "no password supplied")):
                url = make_url(server.url).set(username="me", password=password).render_as_string(False)
                patient = RetryPolicy(attempts=2, first_delay_s=60, max_delay_s=60)
                with Database(url, patient) as database, pytest.raises(DatabaseUnavailable, match=message) as raised:
                    database.write({"object": objects("a")})
                assert "wr0ng" not in str(raised.value)

    @pytest.mark.parametrize(
        "message",
        [
            'connection to server at "db", port 5432 failed: FATAL:  the database system is starting up',
            'connection to server at "db", port 5432 failed: Connection refused',
            'connection to server at "db", port 5432 failed: FATAL:  sorry, too many clients already',
            "server closed the connection unexpectedly",
        ],
    )
    def test_what_may_pass_is_waited_for(self, message):
        assert not client._lets_nobody_in(psycopg2.OperationalError(message))

    def test_goes_on_after_the_connection_was_cut(self, database, rows_of):
        database.write({"object": objects("a")})
        rows_of("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'alertbeam'")
        database.write({"object": objects("b")})
        assert rows_of("SELECT oid FROM object ORDER BY 1") == [("a",), ("b",)]

    def test_outlasts_a_restart_of_the_server(self, tmp_path):
        server = start_embedded(tmp_path)
        written, failures = [], []
        done = threading.Event()

        def write() -> None:
            with Database(server.url, RetryPolicy(attempts=30, first_delay_s=0.05, max_delay_s=0.2)) as database:
                database.create_tables()
                while not done.is_set():
                    oids = [f"{len(written)}-{i}" for i in range(200)]
                    try:
                        database.write({"object": objects(*oids), "xmatch": matches(*oids)})
                    except Exception as error:
                        failures.append(error)
                        return
                    written.append(len(oids))

        thread = threading.Thread(target=write)
        thread.start()
        _wait_until(lambda: len(written) > 3 or failures)
        server.stop()
        before = len(written)
        with start_embedded(tmp_path) as server:
            _wait_until(lambda: len(written) > before + 3 or failures)
            done.set()
            thread.join(20)
            assert failures == []
            counts = "SELECT (SELECT count(*) FROM object), (SELECT count(*) FROM xmatch)"
            assert execute(server.url, counts) == [(sum(written), sum(written))]

    def test_a_deadlock_with_another_program_is_outlasted(self, database, rows_of):
        database.write({"object": objects("a", "b")})
        other = psycopg2.connect(plain(database.url))
        other_error = []
        with other.cursor() as cursor:
            cursor.execute("SET deadlock_timeout = '10s'; UPDATE object SET ndet = 2 WHERE oid = 'b'")
            thread = threading.Thread(target=database.write, args=({"object": objects("a", "b", lastmjd=58001.0)},))
            thread.start()
            _wait_until(lambda: rows_of("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
            try:
                cursor.execute("UPDATE object SET ndet = 2 WHERE oid = 'a'")
                other.commit()
            except psycopg2.Error as error:
                other_error.append(error)
        other.close()
        thread.join(20)
        assert other_error == []
        assert rows_of("SELECT oid, ndet, lastmjd FROM object ORDER BY 1") == [("a", 1, 58001.0), ("b", 1, 58001.0)]

    def test_two_processes_writing_the_same_keys(self, database, rows_of):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            refused = pool.starmap(_write_shuffled, [(database, seed) for seed in range(2)])
        assert refused == [0, 0]
        assert rows_of("SELECT count(*), min(firstmjd), max(firstmjd), min(lastmjd), max(lastmjd) FROM object") == [
            (500, 58000.0, 58000.0, 58019.0, 58019.0)
        ]
        assert rows_of("SELECT count(*), min(dist), max(dist) FROM xmatch") == [(500, 0.5, 0.5)]
        deadlocks = rows_of("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert deadlocks == [(0,)]

    def test_pickled_and_forked_copies_connect_anew(self, database, rows_of):
        database.write({"object": objects("a")})
        pickle.loads(pickle.dumps(database)).write({"object": objects("b")})
        child = multiprocessing.get_context("fork").Process(target=_write_object, args=(database, "c"))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        database.write({"object": objects("d")})
        assert rows_of("SELECT string_agg(oid, '' ORDER BY oid) FROM object") == [("abcd",)]

    def test_delays_grow_and_stay_bounded(self):
        policy = RetryPolicy(attempts=5, first_delay_s=0.1, max_delay_s=1.0)
        for failures, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (9, 1.0), (5000, 1.0)):
            delays = [policy.delay_s(failures) for _ in range(50)]
            assert longest / 2 <= min(delays) < max(delays) <= longest
        with pytest.raises(ValueError, match="attempts"):
            RetryPolicy(attempts=0)


class TestSettings:
    FULL: ClassVar = {
        "DB_HOST": "db",
        "DB_USER": "me",
        "DB_PASSWORD": "p@s:s/w%#?ö",
        "DB_PORT": "6543",
        "DB_NAME": "ztf",
    }

    def test_password_of_special_characters(self):
        url = make_url(url_of(self.FULL))
        assert (url.username, url.password, url.host, url.port, url.database) == (
            "me",
            "p@s:s/w%#?ö",
            "db",
            6543,
            "ztf",
        )

    @pytest.mark.parametrize("engine", ["postgres", "postgresql", "postgresql+psycopg2", "PostgreSQL"])
    @pytest.mark.parametrize("variable", ["DB_ENGINE", "ENGINE"])
    def test_engines(self, engine, variable):
        assert url_of({**self.FULL, variable: engine}) == url_of(self.FULL)

    def test_port_is_optional(self):
        variables = {name: value for name, value in self.FULL.items() if name != "DB_PORT"}
        assert make_url(url_of(variables)).port == 5432

    @pytest.mark.parametrize("variables", [{}, {"PATH": "/bin"}, {"DB_HOST": "", "ENGINE": "postgres"}])
    def test_none_set(self, variables):
        assert url_of(variables) is None

    @pytest.mark.parametrize("missing", ["DB_HOST", "DB_USER", "DB_PASSWORD", "DB_NAME"])
    def test_missing_variables_are_named(self, missing):
        variables = {name: value for name, value in self.FULL.items() if name != missing}
        with pytest.raises(DatabaseSettingsError, match=f"set {missing} as well"):
            url_of(variables)

    @pytest.mark.parametrize(("name", "value"), [("DB_ENGINE", "mysql"), ("DB_PORT", "five"), ("DB_PORT", "70000")])
    def test_wrong_values(self, name, value):
        with pytest.raises(DatabaseSettingsError, match=f"{name} is '{value}'"):
            url_of({**self.FULL, name: value})

    def test_given_urls(self):
        assert normalise_url("postgres://me:a%40b@db/ztf") == "postgresql+psycopg2://me:a%40b@db/ztf"
        with pytest.raises(DatabaseSettingsError, match="only PostgreSQL"):
            normalise_url("sqlite:///x")
        with pytest.raises(DatabaseSettingsError) as raised:
            normalise_url("s3cret")
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize("url", ["postgresql://me:s3cret@db/ztf", "postgresql://db/ztf?password=s3cret", "s3cret"])
    def test_safe_url_hides_the_password(self, url):
        assert "s3cret" not in safe_url(url)


def _create_tables(url: str) -> None:
    with Database(url, IMPATIENT) as database:
        database.create_tables()


def _write_object(database: Database, oid: str) -> None:
    database.write({"object": objects(oid)})


def _write_shuffled(database: Database, seed: int) -> int:
    random = np.random.default_rng(seed)
    refused = 0
    for round_number in random.permutation(20):
        oids = [f"o{i}" for i in random.permutation(500)]
        batch = {
            "object": objects(*oids, lastmjd=58000.0 + round_number),
            "xmatch": matches(*oids, dist=0.5 + round_number),
        }
        refused += len(database.write(batch).refused)
    return refused


def _write_own(database: Database, worker: int, shared: dict[str, pa.Table]) -> int:
    refused = 0
    for batch in range(20):
        oids = [f"{worker}-{batch}-{i}" for i in range(10)]
        refused += len(database.write(shared | {"object": objects(*oids), "feature": features(*oids)}).refused)
    return refused


def _wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_refused_rows_are_plain_values():
    row = RefusedRow("object", ("a",), 3, "why")
    assert pickle.loads(pickle.dumps(row)) == row
    assert {
        *("object", "allwise", "xmatch", "step", "probability", "taxonomy"),
        *("detection", "non_detection", "magstat", "feature", "feature_version"),
        "light_curve",
    } == set(METADATA.tables)
