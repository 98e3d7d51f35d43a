"""R1, R7, F7: what comes between two steps of a lease, on its thread or on another.

On its own thread: a finaliser, or a signal handler, that closes another cursor.  On others:
the reaper, and a thread that shares the wrapper.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from faults import extra_alias
from helpers import (
    DEADLINE,
    backend_pid,
    census,
    forget_pool,
    installed,
    run_in_thread,
    shared,
    wait_until,
)
from interrupting import EVERY
from moments import breaks
from psycopg.types.string import TextLoader
from sessions import ask, pool_for_one
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._backend import cursor as of_cursors
from django_pg_real_pool._backend import lower, wrapper
from django_pg_real_pool._drivers.psycopg3 import Psycopg
from django_pg_real_pool._lease import (
    cursors,
    giving_back,
    keeping,
    lease,
    pins,
    setup,
    statements,
    transactions,
)
from django_pg_real_pool._lease.facts import Pin
from django_pg_real_pool._lease.lease import Lease
from django_pg_real_pool._pools import native, queue, real_pool
from django_pg_real_pool._process import reaper

MODULES = (
    *(lower, wrapper, of_cursors, giving_back, lease, setup, statements),
    *(cursors, keeping, pins, transactions),
    *(native, queue, real_pool),
)


TENANT = "SELECT coalesce(current_setting('app.tenant', true), '')"


# ##### A cursor that is closed at any moment, as a finaliser or a signal handler may #####


def query(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def pin(db: Any) -> None:
    with pin_connection(db.alias) as pinned:
        assert pinned.connection is not None
        query(db)


def connect(db: Any) -> None:
    db.ensure_connection()
    assert db.connection is not None
    db.close()


def block(db: Any) -> None:
    with transaction.atomic(using=db.alias):
        query(db)


def nested_blocks(db: Any) -> None:
    with transaction.atomic(using=db.alias):
        block(db)


def roll_back(db: Any) -> None:
    with transaction.atomic(using=db.alias):
        query(db)
        transaction.set_rollback(True, using=db.alias)


def block_under_a_cursor(db: Any) -> None:
    with db.cursor(), db.cursor():
        block(db)


def is_usable(db: Any) -> None:
    assert db.is_usable()


@pytest.mark.parametrize(
    "program",
    [query, pin, connect, block, nested_blocks, roll_back, block_under_a_cursor, is_usable],
)
def test_a_cursor_may_be_closed_at_any_moment(
    alias: str, program: Callable[[Any], None]
) -> None:
    """R1: the program ends as ever, and nothing is held then."""
    db: Any = connections[alias]
    query(db)
    cursors: list[Any] = []

    def open_one() -> None:
        cursors.append(db.cursor())
        cursors[0].execute("SELECT 1")

    def close_it() -> None:
        for cursor in cursors:
            cursor.close()
        cursors.clear()

    open_one()
    for where in breaks(partial(program, db), close_it, *MODULES, every=max(1, EVERY // 8)):
        close_it()
        assert db.connection is None, (where, db._lease)
        assert census(alias).in_use == 0, where
        assert db._lease.kept == 0, where
        assert db._lease.keepers == set(), where
        open_one()
    close_it()


# ##### The reaper, which gives back what nobody holds #####


def test_the_reaper_takes_no_connection_away_whose_mode_is_being_switched(
    alias: str, monkeypatch: pytest.MonkeyPatch, observer: Any
) -> None:
    """R7: else another query is in a transaction that nobody ends, and its row is lost."""
    real: Any = psycopg.Connection.autocommit
    me = threading.get_ident()
    others: list[Any] = []

    with extra_alias(f"switching_{alias}", alias, size=1) as name, ExitStack() as end:
        db: Any = connections[name]
        backend_pid(name)
        cursor = db.cursor()
        cursor.execute("SELECT 1")

        def insert() -> None:
            with connections[name].cursor() as other:
                others.append(other)
                is_out.set()
                may_go_on.wait(5)
                other.execute("INSERT INTO item (name) VALUES ('of another')")
            connections[name].close()

        is_out, may_go_on = threading.Event(), threading.Event()
        another = threading.Thread(target=insert)

        def switch(connection: Any, value: bool) -> None:
            if threading.get_ident() == me and not value and not another.ident:
                run_in_thread(cursor.close)
                run_in_thread(reaper.reap)
                another.start()
                is_out.wait(0.5)  # it gets the connection only if the reaper gave it back
            real.fset(connection, value)

        monkeypatch.setattr(psycopg.Connection, "autocommit", property(real.fget, switch))
        end.callback(monkeypatch.undo)
        with transaction.atomic(using=name):
            if is_out.is_set():
                may_go_on.set()
                another.join()
        may_go_on.set()
        another.join()
        assert len(others) == 1
        rows = observer.execute("SELECT name FROM item").fetchall()
        assert rows == [("of another",)]


def test_the_reaper_leaves_a_thread_alone_that_shares_its_wrapper_since(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: its owner has ended, but another thread goes on with it."""
    wrappers: list[Any] = []

    def begin() -> None:
        wrappers.append(connections[alias])
        wrappers[0].ensure_connection()

    monkeypatch.setattr(reaper, "reap", lambda: None)
    owner = threading.Thread(target=begin)
    owner.start()
    owner.join()
    (db,) = wrappers
    real = type(db).allow_thread_sharing.fget
    asked: list[bool] = []

    def share_meanwhile(wrapper: Any) -> bool:
        answer = real(wrapper)
        if not asked:
            asked.append(answer)
            db.inc_thread_sharing()
        return bool(answer)

    monkeypatch.setattr(type(db), "allow_thread_sharing", property(share_meanwhile))
    db._lease.reap()
    assert asked == [False]
    assert db.connection is not None
    db.close()


