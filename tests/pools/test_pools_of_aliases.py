"""D1: one pool for an alias, as its settings are now, and all its connections alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
from django.contrib.postgres import signals
from django.contrib.postgres.operations import HStoreExtension
from django.contrib.postgres.signals import register_type_handlers
from django.db import OperationalError, connections
from django.db.backends.signals import connection_created
from faults import POOLED, extra_alias
from helpers import backend_pid, run_in_thread
from psycopg import sql
from second_server import HOST, PASSWORD, USER, Server
from settings import STOCK_OF
from tcp_proxy import Proxy

pytest_plugins = ["fix_faults"]

ENGINE = pytest.mark.parametrize("engine", POOLED)


def ask(alias: str, question: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0]


def current_database(alias: str) -> Any:
    return ask(alias, "SELECT current_database()")


# ##### Two aliases, one database #####


class Two(NamedTuple):
    """Two aliases that point to one test database, both of whose pools are in use."""

    first: str
    second: str
    database: str


@pytest.fixture(
    params=[
        ("native", "native"),
        ("dj", "dj"),
        ("native", "dj"),
        ("dj", "native"),
    ],
    ids=" and ".join,
)
def two(request: pytest.FixtureRequest, observer: Any) -> Iterator[Two]:
    """One after the other made as Django makes a database and a mirror of it."""
    one_engine, other_engine = request.param
    made = "test_of_two_aliases"
    with (
        extra_alias(f"first_{one_engine}", one_engine, TEST={"NAME": made}) as first,
        extra_alias(f"second_{other_engine}", other_engine) as second,
    ):
        primary, mirror = connections[first], connections[second]
        name = primary.settings_dict["NAME"]
        try:
            primary.creation.create_test_db(verbosity=0, autoclobber=True)
            mirror.creation.set_as_test_mirror(primary.settings_dict)
            yield Two(first, second, made)
        finally:
            for each in (primary, mirror):
                each.close()
                each.close_pool()  # type: ignore[attr-defined]
                each.settings_dict["NAME"] = name
            for database in (made, f"{made}_1"):
                statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                observer.execute(statement.format(sql.Identifier(database)))


def use_both(two: Two) -> None:
    """Query by both aliases, in a thread of its own as well."""
    for alias in (two.first, two.second):
        assert current_database(alias) == two.database
        assert run_in_thread(lambda alias=alias: current_database(alias)) == two.database  # type: ignore[misc]
        connections[alias].close()


def test_a_test_database_is_dropped_whoever_has_used_it(two: Two, observer: Any) -> None:
    """D1: the idle connections of another alias's pool are no reason to keep it."""
    use_both(two)
    name = observer.info.dbname
    connections[two.first].creation.destroy_test_db(name, verbosity=0)
    found = "SELECT count(*) FROM pg_database WHERE datname = %s"
    assert observer.execute(found, [two.database]).fetchone() == (0,)
    connections[two.second].settings_dict["NAME"] = name
    for alias in (two.first, two.second):
        assert current_database(alias) == name


def test_a_test_database_is_cloned_whoever_has_used_it(two: Two, observer: Any) -> None:
    """D1: as for parallel tests; both aliases go on afterwards."""
    use_both(two)
    connections[two.first].creation.clone_test_db("1", verbosity=0, autoclobber=True)
    found = "SELECT count(*) FROM pg_database WHERE datname = %s"
    assert observer.execute(found, [f"{two.database}_1"]).fetchone() == (1,)
    use_both(two)


# ##### Types #####


class HStoreStandIn(HStoreExtension):
    """Django's operation, where a type of the same name and text is made beforehand.

    So that a server without extensions will do; all else is Django's own.
    """

    def extension_exists(self, schema_editor: Any, extension: str) -> bool:
        schema_editor.execute(f'CREATE TYPE {extension} AS ENUM (\'"a"=>"1"\')')
        return True


#: Django's, which remembers what an alias said.
get_hstore_oids: Any = signals.get_hstore_oids

