"""C1, C2: a connection of a QueuePool is had and given back without our own long way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.db import Error, OperationalError, connections
from django.db.transaction import atomic
from helpers import backend_pid, census, forget_pool, installed, pool_of_one
from leases import Stop
from sqlalchemy import event

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._drivers.psycopg3 import KNOWN
from django_pg_real_pool._pools import queue_shortcut
from django_pg_real_pool._pools.queue_pool import QueuePool
from django_pg_real_pool.testing import different_connections

ALIAS = "dj"


@pytest.fixture
def wrapper() -> Iterator[Any]:
    """One that has found the shortcut, and on which nobody has left anything."""
    before: Any = connections[ALIAS]
    wrapper = connections[ALIAS] = before.copy()
    backend_pid(ALIAS)
    assert wrapper._shortcut is not None
    yield wrapper
    wrapper.close()
    connections[ALIAS] = before


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which part of the long way was gone."""
    gone: list[str] = []

    def watch(name: str) -> None:
        original = getattr(QueuePool, name)

        def watched(self: Any, wrapper: Any) -> Any:
            gone.append(name)
            return original(self, wrapper)

        monkeypatch.setattr(QueuePool, name, watched)

    watch("checkout")
    watch("checkin")
    return gone


def pool_of(alias: str) -> Any:
    from dj_db_conn_pool.core import pool_container

    return dict.get(pool_container, alias)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_query_goes_the_short_way(
    wrapper: Any, long_way: list[str], monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """Whatever mode the connection is in, and with the savepoints of nested blocks."""
    monkeypatch.setattr(type(wrapper), "_open_lease", None)
    pid = None
    for entered in (blocks, 0, blocks):
        with ExitStack() as stack:
            for _ in range(entered):
                stack.enter_context(atomic(using=ALIAS))
            pid = pid or backend_pid(ALIAS)
            assert backend_pid(ALIAS) == pid
            assert (wrapper.connection is not None) is bool(entered)
        assert long_way == []
        assert wrapper.connection is wrapper._physical is wrapper._keeper[0] is None
        assert census(ALIAS).in_use == 0


def test_the_connection_is_as_the_package_gives_it_out(wrapper: Any) -> None:
    """D1: so is the proxy's `info`, which is psycopg's there, not SQLAlchemy's."""
    with wrapper.cursor():
        short = wrapper.connection.info
        assert short.backend_pid == wrapper.connection.driver_connection.info.backend_pid
    wrapper.close()
    with wrapper.cursor():
        assert type(wrapper.connection.info) is type(short)


# ##### What is not usual #####


@contextmanager
def somebody_waits(wrapper: Any) -> Iterator[None]:
    line, place = wrapper._hooks.pool._lines[ALIAS], object()
    line.append(place)
    try:
        assert not wrapper._shortcut.take(wrapper)
    finally:
        line.remove(place)
    yield


@contextmanager
def all_are_in_use(wrapper: Any) -> Iterator[None]:
    with ExitStack() as stack:
        pool = pool_of(ALIAS)
        first = [pool.connect() for _ in range(pool.size() + pool._max_overflow)]
        for each in first:
            stack.callback(each.close)
        assert not wrapper._shortcut.take(wrapper)
    yield


@contextmanager
def there_is_another_pool(wrapper: Any) -> Iterator[None]:
    wrapper._hooks.pool.close(wrapper)
    yield
    assert pool_of(ALIAS).checkedin() == 1


@contextmanager
def the_test_kit_is_in_between(wrapper: Any) -> Iterator[None]:
    with different_connections(ALIAS):
        assert not wrapper._shortcut.take(wrapper)
        yield


@pytest.mark.parametrize(
    "unusual",
    [
        somebody_waits,
        all_are_in_use,
        there_is_another_pool,
        the_test_kit_is_in_between,
    ],
)
def test_what_is_not_usual_goes_the_long_way(
    wrapper: Any, unusual: Callable[[Any], Any]
) -> None:
    """R7, F4: and works."""
    with unusual(wrapper):
        assert wrapper.connection is None
        assert backend_pid(ALIAS)
    assert wrapper.connection is None
    assert backend_pid(ALIAS)


def test_a_session_that_was_changed_is_cleaned(wrapper: Any, long_way: list[str]) -> None:
    """S3."""
    with pin_connection(ALIAS), wrapper.cursor() as cursor:
        cursor.execute("SET application_name = 'of a pin'")
    assert long_way == ["checkin"]
    with wrapper.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() != ("of a pin",)


def test_a_transaction_that_close_leaves_is_rolled_back(
    wrapper: Any, long_way: list[str]
) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("BEGIN")
        assert not wrapper._shortcut.put_back(wrapper)
        wrapper.close()
    assert census(ALIAS).in_use == 0
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT now() = statement_timestamp()")
        assert cursor.fetchone() == (True,)


def test_who_finds_the_pool_full_after_all_is_told_who_holds_it(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4: another thread was quicker."""
    with pool_of_one(ALIAS):
        pool_options = wrapper.settings_dict["POOL_OPTIONS"]
        monkeypatch.setitem(pool_options, "TIMEOUT", 0.1)
        backend_pid(ALIAS)
        monkeypatch.setattr(queue_shortcut, "is_full", lambda pool: False)
        other = pool_of(ALIAS).connect()
        with pytest.raises(OperationalError, match=r"'dj'.*in use 1"):
            backend_pid(ALIAS)
        other.close()
        assert wrapper.connection is None
        assert backend_pid(ALIAS)


def test_a_query_that_is_made_while_it_goes_back_has_another(wrapper: Any) -> None:
    """R7: by a signal handler, or as here by who hears of it."""
    given_back: list[int] = []
    taken: list[int] = []

    def query(physical: Any, record: Any) -> None:
        given_back.append(physical.info.backend_pid)
        if not taken:
            taken.append(0)  # for this comes here again
            taken[0] = backend_pid(ALIAS)

    event.listen(pool_of(ALIAS), "checkin", query)
    pid = backend_pid(ALIAS)
    event.remove(pool_of(ALIAS), "checkin", query)
    assert given_back == [pid, *taken]
    assert pid not in taken
    assert wrapper.connection is None
    assert census(ALIAS).in_use == 0


@pytest.mark.parametrize("stays_open", [False, True])
def test_a_query_of_a_signal_handler_just_before_is_let_be(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch, stays_open: bool
) -> None:
    """R7: it gives the connection back itself, or has it still."""
    cursors = []

    def handle() -> float:
        monkeypatch.undo()
        cursors.append(wrapper.cursor())
        cursors[0].execute("SELECT pg_backend_pid()")
        if not stays_open:
            cursors[0].close()
        return time.monotonic()

    with wrapper.cursor():
        monkeypatch.setattr(queue_shortcut, "monotonic", handle)
    assert (wrapper.connection is not None) is stays_open
    assert census(ALIAS).in_use == stays_open
    if stays_open:
        assert cursors[0].fetchone()
        cursors[0].close()
    assert wrapper.connection is None
    assert census(ALIAS).in_use == 0


def test_an_interruption_ends_the_lease_that_has_no_hold_yet(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: the thread may never query again."""

    def interrupted(*args: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(type(wrapper._hooks.driver), "mode_if_ready", interrupted)
        with pytest.raises(Stop), pin_connection(ALIAS):
            pass
    assert wrapper.connection is None
    assert census(ALIAS).in_use == 0


def test_what_went_back_before_an_interruption_does_not_go_back_again(
    wrapper: Any,
) -> None:
    """R7: another thread may have it by now."""
    with wrapper.cursor():
        wrapper.connection.close()
        wrapper._is_given_back = True
        assert not wrapper._shortcut.put_back(wrapper)
    assert wrapper.connection is None
    assert backend_pid(ALIAS)


def test_the_lease_is_as_old_as_its_checkout_and_idleness_as_its_end(
    wrapper: Any,
) -> None:
    """F2, O1."""
    before = time.monotonic()
    with wrapper.cursor():
        assert wrapper._lease.since >= before
        known = vars(wrapper.connection.driver_connection)[KNOWN]
        known.used_at = 0.0
    assert known.used_at >= before


@pytest.mark.parametrize("raised", [RuntimeError, Error])
def test_what_a_listener_raises_is_as_on_the_long_way(
    wrapper: Any, raised: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """R5: what the database raises then is only logged."""

    lost = []

    def refuse(physical: Any, record: Any) -> None:
        lost.append(physical)  # by SQLAlchemy
        raise raised("not now")

    def outcome() -> tuple[object, list[str], object]:
        caplog.clear()
        error = None
        try:
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
        except (RuntimeError, Error) as caught:
            error = caught
        logged = [
            record.getMessage()
            for record in caplog.records
            if record.name == "django_pg_real_pool"
        ]
        assert wrapper.connection is wrapper._physical is wrapper._keeper[0] is None
        assert not wrapper._is_given_back
        return repr(error), logged, wrapper._lease.describe()

    forget_pool(ALIAS)
    backend_pid(ALIAS)
    event.listen(pool_of(ALIAS), "checkin", refuse)
    with caplog.at_level(logging.WARNING):
        short, shortcut = outcome(), wrapper._shortcut
        assert shortcut is not None
        wrapper._shortcut = None
        long = outcome()
    for physical in lost:
        physical.close()
    forget_pool(ALIAS)
    assert short == long
    assert bool(long[1]) is (raised is Error)


def test_the_next_pool_has_the_short_way_too(wrapper: Any, long_way: list[str]) -> None:
    """Though close_pool() was called by another thread, within this one's session."""
    wrapper._hooks.pool.close(wrapper)
    backend_pid(ALIAS)
    assert long_way == ["checkout", "checkin"]
    backend_pid(ALIAS)
    assert long_way == ["checkout", "checkin"]


def test_a_database_that_only_speaks_postgresql_has_it(long_way: list[str]) -> None:
    """D6: the package knows by the vendor what psycopg's connections have."""

    class Other(type(connections["stock_dj"])):  # type: ignore[misc]
        vendor = "other"

    with installed(ALIAS, make_release_backend(Other)):
        pid = backend_pid(ALIAS)
        long_way.clear()
        assert backend_pid(ALIAS) == pid
        assert "checkout" not in long_way
    assert census(ALIAS).in_use == 0


# ##### Where there is none #####


def test_where_the_driver_can_not_tell_there_is_none(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(wrapper._hooks.driver), "guesses", True)
    assert wrapper._hooks.pool.shortcut(wrapper) is None


def test_where_the_base_connects_itself_there_is_none(wrapper: Any) -> None:
    """D6."""
    assert QueuePool(is_overridden=True).shortcut(wrapper) is None
