"""P3: the most that was in use, that waited, and for how long: what a pool is sized by."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from faults import extra_alias
from helpers import (
    backend_pid,
    forget_pool,
    let_pass,
    pool_of_one,
    run_in_thread,
    wait_until,
)

from django_pg_real_pool import Census, pin_connection, pool_status, reset_peaks

pytest_plugins = ("fix_traffic",)


@contextmanager
def new_pool_of_one(alias: str) -> Iterator[None]:
    """Of a wrapped pool nobody tells us that it is new."""
    with pool_of_one(alias):
        reset_peaks(alias)
        yield


@contextmanager
def threads_with_a_pin(alias: str, count: int) -> Iterator[None]:
    """Let so many threads have a connection, all at the same time."""
    barrier, leave = threading.Barrier(count + 1), threading.Event()

    def work() -> None:
        with pin_connection(alias):
            barrier.wait(10)
            leave.wait(10)
        connections[alias].close()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for each in threads:
        each.start()
    try:
        barrier.wait(10)
        yield
    finally:
        leave.set()
        for each in threads:
            each.join()


def peaks(alias: str) -> tuple[int | None, int | None]:
    census = pool_status(alias).census
    return census.peak_in_use, census.peak_waiting


def test_the_most_that_was_in_use_is_remembered(busy: str) -> None:
    """Not how many connections the pool has made meanwhile."""
    reset_peaks(busy)  # it has grown to its size
    backend_pid(busy)
    assert pool_status(busy).census.peak_in_use == 1
    with threads_with_a_pin(busy, 3):
        assert pool_status(busy).census.in_use == 3
    for _ in range(10):
        backend_pid(busy)
    assert pool_status(busy).census.in_use == 0
    assert pool_status(busy).census.peak_in_use == 3
    reset_peaks(busy)
    assert pool_status(busy).census.peak_in_use == 0
    with threads_with_a_pin(busy, 2):
        reset_peaks(busy)
        assert pool_status(busy).census.peak_in_use == 2


def test_who_waited_is_remembered_and_for_how_long(alias: str) -> None:
    """All that waited at the same time."""
    with new_pool_of_one(alias):
        with pin_connection(alias):
            threads = [
                threading.Thread(target=lambda: run_one(alias), daemon=True)
                for _ in range(3)
            ]
            for each in threads:
                each.start()
            wait_until(lambda: pool_status(alias).census.waiting == 3, "three wait")
            let_pass(0.05)
        for each in threads:
            each.join()
        census = pool_status(alias).census
        assert census.waiting == 0
        assert (census.peak_in_use, census.peak_waiting) == (1, 3)
        assert 0.005 < (census.longest_wait or 0) < 5
        reset_peaks(alias)
        census = pool_status(alias).census
        assert (census.peak_waiting, census.longest_wait) == (0, 0.0)


def run_one(alias: str) -> None:
    backend_pid(alias)
    connections[alias].close()


def test_a_pool_that_is_opened_again_begins_anew(alias: str) -> None:
    with new_pool_of_one(alias):
        with pin_connection(alias):
            pass
        forget_pool(alias)
        backend_pid(alias)
        assert peaks(alias)[0] == 1


def test_a_census_always_tells_something(alias: str) -> None:
    """What a pool does not tell, we have counted ourselves."""
    forget_pool(alias)  # somebody may have resized it
    with pin_connection(alias):
        census = pool_status(alias).census
        assert census.in_use == 1
        assert "in use 1" in str(census)
    assert str(Census()) == "there is none yet"
    if not alias.endswith("own"):
        options = connections[alias].settings_dict["OPTIONS"]
        least = options["pool"].get("min_size", 4) if "pool" in options else 0
        assert (census.idle_min, census.idle_max) == (least, 2)
        assert census.max_size == 2


def test_a_queue_pool_without_a_limit_has_no_size() -> None:
    """Neither of which it keeps, nor of which it may have."""
    options = {"POOL_SIZE": 0, "MAX_OVERFLOW": -1}
    with extra_alias("endless_dj", "dj", POOL_OPTIONS=options) as name:
        backend_pid(name)
        census = pool_status(name).census
        assert (census.max_size, census.idle_max) == (None, None)


def test_peaks_of_another_backend_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"reset_peaks\(\) can't answer"):
        reset_peaks("stock_native")


# ##### For a person, for JSON, at a signal #####


def test_a_status_is_a_table(alias: str) -> None:
    with new_pool_of_one(alias), pin_connection(alias), connections[alias].cursor():
        # The one that there is was not there at once.
        first, second, head, lease = str(pool_status(alias)).splitlines()
    assert first.startswith(f"pool of database alias {alias!r}: ")
    assert "in use 1" in first
    expected = r"  at its peak: in use 1, waiting [01]; longest wait 0\.\d{3} s"
    assert re.fullmatch(expected, second)
    assert head.split("  ")[1:3] == ["held for", "thread"]
    assert lease[head.index("thread") :].startswith("MainThread")
    assert lease[head.index("holds") :].startswith("pin, open cursor")
    assert lease[head.index("now at") :].startswith(f"{__file__}:")


def test_a_status_of_nobody_is_a_table_too(alias: str) -> None:
    backend_pid(alias)
    assert str(pool_status(alias)).endswith("no wrapper holds a connection")
    with extra_alias(f"unopened_{alias}", alias, connects=False) as name:
        lines = str(pool_status(name)).splitlines()
    assert len(lines) == (3 if alias.endswith("own") else 2)


def test_a_status_is_json(alias: str) -> None:
    with pin_connection(alias):
        found = json.loads(json.dumps(pool_status(alias).as_dict()))
    assert found["alias"] == alias
    assert found["census"]["in_use"] == 1
    assert found["leases"][0]["holds"] == ["pin"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_a_status_can_be_asked_for_by_a_signal(
    alias: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the how-to has it, while the thread is in a query."""

    def tell(*_: object) -> None:
        print(pool_status(alias), file=sys.stderr)

    before = signal.signal(signal.SIGUSR1, tell)
    try:
        with pin_connection(alias):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "MainThread  pin" in capfd.readouterr().err


def test_a_thread_that_was_interrupted_does_not_wait_for_ever(alias: str) -> None:
    """What it had asked for is forgotten with its lease."""
    wrapper: Any = connections[alias]
    pool = wrapper._hooks.pool
    pool._tallies[alias].asking[id(wrapper._lease)] = 0.0
    pool.forget(wrapper._lease)
    with ExitStack() as stack:
        stack.enter_context(pin_connection(alias))
        assert pool_status(alias).census.waiting == 0
    assert run_in_thread(lambda: backend_pid(alias))
