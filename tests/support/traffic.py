"""Watches pools at work, and lets them run dry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import connections
from helpers import census, wait_until


class Move(NamedTuple):
    """One hand-over between a pool and whoever uses the connection."""

    direction: str  # "out" or "in"
    pid: int
    thread: int


class Traffic:
    """What a pool handed out and took back, in order, as the pool itself saw it."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        #: By identity: who watches must not keep alive what somebody lets go.
        self._pids: dict[int, int] = {}

    def out(self, key: Any, pid: int) -> None:
        self._pids[id(key)] = pid
        self.moves.append(Move("out", pid, threading.get_ident()))

    def back(self, key: Any) -> None:
        if id(key) in self._pids:  # else it was taken before anybody watched
            self.moves.append(Move("in", self._pids[id(key)], threading.get_ident()))

    @property
    def checkouts(self) -> int:
        return sum(move.direction == "out" for move in self.moves)

    @property
    def checkins(self) -> int:
        return sum(move.direction == "in" for move in self.moves)


def _watch_native(pool: Any, traffic: Traffic, patch: pytest.MonkeyPatch) -> None:
    owner = type(pool)
    getconn, putconn = owner.getconn, owner.putconn

    def watched_getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        connection = getconn(self, *args, **kwargs)
        if self is pool:
            traffic.out(connection, connection.info.backend_pid)
        return connection

    def watched_putconn(self: Any, connection: Any) -> None:
        if self is pool:
            traffic.back(connection)
        putconn(self, connection)

    patch.setattr(owner, "getconn", watched_getconn)
    patch.setattr(owner, "putconn", watched_putconn)


def _watch_own(alias: str, traffic: Traffic, patch: pytest.MonkeyPatch) -> None:
    from own_pool.stock.base import DatabaseWrapper

    get_new_connection, close = DatabaseWrapper.get_new_connection, DatabaseWrapper._close

    def watched_get(self: Any, conn_params: dict[str, Any]) -> Any:
        connection = get_new_connection(self, conn_params)
        if self.alias == alias:
            traffic.out(connection, connection.info.backend_pid)
        return connection

    def watched_close(self: Any) -> None:
        if self.alias == alias:
            traffic.back(self.connection)
        close(self)

    patch.setattr(DatabaseWrapper, "get_new_connection", watched_get)
    patch.setattr(DatabaseWrapper, "_close", watched_close)


@contextmanager
def watch(alias: str) -> Iterator[Traffic]:
    """Record every hand-over of an alias's pool; the pool works on as it did."""
    traffic = Traffic()
    wrapper: Any = connections[alias]
    with pytest.MonkeyPatch.context() as patch:
        if alias.endswith("native"):
            _watch_native(wrapper.pool, traffic, patch)
            yield traffic
        elif alias.endswith("own"):
            _watch_own(alias, traffic, patch)
            yield traffic
        else:
            from dj_db_conn_pool.core import pool_container
            from sqlalchemy import event

            def out(connection: Any, record: Any, proxy: Any) -> None:
                traffic.out(record, connection.info.backend_pid)

            def back(connection: Any, record: Any) -> None:
                traffic.back(record)

            pool = pool_container.get(alias)
            event.listen(pool, "checkout", out)
            event.listen(pool, "checkin", back)
            try:
                yield traffic
            finally:
                event.remove(pool, "checkout", out)
                event.remove(pool, "checkin", back)


def warm_up(alias: str) -> None:
    """Use an alias's pool once, and wait until it has opened what it opens by itself."""
    wrapper: Any = connections[alias]
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    wrapper.close()
    wait_until(lambda: census(alias).in_use == 0, f"the pool of {alias} is at rest")


def make_own_pool(alias: str, size: int) -> None:
    """Give an alias of the backend made by a user a pool of another size."""
    from own_pool.stock.base import DatabaseWrapper

    wrapper: Any = connections[alias]
    if alias.endswith("own") and alias not in DatabaseWrapper.pools:
        wrapper.small_pool.free = threading.BoundedSemaphore(size)


class DryPool:
    """An alias with a pool of one connection, which can be taken away."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    @property
    def wrapper(self) -> Any:
        return connections[self.alias]

    @contextmanager
    def run_dry(self) -> Iterator[None]:
        """Let somebody else hold the only connection: whoever asks for one fails."""
        other = self.wrapper.copy()
        cursor = other.cursor()
        try:
            assert census(self.alias) == (0, 1)
            yield
            assert census(self.alias) == (0, 1)
        finally:
            cursor.close()
            del cursor, other
        wait_until(lambda: census(self.alias) == (1, 0), f"{self.alias} has it back")
