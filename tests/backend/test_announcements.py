"""D4: what receivers of `connection_created` set of a request is its own, everywhere.

Connections are handed over crosswise by exclusion: while a third party has one of the
two, whoever asks gets the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import pytest
from django.db import DataError, ProgrammingError, connections, transaction
from faults import PLAIN, census, extra_alias
from helpers import backend_pid, pool_of_one, wait_until
from psycopg.types import TypeInfo
from receivers import Receiver, receiving
from sessions import ask, in_another_request, pool_for_one
from tcp_proxy import Proxy
from tenants import BLUE, RED, TENANT, WAYS, Way, by_a_role, function_that_sets_it

pytest_plugins = ("fix_faults",)

T = TypeVar("T")

#: Whose request this is, as a middleware would set it.
user: ContextVar[str | None] = ContextVar("user", default=None)

USER = "SELECT current_setting('app.user', true)"


class Request:
    """A thread of its own that does one thing after another, with its own context."""

    def __init__(self, alias: str, name: str | None) -> None:
        self.alias = alias
        self._executor = ThreadPoolExecutor(1)
        self._cursors: list[Any] = []
        self.do(lambda: user.set(name))

    def do(self, function: Callable[[], T]) -> T:
        return self._executor.submit(function).result(10)

    def take(self) -> int:
        """Open a cursor, so that a connection is taken and kept; return its process."""

        def open_one() -> int:
            cursor = connections[self.alias].cursor()
            self._cursors.append(cursor)
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

        return self.do(open_one)

    def give(self) -> None:
        """Close the cursor: the connection goes back to the pool."""
        self.do(lambda: self._cursors.pop().close())

    def sees(self) -> tuple[int, str | None]:
        """Return the server process of one more query, and the user that it sees."""

        def look() -> tuple[int, str | None]:
            with connections[self.alias].cursor() as cursor:
                cursor.execute(f"SELECT pg_backend_pid(), ({USER})")
                pid, seen = cursor.fetchone()
                return int(pid), seen or None

        return self.do(look)

    def end(self) -> None:
        self.do(lambda: connections[self.alias].close())

    def leave(self) -> None:
        self.do(connections.close_all)
        self._executor.shutdown()


class Three(NamedTuple):
    """Two requests, and a third party that takes a connection out of their way."""

    first: Request
    second: Request
    third: Request


@contextmanager
def three_requests(alias: str, *names: str | None) -> Iterator[Three]:
    requests = [Request(alias, name) for name in names]
    try:
        yield Three(*requests)
    finally:
        for request in requests:
            request.leave()


def cross(three: Three) -> tuple[int, int]:
    """Let the two take both connections and give them back, then each the other's.

    Each has a cursor on the other's connection in the end.
    """
    first, second, third = three
    one, other = first.take(), second.take()
    assert one != other
    first.give()
    assert third.take() == one
    second.give()
    assert first.take() == other
    third.give()
    assert second.take() == one
    return one, other


@pytest.fixture
def pair(alias: str) -> Iterator[str]:
    """Each engine in turn, with a pool of two of its own."""
    with extra_alias(f"pair_{alias}", alias) as name:
        yield name


@pytest.fixture
def one(alias: str) -> Iterator[str]:
    """Each engine in turn, with room for one connection: the next request gets it."""
    with pool_for_one(alias) as name:
        yield name


# ##### Receivers #####


def through_a_cursor(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', %s, false)", [user.get()])


def through_a_statement(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.execute(f"SET app.\"user\" = '{user.get()}'")


def through_the_driver(db: Any) -> None:
    if user.get() is not None:
        db.connection.execute("SELECT set_config('app.user', %s, false)", [user.get()])


def through_a_cursor_of_the_drivers(db: Any) -> None:
    if user.get() is not None:
        with db.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', %s, false)", [user.get()])


def through_many_at_once(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.executemany(
                "SELECT set_config(%s, %s, false)",
                [["app.other", "always the same"], ["app.user", user.get()]],
            )


def through_callproc(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.callproc("set_config", ["app.user", user.get(), False])


def through_a_portal(db: Any) -> None:
    if user.get() is not None:
        with db.chunked_cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', %s, false)", [user.get()])
            cursor.fetchall()


def through_a_stream(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            list(cursor.stream("SELECT set_config('app.user', %s, false)", [user.get()]))


def through_a_copy(db: Any) -> None:
    if user.get() is not None:
        query = f"SELECT set_config('app.user', '{user.get()}', false)"
        with (
            db.connection.cursor() as cursor,
            cursor.copy(statement=f"COPY ({query}) TO STDOUT") as copy,
        ):
            list(copy)


def in_a_block(db: Any) -> None:
    if user.get() is not None:
        with transaction.atomic(using=db.alias):
            through_a_cursor(db)


RECEIVERS = [
    through_a_cursor,
    through_a_statement,
    through_the_driver,
    through_a_cursor_of_the_drivers,
    through_many_at_once,
    through_callproc,
    through_a_portal,
    through_a_stream,
    through_a_copy,
    in_a_block,
]

each_receiver = pytest.mark.parametrize("receiver", RECEIVERS)


def static(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SET statement_timeout = '77s'")


def static_with_parameters(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SELECT set_config(%s, %s, false)", ["statement_timeout", "77s"])


STATIC = [static, static_with_parameters]


# ##### Each request sees its own #####


@each_receiver
def test_requests_that_get_each_others_connections_see_their_own_setting(
    pair: str, receiver: Receiver
) -> None:
    """D4: the receiver is heard again by a connection that has heard another request."""
    with receiving(pair, receiver), three_requests(pair, "a", "b", "c") as three:
        one, other = cross(three)
        assert three.first.sees() == (other, "a")
        assert three.second.sees() == (one, "b")


@each_receiver
def test_requests_in_turn_see_their_own_setting(one: str, receiver: Receiver) -> None:
    """D4: on the same connection, query by query, without anybody's close() between."""
    with receiving(one, receiver), three_requests(one, "a", "b", "c") as three:
        for _ in range(3):
            for request, name in zip(three, "abc", strict=True):
                assert request.sees()[1] == name


