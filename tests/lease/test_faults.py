"""Contract F2 to F6: what servers, networks, threads and people do to a pool."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from django.db import Error, OperationalError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as StockWrapper
from faults import PLAIN, POOLED, census, extra_alias
from helpers import backend_pid, has_gil, installed, wait_until
from psycopg_pool import ConnectionPool
from second_server import HOST, PASSWORD, USER, Server, free_port
from tcp_proxy import Proxy

from django_pg_real_pool import make_release_backend, pin_connection, pool_status
from django_pg_real_pool._lease.facts import Debt

pytest_plugins = ("fix_faults",)

LOGGER = "django_pg_real_pool"


def kill(observer: Any, *pids: int) -> None:
    """End server processes, and wait until they are gone."""
    for pid in pids:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def select_one(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def in_thread(function: Callable[[], None], name: str = "worker") -> threading.Thread:
    """Run `function` in a thread that leaves its connections as they are."""
    thread = threading.Thread(target=function, name=name)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return thread


def is_at_rest(alias: str, size: int = 1) -> None:
    wait_until(
        lambda: census(alias) == (size, 0), f"{alias} is at rest, but {census(alias)}"
    )


# ##### F2: a connection that is dead already #####


def test_killed_backend_costs_no_query(proxied: str, proxy: Proxy, observer: Any) -> None:
    """F2: what the server closed is noticed at the checkout, and replaced."""
    pid = backend_pid(proxied)
    kill(observer, pid)
    wait_until(lambda: not proxy.open_links, "the news has passed the proxy")

    assert backend_pid(proxied) != pid
    is_at_rest(proxied)


def test_killed_backend_costs_no_transaction(
    proxied: str, proxy: Proxy, observer: Any
) -> None:
    """F2: nor does it cost the first statement of a block."""
    pid = backend_pid(proxied)
    kill(observer, pid)
    wait_until(lambda: not proxy.open_links, "the news has passed the proxy")

    with transaction.atomic(using=proxied):
        assert backend_pid(proxied) != pid


def test_all_killed_backends_cost_no_query(alias: str, observer: Any) -> None:
    """F2: a pool full of dead connections, as after a failover, is worked through."""
    size = 4
    with extra_alias(f"full_{alias}", alias, size=size) as name:
        wrappers = [connections[name].copy() for _ in range(size)]
        cursors = [wrapper.cursor() for wrapper in wrappers]
        pids = set()
        for cursor in cursors:
            cursor.execute("SELECT pg_backend_pid()")
            pids.add(cursor.fetchone()[0])
        for cursor in cursors:
            cursor.close()
        assert len(pids) == size
        kill(observer, *pids)

        seen = {backend_pid(name) for _ in range(2 * size)}

        assert not seen & pids
        wait_until(lambda: census(name).in_use == 0, "nothing is in use")


def test_half_closed_socket_costs_no_query(proxied: str, proxy: Proxy) -> None:
    """F2: a proxy or a failover that hung up is seen on the socket."""
    before = len(proxy.links)
    proxy.half_close()

    select_one(proxied)

    assert len(proxy.links) == before + 1


def test_reset_socket_costs_no_query(proxied: str, proxy: Proxy) -> None:
    """F2: so is a connection that was reset."""
    proxy.drop()

    select_one(proxied)
    is_at_rest(proxied)


def test_connection_that_went_silent_while_idle_is_replaced(
    alias: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: beyond CHECK_AFTER_IDLE a firewall's black hole costs a check, no query."""
    monkeypatch.setattr("django_pg_real_pool._drivers.psycopg3.CHECK_TIMEOUT", 0.2)
    with extra_alias(
        f"silent_{alias}",
        alias,
        size=1,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
        RELEASE_OPTIONS={"CHECK_AFTER_IDLE": 0.01},
    ) as name:
        select_one(name)
        is_at_rest(name)
        proxy.black_hole()
        last_used = time.monotonic()
        wait_until(lambda: time.monotonic() - last_used > 0.05, "the window is over")

        # A query into the black hole would wait for the network's own limits.
        rescue = threading.Timer(3, proxy.drop)
        rescue.start()
        select_one(name)

        assert rescue.is_alive(), "the query waited until the link was cut"
        rescue.cancel()
        is_at_rest(name)


