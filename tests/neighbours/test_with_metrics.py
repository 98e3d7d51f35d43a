"""Prometheus and OpenTelemetry over real processes: gunicorn's and Celery's."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from helpers import wait_until
from places import DOCS
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from second_server import free_port

from neighbours.broker import working
from neighbours.load import ask, serving
from neighbours.processes import Running
from neighbours.prometheus_server import Prometheus, prometheus
from neighbours.site.gunicorn_conf import __file__ as CONFIG

WORKERS = 4
THREADS = 64
POOL = 3

#: What a test locks: see `neighbours.site.metrics`, which needs a site to be imported.
LOCK = 4242

PREFIX = "db_client_connection_"
NINE = {
    *("count", "idle_max", "idle_min", "max", "pending_requests", "timeouts"),
    *("create_time_seconds", "wait_time_seconds", "use_time_seconds"),
}


@contextmanager
def gunicorn(*options: str, timeout: int = 60) -> Iterator[Running]:
    arguments = ["gunicorn", "--bind", "unix:socket", "--no-control-socket"]
    arguments += ["--worker-class", "gthread", "--graceful-timeout", "5"]
    arguments += ["--workers", str(WORKERS), "--threads", str(THREADS // WORKERS)]
    arguments += ["--config", CONFIG, *options, "neighbours.site.wsgi:application"]
    settings = {"ALIAS": "native", "POOL_SIZE": POOL, "METRICS": 1, "POOL_TIMEOUT": timeout}
    with serving(arguments, settings) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes write their metrics."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def scraped(server: Running) -> dict[str, Any]:
    """Return the metrics of the page, by their name without the prefix."""

    async def get() -> str:
        transport = httpx.AsyncHTTPTransport(uds=server.socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
            return str((await client.get("/metrics")).raise_for_status().text)

    found = text_string_to_metric_families(asyncio.run(get()))
    return {each.name.removeprefix(PREFIX): each for each in found}


def total(metrics: dict[str, Any], name: str, of: str = "", state: str = "") -> float:
    """Return the sum of a metric's samples: of counts, say, or of a state."""
    found = [
        float(sample.value)
        for sample in metrics[name].samples
        if sample.name == PREFIX + name + of
        and sample.labels.get(f"{PREFIX}state", state) == state
    ]
    return sum(found)


def read_all(server: Running) -> Counter[str]:
    """Return what the readers of all workers have, summed."""
    latest: dict[int, dict[str, float]] = {}

    def all_have_answered() -> bool:
        answers = ask(server, "/opentelemetry/", times=WORKERS, at_once=WORKERS)
        latest.update({each.pop("worker"): each for each in answers})
        return len(latest) == WORKERS

    wait_until(all_have_answered, "each worker has answered", seconds=30)
    found: Counter[str] = Counter()
    for each in latest.values():
        found.update(each)
    return found


def active(server: Running) -> int:
    return Counter(server.connections().values())["active"]


@contextmanager
def locked() -> Iterator[None]:
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        yield


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_all_figures_agree(folder: Path, preload: bool) -> None:
    """Of `/metrics`, of OpenTelemetry's reader, of pg_stat_activity: under load, after it."""
    with gunicorn(*["--preload"] * preload) as server:
        # Under load: each answer says how many leases there were.
        orders = ask(server, "/order/", times=200, at_once=THREADS)
        assert len({each["worker"] for each in orders}) == WORKERS
        leases = 3 * len(orders)
        metrics, read = scraped(server), read_all(server)
        assert total(metrics, "wait_time_seconds", "_count") == leases
        assert total(metrics, "use_time_seconds", "_count") == leases
        assert read["wait_time"] == read["use_time"] == leases
        made = total(metrics, "create_time_seconds", "_count")
        assert made == read["create_time"] >= len(server.connections())
        assert total(metrics, "timeouts", "_total") == read["timeouts"] == 0
        assert {*metrics} >= NINE

        # At rest: what is open is idle.
        def is_at_rest() -> bool:
            metrics, read = scraped(server), read_all(server)
            return (
                total(metrics, "count", state="idle")
                == read["count idle"]
                == len(server.connections())
                and total(metrics, "count", state="used") == read["count used"] == 0
                and total(metrics, "max") == read["max"] == WORKERS * POOL
            )

        wait_until(is_at_rest, "all agree at rest", seconds=30)

        # In the midst: pages that hold a connection, and others that wait for one.
        pages = 2 * WORKERS
        with ThreadPoolExecutor(1) as executor:
            with locked():
                asked = executor.submit(ask, server, "/held/", pages, pages)

                def are_held() -> bool:
                    metrics, read = scraped(server), read_all(server)
                    used = total(metrics, "count", state="used")
                    pending = total(metrics, "pending_requests")
                    return (
                        used == read["count used"] == active(server)
                        and pending == read["pending_requests"]
                        and used + pending == pages
                    )

                wait_until(are_held, "all agree while pages hold connections", seconds=30)
            assert len(asked.result()) == pages
        wait_until(is_at_rest, "all agree again", seconds=30)
        metrics, read = scraped(server), read_all(server)
        assert total(metrics, "use_time_seconds", "_count") == leases + pages
        assert read["use_time"] == leases + pages


