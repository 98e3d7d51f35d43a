"""R7, S3, F7: who closes while a lease begins or ends, and what a stream makes wait."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import ProgrammingError, connections, transaction
from faults import extra_alias
from helpers import DEADLINE, backend_pid, census, installed, run_in_thread, shared
from leases import Stop
from receivers import receiving
from sessions import ask, pool_for_one
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._drivers.psycopg3 import Psycopg
from django_pg_real_pool._lease import transactions
from django_pg_real_pool._lease.facts import Debt, Pin
from django_pg_real_pool._lease.lease import Lease

TENANT = "SELECT coalesce(current_setting('app.tenant', true), '')"


def query(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def set_tenant_in_a_pin(db: Any) -> None:
    token = Pin()
    db._lease.pin(token)
    with db.cursor() as cursor:
        cursor.execute("SET app.tenant = 'red'")
    db._lease.unpin(token)


def in_a_thread(do: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


@contextmanager
def pausing(monkeypatch: pytest.MonkeyPatch, during: Callable[[], None]) -> Iterator[None]:
    """Run `during` in the midst of the next cleaning of a session."""
    real, todo = Psycopg.reset, [during]

    def reset(self: Any, physical: Any) -> bool:
        if todo:
            todo.pop()()
        return real(self, physical)

    with monkeypatch.context() as patching:
        patching.setattr(Psycopg, "reset", reset)
        yield
    assert not todo


# ##### close() #####


def test_close_gives_away_no_connection_that_another_thread_is_cleaning(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, R7: it found nothing to close, and then a thread that shares the wrapper began."""
    is_cleaning, is_closed = threading.Event(), threading.Event()
    real = Lease.close_unheld
    others: list[threading.Thread] = []

    def clean_slowly() -> None:
        is_cleaning.set()
        is_closed.wait(DEADLINE)

    with pool_for_one(alias) as name, shared(name) as db:
        query(db)

        def close_unheld(lease: Any, close: Any) -> None:
            if not others:
                others.append(in_a_thread(lambda: set_tenant_in_a_pin(db)))
                is_cleaning.wait(DEADLINE)
            real(lease, close)

        with pausing(monkeypatch, clean_slowly):
            monkeypatch.setattr(Lease, "close_unheld", close_unheld)
            closing = in_a_thread(db.close)
            is_cleaning.wait(DEADLINE)
            closing.join(0.3)
            assert not census(name).idle
            is_closed.set()
            closing.join(DEADLINE)
            others[0].join(DEADLINE)
        monkeypatch.undo()
        assert run_in_thread(lambda: ask(name, TENANT)) == ""


@pytest.mark.parametrize("how", ["close", "pin"])
def test_a_signal_handler_that_closes_while_the_session_is_cleaned(
    alias: str, how: str, monkeypatch: pytest.MonkeyPatch, observer: Any
) -> None:
    """R1, S3, F7: the pool gets it when it is clean, and the cleaning hits nobody else."""
    before = signal.signal(signal.SIGUSR1, lambda *_: connections.close_all())
    wrote: list[str] = []
    others: list[threading.Thread] = []
    is_in_block, may_go_on = threading.Event(), threading.Event()

    def other(name: str) -> None:
        with transaction.atomic(using=name):
            for each in ("one", "two"):
                with connections[name].cursor() as cursor:
                    cursor.execute("INSERT INTO item (name) VALUES (%s)", [each])
                wrote.append(each)
                is_in_block.set()
                may_go_on.wait(DEADLINE)
        connections[name].close()

    try:
        with pool_for_one(alias) as name:
            db: Any = connections[name]
            query(db)

            def interrupt() -> None:
                os.kill(os.getpid(), signal.SIGUSR1)
                others.append(in_a_thread(lambda: other(name)))
                is_in_block.wait(0.3)

            with pausing(monkeypatch, interrupt):
                if how == "close":
                    with db.cursor() as cursor:
                        cursor.execute("SET app.tenant = 'red'")
                    db.close()
                else:
                    with pin_connection(name), db.cursor() as cursor:
                        cursor.execute("SET app.tenant = 'red'")
            may_go_on.set()
            others[0].join(DEADLINE)
            assert wrote == ["one", "two"]
            assert run_in_thread(lambda: ask(name, TENANT)) == ""
    finally:
        signal.signal(signal.SIGUSR1, before)
    names = observer.execute("SELECT name FROM item ORDER BY id").fetchall()
    assert names == [("one",), ("two",)]


@pytest.mark.parametrize("is_in_block", [False, True])
def test_a_base_that_closes_by_itself_closes(alias: str, is_in_block: bool) -> None:
    """D6: by `super().close()`, before it connects anew, say; and the session is cleaned."""
    stock: Any = type(connections[STOCK_OF[alias]])

    class Base(stock):  # type: ignore[misc]
        def let_go(self) -> None:
            super().close()

    Base.__module__ = "a_users.base"
    with installed(alias, make_release_backend(Base)) as db:
        if is_in_block:
            with suppress(Exception), transaction.atomic(using=alias):
                query(db)
                db.let_go()
                assert db.connection is None
                assert db.closed_in_transaction
            db.close()
        else:
            with db.cursor() as cursor:
                cursor.execute("SET app.tenant = 'red'")
            db.let_go()
            assert db.connection is None
        assert run_in_thread(lambda: ask(alias, TENANT)) == ""
        query(db)
        assert db.connection is None


