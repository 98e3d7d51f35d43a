"""django-db-connection-pool's MySQL backend as the base: a driver that nobody here knows.

What can't be asked of it is assumed, so that a connection is held longer, or replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    models,
    transaction,
)
from django.db.backends.signals import connection_created
from helpers import census, forget_pool, pool_of_one, run_in_thread
from leases import Stop, Undo
from places import PYTHON_PATH

from django_pg_real_pool import (
    ConnectionHeldError,
    assert_released,
    pin_connection,
    pool_status,
)
from django_pg_real_pool._drivers import Driver
from django_pg_real_pool._pools.queue import QueuePool

ALIAS = "mysql_dj"


class Book(models.Model):
    name = models.CharField(max_length=99, unique=True)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "books"


def books() -> Any:
    return Book.objects.using(ALIAS)


def connection_id() -> int:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return int(cursor.fetchone()[0])


def committed() -> list[str]:
    """Return what somebody else sees."""
    with connections["stock_mysql_dj"].cursor() as cursor:
        cursor.execute("SELECT name FROM books_book ORDER BY id")
        found = [name for (name,) in cursor.fetchall()]
    connections["stock_mysql_dj"].close()
    return found


def in_use() -> int:
    wrapper: Any = connections[ALIAS]
    count = census(ALIAS).in_use
    assert count == (wrapper.connection is not None)
    return count


@pytest.fixture(scope="module", autouse=True)
def _table(_database_is_allowed: None) -> Iterator[None]:
    with connections[ALIAS].schema_editor() as editor:
        editor.create_model(Book)
    connections[ALIAS].close()
    yield
    with connections[ALIAS].schema_editor() as editor:
        editor.delete_model(Book)
    connections[ALIAS].close()
    forget_pool(ALIAS)
    forget_pool("stock_mysql_dj")


@pytest.fixture(autouse=True)
def wrapper() -> Iterator[Any]:
    db: Any = connections[ALIAS]
    yield db
    assert db.connection is None, db._lease
    assert not db.in_atomic_block
    assert db.get_autocommit() is True
    books().all().delete()
    assert in_use() == 0
    db.close()


# ##### Acquire late #####


def test_a_block_checks_out_at_its_first_statement() -> None:
    """A1, A2, A3: entering it, nesting it and callbacks do not."""
    calls: list[int] = []
    with transaction.atomic(using=ALIAS), transaction.atomic(using=ALIAS):
        transaction.on_commit(lambda: calls.append(in_use()), using=ALIAS)
        assert in_use() == 0
    assert calls == [0]
    with transaction.atomic(using=ALIAS):
        with transaction.atomic(using=ALIAS):
            assert in_use() == 0
            books().create(name="one")
            assert in_use() == 1
        with suppress(Undo), transaction.atomic(using=ALIAS):
            books().create(name="undone")
            raise Undo
        assert in_use() == 1
        assert committed() == []
    assert in_use() == 0
    assert committed() == ["one"]


# ##### Release early #####


def test_a_query_gives_its_connection_back() -> None:
    """R1: reading, writing, iterating, failing."""
    books().create(name="one")
    assert in_use() == 0
    assert books().count() == 1
    assert in_use() == 0
    assert [book.name for book in books().iterator(chunk_size=1)] == ["one"]
    assert in_use() == 0
    with pytest.raises(IntegrityError):
        books().create(name="one")
    assert in_use() == 0
    with pytest.raises(DatabaseError), connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT nonsense")
    assert in_use() == 0


def test_a_block_keeps_one_connection_until_it_ends() -> None:
    """R1: by COMMIT or by ROLLBACK."""
    with transaction.atomic(using=ALIAS):
        assert len({connection_id() for _ in range(3)}) == 1
        books().create(name="one")
        assert in_use() == 1
    assert in_use() == 0
    with suppress(Undo), transaction.atomic(using=ALIAS):
        books().create(name="undone")
        raise Undo
    assert in_use() == 0
    assert committed() == ["one"]


def test_callbacks_run_after_the_release() -> None:
    """R2: in their order; they can query and open blocks."""
    seen: list[Any] = []

    def call_back() -> None:
        seen.append((in_use(), connections[ALIAS].in_atomic_block))
        with transaction.atomic(using=ALIAS):
            seen.append(books().count())

    with transaction.atomic(using=ALIAS):
        books().create(name="one")
        transaction.on_commit(call_back, using=ALIAS)
        transaction.on_commit(lambda: seen.append("last"), using=ALIAS)
    assert seen == [(0, False), 1, "last"]


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_what_raises_keeps_nothing(error: type[BaseException]) -> None:
    """R3: a callback, a block, an execute wrapper, a receiver of connection_created."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    def with_callback() -> None:
        with transaction.atomic(using=ALIAS):
            books().create(name="kept")
            transaction.on_commit(fail, using=ALIAS)

    def in_block() -> None:
        with transaction.atomic(using=ALIAS):
            books().create(name="undone")
            fail()

    def in_wrapper() -> None:
        with connections[ALIAS].execute_wrapper(fail):
            books().count()

    def in_receiver() -> None:
        connections[ALIAS].close()
        connection_created.connect(fail)
        try:
            books().count()
        finally:
            connection_created.disconnect(fail)

    for program in (with_callback, in_block, in_wrapper, in_receiver):
        with pytest.raises(error):
            program()
        assert in_use() == 0, program
    assert committed() == ["kept"]


