"""What goes wrong seldom: at a health check, in a finaliser, while something ends."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import InternalError, ProgrammingError, close_old_connections, connections
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic, set_autocommit
from faults import extra_alias
from helpers import backend_pid, census, wait_until
from leases import Stop
from settings import UNPOOLED_OF
from traffic import warm_up

from django_pg_real_pool import pin_connection
from django_pg_real_pool._drivers.psycopg3 import _is_open
from django_pg_real_pool._lease.facts import Phase
from django_pg_real_pool._pools.queue import _forget_end
from django_pg_real_pool._pools.real_pool import _Retry


def kill(observer: Any, pid: int) -> None:
    """End one server process, and wait until it is gone."""
    observer.execute("SELECT pg_terminate_backend(%s)", [pid])
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(
        lambda: observer.execute(alive, [pid]).fetchone() == (0,),
        f"{pid} has ended",
    )


# ##### What it says of itself #####


def test_a_lease_says_what_holds_it(alias: str, wrapper: Any) -> None:
    """T1: also a transaction that no cursor has noted yet."""
    lease = wrapper._lease
    assert repr(lease) == f"<Lease of {alias!r}: no holds>"
    with pin_connection(alias):
        assert repr(lease) == f"<Lease of {alias!r}: pin>"
        wrapper._lease.hooks.pool.physical(wrapper.connection).execute("BEGIN")
        assert lease.describe_holds() == ["pin", "transaction"]
    wrapper.close()


def test_a_statement_of_a_cursor_that_is_not_ours_is_noted_by_no_policy_ignore(
    alias: str,
) -> None:
    """S4: nothing is cleaned then."""
    options: Any = {"RELEASE_OPTIONS": {"SESSION_STATE": "ignore"}}
    with extra_alias(f"ignoring_{alias}", alias, size=1, **options) as name:
        wrapper: Any = connections[name]
        pid = backend_pid(name)
        with wrapper.cursor() as cursor, CursorWrapper(cursor.cursor, wrapper) as plain:
            plain.execute("SET app.tenant = 'seen'")
            assert not wrapper._lease.debt
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid(), current_setting('app.tenant')")
            assert cursor.fetchone() == (pid, "seen")


# ##### Is it usable? #####


def test_whether_it_is_usable_is_asked_without_keeping_it(alias: str, wrapper: Any) -> None:
    """A1, R1: nor does the question begin the transaction of a block."""
    warm_up(alias)
    with atomic(alias):
        assert wrapper.is_usable()
        assert wrapper.connection is None
        assert census(alias).in_use == 0


def enter_and_leave_autocommit(alias: str) -> None:
    connections[alias].set_autocommit(False)
    connections[alias].set_autocommit(True)


def test_a_server_that_is_not_there_is_not_usable(alias: str) -> None:
    away: dict[str, Any] = {"HOST": "127.0.0.1", "PORT": 1}
    with extra_alias(f"away_{alias}", alias, timeout=0.5, connects=False, **away) as name:
        wrapper: Any = connections[name]
        assert wrapper.get_autocommit()
        assert not wrapper.is_usable()
        assert wrapper.connection is None
        wrapper.close_pool()


@pytest.mark.parametrize("alias", ["dj", "own"], indirect=True)
@pytest.mark.parametrize("notices", [backend_pid, enter_and_leave_autocommit])
def test_a_pin_survives_the_health_check_that_fails(
    alias: str, notices: Callable[[str], object], observer: Any
) -> None:
    """P1: another connection, but it is pinned.  (Django's own pool refuses an age.)"""
    age: dict[str, Any] = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
    with extra_alias(f"checked_{alias}", alias, **age) as name:
        with pin_connection(name) as wrapper:
            pid = backend_pid(name)
            close_old_connections()  # the next statement is the next request's first
            kill(observer, pid)
            notices(name)
            other = backend_pid(name)
            assert other != pid
            assert backend_pid(name) == other
            assert wrapper.connection is not None
        assert wrapper.connection is None


@pytest.mark.parametrize("alias", ["dj", "own"], indirect=True)
def test_a_lease_survives_the_health_check_that_fails(alias: str, observer: Any) -> None:
    """D1: with the next connection, as on stock."""
    age: dict[str, Any] = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
    with extra_alias(f"checked_{alias}", alias, **age) as name:
        wrapper: Any = connections[name]
        wrapper.ensure_connection()
        pid = wrapper.connection.info.backend_pid
        close_old_connections()
        kill(observer, pid)
        assert backend_pid(name) != pid
        assert wrapper.connection is None


@pytest.mark.parametrize("alias", ["dj", "own"], indirect=True)
def test_a_session_ends_with_the_request_even_if_connections_do_not(alias: str) -> None:
    """S2, S3: for a connection that stock would keep."""
    with extra_alias(f"aged_{alias}", alias, size=1, CONN_MAX_AGE=None) as name:
        with connections[name].cursor() as cursor:
            cursor.execute("SET statement_timeout = '7s'")
        assert connections[name].connection is not None
        close_old_connections()
        assert connections[name].connection is None
        with connections[name].cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)


