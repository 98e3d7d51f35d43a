"""Gives a connection back: clean, or not at all."""

from __future__ import annotations

import logging
import time
from typing import Any

from . import _reaper, _registry
from ._lease import Event, Hold
from ._origins import find_origin
from ._state import LeaseState

logger = logging.getLogger("django_pg_real_pool")


class Checkin(LeaseState):
    """Ends leases."""

    def __del__(self) -> None:
        # Not from here: this may be any thread, inside the pool's own lock.
        if getattr(self, "_releasing", None) and self.connection is not None:
            _reaper.adopt(self)
        _registry.forget_keeper(getattr(self, "_keeper", None))

    def _end_lease(self, discard: bool = False, as_stock: bool = False) -> None:
        """Give the connection back; `as_stock` with all that stock's close() does.

        Otherwise what the statement did or raised is not disturbed: what database or
        pool raise is logged.  Anything else, a time limit say, is raised in the end.
        """
        if self._is_given_back:
            self._forget_connection()  # interrupted, the last time, right after that
            return
        hooks = self._hooks
        # Whatever is thrown into this thread from here on, the connection is not kept,
        # nor given to anybody before it is clean.
        try:
            physical = self._physical or hooks.pool.physical(self.connection)
            if not discard:
                discard = not hooks.driver.mark_used(physical) or (
                    self._is_dirty and not self._clean()
                )
            if self._options.warn_held_after is not None:
                self._warn_if_held_long()
            if discard:
                hooks.pool.discard(self)
            if as_stock:
                super().close()
                hooks.pool.was_checked_in(physical)
            elif hooks.close:
                self._ending_lease = True
                self.close()  # passes every override; arrives at DjangoFloor.close()
            else:
                self._is_given_back = True
                hooks.pool.checkin(self)
        except BaseException as error:
            if not self._is_given_back:
                # Interrupted, or an override raised, before the pool had it.
                self._discard()
                if hooks.close:
                    self._let_base_forget()
            if as_stock or not isinstance(error, hooks.failures):
                raise
            self._log_failure(error)
        finally:
            self.connection = None  # first: what comes next may be interrupted
            self._forget_connection()

    def _forget_connection(self) -> None:
        self._keeper[0] = self.connection = self._physical = None
        self._is_given_back = False
        self._ending_lease = self._is_dirty = self._is_beyond_reset = False

    def _discard(self) -> None:
        try:
            self._hooks.pool.discard(self)
            self._hooks.pool.checkin(self)
        except self._hooks.failures as error:
            self._log_failure(error)

    def _let_base_forget(self) -> None:
        """Run the base's `close()` for a connection that has gone without it.

        What the base keeps on the wrapper is not true of the next one.
        """
        self.connection = None
        self._ending_lease = False
        callbacks = self.run_on_commit
        try:
            super().close()
        except self._hooks.failures as error:
            self._log_failure(error)
        finally:
            self.run_on_commit = callbacks

    def _log_failure(self, error: Exception) -> None:
        logger.warning(
            "could not give the connection of database alias %r back to its pool",
            self.alias,
            exc_info=error,
        )

    def _clean(self) -> bool:
        """Make the session as new; return False if it must not be used again.

        What it was used for is not disturbed: nothing is raised.
        """
        if self._is_beyond_reset:
            return False
        hooks = self._hooks
        self._setting_up += 1
        try:
            physical = hooks.pool.physical(self.connection)
            cleaned = hooks.driver.reset(physical)
            if cleaned:
                hooks.driver.forget_set_up(physical)
                hooks.pool.reconfigure(self)
        except hooks.failures:
            cleaned = False
            logger.warning(
                "could not reset the session of a connection of database alias %r, so "
                "the connection is replaced",
                self.alias,
                exc_info=True,
            )
        finally:
            self._setting_up -= 1
        return cleaned

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
        if as_stock or self.connection is not None:
            self._end_lease(as_stock=as_stock)

    def _warn_if_held_long(self) -> None:
        seconds, limit = time.monotonic() - self._lease.since, self._options.warn_held_after
        if limit is not None and seconds > limit:
            logger.warning(
                "a connection of database alias %r was held for %.1f s (%s), until %s",
                self.alias,
                seconds,
                ", ".join(sorted(self._lease.seen or ())),
                find_origin(),
            )

    def _detach(self, raw: Any) -> None:
        try:
            self._hooks.driver.detach(raw)
        except Exception:
            logger.debug("could not detach an open cursor", exc_info=True)

    def _close_portal(self, name: str) -> None:
        try:
            self._hooks.driver.close_portal(self.connection, name)
        except Exception:
            # It is gone already: rolled back, or the connection is broken.
            logger.debug("could not close the server-side cursor %s", name, exc_info=True)
