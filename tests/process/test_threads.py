"""R7: 32 threads share 4 connections, none closes, and none meets another."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import IntegrityError, connections, transaction
from django.db.models import F, Func, IntegerField, TextField, Value
from django.db.models.functions import Concat
from django.db.transaction import atomic
from helpers import census, wait_until
from items import Item
from leases import ROWS, Undo, committed, fill
from traffic import watch

from django_pg_real_pool import assert_released, pin_connection

pytest_plugins = ["fix_traffic"]

THREADS = 32
CONNECTIONS = 4
ROUNDS = 3


class Use(NamedTuple):
    """A time during which somebody certainly had a server process for himself."""

    pid: int
    began: float
    ended: float
    who: str


class Witness:
    """Collects who used which connection, and when."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.uses: list[Use] = []
        self.callbacks: list[str] = []

    @contextmanager
    def using(self, cursor: Any, who: str) -> Iterator[int]:
        """Note the server process of an open cursor for as long as it is open."""
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        began = time.perf_counter()
        yield pid
        ended = time.perf_counter()
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() == (pid,), f"{who} was given another connection"
        self.uses.append(Use(pid, began, ended, who))

    def assert_exclusive(self) -> None:
        """Prove that no two uses of one server process overlap in time."""
        by_pid: dict[int, list[Use]] = {}
        for use in self.uses:
            by_pid.setdefault(use.pid, []).append(use)
        assert 1 < len(by_pid) <= CONNECTIONS
        for uses in by_pid.values():
            uses.sort(key=lambda use: use.began)
            for one, next_one in pairwise(uses):
                assert one.ended <= next_one.began, f"{one} and {next_one} overlap"
        assert len({use.who for use in self.uses}) == THREADS


def read(witness: Witness, who: str) -> None:
    with connections[witness.alias].cursor() as cursor, witness.using(cursor, who):
        cursor.execute("SELECT count(*) FROM item WHERE name LIKE 'shared%'")
        assert cursor.fetchone() == (10,)


def write(witness: Witness, who: str) -> None:
    alias = witness.alias
    with (
        atomic(using=alias),
        connections[alias].cursor() as cursor,
        witness.using(cursor, who),
    ):
        item = Item.objects.using(alias).create(name=f"kept by {who} at {time.time()}")
        with suppress(Undo), atomic(using=alias):
            Item.objects.using(alias).filter(pk=item.pk).update(
                name=Concat(F("name"), Value("!"), output_field=TextField())
            )
            raise Undo
        item.refresh_from_db(using=alias)
        assert not item.name.endswith("!")


def write_and_undo(witness: Witness, who: str) -> None:
    alias = witness.alias
    with suppress(Undo), atomic(using=alias), connections[alias].cursor() as cursor:
        with witness.using(cursor, who):
            Item.objects.using(alias).create(name=f"undone by {who}")
        raise Undo


def fail(witness: Witness, who: str) -> None:
    alias = witness.alias
    with connections[alias].cursor() as cursor, witness.using(cursor, who):
        pass
    with suppress(IntegrityError), atomic(using=alias):
        Item.objects.using(alias).create(name="shared 0000")


def iterate(witness: Witness, who: str) -> None:
    pid = Func(function="pg_backend_pid", output_field=IntegerField())
    items = Item.objects.using(witness.alias).filter(name__startswith="shared")
    rows = items.annotate(pid=pid).values_list("name", "pid").iterator(chunk_size=3)
    pids = set()
    for _, row_pid in rows:
        pids.add(row_pid)
        with (
            connections[witness.alias].cursor() as cursor,
            witness.using(cursor, who) as used_pid,
        ):
            pids.add(used_pid)
    assert len(pids) == 1


def leave_an_iterator(witness: Witness, who: str) -> None:
    rows: Any = Item.objects.using(witness.alias).iterator(chunk_size=3)
    next(rows)
    with connections[witness.alias].cursor() as cursor, witness.using(cursor, who):
        pass
    rows.close()


def use_a_server_side_cursor(witness: Witness, who: str) -> None:
    with connections[witness.alias].chunked_cursor() as cursor:
        cursor.execute(ROWS.format(30))
        (pid, _) = cursor.fetchone()
        began = time.perf_counter()
        assert {row[0] for row in cursor.fetchall()} == {pid}
        witness.uses.append(Use(pid, began, time.perf_counter(), who))


def call_back(witness: Witness, who: str) -> None:
    alias = witness.alias

    def after_commit() -> None:
        assert connections[alias].connection is None
        read(witness, who)
        witness.callbacks.append(who)

    with atomic(using=alias):
        Item.objects.using(alias).filter(name__startswith="shared").count()
        transaction.on_commit(after_commit, using=alias)


def pin(witness: Witness, who: str) -> None:
    with (
        pin_connection(witness.alias) as wrapper,
        wrapper.cursor() as cursor,
        witness.using(cursor, who),
    ):
        assert Item.objects.using(witness.alias).filter(name="nobody").count() == 0


def commit_by_hand(witness: Witness, who: str) -> None:
    wrapper = connections[witness.alias]
    wrapper.set_autocommit(False)
    try:
        with wrapper.cursor() as cursor, witness.using(cursor, who):
            cursor.execute("SELECT count(*) FROM item")
        wrapper.commit()
    finally:
        wrapper.set_autocommit(True)


