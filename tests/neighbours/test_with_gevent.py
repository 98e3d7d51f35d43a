"""gevent: hundreds of greenlets on few connections, in each way that they are run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from neighbours.broker import Worker, working
from neighbours.green_processes import complaints, fails, programs, run_program, storm
from neighbours.load import ask, serving
from neighbours.processes import Running, all_of, disjoint
from neighbours.test_with_gunicorn import backends_by_worker, leases_of_all_workers

WORKERS = 2
POOL = 3
#: How many requests there are at once: each is a greenlet.
AT_ONCE = 100

ENGINES = ["native", "dj"]

#: It patches, so it is not imported here.
CONFIGURATION = str(Path(__file__).with_name("green") / "gunicorn_conf.py")


@pytest.mark.parametrize("name", programs())
def test_program(name: str) -> None:
    run_program(name, GREEN="gevent")


def test_kills_at_any_moment_lose_nothing() -> None:
    """R3, R7, F3: `nox -s greenlets` does it for longer, and beside others."""
    size = 8
    assert complaints(storm("ours", 15, greenlets=300, size=size), size) == []


# ##### gunicorn #####


@contextmanager
def gunicorn(alias: str, *options: str, **settings: Any) -> Iterator[Running]:
    arguments = ["gunicorn", "--bind", "unix:socket", "--no-control-socket"]
    # Where all of these begin at once, a client may need more than two seconds for it.
    arguments += ["--worker-class", "gevent", "--keep-alive", "60"]
    arguments += ["--graceful-timeout", "5", "--workers", str(WORKERS)]
    arguments += [*options, "neighbours.site.wsgi:application"]
    with serving(arguments, {"ALIAS": alias, "POOL_SIZE": POOL, **settings}) as server:
        yield server


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("alias", ENGINES)
def test_each_worker_shares_few_connections_among_many_requests(
    alias: str, preload: bool
) -> None:
    options = ["--preload", "--config", CONFIGURATION] if preload else []
    with gunicorn(alias, *options, QUERIES_EARLY=1) as server:
        answers = ask(server, "/order/", times=3 * AT_ONCE, at_once=AT_ONCE)
        found = backends_by_worker(answers)
        assert len(found) == WORKERS
        assert disjoint(found)
        assert all(len(backends) <= POOL for backends in found.values())
        # The parent's own, which it had before it forked, is nobody else's.
        assert server.connections().keys() - all_of(found) or not preload
        server.assert_idle(at_most=(WORKERS + preload) * POOL)
        assert not leases_of_all_workers(server)
        assert "rror" not in server.log


@pytest.mark.parametrize("alias", ENGINES)
def test_a_stream_releases_between_its_queries(alias: str) -> None:
    with gunicorn(alias, POOL_TIMEOUT=10) as server:
        lines = ask(server, "/stream/", times=AT_ONCE, at_once=AT_ONCE)
        assert len(lines) == 5 * AT_ONCE
        found = backends_by_worker(lines)
        assert all(len(backends) <= POOL for backends in found.values())
        server.assert_idle(at_most=WORKERS * POOL)


@pytest.mark.parametrize("alias", ENGINES)
@pytest.mark.parametrize("early", ["", "1"], ids=["unused", "used"])
def test_a_project_that_is_imported_before_patching_is_refused(
    alias: str, early: str
) -> None:
    """Its pool may have been used by then.  It used to hang."""
    with gunicorn(alias, "--preload", QUERIES_EARLY=early) as server:
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            ask(server, "/order/")
        assert "ImproperlyConfigured: Python was patched, by gevent" in server.log


def test_the_checks_find_that_it_is_imported_before_patching() -> None:
    """D7: E011."""
    assert "django_pg_real_pool.E011" in fails("neighbours.green_late")


def test_stock_can_not_be_imported_before_patching_either() -> None:
    """All greenlets have one wrapper then, which Django refuses to all but one."""
    with (
        pytest.raises(httpx.HTTPStatusError, match="500"),
        gunicorn("stock_native", "--preload", QUERIES_EARLY="1") as server,
    ):
        ask(server, "/order/")


# ##### Celery #####


@pytest.fixture(scope="module", params=ENGINES)
def greenlets(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A worker with more greenlets than its pool has connections."""
    options = ["--pool", "gevent", "--concurrency", str(AT_ONCE)]
    with working(options, {"ALIAS": request.param, "POOL_SIZE": POOL}) as worker:
        yield worker


def test_tasks_in_greenlets_share_fewer_connections(greenlets: Worker) -> None:
    results = greenlets.run("order", times=2 * AT_ONCE)
    assert len({pid for each in results for pid in each["backends"]}) <= POOL
    greenlets.process.assert_idle(at_most=POOL)
