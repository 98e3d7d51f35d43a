"""D6: a base that sends statements of its own, and remembers what it has sent.

As django-tenants does with the search path; `tests/neighbours` has the real one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import ProgrammingError, connections, transaction
from helpers import backend_pid, census, installed, pool_of_one
from receivers import receiving
from settings import STOCK_OF
from tenants import (
    BLUE,
    RED,
    TENANT,
    WAYS,
    Way,
    by_a_role,
    by_two_at_once,
    function_that_sets_it,
)
from traffic import warm_up

from django_pg_real_pool import make_release_backend, pin_connection


class Remembers:
    """Sets `app.tenant` when it makes a cursor, unless it has on this connection."""

    tenant = "red"
    remembered: str | None = None

    def _cursor(self, name: str | None = None) -> Any:
        cursor: Any = super()._cursor(name)  # type: ignore[misc]
        if self.remembered != self.tenant and name is None:
            self.send(cursor)
            self.remembered = self.tenant
        return cursor

    def send(self, cursor: Any) -> None:
        cursor.execute(f"SET app.tenant = '{self.tenant}'")

    def close(self) -> None:
        self.remembered = None
        super().close()  # type: ignore[misc]


@pytest.fixture
def db(alias: str) -> Iterator[Any]:
    """A wrapper of such a base, on a pool of one."""
    warm_up(alias)
    stock = type(connections[STOCK_OF[alias]])
    base = type("Base", (Remembers, stock), {"__module__": "a_users.base"})
    with pool_of_one(alias), installed(alias, make_release_backend(base)) as wrapper:
        yield wrapper


def tenant(db: Any) -> str:
    with db.cursor() as cursor:
        cursor.execute("SELECT current_setting('app.tenant', true)")
        return str(cursor.fetchone()[0])


def test_what_a_base_sends_for_its_cursors_holds_nothing(alias: str, db: Any) -> None:
    """S6: it is the connection's configuration, not a change by the user."""
    pid = backend_pid(alias)
    assert census(alias).in_use == 0
    assert tenant(db) == "red"
    db.tenant = "blue"
    with transaction.atomic(using=alias):
        assert tenant(db) == "blue"
    assert census(alias).in_use == 0
    assert backend_pid(alias) == pid


def test_what_the_user_sends_holds_all_the_same(alias: str, db: Any) -> None:
    """S1: through a cursor that the base had used before."""
    with db.cursor() as cursor:
        cursor.execute("SET work_mem = '77MB'")
    assert db._lease.holds.describe() == ["session state"]
    db.close()
    assert census(alias).in_use == 0


def test_a_base_that_takes_a_cursor_for_itself_holds_nothing(alias: str, db: Any) -> None:
    """R1: where it gives back another, or none."""

    class Stingy(type(db)):  # type: ignore[misc]
        def _cursor(self, name: str | None = None) -> Any:
            super()._cursor(name).close()

    with installed(alias, Stingy) as stingy:
        assert stingy._cursor() is None
        assert stingy.connection is None
        assert census(alias).in_use == 0


