"""R3: nor can what is thrown into the thread from outside, at any moment."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.transaction import atomic
from helpers import backend_pid, census, forget_pool, wait_until
from interrupting import (
    EVERY,
    PROGRAMS,
    SAMPLE,
    Hit,
    block_all,
    first_of,
    interrupt,
    query_all,
    with_contexts,
)
from leases import (
    Stop,
    add,
    assert_usable,
    committed,
)
from traffic import DryPool, warm_up, watch
from watching import watching

from django_pg_real_pool import observers, pin_connection
from django_pg_real_pool._process import reaper

pytest_plugins = ["fix_traffic"]

#: Of how many moments one is visited: see test_interruptions_by_bytecode.py.
FEWER = min(EVERY, 11)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A process that a shell has put into the background ignores it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted_by(number: signal.Signals, observer: Any, query: str) -> Iterator[None]:
    """Send a signal to this thread while the server works on `query`."""
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    (now,) = observer.execute("SELECT clock_timestamp()").fetchone()
    running = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE state = 'active' AND query_start > %s AND query ~ %s"
    )

    def interrupt() -> None:
        try:
            wait_until(
                lambda: observer.execute(running, [now, f"^{query}"]).fetchone()[0] == 1,
                f"{query} is running",
            )
        finally:
            signal.pthread_kill(main, number)

    def leave(*args: Any) -> None:
        sys.exit(1)

    # As gunicorn's workers do.
    before = signal.signal(signal.SIGTERM, leave)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)


def raised_by(number: signal.Signals) -> type[BaseException]:
    return KeyboardInterrupt if number is signal.SIGINT else SystemExit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("within", ["nothing", "a block", "nested blocks", "a pin"])
def test_a_signal_during_a_statement_leaks_nothing(
    warm: str, wrapper: Any, observer: Any, number: signal.Signals, within: str
) -> None:
    """R3: Ctrl-C or a worker's SIGTERM, while a statement is under way."""

    def run() -> None:
        with ExitStack() as stack:
            if "block" in within:
                stack.enter_context(atomic(using=warm))
                add(warm, "undone")
            if within == "nested blocks":
                stack.enter_context(atomic(using=warm))
            if within == "a pin":
                stack.enter_context(pin_connection(warm))
            cursor = stack.enter_context(wrapper.cursor())
            cursor.execute("SELECT pg_sleep(20)")

    with (
        pytest.raises(raised_by(number)),
        interrupted_by(number, observer, "SELECT pg_sleep"),
    ):
        run()
    assert wrapper.connection is None
    assert committed(observer) == []
    assert_usable(warm, observer)


@pytest.fixture
def _commit_is_slow(observer: Any) -> Iterator[None]:
    """Let COMMIT of a row named "slow" take 20 s, as a deferred constraint can."""
    observer.execute(
        """
        CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION sleep();
        """
    )
    yield
    # The server does not notice at once that nobody waits for it any more.
    observer.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE state = 'active' AND query ~ '^COMMIT'"
    )
    observer.execute("DROP TRIGGER slow ON item; DROP FUNCTION sleep()")


@pytest.mark.usefixtures("_commit_is_slow")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("manually", [False, True])
def test_a_signal_during_commit_leaks_nothing(
    warm: str, wrapper: Any, observer: Any, number: signal.Signals, manually: bool
) -> None:
    """R3: and callbacks of a transaction that was not seen to be committed do not run."""
    calls: list[int] = []

    def run() -> None:
        if manually:
            wrapper.set_autocommit(False)
            with atomic(using=warm):
                add(warm, "slow")
                transaction.on_commit(lambda: calls.append(1), using=warm)
            wrapper.commit()
        else:
            with atomic(using=warm):
                add(warm, "slow")
                transaction.on_commit(lambda: calls.append(1), using=warm)

    # As in stock, the end of the block may fail for its own reasons on top of that.
    with (
        pytest.raises((raised_by(number), ProgrammingError)) as error,
        interrupted_by(number, observer, "COMMIT"),
    ):
        run()
    assert raised_by(number) in map(type, with_contexts(error.value))
    if not manually:
        assert wrapper.connection is None
    close_old_connections()
    assert wrapper.connection is None
    assert_usable(warm, observer)
    assert committed(observer) == ["usable", "and usable again"]
    assert calls == []


def test_an_exception_thrown_into_a_waiting_thread_leaks_nothing(
    brief: DryPool, observer: Any
) -> None:
    """R3: a timeout that hits while the thread waits for a connection."""
    ident = threading.get_ident()
    waiting = threading.Event()

    def throw() -> None:
        assert waiting.wait(10)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(ident), ctypes.py_object(Stop)
        )

    def wait_for_ever() -> None:
        waiting.set()
        while True:
            with suppress(OperationalError):
                brief.wrapper.cursor()

    thread = threading.Thread(target=throw)
    with brief.run_dry():
        thread.start()
        with pytest.raises(Stop):
            wait_for_ever()
        thread.join()
        assert brief.wrapper.connection is None
    assert_usable(brief.alias, observer)


def is_at_rest(alias: str) -> bool:
    """Return whether nothing is out, once the reaper has been, which takes its time."""
    reaper.reap()
    return census(alias).in_use == 0


