"""psycopg_pool's pool as this library uses it: quicker, and it loses no connection.

`RealPool` is a subclass.  What it overrides of its parent, by name, and why:

- `getconn`, `putconn`: an idle connection is given out and taken back in one short
  critical section each.  Everything else goes on in the parent's method.
- `_getconn_unchecked`: a thread that waits keeps its place in the line, first come, first
  served.  The place costs a third of the parent's, and is left at the end.
- `check`: the connections that it takes are noted, so that an interruption loses none.
- `_check_connection`: a borrower that checks its connection itself needs no round trip.
- `_add_to_pool`, `_return_connection`, `_putconn`: who has which connection is written
  down where it changes.
- `_reset_connection`: after the user's `reset`, a connection is configured as when it was
  made.
- `_connect`: notes why there is no connection, or that there was one; and who is making
  one, which greenlets would go on with in a forked child.
- `close`: tells observers.
- `schedule_task`: a server that was away is tried again within a second.
- The rest is the parent's, as are all of its attributes.

Who has which connection stands in `_members`.  So a connection that an interrupted thread
has lost between two steps is found by `reap()`, and replaced once.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock, get_ident
from collections import deque
from contextlib import suppress
from copy import copy
from threading import RLock
from time import monotonic
from typing import Any, Protocol
from weakref import ref

from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool import pool as parent

from .. import observers
from .._drivers.psycopg3 import know, waits_on
from .._drivers.sockets import cut
from .._process import greenlets, registry
from .._process.greenlets import Green
from .._process.locks import locked

logger = logging.getLogger("django_pg_real_pool")
_of_parent = logging.getLogger("psycopg.pool")
#: Whether the parent's methods log what they do, of each connection.
_logs, INFO = _of_parent.isEnabledFor, logging.INFO

IDLE, UNKNOWN = TransactionStatus.IDLE, TransactionStatus.UNKNOWN

#: Seconds between two attempts to reach a server that is away.
_RETRY_WITHIN = 1.0
#: Seconds after which a thread that waits looks at its place, whether woken or not.
_LOOK_AGAIN = 1.0


class Borrower(Protocol):
    """Something that borrows a connection, and can tell whether it has lost it."""

    def has_lost(self, connection: Any) -> bool:
        """Return whether it certainly does not have the connection that it was lent."""

    def lacks(self, connection: Any) -> bool:
        """Return the same, on the thread that asks for another connection for it."""


class _Out:
    """Where a connection is that is not idle, and was not lent to a `Borrower`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


#: Lent to code that uses the pool directly, and is responsible for it.
OTHERS = _Out("lent to others")
#: With a worker of the pool, which resets it.
RETURNING = _Out("being returned")
#: Just made, and not used yet.
MADE = _Out("just made")
#: Broken, too old, or lost: a worker is to replace it.
LOST = _Out("lost")

#: What is to be found in the parent, by name; else its pools stay as they are.
NEEDED = (
    *("_add_connection", "_add_to_pool", "_check_connection", "_check_open_getconn"),
    *(
        "_connect",
        "_getconn_unchecked",
        "_maybe_grow_pool",
        "_putconn",
        "_reset_connection",
    ),
    *("_return_connection", "getconn", "putconn", "run_task", "schedule_task"),
)
NEEDED_IN_POOL = (
    *(
        "_check",
        "_closed",
        "_configure",
        "_max_size",
        "_min_size",
        "_nconns",
        "_nconns_min",
    ),
    *("_pool", "_pool_full_event", "_reset", "_stats", "_waiting"),
)

# If a tool patches these on the parent, its methods are called.
_GETCONN, _PUTCONN = ConnectionPool.getconn, ConnectionPool.putconn


class Place:
    """A position in the line of those who wait.  Only the pool's lock guards it."""

    __slots__ = ("conn", "error", "owner", "turn")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.conn: Any = None
        self.error: BaseException | None = None
        #: Released when there is a connection or an error for it.
        self.turn = allocate_lock()
        self.turn.acquire()

    def fail(self, error: BaseException) -> bool:
        """Let the waiting thread raise an error, as the parent's `close()` does."""
        self.error = error
        self.call()
        return True

    def call(self) -> None:
        with suppress(RuntimeError):  # it was called already
            self.turn.release()


