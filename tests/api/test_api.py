"""P1, P2, P5: what users call."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.db.backends.utils import CursorWrapper
from django.utils.connection import ConnectionDoesNotExist
from helpers import (
    backend_pid,
    census,
    forget_pool,
    installed,
    pool_of_one,
    run_in_thread,
)
from settings import STOCK_OF
from side_by_side import rolled_back
from traffic import warm_up

from django_pg_real_pool import (
    AutoConnectionReleaseCursor,
    ConnectionHeldError,
    ConnectionReleaseMixin,
    assert_released,
    pin_connection,
    pool_status,
)


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)


# ##### P1: pin_connection() #####


def test_a_pin_keeps_one_connection(alias: str, wrapper: Any) -> None:
    """P1: the same connection through queries, blocks and cursors; released at the end."""
    with pin_connection(alias) as pinned:
        assert pinned is wrapper
        assert census(alias).in_use == 1
        pid = wrapper.connection.info.backend_pid
        pids = [backend_pid(alias) for _ in range(3)]
        with transaction.atomic(using=alias), transaction.atomic(using=alias):
            pids.append(backend_pid(alias))
        with rolled_back(wrapper):
            pids.append(backend_pid(alias))
        with wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.append(cursor.fetchone()[0])
        wrapper.set_autocommit(False)
        pids.append(backend_pid(alias))
        wrapper.commit()
        pids.append(backend_pid(alias))
        wrapper.rollback()
        wrapper.set_autocommit(True)
        assert pids == [pid] * len(pids)
        assert census(alias).in_use == 1
    assert wrapper.connection is None
    assert census(alias).in_use == 0


def test_a_pin_keeps_the_session(alias: str, observer: psycopg.Connection[Any]) -> None:
    """P1: temporary tables, locks, LISTEN, the driver's own connection: what it is for."""
    with pin_connection(alias) as db:
        with db.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE pinned (n int) ON COMMIT PRESERVE ROWS")
            cursor.execute("SELECT pg_advisory_lock(77)")
            cursor.execute("LISTEN pinned")
        locked = observer.execute("SELECT pg_try_advisory_lock(77)").fetchone()
        observer.execute("NOTIFY pinned, 'hello'")
        raw = getattr(db.connection, "driver_connection", db.connection)
        assert next(raw.notifies()).payload == "hello"
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO pinned VALUES (1)")
            cursor.execute("SELECT pg_advisory_unlock(77)")
            assert cursor.fetchone() == (True,)
            cursor.execute("DROP TABLE pinned")
            cursor.execute("UNLISTEN *")
        assert locked == (False,)


def test_a_pin_is_the_first_thing_that_a_wrapper_does(
    alias: str, wrapper: Any, observer: psycopg.Connection[Any]
) -> None:
    """P1: it connects as a query does; what is written under it is committed."""
    wrapper.close()
    with pin_connection(alias) as db:
        assert db.get_autocommit() is True
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('a')")
        assert observer.execute("SELECT name FROM item").fetchall() == [("a",)]
    with installed(alias, type(wrapper), AUTOCOMMIT=False) as db, pin_connection(alias):
        assert db.get_autocommit() is False
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('b')")
        assert observer.execute("SELECT name FROM item").fetchall() == [("a",)]
        db.rollback()
    assert census(alias).in_use == 0


def test_pins_nest(alias: str, wrapper: Any) -> None:
    """P1: the outermost one counts, in whatever order cursors and blocks end."""
    pin = pin_connection(alias)
    with pin:
        pid = backend_pid(alias)
        with pin, pin_connection(alias), transaction.atomic(using=alias):
            assert backend_pid(alias) == pid
        assert census(alias).in_use == 1
        cursor = wrapper.cursor()
    assert census(alias).in_use == 1
    cursor.close()
    assert census(alias).in_use == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_pin_within_a_block(alias: str, wrapper: Any, depth: int) -> None:
    """P1: entered or left inside a transaction, it never ends the transaction."""
    with transaction.atomic(using=alias):
        with pin_connection(alias):
            pid = wrapper.connection.info.backend_pid
            assert backend_pid(alias) == pid
            with transaction.atomic(using=alias):
                assert backend_pid(alias) == pid
        for _ in range(depth):
            assert backend_pid(alias) == pid
        assert census(alias).in_use == 1
    assert census(alias).in_use == 0


