"""Carries out what `_lease` decides: takes a connection, sets it up, gives it back.

Nothing here overrides Django; `_wrapper` and `_floor` do, and call this.
"""

from __future__ import annotations

import logging
import time
import warnings
from _thread import get_ident
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ._cursor import releasing_class
from ._hooks import Hooks
from ._lease import Event, Finder, Hold, Lease
from ._origins import find_origin
from ._settings import ReleaseOptions, warns_of_unclosed_cursors

if TYPE_CHECKING:
    _Base = BaseDatabaseWrapper
else:
    _Base = object

logger = logging.getLogger("django_pg_real_pool")

#: The threads that are in a pool's code now, where its lock may be taken.
_inside_pool: set[int] = set()

#: What stock's connect() resets: the wrapper's view of its transaction.
_TRANSACTION_STATE: dict[str, Callable[[], Any]] = {
    "in_atomic_block": bool,
    "savepoint_ids": list,
    "atomic_blocks": list,
    "needs_rollback": bool,
    "rollback_exc": type(None),
    "commit_on_exit": lambda: True,
    "run_on_commit": list,
    "run_commit_hooks_on_set_autocommit_on": bool,
    "_unsent_savepoints": list,
}


class Leasing(_Base):
    """The lease of one wrapper, and the wrapper's connection while it lasts."""

    _hooks: ClassVar[Hooks]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Why this wrapper has a connection now.
        self._lease = Lease()
        #: Guards the lease where threads share the wrapper; reentrant because setting
        #: a connection up may run queries.
        self._lease_lock = RLock()
        #: What stock means by "connected", which outlives leases here: None before the
        #: first use and after close(), then True; False for an alias without a pool.
        self._releasing: bool | None = None
        self._options = ReleaseOptions()
        #: Above 0 while a connection that has no hold yet must stay.
        self._setting_up = 0
        #: Whether connection_created was sent since close().
        self._announced = False
        #: True on the way through Django's ensure_connection() to our connect().
        self._checking_out = False
        #: True while the base's close() runs to end a lease and not a session.
        self._ending_lease = False
        #: Savepoints of open blocks that wait for a connection, each with the execute
        #: wrappers of its moment.  Empty while there is a lease.
        self._unsent_savepoints: list[tuple[str, list[Any]]] = []
        #: Whether an atomic block switched autocommit off, not the user.
        self._autocommit_off_by_atomic = False
        #: Cursors that were closed where nothing may be released at once.
        self._closed_elsewhere: list[tuple[Hashable, Finder | None]] = []
        #: The names of the open cursors that have a portal on the server.
        self._portals: dict[Hashable, str] = {}
        #: For NativePool: the pool used last, and what stands for it meanwhile.
        self._open_pool: Any = None
        self._pool_stand_in: Any = None
        super().__init__(*args, **kwargs)

    # ##### Sessions: from the first use to close() #####

    def _begin(self, explicitly: bool = False) -> bool:
        """Do what stock's connect() does before it connects; return `_releasing`.

        Nothing happens if that was done since close().  Raises ProgrammingError, as
        stock does, where the block that was open at close() is open still.
        """
        if self._releasing or (self._releasing is False and self.connection is not None):
            return bool(self._releasing)
        if self.in_atomic_block and self.closed_in_transaction and not explicitly:
            super().ensure_connection()  # raises
        self._options = ReleaseOptions.read(self.settings_dict, self.alias)
        self._releasing = self._hooks.pool.releases(self)
        if not self._releasing:
            return False
        self._reset_transaction_state()
        self.autocommit = self._default_autocommit
        self._autocommit_off_by_atomic = False
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        max_age = self.settings_dict["CONN_MAX_AGE"]
        self.close_at = None if max_age is None else time.monotonic() + max_age
        self.closed_in_transaction = False
        self.errors_occurred = False
        self.health_check_done = True
        return True

    def _end_session(self) -> None:
        """Forget what outlives a lease; what comes next begins anew."""
        self._unsent_savepoints.clear()
        self._announced = False
        self._open_pool = None
        self._releasing = None

    @property
    def _default_autocommit(self) -> bool:
        return bool(self.settings_dict["AUTOCOMMIT"])

    def _reset_transaction_state(self) -> None:
        for name, initial in _TRANSACTION_STATE.items():
            setattr(self, name, initial())

    # ##### Checkout #####

    def _checkout(self) -> None:
        """Begin a lease that has no hold yet.  When it raises, there is none."""
        # By way of Django's own method: it refuses a block whose connection was closed,
        # translates the driver's errors, and is where test runners forbid the database.
        self._checking_out = True
        try:
            super().ensure_connection()
        except Exception as error:
            if self.in_atomic_block:
                # A statement of this block was lost, so none of it may be committed.
                self.needs_rollback = True
                self.rollback_exc = error
            raise
        finally:
            self._checking_out = False

    def _open_lease(self) -> None:
        self._setting_up += 1
        try:
            if self._hooks.connect:
                with self._outside_transaction():
                    super().connect()  # the base's; arrives at DjangoFloor.connect()
            else:
                self._take()
            self._apply_autocommit()
            if self._unsent_savepoints:
                self._send_savepoints()
            self._lease.since = time.monotonic()
        except BaseException:
            self._close_lease()
            raise
        finally:
            self._setting_up -= 1

    def _take(self) -> None:
        """Get a connection; set it up if it is new, or the first since close()."""
        hooks = self._hooks
        ident = get_ident()
        _inside_pool.add(ident)
        try:
            self.connection = hooks.pool.checkout(self)
        except hooks.pool.timeouts() as error:
            raise OperationalError(*error.args) from error
        finally:
            _inside_pool.discard(ident)
        physical = hooks.pool.physical(self.connection)
        announce = not self._announced or not hooks.driver.is_set_up(physical)
        if announce or hooks.init_every_time:
            with self._outside_transaction():
                self._set_up(announce)
            hooks.driver.mark_set_up(physical)

    def _set_up(self, announce: bool) -> None:
        """Do the rest of stock's connect() with the connection that is there."""
        if announce:
            self.check_settings()
            self._hooks.pool.introduce(self)
        self._apply_autocommit()
        self.init_connection_state()
        if announce:
            connection_created.send(sender=self.__class__, connection=self)
            self._announced = True

    def _apply_autocommit(self) -> None:
        if self._hooks.driver.autocommit(self.connection) is not self.autocommit:
            self._set_autocommit(self.autocommit)

    @contextmanager
    def _outside_transaction(self) -> Iterator[None]:
        """Show the state of a wrapper that has just connected, as stock would.

        A connection may be taken inside a block, but what sets it up, receivers of
        connection_created included, must not become a part of the transaction.
        """
        if not self.in_atomic_block and self.autocommit is self._default_autocommit:
            yield
            return
        saved = {name: getattr(self, name) for name in _TRANSACTION_STATE}
        saved["autocommit"] = self.autocommit
        self._reset_transaction_state()
        self.autocommit = self._default_autocommit
        try:
            yield
        finally:
            for name, value in saved.items():
                setattr(self, name, value)

    def _send_savepoints(self) -> None:
        """Send the savepoints of the open blocks, as they would have been sent."""
        unsent, self._unsent_savepoints = self._unsent_savepoints, []
        for sid, wrappers in unsent:
            raw = self.create_cursor()
            execute = partial(_execute, raw)
            for wrapper in reversed(wrappers):
                execute = partial(wrapper, execute)
            context = {"connection": self, "cursor": super().make_cursor(raw)}
            try:
                execute(self.ops.savepoint_create_sql(sid), None, False, context)
            except BaseException:
                self._unsent_savepoints = unsent
                raise
            finally:
                raw.close()

    # ##### Holds #####

    def _hold_for(self, cursor: Any) -> Any:
        """Make a Django cursor hold the lease from here on, until it is closed."""
        cursor.__class__ = releasing_class(cursor.__class__)
        raw = cursor.cursor
        find: Finder
        try:
            find = ref(raw)
        except TypeError:
            find = partial(_same, raw)  # can't be seen to be lost: held until close()
        self._lease.happened(Event.CURSOR_OPENED, id(raw), find)
        if self._options.track_origins or warns_of_unclosed_cursors():
            self._lease.origins[id(raw)] = find_origin()
        return cursor

    def _cursor_closed(self, raw: Any) -> None:
        """End a cursor's hold.  A cursor of an earlier lease changes nothing."""
        who = id(raw)
        ident = get_ident()
        if ident in _inside_pool or (
            ident != self._thread_ident and not self.allow_thread_sharing
        ):
            # Garbage collection closes generators, and runs on any thread at any time,
            # so perhaps under the pool's lock: leave it to this wrapper's next entry.
            find = self._lease.holds.get(Hold.CURSOR, {}).get(who)
            self._closed_elsewhere.append((who, find))
            return
        with self._lease_lock:
            self._portals.pop(who, None)
            self._lease.happened(Event.CURSOR_CLOSED, who)
            self._settle()

    def _pin(self, token: Hashable) -> None:
        """Hold the lease until `_unpin(token)`; check a connection out if need be."""
        self.validate_thread_sharing()
        with self._lease_lock:
            if self.connection is None:
                self._checkout()
            self._lease.happened(Event.PIN_ENTERED, token)
            if self._options.track_origins:
                self._lease.origins[token] = find_origin()

    def _unpin(self, token: Hashable) -> None:
        with self._lease_lock:
            self._lease.happened(Event.PIN_LEFT, token)
            self._settle()

    def _settle(self) -> None:
        """Bring the holds up to date with the connection; release if none is left."""
        if self.connection is None or self._setting_up:
            return
        lease = self._lease
        if self._closed_elsewhere or Hold.CURSOR in lease.holds:
            self._reclaim_cursors()
        if self._hooks.driver.in_transaction(self.connection, self.autocommit):
            if Hold.TRANSACTION not in lease.holds:
                lease.happened(Event.TRANSACTION_BEGAN)
                if self._options.track_origins:
                    lease.origins[None] = find_origin()
        elif Hold.TRANSACTION in lease.holds:
            lease.happened(Event.TRANSACTION_ENDED)
        if not lease.holds:
            self._end_lease()

    def _reclaim_cursors(self) -> None:
        """End the holds of cursors that were dropped, or closed where it was unsafe."""
        lease = self._lease
        while self._closed_elsewhere:
            who, find = self._closed_elsewhere.pop()
            if find is not None and lease.holds.get(Hold.CURSOR, {}).get(who) is find:
                self._portals.pop(who, None)
                lease.happened(Event.CURSOR_CLOSED, who)
        for event, who in lease.lost():
            origin = lease.origins.get(who)
            lease.happened(event, who)
            message = (
                f"a cursor on database alias {self.alias!r} was dropped without close(), "
                "which kept its connection until now"
                + (f"; it was opened at {origin}" if origin else "")
            )
            if warns_of_unclosed_cursors():
                logger.warning("%s", message)
            if who in self._portals:
                self._close_portal(self._portals.pop(who))
            warnings.warn(message, ResourceWarning, stacklevel=3)

    def _close_portal(self, name: str) -> None:
        try:
            self._hooks.driver.close_portal(self.connection, name)
        except Exception:
            # It is gone already: rolled back, or the connection is broken.
            logger.debug("could not close the server-side cursor %s", name, exc_info=True)

    # ##### Checkin #####

    def _end_lease(self) -> None:
        """Give the connection back.  What the statement did or raised is not disturbed."""
        try:
            self._check_in()
        except Exception:
            logger.warning(
                "could not give the connection of database alias %r back to its pool",
                self.alias,
                exc_info=True,
            )

    def _check_in(self) -> None:
        ident = get_ident()
        _inside_pool.add(ident)
        try:
            if self._hooks.close:
                self._ending_lease = True
                super().close()  # the base's; arrives at DjangoFloor.close()
            else:
                self._hooks.pool.checkin(self)
        finally:
            self._ending_lease = False
            self.connection = None
            _inside_pool.discard(ident)

    def _close_lease(self, as_stock: bool = False) -> None:
        """End the lease, whoever holds it; `as_stock` with all that stock's close() does.

        A cursor that is open still is cut off first: its connection may be another
        thread's in a moment.
        """
        for find in list(self._lease.holds.get(Hold.CURSOR, {}).values()):
            raw = find() if find is not None else None
            if raw is not None:
                self._detach(raw)
        self._closed_elsewhere.clear()
        for name in list(self._portals.values()):
            self._close_portal(name)
        self._portals.clear()
        self._lease.happened(Event.CLOSED)
        if as_stock:
            try:
                super().close()
            finally:
                self.connection = None
        elif self.connection is not None:
            self._end_lease()

    def _detach(self, raw: Any) -> None:
        try:
            self._hooks.driver.detach(raw)
        except Exception:
            logger.debug("could not detach an open cursor", exc_info=True)


def _execute(raw: Any, sql: str, *ignored: Any) -> Any:
    return raw.execute(sql)


def _same(thing: Any) -> Any:
    return thing
