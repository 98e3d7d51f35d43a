"""django-db-connection-pool: SQLAlchemy's QueuePool, found by alias."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any

from .._pool_settings import queue_problems, refuse
from . import Census, Pool, Session, connecting, database_of


@cache
def _container() -> Any:
    from dj_db_conn_pool.core import pool_container

    return pool_container


#: Seconds after which a thread that waits looks again, whether woken or not.
_LOOK_AGAIN = 0.1


class QueuePool(Pool):
    """For a base that is one of django-db-connection-pool's wrappers."""

    size_setting = '["POOL_OPTIONS"], "POOL_SIZE" and "MAX_OVERFLOW",'

    def __init__(self, is_overridden: bool = False) -> None:
        super().__init__()
        #: Whether the base gets or closes connections in its own way.
        self._is_overridden = is_overridden
        #: The threads that wait for each alias, first come, first served.  By itself
        #: QueuePool gives what came back to whoever asks next, so a thread that asks
        #: often keeps another waiting until that times out.
        self._lines: dict[str, deque[Any]] = {}
        #: The settings that each alias had when its pool was made.
        self._made_with: dict[str, dict[str, Any]] = {}

    def failures(self) -> tuple[type[Exception], ...]:
        from sqlalchemy.exc import SQLAlchemyError

        return (SQLAlchemyError,)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        from sqlalchemy.exc import TimeoutError

        return (TimeoutError,)

    def tells_trouble(self, session: Session) -> bool:
        return True  # it raises what the driver has raised

    def _get(self, session: Session) -> Any:
        alias = session.wrapper.alias
        pool = dict.get(_container(), alias)
        if pool is not None and session.source is None:
            settings = connecting(session.wrapper.settings_dict)
            if self._made_with.get(alias, settings) != settings:
                # To the test database, say: tests must not run on the real one.
                self._close(alias)
                pool = None
        if pool is None:
            return self._make_and_take(session)
        session.source = pool
        # setdefault() is one step; a defaultdict could make a line each for two threads.
        line = self._lines.setdefault(alias, deque())
        if not line and not is_full(pool):
            return self._connect(session, pool)
        place = Lock()
        place.acquire()
        try:
            line.append(place)
            self._tallies[alias].note(0, len(line), 0.0)
            self._wait_in(line, place, pool)
            return self._connect(session, pool)
        finally:
            with suppress(ValueError):
                line.remove(place)
            _call_first(line)

    def _connect(self, session: Session, pool: Any) -> Any:
        if self._is_overridden or not session.has_introduced:
            return super()._get(session)
        # What get_new_connection() does once there is a pool, without making parameters
        # of a new connection first, which the pool does not need.
        connection = pool.connect()
        if session.wrapper.vendor == "postgresql":
            connection.info = connection.dbapi_connection.info
        return connection

    def put(self, session: Session) -> None:
        try:
            if self._is_overridden:
                super().put(session)
                return
            # Forgotten first: a query meanwhile gets another connection, and after an
            # interruption nobody has this one, so SQLAlchemy takes it back.
            self.forget(session)
            connection = session.let_go()
            connection.close()
        finally:
            # Looked up now: somebody may have begun to wait meanwhile.
            _call_first(self._lines.get(session.wrapper.alias, ()))

    def _wait_in(self, line: deque[Any], place: Any, pool: Any) -> None:
        """Wait for one's turn, and for a connection: the pool itself would wait as long again."""
        from sqlalchemy.exc import TimeoutError

        deadline = time.monotonic() + pool.timeout()
        while line[0] is not place or is_full(pool):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"connection timed out, timeout {pool.timeout():.2f}")
            place.acquire(timeout=min(remaining, _LOOK_AGAIN))

    def _make_and_take(self, session: Session) -> Any:
        # This makes the pool, too: without its ping at each checkout, which is on by
        # default, where we check connections ourselves (see CHECK_AFTER_IDLE).
        wrapper = session.wrapper
        settings = wrapper.settings_dict
        refuse(wrapper.alias, queue_problems(wrapper.alias, settings))
        options = dict(settings.get("POOL_OPTIONS", {}))
        if session.notices_closing:
            options["PRE_PING"] = False
        wrapper.settings_dict = {**settings, "POOL_OPTIONS": options}
        try:
            connection = super()._get(session)
        finally:
            wrapper.settings_dict = settings
            self._made_with[wrapper.alias] = connecting(settings)
        # None if another thread has closed it since: then the next one is looked up anew.
        pool = session.source = dict.get(_container(), wrapper.alias)
        idle: Any = getattr(pool, "_pool", None)
        if getattr(idle, "use_lifo", None) is False:
            idle.use_lifo = True  # the one used last, whose server process is warm
        return connection

    def discard(self, session: Session) -> None:
        session.wrapper.connection.invalidate()

    def close(self, wrapper: Any) -> None:
        # Neither package does, though Django asks for it before it clones a database.
        self._close(wrapper.alias)

    def close_all_of(self, database: Any) -> None:
        # dict() is one step.  list() of its items is not before Python 3.12: the collector
        # may run, and let a thread that makes a pool write here.
        for alias, made_with in dict(self._made_with).items():
            if database_of(made_with) == database:
                self._close(alias)

    def _close(self, alias: str) -> None:
        self._made_with.pop(alias, None)
        self._tallies[alias].reset()
        pool = _container().pop(alias, None)
        if pool is not None:
            pool.dispose()

    def physical(self, connection: Any) -> Any:
        # The pool wraps the driver's connection in a new proxy at every checkout.
        return connection.dbapi_connection

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        given = settings_dict.get("POOL_OPTIONS", {})
        size, over = (
            given.get(key, _container().pool_default_params[key.lower()])
            for key in ("POOL_SIZE", "MAX_OVERFLOW")
        )
        if not isinstance(size, int) or not isinstance(over, int):
            return None
        return size + over if size > 0 and over >= 0 else None  # else without a limit

    def census(self, wrapper: Any) -> Census:
        # One step; the package's get() raises if another thread has closed it just now.
        pool = dict.get(_container(), wrapper.alias)
        if pool is None:
            return Census()
        idle, in_use, keeps = pool.checkedin(), pool.checkedout(), pool.size()
        most_over = getattr(pool, "_max_overflow", -1)
        most = keeps + most_over if most_over >= 0 and keeps else None
        waiting = len(self._lines.get(wrapper.alias, ()))
        tally = self._tallies[wrapper.alias]
        return Census(
            most, idle + in_use, idle, in_use, waiting, *tally.peaks, 0, keeps or None
        )

    def abandon(self) -> Any:
        container = _container()
        pools = dict(container)
        container.clear()
        # Another thread of the parent may have held it.
        type(container).lock = Lock()
        self._lines.clear()
        out = super().abandon()
        for proxy in out.values():
            _forget_end(proxy)
        return pools, out


def _forget_end(proxy: Any) -> None:
    """Keep a proxy of SQLAlchemy's from rolling back when it is collected."""
    finalizer = getattr(proxy, "_finalizer", None)
    record = getattr(proxy, "_connection_record", None)
    if finalizer is not None:
        finalizer.detach()
    elif record is not None:  # before SQLAlchemy 2.1
        record.fairy_ref = None


def _call_first(line: Sequence[Any]) -> None:
    with suppress(IndexError, RuntimeError):  # nobody waits, or it was called already
        line[0].release()


def is_full(pool: Any) -> bool:
    """Return whether a pool has all that it may have, and none is idle."""
    most_over = getattr(pool, "_max_overflow", -1)
    return bool(0 <= most_over <= pool.overflow() and not pool.checkedin())
