"""R10, F8: what psycopg_pool promises of a pool stays true, beside stock."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg_pool
import pytest
from django.db import OperationalError, connections
from django.db.transaction import atomic
from faults import PLAIN, extra_alias
from helpers import DEADLINE, backend_pid, let_pass, run_in_thread, wait_until
from interrupting import EVERY, SAMPLE, Hit, first_of, interrupt
from tcp_proxy import Proxy

pytest_plugins = ["fix_faults"]

BOTH = pytest.mark.parametrize("engine", ["stock_native", "native"])
#: Of how many moments one is visited: see process/test_interruptions_by_bytecode.py.
FEWER = min(EVERY, 7)

POOLED = pytest.mark.parametrize("engine", ["native", "dj"])

#: Well under this an answer must come that needs no waiting.
AT_ONCE = 2.0


def named(engine: str, size: int, **pool: Any) -> dict[str, Any]:
    """Return options that let the server tell the connections of this test."""
    options: dict[str, Any] = {"application_name": f"promised_{engine}"}
    if engine.endswith("native"):
        options["pool"] = {"min_size": size, "max_size": size, "timeout": 5, **pool}
    return options


def processes(observer: Any, engine: str) -> set[int]:
    """Return which server processes the test's pool has, by the server's word."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return {pid for (pid,) in observer.execute(query, [f"promised_{engine}"]).fetchall()}


def query(alias: str) -> int:
    """Run a request of one query; return the server process."""
    try:
        return backend_pid(alias)
    finally:
        connections[alias].close()


@contextmanager
def many_at_once(alias: str, count: int) -> Iterator[list[Any]]:
    """Give that many cursors of requests that run at the same time."""
    with ExitStack() as stack:
        cursors = []
        for _ in range(count):
            wrapper = connections[alias].copy()
            stack.callback(wrapper.close)
            cursors.append(stack.enter_context(wrapper.cursor()))
        yield cursors


def met_at_once(alias: str, count: int) -> set[int]:
    """Return the server processes that so many requests meet at the same time."""
    with many_at_once(alias, count) as cursors:
        return {ask(cursor, "SELECT pg_backend_pid()") for cursor in cursors}


def ask(cursor: Any, question: str) -> Any:
    cursor.execute(question)
    return cursor.fetchone()[0]


def die(cursor: Any) -> None:
    """Let the server end the connection that is in use."""
    with pytest.raises(OperationalError):
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


# ##### max_lifetime #####