# Not the user's own pool, which knows of no fork.
@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_lets_the_base_forget(alias: str, db: Any) -> None:
    """F1: its next connection is not the one that the base remembers."""
    reading, writing = os.pipe()
    with pin_connection(alias):
        assert tenant(db) == "red"
        child = os.fork()
        if child == 0:
            try:
                answer = tenant(db)
            except BaseException as error:  # noqa: BLE001 - for the parent
                answer = repr(error)
            os.write(writing, answer.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == "red"
        os.waitpid(child, 0)
        assert db.remembered == "red"
        assert tenant(db) == "red"


def test_a_copy_lets_the_base_forget(alias: str, db: Any) -> None:
    """D6: what it copied was true of the other one's connection."""
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        copied = copy.copy(db)
        assert copied.remembered == "red"
    db.tenant = "blue"
    assert tenant(db) == "blue"
    assert tenant(copied) == "red"
    assert copied.connection is None
    copied.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_interrupted_checkin_lets_the_base_forget(
    alias: str, db: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """R3: whether it hit before the base's close() or after it."""
    interrupt = [True]

    def interrupted(original: Any) -> Any:
        def call(*args: Any) -> Any:
            if interrupt:
                interrupt.clear()
                raise KeyboardInterrupt
            return original(*args)

        return call

    assert tenant(db) == "red"
    calls: list[int] = []
    if where == "before":
        driver = db._hooks.driver
        monkeypatch.setattr(driver, "mark_used", interrupted(driver.mark_used))
    else:
        lease = db._lease
        monkeypatch.setattr(lease, "let_go", interrupted(lease.let_go))
    with pytest.raises(KeyboardInterrupt):
        tenant(db)
    monkeypatch.undo()
    assert db.connection is None
    assert db.remembered is None
    with transaction.atomic(using=alias):
        assert tenant(db) == "red"
        transaction.on_commit(lambda: calls.append(1), using=alias)
    assert calls == [1]
    db.close()
    db.close()
    assert census(alias).in_use == 0


def test_an_origin_is_not_in_a_method_of_the_base(alias: str, db: Any) -> None:
    """F4: but where the user's code wanted the cursor."""
    db.settings_dict["RELEASE_OPTIONS"] = {"TRACK_ORIGINS": True}
    db.close()
    with db.cursor():
        (origin,) = db._lease.holds.origins.values()
    assert origin.endswith("in test_an_origin_is_not_in_a_method_of_the_base")


# ##### Whatever a base sends #####


def tenants(db: Any, *names: str) -> list[Any]:
    """Return what sessions of these tenants see, one after the other."""
    seen = []
    for db.tenant in names:
        with db.cursor() as cursor:
            cursor.execute(TENANT)
            seen.append(cursor.fetchone()[0])
        db.close()
    return seen


@pytest.mark.parametrize("way", WAYS)
def test_each_session_sees_its_own_tenant(
    alias: str, db: Any, observer: Any, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    """D6, S7: what has set the one before is undone; what sets this one is not."""
    monkeypatch.setattr(db, "send", lambda cursor: way(cursor, db.tenant, ""))
    db.tenant = RED
    with function_that_sets_it(observer):
        pid = backend_pid(alias)
        db.close()
        assert tenants(db, RED, BLUE, RED, RED) == [RED, BLUE, RED, RED]
        assert backend_pid(alias) == pid


def test_what_has_failed_is_not_sent_again(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: it has set nothing, and would fail again."""

    def send(cursor: Any) -> None:
        with suppress(ProgrammingError):
            cursor.execute("SELECT no_such_function()")
        cursor.execute(f"SET ROLE {db.tenant}")

    monkeypatch.setattr(db, "send", send)
    assert tenants(db, RED, BLUE, RED) == [RED, BLUE, RED]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO item (name) VALUES (gen_random_uuid()::text)",
        "/* why */ insert into item (name) values ('; SET ' || gen_random_uuid());",
        b"INSERT INTO item (name) VALUES (gen_random_uuid()::text)",
    ],
)
def test_a_row_is_written_once(
    db: Any, observer: Any, monkeypatch: pytest.MonkeyPatch, statement: Any
) -> None:
    """S7: it lasts, so that it is not to be written again after a cleaning."""

    def send(cursor: Any) -> None:
        cursor.execute(statement)
        by_two_at_once(cursor, db.tenant, "")

    monkeypatch.setattr(db, "send", send)
    assert tenants(db, RED, BLUE, RED) == [RED, BLUE, RED]
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (3,)


def test_what_can_not_be_sent_again_is_not_left_out(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: there is an error instead, and another connection for who comes next."""

    def send(cursor: Any) -> None:
        query = f"SELECT set_config('app.tenant', '{db.tenant}', false)"
        with cursor.copy(f"COPY ({query}) TO STDOUT") as copy:
            list(copy)

    monkeypatch.setattr(db, "send", send)
    assert tenants(db, RED) == [RED]
    with pytest.raises(ProgrammingError):
        tenants(db, BLUE)
    db.close()
    assert tenants(db, BLUE) == [BLUE]


def test_who_can_not_be_set_anew_gets_an_error_and_leaves_nothing(
    alias: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9, S3: a connection that is set up by half goes to nobody."""
    say = db._hooks.driver.say
    fails = [True]

    def say_by_half(physical: Any, statements: Any) -> None:
        if fails:
            fails.clear()
            physical.execute("SET app.other = 'left behind'")
            raise LookupError
        say(physical, statements)

    monkeypatch.setattr(db._hooks.driver, "say", say_by_half)
    assert tenants(db, RED) == [RED]
    monkeypatch.setattr(db, "send", lambda cursor: by_a_role(cursor, db.tenant, ""))
    with pytest.raises(LookupError):
        tenants(db, BLUE)
    db.close()
    assert census(alias).in_use == 0
    assert tenants(db, RED, BLUE) == [RED, BLUE]
    with db.cursor() as cursor:
        cursor.execute("SELECT current_setting('app.other', true)")
        assert not cursor.fetchone()[0]
    db.close()


def test_a_base_forgets_what_is_cleaned_while_its_connection_is_set_up(
    alias: str, db: Any
) -> None:
    """D4, D6: receivers have opened a cursor by then, so the base has sent its tenant."""
    others = ["SET app.other = '1'", "SELECT 1", "SELECT 1"]

    def open_one(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(others[0])

    with receiving(alias, open_one):
        for name in ("red", "blue", "green"):
            db.close()
            db.tenant = name
            assert tenant(db) == name
            assert tenant(db) == name
            others.pop(0)
            others.append("SELECT 1")
        db.close()
