"""What a statement does to its session: held while it lasts, gone before anyone else."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError, connections, transaction
from django.db.backends.signals import connection_created
from faults import PLAIN, census
from helpers import backend_pid, has_gil, wait_until
from psycopg import sql
from psycopg.adapt import PyFormat
from sessions import ask, in_another_request, look, pool_for_one
from tcp_proxy import Proxy

from django_pg_real_pool import SessionStateError, pin_connection, pool_status

ROLE = "real_pool_session_role"


@pytest.fixture
def one(alias: str) -> Iterator[str]:
    """Each engine in turn, with room for one connection: the next request gets it."""
    with pool_for_one(alias) as name:
        yield name


@pytest.fixture
def role(observer: Any) -> Iterator[str]:
    observer.execute(f"DROP ROLE IF EXISTS {ROLE}")
    observer.execute(f"CREATE ROLE {ROLE}")
    observer.execute(f"GRANT ALL ON item TO {ROLE}")
    yield ROLE
    observer.execute(f"DROP OWNED BY {ROLE}")
    observer.execute(f"DROP ROLE {ROLE}")


def held(alias: str) -> list[str]:
    """Return the holds of this thread's wrapper, in words."""
    wrapper: Any = connections[alias]
    assert (wrapper.connection is not None) == bool(wrapper._lease.holds.now)
    return sorted(hold.value for hold in wrapper._lease.holds.now)


#: One statement for each sort of state, and a query that sees it.
STATES = {
    "setting": ("SET app.tenant = '1'", "SELECT current_setting('app.tenant', true) = '1'"),
    "set_config": (
        "SELECT set_config('app.tenant', '1', false)",
        "SELECT current_setting('app.tenant', true) = '1'",
    ),
    "role": (f"SET ROLE {ROLE}", f"SELECT current_user = '{ROLE}'"),
    "authorization": (
        f"SET SESSION AUTHORIZATION {ROLE}",
        f"SELECT session_user = '{ROLE}'",
    ),
    "search_path": (
        "SET search_path TO a, b",
        "SELECT current_setting('search_path') = 'a, b'",
    ),
    "time zone": (
        "SET TIME ZONE 'Asia/Tokyo'",
        "SELECT current_setting('TimeZone') = 'Asia/Tokyo'",
    ),
    "pg_settings": (
        "UPDATE pg_settings SET setting = '77' WHERE name = 'lock_timeout'",
        "SELECT current_setting('lock_timeout') = '77ms'",
    ),
    "temporary table": (
        "CREATE TEMP TABLE t (id int)",
        "SELECT to_regclass('t') IS NOT NULL",
    ),
    "temporary function": (
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT to_regproc('pg_temp.f') IS NOT NULL",
    ),
    "lock": (
        "SELECT pg_advisory_lock(7)",
        (
            "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' "
            "AND pid = pg_backend_pid()"
        ),
    ),
    "listener": ("LISTEN news", "SELECT count(*) = 1 FROM pg_listening_channels()"),
    "prepared": (
        "PREPARE p AS SELECT 1",
        "SELECT count(*) = 1 FROM pg_prepared_statements",
    ),
    "cursor": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) = 1 FROM pg_cursors WHERE is_holdable",
    ),
}

every_state = pytest.mark.parametrize("state", STATES)


# ##### The hold #####


@every_state
def test_a_request_goes_on_with_the_session_that_it_changed(
    one: str, role: str, state: str
) -> None:
    """S1, S2: the connection is kept, and what comes next in the request sees the change."""
    statement, seen = STATES[state]
    pid = backend_pid(one)
    with connections[one].cursor() as cursor:
        cursor.execute(statement)
    for _ in range(3):
        assert held(one) == ["session state"]
        assert ask(one, seen) is True
        assert backend_pid(one) == pid


@every_state
def test_the_next_request_gets_the_same_connection_without_the_change(
    one: str, role: str, state: str
) -> None:
    """S3: cleaned by reset, not by a new connection; the session is as it was."""
    statement, seen = STATES[state]
    before = look(one)
    with connections[one].cursor() as cursor:
        cursor.execute(statement)
    connections[one].close()
    assert held(one) == []
    assert in_another_request(lambda: ask(one, seen)) is False
    assert in_another_request(lambda: look(one)) == before


