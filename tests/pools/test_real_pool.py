"""R7, R10, F3, F5: the pool that psycopg_pool's is made into."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import ref

import psycopg
import psycopg_pool.pool
import pytest
from django.db import connections
from faults import extra_alias
from helpers import DEADLINE, backend_pid, run_in_thread, wait_until
from leases import Stop, alarm_clock
from moments import breaks, interruptions
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from django_pg_real_pool import pin_connection
from django_pg_real_pool._drivers.psycopg3 import know
from django_pg_real_pool._pools import real_pool
from django_pg_real_pool._pools.real_pool import (
    LOST,
    MADE,
    NEEDED,
    NEEDED_IN_POOL,
    OTHERS,
    RETURNING,
    Place,
    RealPool,
)
from django_pg_real_pool._process import locks

DRAINS = pytest.mark.skipif(
    not hasattr(ConnectionPool, "drain"), reason="this psycopg_pool can't drain"
)


class Holder:
    """Who borrows a connection, and knows whether it has it: as a lease does."""

    def __init__(self, pool: RealPool) -> None:
        self._pool = pool
        self.connection: Any = None
        self.me = ref(self)
        self.is_busy = False

    def has_lost(self, connection: Any) -> bool:
        return not self.is_busy and self.lacks(connection)

    def lacks(self, connection: Any) -> bool:
        return self.connection is not connection

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.is_busy = True  # a lease has its lock then
        try:
            yield
        finally:
            self.is_busy = False

    def take(self) -> Any:
        with self._at_work():
            self.connection = self._pool.getconn(None, self.me)
        return self.connection

    def give(self) -> None:
        with self._at_work():
            connection, self.connection = self.connection, None
            self._pool.putconn(connection)

    def take_and_give(self) -> None:
        self.take()
        self.give()


def unopened(**options: Any) -> Any:
    """Return a pool as it is when Django has made it."""
    pool: Any = ConnectionPool(open=False, **{"min_size": 1, "timeout": 5, **options})
    assert RealPool.adopt(pool)
    return pool


@contextmanager
def opened(kind: type = RealPool, size: int = 1, **options: Any) -> Iterator[Any]:
    """Give a pool that is full, to be closed in the end."""
    options = {"min_size": size, "timeout": 5, **options}
    pool: Any = ConnectionPool(open=False, **options)
    if kind is RealPool:
        assert RealPool.adopt(pool)
    with closing(pool):
        pool.open(wait=True)
        yield pool


@pytest.fixture
def one() -> Iterator[Any]:
    """A pool with one connection, idle."""
    with opened() as pool:
        yield pool


@pytest.fixture
def two() -> Iterator[Any]:
    """A pool with two connections, both idle."""
    with opened(size=2) as pool:
        yield pool


def made(pool: Any) -> int:
    """Return how many connections a pool has made so far."""
    return int(pool.get_stats()["connections_num"])


def is_whole(pool: Any) -> bool:
    """Return whether all that a pool has is idle, written down, and alive."""
    with pool._lock:
        idle, members = list(pool._pool), dict(pool._members)
    return (
        len(idle) == len(set(idle)) == pool._nconns
        and set(members) == set(idle)
        and set(members.values()) == {None}
        and not any(each.closed or each._pool is not None for each in idle)
        and pool._holder == 0
        and not pool._waiting
    )


def assert_whole(pool: Any) -> None:
    wait_until(lambda: is_whole(pool), "the pool is whole")


def assert_gets_whole(pool: Any, when: str) -> None:
    """As `assert_whole`, with the reaper's help, which comes now and then."""

    def reap() -> bool:
        pool.reap()
        return is_whole(pool)

    wait_until(reap, f"the pool is whole {when}")


class Waiting:
    """A thread that asks a pool for a connection, and has got it, or an error."""

    def __init__(self, pool: Any, ask: Callable[[], Any]) -> None:
        self.got: Any = None
        self.error: BaseException | None = None
        self.pool = pool
        before = len(pool._waiting)
        self._thread = threading.Thread(target=self._run, args=[ask])
        self._thread.start()
        wait_until(lambda: len(pool._waiting) > before, "it waits")

    def _run(self, ask: Callable[[], Any]) -> None:
        try:
            self.got = ask()
        except BaseException as error:  # noqa: BLE001 - what it is, is looked at
            self.error = error

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.got


# ##### Which pools are made into one #####


class OtherPool(ConnectionPool[Any]):
    """Of which nobody knows what it does."""


def test_django_s_pool_is_one() -> None:
    backend_pid("native")
    assert type(connections["native"].pool) is RealPool  # type: ignore[attr-defined]


