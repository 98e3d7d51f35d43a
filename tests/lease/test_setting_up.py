"""D4, S6, S7, D6: what sets a connection up, and who fails at it, are nobody else's affair.

Each test has a pool of one, so that whoever comes next gets the same connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from django.db import DataError, ProgrammingError, connections, transaction
from django.db.transaction import atomic
from helpers import census, forget_pool, installed
from leases import Stop
from receivers import Receiver, receiving
from sessions import ask, in_another_request, pool_for_one
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend

#: Whose request this is; a new thread's is nobody's.
user: ContextVar[str | None] = ContextVar("user", default=None)

USER = "SELECT nullif(current_setting('app.user', true), '')"


@pytest.fixture(autouse=True)
def _nobody() -> Iterator[None]:
    """Let what a test makes of this thread's request end with it."""
    token = user.set(None)
    yield
    user.reset(token)


@pytest.fixture
def one(alias: str) -> Iterator[str]:
    """Each engine in turn, with room for one connection."""
    with pool_for_one(alias) as name:
        yield name


def made_from(alias: str, overrides: type) -> Any:
    """Make an engine from a base that is stock's, with `overrides` before it."""
    stock = type(connections[STOCK_OF[alias]])
    return make_release_backend(
        type("Base", (overrides, stock), {"__module__": "a_users.base"})
    )


def wrappers(made: Any, alias: str, count: int) -> list[Any]:
    """Make wrappers of a class that share the pool of `alias`."""
    return [made(connections[alias].settings_dict, alias) for _ in range(count)]


def request(alias: str, name: str | None, sql: str = USER) -> Any:
    """Return what a request of `name` sees, from its first query to its close()."""

    def run() -> Any:
        user.set(name)
        return ask(alias, sql)

    return in_another_request(run)


def value(db: Any, sql: str = USER) -> Any:
    with db.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def physical(db: Any) -> Any:
    """Return the driver's own connection."""
    return getattr(db.connection, "driver_connection", db.connection)


def set_user(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', %s, false)", [user.get()])


# ##### A receiver that raises #####


def set_user_and_fail(db: Any) -> None:
    set_user(db)
    if user.get() == "b":
        raise LookupError


def set_user_and_stop(db: Any) -> None:
    set_user(db)
    if user.get() == "b":
        raise Stop


def fail(db: Any) -> None:
    if user.get() == "b":
        raise LookupError


FAILING = pytest.mark.parametrize(
    "receivers",
    [[set_user_and_fail], [set_user_and_stop], [set_user, fail]],
    ids=["it fails", "it is interrupted", "another one fails"],
)


@FAILING
def test_what_a_receiver_set_before_it_failed_is_not_of_the_request_that_was_there(
    one: str, receivers: list[Receiver]
) -> None:
    """D4, S3: which goes on, without a close(), as what it was."""
    user.set("a")
    with receiving(one, *receivers):
        assert ask(one, USER) == "a"
        with pytest.raises((LookupError, Stop)):
            request(one, "b")
        assert ask(one, USER) == "a"


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "used"])
@FAILING
def test_what_a_receiver_set_before_it_failed_is_not_of_the_next_request(
    one: str, receivers: list[Receiver], is_new: bool
) -> None:
    """D4, R9: not even of one whose receivers set nothing."""
    if is_new:
        forget_pool(one)
    with receiving(one, *receivers):
        with pytest.raises((LookupError, Stop)):
            request(one, "b")
        assert request(one, None) is None


class SettingInTheBeginning:
    """A base that sets the user when it connects, and fails then for one of them."""

    def init_connection_state(self) -> None:
        super().init_connection_state()  # type: ignore[misc]
        set_user(self)
        fail(self)


def test_what_a_base_set_up_before_it_failed_is_not_of_the_next_wrapper(
    alias: str, one: str
) -> None:
    """D4, D6: an `init_connection_state()` that raises midway."""
    made = made_from(alias, SettingInTheBeginning)
    first, second = wrappers(made, one, 2)
    user.set("b")
    with pytest.raises(LookupError):
        value(first)
    first.close()
    user.set(None)
    assert value(second) is None
    second.close()


# ##### A base with its own cursors #####


class PassingOn:
    """A base that has its own `_cursor()`, which does nothing by itself."""

    def _cursor(self, name: str | None = None) -> Any:
        return super()._cursor(name)  # type: ignore[misc]


