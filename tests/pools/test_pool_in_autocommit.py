"""R9: whoever else uses the pool finds its connections in autocommit, as on stock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ClassVar
from weakref import WeakSet

import django
import pytest
import sqlalchemy
from django.db import DataError, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import backend_pid, installed, run_in_thread, wait_until
from leases import ROWS, Undo
from own_pool.stock.base import DatabaseWrapper as OwnWrapper
from psycopg.errors import ActiveSqlTransaction
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection

REQUESTS = 10

#: On it, stock's connections go back with autocommit off; ours do not.
IS_OLD_SQLALCHEMY = sqlalchemy.__version__.startswith("1.")


@contextmanager
def idle_connections(alias: str) -> Iterator[list[Any]]:
    """Take all that is idle in an alias's pool, past its wrapper."""
    wrapper: Any = connections[alias]
    if alias.endswith("own"):
        yield list(wrapper.small_pool.idle)
        return
    with ExitStack() as stack:
        found = []
        if alias.endswith("dj"):
            from dj_db_conn_pool.core import pool_container

            pool: Any = pool_container.get(alias)
            for _ in range(pool.checkedin()):
                proxy = pool.connect()
                stack.callback(proxy.close)
                found.append(proxy.driver_connection)
        else:
            pool = wrapper.pool
            for _ in range(pool.get_stats()["pool_available"]):
                found.append(stack.enter_context(pool.connection()))
        yield found


def idle_modes(alias: str) -> list[bool]:
    """Return the autocommit of each idle connection."""
    with idle_connections(alias) as found:
        return [each.autocommit for each in found]


# ##### Every idle connection, whatever it was used for #####


def block(alias: str) -> None:
    with atomic(using=alias):
        backend_pid(alias)


def nested_blocks(alias: str) -> None:
    with atomic(using=alias), atomic(using=alias):
        backend_pid(alias)


def block_of_an_iterator(alias: str) -> None:
    with atomic(using=alias), connections[alias].chunked_cursor() as cursor:
        cursor.execute(ROWS.format(10))
        cursor.fetchone()


def failed_block(alias: str) -> None:
    with suppress(DataError), atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def block_that_is_undone(alias: str) -> None:
    with suppress(Undo), atomic(using=alias):
        backend_pid(alias)
        raise Undo


def block_in_an_open_cursor(alias: str) -> None:
    with connections[alias].cursor() as cursor, atomic(using=alias):
        cursor.execute("SELECT 1")


def commit_by_hand(alias: str) -> None:
    connections[alias].set_autocommit(False)
    backend_pid(alias)
    connections[alias].commit()


def rollback_by_hand(alias: str) -> None:
    connections[alias].set_autocommit(False)
    backend_pid(alias)
    connections[alias].rollback()


def close_in_a_transaction(alias: str) -> None:
    connections[alias].set_autocommit(False)
    backend_pid(alias)
    connections[alias].close()


def pinned_block(alias: str) -> None:
    with pin_connection(alias), atomic(using=alias):
        backend_pid(alias)


def pinned_commit_by_hand(alias: str) -> None:
    with pin_connection(alias):
        commit_by_hand(alias)


Use = Callable[[str], None]

#: What stock leaves in autocommit, too.
BLOCKS: list[Use] = [
    block,
    nested_blocks,
    block_of_an_iterator,
    failed_block,
    block_that_is_undone,
    block_in_an_open_cursor,
]
OTHERS: list[Use] = [
    commit_by_hand,
    rollback_by_hand,
    close_in_a_transaction,
    pinned_block,
    pinned_commit_by_hand,
]


@pytest.mark.parametrize("use", BLOCKS)
def test_stock_leaves_its_connections_in_autocommit(alias: str, use: Use) -> None:
    """R9: what the test below asks for is what everybody else is used to."""
    stock = STOCK_OF[alias]
    with extra_alias(f"modes_{stock}", stock, size=1) as name:
        use(name)
        connections[name].close()
        assert idle_modes(name) == [not (alias == "dj" and IS_OLD_SQLALCHEMY)]


