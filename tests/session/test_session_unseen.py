"""S3, S7-S9: changes of a session that no statement of the request's own tells of."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.db import Error, NotSupportedError, connections
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic
from helpers import backend_pid, installed
from items import Item
from leases import Undo, fill
from psycopg.rows import dict_row
from sessions import ask, in_another_request, look, pool_for_one, session_of
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection

TENANT = "SELECT nullif(current_setting('app.tenant', true), '')"


@pytest.fixture
def one(alias: str) -> Iterator[str]:
    """Each engine in turn, with room for one connection: the next request gets it."""
    with pool_for_one(alias) as name:
        yield name


def session(alias: str) -> dict[str, Any]:
    """Return what the session is like that the next request gets."""
    return in_another_request(lambda: flat(look(alias)[1]))


def flat(session: dict[str, Any]) -> dict[str, Any]:
    """Return each setting on its own, so that a difference is short.

    Without those of extensions, which there are once the extension is used.
    """
    own = {name: value for name, value in session["settings"] if "." not in name}
    return {**session, "settings": None, **own}


def changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what is not as it was, with how it was and how it is now."""
    assert before.keys() == now.keys()
    return {name: (before[name], now[name]) for name in before if before[name] != now[name]}


def raw(alias: str) -> Any:
    """Return the driver's own connection, which nobody watches."""
    connection: Any = connections[alias].connection
    return getattr(connection, "driver_connection", connection)


# ##### S7: an execute wrapper that runs while savepoints are sent #####


