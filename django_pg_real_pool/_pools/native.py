"""Django's own pool of psycopg connections."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from threading import RLock
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from .._drivers.psycopg3 import end
from .._pool_settings import native_problems, refuse
from .._process.locks import locked
from . import Census, Pool, Session, connecting, database_of

logger = logging.getLogger("django_pg_real_pool")

#: psycopg_pool's default, which is its `max_size` as well.
_MIN_SIZE = 4

#: Seconds that a pool may take to close before another can be opened.
_CLOSING = 10.0


class _Made(NamedTuple):
    """A pool that Django made, open or not."""

    pool: Any
    #: Django's dict of pools, by alias, which has it.
    pools: dict[str, Any]
    #: The settings that it was made with.
    made_with: dict[str, Any]
    #: Whether it is a `RealPool`.
    is_real: bool

    def serves(self, alias: str, settings_dict: Mapping[str, Any]) -> bool:
        """Return whether Django has it still, and would make it the same today."""
        return self.pools.get(alias) is self.pool and self.made_with == connecting(
            settings_dict
        )


class DjangosPool(Pool):
    """For a base of Django's that gets or returns its connections in its own way.

    They come from Django's pool in the end, if it has one.
    """

    size_setting = '["OPTIONS"]["pool"]["max_size"]'

    def __init__(self) -> None:
        super().__init__()
        #: The pool of each alias.
        self._made: dict[str, _Made] = {}
        #: See `locked`.  Only within are pools made, opened and closed.
        self._lock, self._holder = RLock(), 0

    def trouble(self, session: Session) -> BaseException | None:
        made = self._made.get(session.wrapper.alias)
        return getattr(made and made.pool, "last_error", None)

    def tells_trouble(self, session: Session) -> bool:
        made = self._made.get(session.wrapper.alias)
        return made is not None and made.is_real

    def prepare(self, wrapper: Any) -> None:
        options = wrapper.settings_dict["OPTIONS"].get("pool")
        if not options or not self.releases(wrapper):
            return
        # Django's dict has a pool a moment before its class is exchanged; `_made`, after.
        made = self._made.get(wrapper.alias)
        if made is None or wrapper._connection_pools.get(wrapper.alias) is not made.pool:
            self._make(wrapper)

    def reconfigure(self, session: Session) -> None:
        # What Django gave the pool as its `configure` callback: time zone and role.
        wrapper = session.wrapper
        if wrapper.settings_dict["OPTIONS"].get("pool"):
            wrapper._configure_connection(wrapper.connection)

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        options = settings_dict["OPTIONS"].get("pool")
        if not options:
            return None  # or the base has one of its own
        options = options if isinstance(options, dict) else {}
        most = options.get("max_size") or options.get("min_size", _MIN_SIZE)
        return most if isinstance(most, int) else None

    def census(self, wrapper: Any) -> Census:
        if not wrapper.settings_dict["OPTIONS"].get("pool"):
            return super().census(wrapper)  # the base has a pool of its own
        known = self._made.get(wrapper.alias)
        if known is None or known.pool.closed:  # whose numbers stay as they were
            return Census()
        stats = known.pool.get_stats()
        size, idle = stats["pool_size"], stats["pool_available"]
        least, most = stats["pool_min"], stats["pool_max"]
        waiting = stats.get("requests_waiting", 0)
        # psycopg_pool's size includes those that it is still making.
        in_use = known.pool.count_lent() if known.is_real else size - idle
        peaks: tuple[int, int, float] = (
            known.pool if known.is_real else self._tallies[wrapper.alias]
        ).peaks
        return Census(most, size, idle, in_use, waiting, *peaks, least, most)

    def reset_peaks(self, wrapper: Any) -> None:
        known = self._made.get(wrapper.alias)
        if known is not None and known.is_real:
            known.pool.reset_peaks()
        else:
            super().reset_peaks(wrapper)

    def abandon(self) -> Any:
        all_made, self._made = self._made, {}
        self._lock, self._holder = RLock(), 0
        for alias, made in all_made.items():
            if made.pools.get(alias) is made.pool:
                del made.pools[alias]
            if made.is_real:
                made.pool.abandon()
        return all_made, super().abandon()

    # ##### Opening and closing a pool #####

    @locked
    def _make(self, wrapper: Any) -> _Made:
        """Return Django's pool, which it makes from the settings where it has none yet."""
        alias, pools = wrapper.alias, wrapper._connection_pools
        is_new = alias not in pools
        if is_new:
            refuse(alias, native_problems(alias, wrapper.settings_dict))
        pool = wrapper._lease.pool_of_base()
        made = self._made.get(alias)
        if made is None or made.pool is not pool:
            is_real = False
            try:
                from .real_pool import RealPool
            except (ImportError, AttributeError):  # psycopg_pool is made otherwise
                logger.info("psycopg_pool has changed, so its pools are used as they are")
            else:
                # One that is not new is another made class's, or the stock backend's.
                is_real = RealPool.adopt(pool) if is_new else isinstance(pool, RealPool)
                if is_new:
                    pool.alias = alias  # for observers
            made = _Made(pool, pools, connecting(wrapper.settings_dict), is_real)
            self._made[alias] = made
        return made

    @locked
    def close(self, wrapper: Any) -> None:
        alias, pools = wrapper.alias, wrapper._connection_pools
        made = self._made.get(alias)
        if made is not None:
            self._close(alias, made)
        elif (pool := pools.pop(alias, None)) is not None:
            pool.close()

    def _close(self, alias: str, made: _Made) -> None:
        """Close a pool, after making Django forget it."""
        self._made.pop(alias, None)
        if alias in self._tallies:
            self._tallies[alias].reset()
        if made.pools.get(alias) is made.pool:
            del made.pools[alias]
        made.pool.close()

    @locked
    def close_all_of(self, database: Any) -> None:
        for alias, made in list(self._made.items()):
            if database_of(made.made_with) == database:
                self._close(alias, made)