def test_ten_requests_that_set_something_cost_no_new_connection(one: str) -> None:
    """S3: the same server process serves them all."""

    def request() -> int:
        assert ask(one, "SELECT current_setting('app.tenant', true)") in (None, "")
        with connections[one].cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        return backend_pid(one)

    assert len({in_another_request(request) for _ in range(10)}) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL app.tenant = '1'",
        "SELECT set_config('app.tenant', '1', true)",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SELECT pg_try_advisory_xact_lock(1)",
        "CREATE TEMP TABLE t (id int) ON COMMIT DROP",
        "SELECT 'SET x = 1'",
    ],
)
def test_what_ends_with_the_transaction_holds_nothing_longer(
    one: str, statement: str
) -> None:
    """S1: SET LOCAL and its like are what such requests should use."""
    before = look(one)
    with transaction.atomic(one):
        with connections[one].cursor() as cursor:
            cursor.execute(statement)
        assert held(one) == ["transaction"]
    assert held(one) == []
    assert look(one) == before


# ##### However the statement is sent #####


def by_execute(cursor: Any) -> None:
    cursor.execute("SELECT set_config('app.tenant', %s, false)", ["1"])


def by_bytes(cursor: Any) -> None:
    cursor.execute(b"SET app.tenant = '1'")


def by_composed(cursor: Any) -> None:
    setting = sql.Identifier("app", "tenant")
    cursor.execute(sql.SQL("SET {} = {}").format(setting, sql.Literal("1")))


def by_several(cursor: Any) -> None:
    cursor.execute("SELECT 1; /* ; */ SET app.tenant = '1'; SELECT 2")


def by_executemany(cursor: Any) -> None:
    cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["0"], ["1"]])


def by_callproc(cursor: Any) -> None:
    cursor.callproc("set_config", ["app.tenant", "1", False])


def by_copy(cursor: Any) -> None:
    with cursor.copy(
        "COPY (SELECT set_config('app.tenant', '1', false)) TO STDOUT"
    ) as copy:
        assert list(copy)


def by_stream(cursor: Any) -> None:
    assert list(cursor.stream("SELECT set_config('app.tenant', %s, false)", ["1"]))


WAYS = [
    *(by_execute, by_bytes, by_composed, by_several),
    *(by_executemany, by_callproc, by_copy, by_stream),
]


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_send_a_statement_is_watched(one: str, way: Any, debug: bool) -> None:
    """S1, S2, S3: execute, executemany, callproc, copy, stream, with a debug cursor too."""
    wrapper = connections[one]
    wrapper.force_debug_cursor = debug
    if debug and way in (by_bytes, by_composed):
        wrapper.force_debug_cursor = False  # Django's own debug cursor can't log these
    try:
        with wrapper.cursor() as cursor:
            way(cursor)
        assert held(one) == ["session state"]
        assert ask(one, "SELECT current_setting('app.tenant')") == "1"
    finally:
        wrapper.force_debug_cursor = False
        wrapper.close()
    assert in_another_request(
        lambda: ask(one, "SELECT current_setting('app.tenant', true)")
    ) in (*("", None),)


def test_what_an_execute_wrapper_makes_of_a_statement_counts(one: str) -> None:
    """S1: the verdict is on what the server gets."""

    def rewrite(execute: Any, text: str, params: Any, many: bool, context: Any) -> Any:
        return execute(text.replace("HARMLESS", "SET app.tenant ="), params, many, context)

    with connections[one].execute_wrapper(rewrite), connections[one].cursor() as cursor:
        cursor.execute("HARMLESS '1'")
    assert held(one) == ["session state"]


def test_a_named_cursor_is_watched(one: str) -> None:
    """S1: also outside a transaction, where the driver declares it WITH HOLD by itself."""
    with connections[one].chunked_cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant', '1', false)")
        assert cursor.fetchall() == [("1",)]
    assert held(one) == ["session state"]
    connections[one].close()
    with connections[one].chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 3)")
        assert len(cursor.fetchall()) == 3
    assert held(one) == []  # the driver's own WITH HOLD is no reason


def test_a_cursor_of_an_ended_lease_begins_no_hold(one: str) -> None:
    """S1, R5: its statement is never sent."""
    cursor = connections[one].cursor()
    connections[one].close()
    with pytest.raises(Exception, match="can't be used any more"):
        cursor.execute("SET app.tenant = '1'")
    assert held(one) == []