def test_a_pin_in_a_block_without_a_statement(alias: str, wrapper: Any) -> None:
    """P1: left before any statement, nothing holds the connection any longer."""
    with transaction.atomic(using=alias):
        with pin_connection(alias):
            assert census(alias).in_use == 1
        assert census(alias).in_use == 0
        assert wrapper.in_atomic_block
    assert census(alias).in_use == 0


def test_close_ends_a_pin(alias: str, wrapper: Any) -> None:
    """P1: within it too; what comes next holds its connection as if there were no pin."""
    with pin_connection(alias), pin_connection(alias):
        wrapper.close()
        assert census(alias).in_use == 0
        backend_pid(alias)
        assert census(alias).in_use == 0
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            with pin_connection(alias):
                pass
            assert census(alias).in_use == 1
    assert census(alias).in_use == 0


def test_a_pin_ends_with_an_exception(alias: str) -> None:
    """P1: whatever is raised in it."""
    for error in (LookupError, KeyboardInterrupt):

        def work(error: type[BaseException] = error) -> None:
            with pin_connection(alias):
                backend_pid(alias)
                raise error

        with pytest.raises(error):
            work()
        assert census(alias).in_use == 0


def decorators(alias: str) -> dict[str, Any]:
    return {
        "by position": pin_connection(alias),
        "by name": pin_connection(using=alias),
    }


@pytest.mark.parametrize("how", ["by position", "by name"])
def test_a_pin_as_a_decorator(alias: str, wrapper: Any, how: str) -> None:
    """P1: each call is pinned, also when it calls itself; the function stays itself."""

    def work(depth: int) -> list[int]:
        """What it does."""
        found = [backend_pid(alias)]
        assert census(alias).in_use == 1
        return found + (pinned(depth - 1) if depth else [])

    pinned = decorators(alias)[how](work)
    assert pinned.__name__ == "work"
    assert inspect.getdoc(pinned) == "What it does."
    for _ in range(2):
        assert len(set(pinned(3))) == 1
        assert census(alias).in_use == 0


@pytest.mark.parametrize("bare", [True, False])
def test_a_pin_as_a_decorator_of_the_default_alias(alias: str, bare: bool) -> None:
    """P1: with and without parentheses, for "default"."""

    def work() -> tuple[int, int]:
        assert census("default").in_use == 1
        return backend_pid("default"), backend_pid("default")

    warm_up("default")
    first, second = pin_connection(work)() if bare else pin_connection()(work)()
    assert first == second
    assert census("default").in_use == 0
    with pin_connection() as db:
        assert db is connections["default"]


def in_two_threads_at_once(work: Callable[[int], None]) -> None:
    """Run `work(0)` and `work(1)`; raise the first error."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("form", ["decorator", "context manager"])
def test_threads_share_one_pin(alias: str, form: str) -> None:
    """P1: like atomic(), one object serves all threads; each leaves its own pin only."""
    shared = pin_connection(alias)
    entered, first_left = threading.Barrier(2), threading.Event()

    def inside(number: int) -> None:
        pid = connections[alias].connection.info.backend_pid
        entered.wait(10)
        if number == 0:  # it entered first, or last: it leaves first in any case
            return
        assert first_left.wait(10)
        for _ in range(5):
            assert connections[alias].connection is not None
            assert backend_pid(alias) == pid

    def work(number: int) -> None:
        try:
            if form == "decorator":
                shared(inside)(number)
            else:
                with shared:
                    inside(number)
            assert connections[alias].connection is None
        finally:
            if number == 0:
                first_left.set()

    for _ in range(4):
        entered.reset()
        first_left.clear()
        in_two_threads_at_once(work)
        assert census(alias).in_use == 0


def test_a_pin_that_can_not_be_had_pins_nothing(alias: str, wrapper: Any) -> None:
    """P1: Django's OperationalError from the `with`; the wrapper is usable afterwards."""
    impossible = {**wrapper.settings_dict, "NAME": "no_such_database"}
    with pool_of_one(alias):
        other = wrapper.copy()
        other.settings_dict.update(impossible)
        other.alias = f"impossible_{alias}"
        if "pool" in other.settings_dict["OPTIONS"]:
            options = other.settings_dict["OPTIONS"]
            pool = {**options["pool"], "min_size": 0, "timeout": 0.5}
            other.settings_dict["OPTIONS"] = {**options, "pool": pool}  # not the wrapper's
        connections["impossible"] = other
        try:
            with pytest.raises(OperationalError), pin_connection("impossible"):
                pytest.fail("it was entered")
            assert other.connection is None
            assert other._lease.holds.describe() == []
            assert_released("impossible")
        finally:
            other.close()
            other.close_pool()
            del connections["impossible"]