WORK: list[Callable[[Witness, str], None]] = [
    read,
    write,
    write_and_undo,
    fail,
    iterate,
    leave_an_iterator,
    use_a_server_side_cursor,
    call_back,
    pin,
    commit_by_hand,
]


def work(witness: Witness, number: int) -> None:
    """Do some of everything, beginning elsewhere than the others; never close."""
    for step in range(len(WORK) * ROUNDS):
        WORK[(number + step) % len(WORK)](witness, f"thread {number}")
        assert_released(witness.alias)


def in_threads(witness: Witness) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(witness, number)
        except BaseException as error:  # noqa: BLE001 - for the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_an_executor(witness: Witness) -> None:
    with ThreadPoolExecutor(THREADS) as executor:
        for future in [executor.submit(work, witness, n) for n in range(THREADS)]:
            future.result()


def in_asgi_requests(witness: Witness) -> None:
    """As Django's ASGI handler: each request has a thread for its synchronous parts."""

    async def request(number: int) -> None:
        async with ThreadSensitiveContext():
            for step in range(len(WORK) * ROUNDS):
                doing = WORK[(number + step) % len(WORK)]
                await sync_to_async(doing)(witness, f"request {number}")
                await asyncio.sleep(0)

    async def serve() -> None:
        await asyncio.gather(*map(request, range(THREADS)))

    asyncio.run(serve())


def in_async_tasks(witness: Witness) -> None:
    """Without thread sensitivity: the parts of a task run wherever there is room."""

    async def task(number: int) -> None:
        for step in range(len(WORK) * ROUNDS):
            doing = WORK[(number + step) % len(WORK)]
            await sync_to_async(doing, thread_sensitive=False)(witness, f"task {number}")

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(THREADS) as executor:
            loop.set_default_executor(executor)
            await asyncio.gather(*map(task, range(THREADS)))

    asyncio.run(serve())


@pytest.mark.parametrize(
    "run", [in_threads, in_an_executor, in_asgi_requests, in_async_tasks]
)
def test_many_threads_share_few_connections(
    busy: str, observer: Any, run: Callable[[Witness], None]
) -> None:
    """R7: no error, no connection used by two at once, all of them idle in the end."""
    fill(busy, 10)
    Item.objects.using(busy).update(name=Concat(Value("shared "), "name"))
    witness = Witness(busy)
    with watch(busy) as traffic:
        run(witness)
        assert census(busy).in_use == 0
        assert 1 < census(busy).idle <= CONNECTIONS

    witness.assert_exclusive()
    assert len(witness.callbacks) == THREADS * ROUNDS
    written = [name for name in committed(observer) if not name.startswith("shared")]
    assert len(written) == THREADS * ROUNDS
    assert all(name.startswith("kept by") for name in written)

    # The pool's own record says the same: out and in by turns, by the same thread.
    having: dict[int, int] = {}
    for move in traffic.moves:
        if move.direction == "out":
            assert move.pid not in having
            having[move.pid] = move.thread
        else:
            assert having.pop(move.pid) == move.thread
    assert not having
    assert traffic.checkouts > THREADS * ROUNDS * len(WORK)


def test_threads_that_share_a_wrapper_release_once(busy: str) -> None:
    """R7: with `inc_thread_sharing()`, as Django's live server has it, too."""
    wrapper: Any = connections[busy]
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        try:
            start.wait()
            for step in range(50):
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT %s", [number * 100 + step])
                    assert cursor.fetchone() == (number * 100 + step,)
        except BaseException as error:  # noqa: BLE001 - for the test's own thread
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet in the middle of everything
    wrapper.inc_thread_sharing()
    try:
        with watch(busy) as traffic:
            threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        wrapper.dec_thread_sharing()
        sys.setswitchinterval(interval)
    assert errors == []
    assert wrapper.connection is None
    assert census(busy).in_use == 0
    assert [move.direction for move in traffic.moves] == ["out", "in"] * traffic.checkouts


def test_a_wrapper_of_another_thread_is_refused(busy: str) -> None:
    """R7: and refusing leaves nothing checked out."""
    from django.db import DatabaseError

    wrapper: Any = connections[busy]
    refused: list[str] = []

    def run() -> None:
        for how in (wrapper.cursor, wrapper.close, wrapper.commit, wrapper.rollback):
            try:
                how()
            except DatabaseError:
                refused.append(how.__name__)

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        with wrapper.cursor():
            pass  # used now, and without a connection again
        assert census(busy).in_use == 0
    assert refused == ["cursor", "close", "commit", "rollback"] * 2


def test_more_threads_than_connections_wait_for_their_turn(busy: str) -> None:
    """R7: a thread that waits gets what another one gives back, and not before."""
    together, most = 0, 0
    lock = threading.Lock()
    start = threading.Barrier(12)

    def run() -> None:
        nonlocal together, most
        start.wait()
        with atomic(using=busy), connections[busy].cursor() as cursor:
            cursor.execute("SELECT 1")
            with lock:
                together += 1
                most = max(most, together)
            cursor.execute("SELECT pg_sleep(0.02)")
            with lock:
                together -= 1

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == CONNECTIONS
    wait_until(lambda: census(busy).in_use == 0, "all connections are idle")
