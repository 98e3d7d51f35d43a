"""django-prometheus as the base: its metrics count what they did, and not every checkout."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction
from helpers import backend_pid, census, forget_pool, pool_of_one, run_in_thread
from items import Item
from prometheus_client import REGISTRY
from traffic import warm_up

from django_pg_real_pool import assert_released, pool_status
from django_pg_real_pool._pools.native import NativePool

ALIAS = "native"
PLAIN = "plain_native"
ENGINES = [ALIAS, PLAIN]


def metric(name: str, alias: str, **labels: str) -> float:
    labels = {"alias": alias, "vendor": "postgresql", **labels}
    return REGISTRY.get_sample_value(f"django_db_{name}", labels) or 0


class Counted:
    """How much the metrics of an alias have grown."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.before = self._read()

    def _read(self) -> dict[str, float]:
        return {
            "connections": metric("new_connections_total", self.alias),
            "statements": metric("execute_total", self.alias),
            "timed": metric("query_duration_seconds_count", self.alias),
        }

    def grown(self) -> dict[str, float]:
        return {name: now - self.before[name] for name, now in self._read().items()}


@pytest.mark.parametrize("alias", ENGINES)
def test_statements_are_counted_and_timed(alias: str) -> None:
    """As stock: each statement once, errors by their type."""
    # One connection alone: a pool sets up what it opens by itself, which is counted too.
    with pool_of_one(alias):
        backend_pid(alias)
        counted = Counted(alias)
        errors = metric("errors_total", alias, type="UniqueViolation")
        Item.objects.using(alias).create(name="one")
        assert Item.objects.using(alias).count() == 1
        with pytest.raises(DatabaseError):
            Item.objects.using(alias).create(name="one")
        grown = counted.grown()
    assert grown["statements"] == grown["timed"] == 3
    assert metric("errors_total", alias, type="UniqueViolation") - errors == 1


@pytest.mark.parametrize("alias", ENGINES)
def test_connections_are_released_under_it(alias: str) -> None:
    """R1: after a query and a block, while an iterator holds one."""
    warm_up(alias)
    Item.objects.using(alias).bulk_create(Item(name=name) for name in "abc")
    assert census(alias).in_use == 0
    with transaction.atomic(using=alias):
        list(Item.objects.using(alias).all())
        assert census(alias).in_use == 1
        transaction.on_commit(lambda: assert_released(alias), using=alias)
    assert census(alias).in_use == 0
    rows = Item.objects.using(alias).iterator(chunk_size=1)
    next(rows)
    assert census(alias).in_use == 1
    assert len(list(rows)) == 2
    assert census(alias).in_use == 0
    assert_released(alias)


def test_connections_are_counted_as_by_stock() -> None:
    """Once for each wrapper since its close(), not for each query."""
    counted = {alias: Counted(alias) for alias in (ALIAS, "stock_native")}

    def request(alias: str) -> None:
        for _ in range(5):
            backend_pid(alias)
        with transaction.atomic(using=alias):
            backend_pid(alias)
        connections[alias].close()

    for alias in counted:
        with pool_of_one(alias):
            for _ in range(2):
                request(alias)
            run_in_thread(lambda alias=alias: request(alias))  # type: ignore[misc]
    for each in counted.values():
        assert each.grown()["connections"] == 3


def test_an_unnamed_override_is_run_at_each_checkout() -> None:
    """D6: in two lines it works as well, but each lease is counted for a connection."""
    counted = Counted(PLAIN)
    for _ in range(5):
        backend_pid(PLAIN)
    assert counted.grown()["connections"] == 5
    assert type(connections[PLAIN]._hooks.pool) is not NativePool  # type: ignore[attr-defined]


def test_the_named_overrides_let_the_pool_be_known() -> None:
    """P3: it is Django's own, and tells its census."""
    backend_pid(ALIAS)
    assert pool_status(ALIAS).census.max_size == 2
    with connections[ALIAS].cursor() as cursor:
        raw: Any = cursor.cursor
        kind = type(raw)
    assert kind.__module__ == "django_prometheus.db.common"
    with connections[ALIAS].cursor() as cursor:
        again: Any = cursor.cursor
        assert type(again) is kind, "a class of cursors was made for one query"


def test_pools_end_as_django_asks() -> None:
    """D1: close_pool(), then work on."""
    for alias in ENGINES:
        pid = backend_pid(alias)
        forget_pool(alias)
        assert backend_pid(alias) != pid
        assert_released(alias)
