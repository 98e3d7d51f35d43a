"""R6, R8: cursors that nobody closes, or that `close()` finds open."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from django.db import (
    DatabaseError,
    InterfaceError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.transaction import atomic
from helpers import backend_pid, census, run_in_thread, wait_until
from leases import (
    ROWS,
    add,
    assert_usable,
    autocommit_off,
    begun_by_hand,
    committed,
    fill,
    is_leased,
    names_and_pids,
    open_cursor,
    pin,
    server_side_cursor,
)
from settings import STOCK_OF
from traffic import DryPool, Traffic

from django_pg_real_pool import pin_connection
from django_pg_real_pool._process import reaper

pytest_plugins = ["fix_traffic"]


# ##### R6 #####


def drop_a_cursor(wrapper: Any, server_side: bool = False) -> None:
    cursor = wrapper.chunked_cursor() if server_side else wrapper.cursor()
    cursor.execute(ROWS.format(10))


def run_a_query(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "the next cursor": lambda wrapper: wrapper.cursor().close(),
    "the end of a block": lambda wrapper: atomic(using=wrapper.alias)(run_a_query)(wrapper),
    "the end of an empty block": lambda wrapper: atomic(using=wrapper.alias)(len)(()),
    "commit()": lambda wrapper: wrapper.commit(),
    "rollback()": lambda wrapper: wrapper.rollback(),
    "close()": lambda wrapper: wrapper.close(),
    "the end of a request": lambda wrapper: close_old_connections(),
    "a pin's end": lambda wrapper: pin_connection(wrapper.alias)(len)(()),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("dropped", [1, 3])
def test_a_dropped_cursor_is_reclaimed_at_the_next_entry(
    warm: str, wrapper: Any, entry: str, dropped: int
) -> None:
    """R6: not when it is dropped, but as soon as the wrapper is used again."""
    cursors = [wrapper.cursor() for _ in range(dropped)]
    cursors[0].execute("SELECT 1")
    cursors.clear()
    assert is_leased(warm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        ENTRIES[entry](wrapper)
    assert not is_leased(warm)


def test_a_dropped_cursor_is_warned_of(warm: str, wrapper: Any) -> None:
    """R6: a ResourceWarning for each says which alias, and that it was not closed."""
    drop_a_cursor(wrapper)
    one_more = wrapper.cursor
    with pytest.warns(ResourceWarning) as caught:
        one_more().close()
    message = (
        f"a cursor on database alias {warm!r} was dropped without close(), "
        "which kept its connection until now"
    )
    assert [str(warning.message) for warning in caught] == [message]
    assert not is_leased(warm)


def test_a_closed_cursor_is_not_warned_of(warm: str, wrapper: Any) -> None:
    """R6: warnings are errors here, so there was none."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    cursor = wrapper.cursor()
    cursor.close()
    del cursor
    gc.collect()
    wrapper.cursor().close()
    assert not is_leased(warm)


@pytest.mark.parametrize("entry", sorted({*ENTRIES} - {"close()", "the end of a request"}))
def test_a_warning_that_is_an_error_leaks_nothing(
    warm: str, wrapper: Any, entry: str, observer: Any
) -> None:
    """R6: with `-W error` the warning is raised; that must not keep the connection."""
    cursors = [wrapper.cursor(), wrapper.cursor()]
    cursors.clear()
    with pytest.raises(ResourceWarning):
        ENTRIES[entry](wrapper)
    assert not is_leased(warm)
    assert_usable(warm, observer)


