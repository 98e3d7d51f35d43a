"""psycopg 3, whose connections know their transaction, their socket and their session.

It is used through the objects it gave us, so that importing this needs no driver.
"""

from __future__ import annotations

import _thread
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from operator import itemgetter
from time import monotonic
from types import BuiltinFunctionType, FrameType
from typing import Any

from .._process.locks import T, with_undo
from .._process.weak import WeakBag
from . import RENEW, TOUCHED, Driver, Heard, Statement, perhaps, statement
from .question import ask
from .sockets import cut, peeker, shut_down, waiter

#: Stands for a side of the session that psycopg keeps elsewhere: no reset will do.
UNKNOWN = ("unknown",)
#: Where a psycopg connection carries what we know of it: faster than a lookup.
KNOWN = "_django_pg_real_pool"
#: Where it carries the list of what is sent, while that is noted.
NOTED = "_django_pg_real_pool_noted"
#: What a cursor has whose statements are noted there.
HEARD = "_django_pg_real_pool_heard"

# libpq's PGTransactionStatusType and ConnStatusType: its ABI, so the numbers are fixed.
IDLE, ACTIVE, INTRANS, INERROR = 0, 1, 2, 3
OK = 0

#: What a statement that begins a transaction has in it.
_BEGIN = re.compile(rb"\b(?:begin|start\s+transaction)\b", re.IGNORECASE)

#: Seconds that a server may take to answer the check of an idle connection.
CHECK_TIMEOUT = 5.0

#: Seconds that another thread has to leave a connection that is to be closed.  Not more: it
#: may be this thread's own suspended `stream()` that has the lock.
FAREWELL = 0.02

#: Every physical connection of this process that is known.
_physicals: WeakBag[Any] = WeakBag()


class Known:
    """What is known of one physical connection."""

    __slots__ = (
        *("attributes", "base", "client_side", "heard", "peek", "sent_by_base"),
        *("used_at", "wait"),
    )

    def __init__(self, physical: Any) -> None:
        #: The statements that set it up; None: it is not set up.
        self.heard: Heard | None = None
        #: psycopg's part of the session, before somebody could change it: see `snapshot`.
        #: None: nobody was let near.
        self.client_side: tuple[Any, ...] | None = None
        #: What of it is quick to compare, as it was set up.
        self.attributes: Any = None
        #: The attributes as Django has set them, before any receiver.
        self.base: Any = None
        #: What a base's own `_cursor()` sent when it was last lent.
        self.sent_by_base: Heard = ()
        #: `time.monotonic()` of the last sign of life.
        self.used_at = monotonic()
        #: Look whether there is anything to be read, now or within some time.
        self.peek, self.wait = (
            peeker(physical.pgconn.socket),
            waiter(physical.pgconn.socket),
        )


def know(physical: Any) -> Known:
    """Return what is known of a connection; it counts as idle from the first call on."""
    known = physical.__dict__.get(KNOWN)
    if known is None:
        known = physical.__dict__[KNOWN] = Known(physical)
        _physicals.add(physical)
    return known  # type: ignore[no-any-return]


def cut_inherited() -> None:
    """In a forked child: put the parent's connections out of reach.

    So a polite close, or a cursor that somebody still has, can't harm the parent.
    """
    sockets = []
    for physical in _physicals:
        with suppress(Exception):  # it is closed
            sockets.append(physical.pgconn.socket)
    cut(sockets)
    _physicals.clear()


