"""Statements, what the library must say of each, and what a real server does with it.

Each case has the text, the change that `changes_session()` must name (None: no change),
why, and what can be seen from inside a fresh session after it ran in autocommit:

- CHANGES: the session is another one than before;
- SAME: it is not (or the difference can't be seen with SQL);
- REFUSED: this server may refuse the text: an extension, a version, a mistake.
"""

from __future__ import annotations

from typing import NamedTuple

CHANGES, SAME, REFUSED = "changes", "same", "refused"

#: A role that the server of the tests has while they run.
ROLE = "real_pool_tenant"

SET, LOCK, TEMP, CONFIG = (
    "SET",
    "session-level advisory lock",
    "temporary object",
    "set_config()",
)
PREPARE, HELD, DO, VIEW = "PREPARE", "cursor WITH HOLD", "DO block", "UPDATE pg_settings"
UNCLEAR = "unclear statement with "


class Case(NamedTuple):
    """A statement, and what is to be said of it."""

    text: str
    change: str | None
    real: str
    why: str


_GROUPS: list[tuple[str | None, str, str, list[str]]] = [
    # ##### Settings #####
    (
        SET,
        CHANGES,
        "SET without LOCAL lasts until the session ends",
        [
            "SET app.tenant = '1'",
            "set app.tenant to '1'",
            "SeT\tapp.tenant\n=\n'1'",
            "SET SESSION app.tenant = '1'",
            "SET statement_timeout = 1000",
            "SET statement_timeout TO '1s'",
            "SET search_path TO pg_catalog",
            "SET search_path = 'tenant1','public'",
            'SET "search_path" = public, pg_catalog',
            "SET TIME ZONE 'Asia/Tokyo'",
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "SET NAMES 'LATIN1'",
            "SET SCHEMA 'pg_catalog'",
            f"SET ROLE {ROLE}",
            f"SET SESSION ROLE {ROLE}",
            f"SET SESSION AUTHORIZATION {ROLE}",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET XML OPTION DOCUMENT",
            "SET enable_seqscan = off;",
            "SET default_transaction_read_only = on",
        ],
    ),
    (
        SET,
        SAME,
        "SET, though nothing can be seen",
        [
            "SET SESSION AUTHORIZATION DEFAULT",
            "SET ROLE NONE",
            "SET search_path TO DEFAULT",
        ],
    ),
    (
        "setseed()",
        SAME,
        "it is setseed(), which LOCAL does not confine",
        [
            "SET SEED TO 0.5",
            "set seed = 0.5",
            "SET SESSION seed TO '0.5'",
            'SET "Seed" = 0.5',
            "SET LOCAL SEED TO 0.5",
            "SET/**/LOCAL/**/seed/**/=/**/0.5",
            "SET app.tenant = ''; SET LOCAL seed = 0.5",
            "DO $$ BEGIN SET LOCAL seed = 0.5; END $$",
            "SELECT set_config('seed', '0.5', true)",
            "SELECT set_config('SE'\n'ED', '0.5', true)",
            "SELECT set_config(lower(('SEED')::text), '0.5', true)",
            "SELECT set_config(E's\\x65ed', '0.5', true)",
        ],
    ),
    (
        SET,
        SAME,
        "another setting with that name",
        ["SET seed.x = ''", "SET session.seed = ''"],
    ),
    (None, SAME, "the same, LOCAL", ["SET LOCAL seed.x = ''", "SET LOCAL app.seed = ''"]),
    (
        SET,
        CHANGES,
        "a comment or another statement does not hide it",
        [
            "/* why */ SET app.tenant = '1'",
            "-- why\nSET app.tenant = '1'",
            "--\r\nSET app.tenant = '1'",
            "SET/**/app.tenant/**/=/**/'1'",
            "SET--\napp.tenant = '1'",
            "/* a /* nested */ comment */SET app.tenant = '1'",
            "/*/**/*/SET app.tenant = '1'",
            "/***/SET app.tenant = '1'",
            "SELECT 1; SET app.tenant = '1'",
            "SELECT 1;;;SET app.tenant = '1';SELECT 2",
            ";SET app.tenant = '1'",
            "BEGIN; SET app.tenant = '1'; COMMIT",
            "SET LOCAL app.tenant = '2'; SET app.tenant = '1'",
            "SELECT 1 /* ; */; SET app.tenant = '1'",
            "SELECT 1 AS \"a;b\"; SET app.tenant = '1'",
            "SELECT 'it''s'; SET app.tenant = '1'",
            "SELECT E'it\\'s'; SET app.tenant = '1'",
            "SELECT E'\\\\'; SET app.tenant = '1'",
            "SELECT e'\\'' ; SET app.tenant = '1' --'",
            "SELECT $$ it's $$; SET app.tenant = '1'",
            "SELECT $q$ $$ $q$; SET app.tenant = '1' -- $$",
            "SELECT 1 AS foo$a$; SET app.tenant = '1' -- $a$",
            "SELECT B'01'; SET app.tenant = '1'",
            "SELECT N'n'; SET app.tenant = '1'",
            "SELECT 'a'\n'b'; SET app.tenant = '1'",
            "SELECT E'a'\n'b\\''; SET app.tenant = '1' --'",
            "SELECT e'a' -- it's\n -- '\n\t'b\\''; SET app.tenant = '1' --'",
            "SELECT 'a\\b'; SET app.tenant = '1'",
            "SELECT B'01'\n'1'; SET app.tenant = '1'",
            "SELECT 1.5e5, .5e-1, 1.; SET app.tenant = '1'",
            "SELECT 1 -- '\n; SET app.tenant = '1'",
            "SELECT 2*/* ' */3; SET app.tenant = '1' -- '",
            "SELECT 1 AS \"it's\"; SET app.tenant = '1'",
            'SELECT 1 AS """"; SET app.tenant = \'1\' --"',
        ],
    ),
    (
        SET,
        SAME,
        "what a rollback undoes is not followed: held longer than need be",
        [
            "BEGIN; SET app.tenant = '1'; ROLLBACK",
        ],
    ),
    (
        SET,
        CHANGES,
        "the tag of a dollar quote has a case, and may have any letter",
        [
            "SELECT $A$ $a$ , $b$ $A$; SET app.tenant = '1' -- $b$",
            "SELECT $\u20ac$ ' $\u20ac$; SET app.tenant = '1'; SELECT $\u20ac$ ' $\u20ac$",
            "SELECT $\u00e9$ ' $\u00e9$; SET app.tenant = '1'; SELECT $\u00e9$ ' $\u00e9$",
            "SELECT $a1_$ ' $a1_$; SET app.tenant = '1'; SELECT $a1_$ ' $a1_$",
        ],
    ),
    (
        SET,
        CHANGES,
        "the second word is the name of a setting",
        [
            "SET transaction.x = '1'",
            "SET local.x = '1'",
            "SET local . x TO '1'",
            "SET constraints.x TO '1'",
            "SET local\u00a0y.x = '1'",
            "SET LOCAL/**/.x = '1'",
        ],
    ),
    (
        None,
        SAME,
        "it ends with the transaction, or with nothing",
        [
            "SET LOCAL app.tenant = '1'",
            "set local app.tenant = '1'",
            "SET /* c */ LOCAL -- c\n app.tenant = '1'",
            "SET LOCAL statement_timeout = 1000",
            f"SET LOCAL ROLE {ROLE}",
            f"SET LOCAL SESSION AUTHORIZATION {ROLE}",
            "SET LOCAL TIME ZONE 'Asia/Tokyo'",
            "BEGIN; SET LOCAL app.tenant = '1'; COMMIT",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL IMMEDIATE",
            "SET CONSTRAINTS ALL DEFERRED",
            "SHOW search_path",
            "SHOW ALL",
            "SELECT current_setting('search_path')",
            "SELECT * FROM pg_settings LIMIT 1",
        ],
    ),
    (
        "RESET",
        SAME,
        "RESET",
        [
            "RESET ALL",
            "RESET search_path",
            "reset role",
            "RESET SESSION AUTHORIZATION",
            "RESET TIME ZONE",
        ],
    ),
    (
        CONFIG,
        CHANGES,
        "set_config() that is not local",
        [
            "SELECT set_config('app.tenant', '1', false)",
            "SELECT SET_CONFIG('app.tenant', '1', FALSE)",
            "SELECT pg_catalog.set_config('app.tenant', '1', false)",
            "SELECT \"set_config\"('app.tenant', '1', false)",
            "SELECT \"pg_catalog\" . \"set_config\" ('app.tenant', '1', false)",
            "SELECT set_config/* ( */('app.tenant', '1', 'f')",
            "SELECT set_config -- (\n ('app.tenant', '1', 'no')",
            "SELECT set_config('app.tenant', '1', 1 = 2)",
            "SELECT set_config('app.tenant', '1', true AND false)",
            "SELECT set_config('app.tenant', '1', NOT true)",
            "SELECT set_config('app.tenant', '1', \"true\") FROM (VALUES (false)) AS v(\"true\")",
            "SELECT set_config('app.tenant', '1', t) FROM (VALUES (false)) AS v(t)",
            "SELECT set_config('app.tenant', '1', true), set_config('app.tenant', '2', false)",
            "SELECT set_config('app.tenant', (SELECT '1'), false)",
            "SELECT set_config('app.tenant', concat('1', ',', true), false)",
            "SELECT 1 FROM set_config('app.tenant', '1', false)",
            "WITH s AS (SELECT set_config('app.tenant', '1', false)) SELECT * FROM s",
            "SELECT CASE WHEN true THEN set_config('app.tenant', '1', false) END",
            "VALUES (set_config('app.tenant', '1', false))",
            "(SELECT set_config('app.tenant', '1', false))",
            "COPY (SELECT set_config('app.tenant', '1', false)) TO STDOUT",
            "EXPLAIN ANALYZE SELECT set_config('app.tenant', '1', false)",
            "INSERT INTO item (name) SELECT set_config('app.tenant', '1', false)",
            "CREATE TABLE made AS SELECT set_config('app.tenant', '1', false)",
            (
                "CREATE TABLE procedure AS SELECT * FROM "
                "ts_stat('SELECT to_tsvector(set_config(''app.tenant'', ''1'', false))')"
            ),
            "SELECT set_config('app.tenant', $$1$$, $$f$$)",
            "SELECT 5%set_config('app.tenant', '1', false)::int",
            "SELECT ts_stat($$SELECT to_tsvector(set_config('app.tenant', '1', false))$$)",
            "SELECT ts_stat('SELECT to_tsvector(set_config(''app.tenant'', ''1'', false))')",
            (
                "SELECT ts_stat('SELECT to_tsvector(set_con' -- it goes on\n"
                "'fig(''app.tenant'', ''1'', false))')"
            ),
            (
                "SELECT ts_stat(E'SELECT\\nto_tsvector(\\nset\\x5fc\\157n\\u0066ig(\\'app.tenant\\', "
                "\\'1\\', false))')"
            ),
        ],
    ),
    (
        CONFIG,
        SAME,
        "local, though it can't be told for sure",
        [
            "SELECT set_config('app.tenant', '1', 'yes')",
            "SELECT set_config('app.tenant', '1', true::bool)",
            "SELECT set_config(E'app.tenant', '1', E't')",
            "SELECT 'set_config(''a'', ''b'', false)'",
            "CREATE VIEW watcher AS SELECT set_config('app.tenant', '1', false)",
        ],
    ),
    (
        CONFIG,
        REFUSED,
        "the third argument can't be told",
        [
            "SELECT set_config('app.tenant', %s, %s)",
            "SELECT set_config(%(name)s, %(value)s, %(local)s)",
            "SELECT set_config('app.tenant', '1')",
            "SELECT set_config(is_local => false, setting_name => 'a', new_value => 'true')",
            "SELECT set_config('app.tenant', '1', is_local => true)",
            "SELECT query_to_xml('SELECT set_config(''a'', ''1'', false)', true, false, '')",
            "SELECT set_config(",
        ],
    ),
    (
        None,
        SAME,
        "set_config() that is local",
        [
            "SELECT set_config('app.tenant', '1', true)",
            "SELECT set_config('app.tenant', '1', TRUE)",
            "SELECT set_config('app.tenant', '1', 't')",
            "SELECT set_config('app.tenant', '1', 'true')",
            "SELECT set_config('app.tenant', '1', 'tr'\n'ue')",
            "SELECT set_config('app.tenant', 'a\\b', true)",
            "SELECT set_config('app.tenant', '1', /* c */ true -- c\n)",
            "SELECT set_config('app.tenant', concat('a', ',', 'b'), true)",
            "SELECT set_config('app.tenant', (ARRAY['a', 'b'])[1], true)",
        ],
    ),
    (
        VIEW,
        CHANGES,
        "the view's rule calls set_config()",
        [
            "UPDATE pg_settings SET setting = '1000' WHERE name = 'statement_timeout'",
            "update pg_catalog.\"pg_settings\" set setting = '1s' where name = 'statement_timeout'",
            "WITH u AS (SELECT 1) UPDATE pg_settings SET setting = '7' WHERE name = 'lock_timeout'",
        ],
    ),
    # ##### Locks, listeners, prepared statements, cursors #####
    (
        LOCK,
        CHANGES,
        "the lock is the session's",
        [
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_advisory_lock(1, 2)",
            "SELECT pg_advisory_lock_shared(1)",
            "SELECT pg_try_advisory_lock(1)",
            "SELECT pg_catalog.pg_try_advisory_lock_shared(1)",
            "SELECT PG_ADVISORY_LOCK ( 1 )",
            "SELECT 1 WHERE pg_try_advisory_lock(1)",
            "BEGIN; SELECT pg_advisory_lock(1); ROLLBACK",
            "SELECT pg_advisory_lock(id) FROM (VALUES (1), (2)) AS v(id)",
            (
                "UPDATE item SET name = name WHERE false OR pg_try_advisory_lock(1);"
                "SELECT pg_try_advisory_lock(2)"
            ),
        ],
    ),
    (
        LOCK,
        REFUSED,
        "a build without XML refuses it after the lock was taken; a number with a tail",
        [
            "SELECT query_to_xml('SELECT pg_advisory_lock(1)', true, false, '')",
            "SELECT 1 WHERE 1=1AND pg_try_advisory_lock(1)",
        ],
    ),
    (
        LOCK,
        SAME,
        "there is nothing to unlock",
        [
            "SELECT pg_advisory_unlock_all()",
            "SELECT pg_advisory_unlock(1)",
            "SELECT pg_advisory_unlock_shared(1)",
        ],
    ),
    (
        None,
        SAME,
        "the lock is the transaction's",
        [
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT pg_advisory_xact_lock_shared(1)",
            "SELECT pg_try_advisory_xact_lock(1)",
            "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
            "SELECT * FROM item FOR UPDATE",
            "BEGIN; LOCK TABLE item; COMMIT",
        ],
    ),
    (
        "LISTEN",
        CHANGES,
        "LISTEN",
        ["LISTEN news", 'listen "News"', "SELECT 1; LISTEN news"],
    ),
    ("UNLISTEN", SAME, "UNLISTEN", ["UNLISTEN news", "UNLISTEN *"]),
    (
        None,
        SAME,
        "NOTIFY is over at COMMIT",
        ["NOTIFY news", "SELECT pg_notify('news', 'x')"],
    ),
    (
        PREPARE,
        CHANGES,
        "a prepared statement is the session's",
        [
            "PREPARE p AS SELECT 1",
            "PREPARE p (int) AS SELECT $1",
            "PREPARE transaction AS SELECT 1",
            "PREPARE transaction (int) AS SELECT $1",
            'PREPARE "transaction" AS SELECT 1',
        ],
    ),
    (
        None,
        REFUSED,
        "two-phase commit is a transaction's end",
        [
            "PREPARE TRANSACTION 'a'",
            "COMMIT PREPARED 'a'",
            "ROLLBACK PREPARED 'a'",
        ],
    ),
    (
        PREPARE,
        SAME,
        "it is gone again, which is not followed",
        [
            "PREPARE p AS SELECT 1; EXECUTE p; DEALLOCATE p",
        ],
    ),
    ("DEALLOCATE", SAME, "DEALLOCATE", ["DEALLOCATE ALL", "DEALLOCATE PREPARE ALL"]),
    (None, REFUSED, "what it runs was prepared by a statement that is seen", ["EXECUTE p"]),
    (
        HELD,
        CHANGES,
        "the cursor outlives its transaction",
        [
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "declare c binary no scroll cursor with hold for select 1",
            "DECLARE c CURSOR WITH/**/HOLD FOR SELECT 1",
            "BEGIN; DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        ],
    ),
    (
        None,
        SAME,
        "the cursor ends with its transaction",
        [
            "BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; CLOSE c; COMMIT",
            "BEGIN; DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1; COMMIT",
            "BEGIN; DECLARE c CURSOR FOR SELECT 'with hold'; COMMIT",
            "CLOSE ALL",
        ],
    ),
    # ##### Temporary objects #####
    (
        TEMP,
        CHANGES,
        "a temporary object is the session's",
        [
            "CREATE TEMP TABLE t (id int)",
            "CREATE TEMPORARY TABLE t (id int)",
            "CREATE LOCAL TEMP TABLE t (id int)",
            "CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS t (id int)",
            "CREATE TEMP TABLE t AS SELECT 1 AS id",
            "CREATE TEMP TABLE t (id int) ON COMMIT DELETE ROWS",
            "CREATE TEMP TABLE t (id int) ON COMMIT PRESERVE ROWS",
            "CREATE TEMP SEQUENCE s",
            "CREATE TEMP VIEW v AS SELECT 1 AS x",
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1 AS x",
            "CREATE OR REPLACE LOCAL TEMPORARY VIEW v AS SELECT 1 AS x",
            "CREATE TEMP RECURSIVE VIEW v (x) AS SELECT 1",
            "CREATE/* c */TEMP-- c\nTABLE t (id int)",
            "BEGIN; CREATE TEMP TABLE t (id int); COMMIT",
            "CREATE TEMP TABLE t AS SELECT 'on commit drop' AS x",
            'CREATE TEMP TABLE "on commit drop" (id int)',
            "SELECT 1 AS id INTO TEMP t",
            "SELECT 'a; b' AS id INTO TEMP t",
            "SELECT 1 AS id INTO TEMPORARY TABLE t",
            "SELECT 1 AS id INTO LOCAL TEMP TABLE t",
            "WITH a AS (SELECT 1 AS id) SELECT id INTO TEMP t FROM a",
            "(SELECT 1 AS id INTO TEMP t)",
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1 AS id",
            "CREATE TABLE pg_temp.t (id int)",
            'CREATE TABLE "pg_temp".t (id int)',
            "SELECT 1 AS id INTO pg_temp.t",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE TYPE pg_temp.pair AS (a int, b int)",
            "BEGIN; SET LOCAL search_path = pg_temp; CREATE TABLE t (id int); COMMIT",
            "BEGIN; SET LOCAL search_path = 'pg_temp'; CREATE TABLE t (id int); COMMIT",
            "BEGIN; SET LOCAL search_path = 'pg_te'\n'mp'; CREATE TABLE t (id int); COMMIT",
            (
                "BEGIN; SET LOCAL search_path = 'pg' -- a\r\n -- b\n '_te'\n\n'mp'; "
                "CREATE TABLE t (id int); COMMIT"
            ),
            "BEGIN; SET LOCAL search_path = E'pg_te\\mp'; CREATE TABLE t (id int); COMMIT",
            (
                "BEGIN; SELECT set_config('search_path', 'PG_TEMP', true); "
                "CREATE TABLE t (id int); COMMIT"
            ),
        ],
    ),
    (
        TEMP,
        SAME,
        "an ordinary table with an unlucky name, or no table at all",
        [
            "CREATE TABLE temp (id int)",
            "SELECT 'pg_temp'",
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pg_temp%'",
        ],
    ),
    (
        TEMP,
        REFUSED,
        "not a number with a tail: before PostgreSQL 15 it ran",
        [
            "SELECT 1INTO TEMP t",
            "SELECT 1.5e5INTO TEMP t",
        ],
    ),
    (
        None,
        SAME,
        "it is dropped at COMMIT",
        [
            "CREATE TEMP TABLE t (id int) ON COMMIT DROP",
            "BEGIN; CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1 AS id; COMMIT",
            "create temp table t (id int) on /* c */ commit -- c\n drop",
        ],
    ),
    (
        None,
        SAME,
        "no temporary object",
        [
            'CREATE TABLE "temp" (id int)',
            "SELECT 1 AS temp",
            "SELECT 'CREATE TEMP TABLE t (id int)'",
            "CREATE UNLOGGED TABLE t (id int)",
            "SELECT 1 AS id INTO t",
        ],
    ),
    (
        None,
        REFUSED,
        "a table of the user's",
        [
            "INSERT INTO temp (id) VALUES (1)",
            "MERGE INTO temp USING item ON true WHEN MATCHED THEN DELETE",
        ],
    ),
    # ##### Code within code #####
    (
        DO,
        CHANGES,
        "its body has one of the words",
        [
            "DO $$ BEGIN SET app.tenant = '1'; END $$",
            "do language plpgsql 'BEGIN SET app.tenant = ''1''; END'",
            "DO $$ BEGIN PERFORM set_config('app.tenant', '1', false); END $$",
            "DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$",
            "DO $$ BEGIN CREATE TEMP TABLE t (id int); END $$",
            "DO $do$ BEGIN EXECUTE 'S' || 'ET app.tenant = 1'; END $do$",
            "DO E'BEGIN\\x20S\\x45T app.tenant = 1; END'",
            "DO 'BEGIN S'\n'ET app.tenant = 1; END'",
            "DO $$ BEGIN SET LOCAL search_path = 'pg_te' -- '\n'mp'; CREATE TABLE t (id int); END $$",
            "DO LANGUAGE plpgsql 'BEGIN S' -- '\n'E' \n\n 'T app.tenant = 1; END'",
            "DO E'BEGIN S'\n'\\105T app.tenant = 1; END'",
            "/* c */ DO /* c */ $$ BEGIN EXECUTE format('%s app.tenant = 1', 'SET'); END $$",
        ],
    ),
    (
        DO,
        SAME,
        "its body has one of the words, for nothing",
        [
            "DO $$ BEGIN UPDATE item SET name = name; END $$",
            "DO $$ BEGIN EXECUTE 'SELECT 1'; END $$",
        ],
    ),
    (
        None,
        SAME,
        "its body has none of the words",
        [
            "DO $$ BEGIN PERFORM 1; END $$",
            "DO $$ BEGIN PERFORM regexp_replace('a b', '\\s+', ' '); END $$",
        ],
    ),
    (
        None,
        SAME,
        "the body runs at another time",
        [
            (
                "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS "
                "$$ SELECT set_config('app.tenant', '1', false) $$"
            ),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE plpgsql AS "
                "$$ BEGIN SET app.tenant = 1; CREATE TEMP TABLE t (id int); END $$"
            ),
            (
                "CREATE OR REPLACE PROCEDURE f() LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_advisory_lock(1); END $$"
            ),
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = public AS 'SELECT 1'",
            f"ALTER ROLE {ROLE} SET search_path = public",
        ],
    ),
    # ##### Others #####
    ("LOAD", SAME, "a library stays loaded", ["LOAD 'plpgsql'", "load '$libdir/plpgsql'"]),
    (
        "LOAD",
        SAME,
        "of several changes it is the one that no reset undoes",
        [
            "SET app.tenant = ''; LOAD 'plpgsql'",
            "DO $$ BEGIN SET app.tenant = ''; LOAD 'plpgsql'; END $$",
            "SELECT 'a\\b'; LOAD 'plpgsql'; RESET ALL",
        ],
    ),
    (
        "setseed()",
        CHANGES,
        "of several changes it is the one that no reset undoes",
        [
            "SELECT pg_advisory_lock(1), setseed(0.5)",
            "DO $$ BEGIN SET app.tenant = '1'; PERFORM setseed(0.5); END $$",
        ],
    ),
    (
        "DISCARD",
        SAME,
        "DISCARD",
        [
            "DISCARD ALL",
            "discard temp",
            "DISCARD PLANS",
            "DISCARD SEQUENCES",
        ],
    ),
    ("setseed()", SAME, "random() of the session", ["SELECT setseed(0.5)"]),
    (
        "replication slot",
        CHANGES,
        "a temporary slot is the session's",
        [
            "SELECT pg_create_physical_replication_slot('real_pool_slot', false, true)",
        ],
    ),
    (
        "replication slot",
        REFUSED,
        "it needs the server's permission",
        [
            "SELECT pg_create_logical_replication_slot('a', 'b', true)",
        ],
    ),
    ("backup", REFUSED, "a backup is the session's", ["SELECT pg_start_backup('a')"]),
    ("set_limit()", REFUSED, "pg_trgm: a setting", ["SELECT set_limit(0.5)"]),
    (
        "dblink_connect()",
        REFUSED,
        "dblink: a named connection",
        [
            "SELECT dblink_connect('other', 'dbname=postgres')",
            "SELECT public.dblink_connect_u('other', 'dbname=postgres')",
        ],
    ),
    (
        "dblink_disconnect()",
        REFUSED,
        "dblink: a named connection",
        ["SELECT dblink_disconnect('other')"],
    ),
    (
        "replication origin",
        REFUSED,
        "the origin is the session's",
        [
            "SELECT pg_replication_origin_session_setup('a')",
            "SELECT pg_replication_origin_session_reset()",
        ],
    ),
    # ##### What can't be taken apart #####
    (
        UNCLEAR + "'SET'",
        CHANGES,
        "a backslash before a quote, which may escape it",
        [
            "SELECT '\\'; SET app.tenant = '1' --'",
        ],
    ),
    (
        UNCLEAR + "'U&'",
        CHANGES,
        "the name of a function in Unicode escapes",
        [
            "SELECT U&\"\\0073et_config\"('app.tenant', '1', false)",
            "SELECT U&\"!0073et_config\" UESCAPE '!' ('app.tenant', '1', false)",
        ],
    ),
    (UNCLEAR + "'U&'", SAME, "a Unicode escape", ["SELECT U&'\\0041'"]),
    (
        UNCLEAR + "'SET'",
        SAME,
        "the same, where only the other reading has a SET, or no end",
        [
            "SELECT '\\', '; SET app.tenant = 1 --'",
            "SELECT 'it' LIKE 'a\\_' ESCAPE '\\'; SELECT ' SET '",
        ],
    ),
    (
        None,
        SAME,
        "a backslash in a plain string, which makes no difference",
        [
            "SELECT 'a\\b'; UPDATE item SET name = 'x'",
            "UPDATE item SET name = regexp_replace(name, '\\s+', ' ')",
            "UPDATE item SET name = 'x' WHERE name LIKE '%\\_%'",
            "UPDATE item SET name = 'x' WHERE name LIKE '50\\%' ESCAPE '\\'",
            "SELECT id AS hold FROM item WHERE name LIKE '%\\_%'",
            "SELECT '\\d; SET \\d', '\\\\'; UPDATE item SET name = name",
        ],
    ),
    (
        UNCLEAR + "'set'",
        REFUSED,
        "an unfinished quote, name or comment",
        [
            "SELECT 'it; set",
            'SELECT "it; set',
            "SELECT 1; SELECT 1 /* set",
            "/* /* */ set a.b = 1",
        ],
    ),
    (
        UNCLEAR + "'SET'",
        REFUSED,
        "a placeholder that looks like a quote",
        [
            "SELECT %(a')s; SET app.tenant = '1'; SELECT %(b')s",
            "SELECT %(/*)s; SET app.tenant = '1'; SELECT %(*/)s",
            "SELECT %(--)s; SET app.tenant = '1'",
            "SELECT '%(')s'; SET app.tenant = '1' --'",
        ],
    ),
    # ##### What is no change at all #####
    (
        None,
        SAME,
        "a query",
        [
            "SELECT 1",
            "",
            ";",
            "-- SET app.tenant = '1'",
            "/* ; SET app.tenant = '1' */",
            "SELECT 'SET app.tenant = 1'",
            "SELECT '; SET app.tenant = 1; --'",
            "SELECT $$; SET app.tenant = 1;$$",
            "SELECT $a$; SET $$ ; SET app.tenant = 1;$a$",
            "SELECT E'\\'; SET app.tenant = 1; --'",
            'SELECT 1 AS "; SET app.tenant = 1; --"',
            "SELECT 1 AS set",
            "SELECT 1 OFFSET 0",
            "SELECT pg_backend_pid()",
            "SELECT 'pg_advisory_lock'",
            "SELECT proname FROM pg_proc WHERE proname = 'set_config'",
            "SELECT 1 AS pg_advisory_lock",
            "TABLE item",
            "VALUES (1)",
            "EXPLAIN SELECT 1",
            "INSERT INTO item (name) VALUES ('a') ON CONFLICT (name) DO NOTHING",
            "INSERT INTO item (name) VALUES ('a') ON CONFLICT (name) DO UPDATE SET name = 'b'",
            "UPDATE item SET name = 'x' WHERE id = 1",
            'UPDATE "item" SET "name" = \'load; listen; discard; prepare\' WHERE false',
            "DELETE FROM item WHERE name = 'reset'",
            "TRUNCATE item RESTART IDENTITY",
            "ANALYZE item",
            "VACUUM item",
            "CHECKPOINT",
            "ALTER TABLE item ALTER COLUMN name SET DEFAULT 'x'",
            'ALTER TABLE item ADD COLUMN load int, ADD COLUMN "set" int',
            "COMMENT ON TABLE item IS 'do not listen'",
            "CREATE INDEX set_idx ON item (name)",
            "COPY item TO STDOUT",
            "COPY (SELECT 1) TO STDOUT",
            "BEGIN; COMMIT",
            "START TRANSACTION ISOLATION LEVEL SERIALIZABLE; COMMIT",
            "BEGIN; SAVEPOINT a; ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a; END",
            "BEGIN; SELECT 1; COMMIT AND CHAIN; ABORT",
            "SELECT 5 %(3)",
            "SELECT 1 AS \"temp\", 'a temporary; SET ''x'",
            "SELECT 1 -- temp; SET a.b = 1",
            "/* it's */ SELECT 1 /* ; SET */",
            "SELECT 'not '\n'; SET app.tenant = 1'",
            "SELECT 10 % 3",
        ],
    ),
    (
        None,
        SAME,
        "what Django sends",
        [
            'SELECT 1 AS "a" LIMIT 1',
            'UPDATE "item" SET "name" = \'x\' WHERE "item"."id" IN (1, 2)',
            'INSERT INTO "item" ("name") VALUES (\'a\') RETURNING "item"."id"',
            (
                'SELECT "item"."id", "item"."name" FROM "item" WHERE UPPER("item"."name"::text) '
                'LIKE UPPER(\'%set%\') ORDER BY "item"."id" ASC LIMIT 21 OFFSET 5'
            ),
            'SELECT "item"."id" FROM "item" WHERE "item"."id" = 1 FOR UPDATE NOWAIT',
            (
                "SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') "
                "THEN 'v' ELSE 't' END, obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c "
                "LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN "
                "('f', 'm', 'p', 'r', 'v') AND n.nspname NOT IN ('pg_catalog', 'pg_toast') AND "
                "pg_catalog.pg_table_is_visible(c.oid)"
            ),
            (
                "SELECT setval(pg_get_serial_sequence('\"item\"','id'), coalesce(max(\"id\"), 1), "
                'max("id") IS NOT null) FROM "item"'
            ),
            (
                'ALTER TABLE "item" ADD COLUMN "age" integer DEFAULT 0 NOT NULL; '
                'ALTER TABLE "item" ALTER COLUMN "age" DROP DEFAULT'
            ),
            (
                'ALTER TABLE "item" ADD CONSTRAINT "c" UNIQUE ("id", "name") DEFERRABLE INITIALLY '
                "DEFERRED"
            ),
            (
                'CREATE TABLE "made" ("id" bigint NOT NULL PRIMARY KEY GENERATED BY DEFAULT AS '
                'IDENTITY, "settings" jsonb NOT NULL)'
            ),
            'TRUNCATE "item" RESTART IDENTITY',
            "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED",
        ],
    ),
    (
        None,
        REFUSED,
        "what Django and its neighbours send, in a context of its own",
        [
            'SAVEPOINT "s140_x1"',
            'RELEASE SAVEPOINT "s140_x1"',
            'ROLLBACK TO SAVEPOINT "s140_x1"',
            'DECLARE "_django_curs_140_sync_1" NO SCROLL CURSOR FOR SELECT 1',
            'FETCH FORWARD 100 FROM "_django_curs_140_sync_1"',
            'CLOSE "_django_curs_140_sync_1"',
            'SET CONSTRAINTS "c" IMMEDIATE; SET CONSTRAINTS "c" DEFERRED',
            'CREATE EXTENSION IF NOT EXISTS "postgis"',
            "SELECT postgis_lib_version()",
            (
                'SELECT "place"."point"::bytea FROM "place" WHERE ST_DWithin("place"."point", '
                "ST_GeomFromEWKB('\\001'::bytea), 5)"
            ),
            "SELECT AddGeometryColumn('place', 'point', 4326, 'POINT', 2)",
            'SELECT "item"."id" FROM "item" WHERE "item"."name" = %s',
            'INSERT INTO "item" ("name") VALUES (%s), (%s) RETURNING "item"."id"',
            'CREATE SCHEMA IF NOT EXISTS "tenant1" AUTHORIZATION nobody_there',
        ],
    ),
    (
        HELD,
        CHANGES,
        "a server-side cursor in autocommit, declared by hand",
        [
            'DECLARE "_django_curs_140_sync_1" NO SCROLL CURSOR WITH HOLD FOR SELECT 1',
        ],
    ),
    (
        SET,
        CHANGES,
        "what Django and its neighbours send to set a session up",
        [
            "SET TIME ZONE 'UTC'",
            f'SET ROLE "{ROLE}"',
            "SET search_path = 'tenant1','public'",
            "SET search_path = 'tenant1'",
        ],
    ),
    (
        SET,
        REFUSED,
        "the same with a parameter",
        [
            "SET TIME ZONE %s",
            "SET ROLE %s",
            "SET search_path = %s",
        ],
    ),
]

CASES = [
    Case(text, change, real, why)
    for change, real, why, texts in _GROUPS
    for text in dict.fromkeys(texts)
]