def test_receivers_are_heard_beneath_a_bases_own_cursor_method(
    alias: str, one: str
) -> None:
    """D4, S7: each wrapper sees its own user, and who has none sees none."""
    first, second, third = wrappers(made_from(alias, PassingOn), one, 3)
    with receiving(one, set_user):
        for db, name in ((first, "a"), (second, "b"), (first, "a"), (third, None)):
            user.set(name)
            assert value(db) == name
    for db in (first, second, third):
        db.close()


class SettingInCursor:
    """A base whose `_cursor()` sets a user, and then does something more."""

    then: Receiver

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)  # type: ignore[misc]
        if user.get() is not None:
            cursor.execute("SELECT set_config('app.user', %s, false)", [user.get()])
        self.then(cursor)
        return cursor


def test_what_a_bases_cursor_method_set_before_it_failed_is_not_of_another_wrapper(
    alias: str, one: str
) -> None:
    """S3, S7: it may be anything that is raised there."""
    first, second = wrappers(made_from(alias, SettingInCursor), one, 2)
    first.then, second.then = fail, lambda cursor: None
    assert value(second) is None
    user.set("b")
    with pytest.raises(LookupError):
        value(first)
    first.close()
    user.set(None)
    assert value(second) is None
    second.close()


# ##### What counts as the same #####

LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1"
READ_ONLY = "SHOW default_transaction_read_only"
CHARACTERISTICS = "SET SESSION CHARACTERISTICS AS TRANSACTION"
CONFIG = "SELECT set_config(%s, %s, false)"

