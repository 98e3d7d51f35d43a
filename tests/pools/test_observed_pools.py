"""What observers hear of Django's pool: connections that come and go, and who got none."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connections
from faults import extra_alias
from helpers import backend_pid, forget_pool, run_in_thread, wait_until
from second_server import free_port
from watching import Watcher, watching

from django_pg_real_pool import observers, pin_connection


@contextmanager
def watched(name: str, **options: Any) -> Iterator[Watcher]:
    """Watch the pool of a new alias, of one connection."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5, **options.pop("pool", {})}
    with (
        watching(Watcher(name)) as watcher,
        extra_alias(name, "native", OPTIONS={"pool": pool}, **options),
    ):
        yield watcher


def has_heard(watcher: Watcher, *events: Any) -> None:
    """Wait until it has heard of something, which is told a moment later."""
    wait_until(
        lambda: any(each[: len(events)] == events for each in watcher.of_pool),
        f"it has heard of {events}, but {watcher.of_pool}",
    )


def test_a_connection_that_is_made_is_heard_of() -> None:
    """In so long; and when the pool is closed, its end."""
    with watching(Watcher("made_native")) as watcher:
        with watched("made_native"):
            backend_pid("made_native")
            has_heard(watcher, "made")
            ((_, seconds),) = watcher.of_pool
            assert 0 < seconds < 5
        has_heard(watcher, "closed", "pool closed")
    assert len(watcher.of_pool) == 2


def test_a_failure_is_heard_of() -> None:
    """With its reason."""
    nowhere = {"HOST": "127.0.0.1", "PORT": free_port()}
    with watched("failing_native", connects=False, **nowhere) as watcher:
        with pytest.raises(OperationalError):
            backend_pid("failing_native")
        has_heard(watcher, "failed")
        _, seconds, error = watcher.of_pool[0]
        assert 0 < seconds < 5
        assert isinstance(error, psycopg.OperationalError)


def test_a_timeout_is_heard_of(alias: str) -> None:
    """Of any pool, that of who is turned away at once, too."""
    with (
        extra_alias(f"dry_{alias}", alias, size=1, timeout=0.1) as name,
        watching(Watcher(name)) as watcher,
        pin_connection(name),
    ):
        if not alias.endswith("own"):  # whose own timeout is long
            assert isinstance(error_of(name), OperationalError)
            has_heard(watcher, "timed out")
            assert watcher.of_pool[-1][1] >= 0.1


def error_of(alias: str) -> BaseException | None:
    def ask() -> BaseException | None:
        try:
            backend_pid(alias)
        except OperationalError as error:
            return error
        return None

    return run_in_thread(ask)


def test_what_lived_too_long_is_heard_of() -> None:
    with watched("old_native", pool={"max_lifetime": 0.3}) as watcher:
        backend_pid("old_native")
        wait_until(
            lambda: bool(
                backend_pid("old_native") and ("closed", "expired") in watcher.of_pool
            ),
            "one has expired",
        )
        with pin_connection("old_native"):
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 0.5, "it expires while it is out")
        before = watcher.of_pool.count(("closed", "expired"))
        wait_until(
            lambda: watcher.of_pool.count(("closed", "expired")) >= min(before, 2),
            "it is heard of",
        )


def test_what_nobody_needed_is_heard_of() -> None:
    with watched("idle_native", pool={"max_size": 2, "max_idle": 0.2}) as watcher:
        with pin_connection("idle_native"):
            run_in_thread(lambda: backend_pid("idle_native"))
        has_heard(watcher, "closed", "idle")


def test_what_was_broken_is_heard_of(observer: Any) -> None:
    """Whether it is found out when it is taken, or when it comes back."""
    with watched("broken_native") as watcher:
        for _ in range(2):
            pid = backend_pid("broken_native")
            observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        backend_pid("broken_native")
        with pin_connection("broken_native") as wrapper:
            wrapper.connection.close()
        wait_until(lambda: watcher.of_pool.count(("closed", "broken")) == 3, "all three")


def test_what_a_check_has_refused_is_heard_of(observer: Any) -> None:
    from psycopg_pool import ConnectionPool

    with watched("checked_native") as watcher:
        wrapper: Any = connections["checked_native"]
        pid = backend_pid("checked_native")
        pool = wrapper.pool
        pool._check = ConnectionPool.check_connection
        observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with pool.connection() as connection:  # of a user's own
            connection.execute("SELECT 1")
        has_heard(watcher, "closed", "broken")


@pytest.mark.parametrize("why", ["broken", "expired"])
def test_what_the_pools_own_check_has_found_is_heard_of(why: str, observer: Any) -> None:
    """It is called by hand, now and then, and looks at all that are idle."""
    with watched("looked_at_native") as watcher:
        pid = backend_pid("looked_at_native")
        wrapper: Any = connections["looked_at_native"]
        if why == "broken":
            observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        else:
            wrapper.pool._pool[0]._expire_at = 0.0
        wrapper.pool.check()
        has_heard(watcher, "closed", why)
        assert backend_pid("looked_at_native") != pid
        assert len([each for each in watcher.of_pool if each[0] == "closed"]) == 1


