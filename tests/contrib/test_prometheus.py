"""Prometheus's metrics: the same nine, by its names, from one process and from several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from helpers import backend_pid, pool_of_one, wait_until
from places import PYTHON_PATH
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from django_pg_real_pool import observers, pin_connection
from django_pg_real_pool.contrib import metrics
from django_pg_real_pool.contrib.prometheus import apps as config
from django_pg_real_pool.contrib.prometheus import exporter

POOL, STATE = "db_client_connection_pool_name", "db_client_connection_state"
HOLD = "django_pg_real_pool_hold"

#: As OpenTelemetry's mapping to Prometheus has them.
NAMES = {
    "db_client_connection_count": "gauge",
    "db_client_connection_idle_max": "gauge",
    "db_client_connection_idle_min": "gauge",
    "db_client_connection_max": "gauge",
    "db_client_connection_pending_requests": "gauge",
    "db_client_connection_timeouts": "counter",
    "db_client_connection_create_time_seconds": "histogram",
    "db_client_connection_wait_time_seconds": "histogram",
    "db_client_connection_use_time_seconds": "histogram",
}


@pytest.fixture(autouse=True)
def _measured() -> Any:
    """As an entry of INSTALLED_APPS does it; twice is once."""
    module = sys.modules[config.__name__.rpartition(".")[0]]
    for _ in range(2):
        config.PrometheusConfig("django_pg_real_pool.contrib.prometheus", module).ready()
    observers.add(exporter._recorder)  # type: ignore[arg-type]
    yield
    observers.remove(exporter._recorder)  # type: ignore[arg-type]


def value(name: str, alias: str, **labels: str) -> float | None:
    found: float | None = REGISTRY.get_sample_value(name, {POOL: alias, **labels})
    return found


def test_the_nine_are_exported() -> None:
    """Parsed as a server would."""
    with pool_of_one("native"):
        backend_pid("native")
    page = generate_latest(REGISTRY).decode()
    found = {each.name: each for each in text_string_to_metric_families(page)}
    assert {name: each.type for name, each in found.items() if name in NAMES} == NAMES
    ours = {*metrics.OF_CENSUS, *metrics.HISTOGRAMS, metrics.TIMEOUTS}
    assert {exporter.name_of(each) for each in ours} == set(NAMES)
    assert all(
        found[exporter.name_of(each)].documentation == each.description for each in ours
    )


def test_what_a_pool_is_like_is_read_from_it(alias: str) -> None:
    with pool_of_one(alias):
        backend_pid(alias)
        name = "db_client_connection_count"
        has_own_count = not alias.endswith("own")
        assert value(name, alias, **{STATE: "used"}) == 0
        assert value(name, alias, **{STATE: "idle"}) == (1 if has_own_count else None)
        assert value("db_client_connection_max", alias) == (1 if has_own_count else None)
        with pin_connection(alias):
            assert value(name, alias, **{STATE: "used"}) == 1
            thread = threading.Thread(target=lambda: backend_pid(alias))
            thread.start()
            pending = "db_client_connection_pending_requests"
            wait_until(lambda: value(pending, alias) == 1, "it waits")
        thread.join()


def test_each_lease_is_timed_by_what_held_it_longest(alias: str) -> None:
    backend_pid(alias)
    uses, waits = (f"db_client_connection_{each}_time_seconds" for each in ("use", "wait"))
    labels = {HOLD: "pin"}
    before = value(f"{uses}_count", alias, **labels) or 0
    waited = value(f"{waits}_count", alias) or 0
    for _ in range(3):
        with pin_connection(alias):
            pass
    assert value(f"{uses}_count", alias, **labels) == before + 3
    assert value(f"{waits}_count", alias) == waited + 3
    assert (value(f"{uses}_sum", alias, **labels) or 0) > 0


def test_connections_and_timeouts_are_counted() -> None:
    made = "db_client_connection_create_time_seconds_count"
    before = value(made, "native") or 0
    with pool_of_one("native"):
        backend_pid("native")
        wait_until(lambda: value(made, "native") == before + 1, "it is timed")
    timeouts = "db_client_connection_timeouts_total"
    timed_out = value(timeouts, "native")
    assert timed_out is not None  # from the first lease on, so that an increase is seen
    exporter._recorder.timed_out("native", 1.0)  # type: ignore[union-attr]
    assert value(timeouts, "native") == timed_out + 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    module = sys.modules[config.__name__.rpartition(".")[0]]
    with pytest.raises(ImproperlyConfigured, match=r"pip install prometheus-client$"):
        config.PrometheusConfig("django_pg_real_pool.contrib.prometheus", module).ready()


def test_its_label_is_its_own() -> None:
    """Beside an app of the project's that is called "prometheus"."""
    assert config.PrometheusConfig.label not in {
        each.label for each in apps.get_app_configs()
    }
    assert config.PrometheusConfig.label == "django_pg_real_pool_prometheus"


PROCESSES = dedent(
    """
    import json, os, sys, time

    import django
    from django.conf import settings

    import settings as of_tests

    settings.configure(
        DATABASES={"default": of_tests.DATABASES["native"]},
        INSTALLED_APPS=["django_pg_real_pool.contrib.prometheus"],
    )
    django.setup()

    from django.db import connections
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

    from django_pg_real_pool import pin_connection
    from django_pg_real_pool.contrib.prometheus import exporter

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    POOL = {"db_client_connection_pool_name": "default"}
    USED = {**POOL, "db_client_connection_state": "used"}

    def leases():
        name, found = "db_client_connection_wait_time_seconds_count", 0
        return registry.get_sample_value(name, POOL)

    def used():
        return registry.get_sample_value("db_client_connection_count", USED)

    def wait_for(condition):
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"still not so: used {used()}, leases {leases()}")
            time.sleep(0.01)

    def query():
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")

    query()
    asking, answering = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        query()
        query()
        with pin_connection():
            os.write(answering[1], b"x")
            os.read(asking[0], 1)
        os._exit(0)
    os.read(answering[0], 1)
    with pin_connection():
        wait_for(lambda: used() == 2)  # of both, read by one
        found = {"max": registry.get_sample_value("db_client_connection_max", POOL)}
        os.write(asking[1], b"x")
        os.waitpid(child, 0)
        mark_process_dead(child)
        wait_for(lambda: used() == 1)
    wait_for(lambda: used() == 0)
    found["leases"] = leases()
    connections["default"].close_pool()
    writer = exporter._recorder._writer
    writer.write()
    found["after"] = registry.get_sample_value("db_client_connection_max", POOL)
    thread, writer._thread = writer._thread, None
    thread.join(10)  # of two that were started at once, one goes
    found["has ended"] = not thread.is_alive()
    print(json.dumps(found))
    """
)


def test_several_processes_are_summed(tmp_path: Path) -> None:
    """A forked child counts its own once, and what is written is how its pool is."""
    environment = {
        **os.environ,
        "PYTHONPATH": PYTHON_PATH,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROCESSES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # The parent's: one query, one pin; the child's: two queries, one pin.
    assert json.loads(ran.stdout) == {
        "max": 4,
        "leases": 2 + 3,
        "after": 0,
        "has ended": True,
    }
