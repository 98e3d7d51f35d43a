"""django-db-connection-pool's PostGIS backend as the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.contrib.gis.db import models
from django.contrib.gis.db.backends.postgis import base
from django.contrib.gis.geos import Point
from django.contrib.gis.measure import D
from django.db import OperationalError, connections, transaction
from helpers import backend_pid, census, pool_of_one, run_in_thread

from django_pg_real_pool import assert_released
from django_pg_real_pool._pools.queue import QueuePool

ALIAS = "dj"


class Stop(models.Model):
    name = models.TextField()
    place = models.PointField(geography=True)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "stops"


@pytest.fixture
def stops() -> Iterator[Any]:
    connection = connections[ALIAS]
    with connection.schema_editor() as editor:
        editor.create_model(Stop)
    found = Stop.objects.using(ALIAS)
    found.bulk_create(Stop(name=f"{x}", place=Point(x, 0, srid=4326)) for x in range(5))
    assert_released(ALIAS)
    yield found
    with connection.schema_editor() as editor:
        editor.delete_model(Stop)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often Django registered its adapters on each connection: server process -> n."""
    counts: Counter[int] = Counter()
    register = base.DatabaseWrapper.register_geometry_adapters

    def counted(self: Any, pg_connection: Any, *args: Any) -> None:
        counts[pg_connection.info.backend_pid] += 1
        register(self, pg_connection, *args)

    monkeypatch.setattr(base.DatabaseWrapper, "register_geometry_adapters", counted)
    return counts


def send_a_point(alias: str) -> None:
    db: Any = connections[alias]
    with db.cursor() as cursor:
        cursor.execute("SELECT ST_X(%s)", [db.ops.Adapter(Point(1, 2, srid=4326))])
        assert cursor.fetchone() == (1,)


def test_places_are_found_and_connections_released(stops: Any) -> None:
    """As GeoDjango's documentation has it; a block and an iterator hold until they end."""
    near = stops.filter(place__dwithin=(Point(0, 0, srid=4326), D(km=150)))
    assert {stop.name for stop in near} == {"0", "1"}
    assert census(ALIAS).in_use == 0
    with transaction.atomic(using=ALIAS):
        stops.filter(name="0").update(place=Point(9, 9, srid=4326))
        assert census(ALIAS).in_use == 1
    assert census(ALIAS).in_use == 0
    rows = stops.order_by("name").iterator(chunk_size=1)
    assert next(rows).place.coords == (9, 9)
    assert census(ALIAS).in_use == 1
    assert len(list(rows)) == 4
    assert census(ALIAS).in_use == 0


def test_adapters_are_registered_once_for_a_connection(registered: Counter[int]) -> None:
    """When the pool makes it: not for a query, a request or a thread."""
    with pool_of_one(ALIAS):
        for _ in range(3):
            for _ in range(3):
                send_a_point(ALIAS)
            connections[ALIAS].close()
            run_in_thread(lambda: send_a_point(ALIAS))
        assert registered == {backend_pid(ALIAS): 1}


def test_a_cleaned_connection_has_its_adapters(registered: Counter[int]) -> None:
    """S6: they are on the client's side, which a cleaning leaves as it is."""
    with pool_of_one(ALIAS):
        pid = backend_pid(ALIAS)
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SET work_mem = '77MB'")
        connections[ALIAS].close()
        send_a_point(ALIAS)
        assert backend_pid(ALIAS) == pid
        assert registered == {pid: 1}


def test_a_replaced_connection_gets_its_adapters(
    registered: Counter[int], observer: Any
) -> None:
    """D4: before its first statement."""
    with pool_of_one(ALIAS):
        first = backend_pid(ALIAS)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with suppress(OperationalError):  # unless it was noticed at the checkout
            backend_pid(ALIAS)
        send_a_point(ALIAS)
        assert registered == {first: 1, backend_pid(ALIAS): 1}


def test_the_pool_beneath_is_known() -> None:
    """D6: it overrides no more than that package's PostgreSQL backend."""
    hooks = connections[ALIAS]._hooks  # type: ignore[attr-defined]
    assert isinstance(hooks.pool, QueuePool)
    assert not hooks.pool._is_overridden
    assert not any((hooks.close, hooks.connect, hooks.cursor, hooks.init_every_time))