def test_what_an_interrupted_thread_has_lost_is_heard_of() -> None:
    with watched("lost_native") as watcher:
        backend_pid("lost_native")
        wrapper: Any = connections["lost_native"]
        pool = wrapper.pool
        # As an exception leaves it that is thrown in between two steps.
        pool.getconn(None, wrapper._lease.me)
        has_heard(watcher, "closed", "lost")


class Asking(observers.Observer):
    """Queries the database when it hears of its pool, with the pool that it hears of."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.pids: list[int] = []

    def connection_made(self, alias: str, seconds: float) -> None:
        if alias == self.alias:
            self.pids.append(backend_pid(alias))

    def connection_closed(self, alias: str, why: observers.Closing) -> None:
        if why != "pool closed":
            self.connection_made(alias, 0.0)

    def timed_out(self, alias: str, waited: float) -> None:
        self.connection_made(alias, 0.0)


def test_who_hears_of_a_pool_may_query_it(observer: Any) -> None:
    """Though it has one connection and one worker, which would wait for itself."""
    name = "asked_native"
    with (
        extra_alias(
            name,
            "native",
            OPTIONS={"pool": {"min_size": 1, "max_size": 1, "num_workers": 1}},
        ),
        watching(Asking(name)) as asking,
    ):
        pid = backend_pid(name)
        wait_until(lambda: pid in asking.pids, "it has asked when it was made")
        observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        second = backend_pid(name)
        wait_until(lambda: len(asking.pids) == 3, "it has asked when it was replaced")
        assert second in asking.pids


class Locking(observers.Observer):
    """Holds a lock while it is at work, as a metric does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_in, self.may_go = threading.Event(), threading.Event()

    def timed_out(self, alias: str, waited: float) -> None:
        with self.lock:
            self.is_in.set()
            self.may_go.wait(0.3)


def test_a_child_begins_with_no_lock_of_an_observer() -> None:
    """A fork waits for the thread that tells: nobody would unlock it in the child."""
    with watching(Locking()) as locking:
        observers.tell_later("timed_out", "native", 1.0)
        assert locking.is_in.wait(10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os._exit(0 if locking.lock.acquire(timeout=5) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_PATIENCE", 0.01)
    with watching(Locking()) as locking:
        observers.tell_later("timed_out", "native", 1.0)
        assert locking.is_in.wait(10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        locking.may_go.set()
        wait_until(lambda: observers.at_work.acquire(blocking=False), "nobody is at work")
        observers.at_work.release()


def test_a_child_is_told_on_a_thread_of_its_own() -> None:
    """And by the observers that there were at the fork, once."""
    watcher = Watcher()
    with watching(watcher):
        observers.tell_later("timed_out", "parent", 1.0)
        has_heard(watcher, "timed out")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            try:
                watcher.of_pool.clear()
                observers.tell_later("timed_out", "child", 2.0)
                has_heard(watcher, "timed out", 2.0)
                os._exit(0 if len(watcher.of_pool) == 1 else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_a_platform_without_fork_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows."""
    monkeypatch.delattr(os, "register_at_fork")
    observers._watch_forks()


class Waiting(observers.Observer):
    """Waits for a connection where there is none."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.errors: list[OperationalError] = []

    def given_back(self, lease: observers.Lease) -> None:
        try:
            backend_pid(self.alias)
        except OperationalError as error:
            self.errors.append(error)


def test_who_hears_and_gets_no_connection_is_not_heard_of() -> None:
    """Or a full pool would be told again and again that it is full."""
    watcher = Watcher("brief_native")
    with watching(watcher), watching(Waiting("brief_native")) as waiting:
        with pin_connection("brief_native"):
            run_in_thread(lambda: backend_pid("native"))
        assert len(waiting.errors) == 1
        backend_pid("native")
    assert not [each for each in watcher.of_pool if each[0] == "timed out"]


def test_where_nobody_listens_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_thread", None)
    with watching(observers.Observer()):
        observers.tell_later("timed_out", "native", 1.0)
    assert observers._thread is None
    forget_pool("native")


def test_what_is_told_later_is_told_in_the_context_where_it_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that an observer can tell whose it was; and it can be waited for."""
    of: ContextVar[str] = ContextVar("of")
    heard: list[str] = []

    class Telling(observers.Observer):
        def timed_out(self, alias: str, waited: float) -> None:
            heard.append(of.get())

    with watching(Telling()):
        for name in ("one", "other"):
            context = copy_context()
            context.run(of.set, name)
            context.run(observers.tell_later, "timed_out", "native", 1.0)
        observers.wait_until_told(10)
        assert heard == ["one", "other"]
    monkeypatch.setattr(observers, "_thread", None)
    observers.wait_until_told()  # there is nobody to wait for