# ##### What is dropped #####


def test_a_wrapper_that_is_dropped_gives_its_connection_back(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R7: on the reaper's thread, because a finaliser may run anywhere."""
    warm_up(alias)
    other: Any = connections[alias].copy()
    other.connect()
    assert census(alias).in_use == 1
    del other
    gc.collect()
    wait_until(lambda: "was dropped with" in caplog.text, "the reaper found it")
    wait_until(lambda: census(alias).in_use == 0, "it was given back, once")


def test_a_copy_of_an_unpooled_wrapper_shares_its_connection(alias: str) -> None:
    """D7: as a copy of stock's does."""
    wrapper: Any = connections[UNPOOLED_OF[alias]]
    wrapper.ensure_connection()
    copied = copy.copy(wrapper)
    assert copied.connection is wrapper.connection
    wrapper.close()
    copied.connection = None


def test_executemany_that_is_interrupted_holds_nothing(alias: str, wrapper: Any) -> None:
    """R3: though nobody closes its cursor."""

    def stop(*args: Any) -> None:
        raise Stop

    warm_up(alias)
    cursor = wrapper.cursor()
    with pytest.raises(Stop), wrapper.execute_wrapper(stop):
        cursor.executemany("INSERT INTO item (name) VALUES (%s)", [["a"]])
    assert wrapper.connection is None
    assert census(alias).in_use == 0


# ##### What can't be ended as it ought to be #####


def test_close_survives_a_server_side_cursor_that_can_not_be_ended(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """R8, R3: the connection broke with its portal open."""
    with atomic(alias):
        pid = backend_pid(alias)
        cursor = wrapper.chunked_cursor()
        cursor.execute("SELECT 1")
        kill(observer, pid)
        wrapper.close()
        assert wrapper.connection is None
    wait_until(lambda: census(alias).in_use == 0, "nothing is in use")
    assert backend_pid(alias) != pid


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_a_lost_server_side_cursor_can_not_be_ended(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """R6, R3: the connection broke in between."""
    with atomic(alias):
        pid = backend_pid(alias)
        cursor = wrapper.chunked_cursor()
        cursor.execute("SELECT 1")
        kill(observer, pid)
        del cursor
        gc.collect()
        wrapper.close()
        assert wrapper.connection is None
    wait_until(lambda: census(alias).in_use == 0, "nothing is in use")
    assert backend_pid(alias) != pid


def test_a_schema_editor_that_can_not_begin_holds_nothing(alias: str, wrapper: Any) -> None:
    """R3: its savepoint is refused, because the transaction has failed."""
    with atomic(alias):
        with pytest.raises(ProgrammingError), wrapper.cursor() as cursor:
            cursor.execute("SELECT no_such_column")
        with pytest.raises(InternalError, match="aborted"), wrapper.schema_editor():
            pass
        assert "pin" not in wrapper._lease.holds.describe()
        wrapper.set_rollback(True)
    assert wrapper.connection is None


def test_close_in_a_block_without_a_statement_ends_the_block(
    alias: str, wrapper: Any
) -> None:
    """R8, D1: as Django's own, though there is no connection to be closed."""

    def run(alias: str) -> tuple[Any, ...]:
        used: Any = connections[alias]
        with atomic(alias):
            used.close()
            with pytest.raises(ProgrammingError, match="atomic block") as refused:
                used.cursor()
            state = (used.closed_in_transaction, used.needs_rollback)
        return (*state, str(refused.value), used.in_atomic_block)

    # Of the stock wrappers, only Django's lets nobody use what close() gave back.
    assert run(alias) == run("stock_native")
    assert backend_pid(alias)


@pytest.mark.parametrize("alias", ["dj"], indirect=True)
def test_a_connection_that_was_closed_in_the_pool_is_replaced(alias: str) -> None:
    """F2: QueuePool itself does not look."""
    with extra_alias(f"closed_{alias}", alias, size=1) as name:
        wrapper: Any = connections[name]
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
            physical = wrapper._hooks.pool.physical(wrapper.connection)
        assert wrapper.connection is None
        physical.close()
        assert backend_pid(name) != pid


# ##### What is interrupted, or fails, while a lease ends #####


def test_what_the_pool_has_already_is_not_given_back_twice(alias: str) -> None:
    """R7: an interruption right after the pool had it leaves the wrapper in between."""
    warm_up(alias)
    wrapper: Any = connections[alias]
    wrapper.connect()
    connection, lease = wrapper.connection, wrapper._lease
    wrapper._hooks.pool.put(lease)
    wrapper.connection, lease.phase = connection, Phase.RETURNED
    wrapper.close()
    assert wrapper.connection is None
    assert lease.phase is Phase.FREE
    assert census(alias).in_use == 0
    assert backend_pid(alias)


@pytest.mark.parametrize("before", [False, True])
def test_a_connection_that_can_neither_go_back_nor_end_is_let_go(
    alias: str,
    before: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R3: the statement's own result is not disturbed."""
    warm_up(alias)
    wrapper: Any = connections[alias]
    lease, pool, failures = wrapper._lease, wrapper._hooks.pool, []

    def fail(*_: Any) -> None:
        failures.append(wrapper.connection)
        raise wrapper.Database.OperationalError("not now")

    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        monkeypatch.setattr(pool, "put", fail)
        monkeypatch.setattr(pool, "discard", fail)
        if before:  # the pool is asked
            monkeypatch.setattr(type(wrapper._hooks.driver), "mark_used", fail)
    monkeypatch.undo()
    assert wrapper.connection is None
    assert "could not give the connection" in caplog.text
    if alias != "native":  # whose pool finds by itself what was lost
        wrapper.connection = failures[0]
        pool.put(lease)
    wait_until(lambda: census(alias).in_use == 0, "nothing is in use")


def test_a_cursor_of_an_ended_lease_that_was_closed_elsewhere_ends_nothing(
    alias: str,
) -> None:
    """R5, R6: by garbage collection on another thread, say, and perhaps long ago."""
    with pin_connection(alias) as wrapper:
        made: Any = wrapper
        made._lease.closed_elsewhere.append((id(wrapper), lambda: None))
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert made._lease.closed_elsewhere == []
        assert made.connection is not None


# ##### What others seldom do #####


def test_a_server_that_does_not_stop_talking_is_not_used() -> None:
    """F2: what can't be made for real: a socket that is never empty."""
    talkative: Any = SimpleNamespace(
        status=0, consume_input=lambda: None, is_busy=lambda: False
    )
    known: Any = SimpleNamespace(peek=lambda: True)
    assert not _is_open(talkative, known)


def test_an_attempt_to_connect_is_made_once() -> None:
    """F5: at its time, or earlier because another one succeeded."""
    made: list[str] = []
    waiting: list[Any] = []
    task: Any = SimpleNamespace(tick=lambda: made.append("tick"))
    retry = _Retry(task, waiting, is_probe=True)
    assert waiting == [retry]
    retry.tick()
    retry.tick()
    assert made == ["tick"]


@pytest.mark.parametrize("alias", ["dj"], indirect=True)
def test_a_queue_pool_of_another_database_has_no_info(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: that is PostgreSQL's."""
    wrapper: Any = connections[alias]
    backend_pid(alias)
    monkeypatch.setattr(type(wrapper), "vendor", "mysql")
    from dj_db_conn_pool.core import pool_container

    pool, lease = wrapper._hooks.pool, wrapper._lease
    proxy = pool._connect(lease, pool_container.get(alias))
    pool.forget(lease)
    assert "info" not in vars(proxy)
    proxy.close()


def test_a_proxy_of_an_older_sqlalchemy_is_kept_from_its_end() -> None:
    """F1: before 2.1 it is the record that refers to it."""
    record = SimpleNamespace(fairy_ref="a reference")
    _forget_end(SimpleNamespace(_connection_record=record))
    assert record.fairy_ref is None


@contextmanager
def cut_short() -> Iterator[None]:
    """Raise `Stop` where an answer of the server is waited for."""

    def wait(gen: Any, *args: Any, **kwargs: Any) -> Any:
        next(gen)  # it is sent
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.waiting, "wait", wait)
        with pytest.raises(Stop):
            yield


def test_a_commit_that_is_cut_short_says_by_what(alias: str, wrapper: Any) -> None:
    """R3: by a time limit, say; psycopg would refuse to change the mode, in its place."""
    block = atomic(using=alias)
    block.__enter__()
    backend_pid(alias)
    with cut_short():
        block.__exit__(None, None, None)
    assert wrapper.connection is None
    assert wrapper.autocommit
    wait_until(lambda: census(alias).in_use == 0, "the connection is replaced")


def test_a_commit_by_hand_that_is_cut_short_is_over(alias: str, wrapper: Any) -> None:
    """R3, D2: whatever came of it."""
    set_autocommit(False, using=alias)
    backend_pid(alias)
    with cut_short():
        wrapper.commit()
    assert wrapper.connection is None
    set_autocommit(True, using=alias)
    wait_until(lambda: census(alias).in_use == 0, "the connection is replaced")
    assert backend_pid(alias)
