"""C1, C2: an idle connection is had and given back without the pool's long way."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import backend_pid, census, forget_pool, pool_of_one, wait_until
from leases import Stop
from psycopg_pool import ConnectionPool
from traffic import hide_from_shortcuts

from django_pg_real_pool import pool_status
from django_pg_real_pool._pools import native_line, native_shortcut
from django_pg_real_pool._pools.native import NativePool, _adapt
from django_pg_real_pool._pools.native_connection import remembering
from django_pg_real_pool._pools.native_shortcut import Shortcut, shortcut_of
from django_pg_real_pool.testing import different_connections

ALIAS = "native"


class Way:
    """Counts which way connections go."""

    def __init__(self) -> None:
        self.long: list[str] = []
        self.short: list[bool] = []


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    way = Way()

    def watch(owner: Any, name: str, note: Callable[[Any], None]) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            note(result)
            return result

        monkeypatch.setattr(owner, name, watched)

    for name in ("getconn", "putconn"):
        watch(ConnectionPool, name, lambda _, name=name: way.long.append(name))  # type: ignore[misc]
    for name in ("take", "put_back"):
        watch(Shortcut, name, way.short.append)
    hide_from_shortcuts(monkeypatch, connections[ALIAS]._hooks.pool)  # type: ignore[attr-defined]
    return way


@pytest.fixture
def wrapper() -> Iterator[Any]:
    """One that has found the shortcut, with a pool of two that have been used, too."""
    before: Any = connections[ALIAS]
    forget_pool(ALIAS)  # which may have been made while its log was read
    # And a wrapper on which nobody has left anything.
    wrapper = connections[ALIAS] = before.copy()
    other = wrapper.copy()
    with wrapper.cursor(), other.cursor():
        pass
    other.close()
    wait_until(lambda: len(wrapper.pool._pool) == 2, "the pool is full")
    assert wrapper.pool.max_size == 2
    assert wrapper._shortcut is not None
    yield wrapper
    wrapper.close()
    connections[ALIAS] = before


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_query_goes_the_short_way(wrapper: Any, way: Way, blocks: int) -> None:
    """Whatever mode the connection is in, and with the savepoints of nested blocks."""
    for entered in (blocks, 0, blocks):
        way.short.clear()
        with ExitStack() as stack:
            for _ in range(entered):
                stack.enter_context(atomic(using=ALIAS))
            backend_pid(ALIAS)
        assert way.long == []
        assert way.short == [True, True]


def state_of(pool: Any) -> dict[str, Any]:
    """Return what a pool knows, as far as taking and giving back may change it."""
    known: dict[str, Any] = {
        name: value
        for name, value in vars(pool).items()
        if isinstance(value, bool | int | float | str | dict | None)
    }
    known["_stats"] = dict(pool._stats)
    known["idle"] = list(pool._pool)
    known["waiting"] = list(pool._waiting)
    known["attributes"] = [
        {
            name: value
            for name, value in vars(each).items()
            if not isinstance(value, bool | float) and not name.startswith("_django")
        }
        for each in known["idle"]
    ]
    return known


def test_the_pool_is_left_as_by_its_own_methods(wrapper: Any, way: Way) -> None:
    """If psycopg_pool begins to note something else, this fails."""
    pool, shortcut = wrapper.pool, wrapper._shortcut
    wait_until(lambda: len(pool._pool) == pool.max_size, "it is full")
    states = []
    for short in (False, True):
        pool._stats.clear()
        pool._nconns_min = pool.max_size
        shortcut._replaced = {} if short else {"getconn": None, "putconn": None}
        with wrapper.cursor():
            connection = wrapper.connection
            assert connection._pool is pool
            out = state_of(pool)
        assert connection._pool is None
        states.append((out, state_of(pool)))
    shortcut._replaced = vars(pool)
    assert way.short == [False, False, True, True]
    by_pool, by_shortcut = states
    assert by_shortcut == by_pool


# ##### What is not usual #####


def expired(wrapper: Any) -> None:
    wrapper.connection._expire_at = 0.0


def drained(wrapper: Any) -> None:
    wrapper.pool.drain()


def closed(wrapper: Any) -> None:
    wrapper.connection.close()


@pytest.mark.parametrize(
    "happening",
    [
        expired,
        pytest.param(
            drained,
            marks=pytest.mark.skipif(
                not hasattr(ConnectionPool, "drain"), reason="psycopg_pool can't drain yet"
            ),
        ),
        closed,
    ],
)
def test_what_can_not_stay_goes_the_long_way(
    wrapper: Any, way: Way, happening: Callable[[Any], None]
) -> None:
    """D1: the pool replaces it."""
    pid = backend_pid(ALIAS)
    with wrapper.cursor():
        happening(wrapper)
        way.short.clear()
    assert way.short == [False]
    assert way.long == ["putconn"]
    wait_until(
        lambda: sum(census(ALIAS)) == wrapper.pool.max_size, "the pool has replaced it"
    )
    assert backend_pid(ALIAS) != pid


def test_a_pool_that_is_closed_meanwhile_gets_nothing_back(way: Way) -> None:
    with extra_alias("closing", ALIAS) as name:
        backend_pid(name)
        wrapper: Any = connections[name]
        with wrapper.cursor():
            physical = wrapper.connection
            wrapper.close_pool()
        assert physical.closed
        assert way.short[-1] is False
        assert way.long[-1] == "putconn"
        for _ in range(2):
            backend_pid(name)  # from another pool
        assert way.short[-1] is True


def test_who_waits_for_a_full_pool_is_told(wrapper: Any, way: Way) -> None:
    """D1: `ConnectionPool.wait()`."""
    pool = wrapper.pool
    wait_until(lambda: len(pool._pool) == pool.max_size, "it is full")
    waiting = threading.Thread(target=pool.wait, args=[10.0])
    before, pool._min_size = pool._min_size, pool.max_size
    with wrapper.cursor():
        waiting.start()
        wait_until(lambda: pool._pool_full_event is not None, "somebody waits")
    waiting.join()
    pool._min_size = before
    assert not pool.closed
    assert way.long == ["putconn"]


@pytest.mark.parametrize("owner", ["pool", "class"])
@pytest.mark.parametrize("name", ["getconn", "putconn"])
def test_a_pool_whose_method_was_replaced_is_asked(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch, name: str, owner: str
) -> None:
    """D1: by somebody who watches it, say."""
    calls: list[Any] = []
    original = getattr(wrapper.pool if owner == "pool" else ConnectionPool, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    if owner == "pool":
        monkeypatch.setitem(vars(wrapper.pool), name, watched)
    else:
        monkeypatch.setattr(ConnectionPool, name, watched)
    backend_pid(ALIAS)
    assert len(calls) == 1


def test_the_test_kit_is_asked(wrapper: Any) -> None:
    pid = backend_pid(ALIAS)
    with different_connections(ALIAS):
        pids = [backend_pid(ALIAS) for _ in range(3)]
    assert pids[0] != pids[1] != pids[2]
    assert pid in pids


def test_who_wants_long_holds_told_goes_the_long_way(way: Way) -> None:
    """F6."""
    with extra_alias("told", ALIAS, RELEASE_OPTIONS={"WARN_HELD_AFTER": 10}) as name:
        for _ in range(2):
            backend_pid(name)
        assert way.short == []
        assert way.long == ["getconn", "putconn"] * 2


@contextmanager
def info_is_logged() -> Iterator[None]:
    logger = logging.getLogger("psycopg.pool")
    before, logger.level = logger.level, logging.INFO
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    yield
    logger.setLevel(before)


@contextmanager
def putconn_is_replaced() -> Iterator[None]:
    putconn = ConnectionPool.putconn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConnectionPool, "putconn", lambda self, conn: putconn(self, conn))
        yield


class OtherPool(ConnectionPool[Any]):
    """Of which nobody knows what it does."""


POOLS: dict[str, dict[str, Any]] = {
    "has a check": {"check": lambda connection: None},
    "has a reset": {"reset": lambda connection: None},
}


def adapted(kind: Any = ConnectionPool, **options: Any) -> Any:
    """Return a pool as it is when Django's has been made."""
    pool = kind(open=False, connection_class=remembering(None), **options)
    pool._lock = threading.RLock()  # before psycopg_pool 3.3 it is made by open()
    _adapt(pool)
    return pool


