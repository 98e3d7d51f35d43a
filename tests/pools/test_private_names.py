"""What is relied on of other packages without being public: a test fails if it moves.

Each name stands in a list with what we take it to mean, and each meaning is tried on the
real thing, by itself, without this library in between.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import gc
import hashlib
import importlib
import inspect
import sys
import sysconfig
import textwrap
import threading
import time
from asyncio import _get_running_loop
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psycopg
import psycopg_pool.pool
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic
from django.test import override_settings
from helpers import DEADLINE, backend_pid, wait_until
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

import django_pg_real_pool
from django_pg_real_pool import pin_connection
from django_pg_real_pool._backend import names
from django_pg_real_pool._backend.names import (
    DJANGOS_QUERIES_LOGGED,
    SETTINGS_READ,
    as_written,
    is_as_written,
    is_decorated_by_django,
    undecorated,
)
from django_pg_real_pool._drivers.psycopg3 import Psycopg, _attributes, _client_side
from django_pg_real_pool._lease.facts import TRANSACTION_STATE
from django_pg_real_pool._pools import real_pool
from django_pg_real_pool._pools.native import was_closed
from django_pg_real_pool._pools.queue import _forget_end, is_full
from django_pg_real_pool._pools.real_pool import NEEDED, NEEDED_IN_POOL

F = TypeVar("F", bound=Callable[..., Any])

ROOT = Path(django_pg_real_pool.__file__).parent

#: Methods of `psycopg_pool.ConnectionPool`, and when it calls them, or what they do.
METHODS_OF_POOL = {
    "_add_connection": "connect, and add what that gives; for one that is counted already",
    "_add_to_pool": "give to who waits, or let be idle: what is new, or is back, or was checked",
    "_check_connection": "in getconn(): raise if this one is not to be given out",
    "_check_open_getconn": "raise PoolClosed if the pool is not open",
    "_connect": "return a new connection, configured, with its age noted",
    "_getconn_unchecked": "in getconn(): return one within so many seconds, before its check",
    "_maybe_grow_pool": "let a worker make another one, if there is room and none is made",
    "_putconn": "in putconn(), or after a check has failed: take one back, by a worker if reset",
    "_reset_connection": "before it is taken back: roll back, call `reset`, or close it",
    "_return_connection": "take one back, or replace it if it is broken or too old",
    "run_task": "let a worker call `task.run()`",
    "schedule_task": "let a worker call it after so many seconds, by `task.tick()`",
}
#: Attributes of its instances.
ATTRIBUTES_OF_POOL = {
    "_check": "the user's callback; None without; read at each use",
    "_closed": "not open: not yet, or not any more",
    "_configure": "the user's callback, or Django's, for each new connection",
    "_drained_at": "when drain() was called last; before 3.3 there is none",
    "_lock": "what each critical section is guarded by; nothing needs it to be no RLock",
    "_max_size": "how far it may grow",
    "_min_size": "how many it has at least",
    "_nconns": "how many there are: idle, out, and being made",
    "_nconns_min": "how few were idle since it last looked whether to shrink",
    "_opened": "was open once",
    "_pool": "a deque of those that are idle",
    "_pool_full_event": "while somebody waits for the pool to be full: what tells him",
    "_reset": "the user's callback; None without; read at each use",
    "_stats": "a Counter of what get_stats() tells, by the same names",
    "_waiting": "a deque of those who wait, who has come first on the left",
}
#: Attributes of a connection that are a pool's.
OF_POOLED_CONNECTION = {
    "_created_at": "when it was made; before 3.3 there is none",
    "_expire_at": "when it is too old: looked at when it comes back",
    "_pool": "the pool that it is out of; None while it is idle",
}
#: Classes of `psycopg_pool.pool`.
OF_POOL_MODULE = {
    "AddConnection": "to connect; after a failure scheduled with its `attempt`",
    "MaintenanceTask": "what a worker runs: `_run(pool)`, unless the pool is closed",
    "ReturnConnection": "to take one back, where it is to be reset",
    "WaitingClient": "who waits: nobody but _getconn_unchecked() needs it to be one",
}
#: Attributes of `psycopg.Connection`.
OF_PSYCOPG = {
    "_deferrable": "what `deferrable` returns",
    "_isolation_level": "what `isolation_level` returns",
    "_notice_handlers": "who hears of notices",
    "_notifies_backlog": "notifications that nobody has asked for; before 3.2 there is none",
    "_notify_handlers": "who hears of notifications",
    "_prepared": "the statements that it believes the session has prepared",
    "_read_only": "what `read_only` returns",
}
#: Attributes of `psycopg.Cursor`.
OF_CURSORS = {"_query": "what it has sent last, as `query`, in bytes; after close(), too"}
#: Attributes of `psycopg.adapt.AdaptersMap`.
OF_ADAPTERS = {
    "_dumpers": "by format, and by class or its name",
    "_dumpers_by_oid": "by format, and by oid",
    "_loaders": "by format, and by oid",
}
#: Attributes of SQLAlchemy's pools and of what they give out.
OF_SQLALCHEMY = {
    "_connection_record": "the pool's record of a connection that is out",
    "_finalizer": "what takes it back when it is collected; before 2.1 there is none",
    "_max_overflow": "how many more a QueuePool may make than it keeps; -1: any number",
    "_pool": "its queue, which gives out the last if it is told to",
}
#: Of dj_db_conn_pool: the backend's own way to connect, which is looked for, not called.
OF_DJ_DB_CONN_POOL = {"_get_new_connection": "connect without the pool"}
OF_PYTHON = {
    "_current_frames": "the innermost frame of each thread",
    "_is_gil_enabled": "whether one thread at a time runs; absent before 3.13",
    "_getframe": "the frame of the caller",
}
#: Where Django keeps a thread's wrappers: an asgiref `Local`, and what that is made of.
OF_LOCAL = {"_connections", "_storage"}
OF_DJANGO = {
    *names.WRAPPER_METHODS,
    *names.WRAPPER_ATTRIBUTES,
    *names.CURSOR_METHODS,
    *names.POSTGRESQL_ATTRIBUTES,
}
#: All but Django's, which are in `_backend.names`, and have their tests below.
LISTS = {
    "pool": METHODS_OF_POOL | ATTRIBUTES_OF_POOL | OF_POOL_MODULE,
    "pooled": OF_POOLED_CONNECTION,
    "psycopg": OF_PSYCOPG | OF_ADAPTERS | OF_CURSORS,
    "sqlalchemy": OF_SQLALCHEMY,
    "dj_db_conn_pool": OF_DJ_DB_CONN_POOL,
    "python": OF_PYTHON,
    "local": OF_LOCAL,
}

_tested: set[tuple[str, str]] = set()


def means(kind: str, *meant: str) -> Callable[[F], F]:
    """Say which names a test tries the meaning of."""
    _tested.update((kind, name) for name in meant)
    return lambda test: test


def test_each_meaning_is_tried() -> None:
    """And nothing is that is not in a list."""
    assert _tested == {(kind, name) for kind, listed in LISTS.items() for name in listed}


def test_no_other_private_name_is_used() -> None:
    """Whoever begins to rely on another adds it to a list, and a test of it, here."""
    used: set[str] = set()
    own: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node.value.isidentifier() and _is_private(node.value):
                    used.add(node.value)  # as for getattr()
            elif isinstance(node, ast.Attribute) and _is_private(node.attr):
                of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                is_stored = isinstance(node.ctx, ast.Store)
                (own if of_self and is_stored else used).add(node.attr)
    known = OF_DJANGO.union(*LISTS.values())
    assert used - own - known - OUR_MARKS == set()


@means("local", "_connections", "_storage")
def test_the_place_of_wrappers_tells_by_its_class_when_python_was_patched() -> None:
    """Patched later, `threading.local` would be another class than it was then."""
    place: Any = vars(connections)["_connections"]
    assert isinstance(place._storage, threading.local)


#: What we put on a connection ourselves.
OUR_MARKS = {
    "_django_pg_real_pool",
    "_django_pg_real_pool_heard",
    "_django_pg_real_pool_noted",
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_private_name_of_a_pool_is_used_by_its_subclass() -> None:
    """Also of those that it defines itself, because it overrides them."""
    pool, connection = ConnectionPool(open=False), psycopg.Connection
    of_parent = {*dir(pool), *dir(connection), *OF_POOLED_CONNECTION}
    used = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(ast.parse(inspect.getsource(real_pool)))
        if isinstance(node, ast.Attribute | ast.FunctionDef)
    }
    found = {name for name in used & of_parent if _is_private(name)}
    assert found <= {*METHODS_OF_POOL, *ATTRIBUTES_OF_POOL, *OF_POOLED_CONNECTION}


def test_what_is_needed_is_looked_for() -> None:
    """A pool that lacks one of these stays as it is; what is newer is looked for itself."""
    assert {*NEEDED} == {*METHODS_OF_POOL, "getconn", "putconn"}
    assert {*NEEDED_IN_POOL} == {*ATTRIBUTES_OF_POOL} - {"_drained_at", "_lock", "_opened"}


def test_python_tells_whether_an_event_loop_runs() -> None:
    """Without an exception, which asyncio's public function raises where none does."""

    async def ask() -> bool:
        return _get_running_loop() is asyncio.get_running_loop()

    assert _get_running_loop() is None
    assert asyncio.run(ask())


