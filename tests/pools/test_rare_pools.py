"""What is done where a pool is not as it is nearly always."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, close_old_connections, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import backend_pid, census, forget_pool, installed, let_pass, wait_until
from psycopg_pool import ConnectionPool, PoolClosed
from sqlalchemy.exc import TimeoutError as QueueTimeout

from django_pg_real_pool import Census, make_release_backend, pool_status
from django_pg_real_pool._pools.native import NativePool, _Made
from django_pg_real_pool._pools.queue import QueuePool
from django_pg_real_pool._pools.real_pool import RealPool

NATIVE = pytest.mark.parametrize("alias", ["native"], indirect=True)
QUEUE = pytest.mark.parametrize("alias", ["dj"], indirect=True)


# ##### Django's own #####


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An alias whose pool is left as Django made it."""
    monkeypatch.setattr(RealPool, "adopt", lambda pool: False)
    with extra_alias("plain_native", "native", size=1) as name:
        backend_pid(name)
        wrapper: Any = connections[name]
        assert type(wrapper.pool) is ConnectionPool
        yield name


def test_a_psycopg_pool_that_is_made_otherwise_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """R10: what ours overrides is looked for when a pool is made; the log says so once."""
    monkeypatch.setitem(sys.modules, RealPool.__module__, None)
    with (
        caplog.at_level("INFO", logger="django_pg_real_pool"),
        extra_alias("changed_native", "native", size=1) as name,
    ):
        pid = backend_pid(name)
        wrapper: Any = connections[name]
        assert type(wrapper.pool) is ConnectionPool
        with atomic(name):
            assert backend_pid(name) == pid
    assert [each.getMessage() for each in caplog.records] == [
        "psycopg_pool has changed, so its pools are used as they are"
    ]


def test_a_pool_that_stock_has_made_is_closed_with_the_others(wrapper: Any) -> None:
    """D1: Django keeps one pool for each alias, whichever class has made it."""
    with extra_alias("stocks_native", "native") as name:
        ours: Any = connections[name]
        stock: Any = type(connections["stock_native"])(ours.settings_dict, name)
        pool = stock.pool
        ours.close_pool()
        assert pool.closed
        stock.close()


def test_a_pool_that_is_left_as_it_is_works(plain: str) -> None:
    """R1, R7, A3: if not as quickly."""
    pid = backend_pid(plain)
    with atomic(plain):
        assert backend_pid(plain) == pid
        assert census(plain) == (0, 1)
    assert census(plain) == (1, 0)
    assert backend_pid(plain) == pid


def test_a_pool_that_is_left_as_it_is_tells_its_census(plain: str) -> None:
    """P3: who waits, too."""

    def query() -> None:
        backend_pid(plain)
        connections.close_all()

    waiting = threading.Thread(target=query)
    with connections[plain].cursor():
        waiting.start()
        wait_until(lambda: pool_status(plain).census.waiting == 1, "it waits")
        let_pass(0.05)
        assert pool_status(plain).census.in_use == 1
    waiting.join()
    found = pool_status(plain).census
    assert found == Census(1, 1, 1, 0, 0, 1, 1, found.longest_wait, 1, 1)
    assert (found.longest_wait or 0) > 0.005


def test_a_pool_that_a_child_inherits_is_forgotten() -> None:
    """F1: whatever its class; Django is to make another."""
    adapter, pool = NativePool(), object()
    pools = {"default": pool}
    made = _Made(pool, pools, {}, is_real=False)
    adapter._made = {"default": made}
    assert adapter.abandon() == ({"default": made}, {})
    assert pools == {}
    assert adapter._made == {}


def counted(alias: str) -> tuple[int | None, ...]:
    """Return what a pool counts now: at most, size, idle, in use, waiting."""
    found = pool_status(alias).census
    return found.max_size, found.size, found.idle, found.in_use, found.waiting


def test_two_classes_with_one_alias_have_one_pool_which_knows_its_borrowers() -> None:
    """R3, P3: the one that comes second finds the first one's, and uses it as such."""

    class Base(type(connections["stock_native"])):  # type: ignore[misc]
        pass

    with extra_alias("shared_native", "native", size=1) as name:
        pid = backend_pid(name)
        pool = connections[name].pool  # type: ignore[attr-defined]
        with installed(name, make_release_backend(Base)) as wrapper:
            assert backend_pid(name) == pid
            with wrapper.cursor():
                assert list(pool._members.values()) == [wrapper._lease.me]
            assert wrapper._hooks.pool.lent() == {}
            assert counted(name) == (1, 1, 1, 0, 0)


