"""django-postgres-extra as the base, and upon the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.db import connections, models, transaction
from helpers import backend_pid, census, pool_of_one
from psqlextra.fields import HStoreField
from psqlextra.models import PostgresModel, PostgresPartitionedModel
from psqlextra.query import ConflictAction
from psqlextra.settings import postgres_set_local
from psqlextra.types import PostgresPartitioningMethod

from django_pg_real_pool import assert_released
from django_pg_real_pool._pools.native import NativePool

ALIAS = "native"


class Product(PostgresModel):  # type: ignore[misc]
    name = models.TextField(unique=True)
    title = HStoreField()

    class Meta:
        app_label = "products"
        base_manager_name = "objects"


class Sale(PostgresPartitionedModel):  # type: ignore[misc]
    country = models.TextField()

    class PartitioningMeta:
        method = PostgresPartitioningMethod.LIST
        key: ClassVar = ["country"]

    class Meta:
        app_label = "products"
        base_manager_name = "objects"


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """As its schema editor makes them, partitions included."""
    db: Any = connections[ALIAS]
    with db.schema_editor() as editor:
        editor.create_model(Product)
        editor.create_partitioned_model(Sale)
        for country in ("pt", "es"):
            editor.add_list_partition(Sale, name=country, values=[country])
    assert_released(ALIAS)
    yield
    with db.schema_editor() as editor:
        editor.delete_partitioned_model(Sale)
        editor.delete_model(Product)
    assert_released(ALIAS)


def products() -> Any:
    return Product.objects.using(ALIAS)


def test_rows_are_inserted_or_updated() -> None:
    """`on_conflict()`, and hstore: each statement gives its connection back."""
    for title in ("chair", "armchair"):
        (
            products()
            .on_conflict(["name"], ConflictAction.UPDATE)
            .insert(name="chair", title={"en": title})
        )
        assert census(ALIAS).in_use == 0
    (chair,) = products().all()
    assert chair.title == {"en": "armchair"}
    assert products().filter(title__en="armchair").count() == 1
    got = (
        products()
        .on_conflict(["name"], ConflictAction.NOTHING)
        .insert_and_get(name="table", title={})
    )
    assert products().get(name="table") == got
    assert census(ALIAS).in_use == 0


def test_partitions_are_found_and_used() -> None:
    """Its introspection and its schema editor, and rows through them."""
    Sale.objects.using(ALIAS).create(country="pt")
    db: Any = connections[ALIAS]
    with db.cursor() as cursor:
        table = db.introspection.get_partitioned_table(cursor, Sale._meta.db_table)
        cursor.execute("SELECT count(*) FROM products_sale_pt")
        assert cursor.fetchone() == (1,)
    assert {each.name for each in table.partitions} == {"pt", "es"}
    assert census(ALIAS).in_use == 0


def test_a_local_setting_holds_no_longer_than_its_block() -> None:
    """S1: SET LOCAL ends with the transaction, and so does the lease."""
    with pool_of_one(ALIAS):
        with transaction.atomic(using=ALIAS):
            with (
                postgres_set_local(using=ALIAS, statement_timeout=1234),
                connections[ALIAS].cursor() as cursor,
            ):
                cursor.execute("SHOW statement_timeout")
                assert cursor.fetchone() == ("1234ms",)
            assert census(ALIAS).in_use == 1
        assert census(ALIAS).in_use == 0
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)


def test_an_iterator_holds_until_it_is_read() -> None:
    """R4: through its query sets."""
    products().bulk_insert([{"name": str(n), "title": {}} for n in range(5)])
    rows = products().iterator(chunk_size=2)
    next(rows)
    assert census(ALIAS).in_use == 1
    assert len(list(rows)) == 4
    assert census(ALIAS).in_use == 0


def test_hstore_is_registered_once_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D4: its types come by connection_created, for each request and not each query."""
    from django.contrib.postgres import signals

    asked: list[str] = []
    get_oids = signals.get_hstore_oids

    def counted(alias: str) -> Any:
        asked.append(alias)
        return get_oids(alias)

    with pool_of_one(ALIAS):
        monkeypatch.setattr(signals, "get_hstore_oids", counted)
        for _ in range(5):
            backend_pid(ALIAS)
            list(products().all())
        assert asked == [ALIAS]


def test_the_database_is_prepared() -> None:
    """`migrate` has its extension made, through a cursor that is closed."""
    db: Any = connections[ALIAS]
    db.prepare_database()
    db.close()
    assert census(ALIAS).in_use == 0


def test_the_pool_beneath_is_known() -> None:
    """D6: it overrides nothing that gets or gives back a connection."""
    hooks = connections[ALIAS]._hooks  # type: ignore[attr-defined]
    assert isinstance(hooks.pool, NativePool)
    assert not any((hooks.close, hooks.connect, hooks.cursor, hooks.init_every_time))


ON_TOP = """
import os
import django
from django.conf import settings

settings.configure(
    POSTGRES_EXTRA_DB_BACKEND_BASE="django_pg_real_pool",
    INSTALLED_APPS=["django.contrib.postgres", "psqlextra"],
    DATABASES={"default": {
        "ENGINE": "psqlextra.backend",
        "NAME": os.environ["PGDATABASE"],
        "OPTIONS": {"pool": {"min_size": 1, "max_size": 1}},
    }},
)
django.setup()
from django.db import connections, transaction
from django_pg_real_pool import ConnectionReleaseMixin, assert_released
from psqlextra.backend.schema import PostgresSchemaEditor

connection = connections["default"]
assert isinstance(connection, ConnectionReleaseMixin)
with connection.cursor() as cursor:
    cursor.execute("SELECT 1")
assert_released()
with transaction.atomic(), connection.cursor() as cursor:
    cursor.execute("SELECT 1")
assert_released()
with connection.schema_editor() as editor:
    assert isinstance(editor, PostgresSchemaEditor)
    assert editor.quote_value("a") == "'a'"
assert_released()
connection.close_pool()
print("released")
"""


def test_it_can_also_stand_upon_the_engine() -> None:
    """D8: by its own setting for the backend beneath, POSTGRES_EXTRA_DB_BACKEND_BASE."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_TOP],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "released\n", ran.stderr
