"""R3, R7, R10: an exception between any two bytecodes loses nothing, and leaves no lock.

A sample of them in the ordinary suite; all of them with REAL_POOL_EVERY=1, which is what
`nox -s interruptions` does.  Another sample of the same size: REAL_POOL_SEED=1, 2, ...
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connections, transaction
from faults import extra_alias
from helpers import backend_pid, census, wait_until
from interrupting import (
    EVERY,
    FAILING,
    PROGRAMS,
    SAMPLE,
    Hit,
    first_of,
    interrupt,
    query_all,
)
from traffic import Traffic, watch

from django_pg_real_pool import pin_connection
from django_pg_real_pool._lease import setup
from django_pg_real_pool._lease.facts import TRANSACTION_STATE
from django_pg_real_pool._pools import real_pool
from django_pg_real_pool._process import reaper

SIZE = 2

#: After so many, one knows enough.
MOST_FOUND = 8 if EVERY == 1 else 1

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Checked:
    """An alias with a pool of its own, which is looked at after each interruption."""

    def __init__(self, alias: str, observer: Any) -> None:
        self.alias = alias
        self.observer = observer
        self.original: Any = connections[alias]
        self.others = ThreadPoolExecutor(1)
        #: Whether nobody but who is interrupted gives back.
        self.knows_moves = True

    @property
    def pool(self) -> Any:
        return self.original._connection_pools[self.alias]

    @property
    def is_native(self) -> bool:
        return self.alias.endswith("native")

    def free_for_others(self, lock: Any) -> bool:
        def can_be_had() -> bool:
            had: bool = lock.acquire(timeout=5)
            if had:
                lock.release()
            return had

        return self.others.submit(can_be_had).result()

    def processes(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        (count,) = self.observer.execute(query, [self.alias]).fetchone()
        return int(count)

    def is_at_rest(self) -> bool:
        reaper.reap()
        if not self.is_native:
            return census(self.alias).in_use == 0 and self.processes() <= SIZE
        pool = self.pool
        with pool._lock:
            idle, members = list(pool._pool), dict(pool._members)
        return (
            len(idle) == SIZE == pool._nconns
            and len({id(each) for each in idle}) == SIZE
            and all(each._pool is None for each in idle)
            and members == dict.fromkeys(idle)
            and not pool._waiting
            and self.processes() == SIZE
        )

    def is_nobodys(self, locked: Any, otherwise: str) -> None:
        """Assert that a lock's holder is nobody, as soon as the reaper or a worker is through."""
        me = threading.get_ident()
        assert locked._holder != me, otherwise
        wait_until(lambda: locked._holder == 0, f"no longer: {otherwise}", 3)

    def check(self, wrapper: Any) -> None:
        """Assert that a request that was interrupted has left nothing."""
        lease = wrapper._lease
        assert self.free_for_others(lease._lock), "the lease's lock is held"
        self.is_nobodys(lease, "the lease's lock is thought to be held")
        if self.is_native:
            pool = self.pool
            assert self.free_for_others(pool._lock), "the pool's lock is held"
            self.is_nobodys(pool, "the pool's lock is thought to be held")
        wrapper.close()
        wrapper.in_atomic_block = False
        wrapper.close()
        assert wrapper.connection is None
        try:
            wait_until(self.is_at_rest, "all connections are idle", 3)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.describe()}") from None
        assert wrapper.get_autocommit(), "autocommit is off"
        backend_pid(self.alias)
        assert wrapper.connection is None, f"held after a query: {lease}"
        with pin_connection(self.alias):
            pid = backend_pid(self.alias)
            assert backend_pid(self.alias) == pid
        assert wrapper.connection is None, f"held after a pin: {lease}"

    def describe(self) -> str:
        if not self.is_native:
            return f"{census(self.alias)}, {self.processes()} processes"
        pool = self.pool
        return (
            f"idle {list(pool._pool)}, counted {pool._nconns}, members {pool._members}, "
            f"waiting {pool._waiting}, {self.processes()} processes"
        )

    def visit(self, moment: int, program: Callable[[Checked], Any], is_used: bool) -> Hit:
        """Interrupt a program once; raise AssertionError if that has left anything."""
        wrapper: Any = self.original.copy()
        connections[self.alias] = wrapper
        if is_used:
            backend_pid(self.alias)
        with watch(self.alias) as traffic:
            hit = interrupt(moment, lambda: program(self), by_bytecode=True)
            try:
                self.check(wrapper)
                if self.knows_moves:
                    self.check_traffic(traffic)
            except (AssertionError, DatabaseError) as error:
                raise AssertionError(f"interrupted {hit} ({moment}): {error!r}") from None
            finally:
                connections[self.alias] = self.original
        return hit

    def check_traffic(self, traffic: Traffic) -> None:
        balance = Counter[int]()
        for move in traffic.moves:
            balance[move.pid] += 1 if move.direction == "out" else -1
            assert balance[move.pid] in (0, 1), f"{move.direction} twice: {move}"


def can_query(alias: str) -> bool:
    """Run a query; a pool's timeout may be shorter than its first connection takes."""
    with suppress(OperationalError):
        return bool(backend_pid(alias))
    return False


