"""What the wild programs are made of: requests, receivers, and the pools seen from outside.

See `test_wild_programs.py`.  A `Seat` is one wrapper of one request, once on stock and
once on ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.db import connections, transaction
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

IDLE = TransactionStatus.IDLE
IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)

#: Every setting of the programs' own.
SETTINGS = ("app.tenant", "app.wrapped", "app.raw")

#: What a session can see of itself.  `app.user` and `statement_timeout` are receivers'.
LOOK = (
    "SELECT "
    + ", ".join(f"nullif(current_setting('{name}', true), '')" for name in SETTINGS)
    + """,
       nullif(current_setting('app.user', true), ''),
       current_setting('statement_timeout'), current_setting('TimeZone'),
       ARRAY(SELECT channel FROM pg_listening_channels() AS channel),
       ARRAY(SELECT name FROM pg_prepared_statements),
       ARRAY(SELECT relname::text FROM pg_class WHERE relkind = 'r'
             AND relnamespace = pg_my_temp_schema()),
       (SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid())"""
)

#: What must be found of it on a connection that is idle in the pool.
CLEAN = (
    "SELECT "
    + ", ".join(f"nullif(current_setting('{name}', true), '')" for name in SETTINGS)
    + """,
       nullif(ARRAY(SELECT name FROM pg_cursors WHERE name <> ''), '{}'),
       nullif(ARRAY(SELECT channel FROM pg_listening_channels() AS channel), '{}'),
       nullif(ARRAY(SELECT name FROM pg_prepared_statements), '{}'),
       nullif(ARRAY(SELECT relname::text FROM pg_class
                    WHERE relnamespace = pg_my_temp_schema()), '{}'),
       nullif((SELECT count(*) FROM pg_locks
               WHERE locktype = 'advisory' AND pid = pg_backend_pid()), 0)"""
)

AGE = (
    "SELECT extract(epoch FROM clock_timestamp() - backend_start)::float "
    "FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)


class Refused(Exception):
    """What a program raises to leave a block, or what a receiver raises."""


# ##### Requests #####


@dataclass
class Side:
    """One wrapper of a seat, its table, and what its callbacks and wrappers noted."""

    name: str  # "stock" or "ours"
    alias: str
    table: str
    wrapper: Any
    noted: list[object] = field(default_factory=list)
    has_raised: bool = False

    def sql(self, statement: str) -> str:
        return statement.replace("{table}", self.table)


@dataclass
class Cursors:
    """One cursor of each side, opened by the same step."""

    stock: Any
    ours: Any
    is_named: bool

    def of(self, side: Side) -> Any:
        return self.stock if side.name == "stock" else self.ours


@dataclass
class Seat:
    """One wrapper of a request on both sides, and what the program knows of it."""

    number: int
    request: str
    stock: Side
    ours: Side
    user: str | None = None
    receivers: tuple[str, ...] = ()
    cursors: list[Cursors] = field(default_factory=list)
    blocks: list[tuple[Any, Any]] = field(default_factory=list)
    pins: list[tuple[Any, Any]] = field(default_factory=list)
    spies: list[tuple[Any, Any]] = field(default_factory=list)
    #: "", "outside" of a transaction, or in a "transaction": its connections are dead.
    dead: str = ""
    #: A statement may have changed the session.
    has_changed: bool = False
    #: A cursor may have been dropped, or a connection be held in a way not followed here.
    is_loose: bool = False
    is_connected: bool = False
    #: The lease ends with a clean session, because somebody could reach the driver (S8).
    is_touched: bool = False
    #: What was written in the transaction that is open.
    pending: set[str] = field(default_factory=set)

    def sides(self) -> tuple[Side, Side]:
        return self.stock, self.ours

    def in_block(self) -> bool:
        return bool(self.blocks)

    def in_transaction(self) -> bool:
        return in_transaction(self.stock.wrapper)

    def is_beyond_blocks(self) -> bool:
        """Whether a block's savepoint would fail, after which Django's wrapper is of no use."""
        wrapper = self.stock.wrapper
        if self.blocks or wrapper.autocommit:
            return False
        return bool(self.dead) or (
            self.in_transaction()
            and wrapper.connection.pgconn.transaction_status == TransactionStatus.INERROR
        )

    def is_plain(self) -> bool:
        """Whether it is alive, outside any block, and in autocommit."""
        return (
            not self.dead
            and not self.blocks
            and self.stock.wrapper.autocommit is not False
            and self.ours.wrapper.autocommit is not False
            and not self.in_transaction()
        )

    def session_ended(self) -> None:
        self.cursors.clear()
        self.dead = ""
        self.has_changed = self.is_loose = self.is_connected = self.is_touched = False
        self.pending.clear()


def in_transaction(wrapper: Any) -> bool:
    connection = wrapper.connection
    return (
        connection is not None
        and not is_gone(connection)
        and (connection.pgconn.transaction_status in IN_TRANSACTION)
    )


def is_gone(connection: Any) -> bool:
    """Return whether a connection is known to be closed."""
    physical = physical_of(connection)
    return physical is None or bool(physical.closed)


def is_running(pid: int) -> bool:
    """Return whether a server process is there still, as far as this system tells."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def physical_of(connection: Any) -> Any:
    """Return psycopg's connection, of which a pool may have given out a proxy."""
    return getattr(connection, "dbapi_connection", connection)


