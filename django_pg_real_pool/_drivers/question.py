"""Asks a PostgreSQL server something through libpq, and waits for a limited time."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any


def ask(pgconn: Any, wait: Callable[[float], Any], sql: bytes, seconds: float) -> list[Any]:
    """Send statements and return their results, which may be errors.

    `wait` is the `waiter()` of the connection's socket.  Raises TimeoutError, or
    psycopg's error of a broken connection; then it can't be used any more.
    """
    deadline = monotonic() + seconds
    results: list[Any] = []
    pgconn.send_query(sql)
    while True:
        # Before each result: get_result() blocks, and all threads with it, for what has
        # not arrived, and the last message of an answer may come alone.
        while pgconn.flush() or pgconn.is_busy():
            remaining = deadline - monotonic()
            if remaining < 0 or not wait(remaining):
                raise TimeoutError
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)
