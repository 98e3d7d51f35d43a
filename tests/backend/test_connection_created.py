"""D4: when `connection_created` is sent, and what its receivers may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.db import DataError, OperationalError, connections, transaction
from helpers import backend_pid, census, forget_pool, pool_of_one, run_in_thread
from receivers import receiving
from settings import MANUAL_OF, STOCK_OF
from side_by_side import assert_same, describe, observe, rolled_back
from traffic import warm_up

import django_pg_real_pool


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)


class Sent(NamedTuple):
    """One `connection_created`, as its receiver saw it."""

    wrapper: Any
    pid: int
    in_atomic_block: bool
    autocommit: bool


@pytest.fixture
def sent(alias: str) -> Iterator[list[Sent]]:
    """Each signal that a wrapper of `alias` sends during the test."""
    found: list[Sent] = []

    def receiver(db: Any) -> None:
        pid = db.connection.info.backend_pid
        found.append(Sent(db, pid, db.in_atomic_block, db.autocommit))

    with receiving(alias, receiver):
        yield found


def setting(db: Any, name: str = "work_mem") -> str:
    with db.cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchone()[0])


def change_setting(db: Any) -> None:
    with db.cursor() as cursor:
        cursor.execute("SET work_mem = '77MB'")


def test_the_signal_is_sent_once_for_a_session_of_a_wrapper(
    alias: str, wrapper: Any, sent: list[Sent]
) -> None:
    """D4: at a wrapper's first connection, and at the first one after close()."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        for _ in range(3):
            assert backend_pid(alias) == pid
        with transaction.atomic(using=alias):
            backend_pid(alias)
        assert sent == [(wrapper, pid, False, True)]
        for number in range(2, 5):
            wrapper.close()
            assert len(sent) == number - 1
            assert [backend_pid(alias), backend_pid(alias)] == [pid, pid]
            assert len(sent) == number


def test_the_signal_is_sent_for_each_wrapper(
    alias: str, wrapper: Any, sent: list[Sent]
) -> None:
    """D4: a thread's wrapper sends it, though the physical connection is an old one."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        assert run_in_thread(lambda: [backend_pid(alias) for _ in range(3)]) == [pid] * 3
        assert [each.pid for each in sent] == [pid, pid]
        assert [each.wrapper is wrapper for each in sent] == [True, False]
        backend_pid(alias)
        assert len(sent) == 2


def test_the_signal_is_sent_for_each_physical_connection(
    alias: str, wrapper: Any, observer: Any, sent: list[Sent]
) -> None:
    """D4: when it is given out for the first time, by whichever wrapper gets it."""
    with pool_of_one(alias):
        first = backend_pid(alias)
        backend_pid(alias)
        assert len(sent) == 1
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with suppress(OperationalError):  # unless the pool looked before it gave it out
            backend_pid(alias)
        second = backend_pid(alias)
        assert second != first
        assert [each.pid for each in sent] == [first, second]
        assert [each.wrapper for each in sent] == [wrapper, wrapper]
        assert [backend_pid(alias), len(sent)] == [second, 2]


def test_a_receiver_sees_a_wrapper_outside_any_block(
    alias: str, wrapper: Any, sent: list[Sent]
) -> None:
    """D4: also where the connection is taken late, within nested blocks."""
    with transaction.atomic(using=alias), transaction.atomic(using=alias):
        assert sent == []
        backend_pid(alias)
        assert [each[2:] for each in sent] == [(False, True)]
        assert wrapper.in_atomic_block
        assert len(wrapper.savepoint_ids) == 1
        assert len(wrapper.atomic_blocks) == 2
        assert wrapper.get_autocommit() is False


def test_a_receiver_may_run_queries(alias: str, wrapper: Any) -> None:
    """D4: through cursors of its own, which neither recurse nor give the lease away."""
    pids: list[int] = []
    with pool_of_one(alias):
        with receiving(
            alias, lambda db: pids.extend([backend_pid(alias), backend_pid(alias)])
        ):
            pid = backend_pid(alias)
            assert pids == [pid, pid]
            backend_pid(alias)
            assert len(pids) == 2
        assert census(alias).in_use == 0
        assert wrapper.connection is None


def test_a_receiver_may_open_a_block(alias: str, wrapper: Any, observer: Any) -> None:
    """D4: its transaction is its own, committed whatever becomes of the user's."""
    seen: list[Any] = []

    def receiver(db: Any) -> None:
        with transaction.atomic(using=alias), db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('of the receiver')")
            db.on_commit(lambda: seen.append(db.in_atomic_block))
        with rolled_back(db), db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('undone')")

    with receiving(alias, receiver), rolled_back(wrapper), transaction.atomic(using=alias):
        wrapper.on_commit(lambda: seen.append("never"))
        with wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('of the user')")
        assert seen == [False]
    assert seen == [False]
    assert census(alias).in_use == 0
    names = observer.execute("SELECT name FROM item").fetchall()
    assert names == [("of the receiver",)]


