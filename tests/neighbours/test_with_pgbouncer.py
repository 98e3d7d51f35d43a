"""The engines in front of a real PgBouncer in transaction mode, and what it needs.

What is found here by trying is what docs/how-to/use-with-pgbouncer.md says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from bouncer import bouncer, find_bouncer
from django.core import checks
from django.db import Error, OperationalError, connections, models, transaction
from django.db.backends.signals import connection_created
from faults import extra_alias
from helpers import backend_pid
from items import Item
from places import PYTHON_PATH
from server import create_database

from django_pg_real_pool import SessionStateError, assert_released, pin_connection
from neighbours import bouncer_load

PROGRAM = find_bouncer()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")

#: Connections of each PgBouncer to a database of the server.
SERVERS = 2

#: Seconds after which processes are taken for stuck.
PATIENCE = 120

#: What the page says is to be set.
RIGHT: dict[str, Any] = {
    "DISABLE_SERVER_SIDE_CURSORS": True,
    "RELEASE_OPTIONS": {"SESSION_STATE": "error"},
}
ENGINES = {
    "native": "django_pg_real_pool",
    "dj": "django_pg_real_pool.dj_db_conn_pool",
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def running(mode: str = "transaction", more: str = "") -> Iterator[dict[str, Any]]:
    with bouncer(SERVERS, mode, more) as settings:
        assert settings is not None
        yield settings


@pytest.fixture(scope="module")
def pooler() -> Iterator[dict[str, Any]]:
    with running() as settings:
        yield settings


def behind(
    pooler: dict[str, Any], engine: str, name: str = "behind", **changes: Any
) -> AbstractContextManager[str]:
    """Add an alias with a pool of connections to the pooler."""
    return extra_alias(f"{name}_{engine}", engine, **pooler, **{**RIGHT, **changes})


def ask(alias: str, sql: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


@contextmanager
def another_client(pooler: dict[str, Any]) -> Iterator[Any]:
    """A client of the same pooler that has nothing to do with Django."""
    address = {"host": pooler["HOST"], "port": pooler["PORT"]}
    with psycopg.connect(autocommit=True, **address) as connection:
        yield connection


# ##### It works #####


def test_several_processes_share_few_connections(
    pooler: dict[str, Any], engine: str, observer: Any
) -> None:
    """R1, R2: four processes of eight threads each, on two connections of the server."""
    database = "behind_pgbouncer"
    create_database(database)
    with psycopg.connect(dbname=database, autocommit=True) as connection:
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text UNIQUE)")
    processes = [
        subprocess.Popen(
            [sys.executable, bouncer_load.__file__, ENGINES[engine], pooler["PORT"]],
            env={**os.environ, "PGDATABASE": database, "PYTHONPATH": PYTHON_PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    peak = 0
    deadline = time.monotonic() + PATIENCE
    while any(process.poll() is None for process in processes):
        (count,) = observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [database]
        ).fetchone()
        peak = max(peak, count)
        with suppress(subprocess.TimeoutExpired):
            processes[0].wait(0.02)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert json.loads(output) == {"wrong": [], "in use": 0}, errors
    requests = 4 * bouncer_load.THREADS * bouncer_load.REQUESTS
    with psycopg.connect(dbname=database) as connection:
        rows = connection.execute("SELECT count(*) FROM item WHERE name LIKE '%!'")
        assert rows.fetchone() == (requests,)
    assert 1 <= peak <= SERVERS


def test_transactions_and_savepoints_are_as_ever(
    pooler: dict[str, Any], engine: str, observer: Any
) -> None:
    """D1: what belongs to one transaction is on one connection, there too."""
    with behind(pooler, engine) as name:
        items = Item.objects.using(name)
        seen = []
        with transaction.atomic(name):
            items.create(name="kept")
            with transaction.atomic(name):
                items.create(name="undone")
                transaction.set_rollback(True, name)
            pids = {backend_pid(name) for _ in range(5)}
            transaction.on_commit(lambda: seen.append(items.count()), using=name)
            assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)
        assert len(pids) == 1
        assert seen == [1]
        items.bulk_create(Item(name=f"{number}") for number in range(10))
        assert len(list(items.iterator(chunk_size=3))) == 11
        assert_released(name)


class Thing(models.Model):
    item = models.ForeignKey(Item, models.CASCADE)

    class Meta:
        app_label = "behind_pgbouncer"


def test_a_table_is_made_and_dropped(pooler: dict[str, Any], engine: str) -> None:
    """D1: what a migration does, under the policy that refuses."""
    with behind(pooler, engine) as name:
        wrapper = connections[name]
        with wrapper.schema_editor() as editor:
            editor.create_model(Thing)
        assert Thing._meta.db_table in wrapper.introspection.table_names()
        with wrapper.schema_editor() as editor:
            editor.delete_model(Thing)
        assert_released(name)


def test_what_is_done_for_a_connection_is_not_done_for_a_query(
    pooler: dict[str, Any], engine: str
) -> None:
    """D4: the connection to the pooler stays in the pool."""
    with behind(pooler, engine, size=1) as name:
        created = []

        def note(connection: Any, **_: Any) -> None:
            created.append(connection.alias)

        connection_created.connect(note)
        try:
            for _ in range(30):
                backend_pid(name)
                assert_released(name)
        finally:
            connection_created.disconnect(note)
        assert created.count(name) == 1


def test_each_alias_has_its_time_zone(pooler: dict[str, Any], engine: str) -> None:
    """S6: PgBouncer keeps track of it, also when both are on one server connection."""
    with (
        behind(pooler, engine, "tokyo", TIME_ZONE="Asia/Tokyo") as tokyo,
        behind(pooler, engine, "lima", TIME_ZONE="America/Lima") as lima,
    ):
        for _ in range(5):
            assert ask(tokyo, "SHOW TimeZone") == "Asia/Tokyo"
            assert ask(lima, "SHOW TimeZone") == "America/Lima"


# ##### What must be set #####


def test_a_server_side_cursor_is_lost_between_two_statements(
    pooler: dict[str, Any], engine: str
) -> None:
    """W001: unless they are switched off, or in one transaction."""
    with (
        behind(pooler, engine, DISABLE_SERVER_SIDE_CURSORS=False) as name,
        another_client(pooler) as other,
    ):
        items = Item.objects.using(name)
        items.bulk_create(Item(name=f"{number}") for number in range(10))
        rows = items.iterator(chunk_size=3)
        next(rows)
        with other.transaction():
            other.execute("SELECT 1")  # takes the connection that has the cursor
            with pytest.raises((Error, psycopg.Error), match=r"cursor .* does not exist"):
                list(rows)
            other.execute("CLOSE ALL")
        with transaction.atomic(name):
            rows = items.iterator(chunk_size=3)
            next(rows)
            assert len(list(rows)) == 9
        assert_released(name)


def test_a_change_of_the_session_is_refused(pooler: dict[str, Any], engine: str) -> None:
    """S4: what is the transaction's own is not."""
    with behind(pooler, engine) as name:
        with pytest.raises(SessionStateError):
            ask(name, "SELECT set_config('work_mem', '7MB', false)")
        with transaction.atomic(name):
            ask(name, "SELECT set_config('work_mem', '7MB', true)")
            assert ask(name, "SHOW work_mem") == "7MB"
        assert ask(name, "SHOW work_mem") != "7MB"
        assert_released(name)


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_change_of_the_session_is_for_others_if_it_is_not_refused(
    pooler: dict[str, Any], engine: str, is_pinned: bool
) -> None:
    """W002: S1 to S3 hold for the connection to the pooler, not for the server's.

    That is so in a pin too, where the policy allows it.
    """
    changes: dict[str, Any] = (
        {} if is_pinned else {"RELEASE_OPTIONS": {"SESSION_STATE": "pin"}}
    )
    with behind(pooler, engine, **changes) as name, another_client(pooler) as other:
        with pin_connection(name) if is_pinned else transaction.atomic("default"):
            ask(name, "SELECT set_config('work_mem', '7MB', false)")
            with other.transaction():
                assert other.execute("SHOW work_mem").fetchone() == ("7MB",)
                assert ask(name, "SHOW work_mem") != "7MB"
        other.execute("DISCARD ALL")
        connections[name].close()