# ##### Django #####


def test_settings_that_were_read_are_where_we_look_for_them() -> None:
    """And no longer, once they are changed."""
    for debug in (True, False):
        with override_settings(DEBUG=debug):
            assert SETTINGS_READ.get("DEBUG", debug) is debug
            assert settings.DEBUG is debug
            assert SETTINGS_READ["DEBUG"] is debug
        assert SETTINGS_READ.get("DEBUG", settings.DEBUG) is settings.DEBUG
    assert BaseDatabaseWrapper.queries_logged is DJANGOS_QUERIES_LOGGED


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Any]]]:
    """A wrapper of Django's own, without a pool, and the private calls that it makes."""
    calls: list[Any] = []

    def record(owner: type[Any], name: str) -> None:
        original = getattr(owner, name)

        def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, *args))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, recording)

    for name in names.WRAPPER_METHODS:
        record(DatabaseWrapper, name)
    wrapper: Any = connections["stock_unpooled_native"]
    wrapper.ensure_connection()
    calls.clear()
    yield wrapper, calls
    wrapper.close()


def _in_transaction(end: str) -> Callable[[Any], None]:
    def run(wrapper: Any) -> None:
        wrapper.set_autocommit(False)
        getattr(wrapper, end)()
        wrapper.set_autocommit(True)

    return run