# ##### Transactions #####


@pytest.mark.parametrize("ending", ["commit", "rollback", "savepoint"])
def test_a_change_in_a_block_is_cleaned_away_however_it_ends(one: str, ending: str) -> None:
    """S1, S3: a rollback undoes a SET, but not a lock; neither is followed."""
    before = look(one)
    try:
        with (
            transaction.atomic(one),
            transaction.atomic(one, savepoint=ending == "savepoint"),
        ):
            with connections[one].cursor() as cursor:
                cursor.execute("SET app.tenant = '1'")
                cursor.execute("SELECT pg_advisory_lock(7)")
            assert held(one) == ["session state", "transaction"]
            if ending != "commit":
                raise LookupError
    except LookupError:
        pass
    assert held(one) == ["session state"]
    tenant = ask(one, "SELECT current_setting('app.tenant', true)")
    assert tenant == "1" if ending == "commit" else tenant in ("", None)
    connections[one].close()
    assert in_another_request(lambda: look(one)) == before


def test_with_autocommit_off_the_session_is_cleaned_too(alias: str) -> None:
    """S3, D3: AUTOCOMMIT False; the cleaning leaves no transaction open either."""
    with pool_for_one(alias, AUTOCOMMIT=False) as one:
        connections[one].rollback()
        before = look(one)
        with connections[one].cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        connections[one].commit()
        assert held(one) == ["session state"]
        assert ask(one, "SELECT current_setting('app.tenant')") == "1"
        connections[one].close()
        assert in_another_request(lambda: look(one)) == before


# ##### Policies #####

REFUSAL = (
    "SET would change the session of database alias 'single_{}' beyond its transaction, but "
    "the connection is released after the statement. Use SET LOCAL, set_config(..., true) or "
    "a pg_advisory_xact_lock() function inside atomic(); or wrap the work in "
    "pin_connection(); or set DATABASES['single_{}']['RELEASE_OPTIONS']['SESSION_STATE'] to "
    "'pin'."
)


def test_policy_error_refuses_without_sending(alias: str, proxy: Proxy) -> None:
    """S4: the message names the kind, the alias, the ways out; nothing reaches the server."""
    with pool_for_one(
        alias,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
        RELEASE_OPTIONS={"SESSION_STATE": "error"},
    ) as one:
        before = look(one)
        with connections[one].cursor() as cursor:
            sent = proxy.round_trips
            with pytest.raises(SessionStateError) as refused:
                cursor.execute("SET app.tenant = '1'")
            assert proxy.round_trips == sent
            assert str(refused.value) == REFUSAL.format(alias, alias)
            assert isinstance(refused.value, NotSupportedError)
            cursor.execute("SELECT 1")  # the cursor is as good as before
            assert proxy.round_trips == sent + 1
        assert held(one) == []
        with transaction.atomic(one), connections[one].cursor() as cursor:
            for way in WAYS:
                with pytest.raises(SessionStateError):
                    way(cursor)
            cursor.execute("SET LOCAL app.tenant = '1'")
            assert ask(one, "SELECT current_setting('app.tenant')") == "1"
        assert held(one) == []
        assert look(one) == before


def test_policy_error_lets_pinned_work_pass(alias: str) -> None:
    """S4, P1: a pin is one of the three ways out; it is cleaned up after."""
    with pool_for_one(alias, RELEASE_OPTIONS={"SESSION_STATE": "error"}) as one:
        before = look(one)
        with pin_connection(one):
            with connections[one].cursor() as cursor:
                cursor.execute("SET app.tenant = '1'")
            assert ask(one, "SELECT current_setting('app.tenant')") == "1"
        assert held(one) == []
        assert look(one) == before


def test_policy_ignore_is_as_stock(alias: str) -> None:
    """S4: no hold, no cleaning: the next request sees the change."""
    with pool_for_one(alias, RELEASE_OPTIONS={"SESSION_STATE": "ignore"}) as one:
        with connections[one].cursor() as cursor:
            cursor.execute("SET app.tenant = '1'")
        assert held(one) == []
        with pin_connection(one):
            pass
        connections[one].close()
        seen = in_another_request(lambda: ask(one, "SELECT current_setting('app.tenant')"))
        assert seen == "1"


# ##### Pins #####


def raw(alias: str) -> Any:
    """Return the driver's own connection, which nobody watches."""
    connection: Any = connections[alias].connection
    return getattr(connection, "driver_connection", connection)


