"""What greenlets do with the database, each in a process of its own.

python -m neighbours.green.programs NAME
"""

from __future__ import annotations

from . import LIBRARY, Timeout, spawn, wait  # isort: skip - it patches

import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction
from greenlet import GreenletExit, greenlet
from helpers import backend_pid, census, wait_until
from items import Item

from django_pg_real_pool import pin_connection, pool_status

#: What the pool has room for, and seconds until it gives up.
SIZE = int(os.environ["SITE_POOL_SIZE"])
TIMEOUT = float(os.environ["SITE_POOL_TIMEOUT"])

#: Seconds for which nothing else may run.
BLOCKED = 0.4

Program = Callable[[], None]
PROGRAMS: dict[str, Program] = {}


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def sleep_in_server(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def all_are_idle() -> bool:
    return census("default").in_use == 0 and not pool_status().leases


def assert_all_come_back() -> None:
    """Assert that all connections are idle, and that all can be used at once."""
    wait_until(all_are_idle, "all connections are idle")
    together = threading.Barrier(SIZE)

    def use() -> int:
        with transaction.atomic():
            pid = backend_pid("default")
            together.wait(TIMEOUT)
            return pid

    pids = [wait(each) for each in [spawn(use) for _ in range(SIZE)]]
    assert len(set(pids)) == SIZE, pids
    wait_until(all_are_idle, "all connections are idle")


@contextmanager
def ticking() -> Iterator[list[float]]:
    """Collect, while the block runs, for how long another greenlet could not run."""
    gaps: list[float] = []
    is_over = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not is_over.is_set():
            time.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticker = spawn(tick)
    yield gaps
    is_over.set()
    wait(ticker)


# ##### They share the pool #####


@program
def many_greenlets_share_few_connections() -> None:
    """R7: none has a connection that another has, and each comes back."""
    in_use: set[int] = set()

    def work() -> None:
        for _ in range(3):
            with transaction.atomic():
                pid = backend_pid("default")
                assert pid not in in_use
                in_use.add(pid)
                sleep_in_server(0.002)
                assert backend_pid("default") == pid
                in_use.remove(pid)
            time.sleep(0.001)

    for each in [spawn(work) for _ in range(25 * SIZE)]:
        wait(each)
    assert_all_come_back()


@program
def nothing_blocks_the_other_greenlets() -> None:
    """Neither a query, nor a place in the line, nor a check, a reset, or a new connection."""

    def work() -> None:
        sleep_in_server(0.3)
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '7MB'")
        sleep_in_server(0.3)
        connection.close()  # which resets the session

    connections["default"].settings_dict["RELEASE_OPTIONS"] = {"CHECK_AFTER_IDLE": 0}
    with ticking() as gaps:
        began = time.monotonic()
        for each in [spawn(work) for _ in range(3 * SIZE)]:
            wait(each)
        taken = time.monotonic() - began
    assert taken > 3 * 0.6, taken
    assert max(gaps) < BLOCKED, sorted(gaps)[-5:]
    assert_all_come_back()


@program
def a_pin_is_that_of_its_own_greenlet() -> None:
    """P1: though they have it by one decorator."""

    @pin_connection()
    def pinned(seconds: float) -> bool:
        pid = backend_pid("default")
        time.sleep(seconds)
        return backend_pid("default") == pid

    assert all(wait(each) for each in [spawn(pinned, n / 100) for n in (9, 1, 5, 3)])
    assert_all_come_back()


# ##### Somebody sees who has them #####


@program
def an_exhausted_pool_names_the_greenlets() -> None:
    """F4, P3: and says where each is now."""
    may_end = threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Item.objects.count()
            may_end.wait(TIMEOUT + 10)

    def hold_in_thread() -> None:
        hold()

    thread = threading.Thread(target=hold_in_thread, name="the thread")
    thread.start()
    greenlets = [spawn(hold) for _ in range(SIZE - 1)]
    wait_until(lambda: len(pool_status().leases) == SIZE, "all are held")
    names = {lease.thread for lease in pool_status().leases}
    assert "the thread" in names
    if LIBRARY == "gevent":
        assert names == {"the thread", *(each.name for each in greenlets)}
    try:
        Item.objects.count()
    except OperationalError as error:
        said = str(error)
    for name in names:
        assert f"thread {name!r} for " in said, said
    assert said.count(f"now at {__file__}:") == SIZE, said
    assert said.count(" in hold") == SIZE, said
    may_end.set()
    thread.join()
    for each in greenlets:
        wait(each)
    assert_all_come_back()


@program
def it_tells_where_the_greenlet_is_that_asks() -> None:
    """P3: which alone has no frame of its own to be asked for."""
    with pin_connection():
        (lease,) = pool_status().leases
    assert lease.where is not None
    assert "it_tells_where_the_greenlet_is_that_asks" in lease.where
    assert lease.thread == "MainThread"


# ##### They end #####


@program
def what_a_dead_greenlet_holds_comes_back_within_a_second() -> None:
    """F3: though somebody has its wrapper still; and nothing is taken from the living."""
    kept: list[Any] = []
    is_over = threading.Event()

    def leave() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '7MB'")
        kept.append(connections["default"])

    def live() -> bool:
        with pin_connection():
            pid = backend_pid("default")
            is_over.wait(TIMEOUT)
            return backend_pid("default") == pid

    lives = spawn(live)
    for _ in range(2 * SIZE):  # more than there are places
        wait(spawn(leave))
        assert kept[-1].connection is not None
        wait_until(lambda: kept[-1].connection is None, "it is back", seconds=1.2)
    is_over.set()
    assert wait(lives)
    assert_all_come_back()


@program
def a_greenlet_that_is_collected_gives_back() -> None:
    """F3: together with all that it had."""

    def leave() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '7MB'")
        kept = [connections["default"]]
        kept.append(kept)

    for _ in range(2 * SIZE):
        wait(spawn(leave))
    gc.collect()
    assert_all_come_back()


def query() -> None:
    sleep_in_server(TIMEOUT)


def work_in_a_block() -> None:
    with transaction.atomic():
        Item.objects.create(name="half")
        time.sleep(TIMEOUT)


def work_in_a_pin() -> None:
    with pin_connection():
        backend_pid("default")
        time.sleep(TIMEOUT)


def read_by_and_by() -> None:
    with connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 999)")
        for _ in cursor:
            time.sleep(TIMEOUT)


