"""Makes of a connection what stock's connect() would have made of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any

from django.db.backends.signals import connection_created

from ._holding import Holding
from ._state import TRANSACTION_STATE


class Setup(Holding):
    """Brings a connection that has just been taken to where the wrapper is."""

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

    def _make_ready(self, physical: Any) -> bool:
        """Bring a connection that was just taken to where the wrapper is.

        False: nothing has been done, because the connection has to be looked at first.
        """
        now = self._lease.since = monotonic()
        window = self._options.check_after_idle
        mode = self._hooks.driver.mode_if_ready(physical, window, now)
        if mode is None:
            return False
        if mode is not self.autocommit or self._unsent_savepoints:
            self._setting_up += 1
            try:
                self._apply_autocommit()
                self._send_savepoints()
            finally:
                self._setting_up -= 1
        return True

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
        """Send the savepoints of the open blocks, as they would have been sent.

        Whoever watches the wrapper, its cursors or their class sees them pass.
        """
        if not self._unsent_savepoints:
            return
        unsent, self._unsent_savepoints = self._unsent_savepoints, []
        wrappers_now, is_broken = self.execute_wrappers, self.needs_rollback
        try:
            for sid, wrappers in unsent:
                self.execute_wrappers, self.needs_rollback = wrappers, False
                # With a cursor as any other: what a base does when it makes one (a SET,
                # say) comes before the savepoint, as in stock, and survives it.
                cursor: Any
                with self.cursor() as cursor:
                    cursor.debug_sql = _was_logged
                    cursor.execute(self.ops.savepoint_create_sql(sid))
        except BaseException:
            self._unsent_savepoints = unsent
            raise
        finally:
            self.execute_wrappers, self.needs_rollback = wrappers_now, is_broken


def _was_logged(*args: Any, **kwargs: Any) -> Any:
    """Stand for a debug cursor's logging of what was logged when it was asked for."""
    return nullcontext()
