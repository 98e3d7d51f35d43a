"""Tells the lease what happens to cursors, transactions and the session."""

from __future__ import annotations

import logging
import warnings
from _thread import get_ident
from functools import partial
from typing import Any
from weakref import ref

from django.db import NotSupportedError

from . import _garbage
from ._checkin import Checkin
from ._cursor import releasing_class
from ._lease import Event, Finder, Hold
from ._origins import find_origin
from ._session import BEYOND_RESET
from ._settings import SessionPolicy, warns_of_unclosed_cursors

logger = logging.getLogger("django_pg_real_pool")

# What each query needs: before Python 3.12, to look a member up in its enum is slow.
CONNECT, CURSOR, TRANSACTION = Hold.CONNECT, Hold.CURSOR, Hold.TRANSACTION
CURSOR_OPENED, CURSOR_CLOSED = Event.CURSOR_OPENED, Event.CURSOR_CLOSED


class SessionStateError(NotSupportedError):
    """Raised by policy "error" for a statement that would change the session.

    The statement was not sent.
    """


class Holding(Checkin):
    """Begins and ends holds, and the lease with the last of them."""

    def _hold_for(self, cursor: Any) -> Any:
        """Make a Django cursor hold the lease from here on, until it is closed."""
        cursor.__class__ = releasing_class(cursor.__class__)
        self._hold(cursor.cursor)
        return cursor

    def _hold(self, raw: Any) -> None:
        find: Finder
        try:
            find = ref(raw)
        except TypeError:
            find = partial(_same, raw)  # can't be seen to be lost: held until close()
        self._lease.happened(CURSOR_OPENED, id(raw), find)
        if self._records_origins:
            self._lease.origins[id(raw)] = find_origin()

    def _cursor_closed(self, raw: Any) -> None:
        """End a cursor's hold.  A cursor of an earlier lease changes nothing."""
        who = id(raw)
        ident = get_ident()
        if ident == _garbage.collecting or (
            ident != self._thread_ident and not self.allow_thread_sharing
        ):
            # Leave it to this wrapper's next entry, or to the reaper.
            find = self._lease.holds.get(CURSOR, {}).get(who)
            self._closed_elsewhere.append((who, find))
            return
        with self._lease_lock:
            if self._portals and self._portals.pop(who, None) is not None:
                self._detach(raw)  # closed as it is, execute() would send CLOSE
            self._lease.happened(CURSOR_CLOSED, who)
            self._settle()

    def _session_changes(self, change: str, raw: Any) -> None:
        """Hold the session that a cursor's statement is about to change, or refuse."""
        policy = self._options.session_state
        if policy is SessionPolicy.IGNORE or self._setting_up:
            return  # what sets a connection up is its configuration
        if policy is SessionPolicy.ERROR and Hold.PIN not in self._lease.holds:
            raise SessionStateError(
                f"{change} would change the session of database alias {self.alias!r} "
                "beyond its transaction, but the connection is released after the "
                "statement. Use SET LOCAL, set_config(..., true) or a "
                "pg_advisory_xact_lock() function inside atomic(); or wrap the work in "
                "pin_connection(); or set "
                f"DATABASES[{self.alias!r}]['RELEASE_OPTIONS']['SESSION_STATE'] to 'pin'."
            )
        with self._lease_lock:
            if id(raw) not in self._lease.holds.get(CURSOR, ()):
                return  # its lease has ended; the cursor itself will refuse
            self._is_dirty = True
            if change in BEYOND_RESET:
                self._is_beyond_reset = True
            if Hold.PIN not in self._lease.holds:
                self._lease.happened(Event.SESSION_CHANGED)

    def _settle(self, ended: bool = False) -> None:
        """Bring the holds up to date with the connection; release if none is left.

        After a COMMIT or ROLLBACK, `ended` says what not every driver can tell.
        """
        connection = self.connection
        if connection is None or self._setting_up or not self._releasing:
            return
        lease, lost, shortcut = self._lease, [], self._shortcut
        holds = lease.holds
        if (
            shortcut is not None
            and not holds
            and self.autocommit
            and not self._closed_elsewhere
        ):
            if shortcut.put_back(self):
                return  # after nearly all queries outside a block
            shortcut = None
        if self._closed_elsewhere or CURSOR in holds:
            lost = self._reclaim_cursors()
        driver = self._hooks.driver
        if not (ended and driver.guesses) and driver.in_transaction(
            self._physical or connection, self.autocommit
        ):
            if TRANSACTION not in holds:
                lease.happened(Event.TRANSACTION_BEGAN)
                if self._options.track_origins:
                    lease.origins[None] = find_origin()
        elif TRANSACTION in holds:
            lease.happened(Event.TRANSACTION_ENDED)
        if not holds and (shortcut is None or not shortcut.put_back(self)):
            self._end_lease()
        if lost:
            self._warn_of(lost)

    def _reclaim_cursors(self) -> list[str]:
        """End the holds of cursors that were dropped, or closed where it was unsafe.

        Return a message for each that was dropped, for `_warn_of`: last of all, because
        a warning may be an error.
        """
        lease, lost = self._lease, []
        while self._closed_elsewhere:
            who, find = self._closed_elsewhere.pop()
            if find is not None and lease.holds.get(CURSOR, {}).get(who) is find:
                self._portals.pop(who, None)
                lease.happened(CURSOR_CLOSED, who)
        for event, who in lease.lost():
            origin = lease.origins.get(who)
            lease.happened(event, who)
            message = (
                f"a cursor on database alias {self.alias!r} was dropped without close(), "
                "which kept its connection until now"
                + (f"; it was opened at {origin}" if origin else "")
            )
            if who in self._portals:
                self._close_portal(self._portals.pop(who))
            lost.append(message)
        return lost

    def _warn_of(self, lost: list[str]) -> None:
        for message in lost:
            if warns_of_unclosed_cursors():
                logger.warning("%s", message)
        for message in lost:
            warnings.warn(message, ResourceWarning, stacklevel=4)


def _same(thing: Any) -> Any:
    return thing
