"""What differs between database drivers, asked of a connection that is checked out.

`Driver` is the safe default for a driver that this library has never seen: whatever it
can't know, it answers so that the connection is held longer, or replaced.  `physical`
is the driver's own connection; `connection` is what the wrapper has as
`self.connection`, which may be a pool's proxy of it.
"""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType
from typing import Any
from weakref import WeakSet

from .sockets import cut

#: Every physical connection of this process that a driver was told of, but psycopg's.
_physicals: WeakSet[Any] = WeakSet()


def cut_inherited() -> None:
    """In a forked child: let no connection of the parent be reached, as far as we can.

    To collect one, if only at the child's end, may be to say goodbye to the server.
    """
    for physical in list(_physicals):
        file = None
        with suppress(Exception):  # it has no such thing, or is closed
            file = physical.fileno()
        if file is None:
            _make_immortal(physical)
        else:
            cut([file])
    _physicals.clear()


def _make_immortal(physical: Any) -> None:
    """Let an object not even be collected when the interpreter ends."""
    from ctypes import py_object, pythonapi

    pythonapi.Py_IncRef(py_object(physical))


class Driver:
    """Any driver that follows PEP 249."""

    #: `in_transaction()` only guesses, by the mode.
    guesses = True
    #: `mode_if_ready()` and `is_usable()` see that a connection was closed by the server.
    notices_closing = False

    def __init__(self) -> None:
        self._set_up: WeakSet[Any] = WeakSet()

    # ##### What is known of a physical connection #####

    def is_set_up(self, physical: Any) -> bool:
        """Return whether `mark_set_up` was called with this physical connection."""
        # Without weak references it never is, so it is taken for new each time.
        return physical in self._set_up

    def mark_set_up(self, physical: Any) -> None:
        with suppress(TypeError):
            self._set_up.add(physical)
            _physicals.add(physical)

    def forget_set_up(self, physical: Any) -> None:
        with suppress(TypeError):
            self._set_up.discard(physical)

    def mark_used(self, physical: Any) -> bool:
        """Note that the connection worked until now, and return whether it did.

        It did not where a statement was cut short, so that its answer is yet to come.
        """
        return True

    def mode_if_ready(self, physical: Any, window: float | None, now: float) -> bool | None:
        """Return the autocommit mode of a connection that is set up and usable.

        None: who knows.  It is the quick way of `is_set_up()`, `is_usable()` and
        `autocommit()`; `now` is `time.monotonic()`.
        """
        return None

    def is_usable(self, physical: Any, window: float | None) -> bool:
        """Return whether the server is still there, without a round trip.

        Only a connection that was idle for more than `window` seconds costs one.
        """
        return True

    # ##### The session #####

    def autocommit(self, connection: Any) -> bool | None:
        """Return the connection's autocommit mode; None when it can't be told."""
        return None

    def in_transaction(self, connection: Any, autocommit: bool) -> bool:
        """Return whether giving the connection away now would lose a transaction."""
        return not autocommit

    def reset(self, physical: Any) -> bool:
        """Make the session as it was when it was new; return False if it can't be."""
        return False

    # ##### Cursors #####

    def detach(self, cursor: Any) -> None:
        """Make sure that `cursor` never reaches its connection again."""
        cursor.close()

    def abandon(self, cursor: Any) -> None:
        """Like `detach`, in a forked child: without a byte to the parent's server."""

    def close_portal(self, connection: Any, name: str) -> None:
        """Close the server's side of a named cursor that was dropped unclosed."""


def driver_for(database: ModuleType) -> Driver:
    """Return the driver for a wrapper class's `Database` module."""
    if database.__name__ == "psycopg":
        from .psycopg3 import Psycopg

        return Psycopg()
    return Driver()
