"""R8, R10, P2, P3: somebody closes the raw connection while it is leased.

What Django calls the connection may be a proxy of the pool's: to close that gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
from django.db import close_old_connections, connections
from django.db.transaction import atomic
from faults import census, extra_alias
from helpers import backend_pid, wait_until
from leases import autocommit_off, block, committed, open_cursor, pin, server_side_cursor

from django_pg_real_pool import (
    ConnectionHeldError,
    assert_released,
    pin_connection,
    pool_status,
)
from django_pg_real_pool.testing import no_leases

SIZE = 2


@pytest.fixture
def pair(alias: str) -> Iterator[str]:
    """Each engine in turn, with a pool of two of its own, which must be whole in the end."""
    with extra_alias(f"pair_{alias}", alias, size=SIZE) as name:
        backend_pid(name)
        yield name
        assert_whole(name)


def assert_whole(alias: str) -> None:
    """Prove that the pool gives out its two connections, and no third one."""
    wait_until(lambda: census(alias).in_use == 0, f"nothing is in use: {census(alias)}")
    copies = [connections[alias].copy() for _ in range(SIZE)]
    cursors = [copy.cursor() for copy in copies]
    for cursor in cursors:
        cursor.execute("SELECT pg_backend_pid()")
    assert len({cursor.fetchone()[0] for cursor in cursors}) == SIZE
    assert census(alias).in_use == SIZE
    for copy in copies:
        copy.close()
    wait_until(lambda: census(alias).in_use == 0, f"nothing is in use: {census(alias)}")


@contextmanager
def explicit_connect(alias: str) -> Iterator[None]:
    connections[alias].ensure_connection()
    yield


@contextmanager
def session_state(alias: str) -> Iterator[None]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SET app.tenant = '1'")
    yield


HOLDS = [
    pin,
    open_cursor,
    server_side_cursor,
    explicit_connect,
    session_state,
    block,
    autocommit_off,
]


def by_django(alias: str) -> None:
    connection: Any = connections[alias].connection
    connection.close()


def by_the_driver(alias: str) -> None:
    connection: Any = connections[alias].connection
    getattr(connection, "driver_connection", connection).close()


@pytest.fixture(params=[by_django, by_the_driver])
def close_by_hand(request: pytest.FixtureRequest) -> Any:
    return request.param


Hold = Callable[[str], AbstractContextManager[None]]
each_hold = pytest.mark.parametrize("hold", HOLDS)


@contextmanager
def ended(held: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a hold whose end may tell that the connection is gone, as in stock."""
    held.__enter__()
    yield
    with suppress(Exception):  # SQLAlchemy's proxy has a None in it, or an assert
        held.__exit__(None, None, None)


@each_hold
def test_close_raises_nothing(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """R8: close() ends every hold, whatever has become of the connection."""
    with ended(hold(pair)):
        close_by_hand(pair)
        connections[pair].close()
    connections[pair].close()
    assert connections[pair].connection is None
    assert backend_pid(pair) > 0


@each_hold
def test_the_end_of_a_request_raises_nothing(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """R8: close_old_connections() neither, which Django calls for each request."""
    with ended(hold(pair)):
        close_by_hand(pair)
        close_old_connections()
    close_old_connections()
    connections[pair].close()
    assert backend_pid(pair) > 0


@each_hold
def test_pool_status_can_be_asked(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """P3: monitoring is for when something is wrong; it and its text raise nothing."""
    with ended(hold(pair)):
        close_by_hand(pair)
        status = pool_status(pair)
        assert status.alias == pair
        assert len(status.leases) <= 1
        assert str(status)
        connections[pair].close()
    connections[pair].close()
    assert pool_status(pair).leases == ()


@each_hold
def test_assert_released_can_be_asked(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """P2: it says that a connection is held, or nothing, but never something else."""
    with ended(hold(pair)):
        close_by_hand(pair)
        with suppress(ConnectionHeldError):
            assert_released(pair)
        with suppress(ConnectionHeldError):
            assert_released()
        with suppress(ConnectionHeldError), no_leases():
            pass
        connections[pair].close()
    connections[pair].close()
    assert_released(pair)


@each_hold
def test_a_hold_may_end_without_close(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """R1, R3: its end gives the connection up; close_old_connections() gets rid of it."""
    with ended(hold(pair)):
        close_by_hand(pair)
    close_old_connections()
    if connections[pair].connection is not None:
        connections[pair].close()  # as stock would need it, with autocommit off
    connections[pair].set_autocommit(True)
    assert backend_pid(pair) > 0
    assert connections[pair].connection is None


@pytest.mark.parametrize("hold", [pin, open_cursor])
def test_the_next_query_gets_another_connection(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """R3: at once, when the hold has ended, without anybody's close()."""
    with hold(pair):
        close_by_hand(pair)
    assert connections[pair].connection is None
    assert backend_pid(pair) > 0
    with atomic(using=pair):
        assert backend_pid(pair) > 0
    assert connections[pair].connection is None


@pytest.mark.parametrize("hold", [pin, explicit_connect, session_state])
def test_a_query_under_the_hold_leaks_nothing(
    pair: str, hold: Hold, close_by_hand: Callable[[str], None]
) -> None:
    """R3: whether it fails, with what stock raises, or gets another connection."""
    with hold(pair):
        close_by_hand(pair)
        for _ in range(2):
            with suppress(Exception):
                backend_pid(pair)
    connections[pair].close()
    assert backend_pid(pair) > 0


@pytest.mark.parametrize("alias", ["dj"], indirect=True)
def test_what_was_given_back_by_hand_is_not_disturbed(pair: str, observer: Any) -> None:
    """R7: SQLAlchemy's pool may have given it out again; close() must not touch it."""
    others = [connections[pair].copy() for _ in range(SIZE)]
    pids: list[int] = []
    try:
        with pin_connection(pair):
            by_django(pair)
            cursors = [other.cursor() for other in others]
            for number, cursor in enumerate(cursors):
                cursor.execute("BEGIN")
                cursor.execute("SELECT pg_backend_pid()")
                pids.append(cursor.fetchone()[0])
                cursor.execute("INSERT INTO item (name) VALUES (%s)", [f"kept {number}"])
            connections[pair].close()
            for cursor, pid in zip(cursors, pids, strict=True):
                cursor.execute("SELECT pg_backend_pid()")
                assert cursor.fetchone() == (pid,)
                cursor.execute("COMMIT")
                cursor.close()
        assert committed(observer) == ["kept 0", "kept 1"]
    except BaseException:
        for pid in pids:  # an open transaction would stop whoever comes next
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        raise
    finally:
        for other in others:
            other.close()


@pytest.mark.parametrize("kind", ["cursor", "chunked_cursor"])
def test_a_cursor_that_is_open_still_may_be_closed_after_close(
    pair: str, close_by_hand: Callable[[str], None], kind: str
) -> None:
    """R5, R8: its lease has ended, so it changes nothing, and raises nothing."""
    for _ in range(2):
        cursor = getattr(connections[pair], kind)()
        cursor.execute("SELECT generate_series(1, 3)")
        close_by_hand(pair)
        connections[pair].close()
        cursor.close()
        assert backend_pid(pair) > 0
