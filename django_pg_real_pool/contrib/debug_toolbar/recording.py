"""What one request does with its connections, noted while it is served.

Leases of our engines are told by the observers' seam.  Django's own backend tells nothing,
so its wrappers are watched from outside.  Which request something belongs to, the context
says: of threads, only those that run in the request's context are of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import WeakSet, ref

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created

from ... import ConnectionReleaseMixin, observers
from ..._process import registry
from ..._process.locks import locked, with_undo
from ..._process.origins import describe_coroutine, find_origin
from ..._process.weak import WeakMap
from ..._session import changes_session

#: Where an origin begins if nobody but this library is on the stack.
OURS = str(Path(__file__).parents[2])

#: So much of a statement is kept, to be shown.
SHOWN_SQL = 300

current: ContextVar[Recording | None] = ContextVar(
    "django-pg-real-pool-recording", default=None
)


class Need:
    """A reason why a connection that is kept anyway would have been held."""

    def __init__(self, name: observers.HoldName, origin: str, cursor: Any = None) -> None:
        self.name = name
        self.origin = origin
        self.began = monotonic()
        self.ended: float | None = None
        #: Finds the cursor that it ends with.
        self.cursor: Callable[[], Any] | None = None if cursor is None else ref(cursor)

    def end(self) -> None:
        if self.ended is None:
            self.ended = monotonic()


class Kept:
    """A connection that a wrapper keeps whatever it does: beneath Django's own backend.

    It looks as an `observers.Lease` does, whose holds are what would have held it.  One of
    our engines has it if no pool lent it, or did before anybody listened: then it has none.
    """

    def __init__(self, wrapper: Any, began: float, waited: float = 0.0) -> None:
        self.wrapper = wrapper
        #: What holds it where nothing needs it.
        self.rest = "unknown" if isinstance(wrapper, ConnectionReleaseMixin) else "nothing"
        self.alias: str = wrapper.alias
        self.thread = threading.get_ident()
        self.waited = waited
        self.began = began
        self.ended: float | None = None
        self.holds: list[Need] = []
        #: Those that have not ended yet, and some that have.
        self._open: list[Need] = []
        #: When its last query had ended.
        self.used = began

    def statement(self, sql: Any, cursor: Any, origin: str) -> None:
        """Note what would hold the connection from this statement on."""
        wrapper = self.wrapper
        for need in self._open:
            if need.cursor is not None and need.cursor() is None:
                need.end()  # it was dropped
        self._open = [need for need in self._open if need.ended is None]
        names = {need.name for need in self._open}
        if "transaction" not in names and (
            wrapper.in_atomic_block or not wrapper.autocommit
        ):
            self._begin(Need("transaction", origin))
        if "session" not in names and changes_session(sql, cursor.cursor):
            self._begin(Need("session", origin))
        if not any(need.cursor and need.cursor() is cursor for need in self._open):
            self._begin(need := Need("cursor", origin, cursor))
            cursor.close = partial(_then, cursor.close, need.end)

    def _begin(self, need: Need) -> None:
        self.holds.append(need)
        self._open.append(need)

    def end_transaction(self) -> None:
        for need in self._open:
            if need.name == "transaction":
                need.end()

    def end(self, when: float) -> None:
        if self.ended is None:
            self.ended = when


def _then(function: Callable[[], Any], do: Callable[[], None]) -> Any:
    try:
        return function()
    finally:
        do()


class Recording(observers.Observer):
    """One request's leases, queries and waits, from `start()` to `stop()`."""

    def __init__(self) -> None:
        self.began = self.ended = monotonic()
        self.is_over = False
        #: The coroutine that serves the request, if it is one.
        self.coroutine: Any = None
        self.leases: list[Any] = []
        #: Alias, thread, beginning, end and text of each.
        self.queries: list[tuple[str, int, float, float, str]] = []
        #: Alias, thread (None: unknown), beginning and end of each wait for nothing.
        self.timeouts: list[tuple[str, int | None, float, float]] = []
        self.threads: dict[int, str] = {}
        #: The engine of each alias that was used.
        self.engines: dict[str, str] = {}
        #: Where a coroutine awaited each lease, or "", for holds that no other code began.
        self.awaited: dict[int, str] = {}
        #: The latest lease of each alias and thread.
        self._latest: dict[tuple[str, int], Any] = {}
        self._attached: WeakSet[Any] = WeakSet()
        #: What was current before.
        self._before: Recording | None = None
        #: See `locked`.  Of what is within, nothing is done once it is over: a thread of
        #: the request may outlast it.
        self._lock, self._holder = threading.RLock(), 0

    def start(self) -> None:
        self._before = current.get()
        current.set(self)
        observers.add(self, origins=True)
        connection_created.connect(self._connected)
        self.began = monotonic()

    def stop(self) -> None:
        if not self.is_over:
            self.ended = monotonic()
            with_undo(observers.wait_until_told, self._end)

    @locked
    def _end(self) -> None:
        """Leave nothing behind, however often this is done."""
        self.is_over, self.coroutine = True, None
        for wrapper in list(self._attached):
            with suppress(ValueError):
                wrapper.execute_wrappers.remove(self._query)
            _watchers.remove(wrapper, self)
        connection_created.disconnect(self._connected)
        observers.remove(self)
        current.set(self._before)

    @property
    def is_current(self) -> bool:
        return current.get() is self and not self.is_over

    def attach_all(self) -> None:
        """Watch the wrappers that the calling thread has."""
        for wrapper in connections.all():
            self._attach(wrapper, self.began)

    # ##### What is told #####

    def taken(self, lease: observers.Lease) -> None:
        if not self.is_current:
            return
        self._attach(connections[lease.alias], lease.began)
        self._add(lease)

    def timed_out(self, alias: str, waited: float) -> None:
        if self.is_current:
            now = monotonic()
            self._waited_in_vain(alias, None, now - waited, now)

    def _connected(self, connection: Any, **kwargs: Any) -> None:
        if self.is_current and not isinstance(connection, ConnectionReleaseMixin):
            self._attach(connection, monotonic())

    # ##### What is watched #####

    @locked
    def _attach(self, wrapper: Any, since: float) -> None:
        if self.is_over or wrapper in self._attached:
            return
        is_ours = isinstance(wrapper, ConnectionReleaseMixin)
        if not is_ours and wrapper.vendor != "postgresql":
            return
        self._attached.add(wrapper)  # first: so all that follows is undone
        # The first runs last, and execute_wrapper() takes away the last when it ends.
        wrapper.execute_wrappers.insert(0, self._query)
        if not is_ours:
            _watchers.add(wrapper, self)
            if wrapper.connection is not None:
                self._add(Kept(wrapper, since))

    @locked
    def _add(self, lease: Any) -> None:
        if self.is_over:
            return
        key = lease.alias, lease.thread
        if isinstance(kept := self._latest.get(key), Kept):
            kept.end(kept.used)
        self._latest[key] = lease
        self.leases.append(lease)
        self.threads[lease.thread] = threading.current_thread().name
        self.engines[lease.alias] = connections.settings[lease.alias]["ENGINE"]
        self.awaited[id(lease)] = self._awaited() or ""

    def _awaited(self) -> str | None:
        """Return where a coroutine awaits what the calling thread does, as far as is known."""
        if self.coroutine is not None:
            return describe_coroutine(self.coroutine)
        loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
        if loop is None or not loop.is_running():
            return None
        # An asynchronous view of a synchronous server: the loop is this request's alone.
        places = {describe_coroutine(each.get_coro()) for each in asyncio.all_tasks(loop)}
        places.discard(None)
        return places.pop() if len(places) == 1 else None

    def _query(
        self, execute: Any, sql: Any, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        if not self.is_current:
            return execute(sql, params, many, context)
        wrapper, thread = context["connection"], threading.get_ident()
        lease = self._latest.get((wrapper.alias, thread))
        if lease is None or lease.ended is not None:
            # Taken before the request, or from no pool: nobody told.
            lease = Kept(wrapper, self.began if lease is None else monotonic())
            self._add(lease)
        if isinstance(lease, Kept) and lease.rest == "nothing":
            origin = find_origin()
            if origin.startswith(OURS):
                origin = self._awaited() or ""
            lease.statement(sql, context["cursor"], origin)
        began = monotonic()
        try:
            return execute(sql, params, many, context)
        finally:
            now = monotonic()
            self.queries.append((wrapper.alias, thread, began, now, str(sql)))
            if isinstance(lease, Kept):
                lease.used = now

    def happened(self, wrapper: Any, name: str, began: float, has_failed: bool) -> None:
        """Note that a wrapper of Django's has done what it was called for."""
        key, now = (wrapper.alias, threading.get_ident()), monotonic()
        lease = self._latest.get(key)
        if name == "connect" and has_failed:
            self._waited_in_vain(*key, began, now)
        elif name == "connect":
            self._add(Kept(wrapper, now, now - began))
        elif isinstance(lease, Kept):
            lease.end_transaction()
            if name == "close":
                lease.end(now)

    @locked
    def _waited_in_vain(
        self, alias: str, thread: int | None, began: float, ended: float
    ) -> None:
        if self.is_over:
            return
        self.timeouts.append((alias, thread, began, ended))
        self.engines[alias] = connections.settings[alias]["ENGINE"]

    # ##### What has become of it #####

    def as_stats(self) -> dict[str, Any]:
        """Return what is shown, as what JSON can have; times in seconds of the request."""

        def at(*times: float) -> list[float]:
            return [round(when - self.began, 6) for when in times]

        return {
            "took": round(self.ended - self.began, 6),
            "engines": self.engines,
            "threads": {str(ident): name for ident, name in self.threads.items()},
            "leases": [
                {
                    "alias": lease.alias,
                    "thread": str(lease.thread),
                    "rest": lease.rest if isinstance(lease, Kept) else None,
                    "waited": round(lease.waited, 6),
                    "time": at(lease.began, self._end_of(lease)),
                    "is_out": lease.ended is None,
                    "holds": [
                        [name, *at(began, ended), origin]
                        for name, began, ended, origin in self._holds_of(lease)
                    ],
                }
                for lease in self.leases
                if lease.began <= self.ended
            ],
            "queries": [
                [alias, str(thread), *at(began, ended), sql[:SHOWN_SQL]]
                for alias, thread, began, ended, sql in self.queries
            ],
            "timeouts": [
                # Told late, it may seem to have ended after the request.
                [
                    *(alias, None if thread is None else str(thread)),
                    *at(began, min(ended, self.ended)),
                ]
                for alias, thread, began, ended in self.timeouts
            ],
        }

    def _holds_of(self, lease: Any) -> list[tuple[str, float, float, str]]:
        """Return name, beginning, end and origin of each hold, as far as they are known."""
        end, holds = self._end_of(lease), list(lease.holds)
        if isinstance(lease, observers.Lease) and lease.ended is None:
            for each in registry.leases(lease.alias):
                if each.record is lease:
                    holds = [
                        observers.Hold(
                            x.hold.name.lower(), x.began, x.ended or end, x.origin
                        )
                        for x in list(each.holds.spans or ())
                    ]
        return [
            (
                hold.name,
                hold.began,
                min(end, hold.ended or end),
                self.awaited[id(lease)] if hold.origin.startswith(OURS) else hold.origin,
            )
            for hold in holds
            if hold.began <= end
        ]

    def _end_of(self, lease: Any) -> float:
        """Return when a lease ended, or the request did."""
        if isinstance(lease, Kept) and lease.wrapper.connection is None:
            lease.end(lease.used)
        return self.ended if lease.ended is None else min(lease.ended, self.ended)


# ##### Wrappers of Django's own #####

_METHODS = ("connect", "commit", "rollback", "close")


class _Watchers:
    """The recordings that watch each wrapper, which coroutines may share."""

    def __init__(self) -> None:
        #: See `locked`.
        self._lock, self._holder = threading.RLock(), 0
        self._of: WeakMap[Any, set[Recording]] = WeakMap()

    @locked
    def add(self, wrapper: Any, recording: Recording) -> None:
        """Let a wrapper tell the recording of its context what it does."""
        self._of[wrapper] = {*(self._of.get(wrapper) or ()), recording}
        for name in _METHODS:
            if name not in vars(wrapper):  # else a tool has replaced it, or this has
                setattr(wrapper, name, partial(_tell, wrapper, name))

    @locked
    def remove(self, wrapper: Any, recording: Recording) -> None:
        """Let it tell no more, if this recording is the last; nothing if it never was."""
        others = self._of[wrapper] = {*(self._of.get(wrapper) or ())} - {recording}
        if not others:
            for name in _METHODS:
                if getattr(vars(wrapper).get(name), "func", None) is _tell:
                    delattr(wrapper, name)


_watchers = _Watchers()


def _tell(wrapper: Any, name: str) -> None:
    began, has_failed = monotonic(), True
    try:
        getattr(type(wrapper), name)(wrapper)
        has_failed = False
    finally:
        recording = current.get()
        if recording is not None and recording.is_current:
            recording.happened(wrapper, name, began, has_failed)