HSTORE = """SELECT '"a"=>"1"'::hstore"""


@pytest.fixture(params=["a stand-in", "the extension"])
def operation(request: pytest.FixtureRequest, observer: Any) -> Iterator[Any]:
    """What makes hstore in a migration, with Django's receiver for its types in force."""
    is_real = request.param == "the extension"
    available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'"
    if is_real and observer.execute(available).fetchone() == (0,):
        pytest.skip("this server has no hstore: see REAL_POOL_SERVER")
    if observer.execute("SELECT to_regtype('hstore') IS NOT NULL").fetchone() == (True,):
        pytest.skip("this database has hstore already: see REAL_POOL_EXTENSIONS")
    connection_created.connect(register_type_handlers)
    get_hstore_oids.cache_clear()
    try:
        yield HStoreExtension() if is_real else HStoreStandIn()
    finally:
        connection_created.disconnect(register_type_handlers)
        kind = "EXTENSION" if is_real else "TYPE"
        observer.execute(f"DROP {kind} IF EXISTS hstore")
        get_hstore_oids.cache_clear()


@contextmanager
def in_sessions(alias: str) -> Iterator[list[Any]]:
    """Two other requests, which have begun, as the thread's own, by two connections."""
    wrapper: Any = connections[alias]
    others = [wrapper.copy() for _ in range(2)]
    try:
        for each in others:
            with wrapper.cursor(), each.cursor() as cursor:
                cursor.execute("SELECT 1")
        yield others
    finally:
        for each in (wrapper, *others):
            each.close()


def hstore_by_process(alias: str, others: list[Any]) -> dict[int, Any]:
    """Return how one request reads hstore on each connection that it meets.

    Of the others each keeps a connection for a while, so that it meets the rest.
    """
    seen: dict[int, Any] = {}
    for other in [None, *others, None]:
        with ExitStack() as stack:
            if other is not None:
                stack.enter_context(other.cursor()).execute("SELECT 1")
            with connections[alias].cursor() as cursor:
                cursor.execute(
                    f"SELECT pg_backend_pid(), value FROM ({HSTORE}) AS t (value)"
                )
                pid, value = cursor.fetchone()
                assert seen.setdefault(pid, value) == value
    return seen


def test_stock_reads_a_new_type_after_its_migration(alias: str, operation: Any) -> None:
    """D1: a request keeps its connection, and the next is told of the type."""
    stock = STOCK_OF[alias]
    with extra_alias(f"types_{stock}", stock) as name:
        backend_pid(name)
        with connections[name].schema_editor() as editor:
            operation.database_forwards("app", editor, None, None)
        assert ask(name, HSTORE) == {"a": "1"}
        connections[name].close()
        assert run_in_thread(lambda: ask(name, HSTORE)) == {"a": "1"}


def test_a_new_type_is_read_on_every_connection(alias: str, operation: Any) -> None:
    """D1, D4: by the request whose migration made it, whichever connection it gets."""
    with extra_alias(f"types_{alias}", alias) as name, in_sessions(name) as others:
        with connections[name].schema_editor() as editor:
            operation.database_forwards("app", editor, None, None)
        seen = hstore_by_process(name, others)
        assert len(seen) == 2
        assert list(seen.values()) == [{"a": "1"}] * 2


def test_a_receiver_that_comes_late_reaches_every_connection(
    alias: str, operation: Any
) -> None:
    """D4: that of an app which is installed for a test, from the next request on."""
    connection_created.disconnect(register_type_handlers)
    with extra_alias(f"late_{alias}", alias) as name, in_sessions(name) as others:
        elsewhere = connections[STOCK_OF[alias]]
        with elsewhere.schema_editor() as editor:
            operation.database_forwards("app", editor, None, None)
        elsewhere.close()
        connections[name].close()
        connection_created.connect(register_type_handlers)
        seen = hstore_by_process(name, others)
        assert len(seen) == 2
        assert list(seen.values()) == [{"a": "1"}] * 2


