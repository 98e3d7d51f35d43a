"""What one operation takes: stock and ours in turn, in one process, round after round.

Runs as `python -m bench.operations ROUNDS FILE`, and writes to FILE what each round of
each operation took on each alias, in microseconds for one time.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connections, transaction

from bench.site import create_table, database, model, set_up
from django_pg_real_pool import observers
from django_pg_real_pool._session import changes_session

CONNECTIONS = 4

#: What Django sends for an ordinary query: 300 characters.
STATEMENT = (
    'SELECT "shop_order"."id", "shop_order"."created_at", "shop_order"."customer_id", '
    '"shop_order"."state", "shop_order"."total", "shop_order"."note" FROM "shop_order" '
    'INNER JOIN "shop_customer" ON ("shop_order"."customer_id" = "shop_customer"."id") '
    'WHERE "shop_customer"."email" = %s ORDER BY "shop_order"."id" DESC LIMIT 21'
)

#: As ours, with an observer that does as little as one that counts.
OBSERVED = "ours, observed"

ALIASES = {
    "stock": database("stock", CONNECTIONS),
    "ours": database("ours", CONNECTIONS),
    "stock, checks": database("stock", CONNECTIONS, CONN_HEALTH_CHECKS=True),
    "ours, checks": database("ours", CONNECTIONS, CONN_HEALTH_CHECKS=True),
    "dj stock": database("dj_stock", CONNECTIONS),
    "dj ours": database("dj_ours", CONNECTIONS),
    OBSERVED: database("ours", CONNECTIONS),
}
#: For the floor: a pool as Django makes it, that nobody else uses.
FLOOR = database("stock", CONNECTIONS)


def operations(thing: Any, alias: str) -> dict[str, tuple[Callable[[], object], int]]:
    """Return each operation, with how often it is done in a round."""
    wrapper, things = connections[alias], thing.objects.using(alias)

    def cursor() -> None:
        wrapper.cursor().close()

    def empty_atomic() -> None:
        with transaction.atomic(using=alias):
            pass

    def get() -> None:
        things.get(pk=1)

    def get_in_atomic() -> None:
        with transaction.atomic(using=alias):
            things.get(pk=1)

    def three_in_atomic() -> None:
        with transaction.atomic(using=alias):
            for _ in range(3):
                things.get(pk=1)

    def request() -> None:
        for _ in range(3):
            things.get(pk=1)
        wrapper.close()

    return {
        "cursor without SQL": (cursor, 200),
        "empty atomic()": (empty_atomic, 200),
        "get()": (get, 30),
        "get() in atomic()": (get_in_atomic, 20),
        "three get() in atomic()": (three_in_atomic, 10),
        "request: three get(), close()": (request, 10),
    }


def floors() -> dict[str, tuple[Callable[[], object], int]]:
    """Return what the pools themselves take, without a line of ours."""
    from dj_db_conn_pool.core import pool_container

    connections["dj floor"].ensure_connection()
    connections["dj floor"].close()
    wrapper: Any = connections["floor"]
    pool = wrapper.pool
    pool.open(wait=True)

    def native() -> None:
        pool.putconn(pool.getconn())

    def queue() -> None:
        pool_container.get("dj floor").connect().close()

    return {"native": (native, 200), "dj": (queue, 100)}


def session_check() -> dict[str, tuple[Callable[[], object], int]]:
    number = itertools.count()
    return {
        "seen before": (lambda: changes_session(STATEMENT), 1000),
        "seen for the first time": (
            lambda: changes_session(f"{STATEMENT} OFFSET {next(number)}"),
            300,
        ),
    }


def main(rounds: int, file: Path) -> None:
    floor = {"floor": FLOOR, "dj floor": database("dj_stock", CONNECTIONS)}
    set_up({"default": FLOOR, **floor, **ALIASES})
    thing = model()
    create_table(thing)
    # In each round one operation is done on each alias in turn, so that whatever slows
    # the machine down for a while slows down all of them.
    todo: list[tuple[str, dict[str, tuple[Callable[[], object], int]]]]
    todo = [(alias, operations(thing, alias)) for alias in ALIASES]
    for _, each in todo:
        for operation, _ in each.values():
            operation()
    by_operation: dict[str, list[tuple[str, Callable[[], object], int]]] = defaultdict(list)
    for alias, each in todo:
        for name, (operation, times) in each.items():
            by_operation[name].append((alias, operation, times))
    for name, others in (("floor", floors()), ("session check", session_check())):
        by_operation[name] = [(key, *value) for key, value in others.items()]

    taken: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    gc.freeze()
    observer = Counting()
    for number in range(rounds):
        for name, variants in by_operation.items():
            # Each is the first in turn: what comes after another operation is slower.
            first = number % len(variants)
            for alias, operation, times in variants[first:] + variants[:first]:
                if alias == OBSERVED:
                    observers.add(observer)
                taken[name][alias].append(measure(operation, times))
                observers.remove(observer)
    file.write_text(json.dumps(taken))
    connections.close_all()


class Counting(observers.Observer):
    """Counts leases, and sums their seconds up."""

    leases = 0
    seconds = 0.0

    def given_back(self, lease: observers.Lease) -> None:
        self.leases += 1
        self.seconds += lease.seconds


def measure(operation: Callable[[], object], times: int) -> float:
    gc.collect(0)
    began = time.perf_counter_ns()
    for _ in range(times):
        operation()
    return (time.perf_counter_ns() - began) / times / 1000


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