def test_notice_to_an_idle_connection_is_no_reason_to_replace_it(
    alias: str, observer: Any
) -> None:
    """F2: bytes that nobody asked for mean a closer look, not the end."""
    with extra_alias(f"listening_{alias}", alias, size=1) as name:
        with pin_connection(name) as wrapper:
            pid = backend_pid(name)
            wrapper.connection.cursor().execute("LISTEN heard")
            # As a configuration would: the connection goes back with the session it has.
            wrapper._lease.debt = Debt.NOTHING
        observer.execute("NOTIFY heard")
        observer.execute("SELECT pg_sleep(0)")

        assert backend_pid(name) == pid


def test_idle_connection_is_checked_by_one_round_trip(alias: str, proxy: Proxy) -> None:
    """F2: a live connection that was idle for long costs one round trip, and is kept."""
    with extra_alias(
        f"checked_{alias}",
        alias,
        size=1,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
        RELEASE_OPTIONS={"CHECK_AFTER_IDLE": 0},
    ) as name:
        pid = backend_pid(name)
        is_at_rest(name)
        last_used = time.monotonic()
        wait_until(lambda: time.monotonic() > last_used, "the clock has moved")
        before = proxy.round_trips

        assert backend_pid(name) == pid

        assert proxy.round_trips - before == 2


@pytest.mark.parametrize("option", [{}, {"CONN_HEALTH_CHECKS": True}, {"PRE_PING": True}])
def test_one_query_is_one_round_trip(
    alias: str, proxy: Proxy, option: dict[str, bool]
) -> None:
    """C1, F2: with the pools' own checks switched on as well."""
    if "PRE_PING" in option:
        changes: dict[str, Any] = {"POOL_OPTIONS": option}
    else:
        changes = option
    with extra_alias(
        f"counted_{alias}",
        alias,
        size=1,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
        **changes,
    ) as name:
        select_one(name)
        connections[name].close()
        is_at_rest(name)
        before = proxy.round_trips

        for _ in range(20):
            select_one(name)

        assert proxy.round_trips - before == 20


def test_statement_on_the_wire_fails_and_the_next_one_works(
    proxied: str, observer: Any
) -> None:
    """F2, R3: what may fail is the statement that was being run, and nothing after it."""
    pid = backend_pid(proxied)
    with (
        pytest.raises(OperationalError, match=r"terminat|closed"),
        connections[proxied].cursor() as cursor,
    ):
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert backend_pid(proxied) != pid
    is_at_rest(proxied)


def test_connection_cut_in_a_transaction_is_not_given_out_again(
    proxied: str, proxy: Proxy
) -> None:
    """F2, R3: the block fails, the pool gets its connection back, the next block works."""

    @transaction.atomic(using=proxied)
    def block() -> None:
        select_one(proxied)
        proxy.drop()
        select_one(proxied)

    with pytest.raises(OperationalError):
        block()

    with transaction.atomic(using=proxied):
        select_one(proxied)
    is_at_rest(proxied)


# ##### F3: threads that died #####


