"""What cursors do to a lease, those among them that nobody can close any more."""

from __future__ import annotations

import logging
import warnings
from _thread import get_ident
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any
from weakref import ref

from .._process import collector
from .._process.locks import locked, try_locked
from .._process.origins import find_origin
from .._settings import warns_of_unclosed_cursors
from . import keeping, setup, transactions
from .facts import Debt
from .rule import Event, Finder, Hold

logger = logging.getLogger("django_pg_real_pool")

# What each query needs: before Python 3.12, to look a member up in its enum is slow.
CURSOR = Hold.CURSOR
CURSOR_OPENED, CURSOR_CLOSED = Event.CURSOR_OPENED, Event.CURSOR_CLOSED
CLEANING = Debt.CLEANING


def cursor_opened(lease: Any, raw: Any) -> None:
    """Hold the lease for a driver's cursor, until it is closed."""
    find: Finder
    try:
        find = ref(raw)
    except TypeError:
        find = partial(_same, raw)  # can't be found dropped: held until close()
    lease.holds.happened(CURSOR_OPENED, id(raw), find)
    if lease.records_origins:
        lease.holds.origins[id(raw)] = find_origin()


def cursor_closed(lease: Any, raw: Any) -> None:
    """End a cursor's hold.  A cursor of an earlier lease changes nothing."""
    if _is_elsewhere(lease):
        _note_closed_elsewhere(lease, raw)
    else:
        _cursor_closed(lease, raw)


def _is_elsewhere(lease: Any) -> bool:
    """Return whether nothing may be released here: not the lease's thread, or a finaliser."""
    return collector.here.is_at_work or (
        get_ident() != lease.wrapper._thread_ident
        and not lease.wrapper.allow_thread_sharing
    )


def _note_closed_elsewhere(lease: Any, raw: Any) -> None:
    """Leave the end of its hold to this wrapper's next entry, or to the reaper."""
    who = id(raw)
    find = lease.holds.now.get(CURSOR, {}).get(who)
    lease.closed_elsewhere.append((who, find))


def end_portal_elsewhere(lease: Any, raw: Any) -> None:
    """End a cursor's portal where it is closed on another thread, or in a finaliser.

    To end a portal is a statement.  It is sent only within the lease's lock, for else its own
    thread could give the connection back, or close it, meanwhile.  If that thread is at work
    on the lease now, or in a statement, the portal is left to it.  In either case the cursor is
    cut off: neither its close() nor its execute() sends anything, whoever has the connection.
    """
    if id(raw) not in lease.portals or not _is_elsewhere(lease):
        return
    try:
        try_locked(lease, _close_if_free, lease, raw)
    finally:
        lease.hooks.driver.detach(raw, False)


def _close_if_free(lease: Any, raw: Any) -> None:
    if id(raw) not in lease.portals or not _may_ask(lease):
        return
    try:
        raw.close()
    finally:
        lease.portals.pop(id(raw), None)  # a signal handler may have closed
        _note_portal_left(lease)


@locked
def _cursor_closed(lease: Any, raw: Any) -> None:
    who = id(raw)
    if lease.portals and lease.portals.pop(who, None) is not None:
        _detach(lease, raw)  # closed as it is, execute() would send CLOSE
        _note_portal_left(lease)
    lease.holds.happened(CURSOR_CLOSED, who)
    lease._settle(raw=raw)


def _note_portal_left(lease: Any) -> None:
    """A portal can't be closed in a failed transaction, and may outlive its rollback."""
    physical = lease.physical
    if physical is not None and lease.hooks.driver.has_failed(physical):
        lease.owe(CLEANING)


@locked
def open_cursor(lease: Any, name: str | None) -> Any:
    """Make a Django cursor that holds the lease, which begins with it if need be."""
    wrapper, kept = lease.wrapper, lease.kept
    had_connection = lease.has_connection()
    try:
        keeping.secure(lease, lease.take)
        if had_connection:
            reclaim_and_warn(lease)
            if lease.physical is not None:
                transactions.look(lease)
        cursor = wrapper._make_cursor(name)
        lease.kept = kept
    except Exception:
        lease.kept = kept
        lease._settle()
        with wrapper.wrap_database_errors:
            raise
    except BaseException:
        # Not one `try` in another: Python 3.11 has no handler for what strikes between them.
        lease.kept = kept
        lease._settle()
        raise
    if name is not None:
        lease.portals[id(cursor.cursor)] = name
    return cursor