def shortcut_for(pool: Any) -> Shortcut | None:
    return shortcut_of(NativePool(), pool)


def test_an_ordinary_pool_has_a_shortcut() -> None:
    assert shortcut_for(adapted()) is not None


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_that_does_more_has_none(kind: str) -> None:
    assert shortcut_for(adapted(**POOLS[kind])) is None


@pytest.mark.parametrize("more", [info_is_logged, putconn_is_replaced])
def test_a_pool_that_is_watched_has_none(
    more: Callable[[], AbstractContextManager[None]],
) -> None:
    pool = adapted()
    with more():
        assert shortcut_for(pool) is None
    assert shortcut_for(pool) is not None


def test_a_pool_of_another_class_has_none() -> None:
    assert shortcut_for(adapted(OtherPool)) is None


@pytest.mark.parametrize("name", [*native_shortcut._PARTS, "_pool_full_event"])
def test_a_pool_that_is_made_of_something_else_has_none(name: str) -> None:
    """The guard of each private name."""
    pool = adapted()
    delattr(pool, name)
    try:
        assert shortcut_for(pool) is None
    finally:
        pool._closed = True  # for its finaliser


# ##### Who waits #####


@contextmanager
def one_waits(alias: str) -> Iterator[list[int]]:
    """Let another thread wait in line while this one has the only connection."""
    got: list[int] = []

    def query() -> None:
        got.append(backend_pid(alias))
        connections[alias].close()

    thread = threading.Thread(target=query)
    thread.start()
    wait_until(lambda: pool_status(alias).census.waiting == 1, "it waits")
    yield got
    thread.join()


