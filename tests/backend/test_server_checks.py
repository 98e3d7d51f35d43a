"""D7: what the checks find out from the server, and that they do no harm by asking."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.db import connections, transaction
from faults import PLAIN, POOLED, extra_alias
from helpers import backend_pid, let_grow, wait_until
from second_server import HOST, PASSWORD, USER, Server, free_port
from small_pooler import SmallPooler, pooler_of_sessions, pooler_of_transactions
from tcp_proxy import Proxy

from django_pg_real_pool import Census, pool_status
from django_pg_real_pool._backend.checks import probe
from django_pg_real_pool._drivers.question import ask
from django_pg_real_pool._drivers.sockets import waiter

ROLE = "with_a_limit"
#: What an alias has that is as it should be behind a pooler.
RIGHT = {
    "DISABLE_SERVER_SIDE_CURSORS": True,
    "RELEASE_OPTIONS": {"SESSION_STATE": "error"},
}


def checked(engine: str, **settings: Any) -> AbstractContextManager[str]:
    """Add an alias of its own for one test."""
    return extra_alias(f"checked_{engine}", engine, **settings)


def found(alias: str) -> list[checks.CheckMessage]:
    return checks.run_checks(databases=[alias])


def ids(alias: str) -> list[str]:
    return [str(each.id).rpartition(".")[2] for each in found(alias)]


@pytest.fixture(params=POOLED)
def pooled(request: pytest.FixtureRequest) -> str:
    """Each engine whose pool says what it may grow to."""
    return str(request.param)


@pytest.fixture
def limited(observer: Any) -> Iterator[Callable[[int], None]]:
    """A role that may have few connections; the fixture's value says how many."""
    observer.execute(f"CREATE ROLE {ROLE} LOGIN")

    def limit(connections: int) -> None:
        observer.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT {connections}")

    yield limit

    wait_until(lambda: used() == 0, f"{ROLE} has no connection")
    observer.execute(f"DROP ROLE {ROLE}")


def used() -> int:
    """Count the role's connections."""
    with psycopg.connect() as connection:
        count = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        ((found,),) = connection.execute(count, [ROLE])
        return int(found)


@contextmanager
def others(count: int) -> Iterator[None]:
    """Keep so many connections of the role, beside all pools."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(psycopg.connect(user=ROLE))
        yield


# ##### The size of the pool #####


def test_a_pool_larger_than_the_server_allows_is_reported(pooled: str) -> None:
    """D7: W006, with what was found and what to change."""
    with checked(pooled, size=5000) as name:
        (warning,) = found(name)
    assert warning.id == "django_pg_real_pool.W006"
    assert warning.level == checks.WARNING
    assert re.fullmatch(
        rf"Database '{name}': its pool may grow to 5000 connections, but max_connections "
        r"of the server allows \d+, of which others use \d+ now\.",
        warning.msg,
    )
    setting = {
        "native": '["OPTIONS"]["pool"]["max_size"]',
        "dj": '["POOL_OPTIONS"], "POOL_SIZE" and "MAX_OVERFLOW",',
    }[pooled]
    assert warning.hint == (
        f"Lower DATABASES['{name}']{setting} or raise the limit. Each process has a pool "
        "of its own."
    )


def test_what_others_use_is_not_free(pooled: str, limited: Callable[[int], None]) -> None:
    """D7: a pool that would fit alone, beside others of the same role."""
    limited(5)
    with checked(pooled, size=3, USER=ROLE) as name, others(3):
        (warning,) = found(name)
    assert warning.msg == (
        f"Database '{name}': its pool may grow to 3 connections, but CONNECTION LIMIT of "
        f"role {ROLE} allows 5, of which others use 3 now."
    )


def test_a_pool_may_be_as_large_as_what_is_free(
    pooled: str, limited: Callable[[int], None]
) -> None:
    """D7: to the last connection."""
    limited(5)
    with checked(pooled, size=3, USER=ROLE) as name, others(2):
        assert ids(name) == []


def test_what_the_pool_has_itself_is_free(
    pooled: str, limited: Callable[[int], None]
) -> None:
    """D7: a check in a process that serves already."""
    limited(6)
    with checked(pooled, size=4, USER=ROLE) as name:
        backend_pid(name)
        with others({"native": 1, "dj": 2}[pooled]):  # all that is left, less one
            assert ids(name) == []


def test_a_pool_that_was_closed_has_nothing(
    pooled: str, limited: Callable[[int], None]
) -> None:
    """P3, D7: the next one has to find its place anew."""
    limited(5)
    with checked(pooled, size=3, USER=ROLE) as name:
        backend_pid(name)
        let_grow(connections[name])
        connections[name].close_pool()  # type: ignore[attr-defined]
        assert pool_status(name).census == Census()
        wait_until(lambda: used() == 0, "the pool's connections are closed")
        with others(3):
            assert ids(name) == ["W006"]


def test_the_limit_of_a_database_counts(pooled: str, observer: Any) -> None:
    """D7: the tightest limit is the one that is named."""
    database = "with_a_limit"
    observer.execute(f"CREATE DATABASE {database} CONNECTION LIMIT 2")
    try:
        with checked(pooled, size=3, NAME=database) as name:
            (warning,) = found(name)
            assert "CONNECTION LIMIT of database with_a_limit allows 2" in warning.msg
    finally:
        observer.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.mark.parametrize(
    ("engine", "options", "most"),
    [
        ("native", True, 4),
        ("native", {"max_size": None}, 4),
        ("native", {"min_size": 3}, 3),
        ("native", {"min_size": 3, "max_size": 7}, 7),
        ("native", {"max_size": "many"}, None),
        ("dj", {}, 20),
        ("dj", {"POOL_SIZE": 1, "MAX_OVERFLOW": 3}, 4),
        ("dj", {"POOL_SIZE": 0}, None),
        ("dj", {"MAX_OVERFLOW": -1}, None),
        ("dj", {"MAX_OVERFLOW": "many"}, None),
        ("own", {}, None),
    ],
)
def test_what_a_pool_may_grow_to_is_read_as_the_pool_reads_it(
    engine: str, options: Any, most: int | None
) -> None:
    """D7: the defaults are psycopg_pool's and the other package's own."""
    wrapper: Any = connections[engine]
    if engine == "native":
        settings: Any = {"OPTIONS": {"pool": options}}
    else:
        settings = {"OPTIONS": {}, "POOL_OPTIONS": options}
    assert wrapper._hooks.pool.most(settings) == most


def test_the_defaults_are_those_of_the_pool_itself() -> None:
    """D7: psycopg_pool's, which may change."""
    from psycopg_pool import ConnectionPool

    wrapper: Any = connections["native"]
    pool: Any = ConnectionPool(open=False)
    settings = {"OPTIONS": {"pool": True}}
    assert wrapper._hooks.pool.most(settings) == pool.max_size


