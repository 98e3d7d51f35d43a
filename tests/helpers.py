"""What the tests ask of pools and servers from outside, and how they wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import connections

DEADLINE = 10.0


class Census(NamedTuple):
    """How many connections a pool has, by its own count."""

    idle: int
    in_use: int


def census(alias: str) -> Census:
    """Count the connections of an alias's pool, asking the pool, not the wrapper."""
    wrapper: Any = connections[alias]
    if alias.removeprefix("stock_") == "dj":
        from dj_db_conn_pool.core import pool_container

        if alias not in pool_container:
            return Census(0, 0)
        pool = pool_container.get(alias)
        return Census(pool.checkedin(), pool.checkedout())
    if alias.removeprefix("stock_") == "own":
        small = wrapper.small_pool
        return Census(len(small.idle), len(small.in_use))
    if alias not in wrapper._connection_pools:
        return Census(0, 0)
    stats = wrapper._connection_pools[alias].get_stats()
    return Census(stats["pool_available"], stats["pool_size"] - stats["pool_available"])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until `condition()` holds; fail, saying what was awaited, at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {DEADLINE} s: {what}")
        time.sleep(0.005)


def backend_pid(alias: str) -> int:
    """Run a query and return which server process ran it."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])