def _nested_block(fails: bool) -> Callable[[Any], None]:
    def run(wrapper: Any) -> None:
        with atomic(wrapper.alias):
            try:
                with atomic(wrapper.alias):
                    if fails:
                        raise LookupError
            except LookupError:
                pass

    return run


CALLS: dict[str, tuple[Callable[[Any], None], tuple[Any, ...]]] = {
    "_close": (lambda wrapper: wrapper.close(), ()),
    "_commit": (_in_transaction("commit"), ()),
    "_cursor": (lambda wrapper: wrapper.cursor().close(), ()),
    "_prepare_cursor": (lambda wrapper: wrapper.cursor().close(), (psycopg.Cursor,)),
    "_rollback": (_in_transaction("rollback"), ()),
    "_savepoint": (_nested_block(fails=False), (str,)),
    "_savepoint_commit": (_nested_block(fails=False), (str,)),
    "_savepoint_rollback": (_nested_block(fails=True), (str,)),
    "_set_autocommit": (lambda wrapper: wrapper.set_autocommit(True), (bool,)),
}


@pytest.mark.parametrize("name", names.WRAPPER_METHODS)
def test_django_calls_its_private_method(name: str, recorded: Any) -> None:
    """Ours are called in its place, so it must be called, and with these arguments."""
    wrapper, calls = recorded
    run, kinds = CALLS[name]
    run(wrapper)
    args = next(call[1:] for call in calls if call[0] == name)
    assert len(args) >= len(kinds)
    assert all(isinstance(arg, kind) for arg, kind in zip(args, kinds, strict=False))


