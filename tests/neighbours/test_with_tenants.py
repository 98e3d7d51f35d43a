"""django-tenants as the base: not one row of another tenant, on a pool of two.

It sets the search path whenever it makes a cursor; with `TENANT_LIMIT_SET_CALLS` only when
it believes that the connection has another one.
"""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import DatabaseError, connections, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from django_tenants.utils import schema_context
from helpers import backend_pid, census, pool_of_one, run_in_thread
from leases import Undo

from django_pg_real_pool import assert_released, pin_connection
from neighbours.tenants.customers.models import Client, Domain
from neighbours.tenants.notes.models import Note

pytest_plugins = ["fix_traffic"]

ALIAS = "native"
TENANTS = ["red", "blue"]
THREADS = 8
STEPS = 60
ROWS = 5


@pytest.fixture(scope="module", autouse=True)
def _tenants(_database_is_allowed: None) -> Iterator[None]:
    """Two tenants, each with its schema, as django-tenants' commands make them."""
    with their_cursors_dropped():
        call_command("migrate_schemas", schema_name="public", verbosity=0)
        for name in ("public", *TENANTS):
            # Saving a tenant makes its schema, and migrates it.
            client = Client(schema_name=name, name=name)
            client.save(verbosity=0)
            Domain.objects.using(ALIAS).create(domain=f"{name}.org", tenant=client)
    for name in TENANTS:
        with schema_context(name):
            fill(name)
    yield
    with their_cursors_dropped(), schema_context("public"):
        for name in TENANTS:
            Client.objects.using(ALIAS).get(schema_name=name).delete(force_drop=True)
        call_command("migrate_schemas", "customers", "zero", schema_name="public")