def test_the_last_of_two_cursors_releases() -> None:
    """R4: whichever that is."""
    first = connections[ALIAS].cursor()
    second = connections[ALIAS].cursor()
    first.close()
    assert in_use() == 1
    second.execute("SELECT 1")
    assert second.fetchone() == (1,)
    second.close()
    assert in_use() == 0


def test_a_cursor_that_is_open_at_close_is_of_no_use_any_more(wrapper: Any) -> None:
    """R8: it never reaches the connection, which may be another thread's by then."""
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1")
    wrapper.close()
    assert in_use() == 0
    with pytest.raises((DatabaseError, InterfaceError)):
        cursor.execute("SELECT 2")


def test_a_dropped_cursor_is_reclaimed(wrapper: Any) -> None:
    """R6: at the next entry."""
    wrapper.cursor().execute("SELECT 1")
    assert wrapper.connection is not None
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        books().count()
    assert in_use() == 0


# ##### Autocommit, pins #####


def test_autocommit_may_be_off(wrapper: Any) -> None:
    """D2: what began a transaction holds until it is ended, in any number of them."""
    wrapper.set_autocommit(False)
    assert in_use() == 0
    for name in ("one", "two"):
        books().create(name=name)
        assert in_use() == 1
        assert name not in committed()
        wrapper.commit()
        assert in_use() == 0
    books().create(name="undone")
    wrapper.rollback()
    assert in_use() == 0
    wrapper.set_autocommit(True)
    assert committed() == ["one", "two"]


def test_the_mode_does_not_leak(wrapper: Any) -> None:
    """D2: to a wrapper in another mode that gets the same connection."""
    with pool_of_one(ALIAS):
        wrapper.set_autocommit(False)
        first = connection_id()
        wrapper.commit()

        def another() -> int:
            books().create(name="by another")
            return connection_id()

        assert run_in_thread(another) == first
        assert committed() == ["by another"]
        wrapper.set_autocommit(True)


def test_a_pin_keeps_one_connection() -> None:
    """P1, P2: and can be told of."""
    with pin_connection(ALIAS):
        assert len({connection_id() for _ in range(3)}) == 1
        assert in_use() == 1
        with pytest.raises(ConnectionHeldError, match="pin"):
            assert_released(ALIAS)
        assert pool_status(ALIAS).census.in_use == 1
    assert_released(ALIAS)


# ##### What is done for a connection #####


def test_set_up_is_done_for_a_session_and_not_for_a_query(
    monkeypatch: pytest.MonkeyPatch, wrapper: Any
) -> None:
    """D4: connection_created, and what Django sends to a new connection."""
    inits: list[int] = []
    init = type(wrapper).init_connection_state

    def counted(self: Any) -> None:
        inits.append(1)
        init(self)

    with pool_of_one(ALIAS):
        monkeypatch.setattr(type(wrapper), "init_connection_state", counted)
        for _ in range(3):
            connection_id()
            with transaction.atomic(using=ALIAS):
                connection_id()
        assert len(inits) == 1
        wrapper.close()
        connection_id()
        assert len(inits) == 2


def test_a_statement_that_changes_the_session_holds_it(wrapper: Any) -> None:
    """S1, S3: until close(); then the connection is replaced, as nobody can clean it."""
    for statement in (
        "SET SESSION sql_mode = 'ANSI'",
        "SET @tenant = 'red'",
        "CREATE TEMPORARY TABLE mine (id int)",
    ):
        before = connection_id()
        with pool_of_one(ALIAS):
            with wrapper.cursor() as cursor:
                cursor.execute(statement)
            assert wrapper._lease.holds.describe() == ["session state"], statement
            changed = connection_id()
            wrapper.close()
            assert connection_id() not in (changed, before)