WAYS: list[Program] = [query, work_in_a_block, work_in_a_pin, read_by_and_by]


@program
def killed_greenlets_leave_nothing() -> None:
    """R3: in the middle of what holds a connection."""
    for work in WAYS:
        killed = [spawn(work) for _ in range(SIZE)]
        wait_until(lambda: len(pool_status().leases) == SIZE, "all are at work")
        for each in killed:
            each.kill()
        assert_all_come_back()
    assert not Item.objects.exists()


@program
def timeouts_leave_nothing() -> None:
    """R3: they are raised where the greenlet waits, and by nobody swallowed."""

    def limited(work: Program) -> bool:
        try:
            with Timeout(0.2):
                work()
        except Timeout:
            return connections["default"].connection is None
        return False

    for work in WAYS:
        ended = [wait(each) for each in [spawn(limited, work) for _ in range(SIZE)]]
        assert all(ended), work
        assert_all_come_back()
    assert not Item.objects.exists()


@program
def those_killed_in_the_line_leave_it() -> None:
    """R3, R10: the connection that comes back goes to one who is still there."""
    may_end = threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Item.objects.count()
            may_end.wait(TIMEOUT)

    holders = [spawn(hold) for _ in range(SIZE)]
    wait_until(lambda: len(pool_status().leases) == SIZE, "all are held")
    waiting = [spawn(backend_pid, "default") for _ in range(9)]
    wait_until(lambda: pool_status().census.waiting == 9, "all wait")
    killed, others = waiting[:5], waiting[5:]
    for each in killed[:3]:
        each.kill()
    may_end.set()
    for each in killed[3:]:  # while they are being given what comes back
        each.kill()
    assert len([wait(each) for each in others]) == 4
    for each in holders:
        wait(each)
    assert_all_come_back()


@program
def the_exception_of_a_kill_is_the_greenlets_own() -> None:
    """R3: user code can see it, and use the database again."""
    seen: list[Any] = []

    def work() -> None:
        try:
            with transaction.atomic():
                Item.objects.create(name="half")
                sleep_in_server(TIMEOUT)
        except GreenletExit:
            seen.append(Item.objects.count())

    killed = spawn(work)
    wait_until(lambda: bool(pool_status().leases), "it is at work")
    time.sleep(0.1)
    killed.kill()
    wait_until(lambda: seen == [0], "it has counted")
    assert_all_come_back()


@program
def a_commit_that_takes_too_long_is_told_by_its_timeout() -> None:
    """R3: not by an error of what Django does next."""
    with connection.cursor() as cursor:
        cursor.execute(SLOW_COMMIT)

    def commit() -> bool:
        try:
            with Timeout(0.3), transaction.atomic():
                Item.objects.create(name="slow")
        except Timeout:
            return connections["default"].connection is None
        return False

    try:
        assert all(wait(each) for each in [spawn(commit) for _ in range(SIZE)])
        assert_all_come_back()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER slow_commit ON item")
            cursor.execute("DROP FUNCTION slow_commit")


SLOW_COMMIT = """
CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_sleep(1); RAISE 'too slow'; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION slow_commit();
"""


# ##### They fork #####


@program
def a_child_leaves_its_parents_greenlets_and_connections_alone() -> None:
    """F1: a fork copies greenlets: the reaper's, and those that are connecting."""
    wrapper: Any = connections["default"]
    for _ in range(3):
        asks = spawn(backend_pid, "default")
        pool = wrapper.pool
        while not pool._connecting:
            time.sleep(0)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(1)  # the copies run, if they can
                assert pool.closed
                assert not pool.get_stats().get("requests_errors")
                assert_all_come_back()
                assert how_many_are_in("_run_task") == 1
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        wait(asks)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert_all_come_back()
        assert not pool.get_stats().get("connections_errors")
        wrapper.close_pool()


def how_many_are_in(function: str) -> int:
    """Count the greenlets that are in a function, as deep as it may be."""
    frames = [each.gr_frame for each in gc.get_objects() if isinstance(each, greenlet)]
    stacks = [traceback.walk_stack(frame) for frame in frames if frame is not None]
    return sum(
        any(frame.f_code.co_name == function for frame, _ in stack) for stack in stacks
    )


def main(name: str) -> None:
    call_command("check", databases=["default"], fail_level="WARNING")
    PROGRAMS[name]()
    connections["default"].close()
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
