"""psycopg 3, whose connections know their transaction, their socket and their session.

It is used through the objects it gave us, so that importing this needs no driver.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import cache
from time import monotonic
from typing import Any
from weakref import WeakSet

from . import Driver
from .question import ask
from .sockets import cut, peeker, waiter

#: Where a psycopg connection carries what we know of it: faster than a lookup.
KNOWN = "_django_pg_real_pool"

# libpq's PGTransactionStatusType and ConnStatusType: its ABI, so the numbers are fixed.
IDLE, ACTIVE, INTRANS, INERROR = 0, 1, 2, 3
OK = 0

#: Seconds that a server may take to answer the check of an idle connection.
CHECK_TIMEOUT = 5.0

#: Every physical connection of this process that is known.
_physicals: WeakSet[Any] = WeakSet()


class Known:
    """What is known of one physical connection."""

    __slots__ = ("client_side", "peek", "used_at", "wait")

    def __init__(self, physical: Any) -> None:
        #: psycopg's part of the session as it was set up; None: not set up.
        self.client_side: tuple[Any, ...] | None = None
        #: `time.monotonic()` of the last sign of life.
        self.used_at = monotonic()
        #: Look whether there is anything to be read, now or within some time.
        self.peek, self.wait = (
            peeker(physical.pgconn.socket),
            waiter(physical.pgconn.socket),
        )


def know(physical: Any) -> Known:
    """Return what is known of a connection; from here on, its age is."""
    known = physical.__dict__.get(KNOWN)
    if known is None:
        known = physical.__dict__[KNOWN] = Known(physical)
        _physicals.add(physical)
    return known  # type: ignore[no-any-return]


def cut_inherited() -> None:
    """In a forked child: let no connection of the parent be reached, by whatever means.

    So a polite close, or a cursor that somebody still has, can't harm the parent.
    """
    sockets = []
    for physical in list(_physicals):
        with suppress(Exception):  # it is closed
            sockets.append(physical.pgconn.socket)
    cut(sockets)
    _physicals.clear()


class Psycopg(Driver):
    """psycopg 3."""

    guesses = False
    notices_closing = True

    # ##### What is known of a physical connection #####

    def is_set_up(self, physical: Any) -> bool:
        known = physical.__dict__.get(KNOWN)
        return known is not None and known.client_side is not None

    def mark_set_up(self, physical: Any) -> None:
        know(physical).client_side = _client_side(physical)

    def forget_set_up(self, physical: Any) -> None:
        know(physical).client_side = None

    def mark_used(self, physical: Any) -> bool:
        known = physical.__dict__.get(KNOWN) or know(physical)
        known.used_at = monotonic()
        return bool(physical.pgconn.transaction_status != ACTIVE)

    def mode_if_ready(self, physical: Any, window: float | None, now: float) -> bool | None:
        known = physical.__dict__.get(KNOWN)
        if known is None or known.client_side is None:
            return None
        if (
            (window is None or now - known.used_at <= window)
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
        # long ago.  Its socket tells, its age is taken for nothing.
        known = physical.__dict__.get(KNOWN) or know(physical)
        if known.peek() and not _is_open(pgconn, known):
            return False
        if window is None or monotonic() - known.used_at <= window:
            return True
        return _answers(pgconn, known)

    # ##### The session #####

    def autocommit(self, connection: Any) -> bool | None:
        return bool(connection.autocommit)

    def in_transaction(self, connection: Any, autocommit: bool) -> bool:
        # Not "is autocommit off": a plain "BEGIN" sent with autocommit on is a
        # transaction too, and a block that ran nothing yet is not.
        status = connection.pgconn.transaction_status
        if status == IDLE:
            return False
        if status == ACTIVE:
            # A statement was cut short.  Within a transaction Django ends it; outside
            # of one the pool replaces the connection, so nothing is worth keeping.
            return not autocommit
        return bool(status in (INTRANS, INERROR))

    def reset(self, physical: Any) -> bool:
        if physical.closed or physical.pgconn.transaction_status == ACTIVE:
            return False
        client_side = know(physical).client_side
        if client_side is None or client_side != _client_side(physical):
            return False
        physical.rollback()  # sends nothing where there is no transaction
        physical.autocommit = True  # DISCARD ALL refuses to be part of one
        if physical.prepare_threshold is not None:
            # What psycopg prepared will be gone, which not every version sees.  Before,
            # because it has the server forget as well, once the next statement is done.
            physical._prepared.clear()
        physical.execute("DISCARD ALL")
        return True

    # ##### Cursors #####

    def detach(self, cursor: Any) -> None:
        kind: Any = type(cursor)
        has_portal = bool(getattr(cursor, "name", None))
        try:
            if has_portal:
                # It lives in the server's session: end it while that is still ours.
                cursor.close()
        finally:
            # The rows that it fetched stay readable, so a cursor is cut off, not closed.
            # One with a portal as well: psycopg's execute() sends CLOSE, then refuses.
            reason = "its connection was released by close()"
            cursor.__class__ = _cut_off(kind, reason, has_portal)

    def abandon(self, cursor: Any) -> None:
        kind: Any = type(cursor)
        has_portal = bool(getattr(cursor, "name", None))
        cursor.__class__ = _cut_off(kind, "it is of the parent process", has_portal)

    def close_portal(self, connection: Any, name: str) -> None:
        # psycopg's own way: it looks whether the portal is still there, leaves a failed
        # transaction alone, and begins none where autocommit is off.
        connection.cursor(name, withhold=True).close()


def _client_side(physical: Any) -> tuple[Any, ...] | None:
    """Return the part of a session that psycopg keeps, which no reset reaches.

    None, where psycopg has moved something, means that no reset will do.
    """
    try:
        adapters = physical.adapters
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
            # The maps are copied before they are written to: compare what is in them.
            {format: _named(dumpers) for format, dumpers in adapters._dumpers.items()},
            [dict(dumpers) for dumpers in adapters._dumpers_by_oid],
            [dict(loaders) for loaders in adapters._loaders],
        )
    except AttributeError:
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
    return False  # a server that keeps on sending to an idle client is none of ours


def _answers(pgconn: Any, known: Known) -> bool:
    """Ask the server for a sign of life, and wait for CHECK_TIMEOUT at the most."""
    from psycopg import Error

    try:
        ask(pgconn, known.wait, b"", CHECK_TIMEOUT)
    except (Error, TimeoutError):
        return False
    known.used_at = monotonic()
    return bool(pgconn.status == OK)


#: What a psycopg cursor does through its connection; with a portal, fetching as well.
_SENDS = ("execute", "executemany", "callproc", "copy", "stream")
_SENDS_WITH_PORTAL = ("fetchone", "fetchmany", "fetchall", "scroll", "__iter__")


@cache
def _cut_off(cursor_class: Any, reason: str, portal: bool = False) -> Any:
    """Return `cursor_class` with everything that reaches the connection refused."""
    from psycopg import InterfaceError

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InterfaceError(f"the cursor is of no use any more: {reason}; open a new one")

    namespace: dict[str, Any] = dict.fromkeys(_SENDS, refuse)
    namespace["connection"] = property(refuse)
    namespace["__slots__"] = ()
    if portal:
        namespace.update(dict.fromkeys(_SENDS_WITH_PORTAL, refuse))
        namespace["close"] = lambda self: None
        namespace["__del__"] = lambda self: None
    return type(cursor_class.__name__, (cursor_class,), namespace)