@pytest.mark.parametrize("many", [False, True])
def test_django_runs_statements_through_its_loop(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over execute wrappers, by keyword; what runs the statement takes it from there."""
    assert names.CURSOR_METHODS == ("_execute_with_wrappers",)
    loop: Any = CursorWrapper._execute_with_wrappers  # type: ignore[attr-defined]
    seen: list[Any] = []

    def watched(self: Any, sql: Any, params: Any, many: Any, executor: Any) -> Any:
        seen.append((sql, params, many))
        executor(sql, params, many, {"connection": self.db, "cursor": self})
        return loop(self, sql, params, many, executor)

    monkeypatch.setattr(CursorWrapper, "_execute_with_wrappers", watched)
    wrapper: Any = connections["stock_unpooled_native"]
    params: Any = [["a"]] if many else ["a"]
    with wrapper.cursor() as cursor:
        (cursor.executemany if many else cursor.execute)("SELECT %s", params)
    wrapper.close()
    assert seen == [("SELECT %s", params, many)]


#: What ours does in the place of these, or goes without.  They were read; whoever finds
#: that one has changed reads it again, and then notes what it is now.
READ = {
    (CursorWrapper, "_execute_with_wrappers"): "2bfc42253c1519b6",
    (BaseDatabaseWrapper, "cursor"): "de89c4b57dfed66b",
    (BaseDatabaseWrapper, "make_cursor"): "5ac6e4dd8d91cec1",
    (BaseDatabaseWrapper, "_prepare_cursor"): "ab821b6c98b4d347",
}


@pytest.mark.parametrize(("owner", "name"), READ)
def test_what_is_replaced_has_not_learned_anything_new(owner: type[Any], name: str) -> None:
    written = ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, name)))).body[0]
    assert isinstance(written, ast.FunctionDef)
    if ast.get_docstring(written) is not None:
        del written.body[0]
    text = ast.unparse(written)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == READ[owner, name], text


def test_what_is_as_written_is_told_from_a_replacement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "make_cursor"
    assert is_as_written(BaseDatabaseWrapper, name)
    assert as_written(BaseDatabaseWrapper, name) is BaseDatabaseWrapper.make_cursor
    replacement = functools.wraps(BaseDatabaseWrapper.make_cursor)(
        lambda self, cursor: None
    )
    monkeypatch.setattr(BaseDatabaseWrapper, name, replacement)
    assert not is_as_written(BaseDatabaseWrapper, name)
    assert as_written(BaseDatabaseWrapper, name) is not replacement
    assert not is_as_written(DatabaseWrapper, name)  # it is not its own


def test_a_wrapper_knows_its_thread() -> None:
    assert names.WRAPPER_ATTRIBUTES == ("_thread_ident", "_thread_sharing_count")
    wrapper: Any = connections["stock_native"]
    assert wrapper._thread_ident == threading.get_ident()
    assert wrapper._thread_sharing_count == 0
    wrapper.inc_thread_sharing()
    assert wrapper._thread_sharing_count == 1
    wrapper.dec_thread_sharing()


def test_a_wrapper_counts_who_shares_it() -> None:
    wrapper: Any = connections["stock_native"].copy()
    for count in (0, 1, 2):
        assert wrapper._thread_sharing_count == count
        assert wrapper.allow_thread_sharing is (count > 0)
        wrapper.inc_thread_sharing()
    for _ in range(3):
        wrapper.dec_thread_sharing()
    assert wrapper._thread_sharing_count == 0


def test_djangos_pools_are_found_by_alias() -> None:
    backend_pid("stock_native")
    connections["stock_native"].close()
    pools: Any = DatabaseWrapper._connection_pools  # type: ignore[attr-defined]
    assert isinstance(pools["stock_native"], ConnectionPool)


def test_django_configures_a_connection_for_its_pool() -> None:
    """Time zone and role, on whatever connection it is given; committing is ours."""
    wrapper: Any = connections["stock_native"]
    with psycopg.connect(autocommit=True) as physical:
        physical.execute("SET TIME ZONE 'Asia/Tokyo'")
        wrapper._configure_connection(physical)
        assert physical.execute("SHOW TimeZone").fetchone() == (wrapper.timezone_name,)


@pytest.mark.parametrize("name", TRANSACTION_STATE)
def test_a_new_wrapper_is_in_the_state_that_we_reset_to(name: str) -> None:
    wrapper: Any = connections["stock_unpooled_native"].copy()
    assert getattr(wrapper, name) == TRANSACTION_STATE[name]()


def test_djangos_own_ensure_connection_is_recognised() -> None:
    assert is_decorated_by_django(BaseDatabaseWrapper.ensure_connection)
    assert not is_decorated_by_django(test_djangos_own_ensure_connection_is_recognised)


@pytest.mark.parametrize("name", ["cursor", "commit", "ensure_connection"])
def test_a_method_of_djangos_is_found_without_its_decorator(name: str) -> None:
    decorated, bare = undecorated(getattr(BaseDatabaseWrapper, name))
    assert decorated is getattr(BaseDatabaseWrapper, name)
    assert bare.__name__ == name
    assert "get_running_loop" not in bare.__code__.co_names
    other, nothing = undecorated(lambda self: None)
    assert other is not decorated
    assert nothing is None


# ##### Python #####


@means("python", "_current_frames", "_getframe")
def test_a_frame_can_be_asked_for_and_each_threads_is_known() -> None:
    here = sys._getframe()
    assert here.f_code.co_name == "test_a_frame_can_be_asked_for_and_each_threads_is_known"
    assert sys._current_frames()[threading.get_ident()] is here


@means("python", "_is_gil_enabled")
def test_python_tells_whether_it_has_a_gil() -> None:
    if sys.version_info < (3, 13):
        assert not hasattr(sys, "_is_gil_enabled")
    else:
        is_without = sysconfig.get_config_var("Py_GIL_DISABLED")
        assert sys._is_gil_enabled() or is_without


# ##### psycopg_pool #####

DRAINS = pytest.mark.skipif(
    not hasattr(ConnectionPool, "drain"), reason="this psycopg_pool can't drain"
)


@contextmanager
def opened(kind: Any = ConnectionPool, size: int = 1, **options: Any) -> Iterator[Any]:
    """Give a pool of psycopg_pool's own, which is full."""
    with closing(kind(min_size=size, open=False, **{"timeout": 5, **options})) as pool:
        pool.open(wait=True)
        yield pool


@pytest.fixture
def pool() -> Iterator[Any]:
    with opened(size=2) as pool:
        yield pool


def recording(*methods: str) -> tuple[type[Any], list[tuple[Any, ...]]]:
    """Return a subclass that overrides methods to note their calls, and what it notes."""
    calls: list[tuple[Any, ...]] = []

    def overriding(name: str) -> Any:
        def override(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, *args, kwargs) if kwargs else (name, *args))
            return getattr(ConnectionPool, name)(self, *args, **kwargs)

        return override

    namespace = {name: overriding(name) for name in methods}
    return type("Recorded", (ConnectionPool,), namespace), calls


@means("pooled", "_pool")
def test_a_connection_notes_which_pool_it_is_out_of(pool: Any) -> None:
    connection = pool.getconn()
    assert connection._pool is pool
    pool.putconn(connection)
    assert connection._pool is None


@means("pool", "_pool")
def test_the_idle_connections_are_in_line(pool: Any) -> None:
    """A deque: from the left it gives out, and on the right it takes back."""
    assert type(pool._pool) is deque
    first, last = list(pool._pool)
    assert pool.getconn() is first
    pool.putconn(first)
    assert list(pool._pool) == [last, first]


@means("pool", "_check", "_check_connection")
def test_the_check_at_each_checkout_is_an_attribute() -> None:
    """It is made by a method, between taking a connection and giving it out."""
    checked: list[Any] = []
    kind, calls = recording("_check_connection", "_getconn_unchecked")
    with opened(kind, check=ConnectionPool.check_connection) as pool:
        assert pool._check is ConnectionPool.check_connection
        pool._check = checked.append
        with pool.connection() as connection:
            assert checked == [connection]
        assert [name for name, *_ in calls] == ["_getconn_unchecked", "_check_connection"]
        assert calls[1][1:] == (connection,)
        pool._check = None
        with pool.connection():
            assert checked == [connection]


@means("pool", "_getconn_unchecked")
def test_a_connection_is_had_within_a_time_by_one_method() -> None:
    """Called with the seconds that are left; what it returns is given out as it is."""
    kind, calls = recording("_getconn_unchecked")
    with opened(kind) as pool:
        connection = pool.getconn(timeout=3.0)
        ((_, seconds),) = calls
        assert 2.0 < seconds <= 3.0
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.05)
        pool._getconn_unchecked = lambda seconds: connection
        assert pool.getconn() is connection
        pool.putconn(connection)