def test_what_the_driver_can_not_tell_is_assumed(wrapper: Any) -> None:
    """D9: the pool is known, the driver is not."""
    assert type(wrapper._hooks.driver) is Driver
    assert isinstance(wrapper._hooks.pool, QueuePool)


# ##### Faults #####


def kill(connection: int) -> None:
    with connections["stock_mysql_dj"].cursor() as cursor:
        cursor.execute(f"KILL {connection}")
    connections["stock_mysql_dj"].close()


def test_a_connection_that_died_in_the_pool_costs_no_query() -> None:
    """F2: nobody can look at its socket, so the pool's own ping stays on."""
    with pool_of_one(ALIAS):
        for _ in range(2):
            before = connection_id()
            kill(before)
            assert connection_id() != before
        assert in_use() == 0


def test_a_connection_that_dies_in_use_is_not_held(caplog: Any) -> None:
    """R3: and the next query has another."""
    with pool_of_one(ALIAS):

        def die() -> None:
            with transaction.atomic(using=ALIAS):
                kill(connection_id())
                books().count()

        with pytest.raises(OperationalError):
            die()
        assert in_use() == 0
        assert books().count() == 0
    caplog.clear()  # SQLAlchemy says that it could not reset it


def test_an_exhausted_pool_says_who_holds_it() -> None:
    """F4: whatever the driver."""
    settings = connections[ALIAS].settings_dict
    before = settings["POOL_OPTIONS"]
    settings["POOL_OPTIONS"] = {**before, "TIMEOUT": 0.2}
    try:
        with (
            pool_of_one(ALIAS),
            pin_connection(ALIAS),
            pytest.raises(OperationalError) as caught,
        ):
            connections[ALIAS].copy().cursor()
    finally:
        settings["POOL_OPTIONS"] = before
        forget_pool(ALIAS)
    assert "pin" in str(caught.value)


# ##### Threads and forks #####

THREADS = 16


def test_more_threads_than_connections_share_them() -> None:
    """R7: no connection is used by two at once, and nothing is left."""
    using: set[int] = set()
    lock = threading.Lock()
    twice: list[int] = []
    start = threading.Barrier(THREADS)

    def work(number: int) -> None:
        start.wait()
        try:
            for step in range(10):
                with transaction.atomic(using=ALIAS):
                    ident = connection_id()
                    with lock:
                        if ident in using:
                            twice.append(ident)
                        using.add(ident)
                    books().create(name=f"{number}.{step}")
                    assert connection_id() == ident
                    with lock:
                        using.discard(ident)
                assert books().filter(name=f"{number}.{step}").count() == 1
                assert_released(ALIAS)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(THREADS) as executor:
        for future in [executor.submit(work, number) for number in range(THREADS)]:
            future.result()
    assert twice == []
    assert in_use() == 0
    assert census(ALIAS).idle <= 2
    assert books().count() == THREADS * 10


FORKING = """
import os, sys
import django
from django.conf import settings

settings.configure(DATABASES={{
    "default": {{}},
    "mysql_dj": {{
        "ENGINE": "neighbours.dj_mysql.engine", "NAME": {name!r}, "USER": "root",
        "HOST": {host!r}, "POOL_OPTIONS": {{"POOL_SIZE": 2}},
    }},
}})
django.setup()
from django.db import connections, transaction
from django_pg_real_pool import pin_connection

db = connections["mysql_dj"]

def ident():
    with db.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

def fork():
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    assert ident() not in mine  # a connection of its own
    with transaction.atomic(using="mysql_dj"):
        ident()
    sys.exit(0)  # like any program: whatever is left is collected

with pin_connection("mysql_dj"):
    held = ident()
    mine = {{held}}
    other = db.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        mine.add(cursor.fetchone()[0])
    fork()  # with one that is out and one that is idle
    assert ident() == held
    with other.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        assert cursor.fetchone()[0] in mine
with transaction.atomic(using="mysql_dj"):
    held = ident()
    fork()
    assert ident() == held
print("both went on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
def test_a_forked_child_leaves_its_parents_connections_alone() -> None:
    """F1: also when it ends like any program, which collects what it has."""
    settings = connections[ALIAS].settings_dict
    program = FORKING.format(name=settings["NAME"], host=settings["HOST"])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "both went on\n", ran.stderr
