"""The test kit that users get: does it find what it is for, and leave nothing behind?"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.utils import OperationalError
from faults import census, extra_alias
from helpers import backend_pid
from sessions import ask, in_another_request, pool_for_one

from django_pg_real_pool import ConnectionHeldError, pin_connection, pool_status
from django_pg_real_pool.testing import different_connections, no_leases


@pytest.fixture
def two(alias: str) -> Iterator[str]:
    """Each engine in turn, with room for two connections."""
    with extra_alias(f"kit_{alias}", alias, size=2) as name:
        yield name
        connections[name].close()


# ##### different_connections() #####


def test_each_checkout_gets_another_connection(two: str) -> None:
    """S2: the kit's promise, by the server's own word."""
    with different_connections(two):
        pids = [backend_pid(two) for _ in range(6)]
    assert all(this != last for last, this in itertools.pairwise(pids))
    assert census(two).in_use == 0


def test_a_pool_left_alone_gives_the_same_again(alias: str) -> None:
    """S2: so that the test above shows something; whether it always does is its own affair."""
    with pool_for_one(alias) as one:
        assert len({backend_pid(one) for _ in range(6)}) == 1


def test_code_that_relies_on_an_unseen_change_is_found(two: str, observer: object) -> None:
    """S5: a function that hides a set_config() works by luck, until the kit is there."""

    def code(alias: str) -> object:
        hidden = "DO $$ BEGIN PERFORM test_kit_hidden(); END $$"
        with connections[alias].cursor() as cursor:
            cursor.execute(hidden)
        return ask(alias, "SELECT current_setting('app.tenant', true)")

    connection = observer
    connection.execute(  # type: ignore[attr-defined]
        "CREATE OR REPLACE FUNCTION test_kit_hidden() RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.tenant', '1', false) $$"
    )
    try:
        with pool_for_one(two.removeprefix("kit_")) as one:
            assert code(one) == "1"
        with different_connections(two):
            assert code(two) is None
    finally:
        connection.execute("DROP FUNCTION test_kit_hidden()")  # type: ignore[attr-defined]


def test_what_holds_its_connection_keeps_it(two: str) -> None:
    """S2, P1: blocks, pins and session state are no checkouts of their own."""
    with different_connections(two):
        with pin_connection(two):
            assert backend_pid(two) == backend_pid(two)
        with transaction.atomic(two):
            assert backend_pid(two) == backend_pid(two)
        with connections[two].cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        assert ask(two, "SELECT current_setting('app.tenant')") == "1"
        connections[two].close()
        assert ask(two, "SELECT current_setting('app.tenant', true)") in ("", None)


def test_a_lease_that_exists_goes_on(two: str) -> None:
    """P1: a pin from before."""
    with pin_connection(two):
        pid = backend_pid(two)
        with different_connections(two):
            assert backend_pid(two) == pid


def test_it_nests_and_ends(two: str) -> None:
    """S2: also when the block raises; then the pool is as it was."""
    made = type(connections[two])
    hooks = made._hooks  # type: ignore[attr-defined]
    with pytest.raises(LookupError), different_connections(two), different_connections(two):
        raise LookupError
    assert made._hooks is hooks  # type: ignore[attr-defined]


def test_threads_that_rotate_at_once_do_not_wait_for_each_other_for_ever(two: str) -> None:
    """R7: two connections, four threads, each of which needs a second one at times."""

    def work() -> None:
        try:
            last = None
            for _ in range(20):
                pid = backend_pid(two)
                assert pid != last
                last = pid
        finally:
            connections.close_all()

    with different_connections(two), ThreadPoolExecutor(4) as executor:
        for each in [executor.submit(work) for _ in range(4)]:
            each.result()
    assert census(two).in_use == 0


def test_a_pool_with_room_for_one_is_said_to_be_too_small(alias: str) -> None:
    """S2: what an exhausted pool raises, and nothing is left checked out."""
    with extra_alias(f"kit_small_{alias}", alias, size=1, timeout=0.2) as one:
        if alias == "own":
            from own_pool.stock import base

            before, base.TIMEOUT = base.TIMEOUT, 0.2
        try:
            with different_connections(one):
                backend_pid(one)
                with pytest.raises(OperationalError):
                    backend_pid(one)
            assert census(one).in_use == 0
            assert pool_status(one).leases == ()
            backend_pid(one)
        finally:
            if alias == "own":
                base.TIMEOUT = before


def test_other_aliases_are_left_alone(two: str) -> None:
    """S2: the engine's class is shared, the alias is not."""
    with pool_for_one(two.removeprefix("kit_")) as one, different_connections(two):
        assert len({backend_pid(one) for _ in range(4)}) == 1


