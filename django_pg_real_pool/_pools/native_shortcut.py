"""Takes an idle connection of Django's own pool and puts it back, and nothing else.

So do getconn() and putconn() for nearly every query, on a way of a dozen functions that
prepares for everything: as much as all the rest of a release.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from contextlib import suppress
from threading import Lock, RLock
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._django import is_as_written
from .._drivers.psycopg3 import IDLE, KNOWN
from . import Pool, native_line

if TYPE_CHECKING:
    from .._state import LeaseState

#: What of a pool is used here, by name, and of which class it is.
_PARTS: dict[str, Any] = {
    "_closed": bool,
    "_lock": (type(Lock()), type(RLock())),
    "_nconns": int,
    "_nconns_min": int,
    "_pool": deque,
    "_stats": Counter,
    "_waiting": native_line.Line,
}

#: Its methods that this stands for.
_REPLACED = ("getconn", "putconn")


def is_checked_by_us(connection: Any) -> None:
    """Stand for a pool's check, which costs a round trip each time: see CHECK_AFTER_IDLE."""


class Shortcut:
    """The way for the wrappers of one alias, to which their pool itself is indifferent.

    It is under the pool's own lock, and whatever is not usual it leaves to the long way.
    """

    def __init__(self, adapter: Pool, pool: Any) -> None:
        self._adapter = adapter
        self._pool = pool
        self._lock = pool._lock
        self._idle = pool._pool
        self._waiting = pool._waiting
        #: psycopg_pool can drain a pool from 3.3 on.
        self._drains = hasattr(pool, "_drained_at")
        # Somebody may put another getconn() or putconn() on the pool, or on its class, to
        # watch or forbid.
        self._replaced = vars(pool)
        self._kind: Any = type(pool)
        self._getconn, self._putconn = self._kind.getconn, self._kind.putconn

    def take(self, wrapper: LeaseState) -> bool:
        """Get the connection that was used last; return whether it can be used at once.

        If not, `wrapper` may have one all the same, which has to be looked at.
        """
        if (
            wrapper._hooks.pool is not self._adapter
            or "getconn" in self._replaced
            or self._kind.getconn is not self._getconn
        ):
            return False
        pool, idle, connection = self._pool, self._idle, None
        try:
            with self._lock:
                if not idle or pool._closed:
                    return False
                connection = idle[-1]
                try:
                    idle.pop()
                    connection._pool, connection._is_lent = pool, True
                    wrapper._is_given_back = wrapper._ending_lease = False
                    wrapper.connection = wrapper._keeper[0] = connection
                except BaseException:
                    # Interrupted: nobody else can have had it since, under the lock.
                    if connection not in idle:
                        connection._pool, connection._is_lent = pool, True
                        wrapper.connection = connection
                    raise
                if len(idle) < pool._nconns_min:  # noqa: PLR1730 - a call is slower
                    pool._nconns_min = len(idle)
                pool._stats["requests_num"] += 1
            return wrapper._make_ready(connection)  # type: ignore[attr-defined,no-any-return]
        except BaseException:
            wrapper._close_lease()  # type: ignore[attr-defined]
            raise

    def wait(self) -> Any:
        """Return a connection that has become free; None: ask the pool.

        Raises PoolTimeout where none came, as the pool does, within as long.
        """
        pool = self._pool
        with self._lock:
            if (
                self._idle
                or pool._closed
                or pool._nconns < pool.max_size  # so it grows
                or pool.max_waiting
                or "getconn" in self._replaced
                or self._kind.getconn is not self._getconn
            ):
                return None
            began, place = monotonic(), native_line.new_place()
            try:
                self._waiting.append(place)
            except BaseException as interruption:
                place.fail(interruption)
                raise
            pool._stats["requests_num"] += 1
            pool._stats["requests_queued"] += 1
        try:
            connection = place.wait(pool.timeout)
            connection._pool = pool
        except BaseException as error:
            pool._stats["requests_errors"] += 1
            if not place.fail(error) and place.conn is not None:
                # Interrupted, when it had just been given.
                place.conn._pool = pool
                pool.putconn(place.conn)
            raise
        finally:
            pool._stats["requests_wait_ms"] += int((monotonic() - began) * 1000)
        return connection

    def put_back(self, wrapper: LeaseState) -> bool:
        """Give the connection to who has waited longest, or let it be idle.

        False: nothing has been done, because there is more to do.
        """
        pool, waiting, connection = self._pool, self._waiting, wrapper.connection
        if (
            connection.pgconn.transaction_status != IDLE
            or connection._expire_at <= (now := monotonic())
            or (self._drains and connection._created_at <= pool._drained_at)
            or connection._pool is not pool
            or "putconn" in self._replaced
            or self._kind.putconn is not self._putconn
            or wrapper._is_dirty
            or wrapper._is_given_back
            or (known := connection.__dict__.get(KNOWN)) is None
        ):
            return False
        known.used_at = now
        with self._lock:
            if pool._closed or pool._pool_full_event is not None:
                return False
            if wrapper.connection is not connection or wrapper._lease.holds:
                # While this waited for the lock, a signal handler made a query.
                return True
            place: Any = None
            try:
                wrapper.connection = None
                connection._pool, connection._is_lent = None, False
                while waiting:
                    # Who has got it leaves the line, in this order: an interruption in
                    # between leaves one there who takes nothing, and is passed over.
                    place = waiting[0]
                    has_taken_it = place.set(connection)
                    waiting.popleft()
                    if has_taken_it:
                        break
                else:
                    self._idle.append(connection)
                wrapper._keeper[0] = None
            except BaseException:
                # Interrupted: is it somebody's now?
                if getattr(place, "conn", None) is connection:
                    with suppress(RuntimeError):  # it was called
                        place._cond[0].release()
                elif connection not in self._idle:
                    connection._pool, connection._is_lent = pool, True
                    wrapper.connection = connection
                raise
        return True


def shortcut_of(adapter: Pool, pool: Any) -> Shortcut | None:
    """Return the way for a pool, if it is made of what we know, and does no more.

    It does more if somebody reads what it logs, has it reset or check connections, or
    has replaced its methods.
    """
    usual = (
        all(isinstance(getattr(pool, name, None), kind) for name, kind in _PARTS.items())
        and hasattr(pool, "_pool_full_event")
        and getattr(pool, "_reset", False) is None
        and getattr(pool, "_check", False) in (None, is_checked_by_us)
        and not logging.getLogger("psycopg.pool").isEnabledFor(logging.INFO)
        and all(is_as_written(type(pool), name) for name in _REPLACED)
    )
    return Shortcut(adapter, pool) if usual else None