@means("pool", "_putconn", "_return_connection", "_reset_connection", "_add_to_pool")
def test_a_connection_comes_back_in_steps() -> None:
    """Each by its method: reset first, and then to be had by others."""
    steps = ("_putconn", "_return_connection", "_reset_connection", "_add_to_pool")
    kind, calls = recording(*steps)
    with opened(kind) as pool:
        connection = pool.getconn()
        connection.execute("SELECT 1")
        calls.clear()
        pool.putconn(connection)
        assert calls == [
            ("_putconn", connection, {"from_getconn": False}),
            ("_return_connection", connection, {"from_getconn": False}),
            ("_reset_connection", connection),
            ("_add_to_pool", connection),
        ]
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_connection_that_fails_its_check_comes_back_by_the_same_way() -> None:
    """Told apart by an argument, because it is counted otherwise."""

    def check(connection: Any) -> None:
        checked._check = None
        connection.close()
        raise psycopg.OperationalError

    kind, calls = recording("_putconn", "_return_connection")
    with opened(kind) as checked:
        (connection,) = checked._pool
        checked._check = check
        checked.getconn()
        assert calls == [
            ("_putconn", connection, {"from_getconn": True}),
            ("_return_connection", connection, {"from_getconn": True}),
        ]
        assert checked.get_stats()["connections_lost"] == 1


@means("pool", "_reset", "ReturnConnection", "run_task")
def test_a_connection_that_is_to_be_reset_comes_back_by_a_worker() -> None:
    """A task that is run there; the callback is an attribute, read at each return."""
    threads: list[int] = []
    kind, calls = recording("run_task")
    with opened(kind) as pool:
        connection = pool.getconn()
        calls.clear()
        pool._reset = lambda connection: threads.append(threading.get_ident())
        pool.putconn(connection)
        wait_until(lambda: list(pool._pool) == [connection], "it is back")
        ((_, task),) = calls
        assert type(task) is psycopg_pool.pool.ReturnConnection
        assert threads != [threading.get_ident()]
        pool._reset = None
        pool.putconn(pool.getconn())
        assert len(threads) == len(calls) == 1


def test_what_is_new_and_what_was_checked_is_added_by_the_same_method() -> None:
    kind, calls = recording("_add_to_pool")
    with opened(kind) as pool:
        (connection,) = pool._pool
        pool.check()
        assert calls == [("_add_to_pool", connection)] * 2


@means("pool", "_connect", "_configure")
def test_a_pool_connects_and_configures_by_one_method() -> None:
    configured: list[Any] = []
    kind, calls = recording("_connect", "_add_to_pool")
    with opened(kind, configure=configured.append) as pool:
        (connection,) = pool._pool
        assert configured == [connection]
        assert calls == [("_connect",), ("_add_to_pool", connection)]
        pool._configure = None
        pool._connect().close()
        assert configured == [connection]


@means("pool", "_add_connection")
def test_another_connection_is_made_in_the_place_of_one_that_is_counted(pool: Any) -> None:
    with pool._lock:
        gone = pool._pool.popleft()
    gone.close()
    pool._add_connection(None)
    assert len(pool._pool) == pool._nconns == 2


@means("pool", "schedule_task", "AddConnection")
def test_an_attempt_to_connect_that_failed_is_scheduled() -> None:
    """With the attempt in the task, and `tick()` to let a worker make it."""
    kind, calls = recording("schedule_task", "run_task")
    pool: Any = kind("host=127.0.0.1 port=1", min_size=1, open=False)
    with closing(pool):
        pool.open()

        def attempts() -> list[Any]:
            return [
                (task, delay)
                for name, task, *delay in list(calls)
                if name == "schedule_task" and getattr(task, "attempt", None)
            ]

        wait_until(lambda: bool(attempts()), "an attempt that failed is scheduled again")
        ((task, (delay,)),) = attempts()
        assert type(task) is psycopg_pool.pool.AddConnection
        assert 0.5 < delay < 1.5
        calls.clear()
        task.tick()
        assert ("run_task", task) in calls


def test_a_pool_that_gives_up_counts_one_less() -> None:
    """So whoever makes an attempt later must not be counted as well."""
    failed: list[Any] = []
    pool: Any = ConnectionPool(
        *("host=127.0.0.1 port=1",),
        min_size=1,
        open=False,
        reconnect_timeout=0.0,
        reconnect_failed=failed.append,
    )
    with closing(pool):
        pool.open()
        wait_until(lambda: failed == [pool], "it has given up")
        assert pool._nconns == 0


@means("pool", "MaintenanceTask")
def test_a_task_of_one_s_own_is_run_by_a_worker(pool: Any) -> None:
    """With the pool, which it does not keep alive; and no longer, once that is closed."""
    ran: list[Any] = []

    class Task(psycopg_pool.pool.MaintenanceTask):
        def _run(self, pool: Any) -> None:
            ran.append((pool, threading.get_ident()))

    task = Task(pool)
    pool.run_task(task)
    wait_until(lambda: bool(ran), "it was run")
    ((given, thread),) = ran
    assert given is pool
    assert thread != threading.get_ident()
    assert pool not in vars(task).values()
    pool.close()
    task.run()
    task.tick()
    assert len(ran) == 1


