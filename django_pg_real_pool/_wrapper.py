"""The upper layer of a made class: what must see, or precede, what its base does.

A made class is `(ConnectionReleaseMixin, <base>, DjangoFloor)`.  A call passes the
mixin, then the base with all its overrides, then the floor, which stands just above
Django's `BaseDatabaseWrapper` and answers in its place what needs no connection.
"""

from __future__ import annotations

import time
from asyncio import _get_running_loop
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.db.backends import utils
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from . import _creation, _fork, _hooks
from ._checkout import Checkout
from ._cursor import releasing_class
from ._django import as_written, undecorated
from ._floor import DjangoFloor
from ._holding import CONNECT
from ._lease import Event, Hold
from ._parts import replace_parts

_fork.watch()

# Django's methods, if nobody has put others in their place, to watch or forbid them; and
# the one without its decorator, which is a seventh of an empty block.
_MAKE_CURSOR = as_written(BaseDatabaseWrapper, "make_cursor")
_COMMIT, _commit_undecorated = undecorated(BaseDatabaseWrapper.commit)


class ConnectionReleaseMixin(Checkout):
    """Makes a pooled wrapper take its connection late and give it back early.

    Unlike the base, which keeps its connection from the first use until `close()`, it
    keeps one only while its lease has a hold; `connection` is None in between.  Every
    class that `make_release_backend()` makes has it, so `isinstance(wrapper,
    ConnectionReleaseMixin)` tells whether a wrapper releases early.
    """

    #: Hooks of the base, by name, whose overrides are about the physical connection: they
    #: run when a wrapper gets its first connection since close(), and for each connection
    #: that is new, but not for each lease.
    once_per_connection: ClassVar[Collection[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if DjangoFloor not in cls.__mro__:
            # Written by hand: `class DatabaseWrapper(ConnectionReleaseMixin, Base)`.
            cls.__bases__ = (*cls.__bases__, DjangoFloor)
        _check_names(cls)
        cls._hooks = _hooks.read(cls)
        _fork.pools_in_use.add(cls._hooks.pool)
        if cls._hooks.cursor:
            cls._cursor = _guarded_cursor  # type: ignore[assignment, method-assign]
        replace_parts(cls)

    @property
    def pool(self) -> Any:
        """The base's pool, where it has such an attribute; never opened by reading it."""
        if self._pool_stand_in is not None:
            return self._pool_stand_in
        self._hooks.pool.prepare(self)
        return self._pool_of_base()

    def _pool_of_base(self) -> Any:
        return super().pool  # type: ignore[misc]

    # ##### Establishing and ending a connection #####

    @async_unsafe
    def connect(self) -> None:
        """Check a connection out and keep it until another hold ends, or `close()`.

        If there is one already, it is given back and the transaction state is reset, as
        by stock.  Raises what the driver or the pool raises; nothing is out then.
        """
        if self._checking_out:
            self._checking_out = False
            self._open_lease()
            return
        if self._releasing and self.connection is not None:
            self._close_lease()
            self._end_session()
        # Between two leases it is Django's ensure_connection() that calls this: the
        # block that is open, and its transaction, go on.
        if self._releasing or self._begin(explicitly=True):
            with self._lease_lock:
                self._open_lease()
                if _creation.is_under_way():
                    self._settle()
                else:
                    self._lease.happened(Event.CONNECTED)
        else:
            super().connect()

    @async_unsafe
    def is_usable(self) -> bool:
        """Ask the connection that there is, or else the one that a query would get."""
        if self.connection is not None or not self._releasing:
            return super().is_usable()
        # To ask is no statement of a block, so it must not begin its transaction.
        with self._outside_transaction():
            token = object()
            try:
                self._pin(token, trusted=True)
            except DatabaseError:
                return False
            try:
                return super().is_usable()
            finally:
                self._unpin(token)

    @async_unsafe
    def close(self) -> None:
        """End every hold and give the connection back; otherwise as stock.

        A cursor that is open still is cut off: executing on it raises InterfaceError,
        rows that were fetched already stay readable.
        """
        is_ending_lease = self._ending_lease and self.connection is not None
        if is_ending_lease or not self._releasing:
            super().close()
            return
        self.validate_thread_sharing()
        with self._lease_lock:
            try:
                if self.connection is not None:
                    self._close_lease(as_stock=True)
                else:
                    self._ending_lease = False  # where _end_lease() was interrupted
                    super().close()
                    if self.in_atomic_block:
                        self.closed_in_transaction = True
                        self.needs_rollback = True
            finally:
                self._end_session()

    def close_pool(self) -> None:
        """Close the alias's pool; the next checkout opens another.

        Django asks for it before it clones or drops a database.
        """
        self._hooks.pool.close(self)
        close_pool_of_base = getattr(super(), "close_pool", None)
        if close_pool_of_base is not None:
            close_pool_of_base()

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
        if Hold.SESSION in self._lease.holds and not self.in_atomic_block:
            # With a CONN_MAX_AGE stock keeps the connection, but the session of one
            # request is none of the next one's.
            self.close()
        if (
            self._releasing is not False
            and self.closed_in_transaction
            and self.in_atomic_block
            and not self.atomic_blocks
        ):
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

    def commit(self) -> None:
        if self.connection is None:
            self._commit_as_base()
            if self._unsent_savepoints:
                self._unsent_savepoints.clear()
            return
        self._validate_end_of_transaction()
        has_ended = False
        try:
            self._commit_as_base()
            has_ended = True
        finally:
            self._transaction_ended(has_ended)

    def _commit_as_base(self) -> None:
        if (
            self._hooks.plain_commit
            and BaseDatabaseWrapper.commit is _COMMIT
            and _get_running_loop() is None
        ):
            _commit_undecorated(self)
        else:
            super().commit()

    def rollback(self) -> None:
        if self.connection is None:
            super().rollback()
            self._unsent_savepoints.clear()
            return
        self._validate_end_of_transaction()
        has_ended = False
        try:
            super().rollback()
            has_ended = True
        finally:
            self._transaction_ended(has_ended)

    def _validate_end_of_transaction(self) -> None:
        # As stock does next; but what is refused must not be taken for an end.
        self.validate_thread_sharing()
        self.validate_no_atomic_block()
        if CONNECT in self._lease.holds:
            # It ends with the transaction, of which no cursor may have told: savepoints
            # and is_usable() begin one, too.
            with self._lease_lock:
                self._settle()

    def _transaction_ended(self, certainly: bool) -> None:
        # Before set_autocommit(True), hence before the callbacks of on_commit() run.
        with self._lease_lock:
            self._settle(ended=certainly)

    # ##### Cursors #####

    # Of a subclass's own class of cursors, DjangoFloor._cursor() takes care.

    def make_cursor(self, cursor: Any) -> Any:
        if (
            self._releasing
            and self._hooks.plain_cursors
            and BaseDatabaseWrapper.make_cursor is _MAKE_CURSOR
        ):
            made = releasing_class(utils.CursorWrapper)(cursor, self)
            self._hold(cursor)
            return made
        made = super().make_cursor(cursor)
        return self._hold_for(made) if self._releasing else made

    def make_debug_cursor(self, cursor: Any) -> Any:
        made = super().make_debug_cursor(cursor)
        return self._hold_for(made) if self._releasing else made


def _check_names(cls: type[ConnectionReleaseMixin]) -> None:
    named = set(getattr(cls, "once_per_connection", ()))
    unknown = sorted(named - set(_hooks.ONCE_PER_CONNECTION))
    if unknown:
        raise ImproperlyConfigured(
            f"{cls.__module__}.{cls.__qualname__}: once_per_connection can't have "
            f"{', '.join(map(repr, unknown))}; valid names are: "
            f"{', '.join(_hooks.ONCE_PER_CONNECTION)}."
        )


def _guarded_cursor(self: ConnectionReleaseMixin, name: str | None = None) -> Any:
    """Stands above a base's own `_cursor()`, which may run statements, and may raise.

    What it does to the session it does for each cursor anew, or until its `close()`: so
    this is the connection's configuration, as what a receiver does, and no change of it.
    """
    with self._lease_lock:
        before = set(self._lease.holds.get(Hold.CURSOR, ()))
        has_made = False
        self._setting_up += 1
        try:
            cursor = super(ConnectionReleaseMixin, self)._cursor(name)
            has_made = True
        finally:
            self._setting_up -= 1
            if not has_made:
                for who in set(self._lease.holds.get(Hold.CURSOR, ())) - before:
                    self._lease.happened(Event.CURSOR_CLOSED, who)
            if Hold.CURSOR not in self._lease.holds:
                self._settle()
        return cursor
