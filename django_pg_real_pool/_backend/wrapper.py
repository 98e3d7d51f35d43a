"""The upper layer of a made class: what must come before or after its base.

A made class is `(ConnectionReleaseMixin, <base>, LowerLayer)`.  A call passes the mixin,
then the base with all its overrides, then the lower layer, which stands just above
Django's `BaseDatabaseWrapper` and answers in its place what needs no connection.

Neither decides anything: `wrapper._lease` does.
"""

from __future__ import annotations

import time
from _thread import get_ident
from asyncio import _get_running_loop
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.db.backends import utils
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from .. import _drivers
from .._drivers import psycopg3
from .._lease import setup
from .._lease.facts import Phase, Pin, Use
from .._lease.lease import CONNECT, Lease
from .._lease.rule import Hold
from .._pools import database_of
from .._process import fork, registry
from .._process.locks import with_undo
from . import creation, hooks
from .cursor import hold_for, releasing_class
from .lower import LowerLayer
from .names import DJANGOS_QUERIES_LOGGED, SETTINGS_READ, as_written, undecorated
from .parts import replace_parts

if TYPE_CHECKING:
    from .names import Wrapper as _Base
else:
    _Base = object

fork.watch(psycopg3.cut_inherited, _drivers.cut_inherited)

# Django's own methods, unless a tool has patched them; and one without its decorator,
# which takes a seventh of the time of an empty block.
_MAKE_CURSOR = as_written(BaseDatabaseWrapper, "make_cursor")
_COMMIT, _commit_undecorated = undecorated(BaseDatabaseWrapper.commit)

POOLED = Use.POOLED
_ENDING = (Phase.RETURNING, Phase.CLOSING)


