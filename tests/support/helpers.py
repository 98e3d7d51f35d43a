"""What the tests ask of pools and servers from outside, and how they wait."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from django.db import connections

DEADLINE = 10.0

#: Seconds that a pool may take to make a connection before it is counted as lost.
SETTLING = 1.0

T = TypeVar("T")


class Census(NamedTuple):
    """How many connections a pool has, by its own count."""

    idle: int
    in_use: int


def census(alias: str) -> Census:
    """Count the connections of an alias's pool, asking the pool, not the wrapper."""
    wrapper: Any = connections[alias]
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        if alias not in pool_container:
            return Census(0, 0)
        pool = pool_container.get(alias)
        return Census(pool.checkedin(), pool.checkedout())
    if alias.endswith("own"):
        small = wrapper.small_pool
        return Census(len(small.idle), len(small.in_use))
    if alias not in wrapper._connection_pools:
        return Census(0, 0)
    return _census_of_native(wrapper._connection_pools[alias])


def _census_of_native(pool: Any) -> Census:
    """Wait for a moment until the pool is not making a connection, then count.

    Its size has those that it is still making, too; which of them are out, it knows.  Its
    size is believed in the end, because it alone has a connection that was lost.
    """
    deadline = time.monotonic() + SETTLING
    while True:
        stats = pool.get_stats()
        idle, in_use = (
            stats["pool_available"],
            stats["pool_size"] - stats["pool_available"],
        )
        count_lent = getattr(pool, "count_lent", None)
        if count_lent is None or time.monotonic() > deadline or in_use <= count_lent():
            return Census(idle, in_use)
        time.sleep(0.005)


def has_gil() -> bool:
    """Return whether only one thread at a time runs Python code."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Poll until `condition()` holds; fail, saying what was awaited, at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {what}")
        time.sleep(0.005)


def backend_pid(alias: str) -> int:
    """Run a query and return which server process ran it."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def run_in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread of its own, end its connections, return its result."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    if thread.is_alive():
        raise AssertionError(f"{function} still runs after {DEADLINE} s")
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def installed(alias: str, wrapper_class: Any, **settings: Any) -> Iterator[Any]:
    """Let this thread's `connections[alias]` be a new wrapper of `wrapper_class`.

    It has the settings of `alias`, hence its pool, and those given here.
    """
    before = connections[alias]
    before.close()
    wrapper = wrapper_class({**before.settings_dict, **settings}, alias)
    connections[alias] = wrapper
    try:
        yield wrapper
    finally:
        wrapper.in_atomic_block = False
        try:
            wrapper.close()
        finally:
            connections[alias] = before


@contextmanager
def shared(alias: str) -> Iterator[Any]:
    """Let other threads use this thread's wrapper."""
    db: Any = connections[alias]
    backend_pid(alias)
    db.inc_thread_sharing()
    try:
        yield db
    finally:
        db.dec_thread_sharing()


def forget_pool(alias: str) -> None:
    """End the pool of `alias`: the next connection is a new one, of a new pool."""
    wrapper: Any = connections[alias]
    wrapper.close()
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.pop(alias, None)
        if pool is not None:
            pool.dispose()
    else:
        wrapper.close_pool()


def let_grow(wrapper: Any) -> None:
    """Let a pool of psycopg's have what it is making, and all of it be idle.

    psycopg_pool 3.2.0 and 3.2.1 lose what they make while they are closed.
    """
    pool: Any = getattr(wrapper, "pool", None)

    def has_grown() -> bool:
        stats = pool.get_stats()
        return bool(stats["pool_available"] == stats["pool_size"])

    if hasattr(pool, "get_stats"):
        wait_until(has_grown, "the pool has grown")


@contextmanager
def pool_of_one(alias: str) -> Iterator[None]:
    """Give `alias` a new pool with room for one connection, for as long as the block.

    Whoever gets a connection then gets that one, so nothing looks right by luck.
    """
    wrapper: Any = connections[alias]
    settings = wrapper.settings_dict
    before = dict(settings)
    forget_pool(alias)
    if alias.endswith("dj"):
        settings["POOL_OPTIONS"] = {**settings["POOL_OPTIONS"], "POOL_SIZE": 1}
    elif alias.endswith("own"):
        wrapper.small_pool.free = threading.BoundedSemaphore(1)
    else:
        pool = {**settings["OPTIONS"]["pool"], "min_size": 1, "max_size": 1}
        settings["OPTIONS"] = {**settings["OPTIONS"], "pool": pool}
    try:
        yield
    finally:
        forget_pool(alias)
        settings.update(before)
        if alias.endswith("own"):
            del wrapper.pools[alias]


def let_pass(seconds: float) -> None:
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, f"{seconds} s have passed")
