"""D2, D3: transactions by hand, switched on by a call or by a setting."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest
from django.core import signals
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    close_old_connections,
    connections,
    transaction,
)
from helpers import backend_pid, census, installed, pool_of_one, run_in_thread
from items import Item
from receivers import receiving
from settings import MANUAL_OF, STOCK_OF
from side_by_side import Program, assert_same, describe, observe, rolled_back
from traffic import warm_up

from django_pg_real_pool._backend.wrapper import ConnectionReleaseMixin
from django_pg_real_pool._lease.facts import Transaction


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)
    warm_up(MANUAL_OF[alias])


PROGRAMS: list[Program] = []


def program(function: Program) -> Program:
    PROGRAMS.append(function)
    return function


def insert(db: Any, *names: str) -> None:
    with db.cursor() as cursor:
        for name in names:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])


def transaction_number(db: Any) -> int:
    with db.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()::text::bigint")
        return int(cursor.fetchone()[0])


@program
def commits_and_rollbacks(db: Any) -> Any:
    modes = [db.get_autocommit()]
    insert(db, "a")
    db.commit()
    modes.append(db.get_autocommit())
    insert(db, "b")
    db.rollback()
    insert(db, "c")
    db.commit()
    return [*modes, db.get_autocommit()]


@program
def what_is_not_committed_is_lost(db: Any) -> Any:
    insert(db, "a")
    db.commit()
    insert(db, "b")
    db.close()


@program
def one_transaction_through_many_cursors(db: Any) -> Any:
    first = transaction_number(db)
    insert(db, "a")
    list(Item.objects.using(db.alias).iterator(chunk_size=1))
    same = transaction_number(db) == first
    db.commit()
    return same, transaction_number(db) == first


@program
def a_failed_statement_fails_the_rest(db: Any) -> Any:
    insert(db, "a")
    errors = []
    for name in ("a", "b"):
        try:
            insert(db, name)
        except DatabaseError as error:
            errors.append(describe(error))
    db.rollback()
    insert(db, "c")
    db.commit()
    return errors


@program
def commit_and_rollback_of_nothing(db: Any) -> Any:
    db.commit()
    db.rollback()
    db.rollback()
    db.commit()


@program
def a_block_commits_nothing(db: Any) -> Any:
    with transaction.atomic(using=db.alias):
        insert(db, "a")
        state = db.in_atomic_block, db.commit_on_exit, len(db.savepoint_ids)
    insert(db, "b")
    db.rollback()
    with transaction.atomic(using=db.alias):
        insert(db, "c")
    db.commit()
    return state


@program
def a_block_before_the_first_statement(db: Any) -> Any:
    with rolled_back(db):
        pass
    with transaction.atomic(using=db.alias), transaction.atomic(using=db.alias):
        pass
    with pytest.raises(IntegrityError), transaction.atomic(using=db.alias):
        insert(db, "a", "a")
    insert(db, "b")
    db.commit()


@program
def blocks_within_a_block(db: Any) -> Any:
    insert(db, "a")
    with transaction.atomic(using=db.alias):
        insert(db, "b")
        with rolled_back(db):
            insert(db, "c")
    with rolled_back(db):
        insert(db, "d")
    db.commit()


@program
def a_block_without_a_savepoint(db: Any) -> Any:
    insert(db, "a")
    with rolled_back(db, savepoint=False):
        insert(db, "b")
    flag = db.needs_rollback
    db.rollback()
    insert(db, "c")
    db.commit()
    return flag


@program
def callbacks_wait_for_autocommit(db: Any) -> Any:
    seen: list[str] = []
    errors = []
    try:
        db.on_commit(lambda: seen.append("never"))
    except transaction.TransactionManagementError as error:
        errors.append(describe(error))
    with transaction.atomic(using=db.alias):
        insert(db, "a")
        db.on_commit(lambda: seen.append("called"))
    before = list(seen)
    db.commit()
    before += ["committed", *seen]
    db.set_autocommit(True)
    insert(db, "b")
    return errors, before, seen


@program
def savepoints_outside_a_block(db: Any) -> Any:
    sid = db.savepoint()
    insert(db, "a")
    transaction.savepoint_rollback(sid, using=db.alias)
    insert(db, "b")
    transaction.savepoint_commit(sid, using=db.alias)
    db.commit()


@program
def a_savepoint_of_a_transaction_without_a_statement(db: Any) -> Any:
    """It ends with its transaction."""
    errors = []
    for end in (db.commit, db.rollback):
        sid = db.savepoint()
        end()
        insert(db, end.__name__)
        try:
            transaction.savepoint_commit(sid, using=db.alias)
        except DatabaseError as error:
            errors.append(type(error).__name__)
        db.rollback()
    return errors


@program
def a_cursor_open_through_a_commit(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('a')")
        db.commit()
        cursor.execute("INSERT INTO item (name) VALUES ('b')")
        db.rollback()
        cursor.execute("INSERT INTO item (name) VALUES ('c')")
    db.commit()


@program
def a_server_side_cursor_ends_with_its_transaction(db: Any) -> Any:
    insert(db, "a", "b", "c")
    rows = Item.objects.using(db.alias).order_by("id").iterator(chunk_size=1)
    found = [next(rows).name, next(rows).name]
    db.commit()
    try:
        found += [row.name for row in rows]
    except DatabaseError as error:
        found.append(describe(error))
    rows.close()  # type: ignore[attr-defined]
    db.rollback()
    return found


@program
def autocommit_switched_on_in_a_transaction(db: Any) -> Any:
    insert(db, "a")
    try:
        db.set_autocommit(True)
    except DatabaseError as error:
        refused = describe(error)
    mode = db.get_autocommit()
    db.rollback()
    db.set_autocommit(True)
    insert(db, "b")
    return refused, mode


@program
def autocommit_switched_on_and_off(db: Any) -> Any:
    db.set_autocommit(True)
    insert(db, "a")
    db.set_autocommit(False)
    insert(db, "b")
    db.rollback()
    db.set_autocommit(False)
    insert(db, "c")
    db.commit()
    db.set_autocommit(True)
    with rolled_back(db):
        insert(db, "d")
    insert(db, "e")


@program
def a_temporary_connection(db: Any) -> Any:
    insert(db, "a")
    with db.temporary_connection() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('b')")
    db.commit()


@program
def a_schema_editor(db: Any) -> Any:
    with db.schema_editor() as editor:
        editor.execute("CREATE TABLE made_by_hand (n int)")
    found = ["made_by_hand" in db.introspection.table_names()]
    db.rollback()
    return [*found, "made_by_hand" in db.introspection.table_names()]


@program
def the_end_of_a_request(db: Any) -> Any:
    insert(db, "a")
    signals.request_finished.send(sender=None)
    found = [db.connection is None, db.get_autocommit()]
    insert(db, "b")
    db.close()
    return [*found, db.get_autocommit()]


@program
def is_usable_with_autocommit_on(db: Any) -> Any:
    db.set_autocommit(True)
    insert(db, "a")
    found = [db.is_usable()]
    insert(db, "b")
    with transaction.atomic(db.alias):
        found.append(db.is_usable())
        insert(db, "c")
    with rolled_back(db):
        found.append(db.is_usable())
        insert(db, "d")
    found.append(db.is_usable())
    insert(db, "e")
    db.close()
    return found


@program
def is_usable_before_the_first_statement_of_a_block(db: Any) -> Any:
    with rolled_back(db):
        found = [db.is_usable()]
        insert(db, "a")
    db.commit()
    with transaction.atomic(db.alias):
        with rolled_back(db):
            found.append(db.is_usable())
            insert(db, "b")
        insert(db, "c")
    db.commit()
    return found


@program
def is_usable_after_a_savepoint_by_hand(db: Any) -> Any:
    savepoint = db.savepoint()
    found = db.is_usable()
    insert(db, "a")
    db.savepoint_rollback(savepoint)
    insert(db, "b")
    db.commit()
    return found


@program
def a_receiver_queries_for_each_connection(db: Any) -> Any:
    def query(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    db.close()
    with receiving(db.alias, query):
        insert(db, "a")
        if not db.get_autocommit():
            db.commit()
        db.set_autocommit(True)
        insert(db, "b")
        pid = backend_pid(db.alias)
        if isinstance(db, ConnectionReleaseMixin):
            end_the_connection_used_last(pid)
        insert(db, "c")
        with transaction.atomic(db.alias):
            insert(db, "d")
        db.close()


def end_the_connection_used_last(pid: int) -> None:
    """Let the next one be one that has not heard the receivers."""
    with psycopg.connect(autocommit=True) as observer:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@pytest.mark.parametrize("run", PROGRAMS, ids=lambda function: function.__name__)
def test_autocommit_switched_off_is_as_stock(alias: str, run: Program) -> None:
    """D2: every result, error, query and committed row with `set_autocommit(False)`."""

    def switched_off(db: Any) -> Any:
        db.set_autocommit(False)
        return run(db)

    assert_same(observe(alias, switched_off), observe(STOCK_OF[alias], switched_off))
    assert census(alias).in_use == 0


@pytest.mark.parametrize("run", PROGRAMS, ids=lambda function: function.__name__)
def test_autocommit_off_in_settings_is_as_stock(alias: str, run: Program) -> None:
    """D3: the same programs with `AUTOCOMMIT: False`."""
    manual = MANUAL_OF[alias]
    assert_same(observe(manual, run), observe(f"stock_{manual}", run))
    assert census(manual).in_use == 0


# ##### Which connection, and how long #####


def test_the_mode_lasts_and_the_connection_does_not(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """D2: between the transactions the connection is in the pool, and the mode stays."""

    def visible() -> int:
        return int(observer.execute("SELECT count(*) FROM item").fetchone()[0])

    wrapper.set_autocommit(False)
    assert census(alias).in_use == 0
    for number in range(1, 4):
        insert(wrapper, f"{number}")
        assert census(alias).in_use == 1
        assert visible() == number - 1
        wrapper.commit()
        assert census(alias).in_use == 0
        assert visible() == number
        insert(wrapper, "undone")
        assert census(alias).in_use == 1
        wrapper.rollback()
        assert census(alias).in_use == 0
        assert wrapper.get_autocommit() is False
    assert visible() == 3
    wrapper.set_autocommit(True)
    insert(wrapper, "4")
    assert visible() == 4
    assert census(alias).in_use == 0


def test_the_setting_loses_nothing_and_holds_no_longer(alias: str, observer: Any) -> None:
    """D3: one connection from the first statement to COMMIT, none after it."""
    manual = MANUAL_OF[alias]
    db: Any = connections[manual]
    assert db.get_autocommit() is False
    assert census(manual).in_use == 0
    insert(db, "a")
    pid = backend_pid(manual)
    insert(db, "b")
    assert backend_pid(manual) == pid
    assert census(manual).in_use == 1
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)
    db.commit()
    assert census(manual).in_use == 0
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (2,)
    assert db.get_autocommit() is False


def test_the_mode_does_not_leak_to_another_thread(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """D2: the next to get this very connection has it in autocommit mode."""

    def elsewhere() -> Any:
        insert(connections[alias], "b")
        visible = observer.execute("SELECT count(*) FROM item").fetchone()
        return backend_pid(alias), connections[alias].get_autocommit(), visible

    with pool_of_one(alias):
        wrapper.set_autocommit(False)
        insert(wrapper, "a")
        pid = backend_pid(alias)
        wrapper.commit()
        assert run_in_thread(elsewhere) == (pid, True, (2,))
        assert wrapper.get_autocommit() is False
        insert(wrapper, "c")
        assert backend_pid(alias) == pid
        wrapper.rollback()
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (2,)


def test_two_modes_in_one_pool_do_not_mix(alias: str, observer: Any) -> None:
    """D3: wrappers of one pool, with and without the setting, each keep their own mode."""
    engine = type(connections[alias])

    def elsewhere(name: str) -> int:
        insert(connections[alias], name)
        assert observer.execute("SELECT 1 FROM item WHERE name = %s", [name]).fetchone()
        return backend_pid(alias)

    with pool_of_one(alias), installed(alias, engine, AUTOCOMMIT=False) as manual:
        insert(manual, "a")
        pid = backend_pid(alias)
        manual.commit()
        for number in range(3):
            assert run_in_thread(partial(elsewhere, f"at once {number}")) == pid
            insert(manual, "undone")
            manual.rollback()
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (4,)


@pytest.mark.parametrize("leased", [True, False], ids=["leased", "not leased"])
@pytest.mark.parametrize("max_age", [0, None], ids=["close at once", "keep"])
def test_the_mode_does_not_leak_into_the_next_request(
    alias: str, observer: Any, leased: bool, max_age: int | None
) -> None:
    """D2: close_old_connections() resets the mode, also when nothing is leased."""
    backend_pid(alias)  # the pool is there, so CONN_MAX_AGE is not refused
    with installed(alias, type(connections[alias]), CONN_MAX_AGE=max_age) as db:
        db.set_autocommit(False)
        insert(db, "a")
        db.commit()
        if leased:
            insert(db, "lost")
        assert census(alias).in_use == int(leased)
        close_old_connections()
        assert census(alias).in_use == 0
        assert db.get_autocommit() is True
        insert(db, "b")
        assert census(alias).in_use == 0
    assert observer.execute("SELECT name FROM item ORDER BY 1").fetchall() == [
        ("a",),
        ("b",),
    ]


def test_the_mode_ends_with_close(alias: str, wrapper: Any) -> None:
    """D2: close() ends it, before the first statement as well as after one."""
    for statement_first in (False, True):
        if statement_first:
            insert(wrapper, "lost")
        wrapper.set_autocommit(False)
        wrapper.close()
        assert wrapper.get_autocommit() is True
        wrapper.set_autocommit(False)
        insert(wrapper, "b")
        wrapper.close()
        assert wrapper.get_autocommit() is True
    assert census(alias).in_use == 0


def test_a_mode_set_while_a_cursor_is_open_applies_to_it(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """D2: switched with a lease out, the mode is on that connection there and then."""
    with wrapper.cursor() as cursor:
        wrapper.set_autocommit(False)
        cursor.execute("INSERT INTO item (name) VALUES ('a')")
    assert census(alias).in_use == 1
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)
    wrapper.rollback()
    assert census(alias).in_use == 0
    with wrapper.cursor() as cursor:
        wrapper.set_autocommit(True)
        cursor.execute("INSERT INTO item (name) VALUES ('b')")
        assert observer.execute("SELECT count(*) FROM item").fetchone() == (1,)
    assert census(alias).in_use == 0


def test_an_open_transaction_is_never_given_to_somebody_else(
    alias: str, observer: psycopg.Connection[Any]
) -> None:
    """D3: what a closed wrapper left uncommitted is rolled back before the next use."""
    manual = MANUAL_OF[alias]
    db: Any = connections[manual]
    with pool_of_one(manual):
        insert(db, "lost")
        pid = backend_pid(manual)
        db.close()
        assert backend_pid(manual) == pid
        with db.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM item")
            assert cursor.fetchone() == (0,)
        db.commit()
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)


def test_a_cursor_of_an_earlier_lease_begins_no_transaction(
    alias: str, wrapper: Any
) -> None:
    """R5, D2: it refuses, so the explicit connect goes on after a rollback()."""
    cursor = wrapper.cursor()
    wrapper.close()
    wrapper.set_autocommit(False)
    wrapper.ensure_connection()
    with pytest.raises(InterfaceError):
        cursor.execute("SELECT 1")
    assert wrapper._lease.transaction is Transaction.NONE
    wrapper.rollback()
    assert wrapper.connection is not None
    wrapper.close()
