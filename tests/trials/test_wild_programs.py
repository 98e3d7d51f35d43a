"""Random programs in which things die, and others meddle: stock and ours side by side.

`test_differential.py` runs one wrapper in peace.  Here are two requests, one of them with
two aliases of one database, which take and give connections crosswise, step by step in one
thread; servers that die, receivers, execute wrappers, a second user of the pool, and what
can be done to a connection by hand.  Each side has tables of its own.

After each step the results are compared, and what a third connection sees.  At the end of
each request, and now and then, each idle connection of ours is looked at by a second user
of its pool.

Where stock and ours differ, each mark is of `contract.md`:

=====================  =================================================================
name                   what differs, and what the machine does about it
=====================  =================================================================
`one_to_the_end`       Stock keeps one connection to the end of a request, so its death
                       between two statements outside a block hits the next one; ours is
                       in the pool then, and another is taken (F2).  Only ours is killed.
`ends_with_its_hold`   A dead connection that a cursor or a pin holds is given up with
                       that (R1); stock's stays until close().  Stock connects again.
`nothing_sent`         A block that has sent nothing has nothing to lose (A2), but stock's
                       SAVEPOINT may have begun a transaction.  Nothing is killed then.
`clean_in_the_end`     What a request did to its session is gone when it ends (S3); stock
                       hands it on.  Stock's is made clean by the machine.
`clean_after_a_pin`    What was done under a pin, or an explicit connect, or to a
                       connection by hand ends with that lease (P1, S8); on stock with the
                       request.  Stock's session is made clean, and announced again.
`heard_each_time`      A receiver that raises is heard again by the next connection (D4,
                       R3); stock counts as connected.  It raises once for a session, at
                       its first statement, which is outside of any block.
`deferred_savepoints`  Execute wrappers see savepoints later or never (A2): they are not
                       noted, and what a wrapper sent for one is sent before it leaves.
`rolled_back_at_close` A pool may roll back what comes back, and raise out of close() where
                       that is dead; ours has thrown it away before (R3, R10).
`closed_pool`          A closed pool of ours is replaced (F8), stock's raises.  Only ours
                       is closed.
=====================  =================================================================
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

import django
import fix_hypothesis
import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.signals import connection_created
from faults import end_pool, extra_alias
from helpers import census, wait_until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row
from settings import STOCK_OF
from wild import (
    AGE,
    CASTS,
    LOOK,
    RECEIVERS,
    REWRITTEN,
    SPIES,
    Cursors,
    Refused,
    Result,
    Seat,
    Side,
    all_idle,
    announcing,
    ask,
    attempt,
    count_idle,
    faults_of,
    give_raw,
    in_transaction,
    is_gone,
    is_running,
    make_clean,
    physical_of,
    pid_of,
    pool_of,
    rows,
    same_for_both,
    speaker,
    speaking,
    take_raw,
)

from django_pg_real_pool import pin_connection

#: The seats: each with its request, and with which of the two aliases of the database.
SEATS = (("ann", ""), ("bob", ""), ("ann", "other_"))
#: How the tables of each side begin, as long as the other's for the sake of messages.
TABLES = {"stock": "wild_stock_", "ours": "wild_early_"}
#: The most connections that a pool of ours may have.
SIZE = 4
LIFETIME = 0.2
#: Seconds that no step takes in which nobody waits for a connection.
AT_ONCE = 4.0
#: Seconds that a busy machine may need between a checkout and the statement that looks.
LATENESS = 0.5

READS = [
    "SELECT count(*) FROM {table}",
    "SELECT name FROM {table} ORDER BY name",
    "SELECT generate_series(1, 9)",
    REWRITTEN,
]
FAILING = ["SELEC 1", "SELECT 1 / 0", "SELECT * FROM {table}_that_is_missing"]
SESSION = [
    "SET app.tenant = '{user}'",
    "SELECT set_config('app.tenant', '{user} by function', false)",
    "SET LOCAL app.tenant = 'local'",
    "RESET app.tenant",
    "LISTEN {table}_news",
    "UNLISTEN *",
    "PREPARE {table}_plan AS SELECT 1",
    "CREATE TEMP TABLE {table}_temporary (n int)",
    "SELECT pg_advisory_lock(hashtext('{table}'))",
    "NOTIFY {table}_news, '{user}'",
    "LISTEN {table}_news; NOTIFY {table}_news, '{user}'",
]
RAW = ["BEGIN", "COMMIT", "ROLLBACK"]
DIE = "SELECT pg_terminate_backend(pg_backend_pid())"

#: What is set on a connection by hand: at any time, and where only a pin lets it be seen.
ATTRIBUTES = ["isolation_level", "read_only", "row_factory"]
PINNED = ["set", "prepare_threshold", "handler"]

NOT_RESET = "could not reset the session of a connection"

COMMITTED = "SELECT coalesce(array_agg(name ORDER BY name), '{{}}') FROM {table}"
PROCESSES = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
ALIVE = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
END_ALL = (
    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
    "WHERE application_name LIKE 'wild %'"
)

#: Some more often, so that things happen to them while something else is going on.
a_seat = st.sampled_from([0, 0, 0, 1, 1, 2])
an_index = st.integers(0, 5)
a_read = st.sampled_from(READS)


def reset_all(connection: Any) -> None:
    connection.execute("RESET ALL")


def discard_all(connection: Any) -> None:
    connection.execute("DISCARD ALL")


def check_by_query(connection: Any) -> None:
    connection.execute("SELECT 1")


#: What the pools of ours may be made with, of what Django lets through.
POOLS: list[dict[str, Any]] = [
    {},
    {"max_lifetime": LIFETIME},
    {"reset": reset_all},
    {"reset": discard_all},
    {"reset": reset_all, "max_lifetime": LIFETIME},
]
if django.VERSION >= (6, 1):
    POOLS += [{"check": check_by_query}, {"check": check_by_query, "reset": reset_all}]


class Machine(RuleBasedStateMachine):
    """Runs one program; a subclass names the engine."""

    engine: str
    observer: Any
    complaints: list[str]
    labels = 0

    # ##### Beginning and ending #####

    @initialize(
        pool=st.sampled_from(POOLS),
        casts=st.lists(st.sampled_from(CASTS), min_size=2, max_size=2),
        users=st.lists(st.booleans(), min_size=2, max_size=2),
        debug=st.booleans(),
        health_checks=st.booleans(),
    )
    def begin(
        self,
        pool: dict[str, Any],
        casts: list[tuple[str, ...]],
        users: list[bool],
        debug: bool,
        health_checks: bool,
    ) -> None:
        self.stack = ExitStack()
        self.lifetime = pool.get("max_lifetime")
        self.sizes: dict[str, int] = {}
        self.raw: list[tuple[Any, Any]] = []
        self.doomed: set[str] = set()
        self.sessions = 0
        self.sound = False
        self.closed_a_pool = False
        for prefix in ("", "other_"):
            self.add_alias("stock", prefix, {}, health_checks)
            self.add_alias("ours", prefix, pool, health_checks)
        self.seats = [
            self.make_seat(number, *each, debug) for number, each in enumerate(SEATS)
        ]
        for seat in self.seats:
            for side in seat.sides():
                self.observer.execute(f"TRUNCATE {side.table}")
        connection_created.connect(self.receive)
        self.stack.callback(connection_created.disconnect, self.receive)
        self.start_request("ann", casts[0], users[0])
        self.start_request("bob", casts[1], users[1])
        self.sound = True

    def alias_of(self, side: str, prefix: str) -> str:
        return f"wild_{side}_{prefix}{self.engine}"

    def add_alias(
        self, side: str, prefix: str, pool: dict[str, Any], health_checks: bool
    ) -> None:
        name = self.alias_of(side, prefix)
        size = SIZE if side == "ours" else 2 * SIZE
        options: dict[str, Any] = {"application_name": name.replace("_", " ")}
        changes: dict[str, Any] = {"CONN_HEALTH_CHECKS": health_checks}
        if self.engine == "native":
            options["pool"] = {"min_size": 1, "max_size": size, "timeout": 5, **pool}
        elif self.engine == "dj" and "max_lifetime" in pool:
            changes["POOL_OPTIONS"] = {"RECYCLE": pool["max_lifetime"]}
        engine = self.engine if side == "ours" else STOCK_OF[self.engine]
        self.stack.enter_context(
            extra_alias(name, engine, size=size, OPTIONS=options, **changes)
        )
        self.sizes[name] = size

    def make_seat(self, number: int, request: str, prefix: str, debug: bool) -> Seat:
        sides = []
        for name in ("stock", "ours"):
            alias = self.alias_of(name, prefix)
            wrapper: Any = connections.create_connection(alias)
            wrapper.force_debug_cursor = debug
            sides.append(Side(name, alias, TABLES[name] + str(number), wrapper))
        stock, ours = sides
        return Seat(number, request, stock, ours)

    def seats_of(self, request: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.request == request]

    def start_request(self, request: str, cast: tuple[str, ...], has_user: bool) -> None:
        self.sessions += 1
        for seat in self.seats_of(request):
            seat.user = f"{request} {self.sessions}" if has_user else None
            seat.receivers = cast
            for side in seat.sides():
                side.has_raised = False
            if "raising" in cast:
                self.both(seat, lambda side: ask(side, "SELECT 1"))  # `heard_each_time`

    def receive(self, connection: Any, **kwargs: Any) -> None:
        seat = speaker.get()
        if seat is None or not connection.alias.startswith("wild_"):
            return
        token = announcing.set(True)
        try:
            for name in seat.receivers:
                RECEIVERS[name](connection, seat)
        finally:
            announcing.reset(token)

    def teardown(self) -> None:
        if not hasattr(self, "seats"):
            return
        try:
            if self.sound:
                self.unwind()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tear_down()

    def unwind(self) -> None:
        for seat in self.seats:
            while seat.blocks:
                self.exit_block(seat, raising=False)
                self.check()
            while seat.pins:
                self.leave_pin(seat)
        self.give_all_raw()
        for request in ("ann", "bob"):
            self.end_request(request, by_close=True)
        self.check()
        self.nothing_is_in_use()
        self.inspect()

    def tear_down(self) -> None:
        """Leave nothing of it, also where it failed in the midst of a step."""
        with suppress(Exception):
            self.give_all_raw()
        for seat in self.seats:
            seat.cursors.clear()
            for side in seat.sides():
                side.wrapper.in_atomic_block = side.wrapper.closed_in_transaction = False
                with suppress(Exception):
                    side.wrapper.close()
        self.complaints.clear()
        if self.closed_a_pool:
            for seat in self.seats:
                end_pool(seat.ours.alias)  # so that nobody counts a closed one's
        try:
            if self.sound:
                self.stack.close()
            else:
                with suppress(Exception):
                    self.stack.close()
        finally:
            self.observer.execute(END_ALL)

    # ##### Both sides #####

    def both(self, seat: Seat, action: Callable[[Side], Any]) -> Result:
        """Do `action` on both sides; return what it did, if it did the same."""
        self.sound = False
        was_dead, before = seat.dead, seat.stock.wrapper.connection
        was_in_transaction = seat.in_transaction()
        stock = attempt(action, seat, seat.stock)
        began = monotonic()
        ours = attempt(action, seat, seat.ours)
        assert monotonic() - began < AT_ONCE, f"F8: {monotonic() - began} s for {ours}"
        died = seat.stock.wrapper.connection is not None and is_gone(
            seat.stock.wrapper.connection
        )
        is_dead = bool(was_dead or died or self.has_ended(seat, before))
        assert ours.comparable(is_dead) == stock.comparable(is_dead), (
            f"ours: {ours}; stock: {stock}"
        )
        self.look_after(seat, before, was_in_transaction)
        self.sound = True
        return stock

    def has_ended(self, seat: Seat, before: Any) -> bool:
        """Return whether stock's session of before is over; it may have another already."""
        return before is not None and seat.stock.wrapper.connection is not before

    def look_after(self, seat: Seat, before: Any, was_in_transaction: bool = False) -> None:
        """Note what a step made of a seat, and bring stock to where ours is."""
        stock, ours = seat.stock.wrapper, seat.ours.wrapper
        if self.has_ended(seat, before):
            if seat.pending:  # a block that could not be ended, which closed
                self.doomed |= seat.pending
            seat.session_ended()
            self.clean_stock(seat)
            return
        if stock.connection is not None and is_gone(stock.connection) and not seat.dead:
            self.note_death(seat, was_in_transaction)
        if not seat.dead and not seat.in_transaction() and not seat.blocks:
            seat.pending.clear()
        if ours.connection is not None:
            return
        seat.is_connected = False
        if seat.dead == "outside":
            self.connect_stock_again(seat)
        if seat.is_touched and not seat.dead and not in_transaction(stock):
            seat.is_touched = False
            if stock.connection is not None:
                self.as_new(seat)

    def note_death(self, seat: Seat, was_in_transaction: bool) -> None:
        if seat.blocks or not seat.stock.wrapper.autocommit or was_in_transaction:
            seat.dead = "transaction"
            self.doomed |= seat.pending
        else:
            seat.dead = "outside"

    def transaction_left(self, seat: Seat) -> None:
        """Note that the outermost block, or the transaction, was left by a call."""
        if seat.dead == "transaction" and not seat.blocks:
            seat.dead = "outside"
            seat.pending.clear()
            self.look_after(seat, seat.stock.wrapper.connection)

    def connect_stock_again(self, seat: Seat) -> None:
        """See `ends_with_its_hold`."""
        seat.dead = ""
        stock, ours = seat.stock.wrapper, seat.ours.wrapper
        callbacks = stock.run_on_commit
        with self.unseen(seat):
            stock.close()
            self.clean_stock(seat)
            stock.connect()
            if not ours.autocommit:
                stock.set_autocommit(False)
        stock.run_on_commit = callbacks
        seat.pending.clear()
        seat.is_touched = False

    def as_new(self, seat: Seat) -> None:
        """See `clean_after_a_pin`."""
        stock = seat.stock.wrapper
        with self.unseen(seat):
            make_clean(stock, stock.connection)
            self.receive(stock)

    def unseen(self, seat: Seat) -> ExitStack:
        """Let what stock does now be noted nowhere."""
        side, wrapper = seat.stock, seat.stock.wrapper
        noted, spies, log = len(side.noted), wrapper.execute_wrappers, list(wrapper.queries)
        wrapper.execute_wrappers = []
        stack = ExitStack()

        def restore() -> None:
            del side.noted[noted:]
            wrapper.execute_wrappers = spies
            wrapper.queries_log.clear()
            wrapper.queries_log.extend(log)

        stack.callback(restore)
        stack.enter_context(speaking(seat, side))
        return stack

    def clean_stock(self, seat: Seat) -> None:
        """See `clean_in_the_end`."""
        pool = pool_of(seat.stock)
        if pool is not None:
            with all_idle(pool) as idle:
                for connection in idle:
                    make_clean(seat.stock.wrapper, connection)

    # ##### Statements #####

    def text(self, seat: Seat, statement: str) -> str:
        return statement.replace("{user}", f"{seat.request}{seat.number}")

    @rule(number=a_seat, statement=a_read | st.sampled_from(FAILING + RAW))
    def query(self, number: int, statement: str) -> None:
        seat = self.seats[number]
        if statement == REWRITTEN:
            seat.has_changed = True
        self.both(seat, lambda side: ask(side, statement))

    @rule(number=a_seat, statement=st.sampled_from(SESSION))
    def change_session(self, number: int, statement: str) -> None:
        seat = self.seats[number]
        seat.has_changed = True
        self.both(seat, lambda side: ask(side, self.text(seat, statement)))

    @rule(number=a_seat)
    def look(self, number: int) -> None:
        """S2, D4: a request sees what it and its receivers set, and nothing else."""
        seat = self.seats[number]
        is_fresh = seat.ours.wrapper.connection is None
        self.both(seat, lambda side: ask(side, LOOK))
        if is_fresh and self.lifetime and not seat.dead:
            self.look_at_age(seat)

    def look_at_age(self, seat: Seat) -> None:
        if seat.ours.wrapper.connection is not None or not seat.is_plain():
            return
        with speaking(seat, seat.ours):
            wrappers = seat.ours.wrapper.execute_wrappers
            seat.ours.wrapper.execute_wrappers = []
            try:
                ((age,),) = ask(seat.ours, AGE)[1]
            finally:
                seat.ours.wrapper.execute_wrappers = wrappers
        if self.engine != "own":
            assert self.lifetime is not None
            assert age < self.lifetime + LATENESS, f"R10: a connection is {age} s old"

    @rule()
    def let_age(self) -> None:
        if self.lifetime:
            with psycopg.connect(autocommit=True) as connection:
                connection.execute("SELECT pg_sleep(%s)", [self.lifetime + LATENESS])

    @rule(number=a_seat, dies_at_commit=st.sampled_from([False, False, False, True]))
    def write(self, number: int, dies_at_commit: bool) -> None:
        seat = self.seats[number]
        Machine.labels += 1
        label = f"{'die' if dies_at_commit else 'row'} {Machine.labels}"
        is_lost = seat.dead == "transaction"
        seat.pending.add(label)
        result = self.both(
            seat, lambda side: ask(side, f"INSERT INTO {{table}} VALUES ('{label}')")
        )
        if is_lost or result.raised:
            self.doomed.add(label)

    @rule(number=a_seat)
    def die_in_a_statement(self, number: int) -> None:
        seat = self.seats[number]
        self.both(seat, lambda side: ask(side, DIE))

    @rule(number=a_seat)
    def die_past_django(self, number: int) -> None:
        """F7: only a cursor of the driver's own sees it."""
        seat = self.seats[number]
        connections_ = [side.wrapper.connection for side in seat.sides()]
        is_same = len({in_transaction(side.wrapper) for side in seat.sides()}) == 1
        is_between = seat.blocks or not seat.ours.wrapper.autocommit
        if seat.dead or None in connections_ or not is_same:
            return  # `one_to_the_end`
        if is_between and not seat.in_transaction():
            return  # `nothing_sent`
        self.both(seat, lambda s: physical_of(s.wrapper.connection).execute(DIE) and None)

    @rule(number=a_seat, ends=st.booleans())
    def begin_on_a_cursor_and_die(self, number: int, ends: bool) -> None:
        """F7: BEGIN is the only statement that goes through a cursor of Django's."""
        seat = self.seats[number]
        if not seat.is_plain():
            return
        self.open(seat, False, None)
        if not seat.cursors:
            return
        self.execute_on_cursor(number, len(seat.cursors) - 1, RAW[0])
        self.die_past_django(number)
        if seat.cursors:
            self.close_cursor(number, len(seat.cursors) - 1)
        self.write(number, dies_at_commit=False)
        if ends:
            self.end_transaction(number, commit=False)
            self.look(number)

    @rule(number=a_seat, kind=st.sampled_from(sorted(SPIES)))
    def enter_spy(self, number: int, kind: str) -> None:
        seat = self.seats[number]
        if seat.dead or len(seat.spies) > 1:
            return
        seat.has_changed = True
        managers = tuple(
            side.wrapper.execute_wrapper(SPIES[kind](seat, side)) for side in seat.sides()
        )
        for manager in managers:
            manager.__enter__()
        seat.spies.append(managers)

    @rule(number=a_seat)
    def exit_spy(self, number: int) -> None:
        seat = self.seats[number]
        if seat.spies and seat.is_plain():
            self.both(seat, lambda side: ask(side, "SELECT 1"))  # `deferred_savepoints`
            if seat.is_plain():
                for manager in seat.spies.pop():
                    manager.__exit__(None, None, None)

    # ##### Cursors #####

    @rule(number=a_seat, is_named=st.booleans(), statement=st.none() | a_read)
    def open_cursor(self, number: int, is_named: bool, statement: str | None) -> None:
        seat = self.seats[number]
        self.open(seat, is_named, statement)

    def open(self, seat: Seat, is_named: bool, statement: str | None) -> None:
        opened: dict[str, Any] = {}
        if statement == REWRITTEN:
            seat.has_changed = True

        def act(side: Side) -> Any:
            wrapper = side.wrapper
            cursor = wrapper.chunked_cursor() if is_named else wrapper.cursor()
            opened[side.name] = cursor
            if statement is None:
                return None
            cursor.execute(side.sql(statement))
            return same_for_both(rows(cursor.fetchmany(2)))

        before = seat.stock.wrapper.connection
        self.both(seat, act)
        assert len(opened) != 1, f"one side opened a cursor: {opened}"
        is_same = before is None or seat.stock.wrapper.connection is before
        if opened and is_same:
            seat.cursors.append(Cursors(opened["stock"], opened["ours"], is_named))

    @rule(number=a_seat, index=an_index, statement=a_read | st.sampled_from(FAILING + RAW))
    def execute_on_cursor(self, number: int, index: int, statement: str) -> None:
        seat = self.seats[number]
        if seat.cursors:
            cursors = seat.cursors[index % len(seat.cursors)]
            if statement == REWRITTEN:
                seat.has_changed = True

            def act(side: Side) -> Any:
                cursor = cursors.of(side)
                cursor.execute(side.sql(statement))
                return None if cursors.is_named else cursor.rowcount

            self.both(seat, act)

    @rule(number=a_seat, index=an_index, size=st.integers(1, 3))
    def fetch(self, number: int, index: int, size: int) -> None:
        seat = self.seats[number]
        if seat.cursors:
            cursors = seat.cursors[index % len(seat.cursors)]
            self.both(
                seat,
                lambda side: same_for_both(rows(cursors.of(side).fetchmany(size))),
            )

    @rule(number=a_seat, index=an_index)
    def close_cursor(self, number: int, index: int) -> None:
        seat = self.seats[number]
        if seat.cursors:
            cursors = seat.cursors.pop(index % len(seat.cursors))
            self.both(seat, lambda side: cursors.of(side).close())

    @rule(number=a_seat, index=an_index)
    def drop_cursor(self, number: int, index: int) -> None:
        seat = self.seats[number]
        if seat.cursors:
            seat.cursors.pop(index % len(seat.cursors))
            seat.is_loose = True
            gc.collect()

    # ##### Blocks #####

    @rule(number=a_seat, savepoint=st.sampled_from([True, True, False]))
    def enter_block(self, number: int, savepoint: bool) -> None:
        seat = self.seats[number]
        if seat.dead == "outside" or len(seat.blocks) > 3:
            return
        if seat.is_beyond_blocks():
            return
        atomics = {
            side.name: transaction.atomic(side.alias, savepoint=savepoint)
            for side in seat.sides()
        }
        result = self.both(seat, lambda side: atomics[side.name].__enter__())
        if not result.raised:
            seat.blocks.append((atomics["stock"], atomics["ours"]))

    @rule(number=a_seat, raising=st.booleans())
    def leave_block(self, number: int, raising: bool) -> None:
        seat = self.seats[number]
        if seat.blocks:
            self.exit_block(seat, raising)

    def exit_block(self, seat: Seat, raising: bool) -> None:
        stock, ours = seat.blocks.pop()
        info = (Refused, Refused(), None) if raising else (None, None, None)
        if seat.dead == "transaction":
            self.doomed |= seat.pending
        self.both(
            seat,
            lambda side: (stock if side is seat.stock else ours).__exit__(*info),
        )
        self.transaction_left(seat)

    @rule(number=a_seat)
    def on_commit(self, number: int) -> None:
        seat = self.seats[number]
        Machine.labels += 1
        label = f"row {Machine.labels}"
        if not seat.blocks or seat.is_touched:
            return

        def register(side: Side) -> None:
            def called() -> None:
                side.noted.append(f"callback of {label}")
                if seat.dead:
                    side.noted.append("though it was dead")
                ask(side, f"INSERT INTO {{table}} VALUES ('{label}')")

            side.wrapper.on_commit(called)

        self.both(seat, register)

    @rule(number=a_seat, value=st.booleans())
    def set_autocommit(self, number: int, value: bool) -> None:
        seat = self.seats[number]
        if not seat.dead and not seat.in_transaction() and not seat.blocks:
            self.both(seat, lambda side: side.wrapper.set_autocommit(value))

    @rule(number=a_seat, commit=st.booleans())
    def end_transaction(self, number: int, commit: bool) -> None:
        seat = self.seats[number]
        if seat.blocks:
            return
        if seat.dead == "transaction" or not commit:
            self.doomed |= {
                each for each in seat.pending if seat.in_transaction() or seat.dead
            }
        name = "commit" if commit else "rollback"
        self.both(seat, lambda side: getattr(side.wrapper, name)())
        self.transaction_left(seat)

    # ##### Requests #####

    @rule(
        request=st.sampled_from(["ann", "bob"]),
        by_close=st.booleans(),
        cast=st.sampled_from(CASTS),
        has_user=st.booleans(),
    )
    def next_request(
        self, request: str, by_close: bool, cast: tuple[str, ...], has_user: bool
    ) -> None:
        if any(seat.blocks for seat in self.seats_of(request)):
            return
        self.end_request(request, by_close)
        self.start_request(request, cast, has_user)

    def end_request(self, request: str, by_close: bool) -> None:
        for seat in self.seats_of(request):
            while seat.spies:
                for manager in seat.spies.pop():
                    manager.__exit__(None, None, None)
            if seat.in_transaction() or seat.dead == "transaction":
                self.doomed |= seat.pending
            self.both(seat, self.ending(seat, by_close))
            assert seat.ours.wrapper.connection is None, "R8: a lease outlives its request"
            while seat.pins:
                self.leave_pin(seat)
            seat.session_ended()
        if not any(seat.ours.wrapper.connection for seat in self.seats) and not self.raw:
            self.nothing_is_in_use()
        self.inspect()

    def ending(self, seat: Seat, by_close: bool) -> Callable[[Side], None]:
        is_dead = bool(seat.dead)
        of_stock: list[type[Exception]] = []

        def end(side: Side) -> None:
            try:
                if by_close:
                    side.wrapper.close()
                else:
                    side.wrapper.close_if_unusable_or_obsolete()
            except psycopg.Error as error:
                # See `rolled_back_at_close`.  Ours need not raise what stock raises.
                if is_dead and side is seat.stock:
                    of_stock.append(type(error))
                elif type(error) not in of_stock:
                    raise

        return end

    # ##### What is done by hand #####

    @rule(number=a_seat)
    def enter_pin(self, number: int) -> None:
        seat = self.seats[number]
        if not seat.is_plain() or len(seat.pins) > 1:
            return
        pins = {side.name: pin_connection(side.alias) for side in seat.sides()}
        seat.is_touched = True
        result = self.both(seat, lambda side: pins[side.name].__enter__() and None)
        if not result.raised:
            seat.pins.append((pins["stock"], pins["ours"]))

    @rule(number=a_seat)
    def exit_pin(self, number: int) -> None:
        seat = self.seats[number]
        if seat.pins and not seat.blocks:
            self.leave_pin(seat)

    def leave_pin(self, seat: Seat) -> None:
        stock, ours = seat.pins.pop()
        self.both(
            seat,
            lambda side: (stock if side is seat.stock else ours).__exit__(None, None, None),
        )

    @rule(number=a_seat)
    def ensure_connection(self, number: int) -> None:
        seat = self.seats[number]
        if seat.is_plain():
            seat.is_connected = seat.is_touched = True
            self.both(seat, lambda side: side.wrapper.ensure_connection())

    @rule(
        number=a_seat,
        name=st.sampled_from([*ATTRIBUTES, *PINNED]),
    )
    def touch(self, number: int, name: str) -> None:
        """Change a connection by hand, as long as it is here (S8)."""
        seat = self.seats[number]
        if not seat.is_plain():
            return
        if seat.ours.wrapper.connection is None:
            self.open(seat, False, READS[2])
            self.touch_now(seat, name)
            self.close_cursor(number, len(seat.cursors) - 1)
            self.inspect()
        else:
            self.touch_now(seat, name)

    def touch_now(self, seat: Seat, name: str) -> None:
        if not seat.is_plain() or seat.ours.wrapper.connection is None:
            return
        if name in PINNED and not (seat.pins or seat.is_connected):
            return  # S5, S8: nobody could see it
        seat.is_touched = True

        def act(side: Side) -> None:
            physical = physical_of(side.wrapper.connection)
            if name == "isolation_level":
                physical.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            elif name == "read_only":
                physical.read_only = True
            elif name == "row_factory":
                physical.row_factory = dict_row
            elif name == "prepare_threshold":
                physical.prepare_threshold = 3
            elif name == "handler":
                physical.add_notice_handler(lambda notice: None)
            else:
                physical.execute(f"SET app.raw = '{seat.request}'")

        self.both(seat, act)

    @rule(number=a_seat)
    def read_notifications(self, number: int) -> None:
        """S8: notifications of this request alone."""
        seat = self.seats[number]
        if not seat.is_plain():
            return
        seat.is_touched = True

        def act(side: Side) -> Any:
            with pin_connection(side.alias):
                physical = physical_of(side.wrapper.connection)
                return [
                    (same_for_both(each.channel), each.payload)
                    for each in physical.notifies(timeout=0)
                ]

        self.both(seat, act)

    @rule(number=a_seat, atomic=st.booleans(), sets=st.booleans(), fails=st.booleans())
    def edit_schema(self, number: int, atomic: bool, sets: bool, fails: bool) -> None:
        """S9: what an editor changes of the session stays for the request."""
        seat = self.seats[number]
        if seat.dead or (seat.in_block() and not atomic) or seat.is_beyond_blocks():
            return
        seat.has_changed = True

        def act(side: Side) -> None:
            with side.wrapper.schema_editor(atomic=atomic) as editor:
                editor.execute(side.sql("CREATE TABLE {table}_edited (n int)"))
                if sets:
                    editor.execute(f"SET app.tenant = 'editor of {seat.request}'")
                editor.execute(side.sql("DROP TABLE {table}_edited"))
                if fails:
                    raise Refused

        self.both(seat, act)
        self.look(number)

    # ##### Composed #####

    @rule(
        number=a_seat,
        inside=st.booleans(),
        end=st.sampled_from(["close", "drop", "request"]),
    )
    def fail_with_an_iterator_open(self, number: int, inside: bool, end: str) -> None:
        """A portal WITH HOLD can't be closed while its transaction has failed."""
        seat = self.seats[number]
        of_request = self.seats_of(seat.request)
        if not seat.is_plain() or any(each.blocks for each in of_request):
            return
        self.open(seat, True, READS[2])
        self.enter_block(number, savepoint=True)
        self.query(number, FAILING[1])
        index = len(seat.cursors) - 1
        if inside and end == "close":
            self.close_cursor(number, index)
        elif inside and end == "drop":
            self.drop_cursor(number, index)
        if seat.blocks:
            self.exit_block(seat, raising=True)
        if end == "request":
            self.end_request(seat.request, by_close=True)
            self.start_request(seat.request, seat.receivers, seat.user is not None)

    @rule(first=st.sampled_from([0, 1]), with_third=st.booleans())
    def cross(self, first: int, with_third: bool) -> None:
        """Let two requests take a connection each, give it back, and get the other's."""
        one, other = self.seats[first], self.seats[1 - first]
        if not (one.is_plain() and other.is_plain()):
            return
        if one.ours.wrapper.connection or other.ours.wrapper.connection or self.raw:
            return
        self.open(one, False, READS[2])
        self.open(other, False, READS[2])
        if not (one.cursors and other.cursors):
            return
        self.close_cursor(one.number, len(one.cursors) - 1)
        if with_third:
            self.take_past_django(one.number)
        self.close_cursor(other.number, len(other.cursors) - 1)
        self.open(one, False, READS[2])
        self.give_all_raw()
        self.open(other, False, READS[2])
        for seat in (one, other):
            self.look(seat.number)
            if seat.cursors:
                self.close_cursor(seat.number, len(seat.cursors) - 1)
            self.look(seat.number)

    # ##### Death #####

    @rule(number=a_seat, how=st.sampled_from(["terminated", "timeout"]))
    def kill(self, number: int, how: str) -> None:
        """F7: the server process of a request ends, as far as it has one on both sides."""
        seat = self.seats[number]
        pids = [pid_of(side.wrapper) for side in seat.sides()]
        in_ours = in_transaction(seat.ours.wrapper)
        is_same = seat.in_transaction() == in_ours
        is_between = seat.blocks or not seat.ours.wrapper.autocommit
        if seat.dead or not all(pids) or not is_same or (is_between and not in_ours):
            return  # `one_to_the_end`, `nothing_sent`
        if how == "timeout" and in_ours:
            setting = "SET LOCAL idle_in_transaction_session_timeout = 1"
            if self.both(seat, lambda side: ask(side, setting)).raised:
                return
        else:
            for pid in pids:
                self.observer.execute("SELECT pg_terminate_backend(%s)", [pid])
        self.wait_for_the_end_of(pids)
        self.note_death(seat, in_ours)

    @rule(
        number=a_seat,
        mode=st.sampled_from(["block", "inner block", "autocommit off", "BEGIN"]),
        how=st.sampled_from(["terminated", "timeout", "statement", "by hand"]),
        iterates=st.booleans(),
        tries=st.integers(0, 2),
        raising=st.booleans(),
    )
    def lose_a_transaction(
        self, number: int, mode: str, how: str, iterates: bool, tries: int, raising: bool
    ) -> None:
        """F7: none of it is committed, wherever it dies, whatever is tried after that."""
        seat = self.seats[number]
        if not seat.is_plain():
            return
        if iterates:
            self.open(seat, True, READS[2])
        if mode == "autocommit off":
            self.set_autocommit(number, False)
        elif mode == "BEGIN":
            self.query(number, "BEGIN")
        else:
            self.enter_block(number, savepoint=True)
        self.on_commit(number)
        self.write(number, dies_at_commit=False)
        if mode == "inner block":
            self.enter_block(number, savepoint=True)
            self.write(number, dies_at_commit=False)
        if how == "statement":
            self.die_in_a_statement(number)
        elif how == "by hand" and seat.in_transaction():
            # Through SQLAlchemy's proxy it would be given back.
            self.both(seat, lambda s: physical_of(s.wrapper.connection).close())
        else:
            self.kill(number, "timeout" if how == "timeout" else "terminated")
        for _ in range(tries):
            self.write(number, dies_at_commit=False)
        while seat.blocks:
            self.exit_block(seat, raising)
            self.check()
            if seat.blocks:
                self.write(number, dies_at_commit=False)
        if mode in ("autocommit off", "BEGIN"):
            self.end_transaction(number, commit=not raising)
        self.look(number)

    @rule(prefix=st.sampled_from(["", "other_"]), how=st.sampled_from(["kill", "timeout"]))
    def kill_idle(self, prefix: str, how: str) -> None:
        """F2: those of ours that are idle end; no request may notice."""
        number = 0 if not prefix else 2
        side = self.seats[number].ours
        lent = {pid_of(seat.ours.wrapper) for seat in self.seats}
        # One that was taken past Django may have died before, while it was idle.
        taken = [physical_of(each) for _, each in self.raw]
        lent |= {each.info.backend_pid for each in taken if not each.closed}
        idle = self.processes(side) - lent
        pool = pool_of(side)
        if pool is None:
            return
        if how == "timeout":
            with all_idle(pool) as taken:
                for each in taken:
                    with suppress(psycopg.OperationalError):
                        each.execute("SET idle_session_timeout = 1")
                idle = {
                    physical_of(each).info.backend_pid
                    for each in taken
                    if not physical_of(each).closed
                }
            if any(value is not None for value in (getattr(pool, "_reset", None),)):
                return  # which has made it harmless
        for pid in idle:
            self.observer.execute("SELECT pg_terminate_backend(%s)", [pid])
        self.wait_for_the_end_of(list(idle))

    def processes(self, side: Side) -> set[int]:
        name = side.alias.replace("_", " ")
        return {pid for (pid,) in self.observer.execute(PROCESSES, [name]).fetchall()}

    def wait_for_the_end_of(self, pids: list[int]) -> None:
        wait_until(
            lambda: self.observer.execute(ALIVE, [pids]).fetchone() == (0,),
            "the server processes have ended",
        )
        # Only then does the system close their sockets, by which a client knows.
        wait_until(lambda: not any(map(is_running, pids)), "the system has forgotten them")

    # ##### A second user of the pool #####

    def give_all_raw(self) -> None:
        while self.raw:
            give_raw(*self.raw.pop())

    @rule(number=a_seat)
    def take_past_django(self, number: int) -> None:
        """R9: who takes a connection from the pool finds it as on stock."""
        pool = pool_of(self.seats[number].ours)
        if pool is None or self.raw or not count_idle(pool):
            return
        before = self.processes(self.seats[number].ours)
        connection = take_raw(pool)
        self.raw.append((pool, connection))
        self.is_clean(connection, before)

    @rule()
    def give_past_django(self) -> None:
        self.give_all_raw()

    @rule(number=a_seat, in_block=st.booleans())
    def query_by_another_class(self, number: int, in_block: bool) -> None:
        """R9: Django's own wrapper, or another one, behind the same pool."""
        seat = self.seats[number]
        side = seat.ours
        pool = pool_of(side)
        if pool is None or not count_idle(pool):
            return
        stock_class: Any = type(seat.stock.wrapper)
        other = Side("ours", side.alias, side.table, None)
        other.wrapper = stock_class(side.wrapper.settings_dict, side.alias)
        before = connections[side.alias]
        connections[side.alias] = other.wrapper
        found = None
        try:
            # It may get one that was killed, as stock does.
            with suppress(OperationalError), ExitStack() as stack:
                if in_block:
                    stack.enter_context(transaction.atomic(using=side.alias))
                found = ask(other, LOOK)[1][0]
        finally:
            other.wrapper.close()
            connections[side.alias] = before
        assert found is None or (not any(found[:3]) and not any(found[6:])), found

    @rule(
        number=a_seat,
        what=st.sampled_from(["check", "drain", "resize", "shrink", "close"]),
    )
    def meddle(self, number: int, what: str) -> None:
        """R10, F8: what the pool's own methods do, they do under us."""
        side = self.seats[number].ours
        pool = pool_of(side)
        if pool is None:
            return
        if what == "close":
            self.closed_a_pool = True
            self.sizes[side.alias] = SIZE
            if self.engine == "native":
                pool.close()
            elif self.engine == "dj":
                pool.dispose()
            else:
                side.wrapper.close_pool()
        elif self.engine == "native":
            if what == "check":
                pool.check()
            elif what == "drain" and hasattr(pool, "drain"):
                pool.drain()
            elif what == "resize":
                pool.resize(2, SIZE + 2)
                self.sizes[side.alias] = SIZE + 2
            elif what == "shrink":
                pool.resize(1, SIZE)

    @rule()
    def inspect(self) -> None:
        """R9, S3, S7, S8: nothing of a request is on what is idle."""
        for seat in (self.seats[0], self.seats[2]):
            pool = pool_of(seat.ours)
            if pool is None:
                continue
            before = self.processes(seat.ours)
            with all_idle(pool) as idle:
                for connection in idle:
                    self.is_clean(connection, before)

    def is_clean(self, connection: Any, before: set[int]) -> None:
        """Prove that a connection is as it is to be, unless it was made for who took it."""
        physical = physical_of(connection)
        if physical.closed:
            return
        if physical.info.backend_pid not in before:
            physical.autocommit = True  # SQLAlchemy's makes them without
        assert not (found := faults_of(physical)), found

    # ##### What must be so after each step #####

    @invariant()
    def check(self) -> None:
        name = f"wild {self.engine}"
        fix_hypothesis.steps[name] = fix_hypothesis.steps.get(name, 0) + 1
        if not hasattr(self, "seats") or not self.sound:
            return
        self.sound = False
        for seat in self.seats:
            self.look_at_rows(seat)
            stock, ours = seat.sides()
            assert ours.noted == stock.noted, "callbacks and execute wrappers"
            for name in ("in_atomic_block", "needs_rollback"):
                one, two = (getattr(side.wrapper, name) for side in seat.sides())
                assert one is two, f"{name}: ours {two}, stock {one}"
            if not seat.dead:
                assert len(ours.wrapper.run_on_commit) == len(stock.wrapper.run_on_commit)
            self.is_held_for_a_reason(seat)
        self.the_pools_have_their_size()
        # Who was killed under a pin can't be made clean.
        told = [each for each in self.complaints if not each.startswith(NOT_RESET)]
        assert not told, told
        self.sound = True

    def look_at_rows(self, seat: Seat) -> None:
        stock, ours = (
            self.observer.execute(COMMITTED.format(table=side.table)).fetchone()[0]
            for side in seat.sides()
        )
        assert ours == stock, f"a third connection sees other rows: {ours}, stock {stock}"
        assert not self.doomed & set(ours), f"F7: {self.doomed & set(ours)} was committed"

    def is_held_for_a_reason(self, seat: Seat) -> None:
        """R1: what no cursor, pin, transaction or session holds is in the pool."""
        ours = seat.ours.wrapper
        reasons = (
            *(seat.cursors, seat.pins, seat.has_changed, seat.is_loose, seat.dead),
            *(seat.is_connected, seat.spies, in_transaction(ours)),
        )
        if not any(reasons):
            assert ours.connection is None, f"held for nothing: {ours._lease}"
        if seat.cursors and not seat.dead:
            assert ours.connection is not None, (
                f"a cursor is open on a connection given away: {seat}"
            )

    def the_pools_have_their_size(self) -> None:
        """R10: by the server's word."""
        if self.closed_a_pool:
            return  # what is out is closed when it comes back
        for seat in (self.seats[0], self.seats[2]):
            side = seat.ours
            most = self.sizes[side.alias]
            if len(self.processes(side)) > most:
                wait_until(
                    lambda side=side, most=most: len(self.processes(side)) <= most,  # type: ignore[misc]
                    f"{side.alias} has at most {most} connections",
                )

    def nothing_is_in_use(self) -> None:
        for seat in (self.seats[0], self.seats[2]):
            wait_until(
                lambda side=seat.ours: not pool_of(side) or census(side.alias).in_use < 1,  # type: ignore[misc]
                f"nothing of {seat.ours.alias} is in use after the requests",
            )


