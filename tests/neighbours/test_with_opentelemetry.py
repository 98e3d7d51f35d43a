"""OpenTelemetry, which replaces psycopg's `connect` and each connection's cursors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import override_settings
from helpers import backend_pid, census, forget_pool, pool_of_one
from opentelemetry.instrumentation import psycopg as psycopg_traced
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from settings import STOCK_OF
from side_by_side import same_for_all
from traffic import warm_up

from django_pg_real_pool import assert_released, pin_connection
from neighbours.visits import counting_calls, counting_connections, serve, visit

#: How the instrumentation marks a connection.
INSTRUMENTED = "_is_instrumented_by_opentelemetry"


@pytest.fixture(params=["native", "own"])
def own_or_native(request: pytest.FixtureRequest) -> str:
    """An engine whose connections are the driver's own; the other's pool wraps them."""
    return str(request.param)


class Traced:
    """What was traced, from the beginning or since it was last asked for."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def take(self, kind: str) -> list[Any]:
        """Return the spans of "CLIENT" or "SERVER" kind, and forget all."""
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        return [each for each in found if each.kind.name == kind]


@contextmanager
def instrumented(alias: str, **options: Any) -> Iterator[Traced]:
    """Instrument psycopg before the pools of `alias`, and of its stock, connect."""
    traced = Traced()
    names = [alias, STOCK_OF[alias]]
    psycopg, site = PsycopgInstrumentor(), DjangoInstrumentor()
    with override_settings(MIDDLEWARE=[]):  # some of which it leaves behind
        psycopg.instrument(tracer_provider=traced.provider, **options.get("psycopg", {}))
        site.instrument(tracer_provider=traced.provider, **options.get("django", {}))
        for name in names:
            forget_pool(name)
        try:
            for name in names:
                warm_up(name)
            traced.take("CLIENT")
            yield traced
        finally:
            site.uninstrument()
            psycopg.uninstrument()
            for name in names:
                forget_pool(name)


def statements(found: list[Any]) -> list[str]:
    """Return the texts, without a pool's ping and without what `visit()` does."""
    texts = [same_for_all(each.attributes["db.statement"]) for each in found]
    return [each for each in texts if each != ";" and not each.startswith("TRUNCATE")]


def last_statement(alias: str, observer: Any) -> str:
    """Return what the server got last, by the pool's only connection."""
    pid = backend_pid(alias)
    asked = "SELECT query FROM pg_stat_activity WHERE pid = %s"
    return str(observer.execute(asked, [pid]).fetchone()[0])


# ##### Traces #####


def test_a_page_has_the_spans_that_it_has_on_stock(alias: str) -> None:
    """D1: each statement, with the same attributes, beneath the span of its request."""
    with instrumented(alias) as traced:
        found, attributes = [], []
        for name in (alias, STOCK_OF[alias]):
            visit(name)
            spans = traced.exporter.get_finished_spans()
            (request,) = [each for each in spans if each.kind.name == "SERVER"]
            assert request.attributes is not None
            assert request.attributes["http.route"] == "<str:alias>/page/"
            queries = [each for each in traced.take("CLIENT") if each.parent]
            assert {each.parent.span_id for each in queries} == {request.context.span_id}
            found.append(statements(queries))
            attributes.append([dict(each.attributes) for each in queries][-1])
        assert found[0] == found[1]
        assert len(found[0]) > 10
        assert attributes[0] == attributes[1]


def test_an_error_ends_in_a_release(alias: str) -> None:
    """R3: the span of the request is an error, and nothing is held after it."""
    with instrumented(alias) as traced:
        assert serve(f"/{alias}/failing/").status_code == 500
        assert_released(alias)
        assert census(alias).in_use == 0
        (request,) = traced.take("SERVER")
        assert request.status.status_code.name == "ERROR"


# ##### SQLCommenter #####


