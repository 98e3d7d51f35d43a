"""Celery: workers with threads, and workers with processes.

A worker takes seconds to end, so the tests of one kind share one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import wait_until
from items import Item

from neighbours.broker import Worker, working
from neighbours.processes import all_of, disjoint

POOL = 3
THREADS = 12
PROCESSES = 3

#: After how many tasks a process is replaced.
CAREER = 5

ENGINES = ["native", "dj"]


@pytest.fixture(scope="module", params=ENGINES)
def threads(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A worker with more threads than its pool has connections."""
    options = ["--pool", "threads", "--concurrency", str(THREADS)]
    with working(options, {"ALIAS": request.param, "POOL_SIZE": POOL}) as worker:
        yield worker


@pytest.fixture(scope="module", params=ENGINES)
def prefork(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A worker that has used the database before it forks."""
    options = ["--pool", "prefork", "--concurrency", str(PROCESSES)]
    options += ["--max-tasks-per-child", str(CAREER)]
    settings = {"ALIAS": request.param, "POOL_SIZE": POOL, "QUERIES_EARLY": 1}
    with working(options, settings) as worker:
        yield worker


def backends_by_process(results: list[Any]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for result in results:
        found[result["worker"]].update(result["backends"])
    return found


# ##### Threads #####


def test_tasks_in_threads_share_fewer_connections(threads: Worker) -> None:
    (before,) = threads.run("order")
    results = threads.run("order", times=100)
    assert len({each["thread"] for each in results}) > POOL
    assert len({pid for each in results for pid in each["backends"]}) <= POOL
    threads.process.assert_idle(at_most=POOL)
    # Once in each task, as with stock; not once for each of its queries.
    after = max(results, key=lambda each: int(each["queries"]))
    assert after["queries"] - before["queries"] == 4 * 100
    assert after["connected"] - before["connected"] <= 100 + POOL


def test_a_task_is_published_on_commit_without_a_connection(threads: Worker) -> None:
    threads.run("buy", 1, "ordered")  # fails if there is one when it publishes

    def is_shipped() -> bool:
        threads.deliver()
        return Item.objects.get().name == "shipped"

    wait_until(is_shipped, "the item is shipped")
    threads.process.assert_idle(at_most=POOL)


# ##### Processes #####


def test_processes_share_no_connection_with_each_other_or_their_parent(
    prefork: Worker,
) -> None:
    found = backends_by_process(prefork.run("order", times=10 * CAREER))
    assert len(found) > PROCESSES
    assert prefork.before_tasks  # those of the parent
    assert disjoint({**found, "parent": prefork.before_tasks})
    prefork.process.assert_idle(at_most=(PROCESSES + 1) * POOL)


def test_a_process_has_a_connection_after_a_task_only_if_celery_leaves_it_its_pool(
    prefork: Worker,
) -> None:
    """It closes Django's own pool, and nothing else is known to it."""
    results = prefork.run("order", times=10 * CAREER)
    found = backends_by_process(results)
    if prefork.alias == "native":
        assert len(all_of(found)) >= len(results)
        wait_until(
            lambda: not prefork.process.connections().keys() & all_of(found),
            "no connection of a task is left",
        )
        prefork.process.assert_idle(at_most=POOL)  # the parent's
    else:
        tasks = Counter(each["worker"] for each in results)
        assert max(tasks.values()) > 1
        assert all(len(backends) == 1 for backends in found.values())


def test_a_process_without_a_pool_has_one_connection_for_each_task() -> None:
    options = ["--pool", "prefork", "--concurrency", str(PROCESSES)]
    with working(options, {"ALIAS": "native", "POOL_SIZE": 0}) as worker:
        results = worker.run("order", times=10)
        assert all(len(set(each["backends"])) == 1 for each in results)
        assert len(all_of(backends_by_process(results))) == len(results)
        wait_until(lambda: not worker.process.connections(), "no connection is left")