# ##### A stream, whose thread has psycopg's lock until the last row #####


@pytest.fixture(params=["native", "own"])
def streaming(request: pytest.FixtureRequest) -> Any:
    return connections[request.param]


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_portal_ends_while_rows_are_streamed(streaming: Any, how: str) -> None:
    """R3, S3: on the same thread; its end does not wait for the last row."""
    db, is_over = streaming, threading.Event()

    def stream() -> None:
        mine: Any = connections[db.alias]
        portal = mine.chunked_cursor()
        portal.execute("SELECT generate_series(1, 10000)")
        portal.fetchmany(2)
        cursor = mine.cursor()
        rows = cursor.stream("SELECT generate_series(1, 5)")
        next(rows)
        if how == "drop":
            del portal
            gc.collect()
            cursor.close()
            rows.close()
        mine.close()
        is_over.set()

    in_a_thread(stream)
    assert is_over.wait(DEADLINE)
    assert not run_in_thread(lambda: ask_all(db.alias, "SELECT name FROM pg_cursors"))


def ask_all(alias: str, sql: str) -> list[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        found = list(cursor.fetchall())
    connections[alias].close()
    return found


@pytest.mark.parametrize(
    ("alias", "what"),
    [
        *[("native", "portal"), ("own", "portal")],
        *[("dj", "health check"), ("own", "health check")],
    ],
)
def test_a_thread_that_streams_may_close_another_cursor(alias: str, what: str) -> None:
    """R7: though one that shares its wrapper waits for the stream to end."""
    is_streaming, is_asked = threading.Event(), threading.Event()
    settings: dict[str, Any] = {"CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": None}
    with (
        extra_alias(
            f"streams_{alias}", alias, **(settings if what == "health check" else {})
        ) as name,
        shared(name) as db,
    ):
        portal = None
        if what == "portal":
            portal = db.chunked_cursor()
            portal.execute("SELECT generate_series(1, 10000)")
            portal.fetchmany(2)

        def stream() -> None:
            other = db.cursor()
            other.execute("SELECT 1")
            cursor = db.cursor()
            rows = cursor.stream("SELECT generate_series(1, 5)")
            next(rows)
            if what == "health check":
                db.close_if_unusable_or_obsolete()
            is_streaming.set()
            is_asked.wait(0.5)
            other.close()
            with suppress(Exception):  # close() has ended it
                list(rows)
            cursor.close()

        def wait_for_it() -> None:
            is_streaming.wait(DEADLINE)
            with suppress(Exception):
                db.close() if what == "portal" else query(db)

        threads = [in_a_thread(stream), in_a_thread(wait_for_it)]
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        db.close()


# ##### What is read of another thread's #####


def test_is_usable_leaves_the_block_of_another_thread_alone(
    alias: str, monkeypatch: pytest.MonkeyPatch, observer: Any
) -> None:
    """F7: a statement of that block is not committed by itself."""
    is_checking, may_go_on = threading.Event(), threading.Event()
    made: Any = type(connections[alias])
    real = made._is_usable_once_pinned

    def slowly(self: Any) -> Any:
        is_checking.set()
        may_go_on.wait(DEADLINE)
        return real(self)

    with shared(alias) as db:
        monkeypatch.setattr(made, "_is_usable_once_pinned", slowly)
        with suppress(KeyError), transaction.atomic(using=alias):
            checking = in_a_thread(db.is_usable)
            is_checking.wait(DEADLINE)
            with db.cursor() as cursor:
                cursor.execute("INSERT INTO item (name) VALUES ('of the block')")
            may_go_on.set()
            checking.join(DEADLINE)
            raise KeyError
        db.close()
    assert not observer.execute("SELECT name FROM item").fetchall()


def test_what_one_thread_sets_is_no_set_up_of_another(alias: str) -> None:
    """S2: while a base's own `_cursor()` sends something on the shared wrapper."""
    stock: Any = type(connections[STOCK_OF[alias]])
    is_sending, may_go_on = threading.Event(), threading.Event()

    class Base(stock):  # type: ignore[misc]
        def _cursor(self, name: str | None = None) -> Any:
            cursor = super()._cursor(name)
            if threading.current_thread().name == "sender":
                is_sending.set()
                may_go_on.wait(DEADLINE)
            return cursor

    Base.__module__ = "a_users.base"
    with installed(alias, make_release_backend(Base)) as db:
        query(db)
        db.inc_thread_sharing()
        mine = db.cursor()
        sender = threading.Thread(target=lambda: db.cursor().close(), name="sender")
        sender.start()
        is_sending.wait(DEADLINE)
        setter = in_a_thread(lambda: mine.execute("SET app.tenant = 'red'"))
        setter.join(0.3)
        may_go_on.set()
        sender.join(DEADLINE)
        setter.join(DEADLINE)
        assert db._lease.debt is Debt.CLEANING
        mine.close()
        assert ask(alias, TENANT) == "red"
        db.dec_thread_sharing()
        db.close()


def test_a_base_may_lock_what_its_cursors_need() -> None:
    """D7: without a pool nothing of ours is held while the base's own `_cursor()` runs."""
    stock: Any = type(connections["stock_native"])
    lock = threading.RLock()
    has_lock, is_waiting = threading.Event(), threading.Event()

    class Base(stock):  # type: ignore[misc]
        def _cursor(self, name: str | None = None) -> Any:
            if not has_lock.is_set():
                return super()._cursor(name)
            is_waiting.set()
            with lock:
                return super()._cursor(name)

    Base.__module__ = "a_users.base"
    made = make_release_backend(Base)
    with installed("native", made, OPTIONS={"pool": False}) as db:
        query(db)
        db.inc_thread_sharing()

        def query_with_lock() -> None:
            with lock:
                has_lock.set()
                is_waiting.wait(DEADLINE)
                query(db)

        threads = [in_a_thread(query_with_lock)]
        has_lock.wait(DEADLINE)
        threads.append(in_a_thread(lambda: query(db)))
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        db.dec_thread_sharing()


# ##### By hand #####


def with_tenants(alias: str) -> Any:
    """Return an engine whose base sets, with each cursor, the tenant that the wrapper has."""
    stock: Any = type(connections[STOCK_OF[alias]])

    class Base(stock):  # type: ignore[misc]
        tenant = ""

        def _cursor(self, name: str | None = None) -> Any:
            cursor = super()._cursor(name)
            if self.tenant:
                with super()._cursor() as other:
                    other.execute(f"SET app.tenant = '{self.tenant}'")
            return cursor

    Base.__module__ = "a_users.base"
    return make_release_backend(Base)


def ask_by_hand(alias: str, how: str, *settings: str) -> Any:
    """Return the server process and settings, asked through the driver's connection."""
    mine: Any = connections[alias]

    def ask_driver() -> Any:
        cursor = mine.connection.cursor()
        columns = [f"coalesce(current_setting('{name}', true), '')" for name in settings]
        cursor.execute(f"SELECT {', '.join(['pg_backend_pid()', *columns])}")
        return cursor.fetchone()

    try:
        if how == "pin":
            with pin_connection(alias):
                return ask_driver()
        mine.ensure_connection()
        return ask_driver()
    finally:
        mine.close()


by_hand = pytest.mark.parametrize("how", ["pin", "connect"])


@by_hand
def test_what_a_base_has_set_is_not_there_for_what_is_sent_by_hand(
    alias: str, how: str
) -> None:
    """S3: the driver's connection makes no cursor of the base's, which would set its own."""
    with pool_for_one(alias) as name, installed(name, with_tenants(alias)) as db:
        db.tenant = "red"
        red = backend_pid(name)
        db.close()
        found = run_in_thread(lambda: ask_by_hand(name, how, "app.tenant"))
        assert found == (red, "")


@by_hand
def test_what_receivers_have_set_is_there_for_it(alias: str, how: str) -> None:
    """D4: and they hear of one connection once, though its session was cleaned."""

    def set_user(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET app.\"user\" = 'one'")

    with (
        pool_for_one(alias) as name,
        installed(name, with_tenants(alias)) as db,
        receiving(name, set_user) as heard,
    ):
        db.tenant = "red"
        red = backend_pid(name)
        db.close()
        heard.clear()
        found = run_in_thread(lambda: ask_by_hand(name, how, "app.tenant", "app.user"))
        assert found == (red, "", "one")
        assert len(heard) == 1


@by_hand
def test_the_policy_ignore_lets_it_be(alias: str, how: str) -> None:
    """S4: the session is as the pool has it, as with stock."""
    options: Any = {"RELEASE_OPTIONS": {"SESSION_STATE": "ignore"}}
    with (
        pool_for_one(alias, **options) as name,
        installed(name, with_tenants(alias)) as db,
    ):
        db.tenant = "red"
        red = backend_pid(name)
        db.close()
        found = run_in_thread(lambda: ask_by_hand(name, how, "app.tenant"))
        assert found == (red, "red")


# ##### An interruption #####


def test_an_interrupted_end_of_a_block_ends_its_lease(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: also before it has read which connection it ends the transaction of.

    As with stock, to switch autocommit on raises then.
    """
    db: Any = connections[alias]

    def interrupted(lease: Any) -> None:
        monkeypatch.undo()
        raise Stop

    with suppress(Stop, ProgrammingError), transaction.atomic(using=alias):
        query(db)
        monkeypatch.setattr(transactions, "_get_physical", interrupted)
    assert db.connection is None
    query(db)
    assert db.connection is None