#: What the receiver sends for a request and for the next one, what then must be so.
UNLIKE: dict[str, tuple[Any, Any, str, Any]] = {
    "name in the parameters": (
        (CONFIG, ["app.user", "a"]),
        (CONFIG, ["app.tenant", "1"]),
        USER,
        None,
    ),
    "one of several names": (
        ("SELECT set_config('app.user', 'a', false), set_config(%s, '1', false)", ["a.b"]),
        ("SELECT set_config('app.tenant', '1', false)", None),
        USER,
        None,
    ),
    "of its transaction": (
        ("SELECT set_config('app.user', 'a', false)", None),
        ("SELECT set_config('app.user', 'b', true)", None),
        USER,
        None,
    ),
    "local": (
        ("SET app.\"user\" = 'a'", None),
        ("SET LOCAL app.\"user\" = 'b'", None),
        USER,
        None,
    ),
    "another setting": (
        ("SET app.tenant = '1'", None),
        ("SET app.tenants = '1'", None),
        "SELECT nullif(current_setting('app.tenant', true), '')",
        None,
    ),
    "of a row that is not there": (
        ("SELECT set_config('app.user', 'a', false)", None),
        ("SELECT set_config('app.user', 'b', false) WHERE false", None),
        USER,
        None,
    ),
    "another lock": (
        ("SELECT pg_advisory_lock(%s)", [1]),
        ("SELECT pg_advisory_lock(%s)", [2]),
        LOCKS,
        0,
    ),
    "another characteristic": (
        (f"{CHARACTERISTICS} READ ONLY", None),
        (f"{CHARACTERISTICS} ISOLATION LEVEL REPEATABLE READ", None),
        READ_ONLY,
        "off",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_a_request_sets_otherwise_does_not_stand_for_what_another_has_set(
    one: str, case: str
) -> None:
    """D4, S3: only what certainly sets the same, if to another value, replaces it."""
    first, second, sql, expected = UNLIKE[case]

    def receive(db: Any) -> None:
        with db.cursor() as cursor:
            cursor.execute(*(first if user.get() == "a" else second))

    with receiving(one, receive):
        request(one, "a", "SELECT 1")
        assert request(one, "b", sql) == expected


def that_fails(cursor: Any) -> None:
    with suppress(DataError):
        cursor.execute("SET statement_timeout = 'for ever'")


def that_is_rolled_back(cursor: Any) -> None:
    with atomic(using=cursor.db.alias):
        cursor.execute("SET statement_timeout = '88s'")
        transaction.set_rollback(True, using=cursor.db.alias)


@pytest.mark.parametrize("otherwise", [that_fails, that_is_rolled_back])
def test_a_setting_without_effect_does_not_stand_for_what_another_has_set(
    one: str, otherwise: Receiver
) -> None:
    """D4, S3: what a receiver tried to set is not set."""

    def receive(db: Any) -> None:
        with db.cursor() as cursor:
            if user.get() == "a":
                cursor.execute("SET statement_timeout = '77s'")
            else:
                otherwise(cursor)

    with receiving(one, receive):
        assert request(one, "a", "SHOW statement_timeout") == "77s"
        assert request(one, "b", "SHOW statement_timeout") == "0"


# ##### The driver's connection #####


def test_what_receivers_set_on_the_drivers_connection_is_the_requests_own(
    one: str,
) -> None:
    """D4, S8: as a statement's; and it comes back to the request that it is of."""

    def receive(db: Any) -> None:
        if user.get() == "reader":
            physical(db).read_only = True

    def reads_only() -> Any:
        with atomic(using=one):
            return ask(one, "SHOW transaction_read_only")

    user.set("reader")
    with receiving(one, receive):
        for _ in range(2):
            assert reads_only() == "on"
            assert in_another_request(reads_only) == "off"


# ##### Setting up anew #####


def with_a_failure(db: Any) -> None:
    """A receiver that asks for something that may not be there."""
    set_user(db)
    with db.cursor() as cursor, suppress(ProgrammingError):
        cursor.execute("SELECT no_such_function()")


def with_a_savepoint(db: Any) -> None:
    """A receiver that is at work in a transaction."""
    set_user(db)
    with atomic(using=db.alias), atomic(using=db.alias), db.cursor() as cursor:
        cursor.execute("SELECT 1")


def with_a_record(db: Any) -> None:
    """A receiver that writes down that there is a connection."""
    set_user(db)
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES (gen_random_uuid()::text)")


@pytest.mark.parametrize("receiver", [with_a_failure, with_a_savepoint, with_a_record])
def test_receivers_may_send_what_is_not_to_be_repeated(
    one: str, observer: Any, receiver: Receiver
) -> None:
    """D4: a cleaning between two requests fails at nothing, and does nothing twice."""
    with receiving(one, receiver) as heard:
        for name in ("a", None, "b", None):
            assert request(one, name) == name
    if receiver is with_a_record:
        rows = observer.execute("SELECT count(*) FROM item").fetchone()
        assert rows == (len(heard),)


def test_a_bases_cursor_method_may_send_what_is_not_to_be_repeated(
    alias: str, one: str
) -> None:
    """S7: there the same."""

    def then(cursor: Any) -> None:
        with suppress(ProgrammingError):
            cursor.execute("SELECT no_such_function()")

    made = made_from(alias, SettingInCursor)
    for name in ("a", None, "b", None):
        user.set(name)
        (db,) = wrappers(made, one, 1)
        db.then = then
        assert value(db) == name
        db.close()


# ##### A base's own connect() and close() #####


class SettingInConnect:
    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        with self.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute("SET statement_timeout = '77s'")


class ResettingInClose:
    def close(self) -> None:
        if self.connection is not None:  # type: ignore[attr-defined]
            with self.cursor() as cursor:  # type: ignore[attr-defined]
                cursor.execute("RESET ALL")
        super().close()  # type: ignore[misc]


class ResettingInTheEnd:
    def _close(self) -> None:
        if self.connection is not None:  # type: ignore[attr-defined]
            with self.cursor() as cursor:  # type: ignore[attr-defined]
                cursor.execute("RESET ALL")
        super()._close()  # type: ignore[misc]


@pytest.mark.parametrize("policy", ["pin", "error", "ignore"])
@pytest.mark.parametrize(
    "overrides", [SettingInConnect, ResettingInClose, ResettingInTheEnd]
)
def test_a_base_may_run_statements_where_it_connects_and_closes(
    alias: str,
    one: str,
    overrides: type,
    policy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """D6, S6: they are its own, so each query releases, and the pool loses nothing."""
    options = {"SESSION_STATE": policy}
    with installed(one, made_from(alias, overrides), RELEASE_OPTIONS=options) as db:
        for _ in range(2):
            for _ in range(3):
                value(db, "SELECT 1")
                assert census(one).in_use == 0
                assert db._lease.describe_holds() == []
            with atomic(using=one):
                value(db, "SELECT 1")
            assert census(one).in_use == 0
            db.close()
        assert census(one) == (1, 0)
    assert caplog.messages == []


def test_what_a_bases_connect_sets_is_set(alias: str, one: str) -> None:
    """D6, S6: for each query of each wrapper."""
    first, second = wrappers(made_from(alias, SettingInConnect), one, 2)
    for db in (first, second, first, second):
        assert value(db, "SHOW statement_timeout") == "77s"
    first.close()
    second.close()
