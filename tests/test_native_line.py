"""C1, R7: how threads wait for a connection of Django's own pool."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from helpers import pool_of_one, wait_until
from leases import Stop
from psycopg_pool import PoolTimeout

from django_pg_real_pool import pin_connection, pool_status
from django_pg_real_pool._pools import native_line


@pytest.fixture
def place() -> Any:
    """A place in a line, as a pool makes it."""
    line = native_line.Line()
    line.append(native_line._original()())
    return line.popleft()


def waiting_in(place: Any, seconds: float = 1.0) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that waits; return what it gets, too."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(place.wait(seconds))
        except Exception as error:  # noqa: BLE001 - what it is, is looked at
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


def test_who_waits_first_is_served_first() -> None:
    """Under contention the order is the pool's."""
    served: list[int] = []

    def use(number: int) -> None:
        with pin_connection("native"):
            served.append(number)
        connections["native"].close()

    with pool_of_one("native"):
        with pin_connection("native"):
            threads = [threading.Thread(target=use, args=[n]) for n in range(5)]
            for number, thread in enumerate(threads):
                thread.start()
                wait_until(
                    lambda number=number: (  # type: ignore[misc]
                        pool_status("native").census.waiting == number + 1
                    ),
                    f"{number} waits",
                )
        for thread in threads:
            thread.join()
        assert served == [0, 1, 2, 3, 4]


def test_what_is_given_arrives(place: Any) -> None:
    thread, got = waiting_in(place)
    assert place.set("connection")
    thread.join()
    assert got == ["connection"]
    assert not place.set("another")
    assert not place.fail(ValueError())


def test_a_failure_arrives(place: Any) -> None:
    """The pool was closed, say."""
    thread, got = waiting_in(place)
    error = ValueError()
    assert place.fail(error)
    thread.join()
    assert got == [error]


def test_who_has_gone_is_given_nothing(place: Any) -> None:
    """R7: or the connection would be lost."""
    with pytest.raises(PoolTimeout):
        place.wait(0.01)
    assert not place.set("connection")
    assert place.conn is None


def test_what_is_given_at_the_last_moment_arrives(place: Any) -> None:
    """R7: the time was over, but somebody had decided to give already."""
    _, deciding = place._cond
    thread, got = waiting_in(place, 0.01)
    with deciding:
        thread.join(0.1)
        assert thread.is_alive()
        place.conn = "connection"
    thread.join()
    assert got == ["connection"]


def test_what_was_given_without_a_call_arrives(place: Any) -> None:
    """R3: who gave it was interrupted right after that."""
    place.conn = "connection"
    assert place.wait(0.01) == "connection"


@pytest.fixture
def alarm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_who_was_interrupted_is_given_nothing(place: Any) -> None:
    """R3: a BaseException, of which psycopg_pool would not notice."""
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Stop):
        place.wait(10.0)
    assert not place.set("connection")


def test_a_line_of_unknown_places_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another psycopg_pool may have moved something."""

    class Place:
        __slots__ = ("conn", "event")

    assert native_line.is_known()
    monkeypatch.setattr("psycopg_pool.pool.WaitingClient", Place)
    assert not native_line.is_known()


def test_another_kind_of_place_is_left_alone() -> None:
    line, other = native_line.Line(), object()
    line.append(other)
    assert list(line) == [other]
