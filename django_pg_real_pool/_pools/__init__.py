"""What differs between pools: one adapter for each, behind one interface.

`Pool` is the safe default for a pool that this library has never seen.  All that it
asks of a base wrapper is what Django asks: `get_new_connection()` gets a connection,
`_close()` gives it back.

An adapter is asked by a lease, which it knows as a `Session`.  It never looks at why a
connection is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, Protocol

from django.db.backends.base.base import NO_DB_ALIAS


@dataclass(frozen=True)
class Census:
    """A pool's count of its connections; None where it does not tell."""

    max_size: int | None = None
    size: int | None = None
    idle: int | None = None
    in_use: int | None = None
    waiting: int | None = None

    def __str__(self) -> str:
        counts = {
            "size": self.size,
            "at most": self.max_size,
            "in use": self.in_use,
            "idle": self.idle,
            "waiting": self.waiting,
        }
        known = [f"{name} {count}" for name, count in counts.items() if count is not None]
        return ", ".join(known) or "it does not tell its size"


class Session(Protocol):
    """What an adapter sees of a lease: a wrapper from its first use to `close()`."""

    #: Django's wrapper; `wrapper.connection` is the connection that it has.
    wrapper: Any
    #: The driver's own connection beneath.
    physical: Any
    #: The pool that serves this session.  The adapter alone writes it; None: not looked up.
    source: Any
    #: What Django finds in the place of its pool, while it is introduced to a connection.
    #: The adapter alone writes it.
    pool_stand_in: Any
    #: A weak reference to the lease, which a pool notes as the borrower.
    me: Any
    #: Whether the connection was found broken when it was taken.
    is_rejected: bool
    #: Whether the base has connected in its own way since `close()`.
    has_introduced: bool
    #: Whether the driver sees without a round trip that a connection was closed.
    notices_closing: bool

    def is_going(self) -> None:
        """Note that from here on the pool may have the connection: it must not be used."""

    def let_go(self) -> Any:
        """Forget the connection and return it: from here on, the pool has it."""


class Pool:
    """Any pool behind any wrapper."""

    #: Where in an alias's settings the size of its pool is; empty: it is not known.
    size_setting = ""
    #: Whether what it gives out is the driver's own connection.
    is_bare = False
    #: Whether stock, after close() in a block, still has the connection that it gave back.
    stock_keeps_closed = True

    def __init__(self) -> None:
        #: Connections that are out, by the identity of their session.  Kept here, none
        #: is collected with its wrapper, where a pool's own finaliser would run.
        self._out: dict[int, Any] = {}

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the classes of what the pool may raise when a connection comes back."""
        return (Exception,)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        """Return the classes of what the pool raises when no connection is free."""
        return ()

    def trouble(self, session: Session) -> BaseException | None:
        """Return why the pool can't connect, if it can't and knows."""
        return None

    def releases(self, wrapper: Any) -> bool:
        """Return whether `wrapper`, with the settings it has now, is behind a pool."""
        if wrapper.alias == NO_DB_ALIAS:  # Django's detour to make a test database
            return False
        return wrapper.settings_dict["OPTIONS"].get("pool") is not False

    def prepare(self, wrapper: Any) -> None:
        """Make the pool that the base would make when its `pool` is read."""

    def take(self, session: Session) -> Any:
        """Return a connection that is the session's alone until `put`."""
        wrapper = session.wrapper
        connection = wrapper.get_new_connection(wrapper.get_connection_params())
        return self._remember(session, connection)

    def _remember(self, session: Session, connection: Any) -> Any:
        self._out[id(session)] = connection
        return connection

    def introduce(self, session: Session) -> None:
        """Do what the base does once for a connection, beyond what `take` did."""

    def reconfigure(self, session: Session) -> None:
        """Do again what the pool did when it made the connection, after a reset."""

    def put(self, session: Session) -> None:
        """Give the session's connection back."""
        session.is_going()
        session.wrapper._close()
        self.forget(session)
        session.let_go()

    def forget(self, session: Session) -> None:
        """Note that the pool has the session's connection again, or never will."""
        self._out.pop(id(session), None)

    def discard(self, session: Session) -> None:
        """End the connection, before `put`: nobody may get it as it is."""
        session.physical.close()

    def close(self, wrapper: Any) -> None:
        """Close `wrapper`'s pool as far as the base's `close_pool()` does not."""

    def close_all_of(self, database: Any) -> None:
        """Close each pool whose connections are to `database`, as `database_of` tells it."""

    def physical(self, connection: Any) -> Any:
        """Return what stays the same each time the pool gives out one connection.

        None: the connection went back to the pool behind our back.
        """
        return connection

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        """Return how many connections the settings allow; None if that is not known."""
        return None

    def census(self, wrapper: Any) -> Census:
        """Count the connections of `wrapper`'s pool, as far as it tells."""
        return Census()

    def abandon(self) -> Any:
        """In a forked child: forget the parent's pools, touching none of their locks.

        Returns what must not be collected as long as the child lives.
        """
        out, self._out = self._out, {}
        return out


#: The settings that say where an alias connects to, and how.
_DATABASE = ("HOST", "PORT", "NAME")
_CONNECTING = (*_DATABASE, "USER", "PASSWORD", "OPTIONS", "POOL_OPTIONS", "TIME_ZONE")


def database_of(settings_dict: Mapping[str, Any]) -> Any:
    """Return which database an alias is for: the same for all that point there."""
    return tuple(str(settings_dict.get(name) or "") for name in _DATABASE)


def connecting(settings_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the settings that a pool was made with."""
    return {name: _copied(settings_dict.get(name)) for name in _CONNECTING}


def _copied(value: Any) -> Any:
    """Return what can be compared later: with a copy, too, as `DatabaseWrapper.copy()` makes.

    Of an object that equals nothing but itself, only its class is compared.
    """
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(each) for each in value]
    if isinstance(value, MethodType):
        return value.__func__, _copied(value.__self__)
    kind: Any = type(value)
    if isinstance(value, (type, FunctionType)) or kind.__eq__ is not object.__eq__:
        return value
    return kind