class _Complaints(logging.Handler):
    """Collects what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the package logs; all else is off, for records keep frames and so cursors."""
    names = (
        *("django.db.backends.base", "psycopg", "psycopg.pool", "sqlalchemy.pool"),
        "dj_db_conn_pool.core.mixins.core",
    )
    package = logging.getLogger("django_pg_real_pool")
    handler = _Complaints()
    for name in names:
        logging.getLogger(name).disabled = True
    package.addHandler(handler)
    package.propagate = False
    yield handler.texts
    package.propagate = True
    package.removeHandler(handler)
    for name in names:
        logging.getLogger(name).disabled = False


@pytest.fixture
def tables(observer: Any) -> Iterator[None]:
    """A table for each side of each seat; a row "die" ends the process that commits it."""
    names = [
        f"{table}{number}" for table in TABLES.values() for number in range(len(SEATS))
    ]
    observer.execute("SET lock_timeout = '10s'")
    observer.execute(
        "CREATE OR REPLACE FUNCTION wild_die() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    for name in names:
        observer.execute(f"DROP TABLE IF EXISTS {name}")
        observer.execute(f"CREATE TABLE {name} (name text NOT NULL)")
        observer.execute(
            f"CREATE CONSTRAINT TRIGGER die AFTER INSERT ON {name} DEFERRABLE INITIALLY "
            "DEFERRED FOR EACH ROW WHEN (NEW.name LIKE 'die%') EXECUTE FUNCTION wild_die()"
        )
    yield
    for name in names:
        observer.execute(f"DROP TABLE {name}")
    observer.execute("DROP FUNCTION wild_die")


@pytest.mark.usefixtures("tables")
def test_any_program_does_the_same_as_on_stock_whatever_happens(
    alias: str, observer: Any, complaints: list[str]
) -> None:
    """D1, D4, F2, F7, F8, R1, R8, R9, R10, S1-S3, S7-S9: see the table above."""

    class OnEngine(Machine):
        engine = alias

    OnEngine.observer = observer
    OnEngine.complaints = complaints
    programs, length, least = fix_hypothesis.wild()
    with warnings.catch_warnings():
        # R6: a cursor that was dropped unclosed is told of by ResourceWarning.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            run_state_machine_as_test(
                OnEngine,
                settings=settings(max_examples=programs, stateful_step_count=length),
            )
        finally:
            gc.collect()
    assert fix_hypothesis.steps[f"wild {alias}"] >= least