class ConnectionReleaseMixin(_Base):
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
    #: What the base overrides, read when the class was made.
    _hooks: ClassVar[hooks.Hooks]
    #: The one attribute that an instance has and its base has not.
    _lease: Lease

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if LowerLayer not in cls.__mro__:
            # Written by hand: `class DatabaseWrapper(ConnectionReleaseMixin, Base)`.
            cls.__bases__ = (*cls.__bases__, LowerLayer)
        _check_names(cls)
        cls._hooks = hooks.read(cls)
        registry.add_adapter(cls._hooks.pool)
        if cls._hooks.cursor:
            cls._cursor = _guarded_cursor  # type: ignore[assignment, method-assign]
        if cls._hooks.ensure:
            cls.ensure_connection = _guarded_ensure  # type: ignore[assignment, method-assign]
        replace_parts(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lease = Lease(self)
        super().__init__(*args, **kwargs)

    def __copy__(self) -> Any:
        """Return a wrapper that has no lease, and is in none of this one's blocks.

        If they shared the lease, the end of the copy would end it.
        """
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        copied._lease = Lease(copied)
        if self._lease.use is Use.UNPOOLED:  # as stock: they share the connection
            copied._lease.use = Use.UNPOOLED
        else:
            copied.connection = None
            copied._lease.is_base_unaware = self._hooks.close
            setup.reset_transaction_state(copied)
        return copied

    @property
    def pool(self) -> Any:
        """The base's pool, where it has such an attribute; never opened by reading it."""
        if self._lease.pool_stand_in is not None:
            return self._lease.pool_stand_in
        self._hooks.pool.prepare(self)
        return self._pool_of_base()

    def _pool_of_base(self) -> Any:
        return super().pool  # type: ignore[misc]

    def _logs_queries(self) -> bool:
        """Return `queries_logged`, but quickly if it is False: a block asks twice."""
        if (
            SETTINGS_READ.get("DEBUG") is False
            and not self.force_debug_cursor
            and type(self).queries_logged is DJANGOS_QUERIES_LOGGED
        ):
            return False
        return self.queries_logged

    # ##### Establishing and ending a connection #####

    @async_unsafe
    def connect(self) -> None:
        """Check a connection out and keep it until another hold ends, or `close()`.

        If there is one already, it is given back and the transaction state is reset, as
        with stock.  Raises what the driver or the pool raises; then none is checked out.
        """
        if not self._connect_early():
            super().connect()

    def _connect_early(self) -> bool:
        """Return False if there is no pool to connect to."""
        lease = self._lease
        if lease.phase is Phase.ASKED and lease.is_within:
            lease.open()
            return True
        if lease.is_held and not self.allow_thread_sharing:
            lease.drop()
            lease.end_session()
        # Between two leases it is Django's ensure_connection() that calls this: the
        # block that is open, and its transaction, go on.
        if not lease.begin(explicitly=True):
            return False
        lease.connected(not creation.is_under_way())
        return True

    def _connect_as_base(self) -> None:
        lease = self._lease
        was_connecting, connect = lease.is_connecting, super().connect

        def mark_and_connect() -> None:
            lease.is_connecting = True
            connect()

        with_undo(
            mark_and_connect, partial(setattr, lease, "is_connecting", was_connecting)
        )

    @async_unsafe
    def is_usable(self) -> bool:
        """Check the connection that there is, or else the one that a query would get."""
        lease = self._lease
        if lease.use is not POOLED:
            return super().is_usable()
        found = lease.with_connection(super().is_usable)
        if found is not None:
            return found
        if self._thread_sharing_count:
            # Another thread may be in its block, which must not be put aside.
            return self._is_usable_once_pinned()
        # The check is not the block's statement, so it must not begin its transaction.
        return setup.without_block(lease, self._is_usable_once_pinned)

    def _is_usable_once_pinned(self) -> bool:
        token = Pin()
        try:
            self._lease.pin(token, is_own=True)
        except DatabaseError:
            return False
        try:
            return super().is_usable()
        finally:
            self._lease.unpin(token)

    @async_unsafe
    def close(self) -> None:
        """End every hold and give the connection back; otherwise as stock.

        A cursor that is open still is cut off: executing on it raises InterfaceError,
        rows that were fetched already stay readable.
        """
        lease = self._lease
        if lease.use is not POOLED:
            super().close()
            return
        if lease.is_within and lease.phase in _ENDING:
            if lease.calls_base:
                lease.calls_base = False
                super().close()
            # Else it is a signal handler's, and the lease ends when that has returned.
            return
        self.validate_thread_sharing()
        try:
            if not lease.close(self._close_as_base):
                lease.close_unheld(self._close_as_base)
                self._note_closed_in_block()
        finally:
            lease.end_session_if_free()

    def _close_as_base(self) -> None:
        super().close()

    def _note_closed_in_block(self) -> None:
        """Note what stock's close() does, which would have had a connection to close."""
        if self.in_atomic_block:
            self.closed_in_transaction = self.needs_rollback = True

    def close_pool(self) -> None:
        """Close the alias's pool, and each other pool of the same database.

        The next checkout opens another.  Django asks for it before it clones or drops a
        database, which nobody may be connected to then.
        """
        for adapter in registry.adapters():
            adapter.close_all_of(database_of(self.settings_dict))
        self._hooks.pool.close(self)
        # Django's own would make a pool only to close it.  Where the engine has another pool,
        # somebody may have asked for Django's as well.
        if self._hooks.close_pool or self.alias in getattr(self, "_connection_pools", ()):
            super().close_pool()  # type: ignore[misc]

    def close_if_unusable_or_obsolete(self) -> None:
        lease = self._lease
        if lease.use is POOLED and self.connection is None:
            # Nothing is checked out, so there is nothing to test, only to forget.
            self.errors_occurred = False
            if self.autocommit is not lease.default_autocommit or (
                self.close_at is not None and time.monotonic() >= self.close_at
            ):
                self.close()
            return
        super().close_if_unusable_or_obsolete()
        if Hold.SESSION in lease.holds.now and not self.in_atomic_block:
            # With a CONN_MAX_AGE stock keeps the connection, but the session of one
            # request must not reach the next.
            self.close()
        if (
            lease.use is not Use.UNPOOLED
            and self.closed_in_transaction
            and self.in_atomic_block
            and not self.atomic_blocks
        ):
            # Closed in a block that was entered with autocommit off: stock's wrapper can't
            # be used from then on.  The block was left, so this one begins anew.
            self.in_atomic_block = self.closed_in_transaction = False

    @contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        # Stock closes what it opened, as told by `connection is None`.  Here that does not
        # mean that the wrapper is unused, and close() in a block would end the block.
        was_unused = self._lease.use is not POOLED and self.connection is None
        try:
            with self.cursor() as cursor:
                yield cursor
        finally:
            if was_unused:
                self.close()

    # ##### Ending a transaction #####

    def commit(self) -> None:
        self._end_transaction(self._commit_and_forget)

    def _commit_and_forget(self) -> None:
        self._commit_as_base()
        if self.connection is None:
            self._lease.unsent_savepoints.clear()

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
        self._end_transaction(self._roll_back_and_forget)

    def _roll_back_and_forget(self) -> None:
        super().rollback()
        if self.connection is None:
            self._lease.forget_transaction()
            self._lease.unsent_savepoints.clear()

    def _end_transaction(self, end: Callable[[], None]) -> None:
        has_none = self.connection is None and not self._thread_sharing_count
        if has_none or self._lease.use is not POOLED:
            end()
        else:
            self._validate_end_of_transaction()
            self._lease.end_transaction(end)

    def _validate_end_of_transaction(self) -> None:
        # As stock does next; but a call that is refused must not count as an end.
        self.validate_thread_sharing()
        self.validate_no_atomic_block()
        if CONNECT in self._lease.holds.now:
            # It ends with the transaction, which perhaps no cursor has noted: savepoints
            # and is_usable() begin one, too.
            self._lease.look_at_transaction()

    # ##### Cursors #####

    def validate_no_broken_transaction(self) -> None:
        # Django's cursors call it before each statement, also those that a tool made.
        lease = self._lease
        if lease.seen_by == get_ident():
            lease.seen_by = 0
        else:
            lease.unseen_statement()
        super().validate_no_broken_transaction()

    # LowerLayer._cursor() takes care of a subclass's own class of cursors.

    def make_cursor(self, cursor: Any) -> Any:
        if (
            self._lease.use is POOLED
            and self._hooks.plain_cursors
            and BaseDatabaseWrapper.make_cursor is _MAKE_CURSOR
        ):
            made = releasing_class(utils.CursorWrapper)(cursor, self)
            self._lease.cursor_opened(cursor)
            return made
        made = super().make_cursor(cursor)
        return hold_for(self, made)

    def make_debug_cursor(self, cursor: Any) -> Any:
        return hold_for(self, super().make_debug_cursor(cursor))


def _check_names(cls: type[ConnectionReleaseMixin]) -> None:
    given = getattr(cls, "once_per_connection", ())
    if isinstance(given, str):
        raise ImproperlyConfigured(
            f"{cls.__module__}.{cls.__qualname__}: once_per_connection is {given!r}; pass "
            f"a list of names: [{given!r}]."
        )
    unknown = sorted(set(given) - set(hooks.ONCE_PER_CONNECTION))
    if unknown:
        raise ImproperlyConfigured(
            f"{cls.__module__}.{cls.__qualname__}: once_per_connection can't have "
            f"{', '.join(map(repr, unknown))}; valid names are: "
            f"{', '.join(hooks.ONCE_PER_CONNECTION)}."
        )


def _guarded_cursor(self: ConnectionReleaseMixin, name: str | None = None) -> Any:
    """Stands above a base's own `_cursor()`."""
    make = super(ConnectionReleaseMixin, self)._cursor
    return self._lease.base_cursor(partial(make, name))


def _guarded_ensure(self: ConnectionReleaseMixin) -> None:
    """Stands above a base's own `ensure_connection()`, which may close and try again.

    Stock has connected where a block begins, so there nothing is done in the block.  Here its
    `close()` is not to end the block, nor what follows to begin anew.
    """
    ensure, lease = super(ConnectionReleaseMixin, self).ensure_connection, self._lease
    if (
        lease.use is not POOLED
        or self.connection is not None
        or lease.phase is not Phase.FREE
        or self.closed_in_transaction
        or self._thread_sharing_count
    ):
        ensure()
    else:
        lease.refuse_if_lost()
        setup.without_block(lease, ensure)
