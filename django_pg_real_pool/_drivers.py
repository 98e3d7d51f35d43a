"""What differs between database drivers, asked of a connection that is checked out.

`Driver` is the safe default for a driver that this library has never seen: whatever it
can't know, it answers so that the connection is held longer.  A method's `connection`
is what the wrapper has as `self.connection`: the driver's own, or a pool's proxy of it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from types import ModuleType
from typing import Any
from weakref import WeakSet

#: Where a psycopg connection carries our mark; faster than a lookup beside it.
_MARK = "_django_pg_real_pool_set_up"


class Driver:
    """Any driver that follows PEP 249."""

    def __init__(self) -> None:
        self._set_up: WeakSet[Any] = WeakSet()

    def is_set_up(self, physical: Any) -> bool:
        """Return whether `mark_set_up` was called with this physical connection."""
        try:
            return physical in self._set_up
        except TypeError:  # no weak references: take it for new each time
            return False

    def mark_set_up(self, physical: Any) -> None:
        with suppress(TypeError):
            self._set_up.add(physical)

    def autocommit(self, connection: Any) -> bool | None:
        """Return the connection's autocommit mode; None when it can't be told."""
        return None

    def in_transaction(self, connection: Any, autocommit: bool) -> bool:
        """Return whether giving the connection away now would lose a transaction."""
        return not autocommit

    def detach(self, cursor: Any) -> None:
        """Make sure that `cursor` never reaches its connection again."""
        cursor.close()

    def close_portal(self, connection: Any, name: str) -> None:
        """Close the server's side of a named cursor that was dropped unclosed."""


class Psycopg(Driver):
    """psycopg 3, whose connections know the state of their transaction."""

    # libpq's PGTransactionStatusType: part of its ABI, so the numbers are fixed.
    ACTIVE, INTRANS, INERROR = 1, 2, 3

    def is_set_up(self, physical: Any) -> bool:
        return _MARK in physical.__dict__

    def mark_set_up(self, physical: Any) -> None:
        physical.__dict__[_MARK] = True

    def autocommit(self, connection: Any) -> bool | None:
        return bool(connection.autocommit)

    def in_transaction(self, connection: Any, autocommit: bool) -> bool:
        # Not "is autocommit off": a plain "BEGIN" sent with autocommit on is a
        # transaction too, and a block that ran nothing yet is not.
        status = connection.pgconn.transaction_status
        if status == self.ACTIVE:
            # A statement was cut short.  Within a transaction Django ends it; outside
            # of one the pool replaces the connection, so nothing is worth keeping.
            return not autocommit
        return bool(status == self.INTRANS or status == self.INERROR)

    def detach(self, cursor: Any) -> None:
        if getattr(cursor, "name", None):
            # A portal lives in the server's session: end it while it is still ours.
            cursor.close()
        else:
            # The rows that it fetched stay readable, so it is cut off, not closed.
            cursor.__class__ = _detached(type(cursor))

    def close_portal(self, connection: Any, name: str) -> None:
        from psycopg import sql

        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CLOSE {}").format(sql.Identifier(name)))


#: What a psycopg cursor does through its connection.
_REACHES_CONNECTION = ("execute", "executemany", "callproc", "copy", "stream")


@lru_cache(maxsize=None)
def _detached(cursor_class: type) -> type:
    """Return `cursor_class` with everything that reaches the connection refused."""
    from psycopg import InterfaceError

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InterfaceError(
            "the cursor was open when its connection was released by close(): "
            "open a new cursor"
        )

    namespace: dict[str, Any] = dict.fromkeys(_REACHES_CONNECTION, refuse)
    namespace["connection"] = property(refuse)
    namespace["__slots__"] = ()
    return type(cursor_class.__name__, (cursor_class,), namespace)


def driver_for(database: ModuleType) -> Driver:
    """Return the driver for a wrapper class's `Database` module."""
    return Psycopg() if database.__name__ == "psycopg" else Driver()
