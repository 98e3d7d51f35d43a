"""R3, F7: the phases of a lease, in whatever happens to it, against their table."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import Error, close_old_connections, connections
from django.db.transaction import atomic
from helpers import backend_pid, census, forget_pool, installed, run_in_thread, wait_until
from leases import ROWS, Stop, Undo
from moments import interruptions
from settings import STOCK_OF
from traffic import warm_up

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._backend import cursor, lower, wrapper
from django_pg_real_pool._lease import giving_back, lease, setup
from django_pg_real_pool._lease.facts import MOVES, Phase
from django_pg_real_pool._lease.lease import Lease
from django_pg_real_pool._pools import native, queue, real_pool
from django_pg_real_pool._process import locks, reaper

#: What is interrupted: all that a query goes through.
ROOMS = (lower, wrapper, cursor, lease, giving_back, setup, native, queue, real_pool, locks)

Move = tuple[Phase, Phase]
F = TypeVar("F", bound=Callable[..., object])


class Watched:
    """Stands for a lease's attribute `phase`, and notes what it is changed to."""

    def __init__(self) -> None:
        self.moves: Counter[Move] = Counter()

    def __get__(self, lease: Any, owner: Any = None) -> Any:
        return self if lease is None else vars(lease)["phase"]

    def __set__(self, lease: Any, phase: Phase) -> None:
        before = vars(lease).get("phase")
        if before is not None:
            self.moves[before, phase] += 1
        else:
            assert phase is Phase.FREE
        vars(lease)["phase"] = phase


@contextmanager
def watched() -> Iterator[Counter[Move]]:
    """Give the moves that leases make during the block."""
    with pytest.MonkeyPatch.context() as patch:
        each = Watched()
        patch.setattr(Lease, "phase", each, raising=False)
        yield each.moves


# ##### What happens to a lease #####


def query(alias: str) -> None:
    backend_pid(alias)
    backend_pid(alias)


def block(alias: str) -> None:
    with atomic(alias):
        query(alias)


def empty_block(alias: str) -> None:
    with atomic(alias):
        pass


def nested_blocks(alias: str) -> None:
    with atomic(alias), atomic(alias):
        query(alias)


