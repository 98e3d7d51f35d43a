"""django-db-connection-pool: SQLAlchemy's QueuePool, found by alias."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from .. import _registry
from . import Census, Pool
from .queue_shortcut import QueueShortcut, connect, is_full

if TYPE_CHECKING:
    from .._state import LeaseState


@cache
def _container() -> Any:
    from dj_db_conn_pool.core import pool_container

    return pool_container


#: Seconds after which somebody who waits looks again, whether called or not.
_LOOK_AGAIN = 0.1


class QueuePool(Pool):
    """For a base that is one of django-db-connection-pool's wrappers."""

    size_setting = '["POOL_OPTIONS"], "POOL_SIZE" and "MAX_OVERFLOW",'

    def __init__(self, is_overridden: bool = False) -> None:
        #: How the base gets or closes connections is not what that package does.
        self._is_overridden = is_overridden
        #: Who waits for a connection of each alias, first come, first served: by itself
        #: QueuePool gives what came back to whoever asks next, so a thread that asks
        #: often keeps another waiting until its time is over.
        self._lines: defaultdict[str, deque[Any]] = defaultdict(deque)
        #: The `NAME` that the settings of each alias had when its pool was made.
        self._databases: dict[str, str] = {}

    def failures(self) -> tuple[type[Exception], ...]:
        from sqlalchemy.exc import SQLAlchemyError

        return (SQLAlchemyError,)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        from sqlalchemy.exc import TimeoutError

        return (TimeoutError,)

    def checkout(self, wrapper: LeaseState) -> Any:
        pool = dict.get(_container(), wrapper.alias)
        if pool is not None and not wrapper._announced:
            database = wrapper.settings_dict["NAME"]
            if self._databases.get(wrapper.alias, database) != database:
                # That of tests, which are not to be run on the real one.
                self.close(wrapper)
                pool = None
        if pool is None:
            return self._make_and_checkout(wrapper)
        line = self._lines[wrapper.alias]
        if not line and not is_full(pool):
            return self._connect(wrapper, pool)
        place = Lock()
        place.acquire()
        try:
            line.append(place)
            self._wait_in(line, place, pool)
            return self._connect(wrapper, pool)
        finally:
            with suppress(ValueError):
                line.remove(place)
            _call_first(line)

    def _connect(self, wrapper: LeaseState, pool: Any) -> Any:
        if self._is_overridden or not wrapper._announced:
            return super().checkout(wrapper)
        return connect(pool, wrapper)

    def shortcut(self, wrapper: LeaseState) -> Any:
        # With another driver it can't be seen whether there is more to do.
        if self._is_overridden or wrapper._hooks.driver.guesses:
            return None
        return QueueShortcut(self, _container(), self._lines[wrapper.alias])

    def checkin(self, wrapper: LeaseState) -> None:
        if self._is_overridden:
            super().checkin(wrapper)
        else:
            wrapper.connection.close()

    def _wait_in(self, line: deque[Any], place: Any, pool: Any) -> None:
        from sqlalchemy.exc import TimeoutError

        deadline = time.monotonic() + pool.timeout()
        while line[0] is not place:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"connection timed out, timeout {pool.timeout():.2f}")
            place.acquire(timeout=min(remaining, _LOOK_AGAIN))

    def _make_and_checkout(self, wrapper: LeaseState) -> Any:
        # The pool is made on the way.  It is to do without a ping at each checkout,
        # which is on by default, where we look ourselves (see CHECK_AFTER_IDLE).
        settings = wrapper.settings_dict
        options = dict(settings.get("POOL_OPTIONS", {}))
        if wrapper._hooks.driver.notices_closing:
            options["PRE_PING"] = False
        wrapper.settings_dict = {**settings, "POOL_OPTIONS": options}
        try:
            connection = super().checkout(wrapper)
        finally:
            wrapper.settings_dict = settings
            self._databases[wrapper.alias] = settings["NAME"]
        idle: Any = getattr(_container().get(wrapper.alias), "_pool", None)
        if getattr(idle, "use_lifo", None) is False:
            idle.use_lifo = True  # the one used last, whose server process is warm
        return connection

    def discard(self, wrapper: LeaseState) -> None:
        wrapper.connection.invalidate()

    def close(self, wrapper: LeaseState) -> None:
        # Neither package does, though Django asks it to before it clones a database.
        pool = _container().pop(wrapper.alias, None)
        if pool is not None:
            pool.dispose()

    def physical(self, connection: Any) -> Any:
        # The pool wraps the driver's connection in a new proxy at every checkout.
        return connection.driver_connection

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        given = settings_dict.get("POOL_OPTIONS", {})
        size, over = (
            given.get(key, _container().pool_default_params[key.lower()])
            for key in ("POOL_SIZE", "MAX_OVERFLOW")
        )
        if not isinstance(size, int) or not isinstance(over, int):
            return None
        return size + over if size > 0 and over >= 0 else None  # else without a limit

    def census(self, wrapper: LeaseState) -> Census:
        if not _container().has(wrapper.alias):
            return Census()
        pool = _container().get(wrapper.alias)
        idle, in_use = pool.checkedin(), pool.checkedout()
        return Census(None, idle + in_use, idle, in_use, None)

    def abandon(self) -> Any:
        container = _container()
        pools = dict(container)
        container.clear()
        # Another thread of the parent may have held it.
        type(container).lock = Lock()
        self._lines.clear()
        for wrapper in _registry.wrappers():
            _forget_end(wrapper.connection)
        return pools


def _forget_end(proxy: Any) -> None:
    """Let a proxy of SQLAlchemy not roll back when it is collected."""
    finalizer = getattr(proxy, "_finalizer", None)
    record = getattr(proxy, "_connection_record", None)
    if finalizer is not None:
        finalizer.detach()
    elif record is not None:  # before SQLAlchemy 2.1
        record.fairy_ref = None


def _call_first(line: deque[Any]) -> None:
    with suppress(IndexError, RuntimeError):  # nobody waits, or it was called already
        line[0].release()