class NativePool(DjangosPool):
    """For a base that gets and returns its connections as Django's wrapper does.

    The pool's own `getconn()` and `putconn()` do that here; Django's
    `get_new_connection()` runs only to introduce a connection.
    """

    is_bare = True
    stock_keeps_closed = False

    def __init__(self, needs_params: bool = False) -> None:
        super().__init__()
        #: Whether `get_new_connection()` looks at what `get_connection_params()` returns.
        #: Django's own does not, and a base's `get_connection_params()` may ask for a token.
        self._needs_params = needs_params

    def failures(self) -> tuple[type[Exception], ...]:
        # Its own errors are psycopg's; these are of one that was given back already.
        return (AttributeError, ValueError)

    def take(self, session: Session) -> Any:
        made = session.source
        while True:
            if made is None:
                made = session.source = self._open(session.wrapper)
            pool = made.pool
            try:
                if made.is_real and "getconn" not in vars(pool):
                    return pool.getconn(None, session.me)
                return self._tallies[session.wrapper.alias].lend(session, pool.getconn)
            except Exception as error:
                if not pool.closed or not isinstance(error, _pool_closed()):
                    raise
            made = session.source = None  # somebody closed the pool: there is another

    def introduce(self, session: Session) -> None:
        # Django's code runs in full, but finds this connection where its pool is.
        wrapper = session.wrapper
        session.pool_stand_in = _Handing(wrapper.connection)
        try:
            params = wrapper.get_connection_params() if self._needs_params else {}
            wrapper.get_new_connection(params)
        finally:
            session.pool_stand_in = None

    def put(self, session: Session) -> None:
        if self._tallies:  # of pools that don't remember whom they lend to
            self.forget(session)
        is_rejected = session.is_rejected
        connection = session.let_go()
        # psycopg_pool notes on a connection which pool it is from; Django relies on it too.
        pool = connection._pool
        if is_rejected and hasattr(pool, "reject"):
            pool.reject(connection)
        else:
            pool.putconn(connection)

    def discard(self, session: Session) -> None:
        end(session.physical)

    def _open(self, wrapper: Any) -> _Made:
        alias, settings = wrapper.alias, wrapper.settings_dict
        options = settings["OPTIONS"].get("pool")
        if not options:
            raise ImproperlyConfigured(
                f"No connection pool is configured for the database alias {alias!r}: "
                f'DATABASES[{alias!r}]["OPTIONS"]["pool"] is '
                f"{'missing' if options is None else repr(options)}. Set it to True or "
                "to a dict of psycopg_pool.ConnectionPool options, for example "
                '{"min_size": 2, "max_size": 10}; or set it to False to use this '
                "alias without a pool, as Django's own backend does."
            )
        made = self._made.get(alias)
        if made is not None and not made.pool.closed and made.serves(alias, settings):
            return made
        deadline = time.monotonic() + _CLOSING
        while True:
            try:
                return self._open_anew(wrapper)
            except wrapper.Database.OperationalError:
                # Of which PoolClosed is one; psycopg_pool 3.2 raises it as it is.
                if time.monotonic() > deadline:
                    raise
            # Django's close_pool() closes a pool before it forgets it.
            time.sleep(0.01)

    @locked
    def _open_anew(self, wrapper: Any) -> _Made:
        alias = wrapper.alias
        made = self._made.get(alias)
        if made is not None and (
            was_closed(made.pool) or not made.serves(alias, wrapper.settings_dict)
        ):
            self._close(alias, made)
        made = self._make(wrapper)
        made.pool.open()
        return made


def was_closed(pool: Any) -> bool:
    """Return whether a pool was open once, and can't be opened again."""
    return bool(pool.closed and getattr(pool, "_opened", False))


def _pool_closed() -> type[BaseException]:
    from psycopg_pool import PoolClosed

    return PoolClosed


class _Handing:
    """Stands for the pool while Django introduces a connection that is out already."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def open(self) -> None:
        """The pool is open already."""

    def getconn(self) -> Any:
        return self.connection