class RealPool(ConnectionPool[Any]):
    """A pool that knows who has its connections, and gives out the one used last.

    The connection that was used last is the one whose server process has warm caches.
    """

    #: Who has each connection that was made and not closed: None while it is idle, else a
    #: weak reference to a borrower, or one of the above.  The lock guards it.
    _members: dict[Any, Any]
    #: The borrower that each thread asks for.  A thread writes its own entry only.
    _asking: dict[int, Any]
    #: See `locked`.
    _holder: int
    #: The database alias, for observers; whoever adopts it writes it.
    alias: str
    #: The most since it was opened, or since `reset_peaks()`: connections that were out,
    #: threads that waited, seconds that one has waited.  The lock guards them.
    peak_in_use: int
    peak_waiting: int
    longest_wait: float
    #: Why the last attempt to connect failed; None since one has succeeded.
    last_error: BaseException | None
    #: Whether an attempt to connect has ever succeeded.
    has_connected: bool
    #: The threads or greenlets that are making a connection.
    _connecting: set[Any]
    #: Attempts to connect that are scheduled.
    _retries: list[_Retry]
    #: Whether this is a forked child's copy of its parent's.
    _is_inherited = False
    #: psycopg_pool can drain a pool from 3.3 on.
    _drains: bool

    @classmethod
    def adopt(cls, pool: Any) -> bool:
        """Make a pool that was never opened one of this class; return whether it is now.

        It stays what it is if it lacks something that is overridden or used here: slower,
        and without the search for lost connections.
        """
        if type(pool) is not ConnectionPool or not is_known(pool):
            logger.info(
                "pool %r is of a class or version that this library does not know, so "
                "it is used as it is",
                getattr(pool, "name", pool),
            )
            return False
        cls._adopt(pool)
        return True

    @classmethod
    def _adopt(cls, pool: Any) -> None:
        pool.__class__ = cls  # nobody else has it yet: see NativePool.prepare()
        pool.alias = ""
        pool.peak_in_use = pool.peak_waiting = 0
        pool.longest_wait = 0.0
        pool._lock = RLock()  # older versions make it when the pool is opened
        pool._holder = 0
        pool._members, pool._asking, pool._retries = {}, {}, []
        pool._connecting = set()
        pool.last_error, pool.has_connected = None, False
        pool._drains = hasattr(pool, "_drained_at")
        registry.add_pool(pool)

    # ##### Out and in #####

    def getconn(self, timeout: float | None = None, owner: Any = OTHERS) -> Any:
        """Return a connection, as the parent does, lent to `owner`.

        `owner` is a weak reference to a `Borrower`.  It looks at what it gets by itself.
        """
        if (
            self._pool  # a look only: _take_idle() looks again, within the lock
            and timeout is None  # one of 0 is refused
            and not _logs(INFO)
            and (self._check is None or self._is_checked_by(owner))
            and ConnectionPool.getconn is _GETCONN
        ):
            connection = self._take_idle(owner)
            if connection is not None:
                return connection
        me = get_ident()
        before = self._asking.get(me, OTHERS)  # of the call that this one interrupts
        try:
            self._asking[me] = owner
            return super().getconn(timeout)
        finally:
            self._asking[me] = before
            if before is OTHERS:
                self._asking.pop(me, None)  # a signal handler has been here just now

    def putconn(self, conn: Any) -> None:
        if (
            conn._pool is self
            and conn.pgconn.transaction_status == IDLE
            and self._reset is None
            and not self._closed
            and not self._is_expired(conn)
            and not _logs(INFO)
            and ConnectionPool.putconn is _PUTCONN
        ):
            conn._pool = None
            if not self._keep(conn):
                conn.close()
        else:
            super().putconn(conn)

    def reject(self, conn: Any) -> None:
        """Take back a connection that its borrower has found broken, before any use."""
        self._count("requests_num", -1)  # the borrower asks again: it is the same request
        self._putconn(conn, from_getconn=True)

    @locked
    def _take_idle(self, owner: Any) -> Any:
        conn = None if self._closed else self._pop_idle(owner)
        if conn is not None:
            self._stats["requests_num"] += 1
            conn._pool = self
        return conn

    def _pop_idle(self, owner: Any) -> Any:
        """Take the connection that was used last out of the idle ones; None: there is none.

        Within the lock.  Its age is checked here: one at the bottom may have been idle for
        longer than it may live.
        """
        idle, members = self._pool, self._members
        while idle:
            # Noted before and after: an interruption in between finds it with its owner,
            # and a signal handler that makes a query in between takes another.
            members[idle[-1]] = owner
            conn = idle.pop()
            members[conn] = owner
            self._nconns_min = min(self._nconns_min, len(idle))
            if not self._is_expired(conn):
                if len(members) - len(idle) > self.peak_in_use:
                    self._note_in_use()
                return conn
            _of_parent.info("discarding expired connection")
            self._replace(conn)
            self._tell_closed("expired")
        return None

    def _is_expired(self, conn: Any) -> bool:
        if conn._expire_at <= monotonic():
            return True
        return self._drains and bool(conn._created_at <= self._drained_at)

    def _is_checked_by(self, owner: Any) -> bool:
        """Return whether `owner` does by itself what the pool's check does."""
        return owner is not OTHERS and self._check is type(self).check_connection

    def check(self) -> None:
        """Test each idle connection, and replace what is broken or too old."""
        me = _Out("being checked")
        try:
            for conn in self._take_all_idle(me):
                fault = self._find_fault(conn)
                if fault is None:
                    self._add_to_pool(conn)
                else:
                    self._replace(conn)
                    self._tell_closed(fault)
        except BaseException:
            for conn, _ in self._list_members():
                self._replace_if(conn, me)
            raise

    def _find_fault(self, conn: Any) -> observers.Closing | None:
        """Return why an idle connection is to be replaced; None: it is sound."""
        if self._is_expired(conn):
            _of_parent.info("discarding expired connection %s", conn)
            return "expired"
        try:
            self.check_connection(conn)
        except Exception:  # noqa: BLE001 - as the parent; what raises is perhaps the user's
            self._count("connections_lost")
            _of_parent.warning("discarding broken connection: %s", conn)
            return "broken"
        return None

    @locked
    def _take_all_idle(self, owner: Any) -> list[Any]:
        idle = list(self._pool)
        self._members.update(dict.fromkeys(idle, owner))
        self._pool.clear()
        self._maybe_grow_pool()
        return idle[::-1]

    def _check_connection(self, conn: Any) -> None:
        if not self._is_checked_by(self._members.get(conn, OTHERS)):
            super()._check_connection(conn)

    def _add_to_pool(self, conn: Any) -> None:
        """Give a connection to the thread that has waited longest, or let it be idle."""
        conn._pool = None
        if not self._keep(conn):
            conn.close()

    @locked
    def _keep(self, conn: Any) -> bool:
        members = self._members
        waiting: Any = self._waiting
        if self._closed or members.get(conn, LOST) is LOST:
            return False  # or struck out: there is another in its place
        while waiting:
            place = waiting[0]
            if place.conn is None and place.error is None:
                try:
                    members[conn] = place.owner
                    place.conn = conn
                except BaseException:  # else it would wait for what the table says it has
                    place.conn = conn
                    members[conn] = place.owner
                    raise
                waiting.popleft()
                if len(members) - len(self._pool) > self.peak_in_use:
                    self._note_in_use()
                place.call()
                return True
            waiting.popleft()
        self._pool.append(conn)
        members[conn] = None
        full = self._pool_full_event
        if full is not None and len(self._pool) >= self._min_size:
            full.set()
        return True

    def _putconn(self, conn: Any, from_getconn: bool) -> None:
        if self._reset is None:
            super()._putconn(conn, from_getconn)
            return
        try:
            if self._note_returning(conn):
                super()._putconn(conn, from_getconn)
                return
        except BaseException:
            self._replace_if(conn, RETURNING)
            raise
        conn._pool = None
        conn.close()

    @locked
    def _note_returning(self, conn: Any) -> bool:
        """Note that a worker has a connection from here on, unless it was given up."""
        members = self._members
        if members.get(conn, LOST) is LOST:
            return False  # or struck out: written down again, it would be replaced again
        members[conn] = RETURNING
        return True

    def _return_connection(self, conn: Any, from_getconn: bool) -> None:
        self._reset_connection(conn)
        if conn.pgconn.transaction_status == UNKNOWN:
            if from_getconn:
                self._count("connections_lost")
            else:
                self._count("returns_bad")
            _of_parent.warning("discarding closed connection: %s", conn)
            self._replace(conn)
            self._tell_closed("broken")
        elif from_getconn or self._is_expired(conn):
            # One that its check has refused would be the next to be given out.
            _of_parent.info("discarding expired connection")
            self._replace(conn)
            self._tell_closed("broken" if from_getconn else "expired")
        else:
            self._add_to_pool(conn)

    def _reset_connection(self, conn: Any) -> None:
        super()._reset_connection(conn)
        if self._reset is not None and conn.pgconn.transaction_status == IDLE:
            # The user's callback may have undone anything.
            know(conn).heard = None
            if self._configure is not None:
                try:
                    self._configure(conn)
                except Exception:
                    logger.warning(
                        "could not configure a connection of %r", self.name, exc_info=True
                    )
                    conn.close()

    # ##### Waiting #####

    def _getconn_unchecked(self, timeout: float) -> Any:
        owner = self._asking.get(get_ident(), OTHERS)
        conn, place = self._get_or_join(timeout, owner)
        if place is not None:
            conn = self._wait(place, timeout)
        conn._pool = self
        return conn

    @locked
    def _get_or_join(self, timeout: float, owner: Any) -> tuple[Any, Place | None]:
        """Return a connection, or a place in the line."""
        if timeout <= 0.0:
            raise PoolTimeout
        self._check_open_getconn()
        conn = self._pop_idle(owner)
        if conn is not None:
            return conn, None
        self._replace_what_is_lost_by(owner)
        if self.max_waiting and len(self._waiting) >= self.max_waiting:
            self._stats["requests_errors"] += 1
            raise TooManyRequests(
                f"the pool {self.name!r} has already {len(self._waiting)} requests waiting"
            )
        self._raise_if_unreachable()
        place = Place(owner)
        self._waiting.append(place)  # type: ignore[arg-type]
        self._stats["requests_queued"] += 1
        self.peak_waiting = max(self.peak_waiting, len(self._waiting))
        self._maybe_grow_pool()
        return None, place

    def _replace_what_is_lost_by(self, owner: Any) -> None:
        """Replace what an owner has lost that is about to wait: `reap()` finds it busy."""
        borrower = owner() if isinstance(owner, ref) else None
        if borrower is not None:
            for conn, lent_to in self._list_members():
                if (
                    lent_to is owner
                    and borrower.lacks(conn)
                    and self._replace_if(conn, owner)
                ):
                    self._tell_lost()

    def _wait(self, place: Place, timeout: float) -> Any:
        began = monotonic()
        deadline = began + timeout
        try:
            while place.conn is None and place.error is None:
                remaining = deadline - monotonic()
                if remaining <= 0.0:
                    break
                place.turn.acquire(True, min(remaining, _LOOK_AGAIN))
            conn = self._leave(place)
            if conn is None:
                raise place.error or PoolTimeout(
                    f"couldn't get a connection after {timeout:.2f} sec"
                )
            return conn
        except BaseException as error:
            if isinstance(error, Exception) and place.conn is None:
                self._count("requests_errors")
            conn = self._leave(place)
            if conn is not None:  # interrupted, when it had just been given
                self._add_to_pool(conn)
            raise
        finally:
            waited = monotonic() - began
            self._count("requests_wait_ms", int(waited * 1000))
            self._note_wait(waited)

    @locked
    def _count(self, what: str, by: int = 1) -> None:
        # Of two threads that add without a lock, one is lost.
        self._stats[what] += by

    @locked
    def _leave(self, place: Place) -> Any:
        """End a wait; return the connection that it was given, if it was."""
        if place.conn is None:
            with suppress(ValueError):
                self._waiting.remove(place)  # type: ignore[arg-type]
        return place.conn

    @locked
    def _note_wait(self, waited: float) -> None:
        self.longest_wait = max(self.longest_wait, waited)

    # ##### Connecting #####

    def _connect(self, *args: Any, **kwargs: Any) -> Any:
        began, me = monotonic(), greenlets.current()
        self._connecting.add(me)
        try:
            conn = super()._connect(*args, **kwargs)
        except Exception as error:
            if self._is_inherited:
                greenlets.park()
            why = self.last_error = copy(error)  # without the frames that it went through
            if observers.listening:
                seconds = monotonic() - began
                observers.tell_later("connection_failed", self.alias, seconds, why)
            if not self.has_connected:
                self._fail_all(why)
            raise
        finally:
            self._connecting.discard(me)
        self.last_error, self.has_connected = None, True
        if observers.listening:
            observers.tell_later("connection_made", self.alias, monotonic() - began)
        know(conn)
        self._note_made(conn)
        for retry in list(self._retries):
            retry.tick()
        return conn

    @locked
    def _note_made(self, conn: Any) -> None:
        # Before Python 3.12 the collector may run in the middle of a list(dict.items()),
        # and with it any other thread.
        self._members[conn] = MADE

    def _raise_if_unreachable(self) -> None:
        # The parent goes on trying for its whole timeout.  A wrong password is reported at
        # once, as without a pool.
        # Not so once it has given up trying: then it is to begin again.
        why = self.last_error  # read once: a worker may succeed meanwhile
        if why is not None and not self.has_connected and self._nconns > 0:
            self._stats["requests_errors"] += 1
            raise copy(why)

    @locked
    def _fail_all(self, why: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().fail(copy(why))

    def schedule_task(self, task: Any, delay: float) -> None:
        if getattr(task, "attempt", None) is not None:
            # For each missing connection, the parent waits twice as long after each failure.
            # Here one of them tries every second; when it succeeds, the others try, too.
            is_probe = not any(retry.is_probe for retry in list(self._retries))
            if is_probe:
                delay = min(delay, _RETRY_WITHIN)
            task = _Retry(task, self._retries, is_probe)
        super().schedule_task(task, delay)

    def abandon(self) -> None:
        """In a forked child: do nothing more, though a fork copies this pool's greenlets.

        What they are connecting is the parent's, and is cut off.
        """
        self._closed = self._is_inherited = True
        greens = [each for each in self._connecting if isinstance(each, Green)]
        sockets = [waits_on(each.frame()) for each in greens]
        cut([each for each in sockets if each is not None])

    # ##### Losing and replacing #####

    @locked
    def _replace(self, conn: Any) -> None:
        """Let a worker replace a connection: once, however often this is called."""
        if conn in self._members:
            self._members[conn] = LOST
            self.run_task(_Replace(self, conn))

    @locked
    def _replace_if(self, conn: Any, owner: Any) -> bool:
        """Replace a connection if `owner` still has it by the table."""
        if self._members.get(conn) is not owner:
            return False
        if conn in self._pool:
            self._members[conn] = None  # interrupted before it was taken out
            return False
        self._replace(conn)
        return True

    @locked
    def _forget(self, conn: Any) -> bool:
        """Strike out a connection that is lost; return whether it was."""
        if self._members.get(conn) is not LOST:
            return False
        del self._members[conn]
        return True

    @locked
    def _list_members(self) -> list[tuple[Any, Any]]:
        for conn in list(self._pool):  # a signal handler may take one out meanwhile
            if self._members.get(conn) is not None and conn in self._pool:
                self._members[conn] = None  # interrupted before it was taken out
        return list(self._members.items())

    def reap(self) -> None:
        """Replace what was lost.  Called by the reaper, now and then."""
        if self._closed:
            return
        for conn, owner in self._list_members():
            if owner is LOST:
                self.run_task(_Replace(self, conn))
            elif owner is None:
                if conn.closed:
                    self._forget_closed(conn)
            elif isinstance(owner, ref) and self._replace_if_lost(conn, owner):
                self._tell_lost()

    @locked
    def _replace_if_lost(self, conn: Any, owner: Any) -> bool:
        """Replace a connection that its borrower has lost; return whether it had.

        The borrower answers within the lock.  Before that, it could give the connection
        back, and after it, take the same one again.
        """
        borrower = owner()
        return (
            self._members.get(conn) is owner
            and (borrower is None or borrower.has_lost(conn))
            and self._replace_if(conn, owner)
        )

    def _tell_lost(self) -> None:
        logger.warning(
            "a thread was interrupted while it got a connection from %r or "
            "gave it back: the connection is replaced",
            self.name,
        )
        self._tell_closed("lost")

    @locked
    def _forget_closed(self, conn: Any) -> None:
        """Strike out a connection that the parent has closed: to shrink, or to drain."""
        if self._members.get(conn, OTHERS) is None and conn not in self._pool:
            del self._members[conn]
            self._tell_closed("idle")

    def close(self, *args: Any, **kwargs: Any) -> None:
        if not self._closed:
            for _ in self._pool:
                self._tell_closed("pool closed")
        super().close(*args, **kwargs)

    def _tell_closed(self, why: observers.Closing) -> None:
        if observers.listening:
            observers.tell_later("connection_closed", self.alias, why)

    # ##### Counting #####

    def count_lent(self) -> int:
        """Return how many connections are out."""
        return sum(owner not in (None, LOST, MADE) for _, owner in self._list_members())

    def _note_in_use(self) -> None:
        """Note how many are out.  Within the lock; called when more than ever may be out.

        Some of those that are not idle may be on their way between the pool and a worker.
        """
        self.peak_in_use = max(self.peak_in_use, self.count_lent())

    @property
    def peaks(self) -> tuple[int, int, float]:
        return self.peak_in_use, self.peak_waiting, self.longest_wait

    @locked
    def reset_peaks(self) -> None:
        """Begin anew with what is now."""
        self.peak_in_use, self.peak_waiting = self.count_lent(), len(self._waiting)
        self.longest_wait = 0.0


class _Replace(parent.MaintenanceTask):
    """A worker's task: make a connection in place of one that was lost."""

    def __init__(self, pool: RealPool, conn: Any) -> None:
        super().__init__(pool)
        self.conn = conn

    def _run(self, pool: Any) -> None:
        if pool._forget(self.conn):
            self.conn._pool = None
            self.conn.close()
            pool._add_connection(None)


class _Retry:
    """A scheduled attempt to connect, which may be made earlier, but once only."""

    def __init__(self, task: Any, waiting: list[_Retry], is_probe: bool) -> None:
        self.is_probe = is_probe
        self._task = task
        self._waiting = waiting
        waiting.append(self)

    def tick(self) -> None:
        try:
            self._waiting.remove(self)  # one step: of two threads, one finds it
        except ValueError:
            return  # it was made already
        self._task.tick()


def is_known(pool: Any) -> bool:
    """Return whether a pool is made of what `RealPool` overrides and uses."""
    return (
        all(callable(getattr(pool, name, None)) for name in NEEDED)
        and all(hasattr(pool, name) for name in NEEDED_IN_POOL)
        and all(type(getattr(pool, name)) is deque for name in ("_pool", "_waiting"))
        and hasattr(parent, "MaintenanceTask")
    )
