"""The same random program on stock and on ours, side by side: is there a difference?

Hypothesis makes up the programs and shortens those that fail.  Each side has a table of
its own, so that neither waits for a lock of the other.  What is compared after each
step is in `Machine.same_as_stock()`; the one rule is checked in `Machine.the_one_rule()`,
from what this file knows and from what the server says, not from the package's own books.

Stock keeps its connection between statements and ours does not, so whether a wrapper is
connected is not compared.  Each other difference that is let pass is marked "Differs:",
with the mark of the contract that makes it so.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import fix_hypothesis
import psycopg
import pytest
from django.db import InterfaceError, connections, transaction
from django.db.transaction import TransactionManagementError
from helpers import backend_pid, census, wait_until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from settings import STOCK_OF

from django_pg_real_pool import pin_connection

LOOK = """
SELECT (SELECT coalesce(array_agg(id || name ORDER BY id), '{}') FROM item_stock),
       (SELECT coalesce(array_agg(id || name ORDER BY id), '{}') FROM item_early),
       (SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%')
"""

END_TRANSACTIONS = """
SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""

#: `{table}` is the table of the side that runs the statement.
READS = [
    "SELECT count(*) FROM {table}",
    "SELECT id, name FROM {table} ORDER BY id",
    "SELECT generate_series(1, 9)",
]
WRITES = [
    "INSERT INTO {table} (name) VALUES ('a')",
    "INSERT INTO {table} (name) VALUES ('b') ON CONFLICT DO NOTHING",
    "INSERT INTO {table} (name) SELECT 'n' || coalesce(max(id), 0) FROM {table}",
    "UPDATE {table} SET name = name || '+' WHERE name IN ('a', 'b')",
    "DELETE FROM {table} WHERE name = 'a'",
]
FAILING = [
    "INSERT INTO {table} (name) VALUES ('c'), ('c')",
    "SELEC 1",
    "SELECT 1 / 0",
    "SELECT * FROM {table}_that_is_missing",
    "SELECT name || ' %s %s' FROM {table}",
]
RAW = [
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "SAVEPOINT raw",
    "ROLLBACK TO SAVEPOINT raw",
    "BEGIN; INSERT INTO {table} (name) VALUES ('d')",
]
CALLBACKS = [
    "plain",
    "raise",
    "query",
    "write",
    "fail",
    "atomic",
    "atomic that fails",
    "on_commit",
    "close",
    "autocommit off",
]

a_statement = st.sampled_from(READS) | st.sampled_from(WRITES) | st.sampled_from(FAILING)
an_index = st.integers(0, 5)


class Refused(Exception):
    """What a program raises to leave a block by an exception, or in a callback."""


@dataclass
class Side:
    """One of the two: its wrapper, its table, and what its callbacks noted."""

    alias: str
    table: str
    wrapper: Any
    noted: list[object] = field(default_factory=list)

    def sql(self, statement: str) -> str:
        return statement.replace("{table}", self.table)


@dataclass
class Result:
    """What an action returned or raised; exceptions are not kept, they keep frames."""

    value: Any = None
    raised: str = ""
    #: Whether the server has seen it: it ran, or failed there.
    reached_server: bool = True

    def comparable(self) -> object:
        return self.raised or self.value

    def __repr__(self) -> str:
        return f"raised {self.raised}" if self.raised else repr(self.value)


@dataclass
class Cursors:
    """One cursor of each side, opened by the same step."""

    stock: Any
    ours: Any
    named: bool
    state: str = "open"  # or "closed", or "cut off" by the end of their session

    def of(self, side: Side) -> Any:
        return self.stock if side.table == "item_stock" else self.ours


def attempt(action: Callable[[Side], Any], side: Side) -> Result:
    try:
        return Result(action(side))
    except Exception as error:  # noqa: BLE001 - any exception is compared
        cause = error.__cause__
        name = type(error).__name__
        if isinstance(cause, psycopg.Error):
            name += f" from {type(cause).__name__}"
        text = str(error).replace("item_early", "item_stock")
        reached = getattr(cause, "sqlstate", None) is not None
        return Result(raised=f"{name}: {text}", reached_server=reached)


def rows(cursor: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in cursor.fetchall()]


class Machine(RuleBasedStateMachine):
    """Runs one program; a subclass names the engine."""

    engine: str
    #: False: both sides have `"pool": False`, and ours must do as stock in everything.
    pooled = True
    observer: Any
    complaints: list[str]
    named_cursors = 0

    # ##### Both sides #####

    @initialize(
        debug=st.booleans(),
        autocommit=st.sampled_from([True, True, True, False]),
        max_age=st.sampled_from([0, None]),
        health_checks=st.booleans(),
    )
    def begin(
        self, debug: bool, autocommit: bool, max_age: int | None, health_checks: bool
    ) -> None:
        self.observer.execute("TRUNCATE item_stock, item_early RESTART IDENTITY")
        for table in ("item_stock", "item_early"):
            self.observer.execute(f"INSERT INTO {table} (name) VALUES ('x'), ('y'), ('z')")
        Machine.named_cursors += 1000
        self.stock = self.side(STOCK_OF[self.engine], "item_stock")
        self.ours = self.side(self.engine, "item_early")
        for wrapper in (self.stock.wrapper, self.ours.wrapper):
            wrapper.force_debug_cursor = debug
            wrapper.settings_dict["AUTOCOMMIT"] = autocommit
            wrapper.settings_dict["CONN_MAX_AGE"] = max_age
            # Stock's check is a statement: with autocommit off it begins a transaction,
            # which the next set_autocommit() then finds, and refuses.  Ours has nothing
            # checked out at that moment (A1), hence nothing to check.
            wrapper.settings_dict["CONN_HEALTH_CHECKS"] = health_checks and autocommit
        self.cursors: list[Cursors] = []
        self.blocks: list[tuple[Any, Any]] = []
        self.pins: list[tuple[Any, Any]] = []
        self.spies: list[tuple[Any, Any]] = []
        self.savepoints: list[Any] = []
        self.callbacks = 0
        self.sound = False  # the last step has passed each check
        # What holds ours, as far as no server can say it.
        self.pinned = 0
        self.connected = False
        self.dropped: list[Any] = []  # weak references to cursors that nobody closed
        self.entered = False  # this step was an entry that reclaims dropped cursors
        self.was_in_transaction = False
        self.statements = 0  # run in the transaction that stock is in
        self.closed_in_failed_transaction = False

    def side(self, alias: str, table: str) -> Side:
        wrapper: Any = connections.create_connection(alias)
        # The program's own settings, to be changed at will.
        wrapper.settings_dict = deepcopy(wrapper.settings_dict)
        if not self.pooled:
            wrapper.settings_dict["OPTIONS"]["pool"] = False
        connections[alias] = wrapper
        # Stock leaves the cursors of an earlier program open: don't use their names.
        wrapper._named_cursor_idx = Machine.named_cursors
        return Side(alias, table, wrapper)

    def both(self, action: Callable[[Side], Any]) -> Result:
        """Do `action` on both sides; return what it did, if it did the same."""
        self.sound = False
        wrapper = self.stock.wrapper
        # connect() makes new lists.
        before = None if wrapper.connection is None else wrapper.savepoint_ids
        stock, ours = attempt(action, self.stock), attempt(action, self.ours)
        if before is not None and before is not wrapper.savepoint_ids:
            # A health check failed, so the connection was replaced; nobody left a pin (P1).
            pinned = self.pinned
            self.session_ended()
            self.pinned = pinned
        self.forget_what_stock_gave_back()
        assert ours.comparable() == stock.comparable(), f"ours: {ours}; stock: {stock}"
        return stock

    def forget_what_stock_gave_back(self) -> None:
        wrapper = self.stock.wrapper
        if self.pooled and wrapper.closed_in_transaction and wrapper.connection is not None:
            # Differs (R7): after close() in a block some pooled wrappers go on with the
            # connection that they gave back.  Django's own forgets it; so do we.
            wrapper.connection = None
            # What it needs no connection for, it answers still.
            wrapper.get_autocommit = lambda: (
                wrapper.autocommit
                if wrapper.in_atomic_block and wrapper.closed_in_transaction
                else type(wrapper).get_autocommit(wrapper)
            )

    def count_statement(self, result: Result) -> None:
        if result.reached_server:
            self.statements += 1

    def stock_in_transaction(self) -> bool:
        connection = self.stock.wrapper.connection
        return connection is not None and connection.pgconn.transaction_status in (2, 3)

    def ours_in_failed_transaction(self) -> bool:
        connection = self.ours.wrapper.connection
        return connection is not None and connection.pgconn.transaction_status == 3

    def session_ended(self) -> None:
        """Note that close() was called on both sides: no hold is left (R8)."""
        for cursors in self.cursors:
            if cursors.state == "open":
                cursors.state = "cut off"
        self.dropped.clear()
        self.pinned = 0
        self.connected = False
        self.was_in_transaction = False
        self.statements = 0
        self.entered = True

    def cursor_came_and_went(self) -> None:
        self.entered = True
        self.connected = False

    # ##### Statements #####

    def execute(self, cursor: Any, side: Side, statement: str) -> Any:
        cursor.execute(side.sql(statement))
        found = rows(cursor) if cursor.description else None
        return cursor.rowcount, found

    @rule(statement=a_statement)
    def query(self, statement: str) -> None:
        def run(side: Side) -> Any:
            with side.wrapper.cursor() as cursor:
                return self.execute(cursor, side, statement)

        self.count_statement(self.both(run))
        self.cursor_came_and_went()

    @rule(statement=st.sampled_from(RAW))
    def raw_statement(self, statement: str) -> None:
        self.query(statement)

    @rule(statement=st.sampled_from(WRITES + FAILING))
    def save(self, statement: str) -> None:
        """As `Model.save()`: an error in a block is the end of the block."""

        def run(side: Side) -> Any:
            with (
                transaction.mark_for_rollback_on_error(using=side.alias),
                side.wrapper.cursor() as cursor,
            ):
                return self.execute(cursor, side, statement)

        self.count_statement(self.both(run))
        self.cursor_came_and_went()

    @rule()
    def enter_execute_wrapper(self) -> None:
        def enter(side: Side) -> Any:
            def spy(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
                # Differs (A2): savepoints are sent later, or never.
                if "SAVEPOINT S" not in sql.upper().replace('"', ""):
                    side.noted.append((sql.replace(side.table, ""), params, many))
                return execute(sql, params, many, context)

            manager = side.wrapper.execute_wrapper(spy)
            manager.__enter__()
            return manager

        stock, ours = enter(self.stock), enter(self.ours)
        self.spies.append((stock, ours))

    @precondition(lambda self: self.spies)
    @rule()
    def exit_execute_wrapper(self) -> None:
        for manager in self.spies.pop():
            manager.__exit__(None, None, None)

    @rule(many=st.lists(st.sampled_from("efgx"), min_size=1, max_size=3))
    def write_many(self, many: list[str]) -> None:
        def run(side: Side) -> Any:
            with side.wrapper.cursor() as cursor:
                sql = side.sql("INSERT INTO {table} (name) VALUES (%s)")
                cursor.executemany(sql, [(name,) for name in many])
                return cursor.rowcount

        self.count_statement(self.both(run))
        self.cursor_came_and_went()

    @rule()
    def temporary_connection(self) -> None:
        closes = self.stock.wrapper.connection is None

        def run(side: Side) -> Any:
            with side.wrapper.temporary_connection() as cursor:
                return self.execute(cursor, side, READS[0])

        self.count_statement(self.both(run))
        self.cursor_came_and_went()
        if closes:
            self.session_ended()

    # ##### Cursors #####

    def open(self, named: bool, statement: str | None) -> None:
        opened: dict[str, Any] = {}

        def run(side: Side) -> Any:
            wrapper = side.wrapper
            cursor = wrapper.chunked_cursor() if named else wrapper.cursor()
            opened[side.alias] = cursor
            if statement is None:
                return None
            cursor.execute(side.sql(statement))
            return [tuple(row) for row in cursor.fetchmany(2)]

        result = self.both(run)
        if statement is not None and opened:
            self.count_statement(result)
        assert len(opened) != 1, "one side opened a cursor"
        if opened:
            self.entered = True
            self.cursors.append(
                Cursors(opened[self.stock.alias], opened[self.ours.alias], named)
            )

    @rule(statement=st.none() | st.sampled_from(READS))
    def open_cursor(self, statement: str | None) -> None:
        self.open(False, statement)

    @rule(statement=st.none() | st.sampled_from(READS) | st.just("SELEC 1"))
    def open_iterator(self, statement: str | None) -> None:
        self.open(True, statement)

    def is_ours_alone(self, cursors: Cursors) -> bool:
        return self.pooled and cursors.named and cursors.state != "open"

    def ours_alone(self, action: Callable[[Side], Any]) -> Result:
        """Do on ours what isn't done on stock, and leave no other trace of it."""
        noted = len(self.ours.noted)
        result = attempt(action, self.ours)
        del self.ours.noted[noted:]
        self.stock.wrapper.errors_occurred |= self.ours.wrapper.errors_occurred
        self.ours.wrapper.queries_log.clear()
        return result

    @precondition(lambda self: self.cursors)
    @rule(index=an_index, statement=a_statement | st.sampled_from(RAW))
    def execute_on_cursor(self, index: int, statement: str) -> None:
        cursors = self.cursors[index % len(self.cursors)]

        def run(side: Side) -> Any:
            cursor = cursors.of(side)
            cursor.execute(side.sql(statement))
            return None if cursors.named else cursor.rowcount

        if self.is_ours_alone(cursors) or (cursors.state == "cut off" and self.pooled):
            # Differs (R7, R8): stock's cursor reaches its connection still, which may be
            # another thread's; psycopg's server-side one even when it is closed.
            result = self.ours_alone(run)
            assert result.raised.startswith(
                TransactionManagementError.__name__
                if self.ours.wrapper.needs_rollback
                else InterfaceError.__name__
            ), f"R8: executing on a cursor that was cut off: {result}"
            return
        self.count_statement(self.both(run))

    @precondition(lambda self: self.cursors)
    @rule(index=an_index, size=st.integers(1, 3))
    def fetch(self, index: int, size: int) -> None:
        cursors = self.cursors[index % len(self.cursors)]

        def run(side: Side) -> Any:
            return [tuple(row) for row in cursors.of(side).fetchmany(size)]

        if self.is_ours_alone(cursors):
            # Differs (R8): stock's would send FETCH over a connection given back, and
            # dj_db_conn_pool's fails with AttributeError, closed or not.
            result = self.ours_alone(run)
            assert result.raised.startswith(InterfaceError.__name__), result
            return
        result = self.both(run)
        if cursors.named:
            self.count_statement(result)

    @precondition(lambda self: self.cursors)
    @rule(index=an_index)
    def close_cursor(self, index: int) -> None:
        cursors = self.cursors[index % len(self.cursors)]
        if self.is_ours_alone(cursors):
            # Differs (R5): stock's sends CLOSE again if the first one failed.
            result = self.ours_alone(lambda side: cursors.ours.close())
            assert not result.raised, result
            return
        self.both(lambda side: cursors.of(side).close())
        if cursors.state == "open":
            cursors.state = "closed"
            self.cursor_came_and_went()

    @precondition(lambda self: self.cursors)
    @rule(index=an_index)
    def drop_cursor(self, index: int) -> None:
        cursors = self.cursors.pop(index % len(self.cursors))
        if cursors.state == "open":
            self.dropped.append(ref(cursors.ours.cursor))
        cursors.stock = cursors.ours = None
        if self.dropped and self.dropped[-1]() is not None:
            gc.collect()

    # ##### Blocks #####

    @rule(savepoint=st.booleans(), durable=st.sampled_from([False, False, True]))
    def enter_atomic(self, savepoint: bool, durable: bool) -> None:
        stock, ours = (
            transaction.atomic(side.alias, savepoint=savepoint, durable=durable)
            for side in (self.stock, self.ours)
        )
        result = self.both(lambda s: (stock if s is self.stock else ours).__enter__())
        if not result.raised:
            self.blocks.append((stock, ours))

    @precondition(lambda self: self.blocks)
    @rule(raising=st.booleans())
    def exit_atomic(self, raising: bool) -> None:
        stock, ours = self.blocks.pop()
        info = (Refused, Refused(), None) if raising else (None, None, None)
        self.both(lambda s: (stock if s is self.stock else ours).__exit__(*info))
        if not self.blocks and not self.stock.wrapper.closed_in_transaction:
            self.entered = self.entered or self.was_in_transaction

    @rule(value=st.booleans())
    def set_rollback(self, value: bool) -> None:
        self.both(lambda side: side.wrapper.set_rollback(value))

    @rule()
    def get_rollback(self) -> None:
        self.both(lambda side: side.wrapper.get_rollback())

    @rule()
    def savepoint(self) -> None:
        result = self.both(lambda side: side.wrapper.savepoint())
        if result.raised:
            self.cursor_came_and_went()  # it was refused when it was about to be sent
        if result.value is not None:
            self.savepoints.append(result.value)

    @precondition(lambda self: self.savepoints)
    @rule(index=an_index, commit=st.booleans())
    def end_savepoint(self, index: int, commit: bool) -> None:
        sid = self.savepoints[index % len(self.savepoints)]

        def run(side: Side) -> Any:
            wrapper = side.wrapper
            (wrapper.savepoint_commit if commit else wrapper.savepoint_rollback)(sid)

        result = self.both(run)
        if result.raised:
            # Else it may be one that ours never sent (A2).
            self.count_statement(result)
            self.cursor_came_and_went()

    # ##### Modes and ends #####

    @rule()
    def get_autocommit(self) -> None:
        self.both(lambda side: side.wrapper.get_autocommit())

    @rule(value=st.booleans())
    def set_autocommit(self, value: bool) -> None:
        self.sound = False

        def run(side: Side) -> Any:
            return side.wrapper.set_autocommit(value)

        ours = attempt(run, self.ours)
        if (
            self.pooled
            and not ours.raised
            and self.stock_in_transaction()
            and not self.statements
        ):
            # Differs (A2): stock is in a transaction in which it ran nothing but SAVEPOINT
            # and RELEASE for blocks, so psycopg refuses.  Ours sent none of them.
            self.stock.wrapper.connection.rollback()
        stock = attempt(run, self.stock)
        assert ours.comparable() == stock.comparable(), f"ours: {ours}; stock: {stock}"

    @rule()
    def commit(self) -> None:
        if not self.both(lambda side: side.wrapper.commit()).raised:
            self.entered = True

    @rule()
    def rollback(self) -> None:
        if not self.both(lambda side: side.wrapper.rollback()).raised:
            self.entered = True

    @rule()
    def close(self) -> None:
        self.both(lambda side: side.wrapper.close())
        self.session_ended()

    @rule()
    def close_old_connections(self) -> None:
        was_connected = self.stock.wrapper.connection is not None
        self.both(lambda side: side.wrapper.close_if_unusable_or_obsolete())
        stock, ours = self.stock.wrapper, self.ours.wrapper
        if stock.connection is None and was_connected:
            self.session_ended()
        if (
            self.pooled
            and stock.closed_in_transaction
            and not stock.atomic_blocks
            and (stock.in_atomic_block and not ours.in_atomic_block)
        ):
            # Differs (D2): closed in a block that was entered with autocommit off, stock's
            # wrapper is of no use for good.  The next request of the thread gets ours anew.
            stock.in_atomic_block = stock.closed_in_transaction = False

    @rule()
    def ensure_connection(self) -> None:
        if not self.both(lambda side: side.wrapper.ensure_connection()).raised:
            self.connected = True

    # "Assume that the connection is closed", says stock, and loses the one that is not.
    @precondition(lambda self: self.stock.wrapper.connection is None)
    @rule()
    def connect(self) -> None:
        self.session_ended()
        if not self.both(lambda side: side.wrapper.connect()).raised:
            self.connected = True

    # ##### Pins #####

    @rule()
    def enter_pin(self) -> None:
        stock, ours = pin_connection(self.stock.alias), pin_connection(self.ours.alias)

        def enter(side: Side) -> Any:
            (stock if side is self.stock else ours).__enter__()

        if not self.both(enter).raised:
            self.pins.append((stock, ours))
            self.pinned += 1

    @precondition(lambda self: self.pins)
    @rule()
    def leave_pin(self) -> None:
        stock, ours = self.pins.pop()
        self.both(lambda s: (stock if s is self.stock else ours).__exit__(None, None, None))
        if self.pinned:
            self.pinned -= 1
            if not self.pinned:
                self.connected = False

    # ##### Callbacks #####

    # Differs (R8): after close() in a block stock keeps what on_commit() is given there,
    # and may run it when it connects next, though the block was lost.  Not asked for.
    @precondition(
        lambda self: not (self.pooled and self.stock.wrapper.closed_in_transaction)
    )
    @rule(kind=st.sampled_from(CALLBACKS), robust=st.booleans())
    def on_commit(self, kind: str, robust: bool) -> None:
        self.callbacks += 1
        number = self.callbacks
        self.both(
            lambda side: side.wrapper.on_commit(self.callback(side, number, kind), robust)
        )

    def callback(self, side: Side, number: int, kind: str) -> Callable[[], None]:
        wrapper = side.wrapper

        def query(statement: str) -> None:
            try:
                with wrapper.cursor() as cursor:
                    side.noted.append(self.execute(cursor, side, statement))
            finally:
                if side is self.ours:
                    self.cursor_came_and_went()

        def called() -> None:
            mode = wrapper.get_autocommit()
            side.noted.append((number, kind, wrapper.in_atomic_block, mode))
            if side is self.ours:
                self.the_one_rule_in_a_callback()
            if kind == "raise":
                raise Refused(str(number))
            elif kind == "query":
                query(READS[0])
            elif kind == "write":
                query(WRITES[2])
            elif kind == "fail":
                query(FAILING[0])
            elif kind == "atomic":
                with transaction.atomic(side.alias):
                    query(WRITES[2])
                    wrapper.on_commit(lambda: side.noted.append((number, "nested")))
                side.noted.append((number, "left"))
            elif kind == "atomic that fails":
                with transaction.atomic(side.alias):
                    query(WRITES[2])
                    raise Refused(str(number))
            elif kind == "close":
                wrapper.close()
                if side is self.ours:
                    self.session_ended()
            elif kind == "autocommit off":
                wrapper.set_autocommit(False)
            elif kind == "on_commit":
                wrapper.on_commit(lambda: side.noted.append((number, "at once")))

        return called

    # ##### What must be so after each step #####

    @invariant()
    def same_as_stock(self) -> None:
        self.sound = False
        name = self.engine if self.pooled else "unpooled"
        fix_hypothesis.steps[name] = fix_hypothesis.steps.get(name, 0) + 1
        stock, ours = self.stock.wrapper, self.ours.wrapper
        in_stock, in_ours, in_transaction = self.observer.execute(LOOK).fetchone()
        assert in_ours == in_stock, "a third connection sees other rows"
        assert self.ours.noted == self.stock.noted, "callbacks"
        for name in ("in_atomic_block", "needs_rollback"):
            assert getattr(ours, name) is getattr(stock, name), name
        assert len(ours.savepoint_ids) == len(stock.savepoint_ids)
        assert len(ours.run_on_commit) == len(stock.run_on_commit)
        if stock.connection is not None:
            assert ours.get_autocommit() is stock.get_autocommit(), "get_autocommit()"
        self.same_log()
        self.the_one_rule(in_transaction)
        assert not self.complaints, self.complaints
        self.sound = True

    def same_log(self) -> None:
        """D1: `connection.queries` has the same statements."""
        stock, ours = (
            [
                entry["sql"].replace("item_early", "item_stock")
                for entry in side.wrapper.queries_log
                if entry["sql"] is not None  # refused before it was sent
            ]
            for side in (self.stock, self.ours)
        )
        assert ours == stock, f"connection.queries: ours {ours}; stock {stock}"
        self.stock.wrapper.queries_log.clear()
        self.ours.wrapper.queries_log.clear()

    def the_one_rule(self, in_transaction: list[int]) -> None:
        """Leased if and only if a hold exists, by the pool's own count."""
        stock = self.stock.wrapper.connection
        if not self.stock_in_transaction():
            self.statements = 0
        if not self.pooled:
            both = 2 * self.stock_in_transaction()
            # The server takes a moment to see that a connection was closed.
            wait_until(
                lambda: len(self.observer.execute(LOOK).fetchone()[2]) == both,
                f"{both} connections are in a transaction",
            )
            return
        others = set(in_transaction)
        if self.stock_in_transaction():
            others.discard(stock.pgconn.backend_pid)
        assert len(others) <= 1, "two connections of ours are in a transaction"
        if others:
            assert self.stock_in_transaction(), (
                f"ours is in a transaction, stock is not: {self.activity(others)}"
            )
        else:
            assert not self.statements, "stock is in a transaction, ours is not"
        if self.was_in_transaction and not others:
            self.connected = False
        self.was_in_transaction = bool(others)

        in_use = census(self.ours.alias).in_use
        alive = [cursor for cursor in self.dropped if cursor() is not None]
        if len(alive) < len(self.dropped) and (self.entered or not in_use):
            self.connected = False  # a cursor's hold has ended: it was reclaimed
        holds = self.holds() + ["transaction"] * len(others)
        if holds or alive:
            assert in_use == 1, f"{in_use} connections in use, held by {holds or alive}"
        elif in_use and (self.entered or not self.dropped):
            # A pool may be about to add one that it has just made.
            wait_until(
                lambda: census(self.ours.alias).in_use == 0,
                f"{in_use} connections in use, held by nothing",
            )
            in_use = 0
        if self.entered or not in_use:
            self.dropped = alive
        self.entered = False
        if self.ours_in_failed_transaction() and (
            self.dropped or any(c.named and c.state == "open" for c in self.cursors)
        ):
            self.closed_in_failed_transaction = True  # or will be
        if in_use and others:
            assert others == {self.ours.wrapper.connection.pgconn.backend_pid}

    def activity(self, pids: set[int]) -> list[Any]:
        """Return what the server tells of these; nothing of those that have ended."""
        asked = (
            "SELECT pid, state, query, backend_start, state_change, clock_timestamp() "
            "FROM pg_stat_activity WHERE pid = ANY(%s)"
        )
        return list(self.observer.execute(asked, [list(pids)]).fetchall())

    def holds(self) -> list[str]:
        return (
            ["cursor" for cursors in self.cursors if cursors.state == "open"]
            + ["pin"] * self.pinned
            + ["explicit connect"] * self.connected
        )

    def the_one_rule_in_a_callback(self) -> None:
        """R2: nothing is held for a callback, but what else has a hold."""
        if self.connected or self.dropped or not self.pooled:
            return
        in_transaction = set(self.observer.execute(LOOK).fetchone()[2])
        if self.stock_in_transaction():
            in_transaction.discard(self.stock.wrapper.connection.pgconn.backend_pid)
        expected = 1 if self.holds() or in_transaction else 0
        assert census(self.ours.alias).in_use == expected, (self.holds(), in_transaction)

    def teardown(self) -> None:
        if not hasattr(self, "ours"):
            return
        try:
            if self.sound:
                self.unwind()
        finally:
            self.cursors.clear()
            for side in (self.stock, self.ours):
                wrapper = side.wrapper
                wrapper.in_atomic_block = wrapper.closed_in_transaction = False
                wrapper.close()
                del connections[side.alias]
            self.complaints.clear()
            # What a program that failed has lost must not fail the next one as well.
            self.observer.execute(END_TRANSACTIONS)

    def unwind(self) -> None:
        while self.blocks:
            self.exit_atomic(raising=False)
            self.same_as_stock()
        while self.pins:
            self.leave_pin()
            self.same_as_stock()
        self.close()
        self.same_as_stock()
        if self.pooled:
            self.no_server_side_cursor_is_left()

    def no_server_side_cursor_is_left(self) -> None:
        self.ours.wrapper.in_atomic_block = False
        with self.ours.wrapper.cursor() as cursor:
            cursor.execute("SELECT name FROM pg_cursors")
            left = [name for (name,) in rows(cursor) if self.is_of_this_program(name)]
            # psycopg closes none while a transaction has failed.
            assert not left or self.closed_in_failed_transaction, left

    @staticmethod
    def is_of_this_program(name: str) -> bool:
        return int(name.rpartition("_")[2]) > Machine.named_cursors


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
    quiet = [
        logging.getLogger(name)
        for name in (
            "django.db.backends.base",
            "psycopg",
            "psycopg.pool",
            "dj_db_conn_pool.core.mixins.core",
            "sqlalchemy.pool",
        )
    ]
    package = logging.getLogger("django_pg_real_pool")
    handler = _Complaints()
    for logger in quiet:
        logger.disabled = True
    package.addHandler(handler)
    package.propagate = False
    yield handler.texts
    package.propagate = True
    package.removeHandler(handler)
    for logger in quiet:
        logger.disabled = False


@pytest.fixture
def tables(observer: Any) -> Iterator[None]:
    observer.execute("SET lock_timeout = '10s'")
    for table in ("item_stock", "item_early"):
        observer.execute(f"DROP TABLE IF EXISTS {table}")
        observer.execute(
            f"CREATE TABLE {table} (id serial PRIMARY KEY, name text NOT NULL UNIQUE)"
        )
    yield
    for table in ("item_stock", "item_early"):
        observer.execute(f"DROP TABLE {table}")


def run_programs(machine: type[Machine], observer: Any, complaints: list[str]) -> None:
    machine.observer = observer
    machine.complaints = complaints
    for alias in (machine.engine, STOCK_OF[machine.engine]):
        # A pool that grows counts a connection before it has it: let it grow first.
        backend_pid(alias)
        connections[alias].close()
        wait_until(lambda alias=alias: census(alias).in_use == 0, "pool")  # type: ignore[misc]
    with warnings.catch_warnings():
        # R6: a cursor that was dropped unclosed is told of by ResourceWarning.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            run_state_machine_as_test(machine, settings=settings())
        finally:
            gc.collect()


@pytest.mark.usefixtures("tables")
def test_any_program_does_the_same_as_on_stock(
    alias: str, observer: Any, complaints: list[str]
) -> None:
    """D1, D2, D3, A1-A5, R1, R2, R4, R5, R6, R8 and the one rule, in any order of steps."""

    class OnEngine(Machine):
        engine = alias

    run_programs(OnEngine, observer, complaints)
    assert fix_hypothesis.steps[alias] >= fix_hypothesis.fewest_steps()


@pytest.mark.usefixtures("tables")
def test_without_a_pool_any_program_does_the_same_as_on_stock(
    observer: Any, complaints: list[str]
) -> None:
    """D7: with `"pool": False` nothing is released early, and nothing else differs."""

    class Unpooled(Machine):
        engine = "native"
        pooled = False

    run_programs(Unpooled, observer, complaints)