class FirstStatement:
    """An execute wrapper that sets the tenant before the first statement it meets."""

    def __init__(self) -> None:
        self._has_run = False

    def __call__(
        self, execute: Any, sql: Any, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        if self._has_run:
            return execute(sql, params, many, context)
        self._has_run = True
        return self.first(execute, sql, params, many, context)

    def first(self, execute: Any, sql: Any, *args: Any) -> Any:
        raise NotImplementedError


class Rewriting(FirstStatement):
    def first(self, execute: Any, sql: Any, *args: Any) -> Any:
        return execute(f"SET app.tenant = '1'; {sql}", *args)


class Asking(FirstStatement):
    def first(self, execute: Any, sql: Any, *args: Any) -> Any:
        with args[-1]["connection"].cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        return execute(sql, *args)


class UsingTheSame(FirstStatement):
    def first(self, execute: Any, sql: Any, *args: Any) -> Any:
        args[-1]["cursor"].execute("SET app.tenant = '1'")
        return execute(sql, *args)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("kind", [Rewriting, Asking, UsingTheSame])
def test_what_an_execute_wrapper_sets_before_a_savepoint_is_the_requests_own(
    one: str, kind: type[FirstStatement], depth: int
) -> None:
    """S7, S2, S3: seen while the request lasts, and by nobody after it."""
    before = session(one)

    def in_blocks(depth: int) -> None:
        if depth == 0:
            assert ask(one, TENANT) == "1"
            return
        with atomic(using=one):
            in_blocks(depth - 1)

    with connections[one].execute_wrapper(kind()):
        in_blocks(depth)
    assert ask(one, TENANT) == "1"
    connections[one].close()
    assert changed(before, session(one)) == {}


# ##### S7: a base's own cursors #####


def stock_class(engine: str) -> Any:
    """The class that an engine was made from."""
    return type(connections[STOCK_OF[engine]])


def made_from(engine: str, **namespace: Any) -> Any:
    """Make an engine from a base that is stock's, with `namespace` in it."""
    base = type("Base", (stock_class(engine),), {"__module__": "a_users.base", **namespace})
    return make_release_backend(base)


def extended(engine: str, **namespace: Any) -> Any:
    """The same upon a class that the factory has made: its subclass."""
    made = type(connections[engine])
    return type("Extended", (made,), {"__module__": "a_users.base", **namespace})


def setting_in_cursor(way: Any, engine: str) -> Any:
    """Make an engine whose `_cursor()` sets the tenant that the wrapper has, if any."""

    def _cursor(self: Any, name: str | None = None) -> Any:
        cursor = super(owner, self)._cursor(name)
        if self.tenant is not None and name is None:
            cursor.execute(f"SET app.tenant = '{self.tenant}'")
        return cursor

    made = way(engine, _cursor=_cursor, tenant=None)
    owner = next(cls for cls in made.__mro__ if vars(cls).get("_cursor") is _cursor)
    return made


def setting_in_execute(way: Any, engine: str) -> Any:
    """Make an engine whose cursors set the tenant before a wrapper's first statement."""

    class Setting(CursorWrapper):
        db: Any

        def execute(self, sql: Any, params: Any = None) -> Any:
            if self.db.tenant is not None and not self.db.has_set:
                self.db.has_set = True
                super().execute(f"SET app.tenant = '{self.db.tenant}'")
            return super().execute(sql, params)

    return way(
        engine,
        make_cursor=lambda self, cursor: Setting(cursor, self),
        tenant=None,
        has_set=False,
    )


@pytest.mark.parametrize("in_block", [False, True], ids=["plain", "in blocks"])
@pytest.mark.parametrize("how", [setting_in_cursor, setting_in_execute])
@pytest.mark.parametrize("way", [made_from, extended])
def test_what_a_bases_own_cursors_set_is_seen_by_no_other_wrapper(
    alias: str, one: str, way: Any, how: Any, in_block: bool
) -> None:
    """S7, S3: the one that sets nothing must not see what the other one has set."""
    made = how(way, alias)

    def tenants(tenant: str | None) -> list[str | None]:
        with installed(one, made) as db:
            db.tenant = tenant
            if not in_block:
                return [ask(one, TENANT), ask(one, TENANT)]
            with atomic(using=one), atomic(using=one):
                return [ask(one, TENANT), ask(one, TENANT)]

    for tenant in ("a", None, "b", "a", None):
        assert tenants(tenant) == [tenant, tenant]


@pytest.mark.parametrize("way", [made_from, extended])
def test_what_a_bases_own_cursor_method_sets_is_seen_by_no_wrapper_meanwhile(
    alias: str, one: str, way: Any
) -> None:
    """S7, S3: neither while the one that sets something has not ended its request."""
    made = setting_in_cursor(way, alias)
    settings = connections[one].settings_dict
    first, second = made(settings, one), made(settings, one)
    first.tenant = "a"
    try:
        for db, tenant in ((first, "a"), (second, None), (first, "a"), (second, None)):
            with db.cursor() as cursor:
                cursor.execute(TENANT)
                assert cursor.fetchone() == (tenant,)
            if tenant is not None:
                db.close()  # as it may be held until then
    finally:
        first.close()
        second.close()


# ##### S9: schema editors #####


@pytest.mark.parametrize("is_atomic", [True, False])
def test_what_is_set_through_a_schema_editor_lasts_as_long_as_the_request(
    one: str, is_atomic: bool
) -> None:
    """S9, S2, S3: a migration or request that goes on sees it, and the next one doesn't."""
    before = session(one)
    db: Any = connections[one]
    with db.schema_editor(atomic=is_atomic) as editor:
        editor.execute("SET app.tenant = '1'")
        editor.execute("CREATE TEMP TABLE of_the_editor (id int)")
        pid = backend_pid(one)
    assert ask(one, TENANT) == "1"
    assert ask(one, "SELECT count(*) FROM of_the_editor") == 0
    assert backend_pid(one) == pid
    with db.schema_editor(atomic=is_atomic) as editor:
        editor.execute("INSERT INTO of_the_editor VALUES (1)")
    assert ask(one, "SELECT count(*) FROM of_the_editor") == 1
    db.close()
    assert changed(before, session(one)) == {}


def test_a_schema_editor_that_sets_nothing_holds_nothing_longer(one: str) -> None:
    """S9, R1: its own pin is no reason to keep the connection, nor to clean it."""
    before = session(one)
    db: Any = connections[one]
    pid = backend_pid(one)
    with db.schema_editor() as editor:
        editor.execute("CREATE TABLE of_an_editor (id int)")
        editor.execute("DROP TABLE of_an_editor")
    assert db.connection is None
    assert in_another_request(lambda: backend_pid(one)) == pid
    assert changed(before, session(one)) == {}


# ##### S3, R9: portals #####


def portals(alias: str) -> list[str]:
    """Return the portals that the next request finds on the connection it gets."""

    def look() -> list[str]:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT name FROM pg_cursors WHERE name <> ''")
            return [name for (name,) in cursor.fetchall()]

    return in_another_request(look)


def fail(alias: str) -> None:
    with suppress(Error), connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@contextmanager
def failed_block(alias: str) -> Iterator[None]:
    with suppress(Undo), atomic(using=alias):
        fail(alias)
        yield
        raise Undo


@contextmanager
def failed_block_that_commits(alias: str) -> Iterator[None]:
    with atomic(using=alias):
        fail(alias)
        yield


@contextmanager
def failed_inner_block(alias: str) -> Iterator[None]:
    with atomic(using=alias):
        backend_pid(alias)
        with failed_block(alias):
            yield
        backend_pid(alias)


@contextmanager
def failed_with_autocommit_off(alias: str) -> Iterator[None]:
    connections[alias].set_autocommit(False)
    fail(alias)
    yield
    connections[alias].rollback()
    connections[alias].set_autocommit(True)


BLOCKS = [
    failed_block,
    failed_block_that_commits,
    failed_inner_block,
    failed_with_autocommit_off,
]


def close_it(rows: Any) -> None:
    rows.pop().close()


def drop_it(rows: Any) -> None:
    rows.clear()


def go_on(rows: Any) -> None:
    with pytest.raises(Error):
        list(rows.pop())


def iterator(alias: str) -> Any:
    """Return an iterator that has its portal on the server, from outside a block."""
    rows = Item.objects.using(alias).order_by("name").iterator(chunk_size=2)
    assert next(rows).name == "0000"
    return rows


def server_side_cursor(alias: str) -> Any:
    cursor: Any = connections[alias].chunked_cursor()
    cursor.execute("SELECT generate_series(1, 10)")
    assert cursor.fetchone() == (1,)
    return cursor


@pytest.mark.parametrize("end", [close_it, drop_it, go_on])
@pytest.mark.parametrize("block", BLOCKS)
def test_an_iterator_that_ends_in_a_failed_block_leaves_no_portal(
    one: str, block: Any, end: Callable[[Any], None]
) -> None:
    """S3, R9: WITH HOLD makes it outlive the transaction, but not the request."""
    fill(one, 10)
    rows = [iterator(one)]
    with block(one):
        end(rows)
    assert portals(one) == []


@pytest.mark.parametrize("end", [close_it, drop_it])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_server_side_cursor_that_ends_in_a_failed_block_leaves_no_portal(
    one: str, block: Any, end: Callable[[Any], None]
) -> None:
    """S3, R6, R9: closed, or dropped and found by the block's next statement."""
    cursors = [server_side_cursor(one)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with block(one):
            end(cursors)
            fail(one)
        ask(one, "SELECT 1")
    assert portals(one) == []


@pytest.mark.parametrize("end", [close_it, drop_it, go_on])
def test_a_later_request_may_iterate_by_the_same_name(
    one: str, end: Callable[[Any], None]
) -> None:
    """S3: Django counts its cursors by thread and wrapper, so the name comes again."""
    fill(one, 10)
    made = type(connections[one])
    with installed(one, made):
        rows = [iterator(one)]
        with failed_block(one):
            end(rows)
    with installed(one, made):
        names = [item.name for item in Item.objects.using(one).iterator(chunk_size=2)]
        assert len(names) == 10


def test_an_iterator_in_a_failed_block_disturbs_no_other_iterator(one: str) -> None:
    """S3, R4: the one that is open still keeps its rows, and its connection."""
    fill(one, 10)
    kept, closed = iterator(one), iterator(one)
    with failed_block(one):
        closed.close()
    assert [item.name for item in kept][-1] == "0009"
    assert connections[one].connection is None
    assert portals(one) == []


# ##### S8: the driver's side of a session #####


@pytest.mark.skipif(
    "timeout" not in inspect.signature(psycopg.Connection.notifies).parameters,
    reason="this psycopg keeps no notifications",
)
@pytest.mark.parametrize("by", ["the driver", "a cursor"])
@pytest.mark.parametrize("heard", [True, False], ids=["heard", "on its way"])
def test_notifications_of_one_request_are_not_read_by_the_next(
    one: str, observer: Any, by: str, heard: bool
) -> None:
    """S8: what psycopg has kept, or gets while the connection is cleaned."""

    def listen() -> None:
        if by == "the driver":
            raw(one).execute("LISTEN news")
        else:
            with connections[one].cursor() as cursor:
                cursor.execute("LISTEN news")
        observer.execute("NOTIFY news, 'of the first request'")
        if heard:
            ask(one, "SELECT 1")

    def read() -> list[str]:
        with pin_connection(one):
            return [each.payload for each in raw(one).notifies(timeout=0.05)]

    if by == "the driver":
        with pin_connection(one):
            listen()
    else:
        listen()
    connections[one].close()
    assert in_another_request(read) == []


#: What handlers were told; empty unless one of them is another request's.
told: list[Any] = []


class Shout(psycopg.types.string.StrDumper):
    def dump(self, obj: Any) -> Any:
        return b"SHOUTED"


class OtherCursor(psycopg.ServerCursor[Any]):
    pass


def becomes(name: str, value: Any) -> Callable[[Any], None]:
    return lambda connection: setattr(connection, name, value)


def executes(sql: str) -> Callable[[Any], None]:
    return lambda connection: connection.execute(sql)


#: What can be changed of a connection by way of the driver, as its user would.
CHANGES: dict[str, Callable[[Any], None]] = {
    "isolation_level": becomes("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": becomes("read_only", True),
    "deferrable": becomes("deferrable", True),
    "row_factory": becomes("row_factory", dict_row),
    "cursor_factory": becomes("cursor_factory", psycopg.Cursor),
    "server_cursor_factory": becomes("server_cursor_factory", OtherCursor),
    "prepare_threshold": becomes("prepare_threshold", 0),
    "prepared_max": becomes("prepared_max", 7),
    "notice handler": lambda connection: connection.add_notice_handler(told.append),
    "notify handler": lambda connection: connection.add_notify_handler(told.append),
    "adapter": lambda connection: connection.adapters.register_dumper(str, Shout),
    "SET": executes("SET app.tenant = '1'"),
    "SET ROLE": executes("SET ROLE pg_monitor"),
    "LISTEN": executes("LISTEN news"),
    "a lock": executes("SELECT pg_advisory_lock(7)"),
    "a temporary table": executes("CREATE TEMP TABLE of_the_driver (id int)"),
}


def whole_session(alias: str) -> dict[str, Any]:
    """Return what the next request can see: on the server, and of the driver's part."""

    def look_at_all() -> dict[str, Any]:
        with pin_connection(alias):
            connection = raw(alias)
            names = (
                *("isolation_level", "read_only", "deferrable", "row_factory"),
                *("cursor_factory", "server_cursor_factory", "prepare_threshold"),
                *("prepared_max", "autocommit"),
            )
            seen = {name: getattr(connection, name) for name in names}
            with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
                seen |= flat(session_of(cursor))
                cursor.execute("SELECT %s::text", ["as it is"])
                seen["text"] = cursor.fetchone()
                cursor.execute("DO $$ BEGIN RAISE WARNING 'for a handler'; END $$")
                cursor.execute("LISTEN a_channel")
                cursor.execute("NOTIFY a_channel")
                cursor.execute("SELECT 1")
                cursor.execute("UNLISTEN a_channel")
            seen["told"] = list(told)
            told.clear()
        return seen

    return in_another_request(look_at_all)


def by_ensuring_a_connection(alias: str, change: Callable[[Any], None]) -> None:
    connections[alias].ensure_connection()
    change(raw(alias))
    with connections[alias].cursor():
        pass


def by_connecting(alias: str, change: Callable[[Any], None]) -> None:
    connections[alias].connect()
    change(raw(alias))
    with connections[alias].cursor():
        pass


def by_connecting_and_closing(alias: str, change: Callable[[Any], None]) -> None:
    connections[alias].ensure_connection()
    change(raw(alias))
    connections[alias].close()


def by_connecting_before_a_block(alias: str, change: Callable[[Any], None]) -> None:
    connections[alias].ensure_connection()
    change(raw(alias))
    with atomic(using=alias), connections[alias].cursor():
        pass


def by_a_temporary_connection(alias: str, change: Callable[[Any], None]) -> None:
    with connections[alias].temporary_connection():
        change(raw(alias))


def by_pinning(alias: str, change: Callable[[Any], None]) -> None:
    with pin_connection(alias):
        change(raw(alias))


@pytest.mark.parametrize(
    ("way", "change"),
    [
        *product([by_ensuring_a_connection, by_pinning], CHANGES),
        *product(
            [by_connecting, by_connecting_and_closing, by_connecting_before_a_block],
            ["isolation_level", "row_factory", "SET"],
        ),
        # It is a cursor like any other: a SET past it is seen no more than there.
        *product([by_a_temporary_connection], ["isolation_level", "row_factory"]),
    ],
)
def test_what_is_done_to_the_drivers_connection_ends_with_the_lease(
    one: str, way: Any, change: str
) -> None:
    """S8: an explicit connect is as deliberate as a pin."""
    told.clear()
    before = whole_session(one)
    way(one, CHANGES[change])
    assert connections[one].connection is None
    assert changed(before, whole_session(one)) == {}


#: What psycopg keeps of a connection as plain attributes.
ATTRIBUTES = ["isolation_level", "read_only", "deferrable", "row_factory"]


def under_a_cursor(alias: str, change: Callable[[Any], None]) -> None:
    with connections[alias].cursor() as cursor:
        change(raw(alias))
        cursor.execute("SELECT 1")


def under_a_cursor_that_runs_nothing(alias: str, change: Callable[[Any], None]) -> None:
    with connections[alias].cursor():
        change(raw(alias))


def under_a_server_side_cursor(alias: str, change: Callable[[Any], None]) -> None:
    with connections[alias].chunked_cursor() as cursor:
        change(raw(alias))
        cursor.execute("SELECT 1")


@pytest.mark.parametrize("change", ATTRIBUTES)
@pytest.mark.parametrize(
    "way",
    [under_a_cursor, under_a_cursor_that_runs_nothing, under_a_server_side_cursor],
)
def test_attributes_that_are_set_under_a_cursor_end_with_the_lease(
    one: str, way: Any, change: str
) -> None:
    """S8, R9: the next request's rows are no dictionaries, its transactions not read-only."""
    told.clear()
    before = whole_session(one)
    way(one, CHANGES[change])
    assert connections[one].connection is None
    assert changed(before, whole_session(one)) == {}


def test_a_row_factory_that_is_set_in_a_block_ends_with_it(one: str) -> None:
    """S8, R9: what is set while a transaction holds the connection, too."""
    before = whole_session(one)
    with atomic(using=one):
        backend_pid(one)
        raw(one).row_factory = dict_row
    assert connections[one].connection is None
    assert backend_pid(one) > 0
    assert changed(before, whole_session(one)) == {}


@pytest.mark.parametrize("way", [by_ensuring_a_connection, by_connecting, by_pinning])
def test_a_connection_to_which_nothing_was_done_is_kept(one: str, way: Any) -> None:
    """S8: cleaned perhaps, but not replaced."""
    pid = backend_pid(one)
    way(one, lambda connection: None)
    assert in_another_request(lambda: backend_pid(one)) == pid


# ##### S1, S3: cursors that others have put something in the place of #####


class Proxy:
    """What instrumentation puts in the place of a driver's cursor."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


def with_a_proxy_put_in(db: Any, sql: str) -> None:
    with db.cursor() as cursor:
        real = cursor.cursor
        cursor.cursor = Proxy(real)
        cursor.execute(sql)
        cursor.cursor = real


def with_a_proxy_left_in(db: Any, sql: str) -> None:
    with db.cursor() as cursor:
        cursor.cursor = Proxy(cursor.cursor)
        cursor.execute(sql)


def rebuilt_around_a_proxy(db: Any, sql: str) -> None:
    with db.cursor() as cursor:
        type(cursor)(Proxy(cursor.cursor), db).execute(sql)


def rebuilt_as_a_plain_wrapper(db: Any, sql: str) -> None:
    with db.cursor() as cursor:
        CursorWrapper(cursor.cursor, db).execute(sql)


def called_by_a_proxy(db: Any, sql: str) -> None:
    with db.cursor() as cursor:
        cursor.cursor = Proxy(cursor.cursor)
        cursor.callproc("set_config", ["app.tenant", "1", False])


def callproc_with_keywords(cursor: Any) -> None:
    cursor.callproc("now", None, {"no": "keywords"})


def execute_before_apps_are_ready(cursor: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(apps, "ready", False)
        warnings.simplefilter("error")
        cursor.execute("SELECT 1")


@pytest.mark.parametrize("refused", [callproc_with_keywords, execute_before_apps_are_ready])
def test_a_statement_that_django_refuses_is_not_taken_for_the_next(
    one: str, refused: Callable[[Any], None]
) -> None:
    """S1, S3: which comes through a cursor of a tool's own."""
    before = session(one)
    db = connections[one]
    with db.cursor() as cursor:
        with suppress(NotSupportedError, RuntimeWarning):
            refused(cursor)
        CursorWrapper(cursor.cursor, db).execute("SET app.tenant = '1'")
    db.close()
    assert changed(before, session(one)) == {}


@pytest.mark.parametrize(
    "way",
    [
        with_a_proxy_put_in,
        with_a_proxy_left_in,
        rebuilt_around_a_proxy,
        rebuilt_as_a_plain_wrapper,
        called_by_a_proxy,
    ],
)
@pytest.mark.parametrize("in_block", [False, True], ids=["plain", "in a block"])
def test_a_statement_through_what_stands_for_a_cursor_is_the_requests_own(
    one: str, way: Any, in_block: bool
) -> None:
    """S1, S3, D5: whose lease it is can't be told, so it is the one that there is."""
    before = session(one)
    run = partial(way, connections[one], "SET app.tenant = '1'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        if in_block:
            with atomic(using=one):
                run()
        else:
            run()
        ask(one, "SELECT 1")
        connections[one].close()
    assert changed(before, session(one)) == {}


def set_something(db: Any) -> None:
    with db.cursor():
        raw(db.alias).execute("SET app.tenant = '1'")


def add_a_handler(db: Any) -> None:
    with db.cursor():
        raw(db.alias).add_notice_handler(print)


@pytest.mark.parametrize("change", [set_something, add_a_handler])
def test_what_is_done_in_a_pin_after_close_reaches_nobody_else(
    one: str, change: Callable[[Any], None], observer: Any
) -> None:
    """P1, S8: a block that is lost ends with close(), and the user goes on in the pin."""
    before = session(one)
    db: Any = connections[one]
    with pin_connection(one):
        with suppress(Error), atomic(using=one):
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend_pid(one)])
            backend_pid(one)
        assert db.connection is None
        change(db)
    backend_pid(one)
    assert not raw_now(db)._notice_handlers
    assert changed(before, session(one)) == {}


def raw_now(db: Any) -> Any:
    with db.cursor():
        return raw(db.alias)
