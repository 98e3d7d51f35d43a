"""What observers hear of leases, and what they may do meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from helpers import backend_pid, census, installed, pool_of_one, run_in_thread, wait_until
from interrupting import Seized
from leases import Stop, Undo, add, committed, fill
from moments import interruptions
from watching import Watcher, watching

from django_pg_real_pool import (
    ConnectionReleaseMixin,
    assert_released,
    observers,
    pin_connection,
)
from django_pg_real_pool._process import locks


@pytest.fixture
def watcher(alias: str) -> Iterator[Watcher]:
    backend_pid(alias)  # the first connection is another matter
    with watching(Watcher(alias)) as watcher:
        yield watcher


def test_a_query_is_one_lease(alias: str, watcher: Watcher) -> None:
    """Taken after waiting so long, given back after so long: the same object."""
    backend_pid(alias)
    (lease,) = watcher.leases
    assert watcher.taken_leases == [lease]
    assert lease.alias == alias
    assert lease.thread == threading.get_ident()
    assert 0 <= lease.waited < 1
    assert 0 < lease.seconds < 1
    (hold,) = lease.holds
    assert (hold.name, hold.origin) == ("cursor", None)
    assert lease.began <= hold.began <= hold.ended <= (lease.ended or 0)
    assert 0 < hold.seconds < lease.seconds
    assert lease.longest_hold == "cursor"
    assert repr(lease).startswith(f"<Lease of {alias!r}: 0.0")


def test_while_it_is_out_a_lease_has_no_end(alias: str, watcher: Watcher) -> None:
    with pin_connection(alias):
        (lease,) = watcher.taken_leases
        assert (lease.ended, lease.seconds, lease.holds) == (None, 0.0, ())
        assert lease.longest_hold == "connect"
        assert repr(lease).startswith(f"<Lease of {alias!r}: is out, waited 0.0")
        assert watcher.leases == []
    assert watcher.leases == [lease]


def test_each_hold_is_told(alias: str, watcher: Watcher) -> None:
    """In the order of their beginnings; what nests is told by itself."""
    with transaction.atomic(alias):
        backend_pid(alias)
        backend_pid(alias)
    with pin_connection(alias), pin_connection(alias):
        backend_pid(alias)
    connections[alias].ensure_connection()
    backend_pid(alias)
    with connections[alias].cursor() as cursor:
        cursor.execute("SET application_name = 'watched'")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.05)")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 0.01, "the session outlasts it")
    connections[alias].close()
    assert watcher.names == [
        ["cursor", "transaction", "cursor"],
        ["pin", "pin", "cursor"],
        ["connect", "cursor"],
        ["cursor", "session", "cursor"],
    ]
    assert [lease.longest_hold for lease in watcher.leases] == [
        *("transaction", "pin", "connect", "session")
    ]


def test_origins_are_told_to_who_asks(alias: str) -> None:
    """File and line of each hold, whatever it is."""
    backend_pid(alias)
    with watching(Watcher(alias), origins=True) as watcher:
        with pin_connection(alias):
            pass
        connections[alias].ensure_connection()
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
    for lease in watcher.leases:
        for hold in lease.holds:
            assert hold.origin.startswith(f"{Path(__file__)}:")
            assert " in test_origins_are_told_to_who_asks" in hold.origin


def test_a_wait_is_told(alias: str, watcher: Watcher) -> None:
    """It began before the lease."""
    with pool_of_one(alias):
        is_asked = threading.Event()

        def ask() -> None:
            is_asked.set()
            backend_pid(alias)

        with pin_connection(alias):
            thread = threading.Thread(target=ask)
            thread.start()
            is_asked.wait()
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 0.1, "it has waited for long")
        thread.join()
    longest = max(watcher.leases, key=lambda lease: lease.waited)
    assert longest.thread == thread.ident
    assert longest.waited > 0.05


def test_who_added_nothing_is_told_nothing(alias: str, watcher: Watcher) -> None:
    """And who was added twice is told once; who goes in the midst of a lease, no more."""
    observers.add(watcher)
    assert observers.listening
    with pin_connection(alias):
        observers.remove(watcher)
        observers.remove(watcher)
    assert not observers.listening
    backend_pid(alias)
    assert len(watcher.taken_leases) == 1
    assert watcher.leases == []


def test_who_is_added_in_the_midst_of_a_lease_hears_of_the_next(alias: str) -> None:
    watcher = Watcher(alias)
    with pin_connection(alias):
        observers.add(watcher)
    backend_pid(alias)
    observers.remove(watcher)
    assert watcher.names == [["cursor"]]


def test_only_an_observer_can_be_added() -> None:
    with pytest.raises(TypeError, match="expected an instance of Observer, got None"):
        observers.add(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [observers.add, observers.remove])
def test_who_is_interrupted_when_it_adds_or_removes_keeps_nobody_out(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: nobody else could, ever again."""
    lock, each, count = Seized(), observers.Observer(), 0
    with monkeypatch.context() as patch:
        patch.setattr(observers._listeners, "_lock", lock)
        with pytest.raises(Stop):
            change(each)
        assert lock.is_free()
    for where in interruptions(lambda: change(each), observers, locks, every=3):
        count += 1
        run_in_thread(lambda: observers.remove(each))
        assert not observers.listening, where
        assert observers._listeners._holder == 0, where
    observers.remove(each)
    assert count > 30


