"""What is done where a pool is not as it is nearly always."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, close_old_connections, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import backend_pid, census, forget_pool, wait_until
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy.exc import TimeoutError as QueueTimeout

from django_pg_real_pool import pool_status
from django_pg_real_pool._pools.native import NativePool, _adapt, _Opened
from django_pg_real_pool._pools.native_connection import remembering
from django_pg_real_pool._pools.queue_pool import QueuePool

NATIVE = pytest.mark.parametrize("alias", ["native"], indirect=True)
QUEUE = pytest.mark.parametrize("alias", ["dj"], indirect=True)


# ##### Django's own #####


def test_a_pool_that_has_other_names_is_left_as_it_is() -> None:
    """C1: it works, if not as well."""

    class OtherPool:
        check_connection = None
        _check = "its own"
        connection_class = remembering(None)

    pool = OtherPool()
    _adapt(pool)
    assert vars(pool) == {}


@NATIVE
def test_a_line_of_another_kind_is_counted_by_the_pool(alias: str) -> None:
    """P3: who waits."""
    backend_pid(alias)
    pool: Any = connections[alias].pool  # type: ignore[attr-defined]
    pool._waiting = deque()
    assert pool_status(alias).census.waiting == 0
    forget_pool(alias)


def test_a_pool_whose_connections_are_its_own_class_is_abandoned() -> None:
    """F1: by a child."""
    adapter, pool = NativePool(), SimpleNamespace(connection_class=object)
    pools = {"default": pool}
    opened = _Opened(pool, pools, None)
    adapter._opened = {"default": opened}
    assert adapter.abandon() == {"default": opened}
    assert pools == {}
    assert adapter._opened == {}


@NATIVE
def test_a_pool_that_stays_closed_is_told_of(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: somebody closed it, and did not forget it."""
    backend_pid(alias)
    pool: Any = connections[alias].pool  # type: ignore[attr-defined]
    pool.close()
    monkeypatch.setattr("django_pg_real_pool._pools.native._CLOSING", 0.05)
    with pytest.raises(OperationalError, match="closed"):
        backend_pid(alias)
    forget_pool(alias)
    assert backend_pid(alias)


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


def test_a_server_that_says_nothing_is_waited_for_as_long_as_the_pool_does() -> None:
    """F5: and the pool's own error is told."""

    class Silent:
        timeout = 0.01
        connection_class = remembering(None)

        def getconn(self, timeout: float) -> Any:
            raise PoolTimeout("nothing came")

    with pytest.raises(PoolTimeout, match="nothing came"):
        NativePool()._first_getconn(Silent())


def test_a_connection_may_be_made_before_there_is_a_pool() -> None:
    """F5: nobody is to be told then that the server is back."""
    with remembering(None).connect() as connection:
        assert connection.info.backend_pid


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
    proxy = wrapper._hooks.pool._make_and_checkout(wrapper)
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
