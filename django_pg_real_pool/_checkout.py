"""Takes a connection and makes it what stock's connect() would have made of it."""

from __future__ import annotations

import logging
import time
from _thread import get_ident
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import current_thread
from typing import Any

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from . import _reaper
from ._checkin import inside_pool
from ._holding import Holding
from ._lease import Event
from ._origins import find_origin
from ._settings import ReleaseOptions, SessionPolicy, warns_of_unclosed_cursors
from ._state import TRANSACTION_STATE
from ._status import explain_exhaustion

logger = logging.getLogger("django_pg_real_pool")


#: What Django's own checkout consists of, to see whether somebody has replaced it.
_ENSURE_CONNECTION: Any = BaseDatabaseWrapper.ensure_connection
if _ENSURE_CONNECTION.__module__ != BaseDatabaseWrapper.__module__:
    _ENSURE_CONNECTION = None  # a test runner was here before us: never take it for it
_REPLACEABLE = frozenset({"connect", "ensure_connection"})


class Checkout(Holding):
    """Begins sessions and leases."""

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
        self._records_origins = self._options.track_origins or warns_of_unclosed_cursors()
        if not self._hooks.pool.releases(self):
            self._releasing = False
            return False
        self._owner = current_thread()
        _reaper.start()
        self._reset_transaction_state()
        self.autocommit = self._default_autocommit
        self._autocommit_off_by_atomic = False
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        max_age = self.settings_dict["CONN_MAX_AGE"]
        self.close_at = None if max_age is None else time.monotonic() + max_age
        self.closed_in_transaction = False
        self.errors_occurred = False
        self.health_check_done = True
        self._releasing = True  # last, so that an interruption leaves nothing half done
        if not self.autocommit:
            self._log_unsent("BEGIN")
        return True

    def _checkout(self) -> None:
        """Begin a lease that has no hold yet.  When it raises, there is none."""
        try:
            if (
                not self._hooks.connect
                and type(self).ensure_connection is _ENSURE_CONNECTION
                and _REPLACEABLE.isdisjoint(self.__dict__)
                and not self.closed_in_transaction
            ):
                with self.wrap_database_errors:
                    self._open_lease()
            else:
                self._checkout_through_django()
        except Exception as error:
            if self.in_atomic_block:
                # A statement of this block was lost, so none of it may be committed.
                self.needs_rollback = True
                self.rollback_exc = error
            raise

    def _checkout_through_django(self) -> None:
        """Check out by way of ensure_connection(), because somebody replaced something.

        Test runners do that to forbid the database; Django's own method refuses a block
        whose connection was closed.
        """
        self._checking_out = True
        self._setting_up += 1
        try:
            self.ensure_connection()
        except BaseException:
            self._close_lease()
            raise
        finally:
            self._setting_up -= 1
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
            if self._options.warn_held_after is not None:
                self._lease.seen = set()
        except BaseException:
            self._close_lease()
            raise
        finally:
            self._setting_up -= 1

    def _take(self) -> None:
        """Get a connection; set it up if it is new, or the first since close()."""
        hooks = self._hooks
        rejected: Any = None
        while True:
            self._get_from_pool()
            physical = hooks.pool.physical(self.connection)
            if physical is rejected or hooks.driver.is_usable(
                physical, self._options.check_after_idle
            ):
                # The same again: this pool does not notice that it was closed.
                break
            rejected = physical
            logger.info(
                "a connection of database alias %r was closed by the server or on the "
                "way, so it is replaced",
                self.alias,
            )
            self._end_lease(discard=True)
        announce = not self._announced or not hooks.driver.is_set_up(physical)
        if announce or hooks.init_every_time:
            with self._outside_transaction():
                self._set_up(announce)
            hooks.driver.mark_set_up(physical)

    def _get_from_pool(self) -> None:
        ident = get_ident()
        started = time.monotonic()
        inside_pool.add(ident)
        try:
            self.connection = self._hooks.pool.checkout(self)
        except self._hooks.pool.exhausted() as error:
            message = explain_exhaustion(self, time.monotonic() - started)
            of_pool: Any = type(error)
            raise _exhausted(of_pool)(message) from error
        finally:
            inside_pool.discard(ident)

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
        connection_created included, must not become a part of the transaction.  Nor is
        it for those to see who count, log or forbid queries now: for all but the first
        connection since close(), stock would have done it long ago.
        """
        if not (
            self._announced
            or self.in_atomic_block
            or self.autocommit is not self._default_autocommit
        ):
            yield
            return
        saved = {name: getattr(self, name) for name in TRANSACTION_STATE}
        saved["autocommit"] = self.autocommit
        if self._announced:
            saved["queries_log"] = self.queries_log
            saved["execute_wrappers"] = self.execute_wrappers
            self.queries_log, self.execute_wrappers = deque(maxlen=0), []
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
        try:
            for sid, wrappers in unsent:
                # With a cursor as any other: what a base does when it makes one (a SET,
                # say) comes before the savepoint, as in stock, and survives it.
                with self.cursor() as cursor:
                    execute = partial(_execute, cursor.cursor)
                    for wrapper in reversed(wrappers):
                        execute = partial(wrapper, execute)
                    context = {"connection": self, "cursor": cursor}
                    execute(self.ops.savepoint_create_sql(sid), None, False, context)
        except BaseException:
            self._unsent_savepoints = unsent
            raise

    def _pin(self, token: Hashable, trusted: bool = False) -> None:
        """Hold the lease until `_unpin(token)`; check a connection out if need be.

        Unless what is done meanwhile can be `trusted` to go through cursors, the
        session is cleaned in the end: through the driver itself nothing can be seen.
        """
        self.validate_thread_sharing()
        if not (self._releasing or self._begin()):
            self.ensure_connection()  # without a pool it is kept anyway
            return
        with self._lease_lock:
            if self.connection is None:
                self._checkout()
            self._lease.happened(Event.PIN_ENTERED, token)
            if not trusted and self._options.session_state is not SessionPolicy.IGNORE:
                self._is_dirty = True
            if self._options.track_origins:
                self._lease.origins[token] = find_origin()

    def _unpin(self, token: Hashable) -> None:
        with self._lease_lock:
            self._lease.happened(Event.PIN_LEFT, token)
            self._settle()


@cache
def _exhausted(of_pool: Any) -> Any:
    """Return Django's class of error that is the pool's as well.

    connect() raises what the pool raises, everything else Django's OperationalError.
    """
    return type(of_pool.__name__, (OperationalError, of_pool), {})


def _execute(raw: Any, sql: str, *ignored: Any) -> Any:
    return raw.execute(sql)
