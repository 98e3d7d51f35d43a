"""Takes a connection of SQLAlchemy's QueuePool and gives it back, and nothing else.

The pool's own way is as long as for anybody; what is spared is ours, which prepares for
everything.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._drivers.psycopg3 import IDLE, KNOWN
from . import Pool

if TYPE_CHECKING:
    from .._state import LeaseState


class QueueShortcut:
    """The way for the wrappers of one alias while nobody waits for its pool."""

    def __init__(self, adapter: Pool, pools: Any, line: deque[Any]) -> None:
        self._adapter = adapter
        self._pools = pools
        self._line = line

    def take(self, wrapper: LeaseState) -> bool:
        """Get a connection; return whether it can be used at once.

        If not, `wrapper` may have one all the same, which has to be looked at.
        """
        hooks, pool = wrapper._hooks, dict.get(self._pools, wrapper.alias)
        if pool is None or self._line or hooks.pool is not self._adapter or is_full(pool):
            return False
        try:
            wrapper._get_from_pool(partial(connect, pool))  # type: ignore[attr-defined]
            physical = wrapper._physical or hooks.pool.physical(wrapper.connection)
            return wrapper._make_ready(physical)  # type: ignore[attr-defined,no-any-return]
        except BaseException:
            wrapper._close_lease()  # type: ignore[attr-defined]
            raise

    def put_back(self, wrapper: LeaseState) -> bool:
        """Give the connection back; False: nothing has been done, there is more to do."""
        connection, physical = wrapper.connection, wrapper._physical
        if (
            physical is None
            or physical.pgconn.transaction_status != IDLE
            or wrapper._is_dirty
            or wrapper._is_given_back
            or (known := physical.__dict__.get(KNOWN)) is None
        ):
            return False
        known.used_at = monotonic()
        if wrapper.connection is not connection or wrapper._lease.holds:
            return True  # a signal handler made a query just now
        # First, so that whoever queries while it goes back gets another.
        wrapper._forget_connection()  # type: ignore[attr-defined]
        try:
            connection.close()
        except wrapper._hooks.failures as error:
            wrapper._log_failure(error)  # type: ignore[attr-defined]
        return True


def connect(pool: Any, wrapper: LeaseState) -> Any:
    """Do what get_new_connection() does once there is a pool.

    The parameters of a new connection are not made first, which the pool has no use for.
    """
    connection = pool.connect()
    if wrapper.vendor == "postgresql":
        wrapper._physical = connection.driver_connection
        connection.info = wrapper._physical.info
    return connection


def is_full(pool: Any) -> bool:
    """Return whether a pool has all that it may have, and none is idle."""
    most_over = getattr(pool, "_max_overflow", -1)
    return bool(0 <= most_over <= pool.overflow() and not pool.checkedin())
