"""Django's own pool of psycopg connections: psycopg_pool, used without a detour."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Mapping
from copy import copy
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from django.core.exceptions import ImproperlyConfigured

from . import Census, Pool, native_line
from .native_connection import remembering, remembering_connect
from .native_retries import Retries
from .native_shortcut import Shortcut, is_checked_by_us, shortcut_of

if TYPE_CHECKING:
    from .._state import LeaseState

#: Seconds between two looks at whether a pool that never connected has failed to.
_FIRST_LOOK = 0.05

#: psycopg_pool's default, which is its `max_size` as well.
_MIN_SIZE = 4

#: Seconds that a pool may take to close before another can be opened.
_CLOSING = 10.0


class _Opened(NamedTuple):
    """A pool that is open."""

    pool: Any
    #: Django's dict of pools, by alias, which has it.
    pools: dict[str, Any]
    shortcut: Shortcut | None


class NativePool(Pool):
    """For a base that gets and returns its connections as Django's wrapper does.

    The pool's own way to do so is taken here, or a shorter one; Django's
    `get_new_connection()` runs only to introduce a connection.
    """

    size_setting = '["OPTIONS"]["pool"]["max_size"]'

    def __init__(self) -> None:
        #: The pools opened so far, by alias.
        self._opened: dict[str, _Opened] = {}
        self._lock = Lock()

    def failures(self) -> tuple[type[Exception], ...]:
        # Its own errors are psycopg's; these are of one that was given back already.
        return (AttributeError, ValueError)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        try:
            from psycopg_pool import PoolTimeout, TooManyRequests
        except ImportError:
            return ()
        return (PoolTimeout, TooManyRequests)

    def trouble(self, wrapper: LeaseState) -> BaseException | None:
        pool = self._opened[wrapper.alias].pool
        return getattr(pool.connection_class, "last_error", None)

    def prepare(self, wrapper: LeaseState) -> None:
        options = wrapper.settings_dict["OPTIONS"].get("pool")
        is_wanted = options and self.releases(wrapper)
        if is_wanted and wrapper.alias not in wrapper._connection_pools:
            with self._lock:
                self._made_by_django(wrapper, options)

    def checkout(self, wrapper: LeaseState) -> Any:
        opened = wrapper._open_pool
        is_known = opened is not None
        if not is_known:
            opened = self._open(wrapper)
        pool, _, shortcut = opened
        try:
            if not (is_known or getattr(pool.connection_class, "ever_connected", True)):
                connection = self._first_getconn(pool)
            else:
                connection = shortcut.wait() if shortcut is not None else None
                if connection is None:
                    connection = pool.getconn()
            connection._is_lent = True
            wrapper._open_pool = opened
            return connection
        except BaseException as error:
            if isinstance(error, self.exhausted()):
                raise
            # Perhaps a time limit, thrown into this thread after the pool had given the
            # connection out.  Nobody but the frames of the traceback has it then: they
            # let it go, and it is reclaimed (see `remembering()`).
            traceback.clear_frames(error.__traceback__)
            connection = None
            if not pool.closed or not isinstance(error, _pool_closed()):
                raise
        wrapper._open_pool = wrapper._shortcut = None
        return self.checkout(wrapper)  # somebody closed the pool: there is another

    def introduce(self, wrapper: LeaseState) -> None:
        # Django's code runs in full, but finds this connection where its pool is.
        wrapper._pool_stand_in = _Handing(wrapper.connection)
        try:
            wrapper.get_new_connection(wrapper.get_connection_params())
        finally:
            wrapper._pool_stand_in = None

    def shortcut(self, wrapper: LeaseState) -> Any:
        return wrapper._open_pool.shortcut

    def reconfigure(self, wrapper: LeaseState) -> None:
        # What Django gave the pool as its `configure` callback: time zone and role.
        wrapper._configure_connection(wrapper.connection)

    def checkin(self, wrapper: LeaseState) -> None:
        connection: Any = wrapper.connection
        # The pool replaces a broken connection; until it has, that is lent.
        is_broken = connection.closed
        connection._is_lent = is_broken
        try:
            # psycopg_pool notes on the connection whose it is; Django relies on it too.
            connection._pool.putconn(connection)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # as in checkout()
            connection = None
            raise
        if is_broken:
            connection._is_lent = False

    def was_checked_in(self, physical: Any) -> None:
        physical._is_lent = False

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        options = settings_dict["OPTIONS"].get("pool")
        options = options if isinstance(options, dict) else {}
        most = options.get("max_size") or options.get("min_size", _MIN_SIZE)
        return most if isinstance(most, int) else None

    def census(self, wrapper: LeaseState) -> Census:
        known = self._opened.get(wrapper.alias)
        if known is None or known.pool.closed:  # whose numbers stay as they were
            return Census()
        stats = known.pool.get_stats()
        size, idle = stats["pool_size"], stats["pool_available"]
        count = getattr(known.pool.connection_class, "count_lent", None)
        # psycopg_pool's size has those that it is still making, too.
        in_use = count() if count is not None else size - idle
        line = getattr(known.pool, "_waiting", None)
        if isinstance(line, native_line.Line):
            waiting = line.count_waiting()
        else:
            waiting = stats.get("requests_waiting", 0)
        return Census(stats["pool_max"], size, idle, in_use, waiting)

    def abandon(self) -> Any:
        opened, self._opened = self._opened, {}
        self._lock = Lock()
        for alias, (pool, pools, _) in opened.items():
            if pools.get(alias) is pool:
                del pools[alias]
            if hasattr(pool.connection_class, "retries"):
                pool.connection_class.pool = None
        return opened

    # ##### Opening a pool #####

    def _open(self, wrapper: LeaseState) -> _Opened:
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
        known = self._opened.get(alias)
        if (
            known is not None
            and not known.pool.closed
            and known.pools.get(alias) is known.pool
            and not _is_of_another_database(known.pool, settings)
        ):
            return known
        deadline = time.monotonic() + _CLOSING
        while True:
            with self._lock:
                pool = self._made_by_django(wrapper, options)
                if _is_of_another_database(pool, settings):
                    wrapper._connection_pools.pop(alias, None)
                    pool.close()
                    continue
                try:
                    pool.open()
                except wrapper.Database.OperationalError:  # type: ignore[attr-defined]
                    # Of which PoolClosed is one; psycopg_pool 3.2 raises it as it is.
                    if time.monotonic() > deadline:
                        raise
                else:
                    shortcut = shortcut_of(self, pool)
                    opened = _Opened(pool, wrapper._connection_pools, shortcut)
                    self._opened[alias] = opened
                    return opened
            # Django's close_pool() closes a pool before it forgets it.
            time.sleep(0.01)

    def _made_by_django(self, wrapper: LeaseState, options: Any) -> Any:
        """Return Django's pool, which is made from the settings where there is none yet.

        It is made so that it remembers why it can't connect, and leaves it to us to
        check a connection at the checkout.
        """
        settings, options = wrapper.settings_dict, {} if options is True else dict(options)
        ours = None
        if not options.get("close_returns"):
            ours = options["connection_class"] = remembering(
                options.get("connection_class"), settings["NAME"]
            )
        wrapper.settings_dict = {
            **settings,
            "OPTIONS": {**settings["OPTIONS"], "pool": options},
        }
        try:
            pool = wrapper._pool_of_base()  # type: ignore[attr-defined]
        finally:
            wrapper.settings_dict = settings
        if pool.connection_class is ours:
            _adapt(pool)
        return pool

    def _first_getconn(self, pool: Any) -> Any:
        """Get the first connection ever, or the reason why there is none.

        The pool goes on trying for its whole timeout; a wrong password can be told at
        once, as without a pool.
        """
        from psycopg_pool import PoolTimeout

        connecting = pool.connection_class
        deadline = time.monotonic() + pool.timeout
        while True:
            remaining = deadline - time.monotonic()
            try:
                return pool.getconn(timeout=max(0.001, min(_FIRST_LOOK, remaining)))
            except PoolTimeout:
                if connecting.last_error is not None and not connecting.ever_connected:
                    raise copy(connecting.last_error) from None
                if remaining <= 0:
                    raise


def _adapt(pool: Any) -> None:
    """Let a pool do some things in another way, where it still has the names for them."""
    connecting = pool.connection_class
    connecting.pool = ref(pool)
    if callable(getattr(pool, "_connect", None)):
        pool._connect = remembering_connect(pool)
    # But not a check of the user's own, which Django takes from 6.1 on.
    if getattr(pool, "_check", None) is type(pool).check_connection:
        pool._check = is_checked_by_us
    if callable(getattr(pool, "schedule_task", None)):
        connecting.retries = pool.schedule_task = Retries(pool)
    if type(getattr(pool, "_pool", None)) is deque:
        pool._pool = _LastInFirstOut(pool._pool)
    if type(getattr(pool, "_waiting", None)) is deque and native_line.is_known():
        pool._waiting = native_line.Line(pool._waiting)


def _is_of_another_database(pool: Any, settings: dict[str, Any]) -> bool:
    """Return whether `NAME` has changed since the pool was made.

    Django changes it when it has made a test database, and would go on with a pool of
    the real one, if anybody has used that before.
    """
    made_for = getattr(pool.connection_class, "database", settings["NAME"])
    return bool(made_for != settings["NAME"])


def _pool_closed() -> type[BaseException]:
    from psycopg_pool import PoolClosed

    return PoolClosed


class _LastInFirstOut(deque[Any]):
    """Stands for a pool's line of idle connections, to give out the one used last.

    psycopg_pool gives out the one that was idle for longest, so each query meets a
    server process whose caches are cold.  Whoever waits is still served in turn.
    """

    popleft = deque.pop


class _Handing:
    """Stands for the pool while Django introduces a connection that is out already."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def open(self) -> None:
        """The pool is open already."""

    def getconn(self) -> Any:
        return self.connection