def test_it_says_where_a_dropped_cursor_was_opened(
    warm: str,
    wrapper: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R6: DJANGO_PG_REAL_POOL_WARN_UNCLOSED_CURSORS=1 also logs it, with the place."""
    monkeypatch.setenv("DJANGO_PG_REAL_POOL_WARN_UNCLOSED_CURSORS", "1")
    frame = sys._getframe()
    cursor, line = wrapper.cursor(), frame.f_lineno
    opened_at = f"{__file__}:{line} in {frame.f_code.co_name}"
    del cursor
    with pytest.warns(ResourceWarning) as caught:
        wrapper.cursor().close()
    message = (
        f"a cursor on database alias {warm!r} was dropped without close(), "
        f"which kept its connection until now; it was opened at {opened_at}"
    )
    assert [str(warning.message) for warning in caught] == [message]
    assert caplog.record_tuples == [("django_pg_real_pool", logging.WARNING, message)]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_it_logs_no_dropped_cursor_unless_told_to(
    warm: str,
    wrapper: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str | None,
) -> None:
    """R6: the log is for those who ask for it."""
    name = "DJANGO_PG_REAL_POOL_WARN_UNCLOSED_CURSORS"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    drop_a_cursor(wrapper)
    with pytest.warns(ResourceWarning):
        wrapper.cursor().close()
    assert caplog.record_tuples == []


def test_a_cursor_lost_in_a_cycle_is_not_released_by_the_collector(
    warm: str, wrapper: Any, traffic: Traffic
) -> None:
    """R6: the garbage collector may run in any thread; no connection moves there."""

    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.cursor = wrapper.cursor()

    gc.disable()
    try:
        Holder().cursor.execute("SELECT 1")
        wrapper_moves = list(traffic.moves)
        assert is_leased(warm)
        run_in_thread(gc.collect)
        assert traffic.moves == wrapper_moves
        assert is_leased(warm)
    finally:
        gc.enable()
    with pytest.warns(ResourceWarning):
        backend_pid(warm)
    assert not is_leased(warm)
    assert {move.thread for move in traffic.moves} == {threading.get_ident()}


class InACycle:
    """Keeps an iterator until garbage is collected."""

    def __init__(self, rows: Any) -> None:
        self.me = self
        self.rows = rows


#: Without the GIL, Python finalises the driver's cursor before the generator that reads from
#: it and would close it.
finalised_first = pytest.mark.filterwarnings("ignore:.*was deleted while still open")


@finalised_first
@pytest.mark.parametrize("how", ["in another thread", "in this thread"])
def test_an_iterator_lost_in_a_cycle_is_not_released_by_another_thread(
    warm: str, wrapper: Any, traffic: Traffic, how: str
) -> None:
    """R6: a generator that is collected closes its cursor, on the collector's thread."""
    fill(warm, 10)

    before = traffic.checkouts
    gc.disable()
    try:
        next(InACycle(names_and_pids(warm)).rows)
        assert is_leased(warm)
        if how == "in this thread":
            gc.collect()
        else:
            run_in_thread(gc.collect)
            assert is_leased(warm)
            assert traffic.checkouts == traffic.checkins + 1
    finally:
        gc.enable()
    backend_pid(warm)
    assert not is_leased(warm)
    assert traffic.checkouts > before
    assert {move.thread for move in traffic.moves} == {threading.get_ident()}


@finalised_first
def test_an_iterator_lost_in_a_cycle_is_given_back_if_nobody_comes(warm: str) -> None:
    """R6: a thread that is idle from here on must not keep a connection."""
    fill(warm, 10)

    gc.disable()
    try:
        next(InACycle(names_and_pids(warm)).rows)
        gc.collect()
        assert is_leased(warm)
    finally:
        gc.enable()
    wait_until(lambda: connections[warm].connection is None, "the reaper has come")
    assert not is_leased(warm)


@finalised_first
def test_a_cursor_collected_inside_the_pool_releases_nothing_there(
    warm: str, wrapper: Any, traffic: Traffic
) -> None:
    """R6: Python may collect garbage at any allocation, so also under the pool's lock."""
    fill(warm, 10)

    other = wrapper.copy()
    pool = type(other._hooks.pool)
    take = pool.take

    def collect_and_take(self: Any, session: Any) -> Any:
        checkins = traffic.checkins
        gc.collect()
        assert traffic.checkins == checkins
        return take(self, session)

    gc.disable()
    try:
        # A lease of this thread's wrapper, lost in a cycle.
        next(InACycle(names_and_pids(warm)).rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "take", collect_and_take)
            patch.setattr(reaper, "reap", lambda: None)  # it comes after half a second
            with other.cursor() as cursor:
                cursor.execute("SELECT 1")
        assert wrapper.connection is not None
    finally:
        gc.enable()
    backend_pid(warm)
    assert not is_leased(warm)


def test_a_dropped_server_side_cursor_leaves_no_portal_behind(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """R6: WITH HOLD makes it outlive its transaction, so somebody must close it."""
    with pin_connection(warm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            drop_a_cursor(wrapper, server_side=True)
            gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            backend_pid(warm)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT name FROM pg_cursors")
            assert cursor.fetchall() == []
    assert not is_leased(warm)


# ##### R8 #####


@contextmanager
def cursor_and_pin(alias: str) -> Iterator[None]:
    with pin_connection(alias), connections[alias].cursor():
        yield


@pytest.mark.parametrize(
    "hold",
    [open_cursor, server_side_cursor, autocommit_off, begun_by_hand, pin, cursor_and_pin],
)
def test_close_ends_every_hold(warm: str, wrapper: Any, hold: Any) -> None:
    """R8: and leaving them afterwards changes nothing about the present lease."""
    with hold(warm):
        assert is_leased(warm)
        wrapper.close()
        assert not is_leased(warm)
        assert wrapper.get_autocommit()
        backend_pid(warm)
        assert not is_leased(warm)
        wrapper.ensure_connection()
        wrapper.set_autocommit(False) if hold is autocommit_off else None
    wrapper.close()
    assert not is_leased(warm)


@pytest.mark.parametrize("nested", [False, True])
def test_close_within_a_block_ends_it(
    warm: str, wrapper: Any, observer: Any, nested: bool
) -> None:
    """R8: what the block did is undone, and nothing runs until it is left, as in stock."""

    def program(alias: str) -> list[Any]:
        seen: list[Any] = []
        with atomic(using=alias), ExitStack() as stack:
            if nested:
                stack.enter_context(atomic(using=alias))
            add(alias, "undone")
            transaction.on_commit(lambda: seen.append("never"), using=alias)
            cursor = connections[alias].cursor()
            connections[alias].close()
            if alias == warm:
                assert census(alias).in_use == 0
            try:
                add(alias, "never")
            except DatabaseError as error:
                seen.append("refused" if isinstance(error, DatabaseError) else repr(error))
            cursor.close()
        seen.append(
            (connections[alias].in_atomic_block, connections[alias].get_autocommit())
        )
        return seen

    assert program(warm) == ["refused", (False, True)]
    assert committed(observer) == []
    assert_usable(warm, observer)


STATEMENTS: dict[str, Callable[[Any], Any]] = {
    "execute()": lambda cursor: cursor.execute("INSERT INTO item (name) VALUES ('stray')"),
    "executemany()": lambda cursor: cursor.executemany(
        "INSERT INTO item (name) VALUES (%s)", [["stray"], ["dog"]]
    ),
    "callproc()": lambda cursor: cursor.callproc("now"),
    "copy()": lambda cursor: cursor.copy("COPY item TO STDOUT").__enter__(),
    "stream()": lambda cursor: list(cursor.stream("SELECT 1")),
    "the driver's execute()": lambda cursor: cursor.cursor.execute("SELECT 1"),
    "the driver's connection": lambda cursor: cursor.connection.execute("SELECT 1"),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("server_side", [False, True])
def test_a_detached_cursor_never_reaches_the_connection(
    brief: DryPool, observer: Any, statement: str, server_side: bool, debug: bool
) -> None:
    """R8: it may be another thread's by now, in the middle of a transaction."""
    wrapper = brief.wrapper
    wrapper.force_debug_cursor = debug
    cursor = wrapper.chunked_cursor() if server_side else wrapper.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    wrapper.close()
    running, done = threading.Event(), threading.Event()

    def use_it() -> Any:
        with atomic(using=brief.alias):
            add(brief.alias, "of the other thread")
            found = backend_pid(brief.alias)
            running.set()
            assert done.wait(10)
        return found

    look = "SELECT query, state, state_change FROM pg_stat_activity WHERE pid = %s"
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run_in_thread(use_it)))
    thread.start()
    try:
        assert running.wait(10)
        before = observer.execute(look, [pid]).fetchone()
        with pytest.raises((InterfaceError, psycopg.InterfaceError)) as error:
            STATEMENTS[statement](cursor)
        if statement in ("execute()", "executemany()", "callproc()"):
            assert type(error.value) is InterfaceError
        assert observer.execute(look, [pid]).fetchone() == before
        cursor.close()
        assert observer.execute(look, [pid]).fetchone() == before
    finally:
        done.set()
        thread.join()
    assert results == [pid]
    assert committed(observer) == ["of the other thread"]


def test_rows_that_were_fetched_stay_readable(warm: str, wrapper: Any) -> None:
    """R8: what the driver has already needs no connection, as in stock."""

    def program(alias: str) -> list[Any]:
        cursor = connections[alias].cursor()
        cursor.execute("SELECT number FROM generate_series(1, 6) AS number")
        first = cursor.fetchone()
        connections[alias].close()
        return [
            first,
            cursor.fetchone(),
            cursor.fetchmany(2),
            cursor.fetchall(),
            cursor.fetchone(),
            cursor.rowcount,
            cursor.description[0].name,
            cursor.close(),
        ]

    assert program(warm) == program(STOCK_OF[warm])
    assert not is_leased(warm)


def test_a_copy_of_a_detached_cursor_is_detached_too(warm: str, wrapper: Any) -> None:
    """R8: tools wrap the driver's cursor again; it is that one which is cut off."""
    cursor = wrapper.cursor()
    copy = type(cursor)(cursor.cursor, wrapper)
    wrapper.close()
    for each in (cursor, copy):
        with pytest.raises(InterfaceError):
            each.execute("SELECT 1")
    assert not is_leased(warm)


def test_every_open_cursor_is_detached(warm: str, wrapper: Any) -> None:
    """R8: not only the last, and whatever kind it is."""
    cursors = [wrapper.cursor(), wrapper.chunked_cursor(), wrapper.cursor()]
    for cursor in cursors:
        cursor.execute(ROWS.format(3))
    wrapper.close()
    for cursor in cursors:
        with pytest.raises((InterfaceError, psycopg.InterfaceError)):
            cursor.execute("SELECT 1")
        cursor.close()
    assert not is_leased(warm)


def test_a_cursor_is_detached_before_the_connection_goes_back(
    warm: str, wrapper: Any, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8: not a moment later, for the next thread may be waiting for it."""
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1")
    refusals: list[BaseException] = []
    back = traffic.back

    def try_and_go_back(key: Any) -> None:
        with pytest.raises(psycopg.InterfaceError) as refusal:
            cursor.cursor.execute("SELECT 'stray'")
        refusals.append(refusal.value)
        back(key)

    monkeypatch.setattr(traffic, "back", try_and_go_back)
    wrapper.close()
    assert len(refusals) == traffic.checkins == 1
    assert not is_leased(warm)


def test_a_server_side_cursor_is_closed_before_the_connection_goes_back(
    brief: DryPool,
) -> None:
    """R8: its portal would be in the next user's session, and its snapshot held."""
    cursor = brief.wrapper.chunked_cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    brief.wrapper.close()
    with brief.wrapper.cursor() as other:
        other.execute("SELECT pg_backend_pid(), (SELECT count(*) FROM pg_cursors)")
        assert other.fetchone() == (pid, 0)
    with pytest.raises((InterfaceError, psycopg.InterfaceError)):
        cursor.fetchone()
    cursor.close()


def test_the_end_of_a_request_detaches_what_is_open(warm: str, wrapper: Any) -> None:
    """R8: `close_old_connections()` is the `close()` that Django calls."""
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1")
    close_old_connections()
    assert not is_leased(warm)
    assert cursor.fetchone() == (1,)
    with pytest.raises(InterfaceError):
        cursor.execute("SELECT 1")
