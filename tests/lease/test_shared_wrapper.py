"""R7, R8, D1: threads that share a wrapper, and one that fails to leave its block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import DatabaseError, ProgrammingError, connections
from django.db.transaction import atomic
from faults import extra_alias
from helpers import DEADLINE, backend_pid, installed, wait_until
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend


class Worker(threading.Thread):
    """The other thread: one thing at a time, so that it can be at work in the midst."""

    def __init__(self) -> None:
        super().__init__(daemon=True)  # who waits on a closed socket does so for ever
        self.failures: list[BaseException] = []
        self._wanted: Callable[[], Any] | None = None
        self._has_work, self._is_idle = threading.Event(), threading.Event()
        self._is_idle.set()
        self.start()

    def run(self) -> None:
        while self._has_work.wait():
            self._has_work.clear()
            if self._wanted is None:
                return
            try:
                self._wanted()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.failures.append(error)
            self._is_idle.set()

    def begin(self, work: Callable[[], Any]) -> None:
        assert self._is_idle.wait(DEADLINE)
        self._is_idle.clear()
        self._wanted = work
        self._has_work.set()

    def ends(self, seconds: float = DEADLINE) -> bool:
        return self._is_idle.wait(seconds)

    def do(self, work: Callable[[], Any]) -> None:
        self.begin(work)
        assert self.ends(), "the other thread waits for ever"

    def stop(self) -> None:
        self._wanted = None
        self._has_work.set()


class Shared(NamedTuple):
    """A wrapper that two threads use, and the other one of them."""

    db: Any
    other: Worker
    observer: Any
    #: What the other thread has got.
    got: list[Any]

    def is_active(self, sql: str) -> bool:
        """Return whether the server is running a statement that begins so."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
        )
        return bool(self.observer.execute(query, [f"{sql}%"]).fetchone()[0])

    def select(self, sql: str, cursor: Any = None) -> None:
        """Run a query, as the other thread does."""
        cursor = cursor or self.db.cursor()
        cursor.execute(sql)
        self.got.append(cursor.fetchone()[0])
        cursor.close()


Hook = Callable[[Any], None]


def hooked(base: Any) -> Any:
    """Make a base that tells of a COMMIT that was sent, and of a mode not switched."""

    class Hooked(base):  # type: ignore[misc]
        after_commit: Hook = staticmethod(lambda db: None)
        after_failure: Hook = staticmethod(lambda db: None)

        def _commit(self) -> Any:
            super()._commit()
            self.after_commit(self)

        def _rollback(self) -> Any:
            super()._rollback()
            self.after_commit(self)

        def _set_autocommit(self, autocommit: bool) -> Any:
            try:
                super()._set_autocommit(autocommit)
            except Exception:
                self.after_failure(self)
                raise

    return Hooked


@contextmanager
def shared(engine: str, observer: Any) -> Iterator[Shared]:
    """Share a wrapper of an engine, or of its stock, whose pool is of its own."""
    base = hooked(type(connections[STOCK_OF.get(engine, engine)]))
    made = base if engine not in STOCK_OF else make_release_backend(base)
    with extra_alias(f"shared_{engine}", engine) as name, installed(name, made) as db:
        backend_pid(name)
        db.inc_thread_sharing()
        other = Worker()
        try:
            yield Shared(db, other, observer, [])
        finally:
            db.after_commit = db.after_failure = lambda db: None
            other.stop()
            db.dec_thread_sharing()


@pytest.fixture(params=["ours", "stock"])
def engine(alias: str, request: pytest.FixtureRequest) -> str:
    """Each engine in turn, and its stock, which shows that it can be done."""
    return alias if request.param == "ours" else STOCK_OF[alias]


def leave_a_block(all_of_it: Shared, error: type[Exception] | None = None) -> None:
    """Leave a block, between whose COMMIT and end the other thread runs a statement."""
    once: list[bool] = []

    def begin_a_transaction(db: Any) -> None:
        if not once:
            once.append(True)
            all_of_it.other.do(lambda: all_of_it.select("SELECT 1"))

    all_of_it.db.after_commit = begin_a_transaction
    with atomic(using=all_of_it.db.alias):
        backend_pid(all_of_it.db.alias)
        if error is not None:
            raise error


def end_it(all_of_it: Shared) -> None:
    """Bring the wrapper back to where it was, as its users would."""
    all_of_it.db.rollback()
    all_of_it.db.set_autocommit(True)
    assert backend_pid(all_of_it.db.alias) > 0


@pytest.mark.parametrize("error", [None, LookupError], ids=["commit", "rollback"])
def test_a_block_that_can_not_be_left_leaves_the_connection_open(
    engine: str, observer: Any, error: type[Exception] | None
) -> None:
    """D1, R7: a mode that can't be switched is an ordinary error, no interruption."""
    with shared(engine, observer) as all_of_it:
        db, other, got = all_of_it.db, all_of_it.other, all_of_it.got
        with pytest.raises(ProgrammingError, match="can't change 'autocommit' now"):
            leave_a_block(all_of_it, error)
        assert db.connection is not None
        assert not db.connection.closed
        assert (db.in_atomic_block, db.autocommit) == (False, False)
        other.do(lambda: all_of_it.select("SELECT 2"))
        assert other.failures == []
        assert got == [1, 2]
        end_it(all_of_it)


