"""OpenTelemetry's metrics: the nine of its conventions, read from its SDK."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction
from helpers import backend_pid, pool_of_one, run_in_thread, wait_until
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.metrics import db_metrics

from django_pg_real_pool import observers, pin_connection
from django_pg_real_pool.contrib import metrics
from django_pg_real_pool.contrib.opentelemetry import RealPoolInstrumentor

PREFIX = "db.client.connection."
POOL, STATE = "db.client.connection.pool.name", "db.client.connection.state"
HOLD = "django_pg_real_pool.hold"

#: What version 1.44 of the conventions says: name, kind of the data, unit.
CONVENTIONS = {
    "count": ("Sum", "{connection}"),
    "idle.max": ("Sum", "{connection}"),
    "idle.min": ("Sum", "{connection}"),
    "max": ("Sum", "{connection}"),
    "pending_requests": ("Sum", "{request}"),
    "timeouts": ("Sum", "{timeout}"),
    "create_time": ("Histogram", "s"),
    "wait_time": ("Histogram", "s"),
    "use_time": ("Histogram", "s"),
}


class Read:
    """What the reader has, by the metric's name without the prefix."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def all(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        found = [
            metric
            for of_resource in (data.resource_metrics if data else ())
            for scope in of_resource.scope_metrics
            for metric in scope.metrics
        ]
        return {each.name.removeprefix(PREFIX): each for each in found}

    def points(self, name: str, alias: str) -> dict[str | None, Any]:
        """Return the points of an alias, by the state or the hold that they are of."""
        metric = self.all().get(name)
        points = metric.data.data_points if metric is not None else ()
        return {
            each.attributes.get(STATE, each.attributes.get(HOLD)): each
            for each in points
            if each.attributes[POOL] == alias
        }

    def value(self, name: str, alias: str, state: str | None = None) -> int | None:
        point = self.points(name, alias).get(state)
        return None if point is None else point.value


@contextmanager
def instrumented() -> Iterator[Read]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrumentor = RealPoolInstrumentor()
    instrumentor.instrument(meter_provider=provider)
    try:
        yield Read(reader)
    finally:
        instrumentor.uninstrument()
        provider.shutdown()


@pytest.fixture
def read() -> Iterator[Read]:
    with instrumented() as read:
        yield read


def exhaust(alias: str) -> None:
    def ask() -> None:
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            backend_pid(alias)

    with pin_connection(alias):
        run_in_thread(ask)


def test_the_nine_are_those_of_the_conventions(read: Read) -> None:
    """Name, unit, description, and the kind of each."""
    with pool_of_one("native"):
        backend_pid("native")
        exhaust("brief_native")
        wait_until(lambda: len(read.all()) == len(CONVENTIONS), "all nine are there")
        found = read.all()
    for name, (kind, unit) in CONVENTIONS.items():
        metric = found[name]
        assert (type(metric.data).__name__, metric.unit) == (kind, unit)
        constant = "DB_CLIENT_CONNECTION_" + name.replace(".", "_").upper()
        assert getattr(db_metrics, constant) == metric.name
        assert metric.data.is_monotonic is (name == "timeouts") if kind == "Sum" else True
        made: list[Any] = []
        make = getattr(db_metrics, f"create_{constant.lower()}")
        make(Meter(made))
        ((name, description, unit),) = made
        assert (name, unit) == (metric.name, metric.unit)
        assert description.removesuffix(".") == metric.description.removesuffix(".")


class Meter:
    """Notes what the conventions' own package makes."""

    def __init__(self, made: list[Any]) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return lambda name, description, unit: self._made.append((name, description, unit))


def test_what_a_pool_is_like_is_read_from_it(alias: str, read: Read) -> None:
    """How many are idle, in use, allowed; and who waits."""
    with pool_of_one(alias):
        backend_pid(alias)
        has_own_count = not alias.endswith("own")  # which tells nobody
        assert read.value("count", alias, "used") == 0
        assert read.value("count", alias, "idle") == (1 if has_own_count else None)
        assert read.value("max", alias) == (1 if has_own_count else None)
        assert read.value("idle.max", alias) == (1 if has_own_count else None)
        with pin_connection(alias):
            assert read.value("count", alias, "used") == 1
            assert read.value("count", alias, "idle") == (0 if has_own_count else None)
            assert read.value("pending_requests", alias) == 0
            thread = threading.Thread(target=lambda: query_and_close(alias))
            thread.start()
            wait_until(lambda: read.value("pending_requests", alias) == 1, "it waits")
        thread.join()
        assert read.value("pending_requests", alias) == 0


def query_and_close(alias: str) -> None:
    backend_pid(alias)
    connections[alias].close()


def test_each_lease_is_timed_by_what_held_it_longest(alias: str, read: Read) -> None:
    """One of five values, and no other."""
    backend_pid(alias)
    with transaction.atomic(alias):
        backend_pid(alias)
    with pin_connection(alias):
        backend_pid(alias)
    uses = read.points("use_time", alias)
    assert uses.keys() == {"cursor", "transaction", "pin"}
    assert all(each.count == 1 for each in uses.values())
    assert 0 < uses["pin"].sum < 5
    assert tuple(uses["pin"].explicit_bounds) == metrics.BUCKETS
    (wait,) = read.points("wait_time", alias).values()
    assert wait.count == 3


def test_a_connection_that_is_made_is_timed(read: Read) -> None:
    with pool_of_one("native"):
        backend_pid("native")
        wait_until(lambda: bool(read.points("create_time", "native")), "it is timed")
        assert read.points("create_time", "native")[None].count == 1


def test_a_timeout_is_counted(read: Read) -> None:
    assert read.value("timeouts", "brief_native") is None
    for count in (1, 2):
        exhaust("brief_native")
        wait_until(
            lambda count=count: read.value("timeouts", "brief_native") == count,  # type: ignore[misc]
            "it is counted",
        )


def test_instrumented_twice_is_counted_once(read: Read) -> None:
    """OpenTelemetry says so; and an instrumentor is one for the whole process."""
    logging.disable(logging.WARNING)
    try:
        RealPoolInstrumentor().instrument()
    finally:
        logging.disable(logging.NOTSET)
    backend_pid("native")
    assert read.points("use_time", "native")["cursor"].count == 1


def test_instrumented_again_is_counted_once() -> None:
    """What was given to a meter before can't be taken back; it is silent."""
    with instrumented() as first:
        backend_pid("native")
    with instrumented() as second:
        backend_pid("native")
        assert first.value("count", "native", "used") is None
        assert second.value("count", "native", "used") == 0
        assert second.points("use_time", "native")["cursor"].count == 1
    assert not observers.listening


def test_what_was_not_instrumented_can_be_uninstrumented() -> None:
    RealPoolInstrumentor()._uninstrument()
    assert not observers.listening


def test_before_there_are_settings_there_is_nothing(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`opentelemetry-instrument` begins before Django does."""
    backend_pid("native")
    monkeypatch.setattr(apps, "ready", False)
    assert read.value("count", "native", "used") is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.instrumentor", None)
    name = "django_pg_real_pool.contrib.opentelemetry"
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImproperlyConfigured, match=r"pip install opentelemetry-instrumentation$"
    ):
        importlib.import_module(name)


def test_it_needs_no_more_than_django() -> None:
    assert RealPoolInstrumentor().instrumentation_dependencies() == ("django >= 5.1",)
