"""R7, R10: what only the GIL would make one step is none, so it has a lock or needs none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from configured import configured
from django.db import connections
from helpers import DEADLINE, backend_pid, forget_pool, run_in_thread
from race import Race

from django_pg_real_pool import observers, pin_connection, pool_status
from django_pg_real_pool._drivers import RENEW, Driver
from django_pg_real_pool._pools import Pool
from django_pg_real_pool._pools.real_pool import RealPool
from django_pg_real_pool._process import origins
from django_pg_real_pool._process.weak import WeakBag

THREADS = 8


@pytest.fixture
def _often_switched() -> Iterator[None]:
    """Let the GIL, where there is one, go to another thread as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Run all in threads of their own, which begin together; return the results."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        barrier.wait(DEADLINE)
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(works)) as executor:
        return [each.result(DEADLINE) for each in [executor.submit(run, w) for w in works]]


@pytest.mark.usefixtures("_often_switched")
@pytest.mark.parametrize("alias", ["busy_native", "busy_dj"])
def test_nobody_meets_another(alias: str) -> None:
    """R7, S3, F3: whatever the threads do, and however often they are switched."""
    race = Race(alias)
    race.run(seconds=1.5, threads=THREADS)
    assert race.wrong == []
    assert sum(race.done.values()) > THREADS


@pytest.mark.usefixtures("_often_switched")
@pytest.mark.parametrize("alias", ["native", "dj"])
def test_the_first_threads_find_one_pool(alias: str) -> None:
    """R10: and one line of those who wait for it."""
    for _ in range(3):
        forget_pool(alias)
        pools = at_once(*[lambda: backend_pid(alias)] * THREADS)
        assert len(set(pools)) <= 2
        assert pool_status(alias).census.in_use == 0


def test_a_pool_is_seen_after_its_class_was_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R10: who reads `connection.pool` waits for who makes it."""
    seen: list[type] = []
    adopt = RealPool.adopt

    def slowly(pool: Any) -> bool:
        reader.start()
        reader.join(0.3)
        assert seen == []
        return adopt(pool)

    def read() -> None:
        seen.append(type(connections["native"].pool))  # type: ignore[attr-defined]
        connections.close_all()

    reader = threading.Thread(target=read)
    forget_pool("native")
    monkeypatch.setattr(RealPool, "adopt", slowly)
    backend_pid("native")
    reader.join(DEADLINE)
    assert seen == [RealPool]


@pytest.mark.usefixtures("_often_switched")
def test_no_count_is_lost() -> None:
    """R10: of those that are made outside of the section that gives a connection out."""
    with configured("native", name="counted") as wrapper:
        with wrapper.cursor():
            pass
        pool = wrapper.pool

        def count() -> None:
            for _ in range(500):
                pool._count("requests_errors")

        at_once(*[count] * 4)
        assert pool.get_stats()["requests_errors"] == 2000


def test_a_server_that_is_back_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F5: a worker connects while another thread looks why there is no connection."""
    answers = iter([ValueError("it was away"), None])
    with configured("native", name="away") as wrapper:
        with wrapper.cursor():
            pass
        pool = wrapper.pool
        monkeypatch.setattr(
            RealPool, "last_error", property(lambda self: next(answers)), raising=False
        )
        pool.has_connected = False
        with pytest.raises(ValueError, match="it was away"):
            pool._raise_if_unreachable()
        monkeypatch.undo()


@pytest.mark.usefixtures("_often_switched")
def test_the_first_threads_find_one_tally() -> None:
    """P3: what one of them notes is there for all."""
    for _ in range(30):
        pool = Pool()
        assert len({id(each) for each in at_once(*[partial(_tally, pool)] * 4)}) == 1


def _tally(pool: Pool) -> Any:
    return pool._tallies["anything"]


@pytest.mark.usefixtures("_often_switched")
def test_the_first_who_tell_observers_start_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each starts the one that it has made, if two do it at the same moment."""
    monkeypatch.setitem(observers.hearing, "taken", True)
    monkeypatch.setattr(observers, "_run", lambda: None)
    monkeypatch.setattr(observers, "_later", SimpleQueue())
    for _ in range(30):
        monkeypatch.setattr(observers, "_thread", None)
        at_once(*[lambda: observers.tell_later("taken")] * 4)
    assert observers._later.qsize() == 120


@pytest.mark.usefixtures("_often_switched")
def test_a_bag_is_listed_while_things_come_and_go() -> None:
    bag = WeakBag[Any]()
    staying = {str(each) for each in range(10)}

    class Thing:
        def __init__(self, name: str = "") -> None:
            self.name = name

    kept = [Thing(name) for name in staying]
    for each in kept:
        bag.add(each)

    def come_and_go() -> None:
        for _ in range(2000):
            bag.add(Thing())

    def look() -> None:
        for _ in range(200):
            assert staying <= {each.name for each in bag}

    at_once(come_and_go, come_and_go, look)


@pytest.mark.usefixtures("_often_switched")
def test_all_connections_are_forgotten_while_more_are_made() -> None:
    """D1: by a driver that keeps what it knows beside its connections."""
    driver = Driver()

    class Physical:
        pass

    kept: list[Any] = []

    def make() -> None:
        for _ in range(2000):
            kept.append(Physical())
            driver.mark_set_up(kept[-1], ())

    def forget() -> None:
        while len(kept) < 2000:
            driver.forget_others(None)

    at_once(make, forget)
    driver.forget_others(kept[0])
    assert [each for each in kept if driver.heard(each) != RENEW] in ([], kept[:1])


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_without_the_gil_no_other_thread_is_looked_into(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: to read the variables of a frame that runs can crash the interpreter."""
    monkeypatch.setattr(origins, "_has_gil", lambda: False)
    with pin_connection(alias):
        (mine,) = pool_status(alias).leases
        (of_another,) = run_in_thread(lambda: pool_status(alias).leases)
    assert __file__ in str(mine.where)
    assert of_another.where is None


@pytest.mark.parametrize("alias", ["native"], indirect=True)
def test_a_lease_at_work_is_described_without_its_driver(alias: str) -> None:
    """P3: else its connection could be closed, and freed, while the driver answers."""
    wrapper: Any = connections[alias]
    asked: list[Any] = []

    class Asked:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(driver, name)

    with pin_connection(alias):
        driver, hooks = wrapper._hooks.driver, wrapper._lease.hooks
        object.__setattr__(hooks, "driver", Asked())
        try:
            with wrapper._lease._lock:
                wrapper._lease._holder = -1  # as by a thread within
                assert run_in_thread(lambda: pool_status(alias)).leases[0].holds == ("pin",)
                wrapper._lease._holder = 0
            assert "transaction" not in asked
            assert pool_status(alias).leases[0].holds == ("pin",)
            assert "transaction" in asked
        finally:
            object.__setattr__(hooks, "driver", driver)
