"""What differs between pools: one adapter for each, behind one interface.

`Pool` is the safe default for a pool that this library has never seen.  All that it
asks of a base wrapper is what Django asks: `get_new_connection()` gets a connection,
`_close()` gives it back.

An adapter is asked by a lease, which it knows as a `Session`.  It never looks at why a
connection is held.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import RLock
from time import monotonic
from types import FunctionType, MethodType
from typing import Any, Protocol

from django.db.backends.base.base import NO_DB_ALIAS

from .._process.locks import locked

#: Seconds from which on a thread that asks for a connection is counted as waiting, where a
#: pool does not tell: by then one that was idle would have come.
_A_WAIT = 0.005


@dataclass(frozen=True)
class Census:
    """A count of a pool's connections; None where nobody knows.

    What a pool does not tell is counted where we lend its connections.
    """

    max_size: int | None = None
    size: int | None = None
    idle: int | None = None
    in_use: int | None = None
    waiting: int | None = None
    #: The most since the pool was opened, or since `reset_peaks()`.
    peak_in_use: int | None = None
    peak_waiting: int | None = None
    #: The longest that a thread has waited since then, in seconds.
    longest_wait: float | None = None
    #: How many connections the pool keeps though nobody needs them: at least, and at most.
    idle_min: int | None = None
    idle_max: int | None = None

    def __str__(self) -> str:
        counts = {
            "size": self.size,
            "at most": self.max_size,
            "in use": self.in_use,
            "idle": self.idle,
            "waiting": self.waiting,
        }
        known = [f"{name} {count}" for name, count in counts.items() if count is not None]
        return ", ".join(known) or "there is none yet"


class Tally:
    """What we know by ourselves of one alias's pool: whom we lend to, and who asks."""

    def __init__(self) -> None:
        #: Connections that are out, by the identity of their session.  Kept here, none
        #: is collected with its wrapper, where a pool's own finaliser would run.
        self.lent: dict[int, Any] = {}
        #: When each session that has no connection yet has asked for one.
        self.asking: dict[int, float] = {}
        #: See `locked`.
        self._lock = RLock()
        self._holder = 0
        self.peak_in_use = self.peak_waiting = 0
        self.longest_wait = 0.0

    def lend(self, session: Session, get: Callable[[], Any]) -> Any:
        """Return what `get` returns, which is lent to the session from here on."""
        who, began = id(session), monotonic()
        try:
            self.asking[who] = began
            connection = self.lent[who] = get()
        finally:
            waited = monotonic() - began
            in_use = len(self.lent)
            waiting = self.count_waiting() if waited > _A_WAIT else 0
            self.asking.pop(who, None)
            if (
                in_use > self.peak_in_use
                or waiting > self.peak_waiting
                or waited > self.longest_wait
            ):
                self.note(in_use, waiting, waited)
        return connection

    def count_waiting(self) -> int:
        latest = monotonic() - _A_WAIT
        return sum(began < latest for began in list(self.asking.values()))

    @locked
    def note(self, in_use: int, waiting: int, waited: float) -> None:
        self.peak_in_use = max(self.peak_in_use, in_use)
        self.peak_waiting = max(self.peak_waiting, waiting)
        self.longest_wait = max(self.longest_wait, waited)

    @locked
    def reset(self) -> None:
        """Begin anew with what is now."""
        self.peak_in_use, self.peak_waiting = len(self.lent), self.count_waiting()
        self.longest_wait = 0.0

    @property
    def peaks(self) -> tuple[int, int, float]:
        return self.peak_in_use, self.peak_waiting, self.longest_wait


class _Tallies(dict[str, Tally]):
    """The tally of each alias, which whoever needs it first makes."""

    def __missing__(self, alias: str) -> Tally:
        # A defaultdict could make one each for two threads, and lose what is noted in the
        # first; setdefault() is one step.
        return self.setdefault(alias, Tally())


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
        #: What is known of each alias's pool, where it does not know itself.
        self._tallies = _Tallies()

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the classes of what the pool may raise when a connection comes back."""
        return (Exception,)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        """Return the classes of what the pool raises when no connection is free."""
        module: Any = sys.modules.get("psycopg_pool")  # if that is what is beneath
        return (module.PoolTimeout, module.TooManyRequests) if module else ()

    def trouble(self, session: Session) -> BaseException | None:
        """Return why the pool can't connect, if it can't and knows."""
        return None

    def tells_trouble(self, session: Session) -> bool:
        """Return whether the pool knows it if it can't connect."""
        return False

    def releases(self, wrapper: Any) -> bool:
        """Return whether `wrapper`, with the settings it has now, is behind a pool."""
        if wrapper.alias == NO_DB_ALIAS:  # Django's detour to make a test database
            return False
        return wrapper.settings_dict["OPTIONS"].get("pool") is not False

    def prepare(self, wrapper: Any) -> None:
        """Make the pool that the base would make when its `pool` is read."""

    def take(self, session: Session) -> Any:
        """Return a connection that is the session's alone until `put`."""
        tally = self._tallies[session.wrapper.alias]
        return tally.lend(session, lambda: self._get(session))

    def _get(self, session: Session) -> Any:
        wrapper = session.wrapper
        return wrapper.get_new_connection(wrapper.get_connection_params())

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
        tally = self._tallies.get(session.wrapper.alias)
        if tally is not None:
            tally.lent.pop(id(session), None)
            tally.asking.pop(id(session), None)

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
        """Count the connections of `wrapper`'s pool, or else those that we have lent."""
        tally = self._tallies[wrapper.alias]
        return Census(
            None, None, None, len(tally.lent), tally.count_waiting(), *tally.peaks
        )

    def reset_peaks(self, wrapper: Any) -> None:
        """Let the census's peaks begin anew."""
        self._tallies[wrapper.alias].reset()

    def lent(self) -> dict[int, Any]:
        """Return what is out, by the identity of its session, where we have to remember."""
        tallies = list(self._tallies.values())
        return {who: each for tally in tallies for who, each in tally.lent.items()}

    def abandon(self) -> Any:
        """In a forked child: forget the parent's pools, touching none of their locks.

        Returns what must not be collected as long as the child lives.
        """
        out = self.lent()
        self._tallies.clear()
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