def base_cursor(lease: Any, make: Callable[[], Any]) -> Any:
    """Make a cursor by a base's own `_cursor()`, which may run statements, and raise."""
    return _base_cursor(lease, make) if lease.begin() else make()


@locked
def _base_cursor(lease: Any, make: Callable[[], Any]) -> Any:
    before, has_made = set(lease.holds.now.get(CURSOR, ())), False
    try:
        cursor = keeping.keep_while(lease, partial(setup.make_base_cursor, lease, make))
        has_made = True
    finally:
        if not has_made:
            for who in set(lease.holds.now.get(CURSOR, ())) - before:
                lease.holds.happened(CURSOR_CLOSED, who)
        if CURSOR not in lease.holds.now:
            lease._settle()
    return cursor


def reclaim_and_warn(lease: Any) -> None:
    if lease.closed_elsewhere or CURSOR in lease.holds.now:
        warn_of(reclaim(lease))


def reclaim(lease: Any, politely: bool = True) -> list[str]:
    """End the holds of cursors that were dropped, or closed where it was unsafe.

    Return a message for each that was dropped, for `warn_of()`.  That comes last,
    because a warning may be an error.
    """
    holds, lost = lease.holds, []
    while lease.closed_elsewhere:
        who, find = lease.closed_elsewhere.pop()
        if find is not None and holds.now.get(CURSOR, {}).get(who) is find:
            _end_portal(lease, who, politely)
            holds.happened(CURSOR_CLOSED, who)
    for event, who in holds.lost():
        origin = holds.origins.get(who)
        holds.happened(event, who)
        message = (
            f"a cursor on database alias {lease.alias!r} was dropped without close(), "
            "which kept its connection until now"
            + (f"; it was opened at {origin}" if origin else "")
        )
        _end_portal(lease, who, politely)
        lost.append(message)
    return lost


def _end_portal(lease: Any, who: Hashable, politely: bool) -> None:
    """End the portal of a cursor that is closed or dropped, if it has been left."""
    portal = lease.portals.pop(who, None)
    if portal is not None and politely:
        _close_portal(lease, portal)
    elif portal is not None:
        lease.owe(CLEANING)


def warn_of(lost: list[str]) -> None:
    for message in lost:
        if warns_of_unclosed_cursors():
            logger.warning("%s", message)
    for message in lost:
        warnings.warn(message, ResourceWarning, stacklevel=5)


def cut_off(lease: Any) -> None:
    """End all cursors that are open, because another thread may soon have the connection."""
    for find in list(lease.holds.now.get(CURSOR, {}).values()):
        raw = find() if find is not None else None
        if raw is not None:
            _detach(lease, raw)
    lease.closed_elsewhere.clear()
    for name in list(lease.portals.values()):
        _close_portal(lease, name)
    lease.portals.clear()


def _may_ask(lease: Any) -> bool:
    """Return whether the server can be asked to close something, without waiting for others.

    Who streams has psycopg's lock until its last row.  That may be this thread, or one that
    shares the wrapper, which may want the lease's lock meanwhile.
    """
    physical = lease.physical  # once: a signal handler may close in between
    return not lease.wrapper.allow_thread_sharing and not (
        physical is not None and lease.hooks.driver.is_stuck(physical)
    )


def _detach(lease: Any, raw: Any) -> None:
    may_ask = _may_ask(lease)
    try:
        if not lease.hooks.driver.detach(raw, may_ask):
            lease.owe(CLEANING)
    except Exception:
        logger.debug("could not detach an open cursor", exc_info=True)


def _close_portal(lease: Any, name: str) -> None:
    if not _may_ask(lease):
        lease.owe(CLEANING)
        return
    try:
        lease.hooks.driver.close_portal(lease.wrapper.connection, name)
    except Exception:
        # It is gone already: rolled back, or the connection is broken.
        logger.debug("could not close the server-side cursor %s", name, exc_info=True)
    _note_portal_left(lease)


def _same(thing: Any) -> Any:
    return thing