@means("pool", "_check_open_getconn", "_closed", "_opened")
def test_a_pool_knows_whether_it_is_open() -> None:
    pool: Any = ConnectionPool(min_size=1, open=False)
    for is_closed, was_open in [(True, False), (False, True), (True, True)]:
        assert (pool._closed, pool._opened) == (is_closed, was_open)
        assert was_closed(pool) is (is_closed and was_open)
        if is_closed:
            with pytest.raises(PoolClosed):
                pool._check_open_getconn()
            if not was_open:
                pool.open()
        else:
            pool._check_open_getconn()
            pool.close()


@means("pool", "_lock")
@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_one_lock_guards_a_pool(make: Callable[[], Any]) -> None:
    """Whoever has it stops all others; of whichever kind it is."""
    pool: Any = ConnectionPool(min_size=1, open=False)
    pool._lock = make()
    with closing(pool):
        pool.open(wait=True)
        thread = threading.Thread(target=lambda: pool.putconn(pool.getconn()))
        with pool._lock:
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert len(pool._pool) == 1


@means("pool", "_waiting", "WaitingClient")
def test_who_waits_is_served_in_its_turn(pool: Any) -> None:
    """A deque of places, from the left of which it serves."""
    assert type(pool._waiting) is deque
    held = [pool.getconn() for _ in range(pool.max_size)]
    given: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: given.update({n: pool.getconn()}))
        for n in range(2)
    ]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda n=number: len(pool._waiting) == n + 1, "it waits")  # type: ignore[misc]
    first, second = pool._waiting
    assert type(first) is psycopg_pool.pool.WaitingClient
    assert first.conn is first.error is second.conn is None
    pool.putconn(held[1])
    threads[0].join()
    assert given == {0: held[1]} == {0: first.conn}
    assert list(pool._waiting) == [second]
    pool.putconn(held[0])
    threads[1].join()
    assert given[1] is held[0]
    for each in held:
        pool.putconn(each)


def test_who_waits_may_be_anything_that_can_be_served_and_failed(pool: Any) -> None:
    """Only these two are asked of it outside of `_getconn_unchecked()`."""
    asked: list[tuple[str, Any]] = []
    place = SimpleNamespace(
        set=lambda connection: asked.append(("set", connection)) or True,  # type: ignore[func-returns-value]
        fail=lambda error: asked.append(("fail", error)),
    )
    connection = pool.getconn()
    pool._waiting.extend([place, place])
    assert pool.get_stats()["requests_waiting"] == 2
    pool.putconn(connection)
    assert asked == [("set", connection)]
    pool.close()
    (_, (name, error)) = asked
    assert name == "fail"
    assert isinstance(error, PoolClosed)
    connection.close()


class Slow(psycopg.Connection[Any]):
    """Takes as long to connect as it is told to."""

    may_connect = threading.Event()

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Any:
        assert cls.may_connect.wait(DEADLINE)
        return super().connect(*args, **kwargs)


@pytest.fixture
def slow() -> Iterator[Any]:
    """A pool that may grow from one connection to three, and takes its time for it."""
    Slow.may_connect.set()
    with opened(max_size=3, connection_class=Slow) as pool:
        Slow.may_connect.clear()
        yield pool
        Slow.may_connect.set()


@means("pool", "_nconns", "_max_size", "_maybe_grow_pool")
def test_a_pool_counts_what_is_idle_what_is_out_and_what_is_being_made(slow: Any) -> None:
    """It makes one at a time, and never more than it may have."""
    with slow.connection():
        assert slow._nconns == 1
        for _ in range(2):
            with slow._lock:
                slow._maybe_grow_pool()
            assert slow._nconns == slow.get_stats()["pool_size"] == 2
            assert len(slow._pool) == 0
            assert slow._growing
        Slow.may_connect.set()
        wait_until(lambda: len(slow._pool) == 1 and not slow._growing, "it has grown")
        assert slow._nconns == 2
        slow._max_size = 2
        with slow._lock:
            slow._maybe_grow_pool()
        assert slow._nconns == 2
        assert not slow._growing


@means("pool", "_nconns_min")
def test_a_pool_shrinks_by_one_that_was_idle_throughout(slow: Any) -> None:
    """If it has noted so: the fewest that were idle since it last looked."""
    Slow.may_connect.set()
    with slow.connection(), slow.connection():
        assert slow._nconns_min == 0
    slow._shrink_pool()
    assert (slow._nconns, slow._nconns_min) == (2, 2)
    slow.putconn(slow.getconn())
    assert slow._nconns_min == 1
    slow._shrink_pool()
    assert (slow._nconns, slow._nconns_min, len(slow._pool)) == (1, 1, 1)


@means("pool", "_min_size", "_pool_full_event")
def test_who_waits_for_a_full_pool_waits_for_an_event(pool: Any) -> None:
    """It is there only then; and set with the connection that makes the pool full."""
    assert pool._min_size == 2
    assert pool._pool_full_event is None
    connection = pool.getconn()
    waiting = threading.Thread(target=pool.wait, args=[DEADLINE])
    waiting.start()
    wait_until(lambda: pool._pool_full_event is not None, "it waits")
    event: Any = pool._pool_full_event
    assert not event.is_set()
    pool.putconn(connection)
    assert event.is_set()
    waiting.join()
    assert pool._pool_full_event is None


