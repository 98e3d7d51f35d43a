from __future__ import annotations

import threading
from collections import deque
from typing import Any, ClassVar

from django.db.backends.postgresql import base
from django.db.utils import OperationalError

SIZE = 2
TIMEOUT = 5.0


class SmallPool:
    """The simplest pool that works: a semaphore, and the idle connections."""

    def __init__(self) -> None:
        self.free = threading.BoundedSemaphore(SIZE)
        self.timeout = TIMEOUT
        self.idle: deque[Any] = deque()
        self.in_use: set[Any] = set()


class DatabaseWrapper(base.DatabaseWrapper):
    """PostgreSQL with a pool that this library knows nothing of."""

    pools: ClassVar[dict[str, SmallPool]] = {}

    @property
    def small_pool(self) -> SmallPool:
        return self.pools.setdefault(self.alias, SmallPool())

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        pool = self.small_pool
        if not pool.free.acquire(timeout=pool.timeout):
            raise OperationalError("no connection is free")
        try:
            connection = None
            while pool.idle and connection is None:
                connection = pool.idle.pop()
                if connection.closed:
                    connection = None
            if connection is None:
                connection = super().get_new_connection(conn_params)
        except BaseException:
            pool.free.release()
            raise
        pool.in_use.add(connection)
        return connection

    def _close(self) -> None:
        pool, connection = self.small_pool, self.connection
        pool.in_use.remove(connection)
        if not connection.closed:
            connection.rollback()
        pool.idle.append(connection)
        pool.free.release()

    def close_pool(self) -> None:
        """End the idle connections, as Django asks before it drops a test database."""
        pool = self.small_pool
        while pool.idle:
            pool.idle.pop().close()