def test_a_pin_ends_with_the_same_cleaning(one: str) -> None:
    """S3, S5, P1: what was done through the driver's connection is cleaned up as well."""
    before = look(one)
    with pin_connection(one), pin_connection(one):
        raw(one).execute("SET app.tenant = '1'")
        raw(one).execute("CREATE TEMP TABLE t (id int)")
        raw(one).execute("SELECT pg_advisory_lock(7)")
        raw(one).execute("LISTEN news")
        assert ask(one, "SELECT current_setting('app.tenant')") == "1"
    assert held(one) == []
    assert in_another_request(lambda: look(one)) == before


def test_what_a_function_hides_is_cleaned_up_after_a_pin(one: str, observer: Any) -> None:
    """S5: it begins no hold, which is the documented limit; a pin covers it."""
    observer.execute(
        "CREATE OR REPLACE FUNCTION hidden() RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.tenant', '1', false) $$"
    )
    try:
        with pin_connection(one):
            assert ask(one, "SELECT hidden()") == "1"
        assert ask(one, "SELECT current_setting('app.tenant', true)") in ("", None)
        assert ask(one, "SELECT hidden()") == "1"
        assert held(one) == []
        assert ask(one, "SELECT current_setting('app.tenant', true)") == "1"
    finally:
        observer.execute("DROP FUNCTION hidden()")


def test_a_hold_outlives_the_pin_in_which_it_did_not_begin(one: str) -> None:
    """S2: session state from before the pin lasts until close()."""
    with connections[one].cursor() as cursor:
        cursor.execute("SET app.tenant = '1'")
    with pin_connection(one):
        assert held(one) == ["pin", "session state"]
    assert held(one) == ["session state"]
    assert ask(one, "SELECT current_setting('app.tenant')") == "1"


@pytest.mark.parametrize("what", ["adapter", "handler", "row factory"])
def test_what_a_reset_does_not_reach_costs_the_connection(one: str, what: str) -> None:
    """S3: psycopg's own part of a session can't be reset, so the connection is replaced."""

    def handler(notice: Any) -> None:
        raise AssertionError("the handler is another request's")

    class Upper(psycopg.types.string.StrDumper):
        def dump(self, obj: Any) -> Any:
            return b"changed"

    pid = backend_pid(one)
    with pin_connection(one):
        if what == "adapter":
            raw(one).adapters.register_dumper(str, Upper)
        elif what == "handler":
            raw(one).add_notice_handler(handler)
        else:
            raw(one).row_factory = psycopg.rows.dict_row
    assert in_another_request(lambda: backend_pid(one)) != pid
    assert (
        in_another_request(lambda: ask(one, "SELECT %s::text", ["as it was"]))
        == "as it was"
    )

    def raise_a_notice() -> None:
        with connections[one].cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE NOTICE 'x'; END $$")

    in_another_request(raise_a_notice)


class Met:
    """Something that psycopg is told of by its name, as it is of dates and UUIDs."""


def test_a_class_that_psycopg_meets_for_the_first_time_costs_nothing(one: str) -> None:
    """S3: from then on it knows it by the class, which is no change."""
    name = f"{Met.__module__}.{Met.__qualname__}"

    def register(connection: Any, **kwargs: Any) -> None:
        adapters = connection.connection.adapters
        adapters.register_dumper(name, psycopg.types.string.StrDumper)

    connections[one].close()
    connection_created.connect(register)
    try:
        pid = backend_pid(one)
    finally:
        connection_created.disconnect(register)
    with pin_connection(one):
        assert backend_pid(one) == pid
        adapters = raw(one).adapters
        for format in (PyFormat.AUTO, PyFormat.TEXT):
            assert name in adapters._dumpers[format]
            adapters.get_dumper(Met, format)
            assert name not in adapters._dumpers[format]
    assert in_another_request(lambda: backend_pid(one)) == pid


@pytest.mark.parametrize(
    "statement",
    [
        "LOAD 'plpgsql'",
        "SELECT setseed(0.5)",
        "SELECT pg_create_physical_replication_slot('real_pool_slot', false, true)",
    ],
)
def test_what_discard_all_leaves_costs_the_connection(one: str, statement: str) -> None:
    """S3: where a reset is not certain to do, the connection is replaced."""
    pid = backend_pid(one)
    with connections[one].cursor() as cursor:
        cursor.execute(statement)
    assert held(one) == ["session state"]
    connections[one].close()
    assert in_another_request(lambda: backend_pid(one)) != pid


