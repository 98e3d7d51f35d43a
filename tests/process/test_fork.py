"""Contract F1: a child never touches a socket of its parent, and both go on working."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import InterfaceError, OperationalError, connections, transaction
from faults import PLAIN, POOLED, census, end_pool, extra_alias
from helpers import backend_pid, installed, wait_until
from places import PYTHON_PATH
from tcp_proxy import Proxy

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._process import fork, reaper

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
pytest_plugins = ("fix_faults",)

#: How often to fork under load.
FORKS = int(os.environ.get("REAL_POOL_FORKS", "20"))
#: Seconds that a child may take.
DEADLINE = 20


def start_child(function: Callable[[], object]) -> tuple[int, int]:
    """Fork; let the child run `function`, write what went wrong to a pipe, and end."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    code = 1
    try:
        os.close(reader)
        with os.fdopen(writer, "w") as report:
            faulthandler.enable(report)
            try:
                function()
                code = 0
            except BaseException:  # noqa: BLE001 - the parent raises it
                traceback.print_exc(file=report)
    finally:
        os._exit(code)


def end_child(child: tuple[int, int]) -> None:
    """Wait for a child, and fail as it did."""
    pid, reader = child
    status: list[int] = []

    def has_ended() -> bool:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status.append(code)
        return bool(ended)

    deadline = time.monotonic() + DEADLINE
    while not has_ended():
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # it reports where all its threads are
            deadline = float("inf")
        time.sleep(0.005)
    with os.fdopen(reader) as report:
        text = report.read()
    assert status == [0], text


def in_child(function: Callable[[], object]) -> None:
    end_child(start_child(function))


def select_one(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


# ##### What the parent may be doing #####


@contextmanager
def nothing(alias: str) -> Iterator[None]:
    yield


@contextmanager
def open_cursor(alias: str) -> Iterator[None]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 3)")
        assert cursor.fetchone() == (1,)
        yield
        assert cursor.fetchone() == (2,)


@contextmanager
def open_transaction(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('of the parent')")
        yield
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT name FROM item")
            assert cursor.fetchall() == [("of the parent",)]


@contextmanager
def open_portal(alias: str) -> Iterator[None]:
    wrapper: Any = connections[alias]
    with wrapper.chunked_cursor() as cursor:
        cursor.itersize = 1
        cursor.execute("SELECT generate_series(1, 3)")
        assert cursor.fetchone() == (1,)
        yield
        assert cursor.fetchone() == (2,)


@contextmanager
def pinned(alias: str) -> Iterator[None]:
    with pin_connection(alias):
        pid = backend_pid(alias)
        yield
        assert backend_pid(alias) == pid


STATES = {
    "nothing": nothing,
    "open cursor": open_cursor,
    "open transaction": open_transaction,
    "open portal": open_portal,
    "pinned": pinned,
}


@pytest.fixture
def forking(alias: str, proxy: Proxy) -> Iterator[str]:
    """Each engine in turn, with a full pool of two behind `proxy`."""
    with extra_alias(
        f"forking_{alias}", alias, HOST="127.0.0.1", PORT=proxy.port, OPTIONS=PLAIN
    ) as name:
        with connections[name].cursor(), connections[name].copy().cursor():
            pass
        wait_until(lambda: census(name) == (2, 0), f"the pool of {name} is at rest")
        yield name


@contextmanager
def untouched(proxy: Proxy) -> Iterator[None]:
    """Fail if anything is sent, within the block, on a connection that there was before."""
    links = proxy.open_links
    before = [(link.bytes_to_server, link.messages["X"]) for link in links]
    yield
    after = [(link.bytes_to_server, link.messages["X"]) for link in links]
    assert after == before
    assert set(links) <= set(proxy.open_links)


# ##### The child and its parent #####


@pytest.mark.parametrize("state", STATES)
def test_child_and_parent_go_on_working(forking: str, proxy: Proxy, state: str) -> None:
    """F1: whatever the parent had; not a byte is sent on its connections."""
    inherited = len(proxy.links)

    def child() -> None:
        select_one(forking)
        with transaction.atomic(using=forking):
            select_one(forking)
        assert connections[forking].connection is None

    with STATES[state](forking):
        with untouched(proxy):
            in_child(child)
        assert len(proxy.links) > inherited
    select_one(forking)
    wait_until(lambda: census(forking) == (2, 0), "the parent's pool is whole")
    assert len(proxy.open_links) == inherited


@pytest.mark.parametrize("state", STATES)
def test_child_may_be_forked_by_a_worker_thread(
    forking: str, proxy: Proxy, state: str
) -> None:
    """F1: then that thread is the child's only one."""
    errors: list[BaseException] = []

    def fork() -> None:
        try:
            with STATES[state](forking), untouched(proxy):
                in_child(lambda: select_one(forking))
        except BaseException as error:  # noqa: BLE001 - raised by the test
            errors.append(error)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()

    assert errors == []
    select_one(forking)


@pytest.mark.parametrize("state", STATES)
def test_child_does_not_touch_what_other_threads_have(
    forking: str, proxy: Proxy, state: str
) -> None:
    """F1: their wrappers are collected in the child, which must do nothing."""
    ready, done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with STATES[state](forking):
                ready.set()
                done.wait(DEADLINE)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)

    with untouched(proxy):
        in_child(lambda: select_one(forking))

    done.set()
    thread.join()
    assert errors == []
    select_one(forking)


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_child_may_have_children(forking: str, proxy: Proxy) -> None:
    """F1: nested, each generation leaves the connections of all before it alone."""

    def grandchild() -> None:
        select_one(forking)

    def child() -> None:
        select_one(forking)
        with transaction.atomic(using=forking):
            pid = backend_pid(forking)
            in_child(grandchild)
            assert backend_pid(forking) == pid
        in_child(grandchild)
        select_one(forking)

    with open_transaction(forking), untouched(proxy):
        in_child(child)