def test_a_pin_on_a_stock_backend_connects(alias: str) -> None:
    """P1: code that pins runs on any backend; there it only makes sure of a connection."""
    stock: Any = connections[STOCK_OF[alias]]
    stock.close()
    with pin_connection(STOCK_OF[alias]) as db:
        assert db is stock
        assert stock.connection is not None
        pid = stock.connection.info.backend_pid
        assert backend_pid(STOCK_OF[alias]) == pid
    assert stock.connection is not None

    pinned = pin_connection(STOCK_OF[alias])(backend_pid)
    assert pinned(STOCK_OF[alias]) == pid
    stock.close()


def test_a_pin_of_an_unknown_alias_is_refused(alias: str) -> None:
    """P1: by Django, with the name."""
    with pytest.raises(ConnectionDoesNotExist, match="no_such_alias"):
        pin_connection("no_such_alias").__enter__()


def test_a_pin_of_another_thread_is_refused(alias: str, wrapper: Any) -> None:
    """P1: a wrapper is its thread's alone; nothing is taken for the stranger."""

    def work() -> None:
        connections["foreign"] = wrapper
        try:
            with pytest.raises(DatabaseError, match="can only be used in that same thread"):
                pin_connection("foreign").__enter__()
        finally:
            del connections["foreign"]

    run_in_thread(work)
    assert wrapper.connection is None
    assert census(alias).in_use == 0


def test_a_pin_in_an_event_loop_is_refused(alias: str, wrapper: Any) -> None:
    """P1: the queries in it would run in other threads, so on other connections."""

    async def pin() -> None:
        with pin_connection(alias):
            pass

    backend_pid(alias)  # where this thread has used the wrapper before
    with pytest.raises(SynchronousOnlyOperation, match="from an async context"):
        asyncio.run(pin())
    assert wrapper.connection is None


# ##### P2: assert_released() #####


def test_nothing_is_said_of_a_thread_that_holds_nothing(alias: str, wrapper: Any) -> None:
    """P2: before the first use, between queries, in a block that ran nothing, after close."""
    wrapper.close()
    assert_released(alias)
    backend_pid(alias)
    assert_released(alias)
    assert_released()
    with transaction.atomic(using=alias):
        assert_released(alias)
    with rolled_back(wrapper):
        backend_pid(alias)
    assert_released(alias)
    wrapper.close()
    assert_released(alias)


def held(alias: str | None) -> str:
    with pytest.raises(ConnectionHeldError) as caught:
        assert_released(alias)
    return str(caught.value)


def test_each_hold_is_named(alias: str, wrapper: Any) -> None:
    """P2: open cursors, a transaction, pins, an explicit connection."""
    prefix = f"a connection is held for alias {alias!r} by "
    with wrapper.cursor():
        assert held(alias) == f"{prefix}open cursor"
        with wrapper.cursor():
            assert held(alias) == f"{prefix}open cursor, open cursor"
    with pin_connection(alias):
        assert held(alias) == f"{prefix}pin"
    wrapper.ensure_connection()
    assert held(alias) == f"{prefix}explicit connect"
    wrapper.close()
    with transaction.atomic(using=alias):
        with wrapper.cursor() as cursor:
            assert held(alias) == f"{prefix}open cursor"
            cursor.execute("SELECT 1")
            assert held(alias) == f"{prefix}open cursor, transaction"
        assert held(alias) == f"{prefix}transaction"
        with pin_connection(alias), wrapper.cursor():
            text = held(alias).removeprefix(prefix)
            assert sorted(text.split(", ")) == ["open cursor", "pin", "transaction"]
    assert_released(alias)


