"""R7, F4, D6: SQLAlchemy's QueuePool, as django-db-connection-pool has it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import pytest
from django.db import Error, OperationalError, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import (
    DEADLINE,
    backend_pid,
    census,
    forget_pool,
    installed,
    pool_of_one,
    run_in_thread,
    wait_until,
)
from leases import Stop
from sqlalchemy import event

from django_pg_real_pool import make_release_backend, pin_connection, pool_status
from django_pg_real_pool._pools import Census, Pool, database_of, queue
from django_pg_real_pool.testing import different_connections

ALIAS = "dj"


@pytest.fixture
def wrapper() -> Iterator[Any]:
    """One that has been used, and on which nobody has left anything."""
    before: Any = connections[ALIAS]
    wrapper = connections[ALIAS] = before.copy()
    backend_pid(ALIAS)
    yield wrapper
    wrapper.close()
    connections[ALIAS] = before


def pool_of(alias: str) -> Any:
    from dj_db_conn_pool.core import pool_container

    return dict.get(pool_container, alias)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_one_connection_serves_all_that_comes_after_each_other(
    wrapper: Any, blocks: int
) -> None:
    """Whatever mode it is in, and with the savepoints of nested blocks."""
    pid = backend_pid(ALIAS)
    for entered in (blocks, 0, blocks):
        with ExitStack() as stack:
            for _ in range(entered):
                stack.enter_context(atomic(using=ALIAS))
            assert backend_pid(ALIAS) == pid
            assert (wrapper.connection is not None) is bool(entered)
        assert wrapper.connection is wrapper._lease.physical is None
        assert wrapper._hooks.pool.lent() == {}
        assert census(ALIAS).in_use == 0


def test_the_connection_is_as_the_package_gives_it_out(wrapper: Any) -> None:
    """D1: so is the proxy's `info`, which is psycopg's there, not SQLAlchemy's."""
    with wrapper.cursor():
        again = wrapper.connection.info
        assert again.backend_pid == wrapper.connection.driver_connection.info.backend_pid
    wrapper.close()
    with wrapper.cursor():  # now by the package's own code
        assert type(wrapper.connection.info) is type(again)


def test_a_backend_of_another_vendor_gets_its_connections_without_info() -> None:
    """D6: the package knows by the vendor what psycopg's connections have."""

    class Other(type(connections["stock_dj"])):  # type: ignore[misc]
        vendor = "other"

    with installed(ALIAS, make_release_backend(Other)) as wrapper:
        pid = backend_pid(ALIAS)
        assert backend_pid(ALIAS) == pid
        with wrapper.cursor():
            assert "info" not in vars(wrapper.connection)
    assert census(ALIAS).in_use == 0


# ##### What is not usual #####


@contextmanager
def somebody_waits(wrapper: Any) -> Iterator[None]:
    """Somebody is before us in the line, and leaves it once we are there."""
    line, place = wrapper._hooks.pool._lines[ALIAS], object()
    line.append(place)

    def leave() -> None:
        wait_until(lambda: len(line) == 2, "we wait as well")
        line.remove(place)

    leaving = threading.Thread(target=leave)
    leaving.start()
    yield
    leaving.join()
    assert place not in line


@contextmanager
def there_is_another_pool(wrapper: Any) -> Iterator[None]:
    """Though close_pool() was called by another thread, within this one's session."""
    before = pool_of(ALIAS)
    wrapper._hooks.pool.close(wrapper)
    yield
    assert pool_of(ALIAS) is not before
    assert pool_of(ALIAS).checkedin() == 1


@contextmanager
def the_test_kit_is_in_between(wrapper: Any) -> Iterator[None]:
    with different_connections(ALIAS):
        yield


@pytest.mark.parametrize(
    "unusual", [somebody_waits, there_is_another_pool, the_test_kit_is_in_between]
)
def test_what_is_not_usual_works_too(
    wrapper: Any, unusual: Callable[[Any], AbstractContextManager[None]]
) -> None:
    """R7, F4."""
    with unusual(wrapper):
        assert wrapper.connection is None
        assert backend_pid(ALIAS)
    assert wrapper.connection is None
    assert backend_pid(ALIAS)
    assert not wrapper._hooks.pool._lines[ALIAS]