def test_child_leaves_a_block_of_its_parent_quietly(forking: str, observer: Any) -> None:
    """F1: what the child does in that block is its own, and commits by itself."""
    child = None
    with transaction.atomic(using=forking):
        select_one(forking)

        def insert() -> None:
            with connections[forking].cursor() as cursor:
                cursor.execute("INSERT INTO item (name) VALUES ('of the child')")

        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            insert()
    if child == 0:
        # On the way here the child has left the block of its parent.
        wrapper = connections[forking]
        healthy = wrapper.get_autocommit() and not wrapper.in_atomic_block
        os.write(writer, b"healthy" if healthy else b"sick")
        os._exit(0)
    os.waitpid(child, 0)

    assert os.read(reader, 10) == b"healthy"
    assert observer.execute("SELECT name FROM item").fetchall() == [("of the child",)]
    for file in (reader, writer):
        os.close(file)


@contextmanager
def held_by_another_thread(*locks: Any) -> Iterator[None]:
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            ready.set()
            done.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_locks_that_other_threads_hold_do_not_stop_the_child(forking: str) -> None:
    """F1: those of the pool and of this library alike."""
    wrapper: Any = connections[forking]
    other = wrapper.copy()
    locks = [reaper._starter._lock, wrapper._lease._lock, other._lease._lock]
    if forking.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.get(forking)
        locks += [pool_container.lock, pool._pool.mutex, pool._overflow_lock]
    else:
        pool = wrapper.pool
        locks += [wrapper._hooks.pool._lock, pool._lock, pool._sched._lock]
        locks.append(pool._tasks.mutex)

    def child() -> None:
        select_one(forking)
        with other.cursor() as cursor:
            cursor.execute("SELECT 1")
        other.close()

    with held_by_another_thread(*locks):
        in_child(child)
    select_one(forking)