# ##### Threads that share a wrapper #####


def test_close_waits_for_a_thread_that_is_giving_the_connection_back(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7, S3: else it goes to the pool before it is clean, or twice."""
    at, go = threading.Event(), threading.Event()
    real = Psycopg.reset

    def reset(self: Any, physical: Any) -> bool:
        at.set()
        go.wait(5)
        return real(self, physical)

    with pool_for_one(alias) as name, shared(name) as db:
        monkeypatch.setattr(Psycopg, "reset", reset)

        def change() -> None:
            token = Pin()
            db._lease.pin(token)
            query(db)
            with db.cursor() as cursor:
                cursor.execute("SET app.tenant = 'red'")
            db._lease.unpin(token)

        changing = threading.Thread(target=change)
        changing.start()
        assert at.wait(5)
        closing = threading.Thread(target=db.close)
        closing.start()
        closing.join(0.3)
        assert census(name).idle in (0, None)
        go.set()
        changing.join()
        closing.join()
        monkeypatch.undo()
        assert run_in_thread(lambda: ask(name, TENANT)) == ""
        assert census(name).in_use == 0


def test_close_ends_no_session_that_another_thread_has_just_begun(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1, R1: else a cursor holds nothing, and what it sets is not seen."""
    at, go = threading.Event(), threading.Event()
    real = Lease.end_session

    def end_session(self: Any) -> None:
        if threading.current_thread().name == "closing":
            at.set()
            go.wait(0.5)
        real(self)

    monkeypatch.setattr(Lease, "end_session", end_session)
    with pool_for_one(alias) as name, shared(name) as db:
        closing = threading.Thread(target=db.close, name="closing")
        closing.start()
        assert at.wait(5)
        cursor = db.cursor()
        go.set()
        closing.join()
        cursor.execute("SET app.tenant = 'red'")
        cursor.close()
        assert db._lease.holds.describe() == ["session state"]
        db.close()
        assert db.connection is None
        assert run_in_thread(lambda: ask(name, TENANT)) == ""


def test_a_session_is_begun_by_one_of_the_threads(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: the other does not begin it anew, in the midst of a block."""
    at, go = threading.Event(), threading.Event()
    real = setup.reset_transaction_state

    def reset(wrapper: Any) -> None:
        if threading.current_thread().name == "second":
            at.set()
            go.wait(0.5)
        real(wrapper)

    with shared(alias) as db:
        db.close()
        monkeypatch.setattr(setup, "reset_transaction_state", reset)
        second = threading.Thread(target=lambda: query(db), name="second")
        second.start()
        assert at.wait(5)
        with transaction.atomic(using=alias):
            go.set()
            second.join()
            assert db.in_atomic_block
            query(db)
        db.close()


def test_a_thread_that_connects_takes_nothing_for_one_that_is_asked_to(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: a test runner has replaced a method, so a checkout goes through Django's."""
    at, go = threading.Event(), threading.Event()
    with shared(alias) as db:
        real = db.ensure_connection

        def ensure_connection() -> None:
            at.set()
            go.wait(0.5)
            real()

        db.close()
        monkeypatch.setattr(db, "ensure_connection", ensure_connection)
        querying = threading.Thread(target=lambda: query(db))
        querying.start()
        assert at.wait(5)
        db.connect()
        go.set()
        querying.join()
        db.close()
        monkeypatch.undo()
        wait_until(lambda: census(alias).in_use == 0, f"all is idle: {census(alias)}")


# ##### A statement that is under way #####


def test_a_transaction_is_not_over_while_its_statement_runs(
    alias: str, observer: Any
) -> None:
    """F7: the reaper, or a cursor's end, concludes nothing from a connection at work."""
    db: Any = connections[alias]
    query(db)
    for sql in ("BEGIN", "INSERT INTO item (name) VALUES ('first')"):
        with db.cursor() as cursor:
            cursor.execute(sql)
    other, cursor = db.cursor(), db.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    )

    def interfere() -> None:
        wait_until(lambda: observer.execute(sleeping, [pid]).fetchone() == (1,), "it runs")
        other.close()
        db._lease.reap()
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    interfering = threading.Thread(target=interfere)
    interfering.start()
    with pytest.raises(OperationalError):
        cursor.execute("SELECT pg_sleep(10)")
    cursor.close()
    interfering.join()
    with pytest.raises(OperationalError), db.cursor() as again:
        again.execute("INSERT INTO item (name) VALUES ('second')")
    db.close()
    assert observer.execute("SELECT name FROM item").fetchall() == []


def test_a_second_cursor_may_be_closed_while_one_streams(alias: str) -> None:
    """F7: in a transaction that was begun by hand, which goes on."""
    db: Any = connections[alias]
    query(db)
    with db.cursor() as cursor:
        cursor.execute("BEGIN")
    streaming, other = db.cursor(), db.cursor()
    rows = streaming.stream("SELECT generate_series(1, 3)")
    assert next(rows) == (1,)
    other.close()
    assert list(rows) == [(2,), (3,)]
    streaming.close()
    assert db._lease.holds.describe() == ["transaction"]
    with db.cursor() as cursor:
        cursor.execute("ROLLBACK")
    assert db.connection is None


# ##### Types that were registered, which all connections are to hear of #####


def test_a_connection_that_closes_meanwhile_keeps_no_type_from_the_others(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: a worker of the pool may close any; the schema editor ends as ever."""
    with extra_alias(f"typed_{alias}", alias) as name:
        db: Any = connections[name]
        with db.cursor():
            run_in_thread(lambda: backend_pid(name))
        real: Any = psycopg.Connection.info

        def info(connection: Any) -> Any:
            if connection is not mine and not connection.closed:
                connection._pool = None
                connection.close()
            return real.fget(connection)

        with db.schema_editor() as editor:
            editor.execute("SELECT 1")
            mine = db._lease.physical
            mine.adapters.register_loader(99999, TextLoader)
            monkeypatch.setattr(psycopg.Connection, "info", property(info))
        monkeypatch.undo()
        assert db.connection is None
        assert db._lease.own_pins == set()
        backend_pid(name)
        assert db.connection is None


# ##### Code of others, which may wait for other threads that share the wrapper #####


def in_time(do: Callable[[], object]) -> None:
    """Do it on a thread of its own, which is not to wait for ever."""
    doing = threading.Thread(target=do, daemon=True)
    doing.start()
    doing.join(DEADLINE)
    assert not doing.is_alive(), "it waits for ever"


@pytest.mark.parametrize("step", ["commit", "rollback", "is_usable"])
def test_a_thread_that_streams_may_open_a_cursor_meanwhile(alias: str, step: str) -> None:
    """R7: psycopg's stream() has the connection's own lock; nobody waits for it with ours."""
    is_streaming, has_asked = threading.Event(), threading.Event()

    def stream() -> None:
        with db.cursor() as cursor:
            rows = cursor.stream("SELECT generate_series(1, 3)")
            next(rows)
            is_streaming.set()
            has_asked.wait(0.3)
            db.cursor().close()
            assert len(list(rows)) == 2

    def ask() -> None:
        has_asked.set()
        getattr(db, step)()

    with shared(alias) as db:
        in_time(lambda: stream_and(stream, is_streaming, ask))
        db.close()


def stream_and(
    stream: Callable[[], None], is_streaming: threading.Event, ask: Callable[[], None]
) -> None:
    streaming = threading.Thread(target=stream, daemon=True)
    asking = threading.Thread(target=ask, daemon=True)
    streaming.start()
    assert is_streaming.wait(5)
    asking.start()
    streaming.join()
    asking.join()


@contextmanager
def shared_and_hooked(
    alias: str, method: str, hook: Callable[[Any], None], **settings: Any
) -> Iterator[Any]:
    """Share a wrapper whose base does something before a method."""

    def method_of_base(self: Any, *args: Any) -> Any:
        hook(self)
        return getattr(super(base, self), method)(*args)

    stock: Any = type(connections[STOCK_OF[alias]])
    base: Any = type(
        "Base", (stock,), {method: method_of_base, "__module__": "a_users.base"}
    )
    with installed(alias, make_release_backend(base), **settings) as db:
        db.inc_thread_sharing()
        yield db
        db.dec_thread_sharing()


@pytest.mark.parametrize("is_pooled", [True, False], ids=["pooled", "without a pool"])
@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
def test_a_base_may_wait_for_a_thread_that_shares_its_wrapper(
    alias: str, method: str, is_pooled: bool
) -> None:
    """D1, D7: until a writer has written all that it has, say, as on stock."""

    waits: list[bool] = []

    def wait_for_a_writer(db: Any) -> None:
        if waits and (method != "close" or db.connection is None):
            writing = threading.Thread(target=lambda: query(db), daemon=True)
            writing.start()
            writing.join()

    options = {} if is_pooled else {"OPTIONS": {"pool": False}}
    # A connection in it may be broken, and without a pool of ours nobody looks.
    forget_pool(alias)
    with shared_and_hooked(alias, method, wait_for_a_writer, **options) as db:

        def use() -> None:
            if method != "close":
                db.set_autocommit(False)
                query(db)
            waits.append(True)
            getattr(db, method)()
            waits.clear()
            if method != "close":
                db.set_autocommit(True)
            db.close()

        in_time(use)


# ##### The mode, which one thread notes while another takes a connection #####


@pytest.mark.parametrize("leaves", [False, True], ids=["entering", "leaving"])
def test_a_mode_is_not_noted_beside_a_connection_that_was_just_taken(
    alias: str, leaves: bool, monkeypatch: pytest.MonkeyPatch, observer: Any
) -> None:
    """A1, F7: a block that is rolled back leaves no row, and no row is lost."""
    real = Lease.forget_transaction
    taken: list[Any] = []

    def take_meanwhile(lease: Any) -> None:
        if not taken:
            taken.append(None)
            taking = threading.Thread(target=lambda: taken.append(lease.wrapper.cursor()))
            taking.start()
            taking.join(0.3)
        real(lease)

    def insert(name: str) -> None:
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])

    with shared(alias) as db:
        if leaves:
            db.set_autocommit(False)
        monkeypatch.setattr(Lease, "forget_transaction", take_meanwhile)
        if leaves:
            db.set_autocommit(True)
            wait_until(lambda: len(taken) == 2, "it has a connection by now")
            insert("kept")
        else:
            with transaction.atomic(using=alias):
                wait_until(lambda: len(taken) == 2, "it has a connection by now")
                insert("rolled back")
                transaction.set_rollback(True, using=alias)
        monkeypatch.undo()
        taken[1].close()
        db.close()
    rows = observer.execute("SELECT name FROM item").fetchall()
    assert rows == ([("kept",)] if leaves else [])


# ##### A connection that another thread takes while one ends something #####


@pytest.mark.parametrize("closes", [True, False], ids=["after close", "where none was"])
@pytest.mark.parametrize("method", ["commit", "rollback"])
def test_what_another_thread_takes_during_commit_is_kept_to_its_end(
    alias: str, method: str, closes: bool
) -> None:
    """F7: else the COMMIT is sent on what is a third one's by then."""
    found: list[bool] = []

    def take_and_give(db: Any) -> None:
        if not found:
            found.append(False)
            if closes:
                in_time(db.close)
            in_time(lambda: query(db))
            found[0] = db.connection is not None

    with shared_and_hooked(alias, f"_{method}", take_and_give) as db:
        query(db)
        if closes:
            with db.cursor():
                getattr(db, method)()
        else:
            getattr(db, method)()
        assert found == [True]
        assert db._lease.keepers == set()
        assert db.connection is None


def test_close_leaves_what_another_thread_takes_meanwhile(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7, S3: there was nothing to close; and nothing goes to the pool uncleaned."""
    real, cursors = Lease.close, list[Any]()

    def close(lease: Any, *args: Any) -> bool:
        had_one = real(lease, *args)
        if not cursors:
            in_time(lambda: cursors.append(lease.wrapper.cursor()))
        return bool(had_one)

    with shared(alias) as db:
        monkeypatch.setattr(Lease, "close", close)
        db.close()
        monkeypatch.undo()
        assert db.connection is not None
        assert census(alias).in_use == 1
        cursors[0].execute("SELECT 1")
        cursors[0].close()
        assert db.connection is None


def test_callbacks_run_though_another_thread_switches_autocommit_meanwhile(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A5: they belong to the block that is left."""
    real, me, called = (
        BaseDatabaseWrapper.set_autocommit,
        threading.get_ident(),
        list[str](),
    )
    is_in, may_go_on = threading.Event(), threading.Event()
    others: list[threading.Thread] = []

    def set_autocommit(db: Any, autocommit: bool, *args: Any) -> None:
        real(db, autocommit, *args)
        if threading.get_ident() != me:
            is_in.set()
            may_go_on.wait(2)
        elif autocommit:
            others.append(threading.Thread(target=lambda: db.set_autocommit(True)))
            others[0].start()
            assert is_in.wait(2)

    ending = keeping.end_keeping

    def end_keeping(lease: Any, *args: Any) -> None:
        ending(lease, *args)
        if others and threading.get_ident() == me:
            may_go_on.set()
            others[0].join()

    with shared(alias) as db, db.cursor():
        with transaction.atomic(using=alias):
            query(db)
            transaction.on_commit(lambda: called.append("it"), using=alias)
            monkeypatch.setattr(BaseDatabaseWrapper, "set_autocommit", set_autocommit)
            monkeypatch.setattr(keeping, "end_keeping", end_keeping)
        monkeypatch.undo()
    assert called == ["it"]
    db.close()


def test_a_bases_connect_may_commit(alias: str) -> None:
    """P1: what it began has ended; ensure_connection() leaves a connection."""
    stock: Any = type(connections[STOCK_OF[alias]])

    def connect(self: Any) -> None:
        super(base, self).connect()
        self.set_autocommit(False)
        query(self)
        self.commit()
        self.set_autocommit(True)

    base: Any = type("Base", (stock,), {"connect": connect, "__module__": "a_users.base"})
    with installed(alias, make_release_backend(base)) as db:
        db.ensure_connection()
        assert db.connection is not None
        db.close()
        query(db)
        assert db.connection is None


# ##### Small things #####


def test_who_connects_without_a_connection_is_told(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4: once, as on stock; a tool has put something in the place of the method."""
    db: Any = connections[alias]
    asked: list[None] = []
    monkeypatch.setattr(db, "ensure_connection", lambda: asked.append(None))
    with pytest.raises(OperationalError, match="has returned without a connection"):
        db.cursor()
    assert len(asked) == 1
    monkeypatch.undo()
    query(db)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("alias", ["native", "dj"], indirect=True)
def test_a_forked_child_keeps_nothing_for_a_thread_of_its_parent(alias: str) -> None:
    """F1, R1: which was in the midst of a step, and is not here."""
    db: Any = connections[alias]
    query(db)
    db._lease.kept = 1
    db._lease.keepers.add("a thread")
    child = os.fork()
    if child == 0:
        try:
            query(db)
            os._exit(0 if db.connection is None else 1)
        finally:
            os._exit(2)
    db._lease.kept = 0
    db._lease.keepers.clear()
    assert os.waitpid(child, 0)[1] == 0
