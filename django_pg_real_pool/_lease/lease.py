"""One object per wrapper: the connection that it has, and why it has it.

`settle()` is where every lease ends: it brings the holds up to date and gives the
connection back if none is left.  `take()` is where every lease begins.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from _thread import get_ident
from collections.abc import Callable, Hashable
from functools import cache, partial
from time import monotonic
from typing import Any
from weakref import ref

from django.db import OperationalError
from django.db.backends.utils import debug_transaction
from django.utils.asyncio import async_unsafe

from .. import observers
from .._drivers import Heard, Statement
from .._process import collector, greenlets, reaper, registry
from .._process.locks import T, locked, try_locked, with_undo
from .._process.origins import find_origin
from .._process.weak import WeakBag
from .._settings import ReleaseOptions, SessionPolicy, warns_of_unclosed_cursors
from . import giving_back, outside, setup, statements, telling
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

    Unlike the wrapper it is not Django's; unlike `Holds` it acts.  Only its own methods,
    and those of `setup` and `giving_back`, write its attributes.
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
                self.refuse_if_lost()
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

    def refuse_if_lost(self) -> None:
        """Raise OperationalError if a transaction has begun whose connection is gone."""
        if self.transaction is not NONE and self.wrapper.connection is None:
            self.transaction = LOST
            raise OperationalError(
                f"the connection of database alias {self.alias!r} is lost, and the "
                "transaction with it: no statement can be sent until the block ends, or "
                "rollback() or close() is called"
            )

    def _take_through_django(self) -> None:
        """Take by way of ensure_connection(), because somebody replaced something.

        Test runners do that to forbid the database.  Django's own method refuses a block
        whose connection was closed.  It arrives at `connect()`, and so at `open()`.
        """
        try:
            if self.phase is Phase.RETURNED:
                giving_back.forget(self)  # what was interrupted, the last time
            self.phase = Phase.ASKED
            self._keeping(self._ensure_connection)
        except BaseException:
            self.drop()
            raise

    def _ensure_connection(self) -> None:
        self.wrapper.ensure_connection()
        if self.wrapper.connection is None:  # whoever replaced it did not connect
            raise OperationalError("ensure_connection() has returned without a connection")

    def _secure(self, take: Callable[[], None]) -> None:
        """Take a connection if there is none, and add one to `kept`.

        The caller brings that back, also when this raises.
        """
        kept = self.kept
        while True:
            if not self.has_connection():
                if self.use is not POOLED:
                    self.begin()  # a thread that shares the wrapper has closed it
                take()
            self.kept = kept + 1
            if self.has_connection():
                return
            self.kept = kept  # a signal handler's query has ended what was taken

    def _once_secure(self, take: Callable[[], None], do: Callable[[], None]) -> None:
        """Take a connection if there is none, and keep it until `do` has returned."""
        kept = self.kept

        def secure_and_do() -> None:
            self._secure(take)
            do()

        with_undo(secure_and_do, partial(setattr, self, "kept", kept))

    def _keeping(self, do: Callable[[], T]) -> T:
        """Return what `do` returns; until then the connection is kept."""
        kept = self.kept

        def keep_and_do() -> T:
            self.kept = kept + 1
            return do()

        return with_undo(keep_and_do, partial(setattr, self, "kept", kept))

    def with_connection(
        self, do: Callable[[], T], otherwise: Callable[[], None] = lambda: None
    ) -> T | None:
        """Return what `do` returns; until then nobody but close() gives the connection back.

        Not the reaper, nor a thread that shares the wrapper, nor a finaliser.  Where there
        is no connection, `otherwise` is done, within the lock, and None is returned.
        """
        keeper = object()

        def keep_and_do() -> T | None:
            return do() if self._keep(keeper, otherwise) else None

        return with_undo(keep_and_do, partial(self._end_keeping, keeper))

    @locked
    def _keep(self, keeper: object, otherwise: Callable[[], None]) -> bool:
        self.keepers.add(keeper)  # first: a finaliser may end the lease before that
        if self.has_connection():
            return True
        self.keepers.discard(keeper)
        otherwise()
        return False

    @locked
    def _end_keeping(self, keeper: object, is_over: bool = False) -> None:
        self.keepers.discard(keeper)
        self._settle(is_over)

    def open(self) -> None:
        """Get a connection and make it ready.  When it raises, there is none."""
        wrapper, hooks = self.wrapper, self.hooks
        try:
            if self.phase is not FREE:
                self._forget_interrupted()
            self.phase = TAKING
            if hooks.connect:
                # It arrives at the lower layer's connect().
                connect = partial(setup.noting, self, [], wrapper._connect_as_base)
                setup.outside_transaction(self, connect)
                self.physical = self.hooks.pool.physical(wrapper.connection)
                self.end_transaction_of_set_up()
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
                self._owe_for_hand()
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

    def cursor_opened(self, raw: Any) -> None:
        """Hold the lease for a driver's cursor, until it is closed."""
        find: Finder
        try:
            find = ref(raw)
        except TypeError:
            find = partial(_same, raw)  # can't be found dropped: held until close()
        self.holds.happened(CURSOR_OPENED, id(raw), find)
        if self.records_origins:
            self.holds.origins[id(raw)] = find_origin()

    def cursor_closed(self, raw: Any) -> None:
        """End a cursor's hold.  A cursor of an earlier lease changes nothing."""
        if collector.here.is_at_work or (
            get_ident() != self.wrapper._thread_ident
            and not self.wrapper.allow_thread_sharing
        ):
            # Leave it to this wrapper's next entry, or to the reaper.
            who = id(raw)
            find = self.holds.now.get(CURSOR, {}).get(who)
            self.closed_elsewhere.append((who, find))
            return
        self._cursor_closed(raw)

    @locked
    def _cursor_closed(self, raw: Any) -> None:
        who = id(raw)
        if self.portals and self.portals.pop(who, None) is not None:
            self._detach(raw)  # closed as it is, execute() would send CLOSE
            self._note_portal_left()
        self.holds.happened(CURSOR_CLOSED, who)
        self._settle(raw=raw)

    def _note_portal_left(self) -> None:
        """A portal can't be closed in a failed transaction, and may outlive its rollback."""
        if self.physical is not None and self.hooks.driver.has_failed(self.physical):
            self.owe(CLEANING)

    @locked
    def open_cursor(self, name: str | None) -> Any:
        """Make a Django cursor that holds the lease, which begins with it if need be."""
        wrapper, kept = self.wrapper, self.kept
        had_connection = self.has_connection()
        try:
            self._secure(self.take)
            if had_connection:
                self.reclaim_cursors()
                if self.physical is not None:
                    self._look_at_transaction()
                if self.hooks.health_check or not wrapper.health_check_done:
                    wrapper.close_if_health_check_failed()
                    if wrapper.connection is None:
                        self.begin()
                        self.take()
            try:
                cursor = wrapper._make_cursor(name)
            except Exception:
                with wrapper.wrap_database_errors:
                    raise
            self.kept = kept
        except BaseException:
            self.kept = kept
            self._settle()
            raise
        if name is not None:
            self.portals[id(cursor.cursor)] = name
        return cursor

    @locked
    def base_cursor(self, make: Callable[[], Any]) -> Any:
        """Make a cursor by a base's own `_cursor()`, which may run statements, and raise."""
        if not self.begin():
            return make()
        before, has_made = set(self.holds.now.get(CURSOR, ())), False
        try:
            cursor = self._keeping(partial(setup.make_base_cursor, self, make))
            has_made = True
        finally:
            if not has_made:
                for who in set(self.holds.now.get(CURSOR, ())) - before:
                    self.holds.happened(CURSOR_CLOSED, who)
            if CURSOR not in self.holds.now:
                self._settle()
        return cursor

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
        if self.physical is not None:
            self.hooks.driver.snapshot(self.physical)

    # ##### Statements #####

    session_changes = statements.session_changes
    before_statement = statements.before_statement
    unseen_statement = statements.unseen_statement
    note = statements.note

    # ##### Pins and explicit connects #####

    @async_unsafe
    def pin(self, token: Hashable, is_own: bool = False) -> None:
        """Hold the lease until `unpin(token)`; take a connection if need be.  A token can be
        referred to weakly.

        A user's pin ends with a clean session, because nobody sees what is done through
        the driver.  One that `is_own`, of this library, owes nothing.
        """
        self.wrapper.validate_thread_sharing()
        if not self.begin():
            self.wrapper.ensure_connection()  # without a pool it is kept anyway
            return
        self._pin(token, is_own)

    @locked
    def _pin(self, token: Hashable, is_own: bool) -> None:
        self._once_secure(self.take, partial(self._note_pin, token, is_own))
        if self.options.track_origins:
            self.holds.origins[token] = find_origin()

    def _note_pin(self, token: Hashable, is_own: bool) -> None:
        if is_own:
            self.own_pins.add(token)
            self._look_at_driver_side()
        else:
            self.open_pins.add(token)
            self._owe_for_hand()
        self.holds.happened(Event.PIN_ENTERED, token)

    def _owe_for_hand(self) -> None:
        """Let the session be cleaned, because nobody sees what the user does by hand."""
        if self.options.session_state is not SessionPolicy.IGNORE:
            self.owe(CLEANING)

    @locked
    def unpin(self, token: Hashable) -> None:
        driver = self.hooks.driver
        try:
            if (
                token in self.own_pins
                and self.physical is not None
                and driver.has_new_types(self.physical)
            ):
                # Registered with one connection, after an extension was made, say.
                driver.snapshot(self.physical)
                driver.forget_others(self.physical)
        finally:
            self.own_pins.discard(token)
            self.open_pins.discard(token)
            self.holds.happened(Event.PIN_LEFT, token)
            self._settle()

    @locked
    def connected(self, is_kept: bool) -> None:
        """Begin the lease that user code has asked for by `connect()`."""
        self.refuse_if_lost()
        self._once_secure(self.open, self._note_connect if is_kept else lambda: None)
        self._settle()

    def _note_connect(self) -> None:
        self._owe_for_hand()  # as under a pin: it is as deliberate
        self.holds.happened(Event.CONNECTED)

    # ##### Transactions #####

    def _transaction_began(self) -> None:
        self.holds.happened(Event.TRANSACTION_BEGAN)
        self.transaction = BEGUN
        if self.options.track_origins:
            self.holds.origins[None] = find_origin()

    def _transaction_ended(self) -> None:
        self.transaction = NONE
        self.holds.happened(Event.TRANSACTION_ENDED)

    @locked
    def look_at_transaction(self) -> None:
        """Note a transaction that no cursor has noted yet."""
        self._look_at_transaction()

    def _look_at_transaction(self, raw: Any = None) -> None:
        in_transaction = self._is_in_transaction()
        if in_transaction:
            if TRANSACTION not in self.holds.now:
                self._transaction_began()
        elif in_transaction is False and (
            self.transaction is BEGUN or TRANSACTION in self.holds.now
        ):
            if not self.hooks.driver.is_busy(self.physical):  # whose answer is yet to come
                self._transaction_ended()
        elif in_transaction is None and self.hooks.driver.may_have_begun(raw):
            self._transaction_began()
        # None: the connection is broken, which does not end what began on it.

    def _is_in_transaction(self) -> bool | None:
        """Ask the driver; None: the connection is broken, or went away behind our back."""
        connection, physical = self.wrapper.connection, self.physical
        if physical is not connection and (
            physical is None or self.hooks.pool.physical(connection) is not physical
        ):
            return None
        in_transaction = self.hooks.driver.transaction(physical, self.wrapper.autocommit)
        return in_transaction  # type: ignore[no-any-return]

    def cut_if_stuck(self) -> None:
        """Close a connection that an interruption has left locked, and unlock it.

        Whoever uses it would wait for ever, even where it is closed.  Where threads share
        it, another may be using it now.
        """
        physical = self.physical
        if (
            physical is not None
            and not self.wrapper.allow_thread_sharing
            and self.hooks.driver.is_stuck(physical)
        ):
            self.hooks.driver.cut(physical)

    def end_transaction(self, commit_or_roll_back: Callable[[], None]) -> None:
        """End the transaction by Django's `commit()` or `rollback()`, and settle.

        That comes before Django switches autocommit on, and so before the callbacks of
        on_commit() run.
        """
        keeper, physical, has_returned = object(), None, False

        def keep_and_do() -> None:
            nonlocal physical, has_returned
            # Also where there is no connection: a thread that shares the wrapper may take one.
            self.keepers.add(keeper)
            physical = self._get_physical()
            commit_or_roll_back()
            has_returned = True

        with_undo(keep_and_do, lambda: self._note_end(keeper, physical, has_returned))

    @locked
    def _get_physical(self) -> Any:
        return self.physical  # not while somebody gives it back

    @locked
    def _note_end(self, keeper: object, physical: Any, was_told: bool) -> None:
        is_over = False
        try:
            if self.physical is physical:  # else a thread that shares the wrapper closed it
                is_over = self._look_at_end(was_told)
        finally:
            self._end_keeping(keeper, is_over)

    def _look_at_end(self, was_told: bool) -> bool:
        """Return whether the transaction is over, as far as the driver can't see it.

        `was_told`: commit() or rollback() has returned.  If it has raised and the connection
        is broken, the transaction has ended, too.
        """
        if self.wrapper.connection is None:
            return False
        if not was_told:
            self.cut_if_stuck()
            self._end_if_cut_short()
        in_transaction = self._is_in_transaction()
        self.is_end_missing = bool(in_transaction) and not was_told
        if in_transaction is not None and not (was_told and self.hooks.driver.guesses):
            return False
        if not was_told:
            self._forget_callbacks()
        self._transaction_ended()
        return True

    def _end_if_cut_short(self) -> None:
        """Close a connection whose COMMIT or ROLLBACK was left before the answer came.

        Django switches autocommit on next, which would raise an error of its own, in the
        place of the time limit, say, that has cut it short.
        """
        physical, driver = self.physical, self.hooks.driver
        is_mine = physical is not None and not self.wrapper.allow_thread_sharing
        if is_mine and driver.mark_used(physical) is None:
            driver.end(physical)

    def end_transaction_of_set_up(self) -> None:
        """Note that what receivers or a base began, while a connection is taken, has ended.

        They may have left one open: then it goes on.
        """
        if (
            self.phase is TAKING
            and self.wrapper.connection is not None
            and (self.transaction is not NONE or TRANSACTION in self.holds.now)
            and not self._is_in_transaction()
        ):
            self._transaction_ended()

    def forget_transaction(self) -> None:
        """Note the end of a transaction whose connection is gone."""
        if self.transaction is not NONE and self.wrapper.connection is None:
            self._forget_callbacks()
            self._transaction_ended()

    def _forget_callbacks(self) -> None:
        """Let no callback run of a transaction that is lost."""
        self.wrapper.run_on_commit = []
        self.wrapper.run_commit_hooks_on_set_autocommit_on = False

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
                lost = self._reclaim_cursors()
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
                self._look_at_transaction(raw)
            self.kept = 0
        except BaseException:
            self.kept = 0
            raise
        if not holds and self.phase is HELD and wrapper.connection is not None:
            giving_back.end(self)
        if lost:
            self._warn_of(lost)

    def reclaim_cursors(self) -> None:
        if self.closed_elsewhere or CURSOR in self.holds.now:
            self._warn_of(self._reclaim_cursors())

    def _reclaim_cursors(self, politely: bool = True) -> list[str]:
        """End the holds of cursors that were dropped, or closed where it was unsafe.

        Return a message for each that was dropped, for `_warn_of()`.  That comes last,
        because a warning may be an error.
        """
        holds, lost = self.holds, []
        while self.closed_elsewhere:
            who, find = self.closed_elsewhere.pop()
            if find is not None and holds.now.get(CURSOR, {}).get(who) is find:
                if self.portals.pop(who, None) is not None:
                    self._note_portal_left()
                holds.happened(CURSOR_CLOSED, who)
        for event, who in holds.lost():
            origin = holds.origins.get(who)
            holds.happened(event, who)
            message = (
                f"a cursor on database alias {self.alias!r} was dropped without close(), "
                "which kept its connection until now"
                + (f"; it was opened at {origin}" if origin else "")
            )
            portal = self.portals.pop(who, None)
            if portal is not None and politely:
                self._close_portal(portal)
            elif portal is not None:
                self.owe(CLEANING)
            lost.append(message)
        return lost

    def _warn_of(self, lost: list[str]) -> None:
        for message in lost:
            if warns_of_unclosed_cursors():
                logger.warning("%s", message)
        for message in lost:
            warnings.warn(message, ResourceWarning, stacklevel=5)

    # ##### Ending, whoever holds it #####

    @locked
    def drop(self, as_stock: bool = False) -> None:
        """End the lease, whoever holds it; `as_stock` with all that stock's close() does.

        A cursor that is still open is cut off first: its connection may soon be another
        thread's.
        """
        for find in list(self.holds.now.get(CURSOR, {}).values()):
            raw = find() if find is not None else None
            if raw is not None:
                self._detach(raw)
        self.closed_elsewhere.clear()
        for name in list(self.portals.values()):
            self._close_portal(name)
        self.portals.clear()
        self.holds.happened(Event.CLOSED)
        if as_stock or self.wrapper.connection is not None:
            giving_back.end(self, as_stock=as_stock)
        elif self.phase is not FREE:
            giving_back.forget(self)
            if self.record is not None:
                telling.given_back(self)

    @locked
    def close(self) -> bool:
        """End the lease as stock's close() does; return False if there was no connection."""
        if self.wrapper.connection is not None:
            self.drop(True)
            return True
        if self.phase is not FREE:
            self.drop()  # its end was interrupted
        return False

    def _detach(self, raw: Any) -> None:
        try:
            self.hooks.driver.detach(raw)
        except Exception:
            logger.debug("could not detach an open cursor", exc_info=True)

    def _close_portal(self, name: str) -> None:
        try:
            self.hooks.driver.close_portal(self.wrapper.connection, name)
        except Exception:
            # It is gone already: rolled back, or the connection is broken.
            logger.debug("could not close the server-side cursor %s", name, exc_info=True)
        self._note_portal_left()

    # ##### From outside: the reaper, and a forked child #####

    reap = outside.reap
    give_up = outside.give_up
    forget_parent = outside.forget_parent


def _same(thing: Any) -> Any:
    return thing


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
