"""What is safe for a driver and a pool that this library has never seen: SQLite's."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import psycopg
import pytest
from django.db import ProgrammingError, connections
from django.db.backends.sqlite3 import base
from django.db.transaction import atomic, on_commit
from faults import extra_alias
from helpers import backend_pid, installed

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._drivers import Driver, statement

ALIAS = "unseen"


class PooledSQLite(base.DatabaseWrapper):
    """SQLite behind the smallest pool there is: a list."""

    idle: ClassVar[list[Any]] = []
    in_use: ClassVar[list[Any]] = []

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        new = super().get_new_connection
        connection = self.idle.pop() if self.idle else new(conn_params)
        self.in_use.append(connection)
        return connection

    def _close(self) -> None:
        self.in_use.remove(self.connection)
        try:
            self.connection.rollback()
        except sqlite3.ProgrammingError:
            return  # it was closed
        self.idle.append(self.connection)


class Opaque:
    """A cursor as some drivers write them: in C, without weak references."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class WithOpaqueCursors(PooledSQLite):
    def create_cursor(self, name: str | None = None) -> Any:
        return Opaque(super().create_cursor(name))


@pytest.fixture(params=[PooledSQLite, WithOpaqueCursors])
def unseen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    settings = connections.configure_settings(
        {
            "default": {},
            ALIAS: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(tmp_path / "database"),
            },
        }
    )[ALIAS]
    connections.settings[ALIAS] = settings
    wrapper = make_release_backend(request.param)(settings, ALIAS)
    connections[ALIAS] = wrapper
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE item (name text)")
    yield wrapper
    wrapper.close()
    assert PooledSQLite.in_use == []
    del connections[ALIAS]
    del connections.settings[ALIAS]
    while PooledSQLite.idle:
        PooledSQLite.idle.pop().close()


def add(wrapper: Any, name: str) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO item VALUES (%s)", [name])


def names(wrapper: Any) -> list[str]:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT name FROM item ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def test_it_is_released_after_each_statement(unseen: Any) -> None:
    """R1, and what was done stays done."""
    add(unseen, "a")
    assert (unseen.connection, PooledSQLite.in_use) == (None, [])
    assert names(unseen) == ["a"]
    assert (unseen.connection, PooledSQLite.in_use) == (None, [])


def test_a_block_holds_it_until_the_end(unseen: Any) -> None:
    """A2, R1: whatever can't be asked of the driver is taken for a transaction."""
    with atomic(ALIAS):
        assert PooledSQLite.in_use == []
        add(unseen, "a")
        assert len(PooledSQLite.in_use) == 1
    assert PooledSQLite.in_use == []
    assert names(unseen) == ["a"]


def test_it_is_released_before_the_callbacks(unseen: Any) -> None:
    """R2: after a COMMIT there is no transaction, whatever the driver can tell."""
    seen = []
    with atomic(ALIAS):
        add(unseen, "a")
        on_commit(lambda: seen.append(list(PooledSQLite.in_use)), using=ALIAS)
    assert seen == [[]]


def test_a_block_that_is_rolled_back_is_undone(unseen: Any) -> None:
    with atomic(ALIAS):
        add(unseen, "a")
        unseen.set_rollback(True)
    assert PooledSQLite.in_use == []
    assert names(unseen) == []


def test_a_session_that_may_have_changed_is_not_used_again(unseen: Any) -> None:
    """S3: no reset is known, so the connection is replaced."""
    with pin_connection(ALIAS):
        used = unseen.connection
    assert used not in PooledSQLite.idle
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        used.execute("SELECT 1")
    assert names(unseen) == []


def test_close_closes_an_open_cursor(unseen: Any) -> None:
    """R8: it never reaches the connection again."""
    cursor = unseen.cursor()
    unseen.close()
    assert PooledSQLite.in_use == []
    with pytest.raises(ProgrammingError, match="closed"):
        cursor.execute("SELECT 1")


# ##### After a fork #####

