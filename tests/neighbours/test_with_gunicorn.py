"""gunicorn: worker processes with threads, forked before and after the project is loaded."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from helpers import wait_until

from neighbours.load import ask, serving
from neighbours.processes import Running, all_of, disjoint

WORKERS = 2
THREADS = 8
POOL = 3

ENGINES = ["native", "dj"]


@contextmanager
def gunicorn(alias: str, *options: str, **settings: Any) -> Iterator[Running]:
    arguments = ["gunicorn", "--bind", "unix:socket", "--no-control-socket"]
    arguments += ["--worker-class", "gthread", "--graceful-timeout", "5"]
    arguments += ["--workers", str(WORKERS), "--threads", str(THREADS)]
    arguments += [*options, "neighbours.site.wsgi:application"]
    with serving(arguments, {"ALIAS": alias, "POOL_SIZE": POOL, **settings}) as server:
        yield server


def backends_by_worker(answers: Iterable[Any]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for answer in answers:
        found[answer["worker"]].update(answer["backends"])
    return found


def ask_all_workers(server: Running, path: str, others: Iterable[int] = ()) -> list[Any]:
    """Get a page until as many workers as there are have answered, beside `others`."""
    answers: list[Any] = []

    def all_have_answered() -> bool:
        answers.extend(ask(server, path, times=THREADS, at_once=THREADS))
        return len({each["worker"] for each in answers} - set(others)) == WORKERS

    wait_until(all_have_answered, f"{WORKERS} workers have answered")
    return answers


def leases_of_all_workers(server: Running) -> list[str]:
    last = {each["worker"]: each for each in ask_all_workers(server, "/status/")}
    return [lease for status in last.values() for lease in status["leases"]]


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("alias", ENGINES)
def test_each_worker_shares_its_own_connections_among_its_threads(
    alias: str, preload: bool
) -> None:
    options = ["--preload"] if preload else []
    with gunicorn(alias, *options, QUERIES_EARLY=1) as server:
        answers = ask_all_workers(server, "/order/")
        answers += ask(server, "/order/", times=120, at_once=4 * WORKERS * THREADS)
        found = backends_by_worker(answers)
        assert len(found) == WORKERS
        assert disjoint(found)
        assert all(len(backends) <= POOL for backends in found.values())
        # A worker had more threads at it than it has connections.
        assert all(
            len({each["thread"] for each in answers if each["worker"] == worker}) > POOL
            for worker in found
        )
        # The parent's own, which it had before it forked, is nobody else's.
        assert server.connections().keys() - all_of(found) or not preload
        server.assert_idle(at_most=(WORKERS + preload) * POOL)
        # Once in each request, as with stock; not once for each of its queries.
        for worker in found:
            last = max(
                (each for each in answers if each["worker"] == worker),
                key=lambda answer: answer["queries"],
            )
            requests = last["queries"] // 4
            assert last["connected"] <= requests + POOL + THREADS


def test_stock_has_the_parents_pool_after_preload_without_its_threads() -> None:
    """Its one connection is the parent's main thread's, for all that a worker knows."""
    settings = {"QUERIES_EARLY": 1, "POOL_SIZE": 1, "POOL_TIMEOUT": 1}
    with gunicorn("native", "--preload", **settings) as server:
        assert len(ask(server, "/order/", times=WORKERS)) == WORKERS
    with gunicorn("stock_native", "--preload", **settings) as server:
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            ask(server, "/order/")
        assert "couldn't get a connection" in server.log


@pytest.mark.parametrize("alias", ENGINES)
def test_a_parent_that_closes_its_pool_keeps_no_connection(alias: str) -> None:
    with gunicorn(alias, "--preload", QUERIES_EARLY="once") as server:
        assert not server.connections()
        found = backends_by_worker(ask_all_workers(server, "/order/"))
        assert disjoint(found)
        server.assert_idle(at_most=WORKERS * POOL)


@pytest.mark.parametrize("alias", ENGINES)
def test_workers_that_are_replaced_leave_no_connection_behind(alias: str) -> None:
    with gunicorn(alias, "--preload", QUERIES_EARLY=1) as server:
        before = backends_by_worker(ask_all_workers(server, "/order/"))
        server.process.send_signal(signal.SIGHUP)
        after = backends_by_worker(ask_all_workers(server, "/order/", others=before))
        wait_until(
            lambda: not server.connections().keys() & all_of(before),
            "the connections of the workers that have ended are closed",
        )
        new = {worker: after[worker] for worker in after.keys() - before.keys()}
        assert disjoint({**before, **new})
        server.assert_idle(at_most=(WORKERS + 1) * POOL)


@pytest.mark.parametrize("alias", ENGINES)
def test_workers_that_retire_in_the_middle_of_the_load_lose_no_request(alias: str) -> None:
    with gunicorn(alias, "--max-requests", "40") as server:
        answers = ask(server, "/order/", times=100, at_once=WORKERS * THREADS)
        found = backends_by_worker(answers)
        assert len(answers) == 100
        assert len(found) > WORKERS
        assert disjoint(found)
        server.assert_idle(at_most=WORKERS * POOL)


@pytest.mark.parametrize("alias", ENGINES)
def test_a_stream_releases_between_its_queries(alias: str) -> None:
    with gunicorn(alias, POOL_TIMEOUT=10) as server:
        lines = ask(server, "/stream/", times=50, at_once=2 * WORKERS * THREADS)
        assert len(lines) == 5 * 50
        found = backends_by_worker(lines)
        assert all(len(backends) <= POOL for backends in found.values())
        server.assert_idle(at_most=WORKERS * POOL)


# ##### ThreadPoolExecutor in a view #####


@pytest.mark.parametrize("alias", ENGINES)
def test_threads_of_a_view_give_back_what_nobody_closes(alias: str) -> None:
    with gunicorn(alias) as server:
        answers = ask(server, "/executor/lasting/", times=20, at_once=10)
        assert all(len(answer["backends"]) == 6 * 3 for answer in answers)
        found = backends_by_worker(answers)
        assert all(len(backends) <= POOL for backends in found.values())
        server.assert_idle(at_most=WORKERS * POOL)
        # Nobody closes them, so each thread is told once that it is connected.
        assert max(answer["connected"] for answer in answers) <= 6 + POOL


def test_stock_has_no_connection_left_for_the_threads_of_a_view() -> None:
    with gunicorn("stock_native", POOL_TIMEOUT=1) as server:
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            ask(server, "/executor/lasting/", times=4)
        assert "couldn't get a connection" in server.log


@pytest.mark.parametrize("alias", ENGINES)
def test_threads_that_end_give_back_what_is_held_until_close(alias: str) -> None:
    with gunicorn(alias) as server:
        # Each request leaves a thread that holds a session: more than there are places.
        answers = ask(server, "/executor/passing/", times=12)
        assert len(answers) == 12
        wait_until(lambda: not leases_of_all_workers(server), "all leases have ended")
        server.assert_idle(at_most=WORKERS * POOL)
        assert "which has ended: its connection" in server.log