@means("pool", "_stats")
def test_what_a_pool_counts_is_told_by_the_same_names(pool: Any) -> None:
    """By these, which are added to."""
    assert isinstance(pool._stats, Counter)
    counted = ("requests_num", "requests_queued", "requests_errors", "requests_wait_ms")
    for number, name in enumerate([*counted, "connections_lost", "returns_bad"]):
        assert getattr(pool, f"_{name.upper()}") == name
        pool._stats[name] = number
        assert pool.get_stats()[name] == number


@means("pooled", "_expire_at", "_created_at")
@means("pool", "_drained_at")
@pytest.mark.parametrize(
    "grow_old", ["expires", pytest.param("is drained", marks=DRAINS), "stays young"]
)
def test_the_age_of_a_connection_is_looked_at_when_it_comes_back(
    pool: Any, grow_old: str
) -> None:
    """And not when it is given out."""
    idle = pool._pool[0]
    connection = pool.getconn()
    assert connection is idle
    assert connection._expire_at > time.monotonic()
    if grow_old == "expires":
        connection._expire_at = time.monotonic()
    if grow_old == "is drained":
        assert 0.0 == pool._drained_at < connection._created_at <= time.monotonic()
        pool._drained_at = connection._created_at
    pool.putconn(connection)
    assert connection.closed is (grow_old != "stays young")
    if grow_old == "expires":
        pool._pool[0]._expire_at = 0.0
        old = pool.getconn()
        assert not old.closed
        pool.putconn(old)


def test_a_connection_that_is_of_no_pool_has_no_age() -> None:
    with psycopg.connect() as alone:
        assert not hasattr(alone, "_expire_at")


@DRAINS
def test_a_pool_notes_when_it_was_drained(pool: Any) -> None:
    before = time.monotonic()
    pool.drain()
    assert before <= pool._drained_at <= time.monotonic()
    wait_until(lambda: len(pool._pool) == 2, "it is full again")


# ##### psycopg #####


@pytest.fixture
def physical() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(autocommit=True) as physical:
        yield physical


class _Text(psycopg.adapt.Dumper):
    oid = 25

    def dump(self, obj: Any) -> bytes:
        return b""


class _Loader(psycopg.adapt.Loader):
    def load(self, data: Any) -> Any:
        return data


REGISTERED: dict[str, Callable[[Any], object]] = {
    "_notice_handlers": lambda physical: physical.add_notice_handler(print),
    "_notify_handlers": lambda physical: physical.add_notify_handler(print),
    "_dumpers": lambda physical: physical.adapters.register_dumper(Path, _Text),
    "_dumpers_by_oid": lambda physical: physical.adapters.register_dumper(Path, _Text),
    "_loaders": lambda physical: physical.adapters.register_loader("text", _Loader),
}


@means("psycopg", *REGISTERED)
@pytest.mark.parametrize("name", REGISTERED)
def test_what_is_registered_can_be_seen(name: str, physical: Any) -> None:
    def look() -> Any:
        found = getattr(physical if name in OF_PSYCOPG else physical.adapters, name)
        if isinstance(found, dict):
            return {key: dict(value) for key, value in found.items()}
        return [each.copy() if isinstance(each, dict) else each for each in found]

    before, known = look(), _client_side(physical)
    assert known is not None
    REGISTERED[name](physical)
    assert look() != before
    assert _client_side(physical) != known


@means("psycopg", "_prepared")
def test_what_was_prepared_can_be_forgotten(physical: Any) -> None:
    physical.execute("SELECT 1", prepare=True)
    physical._prepared.clear()
    physical.execute("DISCARD ALL")
    for _ in range(2):  # else it would execute what is not there
        assert physical.execute("SELECT 1", prepare=True).fetchone() == (1,)


@pytest.mark.parametrize("name", ["_notice_handlers", "_notify_handlers", "adapters"])
def test_without_a_name_of_psycopg_no_reset_will_do(name: str, physical: Any) -> None:
    """The guard: what can't be compared can't be trusted to be clean."""
    driver = Psycopg()
    driver.mark_set_up(physical, ())
    driver.snapshot(physical)
    assert driver.reset(physical)
    moved = "_adapters" if name == "adapters" else name
    delattr(physical, moved)
    if name == "adapters":
        physical._adapters = object()
    assert _client_side(physical) is None
    assert not driver.reset(physical)


@pytest.mark.parametrize("engine", ["native", "dj"])
def test_a_connection_that_can_not_be_compared_is_replaced(engine: str) -> None:
    wrapper: Any = connections[engine]
    with pin_connection(engine):
        pid = backend_pid(engine)
        physical = wrapper._hooks.pool.physical(wrapper.connection)
        del physical._notice_handlers
    assert physical.closed
    assert backend_pid(engine) != pid


