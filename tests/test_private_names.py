"""What is relied on of other packages without being public: a test fails if it moves.

Each is tried on the real thing, by itself, without this library in between.
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
import textwrap
import threading
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic
from django.test import override_settings
from helpers import backend_pid, wait_until
from psycopg_pool import ConnectionPool

import django_pg_real_pool
from django_pg_real_pool import _django, pin_connection
from django_pg_real_pool._django import (
    DJANGOS_QUERIES_LOGGED,
    SETTINGS_READ,
    as_written,
    is_as_written,
    is_decorated_by_django,
    undecorated,
)
from django_pg_real_pool._drivers.psycopg3 import Psycopg, _client_side
from django_pg_real_pool._pools import native_line
from django_pg_real_pool._pools.queue_pool import _forget_end
from django_pg_real_pool._pools.queue_shortcut import is_full
from django_pg_real_pool._state import TRANSACTION_STATE

ROOT = Path(django_pg_real_pool.__file__).parent

#: Of psycopg, psycopg_pool, SQLAlchemy and Python; those of Django are in `_django`.
OF_PSYCOPG = {"_notice_handlers", "_notify_handlers", "_prepared"}
OF_ADAPTERS = {"_dumpers", "_dumpers_by_oid", "_loaders"}
OF_POOLS = {
    "_check",
    "_closed",
    "_cond",
    "_connect",
    "_created_at",
    "_drained_at",
    "_expire_at",
    "_lock",
    "_nconns",
    "_nconns_min",
    "_pool",
    "_pool_full_event",
    "_reset",
    "_stats",
    "_waiting",
    "schedule_task",
}
OF_SQLALCHEMY = {"_connection_record", "_finalizer", "_max_overflow", "_pool"}
OF_GEODJANGO = {"_type_infos"}  # tried with PostGIS, in tests/neighbours
OF_PYTHON = {"_current_frames", "_getframe"}
OF_DJANGO = {
    *_django.WRAPPER_METHODS,
    *_django.WRAPPER_ATTRIBUTES,
    *_django.CURSOR_METHODS,
    *_django.POSTGRESQL_ATTRIBUTES,
}


def test_no_other_private_name_is_used() -> None:
    """Whoever begins to rely on another adds a test of it, here."""
    used: set[str] = set()
    own: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and _is_private(node.attr):
                of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                is_stored = isinstance(node.ctx, ast.Store)
                (own if of_self and is_stored else used).add(node.attr)
    known = OF_PSYCOPG | OF_ADAPTERS | OF_POOLS | OF_SQLALCHEMY | OF_PYTHON | OF_DJANGO
    known |= OF_GEODJANGO
    assert used - own - known == set()


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


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

    for name in _django.WRAPPER_METHODS:
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


@pytest.mark.parametrize("name", _django.WRAPPER_METHODS)
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
    assert _django.CURSOR_METHODS == ("_execute_with_wrappers",)
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
    assert _django.WRAPPER_ATTRIBUTES == ("_thread_ident",)
    wrapper: Any = connections["stock_native"]
    assert wrapper._thread_ident == threading.get_ident()


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


@pytest.mark.parametrize("name", sorted({*TRANSACTION_STATE} - {"_unsent_savepoints"}))
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


def test_a_frame_can_be_asked_for_and_each_threads_is_known() -> None:
    here = sys._getframe()
    assert here.f_code.co_name == "test_a_frame_can_be_asked_for_and_each_threads_is_known"
    assert sys._current_frames()[threading.get_ident()] is here


# ##### psycopg_pool #####


@pytest.fixture
def pool() -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(min_size=2, max_size=2, open=True) as pool:
        pool.wait()
        yield pool


def test_a_connection_notes_which_pool_it_is_out_of(pool: Any) -> None:
    connection = pool.getconn()
    assert connection._pool is pool
    pool.putconn(connection)
    wait_until(lambda: connection._pool is None, "it is back")


def test_a_connection_of_a_pool_notes_when_it_expires(pool: Any) -> None:
    with psycopg.connect() as alone:
        assert not hasattr(alone, "_expire_at")
    with pool.connection() as connection:
        assert isinstance(connection._expire_at, float)


def test_the_idle_connections_are_in_line(pool: Any) -> None:
    """A deque: from the left it gives out, and on the right it takes back."""
    assert type(pool._pool) is deque
    first, last = list(pool._pool)
    assert pool.getconn() is first
    pool.putconn(first)
    wait_until(lambda: list(pool._pool) == [last, first], "it is the last in line")


def test_the_check_at_each_checkout_is_an_attribute() -> None:
    checked: list[Any] = []
    with ConnectionPool(
        min_size=1, open=True, check=ConnectionPool.check_connection
    ) as pool:
        assert pool._check is not None
        pool._check = checked.append
        with pool.connection() as connection:
            assert checked == [connection]


def test_a_pool_connects_and_configures_through_the_instance() -> None:
    made: list[Any] = []
    with ConnectionPool(min_size=1, configure=made.append, open=False) as pool:
        connect = type(pool)._connect

        def recorded(*args: Any, **kwargs: Any) -> Any:
            connection = connect(pool, *args, **kwargs)
            assert made == [connection]
            made.append("connected")
            return connection

        pool._connect = recorded  # type: ignore[method-assign]
        pool.open(wait=True)
        assert made[1:] == ["connected"]


def test_attempts_to_connect_are_scheduled_through_the_instance() -> None:
    """With the attempt in the task, and `tick()` to carry it out."""
    tasks: list[Any] = []
    pool = ConnectionPool("host=127.0.0.1 port=1", min_size=1, open=False)
    with closing(pool):
        pool.schedule_task = lambda task, delay: tasks.append(task)  # type: ignore[method-assign]
        pool.open()
        wait_until(
            lambda: any(getattr(task, "attempt", None) for task in tasks),
            "an attempt that failed is scheduled again",
        )
        assert all(callable(task.tick) for task in tasks)


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
    driver.mark_set_up(physical)
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


def test_a_pool_has_a_line_of_places(pool: Any) -> None:
    """A deque of what a thread waits in, and others call."""
    assert type(pool._waiting) is deque
    assert native_line.is_known()
    held = [pool.getconn() for _ in range(pool.max_size)]
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(pool.getconn()))
    thread.start()
    wait_until(lambda: len(pool._waiting) == 1, "it waits")
    (place,) = pool._waiting
    assert type(place) is native_line._original()
    assert place.conn is place.error is None
    pool.putconn(held.pop())
    thread.join()
    assert given == [place.conn]
    for each in [*held, *given]:
        pool.putconn(each)


# ##### SQLAlchemy and dj_db_conn_pool #####


#: As SQLAlchemy is to see it, whose types know PEP 249 and not psycopg.
CREATOR: Any = psycopg.connect


@pytest.fixture
def queue_pool() -> Iterator[Any]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(CREATOR, pool_size=1, max_overflow=1)
    yield pool
    pool.dispose()


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