@pytest.mark.parametrize("error", [None, LookupError], ids=["commit", "rollback"])
def test_a_statement_that_is_running_meanwhile_goes_on(
    engine: str, observer: Any, error: type[Exception] | None
) -> None:
    """R7: else psycopg waits for an answer on a socket that was closed."""
    with shared(engine, observer) as all_of_it:
        db, other, got = all_of_it.db, all_of_it.other, all_of_it.got

        def run_something_long(db: Any) -> None:
            sql = "SELECT 'slept' FROM pg_sleep(0.5)"
            other.begin(lambda: all_of_it.select(sql))
            wait_until(lambda: all_of_it.is_active("SELECT 'slept'"), "it is running")

        db.after_failure = run_something_long
        with pytest.raises(ProgrammingError, match="can't change 'autocommit' now"):
            leave_a_block(all_of_it, error)
        assert other.ends(), "the other thread waits for ever"
        assert other.failures == []
        assert got == [1, "slept"]
        db.after_failure = lambda db: None
        end_it(all_of_it)


def test_a_cursor_that_is_open_meanwhile_stays_open(engine: str, observer: Any) -> None:
    """R7, R8: only close() cuts off the cursors of others."""
    with shared(engine, observer) as all_of_it:
        other, got = all_of_it.other, all_of_it.got
        cursors: list[Any] = []

        def open_one() -> None:
            cursors.append(all_of_it.db.cursor())
            cursors[0].execute("SELECT generate_series(1, 3)")
            got.append(cursors[0].fetchone()[0])

        def go_on() -> None:
            got.append(cursors[0].fetchone()[0])
            cursors[0].execute("SELECT 7")
            got.append(cursors[0].fetchone()[0])
            cursors[0].close()

        def open_one_once(db: Any) -> None:
            if not cursors:
                other.do(open_one)

        all_of_it.db.after_commit = open_one_once
        with (
            pytest.raises(ProgrammingError, match="can't change 'autocommit' now"),
            atomic(using=all_of_it.db.alias),
        ):
            backend_pid(all_of_it.db.alias)
        other.do(go_on)
        assert other.failures == []
        assert got == [1, 2, 7]
        end_it(all_of_it)


def test_what_the_other_thread_wrote_meanwhile_may_be_committed(
    engine: str, observer: Any
) -> None:
    """F7, D1: its transaction goes on until somebody ends it, as in stock."""
    with shared(engine, observer) as all_of_it:
        insert = "INSERT INTO item (name) VALUES ('of the other') RETURNING name"

        def write_once(db: Any) -> None:
            if not all_of_it.got:
                all_of_it.other.do(lambda: all_of_it.select(insert))

        all_of_it.db.after_commit = write_once
        with (
            pytest.raises(ProgrammingError, match="can't change 'autocommit' now"),
            atomic(using=all_of_it.db.alias),
        ):
            backend_pid(all_of_it.db.alias)
        assert observer.execute("SELECT name FROM item").fetchall() == []
        all_of_it.db.commit()
        assert observer.execute("SELECT name FROM item").fetchall() == [("of the other",)]
        all_of_it.db.set_autocommit(True)
        assert backend_pid(all_of_it.db.alias) > 0


def test_the_pool_is_whole_after_a_block_that_could_not_be_left(
    alias: str, observer: Any
) -> None:
    """R3, R8: close() gives the connection back, in no transaction."""
    with shared(alias, observer) as all_of_it:
        with pytest.raises(ProgrammingError, match="can't change 'autocommit' now"):
            leave_a_block(all_of_it)
        all_of_it.db.close()
        assert all_of_it.db.connection is None
        assert backend_pid(all_of_it.db.alias) > 0
        assert all_of_it.db.connection is None
        left = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in trans%'"
        assert observer.execute(left).fetchone() == (0,)


class _Held:
    """Django's lock, if an interruption has left it held: whoever takes it waits for ever."""

    def __enter__(self) -> None:
        raise AssertionError("it would wait for ever")

    def __exit__(self, *args: object) -> None:
        pass


def test_djangos_lock_on_its_count_of_sharers_is_not_taken(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: from Python 3.14 on, an interruption can leave it held."""
    db: Any = connections[alias]
    monkeypatch.setattr(db, "_thread_sharing_lock", _Held())
    with atomic(using=alias):
        backend_pid(alias)
    db.connect()
    db.connect()
    with db.cursor() as cursor:
        closing = threading.Thread(target=cursor.close)
        closing.start()
        closing.join()
        db._lease.reap()
        db._lease.cut_if_stuck()
    assert backend_pid(alias)
    assert db.connection is None


def test_only_who_shares_a_wrapper_may_use_it(alias: str) -> None:
    """D1: it is told so, as on stock."""
    db: Any = connections[alias]
    found: list[bool] = []

    def use() -> None:
        try:
            db.validate_thread_sharing()
        except DatabaseError:
            found.append(False)
        else:
            found.append(True)

    for change in (lambda: None, db.inc_thread_sharing, db.dec_thread_sharing):
        change()
        using = threading.Thread(target=use)
        using.start()
        using.join()
    assert found == [False, True, False]
