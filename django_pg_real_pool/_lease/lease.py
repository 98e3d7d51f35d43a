"""One object per wrapper: the connection that it has, and why it has it.

`settle()` is where every lease ends: it brings the holds up to date and gives the
connection back if none is left.  `take()` is where every lease begins.
"""

from __future__ import annotations

import logging
import sys
import threading
from _thread import get_ident
from collections.abc import Callable, Hashable
from functools import cache, partial
from time import monotonic
from typing import Any
from weakref import ref

from django.db import OperationalError
from django.db.backends.utils import debug_transaction

from .. import observers
from .._drivers import Heard, Statement
from .._process import greenlets, reaper, registry
from .._process.locks import locked, try_locked, with_undo
from .._process.weak import WeakBag
from .._settings import ReleaseOptions, warns_of_unclosed_cursors
from . import (
    cursors,
    giving_back,
    keeping,
    outside,
    pins,
    setup,
    statements,
    telling,
    transactions,
)
from .facts import Debt, Phase, Transaction, Use
from .rule import Event, Finder, Hold, Holds
from .status import explain_exhaustion

logger = logging.getLogger("django_pg_real_pool")

# What each query needs: before Python 3.12, to look a member up in its enum is slow.
CONNECT, CURSOR, PIN, TRANSACTION = Hold.CONNECT, Hold.CURSOR, Hold.PIN, Hold.TRANSACTION
CURSOR_OPENED, CURSOR_CLOSED = Event.CURSOR_OPENED, Event.CURSOR_CLOSED
FREE, TAKING, HELD = Phase.FREE, Phase.TAKING, Phase.HELD
POOLED = Use.POOLED
NONE, BEGUN, LOST = Transaction.NONE, Transaction.BEGUN, Transaction.LOST
CLEANING = Debt.CLEANING


