"""django-pgtrigger: triggers, and `ignore()`, which puts statements before others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pgtrigger
import pytest
from django.db import DatabaseError, connections, models, transaction
from helpers import backend_pid, census, pool_of_one, run_in_thread

from django_pg_real_pool import assert_released


@pgtrigger.register(
    pgtrigger.Protect(name="keep", operation=pgtrigger.Delete),
    pgtrigger.Trigger(
        name="shout",
        when=pgtrigger.Before,
        operation=pgtrigger.Insert,
        func="NEW.name = upper(NEW.name); RETURN NEW;",
    ),
    pgtrigger.Trigger(
        name="later",
        operation=pgtrigger.Update,
        when=pgtrigger.After,
        timing=pgtrigger.Deferred,
        func="RAISE EXCEPTION 'no update'; RETURN NULL;",
    ),
)
class Order(models.Model):
    name = models.TextField()

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "orders"


@pytest.fixture(autouse=True)
def _table(alias: str, observer: Any) -> Iterator[None]:
    with connections[alias].schema_editor() as editor:
        editor.create_model(Order)
    pgtrigger.install(database=alias)
    assert_released(alias)
    yield
    connections[alias].close()
    observer.execute("DROP TABLE orders_order")


def orders(alias: str) -> Any:
    return Order.objects.using(alias)


def test_triggers_work_and_connections_are_released(alias: str) -> None:
    """As its documentation has them; a refused statement releases as well."""
    orders(alias).create(name="one")
    assert orders(alias).get().name == "ONE"
    with pytest.raises(DatabaseError, match="Cannot delete"):
        orders(alias).all().delete()
    assert census(alias).in_use == 0
    with transaction.atomic(using=alias):
        orders(alias).create(name="two")
        assert census(alias).in_use == 1
    assert census(alias).in_use == 0
    assert len(list(orders(alias).iterator(chunk_size=1))) == 2
    assert_released(alias)


def test_ignored_triggers_hold_nothing(alias: str) -> None:
    """S1: what is put before each statement, set_config(..., true), ends with it."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        with pgtrigger.ignore(databases=[alias]):
            order = orders(alias).create(name="one")
            assert census(alias).in_use == 0
            assert orders(alias).get().name == "one"
            assert order.delete()[0] == 1
            assert census(alias).in_use == 0
        orders(alias).create(name="one")
        assert orders(alias).get().name == "ONE"
        assert backend_pid(alias) == pid
        assert_released(alias)


def test_ignoring_in_a_block_holds_until_close(alias: str) -> None:
    """S1, S3: there it resets its setting for the session, so that is cleaned."""
    with pool_of_one(alias):
        pid = backend_pid(alias)
        with transaction.atomic(using=alias):
            with pgtrigger.ignore("orders.Order:shout", databases=[alias]):
                orders(alias).create(name="one")
            with pytest.raises(DatabaseError), transaction.atomic(using=alias):
                orders(alias).all().delete()
            orders(alias).create(name="two")
        names = set(orders(alias).values_list("name", flat=True))
        assert names == {"one", "TWO"}
        db: Any = connections[alias]
        assert db._lease.holds.describe() == ["session state"]
        db.close()
        assert census(alias).in_use == 0
        assert backend_pid(alias) == pid


def test_a_block_within_ignore_holds_nothing_after_it(alias: str) -> None:
    """S1: the other way round nothing is reset, and nothing is held."""
    with pgtrigger.ignore("orders.Order:shout", databases=[alias]):
        with transaction.atomic(using=alias):
            orders(alias).create(name="one")
            assert census(alias).in_use == 1
        assert census(alias).in_use == 0
        orders(alias).create(name="two")
    assert set(orders(alias).values_list("name", flat=True)) == {"one", "two"}
    assert_released(alias)


def test_nobody_else_ignores_triggers(alias: str) -> None:
    """S3: on the same connection, while one thread ignores them."""
    with pool_of_one(alias), pgtrigger.ignore(databases=[alias]):
        orders(alias).create(name="one")
        run_in_thread(lambda: orders(alias).create(name="two"))
        assert set(orders(alias).values_list("name", flat=True)) == {"one", "TWO"}


def test_a_schema_is_set_for_each_statement(alias: str, observer: Any) -> None:
    """S1: `schema()` does the same with the search path."""
    observer.execute("CREATE SCHEMA other")
    try:
        with pool_of_one(alias):
            with pgtrigger.schema("other", databases=[alias]):
                with pytest.raises(DatabaseError):
                    orders(alias).count()
                assert census(alias).in_use == 0
            assert orders(alias).count() == 0
            assert_released(alias)
    finally:
        observer.execute("DROP SCHEMA other")


def test_deferred_triggers_fail_at_commit_and_release(alias: str) -> None:
    """R3: or where `constraints()` asks for them, by a SET CONSTRAINTS."""
    orders(alias).create(name="one")
    with (
        pytest.raises(DatabaseError, match="no update"),
        transaction.atomic(using=alias),
    ):
        orders(alias).update(name="two")
    assert census(alias).in_use == 0
    with transaction.atomic(using=alias):
        pgtrigger.constraints(pgtrigger.Immediate, "orders.Order:later", databases=[alias])
        with pytest.raises(DatabaseError, match="no update"):
            orders(alias).update(name="two")
        transaction.set_rollback(True, using=alias)
    assert_released(alias)


def test_its_editor_keeps_the_pin(alias: str) -> None:
    """D1: it puts a mixin upon the schema editor of each engine."""
    db: Any = connections[alias]
    assert "pgtrigger" in str(type(db).SchemaEditorClass.__mro__)
    with db.schema_editor() as editor:
        assert db._lease.holds.describe() == ["pin"]
        old = Order._meta.get_field("name")
        new = models.CharField(max_length=9)
        new.set_attributes_from_name("name")
        editor.alter_field(Order, old, new)
    assert_released(alias)
