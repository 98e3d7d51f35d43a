"""D1: tests run on the test database, whoever used the pool of the real one before.

In stock they do not: Django gives an alias another `NAME` once its test database is
made, and a pool that there is already goes on with the database it was made for.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import get_commands
from django.core.management.commands import migrate
from django.db import connections
from helpers import census, forget_pool, installed, run_in_thread
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend

QUERY = "SELECT current_database()"


def current_database(db: Any) -> str:
    with db.cursor() as cursor:
        cursor.execute(QUERY)
        return str(cursor.fetchone()[0])


@pytest.mark.parametrize("engine", ["native", "dj"])
@pytest.mark.parametrize("used", ["queried", "looked at"])
def test_a_pool_that_was_used_before_is_none_of_the_tests(
    engine: str, used: str, observer: Any
) -> None:
    """D1: as by an app that queries as it starts, or looks at `connection.pool`."""
    db: Any = connections[engine]
    name = db.settings_dict["NAME"]
    forget_pool(engine)
    if used == "queried":
        assert current_database(db) == name
    elif engine == "native":
        assert db.pool is not None
    made = db.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        assert made != name
        assert [current_database(db) for _ in range(2)] == [made, made]
        assert run_in_thread(lambda: current_database(connections[engine])) == made
    finally:
        db.creation.destroy_test_db(name, verbosity=0)
    assert current_database(db) == name
    found = "SELECT count(*) FROM pg_database WHERE datname = %s"
    assert observer.execute(found, [made]).fetchone() == (0,)


class Ensuring:
    """A base whose ensure_connection() calls Django's."""

    def ensure_connection(self) -> None:
        super().ensure_connection()  # type: ignore[misc]


@pytest.mark.parametrize("engine", ["native", "dj", "own"])
@pytest.mark.parametrize("bases", [(), (Ensuring,)])
def test_making_a_test_database_keeps_no_connection(engine: str, bases: Any) -> None:
    """R1: Django connects last of all, so that another thread could find none left."""
    stock: Any = type(connections[STOCK_OF[engine]])
    base = type("Base", (*bases, stock), {"__module__": "a_users.base"})
    forget_pool(engine)
    with installed(engine, make_release_backend(base)) as db:
        name = db.settings_dict["NAME"]
        db.creation.create_test_db(verbosity=0, autoclobber=True)
        try:
            assert db.connection is None
            assert census(engine).in_use == 0
        finally:
            db.creation.destroy_test_db(name, verbosity=0)


@pytest.mark.parametrize("engine", ["native", "dj", "own"])
def test_who_connects_while_it_is_made_is_connected(engine: str) -> None:
    """D1: Django's last step is told from a command's own, which may go on with it."""
    db: Any = connections[engine]
    name, found = db.settings_dict["NAME"], []

    class Command(migrate.Command):
        def handle(self, *args: Any, **options: Any) -> None:
            db.ensure_connection()
            found.append(db.connection)
            db.close()
            super().handle(*args, **options)

    commands = get_commands()
    before, commands["migrate"] = commands["migrate"], Command()  # type: ignore[assignment]
    try:
        db.creation.create_test_db(verbosity=0, autoclobber=True)
    finally:
        commands["migrate"] = before
        db.creation.destroy_test_db(name, verbosity=0)
    assert found
    assert None not in found


def test_making_a_test_database_without_a_pool_is_as_stock() -> None:
    """D7: with `"pool": False` the connection is kept, as it always is then."""
    db: Any = connections["unpooled_native"]
    name = db.settings_dict["NAME"]
    db.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        assert db.connection is not None
    finally:
        db.creation.destroy_test_db(name, verbosity=0)


def test_two_databases_of_one_alias_are_not_mixed_up() -> None:
    """D1: a wrapper gets the database that it names, in the midst of its session, too."""
    db: Any = connections["native"]
    name = current_database(db)
    other = type(db)({**db.settings_dict, "NAME": "postgres"}, "native")
    try:
        for _ in range(2):
            assert [current_database(other), current_database(db)] == ["postgres", name]
    finally:
        other.close()