@contextmanager
def their_cursors_dropped() -> Iterator[None]:
    """django-tenants' own code, where it makes schemas, never closes its cursors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        connections[ALIAS].close()


@pytest.fixture(params=[False, True], ids=["each", "limited"])
def _limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """`TENANT_LIMIT_SET_CALLS` both ways."""
    with override_settings(TENANT_LIMIT_SET_CALLS=request.param):
        yield
    db: Any = connections[ALIAS]
    db.set_schema_to_public()


def fill(owner: str) -> None:
    Note.objects.using(ALIAS).bulk_create(
        Note(owner=owner, number=number) for number in range(ROWS)
    )


def owners() -> set[str]:
    return set(Note.objects.using(ALIAS).values_list("owner", flat=True))


def use(name: str) -> Any:
    db: Any = connections[ALIAS]
    db.set_schema(name)
    return db


@pytest.mark.usefixtures("_limit")
def test_each_tenant_has_its_schema() -> None:
    """It works as its documentation says: models, commands, `schema_context()`."""
    assert {each.schema_name for each in Client.objects.using(ALIAS).all()} == {
        "public",
        *TENANTS,
    }
    for name in TENANTS:
        with schema_context(name):
            assert owners() == {name}
            assert Note._meta.db_table in connections[ALIAS].introspection.table_names()
        connections[ALIAS].close()  # for its introspection sets a path by hand, and back
    with schema_context("public"), pytest.raises(DatabaseError):
        owners()
    assert_released(ALIAS)


@pytest.mark.usefixtures("_limit")
def test_connections_are_released_under_it() -> None:
    """R1: the SET that it sends by itself is no change of the session by the user."""
    db = use("red")
    owners()
    assert census(ALIAS).in_use == 0
    with transaction.atomic(using=ALIAS):
        assert census(ALIAS).in_use == 0
        owners()
        assert census(ALIAS).in_use == 1
        db.on_commit(lambda: assert_released(ALIAS))
    assert census(ALIAS).in_use == 0
    rows = Note.objects.using(ALIAS).iterator(chunk_size=2)
    assert next(rows).owner == "red"
    assert census(ALIAS).in_use == 1
    assert {row.owner for row in rows} == {"red"}
    assert census(ALIAS).in_use == 0


def test_a_change_by_the_user_holds_and_is_cleaned_up() -> None:
    """S1, S3: theirs is told from its own."""
    with pool_of_one(ALIAS):
        db = use("red")
        with db.cursor() as cursor:
            cursor.execute("SET work_mem = '77MB'")
        assert db._lease.holds.describe() == ["session state"]
        assert owners() == {"red"}
        db.close()
        assert census(ALIAS).in_use == 0
        use("blue")
        assert owners() == {"blue"}
        with db.cursor() as cursor:
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() != ("77MB",)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(True, [1, 0, 0, 1, 0, 0, 1, 1]), (False, [1] * 8)],
    ids=["limited", "each"],
)
def test_the_path_is_set_as_often_as_asked_for(limit: bool, expected: list[int]) -> None:
    """Limited: once for each lease, for the next one may be on another connection."""
    paths: list[int] = []

    def ask() -> None:
        with CaptureQueriesContext(connections[ALIAS]) as captured:
            owners()
        sent = [query["sql"] for query in captured.captured_queries]
        paths.append(sum(sql.startswith("SET search_path") for sql in sent))

    with override_settings(TENANT_LIMIT_SET_CALLS=limit):
        use("red")
        with transaction.atomic(using=ALIAS):
            ask()
            ask()
            ask()
        with pin_connection(ALIAS):
            ask()
            ask()
            ask()
        ask()
        ask()
    assert paths == expected


@pytest.mark.usefixtures("_limit")
def test_a_path_set_in_a_block_does_not_outlive_its_rollback() -> None:
    """D6: the server forgets the path that was set in a transaction; so must the base."""
    with pool_of_one(ALIAS):
        use("blue")
        owners()
        use("red")
        for _ in range(2):
            with suppress(Undo), transaction.atomic(using=ALIAS):
                assert owners() == {"red"}
                raise Undo
            assert owners() == {"red"}
        with transaction.atomic(using=ALIAS):
            with suppress(Undo), transaction.atomic(using=ALIAS):
                assert owners() == {"red"}
                use("blue")
                assert owners() == {"blue"}
                raise Undo
            assert owners() == {"blue"}
        assert run_in_thread(lambda: (use("red"), owners())[1]) == {"red"}


@pytest.mark.usefixtures("_limit")
def test_a_replaced_connection_gets_the_path(observer: psycopg.Connection[Any]) -> None:
    """F2, D6: what was remembered of the connection before is forgotten with it."""
    use("red")
    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert owners() == {"red"}
        with pin_connection(ALIAS):
            pid = backend_pid(ALIAS)
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            with suppress(DatabaseError):
                owners()
        assert owners() == {"red"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.usefixtures("_limit")
def test_a_forked_child_sees_its_tenant_alone(held: bool) -> None:
    """F1, D6: a lease that the child lost must not leave a remembered path behind."""
    use("red")
    owners()
    reading, writing = os.pipe()
    with pin_connection(ALIAS) if held else nullcontext():
        if held:
            assert owners() == {"red"}
        child = os.fork()
        if child == 0:
            try:
                answer = repr(sorted(owners()))
            except BaseException as error:  # noqa: BLE001 - for the parent
                answer = repr(error)
            os.write(writing, answer.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == "['red']"
        os.waitpid(child, 0)
        assert owners() == {"red"}


def test_a_copy_and_a_new_thread_begin_in_the_public_schema() -> None:
    """D6: what one wrapper remembers is its own."""
    with override_settings(TENANT_LIMIT_SET_CALLS=True), pool_of_one(ALIAS):
        use("red")
        owners()
        with pytest.raises(DatabaseError):
            run_in_thread(owners)
        assert owners() == {"red"}


# ##### Tenants at random #####


def read(name: str) -> set[str]:
    return owners()


def read_in_a_block(name: str) -> set[str]:
    with transaction.atomic(using=ALIAS):
        return owners() | owners()


def roll_back(name: str) -> set[str]:
    seen: set[str] = set()
    with suppress(Undo), transaction.atomic(using=ALIAS):
        seen = owners()
        Note.objects.using(ALIAS).create(owner=f"undone by {name}", number=-1)
        raise Undo
    return seen


def roll_back_a_savepoint(name: str) -> set[str]:
    with transaction.atomic(using=ALIAS):
        with suppress(Undo), transaction.atomic(using=ALIAS):
            Note.objects.using(ALIAS).update(owner=f"undone by {name}")
            raise Undo
        return owners()


def fail(name: str) -> set[str]:
    with (
        suppress(DatabaseError),
        transaction.atomic(using=ALIAS),
        connections[ALIAS].cursor() as cursor,
    ):
        cursor.execute("SELECT 1 / 0")
    return owners()


def write(name: str) -> set[str]:
    note = Note.objects.using(ALIAS).create(owner=name, number=ROWS)
    note.delete(using=ALIAS)
    return owners()


def iterate(name: str) -> set[str]:
    seen = set()
    for note in Note.objects.using(ALIAS).iterator(chunk_size=2):
        seen |= {note.owner, *owners()}
    return seen


def leave_an_iterator(name: str) -> set[str]:
    rows: Any = Note.objects.using(ALIAS).iterator(chunk_size=2)
    seen = {next(rows).owner}
    rows.close()
    return seen


def pin(name: str) -> set[str]:
    with pin_connection(ALIAS):
        return owners() | owners()


def change_the_session(name: str) -> set[str]:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant', %s, false)", [name])
    return owners()


def close(name: str) -> set[str]:
    connections[ALIAS].close()
    return owners()


def call_back(name: str) -> set[str]:
    seen: set[str] = set()
    with transaction.atomic(using=ALIAS):
        owners()
        transaction.on_commit(lambda: seen.update(owners()), using=ALIAS)
    return seen


WORK = [
    *(read, read_in_a_block, roll_back, roll_back_a_savepoint, fail, write, iterate),
    *(leave_an_iterator, pin, change_the_session, close, call_back),
]


@pytest.mark.usefixtures("_limit")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_thread_sees_a_row_of_another_tenant(seed: int) -> None:
    """D6: eight threads, two connections, tenants and work at random."""
    start = threading.Barrier(THREADS)

    def visit(number: int) -> list[str]:
        chance = random.Random(seed * 1000 + number)
        foreign = []
        start.wait()
        try:
            for _ in range(STEPS):
                name, work = chance.choice(TENANTS), chance.choice(WORK)
                use(name)
                seen = work(name)
                if seen != {name}:
                    foreign.append(f"{name} saw {seen} by {work.__name__}")
                if chance.random() < 0.2:
                    connections[ALIAS].close()
        finally:
            connections.close_all()
        return foreign

    with ThreadPoolExecutor(THREADS) as executor:
        results = list(executor.map(visit, range(THREADS)))
    assert [each for result in results for each in result] == []
    assert census(ALIAS).in_use == 0
    assert census(ALIAS).idle <= 2
    for name in TENANTS:
        with schema_context(name):
            assert Note.objects.using(ALIAS).filter(owner=name).count() == ROWS
            assert Note.objects.using(ALIAS).count() == ROWS
