"""R3, R6, R7, S3: a cursor that another thread closes, or reads, while its owner ends its lease.

So it is where a client goes away from an asynchronous stream: the event loop's thread closes
the iterator, and the thread of the request closes its connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from django.db import InterfaceError, connections
from django.db.backends.utils import CursorWrapper
from helpers import DEADLINE, backend_pid, installed, run_in_thread, wait_until
from items import Item
from leases import Stop, time_limit
from psycopg import Connection
from sessions import ask, pool_for_one
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend
from django_pg_real_pool._process import collector
from django_pg_real_pool._process.locks import try_locked

# What is left of a cursor that nobody closed has to be told of elsewhere.
pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")


class Request:
    """A thread with an open server-side iterator, which has read one row."""

    def __init__(self, alias: str, executor: ThreadPoolExecutor) -> None:
        self.alias = alias
        self._executor = executor
        self.rows: Any = None
        self.pid = self.do(self._begin)

    def _begin(self) -> int:
        Item.objects.using(self.alias).bulk_create(Item(name=f"{n}") for n in range(9))
        pid = backend_pid(self.alias)
        self.rows = Item.objects.using(self.alias).iterator(chunk_size=1)
        next(self.rows)
        return pid

    def start(self, what: Callable[[], Any]) -> Future[Any]:
        return self._executor.submit(what)

    def do(self, what: Callable[[], Any]) -> Any:
        return self.start(what).result(DEADLINE)

    def open_another(self) -> Any:
        cursor = connections[self.alias].chunked_cursor()
        cursor.execute("SELECT generate_series(1, 9)")
        return cursor

    def close(self) -> None:
        connections[self.alias].close()

    def lease(self) -> Any:
        wrapper: Any = connections[self.alias]
        return wrapper._lease


@contextmanager
def request_of(alias: str) -> Iterator[Request]:
    """Run a request on a pool of one connection, which must be as good as new after it."""
    with pool_for_one(alias) as name, ThreadPoolExecutor(1) as executor:
        request = Request(name, executor)
        try:
            yield request
            request.do(request.close)
            portals = run_in_thread(lambda: ask(name, "SELECT count(*) FROM pg_cursors"))
            assert portals == 0
        finally:
            executor.submit(connections.close_all)


def test_its_owner_waits_until_the_server_has_answered(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: the connection is not closed under a statement, and need not be replaced."""
    real, me = Connection.wait, threading.get_ident()
    closing: list[Future[Any]] = []

    with request_of(alias) as request:
        # Not by its generator: without the GIL, the thread that has made it ends it.
        cursor = request.do(request.open_another)

        def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == me and not closing:
                closing.append(request.start(request.close))
                with suppress(TimeoutError):
                    closing[0].result(0.3)
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patching:
            patching.setattr(Connection, "wait", wait)
            cursor.close()
        closing[0].result(DEADLINE)
        assert request.do(lambda: backend_pid(request.alias)) == request.pid


def test_nothing_is_sent_while_its_owner_is_at_work(alias: str) -> None:
    """R3, R6: not even if the portal must wait; its own thread ends that, and the lease."""
    is_at_work, may_go_on = threading.Event(), threading.Event()

    def work() -> None:
        is_at_work.set()
        may_go_on.wait(DEADLINE)

    with request_of(alias) as request:
        lease = request.do(request.lease)
        working = request.start(lambda: try_locked(lease, work))
        is_at_work.wait(DEADLINE)
        request.rows.close()
        assert lease.portals
        del request.rows  # which no ResourceWarning tells of
        may_go_on.set()
        working.result(DEADLINE)
        assert request.do(lambda: backend_pid(request.alias)) == request.pid
        assert not lease.is_held


def test_nothing_is_sent_while_a_statement_is_on_its_way(alias: str) -> None:
    """R6: Python may collect an iterator under psycopg's own lock, which is no RLock."""
    with request_of(alias) as request:

        def collect_within() -> None:
            lease = request.lease()
            with lease.physical.lock:
                collector.here.is_at_work = True
                request.rows.close()
                collector.here.is_at_work = False

        request.do(collect_within)
        assert request.do(lambda: backend_pid(request.alias)) == request.pid
        assert not request.do(request.lease).is_held


