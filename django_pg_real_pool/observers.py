"""Watch leases and pools from outside: for metrics, panels and logs of one's own.

Subclass `Observer`, override what you want to hear of, and `add()` an instance.  While
nobody listens, a lease costs one test of `listening` more, and nothing is recorded.

This module imports nothing of ours but the lock: leases and pools tell it what happens.
"""

from __future__ import annotations

import logging
import os
import threading
from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from ._process.locks import locked

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

    __slots__ = ("_spans", "alias", "began", "ended", "thread", "waited")

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
        #: What the lease has noted of its holds.
        self._spans: list[Any] = []

    def __repr__(self) -> str:
        state = "is out" if self.ended is None else f"{self.seconds:.6f} s"
        return f"<Lease of {self.alias!r}: {state}, waited {self.waited:.6f} s>"

    @property
    def seconds(self) -> float:
        """Seconds between the beginning and the end; 0.0 while it is out."""
        return 0.0 if self.ended is None else self.ended - self.began

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Each hold, in the order of their beginnings; empty until it is back."""
        return tuple(
            Hold(each.hold.name.lower(), each.began, self._end_of(each), each.origin)
            for each in self._spans
        )

    @property
    def longest_hold(self) -> HoldName:
        """What held the connection longest; "connect" if nothing came of it."""
        longest, most = "CONNECT", -1.0
        for each in self._spans:
            seconds = self._end_of(each) - each.began
            if seconds > most:
                longest, most = each.hold.name, seconds
        return longest.lower()  # type: ignore[return-value]

    def _end_of(self, span: Any) -> Any:
        return span.ended or self.ended


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
#: The methods that are overridden, by name: who does not override one need not be called.
hearing: dict[str, tuple[Callable[..., None], ...]] = {}

#: The methods that have raised.
_have_raised: set[Callable[..., None]] = set()
#: The threads that are in a method of an observer.
telling: set[int] = set()


def add(observer: Observer, *, origins: bool = False) -> None:
    """Let `observer` hear of what happens from here on; twice is once.

    With `origins`, each hold says where in the user's code it began, which costs a walk up
    the stack for each.  Raises TypeError if it is not an `Observer`.
    """
    if not isinstance(observer, Observer):
        raise TypeError(f"expected an instance of Observer, got {observer!r}")
    _listeners.add(observer, origins)


def remove(observer: Observer) -> None:
    """Let `observer` hear no more.  Nothing happens if it was not added."""
    _listeners.remove(observer)


_EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class _Listeners:
    """All observers.  What is asked for each lease, it writes into the module."""

    def __init__(self) -> None:
        #: See `locked`.
        self._lock, self._holder = threading.RLock(), 0
        #: Each with whether it wants origins.  Replaced, never changed.
        self.all: tuple[tuple[Observer, bool], ...] = ()
        self._replace([])

    @locked
    def add(self, observer: Observer, origins: bool) -> None:
        others = [each for each in self.all if each[0] is not observer]
        self._replace([*others, (observer, origins)])

    @locked
    def remove(self, observer: Observer) -> None:
        self._replace([each for each in self.all if each[0] is not observer])
        for event in _EVENTS:
            _have_raised.discard(getattr(observer, event))

    def _replace(self, observers: list[tuple[Observer, bool]]) -> None:
        global listening, wants_origins, hearing
        self.all = tuple(observers)
        hearing = {
            event: tuple(
                getattr(each, event)
                for each, _ in observers
                if getattr(type(each), event) is not getattr(Observer, event)
                or event in vars(each)
            )
            for event in _EVENTS
        }
        wants_origins = any(origins for _, origins in observers)
        listening = bool(observers)

    def forget_parent(self) -> None:
        """In a forked child: a thread of the parent may have had the lock."""
        self._lock, self._holder = threading.RLock(), 0


_listeners = _Listeners()

# ##### Telling.  What follows is this package's own, and not for others. #####


def tell(event: str, *args: Any) -> None:
    """Call a method of each observer, on this thread."""
    # What with_undo() does, without its calls: they would double what a lease costs here.
    me = get_ident()
    try:
        try:
            telling.add(me)
            for method in hearing[event]:
                try:
                    method(*args)
                except Exception:
                    if method not in _have_raised:
                        _have_raised.add(method)
                        logger.exception(
                            "%s() has raised; what it raises from here on is not logged",
                            getattr(method, "__qualname__", method),
                        )
        finally:
            telling.discard(me)
    except BaseException:
        telling.discard(me)  # interrupted just before the other
        raise


_later: SimpleQueue[Callable[[], None]] = SimpleQueue()
_thread: threading.Thread | None = None


def tell_later(event: str, *args: Any) -> None:
    """Call a method of each observer soon, on a thread where nobody waits for it.

    A pool's own worker that waited for a connection would wait for itself.  The context is
    the caller's, so that an observer can tell whose lease it was.
    """
    global _thread
    if not hearing[event]:
        return
    _later.put(partial(copy_context().run, tell, event, *args))
    if _thread is None or not _thread.is_alive():
        # Without a lock, which an interruption could leave held: two do no harm.
        thread = _thread = threading.Thread(
            target=_run, name="django-pg-real-pool-observers", daemon=True
        )
        thread.start()  # perhaps no longer the same


def wait_until_told(seconds: float = 1.0) -> None:
    """Wait until all has been told that is told later, but no longer than so many seconds."""
    if _thread is not None and _thread.is_alive():
        is_told = threading.Event()
        _later.put(is_told.set)
        is_told.wait(seconds)


def _run() -> None:
    while True:
        call = _later.get()
        with at_work:
            call()


#: Held by threads of ours while they are in code of others: what that locks, such as a
#: metric, must not be locked in a forked child, where nobody would unlock it.
at_work = threading.RLock()
#: Seconds that a fork waits for them.
_PATIENCE = 1.0


def _before_fork() -> None:
    at_work.acquire(timeout=_PATIENCE)


def _after_fork() -> None:
    with suppress(RuntimeError):  # it waited in vain
        at_work.release()


def _forget_parent() -> None:
    """In a forked child: the observers are here, the thread is not."""
    global _later, _thread, at_work
    _listeners.forget_parent()
    _later, _thread = SimpleQueue(), None
    at_work = threading.RLock()
    telling.intersection_update({get_ident()})


def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_forget_parent
        )


_watch_forks()