def test_a_block_on_anothers_connection_sees_its_own_setting(pair: str) -> None:
    """D4: also where the connection is taken late, within nested blocks."""

    def in_nested_blocks() -> tuple[int, str]:
        with (
            transaction.atomic(using=pair),
            transaction.atomic(using=pair),
            connections[pair].cursor() as cursor,
        ):
            cursor.execute(f"SELECT pg_backend_pid(), ({USER})")
            pid, seen = cursor.fetchone()
            return int(pid), seen

    with (
        receiving(pair, through_a_cursor),
        three_requests(pair, "a", "b", "c") as three,
    ):
        one, other = three.first.take(), three.second.take()
        three.first.give()
        assert three.third.take() == one
        three.second.give()
        assert three.first.do(in_nested_blocks) == (other, "a")
        assert three.second.do(in_nested_blocks) == (other, "b")


@each_receiver
def test_who_sets_nothing_inherits_nothing(one: str, receiver: Receiver) -> None:
    """D4: another request's setting never stands in for one's own, nor for none."""
    with receiving(one, receiver):
        for name, seen in (("a", "a"), (None, None), ("b", "b"), (None, None)):
            with three_requests(one, name, None, None) as three:
                assert three.first.sees()[1] == seen
                assert three.first.sees()[1] == seen


@each_receiver
def test_who_sets_nothing_inherits_nothing_crosswise(pair: str, receiver: Receiver) -> None:
    """D4: neither from a connection that heard another, and each keeps its own after."""
    with receiving(pair, receiver), three_requests(pair, "a", None, "c") as three:
        one, other = cross(three)
        assert three.first.sees() == (other, "a")
        assert three.second.sees() == (one, None)


