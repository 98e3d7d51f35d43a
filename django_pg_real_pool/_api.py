"""What users call: pin a connection, assert that none is held, see who holds one."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ._backend.wrapper import ConnectionReleaseMixin
from ._lease.facts import Pin
from ._lease.status import PoolStatus, status_of


class ConnectionHeldError(InterfaceError):
    """Raised by `assert_released()`: the calling thread has a connection checked out."""


class _Entered(threading.local):
    """The pins that a thread has entered through one PinnedConnection."""

    def __init__(self) -> None:
        self.pins: list[tuple[BaseDatabaseWrapper, Pin]] = []


class PinnedConnection(ContextDecorator):
    """What `pin_connection()` returns; like `atomic()`, it can be entered repeatedly."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._entered = _Entered()

    def __enter__(self) -> BaseDatabaseWrapper:
        wrapper = connections[self._using]
        token = Pin()
        if isinstance(wrapper, ConnectionReleaseMixin):
            wrapper._lease.pin(token)
        else:
            wrapper.ensure_connection()  # it keeps its connection anyway
        self._entered.pins.append((wrapper, token))
        return wrapper

    def __exit__(self, *exc_info: object) -> None:
        wrapper, token = self._entered.pins.pop()
        if isinstance(wrapper, ConnectionReleaseMixin):
            wrapper._lease.unpin(token)


def pin_connection(using: Any = None) -> Any:
    """Keep one connection checked out for a `with` block or a decorated function.

    `using` is the database alias; the block gets its wrapper.  Use it for what needs
    the same session throughout: LISTEN loops, session-level advisory locks, temporary
    tables, the driver's own connection as `wrapper.connection`, or many small queries
    in a row.  Pins nest; the connection is released when the outermost is left and
    nothing else holds it.  `close()` inside ends them all.  With a backend that does
    not release early it only makes sure that there is a connection.

    Raises OperationalError if it gets no connection; then nothing is pinned.
    """
    if callable(using):  # bare @pin_connection
        return PinnedConnection(DEFAULT_DB_ALIAS)(using)
    return PinnedConnection(using or DEFAULT_DB_ALIAS)


def pool_status(using: str | None = None) -> PoolStatus:
    """Return who holds the connections of one alias now (None: "default").

    The pool's own census, and for each lease its thread, holds, age in seconds, and
    where that thread is now.  It takes no connection and waits for no lock of the
    pool, so it is a snapshot.
    """
    return status_of(_wrapper_of(using, "pool_status"))


def reset_peaks(using: str | None = None) -> None:
    """Let the peaks in the census of one alias's pool begin anew (None: "default")."""
    wrapper = _wrapper_of(using, "reset_peaks")
    wrapper._hooks.pool.reset_peaks(wrapper)


def _wrapper_of(using: str | None, function: str) -> ConnectionReleaseMixin:
    wrapper = connections[using or DEFAULT_DB_ALIAS]
    if not isinstance(wrapper, ConnectionReleaseMixin):
        raise ImproperlyConfigured(
            f"{function}() can't answer for the database alias {wrapper.alias!r}: its "
            f"ENGINE is {wrapper.settings_dict['ENGINE']!r}, which does not release early."
        )
    return wrapper


def assert_released(using: str | None = None) -> None:
    """Raise ConnectionHeldError if the calling thread has a connection checked out.

    `using` is a database alias; None means each alias that releases early.  Call it
    before something slow, or at the end of a test.  The error names the holds, and
    where each began if `RELEASE_OPTIONS["TRACK_ORIGINS"]` is on.
    """
    if using is None:
        wrappers = connections.all(initialized_only=True)
    else:
        wrappers = [connections[using]]
        if not isinstance(wrappers[0], ConnectionReleaseMixin):
            raise ImproperlyConfigured(
                f"assert_released() can't answer for the database alias {using!r}: its "
                f"ENGINE is {wrappers[0].settings_dict['ENGINE']!r}, which does not "
                "release early."
            )
    unpooled = ['the setting "pool": False']
    held = [
        f"{wrapper.alias!r} by {', '.join(wrapper._lease.describe_holds() or unpooled)}"
        for wrapper in wrappers
        if isinstance(wrapper, ConnectionReleaseMixin) and wrapper.connection is not None
    ]
    if held:
        raise ConnectionHeldError(
            f"a connection is held for alias {'; for alias '.join(held)}"
        )