def waits_on(frame: FrameType | None) -> int | None:
    """Return the socket on which psycopg waits, where a greenlet was left in its midst."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "psycopg.waiting":
            return frame.f_locals.get("fileno")
        frame = frame.f_back
    return None


def blocks_greenlets() -> bool:
    """Return whether psycopg blocks all greenlets while it waits for the server.

    It has C code for that, unless gevent has patched Python before it is imported.
    """
    waiting: Any = sys.modules.get("psycopg.waiting")
    return (
        not isinstance(_thread.get_ident, BuiltinFunctionType)  # Python is patched
        and waiting is not None
        and waiting.wait is getattr(waiting, "wait_c", None)
    )


class Psycopg(Driver):
    """psycopg 3."""

    guesses = False
    notices_closing = True

    # ##### What is known of a physical connection #####

    def heard(self, physical: Any) -> Heard | None:
        known = physical.__dict__.get(KNOWN)
        return None if known is None else known.heard

    def mark_set_up(self, physical: Any, heard: Heard) -> None:
        known = know(physical)
        known.attributes = _attributes(physical)
        known.heard = heard

    def snapshot(self, physical: Any) -> None:
        know(physical).client_side = _client_side(physical) or UNKNOWN

    def mark_heard(self, physical: Any, heard: Heard) -> None:
        know(physical).heard = heard

    def forget_set_up(self, physical: Any) -> None:
        know(physical).heard = None

    def sent_by_base(self, physical: Any) -> Heard:
        known = physical.__dict__.get(KNOWN)
        return () if known is None else known.sent_by_base

    def note_sent_by_base(self, physical: Any, sent: Heard) -> None:
        know(physical).sent_by_base = sent

    def forget_others(self, physical: Any) -> None:
        for other in _physicals:
            if (
                other is not physical
                and self.heard(other) is not None
                and _database(other) == _database(physical)
            ):
                self.mark_heard(other, RENEW)

    def mark_used(self, physical: Any) -> bool | None:
        known = physical.__dict__.get(KNOWN) or know(physical)
        known.used_at = monotonic()
        if physical.pgconn.transaction_status == ACTIVE or self.is_stuck(physical):
            return None
        # As is_touched(), in as few steps as possible: this runs after each query.
        try:
            is_untouched = known.attributes == _ATTRIBUTES(physical.__dict__)
        except KeyError:  # psycopg keeps them elsewhere
            is_untouched = not self.is_touched(physical)
        return is_untouched and bool(physical.autocommit)

    def is_stuck(self, physical: Any) -> bool:
        # From Python 3.14 on, an interruption can come between the acquiring of psycopg's
        # own lock and the body of its `with`.
        return bool(physical.lock.locked())

    def cut(self, physical: Any) -> None:
        physical.lock.release()  # an interruption has left it: nobody is in there
        end(physical)

    def mode_if_ready(
        self, physical: Any, heard: Heard | None, window: float | None, now: float
    ) -> bool | None:
        known = physical.__dict__.get(KNOWN)
        if (
            known is not None
            and known.heard is heard
            and heard is not None
            and (window is None or now - known.used_at <= window)
            and physical.pgconn.status == OK
            and not known.peek()
        ):
            return physical.autocommit  # type: ignore[no-any-return]
        return None

    def is_usable(self, physical: Any, window: float | None) -> bool:
        pgconn = physical.pgconn
        if pgconn.status != OK:
            return False
        # A connection that is not known is not always new: the pool may have opened it
        # long ago.  Its socket tells; how long it was idle, nobody knows.
        known = physical.__dict__.get(KNOWN) or know(physical)
        if known.peek() and not _is_open(pgconn, known):
            return False
        if window is None or monotonic() - known.used_at <= window:
            return True
        return _answers(pgconn, known)

    # ##### The session #####

    def autocommit(self, physical: Any) -> bool | None:
        return bool(physical.autocommit)

    def transaction(self, physical: Any, autocommit: bool) -> bool | None:
        # Not "is autocommit off": a plain "BEGIN" sent with autocommit on is a
        # transaction too, and a block that ran nothing yet is not.
        status = physical.pgconn.transaction_status
        if status == IDLE:
            return False
        if status == ACTIVE:
            # A statement was cut short.  Within a transaction Django ends it; outside
            # of one the pool replaces the connection, so nothing is worth keeping.
            return not autocommit
        return True if status in (INTRANS, INERROR) else None

    def is_busy(self, physical: Any) -> bool:
        return bool(physical.pgconn.transaction_status == ACTIVE)

    def has_failed(self, physical: Any) -> bool:
        return bool(physical.pgconn.transaction_status == INERROR)

    def has_run(self, cursor: Any) -> bool:
        return getattr(cursor, "pgresult", None) is not None

    def may_have_begun(self, cursor: Any) -> bool:
        # psycopg keeps a cursor's last query after close(), too, but not its result.
        sent = getattr(getattr(cursor, "_query", None), "query", b"")
        return _BEGIN.search(sent) is not None

    def is_touched(self, physical: Any) -> bool:
        known = physical.__dict__.get(KNOWN)
        return (
            known is not None
            and known.heard is not None
            and known.attributes != _attributes(physical)
        )

    def has_new_types(self, physical: Any) -> bool:
        known = physical.__dict__.get(KNOWN)
        return (
            known is not None
            and known.client_side is not None
            and known.client_side[-1] != _adapters(physical)
        )

    def listen(
        self,
        physical: Any,
        noted: list[Statement],
        do: Callable[[], T],
        in_block: bool = False,
    ) -> T:
        # Both Django's cursors and `physical.execute()` come from its `cursor()`.
        make = type(physical).cursor

        made: list[tuple[Any, Any]] = []

        def cursor(*args: Any, **kwargs: Any) -> Any:
            one: Any = make(physical, *args, **kwargs)
            kind: Any = type(one)
            one.__class__ = _noting(kind)
            made.append((one, kind))
            return one

        names = physical.__dict__
        before = {name: names[name] for name in ("cursor", NOTED) if name in names}

        def listen_and_do() -> T:
            names.update({"cursor": cursor, NOTED: (noted, in_block)})
            return do()

        def stop() -> None:
            for name in ("cursor", NOTED):
                names.pop(name, None)
            names.update(before)
            for one, kind in () if NOTED in before else made:
                # Else who listens to what surrounds this has to hear them; or it was cut off.
                if type(one) is _noting(kind):
                    one.__class__ = kind

        return with_undo(listen_and_do, stop)

    def hears(self, cursor: Any) -> bool:
        # Django builds its cursor with a portal by itself.
        return bool(getattr(cursor, HEARD, False))

    def restore(self, physical: Any) -> None:
        known = know(physical)
        if known.base is None:
            known.base = _attributes(physical)
        elif known.base != _attributes(physical):
            # Not the factories: a tool instruments a connection by one, and only once.
            for name, value in list(zip(_NAMES, known.base, strict=True))[3:]:
                setattr(physical, name, value)

    def touches(self, physical: Any) -> Heard:
        known, now = know(physical), _attributes(physical)
        return () if known.base in (None, now) else ((TOUCHED, now),)

    def end(self, physical: Any) -> None:
        end(physical)

    def say(self, physical: Any, statements: Heard) -> None:
        for sql, params in statements:
            physical.execute(sql, params)

    def reset(self, physical: Any) -> bool:
        if physical.closed or physical.pgconn.transaction_status == ACTIVE:
            return False
        known = know(physical)
        if self.is_touched(physical) or (
            known.client_side is not None and known.client_side != _client_side(physical)
        ):
            return False
        physical.rollback()  # sends nothing where there is no transaction
        physical.autocommit = True  # DISCARD ALL refuses to be part of one
        if physical.prepare_threshold is not None:
            # What psycopg has prepared will be gone, which not every version notices.  This
            # comes first, because after the next statement it deallocates on the server, too.
            physical._prepared.clear()
        physical.execute("DISCARD ALL")
        while physical.pgconn.notifies() is not None:
            pass  # nobody listens any more
        known.sent_by_base = ()
        backlog = getattr(physical, "_notifies_backlog", None)
        if backlog:
            backlog.clear()
        return True

    # ##### Cursors #####

    def detach(self, cursor: Any, may_ask: bool) -> bool:
        kind: Any = type(cursor)
        has_portal = bool(getattr(cursor, "name", None))
        is_open = has_portal and not cursor.closed
        try:
            if is_open and may_ask:
                # It lives in the server's session: end it while that is still ours.
                cursor.close()
                is_open = not cursor.closed  # one that was cut off closes nothing
        finally:
            # The rows that it fetched stay readable, so a cursor is cut off, not closed.
            # One with a portal as well: psycopg's execute() sends CLOSE, then refuses.
            reason = "its connection was released by close()"
            cursor.__class__ = _cut_off(kind, reason, has_portal)
        return not is_open

    def abandon(self, cursor: Any) -> None:
        kind: Any = type(cursor)
        has_portal = bool(getattr(cursor, "name", None))
        cursor.__class__ = _cut_off(kind, "it is of the parent process", has_portal)

    def close_portal(self, connection: Any, name: str) -> None:
        # psycopg's own way: it looks whether the portal is still there, leaves a failed
        # transaction alone, and begins none where autocommit is off.
        connection.cursor(name, withhold=True).close()


def end(physical: Any) -> None:
    """Close a connection for good, though its pool may want it back when it is closed."""
    if physical.lock.locked():
        _wake(physical)
    names = physical.__dict__
    pool, names["_pool"] = names.get("_pool"), None
    physical.close()
    names["_pool"] = pool  # who has closed it, gives it back


def _wake(physical: Any) -> None:
    """Let nobody wait for an answer on a connection that is about to be closed.

    To close a socket wakes nobody.  psycopg would go on to wait on its number, which the next
    socket gets.  So it is shut down, and whoever waits has a moment to see that.
    """
    with suppress(Exception):  # it is closed already
        shut_down(physical.pgconn.socket)
    if physical.lock.acquire(timeout=FAREWELL):
        physical.lock.release()


def _client_side(physical: Any) -> tuple[Any, ...] | None:
    """Return the part of a session that psycopg keeps, which no reset reaches.

    None, where psycopg has moved something, means that no reset will do.
    """
    try:
        return (
            physical.row_factory,
            physical.cursor_factory,
            physical.server_cursor_factory,
            physical.isolation_level,
            physical.read_only,
            physical.deferrable,
            physical.prepare_threshold,
            physical.prepared_max,
            list(physical._notice_handlers),
            list(physical._notify_handlers),
            _adapters(physical),
        )
    except AttributeError:
        return None


def _adapters(physical: Any) -> Any:
    """Return the types that a connection knows.

    psycopg copies the maps before it writes to them: compare what is in them.
    """
    adapters = physical.adapters
    return (
        {format: _named(dumpers) for format, dumpers in adapters._dumpers.items()},
        [dict(dumpers) for dumpers in adapters._dumpers_by_oid],
        [dict(loaders) for loaders in adapters._loaders],
    )


#: What anybody may set on a connection; compared after each use.
_NAMES = (
    *("row_factory", "cursor_factory", "server_cursor_factory"),
    *("isolation_level", "read_only", "deferrable"),
)
_ATTRIBUTES = itemgetter(
    *("row_factory", "cursor_factory", "server_cursor_factory"),
    *("_isolation_level", "_read_only", "_deferrable"),
)


def _attributes(physical: Any) -> Any:
    try:
        return _ATTRIBUTES(physical.__dict__)
    except KeyError:  # psycopg keeps them elsewhere
        return (
            *(physical.row_factory, physical.cursor_factory),
            *(physical.server_cursor_factory, physical.isolation_level),
            *(physical.read_only, physical.deferrable),
        )


def _database(physical: Any) -> tuple[str, int, str] | None:
    with suppress(Exception):  # it is closed, perhaps just now
        info = physical.info
        return (info.host, info.port, info.dbname)
    return None


def _named(dumpers: dict[Any, Any]) -> Counter[Any]:
    """Return dumpers with the names of the classes that they are for.

    psycopg knows some classes by their names, until it first meets one: that is no change.
    """
    return Counter(
        (
            kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}",
            dumper,
        )
        for kind, dumper in dumpers.items()
    )


def _is_open(pgconn: Any, known: Known) -> bool:
    """Read what nobody asked for: a notice, or the end of the connection."""
    from psycopg import Error

    try:
        for _ in range(10):
            if not known.peek():
                return bool(pgconn.status == OK)
            pgconn.consume_input()
            pgconn.is_busy()  # takes notices and parameter changes out of the buffer
    except Error:
        return False
    return False  # a server that keeps on sending to an idle client can't be trusted


def _answers(pgconn: Any, known: Known) -> bool:
    """Ask the server for a sign of life, and wait for CHECK_TIMEOUT at the most."""
    from psycopg import Error

    try:
        ask(pgconn, known.wait, b"", CHECK_TIMEOUT)
    except (Error, TimeoutError):
        return False
    known.used_at = monotonic()
    return bool(pgconn.status == OK)


@lru_cache(maxsize=64)
def _noting(cursor_class: Any) -> Any:
    """Return `cursor_class` with its statements noted where their connection has `NOTED`."""

    def listener(cursor: Any) -> tuple[list[Statement], bool]:
        return cursor.connection.__dict__.get(NOTED) or ([], False)

    @contextmanager
    def note(cursor: Any, query: Any, *each: Any) -> Iterator[None]:
        noted, in_block = listener(cursor)
        said = [statement(query, params, cursor) for params in each]
        # What failed, or may be rolled back, is told from what has set something.
        here = slice(len(noted), len(noted) + len(said))
        noted.extend(map(perhaps, said))
        yield
        if in_block or cursor.connection.pgconn.transaction_status == IDLE:
            noted[here] = said

    def note_copy(cursor: Any, query: Any, params: Any) -> None:
        noted, in_block = listener(cursor)
        said = statement(query, params, cursor)
        # No execute() can repeat it.  Where nothing may be left out, that will raise.
        noted.append(said if in_block else perhaps(said))

    class Noting(cursor_class):  # type: ignore[misc]
        __slots__ = ()

        def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
            with note(self, query, params):
                return super().execute(query, params, **kwargs)

        def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> Any:
            params_seq = list(params_seq)
            with note(self, query, *params_seq):
                return super().executemany(query, params_seq, **kwargs)

        def stream(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
            with note(self, query, params):
                yield from super().stream(query, params, **kwargs)

        def copy(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
            note_copy(self, statement, params)
            return super().copy(statement, params, **kwargs)

    setattr(Noting, HEARD, True)
    Noting.__name__ = cursor_class.__name__
    Noting.__qualname__ = cursor_class.__qualname__
    Noting.__module__ = cursor_class.__module__
    return Noting


#: What a psycopg cursor does through its connection; with a portal, fetching as well.
_SENDS = ("execute", "executemany", "callproc", "copy", "stream")
_SENDS_WITH_PORTAL = ("fetchone", "fetchmany", "fetchall", "scroll", "__iter__")


@lru_cache(maxsize=64)
def _cut_off(cursor_class: Any, reason: str, portal: bool = False) -> Any:
    """Return `cursor_class` with everything that reaches the connection refused."""
    from psycopg import InterfaceError

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InterfaceError(f"the cursor can't be used any more: {reason}; open a new one")

    namespace: dict[str, Any] = dict.fromkeys(_SENDS, refuse)
    namespace["connection"] = property(refuse)
    namespace["__slots__"] = ()
    if portal:
        namespace.update(dict.fromkeys(_SENDS_WITH_PORTAL, refuse))
        namespace["close"] = lambda self: None
        namespace["__del__"] = lambda self: None
    return type(cursor_class.__name__, (cursor_class,), namespace)