def test_a_full_pool_lets_the_first_in_line_have_what_comes_back(wrapper: Any) -> None:
    """R7: without asking SQLAlchemy for it before, and again."""
    pool = pool_of(ALIAS)
    with ExitStack() as stack:
        for _ in range(pool.size() + pool._max_overflow):
            each = stack.enter_context(closing(pool.connect()))
        assert queue.is_full(pool)
        each.close()
        assert not queue.is_full(pool)
        assert backend_pid(ALIAS)


TIMEOUT = 2.0


@pytest.fixture
def lone() -> Iterator[str]:
    """A pool with room for one connection, and the time that one may wait for it."""
    with extra_alias("lone_dj", "dj", size=1, timeout=TIMEOUT) as name:
        backend_pid(name)
        yield name


def line_of(alias: str) -> Any:
    return connections[alias]._hooks.pool._lines[alias]  # type: ignore[attr-defined]


def test_nobody_waits_for_longer_than_the_timeout(
    lone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10, F4: not first for its turn, and then as long for a connection."""
    monkeypatch.setattr(queue, "_LOOK_AGAIN", 60.0)  # who comes first is told
    waited: list[float] = []
    has_one, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with pin_connection(lone):
            has_one.set()
            may_end.wait(DEADLINE)
        connections.close_all()

    def wait_in_vain() -> None:
        began = time.monotonic()
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            backend_pid(lone)
        waited.append(time.monotonic() - began)

    def is_in_line(count: int) -> bool:
        return len(line_of(lone)) == count

    with pin_connection(lone):
        first, second = (threading.Thread(target=each) for each in (hold, wait_in_vain))
        first.start()
        wait_until(lambda: is_in_line(1), "the first one waits")
        second.start()
        wait_until(lambda: is_in_line(2), "the second one waits")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 0.5 * TIMEOUT, "half of it is over")
    assert has_one.wait(0.3 * TIMEOUT), "nobody has told the first one"
    second.join()
    may_end.set()
    first.join()
    assert TIMEOUT <= waited[0] < 1.3 * TIMEOUT


def test_who_waits_gets_what_others_give_back(lone: str) -> None:
    """R10: who have taken it from the pool directly, so that nobody tells the line."""
    pid, got = backend_pid(lone), []
    with closing(pool_of(lone).connect()):
        waiting = threading.Thread(
            target=lambda: got.append(run_in_thread(lambda: backend_pid(lone)))
        )
        waiting.start()
        wait_until(lambda: len(line_of(lone)) == 1, "it waits")
    waiting.join()
    assert got == [pid]


def test_a_transaction_that_close_leaves_is_rolled_back(wrapper: Any) -> None:
    """S3."""
    with wrapper.cursor() as cursor:
        cursor.execute("BEGIN")
        wrapper.close()
    assert census(ALIAS).in_use == 0
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT now() = statement_timestamp()")
        assert cursor.fetchone() == (True,)


def test_who_finds_the_pool_full_after_all_is_told_who_holds_it(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4: another thread was quicker."""
    with pool_of_one(ALIAS):
        pool_options = wrapper.settings_dict["POOL_OPTIONS"]
        monkeypatch.setitem(pool_options, "TIMEOUT", 0.1)
        backend_pid(ALIAS)
        monkeypatch.setattr(queue, "is_full", lambda pool: False)
        with (
            closing(pool_of(ALIAS).connect()),
            pytest.raises(OperationalError, match=r"'dj'.*in use 1"),
        ):
            backend_pid(ALIAS)
        assert wrapper.connection is None
        assert backend_pid(ALIAS)


# ##### While another thread makes a pool, or closes one #####


def test_a_pool_that_is_made_while_others_are_closed_disturbs_nobody(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: the collector may run when the list of them is read, and with it any thread."""
    pool = wrapper._hooks.pool

    class MadeWith(dict[str, Any]):
        def items(self) -> Any:
            for each in super().items():
                yield each
                self["another"] = {}

    wrapper.close_pool()
    backend_pid(ALIAS)  # which makes it anew, whoever has made the one before
    monkeypatch.setattr(pool, "_made_with", MadeWith(pool._made_with))
    pool.close_all_of(database_of(wrapper.settings_dict))
    assert pool_of(ALIAS) is None
    assert ALIAS not in pool._made_with


def close_elsewhere() -> None:
    """Close the pool, on another thread."""
    run_in_thread(lambda: connections[ALIAS].close_pool())  # type: ignore[attr-defined]


def test_a_pool_that_is_closed_while_it_is_counted_disturbs_nobody(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: whether it is there is not asked before it is read."""
    has = type(queue._container()).has

    def has_still(container: Any, alias: str) -> Any:
        result = has(container, alias)
        monkeypatch.undo()
        close_elsewhere()
        return result

    monkeypatch.setattr(type(queue._container()), "has", has_still)
    assert pool_status(ALIAS).census.in_use == 0
    monkeypatch.undo()
    close_elsewhere()
    assert pool_status(ALIAS).census == Census()


def test_a_pool_that_is_closed_when_it_has_lent_its_first_loses_nothing(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3, R7: what it has lent can be used, and whoever comes next has another pool."""
    get, pools = Pool._get, []

    def get_then_close(self: Pool, session: Any) -> Any:
        monkeypatch.undo()
        connection = get(self, session)
        pools.append(pool_of(ALIAS))
        close_elsewhere()
        return connection

    close_elsewhere()
    monkeypatch.setattr(Pool, "_get", get_then_close)
    assert backend_pid(ALIAS)
    assert wrapper.connection is None
    assert pools[0].checkedin() == 1
    pools[0].dispose()
    assert backend_pid(ALIAS)
    assert pool_of(ALIAS) is not pools[0]
    assert census(ALIAS).in_use == 0


# ##### On its way back #####


def test_a_query_that_is_made_while_it_goes_back_has_another(wrapper: Any) -> None:
    """R7: by a signal handler, or as here by who hears of it."""
    given_back: list[int] = []
    taken: list[int] = []

    def query(physical: Any, record: Any) -> None:
        given_back.append(physical.info.backend_pid)
        if not taken:
            taken.append(0)  # for this comes here again
            taken[0] = backend_pid(ALIAS)

    event.listen(pool_of(ALIAS), "checkin", query)
    pid = backend_pid(ALIAS)
    event.remove(pool_of(ALIAS), "checkin", query)
    assert given_back == [pid, *taken]
    assert pid not in taken
    assert wrapper.connection is None
    assert census(ALIAS).in_use == 0


def test_an_interruption_ends_the_lease_that_has_no_hold_yet(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: the thread may never query again."""

    def interrupted(*args: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(type(wrapper._hooks.driver), "mode_if_ready", interrupted)
        with pytest.raises(Stop), pin_connection(ALIAS):
            pass
    assert wrapper.connection is None
    assert census(ALIAS).in_use == 0


@pytest.mark.parametrize("raised", [RuntimeError, Error])
def test_what_a_listener_raises_leaves_no_lease(
    wrapper: Any, raised: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """R3, R5: what the database raises then is only logged; anything else is raised."""
    lost = []

    def refuse(physical: Any, record: Any) -> None:
        lost.append(physical)  # by SQLAlchemy
        raise raised("not now")

    def query() -> None:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")

    forget_pool(ALIAS)
    backend_pid(ALIAS)
    event.listen(pool_of(ALIAS), "checkin", refuse)
    with caplog.at_level(logging.WARNING, "django_pg_real_pool"):
        if raised is Error:
            query()
        else:
            with pytest.raises(RuntimeError, match="not now"):
                query()
    assert ("could not give the connection" in caplog.text) is (raised is Error)
    assert wrapper.connection is wrapper._lease.physical is None
    assert wrapper._hooks.pool.lent() == {}
    assert wrapper._lease.holds.describe() == []
    for physical in lost:
        physical.close()
    forget_pool(ALIAS)
    wait_until(lambda: census(ALIAS).in_use == 0, "nothing is in use")
    assert backend_pid(ALIAS)


@pytest.mark.parametrize("alias", ["dj"], indirect=True)
def test_a_pool_of_djangos_that_somebody_has_asked_for_is_closed_as_well(
    alias: str,
) -> None:
    """D1: Django's tests ask for it, also where the engine has a pool of its own."""
    with extra_alias(f"both_{alias}", alias) as name:
        db: Any = connections[name]
        db.settings_dict["OPTIONS"]["pool"] = {"min_size": 1}
        pool = db.pool
        pool.open()
        db.close_pool()
        assert pool.closed
        assert name not in db._connection_pools
        db.close_pool()
        assert name not in db._connection_pools