LIFETIME = 1.0
LATENESS = 1.0
AGE = (
    "SELECT extract(epoch FROM clock_timestamp() - backend_start)::float "
    "FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)


def ages(alias: str) -> list[float]:
    """Return how old the four connections are that a burst gets, some past Django."""
    past_django = 2 if alias.endswith("native") else 0
    query(alias)  # which opens the pool
    with ExitStack() as stack:
        cursors = []
        for _ in range(past_django):
            pool: Any = connections[alias].pool  # type: ignore[attr-defined]
            cursors.append(stack.enter_context(pool.connection()).cursor())
        cursors += stack.enter_context(many_at_once(alias, 4 - past_django))
        return [ask(cursor, AGE) for cursor in cursors]


@POOLED
def test_a_burst_meets_no_connection_beyond_its_lifetime(
    engine: str, observer: Any
) -> None:
    """R10: though single queries leave all but one alone, for as long as they come."""
    changes: dict[str, Any] = {"POOL_OPTIONS": {"RECYCLE": LIFETIME}}
    if engine == "native":
        changes = {"OPTIONS": named(engine, 4, max_lifetime=LIFETIME)}
    with (
        extra_alias(f"aging_{engine}", engine, size=4, **changes) as name,
        extra_alias(f"aging_stock_{engine}", f"stock_{engine}", size=4, **changes) as stock,
    ):
        both = (name, stock)
        assert all(len(ages(each)) == 4 for each in both)
        began = time.monotonic()
        wait_until(
            lambda: (
                all(map(query, both))
                and time.monotonic() - began > LIFETIME + LATENESS + 0.5
            ),
            "single queries have come for long enough",
        )
        assert max(ages(stock)) < LIFETIME + LATENESS
        assert max(ages(name)) < LIFETIME + LATENESS


# ##### A lost connection is replaced once #####


@pytest.mark.parametrize(
    ("engine", "ends"),
    [("native", "the cursor"), ("native", "the request"), ("dj", "the request")],
)
def test_a_broken_connection_is_replaced_once_whatever_its_checkin_meets(
    engine: str, ends: str, observer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """R10: `max_size` 2 is two server processes, also after many interruptions."""
    caplog.set_level("CRITICAL", "psycopg.pool")  # a record of it would keep it alive
    size, found = 2, ""
    hit: Hit | None = None
    with extra_alias(
        f"broken_{engine}", engine, size=size, OPTIONS=named(engine, size)
    ) as name:
        original, moment = connections[name], first_of(FEWER)

        def is_as_large_as_it_may_be() -> bool:
            count = len(processes(observer, engine))
            # SQLAlchemy makes another when somebody asks for it.
            return count == size if engine == "native" else count <= size

        while (hit is None or hit) and not found:
            wrapper: Any = original.copy()
            connections[name] = wrapper
            cursor = wrapper.cursor()
            die(cursor)
            hit = interrupt(moment, cursor.close if ends == "the cursor" else wrapper.close)
            wrapper.close()
            del wrapper, cursor
            connections[name] = original
            gc.collect()
            try:
                wait_until(is_as_large_as_it_may_be, "the pool has its size")
            except AssertionError:
                count = len(processes(observer, engine))
                found = f"interrupted at {hit}: {count} server processes ({SAMPLE})"
            moment += FEWER
        assert not found
        assert moment > 20, "nothing was interrupted"
        assert len(met_at_once(name, size)) == size
        let_pass(0.3)
        assert len(processes(observer, engine)) == size


# ##### get_stats() #####


def numbers(pool: Any) -> dict[str, int]:
    """Return the pool's numbers of what may go wrong, and of its size at rest."""
    wait_until(
        lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"],
        "the pool is at rest",
    )
    stats = pool.get_stats()
    names = (
        *("pool_size", "pool_available", "requests_waiting", "requests_errors"),
        *("returns_bad", "connections_num", "connections_errors", "connections_lost"),
    )
    return {each: stats.get(each, 0) for each in names}


def clean(size: int) -> dict[str, int]:
    return {
        "pool_size": size,
        "pool_available": size,
        "requests_waiting": 0,
        "requests_errors": 0,
        "returns_bad": 0,
        "connections_num": size,
        "connections_errors": 0,
        "connections_lost": 0,
    }


@BOTH
@pytest.mark.parametrize("is_cold", [False, True])
def test_the_numbers_of_a_busy_pool_are_true(
    engine: str, is_cold: bool, proxy: Proxy
) -> None:
    """R10: eight threads and two connections, none of which fails."""
    threads, rounds = 8, 25
    with extra_alias(
        f"counted_{engine}",
        engine,
        timeout=20,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
    ) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        asked = threads * rounds
        if not is_cold:
            met_at_once(name, 2)
            asked += 2
        start = threading.Barrier(threads + 1)

        def work() -> None:
            start.wait(DEADLINE)
            for _ in range(rounds):
                with atomic(using=name):
                    query_of_a_request(name)
                connections[name].close()

        with ThreadPoolExecutor(threads) as executor:
            with proxy.held_back():
                working = [executor.submit(work) for _ in range(threads)]
                start.wait(DEADLINE)
                let_pass(0.2)
            for each in working:
                each.result()
        assert numbers(pool) == clean(2)
        stats = pool.get_stats()
        assert stats["requests_num"] == asked
        assert threads - 2 <= stats["requests_queued"] <= asked


def query_of_a_request(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


@BOTH
def test_who_has_waited_is_counted_once_and_for_as_long(engine: str) -> None:
    """R10: six threads wait for two connections, for a fifth of a second at least."""
    threads = 6
    with extra_alias(f"queued_{engine}", engine) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        met_at_once(name, 2)
        numbers(pool)
        before = pool.get_stats()
        with ThreadPoolExecutor(threads) as executor:
            with many_at_once(name, 2):
                waiting = [executor.submit(query, name) for _ in range(threads)]
                wait_until(
                    lambda: pool.get_stats()["requests_waiting"] == threads, "all wait"
                )
                let_pass(0.2)
            for each in waiting:
                each.result()
        assert numbers(pool) == clean(2)
        after = pool.get_stats()

        def counted(what: str) -> int:
            return int(after[what] - before.get(what, 0))

        assert counted("requests_num") == threads + 2
        assert counted("requests_queued") == threads
        assert counted("requests_wait_ms") >= threads * 200


@BOTH
def test_who_has_waited_in_vain_is_counted_once(engine: str) -> None:
    """R10: one error for one request that was not served."""
    with extra_alias(f"vain_{engine}", engine, size=1, timeout=0.2) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        query(name)
        with many_at_once(name, 1), pytest.raises(OperationalError):
            query(name)
        query(name)
        assert numbers(pool) == {**clean(1), "requests_errors": 1}
        assert pool.get_stats()["requests_num"] == 4


@BOTH
def test_a_connection_that_died_in_use_is_counted_as_returned(engine: str) -> None:
    """R10: as `returns_bad`, once; the pool makes another."""
    with extra_alias(f"died_{engine}", engine, size=1) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        with many_at_once(name, 1) as (cursor,):
            die(cursor)
        assert numbers(pool) == {**clean(1), "returns_bad": 1, "connections_num": 2}
        assert pool.get_stats()["requests_num"] == 1


@BOTH
def test_a_connection_that_died_idle_is_counted_as_lost(engine: str, observer: Any) -> None:
    """R10, F2: it was not returned like that, and the request that met it was one."""
    with extra_alias(f"lost_{engine}", engine, size=1, CONN_HEALTH_CHECKS=True) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        pid = query(name)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert query(name) != pid
        assert numbers(pool) == {**clean(1), "connections_lost": 1, "connections_num": 2}
        assert pool.get_stats()["requests_num"] == 2


# ##### drain(), resize(), max_waiting #####


@BOTH
@pytest.mark.skipif(
    not hasattr(psycopg_pool.ConnectionPool, "drain"),
    reason="this psycopg_pool has no drain()",
)
def test_a_drained_pool_has_other_connections(engine: str, observer: Any) -> None:
    """R10: those that were idle at once, the one in use when it comes back."""
    with extra_alias(f"drained_{engine}", engine, OPTIONS=named(engine, 2)) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        before = met_at_once(name, 2)
        with many_at_once(name, 1) as (cursor,):
            pid = ask(cursor, "SELECT pg_backend_pid()")
            pool.drain()
            assert ask(cursor, "SELECT pg_backend_pid()") == pid
        assert not met_at_once(name, 2) & before
        assert numbers(pool) == {**clean(2), "connections_num": 4}
        wait_until(
            lambda: (
                len(processes(observer, engine)) == 2
                and not processes(observer, engine) & before
            ),
            "only the new ones are left",
        )


@BOTH
def test_a_pool_that_is_resized_grows_and_shrinks(engine: str, observer: Any) -> None:
    """R10: to its new size, and not beyond it."""
    with extra_alias(
        f"resized_{engine}", engine, OPTIONS=named(engine, 2, timeout=0.3, max_idle=0.3)
    ) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        assert len(met_at_once(name, 2)) == 2
        pool.resize(2, 4)
        assert len(met_at_once(name, 4)) == 4
        with pytest.raises(OperationalError):
            met_at_once(name, 5)
        assert len(processes(observer, engine)) <= 4
        pool.resize(1, 1)
        wait_until(
            lambda: bool(query(name)) and len(processes(observer, engine)) == 1,
            "what is not needed is gone",
        )
        with pytest.raises(OperationalError):
            met_at_once(name, 2)
        assert numbers(pool)["pool_size"] == 1


@BOTH
def test_a_line_that_is_full_takes_nobody(engine: str) -> None:
    """R10: `max_waiting` refuses at once, and counts it as an error."""
    with extra_alias(f"full_{engine}", engine, OPTIONS=named(engine, 1, max_waiting=1)) as (
        name
    ):
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        query(name)
        with ThreadPoolExecutor(1) as executor:
            with many_at_once(name, 1):
                waiting = executor.submit(query, name)
                wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "one waits")
                with answers_at_once(), pytest.raises(OperationalError):
                    query(name)
            waiting.result()
        assert numbers(pool) == {**clean(1), "requests_errors": 1}


@BOTH
def test_a_pool_that_gives_up_says_so(engine: str, proxy: Proxy) -> None:
    """R10: it calls `reconnect_failed`, and connects again when somebody asks."""
    told: list[Any] = []
    options = named(engine, 1, reconnect_timeout=0.2, reconnect_failed=told.append)
    with extra_alias(
        f"given_up_{engine}",
        engine,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS={**PLAIN, **options},
    ) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        with many_at_once(name, 1) as (cursor,):
            proxy.refuse()
            die(cursor)
        wait_until(lambda: bool(told), "it has given up")
        assert told == [pool]
        assert pool.get_stats()["pool_size"] == 0
        proxy.accept()
        assert query(name)
        assert numbers(pool)["pool_size"] == 1


# ##### F8: a pool that somebody closed #####


@contextmanager
def answers_at_once() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < AT_ONCE


def close_the_pool(alias: str) -> None:
    """Close it as anybody can who gets hold of it."""
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool_container.get(alias).dispose()
    else:
        connections[alias].pool.close()  # type: ignore[attr-defined]


@POOLED
@pytest.mark.parametrize("asks", ["the same thread", "another thread"])
def test_a_closed_pool_is_replaced_at_once(engine: str, asks: str) -> None:
    """F8: the next query has a connection of another pool."""
    with extra_alias(f"closed_{engine}", engine) as name:
        pid = backend_pid(name)
        for _ in range(2):
            close_the_pool(name)
            with answers_at_once():
                if asks == "the same thread":
                    found = backend_pid(name)
                else:
                    found = run_in_thread(lambda: backend_pid(name))
            assert found != pid
            pid = found


def test_a_pool_that_is_closed_in_the_midst_of_a_block_lets_it_end(observer: Any) -> None:
    """F8: what is out is closed when it comes back; the request goes on with another."""
    options = named("native", 2)
    with extra_alias("closed_early_native", "native", OPTIONS=options) as name:
        with atomic(using=name):
            pid = backend_pid(name)
            close_the_pool(name)
            assert backend_pid(name) == pid
        with answers_at_once():
            assert backend_pid(name)
        wait_until(lambda: pid not in processes(observer, "native"), "it was closed")


def test_who_waits_for_a_pool_that_is_closed_is_answered_at_once() -> None:
    """F8: with a connection of another pool, or with an error, as on stock."""
    with extra_alias("awaited_native", "native", size=1) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]

        def wait() -> None:
            try:
                with suppress(OperationalError):
                    query(name)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(2) as executor, many_at_once(name, 1):
            waiting = [executor.submit(wait) for _ in range(2)]
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 2, "both wait")
            pool.close()
            for each in waiting:
                each.result(AT_ONCE)