@means("psycopg", "_isolation_level", "_read_only", "_deferrable")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        ("read_only", True),
        ("deferrable", True),
    ],
)
def test_what_was_set_on_a_connection_can_be_seen(
    name: str, value: Any, physical: Any
) -> None:
    """Where psycopg keeps it, which is quicker to look at."""
    before = _attributes(physical)
    assert vars(physical)[f"_{name}"] is getattr(physical, name) is None
    setattr(physical, name, value)
    assert vars(physical)[f"_{name}"] == getattr(physical, name) == value
    assert _attributes(physical) != before
    del vars(physical)[f"_{name}"]
    with pytest.raises(AttributeError):
        _attributes(physical)


@means("psycopg", "_notifies_backlog")
@pytest.mark.skipif(
    not hasattr(psycopg.Connection, "notifies") or psycopg.__version__ < "3.2",
    reason="this psycopg has none",
)
def test_what_was_notified_and_not_asked_for_is_kept(physical: Any) -> None:
    """It is of the one who listened, so a reset drops it."""
    driver = Psycopg()
    driver.mark_set_up(physical, ())
    physical.execute("LISTEN news")
    physical.execute("NOTIFY news, 'old'")
    physical.execute("SELECT 1")
    assert [each.payload for each in physical._notifies_backlog or ()] == ["old"]
    assert driver.reset(physical)
    assert not physical._notifies_backlog
    assert list(physical.notifies(timeout=0.05)) == []


@means("psycopg", "_query")
def test_a_cursor_keeps_what_it_has_sent_last(physical: Any) -> None:
    driver, cursor = Psycopg(), physical.cursor()
    assert not driver.may_have_begun(cursor)
    for sent, may_have_begun in (
        ("SELECT 'a beginning'", False),
        ("start  transaction", True),
        ("COMMIT", False),
        ("SELECT 1; Begin", True),
    ):
        cursor.execute(sent)
        assert driver.may_have_begun(cursor) is may_have_begun
    cursor.close()
    assert driver.may_have_begun(cursor)


def test_a_connection_makes_all_cursors_by_one_method(physical: Any) -> None:
    """Which may stand in the place of its class's: so what is sent can be noted."""
    made: list[Any] = []

    def cursor(*args: Any, **kwargs: Any) -> Any:
        made.append(type(physical).cursor(physical, *args, **kwargs))
        return made[-1]

    vars(physical)["cursor"] = cursor
    assert [physical.execute("SELECT 1"), physical.cursor()] == made
    del vars(physical)["cursor"]
    physical.cursor()
    assert len(made) == 2


# ##### SQLAlchemy and dj_db_conn_pool #####


#: As SQLAlchemy is to see it, whose types know PEP 249 and not psycopg.
CREATOR: Any = psycopg.connect


@pytest.fixture
def queue_pool() -> Iterator[Any]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(CREATOR, pool_size=1, max_overflow=1)
    yield pool
    pool.dispose()


@means("sqlalchemy", "_max_overflow")
def test_a_queue_pool_knows_how_far_it_may_grow(queue_pool: Any) -> None:
    assert queue_pool._max_overflow == 1
    with closing(queue_pool.connect()):
        assert not is_full(queue_pool)
        with closing(queue_pool.connect()):
            assert is_full(queue_pool)


def test_a_pool_that_does_not_tell_how_far_it_may_grow_is_never_full() -> None:
    """The guard."""
    from sqlalchemy.pool import NullPool

    pool = NullPool(CREATOR)
    assert not hasattr(pool, "_max_overflow")
    with closing(pool.connect()):
        assert not is_full(pool)


@means("sqlalchemy", "_pool")
def test_a_queue_pool_gives_out_the_last_if_told_to(queue_pool: Any) -> None:
    assert queue_pool._pool.use_lifo is False
    queue_pool._pool.use_lifo = True
    queue_pool._pool.maxsize = 2
    first, last = queue_pool.connect(), queue_pool.connect()
    expected = last.driver_connection
    first.close()
    last.close()
    with closing(queue_pool.connect()) as again:
        assert again.driver_connection is expected


@means("sqlalchemy", "_connection_record", "_finalizer")
def test_a_proxy_of_sqlalchemy_can_be_kept_from_its_end(queue_pool: Any) -> None:
    """In a forked child: what it does when it is collected is not done."""
    proxy = queue_pool.connect()
    physical = proxy.driver_connection
    record = proxy._connection_record
    assert hasattr(proxy, "_finalizer") is (sqlalchemy.__version__ >= "2.1")
    _forget_end(proxy)
    del proxy
    gc.collect()
    assert queue_pool.checkedout() == 1
    record.close()
    physical.close()


def test_the_pools_of_dj_db_conn_pool_are_in_a_dict_with_a_lock() -> None:
    core: Any = importlib.import_module("dj_db_conn_pool.core")

    backend_pid("stock_dj")
    connections["stock_dj"].close()
    container = core.pool_container
    assert issubclass(type(container), dict)
    assert container.has("stock_dj")
    assert container.get("stock_dj") is dict(container)["stock_dj"]
    assert type(type(container).lock) is type(threading.Lock())


@means("dj_db_conn_pool", "_get_new_connection")
def test_dj_db_conn_pool_connects_beside_its_pool_by_a_method() -> None:
    """Whoever overrides that may know another way to the server."""
    wrapper: Any = connections["stock_dj"]
    with closing(wrapper._get_new_connection(wrapper.get_connection_params())) as made:
        assert isinstance(made, psycopg.Connection)