def test_a_request_that_changes_its_user_sees_the_new_one_after_close(one: str) -> None:
    """D4: after close() the receivers are heard anew, by the connection that is there."""
    with receiving(one, through_a_cursor), three_requests(one, "a", None, None) as three:
        request = three.first
        assert request.sees()[1] == "a"
        for name in ("b", None, "a"):
            request.end()
            request.do(lambda name=name: user.set(name))  # type: ignore[misc]
            assert request.sees()[1] == name


def test_each_of_several_receivers_is_heard_again(pair: str) -> None:
    """D4: one that is static and one that is not, whichever comes first."""

    def look() -> tuple[Any, Any]:
        with connections[pair].cursor() as cursor:
            cursor.execute(f"SELECT ({USER}), current_setting('statement_timeout')")
            user, timeout = cursor.fetchone()
            return user, timeout

    with (
        receiving(pair, static, through_a_cursor, static_with_parameters),
        three_requests(pair, "a", "b", "c") as three,
    ):
        cross(three)
        assert three.first.do(look) == ("a", "77s")
        assert three.second.do(look) == ("b", "77s")


def test_what_a_request_set_itself_does_not_hide_what_receivers_set(one: str) -> None:
    """D4, S3: a connection that is cleaned has its receivers' setting, of the right user."""

    def change() -> None:
        with connections[one].cursor() as cursor:
            cursor.execute("SET app.\"user\" = 'changed'")
        assert ask(one, USER) == "changed"
        connections[one].close()

    with receiving(one, through_a_cursor), three_requests(one, "a", "b", None) as three:
        assert three.first.sees()[1] == "a"
        assert three.second.sees()[1] == "b"
        three.first.do(change)
        assert three.second.sees()[1] == "b"
        assert three.first.sees()[1] == "a"
        three.first.do(change)
        assert three.third.sees()[1] is None


# ##### Whatever receivers send #####


@pytest.fixture
def tenant_function(observer: Any) -> Iterator[None]:
    with function_that_sets_it(observer):
        yield


@pytest.mark.usefixtures("tenant_function")
@pytest.mark.parametrize("in_block", [False, True], ids=["by itself", "in a block"])
@pytest.mark.parametrize("way", WAYS)
def test_a_text_that_is_new_each_time_is_of_its_request_all_the_same(
    pair: str, way: Way, in_block: bool
) -> None:
    """D4: what is not certain to set the same is undone, and what is the session's, set."""
    numbers = count()

    def receive(db: Any) -> None:
        if user.get() is None:
            return
        with (
            transaction.atomic(db.alias) if in_block else nullcontext(),
            db.cursor() as one,
        ):
            way(one, str(user.get()), f"/* {next(numbers)} */ ")

    with receiving(pair, receive), three_requests(pair, RED, BLUE, None) as three:
        cross(three)
        for request, name in zip(three[:2], (RED, BLUE), strict=True):
            assert request.do(lambda: ask(pair, TENANT)) == name
        three.first.give()
        three.second.give()
        for _ in range(2):
            for request, expected in zip(three, (RED, BLUE, None), strict=True):
                assert request.do(lambda: ask(pair, TENANT)) == expected


@pytest.mark.usefixtures("tenant_function")
@pytest.mark.parametrize("way", WAYS)
def test_a_session_goes_on_as_it_began(pair: str, way: Way) -> None:
    """D4: also where its receivers say something else by now, on a connection of another."""

    def receive(db: Any) -> None:
        with db.cursor() as cursor:
            way(cursor, str(user.get()), "")

    with receiving(pair, receive), three_requests(pair, RED, BLUE, BLUE) as three:
        assert three.first.do(lambda: ask(pair, TENANT)) == RED
        three.first.do(lambda: user.set(BLUE))
        cross(three)
        assert three.first.do(lambda: ask(pair, TENANT)) == RED
        assert three.second.do(lambda: ask(pair, TENANT)) == BLUE


def a_failure(db: Any) -> None:
    with db.cursor() as cursor, suppress(ProgrammingError):
        cursor.execute("SELECT no_such_function()")


def a_setting_of_the_connections(db: Any) -> None:
    db.connection.read_only = user.get() == RED