@pytest.mark.parametrize("use", [*BLOCKS, *OTHERS])
def test_an_idle_connection_is_in_autocommit(alias: str, use: Use) -> None:
    """R9: as soon as it is back, not only when the request is over."""
    with extra_alias(f"modes_{alias}", alias, size=1) as name:
        backend_pid(name)
        use(name)
        try:
            assert connections[name].connection is None
            assert idle_modes(name) == [True]
        finally:
            connections[name].close()


def test_an_idle_connection_of_a_manual_alias_is_in_autocommit() -> None:
    """R9, D3: `AUTOCOMMIT: False` is the wrapper's affair; Django's pool knows no such."""
    with extra_alias("manual_modes_native", "native", size=1, AUTOCOMMIT=False) as name:
        backend_pid(name)
        connections[name].commit()
        try:
            assert connections[name].connection is None
            assert idle_modes(name) == [True]
        finally:
            connections[name].close()


# ##### Whoever else uses the pool #####


@pytest.mark.parametrize("engine", ["native", "dj"])
@pytest.mark.parametrize("is_stock", [True, False])
def test_who_takes_a_connection_from_the_pool_can_vacuum(
    engine: str, is_stock: bool
) -> None:
    """R9: in a thread of its own, which has no transaction."""
    engine = STOCK_OF[engine] if is_stock else engine

    def vacuum() -> None:
        with idle_connections(name) as (raw,):
            raw.execute("VACUUM item")

    with extra_alias(f"vacuum_{engine}", engine, size=1) as name:
        block(name)
        connections[name].close()
        if engine == "stock_dj" and IS_OLD_SQLALCHEMY:
            with pytest.raises(ActiveSqlTransaction):
                run_in_thread(vacuum)
        else:
            run_in_thread(vacuum)


def requests(alias: str) -> set[int]:
    """Run requests of one block each; return which server processes they met."""
    pids = set()
    for _ in range(REQUESTS):
        with atomic(using=alias):
            pids.add(backend_pid(alias))
        connections[alias].close()
    return pids


def look(connection: Any) -> None:
    """Run a statement, as a `reset` or a `check` of a pool may."""
    connection.execute("SELECT 1")


@pytest.mark.parametrize("engine", ["stock_native", "native"])
def test_a_reset_callback_keeps_the_connection(engine: str) -> None:
    """R9, R10: ten requests, one server process."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5, "reset": look}
    with extra_alias(f"reset_{engine}", engine, OPTIONS={"pool": pool}) as name:
        assert len(requests(name)) == 1


@pytest.mark.skipif(
    django.VERSION < (6, 1), reason="this Django takes no check for its pool"
)
@pytest.mark.parametrize("engine", ["stock_native", "native"])
def test_a_check_callback_may_run_a_statement(engine: str) -> None:
    """R9, R10: the block after it begins as ever, and each checkout was checked."""
    checked: list[Any] = []

    def check(connection: Any) -> None:
        look(connection)
        checked.append(connection.autocommit)

    pool = {"min_size": 1, "max_size": 1, "timeout": 5, "check": check}
    with extra_alias(f"check_{engine}", engine, OPTIONS={"pool": pool}) as name:
        assert len(requests(name)) == 1
        assert checked == [True] * REQUESTS


class LivelyWrapper(OwnWrapper):
    """Asks a connection that was idle whether it lives, as django-db-geventpool does."""

    known: ClassVar[WeakSet[Any]] = WeakSet()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        connection = super().get_new_connection(conn_params)
        if connection in self.known:
            connection.execute("SELECT 1")
        self.known.add(connection)
        return connection


@pytest.mark.parametrize("is_stock", [True, False])
def test_a_pool_may_ask_at_the_checkout_whether_a_connection_lives(is_stock: bool) -> None:
    """R9, D6: by a statement, which begins no transaction in autocommit."""
    backend: Any = LivelyWrapper if is_stock else make_release_backend(LivelyWrapper)
    engine = STOCK_OF["own"] if is_stock else "own"
    with (
        extra_alias(f"lively_{engine}", engine, size=1) as name,
        installed(name, backend) as wrapper,
    ):
        assert len(requests(name)) == 1
        for _ in range(2):
            failed_block(name)
            commit_by_hand(name)
            wrapper.set_autocommit(True)
        assert backend_pid(name)
        wait_until(
            lambda: is_stock or wrapper.connection is None, "the connection is released"
        )