def test_a_subclass_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log says so."""
    caplog.set_level(logging.INFO, "django_pg_real_pool")
    pool = OtherPool(open=False)
    before = dict(vars(pool))
    assert not RealPool.adopt(pool)
    assert type(pool) is OtherPool
    assert vars(pool) == before
    assert "is of a class or version that this library does not know" in caplog.text


@pytest.mark.parametrize("name", NEEDED)
def test_a_pool_without_a_method_is_left_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = ConnectionPool(open=False)
    monkeypatch.setitem(vars(pool), name, None)
    assert not RealPool.adopt(pool)
    assert type(pool) is ConnectionPool


@pytest.mark.parametrize("name", NEEDED_IN_POOL)
def test_a_pool_without_an_attribute_is_left_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = ConnectionPool(open=False)
    monkeypatch.delitem(vars(pool), name)
    assert not RealPool.adopt(pool)
    assert type(pool) is ConnectionPool


@pytest.mark.parametrize("name", ["_pool", "_waiting"])
def test_a_pool_with_a_line_of_another_kind_is_left_as_it_is(name: str) -> None:
    pool: Any = ConnectionPool(open=False)
    setattr(pool, name, [])
    assert not RealPool.adopt(pool)


def test_a_pool_of_another_module_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psycopg_pool.pool, "MaintenanceTask")
    assert not RealPool.adopt(ConnectionPool(open=False))


# ##### Out and in #####


@pytest.mark.parametrize("borrows", [True, False])
def test_the_connection_that_was_used_last_is_given_out(two: Any, borrows: bool) -> None:
    holder = Holder(two)

    def use() -> Any:
        connection = holder.take() if borrows else two.getconn()
        (holder.give if borrows else lambda: two.putconn(connection))()
        return connection

    first = two.getconn()
    last = use()
    two.putconn(first)
    assert first is not last
    assert [use() for _ in range(3)] == [first] * 3


def test_who_has_which_connection_is_written_down(two: Any) -> None:
    holder = Holder(two)
    borrowed, lent = holder.take(), two.getconn()
    assert two._members == {borrowed: holder.me, lent: OTHERS}
    assert borrowed._pool is lent._pool is two
    assert two.count_lent() == 2
    holder.give()
    assert two._members == {borrowed: None, lent: OTHERS}
    assert two.count_lent() == 1
    two.putconn(lent)
    assert_whole(two)
    assert two.count_lent() == 0
    assert repr(OTHERS) == "lent to others"


def test_what_is_given_back_twice_is_refused(one: Any) -> None:
    """R7: as by its parent."""
    connection = one.getconn()
    one.putconn(connection)
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        one.putconn(connection)
    assert_whole(one)


def test_a_connection_of_another_pool_is_refused(one: Any) -> None:
    with opened() as other:
        connection = other.getconn()
        with pytest.raises(ValueError, match="it comes from pool"):
            one.putconn(connection)
        other.putconn(connection)


def test_what_comes_back_in_a_transaction_is_rolled_back(one: Any) -> None:
    connection = one.getconn()
    connection.execute("SELECT 1")
    one.putconn(connection)
    assert_whole(one)
    assert list(one._pool) == [connection]


def test_who_waits_for_a_full_pool_is_told() -> None:
    """D1: `ConnectionPool.wait()`."""
    pool = unopened(min_size=2)
    with closing(pool):
        pool.open()
        pool.wait(5.0)
        assert len(pool._pool) == 2
        first = pool.getconn()
        waiting = threading.Thread(target=pool.wait, args=[10.0])
        waiting.start()
        wait_until(lambda: pool._pool_full_event is not None, "somebody waits")
        pool.putconn(first)
        waiting.join()
        assert not pool.closed


@pytest.mark.parametrize("owner", ["pool", "class", "parent"])
@pytest.mark.parametrize("name", ["getconn", "putconn"])
def test_a_method_that_was_replaced_is_called(
    name: str, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: by somebody who watches the pool, say."""
    backend_pid("native")
    pool: Any = connections["native"].pool  # type: ignore[attr-defined]
    calls: list[Any] = []
    place: Any = {"pool": pool, "class": RealPool, "parent": ConnectionPool}[owner]
    original = getattr(place, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    if owner == "pool":
        monkeypatch.setitem(vars(pool), name, watched)
    else:
        monkeypatch.setattr(place, name, watched)
    backend_pid("native")
    assert len(calls) == 1
    monkeypatch.undo()
    assert_whole(pool)


# ##### The parent's own numbers #####


def lend_thrice(pool: Any) -> None:
    for _ in range(3):
        with pool.connection():
            pass


def grow(pool: Any) -> None:
    pool.resize(1, 2)
    with pool.connection(), pool.connection():
        pass
    wait_until(lambda: len(pool._pool) == 2, "it has grown")


def wait_in_vain(pool: Any) -> None:
    with pool.connection():
        for _ in range(2):
            with pytest.raises(PoolTimeout, match=r"after 0\.05 sec"):
                pool.getconn(timeout=0.05)


def wait_and_get(pool: Any) -> None:
    connection = pool.getconn()
    waiting = Waiting(pool, pool.getconn)
    pool.putconn(connection)
    pool.putconn(waiting.join())


def be_refused(pool: Any) -> None:
    pool.max_waiting = 1
    connection = pool.getconn()
    waiting = Waiting(pool, pool.getconn)
    for _ in range(2):
        with pytest.raises(TooManyRequests, match="already 1 requests waiting"):
            pool.getconn()
    pool.putconn(connection)
    pool.putconn(waiting.join())


def replaced(pool: Any, spoil: Callable[[Any], object]) -> None:
    before = made(pool)
    connection = pool.getconn()
    spoil(connection)
    pool.putconn(connection)
    wait_until(lambda: made(pool) > before and len(pool._pool) == 1, "it is replaced")
    assert connection.closed


def return_closed(pool: Any) -> None:
    replaced(pool, lambda connection: connection.close())


def return_expired(pool: Any) -> None:
    replaced(pool, lambda connection: vars(connection).update(_expire_at=0.0))


def return_drained(pool: Any) -> None:
    replaced(pool, lambda _: pool.drain())


def drain(pool: Any) -> None:
    (connection,) = pool._pool
    pool.drain()
    wait_until(lambda: len(pool._pool) == 1, "it is replaced")
    assert connection not in pool._pool


def return_in_transaction(pool: Any) -> None:
    connection = pool.getconn()
    connection.execute("SELECT 1")
    pool.putconn(connection)


def check_broken(pool: Any) -> None:
    (connection,) = pool._pool
    connection.close()
    pool.check()
    wait_until(lambda: len(pool._pool) == 1, "it is replaced")


def check_whole(pool: Any) -> None:
    (connection,) = pool._pool
    pool.check()
    assert list(pool._pool) == [connection]


def shrink(pool: Any) -> None:
    grow(pool)
    for _ in range(2):
        pool._shrink_pool()
    assert len(pool._pool) == 1


def fail_to_reset(pool: Any) -> None:
    pool._reset = lambda connection: connection.execute("SELECT no_such_column")
    replaced(pool, lambda _: None)


def reset(pool: Any) -> None:
    pool._reset = lambda connection: connection.rollback()
    connection = pool.getconn()
    pool.putconn(connection)
    wait_until(lambda: list(pool._pool) == [connection], "it is back")


def fail_a_check(pool: Any) -> None:
    def check(connection: Any) -> None:
        pool._check = None
        connection.close()
        raise psycopg.OperationalError

    pool._check = check
    with pool.connection():
        pass


PROGRAMS = [
    *(lend_thrice, grow, wait_in_vain, wait_and_get, be_refused, return_closed),
    *(return_expired, return_in_transaction, check_broken, check_whole, shrink),
    *(fail_to_reset, reset, fail_a_check),
    pytest.param(drain, marks=DRAINS),
    pytest.param(return_drained, marks=DRAINS),
]


def state_after(program: Callable[[Any], None], kind: type) -> dict[str, Any]:
    """Return what a pool knows of itself after a program, but for how long it took."""
    with opened(kind) as pool:
        program(pool)
        wait_until(lambda: not pool._growing, "it has made what it makes")
        if kind is RealPool:
            assert_whole_when_reaped(pool)
        state = {
            key: value if not key.endswith("_ms") else "some"
            for key, value in pool.get_stats().items()
        }
        for name in ("_nconns", "_nconns_min", "_closed", "_pool_full_event"):
            state[name] = getattr(pool, name)
        return {**state, "idle": len(pool._pool), "waiting": len(pool._waiting)}


def assert_whole_when_reaped(pool: Any) -> None:
    """What the parent has closed by itself, to shrink or to drain, is struck out then."""
    pool.reap()
    assert_whole(pool)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pool_counts_as_its_parent(program: Callable[[Any], None]) -> None:
    """R10: each of its numbers; and its lists are of the same length."""
    assert state_after(program, RealPool) == state_after(program, ConnectionPool)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("timeout", [None, 0.0, -1.0, 5.0])
def test_a_pool_logs_and_refuses_as_its_parent(
    timeout: float | None, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """R10: what is asked of one that has an idle connection."""

    def said_by(kind: type) -> list[str]:
        with opened(kind, name="a pool") as pool, caplog.at_level(level, "psycopg"):
            caplog.clear()
            said = []
            try:
                pool.putconn(pool.getconn(timeout))
            except PoolTimeout as error:
                said.append(str(error))
            said += [f"{each.levelname} {each.getMessage()}" for each in caplog.records]
            return said

    ours, of_parent = said_by(RealPool), said_by(ConnectionPool)
    is_refused = timeout is not None and timeout <= 0
    if is_refused and len(of_parent) != len(ours):
        pytest.skip("an older psycopg_pool looks at the time when it has to wait only")
    assert ours == of_parent
    assert len(ours) == is_refused + (level == logging.INFO) * (1 if is_refused else 3)


# ##### What is old #####


def expire(connection: Any, pool: Any) -> None:
    connection._expire_at = 0.0


def outlive_a_drain(connection: Any, pool: Any) -> None:
    pool._drained_at = time.monotonic()


AGES = [expire, pytest.param(outlive_a_drain, marks=DRAINS)]


@pytest.mark.parametrize("grow_old", AGES)
@pytest.mark.parametrize("borrows", [True, False])
def test_an_idle_connection_that_is_too_old_is_not_given_out(
    one: Any, grow_old: Callable[[Any, Any], None], borrows: bool
) -> None:
    """R10: `max_lifetime`, though it lies at the bottom of the pool all the time."""
    (old,) = one._pool
    grow_old(old, one)
    holder = Holder(one)
    new = holder.take() if borrows else one.getconn()
    assert new is not old
    wait_until(lambda: old.closed, "it is closed")
    assert made(one) == 2
    assert set(one._members) == {new}
    one.putconn(new)
    assert_whole(one)


def test_a_young_connection_is_given_out_though_those_above_are_old(two: Any) -> None:
    young, old = two._pool
    expire(old, two)
    assert two.getconn() is young
    wait_until(lambda: len(two._pool) == 1, "the other is replaced")
    two.putconn(young)
    assert_whole(two)


# ##### Check and reset #####


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that a pool's check was made for."""
    looked_at: list[Any] = []
    original = ConnectionPool._check_connection

    def watched(pool: Any, connection: Any) -> None:
        if pool._check is not None:
            looked_at.append(connection)
        original(pool, connection)

    monkeypatch.setattr(ConnectionPool, "_check_connection", watched)
    return looked_at


def test_who_looks_at_its_connection_itself_needs_no_check(checked: list[Any]) -> None:
    """C1, F2: of Django's own check; everybody else has it."""
    with opened(check=ConnectionPool.check_connection) as pool:
        Holder(pool).take_and_give()
        assert checked == []
        (connection,) = pool._pool
        pool.putconn(pool.getconn())
        assert checked == [connection]


def test_a_check_of_the_user_s_own_is_made_for_everybody(checked: list[Any]) -> None:
    """F2: which Django takes from 6.1 on."""
    called: list[Any] = []
    with opened(check=called.append) as pool:
        (connection,) = pool._pool
        Holder(pool).take_and_give()
        pool.putconn(pool.getconn())
        assert called == checked == [connection] * 2


def test_who_waited_is_not_checked_either(checked: list[Any]) -> None:
    with opened(check=ConnectionPool.check_connection) as pool:
        first, second = Holder(pool), Holder(pool)
        first.take()
        waiting = Waiting(pool, second.take)
        first.give()
        assert waiting.join() is second.connection
        assert checked == []
        assert pool._asking == {}
        second.give()


def test_a_reset_is_done_by_a_worker_which_has_the_connection_meanwhile() -> None:
    going, over = threading.Event(), threading.Event()
    by: list[int] = []

    def reset(connection: Any) -> None:
        by.append(threading.get_ident())
        going.set()
        over.wait(DEADLINE)

    with opened(reset=reset) as pool:
        holder = Holder(pool)
        connection = holder.take()
        know(connection).heard = ()
        holder.give()
        assert going.wait(DEADLINE)
        assert pool._members == {connection: RETURNING}
        assert pool.count_lent() == 1
        pool.reap()
        over.set()
        assert_whole(pool)
        assert list(pool._pool) == [connection]
        assert threading.get_ident() not in by
        assert know(connection).heard is None, "nobody knows what it has undone"
        assert made(pool) == 1


@pytest.mark.parametrize("fails", ["reset", "configure"])
def test_a_connection_that_can_not_be_reset_is_replaced(fails: str) -> None:
    """R10: nor can one that can't be configured again after it."""
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        if name == fails and len(calls) == 2 + (fails == "configure"):
            raise psycopg.OperationalError("not now")

    with opened(
        reset=lambda connection: call("reset"),
        configure=lambda connection: call("configure"),
    ) as pool:
        (connection,) = pool._pool
        Holder(pool).take_and_give()
        wait_until(lambda: made(pool) == 2, "another is made")
        assert_whole(pool)
        assert connection.closed
        Holder(pool).take_and_give()
        assert_whole(pool)
        assert made(pool) == 2


def test_a_connection_that_is_reset_and_given_up_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R10: its thread was interrupted when a worker had it already."""
    may_end, has_ended = threading.Event(), threading.Event()
    with opened(reset=lambda connection: may_end.wait(DEADLINE)) as pool:
        run_task, return_connection = pool.run_task, pool._return_connection

        def interrupted(task: Any) -> None:
            monkeypatch.delattr(pool, "run_task")
            run_task(task)
            raise Stop

        def watched(*args: Any, **kwargs: Any) -> None:
            return_connection(*args, **kwargs)
            has_ended.set()

        monkeypatch.setattr(pool, "_return_connection", watched)
        monkeypatch.setattr(pool, "run_task", interrupted)
        with pytest.raises(Stop):
            Holder(pool).take_and_give()
        assert_whole(pool)
        assert made(pool) == 2
        may_end.set()
        assert has_ended.wait(DEADLINE)
        pool.reap()
        pool.putconn(pool.getconn())  # by way of the same workers
        assert_whole(pool)
        assert made(pool) == 2


@pytest.mark.parametrize("when", ["is to be replaced", "was replaced"])
def test_what_comes_back_to_be_reset_after_it_was_given_up_is_closed(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10: the other one is there already, or will be; by then it was found to be ours."""
    reset: list[Any] = []
    with opened(size=2, reset=reset.append) as pool:
        holder = Holder(pool)
        connection = holder.take()
        later: list[Any] = []
        run_task = pool.run_task

        def give_up() -> None:
            if when == "is to be replaced":
                monkeypatch.setattr(pool, "run_task", later.append)
            assert pool._replace_if(connection, holder.me)
            if when == "was replaced":
                wait_until(lambda: made(pool) == 3, "there is another")
                assert_whole(pool)

        putconn = pool._putconn

        def watched(*args: Any, **kwargs: Any) -> None:
            give_up()
            putconn(*args, **kwargs)

        monkeypatch.setattr(pool, "_putconn", watched)
        holder.give()
        assert connection.closed
        assert connection._pool is None
        monkeypatch.setattr(pool, "run_task", run_task)
        for each in later:
            run_task(each)
        assert_whole(pool)
        assert (made(pool), reset) == (3, [])


# ##### Waiting #####


def test_who_waits_first_is_served_first(one: Any) -> None:
    """Whoever it is."""
    served: list[int] = []
    holder = Holder(one)

    def use(number: int) -> None:
        if number % 2:
            connection = one.getconn()
            served.append(number)
            one.putconn(connection)
        else:
            mine = Holder(one)
            mine.take()
            served.append(number)
            mine.give()

    holder.take()
    waiting = [Waiting(one, lambda n=n: use(n)) for n in range(6)]  # type: ignore[misc]
    holder.give()
    for each in waiting:
        each.join()
    assert served == list(range(6))
    assert_whole(one)


def test_threads_of_a_backend_are_served_in_their_order() -> None:
    served: list[int] = []

    def use(number: int) -> None:
        with pin_connection(name):
            served.append(number)
        connections[name].close()

    with extra_alias("in_line_native", "native", size=1) as name:
        with pin_connection(name) as wrapper:
            pool: Any = wrapper.pool
            waiting = [Waiting(pool, lambda n=n: use(n)) for n in range(5)]  # type: ignore[misc]
        for each in waiting:
            each.join()
    assert served == list(range(5))


def test_what_comes_back_goes_to_who_waits(one: Any) -> None:
    """R7: at once, and never by way of the idle ones."""
    holder, other = Holder(one), Holder(one)
    connection = holder.take()
    waiting = Waiting(one, other.take)
    holder.give()
    assert one._members == {connection: other.me}
    assert len(one._waiting) == len(one._pool) == 0
    assert waiting.join() is connection
    assert connection._pool is one
    other.give()


def test_who_does_not_wait_any_more_is_passed_over(one: Any) -> None:
    """R7: also one that was given one, whose giver was interrupted after that."""
    connection = one.getconn()
    waiting = Waiting(one, one.getconn)
    served, failed = Place(OTHERS), Place(OTHERS)
    served.conn = object()
    failed.fail(Stop())
    one._waiting.extendleft([served, failed])
    one.putconn(connection)
    assert waiting.join() is connection
    assert failed.conn is None
    assert len(one._waiting) == 0
    one.putconn(connection)


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.05])
def test_who_waits_in_vain_leaves_the_line(one: Any, timeout: float) -> None:
    connection = one.getconn()
    with pytest.raises(PoolTimeout, match=f"after {timeout:.2f} sec"):
        one.getconn(timeout=timeout)
    assert len(one._waiting) == 0
    one.putconn(connection)
    assert_whole(one)