def test_its_owner_may_close_it_as_well(alias: str) -> None:
    """S3: what the other has left to it is not on the connection that goes back."""
    with request_of(alias) as request:
        cursor = request.do(request.open_another)
        physical = request.do(request.lease).physical
        with physical.lock:  # as in a statement
            cursor.close()
        request.do(cursor.close)


def test_it_sends_nothing_once_it_is_closed(alias: str) -> None:
    """R7, R8: the connection may be another request's by then, in a block."""
    with request_of(alias) as request:
        cursor = request.do(request.open_another)
        cursor.close()
        with pytest.raises(InterfaceError, match="can't be used any more"):
            cursor.execute("SELECT 1")


@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_bases_own_close_runs_without_the_leases_lock(
    alias: str, is_at_work: bool
) -> None:
    """D6, R7: it may wait for a thread that opens a cursor; and it runs in any case."""
    has_lock, wants_cursor = threading.RLock(), threading.Event()
    me, closed = threading.get_ident(), []

    class Cursor(CursorWrapper):
        def close(self) -> None:
            if threading.get_ident() != me:
                if not is_at_work:
                    wants_cursor.wait(DEADLINE)
                with has_lock:
                    closed.append(me)
            self.cursor.close()

    class Base(type(connections[STOCK_OF[alias]])):  # type: ignore[misc]
        def make_cursor(self, cursor: Any) -> Any:
            return Cursor(cursor, self)

    Base.__module__ = "a_users.base"
    with installed(alias, make_release_backend(Base)) as db, ThreadPoolExecutor(1) as other:
        cursor = db.chunked_cursor()
        cursor.execute("SELECT generate_series(1, 9)")
        if is_at_work:
            try_locked(db._lease, lambda: other.submit(cursor.close).result(DEADLINE))
        else:
            with has_lock:
                closing = other.submit(cursor.close)
                wants_cursor.set()
                with suppress(TimeoutError):
                    closing.result(0.2)
                assert not closing.done()
                another = db.cursor()
            closing.result(DEADLINE)
            another.close()
        assert closed == [me]
        db.close()


def test_a_time_limit_that_hits_who_waits_for_it_closes_nothing(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F7: the owner's statement waits until the portal has ended."""
    real, me, is_asked = Connection.wait, threading.get_ident(), threading.Event()
    may_go_on = threading.Event()
    asked: list[int] = []
    with pool_for_one(alias) as name, ThreadPoolExecutor(1) as other:
        db: Any = connections[name]
        portal, cursor = db.chunked_cursor(), db.cursor()
        portal.execute("SELECT generate_series(1, 9)")
        physical = db._lease.physical

        def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != me and not asked:
                asked.append(me)
                is_asked.set()
                may_go_on.wait(DEADLINE)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Connection, "wait", wait)
        closing = other.submit(portal.close)
        is_asked.wait(DEADLINE)
        # To close the cursor waits for the other thread, too.
        threading.Timer(0.5, may_go_on.set).start()
        with time_limit(0.2), pytest.raises(Stop):
            cursor.execute("SELECT 1")
        assert not physical.closed
        closing.result(DEADLINE)
        cursor.close()
        assert ask(name, "SELECT 1") == 1


def test_it_ends_by_itself_if_its_owner_does_not_come_back(alias: str) -> None:
    """R6: the portal is closed at once, and the reaper gives the connection back."""
    with request_of(alias) as request:
        request.rows.close()
        lease = request.do(request.lease)
        wait_until(lambda: not lease.is_held, "the reaper has come")
        assert run_in_thread(lambda: backend_pid(request.alias)) == request.pid


def test_who_waits_for_an_answer_is_told_that_it_is_over(alias: str) -> None:
    """R7: and does not wait for ever for an answer on a socket that is closed."""
    with request_of(alias) as request:
        raw = request.do(lambda: connections[request.alias].cursor().cursor)
        with ThreadPoolExecutor(1) as other:
            reading = other.submit(raw.execute, "SELECT pg_sleep(60)")
            physical = request.do(request.lease).physical
            wait_until(physical.lock.locked, "it reads")
            request.do(request.close)
            with pytest.raises(psycopg.Error):
                reading.result(DEADLINE)
