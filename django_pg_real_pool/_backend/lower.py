"""The lower layer of a made class, just above Django's `BaseDatabaseWrapper`.

Stock connects to begin, nest or end a block, and to switch autocommit.  This layer does
so without a connection.  It is beneath the base, so each override of the base stays in
force.
"""

from __future__ import annotations

from _thread import get_ident
from asyncio import _get_running_loop
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from .._lease import setup
from .._lease.facts import Phase, Use
from .._lease.rule import Hold
from .cursor import AutoConnectionReleaseCursor, hold_for
from .names import as_written, undecorated

if TYPE_CHECKING:
    from .names import MixedWrapper as _Base
else:
    _Base = BaseDatabaseWrapper


#: Raises what Django raises in an event loop.  Its decorator finds out by an exception, in
#: each of the three calls that a block makes: a third of the time of an empty block.
_refuse_event_loop: Any = async_unsafe(lambda: None)

# Django's own methods, unless a tool has patched them.
_CURSOR, _ = undecorated(BaseDatabaseWrapper.cursor)
_PREPARE = as_written(BaseDatabaseWrapper, "_prepare_cursor")

POOLED = Use.POOLED


class LowerLayer(_Base):
    """Stands for `BaseDatabaseWrapper` where a wrapper has no connection between holds.

    Unlike the mixin at the top it may assume that the base has had its say.
    """

    def connect(self) -> None:
        lease = self._lease
        # Else a base calls this by itself: it is an explicit connect.
        if lease.is_within and (lease.phase is Phase.TAKING or lease.is_connecting):
            if lease.phase is not Phase.TAKING:
                lease.begin_again()  # its connect() has closed first
            if self.connection is None:
                lease.get()
            setup.set_up(lease)
        elif not self._connect_early():
            super().connect()

    def close(self) -> None:
        lease = self._lease
        if lease.is_within and lease.phase is Phase.RETURNING:
            self._hooks.pool.put(lease)
            return
        if lease.use is not POOLED or (lease.is_within and lease.phase is Phase.CLOSING):
            self._close_as_stock()
            return
        self.validate_thread_sharing()
        if self._has_none_to_close():
            self.run_on_commit = []
            return
        # A base calls this by itself, before it connects anew, say.
        try:
            if not lease.close(self._close_as_stock):
                self.run_on_commit = []
                self._note_closed_in_block()
        finally:
            lease.end_session_if_free()

    def _has_none_to_close(self) -> bool:
        """Return whether there was no connection when close() began.

        If there is one by now, it is of a thread that shares the wrapper.
        """
        had_none = get_ident() in self._lease.closers
        if self.connection is None:
            return had_none or self._lease.is_within
        return had_none and self._thread_sharing_count > 0

    def _close_as_stock(self) -> None:
        if self._lease.phase is Phase.CLOSING and self.connection is not None:
            self._lease.is_going()
        super().close()

    # Django takes a lock for both, which an interruption can leave held on Python 3.14.

    @property
    def allow_thread_sharing(self) -> bool:
        return self._thread_sharing_count > 0

    def validate_thread_sharing(self) -> None:
        if self._thread_ident != get_ident():
            super().validate_thread_sharing()

    # ##### Cursors #####

    def cursor(self) -> Any:
        if _get_running_loop() is None and BaseDatabaseWrapper.cursor is _CURSOR:
            return self._cursor()
        return super().cursor()

    def _cursor(self, name: str | None = None) -> Any:
        lease = self._lease
        if lease.use is not POOLED and not lease.begin():
            return super()._cursor(name)
        if self._thread_ident != get_ident():
            self.validate_thread_sharing()
        if self.connection is not None and (
            self._hooks.health_check or not self.health_check_done
        ):
            # Not within the lease's lock: it waits for the server, and for who streams.
            lease.with_connection(self.close_if_health_check_failed)
        cursor = lease.open_cursor(name)
        if self.connection is None:
            # A signal handler made a query before there was a hold: it ended the lease.
            cursor.close()
            return self._cursor(name)
        return cursor

    def _make_cursor(self, name: str | None) -> Any:
        """Make a cursor by the base's hooks, or by Django's without their checks.

        `_cursor()` has checked the thread, and `cursor()` has looked for an event loop.
        """
        create, (djangos, bare) = self.create_cursor, self._hooks.create_cursor
        if getattr(create, "__func__", None) is djangos and _get_running_loop() is None:
            raw = bare(self, name)
        else:
            raw = create(name)
        prepare = self._prepare_cursor
        if self._logs_queries() or getattr(prepare, "__func__", None) is not _PREPARE:
            cursor = prepare(raw)
        else:
            cursor = self.make_cursor(raw)
        if self._hooks.makes_cursors and not isinstance(
            cursor, AutoConnectionReleaseCursor
        ):
            cursor = hold_for(self, cursor)
        return cursor

    def close_if_health_check_failed(self) -> None:
        lease = self._lease
        pins = list(lease.holds.now.get(Hold.PIN, ()))
        own = lease.own_pins & set(pins)
        super().close_if_health_check_failed()
        if pins and self.connection is None:
            # It did fail, and close() ended all holds; but no pin was left.
            lease.begin()
            for token in pins:
                lease.pin(token, token in own)

    # ##### Transactions #####

    # Stock connects first, which is refused in an event loop.  So an atomic() block must be
    # refused at its entry: its queries would run in other threads, outside the block.

    def get_autocommit(self) -> bool:
        if _get_running_loop() is not None:
            _refuse_event_loop()
        lease = self._lease
        if (
            self.closed_in_transaction
            and self.in_atomic_block
            and self._hooks.pool.stock_keeps_closed
        ):
            return self.autocommit  # stock need not connect for that
        if lease.use is POOLED or lease.begin():
            return self.autocommit
        return super().get_autocommit()

    def set_autocommit(
        self,
        autocommit: bool,
        force_begin_transaction_with_broken_autocommit: bool = False,
    ) -> None:
        if self.in_atomic_block:
            self.validate_no_atomic_block()  # raises
        if _get_running_loop() is not None:
            _refuse_event_loop()
        lease = self._lease
        if lease.use is not POOLED and not lease.begin():
            super().set_autocommit(
                autocommit, force_begin_transaction_with_broken_autocommit
            )
            return
        # Only Atomic.__enter__() asks to force the BEGIN.
        by_atomic = force_begin_transaction_with_broken_autocommit
        if self.connection is not None:
            # Before anything is switched: a dropped cursor's warning may be an error.
            lease.settle()
        if self.connection is None and not self._thread_sharing_count:
            self._note_autocommit(autocommit, by_atomic)
        else:
            # Another thread may take a connection just now, or give it back.
            lease.with_connection(
                partial(self._switch_leased, autocommit, by_atomic),
                otherwise=partial(self._note_autocommit, autocommit, by_atomic),
            )
        if autocommit and self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    def _note_autocommit(self, autocommit: bool, by_atomic: bool) -> None:
        """Note the mode for the next checkout; the rest is as stock."""
        lease = self._lease
        lease.is_off_by_atomic = by_atomic
        if lease.unsent_savepoints:
            # savepoint() by hand, outside a block: of a transaction that never began.
            lease.unsent_savepoints.clear()
        lease.forget_transaction()
        if not autocommit and self._logs_queries():
            lease.log_unsent("BEGIN")
        self.autocommit = autocommit

    def _switch_leased(self, autocommit: bool, by_atomic: bool) -> None:
        """Switch the mode of the connection that is here."""
        lease = self._lease
        leaving_atomic = autocommit and lease.is_off_by_atomic
        lease.is_off_by_atomic = by_atomic
        runs_callbacks = self.run_commit_hooks_on_set_autocommit_on
        try:
            # The callbacks come later: the connection is not kept for them.
            if runs_callbacks:  # else a thread that shares the wrapper may set it meanwhile
                self.run_commit_hooks_on_set_autocommit_on = False
            super().set_autocommit(autocommit, by_atomic)
        except BaseException as error:
            if (
                leaving_atomic
                and not self.autocommit
                and (lease.is_end_missing or not isinstance(error, self._hooks.of_database))
            ):
                # COMMIT or ROLLBACK was interrupted, so the connection is still in the
                # transaction of this block: only the pool will end it.  One of another
                # thread, which shares the wrapper, is left alone.
                self.close()
            raise
        finally:
            if runs_callbacks:
                self.run_commit_hooks_on_set_autocommit_on = True

    def _commit(self) -> None:
        if self.connection is None and self._lease.use is POOLED:
            self._lease.refuse_if_lost()
            if self._logs_queries():
                self._lease.log_unsent("COMMIT")
        else:
            super()._commit()

    def _rollback(self) -> None:
        if self.connection is None and self._lease.use is POOLED:
            if self._logs_queries():
                self._lease.log_unsent("ROLLBACK")
        else:
            super()._rollback()

    # ##### Savepoints #####

    def _savepoint(self, sid: str) -> None:
        if self.connection is None and self._lease.use is POOLED:
            self._lease.refuse_if_lost()
            self.validate_no_broken_transaction()
            self._lease.log_unsent(self.ops.savepoint_create_sql(sid))
            self._lease.unsent_savepoints.append((sid, list(self.execute_wrappers)))
        else:
            super()._savepoint(sid)

    def _savepoint_rollback(self, sid: str) -> None:
        position = self._position_of_unsent(sid)
        if position is None:
            super()._savepoint_rollback(sid)
        else:
            self.validate_no_broken_transaction()
            self._lease.log_unsent(self.ops.savepoint_rollback_sql(sid))
            del self._lease.unsent_savepoints[position + 1 :]

    def _savepoint_commit(self, sid: str) -> None:
        position = self._position_of_unsent(sid)
        if position is None:
            super()._savepoint_commit(sid)
        else:
            self.validate_no_broken_transaction()
            self._lease.log_unsent(self.ops.savepoint_commit_sql(sid))
            del self._lease.unsent_savepoints[position:]

    def _position_of_unsent(self, sid: str) -> int | None:
        for position, (unsent, _) in enumerate(self._lease.unsent_savepoints):
            if unsent == sid:
                return position
        return None