def failed_block(alias: str) -> None:
    with suppress(Undo), atomic(alias):
        with suppress(Error), atomic(alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT no_such_column")
        raise Undo


def pin(alias: str) -> None:
    with pin_connection(alias):
        query(alias)


def autocommit_off(alias: str) -> None:
    used = connections[alias]
    used.set_autocommit(False)
    query(alias)
    used.commit()
    query(alias)
    used.rollback()
    used.set_autocommit(True)


def explicit_connect(alias: str) -> None:
    connections[alias].connect()
    connections[alias].connect()
    query(alias)


def ensure_connection(alias: str) -> None:
    connections[alias].ensure_connection()
    connections[alias].ensure_connection()
    close_old_connections()
    connections[alias].close()


def iterator(alias: str) -> None:
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute(ROWS.format(10))
        cursor.fetchmany(3)
        query(alias)
        cursor.fetchall()


def close_with_a_cursor_open(alias: str) -> None:
    cursor = connections[alias].cursor()
    cursor.execute("SELECT 1")
    connections[alias].close()
    cursor.close()


def close_in_a_block(alias: str) -> None:
    with suppress(Error), atomic(alias):
        query(alias)
        connections[alias].close()
        query(alias)


def session_state(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SET statement_timeout = '7s'")
    query(alias)
    connections[alias].close()
    query(alias)


def drop_a_cursor(alias: str) -> None:
    cursor: Any = connections[alias].cursor()
    cursor.execute("SELECT 1")
    del cursor
    gc.collect()
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        query(alias)


def terminate(pid: int) -> None:
    with psycopg.connect(autocommit=True) as observer:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def dead_while_idle(alias: str) -> None:
    pid = backend_pid(alias)
    terminate(pid)
    query(alias)


def dead_in_a_block(alias: str) -> None:
    with suppress(Error), atomic(alias):
        terminate(backend_pid(alias))
        with suppress(Error):
            query(alias)
        query(alias)


def dead_while_idle_in_a_block(alias: str) -> None:
    pid = backend_pid(alias)
    terminate(pid)
    with atomic(alias):
        query(alias)


def refused_by_the_test_runner(alias: str) -> None:
    """As Django's tests forbid a database: by another `ensure_connection()`."""

    def refuse() -> None:
        raise AssertionError("not allowed")

    used: Any = connections[alias]
    vars(used)["ensure_connection"] = refuse
    with pytest.raises(AssertionError, match="not allowed"):
        query(alias)
    del vars(used)["ensure_connection"]


def watched_by_somebody(alias: str) -> None:
    """As a tool watches who connects: by another `connect()`."""
    used: Any = connections[alias]
    vars(used)["connect"] = used.connect
    query(alias)
    block(alias)
    del vars(used)["connect"]


def thread_that_ends(alias: str) -> None:
    reaper.start()
    left: list[Any] = []

    def leave() -> None:
        pin_connection(alias).__enter__()
        left.append(connections[alias])

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    wait_until(lambda: left[0].connection is None, "the reaper gave it back")


def run_in_child(run: Callable[[], None]) -> int:
    """Run in a forked child, and return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status


def fork_with_a_lease(alias: str) -> None:
    """The child's moves are its own, so it is the one who looks at them."""

    def child() -> None:
        with watched() as moves:
            query(alias)
        assert not forbidden(moves)
        assert vars(connections[alias]._lease)["phase"] is Phase.FREE  # type: ignore[attr-defined]

    with atomic(alias):
        query(alias)
        assert run_in_child(child) == 0
        query(alias)


def interrupted(
    program: Callable[[str], None], every: int, then: Callable[[str], object]
) -> Callable[[str], None]:
    """Interrupt a program at many moments, of a new wrapper each; then do something else."""

    def run(alias: str) -> None:
        original: Any = connections[alias]

        def run_anew() -> None:
            connections[alias] = original.copy()
            try:
                program(alias)
            except BaseException as error:
                while error is not None and not isinstance(error, Stop):
                    error = error.__context__  # type: ignore[assignment]
                if error is None:
                    raise
                raise Stop from None

        for where in interruptions(run_anew, *ROOMS, every=every):
            used: Any = connections[alias]
            used.in_atomic_block = False
            with warnings.catch_warnings():  # of a cursor that was lost, say
                warnings.simplefilter("ignore", ResourceWarning)
                then(alias)
                used.close()
            assert used._lease.phase is Phase.FREE, where
            assert used.connection is None, where
            wait_until(partial(is_at_rest, alias), f"what {where} lost is found")
        connections[alias] = original

    run.__name__ = f"{program.__name__}_interrupted_then_{then.__name__}"
    return run


def is_at_rest(alias: str) -> bool:
    run_in_thread(reaper.reap)
    return census(alias).in_use == 0


def reap(alias: str) -> None:
    """The thread does nothing any more: the reaper ends its lease."""
    lease: Any = connections[alias]._lease  # type: ignore[attr-defined]
    run_in_thread(lease.reap)
    assert connections[alias].connection is None


def close(alias: str) -> None:
    connections[alias].close()


PROGRAMS: list[Callable[[str], None]] = [
    *(query, block, empty_block, nested_blocks, failed_block, pin, autocommit_off),
    *(explicit_connect, ensure_connection, iterator, close_with_a_cursor_open),
    *(close_in_a_block, session_state, drop_a_cursor, dead_while_idle, dead_in_a_block),
    *(dead_while_idle_in_a_block, refused_by_the_test_runner, watched_by_somebody),
    *(thread_that_ends, fork_with_a_lease),
]
INTERRUPTED = [
    interrupted(query, 11, close),
    interrupted(query, 13, backend_pid),
    interrupted(query, 17, reap),
    interrupted(block, 29, close),
    interrupted(pin, 23, close),
    interrupted(explicit_connect, 23, close),
    interrupted(watched_by_somebody, 41, close),
    interrupted(session_state, 41, close),
]


# ##### Of whom #####


@cache
def made(alias: str, *overridden: str) -> Any:
    """Return a backend whose base has hooks of its own."""

    def through(name: str) -> Callable[..., Any]:
        return lambda self, *args: getattr(super(base, self), name)(*args)

    base: Any = type(
        "DatabaseWrapper",
        (type(connections[STOCK_OF[alias]]),),
        {"__module__": __name__, **{name: through(name) for name in overridden}},
    )
    return make_release_backend(base)


#: Engines, and the hooks that their base overrides.
BASES: list[tuple[str, tuple[str, ...]]] = [
    *((alias, ()) for alias in STOCK_OF),
    *((alias, ("connect",)) for alias in STOCK_OF),
    *((alias, ("close",)) for alias in STOCK_OF),
    *((alias, ("connect", "close", "_cursor")) for alias in STOCK_OF),
]


#: All programs, each with whom it is run with.  The user's own pool is not interrupted: what
#: is thrown into its code it loses, on stock as well.
RUNS = [
    *((program, alias, hooks) for program in PROGRAMS for alias, hooks in BASES),
    *(
        (program, alias, hooks)
        for program in INTERRUPTED
        for alias, hooks in [
            *(("native", ()), ("dj", ()), ("native", ("close",))),
            ("dj", ("connect", "close", "_cursor")),
        ]
        if alias in STOCK_OF
    ),
]


@cache
def moves_of(program: Callable[[str], None], alias: str, hooks: tuple[str, ...]) -> Any:
    """Run a program, and return the moves that leases made meanwhile."""
    warm_up(alias)
    with ExitStack() as stack:
        moves = stack.enter_context(watched())
        if hooks:  # with a pool of its own, which its class has made
            stack.callback(forget_pool, alias)
            stack.enter_context(installed(alias, made(alias, *hooks)))
            forget_pool(alias)
            warm_up(alias)
        program(alias)
        connections[alias].close()
    return moves


def forbidden(moves: Counter[Move]) -> set[Move]:
    return {(before, after) for before, after in moves if after not in MOVES[before]}


def loses_cursors(test: F) -> F:
    """An interruption may lose a cursor, which says so when it is collected."""
    for ignored in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{ignored}")(test)
    return test


def name_of(run: Any) -> str:
    program, alias, hooks = run
    return "-".join([program.__name__, alias, *hooks])


@loses_cursors
@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_a_lease_goes_from_phase_to_phase_as_the_table_says(run: Any) -> None:
    moves = moves_of(*run)
    assert not forbidden(moves)


@loses_cursors
def test_each_move_of_the_table_is_made() -> None:
    """By one of these, in one of these engines: what never occurs has no place in it."""
    seen: set[Move] = set()
    for run in RUNS:
        seen.update(moves_of(*run))
    assert seen == {(before, after) for before in MOVES for after in MOVES[before]}


def test_each_phase_can_be_come_to_and_left() -> None:
    assert set(MOVES) == set(Phase)
    assert set().union(*MOVES.values()) == set(Phase)
    assert all(MOVES.values())