# ##### The configuration of a connection #####


@pytest.fixture
def receiver(one: str) -> Iterator[list[int]]:
    """A receiver of connection_created as projects have them; how often it was called."""
    calls: list[int] = []

    def configure(sender: Any, connection: Any, **kwargs: Any) -> None:
        if connection.alias == one:
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '12345ms'")
                cursor.execute("SELECT set_config('app.tenant', 'nobody', false)")
            calls.append(1)

    connection_created.connect(configure)
    yield calls
    connection_created.disconnect(configure)


def configuration(alias: str) -> tuple[Any, Any]:
    return (
        ask(alias, "SELECT current_setting('statement_timeout')"),
        ask(alias, "SELECT current_setting('app.tenant', true)"),
    )


def test_what_a_receiver_sets_is_configuration(one: str, receiver: list[int]) -> None:
    """S6: it begins no hold, and it is there again after cleaning."""
    pid = backend_pid(one)
    assert held(one) == []
    for _ in range(3):
        assert configuration(one) == ("12345ms", "nobody")
        assert held(one) == []
    assert receiver == [1]
    with connections[one].cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("SET app.tenant = '1'")
    assert configuration(one) == ("0", "1")
    connections[one].close()
    assert in_another_request(lambda: configuration(one)) == ("12345ms", "nobody")
    assert in_another_request(lambda: backend_pid(one)) == pid


def test_policy_error_is_not_for_receivers(alias: str) -> None:
    """S4, S6: the policy is about requests, not about the configuration."""

    def configure(sender: Any, connection: Any, **kwargs: Any) -> None:
        if connection.alias == f"single_{alias}":
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '12345ms'")

    connection_created.connect(configure)
    try:
        with pool_for_one(alias, RELEASE_OPTIONS={"SESSION_STATE": "error"}) as one:
            assert ask(one, "SELECT current_setting('statement_timeout')") == "12345ms"
    finally:
        connection_created.disconnect(configure)


def test_after_cleaning_a_connection_is_as_its_settings_say(alias: str, role: str) -> None:
    """S3, S6: time zone, role, isolation level, adapters: as a new connection of the pool."""
    options: dict[str, Any] = {"isolation_level": psycopg.IsolationLevel.SERIALIZABLE}
    if alias != "native":  # Django 5.2 can't have assume_role with its own pool: it hangs
        options["assume_role"] = role
    with pool_for_one(alias, TIME_ZONE="Asia/Tokyo", OPTIONS=options) as one:
        before = look(one)
        user = ask(one, "SELECT current_user")
        assert (user == role) == ("assume_role" in options)
        assert ("TimeZone", "Asia/Tokyo") in before[1]["settings"]
        stamp = "SELECT '2000-01-01 00:00:00+00'::timestamptz"
        moment = ask(one, stamp)
        for _ in range(2):
            with connections[one].cursor() as cursor:
                cursor.execute("SET TIME ZONE 'America/Lima'")
                cursor.execute("RESET ROLE" if user == role else f"SET ROLE {role}")
                cursor.execute("SET search_path = pg_catalog")
            assert ask(one, "SELECT current_user") != user
            connections[one].close()
            assert in_another_request(lambda: look(one)) == before
            assert in_another_request(lambda: ask(one, stamp)) == moment
            with transaction.atomic(one):
                level = ask(one, "SELECT current_setting('transaction_isolation')")
            assert level == "serializable"


def test_statements_that_the_driver_prepared_are_prepared_again(alias: str) -> None:
    """S3: DISCARD ALL drops them on the server; the driver knows."""
    options = {"server_side_binding": True, "prepare_threshold": 0}
    with pool_for_one(alias, OPTIONS=options) as one:
        query = "SELECT %s::int + 1"
        for _ in range(3):
            for _ in range(3):
                assert ask(one, query, [1]) == 2
            names = ask(
                one, "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql"
            )
            assert names > 0
            with connections[one].cursor() as cursor:
                cursor.execute("SET app.tenant = '1'")
            connections[one].close()
            assert in_another_request(lambda: ask(one, query, [2])) == 3


