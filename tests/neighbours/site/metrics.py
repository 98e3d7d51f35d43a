"""The site's metrics, where its test wants them: `/metrics`, and OpenTelemetry's reader."""

from __future__ import annotations

import os
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from django_pg_real_pool.contrib.opentelemetry import RealPoolInstrumentor

#: What a test locks to keep pages waiting in the database.
LOCK = 4242

_reader = InMemoryMetricReader()
RealPoolInstrumentor().instrument(meter_provider=MeterProvider([_reader]))


def held(request: HttpRequest) -> JsonResponse:
    """Hold a connection for as long as the test has the lock."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [LOCK])
    return JsonResponse({"worker": os.getpid()})


def read(request: HttpRequest) -> JsonResponse:
    """Forward what OpenTelemetry's reader has, of the process that answers."""
    data = _reader.get_metrics_data()
    found: dict[str, float] = {}
    for of_resource in data.resource_metrics if data else ():
        for scope in of_resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    _add(found, metric.name, point)
    return JsonResponse({"worker": os.getpid(), **found})


def _add(found: dict[str, float], name: str, point: Any) -> None:
    state = point.attributes.get("db.client.connection.state")
    name = name.removeprefix("db.client.connection.") + (f" {state}" if state else "")
    found[name] = found.get(name, 0) + getattr(point, "value", getattr(point, "count", 0))


urlpatterns = [
    path("", include("django_prometheus.urls")),
    path("held/", held),
    path("opentelemetry/", read),
]