class Raising(observers.Observer):
    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    def taken(self, lease: observers.Lease) -> None:
        if self.error is not None:
            raise self.error

    def given_back(self, lease: observers.Lease) -> None:
        self.taken(lease)


def test_what_an_observer_raises_is_logged_once(
    alias: str, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    """For each of its methods; the query goes on, and the others hear of it."""
    with watching(Raising(Undo("oh"))):
        observers.add(watcher)  # behind the one that raises
        for _ in range(3):
            assert backend_pid(alias)
        with transaction.atomic(alias):
            assert backend_pid(alias)
    messages = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(messages) == 2
    assert "taken() has raised" in messages[0]
    assert "given_back() has raised" in messages[1]
    assert len(watcher.leases) == 4


def test_a_time_limit_passes_and_no_connection_is_lost(alias: str) -> None:
    """What is no Exception goes to the thread that it was thrown into."""
    before = backend_pid(alias)
    with pool_of_one(alias), watching(Raising(Stop())) as raising:
        for _ in range(2):
            with pytest.raises(Stop):
                backend_pid(alias)
        raising.error = None
        assert backend_pid(alias)
    assert_released(alias)
    assert before


class Asking(observers.Observer):
    """Queries the database whenever it is told something."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.pids: list[int] = []
        self.depth = self.deepest = 0

    def taken(self, lease: observers.Lease) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        self.pids.append(backend_pid(self.alias))
        with transaction.atomic(self.alias):
            self.pids.append(backend_pid(self.alias))
        self.depth -= 1

    def given_back(self, lease: observers.Lease) -> None:
        self.taken(lease)


def test_an_observer_may_query(
    alias: str, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the pool has one connection; what it asks is not observed."""
    with pool_of_one(alias), watching(Asking(alias)) as asking:
        assert backend_pid(alias)
        with transaction.atomic(alias):
            assert backend_pid(alias)
            assert connections[alias].in_atomic_block
        with pin_connection(alias):
            assert backend_pid(alias)
    assert not [each for each in caplog.records if each.name == "django_pg_real_pool"]
    assert len(asking.pids) == 3 * 2 * 2
    assert asking.deepest == 1
    assert watcher.names == [["cursor"], ["cursor", "transaction"], ["pin", "cursor"]]


class Failing(observers.Observer):
    """Fails in the database, and leaves open what it has begun."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.cursors: list[Any] = []

    def taken(self, lease: observers.Lease) -> None:
        wrapper = connections[self.alias]
        wrapper.set_autocommit(False)
        cursor = wrapper.cursor()
        self.cursors.append(cursor)
        cursor.execute("SET application_name = 'observer'")
        cursor.execute("SELECT 1/0")

    def given_back(self, lease: observers.Lease) -> None:
        self.taken(lease)


def test_an_observer_is_not_in_the_transaction_that_it_hears_of(
    alias: str, observer: Any
) -> None:
    """Its failure does not fail the block, whose callbacks and savepoints are kept."""
    callbacks: list[str] = []
    fill(alias, 0)
    with watching(Failing(alias)):
        with transaction.atomic(alias):
            transaction.on_commit(lambda: callbacks.append("first"), alias)
            with transaction.atomic(alias):
                add(alias, "one")
            transaction.on_commit(lambda: callbacks.append("second"), alias)
            with connections[alias].cursor() as cursor:
                cursor.execute("SHOW application_name")
                assert cursor.fetchone()[0] != "observer"
        assert callbacks == ["first", "second"]
        assert connections[alias].get_autocommit()
        with transaction.atomic(alias):
            add(alias, "two")
            transaction.set_rollback(True, alias)
    assert committed(observer) == ["one"]
    assert_released(alias)


class Closing(observers.Observer):
    """Closes its connection, as threads of one's own should, whether it had one or not."""

    def __init__(self, alias: str, queries: bool) -> None:
        self.alias = alias
        self.queries = queries

    def taken(self, lease: observers.Lease) -> None:
        for _ in range(2):
            if self.queries:
                backend_pid(self.alias)
            connections[self.alias].close()

    def given_back(self, lease: observers.Lease) -> None:
        self.taken(lease)


@pytest.mark.parametrize("queries", [False, True])
def test_an_observer_may_close(alias: str, queries: bool, observer: Any) -> None:
    callbacks: list[str] = []
    fill(alias, 0)
    with pool_of_one(alias), watching(Closing(alias, queries)):
        backend_pid(alias)
        with transaction.atomic(alias):
            transaction.on_commit(lambda: callbacks.append("done"), alias)
            add(alias, "one")
    assert callbacks == ["done"]
    assert committed(observer) == ["one"]


def test_an_observers_queries_are_not_counted(alias: str) -> None:
    """Nor do execute wrappers of the block see them."""
    seen: list[str] = []

    def note(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    wrapper = connections[alias]
    wrapper.force_debug_cursor = True
    try:
        with watching(Asking(alias)), wrapper.execute_wrapper(note):
            before = len(wrapper.queries_log)
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
            logged = [each["sql"] for each in list(wrapper.queries_log)[before:]]
    finally:
        wrapper.force_debug_cursor = False
    assert seen == logged == ["SELECT 1"]


def test_a_thread_that_dies_with_a_lease_is_heard_of(alias: str) -> None:
    """On another thread, because its own is gone."""
    with watching(Watcher(alias)) as watcher:
        idents = run_in_thread(
            lambda: (connections[alias].cursor(), threading.get_ident())[1]
        )
        wait_until(lambda: bool(watcher.leases), "the lease is given back")
    assert watcher.leases[0].thread == idents


def test_a_shared_wrapper_is_heard_of(alias: str) -> None:
    """Elsewhere: its session can't be put aside, because another thread may use it."""
    wrapper = connections[alias]
    wrapper.inc_thread_sharing()
    try:
        with watching(Asking(alias)) as asking:
            assert backend_pid(alias)
            wait_until(lambda: len(asking.pids) == 4, "both were told")
    finally:
        wrapper.dec_thread_sharing()


def test_a_connection_found_broken_is_one_lease_with_the_next(
    alias: str, observer: Any
) -> None:
    """Whoever asked has waited for both."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with watching(Watcher(alias)) as watcher:
            assert backend_pid(alias) != pid
    (lease,) = watcher.leases
    assert watcher.taken_leases == [lease]
    assert lease.waited > 0


def test_a_base_that_connects_in_its_own_way_is_heard_of(alias: str) -> None:
    """Whichever way the connection comes and goes."""

    class Own(type(connections[alias]).__mro__[2]):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()

        def close(self) -> None:
            super().close()

    from django_pg_real_pool import make_release_backend

    with installed(alias, make_release_backend(Own)), pool_of_one(alias):
        backend_pid(alias)
        with watching(Watcher(alias)) as watcher, watching(Asking(alias)) as asking:
            assert backend_pid(alias)
            with transaction.atomic(alias):
                assert backend_pid(alias)
        assert [names[-1] for names in watcher.names] == ["cursor", "transaction"]
        assert len(asking.pids) == 2 * 2 * 2
    assert issubclass(type(connections[alias]), ConnectionReleaseMixin)
    assert census(alias)