# ##### Settings that change #####


@contextmanager
def changed(alias: str, **settings: Any) -> Iterator[None]:
    """Change the alias's settings where they are, as tests do; end the request."""
    given = connections[alias].settings_dict
    before = {key: given[key] for key in settings}
    given.update(settings)
    connections[alias].close()
    try:
        yield
    finally:
        given.update(before)
        connections[alias].close()


@pytest.fixture
def role(observer: Any) -> Iterator[str]:
    """Another role that may log in."""
    observer.execute("CREATE ROLE another_role LOGIN PASSWORD 'of another role'")
    yield "another_role"
    observer.execute("DROP ROLE another_role")


def in_two_threads(alias: str, question: str) -> set[Any]:
    """Ask in this thread, which has a wrapper already, and in one that has none."""
    return {ask(alias, question), run_in_thread(lambda: ask(alias, question))}


@ENGINE
def test_another_user_is_the_user_from_the_next_request_on(engine: str, role: str) -> None:
    """D1: and the first one again when that is over."""
    question = "SELECT current_user"
    with extra_alias(f"user_{engine}", engine) as name:
        before = ask(name, question)
        for _ in range(2):
            with changed(name, USER=role, PASSWORD="of another role"):
                assert in_two_threads(name, question) == {role}
            assert in_two_threads(name, question) == {before}


@ENGINE
def test_other_options_hold_from_the_next_request_on(engine: str) -> None:
    """D1: those of the driver, which each new connection is made with."""
    question = "SELECT current_setting('application_name')"
    options = {"application_name": "before"}
    with extra_alias(f"options_{engine}", engine, OPTIONS=options) as name:
        assert ask(name, question) == "before"
        given = connections[name].settings_dict["OPTIONS"]
        with changed(name, OPTIONS={**given, "application_name": "after"}):
            assert in_two_threads(name, question) == {"after"}
        assert in_two_threads(name, question) == {"before"}
        given["application_name"] = "within"  # beneath what is there
        connections[name].close()
        assert in_two_threads(name, question) == {"within"}


def test_other_options_of_the_pool_hold_from_the_next_request_on() -> None:
    """D1: its size, say."""
    with extra_alias("pool_options_native", "native") as name:
        wrapper: Any = connections[name]
        backend_pid(name)
        assert wrapper.pool.max_size == 2
        options = wrapper.settings_dict["OPTIONS"]
        pool = {**options["pool"], "min_size": 1, "max_size": 3}
        with changed(name, OPTIONS={**options, "pool": pool}):
            backend_pid(name)
            assert wrapper.pool.max_size == 3
        backend_pid(name)
        assert wrapper.pool.max_size == 2


@ENGINE
def test_another_host_and_port_are_asked_from_the_next_request_on(
    engine: str, proxy: Proxy
) -> None:
    """D1: as after a failover that an application hears of."""
    with extra_alias(f"host_{engine}", engine, size=1) as name:
        backend_pid(name)
        with changed(name, HOST="127.0.0.1", PORT=proxy.port):
            pid = backend_pid(name)
            assert proxy.open_links
            assert backend_pid(name) == pid
        passed = len(proxy.links)
        assert backend_pid(name) != pid
        assert len(proxy.links) == passed


@ENGINE
def test_another_password_is_used_from_the_next_request_on(
    engine: str, second_server: Server
) -> None:
    """D1: with the wrong one there is no connection, with the right one there is again."""
    with extra_alias(
        f"password_{engine}",
        engine,
        size=1,
        HOST=HOST,
        PORT=second_server.port,
        USER=USER,
        PASSWORD=PASSWORD,
        NAME="postgres",
    ) as name:
        assert ask(name, "SELECT 1") == 1
        with (
            changed(name, PASSWORD="a wrong one"),
            pytest.raises(OperationalError, match="password"),
        ):
            ask(name, "SELECT 1")
        assert in_two_threads(name, "SELECT 1") == {1}