def test_who_waits_gets_it_at_once(way: Way) -> None:
    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        cursor = connections[ALIAS].cursor()
        with one_waits(ALIAS) as got:
            way.long.clear()
            cursor.close()
        assert got == [pid]
        assert way.long == []


def test_who_does_not_wait_any_more_is_passed_over() -> None:
    """R7: also one that took it, whose giver was interrupted before it left the line."""
    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        wrapper: Any = connections[ALIAS]
        cursor = wrapper.cursor()
        with one_waits(ALIAS) as got:
            line = wrapper.pool._waiting
            gone = type(line[0])()
            gone._cond = threading.Lock(), threading.Lock()
            gone.error = Stop()
            line.appendleft(gone)
            cursor.close()
        assert got == [pid]
        assert gone.conn is None
        assert len(line) == 0


def told_by_pool(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def test_a_pool_that_may_refuse_to_wait_is_asked(way: Way) -> None:
    """D1: `max_waiting`."""
    pool = {"min_size": 1, "max_size": 1, "max_waiting": 1}
    with extra_alias("refusing", ALIAS, OPTIONS={"pool": pool}) as name:
        backend_pid(name)
        other: Any = connections[name].copy()
        cursor = other.cursor()
        with one_waits(name):
            with pytest.raises(OperationalError) as error:
                connections[name].cursor()
            cursor.close()
        assert "already 1 requests waiting" in told_by_pool(error.value)
        other.close()


def test_a_pool_that_can_grow_is_asked(way: Way) -> None:
    """D1."""
    with ExitStack() as stack:
        pool = {"min_size": 1, "max_size": 9}
        name = stack.enter_context(extra_alias("growing", ALIAS, OPTIONS={"pool": pool}))
        backend_pid(name)
        wrapper: Any = connections[name]
        wait_until(lambda: not wrapper.pool._growing, "it has as many as it wants")
        while wrapper.pool._pool:
            other = wrapper.copy()
            stack.callback(other.close)
            other.cursor()
        before = wrapper.pool.get_stats()["pool_size"]
        way.long.clear()
        backend_pid(name)
        assert way.long[0] == "getconn"
        assert wrapper.pool.get_stats()["pool_size"] > before


def test_who_waits_in_vain_is_told_as_by_the_pool(wrapper: Any) -> None:
    """F4, D1: and counted."""
    with extra_alias(
        "vain", ALIAS, OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 0.1}}
    ) as name:
        backend_pid(name)
        other: Any = connections[name].copy()
        with other.cursor():
            before = other.pool.get_stats()
            with pytest.raises(OperationalError, match="couldn't get a conn") as error:
                connections[name].cursor()
            after = other.pool.get_stats()
        assert told_by_pool(error.value) == "couldn't get a connection after 0.10 sec"
        for counted in ("requests_num", "requests_queued", "requests_errors"):
            assert after[counted] == before.get(counted, 0) + 1
        assert after["requests_wait_ms"] >= before.get("requests_wait_ms", 0) + 90
        other.close()


# ##### Interrupted #####


class Interrupted(deque[Any]):
    """Raises before anything is done; a moment that no signal can be timed for."""

    def pop(self) -> Any:  # type: ignore[override]
        raise Stop

    def append(self, value: Any) -> None:
        raise Stop


