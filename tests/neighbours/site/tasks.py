"""The site's tasks."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import before_task_publish, worker_init
from django.db import transaction
from items import Item

from django_pg_real_pool import assert_released

from . import work


@shared_task
def order() -> dict[str, Any]:
    return work.report(work.order())


@shared_task
def buy(name: str) -> None:
    """Ask for another task in a transaction, to be published after it."""
    with transaction.atomic():
        item = Item.objects.create(name=name)
        ship.delay_on_commit(item.pk)


@shared_task
def ship(pk: int) -> None:
    Item.objects.filter(pk=pk).update(name="shipped")


@before_task_publish.connect
def _nothing_is_held(**_kwargs: Any) -> None:
    assert_released()


@worker_init.connect
def _query_before_fork(**_kwargs: Any) -> None:
    work.query_early()