@pytest.mark.parametrize("name", ["stock_native", "stock_dj"])
def test_stock_can_not_be_made_to_rotate(name: str) -> None:
    """S2: it says so."""
    with (
        pytest.raises(ImproperlyConfigured, match=f"alias '{name}': its ENGINE does not"),
        different_connections(name),
    ):
        pass


# ##### no_leases() #####


def test_a_block_that_leaves_a_connection_out_fails(two: str) -> None:
    """P2: the error names the alias and the holds."""
    with pytest.raises(ConnectionHeldError) as raised, no_leases():
        cursor = connections[two].cursor()
    assert str(raised.value) == (
        f"a connection is still checked out: alias {two!r}: open cursor"
    )
    cursor.close()
    with no_leases():
        backend_pid(two)


def test_it_sees_other_threads_too(two: str) -> None:
    """P2: a lease of a worker counts."""
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with pin_connection(two):
            entered.set()
            leave.wait(10)
        connections.close_all()

    thread = threading.Thread(target=work)

    def forget() -> None:
        with no_leases():
            thread.start()
            assert entered.wait(10)

    with pytest.raises(ConnectionHeldError, match="pin"):
        forget()
    leave.set()
    thread.join()


def test_a_lease_from_before_does_not_count(two: str) -> None:
    """P2: such as that of a TestCase's block."""
    with transaction.atomic(two):
        backend_pid(two)
        with no_leases():
            backend_pid(two)


def test_an_error_of_the_block_is_not_replaced(two: str) -> None:
    """P2: the test's own failure matters more."""
    cursor = None

    def fail() -> None:
        nonlocal cursor
        with no_leases():
            cursor = connections[two].cursor()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert cursor is not None
    cursor.close()


# ##### As pytest fixtures #####

_PROJECT = {
    "conftest.py": 'pytest_plugins = ["django_pg_real_pool.testing"]\n',
    "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = project_settings\npythonpath = .\n",
    "project_settings.py": """
import os

DATABASES = {"default": {
    "ENGINE": "django_pg_real_pool",
    "NAME": os.environ["PGDATABASE"],
    "HOST": os.environ["PGHOST"],
    "PORT": os.environ["PGPORT"],
    "USER": os.environ["PGUSER"],
    "OPTIONS": {"pool": {"min_size": 1, "max_size": 2}},
}}
DATABASES["late"] = {**DATABASES["default"], "ENGINE": "django.db.backends.postgresql"}
USE_TZ = True
""",
    "test_project.py": """
import pytest
from django.db import connection


@pytest.fixture(autouse=True)
def database(django_db_blocker):
    with django_db_blocker.unblock():
        yield
        connection.close()


def pid():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def test_another_with(real_pool_different_connections):
    assert pid() != pid()


def test_that_releases(real_pool_no_leases):
    pid()


def test_that_forgets(real_pool_no_leases):
    connection.cursor().execute("SET app.tenant = '1'")
    test_that_forgets.cursor = connection.cursor()
""",
}


def test_the_fixtures_of_a_project_of_its_own(tmp_path: Path) -> None:
    """P2, S2: by a pytest of its own, with nothing but a conftest of one line."""
    for name, text in _PROJECT.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    package = Path(sys.modules["django_pg_real_pool"].__file__ or "").parent.parent
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            "PYTEST_ADDOPTS": "",  # what our own run was given is not for this one
            "DJANGO_SETTINGS_MODULE": "project_settings",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "3 passed, 1 error" in ran.stdout, ran.stdout + ran.stderr
    assert "ERROR test_project.py::test_that_forgets" in ran.stdout
    assert "ConnectionHeldError: a connection is still checked out: alias 'default': " in (
        ran.stdout
    )


def test_requests_of_other_threads_rotate_for_themselves(two: str) -> None:
    """S2: "twice in a row" is each wrapper's own; a new thread may get any connection."""
    with different_connections(two):
        mine = backend_pid(two)
        theirs = in_another_request(lambda: [backend_pid(two), backend_pid(two)])
        assert theirs[0] != theirs[1]
        assert backend_pid(two) != mine
