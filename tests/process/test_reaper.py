"""Contract F3, R3: the thread that gives back what other threads lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from helpers import backend_pid, census, run_in_thread, wait_until
from traffic import warm_up

from django_pg_real_pool import pin_connection
from django_pg_real_pool._lease.facts import Phase
from django_pg_real_pool._process import reaper
from django_pg_real_pool._process.origins import find_origin


def held_by_thread(alias: str) -> Any:
    """Return the wrapper of a thread that has ended in the middle of a pin."""
    wrappers: list[Any] = []

    def work() -> None:
        pin_connection(alias).__enter__()
        wrappers.append(connections[alias])

    thread = threading.Thread(target=work, name="lost")
    thread.start()
    thread.join()
    return wrappers[0]


def test_the_threads_that_need_it_start_one_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3: even if they begin at the same moment."""
    started: list[str] = []

    class Recorded(threading.Thread):
        def start(self) -> None:
            started.append(self.name)
            super().start()

    monkeypatch.setattr(reaper, "_starter", reaper._Starter())
    monkeypatch.setattr(reaper, "_run", threading.Event().wait)
    starters = [threading.Thread(target=reaper.start) for _ in range(2)]
    with reaper._starter._lock:
        for each in starters:
            each.start()
        monkeypatch.setattr("threading.Thread", Recorded)
    for each in starters:
        each.join()
    assert started == ["django-pg-real-pool-reaper"]


def test_a_signal_handler_may_start_it_while_it_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R3: a query in a signal handler waits for nothing that its own thread has."""

    interrupted: list[threading.Thread] = []

    class Interrupted(threading.Thread):
        def start(self) -> None:
            if not interrupted:
                interrupted.append(self)
                reaper.start()  # as the handler's query would
            super().start()

    monkeypatch.setattr(reaper, "_starter", reaper._Starter())
    monkeypatch.setattr(reaper, "_run", threading.Event().wait)
    starter = threading.Thread(target=reaper.start, daemon=True)
    monkeypatch.setattr("threading.Thread", Interrupted)
    starter.start()
    starter.join(5)
    assert not starter.is_alive()
    assert interrupted
    assert reaper._starter.is_running()


def test_the_reaper_survives_what_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    reaper.start()
    reaper.run_soon(fail)
    reaper.run_soon(done.set)
    assert done.wait(5)
    assert "could not give back a connection" in caplog.text


def test_a_lease_without_a_hold_is_ended(alias: str, wrapper: Any) -> None:
    """R3: its thread was interrupted between the last hold's end and the release.

    But not a lease that is about to have its first hold: its thread has the lock.
    """
    warm_up(alias)
    reaper.start()
    wrapper.connect()
    with wrapper._lease._lock:
        wrapper._lease.holds.now.clear()
        run_in_thread(reap_thrice)
        assert census(alias).in_use == 1

    wait_until(lambda: census(alias).in_use == 0, "the reaper gave it back")
    assert wrapper.connection is None
    assert backend_pid(alias)


@pytest.mark.parametrize("phase", [Phase.TAKING, Phase.RETURNING, Phase.CLOSING])
def test_a_lease_that_was_interrupted_on_its_way_is_ended(
    alias: str, wrapper: Any, phase: Phase
) -> None:
    """R3: its thread may never query again."""
    warm_up(alias)
    reaper.start()
    with wrapper._lease._lock:
        wrapper.connect()
        wrapper._lease.phase = phase
    wait_until(lambda: wrapper.connection is None, "the reaper gave it back")
    wait_until(lambda: census(alias).in_use == 0, "nothing is in use")
    assert wrapper._lease.phase is Phase.FREE
    assert backend_pid(alias)


def test_what_went_back_before_an_interruption_is_only_forgotten(
    alias: str, wrapper: Any
) -> None:
    """R7: another thread may have it by now."""
    warm_up(alias)
    reaper.start()
    with wrapper._lease._lock:
        pid = backend_pid(alias)
        wrapper.connect()
        connection = wrapper.connection
        wrapper._hooks.pool.put(wrapper._lease)
        wrapper.connection, wrapper._lease.phase = connection, Phase.RETURNED
    wait_until(lambda: wrapper.connection is None, "the reaper saw it")
    assert census(alias).in_use == 0
    assert wrapper._lease.phase is Phase.FREE
    assert backend_pid(alias) == pid


def reap_thrice() -> None:
    for _ in range(3):
        reaper.reap()


def test_a_lease_that_gets_a_hold_in_time_goes_on(alias: str, wrapper: Any) -> None:
    """R3: whoever has the lock is at work; what has a hold is not lost."""
    wrapper.connect()
    holds = dict(wrapper._lease.holds.now)
    with wrapper._lease._lock:
        wrapper._lease.holds.now.clear()
        run_in_thread(reap_thrice)
        assert wrapper.connection is not None

        def hold(blocking: bool) -> bool:
            wrapper._lease.holds.now.update(holds)
            return bool(lock.acquire(blocking=blocking))

        lock = wrapper._lease._lock

        class Lock:
            acquire = staticmethod(hold)
            release = lock.release

        wrapper._lease._lock = Lock()
        reaper.reap()
        wrapper._lease._lock = lock
    assert wrapper.connection is not None
    wrapper.close()


def test_what_a_thread_leaves_is_given_back_once(
    alias: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F3: not while somebody is at work with it, nor when somebody was quicker."""
    warm_up(alias)
    monkeypatch.setattr(reaper, "reap", lambda: None)  # not before it is looked at
    monkeypatch.setattr(reaper, "INTERVAL", 0.05)
    wrapper = held_by_thread(alias)
    acquired, let_go = threading.Event(), threading.Event()

    def share() -> None:
        with wrapper._lease._lock:
            acquired.set()
            let_go.wait(10)

    sharing = threading.Thread(target=share)
    sharing.start()
    assert acquired.wait(5)
    wrapper._lease.give_up("is busy")
    assert "is busy" not in caplog.text
    assert wrapper.connection is not None
    let_go.set()
    sharing.join()
    monkeypatch.undo()
    wait_until(lambda: wrapper.connection is None, "the reaper gave it back")

    wrapper._lease.give_up("has none")
    assert "has none" not in caplog.text
    wait_until(lambda: census(alias).in_use == 0, "it is replaced")


def test_who_used_a_shared_wrapper_first_does_not_own_it(alias: str, wrapper: Any) -> None:
    """F3, R7: when that thread ends, its owner may be in the middle of a statement."""
    wrapper.close()
    wrapper.inc_thread_sharing()
    thread = threading.Thread(target=lambda: wrapper.cursor().close())
    thread.start()
    thread.join()
    wrapper.dec_thread_sharing()
    with pin_connection(alias):
        pid = backend_pid(alias)
        for _ in range(3):
            reaper.reap()
        assert backend_pid(alias) == pid


def test_what_the_main_thread_holds_is_its_own(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: when that has ended, so does the process, which may still use it."""
    with pin_connection(alias) as wrapper:
        monkeypatch.setattr(wrapper._lease.owner, "is_alive", lambda: False)
        reaper.reap()
        assert wrapper.connection is not None
        monkeypatch.undo()


def test_a_stack_without_users_code_tells_its_innermost_frame() -> None:
    """F4: a thread that runs nothing but packages is somewhere, too."""
    with ThreadPoolExecutor(1) as executor:
        found = executor.submit(find_origin).result()
    assert "concurrent" in found
    assert found.endswith("in run")