@pytest.mark.parametrize("other", [a_failure, a_setting_of_the_connections])
def test_what_can_not_be_repeated_is_as_receivers_say_now(
    pair: str, other: Receiver
) -> None:
    """D4: they speak of this request, too."""

    def receive(db: Any) -> None:
        driver_connection = getattr(db.connection, "driver_connection", db.connection)
        other(SimpleNamespace(cursor=db.cursor, connection=driver_connection))
        with db.cursor() as cursor:
            cursor.execute(f"SET app.tenant = '{user.get()}'")

    def look() -> Any:
        with transaction.atomic(using=pair):
            return ask(pair, TENANT), ask(pair, "SHOW transaction_read_only")

    is_read_only = {RED: "off", BLUE: "off"}
    if other is a_setting_of_the_connections:
        is_read_only[RED] = "on"
    with receiving(pair, receive), three_requests(pair, RED, BLUE, BLUE) as three:
        assert three.first.do(look) == (RED, is_read_only[RED])
        three.first.do(lambda: user.set(BLUE))
        cross(three)
        assert three.first.do(look) == (BLUE, "off")
        assert three.second.do(look) == (BLUE, "off")


def with_factories(connection: Any) -> None:
    connection.row_factory = lambda cursor: lambda values: tuple(values)


def with_a_mode(connection: Any) -> None:
    connection.read_only = True


@pytest.mark.usefixtures("tenant_function")
@pytest.mark.parametrize("touch", [with_factories, with_a_mode])
def test_what_can_not_be_cleaned_is_not_replaced_for_ever(
    one: str, touch: Receiver
) -> None:
    """D4: a connection that is new is not better than the one before."""
    calls = count()

    def receive(db: Any) -> None:
        assert next(calls) < 40
        touch(getattr(db.connection, "driver_connection", db.connection))
        with db.cursor() as cursor:
            cursor.execute(f"SELECT set_tenant('{user.get()}-{uuid4()}')")

    with receiving(one, receive), three_requests(one, "a", "b", "c") as three:
        for _ in range(3):
            for request, name in zip(three, "abc", strict=True):
                assert request.do(lambda: ask(one, TENANT)).startswith(name)


def test_a_row_is_written_once_for_each_announcement(pair: str, observer: Any) -> None:
    """D4: it lasts, so that it is not written again with what is set again."""
    numbers = count()

    def receive(db: Any) -> None:
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [str(uuid4())])
            by_a_role(cursor, str(user.get()), "")
            cursor.execute(f"RESET ROLE; SET app.other = '{next(numbers)}'")

    with (
        receiving(pair, receive) as heard,
        three_requests(pair, RED, BLUE, RED) as three,
    ):
        cross(three)
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (len(heard),)


# ##### Types that were registered #####


@pytest.mark.parametrize("receiver", [through_a_cursor, through_the_driver])
def test_who_sets_nothing_inherits_nothing_where_types_were_registered(
    pair: str, receiver: Receiver
) -> None:
    """D4: connections that do not know a new type are set up anew, by who comes next."""

    def register() -> None:
        with connections[pair].schema_editor():
            of_wrapper: Any = connections[pair].connection
            physical = getattr(of_wrapper, "driver_connection", of_wrapper)
            TypeInfo("something", 600, 1017).register(physical)

    with (
        receiving(pair, receiver) as heard,
        three_requests(pair, "a", None, "c") as three,
    ):
        one = three.first.take()
        three.third.do(register)
        assert three.third.take() != one
        three.first.give()
        three.first.end()
        assert three.second.sees() == (one, None)
        count = len(heard)
        assert three.second.sees() == (one, None)
        assert len(heard) == count


# ##### What it costs #####


@pytest.mark.parametrize("receiver", STATIC)
def test_a_receiver_that_sets_the_same_each_time_is_heard_once_by_each_session(
    pair: str, receiver: Receiver
) -> None:
    """D4: two connections and three sessions, crosswise; more need not be said."""
    with (
        receiving(pair, receiver) as heard,
        three_requests(pair, "a", "b", "c") as three,
    ):
        cross(three)
        three.first.give()
        three.second.give()
        for _ in range(5):
            for request in three:
                request.sees()
        assert len(heard) == 3


