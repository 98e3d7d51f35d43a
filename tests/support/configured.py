"""Aliases that have the settings of a test, and what the checks say of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from django.core import checks
from django.db import connections
from settings import DATABASES


@contextmanager
def configured(
    alias: str, engine: Any = None, name: str = "configured", **settings: Any
) -> Iterator[Any]:
    """Let `connections[name]` have the engine of `alias`, with other settings."""
    given = deepcopy({**DATABASES[alias], **settings})
    given = connections.configure_settings({"default": given})["default"]
    wrapper: Any = (engine or type(connections[alias]))(given, name)
    connections[name] = wrapper
    try:
        yield wrapper
    finally:
        wrapper.in_atomic_block = False
        wrapper.close()
        if hasattr(wrapper, "small_pool"):
            wrapper.close_pool()
            wrapper.pools.pop(name, None)
        elif alias.endswith("dj"):
            from dj_db_conn_pool.core import pool_container

            pool = pool_container.pop(name, None)
            if pool is not None:
                pool.dispose()
        elif name in wrapper._connection_pools:
            wrapper.close_pool()
        del connections[name]


def found(alias: str, engine: Any = None, **settings: Any) -> list[checks.CheckMessage]:
    with configured(alias, engine, **settings):
        return checks.run_checks(databases=["configured"])


def error(number: int, message: str, hint: str) -> checks.Error:
    return checks.Error(
        f"Database 'configured': {message}",
        hint=hint,
        id=f"django_pg_real_pool.E{number:03}",
    )
