"""Aliases that are made for one test each, so that nothing is left of what it broke."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import connections
from helpers import Census, wait_until

POOLED = ("native", "dj")


def end_pool(alias: str) -> None:
    """Close an alias's pool, whichever it is, and what is idle in it."""
    wrapper: Any = connections[alias]
    wrapper.in_atomic_block = False
    wrapper.close()
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.pop(alias, None)
        if pool is not None:
            pool.dispose()
    elif alias in wrapper._connection_pools or alias.endswith("own"):
        wrapper.close_pool()


def opened() -> set[str]:
    """Return the aliases that have a pool of which a census can be taken."""
    from dj_db_conn_pool.core import pool_container
    from own_pool.stock.base import DatabaseWrapper as OwnWrapper

    native: Any = connections["native"]
    return {*pool_container, *native._connection_pools, *OwnWrapper.pools}


def census(alias: str) -> Census:
    """Count the connections of a pool that was opened already, by its own count."""
    wrapper: Any = connections[alias]
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.get(alias)
        return Census(pool.checkedin(), pool.checkedout())
    if alias.endswith("own"):
        small = wrapper.small_pool
        return Census(len(small.idle), len(small.in_use))
    stats = wrapper._connection_pools[alias].get_stats()
    return Census(stats["pool_available"], stats["pool_size"] - stats["pool_available"])


@contextmanager
def extra_alias(
    name: str,
    engine: str,
    *,
    size: int = 2,
    timeout: float = 5.0,
    connects: bool = True,
    **changes: Any,
) -> Iterator[str]:
    """Add a database alias like that of `engine`, with `changes` in its settings.

    In the end nothing of its pool may be in use, unless it never `connects`.
    """
    given = copy.deepcopy(settings.DATABASES[engine])
    options = changes.pop("OPTIONS", {})
    if engine.endswith("dj"):
        given["POOL_OPTIONS"].update(POOL_SIZE=size, TIMEOUT=timeout)
    elif engine.endswith("native"):
        pool = {"min_size": size, "max_size": size, "timeout": timeout}
        given["OPTIONS"]["pool"].update(pool)
    given.setdefault("OPTIONS", {}).update(options)
    given["POOL_OPTIONS"] = {
        **given.get("POOL_OPTIONS", {}),
        **changes.pop("POOL_OPTIONS", {}),
    }
    given.update(changes)
    if not engine.endswith("dj"):
        del given["POOL_OPTIONS"]
    connections.settings[name] = connections.configure_settings(
        {"default": {}, name: given}
    )[name]
    if engine.endswith("own"):
        small: Any = connections[name].small_pool  # type: ignore[attr-defined]
        small.free, small.timeout = threading.BoundedSemaphore(size), timeout
    try:
        yield name
        wait_until(
            lambda: not connects or name not in opened() or census(name).in_use == 0,
            f"nothing of {name} is in use",
        )
    finally:
        end_pool(name)
        if engine.endswith("own"):
            del connections[name].pools[name]  # type: ignore[attr-defined]
        del connections[name]
        del connections.settings[name]


#: A proxy sees what passes only where it is not encrypted.
PLAIN = {"sslmode": "disable", "gssencmode": "disable"}
