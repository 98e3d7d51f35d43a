"""pgvector: a type that is registered on connections, and fields that need no such thing.

The embedded server of the tests brings the extension along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.db import OperationalError, connections, models, transaction
from django.db.backends.signals import connection_created
from django.db.migrations.state import ProjectState
from helpers import backend_pid, census, pool_of_one, run_in_thread
from pgvector import Vector
from pgvector.django import HnswIndex, L2Distance, VectorExtension, VectorField
from pgvector.psycopg import register_vector

from django_pg_real_pool import assert_released


class Picture(models.Model):
    name = models.TextField()
    embedding = VectorField(dimensions=3)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "pictures"
        indexes: ClassVar = [
            HnswIndex(
                name="by_distance",
                fields=["embedding"],
                m=16,
                ef_construction=64,
                opclasses=["vector_l2_ops"],
            )
        ]


@pytest.fixture(autouse=True)
def _table(alias: str, observer: Any) -> Iterator[None]:
    """With the extension and the index as migrations make them."""
    connection = connections[alias]
    with connection.schema_editor() as editor:
        VectorExtension().database_forwards(
            "pictures", editor, ProjectState(), ProjectState()
        )
        editor.create_model(Picture)
    assert_released(alias)
    Picture.objects.using(alias).bulk_create(
        Picture(name=f"{x}", embedding=[x, x, x]) for x in range(10)
    )
    yield
    connections[alias].close()
    observer.execute("DROP TABLE pictures_picture")


@pytest.fixture
def registered() -> Iterator[Counter[int]]:
    """Register the type as its documentation says; count: server process -> n."""
    counts: Counter[int] = Counter()

    def register(connection: Any, **kwargs: Any) -> None:
        physical = getattr(connection.connection, "driver_connection", None)
        physical = physical or connection.connection
        counts[physical.info.backend_pid] += 1
        register_vector(physical)

    connection_created.connect(register)
    yield counts
    connection_created.disconnect(register)


def vector_of(alias: str) -> Any:
    """Send a vector through a plain cursor, and return what comes back."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s::vector", [Vector([1, 2, 3])])
        return cursor.fetchone()[0]


def test_the_nearest_are_found(alias: str) -> None:
    """Fields, distances and the index, with early release beneath."""
    pictures = Picture.objects.using(alias)
    near = pictures.order_by(L2Distance("embedding", [3.1, 3.1, 3.1]))[:3]
    assert [picture.name for picture in near] == ["3", "4", "2"]
    assert census(alias).in_use == 0
    with transaction.atomic(using=alias):
        pictures.filter(name="3").update(embedding=[0, 0, 0])
        assert census(alias).in_use == 1
    assert census(alias).in_use == 0
    rows = pictures.order_by("id").iterator(chunk_size=3)
    assert list(next(rows).embedding) == [0, 0, 0]
    assert census(alias).in_use == 1
    assert len(list(rows)) == 9
    assert census(alias).in_use == 0


def test_search_options_end_with_the_block(alias: str) -> None:
    """S1: `SET LOCAL hnsw.ef_search`, as its documentation has it, holds no longer."""
    with pool_of_one(alias):
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("SET LOCAL hnsw.ef_search = 99")
            list(Picture.objects.using(alias).order_by(L2Distance("embedding", [1, 1, 1])))
        assert census(alias).in_use == 0
        with connections[alias].cursor() as cursor:
            cursor.execute("SHOW hnsw.ef_search")
            assert cursor.fetchone() == ("40",)


def test_the_type_is_registered_for_a_session_and_not_for_a_query(
    alias: str, registered: Counter[int]
) -> None:
    """D4: it costs four queries each time."""
    with pool_of_one(alias):
        for _ in range(5):
            assert vector_of(alias) == Vector([1, 2, 3])
        with transaction.atomic(using=alias):
            assert vector_of(alias) == Vector([1, 2, 3])
        pid = backend_pid(alias)
        assert registered == {pid: 1}
        connections[alias].close()
        assert vector_of(alias) == Vector([1, 2, 3])
        assert run_in_thread(lambda: vector_of(alias)) == Vector([1, 2, 3])
        assert registered == {pid: 3}


def test_a_cleaned_connection_knows_the_type(alias: str, registered: Counter[int]) -> None:
    """S6: and is the same one."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        for _ in range(2):
            with connections[alias].cursor() as cursor:
                cursor.execute("SET hnsw.ef_search = 99")
            connections[alias].close()
            assert vector_of(alias) == Vector([1, 2, 3])
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid(), current_setting('hnsw.ef_search')")
                assert cursor.fetchone() == (pid, "40")


def test_a_replaced_connection_knows_the_type(
    alias: str, registered: Counter[int], observer: Any
) -> None:
    """D4: before the first statement on it."""
    with pool_of_one(alias):
        first = backend_pid(alias)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with suppress(OperationalError):  # unless it was noticed at the checkout
            backend_pid(alias)
        assert vector_of(alias) == Vector([1, 2, 3])
        second = backend_pid(alias)
        assert registered == {first: 1, second: 1}