def test_a_pool_that_does_not_tell_its_size_is_not_complained_of() -> None:
    """D7: of a pool that is not known nothing is claimed."""
    with checked("own") as name:
        assert ids(name) == []


# ##### A pooler #####


def test_behind_a_pooler_each_thing_that_is_missing_is_named(alias: str) -> None:
    """D7: W001 to W005, each with what to write."""
    options = {
        **PLAIN,
        "prepare_threshold": 5,
        "server_side_binding": True,
        "assume_role": "shop",
        "options": "-c work_mem=7MB",
    }
    with (
        pooler_of_transactions() as port,
        checked(alias, HOST="127.0.0.1", PORT=str(port), OPTIONS=options) as name,
    ):
        warnings = found(name)
    assert [each.id for each in warnings] == [
        f"django_pg_real_pool.W00{number}" for number in range(1, 6)
    ]
    for each, setting in zip(
        warnings,
        [
            '["DISABLE_SERVER_SIDE_CURSORS"] to True',
            '["RELEASE_OPTIONS"]["SESSION_STATE"] to "error"',
            '"prepare_threshold" from',
            "ALTER ROLE ... SET role = 'shop'",
            "ALTER DATABASE ... SET",
        ],
        strict=True,
    ):
        assert each.msg.startswith(
            f"Database '{name}': behind a pooler in transaction mode, "
        )
        assert setting in str(each.hint)


def test_behind_a_pooler_what_is_right_is_not_complained_of(alias: str) -> None:
    """D7: nor is the size of the pool, whose limit is the pooler's."""
    with (
        pooler_of_transactions() as port,
        checked(
            alias,
            size=5000,
            HOST="127.0.0.1",
            PORT=str(port),
            OPTIONS=PLAIN,
            connects=False,
            **RIGHT,
        ) as name,
    ):
        assert ids(name) == []


def test_behind_a_pooler_of_sessions_nothing_is_missing(alias: str) -> None:
    """D7: there, each client has a session of its own."""
    with (
        pooler_of_sessions(2) as port,
        checked(alias, HOST="127.0.0.1", PORT=str(port), OPTIONS=PLAIN) as name,
    ):
        assert ids(name) == []