def test_a_prepared_statement_may_be_anothers(pooler: dict[str, Any], engine: str) -> None:
    """W003: where PgBouncer keeps no track of them."""
    version = subprocess.run(
        [str(PROGRAM), "--version"], capture_output=True, text=True, check=True
    )
    if tuple(map(int, re.findall(r"\d+", version.stdout)[:2])) >= (1, 21):
        pytest.skip("this PgBouncer can keep track of prepared statements")
    options = {"prepare_threshold": 0, "server_side_binding": True}
    with (
        behind(pooler, engine, size=1, OPTIONS=options) as name,
        another_client(pooler) as other,
    ):
        Item.objects.using(name).filter(name="x").count()
        try:
            with pytest.raises(
                psycopg.Error, match=r"prepared statement .* already exists"
            ):
                other.execute("SELECT 1", prepare=True)
        finally:
            other.execute("DISCARD ALL")


def test_a_role_of_the_session_is_anothers_too(
    pooler: dict[str, Any], observer: Any
) -> None:
    """W004: `assume_role` is a SET ROLE, sent once.  Django can't have it with its pool."""
    observer.execute("DROP ROLE IF EXISTS shop_web")
    observer.execute("CREATE ROLE shop_web")
    try:
        options = {"assume_role": "shop_web"}
        with (
            behind(pooler, "dj", size=1, OPTIONS=options) as name,
            another_client(pooler) as other,
        ):
            backend_pid(name)
            assert other.execute("SELECT current_user").fetchone() == ("shop_web",)
            other.execute("DISCARD ALL")
    finally:
        observer.execute("DROP ROLE shop_web")