@pytest.mark.parametrize("alias", ["native"], indirect=True)
@pytest.mark.parametrize("state", ["nothing", "open transaction"])
def test_child_of_a_base_that_gets_its_connections_itself(
    forking: str, proxy: Proxy, state: str
) -> None:
    """F1, D6: from Django's pool in the end, whose other connections nobody has used."""

    class Base(type(connections["stock_native"])):  # type: ignore[misc]
        def get_new_connection(self, conn_params: Any) -> Any:
            return super().get_new_connection(conn_params)

    def child() -> None:
        select_one(forking)
        with transaction.atomic(using=forking):
            select_one(forking)
        assert connections[forking].connection is None
        fork._inherited.clear()
        gc.collect()

    end_pool(forking)
    with installed(forking, make_release_backend(Base)) as wrapper:
        select_one(forking)
        wait_until(lambda: census(forking) == (2, 0), "the pool is full")
        inherited = len(proxy.open_links)
        with STATES[state](forking), untouched(proxy):
            in_child(child)
        select_one(forking)
        wait_until(lambda: census(forking) == (2, 0), "the parent's pool is whole")
        assert len(proxy.open_links) == inherited
        wrapper.close_pool()


def test_connection_that_the_child_still_has_reaches_nobody(
    forking: str, proxy: Proxy
) -> None:
    """F1: neither by a query nor by a polite close."""
    with pin_connection(forking) as wrapper:
        raw = wrapper.connection
        physical = getattr(raw, "driver_connection", raw)

        def child() -> None:
            with pytest.raises(psycopg.OperationalError):
                physical.execute("DROP TABLE item")
            physical.close()
            select_one(forking)

        with untouched(proxy):
            in_child(child)
        assert physical.execute("SELECT 1").fetchone() == (1,)


def test_cursor_that_the_child_still_has_refuses(forking: str, proxy: Proxy) -> None:
    """F1: with an error of Django that says why; closing it is harmless."""
    with connections[forking].cursor() as cursor:
        cursor.execute("SELECT 1")

        def child() -> None:
            with pytest.raises((InterfaceError, OperationalError)):
                cursor.execute("DROP TABLE item")
            cursor.close()
            select_one(forking)

        with untouched(proxy):
            in_child(child)
        cursor.execute("SELECT 2")


def test_cursor_that_the_parent_dropped_is_nothing_to_the_child(forking: str) -> None:
    """F1, R6: it holds the parent's lease until the parent's next entry."""
    cursor = connections[forking].cursor()
    pid = backend_pid(forking)
    del cursor
    end_child(start_child(lambda: backend_pid(forking)))
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        assert backend_pid(forking) == pid


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_child_opens_a_pool_of_its_own(forking: str) -> None:
    """F1: the parent's, with its threads, stays with the parent."""

    def pool() -> Any:
        if forking.endswith("dj"):
            from dj_db_conn_pool.core import pool_container

            return pool_container.get(forking)
        return connections[forking].pool  # type: ignore[attr-defined]

    inherited = pool()

    def child() -> None:
        select_one(forking)
        assert pool() is not inherited
        wait_until(lambda: census(forking).in_use == 0, "nothing is in use")

    in_child(child)
    assert pool() is inherited


def test_collecting_what_was_inherited_does_nothing(forking: str, proxy: Proxy) -> None:
    """F1: not even when nothing keeps the parent's objects alive any more."""

    def child() -> None:
        select_one(forking)
        fork._inherited.clear()
        gc.collect()
        select_one(forking)

    with open_transaction(forking), untouched(proxy):
        in_child(child)


def test_threads_that_die_in_the_child_are_reaped(forking: str) -> None:
    """F1, F3: the child has a reaper of its own."""

    def child() -> None:
        kept = []

        def die() -> None:
            connections[forking].ensure_connection()
            kept.append(connections[forking])

        for _ in range(3):
            thread = threading.Thread(target=die)
            thread.start()
            thread.join()
        select_one(forking)

    with open_transaction(forking):
        in_child(child)


def _query_in_process(alias: str) -> None:
    select_one(alias)
    with transaction.atomic(using=alias):
        select_one(alias)


