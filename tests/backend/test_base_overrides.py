"""D5, D6: bases that users write: their cursor classes and the hooks that they override.

Each test makes a base of its own upon the stock backend of an engine, and calls the
factory on it, or writes or extends the class by hand.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from threading import Barrier, Thread
from typing import Any

import psycopg
import pytest
from django.db import InterfaceError, close_old_connections, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as StockWrapper
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from helpers import (
    backend_pid,
    census,
    forget_pool,
    installed,
    pool_of_one,
    run_in_thread,
    wait_until,
)
from settings import STOCK_OF
from side_by_side import rolled_back
from traffic import warm_up

from django_pg_real_pool import (
    AutoConnectionReleaseCursor,
    ConnectionReleaseMixin,
    make_release_backend,
)


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)


def stock_class(alias: str) -> Any:
    """The class that the engine of `alias` was made from."""
    return type(connections[STOCK_OF[alias]])


def made_from(alias: str, **namespace: Any) -> Any:
    """Make an engine from a base that is stock's, with `namespace` in it."""
    base = type("Base", (stock_class(alias),), {"__module__": "a_users.base", **namespace})
    return make_release_backend(base)


def by_hand(alias: str, **namespace: Any) -> Any:
    """The same with the mixin written before the base, without the factory."""
    base = type("Base", (stock_class(alias),), {"__module__": "a_users.base", **namespace})
    return type("ByHand", (ConnectionReleaseMixin, base), {"__module__": "a_users.base"})


def extended(alias: str, **namespace: Any) -> Any:
    """The same upon a class that the factory has made: its subclass."""
    made = type(connections[alias])
    return type("Extended", (made,), {"__module__": "a_users.base", **namespace})


WAYS = pytest.mark.parametrize("way", [made_from, by_hand, extended])