class Lease:
    """The connection of one wrapper, with its holds and all that is known of it.

    Unlike the wrapper it is not Django's; unlike `Holds` it acts.  Methods that belong
    together have a file of their own beside this one.  Only they write its attributes.
    """

    def __init__(self, wrapper: Any) -> None:
        #: Django's wrapper.  `wrapper.connection` is the connection, or None.
        self.wrapper = wrapper
        #: What the wrapper's class overrides, and its pool and driver.
        self.hooks: Any = wrapper._hooks
        #: Why the wrapper has a connection now.
        self.holds = Holds()
        #: See `locked`.  Threads may share a wrapper, and the reaper looks at all.
        self._lock = threading.RLock()
        self._holder = 0
        #: What a pool notes as the borrower.
        self.me = ref(self)
        #: The thread that the wrapper belongs to, or the greenlet that stands for it.  Not
        #: the one that used it first: a shared wrapper may be used by another, which may end
        #: long before its owner.
        self.owner = greenlets.current()
        #: What the wrapper has been used for since close().
        self.use = Use.NONE
        #: Where the connection is.
        self.phase = FREE
        #: The driver's own connection, of which a pool may have given out a proxy.
        self.physical: Any = None
        #: The transaction, from its first statement to its end.
        self.transaction = NONE
        #: Whether the last commit() or rollback() has failed, and left its transaction open.
        self.is_end_missing = False
        #: Whether the connection was found broken at its checkout, before any use.
        self.is_rejected = False
        #: What the session owes before anybody else may have the connection.
        self.debt = Debt.NOTHING
        #: Whether the base's `close()` has still to run for a lease that is over: in a copy
        #: of a wrapper that had one, and in a forked child.
        self.is_base_unaware = False
        #: What this session's connections must have heard before they are used: the
        #: statements of its last announcement.  None: connection_created is to be sent.
        self.heard: Heard | None = None
        #: Where statements are noted now that belong to the connection and not to the user:
        #: while it is set up, and in a base's own `_cursor()`.
        self.noting: list[Statement] | None = None
        #: The thread that has looked at the statement which it is about to send; or 0.
        self.seen_by = 0
        #: Above 0 while an execute wrapper of the user's is at work.
        self.wrapping = 0
        #: What a base's own `_cursor()` has sent during this lease; None: it has not run.
        self.sent_by_base: Heard | None = None
        #: The pool that serves this session; the pool's adapter writes it.
        self.source: Any = None
        #: What Django finds in place of its pool, while it is introduced to a connection
        #: that is checked out; the adapter writes it.
        self.pool_stand_in: Any = None
        self.options = ReleaseOptions()
        #: Whether to note where cursors are opened.
        self.records_origins = False
        #: Savepoints of open blocks that wait for a connection, each with the execute
        #: wrappers of its moment.  Empty while there is a lease.
        self.unsent_savepoints: list[tuple[str, list[Any]]] = []
        #: Whether an atomic block switched autocommit off, not the user.
        self.is_off_by_atomic = False
        #: Cursors that were closed where nothing may be released at once.
        self.closed_elsewhere: list[tuple[Hashable, Finder | None]] = []
        #: The names of the open cursors that have a portal on the server.
        self.portals: dict[Hashable, str] = {}
        #: Above 0 while the connection is to stay whatever ends, but for `close()`: within
        #: the lock, while a method of the base runs that may send statements, or a section
        #: is at work that a finaliser or a signal handler may come between.
        self.kept = 0
        #: The same, without the lock: whoever commits, say, which may wait for other threads
        #: that share the wrapper.
        self.keepers: set[object] = set()
        #: Whether the end of a lease is about to call `close()`, so that the base hears of it.
        #: Whoever else calls it meanwhile, such as a signal handler, has come too late.
        self.calls_base = False
        #: Whether a base's `close()` runs for a connection that has gone, in the midst of the
        #: next lease or of an end.
        self.is_forgetting = False
        #: Whether a base's `connect()` runs, for the lease that begins.
        self.is_connecting = False
        #: The threads that are in a base's `close()` which has no connection to close.
        self.closers: set[int] = set()
        #: What observers are told of this lease; None: it is not observed.
        self.record: observers.Lease | None = None
        #: What is put aside while an observer is told; None: nobody was told yet.
        self.visit: telling.Visit | None = None
        #: The pins that are not the user's.
        self.own_pins: set[Hashable] = set()
        #: The user's that were entered and not left.  close() ends their holds, but the user
        #: goes on in the block, and may still do there what nobody sees.
        self.open_pins: WeakBag[Hashable] = WeakBag()
        registry.add_lease(self)

    def __repr__(self) -> str:
        return (
            f"<Lease of {self.alias!r}: {', '.join(self.holds.describe()) or 'no holds'}>"
        )

    def __del__(self) -> None:
        # Not from here: this may be any thread, inside the pool's own lock.
        if self.use is POOLED and self.wrapper.connection is not None:
            reaper.run_soon(partial(self.give_up, "was dropped with a connection"))
        else:
            self.hooks.pool.forget(self)  # where its end was interrupted
            # As Django's own parts of a wrapper do from 6.0 on: the collector need not.
            del self.wrapper

    # ##### What it is made of #####

    @property
    def alias(self) -> str:
        return str(self.wrapper.alias)

    @property
    def has_introduced(self) -> bool:
        return self.heard is not None

    @property
    def notices_closing(self) -> bool:
        return bool(self.hooks.driver.notices_closing)

    @property
    def default_autocommit(self) -> bool:
        return bool(self.wrapper.settings_dict["AUTOCOMMIT"])

    @property
    def is_held(self) -> bool:
        """Whether the wrapper has a connection that it took from a pool."""
        return self.use is POOLED and self.wrapper.connection is not None

    @property
    def is_within(self) -> bool:
        """Whether this thread is in a critical section of the lease's."""
        return self._holder == get_ident()

    def pool_of_base(self) -> Any:
        return self.wrapper._pool_of_base()

    def is_going(self) -> None:
        """Note that from here on the pool may have the connection: it must not be used.

        A `_close()` of the base's own may use it still, before it gives it back.
        """
        if not self.hooks.own_close:
            self.phase = Phase.RETURNED

    def let_go(self) -> Any:
        """Forget the connection and return it: from here on, the pool has it."""
        connection = self.wrapper.connection
        self.wrapper.connection = self.physical = None
        self.phase = FREE
        self.debt = Debt.NOTHING
        self.sent_by_base = None
        self.is_rejected = False
        if self.holds.now:
            self.holds.happened(Event.CLOSED)
        return connection

    def has_lost(self, connection: Any) -> bool:
        """Return whether a connection that is lent to this one is certainly not here."""
        has_lost = try_locked(self, lambda: self.wrapper.connection is not connection)
        return bool(has_lost)  # None: its thread is at work, perhaps taking it

    def lacks(self, connection: Any) -> bool:
        """Return whether a connection that is lent to this one is lost, as `get()` asks.

        Not if a signal handler asks in the midst of another lease's begin or end: that one
        may have the connection in its hands.
        """
        return self.wrapper.connection is not connection and not _is_nested()

    def describe_holds(self) -> list[str]:
        """Return the holds in words, as they are now; of any thread's wrapper."""
        described = self.holds.describe()
        # The driver is asked within the lock: else the connection could be closed, and its
        # memory freed, while it answers.
        if self.is_within:
            has_unnoted = self._has_unnoted_transaction()
        else:
            has_unnoted = try_locked(self, self._has_unnoted_transaction)
        if has_unnoted:
            described.append(TRANSACTION.value)
        return described

    def _has_unnoted_transaction(self) -> bool:
        """Return whether there is a transaction that is noted when its cursor is closed."""
        physical = self.physical
        return (
            physical is not None
            and TRANSACTION not in self.holds.now
            and bool(self.hooks.driver.transaction(physical, self.wrapper.autocommit))
        )

    # ##### A session: from the first use to close() #####

    def begin(self, explicitly: bool = False) -> bool:
        """Do what stock's connect() does before it connects; return whether it is pooled.

        Nothing happens if that was done since close().  Raises ProgrammingError, as
        stock does, where the block that was open at close() is open still.
        """
        if self.use is POOLED:
            return True
        if self.use is Use.UNPOOLED and self.wrapper.connection is not None:
            return False
        return self._begin(explicitly)

    @locked
    def _begin(self, explicitly: bool) -> bool:
        wrapper = self.wrapper
        if self.use is POOLED:  # by now: a thread that shares the wrapper has begun
            return True
        if self.visit is not None and self.visit.is_open:
            telling.admit(self)
        if wrapper.in_atomic_block and wrapper.closed_in_transaction and not explicitly:
            wrapper.ensure_connection()  # raises
        if self.is_base_unaware:
            self.is_base_unaware = False
            giving_back.let_base_forget(self)
        self.options = ReleaseOptions.read(wrapper.settings_dict, wrapper.alias)
        self.records_origins = self.options.track_origins or warns_of_unclosed_cursors()
        if not self.hooks.pool.releases(wrapper):
            self.use = Use.UNPOOLED
            return False
        greenlets.refuse_if_late()
        reaper.start()
        runs_callbacks = wrapper.run_commit_hooks_on_set_autocommit_on
        setup.reset_transaction_state(wrapper)
        self.unsent_savepoints.clear()
        wrapper.autocommit = self.default_autocommit
        if not wrapper.autocommit:  # else stock has switched it on, and run them
            wrapper.run_commit_hooks_on_set_autocommit_on = runs_callbacks
        self.is_off_by_atomic = False
        self.transaction = NONE
        wrapper.health_check_enabled = wrapper.settings_dict["CONN_HEALTH_CHECKS"]
        max_age = wrapper.settings_dict["CONN_MAX_AGE"]
        wrapper.close_at = None if max_age is None else monotonic() + max_age
        wrapper.closed_in_transaction = False
        wrapper.errors_occurred = False
        wrapper.health_check_done = True
        self.use = POOLED  # last: an interruption leaves nothing half done
        if not wrapper.autocommit:
            self.log_unsent("BEGIN")
        return True

    def begin_again(self) -> None:
        """Go on to take, where a base's own `connect()` has closed in the midst of it."""
        if self.is_held:
            self.drop()
        self.begin(explicitly=True)
        self.phase = TAKING

    def end_session(self) -> None:
        """Forget what outlives a lease; the next use begins anew."""
        self.holds.happened(Event.CLOSED)
        self.unsent_savepoints.clear()
        self.heard = self.source = None
        self.own_pins.clear()
        self.use = Use.NONE

    @locked
    def end_session_if_free(self) -> None:
        """Forget it, unless an interruption has left something for the next close().

        Nor if a thread that shares the wrapper has begun a lease meanwhile.
        """
        if self.wrapper.connection is None and self.phase is FREE:
            self.end_session()

    def log_unsent(self, sql: str) -> None:
        """Log what stock logs, though nothing is sent, or not yet."""
        if self.wrapper._logs_queries():
            with debug_transaction(self.wrapper, sql):
                pass

    # ##### Taking a connection #####

    def take(self) -> None:
        """Begin a lease that has no hold yet.  When it raises, there is none."""
        wrapper = self.wrapper
        try:
            if self.transaction is not NONE:
                transactions.refuse_if_lost(self)
            if self.hooks.has_replaced_connect(wrapper):
                self._take_through_django()
                return
            try:
                self.open()
            except Exception:
                with wrapper.wrap_database_errors:
                    raise
        except Exception as error:
            if wrapper.in_atomic_block:
                # A statement of this block was lost, so none of it may be committed.
                wrapper.needs_rollback = True
                wrapper.rollback_exc = error
            raise

    def _take_through_django(self) -> None:
        """Take by way of ensure_connection(), because somebody replaced something.

        Test runners do that to forbid the database.  Django's own method refuses a block
        whose connection was closed.  It arrives at `connect()`, and so at `open()`.
        """
        try:
            if self.phase is Phase.RETURNED:
                giving_back.forget(self)  # what was interrupted, the last time
            self.phase = Phase.ASKED
            ask = partial(keeping.keep_while, self, self._ensure_connection)
            if self.wrapper.closed_in_transaction:
                ask()  # which Django refuses
            else:
                # As where stock connects: whoever closes first ends no block.
                setup.outside_transaction(self, ask)
                setup.bring_up_to_date(self)
        except BaseException:
            self.drop()
            raise

    def _ensure_connection(self) -> None:
        self.wrapper.ensure_connection()
        if self.wrapper.connection is None:  # whoever replaced it did not connect
            raise OperationalError("ensure_connection() has returned without a connection")

    with_connection = keeping.with_connection

    def open(self) -> None:
        """Get a connection and make it ready.  When it raises, there is none."""
        wrapper, hooks = self.wrapper, self.hooks
        if self.phase is not FREE and self.is_forgetting:
            raise OperationalError(
                f"the close() of database alias {self.alias!r} wants a connection to query, "
                "but that which it is to close has gone already"
            )
        try:
            if self.phase is not FREE:
                self._forget_interrupted()
            self.phase = TAKING
            if hooks.connect:
                # It arrives at the lower layer's connect().
                connect = partial(setup.noting, self, [], wrapper._connect_as_base)
                setup.outside_transaction(self, connect)
                self.physical = self.hooks.pool.physical(wrapper.connection)
                transactions.end_transaction_of_set_up(self)
                setup.bring_up_to_date(self)
            else:
                self.get()
                if self.heard is None or hooks.init_every_time:
                    setup.set_up(self)
                    setup.bring_up_to_date(self)
                else:
                    # Nearly always: the connection can be used as it is.
                    now = self.holds.since = monotonic()
                    mode = hooks.driver.mode_if_ready(
                        self.physical, self.heard, self.options.check_after_idle, now
                    )
                    if mode is None:
                        setup.set_up(self)
                        setup.bring_up_to_date(self)
                    elif mode is not wrapper.autocommit or self.unsent_savepoints:
                        setup.bring_up_to_date(self)
            if self.options.warn_held_after is not None and self.record is None:
                self.holds.watch()
            if self.open_pins:
                pins.owe_for_hand(self)
            self.phase = HELD
        except BaseException:
            self.drop()
            self.transaction = NONE  # one of receivers; there is none of the user's
            raise

    def _forget_interrupted(self) -> None:
        """Clean up where an interruption has left the lease before this one."""
        if self.phase is Phase.RETURNED:
            giving_back.forget(self)
        elif self.wrapper.connection is not None:
            self.drop()
        elif self.phase is not Phase.ASKED:
            giving_back.forget(self)
        if self.record is not None:
            telling.given_back(self)

    def get(self) -> None:
        """Get a connection from the pool, whatever state it is in."""
        pool, started = self.hooks.pool, monotonic()
        try:
            connection = self.wrapper.connection = pool.take(self)
        except pool.exhausted() as error:
            waited = monotonic() - started
            if observers.listening:
                telling.timed_out(self, waited)
            message = explain_exhaustion(self, waited)
            of_pool: Any = type(error)
            raise _exhausted(of_pool)(message) from error
        self.physical = connection if pool.is_bare else pool.physical(connection)
        if observers.listening:
            telling.taken(self, started)
            if self.wrapper.connection is None:
                self.get()  # an observer needed it

    # ##### Cursors #####

    open_cursor = cursors.open_cursor
    base_cursor = cursors.base_cursor
    cursor_opened = cursors.cursor_opened
    cursor_closed = cursors.cursor_closed
    end_portal_elsewhere = cursors.end_portal_elsewhere

    # ##### What the session owes #####

    @property
    def is_pinned(self) -> bool:
        """Whether the user has pinned the connection, or connected by hand in a pin."""
        return any(who not in self.own_pins for who in self.holds.now.get(PIN, ()))

    def owe(self, debt: Debt) -> None:
        """Let the session owe at least so much when the lease ends."""
        if not self.debt:
            self._look_at_driver_side()
        self.debt = max(self.debt, debt)

    def _look_at_driver_side(self) -> None:
        """Remember how the connection is, before somebody may change what no reset undoes."""
        physical = self.physical
        if physical is not None:
            self.hooks.driver.snapshot(physical)

    # ##### Statements #####

    session_changes = statements.session_changes
    before_statement = statements.before_statement
    unseen_statement = statements.unseen_statement
    note = statements.note

    # ##### Pins and explicit connects #####

    pin = pins.pin
    unpin = pins.unpin
    connected = pins.connected

    # ##### Transactions #####

    look_at_transaction = transactions.look_at_transaction
    end_transaction = transactions.end_transaction
    forget_transaction = transactions.forget_transaction
    refuse_if_lost = transactions.refuse_if_lost
    cut_if_stuck = transactions.cut_if_stuck

    # ##### Settling #####

    def has_connection(self) -> bool:
        """Return whether a connection is here to be used."""
        return self.wrapper.connection is not None and self.phase is not Phase.RETURNED

    @locked
    def settle(self) -> None:
        self._settle()

    def _settle(self, is_over: bool = False, raw: Any = None) -> None:
        """Bring the holds up to date with the connection; release if none is left.

        `is_over`: the transaction has ended, though the driver may not see it.  `raw`: the
        driver's cursor that was closed just now.
        """
        if self.phase is not HELD or self.kept or self.keepers:
            return
        wrapper, holds, lost = self.wrapper, self.holds.now, None
        try:
            self.kept = 1
            physical = self.physical  # from here on no finaliser ends the lease
            if wrapper.connection is not None and (
                self.closed_elsewhere or CURSOR in holds
            ):
                lost = cursors.reclaim(self)
            if (
                wrapper.connection is not None
                and not is_over
                and (
                    self.transaction is not NONE
                    or TRANSACTION in holds
                    or physical is not wrapper.connection
                    or self.hooks.driver.transaction(physical, wrapper.autocommit)
                    is not False
                )
            ):
                transactions.look(self, raw)
            self.kept = 0
        except BaseException:
            self.kept = 0
            raise
        if not holds and self.phase is HELD and wrapper.connection is not None:
            giving_back.end(self)
        if lost:
            cursors.warn_of(lost)

    # ##### Ending, whoever holds it #####

    @locked
    def drop(self, close: Callable[[], None] | None = None) -> None:
        """End the lease, whoever holds it, by `close` if stock's is wanted."""
        cursors.cut_off(self)
        self.holds.happened(Event.CLOSED)
        if close is not None or self.wrapper.connection is not None:
            giving_back.end(self, close=close)
        elif self.phase is not FREE:
            giving_back.forget(self)
            if self.record is not None:
                telling.given_back(self)

    @locked
    def close(self, close: Callable[[], None]) -> bool:
        """End the lease by stock's `close`; return False if there was no connection."""
        if self.wrapper.connection is not None:
            self.drop(close)
            return True
        if self.phase is not FREE:
            self.drop()  # its end was interrupted
        return False

    def close_unheld(self, close: Callable[[], None]) -> None:
        """Let a base's `close()` run for a wrapper that has no connection.

        It runs without the lock, so a thread that shares the wrapper may take one meanwhile,
        which it must not close.
        """
        me = get_ident()

        def mark_and_close() -> None:
            self.closers.add(me)
            close()

        with_undo(mark_and_close, partial(self.closers.discard, me))

    # ##### From outside: the reaper, and a forked child #####

    reap = outside.reap
    give_up = outside.give_up
    forget_parent = outside.forget_parent


def _is_nested() -> bool:
    """Return whether this thread takes or gives a connection more than once at a time."""
    frame, found = sys._getframe(), 0
    while frame is not None:
        found += frame.f_code in _MOVING
        frame = frame.f_back  # type: ignore[assignment]
    return found > 1


_MOVING = (Lease.get.__code__, giving_back.end.__code__)


@cache
def _exhausted(of_pool: Any) -> Any:
    """Return Django's class of error that is the pool's as well.

    connect() raises the pool's class as stock does; everything else, Django's.
    """
    return type(of_pool.__name__, (OperationalError, of_pool), {})
