"""D6: a base that sends statements of its own, and remembers what it has sent.

As django-tenants does with the search path; `tests/neighbours` has the real one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from helpers import backend_pid, census, installed, pool_of_one
from settings import STOCK_OF
from traffic import warm_up

from django_pg_real_pool import make_release_backend, pin_connection


class Remembers:
    """Sets `app.tenant` when it makes a cursor, unless it has on this connection."""

    tenant = "red"
    remembered: str | None = None

    def _cursor(self, name: str | None = None) -> Any:
        cursor: Any = super()._cursor(name)  # type: ignore[misc]
        if self.remembered != self.tenant and name is None:
            cursor.execute(f"SET app.tenant = '{self.tenant}'")
            self.remembered = self.tenant
        return cursor

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
