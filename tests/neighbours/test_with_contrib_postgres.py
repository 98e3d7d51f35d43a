"""`django.contrib.postgres`: hstore and citext, whose types are registered on connections.

Django registers them by a receiver of `connection_created`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.contrib.postgres import signals
from django.contrib.postgres.fields import HStoreField
from django.db import OperationalError, connections, models, transaction
from django.db.backends.signals import connection_created
from helpers import backend_pid, census, pool_of_one, run_in_thread

from django_pg_real_pool import assert_released

pytest_plugins = ["fix_traffic"]


class Thing(models.Model):
    tags = HStoreField()
    history = models.JSONField(default=list)
    label: Any = models.TextField(db_collation="C")

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "things"


@pytest.fixture(autouse=True)
def _table(alias: str, observer: Any) -> Iterator[None]:
    connection = connections[alias]
    with connection.schema_editor() as editor:
        editor.create_model(Thing)
        editor.execute("ALTER TABLE things_thing ALTER label TYPE citext")
        editor.execute("ALTER TABLE things_thing ADD arrays citext[]")
    assert_released(alias)
    yield
    connection.close()
    observer.execute("DROP TABLE things_thing")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """How often the types were registered on each connection: server process -> n."""
    counts: Counter[int] = Counter()

    def register(connection: Any, **kwargs: Any) -> None:
        counts[connection.connection.info.backend_pid] += 1
        signals.register_type_handlers(connection)

    connection_created.disconnect(signals.register_type_handlers)
    connection_created.connect(register)
    yield counts
    connection_created.disconnect(register)
    connection_created.connect(signals.register_type_handlers)


def types_of(alias: str) -> tuple[Any, Any]:
    """Return an hstore and an array of citext, as the driver gives them."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 'a=>1, b=>NULL'::hstore, ARRAY['x', 'y']::citext[]")
        hstore, citext = cursor.fetchone()
        return hstore, citext


KNOWN = ({"a": "1", "b": None}, ["x", "y"])


def test_hstore_and_citext_work(alias: str) -> None:
    """As the documentation says; each query gives its connection back."""
    things = Thing.objects.using(alias)
    things.create(tags={"colour": "red", "size": None}, label="Chair")
    assert census(alias).in_use == 0
    assert things.get(tags__colour="red").tags == {"colour": "red", "size": None}
    assert things.get(label="cHAIR").label == "Chair"
    assert things.filter(tags__has_key="size").count() == 1
    with transaction.atomic(using=alias):
        things.update(tags={"colour": "blue"})
        assert census(alias).in_use == 1
    assert census(alias).in_use == 0
    (thing,) = things.iterator(chunk_size=1)
    assert thing.tags == {"colour": "blue"}
    assert census(alias).in_use == 0


def test_types_are_registered_for_a_session_and_not_for_a_query(
    alias: str, registered: Counter[int]
) -> None:
    """D4: once for a new connection, and for each wrapper's first one since close()."""
    with pool_of_one(alias):
        for _ in range(5):
            assert types_of(alias) == KNOWN
        with transaction.atomic(using=alias):
            assert types_of(alias) == KNOWN
        pid = backend_pid(alias)
        assert registered == {pid: 1}
        connections[alias].close()
        assert types_of(alias) == KNOWN
        assert run_in_thread(lambda: types_of(alias)) == KNOWN
        assert registered == {pid: 3}


def test_each_connection_of_a_pool_knows_the_types(
    alias: str, registered: Counter[int]
) -> None:
    """D4: also one that was made when others were in use."""
    first, second = connections[alias].copy(), connections[alias].copy()
    with first.cursor() as one, second.cursor() as other:
        for cursor in (one, other):
            cursor.execute("SELECT 'a=>1, b=>NULL'::hstore, ARRAY['x', 'y']::citext[]")
            assert tuple(cursor.fetchone()) == KNOWN
    first.close()
    second.close()
    for _ in range(3):
        assert types_of(alias) == KNOWN
    assert len(registered) == 2


def test_a_cleaned_connection_knows_the_types(alias: str, registered: Counter[int]) -> None:
    """S6: they are its configuration, so they are there again after a cleaning."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        for _ in range(2):
            with connections[alias].cursor() as cursor:
                cursor.execute("SET work_mem = '77MB'")
            connections[alias].close()
            assert types_of(alias) == KNOWN
            assert backend_pid(alias) == pid
        assert registered == {pid: 3}


def test_a_cleaned_connection_is_set_up_for_a_wrapper_that_is_known(
    alias: str, registered: Counter[int]
) -> None:
    """S6, D4: another wrapper cleaned it, in the middle of this one's request."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        assert registered == {pid: 1}

        def another_request() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("SET work_mem = '77MB'")

        run_in_thread(another_request)
        assert registered == {pid: 2}
        assert types_of(alias) == KNOWN
        assert registered == {pid: 3}


def test_a_replaced_connection_knows_the_types(
    alias: str, registered: Counter[int], observer: Any
) -> None:
    """D4: before the first statement on it."""
    with pool_of_one(alias):
        first = backend_pid(alias)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with suppress(OperationalError):  # unless it was noticed at the checkout
            backend_pid(alias)
        assert types_of(alias) == KNOWN
        second = backend_pid(alias)
        assert second != first
        assert registered == {first: 1, second: 1}


def test_types_that_are_made_by_hand_hold_no_connection(alias: str) -> None:
    """The operations of migrations: an extension that is there already."""
    from django.contrib.postgres.operations import CITextExtension, HStoreExtension
    from django.db.migrations.state import ProjectState

    for operation in (HStoreExtension(), CITextExtension()):
        with connections[alias].schema_editor() as editor:
            operation.database_forwards("things", editor, ProjectState(), ProjectState())
        assert_released(alias)
    assert types_of(alias) == KNOWN