def test_startup_parameters_are_refused_or_forgotten(engine: str, observer: Any) -> None:
    """W005: what the server sets by itself is there."""
    options = {"options": "-c work_mem=7MB"}
    with (
        running() as pooler,
        behind(pooler, engine, connects=False, OPTIONS=options) as name,
        pytest.raises(OperationalError, match="unsupported startup parameter"),
    ):
        ask(name, "SHOW work_mem")
    with (
        running(more="ignore_startup_parameters = options") as pooler,
        behind(pooler, engine, OPTIONS=options) as name,
    ):
        assert ask(name, "SHOW work_mem") != "7MB"
    database = connections["native"].settings_dict["NAME"]
    observer.execute(f"ALTER DATABASE {database} SET work_mem = '7MB'")
    try:
        with running() as pooler, behind(pooler, engine) as name:
            assert ask(name, "SHOW work_mem") == "7MB"
    finally:
        observer.execute(f"ALTER DATABASE {database} RESET work_mem")


# ##### The system checks #####


def ids(alias: str) -> list[str]:
    found = checks.run_checks(databases=[alias])
    return [str(each.id).rpartition(".")[2] for each in found]


def test_the_checks_recognise_it_and_say_what_is_missing(
    pooler: dict[str, Any], engine: str
) -> None:
    """D7: all of it, also where PgBouncer refuses the startup parameters."""
    options = {
        "prepare_threshold": 5,
        "server_side_binding": True,
        "assume_role": "shop",
        "options": "-c work_mem=7MB",
    }
    wrong: dict[str, Any] = {"DISABLE_SERVER_SIDE_CURSORS": False, "RELEASE_OPTIONS": {}}
    with behind(pooler, engine, connects=False, OPTIONS=options, **wrong) as name:
        assert ids(name) == ["W001", "W002", "W003", "W004", "W005"]


def test_the_checks_are_silent_where_nothing_is_missing(
    pooler: dict[str, Any], engine: str
) -> None:
    """D7: with the settings of the page, and a pool larger than the server allows."""
    with behind(pooler, engine, connects=False, size=5000) as name:
        assert ids(name) == []


def test_the_checks_let_session_mode_be(engine: str) -> None:
    """D7: there, sessions are as without a pooler."""
    wrong: dict[str, Any] = {"DISABLE_SERVER_SIDE_CURSORS": False, "RELEASE_OPTIONS": {}}
    with running("session") as pooler, behind(pooler, engine, **wrong) as name:
        assert ids(name) == []


def test_a_busy_pooler_is_recognised(pooler: dict[str, Any], engine: str) -> None:
    """D7: while another client has one of its two connections."""
    with (
        behind(pooler, engine, connects=False, RELEASE_OPTIONS={}) as name,
        another_client(pooler) as other,
        other.transaction(),
    ):
        other.execute("SELECT 1")
        assert ids(name) == ["W002"]