def pid_of(wrapper: Any) -> int:
    connection = wrapper.connection
    if connection is None or is_gone(connection):
        return 0
    return int(physical_of(connection).info.backend_pid)


#: Whose code is running, as a middleware would know it.
speaker: ContextVar[Seat | None] = ContextVar("speaker", default=None)


@contextmanager
def speaking(seat: Seat, side: Side) -> Iterator[None]:
    """Let a request run in this thread: its wrapper, and its context."""
    connections[side.alias] = side.wrapper
    token = speaker.set(seat)
    try:
        yield
    finally:
        speaker.reset(token)


# ##### What actions return #####


#: How a connection died is told in many ways, by whoever noticed first.
OF_DEATH = ("OperationalError", "InternalError", "InterfaceError")


@dataclass
class Result:
    """What an action returned or raised; exceptions are not kept, they keep frames."""

    value: Any = None
    raised: str = ""
    text: str = ""

    def comparable(self, is_dead: bool) -> object:
        if not self.raised:
            return self.value
        if is_dead and self.raised.split()[0] in OF_DEATH:
            return "its connection is dead"
        return self.raised, self.text

    def __repr__(self) -> str:
        return f"raised {self.raised}: {self.text}" if self.raised else repr(self.value)


def attempt(action: Callable[[Side], Any], seat: Seat, side: Side) -> Result:
    with speaking(seat, side):
        try:
            return Result(action(side))
        except Exception as error:  # noqa: BLE001 - any exception is compared
            name = type(error).__name__
            cause = error.__cause__
            if isinstance(cause, psycopg.Error) and cause.sqlstate is not None:
                name += f" {cause.sqlstate}"
            return Result(raised=name, text=same_for_both(str(error)))


def rows(found: list[Any]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in found]


def run(cursor: Any, side: Side, statement: str) -> Any:
    cursor.execute(side.sql(statement))
    found = rows(cursor.fetchall()) if cursor.description else None
    return cursor.rowcount, same_for_both(found)


def same_for_both(value: Any) -> Any:
    """Return rows without what tells one side from the other."""
    if isinstance(value, str):
        return value.replace("wild_early", "wild_stock").replace("wild_ours", "wild_stock")
    if isinstance(value, (list, tuple)):
        return type(value)(map(same_for_both, value))
    return value


def ask(side: Side, statement: str) -> Any:
    with side.wrapper.cursor() as cursor:
        return run(cursor, side, statement)


# ##### Receivers of connection_created #####


def static(db: Any, seat: Seat) -> None:
    with db.cursor() as cursor:
        cursor.execute("SET statement_timeout = '77s'")


def per_request(db: Any, seat: Seat) -> None:
    if seat.user is not None:
        with db.cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', %s, false)", [seat.user])


def through_the_driver(db: Any, seat: Seat) -> None:
    if seat.user is not None:
        db.connection.execute("SELECT set_config('app.user', %s, false)", [seat.user])


def querying(db: Any, seat: Seat) -> None:
    with db.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM wild_stock_0")
        cursor.fetchone()


def in_a_block(db: Any, seat: Seat) -> None:
    with transaction.atomic(using=db.alias):
        per_request(db, seat)


def raising(db: Any, seat: Seat) -> None:
    """Raise the first time that a session of a side is announced."""
    side = next(each for each in seat.sides() if each.alias == db.alias)
    if not side.has_raised:
        side.has_raised = True
        raise Refused("a receiver")


RECEIVERS: dict[str, Callable[[Any, Seat], None]] = {
    each.__name__: each
    for each in (static, per_request, through_the_driver, querying, in_a_block, raising)
}

#: What a request's receivers may be.  What raises comes last: stock's are not heard again.
CASTS: list[tuple[str, ...]] = [
    (),
    ("static",),
    ("per_request",),
    ("through_the_driver",),
    ("static", "per_request"),
    ("querying", "per_request"),
    ("in_a_block",),
    ("raising",),
    ("static", "raising"),
    ("per_request", "raising"),
]


# ##### Execute wrappers #####