def test_the_drivers_comment_is_sent(alias: str, observer: Any) -> None:
    """D1: it is added beneath Django's cursor, with the span of the statement."""
    options = {"enable_commenter": True, "enable_attribute_commenter": True}
    with instrumented(alias, psycopg=options) as traced, pool_of_one(alias):
        visit(alias)
        traced.take("CLIENT")
        sent = last_statement(alias, observer)
        (span,) = [
            each for each in traced.take("CLIENT") if "backend_pid" in str(each.attributes)
        ]
        assert sent == span.attributes["db.statement"]
        assert f"-{span.context.span_id:016x}-" in sent


def test_djangos_comment_is_sent(alias: str) -> None:
    """D1: it is added by an execute wrapper, so to savepoints as well, sent late or not."""
    with instrumented(alias, django={"is_sql_commentor_enabled": True}) as traced:
        visit(alias)
        ours = statements(traced.take("CLIENT"))
        visit(STOCK_OF[alias])
        stock = statements(traced.take("CLIENT"))
    comment = re.compile(r"/\*.*controller='neighbours.visits.page'.*traceparent='.*'\*/$")
    assert all(comment.search(each) for each in ours)
    assert [each.partition("/*")[0] for each in ours] == [
        each.partition("/*")[0] for each in stock
    ]


def test_a_comment_hides_no_change_of_the_session(alias: str) -> None:
    """S1: neither that of a statement, nor does it make one of a route's name."""
    with instrumented(alias, psycopg={"enable_commenter": True}), pool_of_one(alias):
        pid = backend_pid(alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1 /*controller='set_config',route='load/(reset)'*/")
        assert connections[alias].connection is None
        with connections[alias].cursor() as cursor:
            cursor.execute("SET work_mem = '77MB' /*controller='page'*/")
        assert connections[alias].connection is not None
        connections[alias].close()
        with connections[alias].cursor() as cursor:
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() != ("77MB",)
        assert backend_pid(alias) == pid


# ##### What is done once #####


def test_a_connection_is_instrumented_once(alias: str) -> None:
    """C2: when it is made; each of its leases has the cursors that it got then."""
    with instrumented(alias) as traced, pool_of_one(alias):
        with counting_calls(psycopg_traced.DatabaseApiIntegration, "__init__") as made:
            with pin_connection(alias) as wrapper:
                factory = wrapper.connection.cursor_factory
            for _ in range(2):
                visit(alias)
            with pin_connection(alias) as wrapper:
                assert wrapper.connection.cursor_factory is factory
        # The others are those of visit() itself, which undoes what a page wrote.
        assert len(made) == 1 + 2
        assert traced.take("CLIENT")


def test_a_page_has_one_connection_announced(alias: str) -> None:
    """D4: not one for each of its queries."""
    counting = counting_connections(alias)
    with instrumented(alias), pool_of_one(alias), counting as announced:
        for number in range(1, 4):
            visit(alias)
            assert len(announced) == number


def test_a_receiver_may_instrument_single_connections(own_or_native: str) -> None:
    """S6: it is the connection's configuration, and outlives a cleaning of the session."""
    alias = own_or_native
    traced = Traced()

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias and not hasattr(connection.connection, INSTRUMENTED):
            instrumentor = PsycopgInstrumentor()
            instrumentor.instrument_connection(connection.connection, traced.provider)
            done.append(connection.connection)

    done: list[Any] = []
    connection_created.connect(receive)
    try:
        with pool_of_one(alias):
            pid = backend_pid(alias)
            assert len(traced.take("CLIENT")) == 1
            with connections[alias].cursor() as cursor:
                cursor.execute("SET work_mem = '77MB'")
            connections[alias].close()
            assert backend_pid(alias) == pid
            assert len(traced.take("CLIENT")) >= 2
            visit(alias)
            assert len(statements(traced.take("CLIENT"))) > 10
            assert len(done) == 1
    finally:
        connection_created.disconnect(receive)