# ##### A pool that has not connected yet #####


@BOTH
def test_who_asked_a_cold_pool_first_is_served_first(engine: str, proxy: Proxy) -> None:
    """R10: twelve ask before it has connected; six that come later, again and again."""
    old, new = 12, 6
    turns: list[str] = []
    has_connected, all_served = threading.Event(), threading.Event()

    def take_a_turn(name: str, who: str) -> None:
        try:
            with connections[name].cursor() as cursor:
                turns.append(who)
                has_connected.set()
                cursor.execute("SELECT pg_sleep(0.02)")
        finally:
            connections.close_all()

    def come_later(name: str) -> None:
        assert has_connected.wait(DEADLINE)
        while not all_served.is_set():
            take_a_turn(name, "new")

    with extra_alias(
        f"cold_{engine}",
        engine,
        timeout=3,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
    ) as name:
        pool: Any = connections[name].pool  # type: ignore[attr-defined]
        with ThreadPoolExecutor(old + new) as executor:
            with proxy.held_back():
                first = [executor.submit(take_a_turn, name, "old") for _ in range(old)]
                later = [executor.submit(come_later, name) for _ in range(new)]
                wait_until(
                    lambda: pool.get_stats()["requests_waiting"] >= old, "the old wait"
                )
                let_pass(0.2)
            errors = [each.exception() for each in first]
            all_served.set()
            errors += [each.exception() for each in later]
        assert errors == [None] * (old + new)
        last = max(turn for turn, who in enumerate(turns) if who == "old")
        # Two are served at a time, so whose turn it was may be noted a little late.
        assert turns[:last].count("new") <= 2
        stats = pool.get_stats()
        assert stats.get("requests_errors", 0) == 0
        assert stats["requests_num"] == len(turns)