FORKING = """
import os, sqlite3, sys
from django.conf import settings

settings.configure(DATABASES={"default": {}})
from django.db.backends.sqlite3 import base
from django.db import connections
from django_pg_real_pool import make_release_backend

reading, writing = os.pipe()

class Polite(sqlite3.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.line = os.dup(writing)
    if sys.argv[1] == "with fileno":
        def fileno(self):
            return self.line
    def __del__(self, write=os.write):
        try:
            write(self.line, b"goodbye")
        except OSError:
            pass

idle = []

class Pooled(base.DatabaseWrapper):
    def get_new_connection(self, conn_params):
        return idle.pop() if idle else super().get_new_connection(conn_params)
    def _close(self):
        idle.append(self.connection)

given = {"default": {}, "polite": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2],
    "OPTIONS": {"factory": Polite},
}}
wrapper = make_release_backend(Pooled)(
    connections.configure_settings(given)["polite"], "polite"
)
with wrapper.cursor() as cursor:
    cursor.execute("SELECT 1")
child = os.fork()
if child == 0:
    os.close(writing)
    idle.clear()
    sys.exit(0)  # like any program, which collects what it has
assert os.waitpid(child, 0)[1] == 0
os.set_blocking(reading, False)
try:
    print(os.read(reading, 100))
except BlockingIOError:
    print("nobody said goodbye")
with wrapper.cursor() as cursor:
    cursor.execute("SELECT 1")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
@pytest.mark.parametrize("how", ["with fileno", "without"])
def test_a_child_never_says_goodbye_for_its_parent(how: str, tmp_path: Path) -> None:
    """F1: not even at its own end; a driver may send something when it lets go."""
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore::DeprecationWarning"),
            *("-c", FORKING, how, str(tmp_path / "database")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "nobody said goodbye\n", ran.stderr


# ##### An unseen driver in a pool that is known #####


def test_the_pools_own_check_stays_on(observer: Any) -> None:
    """F2: nobody else would notice that the server has closed a connection."""
    renamed: Any = ModuleType("unseen_driver")
    vars(renamed).update({**vars(psycopg), "__name__": "unseen_driver"})
    stock = type(connections["stock_dj"])
    base = type("Base", (stock,), {"__module__": "users.base", "Database": renamed})
    with (
        extra_alias("checked_dj", "dj", size=1) as alias,
        installed(alias, make_release_backend(base)) as wrapper,
    ):
        assert type(wrapper._hooks.driver) is Driver
        first = backend_pid(alias)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        assert backend_pid(alias) != first
        assert wrapper.connection is None


class Slotted:
    """What can't be referred to weakly."""

    __slots__ = ()


def test_a_connection_without_weak_references_is_new_each_time() -> None:
    """D6: what sets it up runs too often rather than too seldom."""
    driver, physical = Driver(), Slotted()
    driver.mark_set_up(physical, ())
    assert driver.heard(physical) is None
    driver.forget_set_up(physical)


def test_a_connection_that_was_reset_is_to_be_set_up_again() -> None:
    """S6: by a driver that can reset, which this library has never seen."""
    driver, physical = Driver(), ModuleType("connection")
    driver.mark_set_up(physical, ())
    assert driver.heard(physical) == ()
    driver.forget_set_up(physical)
    assert driver.heard(physical) is None


def test_what_a_connection_has_heard_is_not_forgotten_with_its_types() -> None:
    """D4: it may be of another request, so that it counts as something else, not as new."""
    driver = Driver()
    one, other, new = (ModuleType(name) for name in ("one", "other", "new"))
    said = (("SET app.tenant = '1'", None),)
    for physical in (one, other):
        driver.mark_set_up(physical, said)
    driver.forget_others(one)
    assert driver.heard(one) == said
    assert driver.heard(other) not in (None, (), said)
    assert driver.heard(new) is None


def test_a_cursor_of_an_unseen_driver_does_not_tell_what_it_has_sent() -> None:
    """F7: by its mode alone such a driver is taken to be in a transaction."""
    assert not Driver().may_have_begun(object())


def test_nothing_is_concluded_from_what_it_does_not_tell() -> None:
    """D6: such as a failed transaction, or a statement that is under way."""
    driver, physical = Driver(), sqlite3.connect(":memory:")
    cursor = physical.execute("SELECT 1")
    assert not driver.is_busy(physical)
    assert not driver.has_failed(physical)
    assert not driver.has_new_types(physical)
    assert not driver.is_stuck(physical)
    assert not driver.hears(cursor)
    assert driver.touches(physical) == ()
    assert driver.listen(physical, [], lambda: "done") == "done"
    physical.close()


def test_what_was_heard_can_be_said_by_its_cursors() -> None:
    """D4: with parameters of whatever kind, and without."""
    physical = sqlite3.connect(":memory:", isolation_level=None)
    params = {"name": "two"}
    said = (
        statement("CREATE TABLE item (name)", None, physical),
        statement("INSERT INTO item VALUES (?)", ["one"], physical),
        statement("INSERT INTO item VALUES (:name)", params, physical),
    )
    params["name"] = "another"  # it was noted as a copy
    Driver().say(physical, said)
    assert physical.execute("SELECT name FROM item").fetchall() == [("one",), ("two",)]
    physical.close()


def test_its_cursors_and_connections_are_closed_for_good() -> None:
    """R8: those that may ask the server; a connection that is to be replaced, in any case."""
    driver, physical = Driver(), sqlite3.connect(":memory:")
    cursor = physical.cursor()
    assert not driver.detach(cursor, may_ask=False)
    cursor.execute("SELECT 1")
    assert driver.detach(cursor, may_ask=True)
    with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
        cursor.execute("SELECT 1")
    driver.end(physical)
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        physical.cursor()


def test_a_base_need_not_be_able_to_close_its_pool(unseen: Any) -> None:
    """D6: Django asks only those that are."""
    unseen.close_pool()
