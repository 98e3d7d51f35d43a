"""What differs between pools: one adapter for each, behind one interface.

`Pool` is the safe default for a pool that this library has never seen.  All that it
asks of a base wrapper is what Django asks: `get_new_connection()` gets a connection,
`_close()` gives it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS

if TYPE_CHECKING:
    from ._wrapper import ConnectionReleaseMixin


class Pool:
    """Any pool behind any wrapper."""

    def timeouts(self) -> tuple[type[BaseException], ...]:
        """Return what an exhausted pool raises, where it is no driver's exception."""
        return ()

    def releases(self, wrapper: ConnectionReleaseMixin) -> bool:
        """Return whether `wrapper`, with the settings it has now, is behind a pool."""
        if wrapper.alias == NO_DB_ALIAS:  # Django's detour to make a test database
            return False
        return wrapper.settings_dict["OPTIONS"].get("pool") is not False

    def checkout(self, wrapper: ConnectionReleaseMixin) -> Any:
        """Return a connection that is `wrapper`'s alone until `checkin`."""
        return wrapper.get_new_connection(wrapper.get_connection_params())

    def introduce(self, wrapper: ConnectionReleaseMixin) -> None:
        """Do what the base does once for a connection, beyond what `checkout` did."""

    def checkin(self, wrapper: ConnectionReleaseMixin) -> None:
        """Give `wrapper.connection` back."""
        wrapper._close()

    def physical(self, connection: Any) -> Any:
        """Return what stays the same each time the pool gives out one connection."""
        return connection


class NativePool(Pool):
    """Django's own pool of psycopg connections, used without a detour.

    Only for a base that gets and returns its connections as Django's wrapper does:
    `getconn()` is called here, and Django's `get_new_connection()` only introduces.
    """

    def checkout(self, wrapper: ConnectionReleaseMixin) -> Any:
        pool = wrapper._open_pool
        if pool is None or pool.closed:
            pool = wrapper._open_pool = self._open(wrapper)
        return pool.getconn()

    def introduce(self, wrapper: ConnectionReleaseMixin) -> None:
        # Django's code runs in full, but finds this connection where its pool is.
        wrapper._pool_stand_in = _Handing(wrapper.connection)
        try:
            wrapper.get_new_connection(wrapper.get_connection_params())
        finally:
            wrapper._pool_stand_in = None

    def checkin(self, wrapper: ConnectionReleaseMixin) -> None:
        connection = wrapper.connection
        # psycopg_pool notes on the connection whose it is; Django relies on it as well.
        with wrapper.wrap_database_errors:
            connection._pool.putconn(connection)

    def _open(self, wrapper: ConnectionReleaseMixin) -> Any:
        configured = wrapper.settings_dict["OPTIONS"].get("pool")
        if not configured:
            alias = wrapper.alias
            raise ImproperlyConfigured(
                f"No connection pool is configured for the database alias {alias!r}: "
                f'DATABASES[{alias!r}]["OPTIONS"]["pool"] is '
                f"{'missing' if configured is None else repr(configured)}. Set it to "
                "True or to a dict of psycopg_pool.ConnectionPool options, for example "
                '{"min_size": 2, "max_size": 10}; or set it to False to use this '
                "alias without a pool, as Django's own backend does."
            )
        pool = wrapper.pool
        pool.open()
        return pool


class _Handing:
    """Stands for the pool while Django introduces a connection that is out already."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def open(self) -> None:
        """The pool is open already."""

    def getconn(self) -> Any:
        return self.connection


class QueuePool(Pool):
    """django-db-connection-pool: SQLAlchemy's QueuePool, found by alias."""

    def timeouts(self) -> tuple[type[BaseException], ...]:
        from sqlalchemy.exc import TimeoutError

        return (TimeoutError,)

    def physical(self, connection: Any) -> Any:
        # The pool wraps the driver's connection in a new proxy at every checkout.
        return connection.driver_connection