@pytest.mark.parametrize("receiver", STATIC)
def test_a_receiver_that_sets_the_same_each_time_costs_no_round_trip(
    alias: str, proxy: Proxy, receiver: Receiver
) -> None:
    """D4, C1: beyond the one for each session; a query is one round trip."""
    with (
        extra_alias(
            f"pair_{alias}", alias, HOST="127.0.0.1", PORT=proxy.port, OPTIONS=PLAIN
        ) as name,
        receiving(name, receiver),
        three_requests(name, "a", "b", "c") as three,
    ):
        cross(three)
        three.first.give()
        three.second.give()
        wait_until(lambda: census(name).in_use == 0, "nothing is in use")
        before = proxy.round_trips
        for _ in range(5):
            for request in three:
                request.sees()
        assert proxy.round_trips - before == 15
        three.first.end()
        three.first.sees()
        three.first.sees()
        assert proxy.round_trips - before == 18


@pytest.mark.parametrize("receiver", STATIC)
def test_a_new_physical_connection_hears_the_receivers(
    one: str, observer: Any, receiver: Receiver
) -> None:
    """D4: once, whichever session gets it first."""
    with receiving(one, receiver) as heard:
        pid = backend_pid(one)
        backend_pid(one)
        assert len(heard) == 1
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert ask(one, "SHOW statement_timeout") == "77s"
        assert len(heard) == 2
        assert ask(one, "SHOW statement_timeout") == "77s"
        assert len(heard) == 2


def test_a_user_who_goes_on_alone_is_heard_once(one: str) -> None:
    """D4: a receiver that sets something of the request costs nothing if nobody comes."""
    with (
        receiving(one, through_a_cursor) as heard,
        three_requests(one, "a", "b", "c") as three,
    ):
        for _ in range(5):
            assert three.first.sees()[1] == "a"
        assert len(heard) == 1


# ##### A pool's own reset #####


def reset_all(connection: Any) -> None:
    connection.execute("RESET ALL")


def discard_all(connection: Any) -> None:
    connection.execute("DISCARD ALL")


@contextmanager
def resetting(reset: Callable[[Any], None], size: int = 1) -> Iterator[str]:
    """Make an alias whose psycopg_pool resets what comes back, in a zone of its own."""
    options = {"pool": {"min_size": size, "max_size": size, "timeout": 5, "reset": reset}}
    with extra_alias(
        "resetting_native", "native", OPTIONS=options, TIME_ZONE="Asia/Tokyo"
    ) as name:
        yield name


@pytest.mark.parametrize("reset", [reset_all, discard_all])
def test_what_a_pools_reset_wipes_is_set_again(reset: Callable[[Any], None]) -> None:
    """D4, S6, R10: the connection then counts as not set up, by receivers and Django."""
    with resetting(reset) as name, receiving(name, static):
        for _ in range(2):
            for _ in range(3):
                assert ask(name, "SHOW statement_timeout") == "77s"
                assert ask(name, "SHOW TimeZone") == "Asia/Tokyo"
                with transaction.atomic(using=name):
                    assert ask(name, "SHOW statement_timeout") == "77s"
                    assert ask(name, "SHOW TimeZone") == "Asia/Tokyo"
            connections[name].close()


@pytest.mark.parametrize("reset", [reset_all, discard_all])
def test_a_pools_reset_costs_no_connection(reset: Callable[[Any], None]) -> None:
    """R9, R10: what comes back is in autocommit, so that a reset leaves no transaction."""

    def request() -> int:
        with transaction.atomic(using=name):
            return backend_pid(name)

    with resetting(reset) as name, receiving(name, static):
        assert len({in_another_request(request) for _ in range(5)}) == 1