def test_connection_of_a_dead_thread_comes_back(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F3: within a second, and a warning says whose it was and what held it."""
    with extra_alias(f"dead_{alias}", alias, size=1) as name:
        kept = []  # as a local would be that outlives its thread

        def die() -> None:
            wrapper = connections[name]
            cursor = wrapper.cursor()
            cursor.execute("SELECT 1")
            kept.extend([wrapper, cursor])

        with caplog.at_level(logging.WARNING, LOGGER):
            in_thread(die, "short of life")
            ended = time.monotonic()
            is_at_rest(name)
            assert time.monotonic() - ended < 1

        assert "'short of life'" in caplog.text
        assert "open cursor" in caplog.text
        kept.clear()


def test_transaction_of_a_dead_thread_is_rolled_back(alias: str, observer: Any) -> None:
    """F3: nothing of it is committed, and the next user is in no transaction."""
    with extra_alias(f"dead_{alias}", alias, size=1) as name:
        kept = []

        def die() -> None:
            block = transaction.atomic(using=name)
            block.__enter__()
            with connections[name].cursor() as cursor:
                cursor.execute("INSERT INTO item (name) VALUES ('of the dead')")
            kept.extend([connections[name], block])

        in_thread(die)
        is_at_rest(name)

        assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)
        with connections[name].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM item")
            assert cursor.fetchone() == (0,)
        kept.clear()


def test_dead_thread_on_a_dead_network_does_not_stop_the_reaper(
    alias: str, proxy: Proxy
) -> None:
    """F3: giving back what hangs does not keep other threads' connections waiting."""
    kept = []

    def die(name: str) -> None:
        block = transaction.atomic(using=name)
        block.__enter__()
        select_one(name)
        kept.extend([connections[name], block])

    changes: dict[str, Any] = {
        "HOST": "127.0.0.1",
        "PORT": proxy.port,
        "OPTIONS": PLAIN,
    }
    with (
        extra_alias(f"hanging_{alias}", alias, size=1, **changes) as hanging,
        extra_alias(f"dead_{alias}", alias, size=1) as dead,
    ):
        in_thread(lambda: die(hanging))
        proxy.black_hole()
        in_thread(lambda: die(dead))

        is_at_rest(dead)
        is_at_rest(hanging)
        kept.clear()


def test_threads_that_died_do_not_exhaust_the_pool(alias: str) -> None:
    """F3: more of them than the pool has connections, one after another."""
    with extra_alias(f"dead_{alias}", alias, size=2) as name:
        kept = []

        def die() -> None:
            connections[name].ensure_connection()
            kept.append(connections[name])

        for _ in range(5):
            in_thread(die)

        select_one(name)
        kept.clear()


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_what_is_collected_together_comes_back_once(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F3, R7: both the wrapper and its connection see to it that the pool is complete."""
    caplog.set_level("CRITICAL")  # a record would keep the connection alive
    with extra_alias(f"garbage_{alias}", alias, size=2) as name:
        wrapper: Any = connections[name]
        pool = wrapper.pool
        kept = []

        def die() -> None:
            connections[name].ensure_connection()
            kept.append(connections[name])

        for _ in range(3):
            in_thread(die)
            kept.clear()
            gc.collect()
            wait_until(lambda: census(name) == (2, 0), "the connection is replaced")
        pool.check()
        wait_until(lambda: census(name) == (2, 0), "the pool is as it was")
        assert len(pool._pool) == 2


# ##### F4: an exhausted pool #####


@contextmanager
def busy_thread(name: str, begin: Callable[[], Any]) -> Iterator[None]:
    """Let a thread hold what `begin()` returns for as long as the block."""
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        held = begin()
        ready.set()
        done.wait(10)
        held.close()

    thread = threading.Thread(target=hold, name=name)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_exhausted_pool_says_who_holds_what_and_where(alias: str) -> None:
    """F4: alias, seconds, census; and per lease the thread, its holds, for how long, where."""
    with extra_alias(f"small_{alias}", alias, size=1, timeout=0.3) as name:
        with (
            busy_thread("night shift", lambda: connections[name].cursor()),
            pytest.raises(OperationalError) as caught,
        ):
            connections[name].cursor()

        text = str(caught.value)
        assert text.startswith(
            f"couldn't get a connection for database alias {name!r} in 0.3"
        )
        assert "in use 1" in text
        assert "idle 0" in text
        assert "thread 'night shift' for 0." in text
        assert "(open cursor)" in text
        if has_gil():  # else no other thread can be looked into
            assert "(open cursor), now at " in text
            assert "in hold" in text  # the function of this file that the thread is in
        select_one(name)


@pytest.mark.parametrize("alias", POOLED, indirect=True)
def test_exhausted_pool_inside_a_block_leaves_a_usable_wrapper(alias: str) -> None:
    """F4, A4: the statement fails, the block is rolled back, the next one works."""
    with extra_alias(f"small_{alias}", alias, size=1, timeout=0.2) as name:
        with (
            busy_thread("other", lambda: connections[name].cursor()),
            pytest.raises(OperationalError, match="couldn't get a connection"),
            transaction.atomic(using=name),
        ):
            select_one(name)

        with transaction.atomic(using=name):
            select_one(name)


def test_pool_status_tells_of_each_lease(alias: str) -> None:
    """P3, F4: the census, and whose connections are out."""
    with extra_alias(f"shown_{alias}", alias, size=2) as name:
        with (
            busy_thread("first", lambda: connections[name].cursor()),
            busy_thread("second", lambda: connections[name].cursor()),
        ):
            status = pool_status(name)

        assert [lease.thread for lease in status.leases] == ["first", "second"]
        assert {lease.holds for lease in status.leases} == {("open cursor",)}
        if has_gil():
            assert all("in hold" in str(lease.where) for lease in status.leases)
        else:
            assert {lease.where for lease in status.leases} == {None}
        assert pool_status(name).leases == ()


# ##### F5: a pool that can't connect #####


def settings_of(server: Server, **changes: Any) -> dict[str, Any]:
    return {
        "HOST": HOST,
        "PORT": server.port,
        "USER": USER,
        "PASSWORD": PASSWORD,
        "NAME": "postgres",
        **changes,
    }


CANT_CONNECT = {
    "wrong password": ({"PASSWORD": "guessed"}, "password authentication failed"),
    "no such database": ({"NAME": "nowhere"}, 'database "nowhere" does not exist'),
    "refused port": ({}, "refused"),
}


@pytest.mark.parametrize("cause", CANT_CONNECT)
def test_reason_is_told_as_fast_as_without_a_pool(
    alias: str, second_server: Server, cause: str
) -> None:
    """F5: as Django's OperationalError with the server's words, not after a timeout."""
    given, reason = CANT_CONNECT[cause]
    changes = settings_of(second_server, **given)
    if cause == "refused port":
        changes["PORT"] = free_port()
    with extra_alias(
        f"bad_{alias}", alias, timeout=30.0, connects=False, **changes
    ) as name:
        started = time.monotonic()
        with pytest.raises(OperationalError, match=reason):
            connections[name].cursor()
        first = time.monotonic() - started

        with pytest.raises(OperationalError, match=reason):
            connections[name].cursor()

        assert first < 2
        assert time.monotonic() - started < 3


def test_reason_why_no_connection_can_be_configured_is_told() -> None:
    """F5: what fails after connecting is a reason as good as a wrong password."""

    class Base(StockWrapper):
        def _configure_connection(self, connection: Any) -> bool:
            raise psycopg.OperationalError("not on a Tuesday")

    name = "unconfigured_native"
    with (
        extra_alias(name, "native", timeout=30.0, connects=False),
        installed(name, make_release_backend(Base)) as wrapper,
    ):
        started = time.monotonic()
        with pytest.raises(OperationalError, match="not on a Tuesday"):
            wrapper.cursor()
        assert time.monotonic() - started < 5


def overriding(name: str) -> Any:
    """Return an engine whose base has a method of its own in the way to Django's pool."""

    def override(self: Any, *args: Any) -> Any:
        return getattr(super(base, self), name)(*args)

    base: Any = type("Base", (StockWrapper,), {name: override, "__module__": "users.base"})
    return make_release_backend(base)


WAYS = ["get_new_connection", "get_connection_params", "_close"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cause", CANT_CONNECT)
def test_reason_is_told_through_a_base_of_ones_own(
    second_server: Server, cause: str, way: str
) -> None:
    """F5: at once, whatever the base overrides."""
    given, reason = CANT_CONNECT[cause]
    changes = settings_of(second_server, **given)
    if cause == "refused port":
        changes["PORT"] = free_port()
    name = "bad_native"
    with (
        extra_alias(name, "native", timeout=30.0, connects=False, **changes),
        installed(name, overriding(way)) as wrapper,
    ):
        started = time.monotonic()
        with pytest.raises(OperationalError, match=reason):
            wrapper.cursor()
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("way", WAYS)
def test_a_base_of_ones_own_has_the_pool_that_the_settings_say(
    second_server: Server, way: str
) -> None:
    """F4, F5, P3: it is told who holds the pool, its census, and that its server has gone."""
    name = "lost_native"
    with (
        extra_alias(name, "native", size=1, timeout=0.5, **settings_of(second_server)),
        installed(name, overriding(way)) as wrapper,
    ):
        first = backend_pid(name)
        assert pool_status(name).census.max_size == 1
        with wrapper.cursor():
            error = in_a_thread(lambda: overriding_in_a_thread(wrapper))
        assert "for database alias 'lost_native' in 0.5" in error
        assert "size 1, at most 1, in use 1" in error
        assert "Held by: thread 'MainThread'" in error
        wrapper.close_pool()
        assert backend_pid(name) != first
        second_server.stop("fast")
        try:
            with pytest.raises(OperationalError, match="can't connect to the server: conn"):
                wrapper.cursor()
        finally:
            second_server.start()


def test_a_pool_of_a_bases_own_says_what_can_be_known(caplog: Any) -> None:
    """F4, F5: why psycopg_pool can't connect, it only logs; and the message says so."""
    nowhere = f"host={HOST} port={free_port()}"
    made = ConnectionPool(nowhere, min_size=1, timeout=0.3, open=False)
    base = type("Base", (StockWrapper,), {"pool": made, "__module__": "users.base"})
    with (
        closing(made),
        installed("native", make_release_backend(base)) as wrapper,
        pytest.raises(OperationalError) as caught,
    ):
        wrapper.cursor()
    assert re.fullmatch(
        r"couldn't get a connection for database alias 'native' in 0\.\d\d s: perhaps the pool "
        r"can't connect to the server; if so, the log of psycopg\.pool says why\. pool of .*"
        r"Held by: no wrapper",
        str(caught.value),
    )
    assert "Connection refused" in caplog.text


def test_a_pool_of_a_bases_own_says_what_the_server_says() -> None:
    """F4: whatever the pool is, one attempt to connect shows why it has nothing to give."""
    port = free_port()
    made = ConnectionPool(f"host={HOST} port={port}", min_size=1, timeout=0.3, open=False)
    base = type("Base", (StockWrapper,), {"pool": made, "__module__": "users.base"})
    with (
        closing(made),
        installed("native", make_release_backend(base), HOST=HOST, PORT=port) as wrapper,
        pytest.raises(OperationalError) as caught,
    ):
        wrapper.cursor()
    assert re.search(
        r"in 0\.\d\d s: the pool can't connect to the server: connection failed: "
        rf"(?:.*{port} failed: )?Connection refused",  # an old psycopg leaves the place out
        str(caught.value),
    )


def overriding_in_a_thread(wrapper: Any) -> None:
    with installed(wrapper.alias, type(wrapper)) as another:
        another.cursor()


def test_who_has_gone_does_not_wait(alias: str, second_server: Server) -> None:
    """P3, F4: neither in the census nor in the error."""
    changes = settings_of(second_server)
    with extra_alias(f"gone_{alias}", alias, size=1, timeout=0.2, **changes) as name:
        select_one(name)
        with pin_connection(name):
            for _ in range(3):
                error = in_a_thread(lambda: select_one(name))
            assert " waiting 0" in error or "waiting" not in error
            assert not pool_status(name).census.waiting


def in_a_thread(use: Callable[[], object]) -> str:
    """Return the error that another thread gets."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(Error) as raised:
        executor.submit(use).result()
    return str(raised.value)


def test_pool_recovers_when_the_server_comes_back(
    alias: str, second_server: Server
) -> None:
    """F5, F2: nobody has to restart the process, and nobody waits long."""
    with extra_alias(f"back_{alias}", alias, **settings_of(second_server)) as name:
        select_one(name)
        second_server.stop("immediate")
        second_server.start()

        select_one(name)
        wait_until(lambda: census(name).in_use == 0, "nothing is in use")


def test_pool_that_began_without_a_server_recovers(
    alias: str, second_server: Server
) -> None:
    """F5: what failed at the first use works once there is a server."""
    with extra_alias(f"late_{alias}", alias, **settings_of(second_server)) as name:
        second_server.stop("fast")
        try:
            with pytest.raises(OperationalError):
                connections[name].cursor()
        finally:
            second_server.start()
        back = time.monotonic()

        def works() -> bool:
            try:
                select_one(name)
            except OperationalError:
                return False
            return True

        wait_until(works, "the pool has found the server")
        assert time.monotonic() - back < 2


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_long_outage_does_not_slow_the_return(alias: str, second_server: Server) -> None:
    """F5: the pool is full again within two seconds, however long the server was away.

    By itself psycopg_pool doubles the time between two attempts.
    """
    with extra_alias(
        f"long_{alias}", alias, size=2, timeout=1.0, **settings_of(second_server)
    ) as name:
        select_one(name)
        second_server.stop("fast")
        try:
            stopped = time.monotonic()
            for _ in range(2):  # both connections are found dead, and asked for again
                with pytest.raises(OperationalError, match="can't connect to the server"):
                    select_one(name)
            # By itself the pool would try after 1, 3 and 7 s.
            wait_until(lambda: time.monotonic() - stopped > 4, "it was away for 4 s")
        finally:
            second_server.start()
        back = time.monotonic()

        is_at_rest(name, size=2)
        assert time.monotonic() - back < 2
        select_one(name)


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_exhausted_pool_that_lost_its_server_says_so(
    alias: str, second_server: Server
) -> None:
    """F5: also where the pool had worked before."""
    with extra_alias(
        f"lost_{alias}", alias, size=1, timeout=0.5, **settings_of(second_server)
    ) as name:
        select_one(name)
        second_server.stop("fast")
        try:
            with pytest.raises(OperationalError, match="can't connect to the server: conn"):
                connections[name].cursor()
        finally:
            second_server.start()


# ##### Pools that somebody closed #####


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_closed_pool_is_opened_by_the_next_checkout(alias: str) -> None:
    """F2: Celery closes the pools of a prefork worker at every task boundary."""
    with extra_alias(f"celery_{alias}", alias) as name:
        for _ in range(3):
            wrapper: Any = connections[name]
            select_one(name)
            wrapper.close()
            wrapper.close_pool()

        select_one(name)


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_pool_may_be_closed_while_a_thread_has_a_connection(alias: str) -> None:
    """F2: the lease works to its end; what comes next uses a new pool."""
    with extra_alias(f"closed_{alias}", alias, size=1) as name:
        wrapper: Any = connections[name]
        with wrapper.cursor() as cursor:
            wrapper.close_pool()
            cursor.execute("SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]

        assert backend_pid(name) != pid
        is_at_rest(name)


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_threads_may_query_while_the_pool_is_being_closed(alias: str) -> None:
    """F2: whoever comes between the closing and the opening gets a connection too."""
    with extra_alias(f"closing_{alias}", alias) as name:
        errors: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                try:
                    select_one(name)
                except BaseException as error:  # noqa: BLE001 - raised below
                    errors.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            select_one(name)
            connections[name].close()
            connections[name].close_pool()  # type: ignore[attr-defined]
        done.set()
        for thread in threads:
            thread.join()

        assert errors == []


# ##### F6: leases that last #####


def test_long_lease_is_logged_when_it_ends(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F6: with what held it and where it ended."""
    options: dict[str, Any] = {"RELEASE_OPTIONS": {"WARN_HELD_AFTER": 0}}
    with (
        caplog.at_level(logging.WARNING, LOGGER),
        extra_alias(f"slow_{alias}", alias, **options) as name,
    ):
        with transaction.atomic(using=name):
            select_one(name)

        (record,) = caplog.records
        text = record.getMessage()
        assert f"a connection of database alias {name!r} was held for 0." in text
        assert "(open cursor, transaction)" in text
        assert f"{__name__.rpartition('.')[2]}.py" in text


def test_short_lease_is_not_logged(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """F6: nor is any lease unless the option is set."""
    options: dict[str, Any] = {"RELEASE_OPTIONS": {"WARN_HELD_AFTER": 60}}
    with (
        caplog.at_level(logging.WARNING, LOGGER),
        extra_alias(f"quick_{alias}", alias, **options) as quick,
        extra_alias(f"silent_{alias}", alias) as silent,
    ):
        select_one(quick)
        select_one(silent)

        assert caplog.records == []