def test_a_connection_that_was_not_taken_yet_stays_idle(wrapper: Any) -> None:
    """R3, R7."""
    shortcut, idle = wrapper._shortcut, wrapper._shortcut._idle
    before = list(idle)
    shortcut._idle = Interrupted(idle)
    with pytest.raises(Stop):
        wrapper.cursor()
    shortcut._idle = idle
    assert wrapper.connection is None
    assert list(idle) == before
    assert all(each._pool is None for each in idle)


def test_a_connection_that_was_not_given_yet_is_still_ones_own(wrapper: Any) -> None:
    """R3, R7: and whatever comes next gives it back."""
    shortcut, idle = wrapper._shortcut, wrapper._shortcut._idle
    cursor = wrapper.cursor()
    connection = wrapper.connection
    shortcut._idle = Interrupted(idle)
    with pytest.raises(Stop):
        cursor.close()
    shortcut._idle = idle
    assert wrapper.connection is connection
    assert connection._pool is wrapper.pool
    assert connection not in idle
    backend_pid(ALIAS)
    assert wrapper.connection is None
    assert list(idle).count(connection) == 1


class Stuck(native_line.Line):
    """Raises when it has been joined, and before it is left."""

    def append(self, place: Any) -> None:
        super().append(place)
        raise Stop

    def popleft(self) -> Any:
        raise Stop


def test_who_is_interrupted_in_joining_the_line_is_given_nothing(wrapper: Any) -> None:
    """R3, R7."""
    shortcut, idle, line = wrapper._shortcut, wrapper._shortcut._idle, Stuck()
    shortcut._idle, shortcut._waiting = (), line
    with pytest.raises(Stop):
        shortcut.wait()
    shortcut._idle, shortcut._waiting = idle, wrapper.pool._waiting
    assert [place.set("connection") for place in line] == [False]


def test_what_was_given_before_an_interruption_is_kept() -> None:
    """R3, R7: by who has got it, and by nobody else."""
    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        wrapper: Any = connections[ALIAS]
        cursor = wrapper.cursor()
        shortcut, line = wrapper._shortcut, wrapper.pool._waiting
        with one_waits(ALIAS) as got:
            shortcut._waiting = stuck = Stuck()
            deque.append(stuck, line.popleft())
            with pytest.raises(Stop):
                cursor.close()
            shortcut._waiting = line
        assert got == [pid]
        assert wrapper.connection is None
        assert len(wrapper.pool._pool) == 1


def test_who_is_interrupted_when_it_was_given_one_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R3, R7."""
    kind = native_line._place()
    wait = kind.wait

    def wait_and_stop(self: Any, timeout: float) -> None:
        wait(self, timeout)
        raise Stop

    stopped: list[Any] = []

    def query() -> None:
        try:
            connections[ALIAS].cursor()
        except Stop:
            stopped.append(connections[ALIAS].connection)
        connections[ALIAS].close()

    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        cursor = connections[ALIAS].cursor()
        monkeypatch.setattr(kind, "wait", wait_and_stop)
        thread = threading.Thread(target=query)
        thread.start()
        wait_until(lambda: pool_status(ALIAS).census.waiting == 1, "it waits")
        cursor.close()
        thread.join()
        assert stopped == [None]
        assert backend_pid(ALIAS) == pid
        assert sum(census(ALIAS)) == 1


def test_a_signal_handlers_query_while_the_pool_is_locked_ends_the_lease_once(
    wrapper: Any,
) -> None:
    """R7: on the way back, whoever waits for the lock may be made to do anything."""
    shortcut, lock = wrapper._shortcut, wrapper._shortcut._lock

    class LockWithHandler:
        def __enter__(self) -> None:
            shortcut._lock = lock
            backend_pid(ALIAS)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    cursor = wrapper.cursor()
    shortcut._lock = LockWithHandler()
    cursor.close()
    assert wrapper.connection is None
    idle = list(wrapper.pool._pool)
    assert len(idle) == len(set(idle)) == len(wrapper.pool._pool)


def test_a_signal_handlers_query_before_there_is_a_hold(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: it ends the lease, so another begins."""
    make_cursor = wrapper.make_cursor

    def handle(raw: Any) -> Any:
        monkeypatch.undo()
        backend_pid(ALIAS)
        return make_cursor(raw)

    monkeypatch.setitem(vars(wrapper), "make_cursor", handle)
    with wrapper.cursor() as cursor:
        assert wrapper.connection is not None
        assert cursor.connection is wrapper.connection
        assert wrapper.connection not in wrapper.pool._pool
    assert wrapper.connection is None