def spying(seat: Seat, side: Side) -> Any:
    """Note the statements, but not savepoints, nor what announces a connection."""

    def spy(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        text = str(sql)
        is_unlike = "SAVEPOINT" in text or "app.wrapped" in text
        if not is_unlike and not announcing.get():
            side.noted.append((same_for_both(text), params, many))
        return execute(sql, params, many, context)

    return spy


def sending(seat: Seat, side: Side) -> Any:
    """Send a SET before each statement, savepoints too."""
    is_at_work = False

    def send(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        nonlocal is_at_work
        if not is_at_work and not announcing.get():
            is_at_work = True
            try:
                with context["connection"].cursor() as cursor:
                    cursor.execute(f"SET app.wrapped = '{seat.request}'")
            finally:
                is_at_work = False
        return execute(sql, params, many, context)

    return send


def rewriting(seat: Seat, side: Side) -> Any:
    """Make of a harmless statement one that changes the session."""

    def rewrite(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if sql == REWRITTEN:
            sql = f"SELECT set_config('app.tenant', 'rewritten by {seat.request}', false)"
        return execute(sql, params, many, context)

    return rewrite


REWRITTEN = "SELECT 'a statement that may be rewritten'"

SPIES: dict[str, Callable[[Seat, Side], Any]] = {
    "spying": spying,
    "sending": sending,
    "rewriting": rewriting,
}

#: Whether receivers are at work.
announcing: ContextVar[bool] = ContextVar("announcing", default=False)


# ##### Pools, from outside #####


def pool_of(side: Side) -> Any:
    """Return the pool behind a side, or None if it has none yet."""
    if side.alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        return pool_container.get(side.alias) if pool_container.has(side.alias) else None
    if side.alias.endswith("own"):
        return side.wrapper.small_pool
    pool = side.wrapper._connection_pools.get(side.alias)
    return None if pool is None or pool.closed else pool


def count_idle(pool: Any) -> int:
    if hasattr(pool, "get_stats"):
        return int(pool.get_stats()["pool_available"])
    return int(pool.checkedin()) if hasattr(pool, "checkedin") else len(pool.idle)


def take_raw(pool: Any) -> Any:
    """Take a connection past Django, as a second user of the pool does."""
    if hasattr(pool, "getconn"):
        return pool.getconn(5)
    if hasattr(pool, "connect"):
        return pool.connect()
    assert pool.free.acquire(timeout=5)
    connection = pool.idle.pop()
    pool.in_use.add(connection)
    return connection


def give_raw(pool: Any, connection: Any) -> None:
    if hasattr(pool, "putconn"):
        pool.putconn(connection)
    elif hasattr(pool, "connect"):
        if physical_of(connection).closed:
            connection.invalidate()
        connection.close()
    else:
        pool.in_use.remove(connection)
        pool.idle.append(connection)
        pool.free.release()


@contextmanager
def all_idle(pool: Any) -> Iterator[list[Any]]:
    """Take all that is idle, by the pool's public ways, and put it back."""
    taken: list[Any] = []
    try:
        while count_idle(pool):
            taken.append(take_raw(pool))
        yield taken
    finally:
        for connection in reversed(taken):
            give_raw(pool, connection)


def is_alive(physical: Any) -> bool:
    if physical.closed:
        return False
    try:
        physical.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def faults_of(connection: Any) -> list[str]:
    """Return what is wrong with a connection that was idle (R9, S3, S7, S8)."""
    physical = physical_of(connection)
    if physical.closed:
        return []
    found = []
    if not physical.autocommit:
        found.append("it is not in autocommit")
    if physical.pgconn.transaction_status != IDLE:
        found.append(f"transaction status {physical.pgconn.transaction_status}")
    if physical.row_factory is not tuple_row:
        found.append("its row factory was changed")
    for name in ("isolation_level", "read_only", "deferrable"):
        if getattr(physical, name) is not None:
            found.append(f"its {name} is {getattr(physical, name)}")
    if physical.prepare_threshold is not None:
        found.append("it prepares statements")
    if getattr(physical, "_notifies_backlog", None):
        found.append("it has notifications in its backlog")
    if physical._notice_handlers or physical._notify_handlers:
        found.append("it has handlers")
    if found:
        return found
    try:
        state = physical.execute(CLEAN).fetchone()
    except psycopg.OperationalError:
        return []  # it was killed
    if physical.pgconn.notifies() is not None:
        found.append("it has notifications")
    names = (*SETTINGS, "cursors", "channels", "prepared", "temporary", "locks")
    return found + [
        f"{name}: {value}"
        for name, value in zip(names, state, strict=True)
        if value is not None
    ]


def make_clean(wrapper: Any, connection: Any) -> None:
    """Make a session of stock's as new, which stock itself never does."""
    physical = physical_of(connection)
    if not is_alive(physical):
        return
    if physical.pgconn.transaction_status != IDLE:
        physical.rollback()
    autocommit = physical.autocommit
    physical.autocommit = True
    physical.execute("DISCARD ALL")
    while physical.pgconn.notifies() is not None:
        pass
    if getattr(physical, "_notifies_backlog", None):
        physical._notifies_backlog.clear()
    physical.row_factory = tuple_row
    physical.isolation_level = physical.read_only = physical.deferrable = None
    physical.prepare_threshold = None
    physical._notice_handlers.clear()
    wrapper._configure_connection(physical)
    physical.autocommit = autocommit