def test_what_was_given_without_a_call_is_found(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: who gave it was interrupted right after that."""
    monkeypatch.setattr(real_pool, "_LOOK_AGAIN", 0.05)
    monkeypatch.setattr(Place, "call", lambda place: None)
    connection = one.getconn()
    waiting = Waiting(one, one.getconn)
    one.putconn(connection)
    assert waiting.join() is connection
    one.putconn(connection)


def test_a_place_is_called_once() -> None:
    place = Place(OTHERS)
    place.call()
    place.call()
    assert place.turn.acquire(blocking=False)
    assert not place.turn.acquire(blocking=False)


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Raise Stop in the main thread after so many seconds."""
    with alarm_clock() as ring_in:
        yield ring_in


def test_who_was_interrupted_is_given_nothing(
    one: Any, alarm: Callable[[float], object]
) -> None:
    """R3: it has left the line, and nothing is counted for an error."""
    connection = one.getconn()
    alarm(0.05)
    with pytest.raises(Stop):
        Holder(one).take()
    assert len(one._waiting) == 0
    assert one._asking == {}
    one.putconn(connection)
    assert_whole(one)
    assert one.get_stats().get("requests_errors", 0) == 0


def test_who_is_interrupted_when_it_was_given_one_gives_it_back(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3, R7."""

    class Turn:
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.release = self._lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            is_mine = timeout >= 0
            acquired = self._lock.acquire(blocking, timeout)
            if is_mine and acquired:
                raise Stop
            return acquired

    connection = one.getconn()
    monkeypatch.setattr(real_pool, "allocate_lock", Turn)
    waiting = Waiting(one, Holder(one).take)
    one.putconn(connection)
    with pytest.raises(Stop):
        waiting.join()
    assert_whole(one)
    assert list(one._pool) == [connection]


# ##### Closed #####


def test_a_closed_pool_gives_nothing_out(one: Any) -> None:
    one.close()
    for holder in (Holder(one).take, one.getconn):
        with pytest.raises(PoolClosed):
            holder()
    one.reap()


def test_what_comes_back_to_a_closed_pool_is_closed(one: Any) -> None:
    connection = one.getconn()
    one.close()
    one.putconn(connection)
    assert connection.closed
    assert len(one._pool) == 0


def test_what_comes_back_while_a_pool_is_being_closed_is_closed(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: after it was seen to be open, and before the lock was there."""
    connection = one.getconn()

    def is_expired(conn: Any) -> bool:
        one.close()
        return False

    monkeypatch.setattr(one, "_is_expired", is_expired)
    one.putconn(connection)
    assert connection.closed
    assert len(one._pool) == 0


def test_who_waits_for_a_pool_that_is_closed_is_told(one: Any) -> None:
    """F8: at once."""
    connection = one.getconn()
    waiting = Waiting(one, Holder(one).take)
    one.close()
    with pytest.raises(PoolClosed):
        waiting.join()
    one.putconn(connection)


# ##### Connecting #####

NOBODY = "host=127.0.0.1 port=1"


def test_who_waits_is_told_why_a_server_was_never_there() -> None:
    """F5: at once, and whoever comes later as well."""
    pool = unopened(conninfo=NOBODY, timeout=60)
    with closing(pool):
        pool.open()
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError, match="refused"):
                pool.getconn()
        assert not isinstance(pool.last_error, PoolTimeout)


def test_who_waits_for_a_server_that_was_there_waits_for_its_whole_time(one: Any) -> None:
    """F5: it may be back in a moment; and why it is away can be told."""
    connection = one.getconn()
    one.conninfo = NOBODY
    connection.close()
    one.putconn(connection)
    with pytest.raises(PoolTimeout):
        one.getconn(timeout=0.3)
    assert "refused" in str(one.last_error)
    one.conninfo = ""
    with one.connection():
        assert one.last_error is None


def test_who_waits_for_a_server_that_says_nothing_waits_for_its_whole_time() -> None:
    """F5: nobody knows better; the pool's own error is told."""
    over = threading.Event()

    class Silent(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            over.wait(DEADLINE)
            return super().connect(*args, **kwargs)

    pool = unopened(connection_class=Silent)
    with closing(pool):
        pool.open()
        with pytest.raises(PoolTimeout, match=r"after 0\.10 sec"):
            pool.getconn(timeout=0.1)
        over.set()
        with pool.connection():
            pass


@pytest.fixture
def scheduled(one: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """What is scheduled from here on, and when."""
    tasks: list[tuple[Any, float]] = []
    monkeypatch.setattr(
        ConnectionPool,
        "schedule_task",
        lambda pool, task, delay: tasks.append((task, delay)),
    )
    return tasks


def test_one_attempt_is_made_every_second_and_the_others_when_it_succeeds(
    one: Any, scheduled: list[tuple[Any, float]]
) -> None:
    """F2: a server that was away is noticed soon, by one attempt and not by all."""
    ticked: list[int] = []

    def attempt(number: int) -> Any:
        return SimpleNamespace(attempt=object(), tick=lambda: ticked.append(number))

    for number in range(3):
        one.schedule_task(attempt(number), 60.0)
    assert [delay for _, delay in scheduled] == [1.0, 60.0, 60.0]
    with closing(one._connect()):
        assert ticked == [0, 1, 2]
    for task, _ in scheduled:
        task.tick()  # at its own time, when it was made already
    assert ticked == [0, 1, 2]
    one.schedule_task(attempt(3), 60.0)
    assert scheduled[-1][1] == 1.0
    one._retries.clear()


class Reported:
    """A lock that tells when somebody waits for it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.release = lock.release
        self.is_awaited = threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        if not self._lock.acquire(blocking=False):
            self.is_awaited.set()
            return bool(self._lock.acquire(blocking))
        return True

    __enter__ = acquire

    def __exit__(self, *args: object) -> None:
        self.release()


def test_a_new_connection_is_written_down_when_nobody_reads_the_list(two: Any) -> None:
    """R10: else who reads it fails, if the collector lets a worker run in the midst."""
    lock, new = Reported(two._lock), []
    connecting = threading.Thread(target=lambda: new.append(two._connect()))

    class Members(dict[Any, Any]):
        def items(self) -> Any:
            for each in super().items():
                yield each
                if connecting.ident is None:
                    connecting.start()
                    wait_until(
                        lambda: lock.is_awaited.is_set() or not connecting.is_alive(),
                        "a worker has connected",
                    )

    two._lock, two._members = lock, Members(two._members)
    before = two._list_members()
    connecting.join()
    assert len(before) == 2
    assert two._members.pop(new[0]) is MADE
    new[0].close()
    new[0]._pool = None
    assert_whole(two)


def test_what_is_no_attempt_is_scheduled_as_it_is(
    one: Any, scheduled: list[tuple[Any, float]]
) -> None:
    task = object()
    one.schedule_task(task, 60.0)
    assert scheduled == [(task, 60.0)]


# ##### Lost and found #####


def has_ended(pool: Any, connection: Any) -> bool:
    return connection.closed and connection not in pool._members


@pytest.fixture
def lost(two: Any) -> tuple[Any, Holder, Any]:
    """A pool, and somebody who has lost one of its two connections."""
    holder = Holder(two)
    connection = holder.take()
    holder.connection = None
    return two, holder, connection


def test_what_a_borrower_has_lost_is_replaced_once(
    lost: tuple[Any, Holder, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """R10, R3."""
    pool, _, connection = lost
    for _ in range(3):
        pool.reap()
    assert_whole(pool)
    for _ in range(3):
        pool.reap()
    assert_whole(pool)
    assert has_ended(pool, connection)
    assert made(pool) == 3
    assert caplog.text.count("a thread was interrupted while it got a connection") == 1


def test_who_has_lost_one_and_asks_again_need_not_wait(caplog: Any) -> None:
    """R3, R10: nobody but it can know, for it is at work; the reaper leaves it alone."""
    with opened() as pool:
        holder = Holder(pool)
        lost = holder.take()
        holder.connection = None
        assert holder.take() is not lost
        assert caplog.text.count("a thread was interrupted while it got a connection") == 1
        assert lost.closed
        holder.give()
        assert_whole(pool)
        assert made(pool) == 2


@pytest.mark.parametrize("by", ["the same", "others"])
def test_what_is_not_lost_is_left_to_who_has_it_when_another_waits(
    one: Any, by: str
) -> None:
    """R7: nor if it is lent to others, on whom nobody can rely."""
    holder = Holder(one)
    connection = holder.take() if by == "the same" else one.getconn()
    with pytest.raises(PoolTimeout):
        one.getconn(0.05, holder.me if by == "the same" else OTHERS)
    assert not connection.closed
    one.putconn(connection)
    assert_whole(one)
    assert made(one) == 1


def test_what_a_borrower_had_that_is_no_more_is_replaced_once(two: Any) -> None:
    connection = Holder(two).take()
    for _ in range(3):
        two.reap()
    assert_whole(two)
    assert has_ended(two, connection)
    assert made(two) == 3


@pytest.mark.parametrize("state", ["has it", "is at work", "is nobody of ours", "is idle"])
def test_what_is_not_lost_is_left_alone(two: Any, state: str) -> None:
    """R7: above all, what somebody is using."""
    holder = Holder(two)
    connection = two.getconn() if state == "is nobody of ours" else holder.take()
    if state == "is idle":
        holder.give()
    if state == "is at work":
        holder.connection, holder.is_busy = None, True
    before = dict(two._members)
    for _ in range(3):
        two.reap()
    assert two._members == before
    assert not connection.closed
    assert made(two) == 2
    if state != "is idle":
        two.putconn(connection)
    assert_whole(two)


def test_what_was_to_be_replaced_and_was_not_is_replaced_once(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: a thread was interrupted before it had told a worker."""
    connection = two.getconn()
    with monkeypatch.context() as patch:
        patch.setattr(two, "run_task", lambda task: None)
        connection.close()
        two.putconn(connection)
    assert two._members[connection] is LOST
    assert two.count_lent() == 0
    for _ in range(3):
        two.reap()
    assert_whole(two)
    assert made(two) == 3


def test_what_the_parent_closed_is_struck_out(two: Any) -> None:
    """To shrink, say: it is not replaced, for the pool is smaller now."""
    first, second = two._pool
    with two._lock:
        two._pool.remove(first)
        two._nconns -= 1
    first.close()
    two.reap()
    assert set(two._members) == {second}
    assert_whole(two)
    assert made(two) == 2


def test_what_is_closed_and_idle_is_left_to_who_gets_it(two: Any) -> None:
    """F2: it looks, and gives back what it can't use."""
    connection = list(two._pool)[-1]
    connection.close()
    two.reap()
    assert two.getconn() is connection
    two.putconn(connection)
    assert_whole(two)
    assert made(two) == 3


def test_what_is_taken_while_the_reaper_looks_is_not_closed(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: it saw that a lease has lost its connection; then another query took it."""
    holder = Holder(two)
    connection = holder.take()
    seen = two._list_members()
    holder.give()

    class AsSeen(RealPool):
        def _list_members(self) -> list[tuple[Any, Any]]:
            return list(seen)

    def has_lost(looked_at: Any) -> bool:
        run_in_thread(holder.take)
        return True

    monkeypatch.setattr(holder, "has_lost", has_lost)
    monkeypatch.setattr(two, "__class__", AsSeen)
    two.reap()
    monkeypatch.undo()
    if holder.connection is None:
        holder.take()
    assert two._members[connection] is holder.me
    assert not connection.closed
    holder.give()
    assert_whole(two)
    assert made(two) == 2


def test_what_comes_back_after_it_was_given_up_is_closed(
    lost: tuple[Any, Holder, Any],
) -> None:
    """R10: the other one is there already, or will be."""
    pool, _, connection = lost
    pool.reap()
    pool._add_to_pool(connection)
    assert_whole(pool)
    assert connection.closed
    assert connection not in pool._pool
    assert made(pool) == 3


def test_who_asks_for_itself_is_not_taken_for_a_borrower(one: Any) -> None:
    """R7: for one of the same thread that was interrupted, and has lost what it has not."""
    holder = Holder(one)
    one._asking[threading.get_ident()] = holder.me
    expire(one._pool[0], one)
    connection = one.getconn()
    assert one._members[connection] is OTHERS
    one.reap()
    assert not connection.closed
    one.putconn(connection)
    assert_whole(one)


def test_who_waits_is_given_the_replacement(one: Any) -> None:
    """F3."""
    holder = Holder(one)
    connection = holder.take()
    waiting = Waiting(one, one.getconn)
    holder.connection = None
    one.reap()
    other = waiting.join()
    assert other is not connection
    one.putconn(other)
    assert_whole(one)


def test_a_connection_that_was_found_broken_before_use_is_counted_as_lost(one: Any) -> None:
    """R10: not as returned broken."""
    holder = Holder(one)
    connection = holder.take()
    connection.close()
    one.reject(connection)
    assert_whole(one)
    another = holder.take()
    stats = one.get_stats()
    assert stats["requests_num"] == 1, "who asks again makes the same request"
    one.putconn(another)
    assert (stats["connections_lost"], stats.get("returns_bad", 0)) == (1, 0)
    assert made(one) == 2


# ##### Interrupted #####


def quick(pool: Any) -> None:
    """Nothing is out of the ordinary."""


def checks(pool: Any) -> None:
    pool._check = lambda connection: None


def resets(pool: Any) -> None:
    pool._reset = lambda connection: None


def grows_old(pool: Any) -> None:
    for each in pool._pool:
        each._expire_at = 0.0


#: How a pool takes and gives; and how many moments are passed over, where there are many.
WAYS = [(quick, 1), (checks, 5), (resets, 5), (grows_old, 5)]


def is_free(lock: Any) -> bool:
    """Return whether another thread can have a lock."""

    def try_it() -> bool:
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return True

    return run_in_thread(try_it)


@pytest.mark.parametrize(("way", "every"), WAYS)
def test_an_interruption_at_any_moment_loses_nothing_for_long(
    two: Any, way: Callable[[Any], None], every: int
) -> None:
    """R3, R7, R10: neither before nor after, while it is taken or given."""
    holder, count = Holder(two), 0

    def use() -> None:
        way(two)
        holder.take_and_give()

    for where in interruptions(use, real_pool, locks, psycopg_pool.pool, every=every):
        count += 1
        if holder.connection is not None:
            holder.give()
        assert two._holder == 0, where
        two._check = two._reset = None
        assert_gets_whole(two, f"after an interruption of {where}")
        assert len(two._pool) == 2, where
    assert is_free(two._lock)
    assert count > 100 / every


def test_an_interruption_of_a_check_of_all_loses_nothing(two: Any) -> None:
    """R3, R10: whoever calls the pool's own method; not even those that it had not seen yet."""
    count = 0
    for where in interruptions(two.check, real_pool, locks, psycopg_pool.pool, every=3):
        count += 1
        assert_gets_whole(two, f"after an interruption of {where}")
        assert len(two._pool) == 2, where
    assert count > 30
    two.check()
    assert_whole(two)
    assert len(two._pool) == 2


def test_who_checks_all_has_them_meanwhile(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7, R10: they are not lost, however long it takes; and one that is too old goes."""
    old, _ = two._pool
    expire(old, two)
    seen = []

    def check(connection: Any) -> None:
        two.reap()
        seen.append(two.count_lent())

    monkeypatch.setattr(two, "check_connection", check)
    two.check()
    assert_whole(two)
    assert len(seen) == 1
    assert made(two) == 3
    assert old.closed


def has_ended_its_wait(waiting: Waiting) -> bool:
    waiting.pool.reap()
    return not waiting.waits


def test_an_interruption_of_who_gives_keeps_nobody_waiting(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3, R7: it gets that connection, or another."""
    monkeypatch.setattr(real_pool, "_LOOK_AGAIN", 0.01)
    holder, other, waiting = Holder(one), Holder(one), None

    def use() -> None:
        holder.give()

    def begin() -> Waiting:
        holder.take()
        return Waiting(one, other.take)

    waiting = begin()
    for where in interruptions(use, real_pool, locks, every=3):
        if holder.connection is not None:
            holder.give()

        wait_until(
            partial(has_ended_its_wait, waiting),
            f"who waited has one, after an interruption of {where}",
        )
        assert waiting.join() is other.connection, where
        other.give()
        assert_gets_whole(one, f"after an interruption of {where}")
        waiting = begin()
    assert waiting.join() is other.connection
    other.give()


def test_an_interruption_of_who_waits_loses_nothing_for_long(one: Any) -> None:
    """R3, R7: whether it was given one or not."""
    holder, giver = Holder(one), Holder(one)
    is_over = threading.Event()

    def give() -> None:
        # Once it waits; or when it has left.
        wait_until(lambda: bool(one._waiting) or is_over.is_set(), "it waits")
        giver.give()

    def use() -> None:
        is_over.clear()
        giver.take()
        giving = threading.Thread(target=give)
        giving.start()
        try:
            holder.take()
        finally:
            is_over.set()
            giving.join()

    for where in interruptions(use, real_pool, locks, every=3):
        if holder.connection is not None:
            holder.give()
        assert_gets_whole(one, f"after an interruption of {where}")
    holder.give()


@pytest.mark.parametrize(("way", "every"), WAYS[:-1])
def test_a_signal_handler_may_take_a_connection_at_any_moment(
    two: Any, way: Callable[[Any], None], every: int
) -> None:
    """R7: it gets another than the one that is being taken or given.

    But it can't wait for one: a worker may need the lock that the thread has.
    """
    holder, taken = Holder(two), []

    def use() -> None:
        way(two)
        connection = holder.take()
        assert two._members[connection] is holder.me
        holder.give()

    def handle() -> None:
        mine = Holder(two)
        taken.append(mine.take())
        assert two._members[mine.connection] is mine.me
        assert mine.connection is not holder.connection
        mine.give()

    for where in breaks(use, handle, real_pool, locks, every=every):
        two._check = two._reset = None
        assert_gets_whole(two, f"after a signal in {where}")
    assert len(taken) > 100 / every
    assert is_free(two._lock)


def test_a_signal_handler_may_take_a_connection_while_they_are_counted(two: Any) -> None:
    """R7: for a status, say."""
    taken = 0

    def handle() -> None:
        nonlocal taken
        Holder(two).take_and_give()
        taken += 1

    for where in breaks(two.count_lent, handle, real_pool, locks):
        assert is_whole(two), where
    assert taken > 30


def test_a_lease_that_a_signal_handler_has_ended_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R7: it made a query before there was a hold."""
    wrapper: Any = connections["native"]
    backend_pid("native")
    make_cursor = wrapper.make_cursor

    def handle(raw: Any) -> Any:
        monkeypatch.undo()
        backend_pid("native")
        return make_cursor(raw)

    monkeypatch.setitem(vars(wrapper), "make_cursor", handle)
    with wrapper.cursor() as cursor:
        assert wrapper.connection is not None
        assert cursor.connection is wrapper.connection
        assert wrapper.connection not in wrapper.pool._pool
    assert wrapper.connection is None
