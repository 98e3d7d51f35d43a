"""GeoDjango on PostGIS: `ENGINE = "django_pg_real_pool.postgis"`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import psycopg
import pytest
from django.contrib.gis.db import models
from django.contrib.gis.db.backends.postgis import base
from django.contrib.gis.db.models.functions import Distance
from django.contrib.gis.geos import Point, Polygon
from django.contrib.gis.measure import D
from django.db import OperationalError, connections, transaction
from faults import extra_alias
from helpers import backend_pid, census, pool_of_one, run_in_thread
from psycopg import sql

from django_pg_real_pool import assert_released, make_release_backend
from django_pg_real_pool.postgis.base import DatabaseWrapper


class Town(models.Model):
    name = models.TextField()
    place = models.PointField(geography=True)
    shape = models.PolygonField(srid=4326)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "towns"


def around(x: float, y: float) -> Polygon:
    polygon = Polygon.from_bbox((x - 0.1, y - 0.1, x + 0.1, y + 0.1))
    polygon.srid = 4326
    return polygon


PLACES = {"Lisbon": (-9.14, 38.72), "Madrid": (-3.70, 40.42), "Porto": (-8.61, 41.15)}


@pytest.fixture
def towns() -> Iterator[None]:
    """Three towns, in a table that GeoDjango made."""
    connection = connections["native"]
    with connection.schema_editor() as editor:
        editor.create_model(Town)
    Town.objects.using("native").bulk_create(
        Town(name=name, place=Point(x, y, srid=4326), shape=around(x, y))
        for name, (x, y) in PLACES.items()
    )
    assert_released("native")
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Town)


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


def use_each_connection(alias: str) -> set[int]:
    """Send a geometry through both connections of a pool of two."""
    others = [connections[alias].copy() for _ in range(2)]
    cursors: list[Any] = [other.cursor() for other in others]
    pids = set()
    for cursor in cursors:
        point = cursor.db.ops.Adapter(Point(1, 2, srid=4326))
        cursor.execute("SELECT pg_backend_pid(), ST_X(%s)", [point])
        pid, x = cursor.fetchone()
        assert x == 1
        pids.add(pid)
    for cursor, other in zip(cursors, others, strict=True):
        cursor.close()
        other.close()
    assert len(pids) == 2
    return pids


@pytest.mark.usefixtures("towns")
def test_geodjango_stores_and_finds_places() -> None:
    """Lookups, distances, geometry and geography, as its tutorial has them."""
    towns = Town.objects.using("native")
    lisbon = Point(*PLACES["Lisbon"], srid=4326)
    near = towns.filter(place__dwithin=(lisbon, D(km=300))).order_by("name")
    assert [town.name for town in near] == ["Lisbon", "Porto"]
    assert towns.get(shape__contains=lisbon).name == "Lisbon"
    madrid = towns.annotate(distance=Distance("place", lisbon)).get(name="Madrid")
    assert 490 < madrid.distance.km < 520
    porto = towns.get(name="Porto")
    assert porto.place.coords == PLACES["Porto"]
    assert porto.shape.equals_exact(around(*PLACES["Porto"]), 1e-9)
    assert_released("native")
    assert census("native").in_use == 0


@pytest.mark.usefixtures("towns")
def test_places_are_released_as_the_contract_says() -> None:
    """Nothing is held after a query; a block and an iterator hold until they end."""
    towns = Town.objects.using("native")
    list(towns.all())
    assert census("native").in_use == 0
    with transaction.atomic(using="native"):
        assert census("native").in_use == 0
        towns.filter(name="Lisbon").update(place=Point(0, 0, srid=4326))
        assert census("native").in_use == 1
        transaction.on_commit(lambda: assert_released("native"), using="native")
    assert census("native").in_use == 0
    rows = towns.order_by("name").iterator(chunk_size=1)
    assert next(rows).place.coords == (0, 0)
    assert census("native").in_use == 1
    assert [town.name for town in rows] == ["Madrid", "Porto"]
    assert census("native").in_use == 0


def test_adapters_are_registered_once_for_a_connection(
    registered: Counter[int],
) -> None:
    """Not for each query, nor, as by stock, for each request or thread."""
    with extra_alias("map_native", "native") as alias:
        pids = use_each_connection(alias)
        for _ in range(3):
            for _ in range(3):
                assert backend_pid(alias) in pids
            with transaction.atomic(using=alias):
                assert backend_pid(alias) in pids
            connections[alias].close()
            assert run_in_thread(lambda: backend_pid(alias)) in pids
        assert use_each_connection(alias) == pids
    assert registered == dict.fromkeys(pids, 1)


def test_stock_registers_adapters_for_each_request(registered: Counter[int]) -> None:
    """What the test above counts can be more than one."""
    wrapper = connections["stock_native"]
    for _ in range(3):
        backend_pid("stock_native")
        wrapper.close()
    assert registered.total() == 3


def test_a_cleaned_connection_has_its_adapters(registered: Counter[int]) -> None:
    """S6: they are on the client's side, which a cleaning leaves as it is."""
    with extra_alias("map_native", "native", size=1) as alias, pool_of_one(alias):
        pid = backend_pid(alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("SET work_mem = '77MB'")
        connections[alias].close()
        with connections[alias].cursor() as cursor:
            point = connections[alias].ops.Adapter(Point(1, 2, srid=4326))  # type: ignore[attr-defined]
            cursor.execute("SELECT pg_backend_pid(), ST_X(%s)", [point])
            assert cursor.fetchone() == (pid, 1)
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() != ("77MB",)
        assert registered == {pid: 1}


def test_a_replaced_connection_gets_its_adapters(
    registered: Counter[int], observer: Any
) -> None:
    """D4: before its first statement."""
    with extra_alias("map_native", "native", size=1) as alias, pool_of_one(alias):
        first = backend_pid(alias)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with suppress(OperationalError):  # unless it was noticed at the checkout
            backend_pid(alias)
        second = backend_pid(alias)
        assert registered == {first: 1, second: 1}


@pytest.fixture
def bare_database(observer: Any) -> Iterator[str]:
    """A database without PostGIS."""
    name = "bare"
    identifier = sql.Identifier(name)
    observer.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    yield name
    observer.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.mark.parametrize("engine", ["native", "stock_native"])
def test_postgis_may_be_installed_when_there_is_a_pool(
    engine: str, bare_database: str, registered: Counter[int]
) -> None:
    """`migrate` does: then what was in the pool before gets its adapters as well."""
    with extra_alias(f"bare_{engine}", engine, NAME=bare_database) as alias:
        others = [connections[alias].copy() for _ in range(2)]
        cursors = [other.cursor() for other in others]  # both, without a type to be found
        for cursor, other in zip(cursors, others, strict=True):
            cursor.close()
            other.close()
        assert list(registered.values()) == [1, 1]

        connections[alias].prepare_database()
        assert connections[alias].connection is None or engine == "stock_native"
        connections[alias].close()
        pids = use_each_connection(alias)
        again = registered.copy()
        assert use_each_connection(alias) == pids
        if engine == "native":
            assert set(again) == pids
            assert registered == again


def test_a_test_database_is_made_and_dropped() -> None:
    """By the detour over a wrapper that has no database, hence no PostGIS and no pool."""
    with extra_alias("new_native", "native", NAME="tested", TEST={"NAME": "new"}) as alias:
        creation = connections[alias].creation
        creation.create_test_db(verbosity=0, autoclobber=True)
        try:
            connections[alias].close()  # creation itself leaves it connected
            use_each_connection(alias)
        finally:
            creation.destroy_test_db("tested", verbosity=0)
    with psycopg.connect(autocommit=True) as connection:
        rows = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'new'")
        assert rows.fetchone() is None


def test_the_engine_is_what_the_factory_makes() -> None:
    """D8: it is a PostGIS wrapper, and the factory refuses to make it twice."""
    assert issubclass(DatabaseWrapper, base.DatabaseWrapper)
    with pytest.raises(TypeError, match=r"was already made by make_release_backend\(\)"):
        make_release_backend(DatabaseWrapper)
    assert make_release_backend(base.DatabaseWrapper) is not DatabaseWrapper