def test_the_error_is_an_interface_error_of_django(alias: str, wrapper: Any) -> None:
    """P2: code that handles database errors handles this one; nothing is disturbed."""
    with wrapper.cursor() as cursor:
        with pytest.raises(InterfaceError):
            assert_released(alias)
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_every_alias_is_asked_where_none_is_given(alias: str, wrapper: Any) -> None:
    """P2: all that this thread has used, each named once; a stock one is none of them."""
    backend_pid(STOCK_OF[alias])
    assert connections[STOCK_OF[alias]].connection is not None
    assert_released()
    with wrapper.cursor(), pin_connection("default"):
        text = held(None)
        assert f"alias {alias!r} by open cursor" in text
        assert "alias 'default' by pin" in text
        assert text.count("alias") == 2
        assert_released("native" if alias != "native" else "dj")
    assert_released()


def test_another_threads_lease_is_its_own_affair(alias: str, wrapper: Any) -> None:
    """P2: the calling thread is meant."""
    with wrapper.cursor():
        run_in_thread(lambda: assert_released())
        run_in_thread(lambda: assert_released(alias))
        held(alias)


def this_line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_where_a_hold_began_is_said_when_it_is_known(alias: str, wrapper: Any) -> None:
    """P2: for a transaction, a cursor and a pin, the line in the user's code."""
    options = {"TRACK_ORIGINS": True}
    with installed(alias, type(wrapper), RELEASE_OPTIONS=options) as db:
        name = "test_where_a_hold_began_is_said_when_it_is_known"
        place = rf"\(began at {re.escape(__file__)}:(\d+) in {name}\)"
        with transaction.atomic(using=alias):
            before = this_line()
            with db.cursor() as cursor:
                cursor.execute("SELECT 1")
            after = this_line()
            found = re.search(f"transaction {place}", held(alias))
            assert found is not None
            assert before < int(found[1]) < after
        with db.cursor():
            assert re.search(f"open cursor {place}", held(alias))
        with pin_connection(alias):
            assert re.search(f"pin {place}", held(alias))
        with db.cursor():
            assert "transaction" not in held(alias)
    with wrapper.cursor():
        assert "began at" not in held(alias)


def test_a_stock_alias_can_not_be_asked(alias: str) -> None:
    """P2: it never releases early, so neither answer would be true."""
    engine = connections[STOCK_OF[alias]].settings_dict["ENGINE"]
    with pytest.raises(ImproperlyConfigured) as caught:
        assert_released(STOCK_OF[alias])
    assert str(caught.value) == (
        f"assert_released() can't answer for the database alias {STOCK_OF[alias]!r}: its "
        f"ENGINE is {engine!r}, which does not release early."
    )
    with pytest.raises(ConnectionDoesNotExist):
        assert_released("no_such_alias")


# ##### P5: the names of the founding text #####


def test_the_mixin_and_the_cursor_are_what_they_say(alias: str, wrapper: Any) -> None:
    """P5: every engine has the mixin, every cursor of it the cursor's class."""
    stock: Any = connections[STOCK_OF[alias]]
    assert isinstance(wrapper, ConnectionReleaseMixin)
    assert not isinstance(stock, ConnectionReleaseMixin)
    cursor = wrapper.cursor()
    assert isinstance(cursor, AutoConnectionReleaseCursor)
    assert isinstance(cursor, CursorWrapper)
    assert census(alias).in_use == 1
    AutoConnectionReleaseCursor.close(cursor)
    assert census(alias).in_use == 0
    assert cursor.cursor.closed


def test_a_pool_that_was_closed_has_no_connections(alias: str, wrapper: Any) -> None:
    """P3: and so it takes none of those that the server has."""
    backend_pid(alias)
    forget_pool(alias)
    found = pool_status(alias).census
    assert not found.size
    assert not found.idle
    assert not found.in_use
