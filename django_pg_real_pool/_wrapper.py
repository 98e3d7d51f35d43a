"""The upper layer of a made class: what must see, or precede, what its base does.

A made class is `(ConnectionReleaseMixin, <base>, DjangoFloor)`.  A call passes the
mixin, then the base with all its overrides, then the floor, which stands just above
Django's `BaseDatabaseWrapper` and answers in its place what needs no connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.utils.asyncio import async_unsafe

from . import _hooks
from ._checks import validation_class_for
from ._floor import DjangoFloor
from ._lease import Event
from ._leasing import Leasing
from ._schema import schema_editor_class_for


class ConnectionReleaseMixin(Leasing):
    """Makes a pooled wrapper take its connection late and give it back early.

    Unlike the base, which keeps its connection from the first use until `close()`, it
    keeps one only while its lease has a hold; `connection` is None in between.  Every
    class that `make_release_backend()` makes has it, so `isinstance(wrapper,
    ConnectionReleaseMixin)` tells whether a wrapper releases early.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if DjangoFloor not in cls.__mro__:
            # Written by hand: `class DatabaseWrapper(ConnectionReleaseMixin, Base)`.
            cls.__bases__ = (*cls.__bases__, DjangoFloor)
        cls._hooks = _hooks.read(cls)
        cls.validation_class = validation_class_for(cls.validation_class)
        if cls.SchemaEditorClass is not None:
            cls.SchemaEditorClass = schema_editor_class_for(cls.SchemaEditorClass)

    @property
    def pool(self) -> Any:
        """The base's pool, where it has such an attribute; never opened by reading it."""
        if self._pool_stand_in is not None:
            return self._pool_stand_in
        return super().pool  # type: ignore[misc]

    # ##### Establishing and ending a connection #####

    @async_unsafe
    def connect(self) -> None:
        """Check a connection out and keep it until another hold ends, or `close()`.

        The transaction state is reset, as by stock.  If it raises, nothing is out.
        """
        if self._checking_out:
            self._checking_out = False
            self._open_lease()
            return
        if self._releasing:
            self._close_lease()
            self._end_session()
        if self._begin(explicitly=True):
            with self._lease_lock, self.wrap_database_errors:
                self._open_lease()
                self._lease.happened(Event.CONNECTED)
        else:
            super().connect()

    @async_unsafe
    def ensure_connection(self) -> None:
        """Check a connection out if there is none, and keep it as `connect()` does."""
        if self.connection is None and (self._releasing or self._begin()):
            with self._lease_lock:
                self._checkout()
                self._lease.happened(Event.CONNECTED)
        else:
            super().ensure_connection()

    @async_unsafe
    def close(self) -> None:
        """End every hold and give the connection back; otherwise as stock.

        A cursor that is open still is cut off: executing on it raises InterfaceError,
        rows that were fetched already stay readable.
        """
        if not self._releasing:
            super().close()
            return
        self.validate_thread_sharing()
        with self._lease_lock:
            try:
                if self.connection is not None:
                    self._close_lease(as_stock=True)
                else:
                    self.run_on_commit = []
                    if self.in_atomic_block:
                        self.closed_in_transaction = True
                        self.needs_rollback = True
            finally:
                self._end_session()

    @async_unsafe
    def close_if_unusable_or_obsolete(self) -> None:
        if self._releasing and self.connection is None:
            # Nothing is checked out, so there is nothing to test, only to forget.
            self.errors_occurred = False
            if self.autocommit is not self._default_autocommit or (
                self.close_at is not None and time.monotonic() >= self.close_at
            ):
                self.close()
            return
        super().close_if_unusable_or_obsolete()
        if self.closed_in_transaction and self.in_atomic_block and not self.atomic_blocks:
            # Closed in a block that was entered with autocommit off: stock's wrapper is
            # of no use from then on.  The block is left, so this one begins anew.
            self.in_atomic_block = self.closed_in_transaction = False

    @contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        # Stock closes what it opened, by `connection is None`: here that is no sign of
        # an unused wrapper, and close() within a block would be the end of the block.
        was_unused = not self._releasing and self.connection is None
        try:
            with self.cursor() as cursor:
                yield cursor
        finally:
            if was_unused:
                self.close()

    # ##### Ending a transaction #####

    @async_unsafe
    def commit(self) -> None:
        try:
            super().commit()
        finally:
            self._transaction_ended()

    @async_unsafe
    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self._transaction_ended()

    def _transaction_ended(self) -> None:
        # Before set_autocommit(True), hence before the callbacks of on_commit() run.
        self._unsent_savepoints.clear()
        with self._lease_lock:
            self._settle()

    # ##### Cursors #####

    def make_cursor(self, cursor: Any) -> Any:
        made = super().make_cursor(cursor)
        return self._hold_for(made) if self._releasing else made

    def make_debug_cursor(self, cursor: Any) -> Any:
        made = super().make_debug_cursor(cursor)
        return self._hold_for(made) if self._releasing else made
