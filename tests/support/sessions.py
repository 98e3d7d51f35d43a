"""What a session looks like from inside, and a pool of one to hand sessions on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connections
from faults import extra_alias

T = TypeVar("T")

#: Every custom setting that the tests use.
SETTINGS = (*("app.tenant", "transaction.x", "local.x", "constraints.x", "local\u00a0y.x"),)

_QUERIES = {
    "settings": "SELECT name, setting FROM pg_settings WHERE name NOT IN ("
    "'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')",
    "custom": "SELECT "
    + ", ".join(f"nullif(current_setting('{name}', true), '')" for name in SETTINGS),
    "users": "SELECT current_user, session_user",
    "locks": "SELECT classid, objid, mode FROM pg_locks "
    "WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "channels": "SELECT pg_listening_channels()",
    "prepared": "SELECT name FROM pg_prepared_statements",
    "cursors": "SELECT name FROM pg_cursors WHERE is_holdable",
    "relations": "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
    "functions": "SELECT proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
    "types": "SELECT typname FROM pg_type WHERE typnamespace = pg_my_temp_schema()",
    "slots": "SELECT slot_name FROM pg_replication_slots "
    "WHERE temporary AND active_pid = pg_backend_pid()",
}


def session_of(cursor: Any) -> dict[str, Any]:
    """Return everything of its own session that an open cursor can see."""
    seen = {}
    for name, query in _QUERIES.items():
        cursor.execute(query)
        seen[name] = sorted(cursor.fetchall(), key=repr)
    return seen


def look(alias: str) -> tuple[int, dict[str, Any]]:
    """Return the server process that this thread gets, and what its session is like."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
        return pid, session_of(cursor)


def ask(alias: str, sql: str, params: Any = None) -> Any:
    """Return the first column of the first row, through a cursor of its own."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0]


def in_another_request(function: Callable[[], T]) -> T:
    """Run `function` on a thread of its own, as a request that others do not know of."""

    def run() -> T:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@contextmanager
def pool_for_one(engine: str, **changes: Any) -> Iterator[str]:
    """Make an alias like that of `engine`, whose pool has room for one connection.

    So whoever comes next gets the same session, if it is handed on at all.
    """
    with extra_alias(f"single_{engine}", engine, size=1, **changes) as name:
        ask(name, "SELECT 1")
        connections[name].close()
        try:
            yield name
        finally:
            connections[name].close()