# Not the user's own pool: what is thrown into its code before it has noted whom it gave
# a connection to, it loses, on stock as well.
@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interruption_at_any_moment_leaks_nothing(
    warm: str, program: Any, used: bool, observer: Any
) -> None:
    """R3: by a timeout at any point between checkout and checkin.

    Whatever was interrupted, the request's end finds everything: afterwards all
    connections are idle, none went back twice, and the wrapper is as good as new.
    """
    original = connections[warm]
    found: list[str] = []
    first = moment = first_of(FEWER)
    hit: Hit | None = None
    while (hit is None or hit) and not found:
        wrapper: Any = original.copy()
        connections[warm] = wrapper
        if used:
            backend_pid(warm)
        with watch(warm) as traffic:
            hit = interrupt(moment, lambda: program(warm))
            wrapper.close()
            wrapper.in_atomic_block = False
            try:
                assert wrapper.connection is None
                wait_until(lambda: is_at_rest(warm), "all connections are idle")
                assert wrapper.get_autocommit(), "autocommit is off"
                pid = backend_pid(warm)
                assert wrapper.connection is None, f"held after a query: {wrapper._lease}"
                with pin_connection(warm):
                    pid = backend_pid(warm)
                    assert backend_pid(warm) == pid
                assert wrapper.connection is None, f"held after a pin: {wrapper._lease}"
            except (AssertionError, DatabaseError) as error:
                found.append(f"interrupted at {hit}: {error!r}, {census(warm)}")
            wrapper.close()
            balance = Counter[int]()
            for move in traffic.moves:
                balance[move.pid] += 1 if move.direction == "out" else -1
                if balance[move.pid] not in (0, 1):
                    found.append(f"interrupted at {hit}: {move.direction} twice: {move}")
        moment += FEWER
    connections[warm] = original
    if found:
        replace_pool(warm)
    assert not found, SAMPLE
    assert moment > first + FEWER, "nothing was interrupted"


@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("used", [False, True])
def test_after_an_interrupted_query_the_next_is_as_ever(
    warm: str, used: bool, observer: Any
) -> None:
    """R3: without any close() in between, it commits and releases as if nothing was."""
    original = connections[warm]
    found: list[str] = []
    first = moment = first_of(FEWER)
    hit: Hit | None = None
    while (hit is None or hit) and not found:
        wrapper: Any = original.copy()
        connections[warm] = wrapper
        if used:
            backend_pid(warm)
        hit = interrupt(moment, lambda: query_all(warm))
        try:
            assert wrapper.get_autocommit() is True
            add(warm, f"after {moment}")
            assert committed(observer)[-1:] == [f"after {moment}"]
            assert wrapper.connection is None, f"held: {wrapper._lease}"
            wait_until(lambda: is_at_rest(warm), "all connections are idle")
        except (AssertionError, DatabaseError) as error:
            found.append(f"interrupted at {hit}: {error!r}, {census(warm)}")
        wrapper.close()
        moment += FEWER
    connections[warm] = original
    if found:
        replace_pool(warm)
    assert not found, SAMPLE
    assert moment > first + FEWER, "nothing was interrupted"


def replace_pool(alias: str) -> None:
    """Make a new pool, so that what one test lost is not missing in the next."""
    wrapper: Any = connections[alias]
    if alias == "own":
        wrapper.pools.pop(alias)
    else:
        forget_pool(alias)
    warm_up(alias)


class Listening(observers.Observer):
    """Hears of each lease, and may query about it."""

    def __init__(self, alias: str, queries: bool) -> None:
        self.alias = alias
        self.queries = queries

    def taken(self, lease: observers.Lease) -> None:
        if self.queries:
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT 2")

    def given_back(self, lease: observers.Lease) -> None:
        self.taken(lease)


@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("program", [query_all, block_all])
def test_after_an_interrupted_observer_the_next_query_is_as_ever(
    warm: str, queries: bool, program: Any, observer: Any
) -> None:
    """R3: nothing stays put aside, and no thread stays in an observer."""
    original = connections[warm]
    found: list[str] = []
    moment = first_of(FEWER)
    hit: Hit | None = None
    with watching(Listening(warm, queries)):
        while (hit is None or hit) and not found:
            wrapper: Any = original.copy()
            connections[warm] = wrapper
            backend_pid(warm)  # what sets its first connection up is another test's
            hit = interrupt(moment, lambda: program(warm))
            try:
                assert not observers.telling
                assert wrapper.get_autocommit() is True
                assert not wrapper.in_atomic_block
                add(warm, f"after {moment}")
                assert committed(observer)[-1:] == [f"after {moment}"]
                assert wrapper.connection is None, f"held: {wrapper._lease}"
                wait_until(lambda: is_at_rest(warm), "all connections are idle")
            except (AssertionError, DatabaseError) as error:
                found.append(f"interrupted at {hit}: {error!r}, {census(warm)}")
            wrapper.close()
            moment += FEWER
    connections[warm] = original
    if found:
        replace_pool(warm)
    assert not found, SAMPLE
    assert moment > 2 * FEWER, "nothing was interrupted"