@pytest.mark.parametrize("reset", [reset_all, discard_all])
def test_what_a_pools_reset_wipes_is_set_again_for_the_right_user(
    reset: Callable[[Any], None],
) -> None:
    """D4: crosswise too; each session's receivers are heard by each connection."""
    with (
        resetting(reset, size=2) as name,
        receiving(name, through_a_cursor),
        three_requests(name, "a", None, "c") as three,
    ):
        one, other = cross(three)
        assert three.first.sees() == (other, "a")
        assert three.second.sees() == (one, None)
        three.first.give()
        three.second.give()
        for _ in range(3):
            assert three.first.sees()[1] == "a"
            assert three.second.sees()[1] is None
            assert three.third.sees()[1] == "c"


def test_who_only_looks_something_up_is_not_taken_for_one_that_sets(alias: str) -> None:
    """D4: Django's receiver for hstore and citext looks their types up once, and caches."""
    found: list[Any] = []

    def look_up(connection: Any) -> None:
        if not found:
            with connection.cursor() as cursor:
                cursor.execute("SELECT oid FROM pg_type WHERE typname = %s", ["hstore"])
                found.append(cursor.fetchall())

    with pool_of_one(alias), receiving(alias, look_up) as heard:
        for count in range(1, 4):
            pid = backend_pid(alias)
            connections[alias].close()
            assert len(heard) == count
        assert backend_pid(alias) == pid


# ##### What receivers write #####


@pytest.fixture
def logging_in(observer: Any) -> Iterator[None]:
    """A function on the server that sets the user, and returns it."""
    observer.execute(
        "CREATE FUNCTION log_in(name text) RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.user', name, false) $$"
    )
    yield
    observer.execute("DROP FUNCTION log_in")


def through_a_row(db: Any) -> None:
    if user.get() is not None:
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES (log_in(%s))", [user.get()])


@pytest.mark.usefixtures("logging_in")
def test_what_writing_a_row_has_set_is_not_inherited(one: str) -> None:
    """D4: a function may be called in it, of which nobody sees what it does."""
    with receiving(one, through_a_row):
        for name in ("a", None, "b", None):
            with three_requests(one, name, None, None) as three:
                assert three.first.sees()[1] == name


def into_a_temporary_table(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE IF NOT EXISTS its (name text)")
        if user.get() is not None:
            cursor.execute("DELETE FROM its")
            cursor.execute("INSERT INTO its VALUES (%s)", [user.get()])


def test_a_row_in_a_temporary_table_is_not_inherited(one: str) -> None:
    """D4: it is a part of the session."""
    with receiving(one, into_a_temporary_table):
        for name in ("a", None, "b", None):
            with three_requests(one, name, None, None) as three:
                seen = three.first.do(lambda: ask(one, "SELECT max(name) FROM its"))
                assert seen == name


# ##### Blocks of receivers #####


def in_a_block_that_may_fail(db: Any) -> None:
    with transaction.atomic(using=db.alias), db.cursor() as cursor:
        cursor.execute("SELECT 1 / %s", [0 if user.get() == "unlucky" else 1])


def test_a_receivers_block_does_not_end_an_explicit_connect(one: str) -> None:
    """P1: ensure_connection() leaves a connection, as on stock."""
    with receiving(one, in_a_block_that_may_fail):
        db = connections[one]
        db.ensure_connection()
        assert db.connection is not None
        db.close()


def test_a_receivers_block_that_fails_loses_no_transaction_of_the_user(one: str) -> None:
    """A4: the next query is as good as ever."""
    user.set("unlucky")
    with receiving(one, in_a_block_that_may_fail):
        for _ in range(2):
            with pytest.raises(DataError):
                backend_pid(one)
        user.set(None)
        assert backend_pid(one) > 0
        with transaction.atomic(using=one):
            assert backend_pid(one) > 0
        assert connections[one].connection is None


def test_a_block_that_a_receiver_leaves_open_goes_on(one: str) -> None:
    """A4: whoever sends BEGIN has begun a transaction, as on stock."""

    def begin(db: Any) -> None:
        db.connection.execute("BEGIN")

    with receiving(one, begin):
        backend_pid(one)
        db: Any = connections[one]
        assert db._lease.holds.describe() == ["transaction"]
        db.close()
