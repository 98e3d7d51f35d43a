"""R3, F7: the phases of a lease, in whatever happens to it, against their table."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from itertools import count
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import Error, close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from helpers import backend_pid, census, forget_pool, installed, run_in_thread, wait_until
from leases import ROWS, Stop, Undo
from settings import STOCK_OF
from traffic import warm_up

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._lease.facts import MOVES, Phase
from django_pg_real_pool._lease.lease import Lease
from django_pg_real_pool._process import reaper

Move = tuple[Phase, Phase]
F = TypeVar("F", bound=Callable[..., object])


class Watched:
    """Stands for a lease's attribute `phase`, and notes what it is changed to."""

    def __init__(self) -> None:
        self.moves: Counter[Move] = Counter()
        #: Raise Stop at the change with this number from now on; 0: at none.
        self.stop_at = 0
        #: But after it.
        self.stop_after = False

    def __get__(self, lease: Any, owner: Any = None) -> Any:
        return self if lease is None else vars(lease)["phase"]

    def __set__(self, lease: Any, phase: Phase) -> None:
        before = vars(lease).get("phase")
        if before is None:
            assert phase is Phase.FREE
            vars(lease)["phase"] = phase
            return
        self.stop_at -= 1
        is_interrupted = self.stop_at == 0
        if is_interrupted and not self.stop_after:
            raise Stop
        self.moves[before, phase] += 1
        vars(lease)["phase"] = phase
        if is_interrupted:
            raise Stop


def watching() -> Watched:
    return vars(Lease)["phase"]  # type: ignore[no-any-return]


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


def fork(run: Callable[[], object]) -> None:
    """Run in a forked child, and note the moves that leases make in it."""
    reader, writer = os.pipe()
    before = watching().moves.copy()
    child = os.fork()
    if child == 0:
        try:
            run()
            with os.fdopen(writer, "wb") as file:
                pickle.dump(watching().moves - before, file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    os.waitpid(child, 0)
    assert text, "the child has failed"
    watching().moves.update(pickle.loads(text))


def fork_with_a_lease(alias: str) -> None:
    with atomic(alias):
        query(alias)
        fork(lambda: query(alias))
        query(alias)


def fork_without_a_lease(alias: str) -> None:
    query(alias)
    fork(lambda: query(alias))
    query(alias)


def close_by_a_receiver(alias: str) -> None:
    """As a tool may that does not want what it gets."""

    def close(connection: Any, **_: Any) -> None:
        connection_created.disconnect(close)
        connection.close()

    connection_created.connect(close)
    with suppress(AttributeError):  # as on stock
        query(alias)
    query(alias)


def close_past_everybody(alias: str) -> None:
    """By Django's own method, which knows nothing of a lease."""
    with suppress(Error), pin_connection(alias) as used:
        query(alias)
        BaseDatabaseWrapper.close(used)
        query(alias)


def interrupted(
    program: Callable[[str], None], stop_after: bool, then: Callable[[str], object]
) -> Callable[[str], None]:
    """Interrupt a program before or after each change of phase; then do something else."""

    def run(alias: str) -> None:
        original: Any = connections[alias]
        for moment in count(1):
            used = connections[alias] = original.copy()
            watch = watching()
            watch.stop_at, watch.stop_after = moment, stop_after
            try:
                program(alias)
            except BaseException as error:
                if Stop not in map(type, with_contexts(error)):
                    raise
            was_interrupted, watch.stop_at = watch.stop_at <= 0, 0
            used.in_atomic_block = False
            for name in ("connect", "ensure_connection"):
                vars(used).pop(name, None)
            with warnings.catch_warnings():  # of a cursor that was lost, say
                warnings.simplefilter("ignore", ResourceWarning)
                then(alias)
                used.close()
            assert used.connection is None
            wait_until(partial(is_at_rest, alias), "what was lost is found")
            backend_pid(alias)
            assert used._lease.phase is Phase.FREE
            if not was_interrupted:
                break
        connections[alias] = original

    when = "after" if stop_after else "before"
    run.__name__ = f"{program.__name__}_interrupted_{when}_then_{then.__name__}"
    return run


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def is_at_rest(alias: str) -> bool:
    run_in_thread(reaper.reap)
    return census(alias).in_use == 0


def reap(alias: str) -> None:
    """The thread does nothing for a while: the reaper ends its lease, if nothing holds it."""
    lease: Any = connections[alias]._lease  # type: ignore[attr-defined]
    run_in_thread(lease.reap)


def close(alias: str) -> None:
    connections[alias].close()


PROGRAMS: list[Callable[[str], None]] = [
    *(query, block, empty_block, nested_blocks, failed_block, pin, autocommit_off),
    *(explicit_connect, ensure_connection, iterator, close_with_a_cursor_open),
    *(close_in_a_block, session_state, drop_a_cursor, dead_while_idle, dead_in_a_block),
    *(dead_while_idle_in_a_block, refused_by_the_test_runner, watched_by_somebody),
    *(thread_that_ends, fork_with_a_lease, fork_without_a_lease, close_by_a_receiver),
    close_past_everybody,
]
INTERRUPTED = [
    *(
        interrupted(query, stop_after, then)
        for stop_after in (False, True)
        for then in (close, reap, backend_pid)
    ),
    *(
        interrupted(program, stop_after, close)
        for program in (pin, explicit_connect, session_state, dead_while_idle)
        for stop_after in (False, True)
    ),
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
    *(("native", ("connect",)), ("dj", ("close",))),
    *(("dj", ("get_new_connection",)), ("own", ("connect", "close", "_cursor"))),
]


def is_about_dead_ones(program: Callable[[str], None]) -> bool:
    """Return whether a program takes its time, because it ends processes again and again."""
    return program.__name__.startswith("dead_while_idle_interrupted")


#: All programs, each with whom it is run with.
RUNS = [
    (program, alias, hooks)
    for program in [*PROGRAMS, *INTERRUPTED]
    for alias, hooks in BASES
    if alias in STOCK_OF
    and not (hooks and program is thread_that_ends)  # which takes half a second
    and (hooks == ("get_new_connection",) or not is_about_dead_ones(program))
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
    table = {(before, after) for before in MOVES for after in MOVES[before]}
    assert seen - table == set()
    assert table - seen == set()


def test_each_phase_can_be_come_to_and_left() -> None:
    assert set(MOVES) == set(Phase)
    assert set().union(*MOVES.values()) == set(Phase)
    assert all(MOVES.values())