def test_what_a_receiver_sets_survives_the_users_rollback(alias: str, wrapper: Any) -> None:
    """D4: a SET at a checkout within atomic() is no part of the block's transaction."""
    with pool_of_one(alias), receiving(alias, change_setting):
        with rolled_back(wrapper), transaction.atomic(using=alias):
            inside = setting(wrapper), backend_pid(alias)
            assert inside[0] == "77MB"
        assert (setting(wrapper), backend_pid(alias)) == inside
        assert run_in_thread(lambda: setting(connections[alias])) == "77MB"


def test_what_a_receiver_sets_is_on_each_connection(alias: str, wrapper: Any) -> None:
    """D4: no query of any wrapper meets a connection that the receiver has not seen."""
    with receiving(alias, change_setting):
        others = [wrapper.copy() for _ in range(2)]
        cursors = [other.cursor() for other in others]
        for cursor in cursors:
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() == ("77MB",)
        for cursor in cursors:
            cursor.close()
        for _ in range(4):
            assert setting(wrapper) == "77MB"
        for other in others:
            other.close()
    forget_pool(alias)  # which would give out the receiver's setting to other tests


@pytest.mark.parametrize("in_block", [False, True], ids=["plain", "in a block"])
def test_a_receiver_that_raises_leaks_nothing(
    alias: str, wrapper: Any, sent: list[Sent], in_block: bool
) -> None:
    """D4: its error reaches the statement; the next wrapper hears of the connection."""

    def fail(db: Any) -> None:
        raise LookupError("of the receiver")

    def use() -> None:
        if in_block:
            with transaction.atomic(using=alias):
                backend_pid(alias)
        else:
            backend_pid(alias)

    with pool_of_one(alias):
        with receiving(alias, fail):
            for _ in range(2):
                with pytest.raises(LookupError, match="of the receiver"):
                    use()
                assert wrapper.connection is None
                assert not wrapper.in_atomic_block
                assert census(alias).in_use == 0
        before = len(sent)
        use()
        assert len(sent) == before + 1
        assert census(alias).in_use == 0


def test_a_receiver_that_raises_ends_as_in_stock(alias: str) -> None:
    """D4: the same error, and the same wrapper after it."""

    def fail(db: Any) -> None:
        with db.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    def program(db: Any) -> Any:
        with receiving(db.alias, fail), pytest.raises(DataError) as caught:
            backend_pid(db.alias)
        db.close()
        return describe(caught.value), backend_pid(db.alias) > 0, db.get_autocommit()

    ours = observe(alias, program)
    assert_same(ours, observe(STOCK_OF[alias], program))
    assert ours.error is None


def test_a_receiver_sees_the_mode_of_the_settings(alias: str) -> None:
    """D4: with `AUTOCOMMIT: False` its statements are in a transaction, as in stock."""

    def program(db: Any) -> Any:
        seen: list[Any] = []

        def receiver(db: Any) -> None:
            change_setting(db)
            seen.append((db.get_autocommit(), db.in_atomic_block))

        with receiving(db.alias, receiver):
            seen.append(setting(db))
            db.commit()
            seen.append(setting(db))
            db.rollback()
        return seen

    manual = MANUAL_OF[alias]
    with pool_of_one(manual):
        ours = observe(manual, program)
        assert_same(ours, observe(f"stock_{manual}", program))
        assert ours.error is None
        assert census(manual).in_use == 0


def test_a_pin_and_an_explicit_connection_announce_too(
    alias: str, wrapper: Any, sent: list[Sent]
) -> None:
    """D4: the signal does not depend on what the first connection was taken for."""
    ways: list[Callable[[], Any]] = [
        wrapper.connect,
        wrapper.ensure_connection,
        partial(django_pg_real_pool.pin_connection(alias).__enter__),
        wrapper.temporary_connection().__enter__,
    ]
    for number, way in enumerate(ways, 1):
        way()
        assert len(sent) == number
        assert sent[-1][2:] == (False, True)
        wrapper.close()