# ##### What it costs #####


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    database = settings.DATABASES["default"]
    with closing(Proxy(database["HOST"], int(database["PORT"]))) as proxy:
        yield proxy


@pytest.mark.parametrize("zone", ["same", "other"])
def test_a_cleaning_costs_as_many_round_trips_as_documented(
    alias: str, proxy: Proxy, zone: str
) -> None:
    """S3: one for the reset, one more where the time zone is not the server's own."""
    server_zone = ask(alias, "SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'")
    connections[alias].close()
    with pool_for_one(
        alias,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
        TIME_ZONE=server_zone if zone == "same" else "Asia/Tokyo",
    ) as one:

        def request(statement: str) -> int:
            """Return the round trips from the request's first to its end, and the next."""
            before = proxy.round_trips
            with connections[one].cursor() as cursor:
                cursor.execute(statement)
            ask(one, "SELECT 1")
            connections[one].close()
            ask(one, "SELECT 1")
            connections[one].close()
            return proxy.round_trips - before

        plain = request("SELECT 1")
        assert plain == 3
        assert request("SET app.tenant = '1'") - plain == (1 if zone == "same" else 2)
        assert request("SELECT pg_advisory_lock(1)") - plain == (1 if zone == "same" else 2)
        assert len(proxy.links) == 1


# ##### When cleaning fails #####


@pytest.mark.parametrize("ends_with", ["close", "pin"])
def test_a_failing_reset_replaces_the_connection(
    one: str, observer: Any, caplog: pytest.LogCaptureFixture, ends_with: str
) -> None:
    """S3: it is logged, and the request's own result is not disturbed."""
    pid = backend_pid(one)

    def end_server_process() -> None:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    with caplog.at_level(logging.WARNING, "django_pg_real_pool"):
        if ends_with == "pin":
            with pin_connection(one):
                result = ask(one, "SELECT 42")
                end_server_process()
        else:
            with connections[one].cursor() as cursor:
                cursor.execute("SET app.tenant = '1'")
            result = ask(one, "SELECT 42")
            end_server_process()
            connections[one].close()
    assert result == 42
    assert held(one) == []
    said = [record.getMessage() for record in caplog.records]
    assert any("could not reset the session" in text and repr(one) in text for text in said)
    assert in_another_request(lambda: backend_pid(one)) != pid
    wait_until(lambda: census(one).in_use == 0, f"nothing of {one} is in use")


def test_an_error_of_the_request_goes_its_way_after_a_failing_reset(
    one: str, observer: Any
) -> None:
    """S3: the exception that ends a pin is the one that is seen."""
    pid = backend_pid(one)

    def fail() -> None:
        with pin_connection(one):
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert held(one) == []


# ##### The status #####


def test_pool_status_tells_who_holds_what(one: str) -> None:
    """P3: census, and for each lease its thread, its holds, its age."""
    status = pool_status(one)
    assert status.alias == one
    assert status.leases == ()
    with connections[one].cursor() as cursor:
        cursor.execute("SET app.tenant = '1'")
        status = pool_status(one)
        (lease,) = status.leases
        assert lease.thread == threading.current_thread().name
        assert set(lease.holds) == {"open cursor", "session state"}
        assert 0 <= lease.seconds < 60
    (lease,) = pool_status(one).leases
    assert lease.holds == ("session state",)
    if one.endswith(("native", "dj")):
        assert (status.census.in_use, status.census.idle, status.census.size) == (1, 0, 1)
    assert "session state" in str(status)
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.alias = "x"  # type: ignore[misc]
    connections[one].close()
    assert pool_status(one).leases == ()


def test_pool_status_sees_other_threads(one: str) -> None:
    """P3: the oldest lease first, whichever thread has it."""
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with pin_connection(one):
            entered.set()
            leave.wait(10)
        connections[one].close()

    thread = threading.Thread(target=work, name="worker-7")
    thread.start()
    assert entered.wait(10)
    (lease,) = pool_status(one).leases
    assert (lease.thread, lease.holds) == ("worker-7", ("pin",))
    assert (lease.where is not None) is has_gil()
    leave.set()
    thread.join()
    assert pool_status(one).leases == ()


def test_pool_status_can_not_speak_for_stock() -> None:
    """P3: it says so."""
    with pytest.raises(ImproperlyConfigured, match="which does not release early"):
        pool_status("stock_native")
    assert pool_status().alias == "default"