def test_multiprocessing_may_fork(forking: str, proxy: Proxy) -> None:
    """F1: its children end in their own way."""
    context = multiprocessing.get_context("fork")
    with open_transaction(forking), untouched(proxy), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [
            context.Process(target=_query_in_process, args=(forking,)) for _ in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(DEADLINE)
            assert process.exitcode == 0
            process.close()


#: A parent with a lease, and a child that ends as every Python program does.
PROGRAM = """
import os, sys, threading, warnings
import django
from django.conf import settings
django.setup()
from django.db import connections, transaction

alias = sys.argv[1]

def insert(name):
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])

ready, done = threading.Event(), threading.Event()

def work():
    with transaction.atomic(using=alias):
        insert("of a thread")
        ready.set()
        done.wait(20)
    connections.close_all()

thread = threading.Thread(target=work)
with transaction.atomic(using=alias):
    insert("of the parent")
    thread.start()
    ready.wait(20)
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        with transaction.atomic(using=alias):
            insert("of the child")
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
"""


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_child_may_end_like_any_program(alias: str, observer: Any) -> None:
    """F1: finalisers and atexit functions run, and nothing reaches the parent's server."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, alias],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": python_path(),
        },
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    names = observer.execute("SELECT name FROM item ORDER BY name").fetchall()
    assert names == [("of a thread",), ("of the child",), ("of the parent",)]


def python_path() -> str:
    return os.pathsep.join([PYTHON_PATH, *filter(None, sys.path)])


# ##### Under load #####


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_process_may_fork_under_load(alias: str) -> None:
    """F1: from 16 threads at work; the parent and all children finish clean."""
    errors: list[BaseException] = []
    done = threading.Event()

    with extra_alias(f"forking_{alias}", alias, size=4, timeout=30) as name:

        def work(number: int) -> None:
            try:
                while not done.is_set():
                    query(name, number)
            except BaseException as error:  # noqa: BLE001 - raised by the test
                errors.append(error)
            finally:
                connections.close_all()

        def child() -> None:
            for number in range(3):
                query(name, -number)
            assert connections[name].connection is None

        query(name, 0)  # so that nobody is importing a module when the child is forked
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        try:
            running: list[tuple[int, int]] = []
            for number in range(FORKS):
                running.append(start_child(child))
                query(name, number)
                if len(running) > 3:
                    end_child(running.pop(0))
            for each in running:
                end_child(each)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert errors == []


def query(alias: str, number: int) -> None:
    """Run a query whose answer nobody else gets, within a block and without."""
    for block in (nothing, lambda alias: transaction.atomic(using=alias)):
        with block(alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s, pg_backend_pid()", [number])
            answer, pid = cursor.fetchone()
            assert answer == number
            cursor.execute("SELECT pg_backend_pid()")
            assert cursor.fetchone() == (pid,)


# ##### What it gives every Django user #####

SETTINGS = """
import sys
sys.path[:0] = {path!r}
from settings import *

INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
DATABASES = {{
    "default": {{
        **DATABASES[{alias!r}],
        "TEST": {{"NAME": "parallel_{alias}"}},
    }}
}}
ROOT_URLCONF = "shop.urls"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""

TESTS = """
import os
import threading
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase


class Mixin:
    def test_rows_are_its_own(self):
        self.assertEqual(User.objects.count(), 0)
        with transaction.atomic():
            User.objects.create_user("somebody")
        self.assertEqual([user.username for user in User.objects.iterator()], ["somebody"])

    def test_database_is_a_clone(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            name, = cursor.fetchone()
        self.assertRegex(name, r"^parallel_[a-z]+_[12]$")
"""


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_manage_py_test_runs_in_parallel(alias: str, tmp_path: Path) -> None:
    """F1: each worker process has clones of the test database, and a pool of its own."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (tmp_path / "project_settings.py").write_text(
        SETTINGS.format(alias=alias, path=python_path().split(os.pathsep))
    )
    (shop / "__init__.py").write_text("")
    (shop / "urls.py").write_text("urlpatterns = []\n")
    kinds = [("TestCase", range(4)), ("TransactionTestCase", range(4, 8))]
    (shop / "tests.py").write_text(
        textwrap.dedent(TESTS)
        + "".join(
            f"\n\nclass Test{number}(Mixin, {kind}):\n    pass\n"
            for kind, numbers in kinds
            for number in numbers
        )
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore::DeprecationWarning", "-m", "django", "test"),
            *("--parallel", "2", "--noinput", "-v", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "project_settings",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), python_path()]),
        },
    )

    assert ran.returncode == 0, ran.stderr
    assert "Ran 16 tests" in ran.stderr
