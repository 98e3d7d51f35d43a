"""F5, F7, R10: what is lost stays lost, and what can be had again is found again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Event
from typing import Any
from weakref import WeakSet

import django
import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic
from faults import POOLED, extra_alias
from helpers import DEADLINE, backend_pid, installed
from leases import Stop, add, assert_usable, committed
from second_server import HOST, PASSWORD, USER, Server
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend
from django_pg_real_pool._lease.facts import Phase, Use
from django_pg_real_pool._process import reaper

pytest_plugins = ("fix_faults",)


def terminate(observer: Any, pid: int) -> None:
    observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


# ##### A server that comes late #####


def test_a_pool_that_has_given_up_tries_again_when_it_is_asked(
    second_server: Server,
) -> None:
    """F5, R10: a server that was away for longer than `reconnect_timeout`, at the start."""
    has_given_up = Event()
    pool = {
        "min_size": 1,
        "max_size": 1,
        "timeout": 5.0,
        "reconnect_timeout": 0.1,
        "reconnect_failed": lambda pool: has_given_up.set(),
    }
    address: dict[str, Any] = {"HOST": HOST, "PORT": second_server.port, "NAME": "postgres"}
    who: dict[str, Any] = {"USER": USER, "PASSWORD": PASSWORD, "OPTIONS": {"pool": pool}}
    with extra_alias("late_native", "native", **address, **who) as name:
        second_server.stop()
        try:
            for _ in range(2):
                has_given_up.clear()
                with pytest.raises(OperationalError):
                    backend_pid(name)
                assert has_given_up.wait(DEADLINE)
        finally:
            second_server.start()
        assert backend_pid(name) == backend_pid(name)


# ##### A transaction whose connection is lost #####


@pytest.fixture
def lost(alias: str, wrapper: Any, observer: Any) -> list[str]:
    """Lose a transaction, not one of a block, that has a callback; note who is called."""
    called: list[str] = []
    wrapper.set_autocommit(False)
    with atomic(using=alias):
        transaction.on_commit(lambda: called.append("lost"), using=alias)
        add(alias, "lost")
        pid = backend_pid(alias)
    terminate(observer, pid)
    with pytest.raises(OperationalError):
        wrapper.commit()
    return called


def test_callbacks_of_a_lost_transaction_do_not_run_in_autocommit(
    alias: str, wrapper: Any, observer: Any, lost: list[str]
) -> None:
    """F7: neither when it is switched on, nor after the next block."""
    with suppress(OperationalError):
        wrapper.set_autocommit(True)
        with atomic(using=alias):
            transaction.on_commit(lambda: lost.append("next"), using=alias)
            add(alias, "next")
    assert "lost" not in lost
    assert committed(observer) == lost
    wrapper.close()
    assert_usable(alias, observer)


def test_callbacks_of_a_lost_transaction_do_not_run_after_the_next_one(
    alias: str, wrapper: Any, observer: Any, lost: list[str]
) -> None:
    """F7: which is begun and committed by hand, as the lost one was."""
    with suppress(OperationalError):
        add(alias, "next")
        wrapper.commit()
        wrapper.set_autocommit(True)
    assert lost == []
    assert "lost" not in committed(observer)
    wrapper.close()
    assert_usable(alias, observer)


def test_a_transaction_begun_as_sql_is_lost_whoever_sees_it_break(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """F7: another cursor, too: what comes next is not sent outside it."""
    cursors = [wrapper.cursor() for _ in range(2)]
    cursors[0].execute("SELECT pg_backend_pid()")
    (pid,) = cursors[0].fetchone()
    cursors[0].execute("BEGIN")
    terminate(observer, pid)
    with pytest.raises(Exception, match=r"terminat|closed"):
        cursors[-1].execute("SELECT 1")
    for cursor in cursors:
        cursor.close()
    with pytest.raises(OperationalError):
        add(alias, "of the lost transaction")
    assert committed(observer) == []
    wrapper.close()
    assert_usable(alias, observer)


BEGINNINGS = ["BEGIN", "/* mine */ start transaction", "SELECT 1; BEGIN"]


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_begun_as_sql_is_lost_if_only_the_driver_sees_it_break(
    alias: str, wrapper: Any, observer: Any, begin: str
) -> None:
    """F7: by a cursor of its own, so that none of ours ever asks again."""
    with wrapper.cursor() as cursor:
        cursor.execute(begin)
        physical = wrapper._lease.physical
        terminate(observer, physical.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            physical.execute("SELECT 1")
    for _ in range(2):
        with pytest.raises(OperationalError):
            add(alias, "of the lost transaction")
    assert committed(observer) == []
    wrapper.close()
    assert_usable(alias, observer)


def test_no_transaction_is_lost_where_none_was_begun(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """F2, R1: the connection goes with its cursor, and the next statement has another."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        physical = wrapper._lease.physical
        terminate(observer, physical.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            physical.execute("SELECT 1")
    assert wrapper.connection is None
    assert_usable(alias, observer)


# ##### A connection that an interruption has lost #####


@pytest.fixture
def lone() -> Iterator[str]:
    """A native pool with room for one connection, whose wait is no longer than a test's."""
    with extra_alias("lone_native", "native", size=1) as name:
        yield name


def test_who_lost_its_connection_and_asks_again_need_not_wait(
    lone: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R3: it alone is in the way of the reaper, which waits for it."""
    wrapper: Any = connections[lone]
    pid = backend_pid(lone)
    # What is left where something is thrown between the pool and the wrapper.
    wrapper.pool.getconn(None, wrapper._lease.me)
    assert backend_pid(lone) != pid
    assert "a thread was interrupted while it got a connection" in caplog.text


@pytest.mark.parametrize("when", ["taken", "given back"])
def test_a_signal_handler_does_not_take_what_its_thread_has_in_its_hands(
    lone: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: it finds that it can't have a connection, as on stock."""
    wrapper: Any = connections[lone]
    pid = backend_pid(lone)
    pool = wrapper.pool
    monkeypatch.setattr(pool, "timeout", 0.1)
    name = "_take_idle" if when == "taken" else "putconn"
    method = getattr(pool, name)

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(pool, name, method)
        made = method(*args) if when == "taken" else None
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            backend_pid(lone)
        return made if when == "taken" else method(*args)

    monkeypatch.setattr(pool, name, interrupted)
    assert backend_pid(lone) == pid
    assert backend_pid(lone) == pid
    assert pool.get_stats()["connections_num"] == 1


def adapter_of(wrapper: Any) -> Any:
    return wrapper._hooks.pool


# Not the user's own pool: what is thrown out of its methods, it loses, on stock as well.
KNOWN_POOLS = pytest.mark.parametrize("alias", POOLED)


@KNOWN_POOLS
def test_what_an_adapter_has_noted_is_forgotten_with_the_lease_that_never_was(
    wrapper: Any, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: else the note would keep the connection from ever coming back."""
    adapter = adapter_of(wrapper)
    take = adapter.take

    def interrupted(session: Any) -> Any:
        physical = adapter.physical(take(session))
        physical.close()
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "take", interrupted)
        with pytest.raises(Stop):
            backend_pid(alias)
    assert adapter.lent() == {}
    assert wrapper._lease.phase is Phase.FREE
    reaper.reap()


def test_what_an_adapter_has_noted_is_forgotten_with_a_lease_that_is_collected(
    wrapper: Any, alias: str
) -> None:
    """R3: its end was interrupted, and nobody used it again."""
    copy, adapter = wrapper.copy(), adapter_of(wrapper)
    adapter._tallies[alias].lent[id(copy._lease)] = object()
    del copy
    gc.collect()
    assert adapter.lent() == {}


@KNOWN_POOLS
def test_a_close_that_was_interrupted_twice_is_done_by_the_next(
    alias: str, wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: until then the session has not ended, or nothing would be left to do."""
    adapter = adapter_of(wrapper)
    forget = adapter.forget

    def interrupted(session: Any) -> Any:
        if session is not wrapper._lease:  # one that is collected meanwhile
            return forget(session)
        raise Stop

    cursor = wrapper.cursor()
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "put", interrupted)
        patch.setattr(adapter, "forget", interrupted)
        with pytest.raises(Stop):
            wrapper.close()
    assert wrapper.connection is None
    assert wrapper._lease.phase is not Phase.FREE
    cursor.close()
    wrapper.close()
    assert wrapper._lease.phase is Phase.FREE
    assert wrapper._lease.use is Use.NONE
    assert adapter.lent() == {}
    reaper.reap()


def left_to_collector(alias: str, program: Callable[[Any], None]) -> int:
    """Return how many objects of a wrapper only the collector can free."""
    wrapper: Any = connections[alias].copy()
    program(wrapper)
    wrapper.close()
    gc.disable()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        del wrapper
        gc.collect()
        return len(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def use_nothing(wrapper: Any) -> None:
    pass


def run_a_query(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.mark.skipif(django.VERSION < (6, 0), reason="stock leaves its own parts to it")
@pytest.mark.parametrize("alias", ["native", "own"])
@pytest.mark.parametrize("program", [use_nothing, run_a_query])
def test_a_wrapper_that_is_closed_leaves_nothing_to_the_collector(
    alias: str, program: Callable[[Any], None]
) -> None:
    """D7: as stock's from Django 6.0 on."""
    assert left_to_collector(STOCK_OF[alias], program) == 0
    assert left_to_collector(alias, program) == 0


# ##### A pool that serves copies #####


class Resetting:
    """A callback that is an object, of which a copy is another one."""

    def __call__(self, connection: Any) -> None:
        pass

    def reset(self, connection: Any) -> None:
        pass


def reset(connection: Any) -> None:
    pass


def reset_to(value: int, connection: Any) -> None:
    pass


CALLBACKS = {
    "partial": partial(reset_to, 1),
    "object": Resetting(),
    "method": Resetting().reset,
    "partial of a method": partial(Resetting().reset),
    "function": reset,
}


@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_wrapper_and_its_copy_have_one_pool(callback: str) -> None:
    """R10: whatever Django's copy() makes of the options."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5, "reset": CALLBACKS[callback]}
    with extra_alias("copied_native", "native", OPTIONS={"pool": pool}) as name:
        original: Any = connections[name]
        pid, of_original = backend_pid(name), original.pool
        copy = original.copy()
        with installed(name, type(original)):
            connections[name] = copy
            try:
                assert backend_pid(name) == pid
            finally:
                copy.close()
        assert backend_pid(name) == pid
        assert original.pool is of_original


# ##### Classes that nobody uses any more #####


def test_cursor_classes_that_are_made_for_one_cursor_do_not_pile_up(alias: str) -> None:
    """D5: a base may make a class for each; a few hundred may be remembered, not all."""
    made: WeakSet[type] = WeakSet([type("Plain", (), {})])
    gc.collect()
    if made:
        pytest.skip("this Python keeps each class for ever, as 3.13t does")

    def make_cursor(self: Any, cursor: Any) -> Any:
        class Traced(CursorWrapper):
            pass

        made.add(Traced)
        return Traced(cursor, self)

    stock = type(connections[STOCK_OF[alias]])
    namespace = {"__module__": "a_users.base", "make_cursor": make_cursor}
    with installed(alias, make_release_backend(type("Base", (stock,), namespace))) as db:

        def left_after(queries: int) -> int:
            for _ in range(queries):
                db.cursor().close()
            gc.collect()
            return len(made)

        first = left_after(400)
        assert left_after(400) <= first
