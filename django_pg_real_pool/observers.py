"""Watch leases and pools from outside: for metrics, panels and logs of one's own.

Subclass `Observer`, override what you want to hear of, and `add()` an instance.  While
nobody listens, a lease costs one test of `listening` more, and nothing is recorded.

This module imports nothing of ours: leases and pools tell it what happens.
"""

from __future__ import annotations

import logging
import os
import threading
from _thread import get_ident
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

__all__ = ["Closing", "Hold", "Lease", "Observer", "add", "remove"]

logger = logging.getLogger("django_pg_real_pool")

#: Why a connection was held.
HoldName = Literal["connect", "cursor", "pin", "session", "transaction"]

#: Why a pool closed a connection: it was older than `max_lifetime`; unused for `max_idle`;
#: found broken; left behind by a thread that was interrupted; or the pool was closed.
Closing = Literal["expired", "idle", "broken", "lost", "pool closed"]


class Hold(NamedTuple):
    """One reason why a connection was held, from its beginning to its end."""

    #: "connect", "cursor", "pin", "session" or "transaction".
    name: HoldName
    #: `time.monotonic()` of each.
    began: float
    ended: float
    #: Where in the user's code it began, "file:line in function"; None: nobody asked.
    origin: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Lease:
    """One connection that was lent: the same object when it is taken and when it is back.

    All times are of `time.monotonic()`.
    """

    __slots__ = ("alias", "began", "ended", "holds", "thread", "waited")

    def __init__(self, alias: str, thread: int, waited: float, began: float) -> None:
        #: The key of `DATABASES`.
        self.alias = alias
        #: `threading.get_ident()` of the thread that the wrapper belongs to.
        self.thread = thread
        #: Seconds that the thread has waited for its pool.
        self.waited = waited
        #: When the pool gave the connection out.
        self.began = began
        #: When the pool had it again; None: it is out.
        self.ended: float | None = None
        #: Each hold, in the order of their beginnings; empty until the connection is back.
        self.holds: tuple[Hold, ...] = ()

    def __repr__(self) -> str:
        state = "is out" if self.ended is None else f"{self.seconds:.6f} s"
        return f"<Lease of {self.alias!r}: {state}, waited {self.waited:.6f} s>"

    @property
    def seconds(self) -> float:
        """Seconds between the beginning and the end; 0.0 while it is out."""
        return 0.0 if self.ended is None else self.ended - self.began

    @property
    def longest_hold(self) -> HoldName:
        """What held the connection longest; "connect" if nothing came of it."""
        longest: HoldName = "connect"
        most = -1.0
        for hold in self.holds:
            if hold.ended - hold.began > most:
                longest, most = hold.name, hold.ended - hold.began
        return longest


class Observer:
    """What can be heard of.  Each method does nothing; override those that you want.

    What happens to a lease is told at once, on its own thread, if the wrapper is that
    thread's alone.  All else is told soon after, on a thread of this module's.

    An Exception that a method raises is logged, the first time, and disturbs nobody.
    A method may query the database, as a session of its own: it is not in the transaction
    of the lease that it is told of, and its queries are not observed.
    """

    def taken(self, lease: Lease) -> None:
        """A pool gave a connection out."""

    def given_back(self, lease: Lease) -> None:
        """The pool has the connection again, or another one in its place."""

    def timed_out(self, alias: str, waited: float) -> None:
        """No connection was free for so many seconds, or `max_waiting` others waited."""

    def connection_made(self, alias: str, seconds: float) -> None:
        """A pool connected to the server.  Of Django's pool only, as the next two."""

    def connection_failed(self, alias: str, seconds: float, error: Exception) -> None:
        """A pool could not connect to the server."""

    def connection_closed(self, alias: str, why: Closing) -> None:
        """A pool closed a connection."""


#: Whether there is an observer.
listening = False
#: Whether one of them wants to know where holds began.
wants_origins = False

#: The observers, each with whether it wants origins.  Replaced, never changed.
_observers: tuple[tuple[Observer, bool], ...] = ()
_lock = threading.Lock()
#: The methods that have raised, by the identity of their observer.
_have_raised: set[tuple[int, str]] = set()
#: The threads that are in a method of an observer.
_telling: set[int] = set()


def add(observer: Observer, *, origins: bool = False) -> None:
    """Let `observer` hear of what happens from here on; twice is once.

    With `origins`, each hold says where in the user's code it began, which costs a walk up
    the stack for each.  Raises TypeError if it is not an `Observer`.
    """
    if not isinstance(observer, Observer):
        raise TypeError(f"expected an instance of Observer, got {observer!r}")
    with _lock:
        others = [each for each in _observers if each[0] is not observer]
        _replace([*others, (observer, origins)])


def remove(observer: Observer) -> None:
    """Let `observer` hear no more.  Nothing happens if it was not added."""
    with _lock:
        _replace(each for each in _observers if each[0] is not observer)
        for who, event in list(_have_raised):
            if who == id(observer):
                _have_raised.discard((who, event))


def _replace(observers: Iterable[tuple[Observer, bool]]) -> None:
    global listening, wants_origins, _observers
    _observers = tuple(observers)
    listening = bool(_observers)
    wants_origins = any(origins for _, origins in _observers)


# ##### Telling.  What follows is this package's own, and not for others. #####


def is_telling() -> bool:
    """Return whether the calling thread is in an observer."""
    return get_ident() in _telling


def tell(event: str, *args: Any) -> None:
    """Call a method of each observer, on this thread."""
    me = get_ident()
    try:
        try:
            _telling.add(me)
            for observer, _ in _observers:
                try:
                    getattr(observer, event)(*args)
                except Exception:
                    if (id(observer), event) not in _have_raised:
                        _have_raised.add((id(observer), event))
                        logger.exception(
                            "%r.%s() has raised; what it raises from here on is not logged",
                            observer,
                            event,
                        )
        finally:
            _telling.discard(me)
    except BaseException:
        _telling.discard(me)  # interrupted just before the other
        raise


_later: SimpleQueue[Callable[[], None]] = SimpleQueue()
_thread: threading.Thread | None = None


def tell_later(event: str, *args: Any) -> None:
    """Call a method of each observer soon, on a thread where nobody waits for it.

    A pool's own worker that waited for a connection would wait for itself.  The context is
    the caller's, so that an observer can tell whose lease it was.
    """
    global _thread
    _later.put(partial(copy_context().run, tell, event, *args))
    if _thread is None or not _thread.is_alive():
        # Without a lock, which an interruption could leave held: two do no harm.
        _thread = threading.Thread(
            target=_run, name="django-pg-real-pool-observers", daemon=True
        )
        _thread.start()


def wait_until_told(seconds: float = 1.0) -> None:
    """Wait until all has been told that is told later, but no longer than so many seconds."""
    if _thread is not None and _thread.is_alive():
        is_told = threading.Event()
        _later.put(is_told.set)
        is_told.wait(seconds)


def _run() -> None:
    while True:
        _later.get()()


def _forget_parent() -> None:
    """In a forked child: the observers are here, the thread is not."""
    global _lock, _later, _thread
    _lock, _later, _thread = threading.Lock(), SimpleQueue(), None
    _telling.intersection_update({get_ident()})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