@contextmanager
def checked(engine: str, observer: Any, **options: Any) -> Iterator[Checked]:
    """Give an engine an alias with a pool of its own."""
    name = f"interrupted_{engine}"
    options = {"application_name": name, **options}
    if engine == "native":
        options["pool"] = {"min_size": SIZE, "max_size": SIZE, **options.get("pool", {})}
    with extra_alias(name, engine, size=SIZE, connects=False, OPTIONS=options) as alias:
        wait_until(lambda: can_query(alias), "the pool has connected")
        one = Checked(alias, observer)
        one.original.close()
        wait_until(one.is_at_rest, "it has begun")
        yield one


def visit(
    engine: str,
    program: Callable[[Checked], Any],
    is_used: bool,
    every: int = EVERY,
    **options: Any,
) -> None:
    """Interrupt a program at each moment of the sample; tell where that left something."""
    found: list[str] = []
    first = moment = first_of(every)
    is_over = False
    while not is_over and len(found) < MOST_FOUND:
        with (
            psycopg.connect(autocommit=True) as observer,
            checked(engine, observer, **options) as one,
        ):
            try:
                while not is_over:
                    is_over = not one.visit(moment, program, is_used)
                    moment += every
            except AssertionError as error:
                moment += every
                found.append(str(error))
                if EVERY == 1:  # which takes its time
                    print(error, file=sys.__stderr__, flush=True)
    assert not found, f"{SAMPLE}\n" + "\n".join(found)
    assert moment > first + every, "nothing was interrupted"


@pytest.mark.parametrize("engine", ["native", "dj"])
@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("program", [*PROGRAMS, *FAILING])
def test_an_interruption_at_any_bytecode_loses_nothing(
    engine: str, is_used: bool, program: Callable[[str], None]
) -> None:
    """R3, R7, R10: nothing in use, none lost, none twice; and no lock left held."""
    visit(engine, lambda one: program(one.alias), is_used)


@pytest.mark.parametrize("is_in_vain", [False, True])
def test_an_interruption_of_a_wait_loses_nothing(is_in_vain: bool) -> None:
    """R3, R10: all connections are out, and come back while somebody waits, or do not."""
    is_over = threading.Event()

    def wait(one: Checked) -> None:
        is_over.clear()
        lent = one.others.submit(borrow, one).result()
        returning = threading.Thread(target=give_back, args=(one, lent))
        if not is_in_vain:
            returning.start()
        try:
            with suppress(DatabaseError):
                query_all(one.alias)
        finally:
            is_over.set()
            if is_in_vain:
                returning.start()
            returning.join()

    def borrow(one: Checked) -> list[Any]:
        return [one.pool.getconn(5) for _ in range(SIZE)]

    def give_back(one: Checked, lent: list[Any]) -> None:
        wait_until(lambda: bool(one.pool._waiting) or is_over.is_set(), "somebody waits")
        for each in lent:
            one.pool.putconn(each)

    visit("native", wait, True, pool={"timeout": 0.02 if is_in_vain else 5})


def test_an_interruption_of_others_that_use_the_pool_loses_nothing() -> None:
    """R3, R10: by the pool's own context manager.

    What that had in its hands it loses, as on stock; but nothing else goes wrong.
    """

    def use(one: Checked) -> None:
        one.knows_moves = False
        try:
            with one.pool.connection() as connection:
                connection.execute("SELECT 1")
        finally:
            one.others.submit(give_back, one).result()

    def give_back(one: Checked) -> None:
        for connection, owner in list(one.pool._members.items()):
            if owner is real_pool.OTHERS and connection not in one.pool._pool:
                connection._pool = one.pool
                one.pool.putconn(connection)

    visit("native", use, False, every=min(EVERY, 11))


# ##### What is put aside for a moment #####


def state_of(wrapper: Any) -> dict[str, Any]:
    lease = wrapper._lease
    names = (*TRANSACTION_STATE, "autocommit", "queries_log", "execute_wrappers")
    of_wrapper = {name: getattr(wrapper, name) for name in names}
    cursor = vars(lease.physical).get("cursor")
    return {
        **of_wrapper,
        "unsent": lease.unsent_savepoints,
        "noting": lease.noting,
        "cursor": cursor,
    }


@pytest.mark.parametrize(
    "put_aside",
    [setup.outside_transaction, lambda lease, do: setup.noting(lease, [], do)],
    ids=["a block", "what is noted"],
)
def test_what_is_put_aside_is_brought_back(alias: str, put_aside: Any) -> None:
    """F7, S7: else a block that goes on would commit each statement by itself."""
    wrapper: Any = connections[alias]
    found: list[str] = []
    with (
        transaction.atomic(using=alias),
        wrapper.execute_wrapper(lambda execute, *args: execute(*args)),
    ):
        backend_pid(alias)
        before, moment = state_of(wrapper), 0
        hit: Hit | None = None
        while hit is None or hit:
            moment += 1
            hit = interrupt(
                moment, lambda: put_aside(wrapper._lease, lambda: None), by_bytecode=True
            )
            after = state_of(wrapper)
            changed = {name for name in before if after[name] is not before[name]}
            if changed:
                found.append(f"{hit}: {changed}")
                break
    assert not found
    assert moment > 50
