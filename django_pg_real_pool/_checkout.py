"""Takes a connection from the pool, for a wrapper that has none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import cache
from time import monotonic
from typing import Any

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.asyncio import async_unsafe

from . import _reaper
from ._django import is_decorated_by_django, undecorated
from ._lease import Event
from ._origins import find_origin
from ._settings import ReleaseOptions, SessionPolicy, warns_of_unclosed_cursors
from ._setup import Setup
from ._status import explain_exhaustion

logger = logging.getLogger("django_pg_real_pool")

_ENSURE_CONNECTION, _ = undecorated(BaseDatabaseWrapper.ensure_connection)


class Checkout(Setup):
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
        if self._was_cut_off:
            self._was_cut_off = False
            self._let_base_forget()
        self._options = ReleaseOptions.read(self.settings_dict, self.alias)
        self._records_origins = self._options.track_origins or warns_of_unclosed_cursors()
        if not self._hooks.pool.releases(self):
            self._releasing = False
            return False
        _reaper.start()
        self._reset_transaction_state()
        self.autocommit = self._default_autocommit
        self._autocommit_off_by_atomic = False
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        max_age = self.settings_dict["CONN_MAX_AGE"]
        self.close_at = None if max_age is None else monotonic() + max_age
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
            of_this_one, ensure = self.__dict__, type(self).ensure_connection
            if (
                self._hooks.connect
                or self.closed_in_transaction
                or "connect" in of_this_one  # replaced, to forbid or watch it
                or "ensure_connection" in of_this_one
                or (ensure is not _ENSURE_CONNECTION and not is_decorated_by_django(ensure))
            ):
                self._checkout_through_django()
                return
            shortcut = self._shortcut
            try:
                if shortcut is None or not shortcut.take(self):
                    self._open_lease()
            except Exception:
                with self.wrap_database_errors:
                    raise
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
        hooks = self._hooks
        try:
            if not self._announced or hooks.init_every_time or hooks.connect:
                self._open_lease_at_length()
            else:
                if self.connection is None:
                    self._get_from_pool()
                # The way of nearly all queries: the connection can be used as it is.
                physical = self._physical or hooks.pool.physical(self.connection)
                if not self._make_ready(physical):
                    self._open_lease_at_length()
            if self._options.warn_held_after is not None:
                self._lease.seen = set()
        except BaseException:
            self._close_lease()
            raise

    def _open_lease_at_length(self) -> None:
        """Look at each thing that a connection may need, or connect() be told of."""
        self._setting_up += 1
        try:
            if self._hooks.connect:
                with self._outside_transaction():
                    super().connect()  # the base's; arrives at DjangoFloor.connect()
            else:
                self._take()
            self._apply_autocommit()
            self._send_savepoints()
            self._lease.since = monotonic()
            hooks = self._hooks
            if not (hooks.connect or hooks.close or hooks.init_every_time) and (
                self._options.warn_held_after is None
            ):
                self._shortcut = hooks.pool.shortcut(self)
        finally:
            self._setting_up -= 1

    def _take(self) -> None:
        """Get a connection; set it up if it is new, or the first since close()."""
        hooks = self._hooks
        rejected: Any = None
        while True:
            if self.connection is None:
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
        is_new = not hooks.driver.is_set_up(physical)
        announce = is_new or not self._announced
        if announce or hooks.init_every_time:
            with self._outside_transaction():
                self._set_up(announce)
            if is_new or hooks.init_every_time or connection_created.receivers:
                # Whatever they made of it is how it is to be after a cleaning.
                hooks.driver.mark_set_up(physical)

    def _get_from_pool(self, checkout: Callable[[Any], Any] | None = None) -> None:
        started = monotonic()
        self._is_given_back = self._ending_lease = False
        self._physical = None
        try:
            checkout = checkout or self._hooks.pool.checkout
            self.connection = self._keeper[0] = checkout(self)
        except self._hooks.pool.exhausted() as error:
            message = explain_exhaustion(self, monotonic() - started)
            of_pool: Any = type(error)
            raise _exhausted(of_pool)(message) from error

    @async_unsafe
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