def test_a_worker_that_has_ended_has_no_connections(folder: Path) -> None:
    """Its counts stay; how its pool was, does not."""
    with gunicorn() as server:
        orders = ask(server, "/order/", times=100, at_once=THREADS)
        all_most = WORKERS * POOL
        wait_until(lambda: total(scraped(server), "max") == all_most, "all have written")
        os.kill(orders[0]["worker"], signal.SIGKILL)
        wait_until(
            lambda: total(scraped(server), "max") == all_most - POOL,
            "it is gone",
            seconds=30,
        )
        assert total(scraped(server), "wait_time_seconds", "_count") == 3 * len(orders)


def test_celerys_processes_are_summed(folder: Path) -> None:
    """Those that it has replaced, too."""
    options = ["--pool", "prefork", "--concurrency", "2", "--max-tasks-per-child", "3"]
    settings = {"ALIAS": "native", "POOL_SIZE": POOL, "METRICS": 1, "QUERIES_EARLY": 1}
    with working(options, settings) as worker:
        results = worker.run("order", times=12)
        assert len({each["worker"] for each in results}) > 2
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        labels = {f"{PREFIX}pool_name": "default"}
        counted = registry.get_sample_value(f"{PREFIX}wait_time_seconds_count", labels)
        assert counted == 3 * len(results) + 1  # that of the parent, before it forked


ALERTS = DOCS / "_static" / "pool-alerts.yml"
DASHBOARD = DOCS / "_static" / "pool-dashboard.json"


def variables_of(board: dict[str, Any], server: Prometheus) -> dict[str, str]:
    """Return what a dashboard's variables are when all values are chosen."""
    found = {"__rate_interval": "1m"}
    for each in board["templating"]["list"]:
        if each["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"])
            assert asked
            found[each["name"]] = "|".join(server.label_values(*asked.groups()))
    return found


def empty_panels(server: Prometheus) -> list[str]:
    """Return the dashboard's expressions that Prometheus has no number for."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = variables_of(board, server)
    found = []
    for panel in board["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in variables.items():
                expression = expression.replace(f"${name}", value)
            assert "$" not in expression
            values = server.values(expression)
            if not values or any(map(math.isnan, values)):
                found.append(expression)
    return found


def test_a_real_prometheus_draws_the_dashboard_and_fires_the_alerts(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each panel has figures; each alert's condition comes true when it should."""
    target = f"127.0.0.1:{free_port()}"
    of_prometheus = tmp_path_factory.mktemp("prometheus")
    with (
        gunicorn("--bind", target, timeout=8) as site,
        prometheus(of_prometheus, target, ALERTS) as server,
    ):
        ask(site, "/order/", times=200, at_once=THREADS)
        wait_until(lambda: server.values("up") == [1], "the page is scraped", seconds=10)
        assert server.alerts() == {}

        # As many as there are threads, and as many again that come when those have given up.
        with ThreadPoolExecutor(1) as executor:
            with locked():
                pages = executor.submit(ask, site, "/held/", 2 * THREADS, 2 * THREADS)
                wait_until(
                    lambda: server.alerts().keys() >= {"PoolExhausted", "PoolNearlyFull"},
                    "what happens while connections are held is told",
                    seconds=60,
                )
            with pytest.raises(httpx.HTTPStatusError, match="500"):
                pages.result()
        wait_until(
            lambda: server.alerts().keys() >= {"PoolWaits", "ConnectionHeldLong"},
            "what is known when they are back is told",
            seconds=60,
        )
        assert server.alerts()["PoolExhausted"] == "firing"

        # A new worker makes connections, and does what the others did.
        orders = ask(site, "/order/", times=20, at_once=THREADS)
        os.kill(orders[0]["worker"], signal.SIGKILL)
        ask(site, "/order/", times=200, at_once=THREADS)
        wait_until(lambda: empty_panels(server) == [], "each panel has figures", seconds=60)
