"""Plugin: unblocks the database, and proves after each test that nothing leaked."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections
from helpers import census, forget_pool, wait_until
from settings import STOCK_OF

from django_pg_real_pool._process import registry

ENGINES = list(STOCK_OF)


@pytest.fixture(scope="session", autouse=True)
def _database_is_allowed(django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield
        # While there is a server still: pools go on asking for what they lost.
        stock: Any = connections["stock_native"]
        for pool in list(stock._connection_pools.values()):
            pool.close()


def pytest_collection_finish() -> None:
    """Let no `gc.collect()` of a test go through all that was imported; it takes 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=ENGINES)
def alias(request: pytest.FixtureRequest) -> str:
    """Each engine in turn: the contract is one, whatever pool is beneath."""
    return str(request.param)


@pytest.fixture
def wrapper(alias: str) -> Any:
    """The calling thread's wrapper for `alias`."""
    return connections[alias]


@pytest.fixture
def observer() -> Iterator[Any]:
    """A connection beside all pools, in autocommit: it sees what is committed."""
    with psycopg.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    yield
    wrappers: dict[str, Any] = {alias: connections[alias] for alias in ENGINES}
    held = {
        alias: each._lease
        for alias, each in wrappers.items()
        if each.connection is not None
    }
    for each in connections.all():
        # What a failed test left behind must not fail the next one.
        each.in_atomic_block = False
        each.close()
    assert not held, f"the test ended with a lease: {held}"
    for alias in [*STOCK_OF, *STOCK_OF.values()]:
        try:
            wait_until(
                lambda alias=alias: census(alias).in_use == 0,  # type: ignore[misc]
                f"no connection of {alias} is in use, but {census(alias)}",
            )
        except AssertionError:
            forget_pool(alias)  # what is told once must not fail all tests to come
            raise
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("TRUNCATE item RESTART IDENTITY")
    if any(adapter.lent() for adapter in registry.adapters()):
        gc.collect()  # of wrappers that nobody has
    kept = [adapter.lent() for adapter in registry.adapters() if adapter.lent()]
    if kept:
        for adapter in registry.adapters():
            adapter._tallies.clear()
    assert not kept, f"an adapter remembers connections that nobody has: {kept}"