def one_query(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


# ##### D5: cursors #####


class Counting:
    """What a user's cursor class may add; the base's own classes in the order of use."""

    closed_by: list[str]

    def close(self) -> None:
        self.db.closed.append(type(self).__name__)  # type: ignore[attr-defined]
        self.cursor.close()  # type: ignore[attr-defined]


class UsersCursor(Counting, CursorWrapper):
    def shout(self) -> str:
        return str(self.fetchone()[0]).upper()


class UsersDebugCursor(Counting, CursorDebugWrapper):
    pass


def users_cursors() -> dict[str, Any]:
    return {
        "closed": None,
        "make_cursor": lambda self, cursor: UsersCursor(cursor, self),
        "make_debug_cursor": lambda self, cursor: UsersDebugCursor(cursor, self),
    }


@pytest.mark.parametrize("debug", [False, True])
def test_cursors_are_of_the_classes_that_the_base_makes(
    alias: str, wrapper: Any, debug: bool
) -> None:
    """D5: the very classes of stock, plain ones and debug ones."""
    stock: Any = connections[STOCK_OF[alias]]
    wrapper.force_debug_cursor = stock.force_debug_cursor = debug
    try:
        with stock.cursor() as theirs, wrapper.cursor() as ours:
            assert isinstance(ours, type(theirs))
            assert isinstance(ours, AutoConnectionReleaseCursor)
            assert not isinstance(theirs, AutoConnectionReleaseCursor)
            assert type(ours).__name__ == type(theirs).__name__
            assert type(ours).__qualname__ == type(theirs).__qualname__
            assert type(ours).__module__ == type(theirs).__module__
            assert type(ours).__doc__ == type(theirs).__doc__
            assert ours.db is wrapper
            assert type(ours.cursor) is type(theirs.cursor)
        with wrapper.cursor() as again:
            assert type(again) is type(ours)
    finally:
        wrapper.force_debug_cursor = stock.force_debug_cursor = False
        wrapper.queries_log.clear()
        stock.queries_log.clear()


@pytest.mark.parametrize("first", ["the copy", "the original"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_cursor_may_be_rebuilt_from_its_class(
    alias: str, wrapper: Any, debug: bool, first: str
) -> None:
    """D5: as the debug toolbar does, with a class of its own; closing either releases."""
    wrapper.force_debug_cursor = debug
    try:
        original = wrapper.cursor()
        patched = type("Patched", (type(original),), {"noted": "something"})
        copy = patched(original.cursor, wrapper)
        assert census(alias).in_use == 1
        with copy as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
            if first == "the original":
                original.close()
                assert census(alias).in_use == 0
        assert census(alias).in_use == 0
        one_query(wrapper)
        with wrapper.cursor() as later:
            original.close()
            copy.close()
            assert census(alias).in_use == 1
            later.execute("SELECT 1")
        assert census(alias).in_use == 0
        with pytest.raises(InterfaceError):
            original.execute("SELECT 1")
    finally:
        wrapper.force_debug_cursor = False
        wrapper.queries_log.clear()


def test_a_cursor_may_be_made_of_its_class_alone(alias: str, wrapper: Any) -> None:
    """D5: `type(c)(c.cursor, db)` where the first object is dropped, not closed."""
    original = wrapper.cursor()
    copy = type(original)(original.cursor, wrapper)
    del original
    copy.execute("SELECT 1")
    assert census(alias).in_use == 1
    copy.close()
    assert census(alias).in_use == 0


@WAYS
@pytest.mark.parametrize("debug", [False, True])
def test_a_base_has_cursor_classes_of_its_own(alias: str, way: Any, debug: bool) -> None:
    """D5: they are used, their close() runs once for each close, and then it releases."""
    with installed(alias, way(alias, **users_cursors())) as db:
        db.closed = []
        db.force_debug_cursor = debug
        with db.cursor() as cursor:
            expected = UsersDebugCursor if debug else UsersCursor
            assert isinstance(cursor, expected)
            cursor.execute("SELECT 'abc'")
            if not debug:
                assert cursor.shout() == "ABC"
            assert db.closed == []
        assert db.closed == [expected.__name__]
        assert census(alias).in_use == 0
        with db.cursor() as one:
            db.cursor().close()
            assert census(alias).in_use == 1
            one.execute("SELECT 1")
        assert db.closed == [expected.__name__] * 3
        assert census(alias).in_use == 0


def test_a_bases_cursor_that_fails_to_close_releases(alias: str) -> None:
    """D5: an error in a close() of the base's reaches the user; the lease ends."""

    class Failing(CursorWrapper):
        def close(self) -> None:
            self.cursor.close()
            raise LookupError("of the base")

    engine = made_from(alias, make_cursor=lambda self, cursor: Failing(cursor, self))
    with installed(alias, engine) as db:
        cursor = db.cursor()
        with pytest.raises(LookupError, match="of the base"):
            cursor.close()
        assert census(alias).in_use == 0


def test_a_base_may_wrap_its_plain_cursors(alias: str) -> None:
    """D5: a cursor within a cursor: each is closed, and the last one releases."""

    class Outer(CursorWrapper):
        pass

    def make_debug_cursor(self: Any, cursor: Any) -> Any:
        return Outer(self.make_cursor(cursor), self)

    with installed(alias, made_from(alias, make_debug_cursor=make_debug_cursor)) as db:
        db.force_debug_cursor = True
        with db.cursor() as cursor:
            assert isinstance(cursor, Outer)
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
            assert census(alias).in_use == 1
        assert census(alias).in_use == 0
        with db.chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]
        assert census(alias).in_use == 0


# ##### D6: how often each override runs #####


def counting(*names: str) -> tuple[list[str], dict[str, Any]]:
    """Return a list, and overrides which write their names to it when they run."""
    calls: list[str] = []

    def override(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(super(method.owner, self), name)(*args, **kwargs)  # type: ignore[attr-defined]

        return method

    return calls, {name: override(name) for name in names}


def with_overrides(way: Any, alias: str, overrides: dict[str, Any]) -> Any:
    """Make a class with overrides that call the same of the class which they are in."""
    engine = way(alias, **overrides)
    for name, method in overrides.items():
        method.owner = next(cls for cls in engine.__mro__ if vars(cls).get(name) is method)
    return engine


#: How often an override must run: for two queries, a block with a statement, a block
#: without one, and close().  "Per lease" is three times, as there are three leases.
PER_LEASE = {
    "connect": 3,
    "get_connection_params": 3,
    "get_new_connection": 3,
    "init_connection_state": 3,
    "close": 4,
    "_close": 3,
}
PER_CALL = {
    "_cursor": 3,
    "cursor": 3,
    "create_cursor": 3,
    "make_cursor": 3,
    "commit": 2,
    "_commit": 2,
    "set_autocommit": 4,
    "get_autocommit": 2,
}


@WAYS
@pytest.mark.parametrize("name", [*PER_LEASE, *PER_CALL])
def test_an_override_runs_as_often_as_its_author_expects(
    alias: str, way: Any, name: str
) -> None:
    """D6: once for each lease, or once for each call, but never left out."""
    calls, overrides = counting(name)
    engine = with_overrides(way, alias, overrides)
    one_query(connections[alias])  # what only a new pool does is done
    with installed(alias, engine) as db:
        one_query(db)
        calls.clear()
        db.close()
        calls.clear()
        one_query(db)
        one_query(db)
        with transaction.atomic(using=alias):
            one_query(db)
        with transaction.atomic(using=alias):
            pass
        assert census(alias).in_use == 0
        db.close()
        assert calls.count(name) >= {**PER_LEASE, **PER_CALL}[name]
        if name in PER_CALL and name not in ("get_autocommit", "set_autocommit"):
            assert calls.count(name) == PER_CALL[name]
    assert census(alias).in_use == 0


def test_a_base_that_asks_for_a_token_asks_when_its_pool_is_made() -> None:
    """D6: not for each request, if its author says that it is about the connection."""
    asked = []

    class Base(StockWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            asked.append(self)
            return super().get_connection_params()

    engine = make_release_backend(Base, once_per_connection=["get_connection_params"])
    with installed("native", engine) as wrapper:
        wrapper.close_pool()
        for _ in range(5):
            one_query(wrapper)
            wrapper.close()
        assert len(asked) == 1


@WAYS
def test_an_override_of_the_health_check_runs_before_each_cursor(
    alias: str, way: Any
) -> None:
    """D6: of a lease, that is: a connection that comes from the pool was looked at."""
    calls, overrides = counting("close_if_health_check_failed")
    with (
        installed(alias, with_overrides(way, alias, overrides)) as db,
        transaction.atomic(using=alias),
    ):
        one_query(db)
        calls.clear()
        one_query(db)
        one_query(db)
        assert len(calls) == 2


@WAYS
def test_an_override_of_rollback_runs(alias: str, way: Any) -> None:
    """D6: for a block that fails, and when the user calls it."""
    calls, overrides = counting("rollback", "_rollback")
    with installed(alias, with_overrides(way, alias, overrides)) as db:
        with rolled_back(db):
            one_query(db)
        assert calls == ["rollback", "_rollback"]
        with rolled_back(db):
            pass
        assert calls == ["rollback", "_rollback"] * 2
        db.set_autocommit(False)
        one_query(db)
        db.rollback()
        assert calls == ["rollback", "_rollback"] * 3
        db.set_autocommit(True)
    assert census(alias).in_use == 0


@WAYS
def test_overrides_of_savepoints_run(alias: str, way: Any) -> None:
    """D6: for savepoints that wait for a connection, too."""
    names = ["_savepoint", "_savepoint_commit", "_savepoint_rollback"]
    calls, overrides = counting(*names)
    with installed(alias, with_overrides(way, alias, overrides)) as db:
        for statement in (False, True):
            calls.clear()
            with transaction.atomic(using=alias):
                with transaction.atomic(using=alias):
                    if statement:
                        one_query(db)
                with rolled_back(db):
                    pass
            assert calls == [
                "_savepoint",
                "_savepoint_commit",
                "_savepoint",
                "_savepoint_rollback",
                "_savepoint_commit",
            ]


@WAYS
def test_an_override_of_ensure_connection_runs_at_each_checkout(
    alias: str, way: Any
) -> None:
    """D6: before the connection is taken, as in stock, and when the user calls it."""
    calls, overrides = counting("ensure_connection")
    with installed(alias, with_overrides(way, alias, overrides)) as db:
        one_query(db)
        assert len(calls) >= 1
        calls.clear()
        one_query(db)
        assert len(calls) >= 1
        calls.clear()
        db.ensure_connection()
        assert len(calls) == 1
        assert db.connection is not None


# ##### D6: what an override sees #####


@WAYS
def test_a_base_may_query_once_it_is_connected(alias: str, way: Any) -> None:
    """D6: in connect(), in ensure_connection(), in init_connection_state()."""
    engine: Any = None
    seen: list[str] = []

    def connect(self: Any) -> None:
        super(engine, self).connect()
        seen.append("connect")
        one_query(self)

    def init_connection_state(self: Any) -> None:
        super(engine, self).init_connection_state()
        seen.append("init")
        one_query(self)

    def ensure_connection(self: Any) -> None:
        was_connected = self.connection is not None
        super(engine, self).ensure_connection()
        if not was_connected:
            seen.append("ensure")
            one_query(self)
            assert self.connection is not None

    for override in (connect, init_connection_state, ensure_connection):
        made = way(alias, **{override.__name__: override})
        engine = next(
            cls for cls in made.__mro__ if vars(cls).get(override.__name__) is override
        )
        with installed(alias, made) as db:
            seen.clear()
            one_query(db)
            assert len(seen) == 1, override
            assert census(alias).in_use == 0
            with transaction.atomic(using=alias), transaction.atomic(using=alias):
                one_query(db)
                assert len(db.savepoint_ids) == 1
            assert len(seen) == 2, override
            assert census(alias).in_use == 0


@WAYS
def test_an_override_that_sets_up_sees_no_block(alias: str, way: Any) -> None:
    """D6: as after stock's connect(), though the checkout is within nested blocks."""
    seen: list[Any] = []
    engine: Any = None

    def init_connection_state(self: Any) -> None:
        super(engine, self).init_connection_state()
        with self.cursor() as cursor:
            cursor.execute("SET work_mem = '77MB'")
        seen.append((self.in_atomic_block, self.autocommit, self.connection.closed))

    made = way(alias, init_connection_state=init_connection_state)
    engine = next(cls for cls in made.__mro__ if "init_connection_state" in vars(cls))
    with pool_of_one(alias), installed(alias, made) as db:
        with rolled_back(db), transaction.atomic(using=alias):
            one_query(db)
        assert seen == [(False, True, False)]
        with transaction.atomic(using=alias), db.cursor() as cursor:
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() == ("77MB",)
        assert len(seen) == 2


@WAYS
@pytest.mark.parametrize("name", ["close", "_close"])
def test_an_override_that_ends_sees_the_connection_go(
    alias: str, way: Any, name: str
) -> None:
    """D6: it is there before, and after it there is none that is another's by now."""
    seen: list[tuple[bool, bool]] = []
    engine: Any = None

    def override(self: Any) -> None:
        before = self.connection is not None
        getattr(super(engine, self), name)()
        seen.append((before, name == "_close" or self.connection is None))

    made = way(alias, **{name: override})
    engine = next(cls for cls in made.__mro__ if vars(cls).get(name) is override)
    with installed(alias, made) as db:
        one_query(db)
        with transaction.atomic(using=alias):
            one_query(db)
        assert seen == [(True, True), (True, True)]


@WAYS
def test_an_override_of_close_runs_when_nothing_is_leased(alias: str, way: Any) -> None:
    """D6: who calls close() gets what the base does at close(), connected or not."""
    calls, overrides = counting("close")
    with installed(alias, with_overrides(way, alias, overrides)) as db:
        one_query(db)
        calls.clear()
        assert db.connection is None
        db.close()
        assert calls == ["close"]
        one_query(db)
        calls.clear()
        close_old_connections()
        assert calls == ["close"]


@WAYS
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "name",
    ["connect", "ensure_connection", "init_connection_state", "create_cursor", "close"],
)
def test_an_override_that_raises_leaks_nothing(
    alias: str, way: Any, name: str, moment: str
) -> None:
    """D6, R3: before it calls stock's, or after; what comes next works."""
    engine: Any = None
    raising = True

    def override(self: Any, *args: Any) -> Any:
        if raising and moment == "before":
            raise LookupError(f"in {name}")
        found = getattr(super(engine, self), name)(*args)
        if raising:
            raise LookupError(f"in {name}")
        return found

    made = way(alias, **{name: override})
    engine = next(cls for cls in made.__mro__ if vars(cls).get(name) is override)
    with installed(alias, made) as db:
        for _ in range(3):  # more often than there are connections
            # The end of a lease does not disturb what the query has done: it logs.
            with pytest.raises(LookupError) if name != "close" else nullcontext():
                one_query(db)
            gc.collect()
            wait_until(lambda: census(alias).in_use == 0, "the connection is back")
        raising = False
        one_query(db)
        assert census(alias).in_use == 0


@pytest.mark.parametrize("way", [made_from, by_hand])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_bases_cursor_method_that_raises_leaks_nothing(
    alias: str, way: Any, moment: str
) -> None:
    """D6, R3: also when it has a cursor, which nobody gets; an open one is not ended."""
    engine: Any = None
    raising = False

    def _cursor(self: Any, name: str | None = None) -> Any:
        if raising and moment == "before":
            raise LookupError("of the base")
        cursor = super(engine, self)._cursor(name)
        if raising:
            raise LookupError("of the base")
        return cursor

    made = way(alias, _cursor=_cursor)
    engine = next(cls for cls in made.__mro__ if vars(cls).get("_cursor") is _cursor)
    with installed(alias, made) as db:
        raising = True
        with pytest.raises(LookupError, match="of the base"):
            db.cursor()
        assert census(alias).in_use == 0
        raising = False
        with db.cursor() as cursor:
            raising = True
            with pytest.raises(LookupError, match="of the base"):
                db.cursor()
            assert census(alias).in_use == 1
            cursor.execute("SELECT 1")
        assert census(alias).in_use == 0


@WAYS
def test_an_override_of_commit_may_query_before_it(
    alias: str, way: Any, observer: Any
) -> None:
    """D6: within the block that ends, on its connection."""
    engine: Any = None

    def commit(self: Any) -> None:
        with self.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('of the base')")
        super(engine, self).commit()

    made = way(alias, commit=commit)
    engine = next(cls for cls in made.__mro__ if vars(cls).get("commit") is commit)
    with installed(alias, made) as db:
        with transaction.atomic(using=alias), db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('of the user')")
        assert census(alias).in_use == 0
        with transaction.atomic(using=alias):
            one_query(db)
            db.set_rollback(True)
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (2,)


def test_a_subclass_may_make_cursors_of_its_own(alias: str) -> None:
    """D6: it does not call the made class, and its cursors release all the same."""
    engine = extended(alias, make_cursor=lambda self, cursor: CursorWrapper(cursor, self))
    with installed(alias, engine) as db:
        one_query(db)
        assert census(alias).in_use == 0


# ##### D6: state that belongs to a connection, kept on the wrapper #####

TENANTS = ["red", "green", "blue"]


@pytest.fixture
def tenants(alias: str, observer: psycopg.Connection[Any]) -> Iterator[list[str]]:
    """Schemas that each have a table `who` with one row: the schema's own name."""
    for name in TENANTS:
        observer.execute(f"CREATE SCHEMA {name}")
        observer.execute(f"CREATE TABLE {name}.who AS SELECT '{name}' AS name")
    yield TENANTS
    forget_pool(alias)  # its connections still have a search path
    for name in TENANTS:
        observer.execute(f"DROP SCHEMA {name} CASCADE")


def tenant_hooks() -> dict[str, Any]:
    """The hooks of django-tenants: the path is set in _cursor(), and remembered."""
    owner: dict[str, Any] = {}

    def set_tenant(self: Any, name: str) -> None:
        self.tenant = name
        self.path_that_is_set = None

    def _cursor(self: Any, name: str | None = None) -> Any:
        cursor = super(owner["class"], self)._cursor(name)
        if self.path_that_is_set != self.tenant:
            setter = self.connection.cursor() if name else cursor
            setter.execute(f"SET search_path = {self.tenant}")
            if name:
                setter.close()
            self.path_that_is_set = self.tenant
        return cursor

    def close(self: Any) -> None:
        self.path_that_is_set = None
        super(owner["class"], self).close()

    def rollback(self: Any) -> None:
        self.path_that_is_set = None
        super(owner["class"], self).rollback()

    return {
        "tenant": "red",
        "path_that_is_set": None,
        "set_tenant": set_tenant,
        "_cursor": _cursor,
        "close": close,
        "rollback": rollback,
        "owner": owner,
    }


def tenant_engine(way: Any, alias: str) -> Any:
    engine = way(alias, **tenant_hooks())
    engine.owner["class"] = next(cls for cls in engine.__mro__ if "set_tenant" in vars(cls))
    return engine


def who(db: Any) -> str:
    with db.cursor() as cursor:
        cursor.execute("SELECT name FROM who")
        return str(cursor.fetchone()[0])


def who_by_server_side_cursor(db: Any) -> str:
    with db.chunked_cursor() as cursor:
        cursor.execute("SELECT name FROM who")
        return str(cursor.fetchone()[0])


def leave_path_behind(db: Any, path: str) -> None:
    """Give the pool's only connection a search path, as somebody else would leave it."""
    other = db.copy()
    other.set_tenant(path)
    who(other)
    other.close()


def policy(name: str) -> dict[str, Any]:
    return {"RELEASE_OPTIONS": {"SESSION_STATE": name}}


#: With "pin" a changed path keeps the connection until the end of the request; with
#: "ignore" it goes back at once, and only the base's own care is left.
POLICIES = pytest.mark.parametrize("session_state", ["pin", "ignore"])


@WAYS
def test_a_cached_path_does_not_outlive_its_lease(
    alias: str, way: Any, tenants: list[str]
) -> None:
    """D6: a wrapper that gets a connection anew knows nothing of it."""
    engine = tenant_engine(way, alias)

    def elsewhere(name: str) -> str:
        with installed(alias, engine, **policy("ignore")) as db:
            db.set_tenant(name)
            return who(db)

    with pool_of_one(alias), installed(alias, engine, **policy("ignore")) as db:
        db.set_tenant("red")
        assert who(db) == "red"
        assert census(alias).in_use == 0
        assert run_in_thread(partial(elsewhere, "green")) == "green"
        assert who(db) == "red"
        assert run_in_thread(partial(elsewhere, "blue")) == "blue"
        assert who_by_server_side_cursor(db) == "red"
        with transaction.atomic(using=alias):
            assert who(db) == "red"
            db.set_tenant("blue")
            assert who(db) == "blue"
        assert run_in_thread(partial(elsewhere, "green")) == "green"
        assert who(db) == "blue"


@WAYS
@POLICIES
def test_a_path_set_in_a_block_survives_its_inner_rollback(
    alias: str, way: Any, tenants: list[str], session_state: str
) -> None:
    """D6: the base sees each savepoint where stock shows it, so its SET is not undone.

    Otherwise the rest of the block would run with whatever path the connection had.
    """
    engine = tenant_engine(way, alias)
    with pool_of_one(alias), installed(alias, engine, **policy(session_state)) as db:
        leave_path_behind(db, "green")
        db.set_tenant("red")
        with transaction.atomic(using=alias):
            with rolled_back(db):
                assert who(db) == "red"
            assert who(db) == "red"
        db.close()
        leave_path_behind(db, "green")
        with rolled_back(db):
            assert who(db) == "red"
        assert who(db) == "red"


@WAYS
@POLICIES
def test_tenants_in_threads_never_see_a_row_of_another(
    alias: str, way: Any, tenants: list[str], session_state: str
) -> None:
    """D6: four threads, two connections, a tenant drawn for each request."""
    engine = tenant_engine(way, alias)
    start = Barrier(4)
    wrong: list[Any] = []

    def request(db: Any, kind: int) -> list[str]:
        if kind == 0:
            return [who(db), who(db)]
        if kind == 1:
            return [who_by_server_side_cursor(db)]
        found = []
        with transaction.atomic(using=alias):
            if kind == 2:
                found.append(who(db))
            with rolled_back(db):
                found.append(who(db))
            found.append(who(db))
        return [*found, who(db)]

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            start.wait(10)
            with installed(alias, engine, **policy(session_state)) as db:
                for _ in range(50):
                    name, kind = draw.choice(tenants), draw.randrange(4)
                    db.set_tenant(name)
                    found = request(db, kind)
                    if found != [name] * len(found):
                        wrong.append((kind, name, found))
                    if session_state == "pin":
                        close_old_connections()
        except Exception as error:  # noqa: BLE001 - raised by the assert below
            wrong.append(error)
        finally:
            connections.close_all()

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert census(alias).in_use == 0


# ##### D6: classes that are made without the factory #####


def test_the_mixin_may_be_written_before_a_base(alias: str, observer: Any) -> None:
    """D6: by hand, as the founding text shows; it is the same as the factory's."""
    engine = by_hand(alias)
    assert isinstance(connections[alias], ConnectionReleaseMixin)
    with installed(alias, engine) as db:
        with transaction.atomic(using=alias):
            assert census(alias).in_use == 0
            pid = backend_pid(alias)
            assert (census(alias).in_use, backend_pid(alias)) == (1, pid)
            with rolled_back(db), db.cursor() as cursor:
                cursor.execute("INSERT INTO item (name) VALUES ('undone')")
            with db.cursor() as cursor:
                cursor.execute("INSERT INTO item (name) VALUES ('kept')")
        assert census(alias).in_use == 0
        assert [type(error).__name__ for error in db.validation.check()] == []
    assert observer.execute("SELECT name FROM item").fetchall() == [("kept",)]


def test_a_subclass_of_a_made_class_releases(alias: str) -> None:
    """D6: the engine extended, as a project would; nothing else about it changes."""
    engine = extended(alias, note="a user's")
    with installed(alias, engine) as db:
        assert db.note == "a user's"
        one_query(db)
        assert census(alias).in_use == 0
        with db.schema_editor() as editor:
            editor.execute("SELECT 1")
        assert census(alias).in_use == 0
