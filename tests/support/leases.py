"""What the tests of holding and releasing do and ask, over and over."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db import (
    connections,
)
from django.db.transaction import atomic
from helpers import backend_pid, census, wait_until
from items import Item

from django_pg_real_pool import pin_connection

ROWS = "SELECT pg_backend_pid(), number FROM generate_series(1, {}) AS number"


class Undo(Exception):
    """What a block raises so that it is rolled back."""


class Stop(BaseException):
    """What a timeout throws into a thread: no Exception, so that nobody catches it."""


@contextmanager
def alarm_clock(
    first: Callable[[], None] = lambda: None,
) -> Iterator[Callable[[float], object]]:
    """Give what lets a signal raise Stop in so many seconds, when its handler has done `first`."""

    def handle(number: int, frame: Any) -> None:
        first()
        raise Stop

    before = signal.signal(signal.SIGALRM, handle)
    try:
        yield partial(signal.setitimer, signal.ITIMER_REAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def time_limit(seconds: float, first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise Stop in a block after so many seconds, when the handler has done `first`."""
    with alarm_clock(first) as ring_in:
        ring_in(seconds)
        yield


def add(alias: str, name: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])


def committed(observer: Any) -> list[str]:
    """Return what a third connection sees in the table."""
    rows = observer.execute("SELECT name FROM item ORDER BY id").fetchall()
    return [name for (name,) in rows]


def is_leased(alias: str) -> bool:
    """Return whether the wrapper has a connection; the pool must say the same."""
    leased = connections[alias].connection is not None
    # A pool may be replacing a connection that an earlier test broke.
    wait_until(
        lambda: census(alias).in_use == int(leased),
        f"the wrapper is leased: {leased}, its pool: {census(alias)}",
    )
    return leased


def assert_usable(alias: str, observer: Any) -> None:
    """Prove that the wrapper is as good as new, and that its pool is complete."""
    wrapper: Any = connections[alias]
    assert wrapper.connection is None, f"{wrapper._lease}"
    assert not wrapper.in_atomic_block
    assert not wrapper.needs_rollback
    assert wrapper.get_autocommit() is True
    wait_until(
        lambda: census(alias).in_use == 0, f"all of {alias} is idle: {census(alias)}"
    )
    before = committed(observer)
    with atomic(using=alias):
        add(alias, "usable")
    assert committed(observer) == [*before, "usable"]
    add(alias, "and usable again")
    assert committed(observer) == [*before, "usable", "and usable again"]
    assert wrapper.connection is None
    wait_until(
        lambda: census(alias).in_use == 0, f"all of {alias} is idle: {census(alias)}"
    )


def fill(alias: str, count: int) -> list[str]:
    names = [f"{number:04}" for number in range(count)]
    Item.objects.using(alias).bulk_create(Item(name=name) for name in names)
    return names


def names_and_pids(alias: str) -> Iterator[tuple[str, int]]:
    """Iterate over the items by a server-side cursor, three rows at a time."""
    from django.db.models import Func, IntegerField

    pid = Func(function="pg_backend_pid", output_field=IntegerField())
    rows = Item.objects.using(alias).order_by("name").annotate(pid=pid)
    yield from rows.values_list("name", "pid").iterator(chunk_size=3)


@contextmanager
def open_cursor(alias: str) -> Iterator[None]:
    with connections[alias].cursor():
        yield


@contextmanager
def server_side_cursor(alias: str) -> Iterator[None]:
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute(ROWS.format(10))
        yield


@contextmanager
def block(alias: str) -> Iterator[None]:
    with atomic(using=alias):
        backend_pid(alias)
        yield


@contextmanager
def autocommit_off(alias: str) -> Iterator[None]:
    wrapper = connections[alias]
    wrapper.set_autocommit(False)
    backend_pid(alias)
    yield
    wrapper.commit()
    wrapper.set_autocommit(True)


@contextmanager
def begun_by_hand(alias: str) -> Iterator[None]:
    with connections[alias].cursor() as cursor:
        cursor.execute("BEGIN")
    yield
    with connections[alias].cursor() as cursor:
        cursor.execute("COMMIT")


@contextmanager
def pin(alias: str) -> Iterator[None]:
    with pin_connection(alias):
        yield


HOLDS = [open_cursor, server_side_cursor, block, autocommit_off, begun_by_hand, pin]
