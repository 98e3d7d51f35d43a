"""Small programs that use a backend in each way that Django's documentation shows.

They return what they saw, so that two backends can be compared; see `side_by_side`.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Count, F, Max
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from items import Item
from side_by_side import Program, describe, rolled_back, same_for_all

PROGRAMS: list[Program] = []


def program(function: Program) -> Program:
    PROGRAMS.append(function)
    return function


def insert(db: Any, *names: str) -> None:
    with db.cursor() as cursor:
        for name in names:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])


def names(db: Any) -> list[str]:
    with db.cursor() as cursor:
        cursor.execute("SELECT name FROM item ORDER BY id")
        return [name for (name,) in cursor.fetchall()]


def atomic(db: Any, **options: Any) -> Any:
    return transaction.atomic(using=db.alias, **options)


def fail() -> None:
    raise LookupError("of the callback")


def caught(error_class: type[BaseException], function: Callable[[], Any]) -> str:
    try:
        function()
    except error_class as error:
        return describe(error)
    return "nothing was raised"


# ##### Rows #####


@program
def values_of_each_type(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute(
            "SELECT 1, 'a', 1.50::numeric, NULL, true, '{\"a\": [1]}'::jsonb, '\\x00ff'::bytea,"
            " ARRAY[1, 2], '10.0.0.1'::inet, '2026-01-02 03:04+05'::timestamptz,"
            " '1 day 02:00'::interval, '1e3'::float8, %s::timestamptz, %s::uuid",
            [
                datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
                "12345678123456781234567812345678",
            ],
        )
        return [(type(value), str(value)) for value in cursor.fetchone()]


@program
def ways_to_fetch(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT n, n * n FROM generate_series(1, 20) n")
        found: list[Any] = [cursor.fetchone(), cursor.fetchmany(3), cursor.rowcount]
        found.append([column.name for column in cursor.description])
        found.append(list(cursor))
        found.append(cursor.fetchone())
        return found


@program
def what_a_cursor_tells(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('a'), ('b') RETURNING id")
        return [cursor.rowcount, cursor.statusmessage, cursor.fetchall(), cursor.closed]


@program
def many_statements_at_once(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO item (name) VALUES (%s)", [["a"], ["b"], ["c"]])
        return cursor.rowcount


@program
def many_statements_from_an_iterator(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO item (name) VALUES (%s)", iter([["a"], ["b"]]))


@program
def a_function_called(db: Any) -> Any:
    with db.cursor() as cursor:
        returned = cursor.callproc("upper", ["abc"])
        return returned, cursor.fetchall()


@program
def copy_in_and_out(db: Any) -> Any:
    with db.cursor() as cursor:
        with cursor.copy("COPY item (name) FROM STDIN") as copy:
            copy.write_row(["a"])
            copy.write_row(["b"])
        with cursor.copy("COPY item TO STDOUT") as copy:
            return list(copy.rows())


@program
def rows_streamed(db: Any) -> Any:
    with db.cursor() as cursor:
        return list(cursor.stream("SELECT generate_series(1, 5)"))


@program
def two_cursors_interleaved(db: Any) -> Any:
    with db.cursor() as one, db.cursor() as other:
        one.execute("SELECT generate_series(1, 3)")
        other.execute("SELECT generate_series(11, 13)")
        return [one.fetchone(), other.fetchone(), one.fetchone(), other.fetchall()]


@program
def a_cursor_without_with(db: Any) -> Any:
    cursor = db.cursor()
    cursor.execute("SELECT 1")
    row = cursor.fetchone()
    cursor.close()
    return row


@program
def server_side_cursors(db: Any) -> Any:
    insert(db, *"abcdefgh")
    items = Item.objects.using(db.alias).order_by("id")
    one, other = items.iterator(chunk_size=2), items.reverse().iterator(chunk_size=2)
    found = [next(one).name, next(other).name, next(one).name, next(other).name]
    with atomic(db):
        found += [item.name for item in one]
    return found + [item.name for item in other]


@program
def the_orm(db: Any) -> Any:
    items = Item.objects.using(db.alias)
    Item(name="a").save(using=db.alias)
    items.bulk_create([Item(name="b"), Item(name="c"), Item(name="d")])
    found: list[Any] = [items.count(), items.filter(name__gt="b").exists()]
    found.append(items.get_or_create(name="b")[1])
    found.append(items.update_or_create(name="e", defaults={"name": "f"})[1])
    found.append(items.filter(name="a").update(name=F("name")))
    found.append(items.filter(name__in=["c", "d"]).delete())
    found.append(items.aggregate(Max("id"), n=Count("*")))
    found.append(sorted(items.in_bulk([1, 2])))
    found.append([item.pk for item in items.raw("SELECT id FROM item ORDER BY id")])
    found.append(items.filter(name="a").explain().partition(" ")[0])
    return [*found, list(items.order_by("id").values_list("id", "name"))]


@program
def rows_locked_in_a_transaction(db: Any) -> Any:
    insert(db, "a")
    with atomic(db):
        return list(Item.objects.using(db.alias).select_for_update().values_list("name"))


@program
def rows_locked_outside_a_transaction(db: Any) -> Any:
    return list(Item.objects.using(db.alias).select_for_update())


# ##### Errors #####


@program
def an_integrity_error(db: Any) -> Any:
    insert(db, "a", "a")


@program
def a_data_error(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@program
def a_missing_table(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT * FROM no_such_table")


@program
def a_syntax_error(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELEKT 1")


@program
def too_few_parameters(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT %s, %s", [1])


@program
def a_statement_that_was_cancelled(db: Any) -> Any:
    with atomic(db), db.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 20")
        cursor.execute("SELECT pg_sleep(10)")


@program
def an_error_and_then_life_goes_on(db: Any) -> Any:
    found = [caught(IntegrityError, lambda: insert(db, "a", "a"))]
    with db.cursor() as cursor:
        found.append(caught(DatabaseError, lambda: cursor.execute("SELECT 1 / 0")))
        cursor.execute("SELECT 2")
        found.append(cursor.fetchone())
    return found


@program
def a_cursor_used_after_close(db: Any) -> Any:
    cursor = db.cursor()
    cursor.execute("SELECT 1")
    cursor.close()
    return [
        caught(DatabaseError, lambda: cursor.execute("SELECT 1")),
        caught(Exception, lambda: cursor.execute("SELECT 1")),
        caught(Exception, cursor.fetchone),
        cursor.closed,
    ]


@program
def rows_of_a_statement_that_has_none(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("TRUNCATE item")
        return cursor.fetchall()


@program
def an_error_of_the_users_own(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        raise LookupError("mine")


# ##### Transactions #####


@program
def a_committed_block(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        return names(db)


@program
def an_empty_block(db: Any) -> Any:
    with atomic(db), atomic(db), atomic(db, savepoint=False):
        return db.in_atomic_block, db.get_autocommit(), len(db.savepoint_ids)


@program
def an_empty_block_that_raises(db: Any) -> Any:
    with atomic(db), atomic(db):
        raise LookupError


@program
def nested_blocks_of_which_one_fails(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        with rolled_back(db):
            insert(db, "b")
            with atomic(db):
                insert(db, "c")
        with atomic(db):
            insert(db, "d")


@program
def a_nested_block_before_the_first_statement(db: Any) -> Any:
    with atomic(db):
        with atomic(db), atomic(db):
            insert(db, "a")
        with rolled_back(db), atomic(db):
            insert(db, "b")


@program
def nested_blocks_that_fail_before_the_first_statement(db: Any) -> Any:
    with atomic(db):
        with rolled_back(db):
            pass
        with pytest.raises(LookupError), atomic(db), atomic(db, savepoint=False):
            raise LookupError
        insert(db, "a")


@program
def a_failure_without_a_savepoint(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        with rolled_back(db, savepoint=False):
            insert(db, "b")
        flag = transaction.get_rollback(using=db.alias)
        return flag, caught(TransactionManagementError, lambda: insert(db, "c"))


@program
def a_statement_after_a_failed_one(db: Any) -> Any:
    with atomic(db):
        first = caught(IntegrityError, lambda: insert(db, "a", "a"))
        second = caught(DatabaseError, lambda: insert(db, "b"))
        return first, second


@program
def a_failed_statement_in_a_savepoint(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        with pytest.raises(IntegrityError), atomic(db):
            insert(db, "a")
        insert(db, "b")


@program
def a_constraint_that_fails_at_commit(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        with atomic(db):
            insert(db, "a")
            db.on_commit(lambda: pytest.fail("it was not committed"))
            with db.cursor() as cursor:
                cursor.execute("INSERT INTO deferred VALUES (1), (1)")
    finally:
        with db.cursor() as cursor:
            cursor.execute("DROP TABLE deferred")


@program
def constraints_checked_in_the_block(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        db.check_constraints()
        with db.constraint_checks_disabled():
            insert(db, "b")


@program
def a_durable_block_within_another(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        with atomic(db, durable=True):
            insert(db, "b")


@program
def a_rollback_that_was_asked_for(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        transaction.set_rollback(True, using=db.alias)
        return transaction.get_rollback(using=db.alias)


@program
def a_rollback_that_was_asked_for_and_taken_back(db: Any) -> Any:
    with atomic(db):
        transaction.set_rollback(True, using=db.alias)
        refused = caught(DatabaseError, lambda: insert(db, "a"))
        transaction.set_rollback(False, using=db.alias)
        insert(db, "b")
        return refused


@program
def what_is_forbidden_in_a_block(db: Any) -> Any:
    with atomic(db):
        return [
            caught(TransactionManagementError, db.commit),
            caught(TransactionManagementError, db.rollback),
            caught(TransactionManagementError, lambda: db.set_autocommit(False)),
        ]


@program
def what_is_forbidden_outside_a_block(db: Any) -> Any:
    return [
        caught(TransactionManagementError, db.get_rollback),
        caught(TransactionManagementError, lambda: db.set_rollback(True)),
        caught(TypeError, lambda: db.on_commit("not callable")),
        db.savepoint(),
    ]


@program
def savepoints_by_hand(db: Any) -> Any:
    with atomic(db):
        unused = db.savepoint()
        insert(db, "a")
        sid = db.savepoint()
        insert(db, "b")
        transaction.savepoint_rollback(sid, using=db.alias)
        insert(db, "c")
        transaction.savepoint_commit(sid, using=db.alias)
        transaction.savepoint_commit(unused, using=db.alias)


@program
def a_savepoint_rolled_back_before_the_first_statement(db: Any) -> Any:
    with atomic(db):
        sid = db.savepoint()
        inner = db.savepoint()
        transaction.savepoint_rollback(sid, using=db.alias)
        insert(db, "a")
        gone = caught(DatabaseError, lambda: db.savepoint_commit(inner))
        transaction.savepoint_rollback(sid, using=db.alias)
        insert(db, "b")
        return gone


@program
def a_savepoint_that_never_was(db: Any) -> Any:
    with atomic(db):
        db.savepoint_rollback("s1_x99")


@program
def savepoint_names_counted_anew(db: Any) -> Any:
    with atomic(db):
        db.savepoint()
        transaction.clean_savepoints(using=db.alias)
        insert(db, "a")
        db.savepoint()


@program
def a_transaction_in_plain_sql(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("BEGIN")
    insert(db, "a")
    with db.cursor() as cursor:
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN")
    insert(db, "b")
    with db.cursor() as cursor:
        cursor.execute("COMMIT")


@program
def a_setting_local_to_the_transaction(db: Any) -> Any:
    with atomic(db):
        with db.cursor() as cursor:
            cursor.execute("SET LOCAL work_mem = '77MB'")
        with db.cursor() as cursor:
            cursor.execute("SHOW work_mem")
            within = cursor.fetchone()
    with db.cursor() as cursor:
        cursor.execute("SELECT current_setting('work_mem') = %s", [within[0]])
        return within, cursor.fetchone()


@program
def a_cursor_open_before_the_block(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        with rolled_back(db):
            cursor.execute("INSERT INTO item (name) VALUES ('a')")
        cursor.execute("INSERT INTO item (name) VALUES ('b')")


@program
def a_block_as_a_decorator(db: Any) -> Any:
    def work(depth: int) -> int:
        insert(db, f"depth {depth}")
        return int(again(depth - 1)) if depth else len(db.savepoint_ids)

    again = transaction.atomic(using=db.alias)(work)
    return again(2)


@program
def closed_within_a_block(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        db.close()
        return db.in_atomic_block, db.needs_rollback, db.closed_in_transaction


@program
def closed_within_an_inner_block(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        with atomic(db):
            db.close()
    insert(db, "b")


# ##### on_commit() #####


@program
def callbacks_in_order(db: Any) -> Any:
    seen: list[Any] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: seen.append((what, db.in_atomic_block, db.get_autocommit()))

    db.on_commit(note("at once"))
    with atomic(db):
        db.on_commit(note("1"))
        insert(db, "a")
        with rolled_back(db):
            db.on_commit(note("rolled back"))
        with atomic(db):
            db.on_commit(note("2"))
        db.on_commit(note("3"), robust=True)
        seen.append("the block ends")
    return seen


@program
def callbacks_of_a_block_without_a_statement(db: Any) -> Any:
    seen: list[Any] = []
    with atomic(db):
        db.on_commit(lambda: seen.append("outer"))
        with rolled_back(db):
            db.on_commit(lambda: seen.append("rolled back"))
        with atomic(db):
            db.on_commit(lambda: seen.append("inner"))
    return seen


@program
def callbacks_that_use_the_database(db: Any) -> Any:
    seen: list[Any] = []

    def query() -> None:
        seen.append(names(db))

    def block() -> None:
        with atomic(db):
            insert(db, "from a callback")
            db.on_commit(lambda: seen.append("nested"))

    with atomic(db):
        insert(db, "a")
        for callback in (query, block, query):
            db.on_commit(callback)
    return seen


@program
def a_callback_that_raises(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        db.on_commit(lambda: insert(db, "b"))
        db.on_commit(fail)
        db.on_commit(lambda: insert(db, "never"))


@program
def a_robust_callback_that_raises(db: Any) -> Any:
    with atomic(db):
        insert(db, "a")
        db.on_commit(fail, robust=True)
        db.on_commit(lambda: insert(db, "a"), robust=True)
        db.on_commit(lambda: insert(db, "b"))


@program
def no_callback_after_rollback(db: Any) -> Any:
    seen: list[Any] = []
    with atomic(db):
        db.on_commit(lambda: seen.append("never"))
        transaction.set_rollback(True, using=db.alias)
    insert(db, "a")
    return seen


# ##### connection.queries and execute_wrapper() #####


@program
def queries_captured(db: Any) -> Any:
    with CaptureQueriesContext(db) as captured, atomic(db):
        insert(db, "a")
        with atomic(db):
            pass
    insert(db, "not captured")
    return [same_for_all(query["sql"]) for query in captured.captured_queries]


@program
def queries_captured_of_an_empty_block(db: Any) -> Any:
    with CaptureQueriesContext(db) as captured, atomic(db):
        pass
    return [query["sql"] for query in captured.captured_queries]


@program
def queries_seen_by_wrappers(db: Any) -> Any:
    seen: list[Any] = []

    def spy(name: str) -> Any:
        def wrapper(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
            assert context["connection"] is db
            context["cursor"].cursor  # noqa: B018 - there is one
            seen.append((name, same_for_all(str(sql)), params, many))
            return execute(sql, params, many, context)

        return wrapper

    with db.execute_wrapper(spy("outer")):
        with atomic(db), atomic(db):
            with db.execute_wrapper(spy("inner")):
                insert(db, "a")
            with db.cursor() as cursor:
                cursor.executemany("INSERT INTO item (name) VALUES (%s)", [["b"]])
        insert(db, "c")
    insert(db, "d")
    return seen


@program
def queries_blocked_by_a_wrapper(db: Any) -> Any:
    def blocker(*args: Any) -> Any:
        raise LookupError("no queries here")

    with atomic(db):
        with db.execute_wrapper(blocker):
            blocked = caught(LookupError, lambda: insert(db, "a"))
        insert(db, "b")
    return blocked


@program
def queries_changed_by_a_wrapper(db: Any) -> Any:
    def change(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        return execute(f"{sql} /* by a wrapper */", params, many, context)

    with db.execute_wrapper(change):
        insert(db, "a")


@program
def a_statement_composed_by_the_backend(db: Any) -> Any:
    value = datetime.date(2026, 1, 2)
    with db.cursor() as cursor:
        return [
            db.ops.compose_sql("SELECT %s, %s", [value, "it's"]),
            db.ops.last_executed_query(cursor, "SELECT %s", ["x"]),
        ]


# ##### Connections #####


@program
def a_temporary_connection(db: Any) -> Any:
    with db.temporary_connection() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchall()


@program
def a_temporary_connection_in_a_block(db: Any) -> Any:
    insert(db, "a")
    with atomic(db):
        insert(db, "b")
        with db.temporary_connection() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('c')")
    return db.in_atomic_block


@program
def a_temporary_connection_in_a_block_without_a_statement(db: Any) -> Any:
    with atomic(db):
        with db.temporary_connection() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('a')")
        insert(db, "b")


@program
def a_temporary_connection_keeps_the_mode(db: Any) -> Any:
    db.set_autocommit(False)
    with db.temporary_connection() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('a')")
    mode = db.get_autocommit()
    db.rollback()
    return mode


@program
def a_temporary_connection_is_closed_where_it_was_the_first(db: Any) -> Any:
    db.close()
    with db.temporary_connection() as cursor:
        cursor.execute("SELECT 1")
    return db.connection, db.run_on_commit


@program
def connected_by_hand(db: Any) -> Any:
    db.ensure_connection()
    first = db.connection is not None
    insert(db, "a")
    db.close()
    db.connect()
    insert(db, "b")
    db.close()
    return first, db.connection


@program
def a_copy_of_the_connection(db: Any) -> Any:
    other = db.copy()
    try:
        with atomic(db):
            insert(db, "a")
            return names(other), other.alias == db.alias, type(other) is type(db)
    finally:
        other.close()


@program
def what_is_known_of_the_server(db: Any) -> Any:
    db.__dict__.pop("pg_version", None)
    db.check_database_version_supported()
    return [
        db.pg_version,
        db.get_database_version(),
        db.timezone_name,
        str(db.timezone),
        db.vendor,
        db.display_name,
        db.features.supports_transactions,
    ]


# ##### In an event loop #####


async def caught_in_loop(function: Callable[[], Any]) -> str:
    return caught(SynchronousOnlyOperation, function)


@program
def a_block_in_an_event_loop_is_refused_before_its_body(db: Any) -> Any:
    """Its queries would go to other threads, so to no transaction at all."""
    reached = []

    def enter() -> None:
        with atomic(db):
            reached.append("body")

    return asyncio.run(caught_in_loop(enter)), reached


@program
def what_an_event_loop_may_not_call(db: Any) -> Any:
    calls: list[Callable[[], Any]] = [
        db.cursor,
        db.connect,
        db.ensure_connection,
        db.get_autocommit,
        lambda: db.set_autocommit(False),
        lambda: db.set_autocommit(True),
        lambda: db.on_commit(fail),
        db.commit,
        db.rollback,
        db.savepoint,
        db.clean_savepoints,
        db.close,
    ]
    return [asyncio.run(caught_in_loop(call)) for call in calls]


@program
def what_an_event_loop_may_call(db: Any) -> Any:
    """`close_old_connections()` has nothing to close there."""
    calls = [db.close_if_unusable_or_obsolete, lambda: repr(db)]
    return [asyncio.run(caught_in_loop(call)) for call in calls]