def test_a_base_that_gets_its_connections_itself_gets_none_that_is_too_old() -> None:
    """R10, S6: from Django's pool in the end; and it is configured after a cleaning."""

    class Base(type(connections["stock_native"])):  # type: ignore[misc]
        def get_new_connection(self, conn_params: Any) -> Any:
            return super().get_new_connection(conn_params)

    with (
        extra_alias("indirect_native", "native", size=1, TIME_ZONE="Asia/Tokyo") as name,
        installed(name, make_release_backend(Base)) as wrapper,
    ):
        pid = backend_pid(name)
        assert backend_pid(name) == pid
        assert counted(name) == (1, 1, 1, 0, 0)
        with wrapper.cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        wrapper.close()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT current_setting('TimeZone')")
            assert cursor.fetchone() == ("Asia/Tokyo",)
        (idle,) = wrapper.pool._pool
        idle._expire_at = 0.0
        assert backend_pid(name) != pid
        wrapper.close_pool()


@NATIVE
def test_a_pool_that_nobody_of_ours_made_is_replaced_if_it_was_closed(alias: str) -> None:
    """F8: by the stock backend, say, with the same alias."""
    with extra_alias("found_native", alias) as name:
        found = ConnectionPool(min_size=1, open=True)
        found.close()
        wrapper: Any = connections[name]
        wrapper._connection_pools[name] = found
        assert backend_pid(name)
        assert wrapper.pool is not found


@NATIVE
def test_a_pool_that_can_not_be_opened_is_told_of(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8: after a while, in which whoever closed it might have forgotten it."""

    def refuse(pool: Any) -> None:
        raise PoolClosed("closed by somebody")

    monkeypatch.setattr("django_pg_real_pool._pools.native._CLOSING", 0.05)
    with extra_alias("refused_native", alias, connects=False) as name:
        with monkeypatch.context() as patch:
            patch.setattr(ConnectionPool, "open", refuse)
            with pytest.raises(OperationalError, match="closed by somebody"):
                backend_pid(name)
        assert backend_pid(name)


@pytest.mark.skipif(
    "close_returns" not in inspect.signature(ConnectionPool).parameters,
    reason="this psycopg_pool has no close_returns",
)
def test_a_pool_whose_connections_return_when_closed_is_used() -> None:
    """D6: then their class is the pool's own matter."""
    pool = {"min_size": 1, "max_size": 2, "close_returns": True}
    with extra_alias("returning_native", "native", OPTIONS={"pool": pool}) as name:
        assert backend_pid(name)
        connections[name].close()
        wait_until(lambda: census(name).in_use == 0, "it is back")


# ##### SQLAlchemy's #####


def test_a_turn_that_does_not_come_ends_the_wait() -> None:
    """F4: who is first in line has all the time that is left."""
    place = threading.Lock()
    place.acquire()
    pool = SimpleNamespace(timeout=lambda: 0.01)
    with pytest.raises(QueueTimeout, match=r"timeout 0\.01"):
        QueuePool()._wait_in(deque([object(), place]), place, pool)


@QUEUE
def test_a_driver_that_notices_nothing_keeps_the_pools_ping(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: nobody else looks."""
    from dj_db_conn_pool.core import pool_container

    wrapper: Any = connections[alias]
    forget_pool(alias)
    monkeypatch.setattr(type(wrapper._hooks.driver), "notices_closing", False)
    backend_pid(alias)
    assert pool_container.get(alias)._pre_ping
    monkeypatch.undo()
    forget_pool(alias)
    backend_pid(alias)
    assert not pool_container.get(alias)._pre_ping


@QUEUE
def test_a_pool_that_somebody_else_has_just_made_is_used(alias: str, wrapper: Any) -> None:
    """R7: by another thread, at the same moment."""
    backend_pid(alias)
    pool, lease = wrapper._hooks.pool, wrapper._lease
    proxy = pool._make_and_take(lease)
    pool.forget(lease)
    assert proxy.driver_connection.info.backend_pid
    proxy.close()


# ##### Any #####


def test_a_thread_that_only_connects_holds_what_it_has(alias: str, wrapper: Any) -> None:
    """The one rule: nothing of its stack is the making of a test database."""
    wrapper.inc_thread_sharing()
    thread = threading.Thread(target=wrapper.connect)
    thread.start()
    thread.join()
    assert wrapper.connection is not None
    wrapper.close()
    wrapper.dec_thread_sharing()
    wait_until(lambda: census(alias).in_use == 0, "it is back")


def test_a_block_that_was_closed_with_autocommit_off_is_over(
    alias: str, wrapper: Any
) -> None:
    """D2: the next request of the thread begins anew."""
    wrapper.set_autocommit(False)
    with suppress(Exception), atomic(using=alias):
        backend_pid(alias)
        wrapper.close()
    assert wrapper.in_atomic_block
    close_old_connections()
    assert not wrapper.in_atomic_block
    assert backend_pid(alias)
    assert wrapper.connection is None