def test_a_pooler_that_lets_its_clients_wait_does_not_stop_the_check(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: its one connection is the first client's, as long as that is there."""
    monkeypatch.setattr(probe, "PATIENCE", 1)
    with (
        pooler_of_sessions(1) as port,
        checked(alias, HOST="127.0.0.1", PORT=str(port), OPTIONS=PLAIN) as name,
    ):
        began = time.monotonic()
        assert ids(name) == []
        assert time.monotonic() - began < 5


# ##### No harm #####


def test_the_end_of_an_answer_is_not_awaited_for_ever() -> None:
    """F2: nor with the GIL held; an idle connection is asked in the same way."""
    with (
        closing(SmallPooler(size=1, are_shared=True, pause=1.0)) as pooler,
        psycopg.connect(host="127.0.0.1", port=pooler.port, **PLAIN) as connection,  # type: ignore[arg-type]
    ):
        pgconn = connection.pgconn
        with pytest.raises(TimeoutError):
            ask(pgconn, waiter(pgconn.socket), b"SELECT 1", seconds=0.2)
        connection.close()


@pytest.fixture(params=["nobody listens", "hangs up", "never answers"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that can't be had."""
    if request.param == "nobody listens":
        yield free_port()
        return
    with closing(Proxy("127.0.0.1", free_port())) as proxy:
        if request.param == "never answers":
            proxy._target = (_host(), _port())
            proxy.swallow()
        yield proxy.port


def _host() -> str:
    return str(connections["native"].settings_dict["HOST"])


def _port() -> int:
    return int(connections["native"].settings_dict["PORT"])


def test_a_server_that_can_not_be_reached_is_one_warning(
    unreachable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: W007; no error, and no long wait."""
    monkeypatch.setattr(probe, "PATIENCE", 2)  # of which libpq makes no less
    for options in ({}, {"options": "-c work_mem=7MB"}):
        with checked(
            "native",
            connects=False,
            HOST="127.0.0.1",
            PORT=str(unreachable),
            OPTIONS=options,
        ) as name:
            began = time.monotonic()
            assert ids(name) == ["W007"]
            assert time.monotonic() - began < 8


def cant_connect(alias: str) -> str:
    """Return the words of the one warning that there is, in one line."""
    (warning,) = found(alias)
    assert warning.id == "django_pg_real_pool.W007"
    assert warning.level == checks.WARNING
    assert warning.hint == (
        "Correct HOST, PORT, NAME, USER, PASSWORD, OPTIONS or TIME_ZONE in "
        f"DATABASES[{alias!r}], or start the server."
    )
    head, _, reason = warning.msg.partition(": can't connect: ")
    assert head == f"Database {alias!r}"
    assert "\n" not in reason
    # psycopg 3.1 leaves out which server it was.
    return re.sub(r'^connection to server at "127.0.0.1", port \d+ failed: ', "", reason)


def test_nobody_listens_in_the_drivers_words(pooled: str) -> None:
    """D7: W007."""
    port = str(free_port())
    with checked(pooled, connects=False, HOST="127.0.0.1", PORT=port) as name:
        assert cant_connect(name) == "Connection refused."


@pytest.fixture(scope="module")
def second() -> Iterator[Server]:
    """A server that asks for a password."""
    server = Server()
    yield server
    server.remove()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (
            {"PASSWORD": "wrong"},
            'password authentication failed for user "postgres".',
        ),
        ({"USER": "nobody"}, 'password authentication failed for user "nobody".'),
        ({"NAME": "nothing"}, 'database "nothing" does not exist.'),
        (
            {"OPTIONS": {"options": "-c no_such_parameter=1"}},
            'unrecognized configuration parameter "no_such_parameter".',
        ),
    ],
)
def test_what_the_server_refuses_is_in_its_own_words_once(
    pooled: str, second: Server, mistake: dict[str, Any], words: str
) -> None:
    """D7: W007, though libpq says it for each of its attempts."""
    settings: dict[str, Any] = {
        "HOST": HOST,
        "PORT": str(second.port),
        "USER": USER,
        "PASSWORD": PASSWORD,
        "NAME": "postgres",
    }
    with checked(pooled, connects=False, **{**settings, **mistake}) as name:
        assert cant_connect(name) == f"FATAL: {words}"
    with checked(pooled, connects=False, **settings) as name:
        assert ids(name) == []


def test_of_a_base_that_connects_by_itself_nothing_is_said() -> None:
    """D7: it may know a password that the settings don't."""
    with checked("own", connects=False, HOST="127.0.0.1", PORT=str(free_port())) as name:
        assert ids(name) == []


def test_an_option_that_the_driver_does_not_know_is_named(pooled: str) -> None:
    """D7: W007; it is not the server that refuses it."""
    with checked(pooled, connects=False, OPTIONS={"sslmod": "disable"}) as name:
        assert cant_connect(name) == 'invalid connection option "sslmod".'


def test_several_attempts_are_one_line() -> None:
    """D7: a host with two addresses is refused twice, and psycopg lists both again."""
    said = (
        'connection failed: connection to server at "::1" failed: refused\n'
        "\tIs the server running?\n"
        'connection to server at "::1" failed: refused\n'
        'connection to server at "127.0.0.1" failed: refused\n'
        "Multiple connection attempts failed. All failures were:\n- host: 'localhost': ..."
    )
    assert probe._in_one_line(psycopg.OperationalError(said)) == (
        'connection to server at "::1" failed: refused; '
        'connection to server at "127.0.0.1" failed: refused'
    )
    assert probe._in_one_line(KeyError()) == "KeyError"


def test_the_check_calls_parameters_that_can_be_called(
    pooled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: as psycopg_pool does from 3.3 on, for a password that changes."""

    class Params(dict[str, Any]):
        def __call__(self) -> dict[str, Any]:
            return {**self, "sslmod": "disable"}

    with checked(pooled, connects=False) as name:
        wrapper: Any = connections[name]
        params = Params(wrapper.get_connection_params())
        monkeypatch.setattr(wrapper, "get_connection_params", lambda: params)
        assert cant_connect(name) == 'invalid connection option "sslmod".'


def test_the_check_connects_as_the_pool_does() -> None:
    """D7: with its own class of connections, and its own conninfo."""

    class Connection(psycopg.Connection[Any]):
        made = 0

        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            cls.made += 1
            return super().connect(conninfo, **kwargs)

    for conninfo in ("application_name=checked", lambda: "application_name=checked"):
        pool = {"min_size": 1, "connection_class": Connection, "conninfo": conninfo}
        with checked("native", connects=False, OPTIONS={"pool": pool}) as name:
            assert ids(name) == []
    assert Connection.made == 2


def test_a_connection_that_breaks_while_it_is_asked_is_no_error(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: nor is a server that refuses the question."""
    with checked(alias) as name:
        for sql in ("SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1 / 0"):
            monkeypatch.setattr(probe, "PID", sql)
            assert ids(name) == []


def test_the_check_takes_nothing_from_the_pool(alias: str, observer: Any) -> None:
    """D7: it makes a connection of its own, which is gone when it returns."""
    with closing(Proxy(_host(), _port())) as proxy:
        options = {**PLAIN, "application_name": "checked"}
        with checked(
            alias, HOST="127.0.0.1", PORT=str(proxy.port), OPTIONS=options
        ) as name:
            assert ids(name) == []
            assert len(proxy.links) == 1
            wait_until(lambda: not proxy.open_links, "the check's connection is closed")
            wrapper: Any = connections[name]
            assert wrapper.connection is None
            if alias == "native":
                assert name not in wrapper._connection_pools


def test_the_check_is_no_statement_of_the_block_around_it(alias: str) -> None:
    """D7: in a block that has failed as well."""
    with checked(alias) as name:
        with transaction.atomic(name):
            assert ids(name) == []
            assert connections[name].connection is None
        with transaction.atomic(name):
            pid = backend_pid(name)
            transaction.set_rollback(True, name)
            assert ids(name) == []
            transaction.set_rollback(False, name)
            assert backend_pid(name) == pid


@pytest.mark.parametrize(
    "settings",
    [{"OPTIONS": {"pool": False}}, {"RELEASE_OPTIONS": {"SESSION_STATE": "pni"}}],
)
def test_the_server_is_not_asked_where_nothing_can_be_learnt(
    alias: str, settings: dict[str, Any]
) -> None:
    """D7: without a pool nothing is released early; and errors come first."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.setblocking(False)
        port = str(nobody.getsockname()[1])
        with checked(
            alias, connects=False, HOST="127.0.0.1", PORT=port, **settings
        ) as name:
            found(name)
        with pytest.raises(BlockingIOError):
            nobody.accept()


def test_other_databases_are_not_asked(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: what PostgreSQL would be asked, through psycopg, is for no other."""
    wrapper_class: Any = type(connections[alias])
    asked = "django_pg_real_pool._backend.checks.server.probe"
    monkeypatch.setattr(asked, lambda wrapper: pytest.fail("it was asked"))
    monkeypatch.setattr(wrapper_class, "vendor", "mysql")
    with checked(alias, connects=False) as name:
        assert ids(name) == []
